"""A model on its way into a folder of its own: fetched, compared, converted, loaded once, recorded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import plm
from plm import stage
from plm.disk_space import size
from plm.errors import UserError
from plm.fingerprints import file_sha256
from plm.jobs.install_model.offers import (
    SMALL_BYTES,
    ModelOrigin,
    Offer,
    OfferedFile,
    check_small,
    is_weights,
    verified,
)
from plm.model import checkpoint
from plm.model.checkpoint import TOKENIZER_FILES
from plm.model.families import find_family
from plm.received import tensors
from plm.received.documents import read_bytes, read_object

if TYPE_CHECKING:
    from plm.model.loaded import ModelFiles

RECORD = "plm_source.json"
"""Beside the model's files: where they came from, and what they are."""
SCHEMA = 1
_PROBE = ("MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEKAVQ", "GSHMACDEFGHIKLMNPQRSTVWYX")
"""Proteins that go through a model as proof that it computes."""
_SHARE = 0.7
"""Part of the memory that weights in 32 bit may take; others are tried in bfloat16."""
_ELSEWHERE = ("decoder.", "lm_head")
"""Weights that no encoder takes into the memory."""


@dataclass(frozen=True)
class StoredFile:
    """One file of an installed model."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class StoredModel:
    """What lies in the folder of a model.

    Attributes:
        offer: Where it came from.
        files: What was stored.
        converted: Names of the ``.bin`` files that became safetensors.
        family: Family, in words.
        family_id: The same, short.
        layers: Number of layers.
        width: Numbers of a residue's representation.
        parameters: Numbers in the weights.
        fingerprint: Of weights, configuration and vocabulary, as bundles name their model.
    """

    offer: Offer
    files: tuple[StoredFile, ...]
    converted: tuple[str, ...]
    family: str
    family_id: str
    layers: int
    width: int
    parameters: int
    fingerprint: str

    def record(self) -> dict[str, Any]:
        """For :data:`RECORD`."""
        offer = self.offer
        return {
            "schema": SCHEMA, "id": offer.id, "source": offer.kind, "from": offer.place, "asked": offer.asked,
            "revision": offer.revision, "licence": offer.licence, "pipeline_tag": offer.tag, "gated": offer.gated,
            "left_out": list(offer.left_out), "offered": [asdict(file) for file in offer.files],
            "files": [asdict(file) for file in self.files], "converted": list(self.converted),
            "bytes": sum(file.bytes for file in self.files), "family": self.family, "family_id": self.family_id,
            "layers": self.layers, "width": self.width, "parameters": self.parameters,
            "fingerprint": self.fingerprint, "written_by": f"plm_install_model {plm.__version__}",
        }


def check_room(offer: Offer, folder: Path) -> None:
    """Whether the disk holds a model, twice where its weights are converted.

    Raises:
        UserError: Says what is needed and what is free.
    """
    weights = sum(file.bytes for file in offer.files if file.name.endswith(".bin"))
    needed, free = offer.bytes + weights, shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"The model takes {size(needed)} and {size(free)} are free", where=str(folder),
            fix="Free space there, or install models elsewhere",
        )


def store(
    origin: ModelOrigin, offer: Offer, folder: Path, scratch: Path, say: Callable[[str], None]
) -> StoredModel:
    """Brings a model into an empty folder.

    Args:
        origin: Where it comes from.
        offer: What it offers.
        folder: Gets the files and :data:`RECORD`.
        scratch: For files on their way; on the same file system.
        say: Told what happens.

    Raises:
        UserError: A file differs from what is listed, the family is none that the suite knows, a pickle holds more
            than numbers, or the model does not load or does not compute.
    """
    check_small(offer.files, offer.id)
    small = [file for file in offer.files if not is_weights(file.name)]
    large = [file for file in offer.files if is_weights(file.name)]
    stored = {file.name: _fetched(origin, file, folder, offer.id) for file in small}
    # Before the weights come: whether the suite reads such a model at all.
    family = find_family(
        checkpoint.read_config(folder, offer.id), checkpoint.read_vocabulary(folder), where=offer.id
    )
    say(f"The model is of the family {family.title}; its weights take {size(sum(file.bytes for file in large))}")
    for name in _asking_for_code(folder):
        (folder / name).unlink()
        del stored[name]
    for file in large:
        say(f"Fetching {file.name}, {size(file.bytes)}")
        stored[file.name] = _fetched(origin, file, folder, offer.id)
    say("All files are as listed")
    converted = tuple(file.name for file in large if file.name.endswith(".bin"))
    if converted:
        for name in (*converted, "pytorch_model.bin.index.json"):
            stored.pop(name, None)
        for name in _converted(folder, converted, offer.id):
            stored[name] = file_sha256(folder / name)
        say(f"{len(converted)} files of weights were read as plain numbers and written as safetensors")
    files = tuple(StoredFile(name, (folder / name).stat().st_size, digest) for name, digest in sorted(stored.items()))
    model = _proved(folder, offer, files, converted, scratch, say)
    record = json.dumps(model.record(), indent=1, sort_keys=True) + "\n"
    (folder / RECORD).write_text(record, encoding="utf-8")
    for path in folder.iterdir():
        path.chmod(0o644)
    return model


def _fetched(origin: ModelOrigin, file: OfferedFile, folder: Path, where: str) -> str:
    target = folder / file.name
    origin.fetch(file, target)
    return verified(file, target, where)


def _asking_for_code(folder: Path) -> list[str]:
    """Tokenizer settings that ask for code of the model's own: no program of the server should ever read these."""
    names = [name for name in TOKENIZER_FILES if name.endswith(".json") and (folder / name).is_file()]
    asking = []
    for name in names:
        content = read_bytes(folder / name, SMALL_BYTES, name, folder.name)
        if b"auto_map" in content or "auto_map" in content.decode("unicode_escape", "replace"):
            asking.append(name)
    return asking


def _converted(folder: Path, names: tuple[str, ...], where: str) -> list[str]:
    """Writes ``.bin`` files as safetensors, number by number, and removes them; gives the names of the new ones."""
    from safetensors.torch import save_file

    made: list[str] = []
    places: dict[str, str] = {}
    total = 0
    for name in names:
        target = name.replace("pytorch_model", "model", 1).removesuffix(".bin") + ".safetensors"
        weights = {key: value.clone().contiguous() for key, value in tensors.load_pickled(folder / name, where).items()}
        if double := sorted(set(weights) & set(places)):
            raise UserError(
                f"The weights {double[0]} come in two files", where=where, fix="Give the files of one model"
            )
        save_file(weights, folder / target, metadata={"format": "pt"})
        places.update(dict.fromkeys(weights, target))
        total += sum(value.numel() * value.element_size() for value in weights.values())
        made.append(target)
        (folder / name).unlink()
    (folder / "pytorch_model.bin.index.json").unlink(missing_ok=True)
    if len(made) > 1:
        index = "model.safetensors.index.json"
        content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        (folder / index).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        made.append(index)
    return made


def _proved(
    folder: Path, offer: Offer, files: tuple[StoredFile, ...], converted: tuple[str, ...], scratch: Path,
    say: Callable[[str], None],
) -> StoredModel:
    """Loads what was stored as every tool does, and lets proteins through."""
    import torch

    from plm.model import encoder

    checked = checkpoint.resolve_model(str(folder), workdir=scratch)
    counts = _counts(checked)
    taken = sum(count for name, count in counts.items() if not name.startswith(_ELSEWHERE))
    memory = stage.memory_mib() * 2**20
    if 2 * taken > memory:
        raise UserError(
            f"Trying the model takes {size(2 * taken)} of memory, and the job has {size(memory)}", where=offer.id,
            fix="Give the jobs of this tool more memory, then run it again",
        )
    dtype = "float32" if 4 * taken < _SHARE * memory else "bfloat16"
    loaded = checkpoint.load_model(checked, dtype=dtype)
    states = encoder.encode(loaded, [one[: loaded.family.max_residues] for one in _PROBE])
    shapes = [(len(one[: loaded.family.max_residues]), loaded.hidden_size) for one in _PROBE]
    finite = all(bool(torch.isfinite(state).all()) for state in states)
    if not finite or [tuple(state.shape) for state in states] != shapes:
        raise UserError(
            "The model computes no finite representations of proteins", where=offer.id,
            fix="The weights are damaged, or are not those of the configuration: take another revision",
        )
    say(f"It loads and computes: {loaded.layers} layers, {loaded.hidden_size} wide ({dtype})")
    return StoredModel(
        offer, files, converted, loaded.family.title, loaded.family.name, loaded.layers, loaded.hidden_size,
        sum(counts.values()), checked.sha256,
    )


def _counts(files: ModelFiles) -> dict[str, int]:
    """Numbers in each tensor of the weights."""
    counts: dict[str, int] = {}
    for path in checkpoint.weight_files(files.directory):
        for name, shape in tensors.shapes(path.resolve(), where=files.id).items():
            count = 1
            for length in shape:
                count *= length
            counts[name] = count
    return counts


def read_record(folder: Path) -> dict[str, Any] | None:
    """What :func:`store` noted in a model's folder; None where the folder or the note cannot be seen.

    Raises:
        UserError: A file that it lists is missing or has another size.
    """
    if not (folder / RECORD).is_file():
        return None
    record = read_object(folder / RECORD, where=str(folder))
    for file in record.get("files", []):
        place = folder / str(file["name"])
        if not place.is_file() or place.stat().st_size != file["bytes"]:
            raise UserError(
                f"The model is in the table, but its file {place.name} is missing or has another size",
                where=str(folder), fix="Remove the row and the folder, then install the model again",
            )
    return record

