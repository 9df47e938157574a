"""Several processes of one job on one machine, as torchrun starts them: who am I, and are the others there yet."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from dataclasses import dataclass
from datetime import timedelta


def take_own_slice(environment: MutableMapping[str, str], local: int) -> None:
    """Leaves a process the slice of a divided GPU (MIG) that is its own: CUDA shows a process one slice only, the first
    of those in ``CUDA_VISIBLE_DEVICES``.

    Args:
        environment: Changed where it names several slices.
        local: Number of the process on its machine.
    """
    visible = [name.strip() for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    if len(visible) > 1 and all(name.startswith("MIG-") for name in visible):
        environment["CUDA_VISIBLE_DEVICES"] = visible[local % len(visible)]


@dataclass(frozen=True)
class Ranks:
    """This process among those of the job.

    Attributes:
        rank: 0 leads: it plans, assembles and writes.
        world: How many there are.
        local: Number of this one on its machine, which is the number of its GPU.
        here: How many there are on this machine.
    """

    rank: int = 0
    world: int = 1
    local: int = 0
    here: int = 1

    @classmethod
    def join(cls, *, gpus: bool = False) -> Ranks:
        """Meets the other processes that torchrun has started; alone without it.

        Args:
            gpus: Whether tensors on GPUs are exchanged too, as training does.
        """
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world == 1 or "MASTER_ADDR" not in os.environ:
            return cls()
        local = int(os.environ.get("LOCAL_RANK", "0"))
        take_own_slice(os.environ, local)
        import torch.distributed as dist

        if os.environ.get("MASTER_ADDR") in ("localhost", "127.0.0.1"):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        # The leader may wait for hours. A process that dies breaks the connection, which ends all of them at once.
        import torch

        backend = "cpu:gloo,cuda:nccl" if gpus and torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=timedelta(days=30))
        return cls(dist.get_rank(), world, local, int(os.environ.get("LOCAL_WORLD_SIZE", str(world))))

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def meet(self) -> None:
        """Waits until all processes are here."""
        if self.world > 1:
            import torch.distributed as dist

            dist.barrier()

    def told(self, text: str) -> str:
        """The leader's text, in all processes."""
        if self.world == 1:
            return text
        import torch
        import torch.distributed as dist

        data = text.encode()
        size = torch.tensor([len(data)])
        dist.broadcast(size, 0)
        content = torch.zeros(int(size), dtype=torch.uint8)
        if self.leads:
            content.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        dist.broadcast(content, 0)
        return bytes(content.tolist()).decode()

    def leave(self) -> None:
        """Ends the connection."""
        if self.world > 1:
            import torch.distributed as dist

            dist.destroy_process_group()
