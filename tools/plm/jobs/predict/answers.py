"""Proteins or embeddings through a bundle, block by block, in the order of the input."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from plm import stage
from plm.data.protein_store import ProteinStore
from plm.errors import UserError
from plm.jobs.predict.queries import BATCH_ROWS
from plm.model.bundles.classifier import ClassifierBundle
from plm.model.bundles.fine_tuned import FineTunedBundle, check_base
from plm.model.bundles.predictor import Reasons
from plm.model.checkpoint import resolve_model
from plm.model.embedding.representations import Wanted
from plm.model.embedding.sharded import EmbedJob
from plm.model.encoder_inputs import segments
from plm.model.loaded import ModelFiles
from plm.model.memory import halved

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Ints = NDArray[np.int64]
A = TypeVar("A")
TextsOf = Callable[[Ints], "tuple[list[str], list[int] | None]"]
"""Sequences of the records of these numbers, and 0-based sites in them (None: whole proteins)."""


@dataclass(frozen=True)
class BundleAnswers:
    """What a bundle says of some records.

    Attributes:
        records: (n,) their numbers in the input, ascending.
        values: (n, K) probabilities or (n, 1) numbers; of residue tasks (R, K), record after record.
        states: (n, D) representations by which they are compared with training proteins; None if there are none.
        sequences: Of residue tasks the n sequences; else empty.
        reasons: What stood behind the n answers; None of residue tasks.
    """

    records: Ints
    values: Floats
    states: Singles | None
    sequences: tuple[str, ...] = ()
    reasons: Reasons | None = None


def base_of(
    bundle: ClassifierBundle, where: str, model: str | None, *, workdir: Path, allow_hub: bool
) -> tuple[ModelFiles, Wanted]:
    """The model that made a classifier's embeddings, and what is wanted of it.

    Args:
        bundle: Classifier bundle.
        where: Name of the bundle's file, for messages.
        model: Where the model is; None takes the built-in one if it is that.
        workdir: A zipped model is unpacked here.
        allow_hub: The model may be fetched from the hub.

    Raises:
        UserError: The bundle does not say which model, layer or pooling, or it is another than ``model``.
    """
    embedding = bundle.embedding
    unknown = [
        name
        for name, told in (
            ("model", embedding.model_sha256),
            ("layer", embedding.layers),
            ("pooling", embedding.pooling),
        )
        if not told
    ]
    if unknown:
        raise UserError(
            f"The bundle was trained on embeddings of unknown {' and '.join(unknown)}, so proteins cannot be embedded "
            "for it",
            where=where, fix="Give embeddings that were made as the training ones were (--embeddings)",
        )
    if model is None:
        if embedding.model != "starter":
            raise UserError(
                f"The bundle was trained on embeddings of the model {embedding.model}, which is not built in",
                where=where, fix=f"Choose {embedding.model} as the model (--model)",
            )
        model = "starter"
    files = resolve_model(model, workdir=workdir, allow_hub=allow_hub)
    check_base(embedding.model, embedding.model_sha256, files, where, "The bundle was trained on embeddings of")
    # The mean over stored residues is the mean.
    pooling = "mean" if embedding.pooling == "residues" else embedding.pooling
    return files, Wanted(embedding.layers, pooling, embedding.dtype)  # type: ignore[arg-type]


def embedded_batches(job: EmbedJob) -> Iterator[tuple[Ints, Singles]]:
    """Records of a finished embedding job in blocks: their numbers ``(n,)`` and ``(n, D)`` vectors."""
    accepted = job.proteins.accepted
    rows: list[NDArray[Any]] = []
    done = 0
    for row in job.values():
        rows.append(row)
        if len(rows) == BATCH_ROWS:
            yield accepted[done : done + BATCH_ROWS], np.stack(rows).astype(np.float32)
            done += len(rows)
            rows.clear()
    if rows:
        yield accepted[done:], np.stack(rows).astype(np.float32)


def ask_classifier(
    bundle: ClassifierBundle, batches: Iterable[tuple[Ints, Singles]], texts: TextsOf | None = None
) -> Iterator[BundleAnswers]:
    """Embeddings, with the sequences of their records where there are any, through a classifier of embeddings."""
    for records, matrix in batches:
        sequences, positions = (None, None) if texts is None else texts(records)
        values, reasons = bundle.predict_with_reasons(matrix, sequences, positions)
        yield BundleAnswers(records, values, matrix, reasons=reasons)


def texts_of(proteins: ProteinStore, *, sites: bool) -> TextsOf:
    """Sequences of proteins that were read, and 0-based sites in them."""

    def texts(records: Ints) -> tuple[list[str], list[int] | None]:
        sequences = [proteins.sequences[int(proteins.unique[record])] for record in records]
        return sequences, [int(proteins.places[record]) for record in records] if sites else None

    return texts


class Asker:
    """Asks a fine-tuned model about whole proteins, each different sequence once.

    Args:
        bundle: Fine-tuned bundle of a sequence or a residue task.
        proteins: Proteins of the input.
        budget: Tokens in a packed row; longer proteins go in overlapping segments.
        log: Told of progress, and when memory runs short.
        longest: Residues that are encoded in one piece; 0: as many as the budget holds.
    """

    def __init__(
        self, bundle: FineTunedBundle, proteins: ProteinStore, budget: int, log: logging.Logger, *, longest: int = 0
    ) -> None:
        if longest:
            budget = min(budget, longest + bundle.loaded.family.specials)
        self._bundle, self._proteins, self._budget, self._log = bundle, proteins, budget, log
        self._windows = np.ones(len(proteins.lengths), np.int64)
        self._repeated = np.bincount(proteins.unique[proteins.accepted], minlength=len(proteins.lengths)) > 1
        self._known: dict[int, tuple[Floats, Singles, Reasons | None]] = {}
        self._progress = stage.Progress(log, int(proteins.lengths.sum()), "residues", every=10.0)

    def windows(self) -> Ints:
        """Segments that each sequence went in, (U,)."""
        return self._windows

    def answers(self) -> Iterator[BundleAnswers]:
        """Everything, block by block.

        Raises:
            UserError: The memory does not hold the smallest batch.
        """
        block: list[int] = []
        size, most = 0, 4 * self._budget
        for record in self._proteins.accepted.tolist():
            length = int(self._proteins.lengths[self._proteins.unique[record]])
            if block and (size + length > most or len(block) == BATCH_ROWS):
                yield self._block(block)
                block, size = [], 0
            block.append(record)
            size += length
        if block:
            yield self._block(block)

    def _block(self, records: list[int]) -> BundleAnswers:
        numbers = [int(self._proteins.unique[record]) for record in records]
        new = [number for number in dict.fromkeys(numbers) if number not in self._known]
        fresh = dict(zip(new, self._ask(new), strict=True)) if new else {}
        self._known.update({number: fresh[number] for number in new if self._repeated[number]})
        answers = [fresh[number] if number in fresh else self._known[number] for number in numbers]
        values = np.concatenate([one for one, _, _ in answers])
        where = np.array(records, np.int64)
        if self._bundle.task.level == "residue":
            return BundleAnswers(where, values, None, tuple(self._proteins.sequences[number] for number in numbers))
        behind = [reasons for _, _, reasons in answers if reasons is not None]
        states = np.concatenate([states for _, states, _ in answers])
        return BundleAnswers(where, values, states, reasons=Reasons.together(behind))

    def ask(self, texts: Sequence[str], sites: Sequence[int] | None = None) -> Floats:
        """The bundle's answers ``(N, K)`` for sequences that are none of the input's, all of them asked together.

        Raises:
            UserError: The memory does not hold the smallest batch.
        """
        return self._within_memory(lambda budget: self._bundle.predict(texts, sites, budget))

    def _within_memory(self, work: Callable[[int], A]) -> A:
        while True:
            try:
                return work(self._budget)
            except (torch.cuda.OutOfMemoryError, MemoryError, RuntimeError) as error:
                self._budget = halved(self._budget, error, self._bundle.loaded.device, self._log)

    def _ask(self, numbers: list[int]) -> list[tuple[Floats, Singles, Reasons | None]]:
        texts = [self._proteins.sequences[number] for number in numbers]
        family = self._bundle.loaded.family
        if self._bundle.task.level == "residue":
            ends = np.cumsum([len(text) for text in texts])
            none = np.empty((1, 0), np.float32)
            answers: list[tuple[Floats, Singles, Reasons | None]] = [
                (part, none, None) for part in np.split(self.ask(texts), ends[:-1])
            ]
        else:
            values, states, reasons = self._within_memory(
                lambda budget: self._bundle.predict_with_states_and_reasons(texts, budget)
            )
            answers = [(values[row : row + 1], states[row : row + 1], reasons.row(row)) for row in range(len(texts))]
        caps = (max(self._budget - family.specials, 8), family.max_residues)
        whole = min(cap for cap in caps if cap is not None)
        self._windows[numbers] = [len(segments(len(text), whole)) for text in texts]
        self._progress.advance(sum(map(len, texts)))
        return answers
