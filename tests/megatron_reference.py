"""A Megatron BERT written down by itself: layers normalised before each half, query, key and value in one matrix.

It follows Megatron-LM's transformer.py and bert_model.py (checkpoint version 3 and earlier orders of the fused matrix),
shares nothing with the suite, and saves itself as Megatron does, in one partition or several.
"""

from __future__ import annotations

import math
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

TOKENS = ("[PAD]", "[MASK]", "[CLS]", "[SEP]", "[UNK]", "[unused1]", *"ABCDEFGHIKLMNOPQRSTUVWXYZ")
"""ProteinLM's vocabulary."""


class MegatronLayer(nn.Module):
    """One transformer layer of Megatron's BERT; the fused rows go head by head: its query, its key, its value."""

    def __init__(self, hidden: int, heads: int, feedforward: int, smooth: bool) -> None:
        super().__init__()
        self.heads, self.smooth = heads, smooth
        self.input_layernorm = nn.LayerNorm(hidden)
        self.query_key_value = nn.Linear(hidden, 3 * hidden)
        self.dense = nn.Linear(hidden, hidden)
        self.post_attention_layernorm = nn.LayerNorm(hidden)
        self.dense_h_to_4h = nn.Linear(hidden, feedforward)
        self.dense_4h_to_h = nn.Linear(feedforward, hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, T, D)`` to the same."""
        batch, tokens, hidden = x.shape
        width = hidden // self.heads
        mixed = self.query_key_value(self.input_layernorm(x)).view(batch, tokens, self.heads, 3 * width)
        query, key, value = (part.transpose(1, 2) for part in mixed.split(width, dim=-1))
        weights = torch.softmax(query @ key.transpose(2, 3) / math.sqrt(width), -1)
        x = x + self.dense((weights @ value).transpose(1, 2).reshape(batch, tokens, hidden))
        inner = self.dense_h_to_4h(self.post_attention_layernorm(x))
        gelu = functional.gelu(inner, approximate="tanh" if self.smooth else "none")
        result: torch.Tensor = x + self.dense_4h_to_h(gelu)
        return result


class MegatronReference(nn.Module):
    """Megatron's BERT with its language-model head, random weights, and a vocabulary padded to a multiple of 128.

    GELU is the exact one; ``openai`` takes that by tanh everywhere, ``fused`` in the layers alone.
    """

    def __init__(
        self, layers: int = 2, hidden: int = 32, heads: int = 4, positions: int = 200, types: int = 0,
        fused: bool = False, openai: bool = False, seed: int = 0,
    ) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.settings = Namespace(
            num_layers=layers, hidden_size=hidden, num_attention_heads=heads, ffn_hidden_size=4 * hidden,
            max_position_embeddings=positions, padded_vocab_size=128, layernorm_epsilon=1e-5, bias_gelu_fusion=fused,
            openai_gelu=openai, params_dtype=torch.float32, apply_residual_connection_post_layernorm=False,
        )
        self.words, self.places = nn.Embedding(128, hidden), nn.Embedding(positions, hidden)
        self.types = nn.Embedding(types, hidden) if types else None
        self.layers = nn.ModuleList(MegatronLayer(hidden, heads, 4 * hidden, fused or openai) for _ in range(layers))
        self.final_layernorm = nn.LayerNorm(hidden)
        self.head_dense, self.head_norm = nn.Linear(hidden, hidden), nn.LayerNorm(hidden)
        self.head_bias = nn.Parameter(torch.zeros(128))
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.ndim == 1:
                    parameter += 0.1 * torch.randn_like(parameter)
        self.eval()

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``(B, T)`` tokens to states ``(B, T, D)`` and logits ``(B, T, 128)``."""
        x = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        if self.types is not None:
            x = x + self.types(torch.zeros_like(ids))
        for layer in self.layers:
            x = layer(x)
        x = self.final_layernorm(x)
        smooth = "tanh" if self.settings.openai_gelu else "none"
        inner = self.head_norm(functional.gelu(self.head_dense(x), approximate=smooth))
        return x, inner @ self.words.weight.T + self.head_bias

    def save(
        self, folder: Path, *, partitions: int = 1, version: float | None = 3.0, plain_names: bool = False
    ) -> Path:
        """Writes ``mp_rank_00/model_optim_rng.pt`` and so on below a folder, as Megatron's checkpointing.py does.

        Args:
            folder: Made if absent.
            partitions: Tensor-parallel size.
            version: ``checkpoint_version``; decides the order of fused rows; None leaves it out (order of version 0).
            plain_names: Use the newer names (``encoder``, ``self_attention``) instead of the older.
        """
        parallel = {"tensor_model_parallel_size": partitions, "pipeline_model_parallel_size": 1}
        settings = Namespace(**vars(self.settings), **parallel)
        for rank in range(partitions):
            content: dict[str, Any] = {
                "args": settings, "iteration": 7, "model": self._part(rank, partitions, version, plain_names),
                "np_rng_state": np.random.default_rng(0).bit_generator.state, "random_rng_state": (3, (1, 2), None),
                "rng_array": np.arange(3), "torch_rng_state": torch.get_rng_state(),
                "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}},
            }
            if version is not None:
                content["checkpoint_version"] = version
            place = folder / f"mp_rank_{rank:02d}"
            place.mkdir(parents=True, exist_ok=True)
            torch.save(content, place / "model_optim_rng.pt")
        return folder

    def _part(self, rank: int, partitions: int, version: float | None, newer: bool) -> dict[str, Any]:
        def rows(x: torch.Tensor) -> torch.Tensor:
            return x.detach().chunk(partitions)[rank].clone()

        def columns(x: torch.Tensor) -> torch.Tensor:
            return x.detach().chunk(partitions, 1)[rank].clone()

        def whole(module: Any) -> dict[str, torch.Tensor]:
            return {key: value.clone() for key, value in module.state_dict().items()}

        attention = "self_attention" if newer else "attention"
        state: dict[str, torch.Tensor] = {}
        for number, layer in enumerate(self.layers):
            own: dict[str, torch.Tensor] = {}
            for name in ("input_layernorm", "post_attention_layernorm"):
                own |= {f"{name}.{key}": value for key, value in whole(getattr(layer, name)).items()}
            for kind in ("weight", "bias"):
                fused = rows(getattr(layer.query_key_value, kind))  # type: ignore[union-attr]
                own[f"{attention}.query_key_value.{kind}"] = _reordered(fused, version, layer.heads // partitions)  # type: ignore[operator]
                own[f"mlp.dense_h_to_4h.{kind}"] = rows(getattr(layer.dense_h_to_4h, kind))  # type: ignore[union-attr]
            for name, module in ((f"{attention}.dense", layer.dense), ("mlp.dense_4h_to_h", layer.dense_4h_to_h)):
                own[f"{name}.weight"] = columns(module.weight)  # type: ignore[union-attr,arg-type]
                own[f"{name}.bias"] = module.bias.detach().clone()  # type: ignore[union-attr,operator]
            state |= {f"layers.{number}.{key}": value for key, value in own.items()}
        state |= {f"final_layernorm.{key}": value for key, value in whole(self.final_layernorm).items()}
        embedding: dict[str, Any] = {
            "word_embeddings": {"weight": rows(self.words.weight)}, "position_embeddings": whole(self.places),
        }
        if self.types is not None:
            embedding["tokentype_embeddings"] = whole(self.types)
        head = {f"dense.{key}": value for key, value in whole(self.head_dense).items()}
        head |= {f"layernorm.{key}": value for key, value in whole(self.head_norm).items()}
        language_model = {"embedding": embedding, "encoder" if newer else "transformer": state}
        return {"language_model": language_model, "lm_head": {**head, "bias": rows(self.head_bias)}}


def _reordered(fused: torch.Tensor, version: float | None, heads: int) -> torch.Tensor:
    """Rows of a partition, given head by head (version 2 and later), in the order of an earlier version."""
    width = fused.shape[0] // (3 * heads)
    split = fused.view(heads, 3, width, *fused.shape[1:])
    if version is None or version < 1:
        split = split.transpose(0, 1)
    elif version < 2:
        split = split.transpose(1, 2)
    return split.reshape(fused.shape).clone()
