"""Parquet files of strangers: as many rows as the file can really hold, columns told apart, text that is text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plm.errors import UserError
from plm.received.documents import one_line
from plm.received.limits import check_growth, limit

_AGAIN = "Transfer the file again"
_MOST_COLUMNS = 100_000
_PLAUSIBLE_ROWS = 1_000_000


def open_parquet(path: Path, name: str, *, streamed: bool = False) -> Any:
    """Opens a Parquet file for reading.

    Args:
        path: Parquet file to read.
        name: File name in messages.
        streamed: Read columns in small pieces, for a row group may be the whole file.

    Raises:
        UserError: Broken, a column twice, or sizes that no file of this length can have.
    """
    import pyarrow as pa
    import pyarrow.parquet as parquet

    options: dict[str, Any] = {"buffer_size": 2**20, "pre_buffer": False} if streamed else {}
    try:
        # The footer alone; its lists and texts are as long as a file of this length could have.
        opened = parquet.ParquetFile(
            path, thrift_string_size_limit=100 * 2**20, thrift_container_size_limit=10_000_000, **options
        )
        about = opened.metadata
        names = list(opened.schema_arrow.names)
        groups = [about.row_group(number).total_byte_size for number in range(about.num_row_groups)]
    except (pa.ArrowException, OSError, UnicodeError, ValueError) as error:
        raise unreadable(error, name) from error
    real = path.stat().st_size
    repeated = next((one for one in names if names.count(one) > 1), None) if len(set(names)) < len(names) else None
    if repeated is not None:
        raise UserError(f"The column {one_line(repeated, 60)!r} appears twice", where=name, fix="Rename one")
    if len(names) > _MOST_COLUMNS or min([about.num_rows, *groups]) < 0:
        raise UserError("The Parquet file cannot be read: it contradicts itself", where=name, fix=_AGAIN)
    check_growth(sum(groups), real, "The Parquet file", name)
    if about.num_rows > max(_PLAUSIBLE_ROWS, limit("PLM_MAX_RATIO") * real):
        raise UserError(
            f"The Parquet file says that it holds {about.num_rows:,} rows in {real:,} bytes", where=name, fix=_AGAIN
        )
    return opened


def unreadable(error: Exception, name: str) -> UserError:
    """What to say of an error while a Parquet file is read."""
    if isinstance(error, UnicodeError):
        return UserError("The Parquet file holds text that is not UTF-8", where=name, fix="Write text as UTF-8")
    reason = one_line(str(error).splitlines()[0] if str(error) else type(error).__name__, 200)
    return UserError(f"The Parquet file cannot be read: {reason}", where=name, fix=_AGAIN)
