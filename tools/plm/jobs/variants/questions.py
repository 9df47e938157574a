"""Questions to a masked language model, many in a packed row: some residues hidden, log-probabilities read off at some.

Rows hold what the token budget holds, whatever proteins their questions are about, and only the residues that are read
go through the language-model head.
"""

from __future__ import annotations

import copy
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray

from plm import stage
from plm.errors import UserError
from plm.model import encoder
from plm.model.batching import Batch, RowLayout
from plm.model.capacity import Capacity, is_out_of_memory
from plm.model.embedding.representations import SMALLEST
from plm.model.families import AMINO_ACIDS
from plm.model.loaded import LoadedModel

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
EVERY_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class MarginalQuestion:
    """What is asked of one sequence or window.

    Attributes:
        letters: Residues that the model reads.
        hidden: 0-based residues that are masked.
        read: 0-based residues whose log-probabilities are wanted.
        take: Called with them: (len(read), 20) float32, natural logarithms among the twenty amino acids.
        about: The protein, for messages.
    """

    letters: str
    hidden: tuple[int, ...]
    read: tuple[int, ...]
    take: Callable[[Floats], None]
    about: str = ""


class MaskedReader:
    """Asks a model.

    Args:
        loaded: The model with its language-model head.
        capacity: The memory.
        tokens: Tokens in a packed row; halved where the memory turns out not to hold it.
        log: Told of a halving.
    """

    def __init__(self, loaded: LoadedModel, capacity: Capacity, tokens: int, log: logging.Logger) -> None:
        self.loaded, self.capacity, self.tokens = loaded, capacity, tokens
        self._log = log
        self._before = len(loaded.family.before)
        self._mask = loaded.vocabulary[loaded.family.mask]
        ids = loaded.family.letter_ids(loaded.vocabulary)
        self._amino_acids = torch.tensor([ids[letter] for letter in AMINO_ACIDS], device=loaded.device)
        # Half precision would round each logit to a few hundredths; these few are made in full.
        self._head = copy.deepcopy(encoder.language_head(loaded.model)).float()
        self._last: tuple[str, Ints] = ("", np.empty(0, np.int64))

    def ask(self, questions: Iterable[MarginalQuestion], progress: stage.Progress | None = None) -> None:
        """Answers all questions, in their order; each is given its answer.

        Args:
            questions: Taken as they are needed.
            progress: Told the tokens that were read.

        Raises:
            UserError: The model gives no finite numbers.
            MemoryError, RuntimeError: The memory does not hold one question.
        """
        source = iter(questions)
        while True:
            taken: deque[MarginalQuestion] = deque()
            rows: dict[int, list[MarginalQuestion]] = {}
            try:
                self._ask(source, taken, rows, progress)
                return
            except (MemoryError, RuntimeError) as error:
                alone = max(map(len, rows.values()), default=1) == 1
                if not is_out_of_memory(error) or self.tokens <= SMALLEST or alone:
                    raise
                self.tokens //= 2
                self._log.warning("Out of memory: going on with rows of %d tokens", self.tokens)
                source = chain(taken, source)

    def _ask(
        self, source: Iterator[MarginalQuestion], taken: deque[MarginalQuestion],
        rows: dict[int, list[MarginalQuestion]], progress: stage.Progress | None,
    ) -> None:
        """``taken`` are the questions that were taken and not answered yet, ``rows`` those under way by number."""

        def noted() -> Iterator[MarginalQuestion]:
            for one in source:
                taken.append(one)
                yield one

        def batches() -> Iterator[Batch]:
            for number, row in enumerate(self._rows(noted())):
                rows[number] = row
                yield self._pack(row, number)

        def answer(batch: Batch) -> Floats:
            return self._read(batch, rows[batch.indices[0]])

        for number, values in enumerate(encoder.run(self.loaded, batches(), answer, rows=self._rows_at_once())):
            row = rows.pop(number)
            start = 0
            for one in row:
                mine = values[start : start + len(one.read)]
                start += len(one.read)
                if not np.isfinite(mine).all():
                    raise UserError(
                        "The model gives no finite numbers for this protein", where=one.about,
                        fix="Use --precision fp32; if that does not help the model is damaged",
                    )
                one.take(mine)
                taken.popleft()
            if progress is not None:
                progress.advance(sum(map(self.size, row)))

    def size(self, one: MarginalQuestion) -> int:
        """Tokens of a question."""
        return len(one.letters) + self.loaded.family.specials

    def _rows(self, source: Iterator[MarginalQuestion]) -> Iterator[list[MarginalQuestion]]:
        row: list[MarginalQuestion] = []
        used = 0
        for one in source:
            size = self.size(one)
            if row and used + size > self.tokens:
                yield row
                row, used = [], 0
            row.append(one)
            used += size
        if row:
            yield row

    def _rows_at_once(self) -> int:
        need = self.capacity.need(self.tokens, self.tokens)
        return int(max(1, min(encoder.workers(self.loaded.device), self.capacity.room // max(need, 1))))

    def _pack(self, row: list[MarginalQuestion], number: int) -> Batch:
        parts = []
        for one in row:
            if self._last[0] != one.letters:
                self._last = (one.letters, np.array(self.loaded.token_ids(one.letters), np.int64))
            ids = self._last[1].copy()
            for place in one.hidden:
                ids[self._before + place] = self._mask
            parts.append(ids)
        lengths = tuple(map(len, parts))
        positions = np.concatenate([np.arange(length) for length in lengths])
        return Batch(
            torch.from_numpy(np.concatenate(parts)), torch.from_numpy(positions), RowLayout(lengths),
            (number,) * len(lengths),
        )

    def _read(self, batch: Batch, row: list[MarginalQuestion]) -> Floats:
        index = [
            start + self._before + place
            for one, start in zip(row, batch.layout.starts, strict=True)
            for place in one.read
        ]
        states = encoder.hidden_states(self.loaded.model, batch)
        logits = self._head(states[torch.tensor(index, device=states.device)].float())
        values: Floats = logits[:, self._amino_acids].log_softmax(-1).cpu().numpy()
        return values
