"""Heads: from the encoder's residue representations to the outputs of a task.

All heads work on a packed row ``(T, D)`` and never see padding or special tokens: :class:`Where` says which tokens
count. They begin with a LayerNorm, since the scale of hidden states differs between model families by orders of
magnitude.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from plm.data.task import Level
from plm.model.batching import sent

PLAIN, NEIGHBOURS = "plain", "neighbours"
"""Kinds of heads: the one of a level where nothing else is asked for; of residues one that reads the residues beside,
as the plain one of sites does."""


@dataclass(frozen=True)
class HeadConfig:
    """What a head is built from; stored in the bundle's manifest.

    Attributes:
        level: What it answers for: a sequence, a residue or a site.
        hidden_size: D of the encoder.
        outputs: K, classes or 1.
        width: Units of the hidden layer.
        reach: Residues on each side of a site or residue that a head with neighbours reads.
        neighbour_width: Dimensions into which such a head projects each neighbour.
        dropout: Before each linear layer.
        kind: Which of the heads of that level (:data:`plm.model.heads.HEADS`).
    """

    level: Level
    hidden_size: int
    outputs: int
    width: int = 64
    reach: int = 7
    neighbour_width: int = 32
    dropout: float = 0.1
    kind: str = PLAIN

    def to_json(self) -> dict[str, Any]:
        """The manifest's field ``head``; the plain head of a level needs no name."""
        return {name: value for name, value in asdict(self).items() if (name, value) != ("kind", PLAIN)}


@dataclass(frozen=True)
class Where:
    """Which tokens of a packed row a head reads.

    Attributes:
        residues: ``(R,)`` int64 token index of each residue that counts, sequence after sequence.
        owner: ``(R,)`` int64 number of the sequence that each of them belongs to.
        sequences: Number of sequences.
        sites: ``(S,)`` int64 token index of each site (site tasks).
        first: ``(S,)`` int64 token index of the first residue of the site's sequence.
        last: ``(S,)`` int64 token index of its last residue.
    """

    residues: torch.Tensor
    owner: torch.Tensor
    sequences: int
    sites: torch.Tensor
    first: torch.Tensor
    last: torch.Tensor

    def to(self, device: torch.device | str) -> Where:
        """The same on another device, in one copy."""
        parts = (self.residues, self.owner, self.sites, self.first, self.last)
        moved = sent(torch.cat(parts), torch.device(device)).split([len(part) for part in parts])
        return Where(moved[0], moved[1], self.sequences, *moved[2:])


class Head(nn.Module, ABC):
    """A head; subclasses differ in what they read.

    ``represent`` gives the ``(N, D)`` float32 encoder representations that the answers rest on (for neighbours and
    out-of-distribution checks); ``forward`` the ``(N, K)`` float32 outputs: logits, or standardised numbers.
    """

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.config = config
        self.norm = nn.LayerNorm(config.hidden_size)

    @abstractmethod
    def represent(self, hidden: torch.Tensor, where: Where) -> torch.Tensor:
        """``(N, D)`` float32 representations that the answers rest on."""

    @abstractmethod
    def forward(self, hidden: torch.Tensor, where: Where) -> torch.Tensor:
        """``(N, K)`` float32 logits or standardised numbers."""


def perceptron(inputs: int, config: HeadConfig) -> nn.Sequential:
    """One hidden layer from ``inputs`` numbers to the K outputs."""
    return nn.Sequential(
        nn.Dropout(config.dropout), nn.Linear(inputs, config.width), nn.GELU(),
        nn.Dropout(config.dropout), nn.Linear(config.width, config.outputs),
    )
