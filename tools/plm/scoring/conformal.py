"""Answers that say how unsure they are: sets of classes, or intervals, that hold the truth at a chosen coverage.

Split-conformal prediction with the score "1 - probability of the true class" (Sadinle, Lei and Wasserman 2019,
doi:10.1080/01621459.2017.1395341; LAC) and, for numbers, the absolute error (Lei and others 2018,
doi:10.1080/01621459.2017.1307116). What it promises holds on average over exchangeable data: new rows that could as
well have been validation rows. A set may be empty: then no class is as likely as true ones usually are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from plm.errors import UserError

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
MOST_ROWS = 2000
_SLACK = 1e-9
"""Validation and new rows are computed apart; equal probabilities may differ in their last digits."""


@dataclass(frozen=True)
class Errors:
    """How wrong a model was on validation rows.

    Attributes:
        scores: (n,) 1 - probability of the true class, or the absolute error of a number.
        classes: (n,) number of the true class; None for numbers.
        outputs: Classes there are (K), or 1.
    """

    scores: Floats
    classes: NDArray[np.int64] | None
    outputs: int

    @classmethod
    def of(cls, values: ArrayLike, truth: ArrayLike, *, number: bool) -> Errors:
        """From answers to validation rows.

        Args:
            values: (n, K) calibrated probabilities, or (n, 1) numbers.
            truth: (n,) class numbers, or numbers.
            number: True for numbers, False for classes.
        """
        answers = np.asarray(values, np.float64)
        if number:
            return cls(np.abs(answers[:, 0] - np.asarray(truth, np.float64)), None, 1)
        classes = np.asarray(truth, np.int64)
        return cls(1 - answers[np.arange(len(answers)), classes], classes, answers.shape[1])

    def to_json(self) -> dict[str, Any]:
        """For a manifest: at most 2,000 rows, evenly spread over the table, so that they stay exchangeable."""
        step = max(1, -(-len(self.scores) // MOST_ROWS))
        kept = {"outputs": self.outputs, "scores": [round(float(score), 8) for score in self.scores[::step]]}
        return kept if self.classes is None else {**kept, "classes": self.classes[::step].tolist()}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Errors:
        """The inverse of :meth:`to_json`.

        Raises:
            UserError: It makes no sense.
        """
        try:
            scores = np.asarray(fields["scores"], np.float64)
            classes = np.asarray(fields["classes"], np.int64) if "classes" in fields else None
            outputs = int(fields["outputs"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"The bundle's validation errors make no sense ({error})", fix="Give the bundle as the suite wrote it"
            ) from error
        if scores.ndim != 1 or (classes is not None and (classes.shape != scores.shape or (classes >= outputs).any())):
            raise UserError(
                "The bundle's validation errors do not fit each other", fix="Give the bundle as the suite wrote it"
            )
        return cls(scores, classes, outputs)


def limit(scores: Floats, coverage: float) -> float:
    """The score that the share ``coverage`` of new rows will not exceed; infinite if there are too few rows to say.

    It is the smallest score with ``ceil((n + 1) coverage)`` of the n rows at or below it.
    """
    rank = math.ceil(round((len(scores) + 1) * coverage, 9))
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else math.inf


def fewest_rows(coverage: float) -> int:
    """Validation rows below which a limit is infinite: every class is in every set."""
    return math.ceil(round(coverage / (1 - coverage), 9))


@dataclass(frozen=True)
class LabelSets:
    """Sets of classes.

    Attributes:
        coverage: Share of rows (0-1) whose set is to hold the true class.
        limits: (K,) highest 1 - probability with which a class is in the set.
        counts: (K,) validation rows of each class.
        by_class: The promise holds for each class, not only on average over all.
        errors: Errors on the validation rows that the limits come from.
    """

    coverage: float
    limits: Floats
    counts: NDArray[np.int64]
    by_class: bool
    errors: Errors

    @classmethod
    def fit(cls, errors: Errors, coverage: float, *, by_class: bool = False) -> LabelSets:
        """Chooses the limits.

        Args:
            errors: Errors on validation rows.
            coverage: Share of rows whose set is to hold the true class, above 0 and below 1.
            by_class: A limit for each class from its own rows; a class of too few rows is in every set.
        """
        assert errors.classes is not None
        counts = np.bincount(errors.classes, minlength=errors.outputs).astype(np.int64)
        if by_class:
            limits = [limit(errors.scores[errors.classes == index], coverage) for index in range(errors.outputs)]
        else:
            limits = [limit(errors.scores, coverage)] * errors.outputs
        return cls(coverage, np.array(limits), counts, by_class, errors)

    def sets(self, probabilities: Floats) -> Flags:
        """``(N, K)``: which classes are in each row's set."""
        inside: Flags = 1 - probabilities <= self.limits + _SLACK
        return inside

    @property
    def unlimited(self) -> list[int]:
        """Classes that are in every set, since too few validation rows say anything of them."""
        return np.flatnonzero(np.isinf(self.limits)).tolist()

    def covered(self) -> list[float]:
        """Of each class the share of its validation rows whose set holds it; NaN without rows."""
        assert self.errors.classes is not None
        hits = self.errors.scores <= self.limits[self.errors.classes] + _SLACK
        return [
            float(hits[self.errors.classes == index].mean()) if count else float("nan")
            for index, count in enumerate(self.counts)
        ]


@dataclass(frozen=True)
class Intervals:
    """Intervals around predicted numbers, all of one width.

    Attributes:
        coverage: Share of rows (0-1) whose interval is to hold the true number.
        radius: Half the width; infinite if there are too few validation rows.
        rows: Validation rows.
    """

    coverage: float
    radius: float
    rows: int

    @classmethod
    def fit(cls, errors: Errors, coverage: float) -> Intervals:
        """Chooses the width from absolute errors."""
        return cls(coverage, limit(errors.scores, coverage), len(errors.scores))

    def ends(self, numbers: Floats) -> tuple[Floats, Floats]:
        """Lower and upper ends, each ``(N,)``."""
        return numbers - self.radius, numbers + self.radius


@dataclass(frozen=True)
class Coverage:
    """What a promised coverage came to on rows that judge.

    Attributes:
        promised: Share of rows (0-1) that were to hold the truth.
        hits: Rows whose set or interval holds the truth.
        rows: Number of rows that were judged.
        size: Mean number of classes in a set, or mean width of an interval; infinite with too few validation rows.
    """

    promised: float
    hits: int
    rows: int
    size: float

    @property
    def share(self) -> float:
        return self.hits / self.rows

    @property
    def interval(self) -> tuple[float, float]:
        """95 % binomial interval of the share."""
        return binomial_interval(self.hits, self.rows)


def coverage_on(parts: Iterable[tuple[Errors, Floats, Floats]], promised: float) -> Coverage:
    """Fits sets or intervals on the validation rows of each part and counts how often they hold its judged rows' truth.

    Args:
        parts: Of each its validation errors, (n, K) probabilities or (n, 1) numbers of its judged rows, and (n,) truth.
        promised: Share of rows (0-1) that are to hold the truth.
    """
    hits = rows = 0
    size = 0.0
    for errors, values, truth in parts:
        if errors.classes is None:
            radius = Intervals.fit(errors, promised).radius
            inside = np.abs(values[:, 0] - truth) <= radius
            size += 2 * radius * len(truth)
        else:
            sets = LabelSets.fit(errors, promised).sets(values)
            inside = sets[np.arange(len(truth)), truth.astype(np.int64)]
            size += float(sets.sum())
        hits += int(inside.sum())
        rows += len(truth)
    return Coverage(promised, hits, rows, size / max(rows, 1))


def binomial_interval(hits: int, count: int, level: float = 0.95) -> tuple[float, float]:
    """Clopper and Pearson's interval of a share, 0-1."""
    from scipy.stats import beta

    tail = (1 - level) / 2
    low = 0.0 if hits == 0 else float(beta.ppf(tail, hits, count - hits + 1))
    high = 1.0 if hits == count else float(beta.ppf(1 - tail, hits + 1, count - hits))
    return low, high
