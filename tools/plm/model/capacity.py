"""How much fits the memory: tokens in a batch, residues of one protein; estimates from above."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from plm import stage
from plm.model.loaded import LoadedModel

_TEXTS = ("can't allocate memory", "out of memory", "bad_alloc", "could not create a memory")
_SHARE = 0.5
"""Part of the free memory to plan with."""
FILLED = 0.85
"""Part of a GPU's memory to fill once the need of a row was measured on it."""
_MARGIN = 1.1
"""What a row may need beyond what was measured of others."""


@dataclass(frozen=True)
class Capacity:
    """What a model needs and what there is.

    Attributes:
        room: Bytes to plan with.
        token: Bytes of each token in a batch.
        pair: Bytes of each pair of tokens of the longest sequence in a batch; 0 where attention is linear in memory.
        fixed: Bytes taken already: process and weights (processor), or what is in use on the GPU.
        limited: Whether the user said how much memory there is.
    """

    room: int
    token: int
    pair: int
    fixed: int = 0
    limited: bool = False

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that fits in one piece."""
        if not self.pair:
            return self.room // self.token
        return int((-self.token + (self.token**2 + 4 * self.pair * self.room) ** 0.5) / (2 * self.pair))

    def total_mib(self, room: int) -> int:
        """MiB of memory with which there would be so many bytes of room."""
        return -(-int(self.fixed + 1.1 * room / _SHARE) // 2**20) + 1

    def need(self, tokens: int, longest: int) -> int:
        """Bytes of a batch of ``tokens`` in which the longest sequence has ``longest``."""
        return tokens * self.token + longest**2 * self.pair


def capacity(
    loaded: LoadedModel, limit_mib: int | None = None, *, inner_layers: bool = False, kept_per_token: int = 0
) -> Capacity:
    """Compares a loaded model with the memory where it runs.

    Args:
        loaded: The model.
        limit_mib: Memory that the job may use on that device in MiB, if less than there is.
        inner_layers: The states of all layers are kept until the last is done.
        kept_per_token: Bytes that the caller keeps of each token beside the model's own.
    """
    if loaded.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(loaded.device)
        fixed = total - free
    else:
        fixed = _resident()
        free = stage.memory_mib() * 2**20 - fixed  # the limit is the whole job's, this process and the weights included
    if limit_mib is not None:
        free = min(free, limit_mib * 2**20 - fixed)
    each = 4 if loaded.dtype == torch.float32 else 2
    law = loaded.family.memory
    states = law.per_token + (loaded.layers + 1 if inner_layers else 0)
    token = states * loaded.hidden_size * each + kept_per_token
    pair = law.bytes_per_pair
    if law.per_pair:
        pair += int(law.per_pair[loaded.device.type] * loaded.model.config.num_attention_heads * each)
    return Capacity(max(0, int(_SHARE * free)), token, pair, fixed, limit_mib is not None)


def measured(before: Capacity, rows: Sequence[tuple[int, int, int]], device: torch.device) -> Capacity:
    """The capacity of a GPU by what rows took there, instead of the family's law.

    Args:
        before: By the law.
        rows: Of one or two rows: tokens, tokens of the longest sequence, bytes at the peak beyond what was in use. Of
            two, the second tells what pairs take.
        device: The GPU.
    """
    tokens, longest, peak = rows[0]
    token, pair = peak / tokens, 0.0
    if len(rows) > 1:  # peak = tokens * token + longest^2 * pair
        other, length, high = rows[1]
        pair = max(0.0, (high - token * other) / (length**2 - other * longest**2 / tokens))
        token = max(1.0, (peak - pair * longest**2) / tokens)
    free, total = torch.cuda.mem_get_info(device)
    spare = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    fixed = total - free - spare
    room = int(FILLED * total) - fixed
    if before.limited:
        room = min(room, before.room)
    return Capacity(max(0, room), max(1, int(_MARGIN * token)), int(_MARGIN * pair), fixed, before.limited)


def _resident() -> int:
    """Bytes of memory that this process holds."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * 4096


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of the processor or the GPU is full."""
    text = str(error).lower()
    kinds = (torch.cuda.OutOfMemoryError, MemoryError)
    return isinstance(error, kinds) or any(part in text for part in _TEXTS)
