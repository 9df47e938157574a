"""Structures that users bring (PDB, mmCIF): the sequence of a chain and where the C-beta of each residue lies.

A residue of SEQRES (PDB) or of the polymer scheme (mmCIF) that has no coordinates is part of the sequence, with unknown
place. Files without either get an X for each number that the residues skip. Of several models the first counts, of
alternative places that with the highest occupancy.
"""

from __future__ import annotations

import io
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plm.errors import UserError
from plm.received.archives import Archive, is_archive, unpacked_gzip
from plm.received.documents import one_line
from plm.received.limits import size

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


def _parsed(text: str) -> tuple[Any, dict[str, str]]:
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


def _polymers(model: Any, stated: dict[str, str]) -> Iterator[_Polymer]:
    """Protein chains of a model in the order of the file."""
    for chain in model:
        seen = [one for one in map(_residue, chain) if one is not None]
        if len(seen) < FEWEST:
            continue
        yield _polymer(str(chain.id).strip(), seen, stated.get(str(chain.id).strip(), ""))


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


def _seqres(text: str) -> dict[str, str]:
    chains: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("SEQRES"):
            chains.setdefault(line[11:12].strip(), []).extend(line[19:70].split())
        elif line.startswith("ATOM"):
            break
    return {chain: "".join(map(letter_of, names)) for chain, names in chains.items()}


def _scheme(text: str) -> dict[str, str]:
    """Sequence of each chain by the name that authors gave it, from ``_pdbx_poly_seq_scheme``."""
    from Bio.PDB.MMCIF2Dict import MMCIF2Dict

    content = MMCIF2Dict(io.StringIO(text))
    columns = [content.get(f"_pdbx_poly_seq_scheme.{name}", []) for name in ("pdb_strand_id", "seq_id", "mon_id")]
    chains: dict[str, dict[str, str]] = {}
    for chain, number, name in zip(*columns, strict=False):
        chains.setdefault(chain, {}).setdefault(number, letter_of(name))  # the first of several at one place
    return {chain: "".join(letters.values()) for chain, letters in chains.items()}


def _polymer(name: str, seen: Sequence[_Seen], whole: str) -> _Polymer:
    remarks: list[str] = []
    letters, places = filled(seen)
    if whole:
        lined = align(whole, "".join(one.letter for one in seen))
        unplaced = len(seen) - int((lined.positions >= 0).sum())
        if lined.identity >= LEAST_IDENTITY and not unplaced:
            letters = whole
            places = np.full((len(whole), 3), np.nan)
            places[lined.positions] = [one.place for one in seen]
        else:
            remarks.append("the residues do not fit the sequence that the file states, which was not used")
    missing = len(letters) - int(np.isfinite(places[:, 0]).sum())
    if missing:
        remarks.append(f"{missing} of {len(letters)} residues without a known place")
    return _Polymer(name, letters, places, tuple(remarks))


def filled(seen: Sequence[_Seen]) -> tuple[str, Floats]:
    """Letters and places of residues, with an X for each number that is skipped."""
    letters, places = [], []
    last: int | None = None
    for one in seen:
        skipped = 0 if last is None else one.number[0] - last - 1
        if 0 < skipped <= LONGEST_GAP:
            letters.append("X" * skipped)
            places += [np.full(3, np.nan)] * skipped
        letters.append(one.letter)
        places.append(one.place)
        last = one.number[0]
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
