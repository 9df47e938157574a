"""Zero-shot effects of substitutions: what a masked language model is asked, and how its answers add up.

The scores are those of Meier et al. 2021 (doi:10.1101/2021.07.09.450648). With log-probabilities among the twenty
amino acids, the effect of substitutions at the positions T is

- wild-type marginal: sum over T of log p(mutant) - log p(wild type), the protein being seen as it is;
- masked marginal: the same, all of T being masked;
- pseudo-likelihood ratio: sum over all positions of log p(residue), each masked in turn, of the mutant less that of the
  wild type.

A protein longer than the window is seen through windows centred on the substitutions. What is equal is asked once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from plm.data.fasta import STANDARD_RESIDUES
from plm.data.protein_store import ProteinStore
from plm.jobs.variants.notation import Substitution
from plm.jobs.variants.questions import Floats, MarginalQuestion
from plm.model.families import AMINO_ACIDS

METHODS = ("wt-marginal", "masked-marginal", "pseudo-likelihood")
TITLES = {
    "wt-marginal": "wild-type marginal", "masked-marginal": "masked marginal",
    "pseudo-likelihood": "pseudo-likelihood ratio",
}
_STEPS = 32
"""Windows begin at multiples of this part of their length, so that neighbouring substitutions share some."""
_INDEX = {letter: index for index, letter in enumerate(AMINO_ACIDS)}
Substitutions = tuple[Substitution, ...]


def window_around(length: int, places: Sequence[int], width: int) -> tuple[int, int] | None:
    """The residues through which some places are seen, 0-based and half open: ``(0, length)`` if they all fit.

    The middle of the places lies in the middle of the window, to within a 64th of it, but for the protein's ends.

    Args:
        length: Residues of the protein.
        places: 0-based, ascending.
        width: Residues of a window; 0: the whole protein.

    Returns:
        None if the places lie further apart than the window.
    """
    if not width or length <= width:
        return 0, length
    if places[-1] - places[0] >= width:
        return None
    step = max(1, width // _STEPS)
    start = round(((places[0] + places[-1]) / 2 - width / 2) / step) * step
    start = min(max(start, places[-1] - width + 1), places[0])
    start = min(max(start, 0), length - width)
    return start, start + width


@dataclass
class WantedEffects:
    """What is wanted of one sequence.

    Attributes:
        places: 0-based positions whose every substitution is scored (marginals), or None for all.
        variants: Variants that are scored by themselves: of several substitutions, and with pseudo-likelihoods all.
    """

    places: set[int] | None = field(default_factory=set)
    variants: dict[Substitutions, None] = field(default_factory=dict)


class EffectScores:
    """Scores of sequences as they come in. R residues in all that are asked about.

    Args:
        proteins: Proteins of the input.
        folder: Takes the file of scores, so that memory does not grow with the number of proteins.
        asked: Numbers of the sequences that are asked about; None: all. Of others there are no scores.

    Attributes:
        profile: (R, 20) float32 effect of each single substitution; NaN where none was asked for, and at the wild type.
        entropy: (R,) float32 entropy of what the model expects there, in nats; NaN where it was not asked.
        several: Effect of each variant of several substitutions, by sequence and substitutions.
    """

    def __init__(self, proteins: ProteinStore, folder: Path, asked: Collection[int] | None = None) -> None:
        lengths = np.zeros_like(proteins.lengths) if asked is not None else proteins.lengths
        if asked is not None:
            lengths[list(asked)] = proteins.lengths[list(asked)]
        self._offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        residues = int(self._offsets[-1])
        self.profile: Floats = np.memmap(folder / "profile", np.float32, "w+", shape=(max(residues, 1), 20))
        self.profile[:] = np.nan
        self.entropy: Floats = np.full(residues, np.nan, np.float32)
        self.several: dict[tuple[int, Substitutions], float] = {}

    def of(self, sequence: int) -> tuple[Floats, Floats]:
        """(L, 20) effects and (L,) entropies of a sequence, to be read or filled; (0, 20) if it is not asked about."""
        span = slice(int(self._offsets[sequence]), int(self._offsets[sequence + 1]))
        return self.profile[span], self.entropy[span]

    def variant(self, sequence: int, substitutions: Substitutions) -> float:
        """Effect of a variant that was asked for."""
        known = self.several.get((sequence, substitutions))
        if known is not None:
            return known
        profile = self.of(sequence)[0]
        return float(sum(float(profile[one.position - 1, _INDEX[one.mutant]]) for one in substitutions))


@dataclass
class _Likelihood:
    """Log-likelihood of a sequence or window while its residues come in."""

    left: int
    total: float = 0.0
    done: Callable[[float], None] | None = None

    def add(self, column: int, values: Floats) -> None:
        self.total += float(values[0, column])
        self.left -= 1
        if not self.left and self.done is not None:
            self.done(self.total)


class SequencePlan:
    """What is asked about one sequence, and where the answers go.

    Args:
        number: Of the sequence.
        letters: Its residues.
        wanted: What is wanted of it.
        method: One of :data:`METHODS`.
        width: Residues of a window; 0: the whole sequence.
        about: The protein, for messages.
    """

    def __init__(
        self, number: int, letters: str, wanted: WantedEffects, method: str, width: int, about: str = ""
    ) -> None:
        self._number, self._letters, self._method, self._about = number, letters, method, about
        self._length, self._width = len(letters), width
        everything = range(self._length) if wanted.places is None else sorted(wanted.places)
        self._places = [place for place in everything if letters[place] in _INDEX]
        self._variants = list(wanted.variants)
        if method == "pseudo-likelihood":
            self._variants += [
                (Substitution(letters[place], place + 1, letter),)
                for place in self._places for letter in STANDARD_RESIDUES if letter != letters[place]
            ]
            self._places = []
        else:  # substitutions too far apart for one window are seen each in its own
            apart = [one for one in self._variants if self._window(_places(one)) is None]
            self._variants = [one for one in self._variants if self._window(_places(one)) is not None]
            self._places = sorted({*self._places, *(place for one in apart for place in _places(one))})

    def passes(self) -> Counter[int]:
        """How many sequences of each number of residues the model reads."""
        counts: Counter[int] = Counter()
        if self._method == "wt-marginal":
            spans = {self._window([place]) for place in self._places} | {
                self._window(_places(one)) for one in self._variants
            }
            counts.update(_size(span) for span in spans if span)
        elif self._method == "masked-marginal":
            sets = {(place,) for place in self._places} | {_places(one) for one in self._variants}
            counts.update(_size(span) for one in sets if (span := self._window(one)))
        else:
            parts = {part for one in self._variants for part in self._parts(one)}
            seen = [self._surely(_places(part)) for part in parts]
            for span in [*seen, *set(seen)]:
                counts[_size(span)] += self._counted(span)
        return counts

    def questions(self, scores: EffectScores) -> Iterator[MarginalQuestion]:
        """All questions; their answers fill ``scores``."""
        if self._method == "wt-marginal":
            return self._seen(scores)
        return self._masked(scores) if self._method == "masked-marginal" else self._likelihoods(scores)

    # ------------------------------------------------------------------------------------------------------ marginals

    def _seen(self, scores: EffectScores) -> Iterator[MarginalQuestion]:
        """One pass a window answers for all that is seen through it."""
        single: dict[tuple[int, int], list[int]] = {}
        several: dict[tuple[int, int], list[Substitutions]] = {}
        for place in self._places:
            single.setdefault(self._surely([place]), []).append(place)
        for one in self._variants:
            several.setdefault(self._surely(_places(one)), []).append(one)
        for span in sorted({*single, *several}):
            mine, variants = single.get(span, []), several.get(span, [])
            places = sorted({*mine, *(place for one in variants for place in _places(one))})
            take = partial(self._take, scores, places, set(mine), variants)
            yield self._question(span, (), places, take)

    def _masked(self, scores: EffectScores) -> Iterator[MarginalQuestion]:
        """Each set of positions is masked once, whatever takes their places."""
        sets: dict[tuple[int, ...], list[Substitutions]] = {(place,): [] for place in self._places}
        own = set(sets)
        for one in self._variants:
            sets.setdefault(_places(one), []).append(one)
        for places, variants in sets.items():
            take = partial(self._take, scores, list(places), set(places) if places in own else set(), variants)
            yield self._question(self._surely(places), places, places, take)

    def _take(
        self, scores: EffectScores, places: list[int], profiled: set[int], variants: list[Substitutions], values: Floats
    ) -> None:
        profile, entropy = scores.of(self._number)
        wild_type = np.array([_INDEX[self._letters[place]] for place in places])
        rows = np.arange(len(places))
        effects = values - values[rows, wild_type][:, None]
        if profiled:
            kept = np.array([place in profiled for place in places])
            shown = effects.copy()
            shown[rows, wild_type] = np.nan
            profile[np.array(places)[kept]] = shown[kept]
            entropy[np.array(places)[kept]] = -(np.exp(values[kept]) * values[kept]).sum(1)
        row_of = {place: row for row, place in enumerate(places)}
        for one in variants:
            scores.several[self._number, one] = float(
                sum(float(effects[row_of[part.position - 1], _INDEX[part.mutant]]) for part in one)
            )

    # ----------------------------------------------------------------------------------------------- pseudo-likelihoods

    def _likelihoods(self, scores: EffectScores) -> Iterator[MarginalQuestion]:
        """The wild type of each window once, then each mutant; the differences are made when all are in."""
        wild: dict[tuple[int, int], _Likelihood] = {}
        asked: set[Substitutions] = set()
        for one in self._variants:
            for part in self._parts(one):
                if part in asked:
                    continue
                asked.add(part)
                span = self._surely(_places(part))
                if span not in wild:
                    wild[span] = _Likelihood(self._counted(span))
                    yield from self._each_masked(self._letters[slice(*span)], wild[span])
                letters = list(self._letters[slice(*span)])
                for substitution in part:
                    letters[substitution.position - 1 - span[0]] = substitution.mutant
                mutant = _Likelihood(self._counted(span), done=partial(self._difference, scores, part, wild[span]))
                yield from self._each_masked("".join(letters), mutant)

    def _difference(self, scores: EffectScores, part: Substitutions, wild: _Likelihood, total: float) -> None:
        effect = total - wild.total
        if len(part) == 1:
            scores.of(self._number)[0][part[0].position - 1, _INDEX[part[0].mutant]] = effect
        else:
            scores.several[self._number, part] = effect

    def _each_masked(self, letters: str, likelihood: _Likelihood) -> Iterator[MarginalQuestion]:
        for place, letter in enumerate(letters):
            if letter in _INDEX:
                add = partial(likelihood.add, _INDEX[letter])
                yield MarginalQuestion(letters, (place,), (place,), add, self._about)

    def _counted(self, span: tuple[int, int]) -> int:
        return sum(letter in _INDEX for letter in self._letters[slice(*span)])

    def _parts(self, one: Substitutions) -> list[Substitutions]:
        """The variant, or its substitutions where they lie too far apart for one window."""
        return [one] if self._window(_places(one)) else [(part,) for part in one]

    # ------------------------------------------------------------------------------------------------------- windows

    def _window(self, places: Sequence[int]) -> tuple[int, int] | None:
        return window_around(self._length, places, self._width)

    def _surely(self, places: Sequence[int]) -> tuple[int, int]:
        span = self._window(places)
        assert span is not None  # what lies too far apart was taken apart
        return span

    def _question(
        self, span: tuple[int, int], hidden: Sequence[int], read: Sequence[int], take: partial[None]
    ) -> MarginalQuestion:
        start = span[0]
        return MarginalQuestion(
            self._letters[slice(*span)], tuple(place - start for place in hidden),
            tuple(place - start for place in read), take, self._about,
        )


def _places(substitutions: Substitutions) -> tuple[int, ...]:
    return tuple(one.position - 1 for one in substitutions)


def _size(span: tuple[int, int]) -> int:
    return span[1] - span[0]


