"""What ``--model`` means: the starter, a row of the server's table, a checkpoint on disk, or a model of the hub."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from plm.errors import UserError
from plm.model.checkpoint import unpack_checkpoint

from harness.configuration import ModelRow, models_in
from harness.layout import Layout

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[A-Za-z0-9][\w./-]*)?")


@dataclass(frozen=True)
class ModelChoice:
    """A model as the tools' forms know it.

    Args:
        source: Which branch of the form's model choice.
        value: What is chosen there.
        row: The row that the server's model table needs for it, if it is a checkpoint on disk.
    """

    source: Literal["builtin", "table", "hub"]
    value: str
    row: ModelRow | None = None

    def form(self) -> dict[str, str]:
        """The tool form's conditional ``model``."""
        return {"source": self.source, self.source: self.value}


def choose_model(text: str, path: Path, layout: Layout, listed: Sequence[ModelRow]) -> ModelChoice:
    """Interprets ``--model``.

    Args:
        text: What the user wrote.
        path: The same as a path from where she called the script.
        layout: The checkout; a zip is unpacked below its state folder.
        listed: The rows of the server's table.

    Raises:
        UserError: It is none of them; lists what there is.
    """
    if text == "starter":
        return ModelChoice("builtin", "starter")
    if text.startswith("hub:"):
        if not _HUB_ID.fullmatch(text.removeprefix("hub:")):
            raise UserError("A model of the hub is written hub:organisation/name", where=f"--model {text}")
        return ModelChoice("hub", text.removeprefix("hub:"))
    if any(row.value == text for row in listed):
        return ModelChoice("table", text)
    if path.is_dir() and (path / "config.json").is_file():
        row = _distinct(models_in(path)[0], listed)
        return ModelChoice("table", row.value, row)
    if path.is_file():
        row = _distinct(_unpacked(path, layout), listed)
        return ModelChoice("table", row.value, row)
    names = ", ".join(["starter", *(row.value for row in listed)])
    raise UserError(
        f"There is no model '{text}'",
        where="--model",
        fix=f"Give one of {names}; or a checkpoint's folder or zip; or hub:organisation/name",
    )


def _distinct(row: ModelRow, listed: Sequence[ModelRow]) -> ModelRow:
    """The row under an id of its own: a checkpoint may be called as another that is listed already."""
    if all(other.value != row.value or other.path == row.path for other in listed):
        return row
    name = f"{row.value}-{hashlib.sha256(str(row.path).encode()).hexdigest()[:8]}"
    return ModelRow(name, name, row.path)


def _unpacked(archive: Path, layout: Layout) -> ModelRow:
    with archive.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()[:16]
    folder = layout.state / "models" / digest / archive.stem
    if not folder.is_dir():
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        unpack_checkpoint(archive, partial)
        partial.rename(folder)
    configs = sorted(folder.rglob("config.json"))
    if not configs:
        raise UserError(
            "The zip holds no config.json", where=str(archive), fix="Zip a model folder in Hugging Face format"
        )
    return ModelRow(archive.stem, archive.stem, configs[0].parent)
