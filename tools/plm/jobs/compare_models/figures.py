"""The pictures of a comparison of language models: box plots of proteins, scores of probes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plm.scoring.metrics import Floats
from plm.telling.figures import GREY, colour, method_colours, named, new_figure, save, share_axis, shortened

_MOST_DOMAINS = 6
_WIDEST = 9.0
"""Inches: of a wider picture a report in Galaxy shows letters too small to read."""


@dataclass(frozen=True)
class Boxes:
    """Values of each protein for one panel.

    Attributes:
        title: Title of the panel.
        label: Name of the vertical axis.
        values: One (P,) array a model.
        log: Whether that axis is logarithmic.
        line: Value of a baseline, drawn dashed; NaN for none.
        line_label: Name of that baseline.
        share: Whether the values are shares, 0-1.
    """

    title: str
    label: str
    values: Sequence[Floats]
    log: bool = False
    line: float = float("nan")
    line_label: str = ""
    share: bool = False


def box_figure(panels: Sequence[Boxes], models: Sequence[str], domains: Sequence[str], path: str | Path) -> None:
    """Box plots of proteins, a box a model and domain; every protein is a dot, none is left out.

    Args:
        panels: Values of each panel.
        models: Names of the models.
        domains: Domain of each protein.
        path: PNG file to write.
    """
    if not models:
        figure, axes = new_figure(6.4, 2.0)
        axes[0, 0].set_axis_off()
        axes[0, 0].text(0.5, 0.5, "None of the models has a language-model head", ha="center", va="center")
        save(figure, path)
        return
    names = sorted(set(domains))
    belongs = np.asarray(domains, dtype=object).astype(str)
    groups = [(name, belongs == name) for name in names] if 1 < len(names) <= _MOST_DOMAINS else []
    groups = groups or [("all proteins", np.ones(len(belongs), bool))]
    width = min(max(5.0, 1.2 + len(models) * (0.7 + 0.45 * len(groups))), _WIDEST)
    columns = len(panels) if width * len(panels) <= _WIDEST + 1 else 1
    rows = math.ceil(len(panels) / columns)
    figure, axes = new_figure(width * columns, 4.8 * rows, columns, rows)
    chance = np.random.default_rng(0)
    for panel, boxes in zip(axes.flat, panels, strict=False):
        space = 0.8 / len(groups)
        for number, (name, chosen) in enumerate(groups):
            for place, values in enumerate(boxes.values):
                mine = values[chosen]
                mine = mine[np.isfinite(mine)]
                if not len(mine):
                    continue
                at = place + (number - (len(groups) - 1) / 2) * space
                label = named(shortened(name, 24)) if not place else ""
                _box(panel, mine, at, 0.8 * space, colour(number), chance, label)
        if np.isfinite(boxes.line):
            panel.axhline(boxes.line, color=GREY, linestyle="--", linewidth=1.2, label=boxes.line_label)
        if boxes.log:
            panel.set_yscale("log")
            panel.yaxis.set_major_formatter("{x:g}")
            panel.yaxis.set_minor_formatter("{x:g}")
            panel.tick_params(axis="y", which="minor", labelsize=8)
        panel.set_xticks(range(len(models)), [shortened(name, 18) for name in models],
                         rotation=0 if len(models) <= 4 else 30)
        panel.set(title=boxes.title, ylabel=boxes.label, xlim=(-0.6, len(models) - 0.4))
        if boxes.share:
            share_axis(panel.yaxis)
        panel.grid(axis="x", visible=False)
        panel.legend(loc="best", fontsize=8, markerscale=3)
    for spare in list(axes.flat)[len(panels) :]:
        spare.set_visible(False)
    save(figure, path)


def _box(panel: Any, values: Floats, at: float, width: float, shade: str, chance: Any, label: str) -> None:
    jitter = chance.uniform(-0.38, 0.38, len(values)) * width
    size = 9 if len(values) <= 100 else 4 if len(values) < 1000 else 1.5
    panel.scatter(at + jitter, values, s=size, color=shade, alpha=0.5, linewidths=0, label=label or "_")
    line = {"color": "black", "linewidth": 1.2}
    panel.boxplot(
        values, positions=[at], widths=width, showfliers=False, medianprops={"color": "black", "linewidth": 2},
        boxprops=line, whiskerprops=line, capprops=line, manage_ticks=False,
    )


@dataclass(frozen=True)
class Dots:
    """Scores of one probe.

    Attributes:
        title: Name of the probe.
        label: Name of the horizontal axis.
        rows: (name, score, low, high, whether a baseline) from top to bottom.
        most: The highest score there can be.
    """

    title: str
    label: str
    rows: Sequence[tuple[str, float, float, float, bool]]
    most: float = math.inf


def dot_figure(panels: Sequence[Dots], path: str | Path) -> None:
    """Scores with their intervals, a panel a probe; baselines are grey."""
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    most = max(len(dots.rows) for dots in panels)
    figure, axes = new_figure(5.6 * columns, (1.3 + 0.42 * most) * rows, columns, rows)
    every = {name: baseline for dots in panels for name, *_, baseline in dots.rows}
    colours = method_colours(list(every), [name for name, baseline in every.items() if baseline])
    for panel, dots in zip(axes.flat, panels, strict=False):
        for place, (name, value, low, high, baseline) in enumerate(dots.rows):
            shade = colours[name]
            if np.isfinite(low) and np.isfinite(high):
                panel.plot([low, high], [place, place], color=shade, linewidth=2.5, solid_capstyle="butt")
            panel.plot([value], [place], "s" if baseline else "o", color=shade, markersize=7)
        panel.set_yticks(range(len(dots.rows)), [shortened(row[0], 26) for row in dots.rows])
        panel.set(title=shortened(dots.title, 44), xlabel=dots.label, ylim=(len(dots.rows) - 0.5, -0.5))
        panel.set_xlim(right=min(panel.get_xlim()[1], dots.most))
    for spare in list(axes.flat)[len(panels) :]:
        spare.set_visible(False)
    save(figure, path)
