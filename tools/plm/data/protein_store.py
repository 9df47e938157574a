"""A file of proteins, read once and laid out on disk, so that memory does not grow with the number of proteins.

Sequences, ids and remarks go to files; in memory stay a few numbers a record (about 50 bytes). Equal sequences are
found by their digests and get one number, so that they are encoded once.
"""

from __future__ import annotations

import hashlib
import os
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from plm.data.fasta import GAP_CHARACTERS, Cleaned, CleaningRule, NucleotideTally, clean, read_fasta
from plm.data.own_tables import refuse_other
from plm.data.tables import BREAKS, cell, stream_table
from plm.data.text_files import first_line, is_parquet
from plm.errors import UserError
from plm.received.parquet import open_parquet, unreadable

ID_COLUMNS = ("id", "accession", "name", "header", "entry", "protein", "sequence_id")
SEQUENCE_COLUMNS = ("sequence", "seq", "window", "peptide")
Ints = NDArray[np.int64]
SmallInts = NDArray[np.int32]
_WHOLE = re.compile(r"[0-9]{1,9}")
_OWN_LETTERS = frozenset("BOUZ")
_NO_GAPS = {ord(character): None for character in GAP_CHARACTERS}


@dataclass(frozen=True, slots=True)
class Entry:
    """One record as the file has it.

    Attributes:
        id: First word of the FASTA header, or the table's id.
        sequence: Letters without white space, otherwise untouched.
        line: 1-based line of the header or table row (Parquet: the row).
        position: What the column ``position`` says, or an empty string.
        columns: What the further columns that were asked for say, each an empty string where there is none.
    """

    id: str
    sequence: str
    line: int
    position: str = ""
    columns: tuple[str, ...] = ()


class Texts(Sequence[str]):
    """Strings that lie in a file; a sequence that reads each one when it is asked for."""

    def __init__(self, handle: int, starts: Ints, sizes: SmallInts) -> None:
        self._handle, self._starts, self._sizes = handle, starts, sizes

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Texts: ...
    def __getitem__(self, index: int | slice) -> str | Texts:
        if isinstance(index, slice):
            return Texts(self._handle, self._starts[index], self._sizes[index])
        # Not mapped into memory: pages of a mapped file would count as this job's memory.
        return os.pread(self._handle, int(self._sizes[index]), int(self._starts[index])).decode()

    def select(self, rows: Ints) -> Texts:
        """The strings at ``rows``, still in the file."""
        return Texts(self._handle, self._starts[rows], self._sizes[rows])

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
        kept = os.dup(self._file.fileno())
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
class Spool:
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
        sequences: U cleaned sequences.
        warning: What is to be looked at, in a sentence; may be empty.
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


def read_entries(path: str | Path, columns: Sequence[Sequence[str]] = ()) -> Iterator[Entry]:
    """Streams FASTA, a separated table (both plain or gzipped) or Parquet; told by content.

    Args:
        path: The file.
        columns: Further columns to read, each by its possible names (lower case). In FASTA they are looked for in the
            header as ``NAME=value``, as UniProt's ``OX=9606``.

    Raises:
        UserError: Missing, empty, broken, neither kind, or a table without a sequence column.
    """
    path = Path(path)
    if is_parquet(path):
        return _parquet_entries(path, columns)
    if is_table(path):
        return _table_entries(path, columns)
    return _fasta_entries(path, columns)


def is_table(path: Path) -> bool:
    """Whether a text file is a table: its first line is no header of FASTA and has something between columns."""
    first = first_line(path).lstrip()
    return not first.startswith((">", ";")) and any(mark in first for mark in "\t,;")


def table_columns(path: str | Path) -> tuple[str, ...]:
    """The column names of a separated table or a Parquet file; none for FASTA.

    Raises:
        UserError: As :func:`read_entries`.
    """
    path = Path(path)
    if is_parquet(path):
        return tuple(_open_parquet(path).schema_arrow.names)
    if is_table(path):
        return stream_table(path)[0]
    return ()


def _fasta_entries(path: Path, columns: Sequence[Sequence[str]]) -> Iterator[Entry]:
    wanted = [re.compile(rf"(?<!\S)(?:{'|'.join(map(re.escape, names))})=(\S+)", re.IGNORECASE) for names in columns]
    for record in read_fasta(path):
        found = (pattern.search(record.description) for pattern in wanted)
        values = tuple(match[1] if match else "" for match in found)
        yield Entry(record.id, record.sequence, record.line, "", values)


def _find(header: Sequence[str], names: Sequence[str]) -> int | None:
    lowered = [column.lower() for column in header]
    return next((lowered.index(name) for name in names if name in lowered), None)


def _columns(header: Sequence[str], name: str) -> tuple[int | None, int, int | None]:
    sequence = _find(header, SEQUENCE_COLUMNS)
    if sequence is None:
        refuse_other(header, name, "proteins")
        raise UserError(
            "This is neither FASTA (no '>') nor a table with a column named sequence "
            f"(columns: {', '.join(header[:12])})"[:300],
            where=name,
            fix="Give FASTA, or a table with the columns id and sequence",
        )
    return _find(header, ID_COLUMNS), sequence, _find(header, ("position",))


def _table_entries(path: Path, columns: Sequence[Sequence[str]]) -> Iterator[Entry]:
    header, rows = stream_table(path)
    named, sequence, position = _columns(header, path.name)
    places = [_find(header, names) for names in columns]
    for number, (line, fields) in enumerate(rows, start=1):
        yield Entry(
            f"row{number}" if named is None else fields[named],
            "".join(fields[sequence].split()),
            line,
            "" if position is None else fields[position],
            tuple("" if place is None else fields[place] for place in places),
        )


def _open_parquet(path: Path) -> Any:
    return open_parquet(path, path.name, streamed=True)


def _parquet_entries(path: Path, columns: Sequence[Sequence[str]]) -> Iterator[Entry]:
    import pyarrow as pa

    opened = _open_parquet(path)
    try:
        header = opened.schema_arrow.names
        named, sequence, position = _columns(header, path.name)
        places = [_find(header, names) for names in columns]
        wanted = sorted({place for place in (named, sequence, position, *places) if place is not None})
        number = 0
        for batch in opened.iter_batches(batch_size=4096, columns=[header[place] for place in wanted]):
            read = {place: batch.column(header[place]).to_pylist() for place in wanted}
            for row in range(batch.num_rows):
                number += 1
                fields = {place: cell(read[place][row]) for place in wanted}
                yield Entry(
                    f"row{number}" if named is None else fields[named].strip(),
                    "".join(fields[sequence].split()),
                    number,
                    "" if position is None else fields[position],
                    tuple("" if place is None else fields[place].strip() for place in places),
                )
    except (pa.ArrowException, OSError, UnicodeError) as error:
        raise unreadable(error, path.name) from error
    if not number:
        raise UserError("The table has a header but no rows", where=path.name, fix="Give a table with rows")


def read_spool(
    path: str | Path, folder: Path, *, duplicates: str = "error", sites: bool = False, nucleotides: str = "reject",
    unusual: str = "x",
) -> Spool:  # fmt: skip
    """Reads, cleans and lays out a file of proteins.

    Args:
        path: FASTA or a table with the columns id and sequence (and position), plain, gzipped or Parquet.
        folder: Takes the files; it must outlive the spool.
        duplicates: An id that comes again: ``error``, ``rename`` (``_2``, ``_3``, ... is added) or ``first`` (the later
            records are rejected).
        sites: Each record is a site, named by its column ``position``.
        nucleotides: What becomes of records that are clearly DNA or RNA: ``reject`` or ``keep``.
        unusual: What becomes of U, Z, O and B: ``x``, or ``own``: they are kept for a model that knows them.

    Raises:
        UserError: As :func:`read_entries`; a repeated id under ``error``; no usable record, or nothing but nucleotides;
            sites without a position, or with one outside the sequence. With file and line.
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
    rule, tally = CleaningRule(unusual, nucleotides=nucleotides), NucleotideTally()
    own = 0
    for entry in read_entries(path):
        cleaned, place, reason = _judge(entry, name, sites, rule)
        tally.add(entry.sequence, cleaned.rejected, cleaned.changes)
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
            positions.append(int(entry.position) if _WHOLE.fullmatch(entry.position) else 0)
            places.append(place)
        sequences.write(data)
        end += len(data)
        names += _digest(entry.id.encode())
        contents += _digest(data)
        whole.update(b"%d %d %d %d\n" % (len(entry.id.encode()), len(data), place, bool(reason)))
        whole.update(entry.id.encode() + data)
    sequences.flush()
    tally.check(name, rule)
    sizes = np.array(lengths, np.int64)
    remarks = Remarks(np.frombuffer(remarked, np.int32), details.close())
    settle_ids(ids, remarks, lines, sizes, first_equal(names), duplicates, name)
    usable = np.flatnonzero(sizes)
    if not len(usable):
        raise UserError(
            f"None of {len(lines)} records can be used; the first: {first_rejected}",
            where=name,
            fix="Give protein sequences",
        )
    first = usable[first_equal(bytearray(np.frombuffer(contents, np.uint8).reshape(-1, 16)[usable].tobytes()))]
    firsts = np.unique(first)
    unique = np.full(len(sizes), -1, np.int32)
    unique[usable] = np.searchsorted(firsts, first)
    handle = os.dup(sequences.fileno())
    sequences.close()
    return Spool(
        name=name,
        digest=whole.hexdigest(),
        ids=ids.close(),
        lines=np.frombuffer(lines, np.int64),
        letters=np.frombuffer(letters, np.int32),
        cleaned=np.frombuffer(cleaned_letters, np.int32),
        details=remarks,
        unique=unique,
        positions=np.array(positions, np.int32),
        places=np.array(places, np.int32),
        firsts=firsts.astype(np.int32),
        lengths=sizes[firsts],
        sequences=Texts(handle, np.frombuffer(starts, np.int64)[firsts], sizes[firsts].astype(np.int32)),
        warning=tally.told(),
        own=own,
    )


def _judge(entry: Entry, name: str, sites: bool, rule: CleaningRule) -> tuple[Cleaned, int, str]:
    """The cleaned sequence, the 0-based site in it (-1 without sites), and why the record cannot be used."""
    where = f"{name}, line {entry.line}"
    if not entry.id:
        raise UserError("A record without an id", where=where, fix="Fill the id column")
    if BREAKS.search(entry.id):
        raise UserError(f"The id {entry.id!r} holds a tab or a line end", where=where, fix="Rename it")
    cleaned = clean(entry.sequence, rule)
    reason = cleaned.rejected
    if not sites:
        return cleaned, -1, reason
    if not (entry.position.isascii() and entry.position.isdigit()):
        found = f"{entry.position!r} is no whole number" if entry.position else "there is none"
        raise UserError(
            f"A site needs its position: {found}",
            where=f"{where}, id {entry.id!r}",
            fix="Give a table with the column position (counted from 1), or choose another --pooling",
        )
    if not _WHOLE.fullmatch(entry.position):
        return cleaned, -1, reason or f"position {entry.position[:20]} lies outside every sequence"
    position = int(entry.position)
    if not reason and not 1 <= position <= len(entry.sequence):
        raise UserError(
            f"Position {position} lies outside its sequence of {len(entry.sequence)} residues (positions count from 1)",
            where=f"{where}, id {entry.id!r}",
            fix="Correct the position",
        )
    place = -1 if reason else cleaned.position(position - 1)
    if place is None:
        return cleaned, -1, f"position {position} is no residue but {entry.sequence[position - 1]!r}"
    return cleaned, place, reason


def _changed(raw: str, cleaned: Cleaned) -> int:
    """Letters that cleaning removed or replaced; a change of case is none."""
    if not cleaned.changes:
        return 0
    kept = raw.translate(_NO_GAPS)
    replaced = sum(before.upper() != after for before, after in zip(kept, cleaned.sequence, strict=False))
    return replaced + len(raw) - len(cleaned.sequence)


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def first_equal(digests: bytearray | bytes) -> Ints:
    """For each 16-byte digest the index of the first that equals it."""
    pairs = np.frombuffer(digests, np.uint64).reshape(-1, 2)
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))  # stable: the first of a group is the earliest
    ordered = pairs[order]
    begins = np.ones(len(order), bool)
    begins[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    found = np.empty(len(order), np.int64)
    found[order] = order[begins][np.cumsum(begins) - 1]
    return found


def settle_ids(
    ids: TextWriter, remarks: Remarks, lines: Sequence[int], sizes: Ints, first: Ints, duplicates: str, name: str
) -> None:
    """Applies the policy for repeated ids; rejected records get size 0."""
    repeated = np.flatnonzero(first != np.arange(len(first)))
    if not len(repeated):
        return
    if duplicates == "error":
        row = int(repeated[0])
        raise UserError(
            f"The id {ids.text(row)!r} appears more than once",
            where=f"{name}, lines {lines[int(first[row])]} and {lines[row]}",
            fix="Make ids unique, or choose --duplicate-ids rename or first",
        )
    if duplicates == "first":
        for row in repeated.tolist():
            sizes[row] = 0
            remarks.put(row, f"the id was used before (line {lines[int(first[row])]})")
        return
    taken = {ids.text(row) for row in repeated.tolist()}
    # A new name may be another record's own: those can only be names that end in _<number>.
    taken |= {text for text in (ids.text(row) for row in range(len(first))) if _numbered(text) in taken}
    counts: dict[int, int] = {}
    for row in repeated.tolist():
        base, number = ids.text(row), counts.get(int(first[row]), 2)
        while f"{base}_{number}" in taken:
            number += 1
        counts[int(first[row])] = number + 1
        ids.replace(row, f"{base}_{number}")
        note = f"renamed: the id {base} was used before (line {lines[int(first[row])]})"
        remarks.put(row, "; ".join(filter(None, (note, remarks.get(row, "")))))


def _numbered(text: str) -> str:
    base, mark, number = text.rpartition("_")
    return base if mark and number.isdigit() else ""
