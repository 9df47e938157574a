"""What answers: a classifier of embeddings, or a fine-tuned model that reads proteins itself."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from plm import stage
from plm.data.embeddings.description import UNUSUAL
from plm.data.embeddings.files import Embeddings, read_embeddings
from plm.data.fasta import CleaningRule, clean
from plm.data.protein_store import store_proteins
from plm.errors import UserError
from plm.jobs.predict.queries import Ints, Queries, stored_batches
from plm.jobs.predict.verdicts import Rules
from plm.model.bundles.bundle import Bundle
from plm.model.bundles.classifier import ClassifierBundle, bundle_kind, check_embeddings, load_classifier_bundle
from plm.scoring.conformal import Errors
from plm.scoring.mutagenesis import Ask
from plm.telling.report import plain
from plm.wording import several_called

if TYPE_CHECKING:
    from plm.jobs.predict.answers import Asker, BundleAnswers, TextsOf
    from plm.model.embedding.sharded import EmbedJob

Settle = Callable[[Bundle, tuple[Any, ...], "Errors | None"], Rules]
"""Rules for a bundle, its sample of training rows and its errors on validation rows."""


@dataclass(frozen=True)
class Question:
    """What is asked of which bundle; the flags of plm_predict by their names, and the stage's own name."""

    input: Path | None
    embeddings: Path | None
    sequences: Path | None
    bundle: Path
    model: str | None
    allow_hub: bool
    duplicate_ids: str
    nucleotides: str
    max_residues: int
    max_memory: int | None
    batch_tokens: int
    work_dir: Path | None
    device: str
    precision: str
    predictor: str
    stage: str


@dataclass(frozen=True)
class Answered:
    """Answers to come, block by block, and what a report needs to know of them.

    Attributes:
        about: Sentences on the bundle.
        notes: Sentences that the user should know.
        job: Job that knows the windows of each protein after the last block, or None.
        ask: A fine-tuned model's answers for other sequences; None for classifiers of embeddings.
    """

    bundle: Bundle
    rules: Rules
    queries: Queries
    blocks: Iterable[BundleAnswers]
    about: list[str]
    notes: list[str]
    job: EmbedJob | Asker | None = None
    ask: Ask | None = None

    def forget(self) -> None:
        """Removes the finished parts of embeddings, once everything that rests on them is written."""
        store = getattr(self.job, "store", None)
        if store is not None:
            store.remove()


def ask(question: Question, settle: Settle, scratch: Path, stack: ExitStack, log: logging.Logger) -> Answered:
    """Loads the bundle and puts the question to it.

    Args:
        question: Input, bundle and options of the run.
        settle: Function that makes the rules by which answers are called; runs before the work starts.
        scratch: Folder for what does not outlive the job.
        stack: Keeps files open until it is closed.
        log: Logger told what is planned.

    Raises:
        UserError: The bundle is damaged, or does not answer such questions.
    """
    if bundle_kind(question.bundle) == "embedding":
        return _with_embeddings(question, settle, scratch, stack, log)
    return _with_finetuned(question, settle, scratch, log)


def _with_embeddings(
    question: Question, settle: Settle, scratch: Path, stack: ExitStack, log: logging.Logger
) -> Answered:
    """A classifier of embeddings: embeds proteins as its training proteins were, or takes embeddings of that kind."""
    from plm.jobs.predict.answers import ask_classifier, embedded_batches, texts_of

    bundle = load_classifier_bundle(question.bundle)
    told = _chosen(bundle, question.predictor)
    scores, truth = bundle.validation_scores
    errors = Errors.of(scores, truth, number=bundle.task.target == "number") if len(scores) else None
    rules = settle(bundle, bundle.reference, errors)
    embedding = bundle.embedding
    about = [
        f"Classifier of embeddings: model {embedding.model or 'unknown'}, layer {_layer(embedding.layers)}, "
        f"pooling {embedding.pooling or 'unknown'}, {embedding.dimension} numbers; head {bundle.head.kind}.",
        *told, *_called(bundle),
    ]
    if question.input is not None:
        queries, job = _embed(question, bundle, scratch, stack, log)
        assert queries.proteins is not None
        texts = texts_of(queries.proteins, sites=queries.positions is not None)
        return Answered(bundle, rules, queries, ask_classifier(bundle, embedded_batches(job), texts), about, [], job)
    assert question.embeddings is not None
    opened = stack.enter_context(read_embeddings(question.embeddings))
    # Of several layers the one that the bundle was trained on.
    if opened.description.depth > 1 and embedding.layers and embedding.layers[0] in opened.description.layers:
        opened = stack.enter_context(read_embeddings(question.embeddings, layer=embedding.layers[0]))
    notes = check_embeddings(opened.description, bundle, opened.name)
    if opened.description.depth > 1:
        raise UserError(
            f"The file has the layers {_layer(opened.description.layers)}, and the bundle does not say which it needs",
            where=opened.name, fix="Embed again with one layer",
        )
    queries = Queries.of_embeddings(opened)
    beside = None if bundle.predictor is None else _sequences(question, opened, scratch)
    log.info("Plan: %d embeddings of dimension %d; seconds, on the processor", len(queries), opened.dimension)
    answers = ask_classifier(bundle, stored_batches(opened, queries), beside)
    return Answered(bundle, rules, queries, answers, about, notes)


def _chosen(bundle: Bundle, predictor: str) -> list[str]:
    """Leaves the language model alone if that is wanted; what answers, in a sentence, where there is a choice."""
    if bundle.predictor is None:
        return []
    names = ", ".join(bundle.predictor.combination.names)
    if predictor == "model":
        bundle.leave_language_model_alone()
        return [f"The language model alone answers, as asked; the bundle would combine {names}."]
    return [f"The predictor: {names} (predictions of the language model alone are a choice of the tool)."]


def _called(bundle: Bundle) -> list[str]:
    """How several classes are called, in a sentence."""
    told = several_called([plain(name) for name in bundle.task.classes], bundle.threshold)
    return [f"{told}."] if told else []


def _sequences(question: Question, embeddings: Embeddings, scratch: Path) -> TextsOf:
    """The sequences of embedded records: from a file beside, or from a column ``sequence`` that they carry.

    Raises:
        UserError: There are none, or those of a record cannot be used.
    """
    if question.sequences is None:
        return _carried(embeddings)
    from plm.jobs.predict.answers import texts_of

    sites = embeddings.positions
    proteins = store_proteins(
        question.sequences, scratch / "proteins", duplicates=question.duplicate_ids, sites=sites is not None,
        nucleotides=question.nucleotides,
    )
    accepted = proteins.accepted.tolist()
    known = {(proteins.ids[record], 0 if sites is None else int(proteins.positions[record])): record
             for record in accepted}

    def texts(records: Ints) -> tuple[list[str], list[int] | None]:
        rows = []
        for record in records.tolist():
            site = 0 if sites is None else int(sites[record])
            if (embeddings.ids[record], site) not in known:
                at = f" position {site}" if site else ""
                raise UserError(
                    f"There is no usable sequence of {embeddings.ids[record]!r}{at}", where=proteins.name,
                    fix="Give the proteins that were embedded, or ask the language model alone (--predictor model)",
                )
            rows.append(known[embeddings.ids[record], site])
        return texts_of(proteins, sites=sites is not None)(np.array(rows, np.int64))

    return texts


def _carried(embeddings: Embeddings) -> TextsOf:
    where = embeddings.name
    column = next((values for name, values in embeddings.labels.items() if name.lower() == "sequence"), [])
    if not any(column):
        raise UserError(
            "The bundle also reads the proteins' sequences, and these embeddings do not carry them", where=where,
            fix="Give the proteins beside them (--sequences) or instead (--input), or ask the language model alone "
            "(--predictor model)",
        )
    rule = CleaningRule(nucleotides="keep")
    sites = embeddings.positions

    def texts(records: Ints) -> tuple[list[str], list[int] | None]:
        sequences, places = [], []
        for record in records.tolist():
            cleaned = clean("".join(column[record].split()), rule)
            place = cleaned.position(int(sites[record]) - 1) if sites is not None else 0
            if cleaned.rejected or place is None:
                why = cleaned.rejected or "its site is no residue of it"
                raise UserError(
                    f"The sequence of {embeddings.ids[record]!r} cannot be used ({why})", where=where,
                    fix="Mend it, or ask the language model alone (--predictor model)",
                )
            sequences.append(cleaned.sequence)
            places.append(place)
        return sequences, None if sites is None else places

    return texts


def _embed(
    question: Question, bundle: ClassifierBundle, scratch: Path, stack: ExitStack, log: logging.Logger
) -> tuple[Queries, EmbedJob]:
    """Embeds the proteins, as plm_embed does; a killed job goes on where it stopped."""
    stage.require({"torch": "2.6", "transformers": "5.2"})
    from plm.jobs.predict.answers import base_of
    from plm.model import device as devices
    from plm.model.checkpoint import load_model
    from plm.model.embedding import setup
    from plm.model.embedding.representations import check_wanted
    from plm.model.ranks import Ranks

    assert question.input is not None
    files, wanted = base_of(bundle, question.bundle.name, question.model, workdir=scratch, allow_hub=question.allow_hub)
    sites = wanted.pooling == "sites"
    read = partial(
        store_proteins, question.input, duplicates=question.duplicate_ids, sites=sites, nucleotides=question.nucleotides
    )
    own = bundle.embedding.notes.get(UNUSUAL, "x")  # as in the embeddings that the bundle was trained on
    proteins = read(scratch / "proteins", unusual=own)
    device, precision = devices.settle(question.device, question.precision, stage.threads(), log)
    loaded = load_model(files, dtype="bfloat16" if precision == "bf16" else "float32", device=device)
    if proteins.own and not loaded.family.own_letters(loaded.vocabulary):
        proteins = read(scratch / "as_x")
    check_wanted(loaded, wanted)
    settings = setup.EmbeddingSettings(
        question.duplicate_ids, precision, question.batch_tokens, question.max_residues, question.max_memory
    )
    job = setup.embed(
        proteins, files, loaded, wanted, settings, name=question.stage, work_dir=question.work_dir, scratch=scratch,
        ranks=Ranks(), stack=stack, log=log,
    )
    return Queries.of_proteins(question.input, proteins, sites=sites), job


def _with_finetuned(question: Question, settle: Settle, scratch: Path, log: logging.Logger) -> Answered:
    """A fine-tuned model, which reads proteins itself."""
    stage.require({"torch": "2.6", "transformers": "5.2", "peft": "0.17"})
    from plm.jobs.predict.answers import Asker
    from plm.model import device as devices
    from plm.model.bundles.archive import bundle_level
    from plm.model.bundles.fine_tuned import DEFAULT_BUDGET, load_bundle

    if bundle_level(question.bundle) == "site":
        raise UserError(
            "The bundle answers for sites in proteins, not for whole proteins or every residue",
            where=question.bundle.name, fix="Use plm_classify_sites",
        )
    if question.input is None:
        raise UserError(
            "A fine-tuned model reads proteins, not embeddings", where=question.bundle.name, fix="Give --input"
        )
    proteins = store_proteins(
        question.input, scratch / "proteins", duplicates=question.duplicate_ids, nucleotides=question.nucleotides
    )
    _, precision = devices.settle(question.device, question.precision, stage.threads(), log)
    bundle = load_bundle(
        question.bundle, question.model, workdir=scratch, device=question.device, precision=precision,
        allow_hub=question.allow_hub,
    )
    told = _chosen(bundle, question.predictor)
    whole = bundle.task.level == "sequence"
    stored = bundle.manifest.get("conformal") if whole else None
    errors = Errors.from_json(stored) if stored else None
    rules = settle(bundle, bundle.reference if whole else ([], [], []), errors)
    asker = Asker(bundle, proteins, question.batch_tokens or DEFAULT_BUDGET, log, longest=question.max_residues)
    log.info(
        "Plan: %d proteins of %d records (%d different sequences), %d residues, %d networks", len(proteins.accepted),
        len(proteins.ids), len(proteins.lengths), int(proteins.lengths.sum()), len(bundle.members),
    )
    base = bundle.manifest["base"]
    about = [
        f"Fine-tuned model: base model {base['id']} (sha256 {base['sha256'][:12]}), method "
        f"{bundle.manifest['method']}, {len(bundle.members)} trained networks.",
        *told, *_called(bundle),
    ]
    queries = Queries.of_proteins(question.input, proteins, sites=False)
    return Answered(bundle, rules, queries, asker.answers(), about, [], asker, asker.ask)


def _layer(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers)) or "unknown"
