"""The labelled rows of a dataset, ready for training: task, targets, window rule and the part of each row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from plm.data import dataset_table
from plm.data.task import Task
from plm.data.windows import check_width
from plm.errors import UserError
from plm.jobs.finetune import objectives
from plm.jobs.finetune.batches import TrainingExamples, make_examples
from plm.jobs.finetune.objectives import Array
from plm.model.encoder_inputs import make_units
from plm.model.loaded import LoadedModel
from plm.training import few_rows
from plm.training.folds import TrainingPart

if TYPE_CHECKING:
    import pandas as pd

WIDEST_INFERRED = 129
"""A table without a window column whose sequences are all this short, with the site in the middle, holds windows."""


@dataclass(frozen=True)
class LabelledRows:
    """The rows of a dataset table.

    Attributes:
        frame: The table, every column of strings.
        task: What is predicted. For numbers, mean and sd are those of the training rows of :attr:`part`.
        sequences: Sequence of each row.
        positions: 0-based site of each row, or None.
        targets: From :func:`plm.jobs.finetune.objectives.targets`.
        window: Width of the context around a site; 0 is the whole sequence.
        notes: How the labels were understood, and what was left out or changed, in sentences.
    """

    frame: pd.DataFrame
    task: Task
    sequences: list[str]
    positions: list[int] | None
    targets: list[Array]
    window: int
    notes: tuple[str, ...] = ()

    def examples(self, loaded: LoadedModel, chosen: Sequence[int], limit: int | None) -> TrainingExamples:
        """The chosen rows as training or validation examples."""
        positions = None if self.positions is None else [self.positions[row] for row in chosen]
        units = make_units(
            loaded, self.task.level, [self.sequences[row] for row in chosen], positions,
            window=self.window, limit=limit,
        )
        return make_examples(units, [self.targets[row] for row in chosen], self.task.level)

    def values(self, chosen: Sequence[int]) -> Array:
        """The targets of the chosen rows, end to end, unlabelled residues included."""
        return np.concatenate([self.targets[row] for row in chosen])

    def for_part(self, part: TrainingPart) -> LabelledRows:
        """The rows with numbers standardised by the training rows of ``part``.

        Raises:
            UserError: The training rows hold one class only, or one number.
        """
        values = self.values(part.train)
        known = values[objectives.labelled(values)]
        where = "training rows" if part.fold is None else f"training rows of fold {part.fold}"
        if len(np.unique(known)) < 2:
            one = self.task.classes[int(known[0])] if self.task.target == "class" and len(known) else ""
            raise UserError(
                f"All labels are {one!r}: one class only" if one else "All labels are the same number", where=where,
                fix="Give training rows of at least two classes" if one else "Give labels that differ",
            )
        if self.task.target == "class":
            return self
        return replace(self, task=replace(self.task, mean=float(known.mean()), sd=float(known.std())))

    def describe(self) -> str:
        """The task in words."""
        what = "numbers" if self.task.target == "number" else f"classes {', '.join(self.task.classes)}"
        if self.task.level != "site":
            return f"{what} for each {self.task.level}"
        context = f"windows of {self.window} residues" if self.window else "whole proteins"
        return f"{what} for each site, seen in {context}"

    def site_residues(self, chosen: Sequence[int]) -> str:
        """The letters at the sites of the chosen rows, sorted, without X."""
        if self.positions is None:
            return ""
        return "".join(sorted({self.sequences[row][self.positions[row]] for row in chosen} - {"X"}))


def read_rows(
    frame: pd.DataFrame, *, level: str = "auto", target: str = "auto", positive: str = "", window: int | None = None,
    name: str = "dataset",
) -> LabelledRows:
    """Prepares a checked dataset table for training.

    Args:
        frame: From :func:`plm.data.dataset_table.read_dataset`.
        level: ``auto``, ``sequence``, ``residue`` or ``site``.
        target: ``auto``, ``class`` or ``number``.
        positive: The positive one of two classes; the last by default.
        window: Width to cut sites to; None takes the table's.
        name: File name of the table, for messages.

    Raises:
        UserError: The labels do not fit the task, ``positive`` is no class, or the window is wider than the table's.
    """
    task = dataset_table.infer_task(frame, level, target, name).with_positive(positive)
    sequences = [str(sequence) for sequence in frame["sequence"]]
    positions = [int(place) - 1 for place in frame["position"]] if task.level == "site" else None
    width = _window(frame, sequences, positions, window)
    return LabelledRows(frame, task, sequences, positions, objectives.targets(list(frame["label"]), task), width)


def _window(frame: pd.DataFrame, sequences: list[str], positions: list[int] | None, wanted: int | None) -> int:
    if positions is None:
        if wanted:
            raise UserError("A window needs sites", where="--window", fix="Leave it out for sequence and residue tasks")
        return 0
    stated = int(frame["window"].iloc[0]) if "window" in frame.columns else inferred_window(sequences, positions)
    if wanted is None:
        return stated
    try:
        check_width(wanted)
    except ValueError as error:
        raise UserError(str(error), where="--window", fix="Give an odd number, or 0 for whole proteins") from None
    if stated and (wanted == 0 or wanted > stated):
        raise UserError(
            f"The table's rows are windows of {stated} residues: they cannot be cut to {wanted or 'whole proteins'}",
            where="--window", fix=f"Give at most {stated}, or make the table anew with wider windows",
        )
    return wanted


def inferred_window(sequences: Sequence[str], positions: Sequence[int]) -> int:
    """The width of windows in a table that does not say it; 0 if its sequences look like whole proteins."""
    width = max(map(len, sequences))
    if width > WIDEST_INFERRED or width % 2 == 0:
        return 0
    half = width // 2
    fits = all(
        at == half or (at < half and len(text) == at + half + 1) or len(text) < width
        for text, at in zip(sequences, positions, strict=True)
    )
    return width if fits and sum(map(len, sequences)) > 0.5 * width * len(sequences) else 0



def check_numbers(rows: LabelledRows, parts: Sequence[TrainingPart], where: str) -> str:
    """Refuses trainings on next to nothing, and says what must be said first of trainings on few rows.

    Args:
        rows: Rows with their targets.
        parts: One, or one for each fold.
        where: File name of the table, for messages.
    """
    task = rows.task
    for part in parts:
        values = rows.values(part.train)
        known = values[objectives.labelled(values)]
        labels = [task.classes[int(value)] for value in known] if task.target == "class" else ["" for _ in known]
        of = "the training part" if part.fold is None else f"the training part of fold {part.fold}"
        few_rows.refuse(labels, of, where, binary=task.classes if task.binary else ())
    return few_rows.warning({name: min(len(getattr(part, name)) for part in parts) for name in ("train", "valid")})
