"""BERT as Megatron trains it, normalised before each half of a layer: ProteinLM (Xiao et al. 2021).

ProteinLM puts [CLS] before each protein and nothing behind it (tape_dataset.py and tasks/protein/data.py of its
repository), and so does the suite.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from plm.model.families.bert import Bert
from plm.model.families.letters import UNUSUAL_LETTERS

if TYPE_CHECKING:
    from torch import nn

_ROLES = {"cls": "[CLS]", "sep": "[SEP]", "pad": "[PAD]", "unk": "[UNK]", "mask": "[MASK]"}


class MegatronBert(Bert):
    """transformers' MegatronBERT with a vocabulary of single letters, the unusual ones (B, O, U, Z) among them."""

    name, title, unusual = "megatron_bert", "MegatronBERT", UNUSUAL_LETTERS
    after = ()
    kind, config_class, encoder_class = "megatron-bert", "MegatronBertConfig", "MegatronBertModel"
    language_model_class = "MegatronBertForMaskedLM"

    def layers(self) -> Mapping[type[nn.Module], type[nn.Module]]:
        """Its attention knows no other implementation than its own, so that whole layers are told of the row."""
        from plm.model.families import megatron_bert_layers

        return megatron_bert_layers.LAYERS


MEGATRON_BERT = MegatronBert()


def tokenizer_files(tokens: Sequence[str]) -> dict[str, str]:
    """The tokenizer of a vocabulary of single letters, by file: transformers' own gives the same tokens as the suite.

    Args:
        tokens: In the order of their numbers.
    """
    first = MEGATRON_BERT.before[0]
    roles = {role: token for role, token in _ROLES.items() if token in tokens}
    numbers = {token: number for number, token in enumerate(tokens)}
    begin = [{"SpecialToken": {"id": first, "type_id": 0}}]
    split = {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False}
    content: dict[str, Any] = {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "decoder": None,
        "added_tokens": [
            {"id": numbers[token], "content": token, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True}
            for token in sorted(roles.values(), key=numbers.__getitem__)
        ],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, split]},
        "post_processor": {
            "type": "TemplateProcessing", "single": [*begin, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [*begin, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {first: {"id": first, "ids": [numbers.get(first, 0)], "tokens": [first]}},
        },
        "model": {"type": "WordLevel", "vocab": numbers, "unk_token": roles.get("unk", first)},
    }
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"} | {f"{role}_token": roles[role] for role in roles}
    return {
        "vocab.txt": "\n".join(tokens) + "\n", "tokenizer.json": json.dumps(content, indent=1) + "\n",
        "tokenizer_config.json": json.dumps(settings, indent=1) + "\n",
    }
