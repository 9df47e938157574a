"""What models cost: parameters, bytes, residues a second, memory; measured in processes of their own, in turns.

Each model lives in a process of its own, so that its peak memory is its own. The processes encode the same proteins one
after the other, round after round: when other work on the machine slows one down it slows its neighbours in the round
too, and ratios of speeds within a round hold.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plm
from plm.errors import UserError
from plm.model.checkpoint import weight_files
from plm.model.loaded import ModelFiles


@dataclass(frozen=True)
class ModelCost:
    """What one model costs.

    Attributes:
        name: Name of the model.
        parameters: Number of parameters of its encoder.
        bytes: Bytes of its weight files.
        speeds: Residues a second in each round.
        peak_mib: Most memory that its process held, in MiB.
        empty_mib: What the process held before the model was loaded: Python and its libraries.
        cuda_mib: Most GPU memory in MiB; 0 without a GPU.
        loading: Seconds that loading took.
    """

    name: str
    parameters: int
    bytes: int
    speeds: tuple[float, ...]
    peak_mib: float
    empty_mib: float
    cuda_mib: float
    loading: float

    @property
    def speed(self) -> float:
        """Median residues a second."""
        import numpy as np

        return float(np.median(self.speeds))

    def times(self, other: ModelCost) -> tuple[float, float, float]:
        """How many times as fast as another: median over the rounds, lowest, highest."""
        import numpy as np

        ratios = [mine / theirs for mine, theirs in zip(self.speeds, other.speeds, strict=True)]
        return float(np.median(ratios)), min(ratios), max(ratios)


class _Process:
    """One model's process."""

    def __init__(self, name: str, files: ModelFiles, order: dict[str, Any], threads: int) -> None:
        self.name, self.files = name, files
        tools = str(Path(plm.__file__).resolve().parents[1])
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [tools, os.environ.get("PYTHONPATH", "")]))
        self._child = subprocess.Popen(
            [sys.executable, "-m", "plm.jobs.compare_models.cost_process"], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, env=environment,
        )
        self._tell(json.dumps({"name": name, "folder": str(files.directory), "threads": threads, **order}))
        self.ready = self._answer()

    def _tell(self, line: str) -> None:
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(line + "\n")
            self._child.stdin.flush()
        except BrokenPipeError:  # it has died; the answer says how
            pass

    def _answer(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            code = self._child.wait()
            how = "was killed, probably for memory" if code in (-9, 137) else f"died (exit status {code})"
            raise UserError(
                f"The process that measures the model {how}",
                where=self.name, fix="Give the job more memory, or leave the measurement out with --turns 0",
            )
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise UserError(answer["error"], where=answer["where"], fix=answer["fix"])
        return answer

    def seconds(self) -> float:
        self._tell("go")
        return float(self._answer()["seconds"])

    def end(self) -> dict[str, Any]:
        self._tell("end")
        return self._answer()

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *error: object) -> None:
        if self._child.stdin is not None:
            with suppress(BrokenPipeError):
                self._child.stdin.close()
        try:
            self._child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        if self._child.stdout is not None:
            self._child.stdout.close()


def measure(
    models: Sequence[tuple[str, ModelFiles]], sequences: Sequence[str], *, turns: int, threads: int, device: str,
    precision: str, together: bool = True, told: Callable[[str], None] | None = None,
) -> list[ModelCost]:
    """Measures models that encode the same proteins.

    Args:
        models: Name and checkpoint of each.
        sequences: Proteins to encode.
        turns: Rounds in which each model encodes all of them once.
        threads: Processor threads of each process; only one works at a time.
        device: ``cpu`` or ``cuda``.
        precision: ``bf16`` or ``fp32``.
        together: All models are in memory, and take turns; else one is measured after the other.
        told: Gets a line a round.

    Raises:
        UserError: A process died, or a model does not load.
    """
    order = {"sequences": list(sequences), "device": device, "precision": precision}
    residues = sum(map(len, sequences))
    tell = told or (lambda line: None)
    if not together:
        return [cost for model in models for cost in _rounds([model], order, residues, turns, threads, tell)]
    return _rounds(models, order, residues, turns, threads, tell)


def _rounds(
    models: Sequence[tuple[str, ModelFiles]], order: dict[str, Any], residues: int, turns: int, threads: int,
    tell: Callable[[str], None],
) -> list[ModelCost]:
    with ExitStack() as stack:
        processes = [stack.enter_context(_Process(name, files, order, threads)) for name, files in models]
        speeds: list[list[float]] = [[] for _ in processes]
        for turn in range(turns):
            # Each round begins with another model, so that none always follows the same one.
            for place in range(len(processes)):
                number = (turn + place) % len(processes)
                speeds[number].append(residues / processes[number].seconds())
            rates = [f"{process.name} {mine[-1]:,.0f}" for process, mine in zip(processes, speeds, strict=True)]
            tell(f"Round {turn + 1} of {turns}: {', '.join(rates)} residues/s")
        costs = []
        for process, mine in zip(processes, speeds, strict=True):
            last, ready = process.end(), process.ready
            size = sum(path.stat().st_size for path in weight_files(process.files.directory))
            costs.append(
                ModelCost(
                    process.name, int(ready["parameters"]), size, tuple(mine), last["peak_mib"], last["empty_mib"],
                    last["cuda_mib"], ready["loading"],
                )
            )
    return costs
