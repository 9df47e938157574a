"""When the memory does not hold a batch: half of it, and one line where even the smallest does not fit."""

from __future__ import annotations

import logging

import torch

from plm import memory_limits
from plm.errors import MemoryShortage, UserError
from plm.model.capacity import is_out_of_memory

SMALLEST_BUDGET = 64
"""Tokens of a batch, below which halving ends."""
_SPARE = 256 * 2**20
"""Bytes beyond what a process holds with which even the largest models read a batch of that size."""


def too_small(amount: str, device: torch.device) -> UserError:
    """The one line of a memory that holds nothing: ``amount`` says what did not fit, such as ``64 tokens``."""
    fix = "Use a smaller model, or a machine or GPU with more memory"
    if device.type == "cpu":
        fix = f"Give the job {memory_limits.would_do(_SPARE)} MiB of memory, or use a smaller model"
    return MemoryShortage(f"The memory does not hold even {amount}", where=str(device), fix=fix)


def halved(budget: int, error: Exception, device: torch.device, log: logging.Logger) -> int:
    """Half of a budget of tokens that the memory did not hold; a GPU's spare memory is given back.

    Args:
        budget: Tokens of the batch that was tried.
        error: What came of it; raised again unless it says that the memory is full.
        device: Where it was tried.
        log: Told of the new budget.

    Raises:
        UserError: Half of it would be less than :data:`SMALLEST_BUDGET`.
    """
    if not is_out_of_memory(error):
        raise error
    if budget // 2 < SMALLEST_BUDGET:
        raise too_small(f"{budget} tokens", device) from error
    log.warning("Out of memory: going on with batches of %d tokens", budget // 2)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return budget // 2
