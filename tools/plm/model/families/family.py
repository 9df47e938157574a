"""What differs between model families: everything that the rest of the suite asks of one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from plm.errors import UserError
from plm.model.families.letters import MODEL_LETTERS
from plm.model.families.settings import Setting
from plm.received.fields import Fields

if TYPE_CHECKING:
    import torch
    from torch import nn

    from plm.model.batching import Batch

KIND = "model_type"
"""The field of ``config.json`` that names transformers' kind of model."""
PUBLISHED = "Use the config.json that was published with the model"
MISMATCH = "Use the config.json and the weights of one model"


@dataclass(frozen=True)
class MemoryLaw:
    """What batches take, counted in numbers of the type that the model computes in.

    Attributes:
        per_token: Widths of the model that live at once at the widest place of a layer (24 measured for ESM-2).
        per_pair: Numbers that each head keeps for a pair of tokens where attention has a bias, by type of device.
        bytes_per_pair: Beside them, for each pair of tokens.
        trained_per_token: Widths that each layer keeps for the way back (Korthikanti et al. 2022, without attention
            weights).
        trained_per_pair: Numbers that each head of a layer keeps for each pair of tokens.
    """

    per_token: int = 26
    per_pair: Mapping[str, float] = field(default_factory=dict)
    bytes_per_pair: int = 0
    trained_per_token: int = 34
    trained_per_pair: int = 0


@dataclass(frozen=True)
class ModelFamily(ABC):
    """One family of protein language models.

    Attributes:
        max_residues: Longest sequence that a checkpoint's position embedding can hold, or None.
        name: Short id used in manifests and messages.
        title: Name for people.
        before: Special tokens in front of the residues, as vocabulary entries.
        after: Special tokens behind the residues.
        mask: The vocabulary entry that hides a residue, or an empty string where there is none.
        mark: What stands before a residue's letter in its vocabulary entry.
        unusual: Of :data:`UNUSUAL_LETTERS` those that models of the family were trained with.
        kind: ``model_type`` in ``config.json``.
        config_class: transformers' class of configurations.
        encoder_class: transformers' class of the encoder alone.
        encoder_options: Arguments of that class.
        language_model_class: The class of encoder and masked-language-model head, or an empty string.
        head: Where that head lies in such a model.
        head_weights: What the names of its weights begin with.
        prefix: What the names of the encoder's weights begin with in a model with a head.
        parts: What they begin with after that.
        contact_head: Where the regression from attention maps to contacts lies in the encoder, or an empty string.
        settings: The fields of ``config.json`` that decide what a model computes.
        constants: Fields with the only values that the family's models compute with, where a file has them.
        depth: The field that counts the layers.
        sizes: The weights whose shapes fields (or products of them) tell, by the end of their names.
        attention_targets: Names of the linear layers of attention, for adapters.
        key_value_targets: The attention layers that IA3 rescales.
        feedforward_targets: Names of the second feed-forward layers, which IA3 rescales.
        memory: What batches take.
        relative_bias: Whether attention adds a bias of the distance.
        half_safe: Whether published models of the family compute well in float16.
    """

    max_residues: int | None = None

    name: ClassVar[str]
    title: ClassVar[str]
    before: ClassVar[tuple[str, ...]]
    after: ClassVar[tuple[str, ...]]
    mask: ClassVar[str] = ""
    mark: ClassVar[str] = ""
    unusual: ClassVar[str] = ""

    kind: ClassVar[str]
    config_class: ClassVar[str]
    encoder_class: ClassVar[str]
    encoder_options: ClassVar[Mapping[str, Any]] = {}
    language_model_class: ClassVar[str] = ""
    head: ClassVar[str] = ""
    head_weights: ClassVar[str] = ""
    contact_head: ClassVar[str] = ""
    prefix: ClassVar[str] = ""
    parts: ClassVar[tuple[str, ...]]

    settings: ClassVar[Mapping[str, Setting]]
    constants: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    depth: ClassVar[str] = "num_hidden_layers"
    sizes: ClassVar[Mapping[str, tuple[str, ...]]]

    attention_targets: ClassVar[tuple[str, ...]]
    key_value_targets: ClassVar[tuple[str, ...]]
    feedforward_targets: ClassVar[tuple[str, ...]]
    memory: ClassVar[MemoryLaw] = MemoryLaw()
    relative_bias: ClassVar[bool] = False
    half_safe: ClassVar[bool] = False

    @abstractmethod
    def matches(self, config: Mapping[str, Any], vocabulary: Mapping[str, int]) -> bool:
        """Whether a checkpoint with this ``config.json`` content and vocabulary (token to id) is of the family."""

    @abstractmethod
    def layers(self) -> Mapping[type[nn.Module], type[nn.Module]]:
        """The layers of transformers that must work otherwise on packed rows, and what takes their place."""

    @abstractmethod
    def inputs(self, encoder: Any, batch: Batch) -> dict[str, torch.Tensor]:
        """What the encoder of the family is called with for a packed row, each tensor ``(1, T, ...)``."""

    @abstractmethod
    def numbers(self, settings: Mapping[str, Any]) -> int:
        """About how many numbers an encoder of these settings has."""

    def checked(self, settings: dict[str, Any], fields: Fields, where: str) -> dict[str, Any]:
        """Settings after what must hold of several fields together.

        Args:
            settings: Each read by itself.
            fields: The whole file.
            where: What messages call the model.

        Raises:
            UserError: They make no model of the family.
        """
        return settings

    def limit(self, settings: Mapping[str, Any]) -> int | None:
        """Residues of the longest sequence that the position embedding of such a model can hold, or None."""
        return None

    def token(self, letter: str) -> str:
        """The vocabulary entry of a residue letter."""
        return self.mark + letter

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

    def check_length(self, tokens: int) -> None:
        """Refuses a sequence that the position embedding cannot hold.

        Args:
            tokens: Of the sequence, special tokens included.

        Raises:
            UserError: It is too long.
        """
        residues = int(tokens) - self.specials
        if self.max_residues is not None and residues > self.max_residues:
            raise UserError(
                f"{self.title} takes at most {self.max_residues} residues and a sequence has {residues}",
                fix="Cut windows (plm_preprocess), lower --max-length, or use ESM-2 or ProtT5, which are without limit",
            )

    @property
    def specials(self) -> int:
        """Special tokens that each sequence carries beside its residues."""
        return len(self.before) + len(self.after)


def single_letters(vocabulary: Mapping[str, int]) -> bool:
    """Whether a vocabulary has an entry for each residue and, special tokens apart, none of several letters."""
    return "A" in vocabulary and all(len(token) == 1 or token[0] in "<[" for token in vocabulary)
