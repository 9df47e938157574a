"""What every stage script shares: flags, logging, progress, whole-or-absent outputs, one-line errors.

Nothing here imports torch, pandas or any other heavy library, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn, TextIO

from plm import __version__
from plm.errors import UserError

EXIT_USER_ERROR = 1
EXIT_TERMINATED = 143


class _OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message, fix=f"See {self.prog} --help")


def parser(name: str, doc: str) -> argparse.ArgumentParser:
    """An argument parser whose usage mistakes are one line with exit code 1.

    Args:
        name: The stage's id, e.g. ``plm_embed``.
        doc: The script's docstring; shown as it stands.
    """
    made = _OneLineParser(prog=name, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--version", action="version", version=f"{name} {__version__}")
    return made


def main(
    name: str, run: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None
) -> NoReturn:
    """Runs a stage and turns a user's mistake into one line and exit code 1; a bug keeps its traceback."""
    signal.signal(signal.SIGTERM, _terminate)
    # Read when torch is loaded: idle threads that spin make every job on a shared machine up to ten times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        run(argv)
    except UserError as error:
        print(f"{name}: error: {error}", file=sys.stderr, flush=True)
        sys.exit(EXIT_USER_ERROR)
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] not in ("plm", ""):
            missing = UserError(
                f"The Python library {error.name} is missing",
                where=sys.executable,
                fix="Install the tool's requirements (environment.yml) or let Galaxy resolve them",
            )
            print(f"{name}: error: {missing}", file=sys.stderr, flush=True)
            sys.exit(EXIT_USER_ERROR)
        raise
    sys.exit(0)


def _terminate(signum: int, frame: FrameType | None) -> NoReturn:
    sys.exit(EXIT_TERMINATED)


class _ToStandardOutput(logging.StreamHandler):
    """Writes to what ``sys.stdout`` is at that moment, not to what it was when the logger was made."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        return sys.stdout


def log(name: str) -> logging.Logger:
    """A logger that writes ``[name] message`` lines to standard output, each at once."""
    logger = logging.getLogger(name)
    if not logger.handlers:
        handler = _ToStandardOutput()
        handler.setFormatter(logging.Formatter(f"[{name}] %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    return logger


class Outputs:
    """Output files that appear together when the work has succeeded, or not at all.

    Inside the ``with`` block write to the paths that :meth:`path` and :meth:`directory` hand out; they lie beside
    the final places
    (same file system) and are renamed on a clean exit and removed on any error.
    """

    def __init__(self) -> None:
        self._pending: list[tuple[Path, Path]] = []

    def __enter__(self) -> Outputs:
        return self

    def path(self, final: str | Path) -> Path:
        """A temporary path beside ``final`` to write that output file to."""
        final = Path(final)
        if not final.parent.is_dir():
            raise UserError(
                f"The folder of the output {final} does not exist", fix="Create it or choose another"
            )
        handle, name = tempfile.mkstemp(
            prefix=f".{final.name}.", suffix=f".partial{final.suffix}", dir=final.parent
        )
        os.close(handle)
        temporary = Path(name)
        temporary.chmod(0o666 & ~_umask())
        self._pending.append((temporary, final))
        return temporary

    def directory(self, final: str | Path) -> Path:
        """A temporary directory beside ``final`` to fill; it replaces an existing ``final``."""
        final = Path(final)
        if not final.parent.is_dir():
            raise UserError(
                f"The folder of the output {final} does not exist", fix="Create it or choose another"
            )
        temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".partial", dir=final.parent))
        temporary.chmod(0o777 & ~_umask())
        self._pending.append((temporary, final))
        return temporary

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            for temporary, final in self._pending:
                if final.is_dir() and not final.is_symlink():
                    shutil.rmtree(final)
                os.replace(temporary, final)
            return
        for temporary, _ in self._pending:
            if temporary.is_dir():
                shutil.rmtree(temporary, ignore_errors=True)
            else:
                temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def require(libraries: Mapping[str, str]) -> None:
    """Checks that libraries are installed in at least the given versions.

    Args:
        libraries: Distribution name to lowest version, e.g. ``{"torch": "2.6"}``.

    Raises:
        UserError: Names the library that is missing or too old and the version wanted.
    """
    for name, lowest in libraries.items():
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            raise UserError(
                f"{name} is missing: this tool needs {name} {lowest} or newer",
                where=sys.executable,
                fix="Install the tool's requirements (environment.yml) or let Galaxy resolve them",
            ) from None
        if _version(found) < _version(lowest):
            raise UserError(
                f"{name} {found} is too old: this tool needs {lowest} or newer",
                where=sys.executable,
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
    """Memory this job may use in MiB: ``GALAXY_MEMORY_MB``, else the smaller of cgroup limit and available memory."""
    given = os.environ.get("GALAXY_MEMORY_MB", "")
    if given.isdigit() and int(given) > 0:
        return int(given)
    available = 4096
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) // 1024
    for limit in _lines("/sys/fs/cgroup/memory.max"):
        if limit.strip().isdigit():
            available = min(available, int(limit) // 2**20)
    return available


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
            "%d of %d %s (%.0f %%), %.3g %s/s, %s left%s",
            self._done, self._total, self._unit, 100 * self._done / max(self._total, 1), rate, self._unit, left,
            f"; {note}" if note else "",
        )  # fmt: skip


def duration(seconds: float) -> str:
    """A time span as people say it: ``42 s``, ``3 min 20 s``, ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
