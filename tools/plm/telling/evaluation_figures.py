"""Which figure shows what of an evaluation: from scored models to the curves and panels that are drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from plm.data.predictions_table import MEMBER, MODEL_ALONE, TOGETHER
from plm.scoring import calibration
from plm.scoring.assessment import Assessment
from plm.scoring.intervals import FEWEST_GROUPS
from plm.scoring.metrics import Floats
from plm.scoring.predictions import Model
from plm.telling import figures
from plm.telling.figures import Curve, named, shortened
from plm.wording import metric_name, number

CLASS_FIGURES = ("roc", "pr", "confusion", "calibration", "scores")
NUMBER_FIGURES = ("scatter", "residuals")
_MOST_CLASSES = 5
_GRID = np.linspace(0, 1, 201)


def draw(figure: str, assessment: Assessment, path: str | Path) -> None:
    """Draws one figure of the evaluation as PNG.

    Args:
        figure: One of :data:`CLASS_FIGURES` or :data:`NUMBER_FIGURES`, fitting the task.
        assessment: Scores and comparisons of the evaluated models.
        path: PNG file to write.
    """
    binary = assessment.evaluation.kind == "binary"
    models = _shown(assessment)
    every = _colours(assessment)
    colours = [every[model.name] for model in models]
    if figure == "roc":
        figures.roc_figure(_curves(assessment, "auroc"), path)
    elif figure == "pr":
        chance = float((assessment.evaluation.truth == 1).mean()) if binary else None
        figures.precision_recall_figure(_curves(assessment, "auprc"), chance, path)
    elif figure == "overview":
        overview_figure(assessment, path)
    elif figure == "confusion":
        classes = len(assessment.evaluation.classes)
        tables = [(model.name, _confusion(model)) for model in (models if classes <= 4 else models[:1])]
        figures.confusion_figure(tables, assessment.evaluation.classes, path)
    elif figure == "calibration":
        curves = []
        for model in models:
            label = f"{named(shortened(model.name, 32))} (ECE {number(assessment.line(model.name, 'ece').value, 2)})"
            curves.append((label, *calibration.reliability(_judged(model), model.scored.truth)))
        figures.calibration_figure(curves, path, binary=binary, colours=colours)
    elif figure == "scores":
        figures.scores_figure([(model.name, _by_truth(model)) for model in models], path, binary=binary)
    else:
        drawer = {"scatter": figures.scatter_figure, "residuals": figures.residuals_figure}[figure]
        panels = [(model.name, model.scored.truth.astype(np.float64), model.scored.scores) for model in models]
        drawer(panels, path, colours)


def _shown(assessment: Assessment) -> list[Model]:
    """The models, their language models alone, and the baseline to beat."""
    return [
        model
        for model in assessment.evaluation.models
        if model.judged or model.role == MODEL_ALONE or model.name == assessment.best_baseline
    ]


def overview_figure(assessment: Assessment, path: str | Path) -> None:
    """Main metric of every model, part and baseline with its interval; beside it, by identity to training."""
    models = assessment.evaluation.models
    colours = _colours(assessment)
    shown = [one for one in models if one.judged or one.role in (MODEL_ALONE, TOGETHER)]
    by_identity = [name for name in dict.fromkeys(line.stratum for line in assessment.lines)
                   if name.startswith(("identity", "no relative"))]
    height = 1.3 + 0.36 * len(models)
    figure, axes = figures.new_figure(11.0 if by_identity else 7.2, max(height, 3.6), 2 if by_identity else 1, 1)
    panel = axes.flat[0]
    for place, model in enumerate(reversed(models)):
        line, colour = assessment.line(model.name, assessment.metric), colours[model.name]
        if np.isfinite(line.low):
            panel.plot([line.low, line.high], [place, place], color=colour, linewidth=2.4)
        panel.plot(line.value, place, _MARKS[_kind(model)], color=colour, markersize=8)
    panel.set_yticks(range(len(models)), [figures.shortened(model.name, 34) for model in reversed(models)])
    panel.set_ylim(-0.6, len(models) - 0.4)
    bars = ", bars: 95 % intervals" if assessment.groups >= FEWEST_GROUPS else ""
    name = metric_name(assessment.metric)
    panel.set_xlabel(f"{name} ({assessment.evaluation.splits} rows{bars})")
    panel.set_title("Every model beside every other")
    if by_identity:
        panel = axes.flat[1]
        for number_, model in enumerate(shown):
            lines = [assessment.line(model.name, assessment.metric, stratum=stratum) for stratum in by_identity]
            places = np.arange(len(lines)) + 0.12 * (number_ - (len(shown) - 1) / 2)
            values = [line.value for line in lines]
            panel.plot(places, values, "-" + _MARKS[_kind(model)], color=colours[model.name],
                       label=figures.named(figures.shortened(model.name, 32)))
            for place, line in zip(places, lines, strict=True):
                if np.isfinite(line.low):
                    panel.plot([place, place], [line.low, line.high], color=colours[model.name], linewidth=1.4)
        rows = [assessment.line(shown[0].name, assessment.metric, stratum=stratum).n for stratum in by_identity]
        names = [stratum.removeprefix("identity ") for stratum in by_identity]
        ticks = [f"{told}\n{count} rows" for told, count in zip(names, rows, strict=True)]
        panel.set_xticks(range(len(ticks)), ticks)
        panel.set_xlim(-0.5, len(ticks) - 0.5)
        panel.set_xlabel("identity to the nearest training row")
        panel.set_ylabel(name)
        panel.set_title("Where each earns its place")
        panel.legend(loc="best")
    figures.save(figure, path)


_MARKS = {"predictor": "D", "language model alone": "o", "sequence members": "^", "baseline": "s"}


def _kind(model: Model) -> str:
    if model.judged:
        return "predictor"
    return "baseline" if model.baseline else "language model alone" if model.role == MODEL_ALONE else "sequence members"


def _colours(assessment: Assessment) -> dict[str, str]:
    """The colour of each model and baseline, the same in all figures."""
    models = assessment.evaluation.models
    return figures.method_colours([one.name for one in models], [one.name for one in models if one.baseline])


def _judged(model: Model) -> Floats:
    """Probabilities that calibration is judged by: of the positive class, or all."""
    return model.scored.scores[:, 1] if model.scored.kind == "binary" else model.scored.scores


def _by_truth(model: Model) -> list[tuple[str, Floats]]:
    scored = model.scored
    if scored.kind == "binary":
        return [(f"class {name}", scored.scores[scored.truth == index, 1]) for index, name in enumerate(scored.classes)]
    confidence, right = scored.scores[np.arange(len(scored.calls)), scored.calls], scored.calls == scored.truth
    return [("wrong calls", confidence[~right]), ("right calls", confidence[right])]


def _confusion(model: Model) -> np.ndarray:
    from sklearn.metrics import confusion_matrix

    return confusion_matrix(model.scored.truth, model.scored.calls, labels=range(len(model.scored.classes)))


def _curves(assessment: Assessment, metric: str) -> list[Curve]:
    evaluation, colours = assessment.evaluation, _colours(assessment)
    if evaluation.kind == "binary":
        # The constant answer is the diagonal, which is there anyway.
        return [
            Curve(
                f"{named(shortened(model.name, 32))} ({number(assessment.line(model.name, metric).value, 2)})",
                *_points(model, 1, metric), faint=model.baseline, colour=colours[model.name],
            )
            for model in evaluation.models
            if np.ptp(model.scored.scores[:, 1]) > 0 and model.role not in (TOGETHER, MEMBER)
        ]
    curves = []
    models = _shown(assessment)
    for model in models:
        value = number(assessment.line(model.name, f"macro_{metric}").value, 2)
        curves.append(
            Curve(
                f"{named(shortened(model.name, 26))}: macro ({value})", *_macro(model, metric), faint=model.baseline,
                colour=colours[model.name],
            )
        )
    first = models[0]
    count = np.bincount(first.scored.truth.astype(int), minlength=len(evaluation.classes))
    spare = [one for one in figures.COLOURS if one not in {colours[model.name] for model in models}]
    for place, index in enumerate(np.argsort(-count, kind="stable")[:_MOST_CLASSES]):
        if count[index]:
            name = evaluation.classes[index]
            value = number(assessment.line(first.name, metric, name).value, 2)
            curves.append(Curve(f"class {shortened(name, 20)} ({value})", *_points(first, int(index), metric),
                                colour=spare[place % len(spare)]))
    return curves


def _points(model: Model, index: int, metric: str) -> tuple[Floats, Floats]:
    from sklearn.metrics import precision_recall_curve, roc_curve

    truth, scores = model.scored.truth == index, model.scored.scores[:, index]
    if metric == "auroc":
        across, up, _ = roc_curve(truth, scores)
        return across, up
    precision, recall, _ = precision_recall_curve(truth, scores)
    return recall[::-1], precision[::-1]


def _macro(model: Model, metric: str) -> tuple[Floats, Floats]:
    """Mean of the classes' curves at equal places across; precision by steps, as average precision sums it."""
    total, classes = np.zeros(len(_GRID)), 0
    for index in range(len(model.scored.classes)):
        if not (model.scored.truth == index).any():
            continue
        across, up = _points(model, index, metric)
        if metric == "auroc":
            total += np.interp(_GRID, across, up)
        else:
            total += up[np.minimum(np.searchsorted(across, _GRID, side="left"), len(up) - 1)]
        classes += 1
    return _GRID, total / classes
