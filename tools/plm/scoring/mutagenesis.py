"""In-silico mutagenesis: what every substitution at some places of a protein does to the answer of a bundle.

Classes are judged by the log-odds of one class, ``log(p / (1 - p))`` in natural logarithms: a stated prevalence shifts
them all alike, so that the changes are those of the model itself. Numbers are judged in the unit of their labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from plm.data.tables import visible
from plm.data.task import Task

Floats = NDArray[np.float64]
AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
"""What a residue is replaced by; the columns of every map."""
COLUMNS = ("id", "mutated", "wild_type", "substitution", "class", "score", "unmutated", "change", "call", "model")
SITE_COLUMNS = ("id", "position", "mutated", "offset", *COLUMNS[2:])
"""The same where a site is judged: its position, and how far from it the mutated residue lies."""
_LEAST = 1e-9
"""Probabilities closer to 0 or 1 have no log-odds that mean anything."""

Ask = Callable[[Sequence[str], "Sequence[int] | None"], Floats]
"""A bundle's answers ``(N, K)`` for sequences and, for site tasks, the 0-based site in each."""
Show = Callable[[Floats], "tuple[Floats, list[str]]"]
"""Answers ``(N, K)`` as tables show them, and the class that is called for each (empty for numbers)."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is mutated where.

    Attributes:
        id: How tables and figures name it.
        context: Residues that the bundle sees: a window or a whole protein.
        places: 0-based indices in ``context`` that are mutated, ascending.
        numbers: The 1-based position in the protein of each of them.
        site: 0-based index of the judged site in ``context``; None where the whole protein is judged.
        position: Its 1-based position in the protein; 0 without a site.
    """

    id: str
    context: str
    places: tuple[int, ...]
    numbers: tuple[int, ...]
    site: int | None = None
    position: int = 0

    @property
    def letters(self) -> str:
        """The wild-type residue of each place."""
        return "".join(self.context[place] for place in self.places)

    @property
    def site_column(self) -> int | None:
        """Which of the places is the site itself; None if none is."""
        return self.places.index(self.site) if self.site is not None and self.site in self.places else None


@dataclass(frozen=True)
class EffectMap:
    """What every substitution in one subject does. P places, 20 amino acids in the order of :data:`AMINO_ACIDS`.

    Attributes:
        subject: What was mutated.
        judged: Class whose probability the score is; empty for numbers.
        unmutated: Score without a mutation: a probability as tables show it, or a number.
        call: Class called without a mutation; empty for numbers.
        scores: (P, 20) the same with each substitution; NaN at the wild type.
        changes: (P, 20) log-odds, or the number, less that without a mutation; NaN at the wild type.
        calls: (P, 20) classes called; empty at the wild type and for numbers.
    """

    subject: Subject
    judged: str
    unmutated: float
    call: str
    scores: Floats
    changes: Floats
    calls: NDArray[np.str_]

    @property
    def overturned(self) -> NDArray[np.bool_]:
        """(P, 20) substitutions with which another class is called."""
        result: NDArray[np.bool_] = (self.calls != "") & (self.calls != self.call)
        return result


def substitutions(residue: str) -> str:
    """What a residue is replaced by: the other 19; all 20 where it is none of them (X)."""
    return AMINO_ACIDS.replace(residue, "")


def variants(subject: Subject) -> list[str]:
    """The context with each single substitution, place after place, each in the order of :func:`substitutions`."""
    text = subject.context
    return [text[:at] + letter + text[at + 1 :] for at in subject.places for letter in substitutions(text[at])]


def count_variants(subject: Subject) -> int:
    """How many sequences :func:`effect_map` asks about, without the unmutated one."""
    return sum(len(substitutions(letter)) for letter in subject.letters)


def plan(subjects: Sequence[Subject], what: str) -> str:
    """What is going to be asked, for the log; ``what`` the subjects are, such as ``around 5 calls``."""
    counts = [count_variants(subject) for subject in subjects]
    residues = sum(count * len(subject.context) for count, subject in zip(counts, subjects, strict=True))
    return f"Mutagenesis: {sum(counts)} substitutions {what}, {residues} residues to encode"


def effect_map(subject: Subject, task: Task, ask: Ask, show: Show) -> EffectMap:
    """Asks about a subject and all its variants at once.

    Args:
        subject: What is mutated where.
        task: Task of the bundle; its level is ``site`` or ``sequence``.
        ask: The bundle's answers.
        show: How tables show them and what is called.
    """
    texts = [subject.context, *variants(subject)]
    sites = None if subject.site is None else [subject.site] * len(texts)
    values = ask(texts, sites)
    shown, calls = show(values)
    column = judged_column(task, calls[0])
    judged = task.classes[column] if task.target == "class" else ""
    judgement = log_odds(values, column) if judged else values[:, 0]
    present = np.array([[one != letter for one in AMINO_ACIDS] for letter in subject.letters])
    scores, changes = np.full(present.shape, np.nan), np.full(present.shape, np.nan)
    scores[present] = shown[1:, column]
    changes[present] = judgement[1:] - judgement[0]
    names = np.full(present.shape, "", dtype=object)
    names[present] = calls[1:]
    return EffectMap(
        subject, judged, float(shown[0, column]), calls[0], scores, changes, names.astype(np.str_)
    )


def judged_column(task: Task, call: str) -> int:
    """The column of the answers that a map follows: the positive class, else the class called; 0 for numbers."""
    if task.target == "number":
        return 0
    return task.positive_index if task.binary else task.classes.index(call)


def log_odds(values: Floats, column: int) -> Floats:
    """``log(p / (1 - p))`` (N,) of one column of probabilities ``(N, K)``.

    1 - p is the sum of the other classes, which keeps its digits where p is nearly 1.
    """
    inside = np.maximum(values[:, column], _LEAST)
    outside = np.maximum(np.delete(values, column, axis=1).sum(axis=1), _LEAST)
    result: Floats = np.log(inside) - np.log(outside)
    return result


def write_maps(handle: TextIO, maps: Iterable[EffectMap], model: str, *, sites: bool, digits: int = 6) -> None:
    """Writes a row a substitution: maps in order, places ascending, amino acids by letter.

    Args:
        handle: Open text file; tab-separated rows are written to it.
        maps: Maps, all of sites or all of whole proteins.
        model: Name and digest of the bundle.
        sites: Whether the header is :data:`SITE_COLUMNS` or :data:`COLUMNS`.
        digits: Decimals of a probability.
    """
    handle.write("\t".join(SITE_COLUMNS if sites else COLUMNS) + "\n")
    for made in maps:
        form, subject = f".{digits}f" if made.judged else ".6g", made.subject
        unmutated = format(made.unmutated, form)
        for row, (number, letter) in enumerate(zip(subject.numbers, subject.letters, strict=True)):
            place = (number,) if not sites else (subject.position, number, subject.places[row] - (subject.site or 0))
            for column, other in enumerate(AMINO_ACIDS):
                if np.isnan(made.scores[row, column]):
                    continue
                score = format(made.scores[row, column], form)
                change = format(made.changes[row, column], ".4f" if made.judged else ".6g")
                call = str(made.calls[row, column])
                cells = (subject.id, *place, letter, other, made.judged, score, unmutated, change, call, model)
                handle.write("\t".join(visible(str(cell)) for cell in cells) + "\n")
