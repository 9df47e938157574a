"""What ESM-2 and ESM-1b share: transformers' ESM classes, their tokens and their scaled embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from plm.errors import UserError
from plm.model.families.bert_shape import BertShaped
from plm.model.families.letters import UNUSUAL_LETTERS
from plm.model.families.settings import Setting, flag, size, token
from plm.received.fields import Fields

if TYPE_CHECKING:
    import torch
    from torch import nn

    from plm.model.batching import Batch

_TRAINED_MASK_RATIO = 0.15 * 0.8
"""ESM scales embeddings by the share of tokens that were visible in its training (fair-esm, esm2.py)."""


class EsmFamily(BertShaped):
    """Models of transformers' ESM classes."""

    before, after, mask, unusual = ("<cls>",), ("<eos>",), "<mask>", UNUSUAL_LETTERS
    kind, config_class, encoder_class, language_model_class = "esm", "EsmConfig", "EsmModel", "EsmForMaskedLM"
    head, head_weights, contact_head = "lm_head", "lm_head.dense.", "contact_head"
    prefix = "esm."
    settings: ClassVar[Mapping[str, Setting]] = {
        **BertShaped.settings,
        "max_position_embeddings": size(1026, 10_000_000),
        "position_embedding_type": Setting("text", choices=("rotary", "absolute")),
        "rope_theta": Setting("number", 1, 1e9, 10_000.0),
        "emb_layer_norm_before": flag(default=False),
        "token_dropout": flag(default=False),
        "mask_token_id": token(None),
        "pad_token_id": token(None),
    }
    positions: ClassVar[str]
    """Where a token's place comes in: ``rotary`` or ``absolute``."""

    def matches(self, config: Mapping[str, Any], vocabulary: Mapping[str, int]) -> bool:
        return config.get("model_type") == self.kind and config.get("position_embedding_type") == self.positions

    def checked(self, settings: dict[str, Any], fields: Fields, where: str) -> dict[str, Any]:
        settings = super().checked(settings, fields, where)
        return settings | {"rope_theta": _theta(fields, settings["rope_theta"], where)}

    def layers(self) -> Mapping[type[nn.Module], type[nn.Module]]:
        from plm.model.families import esm_layers

        return esm_layers.LAYERS

    def inputs(self, encoder: Any, batch: Batch) -> dict[str, torch.Tensor]:
        """Token dropout is counted per sequence, not per row."""
        return {"inputs_embeds": self.embedded(encoder, batch)[None], "position_ids": batch.position_ids[None]}

    def embedded(self, encoder: Any, batch: Batch) -> torch.Tensor:
        """``(T, D)`` embeddings of a row's tokens, up to the first layer."""
        embedded = encoder.get_input_embeddings()(batch.input_ids)
        if encoder.config.token_dropout:
            embedded = _dropped(embedded, batch, encoder.config.mask_token_id)
        embedded = self.placed(encoder, embedded, batch)
        norm = encoder.embeddings.layer_norm
        result: torch.Tensor = embedded if norm is None else norm(embedded)
        return result

    def placed(self, encoder: Any, embedded: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The same with each token's place, where the embedding says it."""
        return embedded


def _dropped(embedded: torch.Tensor, batch: Batch, mask: int) -> torch.Tensor:
    """Masked tokens become zero; the others make up for the share that is masked in their sequence."""
    import torch

    hidden = batch.input_ids == mask
    lengths = batch.layout.edges(embedded.device).diff()
    sequence = batch.layout.owners(embedded.device)
    masked = torch.zeros(len(lengths), device=embedded.device).index_add_(0, sequence, hidden.float())
    scale = (1 - _TRAINED_MASK_RATIO) / (1 - masked / lengths)
    embedded = embedded.masked_fill(hidden[:, None], 0.0)
    return (embedded * scale[sequence][:, None]).to(embedded.dtype)


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
