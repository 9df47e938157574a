"""Hugging Face checkpoints written anew: whole, the encoder alone (every number as it was stored), or as int8."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from plm.errors import UserError
from plm.jobs.convert.weights import Ground, stored_weights
from plm.model import checkpoint, eight_bits
from plm.model.loaded import ModelFiles
from plm.model.named_weights import Weights, check_finite, stored_as, write_checkpoint

_OTHERS = {
    "decoder.": "decoder", "lm_head.": "language-model head", "cls.": "language-model head", "pooler.": "pooler",
    "classifier.": "classification head",
}
_SHARED, _EMBEDDED = "shared.weight", "encoder.embed_tokens.weight"


def config_of(files: ModelFiles) -> dict[str, Any]:
    """The fields of a checked checkpoint's config.json that decide what it computes."""
    return checkpoint.read_config(files.directory)


def copy_tokenizer(files: ModelFiles, folder: Path) -> None:
    """Copies the tokenizer files of a checked checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in checkpoint.TOKENIZER_FILES:
        if (files.directory / name).is_file():
            shutil.copyfile(files.directory / name, folder / name)


def rewrite(files: ModelFiles, folder: Path, dtype: str) -> Ground:
    """Writes a Hugging Face checkpoint anew, as one safetensors file.

    Args:
        files: The checkpoint.
        folder: Gets it.
        dtype: Type of the stored weights, or ``keep``.

    Raises:
        UserError: Weights are not finite.
    """
    weights = stored_weights(files)
    check_finite(weights, files.id)
    write_checkpoint(folder, config_of(files), stored_as(weights, dtype))
    copy_tokenizer(files, folder)
    return Ground(folder, files.id, "", taken=len(weights))


def cut_encoder(files: ModelFiles, folder: Path, dtype: str) -> Ground:
    """Writes the encoder of a Hugging Face checkpoint; arguments as for :func:`rewrite`.

    Raises:
        UserError: Weights are not finite, or the two names of T5's embeddings stand for different numbers.
    """
    family = checkpoint.family_of(files)
    ground = Ground(folder, files.id, "")
    weights: Weights = {}
    counts: dict[str, int] = {}
    for name, value in stored_weights(files).items():
        own = name.removeprefix(family.prefix)
        other = next((part for start, part in _OTHERS.items() if own.startswith(start)), None)
        if other is not None:
            counts[other] = counts.get(other, 0) + 1
        elif own.startswith(family.parts):
            weights[own] = value
        else:
            ground.rest[name] = value
    if _SHARED in weights and _EMBEDDED in weights:
        if not torch.equal(weights[_SHARED], weights[_EMBEDDED]):
            raise UserError(
                f"{_EMBEDDED} differs from {_SHARED}, which are one matrix in T5", where=files.id,
                fix="Give a checkpoint whose encoder and decoder share their embeddings",
            )
        del weights[_EMBEDDED]
    check_finite(weights, files.id)
    ground.taken = len(weights)
    ground.left_out = [f"{count} tensors of the {part}" for part, count in sorted(counts.items())]
    config = {**config_of(files), "architectures": [family.encoder_class]}
    config |= {"is_encoder_decoder": False, "use_cache": False}
    write_checkpoint(folder, config, stored_as(weights, dtype))
    copy_tokenizer(files, folder)
    return ground


def write_int8(files: ModelFiles, folder: Path, dtype: str) -> Ground:
    """Writes a Hugging Face checkpoint with the matrices of its layers as int8; arguments as for :func:`rewrite`.

    Raises:
        UserError: Weights are not finite.
    """
    from safetensors.torch import save_file

    weights = stored_weights(files)
    check_finite(weights, files.id)
    made = eight_bits.reduced(stored_as(weights, dtype))
    copy_tokenizer(files, folder)
    (folder / "config.json").write_text(json.dumps(config_of(files), indent=1, sort_keys=True) + "\n")
    save_file(dict(sorted(made.items())), folder / eight_bits.FILE, metadata={"format": "pt"})
    (folder / eight_bits.FILE).chmod(0o644)
    ground = Ground(folder, files.id, "", taken=len(weights))
    before, after = (sum(value.nbytes for value in each.values()) for each in (weights, made))
    ground.notes.append(
        f"The file of weights is {before / after:.1f} times smaller. The tools of this suite expand it when they read "
        "it: memory and speed are those of the model that it was made from. Other programs do not know this form."
    )
    return ground
