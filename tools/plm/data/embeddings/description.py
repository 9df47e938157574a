"""What an embeddings file says about itself, and the checks that every format shares on the way in and out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from plm import __version__
from plm.errors import UserError
from plm.received.documents import has_breaks

Pooling = Literal["mean", "max", "first", "residues", "sites", ""]
Level = Literal["protein", "residue", "site"]
Counts = Sequence[int] | NDArray[np.integer[Any]]
FORMAT_NAME = "plm-embeddings"
SCHEMA_VERSION = 1
BLOCK_BYTES = 8 * 2**20
"""Rows are gathered to blocks of about this size before they are written or read."""
_RESERVED = (
    "format", "schema_version", "layout", "level", "pooling", "model", "model_sha256", "layers", "dtype", "dimension",
    "suite_version",
)


UNUSUAL = "unusual_residues"
"""Note on what became of U, Z, O and B: ``own`` letters of the model, or ``x``, as in files that do not say."""


@dataclass(frozen=True)
class Description:
    """What the numbers of an embeddings file are.

    Attributes:
        model: The model's name; empty if unknown (files of other programs).
        model_sha256: Fingerprint of its weights; empty if unknown.
        layers: Layer numbers in the order of the file's layer axis (0 = token embeddings, N = last); empty: one layer
            of unknown number.
        pooling: How a protein's residues became one vector (``mean``, ``max``, ``first``); ``residues``: they did not;
            ``sites``: single residues were picked; empty: one vector a protein, unknown how.
        dtype: Type of the stored numbers, ``float16`` or ``float32``.
        dimension: Numbers in a vector (D).
        notes: Further facts, written as attributes.
    """

    model: str
    model_sha256: str
    layers: tuple[int, ...]
    pooling: Pooling
    dtype: Literal["float16", "float32"]
    dimension: int
    notes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.pooling not in get_args(Pooling) or self.dtype not in ("float16", "float32") or self.dimension < 1:
            raise ValueError(f"no description of embeddings: {self.pooling=} {self.dtype=} {self.dimension=}")
        if len(set(self.layers)) < len(self.layers):
            raise ValueError(f"a layer is named twice: {self.layers}")
        taken = sorted(set(self.notes) & set(_RESERVED))
        if taken:
            raise ValueError(f"notes use names of the format: {taken}")

    @property
    def level(self) -> Level:
        """What one record is: a ``protein`` vector, a protein's ``residue`` vectors, or the vector of one ``site``."""
        return "residue" if self.pooling == "residues" else "site" if self.pooling == "sites" else "protein"

    @property
    def depth(self) -> int:
        """Layers in the file (K), at least 1."""
        return max(1, len(self.layers))

    def attributes(self, layout: str) -> dict[str, Any]:
        """Everything as attributes of a file: strings, whole numbers and one list of whole numbers."""
        return {
            "format": FORMAT_NAME,
            "schema_version": SCHEMA_VERSION,
            "layout": layout,
            "level": self.level,
            "pooling": self.pooling,
            "model": self.model,
            "model_sha256": self.model_sha256,
            "layers": list(self.layers),
            "dtype": self.dtype,
            "dimension": self.dimension,
            "suite_version": __version__,
            # In the order in which HDF5 gives them back, so that a merged file equals one that was written at once.
            **dict(sorted(self.notes.items())),
        }

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any], where: str) -> Description:
        """The inverse of :meth:`attributes`.

        Raises:
            UserError: Written by a later schema, or an attribute is missing or makes no sense.
        """
        version = attributes.get("schema_version")
        if not isinstance(version, int | np.integer) or version < 1:
            raise UserError("The embeddings file has no schema version", where=where, fix="Make the file again")
        if version > SCHEMA_VERSION:
            raise UserError(
                f"The embeddings file has schema version {version}; this tool reads up to {SCHEMA_VERSION}",
                where=where, fix="Use the version of the suite that wrote it",
            )
        try:
            return cls(
                model=str(attributes["model"]), model_sha256=str(attributes["model_sha256"]),
                layers=tuple(int(layer) for layer in attributes["layers"]), pooling=attributes["pooling"],
                dtype=attributes["dtype"], dimension=int(attributes["dimension"]),
                notes={key: str(value) for key, value in attributes.items() if key not in _RESERVED},
            )
        except KeyError as error:
            raise UserError(
                f"The embeddings file lacks the attribute {error.args[0]}", where=where, fix="Make the file again"
            ) from error
        except (ValueError, TypeError, OverflowError) as error:
            raise UserError(
                f"The embeddings file describes itself wrongly ({error})", where=where, fix="Make the file again"
            ) from error


class Source(Protocol):
    """An open embeddings file of one format; layers are always an axis of its own (K).

    Attributes:
        description: Of the file, with all its layers.
        ids: Of the records, in file order.
        positions: 1-based places of sites, else None.
        labels: Further columns, one value a record.
        suite_version: Version that wrote the file; empty for files of other programs.
    """

    description: Description
    ids: list[str]
    positions: list[int] | None
    labels: dict[str, list[str]]
    suite_version: str

    def lengths(self) -> list[int] | None:
        """Residues of each record at residue level, else None."""

    def arrays(self, start: int, stop: int) -> Iterator[np.ndarray]:
        """Records start..stop-1 as stored: ``(K, D)``, at residue level ``(L, K, D)``."""

    def close(self) -> None:
        """Closes the file."""


@dataclass(frozen=True)
class Records:
    """Records on their way into a file, checked while they stream through.

    Attributes:
        description: Model, layer, pooling, dtype and dimension of the vectors.
        ids: One a record; may be lazy.
        rows: One array a record: ``(D,)`` or ``(K, D)`` with several layers; at residue level with a first axis L.
        offsets: ``(N+1,) int64``, residues before each record, at residue level; else None.
        positions: 1-based places at site level, else None.
    """

    description: Description
    ids: Sequence[str]
    rows: Iterable[np.ndarray]
    offsets: np.ndarray | None
    positions: Counts | None

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one stored vector: ``(D,)``, or ``(K, D)`` with several layers."""
        depth, dimension = self.description.depth, self.description.dimension
        return (depth, dimension) if depth > 1 else (dimension,)

    @property
    def row_count(self) -> int:
        """Vectors (of K layers each) in the file: records, or residues at residue level."""
        return len(self.ids) if self.offsets is None else int(self.offsets[-1])

    @property
    def stored(self) -> np.dtype:
        """Little-endian type of the stored numbers."""
        return np.dtype("<f2" if self.description.dtype == "float16" else "<f4")

    def arrays(self) -> Iterator[np.ndarray]:
        """Each record in the stored type.

        Raises:
            UserError: A number is too large for float16.
            ValueError: Count or shape of the arrays is not what was announced (a bug of the caller).
        """
        for index, array in enumerate(self._checked()):
            yield self._cast(array, index)

    def blocks(self) -> Iterator[np.ndarray]:
        """Consecutive vectors ``(n, [K,] D)`` in the stored type, gathered to about ``BLOCK_BYTES``.

        Raises:
            As :meth:`arrays`.
        """
        if self.offsets is not None:
            yield from self._residue_blocks()
            return
        count = max(1, BLOCK_BYTES // (4 * int(np.prod(self.row_shape))))
        block = np.empty((min(count, max(1, len(self.ids))), *self.row_shape), np.float32)
        first = filled = 0
        for array in self._checked():
            block[filled] = array
            filled += 1
            if filled == len(block):
                yield self._cast(block, first)
                first, filled = first + filled, 0
        if filled:
            yield self._cast(block[:filled], first)

    def _residue_blocks(self) -> Iterator[np.ndarray]:
        waiting: list[np.ndarray] = []
        size = 0
        for array in self.arrays():
            waiting.append(array)
            size += array.nbytes
            if size >= BLOCK_BYTES:
                yield waiting[0] if len(waiting) == 1 else np.concatenate(waiting)
                waiting, size = [], 0
        if waiting:
            yield np.concatenate(waiting)

    def _checked(self) -> Iterator[np.ndarray]:
        count = 0
        shape = self.row_shape
        for array in self.rows:
            if count == len(self.ids):
                raise ValueError(f"more arrays than the {count} ids")
            if self.offsets is not None:
                shape = (int(self.offsets[count + 1] - self.offsets[count]), *self.row_shape)
            if array.shape != shape or array.dtype.kind != "f":
                raise ValueError(
                    f"record {count} ({self.ids[count]!r}) is {array.dtype} {array.shape}, not float {shape}"
                )
            yield array
            count += 1
        if count < len(self.ids):
            raise ValueError(f"{count} arrays for {len(self.ids)} ids")

    def _cast(self, array: np.ndarray, first: int) -> np.ndarray:
        """``array``, which starts with record ``first``, in the stored type."""
        if array.dtype == self.stored:
            return array
        with np.errstate(over="ignore"):
            cast = array.astype(self.stored)
        if not np.isfinite(cast).all():
            lost = np.isinf(cast) & np.isfinite(array)
            if lost.any():
                index = first if array.ndim > len(self.row_shape) and self.offsets is not None else None
                if index is None:
                    index = first + (int(np.argwhere(lost)[0][0]) if array.ndim > len(self.row_shape) else 0)
                raise UserError(
                    f"A number of {self.ids[index]!r} is too large for {self.description.dtype}",
                    fix="Store the embeddings as float32",
                )
        return cast


def make_records(
    description: Description, ids: Sequence[str], rows: Iterable[np.ndarray], lengths: Counts | None,
    positions: Counts | None,
) -> Records:
    """Checks what can be known before the first array.

    Raises:
        UserError: An id is empty or repeated, or holds what no file can.
        ValueError: Lengths or positions are missing, too many, or below 1 (a bug of the caller).
    """
    offsets = None
    if description.level == "residue":
        if lengths is None or len(lengths) != len(ids):
            raise ValueError("residue level needs the length of each record")
        counts = np.fromiter(lengths, np.int64, len(ids))
        if len(counts) and counts.min() < 1:
            raise ValueError(f"record {int(counts.argmin())} ({ids[int(counts.argmin())]!r}) has no residues")
        offsets = np.zeros(len(ids) + 1, np.int64)
        np.cumsum(counts, out=offsets[1:])
    if description.level == "site":
        if positions is None or len(positions) != len(ids):
            raise ValueError("site level needs the position of each record")
        if len(positions) and min(positions) < 1:
            raise ValueError("positions count from 1")
    else:
        positions = None
    check_ids(ids, positions)
    return Records(description, ids, rows, offsets, positions)


def check_ids(ids: Sequence[str], positions: Counts | None = None, where: str = "") -> None:
    """Checks that ids can be stored and told apart; at site level an id may come with several positions.

    Memory is 8 bytes a record, whatever the ids are.

    Raises:
        UserError: Names the first id that is empty, repeated, or holds a NUL or half a character.
    """
    hashes = np.empty(len(ids), np.int64)
    for index, identifier in enumerate(ids):
        if not identifier:
            raise UserError(f"Record {index + 1} has no id", where=where, fix="Give every record an id")
        if has_breaks(identifier) or not _encodable(identifier):
            raise UserError(
                f"The id {identifier[:100]!r} holds a tab or a line end, or another character that cannot be stored",
                where=where, fix="Change the id",
            )
        hashes[index] = hash(identifier if positions is None else (identifier, int(positions[index])))
    order = np.argsort(hashes, kind="stable")
    same = np.flatnonzero(np.diff(hashes[order]) == 0)
    seen: dict[tuple[str, int], int] = {}
    for index in np.unique(np.concatenate([order[same], order[same + 1]])).tolist():  # equal hashes need not be equal
        key = (ids[index], -1 if positions is None else int(positions[index]))
        if key in seen:
            what = f"The id {key[0]!r}" if positions is None else f"The site {key[1]} of {key[0]!r}"
            raise UserError(
                f"{what} appears more than once",
                where=", ".join(filter(None, [where, f"records {seen[key] + 1} and {index + 1}"])),
                fix="Make ids unique",
            )
        seen[key] = index


def _encodable(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def check_offsets(offsets: np.ndarray, records: int, residues: int, where: str) -> np.ndarray:
    """``(N+1,)`` offsets as int64, checked to part all residues into ``records`` pieces of at least one.

    Raises:
        UserError: They do not.
    """
    if offsets.shape != (records + 1,) or offsets.dtype.kind not in "iu":
        raise UserError(
            f"There must be {records + 1} offsets for {records} records", where=where, fix="Make the file again"
        )
    whole = offsets.astype(np.int64)
    if whole[0] != 0 or whole[-1] != residues or (np.diff(whole) < 1).any():
        raise UserError(
            f"The offsets do not rise from 0 to the {residues} residues of the file", where=where,
            fix="Make the file again",
        )
    return whole


def check_positions(positions: np.ndarray, records: int, where: str) -> list[int]:
    """1-based positions as a list.

    Raises:
        UserError: Not one a record, or below 1.
    """
    if positions.shape != (records,) or positions.dtype.kind not in "iu" or (records and positions.min() < 1):
        raise UserError(
            "The positions are not one whole number from 1 for each record", where=where, fix="Make the file again"
        )
    return positions.tolist()


def check_values(shape: tuple[int, ...], dtype: np.dtype, description: Description, where: str) -> None:
    """Checks the one big array of a packed file, ``(rows, [K,] D)``, against what the file says of itself.

    Raises:
        UserError: They differ.
    """
    wanted: tuple[int, ...] = (description.dimension,)
    if description.depth > 1:
        wanted = (description.depth, description.dimension)
    if shape[1:] != wanted or len(shape) != 1 + len(wanted) or dtype.name != description.dtype:
        raise UserError(
            f"The file holds {dtype.name} numbers of shape {shape} but says {description.dtype} and {wanted} a row",
            where=where, fix="Make the file again",
        )


class PackedSource:
    """The reader of formats that hold one big array of vectors; it may lie on disk.

    Args:
        values: Something that is sliced like ``(rows, [K,] D)``.
    """

    def __init__(
        self, description: Description, ids: list[str], values: Any, offsets: np.ndarray | None,
        positions: list[int] | None, labels: dict[str, list[str]] | None = None, suite_version: str = "",
        close: Any = None,
    ) -> None:
        self.description, self.ids, self.positions = description, ids, positions
        self.labels, self.suite_version = labels or {}, suite_version
        self._values, self._offsets, self._close = values, offsets, close

    def lengths(self) -> list[int] | None:
        """Residues of each record at residue level, else None."""
        return None if self._offsets is None else np.diff(self._offsets).tolist()

    def arrays(self, start: int, stop: int) -> Iterator[np.ndarray]:
        """Records start..stop-1; read in blocks of whole records."""
        shape = (-1, self.description.depth, self.description.dimension)
        per_row = self.description.depth * self.description.dimension * 4
        while start < stop:
            end = self._block_end(start, stop, max(1, BLOCK_BYTES // per_row))
            low, high = (start, end) if self._offsets is None else map(int, self._offsets[[start, end]])
            block = np.asarray(self._values[low:high]).reshape(shape)
            if self._offsets is None:
                yield from block
            else:
                for begin, finish in zip(self._offsets[start:end], self._offsets[start + 1 : end + 1], strict=True):
                    yield block[begin - low : finish - low]
            start = end

    def _block_end(self, start: int, stop: int, rows: int) -> int:
        if self._offsets is None:
            return min(stop, start + rows)
        end = int(np.searchsorted(self._offsets, self._offsets[start] + rows, side="right")) - 1
        return min(stop, max(start + 1, end))

    def close(self) -> None:
        """Closes the file."""
        if self._close is not None:
            self._close()


@dataclass(frozen=True)
class Format:
    """What a file of formats registers.

    Attributes:
        writers: By the name of the format.
        signature: First bytes of the files that it reads.
        open: Opens a file: path, what messages call it, and what two-dimensional data sets of others hold.
    """

    writers: Mapping[str, Callable[[Path, Records], None]]
    signature: bytes
    open: Callable[[Path, str, str], Source]
