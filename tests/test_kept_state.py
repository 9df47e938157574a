"""A training's state outlives its job: whole, by one job at a time, and what resumes from it ends as if undisturbed."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import plm_pretrain
import pytest
from plm.data import homology
from plm.errors import UserError
from plm.training.checkpoints import CheckpointKeeper
from plm.training.kept_state import KeptState
from plm.training.row_training import Done

LOG = logging.getLogger("kept_state")
OUTPUTS = ("model.zip", "best.zip", "history.tsv", "curves.png")


class KilledHere(BaseException):
    """Stands for a signal that nothing can catch."""


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The administrator's folder, with a state after every step."""
    monkeypatch.setenv("PLM_CHECKPOINT_DIR", str(tmp_path / "kept"))
    monkeypatch.setenv("PLM_CHECKPOINT_MINUTES", "1e-9")
    return tmp_path / "kept"


def reads(path: Path) -> str:
    """Stands for a training that takes a state up."""
    if path.read_text() == "damaged":
        raise UserError("it is damaged")
    return path.read_text()


def test_one_job_at_a_time_writes(kept: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = KeptState("state.zip", LOG), KeptState("state.zip", LOG)
    assert first.put(lambda path: path.write_text("ahead"))
    assert not second.put(lambda path: path.write_text("behind")) and not second.put(lambda path: None)
    assert caplog.text.count("Another job is at the same training") == 1
    assert second.take_up(reads), "every job goes on from it"
    second.remove()
    assert (kept / "state.zip").read_text() == "ahead", "what another job still needs stays"
    first.remove()
    assert list(kept.iterdir()) == []


def test_a_job_takes_over_from_one_that_has_ended(kept: Path) -> None:
    first, second = KeptState("state.zip", LOG), KeptState("state.zip", LOG)
    first.put(lambda path: path.write_text("first"))
    (kept / ".state.zip.77.abcd.partial").write_text("of a job that was killed while it wrote")
    assert not second.put(lambda path: path.write_text("second"))
    first.remove()
    assert second.put(lambda path: path.write_text("second"))
    assert sorted(path.name for path in kept.iterdir()) == ["state.zip", "state.zip.lock"]


def test_a_damaged_state_is_set_aside(kept: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept.mkdir()
    (kept / "state.zip").write_text("damaged")
    assert not KeptState("state.zip", LOG).take_up(reads)
    assert "is set aside: it is damaged" in caplog.text
    assert [path.name for path in kept.iterdir()] == ["state.damaged"]


@pytest.mark.parametrize("trouble", ["gone", "file", "full"])
def test_trouble_in_the_folder_does_not_end_the_training(
    trouble: str, kept: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if trouble == "file":
        kept.write_text("no folder")
    state = KeptState("state.zip", LOG)
    if trouble == "gone":
        kept.rmdir()
        kept.write_text("no folder any more")

    def write(path: Path) -> None:
        if trouble == "full":
            raise OSError(28, "No space left on device", str(path))
        path.write_text("state")

    assert not state.put(write) and not state.put(write)
    state.remove()
    if trouble == "file":
        assert "cannot be used" in caplog.text and state.path is None
    else:
        assert caplog.text.count("The checkpoint cannot be kept") == 1


@pytest.fixture(scope="module", autouse=True)
def one_search() -> Iterator[None]:
    """MMseqs2 answers the same question once: starting it takes most of a tiny job's time."""
    answers: dict[str, list[Any]] = {}
    search = homology.mmseqs_search

    def once(*asked: Any, **named: Any) -> list[Any]:
        key = repr([list(part) if isinstance(part, Sequence) else part for part in asked] + sorted(named.items()))
        if key not in answers:
            answers[key] = list(search(*asked, **named))
        return answers[key]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(homology, "mmseqs_search", once)
        yield


@pytest.fixture(scope="module")
def proteins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """So short that they are compared without another program."""
    chance = random.Random(3)
    texts = ["".join(chance.choices("ACDEFGHIKLMNPQRSTVWY", k=chance.randint(20, 50))) for _ in range(60)]
    path = tmp_path_factory.mktemp("proteins") / "proteins.fasta"
    path.write_text("".join(f">p{number}\n{text}\n" for number, text in enumerate(texts)))
    return path


def pretrain(proteins: Path, folder: Path, *more: str) -> dict[str, bytes]:
    """Runs the stage in this process; its outputs by name."""
    folder.mkdir(exist_ok=True)
    logging.getLogger("plm_pretrain").handlers.clear()
    plm_pretrain.run(
        [
            "--input", str(proteins), "--preset", "tiny", "--steps", "9", "--warmup-steps", "2", "--device", "cpu",
            "--precision", "fp32", "--holdout", "0.2", "--evaluate-every", "4", "--batch-tokens", "300",
            "--output-model", str(folder / "model.zip"), "--best-model", str(folder / "best.zip"),
            "--history", str(folder / "history.tsv"), "--figure", str(folder / "curves.png"), *more,
        ]
    )
    return {name: (folder / name).read_bytes() for name in OUTPUTS}


@pytest.fixture(scope="module")
def whole(proteins: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PLM_CHECKPOINT_DIR", "")
        return pretrain(proteins, tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("steps", [6, 9])
def test_killed_pretraining_ends_with_the_same_model_history_and_figure(
    steps: int, proteins: Path, whole: dict[str, bytes], kept: Path, tmp_path: Path
) -> None:
    """Between two looks the mean loss is of steps before and after; after the last step only the outputs are left."""
    save = CheckpointKeeper.save

    def until(self: CheckpointKeeper, write: Callable[[Path], None], done: Done) -> None:
        save(self, write, done)
        if done.step == steps:
            raise KilledHere

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(CheckpointKeeper, "save", until)
        with pytest.raises(KilledHere):
            pretrain(proteins, tmp_path / "out")
    (state,) = kept.glob("*.zip")
    assert json.loads(zipfile.ZipFile(state).read("checkpoint.json"))["step"] == steps
    lock = state.with_name(state.name + ".lock")
    lock.unlink()  # the kernel frees it when a process dies, and this one lives
    assert pretrain(proteins, tmp_path / "out") == whole
    assert not list(kept.glob("*.zip"))


@pytest.mark.parametrize("moment", ["between steps", "within a step", "within a look", "after training"])
def test_a_job_that_is_told_to_end_leaves_a_checkpoint_where_one_was_asked_for(
    moment: str, proteins: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from plm.jobs.pretrain import job as jobs
    from plm.jobs.pretrain import report as reports
    from plm.masked_lm.training import MaskedRowModel

    monkeypatch.setenv("PLM_CHECKPOINT_DIR", "")
    calls = [0]

    def telling(inner: Callable[..., Any], at: int) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            if calls[0] == at:
                os.kill(os.getpid(), signal.SIGTERM)
            return inner(*args, **kwargs)

        return call

    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    try:
        with monkeypatch.context() as patched:
            if moment == "between steps":
                patched.setattr(jobs.stage.Progress, "advance", telling(jobs.stage.Progress.advance, 4))
            elif moment == "after training":
                patched.setattr(reports, "facts", telling(reports.facts, 1))
            else:  # rows of training and of looks; the first look comes after four
                at = 3 if moment == "within a step" else 5
                patched.setattr(MaskedRowModel, "forward", telling(MaskedRowModel.forward, at))
            with pytest.raises(SystemExit) as ended:
                pretrain(proteins, tmp_path / "out", "--checkpoint", str(tmp_path / "checkpoint.zip"))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 143
    assert not list((tmp_path / "out").iterdir()), "no output, and nothing half"
    again = pretrain(proteins, tmp_path / "out", "--resume", str(tmp_path / "checkpoint.zip"))
    assert again == whole


def test_programs_that_a_program_has_started_end_with_the_job(tmp_path: Path) -> None:
    def told(number: int, frame: object) -> None:
        sys.exit(143)

    before = signal.signal(signal.SIGALRM, told)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        with pytest.raises(SystemExit):
            homology._mmseqs("/bin/sh", "-c", "sleep 300 & echo $! > inner; wait", folder=tmp_path)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    inner = Path("/proc") / (tmp_path / "inner").read_text().strip() / "stat"
    for _ in range(200):
        if not inner.exists() or inner.read_text().split()[2] == "Z":
            return
        time.sleep(0.01)
    pytest.fail("a program goes on that nobody waits for")
