"""Secondary structure of residues (FLIP) as a dataset table: three states, the published parts, gaps unlabelled."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from plm.data.dataset_table import UNLABELLED_RESIDUE
from plm.data.fasta import read_fasta

SEED = 42
PARTS = ("train", "valid", "test")


def read_structures(find: Callable[[str], Path]) -> pd.DataFrame:
    """Every protein with at least one resolved residue.

    Args:
        find: Name of a file of FLIP -> its path.

    Returns:
        ``id``, ``sequence``, ``label`` (a letter a residue: H, E, C, ``-`` where unresolved), ``split`` as published.
    """
    sequences = {record.id: record.sequence for record in read_fasta(find("flip_ss_sequences.fasta.gz"))}
    masks = {record.id: record.sequence for record in read_fasta(find("flip_ss_mask.fasta.gz"))}
    rows = []
    for record in read_fasta(find("flip_ss_sampled.fasta.gz")):
        split = "test" if "SET=test" in record.header else "valid" if "VALIDATION=True" in record.header else "train"
        sequence = re.sub("[^ACDEFGHIKLMNPQRSTVWYX]", "X", sequences[record.id])
        seen = zip(record.sequence, masks[record.id], strict=True)
        label = "".join(state if mask == "1" else UNLABELLED_RESIDUE for state, mask in seen)
        if len(label) == len(sequence) and set(label) != {UNLABELLED_RESIDUE}:
            rows.append({"id": record.id, "sequence": sequence, "label": label, "split": split})
    return pd.DataFrame(rows)


def sample(frame: pd.DataFrame, sizes: dict[str, int]) -> pd.DataFrame:
    """So many proteins of each part, at random but always the same; 0 takes all."""
    kept = []
    for part in PARTS:
        rows = frame[frame["split"] == part]
        wanted = sizes.get(part, 0)
        kept.append(rows.sample(wanted, random_state=SEED).sort_index() if 0 < wanted < len(rows) else rows)
    return pd.concat(kept, ignore_index=True)


def with_labels(frame: pd.DataFrame, residues: int) -> pd.DataFrame:
    """The table with the labels of so many training residues at random; those of the others are left out.

    Baselines learn from a sample of this size anyway. To find the nearest training residue of each test residue takes
    time by the product of their numbers, and hours for all residues of a thousand proteins.
    """
    training = frame.index[frame["split"] == "train"]
    places = [(row, at) for row in training for at, state in enumerate(frame.loc[row, "label"])
              if state != UNLABELLED_RESIDUE]
    chosen = pd.Series(places).sample(min(residues, len(places)), random_state=SEED)
    labels = {row: [UNLABELLED_RESIDUE] * len(frame.loc[row, "label"]) for row in training}
    for row, at in chosen:
        labels[row][at] = frame.loc[row, "label"][at]
    known = {row for row, _ in chosen}
    thinned = frame.copy()
    for row in training:
        thinned.loc[row, "label"] = "".join(labels[row])
    return thinned.loc[[row for row in frame.index if row in known or row not in labels]].reset_index(drop=True)
