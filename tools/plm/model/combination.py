"""Several predictors as one: a weighted sum of their logits (numbers: of their standardised values).

Weights are never negative. That of the nearest relatives may grow with the similarity of the nearest training row, so
that relatives decide where there are some, and the language model where there are none. How weights are found is
:mod:`plm.scoring.combining`'s matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from plm.data.task import Task

Floats = NDArray[np.float64]
LANGUAGE_MODEL = "language model"
"""Name of the fine-tuned model, or of the classifier of embeddings, among the members."""
SMALLEST = 1e-6
"""Probabilities below are taken as this: no member alone can exclude a class."""


@dataclass(frozen=True)
class Combination:
    """How members make one answer.

    Attributes:
        names: (m,) names of the members that count, the language model by :data:`LANGUAGE_MODEL`.
        weights: (m,) weights of their logits, or of their standardised numbers; at least 0.
        slopes: (m,) what the weight gains from no similarity of the nearest training row to identity; at least 0.
        bias: (K,) what is added for each class; (1,) for numbers.
        way: How the weights were found: ``single``, ``mean`` or ``stacked``.
    """

    names: tuple[str, ...]
    weights: Floats
    slopes: Floats
    bias: Floats
    way: str

    @property
    def uses_language_model(self) -> bool:
        return LANGUAGE_MODEL in self.names

    def combine(self, answers: Mapping[str, Floats], similarity: Floats | None, task: Task) -> Floats:
        """The answers of the combination.

        Args:
            answers: Of each member by name: (N, K) calibrated probabilities, or (N, 1) numbers.
            similarity: (N,) of the nearest training row, 0-1; None or NaN where no member compares.
            task: Classes, or mean and deviation of the training numbers.

        Returns:
            (N, K) probabilities or (N, 1) numbers.
        """
        parts = np.stack([as_logits(answers[name], task) for name in self.names])
        return from_logits(weighted(parts, similarity, self.weights, self.slopes, self.bias), task)

    def to_json(self) -> dict[str, Any]:
        return {
            "members": list(self.names), "weights": self.weights.tolist(), "slopes": self.slopes.tolist(),
            "bias": self.bias.tolist(), "way": self.way,
        }


def as_logits(answers: Floats, task: Task) -> Floats:
    """(N, K) centred logarithms of probabilities, or (N, 1) standardised numbers."""
    values = np.asarray(answers, np.float64)
    if task.target == "number":
        return (values.reshape(len(values), 1) - task.mean) / task.sd
    logits = np.log(np.maximum(values, SMALLEST))
    centred: Floats = logits - logits.mean(axis=1, keepdims=True)
    return centred


def from_logits(logits: Floats, task: Task) -> Floats:
    """The inverse of :func:`as_logits`."""
    if task.target == "number":
        return logits * task.sd + task.mean
    probabilities: Floats = softmax(logits, axis=1)
    return probabilities


def weighted(parts: Floats, similarity: Floats | None, weights: Floats, slopes: Floats, bias: Floats) -> Floats:
    """(N, K) weighted sum of (m, N, K) logits.

    Args:
        parts: Logits of the members.
        similarity: (N,) of the nearest training row; None or NaN counts as 0.
        weights: (m,).
        slopes: (m,) times the similarity, added to the weights.
        bias: (K,).
    """
    near = np.zeros(parts.shape[1]) if similarity is None else np.nan_to_num(similarity)
    each = weights[:, None] + slopes[:, None] * near[None, :]
    total: Floats = (each[:, :, None] * parts).sum(axis=0) + bias
    return total
