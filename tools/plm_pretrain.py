#!/usr/bin/env python3
"""Pretrain an ESM-2 protein language model on sequences, from scratch or continued, by masked language modelling.

Inputs: proteins (FASTA, CSV/TSV with a `sequence` column, or a dataset table; plain or gzipped).
Outputs: a model in Hugging Face format (zip), its card, a history table and figure, a report.

Example:
    python plm_pretrain.py --input proteins.fasta --preset tiny --steps 200 --output-model model.zip --history
    history.tsv
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plm import stage
from plm.errors import UserError

if TYPE_CHECKING:
    from plm.masked_lm.training import Score

NAME = "plm_pretrain"


@dataclass(frozen=True)
class Arguments:
    """The command line; see ``--help``."""

    input: Path
    preset: str
    model: str | None
    allow_hub: bool
    output_model: Path
    history: Path | None
    figure: Path | None
    report: Path | None
    checkpoint: Path | None
    resume: Path | None
    steps: int
    batch_tokens: int
    accumulate: int
    max_length: int
    mask_rate: float
    learning_rate: float
    schedule: str
    warmup_steps: int
    weight_decay: float
    holdout: float
    identity: float
    evaluate_every: int
    checkpoint_every: float
    time_limit: float | None
    stored_dtype: str
    device: str
    precision: str
    seed: int
    title: str

    def __post_init__(self) -> None:
        for flag, value, low, high in (
            ("--steps", self.steps, 1, 10**8),
            ("--batch-tokens", self.batch_tokens, 16, 10**7),
            ("--accumulate", self.accumulate, 1, 10**5),
            ("--max-length", self.max_length, 8, 10**5),
            ("--mask-rate", self.mask_rate, 0.01, 0.9),
            ("--holdout", self.holdout, 0.001, 0.5),
            ("--identity", self.identity, 0.2, 1.0),
            ("--evaluate-every", self.evaluate_every, 1, 10**8),
            ("--learning-rate", self.learning_rate, 1e-8, 1.0),
            ("--warmup-steps", self.warmup_steps, 0, 10**8),
        ):
            if not low <= value <= high:
                raise UserError(f"{value} is out of range", where=flag, fix=f"Choose {low} to {high}")


def parse(argv: Sequence[str] | None) -> Arguments:
    parser = stage.parser(NAME, __doc__ or "")
    add = parser.add_argument
    add("--input", type=Path, required=True, help="proteins: FASTA, CSV/TSV with a sequence column, or a dataset table")
    add("--preset", default="tiny", help="shape of a new model: tiny, small, esm2_8m, esm2_35m, esm2_150m, esm2_650m")
    add("--model", help="continue from this ESM-2 model (starter, folder, zip, hub:name) instead of a new one")
    add("--allow-hub", action="store_true", help="let --model hub:... use the network")
    add("--output-model", type=stage.output_file, required=True, help="the trained model, a zip in Hugging Face format")
    add("--history", type=stage.output_file, help="table of losses and held-out scores")
    add("--figure", type=stage.output_file, help="the same as curves (PNG)")
    add("--report", type=stage.output_file, help="report in Galaxy's markdown")
    add("--checkpoint", type=stage.output_file, help="where to write a checkpoint when the time limit comes")
    add("--resume", type=Path, help="checkpoint of an earlier run with the same input and settings")
    add("--steps", type=int, default=1000, help="optimiser steps")
    add("--batch-tokens", type=int, default=8192, help="residues that are trained on together")
    add("--accumulate", type=int, default=1, help="batches before each step")
    add("--max-length", type=int, default=512, help="longer proteins give a random stretch of so many residues")
    add("--mask-rate", type=float, default=0.15, help="share of residues to predict")
    add("--learning-rate", type=float, default=1e-3, help="highest learning rate")
    add("--schedule", choices=("linear", "cosine", "constant"), default="linear", help="course after the warm-up")
    add("--warmup-steps", type=int, default=100, help="steps until the highest learning rate")
    add("--weight-decay", type=float, default=0.01, help="AdamW weight decay")
    add("--holdout", type=float, default=0.02, help="share of the clusters kept for evaluation")
    add("--identity", type=float, default=0.3, help="relatives are at least this identical (0-1)")
    add("--evaluate-every", type=int, default=200, help="steps between looks at the held-out clusters")
    add("--checkpoint-every", type=float, default=10.0, help="minutes between checkpoints in PLM_CHECKPOINT_DIR")
    add("--time-limit", type=float, help="stop after so many minutes with a checkpoint to go on from")
    add("--stored-dtype", choices=("bfloat16", "float32"), default="bfloat16", help="type of the stored weights")
    add("--device", default="auto", help="auto, cpu or cuda")
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="arithmetic of matrix products")
    add("--seed", type=int, default=42, help="of weights, split, batches and masks")
    add("--title", default="", help="name of the model in its card")
    return Arguments(**vars(parser.parse_args(argv)))


def run(argv: Sequence[str] | None) -> None:
    args = parse(argv)
    log = stage.log(NAME)
    stage.require({"torch": "2.6", "transformers": "5.2", "safetensors": "0.5", "accelerate": "1.1"})
    import torch
    from plm.jobs.pretrain.report import write_model, write_report
    from plm.masked_lm import training
    from plm.masked_lm.cluster_split import hold_out_clusters
    from plm.masked_lm.corpus_store import open_corpus
    from plm.model import device as devices
    from plm.model.checkpoint import load_model, resolve_model
    from plm.training.checkpoint_keeper import CheckpointKeeper
    from plm.training.row_training import RowSettings, Steering

    devices.use_threads(stage.threads())
    device = devices.choose_device(args.device)
    precision = devices.choose_precision(args.precision, device)
    devices.announce(log, device, precision)
    torch.manual_seed(args.seed)
    with stage.Outputs() as outputs, tempfile.TemporaryDirectory(prefix="plm_") as scratch:
        workdir = Path(scratch)
        store = open_corpus(args.input, workdir)
        log.info("%s; %d residues", store.account, store.residues)
        split = hold_out_clusters(
            store, share=args.holdout, identity=args.identity, seed=args.seed, threads=stage.threads(), by_domain=False
        )
        log.info("%s", split.sentence)
        if args.model:
            files = resolve_model(args.model, workdir=workdir, allow_hub=args.allow_hub)
        else:
            files = training.new_model(args.preset, workdir / "new")
        loaded = load_model(files, purpose="masked_lm", device=device)
        model = training.MaskedRowModel(loaded.model)
        store = store.for_family(loaded.family, loaded.vocabulary)
        train_set, held_out = store.subset(split.train), store.subset(split.held_out)
        settings = RowSettings(
            steps=args.steps,
            batch_tokens=args.batch_tokens,
            accumulate=args.accumulate,
            crop=args.max_length,
            mask_rate=args.mask_rate,
            learning_rate=args.learning_rate,
            schedule=args.schedule,
            warmup_steps=min(args.warmup_steps, args.steps),
            weight_decay=args.weight_decay,
            evaluate_every=args.evaluate_every,
            checkpoint_every=args.checkpoint_every,
            time_limit=args.time_limit,
            precision=precision,
            seed=args.seed,
        )
        parameters = sum(value.numel() for value in model.parameters())
        log.info(
            "Plan: %d parameters, all trained; %d steps of about %d residues, %.2f passes over the data; %s on %s",
            parameters, args.steps, args.batch_tokens * args.accumulate,
            args.steps * args.batch_tokens * args.accumulate / train_set.residues, precision, device,
        )  # fmt: skip
        same = {"base": files.sha256, "data": train_set.digest()}
        keeper = CheckpointKeeper.open(args.resume, NAME, settings, same, workdir, log)
        progress = stage.Progress(log, args.steps - keeper.step, "steps", every=10.0)

        def judge(most: int | None = 200_000) -> Score:
            return training.evaluate(
                model, held_out, train_set.frequencies(), device=device, precision=precision,
                budget=args.batch_tokens, crop=args.max_length, rate=args.mask_rate, most_residues=most,
            )  # fmt: skip

        def report(step: int, known: Mapping[str, Any]) -> None:
            note = f"loss {known['train_loss']:.3f}"
            if "masked_perplexity" in known:
                note += f", held-out masked perplexity {known['masked_perplexity']:.2f}"
                log.info("Step %d: %s, accuracy %.3f", step, note, known["masked_accuracy"])
            progress.advance(1, note)

        steering = Steering(lambda: judge().known(), report, keeper.save, keeper.stopping)
        outcome = training.train(model, train_set, settings, steering, device=device, resume=keeper.resume)
        score = judge(None)
        log.info(
            "Held-out clusters: masked perplexity %.2f (unigram %.2f, %s), accuracy %.3f (unigram %.3f), "
            "%d masked residues",
            score.perplexity, score.unigram_perplexity, score.beside_unigram, score.accuracy,
            score.unigram_accuracy, score.residues,
        )  # fmt: skip
        facts = {
            "arguments": args, "store": store, "split": split, "outcome": outcome, "score": score, "files": files,
            "residues": train_set.residues, "parameters": parameters, "device": str(device), "precision": precision,
        }  # fmt: skip
        write_model(loaded, outputs.path(args.output_model), facts, dtype=args.stored_dtype, workdir=workdir)
        write_report(facts, outputs, history=args.history, figure=args.figure, report=args.report)
        if args.checkpoint:
            keeper.export(outputs.path(args.checkpoint), finished=outcome.finished)
        keeper.close(finished=outcome.finished)


def main() -> None:
    stage.main(NAME, run, sys.argv[1:])


if __name__ == "__main__":
    main()
