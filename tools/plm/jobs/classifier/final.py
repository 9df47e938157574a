"""The head that goes into the bundle: the chosen one, or with folds that one fitted once more on all rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plm.data.task import LIKELIEST, Task, Threshold
from plm.jobs.classifier.training import Trained, fit
from plm.model.bundles.classifier import ClassifierHead
from plm.scoring import calibration
from plm.training import classifiers, few_rows

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Final:
    """The head of the bundle.

    Attributes:
        head: Classifier head that the bundle holds.
        task: Task with mean and standard deviation of the training numbers.
        temperature: Number by which logits are divided.
        threshold: What calls are made by.
        validation: (n, K) calibrated probabilities or (n, 1) numbers of validation rows.
        truth: (n,) their class numbers or numbers.
        valid_rows: Numbers of these rows.
        train_rows: Numbers of the rows that the head was fitted on.
        about: Sentence on how the head came to be.
    """

    head: ClassifierHead
    task: Task
    temperature: float
    threshold: Threshold
    validation: Floats
    truth: NDArray[Any]
    valid_rows: list[int]
    train_rows: list[int]
    about: str

    @property
    def why_uncalibrated(self) -> str:
        """Why temperature and threshold are those of no calibration; empty if they were fitted, and of numbers."""
        return few_rows.why_uncalibrated(self.truth) if self.task.target == "class" else ""


def finish(trained: Trained) -> Final:
    """The chosen head: as it is, or with folds fitted once more on all rows."""
    material, chosen = trained.material, trained.members[trained.chosen]
    valid_rows = [row for part in material.parts for row in part.valid]
    truth = material.target[np.asarray(valid_rows, np.int64)]
    validation, _ = trained.answers(trained.chosen, valid=True)
    if not material.folds:
        [one] = chosen
        about = "fitted on the training rows; the test rows judge this very head"
        return Final(
            one.fitted.head, one.task, one.temperature, one.threshold, validation, truth, valid_rows,
            material.parts[0].train, about,
        )
    everything = sorted(valid_rows)
    rows = material.rows(everything, standardise=trained.settings.standardise)
    settings = trained.settings
    if trained.chosen == "feedforward":
        epochs = int(np.median([one.fitted.head.settings["epochs_trained"] for one in chosen]))
        network = settings.network
        if trained.searches:  # those of the fold that they served best
            sign = classifiers.better(material.metric)
            network = max(trained.searches, key=lambda one: sign * one.best).settings
        settings = replace(settings, network=replace(network, epochs=epochs, patience=0))
    fitted = fit(trained.chosen, rows, None, material.metric, settings)
    temperature = 1.0
    threshold: Threshold = LIKELIEST
    if material.task.target == "class" and not few_rows.why_uncalibrated(truth):
        temperature = calibration.fit_temperature(np.concatenate([one.valid for one in chosen]), truth)
        threshold = few_rows.threshold_for(material.task, validation, truth, material.metric)
    about = (
        f"fitted on all rows with the settings that the {len(chosen)} folds led to; "
        + ("its calibration comes from the folds' validation rows, and " if material.task.target == "class" else "")
        + "the out-of-fold scores are those of the folds' heads"
    )
    return Final(fitted.head, rows.task, temperature, threshold, validation, truth, valid_rows, everything, about)
