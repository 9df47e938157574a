"""A file of proteins, read once and laid out on disk, so that memory does not grow with the number of proteins.

Sequences, ids and remarks go to files; in memory stay a few numbers a record (about 50 bytes). Equal sequences are
found by their digests and get one number, so that they are encoded once.
"""

from __future__ import annotations

import hashlib
import os
import re
import weakref
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from plm.data.fasta import GAP_CHARACTERS, Cleaned, CleaningRule, ProteinRecord
from plm.data.proteins import POSITION, Cleaning
from plm.data.unique_ids import check_id, first_equal, settle
from plm.errors import UserError

Ints = NDArray[np.int64]
SmallInts = NDArray[np.int32]
_WHOLE = re.compile(r"[0-9]{1,9}")
_OWN_LETTERS = frozenset("BOUZ")
_NO_GAPS = {ord(character): None for character in GAP_CHARACTERS}


class OpenFile:
    """A file's descriptor, which is closed when nothing reads from it any more."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)


class Texts(Sequence[str]):
    """Strings that lie in a file; a sequence that reads each one when it is asked for."""

    def __init__(self, file: OpenFile, starts: Ints, sizes: SmallInts) -> None:
        self._file, self._starts, self._sizes = file, starts, sizes

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Texts: ...
    def __getitem__(self, index: int | slice) -> str | Texts:
        if isinstance(index, slice):
            return Texts(self._file, self._starts[index], self._sizes[index])
        # Not mapped into memory: pages of a mapped file would count as this job's memory.
        return os.pread(self._file.descriptor, int(self._sizes[index]), int(self._starts[index])).decode()

    def select(self, rows: Ints) -> Texts:
        """The strings at ``rows``, still in the file."""
        return Texts(self._file, self._starts[rows], self._sizes[rows])

    def places(self) -> Ints:
        """``(N, 2)``: where in the file each string starts, and its bytes."""
        return np.stack([self._starts, self._sizes.astype(np.int64)], axis=1)


class TextWriter:
    """Appends strings to a file; :meth:`replace` gives an earlier one another text, :meth:`close` the finished ones."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w+b", buffering=2**20)
        self._starts, self._sizes, self._end = array("q"), array("i"), 0

    def append(self, text: str) -> None:
        self._starts.append(self._end)
        self._sizes.append(self._write(text))

    def replace(self, index: int, text: str) -> None:
        self._starts[index] = self._end
        self._sizes[index] = self._write(text)

    def _write(self, text: str) -> int:
        data = text.encode()
        self._file.write(data)
        self._end += len(data)
        return len(data)

    def text(self, index: int) -> str:
        self._file.flush()
        return os.pread(self._file.fileno(), self._sizes[index], self._starts[index]).decode()

    def close(self) -> Texts:
        self._file.flush()
        kept = OpenFile(os.dup(self._file.fileno()))
        self._file.close()
        return Texts(kept, np.frombuffer(self._starts, np.int64), np.frombuffer(self._sizes, np.int32))


class Remarks(Mapping[int, str]):
    """Texts of the few records that have one."""

    def __init__(self, rows: SmallInts, texts: Texts) -> None:
        self._rows, self._texts = rows, texts
        self._later: dict[int, str] = {}

    def put(self, row: int, text: str) -> None:
        self._later[row] = text

    def __getitem__(self, row: int) -> str:
        if row in self._later:
            return self._later[row]
        at = int(np.searchsorted(self._rows, row))
        if at == len(self._rows) or self._rows[at] != row:
            raise KeyError(row)
        return self._texts[at]

    def __iter__(self) -> Iterator[int]:
        return iter(sorted({*self._rows.tolist(), *self._later}))

    def __len__(self) -> int:
        return len({*self._rows.tolist(), *self._later})


@dataclass(frozen=True)
class ProteinStore:
    """The records of a file. N records, U different sequences.

    Attributes:
        name: The file's name, for messages.
        digest: sha256 of all ids, cleaned sequences and sites in their order.
        ids: N names, unique; renamed ones as they are written.
        lines: (N,) 1-based line of each record.
        letters: (N,) letters as the file has them.
        cleaned: (N,) letters that were removed or replaced.
        details: Remarks by record, where there are any: what was cleaned, or why a record was rejected.
        unique: (N,) number of the record's sequence; -1 if rejected.
        positions: (N,) 1-based site as the file has it; empty without sites.
        places: (N,) the same site, 0-based in the cleaned sequence; empty without sites.
        firsts: (U,) the record that brought each sequence first.
        lengths: (U,) residues of each sequence.
        sequences: The U different sequences, cleaned.
        warning: Sentence on what the user should look at; may be empty.
        own: Records with U, Z, O or B, which were kept.
    """

    name: str
    digest: str
    ids: Texts
    lines: Ints
    letters: SmallInts
    cleaned: SmallInts
    details: Mapping[int, str]
    unique: SmallInts
    positions: SmallInts
    places: SmallInts
    firsts: SmallInts
    lengths: Ints
    sequences: Texts
    warning: str = ""
    own: int = 0

    @property
    def accepted(self) -> Ints:
        """Records that are embedded, in the order of the file."""
        return np.flatnonzero(self.unique >= 0)

    def embedded(self) -> Iterator[tuple[int, int]]:
        """(record, number of its sequence) of the records that are embedded, in the order of the file."""
        for record in range(len(self.unique)):
            sequence = int(self.unique[record])
            if sequence >= 0:
                yield record, sequence


def store_proteins(
    path: str | Path, folder: Path, *, duplicates: str = "error", sites: bool = False, nucleotides: str = "reject",
    unusual: str = "x",
) -> ProteinStore:
    """Reads, cleans and lays out a file of proteins.

    Args:
        path: FASTA or a table with the columns id and sequence (and position), plain, gzipped or Parquet.
        folder: Takes the files; it must outlive the proteins.
        duplicates: An id that comes again: ``error``, ``rename`` (``_2``, ``_3``, ... is added) or ``first`` (the later
            records are rejected).
        sites: Each record is a site, named by its column ``position``.
        nucleotides: What becomes of records that are clearly DNA or RNA: ``reject`` or ``keep``.
        unusual: What becomes of U, Z, O and B: ``x``, or ``own``: they are kept for a model that knows them.

    Raises:
        UserError: As :func:`plm.data.proteins.read_proteins`; a repeated id under ``error``; no usable record, or
            nothing but nucleotides; sites without a position, or with one outside the sequence. With file and line.
    """
    name = Path(path).name
    folder.mkdir(parents=True, exist_ok=True)
    ids, details = TextWriter(folder / "ids"), TextWriter(folder / "details")
    sequences = (folder / "sequences").open("w+b", buffering=2**20)
    lines, starts = array("q"), array("q")
    letters, lengths, cleaned_letters, positions, places = (array("i") for _ in range(5))
    remarked = array("i")
    names, contents, whole = bytearray(), bytearray(), hashlib.sha256()
    end = 0
    first_rejected = ""
    cleaning = Cleaning(name, CleaningRule(unusual, nucleotides=nucleotides))
    own = 0
    for entry, cleaned in cleaning.of(path):
        place, reason = _judge(entry, cleaned, name, sites)
        if reason and not first_rejected:
            first_rejected = f"{entry.id}: {reason}"
        ids.append(entry.id)
        if reason or cleaned.changes:
            remarked.append(len(lines))
            details.append(reason or "; ".join(cleaned.changes))
        own += not reason and not _OWN_LETTERS.isdisjoint(cleaned.sequence)
        lines.append(entry.line)
        letters.append(len(entry.sequence))
        data = b"" if reason else cleaned.sequence.encode("ascii")
        cleaned_letters.append(0 if reason else _changed(entry.sequence, cleaned))
        lengths.append(len(data))
        starts.append(end)
        if sites:
            told = entry.columns.get(POSITION, "")
            positions.append(int(told) if _WHOLE.fullmatch(told) else 0)
            places.append(place)
        sequences.write(data)
        end += len(data)
        names += _digest(entry.id.encode())
        contents += _digest(data)
        whole.update(b"%d %d %d %d\n" % (len(entry.id.encode()), len(data), place, bool(reason)))
        whole.update(entry.id.encode() + data)
    sequences.flush()
    warning = cleaning.finish()
    sizes = np.array(lengths, np.int64)
    remarks = Remarks(np.frombuffer(remarked, np.int32), details.close())
    for one in settle(ids.text, lines, first_equal(names), duplicates, name):
        if one.kept:
            ids.replace(one.row, one.id)
            remarks.put(one.row, "; ".join(filter(None, (one.told, remarks.get(one.row, "")))))
        else:
            sizes[one.row] = 0
            remarks.put(one.row, one.told)
    usable = np.flatnonzero(sizes)
    if not len(usable):
        raise UserError(
            f"None of {len(lines)} records can be used; the first: {first_rejected}", where=name,
            fix="Give protein sequences",
        )
    first = usable[first_equal(bytearray(np.frombuffer(contents, np.uint8).reshape(-1, 16)[usable].tobytes()))]
    firsts = np.unique(first)
    unique = np.full(len(sizes), -1, np.int32)
    unique[usable] = np.searchsorted(firsts, first)
    kept = OpenFile(os.dup(sequences.fileno()))
    sequences.close()
    return ProteinStore(
        name=name, digest=whole.hexdigest(), ids=ids.close(), lines=np.frombuffer(lines, np.int64),
        letters=np.frombuffer(letters, np.int32), cleaned=np.frombuffer(cleaned_letters, np.int32), details=remarks,
        unique=unique, positions=np.array(positions, np.int32), places=np.array(places, np.int32),
        firsts=firsts.astype(np.int32), lengths=sizes[firsts],
        sequences=Texts(kept, np.frombuffer(starts, np.int64)[firsts], sizes[firsts].astype(np.int32)),
        warning=warning, own=own,
    )


def _judge(record: ProteinRecord, cleaned: Cleaned, name: str, sites: bool) -> tuple[int, str]:
    """The 0-based site in the cleaned sequence (-1 without sites), and why the record cannot be used."""
    check_id(record, name)
    reason = cleaned.rejected
    if not sites:
        return -1, reason
    where, told = f"{name}, line {record.line}, id {record.id!r}", record.columns.get(POSITION, "")
    if not (told.isascii() and told.isdigit()):
        raise UserError(
            f"A site needs its position: {f'{told!r} is no whole number' if told else 'there is none'}", where=where,
            fix="Give a table with the column position (counted from 1), or choose another --pooling",
        )
    if not _WHOLE.fullmatch(told):
        return -1, reason or f"position {told[:20]} lies outside every sequence"
    position = int(told)
    if not reason and not 1 <= position <= len(record.sequence):
        raise UserError(
            f"Position {position} lies outside its sequence of {len(record.sequence)} residues (positions count from "
            "1)",
            where=where, fix="Correct the position",
        )
    place = -1 if reason else cleaned.position(position - 1)
    if place is None:
        return -1, f"position {position} is no residue but {record.sequence[position - 1]!r}"
    return place, reason


def _changed(raw: str, cleaned: Cleaned) -> int:
    """Letters that cleaning removed or replaced; a change of case is none."""
    if not cleaned.changes:
        return 0
    kept = raw.translate(_NO_GAPS)
    replaced = sum(before.upper() != after for before, after in zip(kept, cleaned.sequence, strict=False))
    return replaced + len(raw) - len(cleaned.sequence)


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
