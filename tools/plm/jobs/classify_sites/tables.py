"""The tables of classified sites, written protein by protein: predictions, GFF3, and what became of each record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from plm.data.gff import GffWriter
from plm.data.label_values import whole
from plm.data.predictions_table import PredictionsTable
from plm.data.sites import SiteListing, read_listings
from plm.data.tables import read_table
from plm.data.task import LIKELIEST, Task, Threshold
from plm.errors import UserError
from plm.jobs.classify_sites.candidates import Protein
from plm.scoring.operating_point import DIGITS, OperatingPoint

STATUS_COLUMNS = ("id", "line", "length", "candidates", "called", "status", "details")


class Truth:
    """Sites whose class the user told, by protein (record id or accession) and 1-based place.

    Args:
        listings: From :func:`plm.data.sites.read_listings`.
        task: Labels must be classes of it.
        otherwise: Class of the candidates that are not listed, in proteins with a listed site; empty leaves them
            without truth.

    Raises:
        UserError: A label is no class of the bundle, or a site has two labels.
    """

    def __init__(self, listings: Sequence[SiteListing], task: Task, otherwise: str = "") -> None:
        self._places: dict[str, dict[int, str]] = {}
        self._stated: dict[tuple[str, int], str] = {}
        self._otherwise = otherwise
        self._used: set[tuple[str, int]] = set()
        self._lost: dict[tuple[str, int], str] = {}
        self._seen: set[str] = set()
        self._one_further = 0
        self.listed = 0
        for listing in listings:
            label = listing.label or ""
            if task.target == "class" and label not in task.classes and whole(label):
                label = str(int(float(label)))  # 1.0, as pandas writes it
            if listing.residue:
                self._stated[listing.protein, listing.place] = listing.residue
            if task.target == "class" and label not in task.classes:
                raise UserError(
                    f"The label {label!r} is none of the bundle's classes ({', '.join(task.classes)})",
                    where=listing.where, fix="Give the classes that the bundle was trained on",
                )
            places = self._places.setdefault(listing.protein, {})
            if places.setdefault(listing.place, label) != label:
                raise UserError(
                    f"The site {listing.protein} {listing.place} is listed with two labels", where=listing.where,
                    fix="Keep one of the two rows",
                )
        self.listed = sum(map(len, self._places.values()))

    def labels(self, protein: Protein) -> list[str]:
        """The label of each candidate; empty where the user told nothing."""
        name = next((name for name in (protein.id, protein.accession) if name in self._places), None)
        if name is None:
            return [""] * len(protein.places)
        known = {place: label for place, label in self._places[name].items() if (name, place) not in self._lost}
        self._used.update((name, place) for place in protein.places if place in known)
        # What the list says wrongly of a residue says nothing of it.
        wrong = {place for site, place in self._lost if site == name}
        return ["" if place in wrong else known.get(place, self._otherwise) for place in protein.places]

    def see(self, protein: Protein) -> None:
        """Looks at the listed sites of a protein, of every record before its labels are asked for."""
        name = next((name for name in (protein.id, protein.accession) if name in self._places), None)
        if name is None:
            return
        self._seen.add(name)
        letters = {place: protein.sequence[site] for place, site in zip(protein.places, protein.sites, strict=True)}
        for place in self._places[name]:
            stated = self._stated.get((name, place), "")
            if protein.rejected:
                self._lost[name, place] = "in proteins that were rejected"
            elif not 1 <= place <= protein.extent:
                self._lost[name, place] = "outside their proteins"
            elif place not in letters:
                self._lost[name, place] = "at residues that are no candidates"
            elif stated and letters[place] != stated:
                self._lost[name, place] = "at other residues than the list says"
            self._one_further += place + 1 in letters

    def unmatched(self) -> list[tuple[str, int]]:
        """Listed sites that were no candidate."""
        every = ((name, place) for name, places in self._places.items() for place in places)
        return [site for site in every if site not in self._used]

    def account(self) -> str:
        """What became of listed sites that judge nothing, in a sentence; empty if there are none."""
        missed = self.unmatched()
        if not missed:
            return ""
        reasons = Counter(
            self._lost.get(site, "of proteins that are not in the input" if site[0] not in self._seen else "not used")
            for site in missed
        )
        told = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        shown = ", ".join(f"{name} {place}" for name, place in missed[:5])
        line = f"{len(missed)} of {self.listed} sites of the list are no candidate of these proteins ({told}): {shown}."
        there = sum(len(self._places[name]) for name in self._seen)
        if there >= 5 and self._one_further >= 0.9 * there and len(self._used) < 0.5 * there:
            line += (
                f" One residue further, {self._one_further} of {there} are candidates: does the list count from 0? "
                "Positions must count from 1."
            )
        return line


def read_truth(path: Path, task: Task, otherwise: str) -> Truth:
    """Reads a list of known sites: accession, 1-based position and perhaps a label (else they are positives).

    Raises:
        UserError: As :class:`Truth` and :func:`plm.data.sites.read_listings`; ``otherwise`` is no class.
    """
    if otherwise and otherwise not in task.classes:
        raise UserError(
            f"{otherwise!r} is none of the bundle's classes ({', '.join(task.classes)})", where="--truth-otherwise",
            fix="Give one of these",
        )
    default = task.classes[task.positive_index] if task.binary else None
    return Truth(read_listings(read_table(path, header=None), ("", "", ""), default, "--truth"), task, otherwise)


@dataclass(frozen=True)
class SiteAnswers:
    """What was predicted for the candidates of one protein.

    Attributes:
        shown: (n, K) probabilities, or (n, 1) numbers, as the tables show them.
        heights: (n,) probability of the positive class, of the called class, or the number.
        calls: n classes; empty strings for numbers.
        called: (n,) called positive; all True unless there are two classes.
    """

    shown: NDArray[np.float64]
    heights: NDArray[np.float64]
    calls: list[str]
    called: NDArray[np.bool_]


def judge(
    values: NDArray[np.float64], task: Task, point: OperatingPoint | None, threshold: Threshold = LIKELIEST
) -> SiteAnswers:
    """Calls the sites.

    Args:
        values: (n, K) probabilities or (n, 1) numbers of the bundle.
        task: Task of the bundle.
        point: Threshold and prevalence; None unless there are two classes.
        threshold: What calls among several classes are made by.
    """
    everything = np.ones(len(values), dtype=bool)
    if point is not None:
        at = task.positive_index
        positive = point.shown(values[:, at])
        shown = np.empty_like(values)
        shown[:, at], shown[:, 1 - at] = positive, np.round(1 - positive, DIGITS)
        called = point.called(positive)
        names = [task.classes[at if yes else 1 - at] for yes in called]
        return SiteAnswers(shown, positive, names, called)
    if task.target == "class":
        shown = np.round(values, DIGITS)
        called_classes = task.called(values, threshold)
        heights = shown[np.arange(len(values)), called_classes]
        return SiteAnswers(shown, heights, [task.classes[index] for index in called_classes], everything)
    return SiteAnswers(values, values[:, 0], [""] * len(values), everything)


@dataclass
class SiteTables:
    """Writes one protein after the other.

    Attributes:
        task: Task of the bundle.
        point: Threshold and prevalence of a two-class bundle, else None.
        model: Name and digest of the bundle.
        finished: False adds the column ``finished``, as the bundle's training was cut short.
        sites: Open predictions table, or None.
        status: Open status table, or None.
        gff: Writer of the GFF3 file, or None.
        gff_all: The GFF3 has every candidate, not only called ones.
    """

    task: Task
    point: OperatingPoint | None
    model: str
    finished: bool
    sites: TextIO | None = None
    status: TextIO | None = None
    gff: GffWriter | None = None
    gff_all: bool = False
    _table: PredictionsTable = field(init=False)

    def __post_init__(self) -> None:
        threshold = ("threshold",) if self.point is not None else ()
        before = ("id", "protein", "position", "residue", "label")
        self._table = PredictionsTable(self.task.classes, before, threshold, self.finished, DIGITS)
        if self.sites is not None:
            self._table.begin(self.sites)
        if self.status is not None:
            self.status.write("\t".join(STATUS_COLUMNS) + "\n")

    def skip(self, protein: Protein) -> None:
        """A record without answers: rejected, or without a candidate."""
        status = "rejected" if protein.rejected else "no candidate"
        self._status(protein, 0, status, protein.rejected or "; ".join(protein.changes))

    def add(self, protein: Protein, answers: SiteAnswers, labels: Sequence[str]) -> None:
        """A protein with an answer for each candidate."""
        self._write_sites(protein, answers, labels)
        chosen = [n for n in range(len(protein.places)) if self.gff_all or answers.called[n]]
        if self.gff is not None and chosen:
            self.gff.region(protein.id, protein.extent)
            for number in chosen:
                score = float(answers.heights[number])
                self.gff.feature(protein.id, protein.places[number], score, self._attributes(protein, answers, number))
        self._status(protein, int(answers.called.sum()), "done", "; ".join(protein.changes))

    def _write_sites(self, protein: Protein, answers: SiteAnswers, labels: Sequence[str]) -> None:
        if self.sites is None:
            return
        threshold = [f"{self.point.threshold:.{DIGITS + 1}f}"] if self.point is not None else []
        for number, place in enumerate(protein.places):
            residue = protein.sequence[protein.sites[number]]
            row = [f"{protein.id}|{place}", protein.accession, place, residue, labels[number]]
            cells = self._table.cells(row, answers.shown[number], answers.calls[number], threshold, self.model)
            self._table.write(self.sites, cells)

    def _attributes(self, protein: Protein, answers: SiteAnswers, number: int) -> Mapping[str, str]:
        place, residue = protein.places[number], protein.sequence[protein.sites[number]]
        fields = {"ID": f"{protein.id}|{place}", "Name": f"{residue}{place}", "residue": residue}
        if self.task.classes:
            fields["call"] = answers.calls[number]
            for name, value in zip(self.task.classes, answers.shown[number], strict=True):
                fields[f"p_{name}"] = f"{value:.{DIGITS}f}"
        if self.point is not None:
            fields["threshold"] = f"{self.point.threshold:.{DIGITS + 1}f}"
        return {**fields, "model": self.model}

    def _status(self, protein: Protein, called: int, status: str, details: str) -> None:
        if self.status is not None:
            row = (protein.id, protein.line, len(protein.sequence), len(protein.sites), called, status, details)
            self.status.write("\t".join(map(str, row)) + "\n")
