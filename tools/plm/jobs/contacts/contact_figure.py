"""Maps of contacts: predicted probabilities above the diagonal, true contacts below."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from numpy.typing import NDArray

from plm.jobs.contacts.bands import CLOSEST, KnownContacts
from plm.telling.figures import COLOURS, new_figure, save, shortened

SingleFloats = NDArray[np.float32]
MOST_MAPS = 4
MOST_CELLS = 600
"""Pixels of a map along each side; longer proteins are drawn coarser, the highest value of a cell counts."""
_CMAP = LinearSegmentedColormap.from_list("plm_contacts", ["#ffffff", "#9ecae1", COLOURS[0], "#08306b"])
_UNKNOWN = "#e4e4e4"


@dataclass(frozen=True)
class ContactMap:
    """One protein to draw.

    Attributes:
        title: What stands above it.
        band: Probabilities; NaN where no window saw a pair.
        known: Contacts, if they are known.
        id: Of the protein.
    """

    title: str
    band: SingleFloats
    known: KnownContacts | None
    id: str = ""


def contact_figure(maps: list[ContactMap], path: Path) -> None:
    """Draws up to four maps side by side.

    Args:
        maps: Proteins; more than :data:`MOST_MAPS` are not drawn.
        path: PNG file to write.
    """
    maps = maps[:MOST_MAPS]
    columns = min(2, max(1, len(maps)))
    rows = max(1, -(-len(maps) // columns))
    width = 9.0 if columns == 2 else 6.5
    figure, axes = new_figure(width, 0.6 + rows * (4.3 if columns == 2 else 5.4), columns, rows)
    image = None
    for panel, one in zip(axes.flat, maps, strict=False):
        image = _draw(panel, one)
    for panel in axes.flat[len(maps) :]:
        panel.set_visible(False)
    if image is not None:
        bar: Any = figure.colorbar(image, ax=axes, shrink=0.7, pad=0.02)
        bar.set_label("Predicted probability of contact")
        bar.outline.set_visible(False)
    save(figure, path)


def _draw(panel: Any, one: ContactMap) -> Any:
    length = len(one.band)
    step = -(-length // MOST_CELLS)
    cells = -(-length // step)
    upper, lower = np.full((cells, cells), np.nan), np.full((cells, cells), np.nan)
    for separation in range(CLOSEST, length):
        i = np.arange(length - separation)
        j = i + separation
        if separation < one.band.shape[1]:
            np.fmax.at(upper, (i // step, j // step), one.band[: length - separation, separation])
        if one.known is not None:
            known = one.known.known(i, j)
            np.fmax.at(lower, (j // step, i // step), np.where(known, one.known.touch(i, j), np.nan))
    picture = np.where(np.tri(cells, cells, 0, dtype=bool), lower, upper)
    extent = (0.5, cells * step + 0.5, cells * step + 0.5, 0.5)
    panel.set_facecolor(_UNKNOWN)
    image = panel.imshow(
        picture, cmap=_CMAP, vmin=0, vmax=1, extent=extent, interpolation="nearest", aspect="equal"
    )
    panel.grid(visible=False)
    panel.plot([0.5, length + 0.5], [0.5, length + 0.5], color="#767676", linewidth=0.6)
    panel.set_xlim(0.5, length + 0.5)
    panel.set_ylim(length + 0.5, 0.5)
    panel.set_title(one.title)
    panel.set_xlabel("Residue")
    panel.set_ylabel("Residue")
    return image


def title_of(name: str, precision: float) -> str:
    """What stands above a map."""
    told = "" if precision != precision else f" (P@L/5, 12+ apart: {precision:.2f})"
    return shortened(name, 34) + told
