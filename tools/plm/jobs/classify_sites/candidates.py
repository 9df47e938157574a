"""Whole proteins and their candidate residues, streamed; every record comes out, usable or not."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from plm.data.fasta import Cleaned, CleaningRule, ProteinRecord
from plm.data.header_rules import protein_of
from plm.data.proteins import Cleaning
from plm.data.unique_ids import Settled, check_id, digest_of, first_equal, settle
from plm.errors import UserError


@dataclass(frozen=True, slots=True)
class Protein:
    """One record and the residues in it to be classified.

    Attributes:
        id: First word of the header, perhaps renamed; unique.
        accession: UniProt accession of ``sp|ACC|NAME``, else the id as it stands in the file.
        line: 1-based line of the header.
        sequence: Cleaned residues; empty if rejected.
        sites: 0-based candidate residues in ``sequence``, ascending.
        places: The same residues, counted from 1 in the sequence as the file has it (gaps count).
        extent: 1-based place of the last residue in the sequence as the file has it.
        rejected: Why the record cannot be used; empty when it can.
        changes: Phrases, one for each change by cleaning or renaming.
        removed: 0-based indices, ascending, of what cleaning took out of the sequence as the file has it.
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
    removed: tuple[int, ...] = ()

    def place(self, index: int) -> int:
        """The 1-based place of a 0-based index of ``sequence`` in the sequence as the file has it."""
        return _places((index,), self.removed)[0]


@dataclass
class CandidateSurvey:
    """What a file holds, counted before the work starts.

    Attributes:
        records: Number of records.
        proteins: Number of records that can be used.
        first_rejected: Id and reason of the first record that cannot be used.
        candidates: Number of candidate residues.
        residues: Residues of usable proteins with a candidate.
        longest: Residues of the longest of them.
        context: Residues of all windows around the candidates (0 without windows).
        head: The first usable proteins with candidates, a few thousand residues.
        warning: Sentence on what the user should look at; may be empty.
        settled: By number of the record, what becomes of those whose id came before.
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
    settled: dict[int, Settled] = field(default_factory=dict)


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
            "The bundle does not say which residues its sites are", where=bundle,
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


def read_candidates(
    path: str | Path, letters: str, cleaning: Cleaning, settled: Mapping[int, Settled] | None = None
) -> Iterator[Protein]:
    """Streams the records of a file with their candidate residues.

    Args:
        path: FASTA, or a table of proteins, plain, gzipped or Parquet (told by content).
        letters: Residues that are candidates.
        cleaning: Rule by which sequences are cleaned; counts what it rejects.
        settled: By number of the record, what becomes of ids that came before; see :attr:`CandidateSurvey.settled`.

    Raises:
        UserError: As :func:`plm.data.proteins.read_proteins`.
    """
    settled, name = settled or {}, Path(path).name
    for number, (record, cleaned) in enumerate(cleaning.of(path)):
        check_id(record, name)
        yield _protein(record, cleaned, settled.get(number), letters)


def _protein(record: ProteinRecord, cleaned: Cleaned, repeated: Settled | None, letters: str) -> Protein:
    accession = protein_of(record, "auto") or record.id
    identifier = repeated.id if repeated else record.id
    rejected = repeated.told if repeated and not repeated.kept else cleaned.rejected
    if rejected:
        # A later record keeps its own id in the status table: that is how the user finds it.
        return Protein(identifier, accession, record.line, rejected=rejected)
    wanted = frozenset(letters)
    sites = tuple(index for index, letter in enumerate(cleaned.sequence) if letter in wanted)
    return Protein(
        identifier, accession, record.line, cleaned.sequence, sites, _places(sites, cleaned.removed),
        _places((len(cleaned.sequence) - 1,), cleaned.removed)[0], "",
        (*((repeated.told,) if repeated else ()), *cleaned.changes), cleaned.removed,
    )


def _places(sites: tuple[int, ...], removed: tuple[int, ...]) -> tuple[int, ...]:
    """1-based places in the raw sequence of ascending 0-based indices in the cleaned one."""
    if not removed:
        return tuple(site + 1 for site in sites)
    places, gone = [], 0
    for site in sites:
        while gone < len(removed) and removed[gone] <= site + gone:
            gone += 1
        places.append(site + gone + 1)
    return tuple(places)


def survey(
    path: str | Path, letters: str, window: int, duplicates: str = "error", head: int = 4096,
    nucleotides: str = "reject",
) -> CandidateSurvey:
    """Reads the whole file once, so that every mistake in it is found before the work starts.

    Args:
        path: As for :func:`read_candidates`, like ``letters``.
        letters: Candidate residues.
        window: Width of the context around a site; 0 is the whole protein.
        duplicates: Policy for an id that comes again; see :func:`plm.data.unique_ids.settle`.
        head: Residues of context that the proteins kept in :attr:`CandidateSurvey.head` are to have.
        nucleotides: Policy for records that are clearly DNA or RNA.

    Raises:
        UserError: As :func:`read_candidates`; also if every record is nucleotides, none can be used, or an id is
            repeated under ``error``.
    """
    tally, name = CandidateSurvey(), Path(path).name
    cleaning = Cleaning(name, CleaningRule(nucleotides=nucleotides))
    kept, half = 0, window // 2
    digests, lines, ids = bytearray(), array("q"), list[str]()
    counts = array("q")  # of each record: usable or not, candidates, residues, context
    for protein in read_candidates(path, letters, cleaning):
        digests += digest_of(protein.id)
        lines.append(protein.line)
        ids.append(protein.id)
        length, sites = len(protein.sequence), protein.sites
        context = sum(min(length, site + half + 1) - max(0, site - half) for site in sites) if window else 0
        counts.extend((not protein.rejected, len(sites), length if sites else 0, context))
        if protein.rejected:
            tally.first_rejected = tally.first_rejected or f"{protein.id}: {protein.rejected}"
        elif sites and kept < head:
            tally.head.append(protein)
            kept += context or length
    tally.settled = {one.row: one for one in settle(ids.__getitem__, lines, first_equal(digests), duplicates, name)}
    table = np.frombuffer(counts, np.int64).reshape(-1, 4).copy()
    table[[one.row for one in tally.settled.values() if not one.kept]] = 0
    tally.records = len(table)
    tally.proteins, tally.candidates, tally.residues, tally.context = table.sum(axis=0).tolist()
    tally.longest = int(table[:, 2].max())
    tally.warning = cleaning.finish()
    if not tally.proteins:
        raise UserError(
            f"None of {tally.records} records can be used; the first: {tally.first_rejected}", where=name,
            fix="Give protein sequences",
        )
    return tally
