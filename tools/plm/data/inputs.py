"""Input files of any kind -> raw records with unique ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from plm.data.examples import Journal
from plm.data.fasta import NUCLEOTIDES, CleaningRule, NucleotideTally, looks_like_nucleotides, read_fasta
from plm.data.header_rules import MARK, RawRecord
from plm.data.own_tables import refuse_other
from plm.data.protein_store import ID_COLUMNS, SEQUENCE_COLUMNS, is_table
from plm.data.tables import BREAKS, plain_field, read_table
from plm.data.text_files import is_parquet
from plm.errors import UserError


def read_records(
    path: str | Path, kind: str = "auto", id_column: str = "", sequence_column: str = "", from_test_file: bool = False,
    nucleotides: str = "reject", *, switch: bool = False,
) -> list[RawRecord]:  # fmt: skip
    """Reads FASTA or a table (TSV, CSV, plain or gzipped, or Parquet).

    Args:
        path: The file.
        kind: ``fasta``, ``table``, or ``auto``: FASTA if it starts with ``>``, a table if the first line has a
            separator.
        id_column: Column of ids by name or number; empty: the usual names, else rows are called ``row<number>``.
        sequence_column: Column of sequences; empty: the usual names.
        from_test_file: Mark the records as the user's test set.
        nucleotides: ``reject`` or ``keep``: whether a file of nothing but nucleotides is refused.
        switch: Whether the stage has an option for that.

    Raises:
        UserError: The file is neither, or broken, or has no sequence column.
    """
    if kind == "auto":
        kind = "table" if is_parquet(path) or is_table(Path(path)) else "fasta"
    if kind == "fasta":
        records = [RawRecord(fasta.id, fasta.description, fasta.sequence, fasta.line) for fasta in read_fasta(path)]
    else:
        records = _from_table(path, id_column, sequence_column)
    tally = NucleotideTally()
    for record in records:
        sequence = record.sequence.replace(MARK, "")
        tally.add(sequence, NUCLEOTIDES if looks_like_nucleotides(sequence) else "")
    tally.check(Path(path).name, CleaningRule(nucleotides=nucleotides), switch=switch)
    return [replace(record, from_test_file=True) for record in records] if from_test_file else records


def _from_table(path: str | Path, id_column: str, sequence_column: str) -> list[RawRecord]:
    table = read_table(path)
    place = table.column(sequence_column, "--sequence-column") if sequence_column else table.find(*SEQUENCE_COLUMNS)
    if place is None:
        refuse_other(table.header, table.name, "proteins")
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
        if BREAKS.search(identifier):
            raise UserError(
                f"The id {identifier!r} holds a tab or a line end", where=f"{table.name}, line {line}", fix="Rename it"
            )
        columns = {
            column: plain_field(value)
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
