"""What is known of weights on their way from one form to another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from plm.model.checkpoint import weight_files
from plm.model.loaded import ModelFiles
from plm.model.named_weights import Weights
from plm.received import tensors

DTYPES = ("float32", "float16", "bfloat16")
REST = "not_converted.safetensors"
"""Tensors of the input that the target has no place for, under the names that they came with."""


@dataclass
class Checked:
    """One comparison of what came out with what went in.

    Attributes:
        what: What was compared.
        value: Relative L2 difference.
        limit: Largest one with which a result is written.
    """

    what: str
    value: float
    limit: float


@dataclass
class Ground:
    """A checkpoint in Hugging Face layout, between its source and its target.

    Attributes:
        folder: Holds config.json, model.safetensors and tokenizer files.
        name: What people call the model.
        source: What the input turned out to be.
        notes: What the report says besides.
        left_out: Parts of the input that the target does without by design.
        rest: Tensors that nothing is known of.
        checks: Comparisons so far.
        taken: How many tensors of the input went into the model.
        extra: Further members of the output, by name.
    """

    folder: Path
    name: str
    source: str
    notes: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    rest: Weights = field(default_factory=dict)
    checks: list[Checked] = field(default_factory=list)
    taken: int = 0
    extra: dict[str, Path] = field(default_factory=dict)


def stored_weights(files: ModelFiles) -> Weights:
    """All tensors of a checked checkpoint, in the types that they are stored in.

    Raises:
        UserError: A file is damaged.
    """
    weights: Weights = {}
    for path in weight_files(files.directory):
        place = path.resolve()
        read = tensors.load_torch if path.suffix == ".safetensors" else tensors.load_pickled
        weights |= read(place, where=files.id)
    return weights


def types_of(weights: Mapping[str, torch.Tensor]) -> str:
    """The types of numbers in weights, in words."""
    kinds = {str(value.dtype).removeprefix("torch.") for value in weights.values() if value.is_floating_point()}
    return " and ".join(sorted(kinds)) or "no floating-point numbers"
