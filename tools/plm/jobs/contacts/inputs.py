"""What a job is given: proteins with structures, proteins with lists of contacts, or proteins alone."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from plm.data.protein_store import ProteinStore, store_proteins
from plm.data.tables import find_column, stream_table
from plm.errors import UserError
from plm.jobs.contacts.bands import CONTACT, KnownContacts, ListedPairs, PlacedResidues
from plm.jobs.contacts.structures import LEAST_IDENTITY, Chain, Unread, align, read_structures
from plm.wording import counted

_SHOWN = 6
_IDS, _FIRST, _SECOND = ("id", "protein", "name"), ("i", "position_1", "residue_1"), ("j", "position_2", "residue_2")
_DISTANCE = ("distance", "angstrom")
_PARTS = {"train": "train", "training": "train", "valid": "valid", "validation": "valid", "test": "test"}


@dataclass
class ContactInputs:
    """Proteins and what is known of their contacts.

    Attributes:
        proteins: The records.
        known: Contacts by record.
        sources: Structure (file and chain) by record.
        remarks: What the user should know, by record.
        unread: Structures that are no record.
    """

    proteins: ProteinStore
    known: dict[int, KnownContacts] = field(default_factory=dict)
    sources: dict[int, str] = field(default_factory=dict)
    remarks: dict[int, list[str]] = field(default_factory=dict)
    unread: list[Unread] = field(default_factory=list)

    def remark(self, record: int, text: str) -> None:
        self.remarks.setdefault(record, []).append(text)

    def sequence(self, record: int) -> str:
        return self.proteins.sequences[int(self.proteins.unique[record])]


def read_inputs(
    proteins: Path | None, structures: Sequence[Path], pairs: Path | None, folder: Path, *, chain: str,
    duplicates: str, nucleotides: str, log: logging.Logger,
) -> ContactInputs:
    """Reads everything that is wrong with the input before a model is loaded.

    Args:
        proteins: FASTA or table; None: the sequences of the structures.
        structures: PDB or mmCIF files, or zips of them.
        pairs: Table of the contacts of the proteins.
        folder: For copies; it must outlive the proteins.
        chain: Which chain of a structure; see :func:`plm.jobs.contacts.structures.read_structures`.
        duplicates: Policy for ids that come again.
        nucleotides: Policy for DNA and RNA.
        log: Told what was left out.

    Raises:
        UserError: Nothing usable, or a table that does not fit the proteins.
    """
    chains = list(read_structures(structures, chain))
    whole = [one for one in chains if isinstance(one, Chain)]
    unread = [one for one in chains if isinstance(one, Unread)]
    if structures and not whole:
        raise UserError(
            f"None of {counted(len(unread), 'structure')} can be read; the first: {unread[0].reason}",
            where=unread[0].source, fix="Give PDB or mmCIF files with protein chains",
        )
    if proteins is None:
        written = folder / "structures.fasta"
        with written.open("w", encoding="utf-8", newline="\n") as handle:
            for one in whole:
                handle.write(f">{one.id}\n{one.letters}\n")
        store = store_proteins(written, folder / "proteins", duplicates=duplicates, nucleotides=nucleotides)
        inputs = ContactInputs(store, unread=unread)
        for record, one in enumerate(whole):
            inputs.sources[record] = _source(one)
            for remark in one.remarks:
                inputs.remark(record, remark)
            if int(store.unique[record]) >= 0:
                inputs.known[record] = PlacedResidues(one.places)
    else:
        store = store_proteins(proteins, folder / "proteins", duplicates=duplicates, nucleotides=nucleotides)
        inputs = ContactInputs(store, unread=unread)
        _lay(inputs, whole)
    if pairs is not None:
        _list(inputs, pairs, log)
    for stranger in inputs.unread[:_SHOWN]:
        log.warning("Not used: %s: %s", stranger.source, stranger.reason)
    return inputs


def _source(chain: Chain) -> str:
    return f"{chain.source}, chain {chain.name or '(without name)'}"


def _lay(inputs: ContactInputs, chains: Sequence[Chain]) -> None:
    """Lays each chain on the protein of its name."""
    proteins = inputs.proteins
    by_name: dict[str, Chain] = {}
    for one in chains:
        for name in (one.id, f"{one.id}_{one.name}"):
            by_name.setdefault(name, one)
    used = set()
    for record, sequence in proteins.embedded():
        chain = by_name.get(proteins.ids[record])
        if chain is None:
            continue
        used.add(id(chain))
        inputs.sources[record] = _source(chain)
        for remark in chain.remarks:
            inputs.remark(record, remark)
        letters = proteins.sequences[sequence]
        lined = align(letters, chain.letters)
        if lined.identity < LEAST_IDENTITY:
            inputs.remark(
                record, f"contacts unknown: only {lined.identity:.0%} of the chain's residues are those of the sequence"
            )
            continue
        if lined.differences:
            shown = ", ".join(lined.differences[:_SHOWN])
            more = f" and {len(lined.differences) - _SHOWN} more" if len(lined.differences) > _SHOWN else ""
            inputs.remark(record, f"the structure differs from the sequence: {shown}{more}")
        places = np.full((len(letters), 3), np.nan)
        laid = lined.positions >= 0
        places[lined.positions[laid]] = chain.places[laid]
        inputs.known[record] = PlacedResidues(places)
    inputs.unread += [
        Unread(one.source, one.id, "no protein has this name") for one in chains if id(one) not in used
    ]
    if chains and not inputs.known:
        raise UserError(
            f"No structure belongs to a protein: the first is called {chains[0].id}, the first protein "
            f"{proteins.ids[int(proteins.accepted[0])]}",
            where=proteins.name, fix="Name structures after the ids of their proteins, or give the structures alone",
        )


def _list(inputs: ContactInputs, path: Path, log: logging.Logger) -> None:
    """Reads the contacts of proteins from a table."""
    header, rows = stream_table(path)
    places = [find_column(header, names) for names in (_IDS, _FIRST, _SECOND)]
    if None in places:
        raise UserError(
            f"The table of contacts needs the columns id, i and j (columns: {', '.join(header[:12])})", where=path.name,
            fix="Give one row a contact, positions counted from 1",
        )
    name_at, first_at, second_at = (place or 0 for place in places)
    distance_at = find_column(header, _DISTANCE)
    records = {inputs.proteins.ids[record]: record for record, _ in inputs.proteins.embedded()}
    pairs: dict[int, list[tuple[int, int]]] = {}
    strangers: Counter[str] = Counter()
    for line, fields in rows:
        where = f"{path.name}, line {line}"
        record = records.get(fields[name_at])
        if record is None:
            strangers[fields[name_at]] += 1
            continue
        length = len(inputs.sequence(record))
        mine = pairs.setdefault(record, [])
        i, j = (_position(fields[at], length, where) for at in (first_at, second_at))
        if distance_at is None or _touches(fields[distance_at], where):
            mine.append((i, j))
    if strangers:
        name, _ = strangers.most_common(1)[0]
        log.warning(
            "Note: %s of %s in %s belong to no protein that can be used (e.g. %s)",
            counted(strangers.total(), "row"), counted(len(strangers), "id"), path.name, name[:40],
        )
    if not pairs:
        raise UserError(
            "No row of the table of contacts belongs to a protein", where=path.name,
            fix="Use the ids of the proteins in the column id",
        )
    for record, mine in pairs.items():
        inputs.known[record] = ListedPairs.of(len(inputs.sequence(record)), mine)
        inputs.sources.setdefault(record, path.name)


def _position(text: str, length: int, where: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:12]) <= length):
        raise UserError(
            f"{text[:20]!r} is no residue of its protein of {length} residues", where=where,
            fix="Count residues from 1, in the sequence that is given",
        )
    return int(text) - 1


def _touches(text: str, where: str) -> bool:
    try:
        return float(text) < CONTACT
    except ValueError:
        raise UserError(f"{text[:20]!r} is no distance", where=where, fix="Give Angstrom, or leave the column out") \
            from None


def read_parts(path: Path, inputs: ContactInputs) -> Mapping[int, str]:
    """The part (train, valid, test) of each record that a table names.

    Raises:
        UserError: No columns id and split, or another word for a part.
    """
    header, rows = stream_table(path)
    name_at, part_at = find_column(header, _IDS), find_column(header, ("split", "part", "set"))
    if name_at is None or part_at is None:
        raise UserError(
            f"The table of parts needs the columns id and split (columns: {', '.join(header[:12])})", where=path.name,
            fix="Give one row a protein: train, valid or test",
        )
    records = {inputs.proteins.ids[record]: record for record, _ in inputs.proteins.embedded()}
    parts: dict[int, str] = {}
    for line, fields in rows:
        part = _PARTS.get(fields[part_at].lower())
        if part is None:
            raise UserError(
                f"{fields[part_at][:20]!r} is no part", where=f"{path.name}, line {line}",
                fix="Write train, valid or test",
            )
        if fields[name_at] in records:
            parts[records[fields[name_at]]] = part
    return parts
