"""Figures as PNG: colour-blind safe, readable at the width of a Galaxy report, 150 dpi.

Figures are made with matplotlib's object interface: no display, no global state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]
DPI = 150
# Okabe and Ito's colours, distinguishable with every common colour-vision deficiency, less the pale yellow.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#767676"
LINES = ("-", "--", "-.", ":")
_STYLE = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.labelsize": 11,
    "legend.fontsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "lines.linewidth": 1.8,
}
NAMES = {
    "mcc": "MCC",
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "f1": "F1",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "precision": "Precision",
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "brier": "Brier score",
    "ece": "Calibration error (ECE)",
    "spearman": "Spearman correlation",
    "pearson": "Pearson correlation",
    "rmse": "RMSE",
    "mae": "Mean absolute error",
    "r2": "R²",
    "train_loss": "Training loss",
    "valid_loss": "Validation loss",
    "learning_rate": "Learning rate",
    "perplexity": "Perplexity",
    "logit_mse": "Logit difference (MSE)",
    "kl": "KL divergence",
    "kernel": "Kernel alignment (MSE)",
    "hidden": "Hidden-state cosine distance",
    "mlm": "Masked language modelling",
}


_NOT_METRICS = {"step", "epoch", "learning_rate", "seconds", "time", "best", "tokens"}


def metric_name(key: str) -> str:
    """A metric's name as people write it; ``valid_`` in front becomes words."""
    if key in NAMES:
        return NAMES[key]
    if key.startswith("valid_"):
        return f"{metric_name(key[6:])} (validation)"
    if key.startswith("macro_"):
        name = metric_name(key[6:])
        return f"Macro {name if name[1:2].isupper() or name[1:2].isdigit() else name.lower()}"
    return key.replace("_", " ").capitalize()


def new_figure(
    width: float = 6.0, height: float = 4.5, columns: int = 1, rows: int = 1, **options: Any
) -> tuple[Figure, Any]:
    """A figure of ``width`` x ``height`` inches in the suite's style, and its (rows, columns) axes."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, axes


def save(figure: Figure, path: str | Path) -> None:
    """Writes ``figure`` as PNG, whatever the path's suffix."""
    with matplotlib.rc_context(_STYLE):
        figure.savefig(path, format="png", dpi=DPI)


def colour(index: int) -> str:
    """The colour of the ``index``-th line."""
    return COLOURS[index % len(COLOURS)]


def line_style(index: int) -> str:
    """The line style of the ``index``-th line; changes once the colours are used up."""
    return LINES[index // len(COLOURS) % len(LINES)]


def history_figure(history: pd.DataFrame, path: str | Path) -> None:
    """Training curves: a panel with the losses, then one for each other metric.

    Args:
        history: Columns ``step`` and/or ``epoch``; ``train_loss``, ``valid_loss`` and further metrics, each
            optional and with gaps; ``method``, ``seed`` and ``fold`` tell runs apart: one line for each run.
        path: Where the PNG goes.
    """
    import pandas as pd

    if history.empty:
        raise ValueError("the history has no rows")
    history = history.reset_index(drop=True)
    runs = [column for column in ("method", "seed", "fold") if column in history and history[column].nunique() > 1]
    numbers = history.drop(columns=[c for c in ("method", "seed", "fold", "model", "run") if c in history])
    numbers = numbers.apply(pd.to_numeric, errors="coerce")
    plain = [c for c in numbers if c not in _NOT_METRICS and not c.endswith("_loss")]
    metrics = [c for c in plain if numbers[c].notna().any()]
    losses = [c for c in ("train_loss", "valid_loss") if c in numbers and numbers[c].notna().any()]
    use_epoch = "epoch" in numbers and numbers["epoch"].nunique() > 1
    x = "epoch" if use_epoch or "step" not in numbers else "step"
    panels: list[list[str]] = ([losses] if losses else []) + [[metric] for metric in metrics]
    if not panels:
        raise ValueError("the history has no losses or metrics")
    columns = min(len(panels), 3)
    rows = math.ceil(len(panels) / columns)
    figure, axes = new_figure(4.6 * columns if columns > 1 else 6.0, 3.6 * rows, columns, rows)
    groups = list(history.groupby(runs, sort=False).groups.items()) if runs else [("", history.index)]
    for panel, names in zip(axes.flat, panels, strict=False):
        for number, (key, index) in enumerate(groups):
            key_parts = key if isinstance(key, tuple) else (key,)
            run_label = ", ".join(f"{column} {part}" for column, part in zip(runs, key_parts, strict=False))
            for kind, name in enumerate(names):
                curve = numbers.loc[index, [x, name]].dropna()
                label = run_label if runs else NAMES.get(name, name)
                if runs and len(names) > 1:
                    label = run_label if name == names[-1] else "_"
                # Runs are told apart by colour, the two losses of one run by line style.
                shade = colour(number if runs else kind)
                style = line_style(number) if runs else "-"
                if runs and len(names) > 1:
                    style = "--" if name == "train_loss" else "-"
                panel.plot(curve[x], curve[name], style, color=shade, label=label, **_markers(len(curve)))
        _label_panel(panel, x, names, len(groups) if runs else 0)
    for spare in list(axes.flat)[len(panels) :]:
        spare.set_visible(False)
    save(figure, path)


def _markers(points: int) -> dict[str, Any]:
    return {"marker": "o", "markersize": 3.5} if points < 25 else {}


def _label_panel(panel: Any, x: str, names: Sequence[str], runs: int) -> None:
    panel.set_xlabel(x.capitalize())
    if len(names) == 1:
        panel.set_title(metric_name(names[0]))
        panel.set_ylabel(metric_name(names[0]))
        if 0 < runs <= 8:
            panel.legend()
        return
    panel.set_title("Loss (dashed: training, solid: validation)" if runs else "Loss")
    panel.set_ylabel("Loss")
    if not runs or runs <= 8:
        panel.legend()


@dataclass(frozen=True)
class Curve:
    """One line of a ROC or precision-recall figure.

    Attributes:
        label: What the legend says, score included.
        x: (P,) values across.
        y: (P,) values up.
        faint: True for what is only there for comparison (baselines): thin and dashed.
    """

    label: str
    x: Floats
    y: Floats
    faint: bool = False


def roc_figure(curves: Sequence[Curve], path: str | Path) -> None:
    """ROC curves: true-positive rate against false-positive rate, with the diagonal of chance."""
    figure, axes = new_figure(6.0, 5.6)
    panel = axes[0, 0]
    panel.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1.2, label="chance")
    _curves(panel, curves)
    panel.set(xlabel="False-positive rate (1 - specificity)", ylabel="True-positive rate (sensitivity)", title="ROC")
    _unit_square(panel)
    panel.legend(loc="lower right")
    save(figure, path)


def precision_recall_figure(curves: Sequence[Curve], prevalence: float | None, path: str | Path) -> None:
    """Precision-recall curves; ``prevalence`` (0-1) draws the precision of chance."""
    figure, axes = new_figure(6.0, 5.6)
    panel = axes[0, 0]
    if prevalence is not None:
        panel.axhline(prevalence, color=GREY, linestyle=":", linewidth=1.2, label=f"chance ({prevalence:.2f})")
    _curves(panel, curves, steps=True)
    panel.set(xlabel="Recall (sensitivity)", ylabel="Precision", title="Precision and recall")
    _unit_square(panel)
    panel.legend(loc="best")
    save(figure, path)


def _curves(panel: Any, curves: Sequence[Curve], steps: bool = False) -> None:
    for number, curve in enumerate(curves):
        style: dict[str, Any] = (
            {"linestyle": "--", "linewidth": 1.2} if curve.faint else {"linestyle": line_style(number)}
        )
        draw = "steps-pre" if steps else "default"
        panel.plot(curve.x, curve.y, color=colour(number), label=curve.label, drawstyle=draw, **style)


def _unit_square(panel: Any) -> None:
    panel.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    panel.set_aspect("equal", adjustable="box")


def confusion_figure(tables: Sequence[tuple[str, NDArray[np.int64]]], classes: Sequence[str], path: str | Path) -> None:
    """Confusion matrices side by side: colour is the share of the true class, the number counts rows.

    Args:
        tables: (title, (K, K) rows by true class and call); at most four are drawn.
        classes: The K class names.
        path: Where the PNG goes.
    """
    tables = tables[:4]
    size = len(classes)
    side = min(max(3.9, 0.55 * size + 2.2), 12.0)
    columns = len(tables) if size <= 4 else 1
    rows = math.ceil(len(tables) / columns)
    figure, axes = new_figure(side * columns + 0.9, side * 0.92 * rows, columns, rows)
    shown = None
    for panel, (title, table) in zip(axes.flat, tables, strict=False):
        share = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
        shown = panel.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="equal")
        panel.grid(False)
        panel.set_xticks(range(size), [shortened(name, 14) for name in classes], rotation=90 if size > 4 else 0)
        panel.set_yticks(range(size), [shortened(name, 14) for name in classes])
        panel.set(xlabel="Called", ylabel="True class", title=shortened(title, 38))
        if size <= 20:
            for i in range(size):
                for j in range(size):
                    text = (
                        f"{table[i, j]}\n{share[i, j]:.0%}" if size <= 4 else (str(table[i, j]) if table[i, j] else "")
                    )
                    tone = "white" if share[i, j] > 0.55 else "black"
                    panel.text(j, i, text, ha="center", va="center", color=tone, fontsize=11 if size <= 4 else 7)
    if shown is not None:
        figure.colorbar(shown, ax=list(axes.flat), label="Share of the true class", shrink=0.8)
    save(figure, path)


def calibration_figure(
    curves: Sequence[tuple[str, Floats, Floats, NDArray[np.int64]]], path: str | Path, *, binary: bool = True
) -> None:
    """Reliability diagram: what was predicted against what came true; a point's size follows its number of rows.

    Args:
        curves: (label, mean probability (B,), observed frequency (B,), rows (B,)).
        path: Where the PNG goes.
        binary: Whether the probability is that of the positive class (else: of the called class).
    """
    figure, axes = new_figure(6.0, 5.6)
    panel = axes[0, 0]
    panel.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1.2, label="perfect calibration")
    for number, (label, mean, frequency, rows) in enumerate(curves):
        shade = colour(number)
        panel.plot(mean, frequency, color=shade, linestyle=line_style(number), label=label)
        panel.scatter(mean, frequency, s=18 + 160 * rows / rows.sum(), color=shade, zorder=3, linewidths=0)
    of = "positive class" if binary else "called class"
    panel.set(xlabel=f"Predicted probability of the {of}", title="Calibration (point size: number of rows)")
    panel.set_ylabel("Observed share of positives" if binary else "Observed share of right calls")
    _unit_square(panel)
    panel.legend(loc="best")
    save(figure, path)


def scores_figure(
    panels: Sequence[tuple[str, Sequence[tuple[str, Floats]]]], path: str | Path, *, binary: bool = True
) -> None:
    """Distribution of the scores by truth, one panel a model (at most four).

    Args:
        panels: (model, [(what the rows are, probabilities)]).
        path: Where the PNG goes.
        binary: Whether the probability is that of the positive class (else: of the called class).
    """
    panels = panels[:4]
    columns = min(len(panels), 2)
    rows = math.ceil(len(panels) / columns)
    figure, axes = new_figure(5.2 * columns if columns > 1 else 6.4, 4.0 * rows, columns, rows)
    edges = np.linspace(0, 1, 21)
    for panel, (title, groups) in zip(axes.flat, panels, strict=False):
        for number, (name, values) in enumerate(groups):
            weights = np.full(len(values), 1 / max(len(values), 1))
            # Outline and hatch tell the classes apart without colour too.
            panel.hist(
                values, edges, weights=weights, color=colour(number), alpha=0.35,
                label=f"{shortened(name, 24)} (n = {len(values)})",
            )  # fmt: skip
            panel.hist(
                values, edges, weights=weights, histtype="step", color=colour(number), linewidth=1.8,
                linestyle=LINES[number % len(LINES)],
            )  # fmt: skip
        of = "positive class" if binary else "called class"
        panel.set(xlabel=f"Probability of the {of}", ylabel="Share of rows", title=shortened(title, 44), xlim=(0, 1))
        panel.set_ylim(0, panel.get_ylim()[1] * 1.3)  # room for the legend
        panel.legend(loc="best")
    for spare in list(axes.flat)[len(panels) :]:
        spare.set_visible(False)
    save(figure, path)


def scatter_figure(panels: Sequence[tuple[str, Floats, Floats]], path: str | Path) -> None:
    """Predicted against true numbers, one panel a model (at most four): (title, true, predicted)."""
    figure, axes = _number_panels(panels)
    for number, (panel, (title, truth, value)) in enumerate(zip(axes, panels[:4], strict=False)):
        ends = [min(truth.min(), value.min()), max(truth.max(), value.max())]
        panel.plot(ends, ends, color=GREY, linestyle=":", linewidth=1.2, label="prediction = truth")
        panel.scatter(truth, value, s=_dot(len(truth)), color=colour(number), alpha=0.6, linewidths=0)
        panel.set(xlabel="True value", ylabel="Predicted value", title=shortened(title, 40))
        panel.legend(loc="best")
    save(figure, path)


def residuals_figure(panels: Sequence[tuple[str, Floats, Floats]], path: str | Path) -> None:
    """Prediction minus truth against the prediction, one panel a model (at most four): (title, true, predicted)."""
    figure, axes = _number_panels(panels)
    for number, (panel, (title, truth, value)) in enumerate(zip(axes, panels[:4], strict=False)):
        panel.axhline(0, color=GREY, linestyle=":", linewidth=1.2)
        panel.scatter(value, value - truth, s=_dot(len(truth)), color=colour(number), alpha=0.6, linewidths=0)
        panel.set(xlabel="Predicted value", ylabel="Predicted - true value", title=shortened(title, 40))
    save(figure, path)


def _number_panels(panels: Sequence[Any]) -> tuple[Figure, list[Any]]:
    count = min(len(panels), 4)
    columns = min(count, 2)
    rows = math.ceil(count / columns)
    figure, axes = new_figure(5.0 * columns if columns > 1 else 6.0, 4.6 * rows, columns, rows)
    for spare in list(axes.flat)[count:]:
        spare.set_visible(False)
    return figure, list(axes.flat)


def _dot(points: int) -> float:
    return 24.0 if points < 300 else 8.0


def shortened(text: str, most: int) -> str:
    """``text`` cut to ``most`` characters with an ellipsis."""
    return text if len(text) <= most else text[: most - 1] + "…"
