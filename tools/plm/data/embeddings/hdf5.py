"""Embeddings in HDF5: packed (few large arrays), UniProt's layout (one data set a protein), and files of others."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from plm import stage
from plm.data.embeddings.description import (
    FORMAT_NAME,
    Description,
    Format,
    PackedSource,
    Pooling,
    Records,
    Source,
    check_ids,
    check_offsets,
    check_positions,
    check_values,
)
from plm.data.embeddings.hdf5_writing import writing
from plm.errors import UserError
from plm.received import hdf5
from plm.received.documents import cleaned, one_line

if TYPE_CHECKING:
    import h5py
    from h5py import h5d

IDS, VALUES, RESIDUES, OFFSETS, POSITIONS = "ids", "values", "residues", "offsets", "positions"
_ESCAPED = {"%": "%25", "/": "%2F"}
_UNESCAPED = {"%25": "%", "%2F": "/", "%2E": "."}
_MATRIX_NAMES = frozenset(
    ("values", "embeddings", "embedding", "vectors", "representations", "features", "data", "matrix", "x", "train",
     "valid", "validation", "test", "positive", "negative")
)
"""Data sets of these names in files of others hold one row a protein, not one row a residue."""
_LABEL_NAMES = ("labels", "label", "y", "classes", "targets", "target")


def data_set_name(identifier: str) -> str:
    """An id as the name of an HDF5 data set; different ids have different names.

    ``/`` parts groups and ``.`` alone is the group itself, so both are written with ``%``, as is ``%``.
    """
    return "%2E" if identifier == "." else re.sub("[%/]", lambda match: _ESCAPED[match[0]], identifier)


def identifier_of(name: str) -> str:
    """The inverse of :func:`data_set_name`."""
    return re.sub("%25|%2F|%2E", lambda match: _UNESCAPED[match[0]], name)


# -- writing --------------------


def write_packed(path: Path, records: Records) -> None:
    """Data sets ``ids``, ``values`` ``(N, [K,] D)`` or ``residues`` ``(R, [K,] D)`` with ``offsets``, ``positions``."""
    import h5py

    with writing(path) as writer:
        file = writer.file
        _write_attributes(file, records.description, "packed")
        count = len(records.ids)
        names = file.create_dataset(IDS, (count,), h5py.string_dtype(), track_times=False)
        for start in range(0, count, 4096):
            names[start : start + 4096] = [records.ids[index] for index in range(start, min(count, start + 4096))]
        if records.offsets is not None:
            file.create_dataset(OFFSETS, data=records.offsets.astype("<i8"), track_times=False)
        if records.positions is not None:
            places = np.fromiter(records.positions, "<i8", count)
            file.create_dataset(POSITIONS, data=places, track_times=False)
        # Every byte is written below, so filling the space with zeros first would only double the work.
        values = file.create_dataset(
            VALUES if records.offsets is None else RESIDUES, (records.row_count, *records.row_shape), records.stored,
            track_times=False, fill_time="never",
        )
        done = 0
        for block in records.blocks():
            values[done : done + len(block)] = block
            done += len(block)
            writer.check()


def write_uniprot(path: Path, records: Records) -> None:
    """One data set an id in input order (tracked), with the attribute ``original_id`` (and ``position`` for sites)."""
    import h5py
    from h5py import h5a, h5d, h5p, h5s, h5t

    with writing(path, track_order=True) as writer:
        file = writer.file
        _write_attributes(file, records.description, "uniprot")
        # The low-level interface takes half the time, which counts for 100,000 data sets.
        creation = h5p.create(h5p.DATASET_CREATE)
        creation.set_obj_track_times(False)
        kind = h5t.py_create(records.stored)
        text, scalar = h5py.string_dtype(), h5s.create(h5s.SCALAR)
        text_kind, whole_kind = h5t.py_create(text, logical=True), h5t.py_create(np.dtype("<i8"))
        spaces: dict[tuple[int, ...], Any] = {}
        for index, array in enumerate(records.arrays()):
            identifier = records.ids[index]
            name = data_set_name(identifier)
            if records.positions is not None:
                name += f"@{int(records.positions[index])}"
            if array.shape not in spaces:
                if len(spaces) > 10_000:
                    spaces.clear()
                spaces[array.shape] = h5s.create_simple(array.shape)
            data_set = h5d.create(file.id, name.encode(), kind, spaces[array.shape], creation)
            data_set.write(h5s.ALL, h5s.ALL, np.ascontiguousarray(array))
            writer.check()
            attribute = h5a.create(data_set, b"original_id", text_kind, scalar)
            attribute.write(np.array(identifier, dtype=text))
            if records.positions is not None:
                attribute = h5a.create(data_set, b"position", whole_kind, scalar)
                attribute.write(np.array(records.positions[index], "<i8"))


def _write_attributes(file: h5py.File, description: Description, layout: str) -> None:
    import h5py

    for key, value in description.attributes(layout).items():
        if isinstance(value, str):
            file.attrs.create(key, value, dtype=h5py.string_dtype())
        else:
            file.attrs.create(key, np.array(value, "<i8"))


# -- reading --------------------


def open_hdf5(path: Path, name: str, matrices: str) -> Source:
    """Opens a file of ours in either layout, or one of another program.

    Args:
        path: The HDF5 file.
        name: File name in messages.
        matrices: What the rows of a two-dimensional data set of another program are: ``residues``, ``proteins`` or
            ``auto``.

    Raises:
        UserError: Broken file, or content that is no embeddings.
    """
    file = hdf5.open_hdf5(path, name)
    try:
        if hdf5.attribute(file, "format", name) == FORMAT_NAME:
            return _open_own(file, name)
        return _open_foreign(file, name, matrices)
    except (OSError, KeyError, RuntimeError, TypeError, ValueError, ArithmeticError) as error:  # of damaged content
        file.close()
        raise UserError(
            f"The HDF5 file cannot be read ({one_line(str(error), 150)})", where=name, fix="Make the file again"
        ) from error
    except BaseException:
        file.close()
        raise


def _open_own(file: h5py.File, name: str) -> Source:
    attributes = cleaned(hdf5.attributes(file, name))
    description = Description.from_attributes(attributes, name)
    version = str(attributes.get("suite_version", ""))
    layout = attributes.get("layout")
    if layout == "uniprot":
        places: list[int] | None = None
        names = list(file)
        if description.level == "site":
            parted = [one.rpartition("@") for one in names]
            if any(not place.isdigit() for _, _, place in parted):
                raise UserError("A data set's name does not end in @position", where=name, fix="Make the file again")
            places = [int(place) for _, _, place in parted]
            ids = [hdf5.as_text(identifier_of(before), name) for before, _, _ in parted]
        else:
            ids = [hdf5.as_text(identifier_of(one), name) for one in names]
        return _Datasets(file, name, description, names, ids, places, suite_version=version)
    if layout != "packed":
        raise UserError(f"The layout {layout!r} is unknown", where=name, fix="Use the version that wrote the file")
    key = RESIDUES if description.level == "residue" else VALUES
    values = hdf5.own_data_set(file, key, name)
    ids = hdf5.texts(hdf5.own_data_set(file, IDS, name), name)
    check_values(values.shape, values.dtype, description, name)
    offsets = positions = None
    if description.level == "residue":
        offsets = check_offsets(_numbers(file, OFFSETS, len(ids) + 1, name), len(ids), len(values), name)
    elif len(ids) != len(values):
        raise UserError(f"There are {len(ids)} ids for {len(values)} vectors", where=name, fix="Make the file again")
    if description.level == "site":
        positions = check_positions(_numbers(file, POSITIONS, len(ids), name), len(ids), name)
    check_ids(ids, positions, name)
    rows = hdf5.StoredRows(values, name)
    return PackedSource(description, ids, rows, offsets, positions, suite_version=version, close=file.close)


def _open_foreign(file: h5py.File, name: str, matrices: str) -> Source:
    data_sets = dict(hdf5.walk(file, name))
    lowered = {key.lower(): key for key in data_sets}
    for ids_name in ("ids", "id", "names", "accessions"):
        for values_name in ("values", "embeddings", "vectors", "representations", "features", "x"):
            if ids_name in lowered and values_name in lowered and data_sets[lowered[values_name]].ndim == 2:
                values, names = data_sets[lowered[values_name]], data_sets[lowered[ids_name]]
                return _matrices(file, name, {values_name: values}, hdf5.texts(names, name), data_sets)
    numeric = {key: one for key, one in data_sets.items() if one.dtype.kind == "f" and one.ndim > 0}
    if not numeric:
        raise UserError(
            "The HDF5 file holds no embeddings (no data set of floating-point numbers)", where=name,
            fix="Give an embeddings file, for instance of plm_embed",
        )
    first = next(iter(numeric.values()))
    if matrices == "auto":
        generic = all(key.rsplit("/", 1)[-1].lower() in _MATRIX_NAMES for key in numeric)
        matrices = "proteins" if first.ndim == 2 and generic else "residues"
    if matrices == "proteins" and all(one.ndim == 2 for one in numeric.values()):
        return _matrices(file, name, numeric, None, data_sets)
    # UniProt's layout; bio_embeddings keeps the id in an attribute and may leave an axis of length one in front.
    single = first.ndim == 1 or all(one.ndim == 2 and one.shape[0] == 1 for one in numeric.values())
    pooling: Pooling = "" if single else "residues"
    names = list(numeric)
    ids = [
        # An id with a slash lies in a group; the whole path is the id, as other programs leave it.
        hdf5.as_text(str(hdf5.attribute(numeric[key], "original_id", name) or key), name)
        for key in names
    ]
    labels = {"group": [one_line(key.rpartition("/")[0]) for key in names]} if any("/" in key for key in names) else {}
    description = Description("", "", (), pooling, _stored(first.dtype), int(first.shape[-1]))
    return _Datasets(file, name, description, names, ids, None, labels)


def _matrices(
    file: h5py.File, name: str, numeric: dict[str, h5py.Dataset], ids: list[str] | None,
    data_sets: dict[str, h5py.Dataset],
) -> Source:
    """Data sets whose rows are proteins: their names and row numbers become ids, the names a label."""
    parts = list(numeric.items())
    width = int(parts[0][1].shape[1])
    for key, part in parts:
        if part.shape[1] != width:
            raise UserError(
                f"{key} has {part.shape[1]} columns where {parts[0][0]} has {width}", where=name,
                fix="Give embeddings of one model",
            )
    total = sum(len(part) for _, part in parts)
    labels: dict[str, list[str]] = {}
    if ids is None:
        stem = name.rsplit(".", 1)[0] or name
        ids = [f"{stem if len(parts) == 1 else key}:{row}" for key, part in parts for row in range(len(part))]
        if len(parts) > 1:
            labels["group"] = [one_line(key) for key, part in parts for _ in range(len(part))]
    if len(ids) != total:
        raise UserError(f"There are {len(ids)} ids for {total} vectors", where=name, fix="Make the file again")
    for key, other in data_sets.items():
        if key.lower() in _LABEL_NAMES and other.shape == (total,):
            labels[one_line(key)] = [_label(value, name) for value in other[()].tolist()]
    check_ids(ids, None, name)
    description = Description("", "", (), "", _stored(parts[0][1].dtype), width)
    stacked = _Stacked([part for _, part in parts], name)
    return PackedSource(description, ids, stacked, None, None, labels, close=file.close)


class _Stacked:
    """Matrices one below the other, sliced as one."""

    def __init__(self, parts: list[h5py.Dataset], name: str) -> None:
        self._parts = [(hdf5.StoredRows(part, name), len(part)) for part in parts]

    def __getitem__(self, rows: slice) -> np.ndarray:
        taken = []
        before = 0
        for part, count in self._parts:
            low, high = max(rows.start - before, 0), min(rows.stop - before, count)
            if low < high:
                taken.append(part[low:high])
            before += count
        return np.concatenate(taken)


class _Datasets:
    """UniProt's layout: one data set a record, opened when it is wanted."""

    def __init__(
        self, file: h5py.File, name: str, description: Description, names: list[str], ids: list[str],
        positions: list[int] | None, labels: dict[str, list[str]] | None = None, suite_version: str = "",
    ) -> None:
        check_ids(ids, positions, name)
        self.description, self.ids, self.positions = description, ids, positions
        self.labels, self.suite_version = labels or {}, suite_version
        self._file, self._name, self._names = file, name, names
        self._bytes, self._most = hdf5.file_size(file), stage.memory_mib() * 2**20
        self._lengths: list[int] | None = None

    def lengths(self) -> list[int] | None:
        """Residues of each record at residue level, else None."""
        if self.description.level == "residue" and self._lengths is None:
            self._lengths = [self._open(index)[1][0] for index in range(len(self.ids))]
        return self._lengths

    def arrays(self, start: int, stop: int) -> Iterator[np.ndarray]:
        """Records start..stop-1."""
        from h5py import h5s

        for index in range(start, stop):
            data_set, shape = self._open(index)
            array = np.empty(data_set.shape, data_set.dtype)
            try:
                data_set.read(h5s.ALL, h5s.ALL, array)
            except OSError as error:
                raise UserError(
                    f"The embedding of {self.ids[index]!r} cannot be read ({error})", where=self._name,
                    fix="Transfer or make the file again",
                ) from error
            yield array.reshape(shape)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _open(self, index: int) -> tuple[h5d.DatasetID, tuple[int, ...]]:
        """A data set and its shape as ``(K, D)`` or ``(L, K, D)``.

        Through the low-level interface, since this happens for each of perhaps 500,000 records.

        Raises:
            UserError: It is missing, lies outside the file, or does not fit the others.
        """
        from h5py import h5d, h5l

        key = self._names[index].encode()
        try:
            plain = "/" in self._names[index] or self._file.id.links.get_info(key).type == h5l.TYPE_HARD
            data_set = h5d.open(self._file.id, key)
        except (KeyError, RuntimeError, OSError) as error:
            raise UserError(
                f"The data set {self._names[index]} is missing or broken", where=self._name, fix="Make the file again"
            ) from error
        if not plain:
            raise UserError(
                f"{self._names[index]} is no data set of this file", where=self._name, fix="Make the file again"
            )
        hdf5.judge(data_set, self._names[index], self._name, self._bytes)
        shape = data_set.shape
        if shape is None or math.prod(shape) * 8 > self._most:
            raise UserError(
                f"The embedding of {self.ids[index]!r} is {shape} and does not fit into the memory", where=self._name,
                fix="Give the job more memory, or do not trust this file",
            )
        return data_set, self._shape(data_set.shape, data_set.dtype, index)

    def _shape(self, shape: tuple[int, ...], dtype: np.dtype, index: int) -> tuple[int, ...]:
        """``(K, D)`` or ``(L, K, D)``, checked; an axis of length one in front is dropped from files of others."""
        given = shape
        depth, dimension = self.description.depth, self.description.dimension
        tail = (depth, dimension) if depth > 1 else (dimension,)
        residue = self.description.level == "residue"
        if not self.suite_version and len(shape) == len(tail) + residue + 1 and shape[0] == 1:
            shape = shape[1:]
        fits = len(shape) == len(tail) + residue and shape[residue:] == tail and 0 not in shape and dtype.kind == "f"
        if not fits:
            wanted = ("L", *tail) if residue else tail
            raise UserError(
                f"The embedding of {self.ids[index]!r} has shape {given} ({dtype}) where the file "
                f"has ({', '.join(map(str, wanted))})",
                where=self._name, fix="Give embeddings of one model and one level",
            )
        return (shape[0], depth, dimension) if residue else (depth, dimension)


def _numbers(file: h5py.File, key: str, count: int, name: str) -> np.ndarray:
    """One number a record, read only if there are as many as there should be."""
    one = hdf5.own_data_set(file, key, name)
    if one.shape != (count,):
        return np.empty(one.shape if np.prod(one.shape) < 10**6 else 0, one.dtype)
    numbers: np.ndarray = one[()]
    return numbers


def _label(value: Any, name: str) -> str:
    return hdf5.as_text(value, name, "labels") if isinstance(value, bytes) else str(value)


def _stored(dtype: np.dtype) -> Any:
    return "float16" if dtype.itemsize == 2 else "float32"


FORMAT = Format({"hdf5": write_packed, "hdf5-uniprot": write_uniprot}, b"\x89HDF\r\n\x1a\n", open_hdf5)
