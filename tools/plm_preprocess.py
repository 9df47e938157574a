"""Labelled sequences -> a dataset table that is split without leakage.

Reads FASTA or a table, cleans sequences, finds labels and sites, cuts windows, splits by protein, group or homology,
and
measures what validation and test rows share with training rows. Every record that was rejected, left out or changed is
listed.

    plm_preprocess.py --input windows.fasta --task site --labels LABEL= --split homology \\
        --dataset dataset.tsv --rejected rejected.tsv --leakage leakage.tsv --report report.md
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plm import flags, stage
from plm.errors import UserError
from plm.telling.page import publish

NAME = "plm_preprocess"


def fraction(default: float | None, told: str | None = None) -> Any:
    """The flag of a number from 0 to 1."""
    return flags.number(default, told, 0, 1)


class Arguments(flags.Reporting):
    """The command line; see ``--help``."""

    input: Path = flags.source(None, required=True)
    dataset: Path = flags.output(None, required=True)
    rejected: Path = flags.output(None, required=True)
    leakage: Path = flags.output(None, required=True)
    report: Path = flags.output(None, required=True)
    figure: Path | None = flags.output("picture (PNG): classes in each split, identity to training")
    test: Path | None = flags.source("published test set, kept as it is; validation is carved out of --input")
    negatives_file: Path | None = flags.source("with --labels file: the records of class 0")
    format: str = flags.choice(("auto", "fasta", "table"), None)
    id_column: str = flags.text(None)
    sequence_column: str = flags.text(None)
    task: str = flags.choice(("sequence", "residue", "site"), None)
    target: str = flags.choice(
        ("auto", "class", "number"),
        "whether labels are classes or numbers (auto: few whole numbers are classes, other numbers are numbers)",
    )
    labels: str = flags.text(
        "KEY=, field:N (between |) or field:N:SEPARATOR, regex:PATTERN, column:NAME, hash, file or none", "LABEL="
    )
    otherwise: str = flags.text("class of records in which the rule finds nothing (else they are rejected)")
    site: str = flags.text("where the site is: centre, or column:NAME with 1-based positions", "centre")
    sites: Path | None = flags.source("site list (accession, 1-based position, perhaps label) for full proteins")
    sites_accession: str = flags.text(None)
    sites_position: str = flags.text(None)
    sites_label: str = flags.text(None)
    negative_sites: Path | None = flags.source("second site list, of class 0")
    unlisted: str = flags.choice(
        ("auto", "ignore", "negative"),
        "other residues of the sites' letters (auto: negative unless a list has two classes)",
    )
    site_residues: str = flags.text("letters a site may be, for example Y or ST (default: those seen)")
    window: int | None = flags.whole(None, "residues around a site (odd); 0 = whole protein")
    ratio: float = flags.number(0.0, "negatives for each positive site; 0 = all", 0)
    protein: str = flags.text("auto, uniprot, word or a rule as for --labels", "auto")
    protein_position: str = flags.text("auto (%%start%%site), none, column:NAME, field:N, regex:PATTERN", "auto")
    unusual: str = flags.choice(("x", "reject"), "U, Z, O, B, J and other letters")
    gaps: str = flags.choice(("remove", "reject"), None)
    stops: str = flags.choice(("reject", "x"), "'*' inside a sequence")
    lower: str = flags.choice(("upper", "x", "reject"), "lower-case residues")
    nucleotides: str = flags.like(flags.Proteins, "nucleotides")
    min_length: int = flags.whole(1, None, 0)
    max_length: int = flags.whole(0, "0 = no limit", 0)
    duplicate_ids: str = flags.duplicate_ids(None)
    duplicate_sequences: str = flags.choice(("first", "keep"), None)
    conflicting_labels: str = flags.choice(("drop", "error", "keep"), None)
    cap: int = flags.whole(0, "most records of one class, drawn with --seed; 0 = no cap", 0)
    split: str = flags.choice(("none", "given", "random", "group", "protein", "homology"), None, "homology")
    split_from: str = flags.text("with --split given: a rule as for --labels", "column:split")
    group: str = flags.text("with --split group: a rule as for --labels")
    valid_fraction: float = fraction(0.15)
    test_fraction: float = fraction(0.25)
    folds: int = flags.whole(0, "cross-validation folds instead of train, valid and test", 2, or_zero=True)
    identity: float | None = fraction(None, "0-1; relatives at least this alike (default 0.3, for windows 0.5)")
    coverage: float = fraction(0.8, "0-1; part of the shorter protein that is aligned")
    seed: int = flags.seed(None)
    fail_on_leakage: bool = flags.switch(None)

    def check(self) -> None:
        if self.window is not None:
            from plm.data.windows import check_width

            try:
                check_width(self.window)
            except ValueError as error:
                raise UserError(f"--window {self.window}: {error}", fix="Give e.g. 21") from error
        if self.valid_fraction + (0 if self.test else self.test_fraction) >= 1:
            raise UserError(
                "--valid-fraction and --test-fraction leave nothing to train on",
                fix="Make the two shares less than 1 together",
            )
        if self.test and (self.folds or self.split == "given"):
            raise UserError("--test cannot be combined with --folds or --split given", fix="Leave one of them out")
        if self.split == "group" and not self.group:
            raise UserError(
                "--split group needs --group, for example column:family", fix="Add it, or choose another split"
            )
        if self.otherwise and (self.sites or self.labels in ("hash", "file", "none")):
            raise UserError("--otherwise is for labels in headers or columns", fix="For sites choose with --unlisted")
        if (self.labels == "file") != (self.negatives_file is not None):
            raise UserError("--labels file and --negatives-file go together", fix="Give both or neither")
        if self.task != "site" and (self.labels == "hash" or self.sites or self.negative_sites):
            raise UserError("Marked or listed sites need --task site", fix="Choose the task site")
        if self.sites and self.labels == "hash":
            raise UserError("--sites and --labels hash exclude each other", fix="Leave one of them out")
        if self.negative_sites and not self.sites:
            raise UserError("--negative-sites needs --sites", fix="Add the list of positive sites")
        if not re.fullmatch("[A-Z]*", self.site_residues):
            raise UserError(
                f"--site-residues {self.site_residues!r} must be capital letters, for example ST", fix="Give e.g. ST"
            )


def run(argv: Sequence[str] | None) -> None:
    args = flags.read(Arguments, NAME, __doc__, argv)
    stage.require({"numpy": "2.0", "pandas": "2.1", "biopython": "1.80", "matplotlib": "3.8"})
    log = stage.log(NAME)
    from plm.data import examples, leakage
    from plm.data.dataset_table import infer_task, write_dataset
    from plm.data.tables import write_table
    from plm.jobs.preprocess import labelling, splitting
    from plm.jobs.preprocess.report import SplitAccount

    journal = examples.Journal()
    how = args.into(labelling.LabellingSettings)
    records = labelling.read(how, journal)
    log.info("%d records read", len(records))
    made, width = labelling.make_examples(how, records, journal, log)
    made, target = labelling.settle_labels(how, made, {record.id: record.line for record in records}, journal, log)
    made = labelling.select(how, made, journal)
    if not made:
        first = next((entry for entry in journal.entries if entry[1] != "changed"), ("", "", "no record"))
        raise UserError(
            f"No record is left of {len(records)}; the first went because: {first[2]}", where=first[0],
            fix="Check the input and the rules for labels, sites and lengths",
        )
    parting = args.into(splitting.SplittingSettings, published=args.test is not None, threads=stage.threads())
    made, method, pairs = splitting.split(parting, made, {record.id: record for record in records}, target, journal)
    frame = examples.to_frame(made, width if args.task == "site" else None)
    if how.labelled:
        # One class only, broken labels: said here, not in training.
        infer_task(frame, args.task, target, name=args.input.name)
        if infer_task(frame, args.task, name=args.input.name).target != target:
            kind = "numbers" if target == "number" else "classes"
            log.warning(
                "Choose %s as the target in training, too: by itself it would take these labels otherwise", kind
            )
    leaks = leakage.measure(
        made, identity=args.identity, coverage=args.coverage, threads=stage.threads(),
        method="mmseqs" if method == "cascade" else method, pairs=pairs,
    )
    near = width or 33
    account = SplitAccount(len(records), made, journal, leaks, near, method, args)
    for line in account.lines():
        log.info("%s", line)
    if args.fail_on_leakage and any(leak.leaks for leak in leaks):
        raise UserError(
            f"Leakage: {account.verdict()}", where="--fail-on-leakage",
            fix="Split by homology, or remove these records from the test set",
        )
    with stage.Outputs() as out:
        write_dataset(frame, out.path(args.dataset))
        write_table(journal.frame(), out.path(args.rejected))
        write_table(leakage.to_frame(leaks, near), out.path(args.leakage))
        if args.figure is not None:
            account.draw(out.path(args.figure))
        publish(account.report(), args, out, NAME)


if __name__ == "__main__":
    stage.main(NAME, run)
