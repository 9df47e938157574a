"""plm_distill notes its steps in MLflow where that is installed: in an environment of its own, for pandas < 3."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_distill import flags

READ_BACK = """
import json, sys
from mlflow import MlflowClient
client = MlflowClient(tracking_uri=sys.argv[1])
experiment = client.get_experiment_by_name("plm_distill")
(run,) = client.search_runs([experiment.experiment_id])
metrics = {name: [(entry.step, entry.value) for entry in client.get_metric_history(run.info.run_id, name)]
           for name in run.data.metrics}
told = {"name": run.info.run_name, "status": run.info.status, "params": run.data.params, "metrics": metrics}
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def python_with_mlflow(root: Path) -> Path:
    """An environment with MLflow and the packages of this one behind it, kept below the checkout."""
    folder = root / ".plm" / "envs" / "mlflow"
    python = folder / "bin" / "python"
    if not (folder / "made").is_file():
        starter = root / ".plm" / "envs" / "boot" / "bin" / "python"
        if not starter.is_file():
            pytest.skip("MLFLOW UNTESTED: scripts/test has not made .plm/envs/boot here")
        made = [str(starter), "-m", "uv"]
        for command in (
            [*made, "venv", "-q", "--clear", "--python", sys.executable, str(folder)],
            [*made, "pip", "install", "-q", "--python", str(python), "mlflow", "pandas<3"],
        ):
            done = subprocess.run(command, capture_output=True, text=True, timeout=900)
            if done.returncode != 0:
                pytest.skip(f"MLFLOW UNTESTED: it could not be installed ({done.stderr.strip()[-200:]})")
        (packages,) = folder.glob("lib/python*/site-packages")
        (packages / "plm_tools.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
        (folder / "made").touch()
    return python


@pytest.mark.slow
def test_every_step_is_read_back(python_with_mlflow: Path, root: Path, tiny_esm2: Path, tmp_path: Path) -> None:
    address = f"sqlite:///{tmp_path / 'runs.db'}"
    out = tmp_path / "out"
    script = str(root / "tools" / "plm_distill.py")
    command = [str(python_with_mlflow), script, *flags(out, tiny_esm2, steps=6, mlflow=address, title="a small one")]
    environment = {**os.environ, "GALAXY_SLOTS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = subprocess.run(
        [str(python_with_mlflow), "-c", READ_BACK, address], capture_output=True, text=True, timeout=300, cwd=tmp_path
    )
    assert told.returncode == 0, told.stderr
    found = json.loads(told.stdout.splitlines()[-1])
    assert found["name"] == "a small one" and found["status"] == "FINISHED"
    assert found["params"]["Loss"].startswith("1 x KL divergence") and "tiny_esm2" in found["params"]["Teacher"]
    with (out / "history.tsv").open() as opened:
        history = list(csv.DictReader(opened, delimiter="\t"))
    for name in ("train_loss", "kl", "kernel", "hidden", "mlm", "learning_rate", "masked_perplexity"):
        expected = [(int(row["step"]), float(row[name])) for row in history if row[name]]
        assert [step for step, _ in found["metrics"][name]] == [step for step, _ in expected], name
        for (_, value), (_, known) in zip(found["metrics"][name], expected, strict=True):
            assert value == pytest.approx(known, rel=1e-4, abs=1e-9)
    assert "tokens" not in found["metrics"]
    broken = [part if part != address else "nonsense://tracking" for part in command]
    refused = subprocess.run(broken, capture_output=True, text=True, timeout=600, env=environment, cwd=tmp_path)
    assert refused.returncode == 1 and "plm_distill: error: MLflow cannot be used" in refused.stderr
