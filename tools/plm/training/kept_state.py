"""A training's state in the administrator's folder: every job of the same content reads it, one at a time writes."""

from __future__ import annotations

import atexit
import contextlib
import logging
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from plm import kept
from plm.data.shards import Lock
from plm.errors import UserError

BUSY = "another job"


class KeptState:
    """A file that outlives the job, if the administrator names a folder and it can be used.

    Nothing that goes wrong there ends the training: its outputs do not depend on it. A line in the log says that a job
    which is killed will lose more.

    Args:
        name: The file's, made from the digest of data, model and settings.
        log: Told what becomes of it.

    Attributes:
        path: The file, or None.
    """

    def __init__(self, name: str, log: logging.Logger) -> None:
        self._log, self._stack, self._told = log, ExitStack(), ""
        self._lock: Lock | None = None
        atexit.register(self._stack.close)
        folder = kept.folder()
        self.path: Path | None = None if folder is None else folder / name
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                self._say(f"The folder {folder} cannot be used ({error.strerror}): no checkpoints are kept")
                self.path = None

    def take_up(self, read: Callable[[Path], None]) -> bool:
        """Goes on from what an earlier job kept, if there is anything that can be read.

        A damaged file would stop every retry: it is set aside, with a line, and the training starts anew.

        Args:
            read: Takes the state up from the path that it is given.

        Returns:
            Whether a state was taken up.
        """
        if self.path is None or not self.path.is_file():
            return False
        try:
            read(self.path)
        except UserError as error:
            self._log.warning("The checkpoint that an earlier job kept cannot be used and is set aside: %s", error)
            with contextlib.suppress(OSError):
                self.path.replace(self.path.with_suffix(".damaged"))
            return False
        return True

    def put(self, write: Callable[[Path], object]) -> bool:
        """Replaces the file whole, unless another job that lives does so.

        Args:
            write: Writes the file at the path that it is given.

        Returns:
            Whether it was written.
        """
        if self.path is None:
            return False
        if not self._mine():
            self._say("Another job is at the same training and keeps its checkpoints: this one keeps none")
            return False
        try:
            kept.replace(self.path, write)
        except OSError as error:
            self._say(f"The checkpoint cannot be kept in {self.path.parent}: {error.strerror or error}")
            return False
        return True

    def remove(self) -> None:
        """Deletes the file when the work is done, unless another job goes on with it."""
        if self.path is not None and self._mine():
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)
        self.leave()

    def leave(self) -> None:
        """Leaves the file, and the right to write it, to jobs that follow."""
        self._stack.close()
        self._lock = None

    def _mine(self) -> bool:
        """Whether this job may write; file systems without locks cannot tell, and files are replaced whole."""
        assert self.path is not None
        if self._lock is None or not self._lock.held:
            self._lock = self._stack.enter_context(Lock(self.path))
            if self._lock.held:
                for left in self.path.parent.glob(f".{self.path.name}.*.partial"):  # of a job that was killed
                    with contextlib.suppress(OSError):
                        left.unlink(missing_ok=True)
        return self._lock.held or BUSY not in self._lock.why

    def _say(self, line: str) -> None:
        if line != self._told:
            self._log.warning("%s; a job that is killed then starts from an older state, or anew", line)
        self._told = line
