"""Where the entries of a teacher cache are: some forty bytes each in memory, found many at a time."""

from __future__ import annotations

import numpy as np

BY_MASKED = ("logits", "values", "ids", "rest")
"""Arrays with a row for each masked residue."""
ENTRY = ("digests", "sets", "masked", "residues")
"""Arrays of a shard that say what its entries are: digest, set of masks, masked residues, residues."""


class EntryIndex:
    """Where entries are: a few numbers each, looked up many at a time.

    Attributes:
        shard: ``(E,)`` shard of each entry.
        shards: Numbers of the shards that are taken up.
    """

    def __init__(self) -> None:
        self._parts: dict[int, dict[str, np.ndarray]] = {}
        self._sorted: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] | None = None
        self.shard = np.zeros(0, np.int32)
        self._starts: dict[str, np.ndarray] = {}
        self._stops: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return sum(len(part["sets"]) for part in self._parts.values())

    @property
    def shards(self) -> set[int]:
        return set(self._parts)

    def add(self, number: int, entries: dict[str, np.ndarray]) -> None:
        self._parts[number], self._sorted = entries, None

    def remove(self, number: int) -> None:
        self._parts.pop(number, None)
        self._sorted = None

    def find(self, digests: np.ndarray, set_number: int) -> np.ndarray:
        """The entry of each digest under a set of masks, -1 where there is none."""
        if self._sorted is None:
            self._sort()
        assert self._sorted is not None
        wanted = np.ascontiguousarray(digests).view(np.uint64).reshape(-1, 2)
        entry_of = np.full(len(wanted), -1, np.int64)
        if set_number not in self._sorted:
            return entry_of
        high, low, entries = self._sorted[set_number]
        first = np.searchsorted(high, wanted[:, 0], side="left")
        last = np.searchsorted(high, wanted[:, 0], side="right")
        # As good as always one candidate: two digests that agree in their first half are looked at one by one.
        for step in range(int((last - first).max(initial=0))):
            place = first + step
            hit = place < last
            hit[hit] = low[place[hit]] == wanted[hit, 1]
            entry_of[hit] = entries[place[hit]]
        return entry_of

    def span(self, entry: int, name: str) -> tuple[int, int]:
        """Rows of an array of the entry's shard that belong to the entry."""
        kind = "masked" if name in BY_MASKED else "residues" if name == "hidden" else "one"
        return int(self._starts[kind][entry]), int(self._stops[kind][entry])

    def _sort(self) -> None:
        numbers = sorted(self._parts)
        parts = [self._parts[number] for number in numbers]
        counts = [len(part["sets"]) for part in parts]
        self.shard = np.repeat(np.array(numbers, np.int32), counts)
        for kind in ("masked", "residues", "one"):
            sizes = [part[kind].astype(np.int64) if kind != "one" else np.ones(len(part["sets"]), np.int64)
                     for part in parts]
            stops = [np.cumsum(each) for each in sizes]
            none = [np.zeros(0, np.int64)]
            self._stops[kind] = np.concatenate(stops or none)
            self._starts[kind] = np.concatenate([a - b for a, b in zip(stops, sizes, strict=True)] or none)
        self._sorted = {}
        if not parts:
            return
        sets = np.concatenate([part["sets"] for part in parts])
        halves = np.concatenate([part["digests"] for part in parts]).view(np.uint64).reshape(-1, 2)
        for number in np.unique(sets).tolist():
            mine = np.flatnonzero(sets == number)
            order = mine[np.argsort(halves[mine, 0], kind="stable")]
            self._sorted[number] = (halves[order, 0].copy(), halves[order, 1].copy(), order)
