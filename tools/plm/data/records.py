"""The dataset table: what it holds, how it is read, checked and written.

One row is one labelled thing: a protein, a protein with a label for each residue, or one site. Columns, only those a
task
needs:

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

import csv
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from plm.data.fasta import raw_lines
from plm.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    "id", "sequence", "label", "position", "window", "protein", "protein_position", "group", "cluster",
    "taxon", "split", "fold",
)  # fmt: skip
SPLITS = ("train", "valid", "test")
UNLABELLED_RESIDUE = "-"
"""In a residue label string (or an empty place in a comma list): this residue has no label and is not
scored."""

_SEQUENCE = re.compile(r"[ACDEFGHIKLMNPQRSTVWYX]+")
_WHOLE = re.compile(r"[+-]?\d+")


@dataclass(frozen=True, slots=True)
class Task:
    """What a dataset asks for.

    Attributes:
        level: ``sequence``, ``residue`` or ``site``.
        target: ``class`` or ``number``.
        classes: Class names, sorted (numerically if all are whole numbers); empty for numbers. The last is
            the positive class
            of a binary task unless the user says otherwise.
    """

    level: str
    target: str
    classes: tuple[str, ...] = ()


def read_dataset(path: str | Path) -> pd.DataFrame:
    """Reads a dataset table (TSV with header, gzipped or not, or Parquet; told by content) and checks it.

    Returns:
        One row a record in file order, every column of strings; an absent value is the empty string.

    Raises:
        UserError: As :func:`read_strings`; or names the file, the line and the id of the first row that breaks a
            rule of
            :func:`check_dataset`.
    """
    frame = read_strings(path, "dataset table", "Make one with plm_preprocess")
    check_dataset(frame, Path(path).name)
    return frame


def read_strings(path: str | Path, kind: str, fix: str) -> pd.DataFrame:
    """Reads a table with a header as strings: TSV, gzipped or not, or Parquet; told by content.

    Args:
        path: The file.
        kind: What the table is called in messages, such as ``dataset table``.
        fix: What to do when there is none.

    Raises:
        UserError: Missing, empty or undecodable file, a header that names a column twice, or rows with more values than
            the header has columns. Rows with fewer are left to the caller: their last values are missing.
    """
    import pandas as pd

    path = Path(path)
    if not path.is_file():
        raise UserError(f"The {kind} does not exist", where=str(path), fix="Check the path")
    with path.open("rb") as handle:
        start = handle.read(4)
    if not start:
        raise UserError(f"The {kind} is empty", where=path.name, fix=fix)
    try:
        if start == b"PAR1":
            frame = pd.read_parquet(path)
            return frame.astype(object).where(frame.notna(), "").astype(str)
        frame = pd.read_csv(
            path,
            sep="\t",
            dtype=str,
            keep_default_na=False,
            quoting=csv.QUOTE_NONE,
            compression="gzip" if start.startswith(b"\x1f\x8b") else None,
            encoding="utf-8-sig",
        )
    except (ValueError, OSError, EOFError, zlib.error) as error:  # pandas' and Arrow's own errors are ValueErrors
        raise UserError(
            f"The {kind} cannot be read: {error}", where=path.name, fix="Give a tab-separated table with a header"
        ) from error
    if not isinstance(frame.index, pd.RangeIndex):  # pandas takes surplus fields for row names
        raise UserError("Rows have more columns than the header", where=path.name, fix="Check for stray tabs")
    # pandas would rename the second of two equal names.
    names = next((line for _, line in raw_lines(path) if line.strip()), "").split("\t")
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise UserError(f"The column {repeated!r} appears twice in the header", where=path.name, fix="Rename one")
    return frame


def check_dataset(frame: pd.DataFrame, name: str = "dataset") -> None:
    """Checks the rules of the dataset table.

    Args:
        frame: Columns of strings.
        name: What to call the table in a message.

    Raises:
        UserError: ``id`` or ``sequence`` missing, no rows, empty or repeated ids, letters that are no
            residues, positions that
            are no numbers or lie outside the sequence, windows that are even or differ, unknown splits or
            folds.
    """
    for column in ("id", "sequence"):
        if column not in frame.columns:
            found = ", ".join(map(str, list(frame.columns)[:8]))
            raise UserError(
                f"The column {column} is missing (found: {found})",
                where=name,
                fix="Make the table with plm_preprocess",
            )
    if len(frame) == 0:
        raise UserError("The table has a header but no rows", where=name)
    short = frame.isna().any(axis=1)
    if short.any():
        raise _at(frame, short, name, "A row has fewer columns than the header")
    ids = frame["id"]
    if (ids == "").any():
        raise _at(frame, ids == "", name, "A row without an id")
    if ids.duplicated().any():
        raise _at(
            frame,
            ids.duplicated(),
            name,
            "An id appears more than once",
            "Make ids unique (plm_preprocess can rename)",
        )
    wrong = ~frame["sequence"].str.fullmatch(_SEQUENCE)
    if wrong.any():
        raise _at(frame, wrong, name, "A sequence is empty or holds other letters than the 20 residues and X",
                  "Clean it with plm_preprocess")  # fmt: skip
    lengths = frame["sequence"].str.len()
    if "position" in frame.columns:
        wrong = ~frame["position"].str.fullmatch(r"\d+")
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
        wrong = ~frame["fold"].str.fullmatch(r"[1-9]\d*")
        if wrong.any():
            raise _at(frame, wrong, name, "A fold is no whole number from 1")


def _check_window(frame: pd.DataFrame, name: str) -> None:
    widths = frame["window"].unique()
    if len(widths) > 1:
        raise UserError(
            f"The column window holds several widths ({', '.join(sorted(widths)[:4])})",
            where=name,
            fix="Use one width",
        )
    if not re.fullmatch(r"\d+", widths[0]) or (int(widths[0]) and int(widths[0]) % 2 == 0):
        raise UserError(f"The window {widths[0]!r} is neither 0 nor an odd number of residues", where=name)
    width = int(widths[0])
    wrong = frame["sequence"].str.len() > width
    if width and wrong.any():
        raise _at(frame, wrong, name, f"A sequence is longer than the stated window of {width} residues")


def _at(frame: pd.DataFrame, wrong: pd.Series, name: str, what: str, fix: str = "") -> UserError:
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
        broken = frame[column].astype(str).str.contains(r"[\t\r\n]", regex=True)
        if broken.any():
            raise _at(frame, broken, path.name, f"The column {column} holds a tab or a line end")
    frame.to_csv(path, sep="\t", index=False, quoting=csv.QUOTE_NONE, lineterminator="\n")


def residue_labels(label: str) -> list[str]:
    """The labels of the residues: a comma list if there is a comma, else one character a residue."""
    return [part.strip() for part in label.split(",")] if "," in label else list(label)


def infer_task(frame: pd.DataFrame, level: str = "auto", target: str = "auto", name: str = "dataset") -> Task:
    """Tells what a labelled dataset asks for.

    Args:
        frame: A checked dataset table with ``label``.
        level: ``sequence``, ``residue``, ``site``, or ``auto``: ``position`` column -> site; labels as long
            as their sequence in
            every row -> residue; else sequence.
        target: ``class``, ``number``, or ``auto``: numbers of which at least one is not whole -> number;
            else class.
        name: What to call the table in a message.

    Raises:
        UserError: No label column, an empty label, labels that do not fit the level or are no numbers, a
            single class.
    """
    if "label" not in frame.columns:
        raise UserError(
            "The table has no label column", where=name, fix="Label the records with plm_preprocess --labels"
        )
    labels = frame["label"]
    if (labels == "").any():
        raise _at(frame, labels == "", name, "A row without a label")
    lengths = frame["sequence"].str.len()
    if level == "auto" and "position" in frame.columns:
        level = "site"
    per_residue = None
    if level in ("auto", "residue"):
        per_residue = labels.map(residue_labels)
        fits = per_residue.map(len) == lengths
        if level == "residue" and not fits.all():
            raise _at(frame, ~fits, name, "A residue label is not as long as its sequence")
        level = "residue" if fits.all() else "sequence"
    if level == "site" and "position" not in frame.columns:
        raise UserError("A site task needs the column position", where=name, fix="Make the table with plm_preprocess")
    values = set(labels)
    if level == "residue" and per_residue is not None:
        values = {value for row in per_residue for value in row} - {"", UNLABELLED_RESIDUE}
    if target == "auto":
        numeric = all(_number(value) is not None for value in values)
        target = "number" if numeric and not all(_WHOLE.fullmatch(value) for value in values) else "class"
    if target == "number":
        bad = sorted(value for value in values if _number(value) is None)
        if bad:
            raise UserError(f"The label {bad[0]!r} is no number", where=name, fix="Choose classes as the target")
        return Task(level, "number")
    if len(values) < 2:
        raise UserError(
            f"All labels are {next(iter(values), '')!r}: one class only",
            where=name,
            fix="Give records of at least two classes",
        )
    return Task(level, "class", sort_classes(values))


def sort_classes(values: set[str]) -> tuple[str, ...]:
    """Class names in their order: numerically if all are whole numbers, else alphabetically."""
    if all(_WHOLE.fullmatch(value) for value in values):
        return tuple(sorted(values, key=lambda value: (int(value), value)))
    return tuple(sorted(values))


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if value - value == 0 else None  # neither infinite nor NaN
