"""Rows of the table ``huggingface``: those that are there, and the one that a model gets."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from plm.errors import UserError
from plm.received.documents import has_breaks

TABLE = "huggingface"
OFFERED_TAGS = ("fill-mask", "feature-extraction", "text2text-generation")
"""Values of ``pipeline_tag`` whose rows the forms offer; T5 models carry the last on the hub."""
USUAL_TAG = "feature-extraction"
DOMAIN = "sequence"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(?:/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?", re.ASCII)
_LONGEST_TEXT = 200


@dataclass(frozen=True)
class TableRow:
    """A row; fields are the columns in their order.

    Attributes:
        value: Unique id.
        name: What users read.
        pipeline_tag: One of :data:`OFFERED_TAGS`.
        domain: ``sequence``.
        free_tag: May be empty.
        version: Revision.
        path: Folder of the model; of a new row relative to the folder of all models.
    """

    value: str
    name: str
    pipeline_tag: str
    domain: str
    free_tag: str
    version: str
    path: str

    def line(self) -> str:
        """As the file of the table has it."""
        return "\t".join(asdict(self).values())


def read_rows(table: Path | None) -> list[TableRow]:
    """The rows of a ``.loc`` file; comments, and lines with other columns, are passed over as Galaxy does."""
    if table is None:
        return []
    try:
        lines = table.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise UserError(
            f"The table cannot be read ({error.strerror})", where=str(table), fix="Name the table's .loc file"
        ) from error
    wanted = len(fields(TableRow))
    split = [line.split("\t") for line in lines if line.strip() and not line.startswith("#")]
    return [TableRow(*cells) for cells in split if len(cells) == wanted]


def check_id(given: str, flag: str) -> None:
    """Refuses ids that could not name a folder or stand in a table.

    Raises:
        UserError: It is none.
    """
    if not _ID.fullmatch(given):
        raise UserError(
            f"{given[:100]!r} is no id of a model", where=flag,
            fix="Give it as organisation/name, with letters, digits, dots, hyphens and underscores",
        )


def check_text(given: str, flag: str) -> None:
    """Refuses texts that would add columns or rows.

    Raises:
        UserError: A tab, a line end, or no end.
    """
    if has_breaks(given) or len(given) > _LONGEST_TEXT:
        raise UserError(
            "The text does not fit a table", where=flag,
            fix=f"Give one line of at most {_LONGEST_TEXT} letters without tabs",
        )


def same_model(rows: list[TableRow], name: str, revision: str) -> TableRow | None:
    """The row of this model in this revision, if the table has one."""
    return next(
        (row for row in rows if row.version == revision and (row.value == name or row.value.startswith(f"{name}@"))),
        None,
    )


def free_value(rows: list[TableRow], name: str, short_revision: str) -> str:
    """The id of a new row: the model's own, or with its revision where another revision has that one.

    Raises:
        UserError: Both are taken.
    """
    taken = {row.value for row in rows}
    for value in (name, f"{name}@{short_revision}"):
        if value not in taken:
            return value
    raise UserError(
        f"The table has rows {name} and {name}@{short_revision} already", where=TABLE,
        fix="Remove one of them, or give the model another id",
    )


def folder_of(name: str, short_revision: str) -> str:
    """Where a model lies below the folder of all models; the last part is what reports call it."""
    organisation, _, own = name.rpartition("/")
    return f"{organisation or 'local'}/{short_revision}/{own}"
