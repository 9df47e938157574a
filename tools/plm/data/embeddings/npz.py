"""Embeddings as a numpy archive (npz): arrays that any Python reads, no pickle in either direction."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from plm.data.embeddings.description import (
    FORMAT_NAME,
    Description,
    Format,
    PackedSource,
    Records,
    Source,
    check_ids,
    check_offsets,
    check_positions,
    check_values,
)
from plm.errors import UserError
from plm.received.arrays import open_arrays, texts
from plm.received.documents import cleaned, has_breaks, one_line, parse_json

DESCRIPTION = "description"
_DATE = (1980, 1, 1, 0, 0, 0)
_IDS = ("ids", "id", "names", "accessions", "headers", "labels_ids")
_VALUES = ("values", "embeddings", "embedding", "vectors", "representations", "features", "X", "x", "arr_0")
_LABELS = ("labels", "label", "y", "targets", "target")


def write_npz(path: Path, records: Records) -> None:
    """Members ``description`` (JSON), ``ids``, ``values`` or ``residues`` and ``offsets``, ``positions``; stored."""
    attributes = json.dumps(records.description.attributes("packed"), ensure_ascii=False)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        _member(archive, DESCRIPTION, (), np.array(attributes).dtype.newbyteorder("<"), [np.array(attributes)])
        count = len(records.ids)
        longest = max((len(identifier) for identifier in records.ids), default=1)
        text = np.dtype(f"<U{longest}")
        parts = (
            np.array([records.ids[index] for index in range(start, min(count, start + 4096))], text)
            for start in range(0, count, 4096)
        )
        _member(archive, "ids", (count,), text, parts)
        if records.offsets is not None:
            _member(archive, "offsets", records.offsets.shape, np.dtype("<i8"), [records.offsets])
        if records.positions is not None:
            _member(archive, "positions", (count,), np.dtype("<i8"), [np.fromiter(records.positions, "<i8", count)])
        key = "values" if records.offsets is None else "residues"
        _member(archive, key, (records.row_count, *records.row_shape), records.stored, records.blocks())


def _member(
    archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], dtype: np.dtype, parts: Iterable[np.ndarray]
) -> None:
    """One array, written part by part."""
    info = zipfile.ZipInfo(f"{name}.npy", _DATE)
    with archive.open(info, "w", force_zip64=True) as handle:
        header = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        npy.write_array_header_1_0(handle, header)
        for part in parts:
            handle.write(np.ascontiguousarray(part, dtype).tobytes())


def open_npz(path: Path, name: str, matrices: str = "") -> Source:
    """Opens an archive of ours, or one of others with ids and values, one matrix, or one vector an id.

    ``matrices`` says nothing of archives.

    Raises:
        UserError: No zip, arrays that need pickle, damaged content, or nothing like embeddings.
    """
    arrays = open_arrays(path, name)
    if DESCRIPTION in arrays and arrays[DESCRIPTION].shape == () and arrays[DESCRIPTION].dtype.kind == "U":
        return _own(arrays, name)
    return _foreign(arrays, name)


def _own(arrays: dict[str, np.ndarray], name: str) -> Source:
    attributes = cleaned(parse_json(str(arrays[DESCRIPTION]), "The description", name, "Make the file again"))
    if not isinstance(attributes, dict) or attributes.get("format") != FORMAT_NAME:
        raise UserError("The description is not of an embeddings file", where=name, fix="Make the file again")
    description = Description.from_attributes(attributes, name)
    key = "residues" if description.level == "residue" else "values"
    wanted = {"ids", key} | {"residue": {"offsets"}, "site": {"positions"}}.get(description.level, set())
    if missing := sorted(wanted - set(arrays)):
        raise UserError(f"The array {missing[0]} is missing", where=name, fix="Make the file again")
    values = arrays[key]
    check_values(values.shape, values.dtype, description, name)
    ids = texts(arrays["ids"], name)
    offsets = positions = None
    if description.level == "residue":
        offsets = check_offsets(arrays["offsets"], len(ids), len(values), name)
    elif len(ids) != len(values):
        raise UserError(f"There are {len(ids)} ids for {len(values)} vectors", where=name, fix="Make the file again")
    if description.level == "site":
        positions = check_positions(arrays["positions"], len(ids), name)
    check_ids(ids, positions, name)
    return PackedSource(
        description, ids, values, offsets, positions, suite_version=str(attributes.get("suite_version", ""))
    )


def _foreign(arrays: dict[str, np.ndarray], name: str) -> Source:
    numeric = {key: array for key, array in arrays.items() if array.dtype.kind == "f" and array.ndim > 0}
    values = next((numeric[key] for key in _VALUES if key in numeric and numeric[key].ndim == 2), None)
    if values is None and len(numeric) == 1 and next(iter(numeric.values())).ndim == 2:
        values = next(iter(numeric.values()))
    ids_key = next((key for key in _IDS if key in arrays), None)
    labels: dict[str, list[str]] = {}
    if values is not None:
        ids = (
            [f"{Path(name).stem}:{row}" for row in range(len(values))]
            if ids_key is None
            else texts(arrays[ids_key], name)
        )
        for key in _LABELS:
            if key in arrays and arrays[key].shape == (len(values),) and arrays[key] is not values:
                labels[key] = _labels(arrays[key], name)
    elif numeric and all(array.ndim == 1 for array in numeric.values()) and ids_key is None:
        widths = {key: len(array) for key, array in numeric.items()}
        first = next(iter(widths))
        other = next((key for key, width in widths.items() if width != widths[first]), None)
        if other is not None:
            raise UserError(
                f"{other!r} has {widths[other]} numbers where {first!r} has {widths[first]}", where=name,
                fix="Give embeddings of one model",
            )
        broken = next((key for key in numeric if has_breaks(key)), None)
        if broken is not None:
            raise UserError(f"The id {one_line(broken, 60)!r} holds a tab or a line end", where=name, fix="Rename it")
        ids, values = list(numeric), np.stack(list(numeric.values()))
    else:
        raise UserError(
            f"The archive holds no arrays ids and values (but {', '.join(list(arrays)[:6])})", where=name,
            fix="Save them with np.savez(file, ids=..., values=...)",
        )
    if len(ids) != len(values):
        raise UserError(f"There are {len(ids)} ids for {len(values)} vectors", where=name, fix="Make the file again")
    if values.shape[1] == 0 or len(values) == 0:
        raise UserError("The archive holds no embeddings", where=name, fix="Give a file with at least one")
    check_ids(ids, None, name)
    dtype: Any = "float16" if values.dtype.itemsize == 2 else "float32"
    return PackedSource(Description("", "", (), "", dtype, values.shape[1]), ids, values, None, None, labels)


def _labels(array: np.ndarray, name: str) -> list[str]:
    return texts(array, name, "labels") if array.dtype.kind in "US" else [str(value) for value in array.tolist()]


FORMAT = Format({"npz": write_npz}, b"PK", open_npz)
