"""Embeddings as tables: Parquet, and text (tab, comma or semicolon) that anything reads.

Columns ``id``, ``position`` (sites, and residues counted from 1), ``layer`` (only with several), ``e0``, ``e1``, ...
One row a vector: several layers of a record are consecutive rows, and so are the residues of a protein. Numbers of text
tables have just the digits that tell them apart from all other float32 numbers.
"""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from plm.data.embeddings.description import FORMAT_NAME, Description, Format, PackedSource, Records, Source, check_ids
from plm.data.own_tables import refuse_other
from plm.data.text_files import is_parquet, raw_lines, start_of
from plm.errors import UserError
from plm.received.documents import as_object, cleaned, has_breaks, one_line, parse_json
from plm.received.parquet import open_parquet

if TYPE_CHECKING:
    import pyarrow as pa

_IDS = ("id", "ids", "accession", "name", "entry", "header", "protein", "identifier", "protein_id")
_NEVER_VALUES = frozenset(
    (*_IDS, "position", "layer", "label", "labels", "target", "class", "y", "score", "fitness", "split", "fold", "set",
     "validation", "length", "sequence", "group", "cluster", "taxon", "line", "start", "end", "count", "n", "index",
     "row", "rank", "identity", "probability", "evalue", "e_value", "bitscore", "pident", "windows", "encoded")
)
_NUMBERED = re.compile(r"(.*?)(\d+)")
_NUMBERS_AT_ONCE = 2**20
_UNFIT = re.compile(r"[\t\n\r]")


# -- writing --------------------


def write_tabular(path: Path, records: Records) -> None:
    """A tab-separated table with a header.

    Raises:
        UserError: An id holds a tab or a line end.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    for index, identifier in enumerate(records.ids):
        if _UNFIT.search(identifier):
            raise UserError(
                f"The id {identifier!r} holds a tab or a line end, which a table cannot", where=f"record {index + 1}",
                fix="Change the id, or choose HDF5, npz or Parquet",
            )
    width = records.description.dimension
    with path.open("wb") as handle:
        handle.write(("\t".join(_header(records)) + "\n").encode())
        for keys, block in _rows(records, max(1, _NUMBERS_AT_ONCE // width)):
            numbers = pc.cast(pa.array(block.astype(np.float32, copy=False).ravel()), pa.string())
            starts = pa.array(np.arange(0, block.size + 1, width, dtype=np.int32))
            vectors = pc.binary_join(pa.ListArray.from_arrays(starts, numbers), "\t")
            lines = pc.binary_join_element_wise(*(pc.cast(key, pa.string()) for key in keys), vectors, "\t")
            handle.write("".join(f"{line}\n" for line in lines.to_pylist()).encode())


def write_parquet(path: Path, records: Records) -> None:
    """A Parquet file; the description is JSON in the schema's metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = pa.float16() if records.description.dtype == "float16" else pa.float32()
    header = _header(records)
    keys = header[: len(header) - records.description.dimension]
    types = [pa.string() if name == "id" else pa.int64() for name in keys]
    attributes = json.dumps(records.description.attributes("table"), ensure_ascii=False)
    schema = pa.schema(
        [*zip(keys, types, strict=True), *((name, number) for name in header[len(keys) :])],
        metadata={FORMAT_NAME: attributes},
    )
    per_group = max(256, 2**25 // (4 * records.description.dimension))
    # Numbers of embeddings hardly compress, and statistics of hundreds of columns would outweigh small files.
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=["id"], write_statistics=keys) as writer:
        for columns, block in _rows(records, per_group):
            values = np.ascontiguousarray(block.T)
            writer.write_batch(
                pa.record_batch([*columns, *map(pa.array, values)], schema=schema), row_group_size=per_group
            )


def _header(records: Records) -> list[str]:
    keys = ["id"]
    if records.description.level != "protein":
        keys.append("position")
    if records.description.depth > 1:
        keys.append("layer")
    return [*keys, *(f"e{column}" for column in range(records.description.dimension))]


def _rows(records: Records, limit: int) -> Iterator[tuple[list[pa.Array], np.ndarray]]:
    """Key columns and vectors ``(n, D)``, at most about ``limit`` rows at once."""
    import pyarrow as pa

    depth, dimension = records.description.depth, records.description.dimension
    step = max(1, limit // depth)
    done = 0
    for whole in records.blocks():
        for start in range(0, len(whole), step):
            part = whole[start : start + step]
            places = np.arange(done, done + len(part))
            which = places
            if records.offsets is not None:
                which = np.searchsorted(records.offsets, places, side="right") - 1
            low, high = int(which[0]), int(which[-1])
            names = pa.array([records.ids[index] for index in range(low, high + 1)], pa.string())
            which = np.repeat(which, depth)
            keys = [names.take(pa.array(which - low))]
            if records.offsets is not None:
                keys.append(pa.array(np.repeat(places, depth) - records.offsets[which] + 1))
            elif records.positions is not None:
                chosen = [int(records.positions[index]) for index in range(low, high + 1)]
                keys.append(pa.array(np.repeat(np.array(chosen, np.int64), depth)))
            if depth > 1:
                keys.append(pa.array(np.tile(np.array(records.description.layers, np.int64), len(part))))
            yield keys, part.reshape(-1, dimension)
            done += len(part)


# -- reading --------------------


class _Table(Protocol):
    """A table that can be read again and again, in pieces."""

    names: list[str]

    def numeric(self) -> list[str]:
        """Columns that hold numbers."""

    def pieces(self, columns: Sequence[str], numbers: bool) -> Iterator[pa.RecordBatch]:
        """Some columns, as numbers or as text."""


class _ParquetTable:
    def __init__(self, path: Path, name: str) -> None:
        self._file = open_parquet(path, name)
        self._schema = self._file.schema_arrow
        self.names: list[str] = list(self._schema.names)
        text = (self._schema.metadata or {}).get(FORMAT_NAME.encode(), b"")
        self.attributes: dict[str, Any] = {}
        if text:
            self.attributes = cleaned(as_object(parse_json(text, "The description", name), "The description", name))

    def numeric(self) -> list[str]:
        import pyarrow as pa

        return [
            field.name
            for field in self._schema
            if pa.types.is_floating(field.type) or pa.types.is_integer(field.type) or pa.types.is_decimal(field.type)
        ]

    def half(self, column: str) -> bool:
        """Whether the column's numbers are float16."""
        import pyarrow as pa

        return bool(pa.types.is_float16(self._schema.field(column).type))

    def pieces(self, columns: Sequence[str], numbers: bool) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        size = max(64, _NUMBERS_AT_ONCE // max(1, len(columns)))
        for piece in self._file.iter_batches(size, columns=list(columns), use_threads=False):
            if numbers:
                yield piece
            else:
                arrays = [piece.column(name).cast(pa.string()).fill_null("") for name in columns]
                yield pa.record_batch(arrays, names=list(columns))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class _TextTable:
    def __init__(self, path: Path) -> None:
        self._path = path
        if start_of(path, 2) in (b"\xff\xfe", b"\xfe\xff"):
            raise UserError(
                "This is neither an embeddings file nor a UTF-8 table: it is UTF-16", fix="Save it as UTF-8 text"
            )
        header = next((line for _, line in raw_lines(path) if line.strip()), "")
        try:
            header = header.encode("latin-1").decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(
                "This is neither an embeddings file nor a UTF-8 table",
                fix="Give HDF5, npz, Parquet or a table of UTF-8 text",
            ) from error
        if "\0" in header or not header.strip():
            raise UserError(
                "This is neither an embeddings file (HDF5, npz, Parquet) nor a table", fix="Give one of these"
            )
        self._separator = next((mark for mark in "\t,;" if mark in header), "\t")
        # R quotes the header of a table with tabs, the suite quotes nothing.
        quoted = header.startswith('"') and all(len(one) > 1 and one[0] == one[-1] == '"' for one in header.split("\t"))
        self._quote = False if self._separator == "\t" and not quoted else '"'
        self.names: list[str] = (
            next(csv.reader([header], delimiter=self._separator)) if self._quote else header.split("\t")
        )

    def numeric(self) -> list[str]:
        # A few hundred rows tell; a word further down is reported with its line when it is read.
        first = next(self.pieces(self.names, numbers=False), None)
        if first is None:
            return [name for name in self.names if name.lower() not in _NEVER_VALUES]
        few = first.slice(0, 200)
        return [name for name, column in zip(self.names, few.columns, strict=True) if _all_numbers(column.to_pylist())]

    def pieces(self, columns: Sequence[str], numbers: bool) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa
        from pyarrow import csv as reader

        kind = pa.float32() if numbers else pa.string()
        with self._path.open("rb") as handle:
            zipped = handle.read(2) == b"\x1f\x8b"
        with pa.input_stream(str(self._path), compression="gzip" if zipped else None) as stream:
            yield from reader.open_csv(
                stream, reader.ReadOptions(use_threads=False, block_size=2**23),
                reader.ParseOptions(delimiter=self._separator, quote_char=self._quote, double_quote=bool(self._quote)),
                reader.ConvertOptions(
                    include_columns=list(columns), column_types=dict.fromkeys(columns, kind), null_values=["NA"],
                    strings_can_be_null=False, quoted_strings_can_be_null=False,
                ),
            )

    def close(self) -> None:
        """Nothing stays open between two passes."""


def _all_numbers(values: list[str]) -> bool:
    try:
        return bool(values) and all(value == "NA" or float(value) is not None for value in values)
    except ValueError:
        return False


@dataclass(frozen=True)
class _Columns:
    """Which column is what."""

    id: str | None
    position: str | None
    layer: str | None
    values: list[str]
    labels: list[str]


def open_table(path: Path, name: str, matrices: str = "") -> Source:
    """Opens a table of ours or of others.

    Args:
        path: Table to read.
        name: File name in messages.
        matrices: Says nothing of tables.

    Raises:
        UserError: Broken file, no columns of numbers, repeated ids, rows of different width: with the row where known.
    """
    import pyarrow as pa

    try:
        table = _ParquetTable(path, name) if is_parquet(path) else _TextTable(path)
        return _TableSource(table, name, Path(name).stem)
    except UserError as error:
        raise error if error.where else UserError(error.what, where=name, fix=error.fix) from error
    except (pa.ArrowException, OSError, ValueError, EOFError) as error:
        raise _unreadable(error, name) from error


def _unreadable(error: Exception, name: str) -> UserError:
    return UserError(
        f"The table cannot be read: {str(error).splitlines()[0] if str(error) else type(error).__name__}", where=name,
        fix="Transfer or make the file again",
    )


def _choose(names: list[str], numeric: list[str]) -> _Columns:
    repeated = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if repeated is not None:
        raise UserError(f"The column {repeated!r} appears twice in the header", fix="Rename one")
    if "." in "".join(names) and _all_numbers(names):
        raise UserError("The table has no header line", fix="Name the columns, such as id, e0, e1, ...")
    numbers = set(numeric)
    series: dict[str, list[tuple[int, str]]] = {}
    _refuse_holes(names, numbers)
    for column in names:
        if column in numbers and (match := _NUMBERED.fullmatch(column)):
            series.setdefault(match[1], []).append((int(match[2]), column))
    best: list[str] = []
    for prefix, members in series.items():
        follows = all(later[0] == before[0] + 1 for before, later in itertools.pairwise(members))
        if follows and len(members) > len(best) and (len(members) > 1 or (prefix, members[0][0]) == ("e", 0)):
            best = [column for _, column in members]
    values = best or [column for column in names if column in numbers and column.lower() not in _NEVER_VALUES]
    refuse_other(names, "", "embeddings")
    if not values:
        raise UserError(
            f"The table has no columns of numbers (columns: {', '.join(names[:8])})",
            fix="Give embeddings: a column id and columns e0, e1, ...",
        )
    chosen = set(values)
    others = [column for column in names if column not in chosen]
    lowered = {column.lower(): column for column in reversed(others)}
    identifier = next((lowered[one] for one in _IDS if one in lowered), None)
    if identifier is None and others and (others[0] == "" or others[0].startswith("Unnamed")):
        identifier = others[0]  # the nameless index that pandas writes
    position = lowered.get("position") if identifier is not None else None
    layer = lowered.get("layer") if values[0] == "e0" else None
    keys = {identifier, position, layer}
    return _Columns(identifier, position, layer, values, [column for column in others if column not in keys])


def _refuse_holes(names: list[str], numbers: set[str]) -> None:
    """Refuses a run e0, e1, ... with a word in some column: without it the embeddings would be others."""
    runs: dict[str, list[tuple[int, str]]] = {}
    for column in names:
        if match := _NUMBERED.fullmatch(column):
            runs.setdefault(match[1], []).append((int(match[2]), column))
    for members in runs.values():
        follows = all(later[0] == before[0] + 1 for before, later in itertools.pairwise(members))
        words = [column for _, column in members if column not in numbers]
        if follows and words and len(words) < len(members) / 2:
            raise UserError(
                f"The column {words[0]} holds something that is no number, as {members[0][1]} to {members[-1][1]} must",
                fix="Correct the cell, or leave that protein out",
            )


class _TableSource:
    """Keys and labels are read when the table is opened, numbers when they are wanted."""

    def __init__(self, table: _ParquetTable | _TextTable, name: str, stem: str) -> None:
        self._table, self._name = table, name
        attributes = table.attributes if isinstance(table, _ParquetTable) else {}
        self._columns = _choose(table.names, table.numeric())
        self.suite_version = str(attributes.get("suite_version", ""))
        known = Description.from_attributes(attributes, name) if attributes else None
        if known and len(self._columns.values) != known.dimension:
            raise UserError(
                f"The table has {len(self._columns.values)} columns of numbers but says {known.dimension}",
                fix="Make the file again",
            )
        self._index(known)
        self._loaded: PackedSource | None = None

    def lengths(self) -> list[int] | None:
        """Residues of each record at residue level, else None."""
        return None if self._offsets is None else np.diff(self._offsets).tolist()

    def arrays(self, start: int, stop: int) -> Iterator[np.ndarray]:
        """Records start..stop-1; all of them stream, a part of them has the table loaded once."""
        if self._loaded is None and (start, stop) != (0, len(self.ids)):
            shape = (-1, self.description.depth, self.description.dimension)
            values = np.concatenate([*self._blocks(), np.empty((0, shape[2]), self.description.dtype)]).reshape(shape)
            self._loaded = PackedSource(self.description, self.ids, values, self._offsets, self.positions)
        yield from self._stream() if self._loaded is None else self._loaded.arrays(start, stop)

    def close(self) -> None:
        """Closes the file."""
        self._table.close()

    def _stream(self) -> Iterator[np.ndarray]:
        depth, dimension = self.description.depth, self.description.dimension
        blocks = self._blocks()
        rest = np.empty((0, dimension), self.description.dtype)
        for index in range(len(self.ids)):
            count = 1 if self._offsets is None else int(self._offsets[index + 1] - self._offsets[index])
            parts, have = [rest], len(rest)
            while have < count * depth:
                block = next(blocks)
                parts.append(block)
                have += len(block)
            rest = parts[0] if len(parts) == 1 else np.concatenate(parts)
            array, rest = rest[: count * depth], rest[count * depth :]
            yield array if self._offsets is None else array.reshape(count, depth, dimension)

    def _blocks(self) -> Iterator[np.ndarray]:
        """``(n, D)`` rows of the table in file order."""
        import pyarrow as pa

        try:
            for piece in self._table.pieces(self._columns.values, numbers=True):
                block = np.empty((piece.num_rows, piece.num_columns), self.description.dtype)
                for column, values in enumerate(piece.columns):
                    block[:, column] = values.to_numpy(zero_copy_only=False)
                yield block
        except (pa.ArrowException, OSError, ValueError, TypeError) as error:
            raise _unreadable(error, self._name) from error

    def _index(self, known: Description | None) -> None:
        """Folds the rows into records."""
        columns = self._columns
        names, sizes, keys, labels, total = self._keys()
        layers = None if columns.layer is None else _whole(keys[columns.layer])
        depth, order = self._layers(layers, known)
        places = None if columns.position is None else _whole(keys[columns.position])
        if columns.position is not None and places is None:
            labels[columns.position] = keys[columns.position]
        if total % depth or (depth > 1 and (sizes % depth).any()):
            raise UserError("A record has not every layer", fix="Make the file again")
        if depth > 1 and places is not None:
            if (places.reshape(-1, depth) != places[::depth, None]).any():
                raise UserError("The layers of a record are not together", fix="Make the file again")
            places = places[::depth]
        sizes = sizes // depth
        level = known.level if known else self._level(names, sizes, places)
        self._offsets: np.ndarray | None = None
        self.positions: list[int] | None = None
        if level == "residue":
            if places is None or (places != _counted(sizes)).any():
                raise UserError("The residues of a record do not count 1, 2, 3, ...", fix="Make the file again")
            self._offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
            self.ids = names
            firsts = self._offsets[:-1] * depth
        else:
            self.ids = [name for name, size in zip(names, sizes.tolist(), strict=True) for _ in range(size)]
            firsts = np.arange(len(self.ids)) * depth
            if level == "site":
                if places is None or (len(places) and places.min() < 1):
                    raise UserError("Sites have no positions, or some below 1", fix="Make the file again")
                self.positions = places.tolist()
        check_ids(self.ids, self.positions, self._name)
        # A label of a residue is none of its protein.
        self.labels = {} if level == "residue" else {
            column: [values[first] for first in firsts.tolist()] for column, values in labels.items()
        }
        if known is None:
            half = isinstance(self._table, _ParquetTable) and all(map(self._table.half, columns.values))
            known = Description(
                "", "", order, {"residue": "residues", "site": "sites"}.get(level, ""),  # type: ignore[arg-type]
                "float16" if half else "float32", len(columns.values),
            )
            if not self.ids and (columns.labels or columns.values[0] != "e0"):
                raise UserError("The table has a header but no rows", fix="Give a table with at least one")
        self.description = known

    def _keys(self) -> tuple[list[str], np.ndarray, dict[str, list[str]], dict[str, list[str]], int]:
        """Ids of runs of equal ids, rows of each run, the key columns, the label columns, number of rows."""
        columns = self._columns
        wanted = [name for name in (columns.id, columns.position, columns.layer) if name is not None]
        texts: dict[str, list[str]] = {name: [] for name in [*wanted, *columns.labels] if name != columns.id}
        names: list[str] = []
        starts: list[int] = []
        total = 0
        # A table without any key still has rows to count.
        for piece in self._table.pieces([*wanted, *columns.labels] or columns.values[:1], numbers=False):
            for name in texts:
                values = piece.column(piece.schema.get_field_index(name)).to_pylist()
                texts[name] += [cleaned(value) for value in values]
            if columns.id is None:
                names += [f"row{total + row}" for row in range(1, piece.num_rows + 1)]
                starts += range(total, total + piece.num_rows)
            else:
                values = piece.column(piece.schema.get_field_index(columns.id)).to_pylist()
                for row, value in enumerate(values, start=total):
                    if not names or value != names[-1]:
                        if not value:
                            raise UserError(
                                "A row without an id", where=f"{self._name}, row {row + 1}", fix="Give each row an id"
                            )
                        if has_breaks(value):
                            raise UserError(
                                f"The id {one_line(value, 60)!r} holds a tab or a line end",
                                where=f"{self._name}, row {row + 1}", fix="Rename it",
                            )
                        names.append(value)
                        starts.append(row)
            total += piece.num_rows
        sizes = np.diff(np.array([*starts, total], np.int64))
        labels = {name: texts.pop(name) for name in columns.labels}
        return names, sizes, texts, labels, total

    @staticmethod
    def _layers(values: np.ndarray | None, known: Description | None) -> tuple[int, tuple[int, ...]]:
        """Layers of each record, and their numbers."""
        if known and known.depth > 1:
            order = known.layers
        elif values is None or not len(values):
            return 1, known.layers if known else ()
        else:
            again = np.flatnonzero(values[1:] == values[0])
            order = tuple(values[: int(again[0]) + 1 if len(again) else len(values)].tolist())
        tiled = values is not None and len(values) % len(order) == 0
        if not tiled or (values.reshape(-1, len(order)) != np.array(order)).any():  # type: ignore[union-attr]
            raise UserError("The layers do not repeat in the same order for every record", fix="Make the file again")
        return len(order), order

    @staticmethod
    def _level(names: list[str], sizes: np.ndarray, places: np.ndarray | None) -> str:
        """Text says no level: positions that count 1, 2, 3, ... in every protein are all its residues."""
        if places is None:
            return "protein"
        if len(set(names)) == len(names) and len(places) and (places == _counted(sizes)).all():
            return "residue"
        return "site"


def _counted(sizes: np.ndarray) -> np.ndarray:
    """1, 2, ..., n for each size n, one after the other."""
    if not len(sizes):
        return np.empty(0, np.int64)
    before = np.cumsum(sizes) - sizes
    return np.arange(1, int(sizes.sum()) + 1) - np.repeat(before, sizes)


def _whole(texts: list[str]) -> np.ndarray | None:
    try:
        return np.array([int(text) for text in texts], np.int64)
    except (ValueError, OverflowError):
        return None


FORMAT = Format({"parquet": write_parquet, "tabular": write_tabular}, b"", open_table)
