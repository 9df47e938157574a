"""What outlives a job: the administrator's folder, files in it that are replaced whole, and being told to end."""

from __future__ import annotations

import math
import os
import secrets
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from plm.errors import UserError

DIRECTORY = "PLM_CHECKPOINT_DIR"
"""Names the folder in which a resubmitted job finds what a killed one had done."""

MINUTES = "PLM_CHECKPOINT_MINUTES"
"""Says how often a training puts its state there."""


def folder() -> Path | None:
    """The administrator's folder, whether it exists or not; None if none is named."""
    named = os.environ.get(DIRECTORY, "")
    return Path(named) if named else None


def seconds_between(minutes: float) -> float:
    """Seconds between two checkpoints in the administrator's folder.

    Args:
        minutes: What holds unless the administrator says otherwise.

    Raises:
        UserError: What the administrator says is no positive number.
    """
    said = os.environ.get(MINUTES, "")
    if not said:
        return 60 * minutes
    try:
        asked = float(said)
    except ValueError:
        asked = 0.0
    if not 0 < asked < math.inf:
        fix = "Your administrator sets it: a number of minutes above 0"
        raise UserError(f"The variable {MINUTES} is {said!r}", fix=fix)
    return 60 * asked


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file beside its place and puts it there whole.

    Args:
        path: The place; its folder is made if it is missing.
        write: Writes the file at the path that it is given.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not the process id alone: jobs on several nodes, or in containers, may have the same.
    partial = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.partial")
    try:
        write(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


class SoftEnd:
    """While it is entered, SIGTERM is noted instead of ending the process at once, so that a last state can be saved.

    Attributes:
        told: Whether the job has been told to end.
    """

    def __init__(self) -> None:
        self.told = False
        self._before: Any = None

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.told = True

    def __enter__(self) -> SoftEnd:
        self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGTERM, self._before)
