"""A corpus in memory as token ids: compact, cropped and masked anew for each row, the same for the same seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch

from plm.data import fasta, homology, records
from plm.data.inputs import read_records
from plm.errors import UserError
from plm.model.batching import Batch, Layout, plan_batches
from plm.model.families import AMINO_ACIDS, ModelFamily, prepare

IGNORED = -100
"""Target of tokens that are not predicted (torch's ``ignore_index``)."""

MASK_SHARE, RANDOM_SHARE = 0.8, 0.1
"""Of the residues to predict, so many are hidden and so many replaced; the rest stay (Devlin et al. 2019)."""


@dataclass(frozen=True)
class Corpus:
    """Sequences as one array of letter ids.

    Attributes:
        tokens: ``(sum of lengths,)`` int16 token ids of residues only.
        offsets: ``(N + 1,)`` int64: sequence i is ``tokens[offsets[i]:offsets[i + 1]]``.
        before: Ids of the special tokens in front of each sequence.
        after: Ids of those behind.
        mask: Id that hides a residue.
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
            tokens=tokens,
            offsets=offsets,
            before=tuple(vocabulary[token] for token in family.before),
            after=tuple(vocabulary[token] for token in family.after),
            mask=vocabulary[family.mask],
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
        found = sha256(self.tokens.tobytes())
        found.update(self.offsets.tobytes())
        return found.hexdigest()

    def lengths(self, crop: int) -> np.ndarray:
        """Tokens of each sequence in a row, special tokens included, residues cropped to ``crop``."""
        return np.minimum(np.diff(self.offsets), crop) + len(self.before) + len(self.after)

    def frequencies(self) -> np.ndarray:
        """``(20,)`` share of each amino acid, in the order of ``letters``; every count starts at one."""
        counts = np.bincount(self.tokens, minlength=int(self.letters.max()) + 1)[self.letters] + 1.0
        return counts / counts.sum()

    def masked_row(
        self, members: Sequence[int], *, crop: int, rate: float, generator: np.random.Generator
    ) -> tuple[Batch, torch.Tensor]:
        """Packs sequences into a row and hides residues: an exact share of each sequence, at least one.

        Args:
            members: Which sequences.
            crop: Longer ones give a random stretch of this many residues.
            rate: Share of the residues to predict, 0-1.
            generator: The source of chance.

        Returns:
            The row and its ``(T,)`` int64 targets: the true id where a residue is to be predicted, else ``IGNORED``.
        """
        ids: list[np.ndarray] = []
        targets: list[np.ndarray] = []
        lengths: list[int] = []
        for member in members:
            start, stop = int(self.offsets[member]), int(self.offsets[member + 1])
            if stop - start > crop:
                start += int(generator.integers(stop - start - crop + 1))
                stop = start + crop
            residues = self.tokens[start:stop].astype(np.int64)
            target = np.full(len(residues), IGNORED, dtype=np.int64)
            known = np.flatnonzero(np.isin(residues, self.letters))
            count = min(len(known), max(1, round(rate * len(residues))))
            chosen = generator.permutation(known)[:count]
            target[chosen] = residues[chosen]
            hidden = round(MASK_SHARE * count) if count > 1 else 1
            replaced = round(RANDOM_SHARE * count)
            residues[chosen[:hidden]] = self.mask
            swap = chosen[hidden : hidden + replaced]
            residues[swap] = generator.choice(self.letters, size=len(swap))
            ids += [np.array(self.before, dtype=np.int64), residues, np.array(self.after, dtype=np.int64)]
            edge = [np.full(len(part), IGNORED, dtype=np.int64) for part in (self.before, self.after)]
            targets += [edge[0], target, edge[1]]
            lengths.append(len(residues) + len(self.before) + len(self.after))
        positions = np.concatenate([np.arange(length) for length in lengths])
        batch = Batch(
            torch.from_numpy(np.concatenate(ids)),
            torch.from_numpy(positions),
            Layout(tuple(lengths)),
            tuple(members),
        )
        return batch, torch.from_numpy(np.concatenate(targets))


class MaskedRows(torch.utils.data.Dataset):
    """Row number -> masked row, epoch after epoch without end; a row depends on the seed and its number only.

    So a resumed run, and any number of workers, see the rows that an uninterrupted run sees.
    """

    def __init__(self, corpus: Corpus, rows: int, *, budget: int, crop: int, rate: float, seed: int) -> None:
        """Takes ``rows`` rows of at most ``budget`` tokens; see :meth:`Corpus.masked_row` for the rest."""
        self._corpus, self._rows, self._budget = corpus, rows, budget
        self._crop, self._rate, self._seed = crop, rate, seed
        self._starts = [0]
        self._plan: tuple[int, list[list[int]]] | None = None

    def __len__(self) -> int:
        return self._rows

    def _rows_of(self, epoch: int) -> list[list[int]]:
        if self._plan is None or self._plan[0] != epoch:
            seed = int(np.random.SeedSequence([self._seed, epoch]).generate_state(1)[0])
            self._plan = (epoch, plan_batches(self._corpus.lengths(self._crop).tolist(), self._budget, seed=seed))
        return self._plan[1]

    def epoch_of(self, number: int) -> tuple[int, int]:
        """The epoch that a row belongs to and its place in it, both from 0."""
        while self._starts[-1] <= number:
            self._starts.append(self._starts[-1] + len(self._rows_of(len(self._starts) - 1)))
        epoch = next(index for index, start in enumerate(self._starts[1:]) if number < start)
        return epoch, number - self._starts[epoch]

    def epochs(self, rows: int) -> float:
        """Passes over the corpus after so many rows."""
        epoch, place = self.epoch_of(rows - 1)
        return epoch + (place + 1) / max(1, len(self._rows_of(epoch)))

    def __getitem__(self, number: int) -> tuple[Batch, torch.Tensor]:
        epoch, place = self.epoch_of(number)
        generator = np.random.default_rng([self._seed, number])
        members = self._rows_of(epoch)[place]
        return self._corpus.masked_row(members, crop=self._crop, rate=self._rate, generator=generator)


@dataclass(frozen=True)
class Proteins:
    """Distinct cleaned sequences with their homology clusters, if the input names them.

    Attributes:
        ids: One id a distinct sequence (its first).
        sequences: Distinct cleaned sequences in input order.
        clusters: One cluster name a sequence, or None.
        read: Records in the input.
        dropped: Reason -> ids of the records that training does not use.
        changed: Records that cleaning changed, such as unusual residues that became X.
    """

    ids: list[str]
    sequences: list[str]
    clusters: list[str] | None
    read: int
    dropped: dict[str, list[str]]
    changed: int = 0

    @property
    def account(self) -> str:
        """Where every record went, in one sentence."""
        told = [f"{len(ids)} left out as {reason} (first: {ids[0]})" for reason, ids in self.dropped.items()]
        cleaned = [f"{self.changed} of them cleaned"] if self.changed else []
        return "; ".join([f"{self.read} records read: {len(self.sequences)} distinct proteins", *cleaned, *told])


def read_sequences(path: Path) -> Proteins:
    """Reads proteins from FASTA, CSV/TSV with a ``sequence`` column, or a dataset table (also Parquet).

    Raises:
        UserError: The file cannot be read, holds nucleotides, or holds no usable protein.
    """
    ids: list[str] = []
    sequences: list[str] = []
    clusters: list[str] = []
    seen: set[str] = set()
    dropped: dict[str, list[str]] = {}
    read = changed = 0
    for identity, raw, cluster in _records(path):
        read += 1
        cleaned = fasta.clean(raw)
        if cleaned.rejected:
            dropped.setdefault("unusable", []).append(f"{identity}, {cleaned.rejected}")
        elif cleaned.sequence in seen:
            dropped.setdefault("repetitions", []).append(identity)
        else:
            seen.add(cleaned.sequence)
            ids.append(identity)
            sequences.append(cleaned.sequence)
            clusters.append(cluster)
            changed += bool(cleaned.changes)
    if not sequences:
        first = next(iter(dropped.values()), ["no record"])[0]
        raise UserError(
            f"The input holds no usable protein; the first: {first}", where=path.name, fix="Give protein sequences"
        )
    return Proteins(ids, sequences, clusters if all(clusters) else None, read, dropped, changed)


def _records(path: Path) -> Iterator[tuple[str, str, str]]:
    """(id, raw sequence, cluster or empty) of each record."""
    if path.is_file():
        with path.open("rb") as opened:
            parquet = opened.read(4) == b"PAR1"
        if parquet:
            table = records.read_dataset(path)
            rows = zip(table["id"], table["sequence"], table.get("cluster", [""] * len(table)), strict=True)
            yield from ((str(a), str(b), str(c)) for a, b, c in rows)
            return
    for record in read_records(path):
        yield record.id, record.sequence, record.columns.get("cluster", "")


@dataclass(frozen=True)
class HeldOut:
    """Training sequences and sequences of clusters that training does not see.

    Attributes:
        train: Sequences to train on.
        held_out: Sequences to judge on.
        set_aside: Sequences of held-out clusters that still have a relative in training; used for neither.
        clusters: How many clusters there are, and how many were held out.
        sentence: All of that in one sentence.
    """

    train: list[str]
    held_out: list[str]
    set_aside: int
    clusters: tuple[int, int]
    sentence: str


def hold_out(proteins: Proteins, *, share: float, identity: float, seed: int, threads: int) -> HeldOut:
    """Keeps whole homology clusters away from training.

    Clusters come from the input or from MMseqs2. Held-out proteins that MMseqs2 still finds a relative of in training
    (E-value up to 0.001, half of the shorter protein) are set aside.

    Args:
        proteins: What there is.
        share: Share of the clusters to hold out, 0-1.
        identity: Identity from which proteins are relatives, 0-1, where clusters must be found.
        seed: Which clusters.
        threads: Processor threads.

    Raises:
        UserError: All proteins are relatives of each other.
    """
    sequences = proteins.sequences
    if proteins.clusters is not None:
        names, origin = proteins.clusters, "the input's cluster column"
    else:
        pairs = [(str(index), sequence) for index, sequence in enumerate(sequences)]
        method = homology.choose_method(sequences)
        if method == "cascade":  # linear time for a corpus; relatives that it leaves apart are set aside below
            method = "linclust"
        found = homology.cluster(pairs, identity=identity, coverage=0.5, threads=threads, method=method)
        names = list(found.values())
        origin = homology.describe(method, identity, 0.5)
    distinct = sorted(set(names))
    if len(distinct) < 2:
        raise UserError(
            "All proteins are relatives of each other, so no family can be kept for the evaluation",
            fix="Give more diverse proteins or raise --identity",
        )
    generator = np.random.default_rng(seed)
    count = min(len(distinct) - 1, max(1, round(share * len(distinct))))
    chosen = {distinct[index] for index in generator.permutation(len(distinct))[:count]}
    train = [sequence for sequence, name in zip(sequences, names, strict=True) if name not in chosen]
    candidates = [sequence for sequence, name in zip(sequences, names, strict=True) if name in chosen]
    related = {first for first, _, _ in homology.mmseqs_search(candidates, train, 0.0, 0.5, threads, sensitivity=7.5)}
    kept = [sequence for index, sequence in enumerate(candidates) if index not in related]
    if not kept:
        raise UserError(
            "Every held-out protein has a relative in training",
            fix="Give more diverse proteins, raise --holdout, or lower --identity",
        )
    sentence = (
        f"{len(train)} proteins to train on; {len(kept)} proteins of {count} of {len(distinct)} clusters held out"
        f" ({origin}); {len(candidates) - len(kept)} more with a distant relative in training set aside"
    )
    return HeldOut(train, kept, len(candidates) - len(kept), (len(distinct), count), sentence)
