"""One answer for a whole sequence."""

from __future__ import annotations

import torch

from plm.model.heads.head import Head, HeadConfig, Where, perceptron


class SequenceHead(Head):
    """The mean over a sequence's residues (no special tokens), normalised, then one hidden layer."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        self.output = perceptron(config.hidden_size, config)

    def represent(self, hidden: torch.Tensor, where: Where) -> torch.Tensor:
        states = hidden[where.residues].float()
        total = torch.zeros(where.sequences, states.shape[1], device=states.device).index_add_(0, where.owner, states)
        count = torch.bincount(where.owner, minlength=where.sequences).clamp(min=1)
        return total / count[:, None]

    def forward(self, hidden: torch.Tensor, where: Where) -> torch.Tensor:
        answers: torch.Tensor = self.output(self.norm(self.represent(hidden, where)))
        return answers
