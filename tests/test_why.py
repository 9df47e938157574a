"""Why sites are called: the table agrees with the sites, the members, and a hand's comparison with training rows."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import plm_classify_sites
import plm_predict
import pytest
from plm.data.task import Task
from plm.jobs.classify_sites import scan
from plm.jobs.classify_sites.call_reasons import MOST_NUMBERS, CallReasons
from plm.jobs.classify_sites.candidates import Protein
from plm.jobs.classify_sites.tables import judge
from plm.model.bundles.fine_tuned import FineTunedBundle, load_bundle, make_self_test
from plm.model.bundles.predictor import Predictor, Reasons
from plm.model.combination import LANGUAGE_MODEL, Combination
from plm.model.members.features import window_text
from plm.model.members.fitted import NEAREST_ROWS
from plm.model.members.stored import MemberRows
from plm.scoring.operating_point import OperatingPoint
from plm.scoring.reasons import ALONE, ReasonsTable, balance, contributions, training_shares, weights_of
from plm.telling.report import Report
from test_classify_sites import made_up, table
from test_predictor import finetune, motif_windows

WIDTH = 15


@pytest.fixture(scope="module")
def trained(tiny_esm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle in whose predictor every member counts, the nearest neighbour the more the more similar it is."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GALAXY_SLOTS", "1")
        source = finetune(motif_windows(200), tiny_esm2, folder, "--predictor", "combination")["bundle"]
    bundle = load_bundle(source, str(tiny_esm2), workdir=folder / "work", device="cpu", precision="fp32")
    assert bundle.predictor is not None
    names = (LANGUAGE_MODEL, *bundle.predictor.members.names)
    slopes = np.array([0.7 * (name == "nearest neighbour") for name in names])
    mixed = Combination(names, np.linspace(0.2, 0.4, len(names)), slopes, np.array([-0.1, 0.1]), "stacked")
    bundle.predictor = Predictor(mixed, bundle.predictor.members, bundle.task)
    target = folder / "mixed.zip"
    with zipfile.ZipFile(source) as opened:
        held = {name: opened.read(name) for name in opened.namelist()}
    held["self_test.json"] = json.dumps(make_self_test(bundle, "fp32")).encode()
    manifest = json.loads(held["manifest.json"])
    manifest["predictor"]["combination"] = mixed.to_json()
    manifest["files"]["self_test.json"] = hashlib.sha256(held["self_test.json"]).hexdigest()
    held["manifest.json"] = json.dumps(manifest).encode()
    with zipfile.ZipFile(target, "w") as made:
        for name, data in held.items():
            made.writestr(name, data)
    return target


@pytest.fixture(scope="module")
def loaded(trained: Path, tiny_esm2: Path, tmp_path_factory: pytest.TempPathFactory) -> FineTunedBundle:
    workdir = tmp_path_factory.mktemp("loaded")
    return load_bundle(trained, str(tiny_esm2), workdir=workdir, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def proteins() -> dict[str, str]:
    """Some with the motif (R two places before Y), one of them with a training window in it."""
    made = {f"p{number}": made_up(90, number) + "AARGYAA" for number in range(6)}
    made["known"] = f"MKK{motif_windows(200)['sequence'][1]}KKA"
    return made


@pytest.fixture
def classified(
    trained: Path, tiny_esm2: Path, proteins: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    monkeypatch.setenv("GALAXY_SLOTS", "1")

    def run(name: str, *options: str, reasons: bool = True) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        fasta = folder / "proteins.fasta"
        fasta.write_text("".join(f">{key}\n{text}\n" for key, text in proteins.items()))
        asked = ["--reasons", str(folder / "reasons.tsv")] if reasons else []
        plm_classify_sites.run([
            "--input", str(fasta), "--bundle", str(trained), "--model", str(tiny_esm2), "--device", "cpu",
            "--precision", "fp32", "--sites", str(folder / "sites.tsv"), "--report", str(folder / "report.md"),
            *asked, *options,
        ])
        return folder

    return run


def test_each_called_site_has_its_reasons(
    classified: Callable[..., Path], loaded: FineTunedBundle, proteins: dict[str, str]
) -> None:
    folder = classified("out")
    called = [row for row in table(folder / "sites.tsv") if row["call"] == "1"]
    rows = table(folder / "reasons.tsv")
    assert len(called) > 3
    assert [(row["id"], row["call"], row["p_1"]) for row in rows] == [
        (row["id"], row["call"], row["p_1"]) for row in called
    ]
    places = [int(row["position"]) - 1 for row in rows]
    texts = [proteins[row["protein"]] for row in rows]
    told = loaded.explain(texts, places)
    assert loaded.predictor is not None and loaded.predictor.members.rows is not None
    names, known = loaded.predictor.combination.names, loaded.predictor.members.rows
    assert len(names) > 1
    weights = weights_of(loaded.predictor.combination, told.similarity)
    for number, row in enumerate(rows):
        for place, name in enumerate(names):
            assert float(row[name]) == pytest.approx(told.members[name][number, 1], abs=2e-6)
            assert float(row[f"weight of {name}"]) == pytest.approx(weights[number, place], abs=1e-4)
        window = window_text(texts[number], places[number], WIDTH)
        alike = [
            sum(a == b != "-" for a, b in zip(window, text, strict=True))
            / min(WIDTH - window.count("-"), WIDTH - text.count("-"))
            for text in known.texts
        ]
        order = np.argsort(-np.array(alike), kind="stable")[:NEAREST_ROWS]
        assert [row[f"nearest_{place}"] for place in (1, 2, 3)] == [known.ids[index] for index in order]
        assert [row[f"label_{place}"] for place in (1, 2, 3)] == [known.labels[index] for index in order]
        likeness = [float(row[f"similarity_{place}"]) for place in (1, 2, 3)]
        assert likeness == pytest.approx([alike[index] for index in order], abs=1e-4)
        percent = f"nearest {row['nearest_1']} ({100 * likeness[0]:.0f} %) is {row['label_1']}"
        assert row["why"].endswith(percent)
        assert row["why"].startswith(row["speaks_for"] or "no member")
    [same] = [row for row in rows if row["similarity_1"] == "1.0000"]
    assert same["protein"] == "known" and same["nearest_1"] == "w1"
    report = (folder / "report.md").read_text()
    assert "1 of them is the same as a training row" in report
    assert f"what speaks for and against the {len(rows)} sites called" in report


def test_reasons_change_no_answer(
    classified: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = classified("plain", reasons=False)
    told = classified("told")
    assert (plain / "sites.tsv").read_bytes() == (told / "sites.tsv").read_bytes()
    assert not (plain / "reasons.tsv").exists() and "Why these calls" not in (plain / "report.md").read_text()
    monkeypatch.setattr(scan, "REMEMBERED_NUMBERS", 60)  # next to nothing is remembered
    forgetful = classified("forgetful", "--batch-tokens", "64")
    assert (forgetful / "reasons.tsv").read_text() == (told / "reasons.tsv").read_text()


def test_the_scan_asks_each_question_once(
    classified: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    real = FineTunedBundle.predict_with_reasons

    def counting(self: FineTunedBundle, sequences, *args, **options):  # type: ignore[no-untyped-def]
        asked.append(len(sequences))
        return real(self, sequences, *args, **options)

    monkeypatch.setattr(FineTunedBundle, "predict_with_reasons", counting)
    folder = classified("out")
    windows = len(table(folder / "sites.tsv"))
    assert sum(asked) <= windows + 4 + 4  # the self-test's four; equal windows once


BINARY = Task("site", "class", ("0", "1"), "1")
THREE = Task("site", "class", ("a", "b", "c"))
NUMBER = Task("site", "number", (), mean=2.0, sd=4.0)


def test_contributions_by_hand() -> None:
    said = np.array([[[0.2, 0.8], [0.6, 0.4]]])
    weights = np.array([[0.5, 2.0]])
    each = contributions(said, weights, np.array([1]), BINARY, np.array([0.9, 0.1]))
    usual = np.log(0.1 / 0.9)
    np.testing.assert_allclose(each, [[0.5 * (np.log(4) - usual), 2 * (np.log(0.4 / 0.6) - usual)]])
    np.testing.assert_allclose(contributions(said, weights, np.array([0]), BINARY, np.array([0.9, 0.1])), -each)
    three = contributions(np.array([[[0.2, 0.5, 0.3]]]), np.ones((1, 1)), np.array([2]), THREE, np.full(3, 1 / 3))
    np.testing.assert_allclose(three, [[np.log(0.3 / 0.5)]])
    numbers = contributions(np.array([[[6.0], [1.0]]]), np.array([[1.0, 2.0]]), np.array([0]), NUMBER, np.ones(1))
    np.testing.assert_allclose(numbers, [[1.0, -0.5]])


def test_only_what_matters_is_named() -> None:
    names = ("one", "two", "three", "four")
    assert balance(names, np.array([0.1, 5.0, -1.0, 2.0])) == (["two", "four"], ["three"])
    assert balance(names, np.zeros(4)) == ([], [])


def test_weights_grow_with_the_similarity() -> None:
    combination = Combination(("one", "two"), np.array([0.5, 0.2]), np.array([0.0, 1.0]), np.zeros(2), "stacked")
    np.testing.assert_allclose(weights_of(combination, np.array([np.nan, 0.5])), [[0.5, 0.2], [0.5, 0.7]])


@pytest.mark.parametrize(
    ("told", "task", "shares"),
    [
        (0.1, BINARY, [0.9, 0.1]), (0.1, Task("site", "class", ("yes", "no"), "yes"), [0.1, 0.9]),
        ({"a": 0.5, "b": 0.3, "c": 0.2}, THREE, [0.5, 0.3, 0.2]), (None, THREE, [1 / 3] * 3), (None, NUMBER, [1.0]),
    ],
)
def test_shares_of_classes_in_training(told: object, task: Task, shares: list[float]) -> None:
    np.testing.assert_allclose(training_shares({"training_prevalence": told}, task), shares)


def written(
    task: Task, values: np.ndarray, shares: list[float], commonest: str = "", *, alone: bool = False,
    likeness: float = 0.5, point: OperatingPoint | None = None,
) -> tuple[list[dict], str]:
    """Rows and report on sites of one protein, of which a language model and compositions say the same."""
    names = (LANGUAGE_MODEL, "composition")
    known = None if alone else MemberRows(["w1"], ["yes"], ["YYY"], np.zeros(1, np.int64))
    combination = Combination(names, np.array([0.5, 0.5]), np.zeros(2), np.zeros(task.outputs), "mean")
    if alone:
        names, combination = (LANGUAGE_MODEL,), ALONE
    before = ("id", "protein", "position", "residue")
    table = ReasonsTable(task, combination, known, np.array(shares), before, "m@1")
    handle = io.StringIO()
    handle.write("\t".join(table.columns) + "\n")
    made = CallReasons(table, handle, commonest)
    count = len(values)
    protein = Protein("P", "P", 1, "Y" * count, tuple(range(count)), tuple(range(1, count + 1)), count)
    similarities, places = np.full((count, NEAREST_ROWS), np.nan), np.full((count, NEAREST_ROWS), -1)
    if not alone:
        similarities[:, 0], places[:, 0] = likeness, 0
    reasons = Reasons(names, np.stack([values] * len(names), axis=1), similarities, places)
    packed = Reasons.unpacked(names, reasons.packed())
    np.testing.assert_array_equal(packed.said, reasons.said)
    np.testing.assert_array_equal(packed.rows, reasons.rows)
    made.add(protein, judge(values, task, point), packed)
    made.finish()
    report = Report("x")
    made.report(report)
    handle.seek(0)
    return list(csv.DictReader(handle, delimiter="\t")), report.text()


def test_of_several_classes_the_uncommon_ones() -> None:
    values = np.array([[0.8, 0.1, 0.1], [0.1, 0.7, 0.2], [0.3, 0.3, 0.4]])
    rows, report = written(THREE, values, [0.6, 0.3, 0.1], "a")
    assert [(row["position"], row["call"], row["composition"]) for row in rows] == [("2", "b", "b"), ("3", "c", "c")]
    assert rows[1]["why"] == "language model, composition; nearest w1 (50 %) is yes"
    assert "the 2 sites called other than a, the commonest class in training" in report
    assert written(THREE, values[:1], [0.6, 0.3, 0.1], "a")[1].strip().endswith("no call to give reasons for.")


def test_of_numbers_the_highest() -> None:
    values = np.random.default_rng(3).normal(2, 4, (MOST_NUMBERS + 50, 1))
    rows, report = written(NUMBER, values, [1.0])
    expected = np.argsort(-values[:, 0])[:MOST_NUMBERS] + 1
    assert [int(row["position"]) for row in rows] == expected.tolist()
    assert rows[0]["speaks_for"] == "language model, composition" and not rows[0]["speaks_against"]
    assert f"the {MOST_NUMBERS} sites of the highest numbers" in report


# --------------------------------------------------------------------------------------------------- whole proteins


@pytest.fixture(scope="module")
def variants(tiny_esm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle for whole sequences of one length."""
    frame = motif_windows(200).drop(columns=["position", "window", "protein"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GALAXY_SLOTS", "1")
        folder = tmp_path_factory.mktemp("variants")
        return finetune(frame, tiny_esm2, folder, "--predictor", "combination")["bundle"]


def predicted(bundle: Path, model: Path, folder: Path, fasta: str) -> tuple[list[dict], list[dict], str]:
    """Predictions, reasons and report of plm_predict."""
    (folder / "in.fasta").write_text(fasta)
    plm_predict.run([
        "--input", str(folder / "in.fasta"), "--bundle", str(bundle), "--model", str(model), "--device", "cpu",
        "--precision", "fp32", "--predictions", str(folder / "p.tsv"), "--reasons", str(folder / "r.tsv"),
        "--report", str(folder / "report.md"),
    ])
    return table(folder / "p.tsv"), table(folder / "r.tsv"), (folder / "report.md").read_text()


def test_each_predicted_protein_has_its_reasons(
    variants: Path, tiny_esm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GALAXY_SLOTS", "1")
    known = motif_windows(200)["sequence"][0]
    texts = {"known": known, "long": made_up(40), "again": known, "bad": "", "short": "ACY"}
    fasta = "".join(f">{name}\n{text}\n" for name, text in texts.items())
    answers, rows, report = predicted(variants, tiny_esm2, tmp_path, fasta)
    assert [(row["id"], row["call"], row["p_1"]) for row in rows] == [
        (row["id"], row["call"], row["p_1"]) for row in answers
    ]
    assert [row["id"] for row in rows] == ["known", "long", "again", "short"]
    bundle = load_bundle(variants, str(tiny_esm2), workdir=tmp_path / "again", device="cpu", precision="fp32")
    assert bundle.predictor is not None
    told = bundle.explain([texts[row["id"]] for row in rows])
    for name in bundle.predictor.combination.names:
        np.testing.assert_allclose([float(row[name]) for row in rows], told.members[name][:, 1], atol=2e-6)
    assert {**rows[0], "id": ""} == {**rows[2], "id": ""}
    assert "## Why these answers" in report


def test_residues_have_no_reasons(
    root: Path, tiny_esm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GALAXY_SLOTS", "1")
    bundle = root / "test-data" / "bundle_tiny_residues.zip"
    answers, rows, report = predicted(bundle, tiny_esm2, tmp_path, ">p\nACDEFGHIKLMNPQRSTVWY\n")
    assert len(answers) == 1 and not rows
    assert "not for every residue: their table is empty" in report
