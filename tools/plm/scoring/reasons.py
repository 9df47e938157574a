"""Why a bundle answers as it does: what each member of its predictor says, which of them speak for the answer, and the
nearest training rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plm.data.tables import visible
from plm.data.task import Task
from plm.model.bundles.bundle import Bundle
from plm.model.bundles.predictor import Reasons
from plm.model.combination import LANGUAGE_MODEL, SMALLEST, Combination
from plm.model.members.fitted import NEAREST_ROWS
from plm.model.members.stored import MemberRows

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
NAMED = 0.1
"""A member is named if it makes up at least this share of what all members together say for and against."""
_ALIKE = 0.9995
ALONE = Combination((LANGUAGE_MODEL,), np.ones(1), np.zeros(1), np.zeros(1), "single")
"""What stands for the combination where the language model answers alone."""


def weights_of(combination: Combination, similarity: Floats) -> Floats:
    """(n, m) weight of each member in each of n answers.

    Args:
        combination: Weights, and what they gain with the similarity.
        similarity: (n,) of the nearest training row, 0-1; NaN counts as 0.
    """
    weights: Floats = combination.weights + np.nan_to_num(similarity)[:, None] * combination.slopes
    return weights


def contributions(said: Floats, weights: Floats, calls: Ints, task: Task, shares: Floats) -> Floats:
    """(n, m) what each member says for the answer: positive for it, negative against it.

    Of two classes: log-odds of the called class less those of its share in training, times the weight; of several
    log-odds of the called class against the likeliest other one; of numbers the distance above the training mean in
    deviations.

    Args:
        said: (n, m, K) probabilities, or (n, m, 1) numbers.
        weights: (n, m).
        calls: (n,) called classes; not used for numbers.
        task: Classes, or mean and deviation of the training numbers.
        shares: (K,) shares of the classes in training; used for two classes.
    """
    if task.target == "number":
        return weights * (said[:, :, 0] - task.mean) / task.sd
    logs, usual = (np.log(np.maximum(values, SMALLEST)) for values in (said, shares))
    own = np.take_along_axis(logs, calls[:, None, None], axis=2)[:, :, 0]
    others = logs.copy()
    np.put_along_axis(others, calls[:, None, None], -np.inf, axis=2)
    odds = own - others.max(axis=2)
    if len(task.classes) == 2:
        odds -= (usual[calls] - usual[1 - calls])[:, None]
    return weights * odds


def training_shares(manifest: Mapping[str, Any], task: Task) -> Floats:
    """(K,) shares of the classes among the training rows; equal ones where the bundle does not say."""
    told = manifest.get("training_prevalence")
    if isinstance(told, Mapping) and all(name in told for name in task.classes):
        return np.array([float(told[name]) for name in task.classes])
    if task.binary and isinstance(told, (int, float)):
        shares = np.full(2, 1 - float(told))
        shares[task.positive_index] = float(told)
        return shares
    return np.full(max(len(task.classes), 1), 1 / max(len(task.classes), 1))


def balance(names: Sequence[str], each: Floats) -> tuple[list[str], list[str]]:
    """Names of the members that speak for and against an answer, the strongest first.

    Args:
        names: Of m members.
        each: (m,) from :func:`contributions`.
    """
    least = NAMED * np.abs(each).sum()
    order = [place for place in np.argsort(-np.abs(each), kind="stable") if abs(each[place]) >= least]
    return [names[place] for place in order if each[place] > 0], [names[place] for place in order if each[place] < 0]


@dataclass
class ReasonsTable:
    """Rows that tell why, and what they have in common.

    Attributes:
        task: Task of the bundle.
        combination: Of the bundle's predictor; :data:`ALONE` without one.
        training: Training rows that members compare with; None without them.
        shares: (K,) shares of the classes in training.
        before: Names of the columns in front of the answer.
        model: Name and digest of the bundle.
        rows: Rows so far.
        alike: Those of them that are the same as a training row in all that is compared.
        speaking: By member the rows for which it speaks.
        objecting: By member the rows against which it speaks.
    """

    task: Task
    combination: Combination
    training: MemberRows | None
    shares: Floats
    before: tuple[str, ...]
    model: str
    rows: int = field(default=0, init=False)
    alike: int = field(default=0, init=False)
    speaking: Counter[str] = field(default_factory=Counter, init=False)
    objecting: Counter[str] = field(default_factory=Counter, init=False)

    @classmethod
    def of(cls, bundle: Bundle, before: tuple[str, ...], model: str) -> ReasonsTable:
        """For the answers of a bundle."""
        shares = training_shares(bundle.manifest, bundle.task)
        if bundle.predictor is None:
            return cls(bundle.task, ALONE, None, shares, before, model)
        held = bundle.predictor
        return cls(bundle.task, held.combination, held.members.rows, shares, before, model)

    @property
    def columns(self) -> tuple[str, ...]:
        """The header."""
        classes = self.task.classes
        answer = ["value"]
        if classes:
            answer = ["call", f"p_{classes[self.task.positive_index]}" if self.task.binary else "p_call"]
        places = range(1, NEAREST_ROWS + 1)
        nearest = [f"{what}_{place}" for place in places for what in ("nearest", "similarity", "label")]
        names = self.combination.names
        weights = (f"weight of {name}" for name in names)
        told = ("speaks_for", "speaks_against", "why", "model")
        return tuple(visible(name) for name in (*self.before, *answer, *names, *weights, *nearest, *told))

    def cells(self, before: Sequence[object], call: int, shown: float, reasons: Reasons, number: int) -> list[str]:
        """One row.

        Args:
            before: Values of the columns before the answer.
            call: Number of the class that is called; not used for numbers.
            shown: Probability, or number, as the stage's main table shows it.
            reasons: What members said.
            number: Which of their rows.
        """
        said, similarities = reasons.said[number], reasons.similarities[number]
        weights = weights_of(self.combination, similarities[:1])[0]
        each = contributions(said[None], weights[None], np.array([call]), self.task, self.shares)[0]
        speaking, objecting = balance(self.combination.names, each)
        self.rows += 1
        self.alike += bool(similarities[0] >= _ALIKE)
        self.speaking.update(speaking)
        self.objecting.update(objecting)
        nearest = self._nearest(reasons.rows[number], similarities)
        answer = [self.task.classes[call], f"{shown:.6f}"] if self.task.classes else [f"{shown:.6g}"]
        row = [
            *before, *answer, *map(self._told, said), *(f"{weight:.4f}" for weight in weights),
            *(cell for one in nearest for cell in one), ", ".join(speaking), ", ".join(objecting),
            self._words(speaking, objecting, nearest[0]), self.model,
        ]
        return [visible(str(cell)) for cell in row]

    def _told(self, said: Floats) -> str:
        if self.task.target == "number":
            return f"{said[0]:.6g}"
        return f"{said[self.task.positive_index]:.6f}" if self.task.binary else self.task.classes[int(said.argmax())]

    def _nearest(self, rows: Ints, similarities: Floats) -> list[tuple[str, str, str]]:
        nearest = []
        for row, similarity in zip(rows.tolist(), similarities.tolist(), strict=True):
            if row < 0 or self.training is None:
                nearest.append(("", "", ""))
            else:
                nearest.append((self.training.ids[row], f"{similarity:.4f}", self.training.labels[row]))
        return nearest

    def _words(self, speaking: list[str], objecting: list[str], nearest: tuple[str, str, str]) -> str:
        words = ", ".join(speaking) or "no member"
        if objecting:
            words += f"; against it {', '.join(objecting)}"
        name, similarity, label = nearest
        return f"{words}; nearest {name} ({100 * float(similarity):.0f} %) is {label}" if name else words

    def weights(self, name: str) -> str:
        """The weight of a member, or between which two it lies."""
        place = self.combination.names.index(name)
        low, slope = float(self.combination.weights[place]), float(self.combination.slopes[place])
        return f"{low:.2f} to {low + slope:.2f}" if slope else f"{low:.2f}"
