"""Interrupted training goes on exactly: the same weights, bit for bit, as training that was never interrupted."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import finetuning_cases as cases
import pytest
import torch
from plm.errors import UserError
from plm.jobs.finetune import method_choice, training
from plm.jobs.finetune.job import FineTuningJob, write_zip
from plm.kept import seconds_between
from plm.training.training_state import load_tensors, unpack

OPTIONS: dict[str, Any] = {"epochs": 3, "patience": 0, "batch_sequences": 4}


def weights(made: FineTuningJob) -> list[dict[str, torch.Tensor]]:
    return [load_tensors(run.folder / "weights.safetensors") for run in made.done]


def stop_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the time be up after so many steps."""
    left = [steps]

    def up(self: training.Interruption) -> bool:
        left[0] -= 1
        return left[0] < 0

    monkeypatch.setattr(training.Interruption, "time_is_up", up)


@pytest.mark.parametrize(("method", "steps"), [
    pytest.param("lora", 0, marks=pytest.mark.slow), ("lora", 2), pytest.param("full", 4, marks=pytest.mark.slow),
    pytest.param("lora", 9, marks=pytest.mark.slow),
])
def test_resumed_equals_uninterrupted_bit_for_bit(
    method: str, steps: int, tiny_esm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stops within an epoch, at its end, and in the second of two seeds; dropout is on, so random numbers matter."""
    frame = cases.dataset("site", "class", 24)
    options = {**OPTIONS, "method": method, "seeds": (1, 2)}
    whole = cases.trained(frame, tiny_esm2, tmp_path / "whole", **options)

    with monkeypatch.context() as patched:
        stop_after(steps, patched)
        first = cases.job(frame, tiny_esm2, tmp_path / "first", **options)
        first.plan()
        assert not first.train()
        write_zip(tmp_path / "checkpoint.zip", first.checkpoint_files())
    torch.manual_seed(999)

    second = cases.job(frame, tiny_esm2, tmp_path / "second", **options)
    second.resume(tmp_path / "checkpoint.zip")
    second.plan()
    assert second.train()
    for expected, found in zip(weights(whole), weights(second), strict=True):
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert second.history() == whole.history()


@pytest.mark.slow
@pytest.mark.parametrize("steps", [2, 5])
def test_several_ways_resumed_choose_and_give_the_same(
    steps: int, tiny_esm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stops in the first and in the second way."""
    frame = cases.dataset("site", "class", 24)
    options = {**OPTIONS, "method": "head_lora", "others": ("lora", "head"), "metric": "macro_f1"}
    whole = cases.trained(frame, tiny_esm2, tmp_path / "whole", **options)
    with monkeypatch.context() as patched:
        stop_after(steps, patched)
        first = cases.job(frame, tiny_esm2, tmp_path / "first", **options)
        first.plan()
        assert not first.train()
        assert method_choice.choose(first) == [], "one way at most is finished: nothing is compared"
        assert first.chosen == first.settings.ways[0] and first.usable
        write_zip(tmp_path / "checkpoint.zip", first.checkpoint_files())
    second = cases.job(frame, tiny_esm2, tmp_path / "second", **options)
    second.resume(tmp_path / "checkpoint.zip")
    second.plan()
    assert second.train()
    for expected, found in zip(weights(whole), weights(second), strict=True):
        assert all(torch.equal(expected[name], found[name]) for name in expected)
    again, undisturbed = method_choice.choose(second), method_choice.choose(whole)
    assert [way.to_json() for way in again] == [way.to_json() for way in undisturbed]
    assert second.chosen == whole.chosen


def test_periodic_checkpoints_do_not_change_the_result(
    tiny_esm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = cases.dataset("site", "class", 24)
    plain = cases.trained(frame, tiny_esm2, tmp_path / "plain", **OPTIONS)
    kept = tmp_path / "kept"
    kept.mkdir()
    monkeypatch.setenv("PLM_CHECKPOINT_DIR", str(kept))
    monkeypatch.setenv("PLM_CHECKPOINT_MINUTES", "1e-9")
    saved = []
    monkeypatch.setattr("plm.jobs.finetune.job.write_zip", lambda p, f: (saved.append(p), write_zip(p, f)))
    often = cases.trained(frame, tiny_esm2, tmp_path / "often", **OPTIONS)
    assert len(saved) >= 8
    assert often.kept_state is not None and len(list(kept.glob("*.zip"))) == 1, "until the outputs are written"
    often.kept_state.remove()
    assert list(kept.iterdir()) == []  # a finished job leaves nothing behind
    for expected, found in zip(weights(plain), weights(often), strict=True):
        assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize(("said", "seconds"), [("", 600.0), ("0.5", 30.0)])
def test_the_administrator_says_how_often_a_state_is_kept(
    said: str, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLM_CHECKPOINT_MINUTES", said)
    assert seconds_between(10.0) == seconds


@pytest.mark.parametrize("said", ["often", "0", "-1", "nan", "inf"])
def test_a_period_that_is_none_is_one_clear_line(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLM_CHECKPOINT_MINUTES", said)
    with pytest.raises(UserError, match=f"PLM_CHECKPOINT_MINUTES is '{said}'"):
        seconds_between(10.0)


@pytest.mark.parametrize("change", [{"epochs": 4}, {"method": "head"}, {"seeds": (5,)}])
def test_another_training_is_refused(
    change: dict[str, Any], tiny_esm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = cases.dataset("site", "class", 24)
    first = cases.job(frame, tiny_esm2, tmp_path / "first", **OPTIONS)
    first.plan()
    stop_after(0, monkeypatch)
    first.train()
    write_zip(tmp_path / "checkpoint.zip", first.checkpoint_files())
    second = cases.job(frame, tiny_esm2, tmp_path / "second", **{**OPTIONS, **change})
    with pytest.raises(UserError, match="The checkpoint is of another"):
        second.resume(tmp_path / "checkpoint.zip")


def test_checkpoint_holds_no_pickle(tiny_esm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = cases.job(cases.dataset("site", "class", 24), tiny_esm2, tmp_path / "first", **OPTIONS)
    first.plan()
    stop_after(3, monkeypatch)
    first.train()
    write_zip(tmp_path / "checkpoint.zip", first.checkpoint_files())
    with zipfile.ZipFile(tmp_path / "checkpoint.zip") as opened:
        names = opened.namelist()
        assert all(name.endswith((".json", ".safetensors")) for name in names)
        assert {"state/optimizer.safetensors", "state/random.safetensors", "state/weights.safetensors"} <= set(names)
    assert not list((tmp_path / "first").rglob("*.bin")) + list((tmp_path / "first").rglob("*.pt"))


@pytest.mark.parametrize("damage", ["pickle", "truncated", "path", "stage"])
def test_bad_checkpoints_are_refused(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.zip"
    index = '{"schema_version": 1, "stage": "plm_finetune"}'
    names = {"pickle": "state/optimizer.pt", "path": "../escaped.json"}
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr("checkpoint.json", index.replace("plm_finetune", "plm_embed") if damage == "stage" else index)
        if damage in names:
            opened.writestr(names[damage], pickle.dumps({"a": 1}))
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError):
        unpack(path, tmp_path / "out", "plm_finetune")
    assert not (tmp_path / "escaped.json").exists()


@pytest.mark.slow
def test_terminated_job_goes_on_by_itself(root: Path, tiny_esm2: Path, tmp_path: Path) -> None:
    """SIGTERM leaves a checkpoint in the administrator's directory; the same command then ends as if never stopped."""
    kept = tmp_path / "kept"
    kept.mkdir()
    frame = cases.dataset("site", "class", 32)
    frame.to_csv(tmp_path / "dataset.tabular", sep="\t", index=False)
    command = [
        sys.executable, str(root / "tools" / "plm_finetune.py"), "--dataset", str(tmp_path / "dataset.tabular"),
        "--model", str(tiny_esm2), "--epochs", "25", "--patience", "0", "--batch-sequences", "1", "--precision", "fp32",
    ]
    environment = {**os.environ, "PLM_CHECKPOINT_DIR": str(kept), "GALAXY_SLOTS": "1"}
    plain = {**environment, "PLM_CHECKPOINT_DIR": ""}
    whole = [*command, "--bundle", str(tmp_path / "whole.zip")]
    subprocess.run(whole, env=plain, check=True, capture_output=True, timeout=600)

    again = [*command, "--bundle", str(tmp_path / "again.zip")]
    process = subprocess.Popen(again, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if "epoch 2 of" in line:
            break
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 143
    process.stdout.close()
    assert not (tmp_path / "again.zip").exists()
    assert len(list(kept.glob("plm_finetune-*.zip"))) == 1

    finished = subprocess.run(again, env=environment, check=True, capture_output=True, text=True, timeout=600)
    assert "Going on from the checkpoint" in finished.stdout
    assert list(kept.iterdir()) == []
    assert (tmp_path / "again.zip").read_bytes() == (tmp_path / "whole.zip").read_bytes()
