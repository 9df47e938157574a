"""One answer for every residue."""

from __future__ import annotations

import torch
from torch import nn

from plm.model.heads.head import Head, HeadConfig, Where


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
