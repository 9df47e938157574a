"""Representations of sequences as one array in memory: means over proteins, or chosen residues."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from plm.errors import UserError
from plm.model.capacity import capacity
from plm.model.embedding.representations import Embedder, OutOfMemory, SequencePart, UnfitNumber, Wanted
from plm.model.embedding.work_plan import first_budget
from plm.model.loaded import LoadedModel
from plm.model.memory import too_small

_PART_TOKENS = 65_536


def represent(
    loaded: LoadedModel, sequences: Sequence[str], places: Sequence[NDArray[np.int64]] | None = None, *,
    advance: Callable[[int], None] | None = None,
) -> NDArray[np.float32]:
    """Last-layer representations; proteins that the memory does not hold go in overlapping windows.

    Args:
        loaded: Model that encodes.
        sequences: Cleaned sequences.
        places: 0-based residues of each sequence; None: the mean over all residues.
        advance: Called with the residues done.

    Returns:
        (N, D), or (total number of places, D) in their order.

    Raises:
        UserError: The memory does not hold the smallest batch, or a number is not finite.
    """
    wanted = Wanted((loaded.layers,), "mean" if places is None else "sites")
    room = capacity(loaded)
    embedder = Embedder(loaded, wanted, room)
    budget = first_budget(room, loaded, wanted)
    ends: list[int] = []
    used = 0
    for number, sequence in enumerate(sequences):
        used += len(sequence)
        if used >= _PART_TOKENS or number == len(sequences) - 1:
            ends.append(number + 1)
            used = 0
    values: list[NDArray[np.float32]] = []

    def parts(first: int) -> Iterator[SequencePart]:
        for number in range(first, len(ends)):
            span = slice(ends[number - 1] if number else 0, ends[number])
            mine = list(sequences[span])
            yield SequencePart(
                number, mine, [] if places is None else [np.asarray(each, np.int64) for each in places[span]]
            )

    lengths = np.array([len(sequence) for sequence in sequences], np.int64)
    while len(values) < len(ends):
        rows = embedder.rows_at_once(lengths, budget)
        try:
            for _, arrays in embedder.compute(parts(len(values)), budget, rows=rows, advance=advance):
                values.append(arrays["values"])
        except OutOfMemory as error:
            if error.smaller is None:
                raise too_small(f"{error.tokens} residues", loaded.device) from error
            budget = error.smaller
            if loaded.device.type == "cuda":
                torch.cuda.empty_cache()
        except UnfitNumber as error:
            raise UserError(
                "The model gives no finite numbers", where=loaded.files.id,
                fix="Use --precision fp32; if that does not help the model is damaged",
            ) from error
    return np.concatenate(values) if values else np.zeros((0, loaded.hidden_size), np.float32)
