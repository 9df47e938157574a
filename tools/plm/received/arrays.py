"""numpy archives (npz) of strangers: no pickles, and arrays as large as their members really are."""

from __future__ import annotations

import math
import struct
import sys
import tokenize
import zipfile
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from plm import stage
from plm.disk_space import size
from plm.errors import UserError
from plm.received.archives import BROKEN, Archive
from plm.received.documents import has_breaks, one_line

_AGAIN = "Transfer or make the file again"
_MAPPED_FROM = 2**20


def open_arrays(path: Path, name: str) -> dict[str, np.ndarray]:
    """The arrays of an archive by name: large ones that are stored plainly are mapped, the others are read.

    Args:
        path: NumPy archive (npz) to read.
        name: File name in messages.

    Raises:
        UserError: No zip, no arrays in it, arrays that need pickle, damaged content, sizes that do not fit.
    """
    with Archive(path, "archive", _AGAIN) as opened:
        members = {
            member.filename.removesuffix(".npy"): member
            for member in opened.members.values()
            if member.filename.endswith(".npy")
        }
        if not members:
            raise UserError(
                "The archive holds no numpy arrays; PyTorch's own files (.pt) hold pickles and are not read",
                where=name, fix="Give HDF5, npz, Parquet or a table",
            )
        try:
            return {key: _array(path, opened, member, name) for key, member in members.items()}
        except BROKEN as error:
            raise UserError(
                f"The archive is broken or cut short ({one_line(str(error), 120)})", where=name, fix=_AGAIN
            ) from error


def _array(path: Path, archive: Archive, member: zipfile.ZipInfo, name: str) -> np.ndarray:
    key = one_line(member.filename, 80)
    with archive.stream(member) as handle:
        try:
            version = npy.read_magic(handle)
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, fortran, dtype = read(handle)
            if any(isinstance(extent, bool) or extent < 0 for extent in shape):
                raise ValueError("a negative extent")
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError, tokenize.TokenError) as error:
            reason = one_line(str(error), 80)
            raise UserError(f"{key} is no numpy array ({reason})", where=name, fix="Make the file again") from error
        if dtype.hasobject:
            raise UserError(
                f"{key} holds Python objects, which only pickle could read; pickle is not safe and is refused",
                where=name, fix="Save ids as text (np.array(ids, dtype=str)) and numbers as float32",
            )
        if dtype.kind not in "fiuUSbc" or dtype.itemsize == 0:
            raise UserError(
                f"{key} holds {one_line(str(dtype), 60)}; only numbers and text are read", where=name,
                fix="Save ids as text and numbers as float32",
            )
        header = handle.tell()
        count = math.prod(shape) * dtype.itemsize
        if header + count != member.file_size or len(shape) > 8:
            raise UserError(f"{key} is cut short: its shape does not fit its size", where=name, fix=_AGAIN)
        if member.compress_type != zipfile.ZIP_STORED and count > stage.memory_mib() * 2**20:
            raise UserError(
                f"{key} takes {size(count)} and does not fit into the memory", where=name,
                fix="Give the job more memory, or the archive without compression (np.savez)",
            )
        if member.compress_type != zipfile.ZIP_STORED or count < _MAPPED_FROM:
            flat = np.frombuffer(handle.read(), dtype)
            return flat.reshape(shape, order="F" if fortran else "C")
        while handle.read(2**18):  # to the end: the checksum is compared there
            pass
    with path.open("rb") as raw:
        raw.seek(member.header_offset + 26)
        name_length, extra_length = struct.unpack("<HH", raw.read(4))
    start = member.header_offset + 30 + name_length + extra_length + header
    return np.memmap(path, dtype, "r", start, shape, order="F" if fortran else "C")


def texts(array: np.ndarray, name: str, what: str = "ids") -> list[str]:
    """A list of text (or of whole numbers, as text).

    Raises:
        UserError: Another kind of array, not UTF-8, or holding tabs or line ends.
    """
    if array.ndim != 1 or array.dtype.kind not in "USiu":
        raise UserError(f"The {what} are no list of text", where=name, fix="Make the file again")
    if array.dtype.kind == "U" and array.size and array.dtype.itemsize:
        points = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="))).view(np.uint32)
        if int(points.max()) > sys.maxunicode:  # Python would make texts of them that it cannot handle
            raise UserError(f"The {what} are no text", where=name, fix="Make the file again")
    try:
        decoded = [value.decode("utf-8") if isinstance(value, bytes) else str(value) for value in array.tolist()]
    except (UnicodeDecodeError, ValueError) as error:  # half a code point surfaces as ValueError
        raise UserError(f"The {what} are not UTF-8 text", where=name, fix="Make the file again") from error
    for text in decoded:
        if has_breaks(text):
            raise UserError(
                f"One of the {what}, {one_line(text, 60)!r}, holds a tab, a line end or another character that no "
                "table can hold", where=name, fix="Rename it",
            )
    return decoded
