"""What a bundle answers with: its language model alone, or combined with sequence members.

The manifest's ``predictor`` says which; members lie in two files beside (:mod:`plm.model.members.stored`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plm.data.task import Task
from plm.model.combination import LANGUAGE_MODEL, Combination
from plm.model.members.fitted import NEAREST_ROWS, Told
from plm.model.members.stored import SequenceMembers, read_members

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Explained:
    """Answers, and what stands behind each.

    Attributes:
        answers: (N, K) probabilities or (N, 1) numbers of the combination.
        members: Of each member by name the same, the language model's first where it was asked.
        similarity: (N,) of the nearest training row, 0-1; NaN where no member compares.
        nearest: (N,) number of that row among the members' training rows; -1 where no member compares.
    """

    answers: Floats
    members: dict[str, Floats]
    similarity: Floats
    nearest: NDArray[np.int64]

    def row(self, number: int) -> Explained:
        """The same for one row."""
        part = slice(number, number + 1)
        members = {name: values[part] for name, values in self.members.items()}
        return Explained(self.answers[part], members, self.similarity[part], self.nearest[part])


def alone(model: Floats) -> Explained:
    """Answers of the language model where nothing stands beside it."""
    return Explained(model, {LANGUAGE_MODEL: model}, np.full(len(model), np.nan), np.full(len(model), -1, np.int64))


@dataclass(frozen=True)
class Reasons:
    """What stood behind N answers: what the members that count said, and the nearest training rows.

    Attributes:
        names: (m,) names of the members that count, in the order of the combination.
        said: (N, m, K) their probabilities, or (N, m, 1) numbers.
        similarities: (N, :data:`plm.model.members.fitted.NEAREST_ROWS`) to the nearest training rows, 0-1, the most
            similar first; NaN where there is none, or no member that counts compares.
        rows: The same shape: numbers of these among the members' training rows; -1 where there is none.
    """

    names: tuple[str, ...]
    said: Floats
    similarities: Floats
    rows: NDArray[np.int64]

    def row(self, number: int) -> Reasons:
        """A copy of what stood behind one answer."""
        part = slice(number, number + 1)
        return Reasons(self.names, self.said[part].copy(), self.similarities[part].copy(), self.rows[part].copy())

    @classmethod
    def together(cls, parts: Sequence[Reasons]) -> Reasons:
        """What stood behind the answers of one or more parts, one after the other."""
        return cls(
            parts[0].names, np.concatenate([one.said for one in parts]),
            np.concatenate([one.similarities for one in parts]), np.concatenate([one.rows for one in parts]),
        )

    def packed(self) -> Floats:
        """(N, m * K + 2 * NEAREST_ROWS) all of it in one array, to be kept in little memory."""
        return np.concatenate([self.said.reshape(len(self.said), -1), self.similarities, self.rows], axis=1)

    @classmethod
    def unpacked(cls, names: tuple[str, ...], packed: Floats) -> Reasons:
        """The inverse of :meth:`packed`."""
        said, similarities, rows = np.split(packed, [-2 * NEAREST_ROWS, -NEAREST_ROWS], axis=1)
        return cls(names, said.reshape(len(packed), len(names), -1), similarities, rows.astype(np.int64))


def no_others(model: Floats) -> Reasons:
    """What stands behind answers of a language model alone."""
    count = len(model)
    return Reasons(
        (LANGUAGE_MODEL,), model[:, None, :], np.full((count, NEAREST_ROWS), np.nan),
        np.full((count, NEAREST_ROWS), -1, np.int64),
    )


@dataclass(frozen=True)
class Predictor:
    """Sequence members and how they are combined with the language model.

    Attributes:
        combination: Weights of the members that count.
        members: Sequence members, those without a weight too.
        task: Task of the bundle.
    """

    combination: Combination
    members: SequenceMembers
    task: Task

    @property
    def uses_language_model(self) -> bool:
        return self.combination.uses_language_model

    def answer(
        self, model: Callable[[], Floats], sequences: Sequence[str], positions: Sequence[int] | None
    ) -> Floats:
        """(N, K) probabilities or (N, 1) numbers.

        Args:
            model: Answers of the language model; asked only if it counts.
            sequences: Whole sequences, windows, or what lies around sites.
            positions: 0-based sites; None for sequence and residue tasks.
        """
        return self.answer_with_reasons(model, sequences, positions)[0]

    def answer_with_reasons(
        self, model: Callable[[], Floats], sequences: Sequence[str], positions: Sequence[int] | None
    ) -> tuple[Floats, Reasons]:
        """As :meth:`answer`, with what the members that count said on the way."""
        counting = self._counting
        told = counting.ask(counting.texts(sequences, positions))
        answers = counting.answers(told)
        if self.uses_language_model:
            answers[LANGUAGE_MODEL] = model()
        names = self.combination.names
        said = np.stack([answers[name] for name in names], axis=1)
        return (
            self.combination.combine(answers, told.similarity, self.task),
            Reasons(names, said, told.similarities, told.rows),
        )

    def explain(self, model: Floats, sequences: Sequence[str], positions: Sequence[int] | None) -> Explained:
        """Answers with those of every member, counting or not; arguments as :meth:`answer`."""
        told = self.members.ask(self.members.texts(sequences, positions))
        return self.told(model, told)

    def told(self, model: Floats, told: Told) -> Explained:
        """As :meth:`explain`, for what the members have said already."""
        answers = {LANGUAGE_MODEL: model, **self.members.answers(told)}
        combined = self.combination.combine(answers, told.similarity, self.task)
        return Explained(combined, answers, told.similarity, told.nearest)

    @cached_property
    def _counting(self) -> SequenceMembers:
        return self.members.only(self.combination.names)

    def to_json(self) -> dict[str, Any]:
        """The manifest's ``predictor``."""
        return {"combination": self.combination.to_json(), **self.members.to_json()}


def read_predictor(folder: Path, manifest: Mapping[str, Any], task: Task, where: str) -> Predictor | None:
    """The predictor of an unpacked bundle; None if the language model answers alone.

    Args:
        folder: The unpacked bundle.
        manifest: The bundle's, checked by type and range.
        task: Task of the bundle.
        where: The bundle in messages.

    Raises:
        UserError: Members that are missing, do not fit each other, or do not answer as stored.
    """
    about = manifest.get("predictor")
    if not about or not about.get("combination"):
        return None
    held = about["combination"]
    members = read_members(folder, about, len(task.classes), where)
    combination = Combination(
        tuple(held["members"]), np.array(held["weights"], np.float64), np.array(held["slopes"], np.float64),
        np.array(held["bias"], np.float64), str(held["way"]),
    )
    return Predictor(combination, members, task)
