"""What models said of the same masked residues: perplexity, accuracy and agreement, with intervals over clusters.

Only masked residues count: a model that may see a residue reads it off. Perplexity is over the model's whole vocabulary
(what pretraining reports too); agreement compares the probabilities of the twenty amino acids. Every score is a ratio
of sums over proteins, so a resample of clusters is a product of counts with sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from plm.scoring.intervals import FEWEST_GROUPS, draw_groups, group_index, interval

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
ALL = "all"
LETTERS = 20


@dataclass(frozen=True)
class Asked:
    """The M masked residues of P proteins.

    Attributes:
        owner: (M,) number of the protein.
        truth: (M,) true amino acid, 0-19.
        proteins: Number of proteins, P.
        domains: Domain of each of the P proteins.
        clusters: Homology cluster of each of the P proteins.
    """

    owner: Ints
    truth: Ints
    proteins: int
    domains: Sequence[str]
    clusters: Sequence[str]

    def sums(self, values: NDArray[np.generic]) -> Floats:
        """(P,) sum of a value over each protein's masked residues."""
        sums: Floats = np.bincount(self.owner, values.astype(np.float64), self.proteins).astype(np.float64)
        return sums


@dataclass(frozen=True)
class MaskedAnswers:
    """What one model said of them.

    Attributes:
        name: Name of the model or baseline.
        log_p: (M, 20) float32 log-probabilities of the amino acids within the whole vocabulary.
        called: (M,) likeliest token: the amino acid's number, or -1 for anything else.
        baseline: Whether it is no language model.
    """

    name: str
    log_p: NDArray[np.float32]
    called: Ints
    baseline: bool = False

    def loss(self, asked: Asked) -> Floats:
        """(M,) negative log-probability of the truth in nats."""
        return -self.log_p[np.arange(len(asked.truth)), asked.truth].astype(np.float64)

    def right(self, asked: Asked) -> NDArray[np.bool_]:
        """(M,) whether the likeliest token is the truth."""
        right: NDArray[np.bool_] = self.called == asked.truth
        return right


@dataclass(frozen=True)
class MaskedLine:
    """One score.

    Attributes:
        model: Name of the model or baseline.
        baseline: Whether that is no language model.
        domain: Domain whose proteins are scored; ``all`` for all proteins.
        measure: Name of the measure, such as ``masked_perplexity``.
        value: Score in the unit of the measure.
        low: Lower end of the 95 % interval; NaN with fewer than ten clusters.
        high: Upper end of that interval.
        proteins: Number of proteins with masked residues.
        residues: Number of masked residues.
        clusters: Number of homology clusters.
    """

    model: str
    baseline: bool
    domain: str
    measure: str
    value: float
    low: float
    high: float
    proteins: int
    residues: int
    clusters: int


class _Scope:
    """The proteins of one domain and the draws of their clusters; all models see the same draws."""

    def __init__(self, domain: str, chosen: NDArray[np.bool_], counts: Floats, asked: Asked, resamples: int, seed: int):
        self.domain, self.rows = domain, np.flatnonzero(chosen & (counts > 0))
        index, self.clusters = group_index([asked.clusters[row] for row in self.rows.tolist()])
        self._index = index
        self._draws = draw_groups(self.clusters, resamples, seed) if self.clusters >= FEWEST_GROUPS else None
        self._counts = counts

    def sums(self, values: Floats) -> tuple[float, Floats | None]:
        """The sum over the scope's proteins, and under each resample."""
        mine = values[self.rows]
        if self._draws is None:
            return float(mine.sum()), None
        drawn: Floats = self._draws.astype(np.float64) @ np.bincount(self._index, mine, self.clusters)
        return float(mine.sum()), drawn

    def line(self, model: MaskedAnswers, measure: str, top: Floats, *, exponent: bool = False) -> MaskedLine:
        """A sum over residues divided by the number of residues; its exponential for perplexities."""
        value, resampled = self.sums(top)
        residues, drawn = self.sums(self._counts)
        score, low, high = value / residues, float("nan"), float("nan")
        if resampled is not None and drawn is not None:
            low, high = interval(resampled / drawn)
        if exponent:
            score, low, high = (float(np.exp(each)) for each in (score, low, high))
        return MaskedLine(
            model.name, model.baseline, self.domain, measure, score, low, high, len(self.rows), int(residues),
            self.clusters,
        )


def _scopes(asked: Asked, resamples: int, seed: int) -> list[_Scope]:
    counts = asked.sums(np.ones(len(asked.owner)))
    domains = np.asarray(asked.domains, dtype=object).astype(str)
    names = sorted(set(domains.tolist()))
    scopes = [_Scope(ALL, np.ones(asked.proteins, bool), counts, asked, resamples, seed)]
    if len(names) > 1:
        scopes += [_Scope(name, domains == name, counts, asked, resamples, seed) for name in names]
    return [scope for scope in scopes if len(scope.rows)]


def scores(asked: Asked, models: Sequence[MaskedAnswers], *, resamples: int = 1000, seed: int = 42) -> list[MaskedLine]:
    """Masked perplexity and accuracy of each model, over all proteins and in each domain."""
    sums = {model.name: (asked.sums(model.loss(asked)), asked.sums(model.right(asked))) for model in models}
    lines: list[MaskedLine] = []
    for scope in _scopes(asked, resamples, seed):
        for model in models:
            loss, right = sums[model.name]
            lines.append(scope.line(model, "masked_perplexity", loss, exponent=True))
            lines.append(scope.line(model, "masked_accuracy", right))
    return lines


def agreement(
    asked: Asked, reference: MaskedAnswers, models: Sequence[MaskedAnswers], *, resamples: int = 1000, seed: int = 42
) -> list[MaskedLine]:
    """How each model agrees with the reference on the same masked residues.

    ``top1_agreement``: share of residues for which both find the same amino acid likeliest. ``kl_divergence``: of the
    model's distribution over amino acids from the reference's, in nats, mean over residues. ``perplexity_ratio``: the
    model's over the reference's. ``accuracy_difference``: the model's minus the reference's.
    """
    theirs = log_softmax(reference.log_p.astype(np.float64), axis=1)
    their_top, their_loss, their_right = theirs.argmax(axis=1), reference.loss(asked), reference.right(asked)
    lines: list[MaskedLine] = []
    scopes = _scopes(asked, resamples, seed)
    for model in models:
        mine = log_softmax(model.log_p.astype(np.float64), axis=1)
        same = asked.sums(mine.argmax(axis=1) == their_top)
        divergence = asked.sums((np.exp(theirs) * (theirs - mine)).sum(axis=1))
        ratio = asked.sums(model.loss(asked) - their_loss)
        difference = asked.sums(model.right(asked).astype(np.float64) - their_right)
        for scope in scopes:
            lines.append(scope.line(model, "top1_agreement", same))
            lines.append(scope.line(model, "kl_divergence", divergence))
            lines.append(scope.line(model, "perplexity_ratio", ratio, exponent=True))
            lines.append(scope.line(model, "accuracy_difference", difference))
    return lines


def unigram(asked: Asked) -> MaskedAnswers:
    """Always answers with the frequencies of the amino acids among these very residues: the best a constant can do."""
    counts = np.bincount(asked.truth, minlength=LETTERS) + 1.0
    log_p = np.log(counts / counts.sum()).astype(np.float32)
    called = np.full(len(asked.truth), int(counts.argmax()), np.int64)
    return MaskedAnswers("unigram", np.broadcast_to(log_p, (len(asked.truth), LETTERS)), called, baseline=True)


def composition(asked: Asked, visible: NDArray[np.int64], weight: float = 100.0) -> MaskedAnswers:
    """Answers with the composition of the same protein's residues that are not masked, drawn towards that of all.

    Args:
        asked: Masked residues with their truth.
        visible: (P, 20) how often each amino acid is visible in each protein.
        weight: Residues' worth of the overall composition that is added to each protein's own.
    """
    overall = visible.sum(axis=0) + 1.0
    overall = overall / overall.sum()
    own = visible + weight * overall
    log_p = np.log(own / own.sum(axis=1, keepdims=True)).astype(np.float32)[asked.owner]
    return MaskedAnswers("composition", log_p, log_p.argmax(axis=1).astype(np.int64), baseline=True)
