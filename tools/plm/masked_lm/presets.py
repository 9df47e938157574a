"""Shapes of models that can be trained from scratch, and their tokenizers: ESM-2's, and MegatronBERT as ProteinLM's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plm.model.families.esm2 import ESM2_VOCABULARY
from plm.model.families.megatron_bert import tokenizer_files


@dataclass(frozen=True)
class Preset:
    """A model shape: ``layers`` transformer layers, ``hidden`` wide, ``heads`` attention heads, ``feedforward`` in
    the middle."""

    layers: int
    hidden: int
    heads: int
    feedforward: int


PRESETS = {
    "tiny": Preset(2, 64, 4, 256),
    "small": Preset(6, 320, 5, 1280),
    "esm2_8m": Preset(6, 320, 20, 1280),
    "esm2_35m": Preset(12, 480, 20, 1920),
    "esm2_150m": Preset(30, 640, 20, 2560),
    "esm2_650m": Preset(33, 1280, 20, 5120),
}
"""``small`` is the starter model's shape: as wide as ESM-2 8M with wider heads, which processors multiply faster."""


PROTEINLM = "proteinlm_200m"
MEGATRON_PRESETS = {PROTEINLM: Preset(16, 1024, 16, 4096)}
"""Shapes of MegatronBERT; that of ProteinLM (Xiao et al. 2021)."""
PROTEINLM_VOCABULARY = ("[PAD]", "[MASK]", "[CLS]", "[SEP]", "[UNK]", "[unused1]", *"ABCDEFGHIKLMNOPQRSTUVWXYZ")
PROTEINLM_POSITIONS = 2176


def megatron_config(shape: Preset, positions: int = PROTEINLM_POSITIONS) -> Any:
    """A transformers ``MegatronBertConfig`` over ProteinLM's vocabulary."""
    from transformers import MegatronBertConfig

    return MegatronBertConfig(
        vocab_size=len(PROTEINLM_VOCABULARY), hidden_size=shape.hidden, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, intermediate_size=shape.feedforward, hidden_act="gelu",
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, max_position_embeddings=positions,
        type_vocab_size=1, pad_token_id=PROTEINLM_VOCABULARY.index("[PAD]"), use_cache=False,
    )


def write_megatron_tokenizer(folder: Path) -> None:
    """Writes the tokenizer of ProteinLM's vocabulary into a checkpoint folder."""
    for name, text in tokenizer_files(PROTEINLM_VOCABULARY).items():
        (folder / name).write_text(text)


def esm2_config(*, layers: int, hidden: int, heads: int, feedforward: int) -> Any:
    """A transformers ``EsmConfig`` of the published ESM-2 settings in a shape of its own."""
    from transformers import EsmConfig

    return EsmConfig(
        vocab_size=len(ESM2_VOCABULARY), mask_token_id=ESM2_VOCABULARY.index("<mask>"),
        pad_token_id=ESM2_VOCABULARY.index("<pad>"), hidden_size=hidden, num_hidden_layers=layers,
        num_attention_heads=heads, intermediate_size=feedforward, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, max_position_embeddings=1026, layer_norm_eps=1e-5,
        position_embedding_type="rotary", emb_layer_norm_before=False, token_dropout=True, use_cache=False,
    )
