"""The predictions table: read, check, choose the rows to evaluate, bring several models onto the same rows.

Columns: ``id`` and ``label`` (truth; empty = unknown), ``p_<class>`` for each class or ``value``; where there are any
``position``, ``call``, ``protein``, ``group``, ``split``, ``fold``, ``seed``, ``model``, ``finished``. A row is known
by its id and position.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from plm.data.dataset_table import read_strings, sort_classes
from plm.data.label_values import is_missing
from plm.data.own_tables import refuse_other
from plm.data.predictions_table import MODEL_ALONE, PREDICTOR
from plm.errors import UserError
from plm.scoring.metrics import Scored

if TYPE_CHECKING:
    import pandas as pd

ENSEMBLE = "ensemble"
_SUM_TOLERANCE = 0.01  # tables are written with a few digits
RowKey = tuple[str, str]


@dataclass(frozen=True)
class Model:
    """One model on the evaluated rows.

    Attributes:
        name: Name of the model in reports.
        scored: Its main prediction: the ensemble where there is one.
        members: The single seeds' predictions, by seed, where the table has them.
        finished: False if its training was cut short.
        baseline: True for one of the suite's baselines.
        role: Of a part of a predictor what it is: its language model alone, its sequence members together, or one of
            them (see :mod:`plm.data.predictions_table`); else empty.
        of: Name of the predictor that it is a part of; else empty.
        counts: False for a part that has no weight in the predictor's answers.
    """

    name: str
    scored: Scored
    members: dict[str, Scored] = field(default_factory=dict)
    finished: bool = True
    baseline: bool = False
    role: str = ""
    of: str = ""
    counts: bool = True

    @property
    def judged(self) -> bool:
        """Whether the evaluation is about it: it is neither a baseline nor a part of a predictor."""
        return not self.baseline and not self.role


@dataclass(frozen=True)
class Evaluation:
    """The evaluated rows and what each model said about them.

    Attributes:
        rows: One row each: ``id``, ``position``, ``protein``, ``label``, ``group``, ``split``, ``fold`` as strings.
        kind: ``binary``, ``multiclass`` or ``number``.
        classes: Class names; the last is the positive one of a binary task.
        models: The models, in the order given.
        splits: The splits that the rows are from, e.g. ``test`` or ``out-of-fold``.
        grouped_by: The column whose values are the groups.
    """

    rows: pd.DataFrame
    kind: str
    classes: tuple[str, ...]
    models: tuple[Model, ...]
    splits: str
    grouped_by: str

    @property
    def truth(self) -> NDArray[np.float64] | NDArray[np.int64]:
        return self.models[0].scored.truth

    def keys(self) -> list[RowKey]:
        """Id and position of each row."""
        return list(zip(self.rows["id"], self.rows["position"], strict=True))


def read_predictions(path: str | Path) -> pd.DataFrame:
    """Reads a predictions table and checks it; every column is of strings.

    Raises:
        UserError: Missing or empty file, no header, missing columns, a probability that is missing, no number or
            outside 0 to 1, or probabilities that do not add up to 1: with the line of the first such row.
    """
    path = Path(path)
    frame = read_strings(path, "predictions table", "Make one with plm_finetune")
    refuse_other(list(frame.columns), path.name, "predictions", ("predictions", "predictions of residues"))
    for column in ("id", "label"):
        if column not in frame:
            present = ", ".join(map(str, list(frame.columns)[:8]))
            raise UserError(
                f"The column {column} is missing (found: {present})", where=path.name,
                fix="Give a predictions table with the truth in the column label",
            )
    if frame.empty:
        raise UserError(
            "The predictions table has a header but no rows", where=path.name, fix="Give the table with its rows"
        )
    short = frame.isna().any(axis=1).to_numpy()
    if short.any():
        raise _at(frame, short, path.name, "A row has fewer columns than the header")
    _check_outputs(frame, path.name)
    return frame


def class_columns(frame: pd.DataFrame) -> list[str]:
    """The columns ``p_<class>``."""
    return [column for column in frame.columns if column.startswith("p_") and len(column) > 2]


def _check_outputs(frame: pd.DataFrame, name: str) -> None:
    columns = class_columns(frame)
    if not columns and "value" not in frame:
        raise UserError(
            "The table has neither probabilities (columns p_<class>) nor numbers (column value)", where=name,
            fix="Give a predictions table of plm_finetune or plm_classify_sites",
        )
    if len(columns) == 1:
        raise UserError(
            f"There is only one probability column, {columns[0]}", where=name, fix="Give one for each class"
        )
    for column in columns or ["value"]:
        values = _numbers(frame[column])
        what = "probability" if columns else "predicted value"
        if not np.isfinite(values).all():
            raise _at(frame, ~np.isfinite(values), name, f"A {what} is missing or no number (column {column})")
        outside = (values < 0) | (values > 1)
        if columns and outside.any():
            raise _at(frame, outside, name, f"A probability lies outside 0 to 1 (column {column})")
    if columns:
        total = sum(_numbers(frame[column]) for column in columns)
        off = np.abs(total - 1) > _SUM_TOLERANCE
        if off.any():
            raise _at(frame, off, name, "The probabilities of a row do not add up to 1")


def _numbers(column: pd.Series) -> NDArray[np.float64]:
    import pandas as pd

    values: NDArray[np.float64] = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64)
    return values


def _at(
    frame: pd.DataFrame, wrong: NDArray[np.bool_], name: str, what: str, fix: str = "Correct the row, or leave it out"
) -> UserError:
    row = int(np.argmax(wrong))
    return UserError(what, where=f"{name}, line {row + 2}, id {frame['id'].iloc[row]!r}", fix=fix)


def gather(
    tables: Sequence[tuple[str, pd.DataFrame]], names: Sequence[str], *, splits: Sequence[str] = ("test",),
    positive: str = "", unfinished: bool = False,
) -> Evaluation:
    """Chooses the rows to evaluate and brings every model onto them.

    Args:
        tables: (file name, table of :func:`read_predictions`); a table may hold several models (column ``model``).
        names: A name for each table, or none: then the column ``model`` or the file's name.
        splits: The splits to evaluate. A table without splits is taken whole; rows of one with folds are out-of-fold.
        positive: The positive class of a binary task; empty: the last in order.
        unfinished: True if training was cut short, whatever the tables say.

    Raises:
        UserError: No rows with truth, models over different rows or truths, unknown labels or calls, a single class,
            repeated rows.
    """
    parts = _by_model(tables, names)
    kind, classes = _task(parts, positive)
    reference: pd.DataFrame | None = None
    models: list[Model] = []
    where = ""
    for one in parts:
        name, file, frame = one.name, one.file, one.frame
        chosen, split_name = _choose(frame, splits, file)
        main, members = _by_seed(chosen, file)
        if reference is None:
            reference, where = main, split_name
        order = _match(reference, main, name, file)
        main = main.iloc[order].reset_index(drop=True)
        if not _same_truth(main["label"], reference["label"], kind).all():
            wrong = ~_same_truth(main["label"], reference["label"], kind)
            raise _at(main, wrong, file, f"The label of a row differs between {name} and {parts[0].name}")
        scored = _scored(main, kind, classes, file)
        by_seed = {
            seed: _scored(member.iloc[_match(reference, member, name, file)], kind, classes, file)
            for seed, member in members.items()
        }
        marks = {mark.strip().lower() for mark in frame["finished"]} if "finished" in frame else set()
        finished = not unfinished and not marks & {"false", "no", "0"}
        models.append(Model(name, scored, by_seed, finished, False, one.role, one.of, one.counts))
    assert reference is not None
    truth = models[0].scored.truth
    if kind != "number" and len(np.unique(truth)) < 2:
        only = classes[int(truth[0])]
        raise UserError(
            f"All {len(truth)} evaluated rows are of class {only}, so AUROC and most scores are undefined",
            where=parts[0].file, fix="Evaluate rows of at least two classes (--splits chooses other rows)",
        )
    rows, grouped_by = _row_columns(reference)
    return Evaluation(rows, kind, classes, tuple(models), where, grouped_by)


@dataclass(frozen=True)
class _Part:
    """The rows of one model in a table."""

    name: str
    file: str
    frame: pd.DataFrame
    role: str = ""
    of: str = ""
    counts: bool = True


def _by_model(tables: Sequence[tuple[str, pd.DataFrame]], names: Sequence[str]) -> list[_Part]:
    if not tables:
        raise UserError("There is no predictions table", fix="Give --predictions")
    if names and len(names) != len(tables):
        raise UserError(
            f"There are {len(names)} names (--name) for {len(tables)} tables (--predictions)", fix="Give one for each"
        )
    parts: list[_Part] = []
    for index, (file, frame) in enumerate(tables):
        given = " ".join(names[index].split()) if names else ""
        frames = list(_models_of(frame))
        roles = [part["role"].iloc[0] if "role" in part else "" for _, part in frames]
        whole = roles.count(PREDICTOR) == 1
        own = given or next((name for (name, _), role in zip(frames, roles, strict=True) if role == PREDICTOR), "")
        for (model, part), role in zip(frames, roles, strict=True):
            if whole and role:
                name = _part_name(own, model, role, len(tables) > 1)
                counts = "counts" not in part or part["counts"].iloc[0] != "no"
                mine = role == PREDICTOR
                parts.append(_Part(name, file, part, "" if mine else role, "" if mine else own, mine or counts))
                continue
            name = (f"{given} {model}" if len(frames) > 1 else given) if given else model or Path(file).stem
            parts.append(_Part(" ".join(name.split()), file, part))
    counted: dict[str, int] = {}
    unique = []
    for one in parts:
        counted[one.name] = counted.get(one.name, 0) + 1
        unique.append(one if counted[one.name] == 1 else replace(one, name=f"{one.name} ({counted[one.name]})"))
    return unique


def _models_of(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Name and rows of each model in a table, in order."""
    models = list(dict.fromkeys(frame["model"])) if "model" in frame else [""]
    for model in models:
        part = frame[frame["model"] == model] if len(models) > 1 else frame
        yield model, part.reset_index(drop=True)


def _part_name(own: str, model: str, role: str, several: bool) -> str:
    """Name of a predictor's part in reports; with its predictor's where there are several tables."""
    if role == PREDICTOR:
        return own
    if role == MODEL_ALONE:
        return f"{own}, language model alone"
    return f"{own}, {model}" if several else model


def _task(parts: list[_Part], positive: str) -> tuple[str, tuple[str, ...]]:
    columns = [frozenset(column[2:] for column in class_columns(part.frame)) for part in parts]
    for part, own in zip(parts, columns, strict=True):
        if own != columns[0]:
            raise UserError(
                f"{part.name} and {parts[0].name} answer different questions: their classes differ", where=part.file,
                fix="Compare models of one task",
            )
    if not columns[0]:
        return "number", ()
    classes = sort_classes(set(columns[0]))
    if positive and positive not in classes:
        raise UserError(
            f"--positive-class {positive} is none of the classes {', '.join(classes)}", fix="Give one of these"
        )
    if len(classes) == 2:
        classes = tuple(sorted(classes, key=lambda label: label == (positive or classes[-1])))
        return "binary", classes
    if positive:
        raise UserError(
            "--positive-class is for tasks of two classes", where=f"{len(classes)} classes",
            fix="Leave the positive class out",
        )
    return "multiclass", classes


def without_truth(frame: pd.DataFrame) -> int:
    """Rows of a predictions table whose label says that there is none; they are not judged."""
    classes = {column[2:] for column in class_columns(frame)}
    return sum(label not in classes and is_missing(label) for label in frame["label"])


def _choose(frame: pd.DataFrame, splits: Sequence[str], file: str) -> tuple[pd.DataFrame, str]:
    # A class may be called NA; any other label that says there is none is none.
    classes = {column[2:] for column in class_columns(frame)}
    known = frame[[label in classes or not is_missing(label) for label in frame["label"]]]
    if known.empty:
        raise UserError(
            "No row has its truth in the column label", where=file, fix="Evaluate predictions of labelled rows"
        )
    has_folds = "fold" in known and (known["fold"] != "").any()
    if "split" in known and (known["split"] != "").any():
        chosen = known[known["split"].isin(list(splits))]
        if chosen.empty:
            there = ", ".join(sorted(set(known["split"]) - {""}))
            raise UserError(
                f"No labelled row is in the split {' or '.join(splits)} (there are: {there})", where=file,
                fix="Choose another with --splits",
            )
        named = ", ".join(sorted(set(chosen["split"])))
        return chosen.reset_index(drop=True), f"{named}, out-of-fold" if has_folds else named
    return known.reset_index(drop=True), "out-of-fold" if has_folds else "all rows"


def _by_seed(frame: pd.DataFrame, file: str) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    seeds = list(dict.fromkeys(frame["seed"])) if "seed" in frame else [""]
    if len(seeds) == 1:
        return _unrepeated(frame, file), {}
    single = {seed: frame[frame["seed"] == seed].reset_index(drop=True) for seed in seeds if seed != ENSEMBLE}
    if ENSEMBLE not in seeds:
        raise UserError(
            f"The table holds several seeds ({', '.join(seeds[:4])}) and no rows with seed {ENSEMBLE}", where=file,
            fix="Give the table as plm_finetune wrote it, or the rows of one seed",
        )
    ensemble = frame[frame["seed"] == ENSEMBLE].reset_index(drop=True)
    return _unrepeated(ensemble, file), {seed: _unrepeated(rows, file) for seed, rows in single.items()}


def _unrepeated(frame: pd.DataFrame, file: str) -> pd.DataFrame:
    keys = _keys(frame)
    repeated = keys.duplicated().to_numpy()
    if repeated.any():
        raise _at(frame, repeated, file, "A row appears twice", "Give each id (and position) once for each seed")
    return frame


def _keys(frame: pd.DataFrame) -> pd.Series:
    return frame["id"] + "\t" + frame.get("position", "")


def _match(reference: pd.DataFrame, other: pd.DataFrame, name: str, file: str) -> NDArray[np.int64]:
    """Places in ``other`` of the rows of ``reference``."""
    import pandas as pd

    wanted, there = _keys(reference), _keys(other)
    places = pd.Index(there).get_indexer(wanted)
    if (places < 0).any() or len(there) != len(wanted):
        missing = int((places < 0).sum())
        extra = len(there) - (len(wanted) - missing)
        odd = wanted[places < 0].iloc[0] if missing else there[~there.isin(set(wanted))].iloc[0]
        example = odd.split("\t")[0]
        raise UserError(
            f"{name} is not about the same rows: {missing} missing, {extra} more, e.g. {example!r}", where=file,
            fix="Compare models (and seeds) on the same rows",
        )
    rows: NDArray[np.int64] = places.astype(np.int64)
    return rows


def _same_truth(first: pd.Series, second: pd.Series, kind: str) -> NDArray[np.bool_]:
    if kind == "number":
        return np.isclose(_numbers(first), _numbers(second), equal_nan=True)
    equal: NDArray[np.bool_] = first.to_numpy() == second.to_numpy()
    return equal


def _scored(frame: pd.DataFrame, kind: str, classes: tuple[str, ...], file: str) -> Scored:
    if kind == "number":
        truth = _numbers(frame["label"])
        if not np.isfinite(truth).all():
            raise _at(frame, ~np.isfinite(truth), file, "A label is no number, but the predictions are numbers")
        return Scored(kind, truth, _numbers(frame["value"]), np.zeros(len(truth), dtype=np.int64))
    place = {label: index for index, label in enumerate(classes)}
    labels = frame["label"].map(place)
    if labels.isna().any():
        shown = frame["label"][labels.isna()].iloc[0]
        raise _at(frame, labels.isna().to_numpy(), file, f"The label {shown!r} has no column p_{shown}")
    scores = np.stack([_numbers(frame[f"p_{label}"]) for label in classes], axis=1)
    calls = scores.argmax(axis=1)
    if "call" in frame and (frame["call"] != "").any():
        told = frame["call"]
        if {"best", "abstained"} <= set(frame.columns):  # plm_predict: what would have been called counts
            told = told.where(frame["abstained"] != "yes", frame["best"])
        called = told.map(place)
        if called.isna().any():
            shown = told[called.isna()].iloc[0]
            raise _at(frame, called.isna().to_numpy(), file, f"The call {shown!r} is none of the classes")
        calls = called.to_numpy().astype(np.int64)
    return Scored(kind, labels.to_numpy().astype(np.int64), scores, calls.astype(np.int64), classes)


def _row_columns(frame: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    rows = frame[["id"]].copy()
    for column in ("position", "protein", "protein_position", "label", "split", "fold"):
        rows[column] = frame.get(column, "")
    grouped_by = "id"
    rows["group"] = frame["id"]
    for column in ("protein", "group"):
        if column in frame and (frame[column] != "").any():
            # A row without a group is a group of its own.
            rows["group"] = frame[column].where(frame[column] != "", "row " + frame["id"])
            grouped_by = column
    return rows.reset_index(drop=True), grouped_by
