"""The rows of a fine-tuning: read, understood, parted, and checked for what the chosen methods need."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from plm.data.dataset_table import labelled_rows, read_dataset
from plm.errors import UserError
from plm.jobs.finetune.labelled_rows import LabelledRows, check_numbers, read_rows
from plm.training.folds import TrainingPart, parts


def read_data(
    dataset: Path, *, level: str, target: str, positive: str, window: int | None, fold: int | None,
    methods: Sequence[str], announce: Callable[[], None], log: logging.Logger,
) -> tuple[LabelledRows, list[TrainingPart]]:
    """The labelled rows and the splits to train on.

    Args:
        dataset: Dataset table with labels and splits or folds.
        level: Level of the labels: ``sequence``, ``residue``, ``site`` or ``auto``.
        target: ``class``, ``number`` or ``auto``.
        positive: Class to detect, of two; empty: the last.
        window: Residues around a site; None: as in the table; 0: whole proteins.
        fold: The only fold to train for; None: each.
        methods: Ways to train; validation rows choose among several.
        announce: Says where the job runs; only a warning of few rows comes before.
        log: Logger told what was understood.

    Raises:
        UserError: There is nothing to learn from these rows, or folds where validation rows must choose a method.
    """
    frame, labelling = labelled_rows(read_dataset(dataset), level, target, dataset.name)
    rows = read_rows(
        frame, level=labelling.task.level, target=labelling.task.target, positive=positive, window=window,
        name=dataset.name,
    )
    rows = replace(rows, notes=(f"Labels: {labelling.why}", *labelling.notes))
    splits = parts(frame, fold, dataset.name)
    few = check_numbers(rows, splits, dataset.name)
    if few:
        log.warning("%s", few)
    announce()
    log.info("Labels: %s", labelling.why)
    for note in labelling.notes:
        log.warning("Note: %s", note)
    if len(methods) > 1 and len(splits) > 1:
        raise UserError(
            "In a cross-validation the validation rows of one fold are the test rows of another, so they cannot choose"
            " among methods",
            where="--method", fix="Choose one fold with --fold, or make splits instead of folds with plm_preprocess",
        )
    log.info("Task: %s; %d rows", rows.describe(), len(frame))
    return rows, splits
