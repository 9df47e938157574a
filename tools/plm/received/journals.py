"""Journals of searches: lines of JSON, each an operation on a study, judged before optuna sees them."""

from __future__ import annotations

from pathlib import Path

from plm.errors import UserError
from plm.received.documents import as_object, parse_json, read_bytes
from plm.received.fields import Fields

_MOST_BYTES = 256 * 2**20
_LONGEST_LINE = 2**20
_OPERATIONS = 9
_FIX = "Give the study as the search wrote it, or none"
_MOST = 10**9
_WIDEST = 1e12
_DISTRIBUTIONS = ("FloatDistribution", "IntDistribution", "CategoricalDistribution")


def check_journal(path: Path, where: str) -> None:
    """Checks every line of a journal.

    Args:
        path: The journal file.
        where: The file in messages.

    Raises:
        UserError: Too large, no JSON, or an operation that a search does not write; with its line.
    """
    data = read_bytes(path, _MOST_BYTES, "The study", where, _FIX)
    if data and not data.endswith(b"\n"):
        raise UserError("The study ends in the middle of a line", where=where, fix=_FIX)
    for number, line in enumerate(data.splitlines(), start=1):
        told = f"{where}, line {number}"
        if len(line) > _LONGEST_LINE:
            raise UserError(f"A line of the study has {len(line):,} bytes", where=told, fix=_FIX)
        _check_operation(Fields(parse_json(line, "The study", told, _FIX), "The study", told, _FIX), told)


def _check_operation(fields: Fields, told: str) -> None:
    fields.whole("op_code", 0, _OPERATIONS)
    fields.text("worker_id")
    for name in ("study_id", "trial_id", "state", "step"):
        if name in fields:
            fields.whole(name, 0, _MOST)
    for name in ("study_name", "param_name", "datetime_start", "datetime_complete"):
        if name in fields:
            fields.text(name)
    for name in ("directions", "values"):
        if name in fields:
            fields.numbers(name, -_WIDEST, _WIDEST, most=1)
    for name in ("param_value_internal", "intermediate_value", "value"):
        if name in fields:
            fields.number(name, -_WIDEST, _WIDEST)
    for name in ("user_attr", "system_attr", "user_attrs", "system_attrs", "params", "distributions"):
        if name in fields:
            fields.inside(name)
    if "distribution" in fields:
        text = fields.text("distribution", most=10_000)
        said = as_object(parse_json(text, "The study's distribution", told, _FIX), "The study's distribution", told)
        about = Fields(said, "The study's distribution", told, _FIX)
        about.text("name", choices=_DISTRIBUTIONS)
        about.inside("attributes")
