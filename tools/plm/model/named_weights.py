"""Weights by name: compared with what a model needs, stored as a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from plm.errors import UserError
from plm.received.documents import one_line

Weights = dict[str, torch.Tensor]
Shape = tuple[int, ...]


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


def write_checkpoint(folder: Path, config: Mapping[str, Any], weights: Weights) -> None:
    """Writes config.json and model.safetensors."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    kinds = {str(value.dtype).removeprefix("torch.") for value in weights.values() if value.is_floating_point()}
    told = {"dtype": kinds.pop()} if len(kinds) == 1 else {}
    (folder / "config.json").write_text(json.dumps({**config, **told}, indent=1, sort_keys=True) + "\n")
    save_file(dict(sorted(weights.items())), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
