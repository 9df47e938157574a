"""Ways to pretrain: several processes, a divided model, adapters, other masks, the best look; divergence."""

from __future__ import annotations

import copy
import csv
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stage_runs
import torch
from plm.errors import UserError
from plm.jobs.distill import distillation
from plm.jobs.distill.batches import DistillationRow
from plm.jobs.distill.distillation import DistillationModel, Objective
from plm.jobs.distill.teacher import Teacher, Wants
from plm.masked_lm import presets, training
from plm.masked_lm.corpus import IGNORED, Corpus
from plm.masked_lm.corpus_store import open_corpus
from plm.masked_lm.masks import MaskPlan
from plm.masked_lm.training import MaskedRowModel, new_model
from plm.model.checkpoint import load_model, resolve_model
from plm.model.families import FAMILIES
from plm.model.families.esm2 import ESM2_VOCABULARY
from plm.model.ranks import Ranks
from plm.training.row_training import RowSettings, Steering, share_out, train_rows
from safetensors.torch import load
from torch import nn
from transformers import MegatronBertForMaskedLM

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    """Families of relatives in which each residue also repeats two places on."""
    chance = np.random.default_rng(0)
    letters = np.array(list("ACDEFGHIKLMNPQRSTVWY"))
    records = []
    for family in range(12):
        ancestor = np.repeat(chance.choice(letters, chance.integers(30, 60)), 2)
        for member in range(4):
            changed = np.where(chance.random(len(ancestor)) < 0.3, chance.choice(letters, len(ancestor)), ancestor)
            records.append(f">f{family}m{member}\n{''.join(changed)}\n")
    path = tmp_path / "simulated.fasta"
    path.write_text("".join(records))
    return path


def flags(fasta: Path, out: Path, **more: object) -> list[str]:
    out.mkdir(exist_ok=True)
    given = {
        "input": fasta, "preset": "tiny", "steps": 8, "batch_tokens": 600, "evaluate_every": 4, "warmup_steps": 2,
        "precision": "fp32", "stored_dtype": "float32", "device": "cpu", "holdout": 0.2,
        "output_model": out / "model.zip", "history": out / "history.tsv", "checkpoint": out / "checkpoint.zip", **more,
    }
    return [text for name, value in given.items() for text in (f"--{name.replace('_', '-')}", str(value))]


def together(root: Path, arguments: list[str]) -> str:
    done = stage_runs.run_together([sys.executable, str(root / "tools" / "plm_pretrain.py"), *arguments], 2)
    assert done.returncode == 0, done.stderr
    return done.stdout


def ran(run_stage: Run, arguments: list[str]) -> str:
    done = run_stage("plm_pretrain", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def member(archive: Path, name: str) -> bytes:
    with zipfile.ZipFile(archive) as opened:
        return opened.read(name)


def weights(archive: Path) -> dict[str, torch.Tensor]:
    return load(member(archive, "model.safetensors"))


def apart(one: Path, other: Path) -> float:
    """The largest difference of two models' weights."""
    mine, theirs = weights(one), weights(other)
    assert mine.keys() == theirs.keys()
    return max(float((mine[name] - theirs[name]).abs().max()) for name in mine)


def history(path: Path) -> list[dict[str, str]]:
    with path.open() as opened:
        return list(csv.DictReader(opened, delimiter="\t"))


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["none", "full"])
def test_two_processes_equal_one_with_the_same_batch(
    sharding: str, fasta: Path, tmp_path: Path, root: Path, run_stage: Run
) -> None:
    """Whole models (DDP) and divided ones (FSDP2); and one process goes on from what two have left, and the reverse."""
    ran(run_stage, flags(fasta, tmp_path / "one", accumulate=2))
    said = together(root, flags(fasta, tmp_path / "two", sharding=sharding))
    assert said.count("Plan:") == 1 and "cpu x 2" in said
    assert ("the model divided among them" in said) == (sharding == "full")
    one, two = tmp_path / "one", tmp_path / "two"
    assert apart(one / "model.zip", two / "model.zip") < 1e-5
    for mine, theirs in zip(history(one / "history.tsv"), history(two / "history.tsv"), strict=True):
        assert all(float(mine[name]) == pytest.approx(float(theirs[name]), abs=1e-4) for name in mine)
    assert "in 2 processes" in member(two / "model.zip", "README.md").decode()

    # One process goes on from what two have left, and two from what one has left.
    if sharding == "none":
        together(root, flags(fasta, tmp_path / "cut", time_limit=1e-9))
        state = tmp_path / "cut" / "checkpoint.zip"
        assert json.loads(member(state, "checkpoint.json"))["step"] == 1
        ran(run_stage, flags(fasta, tmp_path / "on", accumulate=2, resume=state))
    else:
        ran(run_stage, flags(fasta, tmp_path / "cut", accumulate=2, time_limit=1e-9))
        state = tmp_path / "cut" / "checkpoint.zip"
        said = together(root, flags(fasta, tmp_path / "on", sharding="full", resume=state))
        assert "Going on from step 1" in said
    assert apart(one / "model.zip", tmp_path / "on" / "model.zip") < 1e-5


@pytest.mark.slow
def test_a_state_of_a_divided_model_is_that_of_a_whole_one(fasta: Path, tmp_path: Path, root: Path) -> None:
    """One process divides nothing; what two wrote of their pieces is what one would have written."""
    held = {}
    for name, sharding in (("whole", "none"), ("divided", "full")):
        together(root, flags(fasta, tmp_path / name, sharding=sharding, time_limit=1e-9))
        state = tmp_path / name / "checkpoint.zip"
        held[name] = load(member(state, "model.safetensors")) | load(member(state, "optimizer.safetensors"))
    assert held["whole"].keys() == held["divided"].keys()
    for name, value in held["whole"].items():
        assert value.shape == held["divided"][name].shape
        assert torch.allclose(value, held["divided"][name], atol=1e-6), name


@pytest.mark.slow
def test_adapters_are_added_to_the_weights_they_adapt(
    fasta: Path, tiny_esm2: Path, tmp_path: Path, run_stage: Run
) -> None:
    out = tmp_path / "adapted"
    said = ran(run_stage, flags(
        fasta, out, model=tiny_esm2, method="lora", lora_rank=4, learning_rate=0.01, best_model=out / "best.zip",
    ))
    assert " trained; 8 steps" in said and "all trained" not in said
    before, after = load((tiny_esm2 / "model.safetensors").read_bytes()), weights(out / "model.zip")
    changed = {name for name in after if name in before and not torch.equal(after[name], before[name].float())}
    assert changed and all("attention" in name for name in changed)
    assert not [name for name in after if "lora" in name]
    told = member(out / "model.zip", "README.md").decode()
    assert "by LoRA adapters of rank 4 that were added to its weights" in told
    # What the held-out proteins said of the adapted model they say of the merged one.
    again = ran(run_stage, flags(fasta, tmp_path / "again", model=out / "model.zip", learning_rate=1e-8, steps=1))
    assert held_out(again) == pytest.approx(held_out(said), abs=0.02)


def held_out(said: str) -> float:
    line = next(line for line in said.splitlines() if "Held-out clusters" in line)
    return float(line.split("masked perplexity ")[1].split(" ")[0])


@pytest.mark.slow
def test_the_best_look_survives_a_stop(fasta: Path, tmp_path: Path, run_stage: Run) -> None:
    """A rate at which the first looks are better than the last: the best model is not the last, resumed or not."""
    high = {"learning_rate": 0.2, "warmup_steps": 8, "schedule": "constant", "steps": 9, "evaluate_every": 1}
    whole, first, second = (tmp_path / name for name in ("whole", "first", "second"))
    ran(run_stage, flags(fasta, whole, best_model=tmp_path / "best.zip", **high))
    looks = history(whole / "history.tsv")
    best = min(looks, key=lambda look: float(look["valid_loss"]))
    assert best is not looks[-1]
    told = member(tmp_path / "best.zip", "README.md").decode()
    assert f"The weights after step {best['step']}," in told
    assert apart(whole / "model.zip", tmp_path / "best.zip") > 0
    ran(run_stage, flags(fasta, first, best_model=tmp_path / "a.zip", time_limit=1e-9, **high))
    ran(run_stage, flags(
        fasta, second, best_model=tmp_path / "b.zip", resume=first / "checkpoint.zip", **high
    ))
    assert apart(tmp_path / "best.zip", tmp_path / "b.zip") == 0
    # A run that goes on from one which kept no best model tells of its own looks only, and holds what it tells of.
    late = tmp_path / "late"
    ran(run_stage, flags(fasta, first, time_limit=1e-9, **high))
    ran(run_stage, flags(fasta, late, best_model=tmp_path / "c.zip", resume=first / "checkpoint.zip", **high))
    own = min(history(late / "history.tsv")[1:], key=lambda look: float(look["valid_loss"]))
    assert f"The weights after step {own['step']}," in member(tmp_path / "c.zip", "README.md").decode()


@pytest.mark.slow
def test_a_new_model_may_be_a_bert_as_proteinlm_s(
    fasta: Path, tmp_path: Path, run_stage: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = presets.MEGATRON_PRESETS[presets.PROTEINLM]
    with torch.device("meta"):
        whole = MegatronBertForMaskedLM(presets.megatron_config(shape))
    assert sum(value.numel() for value in whole.parameters()) == pytest.approx(204e6, rel=0.03)
    monkeypatch.setitem(presets.MEGATRON_PRESETS, presets.PROTEINLM, presets.Preset(2, 32, 4, 64))
    torch.manual_seed(1)
    new_model(presets.PROTEINLM, tmp_path / "new")
    out = tmp_path / "out"
    said = ran(run_stage, flags(fasta, out, model=tmp_path / "new", max_length=100))
    assert "Held-out clusters: masked perplexity" in said
    assert json.loads(member(out / "model.zip", "config.json"))["model_type"] == "megatron-bert"
    assert "MegatronBERT architecture" in member(out / "model.zip", "README.md").decode()


def test_shares_of_masks_are_those_asked_for() -> None:
    vocabulary = {token: index for index, token in enumerate(ESM2_VOCABULARY)}
    corpus = Corpus.build(["ACDEFGHIKLMNPQRSTVWY" * 10], FAMILIES[0], vocabulary)
    for shares in ((1.0, 0.0), (0.5, 0.5), (0.0, 0.0)):
        residues = corpus.residue_ids(0)
        before = residues.copy()
        target = corpus.hide(residues, 0.2, np.random.default_rng(1), shares)
        asked = target != IGNORED
        assert asked.sum() == 40 and (target[asked] == before[asked]).all()
        assert (residues[asked] == corpus.mask).sum() == 40 * shares[0]
        assert (residues[~asked] == before[~asked]).all()
        if shares == (0.0, 0.0):
            assert (residues == before).all()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"masked_share": 0.8, "replaced_share": 0.3}, "More residues are hidden and replaced"),
        ({"method": "lora"}, "Adapters adapt a model"),
    ],
)
def test_flags_that_do_not_go_together(
    more: dict[str, object], message: str, fasta: Path, tmp_path: Path, run_stage: Run
) -> None:
    done = run_stage("plm_pretrain", *flags(fasta, tmp_path / "out", **more))
    assert done.returncode == 1 and message in done.stderr and done.stderr.count("\n") == 1


class _Given(torch.utils.data.Dataset):
    """Rows that are there already."""

    def __init__(self, rows: Sequence[Any]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Any:
        return self.rows[number]

    def epochs(self, rows: int) -> float:
        return rows / len(self.rows)


def step_on(rows: Sequence[Any], network: nn.Module, **more: Any) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """The gradient of a step of some rows, and what is recorded of it."""
    gradients: dict[str, torch.Tensor] = {}
    network = copy.deepcopy(network)
    for name, value in network.named_parameters():
        def add(gradient: torch.Tensor, name: str = name) -> None:
            gradients[name] = gradients[name] + gradient if name in gradients else gradient.clone()

        value.register_hook(add)
    settings = RowSettings(steps=1, accumulate=len(rows), clip=0.0, warmup_steps=0)
    steering = Steering(dict, lambda step, known: None, lambda write, done: None, lambda: False)
    done = train_rows(network, _Given(rows), settings, steering, device=torch.device("cpu"), **more)
    return gradients, done.history[-1]


def agree(parts: Sequence[Any], whole: Any, network: nn.Module, **more: Any) -> None:
    """Rows of a step give the gradient and the record of one row that holds all."""
    (mine, told), (theirs, expected) = (step_on(rows, network, **more) for rows in (parts, [whole]))
    assert mine.keys() == theirs.keys() and told.keys() == expected.keys()
    scale = max(float(value.abs().max()) for value in theirs.values())
    assert scale > 0
    for name, value in theirs.items():
        assert float((mine[name] - value).abs().max()) < 2e-6 * scale, name
    assert told == pytest.approx(expected, rel=1e-5)
    without = {**more, "counts": None}
    assert step_on(parts, network, **without)[1]["train_loss"] != pytest.approx(expected["train_loss"], rel=1e-4)


PARTS = ([0, 1, 2, 3, 4, 5], [6], [7, 8])
"""Rows of very different size, of proteins from 20 to 60 residues."""


def test_rows_of_a_step_weigh_by_what_they_predict(tiny_esm2: Path, tmp_path: Path) -> None:
    loaded = load_model(resolve_model(str(tiny_esm2), workdir=tmp_path), purpose="masked_lm")
    chance = np.random.default_rng(1)
    texts = ["".join(chance.choice(list("ACDEFGHIKLMNPQRSTVWY"), 20 + 5 * number)) for number in range(9)]
    corpus = Corpus.build(texts, loaded.family, loaded.vocabulary)
    stretches = [corpus.residue_ids(number) for number in range(9)]
    targets = [corpus.hide(one, 0.2, np.random.default_rng(number)) for number, one in enumerate(stretches)]

    def row(members: Sequence[int]) -> Any:
        return corpus.row(members, [stretches[one] for one in members], [targets[one] for one in members])

    whole = row([one for part in PARTS for one in part])
    agree([row(part) for part in PARTS], whole, MaskedRowModel(loaded.model), collate=training.collate,
          counts=training.counts)


@pytest.mark.parametrize("represent", ["masked", "intact"])
def test_rows_of_a_distillation_weigh_by_what_they_predict(represent: Any, tiny_esm2: Path, tmp_path: Path) -> None:
    loaded = load_model(resolve_model(str(tiny_esm2), workdir=tmp_path), purpose="masked_lm")
    chance = np.random.default_rng(1)
    fasta = tmp_path / "simulated.fasta"
    fasta.write_text("".join(
        f">p{number}\n{''.join(chance.choice(list('ACDEFGHIKLMNPQRSTVWY'), 20 + 5 * number))}\n" for number in range(9)
    ))
    store = open_corpus(fasta, tmp_path, loaded.family, loaded.vocabulary)
    masks = MaskPlan(rate=0.2)
    objective = Objective(logit_mse=0.5, kl=1.0, hidden=1.0, mlm=0.25, represent=represent)
    answer = Teacher(loaded, store, masks, Wants(True, False, True, 1, represent)).answer
    torch.manual_seed(3)
    student = copy.deepcopy(loaded.model)
    with torch.no_grad():
        for value in student.parameters():
            value += 0.1 * torch.randn_like(value)
    network = DistillationModel(student, loaded.family, objective, answer, (loaded.hidden_size,) * 2)

    def row(members: Sequence[int]) -> DistillationRow:
        return DistillationRow(*masks.row(store, members, 0), np.array(members), 0)

    agree(
        [row(part) for part in PARTS], row([one for part in PARTS for one in part]), network, terms=objective.terms,
        collate=distillation.collate, every_step=True,
        counts=lambda inputs: distillation.counts(inputs, objective, loaded.family.specials),
    )


def test_a_row_without_a_term_takes_no_part_in_it() -> None:
    """The term is the mean over the rows that define it; what the others count is nothing."""
    samples = [{"a": 3, "b": 1}, {"a": 0, "b": 1}, {"a": 1, "b": 1}]
    defined = share_out(samples, lambda sample: {name: sample[name] for name in "ab"}, Ranks())
    assert [sample["shares"]["a"] for sample in samples] == [2.25, 0.0, 0.75]  # type: ignore[index]
    assert [sample["shares"]["b"] for sample in samples] == [1.0, 1.0, 1.0]  # type: ignore[index]
    assert defined == pytest.approx({"a": 2 / 3, "b": 1.0})


class _Rows(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 12

    def __getitem__(self, number: int) -> torch.Tensor:
        return torch.tensor([float(number)])

    def epochs(self, rows: int) -> float:
        return rows / 12


class _Breaking(nn.Module):
    """One weight; the third step's gradient is no number while its loss is, as in an overflow."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.seen = 0

    def forward(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        self.seen += 1
        loss = (self.weight * 0.5).sum()
        if self.seen == 3:
            loss.register_hook(lambda gradient: gradient * float("nan"))
        return {"loss": loss}


def test_training_that_diverges_keeps_the_last_good_state() -> None:
    steps: list[int] = []
    steering = Steering(
        dict, lambda step, known: None, lambda write, done: steps.append(done.step), lambda: False
    )
    settings = RowSettings(steps=6, checkpoint_every=0.0, evaluate_every=100, warmup_steps=0)
    with pytest.raises(UserError) as raised:
        train_rows(
            _Breaking(), _Rows(), settings, steering, collate=lambda items: {"input_ids": items[0]},
            device=torch.device("cpu"),
        )
    assert "Weights are no finite numbers any more at step 3 (packed row 3 of the run)" in str(raised.value)
    assert steps == [1, 2]
