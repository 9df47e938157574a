"""ESM-2 (Lin et al. 2023): rotary positions, so that proteins may be of any length."""

from __future__ import annotations

import json
from pathlib import Path

from plm.model.families.esm import EsmFamily

ESM2_VOCABULARY = (
    *("<cls>", "<pad>", "<eos>", "<unk>"),
    *"LAGVSERTIDPKQNFYMHWCXBUZO",
    *(".", "-", "<null_1>", "<mask>"),
)
"""Token order of every ESM-2 checkpoint (fair-esm, ``Alphabet.from_architecture("ESM-1b")``)."""


class Esm2(EsmFamily):
    """ESM-2."""

    name, title, positions = "esm2", "ESM-2", "rotary"
    head_width = 2
    half_safe = True


ESM2 = Esm2()


def write_esm2_tokenizer(folder: Path) -> None:
    """Writes the tokenizer files of ESM-2 into a checkpoint folder."""
    (folder / "vocab.txt").write_text("\n".join(ESM2_VOCABULARY))
    settings = {
        "tokenizer_class": "EsmTokenizer",
        "cls_token": "<cls>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
        "model_max_length": 1000000000000000019884624838656,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n")
    special = {key: value for key, value in settings.items() if key.endswith("_token")}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=1) + "\n")
