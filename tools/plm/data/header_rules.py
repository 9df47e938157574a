"""Where a record's label, protein and place come from: rules over FASTA headers, sequences and columns.

A **rule** is written in one string:

===================  ========================================================================================
``LABEL=``           the word after ``LABEL=`` in the header (any word before ``=`` will do), or what stands after it
                     in quotation marks; it ends at a blank, at the mark that stands before ``LABEL=``, and before the
                     next ``NAME=``
``field:4``          the 4th field of the header between ``|``; ``field:-1`` the last
``field:2:;``        the 2nd field between ``;`` (any separator; a space stands for white space of any length)
``regex:PATTERN``    the first group of a regular expression found in the header (or the whole match)
``column:NAME``      a column of a table, by name or 1-based number
``hash``             ``#`` after a residue in the sequence marks a positive site
``file``             the file that a record came from: the input gives class 1, the file of negatives class 0
``none``             no labels
===================  ========================================================================================
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from plm.data.fasta import ProteinRecord
from plm.data.tables import plain_field
from plm.errors import UserError

MARK = "#"
PATIENCE_SECONDS = 5.0
"""How long a user's regular expression may search one header."""
_LONGEST_PATTERN, _MOST_COPIES = 1000, 100_000
_KEY = re.compile(r"[^\s=:|]+=")
_UNIPROT = re.compile(r"^(?:sp|tr|up)\|([^|\s]+)\|?", re.IGNORECASE)
_START_SITE = re.compile(r"%(?P<start>-?\d+)%(?P<site>\d+)(?=\s|$)")
_ISOFORM = re.compile(r"([OPQ][0-9][A-Z0-9]{3}[0-9]|[A-NR-Z][0-9](?:[A-Z][A-Z0-9]{2}[0-9]){1,2})-\d+")
_TAXON = re.compile(r"\bOX=(\d+)")


@dataclass(frozen=True, slots=True)
class Rule:
    """A parsed rule.

    Attributes:
        kind: ``key``, ``regex``, ``field``, ``column``, ``hash``, ``file`` or ``none``.
        argument: Key, pattern, field number or column.
        text: The rule as the user wrote it.
        separator: Between the fields of a header.
    """

    kind: str
    argument: str
    text: str
    separator: str = "|"

    def find(self, record: ProteinRecord) -> str | None:
        """The value of a ``key``, ``regex``, ``field`` or ``column`` rule for a record; None where there is none.

        Tabs in it are blanks: a value becomes a cell of a table.

        Raises:
            UserError: The column does not exist, or the regular expression takes too long.
        """
        value = self._found(record)
        return value if value is None else plain_field(value)

    def _found(self, record: ProteinRecord) -> str | None:
        if self.kind == "column":
            return record.columns[column_name(record, self.argument)].strip() or None
        if self.kind == "field":
            fields, number = record.header.split(None if self.separator == " " else self.separator), int(self.argument)
            place = number - 1 if number > 0 else len(fields) + number
            return (fields[place].strip() or None) if 0 <= place < len(fields) else None
        if self.kind == "key":
            return _value_of(self.argument, record.header)
        match = search(self.argument, record)
        if match is None:
            return None
        return (match.group(1) if match.re.groups else match.group(0)) or None

    @property
    def in_words(self) -> str:
        """What the rule looks for, for a message."""
        if self.kind == "field":
            return f"field {self.argument} between {self.separator!r}"
        if self.kind == "column":
            return f"column {self.argument}"
        if self.kind == "regex":
            return f"pattern {self.argument}"
        return f"word {self.text}" if self.kind == "key" else self.text


def _value_of(key: str, header: str) -> str | None:
    """The whole word after ``key`` (which ends in ``=``); it is never cut in its middle."""
    match = re.search(rf"(?:^|(?P<mark>[\s|;,])){re.escape(key)}", header)
    if match is None:
        return None
    rest = header[match.end() :]
    if rest[:1] in ('"', "'") and rest.find(rest[0], 1) > 0:
        return rest[1 : rest.find(rest[0], 1)].strip() or None
    word = rest.split(None, 1)[0] if rest and not rest[0].isspace() else ""
    mark = match["mark"]
    if mark and not mark.isspace():
        word = word.split(mark, 1)[0]
    following = re.search(r"[|;,][A-Za-z][\w.-]*=", word)
    word = word[: following.start()] if following else word
    return word.rstrip("|;,") or None


def search(pattern: str, record: ProteinRecord) -> Any:
    """The first match of a user's regular expression in a header, or None.

    Raises:
        UserError: It takes longer than :data:`PATIENCE_SECONDS`, as nested repetitions can for ever.
    """
    import regex

    try:
        return regex.search(pattern, record.header, timeout=PATIENCE_SECONDS)
    except TimeoutError:
        raise UserError(
            f"The regular expression {pattern!r} takes more than {PATIENCE_SECONDS:g} seconds on one header",
            where=f"line {record.line}, id {record.id[:60]!r}",
            fix="Write it without repetitions inside repetitions, such as (a+)+",
        ) from None


def _check_pattern(pattern: str, flag: str) -> None:
    import regex

    if len(pattern) > _LONGEST_PATTERN:
        raise UserError(
            f"{flag}: the regular expression has {len(pattern)} characters", fix=f"Give at most {_LONGEST_PATTERN}"
        )
    try:
        # Nested counts multiply: the engine would build that many copies.
        braces = re.findall(r"\{([^{}]*[0-9][^{}]*)\}", pattern)
        counts = [max(map(int, re.findall(r"[0-9]{1,9}", inside))) for inside in braces]
        if math.prod(max(1, count) for count in counts) > _MOST_COPIES:
            raise regex.error("its counts of repetitions are too large")
        regex.compile(pattern)
    except (regex.error, ValueError, OverflowError, RecursionError, MemoryError) as error:
        raise UserError(
            f"{flag}: the regular expression {pattern[:200]!r} is broken: {error}", fix="Correct it"
        ) from error


def parse_rule(text: str, flag: str) -> Rule:
    """Parses a rule.

    Raises:
        UserError: Names the flag and what is wrong with the rule.
    """
    kind, _, argument = text.partition(":")
    if text in ("hash", "file", "none"):
        return Rule(text, "", text)
    if kind == "field":
        number, colon, separator = argument.partition(":")
        if not re.fullmatch(r"-?[1-9][0-9]{0,5}", number):
            raise UserError(
                f"{flag} field:{argument}: the field's number must be 1, 2, ... or -1, -2, ...", fix="Give e.g. field:2"
            )
        if colon and not separator:
            raise UserError(f"{flag} {text}: the separator is empty", fix="Write it after the colon, as in field:2:;")
        return Rule("field", number, text, separator or "|")
    if kind == "column" and argument:
        return Rule("column", argument, text)
    if kind == "regex" and argument:
        _check_pattern(argument, flag)
        return Rule("regex", argument, text)
    if _KEY.fullmatch(text):
        return Rule("key", text, text)
    raise UserError(
        f"{flag} {text!r} is no rule",
        fix="Use a key such as LABEL=, field:N, field:N:SEPARATOR, regex:PATTERN, column:NAME, hash, file or none",
    )


def column_name(record: ProteinRecord, column: str) -> str:
    """The name of a column given by name or 1-based number.

    Raises:
        UserError: The record has no such column (a FASTA record has none at all).
    """
    if column in record.columns:
        return column
    names = list(record.columns)
    if column.isdigit() and 1 <= int(column) <= len(names):
        return names[int(column) - 1]
    choices = f"columns: {', '.join(names[:12])}" if names else "FASTA has no columns"
    raise UserError(
        f"There is no column {column!r} ({choices})", fix="Give a column's name from the header line, or its number"
    )


def unmark(sequence: str) -> tuple[str, list[int]]:
    """Takes the ``#`` marks out of a sequence.

    Returns:
        The sequence without marks and the 0-based indices (in it) of the residues that were followed by a mark.

    Raises:
        ValueError: A mark with no residue before it, or two in a row.
    """
    parts = sequence.split(MARK)
    marked: list[int] = []
    length = 0
    for part in parts[:-1]:
        if not part:
            raise ValueError("a '#' mark does not follow a residue")
        length += len(part)
        marked.append(length - 1)
    return "".join(parts), marked


def protein_of(record: ProteinRecord, rule: str) -> str | None:
    """The protein a record belongs to.

    Args:
        record: Record with its header line or table columns.
        rule: ``auto`` (UniProt accession of ``sp|ACC|NAME``, else the id), ``uniprot``, ``word`` (the id as it is), or
            a rule of this module.
    """
    if rule in ("auto", "uniprot"):
        match = _UNIPROT.match(record.header)
        if match:
            return match.group(1)
        return record.id if rule == "auto" else None
    if rule == "word":
        return record.id
    return parse_rule(rule, "--protein").find(record)


def place_of(record: ProteinRecord, rule: str) -> tuple[int | None, int | None]:
    """(start, site) of a window in its protein, both 1-based, as far as the header or a column says.

    Args:
        record: Record with its header line or table columns.
        rule: ``auto`` (``%start%site`` at the end of the header's first word), ``none``, ``column:NAME`` (site),
            ``field:N`` (site) or ``regex:PATTERN`` with named groups ``site`` and optionally ``start``.
    """
    if rule == "none":
        return None, None
    if rule == "auto" or rule.startswith("regex:"):
        if rule == "auto":
            match = _START_SITE.search(record.header)
        else:
            match = search(parse_rule(rule, "--protein-position").argument, record)
        if match is None:
            return None, None
        groups: Mapping[str, str | None] = match.groupdict()
        if "site" not in groups:
            raise UserError("--protein-position: the pattern has no group named site", fix=r"Write (?P<site>\d+) in it")
        return _whole(groups.get("start")), _whole(groups["site"])
    return None, _whole(parse_rule(rule, "--protein-position").find(record))


def without_isoform(protein: str) -> str:
    """A UniProt accession without its isoform number (``Q14790-4`` -> ``Q14790``); other names stay."""
    match = _ISOFORM.fullmatch(protein)
    return match.group(1) if match else protein


def taxon_of(record: ProteinRecord) -> str:
    """NCBI taxonomy id from ``OX=`` of a UniProt header, or empty."""
    match = _TAXON.search(record.header)
    return match.group(1) if match else ""


def _whole(text: str | None) -> int | None:
    return int(text) if text and re.fullmatch(r"-?[0-9]{1,9}", text) else None
