"""What is wrong or odd with a set of embeddings: NaN, copies, odd lengths of vectors, components that say nothing.

Everything is measured on all rows but for near copies and the effective dimension, which a seeded random sample of at
most ``most`` rows gives.

* Norm outliers: the logarithm of the vector's length lies more than 3.5 robust standard deviations (1.4826 times the
  median absolute deviation) from the median (Iglewicz and Hoaglin 1993, "How to Detect and Handle Outliers").
* Near copies: vectors that differ, as the root of the mean square over the components, by less than a tenth of the
  components' standard deviation. They are mostly close homologues; not asked for below 16 components, where unlike
  proteins come that close by chance.
* Effective dimension: the participation ratio of the principal variances, (sum v)^2 / sum v^2: so many directions
  would carry the variance if they shared it evenly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from plm.errors import UserError

Array = NDArray[np.float32]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Ints = NDArray[np.int64]
FEWEST = 10
"""Rows of finite numbers below which nothing is said of a set."""
NEAR = 0.1
FEWEST_COMPONENTS = 16
_ROBUST = 3.5
_SMALLEST_SPREAD = 0.01
"""Of log norms: vectors of practically equal length (normalised ones) have no outliers within a few per cent."""
_BLOCK = 4096


@dataclass(frozen=True)
class Quality:
    """A set of N embeddings of D components, judged.

    Attributes:
        finite: (N,) all numbers are finite; everything else is about these rows.
        norm: (N,) length of each vector; NaN where it is not finite.
        norm_limits: Lengths outside of which a vector is odd.
        odd: (N,) it is; a vector of zeros always.
        first: (N,) the first row with the very same numbers, often the row itself; -1 where it is not finite.
        near: (N,) for rows of the sample the first sampled row of their cluster of near copies, else -1.
        mean, sd, low, high: (D,).
        constant: (D,) every row has the same number.
        sample: (S,) rows of the sample, ascending; all finite.
        largest: Share of the variance in the component that varies most.
        effective: Effective dimension of the sample; NaN if nothing varies.
    """

    finite: Flags
    norm: Floats
    norm_limits: tuple[float, float]
    odd: Flags
    first: Ints
    near: Ints
    mean: Floats
    sd: Floats
    low: Floats
    high: Floats
    constant: Flags
    sample: Ints
    largest: float
    effective: float

    @property
    def copies(self) -> Flags:
        """(N,) an earlier row has the very same numbers."""
        return (self.first >= 0) & (self.first != np.arange(len(self.first)))

    @property
    def zero(self) -> Flags:
        """(N,) nothing but zeros."""
        return self.norm == 0

    @property
    def near_copies(self) -> Flags:
        """(N,) near copies, of the sample, of an earlier row in it."""
        return (self.near >= 0) & (self.near != np.arange(len(self.near)))


def judge(matrix: Array, where: str, most: int, seed: int) -> Quality:
    """Measures a set.

    Args:
        matrix: (N, D) float32 embeddings.
        where: The set in messages.
        most: Most rows of the sample.
        seed: Seed of the sample.

    Raises:
        UserError: Fewer than 10 rows of finite numbers.
    """
    finite: Flags = np.asarray(np.isfinite(matrix).all(axis=1))
    rows = np.flatnonzero(finite)
    if len(rows) < FEWEST:
        bad = f" ({len(matrix) - len(rows)} of {len(matrix)} hold NaN or infinity)" if len(rows) < len(matrix) else ""
        raise UserError(
            f"There are {len(rows)} embeddings of finite numbers{bad}, too few to say anything", where=where,
            fix=f"Give at least {FEWEST}",
        )
    norm = np.full(len(matrix), np.nan)
    total, squares = np.zeros(matrix.shape[1]), np.zeros(matrix.shape[1])
    low, high = np.full(matrix.shape[1], np.inf), np.full(matrix.shape[1], -np.inf)
    for start in range(0, len(rows), _BLOCK):
        part = rows[start : start + _BLOCK]
        block = matrix[part].astype(np.float64)
        norm[part] = np.sqrt((block**2).sum(axis=1))
        total += block.sum(axis=0)
        low, high = np.minimum(low, block.min(axis=0)), np.maximum(high, block.max(axis=0))
    mean = total / len(rows)
    for start in range(0, len(rows), _BLOCK):
        squares += ((matrix[rows[start : start + _BLOCK]] - mean) ** 2).sum(axis=0)
    constant = low == high
    sd = np.where(constant, 0.0, np.sqrt(squares / len(rows)))
    sample = rows
    if len(rows) > most:
        sample = np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))
    limits = _limits(norm[rows])
    first = _first_equal(matrix, rows)
    odd: Flags = finite & ((norm < limits[0]) | (norm > limits[1]) | (norm == 0))
    variance = sd**2
    largest = float(variance.max() / variance.sum()) if variance.sum() > 0 else float("nan")
    return Quality(
        finite, norm, limits, odd, first, _near(matrix, sample, first), mean, sd, low, high, constant, sample,
        largest, _effective(matrix[sample]),
    )


def _limits(norms: Floats) -> tuple[float, float]:
    logs = np.log(norms[norms > 0])
    if not len(logs):
        return 0.0, 0.0
    middle = float(np.median(logs))
    spread = max(1.4826 * float(np.median(np.abs(logs - middle))), _SMALLEST_SPREAD)
    return float(np.exp(middle - _ROBUST * spread)), float(np.exp(middle + _ROBUST * spread))


def _first_equal(matrix: Array, rows: Ints) -> Ints:
    """(N,) the first row with the very same numbers; -1 for rows that are not among ``rows``."""
    first = np.full(len(matrix), -1, np.int64)
    seen: dict[bytes, int] = {}
    for row in rows:
        first[row] = seen.setdefault(fingerprint(matrix[row]), int(row))
    return first


def fingerprint(row: Array) -> bytes:
    """Equal for equal numbers; -0 equals 0."""
    import hashlib

    return hashlib.blake2b(np.add(row, 0, dtype=np.float32).tobytes(), digest_size=16).digest()


def _near(matrix: Array, sample: Ints, first: Ints) -> Ints:
    """(N,) the first sampled row of each sampled row's cluster of near copies, -1 for the others."""
    from scipy.sparse import coo_matrix
    from sklearn.neighbors import NearestNeighbors

    # Equal rows are one: thousands of them would be millions of pairs.
    distinct, place = np.unique(first[sample], return_inverse=True)
    links: tuple[Ints, Ints] = (np.empty(0, np.int64), np.empty(0, np.int64))
    points = matrix[distinct].astype(np.float64)
    sd = points.std(axis=0)
    varied = sd > 1e-6 * np.maximum(np.abs(points.mean(axis=0)), 1e-30)
    if len(distinct) > 1 and varied.sum() >= FEWEST_COMPONENTS:
        scaled = ((points[:, varied] - points[:, varied].mean(axis=0)) / sd[varied]).astype(np.float32)
        radius = NEAR * float(np.sqrt(varied.sum()))
        graph = NearestNeighbors(radius=radius, algorithm="brute").fit(scaled).radius_neighbors_graph()
        pairs = coo_matrix(graph)
        links = (pairs.row.astype(np.int64), pairs.col.astype(np.int64))
    cluster = clusters(len(distinct), [links])[place]
    result = np.full(len(matrix), -1, np.int64)
    _, starts = np.unique(cluster, return_index=True)
    result[sample] = sample[starts[np.unique(cluster, return_inverse=True)[1]]]
    return result


def clusters(count: int, links: Sequence[tuple[Ints, Ints]]) -> Ints:
    """(count,) number of the cluster of each of ``count`` things that links (pairs of indices) hold together."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    one = np.concatenate([pair[0] for pair in links]) if links else np.empty(0, np.int64)
    other = np.concatenate([pair[1] for pair in links]) if links else np.empty(0, np.int64)
    graph = coo_matrix((np.ones(len(one), np.int8), (one, other)), shape=(count, count))
    numbers: Ints = connected_components(graph, directed=False)[1].astype(np.int64)
    return numbers


def _effective(points: Array) -> float:
    centred = points.astype(np.float64) - points.mean(axis=0, dtype=np.float64)
    total = float((centred**2).sum())
    if total <= 0:
        return float("nan")
    # trace(C)^2 / trace(C^2), from whichever product is smaller.
    product = centred @ centred.T if len(centred) < centred.shape[1] else centred.T @ centred
    return total**2 / float((product**2).sum())
