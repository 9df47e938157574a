"""plm_evaluate from the command line to its report, on simulated tables, and every kind of bad input."""

from __future__ import annotations

import gzip
import importlib.machinery
import importlib.util
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from plm.scoring import assessment, predictions
from sklearn import metrics as sk

Run = Callable[..., "subprocess.CompletedProcess[str]"]
FIGURES = ("roc", "pr", "confusion", "calibration", "scores")


@pytest.fixture(scope="session")
def simulated(root: Path) -> Path:
    return root / "test-data" / "predictions_simulated"


def read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)


def value(table: pd.DataFrame, model: str, metric: str, name: str = "all", stratum: str = "all") -> float:
    chosen = table[
        (table["model"] == model)
        & (table["metric"] == metric)
        & (table["class"] == name)
        & (table["stratum"] == stratum)
    ]
    assert len(chosen) == 1
    return float(chosen["value"].iloc[0])


def flags(folder: Path, *names: str) -> list[str | Path]:
    suffix = {"report": "md", "metrics": "tabular", "comparison": "tabular", "baseline-predictions": "tabular"}
    return [part for name in names for part in (f"--{name}", folder / f"{name}.{suffix.get(name, 'png')}")]


def maker(root: Path) -> ModuleType:
    loader = importlib.machinery.SourceFileLoader(
        "make_test_predictions", str(root / "scripts" / "fixtures" / "make_test_predictions")
    )
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_the_simulated_tables_come_from_their_script(root: Path, tmp_path: Path) -> None:
    maker(root).main(tmp_path)
    made = sorted(tmp_path.iterdir())
    assert len(made) == 6
    for path in made:
        assert path.read_text() == (root / "test-data" / path.name).read_text(), path.name


def test_binary_with_baselines(run_stage: Run, simulated: Path, tmp_path: Path) -> None:
    outputs = flags(tmp_path, "metrics", "comparison", "baseline-predictions", "report", *FIGURES)
    done = run_stage(
        "plm_evaluate", "--predictions", f"{simulated}_binary.tabular",
        "--training", f"{simulated}_binary_dataset.tabular", *outputs,
    )
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.iterdir())) == 9 and not list(tmp_path.glob(".*"))
    table, given = read(tmp_path / "metrics.tabular"), read(Path(f"{simulated}_binary.tabular"))
    main = given[(given["split"] == "test") & (given["seed"] == "ensemble")]
    auroc = sk.roc_auc_score(main["label"] == "1", main["p_1"].astype(float))
    assert value(table, "simulated_site_model", "auroc") == pytest.approx(auroc, abs=1e-5)
    row = table[(table["model"] == "simulated_site_model") & (table["metric"] == "auroc")].iloc[0]
    assert row["n"] == "90" and row["groups"] == "45" and row["seeds"] == "3" and row["split"] == "test"
    by_seed = [
        sk.roc_auc_score(part["label"] == "1", part["p_1"].astype(float))
        for seed, part in given[given["split"] == "test"].groupby("seed")
        if seed != "ensemble"
    ]
    assert float(row["seed_mean"]) == pytest.approx(np.mean(by_seed), abs=1e-5)
    assert float(row["seed_sd"]) == pytest.approx(np.std(by_seed, ddof=1), abs=1e-5)
    report = (tmp_path / "report.md").read_text()
    first = report.splitlines()[0]
    assert "beats the best baseline (one-hot), beyond chance" in first and "95 % interval" in first
    assert len(report.encode()) <= 10_240
    for name in FIGURES:
        assert f'history_dataset_as_image(output="{name}")' in report
    pairs = read(tmp_path / "comparison.tabular")
    assert len(pairs) == 6 and pairs["second"].iloc[0] == "baseline: one-hot"  # the one to beat comes first
    # What the report says is what the tables say, and the strata add up.
    assert f"{float(pairs['difference'].iloc[0]):.3f}" in first
    strata = table[(table["metric"] == "auroc") & (table["model"] == "simulated_site_model")].set_index("stratum")["n"]
    assert strata.drop("all").astype(int).sum() == 90


def test_baseline_predictions_evaluate_to_the_same_scores(run_stage: Run, simulated: Path, tmp_path: Path) -> None:
    common = ["--splits", "test", "--resamples", "100"]
    first = run_stage(
        "plm_evaluate", "--predictions", f"{simulated}_binary.tabular", *common,
        "--training", f"{simulated}_binary_dataset.tabular", *flags(tmp_path, "metrics", "baseline-predictions"),
    )
    assert first.returncode == 0, first.stderr
    again = run_stage(
        "plm_evaluate", "--predictions", tmp_path / "baseline-predictions.tabular", *common,
        "--metrics", tmp_path / "again.tabular", "--comparison", tmp_path / "c.tabular",
    )
    assert again.returncode == 0, again.stderr
    one, two = read(tmp_path / "metrics.tabular"), read(tmp_path / "again.tabular")
    for model in ("baseline: majority", "baseline: one-hot", "baseline: composition", "baseline: nearest neighbour"):
        for metric in ("auroc", "mcc", "brier"):
            assert value(one, model, metric) == pytest.approx(value(two, model, metric), abs=1e-4)
    assert len(read(tmp_path / "c.tabular")) == 15  # every pair of six models


def test_multiclass(run_stage: Run, simulated: Path, tmp_path: Path) -> None:
    done = run_stage(
        "plm_evaluate", "--predictions", f"{simulated}_multiclass.tabular", "--name", "my model",
        "--training", f"{simulated}_multiclass_dataset.tabular", "--resamples", "200", "--main-metric", "macro_auroc",
        *flags(tmp_path, "metrics", "report", *FIGURES),
    )
    assert done.returncode == 0, done.stderr
    table, given = read(tmp_path / "metrics.tabular"), read(Path(f"{simulated}_multiclass.tabular"))
    f1 = sk.f1_score(given["label"], given["call"], average=None, labels=["alpha", "beta", "gamma"])
    assert value(table, "my model", "macro_f1") == pytest.approx(f1.mean(), abs=1e-5)
    assert value(table, "my model", "f1", "gamma") == pytest.approx(f1[2], abs=1e-5)
    report = (tmp_path / "report.md").read_text()
    assert "Macro AUROC" in report.splitlines()[0] and "history_dataset_as_table" in report
    assert 'output="comparison"' not in report  # an output that was not asked for would break the report


def test_numbers_out_of_fold(run_stage: Run, simulated: Path, tmp_path: Path) -> None:
    done = run_stage(
        "plm_evaluate", "--predictions", f"{simulated}_number.tabular", "--task", "number",
        "--training", f"{simulated}_number_dataset.tabular", "--resamples", "200",
        *flags(tmp_path, "metrics", "report", "scatter", "residuals"),
    )
    assert done.returncode == 0, done.stderr
    table, given = read(tmp_path / "metrics.tabular"), read(Path(f"{simulated}_number.tabular"))
    truth, said = given["label"].astype(float), given["value"].astype(float)
    assert value(table, "simulated_variant_model", "spearman") == pytest.approx(truth.corr(said, "spearman"), abs=1e-5)
    assert value(table, "simulated_variant_model", "rmse") == pytest.approx(
        np.sqrt(((truth - said) ** 2).mean()), abs=1e-4
    )
    assert set(table["split"]) == {"out-of-fold"}
    assert "Spearman" in (tmp_path / "report.md").read_text().splitlines()[0]


def test_two_models_are_compared_on_the_same_rows(run_stage: Run, simulated: Path, tmp_path: Path) -> None:
    table = read(Path(f"{simulated}_binary.tabular")).sample(frac=1, random_state=0)  # the order of rows is no matter
    rng = np.random.default_rng(0)
    noise = rng.random(len(table))
    table["p_0"], table["p_1"] = [f"{1 - x:.6f}" for x in noise], [f"{x:.6f}" for x in noise]
    table["call"] = np.where(noise >= 0.5, "1", "0")
    table["finished"] = "false"
    table.to_csv(tmp_path / "noise.tabular", sep="\t", index=False)
    done = run_stage(
        "plm_evaluate", "--predictions", f"{simulated}_binary.tabular", tmp_path / "noise.tabular",
        "--name", "good", "--name", "noise", "--training", f"{simulated}_binary_dataset.tabular",
        *flags(tmp_path, "metrics", "comparison", "report"),
    )
    assert done.returncode == 0, done.stderr
    pairs = read(tmp_path / "comparison.tabular").set_index(["first", "second"])
    assert pairs.loc[("good", "noise"), "verdict"] == "beats"
    assert float(pairs.loc[("good", "noise"), "low"]) > 0
    assert pairs.loc[("noise", "baseline: one-hot"), "verdict"] == "is worse than"
    report = (tmp_path / "report.md").read_text()
    assert report.startswith("**1 of 2 models beat the best baseline beyond chance")
    assert "Unfinished training:** noise" in report and "noise (unfinished)" in report


def test_no_better_and_too_few_groups_are_said(simulated: Path) -> None:
    table = predictions.read_predictions(f"{simulated}_binary.tabular")
    evaluation = predictions.gather([("t", table)], ["one"])
    twin = predictions.Model("baseline: twin", evaluation.models[0].scored, baseline=True)
    both = predictions.Evaluation(
        evaluation.rows, "binary", evaluation.classes, (*evaluation.models, twin), "test", "group"
    )
    found = assessment.assess(both, "auroc", best_baseline="baseline: twin", resamples=200)
    assert "one is not shown to be better than the best baseline (twin)" in found.verdict()
    assert "difference 0.000, 95 % interval 0.000 to 0.000" in found.verdict()
    few = both.rows.copy()
    few["group"] = np.where(np.arange(len(few)) % 2, "a", "b")
    small = predictions.Evaluation(few, "binary", evaluation.classes, both.models, "test", "group")
    found = assessment.assess(small, "auroc", best_baseline="baseline: twin", resamples=200)
    assert "2 groups are too few for an interval" in found.verdict()
    assert found.line("one", "auroc").note == "no interval: fewer than 10 groups"


def test_positive_class_turns_the_table(run_stage: Run, simulated: Path, tmp_path: Path) -> None:
    for positive in ("1", "0"):
        done = run_stage(
            "plm_evaluate", "--predictions", f"{simulated}_binary.tabular", "--positive-class", positive,
            "--resamples", "100", "--metrics", tmp_path / f"{positive}.tabular",
        )
        assert done.returncode == 0, done.stderr
    one, zero = (read(tmp_path / f"{name}.tabular") for name in "10")
    model = "simulated_site_model"
    assert value(one, model, "sensitivity") == pytest.approx(value(zero, model, "specificity"))
    assert value(one, model, "auroc") == pytest.approx(value(zero, model, "auroc"))


@pytest.mark.slow
def test_equal_seeds_give_equal_files(run_stage: Run, simulated: Path, tmp_path: Path) -> None:
    for name in "ab":
        done = run_stage(
            "plm_evaluate", "--predictions", f"{simulated}_multiclass.tabular", "--resamples", "200",
            "--training", f"{simulated}_multiclass_dataset.tabular", "--metrics", tmp_path / f"{name}.tabular",
        )
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.tabular").read_bytes() == (tmp_path / "b.tabular").read_bytes()


def test_windows_line_ends_and_rows_without_truth(run_stage: Run, simulated: Path, tmp_path: Path) -> None:
    table = read(Path(f"{simulated}_multiclass.tabular"))
    table.loc[:4, "label"] = ""
    (tmp_path / "t.tabular").write_bytes(table.to_csv(sep="\t", index=False).replace("\n", "\r\n").encode())
    done = run_stage("plm_evaluate", "--predictions", tmp_path / "t.tabular", "--metrics", tmp_path / "m.tabular")
    assert done.returncode == 0, done.stderr
    assert set(read(tmp_path / "m.tabular")["n"]) == {"55"}


def _without(column: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda table: table.drop(columns=column)


def _with(column: str, text: str, row: int | None = 0) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def change(table: pd.DataFrame) -> pd.DataFrame:
        table.loc[row if row is not None else slice(None), column] = text
        return table

    return change


BAD = {
    "no truth": (_with("label", "", None), "No row has its truth"),
    "no label column": (_without("label"), "The column label is missing"),
    "no id column": (_without("id"), "The column id is missing"),
    "no probabilities": (lambda t: t.drop(columns=["p_0", "p_1"]), "neither probabilities"),
    "one probability": (_without("p_0"), "only one probability column"),
    "NaN probability": (_with("p_1", "nan"), "A probability is missing or no number (column p_1)"),
    "empty probability": (_with("p_1", ""), "A probability is missing or no number (column p_1)"),
    "text probability": (_with("p_0", "high"), "A probability is missing or no number (column p_0)"),
    "probability above 1": (_with("p_1", "1.2"), "A probability lies outside 0 to 1"),
    "negative probability": (_with("p_0", "-0.1"), "A probability lies outside 0 to 1"),
    "sum": (_with("p_0", "0.0"), "do not add up to 1"),
    "one class": (lambda t: t[t["label"] == "1"], "rows are of class 1, so AUROC"),
    "unknown label": (_with("label", "2", None), "The label '2' has no column p_2"),
    "unknown call": (_with("call", "maybe", None), "The call 'maybe' is none of the classes"),
    "wrong split": (_with("split", "train", None), "No labelled row is in the split test (there are: train)"),
    "repeated row": (lambda t: pd.concat([t, t]), "A row appears twice"),
    "no ensemble": (lambda t: t[t["seed"] != "ensemble"], "several seeds (1, 2, 3) and no rows with seed ensemble"),
    "seeds differ": (lambda t: t[~((t["seed"] == "2") & (t["id"] == "SIM085_Y17"))], "is not about the same rows"),
    "no rows": (lambda t: t.iloc[:0], "a header but no rows"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_predictions_are_one_clear_line(
    case: str, simulated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], root: Path
) -> None:
    change, message = BAD[case]
    table = change(read(Path(f"{simulated}_binary.tabular")))
    table.to_csv(tmp_path / "bad.tabular", sep="\t", index=False)
    _fails(root, capsys, message, "--predictions", tmp_path / "bad.tabular", "--metrics", tmp_path / "m.tabular")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.tabular"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace(b"\n", b"\t1\n").replace(b"\t1\n", b"\n", 1), "A row has 13 columns where the"),
        (lambda text: text.replace(b"p_0", b"p_1", 1), "The column 'p_1' appears twice"),
        (lambda text: gzip.compress(text, mtime=0)[:300], "broken or cut short"),
        (lambda text: b"PK\x03\x04" + bytes(range(256)), "compressed as zip"),
    ],
)
def test_broken_predictions_files(
    change: Callable[[bytes], bytes], message: str, simulated: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], root: Path,
) -> None:
    (tmp_path / "bad.tabular").write_bytes(change(Path(f"{simulated}_binary.tabular").read_bytes()))
    _fails(root, capsys, message, "--predictions", tmp_path / "bad.tabular", "--metrics", tmp_path / "m.tabular")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.tabular"]


def test_gzipped_predictions_are_told_by_content(run_stage: Run, simulated: Path, tmp_path: Path) -> None:
    (tmp_path / "p.tabular").write_bytes(gzip.compress(Path(f"{simulated}_number.tabular").read_bytes(), mtime=0))
    done = run_stage("plm_evaluate", "--predictions", tmp_path / "p.tabular", "--metrics", tmp_path / "m")
    assert done.returncode == 0, done.stderr


def test_a_missing_or_old_library_is_named(run_stage: Run, simulated: Path, tmp_path: Path) -> None:
    old = tmp_path / "path" / "scikit_learn-0.24.dist-info"
    old.mkdir(parents=True)
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: scikit-learn\nVersion: 0.24\n")
    arguments = ("plm_evaluate", "--predictions", f"{simulated}_number.tabular", "--metrics", tmp_path / "m")
    done = run_stage(*arguments, env={"PYTHONPATH": str(tmp_path / "path")})
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "scikit-learn 0.24 is too old: this tool needs 1.5 or newer" in done.stderr
    (tmp_path / "path" / "sklearn").mkdir()
    (tmp_path / "path" / "sklearn" / "__init__.py").write_text("raise ModuleNotFoundError(name='sklearn')\n")
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: scikit-learn\nVersion: 1.8\n")
    done = run_stage(*arguments, env={"PYTHONPATH": str(tmp_path / "path")})
    assert done.returncode == 1 and "The Python library sklearn is missing" in done.stderr
    assert not (tmp_path / "m").exists()


def stage_module(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("plm_evaluate", root / "tools" / "plm_evaluate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["plm_evaluate"] = module
    spec.loader.exec_module(module)
    return module


def _fails(root: Path, capsys: pytest.CaptureFixture[str], message: str, *arguments: str | Path) -> None:
    module = stage_module(root)
    logging.getLogger(module.NAME).handlers.clear()  # an earlier test's handler writes to its closed capture
    with pytest.raises(SystemExit) as ended:
        module.stage.main(module.NAME, module.run, [str(part) for part in arguments])
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("plm_evaluate: error: ") and said.count("\n") == 1
    assert message in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--predictions", "nowhere.tabular"], "does not exist"),
        (["--predictions", "{empty}"], "is empty"),
        (["--predictions", "{b}", "--name", "a", "--name", "b"], "2 names (--name) for 1 tables"),
        (["--predictions", "{b}", "{m}"], "answer different questions"),
        (["--predictions", "{b}", "--positive-class", "yes"], "--positive-class yes is none of the classes 0, 1"),
        (["--predictions", "{m}", "--positive-class", "beta"], "--positive-class is for tasks of two classes"),
        (["--predictions", "{b}", "--main-metric", "rmse"], "--main-metric rmse does not fit a binary task"),
        (["--predictions", "{b}", "--splits", "exam"], "'exam' are not some of test, valid, train"),
        (["--predictions", "{b}", "--resamples", "10"], "10 is too few for a 95 % interval [--resamples]"),
        (["--predictions", "{b}", "--window", "32"], "--window 32"),
        (["--predictions", "{b}", "--identity-bins", "50,30"], "--identity-bins '50,30'"),
        (["--predictions", "{b}", "--identity-bins", "low"], "--identity-bins 'low'"),
        (["--predictions", "{b}", "--baseline-rows", "5"], "5 is too few [--baseline-rows]"),
        (["--predictions", "{b}", "--baseline-predictions", "x"], "--baseline-predictions needs the training table"),
        (["--predictions", "{b}", "--task", "number"], "not what --task number says"),
        (["--predictions", "{n}", "--roc", "x.png"], "--roc is no figure"),
        (["--predictions", "{b}", "--scatter", "x.png"], "--scatter is no figure"),
        (["--predictions", "{b}", "--training", "{m}_dataset"], "are not in the training table"),
        (["--predictions", "{b}", "--training", "{m}"], "This is the predictions table of"),
    ],
)
def test_bad_arguments_are_one_clear_line(
    arguments: list[str], message: str, simulated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], root: Path
) -> None:
    (tmp_path / "empty.tabular").touch()
    places = {"{empty}": str(tmp_path / "empty.tabular")}
    for letter, name in (("b", "binary"), ("m", "multiclass"), ("n", "number")):
        places[f"{{{letter}}}"] = f"{simulated}_{name}.tabular"
        places[f"{{{letter}}}_dataset"] = f"{simulated}_{name}_dataset.tabular"
    _fails(root, capsys, message, *(places.get(part, part) for part in arguments))


def test_different_rows_or_truths_cannot_be_compared(
    simulated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], root: Path
) -> None:
    table = read(Path(f"{simulated}_multiclass.tabular"))
    table.iloc[1:].to_csv(tmp_path / "fewer.tabular", sep="\t", index=False)
    given = f"{simulated}_multiclass.tabular"
    _fails(root, capsys, "1 missing, 0 more, e.g. 'FAM090'", "--predictions", given, tmp_path / "fewer.tabular")
    table.loc[3, "label"] = "alpha" if table.loc[3, "label"] != "alpha" else "beta"
    table.to_csv(tmp_path / "other.tabular", sep="\t", index=False)
    _fails(root, capsys, "The label of a row differs", "--predictions", given, tmp_path / "other.tabular")
