"""HDF5 files of strangers: only numbers and text that lie in the file itself, as many as the file really holds.

HDF5 can take a data set's bytes from any file that the job may read (external storage, virtual data sets, external
links), run filters from libraries, and declare terabytes that were never written. None of that is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from plm.disk_space import size
from plm.errors import UserError
from plm.received.documents import has_breaks, one_line
from plm.received.limits import check_growth
from plm.received.trial import try_out

if TYPE_CHECKING:
    import h5py
    from h5py import h5d

FILTERS = frozenset((1, 2, 3, 4, 5, 6, 32000))
"""deflate, shuffle, fletcher32, szip, nbit, scaleoffset, lzf: what h5py brings itself."""
LONGEST_ID = 10_000
_MOST_ATTRIBUTE_BYTES = 2**20
_DEEPEST = 6
_LOOKED_AT = 5_000
"""Objects: a file may have one a protein. Damage of the texts that all share shows at the first ones."""
_TEXTS = 1_000
_AGAIN = "Make the file again"


def open_hdf5(path: Path, name: str) -> h5py.File:
    """Opens a file for reading; what it holds is judged piece by piece as it is asked for.

    Args:
        path: HDF5 file to read.
        name: File name in messages.

    Raises:
        UserError: No HDF5, broken or cut short, or damaged so that the library does not come back from it.
    """
    import h5py

    try_out(_look, path, "HDF5", name)
    try:
        return h5py.File(path, "r")
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        reason = one_line(str(error).rstrip(")").rsplit("(", 1)[-1], 150)
        raise UserError(
            f"The HDF5 file is broken or cut short ({reason})", where=name, fix="Transfer or make the file again"
        ) from error


def _look(path: Path, step: Callable[[], object]) -> None:
    """Reads what the library follows pointers for: names, attributes and texts."""
    import h5py

    with h5py.File(path, "r") as file:
        attributes(file, path.name)
        step()
        for number, (_, one) in enumerate(walk(file, path.name)):
            step()
            if number == _LOOKED_AT:
                return
            attributes(one, path.name)
            step()
            if one.ndim == 1 and h5py.check_string_dtype(one.dtype) is not None:
                for start in range(0, len(one), _TEXTS):
                    one[start : start + _TEXTS]
                    step()


def own_data_set(file: h5py.File, key: str, name: str) -> h5py.Dataset:
    """A data set at the top of a file, judged by :func:`judge`.

    Raises:
        UserError: It is missing, a link, no data set, or none that is read here.
    """
    import h5py

    try:
        link = file.get(key, getlink=True)
        one = file[key] if link is None or isinstance(link, h5py.HardLink) else None  # a KeyError where there is none
    except (KeyError, OSError, RuntimeError) as error:
        raise UserError(f"The data set {key} is missing or broken", where=name, fix=_AGAIN) from error
    if not isinstance(one, h5py.Dataset):
        raise UserError(f"{key} is no data set of this file", where=name, fix=_AGAIN)
    judge(one.id, key, name, file_size(file))
    refused = unread_type(one.id)
    if refused:
        raise UserError(
            f"{key} holds {refused}; only numbers and text are read", where=name, fix="Store ids as text and numbers "
            "as float32",
        )
    return one


def walk(file: h5py.File, name: str) -> Iterator[tuple[str, h5py.Dataset]]:
    """All data sets of numbers or text with their paths, each judged by :func:`judge`.

    Data sets of other kinds (references, records, complex numbers) are left out.

    Raises:
        UserError: A link, groups nested too deeply or within each other, or a data set that is refused.
    """
    yield from _walk(file, name, "", file_size(file), set())


def _walk(
    group: h5py.Group, name: str, prefix: str, real_bytes: int, seen: set[int]
) -> Iterator[tuple[str, h5py.Dataset]]:
    import h5py
    from h5py import h5o

    address = int(h5o.get_info(group.id).addr)
    if address in seen or prefix.count("/") > _DEEPEST:
        raise UserError("Groups are nested too deeply", where=name, fix="Give a flat file")
    seen.add(address)
    for key in group:
        if isinstance(key, bytes):  # h5py gives what it cannot decode as it is
            raise UserError("The name of a data set is not UTF-8 text", where=name, fix=_AGAIN)
        path = prefix + key
        if not isinstance(group.get(key, getlink=True), h5py.HardLink):
            raise UserError(f"{one_line(path, 100)} is a link", where=name, fix="Copy the data into the file")
        one = group[key]
        if isinstance(one, h5py.Group):
            yield from _walk(one, name, f"{path}/", real_bytes, seen)
        elif isinstance(one, h5py.Dataset):
            judge(one.id, path, name, real_bytes)
            if not unread_type(one.id):
                yield path, one


class StoredRows:
    """A data set that is read by slices of its rows; damage is one line.

    Args:
        data_set: Data set that :func:`judge` has let through.
        name: File name in messages.
    """

    def __init__(self, data_set: h5py.Dataset, name: str) -> None:
        self._data_set, self._name = data_set, name

    def __getitem__(self, rows: slice) -> np.ndarray:
        try:
            values: np.ndarray = self._data_set[rows]
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"The HDF5 file is damaged in the middle ({one_line(str(error), 100)})", where=self._name,
                fix="Transfer or make the file again",
            ) from error
        return values


def file_size(file: h5py.File) -> int:
    """Bytes that a file takes on the disk."""
    return Path(file.filename).stat().st_size


def judge(data_set: h5d.DatasetID, key: str, name: str, real_bytes: int) -> None:
    """Whether a data set lies in its file, and is there in full.

    Args:
        data_set: The data set, opened; nothing of it has been read.
        key: Name of the data set in its file.
        name: File name in messages.
        real_bytes: Size of the file on the disk.

    Raises:
        UserError: Its numbers come from elsewhere, need a library that is not known, or were never written.
    """
    from h5py import h5d

    creation = data_set.get_create_plist()
    if creation.get_layout() == h5d.VIRTUAL or creation.get_external_count():
        raise UserError(
            f"{one_line(key, 100)} is no data set of this file: it takes its numbers from another one", where=name,
            fix="Copy the numbers into the file; do not trust it otherwise",
        )
    filtered = creation.get_nfilters()
    for number in range(filtered):
        code = creation.get_filter(number)[0]
        if code not in FILTERS:
            raise UserError(
                f"{one_line(key, 100)} is compressed by a filter that is not read here (number {code})", where=name,
                fix="Write the file with gzip or without compression",
            )
    shape = data_set.shape
    if shape is None:
        return
    logical = data_set.get_type().get_size()
    for extent in shape:
        logical *= int(extent)
    stored = int(data_set.get_storage_size())
    if stored > real_bytes or (not filtered and stored < logical):
        raise UserError(
            f"{one_line(key, 100)} says that it holds {size(logical)}, but they are not in the file of "
            f"{size(real_bytes)}", where=name, fix="Transfer or make the file again",
        )
    check_growth(logical, stored, one_line(key, 100), name)


def unread_type(data_set: h5d.DatasetID) -> str:
    """What a data set holds, if that is neither numbers nor text; else an empty text."""
    from h5py import h5t

    if data_set.shape is None:
        return "nothing"
    try:
        kind = data_set.get_type()
        if kind.get_class() in (h5t.INTEGER, h5t.FLOAT):
            # A layout of its own has no type in numpy.
            return "" if np.dtype(kind.dtype).kind in "fiu" else "numbers of an unknown type"
        if kind.get_class() == h5t.STRING:
            return ""
    except (TypeError, ValueError, NotImplementedError):
        return "values of an unknown type"
    known = {h5t.COMPOUND: "records or complex numbers", h5t.REFERENCE: "references", h5t.ENUM: "flags"}
    return known.get(data_set.get_type().get_class(), "values of an unknown type")


def attributes(holder: h5py.File | h5py.Dataset, name: str) -> dict[str, Any]:
    """Attributes that are text, numbers or lists of them, as plain values; others are left out.

    Raises:
        UserError: One is too large.
    """
    values = {}
    for key in holder.attrs:
        if not isinstance(key, str):  # a name that is no UTF-8
            continue
        value = attribute(holder, key, name)
        if value is not None:
            values[key] = value
    return values


def attribute(holder: h5py.File | h5py.Dataset, key: str, name: str) -> Any:
    """One attribute, or None if it is missing or neither text nor numbers.

    Raises:
        UserError: It is too large.
    """
    from h5py import h5a, h5t

    try:
        if not h5a.exists(holder.id, key.encode()):
            return None
        one = h5a.open(holder.id, key.encode())
        kind = one.get_type()
        if kind.get_class() not in (h5t.INTEGER, h5t.FLOAT, h5t.STRING) or one.shape is None:
            return None
        count = 1
        for extent in one.shape:
            count *= int(extent)
        if count * kind.get_size() > _MOST_ATTRIBUTE_BYTES:
            raise UserError(f"The attribute {one_line(key, 60)} is too large", where=name, fix=_AGAIN)
        value = holder.attrs[key]
    except (OSError, RuntimeError, TypeError, ValueError, KeyError):
        return None
    return _plain(value)


def texts(data_set: h5py.Dataset, name: str, what: str = "ids") -> list[str]:
    """A list of text (or of whole numbers, as text), read piece by piece.

    Raises:
        UserError: Not one dimension of text, not UTF-8, endless, or holding tabs or line ends.
    """
    import h5py

    if data_set.ndim != 1:
        raise UserError(f"The {what} are no list", where=name, fix=_AGAIN)
    if data_set.dtype.kind in "iu":
        return [str(value) for value in data_set[()].tolist()]
    if h5py.check_string_dtype(data_set.dtype) is None:
        raise UserError(f"The {what} are no text", where=name, fix=_AGAIN)
    decoded: list[str] = []
    # Many ids may be one and the same text of a gigabyte: what is read at once stays small all the same.
    step = max(4, min(1024, 2**31 // max(1, file_size(data_set.file))))
    for start in range(0, len(data_set), step):
        for value in data_set[start : start + step].tolist():
            if len(value) > LONGEST_ID:
                raise UserError(
                    f"One of the {what} is longer than {LONGEST_ID:,} letters", where=name, fix="Shorten it"
                )
            decoded.append(as_text(value, name, what))
    return decoded


def as_text(value: bytes | str, name: str, what: str = "ids") -> str:
    """A value as text that can stand in a table.

    Raises:
        UserError: Not UTF-8, or it holds tabs, line ends or other control characters.
    """
    try:
        text = value.decode("utf-8") if isinstance(value, bytes) else str(value)
        text.encode("utf-8")
    except UnicodeError as error:
        raise UserError(f"The {what} are not UTF-8 text", where=name, fix=_AGAIN) from error
    if has_breaks(text):
        raise UserError(
            f"One of the {what}, {one_line(text, 60)!r}, holds a tab, a line end or another character that no table "
            "can hold", where=name, fix="Rename it",
        )
    return text


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    return value
