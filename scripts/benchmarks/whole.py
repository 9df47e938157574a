"""Whole processes from a FASTA file to a file of means: ``plm_embed`` beside fair-esm's ``extract.py``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.shapes import ROOT

PROGRAMS = {"extract": "fair-esm, extract.py", "stage": "this suite, plm_embed"}


@dataclass(frozen=True)
class Process:
    """A process that has ended.

    Attributes:
        seconds: From its start to its end.
        memory_mib: Its peak resident memory.
    """

    seconds: float
    memory_mib: int


def command(program: str, model: Path, fasta: Path, target: Path) -> list[str]:
    """The command line of a program of :data:`PROGRAMS`; it leaves its files in the folder ``target``."""
    if program == "extract":
        return [
            sys.executable,
            str(Path(__file__).with_name("extract_process.py")),
            str(model),
            str(fasta),
            str(target),
        ]
    flags = ["--input", fasta, "--model", model, "--device", "cpu", "--embeddings", target / "means.h5"]
    return [sys.executable, str(ROOT / "tools" / "plm_embed.py"), *map(str, flags)]


def run(program: str, model: Path, fasta: Path, target: Path) -> Process:
    """Runs a program into an empty folder.

    Raises:
        RuntimeError: It failed.
    """
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    log = target.with_suffix(".log")
    started = time.perf_counter()
    with log.open("w") as opened:
        process = subprocess.Popen(command(program, model, fasta, target), stdout=opened, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)  # the only way to learn one child's own peak memory
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - started
    if process.returncode != 0:
        raise RuntimeError(f"{program} failed:\n{log.read_text()[-2000:]}")
    return Process(seconds, usage.ru_maxrss // 1024)


def means(program: str, target: Path, names: Sequence[str]) -> NDArray[np.float32]:
    """What a program left, ``(N, D)`` float32 in the order of ``names``."""
    if program == "extract":
        import torch

        found = [torch.load(target / f"{name}.pt", weights_only=True)["mean_representations"] for name in names]
        return np.stack([next(iter(each.values())).numpy() for each in found])
    from plm.data.embeddings.files import read_embeddings

    with read_embeddings(target / "means.h5") as opened:
        place = {name: number for number, name in enumerate(opened.ids)}
        return opened.matrix()[[place[name] for name in names]]
