"""What a training leaves to read: history, curves, TensorBoard events and the report."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from plm.evaluation import figures
from plm.evaluation.report import Report, number, plain

if TYPE_CHECKING:
    import pandas as pd

    from plm.learning.finetuning import Job
    from plm.learning.release import Calibration

FIRST = ("step", "epoch", "train_loss", "valid_loss")
LAST = ("learning_rate", "seed", "fold")


def history_table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The history of all trainings: losses, metrics, learning rate, seed and fold (empty without folds)."""
    import pandas as pd

    frame = pd.DataFrame(list(rows))
    for name in ("valid_loss", "train_loss"):
        if name not in frame:
            frame[name] = float("nan")
    metrics = [name for name in frame if name not in (*FIRST, *LAST)]
    return frame[[*FIRST, *metrics, *LAST]]


def curves(history: pd.DataFrame, metric: str, path: Path) -> None:
    """The figure of losses and of the metric that chose the epoch."""
    shown = [*FIRST, *([f"valid_{metric}"] if f"valid_{metric}" in history else []), *LAST]
    figures.history_figure(history[shown], path)


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
            for name, value in row.items():
                if name not in ("step", "epoch", "seed", "fold"):
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


def headline(manifest: Mapping[str, Any]) -> str:
    """One sentence: what was trained and how well it does on validation rows."""
    metric = manifest["selection_metric"]
    score = manifest["metrics"].get(metric)
    told = "" if score is None else f", validation {figures.metric_name(metric)} {number(score)}"
    name = {"lora": "LoRA", "dora": "DoRA", "ia3": "IA3", "head": "head only", "full": "full fine-tuning"}
    rows = manifest["rows"]
    return (
        f"{manifest['base']['id']} fine-tuned on {rows['train']} rows ({name[manifest['method']]}){told}"
        f" on {rows['valid']} rows"
    )


def report(manifest: Mapping[str, Any], job: Job, calibration: Calibration, predictions: pd.DataFrame) -> Report:
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
    page.bullets(lines)
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
