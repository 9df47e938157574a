"""Whether scores agree with measured values, beside baselines: rank correlations, intervals, a paired comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from plm.scoring.comparison import Comparison, compare
from plm.scoring.intervals import FEWEST_GROUPS, bootstrap, draw_groups, group_index, interval
from plm.scoring.metrics import ALL, Scored, score
from plm.wording import counted

Floats = NDArray[np.float64]
FEWEST_VALUES = 3
MODEL = "language model"
_KEY = ("spearman", ALL)


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation with the measured values; positive where higher scores go with what is tolerated.

    Attributes:
        name: Of what was scored.
        value: NaN where the scores or the values are all equal.
        low: Lower end of its 95 % interval; NaN without one.
        high: Upper end.
    """

    name: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Agreement:
    """The model and the baselines against the measured values of the same rows.

    Attributes:
        rows: Scored rows with a measured value.
        unit: What was drawn again for the intervals, with its number: ``41 positions``.
        correlations: The model first.
        comparison: The model against the baseline that agrees best; None where a correlation is undefined.
    """

    rows: int
    unit: str
    correlations: tuple[Correlation, ...]
    comparison: Comparison | None


def agreement(
    measured: Floats, scores: Mapping[str, Floats], groups: Sequence[str], *, lower_is_better: bool, resamples: int,
    seed: int,
) -> Agreement | None:
    """Compares scores with measured values.

    Variants at one position are no independent measurements, so positions are drawn again, where there are enough of
    them; else variants are.

    Args:
        measured: (N,) values of the scored rows; NaN where there is none.
        scores: (N,) by name; the model's first. Higher is more tolerated.
        groups: Protein and positions of each row.
        lower_is_better: Low measured values are tolerated ones.
        resamples: How often groups are drawn again.
        seed: Of the draws.

    Returns:
        None with fewer than :data:`FEWEST_VALUES` values.
    """
    usable = np.isfinite(measured)
    if int(usable.sum()) < FEWEST_VALUES:
        return None
    truth = -measured[usable] if lower_is_better else measured[usable]
    index, count = group_index([group for group, keep in zip(groups, usable, strict=True) if keep])
    unit = counted(count, "position or set of positions", "positions or sets of positions")
    if count < FEWEST_GROUPS:
        index, count = np.arange(len(truth)), len(truth)
        unit = counted(count, "variant")
    draws = draw_groups(count, resamples, seed) if count >= FEWEST_GROUPS else None
    correlations: list[Correlation] = []
    resampled: list[Floats | None] = []
    for name, values in scores.items():
        scored = Scored("number", truth, values[usable], np.empty(0, np.int64))
        drawn = None if draws is None else bootstrap(scored, index, draws)[_KEY]
        low, high = (float("nan"), float("nan")) if drawn is None else interval(drawn)
        correlations.append(Correlation(name, score(scored)[_KEY], low, high))
        resampled.append(drawn)
    rivals = [number for number in range(1, len(correlations)) if np.isfinite(correlations[number].value)]
    comparison = None
    if rivals and np.isfinite(correlations[0].value):
        best = max(rivals, key=lambda number: correlations[number].value)
        first, second = resampled[0], resampled[best]
        pair = None if first is None or second is None else (first, second)
        comparison = compare(
            (correlations[0].name, correlations[best].name), "spearman",
            (correlations[0].value, correlations[best].value), pair,
        )
    return Agreement(len(truth), unit, tuple(correlations), comparison)
