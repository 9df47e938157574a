"""Exact training state as safetensors and JSON: weights, optimiser, schedule, random numbers, and the zip around them.

Trainer's own state files are pickled; none is written or read here.
"""

from __future__ import annotations

import hashlib
import json
import random
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from plm.errors import UserError

SCHEMA_VERSION = 1
_SUFFIXES = (".json", ".safetensors")


def key(content: Mapping[str, Any]) -> str:
    """A digest of data, model and settings: equal keys mean the same training."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Writes tensors as safetensors."""
    from safetensors.torch import save_file

    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path)


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Reads tensors from safetensors."""
    from safetensors.torch import load_file

    found: dict[str, torch.Tensor] = load_file(path)
    return found


def save_optimizer(optimizer: Any, scheduler: Any, folder: Path) -> None:
    """Writes the state of an optimiser and its learning-rate schedule."""
    state = optimizer.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for index, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}.{name}"] = value
            else:
                plain.setdefault(str(index), {})[name] = value
    save_tensors(tensors, folder / "optimizer.safetensors")
    content = {"groups": state["param_groups"], "values": plain, "schedule": scheduler.state_dict()}
    (folder / "optimizer.json").write_text(json.dumps(content))


def load_optimizer(optimizer: Any, scheduler: Any, folder: Path) -> None:
    """Puts back what :func:`save_optimizer` wrote."""
    content = json.loads((folder / "optimizer.json").read_text())
    state: dict[int, dict[str, Any]] = {}
    for name, value in load_tensors(folder / "optimizer.safetensors").items():
        index, field = name.split(".", 1)
        state.setdefault(int(index), {})[field] = value
    for index, values in content["values"].items():
        state.setdefault(int(index), {}).update(values)
    for group in content["groups"]:
        # JSON knows no tuples; AdamW's pair of betas is one.
        group.update({name: tuple(value) for name, value in group.items() if name == "betas"})
    optimizer.load_state_dict({"state": state, "param_groups": content["groups"]})
    scheduler.load_state_dict(content["schedule"])


def save_random_state(folder: Path) -> None:
    """Writes the states of Python's, NumPy's and torch's random number generators."""
    version, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    tensors = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64))}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    save_tensors(tensors, folder / "random.safetensors")
    content = {
        "python": [version, list(numbers), gauss],
        "numpy": [str(kind), int(position), int(has_gauss), float(cached)],
    }
    (folder / "random.json").write_text(json.dumps(content))


def load_random_state(folder: Path) -> None:
    """Puts back what :func:`save_random_state` wrote."""
    tensors = load_tensors(folder / "random.safetensors")
    content = json.loads((folder / "random.json").read_text())
    version, numbers, gauss = content["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, position, has_gauss, cached = content["numpy"]
    np.random.set_state((kind, tensors["numpy"].numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(tensors["torch"])
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])


def unpack(path: Path, folder: Path, kind: str) -> dict[str, Any]:
    """Unpacks a checkpoint zip and gives its ``checkpoint.json``.

    Args:
        path: The zip.
        folder: Where to.
        kind: Stage that must have written it.

    Raises:
        UserError: Truncated, not a checkpoint, something in it that is no data, or of another stage or schema.
    """
    again = "Give the checkpoint as the tool wrote it"
    try:
        with zipfile.ZipFile(path) as opened:
            for member in opened.infolist():
                name = PurePosixPath(member.filename)
                if name.is_absolute() or ".." in name.parts or name.suffix not in _SUFFIXES:
                    raise UserError(
                        f"The checkpoint holds {member.filename!r}, which is no data that it may hold",
                        where=path.name,
                        fix="Do not trust this file",
                    )
                opened.extract(member, folder)
        content = json.loads((folder / "checkpoint.json").read_text())
        version, stage = content["schema_version"], content["stage"]
    except (
        zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, KeyError, TypeError, NotImplementedError,
        RuntimeError,
    ) as error:  # fmt: skip
        raise UserError(f"The checkpoint cannot be read ({error})", where=path.name, fix=again) from error
    if version != SCHEMA_VERSION or stage != kind:
        raise UserError(
            f"The checkpoint was written by {stage}, schema {version}; this is {kind}, schema {SCHEMA_VERSION}",
            where=path.name,
            fix="Give a checkpoint of this tool and version",
        )
    return dict(content)
