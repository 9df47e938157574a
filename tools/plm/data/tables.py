"""Tables that users bring (TSV, CSV or semicolon-separated, with or without header), read with their line numbers."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from plm.data.fasta import raw_lines
from plm.errors import UserError

_LONGEST_FIELD = 2**31 - 1  # labels of every residue of a long protein are one field
_PLACE = re.compile(r"-?\d+|p?[A-Z]\d+")


@dataclass(frozen=True, slots=True)
class Table:
    """A table as read.

    Attributes:
        name: File name, for messages.
        header: Column names; ``("1", "2", ...)`` for a table without header.
        rows: Values of each row, as many as the header has.
        lines: 1-based line of each row.
    """

    name: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    lines: list[int]

    def column(self, name: str, flag: str) -> int:
        """0-based index of a column given by name or by 1-based number.

        Raises:
            UserError: Names the flag, the column wanted and those that are there.
        """
        if name in self.header:
            return self.header.index(name)
        if name.isdigit() and 1 <= int(name) <= len(self.header):
            return int(name) - 1
        raise UserError(
            f"{flag}: there is no column {name!r} (columns: {', '.join(self.header[:12])})",
            where=self.name,
            fix="Give a column's name from the header line, or its number",
        )

    def find(self, *names: str) -> int | None:
        """0-based index of the first of several usual names (case ignored), if any."""
        lowered = [column.lower() for column in self.header]
        return next((lowered.index(name) for name in names if name in lowered), None)


def read_table(path: str | Path, *, header: bool | None = True) -> Table:
    """Reads a separated table; the separator is the first of tab, comma, semicolon that the first line holds.

    Args:
        path: File, plain or gzipped (told by content), UTF-8.
        header: Whether the first line names the columns; None: it does unless one of its fields is a whole number or a
            residue with its place (``Y614``), as lists of sites have.

    Raises:
        UserError: Missing, empty or undecodable file, a row of another width than the header, no rows: with its line.
    """
    names, lines = stream_table(path, header=header)
    rows: list[tuple[str, ...]] = []
    places: list[int] = []
    for line, fields in lines:
        rows.append(fields)
        places.append(line)
    return Table(Path(path).name, names, rows, places)


def stream_table(
    path: str | Path, *, header: bool | None = True
) -> tuple[tuple[str, ...], Iterator[tuple[int, tuple[str, ...]]]]:
    """As :func:`read_table`, without holding the rows: column names, then (1-based line, values) of each row.

    Raises:
        UserError: As :func:`read_table`; what is wrong with a row is raised when the row is reached.
    """
    path = Path(path)
    lines = _decoded(path)
    first_number, first = next(((number, line) for number, line in lines if line.strip()), (0, ""))
    if not first:
        raise UserError("The table is empty", where=path.name)
    separator = next((mark for mark in "\t,;" if mark in first), "\t")

    def content() -> Iterator[str]:
        yield first + "\n"
        for _, line in lines:
            yield line + "\n"

    csv.field_size_limit(_LONGEST_FIELD)
    reader = csv.reader(
        content(), delimiter=separator, quoting=csv.QUOTE_NONE if separator == "\t" else csv.QUOTE_MINIMAL
    )
    names = tuple(field.strip() for field in next(reader))
    named = not any(_PLACE.fullmatch(field) for field in names) if header is None else header
    repeated = next((name for name in names if names.count(name) > 1), None) if named else None
    if repeated is not None:
        raise UserError(f"The column {repeated!r} appears twice in the header", where=path.name, fix="Rename one")

    def rows() -> Iterator[tuple[int, tuple[str, ...]]]:
        count = 0
        if not named:
            count = 1
            yield first_number, names
        for fields in reader:
            line = first_number + reader.line_num - 1
            if not any(field.strip() for field in fields):
                continue
            if len(fields) != len(names):
                raise UserError(
                    f"A row has {len(fields)} columns where the header has {len(names)}",
                    where=f"{path.name}, line {line}",
                    fix="Check the separators of that line",
                )
            count += 1
            yield line, tuple(field.strip() for field in fields)
        if not count:
            raise UserError("The table has a header but no rows", where=path.name)

    return (names if named else tuple(str(number) for number in range(1, len(names) + 1))), rows()


def _decoded(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in raw_lines(path):
        try:
            text = line.encode("latin-1").decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                "The table is not UTF-8 text",
                where=f"{path.name}, line {number}",
                fix="Save it as UTF-8 or plain text",
            ) from error
        if "\x00" in text:
            raise UserError("This is not a plain text table", where=f"{path.name}, line {number}")
        yield number, text
