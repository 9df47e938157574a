"""What is made of a finished job: the head for further proteins, the maps to draw, the account for the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from plm.jobs.contacts.contact_figure import MOST_MAPS, ContactMap, title_of
from plm.jobs.contacts.contact_job import HEADLINE, ContactJob, ContactPrediction
from plm.jobs.contacts.contact_report import ContactAccount
from plm.jobs.contacts.parts import TEST, TRAIN, VALID
from plm.jobs.contacts.precision import CELLS
from plm.jobs.contacts.stored_head import write_head

_LONGEST_DRAWN = 3000
"""Residues of the longest protein that is drawn."""


def chosen_maps(job: ContactJob, predictions: Sequence[ContactPrediction]) -> list[ContactMap]:
    """Test proteins from the best to the worst; without any the first proteins."""
    fitting = [one for one in predictions if len(job.inputs.sequence(one.record)) <= _LONGEST_DRAWN]
    judged = _judged(job, fitting)
    if judged:
        judged.sort(key=lambda one: (-np.nan_to_num(_precision(job, one)), one.record))
        count = min(MOST_MAPS, len(judged))
        places = np.unique(np.linspace(0, len(judged) - 1, count).round().astype(int))
        shown = [judged[place] for place in places]
    else:
        shown = fitting[:MOST_MAPS]
    return [
        ContactMap(
            title_of(job.inputs.proteins.ids[one.record], _precision(job, one) if judged else float("nan")),
            job.bands_of(one.record), job.inputs.known.get(one.record), job.inputs.proteins.ids[one.record],
        )
        for one in shown
    ]


def _judged(job: ContactJob, predictions: Sequence[ContactPrediction]) -> list[ContactPrediction]:
    parts = job.outcome.parts
    return [] if parts is None else [one for one in predictions if parts.part.get(one.record) == TEST]


def _precision(job: ContactJob, one: ContactPrediction) -> float:
    return float(one.precisions[job.outcome.chosen][HEADLINE])


def keep_head(job: ContactJob, path: Path, scratch: Path) -> None:
    """Writes the head that answers, with what a reader should know of it."""
    outcome = job.outcome
    parts = outcome.parts
    learned: list[str] = []
    facts: dict[str, str | float | int] = {
        "penalty": job.settings.penalty, "seed": job.settings.seed, "pairs": outcome.fitted_pairs,
    }
    if job.stored is not None:
        path.write_bytes(job.stored.path.read_bytes())
        return
    if parts is not None:
        learned = [job.inputs.sequence(record) for record in (*parts.of(TRAIN), *parts.of(VALID))]
        facts |= {"training proteins": len(parts.of(TRAIN)), "validation proteins": len(parts.of(VALID))}
    if outcome.test:
        chosen = outcome.test[outcome.chosen]
        facts["test proteins"] = chosen.proteins
        facts |= {
            f"precision at {top}, {separation} apart": round(float(chosen.mean[at]), 4)
            for at, (separation, top) in enumerate(CELLS) if np.isfinite(chosen.mean[at])
        }
    folder = scratch / "new_head"
    folder.mkdir()
    write_head(path, outcome.heads[outcome.chosen], job.loaded, learned, facts, folder)


def account_of(
    job: ContactJob, predictions: Sequence[ContactPrediction], maps: Sequence[ContactMap], given: str
) -> ContactAccount:
    """Everything that the report says, in figures."""
    inputs = job.inputs
    records = [one.record for one in predictions]
    said = {record: "; ".join(inputs.remarks.get(record, ())) for record in records}
    windowed = [one for one in predictions if one.windows > 1]
    return ContactAccount(
        outcome=job.outcome, model=job.loaded.files.id, predicted=len(predictions),
        rejected=len(inputs.proteins.ids) - len(predictions) + len(inputs.unread), top=job.settings.top,
        whole=job.reader.whole, windowed=len(windowed), unseen=sum(one.unseen for one in windowed),
        partial=sum("without a known place" in said[record] for record in records),
        differing=sum("the structure differs" in said[record] for record in records),
        drawn=[one.id for one in maps], pictured="judged" if _judged(job, predictions) else "first", given=given,
        warning=inputs.proteins.warning,
    )
