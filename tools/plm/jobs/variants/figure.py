"""Scores as heat maps: whole proteins, or the positions that a table asks about."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from plm.data.fasta import STANDARD_RESIDUES
from plm.data.identifiers import accession
from plm.data.protein_store import ProteinStore
from plm.jobs.variants.marginals import EffectScores
from plm.jobs.variants.variant_table import VariantTable
from plm.scoring.mutagenesis import EffectMap, Subject
from plm.telling.figures import shortened
from plm.telling.mutagenesis_figure import DENSE_PLACES, MOST_PANELS, MOST_PLACES, MapWords, mutagenesis_figure

Floats = NDArray[np.float64]
MOST_DRAWN = MOST_PANELS * DENSE_PLACES
"""Residues of one protein that a figure shows."""
SCALE = "Score (log-odds against the residue of the protein, natural logarithm)"
NONE = "No single substitution was scored."


@dataclass(frozen=True)
class Drawn:
    """What a figure shows.

    Attributes:
        shown: How many proteins, or positions of a table.
        of: How many there are to show.
        residues: Positions of the first protein that are shown, if not all of them.
    """

    shown: int
    of: int
    residues: int = 0


def proteins_figure(proteins: ProteinStore, scores: EffectScores, path: Path) -> Drawn:
    """Draws all substitutions of the first proteins that fit a report page.

    Args:
        proteins: Proteins of the input.
        scores: Scores of all their substitutions.
        path: PNG file to write.
    """
    maps: list[EffectMap] = []
    count, whole = 0, 0
    for record, sequence in proteins.embedded():
        profile = scores.of(sequence)[0]
        places = np.flatnonzero(np.isfinite(profile).any(1))
        if not len(places):
            continue
        count += 1
        if count == 1:
            whole = len(places)
        if len(maps) <= MOST_PANELS:
            places = places[:MOST_DRAWN]
            subject = Subject(
                proteins.ids[record], proteins.sequences[sequence], tuple(places.tolist()), tuple((places + 1).tolist())
            )
            maps.append(_map(subject, np.asarray(profile[places], np.float64)))
    first = len(maps[0].subject.places) if maps else 0
    dense = first > MOST_PANELS * MOST_PLACES
    shown = mutagenesis_figure(
        maps, path, none=NONE, words=MapWords(SCALE, lambda one: shortened(one.subject.id, 60), ""),
        most_places=DENSE_PLACES if dense else MOST_PLACES,
    )
    return Drawn(shown, count, first if first < whole else 0)


def table_figure(proteins: ProteinStore, scores: EffectScores, table: VariantTable, path: Path) -> Drawn:
    """Draws the positions that a table asks about side by side, in its order, with dots for its variants.

    Args:
        proteins: Proteins of the input.
        scores: Scores of the substitutions there.
        table: The user's variants.
        path: PNG file to write.
    """
    asked: dict[tuple[int, int], set[str]] = {}
    for row in table.rows:
        if row.scored and len(row.substitutions) == 1:
            asked.setdefault((row.record, row.places[0]), set()).add(row.substitutions[0].mutant)
    columns = list(asked)[: MOST_PANELS * MOST_PLACES]
    if not columns:
        mutagenesis_figure([], path, none=NONE)
        return Drawn(0, 0)
    several = len({record for record, _ in columns}) > 1
    letters, names, values = "", [], []
    calls = np.full((len(columns), 20), "", dtype=object)
    for number, (record, place) in enumerate(columns):
        sequence = int(proteins.unique[record])
        letter = proteins.sequences[sequence][place]
        letters += letter
        protein = f"{shortened(accession(proteins.ids[record]), 16)} " if several else ""
        names.append(f"{protein}{letter}{place + 1}")
        values.append(np.asarray(scores.of(sequence)[0][place], np.float64))
        for mutant in asked[record, place]:
            calls[number, STANDARD_RESIDUES.index(mutant)] = "asked"
    title = "" if several else shortened(proteins.ids[columns[0][0]], 60)
    subject = Subject(title, letters, tuple(range(len(columns))), tuple(place + 1 for _, place in columns))
    words = MapWords(SCALE, lambda one: one.subject.id, "a variant of the table", names)
    mutagenesis_figure([_map(subject, np.array(values), calls.astype(np.str_))], path, words=words)
    return Drawn(len(columns), len(asked))


def _map(subject: Subject, values: Floats, calls: NDArray[np.str_] | None = None) -> EffectMap:
    return EffectMap(subject, "", 0.0, "", values, values, np.full(values.shape, "") if calls is None else calls)
