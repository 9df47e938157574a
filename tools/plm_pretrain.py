#!/usr/bin/env python3
"""Pretrain a protein language model on sequences, from scratch or continued, by masked language modelling.

Inputs: proteins (FASTA, CSV/TSV with a `sequence` column, a dataset table, Parquet; plain or gzipped).
Outputs: a model in Hugging Face format (zip), its card, a history table and figure, a report.
Several processes, on one machine or more: torchrun --nproc-per-node 2 plm_pretrain.py ...

Example:
    python plm_pretrain.py --input proteins.fasta --preset tiny --steps 200 --output-model model.zip --history
    history.tsv
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from plm import flags, stage
from plm.errors import UserError
from plm.telling.page import publish

NAME = "plm_pretrain"


class Arguments(flags.Reporting, flags.Hub, flags.MaskedTraining, flags.MaskedRates, flags.Device):
    """The command line; see ``--help``."""

    input: Path = flags.source("proteins: FASTA, CSV/TSV/Parquet with a sequence column, or a dataset table",
                               required=True)
    preset: str = flags.text(
        "shape of a new model: tiny, small, esm2_8m, esm2_35m, esm2_150m, esm2_650m, proteinlm_200m", "tiny"
    )
    model: str | None = flags.text(
        "continue from this model with a language-model head (starter, folder, zip, hub:name)", None
    )
    method: str = flags.choice(("full", "lora"), "of a model that is continued: train all weights, or LoRA adapters")
    lora_rank: int = flags.whole(8, "rank of the adapters", 1, 512)
    output_model: Path = flags.output("the trained model, a zip in Hugging Face format", required=True)
    best_model: Path | None = flags.output("the model at the look with the lowest held-out loss, likewise")
    history: Path | None = flags.output("table of losses and held-out scores")
    figure: Path | None = flags.output("the same as curves (PNG)")
    max_length: int = flags.whole(512, "longer proteins give a random stretch of so many residues", 8, 10**5)
    masked_share: float = flags.number(0.8, "of the residues to predict, the share that is hidden", 0, 1)
    replaced_share: float = flags.number(0.1, "the share that is replaced by another residue; the rest stays", 0, 1)
    sharding: str = flags.choice(
        ("none", "full"), "under torchrun: each process holds the whole model (DDP), or its share of it (FSDP2)"
    )
    title: str = flags.text("name of the model in its card")

    def check(self) -> None:
        if self.masked_share + self.replaced_share > 1 + 1e-9:
            raise UserError(
                "More residues are hidden and replaced than there are to predict",
                where="--masked-share and --replaced-share", fix="Give shares that are at most 1 together",
            )
        if self.method == "lora" and not self.model:
            raise UserError(
                "Adapters adapt a model, and a new one knows nothing yet", where="--method lora",
                fix="Name the model with --model, or train all weights",
            )


def run(argv: Sequence[str] | None) -> None:
    args = flags.read(Arguments, NAME, __doc__, argv)
    log = stage.log(NAME)
    stage.require({"torch": "2.6", "transformers": "5.2", "safetensors": "0.5", "accelerate": "1.1"})
    from plm.jobs.pretrain import report as reports
    from plm.jobs.pretrain.job import PretrainingRequest, ready
    from plm.model.ranks import Ranks

    with ExitStack() as stack:
        workdir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="plm_")))
        ranks = Ranks.join(gpus=True)
        stack.callback(ranks.leave)
        log.disabled = not ranks.leads
        outputs = stack.enter_context(stage.Outputs())
        job = ready(args.into(PretrainingRequest, keep_best=args.best_model is not None), workdir, ranks, log)
        outcome = job.train(NAME, args.resume, args.checkpoint)
        if not ranks.leads:
            return
        facts = reports.facts(args, job, outcome)
        score = facts["score"]
        log.info(
            "Held-out clusters: masked perplexity %.2f (unigram %.2f, %s), accuracy %.3f (unigram %.3f), "
            "%d masked residues",
            score.perplexity, score.unigram_perplexity, score.beside_unigram, score.accuracy, score.unigram_accuracy,
            score.residues,
        )
        path = outputs.path(args.output_model)
        reports.write_model(job.loaded, path, facts, dtype=args.stored_dtype, workdir=workdir)
        if args.best_model is not None:
            best = job.best(outcome)
            path = outputs.path(args.best_model)
            reports.write_best(job, best, facts, path, dtype=args.stored_dtype, workdir=workdir)
        reports.write_curves(facts, outputs, history=args.history, figure=args.figure)
        if args.tells():
            publish(reports.report(facts, figure=bool(args.figure), history=bool(args.history)), args, outputs, NAME)
        if args.checkpoint:
            job.keeper.export(outputs.path(args.checkpoint), finished=outcome.finished)
        job.keeper.close(finished=outcome.finished)


if __name__ == "__main__":
    stage.main(NAME, run)
