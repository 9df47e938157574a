"""What every loaded bundle offers, whatever lies in it: the one interface of the stages that answer with bundles."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plm import fingerprints
from plm.data.task import Task, Threshold, threshold_fields, threshold_of
from plm.errors import UserError
from plm.model.bundles.predictor import Predictor

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]


class Bundle(ABC):
    """A loaded bundle.

    Attributes:
        manifest: Content of ``manifest.json``.
        task: Level, kind of target and classes that the bundle answers.
        name: What predictions tables and reports call it (the manifest's ``name``).
        predictor: Sequence members and their combination with the language model; None if that answers alone.
    """

    def __init__(self, manifest: Mapping[str, Any], task: Task, predictor: Predictor | None = None) -> None:
        self.manifest = dict(manifest)
        self.task = task
        self.predictor = predictor
        self.name = str(manifest["name"])

    @property
    @abstractmethod
    def reference(self) -> tuple[list[str], list[str], Singles]:
        """Ids, labels and ``(M, D) float32`` representations of a sample of training rows."""

    @property
    def finished(self) -> bool:
        """False if its training was cut short by a time limit."""
        return bool(self.manifest.get("finished", True))

    @property
    def threshold(self) -> Threshold:
        """What calls are made by, chosen on validation rows."""
        return threshold_of(self.manifest)

    def leave_language_model_alone(self) -> None:
        """From now on the language model answers alone, with threshold and validation errors of its own."""
        if self.predictor is None:
            return
        about = self.manifest["predictor"].get("language_model", {})
        self.predictor = None
        self.manifest |= {**threshold_fields(threshold_of(about)), "conformal": about.get("conformal") or {}}

    def signature(self, path: Path) -> str:
        """Name and digest of the file that it was loaded from, for the column ``model`` of predictions."""
        return f"{self.name}@{fingerprints.file_sha256(path)[:12]}"

    def calls(self, probabilities: Floats, threshold: Threshold | None = None) -> list[str]:
        """The class called for each row of ``(N, K)``.

        Args:
            probabilities: Calibrated, in the order of ``task.classes``.
            threshold: What calls are made by; the bundle's own by default.
        """
        return self.task.calls(probabilities, self.threshold if threshold is None else threshold)


def check_self_test(answers: Floats, expected: Floats, tolerance: float, task: Task, where: str, fix: str) -> None:
    """Loading proves itself: the answers to the stored inputs are those stored.

    Args:
        answers: ``(N, K)`` answers computed now.
        expected: ``(N, K)`` answers that the bundle holds.
        tolerance: How far a probability, or a standardised number, may move between machines.
        task: Task of the bundle.
        where: Name of the bundle's file, for messages.
        fix: What the user can do, for messages.

    Raises:
        UserError: They are not.
    """
    worst = float("nan")
    if answers.shape == expected.shape and answers.size:
        worst = float(np.abs(answers - expected).max() / (task.sd if task.target == "number" else 1.0))
    if not worst <= tolerance:
        raise UserError(
            f"The bundle fails its self-test: its answers are {worst:.3g} from those stored (tolerated: {tolerance:g})",
            where=where, fix=fix,
        )
