"""Products of float32 linear layers on processors with AVX-512, by oneDNN instead of MKL, without gradients.

On AMD's processors MKL reached 34 to 38 GFLOP/s where oneDNN reached 82 to 97 on the same core (2,048 tokens). Sums are
rounded in another order (relative L2 of a product 3e-7); a token's result is the same to the bit in rows of any two
tokens or more. Weights stay as they are: oneDNN orders them anew at each call, which rows of 128 tokens and more do not
feel.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn


@cache
def by_onednn() -> bool:
    """Whether oneDNN makes these products here."""
    there = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return there and torch.backends.cpu.get_cpu_capability() == "AVX512"


class ProcessorLinear(nn.Linear):
    """A linear layer that multiplies as said above; with gradients, autocast or other types as any other."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if (
            input.dtype == torch.float32 == self.weight.dtype
            and input.device.type == "cpu"
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu")
            and by_onednn()
        ):
            product: Any = torch.ops.mkldnn._linear_pointwise
            result: torch.Tensor = product(input, self.weight, self.bias, "none", [], "")
            return result
        return super().forward(input)


def adapt(model: nn.Module) -> None:
    """Lets the linear layers of a model's blocks multiply so. Parameters and their names stay as they are."""
    _change(model, nn.Linear, ProcessorLinear)


def restore(model: nn.Module) -> None:
    """Makes them torch's own again, for what replaces layers by their class."""
    _change(model, ProcessorLinear, nn.Linear)


def _change(model: nn.Module, before: type[nn.Module], after: type[nn.Module]) -> None:
    for blocks in [module for module in model.modules() if isinstance(module, nn.ModuleList)]:
        for module in blocks.modules():
            if type(module) is before:
                module.__class__ = after
