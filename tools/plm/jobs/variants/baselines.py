"""What substitutions look like without a language model: a substitution matrix, and amino acids taken one by one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from plm.data.fasta import STANDARD_RESIDUES, read_fasta
from plm.data.protein_store import ProteinStore
from plm.errors import UserError
from plm.jobs.variants.notation import Substitution

Floats = NDArray[np.float64]
_INDEX = {letter: index for index, letter in enumerate(STANDARD_RESIDUES)}
_OTHER = re.compile(f"[^{STANDARD_RESIDUES}]")
_CODES = np.full(128, 20, np.int64)
_CODES[[ord(letter) for letter in STANDARD_RESIDUES]] = np.arange(20)


def blosum62() -> Floats:
    """(20, 20) BLOSUM62 (Henikoff and Henikoff 1992), rows and columns in the order of the letters."""
    from Bio.Align import substitution_matrices

    matrix = substitution_matrices.load("BLOSUM62")
    return np.array([[matrix[one][other] for other in STANDARD_RESIDUES] for one in STANDARD_RESIDUES], np.float64)


def background(proteins: ProteinStore) -> Floats:
    """(20,) frequencies of the amino acids in all different sequences, one of each counted more."""
    counts = np.ones(20)
    for sequence in proteins.sequences:
        counts += np.bincount(_CODES[np.frombuffer(sequence.encode(), np.uint8)], minlength=21)[:20]
    frequencies: Floats = counts / counts.sum()
    return frequencies


@dataclass(frozen=True)
class AlignedColumns:
    """Frequencies in the columns of an alignment.

    Attributes:
        sequence: Number of the protein that is its first record.
        frequencies: (L, 20) of the amino acids in the column of each of its residues.
        records: Aligned sequences, the first among them.
    """

    sequence: int
    frequencies: Floats
    records: int


def read_alignment(path: Path, proteins: ProteinStore, expected: Floats) -> AlignedColumns:
    """Reads an aligned FASTA or A3M file whose first record is one of the proteins.

    A column of n amino acids gets as many pseudo-counts as the square root of n (and one at least), spread as the
    proteins' own frequencies (Henikoff and Henikoff 1996).

    Args:
        path: Alignment; in A3M lower-case letters are insertions.
        proteins: Proteins of the input.
        expected: (20,) frequencies without an alignment.

    Raises:
        UserError: The first record is none of the proteins, or a record is not aligned with it.
    """
    columns = np.empty(0, np.int64)
    counts = np.empty((0, 20))
    number, length, records = -1, 0, 0
    for record in read_fasta(path):
        text = _aligned(record.sequence, length)
        if not records:
            length, letters = len(text), np.frombuffer(text.encode(), np.uint8)
            columns = np.flatnonzero((letters != ord("-")) & (letters != ord(".")))
            number = _sequence_of("".join(chr(code) for code in letters[columns]), proteins, path, record.line)
            counts = np.zeros((len(columns), 20))
        if len(text) != length:
            raise UserError(
                f"The record {record.id!r} has {len(text)} columns and the first one {length}: they are not aligned",
                where=f"{path.name}, line {record.line}", fix="Give an alignment as FASTA or A3M",
            )
        codes = _CODES[np.minimum(np.frombuffer(text.encode(), np.uint8)[columns], 127)]
        rows = np.flatnonzero(codes < 20)
        counts[rows, codes[rows]] += 1
        records += 1
    total = counts.sum(1, keepdims=True)
    pseudo = np.maximum(np.sqrt(total), 1.0)
    return AlignedColumns(number, (counts + pseudo * expected) / (total + pseudo), records)


def _aligned(text: str, length: int) -> str:
    if length and len(text) != length:  # A3M: insertions are in lower case, and dots stand beside them
        text = "".join(letter for letter in text if not letter.islower() and letter != ".")
    return text.upper()


def _sequence_of(text: str, proteins: ProteinStore, path: Path, line: int) -> int:
    plain = _OTHER.sub("X", text)
    for number in range(len(proteins.lengths)):
        if int(proteins.lengths[number]) == len(text) and _OTHER.sub("X", proteins.sequences[number]) == plain:
            return number
    raise UserError(
        "The first sequence of the alignment is none of the proteins", where=f"{path.name}, line {line}",
        fix="Put the protein first, with the very residues that it has among the proteins",
    )


@dataclass(frozen=True)
class Baselines:
    """What both baselines say of substitutions; higher is more tolerated, as with the model.

    Attributes:
        matrix: (20, 20) BLOSUM62.
        frequencies: (20,) in the proteins.
        aligned: Columns of an alignment of one protein, if there is one.
    """

    matrix: Floats
    frequencies: Floats
    aligned: AlignedColumns | None = None

    def blosum62(self, substitutions: Sequence[Substitution]) -> float:
        """Sum of the matrix's entries."""
        return float(sum(self.matrix[_INDEX[one.wild_type], _INDEX[one.mutant]] for one in substitutions))

    def site_frequency(self, sequence: int, substitutions: Sequence[Substitution]) -> float:
        """Sum of log(frequency of the mutant / frequency of the wild type): in the column, or in all proteins."""
        total = 0.0
        for one in substitutions:
            of = self.frequencies
            if self.aligned is not None and self.aligned.sequence == sequence:
                of = self.aligned.frequencies[one.position - 1]
            total += float(np.log(of[_INDEX[one.mutant]]) - np.log(of[_INDEX[one.wild_type]]))
        return total
