"""A model in memory, and the files it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plm.model.families import ModelFamily, prepare

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ModelFiles:
    """A checkpoint on disk.

    Attributes:
        id: The name that people know it by: ``starter``, a folder's name or a hub id.
        directory: Holds ``config.json``, tokenizer files and weights as links, and nothing else that came with them.
        sha256: Fingerprint (:mod:`plm.fingerprints`) of weights, configuration and vocabulary: two checkpoints with the
            same one are the same model.
    """

    id: str
    directory: Path
    sha256: str


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory, ready for packed rows.

    Attributes:
        model: The transformers model, in evaluation mode.
        vocabulary: Token to id, from the checkpoint's tokenizer.
        family: What is special about its family.
        files: Where it came from.
        hidden_size: Width of a residue representation.
        layers: Number of transformer layers.
        device: Where its parameters are.
        dtype: Their type.
        has_contacts: Whether the checkpoint carries a trained regression from attention maps to contacts.
    """

    model: Any
    vocabulary: Mapping[str, int]
    family: ModelFamily
    files: ModelFiles
    hidden_size: int
    layers: int
    device: torch.device
    dtype: torch.dtype
    has_contacts: bool = False

    def token_ids(self, sequence: str) -> list[int]:
        """Token ids of a sequence with its special tokens, as the checkpoint's own tokenizer gives them.

        Raises:
            UserError: The family's position embedding cannot hold the sequence.
        """
        self.family.check_length(len(sequence) + self.family.specials)
        own = self.family.own_letters(self.vocabulary)
        letters = self.family.letter_ids(self.vocabulary) | own
        before = [self.vocabulary[token] for token in self.family.before]
        after = [self.vocabulary[token] for token in self.family.after]
        return [*before, *(letters[letter] for letter in prepare(sequence, "".join(own))), *after]
