"""What ProtT5 and Ankh share: the encoder of transformers' T5, its relative bias and what that takes of memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from plm.model.families.family import MemoryLaw, ModelFamily
from plm.model.families.settings import DROPOUT, Setting, size, small, token

if TYPE_CHECKING:
    import torch
    from torch import nn

    from plm.model.batching import Batch


class T5Family(ModelFamily):
    """Encoders of T5: no token before the residues, no masked-language-model head."""

    before, after = (), ("</s>",)
    kind, config_class, encoder_class = "t5", "T5Config", "T5EncoderModel"
    settings: ClassVar[Mapping[str, Setting]] = {
        "vocab_size": size(32128),
        "d_model": size(512),
        "d_kv": size(64),
        "d_ff": size(2048),
        "num_layers": size(6, 10_000),
        "num_heads": size(8, 10_000),
        "relative_attention_num_buckets": size(32),
        "relative_attention_max_distance": size(128),
        "dropout_rate": DROPOUT,
        "layer_norm_epsilon": small(1e-6),
        "initializer_factor": Setting("number", 0, 1000, 1.0),
        "feed_forward_proj": Setting(
            "text", default="relu",
            choices=("relu", "gelu", "gelu_new", "silu", "gated-gelu", "gated-silu", "gated-relu"),
        ),
        "pad_token_id": token(0),
        "eos_token_id": token(1),
    }
    depth = "num_layers"
    sizes: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "shared.weight": ("vocab_size", "d_model"),
        "encoder.embed_tokens.weight": ("vocab_size", "d_model"),
        "encoder.block.0.layer.1.DenseReluDense.wi.weight": ("d_ff", "d_model"),
        "encoder.block.0.layer.1.DenseReluDense.wi_0.weight": ("d_ff", "d_model"),
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (
            "relative_attention_num_buckets", "num_heads",
        ),
        "encoder.block.0.layer.0.SelfAttention.q.weight": ("num_heads * d_kv", "d_model"),
    }
    parts = ("shared.", "encoder.")
    attention_targets, key_value_targets, feedforward_targets = ("q", "k", "v", "o"), ("k", "v"), ("wo",)
    relative_bias = True
    memory = MemoryLaw(
        # The bias: 1.1 measured on processors, where scores are made block by block; on CUDA perhaps scores and weights
        # too. Distances are sorted into buckets as whole numbers of 8 bytes.
        per_pair={"cpu": 1.5, "cuda": 3.0}, bytes_per_pair=40, trained_per_pair=3,
    )

    def numbers(self, settings: Mapping[str, Any]) -> int:
        width, inner, heads = settings["d_model"], settings["d_ff"], settings["num_heads"] * settings["d_kv"]
        matrices = 2 + settings["feed_forward_proj"].startswith("gated")
        numbers: int = settings["vocab_size"] * width
        return numbers + settings["num_layers"] * (4 * width * heads + matrices * width * inner)

    def layers(self) -> Mapping[type[nn.Module], type[nn.Module]]:
        from plm.model.families import t5_layers

        return t5_layers.LAYERS

    def inputs(self, encoder: Any, batch: Batch) -> dict[str, torch.Tensor]:
        return {"inputs_embeds": encoder.get_input_embeddings()(batch.input_ids)[None]}
