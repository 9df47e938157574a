"""Do new embeddings come from where the reference came from? Tests of whole sets and of single proteins.

* Components: two-sample Kolmogorov-Smirnov tests, p values adjusted over the components (Benjamini and Hochberg 1995).
* Whole vectors: energy distance (Szekely and Rizzo 2013, doi:10.1016/j.jspi.2013.03.018) with a permutation p value;
  as a share of the mean distance between the sets it is 0 for equal distributions and at most 1.
* Classifier two-sample test (Lopez-Paz and Oquab 2017, arXiv:1610.06545): how well a logistic regression tells the
  sets apart on proteins that it was not fitted to. The AUROC is a size of drift that does not grow with the rows.
* Proteins: those farther from their nearest reference proteins than nearly all of the reference are from theirs.

Distances of proteins are measured where the reference has mean 0 and deviation 1 in each component, as
:mod:`plm.scoring.novelty` does. Tests need independent rows: members of one group and near copies within a set count
once, and relatives across the sets share a fold. Large sets are tested by seeded samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plm.jobs.compare_embeddings.quality import (
    FEWEST,
    FEWEST_COMPONENTS,
    NEAR,
    Array,
    Flags,
    Floats,
    Ints,
    Quality,
    clusters,
    fingerprint,
)
from plm.model.bundles.classifier import nearest_rows
from plm.scoring.intervals import bootstrap, draw_groups, interval
from plm.scoring.metrics import ALL, Scored
from plm.scoring.novelty import NEIGHBOURS, Space
from plm.scoring.separation import nearest

MOST_COMPARED = 1000
"""Rows of each set whose distances are all compared for the energy distance."""
ALPHA = 0.05
LIMIT = ALPHA / 3
"""Of the p value of each of the three tests."""
_FOLDS = 5
_RESAMPLES = 500
_EXACT_ROWS = 200

_BLOCK = 4096


@dataclass(frozen=True)
class Set:
    """One of the two sets.

    Attributes:
        matrix: (N, D) float32 embeddings.
        quality: Near copies, norms and spread of the rows.
        groups: N names of groups of relatives; each row's own name without any.
    """

    matrix: Array
    quality: Quality
    groups: Sequence[str]


@dataclass(frozen=True)
class Tests:
    """Tests of two sets as wholes.

    Attributes:
        rows: Proteins tested of the reference and of the new set.
        ks, p_values, q_values: (D,) Kolmogorov-Smirnov statistic, p value, and p value adjusted over the components.
        energy: Energy distance as a share of the mean distance between the sets.
        energy_p: p value of the energy distance, by permutation.
        energy_rows: Proteins compared of each set.
        auroc, low, high: Of the classifier, and its 95 % interval (bootstrap, given the fits).
        auroc_p: One-sided p value of telling the sets apart no better than chance.
    """

    rows: tuple[int, int]
    ks: Floats
    p_values: Floats
    q_values: Floats
    energy: float
    energy_p: float
    energy_rows: tuple[int, int]
    auroc: float
    low: float
    high: float
    auroc_p: float

    @property
    def differ(self) -> Flags:
        """(D,) components that differ at a false discovery rate of 5 %."""
        return self.q_values < ALPHA

    @property
    def drifted(self) -> bool:
        """Any of the three tests says so; each is asked at a third of 5 %, so that together they err in 5 %."""
        return min(self.energy_p, float(self.q_values.min()), self.auroc_p) < LIMIT


@dataclass(frozen=True)
class ProteinSet:
    """Each of the N new proteins against the reference.

    Attributes:
        nearest: (N,) row of the nearest reference protein of those compared; -1 for numbers that are not finite.
        distance: (N,) mean distance to the k nearest, in standard deviations a component; NaN likewise.
        limit: Distance beyond which a protein has drifted.
        share: Share of the proteins like the reference that lies beyond it.
        drifted: (N,) whether the distance is beyond the limit.
        near: (N,) nearly equal to a reference protein.
        same: (N,) row of the first reference protein with the very same numbers; -1 without any.
        compared: Number of reference proteins compared with.
        limit_rows: Distances that the limit was chosen from.
        k: Number of neighbours that a distance is the mean over.
        from_validation: The limit is that of a bundle's validation proteins.
    """

    nearest: Ints
    distance: Floats
    limit: float
    share: float
    drifted: Flags
    near: Flags
    same: Ints
    compared: int
    limit_rows: int
    k: int
    from_validation: bool


def place(
    reference: Set, new: Set, share: float, *, half: bool, validation: tuple[int, float, int] | None = None
) -> ProteinSet:
    """Compares each new protein with the reference.

    Args:
        reference: Set whose sample the new proteins are compared with.
        new: Set of which every row is compared.
        share: Share (0-1) of proteins like the reference that may lie beyond the limit.
        half: Numbers of one of the sets were stored as float16, so equal means equal in that precision.
        validation: k, limit and number of distances behind it, of a bundle; None: from the reference's own distances
            (to proteins of other groups that are no near copies).
    """
    sample = reference.quality.sample
    space = Space.of(reference.matrix[sample])
    k = min(validation[0] if validation else NEIGHBOURS, len(sample))
    root = float(np.sqrt(reference.matrix.shape[1]))
    finite = np.flatnonzero(new.quality.finite)
    closest, distance = _empty(len(new.matrix), -1), np.full(len(new.matrix), np.nan)
    near = np.zeros(len(new.matrix), bool)
    for start in range(0, len(finite), _BLOCK):
        part = finite[start : start + _BLOCK]
        places, far = nearest_rows(scaled(space, new.matrix[part]), space.rows, k, cosine=False)
        closest[part], distance[part] = sample[places[:, 0]], far.mean(axis=1) / root
        near[part] = far[:, 0] / root < NEAR
    near &= new.matrix.shape[1] >= FEWEST_COMPONENTS
    if validation:
        limit, limit_rows = validation[1], validation[2]
    else:
        own = units(reference)[1]
        squares = nearest(space.rows, space.rows, k, own, own)[1]
        usual = np.sqrt(squares[(squares < 1e29).all(axis=1)]).mean(axis=1) / root
        limit = float(np.quantile(usual, 1 - share, method="higher")) if len(usual) else float("inf")
        limit_rows = len(usual)
    same = _same(reference, new, half)
    near |= same >= 0
    beyond = np.nan_to_num(distance, nan=-1.0) > limit
    return ProteinSet(
        closest, distance, limit, share, beyond, near, same, len(sample), limit_rows, k, validation is not None
    )


def _empty(count: int, value: int) -> Ints:
    return np.full(count, value, np.int64)


def scaled(space: Space, matrix: NDArray[Any]) -> Array:
    """``(N, D)`` in the space of the distances."""
    return ((matrix.astype(np.float64) - space.mean) / space.scale).astype(np.float32)


def _same(reference: Set, new: Set, half: bool) -> Ints:
    def key(row: Array) -> bytes:
        most = float(np.finfo(np.float16).max)
        return fingerprint(np.clip(row, -most, most).astype(np.float16).astype(np.float32) if half else row)

    seen: dict[bytes, int] = {}
    for row in np.flatnonzero(reference.quality.finite):
        seen.setdefault(key(reference.matrix[row]), int(row))
    twin = _empty(len(new.matrix), -1)
    for row in np.flatnonzero(new.quality.finite):
        twin[row] = seen.get(key(new.matrix[row]), -1)
    return twin


def units(one: Set) -> tuple[Ints, Ints]:
    """The rows of a set that stand for the sampled ones, and to which each sampled row belongs.

    Returns:
        (U,) rows of the matrix, one for each cluster of relatives; (S,) index into them for each sampled row.
    """
    sample = one.quality.sample
    names = np.unique(np.array([one.groups[row] for row in sample], dtype=object).astype(str), return_inverse=True)[1]
    copies = np.unique(one.quality.near[sample], return_inverse=True)[1]
    cluster = clusters(len(sample), [_chain(names), _chain(copies)])
    _, first, index = np.unique(cluster, return_index=True, return_inverse=True)
    return sample[first], index.astype(np.int64)


def _chain(codes: NDArray[Any]) -> tuple[Ints, Ints]:
    """Links each row with the next one of the same code."""
    order = np.argsort(codes, kind="stable")
    equal = codes[order][1:] == codes[order][:-1]
    return order[:-1][equal], order[1:][equal]


def compare_sets(
    reference: Set, new: Set, proteins: ProteinSet, *, permutations: int, seed: int
) -> tuple[Tests | None, str]:
    """Tests two sets as wholes.

    Args:
        reference: Set that the new one is compared with.
        new: Set that was asked about.
        proteins: Each new protein against the reference, from :func:`place`.
        permutations: Number of permutations of the energy distance.
        seed: Seed of the permutations, of the rows they compare and of the folds.

    Returns:
        The tests, or None and why there are none.
    """
    (own, own_units), (asked, _) = units(reference), units(new)
    if min(len(own), len(asked)) < FEWEST:
        what, count = ("new", len(asked)) if len(asked) <= len(own) else ("reference", len(own))
        return None, f"relatives and near copies count once, and that leaves {count} {what} proteins (of {FEWEST})"
    first, second = reference.matrix[own], new.matrix[asked]
    ks, p_values = _components(first, second)
    from scipy.stats import false_discovery_control

    generator = np.random.default_rng(seed)
    points = [side if len(side) <= MOST_COMPARED else side[_drawn(generator, len(side))] for side in (first, second)]
    energy, energy_p = energy_distance(points[0], points[1], permutations, generator)
    # A new protein and the reference protein that it nearly equals must not teach and test each other.
    index = np.full(len(reference.matrix), -1, np.int64)
    index[reference.quality.sample] = own_units
    linked = proteins.near[asked] & (index[proteins.nearest[asked]] >= 0)
    links = (index[proteins.nearest[asked][linked]], len(own) + np.flatnonzero(linked))
    folds = clusters(len(own) + len(asked), [links])
    auroc, low, high, auroc_p = classifier_test(first, second, folds, seed)
    tests = Tests(
        (len(own), len(asked)), ks, p_values, false_discovery_control(p_values), energy, energy_p,
        (len(points[0]), len(points[1])), auroc, low, high, auroc_p,
    )
    return tests, ""


def _drawn(generator: np.random.Generator, count: int) -> Ints:
    return np.sort(generator.choice(count, MOST_COMPARED, replace=False))


def _components(first: Array, second: Array) -> tuple[Floats, Floats]:
    from scipy.stats import ks_2samp

    method = "exact" if max(len(first), len(second)) <= _EXACT_ROWS else "asymp"
    test = ks_2samp(first, second, axis=0, method=method)
    return np.asarray(test.statistic, np.float64), np.asarray(test.pvalue, np.float64)


def energy_distance(
    first: NDArray[Any], second: NDArray[Any], permutations: int, generator: np.random.Generator
) -> tuple[float, float]:
    """Energy distance of two samples as a share of the mean distance between them, and its permutation p value.

    Components are scaled by the two samples together: a scale of one alone would make the other look farther off.

    Args:
        first: (n, D) rows of one sample.
        second: (m, D) rows of the other.
        permutations: Number of permutations.
        generator: Random generator of the permutations.
    """
    from sklearn.metrics import euclidean_distances
    from sklearn.preprocessing import StandardScaler

    n, m = len(first), len(second)
    both = np.concatenate([first, second]).astype(np.float64)
    distances = euclidean_distances(StandardScaler().fit_transform(both))
    np.fill_diagonal(distances, 0)
    sums, total = distances.sum(axis=1), float(distances.sum())
    member = np.zeros((permutations + 1, n + m))
    member[0, n:] = 1
    for row in range(1, permutations + 1):
        member[row, generator.permutation(n + m)[:m]] = 1
    inside = np.einsum("rn,rn->r", member @ distances, member)
    touching = member @ sums
    between = (touching - inside) / (n * m)
    values = 2 * between - inside / m**2 - (total - 2 * touching + inside) / n**2
    if not between[0] > 0:
        return 0.0, 1.0
    as_far = int((values[1:] >= values[0] - 1e-12 * abs(values[0])).sum())
    return float(max(values[0], 0) / (2 * between[0])), (1 + as_far) / (1 + permutations)


def classifier_test(first: Array, second: Array, folds: Ints, seed: int) -> tuple[float, float, float, float]:
    """How well a logistic regression tells two samples apart, by cross-validation.

    Args:
        first: (n, D) rows of one sample.
        second: (m, D) rows of the other.
        folds: (n + m,) clusters; each lies in one fold.
        seed: Seed of the folds and of the bootstrap.

    Returns:
        AUROC on rows that were not fitted to, lower and upper end of its 95 % interval (bootstrap over clusters,
        given the fits), and the p value of no better than chance: that of the rank-sum test with its deviation widened
        since folds share most of what they were fitted to (Nadeau and Bengio 2003, doi:10.1023/A:1024068626366: the
        factor is the root of 1 + k / (k - 1) for k folds).
    """
    from scipy.stats import norm
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    matrix = np.concatenate([first, second]).astype(np.float64)
    truth = np.repeat([0, 1], [len(first), len(second)])
    scores = np.full(len(truth), 0.5)
    for learn, asked in StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=seed).split(matrix, truth, folds):
        model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", tol=1e-3, max_iter=500))
        scores[asked] = model.fit(matrix[learn], truth[learn]).predict_proba(matrix[asked])[:, 1]
    scored = Scored("binary", truth, np.stack([1 - scores, scores], axis=1), (scores >= 0.5).astype(np.int64))
    groups = np.unique(folds, return_inverse=True)[1].astype(np.int64)
    draws = draw_groups(int(groups.max()) + 1, _RESAMPLES, seed)
    resampled = bootstrap(scored, groups, draws)[("auroc", ALL)]
    low, high = interval(resampled)
    auroc, rows = float(roc_auc_score(truth, scores)), (len(first), len(second))
    chance = np.sqrt((1 + _FOLDS / (_FOLDS - 1)) * (sum(rows) + 1) / (12 * rows[0] * rows[1]))
    return auroc, low, high, float(norm.sf((auroc - 0.5) / chance))
