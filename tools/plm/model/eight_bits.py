"""Checkpoints whose matrices are whole numbers of 8 bits: a quarter of the size on disk, expanded when they are read.

Each matrix of a layer is stored as int8 with one float32 scale a row (``NAME.scale``); everything else as it was. A
model that was read computes with floating-point numbers, so that memory and speed are those of any checkpoint.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from plm.errors import UserError
from plm.received import tensors
from plm.received.documents import one_line
from plm.received.folders import real_file

if TYPE_CHECKING:
    import torch

FILE = "int8.safetensors"
SCALE = ".scale"
LARGEST = 127
_MATRIX = re.compile(r"(?:.*\.)?encoder\.(?:layer|block)\.\d+\..*\.weight")
_FIX = "Give the checkpoint as the suite wrote it"


def reduced(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights with the matrices of all layers as int8 and scales; the others unchanged.

    A row's scale is its largest absolute value divided by 127 (1 for a row of zeros).
    """
    import torch

    made: dict[str, torch.Tensor] = {}
    for name, value in weights.items():
        if value.ndim != 2 or not value.is_floating_point() or "bias" in name or _MATRIX.fullmatch(name) is None:
            made[name] = value.clone().contiguous()
            continue
        scale = value.float().abs().amax(1) / LARGEST
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        made[name] = torch.round(value.float() / scale[:, None]).clamp(-LARGEST, LARGEST).to(torch.int8)
        made[name + SCALE] = scale
    return made


def expanded(folder: Path, name: str, workdir: Path, roots: tuple[Path, ...], others: Iterable[str]) -> Path:
    """A folder in which int8 weights are floating-point numbers; the folder itself if it holds none.

    Args:
        folder: Holds the checkpoint's files.
        name: What messages call the model.
        workdir: Gets the new folder.
        roots: Where links may lead.
        others: Names of the files that are taken along.

    Raises:
        UserError: The file is damaged, or scales do not fit their matrices.
    """
    place = real_file(folder, FILE, name, roots)
    if place is None:
        return folder
    import torch
    from safetensors.torch import save_file

    stored = tensors.load_torch(place, where=name, fix=_FIX)
    made: dict[str, torch.Tensor] = {}
    for key, value in stored.items():
        if key.endswith(SCALE) and key.removesuffix(SCALE) in stored:
            continue
        if value.dtype != torch.int8:
            made[key] = value
            continue
        scale = stored.get(key + SCALE)
        if scale is None or scale.dtype != torch.float32 or value.ndim != 2 or scale.shape != value.shape[:1]:
            raise UserError(f"{one_line(key, 80)} has no scales that fit it", where=name, fix=_FIX)
        made[key] = value.float() * scale[:, None]
    workdir.mkdir(parents=True, exist_ok=True)
    own = Path(tempfile.mkdtemp(prefix="expanded_model_", dir=workdir))
    for one in others:
        if (file := real_file(folder, one, name, roots)) is not None:
            shutil.copyfile(file, own / one)
    save_file(made, own / "model.safetensors", metadata={"format": "pt"})
    return own
