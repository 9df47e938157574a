"""Sequence members beside a classifier of embeddings, and the combination that the bundle answers with.

The classifier is the chosen head; it is what the language model says. Members need the proteins' sequences, which come
with the labels or with the embeddings.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from plm.data import homology
from plm.data.fasta import CleaningRule, clean
from plm.data.task import Task, Threshold
from plm.errors import UserError
from plm.jobs.classifier.final import Final
from plm.jobs.classifier.material import Material
from plm.jobs.classifier.training import Trained
from plm.model.bundles.classifier import ClassifierHead
from plm.model.bundles.predictor import Explained
from plm.model.members.features import window_text
from plm.model.members.stored import MOST_ROWS
from plm.scoring import job_predictor
from plm.scoring.conformal import Errors
from plm.scoring.cross_fitting import LabelledTexts, inner_folds
from plm.scoring.job_predictor import JobPredictor, PartExamples, explain_unseen
from plm.scoring.quiet_threads import one_thread
from plm.scoring.sequence_members import CROSS_FITTED_ROWS, FittedPredictor, MemberExamples
from plm.training import classifiers, few_rows

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

WIDTH = 33
"""Residues around a site that sequence members see where whole proteins or wide windows are known."""
WHY = "Nothing was combined with the language model, since"


@dataclass(frozen=True)
class MaterialSequences:
    """The sequences of a classifier's material.

    Attributes:
        texts: (N,) cleaned sequences; empty if members cannot have them.
        positions: (N,) 0-based sites in them; None at sequence level.
        width: Residues of the windows that members see; 0: whole sequences.
        why_not: Why members cannot have them; empty if they can.
    """

    texts: list[str]
    positions: list[int] | None
    width: int
    why_not: str = ""

    def of(self, rows: Sequence[int]) -> tuple[list[str], list[int] | None]:
        """Sequences and sites of some rows, as predictors are asked about them."""
        positions = None if self.positions is None else [self.positions[row] for row in rows]
        return [self.texts[row] for row in rows], positions


def sequences_of(material: Material) -> MaterialSequences:
    """The sequences beside labelled embeddings, cleaned as proteins of the suite are."""
    data = material.data
    raw = data.columns.get("sequence", [])
    if not any(raw):
        return _without("the labels came without sequences (a column sequence)")
    if lacking := sum(not text for text in raw):
        return _without(f"{lacking:,} of the {len(raw):,} labelled rows have no sequence")
    rule = CleaningRule(nucleotides="keep")
    texts: list[str] = []
    places: list[int] = []
    for row, text in enumerate(raw):
        cleaned = clean("".join(text.split()), rule)
        if cleaned.rejected:
            return _without(f"the sequence of {data.ids[row]!r} cannot be used ({cleaned.rejected})")
        texts.append(cleaned.sequence)
        if data.positions is not None:
            place = cleaned.position(data.positions[row] - 1)
            if place is None:
                return _without(
                    f"position {data.positions[row]} of {data.ids[row]!r} is no residue of its sequence "
                    f"({len(cleaned.sequence):,} residues)"
                )
            places.append(place)
    if data.positions is None:
        return MaterialSequences(texts, None, 0)
    # Windows of one width with the site in the middle are seen as they are.
    [length, *others] = {len(text) for text in texts}
    centred = not others and length <= homology.LONGEST_WINDOW and set(places) == {length // 2} and length % 2 == 1
    return MaterialSequences(texts, places, length if centred else WIDTH)


def _without(why: str) -> MaterialSequences:
    return MaterialSequences([], None, 0, why)


def check(sequences: MaterialSequences, choice: str) -> None:
    """Refuses a combination that cannot be.

    Raises:
        UserError: ``combination`` was asked for, and there are no sequences.
    """
    if choice == "combination" and sequences.why_not:
        raise UserError(
            f"Nothing can be combined with the language model: {sequences.why_not}", where="--predictor combination",
            fix="Give a sequence for every labelled protein, or choose auto",
        )


def build(
    trained: Trained, final: Final, sequences: MaterialSequences, log: logging.Logger, *, compare: bool, forced: bool
) -> JobPredictor:
    """Fits and chooses.

    Args:
        trained: All heads of all parts.
        final: The chosen head.
        sequences: From :func:`sequences_of`.
        log: Told of members that were left out.
        compare: Also members that keep training sequences.
        forced: The language model is not taken alone.
    """
    material, seed = trained.material, trained.settings.seed
    task = material.task
    if sequences.why_not:
        return JobPredictor(None, why_not=f"{WHY} {sequences.why_not}")
    if task.target == "class" and final.why_uncalibrated:
        return JobPredictor(None, why_not=f"{WHY} {final.why_uncalibrated}")
    if len(final.truth) < few_rows.FEWEST_CALIBRATION:
        return JobPredictor(None, why_not=f"{WHY} there are only {len(final.truth)} validation rows")
    for part in material.parts:
        if task.target == "class" and (why := few_rows.why_uncalibrated(_truth(material, part.valid))):
            # Every fold combines, or none: the predictions table has a row of each part for every row.
            return JobPredictor(None, why_not=f"{WHY} in fold {part.fold} {why}")
    heads = trained.members[trained.chosen]
    examples = {
        part.fold: _examples(
            trained, sequences, part.train, part.valid, head.fitted.head, head.temperature, head.task
        )
        for part, head in zip(material.parts, heads, strict=True)
    }

    def whole() -> PartExamples:
        return _examples(trained, sequences, [], final.valid_rows, final.head, final.temperature, final.task)

    return job_predictor.build(
        examples, whole if material.folds else None, material.metric, seed, log, compare=compare, forced=forced,
        by_metric=True,
    )


def _truth(material: Material, rows: Sequence[int]) -> NDArray[Any]:
    return material.target[np.asarray(rows, np.int64)]


def _examples(
    trained: Trained, sequences: MaterialSequences, train: Sequence[int], valid: Sequence[int], head: ClassifierHead,
    temperature: float, task: Task,
) -> PartExamples:
    """Training and validation rows, samples of them where they are very many."""
    material, seed = trained.material, trained.settings.seed
    generator = np.random.default_rng(seed)
    numbers = np.sort(generator.permutation(len(valid))[: MOST_ROWS // 2 if train else MOST_ROWS])
    kept = np.sort(generator.permutation(len(train))[: MOST_ROWS - len(numbers)])
    rows = np.concatenate([np.asarray(train, np.int64)[kept], np.asarray(valid, np.int64)[numbers]])
    places = np.concatenate([np.full(len(kept), -1), numbers]).astype(np.int64)
    data, width = material.data, sequences.width
    texts, positions = sequences.of(rows.tolist())
    ids = [data.ids[row] for row in rows]
    if positions is not None and data.positions is not None:
        texts = [window_text(text, at, width) for text, at in zip(texts, positions, strict=True)]
        ids = [f"{name}:{data.positions[row]}" for name, row in zip(ids, rows, strict=True)]
    groups = np.array([material.groups[row] for row in rows], dtype=object).astype(str)
    model = _cross_fitted(trained, rows, groups, head, temperature)
    if len(kept) and len(rows) > CROSS_FITTED_ROWS:
        model[: len(kept)] = np.nan  # members learn from these alone, and are heard on the validation rows
    aligned = width > 0 or len(set(map(len, texts))) == 1
    examples = MemberExamples(
        LabelledTexts(texts, material.target[rows], groups, aligned), ids, [data.labels[row] for row in rows], model,
        width, task,
    )
    return PartExamples(examples, places)


def _cross_fitted(
    trained: Trained, rows: Ints, groups: NDArray[np.str_], head: ClassifierHead, temperature: float
) -> Floats:
    """(N, K) answers of heads of the same settings to rows that they did not learn from; NaN where there are none.

    Validation rows chose the head and its epoch, so that its own answers to them would promise too much beside members
    that are cross-fitted.
    """
    material, settings = trained.material, trained.settings
    task = material.task
    target = material.target[rows]
    values = np.full((len(rows), task.outputs), np.nan)
    for learn, judge in inner_folds(target, groups, task.target == "class", settings.seed):
        if len(np.unique(target[learn])) < 2:
            continue
        part = material.rows(rows[learn].tolist(), standardise=settings.standardise)
        with one_thread(part.scaled.size * task.outputs):
            again = classifiers.refit(part, head, settings.seed)
        raw = again.scores(material.data.matrix[rows[judge]])
        if task.target == "number":
            values[judge] = raw * part.task.sd + part.task.mean
        else:
            values[judge] = softmax(raw / temperature, axis=1)
    return values


# ------------------------------------------------------------------------------------------- what it answers


@dataclass(frozen=True)
class HeadAlone:
    """The head alone, as validation rows know it.

    Attributes:
        threshold: What calls are made by.
        errors: On validation rows; empty, since the bundle holds its answers to them.
    """

    threshold: Threshold
    errors: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PartAnswers:
    """What the predictor of one part says of its validation and test rows.

    Attributes:
        fitted: Members and their combination.
        told: Of the V validation and T test rows of the part, in this order.
        together: (V + T, K) answers of the sequence members together.
        count: V.
        judged: (J,) numbers of the judged rows among the validation rows; -1 for training rows.
    """

    fitted: FittedPredictor
    told: Explained
    together: Floats
    count: int
    judged: Ints

    def rows(self, values: Floats, *, valid: bool) -> Floats:
        """Those of the validation or of the test rows."""
        return values[: self.count] if valid else values[self.count :]

    @property
    def validation(self) -> tuple[Floats, NDArray[Any]]:
        """Cross-fitted answers to judged validation rows, and their truth."""
        there = self.judged >= 0
        return self.fitted.combined.answers[there], self.fitted.truth[there]

    @property
    def threshold(self) -> Threshold:
        """What calls are made by, from the cross-fitted answers to all judged rows."""
        return self.fitted.threshold

    @property
    def errors(self) -> Errors:
        """How wrong the predictor was on its validation rows."""
        return Errors.of(*self.validation, number=self.fitted.heard.task.target == "number")


@dataclass(frozen=True)
class Answering:
    """What the bundle answers with, and what it says of validation rows: the head alone, or a predictor.

    Attributes:
        built: What was combined.
        sequences: Of the material.
        parts: By part what its predictor says; None where the head answers alone.
        threshold: What calls are made by.
        validation: (n, K) calibrated probabilities or (n, 1) numbers of validation rows.
        truth: (n,) their class numbers or numbers.
    """

    built: JobPredictor
    sequences: MaterialSequences
    parts: list[PartAnswers | None]
    threshold: Threshold
    validation: Floats
    truth: NDArray[Any]

    @property
    def combined(self) -> bool:
        """Whether the bundle holds a predictor."""
        return self.built.answering is not None


def answering(trained: Trained, final: Final, built: JobPredictor, sequences: MaterialSequences) -> Answering:
    """What the bundle answers with, from what was combined."""
    fitted = built.answering
    if fitted is None:
        nothing: list[PartAnswers | None] = [None for _ in trained.material.parts]
        return Answering(built, sequences, nothing, final.threshold, final.validation, final.truth)
    parts: list[PartAnswers | None] = []
    for part, head in zip(trained.material.parts, trained.members[trained.chosen], strict=True):
        own = built.folds.get(part.fold)
        if own is None:
            parts.append(None)
            continue
        model = np.concatenate([head.probabilities(head.valid), head.probabilities(head.test)])
        texts, positions = sequences.of([*part.valid, *part.test])
        judged = built.judged[part.fold]
        told, together = explain_unseen(own, model, texts, positions, judged)
        parts.append(PartAnswers(own, told, together, len(part.valid), judged))
    there = np.ones(len(fitted.judged), bool) if trained.material.folds else built.judged[None] >= 0
    validation, truth = fitted.combined.answers[there], fitted.truth[there]
    return Answering(built, sequences, parts, fitted.threshold, validation, truth)


def answered(trained: Trained, answering: Answering, *, valid: bool = False) -> tuple[Floats, Ints, Floats, Ints]:
    """What the predictors of all parts, and their sequence members together, say of test (or validation) rows.

    Returns:
        (N, K) answers and (N,) calls of the predictor, then those of the sequence members; of a part without a
        predictor those of its head.
    """
    use_valid = valid or not trained.has_test
    task = trained.material.task
    every: list[Floats] = []
    others: list[Floats] = []
    calls: tuple[list[int], list[int]] = ([], [])
    for part, head in zip(answering.parts, trained.members[trained.chosen], strict=True):
        values = head.probabilities(head.valid if use_valid else head.test)
        together, threshold, other = values, head.threshold, head.threshold
        if part is not None:
            values, together = part.rows(part.told.answers, valid=use_valid), part.rows(part.together, valid=use_valid)
            threshold, other = part.threshold, part.fitted.together_threshold
        every.append(values)
        others.append(together)
        for called, own, limit in zip(calls, (values, together), (threshold, other), strict=True):
            called += task.called(own, limit).tolist() if task.classes else [0] * len(own)
    first, second = (np.array(called, np.int64) for called in calls)
    return np.concatenate(every), first, np.concatenate(others), second
