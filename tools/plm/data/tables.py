"""Tables that users bring, with or without header, read with their line numbers.

Separators are tab, comma, semicolon, or (as R writes them) blanks between quoted fields: the one that parts the first
rows into equally many columns. Tables with tabs are not quoted, and a quotation mark in them is a character, unless
Excel or R quoted them: Excel quotes every field with a comma or a quotation mark, R every text. The suite's own tables
are never quoted.
"""

from __future__ import annotations

import contextlib
import csv
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from plm.data.own_tables import recognise
from plm.data.text_files import LONGEST_LINE, is_parquet, raw_lines
from plm.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

_SNIFFED_LINES, _SNIFFED_CHARACTERS = 200, 2**22
_BLANKS = re.compile(r'"[^"]*"( "[^"]*")+\s*')
BREAKS = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")
"""What no field of a table may hold."""
_PLACE = re.compile(r"-?\d+(\.0+)?|p?[A-Z]([a-z]{2})?\d+(-[a-z]+)?")


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
        return column_place(self.header, name, flag, self.name)

    def find(self, *names: str) -> int | None:
        """0-based index of the first of several usual names (case ignored), if any."""
        return find_column(self.header, names)


def column_place(header: Sequence[str], name: str, flag: str, table: str) -> int:
    """0-based index of a column given by name or by 1-based number; see :meth:`Table.column`."""
    if name in header:
        return header.index(name)
    if name.isdigit() and 1 <= int(name) <= len(header):
        return int(name) - 1
    raise UserError(
        f"{flag}: there is no column {name!r} (columns: {', '.join(header[:12])})", where=table,
        fix="Give a column's name from the header line, or its number",
    )


def find_column(header: Sequence[str], names: Sequence[str]) -> int | None:
    """0-based index of the first of several usual names (lower case) that a header has, in any case."""
    lowered = [column.lower() for column in header]
    return next((lowered.index(name) for name in names if name in lowered), None)


def read_table(path: str | Path, *, header: bool | None = True) -> Table:
    """Reads a separated table, or Parquet.

    Args:
        path: File, plain or gzipped (told by content), UTF-8 or UTF-16.
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


@dataclass(frozen=True, slots=True)
class Dialect:
    """How the fields of a table are parted.

    Attributes:
        separator: Character between fields.
        quoted: Fields may stand in quotation marks, and one in a field is doubled.
        escape: What stands before a quotation mark in a field instead, or empty.
    """

    separator: str
    quoted: bool
    escape: str = ""

    def rows(self, lines: Iterator[str]) -> Iterator[tuple[int, list[str]]]:
        """(lines read so far, fields) of each row; ``lines`` have their ends."""
        if self.quoted:
            csv.field_size_limit(LONGEST_LINE)
            escape = {"escapechar": self.escape, "doublequote": False} if self.escape else {}
            reader = csv.reader(lines, delimiter=self.separator, strict=True, **escape)  # type: ignore[arg-type]
            for fields in reader:
                yield reader.line_num, fields
        else:
            for number, line in enumerate(lines, start=1):
                yield number, line.rstrip("\n").split(self.separator)


def sniff(lines: Sequence[str]) -> Dialect:
    """The dialect of a table by its first lines, which are not blank and have no ends."""
    header = lines[0]
    if _BLANKS.fullmatch(header):
        return Dialect(" ", True, "\\" if any('\\"' in line for line in lines) else "")
    candidates: list[Dialect] = []
    if "\t" in header:
        fields = header.split("\t")
        if all(len(field) > 1 and field[0] == field[-1] == '"' for field in fields):
            return Dialect("\t", True, "\\" if any('\\"' in line for line in lines) else "")
        plain, quoted = Dialect("\t", False), Dialect("\t", True)
        own = recognise(fields)
        if own is not None and own.kind != "dataset":  # nobody edits those in Excel
            return plain
        split = [line.split("\t") for line in lines]
        candidates = [quoted, plain] if _excel_quoted(split) else [plain, quoted]
    candidates += [Dialect(mark, True) for mark in ",;" if mark in header]
    if not candidates:
        return Dialect("\t", False)
    # max takes the first of equals
    return max(candidates, key=lambda one: _agreement(one, lines))


def _agreement(dialect: Dialect, lines: Sequence[str]) -> tuple[float, int]:
    """Share of the rows with as many fields as the header, and that number."""
    rows: list[list[str]] = []
    # The last row may be cut, if it has line ends in quotation marks.
    with contextlib.suppress(csv.Error):
        rows.extend(fields for _, fields in dialect.rows(iter([line + "\n" for line in lines])))
    width = len(rows[0]) if rows else 0
    if width < 2:
        return 0.0, 0
    share = sum(len(row) == width for row in rows) / len(rows)
    return share, width if dialect.separator != "\t" else 10**9


def _excel_quoted(rows: Sequence[Sequence[str]]) -> bool:
    """Whether every field with a comma or a quotation mark is quoted, as Excel does it, and there is one."""
    special = [field for row in rows for field in row if '"' in field or "," in field]

    def quoted(field: str) -> bool:
        inside = field[1:-1]
        whole = len(field) > 1 and field[0] == field[-1] == '"' and '"' not in inside.replace('""', "")
        return whole and ("," in inside or '""' in inside)

    return bool(special) and all(map(quoted, special))


def stream_table(
    path: str | Path, *, header: bool | None = True, only: Collection[int] | None = None
) -> tuple[tuple[str, ...], Iterator[tuple[int, tuple[str, ...]]]]:
    """As :func:`read_table`, without holding the rows: column names, then (1-based line, values) of each row.

    Of a Parquet file only the columns with an index in ``only`` are read, if it is given; the others come empty.

    Raises:
        UserError: As :func:`read_table`; what is wrong with a row is raised when the row is reached.
    """
    path = Path(path)
    if is_parquet(path):
        return _stream_parquet(path, only)
    lines = _decoded(path)
    skipped, size = 0, 0
    sample: list[str] = []
    for _, line in lines:
        if not line.strip() and not sample:
            skipped += 1
            continue
        sample.append(line)
        size += len(line)
        if len(sample) >= _SNIFFED_LINES or size >= _SNIFFED_CHARACTERS:
            break
    if not sample:
        raise UserError("The table is empty", where=path.name, fix="Give a table with at least one row")
    dialect = sniff([line for line in sample if line.strip()])

    def content() -> Iterator[str]:
        for line in sample:
            yield line + "\n"
        for _, line in lines:
            yield line + "\n"

    parsed = _parsed(dialect, content(), path.name, skipped)
    first_number, first_fields = next(parsed)
    names = tuple(" ".join(field.split()) for field in first_fields)
    second = next(parsed, None)
    named = not any(map(_PLACE.fullmatch, names)) if header is None else header
    # R writes names of rows without naming their column.
    if named and dialect.quoted and second and len(second[1]) == len(names) + 1 and '"' in sample[0]:
        names = ("", *names)
    repeated = next((name for name in names if names.count(name) > 1), None) if named else None
    if repeated is not None:
        raise UserError(f"The column {repeated!r} appears twice in the header", where=path.name, fix="Rename one")

    def rows() -> Iterator[tuple[int, tuple[str, ...]]]:
        count = 0
        if not named:
            count = 1
            yield first_number, names
        for line, fields in _chain(second, parsed):
            if not any(field.strip() for field in fields):
                continue
            if len(fields) != len(names):
                raise UserError(
                    f"A row has {len(fields)} columns where the header has {len(names)}",
                    where=f"{path.name}, line {line}", fix="Check the separators of that line",
                )
            count += 1
            yield line, tuple(field.strip() for field in fields)
        if not count:
            raise UserError("The table has a header but no rows", where=path.name, fix="Give a table with rows")

    return (names if named else tuple(str(number) for number in range(1, len(names) + 1))), rows()


def _chain(
    second: tuple[int, list[str]] | None, rest: Iterator[tuple[int, list[str]]]
) -> Iterator[tuple[int, list[str]]]:
    if second is not None:
        yield second
    yield from rest


def _parsed(dialect: Dialect, lines: Iterator[str], name: str, skipped: int) -> Iterator[tuple[int, list[str]]]:
    number = 0
    try:
        for number, fields in dialect.rows(lines):
            yield skipped + number, fields
    except csv.Error as error:
        raise UserError(
            f"The table cannot be read ({error})", where=f"{name}, after line {skipped + number}",
            fix="Check the quotation marks there",
        ) from error


def _stream_parquet(
    path: Path, only: Collection[int] | None
) -> tuple[tuple[str, ...], Iterator[tuple[int, tuple[str, ...]]]]:
    import pyarrow as pa

    from plm.received.parquet import open_parquet, unreadable

    opened = open_parquet(path, path.name, streamed=True)
    names = tuple(str(name) for name in opened.schema_arrow.names)

    def rows() -> Iterator[tuple[int, tuple[str, ...]]]:
        number = 0
        try:
            wanted = [name for place, name in enumerate(names) if only is None or place in only]
            for batch in opened.iter_batches(batch_size=4096, columns=wanted):
                empty = [""] * batch.num_rows
                read = [batch.column(name).to_pylist() if name in wanted else empty for name in names]
                for values in zip(*read, strict=True):
                    number += 1
                    yield number, tuple(cell(value).strip() for value in values)
        except (pa.ArrowException, OSError, UnicodeError, ValueError) as error:
            raise unreadable(error, path.name) from error
        if not number:
            raise UserError("The table has a header but no rows", where=path.name, fix="Give a table with rows")

    return names, rows()


def cell(value: object) -> str:
    """A value of Parquet as text: nothing is empty, a list has commas between its items."""
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        return "[" + ",".join("nan" if item is None else cell(item) for item in value) + "]"
    if isinstance(value, bytes):
        return value.decode()
    return str(value)


def _decoded(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in raw_lines(path):
        if line.isascii() and number > 1:
            text = line
        else:
            try:
                text = line.encode("latin-1").decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UserError(
                    "The table is not UTF-8 text", where=f"{path.name}, line {number}",
                    fix="Save it as UTF-8 (in Excel: CSV UTF-8) or plain text",
                ) from error
        if "\x00" in text:
            raise UserError(
                "This is not a plain text table", where=f"{path.name}, line {number}", fix="Save it as plain text"
            )
        yield number, text


def visible(name: str) -> str:
    """A name as tables hold it: tabs, line ends and control characters, which break a row, are written as ``\\t``."""
    if name.isprintable() or not BREAKS.search(name):
        return name
    return BREAKS.sub(lambda match: "\\0" if match[0] == "\0" else match[0].encode("unicode_escape").decode(), name)


def write_table(frame: pd.DataFrame, path: str | Path, float_format: str | None = None) -> None:
    """Writes a table of the suite: tab-separated, never quoted, UTF-8, line ends of Unix.

    Tabs and line ends in a text are written visibly (:func:`visible`), so that they make neither columns nor rows.

    Args:
        frame: Table to write.
        path: File to write; one that is there is replaced.
        float_format: printf format of numbers, such as ``%.6g``; None: the shortest that reads back equal.
    """
    shown = frame.rename(columns=lambda name: visible(str(name)))
    for place in range(frame.shape[1]):
        values = frame.iloc[:, place]
        if values.dtype.kind not in "biuf":
            shown.isetitem(place, [visible(value) if isinstance(value, str) else value for value in values])
    shown.to_csv(
        path, sep="\t", index=False, quoting=csv.QUOTE_NONE, lineterminator="\n", float_format=float_format,
        encoding="utf-8",
    )


def plain_field(value: str) -> str:
    """A field without tabs, line ends and control characters, which would break a row: they become one blank."""
    return " ".join(BREAKS.sub(" ", value).split()) if BREAKS.search(value) else value
