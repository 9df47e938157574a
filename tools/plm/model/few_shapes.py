"""Few shapes instead of many: oneDNN keeps 0.3 to 2 MiB for every shape of a product that it has met.

Proteins have all lengths, and rows all sums of them: 12,000 proteins made it keep 2 GiB. Sizes are therefore rounded up
to steps that grow with them, 32 in each octave or fewer, and what is added is zeros or computed and thrown away.
Nothing that is embedded or predicted changes, to the bit; of gradients in bfloat16 the last digit may.
"""

from __future__ import annotations

import torch

from plm.model import float_products
from plm.model.batching import Batch, RowLayout

KEPT = 256 * 2**20
"""Bytes that oneDNN keeps once the usual shapes have been met: 190 MiB for proteins of 50 to 600 residues."""
_ROW_STEP = 16


def applies(dtype: torch.dtype, device: torch.device, *, gradients: bool = False) -> bool:
    """Whether oneDNN makes the products of this type there, by itself or because of autocast."""
    if device.type != "cpu":
        return False
    if dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu"):
        return True
    return dtype == torch.float32 and not gradients and float_products.by_onednn()


def attended_length(length: int) -> int:
    """Tokens that the attention of a sequence of ``length`` is computed with: at most 1/32 more beyond 512."""
    step = 4 if length <= 64 else 8 if length <= 128 else max(16, 1 << ((length - 1).bit_length() - 6))
    return -(-length // step) * step


def counts(total: int, most: int) -> list[int]:
    """``total`` sequences of one length in powers of two of at most ``most``, the largest first."""
    step = 1 << (max(1, most).bit_length() - 1)
    parts = [step] * (total // step)
    left = total % step
    while left:
        part = 1 << (left.bit_length() - 1)
        parts.append(part)
        left -= part
    return parts


def filled(batch: Batch) -> Batch:
    """A row with tokens of its longest sequence once more at its end, so that few sums of tokens occur."""
    step = max(_ROW_STEP, 1 << max(0, (batch.tokens - 1).bit_length() - 6))
    more = -batch.tokens % step
    if not more:
        return batch
    longest = batch.layout.longest
    start = batch.layout.starts[batch.lengths.index(longest)]
    parts = [longest] * (more // longest) + ([more % longest] if more % longest else [])
    ids = [batch.input_ids[start : start + part] for part in parts]
    positions = [batch.position_ids[start : start + part] for part in parts]
    return Batch(
        torch.cat([batch.input_ids, *ids]), torch.cat([batch.position_ids, *positions]),
        RowLayout((*batch.lengths, *parts)), batch.indices,
    )
