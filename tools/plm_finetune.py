#!/usr/bin/env python3
"""Fine-tune a protein language model on labelled sequences, residues or sites.

Inputs: a dataset table with splits or folds (plm_preprocess) and a model. Outputs: a bundle (the fine-tuned model
with head, calibration, threshold and self-test), predictions of the validation and test rows made by the reloaded
bundle, the training history as table, figure and tfevents, a report, and with --time-limit a checkpoint that --resume
takes back. Of several ways to train (--method lora,head_lora,head,full) the validation rows choose one.

Example:
    plm_finetune.py --dataset dataset.tabular --model starter --bundle bundle.zip --predictions predictions.tabular
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from plm import stage
from plm.errors import UserError

if TYPE_CHECKING:
    from plm.jobs.finetune.job import Job

NAME = "plm_finetune"
METHODS = ("lora", "dora", "ia3", "head_lora", "head", "full")
LEARNING_RATE, FULL_LEARNING_RATE = 5e-4, 5e-5
STARTED = time.monotonic()
CHOICES = {
    "level": ("auto", "sequence", "residue", "site"),
    "target": ("auto", "class", "number"),
    "class_weights": ("none", "balanced"),
    "schedule": ("linear", "cosine", "constant"),
    "metric": ("auto", "auroc", "auprc", "mcc", "macro_f1", "accuracy", "spearman", "pearson", "rmse", "loss"),
    "precision": ("auto", "fp32", "bf16"),
}


@dataclass(frozen=True)
class Arguments:
    """The command line; see --help for what each means."""

    dataset: Path
    model: str
    allow_hub: bool
    level: str
    target: str
    positive_class: str
    window: int | None
    fold: int | None
    method: str
    rank: int
    alpha: float
    dropout: float
    targets: str
    class_weights: str
    epochs: int
    patience: int
    metric: str
    learning_rate: float | None
    head_learning_rate: float
    weight_decay: float
    warmup: float
    schedule: str
    batch_sequences: int
    batch_tokens: int
    gradient_checkpointing: bool
    head_width: int
    head_dropout: float
    reach: int
    seed: int
    seeds: int
    precision: str
    device: str
    time_limit: float | None
    resume: Path | None
    name: str
    licence: str
    bundle: Path
    predictions: Path | None
    history: Path | None
    curves: Path | None
    report: Path | None
    tfevents: Path | None
    checkpoint: Path | None

    def __post_init__(self) -> None:
        for flag in ("rank", "epochs", "batch_sequences", "head_width", "seeds"):
            _require(getattr(self, flag) >= 1, flag, "at least 1")
        last_seed = self.seed + self.seeds - 1
        _require(last_seed <= stage.LARGEST_SEED, "seed", f"at most {stage.LARGEST_SEED} for the last training")
        for flag in ("patience", "reach", "seed", "weight_decay"):
            _require(getattr(self, flag) >= 0, flag, "at least 0")
        for flag in ("alpha", "learning_rate", "head_learning_rate"):
            _require(getattr(self, flag) is None or getattr(self, flag) > 0, flag, "above 0")
        for flag in ("dropout", "head_dropout", "warmup"):
            _require(0 <= getattr(self, flag) < 1, flag, "at least 0 and below 1")
        _require(self.batch_tokens >= 64, "batch_tokens", "at least 64")
        _require(self.time_limit is None or self.time_limit >= 0, "time_limit", "at least 0")
        known = f"one of {', '.join(METHODS)}, or several of them with commas"
        _require(set(self.methods) <= set(METHODS) and len(set(self.methods)) == len(self.methods), "method", known)
        if self.time_limit is not None and self.checkpoint is None:
            raise UserError(
                "A time limit needs a file for the checkpoint", where="--time-limit", fix="Add --checkpoint"
            )

    @property
    def methods(self) -> list[str]:
        """The ways to train, in order."""
        return [name.strip() for name in self.method.split(",")]


def _require(good: bool, flag: str, what: str) -> None:
    if not good:
        raise UserError(f"The value must be {what}", where="--" + flag.replace("_", "-"))


def arguments(argv: Sequence[str] | None) -> Arguments:
    made = stage.parser(NAME, __doc__ or "")
    whole, real, path = {"type": int}, {"type": float}, {"type": Path}

    def add(group: argparse._ArgumentGroup, flag: str, default: object, text: str, **kind: object) -> None:
        field = flag.replace("-", "_")
        if field in CHOICES:
            kind["choices"] = CHOICES[field]
        shown = "" if default in (None, "") else " (default: %(default)s)"
        group.add_argument(f"--{flag}", default=default, help=text + shown, **kind)  # type: ignore[arg-type]

    group = made.add_argument_group("data and task")
    group.add_argument("--dataset", type=Path, required=True, help="dataset table with a split or fold column")
    add(group, "level", "auto", "what a label belongs to")
    add(group, "target", "auto", "classes or numbers")
    add(group, "positive-class", "", "of two classes the one to detect; by default the last")
    add(
        group,
        "window",
        None,
        "cut sites to this many residues (odd; 0 = whole protein); by default as in the table",
        **whole,
    )
    add(group, "fold", None, "train for this fold only; by default for each", **whole)

    group = made.add_argument_group("model")
    group.add_argument(
        "--model", required=True, help="starter, a folder or zip in Hugging Face format, or hub:organisation/name"
    )
    group.add_argument("--allow-hub", action="store_true", help="allow the network for a hub model")
    group.add_argument(
        "--method", default="lora", metavar="METHOD[,METHOD...]",
        help=f"what is trained: {', '.join(METHODS)}; of several the best on validation rows is kept (default: lora)",
    )  # fmt: skip
    add(group, "rank", 8, "rank of LoRA and DoRA", **whole)
    add(group, "alpha", 16.0, "scale of LoRA and DoRA: updates are multiplied by alpha / rank", **real)
    add(group, "dropout", 0.05, "dropout in LoRA and DoRA", **real)
    add(group, "targets", "", "comma list of linear layers for the adapters; by default those of attention")
    add(group, "head-width", 64, "hidden units of the head", **whole)
    add(group, "head-dropout", 0.1, "dropout in the head", **real)
    add(group, "reach", 7, "residues on either side of a site that the head reads one by one", **whole)

    group = made.add_argument_group("training")
    add(group, "epochs", 20, "passes over the training rows at most", **whole)
    add(group, "patience", 5, "epochs without improvement before training stops; 0 = never", **whole)
    add(
        group, "metric", "auto", "validation metric that chooses epoch and method: auto = auroc for one method and two"
        " classes, macro_f1 for classes else, spearman for numbers",
    )  # fmt: skip
    add(group, "learning-rate", None, "peak rate of adapters or model; by default 5e-4, with full 5e-5", **real)
    add(group, "head-learning-rate", 1e-3, "peak learning rate of the head", **real)
    add(group, "weight-decay", 0.01, "AdamW's weight decay", **real)
    add(group, "warmup", 0.1, "share of the steps in which the learning rate rises", **real)
    add(group, "schedule", "linear", "how the learning rate falls")
    add(group, "class-weights", "none", "balanced: rare classes weigh as much as frequent ones")
    add(group, "batch-sequences", 8, "sequences in an optimiser step", **whole)
    add(
        group, "batch-tokens", 4096, "tokens that go through the model at once; lowered if the memory is short", **whole
    )
    group.add_argument("--gradient-checkpointing", action="store_true", help="less memory, a third more time")
    add(group, "seed", 42, "random seed of the first training", **whole)
    add(group, "seeds", 1, "trainings with consecutive seeds, used as an ensemble", **whole)
    add(group, "precision", "auto", "bf16 halves the memory; auto takes it where the processor is fast at it")
    add(group, "device", "auto", "auto, cpu or cuda")
    add(group, "time-limit", None, "minutes after which to stop with a checkpoint", **real)
    add(group, "resume", None, "checkpoint to go on from", **path)

    group = made.add_argument_group("outputs")
    group.add_argument("--bundle", type=stage.output_file, required=True, help="the fine-tuned model (zip)")
    add(group, "name", "", "name of the fine-tuned model in tables and reports; by default model and method")
    add(group, "licence", "", "licence of the data or model, for the model card")
    for flag, text in {
        "predictions": "validation and test rows, predicted by the reloaded bundle (tabular)",
        "history": "losses and metrics (tabular)", "curves": "losses and metrics (PNG)", "report": "report (Markdown)",
        "tfevents": "losses and metrics for TensorBoard", "checkpoint": "where --time-limit stopped (zip)",
    }.items():  # fmt: skip
        add(group, flag, None, text, type=stage.output_file)
    return Arguments(**vars(made.parse_args(argv)))


def run(argv: Sequence[str] | None = None) -> None:
    given = arguments(argv)
    needed = {"torch": "2.6", "transformers": "5.2", "peft": "0.17", "safetensors": "0.5", "accelerate": "1.1"}
    stage.require({**needed, "pandas": "2.1"})
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
    log = stage.log(NAME)

    from plm.data.tables import write_table
    from plm.jobs.finetune import finished as release
    from plm.jobs.finetune import job as finetuning
    from plm.jobs.finetune import method_choice, validation
    from plm.jobs.finetune import report as traces
    from plm.model.bundles.fine_tuned import load_bundle

    with tempfile.TemporaryDirectory(prefix=f"{NAME}_") as folder, stage.Outputs() as out:
        job = prepare(given, Path(folder))
        if given.resume is not None:
            job.resume(given.resume)
        job.plan()
        deadline = finetuning.deadline_after(given.time_limit, STARTED)
        with traces.Events(None if given.tfevents is None else out.path(given.tfevents), job.workdir) as events:
            finished = job.train(deadline, on_step=events.step)
            events.history(job.history())
        if not finished:
            log.info("The time limit is reached: the bundle is marked unfinished, the checkpoint goes on with --resume")

        compared = method_choice.choose(job)
        calibration = validation.calibrate(job)
        name = given.name or f"{job.files.id}-{job.chosen.method}"
        content = release.manifest(
            job, calibration, name=name, finished=finished, licence=given.licence, compared=compared
        )
        bundle_path = out.path(given.bundle)
        release.release(
            job, bundle_path, calibration, content, model=given.model, device=given.device, allow_hub=given.allow_hub
        )
        log.info("Loading the bundle again: self-test, then the predictions of validation and test rows")
        bundle = load_bundle(
            bundle_path, given.model, workdir=job.workdir / "reloaded", device=given.device,
            precision=job.settings.precision, allow_hub=given.allow_hub,
        )  # fmt: skip
        table = release.predictions(bundle, job, calibration)
        if given.predictions is not None:
            write_table(table, out.path(given.predictions))
        history = traces.history_table(job.history())
        if given.history is not None:
            write_table(history, out.path(given.history), "%.6g")
        if given.curves is not None:
            traces.curves(history, job, out.path(given.curves))
        if given.report is not None:
            traces.report(bundle.manifest, job, calibration, table, compared).write(out.path(given.report))
        if given.checkpoint is not None:
            finetuning.write_zip(out.path(given.checkpoint), job.checkpoint_files())
    log.info("Done%s: %s", "" if finished else " (unfinished)", traces.headline(bundle.manifest))


def prepare(given: Arguments, workdir: Path) -> Job:
    """Reads data and model and settles everything that decides the result."""
    from plm.data.dataset_table import labelled_rows, read_dataset
    from plm.jobs.finetune import objectives
    from plm.jobs.finetune.job import Job, Settings, file_sha256
    from plm.jobs.finetune.labelled_rows import check_numbers, read_rows
    from plm.jobs.finetune.training import TrainingSettings
    from plm.model import device
    from plm.model.adapters import AdapterSettings
    from plm.model.checkpoint import resolve_model
    from plm.training.folds import parts

    log = stage.log(NAME)
    device.use_threads(stage.threads())
    chosen = device.choose_device(given.device)
    precision = device.choose_precision(given.precision, chosen)
    frame, labelling = labelled_rows(read_dataset(given.dataset), given.level, given.target, given.dataset.name)
    rows = read_rows(
        frame, level=labelling.task.level, target=labelling.task.target, positive=given.positive_class,
        window=given.window, name=given.dataset.name,
    )  # fmt: skip
    rows = replace(rows, notes=(f"Labels: {labelling.why}", *labelling.notes))
    splits = parts(frame, given.fold, given.dataset.name)
    few = check_numbers(rows, splits, given.dataset.name)
    if few:
        log.warning("%s", few)
    device.announce(log, chosen, precision)
    log.info("Labels: %s", labelling.why)
    for note in labelling.notes:
        log.warning("Note: %s", note)
    if len(given.methods) > 1 and len(splits) > 1:
        raise UserError(
            "In a cross-validation the validation rows of one fold are the test rows of another, so they cannot choose"
            " among methods",
            where="--method",
            fix="Choose one fold with --fold, or make splits instead of folds with plm_preprocess",
        )
    log.info("Task: %s; %d rows", rows.describe(), len(frame))
    targets = tuple(part.strip() for part in given.targets.split(",") if part.strip())
    adapter, *others = (
        AdapterSettings(method, given.rank, given.alpha, given.dropout, targets)  # type: ignore[arg-type]
        for method in given.methods
    )
    metric = given.metric
    if others and metric == "auto" and rows.task.target == "class":
        metric = "macro_f1"
    settings = Settings(
        adapter=adapter,
        others=tuple(others),
        rates={"full": FULL_LEARNING_RATE} if given.learning_rate is None and "full" in given.methods else {},
        training=TrainingSettings(
            epochs=given.epochs, learning_rate=given.learning_rate or LEARNING_RATE,
            head_learning_rate=given.head_learning_rate,
            weight_decay=given.weight_decay, warmup=given.warmup, schedule=given.schedule,  # type: ignore[arg-type]
            batch_sequences=given.batch_sequences, batch_tokens=given.batch_tokens, patience=given.patience,
            metric=objectives.choose_metric(metric, rows.task),
            gradient_checkpointing=given.gradient_checkpointing,
        ),
        head={"width": given.head_width, "dropout": given.head_dropout, "reach": given.reach},
        class_weights=given.class_weights,  # type: ignore[arg-type]
        seeds=tuple(given.seed + number for number in range(given.seeds)),
        precision=precision,
    )  # fmt: skip
    files = resolve_model(given.model, workdir=workdir, allow_hub=given.allow_hub)
    log.info("Model: %s (sha256 %s...)", files.id, files.sha256[:12])
    return Job(
        rows, splits, files, settings,
        device=chosen, workdir=workdir, data_sha256=file_sha256(given.dataset), log=log,
    )  # fmt: skip


if __name__ == "__main__":
    stage.main(NAME, run)
