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

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from plm import fingerprints, flags, stage
from plm.errors import UserError
from plm.telling.page import publish

if TYPE_CHECKING:
    from plm.jobs.finetune.job import FineTuningJob

NAME = "plm_finetune"
METHODS = ("lora", "dora", "ia3", "head_lora", "head", "full")
LEARNING_RATE, FULL_LEARNING_RATE = 5e-4, 5e-5
STARTED = time.monotonic()


class FineTuningRows(flags.Flags, heading="data and task"):
    """What is learnt."""

    dataset: Path = flags.source("dataset table with a split or fold column", required=True)
    level: str = flags.choice(("auto", "sequence", "residue", "site"), "what a label belongs to (default: %(default)s)")
    target: str = flags.choice(("auto", "class", "number"), "classes or numbers (default: %(default)s)")
    positive_class: str = flags.text("of two classes the one to detect; by default the last")
    window: int | None = flags.whole(
        None, "cut sites to this many residues (odd; 0 = whole protein); by default as in the table"
    )
    fold: int | None = flags.whole(None, "train for this fold only; by default for each")


class FineTuningModel(flags.Flags, heading="model"):
    """What learns."""

    model: str = flags.text("starter, a folder or zip in Hugging Face format, or hub:organisation/name", required=True)
    allow_hub: bool = flags.switch("allow the network for a hub model")
    method: str = flags.words(
        METHODS,
        f"what is trained: {', '.join(METHODS)}; of several the best on validation rows is kept (default: lora)",
        "lora", metavar="METHOD[,METHOD...]",
    )
    rank: int = flags.whole(8, "rank of LoRA and DoRA (default: %(default)s)", 1)
    alpha: float = flags.number(
        16.0, "scale of LoRA and DoRA: updates are multiplied by alpha / rank (default: %(default)s)", 0, inside=True
    )
    dropout: float = flags.number(0.05, "dropout in LoRA and DoRA (default: %(default)s)", 0, 1, below=True)
    base_bits: str = flags.choice(
        ("16", "8", "4"), "bits of the frozen model under LoRA or DoRA in training, for small GPUs; 8 and 4 need the"
        " library bitsandbytes (default: %(default)s)",
    )
    targets: str = flags.text("comma list of linear layers for the adapters; by default those of attention")
    head_width: int = flags.whole(64, "hidden units of the head (default: %(default)s)", 1)
    head_dropout: float = flags.number(0.1, "dropout in the head (default: %(default)s)", 0, 1, below=True)
    reach: int = flags.whole(
        7, "residues on either side of a site or residue that the head reads one by one; of residue tasks 0 takes a"
        " linear head (default: %(default)s)", 0
    )


class FineTuningCourse(flags.Device, flags.Resume, heading="training"):
    """How it learns."""

    epochs: int = flags.whole(20, "passes over the training rows at most (default: %(default)s)", 1)
    patience: int = flags.whole(
        5, "epochs without improvement before training stops; 0 = never (default: %(default)s)", 0
    )
    metric: str = flags.choice(
        ("auto", "auroc", "auprc", "mcc", "macro_f1", "accuracy", "spearman", "pearson", "rmse", "loss"),
        "validation metric that chooses epoch and method: auto = auroc for one method and two classes, macro_f1 for"
        " classes else, spearman for numbers (default: %(default)s)",
    )
    learning_rate: float | None = flags.number(
        None, "peak rate of adapters or model; by default 5e-4, with full 5e-5", 0, inside=True
    )
    head_learning_rate: float = flags.number(
        1e-3, "peak learning rate of the head (default: %(default)s)", 0, inside=True
    )
    weight_decay: float = flags.number(0.01, "AdamW's weight decay (default: %(default)s)", 0)
    warmup: float = flags.number(
        0.1, "share of the steps in which the learning rate rises (default: %(default)s)", 0, 1, below=True
    )
    schedule: Literal["linear", "cosine", "constant"] = flags.choice(
        ("linear", "cosine", "constant"), "how the learning rate falls (default: %(default)s)"
    )
    class_weights: Literal["none", "balanced"] = flags.choice(
        ("none", "balanced"), "balanced: rare classes weigh as much as frequent ones (default: %(default)s)"
    )
    batch_sequences: int = flags.whole(8, "sequences in an optimiser step (default: %(default)s)", 1)
    batch_tokens: int = flags.whole(
        4096, "tokens that go through the model at once; lowered if the memory is short (default: %(default)s)", 64
    )
    gradient_checkpointing: bool = flags.switch("less memory, a third more time")
    precision: str = flags.like(
        flags.Device, "precision", help="bf16 halves the memory; auto takes it where the processor is fast at it"
    )
    seed: int = flags.seed("random seed of the first training (default: %(default)s)")
    seeds: int = flags.whole(1, "trainings with consecutive seeds, used as an ensemble (default: %(default)s)", 1)


class FineTuningOutputs(flags.TrainedBundle, flags.Reporting, heading="outputs"):
    """What is written."""

    name: str = flags.text("name of the fine-tuned model in tables and reports; by default model and method")
    history: Path | None = flags.output("losses and metrics (tabular)")
    curves: Path | None = flags.output("losses and metrics (PNG)")
    tfevents: Path | None = flags.output("losses and metrics for TensorBoard")


class Arguments(FineTuningRows, FineTuningModel, FineTuningCourse, flags.Combining, FineTuningOutputs):
    """The command line; see ``--help``."""

    def check(self) -> None:
        last_seed = self.seed + self.seeds - 1
        if last_seed > stage.LARGEST_SEED:
            told = f"The value must be at most {stage.LARGEST_SEED} for the last training"
            raise UserError(told, where="--seed", fix="Give a smaller seed, or fewer of them")
        if self.time_limit is not None and self.checkpoint is None:
            raise UserError(
                "A time limit needs a file for the checkpoint", where="--time-limit", fix="Add --checkpoint"
            )

    @property
    def methods(self) -> tuple[str, ...]:
        """Of which the validation rows choose one, in order."""
        return flags.parts(self.method)


def run(argv: Sequence[str] | None) -> None:
    given = flags.read(Arguments, NAME, __doc__, argv)
    needed = {"torch": "2.6", "transformers": "5.2", "peft": "0.17", "safetensors": "0.5", "accelerate": "1.1"}
    stage.require({**needed, "pandas": "2.1"})
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
    log = stage.log(NAME)

    from plm.data.tables import write_table
    from plm.jobs.finetune import finished as release
    from plm.jobs.finetune import job as finetuning
    from plm.jobs.finetune import method_choice, predictor, validation
    from plm.jobs.finetune import report as traces
    from plm.model.bundles.fine_tuned import load_bundle
    from plm.scoring.job_predictor import JobPredictor

    with tempfile.TemporaryDirectory(prefix=f"{NAME}_") as folder, stage.Outputs() as out:
        job = prepare(given, Path(folder))
        if given.resume is not None:
            job.resume(given.resume)
        job.plan()
        deadline = finetuning.deadline_after(given.time_limit, STARTED)
        with traces.Events(None if given.tfevents is None else out.path(given.tfevents), job.workdir) as events:
            finished = job.train(deadline, on_step=events.step, checkpoint=given.checkpoint)
            events.history(job.history())
        if not finished:
            log.info("The time limit is reached: the bundle is marked unfinished, the checkpoint goes on with --resume")

        compared = method_choice.choose(job)
        alone = calibration = validation.calibrate(job)
        combined = JobPredictor(None)
        if given.predictor != "model":
            combined = predictor.build(
                job, alone, compare=not given.without_sequences, forced=given.predictor == "combination"
            )
            if combined.final is not None:
                calibration = predictor.recalibrated(job, alone, combined)
        name = given.name or f"{job.files.id}-{job.chosen.method}"
        content = release.manifest(
            job, calibration, name=name, finished=finished, licence=given.licence, compared=compared, alone=alone,
            combined=combined, choice=given.predictor,
        )
        bundle_path = out.path(given.bundle)
        release.release(
            job, bundle_path, calibration, content, model=given.model, device=given.device, allow_hub=given.allow_hub,
            combined=combined,
        )
        log.info("Loading the bundle again: self-test, then the predictions of validation and test rows")
        bundle = load_bundle(
            bundle_path, given.model, workdir=job.workdir / "reloaded", device=given.device,
            precision=job.settings.precision, allow_hub=given.allow_hub,
        )
        table = release.predictions(bundle, job, calibration, alone=alone, combined=combined)
        if given.predictions is not None:
            write_table(table, out.path(given.predictions))
        history = traces.history_table(job.history())
        if given.history is not None:
            write_table(history, out.path(given.history), "%.6g")
        if given.curves is not None:
            traces.curves(history, job, out.path(given.curves))
        if given.tells():
            publish(traces.report(bundle.manifest, job, calibration, table, compared), given, out, NAME)
        if given.checkpoint is not None:
            finetuning.write_zip(out.path(given.checkpoint), job.checkpoint_files())
    if job.kept_state is not None:
        if finished:
            job.kept_state.remove()
        else:
            job.kept_state.leave()
    log.info("Done%s: %s", "" if finished else " (unfinished)", traces.headline(bundle.manifest))


def prepare(given: Arguments, workdir: Path) -> FineTuningJob:
    """Reads data and model and settles everything that decides the result."""
    from plm.jobs.finetune import objectives
    from plm.jobs.finetune.job import FineTuningJob, FineTuningSettings
    from plm.jobs.finetune.preparation import read_data
    from plm.jobs.finetune.training import TrainingSettings
    from plm.model import device as devices
    from plm.model import quantised_base
    from plm.model.adapters import AdapterSettings
    from plm.model.checkpoint import resolve_model
    from plm.model.heads.head import NEIGHBOURS

    log = stage.log(NAME)
    quantised_base.check(int(given.base_bits), tuple(given.methods))
    device, precision = devices.settle(given.device, given.precision, stage.threads(), None)
    rows, splits = read_data(
        given.dataset, level=given.level, target=given.target, positive=given.positive_class, window=given.window,
        fold=given.fold, methods=given.methods, announce=partial(devices.announce, log, device, precision), log=log,
    )
    adapter, *others = (
        given.into(AdapterSettings, method=method, targets=flags.parts(given.targets)) for method in given.methods
    )
    metric = given.metric
    if others and metric == "auto" and rows.task.target == "class":
        metric = "macro_f1"
    kind = {"kind": NEIGHBOURS} if rows.task.level == "residue" and given.reach else {}
    settings = FineTuningSettings(
        adapter=adapter, others=tuple(others),
        rates={"full": FULL_LEARNING_RATE} if given.learning_rate is None and "full" in given.methods else {},
        training=given.into(
            TrainingSettings, learning_rate=given.learning_rate or LEARNING_RATE,
            metric=objectives.choose_metric(metric, rows.task),
        ),
        head={"width": given.head_width, "dropout": given.head_dropout, "reach": given.reach, **kind},
        class_weights=given.class_weights, seeds=tuple(given.seed + number for number in range(given.seeds)),
        precision=precision, base_bits=int(given.base_bits),
    )
    files = resolve_model(given.model, workdir=workdir, allow_hub=given.allow_hub)
    log.info("Model: %s (sha256 %s...)", files.id, files.sha256[:12])
    return FineTuningJob(
        rows, splits, files, settings, device=device, workdir=workdir,
        data_sha256=fingerprints.file_sha256(given.dataset), log=log,
    )


if __name__ == "__main__":
    stage.main(NAME, run)
