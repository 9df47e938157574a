"""From an input to the form that was asked for: recognised, laid out as a checkpoint, compared, written."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

from plm.errors import UserError
from plm.jobs.convert import comparison, encoder_onnx, megatron, merging, sources
from plm.jobs.convert.checkpoints import cut_encoder, rewrite, write_int8
from plm.jobs.convert.fair_esm import lay_out, write_fair_esm
from plm.jobs.convert.original import esm_states, megatron_states
from plm.jobs.convert.sources import ModelSource
from plm.jobs.convert.weights import REST, Checked, Ground, stored_weights, types_of
from plm.model import checkpoint
from plm.model.bundles.archive import write_zip
from plm.model.fair_esm import described
from plm.model.loaded import LoadedModel, ModelFiles
from plm.model.named_weights import only_tensors
from plm.received.training_checkpoints import read_training_checkpoint

SOURCES = {
    "fair-esm": "fair-esm checkpoint", "megatron": "Megatron checkpoint", "hugging-face": "Hugging Face checkpoint",
    "adapter": "PEFT adapter", "bundle": "fine-tuned bundle",
}


INT8_LIMIT = 0.2
"""Largest relative L2 difference that int8 weights may make; the starter has 0.4 %, a real ESM-2 8M 3 %."""


@dataclass(frozen=True)
class ConversionRequest:
    """What to convert into what; fields as the flags of plm_convert.

    Attributes:
        input: File or folder; or files of partitions.
        to: The form asked for.
        model: Base model of an adapter or bundle.
        allow_hub: It may be fetched.
        dtype: Type of the stored weights, or ``keep``.
        contact_regression: File with fair-esm's contact regression.
        vocabulary: File with the tokens of a Megatron checkpoint.
        checkpoint_version: Which order its fused matrices have.
        attention_heads: Its attention heads, if it does not say.
        member: Which network of a bundle.
    """

    input: list[Path]
    to: str = "hugging-face"
    model: str = ""
    allow_hub: bool = False
    dtype: str = "keep"
    contact_regression: Path | None = None
    vocabulary: Path | None = None
    checkpoint_version: str = "auto"
    attention_heads: int = 0
    member: int = 0


@dataclass
class Converted:
    """What came out.

    Attributes:
        request: What was asked.
        kind: Kind of the source.
        ground: The last form, with everything that is to be said.
        title: Family of the model.
        shape: Layers, width and vocabulary.
        stored: Types of the stored numbers.
        parameters: Numbers in it.
        onnx: File, if that is what was asked for.
    """

    request: ConversionRequest
    kind: str
    ground: Ground
    title: str
    shape: tuple[int, int, int]
    stored: str
    parameters: int
    onnx: Path | None = None


def convert(request: ConversionRequest, workdir: Path, log: logging.Logger) -> Converted:
    """Does all of it but the writing of the outputs.

    Args:
        request: What to convert.
        workdir: For files on the way; gets what comes out.
        log: Says what happens.

    Raises:
        UserError: Nothing that is converted, not into that form, or it does not answer as before.
    """
    source = sources.recognise(request.input, workdir)
    _check_flags(request, source)
    log.info("The input is a %s", SOURCES[source.kind])
    ground, files = _laid_out(request, source, workdir)
    log.info("Read: %s", ground.source)
    loaded = checkpoint.load_model(files)
    made = ground
    if request.to == "encoder":
        made = _then(ground, cut_encoder(files, workdir / "encoder", request.dtype))
        made.checks.append(_same(loaded, made.folder, "encoder, before and after", request.dtype, workdir))
    elif request.to == "fair-esm":
        made = _then(ground, write_fair_esm(files, workdir / "fair_esm", source.name, request.dtype))
        made.checks.append(_as_fair_esm(made, loaded))
    elif request.to == "int8":
        made = _then(ground, write_int8(files, workdir / "int8", request.dtype))
        made.checks.append(
            _same(loaded, made.folder, "representations with int8 weights", "", workdir, limit=INT8_LIMIT)
        )
    converted = _finished(request, source, made, files, loaded)
    if request.to == "onnx":
        converted.onnx, check = encoder_onnx.export(files, loaded, workdir / "model.onnx")
        made.checks.append(check)
    return converted


def _check_flags(request: ConversionRequest, source: ModelSource) -> None:
    """Whether what was asked for fits what the input is."""
    where = source.name
    if request.to == "onnx" and request.dtype not in ("keep", "float32"):
        raise UserError("ONNX is written in float32", where=f"--dtype {request.dtype}", fix="Leave --dtype out")
    if request.to == "merged" and source.kind not in ("adapter", "bundle"):
        raise UserError(
            f"There is nothing to merge: the input is a {SOURCES[source.kind]}", where=where,
            fix="Give an adapter or a fine-tuned bundle, or choose another --to",
        )
    if request.model and source.kind not in ("adapter", "bundle"):
        raise UserError(f"A {SOURCES[source.kind]} has no base model", where="--model", fix="Leave --model out")
    of_others = {
        "contact_regression": "fair-esm", "vocabulary": "megatron", "attention_heads": "megatron", "member": "bundle",
    }
    for field, kind in of_others.items():
        if getattr(request, field) and source.kind != kind:
            raise UserError(
                f"The input is a {SOURCES[source.kind]}, for which this flag is not",
                where="--" + field.replace("_", "-"), fix="Leave it out",
            )


def _laid_out(request: ConversionRequest, source: ModelSource, workdir: Path) -> tuple[Ground, ModelFiles]:
    """The input as a checkpoint in Hugging Face layout."""
    place = workdir / "model"
    scratch = workdir / "scratch"
    if source.kind == "fair-esm":
        content = source.contents[0][1]
        regression = request.contact_regression or source.regression
        ground = lay_out(content, regression, source.name, place, request.dtype)
        files = checkpoint.resolve_model(str(place), workdir=workdir)
        shape, weights = described(content, source.name)
        loaded = checkpoint.load_model(files)
        before = comparison.original(loaded, lambda ids: esm_states(weights, shape, ids))
        ground.checks.append(
            comparison.compare(
                "representations, as fair-esm computes them from the input", comparison.states(loaded), before,
                request.dtype, source.name,
            )
        )
    elif source.kind == "megatron":
        ground, sizes, partitions = megatron.read_megatron(
            source.contents, request.vocabulary or source.vocabulary, source.name, place, request.dtype,
            version=request.checkpoint_version, heads=request.attention_heads,
        )
        loaded = checkpoint.load_model(checkpoint.resolve_model(str(place), workdir=workdir))
        before = comparison.original(loaded, lambda ids: megatron_states(partitions, sizes, ids))
        ground.checks.append(
            comparison.compare(
                "representations, as Megatron computes them from the input", comparison.states(loaded), before,
                request.dtype, source.name,
            )
        )
    elif source.kind == "adapter":
        ground = merging.merge_adapter(
            source.place, request.model, source.name, place, request.dtype, workdir=scratch, hub=request.allow_hub
        )
        ground.source = "PEFT adapter"
    elif source.kind == "bundle":
        ground = merging.plain_bundle(
            source.place, request.model, request.member, source.name, place, request.dtype, workdir=scratch,
            hub=request.allow_hub,
        )
        ground.source = "bundle of plm_finetune"
    else:
        files = checkpoint.resolve_model(str(source.place), workdir=workdir)
        if request.to == "hugging-face":
            ground = rewrite(files, place, request.dtype)
            ground.checks.append(
                _same(checkpoint.load_model(files), place, "representations, before and after", request.dtype, workdir)
            )
        else:
            ground = Ground(files.directory, source.name, "")
        ground.source = f"Hugging Face checkpoint ({checkpoint.family_of(files).title})"
        return ground, files if request.to != "hugging-face" else checkpoint.resolve_model(str(place), workdir=workdir)
    return ground, checkpoint.resolve_model(str(place), workdir=workdir)


def _then(before: Ground, after: Ground) -> Ground:
    """The second of two steps, with what is to be said of the first."""
    after.source, after.name = before.source or after.source, after.name or before.name
    after.notes = before.notes + after.notes
    after.left_out = before.left_out + after.left_out
    after.rest = {**before.rest, **after.rest}
    after.checks = before.checks + after.checks
    after.extra = {**before.extra, **after.extra}
    return after


def _same(
    loaded: LoadedModel, folder: Path, what: str, dtype: str, workdir: Path, limit: float | None = None
) -> Checked:
    """A checkpoint compared with the model that it was made from."""
    after = checkpoint.load_model(checkpoint.resolve_model(str(folder), workdir=workdir))
    return comparison.compare(what, comparison.states(after), comparison.states(loaded), dtype, loaded.files.id, limit)


def _as_fair_esm(made: Ground, loaded: LoadedModel) -> Checked:
    """What was written for fair-esm, read again and computed as fair-esm does."""
    path = made.folder / f"{made.name}.pt"
    shape, weights = described(read_training_checkpoint(path, path.name), path.name)
    after = comparison.original(loaded, lambda ids: esm_states(weights, shape, ids))
    return comparison.compare(
        "representations, as fair-esm computes them from the result", after, comparison.states(loaded),
        types_of(only_tensors(weights, "", "")), made.name,
    )


def _finished(
    request: ConversionRequest, source: ModelSource, made: Ground, files: ModelFiles, loaded: LoadedModel
) -> Converted:
    written = files
    if request.to == "encoder":
        written = checkpoint.resolve_model(str(made.folder), workdir=made.folder.parent / "written")
    weights = stored_weights(written)
    numbers = sum(value.numel() for value in weights.values())
    vocabulary = int(loaded.model.config.vocab_size)
    return Converted(
        request, source.kind, made, loaded.family.title, (loaded.layers, loaded.hidden_size, vocabulary),
        types_of(weights), numbers,
    )


def deliver(converted: Converted, path: Path) -> None:
    """Writes the output: a zip with equal bytes for equal content, or the ONNX file."""
    from safetensors.torch import save_file

    if converted.onnx is not None:
        shutil.copyfile(converted.onnx, path)
        return
    ground = converted.ground
    members = dict(ground.extra)
    if converted.request.to != "fair-esm":
        members |= {file.name: file for file in ground.folder.iterdir() if file.is_file()}
    if ground.rest:
        rest = ground.folder.parent / REST
        save_file({name: value.clone().contiguous() for name, value in ground.rest.items()}, rest)
        members[REST] = rest
    about = ground.folder.parent / "conversion.json"
    about.write_text(json.dumps(summary(converted), indent=1, sort_keys=True) + "\n", encoding="utf-8")
    members["conversion.json"] = about
    write_zip(path, members)


def summary(converted: Converted) -> dict[str, object]:
    """What was done, for programs."""
    ground = converted.ground
    return {
        "source": ground.source, "target": converted.request.to, "model": ground.name, "family": converted.title,
        "notes": ground.notes, "left_out": ground.left_out, "not_converted": sorted(ground.rest),
        "relative_l2": {check.what: check.value for check in ground.checks},
    }


