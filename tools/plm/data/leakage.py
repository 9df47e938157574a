"""Leakage: what the rows that judge a model share with the rows that trained it.

A row leaks if, with any row it must be independent of, it shares the protein or the group, or is a relative by
:mod:`plm.data.homology` (identity at or above the limit, or, for windows, a shared stretch). Test rows must be
independent of training and validation rows, validation rows of training rows, rows of a fold of all other folds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from plm.data import homology
from plm.data.examples import Example

if TYPE_CHECKING:
    import pandas as pd

_FEW = 2000
THRESHOLDS = (0.3, 0.4, 0.5, 0.7, 0.9, 1.0)


@dataclass(frozen=True, slots=True)
class Leak:
    """What one row shares with the rows it must be independent of.

    Attributes:
        id: Id of the row.
        split: Split or fold of the row.
        nearest: Id of the nearest relative, empty if none was found.
        identity: Its identity, 0-1 (the measure is the one of :mod:`plm.data.homology`).
        same_protein: A row of the same protein is on the other side.
        same_group: A row of the same group is on the other side.
        shared_stretch: A window with the same stretch of residues is on the other side.
        distance: Residues to the nearest site of the same protein on the other side, if positions are known.
        leaks: Any of these, or identity at or above the limit.
    """

    id: str
    split: str
    nearest: str
    identity: float
    same_protein: bool
    same_group: bool
    shared_stretch: bool
    distance: int | None
    leaks: bool


def measure(
    examples: Sequence[Example], *, identity: float | None, coverage: float, threads: int, method: str = "auto",
    pairs: Sequence[homology.Relative] | None = None,
) -> list[Leak]:
    """Compares every row that judges with the rows it must be independent of.

    Args:
        examples: Rows with ``split`` (train, valid, test or a fold number), ``protein`` and ``group``.
        identity: Identity at which a relative counts as a leak; None: the default of the method.
        coverage: As in :mod:`plm.data.homology`.
        threads: Processor threads.
        method: ``exact``, ``mmseqs`` or ``auto``; compared are whole proteins where they are known, else the rows'
            sequences.
        pairs: Relatives at any identity among the distinct compared sequences in order of first appearance, where a
            search was made already (``mmseqs``).

    Returns:
        One entry for each validation, test or fold row, in row order.
    """
    sequences = [example.whole or example.sequence for example in examples]
    if method == "auto":
        method = "exact" if homology.choose_method(sequences) == "exact" else "mmseqs"
    limit = homology.default_identity(method, identity)
    leaks: dict[int, Leak] = {}
    sides = [(judged, others) for judged, others in _sides(examples) if judged and others]
    if not sides:
        return []
    if method == "mmseqs" and pairs is None and len(sequences) <= _FEW:  # one search for all folds
        pairs = homology.relatives(
            list(dict.fromkeys(sequences)), identity=0.0, coverage=coverage, threads=threads, method=method
        )
    for judged, others in sides:
        if pairs is not None:
            nearest = _nearest_of(pairs, sequences, judged, others)
        else:
            nearest = homology.nearest(
                [sequences[row] for row in judged], [sequences[row] for row in others], coverage=coverage,
                threads=threads, method=method, among=sequences,
            )
        proteins = {examples[row].protein for row in others} - {""}
        groups = {examples[row].group for row in others} - {""}
        places: dict[str, list[int]] = defaultdict(list)
        for row in others:
            place = examples[row].protein_position
            if place is not None:
                places[examples[row].protein].append(place)
        stretches = _stretches(sequences[row] for row in others) if method == "exact" else set()
        for row, (other, score) in zip(judged, nearest, strict=True):
            example = examples[row]
            place = example.protein_position
            distances = [abs(place - there) for there in places.get(example.protein, [])] if place is not None else []
            same_protein, same_group = example.protein in proteins, example.group in groups
            shared = bool(stretches) and not stretches.isdisjoint(_stretches([sequences[row]]))
            leaks[row] = Leak(
                example.id, example.split, examples[others[other]].id if other >= 0 else "", score, same_protein,
                same_group, shared, min(distances, default=None),
                same_protein or same_group or shared or (other >= 0 and score >= limit - 1e-9),
            )
    return [leaks[row] for row in sorted(leaks)]


def _nearest_of(
    pairs: Sequence[homology.Relative], sequences: Sequence[str], judged: Sequence[int], others: Sequence[int]
) -> list[tuple[int, float]]:
    """As :func:`plm.data.homology.nearest`, from relatives that are known already; indices are places in ``others``."""
    number = {sequence: index for index, sequence in enumerate(dict.fromkeys(sequences))}
    place: dict[int, int] = {}
    for index, row in enumerate(others):
        place.setdefault(number[sequences[row]], index)
    best: dict[int, tuple[int, float]] = {index: (where, 1.0) for index, where in place.items()}
    for pair in pairs:
        for one, other in ((pair.first, pair.second), (pair.second, pair.first)):
            if other in place and pair.identity > best.get(one, (-1, 0.0))[1]:
                best[one] = (place[other], pair.identity)
    return [best.get(number[sequences[row]], (-1, 0.0)) for row in judged]


def _sides(examples: Sequence[Example]) -> list[tuple[list[int], list[int]]]:
    parts: dict[str, list[int]] = defaultdict(list)
    for row, example in enumerate(examples):
        parts[example.split].append(row)
    if any(part.isdigit() for part in parts):
        everyone = [row for part in parts if part.isdigit() for row in parts[part]]
        return [
            (parts[part], [row for row in everyone if examples[row].split != part])
            for part in sorted(parts)
            if part.isdigit()
        ]
    return [(parts["valid"], parts["train"]), (parts["test"], parts["train"] + parts["valid"])]


def _stretches(sequences: Iterable[str]) -> set[str]:
    length = homology.SHARED_STRETCH
    return {
        sequence[start : start + length]
        for sequence in sequences
        for start in range(len(sequence) - length + 1)
        if "X" not in sequence[start : start + length]
    }


def to_frame(leaks: Sequence[Leak], window: int) -> pd.DataFrame:
    """The leakage table; ``within_window`` says whether a site of the same protein lies within ``window`` residues."""
    import pandas as pd

    def yes(value: bool) -> str:
        return "yes" if value else "no"

    columns = [
        "id", "split", "nearest", "identity", "same_protein", "same_group", "shared_stretch", "residues_to_site",
        "within_window", "leaks",
    ]
    rows = [
        (
            leak.id,
            leak.split,
            leak.nearest,
            f"{leak.identity:.3f}" if leak.nearest else "",
            yes(leak.same_protein),
            yes(leak.same_group),
            yes(leak.shared_stretch),
            "" if leak.distance is None else str(leak.distance),
            yes(near(leak, window)),
            yes(leak.leaks),
        )
        for leak in leaks
    ]
    return pd.DataFrame(rows, columns=columns, dtype=str)


def near(leak: Leak, window: int) -> bool:
    """Whether a site of the same protein on the other side lies within ``window`` residues, so that windows overlap."""
    return leak.distance is not None and leak.distance <= window


def counts(leaks: Sequence[Leak], window: int) -> dict[str, int]:
    """How many rows leak, by cause and at each threshold of identity."""
    tally = {
        "records": len(leaks),
        "leaks": sum(leak.leaks for leak in leaks),
        "same protein": sum(leak.same_protein for leak in leaks),
        "same group": sum(leak.same_group for leak in leaks),
        "shared stretch": sum(leak.shared_stretch for leak in leaks),
        "within window": sum(near(leak, window) for leak in leaks),
    }
    for threshold in THRESHOLDS:
        tally[f"identity >= {threshold:.0%}"] = sum(
            bool(leak.nearest) and leak.identity >= threshold - 1e-9 for leak in leaks
        )
    return tally
