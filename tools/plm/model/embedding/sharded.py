"""An embedding job from stored sequences to shards, and from shards to rows in the order of the input.

Sequences are cut into shards in their order. A shard is computed whole, written as a verified file and never touched
again. What the numbers depend on beside the key (rows, windows, where shards end, and how far the budget was halved
when memory ran out) stands beside the shards, so that a job that goes on computes what the killed one would have.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from plm import stage
from plm.data.protein_store import ProteinStore
from plm.data.shards import ShardStore
from plm.errors import UserError
from plm.model import few_shapes
from plm.model.checkpoint import Purpose, load_model
from plm.model.embedding import work_plan
from plm.model.embedding.representations import (
    Embedder,
    EncodingBudget,
    OutOfMemory,
    SequencePart,
    UnfitNumber,
    windows,
)
from plm.model.memory import too_small
from plm.model.ranks import Ranks

Ints = NDArray[np.int64]
_EVERY_SECONDS = 10.0
_USUAL_TOKENS = 602
"""Tokens of the longest sequence for whose shapes :data:`plm.model.few_shapes.KEPT` stands."""
_LONG_SEQUENCE, _LONG_ROW = 4 * 2**20, 6 * 2**20
"""Bytes that oneDNN keeps for each length of sequences beyond those (two products of attention), and of rows beyond the
usual one (three products of a layer)."""


class EmbedJob:
    """Computes the shards of a job and reads them back.

    Args:
        proteins: Proteins of the input.
        embedder: The model and what is wanted of it.
        store: Store of the shards; may hold some already.
        budget: Tokens and residues that the memory holds at a time; those of an earlier run of the same job come first.
        ranks: The processes that share the work.
        log: Logger told of progress.

    Attributes:
        budget: Tokens and residues that the job began with.
        ends: The number after the last sequence of each shard.
    """

    def __init__(
        self, proteins: ProteinStore, embedder: Embedder, store: ShardStore, budget: EncodingBudget, ranks: Ranks,
        log: logging.Logger,
    ) -> None:
        self.proteins, self.embedder, self.store, self._ranks, self._log = proteins, embedder, store, ranks, log
        wanted = embedder.wanted
        self._order, self._edges = _sites_by_sequence(proteins) if wanted.pooling == "sites" else (_NONE, _NONE)
        counts = np.diff(self._edges) if len(self._edges) else np.ones_like(proteins.lengths)
        if ranks.leads and not store.notes("plan"):
            sizes = work_plan.stored_bytes(wanted, embedder.loaded.hidden_size, proteins.lengths, counts)
            tokens = proteins.lengths + embedder.loaded.family.specials
            effort = None
            if embedder.loaded.device.type == "cpu":
                again = work_plan.work_lengths(wanted, proteins.lengths) / proteins.lengths
                effort = again * work_plan.EncodingCost.of(embedder.loaded).each(np.minimum(tokens, budget.whole))
                effort *= np.maximum(1.0, tokens / budget.whole)
            ends = work_plan.shard_ends(tokens, sizes, budget.tokens, effort)
            store.note("plan", {**asdict(budget), "ends": ends})
        ranks.meet()
        plan = store.notes("plan")["plan"]
        self.ends: list[int] = plan.pop("ends")
        self.budget = EncodingBudget(**plan)
        # Where each sequence's residues begin in its shard.
        starts = np.concatenate([[0], self.ends[:-1]]).astype(np.int64)
        self._starts = starts
        self._offsets = np.concatenate([[0], np.cumsum(proteins.lengths)])
        self._halved: dict[int, EncodingBudget] = {}

    def planned_windows(self) -> Ints:
        """Windows that each sequence will go in, (U,), unless memory runs out."""
        return windows(self.proteins.lengths, self.budget.whole)

    def windows(self) -> Ints:
        """Windows that each sequence went in, (U,)."""
        counts = [
            self.store.read(number, "windows", 0, end - int(self._starts[number]))
            for number, end in enumerate(self.ends)
        ]
        return np.concatenate(counts).astype(np.int64)

    def missing(self) -> list[int]:
        """Shards that are still to be computed; each that is there is verified."""
        return [number for number in range(len(self.ends)) if not self.store.holds(number)]

    def seconds(self, shards: Sequence[int]) -> float | None:
        """How long shards will take, timed on this machine; None if that failed (the work will say why)."""
        numbers = np.concatenate([np.arange(self._starts[n], self.ends[n]) for n in shards] or [_NONE])
        try:
            return work_plan.expected_seconds(self.embedder, self.proteins, self.budget, numbers) / self._ranks.world
        except (OutOfMemory, UnfitNumber):
            return None

    def memory(self) -> int:
        """Bytes that the job will take, about."""
        longest = int(min(self.proteins.lengths.max(), self.budget.whole))
        rows = self.embedder.rows_at_once(self.proteins.lengths, self.budget)
        capacity, loaded = self.embedder.capacity, self.embedder.loaded
        kept = self._kept_of_shapes() if few_shapes.applies(loaded.dtype, loaded.device) else 0
        return capacity.fixed + kept + rows * capacity.need(max(self.budget.tokens, longest), longest)

    def _kept_of_shapes(self) -> int:
        """Bytes that oneDNN will keep: for usual shapes, and for each that only long proteins have."""
        seen = np.unique(np.minimum(self.proteins.lengths, self.budget.whole)) + self.embedder.loaded.family.specials
        long = {few_shapes.attended_length(length) for length in seen[seen > _USUAL_TOKENS].tolist()}
        rows = {few_shapes.attended_length(length) for length in seen[seen > self.budget.tokens].tolist()}
        return few_shapes.KEPT + _LONG_SEQUENCE * len(long) + _LONG_ROW * len(rows)

    def compute(self, shards: Sequence[int], ranks: Ranks | None = None) -> None:
        """Computes this process's share of some shards.

        Args:
            shards: All that are to be computed.
            ranks: The processes that share them; by default those of the job.

        Raises:
            UserError: A number is not finite or does not fit the stored type, or the memory does not hold the smallest
                batch.
        """
        ranks = ranks or self._ranks
        left = list(shards[ranks.rank :: ranks.world])
        noted = self.store.notes("budget_*")
        self._halved = {int(name.rpartition("_")[2]): EncodingBudget(**content) for name, content in noted.items()}
        earlier = [int(name.rpartition("_")[2]) for name in self.store.notes("float32_*")]
        if left and earlier and min(earlier) <= left[0]:
            self._widen(left[0])
        residues = sum(int(self._work_lengths(number).sum()) for number in left)
        progress = stage.Progress(self._log, residues, "residues", every=_EVERY_SECONDS)
        while left:
            budget = self._budget_of(left[0])
            rows = self._rows(left[0], budget)
            alike = list(takewhile(lambda n: (self._budget_of(n), self._rows(n, budget)) == (budget, rows), left))  # noqa: B023
            done, due = 0, int(self._work_lengths(left[0]).sum())

            def advance(count: int) -> None:
                nonlocal done
                step = min(count, due - done)  # noqa: B023
                done += step
                if step:
                    progress.advance(step)

            parts = (self._part(number) for number in alike)
            try:
                for number, arrays in self.embedder.compute(parts, budget, rows=rows, advance=advance):
                    lengths = self.proteins.lengths[self._starts[number] : self.ends[number]]
                    arrays["windows"] = windows(lengths, budget.whole).astype(np.int32)
                    self.store.save(number, arrays)
                    advance(due - done)
                    left.pop(0)
                    done, due = 0, int(self._work_lengths(left[0]).sum()) if left else 0
            except OutOfMemory as error:
                progress.advance(-done)
                self._halve(left[0], error)
            except UnfitNumber as error:
                if error.overflow or not self._widen(left[0]):
                    raise self._unfit(left[0], error) from None
                progress.advance(-done)

    def _work_lengths(self, number: int) -> Ints:
        lengths = self.proteins.lengths[self._starts[number] : self.ends[number]]
        return work_plan.work_lengths(self.embedder.wanted, lengths)

    def _rows(self, number: int, budget: EncodingBudget) -> int:
        return self.embedder.rows_at_once(self.proteins.lengths[self._starts[number] : self.ends[number]], budget)

    def _part(self, number: int) -> SequencePart:
        span = range(int(self._starts[number]), self.ends[number])
        sites: list[Ints] = []
        if len(self._edges):
            records = [self._order[self._edges[u] : self._edges[u + 1]] for u in span]
            sites = [self.proteins.places[mine].astype(np.int64) for mine in records]
        return SequencePart(number, [self.proteins.sequences[u] for u in span], sites)

    def _budget_of(self, number: int) -> EncodingBudget:
        """What a shard is computed with: the last halving at or before it, else what the job began with."""
        earlier = [at for at in self._halved if at <= number]
        return self._halved[max(earlier)] if earlier else self.budget

    def _halve(self, number: int, error: OutOfMemory) -> None:
        if error.smaller is None:
            raise too_small(f"{error.tokens} residues", self.embedder.loaded.device) from error
        self._halved[number] = error.smaller
        self.store.note(f"budget_{number:06d}", asdict(error.smaller))
        self._log.warning(
            "Out of memory at %d residues: going on with batches of %d tokens, proteins of up to %d residues whole",
            error.tokens, error.smaller.tokens, error.smaller.whole,
        )
        if self.embedder.loaded.device.type == "cuda":
            torch.cuda.empty_cache()

    def _widen(self, number: int) -> bool:
        """From this shard on in float32, if it was float16 so far; whether it was."""
        embedder = self.embedder
        if embedder.loaded.dtype != torch.float16:
            return False
        self._log.warning("A number is not finite in float16: going on in float32")
        self.store.note(f"float32_{number:06d}", {})
        purpose: Purpose = "masked_lm" if embedder.wanted.head else "encoder"
        loaded = load_model(embedder.loaded.files, purpose=purpose, device=embedder.loaded.device)
        self.embedder = Embedder(loaded, embedder.wanted, embedder.capacity)
        return True

    def _unfit(self, number: int, error: UnfitNumber) -> UserError:
        record = int(self.proteins.firsts[self._starts[number] + error.sequence])
        where = f"{self.proteins.name}, line {int(self.proteins.lines[record])}, id {self.proteins.ids[record]!r}"
        if error.overflow:
            return UserError(
                "A representation is larger than 16 bits can hold (65,504)", where=where, fix="Use --store float32"
            )
        return UserError(
            "The model gives no finite numbers for this protein", where=where,
            fix="Use --precision fp32; if that does not help the model is damaged",
        )

    # ------------------------------------------------------------------------------------------------- reading back

    def values(self) -> Iterator[NDArray[Any]]:
        """The representation of each embedded record, in the order of the input."""
        pooling = self.embedder.wanted.pooling
        ranks = _NONE
        if pooling == "sites":
            ranks = np.empty(len(self.proteins.ids), np.int64)
            ranks[self._order] = np.arange(len(self._order))
        for record, sequence in self.proteins.embedded():
            number, first = self._shard(sequence)
            if pooling == "residues":
                yield self._residues(number, first, sequence, "values")
                continue
            row = sequence - first
            if pooling == "sites":
                row = int(ranks[record] - self._edges[first])
            yield self.store.read(number, "values", row, row + 1)[0]

    def logits(self) -> Iterator[NDArray[np.float32]]:
        """(L, 20) log-probabilities of each embedded record."""
        for _, sequence in self.proteins.embedded():
            yield self._residues(*self._shard(sequence), sequence, "logits")

    def perplexity(self) -> Iterator[tuple[float, int]]:
        """Pseudo-perplexity of each embedded record and the residues that were scored (none: not a number)."""
        for _, sequence in self.proteins.embedded():
            number, first = self._shard(sequence)
            total, count = self.store.read(number, "perplexity", sequence - first, sequence - first + 1)[0].tolist()
            yield (float(np.exp(-total / count)) if count else float("nan")), int(count)

    def contacts(self) -> Iterator[tuple[NDArray[np.int32], NDArray[np.float32]]]:
        """0-based pairs (C, 2) and probabilities (C,) of each embedded record."""
        for _, sequence in self.proteins.embedded():
            number, first = self._shard(sequence)
            row = sequence - first
            ends = self.store.read(number, "contact_ends", max(0, row - 1), row + 1).tolist()
            start = ends[0] if row else 0
            yield (
                self.store.read(number, "contacts", start, ends[-1]),
                self.store.read(number, "contact_p", start, ends[-1]),
            )

    def _shard(self, sequence: int) -> tuple[int, int]:
        number = int(np.searchsorted(self._starts, sequence, side="right")) - 1
        return number, int(self._starts[number])

    def _residues(self, number: int, first: int, sequence: int, name: str) -> NDArray[Any]:
        start, end = (int(self._offsets[at] - self._offsets[first]) for at in (sequence, sequence + 1))
        return self.store.read(number, name, start, end)


_NONE: Ints = np.empty(0, np.int64)


def _sites_by_sequence(proteins: ProteinStore) -> tuple[Ints, Ints]:
    """Records by their sequence, and where each sequence's records begin: (records,), (U + 1,)."""
    records = proteins.accepted
    order = records[np.argsort(proteins.unique[records], kind="stable")]
    edges = np.searchsorted(proteins.unique[order], np.arange(len(proteins.lengths) + 1))
    return order, edges.astype(np.int64)
