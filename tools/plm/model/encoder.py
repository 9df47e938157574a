"""Padding-free encoding through the Hugging Face model classes.

A packed row holds many sequences. An attention function registered with transformers keeps each sequence to itself,
positions restart in
each sequence, and the few places where the classes assume one sequence a row (ESM's token dropout, T5's relative
bias) are told
where the sequences lie. Gradients, PEFT wrappers and gradient checkpointing work as with the plain classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from plm.model.batching import Batch, Layout, pack, plan_batches
from plm.model.families import ModelFamily

if TYPE_CHECKING:
    from plm.model.checkpoint import LoadedModel

ATTENTION = "plm_packed"
SHORT = 64
"""Up to this many tokens two matrix products and a float32 softmax beat the fused kernel on CPUs."""

_TRAINED_MASK_RATIO = 0.15 * 0.8
"""ESM-2 scales embeddings by the share of tokens that were visible in its training (fair-esm, esm2.py)."""


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    packing: Layout | None = None,
    position_bias: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention inside each sequence of a packed row; the function that transformers calls.

    Args:
        module: The attention layer.
        query: ``(1, H, T, D)``; ``key`` and ``value`` likewise.
        attention_mask: Unused: a packed row has no padding.
        scaling: Factor of the scores; ``D ** -0.5`` by default.
        dropout: Dropout probability of the attention weights.
        packing: Where the sequences lie; one sequence fills the row if None.
        position_bias: T5's relative bias ``(1, H, L, L)`` of the longest sequence, sliced for the others.

    Returns:
        ``(1, T, H, D)`` and None (no attention weights are kept).
    """
    heads, tokens, width = query.shape[1:]
    scale = width**-0.5 if scaling is None else scaling
    layout = Layout((tokens,)) if packing is None else packing
    pieces = []
    for start, count, length in layout.runs():
        stop = start + count * length
        shape = (heads, count, length, width)
        q, k, v = (x[0, :, start:stop].reshape(shape).transpose(0, 1) for x in (query, key, value))
        bias = None if position_bias is None else position_bias[:, :, :length, :length].to(q.dtype)
        if length <= SHORT and q.device.type == "cpu":
            scores = torch.matmul(q, k.transpose(-1, -2)).float() * scale
            if bias is not None:
                scores = scores + bias
            weights = functional.dropout(scores.softmax(-1), dropout, training=dropout > 0).to(v.dtype)
            attended = torch.matmul(weights, v)
        else:
            if bias is not None:
                bias = bias.expand(count, -1, -1, -1)
            attended = functional.scaled_dot_product_attention(
                q, k, v, attn_mask=bias, dropout_p=dropout, scale=scale
            )
        pieces.append(attended.transpose(1, 2).reshape(count * length, heads, width))
    return torch.cat(pieces).unsqueeze(0), None


def _no_mask(*args: Any, **kwargs: Any) -> None:
    return None


def register() -> None:
    """Makes ``attn_implementation="plm_packed"`` known to transformers; may be called often."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    AttentionInterface.register(ATTENTION, packed_attention)
    AttentionMaskInterface.register(ATTENTION, _no_mask)


def adapt(model: nn.Module) -> None:
    """Tells the layers of a loaded model how to work on packed rows. Parameters and their names stay as they are."""
    from transformers.models.esm.modeling_esm import EsmIntermediate
    from transformers.models.t5.modeling_t5 import T5Attention

    for module in model.modules():
        if type(module) is EsmIntermediate:
            module.__class__ = _fused_intermediate()
        elif type(module) is T5Attention and module.has_relative_attention_bias:
            module.__class__ = _packed_bias_attention()


_CLASSES: dict[str, type[nn.Module]] = {}


def _fused_intermediate() -> type[nn.Module]:
    """ESM's first feed-forward layer with the exact GELU in one kernel instead of four."""
    if "intermediate" not in _CLASSES:
        from transformers.models.esm.modeling_esm import EsmIntermediate

        class FusedIntermediate(EsmIntermediate):
            def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
                return functional.gelu(self.dense(hidden_states))

        _CLASSES["intermediate"] = FusedIntermediate
    return _CLASSES["intermediate"]


def _packed_bias_attention() -> type[nn.Module]:
    """T5's first attention layer, whose relative bias is as wide as the longest sequence, not as the whole row."""
    if "bias" not in _CLASSES:
        from transformers.models.t5.modeling_t5 import T5Attention

        class PackedBiasAttention(T5Attention):
            def forward(
                self,
                hidden_states: torch.Tensor,
                *args: Any,
                position_bias: torch.Tensor | None = None,
                **kwargs: Any,
            ) -> Any:
                packing = kwargs.get("packing")
                if position_bias is None and packing is not None:
                    position_bias = self.compute_bias(
                        packing.longest, packing.longest, device=hidden_states.device
                    )
                return super().forward(hidden_states, *args, position_bias=position_bias, **kwargs)

        _CLASSES["bias"] = PackedBiasAttention
    return _CLASSES["bias"]


def embed_tokens(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Token embeddings of a packed row with ESM's token dropout counted per sequence, not per row.

    Args:
        model: The (wrapped) transformers model.
        batch: The packed row.

    Returns:
        ``(1, T, D)``.
    """
    base = unwrap(model)
    embedded = base.get_input_embeddings()(batch.input_ids)
    config = base.config
    if getattr(config, "token_dropout", False):
        hidden = batch.input_ids == config.mask_token_id
        lengths = torch.tensor(batch.lengths, device=embedded.device)
        sequence = torch.repeat_interleave(torch.arange(len(lengths), device=embedded.device), lengths)
        masked = torch.zeros(len(lengths), device=embedded.device).index_add_(0, sequence, hidden.float())
        scale = (1 - _TRAINED_MASK_RATIO) / (1 - masked / lengths)
        embedded = embedded.masked_fill(hidden[:, None], 0.0)
        embedded = (embedded * scale[sequence][:, None]).to(embedded.dtype)
    return embedded.unsqueeze(0)


def unwrap(model: nn.Module) -> Any:
    """The transformers model inside a PEFT wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def forward(model: nn.Module, batch: Batch) -> Any:
    """Runs a model on a packed row; the transformers output object, whose tensors are ``(1, T, ...)``.

    Args:
        model: Loaded by :func:`plm.model.checkpoint.load_model`, possibly wrapped by PEFT.
        batch: The packed row, on the model's device.
    """
    config = unwrap(model).config
    arguments: dict[str, Any] = {"inputs_embeds": embed_tokens(model, batch), "packing": batch.layout}
    if config.model_type == "esm":
        offset = config.pad_token_id + 1 if config.position_embedding_type == "absolute" else 0
        arguments["position_ids"] = (batch.position_ids + offset).unsqueeze(0)
    return model(**arguments)


def hidden_states(model: nn.Module, batch: Batch) -> torch.Tensor:
    """The last hidden state of every token, ``(T, D)`` in the model's dtype; gradients flow."""
    return forward(model, batch).last_hidden_state[0]


def residues(hidden: torch.Tensor, batch: Batch, family: ModelFamily) -> list[torch.Tensor]:
    """Splits ``(T, D)`` token states into one ``(L, D)`` tensor of residues a sequence, special tokens removed."""
    before, after = len(family.before), len(family.after)
    return [piece[before : len(piece) - after] for piece in hidden.split(list(batch.lengths))]


def encode(
    loaded: LoadedModel,
    sequences: Sequence[str],
    budget: int = 8192,
    *,
    advance: Callable[[int], None] | None = None,
) -> list[torch.Tensor]:
    """Residue representations of many sequences; equal sequences are computed once.

    Args:
        loaded: The model.
        sequences: Residue letters; what is not an amino acid counts as X.
        budget: Tokens in a packed row.
        advance: Called with the number of sequences finished after each row.

    Returns:
        One ``(L, D)`` float32 tensor on the CPU a sequence, in input order. Equal sequences share one tensor.
    """
    unique = list(dict.fromkeys(sequences))
    ids = [loaded.token_ids(sequence) for sequence in unique]
    found: dict[str, torch.Tensor] = {}
    with torch.inference_mode():
        for row in plan_batches([len(x) for x in ids], budget):
            batch = pack([ids[index] for index in row], row).to(loaded.device)
            states = hidden_states(loaded.model, batch).float().cpu()
            for index, piece in zip(row, residues(states, batch, loaded.family), strict=True):
                found[unique[index]] = piece.clone()
            if advance is not None:
                advance(len(row))
    return [found[sequence] for sequence in sequences]
