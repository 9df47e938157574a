"""What sequence members see of a text: a window of one width around a site, or a whole sequence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plm.data import homology
from plm.data.windows import window as cut_window

Floats = NDArray[np.float64]
RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
GAP = "-"


def window_text(sequence: str, position0: int, width: int) -> str:
    """The window of ``width`` residues around a site, with ``-`` beyond the protein's ends."""
    cut, place = cut_window(sequence, position0, width)
    left = width // 2 - place
    return GAP * left + cut + GAP * (width - left - len(cut))


def _codes(nothing: int) -> NDArray[np.int64]:
    code = np.full(256, nothing, dtype=np.int64)
    code[[ord(residue) for residue in RESIDUES]] = np.arange(len(RESIDUES))
    return code


def composition(texts: Sequence[str]) -> Floats:
    """(N, 20) share of each amino acid among the residues."""
    counts = np.array([[text.count(residue) for residue in RESIDUES] for text in texts], dtype=np.float64)
    lengths = np.array([len(text) - text.count(GAP) for text in texts], dtype=np.float64)
    return counts.reshape(-1, len(RESIDUES)) / np.maximum(lengths, 1)[:, None]


def one_hot(texts: Sequence[str]) -> Floats:
    """(N, L * 20) residue at each place of texts of one length L; X and places beyond the ends are all zero."""
    code = _codes(len(RESIDUES))
    places = np.stack([code[np.frombuffer(text.encode("ascii"), dtype=np.uint8)] for text in texts])
    hot = np.eye(len(RESIDUES) + 1)[:, : len(RESIDUES)]
    return hot[places].reshape(len(texts), -1)


def dipeptides(texts: Sequence[str]) -> Floats:
    """(N, 400) share of each pair of neighbouring residues."""
    size = len(RESIDUES)
    code = _codes(-1)
    shares = np.zeros((len(texts), size * size))
    for row, text in enumerate(texts):
        places = code[np.frombuffer(text.encode("ascii"), dtype=np.uint8)]
        both = (places[:-1] >= 0) & (places[1:] >= 0)
        pairs = (places[:-1] * size + places[1:])[both]
        shares[row] = np.bincount(pairs, minlength=size * size) / max(len(pairs), 1)
    return shares


def k_mers(texts: Sequence[str]) -> Any:
    """(N, 2^20) sparse: which 5-mers a text has, by hash."""
    from sklearn.feature_extraction.text import HashingVectorizer

    vectoriser = HashingVectorizer(
        analyzer="char", ngram_range=(5, 5), lowercase=False, binary=True, norm=None, alternate_sign=False
    )
    return vectoriser.transform(texts)


def ungapped(texts: Sequence[str]) -> NDArray[np.object_]:
    """(N,) the texts without the places beyond the ends, to be compared at every offset."""
    return np.array([text.strip(GAP) for text in texts], dtype=object)


VIEWS: Mapping[str, Callable[[Sequence[str]], Any]] = {
    "composition": composition, "dipeptides": dipeptides, "one-hot": one_hot, "k-mers": k_mers, "ungapped": ungapped,
}
"""Everything that a member may see, by name."""
MEASURES = {
    "one-hot": "identical residues place by place",
    "ungapped": "identity at the best ungapped offset",
    "k-mers": "share of the row's 5-mers found in the other",
}
"""How rows are compared by what is seen of them, in words."""


def _ungapped_identity(seen: Sequence[str], own: Sequence[str]) -> NDArray[np.float32]:
    """Identity at the best ungapped offset; of texts longer than a window, that of their best piece."""
    longest, step = homology.LONGEST_WINDOW, homology.LONGEST_WINDOW // 2
    pieces = [[text[at : at + longest] for at in range(0, max(len(text) - step, 1), step)] for text in seen]
    starts = np.cumsum([0, *map(len, pieces)])[:-1]
    every: NDArray[np.float32] = homology.identities([piece for one in pieces for piece in one], own)
    best: NDArray[np.float32] = np.maximum.reduceat(every, starts, axis=0) if len(seen) else every
    return best


def similarity(view: str, seen: Any, own: Any) -> NDArray[np.float32]:
    """(M, N) similarity of new rows to training rows, 0-1, as :data:`MEASURES` says; of the shorter window's residues.

    Args:
        view: What was seen: ``one-hot``, ``ungapped`` or ``k-mers``.
        seen: Of M new rows, from :data:`VIEWS`.
        own: Of N training rows.
    """
    if view == "ungapped":
        return _ungapped_identity(list(seen), list(own))
    if view == "one-hot":
        one, other = seen.astype(np.float32, copy=False), own.astype(np.float32, copy=False)
        places = np.minimum(one.sum(axis=1)[:, None], other.sum(axis=1)[None, :])
        equal: NDArray[np.float32] = (one @ other.T) / np.maximum(places, np.float32(1))
        return equal
    shared = np.asarray((seen @ own.T).todense(), dtype=np.float32)
    count = np.asarray(seen.sum(axis=1), dtype=np.float32)
    share: NDArray[np.float32] = (shared / np.maximum(count, 1)).astype(np.float32)
    return share
