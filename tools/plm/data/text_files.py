"""Text files that people bring: plain or gzipped, in the encodings of their editors, read in bounded pieces.

What is no text is named (a workbook, a bundle, a picture), and neither a line without end nor a small file that
unpacks to a huge one is held in memory: both are told before they are read.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from plm.errors import UserError

LONGEST_LINE = 2**26
"""Characters of a line at most: the labels of every residue of the longest protein, or a row of a very wide table."""
_RATIO = 200
_RATIO_FROM = 2**28
"""A gzip file that unpacks to so much, and to so many times its size, is none that people make."""

_SPREADSHEET_FIX = "Save the sheet as CSV or as tab-separated text"
_KINDS: tuple[tuple[bytes, str, str], ...] = (
    (b"BZh", "The file is compressed as bzip2", "Unpack it, or use gzip"),
    (b"\xfd7zXZ", "The file is compressed as xz", "Unpack it, or use gzip"),
    (b"\x28\xb5\x2f\xfd", "The file is compressed as zstd", "Unpack it, or use gzip"),
    (b"7z\xbc\xaf", "The file is compressed as 7z", "Unpack it, or use gzip"),
    (b"\xd0\xcf\x11\xe0", "This is an old Excel workbook (or another Office file), not text", _SPREADSHEET_FIX),
    (b"\x89HDF\r\n\x1a\n", "This is an HDF5 file (embeddings?), not text", "Give a FASTA file or a table"),
    (b"\x93NUMPY", "This is an array of NumPy, not text", "Give a FASTA file or a table"),
    (b"%PDF", "This is a PDF, not text", "Save the table or the sequences as plain text"),
    (b"\x89PNG", "This is a picture, not text", "Give a FASTA file or a table"),
    (b"{\\rtf", "This is formatted text (RTF), not plain text", "Save it as plain text"),
)
_MEMBERS: tuple[tuple[bytes, str, str], ...] = (
    (b"[Content_Types].xml", "This is a workbook (Excel), not text", _SPREADSHEET_FIX),
    (b"xl/", "This is a workbook (Excel), not text", _SPREADSHEET_FIX),
    (b"mimetypeapplication/vnd.oasis.opendocument", "This is a spreadsheet (OpenDocument), not text", _SPREADSHEET_FIX),
    (b"word/", "This is a Word document, not plain text", "Save it as plain text"),
    (b"manifest.json", "This is a bundle or a checkpoint of this suite, not text", "Give a FASTA file or a table"),
    (b"config.json", "This is a model (zip), not text", "Give a FASTA file or a table"),
    (b".npy", "This is an npz file (embeddings?), not text", "Give a FASTA file or a table"),
)


def start_of(path: str | Path, size: int = 2048) -> bytes:
    """The first bytes of a file.

    Raises:
        UserError: The file is missing, a folder, cannot be opened, or is empty.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise UserError("This is a folder, not a file", where=str(path)[:200], fix="Give one file")
        with path.open("rb") as handle:
            start = handle.read(size)
    except FileNotFoundError as error:
        raise UserError("The file does not exist", where=str(path), fix="Check the path") from error
    except (OSError, ValueError) as error:  # a name that is too long, or no permission
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"The file cannot be opened ({reason})", where=str(path)[:200], fix="Check its name and permissions"
        ) from error
    if not start:
        raise UserError("The file is empty", where=path.name, fix="Give a file with at least one record")
    return start


def _end_of(path: Path, size: int = 2**16) -> bytes:
    with path.open("rb") as handle:
        handle.seek(max(0, path.stat().st_size - size))
        return handle.read(size)


def is_parquet(path: str | Path) -> bool:
    """Whether a file starts as Parquet does."""
    return start_of(path, 4) == b"PAR1"


def open_text(path: str | Path) -> TextIO:
    """Opens a text file that may be gzipped; line ends of Windows, Unix and old Mac all become ``\\n``.

    Bytes are read as Latin-1 so that a wrong byte can be reported with its line instead of failing somewhere
    in a block; UTF-16, which Excel calls Unicode text, is decoded and encoded as UTF-8 first.

    Raises:
        UserError: The file is missing, a folder, empty, or no text: it names what it is.
    """
    path = Path(path)
    start = start_of(path)
    for magic, what, fix in _KINDS:
        if start.startswith(magic):
            raise UserError(what, where=path.name, fix=fix)
    if start.startswith(b"PK\x03\x04"):
        start += _end_of(path)  # the list of members
        for member, what, fix in _MEMBERS:
            if member in start:
                raise UserError(what, where=path.name, fix=fix)
        raise UserError("The file is compressed as zip", where=path.name, fix="Unpack it, or use gzip")
    buffered = io.BufferedReader(open_bytes(path), 2**16)
    encoding = "utf-16" if start.startswith((b"\xff\xfe", b"\xfe\xff")) else "latin-1"
    return io.TextIOWrapper(buffered, encoding=encoding, newline=None)


def open_bytes(path: Path) -> Any:
    """Opens a file for its bytes, unpacked if it is gzipped, which its first bytes tell."""
    return gzip.open(path, "rb") if start_of(path, 2) == b"\x1f\x8b" else path.open("rb")


@contextmanager
def whole_stream(name: str, lines: Callable[[], int]) -> Iterator[None]:
    """Makes one line of a gzip stream that breaks.

    Args:
        name: File name in messages.
        lines: Gives the lines read so far.

    Raises:
        UserError: The stream is broken or cut short.
    """
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(
            "The gzip file is broken or cut short", where=f"{name}, after line {lines()}",
            fix="Transfer the file again",
        ) from error


def raw_lines(path: str | Path, longest: int = LONGEST_LINE, too_long: str = "") -> Iterator[tuple[int, str]]:
    """Yields (1-based line number, line without its end, its bytes as Latin-1) of a text file.

    Args:
        path: Text file to read.
        longest: Characters of a line at most.
        too_long: What to say of a longer one.

    Raises:
        UserError: As :func:`open_text`; also a broken gzip stream, a line that is too long, and a gzip file that
            unpacks to an unlikely size.
    """
    name, number, total = Path(path).name, 0, 0
    with whole_stream(name, lambda: number), open_text(path) as handle:
        wide = handle.encoding == "utf-16"
        zipped = isinstance(getattr(handle.buffer, "raw", None), gzip.GzipFile)
        most = max(_RATIO_FROM, _RATIO * Path(path).stat().st_size) if zipped else 0
        readline, size = handle.readline, longest + 2
        try:
            while line := readline(size):
                number += 1
                total += len(line)
                if line[-1] == "\n":
                    line = line[:-1]
                if len(line) > longest:
                    raise UserError(
                        too_long or f"A line has more than {longest:,} characters", where=f"{name}, line {number}",
                        fix="Check that this is the right file",
                    )
                if most and total > most:
                    raise UserError(
                        f"The gzip file unpacks to more than {_RATIO} times its size: it is refused",
                        where=f"{name}, line {number}", fix="Unpack it yourself, if it is what you think",
                    )
                yield number, line.encode().decode("latin-1") if wide else line
        except UnicodeError as error:
            raise UserError(
                "This is not a plain text file", where=f"{name}, after line {number}", fix="Save it as UTF-8 text"
            ) from error


def first_line(path: str | Path) -> str:
    """The first line that is not blank, as UTF-8 where it is, without a byte order mark; may be empty.

    Raises:
        UserError: As :func:`raw_lines`.
    """
    line = next((line for _, line in raw_lines(path) if line.strip()), "")
    return decoded(line).removeprefix("\ufeff")


def decoded(raw: str) -> str:
    """UTF-8 of bytes that were read as Latin-1; they stay Latin-1 where they are no UTF-8."""
    if raw.isascii():
        return raw
    data = raw.encode("latin-1")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return raw
