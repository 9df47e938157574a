"""What a training will cost, said before it starts, and a token budget that fits the memory."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass

import torch

from plm import stage
from plm.data.task import Task
from plm.jobs.finetune import objectives
from plm.jobs.finetune.batches import TrainingExamples
from plm.model.loaded import LoadedModel
from plm.model.network import Network

MIB = 2**20
SMALLEST_BUDGET = 256
_SHARE = 0.8
"""Of the free memory; the rest is for fragmentation and what else the process holds."""


@dataclass(frozen=True)
class TrainingCost:
    """What one training costs.

    Attributes:
        memory_mib: Peak memory of the process, or of the GPU.
        seconds_per_token: Forward and backward pass.
    """

    memory_mib: int
    seconds_per_token: float


def activation_bytes(loaded: LoadedModel, longest: int, *, checkpointing: bool, bytes_per_value: int) -> int:
    """Estimated memory for the backward pass, per token of a packed row.

    Gradient checkpointing keeps 2 widths a layer and token, and the attention weights (of families that keep them: one
    value per head and token of the sequence) of one layer only.
    """
    law = loaded.family.memory
    values = loaded.layers * loaded.hidden_size * (2 if checkpointing else law.trained_per_token)
    if law.trained_per_pair:
        heads = int(loaded.model.config.num_attention_heads)
        values += law.trained_per_pair * heads * longest * (1 if checkpointing else loaded.layers)
    return values * bytes_per_value


def fitting_budget(
    loaded: LoadedModel, wanted: int, longest: int, trainable: int, *, checkpointing: bool, bytes_per_value: int
) -> int:
    """The token budget, lowered if the memory does not hold the one wanted.

    Args:
        loaded: The model, on its device.
        wanted: Tokens asked for.
        longest: Tokens of the longest sequence.
        trainable: Number of trainable parameters; gradient and AdamW's two moments take 12 bytes each.
        checkpointing: Gradient checkpointing is on.
        bytes_per_value: 2 in bfloat16, else 4.
    """
    if loaded.device.type == "cuda":
        free = torch.cuda.mem_get_info(loaded.device)[0]
    else:
        free = stage.memory_mib() * MIB
    free = int(free * _SHARE) - 12 * trainable
    budget = wanted
    while budget > SMALLEST_BUDGET:
        each = activation_bytes(
            loaded, min(longest, budget), checkpointing=checkpointing, bytes_per_value=bytes_per_value
        )
        if each * budget <= free:
            break
        budget //= 2
    return max(budget, min(wanted, SMALLEST_BUDGET))


def measure(network: Network, task: Task, examples: TrainingExamples, budget: int, sequences: int) -> TrainingCost:
    """Runs the costliest step forward and backward and takes time and memory; weights and gradients stay as they were.

    Args:
        network: What is trained.
        task: What the targets mean.
        examples: The longest of them are run.
        budget: Tokens in a packed row.
        sequences: Sequences in an optimiser step.

    Raises:
        torch.cuda.OutOfMemoryError: The row does not fit the GPU.
    """
    order = sorted(range(len(examples.units)), key=lambda index: -examples.units[index].length)
    row: list[int] = []
    used = 0
    for index in order[:sequences]:
        if row and used + examples.units[index].length > budget:
            break
        row.append(index)
        used += examples.units[index].length
    device = network.device
    micro = examples.micro_batch(row, network.family).to(device)
    network.train()
    seconds = 0.0
    for _ in range(2):  # the first pass warms up
        start = time.perf_counter()
        outputs = network(micro.batch, micro.where)
        objectives.loss_sum(outputs, micro.targets, task, None).backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - start
        network.zero_grad(set_to_none=True)
    trainable = network.parameter_counts()[1]
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return TrainingCost(int(peak + 12 * trainable) // MIB, seconds / used)
