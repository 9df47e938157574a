"""One answer for every residue: from its own state, or with those of its neighbours."""

from __future__ import annotations

import torch
from torch import nn

from plm.model.heads.head import Head, HeadConfig, Where, perceptron


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


class NeighbourResidueHead(Head):
    """The residue's own state and its neighbours within ``reach``, each projected to a few dimensions and kept in its
    place, then one hidden layer. Places beyond an end of the sequence are zero."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        places = 2 * config.reach + 1
        self.project = nn.Linear(config.hidden_size, config.neighbour_width, bias=False)
        self.output = perceptron(config.hidden_size + places * config.neighbour_width, config)

    def represent(self, hidden: torch.Tensor, where: Where) -> torch.Tensor:
        return hidden[where.residues].float()

    def forward(self, hidden: torch.Tensor, where: Where) -> torch.Tensor:
        states = self.norm(self.represent(hidden, where))
        narrow, count = self.project(states), len(states)  # projected once a residue, then gathered
        offsets = torch.arange(-self.config.reach, self.config.reach + 1, device=states.device)
        place = torch.arange(count, device=states.device)[:, None] + offsets
        inside = (place >= 0) & (place < count)
        place = place.clamp(0, max(count - 1, 0))
        inside &= where.owner[place] == where.owner[:, None]
        neighbours = (narrow[place] * inside[:, :, None]).flatten(1)
        answers: torch.Tensor = self.output(torch.cat([states, neighbours], dim=1))
        return answers
