"""Encoder and head as one network on packed rows, for training and for inference alike."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from plm.model import encoder
from plm.model.batching import Batch, plan_batches
from plm.model.encoder_inputs import Unit, pack_units
from plm.model.families import ModelFamily
from plm.model.heads.head import Head, Where
from plm.model.loaded import LoadedModel

Floats = NDArray[np.float64]


class Network(nn.Module):
    """An encoder, possibly with adapters, and a head.

    Args:
        body: The transformers model or its PEFT wrapper.
        head: The head, float32.
        family: The encoder's family.
        frozen: The encoder takes no gradient (head-only training): it also stays in evaluation mode.
        autocast: Run the encoder's matrix products in bfloat16 over float32 weights (full fine-tuning).
    """

    def __init__(
        self, body: nn.Module, head: Head, family: ModelFamily, *, frozen: bool = False, autocast: bool = False
    ) -> None:
        super().__init__()
        self.body = body
        self.head = head
        self.family = family
        self.frozen = frozen
        self.autocast = autocast

    def train(self, mode: bool = True) -> Network:
        super().train(mode)
        if self.frozen:
            self.body.eval()
        return self

    def hidden(self, batch: Batch) -> torch.Tensor:
        """``(T, D)`` states of a packed row; without gradient where the encoder is frozen."""
        with torch.autocast(batch.input_ids.device.type, torch.bfloat16, enabled=self.autocast):
            if not self.frozen:
                return encoder.hidden_states(self.body, batch)
            with torch.no_grad():
                return encoder.hidden_states(self.body, batch)

    def forward(self, batch: Batch, where: Where) -> torch.Tensor:
        """``(N, K)`` float32 outputs in the order of the row's units and their sites or residues."""
        answers: torch.Tensor = self.head(self.hidden(batch), where)
        return answers

    @property
    def device(self) -> torch.device:
        return next(self.head.parameters()).device

    def parameter_counts(self) -> tuple[int, int]:
        """All parameters and the trainable ones."""
        sizes = [(p.numel(), p.requires_grad) for p in self.parameters()]
        return sum(n for n, _ in sizes), sum(n for n, trainable in sizes if trainable)


def as_network(loaded: LoadedModel, body: nn.Module, head: Head, **options: Any) -> Network:
    """The network on the loaded model's device."""
    return Network(body, head, loaded.family, **options).to(loaded.device)


def answers(
    network: Network, units: Sequence[Unit], budget: int, *, represent: bool = False,
    advance: Callable[[int], None] | None = None,
) -> tuple[list[Floats], list[NDArray[np.float32]]]:
    """Runs units through the network in evaluation mode, without gradients.

    Args:
        network: Encoder and head.
        units: From :func:`plm.model.encoder_inputs.make_units`.
        budget: Tokens in a packed row. A row that does not fit the GPU's memory is halved and tried again.
        represent: Also give the representations under the answers.
        advance: Called with the number of units finished.

    Returns:
        For each unit its outputs ``(n, K)`` float64, and its ``(n, D)`` float32 representations (empty list unless
        asked for).
    """
    was_training = network.training
    network.eval()
    outputs: dict[int, Floats] = {}
    states: dict[int, NDArray[np.float32]] = {}
    level = network.head.config.level
    if network.device.type == "cpu":  # a thread a row, each as long as the caches like it
        budget = min(budget, encoder.ROW_TOKENS["cpu"])
    rows = deque(plan_batches([unit.length for unit in units], budget))
    try:
        while rows:
            planned = list(rows)
            answered = _run(network, units, planned, represent)
            try:
                for row, (values, seen) in zip(planned, answered, strict=True):
                    sizes = np.cumsum([units[index].answers(level) for index in row])[:-1]
                    outputs.update(zip(row, np.split(values, sizes), strict=True))
                    if represent:
                        states.update(zip(row, np.split(seen, sizes), strict=True))
                    rows.popleft()
                    if advance is not None:
                        advance(len(row))
            except torch.cuda.OutOfMemoryError:
                row = rows.popleft()
                if len(row) == 1:
                    raise
                torch.cuda.empty_cache()
                rows.extendleft([row[len(row) // 2 :], row[: len(row) // 2]])
    finally:
        network.train(was_training)
    return [outputs[i] for i in range(len(units))], [states[i] for i in range(len(units))] if represent else []


def _run(
    network: Network, units: Sequence[Unit], rows: Sequence[Sequence[int]], represent: bool
) -> Iterator[tuple[Floats, NDArray[np.float32]]]:
    """Outputs and representations row by row; several rows at a time on processors."""
    places: dict[int, Where] = {}

    def batches() -> Iterator[Batch]:
        for row in rows:
            batch, where = pack_units([units[index] for index in row], network.family)
            places[row[0]] = where
            yield dataclasses.replace(batch, indices=tuple(row))

    def compute(batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        where = places.pop(batch.indices[0]).to(network.device)
        hidden = network.hidden(batch)
        outputs = network.head(hidden, where).double()
        return outputs, network.head.represent(hidden, where).float() if represent else None

    for outputs, seen in encoder.run(network, batches(), compute):
        yield outputs.numpy(), np.empty((0, 0), np.float32) if seen is None else seen.numpy()
