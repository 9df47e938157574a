"""From labelled embeddings to a tested classifier: parts, heads, calibration, choice, predictions, bundle.

Training rows fit the heads and their scaling; validation rows choose epoch, temperature, threshold and head; test rows
are answered once. With folds every fold has its own heads, whose answers to its rows are the out-of-fold predictions,
and the head of the bundle is fitted once more on all rows with what the folds have settled.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from plm.data.task import LIKELIEST, Task, Threshold
from plm.errors import UserError
from plm.jobs.classifier.material import Material
from plm.jobs.classifier.search import Searched, TrialJournal
from plm.model.bundles.classifier import HeadKind
from plm.scoring import calibration, metrics
from plm.scoring.metrics import ALL
from plm.scoring.quiet_threads import one_thread
from plm.training import classifiers, few_rows
from plm.training.classifiers import Fitted, HeadRows, NetworkSettings, ValidationRows
from plm.training.folds import TrainingPart

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class ClassifierSettings:
    """What decides the result besides the data.

    Attributes:
        head: ``auto`` or a kind of head.
        network: Sizes and training of the feed-forward network.
        standardise: Scale embeddings to mean 0 and deviation 1 of the training rows.
        metric: The main metric; ``auto``: AUROC, macro F1 or Spearman.
        balance: ``none``, ``weights`` or ``sampling``.
        seed: Random seed.
        resamples: Number of bootstrap resamples.
        trials: Of the search for the network's settings; 0: none.
        threads: Processor threads.
    """

    head: str = "auto"
    network: NetworkSettings = field(default_factory=NetworkSettings)
    standardise: bool = True
    metric: str = "auto"
    balance: str = "none"
    seed: int = 42
    resamples: int = 1000
    trials: int = 0
    threads: int = 1


@dataclass
class FittedHead:
    """One head of one part, calibrated.

    Attributes:
        kind: Kind of head.
        fitted: Head with its settings and history.
        task: Task with mean and standard deviation of the training numbers.
        temperature: Number by which logits are divided, from validation rows.
        threshold: What calls are made by, from validation rows.
        valid: (n, K) logits or (n, 1) numbers in units of labels of the validation rows.
        test: (n, K) logits or (n, 1) numbers of the test rows, likewise.
        seconds: Seconds that the fit took.
    """

    kind: HeadKind
    fitted: Fitted
    task: Task
    temperature: float
    threshold: Threshold
    valid: Floats
    test: Floats
    seconds: float

    def probabilities(self, raw: Floats) -> Floats:
        """Calibrated probabilities of logits; numbers as they are."""
        if self.task.target == "number":
            return raw
        calibrated: Floats = softmax(raw / self.temperature, axis=1)
        return calibrated


@dataclass
class Trained:
    """All heads of all parts.

    Attributes:
        material: Labelled embeddings with their parts and groups.
        settings: Settings that the user asked for.
        members: Heads by kind, one a part.
        validation: Main metric of each kind on the validation rows of all parts.
        chosen: The kind that the bundle has.
        searches: The search of each part, if there was any.
    """

    material: Material
    settings: ClassifierSettings
    members: dict[HeadKind, list[FittedHead]]
    validation: dict[HeadKind, float]
    chosen: HeadKind
    searches: list[Searched] = field(default_factory=list)

    def history(self) -> list[dict[str, Any]]:
        """The history of the feed-forward trainings."""
        return [
            {**entry, "seed": self.settings.seed, "fold": "" if part.fold is None else part.fold}
            for part, member in zip(self.material.parts, self.members["feedforward"], strict=True)
            for entry in member.fitted.history
        ]

    def best(self, kinds: Sequence[HeadKind]) -> HeadKind:
        """The first of the kinds that are best on the validation rows."""
        sign = classifiers.better(self.material.metric)

        def rank(kind: HeadKind) -> float:
            value = sign * self.validation[kind]
            return value if value == value else float("-inf")

        return max(kinds, key=rank)

    def test_rows(self) -> list[int]:
        """Rows that judge, part after part; validation rows if there are no test rows."""
        return [row for part in self.material.parts for row in (part.test if self.has_test else part.valid)]

    @property
    def has_test(self) -> bool:
        return any(part.test for part in self.material.parts)

    def answers(self, kind: HeadKind, *, valid: bool = False) -> tuple[Floats, Ints]:
        """Probabilities (or numbers) and calls of a kind of head on the test (or validation) rows of all parts."""
        members = self.members[kind]
        use_valid = valid or not self.has_test
        probabilities = [one.probabilities(one.valid if use_valid else one.test) for one in members]
        if self.material.task.target == "number":
            return np.concatenate(probabilities), np.zeros(sum(map(len, probabilities)), np.int64)
        place = {name: index for index, name in enumerate(self.material.task.classes)}
        calls = [
            place[name]
            for one, values in zip(members, probabilities, strict=True)
            for name in one.task.calls(values, one.threshold)
        ]
        return np.concatenate(probabilities), np.array(calls, np.int64)


def train(
    material: Material, settings: ClassifierSettings, log: logging.Logger, journal: TrialJournal | None = None
) -> Trained:
    """Fits every kind of head for every part, calibrates and chooses.

    Args:
        material: From :func:`prepare`.
        settings: Settings that the user asked for.
        log: Gets a line a head.
        journal: Journal in which a search keeps its trials.
    """
    kinds = classifiers.kinds_for(material.task)
    if settings.head != "auto" and settings.head not in kinds:
        raise UserError(
            f"A head of the kind {settings.head} cannot predict numbers", where="--head",
            fix=f"Choose {', '.join(kinds)}",
        )
    members: dict[HeadKind, list[FittedHead]] = {kind: [] for kind in kinds}
    searches: list[Searched] = []
    for part in material.parts:
        rows = material.rows(part.train, standardise=settings.standardise)
        judge = material.judge(part.valid, rows.task)
        test = material.data.matrix[np.asarray(part.test, np.int64)]
        own = settings
        if settings.trials and journal is not None:
            network = replace(settings.network, balance=settings.balance)
            with one_thread(rows.scaled.size * max(rows.task.outputs, 1)):
                search = journal.search(
                    rows, judge, network, material.metric, settings.trials, settings.seed, part.fold, log
                )
            searches.append(search)
            own = replace(settings, network=search.settings)
        for kind in kinds:
            start = time.monotonic()
            with one_thread(rows.scaled.size * max(rows.task.outputs, 1)):
                fitted = fit(kind, rows, judge, material.metric, own)
            head = _member(kind, fitted, rows.task, material, part, judge, test, time.monotonic() - start)
            members[kind].append(head)
            log.info(
                "%s%s: %s; %.1f s", classifiers.NAMES[kind], "" if part.fold is None else f", fold {part.fold}",
                fitted.told, head.seconds,
            )
    trained = Trained(material, settings, members, {}, kinds[0], searches)
    for kind in kinds:
        probabilities, calls = trained.answers(kind, valid=True)
        rows_valid = np.array([row for part in material.parts for row in part.valid], np.int64)
        trained.validation[kind] = _metric(material, probabilities, calls, rows_valid, material.metric)
    # Of equals the simplest, which comes first.
    trained.chosen = trained.best(kinds) if settings.head == "auto" else settings.head  # type: ignore[assignment]
    return trained


def fit(
    kind: HeadKind, rows: HeadRows, judge: ValidationRows | None, metric: str, settings: ClassifierSettings
) -> Fitted:
    """Fits one kind of head."""
    balanced = settings.balance != "none"
    if kind == "logistic":
        return classifiers.logistic(rows, metric, settings.seed, balanced=balanced)
    if kind == "ridge":
        return classifiers.ridge(rows, metric, settings.seed, balanced=balanced)
    if kind == "neighbours":
        return classifiers.neighbours(rows, metric, settings.seed)
    network = replace(settings.network, balance=settings.balance)
    return classifiers.feedforward(rows, judge, network, metric, settings.seed)


def _member(
    kind: HeadKind, fitted: Fitted, task: Task, material: Material, part: TrainingPart, judge: ValidationRows,
    test: NDArray[np.float32], seconds: float,
) -> FittedHead:
    valid, answers = fitted.head.scores(judge.matrix), fitted.head.scores(test)
    if task.target == "number":
        return FittedHead(
            kind, fitted, task, 1.0, 0.5, valid * task.sd + task.mean, answers * task.sd + task.mean, seconds
        )
    truth = material.target[np.asarray(part.valid, np.int64)]
    temperature = 1.0
    threshold: Threshold = LIKELIEST
    if not few_rows.why_uncalibrated(truth):
        temperature = calibration.fit_temperature(valid, truth)
        threshold = few_rows.threshold_for(task, softmax(valid / temperature, axis=1), truth, material.metric)
    return FittedHead(kind, fitted, task, temperature, threshold, valid, answers, seconds)


def _metric(material: Material, probabilities: Floats, calls: Ints, rows: Ints, metric: str) -> float:
    return metrics.score(as_scored(material, probabilities, calls, rows))[metric, ALL]


def as_scored(material: Material, probabilities: Floats, calls: Ints, rows: Ints) -> metrics.Scored:
    """Answers to some rows in the form that metrics take; the positive one of two classes becomes the last."""
    truth = material.target[rows]
    if material.kind == "number":
        return metrics.Scored("number", truth, probabilities[:, 0], calls)
    scored = classifiers.scored(probabilities, truth, material.task, None)
    if material.kind == "binary":
        calls = (calls == material.task.positive_index).astype(np.int64)
    return replace(scored, calls=calls)
