"""Sequence members beside a fine-tuned model, and the combination that the bundle answers with.

With folds each fold has members and a combination of its own for its out-of-fold predictions; the bundle's are fitted
on all rows, and chosen by what each fold's model says of its validation rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from plm.data import dataset_table, homology
from plm.jobs.finetune import objectives
from plm.jobs.finetune.job import FineTuningJob
from plm.jobs.finetune.validation import Calibration, calibration_of
from plm.model.members.features import window_text
from plm.model.members.stored import MOST_ROWS
from plm.model.network import Floats
from plm.scoring import job_predictor
from plm.scoring.cross_fitting import LabelledTexts
from plm.scoring.job_predictor import JobPredictor, PartExamples
from plm.scoring.metrics import MAIN_METRIC
from plm.scoring.sequence_members import MemberExamples
from plm.training import few_rows

WIDTH = 33
"""Residues around a site or residue that sequence members see where the model sees more than a window."""
MOST_JUDGED = 4000
"""Validation residues that choose a combination; of more a sample."""
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Places:
    """Labelled units of a dataset: sequences, sites, or residues of sequences.

    Attributes:
        row: (N,) number of the dataset's row.
        place: (N,) 0-based residue in its sequence; -1 for whole sequences.
        valid: (N,) place among the labelled validation units, in their order; -1 for other rows.
    """

    row: Ints
    place: Ints
    valid: Ints


def build(job: FineTuningJob, calibration: Calibration, *, compare: bool, forced: bool) -> JobPredictor:
    """Fits and chooses.

    Args:
        job: Job whose trainings are done.
        calibration: Temperatures of its networks.
        compare: Also members that keep training sequences.
        forced: The language model is not taken alone.
    """
    task, seed = job.rows.task, job.settings.seeds[0]
    parts = {run.part.fold: run.part for run in job.usable}
    said = validation_answers(job, calibration)
    truth = np.concatenate([_known(job, part.valid) for part in parts.values()])
    if task.target == "class" and (why := few_rows.why_uncalibrated(truth)):
        return JobPredictor(None, why_not=f"Nothing was combined with the language model, since {why}")
    if len(truth) < few_rows.FEWEST_CALIBRATION:
        told = f"Nothing was combined with the language model, since there are only {len(truth)} validation rows"
        return JobPredictor(None, why_not=told)
    if task.target == "class":  # folds combine all or not at all, so that every row has the same parts
        for fold, part in parts.items():
            if why := few_rows.why_uncalibrated(_known(job, part.valid)):
                where = "" if fold is None else f" in fold {fold}"
                return JobPredictor(None, why_not=f"Nothing was combined with the language model, since{where} {why}")
    width = _width(job)
    examples = {
        fold: _examples(job, _units(job, part.train, part.valid, seed), said[fold], width, fold)
        for fold, part in parts.items()
    }

    def whole() -> PartExamples:
        every = [row for part in parts.values() for row in part.valid]
        together = np.concatenate([said[fold] for fold in parts])
        return _examples(job, _units(job, [], every, seed), together, width, None)

    return job_predictor.build(
        examples, whole if len(parts) > 1 else None, MAIN_METRIC[task.kind], seed, job.log, compare=compare,
        forced=forced, residues=task.level == "residue",
    )


def validation_answers(job: FineTuningJob, calibration: Calibration) -> dict[int | None, Floats]:
    """By fold (None: no folds), (V, K) answers of its networks to the labelled validation units."""
    by_fold: dict[int | None, list[Floats]] = {}
    for run, temperature in zip(job.usable, calibration.temperatures, strict=True):
        raw = run.valid_outputs()[objectives.labelled(job.rows.values(run.part.valid))]
        scale = job.prepared[run.part.fold].task
        values = softmax(raw / temperature, axis=1) if scale.target == "class" else raw * scale.sd + scale.mean
        by_fold.setdefault(run.part.fold, []).append(values)
    return {fold: np.mean(each, axis=0) for fold, each in by_fold.items()}


def recalibrated(job: FineTuningJob, calibration: Calibration, built: JobPredictor) -> Calibration:
    """Thresholds, validation scores and errors of the combination, from its cross-fitted answers."""
    assert built.final is not None
    answers, truth = {}, {}
    for fold, fitted in built.folds.items():
        answers[fold] = fitted.combined.answers
        truth[fold] = fitted.heard.truth[fitted.places]
    final = built.final
    return calibration_of(
        job, calibration.temperatures, answers, truth, {},
        together=(final.combined.answers, final.heard.truth[final.places]),
    )


def unseen_units(job: FineTuningJob, valid: Sequence[int], judged: Ints) -> Ints:
    """Numbers of the judged units among all units of validation rows, unlabelled ones included."""
    return np.flatnonzero(objectives.labelled(job.rows.values(valid)))[judged]


def texts_of(job: FineTuningJob, rows: Sequence[int]) -> tuple[list[str], list[int] | None]:
    """Sequences and 0-based sites of rows, as predictors are asked about them."""
    positions = None if job.rows.positions is None else [job.rows.positions[row] for row in rows]
    return [job.rows.sequences[row] for row in rows], positions


def _known(job: FineTuningJob, rows: Sequence[int]) -> NDArray[np.float64]:
    values = job.rows.values(rows)
    return values[objectives.labelled(values)]


def _width(job: FineTuningJob) -> int:
    if job.rows.task.level == "sequence":
        return 0
    window = job.rows.window
    return window if 0 < window <= homology.LONGEST_WINDOW else WIDTH


def _units(job: FineTuningJob, train: Sequence[int], valid: Sequence[int], seed: int) -> Places:
    """Labelled units of training and validation rows, samples of them where they are very many."""
    judged = MOST_ROWS if not train else MOST_JUDGED if job.rows.task.level == "residue" else MOST_ROWS // 2
    generator = np.random.default_rng(seed)
    rows, places = _labelled(job, valid)
    numbers = np.sort(generator.permutation(len(rows))[:judged])
    others, beside = _labelled(job, train)
    kept = np.sort(generator.permutation(len(others))[: MOST_ROWS - len(numbers)])
    return Places(
        np.concatenate([others[kept], rows[numbers]]), np.concatenate([beside[kept], places[numbers]]),
        np.concatenate([np.full(len(kept), -1), numbers]),
    )


def _labelled(job: FineTuningJob, rows: Sequence[int]) -> tuple[Ints, Ints]:
    """Row and residue of each labelled unit, in the order of ``job.rows.values``."""
    if not rows:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    if job.rows.task.level == "residue":
        inside = [np.flatnonzero(objectives.labelled(job.rows.targets[row])) for row in rows]
        return np.repeat(np.asarray(rows, np.int64), [len(one) for one in inside]), np.concatenate(inside)
    known = np.asarray([row for row in rows if objectives.labelled(job.rows.targets[row]).all()], np.int64)
    places = np.full(len(known), -1, np.int64)
    if job.rows.positions is not None:
        places = np.asarray([job.rows.positions[row] for row in known], np.int64)
    return known, places


def _examples(
    job: FineTuningJob, places: Places, said: Floats, width: int, fold: int | None
) -> PartExamples:
    # Of all folds together the scale of the first, which is the bundle's.
    frame, task = job.rows.frame, job.prepared[fold if fold in job.prepared else job.usable[0].part.fold].task
    names, labels = frame["id"].tolist(), frame["label"].tolist()
    residues = task.level == "residue"
    texts, ids, own = [], [], []
    for row, place in zip(places.row.tolist(), places.place.tolist(), strict=True):
        sequence = job.rows.sequences[row]
        texts.append(window_text(sequence, place, width) if width else sequence)
        ids.append(f"{names[row]}:{place + 1}" if residues else names[row])
        own.append(dataset_table.residue_labels(labels[row])[place] if residues else labels[row])
    target = np.array(
        [job.rows.targets[row][place if residues else 0] for row, place in zip(places.row, places.place, strict=True)]
    )
    groups = dataset_table.row_groups(frame)[places.row]
    model = np.full((len(texts), task.outputs), np.nan)
    judged = places.valid >= 0
    model[judged] = said[places.valid[judged]]
    aligned = width > 0 or len(set(map(len, texts))) == 1
    examples = MemberExamples(LabelledTexts(texts, target, groups, aligned), ids, own, model, width, task)
    return PartExamples(examples, places.valid)
