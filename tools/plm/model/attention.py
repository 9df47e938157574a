"""Attention inside each sequence of a packed row, rotary positions included.

Ways to the same numbers, chosen by :func:`attend`:

* **blocks** (processors, no gradients): scores are made, exponentiated and multiplied in blocks that stay in the cache.
  In bfloat16 the exponential is taken of base 2 without searching each row's maximum; the keys are centred first, which
  changes no result (softmax does not see a row's constant) but keeps the scores small; a block that still overflows is
  done again with the plain softmax. 2 to 3 times the speed of torch's fused kernel for the small heads of protein
  models.
* **blocks with gradients** (processors, bfloat16): the same blocks; the way back computes the weights anew, as
  FlashAttention does (Dao et al. 2022, algorithm 4), so that memory stays linear in the length.
* **fused** (other gradients): torch's ``scaled_dot_product_attention`` a sequence.
* **CUDA**: one call for the whole row (:mod:`plm.model.attention_on_gpu`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from plm.model import attention_on_gpu, few_shapes
from plm.model.batching import RowLayout

BLOCK = 1 << 20
"""Scores computed at a time, so that they stay in the cache (2 MiB in bfloat16)."""
SHORT = 64
"""Up to this many tokens two matrix products and a float32 softmax beat the fused kernel on CPUs."""
_TOKENS = 1024
"""Tokens of equal-length sequences that one step rotates and attends."""
_LOG2E = math.log2(math.e)

Tables = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines ``(T, D / 2)`` float32 of each token's position in its own sequence; on CUDA ``(T, 1, D)``, as
:func:`tables` gives them."""


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: RowLayout, *, scale: float,
    rotary: Tables | None = None, bias: torch.Tensor | None = None, dropout: float = 0.0,
) -> torch.Tensor:
    """Attention within each sequence of a packed row.

    Args:
        query: ``(T, H, D)``; ``key`` and ``value`` likewise.
        layout: Where the sequences lie.
        scale: Factor of the scores.
        rotary: Rotary tables (Su et al. 2021, RoFormer), or None for no rotation.
        bias: T5's relative bias ``(1, H, L, L)`` of the longest sequence, sliced for the others; on CUDA the table
            ``(H, 2 M + 1)`` of the distances from -M to M, beyond which it does not change.
        dropout: Dropout probability of the attention weights.

    Returns:
        ``(T, H, D)`` in the type of ``query``.
    """
    if not torch.is_grad_enabled() and query.device.type == "cpu":
        return _in_blocks(query, key, value, layout, scale, rotary, bias)
    blocks = query.device.type == "cpu" and query.dtype == torch.bfloat16 and bias is None and dropout == 0
    if blocks and layout.longest > SHORT:  # below, the weights are few enough to be kept
        return _Blocks.apply(query, key, value, layout, scale, rotary)
    if rotary is not None:
        query, key = rotate(query, *rotary), rotate(key, *rotary)
    if query.device.type == "cuda":
        return attention_on_gpu.attend(query, key, value, layout, scale, bias, dropout)
    return _fused(query, key, value, layout, scale, bias, dropout)


class _Rotation(torch.autograd.Function):
    """Rotary positions in float32 arithmetic that keep nothing but the tables for the way back."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cosine, sine)
        return _rotated(states, cosine, sine)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cosine, sine = ctx.saved_tensors
        return _rotated(gradients[0], cosine, -sine), None, None


def rotate(states: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding (Su et al. 2021) of ``(T, H, D)`` states; differentiable.

    Args:
        states: Queries or keys.
        cosine: ``(T, D / 2)`` float32; ``sine`` likewise; on CUDA as :func:`tables` gives them.
    """
    return _Rotation.apply(states, cosine, sine)


def tables(angles: torch.Tensor) -> Tables:
    """Cosines and sines of ``(T, D / 2)`` angles; on CUDA at the full width of a head, the first half of the sines with
    its sign, so that a rotation takes three kernels."""
    cosine, sine = angles.cos(), angles.sin()
    if angles.device.type == "cpu":
        return cosine, sine
    return torch.cat((cosine, cosine), -1).unsqueeze(1), torch.cat((-sine, sine), -1).unsqueeze(1)


def _rotated(states: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    if states.device.type != "cpu":
        return _turned_at_once(states, cosine, sine, states.dtype)
    result = torch.empty(states.shape, dtype=states.dtype)
    for start in range(0, states.shape[0], _TOKENS):  # temporaries stay in the cache
        part = slice(start, start + _TOKENS)
        result[part] = _turn(states[part], cosine[part], sine[part])
    return result


def _turned_at_once(
    states: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """As :func:`_turn`, in three kernels over tables of full width: each half takes in the other one as it lies and is
    rounded to its type as it is written, for a GPU's memory is what rotations wait for."""
    products, turned = states * cosine, torch.empty_like(states, dtype=dtype)
    halves = (one.chunk(2, -1) for one in (products, states, sine, turned))
    (low, high), (first, second), (of_low, of_high), (into_low, into_high) = halves
    torch.addcmul(low, second, of_low, out=into_low)
    torch.addcmul(high, first, of_high, out=into_high)
    return turned


def _turn(states: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """``(..., T, H, D)`` states, turned by their positions, float32; ``cosine`` is ``(T, D / 2)``."""
    halves = states.unflatten(-1, (2, -1)).float()
    turned = torch.empty_like(halves)
    turned[..., 0, :], turned[..., 1, :] = halves[..., 1, :], halves[..., 0, :]
    turned *= torch.stack((-sine, sine), dim=1)[:, None]
    return turned.addcmul_(halves, torch.stack((cosine, cosine), dim=1)[:, None]).flatten(-2)


def _in_blocks(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: RowLayout, scale: float, rotary: Tables | None,
    bias: torch.Tensor | None, kept: Sequence[torch.Tensor] = (),
) -> torch.Tensor:
    """As :func:`attend`; the heads that were multiplied are left in ``kept``, three tensors of :func:`_room` tokens."""
    result = torch.empty(query.shape, dtype=query.dtype)
    exact = query.dtype == torch.float32
    base = (
        1.0 if exact or bias is not None else _LOG2E
    )  # a bias stays as it is: scaling it costs more than base 2 saves
    for step in _steps(layout, exact=exact):
        part = step.tokens
        into = [_span(one, query, step) for one in kept] or [None] * 3
        q, k, v = _heads(
            query[part], key[part], value[part], step, scale * base, rotary, into, centred=not exact
        )
        own = None if bias is None else _bias(bias, step, query.dtype)
        _put(result[part], _attend_heads(q, k, v, own, step.length, exact), step.count)
    return result


@dataclass(frozen=True)
class _Step:
    """Sequences of equal length that are attended together.

    Attributes:
        start: First token of the first.
        count: How many they are.
        length: Tokens of each.
        wide: Tokens that each is computed with; zeros follow its own.
        before: Such tokens of the steps before.
    """

    start: int
    count: int
    length: int
    wide: int
    before: int

    @property
    def tokens(self) -> slice:
        """Their tokens in the row."""
        return slice(self.start, self.start + self.count * self.length)


def _steps(layout: RowLayout, *, exact: bool) -> Iterator[_Step]:
    """What is attended together: in float32 sequences as they are, in bfloat16 of :mod:`plm.model.few_shapes`."""
    before = 0
    for start, total, length in layout.runs():
        most = max(1, _TOKENS // length)
        parts = [most] * (total // most) + [total % most] * (total % most > 0) if exact else (
            few_shapes.counts(total, most)
        )
        wide = length if exact else few_shapes.attended_length(length)
        for count in parts:
            yield _Step(start, count, length, wide, before)
            start += count * length
            before += count * wide


def _room(layout: RowLayout) -> int:
    """Tokens that the steps of a row in bfloat16 are computed with."""
    return sum(step.count * step.wide for step in _steps(layout, exact=False))


def _heads(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, step: _Step, factor: float, rotary: Tables | None,
    into: Sequence[torch.Tensor | None], *, centred: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rotated queries times ``factor``, rotated (and centred) keys, values, of the sequences of a step, by head."""
    start, length = step.start, step.length
    shape = (step.count, length, *query.shape[1:])
    q, k = query.reshape(shape), key.reshape(shape)
    if rotary is None:
        turned_q, turned_k = q.float(), k.float()
    else:
        tables = rotary[0][start : start + length], rotary[1][start : start + length]
        turned_q, turned_k = _turn(q, *tables), _turn(k, *tables)
    if centred:
        turned_k = turned_k - turned_k.mean(1, keepdim=True)
    wanted = (turned_q * factor, turned_k, value.reshape(shape))
    q, k, v = (_by_head(states, query.dtype, step.wide, where) for states, where in zip(wanted, into, strict=True))
    return q, k, v


def _span(kept: torch.Tensor, like: torch.Tensor, step: _Step) -> torch.Tensor:
    """The numbers of a step in a flat tensor of :func:`_room` tokens."""
    width = like.shape[1] * like.shape[2]
    return kept[step.before * width : (step.before + step.count * step.wide) * width]


def _put(result: torch.Tensor, heads: torch.Tensor, count: int) -> None:
    """Writes the tokens of ``(count * H, L or more, D)`` heads into ``(count * L, H, D)``."""
    tokens, number, width = result.shape
    shape = (count, tokens // count, number, width)
    result.view(shape).copy_(heads.view(count, number, -1, width)[:, :, : shape[1]].transpose(1, 2))


def _by_head(states: torch.Tensor, dtype: torch.dtype, wide: int, into: torch.Tensor | None = None) -> torch.Tensor:
    """``(B, L, H, D)`` as contiguous ``(B * H, wide, D)`` with zeros at the end, in the memory of ``into`` if given."""
    batch, length, heads, width = states.shape
    made = torch.empty(batch * heads * wide * width, dtype=dtype) if into is None else into
    by_head = made.view(batch, heads, wide, width)
    by_head[:, :, :length].copy_(states.transpose(1, 2))
    by_head[:, :, length:] = 0
    return made.view(batch * heads, wide, width)


def _bias(bias: torch.Tensor, step: _Step, dtype: torch.dtype) -> torch.Tensor:
    """The relative bias of the sequences of a step, ``(count * H, wide, wide)``."""
    own = bias[0, :, : step.length, : step.length].to(dtype)
    if step.wide > step.length:
        own = functional.pad(own, (0, step.wide - step.length) * 2)
    return own if step.count == 1 else own.expand(step.count, -1, -1, -1).reshape(-1, step.wide, step.wide)


def _spans(heads: int, length: int) -> Iterator[tuple[slice, slice]]:
    """Blocks of heads and query rows with at most :data:`BLOCK` scores."""
    some = max(1, min(heads, BLOCK // (length * length)))
    rows = min(length, max(32, BLOCK // length))
    for head in range(0, heads, some):
        for row in range(0, length, rows):
            yield slice(head, head + some), slice(row, row + rows)


def _attend_heads(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None, length: int, exact: bool
) -> torch.Tensor:
    """Attention of ``(N, L, D)`` heads block by block; scaled already, to base 2 unless ``exact`` or with a bias.

    Beyond ``length`` queries, keys and values are zeros: such a key has the weight of 1, which no sum takes in, on a
    value of 0.
    """
    keys = key.transpose(1, 2)
    result = torch.empty_like(query)
    for chosen, lines in _spans(query.shape[0], query.shape[1]):
        scores = torch.bmm(query[chosen, lines], keys[chosen])
        if bias is not None:
            scores += bias[chosen, lines]
        if exact or not _exponential(scores, value[chosen], result[chosen, lines], length, natural=bias is not None):
            if not exact:
                own = None if bias is None else bias[chosen, lines, :length]
                scores = _softmax_scores(query[chosen, lines], keys[chosen, :, :length], own)
            weights = _widened(scores.softmax(-1), value)
            result[chosen, lines] = torch.bmm(weights, value[chosen])
    return result


def _widened(weights: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Weights in the type of the values, and zeros for those that are."""
    width = value.shape[1]
    if width == weights.shape[-1]:
        return weights.to(value.dtype)
    wide = torch.zeros((*weights.shape[:-1], width), dtype=value.dtype)
    wide[..., : weights.shape[-1]] = weights
    return wide


def _exponential(
    scores: torch.Tensor, value: torch.Tensor, result: torch.Tensor, length: int, *, natural: bool
) -> bool:
    """Softmax without a maximum, in place; False if the sums left the range in which that is safe."""
    weights = scores.exp_() if natural else scores.exp2_()
    # Summed in float32; asking for it in the result would copy all weights.
    sums = weights[..., :length].sum(-1, keepdim=True)
    if not _in_range(sums):
        return False
    torch.div(torch.bmm(weights, value), sums, out=result)
    return True


def _in_range(sums: torch.Tensor) -> bool:
    low, high = torch.aminmax(sums)
    return float(low) > 1e-20 and float(high) < 1e30


def _softmax_scores(query: torch.Tensor, keys: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The scores once more, in float32 and to base e."""
    scores = torch.bmm(query.float(), keys.float())
    return scores / _LOG2E if bias is None else scores + bias.float()


class _Blocks(torch.autograd.Function):
    """bfloat16 attention in blocks that keeps only its inputs and its result, and computes the weights anew."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: RowLayout, scale: float,
        rotary: Tables | None,
    ) -> torch.Tensor:
        numbers = _room(layout) * query.shape[1] * query.shape[2]
        kept = tuple(torch.empty(numbers, dtype=query.dtype) for _ in range(3))
        result = _in_blocks(query, key, value, layout, scale, rotary, None, kept)
        ctx.save_for_backward(*kept, result, *(() if rotary is None else rotary))
        ctx.layout, ctx.scale = layout, scale
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, result, *tables = ctx.saved_tensors
        given = gradients[0]
        towards = [torch.empty(result.shape, dtype=result.dtype) for _ in range(3)]
        inner = (given.float() * result).sum(-1)
        for step in _steps(ctx.layout, exact=False):
            part, count, length = step.tokens, step.count, step.length
            q, k, v = (_span(one, result, step).view(-1, step.wide, result.shape[-1]) for one in (query, key, value))
            above = _by_head(given[part].reshape(count, length, *result.shape[1:]), result.dtype, step.wide)
            share = inner[part].view(count, length, -1).transpose(1, 2).reshape(-1, length, 1)
            share = functional.pad(share, (0, 0, 0, step.wide - length))
            slopes = _backward_heads(q, k, v, above, share, length)
            # q carries scale * log2(e): the scores' gradient times k misses the scale, times q has log2(e) too much.
            slopes = (slopes[0] * ctx.scale, slopes[1] / _LOG2E, slopes[2])
            for to, heads in zip(towards, slopes, strict=True):
                _put(to[part], heads, count)
        if tables:
            towards[:2] = [_rotated(one, tables[0], -tables[1]) for one in towards[:2]]
        return (*towards, None, None, None)


def _backward_heads(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, given: torch.Tensor, inner: torch.Tensor, length: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of ``(N, L, D)`` queries, keys and values, without the factors inside ``query``.

    Args:
        query: As :func:`_heads` gave it; ``key`` and ``value`` likewise.
        given: Gradient of the result.
        inner: ``(N, L, 1)`` float32, its product with the result.
        length: Tokens of a sequence; all of these hold zeros beyond.
    """
    keys, values = key.transpose(1, 2), value.transpose(1, 2)
    spans = list(_spans(query.shape[0], query.shape[1]))
    # Rows of one head add up in float32; whole heads need no adding.
    kind = query.dtype if spans[0][1].stop >= query.shape[1] else torch.float32
    d_query = torch.empty_like(query)
    d_key, d_value = (torch.zeros(query.shape, dtype=kind) for _ in range(2))
    for chosen, lines in spans:
        weights = torch.bmm(query[chosen, lines], keys[chosen]).exp2_()
        sums = weights[..., :length].sum(-1, keepdim=True)
        if not _in_range(sums):
            scores = _softmax_scores(query[chosen, lines], keys[chosen, :, :length], None)
            weights, sums = _widened(scores.softmax(-1), value), torch.ones_like(sums)
        scaled = given[chosen, lines] / sums
        d_value[chosen] += torch.bmm(weights.transpose(1, 2), scaled)
        d_scores = torch.bmm(scaled, values[chosen])
        d_scores -= (inner[chosen, lines] / sums).to(query.dtype)
        d_scores *= weights
        d_query[chosen, lines] = torch.bmm(d_scores, key[chosen])
        d_key[chosen] += torch.bmm(d_scores.transpose(1, 2), query[chosen, lines])
    return d_query, d_key, d_value


def _fused(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: RowLayout, scale: float,
    bias: torch.Tensor | None, dropout: float,
) -> torch.Tensor:
    heads, width = query.shape[1:]
    pieces = []
    for start, count, length in layout.runs():
        part = slice(start, start + count * length)
        q, k, v = (x[part].reshape(count, length, heads, width).transpose(1, 2) for x in (query, key, value))
        own = None if bias is None else bias[:, :, :length, :length].to(q.dtype)
        if length <= SHORT:
            scores = torch.matmul(q, k.transpose(-1, -2)).float() * scale
            if own is not None:
                scores = scores + own
            weights = functional.dropout(scores.softmax(-1), dropout, training=dropout > 0).to(v.dtype)
            attended = torch.matmul(weights, v)
        else:
            if own is not None:
                own = own.expand(count, -1, -1, -1)
            attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=own, dropout_p=dropout, scale=scale)
        pieces.append(attended.transpose(1, 2).reshape(count * length, heads, width))
    return torch.cat(pieces)


def weights(
    query: torch.Tensor, key: torch.Tensor, *, scale: float, rotary: Tables | None = None,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention weights ``(H, L, L)`` float32 of one sequence, for contact prediction.

    Args:
        query: ``(L, H, D)``; ``key`` likewise.
        scale: Factor of the scores.
        rotary: Rotary tables, or None.
        bias: Relative bias as for :func:`attend`, or None.
    """
    if rotary is not None:
        turn = _turn if query.device.type == "cpu" else _turned_at_once
        query, key = turn(query, *rotary), turn(key, *rotary)
    if bias is not None and query.device.type != "cpu":
        bias = attention_on_gpu.dense(bias, query.shape[0]).unsqueeze(0)
    scores = torch.bmm(query.float().transpose(0, 1) * scale, key.float().permute(1, 2, 0))
    if bias is not None:
        scores += bias[0].float()
    return scores.softmax(-1)
