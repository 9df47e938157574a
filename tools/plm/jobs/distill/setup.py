"""What a distillation starts from: recipe, teacher, student, corpus, and the cache of what the teacher says."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from plm import kept, stage
from plm.errors import UserError
from plm.jobs.distill import students
from plm.jobs.distill.distillation import RECIPES, Objective, Recipe
from plm.jobs.distill.teacher import Wants
from plm.jobs.distill.teacher_cache import CacheKey, TeacherCache, estimate, fill, unpack
from plm.masked_lm.cluster_split import ClusterSplit, hold_out_clusters
from plm.masked_lm.corpus_store import CorpusStore, open_corpus
from plm.masked_lm.masks import MaskPlan
from plm.masked_lm.shared_work import corpus_together, split_together
from plm.model import encoder
from plm.model.checkpoint import family_of, load_model, resolve_model
from plm.model.families import ESM2, ModelFamily
from plm.model.families.esm2 import ESM2_VOCABULARY
from plm.model.loaded import LoadedModel, ModelFiles
from plm.model.ranks import Ranks
from plm.training import training_state

STUDENT_FAMILY = ESM2
STUDENT_VOCABULARY = {token: number for number, token in enumerate(ESM2_VOCABULARY)}
"""ESM-2's, for a corpus where no student is named yet: masked places do not depend on it."""


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
    teacher: LoadedModel, folder: Path, *, source: str | None, preset: str | None,
    shape: tuple[int | None, int | None, int | None], take: str | None, allow_hub: bool = False,
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
        )
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
    if not family_of(files).language_model_class:
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
    if asked and encoder.language_head(teacher.model) is None:
        raise UserError(
            f"{teacher.family.title} has no language-model head, so it has no logits to learn from",
            where=teacher.files.id, fix=fix,
        )
    if asked and dict(teacher.vocabulary) != dict(student.vocabulary):
        raise UserError(
            f"Teacher and student differ in vocabulary ({teacher.family.title}, {len(teacher.vocabulary)} entries;"
            f" {student.family.title}, {len(student.vocabulary)}), so their logits cannot be compared",
            where=f"{teacher.files.id}, {student.files.id}", fix=fix,
        )


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


def wants_of(objective: Objective, layer: int, top: int) -> Wants:
    """What an objective asks of a teacher.

    Raises:
        UserError: The highest logits alone do not do.
    """
    if top and objective.logit_mse:
        raise UserError(
            "The squared difference of logits needs all of them", where=f"--teacher-top {top}",
            fix="Leave that out, or set --weight-logit-mse to 0 and weigh --weight-kl",
        )
    return Wants(
        objective.needs_logits, bool(objective.kernel), bool(objective.hidden), layer, objective.represent, top
    )


class _TimeIsUp(Exception):
    """The time limit came while the teacher was asked."""


@dataclass(frozen=True)
class Setup:
    """What asking the teacher takes, and where the job works.

    Attributes:
        teacher: Loaded, with its head if it has one.
        objective: The loss.
        settings: Fields of :class:`plm.training.row_training.RowSettings` that recipe and user fix.
        masks: Which residues are hidden.
        wants: What is asked of the teacher.
        precision: ``bf16`` or ``fp32``.
        device: Where.
        ranks: The processes of the job.
        scratch: Folder of this process.
        time_limit: Minutes of asking and training after which to stop, or None.
        log: Where to say what happens.
    """

    teacher: LoadedModel
    objective: Objective
    settings: dict[str, Any]
    masks: MaskPlan
    wants: Wants
    precision: str
    device: torch.device
    ranks: Ranks
    scratch: Path
    time_limit: float | None
    log: logging.Logger

    @cached_property
    def started(self) -> float:
        """When asking the teacher or training began (``time.monotonic``)."""
        return time.monotonic()

    @property
    def minutes_left(self) -> float | None:
        """Of the time limit; a little more than nothing when it is over."""
        if self.time_limit is None:
            return None
        started = self.started
        return max(1e-9, self.time_limit - (time.monotonic() - started) / 60)

    def corpus(
        self, paths: Sequence[Path], family: ModelFamily, vocabulary: Mapping[str, int], taxon_column: str | None
    ) -> CorpusStore:
        """Reads the corpus once for all processes, in the token ids of a student.

        Raises:
            UserError: See :func:`plm.masked_lm.corpus_store.open_corpus`.
        """
        def read(folder: Path) -> CorpusStore:
            store = open_corpus(list(paths), folder, family, vocabulary, taxon_column=taxon_column)
            self.log.info("%s; %d residues", store.account, store.residues)
            return store

        return corpus_together(self.ranks, self.scratch, read, family, vocabulary)

    def split(self, store: CorpusStore, *, share: float, identity: float, seed: int) -> ClusterSplit:
        """Keeps clusters away from training: half of them for looks during training, half for the last judgement.

        Args:
            store: The corpus.
            share: Share of the clusters to hold out.
            identity: Identity from which proteins are relatives.
            seed: Of the choice.

        Raises:
            UserError: See :func:`plm.masked_lm.cluster_split.hold_out_clusters`.
        """
        def hold_out() -> ClusterSplit:
            split = hold_out_clusters(
                store, share=share, identity=identity, seed=seed, threads=stage.threads(), parts=2
            )
            self.log.info("%s", split.sentence)
            return split

        return split_together(self.ranks, store, hold_out)

    def cache(
        self, given: Path | None, store: CorpusStore, indices: np.ndarray, *, needed: bool = True
    ) -> TeacherCache:
        """Opens the cache and asks the teacher what it lacks.

        Without a name it lies in the administrator's ``PLM_CHECKPOINT_DIR``, where a resubmitted job finds it, or else
        in the job's own folder.

        Args:
            given: Folder or zip, or None.
            store: The corpus.
            indices: Which of its sequences.
            needed: Whether a cache that the time limit left incomplete is of no use.

        Raises:
            UserError: It belongs to another teacher or other settings, cannot be read or filled, or the time is up.
        """
        key = CacheKey.of(self.teacher, self.masks, self.wants)
        if not self.ranks.leads:
            folder = Path(self.ranks.told(""))
            self.ranks.meet()
            return TeacherCache.open(folder, key, create=False)
        if given is not None and given.is_file():
            folder = self.scratch / "cache"
            unpack(given, folder)
        else:
            folder = given or _own_cache(key) or self.scratch / "cache"
        cache = TeacherCache.open(folder, key, log=self.log)
        self.ranks.told(str(folder.resolve()))
        whole = self._ask(cache, store, indices)
        if not whole and needed:
            raise UserError(
                "The time limit came while the teacher was asked", where=f"--time-limit {self.time_limit:g}",
                fix="Fill the cache first (--cache-only), or allow more time",
            )
        if not whole:
            self.log.info("The time limit came first: the cache is not complete, give it back to go on")
        self.ranks.meet()
        return cache

    def _ask(self, cache: TeacherCache, store: CorpusStore, indices: np.ndarray) -> bool:
        """Fills a cache with what it lacks; whether it is complete."""
        wanted = estimate(cache, self.teacher, store, indices, self.masks)
        self.log.info("%s", wanted.sentence())
        progress = stage.Progress(self.log, wanted.tokens, "tokens", every=10.0)
        left = self.minutes_left
        until = None if left is None else time.monotonic() + 60 * left

        def advance(tokens: int) -> None:
            progress.advance(tokens, "asked of the teacher")
            if until is not None and time.monotonic() >= until:
                raise _TimeIsUp

        try:
            fill(cache, self.teacher, store, indices, self.masks, advance=advance)
        except _TimeIsUp:
            return len(cache.missing(store.digests[indices], self.masks.sets - 1)) == 0
        return True

    def forget(self, cache: TeacherCache, given: Path | None) -> None:
        """Removes a cache that nobody named, when the job is done."""
        if given is None and cache.folder.is_dir():
            shutil.rmtree(cache.folder)


def _own_cache(key: CacheKey) -> Path | None:
    folder = kept.folder()
    return folder / f"teacher_{training_state.key(key.content)[:32]}" if folder else None
