"""JSON and other text of strangers: of bounded size and depth, numbers of bounded length, each field once."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from plm.disk_space import size
from plm.errors import UserError
from plm.received.limits import limit

DEEPEST = 32
_LONGEST_NUMBER = 25
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")
_BREAKS = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")
_AGAIN = "Give the file as it was written"


def parse_json(data: str | bytes, what: str, where: str, fix: str = _AGAIN) -> Any:
    """A JSON document.

    Args:
        data: Document as text, or as UTF-8 bytes.
        what: The document in messages, e.g. ``config.json``.
        where: The file that it came in.
        fix: What the user can do, for messages.

    Raises:
        UserError: Too large or too deep, not UTF-8, no JSON, a field twice, or a number that no field can mean.
    """
    most = limit("PLM_MAX_JSON_MIB") * 2**20
    if len(data) > most:
        raise UserError(f"{what} is too large ({size(len(data))})", where=where, fix=f"At most {size(most)} are read")
    try:
        text = data.decode("utf-8") if isinstance(data, bytes) else data
        content = json.loads(text, object_pairs_hook=_each_once, parse_int=_whole)
    except UnicodeDecodeError as error:
        raise UserError(f"{what} cannot be read: it is not UTF-8 text", where=where, fix=fix) from error
    except RecursionError as error:
        raise _too_deep(what, where, fix) from error
    except ValueError as error:
        reason = one_line(str(error), 150)
        raise UserError(f"{what} cannot be read: it is no proper JSON ({reason})", where=where, fix=fix) from error
    _check_depth(content, what, where, fix)
    return content


def read_json(path: Path, what: str = "", where: str = "", fix: str = _AGAIN) -> Any:
    """A file that holds a JSON document.

    Raises:
        UserError: As :func:`parse_json`, or it is missing or cannot be read.
    """
    what, where = what or path.name, where or path.name
    return parse_json(read_bytes(path, limit("PLM_MAX_JSON_MIB") * 2**20, what, where, fix), what, where, fix)


def read_object(path: Path, what: str = "", where: str = "", fix: str = _AGAIN) -> dict[str, Any]:
    """As :func:`read_json`, for a document that must be an object (fields with names)."""
    return as_object(read_json(path, what, where, fix), what or path.name, where or path.name, fix)


def as_object(content: Any, what: str, where: str, fix: str = _AGAIN) -> dict[str, Any]:
    """``content``, if it is a JSON object.

    Raises:
        UserError: It is something else.
    """
    if not isinstance(content, dict):
        raise UserError(f"{what} is not a JSON object", where=where, fix=fix)
    return content


def read_bytes(path: Path, most: int, what: str, where: str, fix: str = _AGAIN) -> bytes:
    """A small file as bytes.

    Raises:
        UserError: Missing, no plain file, too large or unreadable.
    """
    try:
        if not path.is_file():
            raise UserError(f"{what} is missing", where=where, fix=fix)
        with path.open("rb") as opened:
            data = opened.read(most + 1)
    except OSError as error:
        raise UserError(f"{what} cannot be read ({error.strerror})", where=where, fix=fix) from error
    if len(data) > most:
        raise UserError(f"{what} is larger than {size(most)}", where=where, fix=fix)
    return data


def one_line(text: str, most: int = 200) -> str:
    """Text that can stand in a table or a message: no tabs, line ends or control characters, not endless."""
    # A slice first: a name of a gigabyte is not searched through.
    line = " ".join(_CONTROL.sub(" ", text[: 4 * most]).split(" ")).strip()
    return line if len(line) <= most else line[: most - 1] + "…"


def has_breaks(text: str) -> bool:
    """Whether text holds a tab, a line end or another control character, which would add cells or rows to tables."""
    return _BREAKS.search(text) is not None


def cleaned(content: Any) -> Any:
    """A parsed document with every text in it on one line; :data:`DEEPEST` bounds the depth."""
    if isinstance(content, str):
        return _CONTROL.sub(" ", content) if _CONTROL.search(content) else content
    if isinstance(content, list):
        return [cleaned(each) for each in content]
    if isinstance(content, dict):
        return {cleaned(key): cleaned(value) for key, value in content.items()}
    return content


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {one_line(twice, 40)!r} comes twice")
    return content


def _whole(text: str) -> int:
    if len(text) > _LONGEST_NUMBER:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _check_depth(content: Any, what: str, where: str, fix: str) -> None:
    waiting: list[Any] = [content]
    for _ in range(DEEPEST):
        inner: list[Any] = []
        add: Callable[[Any], None] = inner.extend
        for each in waiting:
            if isinstance(each, dict):
                add(value for value in each.values() if isinstance(value, dict | list))
            elif isinstance(each, list):
                add(value for value in each if isinstance(value, dict | list))
        if not inner:
            return
        waiting = inner
    raise _too_deep(what, where, fix)


def _too_deep(what: str, where: str, fix: str) -> UserError:
    return UserError(f"{what} cannot be read: it is nested too deeply", where=where, fix=fix)
