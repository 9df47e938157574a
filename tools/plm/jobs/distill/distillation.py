"""A student learns from a teacher on packed rows: the terms of its loss, looks at held-out clusters, the range test."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from plm.errors import UserError
from plm.jobs.distill import losses
from plm.jobs.distill.batches import DistillationRow
from plm.jobs.distill.teacher import Teacher, TeacherTargets, mean_of_residues, residue_places
from plm.masked_lm.corpus import IGNORED
from plm.masked_lm.corpus_store import CorpusStore
from plm.masked_lm.masks import MaskPlan
from plm.model import encoder
from plm.model.batching import Batch, RowLayout, plan_batches
from plm.model.families import ModelFamily
from plm.model.loaded import LoadedModel

TERMS = ("logit_mse", "kl", "kernel", "hidden", "mlm")
"""Names of the terms of the loss, in the order of reports."""
Represent = Literal["masked", "intact"]


@dataclass(frozen=True)
class Objective:
    """What the student is asked to match, and how much each term weighs; 0 leaves a term out.

    Attributes:
        logit_mse: Squared difference of logits at masked residues.
        kl: Divergence of the distributions at masked residues.
        kernel: Squared difference of the row's cosine similarities of sequences.
        hidden: Cosine distance of residues' states after a learned projection.
        mlm: Negative log likelihood of the true residues at masked residues.
        temperature: Temperature of the divergence.
        represent: Whether representations (kernel, hidden) are those of the masked or of the intact sequences; the
            latter takes a second pass of the student.
    """

    logit_mse: float = 0.0
    kl: float = 0.0
    kernel: float = 0.0
    hidden: float = 0.0
    mlm: float = 0.0
    temperature: float = 1.0
    represent: Represent = "masked"

    def __post_init__(self) -> None:
        for name in TERMS:
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(
                    "A weight is zero or more", where=f"--weight-{name.replace('_', '-')}",
                    fix="Give 0 or a positive number",
                )
        if not self.terms:
            raise UserError(
                "Every term of the loss weighs nothing", where="--weight-...", fix="Give at least one term a weight"
            )
        if not 0 < self.temperature <= 100:
            raise UserError(f"{self.temperature} is out of range", where="--temperature", fix="Choose up to 100")

    @property
    def terms(self) -> tuple[str, ...]:
        """The terms that weigh something."""
        return tuple(name for name in TERMS if getattr(self, name))

    @property
    def needs_logits(self) -> bool:
        """Whether the teacher's logits are needed."""
        return bool(self.logit_mse or self.kl)

    @property
    def needs_states(self) -> bool:
        """Whether representations are needed."""
        return bool(self.kernel or self.hidden)

    def sentence(self) -> str:
        """The loss in words."""
        names = {
            "logit_mse": "masked-logit MSE",
            "kl": f"KL divergence (temperature {self.temperature:g})",
            "kernel": "kernel alignment",
            "hidden": "hidden-state cosine",
            "mlm": "masked language modelling",
        }
        told = " + ".join(f"{getattr(self, name):g} x {names[name]}" for name in self.terms)
        return told + (f", representations of {self.represent} sequences" if self.needs_states else "")


@dataclass(frozen=True)
class Recipe:
    """An objective and how to train for it.

    Attributes:
        objective: Terms of the loss and their weights.
        settings: Fields of :class:`RowSettings` that the recipe fixes.
    """

    objective: Objective
    settings: Mapping[str, Any]


RECIPES = {
    "suite": Recipe(
        Objective(kl=1.0, hidden=1.0, mlm=0.25, temperature=2.0),
        {"learning_rate": 5e-4, "schedule": "cosine", "weight_decay": 0.01, "beta2": 0.98, "clip": 1.0},
    ),
    "B": Recipe(
        Objective(logit_mse=0.5, kernel=0.5, represent="intact"),
        {"learning_rate": 1e-4, "schedule": "constant", "weight_decay": 0.0, "beta2": 0.999, "clip": 0.0,
         "mask_rate": 0.15, "mask_sets": 1, "batch_tokens": 4096, "warmup_steps": 0},
    ),
}
"""``B``: the setting of "Small Lessons, Big Learner" (Adam at a constant rate, both terms one half)."""


class DistillationModel(nn.Module):
    """A student with its language-model head, and the projection onto the teacher's width where the loss asks for it.

    Args:
        student: Transformers model of the student.
        family: Model family of the student.
        objective: Terms of the loss and their weights.
        teach: Members of a row (indices into the corpus), the number of the mask set, the masked row, the mask of the
            residues to predict -> what the teacher says of them.
        widths: Widths D of the student's and the teacher's states.
    """

    def __init__(
        self, student: nn.Module, family: ModelFamily, objective: Objective,
        teach: Callable[[DistillationRow], TeacherTargets], widths: tuple[int, int],
    ) -> None:
        super().__init__()
        self.language_model = student
        self.projection = nn.Linear(*widths) if objective.hidden else None
        self._before, self._after = len(family.before), len(family.after)
        self._objective, self._teach = objective, teach

    def forward(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, lengths: Sequence[int], labels: torch.Tensor,
        asked: torch.Tensor, members: np.ndarray, set_number: int, shares: Mapping[str, float] | None = None,
    ) -> dict[str, Any]:
        """The loss of a row.

        Args:
            input_ids: ``(T,)`` token ids after masking.
            position_ids: ``(T,)`` place of each token in its sequence.
            lengths: Tokens of each of the N sequences.
            labels: ``(T,)`` true ids, ``IGNORED`` where nothing is asked.
            asked: ``(M,)`` places where something is.
            members: ``(N,)`` indices of the sequences.
            set_number: Number of the set of masks.
            shares: Term -> its factor in the loss beside its weight.

        Returns:
            ``loss``, and in ``terms`` each term that the row defines, without its weight.
        """
        wanted = self._objective
        batch = Batch(input_ids, position_ids, RowLayout(tuple(lengths)), tuple(members.tolist()))
        row = DistillationRow(batch, labels, members, set_number, asked)
        terms, anchor = self.terms(row, self._teach(row) if wanted.needs_logits or wanted.needs_states else None)
        # A row may define no term at all, and yet every process must have a gradient to add.
        weights = {name: getattr(wanted, name) * (1.0 if shares is None else shares[name]) for name in terms}
        loss = 0.0 * anchor.float().sum() + sum(weights[name] * value for name, value in terms.items())
        return {"loss": loss, "terms": {name: value.detach() for name, value in terms.items()}}

    def terms(
        self, row: DistillationRow, taught: TeacherTargets | None
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Each term that a row defines, without its weight, and the student's states of the row.

        Args:
            row: Packed row on the student's device.
            taught: What the teacher says of it; None if the objective asks nothing of a teacher.
        """
        wanted, batch, labels = self._objective, row.batch, row.targets
        asked = row.asked
        model: Any = self.language_model
        terms: dict[str, torch.Tensor] = {}
        predicts = wanted.needs_logits or bool(wanted.mlm)
        both = wanted.needs_states and wanted.represent == "masked"
        hidden = encoder.hidden_states(model, batch) if predicts or both else None
        if hidden is not None and predicts and len(asked):
            with torch.autocast(hidden.device.type, enabled=False):  # bfloat16 would round logits to a thirtieth
                logits = encoder.language_head(model)(hidden[asked].to(model.dtype))
                if wanted.mlm:
                    terms["mlm"] = losses.masked_language_model(logits, labels[asked])
                if taught is not None and wanted.needs_logits:
                    terms |= _logit_terms(logits, taught, wanted)
        states = hidden
        if taught is not None and wanted.needs_states:
            if hidden is None or not both:
                ids = torch.where(labels != IGNORED, labels, batch.input_ids)
                intact = Batch(ids, batch.position_ids, batch.layout, batch.indices)
                states = encoder.hidden_states(model, intact)
            assert states is not None
            terms |= self._state_terms(states, batch, taught)
        anchor = hidden if hidden is not None else states
        assert anchor is not None
        return terms, anchor

    def _state_terms(self, states: torch.Tensor, batch: Batch, taught: TeacherTargets) -> dict[str, torch.Tensor]:
        terms: dict[str, torch.Tensor] = {}
        inside, owner = residue_places(batch, self._before, self._after)
        mine = states[inside]
        projected = None if self.projection is None else self.projection(mine)
        with torch.autocast(states.device.type, enabled=False):  # similarities near one need more digits
            if self._objective.kernel:
                value = losses.kernel_alignment(mean_of_residues(mine, owner, len(batch.lengths)), taught.pooled)
                if value is not None:
                    terms["kernel"] = value
            if projected is not None:
                terms["hidden"] = losses.hidden_cosine(projected, taught.hidden)
        return terms


def _logit_terms(logits: torch.Tensor, taught: TeacherTargets, wanted: Objective) -> dict[str, torch.Tensor]:
    terms: dict[str, torch.Tensor] = {}
    if wanted.logit_mse:
        terms["logit_mse"] = losses.masked_logit_mse(logits, taught.logits)
    if wanted.kl and taught.logits is not None:
        terms["kl"] = losses.kl_divergence(logits, taught.logits, wanted.temperature)
    elif wanted.kl:
        terms["kl"] = losses.kl_divergence_of_top(logits, taught.values, taught.ids, taught.rest, wanted.temperature)
    return terms


def collate(items: Sequence[DistillationRow]) -> dict[str, Any]:
    """The one row of a micro-batch as the keyword arguments of :meth:`DistillationModel.forward`."""
    (row,) = items
    batch, targets, members, set_number, _ = row
    return {
        "input_ids": batch.input_ids,
        "position_ids": batch.position_ids,
        "lengths": batch.lengths,
        "labels": targets,
        "asked": row.asked,
        "members": members,
        "set_number": set_number,
    }


def counts(inputs: Mapping[str, Any], objective: Objective, specials: int) -> dict[str, int]:
    """What the terms of a row are means of: masked residues, residues, and the pairs of the row as one.

    Args:
        inputs: As :func:`collate` gives them.
        objective: Terms that weigh something.
        specials: Special tokens of a sequence.
    """
    masked, sequences = len(inputs["asked"]), len(inputs["lengths"])
    known = dict.fromkeys(TERMS, masked) | {
        "kernel": int(sequences > 1), "hidden": sum(inputs["lengths"]) - specials * sequences,
    }
    return {name: known[name] for name in objective.terms}


def looks(
    loaded: LoadedModel, store: CorpusStore, indices: np.ndarray, masks: MaskPlan, budget: int
) -> Iterator[tuple[Batch, torch.Tensor]]:
    """Masked rows of held-out sequences in a model's own token ids, always the same ones in the same order.

    Args:
        loaded: The model that is asked.
        store: Corpus that holds the sequences.
        indices: Numbers of the held-out sequences.
        masks: Plan of the masks; its first set counts.
        budget: Tokens in a packed row.
    """
    mine = store.for_family(loaded.family, loaded.vocabulary)
    for row in plan_batches(mine.lengths(masks.crop)[indices].tolist(), budget, seed=0):
        yield masks.row(mine, indices[row].tolist(), 0)


class Validation:
    """The terms of the loss on held-out rows, always the same ones; the teacher answers once.

    Args:
        teacher: Answers for rows of ``masks``.
        store: The corpus in the student's token ids.
        indices: Numbers of the held-out sequences.
        masks: Plan of the masks; its first set counts.
        budget: Tokens in a packed row.
        most: About so many tokens, for the answers stay in memory.
        device: Device that holds the student.
        precision: ``bf16`` or ``fp32``.
    """

    def __init__(
        self, teacher: Teacher, store: CorpusStore, indices: np.ndarray, masks: MaskPlan, *, budget: int, most: int,
        device: torch.device, precision: str,
    ) -> None:
        self._device, self._precision = device, precision
        self._rows: list[tuple[DistillationRow, TeacherTargets]] = []
        seen = 0
        for members in plan_batches(store.lengths(masks.crop)[indices].tolist(), budget, seed=0):
            if seen >= most:
                break
            chosen = indices[members]
            batch, targets = masks.row(store, chosen.tolist(), 0)
            row = DistillationRow(batch, targets, chosen, 0).to(device)
            self._rows.append((row, teacher.answer(row)))
            seen += batch.tokens

    def terms(self, network: DistillationModel, objective: Objective) -> dict[str, float]:
        """``valid_<term>`` of each term that a row defines, mean over rows, and their weighted sum ``valid_loss``."""
        sums: dict[str, list[float]] = {}
        training = network.training
        network.eval()
        kind, enabled = self._device.type, self._precision == "bf16"
        with torch.no_grad(), torch.autocast(kind, torch.bfloat16, enabled=enabled):
            for row, taught in self._rows:
                for name, value in network.terms(row, taught)[0].items():
                    sums.setdefault(name, []).append(float(value))
        network.train(training)
        means = {name: sum(values) / len(values) for name, values in sums.items()}
        loss = sum(getattr(objective, name) * value for name, value in means.items())
        return {"valid_loss": loss, **{f"valid_{name}": value for name, value in means.items()}}


@dataclass(frozen=True)
class RangeTest:
    """What training at ever higher learning rates showed.

    Attributes:
        rates: ``(S,)`` rate of each step.
        losses: ``(S,)`` loss of each step.
        smooth: ``(S,)`` the same with the noise of single rows taken out.
        suggestion: Rate at which the loss falls fastest, or NaN if it never falls.
        lowest: Rate at which it is lowest.
        diverged: Whether the loss rose far above its lowest value before the highest rate.
    """

    rates: np.ndarray
    losses: np.ndarray
    smooth: np.ndarray
    suggestion: float
    lowest: float
    diverged: bool


class RateRamp:
    """A learning rate that rises by equal factors until the loss runs away (Smith 2017).

    Args:
        low: Learning rate of the first step.
        high: Learning rate of the last step.
        steps: Number of steps.
    """

    MEMORY = 0.9
    AWAY = 2.0
    """Stop when the smooth loss is so many times its lowest."""

    def __init__(self, low: float, high: float, steps: int) -> None:
        self.low, self.high, self.steps = low, high, steps
        self.diverged = False
        self._mean = 0.0
        self._rates: list[float] = []
        self._losses: list[float] = []
        self._smooth: list[float] = []

    def factor(self, step: int) -> float:
        """Share of the highest rate at a step, from 0."""
        return float((self.low / self.high) ** (1 - min(step, self.steps - 1) / max(1, self.steps - 1)))

    def enough(self, known: Mapping[str, float]) -> bool:
        """Takes a step's record; has the loss run away?"""
        loss = known["train_loss"]
        if not math.isfinite(loss):
            self.diverged = True
            return True
        self._mean = self.MEMORY * self._mean + (1 - self.MEMORY) * loss
        self._rates.append(known["learning_rate"])
        self._losses.append(loss)
        self._smooth.append(self._mean / (1 - self.MEMORY ** len(self._losses)))
        early = len(self._losses) <= max(3, self.steps // 10)
        self.diverged = not early and self._smooth[-1] > self.AWAY * min(self._smooth)
        return self.diverged

    def result(self) -> RangeTest:
        """What it showed.

        Raises:
            UserError: The loss was no finite number from the start.
        """
        if len(self._losses) < 3:
            raise UserError(
                "The loss is no finite number at the lowest rate", where="--find-learning-rate",
                fix="Check the weights of the teacher and of the student",
            )
        rates, smooth = np.array(self._rates), np.array(self._smooth)
        lowest = int(smooth.argmin())
        slope = np.gradient(smooth, np.log(rates))
        # Where the mean has seen a few rows, and before the loss turns.
        first = min(len(rates) // 10, lowest)
        steepest = first + int(slope[first : lowest + 1].argmin())
        falls = lowest > first and slope[steepest] < 0
        return RangeTest(
            rates, np.array(self._losses), smooth, float(rates[steepest]) if falls else math.nan, float(rates[lowest]),
            self.diverged,
        )
