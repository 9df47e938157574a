"""What the original programs compute, written down anew from their weights under their own names.

Nothing here shares code with the conversion or with the suite's encoder: the converted model is compared with it. Plain
float32, one sequence at a time, no speed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch.nn import functional

from plm.jobs.convert.megatron import MegatronShape
from plm.model.fair_esm import EsmShape
from plm.model.named_weights import Weights


def esm_states(weights: Mapping[str, torch.Tensor], shape: EsmShape, ids: Sequence[int]) -> torch.Tensor:
    """States of every token after the last layer norm of ESM-1b, ESM-1v or ESM-2 (fair-esm, esm1.py and esm2.py).

    Args:
        weights: By fair-esm's names, without their beginnings.
        shape: Sizes of the model.
        ids: Tokens of one sequence, none of them masked.

    Returns:
        ``(T, D)`` float32.
    """

    def read(name: str) -> torch.Tensor:
        return weights[name].float()

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ read(f"{name}.weight").T + read(f"{name}.bias")

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(x, x.shape[-1:], read(f"{name}.weight"), read(f"{name}.bias"), 1e-5)

    count, width = len(ids), shape.hidden // shape.heads
    x = read("embed_tokens.weight")[list(ids)]
    if shape.token_dropout:
        x = x * (1 - 0.15 * 0.8)
    if shape.positions:
        x = x + read("embed_positions.weight")[2 : 2 + count]
    if shape.norm_before:
        x = norm("emb_layer_norm_before", x)
    angles = torch.outer(torch.arange(count).float(), 10_000.0 ** (-torch.arange(0, width, 2).float() / width))
    angles = torch.cat([angles, angles], 1)
    for layer in range(shape.layers):
        place = f"layers.{layer}."
        states = norm(place + "self_attn_layer_norm", x)
        query, key, value = (
            linear(f"{place}self_attn.{part}_proj", states).view(count, shape.heads, width).transpose(0, 1)
            for part in "qkv"
        )
        if not shape.positions:
            query, key = _rotated(query, angles), _rotated(key, angles)
        x = x + linear(place + "self_attn.out_proj", _attended(query, key, value))
        inner = functional.gelu(linear(place + "fc1", norm(place + "final_layer_norm", x)))
        x = x + linear(place + "fc2", inner)
    return norm("emb_layer_norm_after", x)


def _rotated(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, -1)
    return x * angles.cos() + torch.cat([-second, first], -1) * angles.sin()


def _attended(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Softmax attention of ``(H, T, D)`` states; ``(T, H * D)``."""
    scores = query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])
    return (scores.softmax(-1) @ value).transpose(0, 1).flatten(1)


def megatron_states(partitions: Sequence[Weights], shape: MegatronShape, ids: Sequence[int]) -> torch.Tensor:
    """States of every token after the last layer norm of Megatron's BERT (language_model.py, transformer.py).

    Args:
        partitions: Weights of each partition, by Megatron's names; none of them merged.
        shape: Sizes of the model.
        ids: Tokens of one sequence.

    Returns:
        ``(T, D)`` float32.
    """
    first, count = partitions[0], len(ids)
    approximate = "tanh" if shape.activation != "gelu" else "none"

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        scale, shift = first[f"{name}.weight"].float(), first[f"{name}.bias"].float()
        return functional.layer_norm(x, x.shape[-1:], scale, shift, shape.epsilon)

    words = torch.cat([weights["embedding.word_embeddings.weight"] for weights in partitions]).float()
    x = words[list(ids)] + first["embedding.position_embeddings.weight"][:count].float()
    if shape.types:
        x = x + first["embedding.tokentype_embeddings.weight"][0].float()
    width, heads = shape.hidden // shape.heads, shape.heads // shape.partitions
    for layer in range(shape.layers):
        place = f"encoder.layers.{layer}."
        states, total = norm(place + "input_layernorm", x), first[place + "attention.dense.bias"].float()
        for weights in partitions:
            own = {name.removeprefix(place): value.float() for name, value in weights.items() if name.startswith(place)}
            mixed = states @ own["attention.query_key_value.weight"].T + own["attention.query_key_value.bias"]
            if shape.version == "0":
                query, key, value = mixed.view(count, 3, heads, width).unbind(1)
            elif shape.version == "1":
                query, key, value = mixed.view(count, heads, width, 3).unbind(3)
            else:
                query, key, value = mixed.view(count, heads, 3, width).unbind(2)
            attended = _attended(query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1))
            total = total + attended @ own["attention.dense.weight"].T
        x = x + total
        states, total = norm(place + "post_attention_layernorm", x), first[place + "mlp.dense_4h_to_h.bias"].float()
        for weights in partitions:
            inner = states @ weights[place + "mlp.dense_h_to_4h.weight"].float().T
            inner = functional.gelu(inner + weights[place + "mlp.dense_h_to_4h.bias"].float(), approximate=approximate)
            total = total + inner @ weights[place + "mlp.dense_4h_to_h.weight"].float().T
        x = x + total
    return norm("encoder.final_layernorm", x)
