"""How heads learn contacts from a few proteins: a sparse logistic regression, and a small network on pairs.

Both learn from the same pairs. All pairs of small sets are taken; of large ones all contacts and a sample of the
others, which count for those that were left out, so that probabilities stay what they are.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from plm.jobs.contacts.bands import KnownContacts, pairs_of
from plm.jobs.contacts.contact_heads import AttentionRegression, PairNetwork, attention_heads
from plm.jobs.contacts.reading import ContactReader, LearningPairs

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
Floats = NDArray[np.float64]
MOST_PAIRS = 200_000
FEWEST_CONTACTS = 10
_EPOCHS, _PATIENCE, _RATE, _DECAY = 40, 5, 2e-3, 0.01
_STEP = 8192
"""Pairs of one optimiser step."""


@dataclass(frozen=True)
class LearningProtein:
    """What heads learn from one protein.

    Attributes:
        windows: Its pairs, window by window.
        touches: Whether each wanted pair is a contact.
        weights: How many pairs each stands for.
    """

    windows: Sequence[LearningPairs]
    touches: Flags
    weights: Floats


def chosen_pairs(
    length: int, known: KnownContacts, most: int, generator: np.random.Generator
) -> tuple[Ints, Ints, Flags, Floats]:
    """At most so many known pairs of a protein: rows, columns, contacts, and what each stands for."""
    rows, columns = pairs_of(length, length)
    usable = known.known(rows, columns)
    rows, columns = rows[usable], columns[usable]
    touches = known.touch(rows, columns)
    weights = np.ones(len(rows))
    if len(rows) > most:
        parts: list[Ints] = []
        for kind in (True, False):
            of_kind = np.flatnonzero(touches == kind)
            room = most // 2 if kind else most - sum(map(len, parts))
            taken = of_kind if len(of_kind) <= room else np.sort(generator.choice(of_kind, room, replace=False))
            weights[taken] = len(of_kind) / max(1, len(taken))
            parts.append(taken)
        kept = np.sort(np.concatenate(parts))
        rows, columns, touches, weights = rows[kept], columns[kept], touches[kept], weights[kept]
    return rows, columns, touches, weights


def gather(
    reader: ContactReader, sequences: Sequence[str], known: Sequence[KnownContacts], room: int, seed: int
) -> list[LearningProtein]:
    """Runs the model over proteins with known contacts.

    Args:
        reader: The model.
        sequences: Proteins.
        known: Their contacts.
        room: Bytes that the features may take, copies of the fit included.
        seed: Of the sample of pairs.
    """
    most = min(MOST_PAIRS, max(1000, room // (reader.features * 4 * 8)))
    each = max(200, most // max(1, len(sequences)))
    generator = np.random.default_rng(seed)
    gathered = []
    for sequence, contacts in zip(sequences, known, strict=True):
        rows, columns, touches, weights = chosen_pairs(len(sequence), contacts, each, generator)
        gathered.append(LearningProtein(reader.learning(sequence, rows, columns), touches, weights))
    return gathered


def fit_regression(
    reader: ContactReader, proteins: Sequence[LearningProtein], penalty: float, seed: int
) -> AttentionRegression:
    """The sparse logistic regression of Rao et al. (2021): L1 penalty, scikit-learn's liblinear.

    Args:
        reader: The model whose maps were read.
        proteins: Training proteins.
        penalty: Weight of the absolute values of the coefficients against the summed loss over pairs (scikit-learn's C
            is its inverse).
        seed: Of the order in which coordinates are visited.
    """
    from sklearn.linear_model import LogisticRegression

    windows = [(window, protein) for protein in proteins for window in protein.windows]
    features = np.concatenate([window.features for window, _ in windows]).astype(np.float64)
    touches = np.concatenate([protein.touches[window.numbers] for window, protein in windows])
    weights = np.concatenate([protein.weights[window.numbers] for window, protein in windows])
    model = LogisticRegression(
        l1_ratio=1.0, C=1.0 / penalty, solver="liblinear", random_state=seed, max_iter=200, tol=1e-4
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of not quite converged coordinates; validation judges what came out
        model.fit(features, touches, sample_weight=weights)
    coefficients = torch.from_numpy(model.coef_[0].astype(np.float32))
    shaped = coefficients.view(reader.loaded.layers, attention_heads(reader.loaded))
    return AttentionRegression("regression", shaped, float(model.intercept_[0]))


def fit_pair_head(
    reader: ContactReader, train: Sequence[LearningProtein], valid: Sequence[LearningProtein], seed: int,
    log: logging.Logger,
) -> tuple[PairNetwork, int]:
    """Trains the pair head; the epoch with the lowest loss on validation proteins is kept.

    Args:
        reader: The model whose states were read.
        train: Training proteins.
        valid: Validation proteins, which choose the epoch.
        seed: Of weights and order.
        log: Told the course.

    Returns:
        The head, and the epoch (from 1) that it is of.
    """
    device = reader.loaded.device
    generator = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = PairNetwork(reader.loaded.hidden_size)
    head.to(device)
    optimiser = torch.optim.AdamW(head.parameters(), lr=_RATE, weight_decay=_DECAY)
    best, kept, best_epoch = float("inf"), head.tensors(), 0
    for epoch in range(1, _EPOCHS + 1):
        head.train()
        for number in generator.permutation(len(train)):
            for window in train[number].windows:
                order = generator.permutation(len(window.numbers))
                for start in range(0, len(order), _STEP):
                    optimiser.zero_grad()
                    loss, count = _loss(head, window, train[number], order[start : start + _STEP], device)
                    (loss / count).backward()
                    optimiser.step()
        head.eval()
        with torch.inference_mode():
            parts = [
                _loss(head, window, protein, np.arange(len(window.numbers)), device)
                for protein in valid for window in protein.windows if len(window.numbers)
            ]
        now = float(sum(float(loss) for loss, _ in parts) / max(1e-9, sum(count for _, count in parts)))
        if now < best:
            best, kept, best_epoch = now, head.tensors(), epoch
        elif epoch - best_epoch >= _PATIENCE:
            break
    head.load_state_dict(kept)
    log.info("Pair head: epoch %d of %d is the best on validation proteins (loss %.4f)", best_epoch, epoch, best)
    return head.eval(), best_epoch


def _loss(
    head: PairNetwork, window: LearningPairs, protein: LearningProtein, chosen: Ints, device: torch.device
) -> tuple[torch.Tensor, float]:
    """Summed loss of some pairs of a window, and how many pairs they stand for."""
    i, j = (torch.from_numpy(places[chosen]).to(device) for places in (window.rows, window.columns))
    numbers = window.numbers[chosen]
    truth = torch.from_numpy(protein.touches[numbers].astype(np.float32)).to(device)
    weights = torch.from_numpy(protein.weights[numbers].astype(np.float32)).to(device)
    logits = head(head.projected(window.states.to(device)), i, j)
    loss = functional.binary_cross_entropy_with_logits(logits, truth, weight=weights, reduction="sum")
    return loss, float(protein.weights[numbers].sum())
