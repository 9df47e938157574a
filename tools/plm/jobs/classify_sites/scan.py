"""Many sites of whole proteins through a bundle: equal contexts once, memory kept within what there is."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from plm.data.windows import window as cut_window
from plm.jobs.classify_sites.candidates import Protein
from plm.model.bundles.fine_tuned import FineTunedBundle
from plm.model.bundles.predictor import Reasons
from plm.model.capacity import capacity
from plm.model.combination import LANGUAGE_MODEL
from plm.model.members.fitted import NEAREST_ROWS
from plm.model.memory import halved

Floats = NDArray[np.float64]
REMEMBERED = 200_000
"""Contexts whose answers are kept, so that isoforms and repeats far apart in the file cost nothing."""
REMEMBERED_NUMBERS = 6_000_000
"""Numbers that all kept answers have together at most."""


class SiteScanner:
    """Asks a site bundle about residues of whole proteins.

    Args:
        bundle: A bundle of a site task.
        budget: Tokens in a packed row. Bundles without a window see a longer protein whole too, as long as the memory
            holds it; beyond, in overlapping segments.
        log: Told when memory runs short.
        reasons: Whether :meth:`score_with_reasons` will be asked, so that what members say is kept.

    Attributes:
        segmented: Whole proteins that had to go in overlapping segments.
    """

    def __init__(self, bundle: FineTunedBundle, budget: int, log: logging.Logger, *, reasons: bool = False) -> None:
        self.bundle = bundle
        self.budget = budget
        self._reasons = reasons
        self._log = log
        self.segmented = 0
        self._known: dict[tuple[str, int], Floats] = {}
        self._whole = 0 if bundle.window else longest_whole(bundle)

    def score(self, proteins: Sequence[Protein], advance: Callable[[int], None] | None = None) -> list[Floats]:
        """The bundle's answers for every candidate of each protein: arrays ``(n, K)`` float64 in order.

        Args:
            proteins: Usable ones, whose sites are asked.
            advance: Called with the number of candidates answered since the last call.

        Raises:
            UserError: Memory does not even hold the smallest batch.
        """
        outputs = self.bundle.task.outputs
        return [rows[:, :outputs] for rows in self._rows(proteins, advance)]

    def score_with_reasons(
        self, proteins: Sequence[Protein], advance: Callable[[int], None] | None = None
    ) -> list[tuple[Floats, Reasons]]:
        """As :meth:`score`, with what stood behind the answers: known from the same questions."""
        assert self._reasons
        outputs, names = self.bundle.task.outputs, reason_names(self.bundle)
        return [
            (rows[:, :outputs], Reasons.unpacked(names, rows[:, outputs:])) for rows in self._rows(proteins, advance)
        ]

    def _rows(self, proteins: Sequence[Protein], advance: Callable[[int], None] | None) -> list[Floats]:
        """Of each protein (n, K) answers, and beside them what stood behind, if that is kept."""
        asked: dict[tuple[str, int], int] = {}
        answers: list[Floats] = []
        rows: list[list[int]] = []
        for protein in proteins:
            mine = []
            for site in protein.sites:
                key = cut_window(protein.sequence, site, self.bundle.window)
                if key not in asked:
                    asked[key] = len(answers)
                    answers.append(self._known.get(key, _UNKNOWN))
                mine.append(asked[key])
            rows.append(mine)
        new = [key for key, number in asked.items() if answers[number] is _UNKNOWN]
        if new:
            tell = _shares(advance, sum(map(len, rows)), self._contexts(new) * len(self.bundle.members))
            predicted = self._predict([text for text, _ in new], [at for _, at in new], tell)
            for key, values in zip(new, predicted, strict=True):
                answers[asked[key]] = values
            if self.bundle.window:
                most = min(REMEMBERED, REMEMBERED_NUMBERS // predicted.shape[1])
                if len(self._known) + len(new) > most:
                    self._known.clear()
                self._known.update(zip(new[:most], predicted, strict=False))
            tell(None)
        elif advance is not None:
            advance(sum(map(len, rows)))
        width = self._width
        return [np.stack([answers[number] for number in mine]) if mine else np.empty((0, width)) for mine in rows]

    @property
    def _width(self) -> int:
        outputs = self.bundle.task.outputs
        return outputs + (len(reason_names(self.bundle)) * outputs + 2 * NEAREST_ROWS) * self._reasons

    def ask(self, texts: Sequence[str], sites: Sequence[int] | None) -> Floats:
        """The bundle's answers ``(N, K)`` for one site in each text, all of them asked together.

        Raises:
            UserError: Memory does not even hold the smallest batch.
        """
        return self._predict(list(texts), list(sites or ()), lambda count: None)[:, : self.bundle.task.outputs]

    def _contexts(self, keys: Sequence[tuple[str, int]]) -> int:
        return len(keys) if self.bundle.window else len({text for text, _ in keys})

    def _predict(self, texts: list[str], sites: list[int], tell: Callable[[int], None]) -> Floats:
        specials = self.bundle.loaded.family.specials
        # A whole protein is one segment if the budget holds it; the family's own limit still applies.
        longest = max(map(len, texts))
        budget = max(self.budget, min(longest, self._whole) + specials)
        while True:
            try:
                if self._reasons:
                    answers, reasons = self.bundle.predict_with_reasons(texts, sites, budget, advance=tell)
                    predicted = np.concatenate([answers, reasons.packed()], axis=1)
                else:
                    predicted = self.bundle.predict(texts, sites, budget, advance=tell)
                caps = (budget - specials, self.bundle.loaded.family.max_residues)
                limit = min(cap for cap in caps if cap is not None)
                self.segmented += len({text for text in texts if len(text) > limit})
                return predicted
            except (torch.cuda.OutOfMemoryError, MemoryError, RuntimeError) as error:
                budget = halved(budget, error, self.bundle.loaded.device, self._log)
                self.budget, self._whole = min(self.budget, budget), min(self._whole, budget)

    def seconds_per_token(self, proteins: Sequence[Protein]) -> float:
        """Times the scoring of a few proteins (a window bundle remembers the answers, so the work is not lost)."""
        sample: list[Protein] = []
        tokens, specials = 0, self.bundle.loaded.family.specials
        most = min(self.budget, 4096)
        for protein in proteins:
            if tokens >= most:
                break
            sites = protein.sites
            if self.bundle.window:
                sites = sites[: max(1, (most - tokens) // (self.bundle.window + specials))]
                contexts = {cut_window(protein.sequence, site, self.bundle.window) for site in sites}
                tokens += sum(len(text) + specials for text, _ in contexts)
                sample.append(Protein(protein.id, protein.accession, 0, protein.sequence, sites, sites))
            else:
                # Attention grows with the square of the length, so a very long protein is timed by its beginning.
                text = protein.sequence[:most]
                tokens += len(text) + specials
                inside = tuple(site for site in sites if site < len(text)) or (0,)
                sample.append(Protein(protein.id, protein.accession, 0, text, inside, inside))
        start = time.perf_counter()
        self.score(sample)
        return (time.perf_counter() - start) / max(tokens, 1)


def _shares(advance: Callable[[int], None] | None, candidates: int, steps: int) -> Callable[[int | None], None]:
    """Turns finished contexts (None: all) into candidates answered; never more than there are, whatever was retried."""
    done = told = 0

    def tell(count: int | None) -> None:
        nonlocal done, told
        done = steps if count is None else min(steps, done + count)
        now = candidates * done // max(steps, 1)
        if advance is not None and now > told:
            advance(now - told)
            told = now

    return tell


_UNKNOWN: Floats = np.empty(0)


def reason_names(bundle: FineTunedBundle) -> tuple[str, ...]:
    """The members that count in a bundle's answers."""
    return (LANGUAGE_MODEL,) if bundle.predictor is None else bundle.predictor.combination.names


def longest_whole(bundle: FineTunedBundle) -> int:
    """Residues of the longest protein that fits half of the free memory in one piece (an estimate from above)."""
    return capacity(bundle.loaded).longest


def chunks(proteins: Iterable[Protein], window: int, tokens: int) -> Iterator[list[Protein]]:
    """Groups proteins, usable or not, so that each group has about ``tokens`` residues of context to encode.

    A protein whose sites alone exceed that stands in a group of its own.
    """
    group: list[Protein] = []
    size = 0
    for protein in proteins:
        mine = len(protein.sites) * window if window else len(protein.sequence) * bool(protein.sites)
        if group and size + mine > tokens:
            yield group
            group, size = [], 0
        group.append(protein)
        size += mine
        if len(group) >= 5000:
            yield group
            group, size = [], 0
    if group:
        yield group
