"""How large received files may be; an administrator's environment variables override the defaults."""

from __future__ import annotations

import os
from pathlib import Path

from plm.disk_space import size
from plm.errors import UserError

DEFAULTS = {"PLM_MAX_UNPACKED_GIB": 512, "PLM_MAX_RATIO": 200, "PLM_MAX_MEMBERS": 100_000, "PLM_MAX_JSON_MIB": 64}
SMALL_BYTES = 64 * 2**20
"""What becomes no larger than this may be as compressed as it likes."""


def limit(name: str) -> int:
    """One of ``DEFAULTS``, or what the environment says instead.

    Raises:
        UserError: The environment holds no whole number from 1.
    """
    given = os.environ.get(name, "")
    if not given:
        return DEFAULTS[name]
    if not (given.isascii() and given.isdigit() and len(given) < 16 and int(given)):
        raise UserError(f"{given[:40]!r} is no limit", where=name, fix="Set a whole number from 1, or nothing")
    return int(given)


def model_roots() -> list[Path]:
    """Folders into which links in a model's folder may lead."""
    return [Path(place).resolve() for place in os.environ.get("PLM_MODEL_ROOTS", "").split(":") if place]


def check_growth(unpacked: int, packed: int, what: str, where: str) -> None:
    """Whether a compressed content is no bomb.

    Args:
        unpacked: Bytes that it says it becomes.
        packed: Bytes that it takes in the file.
        what: The compressed content in messages, such as ``The bundle``.
        where: File name in messages.

    Raises:
        UserError: It grows more than any real file does.
    """
    if unpacked > SMALL_BYTES and unpacked > limit("PLM_MAX_RATIO") * packed:
        raise UserError(
            f"{what} would become {size(unpacked)} out of {size(packed)}, which no real file does", where=where,
            fix="Do not trust this file; give it as the program that made it wrote it",
        )
