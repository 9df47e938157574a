"""Folders of strangers: links lead nowhere but inside, and only files that are known are taken."""

from __future__ import annotations

from pathlib import Path

from plm.errors import UserError
from plm.received.limits import model_roots


def roots_of(folder: Path) -> tuple[Path, ...]:
    """Where links in a model's folder may lead: inside it, inside the hub cache of that model, or where an
    administrator allows (``PLM_MODEL_ROOTS``).

    A hub cache lays out a model as ``models--NAME/snapshots/REVISION/FILE``, links to ``models--NAME/blobs/DIGEST``.
    """
    real = folder.resolve()
    cache = [above for above in (real, *real.parents) if above.name.startswith("models--")]
    return (real, *cache[:1], *model_roots())


def real_file(folder: Path, name: str, where: str, roots: tuple[Path, ...]) -> Path | None:
    """The real place of a file in a folder, or None if there is none of that name.

    Raises:
        UserError: It is a link out of the folder, or no plain file.
    """
    path = folder / name
    if not path.is_symlink() and not path.exists():
        return None
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{name} is a link to nothing", where=where, fix="Copy the file into the folder") from error
    if not any(real.is_relative_to(root) for root in roots):
        raise UserError(
            f"{name} is a link that leads out of the model's folder", where=where,
            fix="Copy the file into the folder, or let an administrator name its place in PLM_MODEL_ROOTS",
        )
    if not real.is_file():
        raise UserError(f"{name} is no plain file", where=where, fix="Copy the file into the folder")
    return real
