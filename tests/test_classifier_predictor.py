"""The predictor of a classifier on embeddings: sequence members beside the head, its bundle, and who asks it."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import plm_compress_classifier
import plm_finetune
import plm_predict
import plm_train_classifier
import pytest
from plm.data.embeddings.files import Description, write_embeddings
from plm.data.task import Task
from plm.errors import UserError
from plm.model.bundles.classifier import load_classifier_bundle
from plm.model.bundles.fine_tuned import load_bundle
from plm.model.combination import LANGUAGE_MODEL
from plm.scoring.combining import Heard, combine
from test_predictor import AMINO, manifest, table

QUICK = ("--epochs", "3", "--preset", "small", "--resamples", "100", "--seed", "3")
ABOUT = Description("simulated", "5e" * 32, (6,), "mean", "float32", 8)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GALAXY_SLOTS", "1")


def lysines(rows: int, folds: int = 0, seed: int = 5) -> pd.DataFrame:
    """Proteins of which the class 'many' has more lysines; what embeddings know of it is something else."""
    generator = np.random.default_rng(seed)
    number = np.arange(rows) % 2
    texts = []
    for label in number:
        letters = generator.choice(AMINO, int(generator.integers(70, 110)))
        chosen = generator.random(len(letters)) < (0.08 if label else 0.02)
        letters[chosen] = "K"
        texts.append("".join(letters))
    frame = pd.DataFrame({
        "id": [f"p{n}" for n in range(rows)], "sequence": texts,
        "label": np.where(number, "many", "few"), "group": [f"g{n // 2}" for n in range(rows)],
    })
    if folds:
        frame["fold"] = [str((n // 2) % folds + 1) for n in range(rows)]
    else:
        frame["split"] = [("train", "train", "train", "valid", "test")[(n // 2) % 5] for n in range(rows)]
    return frame


def embedded(frame: pd.DataFrame, path: Path, seed: int = 1, about: Description = ABOUT, **more: object) -> Path:
    """Noise, and the label with much of it."""
    generator = np.random.default_rng(seed)
    rows = generator.normal(size=(len(frame), about.dimension))
    rows[:, 0] += 1.5 * (frame["label"] == "many").to_numpy()
    write_embeddings(path, "hdf5", about, frame["id"].tolist(), iter(rows.astype(np.float32)), **more)
    return path


def train(frame: pd.DataFrame, folder: Path, *options: str, embeddings: Path | None = None) -> dict[str, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    frame.to_csv(folder / "dataset.tabular", sep="\t", index=False)
    given = embeddings or embedded(frame, folder / "embeddings.h5")
    paths = {name: folder / name for name in ("bundle", "predictions", "metrics", "report")}
    named = [word for name, path in paths.items() for word in (f"--{name}", str(path))]
    plm_train_classifier.run(
        ["--embeddings", str(given), "--labels", str(folder / "dataset.tabular"), *named, *QUICK, *options]
    )
    return {**paths, "embeddings": given}


def auroc(rows: pd.DataFrame) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(rows["label"] == "many", rows["p_many"].astype(float)))


def matrix_of(path: Path, ids: list[str]) -> np.ndarray:
    from plm.data.embeddings.files import read_embeddings

    with read_embeddings(path) as opened:
        known = dict(zip(opened.ids, opened.records(), strict=True))
    return np.stack([known[name] for name in ids]).astype(np.float32)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[pd.DataFrame, dict[str, Path]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GALAXY_SLOTS", "1")
        frame = lysines(200)
        return frame, train(frame, tmp_path_factory.mktemp("trained"))


def test_sequence_members_add_what_embeddings_do_not_know(trained: tuple[pd.DataFrame, dict[str, Path]]) -> None:
    frame, made = trained
    rows = table(made["predictions"])
    by_role = dict(iter(rows[rows["split"] == "test"].groupby("role", sort=False)))
    predictor = by_role["predictor"]
    assert sorted(predictor["id"]) == sorted(frame["id"][frame["split"] == "test"])
    assert auroc(predictor) > auroc(by_role["language model"]) + 0.03 > 0.7
    assert set(by_role["member"]["model"]) == {"member: composition", "member: dipeptides", "member: nearest neighbour"}

    bundle = load_classifier_bundle(made["bundle"])
    sequences = dict(zip(frame["id"], frame["sequence"], strict=True))
    matrix, texts = matrix_of(made["embeddings"], predictor["id"].tolist()), [sequences[key] for key in predictor["id"]]
    again = bundle.predict(matrix, texts)
    np.testing.assert_allclose(again[:, 1], predictor["p_many"].astype(float), atol=2e-6)
    assert bundle.calls(again) == predictor["call"].tolist()
    told = bundle.explain(matrix, texts)
    np.testing.assert_allclose(told.answers, again, atol=1e-9)
    head = by_role["language model"]
    np.testing.assert_allclose(bundle.predict_model(matrix)[:, 1], head["p_many"].astype(float), atol=2e-6)
    np.testing.assert_allclose(told.members[LANGUAGE_MODEL], bundle.predict_model(matrix))
    assert bundle.task.calls(bundle.predict_model(matrix), bundle.model_threshold) == head["call"].tolist()
    own = by_role["member"][by_role["member"]["model"] == "member: composition"]
    np.testing.assert_allclose(told.members["composition"][:, 1], own["p_many"].astype(float), atol=2e-6)
    with pytest.raises(UserError, match="reads the proteins' sequences"):
        bundle.predict(matrix)


def test_the_report_tells_the_predictor_first(trained: tuple[pd.DataFrame, dict[str, Path]]) -> None:
    _, made = trained
    lines = made["report"].read_text().splitlines()[0]
    order = ["The predictor: AUROC", "It combines", "language model adds", "residues: beyond these", "linear head"]
    places = [lines.index(part) for part in order]
    assert places == sorted(places), lines
    metrics = table(made["metrics"])
    main = metrics[(metrics["metric"] == "auroc") & (metrics["split"] == "test")].set_index("model")["value"]
    assert float(main["predictor"]) > 0.75 and "sequence members together" in main
    valid = metrics[(metrics["model"] == "predictor") & (metrics["split"] == "valid")]
    assert len(valid[valid["metric"] == "mcc"]) == 1


def test_validation_rows_are_answered_by_members_that_did_not_learn_from_them(tmp_path: Path) -> None:
    """Labels without any sense: a member that had seen the rows would know them (nearest neighbour: itself)."""
    frame = lysines(200, seed=6)
    frame["label"] = np.random.default_rng(1).permutation(frame["label"].to_numpy())
    generator = np.random.default_rng(2)
    path = tmp_path / "noise.h5"
    write_embeddings(
        path, "hdf5", ABOUT, frame["id"].tolist(), iter(generator.normal(size=(200, 8)).astype(np.float32))
    )
    made = train(frame, tmp_path, "--predictor", "combination", embeddings=path)
    rows = table(made["predictions"])
    valid = rows[rows["split"] == "valid"]
    for model, part in valid[valid["role"] == "member"].groupby("model"):
        assert len(part) == 40 and 0.2 < auroc(part) < 0.8, model
    assert 0.2 < auroc(valid[valid["role"] == "predictor"]) < 0.8
    bundle = load_classifier_bundle(made["bundle"])
    scores, truth = bundle.validation_scores
    assert 0.2 < auroc(pd.DataFrame({"label": np.where(truth == 1, "many", "few"), "p_many": scores[:, 1]})) < 0.8


def test_folds_have_combinations_of_their_own(tmp_path: Path) -> None:
    frame = lysines(120, folds=3)
    made = train(frame, tmp_path)
    rows = table(made["predictions"])
    test = rows[(rows["split"] == "test") & (rows["role"] == "predictor")]
    assert sorted(test["id"]) == sorted(frame["id"]) and auroc(test) > 0.8
    held = manifest(made["bundle"])["predictor"]
    assert held["rows"] == 120 and held["judged"]["rows"] == 120
    assert len(load_classifier_bundle(made["bundle"]).validation_scores[0]) == 120


def test_without_sequences_the_head_answers_alone_and_the_report_says_why(tmp_path: Path) -> None:
    frame = lysines(60)
    made = train(frame.drop(columns=["sequence"]), tmp_path)
    assert "role" not in table(made["predictions"]).columns
    assert load_classifier_bundle(made["bundle"]).predictor is None
    assert "since the labels came without sequences" in made["report"].read_text().splitlines()[0]
    frame.loc[3, "sequence"] = ""
    again = train(frame, tmp_path / "one", embeddings=made["embeddings"])
    assert "since 1 of the 60 labelled rows have no sequence" in again["report"].read_text()
    with pytest.raises(UserError, match=r"1 of the 60 labelled rows have no sequence .*--predictor combination"):
        train(frame, tmp_path / "two", "--predictor", "combination", embeddings=made["embeddings"])


def test_the_head_alone_by_choice(tmp_path: Path) -> None:
    made = train(lysines(60), tmp_path, "--predictor", "model")
    assert "role" not in table(made["predictions"]).columns
    with zipfile.ZipFile(made["bundle"]) as opened:
        assert not [name for name in opened.namelist() if name.startswith("sequence_members")]
    assert "Nothing was combined" not in made["report"].read_text()


def test_sequences_may_come_with_the_embeddings_and_stay_out_of_the_bundle(tmp_path: Path) -> None:
    frame = lysines(120)
    path = embedded(frame, tmp_path / "e.h5")
    carrying = frame[["id", "sequence", "label"]].copy()
    numbers = matrix_of(path, frame["id"].tolist())
    for place in range(8):
        carrying[f"e{place}"] = numbers[:, place]
    carrying.to_csv(tmp_path / "embeddings.csv", index=False)
    labels = frame.drop(columns=["sequence"])
    made = train(labels, tmp_path / "out", "--without-sequences", embeddings=tmp_path / "embeddings.csv")
    held = manifest(made["bundle"])["predictor"]
    assert held["rows"] == 0 and {one["name"] for one in held["members"]} == {"composition", "dipeptides"}
    with zipfile.ZipFile(made["bundle"]) as opened:
        everything = b"".join(opened.read(name) for name in opened.namelist())
    assert not any(sequence.encode() in everything for sequence in frame["sequence"])


def test_sites_are_seen_with_what_lies_around_them(tmp_path: Path) -> None:
    """Class by the residue two places before the site, in whole proteins; two sites of one protein."""
    generator = np.random.default_rng(8)
    records = []
    for protein in range(80):
        letters = generator.choice(AMINO, 120)
        label = protein % 2
        for site in (30, 80):
            letters[site], letters[site - 2] = "S", "R" if label else "D"
        records += [
            (f"P{protein}", str(site + 1), "".join(letters), "many" if label else "few",
             ("train", "train", "train", "valid", "test")[(protein // 2) % 5])
            for site in (30, 80)
        ]
    frame = pd.DataFrame(records, columns=["id", "position", "sequence", "label", "split"])
    frame["protein"] = frame["id"]
    about = Description("simulated", "5e" * 32, (6,), "sites", "float32", 8)
    path = tmp_path / "sites.h5"
    embedded(frame, path, about=about, positions=[int(place) for place in frame["position"]])
    made = train(frame, tmp_path / "out", embeddings=path)
    rows = table(made["predictions"])
    test = rows[(rows["split"] == "test") & (rows["role"] == "predictor")]
    assert auroc(test) > 0.95
    bundle = load_classifier_bundle(made["bundle"])
    assert bundle.predictor is not None and bundle.predictor.members.width == 33
    rows_held = bundle.predictor.members.rows
    assert rows_held is not None and rows_held.ids[0] == "P0:31" and rows_held.texts[0][16] == "S"


def test_a_language_model_that_lowers_the_main_score_is_left_out() -> None:
    """The loss prefers both together, a score that counts the language model's part against it does not."""
    generator = np.random.default_rng(3)
    truth = np.arange(300) % 2
    members, model = (
        np.stack([1 - p, p], axis=1) for p in (1 / (1 + np.exp(-(2 * truth - 1) * 1.2 - generator.normal(size=300))),
                                               1 / (1 + np.exp(-(2 * truth - 1) * 1.2 - generator.normal(size=300))))
    )
    groups = np.arange(300).astype(str)
    heard = Heard({"composition": members}, np.full(300, np.nan), (), truth, groups, Task("site", "class", ("0", "1")))
    both = combine(heard, model, np.arange(300), 1)
    assert set(both.combination.names) == {LANGUAGE_MODEL, "composition"}

    def quality(values: np.ndarray) -> float:
        return -float(np.abs(values[:, 1] - both.sequence.chosen.answers[:, 1]).mean())

    alone = combine(heard, model, np.arange(300), 1, quality=quality)
    assert alone.combination.names == ("composition",)
    kept = combine(heard, model, np.arange(300), 1, quality=lambda values: -quality(values))
    assert set(kept.combination.names) == {LANGUAGE_MODEL, "composition"}


def ask(bundle: Path, out: Path, *options: str) -> pd.DataFrame:
    plm_predict.run(["--bundle", str(bundle), "--predictions", str(out), "--report", f"{out}.md", *options])
    return table(out)


def test_plm_predict_with_embeddings_and_their_proteins(
    trained: tuple[pd.DataFrame, dict[str, Path]], tmp_path: Path
) -> None:
    _, made = trained
    new = lysines(30, seed=9)
    path = embedded(new, tmp_path / "new.h5", seed=4)
    with pytest.raises(UserError, match=r"do not carry them .*--sequences.*--predictor model"):
        ask(made["bundle"], tmp_path / "p.tsv", "--embeddings", str(path))
    assert not (tmp_path / "p.tsv").exists()
    proteins = tmp_path / "new.fasta"
    order = new.sample(frac=1, random_state=0)
    proteins.write_text("".join(f">{one.id} x\n{one.sequence}\n" for one in order.itertuples()))
    rows = ask(made["bundle"], tmp_path / "p.tsv", "--embeddings", str(path), "--sequences", str(proteins))
    bundle = load_classifier_bundle(made["bundle"])
    expected = bundle.predict(matrix_of(path, new["id"].tolist()), new["sequence"].tolist())
    assert rows["id"].tolist() == new["id"].tolist()
    np.testing.assert_allclose(rows["p_many"].astype(float), expected[:, 1], atol=2e-6)

    alone = ask(made["bundle"], tmp_path / "m.tsv", "--embeddings", str(path), "--predictor", "model")
    model = bundle.predict_model(matrix_of(path, new["id"].tolist()))
    np.testing.assert_allclose(alone["p_many"].astype(float), model[:, 1], atol=2e-6)
    assert alone["call"].tolist() == bundle.task.calls(model, bundle.model_threshold)
    assert alone["set_size"].astype(int).sum() != rows["set_size"].astype(int).sum()
    assert "The language model alone answers" in (tmp_path / "m.tsv.md").read_text()

    proteins.write_text(f">{new['id'][0]}\n{new['sequence'][0]}\n")
    with pytest.raises(UserError, match=f"no usable sequence of '{new['id'][1]}'"):
        ask(made["bundle"], tmp_path / "q.tsv", "--embeddings", str(path), "--sequences", str(proteins))


def test_compression_keeps_the_predictor(trained: tuple[pd.DataFrame, dict[str, Path]], tmp_path: Path) -> None:
    frame, made = trained
    small = tmp_path / "small.zip"
    plm_compress_classifier.run([
        "--bundle", str(made["bundle"]), "--embeddings", str(made["embeddings"]), "--labels",
        str(made["bundle"].parent / "dataset.tabular"), "--compressed-bundle", str(small), "--most-loss", "0.2",
        "--resamples", "100",
    ])
    before, after = load_classifier_bundle(made["bundle"]), load_classifier_bundle(small)
    matrix, texts = matrix_of(made["embeddings"], frame["id"].tolist()), frame["sequence"].tolist()
    assert after.predictor is not None
    one, other = before.explain(matrix, texts), after.explain(matrix, texts)
    np.testing.assert_allclose(one.members["composition"], other.members["composition"])
    assert 0 < np.abs(one.answers - other.answers).max() < 0.1
    assert after.threshold == before.threshold
    np.testing.assert_allclose(after.validation_scores[0], before.validation_scores[0])
    valid = (frame["split"] == "valid").to_numpy()
    np.testing.assert_allclose(after.model_validation_scores[0], after.predict_model(matrix[valid]), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda held: held["combination"]["members"].__setitem__(0, "ghost"), "ghost, which it does not hold"),
        (lambda held: held["combination"]["weights"].__setitem__(0, 9.0), "fails its self-test"),
        (lambda held: held["members"][0].__setitem__("view", "../../etc"), "do not fit each other"),
        (lambda held: held["language_model"].__setitem__("threshold", "x"), "language_model.threshold"),
    ],
    ids=["missing member", "other weight", "view", "threshold"],
)
def test_a_strangers_members_are_refused(
    trained: tuple[pd.DataFrame, dict[str, Path]], tmp_path: Path, change, message: str
) -> None:
    changed = tmp_path / "changed.zip"
    with zipfile.ZipFile(trained[1]["bundle"]) as source, zipfile.ZipFile(changed, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name == "manifest.json":
                content = json.loads(data)
                change(content["predictor"])
                data = json.dumps(content).encode()
            target.writestr(name, data)
    with pytest.raises(UserError, match=message):
        load_classifier_bundle(changed)


def test_equal_jobs_give_equal_bytes(trained: tuple[pd.DataFrame, dict[str, Path]], tmp_path: Path) -> None:
    frame, made = trained
    assert train(frame, tmp_path)["bundle"].read_bytes() == made["bundle"].read_bytes()


def test_plm_predict_asks_the_language_model_of_a_fine_tuned_bundle_alone(tiny_esm2: Path, tmp_path: Path) -> None:
    frame, new = lysines(100), lysines(12, seed=7)
    frame.to_csv(tmp_path / "dataset.tabular", sep="\t", index=False)
    made = tmp_path / "tuned.zip"
    plm_finetune.run([
        "--dataset", str(tmp_path / "dataset.tabular"), "--model", str(tiny_esm2), "--bundle", str(made), "--method",
        "head", "--epochs", "1", "--precision", "fp32", "--device", "cpu", "--seed", "3", "--predictor", "combination",
    ])
    proteins = tmp_path / "new.fasta"
    proteins.write_text("".join(f">{one.id}\n{one.sequence}\n" for one in new.itertuples()))
    options = ("--input", str(proteins), "--model", str(tiny_esm2), "--device", "cpu", "--precision", "fp32")
    both = ask(made, tmp_path / "both.tsv", *options)
    alone = ask(made, tmp_path / "alone.tsv", *options, "--predictor", "model")
    bundle = load_bundle(made, str(tiny_esm2), workdir=tmp_path / "again", device="cpu", precision="fp32")
    texts = new["sequence"].tolist()
    np.testing.assert_allclose(both["p_many"].astype(float), bundle.predict(texts)[:, 1], atol=2e-6)
    model = bundle.predict_model(texts)
    np.testing.assert_allclose(alone["p_many"].astype(float), model[:, 1], atol=2e-6)
    threshold = bundle.manifest["predictor"]["language_model"]["threshold"]
    assert alone["call"].tolist() == bundle.task.calls(model, threshold)
    assert {"set", "set_size"} <= set(alone.columns), "its own errors on validation rows are in the bundle"
