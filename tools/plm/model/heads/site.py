"""One answer for a site in a sequence."""

from __future__ import annotations

import torch
from torch import nn

from plm.model.heads.head import Head, HeadConfig, Where, perceptron


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
        self.output = perceptron(2 * config.hidden_size + places * config.neighbour_width, config)

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
