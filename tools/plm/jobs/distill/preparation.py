"""What a distillation is made ready from: device, teacher, loss and masks; then student, corpus and settings."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from plm import stage
from plm.jobs.distill import setup as setups
from plm.jobs.distill.job import DistillationJob
from plm.jobs.distill.setup import Setup
from plm.masked_lm.masks import MaskPlan
from plm.masked_lm.shared_work import checkpoint_together
from plm.model import device as devices
from plm.model.checkpoint import load_model, resolve_model
from plm.model.ranks import Ranks
from plm.training.row_training import RowSettings


@dataclass(frozen=True)
class DistillationRequest:
    """What is to be distilled, and how; the flags of plm_distill by their names.

    Attributes:
        objective: What the user says of the loss.
        training: What the user says of the training that a preset may say too.
        caches: Whether the teacher is asked before training.
    """

    input: Sequence[Path]
    teacher: str
    allow_hub: bool
    student: str | None
    student_preset: str | None
    student_layers: int | None
    student_width: int | None
    student_heads: int | None
    student_take: str | None
    preset: str
    teacher_layer: int | None
    teacher_top: int
    batches: str
    smallest_taxon: int | None
    taxon_column: str | None
    mask_seed: int
    max_length: int
    steps: int
    accumulate: int
    evaluate_every: int
    checkpoint_every: float
    holdout: float
    identity: float
    time_limit: float | None
    device: str
    precision: str
    seed: int
    objective: Mapping[str, Any]
    training: Mapping[str, Any]
    caches: bool


def ready_teacher(request: DistillationRequest, scratch: Path, ranks: Ranks, log: logging.Logger) -> Setup:
    """Device, teacher, loss and masks: what asking the teacher takes."""
    recipe = setups.recipe(request.preset, request.objective, request.training)
    device, precision = devices.settle(request.device, request.precision, stage.threads(), log, ranks)
    files = checkpoint_together(
        ranks, lambda: resolve_model(request.teacher, workdir=scratch / "teacher", allow_hub=request.allow_hub)
    )
    teacher = setups.load_teacher(files, precision=precision, device=device, logits=recipe.objective.needs_logits)
    settings = dict(recipe.settings)
    sets = settings.pop("mask_sets", 4 if request.caches else 0)
    masks = MaskPlan(request.mask_seed, sets, settings.setdefault("mask_rate", 0.15), request.max_length)
    wants = setups.wants_of(recipe.objective, setups.teacher_layer(request.teacher_layer, teacher), request.teacher_top)
    return setups.Setup(
        teacher, recipe.objective, settings, masks, wants, precision, device, ranks, scratch, request.time_limit, log
    )


def ready_job(request: DistillationRequest, setup: Setup) -> DistillationJob:
    """The student and the corpus, and what is planned."""
    shape = (request.student_layers, request.student_width, request.student_heads)
    torch.manual_seed(request.seed)
    start = checkpoint_together(
        setup.ranks,
        lambda: setups.choose_student(
            setup.teacher, setup.scratch / "student", source=request.student, preset=request.student_preset,
            take=request.student_take, shape=shape, allow_hub=request.allow_hub,
        ),
    )
    student = load_model(start, purpose="masked_lm", device=setup.device)
    setups.check_pair(setup.teacher, student, setup.objective)
    store = setup.corpus(request.input, student.family, student.vocabulary, request.taxon_column)
    split = setup.split(store, share=request.holdout, identity=request.identity, seed=request.seed)
    setup.settings["warmup_steps"] = min(setup.settings.get("warmup_steps", 100), request.steps)
    settings = RowSettings(
        steps=request.steps, accumulate=request.accumulate, crop=request.max_length,
        evaluate_every=request.evaluate_every, checkpoint_every=request.checkpoint_every, time_limit=request.time_limit,
        precision=setup.precision, seed=request.seed, **setup.settings,
    )
    group: Literal["taxon", "none"] = "taxon" if request.batches == "taxon" else "none"
    job = DistillationJob(setup, student, start, store, split, settings, group, request.smallest_taxon)
    job.announce()
    return job
