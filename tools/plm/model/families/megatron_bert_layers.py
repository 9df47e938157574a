"""MegatronBERT's layers for packed rows. Loaded when transformers' models are loaded anyway."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput
from transformers.models.megatron_bert import modeling_megatron_bert as megatron

from plm.model import attention
from plm.model.batching import RowLayout


class PackedMegatronLayer(megatron.MegatronBertLayer):
    """Attention within each sequence, then the feed-forward half; both normalised before, with residuals around."""

    def forward(
        self, hidden_states: torch.Tensor, packing: RowLayout | None = None,
        contacts: Callable[[torch.Tensor], None] | None = None, **kwargs: Any,
    ) -> torch.Tensor:
        attended = self._attend(self.attention.ln(hidden_states), packing, contacts)
        states: torch.Tensor = self.attention.output(attended, hidden_states)
        result: torch.Tensor = self.output(self.intermediate(self.ln(states)), states)
        return result

    def _attend(
        self, states: torch.Tensor, packing: RowLayout | None, contacts: Callable[[torch.Tensor], None] | None
    ) -> torch.Tensor:
        own = self.attention.self
        shape = (states.shape[1], own.num_attention_heads, own.attention_head_size)
        query, key, value = (layer(states)[0].view(shape) for layer in (own.query, own.key, own.value))
        scale = own.attention_head_size**-0.5
        if contacts is not None:
            contacts(attention.weights(query, key, scale=scale))
        attended = attention.attend(
            query, key, value, RowLayout(shape[:1]) if packing is None else packing, scale=scale,
            dropout=own.dropout.p if self.training else 0.0,
        )
        return attended.view(1, shape[0], -1)


class PackedMegatronModel(megatron.MegatronBertModel):
    """The encoder, which hands the layout of the row down to its layers."""

    def forward(
        self, input_ids: torch.Tensor | None = None, inputs_embeds: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None, packing: RowLayout | None = None, output_hidden_states: bool = False,
        contacts: Callable[[torch.Tensor], None] | None = None, **kwargs: Any,
    ) -> BaseModelOutput:
        states = self.embeddings(input_ids=input_ids, inputs_embeds=inputs_embeds, position_ids=position_ids)
        seen = [states]
        for layer in self.encoder.layer:
            states = layer(states, packing=packing, contacts=contacts)
            seen.append(states)
        seen[-1] = states = self.encoder.ln(states)
        return BaseModelOutput(last_hidden_state=states, hidden_states=tuple(seen) if output_hidden_states else None)


class PackedMegatronForMaskedLM(megatron.MegatronBertForMaskedLM):
    """Encoder and language-model head."""

    def forward(self, **kwargs: Any) -> MaskedLMOutput:
        seen = self.bert(**kwargs)
        return MaskedLMOutput(logits=self.cls(seen.last_hidden_state), hidden_states=seen.hidden_states)


LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    megatron.MegatronBertLayer: PackedMegatronLayer,
    megatron.MegatronBertModel: PackedMegatronModel,
    megatron.MegatronBertForMaskedLM: PackedMegatronForMaskedLM,
}
for _plain, _packed in LAYERS.items():
    _packed.__name__ = _plain.__name__  # save_pretrained writes the class's name into config.json
