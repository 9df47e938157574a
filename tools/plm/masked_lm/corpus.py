"""A corpus as token ids, in memory or mapped from a file: cropped and masked row by row, the same for the same seed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import torch

from plm.errors import UserError
from plm.model.batching import Batch, RowLayout, plan_batches
from plm.model.families import AMINO_ACIDS, ModelFamily, prepare

IGNORED = -100
"""Target of tokens that are not predicted (torch's ``ignore_index``)."""

SHARES = (0.8, 0.1)
"""Of the residues to predict, so many are hidden and so many replaced; the rest stay (Devlin et al. 2019)."""
_BLOCK = 4096


@dataclass(frozen=True)
class Corpus:
    """Sequences as one array of letter ids.

    Attributes:
        tokens: ``(sum of lengths,)`` token ids of residues only; a mapped file serves as well.
        offsets: ``(N + 1,)`` int64: sequence i is ``tokens[offsets[i]:offsets[i + 1]]``.
        before: Ids of the special tokens in front of each sequence.
        after: Token ids behind each sequence.
        mask: Id that hides a residue; -1 where the family has none.
        letters: Ids of the twenty amino acids, the only ones that are predicted or put in.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    before: tuple[int, ...]
    after: tuple[int, ...]
    mask: int
    letters: np.ndarray

    @classmethod
    def build(cls, sequences: Sequence[str], family: ModelFamily, vocabulary: Mapping[str, int]) -> Corpus:
        """Turns sequences into token ids; letters that are no amino acid become X and are never predicted."""
        ids = family.letter_ids(vocabulary)
        table = np.zeros(128, dtype=np.int16)
        for letter, number in ids.items():
            table[ord(letter)] = number
        lengths = np.fromiter((len(sequence) for sequence in sequences), dtype=np.int64, count=len(sequences))
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        tokens = np.empty(int(offsets[-1]), dtype=np.int16)
        for index, sequence in enumerate(sequences):
            codes = np.frombuffer(prepare(sequence).encode("ascii"), dtype=np.uint8)
            tokens[offsets[index] : offsets[index + 1]] = table[codes]
        return cls(
            tokens=tokens, offsets=offsets, before=tuple(vocabulary[token] for token in family.before),
            after=tuple(vocabulary[token] for token in family.after),
            mask=vocabulary[family.mask] if family.mask else -1,
            letters=np.array([ids[letter] for letter in AMINO_ACIDS], dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def residues(self) -> int:
        """Residues of all sequences together."""
        return int(self.offsets[-1])

    def digest(self) -> str:
        """sha256 of all sequences: equal digests mean the same corpus."""
        hasher = sha256(np.ascontiguousarray(self.tokens).data)
        hasher.update(np.ascontiguousarray(self.offsets).data)
        return hasher.hexdigest()

    def lengths(self, crop: int) -> np.ndarray:
        """Tokens of each sequence in a row, special tokens included, residues cropped to ``crop``."""
        return np.minimum(np.diff(self.offsets), crop) + len(self.before) + len(self.after)

    def residue_ids(self, index: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """``(L,)`` int64 token ids of a sequence's residues, or of a stretch of it."""
        first, end = int(self.offsets[index]), int(self.offsets[index + 1])
        return np.asarray(self.tokens[first + start : end if stop is None else first + stop]).astype(np.int64)

    def frequencies(self, indices: np.ndarray | None = None) -> np.ndarray:
        """``(20,)`` share of each amino acid, in the order of ``letters``; every count starts at one.

        Args:
            indices: Of these sequences only; all by default.
        """
        wanted = np.ones(len(self), bool)
        if indices is not None:
            wanted[:] = False
            wanted[indices] = True
        counts = np.zeros(int(self.letters.max()) + 1, np.int64)
        for start in range(0, len(self), _BLOCK):  # numpy counts in int64: a block at a time keeps memory flat
            stop = min(start + _BLOCK, len(self))
            part = np.asarray(self.tokens[self.offsets[start] : self.offsets[stop]])
            if indices is not None:
                part = part[np.repeat(wanted[start:stop], np.diff(self.offsets[start : stop + 1]))]
            counts += np.bincount(part, minlength=len(counts))[: len(counts)]
        shares = counts[self.letters] + 1.0
        return shares / shares.sum()

    def hide(
        self, residues: np.ndarray, rate: float, generator: np.random.Generator,
        shares: tuple[float, float] = SHARES,
    ) -> np.ndarray:
        """Hides an exact share of one sequence's residues in place, at least one.

        Args:
            residues: ``(L,)`` int64 token ids; those to predict are hidden, replaced or left, see ``shares``.
            rate: Share of residues to predict, 0-1.
            generator: Random generator that chooses the residues and what replaces them.
            shares: Of the residues to predict, those that are hidden and those that are replaced, each 0-1.

        Returns:
            ``(L,)`` int64 targets: the true id where a residue is to be predicted, else ``IGNORED``.

        Raises:
            UserError: The family has no token that hides a residue.
        """
        if self.mask < 0:
            raise UserError(
                "This family of models has no mask token, so no residue can be hidden from it",
                fix="Choose a model of another family",
            )
        target = np.full(len(residues), IGNORED, dtype=np.int64)
        known = np.flatnonzero(np.isin(residues, self.letters))
        count = min(len(known), max(1, round(rate * len(residues))))
        chosen = generator.permutation(known)[:count]
        target[chosen] = residues[chosen]
        hidden = round(shares[0] * count) if count > 1 else 1
        replaced = round(shares[1] * count)
        residues[chosen[:hidden]] = self.mask
        swap = chosen[hidden : hidden + replaced]
        residues[swap] = generator.choice(self.letters, size=len(swap))
        return target

    def row(
        self, members: Sequence[int], stretches: Sequence[np.ndarray], targets: Sequence[np.ndarray] | None = None
    ) -> tuple[Batch, torch.Tensor]:
        """Lays residues end to end with the family's special tokens around each sequence.

        Args:
            members: Numbers of the sequences, in the order of the row.
            stretches: ``(L,)`` int64 residue ids of each.
            targets: ``(L,)`` int64 targets of each; none to predict by default.

        Returns:
            The row and its ``(T,)`` int64 targets, ``IGNORED`` at special tokens.
        """
        before, after = (np.array(part, dtype=np.int64) for part in (self.before, self.after))
        edges = [np.full(len(part), IGNORED, dtype=np.int64) for part in (before, after)]
        ids = [part for residues in stretches for part in (before, residues, after)]
        if targets is None:
            targets = [np.full(len(residues), IGNORED, dtype=np.int64) for residues in stretches]
        asked = [part for target in targets for part in (edges[0], target, edges[1])]
        lengths = tuple(len(residues) + len(before) + len(after) for residues in stretches)
        positions = np.concatenate([np.arange(length) for length in lengths])
        batch = Batch(
            torch.from_numpy(np.concatenate(ids)), torch.from_numpy(positions), RowLayout(lengths), tuple(members)
        )
        return batch, torch.from_numpy(np.concatenate(asked))

    def masked_row(
        self, members: Sequence[int], *, crop: int, rate: float, generator: np.random.Generator,
        shares: tuple[float, float] = SHARES,
    ) -> tuple[Batch, torch.Tensor]:
        """Packs sequences into a row and hides residues: an exact share of each sequence, at least one.

        Args:
            members: Numbers of the sequences, in the order of the row.
            crop: Longer ones give a random stretch of this many residues.
            rate: Share of the residues to predict, 0-1.
            generator: Random generator that chooses the residues and what replaces them.
            shares: As in :meth:`hide`.

        Returns:
            The row and its ``(T,)`` int64 targets: the true id where a residue is to be predicted, else ``IGNORED``.
        """
        stretches: list[np.ndarray] = []
        targets: list[np.ndarray] = []
        for member in members:
            residues = self.stretch(member, crop, generator)
            targets.append(self.hide(residues, rate, generator, shares))
            stretches.append(residues)
        return self.row(members, stretches, targets)

    def stretch(self, index: int, crop: int, generator: np.random.Generator) -> np.ndarray:
        """``(L,)`` int64 residue ids of a sequence, of a longer one a random stretch of ``crop`` residues."""
        length = int(self.offsets[index + 1] - self.offsets[index])
        if length <= crop:
            return self.residue_ids(index)
        start = int(generator.integers(length - crop + 1))
        return self.residue_ids(index, start, start + crop)


class EpochRows(torch.utils.data.Dataset, ABC):
    """Rows by number, epoch after epoch without end; what an epoch holds depends on its number only."""

    def __init__(self, rows: int) -> None:
        """Takes ``rows`` rows."""
        self._rows = rows
        self._starts = [0]
        self._plan: tuple[int, Sequence[Any]] | None = None

    def __len__(self) -> int:
        return self._rows

    @abstractmethod
    def plan_of(self, epoch: int) -> Sequence[Any]:
        """The rows of an epoch: the members of each."""

    def rows_of(self, epoch: int) -> Sequence[Any]:
        """As :meth:`plan_of`; the last one is kept."""
        if self._plan is None or self._plan[0] != epoch:
            self._plan = (epoch, self.plan_of(epoch))
        return self._plan[1]

    def epoch_of(self, number: int) -> tuple[int, int]:
        """The epoch that a row belongs to and its place in it, both from 0."""
        while self._starts[-1] <= number:
            self._starts.append(self._starts[-1] + len(self.rows_of(len(self._starts) - 1)))
        epoch = next(index for index, start in enumerate(self._starts[1:]) if number < start)
        return epoch, number - self._starts[epoch]

    def epochs(self, rows: int) -> float:
        """Passes over the corpus after so many rows."""
        epoch, place = self.epoch_of(rows - 1)
        return epoch + (place + 1) / max(1, len(self.rows_of(epoch)))


class MaskedRows(EpochRows):
    """Row number -> masked row, epoch after epoch without end; a row depends on the seed and its number only.

    So a resumed run, and any number of workers, see the rows that an uninterrupted run sees.
    """

    def __init__(
        self, corpus: Corpus, rows: int, *, budget: int, crop: int, rate: float, seed: int,
        shares: tuple[float, float] = SHARES,
    ) -> None:
        """Takes ``rows`` rows of at most ``budget`` tokens; see :meth:`Corpus.masked_row` for the rest."""
        super().__init__(rows)
        self._corpus, self._budget = corpus, budget
        self._crop, self._rate, self._seed, self._shares = crop, rate, seed, shares

    def plan_of(self, epoch: int) -> Sequence[Sequence[int]]:
        seed = int(np.random.SeedSequence([self._seed, epoch]).generate_state(1)[0])
        return plan_batches(self._corpus.lengths(self._crop).tolist(), self._budget, seed=seed)

    def __getitem__(self, number: int) -> tuple[Batch, torch.Tensor]:
        epoch, place = self.epoch_of(number)
        generator = np.random.default_rng([self._seed, number])
        members = self.rows_of(epoch)[place]
        return self._corpus.masked_row(
            members, crop=self._crop, rate=self._rate, generator=generator, shares=self._shares
        )
