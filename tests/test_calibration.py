"""Temperature, thresholds, calibration error and prior shift against hand-computed and simulated truths."""

from __future__ import annotations

import numpy as np
import pytest
from plm.data.task import LIKELIEST, Task
from plm.errors import UserError
from plm.scoring import calibration
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, matthews_corrcoef


@pytest.mark.parametrize("true_temperature", [0.5, 1.0, 3.0])
def test_temperature_recovers_the_one_that_made_the_labels(true_temperature: float) -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(20_000, 3)) * 3
    calibrated = calibration.apply_temperature(logits, true_temperature)
    labels = (calibrated.cumsum(axis=1) < rng.random((len(logits), 1))).sum(axis=1)
    assert calibration.fit_temperature(logits, labels) == pytest.approx(true_temperature, rel=0.05)


def test_temperature_of_probabilities_equals_that_of_logits() -> None:
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(300, 2)) * 2
    labels = rng.integers(0, 2, 300)
    probabilities = calibration.apply_temperature(logits, 1.0)
    from_probabilities = calibration.fit_temperature(calibration.log_probabilities(probabilities), labels)
    assert from_probabilities == pytest.approx(calibration.fit_temperature(logits, labels), rel=1e-3)


def test_a_few_separated_rows_do_not_claim_certainty() -> None:
    logits = np.array([[2.0, -2.0]] * 5 + [[-2.0, 2.0]] * 5)
    temperature = calibration.fit_temperature(logits, [0] * 5 + [1] * 5)
    assert 0.3 < temperature <= 1.0


def test_temperature_needs_rows() -> None:
    with pytest.raises(UserError, match="validation rows"):
        calibration.fit_temperature(np.zeros((0, 2)), [])


def test_apply_temperature_keeps_ranks_and_sums() -> None:
    logits = np.random.default_rng(0).normal(size=(50, 4))
    cool, hot = (calibration.apply_temperature(logits, t) for t in (0.5, 5.0))
    assert np.allclose(cool.sum(axis=1), 1) and np.array_equal(cool.argmax(1), hot.argmax(1))
    assert (cool.max(1) > hot.max(1)).all()


def test_ece_by_hand() -> None:
    # Two bins filled: 0.15 (1 of 2 positive: gap 0.35) and 0.95 (2 of 2: gap 0.05).
    assert calibration.ece([0.15, 0.15, 0.95, 0.95], [0, 1, 1, 1]) == pytest.approx((0.35 * 2 + 0.05 * 2) / 4)
    # Top label: confidences 0.7 (right) and 0.6 (wrong).
    several = calibration.ece([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3]], [0, 2])
    assert several == pytest.approx((0.3 + 0.6) / 2)


def test_reliability_points() -> None:
    mean, frequency, count = calibration.reliability([0.1, 0.12, 0.9, 1.0], [0, 1, 1, 1], bins=10)
    assert np.allclose(mean, [0.11, 0.95]) and np.allclose(frequency, [0.5, 1]) and list(count) == [2, 2]


@pytest.mark.parametrize("seed", range(5))
def test_threshold_reaches_the_best_mcc_of_all_cuts(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, 40)
    scores = np.round(np.clip(0.5 + 0.2 * (truth - 0.5) + rng.normal(size=40) * 0.2, 0, 1), 2)
    threshold = calibration.choose_threshold(scores, truth)
    best = max(matthews_corrcoef(truth, scores >= cut) for cut in np.append(scores, 1.1))
    assert matthews_corrcoef(truth, scores >= threshold) == pytest.approx(best)


def test_threshold_prefers_the_middle_and_needs_both_classes() -> None:
    assert calibration.choose_threshold([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1]) == pytest.approx(0.5)
    assert calibration.choose_threshold([0.01, 0.02, 0.1, 0.2], [0, 0, 1, 1]) == pytest.approx(0.06)
    with pytest.raises(UserError, match="both classes"):
        calibration.choose_threshold([0.1, 0.9], [1, 1])
    with pytest.raises(UserError, match="Unknown metric"):
        calibration.choose_threshold([0.1, 0.9], [0, 1], metric="luck")  # type: ignore[arg-type]


@pytest.mark.parametrize("fpr", [0.0, 0.05, 0.2, 0.5, 1.0])
def test_false_positive_rate_is_kept_and_not_wasted(fpr: float) -> None:
    rng = np.random.default_rng(3)
    scores, truth = rng.random(300), rng.integers(0, 2, 300)
    threshold = calibration.threshold_for_fpr(scores, truth, fpr)
    negatives = scores[truth == 0]
    assert (negatives >= threshold).mean() <= fpr
    lower = np.nextafter(threshold, -np.inf)
    assert fpr == 1 or (negatives >= lower).mean() > fpr or fpr == 0


def test_false_positive_rate_with_ties_and_bad_values() -> None:
    threshold = calibration.threshold_for_fpr([0.4] * 10 + [0.9], [0] * 10 + [1], 0.1)
    assert 0.4 < threshold <= 0.9
    with pytest.raises(UserError, match="between 0 and 1"):
        calibration.threshold_for_fpr([0.1], [0], 5)
    with pytest.raises(UserError, match="negative rows"):
        calibration.threshold_for_fpr([0.1], [1], 0.1)


def test_prevalence_by_bayes() -> None:
    # Likelihood ratio 3 at 50 % training prevalence gives 0.75; at 2 % prior odds 1:49 it gives 3 / 52.
    assert calibration.adjust_prevalence([0.75], 0.5, 0.02)[0] == pytest.approx(3 / 52)
    assert np.allclose(calibration.adjust_prevalence([0.2, 0.9], 0.3, 0.3), [0.2, 0.9])
    two = calibration.adjust_prevalence([[0.25, 0.75]], [0.5, 0.5], [0.98, 0.02])
    assert two[0, 1] == pytest.approx(3 / 52) and two.sum() == pytest.approx(1)
    with pytest.raises(UserError, match="target prevalence"):
        calibration.adjust_prevalence([0.5], 0.5, 1.0)


def test_thresholds_of_several_classes_call_rare_ones_where_that_pays() -> None:
    rng = np.random.default_rng(3)
    shares = np.array([0.8, 0.15, 0.05])
    truth = rng.choice(3, size=3000, p=shares)
    # Bayes-optimal probabilities from weak evidence: the likeliest class is nearly always the commonest.
    evidence = rng.normal(size=(3000, 3))
    evidence[np.arange(3000), truth] += 1.2
    values = shares * np.exp(1.2 * evidence)
    values /= values.sum(axis=1, keepdims=True)
    learn, judge = slice(0, 1500), slice(1500, None)
    thresholds = calibration.choose_class_thresholds(values[learn], truth[learn])
    assert all(0 < one <= 1 for one in thresholds) and thresholds[0] > thresholds[1] > thresholds[2]
    task = Task("sequence", "class", ("common", "some", "rare"))

    def f1(calls: np.ndarray) -> float:
        return float(f1_score(truth[judge], calls, average="macro"))

    assert f1(task.called(values[judge], thresholds)) > f1(task.called(values[judge], LIKELIEST)) + 0.05
    assert task.calls(values[judge][:1], thresholds)[0] in task.classes


def test_thresholds_of_several_classes_agree_with_scikit_learn_on_every_metric() -> None:
    rng = np.random.default_rng(4)
    truth, calls = rng.integers(0, 4, 300), rng.integers(0, 4, 300)
    for metric, expected in (
        ("macro_f1", f1_score(truth, calls, average="macro")), ("accuracy", accuracy_score(truth, calls)),
        ("balanced_accuracy", balanced_accuracy_score(truth, calls)), ("mcc", matthews_corrcoef(truth, calls)),
    ):
        assert calibration._call_quality(calls, truth, 4, metric) == pytest.approx(expected)


def test_thresholds_of_certain_answers_call_the_likeliest() -> None:
    truth = np.array([0, 1, 2] * 20)
    assert set(calibration.choose_class_thresholds(np.eye(3)[truth] * 0.9 + 0.05, truth)) == {1.0}
    assert calibration.threshold_for(np.eye(3)[[0, 0]], [0, 0], positive=None) == LIKELIEST
    with pytest.raises(UserError, match="only one"):
        calibration.choose_class_thresholds(np.eye(3)[[0, 0]], [0, 0])
    with pytest.raises(UserError, match="Unknown metric"):
        calibration.choose_class_thresholds(np.eye(3), [0, 1, 2], "auroc")
