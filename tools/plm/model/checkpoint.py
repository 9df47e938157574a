"""Where checkpoints come from and how they become models: built-in, directory, zip, hub; safetensors or weights-only
``.bin``."""

from __future__ import annotations

import hashlib
import json
import stat
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from plm.errors import UserError
from plm.model.families import ModelFamily, find_family, prepare

if TYPE_CHECKING:
    import torch

BUILT_IN = {"starter": Path(__file__).resolve().parents[2] / "models" / "starter"}
"""Models that ship with the suite, by name."""

WEIGHT_SUFFIXES = (".safetensors", ".bin")
_TEXT_FILES = (".json", ".txt", ".model", ".md")
TOKENIZER_FILES = (
    "vocab.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "spiece.model",
)
Purpose = Literal["encoder", "masked_lm"]


@dataclass(frozen=True)
class ModelFiles:
    """A checkpoint on disk.

    Attributes:
        id: The name that people know it by: ``starter``, a folder's name or a hub id.
        directory: Holds ``config.json``, tokenizer files and weights.
        sha256: Digest of the weight files' contents: two checkpoints with the same digest are the same model.
    """

    id: str
    directory: Path
    sha256: str


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory, ready for packed rows.

    Attributes:
        model: The transformers model, in evaluation mode.
        vocabulary: Token to id, from the checkpoint's tokenizer.
        family: What is special about its family.
        files: Where it came from.
        hidden_size: Width of a residue representation.
        layers: Number of transformer layers.
        device: Where its parameters are.
        dtype: Their type.
        has_contacts: Whether the checkpoint carries a trained regression from attention maps to contacts.
    """

    model: Any
    vocabulary: Mapping[str, int]
    family: ModelFamily
    files: ModelFiles
    hidden_size: int
    layers: int
    device: torch.device
    dtype: torch.dtype
    has_contacts: bool = False

    def token_ids(self, sequence: str) -> list[int]:
        """Token ids of a sequence with its special tokens, as the checkpoint's own tokenizer gives them.

        Raises:
            UserError: The family's position embedding cannot hold the sequence.
        """
        limit = self.family.max_residues
        if limit is not None and len(sequence) > limit:
            raise UserError(
                f"{self.family.title} takes at most {limit} residues and a sequence has {len(sequence)}",
                fix="Cut windows (plm_preprocess) or use ESM-2 or ProtT5, which have no such limit",
            )
        letters = self.family.letter_ids(self.vocabulary)
        before = [self.vocabulary[token] for token in self.family.before]
        after = [self.vocabulary[token] for token in self.family.after]
        return [*before, *(letters[letter] for letter in prepare(sequence)), *after]


def resolve_model(source: str, *, workdir: Path, allow_hub: bool = False) -> ModelFiles:
    """Finds a checkpoint's files.

    Args:
        source: ``starter``; a directory; a zip of such a directory; or ``hub:organisation/name`` (``@revision`` may
            follow).
        workdir: Zips are unpacked and hub files cached below it.
        allow_hub: The network may be used, because the user chose a hub model.

    Raises:
        UserError: There is no such checkpoint, or it is not safe or not complete.
    """
    if source in BUILT_IN:
        return _inspect(BUILT_IN[source], source)
    if source.startswith("hub:"):
        return _from_hub(source.removeprefix("hub:"), workdir, allow_hub)
    path = Path(source)
    if path.is_dir():
        return _inspect(_checkpoint_folder(path), path.name)
    if path.is_file():
        folder = workdir / "model"
        unpack_checkpoint(path, folder)
        return _inspect(_checkpoint_folder(folder), path.stem)
    raise UserError(
        f"There is no model {source!r}",
        where="--model",
        fix="Give 'starter', a checkpoint folder, a zip of one, or hub:organisation/name",
    )


def unpack_checkpoint(archive: Path, folder: Path) -> None:
    """Unpacks the files of a checkpoint from a zip; never outside ``folder``, never code.

    Raises:
        UserError: Not a zip, damaged, or a member would leave the folder.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            for member in opened.infolist():
                name = Path(member.filename)
                if name.is_absolute() or ".." in name.parts or stat.S_ISLNK(member.external_attr >> 16):
                    raise UserError(
                        f"The archive has an unsafe member {member.filename!r}", where=archive.name
                    )
                if member.is_dir() or name.suffix not in (*WEIGHT_SUFFIXES, *_TEXT_FILES):
                    continue
                opened.extract(member, folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise UserError(
            f"The model archive cannot be read ({error})",
            where=archive.name,
            fix="Give a zip of a Hugging Face checkpoint folder (config.json, tokenizer files, model.safetensors)",
        ) from error


def _checkpoint_folder(folder: Path) -> Path:
    """The folder that holds ``config.json``: itself, one inside it, or one snapshot of a hub cache."""
    for pattern in ("config.json", "*/config.json", "snapshots/*/config.json", "models--*/snapshots/*/config.json"):
        found = sorted(path.parent for path in folder.glob(pattern))
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(
                f"The folder holds {len(found)} models",
                where=folder.name,
                fix=f"Name one of them, for example {found[0].relative_to(folder)}",
            )
    return folder


def _from_hub(name: str, workdir: Path, allow_hub: bool) -> ModelFiles:
    if not allow_hub:
        raise UserError(
            f"The hub model {name} may only be fetched when the user allows it",
            where="--model",
            fix="Add --allow-hub, or choose a model that is installed",
        )
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    patterns = ["*.json", "*.txt", "*.model", "*.safetensors", "*.bin"]
    try:
        folder = snapshot_download(
            repository, revision=revision or None, allow_patterns=patterns, cache_dir=workdir / "hub"
        )
    except Exception as error:  # the hub client raises a dozen unrelated classes
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"The hub model {name} could not be fetched: {reason}",
            where="--model",
            fix="Check the name and the network, or ask the administrator to install the model",
        ) from error
    return _inspect(Path(folder), name)


def _inspect(folder: Path, identity: str) -> ModelFiles:
    if not (folder / "config.json").is_file():
        raise UserError(
            "The checkpoint has no config.json",
            where=str(folder.name),
            fix="Give a folder in Hugging Face format: config.json, tokenizer files, model.safetensors",
        )
    weights = weight_files(folder)
    digest = hashlib.sha256()
    for path in weights:
        with path.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return ModelFiles(identity, folder, digest.hexdigest())


def weight_files(folder: Path) -> list[Path]:
    """The weight files that loading will read: safetensors if there are any, else ``.bin``.

    Raises:
        UserError: There are none.
    """
    for pattern in ("model*.safetensors", "pytorch_model*.bin"):
        found = sorted(folder.glob(pattern))
        if found:
            return found
    raise UserError(
        "The checkpoint has no weights",
        where=folder.name,
        fix="It needs model.safetensors or pytorch_model.bin (possibly in numbered parts)",
    )


def has_language_model(files: ModelFiles) -> bool:
    """Whether a checkpoint's weights include a head that predicts masked residues; reads names only.

    Raises:
        UserError: A weight file is damaged.
    """
    import torch
    from safetensors import safe_open

    for path in weight_files(files.directory):
        try:
            if path.suffix == ".safetensors":
                with safe_open(path, framework="pt") as opened:
                    names = list(opened.keys())
            else:
                names = list(torch.load(path, map_location="meta", mmap=True, weights_only=True))
        except Exception as error:  # damaged files surface as OSError, SafetensorError, UnpicklingError, RuntimeError
            raise UserError(
                f"The weights cannot be read ({error})", where=files.id, fix="Give an undamaged checkpoint"
            ) from error
        if any(name.startswith("lm_head.dense.") for name in names):
            return True
    return False


def read_config(folder: Path) -> dict[str, Any]:
    """The content of ``config.json``.

    Raises:
        UserError: It is not JSON, or asks for code of its own.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"config.json cannot be read ({error})", where=folder.name) from error
    if not isinstance(config, dict):
        raise UserError("config.json is not a JSON object", where=folder.name)
    if "auto_map" in config:
        raise UserError(
            "The checkpoint wants to run code of its own (auto_map in config.json), which the suite never does",
            where=folder.name,
            fix="Use a checkpoint of a standard architecture",
        )
    return config


def read_vocabulary(folder: Path) -> dict[str, int]:
    """Token to id, from the checkpoint's own tokenizer files.

    Raises:
        UserError: There are no tokenizer files or they cannot be read.
    """
    known = ("vocab.txt", "tokenizer.json", "spiece.model")
    if not any((folder / name).is_file() for name in known):
        raise UserError(
            "The checkpoint has no tokenizer",
            where=folder.name,
            fix=f"Add the tokenizer files published with the model ({', '.join(known)})",
        )
    if (folder / "vocab.txt").is_file():
        return {token: index for index, token in enumerate((folder / "vocab.txt").read_text().split())}
    if (folder / "spiece.model").is_file():
        import sentencepiece

        try:
            pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
        except (OSError, RuntimeError) as error:
            raise UserError(f"spiece.model cannot be read ({error})", where=folder.name) from error
        return {pieces.id_to_piece(index): index for index in range(pieces.get_piece_size())}
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()


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
    files: ModelFiles,
    *,
    purpose: Purpose = "encoder",
    dtype: str = "float32",
    device: torch.device | str = "cpu",
) -> LoadedModel:
    """Loads a checkpoint for packed rows.

    Args:
        files: From :func:`resolve_model`.
        purpose: ``encoder`` for representations, ``masked_lm`` for ESM with its language-model head.
        dtype: ``float32`` or ``bfloat16`` (rotary frequencies stay float32).
        device: Where to put it.

    Raises:
        UserError: Weights are missing, damaged or not finite, or the family has no such purpose.
    """
    import torch
    import transformers

    from plm.model import encoder

    config = read_config(files.directory)
    vocabulary = read_vocabulary(files.directory)
    family = find_family(config, vocabulary, where=files.id)
    options: dict[str, Any] = {
        "dtype": getattr(torch, dtype),
        "attn_implementation": encoder.ATTENTION,
        "local_files_only": True,
        "trust_remote_code": False,
        "output_loading_info": True,
        "use_safetensors": weight_files(files.directory)[0].suffix == ".safetensors",
    }
    if family.name == "prott5":
        if purpose != "encoder":
            raise UserError(
                "ProtT5 has no masked language model here", where=files.id, fix="Use an ESM-2 model"
            )
        kind = "T5EncoderModel"
    else:
        kind = "EsmForMaskedLM" if purpose == "masked_lm" else "EsmModel"
    if kind == "EsmModel":
        options["add_pooling_layer"] = False
    with _without_scikit_learn():
        encoder.register()
        loader: Any = getattr(transformers, kind)
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        model, report = loader.from_pretrained(files.directory, **options)
    except (
        Exception
    ) as error:  # damaged files surface as OSError, SafetensorError, UnpicklingError, RuntimeError, ...
        if isinstance(error, MemoryError):
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"The weights cannot be loaded: {reason}",
            where=files.id,
            fix="Give an undamaged checkpoint in safetensors (or weights-only .bin) format",
        ) from error
    finally:
        transformers.logging.set_verbosity(verbosity)
    _check_complete(model, report, files, purpose)
    encoder.adapt(model)
    model.eval().to(device)
    hidden = int(getattr(model.config, "hidden_size", 0) or model.config.d_model)
    depth = int(getattr(model.config, "num_hidden_layers", 0) or model.config.num_layers)
    return LoadedModel(
        model=model,
        vocabulary=vocabulary,
        family=family,
        files=files,
        hidden_size=hidden,
        layers=depth,
        device=torch.device(device),
        dtype=getattr(torch, dtype),
        has_contacts=_has_contacts(model, report["missing_keys"]),
    )


def _has_contacts(model: Any, missing: Iterable[str]) -> bool:
    """Whether a contact regression was loaded; one that was never trained still has the zero bias of its making."""
    head = getattr(getattr(model, "esm", model), "contact_head", None)
    if head is None or any("contact_head." in key for key in missing):
        return False
    return bool(head.regression.bias.detach().abs().max() > 0)


def _check_complete(model: Any, report: Mapping[str, Any], files: ModelFiles, purpose: Purpose) -> None:
    import torch

    optional = ("contact_head.", "position_ids", "inv_freq", "pooler.")
    missing = [key for key in report["missing_keys"] if not any(part in key for part in optional)]
    wrong = [str(item) for item in report.get("mismatched_keys", ())]
    if missing or wrong:
        names = sorted(missing or wrong)
        raise UserError(
            f"The checkpoint lacks {len(names)} of the model's weights, first {names[0]}",
            where=files.id,
            fix="Give a complete checkpoint: the suite never fills weights at random",
        )
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
    stored = copy.deepcopy(model)
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
