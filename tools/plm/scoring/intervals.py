"""Bootstrap intervals over groups (cluster bootstrap; Field and Welsh 2007), all resamples at once.

Rows of one group (a protein, a family) are not independent, so whole groups are drawn with replacement. A resample is
a weight for each row: how often its group was drawn. Every metric is written for a matrix of such weights (R resamples,
N rows), which makes a thousand resamples of thousands of rows a matter of seconds; with weights of one each equals
scikit-learn's value (tests/test_metrics.py). Models scored under the same draws are paired, so that their differences
can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from plm.scoring import metrics
from plm.scoring.metrics import ALL, MULTICLASS, NUMBER, PER_CLASS, TOP, Floats, Key, Scored, in_top, metrics_of

FEWEST_GROUPS = 10
"""With fewer groups a bootstrap over groups claims more than it knows, so no interval is given."""
_ELEMENTS = 3_000_000  # of an (R, N) block: 24 MB in float64
_BINS = 10


def group_index(groups: Sequence[str]) -> tuple[NDArray[np.int64], int]:
    """(N,) index of each row's group, and how many groups there are."""
    _, index = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    return index.astype(np.int64), int(index.max()) + 1 if len(index) else 0


def draw_groups(groups: int, resamples: int, seed: int) -> NDArray[np.int64]:
    """(R, G): how often each group was drawn in each resample."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(groups, np.full(groups, 1 / groups), size=resamples)


def bootstrap(scored: Scored, index: NDArray[np.int64], draws: NDArray[np.int64]) -> dict[Key, Floats]:
    """Every score of the task under each resample.

    Args:
        scored: Answers of one model to N rows, with their truth.
        index: (N,) group of each row.
        draws: (R, G) from :func:`draw_groups`.

    Returns:
        (R,) values a score; NaN where a resample does not define it.
    """
    block = max(1, _ELEMENTS // max(len(index), 1))
    parts = [weighted_scores(scored, draws[start : start + block][:, index]) for start in range(0, len(draws), block)]
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def interval(values: Floats, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval; (NaN, NaN) if more than a tenth of the resamples leave the score undefined."""
    defined = values[np.isfinite(values)]
    if len(defined) < 0.9 * len(values) or not len(defined):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def weighted_scores(scored: Scored, weights: NDArray[np.generic]) -> dict[Key, Floats]:
    """Every score of the task for each row of ``weights`` (R, N): values (R,)."""
    weight = weights.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        if scored.kind == "number":
            return _number(scored, weight)
        return _binary(scored, weight) if scored.kind == "binary" else _multiclass(scored, weight)


def _binary(scored: Scored, weight: Floats) -> dict[Key, Floats]:
    truth, calls, positive = scored.truth == 1, scored.calls == 1, scored.scores[:, 1]
    values = _one_class(truth, calls, positive, weight)
    total = weight.sum(axis=1)
    values["mcc"] = _mcc(scored.truth.astype(int), scored.calls, 2, weight)
    values["accuracy"] = weight @ (truth == calls) / total
    values["balanced_accuracy"] = (values["sensitivity"] + values["specificity"]) / 2
    values["brier"] = weight @ ((positive - truth) ** 2) / total
    values["ece"] = _ece(positive, truth, weight)
    order = ("auroc", "auprc", "mcc", "f1", "sensitivity", "specificity", "precision", "accuracy",
             "balanced_accuracy", "brier", "ece")
    return {(name, ALL): values[name] for name in order}


def _multiclass(scored: Scored, weight: Floats) -> dict[Key, Floats]:
    truth, calls, total = scored.truth.astype(int), scored.calls, weight.sum(axis=1)
    count = len(scored.classes)
    if count > metrics.MANY_CLASSES:
        single = metrics.many_classes(truth, calls, scored.scores, weight)
    else:
        single = [
            _one_class(truth == index, calls == index, scored.scores[:, index], weight) for index in range(count)
        ]
    values: dict[str, Floats] = {}
    for metric in ("f1", "auroc", "auprc", "precision"):
        values[f"macro_{metric}"] = _nanmean([one[metric] for one in single])
    values["balanced_accuracy"] = _nanmean([one["sensitivity"] for one in single])
    values["mcc"] = _mcc(truth, calls, len(scored.classes), weight)
    values["accuracy"] = weight @ (truth == calls) / total
    hot = np.eye(len(scored.classes))[truth]
    values["brier"] = weight @ ((scored.scores - hot) ** 2).sum(axis=1) / total
    values["ece"] = _ece(scored.scores.max(axis=1), scored.scores.argmax(axis=1) == truth, weight)
    result: dict[Key, Floats] = {(name, ALL): values[name] for name in MULTICLASS}
    for name in metrics_of("multiclass", count)[len(MULTICLASS) :]:
        result[name, ALL] = weight @ in_top(scored, TOP[name]) / total
    for name, one in zip(scored.classes, single, strict=True):
        result |= {(metric, name): one[metric] for metric in PER_CLASS}
    return result


def _one_class(
    truth: NDArray[np.bool_], called: NDArray[np.bool_], probability: Floats, weight: Floats
) -> dict[str, Floats]:
    tp, fp = weight @ (truth & called), weight @ (~truth & called)
    fn, tn = weight @ (truth & ~called), weight @ (~truth & ~called)
    occurs = tp + fn > 0
    auroc, auprc = _areas(truth, probability, weight)
    return {
        "f1": np.where(occurs, 2 * tp / (2 * tp + fp + fn), np.nan),
        "sensitivity": tp / (tp + fn),
        "specificity": tn / (tn + fp),
        "precision": np.where(occurs, np.where(tp + fp > 0, tp / (tp + fp), 0.0), np.nan),
        "auroc": auroc,
        "auprc": auprc,
    }


def _areas(truth: NDArray[np.bool_], probability: Floats, weight: Floats) -> tuple[Floats, Floats]:
    """AUROC (ties count half) and average precision."""
    order = np.argsort(-probability, kind="stable")
    ranked, positive = probability[order], truth[order]
    if not positive.any():
        undefined = np.full(len(weight), np.nan)
        return undefined, undefined
    weight = weight[:, order]
    above_tp = np.cumsum(weight * positive, axis=1)
    above_all = np.cumsum(weight, axis=1)
    places = np.flatnonzero(positive)
    # For each positive row the last place of its tie, and the place before its first.
    last = np.searchsorted(-ranked, -ranked[places], side="right") - 1
    before = np.searchsorted(-ranked, -ranked[places], side="left") - 1
    own, positives = weight[:, places], above_tp[:, -1]
    negatives = above_all[:, -1] - positives
    fp = above_all - above_tp
    fp_last = fp[:, last]
    fp_before = np.where(before >= 0, fp[:, np.maximum(before, 0)], 0.0)
    higher = (own * (fp_last + fp_before) / 2).sum(axis=1)
    auroc = 1 - higher / (positives * negatives)
    precision = np.where(own > 0, above_tp[:, last] / above_all[:, last], 0.0)
    return auroc, (own * precision).sum(axis=1) / positives


def _mcc(truth: NDArray[np.int64], calls: NDArray[np.int64], classes: int, weight: Floats) -> Floats:
    """Matthews correlation for K classes (Gorodkin 2004); 0 when all calls are one class, as scikit-learn."""
    hot = np.eye(classes)
    total, hits = weight.sum(axis=1), weight @ (truth == calls)
    true_sums, call_sums = weight @ hot[truth], weight @ hot[calls]
    top = hits * total - (true_sums * call_sums).sum(axis=1)
    spread_true = total**2 - (true_sums**2).sum(axis=1)
    spread_call = total**2 - (call_sums**2).sum(axis=1)
    value = np.where(spread_call > 0, top / np.sqrt(spread_true * spread_call), 0.0)
    return np.where(spread_true > 0, value, np.nan)


def _ece(confidence: Floats, hit: NDArray[np.bool_], weight: Floats) -> Floats:
    bins = np.zeros((len(confidence), _BINS))
    bins[np.arange(len(confidence)), np.minimum((confidence * _BINS).astype(int), _BINS - 1)] = confidence - hit
    return np.abs(weight @ bins).sum(axis=1) / weight.sum(axis=1)


def _number(scored: Scored, weight: Floats) -> dict[Key, Floats]:
    truth, value = np.asarray(scored.truth, dtype=np.float64), scored.scores
    total = weight.sum(axis=1)
    mean = weight @ truth / total
    squares = weight @ (truth - value) ** 2
    spread = weight @ truth**2 - total * mean**2
    values = {
        "spearman": _correlation(_ranks(truth, weight), _ranks(value, weight), weight),
        "pearson": _correlation(truth[None, :], value[None, :], weight),
        "rmse": np.sqrt(squares / total),
        "mae": weight @ np.abs(truth - value) / total,
        "r2": np.where(spread > 1e-12, 1 - squares / spread, np.nan),
    }
    return {(name, ALL): values[name] for name in NUMBER}


def _correlation(first: Floats, second: Floats, weight: Floats) -> Floats:
    total = weight.sum(axis=1, keepdims=True)
    a = first - (weight * first).sum(axis=1, keepdims=True) / total
    b = second - (weight * second).sum(axis=1, keepdims=True) / total
    spread = (weight * a * a).sum(axis=1) * (weight * b * b).sum(axis=1)
    return np.where(spread > 1e-18, (weight * a * b).sum(axis=1) / np.sqrt(spread), np.nan)


def _ranks(values: Floats, weight: Floats) -> Floats:
    """Mid-ranks (R, N) that the rows have in each resample."""
    order = np.argsort(values, kind="stable")
    ranked = values[order]
    below = np.cumsum(weight[:, order], axis=1)
    last = np.searchsorted(ranked, ranked, side="right") - 1
    before = np.searchsorted(ranked, ranked, side="left") - 1
    middle = (below[:, last] + np.where(before >= 0, below[:, np.maximum(before, 0)], 0.0)) / 2
    ranks = np.empty_like(weight)
    ranks[:, order] = middle
    return ranks


def _nanmean(columns: list[Floats]) -> Floats:
    stacked = np.stack(columns)
    defined = np.isfinite(stacked)
    return np.where(defined, stacked, 0.0).sum(axis=0) / defined.sum(axis=0)
