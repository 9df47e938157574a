"""The kinds of sequence members, and how each learns. Settings are chosen by whoever asks (cross-validation)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from plm.data import homology
from plm.model.members import features
from plm.model.members.fitted import (
    IMPOSSIBLE,
    FittedMember,
    Floats,
    KernelMember,
    LinearMember,
    NeighbourMember,
    Setting,
    kernel,
    linked,
    vote,
)

LONGEST_ONE_HOT = 400
MOST_KERNEL_ROWS = 4000
"""Rows that a kernel regression learns from; of more an evenly spread sample."""
NEIGHBOURS = (1, 3, 5, 10, 20, 50)
POWERS = (1, 3)
GAMMAS, PENALTIES = (4.0, 2.0), (1.0, 0.3, 0.1)
_MOST_ROUNDS, _FEWER_ROUNDS, _LARGE = 1000, 100, 1_000_000
"""Iterations of logistic regression: where rows x features x classes are many, scikit-learn's default of 100 and single
precision, since the last digits of a weak predictor are not worth minutes."""


class MemberKind(Protocol):
    """One kind of member.

    Attributes:
        name: Name in tables and figures.
        about: Sentence on how it works.
        view: What it sees of a text.
        settings: Candidates, the most restrained first, so that they win ties.
    """

    name: str
    about: str
    view: str
    settings: tuple[Setting, ...]

    def fit(self, seen: Any, target: NDArray[Any], setting: Setting, classes: int) -> FittedMember:
        """Learns from N rows: what is seen of them, and (N,) class numbers or numbers (``classes`` 0)."""

    def answers(
        self, seen: Any, target: NDArray[Any], new: Any, settings: Sequence[Setting], classes: int
    ) -> list[Floats]:
        """(M, K) or (M,) answers to new rows after learning from ``seen``, one array a setting."""


class Linear:
    """Logistic regression (classes) or ridge regression (numbers) on fixed features."""

    def __init__(self, view: str, about: str, numbers: bool, scalings: Sequence[bool]) -> None:
        self.name, self.view = view, view
        self.about = f"{about}, {'ridge' if numbers else 'logistic'} regression"
        strengths = (100.0, 10.0, 1.0, 0.1, 0.01) if numbers else (0.1, 1.0, 10.0, 100.0)
        key = "alpha" if numbers else "C"
        self.settings: tuple[Setting, ...] = tuple({key: x, "scaled": s} for x in strengths for s in scalings)

    def fit(self, seen: Any, target: NDArray[Any], setting: Setting, classes: int) -> LinearMember:
        weight, bias = linear_model(seen, target, setting, classes)
        return LinearMember(self.name, self.view, classes, setting, weight, bias)

    def answers(
        self, seen: Any, target: NDArray[Any], new: Any, settings: Sequence[Setting], classes: int
    ) -> list[Floats]:
        return [self.fit(seen, target, setting, classes).answer(new) for setting in settings]


def linear_model(seen: Floats, target: NDArray[Any], setting: Setting, classes: int) -> tuple[Floats, Floats]:
    """Fits one linear model.

    Args:
        seen: (N, F) training features.
        target: (N,) class numbers or numbers.
        setting: ``C`` or ``alpha``, and ``scaled``: each feature to mean 0 and deviation 1 on the training rows.
        classes: K, or 0 for numbers.

    Returns:
        ``(R, F)`` weights and ``(R,)`` biases for features as they are, as :class:`LinearMember` has them.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.preprocessing import StandardScaler

    rows = 1 if classes < 3 else classes
    there = np.unique(target) if classes else np.empty(0)
    if classes and len(there) == 1:
        only = int(there[0])
        bias = np.full(rows, IMPOSSIBLE)
        if classes == 2:
            bias[0] = -IMPOSSIBLE if only else IMPOSSIBLE
        else:
            bias[only] = 0
        return np.zeros((rows, seen.shape[1])), bias
    large = classes > 2 and seen.size * classes > _LARGE
    kind = np.float32 if large else np.float64
    scaler = StandardScaler().fit(seen.astype(kind)) if setting["scaled"] else None
    scaled = seen.astype(kind) if scaler is None else scaler.transform(seen.astype(kind))
    if not classes:
        model: Any = Ridge(alpha=setting["alpha"]).fit(scaled, target)
    else:
        with warnings.catch_warnings():
            # A fit that stops at the last iteration is still a predictor; its score is judged like any other.
            warnings.simplefilter("ignore", ConvergenceWarning)
            rounds = _FEWER_ROUNDS if large else _MOST_ROUNDS
            model = LogisticRegression(C=setting["C"], max_iter=rounds).fit(scaled, target)
    weight = np.atleast_2d(np.asarray(model.coef_, np.float64))
    bias = np.atleast_1d(np.asarray(model.intercept_, np.float64))
    if scaler is not None:
        weight = weight / scaler.scale_
        bias = bias - weight @ scaler.mean_
    if classes < 3 or len(there) == classes:
        return weight, bias
    full, offset = np.zeros((classes, seen.shape[1])), np.full(classes, IMPOSSIBLE)
    if len(there) == 2:  # scikit-learn has one row for two classes
        weight, bias = np.concatenate([np.zeros_like(weight), weight]), np.concatenate([np.zeros(1), bias])
    full[there.astype(int)], offset[there.astype(int)] = weight, bias
    return full, offset


class Neighbours:
    """The k most similar training rows, weighted by a power of their similarity."""

    name = "nearest neighbour"

    def __init__(self, view: str) -> None:
        self.view = view
        self.about = f"the k most similar training rows ({features.MEASURES[view]}), weighted by a power of it"
        self.settings: tuple[Setting, ...] = tuple({"k": k, "power": p} for k in reversed(NEIGHBOURS) for p in POWERS)

    def fit(self, seen: Any, target: NDArray[Any], setting: Setting, classes: int) -> NeighbourMember:
        return NeighbourMember(self.name, self.view, classes, setting, target)

    def answers(
        self, seen: Any, target: NDArray[Any], new: Any, settings: Sequence[Setting], classes: int
    ) -> list[Floats]:
        parts = []
        compare = features.comparer(self.view, seen)
        for start in range(0, new.shape[0], 500):
            parts.append(vote(compare(new[start : start + 500]), target, settings, classes))
        empty = np.zeros((0, classes) if classes else 0)
        return [np.concatenate([empty, *(part[number] for part in parts)]) for number in range(len(settings))]


class Kernel:
    """Kernel ridge regression on the similarity of windows, place by place."""

    name = "similar windows"
    view = "one-hot"
    about = "kernel ridge regression on the share of places at which two windows agree"
    settings: tuple[Setting, ...] = tuple({"gamma": g, "penalty": p} for g in GAMMAS for p in PENALTIES)

    def fit(self, seen: Any, target: NDArray[Any], setting: Setting, classes: int) -> KernelMember:
        places = _sample(len(target))
        own = seen[places]
        near = features.similarity(self.view, own, own)
        gamma = setting["gamma"] * _spread(near)
        dual, bias = _solve(kernel(near, gamma), target[places], setting["penalty"], classes)
        return KernelMember(self.name, self.view, classes, {**setting, "gamma": gamma}, places, dual, bias)

    def answers(
        self, seen: Any, target: NDArray[Any], new: Any, settings: Sequence[Setting], classes: int
    ) -> list[Floats]:
        places = _sample(len(target))
        own = seen[places]
        near, far = features.similarity(self.view, own, own), features.similarity(self.view, new, own)
        spread, answers = _spread(near), []
        for setting in settings:
            gamma = setting["gamma"] * spread
            dual, bias = _solve(kernel(near, gamma), target[places], setting["penalty"], classes)
            answers.append(linked(kernel(far, gamma) @ dual + bias, classes))
        return answers


def _sample(count: int) -> NDArray[np.int64]:
    """Numbers of the rows that a kernel regression learns from: all, or an evenly spread sample."""
    return np.unique(np.linspace(0, count - 1, min(count, MOST_KERNEL_ROWS)).astype(np.int64))


def _spread(similarity: NDArray[np.float32]) -> float:
    """1 over the mean distance of two rows: what makes one ``gamma`` fit windows and variants of one protein."""
    count = len(similarity)
    mean = float((1 - similarity).sum()) / max(count * (count - 1), 1)
    return 1 / max(mean, 1e-3)


def _solve(gram: NDArray[np.float32], target: NDArray[Any], penalty: float, classes: int) -> tuple[Floats, Floats]:
    """``(S, R)`` dual coefficients and ``(R,)`` biases of a ridge regression, on 0 and 1 for classes."""
    from scipy.linalg import cho_factor, cho_solve

    wanted = np.asarray(target, np.float64)[:, None]
    scale = 1.0
    if classes > 2:
        wanted = np.eye(classes)[target]
    elif not classes:
        scale = float(wanted.std()) or 1.0
    bias = wanted.mean(axis=0)
    matrix = gram.astype(np.float64)
    matrix[np.diag_indices_from(matrix)] += penalty
    dual = cho_solve(cho_factor(matrix, lower=True, overwrite_a=True), (wanted - bias) / scale) * scale
    if classes > 2:
        bias = np.where(bias > 0, bias, IMPOSSIBLE)
    return dual, bias


def kinds_for(texts: Sequence[str], *, aligned: bool, numbers: bool, compare: bool = True) -> list[MemberKind]:
    """The kinds that make sense for rows.

    Args:
        texts: Windows of one width, or whole sequences.
        aligned: The texts have one length and equal places correspond.
        numbers: The labels are numbers.
        compare: Also kinds that compare with training rows.
    """
    longest = max(map(len, texts), default=0)
    placed = aligned and longest <= LONGEST_ONE_HOT
    kinds: list[MemberKind] = [
        Linear("composition", "amino-acid shares", numbers, (False, True)),
        Linear("dipeptides", "shares of residue pairs", numbers, (True, False)),
    ]
    if placed:
        kinds.append(Linear("one-hot", "the residue at each place", numbers, (False,)))
    if compare:
        short = longest <= homology.LONGEST_WINDOW
        kinds.append(Neighbours("one-hot" if placed else "ungapped" if short else "words"))
        if placed:
            kinds.append(Kernel())
    return kinds
