"""Embeddings files of the parts of one input -> the one file that a run over the whole would have written."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from plm import fingerprints
from plm.data.embeddings.files import Description, read_embeddings, write_embeddings
from plm.data.tables import read_table
from plm.data.unique_ids import unused
from plm.errors import UserError
from plm.received.fields import shown

POLICIES = ("error", "rename", "first")
_COUNTS = ("windowed_proteins",)
"""Notes that count records: those of the parts add up to that of the whole."""
_SAME = {
    "model": "with the model {!r}",
    "layers": "from layers {}",
    "pooling": "with the pooling {!r}",
    "dimension": "with {} numbers a vector",
    "dtype": "with {} numbers",
}
PART = "part"
_COUNTED = ("line", "length", "encoded", "windows", "cleaned")
"""Columns of a status table that hold whole numbers."""
_WHOLE = re.compile(r"[0-9]{1,12}")
_STATES = ("embedded", "rejected")


@dataclass(frozen=True)
class EmbeddingsPart:
    """What is known of one file before its numbers are read.

    Attributes:
        path: Embeddings file of the part.
        name: Name of the file in messages and in the status table.
        description: Model, layer, pooling, dtype and dimension of the vectors.
        ids: Ids of its records, in order.
        lengths: Residues of each record at residue level, else None.
        positions: 1-based places at site level, else None.
        version: Version of the suite that wrote it.
    """

    path: Path
    name: str
    description: Description
    ids: list[str]
    lengths: list[int] | None
    positions: list[int] | None
    version: str


@dataclass
class MergedIds:
    """Names under which the records go into the merged file.

    Attributes:
        ids: For each part and record the new id, or None where the record is left out.
        remarks: For (part, record) what became of a repeated id.
    """

    ids: list[list[str | None]]
    remarks: dict[tuple[int, int], str] = field(default_factory=dict)


def read_parts(paths: Sequence[Path]) -> list[EmbeddingsPart]:
    """Reads all but the numbers; files are opened one after the other, since there may be thousands.

    Raises:
        UserError: A file is broken or no embeddings, or holds columns that an embeddings file has no room for.
    """
    parts = []
    for path in paths:
        with read_embeddings(path) as read:
            if read.labels:
                raise UserError(
                    f"The file has further columns ({', '.join(list(read.labels)[:4])}), which would be lost",
                    where=path.name, fix="Merge embeddings files of plm_embed, or remove the columns",
                )
            parts.append(
                EmbeddingsPart(
                    path, path.name, read.description, read.ids, read.lengths, read.positions, read.suite_version
                )
            )
    return parts


def common_description(parts: Sequence[EmbeddingsPart]) -> tuple[Description, list[str]]:
    """What the merged file says of itself, and remarks for the log.

    Raises:
        UserError: Parts differ in model, weights, layers, pooling, dimension or type: names both files.
    """
    # A table without rows does not know its level or layers; what it holds, nothing, fits any other.
    telling = [part for part in parts if part.ids or part.description.model] or list(parts)
    first = telling[0]
    fullest = max(telling, key=lambda part: len(part.description.model_sha256))
    for part in telling[1:]:
        for name, words in _SAME.items():
            mine, theirs = getattr(first.description, name), getattr(part.description, name)
            if mine != theirs:
                raise UserError(
                    f"{part.name} was made {words.format(theirs)}, but {first.name} {words.format(mine)}",
                    where=part.name, fix="Merge only parts of one run, made with the same settings",
                )
        for other in (first, fullest):
            differs = fingerprints.difference(other.description.model_sha256, part.description.model_sha256)
            if not differs:
                continue
            theirs, mine = (each.description.model_sha256.split(".") for each in (part, other))
            place = 0 if differs == fingerprints.WEIGHTS else 1
            raise UserError(
                f"{part.name} was made with {differs} of the fingerprint {theirs[place][:12]}, but {other.name} with "
                f"{differs} of the fingerprint {mine[place][:12]}",
                where=part.name, fix="Merge only parts of one run, made with the same settings",
            )
    remarks = []
    known = [part.description.model_sha256 for part in telling]
    if any(bool(one) != bool(known[0]) for one in known):
        raise UserError(
            "Some of the parts say which model made them and some do not", where=first.name,
            fix="Merge only parts of one run, made with the same settings",
        )
    weakest = min(known, key=len)
    if len(set(known)) > 1:
        remarks.append(f"of some of the parts not all is known: {fingerprints.UNCHECKED}")
    versions = sorted({part.version for part in telling})
    if len(versions) > 1:
        remarks.append(f"the parts were written by different versions of the suite ({', '.join(versions)})")
    notes: dict[str, str] = {}
    for key in dict.fromkeys(key for part in telling for key in part.description.notes):
        values = [part.description.notes.get(key, "") for part in telling]
        if key in _COUNTS and all(value.isdigit() for value in values):
            notes[key] = str(sum(map(int, values)))
            continue
        different = sorted(set(values))
        notes[key] = ", ".join(filter(None, different))
        if len(different) > 1:
            remarks.append(f"the parts differ in {key} ({', '.join(value or 'none' for value in different)})")
    return replace(first.description, notes=notes, model_sha256=weakest), remarks


def settle_ids(parts: Sequence[EmbeddingsPart], policy: str) -> MergedIds:
    """Decides what becomes of ids (at site level: ids with the same position) that come again.

    Args:
        parts: In the order of the merged file.
        policy: ``error``, ``rename`` (``_2``, ``_3``, ... is added) or ``first`` (later records are left out).

    Raises:
        UserError: Policy ``error`` and an id comes again; names it and both files.
    """
    owners: dict[tuple[str, int], int] = {}
    taken = {identifier for part in parts for identifier in part.ids}
    settled = MergedIds([])
    for number, part in enumerate(parts):
        names: list[str | None] = []
        for index, identifier in enumerate(part.ids):
            place = 0 if part.positions is None else part.positions[index]
            # Within a part no id comes twice: its reader has seen to that.
            owner = owners.setdefault((identifier, place), number)
            if owner == number:
                names.append(identifier)
                continue
            what = repr(identifier) if part.positions is None else f"{identifier!r} at position {place}"
            if policy == "error":
                raise UserError(
                    f"The id {what} appears in more than one part", where=f"{parts[owner].name} and {part.name}",
                    fix="Make ids unique, or choose --duplicate-ids rename or first",
                )
            before = f"the id {identifier} was used before ({parts[owner].name})"
            if policy == "first":
                names.append(None)
                settled.remarks[number, index] = before
                continue
            renamed, _ = unused(identifier, taken)
            taken.add(renamed)
            names.append(renamed)
            settled.remarks[number, index] = f"renamed: {before}"
        settled.ids.append(names)
    return settled


def write_merged(
    path: Path, format: str, description: Description, parts: Sequence[EmbeddingsPart], settled: MergedIds
) -> int:
    """Writes the kept records of all parts in their order; one part is open at a time.

    Returns:
        Records written.

    Raises:
        UserError: A part's numbers are damaged.
    """
    kept = [
        (part, index, name)
        for part, names in zip(parts, settled.ids, strict=True)
        for index, name in enumerate(names)
        if name is not None
    ]
    residue, site = description.level == "residue", description.level == "site"
    write_embeddings(
        path, format, description, [name for _, _, name in kept], _rows(parts, settled),
        lengths=[part.lengths[index] for part, index, _ in kept if part.lengths] if residue else None,
        positions=[part.positions[index] for part, index, _ in kept if part.positions] if site else None,
    )
    return len(kept)


def _rows(parts: Sequence[EmbeddingsPart], settled: MergedIds) -> Iterator[np.ndarray]:
    for part, names in zip(parts, settled.ids, strict=True):
        with read_embeddings(part.path) as read:
            for name, array in zip(names, read.records(), strict=True):
                if name is not None:
                    yield array


def merge_status(
    path: Path, tables: Sequence[Path], parts: Sequence[EmbeddingsPart], settled: MergedIds
) -> tuple[int, int]:
    """Joins the status tables of the parts and adds the column ``part``: line numbers are those of the part.

    Args:
        path: Joined table to write, tab-separated.
        tables: One a part, in the same order.
        parts: Embeddings of the parts, in order.
        settled: What became of ids that came again; told in ``id``, ``status`` and ``details``.

    Returns:
        Records, and those that are embedded in the merged file.

    Raises:
        UserError: A table is broken, has other columns than the first, a value that plm_embed does not write, or does
            not name just the records of its part.
    """
    header: tuple[str, ...] = ()
    records = embedded = 0
    with path.open("w", encoding="utf-8", newline="\n") as handle:
        for number, (table_path, part) in enumerate(zip(tables, parts, strict=True)):
            table = read_table(table_path)
            if not header:
                header = table.header
                missing = [name for name in ("id", "status", "details") if name not in header]
                if missing:
                    raise UserError(
                        f"The status table has no column {missing[0]}", where=table.name,
                        fix="Give the status tables that plm_embed wrote",
                    )
                own = PART not in header
                handle.write("\t".join([*header, *([PART] if own else [])]) + "\n")
            if table.header != header:
                raise UserError(
                    f"The columns differ from those of {tables[0].name}", where=table.name,
                    fix="Give the status tables of one run",
                )
            name_at, status_at, details_at = (header.index(name) for name in ("id", "status", "details"))
            twin_at = header.index("duplicate_of") if "duplicate_of" in header else None
            renamed = {
                old: new
                for old, new in zip(part.ids, settled.ids[number], strict=True)
                if new is not None and new != old
            }
            counts = [(place, name) for place, name in enumerate(header) if name in _COUNTED]
            index = 0
            for row, line in zip(table.rows, table.lines, strict=True):
                fields = list(row)
                _check_status(fields, status_at, counts, f"{table.name}, line {line}")
                if twin_at is not None and part.positions is None:
                    fields[twin_at] = renamed.get(fields[twin_at], fields[twin_at])
                if fields[status_at] == "embedded":
                    if index >= len(part.ids) or part.ids[index] != fields[name_at]:
                        raise _unlike(table.name, part.name, fields[name_at])
                    name, remark = settled.ids[number][index], settled.remarks.get((number, index), "")
                    fields[details_at] = "; ".join(filter(None, (remark, fields[details_at])))
                    fields[name_at] = name or fields[name_at]
                    if name is None:
                        fields[status_at] = "rejected"
                    else:
                        embedded += 1
                    index += 1
                records += 1
                handle.write("\t".join([*fields, *([part.name] if own else [])]) + "\n")
            if index < len(part.ids):
                raise _unlike(table.name, part.name, part.ids[index])
    return records, embedded


def _check_status(fields: Sequence[str], status_at: int, counts: Sequence[tuple[int, str]], where: str) -> None:
    """Whether a row is one that plm_embed could have written."""
    odd = ((name, fields[at], "a whole number") for at, name in counts if not _WHOLE.fullmatch(fields[at]))
    wrong = next(odd, None)
    if fields[status_at] not in _STATES:
        wrong = ("status", fields[status_at], " or ".join(_STATES))
    if wrong is not None:
        raise UserError(
            f"The status table is not what it must be: {wrong[0]} is {shown(wrong[1])} where {wrong[2]} belongs",
            where=where, fix="Give the status tables that plm_embed wrote",
        )


def _unlike(table: str, part: str, identifier: str) -> UserError:
    return UserError(
        f"The status table and the embeddings {part} do not name the same records: {identifier!r} is in only one",
        where=table, fix="Give the status tables in the order of the embeddings files, of the same run",
    )
