"""Answers of sequence members to rows that they did not learn from: inner folds within groups choose the settings."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plm.data.task import LIKELIEST, Threshold, largest_multiple
from plm.model.members.fitted import Setting
from plm.model.members.kinds import MemberKind
from plm.scoring import calibration
from plm.scoring.metrics import ALL, LOWER_IS_BETTER, Floats, Ints, Scored, score

INNER_FOLDS, FEWER_FOLDS, _MANY_ANSWERS = 5, 3, 40_000
MANY_CLASSES, _MANY_LEARNED = 100, 2_000_000
"""Beyond so many classes linear members try their settings with rows times classes of no more than this."""


@dataclass(frozen=True)
class LabelledTexts:
    """Rows to learn from or to answer.

    Attributes:
        texts: A window of one width around each site (``-`` beyond the protein's ends), or the whole sequence.
        target: (N,) class indices or numbers.
        groups: (N,) group of each row.
        aligned: True if the texts have one length and equal places correspond: one-hot makes sense.
    """

    texts: list[str]
    target: NDArray[np.float64] | Ints
    groups: NDArray[np.str_]
    aligned: bool

    def rows(self, chosen: NDArray[np.int64]) -> LabelledTexts:
        """The same for some of the rows."""
        return LabelledTexts(
            [self.texts[row] for row in chosen], self.target[chosen], self.groups[chosen], self.aligned
        )


def inner_folds(
    target: NDArray[Any], groups: NDArray[Any], stratify: bool, seed: int, most: int = INNER_FOLDS
) -> list[tuple[Ints, Ints]]:
    """Up to ``most`` folds that never part a group, stratified by class if asked; none for a single group."""
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    count = min(most, len(np.unique(groups)))
    if stratify and len(target):
        stratify = int(np.bincount(target).max()) > 1
        count = min(count, int(np.bincount(target).max())) if stratify else count
    if count < 2:
        return []
    kind = StratifiedGroupKFold if stratify else GroupKFold
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class with fewer rows than folds is said by the scores
        return list(kind(count, shuffle=True, random_state=seed).split(np.zeros(len(target)), target, groups))


def folds_for(rows: LabelledTexts, classes: int, seed: int) -> list[tuple[Ints, Ints]]:
    """The inner folds of members: fewer where rows and classes are many."""
    many = len(rows.texts) * classes > _MANY_ANSWERS
    return inner_folds(rows.target, rows.groups, bool(classes), seed, FEWER_FOLDS if many else INNER_FOLDS)


@dataclass(frozen=True)
class Chosen:
    """What inner cross-validation chose for one kind of member.

    Attributes:
        setting: The best setting.
        score: Its main metric on the pooled answers; NaN if there could be no folds.
        threshold: What calls are made by, from these answers.
        out_of_fold: (N, K) or (N,) these answers, each by a member that did not learn from the row's group; None
            without folds.
    """

    setting: Setting
    score: float
    threshold: Threshold
    out_of_fold: Floats | None


def choose_setting(
    kind: MemberKind, seen: Any, rows: LabelledTexts, folds: list[tuple[Ints, Ints]], classes: tuple[str, ...],
    metric: str,
) -> Chosen:
    """The best setting by pooled out-of-fold answers."""
    default = kind.settings[len(kind.settings) // 2]
    if not folds:
        return Chosen(default, float("nan"), 0.5, None)
    shape = (len(rows.texts), len(classes)) if classes else (len(rows.texts),)
    pooled = [np.zeros(shape) for _ in kind.settings]
    for learn, judge in folds:
        learn = _fewer(learn, len(classes)) if any("C" in setting for setting in kind.settings) else learn
        answers = kind.answers(seen[learn], rows.target[learn], seen[judge], kind.settings, len(classes))
        for together, answer in zip(pooled, answers, strict=True):
            together[judge] = answer
    # Thresholds of several classes are found for the chosen setting alone: a setting that needs them least is better.
    thresholds: list[Threshold] = [LIKELIEST] * len(pooled)
    if len(classes) == 2:
        thresholds = [own_threshold(answer, rows.target, classes, metric) for answer in pooled]
    task = ("binary" if len(classes) == 2 else "multiclass") if classes else "number"
    quality = []
    for answer, threshold in zip(pooled, thresholds, strict=True):
        scored = Scored(task, rows.target, answer, calls(answer, classes, threshold), classes)
        quality.append(score(scored)[metric, ALL])
    signed = np.array(quality) * (-1 if metric in LOWER_IS_BETTER else 1)
    if not np.isfinite(signed).any():
        return Chosen(default, float("nan"), 0.5, pooled[len(kind.settings) // 2])
    best = int(np.nanargmax(signed))
    threshold = own_threshold(pooled[best], rows.target, classes, metric)
    return Chosen(kind.settings[best], float(quality[best]), threshold, pooled[best])


def _fewer(learn: Ints, classes: int) -> Ints:
    """The rows that a setting is tried with: a sample where there are hundreds of classes."""
    most = _MANY_LEARNED // max(classes, 1)
    if classes <= MANY_CLASSES or len(learn) <= most:
        return learn
    return np.sort(np.random.default_rng(len(learn)).permutation(learn)[:most])


def own_threshold(answer: Floats, target: NDArray[Any], classes: tuple[str, ...], metric: str) -> Threshold:
    """The threshold on the second of two classes, or those of several; 0.5 for numbers."""
    if not classes:
        return LIKELIEST
    return calibration.threshold_for(answer, target, positive=1 if len(classes) == 2 else None, metric=metric)


def calls(scores: Floats, classes: tuple[str, ...], threshold: Threshold) -> Ints:
    """(M,) class indices; zeros for numbers."""
    if not classes:
        return np.zeros(len(scores), dtype=np.int64)
    if isinstance(threshold, tuple):
        return largest_multiple(scores, threshold)
    if len(classes) == 2:
        return (scores[:, 1] >= threshold).astype(np.int64)
    return scores.argmax(axis=1).astype(np.int64)
