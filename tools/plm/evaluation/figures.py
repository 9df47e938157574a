"""Figures as PNG: colour-blind safe, readable at the width of a Galaxy report, 150 dpi.

Figures are made with matplotlib's object interface: no display, no global state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.figure import Figure

if TYPE_CHECKING:
    import pandas as pd

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
}


_NOT_METRICS = {"step", "epoch", "learning_rate", "seconds", "time", "best", "tokens"}


def metric_name(key: str) -> str:
    """A metric's name as people write it; ``valid_`` in front becomes words."""
    if key in NAMES:
        return NAMES[key]
    if key.startswith("valid_"):
        return f"{metric_name(key[6:])} (validation)"
    if key.startswith("macro_"):
        return f"Macro {metric_name(key[6:])}"
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
            optional and with gaps; ``seed`` and ``fold`` tell runs apart: one line for each run.
        path: Where the PNG goes.
    """
    import pandas as pd

    if history.empty:
        raise ValueError("the history has no rows")
    history = history.reset_index(drop=True)
    runs = [column for column in ("seed", "fold") if column in history and history[column].nunique() > 1]
    numbers = history.drop(columns=[c for c in ("seed", "fold", "model", "run") if c in history])
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
