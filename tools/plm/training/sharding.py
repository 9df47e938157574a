"""A model in pieces: each process holds its share of weights, gradients and optimiser (torch's FSDP2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def divide(model: nn.Module, *, bf16: bool) -> None:
    """Divides a model among the processes of the job, in place: each transformer layer by itself, and the rest.

    A layer is put together when it is needed and forgotten afterwards. Products run in bfloat16 if asked; weights,
    sums of gradients and optimiser stay as they are.

    Args:
        model: The same in all processes, on each one's device.
        bf16: Whether products run in bfloat16.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    kind = torch.bfloat16 if bf16 else None
    policy = MixedPrecisionPolicy(param_dtype=kind, reduce_dtype=torch.float32 if bf16 else None)
    for layers in [module for module in model.modules() if isinstance(module, nn.ModuleList)]:
        for layer in layers:
            if any(True for _ in layer.parameters()):
                fully_shard(layer, mp_policy=policy)
    fully_shard(model, mp_policy=policy)


def leave_as_it_is(trainer: Any) -> None:
    """Has the Trainer take a divided model as it is: Accelerate divides models on GPUs only, and copies others."""

    def as_it_is(model: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        return model

    trainer.accelerator.prepare_model = as_it_is
