"""Stacks of letters along a sequence, as sequence logos have them; drawn as outlines, so that heights are exact.

Drawn here and not with the library logomaker, which works through matplotlib's global state, takes seconds for a panel
of 33 places and brings 14 MB of examples along.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from matplotlib.collections import PathCollection
from matplotlib.font_manager import FontProperties
from matplotlib.path import Path as Outline
from matplotlib.textpath import TextPath
from numpy.typing import NDArray

from plm.scoring.mutagenesis import AMINO_ACIDS
from plm.telling.residue_groups import COLOUR_OF, GROUPS

Floats = NDArray[np.float64]
_WIDTH = 0.92
"""Share of a place's width that a letter fills."""
_PALE = 0.22


@cache
def _outline(letter: str) -> tuple[Floats, Any]:
    """Corners (n, 2) of a letter as wide and high as 1, its lower left corner at 0, and matplotlib's codes of them."""
    path = TextPath((0, 0), letter, size=1, prop=FontProperties(family="DejaVu Sans", weight="bold"), usetex=False)
    corners = path.get_extents()
    # A narrow I keeps its shape instead of becoming a block.
    width = max(corners.width, 0.45 if letter == "I" else 0.0)
    left = corners.x0 - (width - corners.width) / 2
    points = np.asarray(path.vertices, np.float64)
    return (points - [left, corners.y0]) / [width, corners.height], path.codes


def draw_stacks(axis: Any, heights: Floats, strong: NDArray[np.bool_] | None = None) -> tuple[float, float]:
    """Draws letters above and below 0, the highest outermost.

    Args:
        axis: Panel to draw on; place n is centred at x = n.
        heights: (W, 20) heights in the order of :data:`AMINO_ACIDS`; negative ones go below 0.
        strong: (W, 20) letters in full colour, others pale; None: all.

    Returns:
        The lowest and the highest end of a stack.
    """
    outlines: list[Outline] = []
    shades: list[tuple[str, float]] = []
    low = high = 0.0
    for place, row in enumerate(heights):
        for sign in (1, -1):
            bottom = 0.0
            for index in sorted(np.flatnonzero(sign * row > 0), key=lambda at: (abs(row[at]), at)):
                size = abs(float(row[index]))
                start = bottom if sign > 0 else -bottom - size
                points, codes = _outline(AMINO_ACIDS[index])
                outlines.append(Outline(points * [_WIDTH, size] + [place - _WIDTH / 2, start], codes))
                pale = strong is not None and not strong[place, index]
                shades.append((COLOUR_OF[AMINO_ACIDS[index]], _PALE if pale else 1.0))
                bottom += size
            low, high = (low, max(high, bottom)) if sign > 0 else (min(low, -bottom), high)
    # The paths are in the panel's own units, so that they are scaled with it.
    collection = PathCollection(outlines, facecolors=shades, edgecolors="white", linewidths=0.35)
    collection.set_transform(axis.transData)
    axis.add_collection(collection, autolim=False)
    return low, high


def group_handles() -> Sequence[Any]:
    """Entries of a legend for the colours of the letters."""
    from matplotlib.patches import Patch

    return [Patch(facecolor=shade, label=f"{name}: {' '.join(residues)}") for name, residues, shade in GROUPS]
