"""Bundles of classifiers on embeddings: written, loaded, damaged, and checked against embeddings."""

from __future__ import annotations

import dataclasses
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plm.data.embeddings.files import Description
from plm.errors import UserError
from plm.model.bundles.classifier import (
    ClassifierBundle,
    ClassifierHead,
    bundle_kind,
    check_embeddings,
    load_classifier_bundle,
    nearest_rows,
    write_classifier_bundle,
)
from plm.model.bundles.fine_tuned import unpack_bundle

DIMENSION, CLASSES = 6, ("A", "B", "β-lactam")
ABOUT = {
    "model": "tiny", "model_sha256": "ab" * 32, "layers": [6], "pooling": "mean", "dimension": DIMENSION,
    "dtype": "float32",
}


def manifest(**changes: Any) -> dict[str, Any]:
    made = {
        "name": "made up", "task": {"level": "sequence", "target": "class"}, "classes": list(CLASSES), "positive": "",
        "embedding": ABOUT, "temperature": 2.0, "threshold": 0.5,
    }
    return {**made, **changes}


def head(kind: str, seed: int = 0) -> ClassifierHead:
    generator = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return generator.normal(size=shape).astype(np.float32)

    scaling = {"mean": draw(DIMENSION), "scale": np.full(DIMENSION, 2, np.float32)}
    if kind == "neighbours":
        settings = {"k": 3, "metric": "cosine", "prior": [0.5, 0.3, 0.2]}
        return ClassifierHead(
            "neighbours", {"rows": draw(20, DIMENSION), "targets": np.arange(20) % 3, **scaling}, settings
        )
    if kind == "feedforward":
        layers = {"weight0": draw(5, DIMENSION), "bias0": draw(5), "weight1": draw(3, 5), "bias1": draw(3)}
        return ClassifierHead("feedforward", {**layers, **scaling})
    return ClassifierHead("logistic", {"weight": draw(3, DIMENSION), "bias": draw(3), **scaling})


def write(path: Path, made: ClassifierHead, **changes: Any) -> Path:
    generator = np.random.default_rng(7)
    rows = generator.normal(size=(12, DIMENSION)).astype(np.float32)
    write_classifier_bundle(
        path, manifest(**changes), made, reference=([f"p{i}" for i in range(12)], ["A"] * 12, rows),
        validation_scores=(np.full((4, 3), 1 / 3), np.array([0, 1, 2, 0])), card="# card\n",
    )
    return path


@pytest.mark.parametrize("kind", ["logistic", "neighbours", "feedforward"])
def test_a_bundle_answers_as_its_head(kind: str, tmp_path: Path) -> None:
    made = head(kind)
    path = write(tmp_path / "one.zip", made)
    bundle = load_classifier_bundle(path)
    values = np.random.default_rng(1).normal(size=(30, DIMENSION)).astype(np.float32)
    raw = bundle.raw(values)
    scaled = (values - made.arrays["mean"]) / 2
    if kind == "logistic":
        np.testing.assert_allclose(raw, scaled @ made.arrays["weight"].T + made.arrays["bias"], rtol=1e-5, atol=1e-5)
    if kind == "feedforward":
        hidden = np.maximum(scaled @ made.arrays["weight0"].T + made.arrays["bias0"], 0)
        np.testing.assert_allclose(raw, hidden @ made.arrays["weight1"].T + made.arrays["bias1"], rtol=1e-4, atol=1e-5)
    if kind == "neighbours":
        unit = scaled / np.linalg.norm(scaled, axis=1, keepdims=True)
        rows = made.arrays["rows"] / np.linalg.norm(made.arrays["rows"], axis=1, keepdims=True)
        votes = np.eye(3)[made.arrays["targets"][np.argsort(-unit @ rows.T, axis=1)[:, :3]]].sum(axis=1)
        np.testing.assert_allclose(np.exp(raw), (votes + np.array([0.5, 0.3, 0.2])) / 4, atol=1e-9)
    expected = np.exp(raw / 2) / np.exp(raw / 2).sum(axis=1, keepdims=True)
    probabilities = bundle.predict(values)
    np.testing.assert_allclose(probabilities, expected, atol=1e-9)
    assert bundle.calls(probabilities) == [CLASSES[i] for i in expected.argmax(axis=1)]
    assert bundle.reference[0][0] == "p0" and bundle.validation_scores[0].shape == (4, 3)
    assert bundle_kind(path) == "embedding"
    assert write(tmp_path / "again.zip", made).read_bytes() == path.read_bytes()


def test_two_classes_are_called_by_the_threshold(tmp_path: Path) -> None:
    made = head("logistic")
    two = ClassifierHead(
        "logistic", {**made.arrays, "weight": made.arrays["weight"][:2], "bias": made.arrays["bias"][:2]}
    )
    path = write(tmp_path / "two.zip", two, classes=["no", "yes"], positive="no", threshold=0.8)
    bundle = load_classifier_bundle(path)
    assert bundle.calls(np.array([[0.79, 0.21], [0.81, 0.19]])) == ["yes", "no"]


def test_numbers_come_in_units_of_the_labels(tmp_path: Path) -> None:
    made = ClassifierHead("ridge", {"weight": np.ones((1, DIMENSION), np.float32), "bias": np.zeros(1, np.float32)})
    path = write(
        tmp_path / "number.zip", made, task={"level": "sequence", "target": "number"}, classes=[],
        standardisation={"mean": 10.0, "sd": 3.0},
    )
    bundle = load_classifier_bundle(path)
    assert bundle.predict(np.ones((2, DIMENSION), np.float32)).tolist() == [[28.0], [28.0]]
    assert not bundle.manifest["standardise"]


def test_whole_numbers_stand_for_their_scaled_values(tmp_path: Path) -> None:
    made = head("logistic")
    scale = np.abs(made.arrays["weight"]).max(axis=1) / 127
    small = np.round(made.arrays["weight"] / scale[:, None]).astype(np.int8)
    arrays = {**made.arrays, "weight": small, "weight.scale": scale.astype(np.float32)}
    values = np.random.default_rng(1).normal(size=(30, DIMENSION)).astype(np.float32)
    bundle = load_classifier_bundle(write(tmp_path / "small.zip", dataclasses.replace(made, arrays=arrays)))
    np.testing.assert_allclose(bundle.raw(values), made.scores(values), atol=0.1)


def test_nearest_rows_are_exact() -> None:
    generator = np.random.default_rng(3)
    rows, values = (generator.normal(size=(size, 9)).astype(np.float32) for size in (50, 20))
    near, distance = nearest_rows(values, rows, 4, cosine=False)
    full = np.linalg.norm(values[:, None] - rows[None], axis=2)
    np.testing.assert_array_equal(near, np.argsort(full, axis=1)[:, :4])
    np.testing.assert_allclose(distance, np.sort(full, axis=1)[:, :4], atol=1e-5)
    _, own = nearest_rows(rows, rows, 50, cosine=True)
    assert own[:, 0].max() < 1e-6 and own.shape == (50, 50)


def test_other_embeddings_are_refused(tmp_path: Path) -> None:
    bundle: ClassifierBundle = load_classifier_bundle(write(tmp_path / "one.zip", head("logistic")))
    about = Description("tiny", "ab" * 32, (6,), "mean", "float16", DIMENSION)
    assert check_embeddings(about, bundle, "x.h5") == []
    assert check_embeddings(dataclasses.replace(about, pooling="residues"), bundle, "x.h5") == []
    for changes, said in (
        ({"dimension": 7}, "dimension: 7 instead of 6"), ({"layers": (5,)}, "layer: 5 instead of 6"),
        ({"pooling": "max"}, "pooling: max instead of mean"), ({"model_sha256": "cd" * 32}, "cdcdcdcdcdcd"),
    ):
        with pytest.raises(UserError, match="differ from those that the bundle was trained on in") as caught:
            check_embeddings(dataclasses.replace(about, **changes), bundle, "x.h5")
        assert said in str(caught.value) and "x.h5" in str(caught.value)
    foreign = Description("", "", (), "", "float32", DIMENSION)
    [note] = check_embeddings(foreign, bundle, "x.h5")
    assert "not known whether they do in model, layer, pooling" in note
    with pytest.raises(UserError, match="have 5 numbers each"):
        bundle.predict(np.zeros((2, 5), np.float32))
    with pytest.raises(UserError, match="row 2 holds NaN"):
        bundle.predict(np.array([[0.0] * 6, [np.nan] * 6], np.float32))


def rewritten(path: Path, target: Path, name: str, content: bytes | None) -> Path:
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.namelist():
            if entry != name:
                new.writestr(entry, old.read(entry))
            elif content is not None:
                new.writestr(entry, content)
    return target


def test_a_damaged_bundle_is_one_clear_line(tmp_path: Path) -> None:
    path = write(tmp_path / "one.zip", head("logistic"))
    for name, content, said in (
        ("head.safetensors", None, "lacks its member head.safetensors"),
        ("head.safetensors", b"\x80\x04 a pickle", "may be a pickle"),
        ("self_test.json", b"{}", "altered or damaged"),
        ("manifest.json", b'{"schema_version": 1, "kind": "embedding"}', "manifest lacks files, name"),
        ("manifest.json", b'{"schema_version": 1}', "is a fine-tuned model"),
    ):
        with pytest.raises(UserError, match=said):
            load_classifier_bundle(rewritten(path, tmp_path / "broken.zip", name, content))
    (tmp_path / "cut.zip").write_bytes(path.read_bytes()[:-50])
    with pytest.raises(UserError, match="no complete zip"):
        load_classifier_bundle(tmp_path / "cut.zip")
    with pytest.raises(UserError, match="no complete zip"):
        bundle_kind(tmp_path / "cut.zip")


def test_a_bundle_that_answers_otherwise_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "one.zip", head("logistic"))
    monkeypatch.setattr(ClassifierHead, "scores", lambda self, matrix: np.tile([0.0, 5.0, 0.0], (len(matrix), 1)))
    with pytest.raises(UserError, match="fails its self-test"):
        load_classifier_bundle(path)


def test_kinds_of_bundles_are_told_apart(root: Path, tmp_path: Path) -> None:
    tuned = root / "test-data" / "bundle_tiny_site.zip"
    assert bundle_kind(tuned) == "finetuned"
    with pytest.raises(UserError, match=r"is a fine-tuned model \(plm_finetune\), not a classifier"):
        load_classifier_bundle(tuned)
    with pytest.raises(UserError, match="is a classifier of embeddings"):
        unpack_bundle(write(tmp_path / "one.zip", head("logistic")), tmp_path / "inside")
    shutil.rmtree(tmp_path / "inside")
