"""The fields of a checkpoint's ``config.json`` that are acted on: by type and range, compared with the weights.

transformers never sees a stranger's configuration. Each family lists the fields that decide what its models compute;
from these alone a configuration is made. Everything else in the file is left where it is.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from plm.errors import UserError
from plm.model.families import ModelFamily
from plm.received.documents import one_line
from plm.received.fields import Fields, shown

Shapes = Mapping[str, tuple[int, ...]]
_NEEDED: Any = object()
_FIX = "Use the config.json that was published with the model"


@dataclass(frozen=True)
class _Setting:
    """One field: its kind, range and what it is where the file does not say."""

    kind: Literal["whole", "number", "flag", "text"]
    low: float = 0
    high: float = 0
    default: Any = _NEEDED
    choices: tuple[str, ...] = ()
    above: bool = False

    def read(self, fields: Fields, name: str) -> Any:
        if self.default is not _NEEDED and name not in fields:  # null is as good as nothing
            return self.default
        if self.kind == "whole":
            return fields.whole(name, int(self.low), int(self.high))
        if self.kind == "number":
            return fields.number(name, self.low, self.high, above=self.above)
        if self.kind == "flag":
            return fields.flag(name)
        return fields.text(name, choices=self.choices)


def _sizes(default: Any = _NEEDED, high: float = 1_000_000) -> _Setting:
    return _Setting("whole", 1, high, default)


_DROPOUT = _Setting("number", 0, 0.99, 0.1)
_ESM: dict[str, _Setting] = {
    "vocab_size": _sizes(), "hidden_size": _sizes(768), "num_hidden_layers": _sizes(12, 10_000),
    "num_attention_heads": _sizes(12, 10_000), "intermediate_size": _sizes(3072),
    "max_position_embeddings": _sizes(1026, 10_000_000),
    "position_embedding_type": _Setting("text", default="absolute", choices=("rotary", "absolute")),
    "rope_theta": _Setting("number", 1, 1e9, 10_000.0),
    "layer_norm_eps": _Setting("number", 0, 1e-2, 1e-12, above=True),
    "hidden_dropout_prob": _DROPOUT, "attention_probs_dropout_prob": _DROPOUT,
    "initializer_range": _Setting("number", 0, 10, 0.02),
    "emb_layer_norm_before": _Setting("flag", default=False), "token_dropout": _Setting("flag", default=False),
    "tie_word_embeddings": _Setting("flag", default=True),
    "mask_token_id": _Setting("whole", 0, 1_000_000, None), "pad_token_id": _Setting("whole", 0, 1_000_000, None),
}  # fmt: skip
_RARE = "BOUZ"
_ACTIVATIONS = ("relu", "gelu", "gelu_new", "silu", "gated-gelu", "gated-silu", "gated-relu")
_T5: dict[str, _Setting] = {
    "vocab_size": _sizes(32128), "d_model": _sizes(512), "d_kv": _sizes(64), "d_ff": _sizes(2048),
    "num_layers": _sizes(6, 10_000), "num_heads": _sizes(8, 10_000),
    "relative_attention_num_buckets": _sizes(32), "relative_attention_max_distance": _sizes(128),
    "dropout_rate": _DROPOUT, "layer_norm_epsilon": _Setting("number", 0, 1e-2, 1e-6, above=True),
    "initializer_factor": _Setting("number", 0, 1000, 1.0),
    "feed_forward_proj": _Setting("text", default="relu", choices=_ACTIVATIONS),
    "pad_token_id": _Setting("whole", 0, 1_000_000, 0), "eos_token_id": _Setting("whole", 0, 1_000_000, 1),
}  # fmt: skip
_TYPES = {"esm2": ("esm", _ESM), "esm1b": ("esm", _ESM), "prott5": ("t5", _T5)}
_OTHER_MODELS = ("is_decoder", "add_cross_attention", "is_folding_model")


def settings_of(config: Mapping[str, Any], family: ModelFamily, where: str) -> dict[str, Any]:
    """The fields that are acted on, all of them, with ``model_type``.

    Args:
        config: Content of ``config.json``.
        family: Of the model.
        where: What messages call the model.

    Raises:
        UserError: A field is of a wrong type or out of range, or asks for another kind of model.
    """
    fields = Fields(config, "config.json", where, _FIX)
    kind, known = _TYPES[family.name]
    found: dict[str, Any] = {name: setting.read(fields, name) for name, setting in known.items()}
    if kind == "esm":
        for name in _OTHER_MODELS:
            if config.get(name):
                raise UserError(
                    f"config.json asks for another kind of model ({name} is {shown(config[name])})", where=where,
                    fix="Use an encoder",
                )  # fmt: skip
        found["rope_theta"] = _theta(fields, found["rope_theta"], where)
        width, heads = found["hidden_size"], found["num_attention_heads"]
        if width % heads or (found["position_embedding_type"] == "rotary" and (width // heads) % 2):
            raise UserError(
                f"config.json says that {width} numbers are divided among {heads} attention heads, which they cannot",
                where=where, fix=_FIX,
            )  # fmt: skip
    for name in ("mask_token_id", "pad_token_id", "eos_token_id"):
        if found.get(name) is not None and found[name] >= found["vocab_size"]:
            raise UserError(f"config.json says {name} {found[name]}, which is no token", where=where, fix=_FIX)
    return {"model_type": kind, **found}


def _theta(fields: Fields, theta: float, where: str) -> float:
    """The base of the rotary frequencies; newer versions of transformers write it into an object."""
    for name in ("rope_parameters", "rope_scaling"):
        if name not in fields:
            continue
        inside = fields.inside(name)
        if inside.content.get("rope_type", inside.content.get("type", "default")) != "default":
            raise UserError(
                f"config.json asks for rotary positions of another kind ({name})", where=where, fix="Use ESM-2"
            )
        theta = inside.number("rope_theta", 1, 1e9, default=theta)
    return theta


def check_weights(settings: Mapping[str, Any], shapes: Shapes, where: str) -> None:
    """Compares the sizes in a configuration with the shapes of the weights, before anything is built.

    What is missing altogether is told when the weights are loaded.

    Args:
        settings: From :func:`settings_of`.
        shapes: Names and shapes of the weights.
        where: What messages call the model.

    Raises:
        UserError: Names the first field that says something else than the weights.
    """
    esm = settings["model_type"] == "esm"
    layer = re.compile(r"(?:^|\.)encoder\.(?:layer|block)\.(\d{1,9})\.")
    layers = {int(match[1]) for name in shapes if (match := layer.search(name))}
    depth = "num_hidden_layers" if esm else "num_layers"
    found: dict[str, int] = {}
    if layers:
        found[depth] = max(layers) + 1
    if esm:
        wanted = {
            "embeddings.word_embeddings.weight": ("vocab_size", "hidden_size"),
            "encoder.layer.0.intermediate.dense.weight": ("intermediate_size", "hidden_size"),
        }  # fmt: skip
        if settings["position_embedding_type"] == "absolute":
            wanted["embeddings.position_embeddings.weight"] = ("max_position_embeddings", "hidden_size")
    else:
        wanted = {
            "shared.weight": ("vocab_size", "d_model"), "encoder.embed_tokens.weight": ("vocab_size", "d_model"),
            "encoder.block.0.layer.1.DenseReluDense.wi.weight": ("d_ff", "d_model"),
            "encoder.block.0.layer.1.DenseReluDense.wi_0.weight": ("d_ff", "d_model"),
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (
                "relative_attention_num_buckets", "num_heads",
            ),
        }  # fmt: skip
    by_end = {end: name for name in shapes for end in wanted if name == end or name.endswith("." + end)}
    for end, fields in wanted.items():
        if end in by_end and len(shapes[by_end[end]]) == len(fields):
            for field, value in zip(fields, shapes[by_end[end]], strict=True):
                found.setdefault(field, value)
    held = sum(math.prod(shape) for shape in shapes.values())
    if layers and found.get(depth) == settings[depth] and _numbers(settings) > 2 * held + 1_000_000:
        raise UserError(
            f"config.json describes a model of about {_numbers(settings):,} numbers where the weights have {held:,}",
            where=where, fix="Use the config.json and the weights of one model",
        )  # fmt: skip
    for name, value in found.items():
        if settings[name] != value:
            raise UserError(
                f"config.json says {name} {settings[name]} where the weights have {value}", where=where,
                fix="Use the config.json and the weights of one model",
            )  # fmt: skip
    if not layers and settings[depth] > 0:
        names = sorted(shapes)
        raise UserError(
            f"The weights are none of such a model (their first is {one_line(names[0], 60) if names else 'missing'})",
            where=where, fix="Give the weights that belong to config.json",
        )  # fmt: skip
    if not esm:
        query = next((shapes[name] for name in shapes if name.endswith("block.0.layer.0.SelfAttention.q.weight")), None)
        inner = settings["num_heads"] * settings["d_kv"]
        if query is not None and query != (inner, settings["d_model"]):
            raise UserError(
                f"config.json says {inner} numbers for all attention heads where the weights have {query[0]}",
                where=where, fix="Use the config.json and the weights of one model",
            )  # fmt: skip


def _numbers(settings: Mapping[str, Any]) -> int:
    """About how many numbers the encoder has."""
    if settings["model_type"] == "esm":
        width, inner, heads = settings["hidden_size"], settings["intermediate_size"], settings["hidden_size"]
        depth, matrices = settings["num_hidden_layers"], 2
    else:
        width, inner, heads = settings["d_model"], settings["d_ff"], settings["num_heads"] * settings["d_kv"]
        depth, matrices = settings["num_layers"], 2 + settings["feed_forward_proj"].startswith("gated")
    found: int = settings["vocab_size"] * width + depth * (4 * width * heads + matrices * width * inner)
    return found


def check_tokens(settings: Mapping[str, Any], family: ModelFamily, vocabulary: Mapping[str, int], where: str) -> None:
    """Whether every token that is used has a row in the embedding table.

    Raises:
        UserError: A token is missing or its number too high.
    """
    for token, index in used_tokens(family, vocabulary, where).items():
        if index >= settings["vocab_size"]:
            raise UserError(
                f"The vocabulary gives {token!r} the number {index}, but the model knows {settings['vocab_size']} "
                "tokens", where=where, fix="Use the tokenizer files that were published with the model",
            )  # fmt: skip
    mask = settings.get("mask_token_id")
    if family.mask and mask is not None and mask != vocabulary.get(family.mask):
        raise UserError(
            f"config.json says mask_token_id {mask}, but the vocabulary gives {family.mask!r} the number "
            f"{vocabulary.get(family.mask)}", where=where, fix="Use the files of one model",
        )  # fmt: skip


def used_tokens(family: ModelFamily, vocabulary: Mapping[str, int], where: str) -> dict[str, int]:
    """The tokens that sequences are written in, and their numbers; of rare letters those that the vocabulary has.

    Raises:
        UserError: The vocabulary lacks one.
    """
    tokens = [family.token(letter) for letter in family.letter_ids(vocabulary)]
    tokens += [*family.before, *family.after, *([family.mask] if family.mask else [])]
    missing = [token for token in tokens if token not in vocabulary]
    if missing:
        raise UserError(
            f"The tokenizer of this {family.title} checkpoint lacks {', '.join(missing)}", where=where,
            fix="Use the tokenizer files that were published with the model",
        )  # fmt: skip
    tokens += [family.token(letter) for letter in _RARE if family.token(letter) in vocabulary]
    return {token: vocabulary[token] for token in tokens}


def digest(settings: Mapping[str, Any], tokens: Mapping[str, int]) -> str:
    """sha256 of all that decides answers beside the weights; other fields, blanks and order do not change it."""
    content = {"config": dict(settings), "tokens": dict(tokens)}
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def build(settings: Mapping[str, Any]) -> Any:
    """The transformers configuration made of the fields that are acted on, and nothing else."""
    import transformers

    kind = transformers.EsmConfig if settings["model_type"] == "esm" else transformers.T5Config
    return kind(**{name: value for name, value in settings.items() if name != "model_type"})
