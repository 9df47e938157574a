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
from plm.model.checkpoint import LoadedModel
from plm.model.families import ModelFamily

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
        chosen = _pattern([*(settings.targets or _ia3_targets(loaded.family))])
        config = peft.IA3Config(
            target_modules=chosen, feedforward_modules=_pattern([*loaded.family.feedforward_targets])
        )
    else:
        config = peft.LoraConfig(
            r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout, bias="none",
            target_modules=list(settings.targets or loaded.family.attention_targets),
            use_dora=settings.method == "dora",
        )  # fmt: skip
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


def _pattern(names: Sequence[str]) -> str:
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
                f"The model has no linear layer named {target!r}",
                where="--targets",
                fix=f"Choose among {', '.join(linear_layers(model))}",
            )


def trainable_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of the trainable parameters on the CPU, by name."""
    return {name: p.detach().cpu().clone() for name, p in model.named_parameters() if p.requires_grad}


def load_trainable_state(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Puts back what :func:`trainable_state` gave.

    Raises:
        ValueError: The names differ: the state belongs to another network.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if parameters.keys() != state.keys():
        raise ValueError("the stored weights belong to another network")
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


def load_adapter(model: Any, folder: Path, name: str = "default") -> Any:
    """Adds the adapter in ``folder`` under ``name`` to a model or to its PEFT wrapper, for inference.

    Raises:
        UserError: The adapter does not fit the model.
    """
    import peft

    try:
        if isinstance(model, peft.PeftModel):
            model.load_adapter(str(folder), name, is_trainable=False)
            return model
        return peft.PeftModel.from_pretrained(model, str(folder), adapter_name=name, is_trainable=False)
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"The bundle's adapter does not fit the model: {reason}") from error
