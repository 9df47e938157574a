"""An embedding job that was killed goes on and gives the bytes of one that was not; processes share work and agree."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import plm_embed
import pytest
from plm.data.protein_store import store_proteins
from plm.data.shards import Lock, ShardStore, _digest, key
from plm.errors import UserError
from plm.model import encoder
from plm.model.embedding.work_plan import EncodingCost, shard_ends
from plm.model.families import AMINO_ACIDS
from safetensors.numpy import save_file

OPTIONS = ("--device", "cpu", "--precision", "fp32", "--batch-tokens", "128", "--pooling", "residues")
OUTPUTS = ("embeddings", "status", "logits")


def fasta(path: Path, count: int, seed: int = 0) -> Path:
    """Proteins of 10 to 200 residues; every seventh repeats an earlier one."""
    generator = random.Random(seed)
    sequences: list[str] = []
    for number in range(count):
        again = number % 7 == 6
        length = generator.randint(10, 200)
        sequences.append(generator.choice(sequences) if again else "".join(generator.choices(AMINO_ACIDS, k=length)))
    path.write_text("".join(f">p{number}\n{sequence}\n" for number, sequence in enumerate(sequences)))
    return path


def command(root: Path, proteins: Path, model: Path, folder: Path, *options: str) -> list[str]:
    folder.mkdir(exist_ok=True)
    outputs = [text for name in OUTPUTS for text in (f"--{name}", str(folder / name))]
    given = ["--input", str(proteins), "--model", str(model), *outputs, *OPTIONS, *options]
    return [str(root / "tools" / "plm_embed.py"), *given]


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in OUTPUTS}


@pytest.fixture
def run(root: Path, tiny_esm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Runs the stage in this process; gives the folder of its outputs."""
    monkeypatch.setenv("GALAXY_SLOTS", "1")
    monkeypatch.delenv("PLM_CHECKPOINT_DIR", raising=False)
    # The log of an earlier test writes to that test's standard output; this one makes its own.
    log = logging.getLogger("plm_embed")
    log.handlers.clear()
    log.propagate = True

    def go(proteins: Path, name: str, *options: str | Path, model: Path = tiny_esm2) -> Path:
        plm_embed.run(command(root, proteins, model, tmp_path / name, *map(str, options))[1:])
        return tmp_path / name

    return go


class Killed(BaseException):
    """Stands for a signal that ends the process between two shards."""


def stop_after(shards: int, monkeypatch: pytest.MonkeyPatch) -> None:
    save = ShardStore.save

    def until(self: ShardStore, number: int, arrays: Any) -> None:
        if sum(1 for _ in self.folder.glob("*.safetensors")) >= shards:
            raise Killed
        save(self, number, arrays)

    monkeypatch.setattr(ShardStore, "save", until)


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    folder = tmp_path / "kept"
    folder.mkdir()
    return folder


def interrupted(run: Callable[..., Path], kept: Path, proteins: Path, *options: str | Path, shards: int = 2) -> Path:
    """The folder of shards that a stopped run left."""
    with pytest.MonkeyPatch.context() as patched:
        stop_after(shards, patched)
        with pytest.raises(Killed):
            run(proteins, "stopped", "--work-dir", kept, *options)
    return max((path for path in kept.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime_ns)


@pytest.mark.slow
def test_killed_process_goes_on_to_the_same_bytes(root: Path, tiny_esm2: Path, kept: Path, tmp_path: Path) -> None:
    """SIGKILL, which nothing can catch, in the middle of the work; the same command then ends as if never stopped."""
    proteins = fasta(tmp_path / "proteins.fasta", 2000)
    environment = {**os.environ, "GALAXY_SLOTS": "1", "PLM_CHECKPOINT_DIR": str(kept)}
    again = [sys.executable, *command(root, proteins, tiny_esm2, tmp_path / "again")]
    process = subprocess.Popen(again, env=environment, stdout=subprocess.DEVNULL)
    while process.poll() is None and len(list(kept.glob("*/shard_*.safetensors"))) < 3:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=60) == -signal.SIGKILL, "it must be killed before it ends"
    made = len(list(kept.glob("*/shard_*.safetensors")))
    assert made >= 3 and not (tmp_path / "again" / "embeddings").exists()

    finished = subprocess.run(again, env=environment, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    assert "Going on from an earlier run" in finished.stdout
    assert [path.name for path in kept.iterdir()] == []
    whole = [sys.executable, *command(root, proteins, tiny_esm2, tmp_path / "whole")]
    subprocess.run(whole, env={**environment, "PLM_CHECKPOINT_DIR": ""}, check=True, capture_output=True, timeout=300)
    assert bytes_of(tmp_path / "again") == bytes_of(tmp_path / "whole")


def test_nothing_is_computed_twice(
    run: Callable[..., Path], kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proteins = fasta(tmp_path / "proteins.fasta", 400)
    whole = run(proteins, "whole")
    folder = interrupted(run, kept, proteins)
    before = {path: path.stat().st_mtime_ns for path in folder.glob("shard_*.safetensors")}
    assert len(before) == 2
    saved: list[int] = []
    save = ShardStore.save
    monkeypatch.setattr(ShardStore, "save", lambda *given: (saved.append(given[1]), save(*given))[1])
    resumed = run(proteins, "resumed", "--work-dir", kept)
    assert saved and not set(saved) & {0, 1}
    assert bytes_of(resumed) == bytes_of(whole)
    assert list(kept.iterdir()) == []


@pytest.mark.parametrize("change", ["sequence", "id", "order", "option", "model"])
def test_changed_inputs_never_mix(
    change: str, run: Callable[..., Path], kept: Path, tiny_esm2: Path, tiny_t5: Path, tmp_path: Path
) -> None:
    proteins = fasta(tmp_path / "proteins.fasta", 300)
    old = interrupted(run, kept, proteins)
    records = ["p".join(part.split("p")) for part in proteins.read_text().split(">")[1:]]
    options: tuple[str, ...] = ()
    if change == "sequence":
        records[-1] = records[-1].rstrip() + "W\n"
    elif change == "id":
        records[0] = records[0].replace("p0", "q0")
    elif change == "order":
        records.reverse()
    elif change == "option":
        options = ("--layers", "1")
    changed = tmp_path / "changed.fasta"
    changed.write_text("".join(f">{record}" for record in records))
    model = tiny_esm2
    if change == "model":
        import shutil

        from safetensors.torch import load_file, save_file

        model = tmp_path / "model"
        shutil.copytree(tiny_esm2, model)
        weights = load_file(model / "model.safetensors")
        weights["esm.encoder.layer.1.output.dense.bias"] += 0.5
        save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    plain = run(changed, "plain", *options, model=model)
    found = run(changed, "found", "--work-dir", kept, *options, model=model)
    assert bytes_of(found) == bytes_of(plain)
    assert len(list(old.glob("shard_*"))) == 2, "the other work's parts stay"


@pytest.mark.parametrize("damage", ["byte", "truncated", "empty", "foreign", "swapped"])
def test_a_broken_part_is_made_again(damage: str, run: Callable[..., Path], kept: Path, tmp_path: Path) -> None:
    proteins = fasta(tmp_path / "proteins.fasta", 400)
    whole = run(proteins, "whole")
    folder = interrupted(run, kept, proteins, shards=3)
    first, second = (folder / f"shard_{number:06d}.safetensors" for number in (0, 1))
    data = bytearray(first.read_bytes())
    if damage == "byte":
        data[len(data) // 2] ^= 1
        first.write_bytes(data)
    elif damage == "truncated":
        first.write_bytes(data[:-100])
    elif damage == "empty":
        first.write_bytes(b"")
    elif damage == "foreign":
        ShardStore(folder, "another key").save(0, {"values": np.zeros((3, 4), np.float32)})
    else:
        first.write_bytes(second.read_bytes())
    resumed = run(proteins, "resumed", "--work-dir", kept)
    assert bytes_of(resumed) == bytes_of(whole)


def test_halved_batches_are_remembered(
    run: Callable[..., Path], kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that met a full memory, was killed and goes on, plans the batches of one that met it and was not killed."""
    proteins = fasta(tmp_path / "proteins.fasta", 400)
    states = encoder.layer_states
    calls = [0]

    def full_once(loaded: Any, batch: Any, layers: Any) -> Any:
        calls[0] += 1
        if batch.tokens > 64 and calls[0] > 60 and len(batch.lengths) > 1:
            raise MemoryError
        return states(loaded, batch, layers)

    monkeypatch.setattr(encoder, "layer_states", full_once)
    whole = run(proteins, "whole")
    calls[0] = 0
    folder = interrupted(run, kept, proteins, shards=3)
    noted = sorted(folder.glob("budget_*.json"))
    assert noted and json.loads(noted[0].read_text())["tokens"] == 64
    # Memory is plentiful now, and still the batches are those of before.
    monkeypatch.setattr(encoder, "layer_states", states)
    assert bytes_of(run(proteins, "resumed", "--work-dir", kept)) == bytes_of(whole)


def test_two_jobs_with_the_same_work_do_not_meet(run: Callable[..., Path], kept: Path, tmp_path: Path) -> None:
    proteins = fasta(tmp_path / "proteins.fasta", 200)
    whole = run(proteins, "whole")
    folder = interrupted(run, kept, proteins, shards=1)
    with Lock(folder) as mine:
        assert mine.held
        with Lock(folder) as other:
            assert not other.held and "another job" in other.why
        beside = run(proteins, "beside", "--work-dir", kept)
    assert bytes_of(beside) == bytes_of(whole)
    assert len(list(folder.glob("shard_*"))) == 1, "the other job's parts are left alone"
    assert bytes_of(run(proteins, "after", "--work-dir", kept)) == bytes_of(whole)
    assert list(kept.iterdir()) == []


def test_a_folder_that_does_not_exist_is_said(
    run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(fasta(tmp_path / "proteins.fasta", 5), "out", "--work-dir", tmp_path / "nowhere")
    assert "does not exist: a killed job will start anew" in capsys.readouterr().out


def test_failed_work_leaves_its_parts_and_no_outputs(
    run: Callable[..., Path], kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = encoder.layer_states
    calls = [0]

    def broken(loaded: Any, batch: Any, layers: Any) -> Any:
        calls[0] += 1
        found = states(loaded, batch, layers)
        return [layer * float("nan") for layer in found] if calls[0] > 150 else found

    monkeypatch.setattr(encoder, "layer_states", broken)
    with pytest.raises(UserError, match="no finite numbers"):
        run(fasta(tmp_path / "proteins.fasta", 400), "out", "--work-dir", kept)
    assert list((tmp_path / "out").iterdir()) == []
    assert list(kept.glob("*/shard_*"))


# -- several processes --------------------


def torchrun(root: Path, arguments: list[str], processes: int = 2) -> subprocess.CompletedProcess[str]:
    launcher = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), *arguments
    ]
    environment = {**os.environ, "GALAXY_SLOTS": "2", "PLM_CHECKPOINT_DIR": ""}
    return subprocess.run(launcher, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_two_processes_give_the_bytes_of_one(
    root: Path, tiny_esm2: Path, run: Callable[..., Path], tmp_path: Path
) -> None:
    proteins = fasta(tmp_path / "proteins.fasta", 600)
    alone = run(proteins, "alone")
    done = torchrun(root, command(root, proteins, tiny_esm2, tmp_path / "together"))
    assert done.returncode == 0, done.stderr
    assert bytes_of(tmp_path / "together") == bytes_of(alone)
    assert done.stdout.count("Plan:") == 1 and "cpu x 2" in done.stdout


@pytest.mark.slow
def test_a_failing_process_fails_the_run(root: Path, tiny_esm2: Path, tmp_path: Path) -> None:
    """Only the second process meets a protein whose numbers do not fit: the first must not wait for it for ever."""
    import shutil

    from safetensors.torch import load_file, save_file

    model = tmp_path / "model"
    shutil.copytree(tiny_esm2, model)
    weights = load_file(model / "model.safetensors")
    # Representations that hold tryptophan overflow 16 bits.
    weights["esm.embeddings.word_embeddings.weight"][22] *= 1e7
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    generator = random.Random(3)
    letters = AMINO_ACIDS.replace("W", "")
    lines = [f">p{number}\n{''.join(generator.choices(letters, k=100))}\n" for number in range(160)]
    lines[100] = ">bad\n" + "W" * 100 + "\n"
    (tmp_path / "proteins.fasta").write_text("".join(lines))
    options = ("--layers", "0", "--store", "float16")
    failed = torchrun(root, command(root, tmp_path / "proteins.fasta", model, tmp_path / "out", *options))
    assert failed.returncode != 0
    assert "plm_embed: error: A representation is larger than 16 bits can hold" in failed.stderr
    assert "'bad'" in failed.stderr
    assert list((tmp_path / "out").iterdir()) == []


# -- parts --------------------


def test_shards_are_verified(tmp_path: Path) -> None:
    store = ShardStore(tmp_path / "s", "k")
    arrays = {"values": np.arange(12, dtype=np.float16).reshape(4, 3), "contacts": np.empty((0, 2), np.int32)}
    assert not store.holds(0)
    store.save(0, arrays)
    assert store.holds(0)
    np.testing.assert_array_equal(store.read(0, "values", 1, 3), arrays["values"][1:3])
    assert store.read(0, "contacts", 0, 0).shape == (0, 2)
    assert [len(store.read(0, "values", at, at)) for at in (0, 2, 4)] == [0, 0, 0]
    assert not ShardStore(tmp_path / "s", "other").holds(0) and not store.path(0).exists()
    store.note("plan", {"a": 1})
    (tmp_path / "s" / "broken.json").write_text("{")
    assert store.notes("*") == {"plan": {"a": 1}}
    store.remove()
    assert not (tmp_path / "s").exists()
    assert key({"a": 1, "b": 2}) == key({"b": 2, "a": 1}) != key({"a": 1, "b": 3})


def test_shards_end_by_work_and_by_size() -> None:
    lengths = np.full(1000, 100)
    ends = shard_ends(lengths, np.full(1000, 4), 100)
    assert ends[0] == 64 and ends[-1] == 1000 and max(np.diff(ends)) <= 64 and min(np.diff(ends)) > 0
    assert shard_ends(np.array([10**6, 5, 10**6]), np.zeros(3), 10) == [1, 2, 3]
    assert shard_ends(np.array([1, 1, 1]), np.array([1, 2**30, 1]), 10**6) == [1, 2, 3]


def test_equal_parts_are_equal_files(tmp_path: Path) -> None:
    """The library draws the order of what a file says of itself anew for each; parts of earlier versions still hold."""
    arrays = {"values": np.arange(6, dtype=np.float32), "windows": np.ones(2, np.int32)}
    made = []
    for number in range(12):
        store = ShardStore(tmp_path / str(number), "content")
        store.save(3, arrays)
        made.append(store.path(3).read_bytes())
    assert len(set(made)) == 1
    told = {"key": "content", "shard": "3", "sha256": _digest(arrays)}
    save_file(arrays, store.path(3), metadata=told)
    assert store.holds(3)
    save_file(arrays, store.path(3), metadata={**told, "key": "other"})
    assert not store.holds(3) and not store.path(3).exists()


def test_shards_of_large_models_end_by_time() -> None:
    """A killed job loses at most five minutes of a slow core, 33 GFlop/s: a shard, however large the model."""
    lengths = np.full(300, 352)
    operations = EncodingCost(2 * 650e6, 4.0 * 33 * 1280).each(lengths)
    ends = shard_ends(lengths, np.full(300, 5120), 2048, operations)
    counts = np.diff([0, *ends])
    assert ends[-1] == 300 and counts.max() * operations[0] / 33e9 < 300 and counts.min() > 1
    assert shard_ends(lengths, np.full(300, 5120), 2048, 100 * operations) == list(range(1, 301))


def test_spool_keeps_everything_in_order(tmp_path: Path) -> None:
    (tmp_path / "in.fasta").write_text(">b\nMK\n>a\nML\n>c\nmk\n>x\n\n>d\nML\n")
    stored = store_proteins(tmp_path / "in.fasta", tmp_path / "stored")
    assert list(stored.ids) == ["b", "a", "c", "x", "d"]
    assert stored.unique.tolist() == [0, 1, 0, -1, 1] and stored.firsts.tolist() == [0, 1]
    assert list(stored.sequences) == ["MK", "ML"] and stored.lengths.tolist() == [2, 2]
    assert list(stored.ids.select(stored.accepted)) == ["b", "a", "c", "d"] and list(stored.ids[1:3]) == ["a", "c"]
    other = store_proteins(tmp_path / "in.fasta", tmp_path / "spool2")
    assert other.digest == stored.digest
    (tmp_path / "in.fasta").write_text(">b\nMKM\n>a\nL\n>c\nmk\n>x\n\n>d\nML\n")
    assert store_proteins(tmp_path / "in.fasta", tmp_path / "spool3").digest != stored.digest
