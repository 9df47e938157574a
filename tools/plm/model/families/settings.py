"""Fields of a checkpoint's ``config.json`` that a family acts on: their kinds, ranges and defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from plm.received.fields import Fields

_NEEDED: Any = object()


@dataclass(frozen=True)
class Setting:
    """One field: its kind, range and what it is where the file does not say."""

    kind: Literal["whole", "number", "flag", "text"]
    low: float = 0
    high: float = 0
    default: Any = _NEEDED
    choices: tuple[str, ...] = ()
    above: bool = False

    def read(self, fields: Fields, name: str) -> Any:
        """The field's value.

        Raises:
            UserError: It is missing, of another kind or out of range.
        """
        if self.default is not _NEEDED and name not in fields:  # null is as good as nothing
            return self.default
        if self.kind == "whole":
            return fields.whole(name, int(self.low), int(self.high))
        if self.kind == "number":
            return fields.number(name, self.low, self.high, above=self.above)
        if self.kind == "flag":
            return fields.flag(name)
        return fields.text(name, choices=self.choices)


def size(default: Any = _NEEDED, high: float = 1_000_000) -> Setting:
    """A number of layers, heads, tokens or values."""
    return Setting("whole", 1, high, default)


def flag(*, default: bool) -> Setting:
    """true or false."""
    return Setting("flag", default=default)


def small(default: float, high: float = 1e-2) -> Setting:
    """A small number above 0 that divisions add, such as a layer norm's."""
    return Setting("number", 0, high, default, above=True)


def token(default: int | None) -> Setting:
    """The number of a token."""
    return Setting("whole", 0, 1_000_000, default)


DROPOUT = Setting("number", 0, 0.99, 0.1)
