"""The check that users run on their GPU: its part for processors, and its lines for a device on the stand-in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cuda_stand_in import StandIn
from harness import gpu_check

NEAR = ["device", "attention", "families"]


@pytest.fixture(autouse=True)
def _swapped() -> Iterator[None]:
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(False)


def run(folder: Path, *only: str) -> tuple[int, dict[str, Any], str]:
    code = gpu_check.main(["--output", str(folder), "--only", *only])
    return code, json.loads((folder / "report.json").read_text()), (folder / "report.md").read_text()


def test_without_a_device_it_says_that_nothing_is_proven(tmp_path: Path) -> None:
    code, content, text = run(tmp_path, *NEAR, "memory", "resume", "processes")
    assert code == gpu_check.NO_DEVICE
    assert "NO CUDA DEVICE WAS THERE: nothing is proven about a GPU" in text
    assert content["passed"] and not content["device_was_there"]
    results = {(one["part"], one["result"]) for one in content["findings"]}
    assert results >= {("attention", "passed"), ("families", "passed"), ("memory", "left out")}
    assert sum(one["part"] == "families" for one in content["findings"]) == 12


def test_what_fails_is_told_and_ends_with_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gpu_check._LIMITS, "bfloat16", 1e-6)
    code, content, text = run(tmp_path, "families")
    assert code == 1 and not content["passed"]
    failed = [one["name"] for one in content["findings"] if one["result"] == "failed"]
    assert len(failed) == 6 and all("bfloat16" in name for name in failed)
    assert "6 checks failed" in text and "more than 1e-06" in text


def test_its_lines_for_a_device_run(tmp_path: Path) -> None:
    with StandIn().attached():
        code, content, text = run(tmp_path, *NEAR, "processes")
    assert code == 0, text
    assert content["facts"]["compute capability"] == "9.0"
    assert "All checks passed on Stand-in" in text
    ways = {one["name"].split(",")[1].strip() for one in content["findings"] if one["part"] == "attention"}
    assert ways == {"float32", "float16", "bfloat16"}


def test_every_stage_with_a_model_has_a_command(root: Path) -> None:
    with_device = {
        path.stem.removeprefix("plm_") for path in (root / "tools").glob("plm_*.py")
        if "flags.Device" in path.read_text() and "flags.device" not in path.read_text()
    }
    assert with_device <= {line.split()[0] for line in gpu_check.STAGES.values()}


@pytest.mark.slow
def test_the_benchmark_for_gpus_runs_on_processors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks import gpu_command

    words = "--shapes tiny,tinyT5 --residues 600 --rounds 1 --steps 5"
    gpu_command.main([*words.split(), "--work", str(tmp_path / "work"), "--output", str(tmp_path)])
    told = capsys.readouterr()
    assert "NO CUDA DEVICE IS THERE" in told.err and "esm-efficient is left out" in told.err
    content = json.loads((tmp_path / "figures" / "gpu.json").read_text())
    assert [one["shape"] for one in content["shapes"]] == ["tiny", "tinyT5"]
    for one in content["shapes"]:
        ways = one["embed"]["ways"]
        assert {"suite", "hf padded", "hf sorted"} <= set(ways)
        assert min(way["lowest_cosine"] for way in ways.values()) > 0.999
        assert one["lora"]["tokens_per_second"] > 0 and one["lora-hf"]["tokens_per_second"] > 0
    assert content["shapes"][0]["pretrain"]["tokens_per_second"] > 0
    assert "longest" not in content["shapes"][0]
    with pytest.raises(SystemExit, match="--tasks fast: choose of embed"):
        gpu_command.main(["--tasks", "fast", "--output", str(tmp_path)])
    assert "| tinyT5 | embedding, suite |" in (tmp_path / "benchmarks.md").read_text()
