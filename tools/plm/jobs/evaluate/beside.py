"""Baselines beside the models: what they answer, how near each row is to training, and what leaks from it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from plm.data import dataset_table
from plm.jobs.evaluate import baseline_rows, leaking_rows
from plm.scoring import baselines
from plm.scoring.assessment import Leaking
from plm.scoring.baselines import Answer
from plm.scoring.metrics import Scored
from plm.scoring.predictions import Evaluation, Model


class Beside(NamedTuple):
    """What stands beside the models; nothing without a training table.

    Attributes:
        answers: Answers of the baselines to the evaluated rows.
        identity: (M,) of each row to its nearest training row, 0-1.
        best: Name of the baseline to beat.
        notes: Sentences on how it was done.
        training_rows: Number of rows that the baselines could learn from.
    """

    answers: Sequence[Answer] = ()
    identity: NDArray[np.float64] | None = None
    best: str = ""
    notes: Sequence[str] = ()
    training_rows: int | None = None


def ask_baselines(
    training: Path, evaluation: Evaluation, metric: str, *, window: int, seed: int, most_rows: int, threads: int,
    log: logging.Logger,
) -> Beside:
    """Trains the baselines on the training rows and lets them answer the evaluated ones.

    Args:
        training: The dataset table that the predictions come from.
        evaluation: Evaluated rows and what each model said about them.
        metric: Metric by which the baseline to beat is chosen.
        window: Residues around a site that baselines see.
        seed: Seed of the samples and of the baselines.
        most_rows: Training rows that the baselines see at most.
        threads: Processor threads to use.
        log: Logger told of progress.
    """
    prepared = baseline_rows.prepare(
        dataset_table.read_dataset(training), evaluation.keys(), list(evaluation.rows["label"]), evaluation.kind,
        evaluation.classes, window, training.name,
    )
    log.info("baselines learn from %d training rows: %s", prepared.training_rows, prepared.about)
    answers = prepared.answers(evaluation.classes, metric, seed=seed, most_rows=most_rows)
    log.info("baselines done; looking for the nearest training row of each evaluated row")
    identity = prepared.nearest(threads)
    notes = [f"Baselines learn from {prepared.training_rows} training rows and see {prepared.about}"]
    if prepared.training_rows > most_rows:
        notes.append(f"of the training rows the baselines saw a random sample of {most_rows}")
    notes.append(f"Identity to the nearest training row: {prepared.measure}")
    return Beside(answers, identity, baselines.best_of(answers, metric).name, notes, prepared.training_rows)


def with_baselines(evaluation: Evaluation, answers: Sequence[Answer]) -> Evaluation:
    """The evaluation with the baselines among its models."""
    added = tuple(
        Model(
            one.name, Scored(evaluation.kind, evaluation.truth, one.scores, one.calls, evaluation.classes),
            baseline=True,
        )
        for one in answers
    )
    return replace(evaluation, models=evaluation.models + added)


def leaking_from(training: Path, evaluation: Evaluation, threads: int) -> Leaking:
    """What the evaluated rows share with training; the dataset was checked for the baselines before."""
    ids = [name for name, _ in evaluation.keys()]  # noqa: SIM118 - a method that makes the keys
    return leaking_rows.leaking(dataset_table.read_dataset(training), ids, threads)
