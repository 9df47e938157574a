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
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from plm import flags, stage
from plm.errors import UserError
from plm.telling.page import publish

if TYPE_CHECKING:
    from plm.jobs.distill.job import DistillationJob
    from plm.jobs.distill.setup import Setup
    from plm.jobs.distill.teacher_cache import TeacherCache

NAME = "plm_distill"
WEIGHTS = ("logit_mse", "kl", "kernel", "hidden", "mlm")


def weight(told: str) -> Any:
    """The flag of a term's weight."""
    return flags.number(None, f"weight of: {told}")


class Arguments(flags.Reporting, flags.MaskedTraining, flags.Device):
    """The command line; see ``--help``. What is None is left to the preset."""

    input: list[Path] = flags.source("proteins: FASTA, CSV/TSV, dataset table or Parquet", several=True, required=True)
    teacher: str = flags.text("model to learn from: starter, folder, zip, hub:name", required=True)
    allow_hub: bool = flags.switch("let hub:... models use the network")
    student: str | None = flags.text("start from this smaller ESM-2 model (starter, folder, zip, hub:name)", None)
    student_preset: str | None = flags.text(
        "start from a new model: tiny, small, esm2_8m, esm2_35m, esm2_150m, esm2_650m", None
    )
    student_layers: int | None = flags.whole(None, "start from a new model of so many layers")
    student_width: int | None = flags.whole(None, "width of that model")
    student_heads: int | None = flags.whole(None, "its attention heads (default: one for each 64 of the width)")
    student_take: str | None = flags.text("start from these layers of the teacher: 1,3,5 or 1-3 or 'every 2'", None)
    output_model: Path | None = flags.output("the student, a zip in Hugging Face format")
    undistilled: Path | None = flags.output("the student as it was before, likewise, for comparison")
    history: Path | None = flags.output("table of every step: each term of the loss, rate, scores")
    figure: Path | None = flags.output("the same as curves (PNG)")
    teacher_cache: Path | None = flags.source("folder (made if absent) or zip of what the teacher said before")
    output_cache: Path | None = flags.output("what the teacher said, a zip for --teacher-cache")
    cache_only: bool = flags.switch("ask the teacher and stop; no student is needed")
    held_out: Path | None = flags.output("dataset table of the proteins of test families")
    rejected: Path | None = flags.output("table of the records that are not used")
    tfevents: Path | None = flags.output("every step for TensorBoard")
    mlflow: str | None = flags.text("tracking URI of MLflow, which must be installed", None)
    preset: str = flags.text("suite, or B: logit MSE and kernel alignment, as published; other flags go first", "suite")
    weight_logit_mse: float | None = weight("squared difference of the logits of masked residues")
    weight_kl: float | None = weight("divergence of the probabilities of masked residues")
    weight_kernel: float | None = weight("difference of the similarities between the proteins of a batch")
    weight_hidden: float | None = weight("cosine distance of residues' states after a learned projection")
    weight_mlm: float | None = weight("the true residues, without the teacher")
    temperature: float | None = flags.number(None, "of the divergence")
    represent: str | None = flags.choice(
        ("masked", "intact"), "compare representations of masked or of intact proteins", None
    )
    teacher_layer: int | None = flags.whole(
        None, "layer of the teacher that representations come from (default: the last)"
    )
    teacher_top: int = flags.whole(0, "take only so many of the highest logits (0: all)", 0, 10**5)
    batches: Literal["taxon", "plain"] = flags.choice(
        ("taxon", "plain"), "of one taxon and similar length, or length only"
    )
    smallest_taxon: int | None = flags.whole(None, "smaller taxa are pooled by domain (default: what fills a batch)", 1)
    taxon_column: str | None = flags.text("column of the taxon (default: taxon, taxid, ..., or OX= in FASTA)", None)
    mask_sets: int | None = flags.whole(
        None, "sets of masks that epochs take in turn; 0: always fresh (default; with a cache 4)", 0, 10**6
    )
    mask_seed: int = flags.seed("of the masks; a cache belongs to one")
    max_length: int = flags.whole(512, "longer proteins give a stretch of so many residues", 1, 10**5)
    batch_tokens: int | None = flags.like(flags.MaskedRates, "batch_tokens", default=None)
    mask_rate: float | None = flags.like(flags.MaskedRates, "mask_rate", default=None)
    learning_rate: float | None = flags.like(flags.MaskedRates, "learning_rate", default=None)
    schedule: str | None = flags.like(flags.MaskedRates, "schedule", default=None)
    warmup_steps: int | None = flags.like(flags.MaskedRates, "warmup_steps", default=None)
    weight_decay: float | None = flags.like(flags.MaskedRates, "weight_decay", default=None)
    holdout: float = flags.like(
        flags.MaskedTraining, "holdout", help="share of the clusters kept for validation and test, half each"
    )
    find_learning_rate: int | None = flags.whole(
        None, "instead of training: so many steps at rates from 1e-6 to 1", 10, 10**5
    )
    title: str = flags.text("name of the student in its card")

    def check(self) -> None:
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
        return {name: getattr(self, name) for name in (*flags.flags_of(flags.MaskedRates), "mask_sets")}


def run(argv: Sequence[str] | None) -> None:
    args = flags.read(Arguments, NAME, __doc__, argv)
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
        from plm.jobs.distill.preparation import DistillationRequest, ready_job, ready_teacher

        request = args.into(DistillationRequest, objective=args.objective, training=args.training, caches=args.caches)
        setup = ready_teacher(request, scratch, ranks, log)
        if args.cache_only:
            _ask_only(args, setup, outputs)
            return
        job = ready_job(request, setup)
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
    if args.tells():
        publish(reports.cache_report(cache, store, setup.masks), args, outputs, NAME)
    reports.write_rejected(args.rejected, store, outputs)
    setup.forget(cache, args.teacher_cache)


def _find_rate(
    args: Arguments, job: DistillationJob, cache: TeacherCache | None, outputs: stage.Outputs, log: logging.Logger
) -> None:
    from plm.jobs.distill import report as reports

    assert args.find_learning_rate is not None
    rate, outcome = job.find_rate(job.network(cache), args.find_learning_rate)
    log.info("%s", reports.range_sentence(rate))
    if not job.ranks.leads:
        return
    reports.write_history(outcome, job.objective, args.history, outputs)
    if args.figure:
        reports.range_figure(rate, outputs.path(args.figure))
    if args.tells():
        made = reports.range_report(rate, job.plan(), figure=bool(args.figure), history=bool(args.history))
        publish(made, args, outputs, NAME)
    reports.write_rejected(args.rejected, job.store, outputs)


def _distil(
    args: Arguments, job: DistillationJob, cache: TeacherCache | None, outputs: stage.Outputs, setup: Setup
) -> bool:
    """Trains, judges once on test clusters, and writes what the user wants; whether training has finished."""
    from plm.jobs.distill import report as reports
    from plm.jobs.distill.tracking import Tracking
    from plm.training.checkpoints import CheckpointKeeper

    assert args.output_model is not None
    leads, title = job.ranks.leads, args.title or args.output_model.stem
    same = job.same()
    keeper = CheckpointKeeper.open(
        args.resume, NAME, job.settings, same, setup.scratch, setup.log, asked=args.checkpoint if leads else None
    )
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
    if args.tells():
        made = reports.report(facts, figure=bool(args.figure), history=bool(args.history))
        publish(made, args, outputs, NAME)
    if args.held_out:
        reports.write_held_out(outputs.path(args.held_out), job.store, job.split)
    reports.write_rejected(args.rejected, job.store, outputs)
    if args.checkpoint:
        keeper.export(outputs.path(args.checkpoint), finished=outcome.finished)
    keeper.close(finished=outcome.finished)
    return outcome.finished


if __name__ == "__main__":
    stage.main(NAME, run)
