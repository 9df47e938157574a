"""What a source offers: its files by name, size and checksum, and which of them the suite takes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from plm.disk_space import size
from plm.errors import UserError
from plm.fingerprints import file_sha256
from plm.model import eight_bits
from plm.model.checkpoint import TOKENIZER_FILES

CONFIG = "config.json"
CARDS = ("README.md", "LICENSE", "LICENSE.md", "LICENSE.txt", "LICENCE", "NOTICE", "NOTICE.txt")
"""Kept beside a model because its licence may ask for it."""
SMALL_BYTES = 64 * 2**20
"""The largest of all files but the weights."""
_PART = re.compile(r"(?P<stem>model|pytorch_model)-(?P<number>\d{5})-of-(?P<all>\d{5})\.(?:safetensors|bin)", re.ASCII)
_BLOCK = 2**22


@dataclass(frozen=True)
class OfferedFile:
    """One file of a source.

    Attributes:
        name: Its name; sources' folders inside are not looked into.
        bytes: Its size.
        sha256: What the source says that its content has; empty where it does not say.
        blob: The same as git counts it (sha1 with a header); empty where the source does not say.
    """

    name: str
    bytes: int
    sha256: str = ""
    blob: str = ""


@dataclass(frozen=True)
class Offer:
    """A model as its source describes it, before anything has moved.

    Attributes:
        id: Its id on the hub, or the one that the administrator gave.
        kind: ``hub``, ``directory`` or ``archive``.
        place: Address of the hub, path of the folder, or name of the archive.
        asked: Branch, tag or commit that was asked for.
        revision: Commit, or ``sha256:`` and the checksum of all files taken.
        licence: As the source states it; may be empty.
        tag: The hub's ``pipeline_tag``; may be empty.
        gated: Whether the hub wants its terms accepted and a token.
        files: What is taken.
        left_out: Names of all else.
    """

    id: str
    kind: str
    place: str
    asked: str
    revision: str
    licence: str
    tag: str
    gated: bool
    files: tuple[OfferedFile, ...]
    left_out: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Of all files that are taken."""
        return sum(file.bytes for file in self.files)

    @property
    def short_revision(self) -> str:
        """Twelve digits of the revision, as folders and ids carry them."""
        return self.revision.removeprefix("sha256:")[:12]


class ModelOrigin(Protocol):
    """Where a model comes from."""

    def offer(self) -> Offer:
        """Looks at it; nothing is moved.

        Raises:
            UserError: It is not there, cannot be reached, or has no model that the suite reads.
        """

    def fetch(self, file: OfferedFile, target: Path) -> None:
        """Brings one file.

        Raises:
            UserError: It cannot be had.
        """


def chosen(names: Iterable[str], where: str) -> list[str]:
    """The files of a model that are taken: settings, tokenizer, card, and one set of weights, safetensors if there are.

    Args:
        names: All files that lie beside ``config.json``.
        where: The model in messages.

    Raises:
        UserError: There is no configuration or there are no weights, or a part of the weights is missing.
    """
    there = set(names)
    if CONFIG not in there:
        raise UserError(
            "The model has no config.json", where=where,
            fix="Give a model in Hugging Face format: config.json, tokenizer files, model.safetensors",
        )
    taken = [CONFIG, *(name for name in (*TOKENIZER_FILES, *CARDS) if name in there)]
    for kind in ("safetensors", "bin"):
        stem = "model" if kind == "safetensors" else "pytorch_model"
        whole, index = f"{stem}.{kind}", f"{stem}.{kind}.index.json"
        if whole in there:
            return [*taken, whole]
        parts = sorted(name for name in there if (match := _PART.fullmatch(name)) and match["stem"] == stem)
        parts = [name for name in parts if name.endswith(f".{kind}")]
        if parts:
            _check_parts(parts, where)
            return [*taken, *([index] if index in there else []), *parts]
        if kind == "safetensors" and eight_bits.FILE in there:
            return [*taken, eight_bits.FILE]
    others = sorted(name for name in there if name.endswith((".h5", ".msgpack", ".ot", ".onnx", ".pt", ".gguf")))
    raise UserError(
        "The model has no weights that the suite reads" + (f", but {', '.join(others[:3])}" if others else ""),
        where=where, fix="It needs model.safetensors or pytorch_model.bin, possibly in numbered parts",
    )


def _check_parts(parts: list[str], where: str) -> None:
    matches = [match for name in parts if (match := _PART.fullmatch(name))]
    wanted = int(matches[0]["all"])
    numbers = {int(match["number"]) for match in matches}
    missing = sorted(set(range(1, wanted + 1)) - numbers)
    if missing or len(matches) != wanted:
        told = f"part {missing[0]} of {wanted} is missing" if missing else "parts of two sets lie side by side"
        raise UserError(f"The weights are not complete: {told}", where=where, fix="Give all parts of one model")


def is_weights(name: str) -> bool:
    """Whether a file that is taken holds weights."""
    return name.endswith((".safetensors", ".bin"))


def check_small(files: Iterable[OfferedFile], where: str) -> None:
    """Refuses settings and tokenizers of a size that none has.

    Raises:
        UserError: Names the first.
    """
    for file in files:
        if not is_weights(file.name) and file.bytes > SMALL_BYTES:
            raise UserError(
                f"{file.name} has {size(file.bytes)}, as no such file has", where=where, fix="Do not trust this model"
            )


def verified(file: OfferedFile, path: Path, where: str) -> str:
    """The sha256 of a file that was fetched, after all that its source says of it was compared.

    Args:
        file: What the source said.
        path: Where it lies now.
        where: The model in messages.

    Raises:
        UserError: Size or checksum differ.
    """
    fix = "Try again; if it stays so, the file is not the one that was published: do not use it"
    held = path.stat().st_size
    if held != file.bytes:
        raise UserError(f"{file.name} has {held:,} bytes where {file.bytes:,} are listed", where=where, fix=fix)
    digest = file_sha256(path)
    if file.sha256 and digest != file.sha256:
        raise UserError(
            f"{file.name} is not what is listed: its sha256 is {digest[:12]}... instead of {file.sha256[:12]}...",
            where=where, fix=fix,
        )
    if file.blob and not file.sha256 and _git_blob(path) != file.blob:
        raise UserError(f"{file.name} is not what is listed: its git checksum differs", where=where, fix=fix)
    return digest


def _git_blob(path: Path) -> str:
    """The name that git gives a file: the sha1 of a header and the content."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as opened:
        while block := opened.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def content_revision(digests: Mapping[str, str]) -> str:
    """A revision for a source that has none: the checksum of its files' names and checksums."""
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
    return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"


_LICENCE = re.compile(
    r"^license(?P<name>_name)?:[ \t]*[\"']?(?P<is>[A-Za-z0-9][\w. +-]{0,60}?)[\"']?[ \t]*$", re.MULTILINE
)


def stated_licence(card: str) -> str:
    """The licence that the head of a model card states; empty if it states none."""
    if not card.startswith("---"):
        return ""
    head = card[3:65536].split("\n---", 1)[0]
    stated = {bool(match["name"]): match["is"] for match in _LICENCE.finditer(head)}
    return stated.get(True, "") if stated.get(False) == "other" and True in stated else stated.get(False, "")
