"""What evaluated rows share with the rows that a model was trained and chosen on: the split's leakage, told again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from plm.data import homology, leakage
from plm.data.examples import Example
from plm.scoring.assessment import Leaking

if TYPE_CHECKING:
    import pandas as pd

_COVERAGE = 0.8
_NEAR = 33
"""Residues: sites of one protein that are nearer have overlapping windows of the usual width."""


def leaking(frame: pd.DataFrame, ids: Sequence[str], threads: int) -> Leaking:
    """Compares evaluated rows with the training and validation rows (with folds: the other folds) of their dataset.

    Args:
        frame: A checked dataset table with ``split`` or ``fold``.
        ids: Id of each evaluated row; all in the table (:func:`plm.jobs.evaluate.baseline_rows.prepare` sees to it).
        threads: Processor threads.
    """
    column = "split" if "split" in frame else "fold"
    wanted = set(ids)
    chosen = frame[frame["id"].isin(wanted) | frame[column].isin(("train", "valid")) | (column == "fold")]
    examples = _examples(chosen, column)
    near = max(map(len, chosen["sequence"]), default=0)
    near = near if near <= homology.LONGEST_WINDOW else _NEAR
    by_id = {
        leak.id: leak
        for leak in leakage.measure(examples, identity=None, coverage=_COVERAGE, threads=threads)
        if leak.id in wanted
    }
    leaks = [by_id.get(name) for name in ids]
    limit = homology.default_identity(homology.choose_method([one.sequence for one in examples]), None)
    sides = "the other folds" if column == "fold" else "training or validation rows"
    return Leaking(
        rows=_mask(leaks, lambda leak: leak.leaks), protein=int(_mask(leaks, lambda leak: leak.same_protein).sum()),
        near=int(_mask(leaks, lambda leak: leakage.near(leak, near)).sum()),
        relative=int(_mask(leaks, lambda leak: bool(leak.nearest) and leak.identity >= limit - 1e-9).sum()),
        residues=near, limit=limit, sides=sides,
    )


def _mask(leaks: Sequence[leakage.Leak | None], holds: Callable[[leakage.Leak], bool]) -> NDArray[np.bool_]:
    return np.array([leak is not None and holds(leak) for leak in leaks], dtype=bool)


def _examples(frame: pd.DataFrame, column: str) -> list[Example]:
    count = len(frame)

    def values(name: str) -> list[str]:
        return list(frame[name].astype(str)) if name in frame else [""] * count

    return [
        Example(
            id=name, sequence=sequence, split=split, protein=protein, group=group,
            protein_position=int(place) if place.isdigit() else None,
        )
        for name, sequence, split, protein, group, place in zip(
            values("id"), values("sequence"), values(column), values("protein"), values("group"),
            values("protein_position"), strict=True,
        )
    ]
