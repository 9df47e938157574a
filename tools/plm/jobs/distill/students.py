"""Where a student comes from: an existing checkpoint, a new model of a given shape, or layers of its teacher."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from plm.errors import UserError
from plm.masked_lm.presets import PRESETS, Preset, esm2_config
from plm.model import configuration, encoder
from plm.model.checkpoint import TOKENIZER_FILES, read_config, resolve_model, save_checkpoint
from plm.model.families.esm2 import write_esm2_tokenizer
from plm.model.loaded import LoadedModel, ModelFiles

_NEEDS_HEAD = "Take an ESM-2 model as the student, or a new one (--student-preset, --student-layers)"


def parse_layers(text: str, layers: int) -> list[int]:
    """Layers of the teacher that become the student's, from 1: ``1,3,5``, ``1-4`` or ``every 2``.

    Args:
        text: As the user gave it.
        layers: How many the teacher has.

    Raises:
        UserError: Not such a list, or not layers of the teacher.
    """
    flag = "--student-take"
    chosen: list[int] = []
    every = re.fullmatch(r"every[ -]?(\d+)", text.strip())
    if every and int(every[1]) > 0:
        # Counted from the end, so that the last layer, which the head reads, is among them.
        return sorted(range(layers, 0, -int(every[1])))
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if match is None:
            raise UserError(
                f"{part.strip()!r} is no layer", where=flag, fix="Write for example 1,3,5 or 1-3 or every 2"
            )
        chosen += range(int(match[1]), int(match[2] or match[1]) + 1)
    wrong = [number for number in chosen if not 1 <= number <= layers]
    if wrong or not chosen:
        raise UserError(
            f"The teacher has no layer {wrong[0]}" if wrong else "No layer is left", where=flag,
            fix=f"Choose from 1 to {layers}",
        )
    if len(set(chosen)) != len(chosen):
        raise UserError("A layer is named twice", where=flag, fix="Name each layer once")
    return chosen


def shape(layers: int, width: int, heads: int) -> Preset:
    """The shape of a new student, its feed-forward layers four times as wide as the rest.

    Raises:
        UserError: Heads do not divide the width into even parts.
    """
    for flag, value in (("--student-layers", layers), ("--student-width", width), ("--student-heads", heads)):
        if value < 1:
            raise UserError(f"{value} is out of range", where=flag, fix="Choose 1 or more")
    if width % heads or (width // heads) % 2:
        raise UserError(
            f"A width of {width} does not split into {heads} heads of even width", where="--student-heads",
            fix="Choose a width that is a multiple of twice the number of heads",
        )
    return Preset(layers, width, heads, 4 * width)


def preset(name: str) -> Preset:
    """The shape of a preset.

    Raises:
        UserError: There is no such preset.
    """
    if name not in PRESETS:
        raise UserError(
            f"There is no preset {name!r}", where="--student-preset", fix=f"Choose one of {', '.join(PRESETS)}"
        )
    return PRESETS[name]


def new_student(made: Preset, folder: Path, name: str) -> ModelFiles:
    """Writes a randomly initialised ESM-2 checkpoint (torch's current seed).

    Args:
        made: Its shape.
        folder: Where to, created.
        name: What it is called.
    """
    from transformers import EsmForMaskedLM

    folder.mkdir(parents=True)
    EsmForMaskedLM(esm2_config(**asdict(made))).save_pretrained(folder)
    write_esm2_tokenizer(folder)
    return ModelFiles(name, folder, resolve_model(str(folder), workdir=folder.parent).sha256)


def from_teacher(teacher: LoadedModel, layers: Sequence[int], folder: Path) -> ModelFiles:
    """Writes a checkpoint with some layers of the teacher, and all that is around them.

    Args:
        teacher: A model with its language-model head.
        layers: Which, from 1, in the student's order.
        folder: Where to, created.

    Raises:
        UserError: The teacher is of a family that has no head here.
    """
    family = teacher.family
    if encoder.language_head(teacher.model) is None:
        raise UserError(
            f"Layers of {family.title} make no student, for it has no language-model head",
            where=teacher.files.id, fix=_NEEDS_HEAD,
        )
    import transformers

    stored = read_config(teacher.files.directory, teacher.files.id)
    settings = configuration.settings_of(stored, family, teacher.files.id) | {family.depth: len(layers)}
    student = getattr(transformers, family.language_model_class)(configuration.build(settings, family))
    place = {layer - 1: number for number, layer in enumerate(layers)}
    taken: dict[str, torch.Tensor] = {}
    for name, value in teacher.model.state_dict().items():
        match = re.match(r"(.*encoder\.layer\.)(\d+)(\..*)", name)
        if match is None:
            taken[name] = value
        elif int(match[2]) in place:
            taken[f"{match[1]}{place[int(match[2])]}{match[3]}"] = value
    own = student.state_dict()
    # The contact regression reads all attention maps; with fewer layers it would have to be trained anew.
    with torch.no_grad():
        for name, value in own.items():
            if "contact_head" not in name:
                value.copy_(taken[name].float())
    save_checkpoint(student, folder, teacher.files.directory, dtype="float32")
    for name in TOKENIZER_FILES:
        source = teacher.files.directory / name
        if source.is_file() and not (folder / name).is_file():
            shutil.copyfile(source, folder / name)
    named = f"layers {', '.join(map(str, layers))} of {teacher.files.id}"
    return ModelFiles(named, folder, resolve_model(str(folder), workdir=folder.parent).sha256)
