"""Why each site is called: what the members of the bundle's predictor say of it, and the nearest training rows."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import TextIO

from plm.jobs.classify_sites.candidates import Protein
from plm.jobs.classify_sites.tables import SiteAnswers
from plm.model.bundles.fine_tuned import FineTunedBundle
from plm.model.bundles.predictor import Reasons
from plm.scoring.reasons import ReasonsTable
from plm.telling.reasons import tell_reasons
from plm.telling.report import Report, plain
from plm.wording import counted

MOST_NUMBERS = 100
"""Sites of a bundle of numbers that have a row: those of the highest numbers."""
_BEFORE = ("id", "protein", "position", "residue")


@dataclass
class CallReasons:
    """Writes a row for each site that is called; of several classes, other than the commonest in training.

    Attributes:
        table: Rows.
        handle: Open file.
        commonest: Of several classes the commonest in training, which needs no reason; else empty.
    """

    table: ReasonsTable
    handle: TextIO
    commonest: str
    _highest: list[tuple[tuple[float, int, int], list[object], Reasons, int]] = field(default_factory=list)
    _proteins: int = 0

    @classmethod
    def begin(cls, bundle: FineTunedBundle, model: str, handle: TextIO) -> CallReasons:
        """Writes the header.

        Args:
            bundle: The bundle that is asked.
            model: Its name and digest.
            handle: File to write.
        """
        table, task = ReasonsTable.of(bundle, _BEFORE, model), bundle.task
        several = task.target == "class" and not task.binary
        commonest = task.classes[int(table.shares.argmax())] if several and len(set(table.shares)) > 1 else ""
        handle.write("\t".join(table.columns) + "\n")
        return cls(table, handle, commonest)

    def add(self, protein: Protein, answers: SiteAnswers, reasons: Reasons) -> None:
        """Takes a protein with what stood behind its answers."""
        self._proteins += 1
        for number, height in enumerate(answers.heights.tolist()):
            before = self._before(protein, number)
            if self.table.task.target == "number":
                self._keep((height, -self._proteins, -number), before, reasons, number)
            elif answers.called[number] and answers.calls[number] != self.commonest:
                self._write(before, self.table.task.classes.index(answers.calls[number]), height, reasons, number)

    def _before(self, protein: Protein, number: int) -> list[object]:
        place = protein.places[number]
        return [f"{protein.id}|{place}", protein.accession, place, protein.sequence[protein.sites[number]]]

    def _keep(self, rank: tuple[float, int, int], before: list[object], reasons: Reasons, number: int) -> None:
        if len(self._highest) < MOST_NUMBERS:
            heapq.heappush(self._highest, (rank, before, reasons.row(number), 0))
        elif rank > self._highest[0][0]:
            heapq.heapreplace(self._highest, (rank, before, reasons.row(number), 0))

    def _write(self, before: list[object], call: int, shown: float, reasons: Reasons, number: int) -> None:
        self.handle.write("\t".join(self.table.cells(before, call, shown, reasons, number)) + "\n")

    def finish(self) -> None:
        """Writes what had to wait for the last protein: the highest numbers, the highest first."""
        for rank, before, reasons, number in sorted(self._highest, key=lambda entry: entry[0], reverse=True):
            self._write(before, 0, rank[0], reasons, number)
        self._highest.clear()

    def report(self, report: Report) -> None:
        """Tells what the rows have in common."""
        table = self.table
        if not table.rows:
            report.paragraph("No site is called, so there is no call to give reasons for.")
            return
        tell_reasons(report, table, self._sites())

    def _sites(self) -> str:
        count = counted(self.table.rows, "site")
        if self.table.task.target == "number":
            return f"the {count} of the highest numbers"
        if self.commonest:
            return f"the {count} called other than {plain(self.commonest)}, the commonest class in training"
        return f"the {count} called" if self.table.task.binary else f"the {count}"
