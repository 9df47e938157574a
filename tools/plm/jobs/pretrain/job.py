"""One pretraining: the model and the corpus it starts from, training, and the held-out clusters that judge it."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from plm import stage
from plm.masked_lm import training
from plm.masked_lm.cluster_split import ClusterSplit, hold_out_clusters
from plm.masked_lm.corpus import SHARES
from plm.masked_lm.corpus_store import CorpusStore, open_corpus
from plm.masked_lm.shared_work import checkpoint_together, corpus_together, split_together
from plm.masked_lm.training import MaskedRowModel, MaskedScore
from plm.model import device as devices
from plm.model.adapters import AdapterSettings, add_adapters
from plm.model.checkpoint import load_model, resolve_model
from plm.model.loaded import LoadedModel, ModelFiles
from plm.model.ranks import Ranks
from plm.training import training_state
from plm.training.checkpoints import CheckpointKeeper, room_for_states
from plm.training.row_training import Done, RowOutcome, RowSettings, Steering

LOOK_RESIDUES = 200_000
"""Held-out residues of a look during training; all of them judge at the end."""
BEST = "best.safetensors"


@dataclass(frozen=True)
class PretrainingRequest:
    """What is to be trained on what; the flags of plm_pretrain by their names."""

    input: Path
    preset: str
    model: str | None
    method: str
    lora_rank: int
    allow_hub: bool
    steps: int
    batch_tokens: int
    accumulate: int
    max_length: int
    mask_rate: float
    masked_share: float
    replaced_share: float
    learning_rate: float
    schedule: str
    warmup_steps: int
    weight_decay: float
    holdout: float
    identity: float
    evaluate_every: int
    checkpoint_every: float
    time_limit: float | None
    sharding: str
    keep_best: bool
    seed: int
    device: str
    precision: str

    @property
    def shares(self) -> tuple[float, float]:
        """Of the residues to predict, those that are hidden and those that are replaced."""
        return self.masked_share, self.replaced_share

    @property
    def beyond(self) -> dict[str, Any]:
        """Settings that an ordinary training does not have; they are part of what a checkpoint belongs to."""
        told: dict[str, Any] = {}
        if self.shares != SHARES:
            told["shares"] = self.shares
        if self.method != "full":
            told |= {"method": self.method, "rank": self.lora_rank}
        return told


@dataclass
class PretrainingJob:
    """A training that is ready to begin.

    Attributes:
        request: What was asked for.
        loaded: The model; after training its last weights.
        files: The checkpoint it started from.
        store: The corpus, in the model's token ids.
        split: Who trains and who judges.
        settings: Of the training.
        ranks: The processes of the job.
        device: Device of this process.
        workdir: Folder of this process.
        log: Told of the plan and of every look.
        keeper: Checkpoints, once training has begun.
    """

    request: PretrainingRequest
    loaded: LoadedModel
    files: ModelFiles
    store: CorpusStore
    split: ClusterSplit
    settings: RowSettings
    ranks: Ranks
    device: torch.device
    workdir: Path
    log: logging.Logger
    keeper: CheckpointKeeper = field(init=False)
    _network: MaskedRowModel = field(init=False)
    _lowest: float = field(init=False, default=math.inf)
    _kept_since: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.train_set, self.held_out = self.store.subset(self.split.train), self.store.subset(self.split.held_out)
        network: nn.Module = self.loaded.model
        if self.request.method == "lora":
            settings = AdapterSettings("lora", self.request.lora_rank, 2.0 * self.request.lora_rank, dropout=0.0)
            network = add_adapters(self.loaded, settings)
        self._network = MaskedRowModel(network)

    @property
    def parameters(self) -> tuple[int, int]:
        """Number of parameters, and of those that are trained."""
        sizes = [(value.numel(), value.requires_grad) for value in self._network.parameters()]
        return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)

    @property
    def rows_a_step(self) -> int:
        """Packed rows that a step sees, in all processes together."""
        return self.settings.accumulate * self.ranks.world

    def announce(self) -> None:
        """Says what is planned."""
        every, trained = self.parameters
        tokens = self.settings.batch_tokens * self.rows_a_step
        self.log.info(
            "Plan: %d parameters, %s; %d steps of about %d residues, %.2f passes over the data; %s on %s%s%s; "
            "%s of temporary files",
            every, "all trained" if trained == every else f"{trained} trained", self.settings.steps, tokens,
            self.settings.steps * tokens / self.train_set.residues, self.settings.precision, self.device,
            f" x {self.ranks.world}" if self.ranks.world > 1 else "",
            ", the model divided among them" if self.request.sharding == "full" and self.ranks.world > 1 else "",
            room_for_states(every, trained),
        )

    def judge(self, most: int | None = None, stopping: Callable[[], bool] | None = None) -> MaskedScore:
        """How well the model predicts masked residues of the held-out clusters, or of a part of them."""
        return training.evaluate(
            self._network, self.held_out, self.train_set.frequencies(), device=self.device,
            precision=self.settings.precision, budget=self.settings.batch_tokens, crop=self.settings.crop,
            rate=self.settings.mask_rate, most_residues=most, stopping=stopping,
        )

    def train(self, stage_id: str, resume: Path | None, checkpoint: Path | None = None) -> RowOutcome:
        """Trains in place; in the leading process :attr:`loaded` holds the last weights afterwards.

        Args:
            stage_id: Id of the stage, in the checkpoint.
            resume: Checkpoint to go on from.
            checkpoint: Where one is wanted; written if the job is told to end.
        """
        same = {"base": self.files.sha256, "data": self.train_set.digest(), **self.request.beyond}
        # Any number of processes goes on from a state, if a step sees as many rows.
        settings = replace(self.settings, accumulate=self.rows_a_step)
        self.keeper = CheckpointKeeper.open(
            resume, stage_id, settings, same, self.workdir, self.log, asked=checkpoint if self.ranks.leads else None
        )
        self._take_up_best()
        progress = stage.Progress(self.log, self.settings.steps - self.keeper.step, "steps", every=10.0)

        def look() -> Mapping[str, float]:
            score = self.judge(LOOK_RESIDUES, self.keeper.stopping if self.ranks.world == 1 else None)
            if self.request.keep_best and score.loss / score.residues < self._lowest:
                self._lowest = score.loss / score.residues
                held = {
                    name: training_state.whole(value, keep=self.ranks.leads)
                    for name, value in self._network.named_parameters()
                }
                if self.ranks.leads:
                    training_state.save_tensors(held, self.workdir / BEST)
            return score.known()

        def report(step: int, known: Mapping[str, Any]) -> None:
            note = f"loss {known['train_loss']:.3f}"
            if "masked_perplexity" in known:
                note += f", held-out masked perplexity {known['masked_perplexity']:.2f}"
                self.log.info("Step %d: %s, accuracy %.3f", step, note, known["masked_accuracy"])
            progress.advance(1, note)

        steering = Steering(look, report, self._save, self.keeper.stopping)
        outcome = training.train(
            self._network, self.train_set, self.settings, steering, device=self.device, resume=self.keeper.resume,
            ranks=self.ranks, shares=self.request.shares, sharded=self.request.sharding == "full",
        )
        self.keeper.trained()
        if outcome.weights is not None and self.ranks.leads:
            self._make_whole(outcome.weights)
        self._merge()
        return outcome

    def best(self, outcome: RowOutcome) -> dict[str, float]:
        """Puts the weights of the best look into :attr:`loaded`; the record of that look."""
        rows = [row for row in outcome.history if "valid_loss" in row and row["step"] > self._kept_since]
        self._rebuilt()
        stored = training_state.load_tensors(self.workdir / BEST)
        training_state.put_back(dict(self._network.named_parameters()), stored)
        self._merge()
        return min(rows, key=lambda row: row["valid_loss"])

    def _save(self, write: Callable[[Path], None], done: Done) -> None:
        def with_best(folder: Path) -> None:
            write(folder)
            if (self.workdir / BEST).is_file():
                shutil.copyfile(self.workdir / BEST, folder / BEST)

        self.keeper.save(with_best, done)

    def _take_up_best(self) -> None:
        """The best weights so far, of a training that goes on."""
        if self.keeper.resume is None or not self.request.keep_best:
            return
        folder, done = self.keeper.resume
        if (folder / BEST).is_file():
            shutil.copyfile(folder / BEST, self.workdir / BEST)
            self._lowest = min((row["valid_loss"] for row in done.history if "valid_loss" in row), default=math.inf)
        else:  # the earlier run did not keep it: only looks from now on count
            self._kept_since = done.step

    def _rebuilt(self) -> None:
        """The network anew, as it was before training."""
        self.loaded = load_model(self.files, purpose="masked_lm", device=self.device)
        self.__post_init__()

    def _make_whole(self, weights: Mapping[str, torch.Tensor]) -> None:
        """The network in one piece, with the weights that the processes held together."""
        self._rebuilt()
        training_state.put_back(dict(self._network.named_parameters()), weights)

    def _merge(self) -> None:
        """Adds adapters to the weights they adapt: what comes out is a model like any other."""
        if self.request.method == "lora" and self.ranks.leads:
            wrapped: Any = self._network.language_model
            self._network = MaskedRowModel(wrapped.merge_and_unload())


def ready(request: PretrainingRequest, workdir: Path, ranks: Ranks, log: logging.Logger) -> PretrainingJob:
    """Reads the corpus, holds clusters out, finds or makes the model; says what is planned.

    Raises:
        UserError: No usable corpus, model or device.
    """
    device, precision = devices.settle(request.device, request.precision, stage.threads(), log, ranks)
    torch.manual_seed(request.seed)

    def choose() -> ModelFiles:
        if request.model:
            return resolve_model(request.model, workdir=workdir, allow_hub=request.allow_hub)
        return training.new_model(request.preset, workdir / "new")

    def read(folder: Path) -> CorpusStore:
        store = open_corpus(request.input, folder)
        log.info("%s; %d residues", store.account, store.residues)
        return store

    def hold_out() -> ClusterSplit:
        split = hold_out_clusters(
            store, share=request.holdout, identity=request.identity, seed=request.seed, threads=stage.threads(),
            by_domain=False,
        )
        log.info("%s", split.sentence)
        return split

    files = checkpoint_together(ranks, choose)  # first: a model that cannot be read ends the job before the long work
    store = corpus_together(ranks, workdir, read)
    split = split_together(ranks, store, hold_out)
    loaded = load_model(files, purpose="masked_lm", device=device)
    store = store.for_family(loaded.family, loaded.vocabulary)
    loaded.family.check_length(store.lengths(request.max_length).max())
    settings = RowSettings(
        steps=request.steps, batch_tokens=request.batch_tokens, accumulate=request.accumulate, crop=request.max_length,
        mask_rate=request.mask_rate, learning_rate=request.learning_rate, schedule=request.schedule,
        warmup_steps=min(request.warmup_steps, request.steps), weight_decay=request.weight_decay,
        evaluate_every=request.evaluate_every, checkpoint_every=request.checkpoint_every,
        time_limit=request.time_limit, precision=precision, seed=request.seed,
    )
    job = PretrainingJob(request, loaded, files, store, split, settings, ranks, device, workdir, log)
    job.announce()
    return job
