"""Baselines: they learn what they can, see no test row, and reproduce published numbers on the tutorial's data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from plm.data import dataset_table
from plm.errors import UserError
from plm.jobs.evaluate import baseline_rows
from plm.model.members import features, kinds
from plm.scoring import baselines, cross_fitting
from plm.scoring.cross_fitting import LabelledTexts
from sklearn import metrics as sk

LETTERS = np.array(list(features.RESIDUES))


def windows(rows: int, seed: int, motif: bool) -> LabelledTexts:
    """Random windows of 15; with ``motif`` class 1 has R at place 4, which composition hardly shows."""
    rng = np.random.default_rng(seed)
    texts = rng.choice(LETTERS, (rows, 15))
    target = rng.integers(0, 2, rows)
    if motif:
        texts[target == 1, 4] = "R"
    groups = np.array([f"g{i // 2}" for i in range(rows)])
    return LabelledTexts(["".join(text) for text in texts], target, groups, aligned=True)


def test_features_by_hand() -> None:
    shares = features.composition(["AAC-", "XW"])
    assert shares[0, 0] == pytest.approx(2 / 3) and shares[0, 1] == pytest.approx(1 / 3)
    assert shares[1].sum() == pytest.approx(0.5)  # X is a residue, but no amino acid
    hot = features.one_hot(["AC", "-Y", "XA"])
    assert hot.shape == (3, 40) and hot.sum(axis=1).tolist() == [2, 1, 1]
    assert hot[0, 0] == 1 and hot[0, 20 + 1] == 1 and hot[1, 20 + 19] == 1
    pairs = features.dipeptides(["AAC", "AXC", "A"])
    assert pairs[0, 0] == pytest.approx(0.5) and pairs[0, 1] == pytest.approx(0.5)
    assert pairs[1:].sum() == 0


@pytest.mark.parametrize(
    ("position", "expected"), [(1, "--ACD"), (2, "-ACDE"), (3, "ACDEF"), (6, "EFG--")], ids=["first", "2", "3", "last"]
)
def test_window_is_centred_and_padded(position: int, expected: str) -> None:
    assert features.window_text("ACDEFG", position - 1, 5) == expected


def test_one_hot_finds_the_motif_that_composition_does_not() -> None:
    train, new = windows(400, 1, motif=True), windows(200, 2, motif=True)
    found = {one.name: one for one in baselines.answer_all(train, new, ("0", "1"), "auroc")}
    auroc = {name: sk.roc_auc_score(new.target, one.scores[:, 1]) for name, one in found.items()}
    assert auroc["baseline: one-hot"] > 0.95 > 0.85 > auroc["baseline: composition"]
    assert auroc["baseline: majority"] == 0.5
    assert found["baseline: one-hot"].inner_score > 0.9
    best = baselines.best_of(list(found.values()), "auroc")
    assert best.inner_score == max(one.inner_score for one in found.values() if one.inner_score == one.inner_score)
    assert best.name not in ("baseline: composition", "baseline: majority")


def test_no_signal_scores_like_chance() -> None:
    train, new = windows(300, 3, motif=False), windows(300, 4, motif=False)
    for one in baselines.answer_all(train, new, ("0", "1"), "auroc"):
        assert 0.38 < sk.roc_auc_score(new.target, one.scores[:, 1]) < 0.62, one.name


def test_answers_never_look_at_the_targets_of_new_rows() -> None:
    train, new = windows(100, 5, motif=True), windows(50, 6, motif=True)
    turned = LabelledTexts(new.texts, 1 - new.target, new.groups, True)
    for one, other in zip(
        baselines.answer_all(train, new, ("0", "1"), "auroc"),
        baselines.answer_all(train, turned, ("0", "1"), "auroc"),
        strict=True,
    ):
        assert np.array_equal(one.scores, other.scores) and np.array_equal(one.calls, other.calls)


def test_nearest_neighbour_finds_shifted_relatives() -> None:
    rng = np.random.default_rng(7)
    parents = ["".join(rng.choice(LETTERS, 33)) for _ in range(60)]
    target = rng.integers(0, 2, 60)
    groups = np.array([str(i) for i in range(60)])
    shifted = [parent[3:] + "AAA" for parent in parents]
    nearest = kinds.Neighbours("ungapped")
    [scores] = nearest.answers(features.ungapped(parents), target, features.ungapped(shifted), [{"k": 1}], 2)
    assert (scores.argmax(axis=1) == target).all() and len(groups) == 60
    long = kinds.Neighbours("words")
    doubled = ["".join(rng.choice(LETTERS, 40)) + parent * 3 for parent in parents]
    own, new = features.words([parent * 3 for parent in parents]), features.words(doubled)
    [scores] = long.answers(own, target, new, [{"k": 1}], 2)
    assert (scores.argmax(axis=1) == target).all()


def test_inner_folds_keep_groups_together() -> None:
    rows = windows(101, 8, motif=False)
    folds = cross_fitting.inner_folds(rows.target, rows.groups, True, 0)
    assert len(folds) == 5
    for learn, judge in folds:
        assert not set(rows.groups[learn]) & set(rows.groups[judge])
    assert sorted(np.concatenate([judge for _, judge in folds])) == list(range(101))


def test_numbers_and_missing_classes() -> None:
    rng = np.random.default_rng(9)
    texts = ["".join(rng.choice(LETTERS, 12)) for _ in range(200)]
    value = np.array([3.0 * text.count("K") + text.count("D") for text in texts])
    groups = np.array([str(i) for i in range(200)])
    rows = LabelledTexts(texts, value, groups, True)
    found = {
        one.name: one
        for one in baselines.answer_all(rows.rows(np.arange(150)), rows.rows(np.arange(150, 200)), (), "spearman")
    }
    assert np.corrcoef(found["baseline: composition"].scores, value[150:])[0, 1] > 0.95
    assert np.ptp(found["baseline: majority"].scores) == 0
    # A class that the training rows lack keeps its column, at probability 0.
    some = windows(60, 10, motif=True)
    [*answers] = baselines.answer_all(some, some, ("0", "1", "2"), "macro_f1")
    assert all(one.scores.shape == (60, 3) and np.allclose(one.scores.sum(axis=1), 1) for one in answers)
    assert all((one.scores[:, 2] == 0).all() for one in answers)


def test_one_group_has_no_inner_score_and_composition_is_the_one_to_beat() -> None:
    some = windows(40, 11, motif=True)
    alone = LabelledTexts(some.texts, some.target, np.array(["same"] * 40), True)
    answers = baselines.answer_all(alone, some, ("0", "1"), "auroc")
    assert all(np.isnan(one.inner_score) for one in answers)
    assert baselines.best_of(answers, "auroc").name == "baseline: composition"


def test_one_class_of_training_rows() -> None:
    some = windows(20, 12, motif=False)
    with pytest.raises(UserError, match="one class"):
        baselines.answer_all(
            LabelledTexts(some.texts, some.target * 0, some.groups, True), some, ("0", "1"), "auroc"
        )


def table(**columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame({"id": [f"r{i}" for i in range(len(next(iter(columns.values()))))], **columns})


def test_rows_are_found_by_id_and_cut_to_windows() -> None:
    frame = table(
        sequence=["ACDEFGHIKL", "ACDEFGHIKL", "MNPQRSTVWY"], label=["0", "1", "1"], position=["1", "5", "10"],
        split=["train", "train", "test"],
    )
    prepared = baseline_rows.prepare(frame, [("r2", "999")], ["1"], "binary", ("0", "1"), 5, "d")
    [part] = prepared.parts
    assert part.train.texts == ["--ACD", "DEFGH"] and part.new.texts == ["VWY--"]
    assert part.train.target.tolist() == [0, 1] and prepared.width == 5


def test_folds_answer_from_the_other_folds() -> None:
    frame = table(sequence=["ACDE", "CDEF", "DEFG", "EFGH"], label=["0", "1", "0", "1"], fold=["1", "1", "2", "2"])
    prepared = baseline_rows.prepare(frame, [("r0", ""), ("r3", "")], ["0", "1"], "binary", ("0", "1"), 33, "d")
    first, second = prepared.parts
    assert first.places.tolist() == [0] and first.train.texts == ["DEFG", "EFGH"]
    assert second.places.tolist() == [1] and second.train.texts == ["ACDE", "CDEF"]
    assert first.train.aligned


def test_residue_labels_become_rows() -> None:
    frame = table(sequence=["ACDEF", "GHIKL"], label=["HHE-E", "EEHHE"], split=["train", "test"])
    prepared = baseline_rows.prepare(frame, [("r1", "2"), ("r1", "3")], ["E", "H"], "binary", ("E", "H"), 3, "d")
    [part] = prepared.parts
    assert part.train.texts == ["-AC", "ACD", "CDE", "EF-"]  # the residue without a label is left out
    assert part.new.texts == ["GHI", "HIK"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": ("zz", "")}, "1 of 1 evaluated rows are not in the training table"),
        ({"label": "0"}, "is '0' in the predictions and '1' in the training table"),
        ({"key": ("r0", ""), "label": "0"}, "are training rows"),
        ({"drop": "split"}, "neither split nor fold"),
        ({"drop": "label"}, "no column label"),
        ({"classes": ("1", "2")}, "the class '0', which the predictions do not know"),
    ],
)
def test_mismatches_are_one_clear_line(change: dict[str, object], message: str) -> None:
    frame = table(sequence=["ACDE", "CDEF", "DEFG"], label=["0", "1", "1"], split=["train", "train", "test"])
    if "drop" in change:
        frame = frame.drop(columns=str(change["drop"]))
    key, label = change.get("key", ("r2", "")), str(change.get("label", "1"))
    with pytest.raises(UserError, match=message) as error:
        baseline_rows.prepare(frame, [key], [label], "binary", change.get("classes", ("0", "1")), 33, "d")  # type: ignore
    assert "\n" not in str(error.value)


def test_identity_to_training() -> None:
    frame = table(
        sequence=["ACDEFGHIKL", "ACDEFGHIKL", "WWWWWWWWWW"], label=["0", "1", "1"], split=["train", "test", "train"]
    )
    prepared = baseline_rows.prepare(frame, [("r1", "")], ["1"], "binary", ("0", "1"), 33, "d")
    assert prepared.nearest(1).tolist() == [1.0]


def test_residues_are_compared_by_their_proteins() -> None:
    """Identity to training is that of the protein, and no baseline compares every residue with every other."""
    generator = np.random.default_rng(4)
    proteins = ["".join(generator.choice(LETTERS, 90)) for _ in range(12)]
    proteins[11] = proteins[0]
    labels = ["".join("HE"[int(one in "AVILMFYW")] for one in text) for text in proteins]
    frame = pd.DataFrame({
        "id": [f"p{n}" for n in range(12)], "sequence": proteins, "label": labels,
        "split": ["train"] * 10 + ["test"] * 2,
    })
    keys = [(f"p{n}", str(at + 1)) for n in (10, 11) for at in range(90)]
    truth = [one for n in (10, 11) for one in labels[n]]
    prepared = baseline_rows.prepare(frame, keys, truth, "binary", ("E", "H"), 15, "d")
    identity = prepared.nearest(1)
    assert (identity[:90] == 0).all() and (identity[90:] == 1).all()
    answers = {one.name: one for one in prepared.answers(("E", "H"), "auroc", seed=1, most_rows=20_000)}
    assert set(answers) == {"baseline: majority", "baseline: composition", "baseline: dipeptides", "baseline: one-hot"}
    assert sk.roc_auc_score(np.array(truth) == "H", answers["baseline: one-hot"].scores[:, 1]) > 0.99


def fasta(path: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    from Bio import SeqIO

    rows = list(SeqIO.parse(path, "fasta"))
    labels = np.array([int(row.description.split("LABEL=")[1]) for row in rows])
    return [str(row.seq) for row in rows], labels, np.array([row.id.split("|")[1] for row in rows])


@pytest.mark.realdata
def test_tutorial_split_reproduces_the_published_baseline(shared_data: Path) -> None:
    """Composition and logistic regression on 160 of the tutorial's training windows (its random 80/20 cut, seed 42)."""
    from sklearn.model_selection import train_test_split

    texts, target, _ = fasta(shared_data / "dephos" / "gtn_train.fasta")
    new, truth, _ = fasta(shared_data / "dephos" / "gtn_test.fasta")
    chosen, _ = train_test_split(np.arange(len(texts)), test_size=0.2, random_state=42)
    seen = features.composition([texts[i] for i in chosen])
    logistic = kinds.Linear("composition", "", False, (True,))
    unscaled, scaled = (
        logistic.fit(seen, target[chosen], setting, 2).answer(features.composition(new))[:, 1]
        for setting in ({"C": 1.0, "scaled": False}, {"C": 10.0, "scaled": True})
    )
    assert sk.accuracy_score(truth, unscaled >= 0.5) == pytest.approx(0.78, abs=0.005)
    assert sk.roc_auc_score(truth, unscaled) == pytest.approx(0.829, abs=0.005)
    assert sk.matthews_corrcoef(truth, unscaled >= 0.5) == pytest.approx(0.567, abs=0.005)
    assert sk.accuracy_score(truth, scaled >= 0.5) == pytest.approx(0.82, abs=0.005)
    assert sk.roc_auc_score(truth, scaled) == pytest.approx(0.865, abs=0.005)


@pytest.mark.realdata
@pytest.mark.slow
@pytest.mark.parametrize(("name", "auroc"), [("dtl_Y.csv", 0.718), ("dtl_ST.csv", 0.786)])
def test_grouped_folds_reproduce_the_one_hot_baseline(shared_data: Path, name: str, auroc: float) -> None:
    raw = pd.read_csv(shared_data / "dephos" / name, dtype=str)
    clean = raw["sequence"].str.upper().str.replace(r"[^ACDEFGHIKLMNPQRSTVWY]", "X", regex=True)
    frame = pd.DataFrame({"id": [f"w{i}" for i in range(len(raw))], "sequence": clean, "label": raw["label"]})
    frame["group"], frame["fold"] = raw["accession"], (raw["group_fold"].astype(int) + 1).astype(str)
    frame["position"], frame["window"] = "17", "33"
    dataset_table.check_dataset(frame)
    classes = tuple(sorted(set(frame["label"])))
    keys = [(name, "") for name in frame["id"]]
    prepared = baseline_rows.prepare(frame, keys, list(frame["label"]), "binary", classes, 33, "d")
    truth = (frame["label"] == classes[-1]).to_numpy()
    scores = np.zeros(len(frame))
    for part in prepared.parts:
        seen, new = (features.one_hot(rows.texts) for rows in (part.train, part.new))
        setting = {"C": 0.1, "scaled": False}
        fitted = kinds.Linear("one-hot", "", False, (False,)).fit(seen, part.train.target, setting, 2)
        scores[part.places] = fitted.answer(new)[:, 1]
    assert sk.roc_auc_score(truth, scores) == pytest.approx(auroc, abs=0.02)
