"""Embeddings files: written whole or streamed, read lazily, in five formats.

================  =====================================================================================================
``hdf5``          packed: data sets ``ids``, ``values`` ``(N, D)`` or ``(N, K, D)`` for K > 1 layers; at residue level
                  ``residues`` ``(R, D)`` or ``(R, K, D)`` and ``offsets`` ``(N + 1)``; at site level ``positions`` too
``hdf5-uniprot``  one data set a record, named by its id (``/`` and ``%`` percent-encoded), attribute ``original_id``
``npz``           the arrays of ``hdf5`` and ``description`` (JSON)
``parquet``       one row a vector: ``id``, ``position``, ``layer`` (only those needed), ``e0``, ``e1``, ...
``tabular``       the same as tab-separated text; it holds numbers alone, not the model's name
================  =====================================================================================================

Equal input gives equal bytes. Memory does not grow with the number of records when ids are lazy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from plm.data.embeddings import hdf5, npz, tabular
from plm.data.embeddings.description import Counts, Description, Level, Source, make_records
from plm.errors import UserError

__all__ = ["FORMATS", "Description", "Embeddings", "read_embeddings", "write_embeddings"]

_REGISTERED = (hdf5.FORMAT, npz.FORMAT, tabular.FORMAT)
"""One a file of formats; the last reads whatever no other claims."""
_WRITERS = {name: write for form in _REGISTERED for name, write in form.writers.items()}
FORMATS = tuple(_WRITERS)


def write_embeddings(
    path: str | Path, format: str, description: Description, ids: Sequence[str], rows: Iterable[np.ndarray], *,
    lengths: Counts | None = None, positions: Counts | None = None,
) -> None:
    """Writes one embeddings file.

    Args:
        path: File to write; one that is there is replaced.
        format: One of ``FORMATS``.
        description: Model, layer, pooling, dtype and dimension of the vectors.
        ids: Of the records; may be lazy. At site level an id may come again with another position.
        rows: One float array a record in the order of ``ids``: ``(D,)``, at residue level ``(L, D)``; with K > 1 layers
            ``(K, D)`` and ``(L, K, D)``. It is read once and not kept.
        lengths: Residues of each record; needed at residue level.
        positions: 1-based places; needed at site level.

    Raises:
        UserError: An id is repeated or cannot be stored, a number is too large for float16.
        ValueError: Arrays, lengths or positions that do not fit what was announced (a bug of the caller).
    """
    if format not in FORMATS:
        raise ValueError(f"{format!r} is none of {FORMATS}")
    records = make_records(description, ids, rows, lengths, positions)
    _WRITERS[format](Path(path), records)


def read_embeddings(
    path: str | Path, *, layer: int | None = None, name: str = "", matrices: str = "auto"
) -> Embeddings:
    """Opens an embeddings file of ours or of another program; its kind is told by its content.

    Read are also UniProt's ``per-protein.h5`` and ``per-residue.h5``, HDF5 with groups, HDF5 and npz with ids and
    values, and tables (TSV, CSV, Parquet) with an id and columns of numbers.

    Args:
        path: Embeddings file to read.
        layer: Take this layer of a file with several; None: all of them.
        name: What messages call the file; default: its own name.
        matrices: What the rows of two-dimensional data sets in HDF5 of others are: ``residues`` of one protein (as
            UniProt has it), ``proteins``, or ``auto``: proteins if the data sets have names such as ``embeddings``.

    Raises:
        UserError: Missing, broken or other content, or a layer that the file does not have.
    """
    path = Path(path)
    name = name or path.name
    if not path.is_file():
        raise UserError("The embeddings file does not exist", where=str(path), fix="Check the path")
    with path.open("rb") as handle:
        start = handle.read(8)
    if not start:
        raise UserError("The embeddings file is empty", where=name, fix="Make the file again")
    if start.startswith((b"\x80", b"\x93NUMPY")):
        raise UserError(
            "This is a pickle or a bare numpy array", where=name, fix="Give HDF5, npz (with ids), Parquet or a table"
        )
    form = next(form for form in _REGISTERED if start.startswith(form.signature))
    source = form.open(path, name, matrices)
    try:
        return Embeddings(source, name, layer)
    except BaseException:
        source.close()
        raise


class Embeddings:
    """An open embeddings file; numbers are read when they are asked for.

    Attributes:
        name: File name in messages.
        ids: One a record, in file order.
        description: What the numbers are; after choosing a layer, of that layer alone.
        positions: 1-based places at site level, else None.
        labels: Further columns of tables (and of HDF5 groups), one string a record.
        suite_version: Version of the suite that wrote the file; empty for files of other programs.
    """

    def __init__(self, source: Source, name: str, layer: int | None = None) -> None:
        self._source, self.name = source, name
        whole = source.description
        self._layer: int | None = None
        if layer is not None:
            if layer not in whole.layers:
                held = ", ".join(map(str, whole.layers)) or "one layer of unknown number"
                raise UserError(
                    f"There is no layer {layer} (the file has: {held})", where=name, fix="Choose one of these"
                )
            self._layer = whole.layers.index(layer)
            whole = Description(
                whole.model, whole.model_sha256, (layer,), whole.pooling, whole.dtype, whole.dimension, whole.notes
            )
        self.description = whole
        self.ids = source.ids
        self.positions = source.positions
        self.labels = source.labels
        self.suite_version = source.suite_version

    def __enter__(self) -> Embeddings:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def level(self) -> Level:
        """``protein``, ``residue`` or ``site``."""
        return self.description.level

    @property
    def dimension(self) -> int:
        """Numbers in a vector (D)."""
        return self.description.dimension

    @property
    def lengths(self) -> list[int] | None:
        """Residues of each record at residue level, else None."""
        return self._source.lengths()

    def records(self, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        """Streams records as stored (float16 or float32), in file order.

        Args:
            start: 0-based first record.
            stop: 0-based end; None: all.

        Yields:
            ``(D,)`` or ``(K, D)``; at residue level ``(L, D)`` or ``(L, K, D)``. Do not change them.

        Raises:
            UserError: Damaged or uneven content.
        """
        stored = np.dtype(self.description.dtype)
        for array in self._source.arrays(start, len(self) if stop is None else stop):
            if self._layer is not None:
                array = array[..., self._layer, :]
            elif self.description.depth == 1:
                array = array[..., 0, :]
            yield array if array.dtype == stored else array.astype(stored)

    def row(self, index: int) -> np.ndarray:
        """One record as float32: ``(D,)``, at residue level ``(L, D)``; with K > 1 layers ``(K, D)``, ``(L, K, D)``."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        return next(self.records(index, index + 1)).astype(np.float32)

    def matrix(self) -> np.ndarray:
        """All records as one ``(N, D) float32``; at residue level the mean over each protein's residues.

        Raises:
            UserError: The file has several layers and none was chosen.
        """
        self._one_layer()
        result = np.empty((len(self), self.dimension), np.float32)
        for index, array in enumerate(self.records()):
            result[index] = array.mean(axis=0, dtype=np.float64) if self.level == "residue" else array
        return result

    def check_finite(self) -> None:
        """Checks all numbers.

        Raises:
            UserError: Names the first record with NaN or infinity.
        """
        for index, array in enumerate(self.records()):
            if not np.isfinite(array).all():
                place = "" if self.positions is None else f", position {self.positions[index]}"
                if self.level == "residue":
                    place = f", residue {int(np.argwhere(~np.isfinite(array))[0][0]) + 1}"
                raise UserError(
                    f"The embedding of {self.ids[index]!r} holds NaN or infinity",
                    where=f"{self.name}, record {index + 1}{place}", fix="Make it again, with float32 or another model",
                )

    def close(self) -> None:
        """Closes the file."""
        self._source.close()

    def _one_layer(self) -> None:
        if self.description.depth > 1:
            raise UserError(
                f"The file has several layers ({', '.join(map(str, self.description.layers))})", where=self.name,
                fix="Choose one with --layer",
            )

    @property
    def notes(self) -> Mapping[str, str]:
        """Further facts that the file carries."""
        return self.description.notes
