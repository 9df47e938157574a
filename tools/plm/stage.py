"""What every stage script shares: flags, logging, progress, whole-or-absent outputs, one-line errors.

Nothing here imports torch, pandas or any other heavy library, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TextIO

from plm import __version__, failures, memory_limits
from plm.errors import UNSEEN, UserError
from plm.outputs import Outputs, check_places, output_file, output_folder

__all__ = ["Outputs", "output_file", "output_folder"]

LARGEST_SEED = 2**32 - 1
"""What numpy takes."""
EXIT_USER_ERROR = 1
EXIT_OUT_OF_MEMORY = 42
"""Galaxy's ``oom_exit_code`` of every tool: a server may send the job again to a larger machine."""
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143
SHARED = ("plm_pretrain", "plm_distill", "plm_embed")
"""Stages whose work several processes share, as torchrun starts them."""
_MODEL_FLAGS = ("model", "teacher", "student", "probe")
"""Flags whose values may be paths; those of plm_compare_models stand behind ``NAME=``."""


class _OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message, fix=f"See {self.prog} --help")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As usual; then every output is tried, so that no work is done that cannot be kept."""
        parsed = super().parse_args(args, namespace)
        for action in self._actions:  # "--flag=--", of which argparse makes a list of nothing
            if action.nargs is None and action.default != [] and getattr(parsed, action.dest, None) == []:
                self.error(f"argument {action.option_strings[0]}: expected one argument")
        _check_numbers(self._actions, parsed)
        given: list[tuple[str, str, Path]] = []
        for action in self._actions:
            kind = "file" if action.type is output_file else "folder" if action.type is output_folder else ""
            if not kind and action.type is not Path and action.dest not in _MODEL_FLAGS:
                continue
            value = getattr(parsed, action.dest, None)
            flag = action.option_strings[0] if action.option_strings else action.dest
            for one in value if isinstance(value, list | tuple) else [value]:
                if isinstance(one, str) and one:
                    given += [(flag, "input", Path(text)) for text in dict.fromkeys((one, one.split("=", 1)[-1]))]
                elif isinstance(one, Path):
                    given.append((flag, kind or "input", one))
        check_places(given)
        return parsed


def _check_numbers(actions: Sequence[argparse.Action], parsed: Any) -> None:
    """What holds for numbers whatever the flag: they are finite, not beyond 64 bits, and seeds fit every library."""
    for action in actions:
        value = getattr(parsed, action.dest, None)
        flag = action.option_strings[0] if action.option_strings else action.dest
        for one in value if isinstance(value, list | tuple) else [value]:
            if isinstance(one, float) and not math.isfinite(one):
                raise UserError(f"{one} is no number to work with", where=flag, fix="Give a finite number")
            if isinstance(one, int) and not -(2**63) <= one < 2**63:
                raise UserError("The number is too large", where=flag, fix="Give a smaller one")
            if action.dest.endswith("seed") and isinstance(one, int) and not 0 <= one <= LARGEST_SEED:
                raise UserError(f"{one} is no seed", where=flag, fix=f"Give a whole number from 0 to {LARGEST_SEED}")


def parser(name: str, doc: str) -> argparse.ArgumentParser:
    """An argument parser whose usage mistakes are one line with exit code 1.

    Args:
        name: The stage's id, e.g. ``plm_embed``.
        doc: The script's docstring; shown as it stands.
    """
    made = _OneLineParser(prog=name, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--version", action="version", version=f"{name} {__version__}")
    return made


def main(name: str, run: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None) -> NoReturn:
    """Runs a stage and turns a user's mistake into one line and exit code 1; a bug keeps its traceback.

    A job that was told to end says so in one line, with a code of its own, whatever the interrupted work made of it.
    """
    _told.clear()
    signal.signal(signal.SIGTERM, _terminate)
    # Read when torch is loaded: idle threads that spin make every job on a shared machine up to ten times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        _check_processes(name)
        run(argv)
    except SystemExit as end:
        if end.code == EXIT_TERMINATED:
            _ended(name)
        raise
    except KeyboardInterrupt:
        print(f"{name}: interrupted; no output was written", file=sys.stderr, flush=True)
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:
        if _told:  # what broke because it was interrupted is no bug
            _ended(name)
        failure = _failure(error)
        if failure is None:
            raise
        _end(name, failure)
    sys.exit(0)


def _check_processes(name: str) -> None:
    """Refuses what torchrun started several of, though they would do the same work and write the same files.

    Raises:
        UserError: In the leading process; the others end without a word.
    """
    processes = os.environ.get("WORLD_SIZE", "1")
    if processes == "1" or "MASTER_ADDR" not in os.environ or name in SHARED:
        return
    if os.environ.get("RANK", "0") != "0":
        sys.exit(1)
    raise UserError(
        f"{name} works in one process, and {processes} were started", where="torchrun",
        fix=f"Start it with python; {', '.join(SHARED[:-1])} and {SHARED[-1]} share their work among processes",
    )


def _failure(error: Exception) -> failures.Failure | None:
    """What the user is told of an error; None for a bug."""
    if isinstance(error, UserError):
        # A full disk or memory that ran out may have been taken for a damaged file on the way.
        return failures.explain(error) or failures.Failure(error)
    if isinstance(error, ModuleNotFoundError):
        if not error.name or error.name.split(".")[0] == "plm":
            return None
        return failures.Failure(
            UserError(
                f"The Python library {error.name} is missing", where=sys.executable,
                fix="Install the tool's requirements (environment.yml) or let Galaxy resolve them",
            )
        )
    return failures.explain(error)


def _end(name: str, failure: failures.Failure) -> NoReturn:
    """One line on standard error, and the exit code that belongs to it."""
    print(f"{name}: error: {failure.error}", file=sys.stderr, flush=True)
    code = EXIT_OUT_OF_MEMORY if failure.kind == "memory" else EXIT_USER_ERROR
    if failure.kind != "input":
        # Libraries that could not write flush again when they are unloaded, and HDF5 dies of it.
        logging.shutdown()
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


_told: list[int] = []
"""The signals that told this process to end."""


def _terminate(signum: int, frame: FrameType | None) -> NoReturn:
    _told.append(signum)
    sys.exit(EXIT_TERMINATED)


def _ended(name: str) -> NoReturn:
    print(f"{name}: told to end (SIGTERM); what was not finished is not written", file=sys.stderr, flush=True)
    sys.exit(EXIT_TERMINATED)


class _ToStandardOutput(logging.StreamHandler):
    """Writes to what ``sys.stdout`` is at that moment, not to what it was when the logger was made."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        return sys.stdout

    def handleError(self, record: logging.LogRecord) -> None:
        """A reader that has gone (``| head``) does not stop the work: its outputs are files."""
        if isinstance(sys.exc_info()[1], BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return
        super().handleError(record)


class _Visible(logging.Formatter):
    """Lines as they are meant: what they quote of a user's files can neither move the cursor nor turn the direction."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(UNSEEN.sub(" ", line) for line in super().format(record).split("\n"))


def log(name: str) -> logging.Logger:
    """A logger that writes ``[name] message`` lines to standard output, each at once."""
    logger = logging.getLogger(name)
    if not logger.handlers:
        handler = _ToStandardOutput()
        handler.setFormatter(_Visible(f"[{name}] %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    return logger


def require(libraries: Mapping[str, str]) -> None:
    """Checks that libraries are installed in at least the given versions.

    Args:
        libraries: Distribution name to lowest version, e.g. ``{"torch": "2.6"}``.

    Raises:
        UserError: Names the library that is missing or too old and the version wanted.
    """
    for name, lowest in libraries.items():
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            raise UserError(
                f"{name} is missing: this tool needs {name} {lowest} or newer", where=sys.executable,
                fix="Install the tool's requirements (environment.yml) or let Galaxy resolve them",
            ) from None
        if _version(version) < _version(lowest):
            raise UserError(
                f"{name} {version} is too old: this tool needs {lowest} or newer", where=sys.executable,
                fix="Update the environment that runs the tool (environment.yml)",
            )


def _version(text: str) -> tuple[int, ...]:
    numbers: list[int] = []
    for part in text.split("+")[0].split("."):
        digits = "".join(character for character in part if character.isdigit())
        if not digits:
            break
        numbers.append(int(digits))
        if digits != part:
            break
    return tuple(numbers)


def threads() -> int:
    """Processor threads this job may use: ``GALAXY_SLOTS``, else the cores that the process may run on."""
    slots = os.environ.get("GALAXY_SLOTS", "")
    if slots.isdigit() and int(slots) > 0:
        return int(slots)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_mib() -> int:
    """Memory this job may use in MiB: ``GALAXY_MEMORY_MB``, else what is available; never more than its limits."""
    given = os.environ.get("GALAXY_MEMORY_MB", "")
    available = 4096
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) // 1024
    if given.isdigit() and int(given) > 0:
        available = int(given)
    limit = memory_limits.limit()
    return available if limit is None else min(available, limit // 2**20)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


class Progress:
    """Logs how far the work is, its rate and the time left, at most every ``every`` seconds."""

    def __init__(self, logger: logging.Logger, total: int, unit: str, every: float = 5.0) -> None:
        self._logger, self._total, self._unit, self._every = logger, total, unit, every
        self._done = 0
        self._start = self._last = time.monotonic()

    def advance(self, count: int, note: str = "") -> None:
        """Counts ``count`` more units as done."""
        self._done += count
        now = time.monotonic()
        if now - self._last < self._every and self._done < self._total:
            return
        self._last = now
        rate = self._done / max(now - self._start, 1e-9)
        left = duration((self._total - self._done) / rate) if rate > 0 else "unknown"
        self._logger.info(
            "%d of %d %s (%.0f %%), %.3g %s/s, %s left%s", self._done, self._total, self._unit,
            100 * self._done / max(self._total, 1), rate, self._unit, left, f"; {note}" if note else "",
        )


def duration(seconds: float) -> str:
    """A time span as people say it: ``42 s``, ``3 min 20 s``, ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
