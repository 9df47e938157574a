"""The one error class of a user's mistake."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in what the user gave: reported as one line, exit code 1, without a traceback.

    Args:
        what: What is wrong, in the user's words.
        where: File, record, line or column that it concerns.
        fix: What the user can do about it.
    """

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what = what.strip()
        self.where = where.strip()
        self.fix = fix.strip()
        super().__init__(str(self))

    def __str__(self) -> str:
        line = self.what.rstrip(".")
        if self.where:
            line += f" [{self.where}]"
        line += "."
        if self.fix:
            line += f" {self.fix.rstrip('.')}."
        return " ".join(line.split())
