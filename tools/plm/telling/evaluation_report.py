"""The report of an evaluation: the verdict first, then scores, figures, strata and how it was done."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from plm.data.predictions_table import MEMBER, MODEL_ALONE, TOGETHER
from plm.scoring.assessment import OVERALL, Assessment, ScoreLine, interval_text
from plm.scoring.calibration import chance_ece, ece
from plm.scoring.intervals import FEWEST_GROUPS
from plm.scoring.metrics import metrics_of
from plm.telling.report import Report, plain
from plm.wording import metric_name, number

_TITLES = {
    "overview": "Which model is how good, and where",
    "roc": "Every threshold at once",
    "pr": "Precision and recall",
    "confusion": "Right and wrong calls",
    "calibration": "Do the probabilities mean what they say?",
    "scores": "Scores by true class",
    "scatter": "Predicted and true values",
    "residuals": "Errors",
}
_HEADLINE = {
    "binary": ("auroc", "auprc", "mcc", "accuracy", "sensitivity", "specificity"),
    "multiclass": ("macro_f1", "macro_auroc", "mcc", "accuracy", "top10_accuracy"),
    "number": ("spearman", "pearson", "rmse", "r2"),
}
_MOST_MODELS = 16


def write_up(
    assessment: Assessment, *, figures: Sequence[str], with_comparison: bool, with_metrics: bool = True,
    baselines: Sequence[tuple[str, str, str, float]] = (), notes: Sequence[str] = (), resamples: int = 1000,
    training_rows: int | None = None,
) -> Report:
    """Puts the report together.

    Args:
        assessment: Scores and comparisons of the evaluated models.
        figures: Names of the figure outputs that exist.
        with_comparison: Whether there is an output ``comparison``.
        with_metrics: Whether there is an output ``metrics``.
        baselines: (name, how it works, setting, inner score) of each baseline.
        notes: Further sentences on how it was done.
        resamples: Number of bootstrap resamples.
        training_rows: Rows that the baselines learnt from; None without a training table.
    """
    evaluation = assessment.evaluation
    report = Report(plain(assessment.verdict()))
    report.bullets([plain(sentence) for sentence in [*assessment.parts_told(), *assessment.least_alike()]])
    if assessment.leakage():
        report.paragraph(f"**{plain(assessment.leakage())}**")
    better = assessment.better_baselines()
    if better:
        report.paragraph(
            f"On these rows {plain(', '.join(better))} scored higher than the baseline to beat, which was chosen "
            "without looking at them."
        )
    few = few_rows(assessment, training_rows)
    if few:
        report.paragraph(f"⚠ {few}")
    unfinished = [model.name for model in evaluation.models if not model.finished]
    if unfinished:
        report.paragraph(
            f"**Unfinished training:** {plain(', '.join(unfinished))} was cut short by its time limit; "
            "a finished model may score otherwise."
        )
    report.heading("What was evaluated", 1).bullets(rows_told(assessment))
    report.heading("Scores").paragraph(_headline(assessment))
    report.rows(*_score_table(assessment))
    seeds = _seed_table(assessment)
    if seeds:
        report.paragraph("The same for single trainings: mean ± standard deviation over seeds.")
        report.rows(*seeds)
    if with_metrics:
        report.paragraph("Every score stands in the last table.")
    for figure in figures:
        report.heading(_TITLES[figure], 3).image(figure)
        if figure == "calibration":
            report.bullets([f"{plain(name)}: {text}" for name, text in calibration_told(assessment)])
    if with_comparison:
        report.heading("Paired comparison")
        report.paragraph(
            f"Difference in {metric_name(assessment.metric)} of each pair on the same rows"
            + (
                " under the same resamples of groups. An interval that excludes 0 is a difference beyond chance; of "
                "twenty pairs without any, one would show such an interval."
                if assessment.groups >= FEWEST_GROUPS
                else f". With {_groups(assessment.groups)} there are no intervals, so no difference is shown."
            )
        )
        report.table("comparison", title="Paired comparison")
    strata = _strata_table(assessment)
    if strata:
        report.heading("By likeness to the training rows")
        report.paragraph(_strata_told(assessment))
        report.rows(*strata)
    if baselines:
        report.heading("Baselines").bullets(_baselines_told(assessment, baselines))
    report.heading("How it was done").bullets([*_method(assessment, resamples), *notes])
    if with_metrics:
        report.heading("All scores").table("metrics", title="Scores with 95 % intervals")
    return report


def rows_told(assessment: Assessment) -> list[str]:
    """Rows, groups, splits and class frequencies, one phrase each."""
    evaluation = assessment.evaluation
    count = len(evaluation.rows)
    lines = [f"{count} rows ({evaluation.splits}) in {assessment.groups} groups (by {evaluation.grouped_by})"]
    if evaluation.kind == "number":
        truth = evaluation.truth
        lines.append(f"True values from {truth.min():.4g} to {truth.max():.4g}, mean {truth.mean():.4g}")
        return lines
    counts = np.bincount(evaluation.truth.astype(int), minlength=len(evaluation.classes))
    if evaluation.kind == "binary":
        lines.append(
            f"Positive class {plain(evaluation.classes[1])}: {counts[1]} of {count} rows "
            f"(prevalence {100 * counts[1] / count:.1f} %)"
        )
    else:
        order = np.argsort(-counts, kind="stable")
        told = ", ".join(f"{plain(evaluation.classes[index])} {counts[index]}" for index in order[:12])
        lines.append(f"{len(evaluation.classes)} classes: {told}{', ...' if len(order) > 12 else ''}")
    return lines


def _headline(assessment: Assessment) -> str:
    if assessment.groups < FEWEST_GROUPS:
        return f"{_groups(assessment.groups)} are too few for intervals (at least {FEWEST_GROUPS} are needed)."
    told = "In brackets the 95 % interval over groups."
    if any(len(model.members) > 1 for model in assessment.evaluation.models):
        told += " A model with several seeds answers as an ensemble."
    if len(assessment.evaluation.models) > _MOST_MODELS:
        told += f" The first {_MOST_MODELS} of {len(assessment.evaluation.models)} models are shown."
    return told


def _groups(count: int) -> str:
    return f"{count} group{'' if count == 1 else 's'}"


FEW_ROWS = 50


def few_rows(assessment: Assessment, training_rows: int | None) -> str:
    """A warning where so few rows were learnt from or judged that the scores say little; else empty."""
    count = len(assessment.evaluation.rows)
    told = []
    if count < FEW_ROWS:
        told.append(f"only {count} row{' is' if count == 1 else 's are'} judged")
    if training_rows is not None and training_rows < FEW_ROWS:
        verb = "row was" if training_rows == 1 else "rows were"
        told.append(f"only {training_rows} training {verb} there to learn from")
    return f"Few rows: {' and '.join(told)}, so other rows may give quite other scores." if told else ""


def calibration_told(assessment: Assessment) -> list[tuple[str, str]]:
    """For each model (and the baseline to beat) whether its probabilities are shown to be off: (name, answer).

    The calibration error is compared with that of labels drawn from the probabilities themselves, which are then
    right by making: few rows alone make an error.
    """
    answers = []
    for model in assessment.evaluation.models:
        if model.role in (TOGETHER, MEMBER) or (model.baseline and model.name != assessment.best_baseline):
            continue
        scores = model.scored.scores[:, 1] if model.scored.kind == "binary" else model.scored.scores
        error, chance = ece(scores, model.scored.truth), chance_ece(scores)
        off = f"on average {100 * error:.0f} percentage points lie between probability and frequency"
        least = f"{100 * chance:.0f}"
        if error > chance:
            answers.append((model.name, f"no, {off}, where chance alone would give up to {least}"))
        else:
            answers.append((model.name, f"not shown to be off: {off}, and with so few rows chance gives up to {least}"))
    return answers


def _score_table(assessment: Assessment) -> tuple[list[str], list[list[str]]]:
    evaluation = assessment.evaluation
    names = _headline_metrics(assessment)
    header = ["Model", *map(metric_name, names)]
    cells = []
    for model in evaluation.models[:_MOST_MODELS]:
        mark = " (unfinished)" if not model.finished else ""
        told = f"{plain(model.name)}{mark}"
        if model.name == assessment.best_baseline:
            told = f"**{told}**"
        cells.append([told, *(_cell(assessment.line(model.name, metric)) for metric in names)])
    return header, cells


def _headline_metrics(assessment: Assessment) -> list[str]:
    shown = metrics_of(assessment.evaluation.kind, _class_count(assessment))
    names = [name for name in _HEADLINE[assessment.evaluation.kind] if name in shown]
    return names if assessment.metric in names else [assessment.metric, *names]


def _seed_table(assessment: Assessment) -> tuple[list[str], list[list[str]]] | None:
    names = _headline_metrics(assessment)
    cells = []
    for model in assessment.evaluation.models[:_MOST_MODELS]:
        lines = [assessment.line(model.name, metric) for metric in names]
        if len(lines[0].seeds) > 1:
            told = [f"{np.mean(line.seeds):.3f} ± {np.std(line.seeds, ddof=1):.3f}" for line in lines]
            cells.append([plain(model.name), str(len(lines[0].seeds)), *told])
    return (["Model", "Seeds", *map(metric_name, names)], cells) if cells else None


def _cell(line: ScoreLine) -> str:
    return number(line.value) + interval_text(line.low, line.high, 2)


def _strata_told(assessment: Assessment) -> str:
    told = "A model that only recognises relatives of its training rows fails on rows that are unlike these."
    if assessment.leaking is not None and assessment.leaking.protein:
        told += " Rows of a training protein leak even where their windows are unlike."
    return told


def _strata_table(assessment: Assessment) -> tuple[list[str], list[list[str]]] | None:
    strata = list(dict.fromkeys(line.stratum for line in assessment.lines if line.stratum != OVERALL))
    if not strata:
        return None
    shown = [
        model.name
        for model in assessment.evaluation.models
        if model.judged or model.role in (MODEL_ALONE, TOGETHER) or model.name == assessment.best_baseline
    ]
    header = ["Stratum", "Rows", "Groups", *(f"{metric_name(assessment.metric)}: {plain(name)}" for name in shown)]
    cells = []
    for stratum in strata:
        lines = [assessment.line(name, assessment.metric, stratum=stratum) for name in shown]
        told = [
            _cell(line) if not math.isnan(line.value) else ("no rows" if not line.n else f"undefined ({line.note})")
            for line in lines
        ]
        cells.append([plain(stratum), str(lines[0].n), str(lines[0].groups), *told])
    return header, cells


def _baselines_told(assessment: Assessment, baselines: Sequence[tuple[str, str, str, float]]) -> list[str]:
    metric = metric_name(assessment.metric)
    lines = []
    for name, about, setting, inner in baselines:
        mark = " **The one to beat.**" if name == assessment.best_baseline else ""
        chosen = f"; setting {setting}" if setting else ""
        score = f"{metric} {number(inner)} in cross-validation on the training rows"
        lines.append(f"{plain(name)}: {about}{chosen}; {score}.{mark}")
    return lines


def _class_count(assessment: Assessment) -> int:
    return len(assessment.evaluation.models[0].scored.classes)


def _method(assessment: Assessment, resamples: int) -> list[str]:
    lines = [
        f"Main metric: {metric_name(assessment.metric)}; all: "
        f"{', '.join(map(metric_name, metrics_of(assessment.evaluation.kind, _class_count(assessment))))}"
    ]
    if assessment.leaking is None:
        lines.append("Nobody looked for leakage, because no training table was given")
    if assessment.groups >= FEWEST_GROUPS:
        lines.append(
            f"Intervals: percentile bootstrap, {resamples} resamples of whole groups; p values from the same resamples"
        )
    if assessment.best_baseline:
        lines.append("The baseline to beat is the best by cross-validation within groups on the training rows alone")
    return lines
