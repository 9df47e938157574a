"""What a machine can run out of, told from whatever a library makes of it: one line instead of a traceback."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from plm import memory_limits
from plm.errors import DiskFull, MemoryShortage, UserError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_TEXTS = ("No space left on device", "os error 28", "errno = 28", "Disk quota exceeded", "File too large")
_MISSING_TEXTS = ("No such file or directory", "does not exist", "unable to open file", "non-existent directory")
_NO_SCRATCH = "No usable temporary directory"
_SCRATCH = ("plm_", "trainer_", "mmseqs_")
"""How the suite's own folders of temporary files begin."""
_NO_WRITING = (errno.EROFS, errno.EACCES, errno.EPERM)
_MEMORY_TEXTS = (
    "can't allocate memory", "Cannot allocate memory", "bad_alloc", "out of memory", "can't start new thread",
    "malloc of size", "failed to map segment",
)
_NOTE = "_plm_output"
_ROOM = 2**24
"""Bytes: where more is free, a full disk is another one."""


@dataclass(frozen=True)
class Failure:
    """Why a stage ended.

    Attributes:
        error: Error whose text the user reads.
        kind: ``input`` for a user's mistake; ``disk`` and ``memory`` for what ran out.
    """

    error: UserError
    kind: Literal["input", "disk", "memory"] = "input"


def explain(error: BaseException) -> Failure | None:
    """What ran out, if anything did; None for everything else, which is a bug."""
    for link in _chain(error):
        if isinstance(link, MemoryShortage):
            return Failure(link, "memory")
        if isinstance(link, DiskFull):
            return Failure(link, "disk")
    if any(isinstance(link, MemoryError) or _says(link, _MEMORY_TEXTS) for link in _chain(error)):
        return Failure(
            UserError(
                f"The memory was not enough: the program had taken {memory_limits.would_do(0)} MiB and needed more",
                fix=f"Ask for {2 * memory_limits.would_do(0)} MiB (in Galaxy an administrator sets the memory of each "
                "tool, and may let it be doubled by itself), give fewer or shorter "
                "proteins at a time, or choose a smaller model",
            ),
            "memory",
        )
    if is_disk_full(error):
        return Failure(_disk_full(error), "disk")
    for link in _chain(error):
        if isinstance(link, OSError) and link.errno in _NO_WRITING and link.filename is not None:
            return Failure(
                UserError(
                    f"{link.strerror}", where=str(link.filename), fix="Give a file or folder that the job may use"
                ),
                "disk",
            )
    if any(isinstance(link, FileNotFoundError) and _NO_SCRATCH in str(link) for link in _chain(error)):
        return Failure(
            UserError("There is no folder for temporary files that can be written", fix="Name one (TMPDIR)"), "disk"
        )
    if (gone := _scratch_gone(error)) is not None:
        return Failure(
            UserError(
                "The folder of temporary files was removed while the job ran, or cannot be reached any more",
                where=gone, fix="Name a folder that stays (TMPDIR) and run it again",
            ),
            "disk",
        )
    return None


def _scratch_folder() -> str:
    """Where temporary files go; the current folder where none can be written."""
    try:
        return tempfile.gettempdir()
    except FileNotFoundError:
        return "."


def _scratch_gone(error: BaseException) -> str | None:
    """The folder of temporary files, if an error comes of a file there that something else has removed."""
    folder = _scratch_folder()
    for link in _chain(error):
        if not isinstance(link, UserError) and _says(link, _MISSING_TEXTS):
            for named in str(link).split(f"{folder}/")[1:]:
                own = f"{folder}/{named.split('/')[0].split(chr(39))[0]}"
                if Path(own).name.startswith(_SCRATCH) and not Path(own).exists():
                    return own if Path(folder).is_dir() else folder
        if isinstance(link, FileNotFoundError) and not Path(folder).is_dir():
            return folder
    return None


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or one that led to it, says that a disk is full or a quota is used up."""
    return any(
        (isinstance(link, OSError) and link.errno in _FULL) or _says(link, _FULL_TEXTS) for link in _chain(error)
    )


def note_output(error: BaseException, output: Path, written: int) -> None:
    """Remembers which output was being written when the disk was full, and the bytes of it so far."""
    if not hasattr(error, _NOTE):
        setattr(error, _NOTE, (output, written))


def _disk_full(error: BaseException) -> UserError:
    noted = next((getattr(link, _NOTE) for link in _chain(error) if hasattr(link, _NOTE)), None)
    named = next((link.filename for link in _chain(error) if isinstance(link, OSError) and link.filename), None)
    scratch = Path(_scratch_folder())
    if noted is not None and (_free(noted[0].parent) <= max(_free(scratch), _ROOM)):
        output, written = noted
        needed = f"more than the {_mib(written)} that were written of it, and {_mib(_free(output.parent))} are free"
        return UserError(
            f"The disk is full: the output {output.name} needs {needed}", where=str(output.parent),
            fix="Make room or choose another folder, and run it again; nothing was left behind",
        )
    folder = Path(str(named)).parent if named else scratch
    what = "the folder" if named else "the folder of temporary files or of the outputs"
    return UserError(
        f"The disk is full: {what} has {_mib(_free(folder))} free", where=str(folder),
        fix="Make room, or choose another folder for temporary files (TMPDIR) or outputs, and run it again",
    )


def _free(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def _mib(count: int) -> str:
    return f"{count / 2**20:.3g} MiB"


def _says(error: BaseException, texts: tuple[str, ...]) -> bool:
    # Only errors of libraries: a UserError quotes what a user wrote.
    known = OSError | RuntimeError | ValueError | MemoryError | ImportError
    if isinstance(error, UserError) or not isinstance(error, known):
        kind = type(error).__name__
        if kind not in ("SafetensorError", "ArrowInvalid", "ArrowMemoryError", "OutOfMemoryError", "Error"):
            return False
    text = str(error)
    return any(part in text for part in texts)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error, those that it was raised from, and those that were being handled when it was."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        link = waiting.pop()
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        waiting += [link.__cause__, link.__context__]
