"""The one error class of a user's mistake."""

from __future__ import annotations

import re

UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ud800-\udfff\ufeff]+")
"""Control characters, and marks that turn the direction of writing: quoted from a file they would change the line."""
_MOST_WHAT, _MOST_WHERE = 600, 300


class UserError(Exception):
    """A mistake in what the user gave: reported as one line, exit code 1, without a traceback.

    Args:
        what: What is wrong, in the user's words.
        where: File, record, line or column that it concerns.
        fix: What the user can do about it.
    """

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what = _on_one_line(what, _MOST_WHAT)
        self.where = _on_one_line(where, _MOST_WHERE)
        self.fix = _on_one_line(fix, _MOST_WHAT)
        super().__init__(str(self))

    def __str__(self) -> str:
        line = self.what.rstrip(".")
        if self.where:
            line += f" [{self.where}]"
        line += "."
        if self.fix:
            line += f" {self.fix.rstrip('.')}."
        return " ".join(line.split())


class MemoryShortage(UserError):
    """The memory does not hold the least that the work needs: reported like any, with the exit code for memory."""


class DiskFull(UserError):
    """A disk that is full, or too small for what the work will write, told by who knows which."""


def _on_one_line(text: str, most: int) -> str:
    """Text that may quote a stranger: on one line, shown in the order in which it stands, not endless."""
    if len(text) > 4 * most:
        text = text[: 2 * most] + text[-2 * most :]
    line = " ".join(UNSEEN.sub(" ", text).split())
    if len(line) <= most:
        return line
    kept = most * 2 // 3
    return f"{line[:kept]} … {line[kept - most + 3 :]}"
