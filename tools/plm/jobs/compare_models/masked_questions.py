"""The same masked residues put to several models: masks belong to the sequence, so every model sees the same ones."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from plm.errors import UserError
from plm.jobs.compare_models.masked_agreement import LETTERS, Asked, MaskedAnswers
from plm.masked_lm.corpus import IGNORED, Corpus
from plm.masked_lm.masks import MaskPlan
from plm.model import encoder
from plm.model.batching import Batch, pack, plan_batches
from plm.model.families import ESM2, MODEL_LETTERS
from plm.model.loaded import LoadedModel

_MASK = len(MODEL_LETTERS)
_SPECIALS = {token: _MASK + place for place, token in enumerate(("<mask>", "<cls>", "<eos>"))}
CODES = {letter: number for number, letter in enumerate(MODEL_LETTERS)} | _SPECIALS
"""A vocabulary of letters alone: amino acids 0-19, X 20, the mask 21. Each model gets its own ids for these."""


@dataclass(frozen=True)
class Item:
    """One sequence under one mask set.

    Attributes:
        codes: (L,) what the models see, in :data:`CODES`.
        places: (m,) 0-based masked residues, ascending.
        owner: Number of the protein.
    """

    codes: NDArray[np.int64]
    places: NDArray[np.int64]
    owner: int


@dataclass(frozen=True)
class Questions:
    """Masked residues of proteins, ready for any model.

    Attributes:
        items: One a protein and mask set, set after set.
        asked: Owners and truths in the order of the items and their places.
        visible: (P, 20) how often each amino acid stays visible in a protein, over all mask sets.
    """

    items: list[Item]
    asked: Asked
    visible: NDArray[np.int64]

    @property
    def tokens(self) -> int:
        """Residues that each model computes."""
        return sum(len(item.codes) for item in self.items)


@dataclass(frozen=True)
class LetterCorpus(Corpus):
    """Sequences in :data:`CODES`, with what masks depend on.

    Attributes:
        digests: ``(N, 16)`` uint8: start of the sha256 of each sequence, as a corpus store has it.
    """

    digests: np.ndarray

    @classmethod
    def of(cls, sequences: Sequence[str]) -> LetterCorpus:
        """From cleaned sequences."""
        made = Corpus.build(sequences, ESM2, CODES)
        start = b"".join(sha256(sequence.encode("ascii")).digest()[:16] for sequence in sequences)
        digests = np.frombuffer(start, dtype=np.uint8).reshape(len(sequences), 16)
        return cls(**{each.name: getattr(made, each.name) for each in fields(made)}, digests=digests)


def questions(
    sequences: Sequence[str], domains: Sequence[str], clusters: Sequence[str], *, rate: float, sets: int, seed: int,
    crop: int,
) -> Questions:
    """Masks residues of each sequence: an exact share, at least one; 80 % hidden, 10 % replaced, 10 % left.

    Args:
        sequences: P distinct sequences.
        domains: Domain of each.
        clusters: Cluster of each.
        rate: Share of residues, 0-1.
        sets: How many times, with other masks each time.
        seed: Of the masks, which else depend on the sequence alone.
        crop: Longer sequences give a stretch of so many residues.

    Raises:
        UserError: No sequence has an amino acid that could be masked.
    """
    corpus: Any = LetterCorpus.of(sequences)  # what a plan of masks reads of a corpus store
    plan = MaskPlan(seed, sets=sets, rate=rate, crop=crop)
    items: list[Item] = []
    truths: list[NDArray[np.int64]] = []
    owners: list[NDArray[np.int64]] = []
    visible = np.zeros((len(sequences), LETTERS), np.int64)
    for number in range(sets):
        for protein in range(len(sequences)):
            codes, target = plan.masked(corpus, protein, number)
            places = np.flatnonzero(target != IGNORED)
            seen = np.asarray(codes, np.int64)[target == IGNORED]
            visible[protein] += np.bincount(seen[seen < LETTERS], minlength=LETTERS)
            if len(places):
                items.append(Item(np.asarray(codes, np.int64), places, protein))
                truths.append(np.asarray(target, np.int64)[places])
                owners.append(np.full(len(places), protein, np.int64))
    if not items:
        raise UserError("No protein has an amino acid that could be masked", fix="Give proteins, not runs of X")
    asked = Asked(np.concatenate(owners), np.concatenate(truths), len(sequences), domains, clusters)
    return Questions(items, asked, visible)


def has_head(loaded: LoadedModel) -> bool:
    """Whether a model was loaded with its language-model head."""
    return encoder.language_head(loaded.model) is not None


def answer(
    name: str, loaded: LoadedModel, put: Questions, *, budget: int | None = None,
    advance: Callable[[int], None] | None = None,
) -> MaskedAnswers:
    """One pass of a model over all questions, in packed rows.

    The head runs in float32 on masked residues only, whatever the precision of the rest: bfloat16 would round logits to
    a thirtieth and with them small divergences.

    Args:
        name: What to call the model.
        loaded: It, with its language-model head.
        put: The questions.
        budget: Tokens in a row; by default what suits the device.
        advance: Called with the residues done after each row.

    Raises:
        UserError: The model gives no finite numbers.
    """
    family, vocabulary = loaded.family, loaded.vocabulary
    letters = family.letter_ids(vocabulary)
    ids = np.array([letters[letter] for letter in MODEL_LETTERS] + [vocabulary[family.mask]], np.int64)
    before = [vocabulary[token] for token in family.before]
    after = [vocabulary[token] for token in family.after]
    head = copy.deepcopy(encoder.language_head(loaded.model)).float()
    amino_acids = torch.from_numpy(ids[:LETTERS]).to(loaded.device)
    code_of = np.full(int(encoder.unwrap(loaded.model).config.vocab_size), -1, np.int64)
    code_of[ids[:LETTERS]] = np.arange(LETTERS)
    plan = plan_batches([len(item.codes) + family.specials for item in put.items],
                        budget or encoder.ROW_TOKENS[loaded.device.type])
    starts = np.concatenate([[0], np.cumsum([len(item.places) for item in put.items])])
    log_p = np.empty((int(starts[-1]), LETTERS), np.float32)
    called = np.empty(int(starts[-1]), np.int64)

    def compute(batch: Batch) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        places = [
            start + len(before) + put.items[index].places
            for start, index in zip(batch.layout.starts, batch.indices, strict=True)
        ]
        asked = torch.from_numpy(np.concatenate(places)).to(loaded.device)
        hidden = encoder.hidden_states(loaded.model, batch)[asked]
        logs = head(hidden.float()).log_softmax(-1)
        return logs[:, amino_acids].cpu().numpy(), code_of[logs.argmax(-1).cpu().numpy()]

    batches = (pack([[*before, *ids[put.items[index].codes].tolist(), *after] for index in row], row) for row in plan)
    for row, (values, best) in zip(plan, encoder.run(loaded, batches, compute), strict=True):
        at = 0
        for index in row:
            size = len(put.items[index].places)
            log_p[starts[index] : starts[index] + size] = values[at : at + size]
            called[starts[index] : starts[index] + size] = best[at : at + size]
            at += size
        if advance is not None:
            advance(sum(len(put.items[index].codes) for index in row))
    if not np.isfinite(log_p).all():
        raise UserError("The model gives no finite numbers", where=name, fix="Use --precision fp32, else it is damaged")
    return MaskedAnswers(name, log_p, called)
