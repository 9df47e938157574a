#!/usr/bin/env python3
"""Classify every candidate residue of whole proteins with a fine-tuned site model.

Inputs: proteins (FASTA, plain or gzipped) of any length and a bundle of plm_finetune that was trained on sites.
Outputs: a table of all candidates with calibrated probabilities, GFF3, a figure along the proteins, a status table that
names every input record, a report; on request why sites are called: what each part of the predictor says with the
nearest training rows (table), what each substitution around the strongest calls does (table and figure), and sequence
logos of called against other sites.

Example:
    python plm_classify_sites.py --input proteins.fasta --bundle bundle.zip --sites sites.tsv --gff sites.gff3
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from plm import flags, stage
from plm.errors import UserError
from plm.telling.page import publish

if TYPE_CHECKING:
    from plm.jobs.classify_sites.call_reasons import CallReasons
    from plm.jobs.classify_sites.explanations import Explanations
    from plm.jobs.classify_sites.report import SiteCounts
    from plm.jobs.classify_sites.tables import SiteTables
    from plm.model.bundles.fine_tuned import FineTunedBundle
    from plm.scoring.operating_point import OperatingPoint

NAME = "plm_classify_sites"


class Arguments(flags.Reporting, flags.Hub, flags.Proteins, flags.Device):
    """The command line; see ``--help``."""

    input: Path = flags.source("whole proteins: FASTA, plain or gzipped", required=True)
    bundle: Path = flags.source("fine-tuned model of plm_finetune (zip), trained on a site task", required=True)
    model: str | None = flags.text(
        "the base model it was trained on: starter, folder, zip or hub:name (default: the built-in one)", None
    )
    residues: str = flags.text("candidate residues, e.g. Y or ST (default: those the bundle was trained on)")
    false_positive_rate: float | None = flags.share(
        None, "call so that at most this share (0-1) of validation negatives is called", 0.05
    )
    prevalence: float | None = flags.share(
        None, "share (0-1) of candidates that are real sites, to adjust probabilities to", 0.05
    )
    truth: Path | None = flags.source("table of known sites: accession, 1-based position and perhaps label")
    truth_otherwise: str = flags.text("class of unlisted candidates in proteins with a listed site")
    sites: Path = flags.output("table of every candidate (a predictions table)", required=True)
    gff: Path | None = flags.output("sites as GFF3 on the proteins")
    gff_sites: str = flags.choice(("called", "all"), "which sites the GFF3 has")
    figure: Path | None = flags.output("probabilities along the proteins (PNG)")
    tracks: int = flags.whole(12, "proteins in the figure at most", 1, 40)
    reasons: Path | None = flags.output("what each part of the predictor says of every called site (tabular)")
    mutagenesis: Path | None = flags.output("what each substitution around the strongest calls does (tabular)")
    mutagenesis_figure: Path | None = flags.output("the same as heat maps (PNG)")
    mutagenesis_calls: int = flags.whole(5, "calls whose surroundings are mutated at most, the strongest", 1, 20)
    logo: Path | None = flags.output("sequence logos of called against other sites (PNG)")
    reach: int = flags.whole(
        15, "residues on each side of a site in maps and logos, of bundles that see the whole protein", 1, 50
    )
    status: Path | None = flags.status()
    batch_tokens: int = flags.whole(8192, "residues encoded together; halved when memory runs out", 64, 10**7)

    def check(self) -> None:
        if self.truth_otherwise and self.truth is None:
            raise UserError("There is no list of real sites", where="--truth-otherwise", fix="Give one with --truth")


def run(argv: Sequence[str] | None) -> None:
    args = flags.read(Arguments, NAME, __doc__, argv)
    log = stage.log(NAME)
    stage.require({"torch": "2.6", "transformers": "5.2", "peft": "0.17", "safetensors": "0.5"})
    from plm.jobs.classify_sites import candidates
    from plm.jobs.classify_sites.explanations import Explanations
    from plm.jobs.classify_sites.report import SiteCounts
    from plm.jobs.classify_sites.scan import SiteScanner
    from plm.jobs.classify_sites.survey import SiteSurvey, announce, choose_point
    from plm.jobs.classify_sites.tables import read_truth
    from plm.model import device as devices
    from plm.model.bundles.fine_tuned import load_bundle

    device, precision = devices.settle(args.device, args.precision, stage.threads(), log)
    with tempfile.TemporaryDirectory(prefix="plm_") as scratch, stage.Outputs() as outputs, ExitStack() as opened:
        bundle = load_bundle(
            args.bundle, args.model, workdir=Path(scratch), device=args.device, precision=args.precision,
            allow_hub=args.allow_hub, level="site",
        )
        notes: list[str] = []
        trained = str(bundle.manifest.get("site_residues") or "")
        letters = candidates.choose_letters(trained, args.residues, args.bundle.name, notes)
        point = choose_point(bundle, args.false_positive_rate, args.prevalence, args.bundle.name, notes)
        truth = None if args.truth is None else read_truth(args.truth, bundle.task, args.truth_otherwise)
        survey = candidates.survey(args.input, letters, bundle.window, args.duplicate_ids, nucleotides=args.nucleotides)
        notes += [survey.warning] if survey.warning else []
        scanner = SiteScanner(bundle, args.batch_tokens, log, reasons=args.reasons is not None)
        announce(survey, scanner, letters, f"{device.type}, {precision}", log)
        for note in notes:
            log.warning("Note: %s", note)

        model = bundle.signature(args.bundle)
        tables = _open_tables(args, bundle, point, model, outputs, opened)
        counts = SiteCounts(bundle.task, args.tracks)
        explanations = Explanations.wanted(
            bundle.task, point, bundle.threshold, bundle.window, maps=bool(args.mutagenesis or args.mutagenesis_figure),
            calls=args.mutagenesis_calls, logo=args.logo is not None, reach=args.reach,
            reasons=_open_reasons(args, bundle, model, outputs, opened),
        )
        sites = SiteSurvey(args.input, args.nucleotides, letters, survey, scanner, tables, counts, explanations, truth)
        sites.run(args.batch_tokens, log)
        opened.close()
        if truth and (told := truth.account()):
            notes.append(told)
            log.warning("Note: %s", notes[-1])
        if scanner.segmented:
            notes.append(
                f"{scanner.segmented} proteins were too long for the memory and were seen in overlapping segments."
            )
        if not bundle.finished:
            notes.append("The bundle is unfinished: its training was stopped by its time limit.")
        explanations.mutate(scanner.ask, log)
        _finish(args, bundle, point, counts, explanations, letters, model, notes, outputs, log)


def _open_tables(
    args: Arguments, bundle: FineTunedBundle, point: OperatingPoint | None, model: str, outputs: stage.Outputs,
    opened: ExitStack,
) -> SiteTables:
    from plm.data.gff import GffWriter
    from plm.jobs.classify_sites.tables import SiteTables

    handles = [
        None if final is None else outputs.text(opened, final) for final in (args.sites, args.status, args.gff)
    ]
    gff = None if handles[2] is None else GffWriter(handles[2], NAME)
    finished = bundle.finished
    return SiteTables(bundle.task, point, model, finished, handles[0], handles[1], gff, args.gff_sites == "all")


def _open_reasons(
    args: Arguments, bundle: FineTunedBundle, model: str, outputs: stage.Outputs, opened: ExitStack
) -> CallReasons | None:
    from plm.jobs.classify_sites.call_reasons import CallReasons

    if args.reasons is None:
        return None
    return CallReasons.begin(bundle, model, outputs.text(opened, args.reasons))


def _finish(
    args: Arguments, bundle: FineTunedBundle, point: OperatingPoint | None, counts: SiteCounts,
    explanations: Explanations, letters: str, model: str, notes: list[str], outputs: stage.Outputs,
    log: stage.logging.Logger,
) -> None:
    """Figures, report and the last lines of the log."""
    from plm.jobs.classify_sites.figure import sites_figure
    from plm.jobs.classify_sites.report import first_line, height_name, site_report

    if args.figure:
        sites_figure(
            counts.tracks(), outputs.path(args.figure), proteins=counts.classified,
            height_name=height_name(bundle.task), threshold=None if point is None else point.threshold,
        )
    wanted = ("figure", "sites", "gff", "status", "reasons", "logo", "mutagenesis_figure", "mutagenesis")
    paths = {name: path for name in wanted if (path := getattr(args, name))}
    explanations.write(lambda name: outputs.path(paths[name]) if name in paths else None, model)
    if args.tells():
        report = site_report(
            counts, point, letters=letters, manifest=bundle.manifest, model=model, notes=notes, outputs=list(paths),
            explain=lambda report: explanations.report(report, list(paths)),
        )
        publish(report, args, outputs, NAME)
    log.info(
        "%d records: %d classified, %d without a candidate, %d rejected", counts.proteins, counts.classified,
        counts.without, counts.rejected,
    )
    log.info("%s.", first_line(counts, point, letters, bundle.finished))


if __name__ == "__main__":
    stage.main(NAME, run)
