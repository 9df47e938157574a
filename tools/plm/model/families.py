"""What differs between model families, in one record each.

A family is chosen by a predicate on the checkpoint's config and tokenizer: ``model_type`` alone is not enough, since
``esm``
covers ESM-1b and ESM-2, and ``t5`` covers ProtT5 and Ankh.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from plm.errors import UserError

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
MODEL_LETTERS = AMINO_ACIDS + "X"
"""Letters that reach a model; everything else becomes X in :func:`prepare`."""

_TO_MODEL = {ord(letter): (letter if letter in MODEL_LETTERS else "X") for letter in map(chr, range(33, 127))}


UNUSUAL_LETTERS = "BOUZ"
"""Selenocysteine, pyrrolysine and the two doubtful pairs: some vocabularies have them."""


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


@dataclass(frozen=True)
class ModelFamily:
    """One family of protein language models.

    Attributes:
        name: Short id used in manifests and messages.
        title: Name for people.
        matches: Whether a checkpoint with this ``config.json`` content and vocabulary belongs to the family.
        token: The vocabulary entry of a residue letter.
        before: Special tokens in front of the residues, as vocabulary entries.
        after: Special tokens behind the residues.
        mask: The vocabulary entry that hides a residue, or an empty string where there is none.
        attention_targets: Names of the linear layers of attention, for adapters.
        feedforward_targets: Names of the second feed-forward layers, which IA3 rescales.
        key_value_targets: The attention layers that IA3 rescales.
        max_residues: Longest sequence the position embedding can hold, or None.
        unusual: Of :data:`UNUSUAL_LETTERS` those that models of the family were trained with.
    """

    name: str
    title: str
    matches: Callable[[Mapping[str, Any], Mapping[str, int]], bool]
    token: Callable[[str], str]
    before: tuple[str, ...]
    after: tuple[str, ...]
    mask: str
    attention_targets: tuple[str, ...]
    feedforward_targets: tuple[str, ...]
    key_value_targets: tuple[str, ...]
    max_residues: int | None = None
    unusual: str = ""

    def own_letters(self, vocabulary: Mapping[str, int]) -> dict[str, int]:
        """Token ids of the unusual letters that a checkpoint of the family knows itself."""
        return {letter: vocabulary[self.token(letter)] for letter in self.unusual if self.token(letter) in vocabulary}

    def letter_ids(self, vocabulary: Mapping[str, int]) -> dict[str, int]:
        """The token id of each letter that reaches the model.

        Raises:
            UserError: The checkpoint's vocabulary lacks a letter.
        """
        missing = [letter for letter in MODEL_LETTERS if self.token(letter) not in vocabulary]
        if missing:
            raise UserError(
                f"The tokenizer of this {self.title} checkpoint does not know the residues {''.join(missing)}",
                fix="Use the tokenizer files that were published with the model",
            )
        return {letter: vocabulary[self.token(letter)] for letter in MODEL_LETTERS}

    @property
    def specials(self) -> int:
        """Special tokens that each sequence carries beside its residues."""
        return len(self.before) + len(self.after)


def _rotary(config: Mapping[str, Any], vocabulary: Mapping[str, int]) -> bool:
    return config.get("model_type") == "esm" and config.get("position_embedding_type") == "rotary"


def _absolute(config: Mapping[str, Any], vocabulary: Mapping[str, int]) -> bool:
    return config.get("model_type") == "esm" and config.get("position_embedding_type") == "absolute"


def _word_start_letters(config: Mapping[str, Any], vocabulary: Mapping[str, int]) -> bool:
    return config.get("model_type") == "t5" and "▁A" in vocabulary


_ESM = {
    "token": lambda letter: letter,
    "before": ("<cls>",),
    "after": ("<eos>",),
    "mask": "<mask>",
    "attention_targets": ("query", "key", "value", "attention.output.dense"),
    "feedforward_targets": (r"layer\.\d+\.output\.dense",),
    "key_value_targets": ("key", "value"),
    "unusual": UNUSUAL_LETTERS,
}

FAMILIES: tuple[ModelFamily, ...] = (
    ModelFamily(name="esm2", title="ESM-2", matches=_rotary, **_ESM),  # type: ignore[arg-type]
    ModelFamily(name="esm1b", title="ESM-1b", matches=_absolute, max_residues=1022, **_ESM),  # type: ignore[arg-type]
    ModelFamily(
        name="prott5",
        title="ProtT5",
        matches=_word_start_letters,
        token=lambda letter: "▁" + letter,
        before=(),
        after=("</s>",),
        mask="",
        attention_targets=("q", "k", "v", "o"),
        feedforward_targets=("wo",),
        key_value_targets=("k", "v"),
    ),
)


def find_family(config: Mapping[str, Any], vocabulary: Mapping[str, int], *, where: str = "") -> ModelFamily:
    """The family that a checkpoint belongs to.

    Args:
        config: Content of ``config.json``.
        vocabulary: Token to id.
        where: The checkpoint, for the message.

    Raises:
        UserError: No family of the suite fits.
    """
    for family in FAMILIES:
        if family.matches(config, vocabulary):
            return family
    known = ", ".join(family.title for family in FAMILIES)
    raise UserError(
        f"The checkpoint's architecture ({config.get('model_type', 'no model_type')}) is none that the suite knows",
        where=where,
        fix=f"Use one of: {known}",
    )
