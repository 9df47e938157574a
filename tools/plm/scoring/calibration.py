"""Probabilities that mean what they say: temperature, thresholds, expected calibration error, prior shift.

Everything here is fitted on validation rows, never on test rows; labels are class indices (0-based).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from plm.data.task import LIKELIEST, Threshold
from plm.errors import UserError

Floats = NDArray[np.float64]
ThresholdMetric = Literal["mcc", "f1", "balanced_accuracy", "accuracy"]
TEMPERATURE_RANGE = (0.05, 20.0)
_SMALLEST = 1e-12


def log_probabilities(probabilities: ArrayLike) -> Floats:
    """Probabilities (N, K) as logits: ``log p``, kept finite; ``softmax`` of them gives ``p`` back."""
    return np.log(np.clip(np.asarray(probabilities, dtype=np.float64), _SMALLEST, 1.0))


def fit_temperature(logits: ArrayLike, labels: ArrayLike, *, prior_sd: float = 1.0) -> float:
    """Temperature that makes ``softmax(logits / T)`` fit held-out labels best (Guo et al. 2017).

    A weak prior, log T ~ Normal(0, ``prior_sd``), keeps a handful of perfectly separated validation rows from
    claiming certainty; with many rows it vanishes.

    Args:
        logits: (N, K) scores; probabilities go in as :func:`log_probabilities`.
        labels: (N,) class indices.
        prior_sd: Standard deviation of the prior on log T.

    Returns:
        T within 0.05 to 20; above 1 softens, below 1 sharpens.

    Raises:
        UserError: No rows to fit on.
    """
    scores, truth = np.asarray(logits, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    if not len(truth):
        raise UserError("Calibration needs validation rows and there are none", fix="Give some rows split=valid")
    rows = np.arange(len(truth))

    def cost(log_temperature: float) -> float:
        fit = -log_softmax(scores / np.exp(log_temperature), axis=1)[rows, truth].sum()
        return float(fit + 0.5 * (log_temperature / prior_sd) ** 2)

    bounds = (float(np.log(TEMPERATURE_RANGE[0])), float(np.log(TEMPERATURE_RANGE[1])))
    minimum = minimize_scalar(cost, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return float(np.exp(minimum.x))


def apply_temperature(logits: ArrayLike, temperature: float) -> Floats:
    """Calibrated probabilities (N, K) float64: ``softmax(logits / temperature)``."""
    calibrated: Floats = softmax(np.asarray(logits, dtype=np.float64) / temperature, axis=1)
    return calibrated


def ece(probabilities: ArrayLike, labels: ArrayLike, bins: int = 10) -> float:
    """Expected calibration error with equal-width bins (Naeini et al. 2015; Guo et al. 2017), 0 (best) to 1.

    Args:
        probabilities: (N,) of the positive class (labels 0 or 1), compared with the frequency of positives;
            or (N, K), where the confidence of the called class is compared with accuracy.
        labels: (N,) class indices.
        bins: Number of bins over 0 to 1.
    """
    confidence, hit = _confidence_and_hit(probabilities, labels)
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    gap = np.bincount(index, weights=confidence - hit, minlength=bins)
    return float(np.abs(gap).sum() / len(confidence))


def chance_ece(probabilities: ArrayLike, bins: int = 10, draws: int = 500, seed: int = 0) -> float:
    """The calibration error that chance alone gives at most (95 % of the time), were the probabilities exactly right.

    Args:
        probabilities: As for :func:`ece`.
        bins: As for :func:`ece`.
        draws: Number of simulated sets of labels.
        seed: Seed of the simulation.
    """
    values = np.asarray(probabilities, dtype=np.float64)
    generator = np.random.default_rng(seed)
    confidence = values if values.ndim == 1 else values.max(axis=1)
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    errors = []
    for _ in range(draws):
        hit = generator.random(len(confidence)) < confidence
        errors.append(np.abs(np.bincount(index, weights=confidence - hit, minlength=bins)).sum() / len(confidence))
    return float(np.quantile(errors, 0.95))


def reliability(
    probabilities: ArrayLike, labels: ArrayLike, bins: int = 10
) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Points of the reliability diagram: mean probability, observed frequency, rows; each (B,)."""
    confidence, hit = _confidence_and_hit(probabilities, labels)
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    count = np.bincount(index, minlength=bins)
    filled = count > 0
    mean = np.bincount(index, weights=confidence, minlength=bins)[filled] / count[filled]
    frequency = np.bincount(index, weights=hit, minlength=bins)[filled] / count[filled]
    return mean, frequency, count[filled].astype(np.int64)


def _confidence_and_hit(probabilities: ArrayLike, labels: ArrayLike) -> tuple[Floats, Floats]:
    values, truth = np.asarray(probabilities, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    if values.ndim == 1:
        return values, (truth == 1).astype(np.float64)
    return values.max(axis=1), (values.argmax(axis=1) == truth).astype(np.float64)


def choose_threshold(probabilities: ArrayLike, labels: ArrayLike, metric: ThresholdMetric = "mcc") -> float:
    """Threshold on the positive class that maximises ``metric`` on validation rows.

    A row is called positive when its probability is at least the threshold. Candidates lie midway between
    neighbouring scores; among equally good ones the nearest to 0.5 is taken.

    Args:
        probabilities: (N,) of the positive class.
        labels: (N,) 0 or 1.
        metric: Metric to maximise.

    Raises:
        UserError: The rows hold one class only.
    """
    scores, truth = np.asarray(probabilities, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    _require_both(truth, "A threshold")
    order = np.argsort(-scores, kind="stable")
    ranked, positive = scores[order], (truth[order] == 1).astype(np.float64)
    last_of_tie = np.append(ranked[:-1] != ranked[1:], True)
    tp = np.append(0.0, np.cumsum(positive)[last_of_tie])
    fp = np.append(0.0, np.cumsum(1 - positive)[last_of_tie])
    distinct = ranked[last_of_tie]
    # One candidate above every score (nothing called), one between each two neighbours, one below the lowest.
    above, below = np.nextafter(max(distinct[0], 1.0), np.inf), min(distinct[-1], max(distinct[-1] / 2, 0.0))
    candidates = np.concatenate(([above], (distinct[:-1] + distinct[1:]) / 2, [below]))
    fn, tn = positive.sum() - tp, (1 - positive).sum() - fp
    quality = _quality(tp, fp, fn, tn, metric)
    best = np.flatnonzero(quality >= quality.max() - 1e-12)
    return float(candidates[best[np.argmin(np.abs(candidates[best] - 0.5))]])


def _quality(tp: Floats, fp: Floats, fn: Floats, tn: Floats, metric: ThresholdMetric) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        if metric == "mcc":
            value = (tp * tn - fp * fn) / np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
        elif metric == "f1":
            value = 2 * tp / (2 * tp + fp + fn)
        elif metric == "balanced_accuracy":
            value = (tp / (tp + fn) + tn / (tn + fp)) / 2
        elif metric == "accuracy":
            value = (tp + tn) / (tp + fp + fn + tn)
        else:
            raise UserError(
                f"Unknown metric {metric!r} for the threshold", fix="Use mcc, f1, balanced_accuracy or accuracy"
            )
    cleaned: Floats = np.nan_to_num(value, nan=0.0)
    return cleaned


CLASS_METRICS = ("macro_f1", "accuracy", "balanced_accuracy", "mcc")
"""Metrics of calls that thresholds of several classes can be chosen for."""
_TOWARDS_RARE = np.linspace(0, 1, 11)
_NOT_WORTH = 0.01


def choose_class_thresholds(
    probabilities: ArrayLike, labels: ArrayLike, metric: str = "macro_f1"
) -> tuple[float, ...]:
    """Thresholds of several classes that maximise ``metric`` on validation rows.

    The likeliest class is seldom a rare one, so that calls by it say little of rare classes (and macro F1 counts these
    as much as the others). One number is learned: the threshold of a class is its share of the rows to the power
    of t, from 0 (the likeliest class is called) to 1 (a class is called where its probability is raised most above its
    share). Taken is 0 where it is within a hundredth of the best, else the middle one of those that are.

    Args:
        probabilities: (N, K).
        labels: (N,) class numbers.
        metric: One of :data:`CLASS_METRICS`.

    Returns:
        K thresholds, above 0 and at most 1.

    Raises:
        UserError: The rows hold one class only, or ``metric`` is none of calls.
    """
    values, truth = np.asarray(probabilities, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    _require_both(truth, "Thresholds")
    if metric not in CLASS_METRICS:
        raise UserError(f"Unknown metric {metric!r} for thresholds", fix=f"Use {', '.join(CLASS_METRICS)}")
    width = values.shape[1]
    shares = (np.bincount(truth, minlength=width) + 1.0) / (len(truth) + width)
    logs, prior = log_probabilities(values), np.log(shares)
    quality = np.array([_call_quality((logs - t * prior).argmax(axis=1), truth, width, metric) for t in _TOWARDS_RARE])
    good = np.flatnonzero(quality >= quality.max() - _NOT_WORTH)
    chosen = 0.0 if good[0] == 0 else _TOWARDS_RARE[good[(len(good) - 1) // 2]]
    return tuple(float(value) for value in np.exp(chosen * prior))


def _call_quality(calls: NDArray[np.int64], truth: NDArray[np.int64], width: int, metric: str) -> float:
    """A metric of calls among K classes, averages over the classes that occur in the truth."""
    table = np.bincount(truth * width + calls, minlength=width * width).reshape(width, width).astype(np.float64)
    there, right = table.sum(axis=1), np.diag(table)
    occurring = there > 0
    if metric == "accuracy":
        return float(right.sum() / len(truth))
    if metric == "balanced_accuracy":
        return float((right / np.maximum(there, 1))[occurring].mean())
    called = table.sum(axis=0)
    if metric == "macro_f1":
        return float((2 * right / np.maximum(there + called, 1))[occurring].mean())
    count = float(len(truth))
    spread = np.sqrt((count**2 - (called**2).sum()) * (count**2 - (there**2).sum()))
    return float((right.sum() * count - called @ there) / spread) if spread > 0 else 0.0


def threshold_for(
    probabilities: ArrayLike, labels: ArrayLike, *, positive: int | None, metric: str = "macro_f1"
) -> Threshold:
    """What calls are made by, from validation rows: the threshold of two classes, or one for each of several.

    Args:
        probabilities: (N, K).
        labels: (N,) class numbers.
        positive: Column of the positive one of two classes (its threshold has the best MCC); None of several.
        metric: Main metric; one of :data:`CLASS_METRICS` chooses thresholds of several classes, else macro F1 does.

    Returns:
        :data:`plm.data.task.LIKELIEST` where the rows hold one class only.
    """
    values, truth = np.asarray(probabilities, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    if len(np.unique(truth)) < 2:
        return LIKELIEST
    if positive is not None:
        return choose_threshold(values[:, positive], truth == positive)
    return choose_class_thresholds(values, truth, metric if metric in CLASS_METRICS else "macro_f1")


def threshold_for_fpr(probabilities: ArrayLike, labels: ArrayLike, fpr: float) -> float:
    """Lowest threshold whose false-positive rate among the negatives given is at most ``fpr``.

    With fewer than ``1 / fpr`` negatives the rate is not resolved: the threshold lies above every negative.

    Args:
        probabilities: (N,) of the positive class.
        labels: (N,) 0 or 1.
        fpr: Tolerated share of negatives called positive, 0 to 1.

    Raises:
        UserError: No negatives, or ``fpr`` outside 0 to 1.
    """
    if not 0 <= fpr <= 1:
        raise UserError(f"A false-positive rate lies between 0 and 1, not {fpr:g}", fix="Give e.g. 0.05")
    scores, truth = np.asarray(probabilities, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    negatives = np.sort(scores[truth == 0])[::-1]
    if not len(negatives):
        raise UserError(
            "A false-positive rate needs negative rows and there are none",
            fix="Give a training table with negative validation rows",
        )
    allowed = int(np.floor(fpr * len(negatives) + 1e-9))
    if allowed >= len(negatives):
        return float(min(negatives[-1], scores.min()))
    return float(np.nextafter(negatives[allowed], np.inf))


def adjust_prevalence(probabilities: ArrayLike, training_prevalence: ArrayLike, target_prevalence: ArrayLike) -> Floats:
    """Probabilities for a population with other class frequencies than the training set.

    Source: Elkan 2001; Saerens, Latinne and Decaestecker 2002.

    Args:
        probabilities: (N,) of the positive class, or (N, K).
        training_prevalence: Share of positives in training, or (K,) shares.
        target_prevalence: The same in the population the rows come from.

    Returns:
        Probabilities of the same shape, float64.

    Raises:
        UserError: A prevalence is not strictly between 0 and 1.
    """
    values = np.asarray(probabilities, dtype=np.float64)
    before, after = (np.asarray(x, dtype=np.float64) for x in (training_prevalence, target_prevalence))
    for name, share in (("training", before), ("target", after)):
        if not np.all((share > 0) & (share < 1)):
            raise UserError(f"The {name} prevalence must lie between 0 and 1, both excluded", fix="Give e.g. 0.02")
    if values.ndim == 1:
        positive = values * after / before
        return positive / (positive + (1 - values) * (1 - after) / (1 - before))
    weighted = values * (after / before)
    adjusted: Floats = weighted / weighted.sum(axis=1, keepdims=True)
    return adjusted


def _require_both(truth: NDArray[np.int64], what: str) -> None:
    if len(np.unique(truth)) < 2:
        raise UserError(
            f"{what} needs validation rows of both classes; there is only one",
            fix="Give the validation split rows of each class, e.g. by a stratified split",
        )
