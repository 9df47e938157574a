"""Output files: tried before the work starts, whole or absent when it ends, and never in place of a user's file."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import stat
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TextIO

from plm import failures
from plm.errors import UserError

_MARK = "user.plm_suite"
"""Extended attribute of a file that the suite wrote: its size and time then. A file without it is somebody's own."""

_ENDING = (signal.SIGTERM, signal.SIGINT)


def output_file(text: str) -> Path:
    """The ``type`` of a flag that names an output file; :func:`check_places` looks at it."""
    return Path(text)


def output_folder(text: str) -> Path:
    """The ``type`` of a flag that names an output folder."""
    return Path(text)


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Writes lines of text, each with an end."""
    with path.open("w", encoding="utf-8", newline="\n") as handle:
        handle.writelines(f"{line}\n" for line in lines)


def check_places(given: Sequence[tuple[str, str, Path]]) -> None:
    """Tries every place that a stage will write to.

    Args:
        given: Flag, ``input``, ``file`` or ``folder``, and path, in the order of the flags.

    Raises:
        UserError: An output is an input or another output, a folder that stands where a file is to be written, a
            folder with something in it, no regular file, a file of an input folder, or its folder is absent or
            cannot be written to; or a path is none that any file can have.
    """
    for flag, _, path in given:
        _check_name(flag, path)
    inputs = [(flag, path) for flag, kind, path in given if kind == "input"]
    outputs = [(flag, kind, path) for flag, kind, path in given if kind != "input"]
    seen: dict[Path, str] = {}
    tried: set[Path] = set()
    for flag, kind, path in outputs:
        _check_shape(flag, kind, path)
        for other, source in inputs:
            if _same(path, source):
                raise UserError(
                    f"The output is the input of {other}, which would be lost", where=f"{flag} {path}",
                    fix="Give the output another name",
                )
            if source.is_dir() and _is_file(path) and not written_by_the_suite(path) and _inside(path, source):
                raise UserError(
                    f"The output is a file of the folder given as {other}, which would be lost", where=f"{flag} {path}",
                    fix="Give the output another name",
                )
        place = Path(os.path.realpath(path))
        if place in seen:
            raise UserError(
                f"Two outputs have the same place: {seen[place]} and {flag}", where=str(path),
                fix="Give each its own name",
            )
        for earlier, name in seen.items():
            if earlier in place.parents or place in earlier.parents:
                raise UserError(
                    f"One output lies inside another: {name} and {flag}", where=str(path), fix="Give each its own place"
                )
        seen[place] = flag
        if path.parent not in tried:
            _try(flag, path)
            tried.add(path.parent)


def _check_name(flag: str, path: Path) -> None:
    """Whether a file may be called so: a name with a zero byte, or one longer than the system takes, opens nothing."""
    try:
        path.lstat()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            return
        reason = error.strerror
    except ValueError as error:
        reason = str(error)
    else:
        return
    raise UserError(f"There can be no such file: {reason}", where=f"{flag} {path}", fix="Check the path")


def _check_shape(flag: str, kind: str, path: Path) -> None:
    where = f"{flag} {path}"
    if path.name in ("", "..") or not path.name.isprintable():
        raise UserError("This names no new file or folder", where=where, fix="Give a name for the output")
    try:
        status = path.stat()
    except FileNotFoundError:
        return
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"The output cannot be written: {reason}", where=where, fix="Choose another name") from None
    if kind == "folder":
        if not stat.S_ISDIR(status.st_mode):
            raise UserError("A file stands where a folder is to be written", where=where, fix="Choose another name")
        if any(path.iterdir()):
            raise UserError(
                "The output folder is there already and holds files, which would be lost", where=where,
                fix="Give a new folder or an empty one",
            )
    elif stat.S_ISDIR(status.st_mode):
        raise UserError("A folder stands where a file is to be written", where=where, fix="Give the name of a file")
    elif not stat.S_ISREG(status.st_mode):
        raise UserError("The output is no ordinary file", where=where, fix="Give the name of a file, or leave it out")


def _is_file(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _inside(path: Path, folder: Path) -> bool:
    return Path(os.path.realpath(folder)) in Path(os.path.realpath(path)).parents


def _same(path: Path, other: Path) -> bool:
    if os.path.realpath(path) == os.path.realpath(other):
        return True
    try:
        return path.exists() and other.exists() and path.samefile(other)
    except OSError:
        return False


def _try(flag: str, path: Path) -> None:
    """Whether a file can be made beside ``path``: permissions say little on file systems that are shared."""
    if not path.parent.is_dir():
        raise UserError(
            f"The folder of the output {path} does not exist", where=flag, fix="Create it or choose another"
        )
    try:
        with tempfile.TemporaryFile(dir=path.parent) as trial:
            trial.write(b"0")
        # The name itself may be longer than the file system takes.
        with contextlib.suppress(FileNotFoundError):
            path.lstat()
    except OSError as error:
        if failures.is_disk_full(error):
            raise
        reason = error.strerror or str(error)
        raise UserError(
            f"No output can be written there: {reason}", where=f"{flag} {path}",
            fix="Choose a folder that you may write to",
        ) from None


def written_by_the_suite(path: Path) -> bool:
    """Whether the suite wrote this very file and nobody changed it since; False where that cannot be known."""
    try:
        status = path.lstat()
        return os.getxattr(path, _MARK, follow_symlinks=False) == f"{status.st_size}:{status.st_mtime_ns}".encode()
    except (OSError, AttributeError):  # systems without extended attributes
        return False


def _mark(path: Path) -> None:
    with contextlib.suppress(OSError, AttributeError):
        status = path.lstat()
        os.setxattr(path, _MARK, f"{status.st_size}:{status.st_mtime_ns}".encode(), follow_symlinks=False)


class Outputs:
    """Output files that appear together when the work has succeeded, or not at all.

    Inside the ``with`` block write to the paths that :meth:`path` and :meth:`directory` hand out; they lie beside
    the final places (same file system) and are renamed on a clean exit and removed on any error. A file that stands
    there already and that the suite did not write is kept beside it under its name and ``~``.
    """

    def __init__(self) -> None:
        self._pending: list[tuple[Path, Path]] = []
        self._last: list[Callable[[], None]] = []

    def __enter__(self) -> Outputs:
        return self

    def path(self, final: str | Path) -> Path:
        """A temporary path beside ``final`` to write that output file to."""
        final = Path(final)
        check_places([("output", "file", final)])
        self._check_new(final)
        handle, name = tempfile.mkstemp(
            prefix=f".{final.stem[:40]}.", suffix=f".partial{final.suffix[:20]}", dir=final.parent
        )
        os.close(handle)
        temporary = Path(name)
        self._pending.append((temporary, final))
        temporary.chmod(0o666 & ~_umask())
        return temporary

    def text(self, opened: contextlib.ExitStack, final: str | Path) -> TextIO:
        """Opens such a file for text (UTF-8, lines end in a line feed); closed with ``opened``."""
        return opened.enter_context(self.path(final).open("w", encoding="utf-8", newline="\n"))

    def directory(self, final: str | Path) -> Path:
        """A temporary directory beside ``final`` to fill; ``final`` is absent or an empty folder."""
        final = Path(final)
        check_places([("output", "folder", final)])
        self._check_new(final)
        temporary = Path(tempfile.mkdtemp(prefix=f".{final.name[:40]}.", suffix=".partial", dir=final.parent))
        self._pending.append((temporary, final))
        temporary.chmod(0o777 & ~_umask())
        return temporary

    def place(self, final: str | Path) -> Path | None:
        """Where the output that is to become ``final`` lies now; None if nobody has asked for it."""
        wanted = os.path.realpath(final)
        return next((now for now, then in self._pending if os.path.realpath(then) == wanted), None)

    def at_end(self, write: Callable[[], None]) -> None:
        """Calls ``write`` when everything else is written, before the outputs appear: for what shows other outputs."""
        self._last.append(write)

    def _check_new(self, final: Path) -> None:
        if any(os.path.realpath(final) == os.path.realpath(other) for _, other in self._pending):
            raise UserError("Two outputs have the same place", where=str(final), fix="Give each its own name")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        refused: Exception | None = error if isinstance(error, Exception) else None
        try:
            if kind is None:
                for write in self._last:
                    write()
                self._finish()
        except Exception as late:
            refused = late
            raise
        finally:
            gone = self._remove(refused)
            if refused is not None and gone is not None:
                raise UserError(
                    "What was written of the outputs was removed, or cannot be reached any more, while the job ran",
                    where=str(gone), fix="Run it again with a folder that stays",
                ) from refused

    def _remove(self, refused: Exception | None) -> Path | None:
        """Deletes what is not finished; notes in an error what was being written, and gives a folder that lost some."""
        if refused is not None:
            self._note(refused)
        gone = next((final.parent for temporary, final in self._pending if not os.path.lexists(temporary)), None)
        for temporary, _ in self._pending:
            if temporary.is_dir():
                shutil.rmtree(temporary, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):  # of a folder that cannot be reached, nothing can be removed
                    temporary.unlink(missing_ok=True)
        return gone

    def _finish(self) -> None:
        for temporary, final in self._pending:  # again: hours may have passed
            _check_shape("output", "folder" if final.is_dir() else "file", final)
            temporary.lstat()
        with _undisturbed():
            self._rename()

    def _rename(self) -> None:
        while self._pending:
            temporary, final = self._pending[0]
            if temporary.is_dir():
                if final.is_dir():
                    final.rmdir()
            elif _is_file(final) and not written_by_the_suite(final):
                kept = _free_name(final)
                os.replace(final, kept)
                print(f"Note: {final} was there already and is kept as {kept.name}", flush=True)
            os.replace(temporary, final)
            self._pending.pop(0)
            if not final.is_dir():
                _mark(final)

    def _note(self, error: BaseException) -> None:
        """Says in an error of a full disk which output was being written, and how much of it there was."""
        if not failures.is_disk_full(error):
            return
        there = [entry for entry in self._pending if entry[0].exists()]
        if there:
            temporary, final = max(there, key=lambda entry: entry[0].stat().st_mtime_ns)
            failures.note_output(error, final, _size(temporary))


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Lets signals that end the job wait: a part of the outputs would look like all of them."""
    told: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # which alone is told
        yield
        return
    # Not masked: the kernel would give them to another thread of a library.
    before = {one: signal.signal(one, lambda number, frame: told.append(number)) for one in _ENDING}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, signal.SIG_DFL if handler is None else handler)
        for number in dict.fromkeys(told):
            signal.raise_signal(number)


def _size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _free_name(path: Path) -> Path:
    candidate, number = path.with_name(f"{path.name}~"), 1
    while candidate.exists() or candidate.is_symlink():
        number += 1
        candidate = path.with_name(f"{path.name}~{number}")
    return candidate


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
