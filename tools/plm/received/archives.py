"""Zip archives of strangers: names, sizes and checksums are judged before and while anything is unpacked."""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import os
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO

from plm.disk_space import size
from plm.errors import UserError
from plm.received.documents import has_breaks, one_line
from plm.received.limits import check_growth, limit

BROKEN = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, NotImplementedError, RuntimeError, ValueError,
    struct.error,
)
"""What zipfile raises on damaged archives."""
_BLOCK = 1 << 20
_UNREAD = 16 * 2**20
"""Members that nobody wants are read for their checksum up to this size."""
_DO_NOT_TRUST = "Do not trust this file"


class Archive:
    """An open archive whose list of members has passed.

    Args:
        path: Archive (zip) to read.
        what: The archive in messages, e.g. ``bundle``.
        fix: What the user can do if it is damaged.

    Raises:
        UserError: Missing, no zip, too many members, an unsafe name, a link, a member twice, sizes of a bomb.
    """

    def __init__(self, path: Path, what: str, fix: str) -> None:
        self.path, self._what, self._fix = path, what, fix
        if not path.is_file():
            raise UserError(f"The {what} does not exist", where=str(path), fix="Check the path")
        try:
            _check_directory(path, what)
            self._zip = zipfile.ZipFile(path)
        except BROKEN as error:
            raise self._broken(error) from error
        try:
            self._members = self._judge()
        except BaseException:
            self._zip.close()
            raise

    def __enter__(self) -> Archive:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._zip.close()

    def __contains__(self, name: str) -> bool:
        return name in self._members

    @property
    def members(self) -> dict[str, zipfile.ZipInfo]:
        """The files in it by name, in the order of the archive."""
        return self._members

    def read(self, name: str, most: int) -> bytes:
        """A small member whole.

        Raises:
            UserError: It is missing, larger than ``most`` bytes, or damaged.
        """
        if name not in self._members:
            raise UserError(f"The {self._what} has no {name}", where=self.path.name, fix=self._fix)
        if self._members[name].file_size > most:
            raise UserError(f"{name} is larger than {size(most)}", where=self.path.name, fix=self._fix)
        try:
            return self._zip.read(self._members[name])
        except BROKEN as error:
            raise self._broken(error) from error

    def stream(self, member: zipfile.ZipInfo) -> IO[bytes]:
        """A member for reading; its checksum is compared when its end is reached."""
        return self._zip.open(member)

    def sha256(self, name: str) -> str:
        """The sha256 of a member, which is read to its end and written nowhere.

        Raises:
            UserError: It is damaged.
        """
        hasher = hashlib.sha256()
        try:
            with self._zip.open(self._members[name]) as source:
                while block := source.read(_BLOCK):
                    hasher.update(block)
        except BROKEN as error:
            raise self._broken(error) from error
        return hasher.hexdigest()

    def unpack(
        self, folder: Path, place: Callable[[str], str | None] = lambda name: name, *, digests: bool = False
    ) -> dict[str, str]:
        """Writes members below a folder, and reads those that stay behind for their checksums.

        Args:
            folder: Made if absent.
            place: Where a member goes, relative to the folder; None leaves it behind.
            digests: Give the sha256 of each written member, else empty texts.

        Returns:
            What was written, by its place.

        Raises:
            UserError: Damaged, a wrong checksum, or no room.
        """
        folder.mkdir(parents=True, exist_ok=True)
        places = {name: place(name) for name in self._members}
        wanted = sum(self._members[name].file_size for name, target in places.items() if target is not None)
        free = shutil.disk_usage(folder).free
        if wanted > free:
            raise UserError(
                f"The {self._what} takes {size(wanted)} when it is unpacked, and {size(free)} are free",
                where=self.path.name, fix=f"Free space below {folder.parent}",
            )
        written: dict[str, str] = {}
        try:
            for name, member in self._members.items():
                target = places[name]
                if target is None:
                    if member.file_size <= _UNREAD:
                        with self._zip.open(member) as source:
                            while source.read(_BLOCK):
                                pass
                    continue
                if target in written:
                    raise UserError(
                        f"The {self._what} holds {target} twice", where=self.path.name, fix="Give it with one of them"
                    )
                written[target] = self._write(member, folder / target, digests)
        except BROKEN as error:
            raise self._broken(error) from error
        return written

    def _write(self, member: zipfile.ZipInfo, target: Path, digest: bool) -> str:
        hasher = hashlib.sha256()
        target.parent.mkdir(parents=True, exist_ok=True)
        left = member.file_size
        with self._zip.open(member) as source, target.open("xb") as out:
            while block := source.read(_BLOCK):
                left -= len(block)
                if left < 0:
                    raise zipfile.BadZipFile(f"{member.filename!r} is longer than it says")
                if digest:
                    hasher.update(block)
                out.write(block)
        if left:
            raise zipfile.BadZipFile(f"{member.filename!r} is shorter than it says")
        return hasher.hexdigest() if digest else ""

    def _judge(self) -> dict[str, zipfile.ZipInfo]:
        where = self.path.name
        listed = self._zip.infolist()
        most = limit("PLM_MAX_MEMBERS")
        if len(listed) > most:
            raise UserError(f"The {self._what} holds {len(listed)} files", where=where, fix=f"At most {most} are read")
        members: dict[str, zipfile.ZipInfo] = {}
        for member in listed:
            name = member.filename
            kind = stat.S_IFMT(member.external_attr >> 16)
            plain = kind in (0, stat.S_IFREG, stat.S_IFDIR)
            folder = name.endswith("/")  # is_dir() of a member without a name raises
            if not safe_name(name.removesuffix("/")) or not plain:
                raise UserError(
                    f"The {self._what} has an unsafe member {one_line(name, 100)!r}", where=where, fix=_DO_NOT_TRUST
                )
            if folder:
                continue
            if name in members:
                raise UserError(f"The {self._what} holds {name} twice", where=where, fix=self._fix)
            members[name] = member
        whole, packed = sum(one.file_size for one in members.values()), self.path.stat().st_size
        check_growth(whole, packed, f"The {self._what}", where)
        for name, member in members.items():
            check_growth(member.file_size, member.compress_size, name, where)
        most = limit("PLM_MAX_UNPACKED_GIB") * 2**30
        if whole > most:
            raise UserError(
                f"The {self._what} would become {size(whole)}", where=where,
                fix=f"At most {size(most)} are read; an administrator can raise PLM_MAX_UNPACKED_GIB",
            )
        return members

    def _broken(self, error: Exception) -> UserError:
        if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
            reason = f"{os.strerror(error.errno)}: {error.filename}"
        else:
            reason = str(error) or type(error).__name__
        return UserError(
            f"The {self._what} is no complete zip file ({one_line(reason, 150)})", where=self.path.name, fix=self._fix
        )


def safe_name(name: str) -> bool:
    """Whether a name is a plain relative path: it cannot lead out of a folder on any system."""
    if not name or len(name) > 1000 or has_breaks(name) or "\\" in name or ":" in name or name.startswith(("/", "~")):
        return False
    parts = name.split("/")
    return all(part not in ("", ".", "..") and len(part.encode("utf-8", "replace")) <= 255 for part in parts)


def _check_directory(path: Path, what: str) -> None:
    """Refuses a list of members that would fill the memory before zipfile could count it."""
    length = path.stat().st_size
    with path.open("rb") as opened:
        start = max(0, length - 65_557)
        opened.seek(start)
        tail = opened.read(65_557)
        at = tail.rfind(b"PK\x05\x06")
        if at < 0 or len(tail) - at < 22:
            return  # zipfile says what is wrong
        count, listed = struct.unpack("<HI", tail[at + 10 : at + 16])
        locator = start + at - 20
        if locator >= 0 and tail[max(0, at - 20) : at][:4] == b"PK\x06\x07":
            (record,) = struct.unpack("<Q", tail[at - 12 : at - 4])
            if record + 56 <= length:
                opened.seek(record)
                big = opened.read(56)
                if big[:4] == b"PK\x06\x06":
                    count, listed = struct.unpack("<QQ", big[32:48])
    most = limit("PLM_MAX_MEMBERS")
    if count > most or listed > 1000 * most:
        raise UserError(f"The {what} holds {count:,} files", where=path.name, fix=f"At most {most:,} are read")


def unpacked_gzip(data: bytes, most: int, what: str, where: str) -> bytes:
    """The content of a small gzip file that is held in memory.

    Args:
        data: The compressed bytes.
        most: Bytes that it may become.
        what: The content in messages, such as ``The structure``.
        where: File name in messages.

    Raises:
        UserError: Damaged, too large, or a bomb.
    """
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as opened:
            content = opened.read(most + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"{what} is no complete gzip file ({one_line(str(error), 100)})", where=where, fix="Transfer the file again"
        ) from error
    check_growth(len(content), len(data), what, where)
    if len(content) > most:
        raise UserError(f"{what} becomes more than {size(most)}", where=where, fix="Give smaller files")
    return content


def is_archive(path: Path) -> bool:
    """Whether a file begins as zip archives do; nothing else is looked at."""
    try:
        with path.open("rb") as opened:
            return opened.read(4) in (b"PK\x03\x04", b"PK\x05\x06")
    except OSError:
        return False


def holds(path: Path, name: str) -> bool:
    """Whether a file is an archive with a member of that name; a damaged one holds nothing."""
    if not is_archive(path):
        return False
    try:
        with Archive(path, "archive", "") as opened:
            return name in opened
    except UserError:
        return False


def holds_ending(path: Path, ending: str) -> bool:
    """Whether a file is an archive with a member whose name ends so; a damaged one holds nothing."""
    if not is_archive(path):
        return False
    try:
        with Archive(path, "archive", "") as opened:
            return any(name.endswith(ending) for name in opened.members)
    except UserError:
        return False
