"""Adapters in their base model, and fine-tuned bundles as a plain checkpoint with a head beside it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from plm.data.task import threshold_fields
from plm.errors import UserError
from plm.jobs.convert import comparison
from plm.jobs.convert.checkpoints import rewrite
from plm.jobs.convert.weights import Checked, Ground
from plm.model import adapters, checkpoint
from plm.model.bundles import fine_tuned, manifests
from plm.model.heads import build_head
from plm.model.heads.head import HeadConfig
from plm.model.loaded import LoadedModel
from plm.model.named_weights import Weights, check_finite
from plm.model.network import as_network
from plm.received import tensors
from plm.received.documents import one_line, read_object

_TOLD = ("task_type", "peft_version", "base_model_name_or_path", "revision", "auto_mapping", "modules_to_save")
"""Fields of an adapter's configuration with which nothing is done here."""
_BEGIN = "base_model.model."
_LORA = (".lora_A.", ".lora_B.")
_PART = {"lora": _LORA, "dora": (*_LORA, ".lora_magnitude_vector"), "ia3": (".ia3_l",)}
HEAD, ABOUT_HEAD = "head.safetensors", "head.json"


def merge_adapter(folder: Path, model: str, name: str, place: Path, dtype: str, *, workdir: Path, hub: bool) -> Ground:
    """Adds an adapter in PEFT's layout to its base model.

    Args:
        folder: Holds ``adapter_config.json`` and ``adapter_model.safetensors``.
        model: The base model, as for ``--model``.
        name: What messages call the adapter.
        place: Gets the merged checkpoint.
        dtype: Type of the stored weights; ``keep`` is float32, in which they are added.
        workdir: For files on the way.
        hub: The base may be fetched from the hub.

    Raises:
        UserError: No LoRA, DoRA or IA3, an adapter of another model, or weights that are not finite.
    """
    said = one_line(str(read_object(folder / adapters.CONFIG, where=name).get("base_model_name_or_path") or ""), 80)
    if not model:
        told = f" ({said})" if said else ""
        raise UserError(f"An adapter needs the model that it was trained on{told}", where=name, fix="Give --model")
    files = checkpoint.resolve_model(model, workdir=workdir, allow_hub=hub)
    purpose: checkpoint.Purpose = "masked_lm" if checkpoint.has_language_model(files) else "encoder"
    loaded = checkpoint.load_model(files, purpose=purpose)
    fitted, rest = _fitted(folder, workdir / "adapter", name, loaded)
    before = comparison.states(loaded)
    try:
        wrapped = adapters.load_adapter(loaded.model.base_model, fitted, "adapter", loaded.family)
    except UserError as error:
        raise UserError(
            error.what.replace("The bundle's adapter", "The adapter"), where=name,
            fix="Give the adapter as PEFT wrote it, and with --model the very model that it was trained on",
        ) from error
    adapted = comparison.states(_of(loaded, wrapped))
    wrapped.merge_and_unload()
    ground = _stored(loaded, place, dtype, name)
    ground.rest = rest
    moved = comparison.relative_l2(torch.cat(adapted), torch.cat(before))
    if said:
        ground.notes.append(f"The adapter was made, as it says, for the model {said}; {files.id} was given.")
    if purpose == "masked_lm":
        ground.notes.append("The language-model head is that of the base model.")
    ground.notes.append(f"The adapter moves the base model's representations by {moved:.2g} (relative L2).")
    ground.checks.append(_check(place, adapted, "adapter on its base, by PEFT", dtype, workdir))
    return ground


def _of(loaded: LoadedModel, body: Any) -> LoadedModel:
    """The same model with another body."""
    return replace(loaded, model=body)


def _stored(loaded: LoadedModel, place: Path, dtype: str, name: str) -> Ground:
    kind = "float32" if dtype == "keep" else dtype
    checkpoint.save_checkpoint(loaded.model, place, loaded.files.directory, dtype=kind)
    count = sum(1 for _ in loaded.model.parameters())
    ground = Ground(place, name, "", taken=count)
    if dtype == "keep":
        ground.notes.append("Sums of base and adapter are float32, and stored so.")
    return ground


def _check(place: Path, before: list[torch.Tensor], what: str, dtype: str, workdir: Path) -> Checked:
    files = checkpoint.resolve_model(str(place), workdir=workdir)
    after = comparison.states(checkpoint.load_model(files))
    return comparison.compare(what, after, before, dtype, files.id)


def _fitted(folder: Path, place: Path, name: str, loaded: LoadedModel) -> tuple[Path, Weights]:
    """An adapter as it lies on the encoder alone, and its tensors of other parts.

    Adapters that were trained in a model with a head have its beginning in their names (``esm.``).
    """
    config = read_object(folder / adapters.CONFIG, where=name)
    weights = tensors.load_torch(
        folder / adapters.WEIGHTS, where=name, fix="Give the adapter as PEFT wrote it", finite=True
    )
    check_finite(weights, name)
    method = "dora" if config.get("use_dora") else str(config.get("peft_type", "")).lower()
    inner = f"{_BEGIN}{getattr(loaded.model, 'base_model_prefix', '')}."
    kept: Weights = {}
    rest: Weights = {}
    for key, value in weights.items():
        own = _BEGIN + key.removeprefix(inner) if key.startswith(inner) else key
        fits = own.startswith(_BEGIN) and any(part in own for part in _PART.get(method, ()))
        if fits and not own.startswith((f"{_BEGIN}classifier.", f"{_BEGIN}lm_head.", f"{_BEGIN}cls.")):
            kept[own] = value.float()
        else:
            rest[key] = value
    if method in _PART and not kept:
        raise UserError("The adapter has no weights for layers of the encoder", where=name, fix="Give a whole adapter")
    from safetensors.torch import save_file

    place.mkdir(parents=True, exist_ok=True)
    plain = {key: value for key, value in config.items() if key not in _TOLD}
    if kept:  # the layers that it lies on, whatever expression chose them when it was made
        layers = {key.removeprefix(_BEGIN).split(".lora_")[0].removesuffix(".ia3_l") for key in kept}
        plain["target_modules"] = sorted(layers)
    if method == "ia3":
        plain["feedforward_modules"] = adapters.layer_pattern(loaded.family.feedforward_targets)
    (place / adapters.CONFIG).write_text(json.dumps(plain))
    save_file(kept, place / adapters.WEIGHTS)
    return place, rest


# ------------------------------------------------------------------------------------------------------------- bundles


def plain_bundle(
    path: Path, model: str, member: int, name: str, place: Path, dtype: str, *, workdir: Path, hub: bool
) -> Ground:
    """A network of a fine-tuned bundle as a checkpoint, its head as safetensors with a description in JSON.

    Args:
        path: The bundle.
        model: The base model, as for ``--model``; empty for the one that is built in.
        member: Which network, from 1; 0 if there is only one.
        name: What messages call the bundle.
        place: Gets the checkpoint.
        dtype: Type of the stored encoder; ``keep`` is float32.
        workdir: For files on the way.
        hub: The base may be fetched from the hub.

    Raises:
        UserError: A bundle of another kind, or of several networks without a number.
    """
    bundle = fine_tuned.load_bundle(path, model or None, workdir=workdir, device="cpu", precision="fp32", allow_hub=hub)
    count = len(bundle.members)
    if not 0 <= member <= count or (count > 1 and member == 0):
        raise UserError(
            f"The bundle holds {count} trained network{'s' * (count > 1)}", where=path.name,
            fix=f"Choose one with --member 1 to {count}" if count > 1 else "Leave --member out",
        )
    number = max(member, 1) - 1
    chosen = bundle.members[number]
    window = bundle.window
    asked, sites = fine_tuned.self_test_inputs(bundle.task, window, str(bundle.manifest.get("site_residues", "")))
    before = bundle.predict_members(asked, sites, members=[number])[0]
    had_predictor = bundle.predictor is not None
    bundle.leave_language_model_alone()
    body = chosen.network.body
    method = str(bundle.manifest["method"])
    if method in adapters.ADAPTERS:
        body.set_adapter(chosen.adapter)
        body.merge_and_unload(adapter_names=[chosen.adapter])
        ground = _stored(_of(bundle.loaded, body.get_base_model()), place, dtype, name)
    elif method == "full":
        source = manifests.member_folder(bundle.folder, number, count) / "model"
        ground = rewrite(checkpoint.resolve_model(str(source), workdir=workdir), place, dtype)
    else:
        ground = rewrite(bundle.loaded.files, place, dtype)
    head = place.parent / "head"
    head.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(manifests.member_folder(bundle.folder, number, count) / HEAD, head / HEAD)
    about = _about(bundle, chosen)
    (head / ABOUT_HEAD).write_text(json.dumps(about, indent=1, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")
    ground.extra = {HEAD: head / HEAD, ABOUT_HEAD: head / ABOUT_HEAD}
    ground.name = name
    if had_predictor:
        ground.left_out.append("the predictors on sequences and their combination with the language model")
    if count > 1:
        ground.left_out.append(f"{count - 1} of {count} trained networks")
    files = checkpoint.resolve_model(str(place), workdir=workdir)
    again = checkpoint.load_model(files)
    config = HeadConfig(**bundle.manifest["head"])
    made = build_head(config)
    made.load_state_dict(tensors.load_torch(head / HEAD))
    raw = fine_tuned.raw_answers(
        again, as_network(again, again.model, made, frozen=True).eval(), bundle.task, asked, sites, window=window,
        budget=fine_tuned.DEFAULT_BUDGET,
    )
    after = torch.from_numpy(_calibrated(raw, about))
    ground.checks.append(
        comparison.compare(
            "answers of encoder and head, as the bundle gives them", [after], [torch.from_numpy(before)], dtype, name
        )
    )
    return ground


def _about(bundle: fine_tuned.FineTunedBundle, chosen: fine_tuned.Member) -> dict[str, Any]:
    """What somebody needs to answer with the head."""
    task = bundle.task
    about: dict[str, Any] = {
        "level": task.level, "target": task.target, "classes": list(task.classes), "positive": task.positive,
        **threshold_fields(bundle.threshold), "temperature": chosen.temperature, "mean": chosen.mean,
        "sd": chosen.sd, "window": bundle.window, "head": bundle.manifest["head"], "bundle": bundle.name,
        "seed": chosen.seed, "fold": chosen.fold,
    }
    about["answers"] = (
        "softmax(outputs / temperature), columns in the order of classes" if task.target == "class"
        else "outputs * sd + mean"
    )
    return about


def _calibrated(raw: Any, about: Mapping[str, Any]) -> Any:
    from scipy.special import softmax

    if about["target"] == "number":
        return raw * about["sd"] + about["mean"]
    return softmax(raw / about["temperature"], axis=1)


