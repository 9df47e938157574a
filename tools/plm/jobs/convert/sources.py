"""What an input is, told by its content: fair-esm, Megatron, Hugging Face, an adapter or a bundle."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from plm.errors import UserError
from plm.jobs.convert import megatron
from plm.model import adapters, fair_esm
from plm.model.checkpoint import TOKENIZER_FILES, unpack_checkpoint
from plm.received.archives import Archive, holds, is_archive
from plm.received.documents import one_line
from plm.received.folders import real_file, roots_of
from plm.received.training_checkpoints import is_torch_file, read_training_checkpoint

Kind = Literal["fair-esm", "megatron", "hugging-face", "adapter", "bundle"]
KINDS = "a .pt file of fair-esm, partitions of Megatron, a Hugging Face folder or its zip, an adapter, or a bundle"
_FIX = f"Give {KINDS}"
_DEEP = ("", "*/", "*/*/", "*/*/*/")


@dataclass(frozen=True)
class ModelSource:
    """An input that was recognised.

    Attributes:
        kind: What it is.
        name: What people call it.
        place: The folder or bundle; for ``.pt`` files the first of them.
        contents: What lies in ``.pt`` files, with the files.
        regression: File with a contact regression (fair-esm).
        vocabulary: File with the tokens, if it came with the input (Megatron).
    """

    kind: Kind
    name: str
    place: Path
    contents: tuple[tuple[Path, dict[str, Any]], ...] = ()
    regression: Path | None = None
    vocabulary: Path | None = None


def recognise(given: Sequence[Path], workdir: Path) -> ModelSource:
    """Opens an input and tells what it is.

    Args:
        given: A file or folder; or the files of several partitions.
        workdir: Archives are unpacked below it.

    Raises:
        UserError: Missing, damaged, unsafe, or nothing that is converted.
    """
    for path in given:
        if not path.exists():
            raise UserError("The input does not exist", where=str(path), fix="Check the path")
    first = given[0]
    if len(given) == 1 and first.is_file() and not is_torch_file(first):
        if not is_archive(first):
            raise UserError("The file is none that is converted", where=first.name, fix=_FIX)
        if holds(first, "manifest.json"):
            return ModelSource("bundle", first.stem, first)
        return _in_folder(_unpacked(first, workdir), first.name, first.stem)
    if len(given) == 1 and first.is_dir():
        return _in_folder(first, first.name, first.name)
    other = next((path for path in given if not path.is_file() or not is_torch_file(path)), None)
    if other is not None:
        raise UserError("Of several inputs each must be a .pt file", where=other.name, fix=_FIX)
    return _torch_files(list(given), first.stem, None)


def _unpacked(path: Path, workdir: Path) -> Path:
    """A zip's files that are acted on, in a folder."""
    workdir.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="unpacked_input_", dir=workdir))

    def place(name: str) -> str | None:
        own = name.rsplit("/", 1)[-1]
        known = own.endswith(".pt") or own in (adapters.CONFIG, adapters.WEIGHTS, *TOKENIZER_FILES)
        return name if known else None

    unpack_checkpoint(path, folder)
    with Archive(path, "archive", _FIX) as opened:
        opened.unpack(folder, lambda name: None if (folder / name).exists() else place(name))
    return folder


def _in_folder(folder: Path, where: str, name: str) -> ModelSource:
    roots = roots_of(folder)
    adapter = _only(folder, adapters.CONFIG, where)
    if adapter is not None:
        for file in (adapters.CONFIG, adapters.WEIGHTS):
            if real_file(adapter, file, where, roots) is None:
                raise UserError(f"The adapter has no {file}", where=where, fix="Give the adapter as PEFT wrote it")
        return ModelSource("adapter", name, adapter)
    model = _only(folder, "config.json", where)
    if model is not None:
        return ModelSource("hugging-face", name, model)
    files = sorted(path.relative_to(folder).as_posix() for deep in _DEEP for path in folder.glob(deep + "*.pt"))
    if not files:
        raise UserError("The input holds no model", where=where, fix=_FIX)
    real = [folder / one for one in files if real_file(folder, one, where, roots) is not None]
    vocabularies = sorted(path for deep in _DEEP for path in folder.glob(deep + "vocab.txt"))
    vocabulary = vocabularies[0] if len(vocabularies) == 1 else None
    if vocabulary is not None:
        real_file(folder, vocabulary.relative_to(folder).as_posix(), where, roots)
    return _torch_files(real, name, vocabulary)


def _only(folder: Path, file: str, where: str) -> Path | None:
    """The folder that holds a file, at the top or a few levels down; None if there is none.

    Raises:
        UserError: There are several.
    """
    for deep in _DEEP:
        places = sorted(path.parent for path in folder.glob(deep + file))
        if len(places) > 1:
            raise UserError(
                f"The input holds {len(places)} models", where=where,
                fix=f"Give one of them, for example {places[0].relative_to(folder)}",
            )
        if places:
            return places[0]
    return None


def _torch_files(paths: list[Path], name: str, vocabulary: Path | None) -> ModelSource:
    contents = [(path, read_training_checkpoint(path, _shown(path))) for path in paths]
    regressions = [path for path, content in contents if fair_esm.is_regression(content)]
    models = [(path, content) for path, content in contents if path not in regressions]
    if not models:
        raise UserError(
            "The input is a contact regression alone", where=paths[0].name, fix="Give the model that it belongs to, too"
        )
    path, content = models[0]
    if all(megatron.is_megatron(one) for _, one in models):
        return ModelSource("megatron", name, path, tuple(models), None, vocabulary)
    if not fair_esm.is_fair_esm(content):
        held = ", ".join(one_line(str(key), 30) for key in list(content)[:4])
        raise UserError(
            f"The checkpoint is of no program that is known here (it holds {held or 'nothing'})", where=_shown(path),
            fix=_FIX,
        )
    if len(models) > 1 or len(regressions) > 1:
        raise UserError(
            f"The input holds {len(models)} models of fair-esm and {len(regressions)} contact regressions",
            where=models[-1][0].name, fix="Give one model, and its contact regression",
        )
    own = path.stem
    regression = regressions[0] if regressions else fair_esm.regression_beside(path)
    return ModelSource("fair-esm", own, path, tuple(models), regression)


def _shown(path: Path) -> str:
    """A file's name, with its folder's where partitions share a name."""
    return f"{path.parent.name}/{path.name}" if path.parent.name.startswith("mp_rank") else path.name
