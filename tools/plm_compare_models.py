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
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plm import stage
from plm.errors import UserError

if TYPE_CHECKING:
    from plm.jobs.compare_models.report import Findings

NAME = "plm_compare_models"
RESERVED = ("unigram", "composition")


@dataclass(frozen=True)
class Arguments:
    """The command line; see ``--help``."""

    model: list[str]
    allow_hub: bool
    input: Path | None
    domain_column: str
    cluster_column: str
    most_proteins: int
    identity: float
    mask_rate: float
    sets: int
    mask_seed: int
    max_length: int
    probe: list[str]
    resamples: int
    turns: int
    timed_residues: int
    scores: Path | None
    agreement: Path | None
    proteins: Path | None
    probes: Path | None
    cost: Path | None
    figure: Path | None
    probe_figure: Path | None
    report: Path | None
    device: str
    precision: str
    seed: int

    def __post_init__(self) -> None:
        for flag, value, low, high in (
            ("--most-proteins", self.most_proteins, 0, 10**7), ("--identity", self.identity, 0.2, 1.0),
            ("--mask-rate", self.mask_rate, 0.01, 0.9), ("--sets", self.sets, 1, 100),
            ("--mask-seed", self.mask_seed, 0, 2**32 - 1), ("--max-length", self.max_length, 8, 10**5),
            ("--resamples", self.resamples, 100, 100_000), ("--turns", self.turns, 0, 1000),
            ("--timed-residues", self.timed_residues, 100, 10**8), ("--seed", self.seed, 0, 2**32 - 1),
        ):  # fmt: skip
            if not low <= value <= high:
                raise UserError(f"{value:g} is out of range", where=flag, fix=f"Choose {low:g} to {high:g}")
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
        for flag, path, needed, what in (
            ("--scores", self.scores, self.input, "--input"), ("--figure", self.figure, self.input, "--input"),
            ("--proteins", self.proteins, self.input, "--input"), ("--probes", self.probes, self.probe, "--probe"),
            ("--agreement", self.agreement, self.input, "--input"), ("--cost", self.cost, self.turns, "--turns"),
            ("--probe-figure", self.probe_figure, self.probe, "--probe"),
        ):  # fmt: skip
            if path and not needed:
                raise UserError(f"There is nothing to write to {path.name} without {what}", where=flag)

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
        raise UserError(f"{text!r} is not NAME=PATH", where=flag,
                        fix="Give a name of letters, digits, blanks and _ . + - and where it is")  # fmt: skip
    return name, path


def parse(argv: Sequence[str] | None) -> Arguments:
    parser = stage.parser(NAME, __doc__ or "")
    add = parser.add_argument
    add(
        "--model",
        action="append",
        required=True,
        metavar="NAME=SOURCE",
        help="a model and what to call it: starter, folder, zip or hub:name; repeat; the first is the reference",
    )
    add("--allow-hub", action="store_true", help="let --model NAME=hub:... use the network")
    add("--input", type=Path, help="proteins that no model was trained on: FASTA, CSV/TSV, dataset table or Parquet")
    add("--domain-column", default="", help="column of taxon domains (default: domain, if there is one)")
    add("--cluster-column", default="", help="column of clusters (default: cluster or group, else MMseqs2 makes them)")
    add("--most-proteins", type=int, default=2000, help="judge at most so many, drawn by their content (0: all)")
    add("--identity", type=float, default=0.3, help="identity of relatives (0-1) where clusters must be found")
    add("--mask-rate", type=float, default=0.15, help="share of residues to predict")
    add("--sets", type=int, default=1, help="sets of masks; each is a pass over the proteins")
    add("--mask-seed", type=int, default=42, help="of the masks, which else depend on each sequence alone")
    add("--max-length", type=int, default=1022, help="longer proteins are masked in a stretch of so many residues")
    add(
        "--probe",
        action="append",
        default=[],
        metavar="NAME=DATASET",
        help="labelled dataset table for a linear probe, with split or fold (else folds are made); repeat",
    )
    add("--resamples", type=int, default=1000, help="of clusters, for intervals")
    add("--turns", type=int, default=3, help="rounds in which each model is timed (0: no measurement of cost)")
    add("--timed-residues", type=int, default=20_000, help="residues that each model encodes in a round")
    add("--scores", type=stage.output_file, help="table of masked perplexity and accuracy")
    add("--agreement", type=stage.output_file, help="table of agreement with the reference, CKA included")
    add("--proteins", type=stage.output_file, help="table of every protein")
    add("--probes", type=stage.output_file, help="table of the probes")
    add("--cost", type=stage.output_file, help="table of parameters, speed and memory")
    add("--figure", type=stage.output_file, help="box plots of proteins (PNG)")
    add("--probe-figure", type=stage.output_file, help="scores of the probes (PNG)")
    add("--report", type=stage.output_file, help="report in Galaxy's markdown")
    add("--device", default="auto", help="auto, cpu or cuda")
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="arithmetic of matrix products")
    add("--seed", type=int, default=42, help="of folds, samples and resamples")
    return Arguments(**vars(parser.parse_args(argv)))


def run(argv: Sequence[str] | None) -> None:
    args = parse(argv)
    log = stage.log(NAME)
    stage.require({"torch": "2.6", "transformers": "5.2", "safetensors": "0.5", "scikit-learn": "1.5"})
    from plm.jobs.compare_models import report as reports
    from plm.model import device as devices

    devices.use_threads(stage.threads())
    device = devices.choose_device(args.device)
    precision = devices.choose_precision(args.precision, device)
    devices.announce(log, device, precision)
    with tempfile.TemporaryDirectory(prefix="plm_") as scratch:
        found = compare(args, log, Path(scratch), device, precision)
    tables = ("scores", "agreement", "proteins", "probes", "cost")
    figures = {"figure": reports.boxes, "probe_figure": reports.dots}
    shown = [name for name in (*tables, *figures) if getattr(args, name)]
    with stage.Outputs() as outputs:
        for name in shown:
            path = outputs.path(getattr(args, name))
            if name in figures:
                figures[name](found, path)
            else:
                write(path, getattr(reports, f"{name}_table")(found))
        if args.report:
            reports.report(found, shown).write(outputs.path(args.report))
    for line in [*found.notes, *reports.first_lines(found)]:
        log.info("%s", line)


def compare(args: Arguments, log: Any, workdir: Path, device: Any, precision: str) -> Findings:
    """Reads everything, then puts every question to one model after the other, then times them."""
    from plm.jobs.compare_models import job
    from plm.jobs.compare_models.held_out import read_held_out
    from plm.jobs.compare_models.probes import read_probe
    from plm.jobs.compare_models.report import Findings
    from plm.model.checkpoint import resolve_model

    threads = stage.threads()
    sources = [
        (name, resolve_model(source, workdir=workdir / f"model{number}", allow_hub=args.allow_hub))
        for number, (name, source) in enumerate(args.models)
    ]
    found = Findings([name for name, _ in sources])
    probes = [read_probe(name, path, seed=args.seed, threads=threads) for name, path in args.datasets]
    for probe in probes:
        log.info("Probe %s: %s level, %d training and %d judged rows; %s", probe.name, probe.task.level, probe.learned,
                 len(probe.judged), probe.split)  # fmt: skip
    if args.input:
        found.held = read_held_out(
            args.input, domain_column=args.domain_column, cluster_column=args.cluster_column,
            most=args.most_proteins, identity=args.identity, threads=threads,
        )  # fmt: skip
        log.info("%s; clusters: %s", found.held.account, found.held.origin)
    masks = job.Masks(args.mask_rate, args.sets, args.mask_seed, args.max_length)
    comparison = job.Comparison(found, probes, masks, resamples=args.resamples, seed=args.seed)
    log.info("Plan: %d models, %d residues for each", len(sources), comparison.residues)
    for name, files in sources:
        progress = stage.Progress(log, comparison.residues, "residues", every=10.0)
        comparison.put_to(name, files, device=device, precision=precision, advance=progress.advance)
        log.info("%s: done", name)
    comparison.finish()
    if args.turns:
        found.costs = job.measure_costs(
            found, sources, [probe.sequences for probe in probes], residues=args.timed_residues, turns=args.turns,
            threads=threads, device=str(device), precision=precision, told=log.info,
        )  # fmt: skip
    return found


def write(path: Path, lines: Iterable[str]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as handle:
        handle.writelines(f"{line}\n" for line in lines)


def main() -> None:
    stage.main(NAME, run, sys.argv[1:])


if __name__ == "__main__":
    main()
