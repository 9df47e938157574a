"""ESM-1b, ESM-1v and ESM-2 between fair-esm's files and Hugging Face's layout, in both directions.

The files are read where models are (:mod:`plm.model.fair_esm`), so that every stage takes them; they are written here.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from plm.errors import UserError
from plm.jobs.convert.weights import Ground, stored_weights
from plm.model import checkpoint, configuration, fair_esm
from plm.model.fair_esm import INSIDE, ON_TOP, POSITIONS, REGRESSION, THETA, EsmShape, frequencies
from plm.model.families import ESM1B, EsmFamily, find_family
from plm.model.families.esm2 import ESM2_VOCABULARY
from plm.model.loaded import ModelFiles
from plm.model.named_weights import Weights, check_finite, stored_as, take


def lay_out(content: Mapping[str, Any], regression: Path | None, name: str, folder: Path, dtype: str) -> Ground:
    """Lays a model of fair-esm out as a Hugging Face checkpoint.

    Args:
        content: From :func:`plm.received.training_checkpoints.read_training_checkpoint`.
        regression: File with the contact regression, if it came by itself.
        name: What messages call the model.
        folder: Gets the checkpoint.
        dtype: Type of the stored weights, or ``keep``.

    Raises:
        UserError: Another architecture, or weights that are missing, of another shape, or not finite.
    """
    model = fair_esm.read_fair_esm(content, regression, name)
    model.write(folder, dtype)
    ground = Ground(folder, name, f"fair-esm checkpoint ({model.shape.title})", model.notes, taken=len(model.weights))
    ground.rest, ground.left_out = model.rest, model.left_out
    return ground


def write_fair_esm(files: ModelFiles, folder: Path, name: str, dtype: str) -> Ground:
    """Writes an ESM checkpoint as files of fair-esm.

    Args:
        files: The checkpoint.
        folder: Gets ``NAME.pt`` and, if the model has one, ``NAME-contact-regression.pt``.
        name: What the model is called; fair-esm tells ESM-2 by names that begin with ``esm2``.
        dtype: Type of the stored weights, or ``keep``.

    Raises:
        UserError: The model is no ESM, or one that fair-esm's classes cannot hold.
    """
    shape = _shape_of(files)
    weights = {_newer(key): value for key, value in stored_weights(files).items()}
    weights.pop("lm_head.decoder.bias", None)
    decoder = weights.pop("lm_head.decoder.weight", None)
    embeddings = weights.get("esm.embeddings.word_embeddings.weight")
    if decoder is not None and embeddings is not None and not torch.equal(decoder, embeddings):
        raise UserError(
            "lm_head.decoder.weight differs from the embeddings, which are one matrix in fair-esm", where=files.id,
            fix="Give a model whose head shares the embeddings",
        )
    if not any(key.startswith("lm_head.") for key in weights):
        raise UserError(
            "The model has no language-model head, which every model of fair-esm has", where=files.id,
            fix="Give the model with its head (EsmForMaskedLM)",
        )
    names = shape.names()
    wanted = dict(names.values())
    contacts = {f"esm.{theirs}": size for theirs, size in shape.contacts().items()}
    has_contacts = all(ours in weights for ours in contacts)
    taken, rest = take(weights, wanted | (contacts if has_contacts else {}), files.id)
    check_finite(taken, files.id)
    taken = stored_as(taken, dtype)
    model: Weights = {}
    for theirs, (ours, _) in names.items():
        model[(ON_TOP if theirs.startswith("lm_head.") else INSIDE) + theirs] = taken[ours]
    model[f"{ON_TOP}lm_head.weight"] = model[f"{INSIDE}embed_tokens.weight"]
    if not shape.positions:
        for layer in range(shape.layers):
            model[f"{INSIDE}layers.{layer}.self_attn.rot_emb.inv_freq"] = frequencies(shape)
    called = file_name(name, shape, has_contacts)
    said = {
        "layers": shape.layers, "embed_dim": shape.hidden, "ffn_embed_dim": shape.feedforward,
        "attention_heads": shape.heads,
    }
    settings = argparse.Namespace(
        **{f"encoder_{field}": value for field, value in said.items()}, token_dropout=shape.token_dropout
    )
    content: dict[str, Any] = {"model": model}
    if shape.positions:
        settings.arch, settings.max_positions, settings.final_bias = "roberta_large", shape.positions - 2, True
        content["args"] = settings
    else:
        settings.arch = "esm2"
        content["cfg"] = {"model": settings}
    folder.mkdir(parents=True, exist_ok=True)
    _save(content, folder / f"{called}.pt")
    ground = Ground(folder, called, f"Hugging Face checkpoint ({shape.title})", taken=len(taken))
    ground.extra[f"{called}.pt"] = folder / f"{called}.pt"
    if has_contacts:
        regression = {theirs: taken[f"esm.{theirs}"] for theirs in shape.contacts()}
        _save({"model": regression}, folder / f"{called}{REGRESSION}")
        ground.extra[f"{called}{REGRESSION}"] = folder / f"{called}{REGRESSION}"
    else:
        ground.notes.append("The input holds no contact regression; fair-esm predicts no contacts with the result.")
    buffers = [key for key in rest if key.endswith(("inv_freq", "position_ids"))]
    pooler = [key for key in rest if key.startswith("esm.pooler.")]
    ground.left_out += [f"{len(buffers)} tensors of positions (computed anew)"] if buffers else []
    ground.left_out += [f"{len(pooler)} tensors of the pooler (fair-esm has none)"] if pooler else []
    unread = [key for key in rest if key == POSITIONS and not shape.positions]
    ground.left_out += ["the table of learned positions, which rotary models never read"] if unread else []
    ground.rest = {key: value for key, value in rest.items() if key not in (*buffers, *pooler, *unread)}
    return ground


def _save(content: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:  # torch's own writer does not say that a disk is full
        torch.save(content, file)


def _newer(name: str) -> str:
    """A name as transformers' class has it, whichever of its versions and classes wrote it."""
    for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
        name = name.removesuffix(old) + new if name.endswith(old) else name
    return name if name.startswith(("esm.", "lm_head.")) else f"esm.{name}"


def _shape_of(files: ModelFiles) -> EsmShape:
    """The shape of a Hugging Face checkpoint, if fair-esm's classes can hold it."""
    config, vocabulary = checkpoint.read_config(files.directory), checkpoint.read_vocabulary(files.directory)
    family = find_family(config, vocabulary, where=files.id)
    if not isinstance(family, EsmFamily):
        raise UserError(
            f"fair-esm has no class for this model ({family.title})", where=files.id, fix="Give ESM-1b, ESM-1v or ESM-2"
        )
    said = configuration.settings_of(config, family, files.id)
    if [token for token, _ in sorted(vocabulary.items(), key=lambda item: item[1])] != list(ESM2_VOCABULARY):
        raise UserError(
            "The model's vocabulary is not that of fair-esm", where=files.id,
            fix="Give a model with ESM's own tokenizer",
        )
    rotary = family.positions == "rotary"
    fixed = {"vocab_size": len(ESM2_VOCABULARY), "layer_norm_eps": 1e-5, "rope_theta": THETA}
    fixed |= {"tie_word_embeddings": True}
    if rotary:
        fixed |= {"intermediate_size": 4 * said["hidden_size"], "emb_layer_norm_before": False}
    for field, value in fixed.items():
        if said[field] != value:
            raise UserError(
                f"fair-esm's class has {field} {value} where config.json says {said[field]}", where=files.id,
                fix="Such a model cannot be written for fair-esm",
            )
    return EsmShape(
        said["num_hidden_layers"], said["hidden_size"], said["num_attention_heads"], said["intermediate_size"],
        0 if rotary else said["max_position_embeddings"], said["emb_layer_norm_before"], said["token_dropout"],
    )


def file_name(name: str, shape: EsmShape, contacts: bool) -> str:
    """A name by which fair-esm takes the model for what it is: it looks at ``esm2`` and ``esm1v``."""
    plain = re.sub(r"[^A-Za-z0-9_]+", "_", name.rsplit("/", 1)[-1]).strip("_") or "model"
    wanted = "esm2" if not shape.positions else ESM1B.name if contacts else "esm1v"
    return plain if plain.startswith(wanted) and ("esm1v" in plain) == (wanted == "esm1v") else f"{wanted}_{plain}"
