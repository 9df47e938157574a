"""plm_train_classifier: heads that equal the libraries', nothing lost, honest splits, resumed searches, bad input."""

from __future__ import annotations

import json
import subprocess
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plm_train_classifier
import pytest
from plm.data.embeddings.files import Description, write_embeddings
from plm.data.task import Task
from plm.errors import UserError
from plm.jobs.classifier.labelled_embeddings import read_labelled
from plm.jobs.classifier.material import prepare
from plm.model.bundles.classifier import load_classifier_bundle
from plm.scoring.predictions import gather, read_predictions
from plm.training import classifiers
from plm.training.classifiers import NetworkSettings, ValidationRows, fit_logistic, fit_ridge, make_rows
from scipy.special import softmax
from scipy.stats import betabinom
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import f1_score

ABOUT = Description("simulated", "5e" * 32, (6,), "mean", "float32", 12)
QUICK = ("--epochs", "6", "--preset", "small", "--resamples", "100")


def write(path: Path, ids: Sequence[str], rows: np.ndarray, about: Description = ABOUT, layout: str = "hdf5") -> Path:
    about = Description(
        about.model, about.model_sha256, about.layers, about.pooling, about.dtype, rows.shape[1], about.notes
    )
    write_embeddings(path, layout, about, list(ids), iter(rows.astype(np.float32)))
    return path


def simulated(count: int = 120, classes: int = 3, dimension: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows around one centre a class, and the class numbers."""
    generator = np.random.default_rng(seed)
    number = np.arange(count) % classes
    return 1.5 * generator.normal(size=(classes, dimension))[number] + generator.normal(size=(count, dimension)), number


@pytest.fixture
def data(tmp_path: Path) -> tuple[Path, Path]:
    """Embeddings and a table with classes, groups of two, splits and folds."""
    rows, number = simulated()
    ids = [f"p{index}" for index in range(len(rows))]
    table = pd.DataFrame({"id": ids, "label": [f"class {'αβγ'[value]}" for value in number]})
    table["group"] = [f"g{index // 6}" for index in range(len(rows))]
    table["split"] = [("train", "train", "train", "valid", "test")[index // 6 % 5] for index in range(len(rows))]
    table["activity"] = [f"{row[:4].sum() + 0.01:.3f}" for row in rows]
    table.to_csv(tmp_path / "table.tsv", sep="\t", index=False)
    folds = table.drop(columns=["split"]).assign(fold=[index // 6 % 4 + 1 for index in range(len(rows))])
    folds.to_csv(tmp_path / "folds.tsv", sep="\t", index=False)
    return write(tmp_path / "embeddings.h5", ids, rows), tmp_path / "table.tsv"


def train(folder: Path, *options: str | Path) -> dict[str, Any]:
    """Runs the stage; its outputs by name."""
    outputs = {"bundle": "b.zip", "predictions": "p.tsv", "metrics": "m.tsv", "status": "s.tsv", "report": "r.md",
               "history": "h.tsv", "curves": "c.png", "heads": "x.png", "confusion": "f.png"}
    argv = [part for flag, name in outputs.items() for part in (f"--{flag}", str(folder / name))]
    plm_train_classifier.run([*map(str, options), *QUICK, *argv])
    found: dict[str, Any] = {
        "report": (folder / "r.md").read_text(),
        "bundle": load_classifier_bundle(folder / "b.zip"),
    }
    for name in ("predictions", "metrics", "status", "history"):
        found[name] = pd.read_csv(folder / outputs[name], sep="\t", dtype=str, keep_default_na=False)
    return found


def value(found: dict[str, Any], model: str, metric: str, split: str = "test", name: str = "all") -> float:
    table = found["metrics"]
    rows = table[(table.model == model) & (table.metric == metric) & (table.split == split) & (table["class"] == name)]
    assert len(rows) == 1
    return float(rows["value"].iloc[0])


# ------------------------------------------------------------------------------------------------------------ the heads


@pytest.mark.parametrize(("rows", "columns", "classes"), [(300, 20, 3), (40, 60, 4), (200, 10, 2)])
def test_linear_heads_equal_scikit_learns(rows: int, columns: int, classes: int) -> None:
    values, target = simulated(rows, classes, columns)
    values = values.astype(np.float32)
    weights = np.random.default_rng(1).random(rows) + 0.5
    for strength in (0.01, 1.0):
        theirs = LogisticRegression(C=strength, max_iter=5000, tol=1e-9)
        expected = theirs.fit(values.astype(float), target, sample_weight=weights).predict_proba(values.astype(float))
        weight, bias = fit_logistic(values, target, classes, strength, weights)
        found = softmax(values @ weight.T + bias, axis=1)
        if classes > 2:  # of two classes scikit-learn penalises one row of coefficients, not two
            np.testing.assert_allclose(found, expected, atol=5e-3)
        else:
            assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.98
    hot = np.eye(classes, dtype=np.float32)[target]
    for alpha, (weight, bias) in zip((0.1, 100.0), fit_ridge(values, hot, [0.1, 100.0], weights), strict=True):
        theirs = Ridge(alpha=alpha).fit(values.astype(float), hot, sample_weight=weights)
        np.testing.assert_allclose(values @ weight.T + bias, theirs.predict(values.astype(float)), atol=1e-4)


def test_scaling_sees_training_rows_alone_and_constant_columns_do_no_harm() -> None:
    values, target = simulated(90)
    values[:, 3] = 1000.1
    values = values.astype(np.float32)
    task = Task("sequence", "class", ("a", "b", "c"))
    rows = make_rows(values[:60], target[:60], [str(row) for row in range(60)], task)
    np.testing.assert_allclose(rows.mean, values[:60].mean(axis=0, dtype=np.float64), rtol=1e-6)
    kept = [column for column in range(12) if column != 3]
    np.testing.assert_allclose(rows.scale[kept], values[:60].std(axis=0, dtype=np.float64)[kept], rtol=1e-5)
    assert rows.scale[3] == 1
    assert classifiers.constant_columns(values) == 1
    for kind in (classifiers.logistic, classifiers.ridge, classifiers.neighbours):
        head = kind(rows, "macro_f1", 42).head  # type: ignore[operator]
        assert (head.scores(values[60:]).argmax(axis=1) == target[60:]).mean() > 0.85, kind


def test_quality_is_scikit_learns() -> None:
    generator = np.random.default_rng(0)
    scores, target = generator.normal(size=(50, 4)), generator.integers(3, size=50)  # the last class never occurs
    task = Task("sequence", "class", tuple("abcd"))
    expected = f1_score(target, scores.argmax(axis=1), labels=[0, 1, 2], average="macro")
    assert classifiers.quality(scores, target, task, "macro_f1") == pytest.approx(expected)


def test_the_network_keeps_its_best_epoch_and_its_metrics() -> None:
    values, target = simulated(150, seed=3)
    target = np.where(np.random.default_rng(5).random(150) < 0.3, (target + 1) % 3, target)
    values = values.astype(np.float32)
    task = Task("sequence", "class", ("a", "b", "c"))
    rows = make_rows(values[:100], target[:100], [str(row) for row in range(100)], task)
    judge = ValidationRows(values[100:], target[100:])
    settings = NetworkSettings(width=64, depth=1, learning_rate=0.02, epochs=30, patience=0, batch=16)
    fitted = classifiers.feedforward(rows, judge, settings, "macro_f1", 42)
    losses = [entry["valid_loss"] for entry in fitted.history]
    [kept] = [entry for entry in fitted.history if entry["kept"]]
    assert kept["valid_loss"] == min(losses) < losses[-1], "it overfits, and an earlier epoch is kept"
    reached = classifiers.quality(fitted.head.scores(judge.matrix), judge.target, task, "loss")
    assert reached == pytest.approx(kept["valid_loss"])
    again = classifiers.feedforward(rows, judge, settings, "macro_f1", 42)
    np.testing.assert_array_equal(again.head.arrays["weight0"], fitted.head.arrays["weight0"])


@pytest.mark.parametrize("balance", ["weights", "sampling"])
def test_balancing_finds_the_rare_class(balance: str) -> None:
    generator = np.random.default_rng(2)
    target = (np.arange(600) % 30 == 0).astype(np.int64)
    values = (generator.normal(size=(600, 8)) + 0.8 * target[:, None]).astype(np.float32)
    task = Task("sequence", "class", ("no", "yes"), "yes")
    rows = make_rows(values, target, [str(row) for row in range(600)], task)

    def found(kind: str) -> float:
        settings = NetworkSettings(width=16, depth=1, epochs=15, patience=0, balance=kind)
        head = classifiers.feedforward(rows, ValidationRows(values, target), settings, "auroc", 1).head
        return float((head.scores(values).argmax(axis=1) == 1)[target == 1].mean())

    assert found(balance) > found("none") + 0.2


# -------------------------------------------------------------------------------------------------------- the whole way


def test_classes_from_a_table(data: tuple[Path, Path], tmp_path: Path) -> None:
    embeddings, table = data
    found = train(tmp_path, "--embeddings", embeddings, "--labels", table)
    report, bundle, predictions = found["report"], found["bundle"], found["predictions"]
    assert report.startswith("**") and "linear head" in report.split("\n")[0] and "column split of the table" in report
    names = ("logistic regression", "ridge regression", "nearest neighbours", "feed-forward network")
    for name in (*names, "baseline: majority"):
        assert 0 <= value(found, name, "macro_f1") <= 1
    best = max(names, key=lambda name: value(found, name, "macro_f1", "valid"))
    assert value(found, best, "macro_f1", "valid") == value(
        found, report[2 : report.index(" (chosen")].lower(), "macro_f1", "valid"
    )
    # The predictions are those of the reloaded bundle, and the metrics are those of the predictions.
    source = read_labelled([embeddings], workdir=tmp_path, labels=table)
    place = {name: row for row, name in enumerate(source.ids)}
    values = bundle.predict(source.matrix[[place[name] for name in predictions["id"]]])
    columns = [f"p_{name}" for name in bundle.classes]
    np.testing.assert_allclose(predictions[columns].astype(float), values, atol=1e-6)
    assert list(predictions["call"]) == bundle.calls(values)
    judged = predictions[predictions["split"] == "test"]
    assert value(found, best, "macro_f1") == pytest.approx(
        f1_score(judged["label"], judged["call"], average="macro"), abs=1e-5
    )
    # plm_evaluate reads them as they are.
    seen = gather([("p.tsv", read_predictions(tmp_path / "p.tsv"))], [])
    assert seen.kind == "multiclass" and len(seen.rows) == 24
    assert bundle.manifest["novelty"]["threshold"] > 0 and bundle.manifest["rows"] == {
        "train": 72, "valid": 24, "test": 24,
    }
    assert bundle.validation_scores[0].shape == (24, 3) and set(found["status"]["status"]) == {
        "used: train", "used: valid", "used: test",
    }
    assert len(found["status"]) == 240
    for name in ("c.png", "x.png", "f.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_equal_input_gives_an_equal_bundle(data: tuple[Path, Path], tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        train(tmp_path / name, "--embeddings", data[0], "--labels", data[1], "--head", "feedforward")
    assert (tmp_path / "one" / "b.zip").read_bytes() == (tmp_path / "two" / "b.zip").read_bytes()


def test_numbers_are_predicted_in_their_own_units(data: tuple[Path, Path], tmp_path: Path) -> None:
    found = train(tmp_path, "--embeddings", data[0], "--labels", data[1], "--label-column", "activity")
    assert value(found, "ridge regression", "spearman") > 0.95
    assert "Spearman correlation" in found["report"] and "logistic" not in set(found["metrics"]["model"])
    judged = found["predictions"]
    if found["bundle"].manifest["head"]["kind"] == "ridge":
        np.testing.assert_allclose(judged["value"].astype(float), judged["label"].astype(float), atol=1.5)
    with pytest.raises(UserError, match="logistic cannot predict numbers"):
        train(tmp_path, "--embeddings", data[0], "--labels", data[1], "--label-column", "activity",
              "--head", "logistic")


def test_folds_give_out_of_fold_predictions_and_a_head_on_all_rows(data: tuple[Path, Path], tmp_path: Path) -> None:
    found = train(tmp_path, "--embeddings", data[0], "--labels", data[1].with_name("folds.tsv"), "--head", "logistic")
    judged = found["predictions"][found["predictions"]["split"] == "test"]
    assert len(judged) == 120 and judged["id"].is_unique and set(judged["fold"]) == set("1234")
    assert value(found, "logistic regression", "macro_f1", "out-of-fold") == pytest.approx(
        f1_score(judged["label"], judged["call"], average="macro"), abs=1e-5
    )
    bundle = found["bundle"]
    assert bundle.manifest["rows"]["train"] == 120 and "fitted on all rows" in found["report"]
    source = read_labelled([data[0]], workdir=tmp_path, labels=data[1])
    values = bundle.predict(source.matrix)
    place = {name: row for row, name in enumerate(source.ids)}
    own = values[[place[name] for name in judged["id"]]]
    other = judged[[f"p_{name}" for name in bundle.classes]].astype(float).to_numpy()
    assert np.abs(own - other).max() > 1e-3, "the folds' heads have not seen their rows"


def test_one_file_a_class_and_a_loud_note(root: Path, tmp_path: Path) -> None:
    files = [root / "test-data" / f"class_{name}.h5" for name in ("beta", "none")]
    found = train(tmp_path, "--embeddings", *files, "--positive-class", "class_beta")
    assert found["report"].startswith("**RANDOM SPLIT: the labels came without split, group, cluster or sequence")
    assert found["bundle"].classes == ("class_beta", "class_none")
    assert found["bundle"].task.positive == "class_beta"
    assert set(found["predictions"]["label"]) == {"class_beta", "class_none"}
    assert value(found, "logistic regression", "auroc") > 0.5


def test_sequences_bring_homology_and_baselines(data: tuple[Path, Path], tmp_path: Path) -> None:
    generator = np.random.default_rng(4)
    table = pd.read_csv(data[1], sep="\t", dtype=str).drop(columns=["split", "group"])
    parents = ["".join(generator.choice(list("ACDEFGHIKLMNPQRSTVWY"), 90)) for _ in range(30)]
    table["sequence"] = [parents[row // 4] for row in range(120)]
    table.to_csv(tmp_path / "sequences.tsv", sep="\t", index=False)
    found = train(tmp_path, "--embeddings", data[0], "--labels", tmp_path / "sequences.tsv")
    models = set(found["metrics"]["model"])
    assert {"baseline: composition", "baseline: dipeptides", "baseline: nearest neighbour"} <= models
    assert "RANDOM SPLIT" not in found["report"] and "MMseqs2" in found["report"]
    status = found["status"][found["status"]["source"] == "embeddings"]
    split = dict(zip(status["id"], status["status"], strict=True))
    assert all(len({split[f"p{row}"] for row in range(start, start + 4)}) == 1 for start in range(0, 120, 4))


def test_equal_embeddings_never_straddle(tmp_path: Path) -> None:
    rows, number = simulated(60)
    both = np.repeat(rows, 2, axis=0)
    path = write(tmp_path / "e.h5", [f"p{row}" for row in range(120)], both)
    table = pd.DataFrame({"id": [f"p{row}" for row in range(120)], "label": [f"c{v}" for v in np.repeat(number, 2)]})
    table.to_csv(tmp_path / "t.tsv", sep="\t", index=False)
    material = prepare(read_labelled([path], workdir=tmp_path, labels=tmp_path / "t.tsv"))
    [part] = material.parts
    for rows_of in (part.train, part.valid, part.test):
        assert {row // 2 * 2 for row in rows_of} | {row // 2 * 2 + 1 for row in rows_of} == set(rows_of)
    assert len(part.train) == pytest.approx(84, abs=4) and "RANDOM SPLIT" in material.loud


def test_accessions_repeats_and_empty_labels_are_accounted_for(tmp_path: Path) -> None:
    rows, number = simulated(40)
    ids = [f"sp|P{10000 + row}|NAME_{row}" for row in range(40)]
    path = write(tmp_path / "e.h5", ids, rows)
    twin = write(tmp_path / "again.h5", ids[:3], rows[:3])
    lines = ["id,label,group"] + [f"P{10000 + row},k{number[row]},g{row}" for row in range(38)]
    lines += ["P10000,k0,g0", f"P{10038},,g", "Q99999,k1,g"]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    found = read_labelled([path, twin], workdir=tmp_path, labels=tmp_path / "t.csv")
    assert len(found) == 38 and found.columns["group"][5] == "g5"
    status = {(fate.source, fate.file, fate.line): fate.status for fate in found.fates}
    assert status["embeddings", "e.h5", 40] == "not in the table of labels"
    assert status["embeddings", "e.h5", 39] == "no label"
    assert status["embeddings", "again.h5", 2] == "repeated"
    assert status["labels", "t.csv", 40] == "repeated" and status["labels", "t.csv", 42] == "no embedding"
    assert any("39 ids were matched by their accession" in note for note in found.notes)
    np.testing.assert_allclose(found.matrix, rows[:38], rtol=1e-6)


# -------------------------------------------------------------------------------------------------------------- search


@pytest.mark.slow
def test_a_search_goes_on_as_if_never_interrupted(data: tuple[Path, Path], tmp_path: Path) -> None:
    def search(name: str, trials: int, *more: str | Path) -> pd.DataFrame:
        folder = tmp_path / name
        folder.mkdir()
        found = train(folder, "--embeddings", data[0], "--labels", data[1], "--head", "feedforward", "--search-trials",
                      str(trials), "--study", folder / "study", "--search-history", folder / "trials.tsv",
                      "--search-figure", folder / "search.png", *more)
        assert (folder / "search.png").read_bytes().startswith(b"\x89PNG")
        trials_table = pd.read_csv(folder / "trials.tsv", sep="\t")
        best = trials_table.sort_values("macro_f1", ascending=False, kind="stable").iloc[0]
        assert found["bundle"].manifest["head"]["width"] == best["width"]
        assert found["bundle"].manifest["metrics"]["macro_f1"] == pytest.approx(best["macro_f1"], abs=1e-6)
        return trials_table

    whole = search("whole", 6)
    search("first", 3)
    resumed = search("second", 6, "--resume-study", tmp_path / "first" / "study")
    pd.testing.assert_frame_equal(whole, resumed)
    assert whole["width"].iloc[0] == 64 and (whole["best_so_far"].diff().dropna() >= 0).all()
    with pytest.raises(UserError, match="The study is of other data or settings"):
        search("other", 6, "--resume-study", tmp_path / "first" / "study", "--learning-rate", "0.01")
    (tmp_path / "broken").write_text("not a study\n")
    with pytest.raises(UserError, match="--resume-study"):
        search("damaged", 6, "--resume-study", tmp_path / "broken")


# ----------------------------------------------------------------------------------------------------------- bad input


def test_embeddings_of_two_models_are_refused(data: tuple[Path, Path], tmp_path: Path) -> None:
    rows, _ = simulated(6)
    for changed, said in (
        (Description("other", "5e" * 32, (6,), "mean", "float32", 12), "model: simulated and other"),
        (Description("simulated", "77" * 32, (6,), "mean", "float32", 12), "weights of the model"),
        (Description("simulated", "5e" * 32, (5,), "mean", "float32", 12), "layer: 6 and 5"),
        (Description("simulated", "5e" * 32, (6,), "max", "float32", 12), "pooling: mean and max"),
    ):
        other = write(tmp_path / "other.h5", [f"q{row}" for row in range(6)], rows, changed)
        with pytest.raises(UserError, match=f"embeddings files differ in {said}"):
            train(tmp_path, "--embeddings", data[0], other, "--labels", data[1])
    wide = write(tmp_path / "wide.h5", [f"q{row}" for row in range(6)], np.hstack([rows, rows]))
    with pytest.raises(UserError, match="differ in dimension: 12 and 24"):
        train(tmp_path, "--embeddings", data[0], wide, "--labels", data[1])


def test_labels_of_unknown_ids(data: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "none.tsv").write_text("id\tlabel\nx1\ta\nx2\tb\n")
    with pytest.raises(UserError, match="None of the ids of the table is among the embeddings: it has"):
        train(tmp_path, "--embeddings", data[0], "--labels", tmp_path / "none.tsv")
    (tmp_path / "some.tsv").write_text(data[1].read_text() + "x1\tclass α\tg\ttrain\t1.0\n")
    found = train(tmp_path, "--embeddings", data[0], "--labels", tmp_path / "some.tsv")
    assert "1 of 121 rows of the table of labels have no embedding: 'x1'" in found["report"]


def test_a_class_with_one_member(data: tuple[Path, Path], tmp_path: Path) -> None:
    table = pd.read_csv(data[1], sep="\t", dtype=str)
    table.loc[7, ["label", "split"]] = "lonely", "test"
    table.to_csv(tmp_path / "one.tsv", sep="\t", index=False)
    with pytest.raises(UserError, match=r"The class 'lonely' has a single member: .*'p7'.*--smallest-class 2"):
        train(tmp_path, "--embeddings", data[0], "--labels", tmp_path / "one.tsv")
    found = train(tmp_path, "--embeddings", data[0], "--labels", tmp_path / "one.tsv", "--smallest-class", "2")
    assert "lonely" not in found["bundle"].classes and "1 classes with fewer than 2 members" in found["report"]
    assert (found["status"]["status"] == "class too small").sum() == 2


def test_an_all_nan_row(tmp_path: Path) -> None:
    rows, number = simulated(30)
    rows[4] = np.nan
    path = write(tmp_path / "e.h5", [f"p{row}" for row in range(30)], rows)
    lines = ["id\tlabel"] + [f"p{row}\tc{number[row]}" for row in range(30)]
    (tmp_path / "t.tsv").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=r"The embedding of 'p4' holds only NaN .*e.h5, record 5"):
        train(tmp_path, "--embeddings", path, "--labels", tmp_path / "t.tsv")


def test_a_constant_column_is_said_and_harmless(data: tuple[Path, Path], tmp_path: Path) -> None:
    source = read_labelled([data[0]], workdir=tmp_path, labels=data[1])
    rows = np.hstack([source.matrix, np.full((120, 1), 7.5)])
    path = write(tmp_path / "constant.h5", source.ids, rows)
    found = train(tmp_path, "--embeddings", path, "--labels", data[1])
    assert "1 of 13 columns of the embeddings are constant" in found["report"]
    assert value(found, "logistic regression", "macro_f1") > 0.8


def test_class_names_with_tabs_or_letters_of_other_scripts(data: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('id,label\np0,"a\tb"\np1,b\np2,b\np3,"a\tb"\n')
    with pytest.raises(UserError, match=r"class name .* holds a tab"):
        train(tmp_path, "--embeddings", data[0], "--labels", tmp_path / "t.csv")
    with pytest.raises(UserError, match="holds a tab"):
        train(tmp_path, "--embeddings", data[0], "--class-name", "a\tb")
    found = train(tmp_path, "--embeddings", data[0], "--labels", data[1])  # class α, β and γ
    assert "p_class γ" in found["predictions"].columns and "class γ" in found["report"]
    assert "class β" in json.loads(zipfile.ZipFile(tmp_path / "b.zip").read("manifest.json"))["classes"]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("id\tlabel\np0\ta\np0\tb\np1\ta\n", "'p0' has two values of label: 'a' \\(line 2\\) and 'b'"),
        ("id\tlabel\np0\ta\np1\ta\np2\ta\n", "one class only"),
        ("id\tlabel\np0\t\np1\t\n", "All labels of the embeddings are empty"),
        ("id\tlabel\tsplit\n" + "".join(f"p{i}\t{'ab'[i % 2]}\ttrian\n" for i in range(9)), "A split is none of train"),
        ("id\tlabel\tsplit\tfold\n" + "".join(f"p{i}\t{'ab'[i % 2]}\ttrain\t1\n" for i in range(9)), "both splits and"),
        ("id\tlabel\tfold\n" + "".join(f"p{i}\t{'ab'[i % 2]}\t{i % 2 + 1}\n" for i in range(9)), "at least 3 are"),
        ("id\tlabel\tsplit\n" + "".join(f"p{i}\t{'abc'[i % 3]}\t{'train' if i % 3 < 2 else 'test'}\n"
                                         for i in range(12)), "class 'c' has no training rows"),
        ("id\tanswer\np0\ta\n", "Which column holds the labels"),
    ],
)
def test_tables_that_do_not_fit(lines: str, said: str, data: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "bad.tsv").write_text(lines)
    with pytest.raises(UserError, match=said) as caught:
        train(tmp_path, "--embeddings", data[0], "--labels", tmp_path / "bad.tsv")
    assert "\n" not in str(caught.value)


def test_a_mistake_is_one_line_without_outputs(
    data: tuple[Path, Path], tmp_path: Path, run_stage: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    ended = run_stage(
        "plm_train_classifier", "--embeddings", data[0], "--labels", data[1], "--positive-class", "x",
        "--bundle", tmp_path / "b.zip",
    )
    assert ended.returncode == 1 and not (tmp_path / "b.zip").exists()
    assert ended.stderr.startswith("plm_train_classifier: error: 'x' is not one of two classes")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("labels", ["table.tsv", "folds.tsv"])
def test_coverage_of_sets_is_counted_on_rows_that_judge(data: tuple[Path, Path], tmp_path: Path, labels: str) -> None:
    found = train(tmp_path, "--embeddings", data[0], "--labels", tmp_path / labels, "--head", "logistic")
    table = found["predictions"]
    classes = found["bundle"].classes
    hits, sizes = [], []
    for _, part in table.groupby("fold" if labels == "folds.tsv" else "model"):
        answers = part[[f"p_{name}" for name in classes]].astype(float).to_numpy()
        wrong = 1 - answers[np.arange(len(part)), [classes.index(name) for name in part["label"]]]
        valid, test = (part["split"] == "valid").to_numpy(), (part["split"] == "test").to_numpy()
        rank = int(np.ceil(0.9 * (valid.sum() + 1)))
        bound = np.sort(wrong[valid])[rank - 1] if rank <= valid.sum() else np.inf
        hits += list(wrong[test] <= bound + 1e-6)
        sizes += list((1 - answers[test] <= bound + 1e-6).sum(axis=1))
    assert value(found, "logistic regression", "coverage_90", table["split"].iloc[-1] if labels == "table.tsv" else
                 "out-of-fold") == pytest.approx(np.mean(hits))
    assert f"{np.mean(hits):.1%} of the {len(hits)}" in found["report"]
    assert f"{np.mean(sizes):.2f} classes" in found["report"]


def test_random_splits_keep_the_promised_coverage(tmp_path: Path) -> None:
    rows, number = simulated(900, seed=3)
    ids = [f"p{index}" for index in range(len(rows))]
    embeddings = write(tmp_path / "many.h5", ids, 0.4 * rows)
    table = pd.DataFrame({"id": ids, "label": number})
    table["split"] = np.random.default_rng(5).choice(["train", "valid", "test"], len(rows), p=[0.2, 0.4, 0.4])
    table.to_csv(tmp_path / "many.tsv", sep="\t", index=False)
    found = train(
        tmp_path, "--embeddings", embeddings, "--labels", tmp_path / "many.tsv", "--target", "class", "--epochs", "2"
    )
    scores = found["metrics"]
    row = scores[scores["metric"] == "coverage_90"].iloc[0]
    valid, test = (table["split"] == "valid").sum(), (table["split"] == "test").sum()
    rank = int(np.ceil(0.9 * (valid + 1)))  # of n exchangeable rows as many are covered as a beta-binomial says
    low, high = betabinom.ppf([0.0005, 0.9995], test, rank, valid + 1 - rank) / test
    assert low <= float(row["value"]) <= high
    assert float(row["low"]) <= float(row["value"]) <= float(row["high"])


def test_intervals_of_numbers_are_counted_too(data: tuple[Path, Path], tmp_path: Path) -> None:
    found = train(tmp_path, "--embeddings", data[0], "--labels", data[1], "--label-column", "activity")
    assert "Intervals that plm_predict makes for a coverage of 90%" in found["report"]


def test_a_class_with_one_member_that_the_table_has_train(data: tuple[Path, Path], tmp_path: Path) -> None:
    table = pd.read_csv(data[1], sep="\t", dtype=str)
    row = int(np.flatnonzero(table["split"] == "train")[0])
    table.loc[row, "label"] = "lonely"
    table.to_csv(tmp_path / "one.tsv", sep="\t", index=False)
    trained = train(tmp_path, "--embeddings", data[0], "--labels", tmp_path / "one.tsv")
    assert "lonely" in trained["bundle"].classes
    assert "1 of 4 classes have a single row, which trains: lonely" in trained["report"]
