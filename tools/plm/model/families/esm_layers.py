"""ESM's layers for packed rows. Loaded when transformers' models are loaded anyway."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.models.esm import modeling_esm as esm

from plm.model import attention
from plm.model.batching import RowLayout


class FusedIntermediate(esm.EsmIntermediate):
    """The first feed-forward layer with the exact GELU in one kernel instead of four."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return functional.gelu(self.dense(hidden_states))


class RotaryTables(esm.EsmRotaryEmbedding):
    """Tables of the positions, float32 whatever the type of the weights, once a row."""

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor, layer_type: Any = None) -> Any:
        with torch.no_grad():
            angles = torch.outer(position_ids[0].float(), self.inv_freq.float().to(x.device))
            return attention.tables(angles)


class PackedSelfAttention(esm.EsmSelfAttention):
    """Rotation and attention within each sequence, without head-first copies of the whole row."""

    def forward(
        self, hidden_states: torch.Tensor, *args: Any, position_embeddings: Any = None,
        packing: RowLayout | None = None, contacts: Callable[[torch.Tensor], None] | None = None, **kwargs: Any,
    ) -> Any:
        shape = (hidden_states.shape[1], self.num_attention_heads, self.attention_head_size)
        query, key, value = (layer(hidden_states)[0].view(shape) for layer in (self.query, self.key, self.value))
        scale = self.attention_head_size**-0.5
        if contacts is not None:
            contacts(attention.weights(query, key, scale=scale, rotary=position_embeddings))
        attended = attention.attend(
            query, key, value, RowLayout(shape[:1]) if packing is None else packing,
            scale=scale, rotary=position_embeddings, dropout=self.dropout if self.training else 0.0,
        )
        return attended.view(1, shape[0], -1), None


LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    esm.EsmIntermediate: FusedIntermediate,
    esm.EsmRotaryEmbedding: RotaryTables,
    esm.EsmSelfAttention: PackedSelfAttention,
}
