"""The survey of a file of proteins: threshold, plan, and every candidate scored and written as it comes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from plm import stage
from plm.data.fasta import CleaningRule
from plm.data.proteins import Cleaning
from plm.errors import UserError
from plm.jobs.classify_sites.candidates import CandidateSurvey, Protein, read_candidates
from plm.jobs.classify_sites.explanations import Explanations
from plm.jobs.classify_sites.report import SiteCounts
from plm.jobs.classify_sites.scan import Floats, SiteScanner, chunks
from plm.jobs.classify_sites.tables import SiteTables, Truth, judge
from plm.model.bundles.fine_tuned import FineTunedBundle
from plm.model.bundles.predictor import Reasons
from plm.scoring.operating_point import OperatingPoint


def choose_point(
    bundle: FineTunedBundle, false_positive_rate: float | None, prevalence: float | None, where: str, notes: list[str]
) -> OperatingPoint | None:
    """The threshold of two classes; None for others.

    Args:
        bundle: Fine-tuned bundle of a site task.
        false_positive_rate: Share (0-1) of validation negatives that may be called; None: the bundle's threshold.
        prevalence: Share (0-1) of candidates that are real sites; None: as in training.
        where: The bundle's file, for messages.
        notes: List to which sentences that the user should know are appended.

    Raises:
        UserError: A threshold is asked for where there is none.
    """
    if not bundle.task.binary:
        if false_positive_rate is not None or prevalence is not None:
            raise UserError(
                "The bundle does not tell two classes apart, so there is no threshold to choose",
                where="--false-positive-rate or --prevalence", fix="Leave them out",
            )
        return None
    point = OperatingPoint.choose(
        bundle.manifest, false_positive_rate=false_positive_rate, prevalence=prevalence, where=where
    )
    if false_positive_rate and false_positive_rate < (point.unresolved or 0):
        notes.append(
            f"A false-positive rate of {false_positive_rate:g} is finer than {point.counts[0]} validation "
            "negatives can show: the threshold lies just above all of them."
        )
    return point


def announce(survey: CandidateSurvey, scanner: SiteScanner, letters: str, where: str, log: logging.Logger) -> None:
    """Says what is to be done, on what, and for how long."""
    window, specials = scanner.bundle.window, scanner.bundle.loaded.family.specials
    tokens = survey.context + specials * survey.candidates if window else survey.residues + specials * survey.proteins
    minutes = "0"
    if survey.candidates:
        minutes = f"{tokens * scanner.seconds_per_token(survey.head) / 60:.1f}"
    context = f"windows of {window} residues (equal ones once)" if window else "whole proteins"
    log.info(
        "Plan: %d proteins of %d records, %d candidates (%s), %s, %d tokens, %d networks, %s; about %s minutes",
        survey.proteins, survey.records, survey.candidates, "/".join(letters), context, tokens,
        len(scanner.bundle.members), where, minutes,
    )
    if scanner.bundle.predictor is not None and not scanner.bundle.predictor.uses_language_model:
        log.info("The language model has no weight in the bundle's predictor, so it is not asked")


@dataclass
class SiteSurvey:
    """Scores a file chunk by chunk and writes each protein as soon as it is known.

    Attributes:
        proteins: FASTA file or table to read.
        nucleotides: ``reject`` or ``keep``.
        letters: Candidate residues.
        candidates: Records, proteins and candidates of that file, counted before.
        scanner: Scanner with the bundle that scores the candidates.
        tables: Writer of the tables of sites and proteins.
        counts: Counts that the report tells.
        explanations: What is gathered to explain the calls.
        truth: Known sites, if there is a list.
    """

    proteins: Path
    nucleotides: str
    letters: str
    candidates: CandidateSurvey
    scanner: SiteScanner
    tables: SiteTables
    counts: SiteCounts
    explanations: Explanations
    truth: Truth | None

    def run(self, batch_tokens: int, log: logging.Logger) -> None:
        """Goes through the file, ``batch_tokens`` residues encoded together."""
        task, truth = self.tables.task, self.truth
        positive = task.classes[task.positive_index] if task.binary else ""
        progress = stage.Progress(log, self.candidates.candidates, "candidates", every=10.0)
        cleaning = Cleaning(self.proteins.name, CleaningRule(nucleotides=self.nucleotides))
        records = read_candidates(self.proteins, self.letters, cleaning, self.candidates.settled)
        for chunk in chunks(records, self.scanner.bundle.window, 32 * batch_tokens):
            for protein, (values, reasons) in zip(chunk, self._scored(chunk, progress), strict=True):
                if truth:
                    truth.see(protein)
                if not protein.sites:
                    self.tables.skip(protein)
                    self.counts.skip(protein)
                    continue
                answers = judge(values, task, self.tables.point, self.scanner.bundle.threshold)
                labels = truth.labels(protein) if truth else [""] * len(protein.sites)
                known = np.array([bool(label) and label == positive for label in labels])
                self.tables.add(protein, answers, labels)
                self.counts.add(protein, answers.heights, answers.called, answers.calls, known)
                self.explanations.add(protein, answers, reasons)
        self.explanations.finish()

    def _scored(self, chunk: Sequence[Protein], progress: stage.Progress) -> Sequence[tuple[Floats, Reasons | None]]:
        if self.explanations.reasons is not None:
            return self.scanner.score_with_reasons(chunk, progress.advance)
        return [(values, None) for values in self.scanner.score(chunk, progress.advance)]
