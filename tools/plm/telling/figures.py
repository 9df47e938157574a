"""Figures as PNG: colour-blind safe, readable at the width of a Galaxy report, 150 dpi.

Figures are made with matplotlib's object interface: no display, no global state. Every figure of the suite is made by
:func:`new_figure` and written by :func:`save`, which sees to it that names of the user's are never read as formulas and
that no text leaves the picture.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray

from plm.wording import METRIC_NAMES, metric_name

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]
DPI = 150
# Okabe and Ito's colours, distinguishable with every common colour-vision deficiency, less the pale yellow.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#767676"
LINES = ("-", "--", "-.", ":")
METHODS = {
    "logistic regression": "#0072B2",
    "ridge regression": "#0072B2",
    "nearest neighbours": "#009E73",
    "feed-forward network": "#D55E00",
    "baseline: majority": "#4d4d4d",
    "baseline: composition": "#DDB040",
    "baseline: one-hot": "#661100",
    "baseline: dipeptides": "#B07AA1",
    "baseline: nearest neighbour": "#1F3A5F",
}
"""Colours of the suite's own methods, the same in every figure; models get theirs from :func:`method_colours`."""
_MOST_CURVES = 18
MOST_CLASSES = 40
"""Classes of a confusion matrix whose names can be read."""
SMALLEST = 5.0
"""Points: text is not made smaller than that to fit."""
_STYLE = {
    "text.parse_math": False,
    "text.usetex": False,
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


_NOT_METRICS = {"step", "epoch", "learning_rate", "seconds", "time", "best", "tokens"}


def new_figure(
    width: float = 6.0, height: float = 4.5, columns: int = 1, rows: int = 1, **options: Any
) -> tuple[Figure, Any]:
    """A figure of ``width`` x ``height`` inches in the suite's style, and its (rows, columns) axes."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), dpi=DPI, layout=ConstrainedLayoutEngine(w_pad=0.07, h_pad=0.06))
        axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, axes


def save(figure: Figure, path: str | Path) -> None:
    """Writes ``figure`` as PNG, whatever the path's suffix, after making all its text literal and fit the picture."""
    with matplotlib.rc_context(_STYLE):
        _plain_logarithms(figure)
        for panel in figure.axes:
            if (legend := panel.get_legend()) is not None:
                legend.set_in_layout(False)  # a large one would leave the panel no room
        for _ in range(12):
            _literal(figure)
            figure.draw_without_rendering()
            if not sum(map(_fits, figure.axes)) + _fits_beside(figure):
                break
        figure.savefig(path, format="png", dpi=DPI)


def _literal(figure: Figure) -> None:
    """Dollar signs and backslashes in names are characters, not formulas (which would also crash on broken ones)."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
        text.set_usetex(False)


def _plain_logarithms(figure: Figure) -> None:
    """Tick labels of logarithmic axes are formulas unless told otherwise."""
    from matplotlib.ticker import LogFormatter, LogFormatterMathtext

    for panel in figure.axes:
        for axis in (panel.xaxis, panel.yaxis):
            if isinstance(axis.get_major_formatter(), LogFormatterMathtext):
                axis.set_major_formatter(LogFormatter())
            if isinstance(axis.get_minor_formatter(), LogFormatterMathtext):
                axis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(1, 0.4)))


def _fits(panel: Any) -> bool:
    """Makes the text of one panel fit its place; True if anything had to change."""
    if not panel.get_visible():
        return False
    box, changed = panel.get_window_extent(), False
    if panel.axison:
        changed |= _wrapped(panel.xaxis.label, box.width, wide=True)
        changed |= _wrapped(panel.yaxis.label, box.height, wide=False)
        changed |= sum(_ticks_apart(panel, axis) for axis in (panel.xaxis, panel.yaxis)) > 0
    changed |= sum(_wrapped(title, box.width, wide=True) for title in (panel.title, panel._left_title)) > 0
    legend = panel.get_legend()
    if legend is not None:
        changed |= _shrunk(legend, box)
    return changed


def _fits_beside(figure: Figure) -> bool:
    """The same for what belongs to no panel."""
    width, height = figure.bbox.width, figure.bbox.height
    changed = sum(_shrunk(legend, figure.bbox) for legend in figure.legends) > 0
    for name, limit, wide in (("_suptitle", width, True), ("_supxlabel", width, True), ("_supylabel", height, False)):
        text = getattr(figure, name)
        if text is not None:
            changed |= _wrapped(text, 0.97 * limit, wide=wide)
    return changed


def _wrapped(text: Any, limit: float, *, wide: bool) -> bool:
    told = text.get_text()
    if not told.strip():
        return False
    extent = text.get_window_extent()
    length = extent.width if wide else extent.height
    if length <= limit + 1:
        return False
    longest = max(len(line) for line in told.split("\n"))
    most = max(int(longest * limit / length), 6)
    if most < longest and told.count("\n") < 3:
        text.set_text(textwrap.fill(told.replace("\n", " "), most))
        return True
    return _smaller([text])


def _smaller(texts: Iterable[Any]) -> bool:
    changed = False
    for text in texts:
        size = text.get_fontsize()
        if size > SMALLEST:
            text.set_fontsize(max(0.85 * size, SMALLEST))
            changed = True
    return changed


def _shrunk(legend: Any, box: Any) -> bool:
    """A legend larger than its place gets smaller letters, then shorter names."""
    extent = legend.get_window_extent()
    if extent.width <= box.width and extent.height <= box.height:
        return False
    texts = [*legend.get_texts(), legend.get_title()]
    if _smaller(texts):
        return True
    longest = max(len(text.get_text()) for text in texts)
    if extent.width <= box.width or longest <= 8:
        return False
    for text in texts:
        text.set_text(shortened(text.get_text(), max(int(0.8 * longest), 8)))
    return True


def _ticks_apart(panel: Any, axis: Any) -> bool:
    """Tick labels that overlap are turned, made smaller, or thinned."""
    from matplotlib.ticker import FixedLocator, MaxNLocator

    labels = tick_labels(axis)
    across = axis.axis_name == "x"
    ends = sorted(_ends(label.get_window_extent(), across) for label in labels)
    if all(one[1] <= other[0] for one, other in pairwise(ends)):
        return False
    if not isinstance(axis.get_major_locator(), FixedLocator):
        if (panel.get_xscale() == "log" and across) or (panel.get_yscale() == "log" and not across):
            axis.set_minor_formatter("")
            return _smaller(labels)
        axis.set_major_locator(MaxNLocator(nbins=max(len(labels) // 2, 1)))
        return True
    if across and labels[0].get_rotation() != 90:
        axis.set_tick_params(labelrotation=90)
        for label in labels:
            label.set(rotation=90, ha="center", va="top")
        return True
    if labels[0].get_fontsize() > SMALLEST:
        axis.set_tick_params(labelsize=max(0.85 * labels[0].get_fontsize(), SMALLEST))
        return True
    places, names = axis.get_ticklocs(), [label.get_text() for label in axis.get_majorticklabels()]
    axis.set_ticks(places, [name if not number % 2 else "" for number, name in enumerate(names)])
    return True


def tick_labels(axis: Any) -> list[Any]:
    """The labels of an axis that are seen."""
    low, high = sorted(axis.get_view_interval())
    labels = []
    for minor in (False, True):
        for place, label in zip(axis.get_ticklocs(minor=minor), axis.get_ticklabels(minor=minor), strict=False):
            if low <= place <= high and label.get_visible() and label.get_text().strip():
                labels.append(label)
    return labels


def _ends(box: Any, across: bool) -> tuple[float, float]:
    return (box.x0, box.x1) if across else (box.y0, box.y1)


def share_axis(axis: Any) -> None:
    """An axis of shares ends at 1 at most, and no lower than at 0."""
    low, high = axis.get_view_interval()
    axis.axes.set(**{f"{axis.axis_name}lim": (max(low, 0.0), min(high, 1.0) if high > 0 else 1.0)})


def method_colours(names: Sequence[str], baselines: Iterable[str] = ()) -> dict[str, str]:
    """A colour for each method of a run, to be used in all its figures.

    Args:
        names: All methods of the run, in its order.
        baselines: Those that are no models; the suite's own have colours of their own, others are grey.
    """
    aside, taken = set(baselines), 0
    colours: dict[str, str] = {}
    for name in names:
        if name in METHODS or name in aside:
            colours[name] = METHODS.get(name, GREY)
        elif name not in colours:
            colours[name] = colour(taken)
            taken += 1
    return colours


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
            optional and with gaps; ``method``, ``seed`` and ``fold`` tell runs apart: one line for each run;
            ``best`` is 1 in the row whose network was kept, which is marked.
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
    marked = False
    for panel, names in zip(axes.flat, panels, strict=False):
        for number, (key, index) in enumerate(groups):
            key_parts = key if isinstance(key, tuple) else (key,)
            named_parts = zip(runs, key_parts, strict=False)
            run_label = ", ".join(f"{column} {shortened(part, 24)}" for column, part in named_parts)
            for kind, name in enumerate(names):
                curve = numbers.loc[index, [x, name]].dropna()
                label = run_label if runs else METRIC_NAMES.get(name, name)
                if runs and len(names) > 1:
                    label = run_label if name == names[-1] else "_"
                # Runs are told apart by colour, the two losses of one run by line style.
                shade = colour(number if runs else kind)
                style = line_style(number) if runs else "-"
                if runs and len(names) > 1:
                    style = "--" if name == "train_loss" else "-"
                panel.plot(curve[x], curve[name], style, color=shade, label=label, **_markers(len(curve)))
                if name != "train_loss" and "best" in numbers:
                    kept = numbers.loc[index, [x, name]][numbers.loc[index, "best"] == 1].dropna()
                    panel.plot(kept[x], kept[name], "*", color=shade, markersize=13, markeredgecolor="black")
                    marked |= bool(len(kept))
        _label_panel(panel, x, names, len(groups) if runs else 0)
    for spare in list(axes.flat)[len(panels) :]:
        spare.set_visible(False)
    if marked:
        figure.suptitle(f"Star: the {'epoch' if x == 'epoch' else 'step'} that was kept", fontsize=10)
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
        label: Text of the legend, score included.
        x: (P,) values on the horizontal axis.
        y: (P,) values on the vertical axis.
        faint: True for what is only there for comparison (baselines): thin and dashed.
        colour: Colour of the line; by its place if empty.
    """

    label: str
    x: Floats
    y: Floats
    faint: bool = False
    colour: str = ""


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
        label = curve.label
        if len(curves) > _MOST_CURVES and number >= _MOST_CURVES - 1:  # a legend has no room for more
            label = f"{len(curves) - number} more" if number == _MOST_CURVES - 1 else "_"
        panel.plot(curve.x, curve.y, color=curve.colour or colour(number), label=label, drawstyle=draw, **style)


def _unit_square(panel: Any) -> None:
    panel.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    panel.set_aspect("equal", adjustable="box")


def commonest_classes(
    tables: Sequence[tuple[str, NDArray[np.int64]]], classes: Sequence[str], most: int = MOST_CLASSES
) -> tuple[list[tuple[str, NDArray[np.int64]]], list[str]]:
    """Confusion matrices of the truly commonest classes, the others together as the last class."""
    counts = sum(table.sum(axis=1) for _, table in tables)
    kept = np.argsort(-np.asarray(counts), kind="stable")[: most - 1]
    place = np.full(len(classes), most - 1)
    place[kept] = np.arange(most - 1)
    folded = []
    for title, table in tables:
        small = np.zeros((most, most), np.int64)
        np.add.at(small, (place[:, None], place[None, :]), table)
        folded.append((title, small))
    return folded, [*(classes[at] for at in kept), f"{len(classes) - most + 1:,} others"]


def confusion_figure(tables: Sequence[tuple[str, NDArray[np.int64]]], classes: Sequence[str], path: str | Path) -> None:
    """Confusion matrices side by side: colour is the share of the true class, the number counts rows.

    Of more than :data:`MOST_CLASSES` classes the commonest are shown, the others together.

    Args:
        tables: (title, (K, K) rows by true class and call); at most four are drawn.
        classes: The K class names.
        path: PNG file to write.
    """
    tables = tables[:4]
    if len(classes) > MOST_CLASSES:
        tables, classes = commonest_classes(tables, classes)
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
    curves: Sequence[tuple[str, Floats, Floats, NDArray[np.int64]]], path: str | Path, *, binary: bool = True,
    colours: Sequence[str] = COLOURS,
) -> None:
    """Reliability diagram: what was predicted against what came true; a point's size follows its number of rows.

    Args:
        curves: (label, mean probability (B,), observed frequency (B,), rows (B,)).
        path: PNG file to write.
        binary: Whether the probability is that of the positive class (else: of the called class).
        colours: Colour of each curve.
    """
    figure, axes = new_figure(6.0, 5.6)
    panel = axes[0, 0]
    panel.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1.2, label="perfect calibration")
    for number, (label, mean, frequency, rows) in enumerate(curves):
        shade = colours[number % len(colours)]
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
        # Beside each other: equal distributions would hide each other.
        panel.hist(
            [values for _, values in groups], edges,
            weights=[np.full(len(values), 1 / max(len(values), 1)) for _, values in groups],
            color=[colour(number) for number in range(len(groups))],
            label=[named(f"{shortened(name, 24)} (n = {len(values)})") for name, values in groups],
        )
        of = "positive class" if binary else "called class"
        panel.set(xlabel=f"Probability of the {of}", ylabel="Share of rows", title=shortened(title, 44), xlim=(0, 1))
        panel.set_ylim(0, min(panel.get_ylim()[1] * 1.3, 1.0))  # room for the legend
        panel.legend(loc="best")
    for spare in list(axes.flat)[len(panels) :]:
        spare.set_visible(False)
    save(figure, path)


def scatter_figure(
    panels: Sequence[tuple[str, Floats, Floats]], path: str | Path, colours: Sequence[str] = COLOURS
) -> None:
    """Predicted against true numbers, one panel a model (at most four): (title, true, predicted)."""
    figure, axes = _number_panels(panels)
    for number, (panel, (title, truth, value)) in enumerate(zip(axes, panels[:4], strict=False)):
        ends = [min(truth.min(), value.min()), max(truth.max(), value.max())]
        panel.plot(ends, ends, color=GREY, linestyle=":", linewidth=1.2, label="prediction = truth")
        panel.scatter(truth, value, s=_dot(len(truth)), color=colours[number % len(colours)], alpha=0.6, linewidths=0)
        panel.set(xlabel="True value", ylabel="Predicted value", title=shortened(title, 40))
        panel.legend(loc="best")
    save(figure, path)


def residuals_figure(
    panels: Sequence[tuple[str, Floats, Floats]], path: str | Path, colours: Sequence[str] = COLOURS
) -> None:
    """Prediction minus truth against the prediction, one panel a model (at most four): (title, true, predicted)."""
    figure, axes = _number_panels(panels)
    for number, (panel, (title, truth, value)) in enumerate(zip(axes, panels[:4], strict=False)):
        panel.axhline(0, color=GREY, linestyle=":", linewidth=1.2)
        shade = colours[number % len(colours)]
        panel.scatter(value, value - truth, s=_dot(len(truth)), color=shade, alpha=0.6, linewidths=0)
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
    """``text`` on one line, cut to ``most`` characters with an ellipsis."""
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in str(text)).split())
    return text if len(text) <= most else text[: most - 1] + "…"


def named(text: str) -> str:
    """A name for a legend, which would leave out what begins with an underscore."""
    return f" {text}" if text.startswith("_") else text
