"""Weights by name on their way from one form to another: read, compared with what is wanted, stored."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from plm.errors import UserError
from plm.model.checkpoint import weight_files
from plm.model.loaded import ModelFiles
from plm.received import tensors
from plm.received.documents import one_line

Weights = dict[str, torch.Tensor]
Shape = tuple[int, ...]
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


def only_tensors(content: Any, what: str, where: str) -> Weights:
    """A dictionary of tensors by name.

    Raises:
        UserError: It is something else.
    """
    good = isinstance(content, Mapping) and all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items()
    )
    if not good or not content:
        raise UserError(f"{what} holds no weights by name", where=where, fix="Give a checkpoint of a model")
    return {name: value.detach() for name, value in content.items()}


def check_finite(weights: Mapping[str, torch.Tensor], where: str) -> None:
    """Refuses weights that are no numbers.

    Raises:
        UserError: Names the first that holds NaN or infinite numbers.
    """
    for name, value in weights.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise UserError(
                f"The weights {one_line(name, 100)} hold NaN or infinite numbers", where=where,
                fix="Fetch the model anew, or take a checkpoint from before its training failed",
            )


def take(weights: Weights, wanted: Mapping[str, Shape], where: str) -> tuple[Weights, Weights]:
    """The tensors that are wanted, and the others.

    Raises:
        UserError: One is missing, of another shape, or no floating-point number.
    """
    missing = sorted(set(wanted) - set(weights))
    if missing:
        raise UserError(
            f"The checkpoint lacks {len(missing)} of the model's weights, first {one_line(missing[0], 100)}",
            where=where, fix="Give a complete checkpoint: the suite never fills weights at random",
        )
    for name, shape in wanted.items():
        value = weights[name]
        if tuple(value.shape) != shape:
            raise UserError(
                f"The weights {one_line(name, 100)} have the shape {tuple(value.shape)} where {shape} belongs",
                where=where, fix="Give the weights and the settings of one model",
            )
        if not value.is_floating_point():
            raise UserError(
                f"The weights {one_line(name, 100)} are stored as {str(value.dtype).removeprefix('torch.')}",
                where=where, fix="Give weights as floating-point numbers",
            )
    return {name: weights[name] for name in wanted}, {name: weights[name] for name in weights if name not in wanted}


def depth(names: Iterable[str], beginning: str) -> int:
    """How many numbered layers there are; names read ``<beginning><number>.``."""
    numbers = [name[len(beginning) :].split(".")[0] for name in names if name.startswith(beginning)]
    return max((int(number) for number in numbers if number.isdecimal() and len(number) < 6), default=-1) + 1


def stored_as(weights: Weights, dtype: str) -> Weights:
    """The same, each a tensor of its own, floating-point numbers in another type unless ``dtype`` is ``keep``."""
    made = {}
    for name, value in weights.items():
        cast = value.to(getattr(torch, dtype)) if dtype != "keep" and value.is_floating_point() else value
        made[name] = cast.clone().contiguous()
    return made


def types_of(weights: Mapping[str, torch.Tensor]) -> str:
    """The types of numbers in weights, in words."""
    kinds = {str(value.dtype).removeprefix("torch.") for value in weights.values() if value.is_floating_point()}
    return " and ".join(sorted(kinds)) or "no floating-point numbers"


def write_checkpoint(folder: Path, config: Mapping[str, Any], weights: Weights) -> None:
    """Writes config.json and model.safetensors."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    kinds = {str(value.dtype).removeprefix("torch.") for value in weights.values() if value.is_floating_point()}
    told = {"dtype": kinds.pop()} if len(kinds) == 1 else {}
    (folder / "config.json").write_text(json.dumps({**config, **told}, indent=1, sort_keys=True) + "\n")
    save_file(dict(sorted(weights.items())), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
