"""A distillation from its inputs to what the reports say: corpus, pair of models, training, the last judgement."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch

from plm import stage
from plm.errors import UserError
from plm.learning import students
from plm.learning.cluster_split import ClusterSplit, hold_out_clusters
from plm.learning.corpus_store import CorpusStore, load_corpus, open_corpus
from plm.learning.distillation import RECIPES, DistillationModel, Objective, RangeTest, RateRamp, Recipe, collate, looks
from plm.learning.distillation_batches import DistillationRows, Group, MaskPlan
from plm.learning.distillation_report import Facts
from plm.learning.pretraining import MaskedRowModel, Score, score_rows
from plm.learning.row_state import CheckpointKeeper
from plm.learning.row_training import Outcome, RowSettings, Steering, train_rows
from plm.learning.teaching import Teacher, Wants
from plm.learning.tracking import Tracking
from plm.model.checkpoint import LoadedModel, ModelFiles, load_model, read_config, read_vocabulary, resolve_model
from plm.model.families import find_family
from plm.model.ranks import Ranks

LOOK_RESIDUES = 100_000
"""Residues of the validation clusters that a look during training takes."""
LOOK_SEED = 977
LOWEST_RATE, HIGHEST_RATE = 1e-6, 1.0
"""Ends of the learning-rate range test."""


def recipe(name: str, objective: Mapping[str, Any], settings: Mapping[str, Any]) -> Recipe:
    """A recipe with what the user gave instead of its own.

    Args:
        name: Of the recipe.
        objective: Fields of :class:`Objective`; None leaves the recipe's.
        settings: Fields of :class:`RowSettings` and ``mask_sets``, likewise.

    Raises:
        UserError: There is no such recipe, or the values do not make a loss.
    """
    if name not in RECIPES:
        raise UserError(f"There is no preset {name!r}", where="--preset", fix=f"Choose one of {', '.join(RECIPES)}")
    known = RECIPES[name]
    mine = {key: value for key, value in objective.items() if value is not None}
    return Recipe(
        Objective(**{**asdict(known.objective), **mine}),
        {**known.settings, **{key: value for key, value in settings.items() if value is not None}},
    )


def choose_student(
    teacher: LoadedModel,
    folder: Path,
    *,
    source: str | None,
    preset: str | None,
    shape: tuple[int | None, int | None, int | None],
    take: str | None,
    allow_hub: bool = False,
) -> ModelFiles:
    """The student's starting weights.

    Args:
        teacher: Whose layers may be taken.
        folder: Where new checkpoints are written.
        source: An existing model, as for :func:`resolve_model`.
        preset: A shape by name.
        shape: Layers, width and heads of a new model.
        take: Layers of the teacher.
        allow_hub: Whether the network may be used.

    Raises:
        UserError: Not exactly one of these is given, or it makes no model.
    """
    given = [source is not None, preset is not None, any(value is not None for value in shape), take is not None]
    if sum(given) != 1:
        raise UserError(
            "No student is named" if not any(given) else "More than one student is named", where="--student",
            fix="Give one of --student, --student-preset, --student-take, or --student-layers with width and heads",
        )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    if source is not None:
        return resolve_model(source, workdir=folder, allow_hub=allow_hub)
    if preset is not None:
        return students.new_student(students.preset(preset), folder / "new", f"a new model (preset {preset})")
    if take is not None:
        return students.from_teacher(teacher, students.parse_layers(take, teacher.layers), folder / "taken")
    layers, width, heads = shape
    if layers is None or width is None:
        raise UserError(
            "A new student needs a depth and a width", where="--student-layers", fix="Give --student-width too"
        )
    made = students.shape(layers, width, heads if heads is not None else max(1, width // 64))
    name = f"a new model ({layers} layers, {width} wide, {made.heads} heads)"
    return students.new_student(made, folder / "new", name)


def together(ranks: Ranks, choose: Callable[[], ModelFiles]) -> ModelFiles:
    """A checkpoint that the leading process finds or makes, for all processes."""
    if not ranks.leads:
        name, folder, digest = json.loads(ranks.told(""))
        return ModelFiles(name, Path(folder), digest)
    files = choose()
    ranks.told(json.dumps([files.id, str(files.directory), files.sha256]))
    return files


def load_teacher(files: ModelFiles, *, precision: str, device: torch.device, logits: bool) -> LoadedModel:
    """Loads a teacher, with its language-model head if it has one.

    Args:
        files: Its checkpoint.
        precision: ``bf16`` or ``fp32``.
        device: Where to.
        logits: Whether the head is needed.

    Raises:
        UserError: It cannot be loaded.
    """
    dtype = "bfloat16" if precision == "bf16" else "float32"
    config, vocabulary = read_config(files.directory), read_vocabulary(files.directory)
    if find_family(config, vocabulary, where=files.id).name == "prott5":
        return load_model(files, dtype=dtype, device=device)
    try:
        return load_model(files, purpose="masked_lm", dtype=dtype, device=device)
    except UserError:
        if logits:
            raise
    # Representations are there even where the head is not.
    return load_model(files, dtype=dtype, device=device)


def check_pair(teacher: LoadedModel, student: LoadedModel, objective: Objective) -> None:
    """Whether the student can learn this from the teacher.

    Raises:
        UserError: Logits of different vocabularies, or of a teacher without a head, are to be compared.
    """
    asked = [f"--weight-{name.replace('_', '-')}" for name in ("logit_mse", "kl") if getattr(objective, name)]
    fix = f"Set {' and '.join(asked)} to 0 and weigh --weight-kernel, --weight-hidden or --weight-mlm"
    if asked and not hasattr(teacher.model, "lm_head"):
        raise UserError(
            f"{teacher.family.title} has no language-model head, so it has no logits to learn from",
            where=teacher.files.id, fix=fix,
        )  # fmt: skip
    if asked and dict(teacher.vocabulary) != dict(student.vocabulary):
        raise UserError(
            f"Teacher and student differ in vocabulary ({teacher.family.title}, {len(teacher.vocabulary)} entries;"
            f" {student.family.title}, {len(student.vocabulary)}), so their logits cannot be compared",
            where=f"{teacher.files.id}, {student.files.id}", fix=fix,
        )  # fmt: skip


def read_corpus(
    paths: Sequence[Path],
    workdir: Path,
    student: LoadedModel,
    ranks: Ranks,
    *,
    taxon_column: str | None,
    holdout: float,
    identity: float,
    seed: int,
) -> tuple[CorpusStore, ClusterSplit]:
    """Reads and splits the corpus once for all processes: validation and test clusters apart from training.

    Args:
        paths: The files.
        workdir: Folder of the leading process; must outlive the store.
        student: Whose token ids are wanted.
        ranks: The processes of the job.
        taxon_column: Column of taxa, or None for the usual names.
        holdout: Share of the clusters to hold out, half for looks during training, half for the last judgement.
        identity: Identity from which proteins are relatives.
        seed: Of the choice.

    Raises:
        UserError: See :func:`open_corpus` and :func:`hold_out_clusters`.
    """
    place = workdir / "split.npz"
    if not ranks.leads:
        ranks.meet()
        return load_corpus(workdir, student.family, student.vocabulary), ClusterSplit.load(place)
    store = open_corpus(list(paths), workdir, student.family, student.vocabulary, taxon_column=taxon_column)
    split = hold_out_clusters(store, share=holdout, identity=identity, seed=seed, threads=stage.threads(), parts=2)
    split.save(place)
    ranks.meet()
    return store, split


def teacher_layer(wanted: int | None, teacher: LoadedModel) -> int:
    """The layer that representations come from; negative numbers count from the last, -1.

    Raises:
        UserError: The teacher has no such layer.
    """
    number = teacher.layers if wanted is None else wanted
    number = teacher.layers + 1 + number if number < 0 else number
    if not 0 <= number <= teacher.layers:
        raise UserError(
            f"The teacher has no layer {wanted}", where="--teacher-layer", fix=f"Choose from 0 to {teacher.layers}"
        )
    return number


@dataclass(frozen=True)
class Job:
    """One distillation.

    Attributes:
        teacher: Loaded, with its head if it has one and it is needed.
        student: Loaded in float32 with its head; trained in place.
        store: The corpus in the student's token ids.
        split: Who trains, who judges.
        objective: The loss.
        settings: How to train.
        masks: Which residues are hidden.
        group: How rows are put together.
        smallest: Sequences from which a taxon is by itself, or None.
        layer: Of the teacher that representations come from.
        device: Where.
        ranks: The processes of the job.
    """

    teacher: LoadedModel
    student: LoadedModel
    store: CorpusStore
    split: ClusterSplit
    objective: Objective
    settings: RowSettings
    masks: MaskPlan
    group: Group
    smallest: int | None
    layer: int
    device: torch.device
    ranks: Ranks

    @property
    def parameters(self) -> tuple[int, int]:
        """Of teacher and student."""
        teacher, student = (
            sum(value.numel() for value in each.model.parameters()) for each in (self.teacher, self.student)
        )
        return teacher, student

    def announce(self, log: logging.Logger) -> dict[str, str]:
        """Says what is planned, and gives it by name."""
        settings, (teacher, student) = self.settings, self.parameters
        if self.group == "taxon" and len(self.store.taxa) < 2:
            log.info("No taxon is known of any protein: batches are of similar length only")
        a_step = settings.accumulate * self.ranks.world
        rows = len(self.rows(1).plan_of(0))
        plan = {
            "Teacher": f"{self.teacher.files.id}, {teacher:,} parameters",
            "Student": f"{self.student.files.id}, {student:,} parameters",
            "Loss": self.objective.sentence(),
            "Batches": self.batches(),
            "Masks": f"{self.masks.rate:.0%} of residues, {self.masks.sets or 'fresh'} sets",
            "Training": f"{settings.steps} steps of {a_step} rows of up to {settings.batch_tokens} tokens, "
            f"{settings.steps * a_step / rows:.2f} passes over the data",
            "Optimiser": f"rate {settings.learning_rate:g}, {settings.schedule}, {settings.warmup_steps} warm-up steps",
            "Seed": str(settings.seed),
        }
        for name in ("Loss", "Batches"):
            log.info("%s: %s", name, plan[name])
        log.info(
            "Plan: teacher %s, student %s; %s; %s on %s%s", plan["Teacher"], plan["Student"], plan["Training"],
            settings.precision, self.device, f" x {self.ranks.world}" if self.ranks.world > 1 else "",
        )  # fmt: skip
        return plan

    def facts(
        self, outcome: Outcome, scores: Mapping[str, Score], *, title: str, recipe: str, start: ModelFiles,
        inputs: Sequence[str], data: str,
    ) -> Facts:  # fmt: skip
        """Everything that the reports say."""
        return Facts(
            title=title, inputs=inputs, store=self.store, split=self.split, teacher=self.teacher.files.id,
            teacher_sha256=self.teacher.files.sha256, student=start.id, parameters=self.parameters,
            objective=self.objective, recipe=recipe, settings=self.settings, masks=self.masks,
            batches=self.batches(), outcome=outcome, scores=scores, processes=self.ranks.world,
            device=str(self.device), data_sha256=data,
        )  # fmt: skip

    @property
    def wants(self) -> Wants:
        """What is asked of the teacher."""
        wanted = self.objective
        return Wants(wanted.needs_logits, bool(wanted.kernel), bool(wanted.hidden), self.layer, wanted.represent)

    def rows(self, steps: int | None = None) -> DistillationRows:
        """The rows of the training, for all processes."""
        count = (steps or self.settings.steps) * self.settings.accumulate * self.ranks.world
        return DistillationRows(
            self.store, self.split.train, count, masks=self.masks, budget=self.settings.batch_tokens, group=self.group,
            smallest=self.smallest, seed=self.settings.seed,
        )  # fmt: skip

    def batches(self) -> str:
        """How rows are put together, in words."""
        plan = self.rows(1).plan_of(0)
        names = {
            "taxon": "of one taxon", "domain": "of small taxa of one domain", "rest": "of other small taxa",
            "unknown": "without a taxon", "all": "of any taxon",
        }  # fmt: skip
        told = ", ".join(f"{rows:,} {names[kind]}" for kind, (rows, _) in plan.pools.items())
        return f"{len(plan):,} rows an epoch, each of similar lengths: {told}"

    def network(self) -> DistillationModel:
        """The student as it is trained; the teacher answers online."""
        teacher = Teacher(self.teacher, self.store, self.masks, self.wants)
        torch.manual_seed(self.settings.seed)
        widths = (self.student.hidden_size, self.teacher.hidden_size)
        return DistillationModel(self.student.model, self.student.family, self.objective, teacher.answer, widths)

    def same(self) -> dict[str, Any]:
        """What a run that goes on must have in common with the one before, settings apart."""
        data = sha256(self.store.digest().encode())
        for values in (self.split.train, self.store.taxon):
            data.update(np.ascontiguousarray(values).tobytes())
        return {
            "teacher": self.teacher.files.sha256, "student": self.student.files.sha256, "data": data.hexdigest(),
            "objective": asdict(self.objective), "masks": asdict(self.masks), "layer": self.layer,
            "batches": [self.group, self.smallest], "processes": self.ranks.world,
        }  # fmt: skip

    def judge(self, loaded: LoadedModel, part: int, most: int | None = None) -> Score:
        """Masked residues of a part of the held-out clusters; the masks are the same for all models.

        Args:
            loaded: A model with its head.
            part: 0 for validation, 1 for test.
            most: About so many residues.
        """
        settings = self.settings
        masks = MaskPlan(LOOK_SEED, 1, self.masks.rate, self.masks.crop)
        items = looks(loaded, self.store, self.split.parts[part], masks, settings.batch_tokens)
        mine = self.store.for_family(loaded.family, loaded.vocabulary)
        return score_rows(
            MaskedRowModel(loaded.model), items, mine.letters, self.store.frequencies(self.split.train),
            device=self.device, precision=settings.precision, most_residues=most,
        )  # fmt: skip

    def train(
        self, network: DistillationModel, keeper: CheckpointKeeper, tracking: Tracking, log: logging.Logger
    ) -> Outcome:
        """Trains the student in place; see :func:`plm.learning.row_training.train_rows`."""
        terms = self.objective.terms
        progress = stage.Progress(log, self.settings.steps - keeper.step, "steps", every=10.0)

        def report(step: int, known: Mapping[str, float]) -> None:
            tracking.step(step, known)
            note = f"loss {known['train_loss']:.4g} (" + ", ".join(f"{name} {known[name]:.4g}" for name in terms) + ")"
            if "masked_perplexity" in known:
                log.info(
                    "Step %d: %s, validation masked perplexity %.2f, accuracy %.3f",
                    step, note, known["masked_perplexity"], known["masked_accuracy"],
                )  # fmt: skip
            progress.advance(1, note)

        def look() -> Mapping[str, float]:
            return self.judge(self.student, 0, LOOK_RESIDUES).known()

        steering = Steering(look, report, keeper.save, keeper.stopping)
        return train_rows(
            network, self.rows(), self.settings, steering, collate=collate, device=self.device, resume=keeper.resume,
            ranks=self.ranks, terms=terms, every_step=True,
        )  # fmt: skip

    def find_rate(self, network: DistillationModel, steps: int, log: logging.Logger) -> tuple[RangeTest, Outcome]:
        """Trains at rates that rise from step to step; the student is worth nothing afterwards."""
        from dataclasses import replace

        ramp = RateRamp(LOWEST_RATE, HIGHEST_RATE, steps)
        settings = replace(
            self.settings, steps=steps, learning_rate=HIGHEST_RATE, schedule="constant", warmup_steps=0,
            evaluate_every=steps + 1, time_limit=None, checkpoint_every=1e9,
        )  # fmt: skip
        progress = stage.Progress(log, steps, "steps", every=10.0)

        def report(step: int, known: Mapping[str, float]) -> None:
            progress.advance(1, f"loss {known['train_loss']:.4g}")

        steering = Steering(dict, report, lambda write, done: None, lambda: False)
        outcome = train_rows(
            network, self.rows(steps), settings, steering, collate=collate, device=self.device, ranks=self.ranks,
            terms=self.objective.terms, every_step=True, factor=ramp.factor, enough=ramp.enough,
        )  # fmt: skip
        return ramp.result(), outcome

    def scores(self, start: ModelFiles) -> dict[str, Score]:
        """The last judgement: teacher, student and the student before, on the test clusters."""
        found: dict[str, Score] = {}
        if hasattr(self.teacher.model, "lm_head"):
            found["teacher"] = self.judge(self.teacher, 1)
        found["student"] = self.judge(self.student, 1)
        before = load_model(start, purpose="masked_lm", device=self.device)
        found["student before distillation"] = self.judge(before, 1)
        return found
