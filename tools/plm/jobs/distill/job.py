"""A distillation from its setup to what the reports say: rows, training, the range test, the last judgement."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np
import torch

from plm import stage
from plm.jobs.distill.batches import DistillationRows, Group, RowPlan
from plm.jobs.distill.distillation import (
    DistillationModel,
    Objective,
    RangeTest,
    RateRamp,
    Validation,
    collate,
    counts,
    looks,
)
from plm.jobs.distill.report import Facts
from plm.jobs.distill.setup import Setup
from plm.jobs.distill.teacher import Teacher
from plm.jobs.distill.teacher_cache import CachedTeacher, TeacherCache
from plm.jobs.distill.tracking import Tracking
from plm.masked_lm.cluster_split import ClusterSplit
from plm.masked_lm.corpus_store import CorpusStore
from plm.masked_lm.masks import MaskPlan
from plm.masked_lm.training import MaskedRowModel, MaskedScore, score_rows
from plm.model import encoder
from plm.model.checkpoint import load_model
from plm.model.loaded import LoadedModel, ModelFiles
from plm.model.ranks import Ranks
from plm.training.checkpoints import CheckpointKeeper, room_for_states
from plm.training.row_training import RowOutcome, RowSettings, Steering, train_rows

LOOK_RESIDUES = 100_000
"""Residues of the validation clusters that a look during training takes."""
TERM_RESIDUES = 20_000
"""Likewise for the terms of the loss, for which the teacher's answers stay in memory."""
LOOK_SEED = 977
LOWEST_RATE, HIGHEST_RATE = 1e-6, 1.0
"""Ends of the learning-rate range test."""


@dataclass(frozen=True)
class DistillationJob:
    """One distillation.

    Attributes:
        setup: Teacher, loss, masks, and where the job works.
        student: Loaded in float32 with its head; trained in place.
        start: Checkpoint of its starting weights.
        store: The corpus in the student's token ids.
        split: Sequences that train, and those held out to judge.
        settings: Steps, rows, learning rate and all else that shapes the training.
        group: Rows of one ``taxon``, or ``none`` for rows of similar length only.
        smallest: Sequences from which a taxon is by itself, or None.
    """

    setup: Setup
    student: LoadedModel
    start: ModelFiles
    store: CorpusStore
    split: ClusterSplit
    settings: RowSettings
    group: Group
    smallest: int | None

    @property
    def ranks(self) -> Ranks:
        """The processes of the job."""
        return self.setup.ranks

    @property
    def objective(self) -> Objective:
        """The loss."""
        return self.setup.objective

    @property
    def parameters(self) -> tuple[int, int]:
        """Of teacher and student."""
        teacher, student = (
            sum(value.numel() for value in each.model.parameters()) for each in (self.setup.teacher, self.student)
        )
        return teacher, student

    def plan(self) -> dict[str, str]:
        """What is planned, by name."""
        settings, (teacher, student), masks = self.settings, self.parameters, self.setup.masks
        a_step = settings.accumulate * self.ranks.world
        passes = settings.steps * a_step / len(self.first_epoch)
        return {
            "Teacher": f"{self.setup.teacher.files.id}, {teacher:,} parameters",
            "Student": f"{self.start.id}, {student:,} parameters",
            "Loss": self.objective.sentence(),
            "Batches": self.batches(),
            "Masks": f"{masks.rate:.0%} of residues, {masks.sets or 'fresh'} sets",
            "Training": f"{settings.steps:,} steps of {a_step} rows of up to {settings.batch_tokens} tokens, "
            f"{passes:.2f} passes over the data",
            "Optimiser": f"rate {settings.learning_rate:g}, {settings.schedule}, {settings.warmup_steps} warm-up steps",
            "Seed": str(settings.seed),
        }

    def announce(self) -> None:
        """Says what is planned."""
        log, plan = self.setup.log, self.plan()
        if self.group == "taxon" and len(self.store.taxa) < 2:
            log.info("No taxon is known of any protein: batches are of similar length only")
        for name in ("Loss", "Batches"):
            log.info("%s: %s", name, plan[name])
        log.info(
            "Plan: teacher %s; student %s; %s; %s on %s%s; %s of temporary files", plan["Teacher"], plan["Student"],
            plan["Training"], self.settings.precision, self.setup.device,
            f" x {self.ranks.world}" if self.ranks.world > 1 else "",
            room_for_states(self.parameters[1], self.parameters[1]),
        )

    def facts(
        self, outcome: RowOutcome, scores: Mapping[str, MaskedScore], *, title: str, recipe: str,
        inputs: Sequence[str], data: str,
    ) -> Facts:
        """Everything that the reports say."""
        return Facts(
            title=title, inputs=inputs, store=self.store, split=self.split, teacher=self.setup.teacher.files.id,
            teacher_sha256=self.setup.teacher.files.sha256, student=self.start.id, parameters=self.parameters,
            objective=self.objective, recipe=recipe, settings=self.settings, masks=self.setup.masks,
            batches=self.batches(), outcome=outcome, scores=scores, processes=self.ranks.world,
            device=str(self.setup.device), data_sha256=data,
        )

    def rows(self, steps: int | None = None) -> DistillationRows:
        """The rows of the training, for all processes."""
        count = (steps or self.settings.steps) * self.settings.accumulate * self.ranks.world
        return DistillationRows(
            self.store, self.split.train, count, masks=self.setup.masks, budget=self.settings.batch_tokens,
            group=self.group, smallest=self.smallest, seed=self.settings.seed,
        )

    @cached_property
    def first_epoch(self) -> RowPlan:
        """The rows of the first pass over the corpus."""
        return self.rows(1).plan_of(0)

    def batches(self) -> str:
        """How rows are put together, in words."""
        plan = self.first_epoch
        names = {
            "taxon": "of one taxon", "domain": "of small taxa of one domain", "rest": "of other small taxa",
            "unknown": "without a taxon", "all": "of any taxon",
        }
        told = ", ".join(f"{rows:,} {names[kind]}" for kind, (rows, _) in plan.pools.items())
        return f"{len(plan):,} rows an epoch, each of similar lengths: {told}"

    def network(self, cache: TeacherCache | None) -> DistillationModel:
        """The student as it is trained; the teacher answers from the cache, or online without one."""
        answer = (
            Teacher(self.setup.teacher, self.store, self.setup.masks, self.setup.wants).answer
            if cache is None
            else CachedTeacher(cache, self.store).answer
        )
        self.student.family.check_length(self.store.lengths(self.setup.masks.crop).max())
        torch.manual_seed(self.settings.seed)
        widths = (self.student.hidden_size, self.setup.teacher.hidden_size)
        return DistillationModel(self.student.model, self.student.family, self.objective, answer, widths)

    def same(self) -> dict[str, Any]:
        """What a run that goes on must have in common with the one before, settings apart."""
        data = sha256(self.store.digest().encode())
        for values in (self.split.train, self.store.taxon):
            data.update(np.ascontiguousarray(values).tobytes())
        return {
            "teacher": self.setup.teacher.files.sha256, "student": self.student.files.sha256, "data": data.hexdigest(),
            "objective": asdict(self.objective), "masks": asdict(self.setup.masks), "wants": asdict(self.setup.wants),
            "batches": [self.group, self.smallest], "processes": self.ranks.world,
        }

    @property
    def look_masks(self) -> MaskPlan:
        """Masks of held-out sequences, the same for all models."""
        return MaskPlan(LOOK_SEED, 1, self.setup.masks.rate, self.setup.masks.crop)

    @cached_property
    def frequencies(self) -> np.ndarray:
        """``(20,)`` share of each amino acid in training."""
        return self.store.frequencies(self.split.train)

    def validation(self) -> Validation:
        """The terms of the loss on validation clusters."""
        teacher = Teacher(self.setup.teacher, self.store, self.look_masks, self.setup.wants)
        return Validation(
            teacher, self.store, self.split.parts[0], self.look_masks, budget=self.settings.batch_tokens,
            most=TERM_RESIDUES, device=self.setup.device, precision=self.settings.precision,
        )

    def judge(
        self, loaded: LoadedModel, part: int, most: int | None = None, stopping: Callable[[], bool] | None = None
    ) -> MaskedScore:
        """Masked residues of a part of the held-out clusters; the masks are the same for all models.

        Args:
            loaded: A model with its head.
            part: 0 for validation, 1 for test.
            most: About so many residues are masked; None: all sequences are used.
            stopping: Asked before each row: has the job been told to end?
        """
        settings = self.settings
        items = looks(loaded, self.store, self.split.parts[part], self.look_masks, settings.batch_tokens)
        mine = self.store.for_family(loaded.family, loaded.vocabulary)
        return score_rows(
            MaskedRowModel(loaded.model), items, mine.letters, self.frequencies,
            device=self.setup.device, precision=settings.precision, most_residues=most, stopping=stopping,
        )

    def train(self, network: DistillationModel, keeper: CheckpointKeeper, tracking: Tracking) -> RowOutcome:
        """Trains the student in place; see :func:`plm.training.row_training.train_rows`."""
        terms, log = self.objective.terms, self.setup.log
        settings = replace(self.settings, time_limit=self.setup.minutes_left)
        progress = stage.Progress(log, self.settings.steps - keeper.step, "steps", every=10.0)

        def report(step: int, known: Mapping[str, float]) -> None:
            tracking.step(step, known)
            note = f"loss {known['train_loss']:.4g} (" + ", ".join(f"{name} {known[name]:.4g}" for name in terms) + ")"
            if "masked_perplexity" in known:
                log.info(
                    "Step %d: %s, validation masked perplexity %.2f, accuracy %.3f",
                    step, note, known["masked_perplexity"], known["masked_accuracy"],
                )
            progress.advance(1, note)

        validation = self.validation() if self.ranks.leads else None

        def look() -> Mapping[str, float]:
            assert validation is not None
            stopping = keeper.stopping if self.ranks.world == 1 else None
            known = self.judge(self.student, 0, LOOK_RESIDUES, stopping).known()
            return {**known, **validation.terms(network, self.objective)}

        steering = Steering(look, report, keeper.save, keeper.stopping)
        outcome = train_rows(
            network, self.rows(), settings, steering, collate=collate, device=self.setup.device, resume=keeper.resume,
            ranks=self.ranks, terms=terms, every_step=True, counts=self.counts,
        )
        keeper.trained()
        return outcome

    def find_rate(self, network: DistillationModel, steps: int) -> tuple[RangeTest, RowOutcome]:
        """Trains at rates that rise from step to step; the student is worth nothing afterwards."""
        ramp = RateRamp(LOWEST_RATE, HIGHEST_RATE, steps)
        settings = replace(
            self.settings, steps=steps, learning_rate=HIGHEST_RATE, schedule="constant", warmup_steps=0,
            evaluate_every=steps + 1, time_limit=None, checkpoint_every=1e9,
        )
        progress = stage.Progress(self.setup.log, steps, "steps", every=10.0)

        def report(step: int, known: Mapping[str, float]) -> None:
            progress.advance(1, f"loss {known['train_loss']:.4g}")

        steering = Steering(dict, report, lambda write, done: None, lambda: False)
        outcome = train_rows(
            network, self.rows(steps), settings, steering, collate=collate, device=self.setup.device, ranks=self.ranks,
            terms=self.objective.terms, every_step=True, factor=ramp.factor, enough=ramp.enough, counts=self.counts,
        )
        return ramp.result(), outcome

    def counts(self, inputs: Mapping[str, Any]) -> dict[str, int]:
        """What the terms of a row are means of."""
        return counts(inputs, self.objective, self.student.family.specials)

    def scores(self) -> dict[str, MaskedScore]:
        """The last judgement: teacher, student and the student before, on the test clusters."""
        scores: dict[str, MaskedScore] = {}
        if encoder.language_head(self.setup.teacher.model) is not None:
            scores["teacher"] = self.judge(self.setup.teacher, 1)
        scores["student"] = self.judge(self.student, 1)
        scores["student before distillation"] = self.judge(self.undistilled(), 1)
        return scores

    def undistilled(self) -> LoadedModel:
        """The student as it was before."""
        return load_model(self.start, purpose="masked_lm", device=self.setup.device)
