"""HDF5 files written so that a full disk is an ordinary error.

When a write fails inside HDF5, the library keeps what it could not write, tries again as each object is let go, prints
tracebacks that nobody can catch, and ends in a segmentation fault. So it never sees the failure: the file object
below remembers it and keeps what comes after in memory, where the library finds it again (what it cannot read back it
takes for whatever its memory held, and dies of that); the error is raised as soon as Python is back.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import h5py


_READ_AGAIN = 2**22
"""Bytes: larger writes hold numbers, which the library does not read again."""


class _Remembering(io.FileIO):
    """A file whose writes never fail; the first failure is in :attr:`failure`."""

    failure: OSError | None = None

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")
        self._dropped: list[tuple[int, bytes]] = []

    def readinto(self, buffer: Any) -> int:
        """All that is asked for: of the file, of what could not be written, and zeros where there is neither."""
        start, view = self.tell(), memoryview(buffer).cast("B")
        done = super().readinto(view) or 0
        if done < len(view):
            view[done:] = bytes(len(view) - done)
        for place, data in self._dropped:
            first, end = max(start, place), min(start + len(view), place + len(data))
            if first < end:
                view[first - start : end - start] = data[first - place : end - place]
        self.seek(start + len(view))
        return len(view)

    def write(self, data: Any) -> int:
        start, view = self.tell(), memoryview(data).cast("B")
        if self.failure is None:
            done = 0
            try:
                while done < len(view):  # a nearly full disk takes a part first
                    done += super().write(view[done:]) or 0
            except OSError as error:
                self.failure = error
        if self.failure is not None:
            if len(view) <= _READ_AGAIN:
                self._dropped.append((start, bytes(view)))
            self.seek(start + len(view))
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        if self.failure is None:
            try:
                return super().truncate(size)
            except OSError as error:
                self.failure = error
        return size or 0


class Hdf5Writer:
    """An HDF5 file being written.

    Attributes:
        file: Open HDF5 file that is written.
    """

    def __init__(self, file: h5py.File, below: _Remembering) -> None:
        self.file = file
        self._below = below

    def check(self) -> None:
        """Raises what went wrong below since the file was opened.

        Raises:
            OSError: A write failed.
        """
        if self._below.failure is not None:
            raise self._below.failure


@contextmanager
def writing(path: Path, **options: Any) -> Iterator[Hdf5Writer]:
    """Makes an HDF5 file; call :meth:`Hdf5Writer.check` now and then, so that a lost cause ends early.

    Args:
        path: The file; replaced.
        options: Keyword arguments of ``h5py.File``.

    Raises:
        OSError: A write failed.
    """
    import h5py

    below = _Remembering(path)
    try:
        with h5py.File(below, "w", **options) as file:
            writer = Hdf5Writer(file, below)
            yield writer
        writer.check()
    finally:
        below.close()
