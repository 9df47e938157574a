"""How far labels separate in a space of proteins: scores with intervals, so that nobody judges a picture by eye alone.

Every score is computed in the embedding space and in each projection of it, and stands beside what random labels give:
the labels are shuffled among the proteins (whole groups of relatives at a time, if they are given) and the score is
computed again. Intervals are bootstrap intervals over proteins or groups, given the neighbours that were found.

* Neighbour agreement: share of a protein's k nearest labelled proteins that carry its label. Members of its own group
  do not count as neighbours.
* Silhouette (Rousseeuw 1987, doi:10.1016/0377-0427(87)90125-7): -1 to 1; how much nearer a protein lies to its own
  class than to the next one. It asks for compact classes, agreement only for local ones.
* Neighbour correlation, for labels that are numbers: Spearman correlation of a protein's number with the mean of its
  neighbours'.
* Trustworthiness of a projection (Venna and Kaski 2001, doi:10.1007/3-540-44668-0_68): 1 if the neighbours in the
  picture are neighbours in the embedding space too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from plm.errors import UserError
from plm.scoring.intervals import FEWEST_GROUPS, draw_groups, interval

Array = NDArray[np.float32]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
FULL = "embedding"
MOST_SCORED = 5_000
"""Proteins whose neighbours are judged; the neighbours are searched among all."""
MOST_COMPARED = 2_000
"""Proteins of scores that compare each with each (silhouette, trustworthiness)."""
MOST_CLASS_ROWS = 25
MOST_NUMERIC_CLASSES = 12
"""Labels that are all numbers are classes up to so many different ones, numbers beyond."""
_SHUFFLES_SILHOUETTE = 199
_SHUFFLES_NUMBER = 499
_ELEMENTS = 8_000_000  # of a block of distances
_MISSING = frozenset({"", "na", "n/a", "nan"})


@dataclass(frozen=True)
class SpaceLabels:
    """The labels of N proteins.

    Attributes:
        texts: N labels; empty where there is none.
        kind: ``class``, ``number``, or ``none`` without any label.
        classes: Names, the most frequent first.
        codes: (N,) index into classes; -1 where there is none. Numbers have no codes.
        numbers: (N,) float64, NaN where there is none. Classes have no numbers.
    """

    texts: tuple[str, ...]
    kind: Literal["class", "number", "none"]
    classes: tuple[str, ...]
    codes: Ints
    numbers: Floats

    @property
    def known(self) -> NDArray[np.bool_]:
        """(N,) whether there is a label."""
        return np.array([bool(text) for text in self.texts], dtype=bool)

    def part(self, rows: slice) -> SpaceLabels:
        """The same labels for a run of the rows."""
        return SpaceLabels(self.texts[rows], self.kind, self.classes, self.codes[rows], self.numbers[rows])


def read_labels(texts: Sequence[str], kind: str, where: str) -> SpaceLabels:
    """Labels as classes or as numbers.

    Args:
        texts: One a protein; empty, NA and NaN stand for none.
        kind: ``class``, ``number`` or ``auto``: numbers if all are and there are more than twelve different ones.
        where: Names the labels in messages.

    Raises:
        UserError: A label is no number where numbers are wanted.
    """
    kept = tuple("" if text.strip().lower() in _MISSING else text.strip() for text in texts)
    given = [text for text in kept if text]
    none = np.full(len(kept), np.nan)
    absent = np.full(len(kept), -1, dtype=np.int64)
    if not given:
        return SpaceLabels(kept, "none", (), absent, none)
    values = [_number(text) for text in kept]
    wrong = next((text for text, value in zip(kept, values, strict=True) if text and not math.isfinite(value)), None)
    if kind == "number" and wrong is not None:
        raise UserError(f"The label {wrong!r} is no number", where=where, fix="Choose classes, or another column")
    if kind == "number" or (kind == "auto" and wrong is None and len(set(values) - {math.nan}) > MOST_NUMERIC_CLASSES
                            and len({value for value in values if value == value}) > MOST_NUMERIC_CLASSES):
        return SpaceLabels(kept, "number", (), absent, np.array(values))
    counts: dict[str, int] = {}
    for text in given:
        counts[text] = counts.get(text, 0) + 1
    classes = tuple(sorted(counts, key=lambda name: (-counts[name], name)))
    place = {name: index for index, name in enumerate(classes)}
    return SpaceLabels(kept, "class", classes, np.array([place.get(text, -1) for text in kept], dtype=np.int64), none)


def _number(text: str) -> float:
    try:
        return float(text) if text else math.nan
    except ValueError:
        return math.nan


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What stands beside a score.

    Attributes:
        low, high: Its 95 % interval; NaN where undefined.
        expected: Its value under chance, such as random labels; NaN where that means nothing.
        p_value: Share of chance that scores as high (with one added); NaN where not asked.
        note: What to know about it.
    """

    low: float = math.nan
    high: float = math.nan
    expected: float = math.nan
    p_value: float = math.nan
    note: str = ""


@dataclass(frozen=True)
class SeparationScore(Bounds):
    """One row of the table of scores.

    Attributes:
        space: ``embedding``, ``pca``, ``tsne`` or ``umap``.
        set: ``reference`` or ``query``.
        measure: Name of the score, e.g. ``neighbour_agreement``.
        part: Class or component that it is about; ``all`` for the whole.
        value: The score; NaN where undefined.
        rows: Number of proteins judged.
    """

    space: str
    set: str
    measure: str
    part: str
    value: float
    rows: int = 0


@dataclass(frozen=True)
class SeparationJudge:
    """Scores one space after the other under the same draws, so that they can be compared.

    Attributes:
        labels: Labels of the N references.
        groups: (N,) group of relatives of each reference.
        neighbours: Number of nearest neighbours compared, k.
        resamples: Number of bootstrap resamples, and of shuffles of the labels.
        seed: Seed of all resamples, shuffles and samples.
        cosine: Whether the embedding space is compared by cosine distance (its rows have unit length).
    """

    labels: SpaceLabels
    groups: Ints
    neighbours: int
    resamples: int
    seed: int
    cosine: bool = False
    _scored: Ints = field(init=False, repr=False)
    _known: Ints = field(init=False, repr=False)
    _compared: Ints = field(init=False, repr=False)
    _sampled: Ints = field(init=False, repr=False)

    def __post_init__(self) -> None:
        known = np.flatnonzero(self.labels.known)
        several = known
        if self.labels.kind == "class":
            sizes = np.bincount(self.labels.codes[known], minlength=len(self.labels.classes))
            several = known[sizes[self.labels.codes[known]] > 1]
        set_ = object.__setattr__
        set_(self, "_known", known)
        set_(self, "_scored", self._draw(known, MOST_SCORED))
        set_(self, "_compared", self._draw(several, MOST_COMPARED))
        set_(self, "_sampled", self._draw(np.arange(len(self.labels.texts)), MOST_COMPARED))

    def _draw(self, rows: Ints, most: int) -> Ints:
        if len(rows) <= most:
            return rows
        return np.sort(np.random.default_rng(self.seed).choice(rows, most, replace=False))

    @property
    def why_not(self) -> str:
        """Why labels cannot be judged at all, or an empty string."""
        if self.labels.kind == "none":
            return "there are no labels"
        if len(self._known) < 3:
            return f"only {len(self._known)} of the proteins {'have' if len(self._known) != 1 else 'has'} a label"
        different = len({self.labels.texts[row] for row in self._known})
        if different == 1:
            return f"all {len(self._known)} labels are the same ({self.labels.texts[self._known[0]]})"
        groups = self.groups[self._known]
        if len(np.unique(groups)) < 3:
            return "the labelled proteins belong to fewer than three groups"
        if self.labels.kind == "class":
            pairs = set(zip(self.labels.codes[self._known].tolist(), groups.tolist(), strict=True))
            if len(pairs) == different:
                if different == len(self._known):
                    return "no two proteins carry the same label"
                return "each label is that of a single group, so that nothing tells labels from relationship"
        return ""

    @property
    def _most_neighbours(self) -> int:
        """Neighbours that every labelled protein has outside of its own group, at most those wanted."""
        _, sizes = np.unique(self.groups[self._known], return_counts=True)
        return min(self.neighbours, len(self._known) - int(sizes.max()))

    def space(self, name: str, points: Array) -> list[SeparationScore]:
        """Scores of the references in one space.

        Args:
            name: Space of the points: ``embedding`` or a method of projection.
            points: (N, D) float32.
        """
        if self.why_not:
            return []
        places = self._known[
            nearest(points[self._scored], points[self._known], self._most_neighbours, self.groups[self._scored],
                    self.groups[self._known])[0]
        ]
        if self.labels.kind == "number":
            note = f"{places.shape[1]} nearest neighbours{self._among(self._scored, len(self._known))}"
            own, groups = self.labels.numbers[self._scored], self.groups[self._scored]
            return [self._correlated(name, "reference", own, places, groups, note, self._scored)]
        scores = self._agreement(name, places)
        if len(self._compared) > 2 and len(np.unique(self.labels.codes[self._compared])) > 1:
            scores.append(self._silhouette(name, points))
        return scores

    def queries(
        self, name: str, references: Array, points: Array, labels: SpaceLabels, groups: Ints
    ) -> list[SeparationScore]:
        """Whether labelled queries lie among references of their label, or of numbers like theirs.

        Args:
            name: Space of the points: ``embedding`` or a method of projection.
            references: (N, D) float32.
            points: (Q, D) float32.
            labels: Labels of the queries, in the classes of the references.
            groups: (Q,) groups of the queries, numbered as those of the references.
        """
        asked = np.flatnonzero(labels.known)
        if self.why_not or not len(asked):
            return []
        own, count = groups[asked], self._most_neighbours
        places = self._known[nearest(points[asked], references[self._known], count, own, self.groups[self._known])[0]]
        note = f"{count} nearest references"
        if self.labels.kind == "number":
            return [self._correlated(name, "query", labels.numbers[asked], places, own, note)]
        codes = labels.codes[asked][:, None]
        share = (self.labels.codes[places] == codes).mean(axis=1)
        drawn = self._shuffles(self.labels.codes, self.resamples)
        shuffled = [float((shuffle[places] == codes).mean()) for shuffle in drawn]
        low, high = _bootstrap(share, own, self.resamples, self.seed)
        value = float(share.mean())
        return [
            SeparationScore(
                name, "query", "neighbour_agreement", "all", value, low=low, high=high, expected=_mean(shuffled),
                p_value=_p_value(value, shuffled), rows=len(asked), note=note,
            )
        ]

    def trust(self, name: str, points: Array, full: Array) -> SeparationScore:
        """Trustworthiness of a projection.

        Args:
            name: Method of projection: ``pca``, ``tsne`` or ``umap``.
            points: (N, 2) float32.
            full: (N, D) float32.
        """
        rows = self._sampled
        count = max(1, min(self.neighbours, (len(rows) - 1) // 2))
        each = trustworthiness(full[rows], points[rows], count)
        low, high = _bootstrap(each, self.groups[rows], self.resamples, self.seed)
        note = f"{count} nearest neighbours{self._among(rows, len(self.labels.texts))}"
        return SeparationScore(
            name, "reference", "trustworthiness", "all", float(each.mean()), low=low, high=high, rows=len(rows),
            note=note,
        )

    def _agreement(self, name: str, places: Ints) -> list[SeparationScore]:
        codes, classes = self.labels.codes, self.labels.classes
        own = codes[self._scored]
        share = (codes[places] == own[:, None]).mean(axis=1)
        sizes = np.bincount(own, minlength=len(classes))
        shuffled, by_class, hits = [], np.zeros(len(classes)), np.zeros(len(classes))
        for drawn in self._shuffles(codes, self.resamples):
            mine = drawn[self._scored]
            agrees = (drawn[places] == mine[:, None]).mean(axis=1)
            shuffled.append(float(agrees.mean()))
            by_class += np.bincount(mine, weights=agrees, minlength=len(classes))
            hits += np.bincount(mine, minlength=len(classes))
        low, high = _bootstrap(share, self.groups[self._scored], self.resamples, self.seed)
        note = f"{places.shape[1]} nearest neighbours{self._among(self._scored, len(self._known))}"
        scores = [
            SeparationScore(
                name, "reference", "neighbour_agreement", "all", float(share.mean()), low=low, high=high,
                expected=_mean(shuffled), p_value=_p_value(float(share.mean()), shuffled), rows=len(own), note=note,
            )
        ]
        if name != FULL or len(classes) < 2:
            return scores
        for index in range(min(len(classes), MOST_CLASS_ROWS)):
            if not sizes[index]:
                continue
            chosen = own == index
            ends = _bootstrap(share[chosen], self.groups[self._scored][chosen], self.resamples, self.seed)
            expected = by_class[index] / hits[index] if hits[index] else math.nan
            scores.append(
                SeparationScore(
                    name, "reference", "neighbour_agreement", classes[index], float(share[chosen].mean()), low=ends[0],
                    high=ends[1], expected=float(expected), rows=int(sizes[index]),
                )
            )
        return scores

    def _silhouette(self, name: str, points: Array) -> SeparationScore:
        from sklearn.metrics import euclidean_distances

        rows = self._compared
        distances = euclidean_distances(points[rows], squared=True)
        np.fill_diagonal(distances, 0)
        if name == FULL and self.cosine:
            distances /= 2
        else:
            np.sqrt(distances, out=distances)
        distances = distances.astype(np.float32)
        each = silhouettes(distances, self.labels.codes[rows])
        value = float(each.mean())
        low, high = _bootstrap(each, self.groups[rows], self.resamples, self.seed)
        # Each shuffle multiplies the distances with the classes; many classes make that dear.
        affordable = int(2e11 / (len(rows) ** 2 * len(self.labels.classes)))
        count = max(19, min(_SHUFFLES_SILHOUETTE, self.resamples, affordable))
        shuffled = [
            float(silhouettes(distances, codes[rows]).mean()) for codes in self._shuffles(self.labels.codes, count)
        ]
        return SeparationScore(
            name, "reference", "silhouette", "all", value, low=low, high=high, expected=_mean(shuffled),
            p_value=_p_value(value, shuffled), rows=len(rows),
            note=f"classes of two or more{self._among(rows, len(self._known))}",
        )

    def _correlated(
        self, name: str, set: str, own: Floats, places: Ints, groups: Ints, note: str, asked: Ints | None = None
    ) -> SeparationScore:
        """Correlation of numbers with the mean of their neighbours'.

        Args:
            name: Space of the points: ``embedding`` or a method of projection.
            set: ``reference`` or ``query``.
            own: (n,) numbers.
            places: (n, k) references that are their neighbours.
            groups: (n,) groups.
            note: Note of the table's row.
            asked: (n,) which references the numbers belong to; None for queries, whose numbers stay when the
                references' are shuffled.
        """
        from plm.scoring.intervals import bootstrap
        from plm.scoring.metrics import ALL, Scored

        around = self.labels.numbers[places].mean(axis=1)
        value = _spearman(own, around)
        index = np.unique(groups, return_inverse=True)[1]
        low = high = math.nan
        if index.max() + 1 >= FEWEST_GROUPS and value == value:
            scored = Scored("number", own, around, np.zeros(len(own), dtype=np.int64))
            draws = draw_groups(int(index.max()) + 1, min(self.resamples, _SHUFFLES_NUMBER + 1), self.seed)
            low, high = interval(bootstrap(scored, index, draws)[("spearman", ALL)])
        shuffled = []
        for drawn in self._shuffles(self.labels.numbers, min(self.resamples, _SHUFFLES_NUMBER)):
            shuffled.append(_spearman(own if asked is None else drawn[asked], drawn[places].mean(axis=1)))
        return SeparationScore(
            name, set, "neighbour_correlation", "all", value, low=low, high=high, expected=_mean(shuffled),
            p_value=_p_value(value, shuffled), rows=len(own), note=note,
        )

    def _shuffles(self, values: NDArray[Any], count: int) -> Iterator[NDArray[Any]]:
        """The labels of all proteins, shuffled among the labelled ones, whole groups at a time.

        A group gets the labels of another one, in an order by chance and over again if it has more members, so that
        members of a group stay as much alike as they are.
        """
        generator = np.random.default_rng(self.seed + 1)
        known, drawn = self._known, values.copy()
        index = np.unique(self.groups[known], return_inverse=True)[1]
        sizes = np.bincount(index)
        own, starts = values[known], np.cumsum(sizes) - sizes
        by_group = np.argsort(index, kind="stable")
        alike = (own[by_group[starts]][index] == own).all()
        rank = np.empty(len(own), dtype=np.int64)
        rank[by_group] = np.arange(len(own)) - np.repeat(starts, sizes)
        for _ in range(count):
            other = generator.permutation(len(sizes))[index]
            if alike:
                drawn[known] = own[by_group[starts[other]]]
            else:
                order = by_group[np.argsort(generator.random(len(own))[by_group] + index[by_group], kind="stable")]
                drawn[known] = own[order[starts[other] + rank % sizes[other]]]
            yield drawn

    @staticmethod
    def _among(rows: Ints, all_rows: int) -> str:
        return "" if len(rows) == all_rows else f"; random sample of {len(rows)} of {all_rows} proteins"


def nearest(points: Array, others: Array, count: int, groups: Ints, other_groups: Ints) -> tuple[Ints, Floats]:
    """The nearest of ``others`` for each point, none of them of its own group.

    Where all groups but its own hold fewer than ``count``, the last ones found repeat nothing: the nearest of its own
    group fill up.

    Args:
        points: (P, D) float32.
        others: (N, D) float32.
        count: Neighbours wanted, at most N.
        groups: (P,) groups of the points. A point that is one of ``others`` shares its group, so it never finds itself.
        other_groups: (N,).

    Returns:
        (P, count) indices into ``others``, nearest first (equal ones in the order of the file), and squared distances.
    """
    from sklearn.metrics import euclidean_distances

    places = np.empty((len(points), count), dtype=np.int64)
    squares = np.empty((len(points), count))
    block = max(1, _ELEMENTS // max(len(others), 1))
    for start in range(0, len(points), block):
        part = slice(start, start + block)
        distances = euclidean_distances(points[part], others, squared=True)
        own = groups[part][:, None] == other_groups[None, :]
        distances[own] += np.float32(1e30)  # behind all others, in their order
        chosen = np.argpartition(distances, count - 1, axis=1)[:, :count]
        chosen.sort(axis=1)
        far = np.take_along_axis(distances, chosen, axis=1)
        order = np.argsort(far, axis=1, kind="stable")
        places[part] = np.take_along_axis(chosen, order, axis=1)
        squares[part] = np.take_along_axis(far, order, axis=1)
    return places, squares


def silhouettes(distances: Array, codes: Ints) -> Floats:
    """Silhouette of each row; 0 for a class of one.

    Args:
        distances: (n, n) float32, 0 on the diagonal.
        codes: (n,) class of each row.
    """
    _, index = np.unique(codes, return_inverse=True)
    rows = np.arange(len(codes))
    hot = np.zeros((len(codes), int(index.max()) + 1), dtype=np.float32)
    hot[rows, index] = 1
    sums, sizes = (distances @ hot).astype(np.float64), hot.sum(axis=0, dtype=np.float64)
    own = sizes[index]
    inside = sums[rows, index] / np.maximum(own - 1, 1)
    means = sums / sizes
    means[rows, index] = np.inf
    outside = means.min(axis=1)
    larger = np.maximum(inside, outside)
    value = np.where(larger > 0, (outside - inside) / np.where(larger > 0, larger, 1), 0.0)
    return np.where(own > 1, value, 0.0)


def trustworthiness(full: Array, points: Array, count: int) -> Floats:
    """Trustworthiness of each row; the mean equals scikit-learn's.

    Args:
        full: (n, D) the space that is true.
        points: (n, 2) its projection.
        count: Neighbours, below n / 2.
    """
    from sklearn.metrics import euclidean_distances

    rows = len(full)
    true, shown = euclidean_distances(full, squared=True), euclidean_distances(points, squared=True)
    np.fill_diagonal(true, -1)
    np.fill_diagonal(shown, np.inf)
    order = np.argsort(true, axis=1, kind="stable")  # the row itself comes first, at rank 0
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(rows)[None, :], axis=1)
    neighbours = np.argsort(shown, axis=1, kind="stable")[:, :count]
    excess = np.maximum(np.take_along_axis(rank, neighbours, axis=1) - count, 0).sum(axis=1)
    return 1 - excess * (2.0 / (count * (2.0 * rows - 3.0 * count - 1.0)))


def novelty(references: Array, queries: Array, groups: Ints, seed: int) -> tuple[Ints, Floats, NDArray[np.bool_]]:
    """The nearest reference of each query, how far it lies, and whether it lies outside of what the references span.

    Outside means farther from every reference than 95 % of the references lie from theirs; a transform draws such a
    query among the references all the same.

    Args:
        references: (N, D) float32.
        queries: (Q, D) float32.
        groups: (N,) groups of relatives; a reference's nearest is one of another group.
        seed: Draws the references that are asked, at most 5,000.

    Returns:
        (Q,) index of the reference, (Q,) distance, (Q,) outside.
    """
    own = np.full(len(queries), -1, dtype=np.int64)
    places, squares = nearest(queries, references, 1, own, groups)
    rows = np.arange(len(references))
    if len(rows) > MOST_SCORED:
        rows = np.sort(np.random.default_rng(seed).choice(rows, MOST_SCORED, replace=False))
    usual = nearest(references[rows], references, 1, groups[rows], groups)[1][:, 0]
    limit = np.quantile(np.sqrt(usual[usual < 1e29]), 0.95) if (usual < 1e29).any() else np.inf
    far = np.sqrt(squares[:, 0])
    # Rounding: equal rows are not exactly 0 apart.
    return places[:, 0], far, far > limit * (1 + 1e-4) + 1e-6


def _bootstrap(values: Floats, groups: Ints, resamples: int, seed: int) -> tuple[float, float]:
    """95 % interval of a mean, whole groups drawn with replacement; NaN with too few groups."""
    index = np.unique(groups, return_inverse=True)[1]
    count = int(index.max()) + 1 if len(index) else 0
    if count < FEWEST_GROUPS:
        return math.nan, math.nan
    sums = np.bincount(index, weights=values)
    sizes = np.bincount(index).astype(np.float64)
    draws = draw_groups(count, resamples, seed).astype(np.float64)
    return interval((draws @ sums) / (draws @ sizes))


def _p_value(value: float, shuffled: Sequence[float]) -> float:
    if value != value or not len(shuffled):
        return math.nan
    # Rounding must not make equal scores different.
    as_high = sum(other >= value - 1e-12 for other in shuffled)
    return (1 + as_high) / (1 + len(shuffled))


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else math.nan


def _spearman(first: Floats, second: Floats) -> float:
    from scipy.stats import rankdata

    a, b = rankdata(first), rankdata(second)
    a, b = a - a.mean(), b - b.mean()
    spread = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / spread if spread > 0 else math.nan
