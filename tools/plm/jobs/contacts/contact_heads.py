"""What turns a model's attention maps or residue states into probabilities of contacts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from plm.errors import UserError
from plm.model import encoder
from plm.model.loaded import LoadedModel

SingleFloats = NDArray[np.float32]
Method = Literal["regression", "published", "pair"]
TITLES: Mapping[Method, str] = {
    "regression": "regression on attention maps",
    "published": "the model's own contact regression",
    "pair": "pair head on residue states",
}
PROJECTED = 32
HIDDEN = 32
_PLACED = 8
_EDGES = (6, 7, 8, 9, 10, 12, 14, 16, 20, 24, 32, 48, 64, 96, 128, 192, 256, 512)
"""Separations at which the pair head tells one class of pairs from the next."""
_ROWS = 64
"""Rows of pairs that the pair head holds at a time."""


@dataclass(frozen=True)
class AttentionRegression:
    """Logistic regression on the corrected attention maps of all layers and heads (Rao et al. 2021).

    Attributes:
        method: ``regression`` if it was fitted here, ``published`` if it came with the model.
        weights: ``(layers, heads)`` float32.
        bias: Logit where all maps are zero.
    """

    method: Method
    weights: torch.Tensor
    bias: float

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"weights": self.weights.float().cpu().contiguous(), "bias": torch.tensor([self.bias])}


class PairNetwork(nn.Module):
    """Probability that two residues touch, from their states and how far apart they are; symmetric by construction.

    Args:
        width: Of a residue's state.
    """

    method: Method = "pair"

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.norm = nn.LayerNorm(width)
        self.left, self.right = nn.Linear(width, PROJECTED), nn.Linear(width, PROJECTED)
        self.place = nn.Embedding(len(_EDGES) + 1, _PLACED)
        self.hidden = nn.Linear(2 * PROJECTED + _PLACED, HIDDEN)
        self.out = nn.Linear(HIDDEN, 1)
        self.register_buffer("edges", torch.tensor(_EDGES), persistent=False)

    def projected(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Two projections ``(L, 32)`` of states ``(L, D)``."""
        normed = self.norm(states.float())
        return self.left(normed), self.right(normed)

    def forward(self, projected: tuple[torch.Tensor, torch.Tensor], i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        """Logits ``(P,)`` of pairs of residues.

        Args:
            projected: From :meth:`projected`.
            i: ``(P,)`` 0-based residues; ``j`` likewise.
        """
        left, right = projected
        products = left[i] * right[j] + left[j] * right[i]
        differences = (left[i] - left[j]).abs()
        edges: torch.Tensor = self.edges
        place = self.place(torch.bucketize((i - j).abs(), edges, right=True))
        inner = functional.gelu(self.hidden(torch.cat([products, differences, place], dim=-1)))
        logits: torch.Tensor = self.out(inner).squeeze(-1)
        return logits

    def square(self, states: torch.Tensor) -> torch.Tensor:
        """Logits ``(L, L)`` of all pairs of a window, row by row so that memory stays bounded."""
        length = len(states)
        projected = self.projected(states)
        columns = torch.arange(length, device=states.device)
        parts = []
        for start in range(0, length, _ROWS):
            rows = columns[start : start + _ROWS]
            i, j = torch.meshgrid(rows, columns, indexing="ij")
            parts.append(self(projected, i.reshape(-1), j.reshape(-1)).view(len(rows), length))
        return torch.cat(parts)

    def tensors(self) -> dict[str, torch.Tensor]:
        return {name: value.detach().float().cpu().clone() for name, value in self.state_dict().items()}


ContactHead = AttentionRegression | PairNetwork


def published_regression(loaded: LoadedModel) -> AttentionRegression | None:
    """The contact regression that came with a checkpoint, if one did."""
    if not loaded.has_contacts:
        return None
    regression = encoder.contact_head(loaded.model).regression
    weights = regression.weight.detach().float().view(loaded.layers, -1)
    return AttentionRegression("published", weights, float(regression.bias.detach().float()))


def pair_shapes(width: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a pair head's tensors for a model of this width."""
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in PairNetwork(width).state_dict().items()}


def window_maps(loaded: LoadedModel, letters: str, heads: Mapping[str, ContactHead]) -> dict[str, SingleFloats]:
    """Probabilities ``(w, w)`` of one window by several heads, in one pass of the model.

    Args:
        loaded: The model.
        letters: Residues of the window.
        heads: By name.

    Raises:
        UserError: The model gives no finite numbers.
    """
    size = len(letters)
    regressions = {name: head for name, head in heads.items() if isinstance(head, AttentionRegression)}
    factors = {name: head.weights.to(loaded.device) for name, head in regressions.items()}
    totals = {name: torch.full((size, size), head.bias, device=loaded.device) for name, head in regressions.items()}

    def add(layer: int, maps: torch.Tensor) -> None:
        for name, total in totals.items():
            total.add_(torch.einsum("hij,h->ij", maps, factors[name][layer]))

    logits = dict(totals)
    with torch.inference_mode():
        states = encoder.attention_maps(loaded, letters, add)
        for name, head in heads.items():
            if isinstance(head, PairNetwork):
                logits[name] = head.to(loaded.device).square(states)
        maps = {name: logits[name].sigmoid().float().cpu().numpy() for name in heads}
    _check_finite(loaded, *maps.values())
    return maps


def pair_features(
    loaded: LoadedModel, letters: str, rows: NDArray[np.int64], columns: NDArray[np.int64]
) -> tuple[SingleFloats, torch.Tensor]:
    """What the heads learn from in one window.

    Args:
        loaded: The model.
        letters: Residues of the window.
        rows: ``(P,)`` 0-based residues of the pairs.
        columns: ``(P,)`` the other residues.

    Returns:
        ``(P, layers * heads)`` values of the corrected attention maps, layer by layer, and ``(w, D)`` float32 states.

    Raises:
        UserError: The model gives no finite numbers.
    """
    i, j = torch.from_numpy(rows).to(loaded.device), torch.from_numpy(columns).to(loaded.device)
    parts: list[torch.Tensor] = []
    with torch.inference_mode():
        states = encoder.attention_maps(loaded, letters, lambda _, maps: parts.append(maps[:, i, j].T.cpu()))
        features = torch.cat(parts, dim=1).numpy()
    _check_finite(loaded, features)
    return features, states.float().cpu().clone()  # outside, so that gradients may flow from it


def _check_finite(loaded: LoadedModel, *numbers: SingleFloats) -> None:
    if not all(np.isfinite(each).all() for each in numbers):
        raise UserError(
            "The model gives no finite numbers", where=loaded.files.id,
            fix="Use --precision fp32; if that does not help the model is damaged",
        )


def attention_heads(loaded: LoadedModel) -> int:
    """Heads of each layer."""
    config = loaded.model.config
    return int(getattr(config, "num_attention_heads", 0) or getattr(config, "num_heads", 0))

