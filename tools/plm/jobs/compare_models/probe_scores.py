"""Scores of probes under resamples of groups, and how much of the reference's score a model keeps.

Retention is a model's score over the reference's (of AUROC: what lies above 0.5). What a baseline reaches without a
language model flatters that ratio, so what is kept of the reference's *gain over the best baseline* stands beside it.
All models see the same draws of groups, so both ratios are paired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from plm.scoring import intervals, metrics
from plm.scoring.intervals import FEWEST_GROUPS, draw_groups, group_index, interval
from plm.scoring.metrics import ALL, Floats, Scored

MEASURES = {
    "binary": ("auroc", "auprc", "mcc", "accuracy"),
    "multiclass": ("macro_f1", "accuracy", "mcc"),
    "number": ("spearman", "pearson", "rmse", "r2"),
}
CHANCE = {"auroc": 0.5}
"""What a score is without knowing anything, where that is not about 0; it is taken off before scores are divided."""
_NAN = float("nan")


@dataclass(frozen=True)
class KeptShare:
    """A ratio of scores with its 95 % interval; NaN where it is not defined."""

    value: float = _NAN
    low: float = _NAN
    high: float = _NAN


@dataclass(frozen=True)
class Resampled:
    """One model's scores of one probe.

    Attributes:
        values: Measure -> score.
        draws: Measure -> (R,) scores under the draws; empty with too few groups.
    """

    values: Mapping[str, float]
    draws: Mapping[str, Floats]

    def interval(self, measure: str) -> tuple[float, float]:
        """95 % percentile interval, NaN without draws."""
        return interval(self.draws[measure]) if measure in self.draws else (_NAN, _NAN)


class Draws:
    """The resamples that all models of a probe share.

    Args:
        groups: (N,) group of each judged row.
        resamples: Number of resamples, R.
        seed: Seed of the resamples.
    """

    def __init__(self, groups: Sequence[str], resamples: int, seed: int) -> None:
        self.index, self.groups = group_index(groups)
        enough = self.groups >= FEWEST_GROUPS
        self.draws: NDArray[np.int64] | None = draw_groups(self.groups, resamples, seed) if enough else None

    def score(self, scored: Scored) -> Resampled:
        """Every measure of the task, as is and under each resample."""
        names = MEASURES[scored.kind]
        if scored.kind == "multiclass":
            table = self._tables(scored)
            whole = _of_tables(table.sum(axis=0)[None])
            values = {name: float(whole[name][0]) for name in names}
            if self.draws is None:
                return Resampled(values, {})
            size = len(scored.classes)
            drawn = (self.draws @ table.reshape(self.groups, -1)).reshape(-1, size, size)
            return Resampled(values, _of_tables(drawn))
        scores = metrics.score(scored)
        values = {name: scores[name, ALL] for name in names}
        if self.draws is None:
            return Resampled(values, {})
        under = intervals.bootstrap(scored, self.index, self.draws)
        return Resampled(values, {name: under[name, ALL] for name in names})

    def _tables(self, scored: Scored) -> NDArray[np.float64]:
        """(G, K, K) rows of each group by true class and call."""
        size = len(scored.classes)
        cell = (self.index * size + scored.truth.astype(np.int64)) * size + scored.calls
        counts = np.bincount(cell, minlength=self.groups * size * size).astype(np.float64)
        return counts.reshape(self.groups, size, size)


def _of_tables(tables: NDArray[np.float64]) -> dict[str, Floats]:
    """Macro F1 (over classes that occur), accuracy and Matthews correlation of (R, K, K) confusion matrices."""
    hits = np.einsum("rkk->rk", tables)
    true, called, total = tables.sum(axis=2), tables.sum(axis=1), tables.sum(axis=(1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        each = np.where(true > 0, 2 * hits / (true + called), 0.0)
        macro = each.sum(axis=1) / (true > 0).sum(axis=1)
        correct = hits.sum(axis=1)
        top = correct * total - (true * called).sum(axis=1)
        spread = (total**2 - (true**2).sum(axis=1)) * (total**2 - (called**2).sum(axis=1))
        mcc = np.where(spread > 0, top / np.sqrt(np.maximum(spread, 1e-300)), 0.0)
        mcc = np.where((true > 0).sum(axis=1) > 1, mcc, np.nan)
        return {"macro_f1": macro, "accuracy": correct / total, "mcc": mcc}


def retention(model: Resampled, reference: Resampled, measure: str) -> KeptShare:
    """The model's score over the reference's, both above what chance gives (:data:`CHANCE`).

    Undefined where the reference's score may well be chance: a ratio to nothing says nothing.
    """
    chance = CHANCE.get(measure, 0.0)
    if not reference.values[measure] > chance:
        return KeptShare()
    value = (model.values[measure] - chance) / (reference.values[measure] - chance)
    if measure not in model.draws:
        return KeptShare(value)
    if not interval(reference.draws[measure])[0] > chance:
        return KeptShare()
    return KeptShare(value, *interval(ratios(model, reference, measure)))


def ratios(model: Resampled, reference: Resampled, measure: str) -> Floats:
    """(R,) retention under each draw."""
    chance = CHANCE.get(measure, 0.0)
    return (model.draws[measure] - chance) / (reference.draws[measure] - chance)


def gain_kept(model: Resampled, reference: Resampled, baseline: Resampled, measure: str) -> KeptShare:
    """What is kept of the reference's gain over a baseline; undefined where that gain may well be none."""
    gain = reference.values[measure] - baseline.values[measure]
    if not gain > 0 or measure not in model.draws:
        return KeptShare()
    gains = reference.draws[measure] - baseline.draws[measure]
    if not interval(gains)[0] > 0:
        return KeptShare()
    own = model.draws[measure] - baseline.draws[measure]
    return KeptShare((model.values[measure] - baseline.values[measure]) / gain, *interval(own / gains))
