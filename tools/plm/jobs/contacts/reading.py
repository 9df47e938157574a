"""Runs the model over proteins, window by window, and gives bands of probabilities or what heads learn from."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from plm.errors import UserError
from plm.jobs.contacts.bands import BandFiller, SequenceWindow, windows_of
from plm.jobs.contacts.contact_heads import ContactHead, attention_heads, pair_features, window_maps
from plm.model import encoder
from plm.model.batching import Batch, pack
from plm.model.capacity import Capacity, is_out_of_memory
from plm.model.embedding.representations import SMALLEST, contact_bytes
from plm.model.loaded import LoadedModel

Ints = NDArray[np.int64]
SingleFloats = NDArray[np.float32]
Bands = dict[str, SingleFloats]


@dataclass(frozen=True)
class LearningPairs:
    """Pairs of one window that heads learn from.

    Attributes:
        features: ``(P, layers * heads)`` float32 of the attention maps.
        states: ``(w, D)`` float32 of the window's residues.
        rows: ``(P,)`` 0-based in the window; ``columns`` likewise.
        columns: The other residue of each pair.
        numbers: ``(P,)`` which of the wanted pairs each is.
    """

    features: SingleFloats
    states: torch.Tensor
    rows: Ints
    columns: Ints
    numbers: Ints


class ContactReader:
    """One model over many proteins; one window at a time on an accelerator, one a thread on processors.

    Args:
        loaded: The model.
        capacity: Memory where it runs.
        log: Told when the memory does not hold a window after all.
        whole: Residues of a window that the user wants; 0: what the memory and the model hold.

    Attributes:
        whole: Residues that are encoded together; longer proteins go in windows.

    Raises:
        UserError: The memory does not hold the smallest window.
    """

    def __init__(self, loaded: LoadedModel, capacity: Capacity, log: logging.Logger, whole: int = 0) -> None:
        self.loaded, self._capacity, self._log = loaded, capacity, log
        fits = int((capacity.room / self._bytes(1)) ** 0.5) - loaded.family.specials
        if fits < SMALLEST:
            raise UserError(
                f"The attention maps of {SMALLEST} residues do not fit the memory that is left "
                f"({capacity.room >> 20} MiB)",
                where=str(loaded.device), fix="Use a smaller model, or give the job more memory",
            )
        self.whole = min(limit for limit in (fits, loaded.family.max_residues, whole) if limit)

    def _bytes(self, tokens: int) -> int:
        """Memory of one window: the maps of a layer, and bands and squares of a few heads."""
        return contact_bytes(self.loaded, tokens) + 64 * tokens**2

    def windows(self, length: int) -> list[SequenceWindow]:
        return windows_of(length, self.whole)

    def bands(self, sequences: Sequence[str], heads: Mapping[str, ContactHead]) -> Iterator[Bands]:
        """Probabilities of each protein's pairs by each head, protein by protein; NaN where no window sees a pair."""
        done = 0
        while done < len(sequences):
            try:
                for bands in self._bands(sequences[done:], heads):
                    yield bands
                    done += 1
            except (MemoryError, RuntimeError) as error:
                self._halve(error, len(sequences[done]))

    def _bands(self, sequences: Sequence[str], heads: Mapping[str, ContactHead]) -> Iterator[Bands]:
        cut = [self.windows(len(sequence)) for sequence in sequences]
        work = [(number, window) for number, windows in enumerate(cut) for window in windows]
        longest = max(window.end - window.start for _, window in work)
        rows = max(1, min(encoder.workers(self.loaded.device), self._capacity.room // self._bytes(longest)))

        def compute(batch: Batch) -> Bands:
            number, window = work[batch.indices[0]]
            return window_maps(self.loaded, sequences[number][window.start : window.end], heads)

        batches = (pack([[0]], [at]) for at in range(len(work)))
        answers = encoder.run(self.loaded, batches, compute, rows=rows)
        for number, windows in enumerate(cut):
            filler = BandFiller(len(sequences[number]), windows)
            for window in windows:
                filler.add(window, next(answers))
            yield filler.bands

    def learning(self, sequence: str, rows: Ints, columns: Ints) -> list[LearningPairs]:
        """What heads learn from wanted pairs (0-based) of one protein; pairs that no window sees are left out."""
        while True:
            try:
                return self._learning(sequence, rows, columns)
            except (MemoryError, RuntimeError) as error:
                self._halve(error, len(sequence))

    def _learning(self, sequence: str, rows: Ints, columns: Ints) -> list[LearningPairs]:
        left = np.ones(len(rows), bool)
        parts = []
        for window in self.windows(len(sequence)):
            mine = np.flatnonzero(left & (rows >= window.start) & (columns < window.end))
            left[mine] = False
            near, far = rows[mine] - window.start, columns[mine] - window.start
            features, states = pair_features(self.loaded, sequence[window.start : window.end], near, far)
            parts.append(LearningPairs(features, states, near, far, mine))
        return parts

    def _halve(self, error: Exception, length: int) -> None:
        if not is_out_of_memory(error):
            raise error
        half = min(self.whole, length) // 2
        if half < SMALLEST:
            raise UserError(
                "The memory does not hold the attention maps of one window", where=str(self.loaded.device),
                fix="Use a smaller model, or give the job more memory",
            ) from error
        self.whole = half
        self._log.warning("Out of memory at %d residues: going on with windows of %d", length, half)
        if self.loaded.device.type == "cuda":
            torch.cuda.empty_cache()

    @property
    def features(self) -> int:
        """Numbers that the regression reads of a pair."""
        return self.loaded.layers * attention_heads(self.loaded)
