#!/usr/bin/env python3
"""Distil a protein language model: train a small student to match a large teacher on sequences alone.

Inputs: proteins (FASTA, CSV/TSV, dataset table or Parquet; several files, any number of records), a teacher, and a
student: an existing model, a shape, or layers of the teacher.
Outputs: the student in Hugging Face format (zip), the history of every step, a figure, a report, the proteins of test
families that nobody looked at. Several processes: torchrun --nproc-per-node 2 plm_distill.py ...

Example:
    python plm_distill.py --input proteins.fasta --teacher starter --student-layers 2 --student-width 128 --steps 500
    --output-model student.zip --history history.tsv
"""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plm import stage
from plm.errors import UserError

if TYPE_CHECKING:
    from plm.jobs.distill.job import Job
    from plm.jobs.distill.setup import Setup
    from plm.jobs.distill.teacher_cache import TeacherCache
    from plm.model.ranks import Ranks

NAME = "plm_distill"
WEIGHTS = ("logit_mse", "kl", "kernel", "hidden", "mlm")


@dataclass(frozen=True)
class Arguments:
    """The command line; see ``--help``. What is None is left to the preset."""

    input: list[Path]
    teacher: str
    allow_hub: bool
    student: str | None
    student_preset: str | None
    student_layers: int | None
    student_width: int | None
    student_heads: int | None
    student_take: str | None
    output_model: Path | None
    undistilled: Path | None
    history: Path | None
    figure: Path | None
    report: Path | None
    teacher_cache: Path | None
    output_cache: Path | None
    cache_only: bool
    held_out: Path | None
    rejected: Path | None
    tfevents: Path | None
    mlflow: str | None
    checkpoint: Path | None
    resume: Path | None
    preset: str
    weight_logit_mse: float | None
    weight_kl: float | None
    weight_kernel: float | None
    weight_hidden: float | None
    weight_mlm: float | None
    temperature: float | None
    represent: str | None
    teacher_layer: int | None
    teacher_top: int
    batches: str
    smallest_taxon: int | None
    taxon_column: str | None
    mask_sets: int | None
    mask_rate: float | None
    mask_seed: int
    max_length: int
    steps: int
    batch_tokens: int | None
    accumulate: int
    learning_rate: float | None
    schedule: str | None
    warmup_steps: int | None
    weight_decay: float | None
    holdout: float
    identity: float
    evaluate_every: int
    find_learning_rate: int | None
    checkpoint_every: float
    time_limit: float | None
    stored_dtype: str
    device: str
    precision: str
    seed: int
    title: str

    def __post_init__(self) -> None:
        for flag, value, low, high in (
            ("--steps", self.steps, 1, 10**8),
            ("--batch-tokens", self.batch_tokens, 16, 10**7),
            ("--accumulate", self.accumulate, 1, 10**5),
            ("--max-length", self.max_length, 1, 10**5),
            ("--mask-rate", self.mask_rate, 0.01, 0.9),
            ("--mask-sets", self.mask_sets, 0, 10**6),
            ("--mask-seed", self.mask_seed, 0, 2**32 - 1),
            ("--teacher-top", self.teacher_top, 0, 10**5),
            ("--smallest-taxon", self.smallest_taxon, 1, 10**9),
            ("--holdout", self.holdout, 0.001, 0.5),
            ("--identity", self.identity, 0.2, 1.0),
            ("--evaluate-every", self.evaluate_every, 1, 10**8),
            ("--learning-rate", self.learning_rate, 1e-8, 1.0),
            ("--warmup-steps", self.warmup_steps, 0, 10**8),
            ("--weight-decay", self.weight_decay, 0, 1),
            ("--find-learning-rate", self.find_learning_rate, 10, 10**5),
            ("--seed", self.seed, 0, 2**32 - 1),
        ):
            if value is not None and not low <= value <= high:
                raise UserError(f"{value} is out of range", where=flag, fix=f"Choose {low} to {high}")
        if self.output_model is None and self.find_learning_rate is None and not self.cache_only:
            raise UserError("There is no place for the student", where="--output-model", fix="Name a file")
        if self.cache_only and self.teacher_cache is None and self.output_cache is None:
            raise UserError("There is no place for the cache", where="--cache-only", fix="Add --output-cache")

    @property
    def caches(self) -> bool:
        """Whether the teacher is asked before training."""
        return self.teacher_cache is not None or self.output_cache is not None

    @property
    def objective(self) -> dict[str, Any]:
        """What the user says of the loss."""
        weights = {name: getattr(self, f"weight_{name}") for name in WEIGHTS}
        return {**weights, "temperature": self.temperature, "represent": self.represent}

    @property
    def training(self) -> dict[str, Any]:
        """What the user says of the training that a preset may say too."""
        names = ("learning_rate", "schedule", "warmup_steps", "weight_decay", "batch_tokens", "mask_rate", "mask_sets")
        return {name: getattr(self, name) for name in names}


def parse(argv: Sequence[str] | None) -> Arguments:
    parser = stage.parser(NAME, __doc__ or "")
    add = parser.add_argument
    add("--input", type=Path, required=True, nargs="+", help="proteins: FASTA, CSV/TSV, dataset table or Parquet")
    add("--teacher", required=True, help="model to learn from: starter, folder, zip, hub:name")
    add("--allow-hub", action="store_true", help="let hub:... models use the network")
    add("--student", help="start from this smaller ESM-2 model (starter, folder, zip, hub:name)")
    add("--student-preset", help="start from a new model: tiny, small, esm2_8m, esm2_35m, esm2_150m, esm2_650m")
    add("--student-layers", type=int, help="start from a new model of so many layers")
    add("--student-width", type=int, help="width of that model")
    add("--student-heads", type=int, help="its attention heads (default: one for each 64 of the width)")
    add("--student-take", help="start from these layers of the teacher: 1,3,5 or 1-3 or 'every 2'")
    add("--output-model", type=stage.output_file, help="the student, a zip in Hugging Face format")
    add("--undistilled", type=stage.output_file, help="the student as it was before, likewise, for comparison")
    add("--history", type=stage.output_file, help="table of every step: each term of the loss, rate, scores")
    add("--figure", type=stage.output_file, help="the same as curves (PNG)")
    add("--report", type=stage.output_file, help="report in Galaxy's markdown")
    add("--teacher-cache", type=Path, help="folder (made if absent) or zip of what the teacher said before")
    add("--output-cache", type=stage.output_file, help="what the teacher said, a zip for --teacher-cache")
    add("--cache-only", action="store_true", help="ask the teacher and stop; no student is needed")
    add("--held-out", type=stage.output_file, help="dataset table of the proteins of test families")
    add("--rejected", type=stage.output_file, help="table of the records that are not used")
    add("--tfevents", type=stage.output_file, help="every step for TensorBoard")
    add("--mlflow", help="tracking URI of MLflow, which must be installed")
    add("--checkpoint", type=stage.output_file, help="where to write a checkpoint when the time limit comes")
    add("--resume", type=Path, help="checkpoint of an earlier run with the same input and settings")
    add(
        "--preset",
        default="suite",
        help="suite, or B: logit MSE and kernel alignment, as published; other flags go first",
    )
    for name, text in (
        ("logit-mse", "squared difference of the logits of masked residues"),
        ("kl", "divergence of the probabilities of masked residues"),
        ("kernel", "difference of the similarities between the proteins of a batch"),
        ("hidden", "cosine distance of residues' states after a learned projection"),
        ("mlm", "the true residues, without the teacher"),
    ):
        add(f"--weight-{name}", type=float, help=f"weight of: {text}")
    add("--temperature", type=float, help="of the divergence")
    add("--represent", choices=("masked", "intact"), help="compare representations of masked or of intact proteins")
    add("--teacher-layer", type=int, help="layer of the teacher that representations come from (default: the last)")
    add("--teacher-top", type=int, default=0, help="take only so many of the highest logits (0: all)")
    add(
        "--batches", choices=("taxon", "plain"), default="taxon", help="of one taxon and similar length, or length only"
    )
    add("--smallest-taxon", type=int, help="smaller taxa are pooled by domain (default: what fills a batch)")
    add("--taxon-column", help="column of the taxon (default: taxon, taxid, ..., or OX= in FASTA)")
    add(
        "--mask-sets",
        type=int,
        help="sets of masks that epochs take in turn; 0: always fresh (default; with a cache 4)",
    )
    add("--mask-rate", type=float, help="share of residues to predict")
    add("--mask-seed", type=int, default=42, help="of the masks; a cache belongs to one")
    add("--max-length", type=int, default=512, help="longer proteins give a stretch of so many residues")
    add("--steps", type=int, default=1000, help="optimiser steps")
    add("--batch-tokens", type=int, help="residues that are trained on together")
    add("--accumulate", type=int, default=1, help="batches before each step, in each process")
    add("--learning-rate", type=float, help="highest learning rate")
    add("--schedule", choices=("linear", "cosine", "constant"), help="course after the warm-up")
    add("--warmup-steps", type=int, help="steps until the highest learning rate")
    add("--weight-decay", type=float, help="AdamW weight decay")
    add("--holdout", type=float, default=0.02, help="share of the clusters kept for validation and test, half each")
    add("--identity", type=float, default=0.3, help="relatives are at least this identical (0-1)")
    add("--evaluate-every", type=int, default=200, help="steps between looks at the validation clusters")
    add("--find-learning-rate", type=int, help="instead of training: so many steps at rates from 1e-6 to 1")
    add("--checkpoint-every", type=float, default=10.0, help="minutes between checkpoints in PLM_CHECKPOINT_DIR")
    add("--time-limit", type=float, help="stop after so many minutes with a checkpoint to go on from")
    add("--stored-dtype", choices=("bfloat16", "float32"), default="bfloat16", help="type of the stored weights")
    add("--device", default="auto", help="auto, cpu or cuda")
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="arithmetic of matrix products")
    add("--seed", type=int, default=42, help="of weights, split, batches and masks")
    add("--title", default="", help="name of the student in its card")
    return Arguments(**vars(parser.parse_args(argv)))


def run(argv: Sequence[str] | None) -> None:
    args = parse(argv)
    log = stage.log(NAME)
    stage.require({"torch": "2.6", "transformers": "5.2", "safetensors": "0.5", "accelerate": "1.1"})
    from plm.jobs.distill.tracking import check_mlflow

    if args.mlflow is not None:
        check_mlflow()
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="plm_")))
        from plm.model.ranks import Ranks

        ranks = Ranks.join(gpus=True)
        stack.callback(ranks.leave)
        log.disabled = not ranks.leads
        outputs = stack.enter_context(stage.Outputs())
        setup = _setup(args, scratch, ranks, log)
        if args.cache_only:
            _ask_only(args, setup, outputs)
            return
        job = _prepare(args, setup)
        cache = setup.cache(args.teacher_cache, job.store, job.split.train) if args.caches else None
        finished = True
        if args.find_learning_rate is not None:
            _find_rate(args, job, cache, outputs, log)
        else:
            finished = _distil(args, job, cache, outputs, setup)
        if cache is not None and ranks.leads:
            if args.output_cache:
                cache.export(outputs.path(args.output_cache))
            if finished:
                setup.forget(cache, args.teacher_cache)


def _setup(args: Arguments, scratch: Path, ranks: Ranks, log: logging.Logger) -> Setup:
    """Device, teacher, loss and masks: what asking the teacher takes."""
    from plm.jobs.distill import setup as setups
    from plm.masked_lm.masks import MaskPlan
    from plm.model import device as devices
    from plm.model.checkpoint import resolve_model

    recipe = setups.recipe(args.preset, args.objective, args.training)
    devices.use_threads(max(1, stage.threads() // ranks.here))
    device = devices.choose_device(args.device)
    if device.type == "cuda" and ranks.world > 1:
        device = devices.choose_device(f"cuda:{ranks.local}")
    precision = devices.choose_precision(args.precision, device)
    devices.announce(log, device, precision)
    files = setups.together(
        ranks, lambda: resolve_model(args.teacher, workdir=scratch / "teacher", allow_hub=args.allow_hub)
    )
    teacher = setups.load_teacher(files, precision=precision, device=device, logits=recipe.objective.needs_logits)
    settings = dict(recipe.settings)
    sets = settings.pop("mask_sets", 4 if args.caches else 0)
    masks = MaskPlan(args.mask_seed, sets, settings.setdefault("mask_rate", 0.15), args.max_length)
    wants = setups.wants_of(recipe.objective, setups.teacher_layer(args.teacher_layer, teacher), args.teacher_top)
    return setups.Setup(
        teacher, recipe.objective, settings, masks, wants, precision, device, ranks, scratch, args.time_limit, log
    )


def _prepare(args: Arguments, setup: Setup) -> Job:
    """The student and the corpus, and what is planned."""
    import torch
    from plm.jobs.distill import setup as setups
    from plm.jobs.distill.job import Job
    from plm.model.checkpoint import load_model
    from plm.training.row_training import RowSettings

    shape = (args.student_layers, args.student_width, args.student_heads)
    torch.manual_seed(args.seed)
    start = setups.together(
        setup.ranks,
        lambda: setups.choose_student(
            setup.teacher, setup.scratch / "student", source=args.student, preset=args.student_preset,
            take=args.student_take, shape=shape, allow_hub=args.allow_hub,
        ),
    )  # fmt: skip
    student = load_model(start, purpose="masked_lm", device=setup.device)
    setups.check_pair(setup.teacher, student, setup.objective)
    store = setup.corpus(args.input, student.family, student.vocabulary, args.taxon_column)
    split = setup.split(store, share=args.holdout, identity=args.identity, seed=args.seed)
    setup.settings["warmup_steps"] = min(setup.settings.get("warmup_steps", 100), args.steps)
    settings = RowSettings(
        steps=args.steps, accumulate=args.accumulate, crop=args.max_length, evaluate_every=args.evaluate_every,
        checkpoint_every=args.checkpoint_every, time_limit=args.time_limit, precision=setup.precision, seed=args.seed,
        **setup.settings,
    )  # fmt: skip
    group: Any = "taxon" if args.batches == "taxon" else "none"
    job = Job(setup, student, start, store, split, settings, group, args.smallest_taxon)
    job.announce()
    return job


def _ask_only(args: Arguments, setup: Setup, outputs: stage.Outputs) -> None:
    """Fills the cache with all proteins of the input."""
    import numpy as np
    from plm.jobs.distill import report as reports
    from plm.jobs.distill.setup import STUDENT_FAMILY, STUDENT_VOCABULARY

    store = setup.corpus(args.input, STUDENT_FAMILY, STUDENT_VOCABULARY, args.taxon_column)
    cache = setup.cache(args.teacher_cache, store, np.arange(len(store)), needed=False)
    if not setup.ranks.leads:
        return
    if args.output_cache:
        cache.export(outputs.path(args.output_cache))
    if args.report:
        reports.cache_report(cache, store, setup.masks).write(outputs.path(args.report))
    reports.write_rejected(args.rejected, store, outputs)
    setup.forget(cache, args.teacher_cache)


def _find_rate(
    args: Arguments, job: Job, cache: TeacherCache | None, outputs: stage.Outputs, log: logging.Logger
) -> None:
    from plm.jobs.distill import report as reports

    assert args.find_learning_rate is not None
    found, outcome = job.find_rate(job.network(cache), args.find_learning_rate)
    log.info("%s", reports.range_sentence(found))
    if not job.ranks.leads:
        return
    reports.write_history(outcome, job.objective, args.history, outputs)
    if args.figure:
        reports.range_figure(found, outputs.path(args.figure))
    if args.report:
        made = reports.range_report(found, job.plan(), figure=bool(args.figure), history=bool(args.history))
        made.write(outputs.path(args.report))
    reports.write_rejected(args.rejected, job.store, outputs)


def _distil(args: Arguments, job: Job, cache: TeacherCache | None, outputs: stage.Outputs, setup: Setup) -> bool:
    """Trains, judges once on test clusters, and writes what the user wants; whether training has finished."""
    from plm.jobs.distill import report as reports
    from plm.jobs.distill.tracking import Tracking
    from plm.training.checkpoint_keeper import CheckpointKeeper

    assert args.output_model is not None
    leads, title = job.ranks.leads, args.title or args.output_model.stem
    same = job.same()
    keeper = CheckpointKeeper.open(args.resume, NAME, job.settings, same, setup.scratch, setup.log)
    events = outputs.path(args.tfevents) if args.tfevents and leads else None
    with Tracking(events, args.mlflow if leads else None, title, job.plan(), setup.scratch, setup.log) as tracking:
        outcome = job.train(job.network(cache), keeper, tracking)
    if not leads:
        return outcome.finished
    inputs = [path.name for path in args.input]
    facts = job.facts(outcome, job.scores(), title=title, recipe=args.preset, inputs=inputs, data=same["data"])
    setup.log.info("%s", " ".join([reports.headline(facts), *facts.skipped()]))
    path = outputs.path(args.output_model)
    reports.write_model(job.student, path, reports.card(facts), dtype=args.stored_dtype, workdir=setup.scratch)
    if args.undistilled:
        path, text = outputs.path(args.undistilled), reports.start_card(facts)
        reports.write_model(job.undistilled(), path, text, dtype=args.stored_dtype, workdir=setup.scratch)
    reports.write_history(outcome, job.objective, args.history, outputs)
    if args.figure:
        reports.curves(outcome, job.objective, outputs.path(args.figure))
    if args.report:
        made = reports.report(facts, figure=bool(args.figure), history=bool(args.history))
        made.write(outputs.path(args.report))
    if args.held_out:
        reports.write_held_out(outputs.path(args.held_out), job.store, job.split)
    reports.write_rejected(args.rejected, job.store, outputs)
    if args.checkpoint:
        keeper.export(outputs.path(args.checkpoint), finished=outcome.finished)
    keeper.close(finished=outcome.finished)
    return outcome.finished


def main() -> None:
    stage.main(NAME, run, sys.argv[1:])


if __name__ == "__main__":
    main()
