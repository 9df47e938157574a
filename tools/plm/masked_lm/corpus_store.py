"""A corpus of any size, read once and laid out in files: in memory stay a few numbers a sequence (about 60 bytes).

Residues go to a file of one byte each that is mapped, ids and cluster names to files of their own. Equal sequences are
found by their digests and kept once.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, overload

import numpy as np

from plm.data.fasta import Cleaned, ProteinRecord
from plm.data.protein_store import OpenFile, Remarks, Texts, TextWriter
from plm.data.proteins import Cleaning, table_columns
from plm.data.unique_ids import check_id, digest_of, first_equal, settle
from plm.errors import UserError
from plm.masked_lm.corpus import Corpus
from plm.model.families import ESM2, MODEL_LETTERS, ModelFamily
from plm.model.families.esm2 import ESM2_VOCABULARY

TAXON_COLUMNS = (
    "taxon", "taxid", "taxon_id", "tax_id", "taxonomy_id", "ncbi_taxon", "ncbi_taxon_id", "organism_id", "ox",
)
DOMAIN_COLUMNS = ("domain", "superkingdom", "kingdom")
CLUSTER_COLUMNS = ("cluster",)
DIGEST_BYTES = 16

ESM2_IDS = {token: number for number, token in enumerate(ESM2_VOCABULARY)}
_COPY = 2**24  # residues
_BREAKS = str.maketrans("\t\r\n\x00", "    ")
_REJECTED = ("id", "file", "line", "reason")


@dataclass(frozen=True, kw_only=True)
class CorpusStore(Corpus):
    """N distinct sequences on disk; everything that :class:`Corpus` offers, and where each sequence comes from.

    ``tokens`` is a mapped file of letter numbers (the places in ``MODEL_LETTERS``); :meth:`residue_ids` gives token
    ids.

    Attributes:
        folder: Holds the files; it must outlive the store.
        table: ``(21,)`` int64 token id of each letter of ``MODEL_LETTERS``.
        digests: ``(N, 16)`` uint8: the first bytes of the sha256 of each cleaned sequence.
        taxon: ``(N,)`` int32 numbers into ``taxa``.
        taxa: Names of taxa; the first is empty and means that it is not known.
        domain: ``(N,)`` int32 numbers into ``domains``.
        domains: Names of domains of life, likewise.
        cluster: ``(N,)`` int32 numbers of homology clusters from the input, or None unless all sequences have one.
        clusters: Their names, in a file.
        ids: One unique id a sequence, in a file.
        account: Where every record went, in one sentence.
        rejected: Table of the records that are not used: id, file, line, reason.
    """

    folder: Path
    table: np.ndarray
    digests: np.ndarray
    taxon: np.ndarray
    taxa: tuple[str, ...]
    domain: np.ndarray
    domains: tuple[str, ...]
    cluster: np.ndarray | None
    clusters: Texts
    ids: Texts
    account: str
    rejected: Path

    def residue_ids(self, index: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """``(L,)`` int64 token ids of a sequence's residues, or of a stretch of it."""
        ids: np.ndarray = self.table[super().residue_ids(index, start, stop)]
        return ids

    def frequencies(self, indices: np.ndarray | None = None) -> np.ndarray:
        """``(20,)`` share of each amino acid; see :meth:`Corpus.frequencies`."""
        plain = Corpus(self.tokens, self.offsets, (), (), -1, np.arange(len(self.letters)))
        return plain.frequencies(indices)

    def identity(self, index: int) -> str:
        """The id of a sequence."""
        return self.ids[index]

    def sequence(self, index: int) -> str:
        """The cleaned residues of a sequence."""
        codes = np.asarray(self.tokens[self.offsets[index] : self.offsets[index + 1]])
        return _LETTERS[codes].tobytes().decode("ascii")

    def sequences(self, indices: np.ndarray | None = None) -> Sequence[str]:
        """The cleaned residues of some sequences (all by default), each made when it is asked for."""
        return _Sequences(self, np.arange(len(self)) if indices is None else np.asarray(indices))

    def subset(self, indices: np.ndarray) -> Corpus:
        """Some of the sequences in memory, two bytes a residue."""
        lengths = np.diff(self.offsets)[indices]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        tokens, table = np.empty(int(offsets[-1]), np.int16), self.table.astype(np.int16)
        for place, index in enumerate(np.asarray(indices).tolist()):
            codes = self.tokens[self.offsets[index] : self.offsets[index + 1]]
            tokens[offsets[place] : offsets[place + 1]] = table[codes]
        return Corpus(tokens, offsets, self.before, self.after, self.mask, self.letters)

    def for_family(self, family: ModelFamily, vocabulary: Mapping[str, int]) -> CorpusStore:
        """The same corpus in the token ids of another model; digests, indices and masked places stay the same.

        Raises:
            UserError: The vocabulary lacks a letter.
        """
        return replace(self, **_encoding(family, vocabulary))


_LETTERS = np.frombuffer(MODEL_LETTERS.encode("ascii"), np.uint8)


class _Sequences(Sequence[str]):
    def __init__(self, store: CorpusStore, rows: np.ndarray) -> None:
        self._store, self._rows = store, rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return _Sequences(self._store, self._rows[index])
        return self._store.sequence(int(self._rows[index]))


def _encoding(family: ModelFamily, vocabulary: Mapping[str, int]) -> dict[str, Any]:
    """The fields of a corpus that depend on the model."""
    ids = family.letter_ids(vocabulary)
    table = np.array([ids[letter] for letter in MODEL_LETTERS], np.int64)
    return {
        "before": tuple(vocabulary[token] for token in family.before),
        "after": tuple(vocabulary[token] for token in family.after),
        "mask": vocabulary[family.mask] if family.mask else -1,
        "letters": table[:-1].copy(),
        "table": table,
    }


def open_corpus(
    paths: str | Path | Sequence[str | Path], workdir: Path, family: ModelFamily = ESM2,
    vocabulary: Mapping[str, int] = ESM2_IDS, *, taxon_column: str | None = None, domain_column: str | None = None,
) -> CorpusStore:
    """Reads FASTA, CSV, TSV, dataset tables or Parquet files in one pass, cleans them and lays them out on disk.

    Records with a sequence that came before are left out, as are those that cannot be cleaned; both are listed in the
    store's table of rejected records. An id that comes again with another sequence gets ``_2``, ``_3``, ...

    Args:
        paths: One file or several, plain or gzipped.
        workdir: Takes the files of the store.
        family: Of the model whose token ids are wanted; :meth:`CorpusStore.for_family` gives those of another.
        vocabulary: Token -> id of the model.
        taxon_column: The column of taxa; by default one of :data:`TAXON_COLUMNS` (FASTA: ``OX=`` in the header).
        domain_column: The column of domains; by default one of :data:`DOMAIN_COLUMNS`.

    Raises:
        UserError: A file cannot be read or lacks the column; nothing but nucleotides; no usable protein; the disk is
            full.
    """
    files = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    for flag, column in (("--taxon-column", taxon_column), ("--domain-column", domain_column)):
        for path in files if column else []:
            header = table_columns(path)
            if header and column not in header:
                raise UserError(
                    f"There is no column {column!r} (columns: {', '.join(header[:12])})", where=f"{flag}, {path.name}",
                    fix="Give a column's name from the header line",
                )
    names = (
        (taxon_column.lower(),) if taxon_column else TAXON_COLUMNS,
        (domain_column.lower(),) if domain_column else DOMAIN_COLUMNS,
        CLUSTER_COLUMNS,
    )
    folder = workdir / "corpus"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        _Reading(folder).read(files, names)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise UserError(
            f"The corpus cannot be laid out on disk: {error.strerror}", where=str(folder),
            fix="Free space there: about one byte a residue and 60 a record are needed",
        ) from error
    return load_corpus(workdir, family, vocabulary)


def load_corpus(workdir: Path, family: ModelFamily = ESM2, vocabulary: Mapping[str, int] = ESM2_IDS) -> CorpusStore:
    """Opens what :func:`open_corpus` laid out, such as by another process of the same job."""
    folder = workdir / "corpus"
    known = json.loads((folder / "corpus.json").read_text())
    arrays = {name: np.load(folder / f"{name}.npy", allow_pickle=False) for name in _ARRAYS}
    return CorpusStore(
        **_encoding(family, vocabulary), tokens=np.memmap(folder / "residues.bin", np.uint8, "r"),
        offsets=arrays["offsets"], folder=folder, digests=arrays["digests"], taxon=arrays["taxon"],
        taxa=tuple(known["taxa"]), domain=arrays["domain"], domains=tuple(known["domains"]),
        cluster=arrays["cluster"] if len(arrays["cluster"]) else None,
        clusters=_texts(folder / "clusters", arrays["cluster_places"]), ids=_texts(folder / "ids", arrays["id_places"]),
        account=known["account"], rejected=folder / "rejected.tsv",
    )


_ARRAYS = ("offsets", "digests", "taxon", "domain", "cluster", "cluster_places", "id_places")


def _texts(path: Path, places: np.ndarray) -> Texts:
    return Texts(OpenFile(os.open(path, os.O_RDONLY)), places[:, 0], places[:, 1].astype(np.int32))


class _Codes:
    """Names as they come -> numbers."""

    def __init__(self) -> None:
        self._known = {"": 0}
        self.codes = array("i")

    def add(self, name: str) -> None:
        self.codes.append(self._known.setdefault(name, len(self._known)))

    @property
    def names(self) -> list[str]:
        return list(self._known)


class _Reading:
    """One pass over the files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ids = TextWriter(folder / "ids")
        self._clusters = TextWriter(folder / "clusters")
        self._details = TextWriter(folder / "details")
        self._taxa, self._domains = _Codes(), _Codes()
        self._digests, self._id_digests, self._cluster_digests = bytearray(), bytearray(), bytearray()
        self._lengths, self._lines, self._remarked = array("q"), array("q"), array("i")
        self._ends: list[int] = []
        self._changed = array("b")

    def read(self, files: Sequence[Path], names: Sequence[Sequence[str]]) -> None:
        self._keys = [group[0] for group in names]
        table = np.zeros(128, np.uint8)
        for number, letter in enumerate(MODEL_LETTERS):
            table[ord(letter)] = number
        raw = self._folder / "residues.raw"
        cleaning = Cleaning(", ".join(path.name for path in files), switch=False)
        with raw.open("wb", buffering=2**20) as residues:
            for path in files:
                for record, cleaned in cleaning.of(path, names):
                    self._take(record, cleaned, path, residues, table)
                self._ends.append(len(self._lengths))
        cleaning.finish()
        self._settle(files, raw)

    def _take(self, record: ProteinRecord, cleaned: Cleaned, path: Path, residues: BinaryIO, table: np.ndarray) -> None:
        if not record.id:
            check_id(record, path.name)
        reason = cleaned.rejected
        self._ids.append(record.id.translate(_BREAKS))
        if reason:
            self._remarked.append(len(self._lengths))
            self._details.append(reason)
        data = b"" if reason else cleaned.sequence.encode("ascii")
        residues.write(table[np.frombuffer(data, np.uint8)].tobytes())
        taxon, domain, cluster = (record.columns.get(key, "") for key in self._keys)
        self._taxa.add(taxon)
        self._domains.add(domain)
        self._clusters.append(cluster)
        self._lengths.append(len(data))
        self._lines.append(record.line)
        self._changed.append(not reason and bool(cleaned.changes))
        self._digests += hashlib.sha256(data).digest()[:DIGEST_BYTES]
        self._id_digests += digest_of(record.id)
        self._cluster_digests += digest_of(cluster)

    def _settle(self, files: Sequence[Path], raw: Path) -> None:
        """Finds repetitions, gives ids their final form and writes everything but the ids and residues of others."""
        lengths = np.frombuffer(self._lengths, np.int64).copy()
        remarks = Remarks(np.frombuffer(self._remarked, np.int32), self._details.close())
        usable = np.flatnonzero(lengths)
        if not len(usable):
            self._refuse(files, remarks)
        digests = np.frombuffer(self._digests, np.uint8).reshape(-1, DIGEST_BYTES)
        first = np.arange(len(lengths))
        first[usable] = usable[first_equal(digests[usable].tobytes())]
        kept = usable[first[usable] == usable]

        renamed = np.arange(len(lengths))
        named = np.frombuffer(self._id_digests, np.uint8).reshape(-1, 16)
        renamed[kept] = kept[first_equal(named[kept].tobytes())]
        for one in settle(self._ids.text, self._lines, renamed, "rename", "the corpus"):
            self._ids.replace(one.row, one.id)
        ids, clusters = self._ids.close(), self._clusters.close()
        repeated = np.flatnonzero(first != np.arange(len(lengths)))
        self._write_rejected(files, remarks, ids, first)

        sizes = lengths[kept]
        _compact(raw, self._folder / "residues.bin", lengths, kept)
        named_clusters = np.frombuffer(self._cluster_digests, np.uint8).reshape(-1, 16)[kept]
        members = first_equal(named_clusters.tobytes())
        heads, codes = np.unique(members, return_inverse=True)
        complete = not (named_clusters[heads] == np.frombuffer(digest_of(""), np.uint8)).all(axis=1).any()
        changed = int(np.frombuffer(self._changed, np.int8)[kept].sum())
        save = {
            "offsets": np.concatenate([[0], np.cumsum(sizes)]),
            "digests": digests[kept],
            "taxon": np.frombuffer(self._taxa.codes, np.int32)[kept],
            "domain": np.frombuffer(self._domains.codes, np.int32)[kept],
            "cluster": codes.astype(np.int32) if complete else np.zeros(0, np.int32),
            "cluster_places": clusters.select(kept[heads]).places() if complete else np.zeros((0, 2), np.int64),
            "id_places": ids.select(kept).places(),
        }
        for name in _ARRAYS:
            np.save(self._folder / f"{name}.npy", save[name], allow_pickle=False)
        told = _account(
            len(lengths), len(kept), changed, int((renamed[kept] != kept).sum()), ids, remarks, self._remarked, repeated
        )
        content = {"taxa": self._taxa.names, "domains": self._domains.names, "account": told}
        (self._folder / "corpus.json").write_text(json.dumps(content))

    def _refuse(self, files: Sequence[Path], remarks: Remarks) -> None:
        where = ", ".join(path.name for path in files)
        raise UserError(
            f"The input holds no usable protein; the first: {self._ids.text(0)}, {remarks[0]}", where=where,
            fix="Give protein sequences",
        )

    def _write_rejected(self, files: Sequence[Path], remarks: Remarks, ids: Texts, first: np.ndarray) -> None:
        with (self._folder / "rejected.tsv").open("w", encoding="utf-8", newline="\n") as opened:
            opened.write("\t".join(_REJECTED) + "\n")
            remarked = np.frombuffer(self._remarked, np.int32)
            for record in np.union1d(remarked, np.flatnonzero(first != np.arange(len(first)))).tolist():
                file = files[int(np.searchsorted(self._ends, record, side="right"))].name
                same = int(first[record])
                reason = f"the same sequence as {ids[same]}" if same != record else remarks[record]
                opened.write(f"{ids[record]}\t{file}\t{self._lines[record]}\t{reason}\n")


def _account(
    read: int, kept: int, changed: int, renamed: int, ids: Texts, remarks: Remarks, unusable: Sequence[int],
    repeated: np.ndarray,
) -> str:
    told = [f"{read} records read: {kept} distinct proteins"]
    if changed:
        told.append(f"{changed} of them cleaned")
    if renamed:
        told.append(f"{renamed} of them renamed because the id was used before")
    if len(unusable):
        record = unusable[0]
        told.append(f"{len(unusable)} left out as unusable (first: {ids[record]}, {remarks[record]})")
    if len(repeated):
        told.append(f"{len(repeated)} left out as repetitions (first: {ids[int(repeated[0])]})")
    return "; ".join(told)


def _compact(raw: Path, target: Path, lengths: np.ndarray, kept: np.ndarray) -> None:
    """Moves the residues of the records that are kept into ``target``."""
    if len(kept) == int((lengths > 0).sum()):
        raw.replace(target)
        return
    starts = np.concatenate([[0], np.cumsum(lengths)])
    with raw.open("rb") as source, target.open("wb", buffering=2**20) as out:
        for start, stop in _runs(starts[kept], starts[kept + 1]):
            source.seek(start)
            while start < stop:
                data = source.read(min(_COPY, stop - start))
                out.write(data)
                start += len(data)
    raw.unlink()


def _runs(starts: np.ndarray, stops: np.ndarray) -> Iterator[tuple[int, int]]:
    """Neighbouring stretches as one."""
    breaks = np.flatnonzero(starts[1:] != stops[:-1])
    firsts, lasts = np.concatenate([[0], breaks + 1]), np.concatenate([breaks, [len(starts) - 1]])
    yield from zip(starts[firsts].tolist(), stops[lasts].tolist(), strict=True)
