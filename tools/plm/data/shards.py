"""Finished parts of a long computation, kept as verified files, from which a killed run goes on.

A store is a folder named by a key: the digest of everything that the numbers depend on. Whatever is in it was made from
the same input, model and settings; changed ones have another key and another folder.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plm.errors import DiskFull, UserError
from plm.received import tensors
from plm.received.documents import read_object

Arrays = dict[str, NDArray[Any]]
_OPEN = 3
_MARK = "plm_suite"
_FULL = re.compile(rf"(?:os error |Errno )(?:{errno.ENOSPC}|{errno.EDQUOT}|{errno.EFBIG})\b")


def key(content: Mapping[str, Any]) -> str:
    """A digest of settings: equal keys mean the same work."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class ShardStore:
    """The parts of one computation.

    Args:
        folder: Folder of the shards; made if absent.
        key: What the parts belong to; written into each and compared on reading.
        mapped: Number of parts that stay open for reading.
    """

    def __init__(self, folder: Path, key: str, mapped: int = _OPEN) -> None:
        self.folder, self.key, self._mapped = folder, key, mapped
        folder.mkdir(parents=True, exist_ok=True)
        self._opened: OrderedDict[int, Any] = OrderedDict()

    def path(self, number: int) -> Path:
        return self.folder / f"shard_{number:06d}.safetensors"

    def save(self, number: int, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Writes a part: whole or not at all, and on the disk before it counts.

        Raises:
            UserError: The disk is full, or the folder is gone.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import save_file

        tidy = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        partial = self.path(number).with_suffix(f".{os.getpid()}.partial")
        try:
            # One entry: the library would write several in an order that it draws anew each time.
            save_file(tidy, partial, metadata={_MARK: json.dumps(self._told(number, tidy), sort_keys=True)})
            with partial.open("rb") as written:
                os.fsync(written.fileno())
            os.replace(partial, self.path(number))
        except (SafetensorError, OSError) as error:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            self._explain(error)
            raise

    def _explain(self, error: Exception) -> None:
        """Says of an error that the disk is full or the folder gone, if it comes of that."""
        if _FULL.search(str(error)):
            raise DiskFull(
                "The disk is full: what was stored before is kept", where=str(self.folder),
                fix="Free space there and run the same again: it goes on from there",
            ) from error
        if not self.folder.is_dir():
            raise UserError(
                "The folder of finished parts was removed, or cannot be reached any more, while the job ran",
                where=str(self.folder), fix="Run it again with a folder that stays",
            ) from error

    def holds(self, number: int) -> bool:
        """Whether a part is there, whole, unchanged and of this computation; a broken one is removed."""
        path = self.path(number)
        if not path.is_file():
            return False
        try:
            arrays = tensors.load_numpy(path)
            with tensors.opened(path) as opened:
                told = opened.metadata() or {}
        except UserError:
            told, arrays = {}, {}
        expected = self._told(number, arrays)
        if told in (expected, {_MARK: json.dumps(expected, sort_keys=True)}):  # as it once was, and as it is
            return True
        self.forget(number)
        return False

    def _told(self, number: int, arrays: Mapping[str, NDArray[Any]]) -> dict[str, str]:
        """What a part says of itself."""
        return {"key": self.key, "shard": str(number), "sha256": _digest(arrays)}

    def read(self, number: int, name: str, start: int, stop: int) -> NDArray[Any]:
        """Rows ``start:stop`` of an array of a part; only they are read."""
        if number not in self._opened:
            while len(self._opened) >= self._mapped:  # each holds a mapped file
                self._opened.popitem(last=False)
            self._opened[number] = tensors.opened(self.path(number))
        self._opened.move_to_end(number)
        rows = self._opened[number].get_slice(name)
        if start == stop == rows.get_shape()[0]:  # safetensors refuses to cut nothing off the end
            whole: NDArray[Any] = self._opened[number].get_tensor(name)
            return whole[start:stop]
        values: NDArray[Any] = rows[start:stop]
        return values

    def whole(self, number: int, name: str) -> NDArray[Any]:
        """A whole array of a part."""
        with tensors.opened(self.path(number)) as opened:
            array: NDArray[Any] = opened.get_tensor(name)
        return array

    def forget(self, number: int) -> None:
        """Deletes a part."""
        self._opened.pop(number, None)
        self.path(number).unlink(missing_ok=True)

    def note(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes ``<name>.json`` beside the parts: whole or not at all."""
        partial = self.folder / f".{name}.{os.getpid()}.partial"
        try:
            partial.write_text(json.dumps(content))
            os.replace(partial, self.folder / f"{name}.json")
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            self._explain(error)
            raise

    def notes(self, pattern: str) -> dict[str, dict[str, Any]]:
        """What :meth:`note` wrote under names that match a shell's pattern, by name; broken ones are left out."""
        notes = {}
        for path in sorted(self.folder.glob(f"{pattern}.json")):
            try:
                notes[path.stem] = read_object(path)
            except UserError:
                continue
        return notes

    def remove(self) -> None:
        """Deletes the folder with all parts."""
        self._opened.clear()
        shutil.rmtree(self.folder, ignore_errors=True)


def _digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    hasher = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        hasher.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        hasher.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return hasher.hexdigest()


class Lock:
    """The right to work in a folder, held by one process at a time and given up by the kernel if it dies.

    Attributes:
        held: Whether this process has it.
        why: If not, why.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder.with_name(folder.name + ".lock")
        self._handle: int | None = None
        self.why = ""

    @property
    def held(self) -> bool:
        return self._handle is not None

    def __enter__(self) -> Lock:
        while True:
            try:
                handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            except OSError as error:
                self.why = f"nothing can be written there ({error.strerror})"
                return self
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(handle)
                busy = isinstance(error, BlockingIOError)
                self.why = "another job is at the same work" if busy else f"no lock can be had there ({error.strerror})"
                return self
            # Another may have finished and removed the file between opening and locking it.
            if self._path.exists() and self._path.stat().st_ino == os.fstat(handle).st_ino:
                self._handle = handle
                return self
            os.close(handle)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle is not None:
            self._path.unlink(missing_ok=True)
            os.close(self._handle)
            self._handle = None
