"""Whole homology clusters kept away from training, every domain of life among them, for a corpus of any size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from plm.data import homology
from plm.errors import UserError
from plm.masked_lm.corpus_store import CorpusStore

COVERAGE = 0.5
_ROUNDS = 4
_SENSITIVITIES = ((200_000, 7.5), (500_000, 5.7))
_LEAST_SENSITIVE = 4.0


@dataclass(frozen=True)
class ClusterSplit:
    """Who trains and who judges.

    Attributes:
        train: Indices of the sequences to train on, rising.
        parts: For each purpose of evaluation (such as validation and test) the indices of its sequences, rising; no
            cluster is in two of them.
        set_aside: Indices of sequences of held-out clusters that still have a relative in training; used for nothing.
        cluster: ``(N,)`` int64 numbers of homology clusters.
        clusters: Number of clusters, and of those that were held out.
        missing: Domains of at least two clusters of which nothing could be held out.
        sentence: All of that in one sentence.
    """

    train: np.ndarray
    parts: tuple[np.ndarray, ...]
    set_aside: np.ndarray
    cluster: np.ndarray
    clusters: tuple[int, int]
    missing: tuple[str, ...]
    sentence: str

    @property
    def held_out(self) -> np.ndarray:
        """The sequences of all parts, rising."""
        return np.sort(np.concatenate(self.parts))

    def save(self, path: Path) -> None:
        """Writes the split, for another process of the same job."""
        arrays = {f"part{number}": part for number, part in enumerate(self.parts)}
        arrays |= {"train": self.train, "set_aside": self.set_aside, "cluster": self.cluster}
        arrays |= {"missing": np.array(self.missing, str), "sentence": np.array(self.sentence)}
        np.savez(path, allow_pickle=False, counts=np.array(self.clusters), **arrays)

    @classmethod
    def load(cls, path: Path) -> ClusterSplit:
        """Reads what :meth:`save` wrote."""
        with np.load(path, allow_pickle=False) as read:
            parts = tuple(read[f"part{number}"] for number in range(sum(name.startswith("part") for name in read)))
            counts = read["counts"].tolist()
            return cls(
                read["train"], parts, read["set_aside"], read["cluster"], (counts[0], counts[1]),
                tuple(read["missing"].tolist()), str(read["sentence"]),
            )


def hold_out_clusters(
    store: CorpusStore, *, share: float, identity: float, seed: int, threads: int, parts: int = 1,
    exclude_related: bool = True, by_domain: bool = True,
) -> ClusterSplit:
    """Keeps whole homology clusters away from training.

    Clusters come from the input or from MMseqs2. Of every domain with at least two clusters some are held out (of one
    with more clusters than ``parts``, one a part at least, unless they are relatives). Held-out proteins that MMseqs2
    still finds a relative of in training (E-value up to 0.001, half of the shorter protein) are set aside; where that
    leaves a domain without any, further clusters of it are held out. Held-out clusters that are relatives of each other
    go to the same part.

    Args:
        store: Corpus that is parted.
        share: Share of the clusters to hold out, 0-1.
        identity: Identity from which proteins are relatives, 0-1, where clusters must be found.
        seed: Seed that decides which clusters are held out.
        threads: Processor threads.
        parts: Number of purposes that the held-out clusters are divided among.
        exclude_related: Whether to look for relatives across.
        by_domain: Whether every domain counts for itself.

    Raises:
        UserError: All proteins are relatives of each other, or too few clusters for all parts.
    """
    cluster, names, origin = _clusters(store, identity, threads)
    count = len(names)
    if count < parts + 1:
        what = "All proteins are relatives of each other" if count < 2 else f"There are only {count} families"
        raise UserError(
            f"{what}, so no family can be kept for the evaluation", fix="Give more diverse proteins or raise --identity"
        )
    domain = _domain_of(cluster, store.domain, count) if by_domain else np.zeros(count, np.int64)
    queues = _queues(names, domain, seed, parts)
    wanted = {key: _wanted(len(queue), share, parts) for key, queue in queues.items()}
    taken = dict.fromkeys(queues, 0)
    chosen = np.zeros(count, bool)
    checked, related = np.zeros(len(store), bool), np.zeros(len(store), bool)
    sensitivity = next((value for size, value in _SENSITIVITIES if len(store) <= size), _LEAST_SENSITIVE)
    for _ in range(_ROUNDS):
        for key, number in wanted.items():
            chosen[queues[key][taken[key] : number]] = True
            taken[key] = number
        held = chosen[cluster]
        fresh = np.flatnonzero(held & ~checked)
        if exclude_related and len(fresh):
            related[_with_relatives(store, fresh, np.flatnonzero(~held), threads, sensitivity)] = True
        checked |= held
        alive = np.zeros(count, bool)
        alive[cluster[held & ~related]] = True
        poor = [
            key for key, queue in queues.items()
            if len(queue) > 1 and alive[queue].sum() < min(parts, len(queue) - 1) and taken[key] < len(queue) - 1
        ]
        if not poor:
            break
        for key in poor:
            wanted[key] = min(len(queues[key]) - 1, max(taken[key] + parts, 2 * taken[key]))
    held = np.flatnonzero(chosen[cluster] & ~related)
    kin = np.arange(count)
    if exclude_related and parts > 1 and len(held):
        pairs = _relatives(store, held, held, threads, sensitivity)
        kin = np.array(homology.components(count, ((cluster[held[a]], cluster[held[b]]) for a, b in pairs)))
    part_of = _deal(queues, chosen & alive, kin, parts)
    return _split(store, cluster, queues, chosen, alive, related & chosen[cluster], part_of, parts, origin)


def _with_relatives(
    store: CorpusStore, queries: np.ndarray, targets: np.ndarray, threads: int, sensitivity: float
) -> np.ndarray:
    """The queries that have a relative among the targets. A big family is not aligned in full to see that."""
    related: list[np.ndarray] = []
    for most in (homology.FIRST_LOOK, homology.LONG_LOOK):
        if len(queries):
            has_relative = np.zeros(len(queries), bool)
            has_relative[
                sorted({first for first, _ in _relatives(store, queries, targets, threads, sensitivity, most)})
            ] = True
            related.append(queries[has_relative])
            queries = queries[~has_relative]
    return np.concatenate(related)


def _relatives(
    store: CorpusStore, queries: np.ndarray, targets: np.ndarray, threads: int, sensitivity: float,
    most: int = homology.LONG_LOOK,
) -> Iterator[tuple[int, int]]:
    """Pairs of places in ``queries`` and ``targets``."""
    hits = homology.mmseqs_search(
        store.sequences(queries), store.sequences(targets), 0.0, COVERAGE, threads, sensitivity=sensitivity,
        distinct=True, most=most,
    )
    return ((first, second) for first, second, _ in hits)


def _deal(queues: dict[int, np.ndarray], usable: np.ndarray, kin: np.ndarray, parts: int) -> np.ndarray:
    """The part of each cluster: those of a domain in turn, relatives together; -1 for the others."""
    part_of = np.full(len(usable), -1)
    of_kin: dict[int, int] = {}
    for queue in queues.values():
        counts = [0] * parts
        for number in queue[usable[queue]].tolist():
            part = of_kin.setdefault(int(kin[number]), _next(counts))
            part_of[number] = part
            counts[part] += 1
    return part_of


def _wanted(clusters: int, share: float, parts: int) -> int:
    least = parts if clusters > parts else 1
    return min(clusters - 1, max(least, round(share * clusters))) if clusters > 1 else 0


def _clusters(store: CorpusStore, identity: float, threads: int) -> tuple[np.ndarray, np.ndarray, str]:
    """Number of each sequence's cluster, the clusters' names, and where they come from."""
    if store.cluster is not None:
        named = np.array([store.clusters[number] for number in range(len(store.clusters))])
        return store.cluster.astype(np.int64), named, "the input's cluster column"
    sequences = store.sequences()
    if len(store) > homology.MANY:  # linear time for a corpus; relatives that it leaves apart are set aside later
        method = "linclust"
        roots = homology.cluster_distinct(sequences, identity, COVERAGE, threads, method)
    else:
        longest = int(np.diff(store.offsets).max())
        method = "exact" if longest <= homology.LONGEST_WINDOW else "mmseqs"
        pairs = homology.relatives(
            list(sequences), identity=identity, coverage=COVERAGE, threads=threads, method=method
        )
        roots = homology.components(len(store), ((pair.first, pair.second) for pair in pairs))
    heads, codes = np.unique(np.array(roots, np.int64), return_inverse=True)
    return codes, heads.astype(str), homology.describe(method, identity, COVERAGE)


def _domain_of(cluster: np.ndarray, domain: np.ndarray, count: int) -> np.ndarray:
    """The commonest domain of each cluster's members."""
    pairs, sizes = np.unique(np.stack([cluster, domain.astype(np.int64)], axis=1), axis=0, return_counts=True)
    order = np.lexsort((pairs[:, 1], -sizes, pairs[:, 0]))
    first = order[np.concatenate([[True], np.diff(pairs[order, 0]) > 0])]
    commonest = np.zeros(count, np.int64)
    commonest[pairs[first, 0]] = pairs[first, 1]
    return commonest


def _queues(names: np.ndarray, domain: np.ndarray, seed: int, parts: int) -> dict[int, np.ndarray]:
    """The clusters of each domain in the order in which they are held out."""
    order = np.argsort(names, kind="stable")  # by name, so that the order of the records does not matter
    keys = np.unique(domain)
    if not any((domain == key).sum() > 1 for key in keys):
        domain, keys = np.zeros_like(domain), keys[:1] * 0
    generator = np.random.default_rng(seed)
    queues = {}
    for key in keys.tolist():
        mine = order[domain[order] == key]
        queues[key] = mine[generator.permutation(len(mine))]
    return queues


def _next(counts: Sequence[int]) -> int:
    """The part with the fewest; of equal ones the last, the final test."""
    return min(range(len(counts)), key=lambda part: (counts[part], -part))


def _split(
    store: CorpusStore, cluster: np.ndarray, queues: dict[int, np.ndarray], chosen: np.ndarray, alive: np.ndarray,
    related: np.ndarray, part_of: np.ndarray, parts: int, origin: str,
) -> ClusterSplit:
    held = chosen[cluster]
    usable = held & ~related
    judged = tuple(np.flatnonzero(usable & (part_of[cluster] == part)) for part in range(parts))
    if any(len(part) == 0 for part in judged):
        raise UserError(
            "Every held-out protein has a relative in training" if parts == 1 else
            "Too few held-out proteins are without a relative in training to divide them among "
            f"{parts} purposes (validation and test)",
            fix="Give more diverse proteins, raise --holdout, or lower --identity",
        )
    missing = tuple(
        store.domains[key] or "unknown" for key, queue in queues.items() if len(queue) > 1 and not alive[queue].any()
    )
    train, aside = np.flatnonzero(~held), np.flatnonzero(related)
    sizes = " + ".join(str(len(part)) for part in judged)
    sentence = (
        f"{len(train)} proteins to train on; {sizes} proteins of {int(chosen.sum())} of {len(chosen)} clusters held out"
        f" ({origin}); {len(aside)} more with a distant relative in training set aside"
    )
    if missing:
        sentence += f"; nothing could be held out of {', '.join(missing)}"
    return ClusterSplit(train, judged, aside, cluster, (len(chosen), int(chosen.sum())), missing, sentence)


def cluster_names(store: CorpusStore, split: ClusterSplit) -> Sequence[str]:
    """The name of each cluster number of a split: the input's, or the id of the cluster's first sequence."""
    if store.cluster is not None:
        return store.clusters
    first = np.full(int(split.cluster.max()) + 1, -1)
    first[split.cluster[::-1]] = np.arange(len(store))[::-1]
    return store.ids.select(first)
