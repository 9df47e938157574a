"""From a dataset table to the rows that baselines learn from and answer: the evaluated rows found in it, by id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from plm.data import dataset_table, homology
from plm.data.predictions_table import PredictionsTable
from plm.errors import UserError
from plm.model.members import features
from plm.scoring import baselines
from plm.scoring.baselines import Answer
from plm.scoring.cross_fitting import LabelledTexts
from plm.scoring.metrics import Ints

if TYPE_CHECKING:
    import pandas as pd

    from plm.scoring.predictions import Evaluation

RowKey = tuple[str, str]


@dataclass(frozen=True)
class BaselinePart:
    """Rows to answer and the rows to learn from for them: one for a split, one for each fold.

    Attributes:
        places: (M,) places among the evaluated rows.
        train: Training rows.
        new: Evaluated rows that are answered.
        proteins: Of residue tasks the proteins of the evaluated rows, one a row, and those of training; else None.
    """

    places: NDArray[np.int64]
    train: LabelledTexts
    new: LabelledTexts
    proteins: tuple[list[str], list[str]] | None = None


@dataclass(frozen=True)
class Prepared:
    """A dataset made ready for the baselines.

    Attributes:
        parts: Rows to learn from and rows to answer: one for a split, one for each fold.
        rows: Number of evaluated rows.
        width: Residues of the windows around sites; 0 for whole sequences.
        about: Sentence on how the baselines see a row.
    """

    parts: tuple[BaselinePart, ...]
    rows: int
    width: int
    about: str

    @property
    def training_rows(self) -> int:
        """Training rows; with folds, those of the largest part."""
        return max(len(part.train.texts) for part in self.parts)

    @property
    def measure(self) -> str:
        """How identity to training is measured, in a phrase."""
        compared = [text for part in self.parts for side in _compared(part) for text in side]
        longest = max(map(len, compared))
        if longest <= homology.LONGEST_WINDOW:
            return "identical residues at the best ungapped offset, as a share of the shorter window"
        return "identical residues in an MMseqs2 alignment over 80 % of the shorter protein (0 if none is found)"

    def answers(self, classes: tuple[str, ...], metric: str, *, seed: int, most_rows: int) -> list[Answer]:
        """Every baseline's answer to the evaluated rows, in their order."""
        answered = [
            (
                part.places,
                baselines.answer_all(
                    part.train, part.new, classes, metric, seed=seed, most_rows=most_rows,
                    compare=part.proteins is None,
                ),
            )
            for part in self.parts
        ]
        return baselines.merge_folds(answered, self.rows, len(classes))

    def nearest(self, threads: int) -> NDArray[np.float64]:
        """(M,) identity of each evaluated row to its nearest training row, 0-1 (see :mod:`plm.data.homology`); of a
        residue that of its protein."""
        identity = np.zeros(self.rows)
        for part in self.parts:
            queries, targets = _compared(part)
            identity[part.places] = [score for _, score in homology.nearest(queries, targets, threads=threads)]
        return identity


def _compared(part: BaselinePart) -> tuple[list[str], list[str]]:
    """What identity is measured between: evaluated texts, one a row, and those of training."""
    if part.proteins is not None:
        return part.proteins
    new, train = ([text.strip(features.GAP) for text in rows.texts] for rows in (part.new, part.train))
    return new, train


def prepare(
    frame: pd.DataFrame, keys: list[RowKey], labels: list[str], kind: str, classes: tuple[str, ...], window: int,
    name: str,
) -> Prepared:
    """Finds the evaluated rows in the training table and the rows that baselines may learn from.

    Args:
        frame: A checked dataset table with ``label`` and ``split`` or ``fold``.
        keys: (id, position) of the evaluated rows; the position counts only for residue tasks.
        labels: True label of each evaluated row, which must be the table's.
        kind: ``binary``, ``multiclass`` or ``number``.
        classes: Class names in the order of the predictions.
        window: Residues around a site, where the table has whole proteins or windows wider than 64.
        name: The table in messages.

    Raises:
        UserError: No split or fold, evaluated rows that are missing, labelled otherwise or among the training rows.
    """
    has_split, has_fold = "split" in frame, "fold" in frame
    if not has_split and not has_fold:
        raise UserError(
            "The training table has neither split nor fold, so nobody can tell its training rows", where=name,
            fix="Make the splits with plm_preprocess",
        )
    if "label" not in frame:
        raise UserError("The training table has no column label", where=name, fix="Give the labelled dataset")
    target = "number" if kind == "number" else "class"
    labelled, found_labels = dataset_table.labelled_rows(frame, target=target, name=name)
    task = found_labels.task
    sites = _Sites(labelled, task.level)
    evaluated = sites.find(keys, name)
    _same_labels(sites.labels[evaluated], labels, kind, keys, name)
    width = 0 if task.level == "sequence" else _width(labelled, window)
    targets = _targets(sites.labels, kind, classes, name)
    parts: list[BaselinePart] = []
    for places, learn in _partition(sites, evaluated, has_split, name):
        train_rows = np.flatnonzero(learn)
        aligned = width > 0 or sites.one_length(np.concatenate([train_rows, evaluated[places]]))
        train, new = (
            LabelledTexts(sites.texts(rows, width), targets[rows], sites.groups[rows], aligned)
            for rows in (train_rows, evaluated[places])
        )
        proteins = None
        if task.level == "residue":
            proteins = sites.proteins(evaluated[places]), list(dict.fromkeys(sites.proteins(train_rows)))
        parts.append(BaselinePart(places, train, new, proteins))
    about = f"windows of {width} residues around the {task.level}" if width else "whole sequences"
    return Prepared(tuple(parts), len(keys), width, about)


class _Sites:
    """The labelled units of a dataset: rows, or the labelled residues of rows."""

    def __init__(self, frame: pd.DataFrame, level: str) -> None:
        self._sequences = frame["sequence"].to_numpy()
        self._ids = frame["id"].to_numpy()
        count = len(frame)
        if level == "residue":
            each = [dataset_table.residue_labels(label) for label in frame["label"]]
            chosen = [
                (row, place)
                for row, values in enumerate(each)
                for place, value in enumerate(values)
                if value not in ("", dataset_table.UNLABELLED_RESIDUE)
            ]
            self._row = np.array([row for row, _ in chosen], dtype=np.int64)
            self._position0 = np.array([place for _, place in chosen], dtype=np.int64)
            self.labels = np.array([each[row][place] for row, place in chosen], dtype=object)
        else:
            self._row = np.arange(count)
            self.labels = frame["label"].to_numpy()
            self._position0 = frame["position"].astype(int).to_numpy() - 1 if level == "site" else np.full(count, -1)
        self._by_position = level == "residue"
        self.groups = dataset_table.row_groups(frame)[self._row]
        self.split = frame["split"].to_numpy()[self._row] if "split" in frame else None
        self.fold = frame["fold"].to_numpy()[self._row] if "fold" in frame else None

    def find(self, keys: list[RowKey], name: str) -> NDArray[np.int64]:
        """The unit of each evaluated row."""
        where: dict[RowKey, int] = {}
        for unit, (row, place) in enumerate(zip(self._row, self._position0, strict=True)):
            where[self._ids[row], str(place + 1) if self._by_position else ""] = unit
        wanted = keys if self._by_position else [(key, "") for key, _ in keys]
        missing = [key for key in wanted if key not in where]
        if missing:
            shown = " at residue ".join(part for part in missing[0] if part)
            raise UserError(
                f"{len(missing)} of {len(wanted)} evaluated rows are not in the training table, e.g. {shown!r}",
                where=name, fix="Give the dataset that the predictions come from",
            )
        return np.array([where[key] for key in wanted], dtype=np.int64)

    def one_length(self, units: NDArray[np.int64]) -> bool:
        """True if the sequences of these units have the same length."""
        return len({len(self._sequences[row]) for row in self._row[units]}) == 1

    def proteins(self, units: NDArray[np.int64]) -> list[str]:
        """The whole sequence of each unit."""
        return [self._sequences[row] for row in self._row[units]]

    def texts(self, units: NDArray[np.int64], width: int) -> list[str]:
        """What the baselines see of each unit."""
        pairs = zip(self._row[units], self._position0[units], strict=True)
        if not width:
            return [self._sequences[row] for row, _ in pairs]
        return [features.window_text(self._sequences[row], int(place), width) for row, place in pairs]


def _width(frame: pd.DataFrame, window: int) -> int:
    stated = int(frame["window"].iloc[0]) if "window" in frame else 0
    return stated if 0 < stated <= homology.LONGEST_WINDOW else window


def _same_labels(there: NDArray[np.object_], given: list[str], kind: str, keys: list[RowKey], name: str) -> None:
    if kind == "number":
        wrong = ~np.isclose([float(value) for value in there], [float(value) for value in given])
    else:
        wrong = np.array([one != other for one, other in zip(there, given, strict=True)], dtype=bool)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise UserError(
            f"Row {keys[row][0]!r} is {given[row]!r} in the predictions and {there[row]!r} in the training table",
            where=name, fix="Give the dataset that the predictions come from",
        )


def _targets(labels: NDArray[np.object_], kind: str, classes: tuple[str, ...], name: str) -> NDArray[np.float64] | Ints:
    if kind == "number":
        return np.array([float(value) for value in labels])
    place = {label: index for index, label in enumerate(classes)}
    unknown = sorted({str(label) for label in labels} - set(place))
    if unknown:
        raise UserError(
            f"The training table has the class {unknown[0]!r}, which the predictions do not know", where=name,
            fix="Give the dataset that the predictions come from",
        )
    return np.array([place[label] for label in labels], dtype=np.int64)


def _partition(
    sites: _Sites, evaluated: NDArray[np.int64], has_split: bool, name: str
) -> list[tuple[NDArray[np.int64], NDArray[np.bool_]]]:
    """(places among the evaluated rows, mask of the training units) for the split or each fold."""
    if has_split and sites.split is not None:
        learn = sites.split == "train"
        if learn[evaluated].any():
            raise UserError(
                f"{int(learn[evaluated].sum())} of the evaluated rows are training rows, which every model has seen",
                where=name, fix="Evaluate the test or validation rows (--splits)",
            )
        return [(np.arange(len(evaluated)), learn)]
    assert sites.fold is not None
    own = sites.fold[evaluated]
    return [(np.flatnonzero(own == fold), sites.fold != fold) for fold in sorted(set(own))]


def answers_table(evaluation: Evaluation, answers: Sequence[Answer]) -> pd.DataFrame:
    """The baselines' answers as a predictions table; columns that are empty in every row are left away."""
    names = list(evaluation.rows.columns)
    after = names.index("label") + 1
    layout = PredictionsTable(evaluation.classes, names[:after], names[after:])
    number = evaluation.kind == "number"
    rows = []
    for one in answers:
        calls = [""] * len(one.scores) if number else [evaluation.classes[call] for call in one.calls]
        for row, values, call in zip(evaluation.rows.itertuples(index=False), one.scores, calls, strict=True):
            answer = [values] if number else values
            rows.append(layout.cells(row[:after], answer, call, row[after:], one.name))
    table = layout.frame(rows)
    # The answer behind what stands beside it, as this table has always been written.
    call = [] if number else ["call"]
    order = [*names[:after], *call, *names[after:], *(name for name in layout.columns if name not in (*names, *call))]
    return table[[name for name in order if name in ("id", "label") or (table[name] != "").any()]]
