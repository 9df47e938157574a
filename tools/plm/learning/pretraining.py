"""Masked language modelling on packed rows: from scratch or continued, judged on families that training never saw."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from plm import stage
from plm.errors import UserError
from plm.learning import checkpointing
from plm.learning.corpus import IGNORED, Corpus, MaskedRows
from plm.model import encoder
from plm.model.batching import Batch, Layout, plan_batches
from plm.model.checkpoint import ModelFiles, resolve_model
from plm.model.presets import PRESETS, esm2_config, write_esm2_tokenizer


@dataclass(frozen=True)
class Score:
    """How well masked residues are predicted; sums over ``residues`` masked residues.

    Attributes:
        loss: Sum of the negative log likelihoods in nats.
        correct: Residues whose most probable letter is the true one.
        residues: Masked residues.
        unigram_loss: Sum for a model that knows the training frequencies of the letters only.
        unigram_correct: Residues that equal the most frequent letter.
    """

    loss: float
    correct: int
    residues: int
    unigram_loss: float
    unigram_correct: int

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss / self.residues)

    @property
    def accuracy(self) -> float:
        return self.correct / self.residues

    @property
    def unigram_perplexity(self) -> float:
        return math.exp(self.unigram_loss / self.residues)

    @property
    def unigram_accuracy(self) -> float:
        return self.unigram_correct / self.residues

    @property
    def below_unigram(self) -> float:
        """Share by which the perplexity lies below the unigram perplexity, 0-1."""
        return 1 - self.perplexity / self.unigram_perplexity

    @property
    def beside_unigram(self) -> str:
        """The same in words: ``12.3 % below``, or ``4.0 % above`` for a model that is worse than the frequencies."""
        return f"{100 * abs(self.below_unigram):.1f} % {'below' if self.below_unigram >= 0 else 'above'}"


class MaskedRowModel(nn.Module):
    """ESM with its language-model head over a packed row; the head runs on masked residues only."""

    def __init__(self, language_model: nn.Module) -> None:
        super().__init__()
        self.language_model = language_model

    def forward(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, lengths: torch.Tensor, labels: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Predicts the masked residues of a row.

        Args:
            input_ids: ``(T,)`` token ids.
            position_ids: ``(T,)``.
            lengths: ``(N,)`` tokens of each sequence.
            labels: ``(T,)`` true ids, ``IGNORED`` where nothing is asked.

        Returns:
            ``loss``: mean negative log likelihood; ``logits``: ``(M, V)`` of the M masked residues; ``targets``:
            ``(M,)``.
        """
        layout = Layout(tuple(lengths.tolist()))
        batch = Batch(input_ids, position_ids, layout, tuple(range(len(layout.lengths))))
        model: Any = self.language_model
        hidden = encoder.hidden_states(model.esm, batch)
        asked = labels != IGNORED
        logits = model.lm_head(hidden[asked])
        targets = labels[asked]
        loss = functional.cross_entropy(logits.float(), targets)
        return {"loss": loss, "logits": logits, "targets": targets}


def new_model(preset: str, folder: Path) -> ModelFiles:
    """Writes a randomly initialised ESM-2 checkpoint (torch's current seed) in the shape of a preset.

    Raises:
        UserError: There is no such preset.
    """
    from dataclasses import asdict

    from transformers import EsmForMaskedLM

    if preset not in PRESETS:
        raise UserError(f"There is no preset {preset!r}", where="--preset", fix=f"Choose one of {', '.join(PRESETS)}")
    folder.mkdir(parents=True)
    EsmForMaskedLM(esm2_config(**asdict(PRESETS[preset]))).save_pretrained(folder)
    write_esm2_tokenizer(folder)
    files = resolve_model(str(folder), workdir=folder)
    return ModelFiles(f"preset {preset}", files.directory, files.sha256)


def collate(items: Sequence[tuple[Batch, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The one row of a micro-batch as the keyword arguments of :meth:`MaskedRowModel.forward`."""
    ((batch, labels),) = items
    return {
        "input_ids": batch.input_ids,
        "position_ids": batch.position_ids,
        "lengths": torch.tensor(batch.lengths),
        "labels": labels,
    }


def evaluate(
    model: MaskedRowModel,
    held_out: Corpus,
    frequencies: np.ndarray,
    *,
    device: torch.device,
    precision: str,
    budget: int,
    crop: int,
    rate: float,
    most_residues: int | None = None,
) -> Score:
    """Scores the masked residues of held-out sequences; the masks are always the same.

    Args:
        model: What to judge.
        held_out: Sequences of clusters that training did not see.
        frequencies: ``(20,)`` training frequencies, for the unigram baseline.
        device: Where the model is.
        precision: ``bf16`` or ``fp32``.
        budget: Tokens in a row.
        crop: Longest stretch of a sequence.
        rate: Share of masked residues.
        most_residues: Stop after about so many residues (a quick look during training).
    """
    rows = plan_batches(held_out.lengths(crop).tolist(), budget, seed=0)
    log_frequencies = np.log(frequencies)
    slot = {int(letter): index for index, letter in enumerate(held_out.letters)}
    commonest = int(held_out.letters[int(np.argmax(frequencies))])
    loss = unigram = 0.0
    correct = count = unigram_correct = seen = 0
    training = model.training
    model.eval()
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        for number, row in enumerate(rows):
            generator = np.random.default_rng([977, number])
            item = held_out.masked_row(row, crop=crop, rate=rate, generator=generator)
            found = model(**{key: value.to(device) for key, value in collate([item]).items()})
            targets = found["targets"].cpu()
            loss += float(found["loss"]) * len(targets)
            correct += int((found["logits"].argmax(-1).cpu() == targets).sum())
            count += len(targets)
            unigram -= float(sum(log_frequencies[slot[token]] for token in targets.tolist()))
            unigram_correct += int((targets == commonest).sum())
            seen += item[0].tokens
            if most_residues is not None and seen >= most_residues:
                break
    model.train(training)
    return Score(loss, correct, count, unigram, unigram_correct)


@dataclass(frozen=True)
class PretrainingSettings:
    """How to train.

    Attributes:
        steps: Optimiser steps.
        batch_tokens: Tokens in a packed row.
        accumulate: Rows a step.
        crop: Longest stretch of a sequence in residues.
        mask_rate: Share of residues to predict, 0-1.
        learning_rate: Peak.
        schedule: ``linear``, ``cosine`` or ``constant`` after the warm-up.
        warmup_steps: Steps over which the rate rises from 0.
        weight_decay: AdamW's.
        evaluate_every: Steps between looks at the held-out clusters.
        checkpoint_every: Minutes between checkpoints.
        time_limit: Minutes after which to stop with a checkpoint, or None.
        precision: ``bf16`` or ``fp32``.
        seed: Of weights, rows and masks.
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
    evaluate_every: int = 200
    checkpoint_every: float = 10.0
    time_limit: float | None = None
    precision: str = "fp32"
    seed: int = 42


@dataclass(frozen=True)
class Done:
    """How far a training run is. Rows and masks follow from seed and step, so no generator states are needed.

    Attributes:
        step: Optimiser steps.
        tokens: Tokens seen.
        history: Records so far, as in :class:`Outcome`.
    """

    step: int
    tokens: int
    history: list[dict[str, float]]


@dataclass(frozen=True)
class Outcome:
    """What a training run did.

    Attributes:
        history: One record a look at the held-out clusters: step, epoch, train_loss, valid_loss, perplexity, ...
        steps: Optimiser steps done, all runs together.
        tokens: Tokens seen, all runs together.
        seconds: Training time of this run.
        finished: False if the time limit came first.
    """

    history: list[dict[str, float]]
    steps: int
    tokens: int
    seconds: float
    finished: bool


def train(
    model: MaskedRowModel,
    corpus: Corpus,
    settings: PretrainingSettings,
    *,
    device: torch.device,
    judge: Callable[[], Score],
    report: Callable[[int, dict[str, float]], None],
    save: Callable[[Callable[[Path], None], Done], None],
    stopping: Callable[[], bool],
    resume: tuple[Path, Done] | None = None,
) -> Outcome:
    """Trains in place with the transformers Trainer.

    Args:
        model: On any device; the Trainer moves it.
        corpus: Training sequences.
        settings: How.
        device: Where to run.
        judge: Gives the score on the held-out clusters.
        report: Called after every step with the step's number and what is known (train_loss, ...).
        save: Called every ``checkpoint_every`` minutes and when the time limit comes, with a function that writes
            the state
            into a folder, and how far training is.
        stopping: Asked after every step: has the job been told to end? It then saves and exits.
        resume: Folder of a written state and how far it was, or None.

    Returns:
        The outcome; the model holds the last weights.
    """
    import tempfile

    from transformers import Trainer, TrainerCallback, TrainingArguments

    rows = MaskedRows(
        corpus,
        settings.steps * settings.accumulate,
        budget=settings.batch_tokens,
        crop=settings.crop,
        rate=settings.mask_rate,
        seed=settings.seed,
    )
    started = time.monotonic()
    before = resume[1] if resume else Done(0, 0, [])
    history = list(before.history)
    counted = {"tokens": before.tokens, "loss": 0.0, "rows": 0, "finished": True}
    first = before.step

    def write(folder: Path) -> None:
        checkpointing.save_tensors(dict(model.named_parameters()), folder / "model.safetensors")
        checkpointing.save_optimizer(trainer.optimizer, trainer.lr_scheduler, folder)

    class RowTrainer(Trainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler[int]:
            return _From(first * settings.accumulate, len(rows))

        def compute_loss(self, model: nn.Module, inputs: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> Any:
            found = model(**inputs)
            counted["tokens"] += int(inputs["input_ids"].shape[0])
            counted["loss"] += float(found["loss"].detach())
            counted["rows"] += 1
            return (found["loss"], found) if kwargs.get("return_outputs") else found["loss"]

    class Watch(TrainerCallback):
        saved = time.monotonic()

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            state.global_step = first
            if resume is not None:  # only now do both exist; the Trainer's own files are pickled and never used
                checkpointing.load_optimizer(trainer.optimizer, trainer.lr_scheduler, resume[0])

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            step = state.global_step
            last = step >= settings.steps
            mean = counted["loss"] / max(counted["rows"], 1)
            known = {"train_loss": mean, "tokens": counted["tokens"]}
            now = time.monotonic()
            limit = settings.time_limit is not None and now - started >= 60 * settings.time_limit
            if step % settings.evaluate_every == 0 or last or limit:
                score = judge()
                epoch, place = rows.epoch_of(step * settings.accumulate - 1)
                known |= {
                    "step": step,
                    "epoch": round(epoch + (place + 1) / max(1, len(rows._rows_of(epoch))), 4),
                    "valid_loss": score.loss / score.residues,
                    "masked_perplexity": score.perplexity,
                    "masked_accuracy": score.accuracy,
                    "learning_rate": trainer.lr_scheduler.get_last_lr()[0],
                }
                history.append(known)
                counted["loss"], counted["rows"] = 0.0, 0
            report(step, known)
            if limit and not last:
                counted["finished"] = False
                control.should_training_stop = True
            told = stopping()
            if (limit and not last) or told or now - self.saved >= 60 * settings.checkpoint_every:
                self.saved = now
                save(write, Done(step, int(counted["tokens"]), history))
            if told:
                sys.exit(stage.EXIT_TERMINATED)

    with tempfile.TemporaryDirectory(prefix="trainer_") as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            max_steps=settings.steps,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=settings.accumulate,
            learning_rate=settings.learning_rate,
            lr_scheduler_type={"constant": "constant_with_warmup"}.get(settings.schedule, settings.schedule),
            warmup_steps=settings.warmup_steps,
            weight_decay=settings.weight_decay,
            adam_beta2=0.98,
            max_grad_norm=1.0,
            bf16=settings.precision == "bf16",
            use_cpu=device.type == "cpu",
            seed=settings.seed,
            save_strategy="no",
            eval_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_num_workers=0,
            optim="adamw_torch_fused",
        )
        arguments._n_gpu = min(1, arguments.n_gpu)  # several GPUs are used through torchrun, never by DataParallel
        trainer = RowTrainer(
            model=model, args=arguments, train_dataset=rows, data_collator=collate, callbacks=[Watch()]
        )
        from transformers import PrinterCallback

        trainer.remove_callback(PrinterCallback)
        if resume is not None:
            stored = checkpointing.load_tensors(resume[0] / "model.safetensors")
            with torch.no_grad():
                for name, value in model.named_parameters():
                    value.copy_(stored[name])
        trainer.train()
    steps = int(trainer.state.global_step)
    return Outcome(history, steps, int(counted["tokens"]), time.monotonic() - started, bool(counted["finished"]))


class _From(torch.utils.data.Sampler[int]):
    """Row numbers in order, from where a resumed run goes on."""

    def __init__(self, first: int, end: int) -> None:
        self._first, self._end = first, end

    def __iter__(self) -> Any:
        return iter(range(self._first, self._end))

    def __len__(self) -> int:
        return self._end - self._first
