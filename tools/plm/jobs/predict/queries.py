"""What a bundle is asked about: the records of a file, what stands beside them, and what became of each.

Records are proteins (FASTA or a table) or rows of an embeddings file. None is lost: each has a row in the status table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from plm.data.embeddings.files import Embeddings
from plm.data.label_values import is_missing
from plm.data.protein_store import ProteinStore
from plm.data.proteins import kind_of
from plm.data.tables import plain_field, stream_table, visible
from plm.errors import UserError

PASSED = ("protein", "protein_position", "label", "group", "cluster", "split", "fold")
"""Columns of an input table that go on into the predictions, so that they can be evaluated."""
STATUS_COLUMNS = ("id", "line", "length", "windows", "cleaned", "duplicate_of", "status", "details")
BATCH_ROWS = 4096
Singles = NDArray[np.float32]
Ints = NDArray[np.int64]


def passed_columns(path: str | Path) -> dict[str, list[str]]:
    """The columns of a table of proteins that go on into the predictions, one value a record; none of FASTA."""
    path = Path(path)
    if kind_of(path) == "fasta":
        return {}
    header, rows = stream_table(path)
    places = {name.lower(): index for index, name in enumerate(header) if name.lower() in PASSED}
    columns: dict[str, list[str]] = {name: [] for name in places}
    for _, fields in rows:
        for name, index in places.items():
            columns[name].append(_passed(name, fields[index]))
    return columns


def _passed(name: str, value: str) -> str:
    """A value that goes on; a label such as ``NA`` is none."""
    return "" if name == "label" and is_missing(value) else plain_field(value)


@dataclass
class Queries:
    """The records of one input.

    Attributes:
        name: File name of the input.
        ids: One a record, as tables show them.
        columns: What stands beside them, of :data:`PASSED`, one value a record.
        positions: 1-based sites, one a record; None unless the records are sites.
        proteins: The proteins; None for embeddings.
        lengths: Residues of each record of an embeddings file that tells them.
        rejected: Reasons by record, for embeddings.
        windows: Windows that each record's sequence went in; set once it is known.
    """

    name: str
    ids: Sequence[str]
    columns: dict[str, list[str]]
    positions: Sequence[int] | None = None
    proteins: ProteinStore | None = None
    lengths: Sequence[int] | None = None
    rejected: dict[int, str] = field(default_factory=dict)
    windows: Ints | None = None

    @classmethod
    def of_proteins(cls, path: Path, proteins: ProteinStore, *, sites: bool) -> Queries:
        """From proteins that were read."""
        positions = [int(place) for place in proteins.positions] if sites else None
        return cls(proteins.name, proteins.ids, passed_columns(path), positions, proteins)

    @classmethod
    def of_embeddings(cls, embeddings: Embeddings) -> Queries:
        """From an open embeddings file."""
        columns = {
            name.lower(): [_passed(name.lower(), value) for value in values]
            for name, values in embeddings.labels.items()
            if name.lower() in PASSED
        }
        positions = None if embeddings.positions is None else [int(place) for place in embeddings.positions]
        return cls(embeddings.name, embeddings.ids, columns, positions, lengths=embeddings.lengths)

    def __len__(self) -> int:
        return len(self.ids)

    def is_rejected(self, record: int) -> bool:
        if self.proteins is not None:
            return bool(self.proteins.unique[record] < 0)
        return record in self.rejected

    def remarks(self) -> list[str]:
        """What is worth a line in the report."""
        if self.proteins is None:
            some = len(self.rejected)
            return [f"{some} embeddings hold NaN or infinity and have no answer."] if some else []
        notes = [self.proteins.warning] if self.proteins.warning else []
        changed = sum(not self.is_rejected(record) for record in self.proteins.details)
        if changed:
            notes.append(f"{changed} records were changed before use (the status table tells how).")
        if self.windows is not None and (cut := int((self.windows > 1).sum())):
            notes.append(f"{cut} proteins were too long to be encoded whole and went in overlapping windows.")
        return notes

    def write_status(self, handle: TextIO, abstained: set[int]) -> None:
        """One row a record of the input, in its order.

        Args:
            handle: Open text file; tab-separated rows are written to it.
            abstained: Records that got no answer on purpose.
        """
        handle.write("\t".join(STATUS_COLUMNS) + "\n")
        for record in range(len(self)):
            rejected = self.is_rejected(record)
            status = "rejected" if rejected else "abstained" if record in abstained else "predicted"
            row = (visible(self.ids[record]), *self._facts(record), status, self._details(record))
            handle.write("\t".join(map(str, row)) + "\n")

    def _facts(self, record: int) -> tuple[object, object, object, object, str]:
        """Line, length, windows, cleaned letters, and the record with the same sequence before it."""
        if self.proteins is None:
            return record + 1, "" if self.lengths is None else self.lengths[record], "", "", ""
        sequence = int(self.proteins.unique[record])
        twin, windows = "", 0
        if sequence >= 0:
            first = int(self.proteins.firsts[sequence])
            twin = "" if first == record else visible(self.proteins.ids[first])
            windows = 1 if self.windows is None else int(self.windows[sequence])
        return self.proteins.lines[record], self.proteins.letters[record], windows, self.proteins.cleaned[record], twin

    def _details(self, record: int) -> str:
        return self.rejected.get(record, "") if self.proteins is None else self.proteins.details.get(record, "")


def stored_batches(embeddings: Embeddings, queries: Queries) -> Iterator[tuple[Ints, Singles]]:
    """Records of an embeddings file in blocks: their numbers ``(n,)`` and ``(n, D)`` vectors.

    At residue level a protein's vector is the mean over its residues. Records with NaN or infinity are noted in
    ``queries.rejected`` and left out.

    Raises:
        UserError: All records are rejected.
    """
    records: list[int] = []
    rows = np.empty((BATCH_ROWS, embeddings.dimension), np.float32)
    some = False
    for record, array in enumerate(embeddings.records()):
        vector = array.mean(axis=0, dtype=np.float64) if embeddings.level == "residue" else array
        if not np.isfinite(vector).all():
            queries.rejected[record] = "the embedding holds NaN or infinity"
            continue
        rows[len(records)] = vector
        records.append(record)
        if len(records) == BATCH_ROWS:
            some = True
            yield np.array(records, np.int64), rows.copy()
            records.clear()
    if records:
        yield np.array(records, np.int64), rows[: len(records)].copy()
    elif not some:
        raise UserError(
            f"None of {len(queries)} embeddings can be used: all hold NaN or infinity" if len(queries) else
            "The embeddings file holds no record",
            where=embeddings.name, fix="Make the embeddings again",
        )
