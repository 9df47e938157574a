"""Tables beside an embeddings file: what became of each record, log-probabilities, pseudo-perplexity, contacts."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from plm.data.fasta import STANDARD_RESIDUES
from plm.data.protein_store import ProteinStore

Ints = NDArray[np.int64]
STATUS_COLUMNS = ("id", "line", "length", "encoded", "windows", "cleaned", "duplicate_of", "status", "details")
_BLOCK = 100_000


def write_status(path: Path, proteins: ProteinStore, windows: Ints) -> None:
    """One row a record of the input, in its order.

    Args:
        path: Table to write, tab-separated.
        proteins: Records of the input.
        windows: (U,) windows that each sequence went in.
    """
    with path.open("w", encoding="utf-8", newline="\n") as handle:
        handle.write("\t".join(STATUS_COLUMNS) + "\n")
        for record in range(len(proteins.ids)):
            sequence = int(proteins.unique[record])
            encoded = pieces = 0
            twin = ""
            if sequence >= 0:
                first = int(proteins.firsts[sequence])
                encoded, pieces = int(proteins.lengths[sequence]), int(windows[sequence])
                twin = "" if first == record else proteins.ids[first]
            fields = (
                proteins.ids[record],
                proteins.lines[record],
                proteins.letters[record],
                encoded,
                pieces,
                proteins.cleaned[record],
                twin,
                "embedded" if sequence >= 0 else "rejected",
                proteins.details.get(record, ""),
            )
            handle.write("\t".join(map(str, fields)) + "\n")


def write_logits(path: Path, proteins: ProteinStore, rows: Iterable[NDArray[np.float32]]) -> None:
    """One row a residue: id, position (from 1), residue, entropy (nats) and the twenty log-probabilities (nats).

    Args:
        path: Table to write, tab-separated.
        proteins: Records of the input.
        rows: (L, 20) of each embedded record, in order.
    """
    import pyarrow as pa
    from pyarrow import compute as pc

    names = ["id", "position", "residue", "entropy", *STANDARD_RESIDUES]
    with path.open("wb") as handle:
        handle.write(("\t".join(names) + "\n").encode())
        for (record, number), values in zip(proteins.embedded(), rows, strict=True):
            name, sequence = proteins.ids[record], proteins.sequences[number]
            for start in range(0, len(sequence), _BLOCK):
                block = values[start : start + _BLOCK].astype(np.float64)
                entropy = -(np.exp(block) * block).sum(1)
                columns = [
                    pa.array([name] * len(block), pa.string()),
                    pc.cast(pa.array(np.arange(start + 1, start + 1 + len(block))), pa.string()),
                    pa.array(list(sequence[start : start + _BLOCK]), pa.string()),
                    *(pc.cast(pa.array(column), pa.string()) for column in (np.round(entropy, 4) + 0.0,
                                                                            *np.round(block, 4).T)),
                ]
                # Not by Arrow's writer of CSV, which refuses quotation marks in a table without quotes.
                lines = pc.binary_join_element_wise(*columns, "\t")
                handle.write("".join(f"{line}\n" for line in lines.to_pylist()).encode())


def write_perplexity(path: Path, proteins: ProteinStore, values: Iterable[tuple[float, int]], mode: str) -> None:
    """One row an embedded record: id, length, residues that were scored, pseudo-perplexity, how it was computed."""
    with path.open("w", encoding="utf-8", newline="\n") as handle:
        handle.write("id\tlength\tscored\tpseudo_perplexity\tmode\n")
        for (record, number), (perplexity, scored) in zip(proteins.embedded(), values, strict=True):
            length = int(proteins.lengths[number])
            shown = f"{perplexity:.6g}" if scored else ""
            handle.write(f"{proteins.ids[record]}\t{length}\t{scored}\t{shown}\t{mode}\n")


def write_contacts(
    path: Path, proteins: ProteinStore, values: Iterable[tuple[NDArray[np.int32], NDArray[np.float32]]]
) -> None:
    """One row a contact of an embedded record: id, i, j (from 1, i < j), probability."""
    with path.open("w", encoding="utf-8", newline="\n") as handle:
        handle.write("id\ti\tj\tprobability\n")
        for (record, _), (pairs, probabilities) in zip(proteins.embedded(), values, strict=True):
            name = proteins.ids[record]
            for (i, j), probability in zip(pairs.tolist(), probabilities.tolist(), strict=True):
                handle.write(f"{name}\t{i + 1}\t{j + 1}\t{probability:.4f}\n")
