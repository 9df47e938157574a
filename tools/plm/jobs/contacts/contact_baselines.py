"""Predictors of contacts without a language model, fitted on the same training proteins."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from plm.data.fasta import STANDARD_RESIDUES

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
RANDOM, SEPARATION, RESIDUES = "random pairs", "separation alone", "separation and residue pair"
BASELINES = (RANDOM, SEPARATION, RESIDUES)
_WIDEST = 2000
_PRIOR = 20.0
"""Pairs that a pair of amino acids (or a separation) must have been seen as before its own frequency counts half."""
_OTHER = len(STANDARD_RESIDUES)


def residue_codes(sequence: str) -> Ints:
    """``(L,)`` 0-19 of the amino acids, 20 of what is none."""
    return np.array([STANDARD_RESIDUES.find(letter) % (_OTHER + 1) for letter in sequence], np.int64)


class ContactBaselines:
    """How often residues touch by how far apart they are, and by which amino acids they are.

    Args:
        separations: For each training protein ``(P,)`` of its known pairs.
        touches: Likewise, whether they touch.
        kinds: Likewise ``(P, 2)`` of :func:`residue_codes`.
    """

    def __init__(self, separations: Sequence[Ints], touches: Sequence[Flags], kinds: Sequence[Ints]) -> None:
        pairs, contacts = np.zeros(_WIDEST), np.zeros(_WIDEST)
        for separation, touch in zip(separations, touches, strict=True):
            capped = np.minimum(separation, _WIDEST - 1)
            pairs += np.bincount(capped, minlength=_WIDEST)
            contacts += np.bincount(capped[touch], minlength=_WIDEST)
        self._rate = _smoothed(pairs, contacts)
        logit = np.log(self._rate / (1 - self._rate))
        seen, hits = np.zeros((_OTHER + 1, _OTHER + 1)), np.zeros((_OTHER + 1, _OTHER + 1))
        expected = np.zeros_like(seen)
        for separation, touch, kind in zip(separations, touches, kinds, strict=True):
            low, high = kind.min(1), kind.max(1)
            rate = self._rate[np.minimum(separation, _WIDEST - 1)]
            np.add.at(seen, (low, high), 1)
            np.add.at(hits, (low, high), touch)
            np.add.at(expected, (low, high), rate)
        prior = _PRIOR * float(contacts.sum() / max(pairs.sum(), 1))
        self._logit, self._odds = logit, np.log((hits + prior) / (expected + prior))

    def score(self, name: str, separation: Ints, kinds: Ints) -> Floats:
        """``(P,)`` scores of pairs by one of :data:`BASELINES`."""
        if name == RANDOM:
            return np.zeros(len(separation))
        capped = np.minimum(separation, _WIDEST - 1)
        if name == SEPARATION:
            return self._rate[capped]
        return self._logit[capped] + self._odds[kinds.min(1), kinds.max(1)]


def _smoothed(pairs: Floats, contacts: Floats) -> Floats:
    """Rate of contacts at each separation, from neighbouring separations within a tenth."""
    overall = (contacts.sum() + 0.5) / (pairs.sum() + 1)
    places = np.arange(len(pairs))
    reach = np.maximum(1, places // 10)
    low, high = np.maximum(places - reach, 0), np.minimum(places + reach + 1, len(pairs))
    total, hits = (np.concatenate([[0.0], np.cumsum(counts)]) for counts in (pairs, contacts))
    near, touching = total[high] - total[low], hits[high] - hits[low]
    return np.asarray((touching + _PRIOR * overall) / (near + _PRIOR))
