"""The scores of each task, by scikit-learn and scipy.

Kinds of task: ``binary`` (class 1 is the positive one), ``multiclass``, ``number``. A score is addressed by
(metric, class name), with ``all`` for what concerns the whole table. A score that the rows cannot define is NaN, and
:func:`why_undefined` says why.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from plm.errors import UserError
from plm.scoring import calibration

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Key = tuple[str, str]
ALL = "all"

BINARY = (
    "auroc", "auprc", "mcc", "f1", "sensitivity", "specificity", "precision", "accuracy", "balanced_accuracy",
    "brier", "ece",
)
MULTICLASS = (
    "macro_f1", "macro_auroc", "macro_auprc", "mcc", "accuracy", "balanced_accuracy", "macro_precision",
    "brier", "ece",
)
TOP = {"top5_accuracy": 5, "top10_accuracy": 10}
"""How many of the likeliest classes may hold the true one; scores of tasks with more than twice as many classes."""
PER_CLASS = ("f1", "sensitivity", "specificity", "precision", "auroc", "auprc")
NUMBER = ("spearman", "pearson", "rmse", "mae", "r2")
METRICS = {"binary": BINARY, "multiclass": (*MULTICLASS, *TOP), "number": NUMBER}
MAIN_METRIC = {"binary": "auroc", "multiclass": "macro_f1", "number": "spearman"}
MANY_CLASSES = 50
"""Beyond so many the classes are scored together, not one by one."""
_COLUMNS = 1024
LOWER_IS_BETTER = frozenset({"brier", "ece", "rmse", "mae"})


@dataclass(frozen=True)
class Scored:
    """What one model said about the evaluated rows.

    Attributes:
        kind: ``binary``, ``multiclass`` or ``number``.
        truth: (N,) class indices, or float64 numbers.
        scores: (N, K) float64 probabilities, or (N,) predicted numbers.
        calls: (N,) class indices the model decided for; unused for numbers.
        classes: The K class names; the last is the positive one of a binary task.
    """

    kind: str
    truth: NDArray[np.float64] | NDArray[np.int64]
    scores: Floats
    calls: Ints
    classes: tuple[str, ...] = ()

    def rows(self, chosen: NDArray[np.bool_]) -> Scored:
        """The same for some of the rows."""
        return Scored(self.kind, self.truth[chosen], self.scores[chosen], self.calls[chosen], self.classes)


def metrics_of(kind: str, classes: int) -> tuple[str, ...]:
    """Metrics of a task with so many classes."""
    return tuple(name for name in METRICS[kind] if name not in TOP or classes > 2 * TOP[name])


def main_metric(kind: str, wanted: str = "auto", classes: int | None = None) -> str:
    """The metric that models are compared by.

    Args:
        kind: Of the task.
        wanted: Name of a metric, or ``auto``.
        classes: How many classes there are, where that is known.

    Raises:
        UserError: ``wanted`` is no metric of this kind of task, or there are too few classes for it.
    """
    if wanted == "auto":
        return MAIN_METRIC[kind]
    if wanted in TOP and wanted in METRICS[kind] and classes is not None and classes <= 2 * TOP[wanted]:
        raise UserError(
            f"--main-metric {wanted} says nothing of {classes} classes",
            fix=f"It is for more than {2 * TOP[wanted]} classes; choose accuracy",
        )
    if wanted not in METRICS[kind]:
        raise UserError(
            f"--main-metric {wanted} does not fit a {kind} task", fix=f"Choose one of {', '.join(METRICS[kind])}"
        )
    return wanted


def score(scored: Scored) -> dict[Key, float]:
    """Every score of the task, macro averages over the classes that occur in the truth."""
    if scored.kind == "number":
        return _number_scores(scored)
    return _binary_scores(scored) if scored.kind == "binary" else _multiclass_scores(scored)


def _binary_scores(scored: Scored) -> dict[Key, float]:
    from sklearn import metrics

    truth, calls, positive = scored.truth, scored.calls, scored.scores[:, 1]
    values: dict[str, float] = _one_class(truth == 1, calls == 1, positive)
    values["mcc"] = _mcc(truth, calls)
    values["accuracy"] = float(metrics.accuracy_score(truth, calls))
    values["balanced_accuracy"] = (values["sensitivity"] + values["specificity"]) / 2
    values["brier"] = float(metrics.brier_score_loss(truth, positive, pos_label=1)) if len(truth) else float("nan")
    values["ece"] = calibration.ece(positive, truth)
    return {(name, ALL): values[name] for name in BINARY}


def _multiclass_scores(scored: Scored) -> dict[Key, float]:
    from sklearn import metrics

    truth, calls = scored.truth, scored.calls
    result: dict[Key, float] = {}
    one_by_one = _by_class(scored)
    present = [name for index, name in enumerate(scored.classes) if (truth == index).any()]
    for metric in ("f1", "auroc", "auprc", "precision"):
        result[f"macro_{metric}", ALL] = _mean([one_by_one[name][metric] for name in present])
    result["mcc", ALL] = _mcc(truth, calls)
    result["accuracy", ALL] = float(metrics.accuracy_score(truth, calls))
    result["balanced_accuracy", ALL] = _mean([one_by_one[name]["sensitivity"] for name in present])
    hot = np.eye(len(scored.classes))[truth.astype(int)]
    result["brier", ALL] = float(((scored.scores - hot) ** 2).sum(axis=1).mean())
    result["ece", ALL] = calibration.ece(scored.scores, truth)
    ordered = {(name, ALL): result[name, ALL] for name in MULTICLASS}
    for name in metrics_of("multiclass", len(scored.classes))[len(MULTICLASS) :]:
        ordered[name, ALL] = float(in_top(scored, TOP[name]).mean()) if len(truth) else float("nan")
    for name in scored.classes:
        ordered |= {(metric, name): one_by_one[name][metric] for metric in PER_CLASS}
    return ordered


def _by_class(scored: Scored) -> dict[str, dict[str, float]]:
    truth, calls = scored.truth, scored.calls
    if len(scored.classes) > MANY_CLASSES and len(truth):
        with np.errstate(invalid="ignore", divide="ignore"):
            together = many_classes(truth.astype(np.int64), calls, scored.scores, np.ones((1, len(truth))))
        scores = [{name: float(values[0]) for name, values in one.items()} for one in together]
        return dict(zip(scored.classes, scores, strict=True))
    return {
        name: _one_class(truth == index, calls == index, scored.scores[:, index])
        for index, name in enumerate(scored.classes)
    }


def in_top(scored: Scored, count: int) -> Floats:
    """(N,) chance that the true class is among the ``count`` likeliest, where equally likely ones come in any order."""
    own = scored.scores[np.arange(len(scored.truth)), scored.truth.astype(int)][:, None]
    above, equal = (scored.scores > own).sum(1), (scored.scores == own).sum(1)
    return np.clip((count - above) / np.maximum(equal, 1), 0.0, 1.0)


def many_classes(truth: Ints, calls: Ints, scores: Floats, weight: Floats) -> list[dict[str, Floats]]:
    """Scores of each of many classes, for several weights of the rows at once.

    A row is compared with the others in its own class alone, which takes a few products of matrices.

    Args:
        truth: (N,) class indices.
        calls: (N,) likewise.
        scores: (N, K) probabilities.
        weight: (R, N) weights of the rows.

    Returns:
        For each class the scores of :data:`PER_CLASS`, (R,); NaN where they are undefined.
    """
    rows, count = len(truth), scores.shape[1]
    hot = np.eye(count)
    true, called = weight @ hot[truth], weight @ hot[calls]
    hits = weight @ (hot[truth] * (truth == calls)[:, None])
    total = weight.sum(axis=1, keepdims=True)
    nothing = np.full(len(weight), np.nan)
    beyond, precisions = np.zeros_like(true), np.zeros_like(true)
    for start in range(0, rows, _COLUMNS):
        mine = np.arange(start, min(start + _COLUMNS, rows))
        column, own = scores[:, truth[mine]], weight[:, mine]
        reference, same = column[mine, np.arange(len(mine))], truth[:, None] == truth[mine]
        above, equal = column > reference, column == reference
        beyond_each = own * (weight @ ((above + 0.5 * equal) * ~same))
        reached = weight @ (above | equal)
        hit = weight @ ((above | equal) & same)
        precision_each = own * np.where(own > 0, hit / np.maximum(reached, 1e-300), 0.0)
        members = hot[truth[mine]]
        beyond += beyond_each @ members
        precisions += precision_each @ members
    occurs = true > 0
    f1 = np.where(occurs, 2 * hits / (true + called), np.nan)
    precision = np.where(occurs, np.where(called > 0, hits / called, 0.0), np.nan)
    specificity = (total - true - called + hits) / (total - true)
    auroc, auprc = 1 - beyond / (true * (total - true)), precisions / true
    present = np.isin(np.arange(count), truth)
    return [
        {
            "f1": f1[:, at], "sensitivity": hits[:, at] / true[:, at], "specificity": specificity[:, at],
            "precision": precision[:, at], "auroc": auroc[:, at] if present[at] else nothing,
            "auprc": auprc[:, at] if present[at] else nothing,
        }
        for at in range(count)
    ]


def _one_class(truth: NDArray[np.bool_], called: NDArray[np.bool_], probability: Floats) -> dict[str, float]:
    from sklearn import metrics

    nan = float("nan")
    has_positives, has_negatives = bool(truth.any()), bool((~truth).any())
    if not has_positives and has_negatives:  # most classes of a task with many
        return dict.fromkeys(PER_CLASS, nan) | {"specificity": float(1.0 - called.sum() / len(called))}
    both = has_positives and has_negatives
    return {
        "f1": float(metrics.f1_score(truth, called, zero_division=0)) if has_positives else nan,
        "sensitivity": float(metrics.recall_score(truth, called)) if has_positives else nan,
        "specificity": float(metrics.recall_score(~truth, ~called)) if has_negatives else nan,
        "precision": float(metrics.precision_score(truth, called, zero_division=0)) if has_positives else nan,
        "auroc": float(metrics.roc_auc_score(truth, probability)) if both else nan,
        "auprc": float(metrics.average_precision_score(truth, probability)) if has_positives else nan,
    }


def _mcc(truth: NDArray[np.float64] | Ints, calls: Ints) -> float:
    from sklearn import metrics

    if len(np.unique(truth)) < 2:
        return float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(metrics.matthews_corrcoef(truth, calls))


def _number_scores(scored: Scored) -> dict[Key, float]:
    from scipy import stats
    from sklearn import metrics

    truth, value = np.asarray(scored.truth, dtype=np.float64), scored.scores
    nan = float("nan")
    varied = len(truth) > 2 and np.ptp(truth) > 0
    ranked = varied and np.ptp(value) > 0
    values = {
        "spearman": float(stats.spearmanr(truth, value).statistic) if ranked else nan,
        "pearson": float(stats.pearsonr(truth, value).statistic) if ranked else nan,
        "rmse": float(metrics.root_mean_squared_error(truth, value)) if len(truth) else nan,
        "mae": float(metrics.mean_absolute_error(truth, value)) if len(truth) else nan,
        "r2": float(metrics.r2_score(truth, value)) if varied else nan,
    }
    return {(name, ALL): values[name] for name in NUMBER}


def _mean(values: list[float]) -> float:
    defined = [value for value in values if value == value]
    return float(np.mean(defined)) if defined else float("nan")


def why_undefined(scored: Scored, key: Key) -> str:
    """Why a score of these rows is NaN, in a phrase."""
    name = key[1]
    if not len(scored.truth):
        return "no rows"
    if scored.kind == "number":
        if len(scored.truth) < 3:
            return "fewer than 3 rows"
        return "the true values are all equal" if np.ptp(scored.truth) == 0 else "the predictions are all equal"
    present = np.unique(scored.truth).astype(int)
    if len(present) == 1:
        return f"only class {scored.classes[present[0]]} among these rows"
    absent = name != ALL and scored.classes.index(name) not in present
    return f"no rows of class {name}" if absent else "not defined for these rows"
