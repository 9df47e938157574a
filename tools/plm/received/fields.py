"""Fields of a stranger's document by type and range: whatever does not fit is one line, never a traceback."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from plm.errors import UserError
from plm.received.documents import has_breaks, one_line

_NEEDED: Any = object()


class Fields:
    """An object of a document, asked field by field.

    Args:
        content: Parsed JSON value; anything but an object is refused.
        what: The document in messages, such as ``The bundle's manifest.json``.
        where: The file that it came in.
        fix: What the user can do, for messages.
    """

    def __init__(self, content: Any, what: str, where: str, fix: str, path: str = "") -> None:
        self._what, self._where, self._fix, self._path = what, where, fix, path
        if not isinstance(content, Mapping):
            self._refuse(content, "an object", path or "content")
        self.content: Mapping[str, Any] = content

    def __contains__(self, name: str) -> bool:
        return self.content.get(name) is not None

    def need(self, *names: str) -> None:
        """Checks that fields are there, whatever they hold.

        Raises:
            UserError: Names those that are missing.
        """
        missing = [name for name in names if name not in self.content]
        if missing:
            raise UserError(f"{self._what} lacks {', '.join(missing)}", where=self._where, fix=self._fix)

    def text(self, name: str, *, choices: Sequence[str] = (), most: int = 500, default: Any = _NEEDED) -> str:
        """A text; one of ``choices`` if there are any; without control characters."""
        value = self._get(name, default)
        if value is default and default is not _NEEDED:
            return value
        if not isinstance(value, str) or len(value) > most or has_breaks(value):
            self._refuse(value, "a text of one line", name)
        if choices and value not in choices:
            self._refuse(value, f"one of {', '.join(filter(None, choices))}", name)
        return value

    def whole(self, name: str, low: int, high: int, *, default: Any = _NEEDED) -> int:
        """A whole number from ``low`` to ``high``."""
        value = self._get(name, default)
        if value is default and default is not _NEEDED:
            return value
        if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self._refuse(value, f"a whole number from {low} to {high}", name)
        return value

    def number(self, name: str, low: float, high: float, *, above: bool = False, default: Any = _NEEDED) -> float:
        """A finite number from ``low`` (or above it) to ``high``."""
        value = self._get(name, default)
        if value is default and default is not _NEEDED:
            return value
        good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not good or not low <= value <= high or (above and value == low):
            self._refuse(value, f"a number {'above' if above else 'from'} {low:g} to {high:g}", name)
        return float(value)

    def flag(self, name: str, *, default: Any = _NEEDED) -> bool:
        """true or false."""
        value = self._get(name, default)
        if not isinstance(value, bool) and not (value is default and default is not _NEEDED):
            self._refuse(value, "true or false", name)
        return value

    def texts(self, name: str, *, most: int = 1_000_000, longest: int = 2000, breaks: bool = False) -> list[str]:
        """A list of texts, each on one line unless ``breaks``."""
        value = self._get(name, _NEEDED)
        if not isinstance(value, list) or len(value) > most:
            self._refuse(value, "a list of texts", name)
        for each in value:
            if not isinstance(each, str) or len(each) > longest or (not breaks and has_breaks(each)):
                self._refuse(each, "a text of one line", f"{name}, an entry of the list")
        return value

    def numbers(self, name: str, low: float, high: float, *, most: int = 10_000_000) -> list[float]:
        """A list of finite numbers from ``low`` to ``high``."""
        value = self._get(name, _NEEDED)
        if not isinstance(value, list) or len(value) > most:
            self._refuse(value, "a list of numbers", name)
        for each in value:
            good = isinstance(each, int | float) and not isinstance(each, bool) and math.isfinite(each)
            if not good or not low <= each <= high:
                self._refuse(each, f"a number from {low:g} to {high:g}", f"{name}, an entry of the list")
        return value

    def inside(self, name: str) -> Fields:
        """An object within this one."""
        value = self._get(name, _NEEDED)
        if not isinstance(value, Mapping):
            self._refuse(value, "an object", name)
        return Fields(value, self._what, self._where, self._fix, self._named(name))

    def entries(self, name: str, *, most: int) -> list[Fields]:
        """A list of objects."""
        value = self._get(name, _NEEDED)
        if not isinstance(value, list) or not 0 < len(value) <= most:
            self._refuse(value, f"a list of 1 to {most} objects", name)
        return [
            Fields(each, self._what, self._where, self._fix, f"{self._named(name)}[{number}]")
            for number, each in enumerate(value)
        ]

    def _get(self, name: str, default: Any) -> Any:
        value = self.content.get(name, default)
        if value is _NEEDED:
            raise UserError(f"{self._what} lacks {self._named(name)}", where=self._where, fix=self._fix)
        return value

    def _named(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path else name

    def _refuse(self, value: Any, wanted: str, name: str) -> NoReturn:
        raise UserError(
            f"{self._what} is not what it must be: {self._named(name)} is {shown(value)} where {wanted} belongs",
            where=self._where, fix=self._fix,
        )


def shown(value: Any) -> str:
    """A value as a message shows it: short, whatever it is."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value) if abs(value) < 1e25 or isinstance(value, float) else "a huge number"
    if isinstance(value, str):
        return repr(one_line(value, 60))
    return "a list" if isinstance(value, list) else "an object" if isinstance(value, Mapping) else "something else"
