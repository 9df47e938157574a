"""ESM-1b, ESM-1v and ESM-2 in fair-esm's files, read as Hugging Face checkpoints.

fair-esm keeps a model as ``NAME.pt`` (settings and weights) and its regression from attention maps to contacts in
``NAME-contact-regression.pt``. ESM-2's weights of the encoder begin with ``encoder.sentence_encoder.`` or
``encoder.``, those of its language-model head with ``encoder.``; so do ESM-1b's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from plm.errors import UserError
from plm.model.families import EsmFamily
from plm.model.families.esm2 import ESM2_VOCABULARY, write_esm2_tokenizer
from plm.model.families.family import KIND
from plm.model.named_weights import (
    Shape,
    Weights,
    check_finite,
    depth,
    only_tensors,
    stored_as,
    take,
    write_checkpoint,
)
from plm.received.documents import one_line
from plm.received.fields import Fields
from plm.received.training_checkpoints import read_training_checkpoint

INSIDE, ON_TOP = "encoder.sentence_encoder.", "encoder."
"""What the names of the encoder's weights and of its head's begin with in published files."""
PREFIXES = (INSIDE, ON_TOP, "sentence_encoder.")
REGRESSION = "-contact-regression.pt"
_FIX = "Give a .pt file of fair-esm as it was published"
_ARCHITECTURES = {"protein_bert_base": "ESM-1", "msa_transformer": "MSA Transformer"}
_CONTACTS = "contact_head.regression"
_MASK, _PADDING = ESM2_VOCABULARY.index("<mask>"), ESM2_VOCABULARY.index("<pad>")
THETA = 10_000.0
POSITIONS = "esm.embeddings.position_embeddings.weight"
"""The table of learned positions, in transformers."""
_LAYER = {
    "self_attn.q_proj": "attention.self.query",
    "self_attn.k_proj": "attention.self.key",
    "self_attn.v_proj": "attention.self.value",
    "self_attn.out_proj": "attention.output.dense",
    "self_attn_layer_norm": "attention.LayerNorm",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
    "final_layer_norm": "LayerNorm",
}
"""Parts of a layer, in fair-esm and in transformers."""


@dataclass(frozen=True)
class EsmShape:
    """What decides the names and shapes of an ESM's weights.

    Attributes:
        layers: Number of transformer layers.
        hidden: Width of a residue's representation.
        heads: Attention heads of a layer.
        feedforward: Width in the middle of a layer.
        positions: Rows of the table of learned positions, or 0 for rotary ones (ESM-2).
        norm_before: Whether a layer norm comes before the first layer.
        token_dropout: Whether embeddings are scaled by the share of masked tokens.
    """

    layers: int
    hidden: int
    heads: int
    feedforward: int
    positions: int
    norm_before: bool
    token_dropout: bool

    @property
    def title(self) -> str:
        return "ESM-1b or ESM-1v" if self.positions else "ESM-2"

    def names(self) -> dict[str, tuple[str, Shape]]:
        """fair-esm's name of each of the model's weights, to transformers' and the shape."""
        wide, inner = self.hidden, self.feedforward
        shapes: dict[str, tuple[int, int]] = {
            "self_attn.q_proj": (wide, wide), "self_attn.k_proj": (wide, wide), "self_attn.v_proj": (wide, wide),
            "self_attn.out_proj": (wide, wide), "fc1": (inner, wide), "fc2": (wide, inner),
        }
        vocabulary = len(ESM2_VOCABULARY)
        names: dict[str, tuple[str, Shape]] = {
            "embed_tokens.weight": ("esm.embeddings.word_embeddings.weight", (vocabulary, wide)),
            "lm_head.bias": ("lm_head.bias", (vocabulary,)),
            "lm_head.dense.weight": ("lm_head.dense.weight", (wide, wide)),
            "lm_head.dense.bias": ("lm_head.dense.bias", (wide,)),
        }
        if self.positions:
            names["embed_positions.weight"] = (POSITIONS, (self.positions, wide))
        norms = {"emb_layer_norm_after": "esm.encoder.emb_layer_norm_after", "lm_head.layer_norm": "lm_head.layer_norm"}
        if self.norm_before:
            norms["emb_layer_norm_before"] = "esm.embeddings.layer_norm"
        for theirs, ours in norms.items():
            names |= {f"{theirs}.{kind}": (f"{ours}.{kind}", (wide,)) for kind in ("weight", "bias")}
        for layer in range(self.layers):
            for theirs, ours in _LAYER.items():
                matrix = shapes.get(theirs)
                for kind in ("weight", "bias"):
                    shape: Shape = (wide,) if matrix is None else matrix if kind == "weight" else matrix[:1]
                    names[f"layers.{layer}.{theirs}.{kind}"] = (f"esm.encoder.layer.{layer}.{ours}.{kind}", shape)
        return names

    def contacts(self) -> dict[str, Shape]:
        """Shapes of the contact regression."""
        return {f"{_CONTACTS}.weight": (1, self.layers * self.heads), f"{_CONTACTS}.bias": (1,)}

    def config(self) -> dict[str, Any]:
        """The config.json of such a model."""
        return {
            KIND: EsmFamily.kind, "architectures": [EsmFamily.language_model_class], "vocab_size": len(ESM2_VOCABULARY),
            "hidden_size": self.hidden, "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "intermediate_size": self.feedforward, "max_position_embeddings": self.positions or 1026,
            "position_embedding_type": "absolute" if self.positions else "rotary", "layer_norm_eps": 1e-5,
            "emb_layer_norm_before": self.norm_before, "token_dropout": self.token_dropout,
            "mask_token_id": _MASK, "pad_token_id": _PADDING, "eos_token_id": ESM2_VOCABULARY.index("<eos>"),
            "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "tie_word_embeddings": True,
            "rope_theta": THETA, "initializer_range": 0.02, "hidden_act": "gelu", "use_cache": False,
        }


def is_fair_esm(content: Mapping[str, Any]) -> bool:
    """Whether the content of a ``.pt`` file is laid out as fair-esm's are: settings of its trainer, flat weights."""
    weights = content.get("model")
    flat = isinstance(weights, Mapping) and any(isinstance(value, torch.Tensor) for value in weights.values())
    return flat and (_settings(content) is not None or is_regression(content))


def is_regression(content: Mapping[str, Any]) -> bool:
    """Whether the content of a ``.pt`` file is a contact regression alone."""
    weights = content.get("model")
    return isinstance(weights, Mapping) and bool(weights) and all(str(name).startswith(_CONTACTS) for name in weights)


def _settings(content: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Settings of the model: of the newer trainer (ESM-2) in ``cfg.model``, of the older one (ESM-1b) in ``args``."""
    inside = content.get("cfg")
    newer = inside.get("model") if isinstance(inside, Mapping) else None
    settings = newer if isinstance(newer, Mapping) else content.get("args")
    return settings if isinstance(settings, Mapping) else None


@dataclass(frozen=True)
class FairEsmModel:
    """A model of fair-esm under transformers' names.

    Attributes:
        shape: Sizes of the model.
        weights: The model's tensors, in the types that they are stored in.
        rest: Tensors that nothing is known of, under their own names.
        left_out: Parts of the file that a model does without.
        notes: What is to be said besides.
    """

    shape: EsmShape
    weights: Weights
    rest: Weights
    left_out: list[str]
    notes: list[str]

    def write(self, folder: Path, dtype: str = "keep") -> None:
        """Writes it as a Hugging Face checkpoint; ``dtype`` is the type of the stored weights, or ``keep``."""
        write_checkpoint(folder, self.shape.config(), stored_as(self.weights, dtype))
        write_esm2_tokenizer(folder)


def read_fair_esm(content: Mapping[str, Any], regression: Path | None, name: str) -> FairEsmModel:
    """Reads a model of fair-esm.

    Args:
        content: From :func:`plm.received.training_checkpoints.read_training_checkpoint`.
        regression: File with the contact regression, if it came by itself.
        name: What messages call the model.

    Raises:
        UserError: Another architecture, or weights that are missing, of another shape, or not finite.
    """
    shape, weights = described(content, name)
    if regression is not None:
        read = read_training_checkpoint(regression, regression.name)
        if not is_regression(read):
            raise UserError(
                "The file holds no contact regression", where=regression.name, fix=f"Give the model's NAME{REGRESSION}"
            )
        weights |= only_tensors(read["model"], "The contact regression", regression.name)
    notes = _tied(weights, name, zeroed=bool(shape.positions))
    names, contacts = shape.names(), shape.contacts()
    wanted = {theirs: size for theirs, (_, size) in names.items()}
    has_contacts = any(theirs in weights for theirs in contacts)
    taken, rest = take(weights, wanted | (contacts if has_contacts else {}), name)
    check_finite(taken, name)
    rotary = [theirs for theirs in rest if theirs.endswith(".rot_emb.inv_freq")]
    notes += _rounded(rest, rotary, shape, name)
    made = {names[theirs][0] if theirs in names else f"esm.{theirs}": value for theirs, value in taken.items()}
    left_out = [f"{len(rotary)} rotary frequencies (computed anew)"] if rotary else []
    left_out += [f"{part} of the training" for part in _parts(content)]
    if not has_contacts:
        notes.append("The input holds no contact regression: contacts cannot be predicted with the result.")
    return FairEsmModel(shape, made, {one: value for one, value in rest.items() if one not in rotary}, left_out, notes)


def described(content: Mapping[str, Any], name: str) -> tuple[EsmShape, Weights]:
    """The shape of a model of fair-esm, and its weights without the beginnings of their names.

    Raises:
        UserError: Another architecture, or settings that do not fit the weights.
    """
    settings = _settings(content)
    if settings is None:
        what = "a contact regression alone" if is_regression(content) else "no model of fair-esm"
        raise UserError(f"The file holds {what}", where=name, fix=_FIX)
    said = {re.sub("^.*?encoder_", "", str(key)): value for key, value in settings.items()}
    newer = isinstance(content.get("cfg"), Mapping)
    kind = one_line(str(said.get("arch", "")), 40)
    if not newer and kind != "roberta_large":
        raise UserError(
            f"The checkpoint's architecture ({_ARCHITECTURES.get(kind, kind or 'none')}) is none that is converted",
            where=name, fix="Give ESM-1b, ESM-1v or ESM-2",
        )
    weights: Weights = {}
    for theirs, value in only_tensors(content["model"], "The checkpoint", name).items():
        own = next((theirs[len(one) :] for one in PREFIXES if theirs.startswith(one)), theirs)
        if own in weights:
            raise UserError(f"The checkpoint holds {one_line(own, 80)} twice", where=name, fix=_FIX)
        weights[own] = value
    embeddings, inner = weights.get("embed_tokens.weight"), weights.get("layers.0.fc1.weight")
    layers = depth(weights, "layers.")
    if embeddings is None or inner is None or embeddings.ndim != 2 or inner.ndim != 2:
        lacking = "embed_tokens.weight" if embeddings is None or embeddings.ndim != 2 else "layers.0.fc1.weight"
        raise UserError(f"The checkpoint lacks the matrix {lacking}", where=name, fix=_FIX)
    fields = Fields(said, "The checkpoint's settings", name, _FIX)
    heads = fields.whole("attention_heads", 1, 10_000)
    hidden, feedforward = int(embeddings.shape[1]), int(inner.shape[0])
    positions = 0 if newer else _positions(weights, name)
    sizes = {"layers": layers, "embed_dim": hidden, "ffn_embed_dim": feedforward}
    for field, value in (sizes if newer else sizes | {"max_positions": positions - _PADDING - 1}).items():
        stored = fields.whole(field, 1, 10_000_000, default=value)
        if stored != value:
            raise UserError(
                f"The checkpoint's settings say {field} {stored} where the weights have {value}", where=name, fix=_FIX
            )
    if hidden % heads:
        raise UserError(f"{hidden} numbers cannot be divided among {heads} attention heads", where=name, fix=_FIX)
    if newer and feedforward != 4 * hidden:
        raise UserError(
            f"layers.0.fc1.weight is {feedforward} wide, where ESM-2 has four times {hidden}", where=name, fix=_FIX
        )
    shape = EsmShape(
        layers, hidden, heads, feedforward, positions,
        not newer and any(one.startswith("emb_layer_norm_before") for one in weights),
        bool(said.get("token_dropout", False)),
    )
    return shape, weights


def _positions(weights: Weights, name: str) -> int:
    """Rows of the table of learned positions."""
    table = weights.get("embed_positions.weight")
    positions = int(table.shape[0]) if table is not None and table.ndim == 2 else 0
    if positions <= _PADDING + 3:
        raise UserError("The checkpoint lacks the table embed_positions.weight", where=name, fix=_FIX)
    return positions


def _tied(weights: Weights, name: str, *, zeroed: bool) -> list[str]:
    """Brings the embeddings and the head's matrix together, which are one in every ESM; remarks."""
    embeddings, head = weights["embed_tokens.weight"], weights.pop("lm_head.weight", None)
    notes = []
    if head is not None:
        same = embeddings.shape == head.shape and embeddings.dtype == head.dtype
        rows = [row for row in range(embeddings.shape[0]) if not (zeroed and row == _MASK)]
        if not same or not torch.equal(embeddings[rows], head[rows]):
            raise UserError(
                "lm_head.weight differs from embed_tokens.weight, which are one matrix in every ESM", where=name,
                fix=_FIX,
            )
    if zeroed and embeddings.ndim == 2 and embeddings.shape[0] > _MASK and bool(embeddings[_MASK].any()):
        weights["embed_tokens.weight"] = embeddings.clone()
        weights["embed_tokens.weight"][_MASK] = 0
        notes.append("The embedding of the mask is set to zero, as fair-esm does whenever it reads such a model.")
    return notes


def frequencies(shape: EsmShape) -> torch.Tensor:
    """Rotary frequencies, (half of a head's width,) float32."""
    width = shape.hidden // shape.heads
    return 1.0 / (THETA ** (torch.arange(0, width, 2).float() / width))


def _rounded(rest: Weights, names: list[str], shape: EsmShape, where: str) -> list[str]:
    """A remark if the file's rotary frequencies are not those that are computed."""
    wanted, worst = frequencies(shape), 0.0
    for name in names:
        if rest[name].shape != wanted.shape:
            raise UserError(
                f"{one_line(name, 80)} has the shape {tuple(rest[name].shape)} where {tuple(wanted.shape)} belongs",
                where=where, fix=_FIX,
            )
        worst = max(worst, float(((rest[name].float() - wanted) / wanted).abs().max()))
    if worst <= 1e-6:
        return []
    return [f"The file's rotary frequencies differ by up to {worst:.1g} (relative) from exact ones, which are used."]


def _parts(content: Mapping[str, Any]) -> list[str]:
    return sorted(one_line(str(part), 40) for part in content if part not in ("model", "cfg", "args"))


def regression_beside(path: Path) -> Path | None:
    """The contact regression that lies beside a model's file under fair-esm's name for it."""
    place = path.with_name(path.stem + REGRESSION)
    return place if place.is_file() else None


def read_files(files: Sequence[Path], name: str) -> FairEsmModel:
    """The model in some ``.pt`` files.

    Args:
        files: A model, and perhaps its contact regression; that of a single file may lie beside it.
        name: What messages call the model.

    Raises:
        UserError: None or several models, files of other programs; damaged, unsafe, or incomplete.
    """
    models, regressions = [], []
    for path in files:
        content = read_training_checkpoint(path, path.name)
        if is_regression(content):
            regressions.append(path)
        elif is_fair_esm(content):
            models.append((path, content))
        else:
            raise UserError(
                "The file holds no model of fair-esm", where=path.name,
                fix="Make a zip of a Hugging Face folder of it: plm_convert --to hugging-face",
            )
    if len(models) != 1 or len(regressions) > 1:
        raise UserError(
            f"The input holds {len(models)} models of fair-esm and {len(regressions)} contact regressions", where=name,
            fix="Give one model, and its contact regression",
        )
    path, content = models[0]
    return read_fair_esm(content, regressions[0] if regressions else regression_beside(path), name)
