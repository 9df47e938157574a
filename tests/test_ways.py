"""Several ways of fine-tuning, of which validation rows choose one."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import finetuning_cases as cases
import numpy as np
import pandas as pd
import plm_finetune
import pytest
from plm.errors import UserError
from plm.jobs.finetune import method_choice, objectives
from plm.jobs.finetune.validation import calibrate
from sklearn.metrics import f1_score

METHODS = ("lora", "head_lora", "head", "full")
OUTPUTS = ("bundle", "predictions", "history", "curves", "report")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GALAXY_SLOTS", "1")


def finetune(frame: pd.DataFrame, model: Path, folder: Path, *options: str) -> dict[str, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    frame.to_csv(folder / "dataset.tabular", sep="\t", index=False)
    paths = {name: folder / name for name in OUTPUTS}
    named = [word for name, path in paths.items() for word in (f"--{name}", str(path))]
    fixed = ["--predictor", "model", "--epochs", "2", "--precision", "fp32", "--device", "cpu", *options]
    plm_finetune.run(["--dataset", str(folder / "dataset.tabular"), "--model", str(model), *named, *fixed])
    return paths


def table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)


def families(rows: int = 60, *, classes: int = 3) -> pd.DataFrame:
    """Proteins of several classes that single residues give away, in groups of two."""
    generator = np.random.default_rng(3)
    made = []
    for number in range(rows):
        kind = number % classes
        letters = generator.choice(cases.RESIDUES, 24)
        letters[: 10 + kind] = "WGC"[kind]
        split = ("train", "train", "valid")[number // classes % 3]
        made.append({"id": f"r{number}", "sequence": "".join(letters), "label": "abc"[kind], "split": split})
    frame = pd.DataFrame(made, dtype=str)
    frame["group"] = [f"g{number // 2}" for number in range(rows)]
    test = frame[frame["split"] == "valid"].assign(split="test", id=lambda f: "t" + f["id"])
    test["sequence"] = test["sequence"].str[::-1]
    return pd.concat([frame, test], ignore_index=True)


@pytest.mark.slow
def test_the_best_on_validation_rows_goes_on_as_if_it_had_been_trained_alone(tiny_esm2: Path, tmp_path: Path) -> None:
    frame = families()
    made = finetune(frame, tiny_esm2, tmp_path / "all", "--method", ",".join(METHODS))
    with zipfile.ZipFile(made["bundle"]) as opened:
        manifest = json.loads(opened.read("manifest.json"))
        card = opened.read("README.md").decode()
    compared = manifest["compared"]
    assert [way["method"] for way in compared] == list(METHODS)
    winner = next(way for way in compared if way["chosen"])
    assert [way["chosen"] for way in compared].count(True) == 1
    assert winner["scores"]["macro_f1"] == max(way["scores"]["macro_f1"] for way in compared)
    assert manifest["method"] == winner["method"] and manifest["settings"]["adapter"]["method"] == winner["method"]
    assert manifest["selection_metric"] == "macro_f1"
    assert "the best on validation rows" in card
    parameters = {way["method"]: way["parameters"] for way in compared}
    assert parameters["head_lora"] < parameters["head"] < parameters["lora"] < parameters["full"]

    alone = finetune(frame, tiny_esm2, tmp_path / "alone", "--method", winner["method"], "--metric", "macro_f1")
    assert made["predictions"].read_bytes() == alone["predictions"].read_bytes()
    history = table(made["history"])
    assert list(history["method"].unique()) == list(METHODS)
    own = history[history["method"] == winner["method"]].drop(columns="method").reset_index(drop=True)
    pd.testing.assert_frame_equal(own, table(alone["history"]))

    predictions = table(made["predictions"])
    assert set(predictions["model"]) == {f"tiny_esm2-{winner['method']}"}
    assert sorted(predictions["id"]) == sorted(frame.loc[frame["split"] != "train", "id"]), "each row once"
    valid = predictions[predictions["split"] == "valid"]
    assert f1_score(valid["label"], valid["call"], average="macro") == pytest.approx(winner["scores"]["macro_f1"])

    report = made["report"].read_text()
    section = report[report.index("## Ways compared") : report.index("## Training")]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(METHODS)
    assert [line.split("|")[-2].strip() == "chosen" for line in lines[2:]].count(True) == 1
    assert all(f"| {method_choice.NAMES[name]} |" in section for name in METHODS)


def test_test_labels_have_no_say(tiny_esm2: Path, tmp_path: Path) -> None:
    frame = families()
    other = frame.copy()
    other.loc[other["split"] == "test", "label"] = "a"
    found = []
    for number, rows in enumerate((frame, other)):
        job = cases.trained(rows, tiny_esm2, tmp_path / str(number), method="head", others=("head_lora",), epochs=2)
        compared = method_choice.choose(job)
        found.append(([way.to_json() for way in compared], [(way.low, way.high) for way in compared]))
    assert found[0] == found[1]


@pytest.mark.slow
def test_intervals_hold_the_scores_and_tell_a_useless_way_apart(tiny_esm2: Path, tmp_path: Path) -> None:
    """LoRA of rank 1 that hardly learns against a head that learns the planted residues."""
    frame = families(180)
    job = cases.job(
        frame, tiny_esm2, tmp_path, method="head_lora", others=("head",), epochs=4, rank=1, patience=0,
        head_learning_rate=3e-3,
    )
    job.plan()
    assert job.train()
    weak, strong = method_choice.choose(job)
    assert strong.chosen and job.chosen.method == "head" and not weak.chosen
    for way in (weak, strong):
        assert way.low <= way.scores["macro_f1"] <= way.high
        assert way.scores == calibrate(job, job.runs_of(way.adapter)).scores
    assert strong.behind is None and weak.behind is not None
    difference = strong.scores["macro_f1"] - weak.scores["macro_f1"]
    assert weak.behind.difference == pytest.approx(difference) and difference > 0.1
    assert weak.behind.verdict == "beats"


@pytest.mark.parametrize(
    ("target", "metric"), [("class", "auroc"), ("class", "loss"), ("number", "spearman"), ("number", "rmse")]
)
def test_every_metric_can_choose(target: str, metric: str, tiny_esm2: Path, tmp_path: Path) -> None:
    frame = cases.dataset("residue" if target == "class" else "sequence", target, 48)
    job = cases.trained(frame, tiny_esm2, tmp_path, method="head", others=("head_lora",), metric=metric)
    compared = method_choice.choose(job)
    values = {way.adapter.method: way.scores[metric] for way in compared}
    best = (min if metric in objectives.LOWER_IS_BETTER else max)(values, key=lambda name: values[name])
    assert job.chosen.method == best
    assert all(np.isnan(way.low) == (metric == "loss") for way in compared)


def test_folds_cannot_choose_but_one_fold_can(tiny_esm2: Path, tmp_path: Path) -> None:
    frame = cases.dataset("sequence", "class", 24).drop(columns="split")
    frame["fold"] = [str(number % 3 + 1) for number in range(24)]
    with pytest.raises(UserError, match="validation rows of one fold are the test rows of another"):
        finetune(frame, tiny_esm2, tmp_path / "all", "--method", "head,head_lora")
    assert not (tmp_path / "all" / "bundle").exists()
    made = finetune(frame, tiny_esm2, tmp_path / "one", "--method", "head,head_lora", "--fold", "2")
    assert set(table(made["predictions"])["fold"]) == {"2"}


@pytest.mark.parametrize("method", ["lora,", "lora,lora", "head,qlora", ""])
def test_unknown_and_repeated_ways_are_told(method: str, tiny_esm2: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"some of lora, dora, ia3, head_lora, head, full, each once \[--method\]"):
        finetune(cases.dataset("site", "class", 16), tiny_esm2, tmp_path, "--method", method)
