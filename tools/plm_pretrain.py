#!/usr/bin/env python3
"""Pretrain an ESM-2 protein language model on sequences, from scratch or continued, by masked language modelling.

Inputs: proteins (FASTA, CSV/TSV with a `sequence` column, or a dataset table; plain or gzipped).
Outputs: a model in Hugging Face format (zip), its card, a history table and figure, a report.

Example:
    python plm_pretrain.py --input proteins.fasta --preset tiny --steps 200 --output-model model.zip --history
    history.tsv
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plm import flags, stage

if TYPE_CHECKING:
    from plm.masked_lm.training import MaskedScore

NAME = "plm_pretrain"


class Arguments(flags.Hub, flags.MaskedTraining, flags.MaskedRates, flags.Device):
    """The command line; see ``--help``."""

    input: Path = flags.source("proteins: FASTA, CSV/TSV with a sequence column, or a dataset table", required=True)
    preset: str = flags.text("shape of a new model: tiny, small, esm2_8m, esm2_35m, esm2_150m, esm2_650m", "tiny")
    model: str | None = flags.text(
        "continue from this ESM-2 model (starter, folder, zip, hub:name) instead of a new one", None
    )
    output_model: Path = flags.output("the trained model, a zip in Hugging Face format", required=True)
    history: Path | None = flags.output("table of losses and held-out scores")
    figure: Path | None = flags.output("the same as curves (PNG)")
    report: Path | None = flags.report()
    max_length: int = flags.whole(512, "longer proteins give a random stretch of so many residues", 8, 10**5)
    title: str = flags.text("name of the model in its card")


def run(argv: Sequence[str] | None) -> None:
    args = flags.read(Arguments, NAME, __doc__, argv)
    log = stage.log(NAME)
    stage.require({"torch": "2.6", "transformers": "5.2", "safetensors": "0.5", "accelerate": "1.1"})
    import torch
    from plm.jobs.pretrain.report import write_model, write_report
    from plm.masked_lm import training
    from plm.masked_lm.cluster_split import hold_out_clusters
    from plm.masked_lm.corpus_store import open_corpus
    from plm.model import device as devices
    from plm.model.checkpoint import load_model, resolve_model
    from plm.training.checkpoints import CheckpointKeeper
    from plm.training.row_training import RowSettings, Steering

    device, precision = devices.settle(args.device, args.precision, stage.threads(), log)
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
        loaded.family.check_length(store.lengths(args.max_length).max())
        train_set, held_out = store.subset(split.train), store.subset(split.held_out)
        settings = args.into(
            RowSettings, crop=args.max_length, warmup_steps=min(args.warmup_steps, args.steps), precision=precision
        )
        parameters = sum(value.numel() for value in model.parameters())
        log.info(
            "Plan: %d parameters, all trained; %d steps of about %d residues, %.2f passes over the data; %s on %s",
            parameters, args.steps, args.batch_tokens * args.accumulate,
            args.steps * args.batch_tokens * args.accumulate / train_set.residues, precision, device,
        )
        same = {"base": files.sha256, "data": train_set.digest()}
        keeper = CheckpointKeeper.open(args.resume, NAME, settings, same, workdir, log)
        progress = stage.Progress(log, args.steps - keeper.step, "steps", every=10.0)

        def judge(most: int | None = 200_000) -> MaskedScore:
            return training.evaluate(
                model, held_out, train_set.frequencies(), device=device, precision=precision, budget=args.batch_tokens,
                crop=args.max_length, rate=args.mask_rate, most_residues=most,
            )

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
            score.perplexity, score.unigram_perplexity, score.beside_unigram, score.accuracy, score.unigram_accuracy,
            score.residues,
        )
        facts = {
            "arguments": args,
            "store": store,
            "split": split,
            "outcome": outcome,
            "score": score,
            "files": files,
            "residues": train_set.residues,
            "parameters": parameters,
            "device": str(device),
            "precision": precision,
        }
        write_model(loaded, outputs.path(args.output_model), facts, dtype=args.stored_dtype, workdir=workdir)
        write_report(facts, outputs, history=args.history, figure=args.figure, report=args.report)
        if args.checkpoint:
            keeper.export(outputs.path(args.checkpoint), finished=outcome.finished)
        keeper.close(finished=outcome.finished)


if __name__ == "__main__":
    stage.main(NAME, run)
