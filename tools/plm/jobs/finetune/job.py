"""All trainings of a fine-tuning job: each way, fold and seed in turn, interrupted and resumed exactly.

What a training leaves lies in ``runs/<number>/`` of the work folder: ``weights.safetensors`` (the trained parameters
of its best epoch), ``valid.safetensors`` (its raw validation outputs) and ``run.json``. A checkpoint is those of the
finished trainings and the state of the one under way.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from plm import __version__, fingerprints, kept, stage
from plm.errors import UserError
from plm.jobs.finetune import objectives, training
from plm.jobs.finetune.cost import TrainingCost, fitting_budget, measure
from plm.jobs.finetune.labelled_rows import LabelledRows
from plm.jobs.finetune.training import TrainingSettings
from plm.model import quantised_base
from plm.model.adapters import (
    FROZEN,
    AdapterSettings,
    add_adapters,
    add_head_adapters,
    load_trainable_state,
    merge_head_adapters,
    trainable_state,
)
from plm.model.bundles.fine_tuned import write_zip
from plm.model.checkpoint import load_model
from plm.model.heads import build_head
from plm.model.heads.head import HeadConfig
from plm.model.loaded import LoadedModel, ModelFiles
from plm.model.memory import too_small
from plm.model.network import Floats, Network, answers, as_network
from plm.received import tensors
from plm.received.documents import one_line, read_object
from plm.received.fields import Fields
from plm.training import training_state
from plm.training.folds import TrainingPart
from plm.training.kept_state import KeptState

STAGE = "plm_finetune"
PERIOD_MINUTES = 5.0
"""Between checkpoints in the administrator's directory, unless its variable says otherwise."""


@dataclass(frozen=True)
class FineTuningSettings:
    """Everything that decides what is learned; together with data and model it keys the checkpoint.

    Attributes:
        adapter: Method, and which parts of the encoder it trains.
        training: Batches, learning rate, epochs and all else that shapes a training.
        head: Fields of :class:`plm.model.heads.head.HeadConfig` other than its sizes.
        class_weights: ``none`` or ``balanced``.
        seeds: Seeds, one training each.
        precision: ``fp32`` or ``bf16``.
        others: Further ways to be trained beside ``adapter``, of which the validation rows choose one.
        rates: Peak learning rate of methods that take another than ``training`` has.
        base_bits: 16 for a base as it is; 8 or 4 for a frozen base of so many bits in training.
    """

    adapter: AdapterSettings
    training: TrainingSettings
    head: Mapping[str, Any]
    class_weights: objectives.ClassWeights = "none"
    seeds: tuple[int, ...] = (42,)
    precision: str = "fp32"
    others: tuple[AdapterSettings, ...] = ()
    rates: Mapping[str, float] = field(default_factory=dict)
    base_bits: int = 16

    @property
    def ways(self) -> tuple[AdapterSettings, ...]:
        """Every way that is trained, in order."""
        return (self.adapter, *self.others)

    def training_of(self, adapter: AdapterSettings, tokens: int) -> TrainingSettings:
        """How one of the ways is trained, with a token budget that fits the memory."""
        rate = self.rates.get(adapter.method, self.training.learning_rate)
        return replace(self.training, batch_tokens=tokens, learning_rate=rate)

    def to_json(self) -> dict[str, Any]:
        return {
            "adapter": self.adapter.to_json(), "training": asdict(self.training), "head": dict(self.head),
            "class_weights": self.class_weights, "seeds": list(self.seeds), "precision": self.precision,
            "others": [other.to_json() for other in self.others], "rates": dict(self.rates),
            **({"base_bits": self.base_bits} if self.base_bits != 16 else {}),
        }


@dataclass(frozen=True)
class Run:
    """One training that is done, or as far as it got.

    Attributes:
        adapter: Method, and which parts of the encoder it trained.
        part: Rows that it learned from and was judged on.
        seed: Seed of the training.
        folder: Folder of its weights and validation outputs.
        outcome: History, best epoch and scores of the training.
    """

    adapter: AdapterSettings
    part: TrainingPart
    seed: int
    folder: Path
    outcome: training.TrainingOutcome

    def valid_outputs(self) -> Floats:
        """Raw outputs ``(N, K)`` of the validation rows, unlabelled residues included."""
        return training_state.load_tensors(self.folder / "valid.safetensors")["outputs"].numpy()


@dataclass(frozen=True)
class TrainingBudget:
    """How the work is cut to fit the memory.

    Attributes:
        tokens: Tokens in a packed row.
        residues: Longest sequence encoded in one piece.
    """

    tokens: int
    residues: int


_STATE = (
    training.STATE_FILE, "weights.safetensors", "optimizer.safetensors", "optimizer.json", "random.safetensors",
    "random.json", "progress.json",
)
"""Files of the state of a training under way."""


class FineTuningJob:
    """A fine-tuning job.

    Args:
        rows: Rows of the dataset with their targets.
        parts: Rows of each training.
        files: Checkpoint of the base model.
        settings: Method, head, training and seeds.
        device: Device on which the networks are trained.
        workdir: Folder for states and outputs on the way.
        data_sha256: Digest of the dataset, for the checkpoint's key.
        log: Logger told of progress.
    """

    def __init__(
        self, rows: LabelledRows, parts: list[TrainingPart], files: ModelFiles, settings: FineTuningSettings, *,
        device: torch.device, workdir: Path, data_sha256: str, log: logging.Logger,
    ) -> None:
        self.rows, self.files, self.settings = rows, files, settings
        self.device, self.workdir, self.log = device, workdir, log
        self.data_sha256 = data_sha256
        self.runs = [(way, part, seed) for way in settings.ways for part in parts for seed in settings.seeds]
        self.chosen = settings.adapter
        self.done: list[Run] = []
        self.unfinished: Run | None = None
        self.state: Path | None = None
        self.kept_state: KeptState | None = None
        self.budget: TrainingBudget | None = None
        self.resumed = False
        self.cost: TrainingCost | None = None
        # Standardisation and the check for one class only come before any training.
        self.prepared = {part.fold: rows.for_part(part) for part in parts}

    # ------------------------------------------------------------------------------------------------------ networks

    def network(self, seed: int, adapter: AdapterSettings | None = None) -> tuple[LoadedModel, Network]:
        """A fresh network, as a seed makes it, to be trained in the chosen way or another."""
        adapter = adapter or self.chosen
        method = adapter.method
        reduced = self.settings.precision == "bf16"
        # Full fine-tuning keeps float32 weights: bfloat16 would swallow small updates.
        dtype = "bfloat16" if reduced and method != "full" else "float32"
        bits = self.settings.base_bits
        loaded = load_model(self.files, dtype=dtype, device=self.device if bits == 16 else "cpu")
        if bits != 16:
            loaded = quantised_base.reduced(loaded, bits, self.device)
        torch.manual_seed(seed)
        body = add_adapters(loaded, adapter)
        task = self.rows.task
        head = build_head(HeadConfig(task.level, loaded.hidden_size, task.outputs, **self.settings.head))
        if method == "head_lora":
            add_head_adapters(head, adapter)
        return loaded, as_network(loaded, body, head, frozen=method in FROZEN, autocast=reduced and method == "full")

    def trained_network(self, run: Run) -> tuple[LoadedModel, Network]:
        """The network that a training left."""
        loaded, network = self.network(run.seed, run.adapter)
        load_trainable_state(network, training_state.load_tensors(run.folder / "weights.safetensors"))
        if run.adapter.method == "head_lora":
            merge_head_adapters(network.head)
        return loaded, network.eval()

    # ---------------------------------------------------------------------------------------------------------- plan

    def plan(self) -> None:
        """Finds a token budget that fits every way, measures a step of each and writes the plan to the log."""
        wanted = self.settings.training
        longest = max(map(len, self.rows.sequences)) if not self.rows.window else self.rows.window
        for adapter in self.settings.ways:
            self._plan_one(adapter, longest)
        assert self.budget is not None
        if self.budget.tokens < wanted.batch_tokens:
            self.log.info("The memory holds %d tokens at once, not %d", self.budget.tokens, wanted.batch_tokens)
        if longest > self.budget.residues:
            self.log.info(
                "Sequences of more than %d residues are encoded in overlapping segments of that length",
                self.budget.residues,
            )

    def _plan_one(self, adapter: AdapterSettings, longest: int) -> None:
        loaded, network = self.network(self.settings.seeds[0], adapter)
        every, trainable = network.parameter_counts()
        wanted = self.settings.training
        part = self.runs[0][1]
        checkpointing_on, size = wanted.gradient_checkpointing, 2 if self.settings.precision == "bf16" else 4
        if not self.resumed:
            tokens = fitting_budget(
                loaded, wanted.batch_tokens, longest + loaded.family.specials, trainable,
                checkpointing=checkpointing_on, bytes_per_value=size,
            )
            tokens = tokens if self.budget is None else min(tokens, self.budget.tokens)
            self.budget = TrainingBudget(tokens, tokens - loaded.family.specials)
        assert self.budget is not None
        if checkpointing_on:
            network.body.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        while True:
            examples = self.prepared[part.fold].examples(loaded, part.train, self.budget.residues)
            try:
                self.cost = measure(
                    network, self.prepared[part.fold].task, examples, self.budget.tokens, wanted.batch_sequences
                )
                break
            except torch.cuda.OutOfMemoryError:
                torch.cuda.empty_cache()
                tokens = self.budget.tokens // 2
                if tokens < 64:
                    raise too_small("64 tokens of a training", loaded.device) from None
                self.budget = TrainingBudget(tokens, tokens - loaded.family.specials)
        trainings = len(self.runs) // len(self.settings.ways)
        # Validation and the closing predictions are forward passes: a third of a training pass.
        passes = wanted.epochs * trainings * (1 + len(part.valid) / (3 * len(part.train)))
        self.log.info(
            "Plan%s: %d parameters, %d trained (%.2f %%); %s on %s; %d training sequences, %d tokens an epoch;"
            " %d training%s of at most %d epochs; about %d MiB and %s at most",
            f" ({adapter.method})" if self.settings.others else "",
            every, trainable, 100 * trainable / every, self.settings.precision, self.device.type,
            len(examples.units), examples.tokens, trainings, "" if trainings == 1 else "s", wanted.epochs,
            self.cost.memory_mib, stage.duration(self.cost.seconds_per_token * examples.tokens * passes),
        )

    # -------------------------------------------------------------------------------------------------- interruption

    @property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint must share with a job to continue it."""
        trainings = [[part.fold, seed] for _, part, seed in self.runs]
        task = self.rows.task.to_json()
        return {
            "suite": __version__, "data": self.data_sha256, "model": self.files.sha256, "task": task,
            "window": self.rows.window, "trainings": trainings, **self.settings.to_json(),
        }

    def checkpoint_files(self) -> dict[str, Path]:
        """The members of a checkpoint of the job as it stands."""
        members: dict[str, Path] = {}
        for number, run in enumerate(self.done):
            members.update({f"runs/{number}/{file.name}": file for file in run.folder.iterdir()})
        if self.state is not None:
            members.update({f"state/{file.name}": file for file in self.state.iterdir()})
        content = {
            "schema_version": training_state.SCHEMA_VERSION, "stage": STAGE, "identity": self.identity,
            "done": len(self.done), "under_way": self.state is not None,
            "budget": None if self.budget is None else asdict(self.budget),
        }
        index = self.workdir / "checkpoint.json"
        index.write_text(json.dumps(content, indent=1))
        return {**members, "checkpoint.json": index}

    def resume(self, path: Path) -> None:
        """Takes back a checkpoint.

        Raises:
            UserError: Not a checkpoint, or of other data, another model or other settings.
        """
        folder = self.workdir / "resumed"
        content = training_state.unpack(path, folder, STAGE)
        fields = Fields(content, "checkpoint.json", path.name, training_state.AGAIN)
        _same(fields.inside("identity").content, json.loads(json.dumps(self.identity)), path.name)
        done, under_way = fields.whole("done", 0, len(self.runs)), fields.flag("under_way")
        budget = None
        if "budget" in fields:
            held = fields.inside("budget")
            budget = TrainingBudget(held.whole("tokens", 1, 2**31), held.whole("residues", 1, 2**31))
        finished = [self._read_run(number, folder / "runs" / str(number)) for number in range(done)]
        missing = [name for name in _STATE if under_way and not (folder / "state" / name).is_file()]
        if missing:
            raise UserError(f"The checkpoint lacks {missing[0]}", where=path.name, fix=training_state.AGAIN)
        # Only now, so that a damaged one leaves the job as it was.
        if budget is not None:
            self.budget, self.resumed = budget, True
        self.done, self.state = finished, folder / "state" if under_way else None
        self.log.info(
            "Going on from the checkpoint %s: %d of %d trainings done%s",
            path.name, len(self.done), len(self.runs), ", one under way" if self.state else "",
        )

    # ------------------------------------------------------------------------------------------------------ training

    def train(
        self, deadline: float | None = None, *, on_step: StepReport | None = None, checkpoint: Path | None = None
    ) -> bool:
        """Runs the trainings that are left.

        Args:
            deadline: ``time.monotonic()`` at which to stop with a checkpoint.
            on_step: Called with the number of the training, step, loss and learning rate.
            checkpoint: Where one is wanted; written if the job is told to end.

        Returns:
            True if all are finished, False if the time was up; :meth:`checkpoint_files` then holds where it stopped.
        """
        held = self.kept_state = KeptState(f"{STAGE}-{training_state.key(self.identity)[:32]}.zip", self.log)
        if not self.done and self.state is None:
            held.take_up(self.resume)
        outlives = held.path is not None
        interruption = training.Interruption(
            deadline, kept.seconds_between(PERIOD_MINUTES) if outlives else None
        )

        def keep(state: Path | None) -> None:
            self.state = state
            if held.put(lambda beside: write_zip(beside, self.checkpoint_files())):
                self.log.info("Checkpoint kept in %s", kept.folder())
            if interruption.end.told:
                self._leave(checkpoint)

        with interruption.end if outlives or checkpoint is not None else nullcontext():
            while len(self.done) < len(self.runs):
                number = len(self.done)
                if number and interruption.time_is_up():
                    return False
                run = self._train_one(number, interruption, keep, on_step)
                if run.outcome.status == "time limit":
                    self.unfinished = run
                    return False
                self.done.append(run)
                keep(None)
        if checkpoint is not None:  # what follows takes a while; the process ends with it
            signal.signal(signal.SIGTERM, lambda signum, frame: self._leave(checkpoint))
        return True

    def _leave(self, checkpoint: Path | None) -> NoReturn:
        """Ends the job as it was told to, with a checkpoint where one is wanted."""
        if checkpoint is not None:
            with stage.Outputs() as outputs:
                write_zip(outputs.path(checkpoint), self.checkpoint_files())
            self.log.info("Checkpoint written to %s", checkpoint)
        self.log.info("Terminated")
        sys.exit(stage.EXIT_TERMINATED)

    @property
    def trained(self) -> list[Run]:
        """Finished trainings of all ways, and the one that a time limit stopped."""
        return [*self.done, *([] if self.unfinished is None else [self.unfinished])]

    def runs_of(self, adapter: AdapterSettings) -> list[Run]:
        """The trainings of one way."""
        return [run for run in self.trained if run.adapter == adapter]

    @property
    def usable(self) -> list[Run]:
        """The trainings of the chosen way."""
        return self.runs_of(self.chosen)

    def _train_one(
        self, number: int, interruption: training.Interruption, keep: Callable[[Path], None],
        on_step: StepReport | None,
    ) -> Run:
        assert self.budget is not None, "plan() comes first"
        adapter, part, seed = self.runs[number]
        rows = self.prepared[part.fold]
        name = f"seed {seed}" + ("" if part.fold is None else f", fold {part.fold}")
        if self.settings.others:
            name = f"{adapter.method}, {name}"
        self.log.info(
            "Training %d of %d (%s): %d training, %d validation and %d test rows",
            number + 1, len(self.runs), name, len(part.train), len(part.valid), len(part.test),
        )
        loaded, network = self.network(seed, adapter)
        examples = rows.examples(loaded, part.train, self.budget.residues)
        validation = rows.examples(loaded, part.valid, self.budget.residues)
        weights = objectives.class_weights(rows.values(part.train), rows.task, self.settings.class_weights)
        settings = self.settings.training_of(adapter, self.budget.tokens)
        steps = training.steps_in_epoch(examples, settings) * settings.epochs
        progress: list[stage.Progress] = []

        def step(at: int, total: int, loss: float, rate: float) -> None:
            if not progress:
                progress.append(stage.Progress(self.log, total - at + 1, "steps"))
            progress[0].advance(1, f"training {number + 1} of {len(self.runs)}, loss {loss:.3g}")
            if on_step is not None:
                on_step(number, at, loss, rate)

        def epoch(row: Mapping[str, float]) -> None:
            metric = settings.metric
            score = "" if metric == "loss" else f", validation {metric} {row[f'valid_{metric}']:.3f}"
            self.log.info(
                "%s, epoch %d of %d: training loss %.4f, validation loss %.4f%s",
                name, int(row["epoch"]), settings.epochs, row["train_loss"], row["valid_loss"], score,
            )

        outcome = training.train(
            network, rows.task, examples, validation, settings,
            seed=seed, folder=self.workdir / "training", class_weights=weights, interruption=interruption,
            resume=self.state, on_checkpoint=keep, on_step=step, on_epoch=epoch,
        )
        self.log.info(
            "%s: %s after %d of %d steps; the best epoch is %d", name, outcome.status, outcome.steps, steps,
            outcome.best_epoch,
        )
        return self._write_run(number, network, validation, outcome)

    def _write_run(self, number: int, network: Network, validation: Any, outcome: training.TrainingOutcome) -> Run:
        assert self.budget is not None
        folder = self.workdir / "runs" / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        training_state.save_tensors(trainable_state(network), folder / "weights.safetensors")
        outputs, _ = answers(network, validation.units, self.budget.tokens)
        # In the order of rows, whatever the order in which they were encoded.
        ordered = in_row_order(outputs, [unit.rows for unit in validation.units], self.rows.task.level)
        training_state.save_tensors({"outputs": torch.from_numpy(ordered)}, folder / "valid.safetensors")
        (folder / "run.json").write_text(json.dumps(asdict(outcome)))
        return Run(*self.runs[number], folder, outcome)

    def _read_run(self, number: int, folder: Path) -> Run:
        again = training_state.AGAIN
        fields = Fields(read_object(folder / "run.json", fix=again), "run.json", f"runs/{number}", again)
        best = fields.content.get("best")
        outcome = training.TrainingOutcome(
            fields.text("status", choices=("finished", "time limit")),  # type: ignore[arg-type]
            training_state.history_of(fields.content.get("history"), "run.json"),
            None if best is None else training_state.history_of([best], "run.json")[0],
            *(fields.whole(name, 0, 2**53) for name in ("best_epoch", "epochs", "steps")),
        )
        for name in ("weights.safetensors", "valid.safetensors"):
            tensors.shapes(folder / name, where=f"runs/{number}", fix=again)
        return Run(*self.runs[number], folder, outcome)

    def history(self) -> list[dict[str, Any]]:
        """The history of all trainings, with ``seed``, ``fold`` and, of several ways, ``method``."""
        return [
            {**row, "seed": run.seed, "fold": "" if run.part.fold is None else run.part.fold}
            | ({"method": run.adapter.method} if self.settings.others else {})
            for run in self.trained
            for row in run.outcome.history
        ]



StepReport = Callable[[int, int, float, float], None]


def in_row_order(outputs: list[Floats], rows: list[tuple[int, ...]], level: str) -> Floats:
    """Outputs of units as one array in the order of the rows that they answer."""
    if level == "site":
        order = np.argsort([row for unit in rows for row in unit], kind="stable")
        return np.concatenate(outputs)[order]
    return np.concatenate(outputs)


def _same(stored: Mapping[str, Any], asked: Mapping[str, Any], where: str) -> None:
    names = {
        "suite": "version of the suite", "data": "dataset", "model": "model", "trainings": "seeds or folds",
        "adapter": "method or its settings", "training": "training settings",
    }
    for key, value in asked.items():
        if stored.get(key) == value:
            continue
        if key == "model" and isinstance(stored.get(key), str) and fingerprints.partial(stored[key], value):
            continue  # of an early version, which knew the weights alone
        detail = ""
        if isinstance(value, dict) and isinstance(stored.get(key), dict):
            changed = [
                f"{name} {stored[key].get(name)} -> {value[name]}"
                for name in value
                if stored[key].get(name) != value[name]
            ]
            detail = f" ({one_line(', '.join(changed), 300)})"
        raise UserError(
            f"The checkpoint is of another {names.get(key, key)}{detail}", where=where,
            fix="Go on with the same data, model and settings, or start anew without --resume",
        )


def deadline_after(minutes: float | None, started: float) -> float | None:
    """``time.monotonic()`` at which ``minutes`` from ``started`` are over; None for no limit."""
    return None if minutes is None else max(started + 60 * minutes, time.monotonic())
