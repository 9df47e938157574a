"""BERT as Megatron trains it (ProteinLM and others) as Hugging Face's MegatronBERT.

A checkpoint holds its weights in nested parts (embedding, transformer, lm_head), query, key and value of a layer in one
matrix, and rows of the vocabulary that no token has. With tensor parallelism each of several files holds a part of the
heads, of the feed-forward width and of the vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from plm.errors import UserError
from plm.jobs.convert.weights import Ground
from plm.model.families import MEGATRON_BERT
from plm.model.families.family import KIND
from plm.model.families.megatron_bert import tokenizer_files
from plm.model.named_weights import Shape, Weights, check_finite, depth, only_tensors, stored_as, take, write_checkpoint
from plm.received.documents import one_line
from plm.received.fields import Fields
from plm.received.vocabularies import read_vocabulary

_FIX = "Give all files of the checkpoint as Megatron wrote them"
_RANK = re.compile(r"mp_rank_(\d{1,4})(?:_(\d{1,4}))?")
_QKV, _MERGED_ROWS, _MERGED_COLUMNS = "attention.query_key_value", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"
_LAYER = {
    "input_layernorm": "attention.ln",
    "attention.dense": "attention.output.dense",
    "post_attention_layernorm": "ln",
    "mlp.dense_h_to_4h": "intermediate.dense",
    "mlp.dense_4h_to_h": "output.dense",
}
"""Parts of a layer, in Megatron and in transformers; query, key and value beside them."""
_COLUMNS = ("attention.dense.weight", "mlp.dense_4h_to_h.weight")
_ROWS = (f"{_QKV}.weight", f"{_QKV}.bias", "mlp.dense_h_to_4h.weight", "mlp.dense_h_to_4h.bias")
"""What partitions hold parts of, by columns and by rows; everything else lies in each of them alike."""
ORDERS = {"0": "all queries, all keys, all values", "1": "by head and number", "2": "by head"}
"""How the rows of a fused matrix follow each other, by version of the checkpoint."""


@dataclass(frozen=True)
class MegatronShape:
    """What decides the names and shapes of the weights.

    Attributes:
        layers: Number of transformer layers.
        hidden: Width of a residue's representation.
        heads: Attention heads of a layer, over all partitions.
        feedforward: Width in the middle of a layer.
        rows: Rows of the embedding, those without a token included.
        positions: Rows of the table of positions.
        types: Token types, or 0.
        partitions: Files.
        version: Key of :data:`ORDERS`.
        epsilon: Of the layer norms.
        activation: Name of the feed-forward half's nonlinearity in transformers.
    """

    layers: int
    hidden: int
    heads: int
    feedforward: int
    rows: int
    positions: int
    types: int
    partitions: int
    version: str
    epsilon: float
    activation: str


def is_megatron(content: Mapping[str, Any]) -> bool:
    """Whether the content of a ``.pt`` file is laid out as Megatron's checkpoints are: weights in nested parts."""
    model = content.get("model")
    return isinstance(model, Mapping) and isinstance(model.get("language_model"), Mapping)


def read_megatron(
    contents: Sequence[tuple[Path, Mapping[str, Any]]], vocabulary: Path | None, name: str, folder: Path, dtype: str, *,
    version: str = "auto", heads: int = 0,
) -> tuple[Ground, MegatronShape, list[Weights]]:
    """Lays a Megatron checkpoint out as a Hugging Face one.

    Args:
        contents: Files and what lies in them.
        vocabulary: vocab.txt, one token a line.
        name: What messages call the model.
        folder: Gets the checkpoint.
        dtype: Type of the stored weights, or ``keep``.
        version: Key of :data:`ORDERS`, or ``auto``: as the checkpoint says.
        heads: Attention heads, where the checkpoint does not say; 0: it must.

    Returns:
        The checkpoint, its shape, and the weights of each partition by Megatron's names.

    Raises:
        UserError: Partitions, weights or tokens that are missing or do not fit, or another architecture.
    """
    tokens = _tokens(vocabulary, name)
    ordered = _in_order(contents, name)
    partitions = [_flat(content["model"], _shown(path)) for path, content in ordered]
    notes, left_out, rest = _others(ordered, partitions)
    shape = _shape(ordered, partitions, name, version, heads, notes)
    if len(tokens) > shape.rows:
        raise UserError(
            f"The vocabulary has {len(tokens)} tokens, the embedding {shape.rows} rows", where=name,
            fix="Give the vocab.txt that the model was trained with",
        )
    checked = []
    for number, weights in enumerate(partitions):
        taken, unknown = take(weights, _wanted(shape, "lm_head.bias" in weights), _shown(ordered[number][0]))
        check_finite(taken, _shown(ordered[number][0]))
        checked.append(taken)
        beginning = f"partition {number}: " if len(partitions) > 1 else ""
        rest |= {beginning + key: value for key, value in unknown.items()}
    merged = _merged(checked, shape, name)
    made = _renamed(merged, shape, len(tokens))
    ground = Ground(folder, name, f"Megatron checkpoint ({_count(len(partitions))})", notes, left_out, rest)
    ground.taken = sum(map(len, checked))
    if shape.rows > len(tokens):
        ground.left_out.append(f"{shape.rows - len(tokens)} rows of the embedding that no token has (padding)")
    if not shape.types:
        ground.notes.append("The model knows no token types; the table that the class asks for holds zeros.")
    if "lm_head.bias" not in merged:
        ground.notes.append("The input holds no language-model head: the result is an encoder.")
    config = {
        KIND: MEGATRON_BERT.kind, "vocab_size": len(tokens), "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads, "intermediate_size": shape.feedforward,
        "max_position_embeddings": shape.positions, "type_vocab_size": max(shape.types, 1),
        "layer_norm_eps": shape.epsilon, "hidden_act": shape.activation, "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1, "initializer_range": 0.02, "tie_word_embeddings": True,
        "pad_token_id": tokens.index("[PAD]") if "[PAD]" in tokens else 0, "use_cache": False,
        "architectures": [
            MEGATRON_BERT.language_model_class if "lm_head.bias" in merged else MEGATRON_BERT.encoder_class
        ],
    }
    write_checkpoint(folder, config, stored_as(made, dtype))
    for file, text in tokenizer_files(tokens).items():
        (folder / file).write_text(text, encoding="utf-8")
    return ground, shape, checked


def _count(partitions: int) -> str:
    return "one partition" if partitions == 1 else f"{partitions} tensor-parallel partitions"


def _shown(path: Path) -> str:
    return f"{path.parent.name}/{path.name}" if _RANK.search(path.parent.name) else path.name


def _tokens(vocabulary: Path | None, name: str) -> list[str]:
    if vocabulary is None:
        raise UserError(
            "A Megatron checkpoint does not hold its tokens", where=name,
            fix="Give the vocab.txt that the model was trained with (--vocabulary, or beside the checkpoint)",
        )
    if not vocabulary.is_file():
        raise UserError("The vocabulary does not exist", where=str(vocabulary), fix="Check the path")
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as place:  # the reader goes by the file's name
        (Path(place) / "vocab.txt").symlink_to(vocabulary.resolve())
        numbered = read_vocabulary(Path(place), vocabulary.name)
    return sorted(numbered, key=numbered.__getitem__)


def _in_order(
    contents: Sequence[tuple[Path, Mapping[str, Any]]], name: str
) -> list[tuple[Path, Mapping[str, Any]]]:
    """Partitions by the rank in their names, as given where names say nothing."""
    ranks: list[int] = []
    for path, _ in contents:
        match = _RANK.search(f"{path.parent.name}/{path.name}")
        if match is not None and match[2] is not None and int(match[2]) > 0:
            raise UserError(
                "The checkpoint is divided by layers (pipeline parallel), which is not merged", where=_shown(path),
                fix="Merge its pipeline stages with Megatron's own tools",
            )
        if match is not None:
            ranks.append(int(match[1]))
    if ranks and len(ranks) != len(contents):
        raise UserError("Some partitions have a rank in their names and some have not", where=name, fix=_FIX)
    twice = next((rank for rank in ranks if ranks.count(rank) > 1), None)
    if twice is not None:
        raise UserError(f"The partition of rank {twice} comes twice", where=name, fix=_FIX)
    missing = sorted(set(range(max(ranks, default=-1) + 1)) - set(ranks))
    if missing:
        raise UserError(f"The partition of rank {missing[0]} is missing", where=name, fix=_FIX)
    if not ranks:
        return list(contents)
    return [contents[ranks.index(rank)] for rank in sorted(ranks)]


def _flat(model: Mapping[str, Any], where: str) -> Weights:
    """Tensors of nested parts by names with dots; older names of parts as newer ones."""
    weights: Weights = {}

    def walk(part: Mapping[str, Any], beginning: str) -> None:
        for key, value in part.items():
            named = f"{beginning}{key}"
            if isinstance(value, Mapping):
                walk(value, f"{named}.")
            elif isinstance(value, torch.Tensor):
                named = named.removeprefix("language_model.")
                for old, new in (("transformer.", "encoder."), (".self_attention.", ".attention.")):
                    named = new + named[len(old) :] if named.startswith(old) else named.replace(old, new)
                if named in weights:
                    raise UserError(f"The checkpoint holds {one_line(named, 80)} twice", where=where, fix=_FIX)
                weights[named] = value.detach()

    walk(model, "")
    return only_tensors(weights, "The checkpoint", where)


def _others(
    contents: Sequence[tuple[Path, Mapping[str, Any]]], partitions: Sequence[Weights]
) -> tuple[list[str], list[str], Weights]:
    """What does without: other parts of a training, the pooler and the head for pairs of sentences."""
    known = ("model", "args", "checkpoint_version")
    parts = sorted({one_line(str(part), 40) for _, content in contents for part in content if part not in known})
    left_out = [f"{part} of the training" for part in parts]
    for beginning, what in (("pooler.", "pooler"), ("binary_head.", "head for pairs of sentences")):
        names = [key for key in partitions[0] if key.startswith(beginning)]
        if names:
            left_out.append(f"{len(names)} tensors of the {what}")
        for weights in partitions:
            for key in names:
                weights.pop(key, None)
    return [], left_out, {}


def _shape(
    contents: Sequence[tuple[Path, Mapping[str, Any]]], partitions: Sequence[Weights], name: str, version: str,
    heads: int, notes: list[str],
) -> MegatronShape:
    first = contents[0][1]
    said = first.get("args")
    fields = Fields(said if isinstance(said, Mapping) else {}, "The checkpoint's args", name, _FIX)
    if not isinstance(said, Mapping) and not heads:
        raise UserError(
            "The checkpoint says nothing of its attention heads", where=name, fix="Give them with --attention-heads"
        )
    for field in ("apply_residual_connection_post_layernorm", "swiglu", "squared_relu", "multi_query_attention"):
        if fields.content.get(field):
            raise UserError(f"The checkpoint asks for another kind of model ({field})", where=name, fix=_FIX)
    if fields.content.get("pipeline_model_parallel_size", 1) not in (1, None):
        raise UserError(
            "The checkpoint is divided by layers (pipeline parallel), which is not merged", where=name,
            fix="Merge its pipeline stages with Megatron's own tools",
        )
    wanted = fields.whole(
        "tensor_model_parallel_size", 1, 10_000, default=fields.whole("model_parallel_size", 1, 10_000, default=None)
    )
    if wanted is not None and wanted != len(partitions):
        raise UserError(
            f"The checkpoint has {wanted} partitions, and {len(partitions)} came", where=name, fix=_FIX
        )
    _check_different(contents, partitions)
    weights = partitions[0]
    words, table = weights.get("embedding.word_embeddings.weight"), weights.get("embedding.position_embeddings.weight")
    inner = weights.get("encoder.layers.0.mlp.dense_h_to_4h.weight")
    for key, value in (
        ("embedding.word_embeddings.weight", words), ("embedding.position_embeddings.weight", table),
        ("encoder.layers.0.mlp.dense_h_to_4h.weight", inner),
    ):
        if value is None or value.ndim != 2:
            raise UserError(f"The checkpoint lacks the matrix {key}", where=name, fix=_FIX)
    assert words is not None and table is not None and inner is not None
    hidden, layers, count = int(words.shape[1]), depth(weights, "encoder.layers."), len(partitions)
    heads = heads or fields.whole("num_attention_heads", 1, 10_000)
    feedforward = int(inner.shape[0]) * count
    for field, value in (
        ("num_layers", layers), ("hidden_size", hidden), ("ffn_hidden_size", feedforward),
        ("max_position_embeddings", int(table.shape[0])), ("padded_vocab_size", int(words.shape[0]) * count),
    ):
        stored = fields.whole(field, 1, 100_000_000, default=value)
        if stored != value:
            raise UserError(f"The args say {field} {stored} where the weights have {value}", where=name, fix=_FIX)
    if hidden % heads or heads % count:
        raise UserError(
            f"{hidden} numbers of {count} partitions cannot be divided among {heads} attention heads", where=name,
            fix="Give the right --attention-heads" if not fields.content else _FIX,
        )
    types = weights.get("embedding.tokentype_embeddings.weight")
    smooth = bool(fields.content.get("bias_gelu_fusion") or fields.content.get("openai_gelu"))
    if smooth and "lm_head.bias" in weights and not fields.content.get("openai_gelu"):
        notes.append(
            "The layers were trained with the fused GELU (by tanh), the language-model head with the exact one; the "
            "result computes both by tanh: its log-probabilities differ a little from Megatron's."
        )
    return MegatronShape(
        layers, hidden, heads, feedforward, int(words.shape[0]) * count, int(table.shape[0]),
        0 if types is None else int(types.shape[0]), count, _version(first, version, name, notes),
        fields.number("layernorm_epsilon", 0, 0.01, above=True, default=1e-5), "gelu_new" if smooth else "gelu",
    )


def _check_different(contents: Sequence[tuple[Path, Mapping[str, Any]]], partitions: Sequence[Weights]) -> None:
    key = f"encoder.layers.0.{_QKV}.weight"
    for second in range(1, len(partitions)):
        for first in range(second):
            one, other = partitions[first].get(key), partitions[second].get(key)
            if one is not None and other is not None and one.shape == other.shape and torch.equal(one, other):
                raise UserError(
                    f"Two partitions are the same: {_shown(contents[first][0])} and {_shown(contents[second][0])}",
                    where=_shown(contents[second][0]), fix=_FIX,
                )


def _version(content: Mapping[str, Any], version: str, name: str, notes: list[str]) -> str:
    """The order of fused matrices: as asked, or as the checkpoint says; Megatron takes none for version 0."""
    if version != "auto":
        notes.append(f"Query, key and value were read in the order of version {version} ({ORDERS[version]}), as asked.")
        return version
    said = content.get("checkpoint_version")
    if said is None:
        notes.append(
            "The checkpoint does not say its version; query, key and value were read in the order of version 0 "
            f"({ORDERS['0']}), as Megatron does."
        )
        return "0"
    if isinstance(said, bool) or not isinstance(said, int | float) or not 0 <= said < 4:
        raise UserError(
            f"The checkpoint's version ({one_line(str(said), 20)}) is not known", where=name,
            fix="Say with --checkpoint-version how query, key and value lie",
        )
    key = str(min(int(said), 2))
    notes.append(f"Query, key and value lie in the order of version {said:g} ({ORDERS[key]}).")
    return key


def _wanted(shape: MegatronShape, head: bool) -> dict[str, Shape]:
    """Names and shapes of a partition's weights."""
    wide, count = shape.hidden, shape.partitions
    inner, rows = shape.feedforward // count, shape.rows // count
    wanted: dict[str, Shape] = {
        "embedding.word_embeddings.weight": (rows, wide),
        "embedding.position_embeddings.weight": (shape.positions, wide),
        "encoder.final_layernorm.weight": (wide,), "encoder.final_layernorm.bias": (wide,),
    }
    if shape.types:
        wanted["embedding.tokentype_embeddings.weight"] = (shape.types, wide)
    if head:
        wanted |= {
            "lm_head.bias": (rows,), "lm_head.dense.weight": (wide, wide), "lm_head.dense.bias": (wide,),
            "lm_head.layernorm.weight": (wide,), "lm_head.layernorm.bias": (wide,),
        }
    parts: dict[str, Shape] = {
        f"{_QKV}.weight": (3 * wide // count, wide), f"{_QKV}.bias": (3 * wide // count,),
        "attention.dense.weight": (wide, wide // count), "attention.dense.bias": (wide,),
        "mlp.dense_h_to_4h.weight": (inner, wide), "mlp.dense_h_to_4h.bias": (inner,),
        "mlp.dense_4h_to_h.weight": (wide, inner), "mlp.dense_4h_to_h.bias": (wide,),
    }
    for norm in ("input_layernorm", "post_attention_layernorm"):
        parts |= {f"{norm}.weight": (wide,), f"{norm}.bias": (wide,)}
    for layer in range(shape.layers):
        wanted |= {f"encoder.layers.{layer}.{part}": size for part, size in parts.items()}
    return wanted


def parted(fused: torch.Tensor, version: str, heads: int) -> list[torch.Tensor]:
    """Query, key and value of a partition's fused matrix or bias.

    Args:
        fused: ``(3 * heads * width, ...)``.
        version: Key of :data:`ORDERS`.
        heads: Attention heads of the partition.
    """
    width, others = fused.shape[0] // (3 * heads), fused.shape[1:]
    if version == "0":
        whole = fused.view(3, heads, width, *others)
    elif version == "1":
        whole = fused.view(heads, width, 3, *others).movedim(2, 0)
    else:
        whole = fused.view(heads, 3, width, *others).movedim(1, 0)
    return [one.reshape(heads * width, *others) for one in whole]


def _merged(partitions: Sequence[Weights], shape: MegatronShape, name: str) -> Weights:
    """One partition's worth of names: parts put together, what all have alike taken once, query, key, value apart."""
    merged: Weights = {}
    for key, value in partitions[0].items():
        pieces = [weights[key] for weights in partitions]
        own = re.sub(r"^encoder\.layers\.\d+\.", "", key)
        if own.startswith(_QKV):
            sorted_out = [parted(piece, shape.version, shape.heads // shape.partitions) for piece in pieces]
            for word, group in zip(("query", "key", "value"), zip(*sorted_out, strict=True), strict=True):
                merged[key.replace("query_key_value", word)] = torch.cat(group)
        elif own in _ROWS or key in ("embedding.word_embeddings.weight", "lm_head.bias"):
            merged[key] = torch.cat(pieces)
        elif own in _COLUMNS:
            merged[key] = torch.cat(pieces, 1)
        else:
            if any(not torch.equal(piece, value) for piece in pieces):
                raise UserError(
                    f"{one_line(key, 80)} differs between partitions, which all have it alike", where=name,
                    fix="Give the partitions of one checkpoint",
                )
            merged[key] = value
    return merged


def _renamed(merged: Weights, shape: MegatronShape, tokens: int) -> Weights:
    """Weights under transformers' names, without rows that no token has."""
    begin = MEGATRON_BERT.prefix
    words = merged["embedding.word_embeddings.weight"]
    made: Weights = {
        f"{begin}embeddings.word_embeddings.weight": words[:tokens],
        f"{begin}embeddings.position_embeddings.weight": merged["embedding.position_embeddings.weight"],
        f"{begin}embeddings.token_type_embeddings.weight": merged.get(
            "embedding.tokentype_embeddings.weight", torch.zeros(1, shape.hidden, dtype=words.dtype)
        ),
    }
    names = {"encoder.final_layernorm": f"{begin}encoder.ln"}
    for layer in range(shape.layers):
        theirs, ours = f"encoder.layers.{layer}.", f"{begin}encoder.layer.{layer}."
        names |= {theirs + part: ours + place for part, place in _LAYER.items()}
        names |= {f"{theirs}attention.{word}": f"{ours}attention.self.{word}" for word in ("query", "key", "value")}
    if "lm_head.bias" in merged:
        made["cls.predictions.bias"] = merged["lm_head.bias"][:tokens]
        names |= {"lm_head.dense": "cls.predictions.transform.dense"}
        names |= {"lm_head.layernorm": "cls.predictions.transform.LayerNorm"}
    for theirs, ours in names.items():
        made |= {f"{ours}.{kind}": merged[f"{theirs}.{kind}"] for kind in ("weight", "bias")}
    return made
