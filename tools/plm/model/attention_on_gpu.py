"""Attention inside each sequence of a packed row on CUDA: one call a row, whatever the number of sequences.

Without a bias the row goes through a kernel for sequences of different lengths: FlashAttention
(:func:`torch.nn.attention.varlen.varlen_attn`; 16-bit numbers, compute capability 8.0) or, in float32, with dropout and
on older devices, torch's memory-efficient kernel with the edges of the sequences. T5's relative bias is added by
:func:`torch.nn.attention.flex_attention.flex_attention`, compiled once for all shapes, with a mask of the blocks in
which sequences lie. Where that cannot be compiled, and with dropout, sequences of similar length are padded to a few
common lengths.

The bias comes as a table ``(H, 2 M + 1)`` of the distances from -M to M, beyond which it does not change.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from plm.model.batching import RowLayout, sent

BLOCK = 128
"""Tokens on each side of a block of the mask."""
GROUPS = 3
"""Common lengths to which sequences are padded at most."""
_ALIGNED = 8
"""What the width of a head, and a padded length, must be a multiple of."""
_LEVELS = 32
"""Different lengths that the choice of common lengths tells apart."""
_log = logging.getLogger("plm")


@dataclass(frozen=True)
class Padding:
    """How the sequences of a row are padded.

    Attributes:
        groups: For each common length: how many sequences, their length, the first padded token.
        source: ``(P,)`` int64, the row's token at each padded place (the row's first at places of padding).
        place: ``(T,)`` int64, the padded place of each token.
        real: ``(P,)`` bool, False at places of padding.
    """

    groups: tuple[tuple[int, int, int], ...]
    source: torch.Tensor
    place: torch.Tensor
    real: torch.Tensor


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: RowLayout, scale: float,
    bias: torch.Tensor | None, dropout: float,
) -> torch.Tensor:
    """As :func:`plm.model.attention.attend`, after the rotation; ``bias`` is the table of distances."""
    if bias is None and query.shape[-1] % _ALIGNED == 0:
        if dropout == 0 and query.dtype != torch.float32 and _has_flash(query.device):
            return _flash(query, key, value, layout, scale)
        return _memory_efficient(query, key, value, layout, scale, dropout)
    if bias is not None and _FLEX.takes(query, bias, dropout):
        attended = _FLEX.attend(query, key, value, layout, scale, bias)
        if attended is not None:
            return attended
    return _padded(query, key, value, layout, scale, bias, dropout)


def prepare(layout: RowLayout, device: torch.device, *, biased: bool, training: bool) -> None:
    """Sends what attention needs of a row's layout ahead, so that no layer copies anything.

    Args:
        layout: The row's.
        device: A CUDA device.
        biased: Whether the family adds a relative bias.
        training: Whether dropout may be wanted.
    """
    layout.edges(device)
    if biased:
        layout.owners(device)
        if _FLEX.works(device) and not training:
            _blocks(layout, device)
        else:
            padding(layout, device)


def dense(bias: torch.Tensor, length: int) -> torch.Tensor:
    """The relative bias ``(H, L, L)`` of a table of distances."""
    reach = bias.shape[1] // 2
    place = torch.arange(length, device=bias.device)
    return bias[:, (place[None, :] - place[:, None]).clamp(-reach, reach) + reach]


def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def _has_flash(device: torch.device) -> bool:
    """Whether FlashAttention runs on a device and this torch (2.10 or newer) offers it."""
    return _capability(device) >= (8, 0) and importlib.util.find_spec("torch.nn.attention.varlen") is not None


def _flash(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: RowLayout, scale: float
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    edges, longest = layout.edges(query.device), layout.longest
    attended: torch.Tensor = varlen_attn(
        query.contiguous(), key.contiguous(), value.contiguous(), edges, edges, longest, longest, scale=scale
    )
    return attended


def _memory_efficient(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: RowLayout, scale: float, dropout: float
) -> torch.Tensor:
    edges, longest = layout.edges(query.device), layout.longest
    attended: torch.Tensor = torch.ops.aten._efficient_attention_forward(
        query.unsqueeze(0), key.unsqueeze(0), value.unsqueeze(0), None, edges, edges, longest, longest, dropout, 0,
        torch.is_grad_enabled(), scale=scale,
    )[0]
    return attended.squeeze(0)


# ------------------------------------------------------------------------------------------------------ relative bias


class _Flex:
    """flex_attention, compiled at its first use; given up for the rest of the job where that fails."""

    def __init__(self) -> None:
        self._compiled: Callable[..., torch.Tensor] | None = None
        self._failed = False

    def works(self, device: torch.device) -> bool:
        """Whether the device and what is installed can run it, as far as is known."""
        installed = importlib.util.find_spec("triton") is not None
        return not self._failed and installed and _capability(device) >= (8, 0)

    def takes(self, query: torch.Tensor, bias: torch.Tensor, dropout: float) -> bool:
        """Whether this attention can go through it: no dropout, a bias that does not learn."""
        learns = bias.requires_grad and torch.is_grad_enabled()
        return dropout == 0 and not learns and query.shape[-1] >= 16 and self.works(query.device)

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: RowLayout, scale: float,
        bias: torch.Tensor,
    ) -> torch.Tensor | None:
        """``(T, H, D)``; None if it cannot be compiled here."""
        try:
            return self._attend(query, key, value, layout, scale, bias)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # compilers fail in many ways, and the padded way gives the same numbers
            reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error).strip() else ''}"
            _log.warning("flex_attention does not run here (%s): sequences are padded to common lengths", reason)
            self._failed = True
            return None

    def _attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: RowLayout, scale: float,
        bias: torch.Tensor,
    ) -> torch.Tensor:
        if self._compiled is None:
            from torch.nn.attention.flex_attention import flex_attention

            self._compiled = torch.compile(flex_attention, dynamic=True)
        mask = block_mask(layout, query.device, gradients=torch.is_grad_enabled())
        q, k, v = (states.transpose(0, 1).unsqueeze(0) for states in (query, key, value))
        table = layout.made(f"table {query.dtype}", query.device, lambda: bias.detach().to(query.dtype))
        attended = self._compiled(q, k, v, score_mod=relative(table, layout), block_mask=mask, scale=scale)
        return attended.squeeze(0).transpose(0, 1)


_FLEX = _Flex()


def relative(bias: torch.Tensor, layout: RowLayout) -> Callable[..., torch.Tensor]:
    """A score modifier that adds the bias of a table of distances.

    How far the table reaches is a tensor, too, and its size fixed: with ``dynamic=True`` a whole number would become a
    symbol of the compiled program, which not every version of torch takes inside a modifier.
    """
    half = bias.shape[1] // 2
    reach = layout.made("reach", bias.device, lambda: torch.full((), half, dtype=torch.int64, device=bias.device))
    torch._dynamo.mark_static(bias)

    def modified(
        score: torch.Tensor, batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor
    ) -> torch.Tensor:
        distance = torch.minimum(torch.maximum(key - query, -reach), reach)
        return score + bias[head, distance + reach]

    return modified


def block_mask(layout: RowLayout, device: torch.device, *, gradients: bool = False) -> Any:
    """The mask that keeps each sequence to itself, as flex_attention wants it; made once a row.

    Args:
        layout: The row's.
        device: Where.
        gradients: Whether the way back needs it too.
    """
    from torch.nn.attention.flex_attention import BlockMask

    owners = layout.owners(device)

    def same(batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return owners[query] == owners[key]

    def make() -> Any:
        tokens = len(owners)
        return BlockMask.from_kv_blocks(
            *_blocks(layout, device), BLOCK_SIZE=BLOCK, mask_mod=same, seq_lengths=(tokens, tokens),
            compute_q_blocks=gradients,
        )

    return layout.made(f"mask {gradients}", device, make)


def _blocks(layout: RowLayout, device: torch.device) -> tuple[torch.Tensor, ...]:
    """For each block of queries: how many blocks of keys are partly of the same sequences, and which; the same of those
    that are wholly."""

    def make() -> tuple[torch.Tensor, ...]:
        numbers = key_blocks(layout.lengths)
        count = numbers.shape[0]
        there = sent(torch.from_numpy(numbers), device)
        partial, whole = there[:, 0], there[:, 1]
        shape = (1, 1, count, count)
        return (
            partial[:, 0].view(shape[:3]), partial[:, 1:].reshape(shape),
            whole[:, 0].view(shape[:3]), whole[:, 1:].reshape(shape),
        )

    return layout.made("blocks", device, make)


def key_blocks(lengths: tuple[int, ...]) -> np.ndarray:
    """Blocks of keys that each block of queries meets.

    Args:
        lengths: Tokens of each sequence of the row.

    Returns:
        ``(Q, 2, 1 + Q)`` int32 for Q blocks of queries: of blocks of keys that hold other sequences too, and of those
        that do not, how many there are and their numbers (then zeros).
    """
    ends = np.cumsum(lengths)
    starts = ends - np.asarray(lengths)
    tokens = int(ends[-1])
    count = -(-tokens // BLOCK)
    first = np.searchsorted(ends, np.arange(count) * BLOCK, side="right")
    last = np.searchsorted(ends, np.minimum(np.arange(1, count + 1) * BLOCK, tokens) - 1, side="right")
    low, high = starts[first] // BLOCK, (ends[last] - 1) // BLOCK
    numbers = np.arange(count)
    met = (numbers >= low[:, None]) & (numbers <= high[:, None])
    whole = met & (first == last)[:, None] & (first == last)[None, :]
    made = np.zeros((count, 2, count + 1), np.int32)
    for kind, chosen in enumerate((met & ~whole, whole)):
        made[:, kind, 0] = chosen.sum(1)
        order = np.argsort(~chosen, axis=1, kind="stable")
        made[:, kind, 1:] = np.where(np.arange(count) < made[:, kind, :1], order, 0)
    return made


# ------------------------------------------------------------------------------------------------------------- padding


def _padded(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: RowLayout, scale: float,
    bias: torch.Tensor | None, dropout: float,
) -> torch.Tensor:
    plan = padding(layout, query.device)
    heads, width = query.shape[1:]
    states = torch.stack((query, key, value)).index_select(1, plan.source)
    pieces = []
    parts = states.split([count * length for count, length, _ in plan.groups], 1)
    for number, (part, (count, length, _)) in enumerate(zip(parts, plan.groups, strict=True)):
        q, k, v = part.view(3, count, length, heads, width).transpose(2, 3).unbind()
        mask = _mask(plan, number, layout, bias, query.dtype)
        attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scale)
        pieces.append(attended.transpose(1, 2).reshape(count * length, heads, width))
    return torch.cat(pieces).index_select(0, plan.place)


def _mask(
    plan: Padding, number: int, layout: RowLayout, bias: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor | None:
    """What is added to the scores of a group: bias, and minus infinity at padding; made once a row unless it learns."""
    count, length, start = plan.groups[number]
    real = plan.real[start : start + count * length].view(count, 1, 1, length)
    full = count * length == sum(one for one in layout.lengths if plan_length(plan, one) == length)

    def make() -> torch.Tensor:
        if bias is None:
            return real.expand(count, 1, length, length)
        own = dense(bias, length).to(dtype).unsqueeze(0)
        heads = own.shape[1]
        if full:
            return own.expand(count, heads, length, length)
        return own.masked_fill(~real, float("-inf"))

    if bias is None and full:
        return None
    if bias is not None and bias.requires_grad and torch.is_grad_enabled():
        return make()
    mask: torch.Tensor = layout.made(f"bias {number} {dtype}", plan.real.device, make)
    return mask


def plan_length(plan: Padding, tokens: int) -> int:
    """The common length of a sequence."""
    return min(length for _, length, _ in plan.groups if length >= tokens)


def padding(layout: RowLayout, device: torch.device) -> Padding:
    """How a row is padded; made once a row."""

    def make() -> Padding:
        lengths = np.asarray(layout.lengths)
        common = np.asarray(common_lengths(layout.lengths))
        group = np.searchsorted(common, lengths)
        groups: list[tuple[int, int, int]] = []
        source, real, at = [], [], 0
        place = np.empty(int(lengths.sum()), np.int64)
        starts = np.asarray(layout.starts)
        for number, length in enumerate(common.tolist()):
            mine = np.flatnonzero(group == number)
            inside = np.arange(length)
            there = inside < lengths[mine][:, None]
            tokens = np.where(there, starts[mine][:, None] + inside, 0)
            place[tokens[there]] = at + np.flatnonzero(there)
            source.append(tokens.ravel())
            real.append(there.ravel())
            groups.append((len(mine), length, at))
            at += len(mine) * length
        whole = np.concatenate([*source, place, *real]).astype(np.int64)
        moved = sent(torch.from_numpy(whole), device)
        return Padding(tuple(groups), moved[:at], moved[at : at + len(place)], moved[at + len(place) :].bool())

    plan: Padding = layout.made("padding", device, make)
    return plan


def common_lengths(lengths: tuple[int, ...]) -> list[int]:
    """At most :data:`GROUPS` lengths, ascending multiples of 8, that cost attention the least when sequences are padded
    to them."""
    rounded = -(-np.asarray(lengths) // _ALIGNED) * _ALIGNED
    levels, counts = np.unique(rounded, return_counts=True)
    if len(levels) > _LEVELS:  # the longest of each span of lengths stands for it
        edges = np.unique(levels[np.linspace(0, len(levels) - 1, _LEVELS + 1).astype(int)[1:]])
        counts = np.bincount(np.searchsorted(edges, rounded), minlength=len(edges))
        levels = edges
    until = np.concatenate([[0], np.cumsum(counts)])
    # best[g][n]: cheapest way to pad the n shortest kinds to g lengths.
    best = [[0.0] + [float("inf")] * len(levels)]
    chosen: list[list[int]] = []
    for _ in range(min(GROUPS, len(levels))):
        row, from_ = [0.0], [0]
        for n in range(1, len(levels) + 1):
            costs = [
                best[-1][m] + float(until[n] - until[m]) * float(levels[n - 1]) * (512 + float(levels[n - 1]))
                for m in range(n)
            ]
            row.append(min(costs))
            from_.append(int(np.argmin(costs)))
        best.append(row)
        chosen.append(from_)
    common, n = [], len(levels)
    for from_ in reversed(chosen):
        if n == 0:
            break
        common.append(int(levels[n - 1]))
        n = from_[n]
    return sorted(common)
