"""The predictor of a training: what each part (or fold) of its rows combined, and how that is told row by row.

With folds each fold has members and a combination of its own for its out-of-fold predictions; the bundle's are fitted
on all rows, and chosen by what each fold's language model says of its validation rows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from plm.data.predictions_table import COUNTS, MEMBER, MODEL_ALONE, PREDICTOR, ROLE, TOGETHER, PredictionsTable
from plm.data.task import Task, Threshold, threshold_fields
from plm.model.bundles.predictor import Explained
from plm.model.combination import LANGUAGE_MODEL
from plm.scoring import cross_fitting
from plm.scoring.sequence_members import FittedPredictor, MemberExamples, PartScores, fit_predictor, judge

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class PartExamples:
    """Rows of one part of a data set that members learn from and are heard on.

    Attributes:
        examples: Training and validation rows, or samples of them.
        valid: (N,) place of each row among the labelled validation rows, in their order; -1 for other rows.
    """

    examples: MemberExamples
    valid: Ints


class ModelAlone(Protocol):
    """The language model without sequence members, as validation rows know it."""

    @property
    def threshold(self) -> Threshold:
        """What calls are made by."""

    @property
    def errors(self) -> dict[str, Any]:
        """On validation rows, for conformal sets (:class:`plm.scoring.conformal.Errors`); may be empty."""


@dataclass(frozen=True)
class JobPredictor:
    """What a job combined.

    Attributes:
        final: For the bundle; None if there was nothing to combine.
        folds: By fold (None: no folds), for the predictions of its rows.
        judged: By fold, numbers of its judged rows among its labelled validation units; -1 for judged training rows.
        scores: How good the final predictor and its parts are on validation rows; None without one.
        why_not: Why there is nothing to combine; empty otherwise.
    """

    final: FittedPredictor | None
    folds: dict[int | None, FittedPredictor] = field(default_factory=dict)
    judged: dict[int | None, Ints] = field(default_factory=dict)
    scores: PartScores | None = None
    why_not: str = ""

    @property
    def answering(self) -> FittedPredictor | None:
        """What the bundle answers with beside the language model; None if that was chosen alone."""
        if self.final is None or self.final.combined.combination.names == (LANGUAGE_MODEL,):
            return None
        return self.final

    def to_json(self, choice: str, alone: ModelAlone) -> dict[str, Any]:
        """What the manifest tells of the choice; the combination itself is added with the members.

        Args:
            choice: What was asked for: ``auto``, ``model`` or ``combination``.
            alone: Threshold and errors of the language model alone.
        """
        told: dict[str, Any] = {
            "choice": choice, "why_not": self.why_not,
            "language_model": {**threshold_fields(alone.threshold), "conformal": dict(alone.errors)},
        }
        if self.final is not None and self.scores is not None:
            told |= {**self.final.described(), "judged": self.scores.to_json()}
        return told


def build(
    parts: Mapping[int | None, PartExamples], whole: Callable[[], PartExamples] | None, metric: str, seed: int,
    log: logging.Logger, *, compare: bool, forced: bool, residues: bool = False, by_metric: bool = False,
) -> JobPredictor:
    """Fits and chooses for each part, and for the bundle.

    Args:
        parts: By fold (None: no folds).
        whole: Of several folds the rows of all, each validated once; None of one part, which is the bundle's too.
        metric: Main metric.
        seed: Seed of folds and samples.
        log: Told of members that were left out.
        compare: Also members that keep training sequences.
        forced: The language model is not taken alone.
        residues: Every residue is asked.
        by_metric: The language model is left out where it lowers the main metric, too.
    """
    how: dict[str, bool] = {"compare": compare, "forced": forced, "residues": residues, "by_metric": by_metric}
    folds: dict[int | None, FittedPredictor] = {}
    judged: dict[int | None, Ints] = {}
    for fold, part in parts.items():
        fitted = fit_predictor(part.examples, metric, seed, **how)
        if fitted is not None:
            folds[fold], judged[fold] = fitted, part.valid[fitted.judged]
    nothing = "Nothing was combined with the language model: no member could be fitted"
    final: FittedPredictor | None
    if not folds:
        return JobPredictor(None, why_not=nothing)
    if whole is None:
        [(only, final)] = folds.items()
        together = parts[only]
    else:
        together = whole()
        final = fit_predictor(together.examples, metric, seed, **how)
    if final is None:
        return JobPredictor(None, why_not=nothing)
    for told in final.left_out:
        log.warning("Left out: %s", told)
    scores = judge(final, together.examples.model[final.judged], metric, seed)
    return JobPredictor(final, folds, judged, scores)


# -------------------------------------------------------------------------------------------------- row by row


def explain_unseen(
    fitted: FittedPredictor, model: Floats, sequences: Sequence[str], positions: Sequence[int] | None, judged: Ints
) -> tuple[Explained, Floats]:
    """Combination and members on rows, none answered by a member that learned from the row.

    Args:
        fitted: Members and their combination.
        model: (N, K) answers of the language model to the rows.
        sequences: Whole sequences, or what lies around sites.
        positions: 0-based sites; None for sequence and residue tasks.
        judged: (J,) numbers of the judged rows among these, -1 where they are none of them; members have learned from
            no other of these rows.

    Returns:
        What is said of the rows, and (N, K) answers of the sequence members together.
    """
    told = fitted.predictor.explain(model, sequences, positions)
    together = fitted.together(told)
    if fitted.direct:
        return told, together
    known = fitted.unseen(model[judged])
    there = judged >= 0
    rows = judged[there]
    for name, answers in known.members.items():
        told.members[name][rows] = answers[there]
    told.answers[rows] = known.answers[there]
    told.similarity[rows] = known.similarity[there]
    told.nearest[rows] = known.nearest[there]
    together[rows] = fitted.unseen_together()[there]
    return told, together


@dataclass(frozen=True)
class AnsweredRows:
    """Rows of a data set, to be written with what is answered to them.

    Attributes:
        base: What stands beside an answer: the columns up to ``label`` go before it, the others behind.
        task: Classes, or numbers.
        name: Name of the model.
        finished: False if its training was cut short.
    """

    base: pd.DataFrame
    task: Task
    name: str
    finished: bool = True

    def calls(self, values: Floats, threshold: Threshold) -> list[str]:
        """The class called for each row; empty for numbers."""
        return self.task.calls(values, threshold) if self.task.target == "class" else [""] * len(values)

    def table(
        self, values: Floats, calls: Sequence[str], seed: str, role: str = "", member: str = "", *, counts: bool = True
    ) -> pd.DataFrame:
        """The rows with one model's answers.

        Args:
            values: (N, K) probabilities or (N, 1) numbers.
            calls: Class called for each.
            seed: Seed of the model.
            role: What answers, of :mod:`plm.data.predictions_table`; empty where there is one model alone.
            member: Name of the sequence member.
            counts: Whether it has a weight in the predictor's answers.
        """
        names = list(self.base.columns)
        after = names.index("label") + 1
        more = ["seed", *([ROLE, COUNTS] if role else [])]
        names_of = {
            MODEL_ALONE: f"{self.name}, language model alone", TOGETHER: "sequence members together",
            MEMBER: f"member: {member}",
        }
        model = names_of.get(role, self.name)
        layout = PredictionsTable(self.task.classes, names[:after], (*names[after:], *more), finished=self.finished)
        rows = zip(self.base.itertuples(index=False), values, calls, strict=True)
        behind = [seed, *([role, "yes" if counts else "no"] if role else [])]
        return layout.frame(
            [layout.cells(row[:after], answer, call, (*row[after:], *behind), model) for row, answer, call in rows]
        )

    def parts(
        self, fitted: FittedPredictor, told: Explained, together: Floats, models: Sequence[tuple[str, Floats]],
        threshold: Threshold, alone: Threshold, *, folds: bool,
    ) -> list[pd.DataFrame]:
        """The rows as the predictor answers them, and each of its parts.

        Args:
            fitted: Members and their combination.
            told: What is said of the rows.
            together: (N, K) answers of the sequence members together.
            models: Seed and (N, K) answers of the language model, its main answers first.
            threshold: Of the predictor.
            alone: Of the language model alone.
            folds: Each fold chose for itself, so that the language model's own rows are told wherever it was chosen
                alone, too: every part has a row for every row of the data set.
        """
        counting = fitted.combined.combination.names
        first = models[0][0]
        tables = [self.table(told.answers, self.calls(told.answers, threshold), first, PREDICTOR)]
        if folds or counting != (LANGUAGE_MODEL,):
            counts = LANGUAGE_MODEL in counting
            tables += [
                self.table(values, self.calls(values, alone), seed, MODEL_ALONE, counts=counts)
                for seed, values in models
            ]
        tables.append(self.table(together, self.calls(together, fitted.together_threshold), first, TOGETHER))
        for name in fitted.members.names:
            values = told.members[name]
            numbers = cross_fitting.calls(values, self.task.classes, fitted.thresholds[name])
            calls = [self.task.classes[call] for call in numbers] if self.task.classes else [""] * len(values)
            tables.append(self.table(values, calls, first, MEMBER, name, counts=name in counting))
        return tables
