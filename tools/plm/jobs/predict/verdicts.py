"""From probabilities to what a user is told: call, set of classes, likeness to the training proteins, abstention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from plm.data.task import Task
from plm.errors import UserError
from plm.jobs.predict.queries import visible
from plm.scoring.conformal import Errors, Intervals, LabelSets
from plm.scoring.novelty import Novelty

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Abstain = Literal["never", "novel", "unsure", "either"]
ABSTAIN: tuple[Abstain, ...] = ("never", "novel", "unsure", "either")
ABSTAINED = "abstain"


@dataclass(frozen=True)
class Rules:
    """How answers are judged.

    Attributes:
        task: Level, kind of target and classes of the answers.
        call: Classes called for ``(N, K)`` probabilities.
        uncertainty: Sets of classes or intervals; None without validation rows.
        novelty: None if there is nothing to compare with.
        abstain: When no call is made: ``never``, ``novel`` (unlike the training proteins), ``unsure`` (the set is not a
            single class), ``either``.
        names: Class names as tables show them.
    """

    task: Task
    call: Callable[[Floats], list[str]]
    uncertainty: LabelSets | Intervals | None
    novelty: Novelty | None
    abstain: Abstain
    names: tuple[str, ...]

    @property
    def abstained(self) -> str:
        """What stands in place of a call; empty if a class has that very name."""
        return "" if ABSTAINED in self.names else ABSTAINED


@dataclass(frozen=True)
class Verdicts:
    """What is told of n records.

    Attributes:
        best: n classes called, whether or not they are told; empty strings for numbers.
        confidence: (n,) probability of the class called; the number itself for numbers.
        sets: (n, K) classes in each set; None if there are none.
        ends: Lower and upper ends of intervals, each (n,); None if there are none.
        distance: (n,) from the training proteins; None if it is not known.
        novel: (n,) beyond the threshold; all False if it is not known.
        nearest: (n,) numbers of the nearest reference proteins; None if they are not known.
        abstained: (n,) no call is made.
    """

    best: list[str]
    confidence: Floats
    sets: Flags | None
    ends: tuple[Floats, Floats] | None
    distance: Floats | None
    novel: Flags
    nearest: NDArray[np.int64] | None
    abstained: Flags


def make_rules(
    task: Task, call: Callable[[Floats], list[str]], *, errors: Errors | None, coverage: float, by_class: bool,
    novelty: Novelty | None, abstain: Abstain,
) -> Rules:
    """Settles how answers are judged.

    Args:
        task: Level, kind of target and classes of the answers.
        call: Classes called for ``(N, K)`` probabilities.
        errors: Errors on validation rows; None if the bundle has none.
        coverage: Share of sets or intervals (0-1) that are to hold the truth.
        by_class: That is promised for each class.
        novelty: None if the bundle has no reference.
        abstain: When no call is made; see :class:`Rules`.

    Raises:
        UserError: To abstain on grounds that the bundle does not give; two class names that tables cannot tell apart.
    """
    names = tuple(visible(name) for name in task.classes)
    if len(set(names)) < len(names):
        raise UserError(
            "Two classes of the bundle have names that differ in tabs or line ends alone",
            fix="Train again with names that differ in their letters",
        )
    if abstain != "never" and task.level == "residue":
        raise UserError(
            "Bundles of residue tasks answer for every residue", where=f"--abstain {abstain}", fix="Choose never"
        )
    if abstain == "unsure" and task.target == "number":
        raise UserError(
            "Numbers come with intervals of one width: none is less sure than another", where="--abstain unsure",
            fix="Choose novel or never",
        )
    if abstain in ("unsure", "either") and errors is None:
        raise UserError(
            "The bundle has no scores of validation rows, so there are no sets to tell what is unsure",
            where=f"--abstain {abstain}", fix="Choose novel or never, or train the bundle anew",
        )
    if abstain in ("novel", "either") and novelty is None:
        raise UserError(
            "The bundle has no training proteins to compare with", where=f"--abstain {abstain}", fix="Choose never"
        )
    uncertainty: LabelSets | Intervals | None = None
    if errors is not None and task.target == "number":
        uncertainty = Intervals.fit(errors, coverage)
    elif errors is not None:
        uncertainty = LabelSets.fit(errors, coverage, by_class=by_class)
    return Rules(task, call, uncertainty, novelty, abstain, names)


def judge(rules: Rules, values: Floats, states: NDArray[np.float32] | None) -> Verdicts:
    """Judges n answers.

    Args:
        rules: Rules by which answers are called.
        values: (n, K) probabilities or (n, 1) numbers.
        states: (n, D) representations; None if there are none.
    """
    count = len(values)
    sets = ends = distance = nearest = None
    novel = np.zeros(count, bool)
    if isinstance(rules.uncertainty, LabelSets):
        sets = rules.uncertainty.sets(values)
    elif rules.uncertainty is not None:
        ends = rules.uncertainty.ends(values[:, 0])
    if rules.novelty is not None and states is not None:
        distance, novel, nearest = rules.novelty.judge(states)
    if rules.task.target == "class":
        best = rules.call(values)
        place = {name: index for index, name in enumerate(rules.task.classes)}
        confidence = values[np.arange(count), [place[name] for name in best]]
    else:
        best, confidence = [""] * count, values[:, 0]
    abstained = np.zeros(count, bool)
    if rules.abstain in ("novel", "either"):
        abstained |= novel
    if rules.abstain in ("unsure", "either") and sets is not None:
        abstained |= sets.sum(axis=1) != 1
    return Verdicts(best, confidence, sets, ends, distance, novel, nearest, abstained)
