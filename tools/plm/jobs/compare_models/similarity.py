"""How alike two models represent the same things: linear centred kernel alignment (CKA).

Kornblith et al. 2019 (arXiv:1905.00414), with the unbiased estimator of HSIC (Song et al. 2012, JMLR 13:1393), since
the biased one approaches 1 for any two representations that are wide beside the number of rows (Murphy et al. 2024,
arXiv:2405.01012). Linear kernels make all sums products of features, so that N rows cost N D1 D2 operations and no
N x N matrix is made. Intervals come from a grouped jackknife over clusters: a bootstrap would draw rows twice, and
copies of a row are alike in both models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plm.scoring.intervals import FEWEST_GROUPS, group_index

Floats = NDArray[np.float64]
BLOCKS = 50
"""Blocks of clusters that the jackknife leaves out, at most."""
_NORMAL = 1.959964


@dataclass(frozen=True)
class Similarity:
    """CKA of two representations of the same rows.

    Attributes:
        value: At most 1 (equal up to rotation and scale); about 0 for unrelated ones, perhaps slightly below.
        low: Lower end of the 95 % interval; NaN with too few clusters.
        high: Upper end of that interval.
        rows: Number of rows compared.
        clusters: Number of clusters that these rows are in.
    """

    value: float
    low: float
    high: float
    rows: int
    clusters: int


def linear_cka(first: NDArray[Any], second: NDArray[Any], clusters: Sequence[str], seed: int = 0) -> Similarity:
    """Debiased linear CKA of two representations, (N, D1) and (N, D2), of the same N rows.

    Args:
        first: (N, D1) representations by one model.
        second: (N, D2) representations by the other.
        clusters: Cluster of each row.
        seed: Seed that decides which clusters share a block of the jackknife.
    """
    rows = len(first)
    index, count = group_index(clusters)
    if rows < 4:
        return Similarity(float("nan"), float("nan"), float("nan"), rows, count)
    sums = _Sums(_centred(first), _centred(second))
    value = sums.cka()
    low = high = float("nan")
    blocks = min(BLOCKS, count)
    if count >= FEWEST_GROUPS:
        block = (np.random.default_rng(seed).permutation(count) % blocks)[index]
        left = [sums.without(np.flatnonzero(block == number)).cka() for number in range(blocks)]
        spread = np.array([each for each in left if np.isfinite(each)])
        if len(spread) == blocks and np.isfinite(value):
            error = float(np.sqrt((blocks - 1) / blocks * ((spread - spread.mean()) ** 2).sum()))
            low, high = value - _NORMAL * error, min(1.0, value + _NORMAL * error)
    return Similarity(value, low, high, rows, count)


def _centred(values: NDArray[Any]) -> Floats:
    """Mean 0 and overall scale 1: CKA does not change, sums lose no digits."""
    rows = np.asarray(values, np.float64)
    rows = rows - rows.mean(axis=0)
    scale = np.sqrt((rows**2).sum(axis=1).mean())
    return rows / scale if scale > 0 else rows


class _Sums:
    """The products that three HSICs need, and the same with some rows left out."""

    def __init__(self, first: Floats, second: Floats, products: tuple[Floats, Floats, Floats] | None = None) -> None:
        self._rows = (first, second)
        self._products = products or (first.T @ first, first.T @ second, second.T @ second)

    def without(self, left_out: NDArray[np.int64]) -> _Sums:
        first, second = (rows[left_out] for rows in self._rows)
        products = (first.T @ first, first.T @ second, second.T @ second)
        kept = np.ones(len(self._rows[0]), bool)
        kept[left_out] = False
        rest = [mine - theirs for mine, theirs in zip(self._products, products, strict=True)]
        return _Sums(self._rows[0][kept], self._rows[1][kept], (rest[0], rest[1], rest[2]))

    def cka(self) -> float:
        """NaN where one of the two does not vary."""
        first, second = self._rows
        count = len(first)
        if count < 4:
            return float("nan")
        diagonals = [(rows**2).sum(axis=1) for rows in (first, second)]
        # Row sums of the kernel without its diagonal.
        sums = [rows @ rows.sum(axis=0) - diagonal for rows, diagonal in zip((first, second), diagonals, strict=True)]

        def hsic(product: Floats, one: int, other: int) -> float:
            trace = float((product**2).sum() - diagonals[one] @ diagonals[other])
            totals = float(sums[one].sum() * sums[other].sum()) / ((count - 1) * (count - 2))
            cross = 2 / (count - 2) * float(sums[one] @ sums[other])
            return (trace + totals - cross) / (count * (count - 3))

        own = hsic(self._products[0], 0, 0), hsic(self._products[2], 1, 1)
        if min(own) <= 1e-12:
            return float("nan")
        return min(1.0, hsic(self._products[1], 0, 1) / float(np.sqrt(own[0] * own[1])))
