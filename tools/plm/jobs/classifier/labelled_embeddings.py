"""Embeddings joined with their labels by id: nothing lost, every row of either side accounted for.

Labels come from a table, from a column that the embeddings carry, or from the files' names (one file a class). The
numbers go to a file on disk that is mapped into memory, so that the system may give its pages back.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from plm import fingerprints
from plm.data.embeddings.description import UNUSUAL
from plm.data.embeddings.files import Description, Embeddings, read_embeddings
from plm.data.identifiers import Matches
from plm.data.label_values import is_missing
from plm.data.own_tables import refuse_other
from plm.data.tables import read_table
from plm.errors import UserError

ID_COLUMNS = ("id", "accession", "protein_id", "identifier", "entry", "protein", "name")
LABEL_COLUMNS = ("label", "labels", "class", "target", "family", "value", "score")
KEPT_COLUMNS = ("sequence", "protein", "protein_position", "group", "cluster", "split", "fold")
"""Columns of the table that training uses, by their names in the dataset table."""

SEQUENCE = "sequence"
"""The one of these that embeddings may carry instead."""
_BREAKS = re.compile(r"[\t\r\n\v\f\x00-\x08\x0e-\x1f\x85\u2028\u2029]")
_BLOCK = 4096


@dataclass
class RowFate:
    """What became of one row of a file.

    Attributes:
        source: ``embeddings`` or ``labels``.
        file: Name of the file.
        line: 1-based record of an embeddings file, or line of the table.
        id: Id of the row; at site level with the position after a tab.
        label: Label of the row, empty if there is none.
        row: The row of :class:`LabelledEmbeddings` that it became, or -1.
        status: Why it became none; empty otherwise.
    """

    source: str
    file: str
    line: int
    id: str
    label: str
    row: int = -1
    status: str = ""


@dataclass
class LabelledEmbeddings:
    """N labelled embeddings.

    Attributes:
        ids: Id of each of the N rows.
        positions: 1-based places at site level, else None.
        matrix: (N, D) float32, finite; a file mapped into memory.
        description: Model, layer, pooling and dimension of the embeddings.
        labels: Label of each of the N rows, never empty.
        columns: Columns of the table by name (``KEPT_COLUMNS``), N texts each; only those that say something.
        fates: Every row of every file.
        notes: Sentences that a reader of the results should know.
        labels_from: Where the labels come from, in words.
    """

    ids: list[str]
    positions: list[int] | None
    matrix: NDArray[np.float32]
    description: Description
    labels: list[str]
    columns: dict[str, list[str]]
    fates: list[RowFate]
    notes: list[str] = field(default_factory=list)
    labels_from: str = ""

    def __len__(self) -> int:
        return len(self.ids)

    def keep(self, rows: Sequence[int], why: str) -> LabelledEmbeddings:
        """The same with some of the rows only; the others' fate is ``why``."""
        place = {row: number for number, row in enumerate(rows)}
        for fate in self.fates:
            if fate.row >= 0:
                fate.status = fate.status if fate.row in place else why
                fate.row = place.get(fate.row, -1)
        return LabelledEmbeddings(
            [self.ids[row] for row in rows], None if self.positions is None else [self.positions[row] for row in rows],
            self.matrix[np.asarray(rows, np.int64)], self.description, [self.labels[row] for row in rows],
            {name: [values[row] for row in rows] for name, values in self.columns.items()}, self.fates, self.notes,
            self.labels_from,
        )


@dataclass
class _Row:
    """A labelled row before its numbers are read."""

    id: str
    position: int | None
    label: str
    entry: int  # of the table, or -1


def read_labelled(
    paths: Sequence[Path], *, workdir: Path, labels: Path | None = None, class_names: Sequence[str] = (),
    id_column: str = "", label_column: str = "", layer: int | None = None,
) -> LabelledEmbeddings:
    """Reads embeddings and their labels.

    Args:
        paths: Embeddings files in any format of :func:`plm.data.embeddings.files.read_embeddings`, all of one model.
        workdir: Folder for the matrix on disk.
        labels: Table of labels; without it the labels are a column that the embeddings carry, or ``class_names``.
        class_names: The class of each file; without table and column the files' names, if there are several.
        id_column: Column of the table, by name or number; by default its usual names, else the first.
        label_column: Column of the labels, of the table or of the embeddings.
        layer: Layer to read from files that hold several; None if they hold one.

    Raises:
        UserError: Files that do not fit each other, no labels, two labels or embeddings for one id, numbers that are
            not finite: one line that names the first.
    """
    notes: list[str] = []
    with ExitStack() as stack:
        files = [stack.enter_context(read_embeddings(path, layer=layer)) for path in paths]
        description = _common(files, notes)
        table = None
        if labels is not None:
            if class_names:
                raise UserError(
                    "Class names for files and a table of labels exclude each other", where="--class-name",
                    fix="Leave out one of them",
                )
            table = _Labels(labels, id_column, label_column, files[0].positions is not None)
            source = f"column {table.label_name} of {table.name}"
            table.ask(_key(name, position) for file in files for name, position in _keys(file))
        else:
            each, source = _own_labels(files, paths, class_names, label_column, id_column)
        rows: list[_Row] = []
        fates: list[RowFate] = []
        known: dict[str, int] = {}
        for number, file in enumerate(files):
            for index, (name, position) in enumerate(_keys(file)):
                key = _key(name, position)
                entry = -1 if table is None else table.find(key)
                label = each[number][index] if table is None else table.labels[entry] if entry >= 0 else ""
                label = "" if is_missing(label) else label
                fate = RowFate("embeddings", file.name, index + 1, key, label)
                fates.append(fate)
                if not label:
                    unknown = table is not None and entry < 0
                    fate.status = "not in the table of labels" if unknown else "no label"
                    continue
                fate.row = known.setdefault(key, len(rows))
                if fate.row == len(rows):
                    rows.append(_Row(name, position, label, entry))
                    continue
                fate.status = "repeated"
                if rows[fate.row].label != label:
                    raise UserError(
                        f"{_shown(key)} has two labels: {rows[fate.row].label!r} and {label!r}",
                        where=f"{file.name}, record {index + 1}", fix="Give each protein one label",
                    )
        if not rows:
            raise _nothing(files, table, source)
        _check_labels(rows, source)
        matrix = _read_numbers(files, fates, len(rows), description.dimension, workdir / "embeddings.npy")
    columns: dict[str, list[str]] = {}
    if table is not None:
        fates += table.fates(rows, notes)
        for name, values in table.columns.items():
            column = [values[row.entry] for row in rows]
            if any(column):
                columns[name] = column
    if SEQUENCE not in columns and all(SEQUENCE in file.labels for file in files):
        carried = [text for file in files for text in file.labels[SEQUENCE]]
        column = [""] * len(rows)
        for fate, text in zip(fates, carried, strict=False):  # those of the embeddings come first
            if fate.row >= 0:
                column[fate.row] = text
        if any(column):
            columns[SEQUENCE] = column
    positions = [row.position or 0 for row in rows] if files[0].positions is not None else None
    labelled = LabelledEmbeddings(
        [row.id for row in rows], positions, matrix, description, [row.label for row in rows], columns, fates, notes,
        source,
    )
    _count(labelled)
    return labelled


def _count(labelled: LabelledEmbeddings) -> None:
    """Notes how many rows are left out, and why."""
    for status, told in (
        ("no label", "embeddings have no label (empty, NA, nan, ...) and are not used"),
        ("not in the table of labels", "embeddings are not in the table of labels and are not used"),
        ("repeated", "rows repeat another one exactly and are used once"),
    ):
        count = sum(fate.status == status and fate.source == "embeddings" for fate in labelled.fates)
        if count:
            labelled.notes.append(f"{count} {told}.")


# --------------------------------------------------------------------------------------------------------- embeddings


def _common(files: Sequence[Embeddings], notes: list[str]) -> Description:
    """The description of all files together.

    Raises:
        UserError: They are of different models, layers, poolings or dimensions.
    """
    first = files[0]
    for file in files:
        if not len(file):
            raise UserError(
                "There are no embeddings in the file", where=file.name, fix="Give embeddings of at least one protein"
            )
        if file.description.depth > 1:
            raise UserError(
                f"The file has several layers ({', '.join(map(str, file.description.layers))})", where=file.name,
                fix="Choose one with --layer",
            )
        if (file.positions is None) != (first.positions is None):
            raise UserError(
                "Embeddings of proteins and of sites cannot be mixed", where=f"{first.name}, {file.name}",
                fix="Train on one of them",
            )
        for what, one, other in _facts(first.description, file.description):
            if one and other and one != other:
                raise UserError(
                    f"The embeddings files differ in {what}: {one} and {other}", where=f"{first.name}, {file.name}",
                    fix="Embed all proteins with the same model, layer and pooling",
                )
    if any(file.level == "residue" for file in files):
        notes.append("Embeddings of residues were averaged over each protein.")
    known = [bool(file.description.model_sha256) for file in files]
    if not all(known):
        which = "The embeddings do not" if not any(known) else "Some of the embeddings files do not"
        notes.append(
            f"{which} say which model made them: that they are all of one model, layer and pooling, and later those to "
            "be predicted too, cannot be checked."
        )
    told = [file.description for file in files if file.description.model_sha256]
    # Of files that tell more and less of the model, the least that is known of all counts.
    best = min(told, key=lambda one: len(one.model_sha256), default=first.description)
    if any(fingerprints.partial(best.model_sha256, one.model_sha256) for one in told):
        notes.append(f"Some of the embeddings files do not tell all: {fingerprints.UNCHECKED}.")
    pooling = "mean" if best.pooling == "residues" else best.pooling
    rules = {file.description.notes.get(UNUSUAL, "x") for file in files}
    if len(rules) > 1:
        notes.append("U, Z, O and B are letters of the model in some of the embeddings files and X in others.")
    noted = {UNUSUAL: "own" if "own" in rules else "x"}
    return Description(best.model, best.model_sha256, best.layers, pooling, best.dtype, best.dimension, noted)


def _facts(one: Description, other: Description) -> Iterator[tuple[str, str, str]]:
    pooling = {"residues": "mean"}
    yield "dimension", str(one.dimension), str(other.dimension)
    yield "model", one.model, other.model
    yield from fingerprints.facts(one.model_sha256, other.model_sha256)
    yield "layer", ", ".join(map(str, one.layers)), ", ".join(map(str, other.layers))
    yield "pooling", pooling.get(one.pooling, one.pooling), pooling.get(other.pooling, other.pooling)


def _keys(file: Embeddings) -> Iterator[tuple[str, int | None]]:
    places = file.positions
    for index, name in enumerate(file.ids):
        yield name, None if places is None else int(places[index])


def _key(name: str, position: int | None) -> str:
    return name if position is None else f"{name}\t{position}"


def _read_numbers(
    files: Sequence[Embeddings], fates: Sequence[RowFate], rows: int, dimension: int, path: Path
) -> NDArray[np.float32]:
    """The numbers of the labelled rows, each file streamed once."""
    matrix = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, dimension))
    each = iter(fates)
    for file in files:
        for array in file.records():
            fate = next(each)
            if fate.row < 0:
                continue
            vector = array.mean(axis=0, dtype=np.float64) if file.level == "residue" else array
            if not fate.status:
                matrix[fate.row] = vector
            elif not np.array_equal(matrix[fate.row], vector.astype(np.float32), equal_nan=True):
                raise UserError(
                    f"{_shown(fate.id)} has two different embeddings", where=f"{fate.file}, record {fate.line}",
                    fix="Make ids unique",
                )
            else:
                fate.row = -1
    bad = [
        start + int(row)
        for start in range(0, rows, _BLOCK)
        for row in np.flatnonzero(~np.isfinite(matrix[start : start + _BLOCK]).all(axis=1))
    ]
    if bad:
        fate = next(fate for fate in fates if fate.row == bad[0])
        values = matrix[bad[0]]
        what = "holds only NaN" if np.isnan(values).all() else "holds NaN or infinity"
        more = f", and so do {len(bad) - 1} more" if len(bad) > 1 else ""
        raise UserError(
            f"The embedding of {_shown(fate.id)} {what}{more}", where=f"{fate.file}, record {fate.line}",
            fix="Make it again, with float32 or another model, or leave it out",
        )
    return matrix


# ------------------------------------------------------------------------------------------------------------- labels


class _Labels:
    """A table of labels.

    Attributes:
        name: Its file.
        label_name: The column of the labels.
        labels: One a row.
        columns: The columns that training uses.
    """

    def __init__(self, path: Path, id_column: str, label_column: str, sites: bool) -> None:
        table = read_table(path)
        self.name = table.name
        ids = table.column(id_column, "--id-column") if id_column else table.find(*ID_COLUMNS)
        ids = 0 if ids is None else ids
        labels = table.column(label_column, "--label-column") if label_column else table.find(*LABEL_COLUMNS)
        if labels is None:
            refuse_other(table.header, table.name, "labels")
            raise UserError(
                f"Which column holds the labels? (columns: {', '.join(table.header[:12])})", where=table.name,
                fix="Name it with --label-column",
            )
        if not label_column:
            refuse_other(table.header, table.name, "labels", ("dataset", "predictions"))
        self.label_name = table.header[labels]
        # At site level an id comes with several positions.
        places = table.find("position") if sites else None
        if sites and places is None:
            raise UserError(
                "The embeddings are of sites, and the table has no column position", where=table.name,
                fix="Give each site's position (from 1)",
            )
        self.labels = [row[labels] for row in table.rows]
        taken = {ids, labels}
        self.columns: dict[str, list[str]] = {}
        for name in KEPT_COLUMNS:
            at = table.find(name)
            if at is not None and (at not in taken or name == "protein"):
                self.columns[name] = [row[at] for row in table.rows]
        self._lines = table.lines
        self._keys = [row[ids] if places is None else f"{row[ids]}\t{row[places]}" for row in table.rows]
        self._first: dict[str, int] = {}
        for row, key in enumerate(self._keys):
            if not key:
                raise UserError(
                    "A row without an id", where=f"{self.name}, line {self._lines[row]}", fix="Give each row an id"
                )
            first = self._first.setdefault(key, row)
            self._check_same(first, row)
        self._used: set[int] = set()
        self._matches = Matches((), ())

    def ask(self, keys: Iterable[str]) -> None:
        """Names that :meth:`find` will be asked for."""
        self._matches = Matches(self._first, keys)

    def _check_same(self, first: int, row: int) -> None:
        values = {self.label_name: self.labels, **self.columns}
        for name, column in values.items():
            if column[first] != column[row]:
                raise UserError(
                    f"{_shown(self._keys[row])} has two values of {name}: {column[first]!r} (line "
                    f"{self._lines[first]}) and {column[row]!r}",
                    where=f"{self.name}, line {self._lines[row]}", fix="Give each id once",
                )

    def find(self, key: str) -> int:
        """The row of an embedding, by its id or a shorter form of it; -1 if there is none."""
        name = self._matches.find(key)
        row = -1 if name is None else self._first[name]
        if row >= 0:
            self._used.add(row)
        return row

    def example(self) -> str:
        """An id of the table."""
        return self._keys[0]

    def fates(self, rows: Sequence[_Row], notes: list[str]) -> list[RowFate]:
        """What became of every row of the table."""
        became = {row.entry: number for number, row in enumerate(rows)}
        fates = []
        for row, key in enumerate(self._keys):
            fate = RowFate("labels", self.name, self._lines[row], key, self.labels[row])
            if self._first[key] != row:
                fate.status = "repeated"
            elif row in became:
                fate.row = became[row]
            else:
                fate.status = "no label" if row in self._used else "no embedding"
            fates.append(fate)
        if told := self._matches.told():
            notes.append(told)
        lacking = [fate for fate in fates if fate.status == "no embedding"]
        if lacking:
            shown = ", ".join(_shown(fate.id) for fate in lacking[:5]) + (" and more" if len(lacking) > 5 else "")
            notes.append(f"{len(lacking)} of {len(fates)} rows of the table of labels have no embedding: {shown}.")
        return fates


def _own_labels(
    files: Sequence[Embeddings], paths: Sequence[Path], class_names: Sequence[str], label_column: str, id_column: str
) -> tuple[list[list[str]], str]:
    """Labels of each file's rows without a table, and where they come from."""
    if id_column:
        raise UserError("--id-column is a column of the table of labels", fix="Give the table with --labels")
    if class_names:
        if len(class_names) != len(files):
            raise UserError(
                f"There are {len(class_names)} class names for {len(files)} files", where="--class-name",
                fix="Give one for each embeddings file, in their order",
            )
        return [[name] * len(file) for name, file in zip(class_names, files, strict=True)], "--class-name"
    carried = set(files[0].labels).intersection(*(file.labels for file in files[1:]))
    column = label_column or next((name for name in LABEL_COLUMNS if name in carried), "")
    if column:
        if column not in carried:
            raise UserError(
                f"--label-column: the embeddings carry no column {column!r} (columns beside the numbers: "
                f"{', '.join(sorted(carried)) or 'none'})",
                where=files[0].name, fix="Give a table of labels with --labels",
            )
        return [list(file.labels[column]) for file in files], f"column {column} of the embeddings"
    if len(files) == 1 and set(files[0].labels) == {"group"}:
        return [list(files[0].labels["group"])], f"groups of {files[0].name}"
    if len(files) > 1:
        names = [path.name.split(".")[0] for path in paths]
        repeated = next((name for name in names if names.count(name) > 1), "")
        if repeated:
            raise UserError(
                f"Two files are named {repeated!r}, so their names cannot be classes", where="--embeddings",
                fix="Name the classes with --class-name or give a table with --labels",
            )
        return [[name] * len(file) for name, file in zip(names, files, strict=True)], "names of the files"
    raise UserError(
        "There are no labels", where=files[0].name,
        fix="Give a table with --labels, one file for each class, or embeddings that carry a label column",
    )


def _check_labels(rows: Sequence[_Row], source: str) -> None:
    for label in dict.fromkeys(row.label for row in rows):
        if _BREAKS.search(label):
            raise UserError(
                f"The class name {label!r} holds a tab, a line end or a control character, which no table can hold",
                where=source, fix="Rename the class",
            )


def _nothing(files: Sequence[Embeddings], table: _Labels | None, source: str) -> UserError:
    if table is None:
        return UserError("No embedding has a label", where=source, fix="Check the column of the labels")
    if table._used:
        return UserError(
            f"All labels of the embeddings are empty ({source})", fix="Check the column of the labels (--label-column)"
        )
    return UserError(
        f"None of the ids of the table is among the embeddings: it has e.g. {_shown(table.example())}, they have e.g. "
        f"{files[0].ids[0]!r}",
        where=table.name, fix="Check the column of the ids (--id-column)",
    )


def _shown(key: str) -> str:
    name, tab, place = key.partition("\t")
    return repr(name) + (f" position {place}" if tab else "")

