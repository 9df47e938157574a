"""Training on packed rows with the transformers Trainer: one process or several, resumed exactly, stopped in time.

A row follows from the seed and its number only, so that a run which goes on, and several processes, see the rows that
one uninterrupted process sees: process r of R takes row ``s R + r`` as its s-th.
"""

from __future__ import annotations

import math
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch
from torch import nn

from plm import kept, stage
from plm.errors import UserError
from plm.model.ranks import Ranks
from plm.training import sharding, training_state
from plm.training.readings import Readings


@dataclass(frozen=True)
class RowSettings:
    """How to train.

    Attributes:
        steps: Number of optimiser steps.
        batch_tokens: Tokens in a packed row.
        accumulate: Rows a step, in each process.
        crop: Longest stretch of a sequence in residues.
        mask_rate: Share of residues to predict, 0-1.
        learning_rate: Highest learning rate, reached after the warm-up.
        schedule: ``linear``, ``cosine`` or ``constant`` after the warm-up.
        warmup_steps: Steps over which the rate rises from 0.
        weight_decay: AdamW's; with 0 it is Adam.
        beta2: Adam's decay of squared gradients.
        clip: Largest norm of a gradient.
        evaluate_every: Steps between looks at the held-out clusters.
        checkpoint_every: Minutes between checkpoints.
        time_limit: Minutes after which to stop with a checkpoint, or None.
        precision: ``bf16`` or ``fp32``.
        seed: Seed of weights, rows and masks.
    """

    steps: int
    batch_tokens: int = 8192
    accumulate: int = 1
    crop: int = 512
    mask_rate: float = 0.15
    learning_rate: float = 1e-3
    schedule: str = "linear"
    warmup_steps: int = 100
    weight_decay: float = 0.01
    beta2: float = 0.98
    clip: float = 1.0
    evaluate_every: int = 200
    checkpoint_every: float = 5.0
    time_limit: float | None = None
    precision: str = "fp32"
    seed: int = 42


FREE_SETTINGS = ("time_limit", "checkpoint_every", "evaluate_every")
"""Settings that may change between the runs of one training."""


@dataclass(frozen=True)
class Done:
    """How far a training run is. Rows and masks follow from seed and step, so no generator states are needed.

    Attributes:
        step: Number of optimiser steps made.
        tokens: Number of tokens seen.
        history: Records so far, as in :class:`RowOutcome`.
        sums: Term -> sum and number of its values since the last record.
        undefined: Term -> rows so far in which it was not defined.
        owed: Record of the last step whose look at the held-out clusters was cut short; None if none was.
    """

    step: int
    tokens: int
    history: list[dict[str, float]]
    sums: Mapping[str, tuple[float, int]] = field(default_factory=dict)
    undefined: Mapping[str, int] = field(default_factory=dict)
    owed: dict[str, float] | None = None


@dataclass(frozen=True)
class RowOutcome:
    """What a training run did.

    Attributes:
        history: Records of steps: step, epoch, tokens, train_loss, learning_rate, terms and scores.
        steps: Optimiser steps done, all runs together.
        tokens: Tokens seen, all runs and processes together.
        seconds: Training time of this run.
        finished: False if the time limit came first.
        undefined: Term -> rows in which it was not defined, all runs together.
        weights: Where processes held the model in pieces: its weights by name, in the leading process.
    """

    history: list[dict[str, float]]
    steps: int
    tokens: int
    seconds: float
    finished: bool
    undefined: Mapping[str, int]
    weights: Mapping[str, torch.Tensor] | None = None


class PackedRows(Protocol):
    """A dataset whose row depends on its number only."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Any: ...

    def epochs(self, rows: int) -> float:
        """Passes over the data after so many rows."""
        ...


@dataclass(frozen=True)
class Steering:
    """What a caller sees and decides while training runs, in the leading process (``stopping`` in each; ``judge`` in
    each, too, where processes hold the model in pieces).

    Attributes:
        judge: Gives scores on the held-out clusters.
        report: Called after every step with its number and what is known (train_loss, ...).
        save: Called when a checkpoint is due, with a function that writes the state into a folder, and how far it is.
        stopping: Asked before every row and after every step: has the job been told to end? It then saves and exits.
    """

    judge: Callable[[], Mapping[str, float]]
    report: Callable[[int, Mapping[str, float]], None]
    save: Callable[[Callable[[Path], None], Done], None]
    stopping: Callable[[], bool]


class LookCutShort(Exception):
    """Raised by ``Steering.judge`` when the job has been told to end while it judged."""


@dataclass(frozen=True)
class _Meeting:
    """What the processes noted together.

    Attributes:
        tokens: Tokens of their rows.
        undefined: Term -> rows in which it was not defined.
        flags: Each flag, true if it is in any process.
        steps: Of each step whose values were read: term -> mean; NaN for a term that no row defined.
    """

    tokens: int
    undefined: dict[str, int]
    flags: list[bool]
    steps: list[dict[str, float]]


class _Tally:
    """Sums of losses and terms over rows, of all processes together once they have met.

    Each term is averaged over the rows in which it is defined, and over no others.
    """

    def __init__(
        self, terms: Sequence[str], ranks: Ranks, before: Mapping[str, tuple[float, int]], device: torch.device
    ) -> None:
        self._names = ("train_loss", *terms)
        self._ranks = ranks
        self._own: list[tuple[str, torch.Tensor]] = []
        self._noted: deque[list[str]] = deque()
        self._readings = Readings(device)
        self._rows = self._tokens = 0
        self._latest = dict.fromkeys(self._names, math.nan)
        self.clear()
        for name in set(self._names).intersection(before):
            self._sums[name], self._counts[name] = before[name]

    def state(self) -> dict[str, tuple[float, int]]:
        """Sum and number of the values of each term since the last :meth:`clear`."""
        return {name: (self._sums[name], self._counts[name]) for name in self._names}

    def clear(self) -> None:
        """Starts new means."""
        self._sums = dict.fromkeys(self._names, 0.0)
        self._counts = dict.fromkeys(self._names, 0)

    def add(self, tokens: int, loss: torch.Tensor, terms: Mapping[str, torch.Tensor]) -> None:
        """Notes a row of this process; nothing waits for the device yet."""
        self._rows += 1
        self._tokens += tokens
        self._own += [("train_loss", loss.detach()), *((name, value.detach()) for name, value in terms.items())]

    def forget_rows(self) -> None:
        """Drops the rows of a step that is not made."""
        self._own, self._rows, self._tokens = [], 0, 0

    def meet(self, flags: Sequence[bool] = (), *, everything: bool = True) -> _Meeting:
        """Adds up what the processes noted since they last met.

        Args:
            flags: Flags of this process, such as whether it was told to stop.
            everything: False lets the values of the last step wait for the next meeting, if a GPU still computes them;
                the same in all processes.
        """
        number = len(self._names)
        noted = torch.zeros(number, dtype=torch.float64)
        if self._own:
            self._noted.append([name for name, _ in self._own])
            self._readings.note(torch.stack([value.float() for _, value in self._own]))
            for name in self._noted[-1]:
                noted[self._names.index(name)] += 1
        readings = self._readings.read(everything=everything)
        values = torch.zeros(len(readings), number, 2, dtype=torch.float64)  # of each step: sums, how many there are
        for of_step, read in zip(values, readings, strict=True):
            for name, value in zip(self._noted.popleft(), read.tolist(), strict=True):
                of_step[self._names.index(name)] += torch.tensor([value, 1.0], dtype=torch.float64)
        extra = torch.tensor([self._rows, self._tokens, *map(float, flags)], dtype=torch.float64)
        parts = (values.flatten(), noted, extra)
        values, noted, extra = _summed(torch.cat(parts), self._ranks).split([len(part) for part in parts])
        steps = []
        for of_step in values.view(-1, number, 2).tolist():
            for name, (total, count) in zip(self._names, of_step, strict=True):
                self._sums[name] += total
                self._counts[name] += int(count)
            steps.append({
                name: total / count if count else math.nan
                for name, (total, count) in zip(self._names, of_step, strict=True)
            })
        rows, tokens = int(extra[0]), int(extra[1])
        self.forget_rows()
        undefined = {name: rows - int(count) for name, count in zip(self._names, noted.tolist(), strict=True)}
        return _Meeting(tokens, undefined, [bool(flag) for flag in extra[2:].tolist()], steps)

    def means(self) -> dict[str, float]:
        """Means since the last :meth:`clear`; NaN for a term that was defined in no row. Where no value has been read
        since then, the means before."""
        if self._counts["train_loss"] or not self._noted:
            self._latest = {
                name: self._sums[name] / count if (count := self._counts[name]) else math.nan for name in self._names
            }
        return dict(self._latest)


def train_rows(
    model: nn.Module, rows: PackedRows, settings: RowSettings, steering: Steering, *,
    collate: Callable[[Sequence[Any]], dict[str, Any]], device: torch.device, resume: tuple[Path, Done] | None = None,
    ranks: Ranks | None = None, terms: Sequence[str] = (), every_step: bool = False,
    factor: Callable[[int], float] | None = None, enough: Callable[[Mapping[str, float]], bool] | None = None,
    sharded: bool = False, counts: Callable[[Mapping[str, Any]], Mapping[str, int]] | None = None,
) -> RowOutcome:
    """Trains in place.

    A step means the same however its sequences were packed: each part of the loss, a mean within a row, is averaged
    over all rows of the step and of all processes by how many things each row's is the mean of.

    Args:
        model: Called with what ``collate`` gives, and with ``shares`` where ``counts`` is given: part of the loss ->
            its factor. Answers a dictionary with the row's ``loss``, its parts times these factors, and, for each of
            ``terms`` that is defined in the row, its value without factor in ``terms``. On any device; the Trainer
            moves it.
        rows: At least ``steps * accumulate`` for each process.
        settings: Steps, rows, learning rate and all else that shapes the training.
        steering: Judges, reports, saves and stops; in the leading process.
        collate: A list of one item of ``rows`` -> keyword arguments of the model, ``input_ids`` ``(T,)`` among them.
        device: Device on which the model is trained.
        resume: Folder of a written state and how far it was, or None.
        ranks: The processes of the job; alone by default.
        terms: Names of the parts of the loss.
        every_step: Keep a record of every step, with means of its own; else one a look at the held-out clusters, with
            means since the last.
        factor: Step -> share of the learning rate, instead of the schedule.
        enough: Asked after every step with its record: stop here?
        sharded: Weights, gradients and optimiser are divided among the processes (FSDP2). Checkpoints are as those of
            one process, which any number of processes go on from.
        counts: What ``collate`` gave, on the device -> part of the loss -> residues or other things that it is the mean
            of in this row, the same parts for all rows; without it all rows of a step weigh the same.

    Returns:
        The outcome; the model holds the last weights (sharded: only pieces, and the outcome has the weights).

    Raises:
        UserError: Loss or weights are no finite numbers any more.
    """
    from transformers import Trainer, TrainerCallback

    from plm.training.trainer import quiet_arguments, silence

    processes = ranks or Ranks()
    started = time.monotonic()
    before = resume[1] if resume else Done(0, 0, [])
    history = list(before.history)
    tally = _Tally(terms, processes, before.sums, device)
    undefined = {name: before.undefined.get(name, 0) for name in terms}
    state_of = {"tokens": before.tokens, "finished": True}
    unread: deque[dict[str, float]] = deque()  # records of steps whose values a GPU still computes
    rows_a_step = settings.accumulate * processes.world

    sharded = sharded and processes.world > 1
    together = processes.leads or sharded  # who takes part where the whole model is asked for

    def weights() -> dict[str, torch.Tensor]:
        return {name: training_state.whole(value, keep=processes.leads) for name, value in model.named_parameters()}

    def save(done: Done) -> None:
        """Hands a state to the caller: whole, whatever the number of processes."""
        held, optimizer = weights(), training_state.optimizer_state(trainer.optimizer, keep=processes.leads)
        if not processes.leads:
            return
        if not all(bool(torch.isfinite(value).all()) for value in held.values()):
            raise _diverged(done.step, settings, rows_a_step, "Weights are no finite numbers any more")

        def write(folder: Path) -> None:
            training_state.save_tensors(held, folder / "model.safetensors")
            training_state.write_optimizer(optimizer, trainer.lr_scheduler, folder)

        steering.save(write, done)

    def so_far(step: int, owed: dict[str, float] | None = None) -> Done:
        return Done(step, int(state_of["tokens"]), history, tally.state(), dict(undefined), owed)

    def leave(step: int, owed: dict[str, float] | None = None) -> NoReturn:
        save(so_far(step, owed))
        sys.exit(stage.EXIT_TERMINATED)

    def look_at(known: dict[str, float]) -> None:
        """Judges a step whose record is ``known`` but for the scores, and adds it to the history."""
        try:
            known |= steering.judge()
        except LookCutShort:
            tally.clear()
            leave(int(known["step"]), known)
        history.append(known)

    def record(values: Mapping[str, float], known: Mapping[str, float]) -> dict[str, float]:
        """What is told of a step: tokens, means, learning rate, and if every step has a record its place."""
        rest = {name: value for name, value in known.items() if name != "tokens"}
        return {"tokens": known["tokens"], **values, **rest}

    def told_late(steps: Sequence[Mapping[str, float]], now: int) -> dict[str, float] | None:
        """Records steps whose values have come; that of the step that was made just now is given back."""
        for values in steps:
            known = record(values, unread.popleft())
            if known["step"] == now:
                return known
            check(known, int(known["step"]))
            history.append(known)
            if processes.leads:
                steering.report(int(known["step"]), known)
        return None

    def check(known: Mapping[str, float], step: int) -> None:
        if not math.isfinite(known["train_loss"]):
            raise _diverged(step, settings, rows_a_step, "The loss is no finite number any more")

    class RowTrainer(Trainer):
        defined: dict[str, float]
        """Part of the loss -> share of the step's rows that define it."""

        def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
            samples, items = super().get_batch_samples(*args, **kwargs)
            if counts is not None and samples:
                self.defined = share_out(samples, counts, processes)
            return samples, items

        def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler[int]:
            return _From(before.step * rows_a_step, settings.steps * rows_a_step)

        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            if factor is None:
                return super().create_scheduler(num_training_steps, optimizer)
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, factor)
            return self.lr_scheduler

        def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            if processes.world == 1 and steering.stopping():  # weights and sums are those after the last step
                tally.forget_rows()
                read = tally.meet().steps  # of the last step, which a GPU had still computed
                if every_step:
                    told_late(read, -1)
                    tally.clear()
                leave(int(self.state.global_step))
            outputs = model(**inputs)
            values = outputs.get("terms", {})
            if counts is not None:  # their mean over the rows that define them is that over all they are means of
                shares = inputs["shares"]
                values = {name: value * (shares[name] * self.defined[name]) for name, value in values.items()}
            tally.add(int(inputs["input_ids"].shape[0]), outputs["loss"], values)
            return (outputs["loss"], outputs) if kwargs.get("return_outputs") else outputs["loss"]

    between = kept.seconds_between(settings.checkpoint_every)

    class Watch(TrainerCallback):
        saved = time.monotonic()
        rate = 0.0

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            state.global_step = before.step
            if resume is not None:  # only now do both exist; the Trainer's own files are pickled and never used
                training_state.load_optimizer(trainer.optimizer, trainer.lr_scheduler, resume[0])
            if before.owed is not None:
                look_at(dict(before.owed))
            control.should_training_stop = before.step >= settings.steps

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.rate = float(trainer.optimizer.param_groups[0]["lr"])

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            step = int(state.global_step)
            now = time.monotonic()
            late = settings.time_limit is not None and now - started >= 60 * settings.time_limit
            due = now - self.saved >= between
            told = steering.stopping()
            last = step >= settings.steps
            judged = step % settings.evaluate_every == 0 or last
            everything = judged or enough is not None or step <= before.step + 1
            if processes.world == 1:
                everything = everything or late or due or told
            met = tally.meet([late, due, told], everything=everything)
            late, due, told = met.flags
            read = met.steps
            if (late or due or told) and not everything:
                read += tally.meet().steps
            state_of["tokens"] += met.tokens
            for name in terms:
                undefined[name] += met.undefined[name]
            look = judged or late
            place: dict[str, float] = {"tokens": state_of["tokens"], "learning_rate": self.rate}
            if look or every_step:
                place |= {"step": step, "epoch": round(rows.epochs(step * rows_a_step), 4)}
            if every_step:
                unread.append(place)
                current = told_late(read, step)
                tally.clear()
                if current is None:  # a GPU still computes what would be told
                    return
                known = current
            else:
                known = record(tally.means(), place)
            stop = enough is not None and enough({"step": step, **known})
            if not stop:
                check(known, step)
            if look or every_step:
                if look and together:
                    look_at(known)
                else:
                    history.append(known)
                tally.clear()
            if processes.leads:
                steering.report(step, known)
            if stop or (late and not last):
                state_of["finished"] = stop
                control.should_training_stop = True
            if last or late or told or due:
                self.saved = now
                if together:
                    save(so_far(step))
            if told:
                sys.exit(stage.EXIT_TERMINATED)

    with tempfile.TemporaryDirectory(prefix="trainer_") as scratch:
        arguments = quiet_arguments(
            scratch,
            device,
            settings.schedule,
            max_steps=settings.steps,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=settings.accumulate,
            learning_rate=settings.learning_rate,
            warmup_steps=settings.warmup_steps,
            weight_decay=settings.weight_decay,
            adam_beta2=settings.beta2,
            max_grad_norm=settings.clip,
            bf16=settings.precision == "bf16",
            seed=settings.seed,
            # A term that a row does not define leaves parameters without a gradient.
            ddp_find_unused_parameters=True,
            optim="adamw_torch" if sharded else "adamw_torch_fused",
        )
        if resume is not None:
            stored = training_state.load_tensors(resume[0] / "model.safetensors")
            training_state.put_back(dict(model.named_parameters()), stored)
        if sharded:
            sharding.divide(model, bf16=settings.precision == "bf16")
        trainer = RowTrainer(
            model=model, args=arguments, train_dataset=rows, data_collator=collate, callbacks=[Watch()]
        )
        silence(trainer)
        if sharded:
            sharding.leave_as_it_is(trainer)
        trainer.train()
    held = weights() if sharded else None
    steps = int(trainer.state.global_step)
    seconds = time.monotonic() - started
    finished = bool(state_of["finished"])
    return RowOutcome(history, steps, int(state_of["tokens"]), seconds, finished, undefined, held)


def _summed(values: torch.Tensor, ranks: Ranks) -> torch.Tensor:
    """Numbers of the host, summed over the processes of the job."""
    if ranks.world > 1:
        import torch.distributed as dist

        dist.all_reduce(values)
    return values


def share_out(
    samples: Sequence[dict[str, Any]], counts: Callable[[Mapping[str, Any]], Mapping[str, int]], ranks: Ranks
) -> dict[str, float]:
    """Puts ``shares`` into the rows of a step: the factor of each part of the loss with which the mean over the rows
    of all processes is the mean over everything that they count.

    Args:
        samples: Keyword arguments of the model for each row of this process.
        counts: As in :func:`train_rows`.
        ranks: The processes of the job.

    Returns:
        Part -> share of the rows that define it, 0-1.
    """
    own = [counts(sample) for sample in samples]
    names = list(own[0])
    each = torch.tensor([[count[name] for name in names] for count in own], dtype=torch.float64)
    parts = (each.sum(0), (each > 0).double().sum(0), torch.tensor([float(len(own))]))
    totals, defined, number = _summed(torch.cat(parts), ranks).split([len(part) for part in parts])
    factors = each * number / totals.clamp(min=1)
    for sample, row in zip(samples, factors.tolist(), strict=True):
        sample["shares"] = dict(zip(names, row, strict=True))
    return dict(zip(names, (defined / number).tolist(), strict=True))


def _diverged(step: int, settings: RowSettings, rows_a_step: int, what: str) -> UserError:
    first = (step - 1) * rows_a_step + 1
    batch = f"row {first}" if rows_a_step == 1 else f"rows {first} to {step * rows_a_step}"
    return UserError(
        f"{what} at step {step} (packed {batch} of the run); the last state that was kept is from before",
        where=f"--learning-rate {settings.learning_rate:g}",
        fix="Train with a lower learning rate or a longer warm-up",
    )


class _From(torch.utils.data.Sampler[int]):
    """Row numbers in order, from where a resumed run goes on."""

    def __init__(self, first: int, end: int) -> None:
        self._first, self._end = first, end

    def __iter__(self) -> Iterator[int]:
        return iter(range(self._first, self._end))

    def __len__(self) -> int:
        return self._end - self._first
