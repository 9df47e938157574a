#!/usr/bin/env python3
"""Compare protein language models with a reference: what a smaller, distilled or newer one keeps, and what it costs.

Inputs: two or more models (the first is the reference), proteins that none was trained on (FASTA, table or dataset
table, perhaps with taxon domains and clusters), and any number of labelled datasets for linear probes.
Outputs: tables of masked perplexity and accuracy, of agreement with the reference (top-1, KL, CKA), of probes, of cost,
of every protein; box plots, a figure of the probes, and a report whose first line says what is kept.

Example:
    python plm_compare_models.py --model teacher=teacher.zip --model student=student.zip --input held_out.tabular \\
        --probe resistance=dataset.tabular --scores scores.tsv --report report.md
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plm import flags, stage
from plm.errors import UserError
from plm.outputs import write_lines
from plm.telling.page import publish

if TYPE_CHECKING:
    from plm.jobs.compare_models.report import ModelFindings

NAME = "plm_compare_models"
RESERVED = ("unigram", "composition")


class Arguments(flags.Reporting, flags.Device):
    """The command line; see ``--help``."""

    model: list[str] = flags.text(
        "a model and what to call it: starter, folder, zip or hub:name; repeat; the first is the reference", again=True,
        required=True, metavar="NAME=SOURCE",
    )
    allow_hub: bool = flags.switch("let --model NAME=hub:... use the network")
    input: Path | None = flags.source("proteins that no model was trained on: FASTA, CSV/TSV, dataset table or Parquet")
    domain_column: str = flags.text("column of taxon domains (default: domain, if there is one)")
    cluster_column: str = flags.text("column of clusters (default: cluster or group, else MMseqs2 makes them)")
    most_proteins: int = flags.whole(2000, "judge at most so many, drawn by their content (0: all)", 0, 10**7)
    identity: float = flags.like(
        flags.MaskedTraining, "identity", help="identity of relatives (0-1) where clusters must be found"
    )
    mask_rate: float = flags.like(flags.MaskedRates, "mask_rate")
    sets: int = flags.whole(1, "sets of masks; each is a pass over the proteins", 1, 100)
    mask_seed: int = flags.seed("of the masks, which else depend on each sequence alone")
    max_length: int = flags.whole(1022, "longer proteins are masked in a stretch of so many residues", 8, 10**5)
    probe: list[str] = flags.text(
        "labelled dataset table for a linear probe, with split or fold (else folds are made); repeat", again=True,
        metavar="NAME=DATASET",
    )
    probes: Path | None = flags.output("table of the probes")
    probe_figure: Path | None = flags.output("scores of the probes (PNG)")
    resamples: int = flags.resamples("of clusters, for intervals")
    turns: int = flags.whole(3, "rounds in which each model is timed (0: no measurement of cost)", 0, 1000)
    timed_residues: int = flags.whole(20_000, "residues that each model encodes in a round", 100, 10**8)
    cost: Path | None = flags.output("table of parameters, speed and memory")
    scores: Path | None = flags.output("table of masked perplexity and accuracy")
    agreement: Path | None = flags.output("table of agreement with the reference, CKA included")
    proteins: Path | None = flags.output("table of every protein")
    figure: Path | None = flags.output("box plots of proteins (PNG)")
    seed: int = flags.seed("of folds, samples and resamples")

    def check(self) -> None:
        if not self.input and not self.probe:
            raise UserError("There is nothing to judge the models on", fix="Give proteins (--input) or a --probe")
        for flag, given in (("--model", self.model), ("--probe", self.probe)):
            names = [name for name, _ in (named(flag, text) for text in given)]
            again = next((name for name in names if names.count(name) > 1), None)
            if again:
                raise UserError(f"The name {again!r} is used twice", where=flag, fix="Give each its own name")
        for name, _ in self.models:
            if name in RESERVED or name.startswith(("baseline", "one-hot")):
                raise UserError(f"{name!r} is the name of a baseline", where="--model", fix="Choose another name")
        for needed, what, outputs in (
            (self.input, "--input", ("scores", "figure", "proteins", "agreement")),
            (self.probe, "--probe", ("probes", "probe_figure")),
            (self.turns, "--turns", ("cost",)),
        ):
            for name in outputs:
                path = getattr(self, name)
                if path and not needed:
                    told = f"There is nothing to write to {path.name} without {what}"
                    raise UserError(told, where=flags.spelled(name), fix=f"Add {what}, or leave the output out")

    @property
    def models(self) -> list[tuple[str, str]]:
        """Name and source of each."""
        return [named("--model", text) for text in self.model]

    @property
    def datasets(self) -> list[tuple[str, Path]]:
        """Name and dataset of each probe."""
        return [(name, Path(path)) for name, path in (named("--probe", text) for text in self.probe)]


def named(flag: str, text: str) -> tuple[str, str]:
    """Splits ``NAME=PATH``."""
    name, mark, path = text.partition("=")
    if not mark or not path or not re.fullmatch(r"[\w.+ -]{1,60}", name) or name != name.strip():
        raise UserError(
            f"{text!r} is not NAME=PATH", where=flag,
            fix="Give a name of letters, digits, blanks and _ . + - and where it is",
        )
    return name, path


def run(argv: Sequence[str] | None) -> None:
    args = flags.read(Arguments, NAME, __doc__, argv)
    log = stage.log(NAME)
    stage.require({"torch": "2.6", "transformers": "5.2", "safetensors": "0.5", "scikit-learn": "1.5"})
    from plm.jobs.compare_models import report as reports
    from plm.model import device as devices

    device, precision = devices.settle(args.device, args.precision, stage.threads(), log)
    with tempfile.TemporaryDirectory(prefix="plm_") as scratch:
        findings = compare(args, log, Path(scratch), device, precision)
    tables = ("scores", "agreement", "proteins", "probes", "cost")
    figures = {"figure": reports.boxes, "probe_figure": reports.dots}
    shown = [name for name in (*tables, *figures) if getattr(args, name)]
    with stage.Outputs() as outputs:
        for name in shown:
            path = outputs.path(getattr(args, name))
            if name in figures:
                figures[name](findings, path)
            else:
                write_lines(path, getattr(reports, f"{name}_table")(findings))
        if args.tells():
            publish(reports.report(findings, shown), args, outputs, NAME)
    for line in [*findings.notes, *reports.first_lines(findings)]:
        log.info("%s", line)


def compare(args: Arguments, log: Any, workdir: Path, device: Any, precision: str) -> ModelFindings:
    """Reads everything, then puts every question to one model after the other, then times them."""
    from plm.jobs.compare_models import job
    from plm.jobs.compare_models.held_out import read_held_out
    from plm.jobs.compare_models.probes import read_probe
    from plm.jobs.compare_models.report import ModelFindings
    from plm.model.checkpoint import resolve_model

    threads = stage.threads()
    sources = [
        (name, resolve_model(source, workdir=workdir / f"model{number}", allow_hub=args.allow_hub))
        for number, (name, source) in enumerate(args.models)
    ]
    findings = ModelFindings([name for name, _ in sources])
    probes = [read_probe(name, path, seed=args.seed, threads=threads) for name, path in args.datasets]
    for probe in probes:
        log.info(
            "Probe %s: %s level, %d training and %d judged rows; %s", probe.name, probe.task.level, probe.learned,
            len(probe.judged), probe.split,
        )
    if args.input:
        findings.held = read_held_out(
            args.input, domain_column=args.domain_column, cluster_column=args.cluster_column, most=args.most_proteins,
            identity=args.identity, threads=threads,
        )
        log.info("%s; clusters: %s", findings.held.account, findings.held.origin)
    masks = job.Masks(args.mask_rate, args.sets, args.mask_seed, args.max_length)
    comparison = job.ModelComparison(findings, probes, masks, resamples=args.resamples, seed=args.seed)
    log.info("Plan: %d models, %d residues for each", len(sources), comparison.residues)
    for name, files in sources:
        progress = stage.Progress(log, comparison.residues, "residues", every=10.0)
        comparison.put_to(name, files, device=device, precision=precision, advance=progress.advance)
        log.info("%s: done", name)
    comparison.finish()
    if args.turns:
        findings.costs = job.measure_costs(
            findings, sources, [probe.sequences for probe in probes], residues=args.timed_residues, turns=args.turns,
            threads=threads, device=str(device), precision=precision, told=log.info,
        )
    return findings


if __name__ == "__main__":
    stage.main(NAME, run)
