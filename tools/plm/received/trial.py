"""A look at a stranger's file in a process of its own, where a library may loop or crash on what is damaged."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable
from pathlib import Path

from plm.errors import UserError

SILENT_SECONDS = 30.0
"""So long may one step of a look take."""


def try_out(look: Callable[[Path, Callable[[], object]], None], path: Path, what: str, name: str) -> None:
    """Looks at a file in a process that may be lost. What the look raises there is left to those who read the file.

    Args:
        look: Gets the path, and a function that it calls after each step.
        path: File to read.
        what: Kind of file, for messages: ``HDF5``.
        name: File name in messages.

    Raises:
        UserError: The library does not come back from a step, or crashes.
    """
    if not hasattr(os, "fork"):
        return
    reading, writing = os.pipe()
    try:
        child = os.fork()
    except OSError:  # no process or memory is left for it: then the file is read without a look before
        os.close(reading)
        os.close(writing)
        return
    if child == 0:
        _in_child(look, path, reading, writing)
    os.close(writing)
    ended = silent = False
    try:
        waiting = select.poll()  # not select.select: a process with 1,024 open files may read one too
        waiting.register(reading, select.POLLIN)
        while not ended and not silent:
            ready = waiting.poll(SILENT_SECONDS * 1000)
            silent = not ready
            ended = bool(ready) and not os.read(reading, 4096)
    finally:
        os.close(reading)
        if not ended:
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    if silent or os.WIFSIGNALED(status):
        does = "does not come back from it" if silent else "crashes"
        raise UserError(
            f"The {what} file is damaged so that the {what} library {does}", where=name,
            fix="Transfer or make the file again",
        )


def _in_child(look: Callable[[Path, Callable[[], object]], None], path: Path, reading: int, writing: int) -> None:
    try:
        os.close(reading)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        look(path, lambda: os.write(writing, b"."))
    finally:
        os._exit(0)
