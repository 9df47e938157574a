"""Which combination of members is best, judged on rows that none of them learned from.

Candidates: each member alone, the mean of all (calibrated logits, or calibrated numbers), and a stacking with weights
of its own that are pulled towards the mean, so that few rows change little. Every candidate is fitted and judged by
cross-fitting that keeps groups intact; the loss (log loss, or squared error in units of the labels' deviation) is a
mean over rows. Several classes get biases in one candidate only: how frequent they are differs from group to group, so
that biases learned on some groups can make probabilities of others worse. The mean is the simplest, since nothing in it
is learned from these rows but its scale. It is taken unless its loss exceeds the best one's by more than a standard
error (over groups, of the difference) and a hundredth; then the best is taken, a member alone or a stacking. Of
several classes another is taken whose main metric is clearly higher, for the loss says little of rare classes.

The language model's answers are known for fewer rows (those that it was not trained on). So the sequence members are
combined first, on all rows, and the language model is then combined with the result on the rows where it is known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from plm.data.task import Task
from plm.model.combination import LANGUAGE_MODEL, Combination, Floats, as_logits, from_logits, weighted
from plm.scoring.cross_fitting import inner_folds

Ints = NDArray[np.int64]
Truth = NDArray[Any]
FEWEST_STACKED = 100
"""Rows below which no stacking is tried."""
SLIGHTLY = 0.01
"""A loss that is larger by this share is not worth a learned number."""
CLEARLY = 0.02
"""A main metric that is higher by this is taken, whatever the loss says."""
PULL = 10.0
"""Twice the loss, summed over rows, that a weight costs which is as far from the mean's as the mean's from nothing."""
TOGETHER = "sequence members"
"""Name of the combined sequence members beside the language model."""
SHARES = {LANGUAGE_MODEL: 0.4, TOGETHER: 0.85}
"""Weights of calibrated logits in the mean of both: about what a plain mean of the language model as one more member
beside some five would give."""
_SLIGHT = 1e-3
"""Pull of scales and biases towards 1 and 0, so that they stay finite where classes part perfectly."""
_FOLDS = 5


@dataclass(frozen=True)
class Heard:
    """What members say of rows that they did not learn from.

    Attributes:
        answers: By name, (N, K) probabilities or (N, 1) numbers.
        similarity: (N,) of the nearest training row, 0-1; NaN where no member compares.
        compares: Names of the members whose weight may depend on the similarity.
        truth: (N,) class numbers or numbers.
        groups: (N,) what must not be parted.
        task: Task with mean and deviation of the training numbers.
        calibrated: All answers are calibrated already, so that few rows should change little.
    """

    answers: Mapping[str, Floats]
    similarity: Floats
    compares: tuple[str, ...]
    truth: Truth
    groups: NDArray[np.str_]
    task: Task
    calibrated: bool = False

    def rows(self, chosen: NDArray[Any]) -> Heard:
        """The same for some of the rows."""
        answers = {name: values[chosen] for name, values in self.answers.items()}
        return replace(
            self, answers=answers, similarity=self.similarity[chosen], truth=self.truth[chosen],
            groups=self.groups[chosen],
        )

    def only(self, names: Sequence[str]) -> Heard:
        """The same for some of the members."""
        answers = {name: self.answers[name] for name in names}
        compares = tuple(name for name in self.compares if name in answers)
        return replace(self, answers=answers, compares=compares)

    def logits(self) -> Floats:
        """(m, N, K) of all members, in order."""
        return np.stack([as_logits(values, self.task) for values in self.answers.values()])

    def __len__(self) -> int:
        return len(self.truth)


@dataclass(frozen=True)
class Candidate:
    """One way to combine, and how it did on rows that it was not fitted on.

    Attributes:
        name: In words, for reports.
        combination: Fitted on all rows.
        loss: Mean loss by cross-fitting.
        behind: How much more than the best candidate's.
        error: Standard error of ``behind`` over groups.
        answers: (N, K) cross-fitted answers.
    """

    name: str
    combination: Combination
    loss: float
    behind: float
    error: float
    answers: Floats


@dataclass(frozen=True)
class Choice:
    """What was chosen among candidates.

    Attributes:
        chosen: The one that was taken.
        candidates: All, the simplest first.
    """

    chosen: Candidate
    candidates: tuple[Candidate, ...] = field(default=())


# ------------------------------------------------------------------------------------------------------------ fitting


def losses(logits: Floats, truth: Truth, task: Task) -> Floats:
    """(N,) log loss, or half the squared error in units of the labels' deviation."""
    if task.target == "number":
        return 0.5 * (logits[:, 0] - (truth - task.mean) / task.sd) ** 2
    each: Floats = -log_softmax(logits, axis=1)[np.arange(len(truth)), truth.astype(np.int64)]
    return each


def _optimise(
    parts: Floats, similarity: Floats, gated: NDArray[np.bool_], truth: Truth, task: Task, prior: Floats, pull: float,
    *, biased: bool = False, least: float = 0.0,
) -> tuple[Floats, Floats, Floats]:
    """Weights, slopes and biases with the least loss, pulled towards ``prior`` weights, no slope and no bias.

    The pull counts distances from the prior in units of it, or of ``least`` where that is larger.
    """
    from scipy.optimize import minimize

    count, rows, width = parts.shape
    near = np.nan_to_num(similarity)
    places = np.flatnonzero(gated)
    features = np.concatenate([parts, parts[places] * near[None, :, None]])
    unit = np.concatenate([prior, prior[places]])
    unit = np.maximum(np.where(unit > 0, unit, 1 / max(count, 1)), least)
    centre = np.concatenate([prior, np.zeros(len(places))])
    number = task.target == "number"
    around = (None, None) if biased or number or width == 2 else (0.0, 0.0)
    wanted = (truth - task.mean) / task.sd if number else np.eye(width)[truth.astype(np.int64)]

    def value(point: Floats) -> tuple[float, Floats]:
        weights, bias = point[: len(unit)], point[len(unit) :]
        logits = np.tensordot(weights, features, axes=1) + bias
        if number:
            rest = (logits[:, 0] - wanted)[:, None]
            loss = 0.5 * float((rest**2).sum())
        else:
            logs = log_softmax(logits, axis=1)
            rest = np.exp(logs) - wanted
            loss = -float((logs * wanted).sum())
        away = (weights - centre) / unit
        loss += 0.5 * pull * float(away @ away) + 0.5 * _SLIGHT * rows * float(bias @ bias)
        slope = np.einsum("nk,ink->i", rest, features) + pull * away / unit
        return loss, np.concatenate([slope, rest.sum(axis=0) + _SLIGHT * rows * bias])

    start = np.concatenate([centre, np.zeros(width)])
    bounds = [(0, None)] * len(unit) + [around] * width
    best = minimize(value, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 500})
    slopes = np.zeros(count)
    slopes[places] = best.x[count : len(unit)]
    return best.x[:count], slopes, best.x[len(unit) :]


def _scaled(part: Floats, truth: Truth, task: Task, calibrated: bool = False) -> tuple[float, Floats]:
    """Scale and biases that calibrate one (N, K) answer; of one that is calibrated already few rows change little.

    Of one that is not, the scale is free within what makes its logits differ by a few: a member that was held back
    much when it was fitted says what it knows in small numbers.
    """
    none = np.zeros(len(truth))
    pull = PULL if calibrated else _SLIGHT * len(truth)
    size = float(np.sqrt((part**2).mean()))
    unit = 1 / size if size > 0 and not calibrated else 0.0
    weights, _, bias = _optimise(part[None], none, np.zeros(1, bool), truth, task, np.ones(1), pull, least=unit)
    return float(weights[0]), bias


def fit_single(heard: Heard, name: str) -> Combination:
    """One member, calibrated."""
    scale, bias = _scaled(as_logits(heard.answers[name], heard.task), heard.truth, heard.task, heard.calibrated)
    return Combination((name,), np.array([scale]), np.zeros(1), bias, "single")


def fit_mean(heard: Heard) -> Combination:
    """The mean of calibrated logits, calibrated once more; members that say nothing of the truth get no weight."""
    names, parts = tuple(heard.answers), heard.logits()
    if heard.calibrated:
        share = np.array([SHARES[name] for name in names])
        together = weighted(parts, None, share, np.zeros(len(names)), np.zeros(heard.task.outputs))
        scale, bias = _scaled(together, heard.truth, heard.task, True)
        return Combination(names, scale * share, np.zeros(len(names)), bias, "mean")
    each = [_scaled(part, heard.truth, heard.task) for part in parts]
    weights = np.array([scale for scale, _ in each]) / len(names)
    bias = np.mean([own for _, own in each], axis=0)
    none = np.zeros(len(names))
    together = weighted(parts, None, weights, none, bias)
    scale, more = _scaled(together, heard.truth, heard.task)
    return Combination(names, scale * weights, none, scale * bias + more, "mean")


def fit_stacked(heard: Heard, *, biased: bool = False) -> Combination:
    """Weights of their own, pulled towards those of the mean; the weight of relatives may grow with the similarity.

    Args:
        heard: Answers of members to rows that they did not learn from.
        biased: Several classes have biases, too (two classes and numbers always have).
    """
    mean = fit_mean(heard)
    gated = np.array([name in heard.compares for name in mean.names])
    weights, slopes, bias = _optimise(
        heard.logits(), heard.similarity, gated, heard.truth, heard.task, mean.weights, PULL, biased=biased
    )
    return Combination(mean.names, weights, slopes, bias, "stacked")


# ------------------------------------------------------------------------------------------------------------ choosing


def _candidates(heard: Heard) -> dict[str, Any]:
    """What can be fitted on answers, by name, the fewest learned numbers first."""
    names = list(heard.answers)
    ways: dict[str, Any] = {}
    if len(names) > 1:
        ways["mean"] = fit_mean
    for name in names:
        ways[name] = lambda rows, name=name: fit_single(rows, name)
    if len(names) > 1 and len(heard) >= FEWEST_STACKED:
        ways["stacked"] = fit_stacked
        if heard.task.kind == "multiclass":
            ways["stacked, with biases"] = partial(fit_stacked, biased=True)
    return ways


Quality = Callable[[Floats], float]
"""Main metric of answers to all rows that are heard, higher is better."""


def choose(heard: Heard, seed: int, *, never: str = "", quality: Quality | None = None) -> Choice:
    """The candidate to take, by cross-fitting and the rule of one standard error.

    Args:
        heard: Answers of members to rows that they did not learn from.
        seed: Seed of the folds.
        never: A member that is not taken alone.
        quality: Where the loss does not speak for the main metric (macro F1, in which rare classes count as much as
            frequent ones): the candidate of the best quality is taken if it is better by :data:`CLEARLY`.
    """
    ways = {name: fit for name, fit in _candidates(heard).items() if name != never or len(heard.answers) == 1}
    task = heard.task
    folds = inner_folds(heard.truth, heard.groups, task.target == "class", seed, _FOLDS)
    logits = {name: np.zeros((len(heard), task.outputs)) for name in ways}
    fitted = {name: fit(heard) for name, fit in ways.items()}
    for learn, judge in folds:
        rows, new = heard.rows(learn), heard.rows(judge)
        if task.target == "class" and len(np.unique(rows.truth)) < 2:
            continue
        for name, fit in ways.items():
            one = fit(rows)
            logits[name][judge] = weighted(
                new.only(one.names).logits(), new.similarity, one.weights, one.slopes, one.bias
            )
    if not folds:  # a single group: nothing can be compared, and the mean chooses nothing
        for name, one in fitted.items():
            logits[name] = weighted(heard.only(one.names).logits(), heard.similarity, one.weights, one.slopes, one.bias)
    each = {name: losses(values, heard.truth, task) for name, values in logits.items()}
    best = min(each, key=lambda name: float(each[name].mean()))
    _, groups = np.unique(heard.groups, return_inverse=True)
    candidates = []
    for name, loss in each.items():
        behind, error = _difference(loss - each[best], groups)
        answers = from_logits(logits[name], task)
        candidates.append(Candidate(name, fitted[name], float(loss.mean()), behind, error, answers))
    least = min(one.loss for one in candidates)
    simplest = candidates[0]
    chosen = simplest
    if folds and simplest.behind > max(simplest.error, SLIGHTLY * least):
        chosen = min(candidates, key=lambda one: one.loss)
    if folds and quality is not None:
        qualities = [quality(one.answers) for one in candidates]
        highest = int(np.argmax(qualities))
        if qualities[highest] > quality(chosen.answers) + CLEARLY:
            chosen = candidates[highest]
    return Choice(chosen, tuple(candidates))


def _difference(difference: Floats, groups: Ints) -> tuple[float, float]:
    """Mean over rows and its standard error, groups drawn together."""
    mean = float(difference.mean())
    sums = np.bincount(groups, weights=difference - mean)
    count = len(sums)
    if count < 2:
        return mean, float("inf")
    return mean, float(np.sqrt((sums**2).sum() * count / (count - 1)) / len(difference))


@dataclass(frozen=True)
class Combined:
    """The choice in two steps, as one combination.

    Attributes:
        combination: Of everything that counts.
        sequence: Choice among the sequence members.
        whole: Choice among the language model, the sequence members together, and both.
        answers: (N, K) cross-fitted answers of the choice to the rows where the language model is known.
        known: (N,) these rows.
    """

    combination: Combination
    sequence: Choice
    whole: Choice
    answers: Floats
    known: Ints



def combine(
    heard: Heard, model: Floats, known: Ints, seed: int, *, forced: bool = False,
    quality: Quality | None = None, several: Quality | None = None,
) -> Combined:
    """Combines sequence members on all rows, then the language model with them on the rows where it is known.

    Args:
        heard: Answers of the sequence members, cross-fitted.
        model: (M, K) answers of the language model to the rows ``known``.
        known: (M,) numbers of rows that the language model did not learn from.
        seed: Seed of the folds.
        forced: The language model is not taken alone.
        quality: Main metric of answers to the rows ``known``, higher is better. If the language model's part lowers it
            by more than a hundredth, whatever the loss says, the sequence members answer without it.
        several: Of several classes the same of answers to all rows that are heard; see :func:`choose`.
    """
    sequence = choose(heard, seed, quality=several)
    there = heard.rows(known)
    both = Heard(
        {LANGUAGE_MODEL: model, TOGETHER: sequence.chosen.answers[known]}, there.similarity, (), there.truth,
        there.groups, heard.task, calibrated=True,
    )
    by_quality = None if several is None else quality
    whole = choose(both, seed, never=LANGUAGE_MODEL if forced else "", quality=by_quality)
    if quality is not None and LANGUAGE_MODEL in whole.chosen.combination.names:
        without = next(one for one in whole.candidates if one.name == TOGETHER)
        if quality(whole.chosen.answers) < quality(without.answers) - SLIGHTLY:
            whole = Choice(without, whole.candidates)
    if whole.chosen.combination.names == (LANGUAGE_MODEL,):  # it answers as it is, calibrated already
        itself = Combination((LANGUAGE_MODEL,), np.ones(1), np.zeros(1), np.zeros(model.shape[1]), "single")
        return Combined(itself, sequence, whole, model, known)
    return Combined(
        _flat(whole.chosen.combination, sequence.chosen.combination), sequence, whole, whole.chosen.answers, known
    )


def _flat(outer: Combination, inner: Combination) -> Combination:
    """The combination of a combination, as one."""
    names: list[str] = []
    weights: list[float] = []
    slopes: list[float] = []
    bias = outer.bias.copy()
    for name, weight in zip(outer.names, outer.weights, strict=True):
        if name != TOGETHER:
            names.append(name)
            weights.append(float(weight))
            slopes.append(0.0)
            continue
        names += inner.names
        weights += (weight * inner.weights).tolist()
        slopes += (weight * inner.slopes).tolist()
        # Softmax ignores what is added to all classes, so centring the inner bias changes no answer.
        bias = bias + weight * (inner.bias - (inner.bias.mean() if len(inner.bias) > 1 else 0))
    keep = [place for place, _ in enumerate(names) if weights[place] > 0 or slopes[place] > 0] or [0]
    way = inner.way if outer.names == (TOGETHER,) else outer.way
    return Combination(
        tuple(names[place] for place in keep), np.array([weights[place] for place in keep]),
        np.array([slopes[place] for place in keep]), bias, way,
    )
