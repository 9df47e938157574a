"""From cleaned records to examples: one per sequence, or one per labelled site with its window.

Positions of the user count from 1 in the sequence as given; gaps that cleaning closes up move the index in the cleaned
sequence, never the position that is reported.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from plm.data.examples import Example, Journal
from plm.data.fasta import Cleaned, CleaningRule, ProteinRecord, clean
from plm.data.header_rules import Rule, column_name, place_of, protein_of, taxon_of, unmark
from plm.data.homology import LONGEST_WINDOW
from plm.data.label_values import is_list, is_missing, joined_labels, residue_labels
from plm.data.tables import Table
from plm.data.windows import is_clipped, window
from plm.errors import UserError

POSITIVE, NEGATIVE = "1", "0"
_PLACE = re.compile(r"(?:p?([A-Z])|([A-Z][a-z]{2}))?([0-9]{1,9})(?:\.0+|-[a-z]{1,3})?")
_THREE_LETTERS = {
    "Ala": "A", "Arg": "R", "Asn": "N", "Asp": "D", "Cys": "C", "Gln": "Q", "Glu": "E", "Gly": "G", "His": "H",
    "Ile": "I", "Leu": "L", "Lys": "K", "Met": "M", "Phe": "F", "Pro": "P", "Ser": "S", "Thr": "T", "Trp": "W",
    "Tyr": "Y", "Val": "V", "Sec": "U", "Pyl": "O",
}


def parse_place(text: str) -> tuple[int, str] | None:
    """(1-based place, stated residue or empty) of ``614``, ``614.0``, ``Y614``, ``pY614``, ``Tyr614`` or, as
    PhosphoSitePlus writes it, ``Y614-p``; None for all else."""
    match = _PLACE.fullmatch(text.strip())
    if match is None or (match[2] and match[2] not in _THREE_LETTERS):
        return None
    return int(match[3]), match[1] or (_THREE_LETTERS[match[2]] if match[2] else "")


@dataclass(frozen=True, slots=True)
class SiteSource:
    """A cleaned record and what its header says.

    Attributes:
        record: Record as read; its sequence is without ``#`` marks.
        cleaned: Cleaned sequence and how positions move.
        protein: Id of the protein that the record belongs to.
        marked: 0-based indices, in the raw sequence without marks, of marked residues.
        label: Label by the rule, or None where it found none.
    """

    record: ProteinRecord
    cleaned: Cleaned
    protein: str
    marked: tuple[int, ...] = ()
    label: str | None = None


@dataclass(frozen=True, slots=True)
class SiteListing:
    """One site that a user listed; ``place`` counts from 1 in the protein as given, ``residue`` is stated or empty."""

    protein: str
    place: int
    label: str | None
    residue: str
    where: str


def sources(
    records: Sequence[ProteinRecord], cleaning: CleaningRule, labels: Rule, otherwise: str, protein: str,
    journal: Journal,
) -> list[SiteSource]:
    """Cleans records and reads their labels and proteins; what cannot be used goes to the journal.

    Args:
        records: Records as read, ids unique.
        cleaning: What becomes of unusual letters, gaps and stops.
        labels: Label rule; ``file`` labels must have been put into the records' columns by the caller.
        otherwise: Class of records in which the rule finds nothing; empty: such records are rejected.
        protein: Header rule that gives a record's protein.
        journal: Journal that notes rejected and changed records.

    Raises:
        UserError: The rule finds a label in no record at all; names the rule and the first header.
    """
    site_sources: list[SiteSource] = []
    labelled = 0
    for record in records:
        marked: list[int] = []
        sequence = record.sequence
        if labels.kind == "hash":
            try:
                sequence, marked = unmark(sequence)
            except ValueError as error:
                journal.rejected(record.id, str(error))
                continue
            labelled += len(marked)
        label: str | None = None
        if labels.kind in ("key", "regex", "field", "column"):
            label = labels.find(record)
            labelled += label is not None
            if label is not None and is_missing(label):
                if not otherwise:
                    journal.left_out(record.id, f"no label: {label!r} says that there is none")
                    continue
                label = None
            if label is None and not otherwise:
                journal.rejected(
                    record.id, f"no label: {labels.in_words} finds nothing in the header {record.header!r}"
                )
                continue
            label = label or otherwise
        cleaned = clean(sequence, cleaning)
        if cleaned.rejected:
            journal.rejected(record.id, cleaned.rejected)
            continue
        if cleaned.changes:
            journal.changed(record.id, "; ".join(cleaned.changes))
        name = protein_of(record, protein)
        if name is None:
            journal.rejected(
                record.id, f"no protein: --protein {protein} finds nothing in the header {record.header!r}"
            )
            continue
        site_sources.append(SiteSource(replace(record, sequence=sequence), cleaned, name, tuple(marked), label))
    if labels.kind in ("key", "regex", "field", "column", "hash") and not labelled:
        what = "'#' after a residue" if labels.kind == "hash" else labels.in_words
        shown = records[0].header if len(records[0].header) <= 80 else records[0].header[:80] + "…"
        raise UserError(
            f"No label found: the {what} matches none of {len(records)} records; the first header is {shown!r}",
            where="--labels " + labels.text, fix="Choose the label rule that fits these headers",
        )
    return site_sources


def whole_sequences(site_sources: Iterable[SiteSource], journal: Journal, *, residues: bool = False) -> list[Example]:
    """One example a record; with ``residues`` the labels of each residue follow the cleaning of the sequence."""
    examples = []
    for source in site_sources:
        label = source.label or ""
        if residues:
            try:
                fitted, count = _residue_labels(source, label)
            except UserError as error:
                raise UserError(error.what, where=f"line {source.record.line}, id {source.record.id!r}",
                                fix=error.fix) from error
            if fitted is None:
                journal.rejected(
                    source.record.id,
                    f"its residue label is not as long as the sequence ({count} labels, "
                    f"{len(source.record.sequence)} residues)",
                )
                continue
            label = fitted
        examples.append(_example(source, source.record.id, source.cleaned.sequence, label))
    return examples


def _residue_labels(source: SiteSource, label: str) -> tuple[str | None, int]:
    """The label as the cleaned sequence has it (None: another length), and the labels that were given."""
    parts = residue_labels(label)
    given = len(parts)
    string = parts == list(label.strip()) and not is_list(label)
    removed = set(source.cleaned.removed)
    raw, clean_length = len(source.record.sequence), len(source.cleaned.sequence)
    if len(parts) == raw:  # a stop at the end goes with its label
        parts = [part for index, part in enumerate(parts) if index not in removed][:clean_length]
    if len(parts) != clean_length:
        return None, given
    return "".join(parts) if string else joined_labels(parts), given


def centred(
    site_sources: Sequence[SiteSource], width: int | None, residues: str, place: str, journal: Journal
) -> tuple[list[Example], int]:
    """Sites given as windows: the site is the centre.

    A window that is shorter than the others (cut at a protein's end) is used when its header says where the site lies
    (``%start%site``), else rejected.

    Args:
        site_sources: Cleaned windows with their labels.
        width: Width to cut them to; None: as they are.
        residues: Letters that a site may be; empty: any.
        place: Rule for the place in the protein (:func:`plm.data.header_rules.place_of`).
        journal: Journal that notes rejected and changed records.

    Returns:
        Examples, and the width of their windows.

    Raises:
        UserError: The windows are narrower than ``width``, or have an even width, or most sequences are no windows.
    """
    if not site_sources:
        return [], width or 0
    given = Counter(len(source.record.sequence) for source in site_sources).most_common(1)[0][0]
    if given % 2 == 0:
        raise UserError(
            f"Most sequences have {given} residues, an even number, so no residue is the centre", where="--site centre",
            fix="Give windows of odd width, or full proteins with a site list",
        )
    if width and width > given:
        raise UserError(
            f"The windows given have {given} residues: windows of {width} cannot be cut from them",
            where=f"--window {width}", fix=f"Choose {given} or fewer, or give full proteins with a site list",
        )
    width = width or given
    examples, unknown = [], 0
    for source in site_sources:
        name, length = source.record.id, len(source.record.sequence)
        start, site = place_of(source.record, place)
        centre0 = given // 2 if length == given else None
        if start is not None and site is not None and 0 <= site - start < length:
            stated0 = site - start
            if centre0 is not None and stated0 != centre0:
                journal.rejected(
                    name, f"its header puts the site at residue {stated0 + 1} of the window, not at the centre"
                )
                continue
            centre0 = stated0
        if centre0 is None:
            unknown += 1
            journal.rejected(name, f"{length} residues where the windows have {given}: the centre is unknown")
            continue
        position0 = source.cleaned.position(centre0)
        if position0 is None:
            journal.rejected(name, "the centre of the window is a gap or stop")
            continue
        letter = source.cleaned.sequence[position0]
        if residues and letter not in residues:
            journal.rejected(name, f"the centre is {letter}, not {_one_of(residues)}")
            continue
        sequence, moved0 = window(source.cleaned.sequence, position0, width)
        if len(sequence) < width:
            journal.changed(name, f"window clipped at the protein's end: {len(sequence)} of {width} residues")
        examples.append(_example(source, name, sequence, source.label or "", moved0, site))
    if 2 * unknown > len(site_sources):
        raise UserError(
            f"{unknown} of {len(site_sources)} sequences have another length than {given} residues, the commonest:"
            " they are no windows around a site", where="--site centre",
            fix="Choose whole sequences with a class or number each (--task sequence), or give full proteins with a"
            " site list",
        )
    return examples, width


def positioned(
    site_sources: Sequence[SiteSource], column: str, width: int | None, residues: str, place: str, journal: Journal
) -> tuple[list[Example], int]:
    """Sites given as a table with a column of 1-based positions in the sequence.

    The sequences given count as windows (of the longest one's width) if that is odd, short enough for a window and
    every sequence of that length has its site in the centre; else as whole proteins, whose positions are those in the
    protein unless ``place`` says otherwise. With ``width`` None they stay as they are (window 0 for whole proteins).
    """
    parsed_all = [
        (source, parse_place(source.record.columns[column_name(source.record, column)])) for source in site_sources
    ]
    told = [(one.record.sequence, at[0], at[1] or residues) for one, at in parsed_all if at]
    check_counting(told, f"column {column}")
    examples: list[Example] = []
    unstated: list[Example] = []
    given: list[tuple[int, int]] = []
    for source in site_sources:
        text = source.record.columns[column_name(source.record, column)]
        parsed = parse_place(text)
        if parsed is None:
            journal.rejected(source.record.id, f"the position {text!r} is no whole number")
            continue
        example = _site(
            source, parsed[0], source.label or "", width or 0, residues, parsed[1], journal, source.record.id
        )
        if example is None:
            continue
        stated = source.record.columns.get("protein_position", "")
        if place != "auto":
            example.protein_position = place_of(source.record, place)[1]
        elif re.fullmatch("[0-9]{1,9}", stated):
            example.protein_position = int(stated)
        else:
            unstated.append(example)
        given.append((len(source.cleaned.sequence), source.cleaned.position(parsed[0] - 1) or 0))
        example.whole = example.whole if width else ""
        examples.append(example)
    longest = max((length for length, _ in given), default=0)
    centred_all = all(position0 == longest // 2 for length, position0 in given if length == longest)
    windows = bool(longest % 2) and longest <= LONGEST_WINDOW and centred_all
    if windows:
        for example in unstated:
            example.protein_position = None
    return examples, width if width is not None else longest if windows else 0


def marked(
    site_sources: Sequence[SiteSource], width: int, residues: str, negatives: bool, journal: Journal
) -> list[Example]:
    """Sites marked by ``#`` in full proteins (class 1); the other residues of the same letters are class 0.

    Args:
        site_sources: Cleaned proteins with their marks.
        width: Window width, 0 = whole protein.
        residues: Letters that a site may be; empty: every letter that carries a mark somewhere.
        negatives: Whether unmarked residues of these letters become class 0.
        journal: Journal that notes rejected and changed sites.
    """
    letters = residues or "".join(
        sorted({source.record.sequence[index].upper() for source in site_sources for index in source.marked})
    )
    listed = [
        SiteListing(source.protein, index + 1, POSITIVE, "", source.record.id)
        for source in site_sources
        for index in source.marked
    ]
    return _joined(site_sources, listed, width, letters, negatives, journal, by_record=True)


def check_counting(places: Sequence[tuple[str, int, str]], where: str) -> None:
    """Refuses sites that count from 0: one residue further nearly all fit, and as they stand most do not.

    Args:
        places: Sequence as given, place, and the residues that may be there (empty: unknown) of each site.
        where: Option that gave the sites, for messages.

    Raises:
        UserError: They seem to count from 0; gives both counts.
    """

    def letter(sequence: str, place: int) -> str:
        return sequence[place - 1].upper() if 1 <= place <= len(sequence) else ""

    told = [place for place in places if place[2]]
    if len(told) >= 3:
        here = sum(letter(sequence, place) in set(residues) for sequence, place, residues in told)
        further = sum(letter(sequence, place + 1) in set(residues) for sequence, place, residues in told)
        fits, shifted, count = here, further, len(told)
    elif len(places) >= 10:
        # Nobody says which residues sites are: they are few of them, where the count is right.
        count = len(places)
        now = Counter(letter(sequence, place) for sequence, place, _ in places)
        then = Counter(letter(sequence, place + 1) for sequence, place, _ in places)
        fits, shifted = (sum(number for _, number in one.most_common(3)) for one in (now, then))
    else:
        return
    if shifted >= 0.9 * count and fits < 0.5 * count:
        raise UserError(
            f"The positions seem to count from 0: {fits} of {count} are at the residues of sites, and one residue "
            f"further {shifted} are",
            where=where, fix="Add 1 to the positions: they count from 1",
        )


def listed(
    site_sources: Sequence[SiteSource], listings: Sequence[SiteListing], width: int, residues: str, negatives: bool,
    journal: Journal,
) -> list[Example]:
    """Sites of a list joined to full proteins by accession.

    Args:
        site_sources: Cleaned whole proteins.
        listings: Listed sites with their labels.
        width: Window width, 0 = whole protein.
        residues: Letters that a site may be; empty: any that the list names.
        negatives: Whether the unlisted residues of the same letters, in proteins with a listed site, become class 0.
        journal: Takes rejected and changed sites and proteins without a site.

    Raises:
        UserError: No listed site fits the proteins; gives the first reason.
    """
    before = len(journal.entries)
    known = {source.protein: source for source in reversed(site_sources)} | {
        source.record.id: source for source in site_sources
    }
    check_counting(
        [
            (known[one.protein].record.sequence, one.place, one.residue or residues)
            for one in listings
            if one.protein in known
        ],
        "--sites",
    )
    examples = _joined(site_sources, listings, width, residues, negatives, journal, by_record=False)
    if not any(example.label != "" for example in examples):
        reasons = [entry for entry in journal.entries[before:] if entry[1] == "rejected"]
        first = f"{reasons[0][0]}: {reasons[0][2]}" if reasons else "the list is empty"
        raise UserError(
            f"None of {len(listings)} listed sites fits the proteins; the first: {first}", where="--sites",
            fix="Check accessions and positions (counted from 1), and --protein",
        )
    return examples


def _joined(
    site_sources: Sequence[SiteSource], listings: Sequence[SiteListing], width: int, residues: str, negatives: bool,
    journal: Journal, by_record: bool,
) -> list[Example]:
    by_name: dict[str, SiteSource] = {}
    for source in site_sources:
        by_name[source.record.id] = source
    if not by_record:
        for source in site_sources:
            by_name.setdefault(source.protein, source)
    chosen: dict[str, list[SiteListing]] = {}
    for listing in listings:
        name = listing.where if by_record else listing.protein
        if name not in by_name:
            journal.rejected(
                f"{listing.protein}:{listing.place}", f"no protein {listing.protein} in the FASTA ({listing.where})"
            )
            continue
        chosen.setdefault(by_name[name].record.id, []).append(listing)
    letters = residues
    if not letters:
        seen = Counter(
            source.record.sequence[listing.place - 1].upper()
            for source in site_sources
            for listing in chosen.get(source.record.id, [])
            if 1 <= listing.place <= len(source.record.sequence)
        )
        letters = "".join(sorted(letter for letter in seen if letter.isalpha()))
    examples: list[Example] = []
    for source in site_sources:
        mine = chosen.get(source.record.id, [])
        if not mine and not (negatives and by_record):
            journal.left_out(
                source.record.id, "no site is listed for this protein" if not by_record else "no residue is marked"
            )
            continue
        made_here = _sites_of(source, mine, width, residues, journal)
        if negatives:
            taken = {listing.place for listing in mine}
            for index, letter in enumerate(source.record.sequence.upper()):
                if letter in letters and index + 1 not in taken:
                    example = _site(source, index + 1, NEGATIVE, width, "", "", journal)
                    if example is not None:
                        made_here.append(example)
            made_here.sort(key=lambda example: example.protein_position or 0)
        if not made_here and not mine:
            journal.left_out(source.record.id, f"no {_one_of(letters)} in this protein")
        examples += made_here
    return examples


def _sites_of(
    source: SiteSource, mine: Sequence[SiteListing], width: int, residues: str, journal: Journal
) -> list[Example]:
    examples: list[Example] = []
    known: dict[int, str | None] = {}
    for listing in mine:
        if listing.place in known and known[listing.place] == listing.label:
            journal.left_out(f"{source.protein}:{listing.place}", f"listed more than once ({listing.where})")
            continue
        repeated = listing.place in known
        known.setdefault(listing.place, listing.label)
        example = _site(source, listing.place, listing.label or "", width, residues, listing.residue, journal)
        if example is not None:
            if repeated:
                example.id += f"_{listing.label}"
            examples.append(example)
    return examples


def _site(
    source: SiteSource, place: int, label: str, width: int, residues: str, stated: str, journal: Journal,
    name: str = "",
) -> Example | None:
    """One site of a source, ``place`` 1-based in the raw sequence; None (and a journal entry) if it does not fit."""
    raw = source.record.sequence
    shown = name or f"{source.protein}:{place}"
    if not 1 <= place <= len(raw):
        journal.rejected(shown, f"position {place} lies outside the sequence of {len(raw)} residues")
        return None
    letter = raw[place - 1].upper()
    if stated and letter != stated:
        journal.rejected(shown, f"position {place} is {letter}, not {stated} as stated")
        return None
    if residues and letter not in residues:
        journal.rejected(shown, f"position {place} is {letter}, not {_one_of(residues)}")
        return None
    position0 = source.cleaned.position(place - 1)
    if position0 is None:
        journal.rejected(shown, f"position {place} is a gap or stop")
        return None
    whole = source.cleaned.sequence
    sequence, moved0 = window(whole, position0, width)
    name = name or f"{source.protein}_{letter}{place}"
    if is_clipped(len(whole), position0, width):
        journal.changed(name, f"window clipped at the protein's end: {len(sequence)} of {width} residues")
    example = _example(source, name, sequence, label, moved0, place)
    example.whole = whole
    return example


def read_listings(table: Table, columns: tuple[str, str, str], default: str | None, flag: str) -> list[SiteListing]:
    """Reads a site list.

    Args:
        table: Rows with an accession, a 1-based position (``614`` or ``Y614``) and perhaps a label.
        columns: Columns of accession, position and label by name or number; empty: the usual names, else columns 1, 2
            and none.
        default: Label of every row when there is no label column.
        flag: Option that gave the list, for messages.

    Raises:
        UserError: A column is missing or a position is no number, with its line.
    """
    accession = _pick(table, columns[0], flag + "-accession", ("accession", "protein", "acc", "uniprot", "id"), 0)
    position = _pick(table, columns[1], flag + "-position", ("position", "site", "pos", "protein_position"), 1)
    label = table.column(columns[2], flag + "-label") if columns[2] else table.find("label", "class")
    if position >= len(table.header):
        raise UserError(
            "A site list needs two columns: accession and position", where=table.name,
            fix="Give a table with these columns",
        )
    listings = []
    for row, line in zip(table.rows, table.lines, strict=True):
        where = f"{table.name}, line {line}"
        parsed = parse_place(row[position])
        if parsed is None or not row[accession]:
            raise UserError(
                f"{row[position][:60]!r} is no position" if parsed is None else "A row without an accession",
                where=where, fix="Give positions as 614, Y614 or Y614-p, counted from 1",
            )
        value = row[label] if label is not None else default
        if value is None or is_missing(value):
            raise UserError(
                f"A site without a label ({value!r})" if value else "A site without a label", where=where,
                fix="Fill the label column, or leave the row out",
            )
        listings.append(SiteListing(row[accession], parsed[0], value, parsed[1], where))
    return listings


def _pick(table: Table, wanted: str, flag: str, usual: tuple[str, ...], number: int) -> int:
    if wanted:
        return table.column(wanted, flag)
    column = table.find(*usual)
    return number if column is None else column


def _example(
    source: SiteSource, name: str, sequence: str, label: str, position0: int | None = None, place: int | None = None
) -> Example:
    taxon = source.record.columns.get("taxon", "") or taxon_of(source.record)
    return Example(
        name, sequence, label, position0, source.protein, place, taxon=taxon, source=source.record.id,
        from_test_file=source.record.from_test_file, extra=dict(source.record.columns),
    )


def _one_of(letters: str) -> str:
    return " or ".join(letters) if letters else "such residue"
