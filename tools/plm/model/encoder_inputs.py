"""From sequences and sites to packed rows: which residues are encoded together and where the answers lie.

Equal sequences are encoded once with all their sites. A sequence longer than the memory allows is encoded in
overlapping segments, each of which answers for its own part, so that every residue is answered once, with context on
both sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from plm.data.task import Level
from plm.data.windows import window as cut_window
from plm.errors import UserError
from plm.model.batching import Batch, pack
from plm.model.families import ModelFamily
from plm.model.heads.head import Where
from plm.model.loaded import LoadedModel


@dataclass(frozen=True)
class Segment:
    """A part of a sequence, 0-based and half open: ``start:end`` is encoded, ``keep_start:keep_end`` answered."""

    start: int
    end: int
    keep_start: int
    keep_end: int


def segments(length: int, limit: int) -> list[Segment]:
    """Cuts ``length`` residues into overlapping segments of at most ``limit``; one segment if they fit.

    Neighbours overlap by half the limit (at most 512 residues), the last two perhaps by more. Each residue is kept by
    exactly one segment: that in which it lies farthest from a cut.

    Raises:
        ValueError: ``limit`` is below 8.
    """
    if length <= limit:
        return [Segment(0, length, 0, length)]
    if limit < 8:
        raise ValueError(f"segments of {limit} residues are too short")
    margin = min(256, limit // 4)
    pieces: list[Segment] = []
    keep = 0
    while keep < length:
        # The first segment needs no margin before it; the last is moved back to be as long as the others.
        start = max(0, min(keep - margin, length - limit))
        end = min(start + limit, length)
        stop = length if end == length else end - margin
        if start < keep - margin:
            before = pieces[-1]
            keep = (start + before.end) // 2
            pieces[-1] = Segment(before.start, before.end, before.keep_start, keep)
        pieces.append(Segment(start, end, keep, stop))
        keep = stop
    return pieces


@dataclass(frozen=True)
class Unit:
    """What is encoded together and answered from.

    Attributes:
        tokens: Token ids of each segment (one, unless a sequence task meets a long protein).
        keep: The residues of each segment that count, 0-based and half open within the segment.
        rows: The caller's rows that it answers: one for each site, else one.
        sites: 0-based position of each row's site in the segment (site tasks).
        offset: Where its answers begin in the row's sequence (residue tasks).
    """

    tokens: tuple[list[int], ...]
    keep: tuple[tuple[int, int], ...]
    rows: tuple[int, ...]
    sites: tuple[int, ...] = ()
    offset: int = 0
    length: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "length", sum(len(ids) for ids in self.tokens))

    def answers(self, level: Level) -> int:
        """How many outputs the unit has."""
        if level == "site":
            return len(self.sites)
        return 1 if level == "sequence" else sum(stop - start for start, stop in self.keep)


def make_units(
    loaded: LoadedModel, level: Level, sequences: Sequence[str], positions: Sequence[int] | None = None, *,
    window: int = 0, limit: int | None = None,
) -> list[Unit]:
    """Plans what to encode for each row.

    Args:
        loaded: Gives token ids and the family's length limit.
        level: Sequence, residue or site.
        sequences: One a row.
        positions: 0-based site of each row (site tasks).
        window: Width to which site rows are cut around the site, clipped at the ends; 0 keeps the sequence.
        limit: Residues that are encoded together at most; longer sequences go in segments.

    Returns:
        Units in the order of their first row; together they answer each row exactly once.

    Raises:
        UserError: A site lies outside its sequence, or a sequence is empty.
    """
    caps = [cap for cap in (limit, loaded.family.max_residues) if cap is not None]
    most = max(min(caps), 8) if caps else None
    for row, sequence in enumerate(sequences):
        if not sequence:
            raise UserError("A sequence is empty", where=f"row {row + 1}", fix="Leave the row out")
    if level == "site":
        if positions is None:
            raise UserError("A site task needs the position of each site", fix="Give a column position")
        return _site_units(loaded, sequences, positions, window, most)
    units: list[Unit] = []
    for row, sequence in enumerate(sequences):
        parts = segments(len(sequence), most or len(sequence))
        tokens = [loaded.token_ids(sequence[part.start : part.end]) for part in parts]
        keep = [(part.keep_start - part.start, part.keep_end - part.start) for part in parts]
        if level == "sequence":
            units.append(Unit(tuple(tokens), tuple(keep), (row,)))
        else:
            for part, ids, kept in zip(parts, tokens, keep, strict=True):
                units.append(Unit((ids,), (kept,), (row,), offset=part.keep_start))
    return units


def _site_units(
    loaded: LoadedModel, sequences: Sequence[str], positions: Sequence[int], window: int, most: int | None
) -> list[Unit]:
    placed: dict[str, tuple[list[int], list[int]]] = {}
    for row, (sequence, position) in enumerate(zip(sequences, positions, strict=True)):
        if not 0 <= position < len(sequence):
            raise UserError(
                f"Position {position + 1} lies outside a sequence of {len(sequence)} residues", where=f"row {row + 1}",
                fix="Correct the position; it counts from 1",
            )
        text, at = cut_window(sequence, position, window)
        part = next(p for p in segments(len(text), most or len(text)) if p.keep_start <= at < p.keep_end)
        rows, sites = placed.setdefault(text[part.start : part.end], ([], []))
        rows.append(row)
        sites.append(at - part.start)
    return [
        Unit((loaded.token_ids(text),), ((0, len(text)),), tuple(rows), tuple(sites))
        for text, (rows, sites) in placed.items()
    ]


def pack_units(units: Sequence[Unit], family: ModelFamily) -> tuple[Batch, Where]:
    """Lays units into one packed row and says where their answers lie, in the order of units and their rows."""
    batch = pack([ids for unit in units for ids in unit.tokens])
    starts = iter(batch.layout.starts)
    before, after = len(family.before), len(family.after)
    residues, owner, sites, first, last = [], [], [], [], []
    for number, unit in enumerate(units):
        for ids, (keep_start, keep_end) in zip(unit.tokens, unit.keep, strict=True):
            start = next(starts)
            residues.append(torch.arange(start + before + keep_start, start + before + keep_end))
            owner.append(torch.full((keep_end - keep_start,), number))
            for site in unit.sites:
                sites.append(start + before + site)
                first.append(start + before)
                last.append(start + len(ids) - after - 1)
    where = Where(
        torch.cat(residues), torch.cat(owner), len(units),
        *(torch.tensor(x, dtype=torch.int64) for x in (sites, first, last)),
    )
    return batch, where
