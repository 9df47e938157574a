"""Rows for distillation: masks that belong to a sequence's content, and batches of one taxon and similar length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, overload

import numpy as np
import torch

from plm.errors import UserError
from plm.masked_lm.corpus import IGNORED, EpochRows
from plm.masked_lm.corpus_store import CorpusStore
from plm.masked_lm.masks import MaskPlan
from plm.model.batching import Batch, sent

Group = Literal["taxon", "none"]


class RowPlan(Sequence[np.ndarray]):
    """Rows of indices into a store, in the order of training.

    Attributes:
        members: ``(n,)`` int64 indices, row after row.
        offsets: ``(R + 1,)`` int64: row r is ``members[offsets[r]:offsets[r + 1]]``.
        pools: For each kind of pool how many rows and sequences it gives: ``taxon``, ``domain``, ``rest``, ``unknown``
            (no taxon) or ``all`` (plain batches).
    """

    def __init__(
        self, members: np.ndarray, offsets: np.ndarray, order: np.ndarray, pools: dict[str, tuple[int, int]]
    ) -> None:
        self.members, self.pools = members, pools
        starts, stops = offsets[:-1][order], offsets[1:][order]
        self._starts, self._stops = starts, stops

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, row: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, row: slice) -> list[np.ndarray]: ...
    def __getitem__(self, row: int | slice) -> np.ndarray | list[np.ndarray]:
        if isinstance(row, slice):
            return [self[number] for number in range(*row.indices(len(self)))]
        return self.members[self._starts[row] : self._stops[row]]


def plan(
    store: CorpusStore, indices: np.ndarray, *, budget: int, crop: int, group: Group = "taxon",
    smallest: int | None = None, seed: int = 42, epoch: int = 0,
) -> RowPlan:
    """Groups sequences of one taxon and similar length into rows; each sequence comes exactly once.

    The rule: a taxon is by itself if it has at least ``smallest`` sequences (by default: enough tokens to fill a row).
    Smaller ones are pooled with the other small ones of their domain; where these together are still too few, or their
    domain is not known, they are pooled with all the rest. Sequences without a taxon are a pool of their own.

    Args:
        store: Corpus that is parted into rows.
        indices: (N,) numbers of the sequences to use.
        budget: Tokens in a row; a longer sequence has a row of its own.
        crop: Longest stretch of a sequence, in residues.
        group: ``taxon``, or ``none`` for rows of similar length only.
        smallest: Sequences from which a taxon is by itself; None: what fills a row.
        seed: Seed of chance: sequences of like length (within 10 %) change places, and rows are shuffled.
        epoch: Number of the pass over the corpus; each pass has a plan of its own.
    """
    indices = np.asarray(indices, np.int64)
    sizes = store.lengths(crop)[indices]
    generator = np.random.default_rng([seed, epoch, 0x726F7773])
    pool, kinds = _pools(store, indices, sizes, budget, group, smallest)
    noise = generator.uniform(0.9, 1.1, size=len(sizes))
    order = np.lexsort((-sizes * noise, pool))
    ends = np.concatenate([[0], np.cumsum(sizes[order])])
    last_of = np.searchsorted(pool[order], pool[order], side="right")
    offsets = [0]
    while offsets[-1] < len(order):
        start = offsets[-1]
        fits = int(np.searchsorted(ends, ends[start] + budget, side="right")) - 1
        offsets.append(min(max(fits, start + 1), int(last_of[start])))
    bounds = np.array(offsets, np.int64)
    row_of = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
    # Longest first within a row: neighbours of equal length share an attention call.
    order = order[np.lexsort((indices[order], -sizes[order], row_of))]
    kind_of_row = kinds[pool[order[bounds[:-1]]]]
    told = {
        name: (int((kind_of_row == number).sum()), int(np.diff(bounds)[kind_of_row == number].sum()))
        for number, name in enumerate(_KINDS)
        if (kind_of_row == number).any()
    }
    return RowPlan(indices[order], bounds, generator.permutation(len(bounds) - 1), told)


_KINDS = ("taxon", "domain", "rest", "unknown", "all")


def _pools(
    store: CorpusStore, indices: np.ndarray, sizes: np.ndarray, budget: int, group: str, smallest: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Number of each sequence's pool, and for each pool its kind as a place in ``_KINDS``."""
    if group == "none":
        return np.zeros(len(indices), np.int64), np.array([_KINDS.index("all")])
    taxon, domain = store.taxon[indices].astype(np.int64), store.domain[indices].astype(np.int64)

    def large(codes: np.ndarray, among: np.ndarray, count: int) -> np.ndarray:
        if smallest is not None:
            return np.bincount(codes[among], minlength=count) >= smallest
        return np.bincount(codes[among], weights=sizes[among], minlength=count) >= budget

    everyone = np.ones(len(indices), bool)
    taxa, domains = len(store.taxa), len(store.domains)
    by_taxon = large(taxon, everyone, taxa)[taxon] & (taxon > 0)
    small = ~by_taxon & (taxon > 0)
    by_domain = small & (domain > 0) & large(domain, small, domains)[domain]
    pool = np.full(len(indices), taxa + domains)
    pool[by_domain] = taxa + domain[by_domain]
    pool[by_taxon | (taxon == 0)] = taxon[by_taxon | (taxon == 0)]
    kinds = np.zeros(taxa + domains + 1, np.int64)
    kinds[0], kinds[taxa : taxa + domains], kinds[-1] = 3, 1, 2
    return pool, kinds


class DistillationRow(NamedTuple):
    """One micro-batch.

    Attributes:
        batch: Packed row after masking.
        targets: ``(T,)`` int64: the true id where a residue is to be predicted, else ``IGNORED``. The intact row is
            ``torch.where(targets == IGNORED, batch.input_ids, targets)``.
        members: ``(B,)`` int64 indices into the store, in the order of the row.
        set_number: Number of the set of masks.
        places: ``(M,)`` int64 places of the residues to predict, where they are known: a device would have to be waited
            for.
    """

    batch: Batch
    targets: torch.Tensor
    members: np.ndarray
    set_number: int
    places: torch.Tensor | None = None

    @property
    def asked(self) -> torch.Tensor:
        """``(M,)`` int64 places of the residues to predict, where the targets are."""
        return torch.nonzero(self.targets != IGNORED)[:, 0] if self.places is None else self.places

    def to(self, device: torch.device) -> DistillationRow:
        """The same row on a device; to CUDA without waiting."""
        if self.targets.device.type == device.type:
            return self
        return self._replace(
            batch=self.batch.to(device), targets=sent(self.targets, device), places=sent(self.asked, device)
        )


class DistillationRows(EpochRows):
    """Row number -> row, epoch after epoch; a row depends on the seeds and its number only.

    So a resumed run, and any number of workers or processes (rank r of R takes row s * R + r of step s), see the same
    rows.
    """

    def __init__(
        self, store: CorpusStore, indices: np.ndarray, rows: int, *, masks: MaskPlan, budget: int,
        group: Group = "taxon", smallest: int | None = None, seed: int = 42,
    ) -> None:
        """Takes ``rows`` rows in all; see :func:`plan` for the rest."""
        super().__init__(rows)
        if len(indices) == 0:
            raise UserError("There is no sequence to train on", fix="Give more proteins")
        self.store, self.masks = store, masks
        self._indices = np.asarray(indices, np.int64)
        self._budget, self._group, self._smallest, self._seed = budget, group, smallest, seed

    def plan_of(self, epoch: int) -> RowPlan:
        return plan(
            self.store, self._indices, budget=self._budget, crop=self.masks.crop, group=self._group,
            smallest=self._smallest, seed=self._seed, epoch=epoch,
        )

    def __getitem__(self, number: int) -> DistillationRow:
        epoch, place = self.epoch_of(number)
        members = np.asarray(self.rows_of(epoch)[place])
        number_of_set = self.masks.set_of(epoch)
        batch, targets = self.masks.row(self.store, members.tolist(), number_of_set)
        return DistillationRow(batch, targets, members, number_of_set)
