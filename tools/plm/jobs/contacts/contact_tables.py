"""What is written: the likeliest pairs, precisions of each protein and in the mean, what became of each record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TextIO

import numpy as np

from plm.data.tables import visible
from plm.jobs.contacts.contact_baselines import BASELINES
from plm.jobs.contacts.contact_job import ContactJob, ContactPrediction
from plm.jobs.contacts.parts import TEST, VALID, resolved_share
from plm.jobs.contacts.precision import CELLS, MeanPrecision

CONTACT_COLUMNS = (
    "id", "i", "j", "residue_i", "residue_j", "separation", "probability", "distance", "verdict"
)
RIGHT, WRONG, UNKNOWN = "right", "wrong", "unknown"
PROTEIN_COLUMNS = (
    "id", "part", "relatives", "length", "resolved", "contacts_6", "contacts_12", "contacts_24", "method",
    *(f"precision_{top.replace('/', '')}_{separation}" for separation, top in CELLS),
)
METRIC_COLUMNS = (
    "method", "kind", "part", "separation", "top", "precision", "low", "high", "proteins", "families", "chosen"
)
STATUS_COLUMNS = (
    "id", "structure", "length", "windows", "unseen_pairs", "part", "cleaned", "duplicate_of", "status", "details"
)


class ContactTables:
    """Writes the tables of a job."""

    def __init__(self, job: ContactJob) -> None:
        self._job, self._inputs = job, job.inputs

    def header_of_contacts(self, handle: TextIO) -> None:
        handle.write(_line(CONTACT_COLUMNS))

    def contacts(self, handle: TextIO, prediction: ContactPrediction) -> None:
        """The likeliest pairs of a protein, the likeliest first."""
        record, top = prediction.record, prediction.top
        name, sequence = visible(self._inputs.proteins.ids[record]), self._inputs.sequence(record)
        known = self._inputs.known.get(record)
        distances, verdicts = np.full(len(top.rows), np.nan), [UNKNOWN] * len(top.rows)
        if known is not None:
            distances = known.distances(top.rows, top.columns)
            sure, touches = known.known(top.rows, top.columns), known.touch(top.rows, top.columns)
            verdicts = [
                (RIGHT if touch else WRONG) if one else UNKNOWN for one, touch in zip(sure, touches, strict=True)
            ]
        for i, j, probability, distance, verdict in zip(
            top.rows.tolist(), top.columns.tolist(), top.probabilities.tolist(), distances.tolist(), verdicts,
            strict=True,
        ):
            handle.write(_line((
                name, str(i + 1), str(j + 1), sequence[i], sequence[j], str(j - i), f"{probability:.4f}",
                "" if distance != distance else f"{distance:.2f}", verdict,
            )))

    def proteins(self, handle: TextIO, predictions: Sequence[ContactPrediction]) -> None:
        """One row a protein with known contacts and method."""
        handle.write(_line(PROTEIN_COLUMNS))
        parts = self._job.outcome.parts
        for one in predictions:
            if not one.precisions or parts is None:
                continue
            record = one.record
            start = (
                visible(self._inputs.proteins.ids[record]), parts.part[record], visible(parts.cluster[record]),
                str(len(self._inputs.sequence(record))), str(resolved_share(self._inputs, record)),
                *map(str, one.contacts),
            )
            for method, values in one.precisions.items():
                handle.write(_line((*start, method, *map(_number, values.tolist()))))

    def metrics(self, handle: TextIO) -> None:
        """One row a method, part, separation and top."""
        handle.write(_line(METRIC_COLUMNS))
        outcome = self._job.outcome
        means: Mapping[str, Mapping[str, MeanPrecision]] = {VALID: outcome.valid, TEST: outcome.test}
        for part, by_method in means.items():
            for method, one in by_method.items():
                kind = "baseline" if method in BASELINES else "head"
                for at, (separation, top) in enumerate(CELLS):
                    handle.write(_line((
                        method, kind, part, str(separation), top, _number(one.mean[at]), _number(one.low[at]),
                        _number(one.high[at]), str(one.proteins), str(one.groups),
                        "yes" if method == outcome.chosen else "no",
                    )))

    def status(self, handle: TextIO, predictions: Sequence[ContactPrediction]) -> None:
        """One row a record of the input, and one a structure that is no record."""
        handle.write(_line(STATUS_COLUMNS))
        proteins, parts = self._inputs.proteins, self._job.outcome.parts
        by_record = {one.record: one for one in predictions}
        for record in range(len(proteins.ids)):
            one = by_record.get(record)
            sequence = int(proteins.unique[record])
            first = int(proteins.firsts[sequence]) if sequence >= 0 else record
            details = [proteins.details.get(record, ""), *self._inputs.remarks.get(record, [])]
            if one is not None and one.unseen:
                details.append(
                    f"went in {one.windows} windows of {self._job.reader.whole} residues: {one.unseen} pairs that no "
                    "window holds together have no answer"
                )
            handle.write(_line((
                visible(proteins.ids[record]), visible(self._inputs.sources.get(record, "")),
                str(int(proteins.letters[record])), str(one.windows if one else 0), str(one.unseen if one else 0),
                parts.part.get(record, "") if parts else "", str(int(proteins.cleaned[record])),
                "" if first == record else visible(proteins.ids[first]), "predicted" if one else "rejected",
                visible("; ".join(filter(None, details))),
            )))
        for stranger in self._inputs.unread:
            handle.write(_line((
                visible(stranger.id), visible(stranger.source), "0", "0", "0", "", "0", "", "rejected",
                visible(stranger.reason),
            )))


def _line(cells: Sequence[str]) -> str:
    return "\t".join(cells) + "\n"


def _number(value: float) -> str:
    return "" if value != value else f"{value:.4f}"
