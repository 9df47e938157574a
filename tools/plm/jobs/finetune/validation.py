"""What validation rows say of the trained networks: temperatures, thresholds, scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from plm.data.task import Threshold
from plm.jobs.finetune import objectives
from plm.jobs.finetune.job import FineTuningJob, Run
from plm.model.network import Floats
from plm.scoring.calibration import fit_temperature
from plm.scoring.conformal import Errors
from plm.scoring.operating_point import score_summary
from plm.training import few_rows


@dataclass(frozen=True)
class Calibration:
    """What validation rows say about the outputs.

    Attributes:
        temperatures: Temperature of each training, in the order of ``job.usable``.
        thresholds: What calls are made by, by fold (None: no folds); empty for numbers.
        threshold: The same for new proteins.
        scores: Validation metrics of the ensemble, raw probabilities, all folds together.
        rows: Labelled validation rows (or residues) behind it.
        validation_scores: Of two classes, the ensemble's scores of validation negatives and positives, summed up for
            whoever needs the rates at another threshold.
        errors: How wrong the ensemble was on validation proteins, for conformal sets; empty unless rows are proteins.
        uncalibrated: Why the trainings of a fold (None: no folds) have temperature 1 and threshold 0.5, where they do.
        why_no_threshold: Why there is no threshold for new proteins; empty if there is one, and for numbers.
    """

    temperatures: list[float]
    thresholds: dict[int | None, Threshold]
    threshold: Threshold
    scores: dict[str, float]
    rows: int
    validation_scores: dict[str, Any]
    errors: dict[str, Any]
    uncalibrated: dict[int | None, str] = field(default_factory=dict)
    why_no_threshold: str = ""

    @property
    def why_not(self) -> str:
        """Why nothing is calibrated, of some folds or of all; empty if all are."""
        told = dict.fromkeys(
            f"fold {fold}: {why}" if fold is not None else why for fold, why in self.uncalibrated.items()
        )
        return "; ".join(told)


def calibrate(job: FineTuningJob, runs: Sequence[Run] | None = None) -> Calibration:
    """Fits a temperature for each training and a threshold for each fold.

    Args:
        job: Job whose trainings are done.
        runs: The trainings of one way; by default those of the chosen one.
    """
    task = job.rows.task
    runs = job.usable if runs is None else runs
    temperatures: list[float] = []
    by_fold: dict[int | None, list[Floats]] = {}
    uncalibrated: dict[int | None, str] = {}
    for run in runs:
        truth = job.rows.values(run.part.valid)
        known = objectives.labelled(truth)
        raw = run.valid_outputs()[known]
        temperature = 1.0
        if task.target == "class":
            if why := few_rows.why_uncalibrated(truth[known]):
                uncalibrated[run.part.fold] = why
            else:
                temperature = fit_temperature(raw, truth[known])
            by_fold.setdefault(run.part.fold, []).append(softmax(raw / temperature, axis=1))
        else:
            scale = job.prepared[run.part.fold].task
            by_fold.setdefault(run.part.fold, []).append(raw * scale.sd + scale.mean)
        temperatures.append(temperature)
    parts = {run.part.fold: run.part for run in runs}
    answers, truths = {}, {}
    for fold, members in by_fold.items():
        truth = job.rows.values(parts[fold].valid)
        truths[fold] = truth[objectives.labelled(truth)]
        answers[fold] = np.mean(members, axis=0)
    for fold, why in uncalibrated.items():
        of = "" if fold is None else f" of fold {fold}"
        job.log.warning("Probabilities%s are not calibrated and the threshold stays at 0.5, since %s", of, why)
    return calibration_of(job, temperatures, answers, truths, uncalibrated)


def calibration_of(
    job: FineTuningJob, temperatures: list[float], answers: Mapping[int | None, Floats],
    truths: Mapping[int | None, NDArray[Any]], uncalibrated: dict[int | None, str],
    together: tuple[Floats, NDArray[Any]] | None = None,
) -> Calibration:
    """Thresholds, scores and errors from answers to labelled validation rows.

    Args:
        job: Job whose rows they are.
        temperatures: Of each training.
        answers: By fold, (n, K) calibrated probabilities or (n, 1) numbers.
        truths: By fold, (n,) class numbers or numbers.
        uncalibrated: By fold, why its answers are not calibrated.
        together: Answers and truth for new proteins; by default those of all folds.
    """
    task = job.rows.task
    thresholds: dict[int | None, Threshold] = {}
    if task.target == "class":
        thresholds = {fold: few_rows.threshold_for(task, values, truths[fold]) for fold, values in answers.items()}
    if together is None:
        together = np.concatenate(list(answers.values())), np.concatenate(list(truths.values()))
    values, truth = together
    threshold = thresholds[None] if None in thresholds else few_rows.threshold_for(task, values, truth)
    why_no_threshold = few_rows.why_uncalibrated(truth) if task.target == "class" else ""
    raw = np.log(np.clip(values, 1e-12, 1)) if task.target == "class" else (values - task.mean) / task.sd
    scores = objectives.validation_scores(raw, truth, task)
    summary = {}
    if task.binary:
        summary = score_summary(values[:, task.positive_index], truth == task.positive_index)
    errors = {}
    if task.level == "sequence":  # residues of a protein are not exchangeable
        errors = Errors.of(values, truth, number=task.target == "number").to_json()
    return Calibration(
        temperatures, thresholds, threshold, scores, len(truth), summary, errors, uncalibrated, why_no_threshold
    )
