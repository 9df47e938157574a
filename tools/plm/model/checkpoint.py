"""Where checkpoints come from and how they become models: built-in, directory, zip, hub; safetensors or weights-only
``.bin``."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from plm import fingerprints
from plm.errors import UserError
from plm.model import configuration, eight_bits
from plm.model.families import ModelFamily, find_family
from plm.model.loaded import LoadedModel, ModelFiles
from plm.received import offline, tensors
from plm.received.archives import Archive
from plm.received.documents import one_line, read_object
from plm.received.fields import Fields, shown
from plm.received.folders import real_file, roots_of
from plm.received.training_checkpoints import is_torch_file
from plm.received.vocabularies import read_vocabulary as received_vocabulary

if TYPE_CHECKING:
    import torch

BUILT_IN = {"starter": Path(__file__).resolve().parents[2] / "models" / "starter"}
"""Models that ship with the suite, by name."""

_WEIGHTS = re.compile(r"(?:model[\w.-]*\.safetensors|pytorch_model[\w.-]*\.bin)(?:\.index\.json)?", re.ASCII)
TOKENIZER_FILES = (
    "vocab.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "spiece.model",
)
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_ARCHIVE, _ZIPPED = (
    "model archive", "Give a zip of a Hugging Face checkpoint folder (config.json, tokenizer files, model.safetensors)"
)
Purpose = Literal["encoder", "masked_lm"]


def resolve_model(source: str, *, workdir: Path, allow_hub: bool = False) -> ModelFiles:
    """Finds a checkpoint's files.

    Args:
        source: ``starter``; a directory; a zip of such a directory; a ``.pt`` file of fair-esm (its contact regression
            beside it), or a directory or zip of both; or ``hub:organisation/name`` (``@revision`` may follow).
        workdir: Zips are unpacked, hub files cached and checked models laid out below it.
        allow_hub: The network may be used, because the user chose a hub model.

    Raises:
        UserError: There is no such checkpoint, or it is not safe or not complete.
    """
    if source in BUILT_IN:
        return _inspect(BUILT_IN[source], source, workdir, roots_of(BUILT_IN[source]))
    if source.startswith("hub:"):
        return _from_hub(source.removeprefix("hub:"), workdir, allow_hub)
    path = Path(source)
    if not path.exists():
        raise UserError(
            f"There is no model {source!r}", where="--model",
            fix="Give 'starter', a checkpoint folder, a zip of one, a .pt file of fair-esm, or hub:organisation/name",
        )
    return _of_path(path, path.name if path.is_dir() else path.stem, workdir)


def _of_path(path: Path, name: str, workdir: Path) -> ModelFiles:
    """A checkpoint in a folder or file."""
    from plm.model import fair_esm

    if path.is_dir():
        own = _checkpoint_folder(path)
        whole = os.path.lexists(own / "config.json")
        files = [] if whole else _torch_files(path, name)
        if not files:
            if not whole:
                _check_form({one.name for one in path.iterdir()}, name)
            return _inspect(own, name, workdir, roots_of(path))
    else:
        files = [path] if is_torch_file(path) else []
    workdir.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="unpacked_model_", dir=workdir))
    if files:
        fair_esm.read_files(files, one_line(name)).write(folder)
        return _inspect(folder, name, workdir, roots_of(folder))
    _check_start(path)
    with Archive(path, _ARCHIVE, _ZIPPED) as opened:
        names = {one.rsplit("/", 1)[-1] for one in opened.members}
    if "config.json" not in names:
        _check_form(names, path.name)
    unpack_checkpoint(path, folder)
    return _of_path(folder, name, workdir)


def _torch_files(folder: Path, where: str) -> list[Path]:
    """The ``.pt`` files of a folder, each of them within it."""
    roots = roots_of(folder)
    names = sorted(path.relative_to(folder).as_posix() for one in ("*.pt", "*/*.pt") for path in folder.glob(one))
    real = [real_file(folder, one, where, roots) for one in names]
    return [path for path in real if path is not None]


def _check_start(file: Path) -> None:
    """Refuses an ONNX file, which does not say by itself what it is: fields 1 and 2 (or 3, 7) of a protocol buffer.

    Raises:
        UserError: It is one.
    """
    with file.open("rb") as opened:
        start = opened.read(3)
    if start[:1] == b"\x08" and start[2:] in (b"\x12", b"\x1a", b"\x3a"):
        raise UserError(
            "The file is an ONNX model, which is for other programs", where=file.name,
            fix="Give the model that it was made from, or what plm_convert --to hugging-face makes of that",
        )


def _check_form(names: Iterable[str], where: str) -> None:
    """Refuses what plm_convert takes and is no checkpoint, with the way to one.

    Args:
        names: Of files without their folders, none of them config.json.
        where: What messages call the model.

    Raises:
        UserError: It is a bundle or an adapter.
    """
    if "manifest.json" in names:
        raise UserError(
            "This is a bundle of a trained predictor, not a model", where=where,
            fix="Give the model that it was trained on, or what plm_convert --to hugging-face makes of the bundle",
        )
    if "adapter_config.json" in names:
        raise UserError(
            "This is an adapter (PEFT), not a model", where=where,
            fix="Add it to its base model: plm_convert --to merged --model BASE",
        )


def unpack_checkpoint(archive: Path, folder: Path) -> None:
    """Unpacks the files of a checkpoint from a zip; never outside ``folder``, never code.

    A zip without config.json may hold files of fair-esm (``.pt``), which are unpacked in their place.

    Raises:
        UserError: Not a zip, damaged, a member would leave the folder, or sizes of a bomb.
    """
    with Archive(archive, _ARCHIVE, _ZIPPED) as opened:
        whole = any(name.rsplit("/", 1)[-1] == "config.json" for name in opened.members)
        opened.unpack(folder, lambda name: name if _known(name) or (not whole and name.endswith(".pt")) else None)


def _known(name: str) -> bool:
    """Whether a member of an archive is one of the files that are acted on, or a model card."""
    own = name.rsplit("/", 1)[-1]
    return own in ("config.json", "README.md", eight_bits.FILE, *TOKENIZER_FILES) or _WEIGHTS.fullmatch(own) is not None


def _checkpoint_folder(folder: Path) -> Path:
    """The folder that holds ``config.json``: itself, one inside it, or one snapshot of a hub cache."""
    for pattern in ("config.json", "*/config.json", "snapshots/*/config.json", "models--*/snapshots/*/config.json"):
        folders = sorted(path.parent for path in folder.glob(pattern))
        if len(folders) == 1:
            return folders[0]
        if folders:
            raise UserError(
                f"The folder holds {len(folders)} models", where=folder.name,
                fix=f"Name one of them, for example {folders[0].relative_to(folder)}",
            )
    return folder


def _from_hub(name: str, workdir: Path, allow_hub: bool) -> ModelFiles:
    if os.environ.get("PLM_ALLOW_HUB", "").strip().lower() == "no":
        raise UserError(
            "This server does not let jobs download models", where=f"hub:{name}",
            fix="Choose the built-in model, one of this server's list, or give a zip or folder",
        )
    if not allow_hub:
        raise UserError(
            f"The hub model {name} may only be fetched when the user allows it", where="--model",
            fix="Add --allow-hub, or choose a model that is installed",
        )
    import huggingface_hub

    repository, _, revision = name.partition("@")
    try:
        with offline.lifted():
            held = huggingface_hub.HfApi().list_repo_files(repository, revision=revision or None)
            known = [one for one in held if "/" not in one and _known(one)]
            # Weights in safetensors are preferred: the same ones as .bin are not even fetched.
            if any(one.endswith(".safetensors") for one in known):
                known = [one for one in known if not one.startswith("pytorch_model")]
            folder = huggingface_hub.snapshot_download(
                repository, revision=revision or None, cache_dir=workdir / "hub", allow_patterns=known
            )
    except Exception as error:  # the hub client raises a dozen unrelated classes
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"The hub model {name} could not be fetched: {reason}", where="--model",
            fix="Check the name and the network, or ask the administrator to install the model",
        ) from error
    return _inspect(Path(folder), name, workdir, roots_of(Path(folder)))


def _inspect(folder: Path, name: str, workdir: Path, roots: tuple[Path, ...]) -> ModelFiles:
    """Judges a checkpoint and lays what is acted on, and nothing else, into a folder of the job's own.

    Args:
        folder: Holds the files.
        name: What people call the model.
        workdir: Gets the folder.
        roots: Where links may lead.

    Raises:
        UserError: A file is missing, leads elsewhere, is damaged, or does not fit the others.
    """
    name = one_line(name)
    plain = eight_bits.expanded(folder, name, workdir, roots, ("config.json", *TOKENIZER_FILES))
    if plain != folder:
        folder, roots = plain, roots_of(plain)
    taken = {
        one: place for one in ("config.json", *TOKENIZER_FILES, *_INDEXES)
        if (place := real_file(folder, one, name, roots)) is not None
    }
    if "config.json" not in taken:
        raise UserError(
            "The checkpoint has no config.json", where=name,
            fix="Give a folder in Hugging Face format: config.json, tokenizer files, model.safetensors",
        )
    config = read_config(folder, name)
    vocabulary = received_vocabulary(folder, name)
    family = find_family(config, vocabulary, where=name)
    settings = configuration.settings_of(config, family, name)
    configuration.check_tokens(settings, family, vocabulary, name)
    weights = [_real(folder, path.name, name, roots) for path in weight_files(folder, name)]
    shapes = [_shapes(path, kind, name) for kind, path in weights]
    merged = {key: shape for part in shapes for key, shape in part.items()}
    if len(merged) < sum(map(len, shapes)):
        raise UserError("The weight files hold the same weights twice", where=name, fix="Give the files of one model")
    configuration.check_weights(settings, family, merged, name)
    digest = hashlib.sha256()
    for _, path in weights:
        with path.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    tokens = configuration.used_tokens(family, vocabulary, name)
    fingerprint = fingerprints.join(digest.hexdigest(), configuration.digest(settings, tokens))
    workdir.mkdir(parents=True, exist_ok=True)
    own = Path(tempfile.mkdtemp(prefix="checked_model_", dir=workdir))
    (own / "config.json").write_text(json.dumps(settings, indent=1, sort_keys=True) + "\n")
    for one, place in taken.items():
        if one in TOKENIZER_FILES and _harmless(place):
            (own / one).symlink_to(place)
    _lay_out(own, weights, shapes)
    return ModelFiles(name, own, fingerprint)


def _harmless(file: Path) -> bool:
    """Whether a tokenizer file may be handed on with models made from this one: it asks for no code of its own."""
    if file.suffix != ".json":
        return True
    try:
        return "auto_map" not in read_object(file)
    except UserError:
        return False


def _real(folder: Path, own: str, name: str, roots: tuple[Path, ...]) -> tuple[str, Path]:
    """The kind of a weight file, and its real place."""
    place = real_file(folder, own, name, roots)
    assert place is not None, "it was listed"
    return Path(own).suffix, place


_TRAINED = (".weight", ".bias", ".gamma", ".beta")
"""What the names of trained numbers end in."""


def _shapes(path: Path, kind: str, name: str) -> dict[str, tuple[int, ...]]:
    if kind == ".bin":
        return tensors.pickled_shapes(path, name)
    try:
        return tensors.shapes(path, where=name, fix="Give an undamaged checkpoint", trained=_TRAINED)
    except UserError as error:
        raise UserError(f"The weights cannot be loaded: {error.what}", where=name, fix=error.fix) from error


def _lay_out(own: Path, weights: list[tuple[str, Path]], shapes: list[dict[str, tuple[int, ...]]]) -> None:
    """Weights under the names that transformers looks for; an index of several files is made anew."""
    kind = weights[0][0]
    whole = "model.safetensors" if kind == ".safetensors" else "pytorch_model.bin"
    if len(weights) == 1:
        (own / whole).symlink_to(weights[0][1])
        return
    stem, places = whole.removesuffix(kind), {}
    for number, ((_, path), part) in enumerate(zip(weights, shapes, strict=True), start=1):
        named = f"{stem}-{number:05d}-of-{len(weights):05d}{kind}"
        (own / named).symlink_to(path)
        places.update(dict.fromkeys(part, named))
    (own / f"{whole}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def weight_files(folder: Path, where: str = "") -> list[Path]:
    """The weight files that loading will read: safetensors if there are any, else ``.bin``.

    Raises:
        UserError: There are none, or an index names something else than files beside it.
    """
    for whole in ("model.safetensors", "pytorch_model.bin"):
        if os.path.lexists(folder / whole):
            return [folder / whole]
        stem, kind = whole.rsplit(".", 1)
        index = folder / f"{whole}.index.json"
        if os.path.lexists(index):
            return _indexed(folder, index, where or folder.name)
        files = sorted(path for path in folder.glob(f"{stem}*.{kind}") if _WEIGHTS.fullmatch(path.name))
        if files:
            return files
    raise UserError(
        "The checkpoint has no weights", where=where or folder.name,
        fix="It needs model.safetensors or pytorch_model.bin (possibly in numbered parts)",
    )


def _indexed(folder: Path, index: Path, where: str) -> list[Path]:
    """The files that an index of weights names; each must be a plain file beside it."""
    fix = "Give all parts of the model beside their index"
    content = Fields(read_object(index, where=where, fix=fix), index.name, where, fix)
    named = content.inside("weight_map").content.values()
    names = set()
    for one in named:
        if not isinstance(one, str) or "/" in one or _WEIGHTS.fullmatch(one) is None:
            raise UserError(
                f"{index.name} names {shown(one)}, which is no part of the model", where=where,
                fix="Do not trust this model",
            )
        names.add(one)
    missing = sorted(one for one in names if not os.path.lexists(folder / one))
    if missing or not names:
        what = f"The part {missing[0]} of the weights is missing" if missing else f"{index.name} names no files"
        raise UserError(what, where=where, fix=fix)
    return [folder / one for one in sorted(names)]


def has_language_model(files: ModelFiles) -> bool:
    """Whether a checkpoint's weights include a head that predicts masked residues; reads names only.

    Raises:
        UserError: A weight file is damaged.
    """
    beginning = family_of(files).head_weights
    if not beginning:
        return False
    for path in weight_files(files.directory):
        if any(name.startswith(beginning) for name in _shapes(path.resolve(), path.suffix, files.id)):
            return True
    return False


def family_of(files: ModelFiles) -> ModelFamily:
    """The family of a resolved checkpoint.

    Raises:
        UserError: No family of the suite fits.
    """
    return find_family(read_config(files.directory), read_vocabulary(files.directory), where=files.id)


def read_config(folder: Path, where: str = "") -> dict[str, Any]:
    """The content of ``config.json``; ``where`` is what messages call the model.

    Raises:
        UserError: It is not JSON, or asks for code of its own.
    """
    config = read_object(folder / "config.json", where=where or folder.name, fix="Give the config.json of the model")
    if "auto_map" in config:
        raise UserError(
            "The checkpoint wants to run code of its own (auto_map in config.json), which the suite never does",
            where=where or folder.name, fix="Use a checkpoint of a standard architecture",
        )
    return config


def read_vocabulary(folder: Path) -> dict[str, int]:
    """Token to id, from the checkpoint's own tokenizer files.

    Raises:
        UserError: There are no tokenizer files or they cannot be read.
    """
    return received_vocabulary(folder, folder.name)


@contextmanager
def _without_scikit_learn() -> Iterator[None]:
    """Imports transformers' models without scikit-learn and pandas, half a second of each start.

    transformers takes one function of scikit-learn for speculative decoding, which no encoder does.
    """
    from transformers import utils

    known = utils.is_sklearn_available
    utils.is_sklearn_available = lambda: False
    try:
        yield
    finally:
        utils.is_sklearn_available = known


def load_model(
    files: ModelFiles, *, purpose: Purpose = "encoder", dtype: str = "float32", device: torch.device | str = "cpu",
    packed: bool = True,
) -> LoadedModel:
    """Loads a checkpoint for packed rows.

    Args:
        files: From :func:`resolve_model`.
        purpose: ``encoder`` for representations, ``masked_lm`` for the encoder with its language-model head.
        dtype: ``float32``, ``bfloat16`` or ``float16`` (rotary frequencies stay float32).
        device: Where to put it.
        packed: False: with transformers' own layers and attention, for padded rows.

    Raises:
        UserError: Weights are missing, damaged or not finite, or the family has no such purpose.
    """
    import torch
    import transformers

    from plm.model import encoder

    config = read_config(files.directory)
    vocabulary = read_vocabulary(files.directory)
    family = find_family(config, vocabulary, where=files.id)
    settings = configuration.settings_of(config, family, files.id)
    family = dataclasses.replace(family, max_residues=family.limit(settings))
    if purpose == "masked_lm" and not family.language_model_class:
        raise UserError(f"{family.title} has no masked language model here", where=files.id, fix="Use an ESM-2 model")
    options: dict[str, Any] = {
        "dtype": getattr(torch, dtype),
        "attn_implementation": encoder.ATTENTION if packed else "eager",
        "local_files_only": True,
        "trust_remote_code": False,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # they are told below, by name
        "use_safetensors": weight_files(files.directory)[0].suffix == ".safetensors",
        **(family.encoder_options if purpose == "encoder" else {}),
    }
    kind = family.encoder_class if purpose == "encoder" else family.language_model_class
    with _without_scikit_learn():
        encoder.register()
        loader: Any = getattr(transformers, kind)
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        # The configuration is made of the fields that are acted on; the folder holds weights and nothing of others.
        model, report = loader.from_pretrained(files.directory, config=configuration.build(settings, family), **options)
    except (
        Exception
    ) as error:  # damaged files surface as OSError, SafetensorError, UnpicklingError, RuntimeError, ...
        if isinstance(error, MemoryError):
            raise
        reason = one_line(str(error)) or type(error).__name__
        raise UserError(
            f"The weights cannot be loaded: {reason}", where=files.id,
            fix="Give an undamaged checkpoint in safetensors (or weights-only .bin) format",
        ) from error
    finally:
        transformers.logging.set_verbosity(verbosity)
    _check_complete(model, report, files)
    if packed:
        encoder.adapt(model, family)
    model.eval().to(device)
    return LoadedModel(
        model=model, vocabulary=vocabulary, family=family, files=files, hidden_size=int(model.config.hidden_size),
        layers=int(model.config.num_hidden_layers), device=torch.device(device), dtype=getattr(torch, dtype),
        has_contacts=packed and _has_contacts(encoder.contact_head(model), report["missing_keys"]),
    )


def _has_contacts(head: Any, missing: Iterable[str]) -> bool:
    """Whether a contact regression was loaded; one that was never trained still has the zero bias of its making."""
    if head is None or any("contact_head." in key for key in missing):
        return False
    return bool(head.regression.bias.detach().abs().max() > 0)


def _check_complete(model: Any, report: Mapping[str, Any], files: ModelFiles) -> None:
    import torch

    optional = ("contact_head.", "position_ids", "inv_freq", "pooler.")
    missing = [key for key in report["missing_keys"] if not any(part in key for part in optional)]
    wrong = sorted((str(name), tuple(held), tuple(wanted)) for name, held, wanted in report.get("mismatched_keys", ()))
    if wrong:
        name, held, wanted = wrong[0]
        raise UserError(
            f"The weights {name} are {held} where config.json asks for {wanted}", where=files.id,
            fix="Give the weights that belong to config.json",
        )
    if missing:
        raise UserError(
            f"The checkpoint lacks {len(missing)} of the model's weights, first {min(missing)}", where=files.id,
            fix="Give a complete checkpoint: the suite never fills weights at random",
        )
    configuration.check_used(report["unexpected_keys"], files.id)
    for name, value in model.named_parameters():
        if not bool(torch.isfinite(value).all()):
            raise UserError(
                f"The weights {name} hold NaN or infinite numbers", where=files.id, fix="Fetch the model anew"
            )


def save_checkpoint(model: Any, folder: Path, vocabulary_from: Path, *, dtype: str = "bfloat16") -> None:
    """Writes a Hugging Face checkpoint folder: config.json, model.safetensors, tokenizer files.

    Args:
        model: A transformers model.
        folder: Created if absent.
        vocabulary_from: A checkpoint folder whose tokenizer files are copied.
        dtype: The type in which the weights are stored.
    """
    import copy
    import shutil

    import torch

    folder.mkdir(parents=True, exist_ok=True)
    stored = copy.deepcopy(model).to("cpu")
    for (
        parameter
    ) in stored.parameters():  # buffers stay: rounding the rotary frequencies costs 4 to 13 % error
        parameter.data = parameter.data.to(getattr(torch, dtype))
    stored.config._attn_implementation = None
    stored.config.dtype = getattr(torch, dtype)
    stored.save_pretrained(folder)
    for path in folder.glob("*.safetensors"):
        path.chmod(0o644)
    for name in TOKENIZER_FILES:
        if vocabulary_from != folder and (vocabulary_from / name).is_file():
            shutil.copyfile(vocabulary_from / name, folder / name)
