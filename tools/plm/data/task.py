"""What is asked of proteins: an answer for which unit of them, and with classes or a number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from plm.errors import UserError

Level = Literal["sequence", "residue", "site"]
Target = Literal["class", "number"]
LEVELS: tuple[Level, ...] = ("sequence", "residue", "site")
TARGETS: tuple[Target, ...] = ("class", "number")
Threshold = float | tuple[float, ...]
"""What a probability must reach for its class to be called. Of two classes: on the positive one. Of more: one for each
class, and called is the class whose probability is the largest multiple of its threshold; a single number calls the
likeliest."""
LIKELIEST = 0.5
"""The threshold that calls the likeliest class."""


def threshold_fields(threshold: Threshold) -> dict[str, Any]:
    """A manifest's fields ``threshold`` and ``class_thresholds`` (null of two classes, and where there are none)."""
    if isinstance(threshold, tuple):
        return {"threshold": LIKELIEST, "class_thresholds": list(threshold)}
    return {"threshold": threshold, "class_thresholds": None}


def threshold_of(fields: Mapping[str, Any]) -> Threshold:
    """The threshold that :func:`threshold_fields` wrote; bundles of earlier versions have no class thresholds."""
    if several := fields.get("class_thresholds"):
        return tuple(float(value) for value in several)
    return float(fields.get("threshold", LIKELIEST))


def largest_multiple(probabilities: NDArray[np.float64], thresholds: tuple[float, ...]) -> NDArray[np.int64]:
    """(N,) column whose probability is the largest multiple of its threshold."""
    return (probabilities / np.asarray(thresholds)).argmax(axis=1).astype(np.int64)


@dataclass(frozen=True)
class Task:
    """One prediction task.

    Attributes:
        level: One answer a sequence, a residue or a labelled site.
        target: ``class`` or ``number``.
        classes: Names of the classes in the order of the outputs; empty for numbers.
        positive: Of two classes, the one whose probability the threshold judges; else empty. Datasets leave it open:
            the last class is positive unless the user says otherwise (:meth:`with_positive`).
        mean: Mean of the training numbers; outputs are standardised.
        sd: Standard deviation of the training numbers, above 0.
    """

    level: Level
    target: Target
    classes: tuple[str, ...] = ()
    positive: str = ""
    mean: float = 0.0
    sd: float = 1.0

    @property
    def outputs(self) -> int:
        """Width K of the head's output."""
        return len(self.classes) if self.target == "class" else 1

    @property
    def binary(self) -> bool:
        return self.target == "class" and len(self.classes) == 2

    @property
    def positive_index(self) -> int:
        """Column of the positive class."""
        return self.classes.index(self.positive) if self.positive else len(self.classes) - 1

    @property
    def kind(self) -> str:
        """``binary``, ``multiclass`` or ``number``."""
        if self.target == "number":
            return "number"
        return "binary" if self.binary else "multiclass"

    def with_positive(self, positive: str) -> Task:
        """The task with its positive class settled: the one named, else the last of two; none of other tasks.

        Raises:
            UserError: ``positive`` is not one of two classes.
        """
        if positive and (not self.binary or positive not in self.classes):
            raise UserError(
                f"{positive!r} is not one of two classes ({', '.join(self.classes) or 'the labels are numbers'})",
                where="--positive-class", fix="Give one of the classes of a task with two",
            )
        return replace(self, positive=(positive or self.classes[-1]) if self.binary else "")

    def called(self, probabilities: NDArray[np.float64], threshold: Threshold) -> NDArray[np.int64]:
        """(N,) number of the class called for each row of ``(N, K)``."""
        if isinstance(threshold, tuple):
            return largest_multiple(probabilities, threshold)
        if self.binary:
            at = self.positive_index
            return np.where(probabilities[:, at] >= threshold, at, 1 - at).astype(np.int64)
        return probabilities.argmax(axis=1).astype(np.int64)

    def calls(self, probabilities: NDArray[np.float64], threshold: Threshold) -> list[str]:
        """The class called for each row of ``(N, K)``."""
        return [self.classes[index] for index in self.called(probabilities, threshold)]

    def to_json(self) -> dict[str, Any]:
        """The manifest's fields ``task``, ``labels``, ``positive`` and ``standardisation``."""
        fields: dict[str, Any] = {"task": {"level": self.level, "target": self.target}, "labels": list(self.classes)}
        fields["positive"] = self.positive
        if self.target == "number":
            fields["standardisation"] = {"mean": self.mean, "sd": self.sd}
        return fields

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Task:
        """The task that :meth:`to_json` wrote.

        Raises:
            UserError: A field is missing or has a value that this version does not know.
        """
        try:
            level, target = fields["task"]["level"], fields["task"]["target"]
            classes = tuple(str(label) for label in fields["labels"])
            scale = fields.get("standardisation", {"mean": 0.0, "sd": 1.0})
            task = cls(level, target, classes, str(fields["positive"]), float(scale["mean"]), float(scale["sd"]))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"The bundle's manifest does not describe its task ({error})",
                fix="Give the bundle as the suite wrote it",
            ) from error
        if level not in LEVELS or target not in TARGETS or (target == "class" and len(classes) < 2):
            raise UserError(
                "The bundle's manifest describes a task that this version does not know",
                fix="Use the version of the suite that made the bundle",
            )
        if task.positive and task.positive not in classes:
            raise UserError(
                "The bundle's manifest names a positive class that is none of its classes",
                fix="Give the bundle as the suite wrote it",
            )
        return task
