"""Examples on their way to the dataset table, and the journal of everything that was rejected, changed or left out."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from plm.data.dataset_table import COLUMNS
from plm.data.unique_ids import unused
from plm.errors import UserError

if TYPE_CHECKING:
    import pandas as pd


@dataclass(slots=True)
class Example:
    """One row of the dataset table in the making.

    Attributes:
        id: Unique name of the row.
        sequence: Cleaned residues: a protein or the window around a site.
        label: Class, number or residue labels; empty for unlabelled records.
        position0: 0-based index of the site in ``sequence``; None unless it is a site.
        protein: Id of the protein that the row comes from.
        protein_position: 1-based place of the site in that protein, if known.
        whole: The whole cleaned protein where it is known and is not ``sequence``.
        taxon: NCBI taxonomy id; empty if unknown.
        group: Rows of one group never straddle a split.
        cluster: Homology cluster, if one was made.
        split: train, valid, test, a fold number, or empty.
        source: Id of the input record that it comes from.
        from_test_file: Came with the test set that the user gave.
        extra: Further columns of the input, passed through: name -> cell.
    """

    id: str
    sequence: str
    label: str = ""
    position0: int | None = None
    protein: str = ""
    protein_position: int | None = None
    whole: str = ""
    taxon: str = ""
    group: str = ""
    cluster: str = ""
    split: str = ""
    source: str = ""
    from_test_file: bool = False
    extra: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Journal:
    """What happened to records that did not go through as they were: (id, what, reason).

    ``what`` is ``rejected`` (cannot be used), ``left out`` (could be used, but a rule of the user leaves it out) or
    ``changed``.
    """

    entries: list[tuple[str, str, str]] = field(default_factory=list)

    def rejected(self, name: str, reason: str) -> None:
        self.entries.append((name, "rejected", reason))

    def left_out(self, name: str, reason: str) -> None:
        self.entries.append((name, "left out", reason))

    def changed(self, name: str, reason: str) -> None:
        self.entries.append((name, "changed", reason))

    def count(self, what: str) -> int:
        return sum(entry[1] == what for entry in self.entries)

    def frame(self) -> pd.DataFrame:
        """Columns id, what, reason; tabs and line ends in a value become spaces."""
        import pandas as pd

        rows = [tuple(" ".join(value.split()) for value in entry) for entry in self.entries]
        return pd.DataFrame(rows, columns=["id", "what", "reason"], dtype=str)


def by_length(examples: Iterable[Example], shortest: int, longest: int, journal: Journal) -> list[Example]:
    """Rejects examples whose sequence is shorter or longer than allowed (``longest`` 0: no limit)."""
    kept = []
    for example in examples:
        length = len(example.sequence)
        if length < shortest:
            journal.rejected(example.id, f"{length} residues, fewer than --min-length {shortest}")
        elif longest and length > longest:
            journal.rejected(example.id, f"{length} residues, more than --max-length {longest}")
        else:
            kept.append(example)
    return kept


def without_conflicts(examples: Sequence[Example], policy: str, journal: Journal) -> list[Example]:
    """Settles equal inputs (sequence and position) that carry different labels.

    Args:
        examples: Rows in order.
        policy: ``error``, ``drop`` (all of them) or ``keep``.
        journal: Journal that notes each row left out and why.

    Raises:
        UserError: Policy ``error`` and there is a conflict; names two ids and their labels.
    """
    if policy == "keep":
        return list(examples)
    same = _by_key(examples, _content)
    conflicting: dict[str, Example] = {}
    for members in same.values():
        other = next((member for member in members if member.label != members[0].label), None)
        if other is None:
            continue
        if policy == "error":
            raise UserError(
                f"Two records have the same sequence but the labels {members[0].label!r} and {other.label!r}",
                where=f"{members[0].id}, {other.id}", fix="Correct one, or choose --conflicting-labels drop",
            )
        for member in members:
            conflicting[member.id] = other if member is members[0] else members[0]
    for example in examples:
        if example.id in conflicting:
            rival = conflicting[example.id]
            journal.left_out(
                example.id, f"label {example.label} conflicts with {rival.id}, which has the same sequence"
            )
    return [example for example in examples if example.id not in conflicting]


def without_duplicates(examples: Sequence[Example], policy: str, journal: Journal) -> list[Example]:
    """Leaves out repetitions of an input (sequence and position) with the same label; policy ``keep`` or ``first``."""
    if policy == "keep":
        return list(examples)
    first: dict[Hashable, str] = {}
    kept = []
    for example in examples:
        known = first.setdefault((_content(example), example.label), example.id)
        if known == example.id:
            kept.append(example)
        else:
            journal.left_out(example.id, f"the same sequence and label as {known}")
    return kept


def capped(examples: Sequence[Example], cap: int, seed: int, journal: Journal) -> list[Example]:
    """At most ``cap`` examples of each label (0: no cap), drawn with ``seed``; the order stays, the rest is noted."""
    if not cap:
        return list(examples)
    rng = random.Random(seed)
    dropped: set[str] = set()
    for label, members in sorted(
        _by_key(examples, lambda example: example.label).items(), key=lambda item: str(item[0])
    ):
        if len(members) > cap:
            for member in rng.sample(members, len(members) - cap):
                dropped.add(member.id)
                journal.left_out(member.id, f"left out by the cap: at most {cap} records of class {label} (--cap)")
    return [example for example in examples if example.id not in dropped]


def thinned_negatives(
    examples: Sequence[Example], negative: str, ratio: float, seed: int, journal: Journal
) -> list[Example]:
    """At most ``ratio`` examples of the class ``negative`` for each other one (0: all), drawn with ``seed``.

    Raises:
        UserError: There is no example of that class to draw from.
    """
    if not ratio:
        return list(examples)
    negatives = [example for example in examples if example.label == negative]
    if examples and not negatives:
        raise UserError(
            f"There are no sites of class {negative} to draw from "
            f"(classes: {', '.join(sorted({example.label for example in examples}))})",
            where=f"--ratio {ratio:g}",
            fix=f"Call the negatives {negative} in the list of sites, or leave --ratio out and use --cap",
        )
    wanted = round(ratio * (len(examples) - len(negatives)))
    if len(negatives) <= wanted:
        return list(examples)
    dropped = {example.id for example in random.Random(seed).sample(negatives, len(negatives) - wanted)}
    for example in negatives:
        if example.id in dropped:
            journal.left_out(example.id, f"negative not drawn: {ratio:g} for each positive")
    return [example for example in examples if example.id not in dropped]


def with_unique_names(examples: Sequence[Example], journal: Journal) -> list[Example]:
    """Adds ``_2``, ``_3``, ... to ids that sites of different records share (two records of one accession, say)."""
    taken = {example.id for example in examples}
    seen: set[str] = set()
    for example in examples:
        if example.id in seen:
            renamed, _ = unused(example.id, taken)
            journal.changed(renamed, f"renamed: the id {example.id} was used before, by another site")
            taken.add(renamed)
            example.id = renamed
        seen.add(example.id)
    return list(examples)


def to_frame(examples: Sequence[Example], window: int | None) -> pd.DataFrame:
    """The dataset table: strings, known columns first, those that no row needs left away.

    Args:
        examples: Rows in the order of the table.
        window: Width for the column ``window`` (site tasks), or None.
    """
    import pandas as pd

    folds = any(example.split.isdigit() for example in examples)
    rows = []
    for example in examples:
        row = {
            "id": example.id,
            "sequence": example.sequence,
            "label": example.label,
            "position": "" if example.position0 is None else str(example.position0 + 1),
            "window": "" if window is None else str(window),
            "protein": example.protein,
            "protein_position": "" if example.protein_position is None else str(example.protein_position),
            "group": example.group,
            "cluster": example.cluster,
            "taxon": example.taxon,
            "fold" if folds else "split": example.split,
        }
        rows.append(row | {key: value for key, value in example.extra.items() if key not in COLUMNS})
    frame = pd.DataFrame(rows).fillna("").astype(str)
    unused = [column for column in frame.columns if column in COLUMNS and (frame[column] == "").all()]
    return frame.drop(columns=[column for column in unused if column not in ("id", "sequence")])


def _content(example: Example) -> tuple[str, int | None]:
    return example.sequence, example.position0


def _by_key(examples: Iterable[Example], key: Callable[[Example], Hashable]) -> dict[Hashable, list[Example]]:
    members: dict[Hashable, list[Example]] = defaultdict(list)
    for example in examples:
        members[key(example)].append(example)
    return members
