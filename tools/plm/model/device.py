"""Where a model runs and in which precision: one policy, said in the log."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Literal

from plm.errors import UserError

if TYPE_CHECKING:
    import torch

    from plm.model.ranks import Ranks

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""The type of numbers that a model is loaded in, by precision."""


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
    chosen = choose_device(device, log)
    if chosen.type == "cuda":
        import torch

        count = torch.cuda.device_count()
        if ranks and ranks.world > 1:
            chosen = choose_device(f"cuda:{ranks.local % count}", log)
        elif ranks and count > 1 and log is not None:
            log.info("%d GPUs are visible and one is used: torchrun --nproc-per-node %d uses all", count, count)
        if chosen.index is not None:
            torch.cuda.set_device(chosen)
    arithmetic = choose_precision(precision, chosen)
    if log is not None:
        announce(log, chosen, arithmetic)
    return chosen, arithmetic


def choose_device(requested: str = "auto", log: logging.Logger | None = None) -> torch.device:
    """The device to run on: a CUDA device if there is one that torch has kernels for, else the processor.

    Args:
        requested: ``auto``, ``cpu`` or ``cuda`` (also ``cuda:1``).
        log: Told why a GPU that is there is not used.

    Raises:
        UserError: CUDA was asked for and there is none, or none that torch has kernels for.
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
        if reason := _without_kernels(torch.device(requested)):
            fix = "Use --device cpu, or a torch built for this GPU"
            raise UserError(reason, where=f"--device {requested}", fix=fix)
        return torch.device(requested)
    if requested != "auto":
        raise UserError(f"Unknown device {requested!r}", where="--device", fix="Use auto, cpu or cuda")
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if reason := _without_kernels(torch.device("cuda")):
        if log is not None:
            log.warning("%s: the processor is used", reason)
        return torch.device("cpu")
    return torch.device("cuda")


def _without_kernels(device: torch.device) -> str:
    """Why torch cannot compute on a CUDA device; empty if it can."""
    import torch

    major, minor = torch.cuda.get_device_capability(device)
    built = torch.cuda.get_arch_list()
    for name in built:
        kind, _, digits = name.partition("_")
        digits = digits.rstrip("abcdefghijklmnopqrstuvwxyz")  # sm_90a
        if not digits.isdigit():
            continue
        its = int(digits[:-1]), int(digits[-1])
        if (its[0] == major and its[1] <= minor) if kind == "sm" else its <= (major, minor):
            return ""
    if not built:
        return ""
    name = torch.cuda.get_device_name(device)
    return f"{name} has compute capability {major}.{minor}, for which this torch has no kernels ({', '.join(built)})"


def half_where_safe(
    requested: str, precision: Precision, device: torch.device, *, half_safe: bool, log: logging.Logger
) -> Precision:
    """float16 on a GPU that multiplies no bfloat16, where nobody asked for another precision and the family bears it.

    Args:
        requested: As the user gave it.
        precision: As :func:`settle` chose it.
        device: Where the model runs, without gradients.
        half_safe: Whether the model's family computes well in float16.
        log: Told of it, or why not.
    """
    if requested != "auto" or device.type != "cuda" or precision != "fp32":
        return precision
    import torch

    if torch.cuda.get_device_capability(device) < (7, 0):
        return precision
    if not half_safe:
        log.info("This GPU has no bfloat16, and models of this family overflow in float16: float32 is used")
        return precision
    log.info("This GPU has no bfloat16: float16 is used, and float32 from where a number is not finite")
    return "fp16"


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
        logger.info(
            "Device: %s, %d MiB, compute capability %d.%d, %s", properties.name, properties.total_memory // 2**20,
            properties.major, properties.minor, precision,
        )
    else:
        logger.info(
            "Device: CPU with %d threads, %s. No GPU is used: large models will be slow here",
            torch.get_num_threads(), precision,
        )
