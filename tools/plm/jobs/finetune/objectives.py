"""What training minimises and what validation measures, for each task.

Labels become targets once: class indices (int64) or numbers (float64, standardised inside the loss); what has no
label is :data:`UNLABELLED` or NaN and counts nowhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax
from torch.nn import functional

from plm.data.dataset_table import UNLABELLED_RESIDUE, residue_labels
from plm.data.task import Task
from plm.errors import UserError

UNLABELLED = -100
ClassWeights = Literal["none", "balanced"]
METRICS: Mapping[str, tuple[str, ...]] = {
    "binary": ("auroc", "auprc", "mcc", "macro_f1", "loss"),
    "multi": ("macro_f1", "mcc", "accuracy", "loss"),
    "number": ("spearman", "pearson", "rmse", "loss"),
}
"""Metrics that can choose the checkpoint, by kind of task; the first is the default."""

LOWER_IS_BETTER = ("loss", "rmse")
Array = NDArray[Any]


def kind(task: Task) -> str:
    """``binary``, ``multi`` or ``number``."""
    return "number" if task.target == "number" else "binary" if task.binary else "multi"


def choose_metric(requested: str, task: Task) -> str:
    """The metric that chooses the checkpoint.

    Raises:
        UserError: The metric does not exist for this kind of task.
    """
    known = METRICS[kind(task)]
    if requested == "auto":
        return known[0]
    if requested not in known:
        raise UserError(
            f"The metric {requested} does not fit a task with {_words(task)}", where="--metric",
            fix=f"Choose auto, {', '.join(known)}",
        )
    return requested


def _words(task: Task) -> str:
    return {"binary": "two classes", "multi": "several classes", "number": "numbers"}[kind(task)]


def targets(labels: Sequence[str], task: Task) -> list[Array]:
    """The targets of each row: ``(1,)`` for sequence and site tasks, ``(L,)`` for residue tasks.

    Raises:
        UserError: A label is none of the classes or no number.
    """
    index = {name: number for number, name in enumerate(task.classes)}
    rows = []
    for row, label in enumerate(labels):
        parts = residue_labels(label) if task.level == "residue" else [label]
        try:
            if task.target == "class":
                values = [UNLABELLED if _missing(p, task) else index[p] for p in parts]
                rows.append(np.array(values, dtype=np.int64))
            else:
                rows.append(np.array([np.nan if _missing(p, task) else float(p) for p in parts], dtype=np.float64))
        except (KeyError, ValueError):
            what = "no number" if task.target == "number" else f"none of {', '.join(task.classes)}"
            raise UserError(
                f"The label {label[:40]!r} is {what}", where=f"row {row + 1}",
                fix="Correct the label, or leave the row out",
            ) from None
    return rows


def _missing(part: str, task: Task) -> bool:
    return task.level == "residue" and part in ("", UNLABELLED_RESIDUE)


def labelled(values: Array) -> NDArray[np.bool_]:
    """Which targets have a label."""
    return ~np.isnan(values) if values.dtype.kind == "f" else values != UNLABELLED


def class_weights(values: Array, task: Task, scheme: ClassWeights) -> torch.Tensor | None:
    """``(K,)`` float32 weights ``n / (K n_k)`` that let every class count the same, or None.

    Args:
        values: Training targets; classes without any get weight 0.
        task: Level, kind of target and classes that are predicted.
        scheme: ``none`` or ``balanced``.
    """
    if scheme == "none" or task.target == "number":
        return None
    counts = np.bincount(values[labelled(values)], minlength=len(task.classes)).astype(float)
    present = (counts > 0).sum()
    weights = np.divide(counts.sum(), present * counts, out=np.zeros_like(counts), where=counts > 0)
    return torch.tensor(weights, dtype=torch.float32)


def loss_weight(values: torch.Tensor, task: Task, weights: torch.Tensor | None) -> float:
    """What :func:`loss_sum` is to be divided by for a mean: the (weighted) number of labelled targets."""
    if task.target == "number":
        return float((~torch.isnan(values)).sum())
    known = values[values != UNLABELLED]
    return float(len(known)) if weights is None else float(weights.to(known.device)[known].sum())


def loss_sum(outputs: torch.Tensor, values: torch.Tensor, task: Task, weights: torch.Tensor | None) -> torch.Tensor:
    """Summed loss of a batch: (weighted) cross-entropy, or squared error of standardised numbers.

    Args:
        outputs: ``(N, K)`` float32 from the head.
        values: ``(N,)`` class numbers or standardised numbers.
        task: Level, kind of target and classes that are predicted.
        weights: From :func:`class_weights`, on the device of ``outputs``.
    """
    if task.target == "class":
        return functional.cross_entropy(outputs, values, weights, ignore_index=UNLABELLED, reduction="sum")
    known = ~torch.isnan(values)
    if outputs.device.type == "cuda":  # to choose the known ones, the host would wait for the device
        standard = ((values.where(known, task.mean) - task.mean) / task.sd).to(outputs.dtype)
        return (outputs[:, 0] - standard).square().where(known, 0.0).sum()
    standard = (values[known] - task.mean) / task.sd
    return functional.mse_loss(outputs[known, 0], standard.to(outputs.dtype), reduction="sum")


def validation_scores(outputs: Array, values: Array, task: Task, weights: Array | None = None) -> dict[str, float]:
    """The validation loss and metrics of raw outputs.

    Args:
        outputs: ``(N, K)`` logits or standardised numbers.
        values: ``(N,)`` targets; unlabelled ones are left out.
        task: Level, kind of target and classes that are predicted.
        weights: Class weights of the loss.

    Returns:
        ``loss`` and the metrics of :data:`METRICS`; NaN where a metric is undefined (one class only, constant numbers).
    """
    from sklearn import metrics

    known = labelled(values)
    outputs, values = outputs[known], values[known]
    if task.target == "number":
        return _number_scores(outputs[:, 0], values, task)
    each = -log_softmax(outputs, axis=1)[np.arange(len(values)), values]
    scale = np.ones(len(values)) if weights is None else weights[values]
    scores = {"loss": float((each * scale).sum() / max(scale.sum(), 1e-12))}
    probabilities = softmax(outputs, axis=1)
    called = probabilities.argmax(axis=1)
    several = len(np.union1d(values, called)) > 1  # else 0, of which scikit-learn would warn
    scores["mcc"] = float(metrics.matthews_corrcoef(values, called)) if several else 0.0
    scores["macro_f1"] = float(metrics.f1_score(values, called, average="macro", zero_division=0))
    scores["accuracy"] = float((values == called).mean())
    if task.binary:
        truth = values == task.positive_index
        both = 0 < truth.sum() < len(truth)
        score = probabilities[:, task.positive_index]
        scores["auroc"] = float(metrics.roc_auc_score(truth, score)) if both else float("nan")
        scores["auprc"] = float(metrics.average_precision_score(truth, score)) if both else float("nan")
    return scores


def _number_scores(outputs: Array, values: Array, task: Task) -> dict[str, float]:
    from scipy import stats

    predicted = outputs * task.sd + task.mean
    scores = {"loss": float(np.mean((outputs - (values - task.mean) / task.sd) ** 2))}
    scores["rmse"] = float(np.sqrt(np.mean((predicted - values) ** 2)))
    varied = len(values) > 2 and np.ptp(values) > 0 and np.ptp(predicted) > 0
    scores["spearman"] = float(stats.spearmanr(predicted, values).statistic) if varied else float("nan")
    scores["pearson"] = float(stats.pearsonr(predicted, values).statistic) if varied else float("nan")
    return scores


def better(scores: Mapping[str, float], best: Mapping[str, float] | None, metric: str) -> bool:
    """Whether ``scores`` beat ``best``: by the metric, by the loss where the metric ties or is undefined."""
    if best is None:
        return True
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
    now, before = sign * scores[metric], sign * best[metric]
    if np.isfinite(now) and np.isfinite(before) and abs(now - before) > 1e-9:
        return now > before
    if np.isfinite(now) != np.isfinite(before):
        return bool(np.isfinite(now))
    return scores["loss"] < best["loss"]
