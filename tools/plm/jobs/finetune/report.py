"""What a training leaves to read: history, curves, TensorBoard events and the report."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from plm import wording
from plm.data.task import threshold_of
from plm.jobs.finetune.finished import validation_chose
from plm.jobs.finetune.method_choice import NAMES, MethodResult
from plm.model.combination import LANGUAGE_MODEL
from plm.telling import figures
from plm.telling.predictor_lines import choice_rows, first_lines, how_chosen
from plm.telling.report import Report, plain
from plm.training import few_rows
from plm.wording import counted, number, several_called

if TYPE_CHECKING:
    import pandas as pd

    from plm.jobs.finetune.job import FineTuningJob
    from plm.jobs.finetune.validation import Calibration

FIRST = ("step", "epoch", "train_loss", "valid_loss")
LAST = ("learning_rate", "method", "seed", "fold")


def history_table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The history of all trainings: losses, metrics, learning rate, of several ways the method, seed and fold (empty
    without folds)."""
    import pandas as pd

    frame = pd.DataFrame(list(rows))
    for name in ("valid_loss", "train_loss"):
        if name not in frame:
            frame[name] = float("nan")
    metrics = [name for name in frame if name not in (*FIRST, *LAST)]
    return frame[[*FIRST, *metrics, *(name for name in LAST if name in frame)]]


def curves(history: pd.DataFrame, job: FineTuningJob, path: Path) -> None:
    """The figure of losses and of the metric that chose the epoch, with the epoch that was kept."""
    kept = [int(row["epoch"] == run.outcome.best_epoch) for run in job.trained for row in run.outcome.history]
    wanted = dict.fromkeys((*FIRST, f"valid_{job.settings.training.metric}", *LAST))  # the metric may be the loss
    shown = [name for name in wanted if name in history]
    figures.history_figure(history[shown].assign(best=kept), path)


class Events:
    """TensorBoard events of all trainings in one file; does nothing without a path.

    Args:
        path: The file to write when all is done.
        workdir: Folder in which events gather until then.
    """

    def __init__(self, path: Path | None, workdir: Path) -> None:
        self.path, self.folder = path, workdir / "events"
        self.writer: Any = None

    def __enter__(self) -> Events:
        if self.path is not None:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(self.folder))
        return self

    def step(self, training: int, step: int, loss: float, rate: float) -> None:
        """Notes an optimiser step of a training (numbered from 0)."""
        if self.writer is not None:
            self.writer.add_scalar(f"training_{training + 1}/step_loss", loss, step)
            self.writer.add_scalar(f"training_{training + 1}/learning_rate", rate, step)

    def history(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Notes the rows of the history."""
        if self.writer is None:
            return
        for row in rows:
            run = f"seed_{row['seed']}" + (f"_fold_{row['fold']}" if row["fold"] != "" else "")
            run = f"{row['method']}_{run}" if "method" in row else run
            for name, value in row.items():
                if name not in ("step", "epoch", "method", "seed", "fold"):
                    self.writer.add_scalar(f"{run}/{name}", value, int(row["step"]))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.writer is None:
            return
        self.writer.close()
        if kind is None and self.path is not None:
            written = sorted(self.folder.glob("events.out.tfevents.*"))
            shutil.move(str(written[0]), self.path)


def _compared(page: Report, ways: Sequence[MethodResult], metric: str, rows: int, tested: bool) -> None:
    name = wording.metric_name(metric)
    page.heading("Ways compared")
    page.paragraph(
        f"Each way was trained on the same rows; the best {name} on {counted(rows, 'validation row')} chose. As the"
        " best of several, its validation score flatters it."
        + (" The test rows were predicted once, by the chosen way alone." if tested else "")
    )
    cells = []
    for way in ways:
        interval = "" if np.isnan(way.low) else f"{number(way.low)} to {number(way.high)}"
        verdict = "chosen"
        if way.behind is not None:
            told_apart = way.behind.verdict in ("beats", "is worse than")
            verdict = "told apart from the chosen" if told_apart else "not told apart from the chosen"
        epochs = ", ".join(map(str, way.best_epochs))
        loss = number(way.scores["loss"])
        cells.append([NAMES[way.adapter.method], f"{way.parameters:,}", epochs, loss, number(way.scores[metric])])
        cells[-1] += [interval, verdict]
    page.rows(["Trained", "Parameters", "Best epoch", "Validation loss", name, "95 % interval", "Result"], cells)
    simplest = min(ways, key=lambda way: way.parameters)
    if simplest.behind is not None and simplest.behind.verdict not in ("beats", "is worse than"):
        page.paragraph(
            f"{NAMES[simplest.adapter.method]} trains the fewest parameters and cannot be told apart from the chosen"
            " way on these rows: it may serve as well."
        )


def _judge_by(manifest: Mapping[str, Any]) -> str:
    if not manifest["rows"]["test"]:
        return "There are no test rows, so that nothing here tells how good the model is on other proteins."
    return (
        "Judge the model by its test rows: give the predictions to the evaluation tool (plm_evaluate), together with"
        " the dataset, for scores with intervals and baselines."
    )


def _rows_told(rows: Mapping[str, int], folds: int) -> str:
    names = {"train": "training", "valid": "validation", "test": "test"}
    told = ", ".join(f"{count:,} {names[name]}" for name, count in rows.items())
    return f"Rows: {told}" + (f" (over {folds} folds, so that a row counts in each part)" if folds > 1 else "")


def headline(manifest: Mapping[str, Any]) -> str:
    """One sentence: what was trained and how well it does on validation rows."""
    metric = manifest["selection_metric"]
    score = manifest["metrics"].get(metric)
    rows = manifest["rows"]
    judged = counted(rows["valid"], "validation row")
    told = f", {judged}" if score is None else f", {wording.metric_name(metric)} {number(score)} on {judged}"
    few = few_rows.warning(rows)
    held = (manifest.get("predictor") or {}).get("combination")
    beside = ""
    if held:
        counted_on = LANGUAGE_MODEL in held["members"]
        beside = ", combined with sequence members" if counted_on else "; sequence members answer in its place"
    trained = f"{manifest['base']['id']} fine-tuned on {counted(rows['train'], 'row')}"
    sentence = f"{trained} ({NAMES[manifest['method']]}){beside}{told}"
    return f"{few}. {sentence}" if few else sentence


def report(
    manifest: Mapping[str, Any], job: FineTuningJob, calibration: Calibration, predictions: pd.DataFrame,
    ways: Sequence[MethodResult] = (),
) -> Report:
    """The report of a fine-tuning job; test rows are left to plm_evaluate."""
    mark = "" if manifest["finished"] else "UNFINISHED (stopped by its time limit): "
    page = Report(f"{mark}{headline(manifest)}.")
    page.bullets(first_lines(manifest))
    page.heading(f"Fine-tuning: {plain(manifest['name'])}", 1)
    page.paragraph(f"{validation_chose(manifest)} {_judge_by(manifest)}")
    lines = [
        f"Task: {plain(job.rows.describe())}",
        f"Base model: {plain(manifest['base']['id'])}, sha256 {manifest['base']['sha256'][:16]}...",
        _rows_told(manifest["rows"], len({run.part.fold for run in job.usable})),
        f"Seeds: {', '.join(map(str, manifest['seeds']))}; precision {manifest['settings']['precision']}",
    ]
    if manifest["calibration"]["method"] == "temperature":
        lines.append(f"Calibration temperature: {number(manifest['calibration']['temperature'])}")
    if manifest["training_prevalence"] is not None and manifest["positive"]:
        lines.append(
            f"Called {plain(manifest['positive'])} from a probability of {number(manifest['threshold'])};"
            f" share of that class in training: {number(manifest['training_prevalence'])}"
        )
    if manifest["calibration"]["threshold_chosen"]:
        lines += filter(None, [plain(several_called(manifest["labels"], threshold_of(manifest)))])
    lines += [plain(note) for note in job.rows.notes]
    page.bullets(lines)
    if ways:
        _compared(page, ways, job.settings.training.metric, manifest["rows"]["valid"], manifest["rows"]["test"] > 0)
    if cells := choice_rows(manifest.get("predictor") or {})[1]:
        page.heading("The predictor: what was chosen among")
        page.paragraph(how_chosen(several=len(manifest["labels"]) > 2))
        page.rows(choice_rows(manifest["predictor"])[0], cells)
        page.bullets([f"Left out: {plain(told)}" for told in manifest["predictor"]["left_out"]])
    page.heading("Training")
    page.image("curves")
    header = [
        "Seed",
        "Fold",
        "Best epoch",
        "Epochs",
        "Validation loss",
        wording.metric_name(job.settings.training.metric),
    ]
    cells = []
    for run in job.usable:
        best = run.outcome.best or {}
        scores = [number(best.get(name, float("nan"))) for name in ("loss", job.settings.training.metric)]
        fold = "" if run.part.fold is None else str(run.part.fold)
        cells.append([str(run.seed), fold, str(run.outcome.best_epoch), str(run.outcome.epochs), *scores])
    page.rows(header, cells)
    page.heading("Validation scores of the bundle")
    scored = {key: value for key, value in manifest["metrics"].items() if isinstance(value, float)}
    page.rows(["Metric", "Value"], [[wording.metric_name(key), number(value)] for key, value in scored.items()])
    page.heading("Predictions")
    seeds = manifest["seeds"]
    several = f": one by each of {len(seeds)} trainings and one by their mean for each row" if len(seeds) > 1 else ""
    lines_told = counted(len(predictions), "prediction")
    page.paragraph(f"{lines_told}, made by the model after it was written and loaded again{several}.")
    page.table("predictions", "Validation and test rows" if manifest["rows"]["test"] else "Validation rows")
    page.link("bundle")
    return page
