"""Heads: from the encoder's residue representations to the outputs of a task.

All heads work on a packed row ``(T, D)`` and never see padding or special tokens: :class:`Where` says which tokens
count. They begin with a LayerNorm, since the scale of hidden states differs between model families by orders of
magnitude.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from plm.data.task import Level


@dataclass(frozen=True)
class HeadConfig:
    """What a head is built from; stored in the bundle's manifest.

    Attributes:
        level: What it answers for.
        hidden_size: D of the encoder.
        outputs: K, classes or 1.
        width: Units of the hidden layer.
        reach: Residues on each side of a site that the site head reads.
        neighbour_width: Dimensions into which each neighbour is projected by the site head.
        dropout: Before each linear layer.
    """

    level: Level
    hidden_size: int
    outputs: int
    width: int = 64
    reach: int = 7
    neighbour_width: int = 32
    dropout: float = 0.1

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


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
        return Where(
            self.residues.to(device), self.owner.to(device), self.sequences,
            self.sites.to(device), self.first.to(device), self.last.to(device),
        )  # fmt: skip


class Head(nn.Module):
    """A head; subclasses differ in what they read.

    ``represent`` gives the ``(N, D)`` float32 encoder representations that the answers rest on (for neighbours and
    out-of-distribution checks); ``forward`` the ``(N, K)`` float32 outputs: logits, or standardised numbers.
    """

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.config = config
        self.norm = nn.LayerNorm(config.hidden_size)

    def represent(self, hidden: torch.Tensor, where: Where) -> torch.Tensor:
        raise NotImplementedError

    def forward(self, hidden: torch.Tensor, where: Where) -> torch.Tensor:
        raise NotImplementedError


def _perceptron(inputs: int, config: HeadConfig) -> nn.Sequential:
    return nn.Sequential(
        nn.Dropout(config.dropout), nn.Linear(inputs, config.width), nn.GELU(),
        nn.Dropout(config.dropout), nn.Linear(config.width, config.outputs),
    )  # fmt: skip


class SequenceHead(Head):
    """The mean over a sequence's residues (no special tokens), normalised, then one hidden layer."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        self.output = _perceptron(config.hidden_size, config)

    def represent(self, hidden: torch.Tensor, where: Where) -> torch.Tensor:
        states = hidden[where.residues].float()
        total = torch.zeros(where.sequences, states.shape[1], device=states.device).index_add_(0, where.owner, states)
        count = torch.bincount(where.owner, minlength=where.sequences).clamp(min=1)
        return total / count[:, None]

    def forward(self, hidden: torch.Tensor, where: Where) -> torch.Tensor:
        answers: torch.Tensor = self.output(self.norm(self.represent(hidden, where)))
        return answers


class ResidueHead(Head):
    """One linear layer on each normalised residue representation."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        self.output = nn.Sequential(nn.Dropout(config.dropout), nn.Linear(config.hidden_size, config.outputs))

    def represent(self, hidden: torch.Tensor, where: Where) -> torch.Tensor:
        return hidden[where.residues].float()

    def forward(self, hidden: torch.Tensor, where: Where) -> torch.Tensor:
        answers: torch.Tensor = self.output(self.norm(self.represent(hidden, where)))
        return answers


class SiteHead(Head):
    """The representation at the site with its context, then one hidden layer.

    Three views are concatenated: the site's own state (D); its neighbours within ``reach`` residues, each projected
    to a few dimensions and kept in its place, so that a motif such as "R three before" can be read directly from few
    examples; and the mean of the neighbours (D), for what matters wherever it lies. Places beyond an end of the
    sequence are zero, and the mean counts real residues only.
    """

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        places = 2 * config.reach + 1
        self.project = nn.Linear(config.hidden_size, config.neighbour_width, bias=False)
        self.output = _perceptron(2 * config.hidden_size + places * config.neighbour_width, config)

    def represent(self, hidden: torch.Tensor, where: Where) -> torch.Tensor:
        return hidden[where.sites].float()

    def forward(self, hidden: torch.Tensor, where: Where) -> torch.Tensor:
        offsets = torch.arange(-self.config.reach, self.config.reach + 1, device=hidden.device)
        index = where.sites[:, None] + offsets
        inside = (index >= where.first[:, None]) & (index <= where.last[:, None])
        index = index.clamp(min=0, max=hidden.shape[0] - 1)
        states = self.norm(hidden[index].float()) * inside[:, :, None]
        site = states[:, self.config.reach]
        mean = states.sum(1) / inside.sum(1, keepdim=True)
        neighbours = self.project(states).flatten(1)
        answers: torch.Tensor = self.output(torch.cat([site, mean, neighbours], dim=1))
        return answers


_HEADS: dict[str, type[Head]] = {"sequence": SequenceHead, "residue": ResidueHead, "site": SiteHead}


def build_head(config: HeadConfig) -> Head:
    """A freshly initialised head (float32) for the level of ``config``."""
    return _HEADS[config.level](config)
