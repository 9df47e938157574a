"""What a report tells of the reasons of answers: what each member weighs, how often it speaks for or against."""

from __future__ import annotations

from plm.scoring.reasons import ReasonsTable
from plm.telling.report import Report, plain
from plm.wording import counted


def tell_reasons(report: Report, table: ReasonsTable, answers: str) -> None:
    """Adds to a report what the rows of a table of reasons have in common.

    Args:
        report: Report that is added to.
        table: The table, with a row at least.
        answers: What its rows are, in words, such as ``the 5 sites called``.
    """
    if len(table.combination.names) == 1 and table.training is None:
        report.paragraph(
            f"The bundle answers with its {plain(table.combination.names[0])} alone: no other member stands behind "
            f"{answers}."
        )
        return
    rows = [
        [plain(name), table.weights(name), f"{table.speaking[name]:,}", f"{table.objecting[name]:,}"]
        for name in table.combination.names
    ]
    report.rows(["Member", "Weight", "Speaks for", "Speaks against"], rows)
    told = f"The table above counts what speaks for and against {answers}."
    if table.alike:
        told += (
            f" {counted(table.alike, 'of them is', 'of them are')} the same as a training row in all that is "
            "compared: the predictor has learned from that row, so the answer predicts nothing new."
        )
    report.paragraph(told)
