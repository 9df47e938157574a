"""What a scan of whole proteins for sites found: counted while it runs, told in a report at the end."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plm.data.task import Task, threshold_of
from plm.jobs.classify_sites.candidates import Protein
from plm.jobs.classify_sites.figure import NUMBER, Track
from plm.model.combination import LANGUAGE_MODEL
from plm.scoring.expected_calls import Expected
from plm.scoring.operating_point import OWN_THRESHOLD, OperatingPoint
from plm.telling.report import Report, plain
from plm.wording import several_called

MOST_ROWS = 1000
"""Tables longer than this are linked from the report, not shown in it."""
TYPICAL_PREVALENCES = (0.1, 0.02)
"""Shown beside the training set's own: sites are rarer in proteomes than in balanced training sets."""


@dataclass
class SiteCounts:
    """The findings so far; its size does not grow with the number of proteins.

    Attributes:
        task: Level, kind of target and classes that the bundle answers.
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
        self, protein: Protein, heights: NDArray[np.float64], called: NDArray[np.bool_], calls: Sequence[str],
        known: NDArray[np.bool_],
    ) -> None:
        """Counts a protein with answers.

        Args:
            protein: Protein with its n candidates.
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
        else "Probability of the class called"
    )


def first_line(counts: SiteCounts, point: OperatingPoint | None, letters: str, finished: bool) -> str:
    """The sentence that a reader must see: what was called, at which threshold, and how much of it to believe."""
    where = f"{counts.candidates:,} candidate {'/'.join(letters)} in {_proteins(counts.classified)}"
    unfinished = "" if finished else "The bundle's training was cut short (unfinished). "
    if not counts.candidates:
        return (
            f"{unfinished}No candidate residue: none of {_proteins(counts.proteins)} that can be used holds "
            f"{' or '.join(letters)}, so there is nothing to classify"
        )
    if counts.task.target == "number":
        return f"{unfinished}Numbers are predicted for {where}"
    if point is None:
        shares = ", ".join(f"{name}: {counts.by_class.get(name, 0):,}" for name in counts.task.classes)
        return f"{unfinished}The classes called of {where}: {shares}"
    verb = "is" if counts.called == 1 else "are"
    positive = called_words(counts.task.classes[counts.task.positive_index], counts.task.classes)
    called = f"{counts.called:,} of {where} {verb} called {positive}"
    return f"{unfinished}{called} at threshold {point.threshold:.4g} ({point.source}); {_trust(counts, point)}"


def called_words(name: str, classes: Sequence[str]) -> str:
    """What a site of a class is called: ``a site``, where the classes are yes and no; else the class by its name."""
    if {label.lower() for label in classes} in _YES_NO:
        return "sites"
    return name


_YES_NO = (
    {"0", "1"}, {"no", "yes"}, {"false", "true"}, {"negative", "positive"}, {"neg", "pos"}, {"-1", "1"}, {"-", "+"},
)


def _trust(counts: SiteCounts, point: OperatingPoint) -> str:
    """How many of the calls are false and true; the two always add up to the calls."""
    calls = counts.called
    if not calls:
        return "no call, so none is false"
    expected = point.expected(counts.candidates, calls)
    if expected is None and point.counts[0]:
        return (
            "how many of the calls are true cannot be told: at the rates seen on validation rows so few calls are all "
            "but impossible, so these proteins are of another kind"
        )
    if expected is None:
        false = round(counts.doubt)
        return f"about {false:,} of these calls are false and {calls - false:,} true, by their own probabilities"
    false, (low, high) = round(expected.false), expected.false_range
    told = f"about {false:,} of these calls are false and {calls - false:,} true"
    told += f" (95 % interval {low:,} to {high:,} false)"
    share = point.prevalence if point.prevalence is not None else point.training_prevalence
    assumed = None if share is None else point.expected(counts.candidates, calls, share)
    if assumed is not None and not assumed.fits:
        few = "few" if calls < assumed.calls_range[0] else "many"
        kind = "stated" if point.prevalence is not None else "training set's"
        told += f"; so {few} calls do not fit the {kind} share of {_percent(share)} real sites"
    return told


def _proteins(count: int) -> str:
    return f"{count:,} protein{'' if count == 1 else 's'}"


def site_report(
    counts: SiteCounts, point: OperatingPoint | None, *, letters: str, manifest: Mapping[str, Any], model: str,
    notes: Sequence[str], outputs: Sequence[str], explain: Callable[[Report], None] = lambda report: None,
) -> Report:
    """The report of the stage.

    Args:
        counts: Records, candidates and calls so far, and the strongest sites.
        point: Threshold and prevalence of a two-class bundle, else None.
        letters: Candidate residues.
        manifest: Content of the bundle's ``manifest.json``.
        model: Name and digest of the bundle.
        notes: Warnings and choices worth a line.
        outputs: Names of the outputs there are: ``figure``, ``sites``, ``gff``, ``status``.
        explain: Adds to the report why sites are called, behind the strongest ones.
    """
    report = Report(plain(first_line(counts, point, letters, bool(manifest.get("finished", True)))))
    if "figure" in outputs:
        report.heading("Along the proteins").image("figure")
    if point is not None and counts.candidates:
        _expectations(report, counts, point)
    if counts.candidates:
        report.heading("The strongest candidates")
        number = counts.task.target == "number"
        header = ["Protein", "Residue", "Number" if number else "Probability", *([] if number else ["Call"])]
        rows = [[plain(cells[0]), *cells[1:3], *([] if number else [plain(cells[3])])] for cells in counts.sites()]
        report.rows(header, rows)
    explain(report)
    if "sites" in outputs and counts.candidates:
        report.heading("All sites")
        # A page does not bear a proteome.
        if counts.candidates <= MOST_ROWS:
            report.table("sites", title="Classified sites")  # classes name columns
        else:
            report.link("sites")
    if "gff" in outputs:
        report.link("gff")
    report.heading("What was done")
    window = int(manifest["window"])
    context = f"{window} residues around it, cut at the protein's ends" if window else "its whole protein"
    base = manifest["base"]
    report.bullets(
        [
            f"{counts.proteins:,} records: {counts.classified:,} classified, "
            f"{counts.without:,} without a candidate, {counts.rejected:,} rejected, {counts.changed:,} changed on the "
            f"way{'; the status table names each' if 'status' in outputs else ''}.",
            f"Each candidate was seen in {context}, the context that the bundle was trained with.",
            f"Model {plain(model)}, base model {plain(base['id'])} (sha256 {base['sha256'][:12]}), "
            f"method {plain(manifest['method'])}, {len(manifest['members'])} trained networks as an ensemble."
            if len(manifest["members"]) > 1
            else f"Model {plain(model)}, base model {plain(base['id'])} (sha256 {base['sha256'][:12]}), "
            f"method {plain(manifest['method'])}.",
            *_answering(manifest),
            *([f"{plain(told)}."] if (told := several_called(manifest["labels"], threshold_of(manifest))) else []),
            *map(plain, notes),
        ]
    )
    return report


def _answering(manifest: Mapping[str, Any]) -> list[str]:
    """What the bundle answers with, where that is more than its language model."""
    held = (manifest.get("predictor") or {}).get("combination")
    if not held:
        return []
    names = ", ".join(held["members"])
    unasked = "" if LANGUAGE_MODEL in held["members"] else "; the language model has no weight in it and was not asked"
    return [f"The bundle's predictor gave the answers, made of: {plain(names)}{unasked}."]


def _expectations(report: Report, counts: SiteCounts, point: OperatingPoint) -> None:
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
            f"({_percent(point.training_prevalence)}). Where that share is smaller, as in most proteomes, they are too "
            "high; state it as the prevalence to get probabilities and calls for it."
        )
    if false_rate is None:
        report.paragraph(
            "The bundle holds no scores of validation rows, so false calls are estimated from the probabilities alone."
        )
        return
    (false_hits, negatives), (true_hits, positives) = point.hits()
    sensitivity = "" if true_rate is None else f" and {true_hits:,} of {positives:,} validation positives"
    optimism = (
        " The validation rows also chose the threshold, so expect somewhat worse on new proteins."
        if point.source == OWN_THRESHOLD
        else ""
    )
    report.paragraph(
        f"At this threshold {false_hits:,} of {negatives:,} validation negatives{sensitivity} are called.{optimism}"
    )
    if not counts.called:
        return
    expected = point.expected(counts.candidates, counts.called)
    shares = {point.prevalence, point.training_prevalence, *TYPICAL_PREVALENCES} - {None}
    rows = [] if expected is None else [_row(f"{_percent(expected.share)} (as the calls suggest)", expected)]
    for share in sorted((share for share in shares if share is not None), reverse=True):
        assumed = point.expected(counts.candidates, counts.called, share)
        assert assumed is not None  # there are validation negatives
        mark = " (stated)" if share == point.prevalence else " (training)" if share == point.training_prevalence else ""
        rows.append(_row(f"{_percent(share)}{mark}", assumed))
    calls = f"{counts.called:,} call{'' if counts.called == 1 else 's'}"
    report.rows(["If so many candidates are real", "Calls expected", f"Of the {calls}: false", "true"], rows)
    if expected is not None:
        low, high = expected.share_range
        report.paragraph(
            f"The {calls} among {counts.candidates:,} candidates suggest that {_percent(low)} to {_percent(high)} of "
            "the candidates are real. The 95 % intervals in brackets follow from the number of validation rows, and "
            "take it that new proteins are like those."
        )


def _row(share: str, expected: Expected) -> list[str]:
    """A share of real sites, the calls that it gives, and which of the calls made are false and true."""
    low, high = expected.calls_range
    calls = f"{low:,} to {high:,}"
    if not expected.fits:
        return [share, calls, "does not fit the calls", "does not fit the calls"]
    false = round(expected.false, 1)
    (few, many), (least, most) = expected.false_range, expected.true_range
    return [
        share, calls, f"{false:,.1f} ({few:,} to {many:,})",
        f"{expected.called - false:,.1f} ({least:,} to {most:,})",
    ]


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{100 * share:.3g} %"
