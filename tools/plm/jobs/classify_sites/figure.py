"""The figure of classified sites: one track a protein, a line a candidate residue at its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plm.telling.figures import GREY, colour, new_figure, save, shortened

NUMBER = "Predicted number"
_LABELS = 6
"""Called sites of a track that carry their name, the strongest first."""


@dataclass(frozen=True)
class Track:
    """One protein of the figure.

    Attributes:
        name: Title of the track.
        length: Length of the protein in residues.
        places: (n,) 1-based candidate residues, ascending.
        heights: (n,) probability shown, 0-1, or a predicted number.
        called: (n,) whether the site is called.
        letters: n residue letters.
        known: (n,) whether the site is a real one as far as the user told.
    """

    name: str
    length: int
    places: NDArray[np.int64]
    heights: NDArray[np.float64]
    called: NDArray[np.bool_]
    letters: str
    known: NDArray[np.bool_]


def sites_figure(
    tracks: Sequence[Track], path: str | Path, *, proteins: int, height_name: str, threshold: float | None
) -> None:
    """Draws the tracks below each other, each along its own protein, and says how many of how many are shown.

    Args:
        tracks: Tracks from top to bottom; without any the picture says so.
        path: PNG file to write.
        proteins: Proteins with candidates there are.
        height_name: Name of the vertical axis.
        threshold: Drawn as a dashed line; None (several classes, numbers) draws none and tells no calls.
    """
    if not tracks:
        figure, axes = new_figure(6.0, 1.5)
        axes[0, 0].axis("off")
        axes[0, 0].text(0.5, 0.5, "No candidate residue in these proteins", ha="center", va="center")
        save(figure, path)
        return
    figure, axes = new_figure(9.0, 0.95 * len(tracks) + 1.5, 1, len(tracks))
    low, high = 0.0, 1.0
    if threshold is not None:
        high = _ceiling(max([threshold, *(float(track.heights.max()) for track in tracks)]))
    elif height_name == NUMBER:
        low = min(0.0, min(float(track.heights.min()) for track in tracks))
        high = max(float(track.heights.max()) for track in tracks)
        high = high if high > low else low + 1.0
    for panel, track in zip(axes[:, 0], tracks, strict=True):
        _draw(panel, track, low, high, threshold)
    _legend(figure, threshold, any(track.known.any() for track in tracks))
    first = "most called sites" if threshold is not None else "highest values"
    every = f"All {proteins} proteins with candidates" if len(tracks) > 1 else "The one protein with candidates"
    some = f"{len(tracks)} of {proteins} proteins with candidates: those with the {first}"
    figure.suptitle(every if len(tracks) == proteins else some, fontsize=11)
    axes[-1, 0].set_xlabel("Residue", fontsize=10)
    figure.supylabel(height_name, fontsize=10)
    save(figure, path)


def _ceiling(highest: float) -> float:
    """The top of the axis: 1, or less where all probabilities are small (a low stated prevalence)."""
    for top in (0.02, 0.05, 0.1, 0.2, 0.5):
        if highest <= 0.9 * top:
            return top
    return 1.0


def _draw(axes: Any, track: Track, low: float, high: float, threshold: float | None) -> None:
    span = high - low
    width = max(0.8, min(2.0, 300 / max(len(track.places), 1)))
    for called, shade in ((False, "#9a9a9a"), (True, colour(1))):
        chosen = track.called == called
        if chosen.any():
            axes.vlines(track.places[chosen], low, track.heights[chosen], color=shade, linewidth=width)
            if len(track.places) <= 150:
                axes.plot(track.places[chosen], track.heights[chosen], "o", color=shade, markersize=3.2)
    if track.known.any():
        axes.plot(
            track.places[track.known], np.full(track.known.sum(), high + 0.13 * span), "v", color=colour(2),
            markersize=4.5,
        )
    if threshold is not None and threshold <= high:
        axes.axhline(threshold, color=GREY, linestyle="--", linewidth=1.0)
    axes.axhline(low, color="black", linewidth=1.0)
    named = _name_sites(axes, track)
    axes.set_xlim(1 - 0.01 * track.length, track.length * 1.01 + 0.5)
    axes.set_ylim(low, high + 0.28 * span)
    axes.set_yticks([low, high] if threshold is None else [0, high / 2, high])
    axes.tick_params(labelsize=8, length=2)
    axes.grid(axis="x", visible=False)
    sites = f"{len(track.places)} sites" if threshold is None else f"{track.called.sum()} of {len(track.places)} called"
    if named < int(track.called.sum()):
        sites += f" ({named} of these named)"
    name = f"{shortened(track.name, 60)}   {track.length:,} residues, {sites}"
    axes.set_title(name, fontsize=8.5, loc="left", pad=2)


def _name_sites(panel: Any, track: Track) -> int:
    """Names the strongest called sites, but for those too close to a stronger one; returns how many."""
    taken: list[int] = []
    order = np.argsort(-np.where(track.called, track.heights, -np.inf), kind="stable")[: int(track.called.sum())]
    for index in order:
        place = int(track.places[index])
        if len(taken) >= _LABELS:
            break
        if any(abs(place - other) < 0.07 * track.length for other in taken):
            continue
        taken.append(place)
        right = place > 0.93 * track.length
        panel.annotate(
            f"{track.letters[index]}{place}", (place, track.heights[index]), xytext=(-3 if right else 3, 0),
            textcoords="offset points", fontsize=7.5, ha="right" if right else "left", va="bottom",
        )
    return len(taken)


def _legend(figure: Any, threshold: float | None, known: bool) -> None:
    from matplotlib.lines import Line2D

    entries = [Line2D([], [], color=colour(1), marker="o", markersize=4, label="called")]
    if threshold is None:
        entries = []
    else:
        entries.append(Line2D([], [], color="#9a9a9a", marker="o", markersize=4, label="not called"))
        entries.append(Line2D([], [], color=GREY, linestyle="--", label=f"threshold {threshold:.3g}"))
    if known:
        entries.append(Line2D([], [], color=colour(2), marker="v", linestyle="", label="real site (as you told)"))
    if entries:
        figure.legend(handles=entries, loc="outside lower center", ncols=len(entries), frameon=False, fontsize=8)
