"""Labelled datasets for linear probes out of public files, split so that relatives do not straddle: dataset tables."""

from __future__ import annotations

import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from plm.data import homology, splits
from plm.data.dataset_table import write_dataset
from plm.data.fasta import clean, read_fasta

from benchmarks import secondary_structure

SEED = 42


@dataclass(frozen=True)
class Settings:
    """How datasets are made.

    Attributes:
        data: Folder with the files, at any depth.
        most: Training rows of regressions, rows of the others, about.
        threads: For MMseqs2.
    """

    data: Path
    most: int
    threads: int

    def find(self, name: str) -> Path:
        """The file of that name."""
        found = sorted(self.data.rglob(name))
        if not found:
            sys.exit(f"{self.data} does not hold {name}: see scripts/benchmarks/benchmark_distillation --help")
        return found[0]


def resistance(settings: Settings) -> pd.DataFrame:
    """Drug classes of resistance proteins (COALA); families at 40 % identity, 70 % to learn from.

    Classes are capped so that the largest does not take all rows; classes of fewer than six families are left out.
    """
    rows = []
    for number, record in enumerate(read_fasta(settings.find("coala90.fasta.gz"))):
        cleaned = clean(record.sequence)
        if not cleaned.rejected and len(cleaned.sequence) <= 1000:
            label = record.header.rsplit("|", 1)[-1].strip().lower()
            rows.append({"id": f"C{number}", "sequence": cleaned.sequence, "label": label})
    frame = pd.DataFrame(rows).drop_duplicates("sequence")
    frame["cluster"] = families(frame, settings.threads)
    kept = [label for label, part in frame.groupby("label") if part["cluster"].nunique() >= 6]
    frame = frame[frame["label"].isin(kept)]
    counts, cap = Counter(frame["label"]), 1
    while cap < max(counts.values()) and sum(min(count, cap) for count in counts.values()) < settings.most:
        cap += 1
    frame = pd.concat([part.sample(min(len(part), cap), random_state=SEED) for _, part in frame.groupby("label")])
    return with_split(frame.sort_index())


def families(frame: pd.DataFrame, threads: int) -> list[str]:
    """Clusters of relatives at 40 % identity."""
    pairs = [(str(row), sequence) for row, sequence in enumerate(frame["sequence"])]
    found = homology.cluster(pairs, identity=0.4, threads=threads, method="cascade")
    return [f"cluster{root}" for root in found.values()]


def with_split(frame: pd.DataFrame) -> pd.DataFrame:
    """70 % of the rows for training, 30 % for the test; no cluster straddles."""
    parts = splits.assign(list(frame["cluster"]), list(frame["label"]), [0.7, 0.3], SEED)
    return frame.assign(split=["train" if part == 0 else "test" for part in parts])


def tape(name: str) -> Callable[[Settings], pd.DataFrame]:
    """A regression of TAPE with its own split; the training rows are a sample, all validation rows are judged."""

    def make(settings: Settings) -> pd.DataFrame:
        parts = []
        for split in ("train", "valid"):
            part = pd.read_csv(settings.find(f"{name}.{split}.csv.gz"), dtype={"seq": str})
            if "has_stop" in part:
                part = part[~part["has_stop"].astype(str).str.lower().eq("true")]
            if split == "train" and len(part) > settings.most:
                part = part.sample(settings.most, random_state=SEED)
            part = part.assign(split=split, id=[f"{split}{number}" for number in range(len(part))])
            parts.append(part.rename(columns={"seq": "sequence"})[["id", "sequence", "label", "split"]])
        frame = pd.concat(parts).drop_duplicates(["sequence", "split"])
        frame["label"] = [f"{value:.6f}" for value in frame["label"].astype(float)]
        if frame["sequence"].str.len().max() <= homology.LONGEST_WINDOW:  # longer ones are variants of one protein
            pairs = [(str(row), sequence) for row, sequence in enumerate(frame["sequence"])]
            frame["cluster"] = [f"c{root}" for root in homology.cluster(pairs, threads=settings.threads).values()]
        return frame

    return make


def structure(settings: Settings) -> pd.DataFrame:
    """Three states of secondary structure for each residue (FLIP); unresolved residues have no label."""
    frame = secondary_structure.read_structures(settings.find)
    train = frame.index[frame["split"] == "train"].tolist()
    train = random.Random(SEED).sample(train, min(300, settings.most, len(train)))
    return pd.concat([frame.loc[train], frame[frame["split"] == "test"]], ignore_index=True)


def succinylation(settings: Settings) -> pd.DataFrame:
    """Succinylated lysines and others, windows of 33; proteins of one family at 40 % identity do not straddle."""
    proteins = {}
    for record in read_fasta(settings.find("train_sequence.fasta.gz")):
        proteins[record.id.split("|")[1]] = clean(re.sub("[^A-Za-z]", "", record.sequence)).sequence
    rows = []
    for label, name in (("1", "positive"), ("0", "negative")):
        found = []
        for record in read_fasta(settings.find(f"{name}_sites.fasta.gz")):
            _, accession, _, site = record.id.split("|")
            window = re.sub("[^ACDEFGHIKLMNPQRSTVWYX-]", "X", record.sequence.upper())
            if len(window) == 33 and window[16] == "K":
                place = 17 - (len(window) - len(window.lstrip("-")))
                row = {"id": f"{accession}_{site}_{label}", "sequence": window.strip("-"), "label": label,
                       "position": str(place), "window": "33", "protein": accession}
                if "-" not in row["sequence"]:
                    found.append(row)
        rows += random.Random(SEED).sample(found, min(len(found), settings.most // 2))
    frame = pd.DataFrame(rows).drop_duplicates("id").drop_duplicates("sequence")
    known = {accession: sequence for accession, sequence in proteins.items() if sequence}
    table = pd.DataFrame({"sequence": list(known.values())})
    cluster = dict(zip(known, families(table, settings.threads), strict=True))
    return with_split(frame.assign(cluster=[cluster.get(protein, protein) for protein in frame["protein"]]))


TASKS: dict[str, Callable[[Settings], pd.DataFrame]] = {
    "resistance": resistance,
    "stability": tape("stability"),
    "structure": structure,
    "succinylation": succinylation,
    "fluorescence": tape("fluorescence"),
}


def make(names: Sequence[str], settings: Settings, folder: Path) -> dict[str, Path]:
    """Writes the dataset table of each task; one that is there already is used again.

    Args:
        names: Keys of :data:`TASKS`.
        settings: Where the files are.
        folder: Where the tables go.
    """
    made = {}
    for name in names:
        path = made[name] = folder / f"{name}_{settings.most}.tabular"
        if not path.exists():
            frame = TASKS[name](settings)
            whole = path.with_suffix(".partial")
            write_dataset(frame, whole)
            whole.replace(path)
    return made
