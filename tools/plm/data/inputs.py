"""Input files of any kind -> raw records with unique ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from plm.data.examples import Journal
from plm.data.fasta import looks_like_nucleotides, raw_lines, read_fasta
from plm.data.labels import RawRecord
from plm.data.tables import read_table
from plm.errors import UserError

ID_COLUMNS = ("id", "accession", "name", "header", "entry", "protein", "sequence_id")
SEQUENCE_COLUMNS = ("sequence", "seq", "window", "peptide")


def read_records(
    path: str | Path, kind: str = "auto", id_column: str = "", sequence_column: str = "", from_test_file: bool = False
) -> list[RawRecord]:
    """Reads FASTA or a table (TSV, CSV), plain or gzipped.

    Args:
        path: The file.
        kind: ``fasta``, ``table``, or ``auto``: FASTA if it starts with ``>``, a table if the first line has a
            separator.
        id_column: Column of ids by name or number; empty: the usual names, else rows are called ``row<number>``.
        sequence_column: Column of sequences; empty: the usual names.
        from_test_file: Mark the records as the user's test set.

    Raises:
        UserError: The file is neither, or broken, or has no sequence column.
    """
    if kind == "auto":
        first = next((line for _, line in raw_lines(path) if line.strip()), "").removeprefix("\xef\xbb\xbf")
        kind = "table" if not first.startswith(">") and any(mark in first for mark in "\t,;") else "fasta"
    if kind == "fasta":
        records = [RawRecord(fasta.id, fasta.description, fasta.sequence, fasta.line) for fasta in read_fasta(path)]
    else:
        records = _from_table(path, id_column, sequence_column)
    if records and all(looks_like_nucleotides(record.sequence) for record in records):
        raise UserError(
            "All sequences are nucleotides (A, C, G, T, U, N)",
            where=Path(path).name,
            fix="Translate them to proteins first",
        )
    return [replace(record, from_test_file=True) for record in records] if from_test_file else records


def _from_table(path: str | Path, id_column: str, sequence_column: str) -> list[RawRecord]:
    table = read_table(path)
    place = table.column(sequence_column, "--sequence-column") if sequence_column else table.find(*SEQUENCE_COLUMNS)
    if place is None:
        raise UserError(
            "This is neither FASTA (no '>') nor a table with a column named sequence "
            f"(columns: {', '.join(table.header[:12])})",
            where=table.name,
            fix="Name the column with --sequence-column",
        )
    name = table.column(id_column, "--id-column") if id_column else table.find(*ID_COLUMNS)
    records = []
    for number, (row, line) in enumerate(zip(table.rows, table.lines, strict=True), start=1):
        identifier = row[name] if name is not None else f"row{number}"
        if not identifier:
            raise UserError("A row without an id", where=f"{table.name}, line {line}", fix="Fill the id column")
        columns = {
            column: value
            for index, (column, value) in enumerate(zip(table.header, row, strict=True))
            if index not in (name, place) or column not in ("id", "sequence")
        }
        records.append(RawRecord(identifier, identifier, "".join(row[place].split()), line, columns))
    return records


def with_unique_ids(records: Sequence[RawRecord], policy: str, journal: Journal) -> list[RawRecord]:
    """Settles repeated ids.

    Args:
        records: Records in file order.
        policy: ``error``, ``rename`` (``_2``, ``_3``, ... is added) or ``first`` (later ones are rejected).
        journal: Takes renamed and rejected records.

    Raises:
        UserError: Policy ``error`` and an id is repeated; names it and both lines.
    """
    lines: dict[str, int] = {}
    kept: list[RawRecord] = []
    taken = {record.id for record in records}
    for record in records:
        if record.id not in lines:
            lines[record.id] = record.line
            kept.append(record)
        elif policy == "error":
            raise UserError(
                f"The id {record.id!r} appears more than once",
                where=f"lines {lines[record.id]} and {record.line}"
                + (" of the test file" if record.from_test_file else ""),
                fix="Make ids unique, or choose --duplicate-ids rename or first",
            )
        elif policy == "first":
            journal.rejected(record.id, f"the id was used before (line {lines[record.id]}); this is line {record.line}")
        else:
            number = 2
            while f"{record.id}_{number}" in taken:
                number += 1
            renamed = f"{record.id}_{number}"
            taken.add(renamed)
            lines[renamed] = record.line
            journal.changed(renamed, f"renamed: the id {record.id} was used before; line {record.line}")
            kept.append(replace(record, id=renamed))
    return kept
