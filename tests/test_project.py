"""plm_project: every id placed, scores that equal the libraries', no separation where there is none, clear refusals."""

from __future__ import annotations

import csv
import json
import math
import re
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import plm_project
import pytest
from plm.data.embeddings.files import Description, write_embeddings
from plm.errors import UserError
from plm.jobs.project import projection
from plm.jobs.project.figure import MOST_CLASSES, looks
from plm.jobs.project.projection import ProjectionSettings, prepare, project
from plm.scoring import separation
from plm.scoring.separation import FULL, SeparationJudge, nearest, novelty, read_labels, silhouettes, trustworthiness
from plm.telling.report import LIMIT

Rows = list[dict[str, str]]
ABOUT = Description("model_a", "ab" * 32, (6,), "mean", "float32", 8)


def clusters(rows: int, classes: int, apart: float, seed: int = 0, dimension: int = 8) -> tuple[Any, Any]:
    """(rows, dimension) float32 around centres, and the class of each row."""
    generator = np.random.default_rng(seed)
    codes = generator.integers(classes, size=rows)
    centres = apart * generator.normal(size=(classes, dimension))
    return (centres[codes] + generator.normal(size=(rows, dimension))).astype(np.float32), codes


def write(path: Path, values: Any, prefix: str = "P", about: Description = ABOUT, format: str = "hdf5") -> list[str]:
    """An embeddings file of proteins; returns the ids."""
    about = Description(
        about.model, about.model_sha256, about.layers, about.pooling, about.dtype, values.shape[1], about.notes
    )
    ids = [f"{prefix}{number:04d}" for number in range(len(values))]
    write_embeddings(path, format, about, ids, iter(values))
    return ids


def table(path: Path, rows: Sequence[Sequence[str]], header: Sequence[str] = ("id", "label")) -> Path:
    path.write_text("".join("\t".join(row) + "\n" for row in [header, *rows]))
    return path


def read(path: Path) -> Rows:
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle, delimiter="\t", quoting=csv.QUOTE_NONE))


@pytest.fixture
def execute(tmp_path: Path) -> Callable[..., dict[str, Path]]:
    """Runs the stage in this process and returns its outputs."""

    def run(embeddings: Path, *more: str | Path, folder: str = "out") -> dict[str, Path]:
        out = tmp_path / folder
        out.mkdir(exist_ok=True)
        paths = {"coordinates": out / "c.tsv", "figure": out / "f.png", "scores": out / "s.tsv", "report": out / "r.md"}
        argv = ["--embeddings", str(embeddings), *map(str, more)]
        for name, path in paths.items():
            argv += [f"--{name}", str(path)]
        plm_project.run(argv)
        return paths

    return run


def all_score(rows: Rows, space: str, measure: str, set: str = "reference") -> dict[str, str]:
    found = [r for r in rows if (r["space"], r["measure"], r["set"], r["part"]) == (space, measure, set, "all")]
    assert len(found) == 1, (space, measure, set)
    return found[0]


# -- the whole stage --------------------


def test_everything_is_placed_scored_drawn_and_told(execute: Callable[..., dict[str, Path]], tmp_path: Path) -> None:
    values, codes = clusters(129, 3, 2.0)
    values, asked, codes, kinds = values[:120], values[120:], codes[:120], codes[120:]
    ids, queries = write(tmp_path / "r.h5", values), write(tmp_path / "q.h5", asked, "Q")
    labelled = [[name, f"class {code}"] for name, code in zip(ids, codes, strict=True)][5:]
    labelled += [[name, f"class {code}"] for name, code in zip(queries, kinds, strict=True)]
    labels = table(tmp_path / "l.tsv", [*labelled, ["GHOST", "class 1"]])
    out = execute(
        tmp_path / "r.h5", "--queries", tmp_path / "q.h5", "--labels", labels, "--methods", "pca,tsne,umap",
        "--resamples", "200",
    )
    placed = read(out["coordinates"])
    assert [row["id"] for row in placed] == [*ids, *queries]
    assert [row["set"] for row in placed] == ["reference"] * 120 + ["query"] * 9
    assert [row["label"] for row in placed[:6]] == [""] * 5 + [f"class {codes[5]}"]
    for row in placed:
        for method in ("pca", "tsne", "umap"):
            assert math.isfinite(float(row[f"{method}_1"])) and math.isfinite(float(row[f"{method}_2"]))
        assert (row["nearest_reference"] in ids) == (row["set"] == "query")
    scores = read(out["scores"])
    full = all_score(scores, FULL, "neighbour_agreement")
    assert float(full["low"]) <= float(full["value"]) <= float(full["high"])
    assert float(full["value"]) > 0.9 and 0.25 < float(full["expected"]) < 0.45 and float(full["p_value"]) < 0.01
    for space in (FULL, "pca", "tsne", "umap"):
        assert float(all_score(scores, space, "silhouette")["value"]) > 0.2
        assert float(all_score(scores, space, "neighbour_agreement", "query")["value"]) > 0.8
    assert {row["part"] for row in scores if row["measure"] == "explained_variance"} == {"PC1", "PC2", "PC1 to PC8"}
    report = out["report"].read_text()
    assert report.startswith("**The labels separate beyond chance in the full embedding space: ")
    assert "mean nothing in t-SNE and UMAP" in report and "GHOST" in report
    assert len(report.encode()) < 10_000 < LIMIT
    assert out["figure"].read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_equal_seeds_give_equal_files_and_others_do_not(execute: Callable[..., Any], tmp_path: Path) -> None:
    values, _ = clusters(60, 3, 1.0)
    write(tmp_path / "r.h5", values)
    write(tmp_path / "q.h5", values[:5] + 0.1, "Q")
    more = ["--queries", tmp_path / "q.h5", "--methods", "pca,tsne,umap", "--resamples", "100"]
    first = execute(tmp_path / "r.h5", *more, folder="a")
    again = execute(tmp_path / "r.h5", *more, folder="b")
    for name in first:
        assert first[name].read_bytes() == again[name].read_bytes(), name
    other = execute(tmp_path / "r.h5", *more, "--seed", "7", folder="c")
    assert other["coordinates"].read_bytes() != first["coordinates"].read_bytes()


def test_test_data_in_every_form_agree(execute: Callable[..., Any], root: Path) -> None:
    data = root / "test-data"
    labels = ["--labels", data / "simulated_embeddings_labels.tabular", "--label-column", "family", "--methods", "pca"]
    packed = read(execute(data / "simulated_embeddings.h5", *labels, folder="a")["coordinates"])
    text = read(execute(data / "simulated_embeddings.tabular", "--methods", "pca", folder="b")["coordinates"])
    assert [row["id"] for row in packed] == [row["id"] for row in text]
    for one, other in zip(packed, text, strict=True):
        assert float(one["pca_1"]) == pytest.approx(float(other["pca_1"]), abs=0.01)
        assert one["label"] in ("", other["label"])


def test_residues_are_averaged_and_that_is_said(execute: Callable[..., Any], tmp_path: Path) -> None:
    values, _ = clusters(12, 2, 1.0)
    lengths = [3 + number for number in range(12)]
    noise = np.random.default_rng(3)
    rows = []
    for value, length in zip(values, lengths, strict=True):
        drawn = noise.normal(size=(length, 8))
        rows.append((value + drawn - drawn.mean(axis=0)).astype(np.float32))
    about = Description("model_a", "ab" * 32, (6,), "residues", "float32", 8)
    ids = [f"P{number:04d}" for number in range(12)]
    write_embeddings(tmp_path / "residues.h5", "hdf5", about, ids, iter(rows), lengths=lengths)
    write(tmp_path / "proteins.h5", values)
    one = execute(tmp_path / "residues.h5", "--queries", tmp_path / "proteins.h5", "--methods", "pca", folder="a")
    placed = read(one["coordinates"])
    for number in range(12):  # the mean over residues is what a mean-pooled file holds
        assert float(placed[number]["pca_1"]) == pytest.approx(float(placed[12 + number]["pca_1"]), abs=1e-4)
    assert "residues.h5 holds embeddings of residues; their mean" in one["report"].read_text().replace("\\", "")


def test_interactive_plot_fits_and_is_what_it_says(execute: Callable[..., Any], tmp_path: Path) -> None:
    values, codes = clusters(1500, 15, 2.0)
    ids = write(tmp_path / "r.h5", values)
    names = [f"a class with a very long name, number {code}" for code in range(15)]
    labels = table(tmp_path / "l.tsv", [[name, names[code]] for name, code in zip(ids, codes, strict=True)])
    out = execute(tmp_path / "r.h5", "--labels", labels, "--methods", "pca", "--resamples", "100")
    report = out["report"].read_text()
    assert len(report.encode()) < 10_000
    spec = json.loads(re.findall(r"^```vega\n(.*)\n```$", report, flags=re.M)[0])
    points = list(csv.DictReader(spec["data"]["values"].splitlines()))
    shown = re.search(r"PCA of (\d+) of 1,500 proteins", report)
    assert shown and int(shown[1]) == len(points) >= 50
    domain = spec["encoding"]["stroke"]["scale"]["domain"]
    assert len(domain) == MOST_CLASSES and domain[-1] == "4 other classes"
    drawn = np.bincount([int(point["l"]) for point in points], minlength=12) / len(points)
    assert abs(drawn[-1] - np.isin(codes, np.argsort(np.bincount(codes))[:4]).mean()) < 0.05, "in proportion"
    placed = {row["id"]: row for row in read(out["coordinates"])}
    for point in points:
        assert float(point["x"]) == pytest.approx(float(placed[point["n"]]["pca_1"]), abs=0.06)


def test_interactive_plot_of_numbers_leaves_out_who_has_none(execute: Callable[..., Any], tmp_path: Path) -> None:
    values, _ = clusters(50, 1, 0.0)
    ids = write(tmp_path / "r.h5", values)
    rows = [[name, f"{value:.3f}"] for name, value in zip(ids, values[:, 0], strict=True)]
    labels = table(tmp_path / "l.tsv", rows[:40])
    out = execute(tmp_path / "r.h5", "--labels", labels, "--methods", "pca", "--resamples", "100")
    report = out["report"].read_text()
    assert "PCA of all 40 proteins with a label." in report and "40 references have a label" in report
    spec = json.loads(re.findall(r"^```vega\n(.*)\n```$", report, flags=re.M)[0])
    points = list(csv.DictReader(spec["data"]["values"].splitlines()))
    assert sorted(point["n"] for point in points) == ids[:40]
    assert all(float(point["l"]) == pytest.approx(values[int(point["n"][1:]), 0], abs=2e-3) for point in points)


def test_labels_of_sites_and_their_proteins_as_groups(execute: Callable[..., Any], tmp_path: Path) -> None:
    values, codes = clusters(40, 2, 2.0)
    ids = [f"P{number // 2}" for number in range(40)]
    places = [5 + number % 2 for number in range(40)]
    about = Description("model_a", "ab" * 32, (6,), "sites", "float32", 8)
    write_embeddings(tmp_path / "s.h5", "hdf5", about, ids, iter(values), positions=places)
    rows = [[name, str(place), f"c{code}"] for name, place, code in zip(ids, places, codes, strict=True)]
    labels = table(tmp_path / "l.tsv", rows, ("id", "position", "label"))
    out = execute(tmp_path / "s.h5", "--labels", labels, "--methods", "pca", "--resamples", "100")
    placed = read(out["coordinates"])
    assert [(row["id"], row["position"], row["label"]) for row in placed] == [tuple(row) for row in rows]
    assert "Judged by groups (20 groups by protein): members of a group do not count" in out["report"].read_text()


def test_accessions_find_uniprot_ids(execute: Callable[..., Any], tmp_path: Path) -> None:
    values, codes = clusters(30, 2, 2.0)
    ids = [f"sp|P{number:05d}|NAME_HUMAN" for number in range(30)]
    write_embeddings(tmp_path / "r.npz", "npz", ABOUT, ids, iter(values))
    labels = table(tmp_path / "l.tsv", [[f"P{number:05d}", f"c{code}"] for number, code in enumerate(codes)])
    out = execute(tmp_path / "r.npz", "--labels", labels, "--methods", "pca", "--resamples", "100")
    assert all(row["label"] for row in read(out["coordinates"]))
    assert "30 ids were matched by their accession" in out["report"].read_text()


# -- honest scores --------------------


def judged(
    values: Any, texts: Sequence[str], groups: Any = None, **options: Any
) -> tuple[SeparationJudge, dict[str, Any]]:
    groups = np.arange(len(values)) if groups is None else groups
    options = {"neighbours": 10, "resamples": 300, "seed": 1, **options}
    judge = SeparationJudge(read_labels(texts, "auto", "test"), groups, **options)
    return judge, {score.measure: score for score in judge.space(FULL, values) if score.part == "all"}


def test_random_labels_do_not_separate() -> None:
    values, _ = clusters(300, 4, 2.0)
    random = [f"c{code}" for code in np.random.default_rng(9).integers(3, size=300)]
    _, scores = judged(values, random)
    for score in scores.values():
        assert score.p_value > 0.05 and abs(score.value - score.expected) < 0.05, score


def test_relatives_do_not_make_labels_separate() -> None:
    """Ten copies of each of 20 unrelated proteins, a random label each: separation only if copies count."""
    generator = np.random.default_rng(4)
    parents = generator.normal(size=(20, 16))
    values = (np.repeat(parents, 10, axis=0) + 0.01 * generator.normal(size=(200, 16))).astype(np.float32)
    texts = [f"c{code}" for code in np.repeat(generator.integers(2, size=20), 10)]
    _, fooled = judged(values, texts)
    assert fooled["neighbour_agreement"].p_value < 0.01 and fooled["neighbour_agreement"].value > 0.9
    _, honest = judged(values, texts, np.repeat(np.arange(20), 10))
    assert honest["neighbour_agreement"].p_value > 0.05
    assert honest["neighbour_agreement"].high - honest["neighbour_agreement"].low > 0.1, "20 groups, not 200 proteins"
    assert honest["silhouette"].p_value > 0.05


def test_scores_equal_the_libraries() -> None:
    from sklearn.manifold import trustworthiness as theirs
    from sklearn.metrics import euclidean_distances, silhouette_samples
    from sklearn.neighbors import NearestNeighbors

    values, codes = clusters(150, 4, 1.0)
    codes[codes == 3] = [3] + [2] * (int((codes == 3).sum()) - 1)  # a class of one
    distances = euclidean_distances(values).astype(np.float32)
    np.fill_diagonal(distances, 0)
    np.testing.assert_allclose(silhouettes(distances, codes), silhouette_samples(values, codes), atol=1e-5)
    low = values[:, :2]
    assert trustworthiness(values, low, 7).mean() == pytest.approx(theirs(values, low, n_neighbors=7), abs=1e-9)
    own = np.arange(150)
    places, squares = nearest(values, values, 5, own, own)
    far, where = NearestNeighbors(n_neighbors=6).fit(values).kneighbors(values)
    np.testing.assert_array_equal(places, where[:, 1:])
    np.testing.assert_allclose(np.sqrt(squares), far[:, 1:], rtol=1e-4)


def test_agreement_by_hand() -> None:
    """Two pairs on a line and one beyond: with one neighbour all labels but the last agree."""
    values = np.array([[0, 0], [1, 0], [10, 0], [11.5, 0], [13.5, 0]], dtype=np.float32)
    _, scores = judged(values, ["a", "a", "b", "b", "a"], neighbours=1)
    assert scores["neighbour_agreement"].value == pytest.approx(4 / 5)
    assert math.isnan(scores["neighbour_agreement"].low), "five proteins do not bear an interval"


def test_cosine_is_judged_by_cosine() -> None:
    from sklearn.metrics import silhouette_score

    values, codes = clusters(80, 3, 2.0)
    raw = values.copy()
    prepare(values, np.zeros((0, 8), np.float32), ProjectionSettings(metric="cosine"))
    _, scores = judged(values, [f"c{code}" for code in codes], cosine=True)
    assert scores["silhouette"].value == pytest.approx(silhouette_score(raw, codes, metric="cosine"), abs=1e-4)


def test_intervals_cover_and_shuffles_centre_numbers() -> None:
    values, _ = clusters(200, 1, 0.0)
    _, scores = judged(values, [f"{value:.4f}" for value in values[:, 0]])
    score = scores["neighbour_correlation"]
    assert score.low < score.value < score.high and score.value > 0.3 and score.p_value < 0.01
    _, noise = judged(values, [f"{value:.4f}" for value in np.random.default_rng(8).normal(size=200)])
    assert noise["neighbour_correlation"].p_value > 0.02 and abs(noise["neighbour_correlation"].expected) < 0.1


def test_outside_is_rare_among_alike_and_certain_far_away() -> None:
    values, _ = clusters(400, 1, 0.0)
    far = values[:10] + 50
    places, distances, outside = novelty(values[:200], np.concatenate([values[200:], far]), np.arange(200), 1)
    assert outside[:200].mean() < 0.15 and outside[200:].all()
    assert (distances[200:] > 20).all() and places.max() < 200
    assert not novelty(values, values[:50].copy(), np.arange(400), 1)[2].any(), "a copy of a reference is inside"


@pytest.mark.parametrize(
    ("texts", "kind", "expected"),
    [
        (["1", "0", "1", ""], "auto", "class"),
        ([str(number / 7) for number in range(20)], "auto", "number"),
        ([str(number) for number in range(20)], "class", "class"),
        (["1.5", "2", "NA"], "number", "number"),
        (["", "nan", "N/A"], "auto", "none"),
        (["a", "b"], "auto", "class"),
    ],
)
def test_kind_of_labels(texts: list[str], kind: str, expected: str) -> None:
    labels = read_labels(texts, kind, "here")
    assert labels.kind == expected
    assert labels.known.sum() == sum(text.lower() not in ("", "na", "nan", "n/a") for text in texts)


def test_words_are_no_numbers() -> None:
    with pytest.raises(UserError, match="'kinase' is no number"):
        read_labels(["1", "kinase"], "number", "here")


# -- projections --------------------


def test_transform_of_references_finds_their_places() -> None:
    """Copies of references, given as queries, land where they lie (PCA) or among the same neighbours (the others)."""
    values, codes = clusters(150, 3, 3.0)
    made = project(values.copy(), values[:30].copy(), ("pca", "tsne", "umap"), ProjectionSettings(threads=1))
    by_name = {one.method: one for one in made.projections}
    np.testing.assert_allclose(by_name["pca"].queries, by_name["pca"].references[:30], atol=1e-4)
    for one in made.projections:
        distances = ((one.queries[:, None] - one.references[None]) ** 2).sum(axis=2)
        same = codes[np.argsort(distances, axis=1)[:, :5]] == codes[:30, None]
        assert same.mean() > 0.95, one.method


@pytest.mark.slow
def test_umap_is_the_librarys() -> None:
    """Our exact neighbours give the library's own graph, so the layouts keep neighbours equally well."""
    from sklearn.manifold import trustworthiness as theirs
    from umap import UMAP

    values, _ = clusters(200, 4, 1.5)
    made = project(values.copy(), None, ("umap",), ProjectionSettings())
    plain = UMAP(n_neighbors=15, min_dist=0.1, init=values[:, :2], random_state=42, n_jobs=1).fit_transform(values)
    ours, library = theirs(values, made.projections[0].references), theirs(values, plain)
    assert ours == pytest.approx(library, abs=0.03)


def test_pca_is_scikit_learns() -> None:
    from sklearn.decomposition import PCA

    for rows, dimension in ((40, 6), (12, 30)):
        values, _ = clusters(rows, 2, 1.0, dimension=dimension)
        made = project(values.copy(), values[:3].copy(), ("pca",), ProjectionSettings())
        model = PCA(2, svd_solver="full").fit(values)
        ours = made.projections[0].references
        np.testing.assert_allclose(np.abs(ours), np.abs(model.transform(values)), atol=1e-3)
        np.testing.assert_allclose(made.explained[:2], model.explained_variance_ratio_, atol=1e-5)


def test_preparation_is_fitted_to_references_alone() -> None:
    values, _ = clusters(50, 2, 1.0)
    values = values * np.array([100, 1, 1, 1, 1, 1, 1, 0], dtype=np.float32) + 5
    queries = values[:4] + 30
    one, other = values.copy(), queries.copy()
    prepare(one, other, ProjectionSettings(standardise=True))
    np.testing.assert_allclose(one.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(one.std(axis=0)[:7], 1, atol=1e-3)
    assert (one[:, 7] == 0).all() and np.isfinite(other).all(), "a constant dimension stays constant"
    np.testing.assert_allclose(other[:, 1] - one[:4, 1], 30 / values[:, 1].std(), rtol=1e-3)


def test_many_equal_rows_and_small_sets_are_drawn() -> None:
    values, _ = clusters(20, 2, 2.0)
    values[5:15] = values[0]
    made = project(values, None, ("pca", "tsne", "umap"), ProjectionSettings())
    assert all(np.isfinite(one.references).all() for one in made.projections)
    assert "The perplexity was reduced from 30 to 6.33: 20 references allow no more." in made.notes
    small, _ = clusters(projection.FEWEST_FOR_NEIGHBOURS, 2, 2.0)
    made = project(small, small[:2].copy(), ("pca", "tsne", "umap"), ProjectionSettings())
    assert any("neighbours were reduced from 15 to 9" in note for note in made.notes)
    assert all(np.isfinite(one.queries).all() for one in made.projections)


# -- the picture --------------------


def test_looks_tell_twelve_classes_apart() -> None:
    drawn = looks(read_labels([f"c{number % 12}" for number in range(50)], "auto", ""))
    assert len({(look.colour, look.marker) for look in drawn}) == 12
    many = looks(read_labels([f"c{number % 30}" for number in range(90)] + [""], "auto", ""))
    assert [look.name for look in many[-2:]] == ["19 other classes", "no label"] and len(many) == 13


@pytest.mark.parametrize(("methods", "width"), [("pca", 1095), ("pca,umap", 1875), ("pca,tsne,umap", 1560)])
def test_picture_has_a_panel_a_method(execute: Callable[..., Any], root: Path, methods: str, width: int) -> None:
    out = execute(root / "test-data" / "simulated_embeddings.h5", "--methods", methods, "--resamples", "100")
    assert struct.unpack(">I", out["figure"].read_bytes()[16:20])[0] == width


# -- bad input --------------------


def refused(execute: Callable[..., Any], tmp_path: Path, *more: str | Path) -> str:
    with pytest.raises(UserError) as error:
        execute(*more)
    left = list(tmp_path.rglob("out/*"))
    assert not left, f"outputs of a failed run: {left}"
    return str(error.value)


def test_too_few_rows(execute: Callable[..., Any], tmp_path: Path) -> None:
    write(tmp_path / "r.h5", clusters(2, 1, 1.0)[0])
    assert "There are 2 embeddings; a projection needs at least 3" in refused(execute, tmp_path, tmp_path / "r.h5")
    write(tmp_path / "r.h5", clusters(5, 1, 1.0)[0])
    message = refused(execute, tmp_path, tmp_path / "r.h5")
    assert "UMAP of 5 embeddings show nothing but chance" in message and "PCA alone" in message
    out = execute(tmp_path / "r.h5", "--methods", "pca")
    assert len(read(out["coordinates"])) == 5


def test_constant_embeddings(execute: Callable[..., Any], tmp_path: Path) -> None:
    write(tmp_path / "r.h5", np.full((30, 8), 0.5, np.float32))
    assert "All 30 embeddings are equal" in refused(execute, tmp_path, tmp_path / "r.h5")
    write(tmp_path / "r.h5", np.repeat(np.eye(2, 8, dtype=np.float32), 15, axis=0))
    assert "only two different vectors" in refused(execute, tmp_path, tmp_path / "r.h5")


def test_nan_names_the_first_protein(execute: Callable[..., Any], tmp_path: Path) -> None:
    values, _ = clusters(30, 2, 1.0)
    values[7, 3] = np.nan
    values[9, 3] = np.inf
    write(tmp_path / "r.h5", values)
    message = refused(execute, tmp_path, tmp_path / "r.h5")
    assert "'P0007'" in message and "r.h5, record 8" in message and "NaN" in message
    write(tmp_path / "good.h5", clusters(30, 2, 1.0)[0])
    assert "'P0007'" in refused(execute, tmp_path, tmp_path / "good.h5", "--queries", tmp_path / "r.h5")


@pytest.mark.parametrize(
    ("about", "dimension", "what"),
    [
        (ABOUT, 9, "dimension: 8 and 9"),
        (Description("model_b", "ab" * 32, (6,), "mean", "float32", 8), 8, "model: model_a and model_b"),
        (Description("model_a", "cd" * 32, (6,), "mean", "float32", 8), 8, "weights of the model (sha256): abab"),
        (Description("model_a", "ab" * 32, (5,), "mean", "float32", 8), 8, "layer: 6 and 5"),
        (Description("model_a", "ab" * 32, (6,), "max", "float32", 8), 8, "pooling: mean and max"),
    ],
)
def test_queries_of_another_kind(
    execute: Callable[..., Any], tmp_path: Path, about: Description, dimension: int, what: str
) -> None:
    write(tmp_path / "r.h5", clusters(30, 2, 1.0)[0])
    write(tmp_path / "q.h5", clusters(5, 2, 1.0, dimension=dimension)[0], "Q", about)
    message = refused(execute, tmp_path, tmp_path / "r.h5", "--queries", tmp_path / "q.h5")
    assert f"References and queries differ in {what}" in message


def test_unknown_origin_is_noted(execute: Callable[..., Any], root: Path) -> None:
    data = root / "test-data"
    out = execute(
        data / "simulated_embeddings.tabular", "--queries", data / "simulated_embeddings_queries.h5", "--methods", "pca"
    )
    assert "do not say whether they agree in model" in out["report"].read_text()


def test_labels_for_unknown_ids_only(execute: Callable[..., Any], tmp_path: Path) -> None:
    write(tmp_path / "r.h5", clusters(30, 2, 1.0)[0])
    labels = table(tmp_path / "l.tsv", [["X1", "a"], ["X2", "b"]])
    message = refused(execute, tmp_path, tmp_path / "r.h5", "--labels", labels)
    assert "None of the 2 ids of the table" in message and "'X1'" in message and "'P0000'" in message


def test_two_labels_for_one_id(execute: Callable[..., Any], tmp_path: Path) -> None:
    write(tmp_path / "r.h5", clusters(30, 2, 1.0)[0])
    labels = table(tmp_path / "l.tsv", [["P0001", "a"], ["P0002", "b"], ["P0001", "b"]])
    message = refused(execute, tmp_path, tmp_path / "r.h5", "--labels", labels)
    assert "'P0001' has two labels: 'a' (line 2) and 'b' [l.tsv, line 4]" in message


def test_column_that_is_not_there(execute: Callable[..., Any], tmp_path: Path) -> None:
    write(tmp_path / "r.h5", clusters(30, 2, 1.0)[0])
    labels = table(tmp_path / "l.tsv", [["P0001", "a"]])
    message = refused(execute, tmp_path, tmp_path / "r.h5", "--labels", labels, "--label-column", "family")
    assert "--label-column: there is no column 'family' (columns: id, label)" in message
    message = refused(execute, tmp_path, tmp_path / "r.h5", "--label-column", "family")
    assert "the embeddings carry no column 'family'" in message


def test_one_class_is_drawn_but_not_judged(execute: Callable[..., Any], tmp_path: Path) -> None:
    ids = write(tmp_path / "r.h5", clusters(30, 2, 1.0)[0])
    labels = table(tmp_path / "l.tsv", [[name, "kinase"] for name in ids])
    out = execute(tmp_path / "r.h5", "--labels", labels, "--methods", "pca")
    report = out["report"].read_text()
    assert report.startswith("**Whether labels separate cannot be judged: all 30 labels are the same (kinase)**")
    assert "neighbour_agreement" not in out["scores"].read_text() and out["figure"].stat().st_size > 5000


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--methods", "pca,mds"], "'pca,mds' are not some of pca, tsne, umap"),
        (["--methods", "pca,pca"], "each once"),
        (["--perplexity", "0"], "[--perplexity]"),
        (["--min-dist", "2"], "[--min-dist]"),
        (["--no-labels", "--label-column", "x"], "exclude each other"),
        (["--id-column", "x"], "--labels"),
        (["--layer", "3"], "There is no layer 3"),
    ],
)
def test_flags(execute: Callable[..., Any], tmp_path: Path, more: list[str], message: str) -> None:
    write(tmp_path / "r.h5", clusters(30, 2, 1.0)[0])
    assert message in refused(execute, tmp_path, tmp_path / "r.h5", *more)


def test_user_text_cannot_break_the_report(execute: Callable[..., Any], tmp_path: Path) -> None:
    values, codes = clusters(40, 2, 1.0)
    ids = [f'a"b,{number}```' for number in range(40)]
    write_embeddings(tmp_path / "r.h5", "hdf5", ABOUT, ids, iter(values))
    names = ['x"]; alert(1) //', "```galaxy\\"]
    labels = table(tmp_path / "l.tsv", [[name, names[code]] for name, code in zip(ids, codes, strict=True)])
    out = execute(tmp_path / "r.h5", "--labels", labels, "--methods", "pca", "--resamples", "100")
    report = out["report"].read_text()
    assert len(re.findall(r"^```", report, flags=re.M)) == 2 * 3
    spec = json.loads(re.findall(r"^```vega\n(.*)\n```$", report, flags=re.M)[0])
    shown = json.loads(spec["transform"][0]["calculate"].removesuffix("[datum.l]"))
    assert sorted(shown) == sorted(["'''galaxy\\", names[0]])
    assert {row["id"] for row in read(out["coordinates"])} == set(ids)


def test_sampled_scores_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(separation, "MOST_SCORED", 50)
    monkeypatch.setattr(separation, "MOST_COMPARED", 40)
    values, codes = clusters(200, 2, 2.0)
    judge, scores = judged(values, [f"c{code}" for code in codes])
    agreement = scores["neighbour_agreement"]
    assert agreement.rows == 50 and "random sample of 50 of 200" in agreement.note
    assert scores["silhouette"].rows == 40 and judge.trust("pca", values[:, :2], values).rows == 40


def test_as_a_process(run_stage: Callable[..., Any], root: Path, tmp_path: Path) -> None:
    data = root / "test-data"
    ended = run_stage(
        "plm_project", "--embeddings", data / "simulated_embeddings.h5", "--queries",
        data / "simulated_embeddings_other_model.h5", "--coordinates", tmp_path / "c.tsv",
    )
    assert ended.returncode == 1 and ended.stderr.count("\n") == 1
    assert ended.stderr.startswith("plm_project: error: References and queries differ in model")
    assert not list(tmp_path.iterdir())


@pytest.mark.realdata
def test_real_embeddings_carry_fitness(execute: Callable[..., Any], shared_data: Path) -> None:
    """ESM-2 8M embeddings of GB1 variants: neighbours have similar fitness; validation variants are not outside."""
    folder = shared_data / "gb1_esm2_8m"
    out = execute(
        folder / "train_ESM2_8M.parquet", "--queries", folder / "valid_ESM2_8M.parquet", "--methods", "pca",
        "--resamples", "200",
    )
    scores = read(out["scores"])
    assert float(all_score(scores, FULL, "neighbour_correlation")["value"]) > 0.5
    assert float(all_score(scores, FULL, "neighbour_correlation", "query")["value"]) > 0.5
    assert float(all_score(scores, FULL, "outside", "query")["value"]) < 0.1


# -- groups of relatives --------------------


def families(tmp_path: Path, copies: int = 10) -> tuple[list[str], list[str], list[str]]:
    """Ten near copies of each of 20 unrelated proteins, a random label each: ids, labels, families."""
    generator = np.random.default_rng(4)
    parents = generator.normal(size=(20, 16))
    values = np.repeat(parents, copies, axis=0) + 0.01 * generator.normal(size=(20 * copies, 16))
    ids = write(tmp_path / "r.h5", values.astype(np.float32))
    labels = [f"c{code}" for code in np.repeat(generator.integers(2, size=20), copies)]
    return ids, labels, [f"family {number // copies}" for number in range(20 * copies)]


@pytest.mark.parametrize("column", ["group", "cluster", "Cluster", "protein"])
def test_groups_that_are_there_are_used(execute: Callable[..., Any], tmp_path: Path, column: str) -> None:
    rows = list(zip(*families(tmp_path), strict=True))
    labels = table(tmp_path / "l.tsv", rows, ("id", "label", column))
    more = ["--labels", labels, "--methods", "pca", "--resamples", "200"]
    report = execute(tmp_path / "r.h5", *more)["report"].read_text()
    assert report.startswith("**No sign that the labels separate")
    assert f"Judged by groups (20 groups by column {column}): members of a group do not count" in report
    ignored = execute(tmp_path / "r.h5", *more, "--group-column", "none", folder="b")["report"].read_text()
    assert ignored.startswith("**The labels separate beyond chance")
    assert "No groups of relatives are known, so proteins count as independent" in ignored


def test_groups_in_the_embeddings_are_used(execute: Callable[..., Any], tmp_path: Path) -> None:
    ids, labels, groups = families(tmp_path)
    values = np.concatenate([np.ones((200, 1)), np.random.default_rng(1).normal(size=(200, 15))], axis=1)
    header = ["id", "label", "cluster", *(f"e{number}" for number in range(16))]
    lines = [[one, label, group, *(f"{value:.4f}" for value in row)]
             for one, label, group, row in zip(ids, labels, groups, values, strict=True)]
    path = table(tmp_path / "e.tabular", lines, header)
    report = execute(path, "--methods", "pca", "--resamples", "100")["report"].read_text()
    assert "Judged by groups (20 groups by column cluster)" in report


def test_group_and_cluster_join(execute: Callable[..., Any], tmp_path: Path) -> None:
    ids, labels, groups = families(tmp_path)
    pairs = [f"pair {number // 2}" for number in range(200)]
    rows = list(zip(ids, labels, pairs, groups, strict=True))
    one = table(tmp_path / "l.tsv", rows, ("id", "label", "group", "cluster"))
    report = execute(tmp_path / "r.h5", "--labels", one, "--methods", "pca", "--resamples", "100")["report"].read_text()
    assert "(20 groups by columns group and cluster)" in report


def test_labels_that_are_the_groups_cannot_be_judged(execute: Callable[..., Any], tmp_path: Path) -> None:
    ids, _, groups = families(tmp_path)
    rows = [[one, group, group] for one, group in zip(ids, groups, strict=True)]
    one = table(tmp_path / "l.tsv", rows, ("id", "label", "group"))
    report = execute(tmp_path / "r.h5", "--labels", one, "--methods", "pca", "--resamples", "100")["report"].read_text()
    assert report.startswith("**Whether labels separate cannot be judged: each label is that of a single group")


def test_members_of_a_group_never_fill_up_the_neighbours() -> None:
    values, codes = clusters(40, 2, 0.0)
    groups = np.where(np.arange(40) < 34, 0, np.arange(40))
    judge, _ = judged(values, [f"c{code}" for code in codes], groups)
    assert next(one.note for one in judge.space(FULL, values)).startswith("6 nearest neighbours")


def test_mixed_groups_are_shuffled_as_a_whole() -> None:
    """Labels that follow the place of groups, mixed within them: 30 groups in pairs of alike ones, no more."""
    generator = np.random.default_rng(5)
    groups = np.repeat(np.arange(30), 8)
    share = np.repeat(generator.random(15), 2)
    labels = (generator.random(240) < share[groups]).astype(int)
    judge = SeparationJudge(read_labels([f"c{code}" for code in labels], "auto", "test"), groups, 5, 200, 1)
    for drawn in judge._shuffles(labels, 20):
        means = {round(float(labels[groups == group].mean()), 6) for group in range(30)}
        assert {round(float(drawn[groups == group].mean()), 6) for group in range(30)} == means


def test_chance_of_mixed_groups_is_not_too_small() -> None:
    """Under labels without relation to the place, one p value in twenty is below 0.05 although groups are alike."""
    small = 0
    for seed in range(40):
        generator = np.random.default_rng(seed)
        groups = np.repeat(np.arange(24), 6)
        values = (generator.normal(size=(24, 8))[groups] + 0.05 * generator.normal(size=(144, 8))).astype(np.float32)
        share = generator.random(24)
        labels = [f"c{int(one < share[group])}" for one, group in zip(generator.random(144), groups, strict=True)]
        _, scores = judged(values, labels, groups, resamples=99)
        small += scores["neighbour_agreement"].p_value < 0.05
    assert small <= 6
