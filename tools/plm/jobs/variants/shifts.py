"""Positions that were counted otherwise than in the proteins: in the mature chain, without the first methionine."""

from __future__ import annotations

from collections.abc import Iterable

from plm.data.protein_store import ProteinStore
from plm.jobs.variants.variant_table import VariantRow

FURTHEST = 60
"""Residues by which positions are tried to be shifted; signal and transit peptides have about as many."""
FEWEST = 5
"""Substitutions that must disagree: fewer fit some shift by chance."""
_SHARE = 0.9


def shift_told(proteins: ProteinStore, rows: Iterable[VariantRow]) -> str:
    """A sentence on the shift that makes rejected substitutions of a protein fit; empty if there is none.

    Args:
        proteins: Proteins of the input.
        rows: Rows of the table; those whose residues disagree with their protein count.
    """
    places: dict[int, set[tuple[int, str]]] = {}
    for row in rows:
        if row.record >= 0 and row.substitutions and row.reason and int(proteins.unique[row.record]) >= 0:
            mine = places.setdefault(row.record, set())
            mine.update((one.position - 1, one.wild_type) for one in row.substitutions)
    for record, asked in places.items():
        if len(asked) < FEWEST:
            continue
        letters = proteins.sequences[int(proteins.unique[record])]

        def fits(shift: int, asked: set[tuple[int, str]] = asked, letters: str = letters) -> int:
            return sum(letters[place + shift : place + shift + 1] == letter for place, letter in asked
                       if place + shift >= 0)

        shift = max((one for one in range(-FURTHEST, FURTHEST + 1) if one), key=lambda one: (fits(one), -abs(one)))
        if fits(shift) >= _SHARE * len(asked):
            return (
                f"In {proteins.ids[record]} {fits(shift)} of {len(asked)} rejected residues would agree if positions "
                f"were {abs(shift)} {'higher' if shift > 0 else 'lower'}: the table may count from another start."
            )
    return ""
