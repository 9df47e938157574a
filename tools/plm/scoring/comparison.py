"""Whether one model is better than another on the same rows, beyond chance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from plm.scoring.intervals import interval
from plm.scoring.metrics import LOWER_IS_BETTER, Floats


@dataclass(frozen=True)
class Comparison:
    """The difference of two models in one metric, from the same resamples of groups.

    Attributes:
        first: Name of the first model.
        second: Name of the second model.
        metric: Name of the metric.
        first_value: Score of the first model.
        second_value: Score of the second model.
        difference: ``first_value - second_value``.
        low: Lower end of the 95 % interval of the difference; NaN when there are too few groups.
        high: Upper end of that interval.
        p_value: Two-sided bootstrap p value of no difference; NaN likewise.
    """

    first: str
    second: str
    metric: str
    first_value: float
    second_value: float
    difference: float
    low: float
    high: float
    p_value: float

    @property
    def verdict(self) -> str:
        """``beats``, ``is worse than``, ``is not shown to be better than`` or ``cannot be told from`` (no interval)."""
        if not (np.isfinite(self.low) and np.isfinite(self.high)):
            return "cannot be told from"
        low, high = (-self.high, -self.low) if self.metric in LOWER_IS_BETTER else (self.low, self.high)
        if low > 0:
            return "beats"
        return "is worse than" if high < 0 else "is not shown to be better than"


def compare(
    names: tuple[str, str], metric: str, values: tuple[float, float], resampled: tuple[Floats, Floats] | None
) -> Comparison:
    """Compares two models by the paired bootstrap over groups.

    Args:
        names: Names of the two models.
        metric: Name of the metric.
        values: Scores of the two models on the rows.
        resampled: Their scores (R,) under the same draws of groups; None when there are too few groups.
    """
    low = high = p_value = float("nan")
    if resampled is not None:
        differences = resampled[0] - resampled[1]
        low, high = interval(differences)
        p_value = paired_p_value(differences)
    return Comparison(names[0], names[1], metric, *values, values[0] - values[1], low, high, p_value)


def paired_p_value(differences: Floats) -> float:
    """Two-sided p value: twice the share of resamples beyond zero, one more counted (Davison and Hinkley 1997)."""
    defined = differences[np.isfinite(differences)]
    if not len(defined):
        return float("nan")
    smaller = min((defined <= 0).sum(), (defined >= 0).sum())
    return float(min(1.0, 2 * (smaller + 1) / (len(defined) + 1)))
