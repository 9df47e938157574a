"""Masks that belong to a sequence's content: the same residues are hidden whatever the order of the records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from plm.masked_lm.corpus_store import CorpusStore
from plm.model.batching import Batch


@dataclass(frozen=True)
class MaskPlan:
    """Which residues of a sequence are hidden: it follows from the sequence's content, so order, workers and the other
    records do not matter.

    Attributes:
        seed: Seed of the masks.
        sets: Fixed sets of masks that epochs take in turn; 0 for fresh ones in every epoch.
        rate: Share of residues to predict, 0-1; at least one a sequence.
        crop: Longer sequences give a stretch of this many residues, another one in each set.
    """

    seed: int = 42
    sets: int = 1
    rate: float = 0.15
    crop: int = 512

    def __post_init__(self) -> None:
        if self.sets < 0 or not 0 < self.rate < 1 or self.crop < 1 or self.seed < 0:
            raise ValueError(f"{self} is out of range")

    def set_of(self, epoch: int) -> int:
        """The set of masks that an epoch uses, both from 0."""
        return epoch % self.sets if self.sets else epoch

    def masked(self, store: CorpusStore, index: int, set_number: int) -> tuple[np.ndarray, np.ndarray]:
        """Masks one sequence.

        Args:
            store: Corpus that holds the sequence.
            index: Number of the sequence in the corpus.
            set_number: Number of the set of masks, from 0.

        Returns:
            ``(L,)`` int64 residue ids after masking, and ``(L,)`` int64 targets: the true id where a residue is to be
            predicted, else ``IGNORED``. The counts are exact, see :meth:`plm.masked_lm.corpus.Corpus.hide`.
        """
        generator = self._generator(store, index, set_number)
        residues = store.stretch(index, self.crop, generator)
        return residues, store.hide(residues, self.rate, generator)

    def intact(self, store: CorpusStore, index: int, set_number: int) -> np.ndarray:
        """``(L,)`` int64 residue ids of the same stretch without masks."""
        return store.stretch(index, self.crop, self._generator(store, index, set_number))

    def _generator(self, store: CorpusStore, index: int, set_number: int) -> np.random.Generator:
        numbers = np.ascontiguousarray(store.digests[index]).view("<u4").tolist()
        parts = [self.seed & 0xFFFFFFFF, self.seed >> 32, set_number, round(self.rate * 1e9), self.crop]
        return np.random.default_rng([*numbers, *parts])

    def row(self, store: CorpusStore, members: Sequence[int], set_number: int) -> tuple[Batch, torch.Tensor]:
        """Masked sequences as a packed row with its ``(T,)`` int64 targets."""
        pairs = [self.masked(store, int(member), set_number) for member in members]
        return store.row([int(member) for member in members], [one for one, _ in pairs], [two for _, two in pairs])

    def intact_row(self, store: CorpusStore, members: Sequence[int], set_number: int) -> Batch:
        """The same stretches without masks as a packed row."""
        stretches = [self.intact(store, int(member), set_number) for member in members]
        return store.row([int(member) for member in members], stretches)[0]
