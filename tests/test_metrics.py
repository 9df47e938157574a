"""Scores against scikit-learn and hand-computed values; intervals against simulation."""

from __future__ import annotations

import numpy as np
import pytest
from plm.errors import UserError
from plm.scoring import comparison, intervals, metrics
from plm.scoring.metrics import ALL, Scored, in_top, main_metric, score
from sklearn import metrics as sk


def binary(rows: int = 300, seed: int = 0, ties: bool = False) -> Scored:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, rows)
    positive = 1 / (1 + np.exp(-(1.5 * (truth - 0.5) + rng.normal(size=rows))))
    if ties:
        positive = np.round(positive, 1)
    scores = np.stack([1 - positive, positive], axis=1)
    return Scored("binary", truth, scores, (positive >= 0.5).astype(int), ("0", "1"))


def multiclass(rows: int = 400, seed: int = 0) -> Scored:
    rng = np.random.default_rng(seed)
    truth = rng.choice(4, rows, p=[0.5, 0.3, 0.15, 0.05])
    logits = rng.normal(size=(rows, 4)) + 1.2 * np.eye(4)[truth]
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return Scored("multiclass", truth, scores, scores.argmax(axis=1), ("A", "B", "C", "D"))


def number(rows: int = 200, seed: int = 0) -> Scored:
    rng = np.random.default_rng(seed)
    truth = np.round(rng.normal(size=rows), 1)
    return Scored("number", truth, np.round(truth + rng.normal(size=rows), 1), np.zeros(rows, dtype=int))


ALL_KINDS = [binary(), binary(ties=True), multiclass(), number()]


def test_binary_by_hand() -> None:
    # TP 3, FN 1, FP 2, TN 4.
    truth = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0])
    positive = np.array([0.9, 0.8, 0.7, 0.4, 0.6, 0.55, 0.3, 0.2, 0.1, 0.05])
    scored = Scored("binary", truth, np.stack([1 - positive, positive], 1), (positive >= 0.5).astype(int), ("n", "y"))
    found = {name: value for (name, _), value in metrics.score(scored).items()}
    assert found["sensitivity"] == pytest.approx(0.75) and found["specificity"] == pytest.approx(4 / 6)
    assert found["precision"] == pytest.approx(0.6) and found["f1"] == pytest.approx(6 / 9)
    assert found["accuracy"] == pytest.approx(0.7)
    assert found["balanced_accuracy"] == pytest.approx((0.75 + 4 / 6) / 2)
    assert found["mcc"] == pytest.approx((3 * 4 - 2 * 1) / np.sqrt(5 * 4 * 6 * 5))
    assert found["auroc"] == pytest.approx(22 / 24)  # two of 24 pairs are the wrong way round
    assert found["auprc"] == pytest.approx((1 + 1 + 1 + 4 / 6) / 4)
    assert found["brier"] == pytest.approx(np.mean((positive - truth) ** 2))


def test_multiclass_equals_scikit_learn() -> None:
    scored = multiclass()
    found = metrics.score(scored)
    assert found["macro_f1", ALL] == pytest.approx(sk.f1_score(scored.truth, scored.calls, average="macro"))
    assert found["macro_auroc", ALL] == pytest.approx(
        sk.roc_auc_score(scored.truth, scored.scores, multi_class="ovr", average="macro")
    )
    assert found["mcc", ALL] == pytest.approx(sk.matthews_corrcoef(scored.truth, scored.calls))
    assert found["balanced_accuracy", ALL] == pytest.approx(sk.balanced_accuracy_score(scored.truth, scored.calls))
    report = sk.classification_report(scored.truth, scored.calls, output_dict=True)
    assert found["f1", "D"] == pytest.approx(report["3"]["f1-score"])
    assert found["sensitivity", "C"] == pytest.approx(report["2"]["recall"])


@pytest.mark.parametrize("scored", ALL_KINDS, ids=["binary", "ties", "multiclass", "number"])
def test_weights_of_one_equal_the_plain_scores(scored: Scored) -> None:
    plain = metrics.score(scored)
    weighted = intervals.weighted_scores(scored, np.ones((2, len(scored.truth))))
    assert list(plain) == list(weighted)
    for key, value in plain.items():
        assert weighted[key] == pytest.approx([value, value], abs=1e-9), key


@pytest.mark.parametrize("scored", ALL_KINDS, ids=["binary", "ties", "multiclass", "number"])
def test_a_resample_equals_the_scores_of_its_repeated_rows(scored: Scored) -> None:
    groups, count = intervals.group_index([f"g{i % 17}" for i in range(len(scored.truth))])
    draws = intervals.draw_groups(count, 3, seed=5)
    together = intervals.bootstrap(scored, groups, draws)
    for resample, draw in enumerate(draws):
        taken = np.repeat(np.arange(len(groups)), draw[groups])
        repeated = Scored(scored.kind, scored.truth[taken], scored.scores[taken], scored.calls[taken], scored.classes)
        for key, value in metrics.score(repeated).items():
            assert together[key][resample] == pytest.approx(value, abs=1e-9, nan_ok=True), key


def test_blocks_of_resamples_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    scored = binary(60)
    groups, count = intervals.group_index([str(i // 3) for i in range(60)])
    draws = intervals.draw_groups(count, 50, seed=1)
    whole = intervals.bootstrap(scored, groups, draws)
    monkeypatch.setattr(intervals, "_ELEMENTS", 7 * 60)
    for key, values in intervals.bootstrap(scored, groups, draws).items():
        assert np.allclose(values, whole[key], equal_nan=True, atol=1e-12)


def test_groups_widen_the_interval() -> None:
    scored = binary(400, seed=3)
    copies = Scored(
        "binary", *(np.repeat(x, 5, axis=0) for x in (scored.truth, scored.scores, scored.calls)), ("0", "1")
    )
    width = {}
    for name, groups in {"rows": range(2000), "groups": np.repeat(np.arange(400), 5)}.items():
        index, count = intervals.group_index([str(g) for g in groups])
        low, high = intervals.interval(
            intervals.bootstrap(copies, index, intervals.draw_groups(count, 500, 0))["auroc", ALL]
        )
        width[name] = high - low
    assert width["groups"] > 1.7 * width["rows"]  # five copies of a row tell no more than one: factor sqrt(5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["auroc", "mcc", "spearman"])
def test_coverage_of_the_interval(kind: str) -> None:
    """Groups share an effect; the 95 % interval must hold the population's value in about 95 of 100 samples."""
    rng = np.random.default_rng(11)

    def sample(groups: int) -> tuple[Scored, np.ndarray]:
        index = np.repeat(np.arange(groups), 5)
        shared = rng.normal(size=groups)[index]
        if kind == "spearman":
            truth = rng.normal(size=len(index)) + shared
            return Scored("number", truth, truth + shared + rng.normal(size=len(index)), index * 0), index
        truth = (rng.random(groups) < 0.5).astype(int)[index]  # whole groups have one class
        positive = 1 / (1 + np.exp(-(1.2 * (truth - 0.5) + 0.7 * shared + rng.normal(size=len(index)))))
        calls = (positive >= 0.5).astype(int)
        return Scored("binary", truth, np.stack([1 - positive, positive], 1), calls, ("0", "1")), index

    population = metrics.score(sample(60_000)[0])[kind, ALL]
    held = 0
    for trial in range(200):
        scored, index = sample(60)
        values = intervals.bootstrap(scored, index, intervals.draw_groups(60, 400, trial))[kind, ALL]
        low, high = intervals.interval(values)
        held += low <= population <= high
    assert 0.88 <= held / 200 <= 0.99


def test_a_class_missing_from_the_truth_is_undefined_and_left_out_of_the_macro() -> None:
    scored = multiclass()
    without = scored.rows(scored.truth != 3)
    found = metrics.score(without)
    assert np.isnan(found["f1", "D"]) and np.isfinite(found["macro_f1", ALL])
    assert metrics.why_undefined(without, ("f1", "D")) == "no rows of class D"
    one = binary().rows(binary().truth == 1)
    assert np.isnan(metrics.score(one)["auroc", ALL])
    assert metrics.why_undefined(one, ("auroc", ALL)) == "only class 1 among these rows"


def test_constant_numbers_are_undefined() -> None:
    flat = Scored("number", np.arange(5.0), np.ones(5), np.zeros(5, dtype=int))
    assert np.isnan(metrics.score(flat)["spearman", ALL]) and np.isfinite(metrics.score(flat)["rmse", ALL])
    assert metrics.why_undefined(flat, ("spearman", ALL)) == "the predictions are all equal"


def test_an_interval_needs_defined_resamples() -> None:
    assert np.isnan(intervals.interval(np.array([np.nan] * 20 + [1.0] * 80))[0])
    assert intervals.interval(np.arange(1001.0)) == pytest.approx((25.0, 975.0))


def test_comparison_sees_a_real_difference_and_no_other() -> None:
    good, bad = binary(500, seed=1), binary(500, seed=1)
    noise = np.random.default_rng(2).random(500)
    bad = Scored("binary", good.truth, np.stack([1 - noise, noise], 1), (noise >= 0.5).astype(int), ("0", "1"))
    index = np.arange(500)
    draws = intervals.draw_groups(500, 400, 0)
    resampled = [intervals.bootstrap(model, index, draws)["auroc", ALL] for model in (good, bad)]
    value = [metrics.score(model)["auroc", ALL] for model in (good, bad)]
    found = comparison.compare(("a", "b"), "auroc", (value[0], value[1]), (resampled[0], resampled[1]))
    assert found.verdict == "beats" and found.p_value < 0.01
    assert found.low < found.difference < found.high
    turned = comparison.compare(("b", "a"), "auroc", (value[1], value[0]), (resampled[1], resampled[0]))
    assert turned.verdict == "is worse than" and turned.low == pytest.approx(-found.high)
    same = comparison.compare(("a", "a"), "auroc", (value[0], value[0]), (resampled[0], resampled[0]))
    assert same.verdict == "is not shown to be better than" and same.p_value == 1
    few = comparison.compare(("a", "b"), "auroc", (value[0], value[1]), None)
    assert few.verdict == "cannot be told from"


def test_lower_is_better_for_errors() -> None:
    smaller = comparison.compare(("a", "b"), "rmse", (1.0, 2.0), (np.full(50, 1.0), np.full(50, 2.0)))
    assert smaller.verdict == "beats" and smaller.difference == -1


def test_main_metric() -> None:
    assert metrics.main_metric("binary") == "auroc" and metrics.main_metric("number", "r2") == "r2"
    with pytest.raises(UserError, match="--main-metric rmse"):
        metrics.main_metric("binary", "rmse")


def many_classes(seed: int, rows: int, classes: int) -> Scored:
    """Random answers with ties, classes that never occur and classes that are never called."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, max(1, classes - 3), rows)
    scores = generator.integers(0, 6, (rows, classes)).astype(np.float64) + generator.random((rows, classes)) * (
        generator.random((rows, 1)) < 0.7
    )
    scores[np.arange(rows), truth] += 2
    scores /= scores.sum(1, keepdims=True)
    return Scored("multiclass", truth, scores, scores.argmax(1), tuple(f"c{k:02d}" for k in range(classes)))


@pytest.mark.parametrize("seed", range(4))
def test_many_classes_together_score_as_one_by_one(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    scored = many_classes(seed, 90, 25)
    weights = np.random.default_rng(seed).multinomial(90, np.full(90, 1 / 90), size=20)
    one_by_one = intervals.weighted_scores(scored, weights)
    plain_scores = score(scored)
    monkeypatch.setattr(metrics, "MANY_CLASSES", 10)
    monkeypatch.setattr(metrics, "_COLUMNS", 32)
    together = intervals.weighted_scores(scored, weights)
    assert list(together) == list(one_by_one) == list(score(scored))
    for key, values in one_by_one.items():
        np.testing.assert_allclose(together[key], values, atol=1e-9, err_msg=str(key))
    plain = intervals.weighted_scores(scored, np.ones((1, 90), int))
    many_scores = score(scored)
    for key, value in plain_scores.items():
        np.testing.assert_allclose(plain[key][0], value, atol=1e-9, err_msg=str(key))
        np.testing.assert_allclose(many_scores[key], value, atol=1e-9, err_msg=str(key))


@pytest.mark.parametrize(("classes", "names"), [(8, []), (12, ["top5_accuracy"]),
                                                (30, ["top5_accuracy", "top10_accuracy"])])
def test_top_accuracies_are_scikit_learns_and_only_of_many_classes(classes: int, names: list[str]) -> None:
    from sklearn.metrics import top_k_accuracy_score

    generator = np.random.default_rng(classes)
    truth, scores = generator.integers(0, classes, 200), generator.random((200, classes))
    scored = Scored("multiclass", truth, scores, scores.argmax(1), tuple(map(str, range(classes))))
    result = score(scored)
    assert [key[0] for key in result if key[0].startswith("top")] == names
    for name in names:
        count = int(name.removeprefix("top").removesuffix("_accuracy"))
        wanted = top_k_accuracy_score(truth, scores, k=count, labels=range(classes))
        assert result[name, "all"] == pytest.approx(wanted)


def test_equal_probabilities_are_taken_in_any_order() -> None:
    scored = Scored("multiclass", np.array([3, 0]), np.array([[0.25] * 4, [0.1, 0.3, 0.3, 0.3]]), np.array([0, 1]))
    assert in_top(scored, 1).tolist() == [0.25, 0.0] and in_top(scored, 3).tolist() == [0.75, 0.0]
    assert in_top(scored, 4).tolist() == [1.0, 1.0]
    with pytest.raises(UserError, match=r"top10_accuracy says nothing of 12 classes"):
        main_metric("multiclass", "top10_accuracy", 12)
    assert main_metric("multiclass", "top10_accuracy", 1195) == "top10_accuracy"
