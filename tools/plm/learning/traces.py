"""What a training leaves to read: history, curves, TensorBoard events and the report."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from plm.evaluation import figures
from plm.evaluation.report import Report, number, plain
from plm.learning.ways import NAMES, Way

if TYPE_CHECKING:
    import pandas as pd

    from plm.learning.finetuning import Job
    from plm.learning.release import Calibration

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


def curves(history: pd.DataFrame, job: Job, path: Path) -> None:
    """The figure of losses and of the metric that chose the epoch, with the epoch that was kept."""
    kept = [int(row["epoch"] == run.outcome.best_epoch) for run in job.trained for row in run.outcome.history]
    shown = [name for name in (*FIRST, f"valid_{job.settings.training.metric}", *LAST) if name in history]
    figures.history_figure(history[shown].assign(best=kept), path)


class Events:
    """TensorBoard events of all trainings in one file; does nothing without a path.

    Args:
        path: The file to write when all is done.
        workdir: Where events gather before.
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


def _compared(page: Report, ways: Sequence[Way], metric: str, rows: int) -> None:
    name = figures.metric_name(metric)
    page.heading("Ways compared")
    page.paragraph(
        f"Each way was trained on the same rows; the best {name} on the {rows} validation rows chose. The test rows"
        " were predicted once, by the chosen way alone. As the best of several, its validation score flatters it."
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
    page.rows(
        ["Trained", "Parameters", "Best epoch", "Validation loss", name, "95 % interval", "Result"],
        cells,
    )
    simplest = min(ways, key=lambda way: way.parameters)
    if simplest.behind is not None and simplest.behind.verdict not in ("beats", "is worse than"):
        page.paragraph(
            f"{NAMES[simplest.adapter.method]} trains the fewest parameters and cannot be told apart from the chosen"
            " way on these rows: it may serve as well."
        )


def headline(manifest: Mapping[str, Any]) -> str:
    """One sentence: what was trained and how well it does on validation rows."""
    metric = manifest["selection_metric"]
    score = manifest["metrics"].get(metric)
    told = "" if score is None else f", validation {figures.metric_name(metric)} {number(score)}"
    rows = manifest["rows"]
    return (
        f"{manifest['base']['id']} fine-tuned on {rows['train']} rows ({NAMES[manifest['method']]}){told}"
        f" on {rows['valid']} rows"
    )


def report(
    manifest: Mapping[str, Any],
    job: Job,
    calibration: Calibration,
    predictions: pd.DataFrame,
    ways: Sequence[Way] = (),
) -> Report:
    """The report of a fine-tuning job; test rows are left to plm_evaluate."""
    mark = "" if manifest["finished"] else "UNFINISHED (stopped by its time limit): "
    page = Report(f"{mark}{headline(manifest)}.")
    page.heading(f"Fine-tuning: {plain(manifest['name'])}", 1)
    page.paragraph(
        "The validation rows chose the epoch, the temperature and the threshold, so their scores are optimistic."
        " Judge the model by its test rows: give the predictions to the evaluation tool (plm_evaluate), together with"
        " the dataset, for scores with intervals and baselines."
    )
    task = manifest["task"]
    lines = [
        f"Task: {plain(job.rows.describe())}",
        f"Base model: {plain(manifest['base']['id'])}, sha256 {manifest['base']['sha256'][:16]}...",
        "Rows: " + ", ".join(f"{count} {name}" for name, count in manifest["rows"].items()),
        f"Seeds: {', '.join(map(str, manifest['seeds']))}; precision {manifest['settings']['precision']}",
    ]
    if task["target"] == "class":
        lines.append(f"Calibration temperature: {number(manifest['calibration']['temperature'])}")
    if manifest["training_prevalence"] is not None and manifest["positive"]:
        lines.append(
            f"Called {plain(manifest['positive'])} from a probability of {number(manifest['threshold'])};"
            f" share of that class in training: {number(manifest['training_prevalence'])}"
        )
    lines += [plain(note) for note in job.rows.notes]
    page.bullets(lines)
    if ways:
        _compared(page, ways, job.settings.training.metric, manifest["rows"]["valid"])
    page.heading("Training")
    page.image("curves")
    header = [
        "Seed",
        "Fold",
        "Best epoch",
        "Epochs",
        "Validation loss",
        figures.metric_name(job.settings.training.metric),
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
    page.rows(["Metric", "Value"], [[figures.metric_name(key), number(value)] for key, value in scored.items()])
    page.heading("Predictions")
    page.paragraph(f"{len(predictions)} rows, made by the bundle after it was written and loaded again.")
    page.table("predictions", "Validation and test rows")
    page.link("bundle")
    return page
