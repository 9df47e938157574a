"""Pretraining: exact masks, families kept apart, learning that shows, resumed equals uninterrupted."""

from __future__ import annotations

import csv
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from plm.data import homology
from plm.errors import UserError
from plm.masked_lm.cluster_split import ClusterSplit, hold_out_clusters
from plm.masked_lm.corpus import IGNORED, Corpus, MaskedRows
from plm.masked_lm.corpus_store import CorpusStore, open_corpus
from plm.masked_lm.training import MaskedScore
from plm.model.families import FAMILIES
from plm.model.families.esm2 import ESM2_VOCABULARY
from safetensors.torch import load

LETTERS = "ACDEFGHIKLMNPQRSTVWY"
VOCABULARY = {token: index for index, token in enumerate(ESM2_VOCABULARY)}
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def families(count: int = 12, members: int = 4, seed: int = 0) -> list[tuple[str, str]]:
    """Families of relatives (70 % identical) in which each residue also repeats two places on: something to learn."""
    chance = random.Random(seed)
    made = []
    for family in range(count):
        half = [chance.choice(LETTERS) for _ in range(chance.randint(30, 60))]
        ancestor = [letter for letter in half for _ in range(2)]
        for member in range(members):
            sequence = [chance.choice(LETTERS) if chance.random() < 0.3 else letter for letter in ancestor]
            made.append((f"f{family}m{member}", "".join(sequence)))
    return made


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    path = tmp_path / "simulated.fasta"
    path.write_text("".join(f">{name}\n{sequence}\n" for name, sequence in families()))
    return path


def flags(fasta: Path, out: Path, steps: int = 12, **more: object) -> list[str]:
    out.mkdir(exist_ok=True)
    given = {
        "input": fasta, "preset": "tiny", "steps": steps, "batch-tokens": 600, "evaluate-every": 4, "warmup-steps": 2,
        "precision": "fp32", "stored-dtype": "float32", "device": "cpu", "holdout": 0.2,
        "output-model": out / "model.zip", "history": out / "history.tsv", "checkpoint": out / "checkpoint.zip", **more,
    }
    return [text for name, value in given.items() for text in (f"--{name}", str(value))]


def weights(archive: Path) -> dict[str, torch.Tensor]:
    with zipfile.ZipFile(archive) as opened:
        return load(opened.read("model.safetensors"))


def corpus(lengths: tuple[int, ...]) -> Corpus:
    chance = random.Random(1)
    return Corpus.build(["".join(chance.choices(LETTERS + "X", k=n)) for n in lengths], FAMILIES[0], VOCABULARY)


@pytest.mark.parametrize("length", [1, 3, 20, 33, 200])
def test_masks_are_exact_in_each_sequence(length: int) -> None:
    made = corpus((length,) * 5)
    batch, targets = made.masked_row(range(5), crop=512, rate=0.15, generator=np.random.default_rng(0))
    ids = batch.input_ids.split(list(batch.lengths))
    for member, (row, target) in enumerate(zip(ids, targets.split(list(batch.lengths)), strict=True)):
        original = made.tokens[made.offsets[member] : made.offsets[member + 1]]
        asked = target != IGNORED
        known = int(np.isin(original, made.letters).sum())
        assert int(asked.sum()) == min(known, max(1, round(0.15 * length)))
        assert row[0] == VOCABULARY["<cls>"] and row[-1] == VOCABULARY["<eos>"] and not asked[0] and not asked[-1]
        assert target[1:-1][asked[1:-1]].tolist() == original[asked[1:-1].numpy()].tolist()
        assert row[1:-1][~asked[1:-1]].tolist() == original[~asked[1:-1].numpy()].tolist()
        count = int(asked.sum())
        hidden = int((row == VOCABULARY["<mask>"]).sum())
        assert hidden == (round(0.8 * count) if count > 1 else count)


def test_a_row_depends_on_the_seed_and_its_number_only() -> None:
    made = corpus((40, 900, 33, 33, 70, 5, 512))
    rows = MaskedRows(made, 60, budget=700, crop=512, rate=0.15, seed=7)
    again = MaskedRows(made, 60, budget=700, crop=512, rate=0.15, seed=7)
    for number in (50, 3, 17):
        (one, target), (other, other_target) = rows[number], again[number]
        assert torch.equal(one.input_ids, other.input_ids) and torch.equal(target, other_target)
    assert not torch.equal(rows[3][1], MaskedRows(made, 60, budget=700, crop=512, rate=0.15, seed=8)[3][1])
    epoch = [rows.epoch_of(number) for number in range(60)]
    size = next(number for number, (e, _) in enumerate(epoch) if e == 1)
    members = sorted(index for number in range(size) for index in rows[number][0].indices)
    assert members == list(range(7)), "an epoch takes every sequence once"


def split_of(path: Path, folder: Path, share: float, seed: int = 1) -> tuple[CorpusStore, ClusterSplit]:
    store = open_corpus(path, folder, FAMILIES[0], VOCABULARY)
    return store, hold_out_clusters(store, share=share, identity=0.3, seed=seed, threads=1, by_domain=False)


def write_fasta(records: list[tuple[str, str]], path: Path) -> Path:
    path.write_text("".join(f">{name}\n{sequence}\n" for name, sequence in records))
    return path


@pytest.mark.slow
def test_families_never_straddle_training_and_evaluation(tmp_path: Path) -> None:
    store, split = split_of(write_fasta(families(20, 3), tmp_path / "f.fasta"), tmp_path, 0.3)
    train, held_out = list(store.sequences(split.train)), list(store.sequences(split.held_out))
    kept = {store.identity(index).split("m")[0] for index in split.held_out}
    assert kept and not kept & {store.identity(index).split("m")[0] for index in split.train}
    assert len(split.train) + len(split.held_out) + len(split.set_aside) == 60
    assert not list(homology.mmseqs_search(held_out, train, 0.0, 0.5, 1))


@pytest.mark.slow
def test_relatives_that_fast_clusters_part_are_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(homology, "MANY", 10)
    store, split = split_of(write_fasta(families(20, 3), tmp_path / "f.fasta"), tmp_path, 0.5)
    assert "MMseqs2 linclust" in split.sentence and len(split.set_aside) > 0
    train, held_out = list(store.sequences(split.train)), list(store.sequences(split.held_out))
    assert not list(homology.mmseqs_search(held_out, train, 0.0, 0.5, 1))


def test_the_cluster_column_is_believed(tmp_path: Path) -> None:
    table = tmp_path / "corpus.csv"
    chance = random.Random(5)
    rows = [(f"p{i}", "".join(chance.choices(LETTERS, k=60)), f"c{i % 6}") for i in range(30)]
    with table.open("w", newline="") as opened:
        csv.writer(opened).writerows([("id", "sequence", "cluster"), *rows])
    _, split = split_of(table, tmp_path, 0.34, seed=0)
    cluster = [name for _, _, name in rows]
    assert not {cluster[i] for i in split.train} & {cluster[i] for i in split.held_out}
    assert split.clusters == (6, 2) and "the input's cluster column" in split.sentence


def test_every_record_is_accounted_for(tmp_path: Path) -> None:
    content = ">a\r\nMKVU\r\n>b\r\nM*K\r\n>c\r\nMKVX\r\n>d\r\n" + "MKVLA" * 7000 + "\r\n"
    for name, data in (("p.fasta", gzip.compress(content.encode(), mtime=0)), ("p.fasta.gz", content.encode())):
        (tmp_path / name).write_bytes(data)
        store = open_corpus(tmp_path / name, tmp_path, FAMILIES[0], VOCABULARY)
        assert store.account == (
            "4 records read: 2 distinct proteins; 1 of them cleaned; 1 left out as unusable (first: b, 1 stop inside "
            "the sequence, the first at residue 2); 1 left out as repetitions (first: c)"
        )
        assert [len(sequence) for sequence in store.sequences()] == [4, 35000]


def test_a_table_may_hold_names_beyond_ascii(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text("id\torganism\tsequence\nä\tMüller\tMKV\n", encoding="utf-8")
    store = open_corpus(tmp_path / "t.tsv", tmp_path, FAMILIES[0], VOCABULARY)
    assert (store.identity(0), store.sequence(0)) == ("ä", "MKV")


@pytest.mark.parametrize(("loss", "words"), [(2.5, "39.3 % below"), (3.1, "10.5 % above")])
def test_a_model_worse_than_the_frequencies_is_called_so(loss: float, words: str) -> None:
    score = MaskedScore(loss=10 * loss, correct=1, residues=10, unigram_loss=30.0, unigram_correct=1)
    assert score.beside_unigram == words


def test_one_family_alone_cannot_be_judged(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="relatives of each other"):
        split_of(write_fasta(families(1, 6), tmp_path / "f.fasta"), tmp_path, 0.2)


def test_a_model_comes_out_whole(fasta: Path, tmp_path: Path, run_stage: Run) -> None:
    out = tmp_path / "out"
    done = run_stage("plm_pretrain", *flags(fasta, out, figure=out / "f.png", report=out / "report.md"))
    assert done.returncode == 0, done.stderr
    assert "Plan:" in done.stdout and "No GPU" in done.stdout
    with (out / "history.tsv").open() as opened:
        history = list(csv.DictReader(opened, delimiter="\t"))
    assert [row["step"] for row in history] == ["4", "8", "12"]
    with zipfile.ZipFile(out / "model.zip") as opened:
        names = set(opened.namelist())
        card = opened.read("README.md").decode()
    assert {"config.json", "model.safetensors", "vocab.txt", "README.md"} <= names
    assert "unigram" in card and "families never seen" in card
    first = (out / "report.md").read_text().splitlines()[0]
    assert "that of the letters' frequencies" in first
    from plm.model import encoder
    from plm.model.checkpoint import load_model, resolve_model

    loaded = load_model(resolve_model(str(out / "model.zip"), workdir=tmp_path / "w"))
    assert encoder.encode(loaded, ["MKTAYI"])[0].shape == (6, 64)
    again = run_stage(
        "plm_pretrain", *flags(fasta, tmp_path / "more", steps=4, model=out / "model.zip")
    )  # continued training starts where the model is
    assert again.returncode == 0, again.stderr
    assert "continued from model" in zipfile.ZipFile(tmp_path / "more" / "model.zip").read("README.md").decode()


@pytest.mark.slow
def test_it_learns_what_the_letters_alone_do_not_tell(tmp_path: Path, run_stage: Run) -> None:
    """Each protein uses four letters of its own: the visible residues tell the masked ones, overall frequencies do
    not."""
    chance = random.Random(2)
    path = tmp_path / "simulated.fasta"
    with path.open("w") as opened:
        for number in range(300):
            opened.write(f">p{number}\n{''.join(chance.choices(chance.sample(LETTERS, 4), k=40))}\n")
    out = tmp_path / "out"
    more = {"learning-rate": 3e-3, "evaluate-every": 150, "batch-tokens": 2000}
    done = run_stage("plm_pretrain", *flags(path, out, steps=150, **more))
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if "Held-out clusters" in line)
    below = float(line.split(" % below")[0].rsplit(" ", 1)[1])
    assert below > 30, line


@pytest.mark.slow
def test_resumed_training_equals_uninterrupted_training(fasta: Path, tmp_path: Path, run_stage: Run) -> None:
    """Bit for bit, from the checkpoint that the user gives back and from the one that the administrator keeps."""
    whole = run_stage("plm_pretrain", *flags(fasta, tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr
    kept = tmp_path / "kept"
    first = run_stage(
        "plm_pretrain", *flags(fasta, tmp_path / "a", **{"time-limit": 1e-9}), env={"PLM_CHECKPOINT_DIR": str(kept)}
    )
    assert first.returncode == 0, first.stderr
    assert "Unfinished" in zipfile.ZipFile(tmp_path / "a" / "model.zip").read("README.md").decode()
    checkpoint = tmp_path / "a" / "checkpoint.zip"
    state = json.loads(zipfile.ZipFile(checkpoint).read("checkpoint.json"))
    assert state["step"] == 1 and not state["finished"]
    given = run_stage("plm_pretrain", *flags(fasta, tmp_path / "b", resume=checkpoint))
    assert given.returncode == 0, given.stderr
    alone = run_stage("plm_pretrain", *flags(fasta, tmp_path / "c"), env={"PLM_CHECKPOINT_DIR": str(kept)})
    assert "Going on from step 1" in alone.stdout and "Going on from step 1" in given.stdout
    expected = weights(tmp_path / "whole" / "model.zip")
    for name in ("b", "c"):
        found = weights(tmp_path / name / "model.zip")
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected), name
    assert not list(kept.iterdir()), "a finished run leaves no state behind"
    refused = run_stage("plm_pretrain", *flags(fasta, tmp_path / "d", resume=checkpoint, seed=1))
    assert refused.returncode == 1 and "other data, another model or other settings" in refused.stderr


@pytest.mark.slow
def test_a_killed_job_leaves_its_state_and_no_output(fasta: Path, tmp_path: Path, root: Path) -> None:
    out, kept = tmp_path / "out", tmp_path / "kept"
    command = [sys.executable, str(root / "tools" / "plm_pretrain.py"), *flags(fasta, out, steps=100_000)]
    environment = {**os.environ, "PLM_CHECKPOINT_DIR": str(kept), "PYTHONUNBUFFERED": "1"}
    job = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert job.stdout is not None
    for line in job.stdout:
        if "Step 4:" in line:
            break
    job.send_signal(signal.SIGTERM)
    job.stdout.read()
    assert job.wait(60) == 143
    assert not (out / "model.zip").exists() and not list(out.glob(".*partial*"))
    (state,) = kept.glob("*.zip")
    assert json.loads(zipfile.ZipFile(state).read("checkpoint.json"))["step"] >= 4
    assert time.time() - state.stat().st_mtime < 600


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "empty"),
        ("no fasta at all\n", "This is not FASTA"),
        ("id,peptides\na,MKV\n", "neither FASTA (no '>') nor a table with a column named sequence"),
        (">a\n\n", "no usable protein; the first: a, no residues"),
        (">a\nM*K\n", "no usable protein; the first: a, 1 stop inside the sequence"),
        (">dna\n" + "ACGT" * 30 + "\n", "All sequences are nucleotides"),
        (">a\nMKT\u00c4YI\n", "not ASCII"),
    ],
)
def test_bad_input_is_one_clear_line(content: str, message: str, tmp_path: Path, run_stage: Run) -> None:
    bad = tmp_path / "bad.fasta"
    bad.write_text(content, encoding="utf-8")
    done = run_stage("plm_pretrain", *flags(bad, tmp_path / "out"))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and message in done.stderr
    assert not list((tmp_path / "out").iterdir())


def test_wrong_flags_are_one_clear_line(fasta: Path, tmp_path: Path, run_stage: Run) -> None:
    for more, message in (
        ({"preset": "huge"}, "no preset 'huge'"),
        ({"mask-rate": 2}, "--mask-rate"),
        ({"steps": 0}, "--steps"),
    ):
        done = run_stage("plm_pretrain", *flags(fasta, tmp_path / "out", **more))
        assert done.returncode == 1 and message in done.stderr and done.stderr.count("\n") == 1


def test_a_library_that_is_too_old_is_named(fasta: Path, tmp_path: Path, run_stage: Run) -> None:
    old = tmp_path / "path" / "accelerate-0.1.dist-info"
    old.mkdir(parents=True)
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: accelerate\nVersion: 0.1\n")
    done = run_stage("plm_pretrain", *flags(fasta, tmp_path / "out"), env={"PYTHONPATH": str(tmp_path / "path")})
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "accelerate 0.1 is too old: this tool needs" in done.stderr and not list((tmp_path / "out").iterdir())
