"""The one policy for repeated ids: refused, renamed, or only the first record counts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from plm.data.fasta import ProteinRecord
from plm.data.tables import BREAKS
from plm.errors import UserError

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Settled:
    """What becomes of a record whose id came before.

    Attributes:
        row: Number of the record in its file, from 0.
        id: The id that it bears from now on.
        told: What happened, with the line of the first record of that id.
        kept: Whether the record is used.
    """

    row: int
    id: str
    told: str
    kept: bool


def check_id(record: ProteinRecord, name: str) -> None:
    """Refuses ids that no table can hold.

    Raises:
        UserError: The id is empty or holds a tab, a line end or another control character.
    """
    where = f"{name}, line {record.line}"
    if not record.id:
        raise UserError("A record without an id", where=where, fix="Fill the id column")
    if BREAKS.search(record.id):
        raise UserError(
            f"The id {record.id!r} holds a tab or a line end, or another control character", where=where,
            fix="Rename it",
        )


def unused(base: str, taken: Collection[str], number: int = 2) -> tuple[str, int]:
    """The first of ``base_2``, ``base_3``, ... that is not taken, from ``number`` on, and the number after its own."""
    while f"{base}_{number}" in taken:
        number += 1
    return f"{base}_{number}", number + 1


def digest_of(text: str) -> bytes:
    """16 bytes that stand for a text."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def first_equal(digests: bytearray | bytes) -> Ints:
    """For each 16-byte digest the index of the first that equals it."""
    pairs = np.frombuffer(digests, np.uint64).reshape(-1, 2)
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))  # stable: the first of a group is the earliest
    ordered = pairs[order]
    begins = np.ones(len(order), bool)
    begins[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    first = np.empty(len(order), np.int64)
    first[order] = order[begins][np.cumsum(begins) - 1]
    return first


def settle(id_of: Callable[[int], str], lines: Sequence[int], first: Ints, policy: str, name: str) -> Iterator[Settled]:
    """Applies the policy to the records whose id came before.

    Args:
        id_of: The id of a record by its number; ids may lie on disk, since only those of repetitions, and of names
            like theirs, are kept.
        lines: 1-based line of each record.
        first: ``(N,)`` for each record the first one with its id, as :func:`first_equal` tells.
        policy: ``error``, ``rename`` (``_2``, ``_3``, ... is added; never another record's own id) or ``first``.
        name: The file, for the message.

    Raises:
        UserError: Policy ``error`` and an id is repeated; names it and both lines.
    """
    repeated = np.flatnonzero(first != np.arange(len(first))).tolist()
    if not repeated:
        return
    if policy == "error":
        row = repeated[0]
        raise UserError(
            f"The id {id_of(row)!r} appears more than once",
            where=f"{name}, lines {lines[int(first[row])]} and {lines[row]}",
            fix="Make ids unique, or choose --duplicate-ids rename or first",
        )
    taken: set[str] = set()
    if policy == "rename":
        taken = {id_of(row) for row in repeated}
        # A new name may be another record's own: those can only be names that end in _<number>.
        taken |= {text for text in (id_of(row) for row in range(len(first))) if _numbered(text) in taken}
    following: dict[int, int] = {}
    for row in repeated:
        base, before = id_of(row), int(first[row])
        if policy == "first":
            yield Settled(row, base, f"the id was used before (line {lines[before]})", False)
            continue
        renamed, following[before] = unused(base, taken, following.get(before, 2))
        yield Settled(row, renamed, f"renamed: the id {base} was used before (line {lines[before]})", True)


def _numbered(text: str) -> str:
    base, mark, number = text.rpartition("_")
    return base if mark and number.isdigit() else ""
