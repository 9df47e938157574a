"""Mutagenesis maps as heat maps: places along x, the twenty amino acids along y, colours for changes of the answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from numpy.typing import NDArray

from plm.scoring.mutagenesis import AMINO_ACIDS, EffectMap
from plm.telling.figures import COLOURS, new_figure, save, shortened
from plm.telling.residue_groups import GROUPS, ORDER
from plm.wording import counted

Floats = NDArray[np.float64]
MOST_PANELS = 12
"""Heat maps that a report page bears."""
SMALL = 0.2
"""Change of log-odds up to which a map stays pale: odds that grow or shrink by a fifth."""
MOST_PLACES = 41
"""Places beside each other whose letters can be read at the width of a report."""
DENSE_PLACES = 164
"""Places beside each other that can be told apart, without letters."""
_FEWEST_PLACES = 15
"""Places that a map has room for at least, so that those of a few are no broad bars."""
_WILD_TYPE = "#c4c4c4"
_CMAP = LinearSegmentedColormap.from_list("plm_change", [COLOURS[0], "#ffffff", COLOURS[1]])
_ROWS = np.array([AMINO_ACIDS.index(letter) for letter in ORDER])
_GAP = 0.35
"""Rows between the amino acids and their mean."""


@dataclass(frozen=True)
class MapWords:
    """What stands around maps.

    Attributes:
        scale: What the colours mean.
        title: Of a map; its further rows are called continued.
        dot: What a dot marks.
        columns: What the places of a single map are called; else letters and numbers name them.
    """

    scale: str
    title: Callable[[EffectMap], str]
    dot: str
    columns: Sequence[str] = ()


@dataclass(frozen=True)
class _Panel:
    """Some of the places of a map.

    Attributes:
        effects: Map.
        start: First of its places, 0-based.
        stop: Place behind the last one.
        part: How many panels of the map come before.
        most: Places that a panel has at most.
    """

    effects: EffectMap
    start: int
    stop: int
    part: int
    most: int


def mutagenesis_figure(
    maps: Sequence[EffectMap], path: str | Path, *, numbers: bool = False, none: str = "Nothing was mutated.",
    words: MapWords | None = None, most_places: int = MOST_PLACES,
) -> int:
    """Draws maps below each other, long ones in several rows, all with one colour scale centred at 0.

    Args:
        maps: Maps from top to bottom.
        path: PNG file to write.
        numbers: The answers are numbers, not classes.
        none: Sentence that the picture shows instead where there are no maps.
        words: What stands around the maps; None: what suits answers of a bundle.
        most_places: Places beside each other; more than :data:`MOST_PLACES` leave no room for letters.

    Returns:
        How many maps are drawn: those that fit a report page, at least one.
    """
    if not maps:
        figure, axes = new_figure(6.0, 1.5)
        axes[0, 0].axis("off")
        axes[0, 0].text(0.5, 0.5, none, ha="center", va="center", wrap=True)
        save(figure, path)
        return 0
    unit = "in the unit of the labels" if numbers else "in log-odds, natural logarithm"
    words = words or MapWords(f"Change of the answer ({unit})", _title, "the call changes")
    shown = fitting(maps, most_places)
    panels = [panel for effects in maps[:shown] for panel in _panels(effects, most_places)]
    named = 0.085 * max(map(len, words.columns), default=0)
    figure, axes = new_figure(9.0, (3.45 + named) * len(panels) + 0.9, 1, len(panels))
    limit, clipped = _limit(maps[:shown])
    widest = max(_FEWEST_PLACES, *(panel.stop - panel.start for panel in panels))
    for axis, panel in zip(axes[:, 0], panels, strict=True):
        picture = _draw(axis, panel, limit, widest, words)
    figure.colorbar(
        picture, ax=list(axes[:, 0]), label=words.scale, shrink=min(1.0, 1.6 / len(panels)),
        aspect=24, pad=0.015, anchor=(0.0, 1.0), extend="both" if clipped else "neither",
    )
    _legend(figure, maps[:shown], words)
    save(figure, path)
    return shown


def fitting(maps: Sequence[EffectMap], most_places: int = MOST_PLACES) -> int:
    """How many of the maps fit a report page: the first ones, at least one if there is one."""
    panels = 0
    for number, effects in enumerate(maps):
        panels += len(_panels(effects, most_places))
        if number and panels > MOST_PANELS:
            return number
    return len(maps)


def mutagenesis_reading(maps: Sequence[EffectMap], drawn: int, what: str) -> str:
    """How to read the maps, in sentences that are true of these.

    Args:
        maps: At least one.
        drawn: How many of them the figure shows.
        what: What was mutated, one of them: ``call`` or ``protein``.
    """
    numbers = not maps[0].judged
    told = (
        "Each square is the model's answer with one residue replaced: orange where the substitution raises the "
        f"{'predicted number' if numbers else 'log-odds of the class in the title'}, blue where it lowers "
        f"{'it' if numbers else 'them (by 2.3 for ten times smaller odds)'}; the stronger "
        "the colour of a whole column, the more the answer rests on that place."
    )
    if any(one.overturned.any() for one in maps):
        told += " A dot marks substitutions with which another class is called."
    if any(one.subject.site_column is not None for one in maps):
        told += (
            " The frame marks the site itself: with residues there that the model was never trained on, its answer "
            "means little."
        )
    if not numbers and (largest := float(_sizes(maps).max())) < SMALL:
        told += (
            f" No substitution here changes the log-odds by more than {largest:.2g}: these answers rest on no single "
            "residue."
        )
    if drawn and drawn < len(maps):
        told += f" The figure shows {drawn} of {counted(len(maps), what)}; the table has all."
    return f"{told} This is what the model has learned, not a measurement of mutants."


def _panels(effects: EffectMap, most: int) -> list[_Panel]:
    places = len(effects.subject.places)
    count = math.ceil(places / most)
    ends = [round(places * number / count) for number in range(count + 1)]
    return [_Panel(effects, ends[part], ends[part + 1], part, most) for part in range(count)]


def _limit(maps: Sequence[EffectMap]) -> tuple[float, bool]:
    """End of the colour scale, and whether changes lie beyond: a few extreme ones must not make all others pale."""
    sizes = _sizes(maps)
    limit = max(float(np.quantile(sizes, 0.98)), SMALL if maps[0].judged else 1e-6)
    return limit, bool(sizes.max() > limit * 1.001)


def _sizes(maps: Sequence[EffectMap]) -> Floats:
    return np.abs(np.concatenate([one.changes[np.isfinite(one.changes)] for one in maps]))


def _draw(axis: Any, panel: _Panel, limit: float, widest: int, words: MapWords) -> Any:
    effects, subject = panel.effects, panel.effects.subject
    count = panel.stop - panel.start
    changes = effects.changes[panel.start : panel.stop, _ROWS].T
    options: dict[str, Any] = {"cmap": _CMAP, "vmin": -limit, "vmax": limit, "interpolation": "nearest"}
    axis.set_facecolor(_WILD_TYPE)
    picture = axis.imshow(changes, aspect="auto", extent=(-0.5, count - 0.5, 19.5, -0.5), **options)
    bottom = 19.5 + _GAP
    axis.axhspan(19.5, bottom, color="white", zorder=1.5)
    mean = np.nanmean(changes, axis=0, keepdims=True)
    axis.imshow(mean, aspect="auto", extent=(-0.5, count - 0.5, bottom + 1, bottom), **options)
    lost = effects.overturned[panel.start : panel.stop, _ROWS].T
    rows, columns = np.nonzero(lost)
    axis.scatter(columns, rows, s=5 if panel.most == MOST_PLACES else 1, color="black", linewidths=0, zorder=3)
    ends = np.cumsum([len(residues) for _, residues, _ in GROUPS])
    for end in ends[:-1]:
        axis.axhline(end - 0.5, color="white", linewidth=1.6, zorder=2)
    site = subject.site_column
    if site is not None and panel.start <= site < panel.stop:
        left = site - panel.start - 0.5
        axis.plot(
            [left, left + 1, left + 1, left, left], [-0.5, -0.5, bottom + 1, bottom + 1, -0.5], color="black",
            linewidth=1.6, zorder=4, clip_on=False,
        )
    axis.grid(False)
    axis.set(xlim=(-0.5, widest - 0.5), ylim=(bottom + 1, -0.5))
    if count < widest:
        axis.axvspan(count - 0.5, widest - 0.5, color="white", zorder=1)
    for side in ("left", "bottom"):
        axis.spines[side].set_visible(False)
    axis.set_yticks([*range(20), bottom + 0.5], [*ORDER, "mean"], fontsize=7.5)
    if words.columns:
        axis.set_xticks(range(count), words.columns[panel.start : panel.stop], fontsize=7.5, rotation=90)
    elif panel.most > MOST_PLACES:
        axis.set_xticks([])
    else:
        axis.set_xticks(range(count), subject.letters[panel.start : panel.stop], fontsize=8.5)
    axis.tick_params(length=0, pad=1.5)
    if not words.columns:
        _number_places(axis, subject.numbers[panel.start : panel.stop], 5 if panel.most == MOST_PLACES else 20)
    start = 0
    for (name, _, _), end in zip(GROUPS, ends, strict=True):
        axis.annotate(
            name.replace(", ", ",\n"), (0, (start + end - 1) / 2), xycoords=axis.get_yaxis_transform(),
            xytext=(-19, 0), textcoords="offset points", ha="right", va="center", fontsize=7.5, color="#404040",
        )
        start = int(end)
    title = f"{shortened(subject.id, 48)} (continued)" if panel.part else words.title(effects)
    axis.set_title(title, fontsize=9.5, loc="left", pad=13)
    return picture


def _number_places(axis: Any, numbers: Sequence[int], step: int) -> None:
    """Positions above the map: every fifth or twentieth, and the first."""
    for column, number in enumerate(numbers):
        if column and number % step:
            continue
        if column and column < 0.6 * step:  # too close to the first
            continue
        axis.annotate(
            str(number), (column, 1), xycoords=axis.get_xaxis_transform(), xytext=(0, 2), textcoords="offset points",
            ha="center", va="bottom", fontsize=7.5, color="#404040",
        )


def _title(effects: EffectMap) -> str:
    name = shortened(effects.subject.id, 48)
    if not effects.judged:
        return f"{name}, predicted number: {effects.unmutated:.4g}"
    probability = f"{effects.unmutated:.3f}" if effects.unmutated < 0.9995 else "above 0.999"
    return f"{name}, probability of class {shortened(effects.judged, 24)}: {probability}"


def _legend(figure: Any, maps: Sequence[EffectMap], words: MapWords) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    entries: list[Any] = [Patch(facecolor=_WILD_TYPE, label="residue of the protein")]
    if any(one.overturned.any() for one in maps):
        entries.append(Line2D([], [], color="black", marker="o", markersize=3, linestyle="", label=words.dot))
    if any(one.subject.site_column is not None for one in maps):
        entries.append(Patch(facecolor="white", edgecolor="black", linewidth=1.6, label="the site itself"))
    figure.legend(handles=entries, loc="outside lower center", ncols=len(entries), frameon=False, fontsize=8.5)
