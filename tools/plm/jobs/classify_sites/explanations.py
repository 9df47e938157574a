"""Why sites are called: what each member says and the nearest training rows, what every substitution around the
strongest calls does, and sequence logos of all calls."""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from plm import stage
from plm.data.task import Task, Threshold
from plm.data.windows import window as cut_window
from plm.jobs.classify_sites.call_reasons import CallReasons
from plm.jobs.classify_sites.candidates import Protein
from plm.jobs.classify_sites.logo import WIDEST, LogoCounts, logo_figure, logo_reading
from plm.jobs.classify_sites.tables import SiteAnswers, judge
from plm.model.bundles.predictor import Reasons
from plm.scoring.mutagenesis import Ask, EffectMap, Floats, Subject, effect_map, plan, write_maps
from plm.scoring.operating_point import OperatingPoint
from plm.telling.mutagenesis_figure import mutagenesis_figure, mutagenesis_reading
from plm.telling.report import Report
from plm.wording import counted

NO_CALL = "No site is called, so there is nothing to mutate."


@dataclass
class StrongestCalls:
    """The called sites of highest probability (or number), each context once, with what a map of them needs.

    Attributes:
        most: How many are kept.
        window: Width of the bundle's window; 0 is the whole protein.
        reach: Residues on each side of a site that are mutated where the bundle sees the whole protein.
    """

    most: int
    window: int
    reach: int
    _kept: list[tuple[tuple[float, int, int], Subject]] = field(default_factory=list)
    _proteins: int = 0

    def add(self, protein: Protein, answers: SiteAnswers) -> None:
        """Takes the strongest calls of one more protein."""
        self._proteins += 1
        heights = np.where(answers.called, answers.heights, -np.inf)
        for index in np.argsort(-heights, kind="stable")[: int(answers.called.sum())]:
            # Among equals the first in the file.
            rank = (float(heights[index]), -self._proteins, -protein.places[index])
            if len(self._kept) == self.most and rank < self._kept[0][0]:
                return
            subject = self._subject(protein, int(index))
            if any((one.context, one.site) == (subject.context, subject.site) for _, one in self._kept):
                continue
            if len(self._kept) < self.most:
                heapq.heappush(self._kept, (rank, subject))
            else:
                heapq.heapreplace(self._kept, (rank, subject))

    def _subject(self, protein: Protein, index: int) -> Subject:
        at, place = protein.sites[index], protein.places[index]
        context, site = cut_window(protein.sequence, at, self.window)
        half = self.window // 2 or self.reach
        places = range(max(0, site - half), min(len(context), site + half + 1))
        numbers = tuple(protein.place(one + at - site) for one in places)
        return Subject(f"{protein.id}|{place}", context, tuple(places), numbers, site, place)

    def subjects(self) -> list[Subject]:
        """The strongest first."""
        return [subject for _, subject in sorted(self._kept, key=lambda entry: entry[0], reverse=True)]


@dataclass
class Explanations:
    """What is gathered for the explanations that the user wants, and what is made of it at the end.

    Attributes:
        task: Task of the bundle.
        point: Threshold and prevalence of a two-class bundle, else None.
        threshold: What calls among several classes are made by.
        calls: Strongest calls for maps; None: no maps are wanted.
        logo: Counts for logos; None: no logos are wanted.
        reasons: Table of what the members say of each call; None: it is not wanted.
        maps: Maps of the strongest calls, once they are made.
        drawn: How many of them the figure shows.
    """

    task: Task
    point: OperatingPoint | None
    threshold: Threshold
    calls: StrongestCalls | None = None
    logo: LogoCounts | None = None
    reasons: CallReasons | None = None
    maps: list[EffectMap] = field(default_factory=list, init=False)
    drawn: int = field(default=0, init=False)

    @classmethod
    def wanted(
        cls, task: Task, point: OperatingPoint | None, threshold: Threshold, window: int, *, maps: bool, calls: int,
        logo: bool, reach: int, reasons: CallReasons | None = None,
    ) -> Explanations:
        """What the user asked for.

        Args:
            task: Task of the bundle.
            point: Threshold and prevalence of a two-class bundle, else None.
            threshold: What calls among several classes are made by.
            window: Width of the bundle's window; 0 is the whole protein.
            maps: Whether mutagenesis maps are wanted.
            calls: How many calls are mapped.
            logo: Whether logos are wanted.
            reach: Residues on each side of a site where the bundle sees the whole protein.
            reasons: Table of what the members say of each call; None: it is not wanted.
        """
        strongest = StrongestCalls(calls, window, reach) if maps else None
        counts = LogoCounts(task, min(window // 2 or reach, WIDEST)) if logo else None
        return cls(task, point, threshold, strongest, counts, reasons)

    def add(self, protein: Protein, answers: SiteAnswers, reasons: Reasons | None) -> None:
        """Takes a protein with its answers, as the tables do, and with what stood behind them if that is told."""
        if self.reasons is not None and reasons is not None:
            self.reasons.add(protein, answers, reasons)
        if self.calls is not None:
            self.calls.add(protein, answers)
        if self.logo is not None:
            self.logo.add(protein, answers)

    def finish(self) -> None:
        """All proteins have been given."""
        if self.reasons is not None:
            self.reasons.finish()

    def mutate(self, ask: Ask, log: logging.Logger) -> None:
        """Makes the maps of the strongest calls, all variants of a call together."""
        subjects = self.calls.subjects() if self.calls is not None else []
        if not subjects:
            return
        log.info("%s", plan(subjects, f"around {counted(len(subjects), 'call')}"))
        progress = stage.Progress(log, len(subjects), "calls", every=10.0)
        for subject in subjects:
            self.maps.append(effect_map(subject, self.task, ask, self._show))
            progress.advance(1)

    def _show(self, values: Floats) -> tuple[Floats, list[str]]:
        answers = judge(values, self.task, self.point, self.threshold)
        return answers.shown, answers.calls

    def write(self, outputs: Callable[[str], Path | None], model: str) -> None:
        """Writes the tables and figures.

        Args:
            outputs: Where to write ``mutagenesis``, ``mutagenesis_figure`` and ``logo``; None: not wanted.
            model: Name and digest of the bundle.
        """
        if (path := outputs("mutagenesis")) is not None:
            with path.open("w", encoding="utf-8", newline="\n") as handle:
                write_maps(handle, self.maps, model, sites=True)
        if (path := outputs("mutagenesis_figure")) is not None:
            self.drawn = mutagenesis_figure(self.maps, path, numbers=self.task.target == "number", none=NO_CALL)
        if self.logo is not None and (path := outputs("logo")) is not None:
            logo_figure(self.logo, path)

    def report(self, report: Report, outputs: list[str]) -> None:
        """Shows the figures in a report, each with how to read it.

        Args:
            report: Report that is added to.
            outputs: Names of the outputs there are.
        """
        mine = [name for name in ("reasons", "logo", "mutagenesis_figure", "mutagenesis") if name in outputs]
        if not mine:
            return
        report.heading("Why these calls")
        if self.reasons is not None:
            self.reasons.report(report)
            report.link("reasons", "Reasons of each call")
        if "logo" in mine and self.logo is not None:
            report.image("logo").paragraph(logo_reading(self.logo))
        if "mutagenesis_figure" in mine:
            report.image("mutagenesis_figure")
        if self.calls is not None:
            report.paragraph(mutagenesis_reading(self.maps, self.drawn, "call") if self.maps else NO_CALL)
        if "mutagenesis" in mine:
            report.link("mutagenesis", "Table of all substitutions")
