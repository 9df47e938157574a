"""Fair timing on a shared machine: variants take turns, and only ratios within a round count."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Ratio:
    """A quotient over the rounds: median and range."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.median:.2f}"
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


Seconds = list[float | None]
"""Seconds of one variant, one entry a round; None where it did not run."""


def interleaved(
    runs: Mapping[str, Callable[[], float]],
    rounds: int,
    *,
    once: Collection[str] = (),
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Seconds]:
    """Times variants in turn, round after round, each round beginning with another one.

    Args:
        runs: What to run, by name; each gives its seconds.
        rounds: How often.
        once: Names that run in the first round only, because they are slow.
        say: Told the progress.
    """
    names = list(runs)
    found: dict[str, Seconds] = {name: [None] * rounds for name in names}
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            if number and name in once:
                continue
            found[name][number] = runs[name]()
            say(f"round {number + 1} of {rounds}: {name} {found[name][number]:.2f} s")
    return found


def clock(
    work: Callable[[], object], synchronize: Callable[[], None] = lambda: None, *, processor: bool = False
) -> float:
    """Seconds that ``work`` takes; ``synchronize`` waits for a GPU; ``processor``: those of the processor, all threads
    together, which other jobs of the machine lengthen less."""
    now = time.process_time if processor else time.perf_counter
    synchronize()
    started = now()
    work()
    synchronize()
    return now() - started


def ratio(above: Sequence[float | None], below: Sequence[float | None]) -> Ratio | None:
    """``above / below`` of the rounds in which both ran; None if there is none."""
    each = [a / b for a, b in zip(above, below, strict=True) if a is not None and b is not None]
    return Ratio(statistics.median(each), min(each), max(each)) if each else None


def machine(threads: int, device: str = "cpu") -> dict[str, str]:
    """What was measured on: processor or GPU, threads and versions."""
    import torch
    import transformers

    found = {"threads": str(threads), "torch": torch.__version__, "transformers": transformers.__version__}
    if device.startswith("cuda"):
        return {"device": torch.cuda.get_device_name(), **found}
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                 if line.startswith("model name")]
        model = lines[0] if lines else model
    bf16 = any(getattr(torch.cpu, f"_is_{name}_supported", lambda: False)() for name in ("avx512_bf16", "amx_tile"))
    return {"device": f"{model}, {'with' if bf16 else 'without'} bfloat16 products", **found}


def use_threads(count: int) -> None:
    """Sets torch's threads here and in every process started from here; before torch is loaded."""
    os.environ["OMP_NUM_THREADS"] = os.environ["GALAXY_SLOTS"] = str(count)
    # Threads that spin while they wait slow every process on a shared machine, peers and ours alike.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
