"""Structures that users bring (PDB, mmCIF): the sequence of a chain and where the C-beta of each residue lies.

A residue of SEQRES (PDB) or of the polymer scheme (mmCIF) that has no coordinates is part of the sequence, with unknown
place. Files without either get an X for each number that the residues skip. Of several models the first counts, of
alternative places that with the highest occupancy.
"""

from __future__ import annotations

import io
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plm.disk_space import size
from plm.errors import UserError
from plm.received.archives import Archive, is_archive, unpacked_gzip
from plm.received.documents import one_line

Floats = NDArray[np.float64]
SUFFIXES = (".pdb", ".ent", ".cif", ".mmcif")
MOST_BYTES = 512 * 2**20
"""Of one structure, unpacked: the largest of the PDB have about 400 MB as mmCIF."""
FEWEST = 3
"""Amino acids that make a chain a protein."""
LONGEST_GAP = 500
"""Numbers that a chain without SEQRES may skip as residues that are not resolved; more is another numbering."""
WATER = ("HOH", "DOD", "WAT")


@dataclass(frozen=True)
class Chain:
    """One protein chain.

    Attributes:
        source: File (and member of an archive) that it came in.
        id: Name of its protein: the file's stem, with the chain behind it where several are read.
        name: The chain's own name.
        letters: Its sequence, residues without coordinates included; X for what no amino acid's letter is known of.
        places: ``(L, 3)`` of the C-beta (C-alpha of glycine) in Angstrom; NaN where it is unknown.
        remarks: What the user should know.
    """

    source: str
    id: str
    name: str
    letters: str
    places: Floats
    remarks: tuple[str, ...] = ()

    @property
    def resolved(self) -> int:
        """Residues with a known place."""
        return int(np.isfinite(self.places[:, 0]).sum())


@dataclass(frozen=True)
class Unread:
    """A structure of which nothing could be read.

    Attributes:
        source: File (and member of an archive).
        id: Its name without suffixes.
        reason: Why.
    """

    source: str
    id: str
    reason: str


def read_structures(paths: Sequence[Path], chain: str = "") -> Iterator[Chain | Unread]:
    """Reads chains of structures.

    Args:
        paths: PDB or mmCIF, plain or gzipped, or zips of such files.
        chain: Name of the chain; empty: the first protein chain of each file; ``all``: every one.

    Raises:
        UserError: No file, a zip that is none or holds no structures.
    """
    for path in paths:
        if not is_archive(path):
            if not path.is_file():
                raise UserError("The structure does not exist", where=str(path), fix="Check the path")
            data = _limited(path.stat().st_size, path.name) or path.read_bytes()
            yield from _chains(data, path.name, path.name, chain)
            continue
        with Archive(path, "archive of structures", "Zip the structures again") as archive:
            members = [name for name in archive.members if _is_structure(name)]
            if not members:
                raise UserError(
                    "The zip holds no structures", where=path.name,
                    fix="Give files that end in .pdb, .ent, .cif or .mmcif (.gz may follow)",
                )
            for name in members:
                large = _limited(archive.members[name].file_size, name)
                data = large or archive.read(name, MOST_BYTES)
                yield from _chains(data, f"{path.name}/{name}", name, chain)


def _is_structure(name: str) -> bool:
    base = name.rpartition("/")[2]
    return not base.startswith(".") and base.lower().removesuffix(".gz").endswith(SUFFIXES)


def _limited(count: int, name: str) -> str:
    return f"the file has {size(count)}; at most {size(MOST_BYTES)} are read" if count > MOST_BYTES else ""


def stem(name: str) -> str:
    """The name of a file without folders and the suffixes of structures."""
    base = name.rpartition("/")[2].removesuffix(".gz")
    for suffix in SUFFIXES:
        if base.lower().endswith(suffix):
            base = base[: -len(suffix)]
            break
    return "_".join(base.split()) or "structure"


def _chains(data: bytes | str, source: str, name: str, chain: str) -> Iterator[Chain | Unread]:
    """Chains of one file; ``data`` is a text where it could not be read."""
    called = stem(name)
    if isinstance(data, str):
        yield Unread(source, called, data)
        return
    try:
        model, stated = _parsed(_text(data, source))
    except UserError as error:
        yield Unread(source, called, error.what)
        return
    except _DAMAGED as error:
        reason = one_line(str(error), 120) or type(error).__name__
        yield Unread(source, called, f"the structure cannot be read ({reason})")
        return
    polymers = list(_polymers(model, stated))
    wanted = [one for one in polymers if not chain or chain == "all" or one.name == chain]
    if not wanted:
        there = ", ".join(one.name for one in polymers[:12])
        reason = f"there is no protein chain {chain} (chains: {there})" if polymers else "no chain is a protein"
        yield Unread(source, called, reason)
        return
    several = chain == "all" and len(wanted) > 1
    for one in wanted if chain == "all" else wanted[:1]:
        remarks = list(one.remarks)
        if len(polymers) > 1 and chain != "all":
            others = ", ".join(other.name for other in polymers if other is not one)
            remarks.insert(0, f"chain {one.name or '(without name)'} of {len(polymers)} protein chains (also {others})")
        name_of = f"{called}_{one.name}" if several else called
        yield Chain(source, name_of, one.name, one.letters, one.places, tuple(remarks))


_DAMAGED = (
    ValueError, KeyError, IndexError, TypeError, AttributeError, EOFError, OSError, zlib.error, ArithmeticError,
    RecursionError, AssertionError, StopIteration, RuntimeError, NotImplementedError,
)
"""What Biopython's parsers raise on damaged files, beside their own error."""


def _text(data: bytes, source: str) -> str:
    if data[:2] == b"\x1f\x8b":
        data = unpacked_gzip(data, MOST_BYTES, "The structure", source)
    return data.decode("utf-8", errors="replace")


@dataclass(frozen=True)
class _Polymer:
    name: str
    letters: str
    places: Floats
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class _Stated:
    """The sequence of a chain as its file states it.

    Attributes:
        letters: The sequence.
        numbers: The place in it of each residue by its number and insertion code; empty where the file does not say
            so (PDB). From 0 where the sequence is stated.
    """

    letters: str = ""
    numbers: Mapping[tuple[int, str], int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Seen:
    """A residue with coordinates.

    Attributes:
        letter: Of its amino acid, or of the one that it was made from.
        number: As the file numbers it, with the insertion code behind it.
        place: (3,) of its C-beta; NaN if the atom is missing.
    """

    letter: str
    number: tuple[int, str]
    place: Floats


def _parsed(text: str) -> tuple[Any, dict[str, _Stated]]:
    """The first model as Biopython reads it, and the sequences that the file states, by chain."""
    from Bio.PDB.MMCIFParser import MMCIFParser
    from Bio.PDB.PDBExceptions import PDBConstructionException
    from Bio.PDB.PDBParser import PDBParser

    is_cif = _is_cif(text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parser: Any = MMCIFParser(QUIET=True) if is_cif else PDBParser(PERMISSIVE=True, QUIET=True)
        try:
            structure = parser.get_structure("structure", io.StringIO(text))
        except PDBConstructionException as error:
            raise ValueError(str(error)) from error
    model = next(iter(structure), None)
    if model is None:
        raise ValueError("it holds no atoms")
    return model, _scheme(text) if is_cif else _seqres(text)


def _polymers(model: Any, stated: Mapping[str, _Stated]) -> Iterator[_Polymer]:
    """Protein chains of a model in the order of the file."""
    for chain in model:
        seen = [one for one in map(_residue, chain) if one is not None]
        if len(seen) < FEWEST:
            continue
        yield _polymer(str(chain.id).strip(), seen, stated.get(str(chain.id).strip(), _Stated()))


def _is_cif(text: str) -> bool:
    start = next((line for line in text.splitlines()[:200] if line.strip() and not line.startswith("#")), "")
    return start.startswith("data_")


def _residue(residue: Any) -> _Seen | None:
    """A residue of a protein, or None for water, ligands and nucleotides."""
    if residue.is_disordered() == 2:  # several amino acids at one place: the one that is there most often
        ways = residue.disordered_get_list()
        residue = max(ways, key=lambda way: max((atom.get_occupancy() or 0.0 for atom in way), default=0.0))
    name = residue.get_resname().strip()
    if name in WATER:
        return None
    letter = letter_of(name)
    backbone = "CA" in residue and ("N" in residue or "C" in residue)
    if letter == "X" and not backbone:
        return None
    if residue.id[0].strip() and not backbone:  # a free amino acid or a modified base among the ligands
        return None
    atom = "CA" if letter == "G" else "CB"
    place = np.full(3, np.nan)
    if atom in residue:
        at = np.asarray(residue[atom].get_coord(), np.float64)
        place = at if np.isfinite(at).all() else place
    return _Seen(letter, (int(residue.id[1]), str(residue.id[2]).strip()), place)


def letter_of(name: str) -> str:
    """One-letter code of a residue's name; a modified one has its parent's (selenomethionine M), others X."""
    from Bio.Data.PDBData import protein_letters_3to1_extended

    return str(protein_letters_3to1_extended.get(name.strip().upper(), "X"))


def _seqres(text: str) -> dict[str, _Stated]:
    chains: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("SEQRES"):
            chains.setdefault(line[11:12].strip(), []).extend(line[19:70].split())
        elif line.startswith("ATOM"):
            break
    return {chain: _Stated("".join(map(letter_of, names))) for chain, names in chains.items()}


def _scheme(text: str) -> dict[str, _Stated]:
    """Sequence of each chain by the name that authors gave it, from ``_pdbx_poly_seq_scheme``.

    Where a file lacks it, the places that ``_atom_site`` gives its residues in a sequence that it does not state.
    """
    from Bio.PDB.MMCIF2Dict import MMCIF2Dict

    content = MMCIF2Dict(io.StringIO(text))

    def column(name: str, table: str = "_pdbx_poly_seq_scheme") -> list[str]:
        return list(content.get(f"{table}.{name}", []))

    letters: dict[str, dict[str, str]] = {}
    for chain, place, name in zip(column("pdb_strand_id"), column("seq_id"), column("mon_id"), strict=False):
        letters.setdefault(chain, {}).setdefault(place, letter_of(name))  # the first of several at one place
    numbers: dict[str, dict[tuple[int, str], int]] = {chain: {} for chain in letters}
    at = {chain: {place: index for index, place in enumerate(places)} for chain, places in letters.items()}
    for chain, place, number, inserted in zip(
        column("pdb_strand_id"), column("seq_id"), column("pdb_seq_num"), column("pdb_ins_code"), strict=False
    ):
        if number.removeprefix("-").isdecimal():
            numbers[chain][int(number), inserted.strip(".?")] = at[chain][place]
    made = {chain: _Stated("".join(places.values()), numbers[chain]) for chain, places in letters.items()}
    names = ("auth_asym_id", "label_seq_id", "auth_seq_id", "pdbx_PDB_ins_code")
    bare: dict[str, dict[tuple[int, str], int]] = {}
    for chain, place, number, inserted in zip(*(column(name, "_atom_site") for name in names), strict=False):
        if chain not in made and place.isdecimal() and number.removeprefix("-").isdecimal():
            bare.setdefault(chain, {}).setdefault((int(number), inserted.strip(".?")), int(place))
    return made | {chain: _Stated(numbers=places) for chain, places in bare.items()}


def _polymer(name: str, seen: Sequence[_Seen], stated: _Stated) -> _Polymer:
    remarks: list[str] = []
    if not stated.letters and all(one.number in stated.numbers for one in seen):
        seen = [replace(one, number=(stated.numbers[one.number], "")) for one in seen]
    letters, places = filled(seen)
    if stated.letters:
        positions = _laid(seen, stated)
        if positions is None:
            remarks.append("the residues do not fit the sequence that the file states, which was not used")
        else:
            letters = stated.letters
            places = np.full((len(letters), 3), np.nan)
            places[positions] = [one.place for one in seen]
    missing = len(letters) - int(np.isfinite(places[:, 0]).sum())
    if missing:
        remarks.append(f"{missing} of {len(letters)} residues without a known place")
    return _Polymer(name, letters, places, tuple(remarks))


def _laid(seen: Sequence[_Seen], stated: _Stated) -> NDArray[np.int64] | None:
    """The place of each residue in the sequence that the file states; None if they do not fit.

    Where the file numbers the places (mmCIF), these count. Else the residues keep the distances of their numbers, if
    so at least as many letters agree as in an alignment, which may lay a residue beside a gap on either of its sides.
    """
    letters = "".join(one.letter for one in seen)
    if all(one.number in stated.numbers for one in seen):
        told = np.array([stated.numbers[one.number] for one in seen], np.int64)
        if len(set(told.tolist())) == len(seen) and _agreeing(stated.letters, letters, told) >= LEAST_IDENTITY:
            return told
    numbered = _by_distance(seen, stated.letters)
    same = 0.0 if numbered is None else _agreeing(stated.letters, letters, numbered)
    if same == 1:
        return numbered
    lined = align(stated.letters, letters)
    whole = bool((lined.positions >= 0).all()) and lined.identity >= LEAST_IDENTITY
    if same >= LEAST_IDENTITY and (not whole or same >= lined.identity):
        return numbered
    return lined.positions if whole else None


def _agreeing(sequence: str, letters: str, positions: NDArray[np.int64]) -> float:
    """Share of the letters but X that lie on an equal one."""
    pairs = [(sequence[at], letter) for at, letter in zip(positions.tolist(), letters, strict=True) if letter != "X"]
    return sum(one == other for one, other in pairs) / max(1, len(pairs))


def _by_distance(seen: Sequence[_Seen], sequence: str) -> NDArray[np.int64] | None:
    """Places of the residues at the distances of their numbers, where most letters agree; None if they do not fit in.

    Of several such places that counts which is nearest to numbers that count from the sequence's first residue.
    """
    offsets = np.cumsum([0, *(_step(first, second) for first, second in pairwise(seen))])
    if offsets[-1] >= len(sequence):
        return None
    own = np.array(list("".join(one.letter for one in seen)))
    whole = np.array(list(sequence))
    counts = [int((whole[offsets + start] == own).sum()) for start in range(len(sequence) - int(offsets[-1]))]
    expected = seen[0].number[0] - 1
    best = max(range(len(counts)), key=lambda start: (counts[start], -abs(start - expected)))
    made: NDArray[np.int64] = offsets + best
    return made


def _step(first: _Seen, second: _Seen) -> int:
    """How far apart two residues that follow each other are in the sequence, as their numbers say."""
    skipped = second.number[0] - first.number[0] - 1
    return 1 + skipped if 0 < skipped <= LONGEST_GAP else 1


def filled(seen: Sequence[_Seen]) -> tuple[str, Floats]:
    """Letters and places of residues, with an X for each number that is skipped."""
    letters, places = [], []
    for before, one in zip([None, *seen], seen, strict=False):
        skipped = 0 if before is None else _step(before, one) - 1
        letters.append("X" * skipped + one.letter)
        places += [np.full(3, np.nan)] * skipped
        places.append(one.place)
    return "".join(letters), np.array(places, np.float64)


LEAST_IDENTITY = 0.9
"""Of a chain with the sequence that it is said to be of."""


@dataclass(frozen=True)
class Alignment:
    """A chain laid on a sequence.

    Attributes:
        positions: For each residue of the chain its 0-based place in the sequence, or -1.
        identity: Share of the chain's residues (X left out) that lie on an equal one.
        differences: Such as ``A12V``: the sequence has A at 12, the chain V.
    """

    positions: NDArray[np.int64]
    identity: float
    differences: tuple[str, ...]


def align(sequence: str, chain: str) -> Alignment:
    """Lays a chain on a sequence by global alignment, in which gaps in the chain cost little."""
    from Bio.Align import PairwiseAligner

    positions = np.full(len(chain), -1, np.int64)
    if chain == sequence:
        positions = np.arange(len(chain))
    else:
        aligner = PairwiseAligner(mode="global", match_score=2, mismatch_score=-3)
        aligner.open_gap_score, aligner.extend_gap_score = -4, -0.05
        aligner.end_gap_score = -0.01
        aligner.wildcard = "X"
        for (start, _), (first, last) in zip(*aligner.align(sequence, chain)[0].aligned, strict=True):
            positions[first:last] = start + np.arange(last - first)
    differences = tuple(
        f"{sequence[at]}{at + 1}{letter}"
        for at, letter in zip(positions.tolist(), chain, strict=True)
        if at >= 0 and letter != "X" and sequence[at] not in ("X", letter)
    )
    judged = sum(letter != "X" for letter in chain)
    placed = sum(at >= 0 and letter != "X" for at, letter in zip(positions.tolist(), chain, strict=True))
    return Alignment(positions, (placed - len(differences)) / max(1, judged), differences)
