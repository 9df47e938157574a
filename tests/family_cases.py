"""One tiny random checkpoint a family, and the plain transformers class that must give the same numbers."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from plm.model.checkpoint import load_model, resolve_model
from plm.model.families import FAMILIES, ModelFamily
from plm.model.loaded import LoadedModel

MODELS = Path(__file__).resolve().parents[1] / "test-data" / "models"
_FOLDERS = {"prott5": "tiny_t5"}
every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


def tiny(family: ModelFamily) -> Path:
    """The tiny checkpoint of a family."""
    return MODELS / _FOLDERS.get(family.name, f"tiny_{family.name}")


def load(folder: Path, tmp_path: Path, **options: Any) -> LoadedModel:
    return load_model(resolve_model(str(folder), workdir=tmp_path), **options)


def protein(length: int, seed: int = 0) -> str:
    return "".join(random.Random(f"{seed} {length}").choices("ACDEFGHIKLMNPQRSTVWYX", k=length))


def relative_l2(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def plain(family: ModelFamily, folder: Path, *, headed: bool) -> Any:
    """The published class with its own attention, in evaluation mode."""
    import transformers

    kind = family.language_model_class if headed else family.encoder_class
    return getattr(transformers, kind).from_pretrained(folder, attn_implementation="eager").eval()


def own_ids(family: ModelFamily, folder: Path, sequence: str) -> list[int]:
    """What the checkpoint's own tokenizer makes of a sequence, written as the family's authors write it."""
    from transformers import AutoTokenizer

    text = " ".join(sequence) if family.name in ("prott5", "bert") else sequence
    ids: list[int] = AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    return ids
