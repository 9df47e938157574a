"""Model shapes that are measured: checkpoints of random weights that load through our own code, or real ones."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks import real_weights

ROOT = Path(__file__).resolve().parents[2]
T5_TOKENIZER = ROOT / "test-data" / "models" / "tiny_t5"


@dataclass(frozen=True)
class Shape:
    """One architecture.

    Attributes:
        name: What it is called in tables.
        kind: ``esm2`` or ``t5`` (the encoder of ProtT5).
        layers: Transformer layers.
        hidden: Width of the residue representations.
        heads: Attention heads.
        feedforward: Width in the middle of the feed-forward layers.
        residues: Residues in a sample by default; less for larger models.
        head_width: Width of a head (T5; ESM-2 divides ``hidden`` among the heads).
        folder: A checkpoint with real weights, to be measured in place of random ones.
    """

    name: str
    kind: Literal["esm2", "t5"]
    layers: int
    hidden: int
    heads: int
    feedforward: int
    residues: int
    head_width: int = 0
    folder: Path | None = None


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("tiny", "esm2", 2, 40, 4, 80, 600),
        Shape("tinyT5", "t5", 2, 40, 4, 80, 600, head_width=10),
        Shape("8M", "esm2", 6, 320, 20, 1280, 6_000),
        Shape("8Mx5", "esm2", 6, 320, 5, 1280, 6_000),
        Shape("35M", "esm2", 12, 480, 20, 1920, 4_000),
        Shape("150M", "esm2", 30, 640, 20, 2560, 4_000),
        Shape("T5", "t5", 12, 512, 8, 2048, 4_000, head_width=64),
        Shape("650M", "esm2", 33, 1280, 20, 5120, 200_000),
        Shape("3B", "esm2", 36, 2560, 40, 10240, 100_000),
        Shape("ProtT5-XL", "t5", 24, 1024, 32, 16384, 100_000, head_width=128),
    )
}
"""By name. 8M, 35M, 150M, 650M and 3B are ESM-2's published shapes; 8Mx5 is the starter model's (five wide heads)."""


def find(text: str) -> Shape | None:
    """The shape of a name of :data:`SHAPES`, or of the ESM-2 in a model folder; None for all else."""
    if text in SHAPES:
        return SHAPES[text]
    folder = Path(text)
    if not (folder / "config.json").is_file():
        return None
    config = json.loads((folder / "config.json").read_text())
    if config.get("model_type") != "esm" or config.get("position_embedding_type") != "rotary":
        return None
    return Shape(
        real_weights.name_of(folder), "esm2", config["num_hidden_layers"], config["hidden_size"],
        config["num_attention_heads"], config["intermediate_size"], 6_000, folder=folder,
    )


def checkpoint(shape: Shape, work: Path, *, dtype: str = "float32") -> Path:
    """A folder with random weights of a shape in Hugging Face format, or a copy of its real ones; written once.

    Args:
        shape: What to write.
        work: It lies in ``work/<name>``.
        dtype: Type of the stored weights.
    """
    folder = work / f"{re.sub(r'[^A-Za-z0-9.-]+', '_', shape.name)}-{dtype}"
    if folder.is_dir():
        return folder
    import torch

    unfinished = work / f".{folder.name}.{os.getpid()}"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    torch.manual_seed(1)
    model = _real(shape.folder, unfinished) if shape.folder else _random(shape, unfinished)
    model.to(getattr(torch, dtype)).save_pretrained(unfinished)
    if shape.kind == "t5":
        for name in ("spiece.model", "tokenizer_config.json"):
            shutil.copyfile(T5_TOKENIZER / name, unfinished / name)
    unfinished.rename(folder)
    return folder


def _real(folder: Path, target: Path) -> Any:
    """The model of a checkpoint, its weights read as plain arrays; a language-model head that it lacks stays random."""
    import transformers
    from plm.model.checkpoint import TOKENIZER_FILES

    transformers.logging.set_verbosity_error()
    for name in TOKENIZER_FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)
    return transformers.EsmForMaskedLM.from_pretrained(folder, local_files_only=True)


def _random(shape: Shape, folder: Path) -> Any:
    return _t5(shape) if shape.kind == "t5" else _esm2(shape, folder)


def _esm2(shape: Shape, folder: Path) -> Any:
    from plm.masked_lm.presets import esm2_config
    from plm.model.families.esm2 import write_esm2_tokenizer
    from transformers import EsmForMaskedLM

    write_esm2_tokenizer(folder)
    sizes = {"layers": shape.layers, "hidden": shape.hidden, "heads": shape.heads, "feedforward": shape.feedforward}
    return EsmForMaskedLM(esm2_config(**sizes))


def _t5(shape: Shape) -> Any:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(
            vocab_size=128, d_model=shape.hidden, d_kv=shape.head_width, d_ff=shape.feedforward,
            num_layers=shape.layers, num_heads=shape.heads, feed_forward_proj="relu", is_encoder_decoder=False,
            use_cache=False, tie_word_embeddings=False,
        )
    )


def attention_flops(shape: Shape, lengths: list[int]) -> float:
    """Floating-point operations of the two products of attention, which grow with the square of the length."""
    width = shape.heads * shape.head_width if shape.kind == "t5" else shape.hidden
    return float(sum(4 * length * length * width * shape.layers for length in lengths))
