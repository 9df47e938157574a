"""Matrix products in 8-bit integers on processors, for those without bfloat16: weights by output channel, inputs by row
of tokens, as torch's dynamic quantisation makes them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from plm.errors import UserError
from plm.model import encoder, float_products
from plm.model.loaded import LoadedModel

ENGINES = ("onednn", "x86", "fbgemm")
"""torch's engines for such products, the fastest first."""
PROBES, PROBE_RESIDUES = 8, 300


def check(device: torch.device, precision: str) -> None:
    """Refuses what has no such products.

    Raises:
        UserError: A GPU, a precision other than float32, or a processor without an engine.
    """
    fix = "Use --device cpu --precision fp32 with it, or leave --int8 out"
    if device.type != "cpu" or precision != "fp32":
        what = f"8-bit products are for processors in float32, not for {device.type} in {precision}"
        raise UserError(what, where="--int8", fix=fix)
    if not set(ENGINES) & set(torch.backends.quantized.supported_engines):
        raise UserError("This torch has no 8-bit products for this processor", where="--int8", fix="Leave --int8 out")


def reduce(loaded: LoadedModel, sequences: Sequence[str]) -> float:
    """Lets the layers of a float32 model multiply 8-bit integers, in place.

    Args:
        loaded: The model, on the processor.
        sequences: Some proteins; the first of them tell the error.

    Returns:
        The lowest cosine between the mean representations of those proteins before and after.
    """
    from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic

    probes = [sequence[:PROBE_RESIDUES] for sequence in sequences[:PROBES]]
    before = [states.mean(0) for states in encoder.encode(loaded, probes)]
    torch.backends.quantized.engine = next(
        name for name in ENGINES if name in torch.backends.quantized.supported_engines
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces that torchao will take over
        float_products.restore(loaded.model)
        for layers in [module for module in loaded.model.modules() if isinstance(module, nn.ModuleList)]:
            quantize_dynamic(layers, {nn.Linear: per_channel_dynamic_qconfig}, inplace=True)
    after = [states.mean(0) for states in encoder.encode(loaded, probes)]
    return min(float(functional.cosine_similarity(a, b, dim=0)) for a, b in zip(before, after, strict=True))
