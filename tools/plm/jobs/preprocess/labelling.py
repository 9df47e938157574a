"""From records to labelled examples: what a record's label is, where its sites are, what of it is kept."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from plm.data import examples as policies
from plm.data import sites
from plm.data.dataset_table import told_missing, understand_labels
from plm.data.examples import Example, Journal
from plm.data.fasta import CleaningRule, ProteinRecord
from plm.data.header_rules import Rule, parse_rule
from plm.data.tables import read_table
from plm.errors import UserError
from plm.jobs.preprocess.records import read_records, with_unique_ids


@dataclass(frozen=True)
class LabellingSettings:
    """How records become labelled examples; the flags of plm_preprocess by their names."""

    input: Path
    test: Path | None
    negatives_file: Path | None
    format: str
    id_column: str
    sequence_column: str
    task: str
    target: str
    labels: str
    otherwise: str
    site: str
    sites: Path | None
    sites_accession: str
    sites_position: str
    sites_label: str
    negative_sites: Path | None
    unlisted: str
    site_residues: str
    window: int | None
    ratio: float
    protein: str
    protein_position: str
    unusual: str
    gaps: str
    stops: str
    lower: str
    nucleotides: str
    min_length: int
    max_length: int
    duplicate_ids: str
    duplicate_sequences: str
    conflicting_labels: str
    cap: int
    seed: int

    @property
    def rule(self) -> Rule:
        """The label rule; a site list brings its own labels."""
        return parse_rule("none" if self.sites else self.labels, "--labels")

    @property
    def labelled(self) -> bool:
        """Whether examples have labels."""
        return self.rule.kind != "none" or self.sites is not None

    @property
    def seeks_sites(self) -> bool:
        """Whether sites are looked up in full proteins (marks or list), not given one a record."""
        return self.task == "site" and (self.sites is not None or self.labels == "hash")


def read(how: LabellingSettings, journal: Journal) -> list[ProteinRecord]:
    """The records of all files, each under an id of its own."""

    def read_file(path: Path, from_test_file: bool = False) -> list[ProteinRecord]:
        return read_records(path, how.format, how.id_column, how.sequence_column, from_test_file, how.nucleotides)

    records = read_file(how.input)
    if how.negatives_file is not None:
        records = [replace(record, columns={**record.columns, "class": "1"}) for record in records]
        records += [replace(one, columns={**one.columns, "class": "0"}) for one in read_file(how.negatives_file)]
    records += read_file(how.test, True) if how.test is not None else []
    names = " and ".join(path.name for path in (how.input, how.negatives_file, how.test) if path is not None)
    return with_unique_ids(records, how.duplicate_ids, names, journal)


def make_examples(
    how: LabellingSettings, records: Sequence[ProteinRecord], journal: Journal, log: logging.Logger
) -> tuple[list[Example], int]:
    """The examples, and residues of their windows (0: whole proteins)."""
    cleaning = CleaningRule(how.unusual, how.gaps, how.stops, how.lower, how.nucleotides)
    rule = parse_rule("column:class", "--labels") if how.labels == "file" else how.rule
    site_sources = sites.sources(records, cleaning, rule, how.otherwise, how.protein, journal)
    doubtful = sum(any("looks like nucleotides" in change for change in one.cleaned.changes) for one in site_sources)
    if doubtful:
        log.warning("Note: %d records look like nucleotides and are kept: look at them", doubtful)
    width = how.window or 0
    if how.task != "site":
        return sites.whole_sequences(site_sources, journal, residues=how.task == "residue"), 0
    unlisted = how.unlisted == "negative" or (how.unlisted == "auto" and how.labels == "hash")
    if how.sites is not None:
        columns = (how.sites_accession, how.sites_position, how.sites_label)
        listed = sites.read_listings(read_table(how.sites, header=None), columns, sites.POSITIVE, "--sites")
        if how.negative_sites is not None:
            table = read_table(how.negative_sites, header=None)
            listed += sites.read_listings(table, (*columns[:2], ""), sites.NEGATIVE, "--negative-sites")
        unlisted = unlisted or (how.unlisted == "auto" and len({listing.label for listing in listed}) == 1)
        return sites.listed(site_sources, listed, width, how.site_residues, unlisted, journal), width
    if how.labels == "hash":
        return sites.marked(site_sources, width, how.site_residues, unlisted, journal), width
    if how.site == "centre":
        return sites.centred(site_sources, how.window, how.site_residues, how.protein_position, journal)
    column = how.site.removeprefix("column:")
    return sites.positioned(site_sources, column, how.window, how.site_residues, how.protein_position, journal)


def settle_labels(
    how: LabellingSettings, examples: list[Example], lines: Mapping[str, int], journal: Journal, log: logging.Logger
) -> tuple[list[Example], str]:
    """Gives labels the form that all stages read, leaves unlabelled examples out, and says what was understood.

    Returns:
        The labelled examples and ``class`` or ``number``; all of them and ``class`` where nothing has labels.
    """
    if not examples or not how.labelled:
        return examples, "class"

    def where(row: int) -> str:
        source = examples[row].source
        line = f"line {lines[source]}, " if lines.get(source) else ""
        return f"{how.input.name}, {line}id {examples[row].id!r}"

    try:
        understood = understand_labels(
            [one.label for one in examples], [one.sequence for one in examples], how.task, how.target, where,
            how.input.name,
        )
    except UserError as error:
        none = sum("says that there is none" in reason for _, _, reason in journal.entries)
        if none and "one class only" in error.what:
            raise UserError(error.what, where=error.where, fix=error.fix + told_missing(none)) from None
        raise
    log.info("Task: %s", understood.why)
    for note in understood.notes:
        log.warning("Note: %s", note)
    kept = []
    for example, label in zip(examples, understood.labels, strict=True):
        if not label:
            journal.left_out(example.id, f"no label: {example.label[:40]!r} says that there is none")
            continue
        if label != example.label and how.task != "residue":
            journal.changed(example.id, f"label {example.label!r} read as {label!r}")
        example.label = label
        kept.append(example)
    return kept, understood.task.target


def select(how: LabellingSettings, examples: Sequence[Example], journal: Journal) -> list[Example]:
    """Applies the policies; a test set of the user's own is only checked for length.

    Names come first: the policies know examples by them, and two records of one accession make sites of one name.
    """
    examples = policies.with_unique_names(examples, journal)
    kept = policies.by_length(examples, how.min_length, how.max_length, journal)
    test = [example for example in kept if example.from_test_file]
    kept = [example for example in kept if not example.from_test_file]
    kept = policies.without_conflicts(kept, how.conflicting_labels, journal)
    kept = policies.without_duplicates(kept, how.duplicate_sequences, journal)
    if how.seeks_sites:
        kept = policies.thinned_negatives(kept, sites.NEGATIVE, how.ratio, how.seed, journal)
    return policies.capped(kept, how.cap, how.seed, journal) + test
