#!/usr/bin/env python3
"""Score substitutions of amino acids with a masked language model that has seen no measurement of them (zero-shot).

Inputs: proteins (FASTA, plain or gzipped, or a table) of any length, a model with a language-model head (ESM-2, ESM-1b,
ProtBert), and a table of variants (A23V, p.Ala23Val, NP_000537.3:p.Arg175His, several at once as A23V:G45D); or no
table and --all: every substitution of every protein.
Outputs: the table with a score for every variant, or the reason why there is none; a ranking; the tolerance of each
position as a table and as a track (BED or GFF3); heat maps; a report. With --measured the scores are compared with
measured values, beside baselines without a language model.

Example:
    python plm_variants.py --input proteins.fasta --variants variants.tsv --model starter --scores scored.tsv
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from plm import flags, stage
from plm.errors import UserError
from plm.telling.page import publish

if TYPE_CHECKING:
    from plm.data.protein_store import ProteinStore
    from plm.jobs.variants.answers import VariantAnswers
    from plm.jobs.variants.variant_table import VariantTable
    from plm.model.loaded import LoadedModel

NAME = "plm_variants"


class Arguments(flags.Reporting, flags.Hub, flags.Proteins, flags.Device):
    """The command line; see ``--help``."""

    input: Path = flags.source("proteins: FASTA, or a table with the columns id and sequence", required=True)
    model: str = flags.text("starter, folder, zip or hub:name (default: the built-in one)", "starter")
    variants: Path | None = flags.source("table of variants, with a header; or a VCF-like one")
    all: bool = flags.switch("instead: score every substitution of every protein")
    variant_column: str = flags.text(
        "column of the variants, by name or number (default: variant, hgvsp, mutation ...)"
    )
    protein_column: str = flags.text(
        "column of the proteins' ids (default: protein, accession, gene, id ..., if there); none: all rows mean the "
        "only protein, whatever they call it"
    )
    method: str = flags.choice(
        ("wt-marginal", "masked-marginal", "pseudo-likelihood"),
        "wt-marginal: one pass a protein, the residues being visible; masked-marginal: a pass a position, which is "
        "hidden; pseudo-likelihood: as many passes a variant as the protein has residues",
        "masked-marginal",
    )
    window: int = flags.whole(
        0, "longer proteins are seen through windows of this length around each substitution (default: only what the "
        "model or the memory does not hold)", 16, 10**6, or_zero=True,
    )
    alignment: Path | None = flags.source(
        "aligned relatives of one protein (FASTA or A3M, the protein first) for the baseline of site frequencies"
    )
    measured: str = flags.text("column of measured values to compare the scores with, by name or number")
    lower_is_better: bool = flags.switch("low measured values are the tolerated ones (e.g. a loss of stability)")
    resamples: int = flags.resamples("draws for the intervals of that comparison")
    seed: int = flags.seed("of the draws")
    batch_tokens: int = flags.like(flags.Embedding, "batch_tokens")
    max_memory: int | None = flags.like(flags.Embedding, "max_memory")
    scores: Path = flags.output("every variant with its score (tabular)", required=True)
    ranked: Path | None = flags.output("the scored ones from the least tolerated on (tabular)")
    ranked_rows: int = flags.whole(1000, "rows of that table at most; 0: all", 0, 10**9)
    positions: Path | None = flags.output("tolerance of each position (tabular)")
    track: Path | None = flags.output("the same for a genome browser")
    track_format: str = flags.choice(("gff3", "bed"), "of the track: GFF3 counts from 1, BED from 0")
    status: Path | None = flags.status()
    figure: Path | None = flags.output("heat maps of the scores (PNG)")

    def check(self) -> None:
        if (self.variants is None) != self.all:
            raise UserError(
                "Give either a table of variants or --all" if self.all else "Nothing says what to score",
                where="--variants, --all", fix="Give one of the two",
            )
        for name in ("variant_column", "protein_column", "measured"):
            if self.all and getattr(self, name):
                raise UserError(
                    "This is a column of the table of variants", where=flags.spelled(name),
                    fix="Give the table with --variants",
                )


def run(argv: Sequence[str] | None) -> None:
    args = flags.read(Arguments, NAME, __doc__, argv)
    log = stage.log(NAME)
    stage.require({"torch": "2.6", "transformers": "5.2", "safetensors": "0.5", "biopython": "1.80"})
    from plm.data.protein_store import store_proteins
    from plm.jobs.variants.variant_table import read_variants
    from plm.wording import counted

    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="plm_")))
        # Everything wrong with the input is found before the model is loaded.
        read = partial(store_proteins, args.input, duplicates=args.duplicate_ids, nucleotides=args.nucleotides)
        proteins = read(scratch / "proteins", unusual="own")
        table = None
        if args.variants is not None:
            table = read_variants(
                args.variants, proteins, args.input, scratch, variant_column=args.variant_column,
                protein_column=args.protein_column, measured=args.measured,
            )
            log.info("%s of %s: %s", counted(len(table.rows), "row"), table.name, table.told)
        from plm.model import device as devices

        device, precision = devices.settle(args.device, args.precision, stage.threads(), log)
        loaded = _load(args, scratch, device, precision)
        if proteins.own and not loaded.family.own_letters(loaded.vocabulary):
            proteins = read(scratch / "as_x")  # the model's authors took U, Z, O and B for X
        if proteins.warning:
            log.warning("Note: %s", proteins.warning)
        answers = _score(args, proteins, table, loaded, precision, scratch, log)
        with stage.Outputs() as outputs:
            told = _write(args, answers, outputs)
        log.info("%s", told)


def _load(args: Arguments, scratch: Path, device: object, precision: str) -> LoadedModel:
    from plm.model.checkpoint import load_model, resolve_model

    files = resolve_model(args.model, workdir=scratch, allow_hub=args.allow_hub)
    dtype = "bfloat16" if precision == "bf16" else "float32"
    return load_model(files, purpose="masked_lm", dtype=dtype, device=device)


def _score(
    args: Arguments, proteins: ProteinStore, table: VariantTable | None, loaded: LoadedModel, precision: str,
    scratch: Path, log: stage.logging.Logger,
) -> VariantAnswers:
    from plm.jobs.variants.answers import VariantAnswers
    from plm.jobs.variants.baselines import Baselines, background, blosum62, read_alignment
    from plm.jobs.variants.job import VariantJob, VariantSettings

    expected = background(proteins)
    aligned = None if args.alignment is None else read_alignment(args.alignment, proteins, expected)
    job = VariantJob(proteins, loaded, args.into(VariantSettings), table, log)
    scores = job.run(scratch, precision)
    return VariantAnswers(job, scores, Baselines(blosum62(), expected, aligned), table)


def _write(args: Arguments, answers: VariantAnswers, outputs: stage.Outputs) -> str:
    """Writes what is wanted and gives the answer in a sentence."""
    from plm.jobs.variants.figure import proteins_figure, table_figure
    from plm.jobs.variants.report import effects_report, first_line

    tables, table = answers.tables, answers.table
    drawn = None
    with ExitStack() as opened:
        text = partial(outputs.text, opened)
        if table is not None:
            tables.write_rows(table, text(args.scores))
        else:
            tables.write_all(text(args.scores))
        if args.ranked and table is not None:
            tables.write_ranked_rows(table, text(args.ranked), args.ranked_rows)
        elif args.ranked:
            tables.write_ranked_all(text(args.ranked), args.ranked_rows)
        if args.positions:
            tables.write_positions(text(args.positions))
        if args.track:
            (tables.write_bed if args.track_format == "bed" else tables.write_gff)(text(args.track))
        if args.status:
            tables.write_status(text(args.status), table)
    if args.figure:
        path = outputs.path(args.figure)
        if table is None:
            drawn = proteins_figure(tables.proteins, answers.scores, path)
        else:
            drawn = table_figure(tables.proteins, answers.scores, table, path)
    account = answers.account(
        drawn, lower_is_better=args.lower_is_better, resamples=args.resamples, seed=args.seed
    )
    if args.tells():
        names = ("scores", "ranked", "positions", "track", "status", "figure")
        publish(effects_report(account, [name for name in names if getattr(args, name)]), args, outputs, NAME)
    return first_line(account)


if __name__ == "__main__":
    stage.main(NAME, run)
