"""Samples of proteins with given length distributions, the same for every variant."""

from __future__ import annotations

from pathlib import Path

import numpy as np

LETTERS = "ACDEFGHIKLMNPQRSTVWY"
YEAST = {
    0.0: 16, 0.01: 44, 0.02: 58, 0.05: 92, 0.1: 122, 0.2: 193, 0.3: 258, 0.4: 326, 0.5: 396, 0.6: 471, 0.7: 566,
    0.8: 693, 0.9: 943, 0.95: 1211, 0.98: 1656, 0.99: 1793, 0.995: 2129, 1.0: 4910,
}
"""Quantiles of the protein lengths of baker's yeast (UniProt UP000002311, 6,077 proteins)."""

MIXES = {
    "proteome": "lengths of the yeast proteome",
    "windows": "windows of 33 residues",
    "long": "proteins of 2,000 to 3,000 residues",
    "uneven": "half of the residues in peptides of 20 to 60, half in proteins of 1,500 to 2,500",
}


def sample(mix: str, residues: int, fasta: Path | None = None, seed: int = 7) -> list[str]:
    """Proteins of about so many residues, in random order.

    Args:
        mix: One of :data:`MIXES`.
        residues: How many altogether; at least two proteins are given.
        fasta: A proteome that ``proteome`` takes proteins from instead of random letters in yeast's lengths.
        seed: Of the choice.
    """
    generator = np.random.default_rng(seed)
    if mix == "proteome" and fasta is not None:
        return _from_proteome(fasta, residues, generator)
    if mix == "proteome":
        mean = np.mean([yeast_length(share) for share in np.linspace(0, 1, 2001)])
        lengths = [yeast_length(share) for share in _strata(max(2, round(residues / mean)), generator)]
    elif mix == "windows":
        lengths = [33] * max(2, residues // 33)
    elif mix == "long":
        lengths = generator.integers(2000, 3001, size=max(2, residues // 2500)).tolist()
    elif mix == "uneven":
        short = generator.integers(20, 61, size=max(1, residues // 80)).tolist()
        lengths = short + generator.integers(1500, 2501, size=max(1, residues // 4000)).tolist()
    else:
        raise ValueError(f"there is no mix {mix!r}: choose one of {', '.join(MIXES)}")
    order = generator.permutation(len(lengths))
    return ["".join(generator.choice(list(LETTERS), size=int(lengths[index]))) for index in order]


def yeast_length(share: float) -> int:
    """The length below which ``share`` (0-1) of yeast's proteins lie, between its known quantiles geometrically."""
    return round(float(np.exp(np.interp(share, list(YEAST), np.log(list(YEAST.values()))))))


def _strata(count: int, generator: np.random.Generator) -> np.ndarray:
    """One random share (0-1) in each of ``count`` equal parts, so that small samples have the whole spread."""
    return (np.arange(count) + generator.uniform(size=count)) / count


def _from_proteome(fasta: Path, residues: int, generator: np.random.Generator) -> list[str]:
    found = _proteome(fasta)
    count = max(2, round(residues / (sum(map(len, found)) / len(found))))
    if count >= len(found):
        chosen = list(range(len(found)))
    else:
        chosen = [int(share * len(found)) for share in _strata(count, generator)]
    return [found[chosen[index]] for index in generator.permutation(len(chosen))]


def _proteome(fasta: Path) -> list[str]:
    """Its different proteins, shortest first."""
    from plm.data.fasta import clean
    from plm.data.proteins import read_proteins

    cleaned = (clean(record.sequence) for record in read_proteins(fasta))
    return sorted({one.sequence for one in cleaned if not one.rejected}, key=lambda text: (len(text), text))


def evenly(count: int, longest: int, fasta: Path | None = None, seed: int = 7) -> list[str]:
    """``count`` proteins of up to ``longest`` residues whose lengths divide the distribution evenly, in random order.

    No chance in the lengths: even a batch or two have usual ones.
    """
    generator = np.random.default_rng(seed)
    shares = (np.arange(count) + 0.5) / count
    if fasta is not None:
        found = [text for text in _proteome(fasta) if len(text) <= longest]
        chosen = [found[int(share * len(found))] for share in shares]
    else:
        known = [length for length in (yeast_length(x) for x in np.linspace(0, 1, 2001)) if length <= longest]
        lengths = [known[int(share * len(known))] for share in shares]
        chosen = ["".join(generator.choice(list(LETTERS), size=length)) for length in lengths]
    return [chosen[index] for index in generator.permutation(count)]


def write_fasta(sequences: list[str], path: Path) -> Path:
    """The sequences as ``protein1``, ``protein2``, ...; the path."""
    path.write_text("".join(f">protein{number}\n{text}\n" for number, text in enumerate(sequences, start=1)))
    return path
