"""What a scan of whole proteins for sites found: counted while it runs, told in a report at the end."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plm.data.candidates import Protein
from plm.evaluation.operating_point import OperatingPoint
from plm.evaluation.report import Report, plain
from plm.evaluation.site_figure import NUMBER, Track
from plm.model.task import Task

MOST_ROWS = 1000
"""Tables longer than this are linked from the report, not shown in it."""
TYPICAL_PREVALENCES = (0.1, 0.02)
"""Shown beside the training set's own: sites are rarer in proteomes than in balanced training sets."""


@dataclass
class Found:
    """The findings so far; its size does not grow with the number of proteins.

    Attributes:
        task: What the bundle answers.
        most_tracks: Proteins that the figure shows at most.
        most_sites: Sites that the report lists at most.
    """

    task: Task
    most_tracks: int = 12
    most_sites: int = 15
    proteins: int = 0
    rejected: int = 0
    without: int = 0
    changed: int = 0
    candidates: int = 0
    called: int = 0
    doubt: float = 0.0
    by_class: dict[str, int] = field(default_factory=dict)
    _tracks: list[tuple[tuple[float, float, int], Track]] = field(default_factory=list)
    _sites: list[tuple[tuple[float, int, int], list[str]]] = field(default_factory=list)

    @property
    def classified(self) -> int:
        """Proteins with a candidate."""
        return self.proteins - self.rejected - self.without

    def skip(self, protein: Protein) -> None:
        """Counts a record without answers: rejected, or without a candidate."""
        self.proteins += 1
        self.changed += bool(protein.changes)
        if protein.rejected:
            self.rejected += 1
        else:
            self.without += 1

    def add(
        self,
        protein: Protein,
        heights: NDArray[np.float64],
        called: NDArray[np.bool_],
        calls: Sequence[str],
        known: NDArray[np.bool_],
    ) -> None:
        """Counts a protein with answers.

        Args:
            protein: With n candidates.
            heights: (n,) probability of the positive class as shown, of the called class, or the number.
            called: (n,) called positive; all True unless there are two classes.
            calls: n classes; empty strings for numbers.
            known: (n,) real sites as far as the user told.
        """
        self.proteins += 1
        self.changed += bool(protein.changes)
        self.candidates += len(heights)
        self.called += int(called.sum())
        if self.task.target == "class":
            self.doubt += float((1 - heights[called]).sum())
            for name in calls:
                self.by_class[name] = self.by_class.get(name, 0) + 1
        order = -self.proteins  # among equals the first in the file
        letters = "".join(protein.sequence[site] for site in protein.sites)
        rank = (float(called.sum()) if self.task.binary else 0.0, float(heights.max()), order)
        track = Track(protein.id, protein.extent, np.array(protein.places), heights, called, letters, known)
        _keep(self._tracks, (rank, track), self.most_tracks)
        best = np.argsort(-heights, kind="stable")[: self.most_sites]
        for index in best:
            place = protein.places[index]
            cells = [protein.id, f"{letters[index]}{place}", f"{heights[index]:.3f}", calls[index]]
            _keep(self._sites, ((float(heights[index]), order, -place), cells), self.most_sites)

    def tracks(self) -> list[Track]:
        """The proteins with most called sites, then those with the strongest candidate."""
        return [track for _, track in sorted(self._tracks, key=lambda entry: entry[0], reverse=True)]

    def sites(self) -> list[list[str]]:
        """Protein, residue, probability (or number) and call of the strongest sites."""
        return [cells for _, cells in sorted(self._sites, key=lambda entry: entry[0], reverse=True)]


def _keep(heap: list[Any], entry: Any, most: int) -> None:
    # Ranks are unique, so entries are never compared beyond them.
    if len(heap) < most:
        heapq.heappush(heap, entry)
    elif entry[0] > heap[0][0]:
        heapq.heapreplace(heap, entry)


def height_name(task: Task) -> str:
    """What the height of a site in the figure means."""
    if task.target == "number":
        return NUMBER
    return (
        f"Probability of class {task.classes[task.positive_index]}"
        if task.binary
        else "Probability of the likeliest class"
    )


def first_line(found: Found, point: OperatingPoint | None, letters: str, finished: bool) -> str:
    """The sentence that a reader must see: what was called, at which threshold, and how much of it to believe."""
    where = f"{found.candidates:,} candidate {'/'.join(letters)} in {_proteins(found.classified)}"
    unfinished = "" if finished else "The bundle's training was cut short (unfinished). "
    if not found.candidates:
        return (
            f"{unfinished}No candidate residue: none of {_proteins(found.proteins)} that can be used holds "
            f"{' or '.join(letters)}, so there is nothing to classify"
        )
    if found.task.target == "number":
        return f"{unfinished}Numbers are predicted for {where}"
    if point is None:
        shares = ", ".join(f"{name}: {found.by_class.get(name, 0):,}" for name in found.task.classes)
        return f"{unfinished}The likeliest class of {where}: {shares}"
    positive = found.task.classes[found.task.positive_index]
    verb = "is" if found.called == 1 else "are"
    called = f"{found.called:,} of {where} {verb} called class {positive}"
    return f"{unfinished}{called} at threshold {point.threshold:.4g} ({point.source}); {_trust(found, point)}"


def _trust(found: Found, point: OperatingPoint) -> str:
    prevalence = point.prevalence if point.prevalence is not None else point.training_prevalence
    if prevalence is None:
        return f"about {found.doubt:.0f} of these calls are expected to be false, by their own probabilities"
    condition = (
        f"at the stated prevalence of {100 * prevalence:g} %"
        if point.prevalence is not None
        else f"if {100 * prevalence:.3g} % of the candidates are real sites as in training "
        "(proteomes usually hold far fewer)"
    )
    expected = point.expected_false(found.candidates, prevalence)
    if expected is None:
        return f"about {found.doubt:.0f} of these calls are expected to be false {condition}"
    # No more calls can be false than there are.
    middle, low, high = (min(value, found.called) for value in expected)
    return f"about {middle:.0f} false calls (95 % interval {low:.0f} to {high:.0f}) are expected {condition}"


def _proteins(count: int) -> str:
    return f"{count:,} protein{'' if count == 1 else 's'}"


def site_report(
    found: Found,
    point: OperatingPoint | None,
    *,
    letters: str,
    manifest: Mapping[str, Any],
    model: str,
    notes: Sequence[str],
    outputs: Sequence[str],
) -> Report:
    """The report of the stage.

    Args:
        found: The findings.
        point: Threshold and prevalence of a two-class bundle, else None.
        letters: Candidate residues.
        manifest: The bundle's.
        model: Name and digest of the bundle.
        notes: Warnings and choices worth a line.
        outputs: Names of the outputs there are: ``figure``, ``sites``, ``gff``, ``status``.
    """
    report = Report(first_line(found, point, letters, bool(manifest.get("finished", True))))
    if "figure" in outputs:
        report.heading("Along the proteins").image("figure")
    if point is not None and found.candidates:
        _expectations(report, found, point)
    if found.candidates:
        report.heading("The strongest candidates")
        number = found.task.target == "number"
        header = ["Protein", "Residue", "Number" if number else "Probability", *([] if number else ["Call"])]
        rows = [[plain(cells[0]), *cells[1:3], *([] if number else [plain(cells[3])])] for cells in found.sites()]
        report.rows(header, rows)
    if "sites" in outputs and found.candidates:
        report.heading("All sites")
        # A page does not bear a proteome.
        if found.candidates <= MOST_ROWS:
            report.table("sites", title="Classified sites", headers=False)  # classes name columns
        else:
            report.link("sites")
    report.heading("What was done")
    window = int(manifest["window"])
    context = f"{window} residues around it, cut at the protein's ends" if window else "its whole protein"
    base = manifest["base"]
    report.bullets(
        [
            f"{found.proteins:,} records: {found.classified:,} classified, "
            f"{found.without:,} without a candidate, {found.rejected:,} rejected, {found.changed:,} changed on the "
            "way; the status table names each.",
            f"Each candidate was seen in {context}, the context that the bundle was trained with.",
            f"Model {plain(model)}, base model {plain(base['id'])} (sha256 {base['sha256'][:12]}), "
            f"method {plain(manifest['method'])}, {len(manifest['members'])} trained networks as an ensemble."
            if len(manifest["members"]) > 1
            else f"Model {plain(model)}, base model {plain(base['id'])} (sha256 {base['sha256'][:12]}), "
            f"method {plain(manifest['method'])}.",
            *map(plain, notes),
        ]
    )
    return report


def _expectations(report: Report, found: Found, point: OperatingPoint) -> None:
    false_rate, true_rate = point.rates()
    report.heading("How far to believe the calls")
    if point.prevalence is not None:
        report.paragraph(
            f"Probabilities are adjusted from the training share of sites ({_percent(point.training_prevalence)}) "
            f"to the stated prevalence of {_percent(point.prevalence)}; the threshold judges the adjusted ones."
        )
    else:
        report.paragraph(
            "Probabilities hold for candidates of which as many are real sites as in the training set "
            f"({_percent(point.training_prevalence)}). In a proteome that share is usually far smaller; state it as "
            "the prevalence to get probabilities and calls for it."
        )
    if false_rate is None:
        report.paragraph(
            "The bundle holds no scores of validation rows, so false calls are estimated from probabilities."
        )
        return
    negatives, positives = point.counts
    sensitivity = (
        "" if true_rate is None else f" and {round(true_rate * positives):,} of {positives:,} validation positives"
    )
    report.paragraph(
        f"At this threshold {round(false_rate * negatives):,} of {negatives:,} validation negatives{sensitivity} are "
        "called. The validation rows also chose the threshold, so expect somewhat worse on new proteins."
    )
    shares = {point.prevalence, point.training_prevalence, *TYPICAL_PREVALENCES} - {None}
    rows = []
    for share in sorted((share for share in shares if share is not None), reverse=True):
        expected = point.expected_false(found.candidates, share)
        assert expected is not None  # there are validation negatives
        _, low, high = expected
        true = None if true_rate is None else true_rate * share * found.candidates
        precision = "unknown"
        if true:
            precision = f"{_percent(true / (true + high))} to {_percent(true / (true + low))}"
        mark = " (stated)" if share == point.prevalence else " (training)" if share == point.training_prevalence else ""
        most = float(found.called)
        false, low, high = (min(value, most) for value in expected)
        shown = "unknown" if true is None else f"{min(true, most):.1f}"
        cells = [f"{false:.1f} ({low:.1f} to {high:.1f})", shown, precision]
        rows.append([f"{_percent(share)}{mark}", *cells])
    header = ["If so many candidates are real", "False calls expected", "True calls expected", "Calls that are true"]
    report.rows(header, rows)
    report.paragraph("In brackets the 95 % interval that follows from the number of validation negatives.")


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{100 * share:.3g} %"
