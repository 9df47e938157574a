"""What a classifier's training tells its user: whether the linear head is enough, all heads beside all baselines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from plm.data.predictions_table import PREDICTOR, TOGETHER
from plm.data.task import Threshold
from plm.model.combination import LANGUAGE_MODEL
from plm.scoring.assessment import METRIC_COLUMNS, Assessment, interval_text
from plm.scoring.comparison import Comparison
from plm.scoring.intervals import FEWEST_GROUPS
from plm.scoring.metrics import LOWER_IS_BETTER
from plm.telling import figures
from plm.telling.evaluation_report import rows_told
from plm.telling.predictor_lines import choice_rows, how_chosen, limits
from plm.telling.report import Report, plain
from plm.wording import counted, metric_name, number, several_called

if TYPE_CHECKING:
    import pandas as pd

    from plm.scoring.conformal import Coverage

_BESIDE = {
    "binary": ("auprc", "mcc", "accuracy", "ece"),
    "multiclass": ("macro_auroc", "mcc", "accuracy", "ece"),
    "number": ("pearson", "rmse", "r2"),
}
_MOST_CLASSES = 12
_PARTS = {"valid": "validation"}


@dataclass(frozen=True)
class ClassifierFindings:
    """What a training found.

    Attributes:
        assessment: Heads (the chosen one first) and baselines on the rows that judge.
        chosen: Name of the chosen head.
        linear: Name of the best linear head by validation rows.
        other: Name of the best head that is not linear, likewise.
        by_user: Whether the user chose the head.
        validation: Main metric of each head on the validation rows.
        settings: Settings of each head, in words.
        uncalibrated: Calibration error of each head before its temperature, on the rows that judge; empty for numbers.
        valid_scores: Every score of the chosen head on the validation rows: (metric, class) to value.
        counts: Training, validation and test rows.
        split_by: How rows were split, in words.
        about: Sentence on how the bundle's head came to be.
        threshold: What calls are made by; None for numbers.
        temperature: Temperature of the bundle.
        loud: Sentence that must come first; empty if there is none.
        notes: Further sentences that a reader should know.
        resamples: Number of bootstrap resamples.
        baselines: (name, how it works, setting) of each baseline.
        coverage: What sets or intervals of the chosen head came to on the test rows, or None.
        why_uncalibrated: Why neither temperature nor threshold was fitted; empty if they were, and of numbers.
        predictor: The manifest's ``predictor`` with its combination, where the bundle has one.
    """

    assessment: Assessment
    chosen: str
    linear: str
    other: str
    by_user: bool
    validation: Mapping[str, float]
    settings: Mapping[str, str]
    uncalibrated: Mapping[str, float]
    valid_scores: Mapping[tuple[str, str], float]
    counts: Mapping[str, int]
    split_by: str
    about: str
    threshold: Threshold | None
    temperature: float
    loud: str = ""
    notes: Sequence[str] = field(default_factory=tuple)
    resamples: int = 1000
    baselines: Sequence[tuple[str, str, str]] = ()
    coverage: Coverage | None = None
    why_uncalibrated: str = ""
    predictor: Mapping[str, Any] = field(default_factory=dict)

    @property
    def combined(self) -> bool:
        """Whether the bundle answers with sequence members, alone or beside the chosen head."""
        return bool(self.predictor.get("combination"))

    @property
    def answering(self) -> str:
        """Name of what the bundle answers with: the predictor, or the chosen head alone."""
        return PREDICTOR if self.combined else self.chosen

    @property
    def decided(self) -> list[str]:
        """What the validation rows chose."""
        decisions = [] if self.by_user else ["head"]
        decisions += ["combination"] if self.predictor.get("judged") else []
        decisions += ["epoch"] if _has_network(self) else []
        if self.assessment.evaluation.kind != "number" and not self.why_uncalibrated:
            decisions += ["temperature", f"threshold{'' if self.assessment.evaluation.kind == 'binary' else 's'}"]
        return decisions

    def compared(self, first: str, second: str) -> Comparison:
        """The paired comparison of two models, in this order."""
        for one in self.assessment.comparisons:
            if (one.first, one.second) == (first, second):
                return one
            if (one.first, one.second) == (second, first):
                return Comparison(
                    first, second, one.metric, one.second_value, one.first_value, -one.difference, -one.high, -one.low,
                    one.p_value,
                )
        raise KeyError((first, second))


def _has_network(findings: ClassifierFindings) -> bool:
    """Whether a feed-forward network was trained, whose epoch the validation rows choose."""
    return "feed-forward network" in findings.validation


def first_lines(findings: ClassifierFindings) -> list[str]:
    """The sentences that a reader must see: warning, score, what is combined, whether the linear head is enough, the
    best baseline."""
    assessment = findings.assessment
    line = assessment.line(findings.answering, assessment.metric)
    name = metric_name(assessment.metric)
    evaluation = assessment.evaluation
    how = "chosen by the user" if findings.by_user else "chosen on the validation rows"
    lines = [findings.loud] if findings.loud else []
    who = "The predictor" if findings.combined else f"{findings.chosen.capitalize()} ({how})"
    lines.append(
        f"{who}: {name} {number(line.value)}{interval_text(line.low, line.high)} on "
        f"{counted(line.n, f'{evaluation.splits} row')} in {counted(line.groups, 'group')}"
    )
    lines += _predictor_lines(findings, how)
    if evaluation.splits == "validation":
        lines.append(
            "There are no test rows: the validation rows, which made choices, judge, so that scores are too good"
        )
    lines.append(linear_line(findings))
    baseline = assessment.best_baseline
    if baseline:
        one = findings.compared(findings.answering, baseline)
        shown = "" if one.verdict in ("beats", "is worse than") else " (not shown to be better)"
        name = baseline.removeprefix("baseline: ")
        lines.append(f"Against the best trivial baseline ({name}): {_difference(one)}{shown}")
    return [f"{text.rstrip('.')}." for text in lines if text]


def _predictor_lines(findings: ClassifierFindings, how: str) -> list[str]:
    """Which members the predictor has, what the language model adds, and when it may not be trusted."""
    about, assessment = findings.predictor, findings.assessment
    if not findings.combined:
        if about.get("judged"):
            return ["Of the head, sequence members and both together the rows that chose preferred the head alone"]
        return [str(about["why_not"])] if about.get("why_not") else []
    held = about["combination"]
    names = [f"the language model ({findings.chosen} on embeddings, {how})" if name == LANGUAGE_MODEL else name
             for name in held["members"]]
    ways = {"mean": "as a plain mean of calibrated answers", "stacked": "with fitted weights"}
    told = f"It combines {', '.join(names[:-1])} and {names[-1]}, {ways.get(held['way'], 'calibrated')}"
    lines = [told if len(names) > 1 else f"It is {names[0]} alone, calibrated"]
    line = assessment.line(findings.chosen, assessment.metric)
    alone = f"{metric_name(assessment.metric)} {number(line.value)}{interval_text(line.low, line.high)}"
    if LANGUAGE_MODEL not in held["members"]:
        lines.append(f"Training and validation rows left the language model out ({findings.chosen} alone: {alone})")
    else:
        one = findings.compared(PREDICTOR, f"{TOGETHER} together")
        scores = f"with it and without it {_difference(one)}; alone it has {alone}"
        verdicts = {
            "beats": "The language model adds to what the sequence members say, beyond chance",
            "is worse than": "The language model takes from what the sequence members say, beyond chance",
            "cannot be told from": "What the language model adds to the sequence members cannot be told",
        }
        lines.append(f"{verdicts.get(one.verdict, 'It is not shown that the language model adds anything')} ({scores})")
    return [*lines, limits(about)]


def linear_line(findings: ClassifierFindings) -> str:
    """Whether the linear head is enough, with the paired interval of the difference."""
    one = findings.compared(findings.other, findings.linear)
    scores = f"{one.first} against {one.second}: {_difference(one)}"
    if one.verdict == "cannot be told from":
        return f"Whether the linear head is enough cannot be told ({scores})"
    if one.verdict == "beats":
        return f"The linear head is not enough ({scores}, beyond chance)"
    if one.verdict == "is worse than":
        return f"The linear head is enough, and better ({scores}, beyond chance)"
    return f"The linear head is enough as far as these rows show: no other is shown to be better ({scores})"


def _difference(one: Comparison) -> str:
    told = f"{metric_name(one.metric)} {number(one.first_value)} and {number(one.second_value)}"
    if not math.isfinite(one.low):
        return f"{told}, no interval"
    return f"{told}, difference {one.difference:+.3f}, 95 % interval {one.low:+.3f} to {one.high:+.3f}"


def metrics_table(findings: ClassifierFindings) -> pd.DataFrame:
    """Every score of heads and baselines, calibration errors before calibration, and the validation scores."""
    import pandas as pd

    table = findings.assessment.metrics_table()
    evaluation = findings.assessment.evaluation
    groups = str(findings.assessment.groups)
    rows = []
    for model, value in findings.uncalibrated.items():
        note = "not calibrated" if findings.why_uncalibrated else "before the temperature of the validation rows"
        own = ["ece_uncalibrated", "all", f"{value:.6g}", "", "", str(len(evaluation.rows)), groups]
        rows.append([model, evaluation.splits, "all", *own, "", "", "", note])
    if findings.coverage is not None:
        low, high = findings.coverage.interval
        name = f"coverage_{100 * findings.coverage.promised:.0f}"
        note = f"sets or intervals from validation rows; mean size {findings.coverage.size:.6g}"
        own = [
            name,
            "all",
            f"{findings.coverage.share:.6g}",
            f"{low:.6g}",
            f"{high:.6g}",
            str(findings.coverage.rows),
            groups,
        ]
        rows.append([findings.answering, evaluation.splits, "all", *own, "", "", "", note])
    valid = str(findings.counts["valid"])
    note = f"chose {', '.join(findings.decided)}: optimistic" if findings.decided else "chose nothing"
    for (metric, name), value in findings.valid_scores.items():
        told = "" if math.isnan(value) else f"{value:.6g}"
        rows.append([findings.answering, "valid", "all", metric, name, told, "", "", valid, "", "", "", "", note])
    for model, value in findings.validation.items():
        if model != findings.answering:
            told = "" if math.isnan(value) else f"{value:.6g}"
            metric = findings.assessment.metric
            rows.append([model, "valid", "all", metric, "all", told, "", "", valid, "", "", "", "", note])
    return pd.concat([table, pd.DataFrame(rows, columns=list(METRIC_COLUMNS))], ignore_index=True)


def heads_figure(findings: ClassifierFindings, path: str | Path) -> None:
    """Main metric of every head and baseline with its interval; validation scores as open marks."""
    assessment = findings.assessment
    models = assessment.evaluation.models
    figure, axes = figures.new_figure(7.2, 1.2 + 0.42 * len(models))
    panel = axes[0, 0]
    colours = figures.method_colours([one.name for one in models], [one.name for one in models if one.baseline])
    marks: dict[str, str] = {}
    for place, model in enumerate(reversed(models)):
        line, colour = assessment.line(model.name, assessment.metric), colours[model.name]
        if math.isfinite(line.low):
            panel.plot([line.low, line.high], [place, place], color=colour, linewidth=2.4)
        kind = "baseline" if model.baseline else "chosen head" if model.name == findings.chosen else "head"
        marks[kind] = "s" if model.baseline else "D" if model.name == findings.chosen else "o"
        if findings.combined and model.name == PREDICTOR:
            kind = PREDICTOR
            marks[kind] = "*"
        elif model.role == TOGETHER:
            kind = TOGETHER
            marks[kind] = "^"
        panel.plot(line.value, place, marks[kind], color=colour, markersize=8)
        valid = findings.validation.get(model.name, math.nan)
        if math.isfinite(valid):
            marks["validation rows"] = "o"
            panel.plot(valid, place, "o", markerfacecolor="none", markeredgecolor=colour, markersize=8)
    for kind, mark in marks.items():
        fill = "none" if kind == "validation rows" else "black"
        panel.plot([], [], mark, color="black", markerfacecolor=fill, markersize=8, label=kind)
    panel.set_yticks(range(len(models)), [figures.shortened(model.name, 32) for model in reversed(models)])
    panel.set_ylim(-0.6, len(models) - 0.4)
    bars = ", bars: 95 % intervals" if assessment.groups >= FEWEST_GROUPS else ""
    panel.set_xlabel(f"{metric_name(assessment.metric)} ({assessment.evaluation.splits} rows{bars})")
    if assessment.metric not in ("rmse", "mae", "r2"):
        panel.set_xlim(right=min(panel.get_xlim()[1], 1.0) if panel.get_xlim()[1] > 0 else None)
    panel.set_title("Heads beside baselines")
    panel.legend(loc="best")
    figures.save(figure, path)


def search_figure(
    trials: Sequence[Mapping[str, Any]], importance: Sequence[Mapping[str, float]], metric: str, path: str | Path
) -> None:
    """How the search went, and how much each parameter explains of the differences between trials.

    Args:
        trials: Rows of the search's table; several folds are drawn one by one.
        importance: One for each fold; averaged.
        metric: The main metric, a column of the trials.
        path: Where the PNG goes.
    """
    figure, axes = figures.new_figure(10.0, 4.0, 2, 1)
    left, right = axes.flat
    for place, fold in enumerate(dict.fromkeys(row["fold"] for row in trials)):
        own = [row for row in trials if row["fold"] == fold]
        name = f", fold {fold}" if fold != "" else ""
        numbers = [row["trial"] for row in own]
        left.plot(
            numbers, [row[metric] for row in own], "o", color=figures.colour(place), alpha=0.6, label=f"trial{name}"
        )
        left.plot(
            numbers, [row["best_so_far"] for row in own], "-", color=figures.colour(place), label=f"best so far{name}"
        )
    left.set(xlabel="Trial", ylabel=f"{metric_name(metric)} (validation)", title="Search")
    left.legend(loc="best")
    known = [one for one in importance if one]
    if known:
        names = sorted(known[0], key=lambda key: np.mean([one.get(key, 0.0) for one in known]))
        values = [float(np.mean([one.get(key, 0.0) for one in known])) for key in names]
        right.barh(range(len(names)), values, color=figures.colour(0))
        right.set_yticks(range(len(names)), [figures.shortened(key.replace("_", " "), 24) for key in names])
        right.set(xlabel="Share of the differences explained (fANOVA)", title="Importance")
    else:
        right.set(title="Importance: too few finished trials")
        right.set_xticks([])
        right.set_yticks([])
    figures.save(figure, path)


def write_up(
    findings: ClassifierFindings, *, images: Sequence[str], tables: Sequence[str], best_trial: str = ""
) -> Report:
    """The report.

    Args:
        findings: Scores of heads and baselines, and how the head came to be.
        images: Names of the figure outputs that exist: heads, confusion, curves, search_figure.
        tables: Names of the table outputs that exist: metrics, search_history.
        best_trial: The search's best settings in words; empty without a search.
    """
    assessment = findings.assessment
    evaluation = assessment.evaluation
    lines = first_lines(findings)
    report = Report(plain(" ".join(lines)))
    report.heading("All heads beside all baselines", 1)
    beside = [name for name in _BESIDE[evaluation.kind] if name != assessment.metric]
    header = ["", metric_name(assessment.metric), *map(metric_name, beside), "Validation", "Setting"]
    cells = []
    about = {name: setting for name, _, setting in findings.baselines}
    for model in evaluation.models:
        line = assessment.line(model.name, assessment.metric)
        name = f"**{plain(model.name)}**" if model.name == findings.answering else plain(model.name)
        values = [number(assessment.line(model.name, metric).value) for metric in beside]
        valid = findings.validation.get(model.name, math.nan)
        setting = plain(findings.settings.get(model.name, about.get(model.name, "")))
        cells.append([name, number(line.value) + interval_text(line.low, line.high), *values,
                      number(valid) if math.isfinite(valid) else "", setting])
    report.rows(header, cells)
    if assessment.groups < FEWEST_GROUPS:
        few = counted(assessment.groups, "group")
        report.paragraph(f"No intervals: {few} where at least {FEWEST_GROUPS} are needed.")
    for name in images:
        if name == "heads":
            report.image(name)
    report.heading("What was trained and tested").bullets(
        [
            f"Rows: {', '.join(f'{count:,} {_PARTS.get(what, what)}' for what, count in findings.counts.items())}; "
            f"split: {plain(findings.split_by)}",
            *rows_told(assessment),
            f"The head that was saved: {plain(findings.chosen)}, {findings.about}",
            *_calibration(findings),
            *_coverage(findings),
            *map(plain, findings.notes),
        ]
    )
    if cells := choice_rows(findings.predictor)[1]:
        report.heading("The predictor: what was chosen among").paragraph(
            f"{how_chosen(several=evaluation.kind == 'multiclass')} The language model is the chosen head; it is left "
            "out where it lowers the main score on these rows by more than a hundredth, whatever the loss."
        )
        report.rows(choice_rows(findings.predictor)[0], cells)
    if evaluation.kind == "multiclass":
        report.heading("By class").rows(*_by_class(findings))
    if "confusion" in images:
        report.heading("Right and wrong" if evaluation.kind != "number" else "Predicted and true values").image(
            "confusion"
        )
    if "curves" in images:
        report.heading("Training of the feed-forward network").image("curves")
    if best_trial:
        report.heading("Search").paragraph(f"Best settings found for the network: {plain(best_trial)}.")
        if "search_figure" in images:
            report.image("search_figure")
        if "search_history" in tables:
            report.table("search_history", title="Trials")
    report.heading("How it was done").bullets(_method(findings))
    if "metrics" in tables:
        intervals = " with 95 % intervals" if assessment.groups >= FEWEST_GROUPS else ""
        report.heading("All scores").table("metrics", title=f"Scores{intervals}")
    return report


def _calibration(findings: ClassifierFindings) -> list[str]:
    if not findings.uncalibrated:
        return []
    if findings.why_uncalibrated:
        half = " and the threshold is 0.5" if findings.assessment.evaluation.kind == "binary" else ""
        return [f"Probabilities are not calibrated{half}, since {findings.why_uncalibrated}"]
    after = findings.assessment.line(findings.chosen, "ece").value
    of = " of the head" if findings.combined else ""
    lines = [
        f"Temperature{of} {findings.temperature:.3f}: expected calibration error "
        f"{number(findings.uncalibrated[findings.chosen])} before and {number(after)} after it "
        f"({findings.assessment.evaluation.splits} rows)"
    ]
    classes = findings.assessment.evaluation.classes
    if len(classes) == 2:
        lines.append(f"{plain(classes[-1])} is called from a probability of {findings.threshold:.3f} (validation rows)")
    elif findings.threshold is not None:
        lines.append(plain(several_called(classes, findings.threshold)))
    return lines


def _coverage(findings: ClassifierFindings) -> list[str]:
    coverage = findings.coverage
    if coverage is None:
        return []
    what = "Intervals" if findings.assessment.evaluation.kind == "number" else "Sets of classes"
    if math.isinf(coverage.size):
        return [f"Too few validation rows for {what.lower()} that hold the truth in {coverage.promised:.0%} of cases"]
    low, high = coverage.interval
    size = f"width {coverage.size:.3g}" if what == "Intervals" else f"{coverage.size:.2f} classes"
    return [
        f"{what} that plm_predict makes for a coverage of {coverage.promised:.0%} (limits: validation rows) hold the "
        f"truth of {coverage.share:.1%} of the {coverage.rows} {findings.assessment.evaluation.splits} rows (binomial "
        f"95 % interval {low:.1%} to {high:.1%}), on average with {size}. The promise is for rows like the "
        "validation rows: splits by group or homology may miss it"
    ]


def _by_class(findings: ClassifierFindings) -> tuple[list[str], list[list[str]]]:
    evaluation = findings.assessment.evaluation
    counts = np.bincount(evaluation.truth.astype(int), minlength=len(evaluation.classes))
    cells = []
    for index in np.argsort(-counts, kind="stable")[:_MOST_CLASSES]:
        name = evaluation.classes[index]
        lines = [
            findings.assessment.line(findings.answering, metric, name) for metric in ("f1", "sensitivity", "precision")
        ]
        values = [
            number(line.value) + interval_text(line.low, line.high, 2) if counts[index] else "no rows" for line in lines
        ]
        cells.append([plain(name), str(counts[index]), *values])
    return ["Class", "Rows", "F1", "Sensitivity", "Precision"], cells


def _method(findings: ClassifierFindings) -> list[str]:
    metric = findings.assessment.metric
    chose = f" Chosen on the validation rows: {', '.join(findings.decided)}." if findings.decided else ""
    once = "" if findings.assessment.evaluation.splits == "validation" else " The rows that judge were answered once."
    lines = [
        f"Main metric: {metric_name(metric)}{' (lower is better)' if metric in LOWER_IS_BETTER else ''}. Settings of "
        f"the linear heads and of the neighbours: cross-validation within groups on the training rows.{chose}{once}",
    ]
    if findings.assessment.groups >= FEWEST_GROUPS:
        lines.append(
            f"Intervals: percentile bootstrap, {findings.resamples} resamples of whole groups; differences are paired"
        )
    lines += [f"{plain(name)}: {about}" for name, about, _ in findings.baselines]
    better = findings.assessment.better_baselines()
    if better:
        lines.append(f"On these rows {plain(', '.join(better))} scored higher than the baseline to beat")
    return lines
