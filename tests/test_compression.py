"""Compression of classifiers: what is stored is what answers, ONNX equals it, a loss is measured and refused."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import plm_compress_classifier
import plm_train_classifier
import pytest
from plm.data.embeddings.files import Description, write_embeddings
from plm.errors import UserError
from plm.jobs.classifier import compression, onnx_export
from plm.model.bundles.classifier import (
    ClassifierBundle,
    ClassifierHead,
    load_classifier_bundle,
    write_classifier_bundle,
)
from plm.scoring import metrics

DIMENSION, CLASSES = 20, ("A", "B", "C")
SPLITS = ["train"] * 240 + ["valid"] * 100 + ["test"] * 40


def write_data(folder: Path, *, kind: str = "three", noise: float = 1.0) -> tuple[Path, Path]:
    """Embeddings around centres of three or two classes, or along a number; and their labels."""
    generator = np.random.default_rng(4)
    rows = len(SPLITS)
    values = noise * generator.normal(size=(rows, DIMENSION))
    if kind == "number":
        labels = [f"{10 + 3 * (row @ np.arange(DIMENSION)):.4f}" for row in values]
    else:
        codes = np.arange(rows) % (3 if kind == "three" else 2)
        values += 0.7 * generator.normal(size=(3, DIMENSION))[codes]
        labels = [CLASSES[code] for code in codes]
    ids = [f"P{row:03d}" for row in range(rows)]
    about = Description("model", "c" * 64, (6,), "mean", "float32", DIMENSION)
    write_embeddings(folder / "e.h5", "hdf5", about, ids, iter(values.astype(np.float32)))
    lines = ["\t".join(row) for row in zip(ids, labels, SPLITS, strict=True)]
    (folder / "l.tsv").write_text("id\tlabel\tsplit\n" + "\n".join(lines) + "\n")
    return folder / "e.h5", folder / "l.tsv"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], tuple[Path, Path, Path]]:
    """Bundles by task and head, each trained once by the stage itself."""
    made: dict[tuple[str, str], tuple[Path, Path, Path]] = {}

    def train(kind: str, head: str) -> tuple[Path, Path, Path]:
        if (kind, head) not in made:
            folder = tmp_path_factory.mktemp(f"{kind}_{head}")
            embeddings, labels = write_data(folder, kind=kind)
            plm_train_classifier.run([
                "--embeddings", str(embeddings), "--labels", str(labels), "--head", head, "--preset", "small",
                "--epochs", "12", "--resamples", "100", "--bundle", str(folder / "b.zip"),
                "--predictions", str(folder / "p.tsv"),
            ])
            made[kind, head] = (folder / "b.zip", embeddings, labels)
        return made[kind, head]

    return train


@pytest.fixture
def execute(tmp_path: Path) -> Callable[..., dict[str, Path]]:
    numbers = itertools.count()

    def run(given: tuple[Path, Path, Path], *more: str, compress: str = "int8", onnx: bool = True) -> dict[str, Path]:
        out = tmp_path / f"out{next(numbers)}"
        out.mkdir()
        paths = {"compression-table": out / "t.tsv", "report": out / "r.md"}
        paths |= {"onnx": out / "c.onnx"} if onnx else {}
        paths |= {"compressed-bundle": out / "s.zip"} if compress != "none" else {}
        argv = ["--bundle", str(given[0]), "--embeddings", str(given[1]), "--labels", str(given[2])]
        argv += ["--compress", compress, "--resamples", "200", *more]
        for name, path in paths.items():
            argv += [f"--{name}", str(path)]
        plm_compress_classifier.run(argv)
        return paths

    return run


def read(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="") as handle:
        return {row["form"]: row for row in csv.DictReader(handle, delimiter="\t", quoting=csv.QUOTE_NONE)}


def matrix(embeddings: Path) -> np.ndarray:
    from plm.data.embeddings.files import read_embeddings

    with read_embeddings(embeddings) as file:
        return file.matrix()


# -- arrays --------------------


def head(seed: int = 0) -> ClassifierHead:
    generator = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return generator.normal(size=shape).astype(np.float32)

    layers = {"weight0": draw(9, DIMENSION), "bias0": draw(9), "weight1": draw(3, 9), "bias1": draw(3)}
    return ClassifierHead(
        "feedforward", {**layers, "mean": draw(DIMENSION), "scale": np.full(DIMENSION, 2, np.float32)}
    )


@pytest.mark.parametrize(("share", "int8"), [(0.0, True), (0.5, False), (0.5, True), (0.95, True)])
def test_what_is_packed_comes_out_as_it_went_in(share: float, int8: bool) -> None:
    original = head()
    masks = compression.magnitude_masks(original, share) if share else {}
    pruned = compression.masked(original, masks)
    stored = compression.packed(pruned, masks, int8=int8)
    found = stored.decoded()
    assert set(found.arrays) == set(original.arrays)
    for name in ("weight0", "weight1"):
        step = np.abs(pruned.arrays[name]).max(axis=1, keepdims=True) / 127
        far = np.abs(found.arrays[name] - pruned.arrays[name])
        assert (far <= (0.5001 * step if int8 else 0)).all()
        if share:
            assert (found.arrays[name] == 0).sum() >= round(share * original.arrays[name].size)
            kept = np.abs(original.arrays[name])[masks[name]]
            assert kept.min() >= np.abs(original.arrays[name])[~masks[name]].max()
    for name in ("bias0", "bias1", "mean", "scale"):
        np.testing.assert_array_equal(found.arrays[name], original.arrays[name])
    assert compression.head_bytes(stored) < compression.head_bytes(original)


def test_a_mask_that_does_not_fit_is_a_damaged_bundle() -> None:
    original = head()
    masks = compression.magnitude_masks(original, 0.5)
    stored = compression.packed(compression.masked(original, masks), masks, int8=False)
    with pytest.raises(ValueError, match="numbers for"):
        ClassifierHead("feedforward", {**stored.arrays, "weight0": stored.arrays["weight0"][:-1]}).decoded()


# -- the whole stage --------------------


@pytest.mark.parametrize("compress", ["int8", "prune", "both"])
@pytest.mark.parametrize(
    ("kind", "chosen"),
    [("three", "feedforward"), ("two", "logistic"), ("three", "ridge"), ("number", "ridge"), ("number", "feedforward")],
)
def test_compressed_bundle_answers_within_the_bound_and_onnx_as_it(
    kind: str, chosen: str, compress: str, trained: Callable[..., Any], execute: Callable[..., Any]
) -> None:
    given = trained(kind, chosen)
    more = ["--prune-share", "0.2", "--most-loss", "0.1"]
    out = execute(given, *more, compress=compress)
    before, after = load_classifier_bundle(given[0]), load_classifier_bundle(out["compressed-bundle"])
    assert after.manifest["compressed"]["method"] == compress and after.name != before.name
    values = matrix(given[1])
    table = read(out["compression-table"])
    assert list(table) == ["original", "compressed", "onnx"]
    # The table's metric is the one that the answers of the files give.
    rows = np.flatnonzero(np.array(SPLITS) == "valid")
    with given[2].open() as handle:
        labels = [line.split("\t")[1] for line in handle.read().splitlines()[1:]]
    if kind == "number":
        target = np.array([float(labels[row]) for row in rows])
    else:
        target = np.array([before.classes.index(labels[row]) for row in rows])
    valid = compression.JudgedRows(values[rows], target, [str(row) for row in rows])
    metric = table["original"]["metric"]
    for name, bundle in (("original", before), ("compressed", after)):
        expected = metrics.score(compression.scored(bundle, bundle.predict(valid.matrix), valid))[metric, metrics.ALL]
        assert float(table[name]["value"]) == pytest.approx(expected, rel=1e-5)
    loss = float(table["compressed"]["loss"])
    assert loss == pytest.approx(float(table["original"]["value"]) - float(table["compressed"]["value"]), abs=2e-6)
    assert loss <= 0.1 and float(table["compressed"]["loss_low"]) <= loss <= float(table["compressed"]["loss_high"])
    assert int(table["compressed"]["head_bytes"]) < int(table["original"]["head_bytes"])
    assert int(table["original"]["file_bytes"]) == given[0].stat().st_size
    assert all(float(row["milliseconds_1"]) > 0 and row["processor"] for row in table.values())
    # ONNX, read by another program than wrote it.
    answers = onnx_export.OnnxClassifier(out["onnx"]).predict(values)
    scale = after.task.sd if kind == "number" else 1.0
    np.testing.assert_allclose(answers / scale, after.predict(values) / scale, atol=1e-5)
    if kind != "number":
        np.testing.assert_allclose(answers.sum(axis=1), 1, atol=1e-5)
        assert np.abs(after.predict(values) - before.predict(values)).max() > 0


def test_int8_is_a_quarter_and_nearly_the_same(trained: Callable[..., Any], execute: Callable[..., Any]) -> None:
    given = trained("three", "feedforward")
    out = execute(given)
    before, after = load_classifier_bundle(given[0]), load_classifier_bundle(out["compressed-bundle"])
    for name in compression.weights_of(before.head):
        assert after.stored.arrays[name].dtype == np.int8
        assert after.stored.arrays[name].nbytes * 4 == before.stored.arrays[name].nbytes
    values = matrix(given[1])
    assert np.abs(before.raw(values) - after.raw(values)).max() < 0.2
    assert "smaller, not faster" in out["report"].read_text()


def test_validation_scores_temperature_and_threshold_follow_the_compressed_head(
    trained: Callable[..., Any], execute: Callable[..., Any]
) -> None:
    given = trained("two", "logistic")
    out = execute(given, "--prune-share", "0.6", "--most-loss", "1", compress="prune")
    before, after = load_classifier_bundle(given[0]), load_classifier_bundle(out["compressed-bundle"])
    rows = np.flatnonzero(np.array(SPLITS) == "valid")
    scores, truth = after.validation_scores
    np.testing.assert_allclose(scores, after.predict(matrix(given[1])[rows]), atol=1e-9)
    np.testing.assert_array_equal(truth, before.validation_scores[1])
    assert after.temperature != before.temperature


def test_rows_that_did_not_calibrate_do_not_recalibrate(
    trained: Callable[..., Any], execute: Callable[..., Any], tmp_path: Path
) -> None:
    bundle, embeddings, labels = trained("three", "feedforward")
    table = tmp_path / "all.tsv"
    table.write_text("".join("\t".join(line.split("\t")[:2]) + "\n" for line in labels.read_text().splitlines()))
    out = execute((bundle, embeddings, table))
    before, after = load_classifier_bundle(bundle), load_classifier_bundle(out["compressed-bundle"])
    assert after.temperature == before.temperature
    np.testing.assert_array_equal(after.validation_scores[0], before.validation_scores[0])
    report = out["report"].read_text()
    assert "There is no column split: all 380 labelled rows judge" in report and "stay those of the original" in report


def test_predictions_of_the_training_tell_the_validation_rows(
    trained: Callable[..., Any], execute: Callable[..., Any]
) -> None:
    bundle, embeddings, _ = trained("three", "feedforward")
    out = execute((bundle, embeddings, bundle.parent / "p.tsv"))
    assert read(out["compression-table"])["original"]["rows"] == "100"


def test_fine_tuning_wins_back_what_pruning_lost(trained: Callable[..., Any], execute: Callable[..., Any]) -> None:
    given = trained("three", "feedforward")
    more = ["--prune-share", "0.85", "--force-compression", "--metric", "accuracy"]
    plain = execute(given, *more, compress="prune", onnx=False)
    tuned = execute(given, *more, "--tune-epochs", "8", compress="prune", onnx=False)
    bundles = [load_classifier_bundle(one["compressed-bundle"]) for one in (plain, tuned)]
    losses = []
    for bundle in bundles:
        scores, truth = bundle.validation_scores
        losses.append(-np.log(scores[np.arange(len(truth)), truth]).mean())
    assert losses[1] < losses[0]
    for name in compression.weights_of(bundles[1].head):
        zeros = (bundles[1].head.arrays[name] == 0).mean()
        assert zeros == pytest.approx(0.85, abs=0.02), "fine-tuning keeps what was pruned at zero"


def test_equal_seeds_give_equal_files(trained: Callable[..., Any], execute: Callable[..., Any]) -> None:
    given = trained("three", "feedforward")
    more = ["--prune-share", "0.5", "--tune-epochs", "2", "--most-loss", "1"]
    first, again = execute(given, *more, compress="both"), execute(given, *more, compress="both")
    for name in ("compressed-bundle", "onnx"):
        assert first[name].read_bytes() == again[name].read_bytes()


def test_onnx_alone(trained: Callable[..., Any], execute: Callable[..., Any]) -> None:
    given = trained("two", "logistic")
    out = execute(given, compress="none")
    assert list(read(out["compression-table"])) == ["original", "onnx"]
    assert out["report"].read_text().startswith("**The ONNX file (")
    import onnx

    properties = {entry.key: entry.value for entry in onnx.load(out["onnx"]).metadata_props}
    assert properties["classes"] == '["A", "B"]' and properties["model"] == "model"


def neighbours(path: Path) -> Path:
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(30, DIMENSION)).astype(np.float32)
    made = ClassifierHead(
        "neighbours", {"rows": rows, "targets": np.arange(30) % 3}, {"k": 3, "metric": "cosine", "prior": [1 / 3] * 3}
    )
    manifest: dict[str, Any] = {
        "name": "near", "task": {"level": "sequence", "target": "class"}, "classes": list(CLASSES), "positive": "",
        "embedding": {"model": "model", "model_sha256": "c" * 64, "layers": [6], "pooling": "mean",
                      "dimension": DIMENSION, "dtype": "float32"},
        "temperature": 1.0, "threshold": 0.5,
    }
    write_classifier_bundle(
        path, manifest, made, reference=([f"p{row}" for row in range(30)], ["A"] * 30, rows),
        validation_scores=(np.full((4, 3), 1 / 3), np.array([0, 1, 2, 0])), card="# card\n",
    )
    return path


def test_neighbours_are_stored_as_int8(execute: Callable[..., Any], tmp_path: Path) -> None:
    embeddings, labels = write_data(tmp_path)
    out = execute((neighbours(tmp_path / "b.zip"), embeddings, labels), "--force-compression", onnx=False)
    assert load_classifier_bundle(out["compressed-bundle"]).stored.arrays["rows"].dtype == np.int8


# -- refusals --------------------


def test_too_great_a_loss_is_refused_unless_forced(trained: Callable[..., Any], execute: Callable[..., Any]) -> None:
    given = trained("three", "feedforward")
    more = ["--prune-share", "0.98", "--most-loss", "0.01"]
    with pytest.raises(
        UserError, match=r"Compression costs 0\.\d+ of macro_f1 on the validation rows .* more than the"
    ):
        execute(given, *more, compress="prune")
    out = execute(given, *more, "--force-compression", compress="prune")
    load_classifier_bundle(out["compressed-bundle"])
    assert "FORCED: Compression costs" in out["report"].read_text()


def test_a_refusal_is_one_line_and_leaves_no_output(
    trained: Callable[..., Any], run_stage: Callable[..., Any], tmp_path: Path
) -> None:
    bundle, embeddings, labels = trained("three", "feedforward")
    ended = run_stage(
        "plm_compress_classifier", "--bundle", bundle, "--embeddings", embeddings, "--labels", labels, "--compress",
        "prune", "--prune-share", "0.98", "--compressed-bundle", tmp_path / "s.zip", "--onnx", tmp_path / "c.onnx",
        "--compression-table", tmp_path / "t.tsv",
    )
    assert ended.returncode == 1 and not list(tmp_path.iterdir())
    assert ended.stderr.startswith("plm_compress_classifier: error: Compression costs 0.")
    assert "allowed [--most-loss]. Compress less" in ended.stderr
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("label", "'P240' has the label 'D', which the bundle does not know"),
        ("train", "There are no training rows to fine-tune on"),
        ("valid", "No embedding has a label and the split 'valid'"),
        ("again", "The bundle is compressed already"),
        ("metric", "rmse"),
        ("prune", "A head of nearest neighbours has no weights to prune"),
        ("onnx", "A head of nearest neighbours cannot be written as ONNX"),
        ("tune", "Fine-tuning follows pruning"),
    ],
)
def test_one_clear_line(
    case: str, message: str, trained: Callable[..., Any], execute: Callable[..., Any], tmp_path: Path
) -> None:
    bundle, embeddings, labels = trained("three", "feedforward")
    text, more, compress = labels.read_text(), [], "prune"
    if case == "label":
        text = text.replace("P240\tA", "P240\tD")
    if case == "train":
        text, more = text.replace("\ttrain", "\ttest"), ["--tune-epochs", "2"]
    if case == "valid":
        text = text.replace("\tvalid", "\ttest")
    if case == "metric":
        more = ["--metric", "rmse"]
    if case == "tune":
        more, compress = ["--tune-epochs", "2"], "int8"
    if case in ("prune", "onnx"):
        bundle, compress = neighbours(tmp_path / "n.zip"), "none" if case == "onnx" else "prune"
    table = tmp_path / "l.tsv"
    table.write_text(text)
    if case == "again":
        bundle = execute((bundle, embeddings, labels))["compressed-bundle"]
    with pytest.raises(UserError, match=message):
        execute((bundle, embeddings, table), *more, compress=compress)


def test_an_export_that_answers_otherwise_is_refused(
    trained: Callable[..., Any], execute: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the check compares is the file: an export of another temperature does not get through."""
    given = trained("two", "logistic")
    real = onnx_export.write_onnx

    def another(bundle: ClassifierBundle, path: Path) -> None:
        changed = ClassifierBundle(
            {**bundle.manifest, "temperature": 1.5 * bundle.temperature}, bundle.stored, bundle.reference,
            bundle.validation_scores,
        )
        real(changed, path)

    monkeypatch.setattr(onnx_export, "write_onnx", another)
    with pytest.raises(UserError, match=r"The ONNX export answers .* from the bundle"):
        execute(given, compress="none")
