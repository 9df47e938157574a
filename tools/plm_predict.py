#!/usr/bin/env python3
"""Predict classes or numbers for new proteins with a trained bundle, and say what it should not judge.

Inputs: a bundle of plm_train_classifier or plm_finetune, and proteins (FASTA, plain or gzipped, or a table) of any
length; or, for plm_train_classifier's, embeddings that were made like those it was trained on.
Outputs: a predictions table (call, calibrated probabilities, set of classes of a chosen coverage, distance to the
training proteins, nearest of them), a status table that names every input record, a figure, a report.

Example:
    python plm_predict.py --input genome.fasta --bundle bundle.zip --predictions predictions.tabular --report report.md
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TextIO

from plm import flags, stage
from plm.errors import UserError

if TYPE_CHECKING:
    from plm.jobs.predict.answers import Asker, BundleAnswers
    from plm.jobs.predict.queries import Queries
    from plm.jobs.predict.verdicts import Rules
    from plm.model.bundles.bundle import Bundle
    from plm.model.bundles.classifier import ClassifierBundle
    from plm.model.embedding.sharded import EmbedJob

NAME = "plm_predict"


class Arguments(flags.Hub, flags.Proteins, flags.Embedding, flags.Device):
    """The command line; see ``--help``."""

    input: Path | None = flags.source(
        "FASTA, or a table with the columns id and sequence (and perhaps label, position)"
    )
    embeddings: Path | None = flags.source("instead: embeddings made as those that the bundle was trained on")
    bundle: Path = flags.source("bundle (zip) of plm_train_classifier or plm_finetune", required=True)
    model: str | None = flags.text(
        "the model it was trained with: starter, folder, zip or hub:name (default: the built-in one)", None
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
    residues: Path | None = flags.output(
        "of bundles for residues: a row a residue with its probabilities (tabular)"
    )
    submission: Path | None = flags.output("ids and answers alone, comma-separated, to hand in")
    submission_columns: str = flags.text("names of its two columns", "id,label")
    status: Path | None = flags.status()
    figure: Path | None = flags.output("how sure, and how far from the training proteins (PNG)")
    report: Path | None = flags.report()

    def check(self) -> None:
        if (self.input is None) == (self.embeddings is None):
            raise UserError("Give either proteins or embeddings", where="--input, --embeddings", fix="One of the two")
        names = self.submission_names
        if len(names) != 2 or not all(names):
            raise UserError(
                f"{self.submission_columns!r} are not two names", where="--submission-columns", fix="Give e.g. id,label"
            )

    @property
    def submission_names(self) -> list[str]:
        return [name.strip() for name in self.submission_columns.split(",")]


def run(argv: Sequence[str] | None) -> None:
    args = flags.read(Arguments, NAME, __doc__, argv)
    log = stage.log(NAME)
    stage.require({"numpy": "1.26", "scipy": "1.11", "safetensors": "0.5"})
    from plm.model.bundles.classifier import bundle_kind

    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="plm_")))
        if bundle_kind(args.bundle) == "embedding":
            with_embeddings(args, scratch, stack, log)
        else:
            with_finetuned(args, scratch, log)


def with_embeddings(args: Arguments, scratch: Path, stack: ExitStack, log: stage.logging.Logger) -> None:
    """A classifier of embeddings: embeds proteins as its training proteins were, or takes embeddings of that kind."""
    from plm.data.embeddings.files import read_embeddings
    from plm.jobs.predict.answers import ask_classifier, embedded_batches
    from plm.jobs.predict.queries import Queries, stored_batches
    from plm.model.bundles.classifier import check_embeddings, load_classifier_bundle
    from plm.scoring.conformal import Errors

    bundle = load_classifier_bundle(args.bundle)
    scores, truth = bundle.validation_scores
    errors = Errors.of(scores, truth, number=bundle.task.target == "number") if len(scores) else None
    rules = settle(args, bundle, bundle.reference, errors)
    made = bundle.embedding
    about = [f"Classifier of embeddings: model {made.model or 'unknown'}, layer {_layer(made.layers)}, pooling "
             f"{made.pooling or 'unknown'}, {made.dimension} numbers; head {bundle.head.kind}."]  # fmt: skip
    if args.input is not None:
        queries, job = embed(args, bundle, scratch, stack, log)
        finish(args, bundle, rules, queries, ask_classifier(bundle, embedded_batches(job)), about, [], log, job=job)
        job.store.remove()
        return
    assert args.embeddings is not None
    opened = stack.enter_context(read_embeddings(args.embeddings))
    # Of several layers the one that the bundle was trained on.
    if opened.description.depth > 1 and made.layers and made.layers[0] in opened.description.layers:
        opened = stack.enter_context(read_embeddings(args.embeddings, layer=made.layers[0]))
    notes = check_embeddings(opened.description, bundle, opened.name)
    if opened.description.depth > 1:
        raise UserError(
            f"The file has the layers {_layer(opened.description.layers)}, and the bundle does not say which it needs",
            where=opened.name,
            fix="Embed again with one layer",
        )
    queries = Queries.of_embeddings(opened)
    log.info("Plan: %d embeddings of dimension %d; seconds, on the processor", len(queries), opened.dimension)
    finish(args, bundle, rules, queries, ask_classifier(bundle, stored_batches(opened, queries)), about, notes, log)


def embed(
    args: Arguments, bundle: ClassifierBundle, scratch: Path, stack: ExitStack, log: stage.logging.Logger
) -> tuple[Queries, EmbedJob]:
    """Embeds the proteins, as plm_embed does; a killed job goes on where it stopped."""
    stage.require({"torch": "2.6", "transformers": "5.2"})
    from plm.data.embeddings.description import UNUSUAL
    from plm.data.protein_store import read_spool
    from plm.jobs.predict.answers import base_of
    from plm.jobs.predict.queries import Queries
    from plm.model.checkpoint import load_model
    from plm.model.embedding import setup
    from plm.model.embedding.representations import check_wanted
    from plm.model.ranks import Ranks

    assert args.input is not None
    files, wanted = base_of(bundle, args.bundle.name, args.model, workdir=scratch, allow_hub=args.allow_hub)
    sites = wanted.pooling == "sites"
    read = partial(
        read_spool, args.input, duplicates=args.duplicate_ids, sites=sites, nucleotides=args.nucleotides
    )  # fmt: skip
    own = bundle.embedding.notes.get(UNUSUAL, "x")  # as in the embeddings that the bundle was trained on
    spool = read(scratch / "spool", unusual=own)
    device, precision = _device(args, log)
    loaded = load_model(files, dtype="bfloat16" if precision == "bf16" else "float32", device=device)
    if spool.own and not loaded.family.own_letters(loaded.vocabulary):
        spool = read(scratch / "as_x")
    check_wanted(loaded, wanted)
    settings = setup.EmbeddingSettings(
        args.duplicate_ids, precision, args.batch_tokens, args.max_residues, args.max_memory
    )
    alone = Ranks()
    store = setup.open_store(
        spool, files, wanted, settings, name=NAME, device=device.type, work_dir=args.work_dir, scratch=scratch,
        ranks=alone, stack=stack, log=log,
    )  # fmt: skip
    job = setup.begin(spool, loaded, wanted, settings, store, alone, log)
    missing = job.missing()
    setup.announce(job, missing, precision, alone, log)
    while missing:
        job.compute(missing)
        missing = job.missing()
    return Queries.of_proteins(args.input, spool, sites=sites), job


def with_finetuned(args: Arguments, scratch: Path, log: stage.logging.Logger) -> None:
    """A fine-tuned model, which reads proteins itself."""
    stage.require({"torch": "2.6", "transformers": "5.2", "peft": "0.17"})
    from plm.data.protein_store import read_spool
    from plm.jobs.predict.answers import Asker
    from plm.jobs.predict.queries import Queries
    from plm.model.bundles.archive import bundle_level
    from plm.model.bundles.fine_tuned import DEFAULT_BUDGET, load_bundle
    from plm.scoring.conformal import Errors

    if bundle_level(args.bundle) == "site":
        raise UserError(
            "The bundle answers for sites in proteins, not for whole proteins or every residue",
            where=args.bundle.name,
            fix="Use plm_classify_sites",
        )
    if args.input is None:
        raise UserError("A fine-tuned model reads proteins, not embeddings", where=args.bundle.name, fix="Give --input")
    spool = read_spool(
        args.input, scratch / "spool", duplicates=args.duplicate_ids, nucleotides=args.nucleotides
    )
    _, precision = _device(args, log)
    bundle = load_bundle(
        args.bundle, args.model, workdir=scratch, device=args.device, precision=precision, allow_hub=args.allow_hub
    )
    whole = bundle.task.level == "sequence"
    stored = bundle.manifest.get("conformal") if whole else None
    errors = Errors.from_json(stored) if stored else None
    rules = settle(args, bundle, bundle.reference if whole else ([], [], []), errors)
    asker = Asker(bundle, spool, args.batch_tokens or DEFAULT_BUDGET, log, longest=args.max_residues)
    log.info(
        "Plan: %d proteins of %d records (%d different sequences), %d residues, %d networks",
        len(spool.accepted), len(spool.ids), len(spool.lengths), int(spool.lengths.sum()), len(bundle.members),
    )  # fmt: skip
    base = bundle.manifest["base"]
    about = [f"Fine-tuned model: base model {base['id']} (sha256 {base['sha256'][:12]}), method "
             f"{bundle.manifest['method']}, {len(bundle.members)} trained networks."]  # fmt: skip
    queries = Queries.of_proteins(args.input, spool, sites=False)
    finish(args, bundle, rules, queries, asker.answers(), about, [], log, job=asker)


def settle(args: Arguments, bundle: Bundle, reference: tuple, errors: object) -> Rules:
    """How answers are judged."""
    from plm.jobs.predict.verdicts import make_rules
    from plm.scoring.novelty import Novelty

    if args.residues is not None and bundle.task.level != "residue":
        raise UserError(
            f"The bundle answers for each {bundle.task.level}, not for residues", where="--residues", fix="Leave it out"
        )
    call = bundle.calls
    return make_rules(
        bundle.task, call, errors=errors, coverage=args.coverage, by_class=args.coverage_for == "class",  # type: ignore[arg-type]
        novelty=Novelty.of(reference, bundle.manifest.get("novelty"), args.novel_share), abstain=args.abstain,
    )  # fmt: skip


def finish(
    args: Arguments, bundle: Bundle, rules: Rules, queries: Queries, answers: Iterable[BundleAnswers],
    about: list[str], notes: list[str], log: stage.logging.Logger, *, job: EmbedJob | Asker | None = None,
) -> None:  # fmt: skip
    """Judges and writes block by block, then figure, status and report."""
    from plm.jobs.predict.report import PredictionCounts, first_line, prediction_report, predictions_figure
    from plm.jobs.predict.tables import PredictionTables
    from plm.jobs.predict.verdicts import judge

    finished = bundle.finished
    model = bundle.signature(args.bundle)
    found = PredictionCounts(rules, records=len(queries))
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
        )  # fmt: skip
        for block in answers:
            verdicts = judge(rules, block.values, block.states)
            found.add(queries, block.records, verdicts)
            if rules.task.level == "residue":
                tables.add_residues(block.records, block.sequences, block.values, verdicts)
            else:
                tables.add(block.records, block.values, verdicts)
        tables.close()
        if job is not None:
            queries.windows = job.windows()
        found.rejected = sum(queries.is_rejected(record) for record in range(len(queries)))
        notes = [*notes, *queries.remarks(), *tables.remarks()]
        if not finished:
            notes.append("The bundle is unfinished: its training was stopped by its time limit.")
        status = text(args.status)
        if status is not None:
            queries.write_status(status, found.abstained)
        if args.figure:
            predictions_figure(found, outputs.path(args.figure))
        if args.report:
            names = [name for name in ("figure", "predictions", "residues", "submission") if getattr(args, name)]
            report = prediction_report(found, model=model, finished=finished, about=about, notes=notes, outputs=names)
            report.write(outputs.path(args.report))
        opened.close()
    for note in notes:
        log.warning("Note: %s", note)
    log.info("%d records: %d predicted, %d rejected", len(queries), len(queries) - found.rejected, found.rejected)
    log.info("%s.", first_line(found, finished))


def _device(args: Arguments, log: stage.logging.Logger) -> tuple:
    from plm.model import device as devices

    devices.use_threads(stage.threads())
    device = devices.choose_device(args.device)
    precision = devices.choose_precision(args.precision, device)
    devices.announce(log, device, precision)
    return device, precision


def _layer(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers)) or "unknown"


if __name__ == "__main__":
    stage.main(NAME, run)
