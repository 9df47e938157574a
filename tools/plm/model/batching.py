"""Packing: sequences laid end to end in one row of tokens, so that nothing is padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class RowLayout:
    """Where the sequences of a packed row lie.

    Attributes:
        lengths: Tokens of each sequence, special tokens included, in the order of the row.
        kept: What follows from them and was made already, by name and device.
    """

    lengths: tuple[int, ...]
    kept: dict[tuple[str, str], Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def longest(self) -> int:
        return max(self.lengths)

    @property
    def starts(self) -> tuple[int, ...]:
        """The first token of each sequence."""
        starts, at = [], 0
        for length in self.lengths:
            starts.append(at)
            at += length
        return tuple(starts)

    def made(self, name: str, device: torch.device, make: Callable[[], Any]) -> Any:
        """What ``make`` gives, made once a row and device."""
        key = (name, str(device))
        if key not in self.kept:
            self.kept[key] = make()
        return self.kept[key]

    def edges(self, device: torch.device) -> torch.Tensor:
        """``(S + 1,)`` int32 on a device: where each of the S sequences begins, and where the last ends."""
        import torch

        def make() -> torch.Tensor:
            return sent(torch.tensor((*self.starts, sum(self.lengths)), dtype=torch.int32), device)

        edges: torch.Tensor = self.made("edges", device, make)
        return edges

    def owners(self, device: torch.device) -> torch.Tensor:
        """``(T,)`` int64 on a device: the number of each token's sequence."""
        owners: torch.Tensor = self.made("owners", device, lambda: sent(self._owners(), device))
        return owners

    def _owners(self) -> torch.Tensor:
        import torch

        return torch.repeat_interleave(torch.arange(len(self.lengths)), torch.tensor(self.lengths))

    def runs(self) -> list[tuple[int, int, int]]:
        """Neighbours of equal length as ``(start token, how many, length)``: one batched attention call each."""
        runs, at = [], 0
        for length, group in groupby(self.lengths):
            count = sum(1 for _ in group)
            runs.append((at, count, length))
            at += count * length
        return runs


@dataclass(frozen=True)
class Batch:
    """One packed row.

    Attributes:
        input_ids: ``(T,)`` int64, T the sum of ``layout.lengths``.
        position_ids: ``(T,)`` int64, counted from 0 in each sequence.
        layout: Where each sequence lies.
        indices: Which sequence of the caller's list each one is.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    layout: RowLayout
    indices: tuple[int, ...]

    @property
    def lengths(self) -> tuple[int, ...]:
        return self.layout.lengths

    @property
    def tokens(self) -> int:
        return int(self.input_ids.shape[0])

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device; to CUDA in one copy that nobody waits for, its layout's numbers with it."""
        import torch

        there = torch.device(device)
        if there.type == "cuda" and self.input_ids.device.type == "cpu":
            starts = torch.tensor((*self.layout.starts, self.tokens), dtype=torch.int64)
            parts = (self.input_ids, self.position_ids, self.layout._owners(), starts)
            ids, positions, owners, edges = sent(torch.cat(parts), there).split([len(part) for part in parts])
            kept = {("owners", str(ids.device)): owners, ("edges", str(ids.device)): edges.to(torch.int32)}
            return Batch(ids, positions, RowLayout(self.lengths, kept), self.indices)
        return Batch(self.input_ids.to(device), self.position_ids.to(device), self.layout, self.indices)


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the host on a device; to CUDA from pinned memory, without waiting."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def pack(token_ids: Sequence[Sequence[int]], indices: Sequence[int] | None = None) -> Batch:
    """Lays sequences of token ids end to end.

    Args:
        token_ids: Token ids of each sequence, special tokens included.
        indices: The caller's number of each sequence; 0, 1, 2, ... by default.
    """
    import torch

    lengths = tuple(len(ids) for ids in token_ids)
    flat = [token for ids in token_ids for token in ids]
    positions = torch.cat([torch.arange(length) for length in lengths])
    chosen = tuple(range(len(lengths))) if indices is None else tuple(indices)
    return Batch(torch.tensor(flat, dtype=torch.int64), positions, RowLayout(lengths), chosen)


def plan_batches(lengths: Sequence[int], budget: int, *, seed: int | None = None) -> list[list[int]]:
    """Groups sequences of similar length into rows of at most ``budget`` tokens.

    A sequence longer than the budget gets a row of its own: nothing is dropped or cut.

    Args:
        lengths: Tokens of each sequence.
        budget: Tokens in a row.
        seed: None for a fixed plan, longest first (memory is proved early); a number to shuffle sequences of like
            length
            among each other, and then the rows, as training wants it.

    Returns:
        Rows of indices into ``lengths``; each index occurs once.
    """
    import numpy as np

    sizes = np.asarray(lengths, dtype=np.int64)
    if seed is None:
        order = np.argsort(-sizes, kind="stable")
    else:
        generator = np.random.default_rng(seed)
        noise = generator.uniform(0.9, 1.1, size=len(sizes))
        order = np.argsort(-sizes * noise, kind="stable")
    rows: list[list[int]] = []
    row: list[int] = []
    used = 0
    for index in order.tolist():
        size = int(sizes[index])
        if row and used + size > budget:
            rows.append(row)
            row, used = [], 0
        row.append(index)
        used += size
    if row:
        rows.append(row)
    for packed in rows:
        packed.sort(key=lambda index: (-int(sizes[index]), index))
    if seed is not None:
        generator.shuffle(rows)
    return rows
