"""Representations of many sequences: packed rows in, arrays out.

A sequence beyond the memory (or beyond what its family's positions can hold) goes in overlapping windows. Each residue
is answered by the window in which it lies farthest from a cut, so that every residue has context on both sides.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from plm.errors import UserError
from plm.model import encoder
from plm.model.batching import Batch, pack, plan_batches, sent
from plm.model.capacity import Capacity, is_out_of_memory
from plm.model.encoder_inputs import Segment, segments
from plm.model.families import AMINO_ACIDS
from plm.model.loaded import LoadedModel

Arrays = dict[str, NDArray[Any]]
Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Pooling = Literal["mean", "max", "first", "residues", "sites"]
_Numbers = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]
"""What a row gives: values, log-probabilities, whether numbers overflowed."""
SMALLEST = 64
"""Tokens (and residues of a window) below which a memory is too small to go on."""
CLOSEST_CONTACT = 6
"""Residues nearer in sequence than this are no contacts (as fair-esm and CASP count)."""
_LETTERS = {letter: index for index, letter in enumerate(AMINO_ACIDS)}


@dataclass(frozen=True)
class Wanted:
    """What to compute of each sequence.

    Attributes:
        layers: Layer numbers: 0 = token embeddings, N = last.
        pooling: One vector a protein (``mean``, ``max``, ``first``), of each residue, or of chosen sites.
        dtype: Type in which the numbers are stored.
        logits: Log-probabilities of the twenty amino acids at each residue.
        perplexity: ``single`` pass, ``masked`` one residue at a time, or an empty string.
        contacts: Lowest probability of a contact that is kept, or None for no contacts.
    """

    layers: tuple[int, ...]
    pooling: Pooling = "mean"
    dtype: Literal["float32", "float16"] = "float32"
    logits: bool = False
    perplexity: Literal["", "single", "masked"] = ""
    contacts: float | None = None

    @property
    def head(self) -> bool:
        """Whether the language-model head is needed."""
        return self.logits or bool(self.perplexity)


@dataclass(frozen=True)
class EncodingBudget:
    """What the memory holds.

    Attributes:
        tokens: Tokens in a packed row.
        whole: Residues that are encoded in one piece; longer sequences go in windows of this length.
        contacts: The same where contacts are computed, whose memory grows with the square.
    """

    tokens: int
    whole: int
    contacts: int = 0


@dataclass(frozen=True)
class SequencePart:
    """Some sequences that are finished and kept together.

    Attributes:
        number: Given back with their arrays.
        sequences: The n sequences, cleaned.
        sites: 0-based sites of each sequence (pooling ``sites``); else empty.
    """

    number: int
    sequences: Sequence[str]
    sites: Sequence[Ints] = ()


class OutOfMemory(Exception):
    """A row did not fit; ``smaller`` is the budget to try next.

    Attributes:
        smaller: A smaller budget, or None if there is none left.
        tokens: Number of tokens in the row.
    """

    def __init__(self, smaller: EncodingBudget | None, tokens: int) -> None:
        super().__init__(f"{tokens} tokens do not fit")
        self.smaller, self.tokens = smaller, tokens


class UnfitNumber(Exception):
    """A number that cannot be stored.

    Attributes:
        sequence: Number of the sequence in its part.
        overflow: True if it only exceeds what 16 bits hold; False for NaN or infinity.
    """

    def __init__(self, sequence: int, overflow: bool) -> None:
        super().__init__(f"sequence {sequence}")
        self.sequence, self.overflow = sequence, overflow


@dataclass(frozen=True)
class Piece:
    """A sequence or a window of one.

    Attributes:
        owner: Number of the sequence that the piece is of.
        part: Residues that are encoded, and those of them that the piece answers for.
        letters: Residues that are encoded.
    """

    owner: int
    part: Segment
    letters: str

    @property
    def kept(self) -> slice:
        """The answered residues, within the piece."""
        return slice(self.part.keep_start - self.part.start, self.part.keep_end - self.part.start)

    @property
    def is_cut(self) -> bool:
        return self.part.keep_end - self.part.keep_start < len(self.letters)


def parse_layers(text: str, depth: int) -> tuple[int, ...]:
    """Layer numbers that a user names.

    Args:
        text: ``last``, ``all``, or numbers separated by commas; negative ones count from the end (-1 = last).
        depth: Number of blocks N; layers are 0 (token embeddings) to N.

    Raises:
        UserError: No number, or a layer that the model does not have.
    """
    if text.strip().lower() == "all":
        return tuple(range(depth + 1))
    layers: list[int] = []
    for part in text.split(","):
        word = part.strip().lower()
        try:
            number = depth if word == "last" else int(word)
        except ValueError:
            raise UserError(
                f"{part.strip()!r} is no layer", where="--layers", fix="Give last, all or numbers such as 0,6,-1"
            ) from None
        layer = number if number >= 0 else depth + 1 + number
        if not 0 <= layer <= depth:
            raise UserError(
                f"There is no layer {number}: this model has the layers 0 (token embeddings) to {depth} (last)",
                where="--layers", fix=f"Choose from 0 to {depth}, or count from the end with -1 to -{depth + 1}",
            )
        if layer not in layers:
            layers.append(layer)
    return tuple(layers)


def windows(lengths: Ints, whole: int) -> Ints:
    """Windows that each sequence goes in: 1 for those of at most ``whole`` residues."""
    counts = np.ones(len(lengths), np.int64)
    for index in np.flatnonzero(lengths > whole).tolist():
        counts[index] = len(segments(int(lengths[index]), whole))
    return counts


def check_wanted(loaded: LoadedModel, wanted: Wanted) -> None:
    """Refuses what a model cannot give.

    Raises:
        UserError: No start token to take (ProtT5), or no contact regression.
    """
    if wanted.contacts is not None and not loaded.has_contacts:
        raise UserError(
            "The checkpoint has no contact regression", where=loaded.files.id,
            fix="Use a published ESM-2 or ESM-1b checkpoint, or leave contacts out",
        )
    if wanted.pooling == "first" and not loaded.family.before:
        raise UserError(
            f"{loaded.family.title} puts no start token before a protein", where="--pooling first",
            fix="Choose mean or max",
        )


class Embedder:
    """Computes what is wanted of sequences.

    Args:
        loaded: The model; with its language-model head if that is wanted.
        wanted: Layers, pooling and extras to compute.
        capacity: The memory; it decides how many rows are computed at a time, never what comes out.
    """

    def __init__(self, loaded: LoadedModel, wanted: Wanted, capacity: Capacity) -> None:
        self.loaded, self.wanted, self.capacity = loaded, wanted, capacity
        self._before, self._after = len(loaded.family.before), len(loaded.family.after)
        ids = loaded.family.letter_ids(loaded.vocabulary)
        self._amino_acids = torch.tensor([ids[letter] for letter in AMINO_ACIDS], device=loaded.device)
        self._store = torch.float16 if wanted.dtype == "float16" else torch.float32

    def compute(
        self, parts: Iterable[SequencePart], budget: EncodingBudget, *, rows: int = 1,
        advance: Callable[[int], None] | None = None,
    ) -> Iterator[tuple[int, Arrays]]:
        """Everything that is wanted of some parts, part by part. Equal calls give equal bytes, whatever ``rows`` is.

        Rows of the next part are begun while those of the last are finished, so that no thread waits.

        Args:
            parts: Taken as they are needed.
            budget: Tokens and residues that the memory holds at a time.
            rows: Rows that are computed at a time, as far as there are threads.
            advance: Called with the residues done after each row.

        Yields:
            The part's number and its arrays, n sequences of R residues together: ``values``: (n, D), (R, D) or (S, D)
            of the stored type, with several layers (n, K, D) and so on; ``logits``: (R, 20) float32
            log-probabilities; ``perplexity``: (n, 2) float64, summed log-probability of the true residues and their
            number; ``contacts``: (C, 2) int32 0-based pairs with ``contact_p`` (C,) float32 and ``contact_ends`` (n,)
            int64.

        Raises:
            OutOfMemory: A row of the part that would come next did not fit.
            UnfitNumber: A representation of that part is not finite, or too large for the stored type.
        """
        tell = advance or (lambda count: None)
        waiting: deque[tuple[_Work, list[int], tuple[int, ...], bool]] = deque()
        pieces: dict[int, tuple[_Work, Piece]] = {}

        def batches() -> Iterator[Batch]:
            number = 0
            for part in parts:
                work = _Work(part, self.wanted, self.loaded.hidden_size, budget.whole)
                plan = plan_batches([self._tokens(piece) for piece in work.pieces], budget.tokens)
                for index, row in enumerate(plan):
                    numbers = list(range(number, number + len(row)))
                    number += len(row)
                    pieces.update((mine, (work, work.pieces[at])) for mine, at in zip(numbers, row, strict=True))
                    batch = pack([self._ids(work.pieces[at]) for at in row], numbers)
                    waiting.append((work, numbers, batch.layout.starts, index == len(plan) - 1))
                    yield batch

        def answer(batch: Batch) -> _Numbers:
            mine = [pieces[number][1] for number in batch.indices]
            with _Watch(budget, mine):
                return self._row(batch, mine, pieces[batch.indices[0]][0].collector)

        for answered in encoder.run(self.loaded, batches(), answer, rows=rows):
            work, numbers, starts, last = waiting.popleft()
            mine = [pieces.pop(number)[1] for number in numbers]
            work.collector.add(mine, _Answer.of(starts, *answered), self._before)
            tell(sum(piece.part.keep_end - piece.part.keep_start for piece in mine))
            if last:
                if self.wanted.perplexity == "masked":
                    self._masked(work, budget, rows, tell)
                if self.wanted.contacts is not None:
                    self._contacts(work, budget, tell)
                yield work.part.number, work.collector.arrays()

    def rows_at_once(self, lengths: Ints, budget: EncodingBudget) -> int:
        """How many rows of these sequences fit the memory together."""
        specials = self._before + self._after
        longest = int(min(lengths.max(), budget.whole)) + specials
        need = self.capacity.need(max(budget.tokens, longest), longest)
        return int(max(1, min(encoder.workers(self.loaded.device), self.capacity.room // max(need, 1))))

    def _tokens(self, piece: Piece) -> int:
        return len(piece.letters) + self._before + self._after

    def _ids(self, piece: Piece) -> list[int]:
        return self.loaded.token_ids(piece.letters)

    def _row(self, batch: Batch, pieces: list[Piece], collector: _Collector) -> _Numbers:
        last = self.loaded.layers
        wanted = self.wanted.layers
        # The head reads the last layer: one pass through the model serves both.
        layers = (*wanted, last) if self.wanted.head and last not in wanted else wanted
        states = encoder.layer_states(self.loaded, batch, layers)
        chosen = states[: len(wanted)]
        overflow = None
        if self.wanted.pooling == "residues":
            whole = torch.stack(chosen, dim=1)
            values = whole.to(self._store)
            overflow = torch.isfinite(whole).all() & ~torch.isfinite(values).all()
        elif self.wanted.pooling == "sites":
            places = [
                start + self._before + site - piece.part.start
                for piece, start in zip(pieces, batch.layout.starts, strict=True)
                for _, site in collector.sites_of(piece)
            ]
            index = sent(torch.tensor(places, dtype=torch.int64), self.loaded.device)
            values = torch.stack([layer[index].float() for layer in chosen], dim=1)
        elif self.loaded.device.type == "cuda":
            values = self._pool_on_gpu(chosen, batch, pieces)
        else:
            values = torch.stack([self._pool(layer, batch, pieces) for layer in chosen], dim=1)
        head = None
        if self.wanted.logits or self.wanted.perplexity == "single":
            logits = encoder.language_head(self.loaded.model)(states[layers.index(last)])
            head = self._log_probabilities(logits)
        return values, head, overflow

    def _pool_on_gpu(self, chosen: Sequence[torch.Tensor], batch: Batch, pieces: list[Piece]) -> torch.Tensor:
        """As :meth:`_pool` for all layers, (n, K, D), in as many steps for one sequence as for many."""
        if self.wanted.pooling == "first":
            return torch.stack([encoder.first_tokens(layer, batch, self.loaded.family).float() for layer in chosen], 1)
        spans = [
            np.arange(start + self._before + piece.kept.start, start + self._before + piece.kept.stop)
            for piece, start in zip(pieces, batch.layout.starts, strict=True)
        ]
        numbers = np.concatenate([*spans, [len(span) for span in spans]]).astype(np.int64)
        there = sent(torch.from_numpy(numbers), self.loaded.device)
        index, lengths = there[: -len(spans)], there[-len(spans) :]
        kind = "sum" if self.wanted.pooling == "mean" else "max"
        pooled = [
            torch.segment_reduce(layer.index_select(0, index).float(), kind, lengths=lengths, axis=0, unsafe=True)
            for layer in chosen
        ]
        return torch.stack(pooled, 1)

    def _pool(self, states: torch.Tensor, batch: Batch, pieces: list[Piece]) -> torch.Tensor:
        """One float32 vector a piece, (n, D): sum or maximum of the answered residues, or the start token."""
        pooled = []
        number = 0
        for start, count, length in batch.layout.runs():
            block = states[start : start + count * length].view(count, length, -1)
            if self.wanted.pooling == "first":
                pooled.append(block[:, 0].float())
            else:
                residues = block[:, self._before : length - self._after].float()
                run = self._reduce(residues)
                for index in range(count):
                    piece = pieces[number + index]
                    if piece.is_cut:
                        run[index] = self._reduce(residues[index : index + 1, piece.kept])[0]
                pooled.append(run)
            number += count
        return torch.cat(pooled)

    def _reduce(self, residues: torch.Tensor) -> torch.Tensor:
        return residues.sum(1) if self.wanted.pooling == "mean" else residues.amax(1)

    def _log_probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Log-probabilities among the twenty amino acids, (T, 20) float32."""
        return logits[:, self._amino_acids].float().log_softmax(-1)

    def _masked(self, work: _Work, budget: EncodingBudget, rows: int, tell: Callable[[int], None]) -> None:
        """Hides one residue at a time: a row holds many copies of a sequence, each with another residue hidden."""
        mask = self.loaded.vocabulary[self.loaded.family.mask]
        pieces = work.pieces
        plan = list(self._masked_rows(pieces, budget.tokens))
        hidden = [one for row in plan for one in row]

        def batches() -> Iterator[Batch]:
            first = 0
            for row in plan:
                tokens = []
                for number, place in row:
                    ids = self._ids(pieces[number])
                    ids[self._before + place] = mask
                    tokens.append(ids)
                yield pack(tokens, range(first, first + len(row)))
                first += len(row)

        def answer(batch: Batch) -> torch.Tensor:
            mine = [hidden[index] for index in batch.indices]
            with _Watch(budget, [pieces[number] for number, _ in mine]):
                starts = zip(batch.layout.starts, mine, strict=True)
                places = torch.tensor([start + self._before + place for start, (_, place) in starts])
                logits = encoder.logits(self.loaded, batch)[sent(places, self.loaded.device)]
                return self._log_probabilities(logits)

        for row, scores in zip(plan, encoder.run(self.loaded, batches(), answer, rows=rows), strict=True):
            for (number, place), values in zip(row, scores.numpy(), strict=True):
                piece = pieces[number]
                work.collector.add_masked(piece.owner, float(values[_LETTERS[piece.letters[place]]]))
            tell(sum(len(pieces[number].letters) for number, _ in row))

    def _masked_rows(self, pieces: list[Piece], tokens: int) -> Iterator[list[tuple[int, int]]]:
        """Rows of (number of the piece, 0-based place to hide in it)."""
        row: list[tuple[int, int]] = []
        used = 0
        for number, piece in enumerate(pieces):
            for place in range(piece.kept.start, piece.kept.stop):
                if piece.letters[place] not in _LETTERS:
                    continue
                if row and used + self._tokens(piece) > tokens:
                    yield row
                    row, used = [], 0
                row.append((number, place))
                used += self._tokens(piece)
        if row:
            yield row

    def _contacts(self, work: _Work, budget: EncodingBudget, tell: Callable[[int], None]) -> None:
        pieces = cut(work.part.sequences, min(budget.contacts, budget.whole))
        need = contact_bytes(self.loaded, max(self._tokens(piece) for piece in pieces))
        rows = max(1, min(encoder.workers(self.loaded.device), self.capacity.room // need))

        def answer(batch: Batch) -> Floats:
            piece = pieces[batch.indices[0]]
            with _Watch(budget, [piece], contacts=True):
                probabilities: Floats = encoder.contacts(self.loaded, piece.letters).float().cpu().numpy()
                return probabilities

        batches = (pack([self._ids(piece)], [number]) for number, piece in enumerate(pieces))
        for piece, probabilities in zip(pieces, encoder.run(self.loaded, batches, answer, rows=rows), strict=True):
            work.collector.add_contacts(piece, probabilities)
            tell(piece.part.keep_end - piece.part.keep_start)


def contact_bytes(loaded: LoadedModel, tokens: int) -> int:
    """Memory of the contacts of one sequence: a layer's attention maps, their symmetric copies, and the regression."""
    config = loaded.model.config
    heads = int(getattr(config, "num_attention_heads", 0) or getattr(config, "num_heads", 0))
    return tokens**2 * 4 * (5 * heads + 4)


def cut(sequences: Sequence[str], whole: int) -> list[Piece]:
    """Pieces of sequences in their order: one each, or overlapping windows of ``whole`` residues."""
    return [
        Piece(owner, part, sequence[part.start : part.end])
        for owner, sequence in enumerate(sequences)
        for part in segments(len(sequence), whole)
    ]


class _Work:
    """A part under way: its pieces and where their answers gather."""

    def __init__(self, part: SequencePart, wanted: Wanted, width: int, whole: int) -> None:
        self.part = part
        self.collector = _Collector(wanted, width, part.sequences, part.sites)
        self.pieces = cut(part.sequences, whole)
        if wanted.pooling == "sites" and not wanted.head:
            self.pieces = [piece for piece in self.pieces if self.collector.sites_of(piece)]


class _Watch:
    """Turns a full memory into the next smaller budget."""

    def __init__(self, budget: EncodingBudget, pieces: list[Piece], contacts: bool = False) -> None:
        self._budget, self._pieces, self._contacts = budget, pieces, contacts

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None or not isinstance(error, MemoryError | RuntimeError) or not is_out_of_memory(error):
            return
        tokens = sum(len(piece.letters) for piece in self._pieces)
        raise OutOfMemory(self._smaller(tokens), tokens) from error

    def _smaller(self, tokens: int) -> EncodingBudget | None:
        """Half the row; if it was a single piece, windows of half its length."""
        now = self._budget
        if self._contacts:
            half = tokens // 2
            return None if half < SMALLEST else EncodingBudget(now.tokens, now.whole, half)
        row = max(SMALLEST, min(now.tokens, tokens) // 2)
        whole = now.whole if len(self._pieces) > 1 else max(SMALLEST, tokens // 2)
        smaller = EncodingBudget(row, min(now.whole, whole), min(now.contacts, whole))
        return None if (smaller.tokens, smaller.whole) == (now.tokens, now.whole) else smaller


@dataclass(frozen=True)
class _Answer:
    """What a row gives.

    Attributes:
        starts: First token of each piece.
        values: (pieces, K, D) pooled, (tokens, K, D) or (sites, K, D).
        head: (tokens, 20) log-probabilities, if wanted.
        overflow: Some stored values are infinite that were finite before.
    """

    starts: tuple[int, ...]
    values: NDArray[Any]
    head: Floats | None
    overflow: bool

    @classmethod
    def of(
        cls, starts: tuple[int, ...], values: torch.Tensor, head: torch.Tensor | None, overflow: torch.Tensor | None
    ) -> _Answer:
        """The same from tensors on the host."""
        overflowed = overflow is not None and bool(overflow)
        return cls(starts, values.numpy(), None if head is None else head.numpy(), overflowed)


class _Collector:
    """Where the answers of some sequences gather; rows come in any order."""

    def __init__(self, wanted: Wanted, width: int, sequences: Sequence[str], sites: Sequence[Ints]) -> None:
        self._wanted, self._sequences, self._sites = wanted, sequences, sites
        self._lengths = np.array([len(sequence) for sequence in sequences], np.int64)
        self._offsets = np.concatenate([[0], np.cumsum(self._lengths)])
        self._site_offsets = np.concatenate([[0], np.cumsum([len(mine) for mine in sites], dtype=np.int64)])
        ends = {"residues": self._offsets, "sites": self._site_offsets}.get(wanted.pooling)
        count = len(sequences) if ends is None else int(ends[-1])
        kind = np.dtype(wanted.dtype if wanted.pooling == "residues" else np.float32)
        self._values: NDArray[Any] = np.zeros((count, len(wanted.layers), width), kind)
        self._parts: dict[int, list[tuple[int, Floats]]] = {}
        self._logits = np.zeros((int(self._offsets[-1]) if wanted.logits else 0, len(AMINO_ACIDS)), np.float32)
        self._perplexity = np.zeros((len(sequences), 2), np.float64)
        self._pairs: list[NDArray[np.int32]] = []
        self._probabilities: list[Floats] = []
        self._ends = np.zeros(len(sequences), np.int64)

    def add(self, pieces: list[Piece], answer: _Answer, before: int) -> None:
        """Takes a row's answer.

        Args:
            pieces: Pieces that the row holds, in its order.
            answer: Arrays computed for the row.
            before: Special tokens in front of each piece.

        Raises:
            UnfitNumber: Something is not finite.
        """
        site = 0
        for number, (piece, start) in enumerate(zip(pieces, answer.starts, strict=True)):
            first = start + before
            if self._wanted.pooling == "residues":
                mine = answer.values[first : first + len(piece.letters)][piece.kept]
                self._check(piece.owner, mine, answer.overflow)
                at = int(self._offsets[piece.owner])
                self._values[at + piece.part.keep_start : at + piece.part.keep_end] = mine
            elif self._wanted.pooling == "sites":
                for row, _ in self.sites_of(piece):
                    self._check(piece.owner, answer.values[site])
                    self._values[row] = answer.values[site]
                    site += 1
            else:
                self._check(piece.owner, answer.values[number])
                if piece.is_cut:
                    parts = self._parts.setdefault(piece.owner, [])
                    parts.append((piece.part.start, answer.values[number].copy()))
                else:
                    self._values[piece.owner] = answer.values[number]
            if answer.head is not None:
                self._add_head(piece, answer.head[first : first + len(piece.letters)][piece.kept])

    def sites_of(self, piece: Piece) -> list[tuple[int, int]]:
        """(row, 0-based site in the sequence) of the sites that a piece answers."""
        first = int(self._site_offsets[piece.owner])
        return [
            (first + number, int(site))
            for number, site in enumerate(self._sites[piece.owner])
            if piece.part.keep_start <= site < piece.part.keep_end
        ]

    def _check(self, owner: int, values: NDArray[Any], overflow: bool = False) -> None:
        if not np.isfinite(values).all():
            raise UnfitNumber(owner, overflow)

    def _add_head(self, piece: Piece, values: Floats) -> None:
        self._check(piece.owner, values)
        start = int(self._offsets[piece.owner])
        if self._wanted.logits:
            self._logits[start + piece.part.keep_start : start + piece.part.keep_end] = values
        if self._wanted.perplexity == "single":
            letters = self._sequences[piece.owner][piece.part.keep_start : piece.part.keep_end]
            true = [float(row[_LETTERS[x]]) for row, x in zip(values, letters, strict=True) if x in _LETTERS]
            self._perplexity[piece.owner] += (math.fsum(true), len(true))

    def add_masked(self, owner: int, log_probability: float) -> None:
        self._perplexity[owner] += (log_probability, 1)

    def add_contacts(self, piece: Piece, probabilities: Floats) -> None:
        """Keeps pairs whose first residue the piece answers for: each pair comes once. Pieces come in their order."""
        rows, columns = np.nonzero(np.triu(probabilities >= (self._wanted.contacts or 0.0), CLOSEST_CONTACT))
        mine = (rows >= piece.kept.start) & (rows < piece.kept.stop)
        rows, columns = rows[mine], columns[mine]
        self._pairs.append((np.stack([rows, columns], axis=1) + piece.part.start).astype(np.int32))
        self._probabilities.append(probabilities[rows, columns].astype(np.float32))
        self._ends[piece.owner] = sum(len(pairs) for pairs in self._pairs)

    def arrays(self) -> Arrays:
        """Everything, as :meth:`Embedder.compute` describes it."""
        values = self._values
        for owner, parts in self._parts.items():
            rows = np.stack([row for _, row in sorted(parts, key=lambda part: part[0])])
            values[owner] = rows.max(0) if self._wanted.pooling == "max" else rows.sum(0)
            if self._wanted.pooling == "first":
                values[owner] /= len(rows)
        if self._wanted.pooling == "mean":
            values /= self._lengths[:, None, None].astype(np.float32)
        if self._wanted.dtype == "float16" and values.dtype != np.float16:
            values = self._halved(values)
        arrays: Arrays = {"values": values[:, 0] if len(self._wanted.layers) == 1 else values}
        if self._wanted.logits:
            arrays["logits"] = self._logits
        if self._wanted.perplexity:
            arrays["perplexity"] = self._perplexity
        if self._wanted.contacts is not None:
            arrays["contacts"] = np.concatenate([np.empty((0, 2), np.int32), *self._pairs])
            arrays["contact_p"] = np.concatenate([np.empty(0, np.float32), *self._probabilities])
            arrays["contact_ends"] = self._ends
        return arrays

    def _halved(self, values: NDArray[Any]) -> NDArray[Any]:
        with np.errstate(over="ignore"):
            stored = values.astype(np.float16)
        if not np.isfinite(stored).all():
            row = int(np.flatnonzero(~np.isfinite(stored).all(axis=(1, 2)))[0])
            offsets = self._site_offsets if self._wanted.pooling == "sites" else np.arange(len(self._sequences) + 1)
            raise UnfitNumber(int(np.searchsorted(offsets, row, side="right")) - 1, overflow=True)
        return stored
