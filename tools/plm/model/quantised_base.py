"""A frozen model in 8 or 4 bits under adapters, for small GPUs: the library bitsandbytes, where it is installed.

Only the linear layers inside the transformer blocks are replaced; embeddings, norms and heads keep their type. The
second feed-forward layers of T5 keep theirs too: transformers turns the states into the type of their weights.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from typing import Any

import torch
from torch import nn

from plm.errors import UserError
from plm.model.float_products import ProcessorLinear
from plm.model.loaded import LoadedModel

METHODS = ("lora", "dora")
"""Ways to train that leave the base frozen and can sit on it."""
_KEPT = ("wo",)


def check(bits: int, methods: tuple[str, ...]) -> None:
    """Refuses what cannot be trained on such a base.

    Args:
        bits: 16 for the model as it is, 8 or 4.
        methods: How it is to be trained.

    Raises:
        UserError: A method that needs the base itself, or the library is not installed.
    """
    if bits == 16:
        return
    if others := [method for method in methods if method not in METHODS]:
        raise UserError(
            f"--method {others[0]} does not go with a base of {bits} bits", where="--base-bits",
            fix=f"Use {' or '.join(METHODS)}, or --base-bits 16",
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"A base of {bits} bits needs the library bitsandbytes, which is not installed", where="--base-bits",
            fix="Install it beside torch (pip install bitsandbytes), or use --base-bits 16",
        )


def reduced(loaded: LoadedModel, bits: int, device: torch.device) -> LoadedModel:
    """The same model with its layers in 8 or 4 bits, frozen, on a device.

    Args:
        loaded: On the processor, so that the device never holds the layers at full size; changed in place.
        bits: 8 (vector-wise int8, Dettmers et al. 2022) or 4 (NF4, Dettmers et al. 2023).
        device: Where it goes.
    """
    import bitsandbytes as bnb

    model = loaded.model
    for block in [layer for layers in model.modules() if isinstance(layers, nn.ModuleList) for layer in layers]:
        for name, module in list(block.named_modules()):
            if type(module) not in (nn.Linear, ProcessorLinear) or name.rpartition(".")[2] in _KEPT:
                continue
            above = block.get_submodule(name.rpartition(".")[0])
            setattr(above, name.rpartition(".")[2], _layer(bnb, module, bits))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    setattr(model, f"is_loaded_in_{bits}bit", True)  # by which PEFT tells its layers for such a base
    model.to(device)
    return dataclasses.replace(loaded, device=device)


def _layer(bnb: Any, linear: nn.Linear, bits: int) -> nn.Module:
    """A layer of bitsandbytes with the weights of another; they are reduced when it moves to its device."""
    weight, shape = linear.weight.data, (linear.in_features, linear.out_features)
    made: Any
    if bits == 4:
        made = bnb.nn.Linear4bit(*shape, bias=linear.bias is not None, compute_dtype=weight.dtype, quant_type="nf4")
        made.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
    else:
        made = bnb.nn.Linear8bitLt(*shape, bias=linear.bias is not None, has_fp16_weights=False, threshold=6.0)
        made.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    if linear.bias is not None:
        made.bias = nn.Parameter(linear.bias.data, requires_grad=False)
    replaced: nn.Module = made
    return replaced
