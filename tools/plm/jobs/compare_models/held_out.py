"""Proteins to judge language models on: cleaned, each once, with domain and cluster, every record accounted for."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from plm.data import homology
from plm.data.proteins import Cleaning
from plm.errors import UserError

UNKNOWN = "unknown"
"""Domain of proteins whose table does not tell it."""
_CLUSTER_COLUMNS = ("cluster", "group")


@dataclass(frozen=True)
class ProteinFate:
    """What became of one input record.

    Attributes:
        id: Id of the record.
        status: ``judged``, ``rejected``, ``duplicate`` or ``not drawn``.
        details: Why, or what cleaning changed.
        protein: Number of the record among the judged proteins, or -1.
        domain: Domain that the table names; ``unknown`` if it names none.
        cluster: Cluster that the table names; empty if it names none.
        length: Residues after cleaning.
    """

    id: str
    status: str
    details: str
    protein: int
    domain: str
    cluster: str
    length: int


@dataclass(frozen=True)
class HeldOut:
    """Distinct proteins to judge on.

    Attributes:
        sequences: The P distinct sequences, cleaned.
        ids: Id of the first record of each.
        domains: Domain of each of the P proteins.
        clusters: Cluster of each: what a bootstrap draws.
        origin: Where the clusters come from, in words.
        fates: One a record of the input, in its order.
        has_domains: Whether the input tells domains.
    """

    sequences: list[str]
    ids: list[str]
    domains: list[str]
    clusters: list[str]
    origin: str
    fates: list[ProteinFate]
    has_domains: bool

    @property
    def account(self) -> str:
        """Where every record went, in one sentence."""
        kinds = ("duplicate", "rejected", "not drawn")
        counts = {kind: sum(fate.status == kind for fate in self.fates) for kind in kinds}
        told = [f"{count} {kind}" for kind, count in counts.items() if count]
        first = next((fate for fate in self.fates if fate.status == "rejected"), None)
        more = f" (first rejected: {first.id}, {first.details})" if first else ""
        told = [f"{len(self.fates)} records: {len(self.sequences)} distinct proteins judged", *told]
        return ", ".join(told) + more


def read_held_out(
    path: Path, *, domain_column: str = "", cluster_column: str = "", most: int = 0, identity: float = 0.3,
    threads: int = 1,
) -> HeldOut:
    """Reads proteins from FASTA, CSV/TSV with a sequence column, or a dataset table (also Parquet).

    Args:
        path: FASTA file or table to read.
        domain_column: Column of the taxon domain; empty: ``domain``, if there is one.
        cluster_column: Column of clusters; empty: ``cluster`` or ``group``, else MMseqs2 makes clusters.
        most: Judge at most so many proteins, those whose sequences have the lowest digests (0: all), so that the same
            proteins are drawn whatever their order and company.
        identity: Identity from which proteins are relatives where clusters must be found, 0-1.
        threads: Processor threads.

    Raises:
        UserError: The file cannot be read, lacks a named column, or holds no usable protein.
    """
    cleaning = Cleaning(path.name, switch=False)
    read = [(record.id, record.columns, cleaned) for record, cleaned in cleaning.of(path, None)]
    cleaning.finish()
    known = read[0][1] if read else {}
    domain_column = _named(domain_column, "--domain-column", known, path) or next(
        (name for name in known if name.lower() == "domain"), ""
    )
    cluster_column = _named(cluster_column, "--cluster-column", known, path) or next(
        (name for name in _CLUSTER_COLUMNS if name in known and all(columns.get(name) for _, columns, _ in read)), ""
    )
    distinct = dict.fromkeys(cleaned.sequence for _, _, cleaned in read if not cleaned.rejected)
    if not distinct:
        reason = f"; the first: {read[0][0]}, {read[0][2].rejected}" if read else ""
        raise UserError(f"The input holds no usable protein{reason}", where=path.name, fix="Give protein sequences")
    drawn = set(distinct)
    if most and len(distinct) > most:
        drawn = set(sorted(distinct, key=lambda sequence: hashlib.sha256(sequence.encode()).digest())[:most])
    place = {sequence: number for number, sequence in enumerate(s for s in distinct if s in drawn)}
    first: dict[str, str] = {}
    fates: list[ProteinFate] = []
    domains, clusters, ids = [""] * len(place), [""] * len(place), [""] * len(place)
    for name, columns, cleaned in read:
        domain = (columns.get(domain_column, "") if domain_column else "") or UNKNOWN
        cluster = columns.get(cluster_column, "") if cluster_column else ""
        sequence, number = cleaned.sequence, -1
        if cleaned.rejected:
            status, details = "rejected", cleaned.rejected
        elif sequence in first:
            status, details = "duplicate", f"the same sequence as {first[sequence]}"
        else:
            first[sequence] = name
            number = place.get(sequence, -1)
            status = "judged" if number >= 0 else "not drawn"
            details = "; ".join(cleaned.changes) if number >= 0 else f"--most-proteins {most}"
            if number >= 0:
                domains[number], clusters[number], ids[number] = domain, cluster, name
        fates.append(ProteinFate(name, status, details, number, domain, cluster, len(sequence)))
    sequences = list(place)
    if cluster_column:
        empty = next((ids[row] for row, cluster in enumerate(clusters) if not cluster), None)
        if empty is not None:
            raise UserError(f"The column {cluster_column} is empty for {empty}", where=path.name, fix="Fill the column")
        origin = f"the input's column {cluster_column}"
    else:
        method = homology.choose_method(sequences)
        lowest = None if method == "exact" else identity  # windows have an identity of their own
        pairs = [(str(row), sequence) for row, sequence in enumerate(sequences)]
        roots = homology.cluster(pairs, identity=lowest, coverage=0.5, threads=threads, method=method)
        clusters = [f"cluster{int(root) + 1}" for root in roots.values()]
        origin = homology.describe(method, homology.default_identity(method, lowest), 0.5)
    return HeldOut(sequences, ids, domains, clusters, origin, fates, bool(domain_column))


def _named(column: str, flag: str, known: Mapping[str, str], path: Path) -> str:
    if column and column not in known:
        present = ", ".join(list(known)[:12]) or "none: FASTA has no columns"
        raise UserError(
            f"{flag}: there is no column {column!r} (columns: {present})", where=path.name,
            fix="Give one of these columns",
        )
    return column
