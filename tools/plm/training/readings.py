"""Numbers of a training that are read without making a GPU wait."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch

from plm.model import encoder


class Readings:
    """Numbers that steps leave on the device, read without making it wait.

    On processors a number is read when it is noted. On CUDA it is copied into pinned memory and read when the next one
    has been noted, by which time the device works on the next step.

    Args:
        device: Where the numbers are.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._waiting: deque[Callable[[], torch.Tensor]] = deque()

    def note(self, value: torch.Tensor) -> None:
        """Takes a tensor of a step, of any shape."""
        value = value.detach()
        self._waiting.append(encoder.fetching(value) if self._on_gpu else lambda: value)

    def read(self, *, everything: bool = False) -> list[torch.Tensor]:
        """Tensors that were not read before, on the host; on CUDA all but the last, unless ``everything`` is wanted."""
        held = 1 if self._on_gpu and not everything else 0
        return [self._waiting.popleft()() for _ in range(len(self._waiting) - held)]
