"""BERT as Megatron trains it, normalised before each half of a layer: ProteinLM (Xiao et al. 2021).

In training ProteinLM put [CLS] before each protein and nothing behind it; its authors' fine-tuning closes proteins with
[SEP], as transformers' tokenizer and the suite do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from plm.model.families.bert import Bert
from plm.model.families.letters import UNUSUAL_LETTERS

if TYPE_CHECKING:
    from torch import nn


class MegatronBert(Bert):
    """transformers' MegatronBERT with a vocabulary of single letters, the unusual ones (B, O, U, Z) among them."""

    name, title, unusual = "megatron_bert", "MegatronBERT", UNUSUAL_LETTERS
    kind, config_class, encoder_class = "megatron-bert", "MegatronBertConfig", "MegatronBertModel"
    language_model_class = "MegatronBertForMaskedLM"

    def layers(self) -> Mapping[type[nn.Module], type[nn.Module]]:
        """Its attention knows no other implementation than its own, so that whole layers are told of the row."""
        from plm.model.families import megatron_bert_layers

        return megatron_bert_layers.LAYERS


MEGATRON_BERT = MegatronBert()
