"""What ESM and BERT share: names, sizes and fields of layers that descend from BERT's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from plm.errors import UserError
from plm.model.families.family import PUBLISHED, ModelFamily
from plm.model.families.settings import DROPOUT, Setting, flag, size, small
from plm.received.fields import Fields


class BertShaped(ModelFamily):
    """Encoders with a masked-language-model head whose layers are named as BERT's."""

    encoder_options: ClassVar[Mapping[str, Any]] = {"add_pooling_layer": False}
    settings: ClassVar[Mapping[str, Setting]] = {
        "vocab_size": size(),
        "hidden_size": size(768),
        "num_hidden_layers": size(12, 10_000),
        "num_attention_heads": size(12, 10_000),
        "intermediate_size": size(3072),
        "layer_norm_eps": small(1e-12),
        "hidden_dropout_prob": DROPOUT,
        "attention_probs_dropout_prob": DROPOUT,
        "initializer_range": Setting("number", 0, 10, 0.02),
        "tie_word_embeddings": flag(default=True),
    }
    sizes: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "embeddings.word_embeddings.weight": ("vocab_size", "hidden_size"),
        "encoder.layer.0.intermediate.dense.weight": ("intermediate_size", "hidden_size"),
    }
    learned_positions: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "embeddings.position_embeddings.weight": ("max_position_embeddings", "hidden_size")
    }
    prefix: ClassVar[str] = "bert."
    parts = ("embeddings.", "encoder.", "contact_head.")
    attention_targets = ("query", "key", "value", "attention.output.dense")
    key_value_targets = ("key", "value")
    feedforward_targets = (r"layer\.\d+\.output\.dense",)
    head_width: ClassVar[int] = 1
    """What the width of an attention head must be a multiple of."""

    def checked(self, settings: dict[str, Any], fields: Fields, where: str) -> dict[str, Any]:
        width, heads = settings["hidden_size"], settings["num_attention_heads"]
        if width % heads or (width // heads) % self.head_width:
            raise UserError(
                f"config.json says that {width} numbers are divided among {heads} attention heads, which they cannot",
                where=where, fix=PUBLISHED,
            )
        limit = self.limit(settings)
        if limit is not None and limit < 1:
            raise UserError(
                f"config.json leaves no position for a residue (max_position_embeddings is "
                f"{settings['max_position_embeddings']})", where=where, fix=PUBLISHED,
            )
        return settings

    def numbers(self, settings: Mapping[str, Any]) -> int:
        width, inner = settings["hidden_size"], settings["intermediate_size"]
        numbers: int = settings["vocab_size"] * width
        return numbers + settings["num_hidden_layers"] * (4 * width * width + 2 * width * inner)
