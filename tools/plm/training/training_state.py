"""Exact training state as safetensors and JSON: weights, optimiser, schedule, random numbers, and the zip around them.

Trainer's own state files are pickled; none is written or read here.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from plm.errors import UserError
from plm.received import tensors
from plm.received.archives import Archive
from plm.received.documents import one_line, read_object
from plm.received.fields import Fields

SCHEMA_VERSION = 1
AGAIN = "Give the checkpoint as the tool wrote it"
_SUFFIXES = (".json", ".safetensors")


def key(content: Mapping[str, Any]) -> str:
    """A digest of data, model and settings: equal keys mean the same training."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def save_tensors(values: Mapping[str, torch.Tensor], path: Path) -> None:
    """Writes tensors as safetensors."""
    from safetensors.torch import save_file

    save_file({name: value.detach().cpu().contiguous() for name, value in values.items()}, path)


def whole(value: torch.Tensor, *, keep: bool = True) -> torch.Tensor:
    """A tensor that processes hold in pieces (FSDP2), put together on the CPU; any other as it is.

    Args:
        value: Of which each process of the job asks at the same time, if it is in pieces.
        keep: False gives nothing back, where another process wants the tensor.
    """
    from torch.distributed.tensor import DTensor

    if not isinstance(value, DTensor):
        return value
    full = value.detach().full_tensor()
    return full.cpu() if keep else full.new_empty(0)


def as_pieces(value: torch.Tensor, mine: torch.Tensor) -> torch.Tensor:
    """A whole tensor in pieces as ``mine`` is; as it is, if that is in no pieces or of another shape."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(mine, DTensor) or value.shape != mine.shape:
        return value
    return distribute_tensor(value.to(mine.device), mine.device_mesh, mine.placements)


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Reads tensors from safetensors.

    Raises:
        UserError: The file is missing or damaged.
    """
    return tensors.load_torch(path, what=f"The checkpoint's {path.name}", fix=AGAIN)


def put_back(parameters: Mapping[str, torch.Tensor], stored: Mapping[str, torch.Tensor]) -> None:
    """Copies stored weights into a network's parameters, in place.

    Raises:
        UserError: Names or shapes differ: the weights belong to another network.
    """
    tensors.check_shapes(
        {name: tuple(value.shape) for name, value in stored.items()},
        {name: tuple(value.shape) for name, value in parameters.items()},
        "The checkpoint's weights", "checkpoint", AGAIN,
    )
    with torch.no_grad():
        for name, value in parameters.items():
            value.copy_(stored[name])


def save_optimizer(optimizer: Any, scheduler: Any, folder: Path) -> None:
    """Writes the state of an optimiser and its learning-rate schedule."""
    write_optimizer(optimizer_state(optimizer), scheduler, folder)


OptimizerState = tuple[dict[str, torch.Tensor], dict[str, Any]]
"""Tensors by name, and what else there is."""


def optimizer_state(optimizer: Any, *, keep: bool = True) -> OptimizerState:
    """The state of an optimiser, put together where processes hold it in pieces (all of them ask at the same time).

    Args:
        optimizer: Its state is left as it is.
        keep: False where another process wants the state.
    """
    state = optimizer.state_dict()
    held: dict[str, torch.Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for index, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                held[f"{index}.{name}"] = whole(value, keep=keep)
            else:
                plain.setdefault(str(index), {})[name] = value
    return held, {"groups": state["param_groups"], "values": plain}


def write_optimizer(state: OptimizerState, scheduler: Any, folder: Path) -> None:
    """Writes what :func:`optimizer_state` gave, and the learning-rate schedule."""
    held, content = state
    save_tensors(held, folder / "optimizer.safetensors")
    (folder / "optimizer.json").write_text(json.dumps({**content, "schedule": scheduler.state_dict()}))


def load_optimizer(optimizer: Any, scheduler: Any, folder: Path) -> None:
    """Puts back what :func:`save_optimizer` wrote: numbers at the places that these two have, and nothing else.

    Raises:
        UserError: The state is of another optimiser, schedule or network.
    """
    content = _opened(folder / "optimizer.json")
    own, schedule = optimizer.state_dict(), scheduler.state_dict()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    groups = content.entries("groups", most=10_000)
    if [group.content.get("params") for group in groups] != [mine["params"] for mine in own["param_groups"]]:
        raise _unlike("its parameters are others")
    restored = [
        {
            name: value if name in _HOW else _as_own(group.content.get(name, value), value, name)
            for name, value in mine.items()
        }
        for group, mine in zip(groups, own["param_groups"], strict=True)
    ]
    state: dict[int, dict[str, Any]] = {}
    for name, value in load_tensors(folder / "optimizer.safetensors").items():
        index, _, field = name.partition(".")
        if not (index.isascii() and index.isdigit() and int(index[:9]) < len(parameters)) or field not in _STATE:
            raise _unlike(f"it holds {name[:60]!r}")
        if field == "step":
            good = value.dim() == 0 and value.is_floating_point() and 0 <= float(value) < 2**53
        else:
            good = value.shape == parameters[int(index)].shape
        if not good:
            raise _unlike(f"{name} is {tuple(value.shape)} and not {tuple(parameters[int(index)].shape)}")
        state.setdefault(int(index), {})[field] = as_pieces(value, parameters[int(index)])
    values = content.inside("values")
    for index in values.content:
        inside = values.inside(index)
        if not (index.isascii() and index.isdigit() and int(index[:9]) < len(parameters)):
            raise _unlike(f"it holds {index[:60]!r}")
        state.setdefault(int(index), {}).update({name: inside.number(name, -1e300, 1e300) for name in inside.content})
    if len({frozenset(held) for held in state.values()}) > 1:
        raise _unlike("of some parameters it keeps less than of others")
    stored = content.inside("schedule").content
    optimizer.load_state_dict({"state": state, "param_groups": restored})
    scheduler.load_state_dict(
        {name: _as_own(stored.get(name, value), value, name) for name, value in schedule.items() if name not in _CODE}
        | {name: schedule[name] for name in _CODE if name in schedule}
    )


_STATE = ("step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")
_CODE = ("lr_lambdas",)
_HOW = ("fused", "foreach")
"""How a step is computed; what it gives is the same."""


def _as_own(value: Any, mine: Any, name: str) -> Any:
    """A stored value in the place of ``mine``, if it is of that kind."""
    if isinstance(mine, list | tuple):
        if isinstance(value, list | tuple) and len(value) == len(mine):
            # JSON knows no tuples; AdamW's pair of betas is one.
            return type(mine)(_as_own(one, other, name) for one, other in zip(value, mine, strict=True))
    elif isinstance(mine, bool) or mine is None or isinstance(mine, str):
        if value is None or type(value) is type(mine):
            return value
    elif isinstance(mine, int | float):
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return value
    elif isinstance(mine, torch.Tensor):
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return torch.tensor(value, dtype=mine.dtype)
    elif isinstance(mine, Mapping):
        return mine
    raise _unlike(f"{name} is not what it must be")


def _opened(path: Path) -> Fields:
    what = f"The checkpoint's {path.name}"
    return Fields(read_object(path, what=what, fix=AGAIN), what, path.name, AGAIN)


def _unlike(reason: str) -> UserError:
    return UserError(f"The checkpoint's optimiser does not fit this training ({reason})", fix=AGAIN)


RandomState = tuple[dict[str, torch.Tensor], dict[str, Any]]
"""Tensors by name, and what else there is."""


def random_state() -> RandomState:
    """The states of Python's, NumPy's and torch's random number generators."""
    version, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    held = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64))}
    if torch.cuda.is_available():
        held["cuda"] = torch.cuda.get_rng_state()
    content = {
        "python": [version, list(numbers), gauss],
        "numpy": [str(kind), int(position), int(has_gauss), float(cached)],
    }
    return held, content


def save_random_state(folder: Path, state: RandomState | None = None) -> None:
    """Writes what :func:`random_state` gave, or the states of now."""
    held, content = random_state() if state is None else state
    save_tensors(held, folder / "random.safetensors")
    (folder / "random.json").write_text(json.dumps(content))


def load_random_state(folder: Path) -> None:
    """Puts back what :func:`save_random_state` wrote.

    Raises:
        UserError: It is no state of these generators.
    """
    stored = load_tensors(folder / "random.safetensors")
    content = _opened(folder / "random.json")
    try:
        version, numbers, gauss = content.content["python"]
        random.setstate((version, tuple(numbers), gauss))
        kind, position, has_gauss, cached = content.content["numpy"]
        words = stored["numpy"].numpy().astype(np.uint32)
        np.random.set_state((str(kind), words, int(position), int(has_gauss), float(cached)))
        torch.set_rng_state(stored["torch"])
        if "cuda" in stored and torch.cuda.is_available():
            torch.cuda.set_rng_state(stored["cuda"])
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError, IndexError) as error:
        raise UserError(
            f"The checkpoint's random numbers cannot be put back ({one_line(str(error), 100)})", fix=AGAIN
        ) from error


def unpack(path: Path, folder: Path, kind: str) -> dict[str, Any]:
    """Unpacks a checkpoint zip and gives its ``checkpoint.json``.

    Args:
        path: Checkpoint file (zip).
        folder: Folder into which its members are unpacked.
        kind: Stage that must have written it.

    Raises:
        UserError: Truncated, not a checkpoint, something in it that is no data, or of another stage or schema.
    """
    with Archive(path, "checkpoint", AGAIN) as opened:
        for name in opened.members:
            if PurePosixPath(name).suffix not in _SUFFIXES:
                raise UserError(
                    f"The checkpoint holds {name!r}, which is no data that it may hold", where=path.name,
                    fix="Do not trust this file",
                )
        if "checkpoint.json" not in opened:
            raise UserError("The zip has no checkpoint.json: it is no checkpoint", where=path.name, fix=AGAIN)
        members = opened.unpack(folder)
    content = Fields(
        read_object(folder / "checkpoint.json", where=path.name, fix=AGAIN), "checkpoint.json", path.name, AGAIN
    )
    version, stage = content.whole("schema_version", 0, 10**6), content.text("stage")
    if version != SCHEMA_VERSION or stage != kind:
        raise UserError(
            f"The checkpoint was written by {stage}, schema {version}; this is {kind}, schema {SCHEMA_VERSION}",
            where=path.name, fix="Give a checkpoint of this tool and version",
        )
    for name in members:  # so that damage is found before the work, not in its middle
        if name.endswith(".safetensors"):
            tensors.shapes(folder / name, what=f"The checkpoint's {name}", where=path.name, fix=AGAIN)
    return dict(content.content)


def history_of(content: Any, where: str) -> list[dict[str, Any]]:
    """Rows of a training's history: names and numbers (NaN where a value is undefined) or short texts.

    Raises:
        UserError: Something else.
    """
    good = isinstance(content, list) and all(
        isinstance(row, dict)
        and all(value is None or isinstance(value, int | float) or _short(value) for value in row.values())
        for row in content
    )
    if not good:
        raise UserError("The checkpoint's history is no list of records", where=where, fix=AGAIN)
    return list(content)


def _short(value: Any) -> bool:
    return isinstance(value, str) and len(value) < 200
