"""The dataset table: what it holds, how it is read, checked and written.

One row is one labelled thing: a protein, a protein with a label for each residue, or one site. Columns, only those a
task needs:

================  =====================================================================================================
id                unique name of the row
sequence          residues (the twenty letters and X): a whole protein or the window around a site
label             class or number; for residue tasks a string or a comma list as long as ``sequence``
position          site tasks: 1-based place of the site in ``sequence``
window            width that rows were cut to (odd; the same in every row; clipped at protein ends); 0 = whole protein
protein           protein that the row comes from
protein_position  1-based place of the site in that protein, if known
group             rows of one group never straddle a split
cluster           homology cluster
taxon             NCBI taxonomy id
split             train, valid or test
fold              1..k, instead of ``split``
================  =====================================================================================================

Other columns pass through untouched. Every value is read as a string; whoever needs a number converts it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from plm.data import label_values, own_tables
from plm.data.label_values import residue_labels
from plm.data.tables import BREAKS, stream_table, write_table
from plm.data.task import Task
from plm.data.text_files import start_of
from plm.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

__all__ = [
    "COLUMNS",
    "SPLITS",
    "UNLABELLED_RESIDUE",
    "Labelling",
    "check_dataset",
    "infer_task",
    "labelled_rows",
    "read_dataset",
    "read_strings",
    "residue_labels",
    "row_groups",
    "sort_classes",
    "write_dataset",
]

COLUMNS = (
    "id", "sequence", "label", "position", "window", "protein", "protein_position", "group", "cluster",
    "taxon", "split", "fold",
)
SPLITS = ("train", "valid", "test")
UNLABELLED_RESIDUE = "-"
"""In a residue label string (or an empty place in a comma list): this residue has no label and is not
scored."""

_SEQUENCE = re.compile(r"[ACDEFGHIKLMNPQRSTVWYX]+")
_WHOLE = re.compile(r"[+-]?[0-9]{1,15}")
_POSITION = re.compile(r"[0-9]{1,9}")
_REPEATED = 10_000
_ALIKE = 0.5
"""Labels of this share of the rows are as long as their sequences: then they are labels of residues."""


@dataclass(frozen=True)
class Labelling:
    """How the labels of a dataset were understood.

    Attributes:
        task: Level, kind of target and classes that the labels ask for.
        labels: One a row in the form that all stages read, empty for rows without a label.
        why: Sentence: what was understood, and why.
        notes: Sentences on what was changed or left out.
    """

    task: Task
    labels: list[str]
    why: str
    notes: tuple[str, ...] = field(default=())


def read_dataset(path: str | Path) -> pd.DataFrame:
    """Reads a dataset table (:func:`read_strings`) and checks it.

    Returns:
        One row a record in file order, every column of strings; an absent value is the empty string.

    Raises:
        UserError: As :func:`read_strings`; or names the file, the line and the id of the first row that breaks a
            rule of
            :func:`check_dataset`.
    """
    frame = read_strings(path, "dataset table", "Make one with plm_preprocess")
    own_tables.refuse_other(list(frame.columns), Path(path).name, "dataset", ("dataset",))
    check_dataset(frame, Path(path).name)
    return frame


def read_strings(path: str | Path, kind: str, fix: str) -> pd.DataFrame:
    """Reads a table with a header as strings, told by content (:mod:`plm.data.tables`): text or Parquet.

    Args:
        path: Table to read, plain or compressed text, or Parquet.
        kind: What the table is called in messages, such as ``dataset table``.
        fix: What to do when there is none.

    Raises:
        UserError: Missing, empty or undecodable file, a header that names a column twice, or rows with other numbers of
            values than the header has columns.
    """
    import pandas as pd

    path = Path(path)
    if not path.name or not path.parent.is_dir():
        raise UserError(f"The {kind} does not exist", where=str(path)[:200], fix="Check the path")
    try:
        start_of(path, 4)
    except UserError as error:
        what = error.what.replace("The file", f"The {kind}")
        raise UserError(what, where=error.where, fix=fix if "empty" in what else error.fix) from error
    header, rows = stream_table(path)
    columns: list[list[str]] = [[] for _ in header]
    known: list[dict[str, str]] = [{} for _ in header]
    for _, fields in rows:
        for column, once, value in zip(columns, known, fields, strict=True):
            if len(once) < _REPEATED and len(value) < 64:  # equal texts once in memory
                value = once.setdefault(value, value)
            column.append(value)
    frame = pd.DataFrame(dict(enumerate(columns)), dtype=object)
    frame.columns = pd.Index(header)
    return frame


def check_dataset(frame: pd.DataFrame, name: str = "dataset") -> None:
    """Checks the rules of the dataset table.

    Args:
        frame: Table as read, every cell a string.
        name: The table in messages.

    Raises:
        UserError: ``id`` or ``sequence`` missing, no rows, empty or repeated ids, letters that are no residues,
            positions that are no numbers or lie outside the sequence, windows that are even or differ, unknown splits
            or folds.
    """
    for column in ("id", "sequence"):
        if column not in frame.columns:
            present = ", ".join(map(str, list(frame.columns)[:8]))
            raise UserError(
                f"The column {column} is missing (found: {present})", where=name,
                fix="Make the table with plm_preprocess",
            )
    if len(frame) == 0:
        raise UserError("The table has a header but no rows", where=name, fix="Give the table with its rows")
    short = frame.isna().any(axis=1)
    if short.any():
        raise _at(frame, short, name, "A row has fewer columns than the header")
    ids = frame["id"]
    if (ids == "").any():
        raise _at(frame, ids == "", name, "A row without an id")
    if ids.duplicated().any():
        raise _at(
            frame, ids.duplicated(), name, "An id appears more than once",
            "Make ids unique (plm_preprocess can rename)",
        )
    wrong = ~frame["sequence"].str.fullmatch(_SEQUENCE)
    if wrong.any():
        raise _at(frame, wrong, name, "A sequence is empty or holds other letters than the 20 residues and X",
                  "Clean it with plm_preprocess")
    lengths = frame["sequence"].str.len()
    if "position" in frame.columns:
        wrong = ~frame["position"].str.fullmatch(_POSITION)
        if wrong.any():
            raise _at(frame, wrong, name, "A position is no whole number")
        place = frame["position"].astype(int)
        wrong = (place < 1) | (place > lengths)
        if wrong.any():
            raise _at(frame, wrong, name, "A position lies outside its sequence (positions count from 1)")
    if "window" in frame.columns:
        _check_window(frame, name)
    if "split" in frame.columns:
        wrong = ~frame["split"].isin(SPLITS)
        if wrong.any():
            raise _at(frame, wrong, name, "A split is none of train, valid, test")
    if "fold" in frame.columns:
        wrong = ~frame["fold"].str.fullmatch(r"[1-9][0-9]{0,8}")
        if wrong.any():
            raise _at(frame, wrong, name, "A fold is no whole number from 1")


def _check_window(frame: pd.DataFrame, name: str) -> None:
    widths = frame["window"].unique()
    if len(widths) > 1:
        raise UserError(
            f"The column window holds several widths ({', '.join(sorted(widths)[:4])})", where=name,
            fix="Use one width",
        )
    if not _POSITION.fullmatch(widths[0]) or (int(widths[0]) and int(widths[0]) % 2 == 0):
        raise UserError(
            f"The window {widths[0]!r} is neither 0 nor an odd number of residues", where=name,
            fix="Make the table with plm_preprocess",
        )
    width = int(widths[0])
    wrong = frame["sequence"].str.len() > width
    if width and wrong.any():
        raise _at(frame, wrong, name, f"A sequence is longer than the stated window of {width} residues")


def _at(
    frame: pd.DataFrame, wrong: pd.Series, name: str, what: str, fix: str = "Correct the row, or leave it out"
) -> UserError:
    row = int(wrong.to_numpy().argmax())
    return UserError(what, where=f"{name}, line {row + 2}, id {frame['id'].iloc[row]!r}", fix=fix)


def write_dataset(frame: pd.DataFrame, path: str | Path) -> None:
    """Writes a dataset table: TSV, or Parquet when the path ends in ``.parquet``; known columns first,
    others after.

    Raises:
        UserError: The table breaks a rule of :func:`check_dataset`, or a value holds a tab or a line end.
    """
    path = Path(path)
    check_dataset(frame, path.name)
    known = [column for column in COLUMNS if column in frame.columns]
    frame = frame[known + [column for column in frame.columns if column not in COLUMNS]]
    if path.suffix == ".parquet":
        frame.to_parquet(path, index=False)
        return
    for column in frame.columns:
        broken = frame[column].map(lambda value: BREAKS.search(str(value)) is not None)
        if broken.any():
            raise _at(frame, broken, path.name, f"The column {column} holds a tab or a line end")
    write_table(frame, path)


def row_groups(frame: pd.DataFrame) -> NDArray[np.str_]:
    """(N,) what no fold may part: the group of each row, else its cluster, its protein, or the row itself."""
    import numpy as np

    group = frame["id"].to_numpy()
    for column in ("protein", "cluster", "group"):
        if column in frame and (frame[column] != "").any():
            group = np.where(frame[column] != "", frame[column], "row " + frame["id"])
    return group.astype(str)


def labelled_rows(
    frame: pd.DataFrame, level: str = "auto", target: str = "auto", name: str = "dataset"
) -> tuple[pd.DataFrame, Labelling]:
    """The rows of a dataset that have a label, with labels in the form that all stages read.

    Args:
        frame: A checked dataset table with ``label``.
        level: ``sequence``, ``residue``, ``site`` or ``auto``, as for :func:`understand`.
        target: ``class``, ``number`` or ``auto``, as for :func:`understand`.
        name: The table in messages.

    Raises:
        UserError: As :func:`understand`; no row has a label.
    """
    labelling = understand(frame, level, target, name)
    kept = [row for row, label in enumerate(labelling.labels) if label]
    labelled = frame.iloc[kept].reset_index(drop=True)
    labelled["label"] = [labelling.labels[row] for row in kept]
    return labelled, labelling


def infer_task(frame: pd.DataFrame, level: str = "auto", target: str = "auto", name: str = "dataset") -> Task:
    """Tells what a labelled dataset asks for; every row must have a label (:func:`labelled_rows` leaves others out).

    Raises:
        UserError: As :func:`understand`; a row without a label.
    """
    labelling = understand(frame, level, target, name)
    if "" in labelling.labels:
        empty = frame["label"].map(label_values.is_missing)
        raise _at(frame, empty, name, "A row without a label", "Leave the row out, or fill its label")
    return labelling.task


def understand(frame: pd.DataFrame, level: str = "auto", target: str = "auto", name: str = "dataset") -> Labelling:
    """Tells what a labelled dataset asks for, and why.

    Args:
        frame: A checked dataset table with ``label``.
        level: ``sequence``, ``residue``, ``site``, or ``auto``: ``position`` column -> site; labels as long as their
            sequence in every row -> residue; else sequence.
        target: ``class``, ``number``, or ``auto`` (:func:`plm.data.label_values.understand`).
        name: The table in messages.

    Raises:
        UserError: No label column or no label, labels that do not fit the level or are no numbers, an odd value among
            numbers, lists of labels of other lengths than their sequences, a single class.
    """
    if "label" not in frame.columns:
        raise UserError(
            "The table has no label column", where=name, fix="Label the records with plm_preprocess --labels"
        )
    if level == "auto" and "position" in frame.columns:
        level = "site"
    if level == "site" and "position" not in frame.columns:
        raise UserError("A site task needs the column position", where=name, fix="Make the table with plm_preprocess")

    def where(row: int) -> str:
        return f"{name}, line {row + 2}, id {frame['id'].iloc[row]!r}"

    return understand_labels(list(frame["label"]), list(frame["sequence"]), level, target, where, name)


def understand_labels(
    labels: Sequence[str], sequences: Sequence[str], level: str, target: str, where: Callable[[int], str], name: str
) -> Labelling:
    """As :func:`understand`, of labels that are no table yet.

    Args:
        labels: Label of each row, as written.
        sequences: Sequence of each row.
        level: ``sequence``, ``residue``, ``site``, or ``auto``: the first or the second.
        target: ``class``, ``number`` or ``auto``.
        where: Row number (from 0) -> how messages name that row.
        name: The labels in messages.
    """
    missing = [label_values.is_missing(label) for label in labels]
    if all(missing):
        raise UserError("A row without a label, as all rows are", where=where(0) if labels else name,
                        fix="Fill the labels")
    each = None
    if level != "site":
        each = _each_residue(labels, missing, sequences, level, where)
        level = "sequence" if each is None else "residue"
    if each is None:
        reading = label_values.understand(labels, target, where=where)
        values, classes = reading.values, set(reading.values) - {""}
    else:
        reading, values, classes = _understand_residues(each, labels, target, where)
    notes = list(reading.notes)
    if reading.target == "class":
        if several := "" if level == "residue" else label_values.told_several(value for value in values if value):
            notes.append(several)
        if len(classes) < 2:
            raise UserError(
                f"All labels are {next(iter(classes), '')!r}: one class only", where=name,
                fix="Give records of at least two classes" + told_missing(reading.unlabelled),
            )
    what = {"sequence": "each sequence", "residue": "each residue", "site": "each site"}[level]
    names = sort_classes(classes) if reading.target == "class" else ()
    return Labelling(
        Task(level, reading.target, names),  # type: ignore[arg-type]
        values,
        f"{what} has a label; {reading.why}",
        tuple(notes),
    )


def told_missing(count: int) -> str:
    """What to add to a fix where labels that say that there is none may have been meant as a class."""
    words = "are labelled NA or such, which means no label: rename it if it is a class"
    return f"; {count} rows {words}" if count else ""


def _each_residue(
    labels: Sequence[str], missing: Sequence[bool], sequences: Sequence[str], level: str, where: Callable[[int], str]
) -> list[list[str]] | None:
    """The labels of each row's residues (none for a row without labels), or None: a label is that of a sequence.

    Raises:
        UserError: Lists of labels, or labels of most rows' residues, that are not as long as their sequence.
    """
    each: list[list[str]] = []
    fits = lists = 0
    misfit = -1
    for row, (label, absent, sequence) in enumerate(zip(labels, missing, sequences, strict=True)):
        try:
            parts = [] if absent and len(sequence) > 1 else residue_labels(label)
            if "." in label and label_values.number(label) is not None:
                parts = [label]  # 0.5 is no three labels
        except UserError as error:
            raise UserError(error.what, where=where(row), fix=error.fix) from error
        each.append(parts)
        if not parts:
            continue
        listed = label_values.is_list(label) or (len(parts) > 7 and "," in label and _all_short(parts))
        lists += listed
        if len(parts) == len(sequence):
            fits += 1
        elif misfit < 0 or (listed and not lists):
            misfit = row
    labelled = sum(map(bool, each))
    if fits == labelled and level != "sequence":
        return each
    if misfit < 0 and level == "residue":
        return each
    certain = lists > 0.5 * labelled or (fits >= _ALIKE * labelled and labelled > 2 and _of_residues(each, sequences))
    if level == "residue" or (certain and fits < labelled):
        raise UserError(
            f"A residue label is not as long as its sequence: {len(each[misfit])} labels for "
            f"{len(sequences[misfit])} residues ({fits} of {labelled} rows fit)",
            where=where(misfit),
            fix="Correct the row or leave it out"
            + ("" if level == "residue" else "; if labels are classes of whole sequences, write them without brackets"),
        )
    if level == "sequence" and certain and fits == labelled:
        raise UserError(
            f"Every label is as long as its sequence (the first has {len(each[0])} labels), so these are labels of "
            "residues",
            where=where(0), fix="Choose the residue task",
        )
    return None


def _all_short(parts: Sequence[str]) -> bool:
    return all(len(part) < 16 for part in parts)


def _of_residues(each: Sequence[Sequence[str]], sequences: Sequence[str]) -> bool:
    """Whether labels that are as long as their sequences are so for another reason than chance."""
    lengths = {len(parts) for parts, sequence in zip(each, sequences, strict=True) if len(parts) == len(sequence)}
    return len(lengths) > 1 or max(lengths, default=0) > 12


def _understand_residues(
    each: Sequence[Sequence[str]], labels: Sequence[str], target: str, where: Callable[[int], str]
) -> tuple[label_values.Reading, list[str], set[str]]:
    """Labels of residues read as classes or numbers; each row in the form of the dataset table."""
    flat = [("" if value == UNLABELLED_RESIDUE else value) for parts in each for value in parts]
    owner = [row for row, parts in enumerate(each) for _ in parts]
    reading = label_values.understand(flat, target, where=lambda place: where(owner[place]))
    notes = [note for note in reading.notes if "say that there is none" not in note]
    values: list[str] = []
    start = none = 0
    for parts, label in zip(each, labels, strict=True):
        mine = reading.values[start : start + len(parts)]
        start += len(parts)
        none += mine.count("")
        if not any(mine):
            values.append("")
        elif list(label) == parts and [value or UNLABELLED_RESIDUE for value in mine] == parts:
            values.append(label)  # a string of letters, as it is
        else:
            values.append(label_values.joined_labels(mine, reading.target == "class"))
    if none:
        notes.append(f"{none} of {len(flat)} residues have no label.")
    whole = sum(not value for value in values)
    if whole:
        notes.append(f"{whole} of {len(values)} rows have no label at all and are unlabelled.")
    of_residues = dataclasses.replace(reading, notes=tuple(notes), why=reading.why.replace(" rows", " residues"))
    return of_residues, values, set(reading.values) - {""}


def sort_classes(values: set[str]) -> tuple[str, ...]:
    """Class names in their order: numerically if all are whole numbers, else alphabetically; of two the positive one
    is last where names tell it (:func:`plm.data.label_values.positive_last`)."""
    if all(_WHOLE.fullmatch(value) for value in values):
        return tuple(sorted(values, key=lambda value: (int(value), value)))
    names = tuple(sorted(values))
    return label_values.positive_last(*names) if len(names) == 2 else names
