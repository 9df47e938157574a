"""plm_compare_embeddings: every row listed, tests that err as often as they say, drift found where it was planted."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import plm_compare_embeddings
import pytest
from plm.data.embeddings.files import Description, write_embeddings
from plm.errors import UserError
from plm.jobs.compare_embeddings import drift
from plm.jobs.compare_embeddings import quality as embedding_quality
from plm.model.bundles.classifier import ClassifierHead, write_classifier_bundle
from plm.telling.report import LIMIT
from scipy.spatial.distance import cdist
from scipy.stats import ks_2samp

Rows = list[dict[str, str]]
DIMENSION = 24


def about(model: str = "model_a", layer: int = 6, pooling: str = "mean", dimension: int = DIMENSION) -> Description:
    return Description(model, model[-1] * 64, (layer,), pooling, "float32", dimension)  # type: ignore[arg-type]


def sample(rows: int, seed: int, dimension: int = DIMENSION) -> np.ndarray:
    """Correlated components, as embeddings have."""
    mix = np.random.default_rng(99).normal(size=(6, dimension))
    generator = np.random.default_rng([seed, 1])
    values = generator.normal(size=(rows, 6)) @ mix + 0.5 * generator.normal(size=(rows, dimension))
    return values.astype(np.float32)


def write(path: Path, values: np.ndarray, prefix: str, description: Description | None = None) -> Path:
    made = description or about(dimension=values.shape[1])
    write_embeddings(path, "hdf5", made, [f"{prefix}{number:03d}" for number in range(len(values))], iter(values))
    return path


def read(path: Path) -> Rows:
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle, delimiter="\t", quoting=csv.QUOTE_NONE))


def check(rows: Rows, set: str, name: str, part: str = "all") -> dict[str, str]:
    found = [row for row in rows if (row["set"], row["check"], row["part"]) == (set, name, part)]
    assert len(found) == 1, (set, name)
    return found[0]


@pytest.fixture
def execute(tmp_path: Path) -> Callable[..., dict[str, Path]]:
    numbers = itertools.count()

    def run(embeddings: Path, *more: str | Path) -> dict[str, Path]:
        out = tmp_path / f"out{next(numbers)}"
        out.mkdir()
        paths = {name: out / f"{name}.tsv" for name in ("checks", "components", "proteins")}
        paths |= {"report": out / "r.md", "figure": out / "f.png"}
        argv = ["--embeddings", str(embeddings), "--permutations", "199", *map(str, more)]
        for name, path in paths.items():
            argv += [f"--{name}", str(path)]
        plm_compare_embeddings.run(argv)
        assert len(paths["report"].read_bytes()) < LIMIT
        assert paths["figure"].read_bytes().startswith(b"\x89PNG")
        return paths

    return run


# -- quality --------------------


def test_damage_is_listed_and_nothing_else(execute: Callable[..., Any], tmp_path: Path) -> None:
    values = sample(60, 0)
    values[3, 2], values[9, 0] = np.nan, np.inf
    values[20] = values[5]
    values[21] = values[6] + np.float32(0.01)
    values[30] *= 50
    values[:, 7] = 0.25
    out = execute(write(tmp_path / "e.h5", values, "P"))
    proteins = read(out["proteins"])
    assert [row["id"] for row in proteins] == [f"P{number:03d}" for number in range(60)]
    assert [row["id"] for row in proteins if row["status"] == "not finite"] == ["P003", "P009"]
    assert {row["id"]: row["duplicate_of"] for row in proteins if row["duplicate_of"]} == {"P020": "P005"}
    assert {row["id"]: row["near_duplicate_of"] for row in proteins if row["near_duplicate_of"]} == {"P021": "P006"}
    assert "P030" in [row["id"] for row in proteins if row["norm_outlier"] == "yes"]
    components = read(out["components"])
    assert [row["component"] for row in components if row["constant"] == "yes"] == ["e7"]
    good = np.delete(values, [3, 9], axis=0).astype(np.float64)
    np.testing.assert_allclose([float(row["mean"]) for row in components], good.mean(axis=0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose([float(row["sd"]) for row in components], good.std(axis=0), rtol=1e-4, atol=1e-6)
    report = out["report"].read_text()
    assert "2 hold NaN or infinity and count for nothing else: P003, P009" in report and "drift" not in report


def test_sound_embeddings_are_called_sound(execute: Callable[..., Any], tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    values = generator.normal(size=(80, DIMENSION)).astype(np.float32)
    out = execute(write(tmp_path / "e.h5", values, "P"))
    assert out["report"].read_text().startswith("**The quality is fine: 80 embeddings of dimension 24")
    assert all(row["result"] == "fine" for row in read(out["checks"]))
    effective = float(check(read(out["checks"]), "embeddings", "effective_dimension")["value"])
    spectrum = np.linalg.eigvalsh(np.cov(values.T.astype(np.float64)))
    assert effective == pytest.approx(spectrum.sum() ** 2 / (spectrum**2).sum(), rel=1e-4)


@pytest.mark.parametrize("values", [np.zeros((12, 20)), np.ones((12, 1)), np.eye(12, 20)], ids=["zeros", "one", "eye"])
def test_odd_sets_get_through(values: np.ndarray, execute: Callable[..., Any], tmp_path: Path) -> None:
    out = execute(write(tmp_path / "e.h5", values.astype(np.float32), "P"))
    assert len(read(out["proteins"])) == 12
    again = execute(tmp_path / "e.h5", "--reference", tmp_path / "e.h5")
    assert all(row["in_reference"] == "same numbers" for row in read(again["proteins"])[12:])


def test_balance_of_classes(execute: Callable[..., Any], tmp_path: Path) -> None:
    write(tmp_path / "e.h5", sample(60, 0), "P")
    labels = tmp_path / "l.tsv"
    labels.write_text("id\tlabel\n" + "".join(f"P{n:03d}\t{'rare' if n < 4 else 'usual'}\n" for n in range(58)))
    out = execute(tmp_path / "e.h5", "--labels", labels)
    rows = read(out["checks"])
    assert float(check(rows, "embeddings", "imbalance")["value"]) == pytest.approx(54 / 4, rel=1e-4)
    assert check(rows, "embeddings", "class", "rare")["result"] == "look"
    assert check(rows, "embeddings", "without_label")["value"] == "2"
    assert "the largest of 2 classes has 14 times the smallest's members" in out["report"].read_text()


def test_either_file_may_carry_labels(execute: Callable[..., Any], root: Path) -> None:
    packed, table = (root / "test-data" / f"simulated_embeddings.{kind}" for kind in ("h5", "tabular"))
    for new, reference, labelled in ((table, packed, "new"), (packed, table, "reference")):
        rows = read(execute(new, "--reference", reference)["proteins"])
        assert {row["set"] for row in rows if row["label"]} == {labelled}


# -- drift --------------------


def test_planted_drift_is_found_and_named(execute: Callable[..., Any], tmp_path: Path) -> None:
    reference, new = sample(120, 0), sample(50, 1)
    new[:, 4] += 4
    new[-5:] *= 8
    write(tmp_path / "r.h5", reference, "R")
    out = execute(write(tmp_path / "n.h5", new, "N"), "--reference", tmp_path / "r.h5")
    report = out["report"].read_text()
    assert report.startswith("**The new set drifted ")
    rows = read(out["checks"])
    auroc = check(rows, "both", "classifier_auroc")
    assert 0.5 < float(auroc["low"]) < float(auroc["value"]) < float(auroc["high"]) <= 1
    assert float(check(rows, "both", "energy_distance")["p_value"]) == pytest.approx(0.005)
    components = {row["component"]: row for row in read(out["components"])}
    assert components["e4"]["differs"] == "yes"
    expected = ks_2samp(reference[:, 4], new[:, 4])
    assert float(components["e4"]["ks"]) == pytest.approx(expected.statistic, rel=1e-4)
    assert float(components["e4"]["p_value"]) == pytest.approx(expected.pvalue, rel=1e-3)
    proteins = [row for row in read(out["proteins"]) if row["set"] == "new"]
    assert all(row["drifted"] == "yes" for row in proteins[-5:])
    assert all(row["nearest_reference"].startswith("R") for row in proteins)


def test_no_drift_no_alarm_and_copies_are_told(execute: Callable[..., Any], tmp_path: Path) -> None:
    write(tmp_path / "r.h5", sample(100, 0), "P")
    new = sample(40, 1)
    new[:2] = sample(100, 0)[:2]
    new[2] = sample(100, 0)[7] + np.float32(0.01)
    out = execute(write(tmp_path / "n.h5", new, "P"), "--reference", tmp_path / "r.h5")
    assert out["report"].read_text().startswith("**No sign that the new set drifted from the reference")
    proteins = [row for row in read(out["proteins"]) if row["set"] == "new"]
    assert [row["in_reference"] for row in proteins[:4]] == ["same numbers", "same numbers", "nearly", "no"]
    assert [row["nearest_reference"] for row in proteins[:3]] == ["P000", "P001", "P007"]
    rows = read(out["checks"])
    assert "37 ids are in both files with other numbers" in out["report"].read_text()
    assert check(rows, "both", "same_id")["value"] == "40" and check(rows, "both", "same_numbers")["value"] == "2"


def as_set(values: np.ndarray, name: str, groups: list[str] | None = None) -> drift.Set:
    quality = embedding_quality.judge(values, name, 5000, 1)
    return drift.Set(values, quality, groups or [f"{name}{row}" for row in range(len(values))])


def judged(reference: drift.Set, new: drift.Set, permutations: int = 99) -> tuple[drift.Tests, drift.ProteinSet]:
    proteins = drift.place(reference, new, 0.05, half=False)
    tests, why_not = drift.compare_sets(reference, new, proteins, permutations=permutations, seed=5)
    assert tests is not None, why_not
    return tests, proteins


def test_false_alarms_are_as_rare_as_promised() -> None:
    p_values, shares, aurocs, energies = [], [], [], []
    for seed in range(30):
        values = sample(90, 1000 + seed)
        tests, proteins = judged(as_set(values[:60], "r"), as_set(values[60:], "n"))
        p_values.append(tests.drifted)
        energies.append(tests.energy_p)
        shares.append(proteins.drifted.mean())
        aurocs.append(tests.auroc)
    # Of 30 at 5 %: more than 5 is less likely than 1 in 300.
    assert sum(p_values) <= 5
    assert 0.3 < np.mean(energies) < 0.7
    assert 0.01 < np.mean(shares) < 0.12
    assert 0.42 < np.mean(aurocs) < 0.58


def test_relatives_do_not_make_drift() -> None:
    """Ten families in each set; members are near their family: rows say drift, families do not."""
    parents = sample(24, 3)
    generator = np.random.default_rng(3)
    members = np.repeat(parents, 10, axis=0) + 0.3 * generator.normal(size=(240, DIMENSION)).astype(np.float32)
    families = [str(row // 10) for row in range(240)]
    alone, _ = judged(as_set(members[:120], "r"), as_set(members[120:], "n"))
    grouped, _ = judged(as_set(members[:120], "r", families[:120]), as_set(members[120:], "n", families[120:]))
    assert alone.rows == (120, 120) and alone.drifted
    assert grouped.rows == (12, 12) and not grouped.drifted


def test_a_shift_that_only_a_classifier_sees_is_drift() -> None:
    """In a direction in which the components hardly vary: no component and no distance shows it."""
    values = sample(400, 0)
    weak = np.linalg.svd(values - values.mean(axis=0), full_matrices=False)[2][-1]
    values[200:] += 0.5 * weak
    tests, _ = judged(as_set(values[:200], "r"), as_set(values[200:], "n"))
    assert tests.drifted and tests.auroc_p < drift.LIMIT and tests.low > 0.55
    assert tests.energy_p > drift.ALPHA and not tests.differ.any()


def test_energy_distance_equals_its_definition() -> None:
    first, second = sample(30, 0), sample(20, 1) + 0.5
    value, p_value = drift.energy_distance(first, second, 99, np.random.default_rng(0))
    both = np.concatenate([first, second]).astype(np.float64)
    both = (both - both.mean(axis=0)) / both.std(axis=0)
    x, y = both[:30], both[30:]
    between = cdist(x, y).mean()
    assert value == pytest.approx((2 * between - cdist(x, x).mean() - cdist(y, y).mean()) / (2 * between), rel=1e-9)
    assert 0.01 <= p_value <= 1


def test_the_same_twice_is_no_drift_however_it_is_asked() -> None:
    values = sample(40, 0)
    tests, proteins = judged(as_set(values, "r"), as_set(values.copy(), "n"))
    assert tests.auroc == pytest.approx(0.5) and tests.energy_p == 1 and not tests.differ.any()
    assert (proteins.same == np.arange(40)).all() and not proteins.drifted.any()


def test_samples_are_seeded_and_told(execute: Callable[..., Any], tmp_path: Path) -> None:
    write(tmp_path / "r.h5", sample(150, 0), "R")
    write(tmp_path / "n.h5", sample(160, 1), "N")
    more = ("--reference", tmp_path / "r.h5", "--most-rows", "100")
    first, again = execute(tmp_path / "n.h5", *more), execute(tmp_path / "n.h5", *more)
    for name in first:
        assert first[name].read_bytes() == again[name].read_bytes(), name
    assert "random sample of 100 of 160" in first["report"].read_text()
    assert all(row["distance"] for row in read(first["proteins"]) if row["set"] == "new"), "every new protein is placed"


def test_fewer_than_ten_families_are_not_tested(execute: Callable[..., Any], tmp_path: Path) -> None:
    write(tmp_path / "r.h5", sample(50, 0), "R")
    write(tmp_path / "n.h5", sample(30, 1), "N")
    labels = tmp_path / "l.tsv"
    labels.write_text("id\tlabel\tcluster\n" + "".join(f"N{n:03d}\tx\tc{n % 4}\n" for n in range(30)))
    out = execute(tmp_path / "n.h5", "--reference", tmp_path / "r.h5", "--labels", labels, "--group-column", "cluster")
    said = out["report"].read_text()
    assert said.startswith("**Whether the new set as a whole drifted cannot be judged: relatives and near copies count")
    assert len(read(out["proteins"])) == 80


# -- a bundle as the reference --------------------


def bundle(path: Path, values: np.ndarray, description: Description) -> Path:
    manifest = {
        "name": "made up", "task": {"level": "sequence", "target": "class"}, "classes": ["A", "B"], "positive": "B",
        "embedding": {
            "model": description.model, "model_sha256": description.model_sha256, "layers": list(description.layers),
            "pooling": description.pooling, "dimension": description.dimension, "dtype": description.dtype,
        },
        "temperature": 1.0, "threshold": 0.5,
        "novelty": {"k": 2, "rows": 50, "distances": np.linspace(0.5, 1.5, 50).tolist(), "quantile": 0.95},
    }
    head = ClassifierHead(
        "logistic", {"weight": np.zeros((2, values.shape[1]), np.float32), "bias": np.zeros(2, np.float32)}
    )
    ids = [f"T{row}" for row in range(len(values))]
    write_classifier_bundle(
        path, manifest, head, reference=(ids, ["A", "B"] * (len(values) // 2), values),
        validation_scores=(np.full((4, 2), 0.5), np.array([0, 1, 0, 1])), card="# card\n",
    )
    return path


def test_a_bundle_stands_for_its_training_set(execute: Callable[..., Any], tmp_path: Path) -> None:
    reference, new = sample(60, 0), sample(40, 1)
    new[0] = reference[3]
    write(tmp_path / "n.h5", new, "N")
    made = bundle(tmp_path / "b.zip", reference, about())
    out = execute(tmp_path / "n.h5", "--reference", made)
    rows = read(out["checks"])
    note = check(rows, "both", "drifted_proteins")["note"]
    limit = np.quantile(np.linspace(0.5, 1.5, 50), 0.95, method="higher")
    assert note == f"share beyond distance {limit:.4g} to the 2 nearest of 60"
    first = next(row for row in read(out["proteins"]) if row["set"] == "new")
    assert (first["nearest_reference"], first["nearest_label"], first["in_reference"]) == ("T3", "B", "same numbers")
    assert "95 % of validation proteins do" in out["report"].read_text()
    assert check(rows, "reference", "class", "A")["value"] == "30"


# -- bad input --------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("dimension", "Reference and new embeddings differ in dimension: 24 and 8"),
        ("model", "Reference and new embeddings differ in model: model_a and model_b"),
        ("layer", "Reference and new embeddings differ in layer: 6 and 5"),
        ("few", "There are 9 embeddings of finite numbers, too few to say anything"),
        ("nan", r"There are 0 embeddings of finite numbers \(20 of 20 hold NaN or infinity\)"),
        ("bundle", "Reference and new embeddings differ in model: model_a and model_b"),
    ],
)
def test_one_clear_line(change: str, message: str, execute: Callable[..., Any], tmp_path: Path) -> None:
    write(tmp_path / "r.h5", sample(30, 0), "R")
    values = sample(9 if change == "few" else 20, 1, 8 if change == "dimension" else DIMENSION)
    if change == "nan":
        values[:, 0] = np.nan
    model = "model_b" if change in ("model", "bundle") else "model_a"
    description = about(model, 5 if change == "layer" else 6, dimension=values.shape[1])
    write(tmp_path / "n.h5", values, "N", description)
    reference = tmp_path / "r.h5"
    if change == "bundle":
        reference = bundle(tmp_path / "b.zip", sample(30, 0), about())
    with pytest.raises(UserError, match=message):
        execute(tmp_path / "n.h5", "--reference", reference)
    assert not list((tmp_path / "out0").iterdir())


def test_the_stage_runs_by_itself_and_refuses_in_one_line(run_stage: Callable[..., Any], root: Path) -> None:
    ended = run_stage(
        "plm_compare_embeddings", "--embeddings", root / "test-data/simulated_embeddings_other_model.h5",
        "--reference", root / "test-data/simulated_embeddings.h5", "--proteins", "unused.tsv",
    )
    assert ended.returncode == 1 and not Path("unused.tsv").exists()
    assert ended.stderr.startswith("plm_compare_embeddings: error: Reference and new embeddings differ in model")
    assert ended.stderr.count("\n") == 1
