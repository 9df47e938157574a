"""The records of a preprocessing run: read, counted, and each under an id of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from plm.data.examples import Journal
from plm.data.fasta import NUCLEOTIDES, CleaningRule, NucleotideTally, ProteinRecord, looks_like_nucleotides
from plm.data.header_rules import MARK
from plm.data.proteins import read_proteins
from plm.data.unique_ids import check_id, settle


def read_records(
    path: str | Path, kind: str = "auto", id_column: str = "", sequence_column: str = "", from_test_file: bool = False,
    nucleotides: str = "reject",
) -> list[ProteinRecord]:
    """Reads FASTA or a table (TSV, CSV, plain or gzipped, or Parquet) with all its columns.

    Args:
        path: FASTA file or table to read.
        kind: ``fasta``, ``table`` or ``auto``.
        id_column: Column of ids by name or number; empty: the usual names, else rows are called ``row<number>``.
        sequence_column: Column of sequences; empty: the usual names.
        from_test_file: Mark the records as the user's test set.
        nucleotides: ``reject`` or ``keep``: whether a file of nothing but nucleotides is refused.

    Raises:
        UserError: As :func:`plm.data.proteins.read_proteins`; an id that no table can hold; nothing but nucleotides.
    """
    name, records, tally = Path(path).name, [], NucleotideTally()
    for record in read_proteins(path, kind, id_column=id_column, sequence_column=sequence_column, flags=True):
        check_id(record, name)
        sequence = record.sequence.replace(MARK, "")
        tally.add(sequence, NUCLEOTIDES if looks_like_nucleotides(sequence) else "")
        records.append(replace(record, from_test_file=True) if from_test_file else record)
    tally.check(name, CleaningRule(nucleotides=nucleotides))
    return records


def with_unique_ids(records: Sequence[ProteinRecord], policy: str, name: str, journal: Journal) -> list[ProteinRecord]:
    """Settles repeated ids.

    Args:
        records: Records in the order of the files.
        policy: ``error``, ``rename`` or ``first``; see :func:`plm.data.unique_ids.settle`.
        name: The file, for the message.
        journal: Takes renamed and rejected records.

    Raises:
        UserError: Policy ``error`` and an id is repeated; names it and both lines.
    """
    seen: dict[str, int] = {}
    first = np.array([seen.setdefault(record.id, row) for row, record in enumerate(records)], np.int64)
    lines = [record.line for record in records]
    settled = {one.row: one for one in settle(lambda row: records[row].id, lines, first, policy, name)}
    kept: list[ProteinRecord] = []
    for row, record in enumerate(records):
        one = settled.get(row)
        if one is None:
            kept.append(record)
        elif one.kept:
            journal.changed(one.id, f"{one.told}; this is line {record.line}")
            kept.append(replace(record, id=one.id))
        else:
            journal.rejected(record.id, f"{one.told}; this is line {record.line}")
    return kept
