"""What predictions come to: counts, the figure and the report of plm_predict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plm.jobs.predict.queries import Queries
from plm.jobs.predict.verdicts import Rules, Verdicts
from plm.scoring.conformal import Intervals, LabelSets, binomial_interval, fewest_rows
from plm.telling.figures import GREY, colour, named, new_figure, save, shortened
from plm.telling.report import Report, plain
from plm.wording import counted

Floats = NDArray[np.float64]
DRIFT_SHARE = 0.2
"""Share of novel proteins above which, if it is also twice what was to be expected, the report warns of drift."""
MOST_ROWS = 1000
_MOST_CLASSES = 25
_SHOWN_CLASSES = 6
_BINS = 30


@dataclass
class PredictionCounts:
    """The findings, gathered block by block.

    Attributes:
        rules: Rules by which answers were called.
        records: Number of records of the input.
        rejected: Number of records that could not be used.
        answered: Number of records with an answer; of residue tasks the number of residues.
        called: Answers (or residues) by class, abstained ones not counted.
        best: Answers (or residues) by class as it would be called, abstained ones counted.
        novel_by_class: Novel ones by class as it would be called.
        abstained: Numbers of the records without a call on purpose.
        novel: Number of novel records.
        sizes: Number of classes in a set -> number of such sets.
        hits: Number of labelled records whose set or interval holds the truth.
        labelled: Number of labelled records with a set or an interval.
    """

    rules: Rules
    records: int = 0
    rejected: int = 0
    answered: int = 0
    called: Counter[str] = field(default_factory=Counter)
    best: Counter[str] = field(default_factory=Counter)
    novel_by_class: Counter[str] = field(default_factory=Counter)
    abstained: set[int] = field(default_factory=set)
    novel: int = 0
    sizes: Counter[int] = field(default_factory=Counter)
    hits: int = 0
    labelled: int = 0
    _confidence: list[Floats] = field(default_factory=list)
    _classes: list[NDArray[np.int32]] = field(default_factory=list)
    _distance: list[Floats] = field(default_factory=list)

    def add(self, queries: Queries, records: NDArray[np.int64], verdicts: Verdicts) -> None:
        """Takes a block's verdicts; of residue tasks those of the residues."""
        task = self.rules.task
        place = {name: index for index, name in enumerate(task.classes)}
        self.answered += len(verdicts.best)
        numbers = np.array([place.get(name, 0) for name in verdicts.best], np.int32)
        self._confidence.append(verdicts.confidence.astype(np.float32))
        self._classes.append(numbers)
        if task.target == "class":
            self.best.update(verdicts.best)
            pairs = zip(verdicts.best, verdicts.abstained, strict=True)
            self.called.update(name for name, abstained in pairs if not abstained)
            self.novel_by_class.update(name for name, new in zip(verdicts.best, verdicts.novel, strict=True) if new)
        if task.level == "residue":
            return
        self.abstained.update(records[verdicts.abstained].tolist())
        self.novel += int(verdicts.novel.sum())
        if verdicts.distance is not None:
            self._distance.append(verdicts.distance.astype(np.float32))
        if verdicts.sets is not None:
            self.sizes.update(verdicts.sets.sum(axis=1).tolist())
        self._score(queries.columns, records, verdicts, place)

    def _score(
        self, columns: Mapping[str, list[str]], records: NDArray[np.int64], verdicts: Verdicts,
        place: Mapping[str, int],
    ) -> None:
        """Counts how often the truth is in the set, where the input tells it and the row did not make the bundle."""
        if "label" not in columns:
            return
        splits = columns.get("split")
        for row, record in enumerate(records.tolist()):
            label = columns["label"][record]
            if splits is not None and splits[record] not in ("", "test"):
                continue
            if verdicts.sets is not None and label in place:
                self.labelled += 1
                self.hits += bool(verdicts.sets[row, place[label]])
            elif verdicts.ends is not None and (truth := _number(label)) is not None:
                self.labelled += 1
                self.hits += bool(verdicts.ends[0][row] <= truth <= verdicts.ends[1][row])

    @property
    def confidence(self) -> Floats:
        return np.concatenate(self._confidence).astype(np.float64) if self._confidence else np.empty(0)

    @property
    def classes(self) -> NDArray[np.int32]:
        return np.concatenate(self._classes) if self._classes else np.empty(0, np.int32)

    @property
    def distance(self) -> Floats:
        return np.concatenate(self._distance).astype(np.float64) if self._distance else np.empty(0)

    @property
    def drifts(self) -> bool:
        """Whether so many proteins are novel that the set as a whole is of another kind than the training proteins."""
        novelty = self.rules.novelty
        if novelty is None or not self.answered:
            return False
        low, _ = binomial_interval(self.novel, self.answered)  # a few novel ones of a few proteins tell nothing
        return low > novelty.share and self.novel / self.answered > max(DRIFT_SHARE, 2 * novelty.share)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _unit(rules: Rules) -> str:
    return {"sequence": "proteins", "site": "sites", "residue": "residues"}[rules.task.level]


# --------------------------------------------------------------------------------------------------------- figure


def predictions_figure(counts: PredictionCounts, path: str | Path) -> None:
    """Histograms: how sure the calls are (or the numbers), and how far from the training proteins."""
    rules = counts.rules
    panels = 2 if rules.novelty is not None and len(counts.distance) else 1
    figure, axes = new_figure(5.2 * panels if panels > 1 else 6.5, 4.0, panels)
    _confidence_panel(axes[0, 0], counts)
    if panels > 1:
        _distance_panel(axes[0, 1], counts)
    save(figure, path)


def _confidence_panel(panel: Any, counts: PredictionCounts) -> None:
    rules, values = counts.rules, counts.confidence
    if rules.task.target == "number":
        panel.hist(values, bins=_BINS, color=colour(0))
        panel.set(title="Predicted numbers", xlabel="Predicted number", ylabel=_unit(rules).capitalize())
        return
    order = [name for name, _ in counts.best.most_common()]
    shown = order if len(order) <= _SHOWN_CLASSES else order[: _SHOWN_CLASSES - 1]
    place = {name: index for index, name in enumerate(rules.task.classes)}
    parts = [values[counts.classes == place[name]] for name in shown]
    names = [named(shortened(rules.names[place[name]], 24)) for name in shown]
    if len(order) > len(shown):
        rest = [place[name] for name in order[len(shown) :]]
        parts.append(values[np.isin(counts.classes, rest)])
        names.append(f"{len(rest)} other classes")
    edges = np.linspace(0, 1, _BINS + 1)
    panel.hist(parts, bins=edges, stacked=True, color=[colour(index) for index in range(len(parts))], label=names)
    panel.set(title="How sure the calls are", xlabel="Probability of the called class", xlim=(0, 1))
    panel.set_ylabel(_unit(rules).capitalize())
    panel.legend(loc="upper left", frameon=False)


def _distance_panel(panel: Any, counts: PredictionCounts) -> None:
    novelty = counts.rules.novelty
    assert novelty is not None
    distance = counts.distance
    # A few proteins very far away would press all others into one bar.
    top = max(novelty.threshold * 1.5, float(novelty.distances[-1]), float(np.quantile(distance, 0.99))) * 1.02
    edges = np.linspace(0, max(top, 1e-6), _BINS + 1)
    beyond = np.minimum(distance, edges[-1])
    novel = distance > novelty.threshold
    parts, shades = [beyond[~novel], beyond[novel]], [colour(0), colour(1)]
    panel.hist(parts, bins=edges, stacked=True, color=shades, label=["like training proteins", "novel"])
    # What was to be expected of as many proteins of the training kind.
    ranks = np.interp(edges, novelty.distances, np.linspace(0, 1, len(novelty.distances)), left=0, right=1)
    known = "validation" if novelty.from_validation else "training"
    panel.stairs(np.diff(ranks) * len(distance), edges, color="black", linewidth=1.2, label=f"{known} proteins")
    panel.axvline(novelty.threshold, color=GREY, linestyle="--", linewidth=1.2, label="threshold")
    panel.set(title="How far from the training proteins", xlabel=f"Mean distance to the nearest {novelty.k}")
    panel.set_ylabel(_unit(counts.rules).capitalize())
    panel.legend(loc="upper right", frameon=False)


# --------------------------------------------------------------------------------------------------------- report


def first_line(counts: PredictionCounts, finished: bool) -> str:
    """The sentence that a reader must see."""
    rules = counts.rules
    lead = "" if finished else "The bundle's training was cut short (unfinished). "
    records = f"{counts.answered:,} of {counts.records:,} records"
    if rules.task.level == "residue":
        used = counts.records - counts.rejected
        records = f"{used:,} of {counts.records:,} proteins ({counts.answered:,} residues)"
    if rules.task.target == "number":
        values = counts.confidence
        text = f"{records} predicted: median {np.median(values):.4g}, from {values.min():.4g} to {values.max():.4g}"
    else:
        place = dict(zip(rules.task.classes, rules.names, strict=True))
        ranked = counts.called.most_common()
        told = [f"{count:,} {shortened(plain(place[name]), 40)}" for name, count in ranked[:_SHOWN_CLASSES]]
        more = sum(count for _, count in ranked[_SHOWN_CLASSES:])
        told += [f"{more:,} of {len(ranked) - _SHOWN_CLASSES} other classes"] if more else []
        text = f"{records} predicted: {', '.join(told) or 'no call'}"
    if rules.abstain != "never":
        text += f"; {len(counts.abstained):,} abstained"
    if rules.novelty is not None:
        text += f"; {counts.novel:,} unlike the training proteins (novel)"
    return lead + text


def prediction_report(
    counts: PredictionCounts, *, model: str, finished: bool, about: Sequence[str], notes: Sequence[str],
    outputs: Sequence[str], explain: Callable[[Report], None] = lambda report: None,
) -> Report:
    """The report.

    Args:
        counts: Answers, calls and novelty, counted block by block.
        model: Name and digest of the bundle.
        finished: False if the bundle's training was cut short.
        about: Lines on what was done.
        notes: Warnings, in sentences.
        outputs: Names of the outputs there are: ``figure``, ``predictions``, ``residues``, ``submission``, ``status``.
        explain: Adds to the report what the answers rest on, behind the predictions.
    """
    rules = counts.rules
    report = Report(first_line(counts, finished) + ".")
    if counts.drifts:
        report.paragraph(
            f"**These are other proteins than the model learned from.** {_percent(counts.novel / counts.answered)} of "
            f"them are novel, where about {_percent(rules.novelty.share if rules.novelty else 0)} of proteins like "
            "those of training would be. Do not rely on their calls; compare the two sets (drift), or train with "
            "labelled proteins of this kind."
        )
    if "figure" in outputs:
        report.image("figure")
    if rules.task.target == "class":
        _counts(report, counts)
    if "predictions" in outputs:
        report.heading("Predictions")
        if counts.records <= MOST_ROWS and rules.task.level != "residue":
            report.table("predictions", title="Predictions")  # classes name columns
        else:
            report.link("predictions")
        for name in ("residues", "submission"):
            if name in outputs:
                report.link(name)
    explain(report)
    if rules.task.level != "residue":
        report.heading("How far to believe them")
        _coverage(report, counts)
        _novelty(report, counts)
    if rules.abstain != "never":
        why = {
            "novel": "novel proteins",
            "unsure": "proteins whose set is not a single class",
            "either": "proteins that are novel or whose set is not a single class",
        }[rules.abstain]
        report.paragraph(
            f"No call is made for {why}: {len(counts.abstained):,} of {counts.answered:,}"
            + (". The column best tells what would have been called." if rules.task.target == "class" else ".")
        )
    report.heading("What was done")
    line = f"{counted(counts.records, 'record')}, {counts.rejected:,} rejected; the status table names each."
    report.bullets([line, f"Model {plain(model)}.", *about, *(plain(note) for note in notes)])
    return report


def _counts(report: Report, counts: PredictionCounts) -> None:
    rules = counts.rules
    place = {name: index for index, name in enumerate(rules.task.classes)}
    report.heading("Calls")
    header = ["Class", "Called", "Mean probability"]
    known = rules.novelty is not None and rules.task.level != "residue"
    header += ["Novel among all that would be called so"] if known else []
    rows = []
    ranked = sorted(rules.task.classes, key=lambda name: (-counts.best[name], place[name]))
    values, classes = counts.confidence, counts.classes
    for name in ranked[:_MOST_CLASSES]:
        mine = values[classes == place[name]]
        cells = [shortened(plain(rules.names[place[name]]), 60), f"{counts.called[name]:,}"]
        cells.append(f"{mine.mean():.3f}" if len(mine) else "")
        rows.append([*cells, *([f"{counts.novel_by_class[name]:,}"] if known else [])])
    report.rows(header, rows)
    if len(ranked) > _MOST_CLASSES:
        rest = counted(len(ranked) - _MOST_CLASSES, "further class", "further classes")
        report.paragraph(f"Not shown here: {rest}.")


def _coverage(report: Report, counts: PredictionCounts) -> None:
    rules, sets = counts.rules, counts.rules.uncertainty
    if sets is None:
        report.paragraph(
            "The bundle has no scores of validation rows, so there are no sets of classes (or intervals) of a known "
            "coverage, and probabilities stand alone."
        )
        return
    what = "set of classes" if isinstance(sets, LabelSets) else "interval"
    share = _percent(sets.coverage)
    text = (
        f"The {what} of a {_unit(rules)[:-1]} holds the truth for {share} of new {_unit(rules)} **if these are like "
        "the validation rows, as if drawn from the same pot (exchangeable)**. For proteins of other families, "
        "organisms or kinds nothing is promised; nor for each single family, since the share is an average. The "
        "validation rows also served to choose what the model is, so that the true share may be a little lower."
    )
    report.paragraph(text)
    if isinstance(sets, Intervals):
        width = "unlimited" if np.isinf(sets.radius) else f"the number plus and minus {sets.radius:.4g}"
        report.paragraph(f"The interval is {width}, from the errors on {sets.rows:,} validation rows.")
        if np.isinf(sets.radius):
            report.paragraph(f"A coverage of {share} needs at least {fewest_rows(sets.coverage):,} validation rows.")
    else:
        _sets(report, counts, sets)
    if counts.labelled:
        low, high = binomial_interval(counts.hits, counts.labelled)
        fewer = " **These are fewer than promised: the records are not like the validation rows.**"
        report.paragraph(
            f"Of {counts.labelled:,} records whose true label the input tells (rows of the splits train and valid are "
            f"not counted), {_percent(counts.hits / counts.labelled)} "
            f"have it in their {what} (95 % interval {_percent(low)} to {_percent(high)}); {share} were promised."
            + (fewer if high < sets.coverage else "")
        )


def _sets(report: Report, counts: PredictionCounts, sets: LabelSets) -> None:
    rules = counts.rules
    several = sum(count for size, count in counts.sizes.items() if size > 1)
    report.paragraph(
        f"Sets of a single class: {counts.sizes[1]:,}; of several: {several:,}; empty: {counts.sizes[0]:,}"
        + (" (no class is as likely as true ones usually are)." if counts.sizes[0] else ".")
    )
    if sets.unlimited:
        names = ", ".join(shortened(plain(rules.names[index]), 40) for index in sets.unlimited[:10])
        report.paragraph(
            f"Too few validation rows for a coverage of {_percent(sets.coverage)} (at least "
            f"{fewest_rows(sets.coverage):,} are needed): always in the set "
            f"{'are' if len(sets.unlimited) > 1 else 'is'} {names}{', ...' if len(sets.unlimited) > 10 else ''}."
        )
    covered = sets.covered()
    order = sorted(range(len(covered)), key=lambda index: (covered[index] != covered[index], covered[index]))
    rows = [
        [
            shortened(plain(rules.names[index]), 60), f"{sets.counts[index]:,}",
            _percent(covered[index]) if sets.counts[index] else "unknown",
        ]
        for index in order[:_MOST_CLASSES]
    ]
    report.rows(["Class", "Validation rows", "of these with their class in the set"], rows)
    if not sets.by_class:
        report.paragraph(
            "The coverage is an average over all validation rows: a class with a low share above is covered less than "
            "promised. Choose the coverage for each class to mend that, at the price of larger sets."
        )


def _novelty(report: Report, counts: PredictionCounts) -> None:
    novelty = counts.rules.novelty
    if novelty is None:
        report.paragraph("The bundle has no training proteins to compare with, so nothing is said of novelty.")
        return
    kind = "validation" if novelty.from_validation else "training"
    text = (
        f"A {_unit(counts.rules)[:-1]} is novel if its mean distance to the {novelty.k} nearest of "
        f"{len(novelty.ids):,} training proteins (a sample that the bundle holds) is above "
        f"{novelty.threshold:.4f}; at most {_percent(novelty.share)} of {novelty.rows:,} {kind} proteins are. "
        "1 means one standard deviation in each number of the representation. "
        "The nearest training protein is that of the sample, and distance is not sequence identity."
    )
    if not novelty.from_validation:
        text += (
            " The bundle holds no distances of validation proteins, so the threshold comes from the distances of the "
            "training proteins to each other."
        )
    report.paragraph(text)
    if counts.answered:
        low, high = binomial_interval(counts.novel, counts.answered)
        report.paragraph(
            f"{counts.novel:,} of {counts.answered:,} are novel: {_percent(counts.novel / counts.answered)} (95 % "
            f"interval {_percent(low)} to {_percent(high)})."
        )
