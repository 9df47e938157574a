#!/usr/bin/env python3
"""Classify every candidate residue of whole proteins with a fine-tuned site model.

Inputs: proteins (FASTA, plain or gzipped) of any length and a bundle of plm_finetune that was trained on sites.
Outputs: a table of all candidates with calibrated probabilities, GFF3, a figure along the proteins, a status table that
names every input record, a report.

Example:
    python plm_classify_sites.py --input proteins.fasta --bundle bundle.zip --sites sites.tsv --gff sites.gff3
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from plm import stage
from plm.errors import UserError

if TYPE_CHECKING:
    from plm.jobs.classify_sites.candidates import Survey
    from plm.jobs.classify_sites.report import Found
    from plm.jobs.classify_sites.scan import SiteScanner
    from plm.jobs.classify_sites.tables import SiteTables, Truth
    from plm.model.bundles.fine_tuned import Bundle
    from plm.scoring.operating_point import OperatingPoint

NAME = "plm_classify_sites"


@dataclass(frozen=True)
class Arguments:
    """The command line; see ``--help``."""

    input: Path
    bundle: Path
    model: str | None
    allow_hub: bool
    residues: str
    false_positive_rate: float | None
    prevalence: float | None
    truth: Path | None
    truth_otherwise: str
    duplicate_ids: str
    nucleotides: str
    sites: Path
    gff: Path | None
    gff_sites: str
    figure: Path | None
    tracks: int
    status: Path | None
    report: Path | None
    batch_tokens: int
    device: str
    precision: str

    def __post_init__(self) -> None:
        for flag, share in (("--false-positive-rate", self.false_positive_rate), ("--prevalence", self.prevalence)):
            if share is not None and not 0 < share < 1:
                raise UserError(f"{share:g} is no share between 0 and 1", where=flag, fix="Give e.g. 0.05 for 5 %")
        if not 64 <= self.batch_tokens <= 10**7:
            raise UserError(f"{self.batch_tokens} is out of range", where="--batch-tokens", fix="Choose 64 to 10000000")
        if not 1 <= self.tracks <= 40:
            raise UserError(f"{self.tracks} is out of range", where="--tracks", fix="Choose 1 to 40")
        if self.truth_otherwise and self.truth is None:
            raise UserError("There is no list of real sites", where="--truth-otherwise", fix="Give one with --truth")


def parse(argv: Sequence[str] | None) -> Arguments:
    parser = stage.parser(NAME, __doc__ or "")
    add = parser.add_argument
    add("--input", type=Path, required=True, help="whole proteins: FASTA, plain or gzipped")
    add("--bundle", type=Path, required=True, help="fine-tuned model of plm_finetune (zip), trained on a site task")
    add(
        "--model", help="the base model it was trained on: starter, folder, zip or hub:name (default: the built-in one)"
    )
    add("--allow-hub", action="store_true", help="let --model hub:... use the network")
    add("--residues", default="", help="candidate residues, e.g. Y or ST (default: those the bundle was trained on)")
    add(
        "--false-positive-rate",
        type=float,
        help="call so that at most this share (0-1) of validation negatives is called",
    )
    add("--prevalence", type=float, help="share (0-1) of candidates that are real sites, to adjust probabilities to")
    add("--truth", type=Path, help="table of known sites: accession, 1-based position and perhaps label")
    add("--truth-otherwise", default="", help="class of unlisted candidates in proteins with a listed site")
    add("--duplicate-ids", choices=("error", "rename", "first"), default="error", help="when an id comes again")
    add("--nucleotides", choices=("reject", "keep"), default="reject", help="records that are clearly DNA or RNA")
    add("--sites", type=stage.output_file, required=True, help="table of every candidate (a predictions table)")
    add("--gff", type=stage.output_file, help="sites as GFF3 on the proteins")
    add("--gff-sites", choices=("called", "all"), default="called", help="which sites the GFF3 has")
    add("--figure", type=stage.output_file, help="probabilities along the proteins (PNG)")
    add("--tracks", type=int, default=12, help="proteins in the figure at most")
    add("--status", type=stage.output_file, help="table of what became of each input record")
    add("--report", type=stage.output_file, help="report in Galaxy's markdown")
    add("--batch-tokens", type=int, default=8192, help="residues encoded together; halved when memory runs out")
    add("--device", default="auto", help="auto, cpu or cuda")
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="arithmetic of matrix products")
    return Arguments(**vars(parser.parse_args(argv)))


def run(argv: Sequence[str] | None) -> None:
    args = parse(argv)
    log = stage.log(NAME)
    stage.require({"torch": "2.6", "transformers": "5.2", "peft": "0.17", "safetensors": "0.5"})
    from plm.jobs.classify_sites import candidates
    from plm.jobs.classify_sites.report import Found
    from plm.jobs.classify_sites.scan import SiteScanner
    from plm.jobs.classify_sites.tables import read_truth
    from plm.model import device as devices
    from plm.model.bundles.fine_tuned import load_bundle
    from plm.scoring.operating_point import OperatingPoint

    devices.use_threads(stage.threads())
    device = devices.choose_device(args.device)
    precision = devices.choose_precision(args.precision, device)
    devices.announce(log, device, precision)
    with tempfile.TemporaryDirectory(prefix="plm_") as scratch, stage.Outputs() as outputs, ExitStack() as opened:
        bundle = load_bundle(
            args.bundle, args.model, workdir=Path(scratch), device=args.device, precision=args.precision,
            allow_hub=args.allow_hub, level="site",
        )  # fmt: skip
        notes: list[str] = []
        trained = str(bundle.manifest.get("site_residues") or "")
        letters = candidates.choose_letters(trained, args.residues, args.bundle.name, notes)
        point = None
        if bundle.task.binary:
            point = OperatingPoint.choose(
                bundle.manifest, false_positive_rate=args.false_positive_rate, prevalence=args.prevalence,
                where=args.bundle.name,
            )  # fmt: skip
        elif args.false_positive_rate is not None or args.prevalence is not None:
            raise UserError(
                "The bundle does not tell two classes apart, so there is no threshold to choose",
                where="--false-positive-rate or --prevalence",
                fix="Leave them out",
            )
        if point and args.false_positive_rate and args.false_positive_rate < (point.unresolved or 0):
            notes.append(
                f"A false-positive rate of {args.false_positive_rate:g} is finer than {point.counts[0]} validation "
                "negatives can show: the threshold lies just above all of them."
            )
        truth = None if args.truth is None else read_truth(args.truth, bundle.task, args.truth_otherwise)
        survey = candidates.survey(
            args.input, letters, bundle.window, args.duplicate_ids, nucleotides=args.nucleotides
        )
        notes += [survey.warning] if survey.warning else []
        scanner = SiteScanner(bundle, args.batch_tokens, log)
        _plan(log, survey, scanner, letters, f"{device.type}, {precision}")
        for note in notes:
            log.warning("Note: %s", note)

        model = f"{bundle.name}@{_digest(args.bundle)[:12]}"
        tables = _open_tables(args, bundle, point, model, outputs, opened)
        found = Found(bundle.task, args.tracks)
        _scan(args, scanner, letters, survey, tables, found, truth, log)
        opened.close()
        if truth and (told := truth.account()):
            notes.append(told)
            log.warning("Note: %s", notes[-1])
        if scanner.segmented:
            notes.append(
                f"{scanner.segmented} proteins were too long for the memory and were seen in overlapping segments."
            )
        if not bundle.manifest.get("finished", True):
            notes.append("The bundle is unfinished: its training was stopped by its time limit.")
        _finish(args, bundle, point, found, letters, model, notes, outputs, log)


def _plan(log: stage.logging.Logger, survey: Survey, scanner: SiteScanner, letters: str, where: str) -> None:
    """Says what is to be done, on what, and for how long."""
    window, specials = scanner.bundle.window, scanner.bundle.loaded.family.specials
    tokens = survey.context + specials * survey.candidates if window else survey.residues + specials * survey.proteins
    minutes = "0"
    if survey.candidates:
        minutes = f"{tokens * scanner.seconds_per_token(survey.head) / 60:.1f}"
    context = f"windows of {window} residues (equal ones once)" if window else "whole proteins"
    log.info(
        "Plan: %d proteins of %d records, %d candidates (%s), %s, %d tokens, %d networks, %s; about %s minutes",
        survey.proteins, survey.records, survey.candidates, "/".join(letters), context, tokens,
        len(scanner.bundle.members), where, minutes,
    )  # fmt: skip


def _open_tables(
    args: Arguments, bundle: Bundle, point: OperatingPoint | None, model: str, outputs: stage.Outputs, opened: ExitStack
) -> SiteTables:
    from plm.jobs.classify_sites.gff import GffWriter
    from plm.jobs.classify_sites.tables import SiteTables

    paths = [None if final is None else outputs.path(final) for final in (args.sites, args.status, args.gff)]
    handles = [
        None if path is None else opened.enter_context(path.open("w", encoding="utf-8", newline="\n")) for path in paths
    ]
    gff = None if handles[2] is None else GffWriter(handles[2], NAME)
    finished = bool(bundle.manifest.get("finished", True))
    return SiteTables(bundle.task, point, model, finished, handles[0], handles[1], gff, args.gff_sites == "all")


def _scan(
    args: Arguments, scanner: SiteScanner, letters: str, survey: Survey, tables: SiteTables, found: Found,
    truth: Truth | None, log: stage.logging.Logger,
) -> None:  # fmt: skip
    """Scores the file chunk by chunk and writes each protein as soon as it is known."""
    import numpy as np
    from plm.data.fasta import CleaningRule
    from plm.data.proteins import Cleaning
    from plm.jobs.classify_sites.candidates import read_candidates
    from plm.jobs.classify_sites.scan import chunks
    from plm.jobs.classify_sites.tables import judge

    task = tables.task
    positive = task.classes[task.positive_index] if task.binary else ""
    progress = stage.Progress(log, survey.candidates, "candidates", every=10.0)
    cleaning = Cleaning(args.input.name, CleaningRule(nucleotides=args.nucleotides))
    records: Iterator = read_candidates(args.input, letters, cleaning, survey.settled)
    for chunk in chunks(records, scanner.bundle.window, 32 * args.batch_tokens):
        for protein, values in zip(chunk, scanner.score(chunk, progress.advance), strict=True):
            if truth:
                truth.see(protein)
            if not protein.sites:
                tables.skip(protein)
                found.skip(protein)
                continue
            answers = judge(values, task, tables.point)
            labels = truth.labels(protein) if truth else [""] * len(protein.sites)
            known = np.array([bool(label) and label == positive for label in labels])
            tables.add(protein, answers, labels)
            found.add(protein, answers.heights, answers.called, answers.calls, known)


def _finish(
    args: Arguments, bundle: Bundle, point: OperatingPoint | None, found: Found, letters: str, model: str,
    notes: list[str], outputs: stage.Outputs, log: stage.logging.Logger,
) -> None:  # fmt: skip
    """Figure, report and the last lines of the log."""
    from plm.jobs.classify_sites.figure import sites_figure
    from plm.jobs.classify_sites.report import first_line, height_name, site_report

    if args.figure:
        sites_figure(
            found.tracks(), outputs.path(args.figure), proteins=found.classified, height_name=height_name(bundle.task),
            threshold=None if point is None else point.threshold,
        )  # fmt: skip
    if args.report:
        names = [name for name in ("figure", "sites", "gff", "status") if getattr(args, name)]
        report = site_report(
            found, point, letters=letters, manifest=bundle.manifest, model=model, notes=notes, outputs=names
        )
        report.write(outputs.path(args.report))
    log.info(
        "%d records: %d classified, %d without a candidate, %d rejected",
        found.proteins, found.classified, found.without, found.rejected,
    )  # fmt: skip
    log.info("%s.", first_line(found, point, letters, bool(bundle.manifest.get("finished", True))))


def _digest(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def main() -> None:
    stage.main(NAME, run, sys.argv[1:])


if __name__ == "__main__":
    main()
