"""Mutagenesis maps of whole proteins: which residues of which proteins, what the bundle answers, and how it is told."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from plm import stage
from plm.data.protein_store import ProteinStore
from plm.errors import UserError
from plm.jobs.predict.verdicts import Rules
from plm.model.bundles.archive import bundle_kind
from plm.model.bundles.bundle import Bundle
from plm.scoring.mutagenesis import Ask, EffectMap, Subject, effect_map, plan, write_maps
from plm.telling.mutagenesis_figure import mutagenesis_figure, mutagenesis_reading
from plm.telling.report import Report
from plm.wording import counted

MOST_RESIDUES = 100
"""Residues of one protein that are mutated at most: 1,900 proteins to answer for."""
MOST_PROTEINS = 12
FLAG = "--mutagenesis-residues"
_SPAN = re.compile(r"(.+):([0-9]{1,9})-([0-9]{1,9})")


def check_bundle(bundle: Bundle, path: Path) -> None:
    """Refuses maps of bundles that do not read whole proteins themselves.

    Raises:
        UserError: A classifier of embeddings, or a bundle of a residue task.
    """
    if bundle_kind(path) == "embedding":
        raise UserError(
            "The bundle is a classifier of embeddings; only fine-tuned models can be asked about mutants",
            where="--mutagenesis", fix="Leave it out, or give a bundle of plm_finetune",
        )
    if bundle.task.level != "sequence":
        raise UserError(
            f"The bundle answers for each {bundle.task.level}, not for whole proteins", where="--mutagenesis",
            fix="Leave it out",
        )


def choose_subjects(proteins: ProteinStore, residues: str) -> list[Subject]:
    """What is mutated: the residues that the user names, else all of each protein.

    Args:
        proteins: Proteins of the input.
        residues: Ids with spans of 1-based residues, ``P1:10-40 P2:5-60``; an id alone is its whole protein; an
            accession stands for an id that has it between bars (``sp|P1|NAME``). Empty: all proteins.

    Raises:
        UserError: Too many residues or proteins, one that is not there or cannot be used, or a span outside of it.
    """
    words = residues.replace(",", " ").replace(";", " ").split()
    if not words:
        records = proteins.accepted.tolist()
        if len(records) > MOST_PROTEINS:
            raise UserError(
                f"{len(records):,} proteins are too many to mutate (at most {MOST_PROTEINS})", where=proteins.name,
                fix=f"Name some residues with {FLAG}, e.g. {proteins.ids[records[0]]}:1-40",
            )
        return [_subject(proteins, record, None) for record in records]
    if len(words) > MOST_PROTEINS:
        raise UserError(f"{len(words)} spans are too many (at most {MOST_PROTEINS})", where=FLAG, fix="Name fewer")
    spans = {word: _SPAN.fullmatch(word) for word in words}
    wanted = {*words, *(span[1] for span in spans.values() if span)}
    records_of: dict[str, list[int]] = {}
    for record in proteins.accepted.tolist():
        name = proteins.ids[record]
        for one in {name, *name.split("|")} & wanted:
            records_of.setdefault(one, []).append(record)
    subjects = []
    for word in words:
        span = None if word in records_of else spans[word]
        name = span[1] if span else word
        if name not in records_of:
            raise UserError(
                f"{name!r} is no protein of the input that can be used", where=FLAG,
                fix="Write ids as the input has them, e.g. P1:10-40",
            )
        records = [record for record in records_of[name] if proteins.ids[record] == name] or records_of[name]
        if len(records) > 1:
            raise UserError(f"{name!r} stands for {len(records)} proteins", where=FLAG, fix="Write the whole id")
        subjects.append(_subject(proteins, records[0], (int(span[2]), int(span[3])) if span else None))
    return subjects


def _subject(proteins: ProteinStore, record: int, span: tuple[int, int] | None) -> Subject:
    name, sequence = proteins.ids[record], proteins.sequences[int(proteins.unique[record])]
    first, last = span or (1, len(sequence))
    if not 1 <= first <= last <= len(sequence):
        raise UserError(
            f"{first}-{last} are no residues of {name}, which has {len(sequence):,}", where=FLAG,
            fix="Count from 1, the smaller number first",
        )
    if last - first + 1 > MOST_RESIDUES:
        raise UserError(
            f"{last - first + 1:,} residues of {name} are too many to mutate at once (at most {MOST_RESIDUES})",
            where=FLAG, fix=f"Name fewer, e.g. {name}:{first}-{first + MOST_RESIDUES - 1}",
        )
    places = tuple(range(first - 1, last))
    return Subject(name, sequence, places, tuple(place + 1 for place in places))


@dataclass
class ProteinMaps:
    """The maps that the user wants.

    Attributes:
        subjects: What is mutated.
        maps: Maps, once they are made.
        drawn: How many of them the figure shows.
    """

    subjects: Sequence[Subject]
    maps: list[EffectMap] = field(default_factory=list, init=False)
    drawn: int = field(default=0, init=False)

    def make(self, ask: Ask, rules: Rules, log: logging.Logger) -> None:
        """Asks about all variants of a protein together, protein after protein."""
        task = rules.task
        log.info("%s", plan(self.subjects, f"in {counted(len(self.subjects), 'protein')}"))
        progress = stage.Progress(log, len(self.subjects), "proteins", every=10.0)
        for subject in self.subjects:
            made = effect_map(
                subject, task, ask,
                lambda values: (values, rules.call(values) if task.target == "class" else [""] * len(values)),
            )
            self.maps.append(made)
            progress.advance(1)

    def write(self, table: Path | None, figure: Path | None, model: str, *, numbers: bool) -> None:
        """Writes what is wanted; ``model`` is the bundle's name and digest, ``numbers`` what it answers."""
        if table is not None:
            with table.open("w", encoding="utf-8", newline="\n") as handle:
                write_maps(handle, self.maps, model, sites=False)
        if figure is not None:
            self.drawn = mutagenesis_figure(self.maps, figure, numbers=numbers)

    def report(self, report: Report, outputs: Sequence[str]) -> None:
        """Shows the maps in a report, with how to read them."""
        report.heading("Which residues the answers rest on")
        if "mutagenesis_figure" in outputs:
            report.image("mutagenesis_figure")
        report.paragraph(mutagenesis_reading(self.maps, self.drawn, "protein"))
        if "mutagenesis" in outputs:
            report.link("mutagenesis", "Table of all substitutions")
