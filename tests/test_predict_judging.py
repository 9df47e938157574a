"""Sets that hold the truth as often as promised, and distances that tell the strange from the familiar."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plm.errors import UserError
from plm.scoring.conformal import Errors, Intervals, LabelSets, binomial_interval, fewest_rows, limit
from plm.scoring.novelty import SHARE, Novelty, Space, summary
from scipy.special import softmax
from scipy.stats import binom

CLASSES = 4


def simulated(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of a fair but overconfident model over unequal classes, and the truth."""
    generator = np.random.default_rng(seed)
    truth = generator.choice(CLASSES, rows, p=[0.5, 0.3, 0.15, 0.05])
    logits = generator.normal(size=(rows, CLASSES)) + 1.2 * np.eye(CLASSES)[truth]
    return softmax(2.5 * logits, axis=1), truth


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9, 0.95])
def test_sets_hold_the_truth_as_often_as_promised_over_random_splits(coverage: float) -> None:
    probabilities, truth = simulated(4000, seed=1)
    generator = np.random.default_rng(2)
    outside, hits, asked = 0, 0, 0
    splits, count = 100, 199
    for _ in range(splits):
        order = generator.permutation(len(truth))
        known, new = order[:count], order[count : 2 * count]
        sets = LabelSets.fit(Errors.of(probabilities[known], truth[known], number=False), coverage)
        found = int(sets.sets(probabilities[new])[np.arange(count), truth[new]].sum())
        hits, asked = hits + found, asked + count
        # The coverage of a split varies with its calibration rows too: beta(k, n + 1 - k) mixed into the binomial.
        spread = math.sqrt(coverage * (1 - coverage) * (1 / count + 1 / count))
        outside += abs(found / count - coverage) > 1.96 * spread
    assert outside <= binom.ppf(0.999, splits, 0.05), outside
    # Rows come again in other splits, so the mean is judged as if of one set of rows.
    assert hits / asked == pytest.approx(coverage, abs=0.015)
    assert hits / asked >= coverage - 0.012


def test_sets_for_each_class_cover_each_class() -> None:
    probabilities, truth = simulated(40_000, seed=3)
    known = Errors.of(probabilities[:20_000], truth[:20_000], number=False)
    overall, each = LabelSets.fit(known, 0.9), LabelSets.fit(known, 0.9, by_class=True)
    new, right = probabilities[20_000:], truth[20_000:]

    def covered(sets: LabelSets) -> list[float]:
        return [float(sets.sets(new)[right == index, index].mean()) for index in range(CLASSES)]

    assert covered(each) == pytest.approx([0.9] * CLASSES, abs=0.02)
    assert max(covered(overall)) - min(covered(overall)) < 0.1  # here classes are equally hard
    assert each.covered() == pytest.approx([0.9] * CLASSES, abs=0.01)


def test_a_hard_class_is_covered_only_if_each_class_is_asked_for() -> None:
    generator = np.random.default_rng(5)
    truth = (generator.random(20_000) < 0.1).astype(int)
    logits = np.stack([generator.normal(size=len(truth)) + 1.5, generator.normal(size=len(truth)) + truth], axis=1)
    probabilities = softmax(logits, axis=1)
    known = Errors.of(probabilities[:10_000], truth[:10_000], number=False)
    rare = truth[10_000:] == 1

    def covered(sets: LabelSets) -> float:
        return float(sets.sets(probabilities[10_000:])[rare, 1].mean())

    assert covered(LabelSets.fit(known, 0.9)) < 0.75
    assert covered(LabelSets.fit(known, 0.9, by_class=True)) == pytest.approx(0.9, abs=0.03)


def test_intervals_hold_the_truth_as_often_as_promised() -> None:
    generator = np.random.default_rng(7)
    truth = generator.normal(size=20_000)
    numbers = (truth + generator.standard_t(3, size=len(truth)))[:, None]
    made = Intervals.fit(Errors.of(numbers[:10_000], truth[:10_000], number=True), 0.9)
    low, high = made.ends(numbers[10_000:, 0])
    assert np.mean((low <= truth[10_000:]) & (truth[10_000:] <= high)) == pytest.approx(0.9, abs=0.015)
    assert made.rows == 10_000


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=60),
    st.floats(0.01, 0.99),
    st.floats(0.01, 0.99),
)
def test_limits_grow_with_the_coverage_and_keep_the_promise_in_the_sample(
    scores: list[float], one: float, other: float
) -> None:
    low, high = sorted((one, other))
    values = np.array(scores)
    assert limit(values, low) <= limit(values, high)
    # At least ceil((n + 1) coverage) of n + 1 rows, the new one counted as a miss.
    assert (values <= limit(values, high)).sum() >= min(len(values), math.ceil((len(values) + 1) * high - 1e-6))
    assert math.isinf(limit(values, high)) == (math.ceil(round((len(values) + 1) * high, 9)) > len(values))


@given(st.integers(1, 40), st.integers(0, 10_000))
def test_sets_grow_with_the_coverage(rows: int, seed: int) -> None:
    probabilities, truth = simulated(rows, seed)
    errors = Errors.of(probabilities, truth, number=False)
    new, _ = simulated(30, seed + 1)
    for by_class in (False, True):
        smaller = LabelSets.fit(errors, 0.6, by_class=by_class).sets(new)
        larger = LabelSets.fit(errors, 0.85, by_class=by_class).sets(new)
        assert not (smaller & ~larger).any()


def test_too_few_rows_give_every_class_and_say_so() -> None:
    probabilities, truth = simulated(8, seed=1)
    errors = Errors.of(probabilities, truth, number=False)
    assert fewest_rows(0.9) == 9
    sets = LabelSets.fit(errors, 0.9)
    assert sets.sets(probabilities).all() and sets.unlimited == list(range(CLASSES))
    assert math.isinf(Intervals.fit(Errors.of(probabilities[:, :1], truth, number=True), 0.9).radius)


def test_errors_survive_a_manifest_and_large_ones_are_thinned_evenly() -> None:
    probabilities, truth = simulated(5000, seed=4)
    errors = Errors.of(probabilities, truth, number=False)
    again = Errors.from_json(errors.to_json())
    assert again.outputs == CLASSES and again.classes is not None
    np.testing.assert_allclose(again.scores, errors.scores[::3], atol=1e-8)
    assert LabelSets.fit(again, 0.9).limits[0] == pytest.approx(LabelSets.fit(errors, 0.9).limits[0], abs=0.02)
    numbers = Errors.of(probabilities[:, :1], truth, number=True)
    assert Errors.from_json(numbers.to_json()).classes is None
    for broken in ({}, {"scores": ["x"], "outputs": 1}, {"scores": [0.1], "classes": [7], "outputs": 2}):
        with pytest.raises(UserError, match="validation errors"):
            Errors.from_json(broken)


def test_binomial_intervals_are_those_of_clopper_and_pearson() -> None:
    assert binomial_interval(0, 10) == pytest.approx((0, 0.3085), abs=1e-4)
    assert binomial_interval(10, 10) == pytest.approx((0.6915, 1), abs=1e-4)
    assert binomial_interval(5, 10) == pytest.approx((0.1871, 0.8129), abs=1e-4)


# -- novelty --------------------


def kinds(rows: int, seed: int, shift: float = 0.0) -> np.ndarray:
    """Proteins around five centres, in numbers of very unequal size; ``shift`` moves them elsewhere."""
    centres = np.random.default_rng(0).normal(size=(5, 12))
    generator = np.random.default_rng(seed)
    values = centres[generator.integers(5, size=rows)] + 0.3 * generator.normal(size=(rows, 12)) + shift
    return values * np.logspace(-2, 2, 12) + 7


def novelty(share: float = SHARE) -> Novelty:
    reference = kinds(200, 1)
    content = summary(reference, [(np.arange(200), kinds(400, 2))])
    made = Novelty.of(([f"t{i}" for i in range(200)], ["x"] * 200, reference), content, share)
    assert made is not None
    return made


def test_strange_proteins_are_novel_and_familiar_ones_rarely() -> None:
    judged = novelty()
    assert judged.from_validation and judged.rows == 400
    _, familiar, _ = judged.judge(kinds(2000, 3))
    assert familiar.mean() == pytest.approx(SHARE, abs=0.035)
    _, strange, _ = judged.judge(kinds(200, 4, shift=2.0))
    assert strange.mean() > 0.95
    assert novelty(0.2).threshold < judged.threshold < novelty(0.01).threshold


def test_distances_do_not_depend_on_the_units_of_the_numbers() -> None:
    reference, asked = kinds(100, 1) - 7, kinds(50, 2) - 7  # far from 0, 16 bits hold little of the spread
    factors = np.logspace(0, 1, 12)
    one, near = Space.of(reference).distances(asked, 3)
    other, near_too = Space.of(reference * factors).distances(asked * factors, 3)
    np.testing.assert_allclose(one, other, rtol=0.01)  # both are rounded to 16 bits
    assert (near == near_too).mean() > 0.9


def test_a_training_protein_is_its_own_nearest() -> None:
    reference = kinds(60, 1)
    _, nearest = Space.of(reference).distances(reference, 1)
    assert nearest.tolist() == list(range(60))


def test_without_validation_distances_the_training_proteins_judge_each_other() -> None:
    reference = kinds(200, 1)
    made = Novelty.of(([f"t{i}" for i in range(200)], ["x"] * 200, reference), None, SHARE)
    assert made is not None and not made.from_validation and made.rows == 200
    own = made.space.own_distances(3)
    assert (own > 0.05).all() and (own > made.threshold).mean() <= SHARE
    twins = Space.of(np.repeat(reference[:20], 2, axis=0))
    assert (twins.own_distances(1) < 1e-3).all()


def test_folds_compare_with_their_own_training_rows_alone() -> None:
    reference = kinds(40, 1)
    halves = np.arange(20), np.arange(20, 40)
    told = summary(reference, [(halves[0], reference[20:]), (halves[1], reference[:20])], k=1)
    assert min(told["distances"]) > 0.05  # no protein met itself
    assert summary(reference, [(np.arange(0), reference)]) == {}


def test_a_constant_number_and_a_single_protein_do_no_harm() -> None:
    reference = kinds(30, 1)
    reference[:, 4] = 2.0
    distance, _ = Space.of(reference).distances(kinds(5, 2), 3)
    assert np.isfinite(distance).all()
    assert Novelty.of((["a"], ["x"], reference[:1]), None, SHARE) is None
    assert Novelty.of(([], [], reference[:0]), None, SHARE) is None
    with pytest.raises(UserError, match="make no sense"):
        Novelty.of((["a"], ["x"], reference[:1]), {"k": 3, "rows": 2, "distances": ["far"]}, SHARE)
