"""The tables of plm_predict, written block by block: predictions, single residues, and a list to hand in."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from plm.data.dataset_table import UNLABELLED_RESIDUE, residue_labels
from plm.data.predictions_table import AFTER, PredictionsTable
from plm.data.tables import visible
from plm.jobs.predict.queries import Queries
from plm.jobs.predict.verdicts import Rules, Verdicts

Floats = NDArray[np.float64]
BEFORE = ("protein", "protein_position", "label")


def joined(names: Sequence[str]) -> str:
    """Class names with ``|`` between them; one inside a name is written ``\\|``."""
    return "|".join(name.replace("|", "\\|") for name in names)


@dataclass
class PredictionTables:
    """Writes what was predicted.

    Attributes:
        queries: Records of the input.
        rules: Rules by which answers were called.
        model: Name and digest of the bundle.
        finished: False adds the column ``finished``, as the bundle's training was cut short.
        top: Classes listed with their probabilities in the column ``top``; 0: no such column.
        predictions: Open text file of the predictions table.
        residues: Open file for single residues, or None.
        submission: Open file for a list of ids and answers, or None.
        submission_columns: Names of its two columns.
    """

    queries: Queries
    rules: Rules
    model: str
    finished: bool
    top: int
    predictions: TextIO
    residues: TextIO | None = None
    submission: TextIO | None = None
    submission_columns: tuple[str, str] = ("id", "label")
    unaligned: int = field(default=0, init=False)
    """Proteins whose label for each residue is not as long as their cleaned sequence."""

    def __post_init__(self) -> None:
        task, columns = self.rules.task, self.queries.columns
        self._before = [name for name in BEFORE if name in columns]
        self._after = [name for name in AFTER if name in columns]
        # A class may be called as nothing else is: single letters make a string.
        self._string = task.target == "class" and all(len(name) == 1 and name != "," for name in self.rules.names)
        names = self.rules.names if task.target == "class" else ()
        if task.level == "residue":
            single = ("id", "protein", "position", "residue", "label")
            self._table = PredictionsTable(names, single, self._after, self.finished)
            if self.residues is not None:
                self._table.begin(self.residues)
            header = ["id", *self._before, "length", "prediction", "confidence", *self._after, "model"]
            self._tail = [self.model, *([] if self.finished else ["false"])]
            _write(self.predictions, [*header, *([] if self.finished else ["finished"])])
        else:
            position = ["position"] if self.queries.positions is not None else []
            after = (*self._after, *self._extras())
            self._table = PredictionsTable(names, ("id", *position, *self._before), after, self.finished)
            self._table.begin(self.predictions)
        self._submitted = None
        if self.submission is not None:
            self._submitted = csv.writer(self.submission, lineterminator="\n")
            self._submitted.writerow(self.submission_columns)
        self._next = 0

    def _extras(self) -> list[str]:
        rules = self.rules
        names = ["best"] if rules.abstain != "never" and rules.task.target == "class" else []
        names += ["abstained"] if rules.abstain != "never" else []
        if rules.uncertainty is not None:
            names += ["set", "set_size"] if rules.task.target == "class" else ["low", "high"]
        if self.top and rules.task.target == "class":
            names.append("top")
        return [*names, *(["novel", "distance", "nearest", "nearest_label"] if rules.novelty is not None else [])]

    def add(self, records: NDArray[np.int64], values: Floats, verdicts: Verdicts) -> None:
        """Proteins (or sites) with their answers, ``values`` (n, K)."""
        rules, queries = self.rules, self.queries
        place = dict(zip(rules.task.classes, rules.names, strict=True))
        for row, record in enumerate(records.tolist()):
            best = place.get(verdicts.best[row], "")
            before: list[object] = [queries.ids[record]]
            if queries.positions is not None:
                before.append(queries.positions[record])
            before += [queries.columns[column][record] for column in self._before]
            after = [queries.columns[column][record] for column in self._after]
            after += self._judged(row, values[row], verdicts, best)
            call = rules.abstained if verdicts.abstained[row] else best
            answer = values[row] if rules.task.target == "class" else values[row, :1]
            self._table.write(self.predictions, self._table.cells(before, answer, call, after, self.model))
            self._submit(record, best if rules.task.target == "class" else f"{values[row, 0]:.6g}")

    def _judged(self, row: int, values: Floats, verdicts: Verdicts, best: str) -> list[str]:
        rules = self.rules
        cells = []
        if rules.abstain != "never":
            cells = [*([best] if rules.task.target == "class" else []), _yes(verdicts.abstained[row])]
        if verdicts.sets is not None:
            inside = [rules.names[index] for index in np.argsort(-values, kind="stable") if verdicts.sets[row, index]]
            cells += [joined(inside), str(len(inside))]
        if verdicts.ends is not None:
            cells += [f"{end[row]:.6g}" for end in verdicts.ends]
        if self.top and rules.task.target == "class":
            order = np.argsort(-values, kind="stable")[: self.top]
            cells.append("|".join(f"{joined([rules.names[index]])}={values[index]:.4f}" for index in order))
        if rules.novelty is not None:
            assert verdicts.distance is not None and verdicts.nearest is not None
            nearest = int(verdicts.nearest[row])
            cells += [_yes(verdicts.novel[row]), f"{verdicts.distance[row]:.4f}"]
            cells += [visible(rules.novelty.ids[nearest]), visible(rules.novelty.labels[nearest])]
        return cells

    def add_residues(
        self, records: NDArray[np.int64], sequences: Sequence[str], values: Floats, verdicts: Verdicts
    ) -> None:
        """Proteins of a residue task, ``values`` (R, K), protein after protein."""
        rules, queries = self.rules, self.queries
        place = dict(zip(rules.task.classes, rules.names, strict=True))
        classes = rules.task.target == "class"
        start = 0
        for record, sequence in zip(records.tolist(), sequences, strict=True):
            span = slice(start, start + len(sequence))
            start += len(sequence)
            mine = values[span]
            calls = [place[name] for name in verdicts.best[span]] if classes else [f"{x:.4g}" for x in mine[:, 0]]
            told = ("" if self._string else ",").join(calls)
            confidence = f"{verdicts.confidence[span].mean():.4f}" if classes else ""
            name = visible(queries.ids[record])
            before = [visible(queries.columns[column][record]) for column in self._before]
            after = [visible(queries.columns[column][record]) for column in self._after]
            _write(self.predictions, [name, *before, str(len(sequence)), told, confidence, *after, *self._tail])
            self._submit(record, told)
            labels = self._residue_labels(record, len(sequence))
            if self.residues is None:
                continue
            protein = visible(queries.columns["protein"][record]) if "protein" in queries.columns else name
            for at, residue in enumerate(sequence):
                single: list[object] = [name, protein, at + 1, residue, labels[at]]
                answer = mine[at] if classes else mine[at, :1]
                self._table.write(self.residues, self._table.cells(single, answer, calls[at], after, self.model))

    def _residue_labels(self, record: int, length: int) -> list[str]:
        told = self.queries.columns["label"][record] if "label" in self.queries.columns else ""
        labels = residue_labels(told) if told else []
        if len(labels) != length:
            self.unaligned += bool(told)
            return [""] * length
        return ["" if label == UNLABELLED_RESIDUE else visible(label) for label in labels]

    def _submit(self, record: int, answer: str) -> None:
        if self._submitted is None:
            return
        self._unanswered(record)
        self._submitted.writerow([self.queries.ids[record], answer])
        self._next = record + 1

    def _unanswered(self, until: int) -> None:
        """Records before the next answer, which could not be used: whoever judges a list expects every id in it."""
        assert self._submitted is not None
        for record in range(self._next, until):
            self._submitted.writerow([self.queries.ids[record], ""])
        self._next = until

    def remarks(self) -> list[str]:
        """What is worth a line in the report."""
        if not self.unaligned:
            return []
        return [f"{self.unaligned} proteins have labels that are not one a residue; they were left out."]

    def close(self) -> None:
        """Ends the list to hand in."""
        if self._submitted is not None:
            self._unanswered(len(self.queries))


def _yes(flag: Any) -> str:
    return "yes" if flag else "no"


def _write(handle: TextIO, cells: Sequence[str]) -> None:
    handle.write("\t".join(cells) + "\n")
