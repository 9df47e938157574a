"""The letters of proteins that models are asked about."""

from __future__ import annotations

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
MODEL_LETTERS = AMINO_ACIDS + "X"
"""Letters that reach a model; everything else becomes X in :func:`prepare`."""

UNUSUAL_LETTERS = "BOUZ"
"""Selenocysteine, pyrrolysine and the two doubtful pairs: some vocabularies have them."""

_TO_MODEL = {ord(letter): (letter if letter in MODEL_LETTERS else "X") for letter in map(chr, range(33, 127))}


def prepare(sequence: str, own: str = "") -> str:
    """Upper case, and X for every letter that is not one of the twenty amino acids: length is kept.

    Args:
        sequence: Any printable letters.
        own: Of :data:`UNUSUAL_LETTERS` those that the checkpoint knows and that are kept. ProtT5's authors mapped all
            of them to X; ESM's own tokenizer has them.
    """
    if own:
        kept = {ord(letter): letter if letter in own else "X" for letter in UNUSUAL_LETTERS}
        return sequence.upper().translate(_TO_MODEL | kept)
    return sequence.upper().translate(_TO_MODEL)
