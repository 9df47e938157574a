"""Groups, clusters and splits of examples: relatives never stand on two sides."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from plm.data import homology, splits
from plm.data.examples import Example, Journal
from plm.data.fasta import ProteinRecord
from plm.data.header_rules import parse_rule, without_isoform
from plm.errors import UserError

SPLIT_NAMES = {"training": "train", "validation": "valid", "val": "valid", "dev": "valid", "testing": "test"}


@dataclass(frozen=True)
class SplittingSettings:
    """How examples are split; the flags of plm_preprocess by their names.

    Attributes:
        published: Whether there is a test set of the user's own.
        threads: Processor threads to use.
    """

    task: str
    split: str
    split_from: str
    group: str
    valid_fraction: float
    test_fraction: float
    folds: int
    identity: float | None
    coverage: float
    seed: int
    published: bool
    threads: int


def split(
    how: SplittingSettings, examples: list[Example], records: dict[str, ProteinRecord], target: str, journal: Journal
) -> tuple[list[Example], str, list[homology.Relative] | None]:
    """Gives every example its group, cluster and split; returns the method and known relatives too."""
    pairs: list[homology.Relative] | None = None
    sequences = [example.whole or example.sequence for example in examples]
    method = homology.choose_method(sequences)
    for example in examples:
        example.group = without_isoform(example.protein)
    if how.split == "group":
        _own_groups(how, examples, records, journal)
    if how.split == "homology":
        clusters, pairs = _clusters(how, list(dict.fromkeys(sequences)), method)
        for example, sequence in zip(examples, sequences, strict=True):
            example.cluster = clusters[sequence]
        joint = splits.joined_groups([one.group for one in examples], [one.cluster for one in examples])
        for example, group in zip(examples, joint, strict=True):
            example.group = group
    free = [example for example in examples if not example.from_test_file]
    for example in examples:
        example.split = "test" if example.from_test_file else "train"
    if how.split == "given":
        rule = parse_rule(how.split_from, "--split-from")
        for example in examples:
            example.split = _given_split(rule.find(_origin(example, records)), example.id)
    elif how.split != "none":
        held = 0.0 if how.published else how.test_fraction
        parts = ["train", "valid", "test"]
        fractions = [1 - how.valid_fraction - held, how.valid_fraction, held]
        if how.folds:
            parts, fractions = [str(fold + 1) for fold in range(how.folds)], [1 / how.folds] * how.folds
        groups = [one.id for one in free] if how.split == "random" else [one.group for one in free]
        # Fifths of numbers are small bins: 25 times the weight makes parts as large as asked for.
        weight = 25.0 if target == "number" and how.task != "residue" else 1.0
        places = splits.assign(groups, strata(how, free, target), fractions, how.seed, weight)
        for example, part in zip(free, places, strict=True):
            example.split = parts[part]
    elif not how.published:
        for example in examples:
            example.split = ""
    # Fast clusters are for many sequences; without clusters only the search of the leakage report counts.
    return examples, "mmseqs" if method == "cascade" and how.split != "homology" else method, pairs


def _own_groups(
    how: SplittingSettings, examples: Sequence[Example], records: dict[str, ProteinRecord], journal: Journal
) -> None:
    """Groups by the user's rule; where it finds none the protein stands for the group, and the journal says so."""
    rule = parse_rule(how.group, "--group")
    group_of = {example.id: rule.find(_origin(example, records)) for example in examples}
    if not any(group_of.values()):
        raise UserError(
            f"No group found: the {rule.in_words} matches none of {len(examples)} records; the first header is "
            f"{_origin(examples[0], records).header[:80]!r}",
            where=f"--group {how.group}",
            fix="Choose the rule that fits these headers, or split by protein or homology",
        )
    for example in examples:
        group = group_of[example.id]
        if group is None:
            journal.changed(example.id, f"no group: the {rule.in_words} finds nothing, so its protein stands for it")
        example.group = group or example.group


def _clusters(
    how: SplittingSettings, distinct: list[str], method: str
) -> tuple[dict[str, str], list[homology.Relative] | None]:
    """Cluster of every distinct sequence, and the relatives at any identity if a search for all of them was made."""
    pairs: list[homology.Relative] | None = None
    named = [(str(number), sequence) for number, sequence in enumerate(distinct)]
    coverage, threads = how.coverage, how.threads
    if method == "mmseqs":
        pairs = homology.relatives(distinct, identity=0.0, coverage=coverage, threads=threads, method=method)
        limit = homology.default_identity(method, how.identity)
        links = ((pair.first, pair.second) for pair in pairs if pair.identity >= limit - 1e-9)
        roots = [str(root) for root in homology.components(len(distinct), links)]
    else:
        roots = list(
            homology.cluster(named, identity=how.identity, coverage=coverage, threads=threads, method=method).values()
        )
    names: dict[str, str] = {}
    return {
        sequence: names.setdefault(root, f"cluster{len(names) + 1}")
        for sequence, root in zip(distinct, roots, strict=True)
    }, pairs


def strata(how: SplittingSettings, examples: Sequence[Example], target: str) -> list[str]:
    """Classes to balance: the labels, fifths of their range for numbers, none for residue labels."""
    if how.task == "residue":
        return [""] * len(examples)
    labels = [example.label for example in examples]
    return splits.quantile_strata([float(label) for label in labels]) if target == "number" else labels


def _origin(example: Example, records: dict[str, ProteinRecord]) -> ProteinRecord:
    return records.get(example.source) or ProteinRecord(example.id, example.id, example.sequence, 0)


def _given_split(value: str | None, name: str) -> str:
    split = SPLIT_NAMES.get((value or "").lower(), (value or "").lower())
    if split in ("train", "valid", "test") or re.fullmatch("[1-9][0-9]*", split):
        return split
    raise UserError(
        f"The split {value!r} is none of train, valid, test or a fold number", where=f"id {name}",
        fix="Check --split-from",
    )
