"""Where a model runs and in which precision: one policy, said in the log."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Literal

from plm.errors import UserError

if TYPE_CHECKING:
    import torch

    from plm.model.ranks import Ranks

Precision = Literal["fp32", "bf16"]


def settle(
    device: str, precision: str, threads: int, log: logging.Logger | None, ranks: Ranks | None = None
) -> tuple[torch.device, Precision]:
    """Where a job runs and how, as the first line of its log says.

    Args:
        device: As for :func:`choose_device`.
        precision: As for :func:`choose_precision`.
        threads: Processor threads of the job.
        log: Takes the line; None: the caller says it, after what matters more.
        ranks: The processes of the job; those of one machine share its threads and take a GPU each.
    """
    use_threads(max(1, threads // (ranks.here if ranks else 1)))
    chosen = choose_device(device)
    if ranks and chosen.type == "cuda" and ranks.world > 1:
        chosen = choose_device(f"cuda:{ranks.local}")
    arithmetic = choose_precision(precision, chosen)
    if log is not None:
        announce(log, chosen, arithmetic)
    return chosen, arithmetic


def choose_device(requested: str = "auto") -> torch.device:
    """The device to run on: a CUDA device if there is one, else the processor.

    Args:
        requested: ``auto``, ``cpu`` or ``cuda`` (also ``cuda:1``).

    Raises:
        UserError: CUDA was asked for and there is none.
    """
    import torch

    if requested == "cpu":
        return torch.device("cpu")
    if requested.startswith("cuda"):
        if not torch.cuda.is_available():
            raise UserError(
                "No CUDA device is visible to this job", where=f"--device {requested}",
                fix="Ask the administrator for a GPU destination or use --device auto",
            )
        return torch.device(requested)
    if requested != "auto":
        raise UserError(f"Unknown device {requested!r}", where="--device", fix="Use auto, cpu or cuda")
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def choose_precision(requested: str, device: torch.device) -> Precision:
    """The arithmetic for matrix products: bfloat16 where the hardware multiplies it natively, else float32.

    Args:
        requested: ``auto``, ``fp32`` or ``bf16``.
        device: Where the model runs.
    """
    known: dict[str, Precision] = {"fp32": "fp32", "bf16": "bf16"}
    if requested in known:
        return known[requested]
    if requested != "auto":
        raise UserError(f"Unknown precision {requested!r}", where="--precision", fix="Use auto, fp32 or bf16")
    return "bf16" if _has_native_bf16(device) else "fp32"


def _has_native_bf16(device: torch.device) -> bool:
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)


def use_threads(count: int) -> None:
    """Limits torch to the threads that the scheduler gave the job."""
    import torch

    os.environ.setdefault("OMP_NUM_THREADS", str(count))
    torch.set_num_threads(count)
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Lets glibc reuse freed blocks of up to 64 MiB instead of fetching zeroed pages from the kernel for each tensor.

    Costs some memory that stays with the process, saves 6 % of the time here and far more under virtualisation.
    """
    import ctypes
    import sys

    if sys.platform != "linux":
        return
    m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return
    mallopt(m_mmap_threshold, 64 * 2**20)
    mallopt(m_trim_threshold, 256 * 2**20)


def announce(logger: logging.Logger, device: torch.device, precision: Precision) -> None:
    """Writes the first line of every job: the device, and plainly when no GPU was found."""
    import torch

    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        logger.info("Device: %s, %d MiB, %s", properties.name, properties.total_memory // 2**20, precision)
    else:
        logger.info(
            "Device: CPU with %d threads, %s. No GPU is used: large models will be slow here",
            torch.get_num_threads(), precision,
        )
