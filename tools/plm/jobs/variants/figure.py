"""Scores as heat maps: whole proteins, or the positions that a table asks about."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from plm.data.fasta import STANDARD_RESIDUES
from plm.data.protein_store import ProteinStore
from plm.jobs.variants.marginals import EffectScores
from plm.jobs.variants.variant_table import VariantTable
from plm.scoring.mutagenesis import EffectMap, Subject
from plm.telling.figures import shortened
from plm.telling.mutagenesis_figure import DENSE_PLACES, MOST_PANELS, MOST_PLACES, MapWords, mutagenesis_figure

MOST_DRAWN = MOST_PANELS * DENSE_PLACES
"""Residues of one protein that a figure shows."""
SCALE = "Score (log-odds against the residue of the protein, natural logarithm)"
NONE = "No single substitution was scored."


@dataclass(frozen=True)
class Drawn:
    """What a figure shows.

    Attributes:
        proteins: How many proteins.
        of: How many there are to show.
        residues: Positions of the first protein that are shown, if not all of them.
    """

    proteins: int
    of: int
    residues: int = 0


def effects_figure(proteins: ProteinStore, scores: EffectScores, table: VariantTable | None, path: Path) -> Drawn:
    """Draws the first proteins that fit a report page.

    Args:
        proteins: Proteins of the input.
        scores: Scores of their substitutions.
        table: The user's variants, which get dots; None: all substitutions were asked for.
        path: PNG file to write.
    """
    asked = _asked(table)
    maps: list[EffectMap] = []
    count = 0
    for record, places in _subjects(proteins, scores, asked):
        count += 1
        if len(maps) <= MOST_PANELS:
            maps.append(_map(proteins, scores, record, places[:MOST_DRAWN], asked))
    first = 0 if not maps else len(maps[0].subject.places)
    dense = first > MOST_PANELS * MOST_PLACES
    dot = "a variant of the table" if table is not None else ""
    shown = mutagenesis_figure(
        maps, path, none=NONE, words=MapWords(SCALE, lambda one: shortened(one.subject.id, 60), dot),
        most_places=DENSE_PLACES if dense else MOST_PLACES,
    )
    return Drawn(shown, count, first if maps and _positions(proteins, scores, asked) > first else 0)


def _asked(table: VariantTable | None) -> dict[int, dict[int, set[str]]]:
    """Residues that the table puts in place of others, by record and 0-based position."""
    asked: dict[int, dict[int, set[str]]] = {}
    for row in table.rows if table else []:
        if row.scored:
            for one in row.substitutions:
                asked.setdefault(row.record, {}).setdefault(one.position - 1, set()).add(one.mutant)
    return asked


def _subjects(
    proteins: ProteinStore, scores: EffectScores, asked: dict[int, dict[int, set[str]]]
) -> Iterator[tuple[int, list[int]]]:
    """(record, positions with scores) of the proteins that have some."""
    for record, sequence in proteins.embedded():
        if asked and record not in asked:
            continue
        places = np.flatnonzero(np.isfinite(scores.of(sequence)[0]).any(1)).tolist()
        if asked:  # another record of the same sequence may have asked about other positions
            places = [place for place in places if place in asked[record]]
        if places:
            yield record, places


def _positions(proteins: ProteinStore, scores: EffectScores, asked: dict[int, dict[int, set[str]]]) -> int:
    """Positions of the first protein that has some."""
    return len(next(_subjects(proteins, scores, asked), (0, []))[1])


def _map(
    proteins: ProteinStore, scores: EffectScores, record: int, places: list[int],
    asked: dict[int, dict[int, set[str]]],
) -> EffectMap:
    sequence = int(proteins.unique[record])
    letters, profile = proteins.sequences[sequence], scores.of(sequence)[0]
    changes = np.asarray(profile[places], np.float64)
    calls = np.full(changes.shape, "", dtype=object)
    for row, place in enumerate(places):
        for letter in asked.get(record, {}).get(place, ()):
            calls[row, STANDARD_RESIDUES.index(letter)] = "asked"
    subject = Subject(proteins.ids[record], letters, tuple(places), tuple(place + 1 for place in places))
    return EffectMap(subject, "", 0.0, "", changes, changes, calls.astype(np.str_))
