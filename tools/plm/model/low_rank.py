"""LoRA layers for training: what PEFT's compute, with a quarter of the memory and a fraction of the time.

PEFT casts the input of each adapted layer to float32, draws a float32 dropout mask for it and keeps both for the
backward pass: in bfloat16 training of a small encoder that is two thirds of all memory. Here the products run in the
type of the model (as under autocast; the adapter's weights stay float32), the mask is one byte a value, drawn four at
a time, and the masked input is computed again in the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import nn
from torch.nn import functional

from plm.model.float_products import ProcessorLinear

_LEVELS = 2**16
"""Dropout probabilities are rounded to multiples of 1 / 65,536."""


def kept(values: torch.Tensor, dropout: float) -> tuple[torch.Tensor, float]:
    """Which values dropout leaves.

    Args:
        values: ``(T, D)``.
        dropout: Probability that a value goes, below 1.

    Returns:
        ``(T, D)`` uint8, 1 where a value stays, from torch's generator; and the share that stays, which is
        ``1 - dropout`` rounded.
    """
    gone = round(dropout * _LEVELS)
    count = values.numel()
    drawn = values.new_empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    level = drawn.view(torch.int16)[:count].view(values.shape)
    return level.ge(gone - _LEVELS // 2).view(torch.uint8), 1 - gone / _LEVELS


class _LowRank(torch.autograd.Function):
    """A frozen linear layer and its low-rank update ``scale * B A dropout(x)``."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, a: torch.Tensor, b: torch.Tensor,
        scale: float, dropout: float,
    ) -> torch.Tensor:
        """``x`` is ``(..., D)``, ``weight`` ``(O, D)`` of the same type, ``a`` ``(r, D)`` and ``b`` ``(O, r)``."""
        flat = x.reshape(-1, x.shape[-1])
        mask, share = kept(flat, dropout) if dropout > 0 else (None, 1.0)
        low = (flat if mask is None else flat * mask) @ a.to(x.dtype).t()
        outputs = functional.linear(flat, weight, bias).addmm_(low, b.to(x.dtype).t(), alpha=scale / share)
        ctx.save_for_backward(flat, mask, weight, a, b, low)
        ctx.scale = scale / share
        return outputs.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        flat, mask, weight, a, b, low = ctx.saved_tensors
        above = gradient.reshape(-1, weight.shape[0])
        for_b = (above.t() @ low).to(b.dtype).mul_(ctx.scale)
        below = (above @ b.to(above.dtype)).mul_(ctx.scale)
        for_a = (below.t() @ (flat if mask is None else flat * mask)).to(a.dtype)
        for_x = None
        if ctx.needs_input_grad[0]:
            through = below @ a.to(above.dtype)
            for_x = (above @ weight).add_(through if mask is None else through.mul_(mask))
            for_x = for_x.view(*gradient.shape[:-1], weight.shape[1])
        return for_x, None, None, for_a, for_b, None, None


class LowRankLinear(Linear):
    """PEFT's LoRA layer; in training its plain case is computed by this module, everything else by PEFT itself."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if not self._plain(x) or args or kwargs:
            answer: torch.Tensor = super().forward(x, *args, **kwargs)
            return answer
        name = self.active_adapters[0]
        dropout = self.lora_dropout[name]
        probability = float(dropout.p) if isinstance(dropout, nn.Dropout) and dropout.training else 0.0
        base = self.get_base_layer()
        outputs: torch.Tensor = _LowRank.apply(
            x, base.weight, base.bias, self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name],
            probability,
        )
        return outputs

    def _plain(self, x: torch.Tensor) -> bool:
        """One LoRA adapter on a frozen linear layer, with gradients wanted, in one type without autocast."""
        base = self.get_base_layer()
        names = self.active_adapters
        return (
            torch.is_grad_enabled()
            and not torch.is_autocast_enabled(x.device.type)
            and not self.disable_adapters
            and not self.merged
            and len(names) == 1
            and names[0] in self.lora_A
            and names[0] not in self.lora_variant
            and self.lora_B[names[0]].bias is None
            and type(base) in (nn.Linear, ProcessorLinear)
            and not base.weight.requires_grad
            and (base.bias is None or not base.bias.requires_grad)
            and base.weight.dtype == x.dtype
        )


def lean(model: nn.Module) -> None:
    """Lets the LoRA layers of a PEFT model train through this module. Parameters and their names stay as they are."""
    for module in model.modules():
        if type(module) is Linear:
            module.__class__ = LowRankLinear
