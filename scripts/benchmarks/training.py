"""Ways to train, each in a process of its own that tells its speed, its memory and its losses.

Ours goes through the code of ``plm_finetune`` and ``plm_pretrain``; the others are what one writes with transformers
and PEFT. All start from the same weights, adapters and head and see the same sequences.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from plm.jobs.finetune import objectives, training
from plm.jobs.finetune.batches import StepSampler, TrainingExamples
from plm.jobs.finetune.job import FineTuningJob, FineTuningSettings
from plm.jobs.finetune.labelled_rows import LabelledRows, read_rows
from plm.masked_lm import training as pretraining
from plm.masked_lm.corpus import IGNORED, Corpus, MaskedRows
from plm.model.adapters import AdapterSettings, add_adapters
from plm.model.batching import Batch
from plm.model.checkpoint import load_model, read_config, read_vocabulary, resolve_model
from plm.model.encoder_inputs import Unit, pack_units
from plm.model.families import find_family
from plm.model.heads import build_head
from plm.model.heads.head import HeadConfig, Where
from plm.model.loaded import LoadedModel
from plm.training.folds import TrainingPart
from plm.training.row_training import RowSettings, Steering
from torch import nn

from benchmarks import proteins
from benchmarks.shapes import SHAPES, checkpoint, find

WINDOW = 33
CROP, MASK_RATE = 512, 0.15
"""Longest protein, as in the starter model's training and in the usual notebooks; share of residues to predict."""

LEARNING_RATE = 5e-4


@dataclass(frozen=True)
class Work:
    """One measurement.

    Attributes:
        shape: Name of a shape, or the folder of an ESM-2 with real weights.
        task: ``proteins`` (a label each), ``windows`` (a label for the residue in the middle) or ``pretrain``.
        way: One of :data:`WAYS`.
        steps: Optimiser steps.
        batch: Sequences in a step.
        work: Where checkpoints are kept.
        fasta: Proteome to take proteins from; empty for random sequences.
        threads: Processor threads.
        dropout: As the suite's defaults have it; off to compare losses.
    """

    shape: str
    task: str
    way: str
    steps: int
    batch: int
    work: str
    fasta: str = ""
    threads: int = 2
    dropout: bool = True


@dataclass(frozen=True)
class Measured:
    """What a process found.

    Attributes:
        tokens: Trained on, padding not counted.
        seconds: From the first step's forward pass to the last step's end.
        processor_seconds: Processor time of all threads meanwhile; steadier than ``seconds`` on a busy machine.
        extra_mib: Peak resident memory above that of the loaded model with its adapters.
        losses: Of each step.
    """

    tokens: int
    seconds: float
    processor_seconds: float
    extra_mib: float
    losses: list[float] = field(default_factory=list)


WAYS = {
    "naive": "PEFT, padded, fp32, batches as they come",
    "bucketed": "PEFT, batches of like length, bf16 autocast",
    "packed": "this suite, packed, bf16",
    "packed-checkpointed": "this suite, packed, bf16, gradient checkpointing",
    "packed-fp32": "this suite, packed, fp32",
}
PRETRAINING_WAYS = {
    "naive": "padded, fp32, batches as they come",
    "packed": "this suite, packed, bf16",
    "packed-fp32": "this suite, packed, fp32",
}


def run(given: Work) -> Measured:
    """Trains for the steps of ``given``."""
    torch.set_num_threads(given.threads)
    if given.task == "pretrain":
        return _pretrain_ours(given) if given.way.startswith("packed") else _pretrain_naive(given)
    return _finetune_ours(given) if given.way.startswith("packed") else _finetune_plain(given)


# ---------------------------------------------------------------------------------------------------------- measurement


class Meter:
    """Takes the time between the first step's forward pass and the last step's end, and the memory."""

    def __init__(self) -> None:
        self.started = self.ended = self.processor_started = self.processor_ended = 0.0
        self.base = self.peak = 0.0
        self.losses: list[float] = []

    def start(self, *args: Any) -> None:
        if not self.started:
            self.base = _resident("VmRSS")
            # Writing 5 resets the peak (proc(5)), so that loading does not count.
            Path("/proc/self/clear_refs").write_text("5")
            self.started, self.processor_started = time.perf_counter(), time.process_time()

    def step(self, loss: float) -> None:
        self.ended, self.processor_ended = time.perf_counter(), time.process_time()
        self.losses.append(loss)
        self.peak = _resident("VmHWM")

    def measured(self, tokens: int) -> Measured:
        processor = self.processor_ended - self.processor_started
        return Measured(tokens, self.ended - self.started, processor, self.peak - self.base, self.losses)


def _resident(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1024
    raise OSError(f"no {name} in /proc/self/status")


# ---------------------------------------------------------------------------------------------------------- fine-tuning


def _rows(given: Work) -> tuple[LabelledRows, TrainingPart]:
    """A dataset with random labels, read as ``plm_finetune`` reads it; two of its rows only validate."""
    import pandas as pd

    count = given.steps * given.batch
    sequences = proteins.sample("windows", count * WINDOW) if given.task == "windows" else _proteins(given)
    shorter = [sequence[:WINDOW] for sequence in sequences[:2]]
    table = {
        "id": [f"protein{number}" for number in range(count + 2)], "sequence": sequences + shorter,
        "label": [str(number % 2) for number in range(count + 2)],
    }
    if given.task == "windows":
        table["position"] = [str(WINDOW // 2 + 1)] * (count + 2)
    rows = read_rows(pd.DataFrame(table, dtype=str), level="site" if given.task == "windows" else "sequence")
    return rows, TrainingPart(None, list(range(count)), [count, count + 1], [])


def _checkpoint(given: Work) -> Path:
    return checkpoint(find(given.shape) or SHAPES[given.shape], Path(given.work))


def _proteins(given: Work) -> list[str]:
    """As many as the steps need."""
    return proteins.evenly(given.steps * given.batch, CROP, Path(given.fasta) if given.fasta else None)


def _settings(given: Work) -> FineTuningSettings:
    return FineTuningSettings(
        adapter=AdapterSettings(dropout=0.05 if given.dropout else 0.0),
        training=training.TrainingSettings(
            epochs=1, batch_sequences=given.batch, warmup=0.0, schedule="constant", weight_decay=0.0,
            learning_rate=LEARNING_RATE, head_learning_rate=LEARNING_RATE, metric="loss", patience=0,
            gradient_checkpointing=given.way.endswith("checkpointed"),
        ),
        head={"dropout": 0.1 if given.dropout else 0.0},
        precision="fp32" if given.way.endswith("fp32") else "bf16",
    )


def _finetune_ours(given: Work) -> Measured:
    rows, part = _rows(given)
    files = resolve_model(str(_checkpoint(given)), workdir=Path(given.work))
    settings = _settings(given)
    log = logging.getLogger("bench_train")
    with tempfile.TemporaryDirectory(prefix="bench_") as scratch:
        job = FineTuningJob(
            rows, [part], files, settings, device=torch.device("cpu"), workdir=Path(scratch), data_sha256="", log=log
        )
        loaded, network = job.network(settings.seeds[0])
        limit = settings.training.batch_tokens - loaded.family.specials
        examples = rows.examples(loaded, part.train, limit)
        validation = rows.examples(loaded, part.valid, limit)
        meter = Meter()
        micro = validation.micro_batch([0, 1], loaded.family)
        network(micro.batch, micro.where).sum().backward()  # warm up
        network.zero_grad()
        network.register_forward_pre_hook(meter.start)
        training.train(
            network, rows.task, examples, validation, settings.training, seed=settings.seeds[0], folder=Path(scratch),
            on_step=lambda step, total, loss, rate: meter.step(loss),
        )
    return meter.measured(examples.tokens)


def plain_loaded(folder: Path) -> LoadedModel:
    """The plain transformers class in the record that the suite's adapters and heads are built from."""
    import transformers

    transformers.logging.set_verbosity_error()
    files = resolve_model(str(folder), workdir=folder)
    model = transformers.EsmModel.from_pretrained(folder, dtype=torch.float32, add_pooling_layer=False)
    vocabulary = read_vocabulary(folder)
    return LoadedModel(
        model=model, vocabulary=vocabulary, family=find_family(read_config(folder), vocabulary), files=files,
        hidden_size=model.config.hidden_size, layers=model.config.num_hidden_layers, device=torch.device("cpu"),
        dtype=torch.float32,
    )


def pad(batch: Batch, padding: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A packed row as a padded batch.

    Returns:
        ``(B, L)`` token ids, ``(B, L)`` int64 mask, and for each of the row's tokens its place in ``(B * L,)``.
    """
    longest = batch.layout.longest
    sequence = torch.repeat_interleave(torch.arange(len(batch.lengths)), torch.tensor(batch.lengths))
    place = sequence * longest + batch.position_ids
    tokens = torch.full((len(batch.lengths) * longest,), padding)
    tokens[place] = batch.input_ids
    mask = torch.zeros_like(tokens)
    mask[place] = 1
    shape = (len(batch.lengths), longest)
    return tokens.view(shape), mask.view(shape), place


def _moved(where: Where, place: torch.Tensor) -> Where:
    """What a head reads, in a padded batch instead of a packed row."""
    return Where(
        place[where.residues], where.owner, where.sequences, place[where.sites], place[where.first], place[where.last]
    )


class PaddedNetwork(nn.Module):
    """The suite's adapters and head around the plain transformers class on padded batches."""

    def __init__(
        self, loaded: LoadedModel, settings: FineTuningSettings, rows: LabelledRows, *, autocast: bool
    ) -> None:
        super().__init__()
        torch.manual_seed(settings.seeds[0])
        self.family, self.autocast = loaded.family, autocast
        self.padding = int(loaded.model.config.pad_token_id)
        self.body: Any = add_adapters(loaded, settings.adapter)
        self.head = build_head(
            HeadConfig(rows.task.level, loaded.hidden_size, rows.task.outputs, **dict(settings.head))
        )

    def forward(self, units: Sequence[Unit]) -> torch.Tensor:
        """``(N, K)`` outputs of the units."""
        batch, where = pack_units(units, self.family)
        tokens, mask, place = pad(batch, self.padding)
        context: AbstractContextManager[Any] = torch.autocast("cpu", torch.bfloat16) if self.autocast else nullcontext()
        with context:
            states = self.body(input_ids=tokens, attention_mask=mask).last_hidden_state
        answers: torch.Tensor = self.head(states.flatten(0, 1), _moved(where, place))
        return answers


def _finetune_plain(given: Work) -> Measured:
    rows, part = _rows(given)
    settings = _settings(given)
    loaded = plain_loaded(_checkpoint(given))
    network = PaddedNetwork(loaded, settings, rows, autocast=given.way == "bucketed")
    examples, validation = (rows.examples(loaded, chosen, None) for chosen in (part.train, part.valid))
    network.train()
    meter = Meter()
    network(validation.units).sum().backward()  # warm up
    network.zero_grad()
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0)
    for chosen in _batches(examples, given):
        meter.start()
        outputs = network([examples.units[index] for index in chosen])
        values = torch.from_numpy(np.concatenate([examples.targets[index] for index in chosen]))
        loss = objectives.loss_sum(outputs, values, rows.task, None) / len(values)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, settings.training.max_gradient_norm)
        optimizer.step()
        optimizer.zero_grad()
        meter.step(float(loss.detach()))
    return meter.measured(examples.tokens)


def _batches(examples: TrainingExamples, given: Work) -> Iterator[list[int]]:
    """The suite's own order, or batches of like length in random order."""
    count = len(examples.units)
    if given.way != "bucketed":
        yield from StepSampler(count, given.batch, _settings(given).seeds[0])
        return
    order = sorted(range(count), key=lambda index: examples.units[index].length)
    batches = [order[start : start + given.batch] for start in range(0, count, given.batch)]
    yield from (batches[index] for index in np.random.default_rng(0).permutation(len(batches)))


# ---------------------------------------------------------------------------------------------------------- pretraining


def _corpus(given: Work, loaded: LoadedModel) -> Corpus:
    return Corpus.build(_proteins(given), loaded.family, loaded.vocabulary)


def _pretrain_ours(given: Work) -> Measured:
    files = resolve_model(str(_checkpoint(given)), workdir=Path(given.work))
    loaded = load_model(files, purpose="masked_lm")
    corpus = _corpus(given, loaded)
    model = pretraining.MaskedRowModel(loaded.model)
    settings = RowSettings(
        steps=given.steps, batch_tokens=4096, crop=CROP, mask_rate=MASK_RATE, learning_rate=LEARNING_RATE,
        schedule="constant", warmup_steps=0, evaluate_every=given.steps + 1,
        precision="fp32" if given.way.endswith("fp32") else "bf16",
    )
    rows = MaskedRows(corpus, given.steps, budget=4096, crop=CROP, rate=MASK_RATE, seed=settings.seed)
    tokens = sum(rows[number][0].tokens for number in range(given.steps))
    meter = Meter()
    model.train()
    batch, labels = corpus.masked_row([0], crop=60, rate=MASK_RATE, generator=np.random.default_rng(0))
    model(**pretraining.collate([(batch, labels)]))["loss"].backward()  # warm up
    model.zero_grad()
    model.register_forward_pre_hook(meter.start)
    steering = Steering(
        judge=dict,  # held-out proteins are not what is measured
        report=lambda step, known: meter.step(known["train_loss"]),
        save=lambda write, done: None,
        stopping=lambda: False,
    )
    pretraining.train(model, corpus, settings, steering, device=torch.device("cpu"))
    return meter.measured(tokens)


def padded_loss(model: Any, batch: Batch, labels: torch.Tensor) -> torch.Tensor:
    """Masked language-model loss of ``EsmForMaskedLM`` on a packed row laid out as a padded batch."""
    tokens, mask, place = pad(batch, int(model.config.pad_token_id))
    wanted = torch.full_like(tokens, IGNORED).flatten()
    wanted[place] = labels
    loss: torch.Tensor = model(input_ids=tokens, attention_mask=mask, labels=wanted.view_as(tokens)).loss
    return loss


def _pretrain_naive(given: Work) -> Measured:
    from transformers import EsmForMaskedLM

    folder = _checkpoint(given)
    model: Any = EsmForMaskedLM.from_pretrained(folder, dtype=torch.float32).train()
    vocabulary = read_vocabulary(folder)
    family = find_family(read_config(folder), vocabulary)
    corpus = Corpus.build(_proteins(given), family, vocabulary)
    generator = np.random.default_rng(0)
    meter = Meter()
    padded_loss(model, *corpus.masked_row([0], crop=60, rate=MASK_RATE, generator=generator)).backward()  # warm up
    model.zero_grad()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    order = [int(index) for index in generator.permutation(len(corpus))]
    tokens = 0
    for step in range(given.steps):
        members = order[step * given.batch : (step + 1) * given.batch]
        meter.start()
        batch, labels = corpus.masked_row(members, crop=CROP, rate=MASK_RATE, generator=generator)
        loss = padded_loss(model, batch, labels)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        tokens += batch.tokens
        meter.step(float(loss.detach()))
    return meter.measured(tokens)


def as_json(found: Measured) -> dict[str, Any]:
    """For the process that asked."""
    return asdict(found)
