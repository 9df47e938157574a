"""The stage plm_finetune as its users run it."""

from __future__ import annotations

import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import finetuning_cases as cases
import numpy as np
import pandas as pd
import plm_finetune
import pytest
from plm.errors import UserError
from plm.model.bundles.archive import read_manifest
from plm.model.bundles.fine_tuned import load_bundle
from plm.scoring.predictions import read_predictions

OUTPUTS = ("bundle", "predictions", "history", "curves", "report", "tfevents")
FAST = ("--epochs", "2", "--precision", "fp32", "--device", "cpu", "--predictor", "model")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GALAXY_SLOTS", "1")


def finetune(frame: pd.DataFrame, model: Path, folder: Path, *options: str) -> dict[str, Path]:
    """Runs the stage in this process; its outputs by name."""
    folder.mkdir(parents=True, exist_ok=True)
    frame.to_csv(folder / "dataset.tabular", sep="\t", index=False)
    paths = {name: folder / name for name in OUTPUTS}
    named = [word for name, path in paths.items() for word in (f"--{name}", str(path))]
    plm_finetune.run(["--dataset", str(folder / "dataset.tabular"), "--model", str(model), *named, *FAST, *options])
    return paths


def table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)


def test_outputs_of_a_site_task(tiny_esm2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = cases.dataset("site", "class", 32)
    frame["protein"] = [f"P{number}" for number in range(32)]
    frame["protein_position"] = "108"
    made = finetune(frame, tiny_esm2, tmp_path, "--seeds", "2", "--seed", "7", "--name", "mine")
    log = capsys.readouterr().out.splitlines()
    assert "FEW ROWS: trained on 16 rows with 8 validation rows; so few cannot show" in log[0]
    assert "No GPU is used" in log[1]
    assert any("Plan: " in line for line in log)

    predictions = table(made["predictions"])
    columns = "id protein position protein_position label call p_0 p_1 split seed model"
    assert list(predictions.columns) == columns.split()
    assert set(predictions["seed"]) == {"ensemble", "7", "8"}
    assert set(predictions["model"]) == {"mine"}
    ensemble = predictions[predictions["seed"] == "ensemble"].reset_index(drop=True)
    expected = frame[frame["split"].isin(["valid", "test"])]
    assert sorted(ensemble["id"]) == sorted(expected["id"]), "every validation and test row, none of training"
    truth = dict(zip(frame["id"], frame["label"], strict=True))
    assert all(truth[key] == label for key, label in zip(ensemble["id"], ensemble["label"], strict=True))
    members = [predictions[predictions["seed"] == seed]["p_1"].astype(float).to_numpy() for seed in ("7", "8")]
    np.testing.assert_allclose(ensemble["p_1"].astype(float), np.mean(members, axis=0), atol=2e-6)

    bundle = load_bundle(made["bundle"], str(tiny_esm2), workdir=tmp_path / "again", device="cpu", precision="fp32")
    sequences = dict(zip(frame["id"], frame["sequence"], strict=True))
    again = bundle.predict([sequences[key] for key in ensemble["id"]], [7] * len(ensemble))
    np.testing.assert_allclose(again[:, 1], ensemble["p_1"].astype(float), atol=2e-6)
    assert bundle.calls(again) == ensemble["call"].tolist()

    read_predictions(made["predictions"])
    history = table(made["history"])
    assert set(history["seed"]) == {"7", "8"} and {"train_loss", "valid_loss", "valid_auroc"} <= set(history.columns)
    assert made["curves"].read_bytes().startswith(b"\x89PNG")
    first = (
        "**FEW ROWS: trained on 16 rows with 8 validation rows; so few cannot show what the model is worth on other "
        "proteins, whatever its scores. tiny_esm2 fine-tuned on 16 rows (LoRA), AUROC "
    )
    assert made["report"].read_text().startswith(first)
    assert made["tfevents"].stat().st_size > 500


def test_out_of_fold_predictions_of_all_folds_and_of_one(tiny_esm2: Path, tmp_path: Path) -> None:
    frame = cases.dataset("site", "class", 30).drop(columns="split")
    frame["fold"] = [str(number % 3 + 1) for number in range(30)]
    made = finetune(frame, tiny_esm2, tmp_path / "all")
    predictions = table(made["predictions"])
    test = predictions[predictions["split"] == "test"]
    assert sorted(test["id"]) == sorted(frame["id"]), "each row is a test row once"
    own = dict(zip(frame["id"], frame["fold"], strict=True))
    assert all(own[key] == fold for key, fold in zip(test["id"], test["fold"], strict=True))

    one = table(finetune(frame, tiny_esm2, tmp_path / "one", "--fold", "2")["predictions"])
    same = test[test["fold"] == "2"].reset_index(drop=True)
    pd.testing.assert_frame_equal(one[one["split"] == "test"].reset_index(drop=True), same)


def test_residue_predictions_have_a_row_for_each_residue(tiny_esm2: Path, tmp_path: Path) -> None:
    frame = cases.dataset("residue", "class", 16)
    made = finetune(frame, tiny_esm2, tmp_path)
    predictions = table(made["predictions"])
    assert read_manifest(made["bundle"])["head"]["kind"] == "neighbours"
    linear = finetune(frame, tiny_esm2, tmp_path / "linear", "--reach", "0")
    assert "kind" not in read_manifest(linear["bundle"])["head"]
    for row in frame[frame["split"] == "test"].itertuples():
        found = predictions[predictions["id"] == row.id]
        assert found["position"].tolist() == [str(at + 1) for at in range(len(row.sequence))]
        assert "".join(value or "-" for value in found["label"]) == row.label


@pytest.mark.parametrize("predictor", ["model", "auto"])
def test_time_limit_and_resume_end_like_one_job(tiny_esm2: Path, tmp_path: Path, predictor: str) -> None:
    frame = cases.dataset("sequence", "class", 24)
    asked = ("--predictor", predictor)
    whole = finetune(frame, tiny_esm2, tmp_path / "whole", *asked)
    checkpoint = tmp_path / "checkpoint.zip"
    stopped = finetune(
        frame, tiny_esm2, tmp_path / "first", "--time-limit", "0", "--checkpoint", str(checkpoint), *asked
    )
    assert "UNFINISHED" in stopped["report"].read_text()
    assert set(table(stopped["predictions"])["finished"]) == {"false"}
    with zipfile.ZipFile(stopped["bundle"]) as opened:
        assert b'"finished": false' in opened.read("manifest.json")
        assert b"Unfinished" in opened.read("README.md")
    resumed = finetune(frame, tiny_esm2, tmp_path / "second", "--resume", str(checkpoint), *asked)
    for name in ("bundle", "predictions", "history", "report"):
        assert resumed[name].read_bytes() == whole[name].read_bytes()


def test_narrower_windows_are_recut(tiny_esm2: Path, tmp_path: Path) -> None:
    made = finetune(cases.dataset("site", "class", 24), tiny_esm2, tmp_path, "--window", "7")
    bundle = load_bundle(made["bundle"], str(tiny_esm2), workdir=tmp_path / "again", device="cpu", precision="fp32")
    assert bundle.window == 7
    flanks = ["AAAAAAAAACDYEFGAAAAAA", "WWWWWWWWWCDYEFGWWWWWW"]
    one, other = bundle.predict(flanks, [11, 11])
    assert not np.allclose(one, other), "the residue just inside the window counts"
    one, other = bundle.predict([f[:8] + "HCDYEFH" + f[15:] for f in flanks], [11, 11])
    np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"label": "1"}, [], "All labels are '1': one class only"),
        ({"split": "train"}, [], "no validation rows"),
        ({"position": "40"}, [], "line 2, id 'r0'"),
        ({}, ["--target", "number", "--metric", "auroc"], "auroc does not fit a task with numbers"),
        ({}, ["--window", "99"], "cannot be cut to 99"),
        ({}, ["--fold", "1"], "splits, not folds"),
        ({}, ["--learning-rate", "0"], "0 is out of range [--learning-rate]. Choose more than 0"),
        ({}, ["--rank", "0"], "0 is out of range [--rank]. Choose 1 or more"),
        ({}, ["--warmup", "1"], "1 is out of range [--warmup]. Choose 0 to below 1"),
        ({}, ["--targets", "nothing"], "no linear layer named 'nothing'"),
        ({}, ["--time-limit", "5"], "needs a file for the checkpoint"),
        ({}, ["--positive-class", "phospho"], "'phospho' is not one of two classes"),
    ],
)
def test_mistakes_are_told_and_leave_no_output(
    change: dict[str, str], options: list[str], message: str, tiny_esm2: Path, tmp_path: Path
) -> None:
    frame = cases.dataset("site", "class", 16).assign(**change)
    with pytest.raises(UserError) as caught:
        finetune(frame, tiny_esm2, tmp_path, *options)
    assert message in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset.tabular"]


def test_text_among_numbers_is_told(tiny_esm2: Path, tmp_path: Path) -> None:
    frame = cases.dataset("sequence", "number", 16)
    frame.loc[2, "label"] = "high"
    with pytest.raises(UserError, match="'high' is no number"):
        finetune(frame, tiny_esm2, tmp_path, "--target", "number")


def test_hub_is_not_reached_unless_allowed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="allow-hub"):
        finetune(cases.dataset("site", "class", 16), Path("hub:someone/model"), tmp_path)


def test_command_line_ends_with_one_line_and_exit_code_1(
    run_stage: Callable[..., subprocess.CompletedProcess[str]], tiny_esm2: Path, tmp_path: Path
) -> None:
    frame = cases.dataset("site", "class", 16).assign(label="1")
    frame.to_csv(tmp_path / "dataset.tabular", sep="\t", index=False)
    done = run_stage(
        "plm_finetune", "--dataset", tmp_path / "dataset.tabular", "--model", tiny_esm2, "--bundle", tmp_path / "b.zip"
    )
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "plm_finetune: error: All labels are '1': one class only [dataset.tabular]. "
        "Give records of at least two classes."
    ]
    assert not (tmp_path / "b.zip").exists()


def test_missing_library_is_named(
    run_stage: Callable[..., subprocess.CompletedProcess[str]], tiny_esm2: Path, tmp_path: Path
) -> None:
    """A peft too old for this tool, put in front of the installed one."""
    old = tmp_path / "site" / "peft-0.1.0.dist-info"
    old.mkdir(parents=True)
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: peft\nVersion: 0.1.0\n")
    done = run_stage(
        "plm_finetune", "--dataset", tmp_path / "x", "--model", tiny_esm2, "--bundle", tmp_path / "b.zip",
        env={"PYTHONPATH": str(tmp_path / "site")},
    )
    assert done.returncode == 1
    assert "peft 0.1.0 is too old: this tool needs" in done.stderr


@pytest.mark.parametrize("rate", [["--learning-rate", "1e30"], ["--head-learning-rate", "1e38"]], ids=["lora", "head"])
def test_a_training_that_diverges_is_one_line(
    rate: list[str], root: Path, tmp_path: Path, run_stage: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = run_stage(
        "plm_finetune", "--dataset", root / "test-data" / "dataset_sites.tabular", "--model",
        root / "test-data" / "tiny_esm2.zip", "--epochs", "1", *rate, "--bundle", tmp_path / "b.zip",
    )
    assert done.returncode == 1 and not list(tmp_path.iterdir())
    assert "The training diverged: the" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr


def splits(rows: int, train: int, valid: int) -> pd.DataFrame:
    """So many training and validation rows of two classes in turn, the rest for testing."""
    frame = cases.dataset("sequence", "class", rows)
    frame["split"] = ["train"] * train + ["valid"] * valid + ["test"] * (rows - train - valid)
    frame["label"] = [str(number % 2) for number in range(rows)]
    return frame


def test_next_to_nothing_is_refused(tiny_esm2: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="only 6 labelled rows in the training part, and training needs at least 8"):
        finetune(splits(24, 6, 10), tiny_esm2, tmp_path)
    lopsided = splits(24, 12, 6)
    lopsided.loc[:11, "label"] = ["1"] + ["0"] * 11
    with pytest.raises(UserError, match="The class '1' has 1 row in the training part, and training needs at least 2"):
        finetune(lopsided, tiny_esm2, tmp_path)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("valid", "labels", "why"),
    [
        (4, "0101", "there are only 4 labelled validation rows"),
        (6, "111111", "the 6 validation rows hold one class only"),
    ],
    ids=["few", "one class"],
)
def test_report_log_and_card_say_that_nothing_is_calibrated(
    valid: int, labels: str, why: str, tiny_esm2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = splits(24, 12, valid)
    frame.loc[12 : 11 + valid, "label"] = list(labels)
    made = finetune(frame, tiny_esm2, tmp_path, "--metric", "loss")
    log = capsys.readouterr().out
    assert f"Probabilities are not calibrated and the threshold stays at 0.5, since {why}" in log
    sentence = (
        "The validation rows chose the epoch, so that scores on them are optimistic. Probabilities are not calibrated "
        f"and the threshold is 0.5, since {why}."
    )
    report = made["report"].read_text()
    assert sentence in report and "temperature" not in report
    with zipfile.ZipFile(made["bundle"]) as archive:
        assert sentence in archive.read("README.md").decode()
    loaded = load_bundle(made["bundle"], str(tiny_esm2), workdir=tmp_path / "again", device="cpu", precision="fp32")
    assert loaded.manifest["threshold"] == 0.5 and loaded.manifest["calibration"]["temperature"] == 1.0


def test_enough_rows_are_not_called_few(tiny_esm2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = finetune(splits(75, 50, 20), tiny_esm2, tmp_path, "--epochs", "1")
    log, report = capsys.readouterr().out.splitlines(), made["report"].read_text()
    assert "No GPU is used" in log[0] and "FEW ROWS" not in report
    assert "The validation rows chose the temperature and the threshold, so that" in report
    assert "Judge the model by its test rows" in report
    untested = splits(70, 50, 20)
    report = finetune(untested, tiny_esm2, tmp_path / "b", "--epochs", "1")["report"].read_text()
    assert "There are no test rows, so that nothing here tells how good" in report and "Judge the model" not in report
