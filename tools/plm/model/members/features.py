"""What sequence members see of a text: a window of one width around a site, or a whole sequence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plm.data import homology
from plm.data.windows import window as cut_window

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Singles = NDArray[np.float32]
RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
GAP = "-"
NOTHING = len(RESIDUES)
"""Code of X, of other letters, and of places beyond an end."""
K_MER, HASHES = 5, 2**20
ALIKE = ("ILMV", "C", "A", "G", "ST", "P", "FWY", "DENQ", "KR", "H")
"""Residues that count as one where proteins are compared (Murphy, Wallqvist and Levy 2000, ten groups)."""
SEEDS = ("11111", "110111", "1101011", "1100111", "10111001")
"""Which places of a stretch make a word: five each, some apart, which relatives share more often than five in a row
(spaced seeds, Ma, Tromp and Li 2002)."""
WORDS = len(ALIKE) ** 5


def window_text(sequence: str, position0: int, width: int) -> str:
    """The window of ``width`` residues around a site, with ``-`` beyond the protein's ends."""
    cut, place = cut_window(sequence, position0, width)
    left = width // 2 - place
    return GAP * left + cut + GAP * (width - left - len(cut))


def _code_of_letter() -> NDArray[np.uint8]:
    code = np.full(256, NOTHING, dtype=np.uint8)
    code[[ord(residue) for residue in RESIDUES]] = np.arange(len(RESIDUES))
    return code


_CODE = _code_of_letter()


def _group_of_code() -> NDArray[np.int64]:
    group = np.full(NOTHING + 1, -1, dtype=np.int64)
    for number, residues in enumerate(ALIKE):
        group[[RESIDUES.index(residue) for residue in residues]] = number
    return group


_GROUP = _group_of_code()


class TextBlock:
    """Texts read once, from which everything that members see of them is made.

    Attributes:
        texts: N windows of one width, or whole sequences.
        letters: (T,) uint8, the letters of all texts end to end.
        codes: (T,) uint8, the place of each in :data:`RESIDUES`; :data:`NOTHING` for others, and beyond an end.
        lengths: (N,) letters of each text.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts
        self.letters: NDArray[np.uint8] = np.frombuffer("".join(texts).encode("ascii"), dtype=np.uint8)
        self.codes: NDArray[np.uint8] = _CODE[self.letters]
        self.lengths = np.fromiter(map(len, texts), np.int64, len(texts))

    @cached_property
    def row(self) -> Ints:
        """(T,) number of the text that each letter is of."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    @cached_property
    def placed(self) -> NDArray[np.uint8]:
        """(N, L) codes of texts of one length L.

        Raises:
            ValueError: Their lengths differ.
        """
        return self.codes.reshape(len(self.lengths), int(self.lengths[0]) if len(self.lengths) else 0)

    def view(self, name: str) -> Any:
        """What a member sees of the texts, by its name in :data:`VIEWS`."""
        return _MAKERS[name](self)


def _composition(block: TextBlock) -> Floats:
    count, size = len(block.lengths), len(RESIDUES)
    counts = np.bincount(block.row * (size + 1) + block.codes, minlength=count * (size + 1)).reshape(count, size + 1)
    gaps = np.bincount(block.row[block.letters == ord(GAP)], minlength=count)
    return counts[:, :size].astype(np.float64) / np.maximum((block.lengths - gaps).astype(np.float64), 1)[:, None]


def _one_hot(block: TextBlock) -> Floats:
    return _hot(block.placed, np.float64)


def _hot(placed: NDArray[np.uint8], kind: type) -> NDArray[Any]:
    """(N, L * 20) of (N, L) codes."""
    rows, length = placed.shape
    hot: NDArray[Any] = np.zeros((rows, length, len(RESIDUES) + 1), kind)
    hot.reshape(-1)[np.arange(placed.size) * (len(RESIDUES) + 1) + placed.reshape(-1)] = 1
    return hot[:, :, : len(RESIDUES)].reshape(rows, length * len(RESIDUES))


def _dipeptides(block: TextBlock) -> Floats:
    count, size = len(block.lengths), len(RESIDUES)
    first, second, row = block.codes[:-1], block.codes[1:], block.row[:-1]
    both = (first < size) & (second < size) & (row == block.row[1:])
    pairs = (row[both] * size + first[both]) * size + second[both]
    counts = np.bincount(pairs, minlength=count * size * size).reshape(count, size * size)
    return counts / np.maximum(np.bincount(row[both], minlength=count), 1)[:, None]


def _k_mers(block: TextBlock) -> Any:
    from scipy.sparse import csr_matrix

    count, last = len(block.lengths), K_MER - 1
    whole = np.flatnonzero(block.row[last:] == block.row[: max(len(block.row) - last, 0)])
    place = _hashed([block.letters[whole + offset] for offset in range(K_MER)])
    keys = np.sort(block.row[whole] * HASHES + place)
    keys = keys[np.diff(keys, prepend=-1) > 0]
    starts = np.searchsorted(keys, np.arange(count + 1) * HASHES)
    return csr_matrix((np.ones(len(keys)), keys % HASHES, starts), shape=(count, HASHES))


def _hashed(letters: Sequence[NDArray[np.uint8]]) -> Ints:
    """(T,) hash of each 5-mer given by its letters (5, T): MurmurHash3 (32 bits, seed 0) of its bytes, as
    scikit-learn's ``HashingVectorizer`` has it, modulo :data:`HASHES`."""
    one, two, three, four, five = (letter.astype(np.uint32) for letter in letters)
    four_bytes = one | two << np.uint32(8) | three << np.uint32(16) | four << np.uint32(24)
    mixed = _turned(four_bytes * np.uint32(0xCC9E2D51), 15) * np.uint32(0x1B873593)
    value = _turned(mixed, 13) * np.uint32(5) + np.uint32(0xE6546B64)
    value ^= _turned(five * np.uint32(0xCC9E2D51), 15) * np.uint32(0x1B873593)
    value ^= np.uint32(K_MER)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        value = (value ^ value >> np.uint32(shift)) * np.uint32(factor)
    value ^= value >> np.uint32(16)
    return np.abs(value.view(np.int32).astype(np.int64)) % HASHES


def _turned(value: NDArray[np.uint32], bits: int) -> NDArray[np.uint32]:
    return value << np.uint32(bits) | value >> np.uint32(32 - bits)


def _words(block: TextBlock) -> Any:
    from scipy.sparse import csr_matrix

    group, count, width = _GROUP[block.codes], len(block.lengths), len(SEEDS) * WORDS
    first = block.row * width
    every = []
    for number, seed in enumerate(SEEDS):
        last = len(seed) - 1
        stop = max(len(group) - last, 0)
        code = np.full(stop, number, np.int64)
        known = block.row[last:] == block.row[:stop]
        for place in [place for place, taken in enumerate(seed) if taken == "1"]:
            own = group[place : place + stop]
            known &= own >= 0
            code *= len(ALIKE)
            code += own
        code += first[:stop]
        every.append(code[known])
    keys = np.concatenate(every)
    keys.sort()
    keys = keys[np.diff(keys, prepend=-1) > 0]
    places = np.searchsorted(keys, np.arange(count + 1) * width)
    return csr_matrix((np.ones(len(keys), np.float32), keys % width, places), shape=(count, width))


def _ungapped(block: TextBlock) -> NDArray[np.object_]:
    return np.array([text.strip(GAP) for text in block.texts], dtype=object)


_MAKERS: Mapping[str, Callable[[TextBlock], Any]] = {
    "composition": _composition, "dipeptides": _dipeptides, "one-hot": _one_hot, "k-mers": _k_mers,
    "ungapped": _ungapped, "words": _words,
}


def composition(texts: Sequence[str]) -> Floats:
    """(N, 20) share of each amino acid among the residues."""
    return _composition(TextBlock(texts))


def one_hot(texts: Sequence[str]) -> Floats:
    """(N, L * 20) residue at each place of texts of one length L; X and places beyond the ends are all zero."""
    return _one_hot(TextBlock(texts))


def dipeptides(texts: Sequence[str]) -> Floats:
    """(N, 400) share of each pair of neighbouring residues."""
    return _dipeptides(TextBlock(texts))


def k_mers(texts: Sequence[str]) -> Any:
    """(N, 2^20) sparse: which 5-mers a text has, by hash."""
    return _k_mers(TextBlock(texts))


def words(texts: Sequence[str]) -> Any:
    """(N, 5 * 10^5) sparse: which words of :data:`SEEDS` a text has, in the groups of :data:`ALIKE`."""
    return _words(TextBlock(texts))


def ungapped(texts: Sequence[str]) -> NDArray[np.object_]:
    """(N,) the texts without the places beyond the ends, to be compared at every offset."""
    return _ungapped(TextBlock(texts))


VIEWS: Mapping[str, Callable[[Sequence[str]], Any]] = {
    "composition": composition, "dipeptides": dipeptides, "one-hot": one_hot, "k-mers": k_mers, "ungapped": ungapped,
    "words": words,
}
"""Everything that a member may see, by name; 5-mers (``k-mers``) in bundles of earlier versions only."""
MEASURES = {
    "one-hot": "identical residues place by place",
    "ungapped": "identity at the best ungapped offset",
    "k-mers": "share of the row's 5-mers found in the other",
    "words": "cosine of the words of five places, similar residues taken as one and rare words counting more",
}
"""How rows are compared by what is seen of them, in words."""


def linear_scores(block: TextBlock, view: str, weight: Floats) -> Floats:
    """(N, R) products of what is seen of texts with ``(R, F)`` weights; few rows of weights are looked up."""
    if view != "one-hot" or len(weight) > _MOST_LOOKED_UP:
        return np.asarray(block.view(view) @ weight.T, np.float64)
    table = np.zeros((len(weight), block.placed.shape[1], len(RESIDUES) + 1))
    table[:, :, : len(RESIDUES)] = weight.reshape(len(weight), block.placed.shape[1], len(RESIDUES))
    places = np.ascontiguousarray(block.placed.T)
    scores = np.zeros((len(weight), len(block.lengths)))
    for score, looked_up in zip(scores, table, strict=True):
        for values, codes in zip(looked_up, places, strict=True):
            score += values.take(codes)
    return scores.T


_MOST_LOOKED_UP = 4


class ComparedRows:
    """Training rows, ready to be compared with.

    Attributes:
        view: How they are seen: ``one-hot``, ``ungapped``, ``words`` or ``k-mers``.
    """

    def __init__(self, view: str, texts: Sequence[str]) -> None:
        self.view = view
        block = TextBlock(texts)
        if view == "one-hot":
            # What is no residue has another code here than in new rows, so that it equals nothing.
            self._rows: Any = np.ascontiguousarray(np.where(block.placed == NOTHING, NOTHING + 1, block.placed).T)
            self._counts: Singles = (block.placed < NOTHING).sum(axis=1).astype(np.float32)
        elif view == "k-mers":
            self._rows = block.view(view).astype(np.float32).T.tocsr()
        elif view == "words":
            self._rows = WordRows(block.view(view))
        else:
            self._rows = list(block.view(view))

    def similarity(self, block: TextBlock) -> Singles:
        """(M, N) similarity of new rows to these, 0-1, as :data:`MEASURES` says; of the shorter window's residues."""
        if self.view == "ungapped":
            return _ungapped_identity(list(block.view(self.view)), self._rows)
        if self.view == "k-mers":
            return _shared_k_mers(block.view(self.view).astype(np.float32), self._rows)
        if self.view == "words":
            return self._rows.similarity(block.view(self.view))
        counts = (block.placed < NOTHING).sum(axis=1).astype(np.float32)
        return _equal_places(block.placed, self._rows, counts, self._counts)


def _ungapped_identity(seen: Sequence[str], own: Sequence[str]) -> Singles:
    """Identity at the best ungapped offset; of texts longer than a window, that of their best piece."""
    longest, step = homology.LONGEST_WINDOW, homology.LONGEST_WINDOW // 2
    pieces = [[text[at : at + longest] for at in range(0, max(len(text) - step, 1), step)] for text in seen]
    starts = np.cumsum([0, *map(len, pieces)])[:-1]
    every: Singles = homology.identities([piece for one in pieces for piece in one], own)
    best: Singles = np.maximum.reduceat(every, starts, axis=0) if len(seen) else every
    return best


def _equal_places(
    one: NDArray[np.uint8], other: NDArray[np.uint8], one_counts: Singles, other_counts: Singles
) -> Singles:
    """(M, N) share of equal codes of rows (M, L) and (L, N), in strips that stay in the processor's cache."""
    count, length = one.shape
    shares = np.empty((count, other.shape[1]), np.float32)
    for start in range(0, count, _STRIP):
        strip = one[start : start + _STRIP]
        total: NDArray[np.uint16] = np.zeros((len(strip), other.shape[1]), np.uint16)
        for first in range(0, length, _MOST_BYTE):
            part: NDArray[np.uint8] = np.zeros(total.shape, np.uint8)
            same = np.empty(total.shape, np.bool_)
            for place in range(first, min(first + _MOST_BYTE, length)):
                np.equal(strip[:, place, None], other[place], out=same)
                part += same.view(np.uint8)
            total += part
        strip_shares = shares[start : start + _STRIP]
        strip_shares[:] = total
        _divide(strip_shares, one_counts[start : start + _STRIP], other_counts)
    return shares


_STRIP, _MOST_BYTE = 64, 255


def _divide(equal: Singles, one_counts: Singles, other_counts: Singles) -> None:
    """Turns (M, N) numbers of equal places into shares, in place: of the residues of the row that has fewer."""
    places = np.minimum(one_counts[:, None], other_counts[None, :])
    equal /= np.maximum(places, np.float32(1), out=places)


def _shared_k_mers(one: Any, other: Any) -> Singles:
    """(M, N) share of the row's 5-mers found in the other: sparse (M, F) and (F, N)."""
    shared = np.asarray((one @ other).todense(), dtype=np.float32)
    shared /= np.maximum(np.asarray(one.sum(axis=1), dtype=np.float32).reshape(-1, 1), np.float32(1))
    return shared


class WordRows:
    """Training rows by their words, each weighted by its inverse document frequency (Sparck Jones 1972).

    Args:
        own: (N, F) sparse, from :func:`words`; the weights are those of these rows.
    """

    def __init__(self, own: Any) -> None:
        count = own.shape[0]
        rows_with = np.bincount(own.indices, minlength=own.shape[1])
        self._weight = np.log((count + 1) / (rows_with + 0.5)).astype(np.float32)
        self._rows = self._unit(own).T.tocsr()

    def similarity(self, seen: Any) -> Singles:
        """(M, N) cosine of (M, F) new rows to these."""
        cosine: Singles = (self._unit(seen) @ self._rows).toarray()
        return np.minimum(cosine, np.float32(1), out=cosine)

    def _unit(self, rows: Any) -> Any:
        """The rows in these weights, of length 1."""
        from scipy.sparse import csr_matrix

        data = self._weight[rows.indices]
        sums = np.add.reduceat(np.append(data.astype(np.float64) ** 2, 0.0), rows.indptr[:-1]) if len(data) else 0.0
        lengths = np.where(np.diff(rows.indptr) > 0, np.sqrt(sums), 1.0)
        data = data / np.repeat(lengths, np.diff(rows.indptr)).astype(np.float32)
        return csr_matrix((data, rows.indices, rows.indptr), shape=rows.shape)


def comparer(view: str, own: Any) -> Callable[[Any], Singles]:
    """What compares new rows with training rows, of what is seen of both: as :meth:`ComparedRows.similarity`.

    Args:
        view: What was seen: ``one-hot``, ``ungapped``, ``words`` or ``k-mers``.
        own: Of N training rows, from :data:`VIEWS`.

    Returns:
        From what is seen of M new rows to (M, N).
    """
    if view == "ungapped":
        texts = list(own)
        return lambda seen: _ungapped_identity(list(seen), texts)
    if view == "words":
        return WordRows(own).similarity
    if view == "k-mers":
        turned = own.T
        return lambda seen: _shared_k_mers(seen, turned)
    other = own.astype(np.float32, copy=False)
    counts = other.sum(axis=1)

    def equal_places(seen: Any) -> Singles:
        one = seen.astype(np.float32, copy=False)
        equal: Singles = one @ other.T
        _divide(equal, one.sum(axis=1), counts)
        return equal

    return equal_places


def similarity(view: str, seen: Any, own: Any) -> Singles:
    """(M, N) similarity of what is seen of new rows and of training rows; see :func:`comparer`."""
    return comparer(view, own)(seen)
