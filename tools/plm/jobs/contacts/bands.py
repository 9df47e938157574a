"""Pairs of residues as bands: row i and column d stand for the pair of residues i and i + d (0-based).

A protein that goes in windows has no answer for residues farther apart than a window, so a band is as wide as the
longest window and memory grows with length times width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from plm.model.encoder_inputs import segments

Floats = NDArray[np.float64]
SingleFloats = NDArray[np.float32]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
CONTACT = 8.0
"""Angstrom between C-betas below which two residues touch (CASP; Rao et al. 2019)."""
CLOSEST = 6
"""Residues nearer in sequence than this are no contacts."""


class KnownContacts(Protocol):
    """What is known of a protein's contacts."""

    def distances(self, rows: Ints, columns: Ints) -> Floats:
        """Angstrom between residues (0-based); NaN where they are unknown."""

    def touch(self, rows: Ints, columns: Ints) -> Flags:
        """Whether they are in contact."""

    def known(self, rows: Ints, columns: Ints) -> Flags:
        """Whether that is known."""


@dataclass(frozen=True)
class PlacedResidues:
    """Contacts from places.

    Attributes:
        places: ``(L, 3)`` Angstrom; NaN where a residue's place is unknown.
    """

    places: Floats

    def distances(self, rows: Ints, columns: Ints) -> Floats:
        difference: Floats = self.places[rows] - self.places[columns]
        return np.sqrt((difference**2).sum(-1))

    def touch(self, rows: Ints, columns: Ints) -> Flags:
        with np.errstate(invalid="ignore"):
            return self.distances(rows, columns) < CONTACT

    def known(self, rows: Ints, columns: Ints) -> Flags:
        placed = np.isfinite(self.places[:, 0])
        return placed[rows] & placed[columns]


@dataclass(frozen=True)
class ListedPairs:
    """Contacts from a list that is complete: pairs that it does not name do not touch.

    Attributes:
        length: Residues of the protein.
        keys: Sorted numbers ``i * length + j`` (0-based, i < j) of the pairs.
    """

    length: int
    keys: Ints

    @classmethod
    def of(cls, length: int, pairs: Sequence[tuple[int, int]]) -> ListedPairs:
        """From 0-based pairs in any order."""
        keys = {min(pair) * length + max(pair) for pair in pairs}
        return cls(length, np.array(sorted(keys), np.int64))

    def distances(self, rows: Ints, columns: Ints) -> Floats:
        return np.full(len(rows), np.nan)

    def touch(self, rows: Ints, columns: Ints) -> Flags:
        return np.isin(rows * self.length + columns, self.keys)

    def known(self, rows: Ints, columns: Ints) -> Flags:
        return np.ones(len(rows), bool)


@dataclass(frozen=True)
class SequenceWindow:
    """What is encoded together, 0-based and half open."""

    start: int
    end: int


def windows_of(length: int, whole: int) -> list[SequenceWindow]:
    """The windows of a protein of which ``whole`` residues are encoded together."""
    return [SequenceWindow(part.start, part.end) for part in segments(length, whole)]


def pairs_of(length: int, width: int, closest: int = CLOSEST) -> tuple[Ints, Ints]:
    """0-based rows and columns of all pairs that are ``closest`` to ``width - 1`` apart, row by row."""
    separations = np.arange(closest, width)
    rows = np.repeat(np.arange(length), len(separations))
    columns = rows + np.tile(separations, length)
    inside = columns < length
    return rows[inside], columns[inside]


class BandFiller:
    """Puts the answers of windows together: a pair is answered by the window in which it lies farthest from a cut.

    Args:
        length: Residues of the protein.
        windows: Its windows, in their order.
    """

    def __init__(self, length: int, windows: Sequence[SequenceWindow]) -> None:
        self._length = length
        self.width = max(window.end - window.start for window in windows)
        self._margin = np.full((length, self.width), -1, np.int32)
        self.bands: dict[str, SingleFloats] = {}

    def add(self, window: SequenceWindow, values: dict[str, SingleFloats]) -> None:
        """Takes the square maps ``(w, w)`` of a window, by name."""
        size = window.end - window.start
        rows, columns = np.triu_indices(size)
        far = np.iinfo(np.int32).max
        left = rows if window.start else np.full(len(rows), far)
        right = size - 1 - columns if window.end < self._length else np.full(len(rows), far)
        margin = np.minimum(left, right)
        places = (rows + window.start, columns - rows)
        better = margin > self._margin[places]
        places = (places[0][better], places[1][better])
        self._margin[places] = margin[better]
        for name, square in values.items():
            band = self.bands.setdefault(name, np.full((self._length, self.width), np.nan, np.float32))
            band[places] = square[rows[better], columns[better]]


def unseen_pairs(length: int, windows: Sequence[SequenceWindow]) -> int:
    """Pairs at least :data:`CLOSEST` apart that no window holds together."""
    every = max(0, length - CLOSEST) * (length - CLOSEST + 1) // 2
    seen, before = 0, 0
    for window in windows:
        size, shared = window.end - window.start, max(0, before - window.start)
        seen += _pairs(size) - _pairs(shared)
        before = window.end
    return every - seen


def _pairs(size: int) -> int:
    return max(0, size - CLOSEST) * (max(0, size - CLOSEST) + 1) // 2
