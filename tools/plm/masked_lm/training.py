"""Masked language modelling on packed rows: from scratch or continued, judged on families that training never saw."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from plm.errors import UserError
from plm.masked_lm.corpus import IGNORED, SHARES, Corpus, MaskedRows
from plm.masked_lm.presets import MEGATRON_PRESETS, PRESETS, esm2_config, megatron_config, write_megatron_tokenizer
from plm.model import encoder
from plm.model.batching import Batch, RowLayout, plan_batches, sent
from plm.model.checkpoint import resolve_model
from plm.model.families.esm2 import write_esm2_tokenizer
from plm.model.loaded import ModelFiles
from plm.model.ranks import Ranks
from plm.training.row_training import Done, LookCutShort, RowOutcome, RowSettings, Steering, train_rows


@dataclass(frozen=True)
class MaskedScore:
    """How well masked residues are predicted; sums over ``residues`` masked residues.

    Attributes:
        loss: Sum of the negative log likelihoods in nats.
        correct: Residues whose most probable letter is the true one.
        residues: Number of masked residues.
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

    def known(self) -> dict[str, float]:
        """As columns of a history."""
        return {
            "valid_loss": self.loss / self.residues,
            "masked_perplexity": self.perplexity,
            "masked_accuracy": self.accuracy,
        }

    @property
    def beside_unigram(self) -> str:
        """The same in words: ``12.3 % below``, or ``4.0 % above`` for a model that is worse than the frequencies."""
        return f"{100 * abs(self.below_unigram):.1f} % {'below' if self.below_unigram >= 0 else 'above'}"


class MaskedRowModel(nn.Module):
    """An encoder with its language-model head over a packed row; the head runs on masked residues only."""

    def __init__(self, language_model: nn.Module) -> None:
        super().__init__()
        self.language_model = language_model

    def forward(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, lengths: Sequence[int], asked: torch.Tensor,
        targets: torch.Tensor, shares: Mapping[str, float] | None = None,
    ) -> dict[str, torch.Tensor]:
        """Predicts the masked residues of a row.

        Args:
            input_ids: ``(T,)`` token ids.
            position_ids: ``(T,)`` place of each token in its sequence.
            lengths: Tokens of each sequence.
            asked: ``(M,)`` places of the masked residues in the row.
            targets: ``(M,)`` their true ids.
            shares: Factor of the ``loss``.

        Returns:
            ``loss``: mean negative log likelihood; ``logits``: ``(M, V)`` of the M masked residues; ``targets``:
            ``(M,)``.
        """
        layout = RowLayout(tuple(lengths))
        batch = Batch(input_ids, position_ids, layout, tuple(range(len(layout.lengths))))
        model: Any = self.language_model
        hidden = encoder.hidden_states(model, batch)
        logits = encoder.language_head(model)(hidden[asked])
        # A row without a known residue teaches nothing; a mean over nothing would be no number.
        loss = functional.cross_entropy(logits.float(), targets, reduction="sum") / max(1, len(targets))
        return {"loss": loss if shares is None else loss * shares["loss"], "logits": logits, "targets": targets}


def new_model(preset: str, folder: Path) -> ModelFiles:
    """Writes a randomly initialised checkpoint (torch's current seed) in the shape of a preset.

    Raises:
        UserError: There is no such preset.
    """
    if preset not in PRESETS and preset not in MEGATRON_PRESETS:
        raise UserError(
            f"There is no preset {preset!r}", where="--preset",
            fix=f"Choose one of {', '.join([*PRESETS, *MEGATRON_PRESETS])}",
        )
    folder.mkdir(parents=True)
    encoder.register()  # which keeps the library's bars of progress out of what a job says
    if preset in PRESETS:
        from transformers import EsmForMaskedLM

        EsmForMaskedLM(esm2_config(**asdict(PRESETS[preset]))).save_pretrained(folder)
        write_esm2_tokenizer(folder)
    else:
        from transformers import MegatronBertForMaskedLM

        MegatronBertForMaskedLM(megatron_config(MEGATRON_PRESETS[preset])).save_pretrained(folder)
        write_megatron_tokenizer(folder)
    files = resolve_model(str(folder), workdir=folder.parent)
    return ModelFiles(f"preset {preset}", files.directory, files.sha256)


def collate(items: Sequence[tuple[Batch, torch.Tensor]]) -> dict[str, Any]:
    """The one row of a micro-batch as the keyword arguments of :meth:`MaskedRowModel.forward`.

    Lengths stay numbers of the host, and the places that are asked for are found there: a device would have to be
    waited for.
    """
    ((batch, labels),) = items
    asked = torch.nonzero(labels != IGNORED)[:, 0]
    return {
        "input_ids": batch.input_ids,
        "position_ids": batch.position_ids,
        "lengths": batch.lengths,
        "asked": asked,
        "targets": labels[asked],
    }


def counts(inputs: Mapping[str, Any]) -> dict[str, int]:
    """Masked residues of a row, over which its loss is the mean."""
    return {"loss": len(inputs["targets"])}


def evaluate(
    model: MaskedRowModel, held_out: Corpus, frequencies: np.ndarray, *, device: torch.device, precision: str,
    budget: int, crop: int, rate: float, most_residues: int | None = None, stopping: Callable[[], bool] | None = None,
) -> MaskedScore:
    """Scores the masked residues of held-out sequences; the masks are always the same.

    Args:
        model: Masked language model that is judged.
        held_out: Sequences of clusters that training did not see.
        frequencies: ``(20,)`` training frequencies, for the unigram baseline.
        device: Device that holds the model.
        precision: ``bf16`` or ``fp32``.
        budget: Tokens in a packed row.
        crop: Longest stretch of a sequence.
        rate: Share of residues that are masked, 0-1.
        most_residues: Stop after about so many residues (a quick look during training).
        stopping: Asked before each row: has the job been told to end?

    Raises:
        LookCutShort: The job has been told to end.
    """
    rows = plan_batches(held_out.lengths(crop).tolist(), budget, seed=0)
    items = (
        held_out.masked_row(row, crop=crop, rate=rate, generator=np.random.default_rng([977, number]))
        for number, row in enumerate(rows)
    )
    return score_rows(
        model, items, held_out.letters, frequencies, device=device, precision=precision, most_residues=most_residues,
        stopping=stopping,
    )


def score_rows(
    model: MaskedRowModel, items: Iterable[tuple[Batch, torch.Tensor]], letters: np.ndarray, frequencies: np.ndarray, *,
    device: torch.device, precision: str, most_residues: int | None = None, stopping: Callable[[], bool] | None = None,
) -> MaskedScore:
    """Scores the masked residues of rows; see :func:`evaluate`.

    Args:
        model: Masked language model that is judged.
        items: Packed rows with the true residues to predict.
        letters: ``(20,)`` ids of the amino acids, in the order of ``frequencies``.
        frequencies: ``(20,)`` share of each amino acid in the training sequences, 0-1.
        device: Device that holds the model.
        precision: ``bf16`` or ``fp32``.
        most_residues: Stop after about so many residues.
        stopping: Asked before each row: has the job been told to end?

    Raises:
        LookCutShort: The job has been told to end.
    """
    log_frequencies = np.zeros(int(letters.max()) + 1)
    log_frequencies[letters] = np.log(frequencies)
    commonest = int(letters[int(np.argmax(frequencies))])
    loss = unigram = 0.0
    correct = count = unigram_correct = seen = 0
    training = model.training
    model.eval()
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        for item in items:
            if stopping is not None and stopping():
                raise LookCutShort
            inputs = collate([item])
            inputs |= {name: sent(value, device) for name, value in inputs.items() if isinstance(value, torch.Tensor)}
            outputs = model(**inputs)
            targets = outputs["targets"].cpu()
            loss += float(outputs["loss"]) * len(targets)
            correct += int((outputs["logits"].argmax(-1).cpu() == targets).sum())
            count += len(targets)
            unigram -= float(log_frequencies[targets.numpy()].sum())
            unigram_correct += int((targets == commonest).sum())
            seen += item[0].tokens
            if most_residues is not None and seen >= most_residues:
                break
    model.train(training)
    return MaskedScore(loss, correct, count, unigram, unigram_correct)


def train(
    model: MaskedRowModel, corpus: Corpus, settings: RowSettings, steering: Steering, *, device: torch.device,
    resume: tuple[Path, Done] | None = None, ranks: Ranks | None = None, shares: tuple[float, float] = SHARES,
    sharded: bool = False,
) -> RowOutcome:
    """Trains in place; see :func:`plm.training.row_training.train_rows`. One record a look at the held-out clusters.

    Args:
        model: Masked language model that is trained.
        corpus: Sequences to train on.
        settings: Steps, rows, learning rate.
        steering: Judges, reports, saves and stops.
        device: Device that holds the model.
        resume: Written state and how far it was, or None.
        ranks: The processes of the job; alone by default.
        shares: Of the residues to predict, those that are hidden and those that are replaced.
        sharded: Weights, gradients and optimiser are divided among the processes (FSDP2).
    """
    rows = MaskedRows(
        corpus, settings.steps * settings.accumulate * (ranks.world if ranks else 1), budget=settings.batch_tokens,
        crop=settings.crop, rate=settings.mask_rate, seed=settings.seed, shares=shares,
    )
    return train_rows(
        model, rows, settings, steering, collate=collate, device=device, resume=resume, ranks=ranks, sharded=sharded,
        counts=counts,
    )
