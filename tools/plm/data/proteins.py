"""The one reader of proteins: FASTA, separated tables (both plain or gzipped) and Parquet, told by content.

Every stage that takes proteins takes these records, cleans them by one rule, refuses files of nucleotides in one way,
and settles repeated ids by one policy (:mod:`plm.data.unique_ids`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from plm.data.fasta import Cleaned, CleaningRule, NucleotideTally, ProteinRecord, clean, read_fasta
from plm.data.own_tables import refuse_other
from plm.data.tables import column_place, find_column, plain_field, stream_table
from plm.data.text_files import first_line, is_parquet
from plm.errors import UserError

ID_COLUMNS = ("id", "accession", "name", "header", "entry", "protein", "sequence_id")
SEQUENCE_COLUMNS = ("sequence", "seq", "window", "peptide")
POSITION = "position"
Kind = Literal["fasta", "table", "parquet"]


def kind_of(path: str | Path) -> Kind:
    """What a file of proteins is: a table's first line is no header of FASTA and has something between columns.

    Raises:
        UserError: Missing, empty or no text file.
    """
    if is_parquet(path):
        return "parquet"
    first = first_line(path).lstrip()
    return "table" if not first.startswith((">", ";")) and any(mark in first for mark in "\t,;") else "fasta"


def table_columns(path: str | Path) -> tuple[str, ...]:
    """The column names of a separated table or a Parquet file; none for FASTA.

    Raises:
        UserError: As :func:`read_proteins`.
    """
    return () if kind_of(path) == "fasta" else stream_table(path)[0]


def read_proteins(
    path: str | Path, kind: str = "auto", *, wanted: Sequence[Sequence[str]] | None = None, id_column: str = "",
    sequence_column: str = "", flags: bool = False,
) -> Iterator[ProteinRecord]:
    """Streams the records of a file, untouched.

    Args:
        path: FASTA file or table to read.
        kind: ``fasta``, ``table`` (Parquet too), or ``auto``.
        wanted: Columns to read, each by its possible names (lower case), the first of which is its key in
            ``ProteinRecord.columns``; in FASTA they are looked for in the header as ``NAME=value``, as UniProt's
            ``OX=9606``. A table's column ``position`` comes always. None: all columns of a table.
        id_column: Column of ids by name or number; empty: the usual names, else rows are called ``row<number>``.
        sequence_column: Column of sequences; empty: the usual names.
        flags: Whether the stage has ``--id-column`` and ``--sequence-column``, for messages.

    Raises:
        UserError: Missing, empty, broken, neither kind, or a table without a sequence column.
    """
    path = Path(path)
    if (kind_of(path) if kind == "auto" else kind) == "fasta":
        return _fasta_records(path, wanted or ())
    return _table_records(path, wanted, id_column, sequence_column, flags)


def _fasta_records(path: Path, wanted: Sequence[Sequence[str]]) -> Iterator[ProteinRecord]:
    if not wanted:
        return read_fasta(path)
    patterns = {
        names[0]: re.compile(rf"(?<!\S)(?:{'|'.join(map(re.escape, names))})=(\S+)", re.IGNORECASE) for names in wanted
    }
    return (
        ProteinRecord(record.id, record.header, record.sequence, record.line, _told(patterns, record.header))
        for record in read_fasta(path)
    )


def _told(patterns: Mapping[str, re.Pattern[str]], header: str) -> dict[str, str]:
    matches = ((name, pattern.search(header)) for name, pattern in patterns.items())
    return {name: match[1] for name, match in matches if match}


def _table_records(
    path: Path, wanted: Sequence[Sequence[str]] | None, id_column: str, sequence_column: str, flags: bool
) -> Iterator[ProteinRecord]:
    header = stream_table(path)[0]
    if sequence_column:
        sequence: int | None = column_place(header, sequence_column, "--sequence-column", path.name)
    else:
        sequence = find_column(header, SEQUENCE_COLUMNS)
    if sequence is None:
        refuse_other(header, path.name, "proteins")
        raise UserError(
            "This is neither FASTA (no '>') nor a table with a column named sequence "
            f"(columns: {', '.join(header[:12])})"[:300],
            where=path.name,
            fix="Name the column with --sequence-column" if flags else
            "Give FASTA, or a table with the columns id and sequence",
        )
    named = column_place(header, id_column, "--id-column", path.name) if id_column else find_column(header, ID_COLUMNS)
    if wanted is None:
        columns = {
            name: place for place, name in enumerate(header)
            if place not in (named, sequence) or name not in ("id", "sequence")
        }
    else:
        places = {names[0]: find_column(header, names) for names in (*wanted, (POSITION,))}
        columns = {name: place for name, place in places.items() if place is not None}
    needed = {place for place in (named, sequence, *columns.values()) if place is not None}
    for number, (line, fields) in enumerate(stream_table(path, only=needed)[1], start=1):
        identifier = f"row{number}" if named is None else fields[named]
        beside = {name: plain_field(fields[place]) for name, place in columns.items()}
        yield ProteinRecord(identifier, identifier, "".join(fields[sequence].split()), line, beside)


class Cleaning:
    """Records of one input with their cleaned sequences; an input of nucleotides is refused when all are read.

    Args:
        name: File name in messages.
        rule: The cleaning rule; the default one if None.
        switch: Whether the stage has the option ``--nucleotides``.
    """

    def __init__(self, name: str, rule: CleaningRule | None = None, *, switch: bool = True) -> None:
        self._name, self._rule, self._switch = name, rule or CleaningRule(), switch
        self._tally = NucleotideTally()

    def of(
        self, path: str | Path, wanted: Sequence[Sequence[str]] | None = ()
    ) -> Iterator[tuple[ProteinRecord, Cleaned]]:
        """The records of a file and what cleaning makes of each; ``wanted`` as for :func:`read_proteins`."""
        for record in read_proteins(path, wanted=wanted):
            cleaned = clean(record.sequence, self._rule)
            self._tally.add(record.sequence, cleaned.rejected, cleaned.changes)
            yield record, cleaned

    def finish(self) -> str:
        """What is to be looked at, in a sentence; may be empty.

        Raises:
            UserError: The records are nucleotides.
        """
        self._tally.check(self._name, self._rule, switch=self._switch)
        return self._tally.told()
