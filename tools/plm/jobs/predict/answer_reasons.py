"""Why proteins are answered so: what the members of the bundle's predictor say, and the nearest training rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TextIO

from plm.jobs.predict.answers import BundleAnswers
from plm.jobs.predict.queries import Queries
from plm.jobs.predict.verdicts import Verdicts
from plm.model.bundles.bundle import Bundle
from plm.scoring.reasons import ReasonsTable
from plm.telling.reasons import tell_reasons
from plm.telling.report import Report
from plm.wording import counted

RESIDUES = "Reasons are given for answers on whole proteins and on sites, not for every residue: their table is empty."
_BEFORE = ("id",)


@dataclass
class AnswerReasons:
    """Writes a row for each answer; of a bundle for residues nothing but the header.

    Attributes:
        table: Rows.
        queries: Records of the input.
        handle: Open file.
    """

    table: ReasonsTable
    queries: Queries
    handle: TextIO

    @classmethod
    def begin(cls, bundle: Bundle, queries: Queries, model: str, handle: TextIO) -> AnswerReasons:
        """Writes the header.

        Args:
            bundle: The bundle that is asked.
            queries: Records of the input.
            model: Name and digest of the bundle.
            handle: File to write.
        """
        table = ReasonsTable.of(bundle, _BEFORE, model)
        handle.write("\t".join(table.columns) + "\n")
        return cls(table, queries, handle)

    def add(self, block: BundleAnswers, verdicts: Verdicts) -> None:
        """Takes a block of answers, each with the class that it is nearest to be called."""
        if block.reasons is None:
            return
        task = self.table.task
        for number, record in enumerate(block.records.tolist()):
            call = task.classes.index(verdicts.best[number]) if task.classes else 0
            shown = float(block.values[number, task.positive_index if task.binary else call])
            cells = self.table.cells([self.queries.ids[record]], call, shown, block.reasons, number)
            self.handle.write("\t".join(cells) + "\n")

    def report(self, report: Report) -> None:
        """Tells what the rows have in common."""
        report.heading("Why these answers")
        if self.table.task.level == "residue":
            report.paragraph(RESIDUES)
        elif self.table.rows:
            tell_reasons(report, self.table, f"the {counted(self.table.rows, 'answer')}")
        report.link("reasons", "Reasons of each answer")
