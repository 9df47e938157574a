"""Training examples and the order in which they come: reproducible, resumable, token-budgeted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from plm.data.task import Level
from plm.jobs.finetune.objectives import Array
from plm.model.batching import Batch, plan_batches, sent
from plm.model.encoder_inputs import Unit, pack_units
from plm.model.families import ModelFamily
from plm.model.heads.head import Where


@dataclass(frozen=True)
class MicroBatch:
    """One packed row with its targets.

    Attributes:
        batch: Packed tokens of the row.
        where: Places in the row that the head reads.
        targets: ``(N,)`` in the order of the head's outputs.
    """

    batch: Batch
    where: Where
    targets: torch.Tensor

    def to(self, device: torch.device | str) -> MicroBatch:
        return MicroBatch(self.batch.to(device), self.where.to(device), sent(self.targets, torch.device(device)))


@dataclass(frozen=True)
class TrainingExamples:
    """Units with the targets of their answers.

    Attributes:
        units: Sequences or windows that are encoded as one.
        targets: ``(n,)`` targets of each unit.
    """

    units: list[Unit]
    targets: list[Array]

    @property
    def tokens(self) -> int:
        return sum(unit.length for unit in self.units)

    def micro_batch(self, chosen: Sequence[int], family: ModelFamily) -> MicroBatch:
        """Packs the chosen units into one row."""
        batch, where = pack_units([self.units[index] for index in chosen], family)
        return MicroBatch(batch, where, torch.from_numpy(np.concatenate([self.targets[index] for index in chosen])))


def make_examples(units: list[Unit], rows: Sequence[Array], level: Level) -> TrainingExamples:
    """Joins units to the targets of their rows.

    Args:
        units: From :func:`plm.model.encoder_inputs.make_units`.
        rows: Targets of each row, from :func:`plm.jobs.finetune.objectives.targets`.
        level: Level of the task: ``sequence``, ``residue`` or ``site``.
    """
    targets: list[Array] = []
    for unit in units:
        if level == "residue":
            targets.append(rows[unit.rows[0]][unit.offset : unit.offset + unit.answers(level)])
        else:
            targets.append(np.concatenate([rows[row] for row in unit.rows]))
    return TrainingExamples(units, targets)


class StepSampler(Sampler[list[int]]):
    """Units of each optimiser step, shuffled anew in each epoch by seed and epoch alone.

    Args:
        count: Number of units.
        size: Units in a step; the last step of an epoch may have fewer.
        seed: Random seed.
    """

    def __init__(self, count: int, size: int, seed: int) -> None:
        self.count, self.size, self.seed = count, size, seed
        self.epoch = 0

    def __len__(self) -> int:
        return -(-self.count // self.size)

    def __iter__(self) -> Iterator[list[int]]:
        order: NDArray[np.int64] = np.random.default_rng([self.seed, self.epoch]).permutation(self.count)
        for start in range(0, self.count, self.size):
            yield order[start : start + self.size].tolist()


class _Numbers(Dataset[int]):
    """Unit numbers as a dataset: the collating function packs the units themselves."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        return index


def step_loader(
    examples: TrainingExamples, family: ModelFamily, sampler: StepSampler, budget: int
) -> DataLoader[list[MicroBatch]]:
    """Yields one optimiser step at a time, as micro-batches of at most ``budget`` tokens each."""

    def collate(chosen: list[int]) -> list[MicroBatch]:
        rows = plan_batches([examples.units[index].length for index in chosen], budget)
        return [examples.micro_batch([chosen[number] for number in row], family) for row in rows]

    return DataLoader(_Numbers(len(examples.units)), batch_sampler=sampler, collate_fn=collate)
