"""Fitted sequence members: what a bundle stores of them, and how they answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from plm.model.members.features import ComparedRows, TextBlock, linear_scores

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Singles = NDArray[np.float32]
Setting = Mapping[str, Any]
SMOOTHING = 0.01
"""Weight of the class frequencies beside the neighbours' similarities."""
IMPOSSIBLE = -1000.0
"""Score of a class that no training row has."""
LINK = 4.0
"""Slope from a regression on 0 and 1 to log odds: that of the logistic curve in its middle."""
NEAREST_ROWS = 3
"""Most similar training rows that are told of each new row."""
_BLOCK_NUMBERS, _BLOCK_TEXTS, _BLOCK_LETTERS = 4_000_000, 2000, 500_000


class FittedMember(ABC):
    """A sequence member after learning.

    Attributes:
        name: Its name in tables and reports.
        view: What it sees of a text, one of :data:`plm.model.members.features.VIEWS`.
        classes: K, or 0 for numbers.
        setting: What inner cross-validation chose.
    """

    kind: ClassVar[str]
    """Name in manifests."""
    compares: ClassVar[bool] = False
    """Whether it compares with training rows, so that a bundle must hold them."""

    def __init__(self, name: str, view: str, classes: int, setting: Setting) -> None:
        self.name, self.view, self.classes, self.setting = name, view, classes, dict(setting)

    @abstractmethod
    def answer(self, seen: Any, similarity: Singles | None = None) -> Floats:
        """Its answers.

        Args:
            seen: What it sees of M texts; unused by a member that compares.
            similarity: (M, N) of these to the training rows, for a member that compares.

        Returns:
            (M, K) probabilities or (M,) numbers.
        """

    def answer_block(self, block: TextBlock, similarity: Singles | None = None) -> Floats:
        """As :meth:`answer`, of the M texts of a block."""
        return self.answer(None if self.compares else block.view(self.view), similarity)

    @abstractmethod
    def arrays(self) -> dict[str, NDArray[Any]]:
        """Its numbers by name, without the training rows."""


class LinearMember(FittedMember):
    """Logistic regression (classes) or ridge regression (numbers) on fixed features.

    Attributes:
        weight: ``(R, F)``: one row for numbers and for two classes (of which the second counts up), else one a class.
        bias: ``(R,)``.
    """

    kind = "linear"

    def __init__(self, name: str, view: str, classes: int, setting: Setting, weight: Floats, bias: Floats) -> None:
        super().__init__(name, view, classes, setting)
        self.weight, self.bias = weight, bias

    def answer(self, seen: Any, similarity: Singles | None = None) -> Floats:
        return self.linked(np.asarray(seen @ self.weight.T, np.float64))

    def answer_block(self, block: TextBlock, similarity: Singles | None = None) -> Floats:
        return self.linked(linear_scores(block, self.view, self.weight))

    def linked(self, products: Floats) -> Floats:
        """From (M, R) products with the weights to (M, K) probabilities or (M,) numbers."""
        scores = products + self.bias
        if not self.classes:
            return np.asarray(scores[:, 0])
        if self.classes == 2:
            scores = np.concatenate([np.zeros_like(scores), scores], axis=1)
        answer: Floats = softmax(scores, axis=1)
        return answer

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {"weight": self.weight, "bias": self.bias}


class NeighbourMember(FittedMember):
    """The k most similar training rows, weighted by a power of their similarity.

    Attributes:
        target: (N,) class numbers or numbers of the training rows.
    """

    kind = "neighbours"
    compares = True

    def __init__(self, name: str, view: str, classes: int, setting: Setting, target: NDArray[Any]) -> None:
        super().__init__(name, view, classes, setting)
        self.target = target

    def answer(self, seen: Any, similarity: Singles | None = None) -> Floats:
        assert similarity is not None
        [answer] = vote(similarity, self.target, [self.setting], self.classes)
        return answer

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {}


def vote(similarity: Singles, target: NDArray[Any], settings: Sequence[Setting], classes: int) -> list[Floats]:
    """What the most similar training rows say, for each setting (``k``, ``power``): (M, K) or (M,).

    Args:
        similarity: (M, N) of new rows to training rows.
        target: (N,) class numbers or numbers.
        settings: Numbers of neighbours and powers of their similarity.
        classes: K, or 0 for numbers.
    """
    prior = np.bincount(target, minlength=classes) / len(target) if classes else np.mean(target)
    hot = np.eye(classes)[target] if classes else np.asarray(target, dtype=np.float64)
    most = min(max(int(setting["k"]) for setting in settings), similarity.shape[1])
    order = nearest(similarity, most)
    weight: Floats = np.take_along_axis(similarity, order, axis=1).astype(np.float64)
    answers = []
    for setting in settings:
        k = min(int(setting["k"]), most)
        own, of = weight[:, :k] ** setting.get("power", 1), hot[order[:, :k]]
        total = own.sum(axis=1) + SMOOTHING
        if classes:
            shares = ((own[:, :, None] * of).sum(axis=1) + SMOOTHING * prior) / total[:, None]
            answers.append(np.minimum(shares, 1))  # sums in another order may exceed 1 by a rounding
        else:
            answers.append(((own * of).sum(axis=1) + SMOOTHING * prior) / total)
    return answers


def nearest(similarity: Singles, most: int) -> Ints:
    """(M, most) numbers of the most similar training rows, most similar first, of equals the first."""
    if most < similarity.shape[1] // 4:
        # Of a row's largest few, found without sorting all; equals at the edge are those that the partition met.
        chosen = np.sort(np.argpartition(-similarity, most - 1, axis=1)[:, :most], axis=1)
        order = np.argsort(-np.take_along_axis(similarity, chosen, axis=1), axis=1, kind="stable")
        return np.take_along_axis(chosen, order, axis=1)
    return np.argsort(-similarity, axis=1, kind="stable")[:, :most]


class KernelMember(FittedMember):
    """Kernel ridge regression on the similarity to training rows: ``exp(gamma (similarity - 1))``.

    Attributes:
        places: (S,) numbers of the training rows that it learned from.
        dual: ``(S, R)`` coefficients: one column for numbers and two classes (of which the second counts up), else one
            a class.
        bias: ``(R,)`` means of what was regressed on.
    """

    kind = "kernel"
    compares = True

    def __init__(
        self, name: str, view: str, classes: int, setting: Setting, places: Ints, dual: Floats, bias: Floats
    ) -> None:
        super().__init__(name, view, classes, setting)
        self.places, self.dual, self.bias = places, dual, bias

    def answer(self, seen: Any, similarity: Singles | None = None) -> Floats:
        assert similarity is not None
        near = similarity if len(self.places) == similarity.shape[1] else similarity[:, self.places]
        values = kernel(near, self.setting["gamma"]) @ self.dual + self.bias
        return linked(values, self.classes)

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {"places": self.places, "dual": self.dual, "bias": self.bias}


def kernel(similarity: Singles, gamma: float) -> Singles:
    """``exp(gamma (similarity - 1))``, elementwise."""
    value: Singles = np.exp(np.float32(gamma) * (similarity - np.float32(1)))
    return value


def linked(values: Floats, classes: int) -> Floats:
    """From regressions on 0 and 1 to probabilities (M, K); of numbers (M,) the values themselves."""
    values = np.asarray(values, np.float64)
    if not classes:
        return values[:, 0]
    if classes == 2:
        values = np.concatenate([np.full_like(values, 0.5), values], axis=1)
    answer: Floats = softmax(LINK * values, axis=1)
    return answer


@dataclass(frozen=True)
class Told:
    """What members say of new rows.

    Attributes:
        answers: Of each member (M, K) probabilities or (M,) numbers.
        similarities: (M, :data:`NEAREST_ROWS`) to the most similar training rows, 0-1, most similar first; NaN where
            there is none, or no member compares.
        rows: The same shape: numbers of these training rows; -1 where there is none.
    """

    answers: list[Floats]
    similarities: Floats
    rows: Ints

    @property
    def similarity(self) -> Floats:
        """(M,) to the most similar training row."""
        return self.similarities[:, 0]

    @property
    def nearest(self) -> Ints:
        """(M,) number of that training row."""
        return self.rows[:, 0]


def ask(
    members: Sequence[FittedMember], texts: Sequence[str], rows: Sequence[str], compared: dict[str, ComparedRows]
) -> Told:
    """Asks members about texts, block by block; what several see alike is made once.

    Args:
        members: Fitted members.
        texts: Windows of one width, or whole sequences.
        rows: Texts of the training rows, where members compare.
        compared: These, ready to be compared with, by view; filled here, to be given again.
    """
    classes = members[0].classes if members else 0
    shape = (len(texts), classes) if classes else (len(texts),)
    answers = [np.empty(shape) for _ in members]
    similarities = np.full((len(texts), NEAREST_ROWS), np.nan)
    near = np.full((len(texts), NEAREST_ROWS), -1, np.int64)
    for part in _blocks(texts, len(rows) if any(member.compares for member in members) else 0):
        block = TextBlock(texts[part])
        alike: dict[str, Singles] = {}
        for member, answer in zip(members, answers, strict=True):
            if member.compares and member.view not in alike:
                if member.view not in compared:
                    compared[member.view] = ComparedRows(member.view, rows)
                alike[member.view] = compared[member.view].similarity(block)
                near[part], similarities[part] = _few_nearest(alike[member.view])
            answer[part] = member.answer_block(block, alike.get(member.view))
    return Told(answers, similarities, near)


def _blocks(texts: Sequence[str], rows: int) -> Iterator[slice]:
    """Runs of texts of which neither the comparisons with training rows nor the letters are too many."""
    most = max(16, min(_BLOCK_TEXTS, _BLOCK_NUMBERS // max(rows, 1)))
    start = letters = 0
    for number, text in enumerate(texts):
        letters += len(text)
        if number + 1 - start == most or letters > _BLOCK_LETTERS:
            yield slice(start, number + 1)
            start, letters = number + 1, 0
    if start < len(texts):
        yield slice(start, len(texts))


def _few_nearest(similarity: Singles) -> tuple[Ints, Floats]:
    """(M, :data:`NEAREST_ROWS`) numbers of the most similar of N training rows, of equals the first, and their
    similarities; -1 and NaN beyond the last row."""
    count = len(similarity)
    every, rows = np.arange(count), np.full((count, NEAREST_ROWS), -1, np.int64)
    values = np.full((count, NEAREST_ROWS), np.nan)
    most = min(NEAREST_ROWS, similarity.shape[1])
    for place in range(most):
        best = similarity.argmax(axis=1)
        rows[:, place], values[:, place] = best, similarity[every, best]
        similarity[every, best] = -1
    for place in range(most):  # as it was given
        similarity[every, rows[:, place]] = values[:, place]
    return rows, values
