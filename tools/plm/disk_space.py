"""Room on disks: told in the plan, and asked for before the work begins."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from plm.errors import DiskFull


def size(count: int) -> str:
    """Bytes as people say them."""
    for unit, scale in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= scale:
            return f"{count / scale:,.1f} {unit}"
    return f"{count} bytes"


def require(needs: Iterable[tuple[Path, int]], what: str) -> None:
    """Ends a job that its disks cannot hold before it has worked for nothing.

    Args:
        needs: Folders that exist and the bytes that each will take; those of one file system are added up.
        what: What takes them, for the message.

    Raises:
        DiskFull: A file system has less room than that.
    """
    wanted: dict[int, int] = {}
    places: dict[int, Path] = {}
    for folder, count in needs:
        try:
            device = folder.stat().st_dev
        except OSError:  # told where it is written to
            continue
        wanted[device] = wanted.get(device, 0) + count
        places.setdefault(device, folder)
    for device, folder in places.items():
        free = shutil.disk_usage(folder).free
        if free < wanted[device]:
            raise DiskFull(
                f"The disk has too little room: {what} take about {size(wanted[device])} and {size(free)} are free",
                where=str(folder), fix="Make room, or choose another folder for temporary files (TMPDIR) or outputs",
            )
