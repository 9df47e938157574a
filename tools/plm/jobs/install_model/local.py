"""A model that is here already: a folder of the server, or a zip of one."""

from __future__ import annotations

import shutil
from pathlib import Path, PurePosixPath

from plm.errors import UserError
from plm.fingerprints import file_sha256
from plm.jobs.install_model.offers import CONFIG, Offer, OfferedFile, chosen, content_revision, stated_licence
from plm.received.archives import Archive
from plm.received.folders import real_file, roots_of

_CARD = "README.md"
_CARD_BYTES = 2**20


class FolderModel:
    """A model in a folder.

    Args:
        folder: Holds ``config.json``; links in it lead inside, or where ``PLM_MODEL_ROOTS`` allows.
        name: The id that the model gets.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name

    def offer(self) -> Offer:
        """Reads all files that are taken once, for their checksums."""
        folder, where = self._folder, str(self._folder)
        if not folder.is_dir():
            raise UserError(
                "There is no such folder where the job runs", where=where,
                fix="Give the absolute path of a model's folder that the node of the job can read",
            )
        names = chosen([path.name for path in folder.iterdir() if not path.is_dir()], where)
        files = []
        for name in names:
            place = self._place(name)
            files.append(OfferedFile(name, place.stat().st_size, file_sha256(place)))
        card = ""
        if _CARD in names and self._place(_CARD).stat().st_size <= _CARD_BYTES:
            card = self._place(_CARD).read_text(encoding="utf-8", errors="replace")
        left_out = sorted(path.name for path in folder.iterdir() if path.name not in names)
        return _offer("directory", where, self._name, files, card, left_out)

    def fetch(self, file: OfferedFile, target: Path) -> None:
        """Copies a file; what is copied is compared with what was offered."""
        shutil.copyfile(self._place(file.name), target)

    def _place(self, name: str) -> Path:
        place = real_file(self._folder, name, str(self._folder), roots_of(self._folder))
        if place is None:
            raise UserError(f"{name} is gone", where=str(self._folder), fix="Leave the folder as it is until the end")
        return place


class ArchiveModel:
    """A model in a zip, at its top or in one folder of it.

    Args:
        archive: The zip.
        name: The id that the model gets.
    """

    def __init__(self, archive: Path, name: str) -> None:
        self._archive, self._name = archive, name
        self._inside = ""

    def _open(self) -> Archive:
        fix = "Give a zip of a model's folder (config.json, tokenizer files, model.safetensors)"
        return Archive(self._archive, "model archive", fix)

    def offer(self) -> Offer:
        """Reads all members that are taken once, for their checksums."""
        where = self._archive.name
        with self._open() as opened:
            folders = sorted(
                {str(PurePosixPath(name).parent) for name in opened.members if PurePosixPath(name).name == CONFIG},
                key=lambda folder: (folder.count("/"), folder),
            )
            top = [one for one in folders if one == "."] or folders
            if len(top) != 1:
                told = f"holds {len(top)} models" if top else "holds no model: there is no config.json in it"
                raise UserError(f"The zip {told}", where=where, fix="Give a zip of one model's folder")
            self._inside = "" if top[0] == "." else f"{top[0]}/"
            beside = {
                name.removeprefix(self._inside): member for name, member in opened.members.items()
                if name.startswith(self._inside) and "/" not in name.removeprefix(self._inside)
            }
            names = chosen(beside, where)
            files = [
                OfferedFile(name, beside[name].file_size, opened.sha256(self._inside + name)) for name in names
            ]
            card = b""
            if _CARD in names and beside[_CARD].file_size <= _CARD_BYTES:
                card = opened.read(self._inside + _CARD, _CARD_BYTES)
            left_out = sorted(name for name in opened.members if name.removeprefix(self._inside) not in names)
        return _offer("archive", where, self._name, files, card.decode("utf-8", "replace"), left_out)

    def fetch(self, file: OfferedFile, target: Path) -> None:
        """Unpacks one member."""
        wanted = self._inside + file.name
        with self._open() as opened:
            opened.unpack(target.parent, lambda name: target.name if name == wanted else None)


def _offer(kind: str, place: str, name: str, files: list[OfferedFile], card: str, left_out: list[str]) -> Offer:
    revision = content_revision({file.name: file.sha256 for file in files})
    return Offer(name, kind, place, "", revision, stated_licence(card), "", False, tuple(files), tuple(left_out))
