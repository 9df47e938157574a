"""Training one network: transformers' Trainer on packed rows, with exact checkpoints and the best epoch kept.

One item of the data loader is one optimiser step: a few packed rows whose losses are summed and divided by the weight
of all their targets, so that a step means the same however its sequences were packed.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback

from plm.data.task import Task
from plm.errors import UserError
from plm.jobs.finetune import objectives
from plm.jobs.finetune.batches import MicroBatch, StepSampler, TrainingExamples, step_loader
from plm.kept import SoftEnd
from plm.model.adapters import load_trainable_state, trainable_state
from plm.model.network import Network, answers
from plm.received.documents import read_object
from plm.received.fields import Fields
from plm.training import training_state
from plm.training.readings import Readings
from plm.training.trainer import quiet_arguments, silence

Schedule = Literal["linear", "cosine", "constant"]
Status = Literal["finished", "time limit"]
STATE_FILE = "trainer_state.json"


@dataclass(frozen=True)
class TrainingSettings:
    """How a network is trained; every field but none of the machine's belongs to the checkpoint's key.

    Attributes:
        epochs: Passes over the training examples at most.
        learning_rate: Peak rate of the encoder's adapters or weights.
        head_learning_rate: Peak rate of the head.
        weight_decay: Weight decay of AdamW, on matrices only.
        warmup: Share of all steps in which the rate rises, 0-1.
        schedule: Shape of the rate's fall to zero after the warm-up.
        batch_sequences: Sequences in an optimiser step.
        batch_tokens: Tokens that go through the network at once.
        patience: Epochs without improvement after which training stops; 0 never stops early.
        metric: Validation metric that chooses the epoch to keep.
        gradient_checkpointing: Compute activations twice instead of keeping them.
        max_gradient_norm: Longer gradients are shortened to this length.
    """

    epochs: int = 20
    learning_rate: float = 5e-4
    head_learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.1
    schedule: Schedule = "linear"
    batch_sequences: int = 8
    batch_tokens: int = 4096
    patience: int = 5
    metric: str = "auroc"
    gradient_checkpointing: bool = False
    max_gradient_norm: float = 1.0


@dataclass
class Interruption:
    """When training must stop or save: asked after every step.

    Attributes:
        deadline: ``time.monotonic()`` after which it stops with a checkpoint; None for never.
        every: Seconds between periodic checkpoints; None for none.
        end: Whether the job has been told to end: save and leave.
    """

    deadline: float | None = None
    every: float | None = None
    end: SoftEnd = field(default_factory=SoftEnd)
    saved: float = field(default_factory=time.monotonic)

    def time_is_up(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline

    def save_due(self) -> bool:
        due = self.every is not None and time.monotonic() - self.saved >= self.every
        return due or self.end.told


@dataclass
class TrainingOutcome:
    """What training left.

    Attributes:
        status: ``finished``, or stopped by the ``time limit``.
        history: One row a logged step or epoch: step, epoch, train_loss, valid_loss, ``valid_<metric>``, learning_rate.
        best: Validation scores of the epoch that was kept; None if none was reached.
        best_epoch: Number of that epoch, from 1.
        epochs: Number of epochs completed.
        steps: Number of optimiser steps made.
    """

    status: Status
    history: list[dict[str, float]]
    best: dict[str, float] | None
    best_epoch: int
    epochs: int
    steps: int


def train(
    network: Network, task: Task, training: TrainingExamples, validation: TrainingExamples, settings: TrainingSettings,
    *, seed: int, folder: Path, class_weights: torch.Tensor | None = None, interruption: Interruption | None = None,
    resume: Path | None = None, on_checkpoint: Callable[[Path], None] | None = None,
    on_step: Callable[[int, int, float, float], None] | None = None,
    on_epoch: Callable[[Mapping[str, float]], None] | None = None,
) -> TrainingOutcome:
    """Trains a network in place and leaves it at its best validation epoch.

    Args:
        network: Network on the device where it is to be trained.
        task: Level, kind of target and classes that are predicted.
        training: Examples to learn from.
        validation: Examples that choose the epoch.
        settings: Batches, learning rate, epochs and all else that shapes the training.
        seed: Seed of the order of examples and of dropout.
        folder: Folder for checkpoints on the way.
        class_weights: ``(K,)`` weights in the loss.
        interruption: When to stop or save.
        resume: Folder of a checkpoint to go on from, exactly.
        on_checkpoint: Called with the folder of each checkpoint that was written.
        on_step: Called with step, steps in all, loss and learning rate after each optimiser step.
        on_epoch: Called with the row of history of each epoch.

    Returns:
        What happened. After a time limit the network holds the best epoch so far, or the last weights before the first.
    """
    trainer = _PackedTrainer(
        network, task, training, validation, settings, seed, folder, class_weights, interruption or Interruption(),
        on_checkpoint, on_step, on_epoch,
    )
    if resume is not None:
        clean_state(resume)
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer.finish()


class _PackedTrainer(Trainer):
    def __init__(
        self, network: Network, task: Task, training: TrainingExamples, validation: TrainingExamples,
        settings: TrainingSettings, seed: int, folder: Path, class_weights: torch.Tensor | None,
        interruption: Interruption, on_checkpoint: Callable[[Path], None] | None,
        on_step: Callable[[int, int, float, float], None] | None,
        on_epoch: Callable[[Mapping[str, float]], None] | None,
    ) -> None:
        self.task, self.training, self.validation, self.settings = task, training, validation, settings
        self.folder, self.interruption = folder, interruption
        self.on_checkpoint, self.on_step, self.on_epoch = on_checkpoint, on_step, on_epoch
        self.target_weights = None if class_weights is None else class_weights.to(network.device)
        self.sampler = StepSampler(len(training.units), settings.batch_sequences, seed)
        self.total_steps = len(self.sampler) * settings.epochs
        # With many epochs their rows are curve enough.
        self.log_every = max(1, self.total_steps // 100) if settings.epochs < 10 else self.total_steps + 1
        self.history: list[dict[str, float]] = []
        self.best: dict[str, float] | None = None
        self.best_weights: dict[str, torch.Tensor] | None = None
        self.best_epoch = self.epochs_done = self.stale = 0
        self.epoch_loss = self.step_loss = 0.0
        self.losses = Readings(network.device)
        self.stopped = False
        if settings.gradient_checkpointing:
            network.body.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        arguments = quiet_arguments(
            folder / "trainer", network.device, settings.schedule, num_train_epochs=settings.epochs,
            per_device_train_batch_size=settings.batch_sequences, learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay, warmup_steps=round(settings.warmup * self.total_steps),
            max_grad_norm=settings.max_gradient_norm, seed=seed % 2**32,
        )
        super().__init__(model=network, args=arguments, train_dataset=training.units, data_collator=list)
        silence(self)
        self.add_callback(_Flow(self))

    # ------------------------------------------------------------------------------------------------ data and steps

    def get_train_dataloader(self) -> DataLoader[Any]:
        return step_loader(self.training, self.model.family, self.sampler, self.settings.batch_tokens)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:  # type: ignore[has-type]
            decayed = set(self.get_decay_parameter_names(self.model))
            groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad:
                    groups.setdefault((name.startswith("head."), name in decayed), []).append(parameter)
            rates = {True: self.settings.head_learning_rate, False: self.settings.learning_rate}
            self.optimizer = torch.optim.AdamW(
                [
                    {"params": p, "lr": rates[head], "weight_decay": self.settings.weight_decay if decay else 0.0}
                    for (head, decay), p in groups.items()
                ],
                fused=self.args.device.type == "cuda" or None,
            )
        return self.optimizer

    def training_step(self, model: Any, inputs: list[MicroBatch], num_items_in_batch: Any = None) -> torch.Tensor:
        model.train()
        device = self.args.device
        total = sum(objectives.loss_weight(micro.targets, self.task, self._weights("cpu")) for micro in inputs)
        # A step may hold only residues without a label; it then teaches nothing.
        total = max(total, 1e-12)
        loss = torch.zeros((), device=device)
        before = training_state.random_state()
        for micro in inputs:
            if self.interruption.end.told and self.state.global_step % len(self.sampler):
                self._save(before)  # all but the random numbers is as it was after the last step
            there = micro.to(device)
            outputs = model(there.batch, there.where)
            part = objectives.loss_sum(outputs, there.targets, self.task, self._weights(device)) / total
            self.accelerator.backward(part)
            loss += part.detach()
        self.losses.note(loss)
        self._read_losses()
        return loss

    def _read_losses(self, *, everything: bool = False) -> None:
        """Takes in the losses of steps that are done; on a GPU the last one may still be under way."""
        for loss in self.losses.read(everything=everything):
            self.step_loss = float(loss)
            if not math.isfinite(self.step_loss):
                raise self._diverged("loss")
            self.epoch_loss += self.step_loss

    def _weights(self, device: torch.device | str) -> torch.Tensor | None:
        return None if self.target_weights is None else self.target_weights.to(device)

    # ---------------------------------------------------------------------------------------------------- validation

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        self._read_losses(everything=True)
        scores = validate(self.model, self.task, self.validation, self.settings.batch_tokens, self._weights("cpu"))
        if not math.isfinite(scores["loss"]):
            raise self._diverged("validation loss")
        self.epochs_done = self.state.global_step // len(self.sampler)
        row = {
            "step": self.state.global_step,
            "epoch": float(self.epochs_done),
            "train_loss": self.epoch_loss / len(self.sampler),
            "valid_loss": scores["loss"],
            **{f"valid_{name}": value for name, value in scores.items() if name != "loss"},
            "learning_rate": self._rate(),
        }
        self.epoch_loss = 0.0
        self.history.append(row)
        if objectives.better(scores, self.best, self.settings.metric):
            self.best, self.best_epoch, self.stale = scores, self.epochs_done, 0
            self.best_weights = trainable_state(self.model)
        else:
            self.stale += 1
        if self.settings.patience and self.stale >= self.settings.patience:
            self.control.should_training_stop = True
        if self.on_epoch is not None:
            self.on_epoch(row)
        return scores

    def _diverged(self, what: str) -> UserError:
        return UserError(
            f"The training diverged: the {what} is no finite number any more at step {self.state.global_step + 1}",
            where=f"--learning-rate {self.args.learning_rate:g}",
            fix="Train with a lower learning rate (of the adapter or of the head) or a longer warm-up",
        )

    def _rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def finish(self) -> TrainingOutcome:
        self._read_losses(everything=True)
        if self.best_weights is not None:
            load_trainable_state(self.model, self.best_weights)
        status: Status = "time limit" if self.stopped else "finished"
        if not self.history:  # stopped before the first row
            epoch = self.state.global_step / len(self.sampler)
            row = {"step": self.state.global_step, "epoch": epoch, "train_loss": self.step_loss}
            self.history.append({**row, "learning_rate": self._rate()})
        return TrainingOutcome(
            status, self.history, self.best, self.best_epoch, self.epochs_done, self.state.global_step
        )

    # --------------------------------------------------------------------------------------------------- checkpoints

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self._save(training_state.random_state())

    def _save(self, random: training_state.RandomState) -> None:
        self._read_losses(everything=True)
        folder = self.folder / "state"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.state.save_to_json(str(folder / STATE_FILE))
        training_state.save_tensors(trainable_state(self.model), folder / "weights.safetensors")
        if self.best_weights is not None:
            training_state.save_tensors(self.best_weights, folder / "best.safetensors")
        training_state.save_optimizer(self.optimizer, self.lr_scheduler, folder)
        training_state.save_random_state(folder, random)
        own = {name: getattr(self, name) for name in _OWN_STATE}
        (folder / "progress.json").write_text(json.dumps(own))
        self.interruption.saved = time.monotonic()
        if self.on_checkpoint is not None:
            self.on_checkpoint(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder = Path(resume_from_checkpoint)
        load_trainable_state(self.model, training_state.load_tensors(folder / "weights.safetensors"))
        if (folder / "best.safetensors").is_file():
            self.best_weights = training_state.load_tensors(folder / "best.safetensors")
        for name, value in _progress(folder / "progress.json").items():
            setattr(self, name, value)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            training_state.load_optimizer(self.optimizer, self.lr_scheduler, Path(checkpoint))

    def _load_scaler(self, checkpoint: str | None) -> None:
        """Nothing: bfloat16 needs no loss scaling."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            training_state.load_random_state(Path(checkpoint))


_OWN_STATE = ("history", "best", "best_epoch", "epochs_done", "stale", "epoch_loss")


def _progress(file: Path) -> dict[str, Any]:
    """What :meth:`_PackedTrainer._save_checkpoint` noted: these fields by type, and no other."""
    fields = Fields(read_object(file, fix=training_state.AGAIN), file.name, file.name, training_state.AGAIN)
    best = fields.content.get("best")
    return {
        "history": training_state.history_of(fields.content.get("history"), file.name),
        "best": None if best is None else training_state.history_of([best], file.name)[0],
        **{name: fields.whole(name, 0, 2**53) for name in ("best_epoch", "epochs_done", "stale")},
        "epoch_loss": fields.number("epoch_loss", -1e300, 1e300),
    }


def clean_state(folder: Path) -> None:
    """Keeps of the Trainer's own state file what it needs to go on; the Trainer would act on anything that it holds.

    Raises:
        UserError: It is missing or damaged.
    """
    file, again = folder / STATE_FILE, training_state.AGAIN
    fields = Fields(read_object(file, fix=again), file.name, file.name, again)
    kept: dict[str, Any] = {name: fields.whole(name, 0, 2**53) for name in ("global_step", "max_steps")}
    kept |= {name: fields.whole(name, 0, 2**53, default=0) for name in ("num_train_epochs",)}
    if "train_batch_size" in fields:
        kept["train_batch_size"] = fields.whole("train_batch_size", 1, 2**31)
    kept |= {"epoch": fields.number("epoch", 0, 1e12), "total_flos": fields.number("total_flos", 0, 1e300, default=0.0)}
    file.write_text(json.dumps(kept | {"log_history": []}))


class _Flow(TrainerCallback):
    """When to validate, log, save and stop."""

    def __init__(self, trainer: _PackedTrainer) -> None:
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.sampler.epoch = state.global_step // len(self.trainer.sampler)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        if trainer.on_step is not None:
            trainer.on_step(state.global_step, trainer.total_steps, trainer.step_loss, trainer._rate())
        last = state.global_step % len(trainer.sampler) == 0
        if not last and state.global_step % trainer.log_every == 0:
            trainer._read_losses(everything=True)
            trainer.history.append(
                {
                    "step": state.global_step,
                    "epoch": state.global_step / len(trainer.sampler),
                    "train_loss": trainer.step_loss,
                    "learning_rate": trainer._rate(),
                }
            )
        # The last step of an epoch is saved after the epoch's validation, so that going on never skips it.
        if not last:
            self._interrupt(control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Stopped within an epoch, there is nothing to validate yet.
        if state.global_step % len(self.trainer.sampler) == 0:
            control.should_evaluate = True
            if state.global_step < self.trainer.total_steps:
                self._interrupt(control)

    def _interrupt(self, control: Any) -> None:
        waiting = self.trainer.interruption
        if waiting.time_is_up():
            control.should_save = control.should_training_stop = True
            self.trainer.stopped = True
        elif waiting.save_due():
            control.should_save = True


def steps_in_epoch(examples: TrainingExamples, settings: TrainingSettings) -> int:
    """Optimiser steps in an epoch."""
    return -(-len(examples.units) // settings.batch_sequences)


def validate(
    network: Network, task: Task, examples: TrainingExamples, budget: int, class_weights: torch.Tensor | None = None
) -> dict[str, float]:
    """Loss and metrics of a network on labelled examples; a loss of NaN alone where an output is not finite."""
    outputs, _ = answers(network, examples.units, budget)
    if not all(np.isfinite(part).all() for part in outputs):
        return {"loss": math.nan}
    weights = None if class_weights is None else class_weights.numpy()
    return objectives.validation_scores(np.concatenate(outputs), np.concatenate(examples.targets), task, weights)
