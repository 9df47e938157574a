"""Runs a stage's script in a process forked from one that has loaded the libraries already.

Most of a stage's time on tiny inputs goes into loading torch, transformers and scikit-learn: four seconds a run. The
script, its flags, its files and its process are as Galaxy has them; only the libraries were loaded before.
"""

from __future__ import annotations

import atexit
import io
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = (
    "numpy", "pandas", "scipy.stats", "scipy.optimize", "scipy.spatial.distance", "h5py", "pyarrow.parquet",
    "Bio.SeqIO", "sklearn.linear_model", "sklearn.metrics", "sklearn.model_selection", "sklearn.preprocessing",
    "sklearn.pipeline", "sklearn.neighbors", "sklearn.isotonic", "torch", "torch.optim", "safetensors.torch",
    "tokenizers", "transformers", "transformers.trainer", "transformers.models.esm.modeling_esm",
    "transformers.models.t5.modeling_t5", "transformers.models.bert.modeling_bert", "peft", "accelerate",
    "matplotlib.figure", "matplotlib.backends.backend_agg",
)
"""Loaded before the first run; of the suite itself nothing is."""
READ_EARLY = ("PYTHON", "LD_", "OMP_", "MKL_", "OPENBLAS_", "HF_", "TRANSFORMERS_", "CUDA_", "MPL")
"""Beginnings of variables that are read when Python or a library is loaded."""
OF_STAGES = (
    "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "OMP_WAIT_POLICY",
    "OMP_NUM_THREADS",
)
"""Such variables that stages set for themselves, also in the tests' own process where one runs there."""

_context = multiprocessing.get_context("forkserver")
_begun_with: dict[str, str] = {}


def begin() -> None:
    """Takes the variables of this moment for those that every run shares."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is loaded, set by each stage
    _begun_with.update(_bound(os.environ, OF_STAGES))
    _context.set_forkserver_preload(list(LIBRARIES))


def run(
    command: Sequence[str], changes: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str] | None:
    """Runs a script of the suite and gives what ``subprocess.run`` would.

    Args:
        command: The interpreter, the script's path and its arguments.
        changes: Variables of the run that this process has not.
        timeout: Seconds.

    Returns:
        The answer; None where a variable asks for a process that loads its libraries itself.

    Raises:
        subprocess.TimeoutExpired: The run took longer; it was ended.
    """
    if _bound(changes, ()) or _bound(os.environ, OF_STAGES) != _begun_with:
        return None
    return _run_all(command, [{**os.environ, **changes}], timeout)


def run_together(command: Sequence[str], processes: int, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Runs a script in several processes that find each other as those of torchrun do; their outputs one by one.

    Raises:
        subprocess.TimeoutExpired: They took longer; they were ended.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        **os.environ, "GALAXY_SLOTS": str(processes), "PLM_CHECKPOINT_DIR": "", "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }
    ranks = [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    return _run_all(command, ranks, timeout)


def _run_all(
    command: Sequence[str], environments: Sequence[dict[str, str]], timeout: float
) -> subprocess.CompletedProcess[str]:
    begun, late = time.monotonic(), False
    with tempfile.TemporaryDirectory() as folder:
        texts = [[str(Path(folder) / f"{name}{one}") for name in ("out", "err")] for one in range(len(environments))]
        jobs = [
            _context.Process(target=_run, args=(list(command[1:]), environment, str(Path.cwd()), written))
            for environment, written in zip(environments, texts, strict=True)
        ]
        for job in jobs:
            job.start()
        for job in jobs:
            job.join(max(0.0, begun + timeout - time.monotonic()))
            if job.is_alive():
                late = True
                job.kill()
                job.join()
        codes = [job.exitcode or 0 for job in jobs]
        output, errors = ("".join(_read(written[place]) for written in texts) for place in (0, 1))
    if late:
        raise subprocess.TimeoutExpired(list(command), timeout, output=output, stderr=errors)
    return subprocess.CompletedProcess(list(command), next((code for code in codes if code), 0), output, errors)


def _read(path: str) -> str:
    return Path(path).read_bytes().decode() if Path(path).exists() else ""


def _bound(environment: Mapping[str, str], besides: Sequence[str]) -> dict[str, str]:
    bound = {name: value for name, value in environment.items() if name.startswith(READ_EARLY)}
    return {name: value for name, value in bound.items() if name not in besides}


def _run(arguments: list[str], environment: dict[str, str], folder: str, texts: list[str]) -> None:
    for descriptor, text in enumerate(texts, start=1):
        opened = os.open(text, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(opened, descriptor)
        os.close(opened)
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), encoding="utf-8")
    sys.stderr = io.TextIOWrapper(
        io.FileIO(2, "w", closefd=False), encoding="utf-8", errors="backslashreplace", write_through=True
    )
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = arguments
    of_the_tests = ["", *(str(ROOT / name) for name in ("tests", "tools", "scripts"))]
    sys.path[:] = [str(Path(arguments[0]).parent), *(entry for entry in sys.path if entry not in of_the_tests)]
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
