"""The picture of projections: one panel a method, labels as colours, queries as hollow markers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from plm.jobs.project.projection import METHOD_NAMES, Projection
from plm.scoring.separation import FULL, SpaceLabels
from plm.telling.figures import COLOURS, named, new_figure, save, shortened

if TYPE_CHECKING:
    from plm.jobs.project.findings import ProjectionFindings

MOST_CLASSES = 12
OTHER, UNLABELLED = "#8a8a8a", "#c8c8c8"
SCALE = "viridis"
_MARKERS = ("o", "^")
_PALETTE = COLOURS[:6]  # black is for queries without label
_SEED = 7


@dataclass(frozen=True)
class Look:
    """How one class is drawn.

    Attributes:
        name: Name of the class in the legend.
        colour: ``#rrggbb``.
        marker: matplotlib's; changes once the colours are used up.
        codes: Classes that look so: one, or all the rare ones; -1 stands for no label.
    """

    name: str
    colour: str
    marker: str
    codes: tuple[int, ...]


def looks(labels: SpaceLabels) -> list[Look]:
    """The classes as they are drawn: the twelve most frequent, the others as one, proteins without label.

    Numbers have no classes; their proteins without label have a look all the same.
    """
    drawn: list[Look] = []
    if labels.kind == "class":
        shown = len(labels.classes) if len(labels.classes) <= MOST_CLASSES else MOST_CLASSES - 1
        for index, name in enumerate(labels.classes[:shown]):
            marker = _MARKERS[index // len(_PALETTE) % len(_MARKERS)]
            drawn.append(Look(name, _PALETTE[index % len(_PALETTE)], marker, (index,)))
        rare = tuple(range(shown, len(labels.classes)))
        if rare:
            drawn.append(Look(f"{len(rare)} other classes", OTHER, "s", rare))
    if not labels.known.all():
        name = "all proteins" if labels.kind == "none" else "no label"
        colour = COLOURS[0] if labels.kind == "none" else UNLABELLED
        drawn.append(Look(name, colour, "o", (-1,)))
    return drawn


def projection_figure(findings: ProjectionFindings, path: str | Path) -> None:
    """Draws the panels; with three the legend takes the fourth place.

    Args:
        findings: Projections with their scores.
        path: PNG file to write.
    """
    panels = findings.projected.projections
    legend_inside = len(panels) == 3
    columns, rows = (1, 1) if len(panels) == 1 else (2, 2 if legend_inside else 1)
    figure, axes = new_figure(5.2 * columns + (0 if legend_inside else 2.1), 4.9 * rows + 0.3, columns, rows)
    shade = None
    for panel, projection in zip(axes.flat, panels, strict=False):
        shade = _draw(panel, projection, findings) or shade
        _label(panel, projection, findings)
    spare = axes.flat[len(panels)] if legend_inside else None
    if spare is not None:
        spare.axis("off")
    _legend(figure, spare, findings)
    if shade is not None:
        if spare is not None:
            bar = figure.colorbar(shade, cax=spare.inset_axes((0.05, 0.12, 0.05, 0.76)), extend="both", label="Label")
        else:
            bar = figure.colorbar(shade, ax=list(axes.flat), shrink=0.75, extend="both", label="Label")
        if bar.solids is not None:
            bar.solids.set_alpha(1)
    figure.suptitle(_headline(findings), fontsize=11)
    save(figure, path)


def _draw(panel: Any, projection: Projection, findings: ProjectionFindings) -> Any:
    """Points of one panel; returns the colour scale of numbers."""
    count = len(findings.references)
    labels, queries = findings.labels.part(slice(0, count)), findings.labels.part(slice(count, None))
    size, alpha = _size(count)
    shade = None
    # Proteins without label lie below the others, queries above; among classes the order is by chance, so that none
    # hides another.
    for look in reversed(looks(findings.labels)):
        if -1 in look.codes:
            panel.scatter(
                *projection.references[~labels.known].T, s=size, c=look.colour, alpha=alpha, linewidths=0, zorder=1.5
            )
    if labels.kind == "number":
        low, high = number_range(findings.labels)
        rows = np.flatnonzero(labels.known)
        rows = rows[np.random.default_rng(_SEED).permutation(len(rows))]
        shade = panel.scatter(
            *projection.references[rows].T, s=size, c=labels.numbers[rows], cmap=SCALE, vmin=low, vmax=high,
            alpha=alpha, linewidths=0, zorder=2,
        )
    elif labels.kind == "class":
        _classes(panel, projection.references, labels, findings, size, alpha)
    if len(projection.queries):
        _queries(panel, projection.queries, queries, findings, size)
    return shade


def _classes(
    panel: Any, points: NDArray[np.float32], labels: SpaceLabels, findings: ProjectionFindings, size: float,
    alpha: float,
) -> None:
    drawn = [look for look in looks(findings.labels) if -1 not in look.codes]
    shade = np.zeros(len(labels.classes), dtype=int)
    for place, look in enumerate(drawn):
        shade[list(look.codes)] = place
    palette = np.array([look.colour for look in drawn])
    markers = np.array([look.marker for look in drawn])
    rows = np.flatnonzero(labels.codes >= 0)
    rows = rows[np.random.default_rng(_SEED).permutation(len(rows))]
    for marker in dict.fromkeys(markers):
        chosen = rows[markers[shade[labels.codes[rows]]] == marker]
        panel.scatter(
            *points[chosen].T, s=size, c=palette[shade[labels.codes[chosen]]], marker=str(marker), alpha=alpha,
            linewidths=0, zorder=2,
        )


def _queries(
    panel: Any, points: NDArray[np.float32], labels: SpaceLabels, findings: ProjectionFindings, size: float
) -> None:
    edges = np.full(len(points), "#000000", dtype=object)
    if labels.kind == "class":
        for look in looks(findings.labels):
            if -1 not in look.codes:
                edges[np.isin(labels.codes, look.codes)] = look.colour
    elif labels.kind == "number":
        import matplotlib
        from matplotlib.colors import to_hex

        low, high = number_range(findings.labels)
        scale = matplotlib.colormaps[SCALE]
        for row in np.flatnonzero(labels.known):
            edges[row] = to_hex(scale((labels.numbers[row] - low) / (high - low)))
    big = float(np.clip(3000 / len(points), 6.0, 26.0))
    line = 1.1 if len(points) <= 300 else 0.6
    # White below keeps a hollow marker readable in a crowd, but many of them would hide the references.
    if len(points) <= 100:
        panel.scatter(*points.T, s=big, facecolors="none", edgecolors="white", marker="D", linewidths=2.4, zorder=3)
    panel.scatter(*points.T, s=big, facecolors="none", edgecolors=list(edges), marker="D", linewidths=line, zorder=4)


def number_range(labels: SpaceLabels) -> tuple[float, float]:
    """Ends of the colour scale: the middle 96 % of the numbers, so that single ones do not take all the colours."""
    values = labels.numbers[np.isfinite(labels.numbers)]
    low, high = np.quantile(values, [0.02, 0.98])
    return (float(low), float(high)) if high > low else (float(low), float(low) + 1.0)


def _size(count: int) -> tuple[float, float]:
    """Area of a marker in points² and its opacity by the number of points."""
    size = float(np.clip(2e4 / max(count, 1), 4.0, 34.0))
    return size, float(np.clip(40 / np.sqrt(max(count, 1)), 0.45, 0.85))


def _label(panel: Any, projection: Projection, findings: ProjectionFindings) -> None:
    name = METHOD_NAMES[projection.method]
    facts = []
    agreement = findings.score(projection.method, "neighbour_agreement")
    if agreement is not None:
        facts.append(f"neighbours agree {agreement.value:.0%}")
    correlation = findings.score(projection.method, "neighbour_correlation")
    if correlation is not None and correlation.value == correlation.value:
        facts.append(f"neighbours correlate {correlation.value:.2f}")
    trust = findings.score(projection.method, "trustworthiness")
    if trust is not None:
        facts.append(f"trustworthiness {trust.value:.2f}")
    panel.set_title(name, loc="left", fontweight="bold")
    panel.set_title(", ".join(facts), loc="right", fontsize=9, color="#444444")
    if projection.method == "pca":
        for axis, set_label in enumerate((panel.set_xlabel, panel.set_ylabel)):
            share = findings.projected.explained[axis] if axis < len(findings.projected.explained) else 0.0
            set_label(f"PC{axis + 1} ({share:.1%} of the variance)")
    else:
        # Their units mean nothing, so there are no numbers to read off.
        panel.set(xlabel=f"{name} 1", ylabel=f"{name} 2", xticks=[], yticks=[])
    panel.set_aspect("equal", adjustable="datalim")
    panel.grid(visible=False)


def _legend(figure: Any, spare: Any, findings: ProjectionFindings) -> None:
    from matplotlib.lines import Line2D

    entries = []
    known = findings.labels.codes[: len(findings.references)]
    if findings.labels.kind == "class" or (findings.labels.kind == "none" and len(findings.queries or ())):
        for look in looks(findings.labels):
            rows = int(np.isin(known, look.codes).sum())
            if not rows and -1 in look.codes:  # only queries lack a label
                continue
            text = named(f"{shortened(look.name, 26)} ({rows:,})")
            entries.append(
                Line2D([], [], color=look.colour, marker=look.marker, markersize=6, linestyle="", label=text)
            )
    elif findings.labels.kind == "number" and not findings.labels.known.all():
        entries.append(Line2D([], [], color=UNLABELLED, marker="o", markersize=6, linestyle="", label="no label"))
    if findings.queries is not None:
        text = f"queries ({len(findings.queries):,})"
        entries.append(
            Line2D([], [], color="black", marker="D", markersize=6, linestyle="", fillstyle="none", label=text)
        )
    if not entries:
        return
    title = "Label (references)" if findings.labels.kind == "class" else None
    options: dict[str, Any] = {"frameon": False, "title": title, "fontsize": 9, "alignment": "left"}
    if spare is not None:
        right = 0.25 if findings.labels.kind == "number" else 0.0
        spare.legend(handles=entries, loc="center left", bbox_to_anchor=(right, 0.5), **options)
    else:
        figure.legend(handles=entries, loc="outside right center", **options)


def _headline(findings: ProjectionFindings) -> str:
    """What the picture is of, and the score of the space that it was made from."""
    text = f"{len(findings.references):,} embeddings of {findings.references.description.dimension:,} dimensions"
    agreement = findings.score(FULL, "neighbour_agreement")
    if agreement is not None:
        text += f": {agreement.value:.0%} of nearest neighbours share the label ({agreement.expected:.0%} by chance)"
    correlation = findings.score(FULL, "neighbour_correlation")
    if correlation is not None and correlation.value == correlation.value:
        text += f": labels of neighbours correlate with {correlation.value:.2f} (0 by chance)"
    return text
