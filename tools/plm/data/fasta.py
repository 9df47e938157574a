"""FASTA in, records out, and the one residue cleaning rule that every stage shares.

A file's kind is told by its content, never by its suffix: gzip is recognised by its first bytes, so
``proteins.fasta`` that is
really gzipped and ``proteins.fasta.gz`` that is not both read well.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from plm.errors import UserError

STANDARD_RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
"""The twenty amino acids of the genetic code."""
UNKNOWN_RESIDUE = "X"
GAP_CHARACTERS = "-._"
STOP_CHARACTER = "*"

_OTHER_COMPRESSIONS = {
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf": "7z",
}
_RESIDUE_SET = frozenset(STANDARD_RESIDUES + UNKNOWN_RESIDUE)
_NUCLEOTIDES = frozenset("ACGTUN")


@dataclass(frozen=True, slots=True)
class FastaRecord:
    """One FASTA record as the file has it.

    Attributes:
        id: First word of the header.
        description: The whole header without ``>``.
        sequence: Sequence without white space, otherwise untouched (case, gaps, stops and ``#`` marks are
            kept).
        line: 1-based line of the header.
    """

    id: str
    description: str
    sequence: str
    line: int


def open_text(path: str | Path) -> TextIO:
    """Opens a text file that may be gzipped; line ends of Windows, Unix and old Mac all become ``\\n``.

    Bytes are read as Latin-1 so that a wrong byte can be reported with its line instead of failing somewhere
    in a block.

    Raises:
        UserError: The file is missing, a folder, empty, or compressed in a way other than gzip.
    """
    path = Path(path)
    if not path.exists():
        raise UserError("The file does not exist", where=str(path), fix="Check the path")
    if path.is_dir():
        raise UserError("This is a folder, not a file", where=str(path), fix="Give one file")
    with path.open("rb") as handle:
        start = handle.read(8)
    if not start:
        raise UserError("The file is empty", where=path.name, fix="Give a file with at least one record")
    for magic, kind in _OTHER_COMPRESSIONS.items():
        if start.startswith(magic):
            raise UserError(f"The file is compressed as {kind}", where=path.name, fix="Unpack it, or use gzip")
    binary = gzip.open(path, "rb") if start.startswith(b"\x1f\x8b") else path.open("rb")  # noqa: SIM115
    return io.TextIOWrapper(io.BufferedReader(binary), encoding="latin-1", newline=None)


def raw_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Yields (1-based line number, line without its end, its bytes as Latin-1) of a text file.

    Raises:
        UserError: As :func:`open_text`; also a broken gzip stream.
    """
    number = 0
    with open_text(path) as handle:
        try:
            for number, line in enumerate(handle, start=1):
                yield number, line.rstrip("\n")
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(
                "The gzip file is broken or cut short",
                where=f"{Path(path).name}, after line {number}",
                fix="Transfer the file again",
            ) from error


def text_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Yields (1-based line number, line without its end) of a text file, checked to be plain ASCII.

    Raises:
        UserError: As :func:`raw_lines`; also binary content or a character outside ASCII (with its line).
    """
    for number, line in raw_lines(path):
        text = line
        if number == 1 and text.startswith("\xef\xbb\xbf"):  # the byte order mark that Windows editors write
            text = text[3:]
        if not text.isascii() or "\x00" in text:
            raise _not_plain(text, Path(path).name, number)
        yield number, text


def _not_plain(text: str, name: str, number: int) -> UserError:
    if "\x00" in text or (number == 1 and text.startswith(("\xff\xfe", "\xfe\xff"))):
        return UserError(
            "This is not a plain text file",
            where=f"{name}, line {number}",
            fix="Save it as plain text (ASCII or UTF-8)",
        )
    column = next(index for index, character in enumerate(text) if ord(character) > 127)
    try:
        shown = text.encode("latin-1")[column : column + 4].decode("utf-8", errors="ignore")[:1] or text[column]
    except UnicodeError:
        shown = text[column]
    return UserError(
        f"The character {shown!r} is not ASCII",
        where=f"{name}, line {number}, column {column + 1}",
        fix="Replace it with a plain letter",
    )


def read_fasta(path: str | Path) -> Iterator[FastaRecord]:
    """Streams the records of a FASTA file (plain or gzipped).

    Args:
        path: The file. Its suffix does not matter.

    Yields:
        Records in file order. A record without residues comes with an empty sequence, for the caller to
        reject with its id.

    Raises:
        UserError: Missing, empty or non-FASTA file, header without an id, non-ASCII character: each with its
            line.
    """
    from Bio.SeqIO.FastaIO import SimpleFastaParser

    name = Path(path).name
    headers: deque[int] = deque()

    def checked() -> Iterator[str]:
        started = False
        for number, text in text_lines(path):
            if text.startswith(">"):
                if not text[1:].strip():
                    raise UserError(
                        "A header without an id", where=f"{name}, line {number}", fix="Put a name after '>'"
                    )
                headers.append(number)
                started = True
            elif not started:
                if not text.strip():
                    continue
                shown = text if len(text) <= 40 else text[:40] + "…"
                raise UserError(
                    f"This is not FASTA: the first line must start with '>' but reads {shown!r}",
                    where=f"{name}, line {number}",
                    fix="Give a FASTA file, or say that the input is a table",
                )
            yield text + "\n"
        if not started:
            raise UserError("The file holds no record", where=name, fix="Give a file with at least one record")

    # SimpleFastaParser reads a header ahead of the record it yields, so line numbers are taken in order of
    # appearance.
    for title, sequence in SimpleFastaParser(checked()):
        description = title.strip()
        yield FastaRecord(description.split(None, 1)[0], description, "".join(sequence.split()), headers.popleft())


def write_fasta(records: Iterable[tuple[str, str]], path: str | Path, width: int = 60) -> None:
    """Writes (header, sequence) pairs as FASTA, ``width`` residues a line."""
    with Path(path).open("w", encoding="ascii", newline="\n") as handle:
        for header, sequence in records:
            handle.write(f">{header}\n")
            for start in range(0, len(sequence), width):
                handle.write(sequence[start : start + width] + "\n")


@dataclass(frozen=True, slots=True)
class CleaningRule:
    """What happens to everything that is not one of the twenty residues or X.

    Attributes:
        unusual: U, Z, O, B, J and other letters: ``x`` turns them into X, ``reject`` rejects the record.
        gaps: ``-``, ``.`` and ``_``: ``remove`` closes them up (positions are corrected) or ``reject``.
        stops: ``*`` inside the sequence: ``reject`` or ``x``. Stops at the end are always stripped.
        lower: Lower-case (soft-masked) residues: ``upper`` takes them as residues, ``x`` masks them as X, or
            ``reject``.
    """

    unusual: str = "x"
    gaps: str = "remove"
    stops: str = "reject"
    lower: str = "upper"

    CHOICES = {  # noqa: RUF012 - a constant of the class, not a field
        "unusual": ("x", "reject"),
        "gaps": ("remove", "reject"),
        "stops": ("reject", "x"),
        "lower": ("upper", "x", "reject"),
    }

    def __post_init__(self) -> None:
        for name, allowed in self.CHOICES.items():
            if getattr(self, name) not in allowed:
                raise UserError(f"--{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}")


@dataclass(frozen=True, slots=True)
class Cleaned:
    """The outcome of cleaning one sequence.

    Attributes:
        sequence: Cleaned residues: only the twenty letters and X.
        rejected: Why the record cannot be used; empty when it can.
        changes: What was changed, one phrase each.
        removed: 0-based raw indices that were closed up, ascending.
    """

    sequence: str
    rejected: str = ""
    changes: tuple[str, ...] = ()
    removed: tuple[int, ...] = field(default=(), repr=False)

    def position(self, raw0: int) -> int | None:
        """Where a 0-based raw index lies in the cleaned sequence; None if that character was removed or is
        out of range."""
        from bisect import bisect_left

        before = bisect_left(self.removed, raw0)
        if before < len(self.removed) and self.removed[before] == raw0:
            return None
        moved = raw0 - before
        return moved if 0 <= moved < len(self.sequence) else None


def clean(sequence: str, rule: CleaningRule | None = None) -> Cleaned:
    """Applies the cleaning rule to one raw sequence.

    Args:
        sequence: Raw letters; white space must be gone already.
        rule: The policies; default: unusual residues to X, gaps removed, inner stops rejected, lower case to
            upper.

    Returns:
        The cleaned sequence or the reason for rejection, what was changed, and how positions move.
    """
    rule = rule or CleaningRule()
    if _RESIDUE_SET.issuperset(sequence):
        return Cleaned(sequence, "" if sequence else "no residues")
    changes: list[str] = []
    text = sequence
    if any(character in GAP_CHARACTERS for character in text):
        count = sum(text.count(character) for character in GAP_CHARACTERS)
        if rule.gaps == "reject":
            return Cleaned("", f"{_count(count, 'gap')} in the sequence")
        changes.append(f"{_count(count, 'gap')} removed")
    removed = tuple(index for index, character in enumerate(text) if character in GAP_CHARACTERS)
    if removed:
        text = text.translate({ord(character): None for character in GAP_CHARACTERS})
    stripped = text.rstrip(STOP_CHARACTER)
    if len(stripped) < len(text):
        changes.append("stop at the end removed")
        text = stripped
    inner = text.count(STOP_CHARACTER)
    if inner:
        if rule.stops == "reject":
            return Cleaned(
                "", f"{_count(inner, 'stop')} inside the sequence, the first at residue {text.index('*') + 1}"
            )
        changes.append(f"{_count(inner, 'inner stop')} -> X")
        text = text.replace(STOP_CHARACTER, UNKNOWN_RESIDUE)
    # Before upper case, which would make two letters of one such as a sharp s.
    foreign = next((index for index, letter in enumerate(text) if not (letter.isascii() and letter.isalpha())), None)
    if foreign is not None:
        return Cleaned("", f"{text[foreign]!r} at residue {foreign + 1} is no residue")
    lower = sum(character.islower() for character in text)
    if lower:
        if rule.lower == "reject":
            return Cleaned("", f"{_count(lower, 'lower-case residue')}")
        if rule.lower == "x":
            changes.append(f"{_count(lower, 'lower-case residue')} -> X")
            text = "".join(UNKNOWN_RESIDUE if character.islower() else character for character in text)
        else:
            changes.append(f"{_count(lower, 'lower-case residue')} -> upper case")
            text = text.upper()
    unusual = sorted(set(text) - _RESIDUE_SET)
    if unusual:
        found = ", ".join(f"{letter} x{text.count(letter)}" for letter in unusual)
        if rule.unusual == "reject":
            return Cleaned("", f"unusual residues {found}")
        changes.append(f"unusual residues {found} -> X")
        text = text.translate({ord(letter): UNKNOWN_RESIDUE for letter in unusual})
    return Cleaned(text, "" if text else "no residues", tuple(changes), removed)


def looks_like_nucleotides(sequence: str) -> bool:
    """True for 30 or more letters that are all A, C, G, T, U or N: chance alone does not make such a
    protein."""
    return len(sequence) >= 30 and _NUCLEOTIDES.issuperset(sequence.upper().rstrip("*").replace("-", ""))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
