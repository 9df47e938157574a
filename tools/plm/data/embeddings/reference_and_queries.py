"""What a projection starts from: reference and query embeddings that fit each other, and labels matched by id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from plm import fingerprints
from plm.data.embeddings.files import Description, read_embeddings
from plm.data.identifiers import Matches
from plm.data.label_values import is_missing
from plm.data.own_tables import refuse_other
from plm.data.splits import joined_groups
from plm.data.tables import Table, read_table
from plm.errors import UserError

_IDS = ("id", "accession", "protein", "name", "identifier", "entry", "protein_id")
_LABELS = ("label", "labels", "class", "target", "family", "value", "score")
_GROUPS = ("group", "cluster", "protein")
"""Columns that tell relatives, as :func:`plm.jobs.classifier.material.prepare` takes them."""
UNGROUPED = "none"
"""Stands for no column of groups."""
_SHOWN = 5


@dataclass
class Side:
    """One embeddings file, read whole.

    Attributes:
        name: File name in messages.
        ids: N ids in file order.
        positions: 1-based places at site level, else None.
        matrix: (N, D) float32, finite unless that was not asked for.
        description: Model, layer, pooling, dtype and dimension of the vectors.
        columns: Further columns that the file carries, one text a row.
        labels: N texts; empty where there is none.
        groups: N names of groups of relatives; each row's own without any.
        grouped_by: What tells the groups, in words; empty if every protein counts as independent.
    """

    name: str
    ids: list[str]
    positions: list[int] | None
    matrix: NDArray[np.float32]
    description: Description
    columns: dict[str, list[str]]
    labels: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    grouped_by: str = ""

    def __len__(self) -> int:
        return len(self.ids)

    def keys(self) -> list[str]:
        """What tells the rows apart: the id, at site level with the position."""
        if self.positions is None:
            return self.ids
        return [f"{name}\t{place}" for name, place in zip(self.ids, self.positions, strict=True)]


def read_side(path: Path, layer: int | None, notes: list[str], *, finite: bool = True) -> Side:
    """Reads an embeddings file; residues are averaged to proteins, which is noted.

    Args:
        path: Any format that :func:`plm.data.embeddings.files.read_embeddings` knows.
        layer: Layer to read from a file that holds several; None if it holds one.
        notes: Gets what a reader of the results should know.
        finite: Whether NaN and infinity are refused.

    Raises:
        UserError: Unreadable, several layers and none chosen, or numbers that are not finite (the first is named).
    """
    with read_embeddings(path, layer=layer) as file:
        if not len(file):
            raise UserError(
                "There are no embeddings in the file", where=file.name, fix="Give embeddings of at least one protein"
            )
        matrix = file.matrix()
        bad = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
        if finite and len(bad):
            file.check_finite()  # names the record, and at residue level the residue
            raise UserError(
                f"The embedding of {file.ids[bad[0]]!r} is too large a number to average", where=file.name,
                fix="Make the embeddings again; those of a model are small numbers",
            )
        if file.level == "residue":
            notes.append(f"{file.name} holds embeddings of residues; their mean over each protein was used.")
        positions = None if file.positions is None else list(file.positions)
        columns = {name: list(values) for name, values in file.labels.items()}
        return Side(file.name, list(file.ids), positions, matrix, file.description, columns)


def check_fit(references: Side, queries: Side, notes: list[str], *, names: str = "References and queries") -> None:
    """Checks that two files hold the same kind of numbers.

    Args:
        references: Embeddings that are the reference.
        queries: Embeddings that are held against them.
        notes: List to which sentences on what cannot be checked are appended.
        names: The two files in messages, such as ``References and queries``.

    Raises:
        UserError: Names what differs: dimension, model, weights, layer or pooling.
    """
    first, second = references.description, queries.description
    if first.dimension != second.dimension:
        raise _differ(names, "dimension", str(first.dimension), str(second.dimension), references, queries)
    # Averaged residues are means over residues.
    pooling = {"residues": "mean"}
    facts = (
        ("model", first.model, second.model),
        *fingerprints.facts(first.model_sha256, second.model_sha256),
        ("layer", *(", ".join(map(str, one.layers)) for one in (first, second))),
        ("pooling", *(pooling.get(one.pooling, one.pooling) for one in (first, second))),
    )
    if fingerprints.partial(first.model_sha256, second.model_sha256):
        notes.append(f"One of the two does not tell all: {fingerprints.UNCHECKED}.")
    unknown = []
    for what, one, other in facts:
        if one and other and one != other:
            raise _differ(names, what, one, other, references, queries)
        if not (one and other):
            unknown.append(what)
    if unknown:
        notes.append(
            f"The files do not say whether they agree in {', '.join(unknown)}: make sure that the same model, layer "
            "and pooling made both, else nothing said of the two together means anything."
        )


def _differ(names: str, what: str, one: str, other: str, references: Side, queries: Side) -> UserError:
    return UserError(
        f"{names} differ in {what}: {one} and {other}", where=f"{references.name}, {queries.name}",
        fix="Embed both with the same model, layer and pooling",
    )


def attach_labels(
    references: Side, queries: Side | None, *, table: Path | None, id_column: str, label_column: str, group_column: str,
    wanted: bool, notes: list[str],
) -> str:
    """Gives every row its label and its group, from a table or from columns that the embeddings carry.

    Args:
        references: Embeddings whose ``labels`` and ``groups`` are filled.
        queries: Further embeddings, filled in the same way, or None.
        table: Table of labels, or None for the embeddings' own columns.
        id_column: Column of the table, by name or number; empty: found by its usual names, else the first.
        label_column: Column of the labels; empty: found by its usual names.
        group_column: Column of groups of relatives; empty: ``group``, ``cluster`` and ``protein``, those that
            there are, and rows equal in any of them are together; ``none``: none.
        wanted: False: no labels, whatever there is.
        notes: Gets labels of unknown ids, among others.

    Returns:
        Where the labels come from, in words; empty without labels.

    Raises:
        UserError: A column is missing, an id has two labels, or no label belongs to any embedding.
    """
    sides = [side for side in (references, queries) if side is not None]
    for side in sides:
        side.labels = [""] * len(side)
        side.groups = list(side.ids)
    if table is not None:
        return _from_table(sides, read_table(table), id_column, label_column, group_column, notes)
    if wanted and not label_column:
        carried = {name.lower(): name for name in references.columns}
        label_column = next((carried[name] for name in _LABELS if name in carried), "")
    elif not wanted:
        label_column = ""
    if label_column:
        _carried(sides, label_column, "--label-column")
        for side in sides:
            if label_column in side.columns:
                side.labels = list(side.columns[label_column])
    there = {name.lower(): name for side in sides for name in side.columns if name != label_column}
    names = [there[name] for name in _GROUPS if name in there]
    if group_column == UNGROUPED and UNGROUPED not in there.values():
        names = []
    elif group_column:
        _carried(sides, group_column, "--group-column")
        names = [group_column]
    keys = [[text for side in sides for text in side.columns.get(name, [""] * len(side))] for name in names]
    _group(sides, names, keys)
    return f"column {label_column} of {references.name}" if label_column else ""


def _group(sides: Sequence[Side], names: Sequence[str], keys: Sequence[Sequence[str]]) -> None:
    """Puts rows into groups that are equal in any key; an empty key links nothing, a protein's sites are together.

    Args:
        sides: Embeddings whose ``groups`` are filled.
        names: Name of each key in messages.
        keys: For each name the key of every row of all sides.
    """
    told = [
        name for name, key in zip(names, keys, strict=True) if len({text for text in key if text}) < sum(map(bool, key))
    ]
    if not told:
        return
    ids = [name for side in sides for name in side.ids]
    joined = iter(joined_groups(ids, *keys))
    for side in sides:
        side.groups = [next(joined) for _ in side.ids]
        side.grouped_by = f"column{'' if len(told) == 1 else 's'} {' and '.join(told)}"


def _carried(sides: Sequence[Side], column: str, flag: str) -> None:
    if any(column in side.columns for side in sides):
        return
    there = ", ".join(sides[0].columns) or "none"
    raise UserError(
        f"{flag}: the embeddings carry no column {column!r} (columns beside the numbers: {there})", where=sides[0].name,
        fix="Give a table of labels with --labels, or another column",
    )


def _from_table(
    sides: Sequence[Side], table: Table, id_column: str, label_column: str, group_column: str, notes: list[str]
) -> str:
    ids = table.column(id_column, "--id-column") if id_column else table.find(*_IDS)
    ids = 0 if ids is None else ids
    labels = table.column(label_column, "--label-column") if label_column else table.find(*_LABELS)
    if not label_column:
        refuse_other(table.header, table.name, "labels", ("dataset", "predictions"))
    if labels is None:
        raise UserError(
            f"Which column holds the labels? (columns: {', '.join(table.header[:12])})", where=table.name,
            fix="Name it with --label-column",
        )
    groups = _group_columns(table, group_column, labels)
    # At site level an id comes with several positions; a table without positions labels whole proteins.
    places = table.find("position") if any(side.positions is not None for side in sides) else None
    by_id: dict[str, tuple[str, tuple[str, ...], int]] = {}
    for row, line in zip(table.rows, table.lines, strict=True):
        key = row[ids] if places is None else f"{row[ids]}\t{row[places]}"
        entry = (row[labels], tuple(row[group] for group in groups), line)
        before = by_id.setdefault(key, entry)
        if before[:2] != entry[:2]:
            what = "labels" if before[0] != entry[0] else "groups"
            one, other = (old[0] if what == "labels" else old[1] for old in (before, entry))
            raise UserError(
                f"{key.replace(chr(9), ' position ')!r} has two {what}: "
                f"{_told(one)} (line {before[2]}) and {_told(other)}",
                where=f"{table.name}, line {line}", fix="Give each id once",
            )
    asked = [side.ids if places is None else side.keys() for side in sides]
    matches = Matches(by_id, [key for keys in asked for key in keys])
    used: set[str] = set()
    keys: list[list[str]] = [[] for _ in groups]
    for side, own in zip(sides, asked, strict=True):
        for index, key in enumerate(own):
            name = matches.find(key) or ""
            for place, column in enumerate(keys):
                column.append(by_id[name][1][place] if name else "")
            if not name:
                continue
            used.add(name)
            side.labels[index] = "" if is_missing(by_id[name][0]) else by_id[name][0]
    if not used:
        raise UserError(
            f"None of the {len(by_id)} ids of the table is among the embeddings: it has e.g. {next(iter(by_id))!r}, "
            f"they have e.g. {sides[0].ids[0]!r}",
            where=table.name, fix="Check the column of the ids (--id-column)",
        )
    if told := matches.told():
        notes.append(told)
    unknown = [name for name in by_id if name not in used]
    if unknown:
        shown = ", ".join(name.replace("\t", " position ") for name in unknown[:_SHOWN])
        more = " and more" if len(unknown) > _SHOWN else ""
        have = "has" if len(unknown) == 1 else "have"
        notes.append(f"{len(unknown)} of {len(by_id)} ids of the table of labels {have} no embedding: {shown}{more}.")
    _group(sides, [table.header[group] for group in groups], keys)
    return f"column {table.header[labels]} of {table.name}"


def _group_columns(table: Table, group_column: str, labels: int) -> list[int]:
    """Columns of groups: the one named, or those that are there; never that of the labels."""
    if group_column == UNGROUPED and UNGROUPED not in table.header:
        return []
    if group_column:
        return [table.column(group_column, "--group-column")]
    there = [table.find(name) for name in _GROUPS]
    return [column for column in there if column is not None and column != labels]


def _told(value: str | tuple[str, ...]) -> str:
    return repr(value) if isinstance(value, str) else " and ".join(map(repr, value))
