#!/usr/bin/env python3
"""Predict classes or numbers for new proteins with a trained bundle, and say what it should not judge.

Inputs: a bundle of plm_train_classifier or plm_finetune, and proteins (FASTA, plain or gzipped, or a table) of any
length; or, for plm_train_classifier's, embeddings that were made like those it was trained on, with their proteins
where the bundle reads sequences too.
Outputs: a predictions table (call, calibrated probabilities, set of classes of a chosen coverage, distance to the
training proteins, nearest of them), a status table that names every input record, a figure, a report; on request what
each part of the predictor says (table), and what each substitution of some residues does to the answer (table and
figure; fine-tuned models of whole proteins).

Example:
    python plm_predict.py --input genome.fasta --bundle bundle.zip --predictions predictions.tabular --report report.md
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TextIO

from plm import flags, stage
from plm.errors import UserError
from plm.telling.page import publish

if TYPE_CHECKING:
    from plm.jobs.predict.answer_reasons import AnswerReasons
    from plm.jobs.predict.mutagenesis import ProteinMaps
    from plm.jobs.predict.sources import Answered
    from plm.jobs.predict.verdicts import Rules
    from plm.model.bundles.bundle import Bundle
    from plm.scoring.conformal import Errors
    from plm.telling.report import Report

NAME = "plm_predict"


class Arguments(flags.Reporting, flags.Hub, flags.Proteins, flags.Embedding, flags.Device):
    """The command line; see ``--help``."""

    input: Path | None = flags.source(
        "FASTA, or a table with the columns id and sequence (and perhaps label, position)"
    )
    embeddings: Path | None = flags.source("instead: embeddings made as those that the bundle was trained on")
    sequences: Path | None = flags.source(
        "beside embeddings: their proteins, as FASTA or table, for a bundle that reads sequences too"
    )
    bundle: Path = flags.source("bundle (zip) of plm_train_classifier or plm_finetune", required=True)
    model: str | None = flags.text(
        "the model it was trained with: starter, folder, zip or hub:name (default: the built-in one)", None
    )
    predictor: str = flags.choice(
        ("auto", "model"),
        "auto: what the bundle answers with, sequence members among it if it has any; model: its language model alone",
    )
    coverage: float = flags.share(0.9, "share (0-1) of sets or intervals that are to hold the truth", 0.9)
    coverage_for: str = flags.choice(
        ("all", "class"), "that share holds over all proteins together, or for each class (larger sets)"
    )
    novel_share: float = flags.share(
        0.05, "share (0-1) of proteins like the validation ones that may be flagged as novel", 0.05
    )
    abstain: Literal["never", "novel", "unsure", "either"] = flags.choice(
        ("never", "novel", "unsure", "either"),
        "make no call where a protein is novel, where its set is not a single class, or where either holds",
    )
    top_k: int = flags.whole(3, "likeliest classes listed in the column top; 0: no such column", 0, 1000)
    predictions: Path = flags.output("the predictions (tabular)", required=True)
    residues: Path | None = flags.output("of bundles for residues: a row a residue with its probabilities (tabular)")
    submission: Path | None = flags.output("ids and answers alone, comma-separated, to hand in")
    submission_columns: str = flags.text("names of its two columns", "id,label")
    reasons: Path | None = flags.output("what each part of the predictor says of every protein (tabular)")
    mutagenesis: Path | None = flags.output("what each substitution of some residues does to the answer (tabular)")
    mutagenesis_figure: Path | None = flags.output("the same as heat maps (PNG)")
    mutagenesis_residues: str = flags.text(
        "which residues: ids with spans, e.g. P1:10-40 P2:5-60 (default: all of every protein; at most 100 in each)"
    )
    status: Path | None = flags.status()
    figure: Path | None = flags.output("how sure, and how far from the training proteins (PNG)")

    def check(self) -> None:
        if (self.input is None) == (self.embeddings is None):
            raise UserError("Give either proteins or embeddings", where="--input, --embeddings", fix="One of the two")
        if self.sequences is not None and self.embeddings is None:
            raise UserError("Sequences stand beside embeddings", where="--sequences", fix="Give proteins with --input")
        if self.mutagenesis_residues and not self.mutates:
            raise UserError(
                "Nothing is to be mutated", where="--mutagenesis-residues",
                fix="Give --mutagenesis or --mutagenesis-figure",
            )
        names = self.submission_names
        if len(names) != 2 or not all(names):
            raise UserError(
                f"{self.submission_columns!r} are not two names", where="--submission-columns", fix="Give e.g. id,label"
            )

    @property
    def mutates(self) -> bool:
        return self.mutagenesis is not None or self.mutagenesis_figure is not None

    @property
    def submission_names(self) -> list[str]:
        return [name.strip() for name in self.submission_columns.split(",")]


def run(argv: Sequence[str] | None) -> None:
    args = flags.read(Arguments, NAME, __doc__, argv)
    log = stage.log(NAME)
    stage.require({"numpy": "1.26", "scipy": "1.11", "safetensors": "0.5"})
    from plm.jobs.predict.sources import Question, ask

    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="plm_")))
        answered = ask(args.into(Question, stage=NAME), partial(settle, args), scratch, stack, log)
        write(args, answered, log)
        answered.forget()


def settle(args: Arguments, bundle: Bundle, reference: tuple, errors: Errors | None) -> Rules:
    """How answers are judged."""
    from plm.jobs.predict.verdicts import make_rules
    from plm.scoring.novelty import Novelty

    if args.residues is not None and bundle.task.level != "residue":
        raise UserError(
            f"The bundle answers for each {bundle.task.level}, not for residues", where="--residues", fix="Leave it out"
        )
    if args.mutates:
        from plm.jobs.predict.mutagenesis import check_bundle

        check_bundle(bundle, args.bundle)
    call = bundle.calls
    return make_rules(
        bundle.task, call, errors=errors, coverage=args.coverage, by_class=args.coverage_for == "class",
        novelty=Novelty.of(reference, bundle.manifest.get("novelty"), args.novel_share), abstain=args.abstain,
    )


def wanted_maps(args: Arguments, answered: Answered) -> ProteinMaps | None:
    """What is to be mutated, told before the work starts; None if nothing is."""
    if not args.mutates:
        return None
    from plm.jobs.predict.mutagenesis import ProteinMaps, choose_subjects

    assert answered.queries.proteins is not None  # fine-tuned models read proteins
    return ProteinMaps(choose_subjects(answered.queries.proteins, args.mutagenesis_residues))


def write(args: Arguments, answered: Answered, log: stage.logging.Logger) -> None:
    """Judges and writes block by block, then figure, status and report."""
    from plm.jobs.predict.answer_reasons import AnswerReasons
    from plm.jobs.predict.report import PredictionCounts, first_line, prediction_report, predictions_figure
    from plm.jobs.predict.tables import PredictionTables
    from plm.jobs.predict.verdicts import judge

    bundle, rules, queries, job = answered.bundle, answered.rules, answered.queries, answered.job
    finished, model = bundle.finished, bundle.signature(args.bundle)
    counts = PredictionCounts(rules, records=len(queries))
    maps = wanted_maps(args, answered)
    with stage.Outputs() as outputs, ExitStack() as opened:

        def text(path: Path | None) -> TextIO | None:
            if path is None:
                return None
            return opened.enter_context(outputs.path(path).open("w", encoding="utf-8", newline=""))

        predictions = text(args.predictions)
        assert predictions is not None
        tables = PredictionTables(
            queries, rules, model, finished, args.top_k, predictions, text(args.residues), text(args.submission),
            (args.submission_names[0], args.submission_names[1]),
        )
        reasons = None
        if (handle := text(args.reasons)) is not None:
            reasons = AnswerReasons.begin(bundle, queries, model, handle)
        for block in answered.blocks:
            verdicts = judge(rules, block.values, block.states)
            counts.add(queries, block.records, verdicts)
            if reasons is not None:
                reasons.add(block, verdicts)
            if rules.task.level == "residue":
                tables.add_residues(block.records, block.sequences, block.values, verdicts)
            else:
                tables.add(block.records, block.values, verdicts)
        tables.close()
        if job is not None:
            queries.windows = job.windows()
        counts.rejected = sum(queries.is_rejected(record) for record in range(len(queries)))
        notes = [*answered.notes, *queries.remarks(), *tables.remarks()]
        if not finished:
            notes.append("The bundle is unfinished: its training was stopped by its time limit.")
        status = text(args.status)
        if status is not None:
            queries.write_status(status, counts.abstained)
        if args.figure:
            predictions_figure(counts, outputs.path(args.figure))
        shown = ("figure", "predictions", "residues", "submission", "reasons", "mutagenesis", "mutagenesis_figure")
        names = [name for name in shown if getattr(args, name)]
        if maps is not None:
            assert answered.ask is not None
            maps.make(answered.ask, rules, log)
            files = [args.mutagenesis, args.mutagenesis_figure]
            table, figure = (None if path is None else outputs.path(path) for path in files)
            maps.write(table, figure, model, numbers=rules.task.target == "number")
        if args.tells():
            report = prediction_report(
                counts, model=model, finished=finished, about=answered.about, notes=notes, outputs=names,
                explain=lambda report: explain(report, reasons, maps, names),
            )
            publish(report, args, outputs, NAME)
        opened.close()
    for note in notes:
        log.warning("Note: %s", note)
    log.info("%d records: %d predicted, %d rejected", len(queries), len(queries) - counts.rejected, counts.rejected)
    log.info("%s.", first_line(counts, finished))


def explain(report: Report, reasons: AnswerReasons | None, maps: ProteinMaps | None, names: list[str]) -> None:
    """Adds to a report what the answers rest on."""
    if reasons is not None:
        reasons.report(report)
    if maps is not None:
        maps.report(report, names)


if __name__ == "__main__":
    stage.main(NAME, run)
