"""BERT over residues: ProtBert (Elnaggar et al. 2022).

Devlin et al.'s layers, normalised after each half; models normalised before it are Megatron's (``megatron_bert.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from plm.model.families.bert_shape import BertShaped
from plm.model.families.family import single_letters
from plm.model.families.settings import Setting, size, token

if TYPE_CHECKING:
    import torch
    from torch import nn

    from plm.model.batching import Batch


class Bert(BertShaped):
    """BERT with a vocabulary of single letters, of which ProtBert's authors mapped the unusual ones to X."""

    name, title = "bert", "BERT"
    before, mask = ("[CLS]",), "[MASK]"
    after: ClassVar[tuple[str, ...]] = ("[SEP]",)
    kind, config_class, encoder_class, language_model_class = "bert", "BertConfig", "BertModel", "BertForMaskedLM"
    head, head_weights = "cls", "cls.predictions.transform."
    settings: ClassVar[Mapping[str, Setting]] = {
        **BertShaped.settings,
        "max_position_embeddings": size(512, 10_000_000),
        "type_vocab_size": size(2),
        "hidden_act": Setting("text", default="gelu", choices=("gelu", "gelu_new", "relu", "silu")),
        "pad_token_id": token(0),
    }
    constants: ClassVar[Mapping[str, tuple[Any, ...]]] = {"position_embedding_type": ("absolute",)}
    sizes: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **BertShaped.sizes,
        **BertShaped.learned_positions,
        "embeddings.token_type_embeddings.weight": ("type_vocab_size", "hidden_size"),
    }

    def matches(self, config: Mapping[str, Any], vocabulary: Mapping[str, int]) -> bool:
        return config.get("model_type") == self.kind and "[CLS]" in vocabulary and single_letters(vocabulary)

    def limit(self, settings: Mapping[str, Any]) -> int:
        return int(settings["max_position_embeddings"] - self.specials)

    def layers(self) -> Mapping[type[nn.Module], type[nn.Module]]:
        """None: its attention is plain, and positions are given with the tokens."""
        return {}

    def inputs(self, encoder: Any, batch: Batch) -> dict[str, torch.Tensor]:
        embedded = encoder.get_input_embeddings()(batch.input_ids)
        return {"inputs_embeds": embedded[None], "position_ids": batch.position_ids[None]}


BERT = Bert()
