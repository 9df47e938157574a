"""Processes by identity: a pid counts only together with the moment its process started, so that a recycled pid is
never taken for ours."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class ProcessIdentity:
    """One process, past recycling of its pid.

    Args:
        pid: Its process id; also the id of its session and process group.
        started: When it started, as the system tells (clock ticks since boot with the boot's id, or a date).
    """

    pid: int
    started: str

    def alive(self) -> bool:
        """Whether this very process still runs; a zombie does not."""
        return start_of(self.pid) == self.started

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".partial")
        temporary.write_text(json.dumps(asdict(self)))
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: Path) -> ProcessIdentity | None:
        """The process noted in ``path``, or None where the file is absent or not whole."""
        try:
            noted = json.loads(path.read_text())
            return cls(pid=int(noted["pid"]), started=str(noted["started"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None


def start_of(pid: int) -> str | None:
    """When process ``pid`` started, in a form that differs between boots; None if there is none or it is a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
        return _start_by_ps(pid)
    fields = stat[stat.rindex(")") + 2 :].split()  # the command's name may hold spaces and brackets
    if fields[0] in ("Z", "X"):
        return None
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    return f"{fields[19]}@{boot}"


def _start_by_ps(pid: int) -> str | None:
    shown = subprocess.run(
        ["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    ).stdout.split(maxsplit=1)
    if len(shown) < 2 or shown[0].startswith("Z"):
        return None
    return shown[1].strip()


def identify(pid: int) -> ProcessIdentity | None:
    """The identity of a running process, or None."""
    started = start_of(pid)
    return None if started is None else ProcessIdentity(pid, started)


def session_members(session: int) -> list[ProcessIdentity]:
    """Every process of a session, found even when its parent is gone (Linux; elsewhere only those of the group)."""
    members = []
    for folder in Path("/proc").glob("[0-9]*") if Path("/proc/self/stat").exists() else ():
        pid = int(folder.name)
        try:
            stat = (folder / "stat").read_text()
        except OSError:
            continue
        fields = stat[stat.rindex(")") + 2 :].split()
        identity = identify(pid) if int(fields[3]) == session else None
        if identity is not None:
            members.append(identity)
    return members


def stop(leader: ProcessIdentity, *, patience: float = 20.0) -> bool:
    """Ends a session leader with its whole process group, and the jobs that it left in its session.

    SIGTERM first; what is left after ``patience`` seconds gets SIGKILL. Returns False if it was not running.
    """
    if not leader.alive():
        return False
    others = [member for member in session_members(leader.pid) if member.pid != leader.pid]
    _signal_group(leader, signal.SIGTERM)
    deadline = time.monotonic() + patience
    while leader.alive() and time.monotonic() < deadline:
        reap()
        time.sleep(0.1)
    if leader.alive():
        _signal_group(leader, signal.SIGKILL)
    left = [member for member in others if member.alive()]
    for number in (signal.SIGTERM, signal.SIGKILL):
        for member in left:
            if member.alive():
                _signal(member.pid, number)
        deadline = time.monotonic() + 3
        while any(member.alive() for member in left) and time.monotonic() < deadline:
            reap()
            time.sleep(0.1)
    return True


def reap() -> None:
    """Takes leave of our own children that have ended, so that they are not zombies."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _signal_group(leader: ProcessIdentity, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        if os.getpgid(leader.pid) == leader.pid:
            os.killpg(leader.pid, number)
        else:
            os.kill(leader.pid, number)


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def free_port(preferred: int | None = None) -> int:
    """A port of 127.0.0.1 on which nothing listens: ``preferred`` if it is free, else one that the system picks."""
    for candidate in (preferred or 0, 0):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", candidate))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise OSError("no free port on 127.0.0.1")


def spawn(command: list[str], *, log: Path, environment: dict[str, str], folder: Path) -> ProcessIdentity:
    """Starts a server in a session of its own, with both its streams going to ``log``."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as sink:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=folder,
            start_new_session=True,
        )
    return identify(child.pid) or ProcessIdentity(child.pid, "ended")
