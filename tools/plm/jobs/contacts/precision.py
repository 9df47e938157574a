"""How many of the likeliest pairs touch: precision at L, L/2 and L/5 for pairs that lie apart in sequence.

Three separations, as the field has three definitions: at least 6 (all that counts as a contact, as fair-esm), at least
12 (medium and long range, TAPE's contact task), and at least 24 (long range, CASP). L is the number of residues of the
sequence. Pairs of unknown residues are left out. Equal scores are taken in every order: the precision is the mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from plm.scoring.intervals import FEWEST_GROUPS, draw_groups, group_index, interval

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
SEPARATIONS = (6, 12, 24)
TOPS = (("L", 1), ("L/2", 2), ("L/5", 5))
CELLS = tuple((separation, name) for separation in SEPARATIONS for name, _ in TOPS)
"""(least separation, top) in the order of the columns of tables."""
CHOICE = CELLS.index((6, "L"))
"""What chooses between methods on validation proteins."""


def precision_at(scores: Floats, touches: Flags, count: int) -> float:
    """Share of contacts among the ``count`` pairs with the highest scores; NaN without pairs.

    Args:
        scores: ``(P,)``; a pair with NaN (not seen) comes after all others.
        touches: ``(P,)`` whether each pair is in contact.
        count: Pairs to take; all if there are fewer.
    """
    taken = min(count, len(scores))
    if not taken:
        return float("nan")
    ranked = np.where(np.isnan(scores), -np.inf, scores)
    threshold = np.partition(ranked, len(ranked) - taken)[len(ranked) - taken]
    above, equal = ranked > threshold, ranked == threshold
    left = taken - int(above.sum())
    return float((touches[above].sum() + left * touches[equal].mean()) / taken)


def precisions(scores: Floats, touches: Flags, separation: Ints, length: int) -> Floats:
    """``(9,)`` in the order of :data:`CELLS`.

    Args:
        scores: ``(P,)`` of the pairs whose contacts are known.
        touches: ``(P,)`` their contacts.
        separation: ``(P,)`` residues from one to the other.
        length: Residues of the sequence.
    """
    values = []
    for least in SEPARATIONS:
        apart = separation >= least
        far, truth = scores[apart], touches[apart]
        values += [precision_at(far, truth, max(1, length // part)) for _, part in TOPS]
    return np.array(values)


@dataclass(frozen=True)
class MeanPrecision:
    """Means over proteins, each ``(9,)`` in the order of :data:`CELLS`.

    Attributes:
        method: What made the scores.
        proteins: Proteins that count.
        groups: Groups of relatives among them.
        mean: Means.
        low: Lower ends of the 95 % intervals; NaN with fewer than ten groups.
        high: Upper ends.
        resampled: ``(R, 9)`` means in each resample; empty without intervals.
    """

    method: str
    proteins: int
    groups: int
    mean: Floats
    low: Floats
    high: Floats
    resampled: Floats


def summarise(method: str, values: Floats, groups: Sequence[str], *, resamples: int, seed: int) -> MeanPrecision:
    """Means over proteins with intervals from resampled groups of relatives.

    Args:
        method: What made the scores.
        values: ``(N, 9)`` of the proteins; NaN where a protein has no pairs so far apart.
        groups: Cluster of each protein.
        resamples: Draws.
        seed: Of the draws; equal seeds pair the methods.
    """
    index, count = group_index(groups)
    nothing = np.full(len(CELLS), np.nan)
    mean = _means(values, np.ones((1, len(values))))[0]
    if count < FEWEST_GROUPS:
        return MeanPrecision(method, len(values), count, mean, nothing, nothing, np.empty((0, len(CELLS))))
    resampled = _means(values, draw_groups(count, resamples, seed)[:, index].astype(np.float64))
    ends = np.array([interval(column) for column in resampled.T])
    return MeanPrecision(method, len(values), count, mean, ends[:, 0], ends[:, 1], resampled)


def _means(values: Floats, weights: Floats) -> Floats:
    defined = np.isfinite(values)
    total = weights @ defined
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(weights @ np.where(defined, values, 0.0) / total)
