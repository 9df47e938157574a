"""Adapters through PEFT: which layers they sit on, and their files in PEFT's own layout."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from plm.errors import UserError
from plm.model.families import ModelFamily
from plm.model.loaded import LoadedModel
from plm.received import tensors
from plm.received.documents import one_line, read_object
from plm.received.fields import Fields, shown

Method = Literal["lora", "dora", "ia3", "head_lora", "head", "full"]
METHODS: tuple[Method, ...] = ("lora", "dora", "ia3", "head_lora", "head", "full")
ADAPTERS = ("lora", "dora", "ia3")
FROZEN = ("head_lora", "head")
"""Methods that leave the encoder as it is."""
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@dataclass(frozen=True)
class AdapterSettings:
    """What of the encoder is trained.

    Attributes:
        method: ``lora``, ``dora`` and ``ia3`` train small adapters in the encoder and the head, ``head`` the head
            alone, ``head_lora`` LoRA in the linear layers of an otherwise untrained head, ``full`` everything.
        rank: r of LoRA and DoRA.
        alpha: Their scale: updates are multiplied by alpha / rank.
        dropout: In front of their first matrix.
        targets: Names of the linear layers they sit on; empty for the family's attention layers.
    """

    method: Method = "lora"
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.05
    targets: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "targets": list(self.targets)}


def add_adapters(loaded: LoadedModel, settings: AdapterSettings) -> nn.Module:
    """Puts fresh adapters on a loaded model, or freezes or thaws it; what it computes is unchanged at first.

    Adapter weights are float32, whatever the type of the model's own.

    Args:
        loaded: The model; its layers are replaced in place.
        settings: Method and sizes.

    Returns:
        The network to train: a PEFT model for adapters, else the model itself.

    Raises:
        UserError: A target names no linear layer of the model.
    """
    if settings.method in (*FROZEN, "full"):
        for parameter in loaded.model.parameters():
            parameter.requires_grad_(settings.method == "full")
        return loaded.model
    import peft

    _check_targets(loaded.model, settings.targets)
    config: Any
    if settings.method == "ia3":
        chosen = layer_pattern([*(settings.targets or _ia3_targets(loaded.family))])
        config = peft.IA3Config(
            target_modules=chosen, feedforward_modules=layer_pattern([*loaded.family.feedforward_targets])
        )
    else:
        config = peft.LoraConfig(
            r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout, bias="none",
            target_modules=list(settings.targets or loaded.family.attention_targets),
            use_dora=settings.method == "dora",
        )
    from plm.model import low_rank

    wrapped: Any = peft.get_peft_model(loaded.model, config)
    low_rank.lean(wrapped)
    # PEFT records the path of the folder on this machine.
    wrapped.peft_config["default"].base_model_name_or_path = loaded.files.id
    return wrapped


def add_head_adapters(head: nn.Module, settings: AdapterSettings) -> None:
    """Freezes a head in place and puts LoRA into each of its linear layers; it computes the same at first."""
    import peft

    layers = [name for name, module in head.named_modules() if isinstance(module, nn.Linear)]
    config: Any = peft.LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout, bias="none", target_modules=layers
    )
    peft.inject_adapter_in_model(config, head)


def merge_head_adapters(head: nn.Module) -> None:
    """Adds what :func:`add_head_adapters` trained to the head's own weights, in place: it is a plain head again."""
    from peft.tuners.lora import LoraLayer

    for name, layer in [(name, module) for name, module in head.named_modules() if isinstance(module, LoraLayer)]:
        layer.merge()
        above, _, own = name.rpartition(".")
        setattr(head.get_submodule(above), own, layer.get_base_layer())


def _ia3_targets(family: ModelFamily) -> Sequence[str]:
    return (*family.key_value_targets, *family.feedforward_targets)


def layer_pattern(names: Sequence[str]) -> str:
    """The expression that finds layers whose names end so."""
    return rf"(.*\.)?({'|'.join(names)})"


def linear_layers(model: nn.Module) -> list[str]:
    """The last parts of the names of a model's linear layers, sorted."""
    names = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    return sorted({re.sub(r".*\.\d+\.", "", name) for name in names})


def _check_targets(model: nn.Module, targets: Sequence[str]) -> None:
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for target in targets:
        if not any(name == target or name.endswith("." + target) for name in layers):
            raise UserError(
                f"The model has no linear layer named {target!r}", where="--targets",
                fix=f"Choose among {', '.join(linear_layers(model))}",
            )


def trainable_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of the trainable parameters on the CPU, by name."""
    return {name: p.detach().cpu().clone() for name, p in model.named_parameters() if p.requires_grad}


def load_trainable_state(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Puts back what :func:`trainable_state` gave.

    Raises:
        UserError: Names or shapes differ: the state belongs to another network.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    tensors.check_shapes(
        {name: tuple(value.shape) for name, value in state.items()},
        {name: tuple(value.shape) for name, value in parameters.items()},
        "The checkpoint's weights", "checkpoint", "Give the checkpoint as the tool wrote it",
    )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state[name])


def save_adapter(model: Any, folder: Path) -> None:
    """Writes ``adapter_model.safetensors`` and ``adapter_config.json``, byte for byte the same for the same adapter."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    save_file({name: value.detach().cpu().contiguous() for name, value in state.items()}, folder / WEIGHTS)
    config = {**model.peft_config["default"].to_dict(), "inference_mode": True}
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    (folder / CONFIG).write_text(json.dumps(plain, indent=1, sort_keys=True, default=str) + "\n")


def load_adapter(model: Any, folder: Path, name: str, family: ModelFamily) -> Any:
    """Adds the adapter in ``folder`` under ``name`` to a model or to its PEFT wrapper, for inference.

    PEFT never sees the stored configuration: one is made of the few fields that the suite itself chooses, and sizes are
    compared with the stored weights before any layer is made.

    Raises:
        UserError: The stored configuration asks for anything else, or the weights do not fit it or the model.
    """
    import peft

    stored = received_settings(folder / CONFIG, family)
    config = _peft_config(stored, family)
    shapes = tensors.shapes(folder / WEIGHTS, what="The bundle's adapter", where=WEIGHTS, fix=_AGAIN)
    base = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    tensors.check_shapes(shapes, _wanted_shapes(base, stored, family), "The bundle's adapter", CONFIG, _AGAIN)
    config.inference_mode = True
    try:
        if isinstance(model, peft.PeftModel):
            model.add_adapter(name, config)
            wrapped: Any = model
        else:
            wrapped = peft.PeftModel(model, config, adapter_name=name)
        state = tensors.load_torch(folder / WEIGHTS, what="The bundle's adapter", fix=_AGAIN, finite=True)
        result = peft.set_peft_model_state_dict(wrapped, state, adapter_name=name)
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        raise UserError(f"The bundle's adapter does not fit the model: {one_line(str(error))}", fix=_AGAIN) from error
    if result.unexpected_keys:
        extra = one_line(result.unexpected_keys[0], 80)
        raise UserError(f"The bundle's adapter does not fit the model: it has weights for {extra}", fix=_AGAIN)
    for parameter in wrapped.parameters():
        parameter.requires_grad_(False)
    wrapped.eval()
    return wrapped


_AGAIN = "Give the bundle as the suite wrote it"
_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z0-9_]+)*")
_ACTED_ON = {
    "LORA": ("peft_type", "r", "lora_alpha", "lora_dropout", "target_modules", "use_dora"),
    "IA3": ("peft_type", "target_modules", "feedforward_modules"),
}
_CONSTANT: dict[str, tuple[Any, ...]] = {
    "bias": ("none",), "init_lora_weights": (True,), "init_ia3_weights": (True,), "megatron_core": ("megatron.core",),
    "qalora_group_size": (16,), "inference_mode": (True, False), "lora_bias": (False,),
}
"""What else PEFT writes into the file, at the values that the suite's adapters have."""
_TOLD = ("peft_version", "base_model_name_or_path", "revision", "auto_mapping")
"""Fields that say where an adapter comes from; nothing is done with them."""


@dataclass(frozen=True)
class ReceivedAdapter:
    """What is read of a stored adapter's configuration.

    Attributes:
        method: ``lora``, ``dora`` or ``ia3``.
        rank: r of LoRA and DoRA; 0 for IA3.
        alpha: Their scale.
        dropout: In front of their first matrix.
        targets: Names of the layers.
    """

    method: Method
    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]


def received_settings(file: Path, family: ModelFamily) -> ReceivedAdapter:
    """Reads ``adapter_config.json`` field by field.

    Raises:
        UserError: Another kind of adapter, or a field that asks for what the suite's adapters never do.
    """
    where = CONFIG
    fields = Fields(read_object(file, where=where, fix=_AGAIN), CONFIG, where, _AGAIN)
    kind = fields.text("peft_type")
    if kind not in _ACTED_ON:
        raise UserError(
            f"The bundle's adapter is of the kind {kind[:40]!r}; only LoRA, DoRA and IA3 are read", where=where,
            fix=_AGAIN,
        )
    for name, value in fields.content.items():
        if name in _ACTED_ON[kind] or name in _TOLD:
            continue
        nothing = value is None or value is False or value in ({}, [], "")
        constant = any(type(value) is type(one) and value == one for one in _CONSTANT.get(name, ()))
        if not (nothing or constant):
            raise UserError(
                f"The bundle's adapter asks for {one_line(name, 60)} = {shown(value)}, as no adapter of the suite does",
                where=where, fix="Do not trust this file; give the bundle as the suite wrote it",
            )
    if kind == "IA3":
        targets = _names_in(fields, "target_modules", family, where)
        forward = _names_in(fields, "feedforward_modules", family, where)
        if not set(forward) <= {*family.feedforward_targets}:
            raise _no_name(forward[0], where)
        return ReceivedAdapter("ia3", 0, 0.0, 0.0, targets)
    return ReceivedAdapter(
        "dora" if fields.flag("use_dora", default=False) else "lora", fields.whole("r", 1, 65_536),
        fields.number("lora_alpha", 0, 1e9), fields.number("lora_dropout", 0, 0.999, default=0.0),
        _names_in(fields, "target_modules", family, where),
    )


def _names_in(fields: Fields, name: str, family: ModelFamily, where: str) -> tuple[str, ...]:
    """Names of layers: plain ones, or the family's own. A text is taken apart as the suite puts it together, and never
    used as the regular expression that it is."""
    value = fields.content.get(name)
    if isinstance(value, str):
        start, end = r"(.*\.)?(", ")"
        if not (value.startswith(start) and value.endswith(end) and len(value) < 10_000):
            raise _no_name(value, where)
        names = value[len(start) : -len(end)].split("|")
    else:
        names = fields.texts(name, most=1000, longest=200)
    for one in names:
        if _PLAIN_NAME.fullmatch(one) is None and one not in family.feedforward_targets:
            raise _no_name(one, where)
    if not names:
        raise UserError("The bundle's adapter names no layers", where=where, fix=_AGAIN)
    return tuple(sorted(names))


def _no_name(value: str, where: str) -> UserError:
    return UserError(
        f"The bundle's adapter names {one_line(value, 60)!r} as a layer, which is no name", where=where,
        fix="Do not trust this file; give the bundle as the suite wrote it",
    )


def _peft_config(stored: ReceivedAdapter, family: ModelFamily) -> Any:
    """The PEFT configuration of an adapter of the suite."""
    import peft

    if stored.method == "ia3":
        return peft.IA3Config(
            target_modules=layer_pattern(stored.targets),
            feedforward_modules=layer_pattern([*family.feedforward_targets]),
        )
    return peft.LoraConfig(
        r=stored.rank, lora_alpha=stored.alpha, lora_dropout=stored.dropout, bias="none",
        target_modules=list(stored.targets), use_dora=stored.method == "dora",
    )


def _wanted_shapes(base: nn.Module, stored: ReceivedAdapter, family: ModelFamily) -> dict[str, tuple[int, ...]]:
    """Names and shapes of an adapter's weights on a model, as PEFT writes them."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers: dict[str, nn.Module] = {}
    for name, module in base.named_modules():
        if isinstance(module, BaseTunerLayer):  # another member's adapter lies on it
            layers[name] = module.get_base_layer()
        elif isinstance(module, nn.Linear) and ".base_layer" not in name and ".lora_" not in name:
            layers.setdefault(name, module)
    shapes: dict[str, tuple[int, ...]] = {}
    forward = re.compile(layer_pattern([*family.feedforward_targets]))
    own = family.feedforward_targets
    chosen = re.compile(layer_pattern([one if one in own else re.escape(one) for one in stored.targets]))
    for name, layer in layers.items():
        if chosen.fullmatch(name) is None:
            continue
        out, inner = (int(extent) for extent in layer.weight.shape)
        key = f"base_model.model.{name}"
        if stored.method == "ia3":
            shapes[f"{key}.ia3_l"] = (1, inner) if forward.fullmatch(name) else (out, 1)
            continue
        shapes[f"{key}.lora_A.weight"], shapes[f"{key}.lora_B.weight"] = (stored.rank, inner), (out, stored.rank)
        if stored.method == "dora":
            shapes[f"{key}.lora_magnitude_vector"] = (out,)
    return shapes
