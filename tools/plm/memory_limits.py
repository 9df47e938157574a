"""The memory that a job may take: what its groups and limits allow, whoever set them."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

_UNLIMITED = 1 << 60
"""Bytes beyond which a group of cgroup v1 has no limit (it writes the largest number instead)."""


def limit(root: Path = Path("/")) -> int | None:
    """Bytes that this process may hold by its groups (cgroup v1 and v2, and all groups above them) and by ``ulimit``.

    Args:
        root: Where ``proc`` and the file systems are found.

    Returns:
        The smallest; None if nothing limits it.
    """
    known = [*_groups(root), *_own_limits(root)]
    return min(known) if known else None


def would_do(more: int, root: Path = Path("/")) -> int:
    """MiB to ask for, if this process needs so many bytes more than it has now: a tenth is added."""
    taken = max(_status(root, "VmRSS"), 0)
    for kind, name in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        if resource.getrlimit(kind)[0] != resource.RLIM_INFINITY:
            taken = max(taken, _status(root, name))
    return -(-int(1.1 * (taken + more)) // 2**20)


def _own_limits(root: Path) -> Iterator[int]:
    """Limits on addresses or data, less what is reserved and not held."""
    held = _status(root, "VmRSS")
    for kind, name in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        soft = resource.getrlimit(kind)[0]
        if soft != resource.RLIM_INFINITY:
            yield max(0, soft - max(0, _status(root, name) - held))


def _status(root: Path, name: str) -> int:
    """Bytes that the kernel names in the status of this process; 0 if it does not."""
    for line in _lines(root / "proc/self/status"):
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0


def _groups(root: Path) -> Iterator[int]:
    """Limits of the groups of this process and of all groups above them."""
    mounts = list(_mounts(root))
    for line in _lines(root / "proc/self/cgroup"):
        number, controllers, path = line.split(":", 2)
        second = number == "0" and not controllers
        if not second and "memory" not in controllers.split(","):
            continue
        for mount, inside, kind, options in mounts:
            if kind != ("cgroup2" if second else "cgroup") or not (second or "memory" in options):
                continue
            yield from _above(mount, inside, path, "memory.max" if second else "memory.limit_in_bytes")


def _above(mount: Path, inside: str, path: str, file: str) -> Iterator[int]:
    """Limits from a group up to the mounted one; in containers the group's own path may not be visible."""
    below = path[len(inside) :] if inside != "/" and path.startswith(inside) else path
    group = mount / below.strip("/")
    if ".." in below or not group.is_dir():
        group = mount
    while True:
        for text in _lines(group / file):
            if text.strip().isdigit() and int(text) < _UNLIMITED:
                yield int(text)
        if group == mount:
            return
        group = group.parent


def _mounts(root: Path) -> Iterator[tuple[Path, str, str, list[str]]]:
    """Mount point, group that it shows, type and options of each file system of groups."""
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        words, kind = before.split(), after.split()
        if len(words) > 4 and len(kind) > 2 and kind[0] in ("cgroup", "cgroup2"):
            yield root / words[4].strip("/").replace("\\040", " "), words[3], kind[0], kind[2].split(",")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []
