"""Whole proteins and their candidate residues, streamed from FASTA; every record comes out, usable or not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from plm.data.fasta import Cleaned, CleaningRule, FastaRecord, NucleotideTally, clean, read_fasta
from plm.data.header_rules import RawRecord, protein_of
from plm.errors import UserError


@dataclass(frozen=True, slots=True)
class Protein:
    """One FASTA record and the residues in it to be classified.

    Attributes:
        id: First word of the header, perhaps renamed; unique.
        accession: UniProt accession of ``sp|ACC|NAME``, else the id as it stands in the file.
        line: 1-based line of the header.
        sequence: Cleaned residues; empty if rejected.
        sites: 0-based candidate residues in ``sequence``, ascending.
        places: The same residues, counted from 1 in the sequence as the file has it (gaps count).
        extent: 1-based place of the last residue in the sequence as the file has it.
        rejected: Why the record cannot be used; empty when it can.
        changes: What cleaning or renaming changed, one phrase each.
    """

    id: str
    accession: str
    line: int
    sequence: str = ""
    sites: tuple[int, ...] = ()
    places: tuple[int, ...] = ()
    extent: int = 0
    rejected: str = ""
    changes: tuple[str, ...] = ()


@dataclass
class Survey:
    """What a file holds, counted before the work starts.

    Attributes:
        records: All records.
        proteins: Usable ones.
        first_rejected: Id and reason of the first record that cannot be used.
        candidates: Candidate residues.
        residues: Residues of usable proteins with a candidate.
        longest: Residues of the longest of them.
        context: Residues of all windows around the candidates (0 without windows).
        head: The first usable proteins with candidates, a few thousand residues.
        warning: What is to be looked at, in a sentence; may be empty.
    """

    records: int = 0
    proteins: int = 0
    first_rejected: str = ""
    candidates: int = 0
    residues: int = 0
    longest: int = 0
    context: int = 0
    head: list[Protein] = field(default_factory=list)
    warning: str = ""


def check_letters(letters: str, flag: str) -> str:
    """Residue letters in upper case, each once, sorted.

    Raises:
        UserError: Empty, or a letter that is none of the twenty.
    """
    chosen = "".join(sorted(set(letters.upper().replace(",", "").replace(" ", ""))))
    if not re.fullmatch("[ACDEFGHIKLMNPQRSTVWY]+", chosen):
        raise UserError(f"{letters!r} is no list of residues", where=flag, fix="Give one-letter codes, e.g. Y or ST")
    return chosen


def choose_letters(trained: str, wanted: str, bundle: str, notes: list[str]) -> str:
    """The candidate residues: those that a bundle was trained on, unless the user wants others.

    Args:
        trained: Letters in the bundle's manifest; may be empty.
        wanted: Letters that the user gave with ``--residues``; may be empty.
        bundle: The bundle's file, for messages.
        notes: Takes a warning if the bundle does not know the letters.

    Raises:
        UserError: Neither says which residues, or something is no residue.
    """
    if not wanted and not trained:
        raise UserError(
            "The bundle does not say which residues its sites are",
            where=bundle,
            fix="Give them with --residues, e.g. Y or ST",
        )
    letters = check_letters(wanted, "--residues") if wanted else check_letters(trained, bundle)
    foreign = "".join(sorted(set(letters) - set(trained)))
    if foreign:
        notes.append(
            f"The bundle was not trained on sites at {foreign} (it was on {trained or 'unknown residues'}): do not "
            "rely on its probabilities there."
        )
    return letters


def read_proteins(
    path: str | Path, letters: str, duplicates: str = "error", nucleotides: str = "reject",
    tally: NucleotideTally | None = None,
) -> Iterator[Protein]:  # fmt: skip
    """Streams the records of a FASTA file with their candidate residues.

    Args:
        path: FASTA, plain or gzipped (told by content).
        letters: Residues that are candidates.
        duplicates: An id that comes again: ``error``, ``rename`` (``_2``, ``_3``, ... is added) or ``first`` (the later
            record is rejected).
        nucleotides: What becomes of records that are clearly DNA or RNA: ``reject`` or ``keep``.
        tally: Counts them.

    Raises:
        UserError: As :func:`plm.data.fasta.read_fasta`; also a repeated id under ``error``.
    """
    lines: dict[str, int] = {}
    name = Path(path).name
    rule = CleaningRule(nucleotides=nucleotides)
    for record in read_fasta(path):
        identifier, note, rejected = record.id, "", ""
        if identifier in lines:
            if duplicates == "error":
                raise UserError(
                    f"The id {identifier!r} appears more than once",
                    where=f"{name}, lines {lines[identifier]} and {record.line}",
                    fix="Make ids unique, or choose --duplicate-ids rename or first",
                )
            number = 2
            while f"{identifier}_{number}" in lines:
                number += 1
            identifier = f"{identifier}_{number}"
            if duplicates == "first":
                rejected = f"the id {record.id} was used before (line {lines[record.id]})"
            else:
                note = f"renamed: the id {record.id} was used before (line {lines[record.id]})"
        lines[identifier] = record.line
        cleaned = clean(record.sequence, rule)
        if tally is not None:
            tally.add(record.sequence, cleaned.rejected, cleaned.changes)
        yield _protein(record, cleaned, identifier, letters, note, rejected)


def _protein(
    record: FastaRecord, cleaned: Cleaned, identifier: str, letters: str, note: str, rejected: str
) -> Protein:
    accession = protein_of(RawRecord(record.id, record.description, "", record.line), "auto") or record.id
    if rejected:
        # The later record keeps its own id in the status table: that is how the user finds it.
        return Protein(record.id, accession, record.line, rejected=rejected)
    if cleaned.rejected:
        return Protein(identifier, accession, record.line, rejected=cleaned.rejected)
    wanted = frozenset(letters)
    sites = tuple(index for index, letter in enumerate(cleaned.sequence) if letter in wanted)
    extent = _places((len(cleaned.sequence) - 1,), cleaned.removed)[0]
    changes = (*((note,) if note else ()), *cleaned.changes)
    return Protein(
        identifier,
        accession,
        record.line,
        cleaned.sequence,
        sites,
        _places(sites, cleaned.removed),
        extent,
        "",
        changes,
    )


def _places(sites: tuple[int, ...], removed: tuple[int, ...]) -> tuple[int, ...]:
    """1-based places in the raw sequence of ascending 0-based indices in the cleaned one."""
    if not removed:
        return tuple(site + 1 for site in sites)
    found, gone = [], 0
    for site in sites:
        while gone < len(removed) and removed[gone] <= site + gone:
            gone += 1
        found.append(site + gone + 1)
    return tuple(found)


def survey(
    path: str | Path, letters: str, window: int, duplicates: str = "error", head: int = 4096,
    nucleotides: str = "reject",
) -> Survey:  # fmt: skip
    """Reads the whole file once, so that every mistake in it is found before the work starts.

    Args:
        path: As for :func:`read_proteins`, like ``letters`` and ``duplicates``.
        letters: Candidate residues.
        window: Width of the context around a site; 0 is the whole protein.
        duplicates: Policy.
        head: Residues of context that the proteins kept in :attr:`Survey.head` are to have.
        nucleotides: Policy for records that are clearly DNA or RNA.

    Raises:
        UserError: As :func:`read_proteins`; also if every record is nucleotides, or none can be used.
    """
    found = Survey()
    kept, tally = 0, NucleotideTally()
    for protein in read_proteins(path, letters, duplicates, nucleotides, tally):
        found.records += 1
        if protein.rejected:
            found.first_rejected = found.first_rejected or f"{protein.id}: {protein.rejected}"
            continue
        found.proteins += 1
        if not protein.sites:
            continue
        length, half = len(protein.sequence), window // 2
        context = sum(min(length, site + half + 1) - max(0, site - half) for site in protein.sites) if window else 0
        found.candidates += len(protein.sites)
        found.residues += length
        found.longest = max(found.longest, length)
        found.context += context
        if kept < head:
            found.head.append(protein)
            kept += context or length
    found.warning = tally.told()
    tally.check(Path(path).name, CleaningRule(nucleotides=nucleotides))
    if not found.proteins:
        raise UserError(
            f"None of {found.records} records can be used; the first: {found.first_rejected}",
            where=Path(path).name,
            fix="Give protein sequences",
        )
    return found
