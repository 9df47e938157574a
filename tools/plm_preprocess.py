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
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from plm import flags, stage
from plm.data import examples as policies
from plm.data import homology, leakage, sites, splits
from plm.data.examples import Example, Journal
from plm.data.fasta import CleaningRule, ProteinRecord
from plm.data.header_rules import Rule, parse_rule, without_isoform
from plm.data.tables import read_table, write_table
from plm.data.windows import check_width
from plm.errors import UserError
from plm.jobs.preprocess.records import read_records, with_unique_ids

NAME = "plm_preprocess"
SPLIT_NAMES = {"training": "train", "validation": "valid", "val": "valid", "dev": "valid", "testing": "test"}


def fraction(default: float | None, told: str | None = None) -> Any:
    """The flag of a number from 0 to 1."""
    return flags.number(default, told, 0, 1)


class Arguments(flags.Flags):
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
            try:
                check_width(self.window)
            except ValueError as error:
                raise UserError(f"--window {self.window}: {error}") from error
        if self.valid_fraction + (0 if self.test else self.test_fraction) >= 1:
            raise UserError("--valid-fraction and --test-fraction leave nothing to train on")
        if self.test and (self.folds or self.split == "given"):
            raise UserError("--test cannot be combined with --folds or --split given")
        if self.split == "group" and not self.group:
            raise UserError("--split group needs --group, for example column:family")
        if self.otherwise and (self.sites or self.labels in ("hash", "file", "none")):
            raise UserError("--otherwise is for labels in headers or columns", fix="For sites choose with --unlisted")
        if (self.labels == "file") != (self.negatives_file is not None):
            raise UserError("--labels file and --negatives-file go together")
        if self.task != "site" and (self.labels == "hash" or self.sites or self.negative_sites):
            raise UserError("Marked or listed sites need --task site")
        if self.sites and self.labels == "hash":
            raise UserError("--sites and --labels hash exclude each other")
        if self.negative_sites and not self.sites:
            raise UserError("--negative-sites needs --sites")
        if not re.fullmatch("[A-Z]*", self.site_residues):
            raise UserError(f"--site-residues {self.site_residues!r} must be capital letters, for example ST")

    @property
    def rule(self) -> Rule:
        """The label rule; a site list brings its own labels."""
        return parse_rule("none" if self.sites else self.labels, "--labels")

    @property
    def seeks_sites(self) -> bool:
        """Whether sites are looked up in full proteins (marks or list), not given one a record."""
        return self.task == "site" and (self.sites is not None or self.labels == "hash")


def run(argv: Sequence[str] | None) -> None:
    args = flags.read(Arguments, NAME, __doc__, argv)
    stage.require({"numpy": "2.0", "pandas": "2.1", "biopython": "1.80", "matplotlib": "3.8"})
    log = stage.log(NAME)
    journal = Journal()
    names = " and ".join(path.name for path in (args.input, args.negatives_file, args.test) if path is not None)
    records = with_unique_ids(_read(args), args.duplicate_ids, names, journal)
    log.info("%d records read", len(records))
    made, width = _examples(args, records, journal)
    made, target = _settle_labels(args, made, {record.id: record.line for record in records}, journal)
    made = _select(args, made, journal)
    if not made:
        first = next((entry for entry in journal.entries if entry[1] != "changed"), ("", "", "no record"))
        raise UserError(
            f"No record is left of {len(records)}; the first went because: {first[2]}",
            where=first[0],
            fix="Check the input and the rules for labels, sites and lengths",
        )
    made, method, pairs = _split(args, made, {record.id: record for record in records}, target, journal)
    from plm.data.dataset_table import infer_task, write_dataset
    from plm.jobs.preprocess import report as split_report

    frame = policies.to_frame(made, width if args.task == "site" else None)
    if args.rule.kind != "none" or args.sites:
        # One class only, broken labels: said here, not in training.
        infer_task(frame, args.task, target, name=args.input.name)
        if infer_task(frame, args.task, name=args.input.name).target != target:
            log.warning("Choose %s as the target in training, too: by itself it would take these labels otherwise",
                        "numbers" if target == "number" else "classes")  # fmt: skip
    leaks = leakage.measure(
        made, identity=args.identity, coverage=args.coverage, threads=stage.threads(),
        method="mmseqs" if method == "cascade" else method, pairs=pairs,
    )  # fmt: skip
    near = width or 33
    account = split_report.SplitAccount(len(records), made, journal, leaks, near, method, args)
    for line in account.lines():
        log.info("%s", line)
    if args.fail_on_leakage and any(leak.leaks for leak in leaks):
        raise UserError(
            f"Leakage: {account.verdict()}",
            where="--fail-on-leakage",
            fix="Split by homology, or remove these records from the test set",
        )
    with stage.Outputs() as out:
        write_dataset(frame, out.path(args.dataset))
        write_table(journal.frame(), out.path(args.rejected))
        write_table(leakage.to_frame(leaks, near), out.path(args.leakage))
        if args.figure is not None:
            account.draw(out.path(args.figure))
        out.path(args.report).write_text(account.report(), encoding="utf-8")


def _read(args: Arguments) -> list[ProteinRecord]:
    def read(path: Path, from_test_file: bool = False) -> list[ProteinRecord]:
        return read_records(path, args.format, args.id_column, args.sequence_column, from_test_file, args.nucleotides)

    records = read(args.input)
    if args.negatives_file is not None:
        records = [replace(record, columns={**record.columns, "class": "1"}) for record in records]
        records += [replace(one, columns={**one.columns, "class": "0"}) for one in read(args.negatives_file)]
    return records + (read(args.test, True) if args.test is not None else [])


def _examples(args: Arguments, records: Sequence[ProteinRecord], journal: Journal) -> tuple[list[Example], int]:
    cleaning = CleaningRule(args.unusual, args.gaps, args.stops, args.lower, args.nucleotides)
    rule = parse_rule("column:class", "--labels") if args.labels == "file" else args.rule
    made = sites.sources(records, cleaning, rule, args.otherwise, args.protein, journal)
    doubtful = sum(any("looks like nucleotides" in change for change in one.cleaned.changes) for one in made)
    if doubtful:
        stage.log(NAME).warning("Note: %d records look like nucleotides and are kept: look at them", doubtful)
    width = args.window or 0
    if args.task != "site":
        return sites.whole_sequences(made, journal, residues=args.task == "residue"), 0
    unlisted = args.unlisted == "negative" or (args.unlisted == "auto" and args.labels == "hash")
    if args.sites is not None:
        columns = (args.sites_accession, args.sites_position, args.sites_label)
        listed = sites.read_listings(read_table(args.sites, header=None), columns, sites.POSITIVE, "--sites")
        if args.negative_sites is not None:
            table = read_table(args.negative_sites, header=None)
            listed += sites.read_listings(table, (*columns[:2], ""), sites.NEGATIVE, "--negative-sites")
        unlisted = unlisted or (args.unlisted == "auto" and len({listing.label for listing in listed}) == 1)
        return sites.listed(made, listed, width, args.site_residues, unlisted, journal), width
    if args.labels == "hash":
        return sites.marked(made, width, args.site_residues, unlisted, journal), width
    if args.site == "centre":
        return sites.centred(made, args.window, args.site_residues, args.protein_position, journal)
    column = args.site.removeprefix("column:")
    return sites.positioned(made, column, args.window, args.site_residues, args.protein_position, journal)


def _settle_labels(
    args: Arguments, made: list[Example], lines: Mapping[str, int], journal: Journal
) -> tuple[list[Example], str]:
    """Gives labels the form that all stages read, leaves unlabelled examples out, and says what was understood.

    Returns:
        The labelled examples and ``class`` or ``number``; all of them and ``class`` where nothing has labels.
    """
    if not made or (args.rule.kind == "none" and not args.sites):
        return made, "class"
    from plm.data.dataset_table import told_missing, understand_labels

    log = stage.log(NAME)

    def where(row: int) -> str:
        source = made[row].source
        line = f"line {lines[source]}, " if lines.get(source) else ""
        return f"{args.input.name}, {line}id {made[row].id!r}"

    try:
        found = understand_labels(
            [one.label for one in made], [one.sequence for one in made], args.task, args.target, where, args.input.name
        )
    except UserError as error:
        none = sum("says that there is none" in reason for _, _, reason in journal.entries)
        if none and "one class only" in error.what:
            raise UserError(error.what, where=error.where, fix=error.fix + told_missing(none)) from None
        raise
    log.info("Task: %s", found.why)
    for note in found.notes:
        log.warning("Note: %s", note)
    kept = []
    for example, label in zip(made, found.labels, strict=True):
        if not label:
            journal.left_out(example.id, f"no label: {example.label[:40]!r} says that there is none")
            continue
        if label != example.label and args.task != "residue":
            journal.changed(example.id, f"label {example.label!r} read as {label!r}")
        example.label = label
        kept.append(example)
    return kept, found.task.target


def _select(args: Arguments, made: Sequence[Example], journal: Journal) -> list[Example]:
    """Applies the policies; a test set of the user's own is only checked for length.

    Names come first: the policies know examples by them, and two records of one accession make sites of one name.
    """
    made = policies.with_unique_names(made, journal)
    kept = policies.by_length(made, args.min_length, args.max_length, journal)
    test = [example for example in kept if example.from_test_file]
    kept = [example for example in kept if not example.from_test_file]
    kept = policies.without_conflicts(kept, args.conflicting_labels, journal)
    kept = policies.without_duplicates(kept, args.duplicate_sequences, journal)
    if args.seeks_sites:
        kept = policies.thinned_negatives(kept, sites.NEGATIVE, args.ratio, args.seed, journal)
    return policies.capped(kept, args.cap, args.seed, journal) + test


def _split(
    args: Arguments, made: list[Example], records: dict[str, ProteinRecord], target: str, journal: Journal
) -> tuple[list[Example], str, list[homology.Relative] | None]:
    """Gives every example its group, cluster and split; returns the method and known relatives too."""
    pairs: list[homology.Relative] | None = None
    sequences = [example.whole or example.sequence for example in made]
    method = homology.choose_method(sequences)
    for example in made:
        example.group = without_isoform(example.protein)
    if args.split == "group":
        _own_groups(args, made, records, journal)
    if args.split == "homology":
        clusters, pairs = _clusters(args, list(dict.fromkeys(sequences)), method)
        for example, sequence in zip(made, sequences, strict=True):
            example.cluster = clusters[sequence]
        joint = splits.joined_groups([one.group for one in made], [one.cluster for one in made])
        for example, group in zip(made, joint, strict=True):
            example.group = group
    free = [example for example in made if not example.from_test_file]
    for example in made:
        example.split = "test" if example.from_test_file else "train"
    if args.split == "given":
        rule = parse_rule(args.split_from, "--split-from")
        for example in made:
            example.split = _given_split(rule.find(_origin(example, records)), example.id)
    elif args.split != "none":
        held = 0.0 if args.test else args.test_fraction
        parts = ["train", "valid", "test"]
        fractions = [1 - args.valid_fraction - held, args.valid_fraction, held]
        if args.folds:
            parts, fractions = [str(fold + 1) for fold in range(args.folds)], [1 / args.folds] * args.folds
        groups = [one.id for one in free] if args.split == "random" else [one.group for one in free]
        # Fifths of numbers are small bins: 25 times the weight makes parts as large as asked for.
        weight = 25.0 if target == "number" and args.task != "residue" else 1.0
        places = splits.assign(groups, strata(args, free, target), fractions, args.seed, weight)
        for example, part in zip(free, places, strict=True):
            example.split = parts[part]
    elif not args.test:
        for example in made:
            example.split = ""
    # Fast clusters are for many sequences; without clusters only the search of the leakage report counts.
    return made, "mmseqs" if method == "cascade" and args.split != "homology" else method, pairs


def _own_groups(args: Arguments, made: Sequence[Example], records: dict[str, ProteinRecord], journal: Journal) -> None:
    """Groups by the user's rule; where it finds none the protein stands for the group, and the journal says so."""
    rule = parse_rule(args.group, "--group")
    found = {example.id: rule.find(_origin(example, records)) for example in made}
    if not any(found.values()):
        raise UserError(
            f"No group found: the {rule.in_words} matches none of {len(made)} records; the first header is "
            f"{_origin(made[0], records).header[:80]!r}",
            where=f"--group {args.group}",
            fix="Choose the rule that fits these headers, or split by protein or homology",
        )
    for example in made:
        group = found[example.id]
        if group is None:
            journal.changed(example.id, f"no group: the {rule.in_words} finds nothing, so its protein stands for it")
        example.group = group or example.group


def _clusters(
    args: Arguments, distinct: list[str], method: str
) -> tuple[dict[str, str], list[homology.Relative] | None]:
    """Cluster of every distinct sequence, and the relatives at any identity if a search for all of them was made."""
    pairs: list[homology.Relative] | None = None
    named = [(str(number), sequence) for number, sequence in enumerate(distinct)]
    coverage, threads = args.coverage, stage.threads()
    if method == "mmseqs":
        pairs = homology.relatives(distinct, identity=0.0, coverage=coverage, threads=threads, method=method)
        limit = homology.default_identity(method, args.identity)
        links = ((pair.first, pair.second) for pair in pairs if pair.identity >= limit - 1e-9)
        roots = [str(root) for root in homology.components(len(distinct), links)]
    else:
        roots = list(
            homology.cluster(named, identity=args.identity, coverage=coverage, threads=threads, method=method).values()
        )
    names: dict[str, str] = {}
    return {
        sequence: names.setdefault(root, f"cluster{len(names) + 1}")
        for sequence, root in zip(distinct, roots, strict=True)
    }, pairs


def strata(args: Arguments, made: Sequence[Example], target: str) -> list[str]:
    """Classes to balance: the labels, fifths of their range for numbers, none for residue labels."""
    if args.task == "residue":
        return [""] * len(made)
    labels = [example.label for example in made]
    return splits.quantile_strata([float(label) for label in labels]) if target == "number" else labels


def _origin(example: Example, records: dict[str, ProteinRecord]) -> ProteinRecord:
    return records.get(example.source) or ProteinRecord(example.id, example.id, example.sequence, 0)


def _given_split(value: str | None, name: str) -> str:
    split = SPLIT_NAMES.get((value or "").lower(), (value or "").lower())
    if split in ("train", "valid", "test") or re.fullmatch("[1-9][0-9]*", split):
        return split
    raise UserError(
        f"The split {value!r} is none of train, valid, test or a fold number",
        where=f"id {name}",
        fix="Check --split-from",
    )


if __name__ == "__main__":
    stage.main(NAME, run)
