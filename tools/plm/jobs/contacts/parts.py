"""Which proteins with known contacts train, which choose, and which judge; relatives stay together."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from plm.data import homology
from plm.errors import UserError
from plm.jobs.contacts.bands import CLOSEST, pairs_of
from plm.jobs.contacts.inputs import ContactInputs, read_parts
from plm.wording import counted

TRAIN, VALID, TEST, SPARE = "train", "valid", "test", "train, not used"
_SHARES = {TRAIN: 0.4, VALID: 0.2}
_MOST_VALID = 50
_CHECKED = 1000
"""Residues of a protein that are looked at to see whether it has known contacts at all."""


class TooFewFamilies(UserError):
    """There are not enough families for training, choosing and judging."""


@dataclass(frozen=True)
class ContactParts:
    """Parts and families of the proteins with known contacts.

    Attributes:
        part: By record: :data:`TRAIN`, :data:`VALID`, :data:`TEST` or :data:`SPARE`.
        cluster: By record: the first relative.
        told: How they came about, for the report.
        leaking: Test records that have relatives among those that trained or chose (given parts only).
    """

    part: Mapping[int, str]
    cluster: Mapping[int, str]
    told: str
    leaking: int = 0

    def of(self, part: str) -> list[int]:
        return [record for record, its in self.part.items() if its == part]


def usable_records(inputs: ContactInputs) -> list[int]:
    """Records that have a known contact at least six residues apart; the others are told why not."""
    usable = []
    for record, known in sorted(inputs.known.items()):
        length = len(inputs.sequence(record))
        rows, columns = pairs_of(length, min(length, _CHECKED))
        if (known.known(rows, columns) & known.touch(rows, columns)).any():
            usable.append(record)
        else:
            inputs.remark(record, f"no known contact at least {CLOSEST} residues apart: nothing to judge by")
    return usable


def divide(
    inputs: ContactInputs, records: list[int], given: Path | None, *, train_proteins: int, identity: float,
    threads: int, seed: int, fits: bool,
) -> ContactParts:
    """Divides records among the parts.

    Args:
        inputs: The proteins.
        records: Those with known contacts.
        given: Table of parts; None: whole families are dealt out.
        train_proteins: At most so many train.
        identity: From which proteins are relatives, 0-1.
        threads: Of the search.
        seed: Of the order.
        fits: Whether a head is fitted; else all judge.

    Raises:
        UserError: Too few families, or a part without proteins.
    """
    pairs = [(str(record), inputs.sequence(record)) for record in records]
    method = homology.choose_method([sequence for _, sequence in pairs])
    if method == "exact":  # a third of a short chain agrees by chance
        identity = max(identity, homology.WINDOW_IDENTITY)
    clusters = homology.cluster(pairs, identity=identity, threads=threads)
    cluster = {int(name): inputs.proteins.ids[int(root)] for name, root in clusters.items()}
    how = homology.describe(method, identity, 0.8)
    if not fits:
        return ContactParts(dict.fromkeys(records, TEST), cluster, how)
    order = list(records)
    random.Random(seed).shuffle(order)
    if given is not None:
        told = read_parts(given, inputs)
        part = {record: told[record] for record in records if record in told}
        for record in records:
            if record not in told:
                inputs.remark(record, "the table of parts does not name it")
        _limit(part, order, train_proteins)
        _check(part, given.name)
        learned = {cluster[record] for record, its in part.items() if its in (TRAIN, VALID)}
        leaking = sum(its == TEST and cluster[record] in learned for record, its in part.items())
        return ContactParts(part, cluster, f"parts as {given.name} says; relatives: {how}", leaking)
    families: dict[str, list[int]] = {}
    for record in order:
        families.setdefault(cluster[record], []).append(record)
    if len(families) < 3:
        raise TooFewFamilies(
            f"There are only {counted(len(families), 'family', 'families')} of proteins with known contacts; training, "
            "choosing and judging need one each",
            where=inputs.proteins.name,
            fix="Give more diverse proteins, a table of parts (--parts), or a head that was fitted before (--head)",
        )
    wanted = {
        TRAIN: max(1, min(train_proteins, round(_SHARES[TRAIN] * len(records)))),
        VALID: max(1, min(_MOST_VALID, round(_SHARES[VALID] * len(records)))),
    }
    part, sizes, left = {}, dict.fromkeys((TRAIN, VALID, TEST), 0), len(families)
    # Small families first: large ones would fill a part with copies of one protein.
    for members in sorted(families.values(), key=len):
        empty = [one for one in sizes if not sizes[one]]
        open_parts = [one for one in (TRAIN, VALID) if sizes[one] < wanted[one]]
        place = empty[0] if left <= len(empty) else (open_parts or [TEST])[0]
        left -= 1
        sizes[place] += len(members)
        part.update(dict.fromkeys(members, place))
    _limit(part, order, train_proteins)
    return ContactParts({record: part[record] for record in records}, cluster, f"whole families ({how})")


def _limit(part: dict[int, str], order: list[int], most: int) -> None:
    trains = [record for record in order if part.get(record) == TRAIN]
    for record in trains[most:]:
        part[record] = SPARE


def _check(part: Mapping[int, str], where: str) -> None:
    for wanted in (TRAIN, VALID, TEST):
        if wanted not in part.values():
            raise UserError(
                f"No protein with known contacts is in the part {wanted}", where=where,
                fix="Name some for each of train, valid and test",
            )


def resolved_share(inputs: ContactInputs, record: int) -> int:
    """Residues of a protein that have a known pair with others."""
    length = len(inputs.sequence(record))
    places = np.arange(length)
    return int(inputs.known[record].known(places, places).sum())
