"""What a predictor must beat: the constant answer, and every sequence member on its own.

Every baseline is fitted on training rows only. Its setting is chosen by cross-validation within groups on those rows,
and that inner score, not a test score, says which baseline is the best. With folds, each fold's rows get the answer of
baselines fitted on the other folds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plm.errors import UserError
from plm.model.members.features import VIEWS
from plm.model.members.fitted import FittedMember, Setting
from plm.model.members.kinds import MemberKind, kinds_for
from plm.scoring.cross_fitting import LabelledTexts, calls, choose_setting, folds_for
from plm.scoring.metrics import LOWER_IS_BETTER, Floats, Ints
from plm.scoring.quiet_threads import one_thread

INNER_ROWS = 4000
PREFIX = "baseline: "


@dataclass(frozen=True)
class Answer:
    """What one baseline said about the evaluated rows.

    Attributes:
        name: Name of the baseline in tables and figures.
        about: Sentence on how the baseline works.
        setting: The setting that inner cross-validation chose.
        inner_score: Its main metric in the inner cross-validation; NaN if there could be none.
        scores: (M, K) probabilities or (M,) numbers.
        calls: (M,) class indices (threshold of a binary task chosen in the inner cross-validation).
    """

    name: str
    about: str
    setting: str
    inner_score: float
    scores: Floats
    calls: Ints


class ConstantMember(FittedMember):
    """The same answer for every row."""

    kind = "constant"

    def __init__(self, classes: int, value: NDArray[np.float64]) -> None:
        super().__init__(Constant.name, Constant.view, classes, {})
        self.value = value

    def answer(self, seen: Any, similarity: NDArray[np.float32] | None = None) -> Floats:
        return np.tile(self.value, (len(seen), 1)) if self.classes else np.full(len(seen), self.value[0])

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {"value": self.value}


class Constant:
    """Class frequencies of the training rows, or their mean."""

    name = "majority"
    view = "composition"
    about = "answers the same for every row: the class frequencies (or the mean) of the training rows"
    settings: tuple[Setting, ...] = ({},)

    def fit(self, seen: Any, target: NDArray[Any], setting: Setting, classes: int) -> ConstantMember:
        value = np.bincount(target, minlength=classes) / len(target) if classes else np.array([np.mean(target)])
        return ConstantMember(classes, value)

    def answers(
        self, seen: Any, target: NDArray[Any], new: Any, settings: Sequence[Setting], classes: int
    ) -> list[Floats]:
        return [self.fit(seen, target, {}, classes).answer(new)]


def baselines_for(rows: LabelledTexts, numbers: bool, compare: bool = True) -> list[MemberKind]:
    """The baselines that make sense for these rows; ``compare``: also those that compare with training rows."""
    return [Constant(), *kinds_for(rows.texts, aligned=rows.aligned, numbers=numbers, compare=compare)]


def answer_all(
    train: LabelledTexts, new: LabelledTexts, classes: tuple[str, ...], metric: str, *, seed: int = 42,
    most_rows: int = 20_000, compare: bool = True,
) -> list[Answer]:
    """Fits every baseline on ``train`` and answers ``new``.

    Args:
        train: Training rows.
        new: Rows to answer; their targets are not looked at.
        classes: Class names; empty for numbers.
        metric: The main metric, by which settings are chosen.
        seed: Seed of the inner folds and of the sample below.
        most_rows: Training rows beyond this are a random sample.
        compare: Also baselines that compare with training rows; for residues of proteins that is too much work.

    Raises:
        UserError: No training rows, or training rows of a single class.
    """
    if not len(train.texts):
        raise UserError(
            "The training table has no labelled training rows for the baselines",
            fix="Give the dataset with its training rows (split train, or folds)",
        )
    if classes and len(np.unique(train.target)) < 2:
        raise UserError(
            "The training rows of the training table are of one class only", fix="Give rows of at least two classes"
        )
    generator = np.random.default_rng(seed)
    if len(train.texts) > most_rows:
        train = train.rows(np.sort(generator.permutation(len(train.texts))[:most_rows]))
    inner = train
    if len(train.texts) > INNER_ROWS:
        inner = train.rows(np.sort(generator.permutation(len(train.texts))[:INNER_ROWS]))
    folds = folds_for(inner, len(classes), seed)
    seen: dict[str, tuple[Any, Any, Any]] = {}
    answers: list[Answer] = []
    for baseline in baselines_for(train, not classes, compare):
        if baseline.view not in seen:
            see = VIEWS[baseline.view]
            of_inner = see(inner.texts)
            seen[baseline.view] = (of_inner, of_inner if inner is train else see(train.texts), see(new.texts))
        of_inner, whole, asked = seen[baseline.view]
        with one_thread():
            best = choose_setting(baseline, of_inner, inner, folds, classes, metric)
            [scores] = baseline.answers(whole, train.target, asked, [best.setting], len(classes))
        told = ", ".join(f"{key}={_told(value)}" for key, value in best.setting.items())
        called = calls(scores, classes, best.threshold)
        answers.append(Answer(PREFIX + baseline.name, baseline.about, told, best.score, scores, called))
    return answers


def _told(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}"


def merge_folds(parts: Sequence[tuple[Ints, list[Answer]]], rows: int, classes: int) -> list[Answer]:
    """Puts the answers of the folds together; the inner score is the mean over folds, weighted by their rows."""
    merged: list[Answer] = []
    for number, first in enumerate(parts[0][1]):
        scores = np.zeros((rows, classes) if classes else rows)
        calls = np.zeros(rows, dtype=np.int64)
        for places, answers in parts:
            scores[places], calls[places] = answers[number].scores, answers[number].calls
        settings = Counter(answers[number].setting for _, answers in parts)
        setting, times = settings.most_common(1)[0]
        told = setting if times == len(parts) else f"{setting} ({times} of {len(parts)} folds)"
        inner = np.average(
            [answers[number].inner_score for _, answers in parts], weights=[len(places) for places, _ in parts]
        )
        merged.append(Answer(first.name, first.about, told if setting else "", float(inner), scores, calls))
    return merged


def best_of(answers: Sequence[Answer], metric: str) -> Answer:
    """The best baseline by its inner score, never by the evaluated rows; composition where no inner score exists."""
    signed = np.array([answer.inner_score for answer in answers]) * (-1 if metric in LOWER_IS_BETTER else 1)
    if not np.isfinite(signed).any():
        return answers[1]
    return answers[int(np.nanargmax(signed))]
