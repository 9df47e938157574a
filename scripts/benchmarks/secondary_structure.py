"""Secondary structure of residues (FLIP) as a dataset table: three states, the published parts, gaps unlabelled."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
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


def as_sites(frame: pd.DataFrame) -> pd.DataFrame:
    """The same with a row for each labelled residue: ``id``, ``sequence``, ``label``, ``position``, ``protein``,
    ``split``. A protein's residues are encoded together all the same."""
    rows = [
        (f"{row.id}_{place}", row.sequence, state, str(place), row.id, row.split)
        for row in frame.itertuples(index=False)
        for place, state in enumerate(row.label, 1) if state != UNLABELLED_RESIDUE
    ]
    return pd.DataFrame(rows, columns=["id", "sequence", "label", "position", "protein", "split"])


def without_a_model(frame: pd.DataFrame, residues: int, widths: Sequence[int]) -> tuple[pd.DataFrame, str]:
    """What the test residues are called without any language model: the most frequent state, and logistic regression on
    the residues around each.

    Args:
        frame: From :func:`as_sites`.
        residues: Training residues to learn from, at random.
        widths: Residues of a window; accuracy on validation residues chooses among them and among penalties.

    Returns:
        A predictions table of two models with the rows of the table, and what was chosen, in words.
    """
    from sklearn.linear_model import LogisticRegression

    train, valid, test = (frame[frame["split"] == part] for part in PARTS)
    train = train.sample(min(residues, len(train)), random_state=SEED)
    few, judged = train.head(_FEW), valid.sample(min(_FEW, len(valid)), random_state=SEED)
    scores: dict[tuple[int, float], float] = {}
    for width in widths:
        seen, asked = one_hot(few, width), one_hot(judged, width)
        for strength in (0.03, 0.3):
            model = LogisticRegression(C=strength, max_iter=_ROUNDS).fit(seen, few["label"])
            scores[width, strength] = float(model.score(asked, judged["label"]))
    width, strength = max(scores, key=lambda key: scores[key])
    model = LogisticRegression(C=strength, max_iter=_ROUNDS).fit(one_hot(train, width), train["label"])
    states = [str(state) for state in model.classes_]
    shares = train["label"].value_counts(normalize=True).reindex(states).to_numpy()
    about = test.drop(columns=["sequence"]).reset_index(drop=True)
    tables = []
    for name, values in (
        (f"one-hot window of {width}, logistic regression", model.predict_proba(one_hot(test, width))),
        ("majority", np.tile(shares, (len(test), 1))),
    ):
        answers = pd.DataFrame(values, columns=[f"p_{state}" for state in states]).round(6)
        tables.append(pd.concat([about, answers], axis=1).assign(model=name))
    told = ", ".join(f"{key[0]} residues, C = {key[1]:g}: {score:.3f}" for key, score in scores.items())
    return pd.concat(tables, ignore_index=True), f"window and penalty by {len(judged):,} validation residues ({told})"


_FEW, _ROUNDS = 20_000, 100
"""Residues by which a width is chosen; rounds of the solver."""
_LETTERS = "ACDEFGHIKLMNPQRSTVWY"


def one_hot(sites: pd.DataFrame, width: int) -> NDArray[np.float32]:
    """``(N, width * 20)`` the residue at each place around a site; X and places beyond an end are all zero."""
    half, blank = width // 2, len(_LETTERS)
    code = np.full(256, blank, dtype=np.int64)
    code[[ord(letter) for letter in _LETTERS]] = np.arange(blank)
    padded = {
        text: np.pad(code[np.frombuffer(text.encode("ascii"), dtype=np.uint8)], half, constant_values=blank)
        for text in set(sites["sequence"])
    }
    windows = [padded[text][place : place + width]
               for text, place in zip(sites["sequence"], sites["position"].astype(int) - 1, strict=True)]
    hot = np.eye(blank + 1, dtype=np.float32)[:, :blank]
    return hot[np.stack(windows)].reshape(len(sites), -1)
