"""The predictor of a fine-tuning: sequence members, their combination with the language model, and the bundle."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import plm_finetune
import pytest
from plm.data.task import Task
from plm.errors import UserError
from plm.model.bundles.fine_tuned import load_bundle
from plm.model.combination import LANGUAGE_MODEL
from plm.scoring import combining
from sklearn.metrics import f1_score

FAST = ("--epochs", "1", "--precision", "fp32", "--device", "cpu", "--seed", "3")
AMINO = np.array(list("ACDEFGHIKLMNPQRSTVWY"))


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GALAXY_SLOTS", "1")


def motif_windows(rows: int, folds: int = 0, seed: int = 5) -> pd.DataFrame:
    """Windows of 15 around Y; class 1 has R two places before it, which an untrained model cannot know."""
    generator = np.random.default_rng(seed)
    letters = generator.choice(AMINO, (rows, 15))
    label = np.arange(rows) % 2
    letters[:, 7] = "Y"
    letters[label == 1, 5] = "R"
    frame = pd.DataFrame({
        "id": [f"w{n}" for n in range(rows)], "sequence": ["".join(row) for row in letters],
        "label": label.astype(str), "position": "8", "window": "15", "protein": [f"P{n // 2}" for n in range(rows)],
    })
    if folds:
        frame["fold"] = [str((n // 2) % folds + 1) for n in range(rows)]
    else:
        frame["split"] = [("train", "train", "train", "valid", "test")[(n // 2) % 5] for n in range(rows)]
    return frame


def finetune(frame: pd.DataFrame, model: Path, folder: Path, *options: str) -> dict[str, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    frame.to_csv(folder / "dataset.tabular", sep="\t", index=False)
    paths = {name: folder / name for name in ("bundle", "predictions", "report")}
    named = [word for name, path in paths.items() for word in (f"--{name}", str(path))]
    plm_finetune.run(["--dataset", str(folder / "dataset.tabular"), "--model", str(model), *named, *FAST, *options])
    return paths


def table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)


def manifest(path: Path) -> dict:
    with zipfile.ZipFile(path) as opened:
        return json.loads(opened.read("manifest.json"))


def auroc(rows: pd.DataFrame) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(rows["label"] == "1", rows["p_1"].astype(float)))


def test_sequence_members_answer_where_the_model_cannot(tiny_esm2: Path, tmp_path: Path) -> None:
    frame = motif_windows(200)
    made = finetune(frame, tiny_esm2, tmp_path)
    rows = table(made["predictions"])
    test = rows[rows["split"] == "test"]
    by_role = dict(iter(test.groupby("role", sort=False)))
    predictor = by_role["predictor"]
    assert sorted(predictor["id"]) == sorted(frame["id"][frame["split"] == "test"])
    assert auroc(predictor) > 0.95 > 0.8 > auroc(by_role["language model"])
    assert set(by_role["member"]["model"]) >= {"member: one-hot", "member: composition", "member: nearest neighbour"}

    bundle = load_bundle(made["bundle"], str(tiny_esm2), workdir=tmp_path / "again", device="cpu", precision="fp32")
    sequences = dict(zip(frame["id"], frame["sequence"], strict=True))
    texts, sites = [sequences[key] for key in predictor["id"]], [7] * len(predictor)
    again = bundle.predict(texts, sites)
    np.testing.assert_allclose(again[:, 1], predictor["p_1"].astype(float), atol=2e-6)
    assert bundle.calls(again) == predictor["call"].tolist()
    told = bundle.explain(texts, sites)
    np.testing.assert_allclose(told.answers, again, atol=1e-9)
    for name in ("one-hot", "dipeptides"):
        own = by_role["member"][by_role["member"]["model"] == f"member: {name}"]
        np.testing.assert_allclose(told.members[name][:, 1], own["p_1"].astype(float), atol=2e-6)
    assert bundle.predictor is not None and bundle.predictor.members.rows is not None
    near = bundle.predictor.members.rows
    places = [sum(a == b for a, b in zip(text, near.texts[row], strict=True)) / 15
              for text, row in zip(texts, told.nearest, strict=True)]
    np.testing.assert_allclose(places, told.similarity, atol=1e-6)


def test_validation_rows_are_answered_by_members_that_did_not_learn_from_them(tiny_esm2: Path, tmp_path: Path) -> None:
    """Labels without any sense: a member that had seen the rows would know them (nearest neighbour: itself)."""
    frame = motif_windows(200, seed=6)
    generator = np.random.default_rng(1)
    frame["label"] = generator.permutation(frame["label"].to_numpy())
    rows = table(finetune(frame, tiny_esm2, tmp_path)["predictions"])
    valid = rows[rows["split"] == "valid"]
    assert len(valid[valid["role"] == "predictor"]) == 40
    for model, part in valid.groupby("model"):
        assert 0.2 < auroc(part) < 0.8, model


def test_folds_have_combinations_of_their_own(tiny_esm2: Path, tmp_path: Path) -> None:
    frame = motif_windows(120, folds=3)
    made = finetune(frame, tiny_esm2, tmp_path)
    rows = table(made["predictions"])
    test = rows[(rows["split"] == "test") & (rows["role"] == "predictor")]
    assert sorted(test["id"]) == sorted(frame["id"]) and auroc(test) > 0.9
    held = manifest(made["bundle"])["predictor"]
    assert held["rows"] == 120 and held["judged"]["rows"] == 120
    one = table(finetune(frame, tiny_esm2, tmp_path / "one", "--fold", "2")["predictions"])
    same = rows[(rows["fold"] == "2")].reset_index(drop=True)
    pd.testing.assert_frame_equal(one[one["role"] == "predictor"].reset_index(drop=True),
                                  same[same["role"] == "predictor"].reset_index(drop=True))


def test_old_behaviour_by_model(tiny_esm2: Path, tmp_path: Path) -> None:
    made = finetune(motif_windows(60), tiny_esm2, tmp_path, "--predictor", "model")
    assert "role" not in table(made["predictions"]).columns
    with zipfile.ZipFile(made["bundle"]) as opened:
        assert not [name for name in opened.namelist() if name.startswith("sequence_members")]


def test_training_sequences_can_be_left_out(tiny_esm2: Path, tmp_path: Path) -> None:
    frame = motif_windows(120)
    made = finetune(frame, tiny_esm2, tmp_path, "--without-sequences")
    held = manifest(made["bundle"])["predictor"]
    assert held["rows"] == 0
    assert {one["name"] for one in held["members"]} == {"composition", "dipeptides", "one-hot"}
    with zipfile.ZipFile(made["bundle"]) as opened:
        everything = b"".join(opened.read(name) for name in opened.namelist())
    assert not any(sequence.encode() in everything for sequence in frame["sequence"])


def test_numbers_and_whole_sequences(tiny_esm2: Path, tmp_path: Path) -> None:
    """A number that counts lysines: ridge on the composition knows it, an untrained model hardly."""
    generator = np.random.default_rng(8)
    texts = ["".join(generator.choice(AMINO, length)) for length in generator.integers(70, 110, 150)]
    frame = pd.DataFrame({
        "id": [f"p{n}" for n in range(150)], "sequence": texts,
        "label": [f"{10 * text.count('K') / len(text) + 3:.4f}" for text in texts],
        "split": [("train", "train", "train", "valid", "test")[n % 5] for n in range(150)],
    })
    made = finetune(frame, tiny_esm2, tmp_path, "--target", "number")
    rows = table(made["predictions"])
    test = rows[(rows["split"] == "test") & (rows["role"] == "predictor")]
    assert np.corrcoef(test["value"].astype(float), test["label"].astype(float))[0, 1] > 0.9
    bundle = load_bundle(made["bundle"], str(tiny_esm2), workdir=tmp_path / "again", device="cpu", precision="fp32")
    values, states = bundle.predict_with_states([texts[4], texts[9]])
    assert values.shape == (2, 1) and states.shape[0] == 2
    assert LANGUAGE_MODEL in bundle.explain([texts[4]]).members


def test_numbers_in_folds_keep_the_scale_of_the_bundle(tiny_esm2: Path, tmp_path: Path) -> None:
    """Labels far from zero: an answer on another scale would be far off, and the self-test would fail."""
    generator = np.random.default_rng(18)
    texts = ["".join(generator.choice(AMINO, 60)) for _ in range(90)]
    frame = pd.DataFrame({
        "id": [f"p{n}" for n in range(90)], "sequence": texts, "fold": [str(n % 3 + 1) for n in range(90)],
        "label": [f"{500 + 300 * text.count('K') / 60:.3f}" for text in texts],
    })
    made = finetune(frame, tiny_esm2, tmp_path, "--target", "number")
    rows = table(made["predictions"])
    test = rows[(rows["split"] == "test") & (rows["role"] == "predictor")]
    truth = test["label"].astype(float)
    assert np.abs(test["value"].astype(float) - truth).mean() < 0.6 * truth.std()
    bundle = load_bundle(made["bundle"], str(tiny_esm2), workdir=tmp_path / "again", device="cpu", precision="fp32")
    again = bundle.predict(texts)[:, 0]
    assert np.corrcoef(again, frame["label"].astype(float))[0, 1] > 0.8 and abs(again.mean() - 515) < 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda held: held["combination"]["members"].__setitem__(0, "ghost"), "ghost, which it does not hold"),
        (lambda held: held["combination"]["weights"].append(1.0), "weights for"),
        (lambda held: held["combination"]["weights"].__setitem__(0, -1.0), "weights"),
        (lambda held: held["members"][0].__setitem__("view", "../../etc"), "do not fit each other"),
        (lambda held: held["members"][0].__setitem__("kind", "pickle"), "kind 'pickle'"),
        (lambda held: held.__setitem__("rows", 10**5), "do not fit each other"),
        (lambda held: held["members"][-1]["setting"].__setitem__("gamma", 7.7), "fail their self-test"),
    ],
    ids=["missing member", "too many weights", "negative", "view", "kind", "rows", "other setting"],
)
def test_a_strangers_members_are_refused(
    trained_predictor: Path, tiny_esm2: Path, tmp_path: Path, change, message: str
) -> None:
    changed = tmp_path / "changed.zip"
    with zipfile.ZipFile(trained_predictor) as source, zipfile.ZipFile(changed, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name == "manifest.json":
                content = json.loads(data)
                change(content["predictor"])
                data = json.dumps(content).encode()
            target.writestr(name, data)
    with pytest.raises(UserError, match=message):
        load_bundle(changed, str(tiny_esm2), workdir=tmp_path / "work", device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def trained_predictor(tiny_esm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:  # as the tests themselves
        patch.setenv("GALAXY_SLOTS", "1")
        return finetune(motif_windows(120), tiny_esm2, tmp_path_factory.mktemp("trained"))["bundle"]


def test_equal_jobs_give_equal_bytes(trained_predictor: Path, tiny_esm2: Path, tmp_path: Path) -> None:
    again = finetune(motif_windows(120), tiny_esm2, tmp_path)["bundle"]
    assert again.read_bytes() == trained_predictor.read_bytes()


def test_one_class_in_validation_leaves_the_language_model_alone(tiny_esm2: Path, tmp_path: Path) -> None:
    frame = motif_windows(80)
    frame = frame[~((frame["split"] == "valid") & (frame["label"] == "1"))]
    made = finetune(frame, tiny_esm2, tmp_path)
    assert "one class only" in manifest(made["bundle"])["predictor"]["why_not"]
    assert "role" not in table(made["predictions"]).columns


def test_probabilities_of_several_classes_stay_right_where_other_groups_hold_other_shares() -> None:
    """Groups of one class each: biases learned on some groups would say that classes of the others do not occur."""
    rng = np.random.default_rng(5)
    groups = np.repeat(np.arange(12), 40)
    truth = (groups % 4).astype(np.int64)
    evidence = rng.normal(size=(2, len(truth), 4)) + 1.0 * np.eye(4)[truth]
    answers = {
        name: np.exp(1.5 * one) / np.exp(1.5 * one).sum(axis=1, keepdims=True)
        for name, one in zip(("one", "other"), evidence, strict=True)
    }
    task = Task("sequence", "class", tuple("abcd"))
    nowhere = np.full(len(truth), np.nan)
    heard = combining.Heard(answers, nowhere, (), truth, groups.astype(str), task)
    chosen = combining.choose(heard, 1).chosen
    assert set(chosen.combination.names) == {"one", "other"} and not chosen.combination.bias.any()
    single = -np.log(np.take_along_axis(answers["one"], truth[:, None], 1)).mean()
    assert chosen.loss < single


def test_rare_classes_count_where_several_are_told_apart() -> None:
    """A member that knows the rare classes and is badly calibrated beside one that knows the shares well."""
    rng = np.random.default_rng(8)
    truth = rng.choice(4, size=600, p=[0.85, 0.05, 0.05, 0.05]).astype(np.int64)
    task, groups, nowhere = Task("sequence", "class", tuple("abcd")), np.arange(600).astype(str), np.full(600, np.nan)
    shares = np.full((600, 4), 0.05) + np.array([0.8, 0, 0, 0]) + rng.uniform(0, 0.001, (600, 4))
    named = np.where(rng.random(600) < 0.7, truth, rng.integers(0, 4, 600))
    crisp = np.full((600, 4), 0.01) + 0.96 * np.eye(4)[named]
    answers = {"shares": shares / shares.sum(axis=1, keepdims=True), "crisp": crisp / crisp.sum(axis=1, keepdims=True)}
    heard = combining.Heard(answers, nowhere, (), truth, groups, task)

    def f1(values: np.ndarray) -> float:
        return float(f1_score(truth, values.argmax(axis=1), average="macro", zero_division=0))

    by_loss = combining.choose(heard, 1)
    by_both = combining.choose(heard, 1, quality=f1)
    scores = {one.name: f1(one.answers) for one in by_loss.candidates}
    highest = max(scores, key=lambda name: scores[name])
    clearly = scores[highest] > scores[by_loss.chosen.name] + combining.CLEARLY
    assert by_both.chosen.name == (highest if clearly else by_loss.chosen.name)
    for one in by_loss.candidates:  # whatever the loss says
        wanted = combining.choose(heard, 1, quality=lambda values, one=one: float(np.array_equal(values, one.answers)))
        assert wanted.chosen.name == one.name


def test_a_member_that_was_held_back_is_heard_in_full() -> None:
    """A strong penalty makes answers near one half: calibrated, they say as much as those of a weak one."""
    rng = np.random.default_rng(7)
    truth = np.repeat([0, 1], 60)
    logits = 2.0 * (truth - 0.5) + rng.normal(size=120)
    groups, nowhere = np.arange(120).astype(str), np.full(120, np.nan)
    chosen = {}
    for name, size in (("weak", 0.02), ("plain", 1.0)):
        positive = 1 / (1 + np.exp(-size * logits))
        answers = {"one": np.stack([1 - positive, positive], axis=1)}
        heard = combining.Heard(answers, nowhere, (), truth, groups, Task("sequence", "class", ("no", "yes"), "yes"))
        chosen[name] = combining.choose(heard, 1).chosen
    assert chosen["weak"].loss == pytest.approx(chosen["plain"].loss, abs=0.01)
    assert chosen["weak"].combination.weights[0] > 20
