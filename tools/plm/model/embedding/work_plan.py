"""The plan of an embedding job: what the memory holds, where the work is cut into shards, how long it will take."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from plm.data.protein_store import ProteinStore
from plm.errors import MemoryShortage
from plm.model import encoder
from plm.model.capacity import Capacity, measured
from plm.model.embedding.representations import (
    SMALLEST,
    Embedder,
    EncodingBudget,
    OutOfMemory,
    SequencePart,
    UnfitNumber,
    Wanted,
    contact_bytes,
)
from plm.model.families import AMINO_ACIDS
from plm.model.loaded import LoadedModel

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
ROWS_IN_SHARD = 64
SHARD_BYTES = 128 * 2**20
"""What a shard may hold: it is in memory until it is written."""
SHARD_OPERATIONS = 1e13
"""Of a shard on a processor: five minutes, which a killed job loses at most, of a single slow core."""
_SAMPLE_SECONDS = 1.0
_LARGER = 4
"""So many usual rows go into one on a GPU that holds it, where little comes back of each token."""
_PROBE = 4096
"""Residues of a row whose memory is measured."""
_SAMPLED = 20_000
"""Sequences whose lengths stand for all in the estimate of time."""


@dataclass(frozen=True)
class EncodingCost:
    """Floating-point operations of a forward pass.

    Attributes:
        token: Operations for each token.
        pair: Operations for each pair of tokens of a sequence (attention).
    """

    token: float
    pair: float

    @classmethod
    def of(cls, loaded: LoadedModel) -> EncodingCost:
        """Counts the weights outside the embedding tables: two operations each; attention four a pair and width."""
        weights = sum(parameter.numel() for name, parameter in loaded.model.named_parameters() if "embed" not in name)
        return cls(2.0 * weights, 4.0 * loaded.layers * loaded.hidden_size)

    def each(self, lengths: Ints) -> Floats:
        """Operations of each of some sequences, by their tokens."""
        sizes = lengths.astype(np.float64)
        return np.asarray(self.token * sizes + self.pair * sizes**2)

    def total(self, lengths: Ints) -> float:
        """Operations of sequences of these tokens."""
        return float(self.each(lengths).sum())


def measured_capacity(capacity: Capacity, loaded: LoadedModel, wanted: Wanted) -> Capacity:
    """What a GPU holds by the peaks of one or two small rows there; as it was on processors, or if they do not fit.

    Args:
        capacity: By the family's law.
        loaded: Model that encodes.
        wanted: Layers, pooling and extras to compute.
    """
    if loaded.device.type != "cuda":
        return capacity
    simple = Wanted(wanted.layers, "mean" if wanted.pooling == "sites" else wanted.pooling, wanted.dtype, wanted.logits)
    embedder = Embedder(loaded, simple, capacity)
    most = loaded.family.max_residues or _PROBE
    shapes = [[min(most, _PROBE // 16)] * 16]
    if capacity.pair:
        shapes.append([min(most, _PROBE)])
    rows: list[tuple[int, int, int]] = []
    for shape in shapes:
        texts = [(AMINO_ACIDS * (length // 20 + 1))[:length] for length in shape]
        tokens = sum(shape) + len(shape) * loaded.family.specials
        torch.cuda.synchronize(loaded.device)
        used = torch.cuda.memory_allocated(loaded.device)
        torch.cuda.reset_peak_memory_stats(loaded.device)
        try:
            for _ in embedder.compute([SequencePart(0, texts)], EncodingBudget(tokens, max(shape))):
                pass
        except (OutOfMemory, UnfitNumber):
            return capacity
        peak = torch.cuda.max_memory_allocated(loaded.device) - used
        rows.append((tokens, max(shape) + loaded.family.specials, max(1, peak)))
    return measured(capacity, rows, loaded.device)


def first_budget(
    capacity: Capacity, loaded: LoadedModel, wanted: Wanted, *, batch_tokens: int = 0, max_residues: int = 0
) -> EncodingBudget:
    """What to begin with.

    Args:
        capacity: Memory of the device that computes.
        loaded: Model that encodes.
        wanted: Layers, pooling and extras to compute.
        batch_tokens: Tokens in a row that the user wants; 0: what suits device and memory.
        max_residues: Window length that the user wants; 0: as long as the memory holds.

    Raises:
        MemoryShortage: The memory does not hold the smallest batch.
    """
    specials = loaded.family.specials
    whole = capacity.longest - specials
    if whole < SMALLEST:
        least = SMALLEST + specials
        raise MemoryShortage(
            f"{capacity.fixed >> 20} MiB of memory are taken by the program and the model already, and what is left "
            "does not hold a batch",
            where=str(loaded.device),
            fix=f"Give the job {capacity.total_mib(capacity.need(least, least))} MiB of memory (--max-memory or "
            "GALAXY_MEMORY_MB), or use a smaller model",
        )
    limits = [limit for limit in (max_residues, loaded.family.max_residues) if limit]
    whole = min([whole, *limits])
    workers = 1 if batch_tokens else encoder.workers(loaded.device)
    fits = max(SMALLEST, capacity.room // workers // capacity.token)
    usual = encoder.ROW_TOKENS[loaded.device.type]
    if loaded.device.type == "cuda" and wanted.pooling != "residues" and not wanted.head:
        usual *= _LARGER
    tokens = min(batch_tokens or usual, fits)
    contacts = 0
    if wanted.contacts is not None:
        contacts = min(whole, int((capacity.room / contact_bytes(loaded, 1)) ** 0.5) - specials)
        contacts = max(SMALLEST, contacts)
    return EncodingBudget(tokens, whole, contacts)


def shard_ends(lengths: Ints, sizes: Ints, tokens: int, operations: Floats | None = None) -> list[int]:
    """Cuts consecutive sequences into shards of about 64 rows, or less where their numbers take much room or time.

    Args:
        lengths: Tokens of each sequence.
        sizes: Bytes of what is stored of each.
        tokens: Tokens in a packed row.
        operations: Floating-point operations that a processor spends on each; None on a GPU.

    Returns:
        The number after the last sequence of each shard.
    """
    shares = np.maximum(lengths / (ROWS_IN_SHARD * tokens), sizes / SHARD_BYTES)
    if operations is not None:
        shares = np.maximum(shares, operations / SHARD_OPERATIONS)
    effort = np.cumsum(shares)
    ends: list[int] = []
    start, done = 0, 0.0
    while start < len(lengths):
        end = max(start + 1, int(np.searchsorted(effort, done + 1.0, side="right")))
        ends.append(end)
        start, done = end, float(effort[end - 1])
    return ends


def stored_bytes(wanted: Wanted, width: int, lengths: Ints, sites: Ints) -> Ints:
    """Bytes that a shard keeps of each sequence."""
    each = width * len(wanted.layers) * (2 if wanted.dtype == "float16" else 4)
    count = {"residues": lengths, "sites": sites}.get(wanted.pooling, np.ones_like(lengths))
    total: Ints = count * each
    if wanted.logits:
        total = total + lengths * 80
    if wanted.contacts is not None:
        total = total + lengths * 24  # a protein has about two contacts a residue
    return total


def work_lengths(wanted: Wanted, lengths: Ints) -> Ints:
    """Residues that are computed for each sequence: once for its representation, and again for each extra."""
    total: Ints = lengths.copy()
    if wanted.perplexity == "masked":
        total += lengths * lengths
    if wanted.contacts is not None:
        total += lengths
    return total


def expected_seconds(embedder: Embedder, proteins: ProteinStore, budget: EncodingBudget, numbers: Ints) -> float:
    """How long some sequences will take, from timing a few of middle length on this machine.

    Args:
        embedder: Embedder with its model loaded.
        proteins: Proteins of the input.
        budget: Rows as the work will have them.
        numbers: The sequences that are to be computed.
    """
    if not len(numbers):
        return 0.0
    specials = embedder.loaded.family.specials
    step = -(-len(numbers) // _SAMPLED)
    numbers = numbers[::step]
    lengths = proteins.lengths[numbers]
    cost = EncodingCost.of(embedder.loaded)
    simple = Embedder(embedder.loaded, Wanted(embedder.wanted.layers, "mean"), embedder.capacity)
    middle = numbers[np.argsort(lengths, kind="stable")][len(numbers) // 2 :]
    rows = simple.rows_at_once(np.minimum(lengths, 2 * budget.tokens), budget)

    def timed(tokens: int) -> float:
        """Seconds an operation, over about so many tokens."""
        chosen: list[str] = []
        while sum(map(len, chosen)) < tokens:
            text = proteins.sequences[int(middle[len(chosen) % len(middle)])]
            chosen.append(text[: min(tokens, budget.whole)])
        start = time.perf_counter()
        for _ in simple.compute([SequencePart(0, chosen)], budget, rows=rows):
            pass
        sizes = np.array([len(text) + specials for text in chosen], np.int64)
        return (time.perf_counter() - start) / cost.total(sizes)

    timed(SMALLEST)  # the first call makes what later ones share
    rate = timed(4 * SMALLEST)
    most = rows * budget.tokens
    affordable = int(_SAMPLE_SECONDS / max(rate * cost.token, 1e-12))
    if affordable > 8 * SMALLEST:
        rate = timed(min(most, affordable))
    sizes = np.minimum(lengths, budget.whole) + specials
    # Windows of a long protein overlap by half.
    windows = np.maximum(1.0, 2.0 * lengths / budget.whole - 1.0) * (lengths > budget.whole) + (lengths <= budget.whole)
    each = cost.token * sizes + cost.pair * sizes.astype(np.float64) ** 2
    times = windows * (
        3.0 if embedder.wanted.contacts is not None else 1.0
    )  # attention maps are made, not only applied
    if embedder.wanted.perplexity == "masked":
        times += lengths
    return step * rate * float((each * times).sum())
