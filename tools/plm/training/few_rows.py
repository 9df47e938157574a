"""Too few rows: what is refused, what is not calibrated, and what is said first, in the same words everywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plm.data.task import LIKELIEST, Task, Threshold
from plm.errors import UserError
from plm.scoring import calibration
from plm.wording import counted

FEWEST_TRAINING = 8
"""Labelled training rows (residues, where each residue has a label) below which nothing is trained."""
FEWEST_OF_A_CLASS = 2
"""Training rows of each of two classes, likewise."""
FEWEST_CALIBRATION = 5
"""Labelled validation rows below which no temperature and no threshold is fitted."""
FEW_TRAINING, FEW_VALIDATION = 50, 20
"""Rows below which a warning comes first."""


def refuse(labels: Sequence[str], part: str, where: str, *, binary: Sequence[str] = ()) -> None:
    """Refuses to train on next to nothing.

    Args:
        labels: Labels of the training rows (or residues).
        part: The rows in the message, such as ``the training part``.
        where: Where the rows come from, for messages: the table or its split.
        binary: The two classes of a task with two; empty otherwise.

    Raises:
        UserError: Too few rows, or too few of one of two classes: says how many there are and how many are needed.
    """
    fix = "Bring more labelled records, or give the training part a larger share with plm_preprocess"
    if len(labels) < FEWEST_TRAINING:
        raise UserError(
            f"There {'is' if len(labels) == 1 else 'are'} only {counted(len(labels), 'labelled row')} in {part}, and "
            f"training needs at least {FEWEST_TRAINING}",
            where=where, fix=fix,
        )
    for name in binary:
        count = sum(label == name for label in labels)
        if count < FEWEST_OF_A_CLASS:
            raise UserError(
                f"The class {name!r} has {counted(count, 'row') if count else 'no row'} in {part}, and training needs "
                f"at least {FEWEST_OF_A_CLASS} of each class",
                where=where, fix=fix,
            )


def why_uncalibrated(truth: NDArray[Any]) -> str:
    """Why labelled validation rows of classes can give no temperature and no threshold; empty if they can."""
    if len(truth) < FEWEST_CALIBRATION:
        return f"there {'is' if len(truth) == 1 else 'are'} only {counted(len(truth), 'labelled validation row')}"
    if len(np.unique(truth)) < 2:
        return f"the {len(truth):,} validation rows hold one class only"
    return ""


def threshold_for(task: Task, values: NDArray[Any], truth: NDArray[Any], metric: str = "macro_f1") -> Threshold:
    """What calls are made by, from answers to validation rows; calls the likeliest where these are too few.

    Args:
        task: Classes, or numbers.
        values: (N, K) probabilities.
        truth: (N,) class numbers.
        metric: Main metric.
    """
    if task.target == "number" or why_uncalibrated(truth):
        return LIKELIEST
    return calibration.threshold_for(
        values, truth, positive=task.positive_index if task.binary else None, metric=metric
    )


def warning(rows: Mapping[str, int]) -> str:
    """What must be said first of so few rows; empty if there are enough.

    Args:
        rows: Number of rows of the splits ``train`` and ``valid``.
    """
    train, valid = rows["train"], rows["valid"]
    if train >= FEW_TRAINING and valid >= FEW_VALIDATION:
        return ""
    return (
        f"FEW ROWS: trained on {counted(train, 'row')} with {counted(valid, 'validation row')}; so few cannot show "
        "what the model is worth on other proteins, whatever its scores"
    )
