"""Several ways of fine-tuning on the same rows: validation rows choose one, which alone goes on to the test rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from plm.jobs.finetune import objectives
from plm.jobs.finetune.job import FineTuningJob, Run
from plm.jobs.finetune.validation import calibrate
from plm.model.adapters import AdapterSettings
from plm.scoring import intervals
from plm.scoring.comparison import Comparison, compare
from plm.scoring.metrics import ALL, Floats, Scored

NAMES = {
    "lora": "LoRA", "dora": "DoRA", "ia3": "IA3", "head_lora": "LoRA on the head", "head": "head only",
    "full": "full fine-tuning",
}
RESAMPLES = 1000


@dataclass(frozen=True)
class MethodResult:
    """One way of fine-tuning and what validation rows say about it.

    Attributes:
        adapter: Method, and which parts of the encoder it trains.
        parameters: Number of trained parameters.
        best_epochs: The epoch that each training kept, from 1.
        scores: Validation metrics of the ensemble of its trainings.
        low: Lower end of the 95 % interval of the metric that chooses; NaN with too few groups.
        high: Upper end of that interval.
        chosen: Whether it is the method that the bundle holds.
        behind: The chosen way against this one, on the same resamples of groups; None for the chosen one itself.
    """

    adapter: AdapterSettings
    parameters: int
    best_epochs: tuple[int, ...]
    scores: dict[str, float]
    low: float
    high: float
    chosen: bool
    behind: Comparison | None

    def to_json(self) -> dict[str, Any]:
        scores = {name: value if np.isfinite(value) else None for name, value in self.scores.items()}
        return {"method": self.adapter.method, "parameters": self.parameters, "chosen": self.chosen, "scores": scores}


def choose(job: FineTuningJob) -> list[MethodResult]:
    """Compares the ways of a job by its metric on validation rows and sets ``job.chosen``; ties go to the first.

    Ways whose trainings are not all finished are left out; if none is, the one under way is the choice.

    Args:
        job: After training, with one part: in a cross-validation the validation rows of one fold are the test rows of
            another.

    Returns:
        The ways that were compared, in their order; empty if there was nothing to choose among.
    """
    count = len(job.runs) // len(job.settings.ways)
    complete = [way for way in job.settings.ways if len([run for run in job.done if run.adapter == way]) == count]
    if len(complete) < 2:
        job.chosen = complete[0] if complete else job.trained[0].adapter
        return []
    metric = job.settings.training.metric
    scores = [calibrate(job, job.runs_of(way)).scores for way in complete]
    best = 0
    for number in range(1, len(complete)):
        if objectives.better(scores[number], scores[best], metric):
            best = number
    job.chosen = complete[best]
    resampled = _resampled(job, [job.runs_of(way) for way in complete], metric)
    ways = []
    for number, way in enumerate(complete):
        low, high = (np.nan, np.nan) if resampled is None else intervals.interval(resampled[number])
        behind = None
        if number != best:
            names, values = (job.chosen.method, way.method), (scores[best][metric], scores[number][metric])
            both = None if resampled is None else (resampled[best], resampled[number])
            behind = compare(names, metric, values, both)
        parameters = job.network(job.settings.seeds[0], way)[1].parameter_counts()[1]
        epochs = tuple(run.outcome.best_epoch for run in job.runs_of(way))
        ways.append(
            MethodResult(way, parameters, epochs, scores[number], float(low), float(high), number == best, behind)
        )
    return ways


def _resampled(job: FineTuningJob, ways: Sequence[Sequence[Run]], metric: str) -> list[Floats] | None:
    """``(R,)`` values of a metric for each way under the same draws of groups; None if it or the groups allow none."""
    part = job.runs[0][1]
    truth = job.rows.values(part.valid)
    known = objectives.labelled(truth)
    groups = [name for name, counts in zip(_groups(job, part.valid), known, strict=True) if counts]
    index, count = intervals.group_index(groups)
    if count < intervals.FEWEST_GROUPS:
        return None
    draws = intervals.draw_groups(count, RESAMPLES, job.settings.seeds[0])
    resampled = []
    for runs in ways:
        raw = [run.valid_outputs()[known] for run in runs]
        values = intervals.bootstrap(_scored(job, raw, truth[known], metric), index, draws).get((metric, ALL))
        if values is None:  # the loss has no interval
            return None
        resampled.append(values)
    return resampled


def _scored(job: FineTuningJob, raw: Sequence[Floats], truth: NDArray[Any], metric: str) -> Scored:
    task = job.prepared[job.runs[0][1].fold].task
    if task.target == "number":
        return Scored("number", truth, np.mean(raw, axis=0)[:, 0] * task.sd + task.mean, np.zeros(0, np.int64))
    probabilities = np.mean([softmax(one, axis=1) for one in raw], axis=0)
    # Macro F1 is a score of several classes; the others of two classes are those of the positive one, which comes last.
    binary = task.binary and metric != "macro_f1"
    order = np.arange(len(task.classes))
    if binary and task.positive_index == 0:
        order = order[::-1]
    scores, index = probabilities[:, order], np.argsort(order)[truth]
    names = tuple(task.classes[number] for number in order)
    return Scored("binary" if binary else "multiclass", index, scores, scores.argmax(axis=1), names)


def _groups(job: FineTuningJob, rows: Sequence[int]) -> list[str]:
    """The group of each validation row (or residue): the column group, else the row itself."""
    frame = job.rows.frame.iloc[list(rows)]
    names = frame["group" if "group" in frame.columns else "id"].tolist()
    if job.rows.task.level != "residue":
        return names
    return [name for name, letters in zip(names, frame["sequence"], strict=True) for _ in letters]
