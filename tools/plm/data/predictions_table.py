"""The predictions table: one writer for every stage; :mod:`plm.scoring.predictions` reads it.

Columns: what the row is (``id``, ``protein``, ``position``, ...), the answer (``call`` and ``p_<class>`` for each
class, or ``value``), what stands beside it (``group``, ``split``, ...), ``model``, and ``finished`` of an unfinished
one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from plm.data.tables import visible

if TYPE_CHECKING:
    import pandas as pd

BEFORE = ("id", "protein", "position", "protein_position", "label")
AFTER = ("group", "cluster", "split", "fold")
"""Columns that every stage passes on where there are any, before and behind the answer."""
ROLE, PREDICTOR, MODEL_ALONE = "role", "predictor", "language model"
TOGETHER, MEMBER = "sequence members", "member"
"""Column that says what a row's answer is of, where a table also holds the parts of a combination: of the predictor
that the bundle answers with, of its language model alone, of its sequence members together, or of one of them."""
COUNTS = "counts"
"""Column beside it: ``no`` for a part that has no weight in the predictor's answers, else ``yes``."""


@dataclass(frozen=True)
class PredictionsTable:
    """What the rows of one table have.

    Attributes:
        classes: Names of the K classes in the order of the probabilities; empty for numbers.
        before: Names of the columns in front of the answer.
        after: Columns between the answer and ``model``.
        finished: False adds the column ``finished``, since the model's training was cut short.
        digits: Decimals of a probability.
    """

    classes: Sequence[str]
    before: Sequence[str]
    after: Sequence[str] = ()
    finished: bool = True
    digits: int = 6

    @property
    def columns(self) -> tuple[str, ...]:
        """The header."""
        answer = ("call", *(f"p_{name}" for name in self.classes)) if self.classes else ("value",)
        return (*self.before, *answer, *self.after, "model", *(() if self.finished else ("finished",)))

    def cells(
        self, before: Iterable[object], values: Iterable[float], call: str, after: Iterable[object], model: str
    ) -> list[str]:
        """One row.

        Args:
            before: Values of the columns before the answer.
            values: K probabilities, or one number.
            call: The class that is called; not used for numbers.
            after: Values of the columns behind the answer.
            model: Name of the model that answers.
        """
        form = f".{self.digits}f" if self.classes else ".6g"
        answer = [format(value, form) for value in values]
        row = [*before, *([call] if self.classes else []), *answer, *after, model]
        return [visible(str(cell)) for cell in row] + ([] if self.finished else ["false"])

    def begin(self, handle: TextIO) -> None:
        """Writes the header to an open file."""
        handle.write("\t".join(map(visible, self.columns)) + "\n")

    def write(self, handle: TextIO, cells: Iterable[str]) -> None:
        """Writes a row of :meth:`cells` to an open file."""
        handle.write("\t".join(cells) + "\n")

    def frame(self, rows: Sequence[Sequence[str]]) -> pd.DataFrame:
        """The rows as a data frame of strings."""
        import pandas as pd

        return pd.DataFrame(rows, columns=list(self.columns), dtype=str)
