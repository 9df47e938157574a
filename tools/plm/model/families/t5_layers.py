"""T5's layers for packed rows. Loaded when transformers' models are loaded anyway."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.models.t5 import modeling_t5 as t5


class PackedBiasAttention(t5.T5Attention):
    """The first layer's relative bias is as wide as the longest sequence, not as the whole row."""

    def forward(
        self, hidden_states: torch.Tensor, *args: Any, position_bias: torch.Tensor | None = None, **kwargs: Any
    ) -> Any:
        packing = kwargs.get("packing")
        if position_bias is None and packing is not None and self.has_relative_attention_bias:
            device = hidden_states.device
            position_bias = self._bias(packing.longest, device) if device.type == "cpu" else self._table(device)
        return super().forward(hidden_states, *args, position_bias=position_bias, **kwargs)

    def _table(self, device: torch.device) -> torch.Tensor:
        """``(H, 2 M + 1)``: the bias of the distances from -M to M, where it ends to change."""
        reach = self.relative_attention_max_distance
        return self._by_distance(torch.arange(-reach, reach + 1, device=device))

    def _bias(self, length: int, device: torch.device) -> torch.Tensor:
        """``(1, H, L, L)``, contiguous: looked up once a distance instead of once a pair."""
        by_distance = self._by_distance(torch.arange(1 - length, length, device=device))
        return by_distance.unfold(1, length, 1).flip(1).unsqueeze(0)

    def _by_distance(self, distance: torch.Tensor) -> torch.Tensor:
        bucket = self._relative_position_bucket(
            distance, bidirectional=not self.is_decoder, num_buckets=self.relative_attention_num_buckets,
            max_distance=self.relative_attention_max_distance,
        )
        by_distance: torch.Tensor = self.relative_attention_bias(bucket).T.contiguous()
        return by_distance


class RootMeanSquareNorm(t5.T5LayerNorm):
    """The same norm, float32 inside, in fewer passes over the states; on CUDA in one."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if hidden_states.is_cuda and hidden_states.dtype == self.weight.dtype:
            return functional.rms_norm(hidden_states, self.weight.shape, self.weight, self.variance_epsilon)
        length = torch.linalg.vector_norm(hidden_states, dim=-1, keepdim=True, dtype=torch.float32)
        factor = torch.rsqrt(length.square() / hidden_states.shape[-1] + self.variance_epsilon)
        return self.weight * (hidden_states * factor).to(self.weight.dtype)


LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    t5.T5Attention: PackedBiasAttention,
    t5.T5LayerNorm: RootMeanSquareNorm,
}
