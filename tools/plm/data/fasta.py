"""FASTA in, records out, and the one residue cleaning rule that every stage shares.

A file's kind is told by its content, never by its suffix: gzip is recognised by its first bytes, so that
``proteins.fasta`` that is really gzipped and ``proteins.fasta.gz`` that is not both read well.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from plm.data.text_files import decoded, raw_lines
from plm.errors import UserError

STANDARD_RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
"""The twenty amino acids of the genetic code."""
UNKNOWN_RESIDUE = "X"
GAP_CHARACTERS = "-._"
STOP_CHARACTER = "*"
LONGEST_PROTEIN = 10**6
"""Letters of a record at most; the longest known proteins have some 45,000."""

_RESIDUE_SET = frozenset(STANDARD_RESIDUES + UNKNOWN_RESIDUE)
_OWN = frozenset("BOUZ")
_BASES = "ACGTUN"
_IUPAC = frozenset("ACGTUNRYSWKMBDHV")
_NOT_LETTERS = {ord(character): None for character in GAP_CHARACTERS + STOP_CHARACTER}
_SHORTEST_NUCLEOTIDES = 30
NUCLEOTIDES = "nucleotides (A, C, G, T, U, N and codes such as R and Y), not a protein: translate it"
_DOUBTFUL = "looks like nucleotides"
_PIR = re.compile(r"(?:P1|F1|D[LC]|R[LC]|N[13]|XX);\s*(\S.*)")
_PIR_COMMENT = re.compile(r"[A-Z];")
_RESIDUES_ONLY = re.compile(r"[A-Za-z\s]+\*?\s*")


@dataclass(frozen=True, slots=True)
class ProteinRecord:
    """One record of an input file, whatever its format, as the file has it.

    Attributes:
        id: First word of the FASTA header, or the id column.
        header: The whole FASTA header without ``>``; for a table the id.
        sequence: Sequence without white space, otherwise untouched (case, gaps, stops and ``#`` marks are kept).
        line: 1-based line of the header or of the table's row (Parquet: the row).
        columns: What stands beside the sequence in a table; of FASTA what was looked for in the header.
        from_test_file: Came with the test set that the user gave.
    """

    id: str
    header: str
    sequence: str
    line: int
    columns: Mapping[str, str] = field(default_factory=dict)
    from_test_file: bool = False


def _not_plain(text: str, name: str, number: int) -> UserError:
    if "\x00" in text:
        return UserError(
            "This is not a plain text file", where=f"{name}, line {number}",
            fix="Save it as plain text (ASCII or UTF-8)",
        )
    column = next(index for index, character in enumerate(text) if ord(character) > 127)
    shown = text.encode("latin-1")[column : column + 4].decode("utf-8", errors="ignore")[:1] or text[column]
    return UserError(
        f"The character {shown!r} in the sequence is not ASCII", where=f"{name}, line {number}, column {column + 1}",
        fix="Replace it with a plain letter",
    )


class _Record:
    """A record while its lines come in."""

    def __init__(self, header: str, line: int, name: str) -> None:
        self._name, self._line = name, line
        self._pir = _PIR.fullmatch(header)
        self._description = self._pir[1].strip() if self._pir else header
        self._title: str | None = None
        self._parts: list[str] = []
        self._size = 0

    def take(self, text: str, number: int) -> None:
        """A line below the header."""
        if self._pir and self._title is None:
            self._title = decoded(text).strip()
            return
        if text.startswith(";") or (self._pir and _PIR_COMMENT.match(text)):
            return
        if not text.isascii() or "\x00" in text:
            raise _not_plain(text, self._name, number)
        if ">" in text:
            raise UserError(
                "A '>' stands inside a sequence line, so two records would become one",
                where=f"{self._name}, line {number}", fix="Begin the header on a line of its own",
            )
        self._parts.append(text)
        self._size += len(text)
        if self._size > LONGEST_PROTEIN:
            self._refuse()

    def finish(self) -> ProteinRecord:
        sequence = "".join("".join(self._parts).split())
        description = self._description
        if self._title:
            if not sequence and _RESIDUES_ONLY.fullmatch(self._title):  # no title was given
                sequence = "".join(self._title.split())
            else:
                description = f"{description} {self._title}"
        return ProteinRecord(description.split(None, 1)[0], description, sequence, self._line)

    def _refuse(self) -> None:
        raise UserError(
            f"The record {self._description.split(None, 1)[0]!r} has more than {LONGEST_PROTEIN:,} letters: no protein "
            "is that long",
            where=f"{self._name}, line {self._line}", fix="Give proteins, not genomes",
        )


def read_fasta(path: str | Path) -> Iterator[ProteinRecord]:
    """Streams the records of a FASTA or PIR file (plain or gzipped).

    Lines that start with ``;`` are comments. Headers may be indented, and may be of any script; residues are ASCII.

    Args:
        path: The file. Its suffix does not matter.

    Yields:
        Records in file order. A record without residues comes with an empty sequence, for the caller to
        reject with its id.

    Raises:
        UserError: Missing, empty or non-FASTA file, header without an id, a residue outside ASCII, a line or a record
            longer than any protein: each with its line.
    """
    name = Path(path).name
    record: _Record | None = None
    too_long = f"A line has more than {LONGEST_PROTEIN:,} letters: no protein is that long"
    for number, text in raw_lines(path, LONGEST_PROTEIN, too_long):
        if number == 1 and text.startswith("\xef\xbb\xbf"):  # the byte order mark that Windows editors write
            text = text[3:]
        stripped = text.lstrip()
        if stripped.startswith(">"):
            if "\x00" in text:
                raise _not_plain(text, name, number)
            header = decoded(stripped[1:]).strip()
            if not header:
                raise UserError("A header without an id", where=f"{name}, line {number}", fix="Put a name after '>'")
            if record is not None:
                yield record.finish()
            record = _Record(header, number, name)
        elif record is not None:
            record.take(text, number)
        elif stripped and not stripped.startswith(";"):
            raise _no_fasta(text, name, number)
    if record is None:
        raise UserError("The file holds no record", where=name, fix="Give a file with at least one record")
    yield record.finish()


def _no_fasta(text: str, name: str, number: int) -> UserError:
    where = f"{name}, line {number}"
    if "\x00" in text:
        return _not_plain(text, name, number)
    if text.lstrip().lower().startswith(("<!doctype html", "<html")):
        return UserError("This is a web page, not FASTA", where=where, fix="Download the file itself, not its page")
    shown = decoded(text)
    shown = shown if len(shown) <= 40 else shown[:40] + "…"
    return UserError(
        f"This is not FASTA: the first line must start with '>' but reads {shown!r}", where=where,
        fix="Give a FASTA file, or say that the input is a table",
    )


def write_fasta(records: Iterable[tuple[str, str]], path: str | Path, width: int = 60) -> None:
    """Writes (header, sequence) pairs as FASTA, ``width`` residues a line."""
    with Path(path).open("w", encoding="utf-8", newline="\n") as handle:
        for header, sequence in records:
            handle.write(f">{header}\n")
            for start in range(0, len(sequence), width):
                handle.write(sequence[start : start + width] + "\n")


@dataclass(frozen=True, slots=True)
class CleaningRule:
    """What happens to everything that is not one of the twenty residues or X.

    Attributes:
        unusual: U, Z, O, B, J and other letters: ``x`` turns them into X, ``reject`` rejects the record, ``own`` keeps
            U, Z, O and B for models that know them and turns all others into X.
        gaps: ``-``, ``.`` and ``_``: ``remove`` closes them up (positions are corrected) or ``reject``.
        stops: ``*`` inside the sequence: ``reject`` or ``x``. Stops at the end are always stripped.
        lower: Lower-case (soft-masked) residues: ``upper`` takes them as residues, ``x`` masks them as X, or
            ``reject``.
        nucleotides: Records that are clearly DNA or RNA (:func:`nucleotide_look`): ``reject`` or ``keep``.
    """

    unusual: str = "x"
    gaps: str = "remove"
    stops: str = "reject"
    lower: str = "upper"
    nucleotides: str = "reject"

    CHOICES = {  # noqa: RUF012 - a constant of the class, not a field
        "unusual": ("x", "reject", "own"),
        "gaps": ("remove", "reject"),
        "stops": ("reject", "x"),
        "lower": ("upper", "x", "reject"),
        "nucleotides": ("reject", "keep"),
    }

    def __post_init__(self) -> None:
        for name, allowed in self.CHOICES.items():
            if getattr(self, name) not in allowed:
                raise UserError(
                    f"--{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}",
                    fix="Choose one of these",
                )


@dataclass(frozen=True, slots=True)
class Cleaned:
    """The outcome of cleaning one sequence.

    Attributes:
        sequence: Cleaned residues: only the twenty letters and X (and U, Z, O, B where the rule keeps them).
        rejected: Why the record cannot be used; empty when it can.
        changes: Phrases, one for each change that was made.
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
    look = nucleotide_look(sequence)
    if look == "clear" and rule.nucleotides == "reject":
        return Cleaned("", NUCLEOTIDES)
    changes: list[str] = [f"{_DOUBTFUL} ({_letters(sequence)} only), kept as a protein"] if look else []
    if _RESIDUE_SET.issuperset(sequence):
        return Cleaned(sequence, "" if sequence else "no residues", tuple(changes))
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
    unusual = sorted(set(text) - (_RESIDUE_SET | _OWN if rule.unusual == "own" else _RESIDUE_SET))
    if unusual:
        counts = ", ".join(f"{letter} x{text.count(letter)}" for letter in unusual)
        if rule.unusual == "reject":
            return Cleaned("", f"unusual residues {counts}")
        changes.append(f"unusual residues {counts} -> X")
        text = text.translate({ord(letter): UNKNOWN_RESIDUE for letter in unusual})
    return Cleaned(text, "" if text else "no residues", tuple(changes), removed)


def nucleotide_look(sequence: str) -> Literal["", "doubtful", "clear"]:
    """Whether a sequence is DNA or RNA: ``clear``, ``doubtful``, or empty: it is not.

    ``clear`` are 30 or more letters that are all IUPAC codes of nucleotides, with at least three of the four bases and
    seven letters of ten a base (or N): chance does not make such a protein. Letters that are all codes but without
    that mixture, such as poly-A or glycine-alanine repeats, are ``doubtful``. N counts as a base.
    """
    if "L" in sequence or "E" in sequence:  # nearly every protein, at once
        return ""
    if not _IUPAC.issuperset(sequence):
        letters = sequence.upper().translate(_NOT_LETTERS)
        if not _IUPAC.issuperset(letters):
            return ""
    else:
        letters = sequence
    if len(letters) < _SHORTEST_NUCLEOTIDES:
        return ""
    counts = {base: letters.count(base) for base in _BASES}
    if sum(counts.values()) < 0.7 * len(letters):
        return ""
    bases = [*(counts[base] for base in "ACG"), counts["T"] + counts["U"]]
    kinds = sum(count >= 0.02 * len(letters) for count in bases)
    return "clear" if kinds >= 3 else "doubtful"


def looks_like_nucleotides(sequence: str) -> bool:
    """True for what is clearly DNA or RNA (:func:`nucleotide_look`)."""
    return nucleotide_look(sequence) == "clear"


@dataclass
class NucleotideTally:
    """Counts the records of a file that are nucleotides, so that a file of them is refused as a whole.

    Attributes:
        records: Number of records read.
        nucleotides: Number of records rejected as nucleotides.
        short: Those too short to tell by themselves whose letters are all A, C, G, T, U or N.
        letters: Letters of both.
        doubtful: Records that look like nucleotides and are kept.
    """

    records: int = 0
    nucleotides: int = 0
    short: int = 0
    letters: int = 0
    doubtful: int = 0

    def add(self, sequence: str, rejected: str, changes: Sequence[str] = ()) -> None:
        """One record, why :func:`clean` rejects it, if it does, and what it changes."""
        self.records += 1
        self.doubtful += any(change.startswith(_DOUBTFUL) for change in changes)
        if rejected == NUCLEOTIDES:
            self.nucleotides += 1
            self.letters += len(sequence)
        elif 8 <= len(sequence) < _SHORTEST_NUCLEOTIDES and set(_BASES).issuperset(sequence.upper()):
            self.short += 1
            self.letters += len(sequence)

    def told(self) -> str:
        """A sentence about records that look like nucleotides and are kept; empty if there are none."""
        some = self.doubtful
        return f"{some} records look like nucleotides and are kept as proteins: look at them." if some else ""

    def check(self, name: str, rule: CleaningRule | None = None, *, switch: bool = True) -> None:
        """Refuses a file nine of ten records of which are nucleotides.

        Args:
            name: File name in messages.
            rule: The cleaning rule; with ``keep`` no file is refused.
            switch: Whether the stage has the option.

        Raises:
            UserError: They are.
        """
        count = self.nucleotides + self.short
        if (rule and rule.nucleotides == "keep") or not count or count < 0.9 * self.records:
            return
        if not self.nucleotides and (self.records < 5 or self.letters < 100):
            return
        many = "All sequences are" if count == self.records else f"{count} of {self.records} sequences are"
        raise UserError(
            f"{many} nucleotides (A, C, G, T, U, N)", where=name,
            fix="Translate them to proteins first"
            + (", or choose --nucleotides keep if they are proteins" if switch else ""),
        )


def _letters(sequence: str) -> str:
    return ", ".join(sorted(set(sequence.upper().translate(_NOT_LETTERS))))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
