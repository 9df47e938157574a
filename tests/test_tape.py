"""TAPE's tasks through the stages: states of residues of which some are not resolved, many folds, published parts."""

from __future__ import annotations

from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plm_evaluate
import plm_finetune
import pytest
from plm.data.dataset_table import write_dataset

ROOT = Path(__file__).resolve().parents[1]
STATES = {"H": "HGI", "E": "EB", "C": "STC"}
LETTERS = list("ACDEFGHIKLMNPQRSTVWY")


def heads(dataset: Path, tmp_path: Path, tiny_esm2: Path, *more: str) -> pd.DataFrame:
    """Predictions of heads on the tiny model."""
    made = tmp_path / "predictions.tsv"
    plm_finetune.run([
        "--dataset", str(dataset), "--model", str(tiny_esm2), "--method", "head", "--predictor", "model", "--epochs",
        "1", "--metric", "accuracy", "--device", "cpu", "--precision", "fp32", "--bundle", str(tmp_path / "b.zip"),
        "--predictions", str(made), *more,
    ])
    return pd.read_csv(made, sep="\t", dtype={"label": str, "call": str})


def scores(tmp_path: Path) -> pd.DataFrame:
    metrics = tmp_path / "metrics.tsv"
    plm_evaluate.run([
        "--predictions", str(tmp_path / "predictions.tsv"), "--main-metric", "accuracy", "--resamples", "100",
        "--metrics", str(metrics),
    ])
    read = pd.read_csv(metrics, sep="\t")
    return read[(read["class"] == "all") & (read["stratum"] == "all")].set_index("metric")


@pytest.mark.slow
def test_eight_states_are_learned_and_unresolved_residues_neither_learned_nor_scored(
    tmp_path: Path, tiny_esm2: Path
) -> None:
    generator = np.random.default_rng(0)
    table = pd.read_csv(ROOT / "test-data" / "dataset_residues.tabular", sep="\t")[["id", "sequence", "label", "split"]]
    table["label"] = [
        "".join("-" if generator.random() < 0.1 else generator.choice(list(STATES[state])) for state in label)
        for label in table["label"]
    ]
    write_dataset(table, tmp_path / "d.tsv")
    predictions = heads(tmp_path / "d.tsv", tmp_path, tiny_esm2, "--level", "residue")
    test = predictions[(predictions["split"] == "test") & predictions["label"].notna()]
    truth = {
        (row.id, place): state for row in table[table["split"] == "test"].itertuples()
        for place, state in enumerate(row.label, 1) if state != "-"
    }
    assert dict(zip(zip(test["id"], test["position"], strict=True), test["label"], strict=True)) == truth
    assert sorted(name for name in test.columns if name.startswith("p_")) == [f"p_{state}" for state in "BCEGHIST"]
    accuracy = float((test["call"] == test["label"]).mean())
    assert scores(tmp_path).loc["accuracy", "value"] == pytest.approx(accuracy, abs=1e-4)


def test_many_folds_go_through_and_top_ten_is_counted(tmp_path: Path, tiny_esm2: Path) -> None:
    generator = np.random.default_rng(1)
    classes, rows = 130, []
    for number in range(classes + 60):
        split = "train" if number < classes else "valid" if number < classes + 20 else "test"
        fold = number if number < classes else int(generator.integers(classes))
        rows.append({"id": f"p{number}", "sequence": "".join(generator.choice(LETTERS, 24)), "label": f"fold{fold}",
                     "split": split})
    write_dataset(pd.DataFrame(rows), tmp_path / "d.tsv")
    predictions = heads(tmp_path / "d.tsv", tmp_path, tiny_esm2, "--level", "sequence", "--target", "class")
    test = predictions[predictions["split"] == "test"]
    names = [name for name in test.columns if name.startswith("p_")]
    assert len(names) == classes and len(test) == 40
    probabilities = test[names].to_numpy()
    own = probabilities[np.arange(len(test)), [names.index(f"p_{label}") for label in test["label"]]]
    in_top = ((probabilities > own[:, None]).sum(1) < 10).mean()
    read = scores(tmp_path)
    assert read.loc["top10_accuracy", "value"] == pytest.approx(float(in_top), abs=0.03)
    assert read.loc["top5_accuracy", "value"] <= read.loc["top10_accuracy", "value"]


@pytest.fixture(scope="module")
def benchmark() -> Any:
    loader = SourceFileLoader("benchmark_tape", str(ROOT / "scripts" / "benchmarks" / "benchmark_tape"))
    module = module_from_spec(spec_from_loader("benchmark_tape", loader))  # type: ignore[arg-type]
    loader.exec_module(module)
    return module


@pytest.mark.realdata
@pytest.mark.parametrize(("task", "judged"), [("remote_homology", 736), ("stability", 2512), ("fluorescence", 5362)])
def test_the_published_validation_part_judges_and_part_of_training_chooses(
    benchmark: Any, shared_data: Path, task: str, judged: int
) -> None:
    table = benchmark.sequences(shared_data, task, 0, 0)
    counts = table["split"].value_counts()
    assert counts["test"] == judged and 0.05 < counts["valid"] / counts["train"] < 0.15
    parts = table.groupby("sequence")["split"].nunique()
    assert int(parts.max()) == 1
    if task == "remote_homology":
        assert table["label"][table["split"] == "train"].nunique() == 1195


def test_every_task_has_its_published_numbers(benchmark: Any) -> None:
    assert {len(published) for published in benchmark.PUBLISHED.values()} == {5}
    assert {published[1] for published in benchmark.PUBLISHED.values()} == {"accuracy", "spearman"}
