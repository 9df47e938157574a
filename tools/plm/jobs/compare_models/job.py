"""Puts the same questions to one language model after the other, so that one at a time is in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from plm import stage
from plm.errors import UserError
from plm.jobs.compare_models import cost, masked_agreement, masked_questions, probes
from plm.jobs.compare_models.probe_scores import Draws, Resampled
from plm.jobs.compare_models.probes import Probe
from plm.jobs.compare_models.report import ModelFindings, ProbeResult
from plm.jobs.compare_models.representation import represent
from plm.jobs.compare_models.similarity import linear_cka
from plm.model import encoder
from plm.model.checkpoint import has_language_model, load_model
from plm.model.families import AMINO_ACIDS
from plm.model.loaded import LoadedModel, ModelFiles

if TYPE_CHECKING:
    import torch

SAMPLED_PROTEINS, SAMPLED_RESIDUES = 500, 10_000
"""For the CKA of residues."""
_BYTES = {"fp32": 4, "bf16": 2}
_LIBRARIES_MIB = 700
"""What a process holds before any model."""


@dataclass(frozen=True)
class Masks:
    """How residues are masked.

    Attributes:
        rate: Share of a protein's residues that are masked, 0-1.
        sets: Number of sets of masks.
        seed: Seed of the masks.
        crop: Longest stretch of a protein, in residues.
    """

    rate: float = 0.15
    sets: int = 1
    seed: int = 42
    crop: int = 1022


class ModelComparison:
    """Collects what each model says; the first one is the reference.

    Args:
        findings: Gets all results; has models and held-out proteins already.
        datasets: Labelled datasets of the linear probes.
        masks: Rate, sets, seed and crop of the masks on held-out proteins.
        resamples: Number of bootstrap resamples.
        seed: Seed of resamples, samples and inner folds.
    """

    def __init__(
        self, findings: ModelFindings, datasets: Sequence[Probe], masks: Masks, *, resamples: int, seed: int
    ) -> None:
        self._findings, self._probes, self._resamples, self._seed = findings, datasets, resamples, seed
        self._put: masked_questions.Questions | None = None
        self._sample: tuple[list[str], list[NDArray[np.int64]], list[str]] = ([], [], [])
        self._reference: dict[str, NDArray[np.float32]] = {}
        held = findings.held
        if held is not None:
            self._put = masked_questions.questions(
                held.sequences, held.domains, held.clusters, rate=masks.rate, sets=masks.sets, seed=masks.seed,
                crop=masks.crop,
            )
            findings.asked = self._put.asked
            findings.settings = (
                f"{len(findings.asked.truth):,} masked residues: {masks.rate:.0%} of each protein, at least one (80 % "
                f"hidden, 10 % replaced, 10 % left), {masks.sets} set{'s' if masks.sets > 1 else ''}, seed {masks.seed}"
                f", stretches of up to {masks.crop:,} residues; the masks depend on each sequence alone."
            )
            self._sample = _residue_sample(held.sequences, held.clusters, seed)
        self._draws = [Draws(probe.units[probe.judged].tolist(), resamples, seed) for probe in datasets]
        self._scores: list[dict[str, Resampled]] = [{} for _ in datasets]
        self._settings: list[dict[str, str]] = [{} for _ in datasets]

    @property
    def residues(self) -> int:
        """Residues that each model computes."""
        total = sum(probe.residues for probe in self._probes)
        if self._put is not None and self._findings.held is not None:
            total += self._put.tokens + sum(map(len, self._findings.held.sequences)) + sum(map(len, self._sample[0]))
        return total

    def put_to(
        self, name: str, files: ModelFiles, *, device: torch.device, precision: str, advance: Callable[[int], None]
    ) -> None:
        """Everything one model is asked."""
        findings = self._findings
        headed = has_language_model(files)
        loaded = load_model(
            files, purpose="masked_lm" if headed else "encoder", device=device,
            dtype="bfloat16" if precision == "bf16" else "float32",
        )
        findings.parameters[name] = parameters_of(loaded)
        if self._put is not None and findings.held is not None:
            if headed:
                findings.answers.append(masked_questions.answer(name, loaded, self._put, advance=advance))
            else:
                advance(self._put.tokens)
                findings.notes.append(
                    f"{name} has no language-model head: no masked perplexity, accuracy or agreement."
                )
            self._represent(name, loaded, advance)
        for number, probe in enumerate(self._probes):
            self._fit(number, name, probes.features(probe, loaded, advance=advance))

    def _represent(self, name: str, loaded: LoadedModel, advance: Callable[[int], None]) -> None:
        held = self._findings.held
        assert held is not None
        if len(self._findings.models) == 1:
            return
        chosen, places, clusters = self._sample
        own = {
            "protein": represent(loaded, held.sequences, advance=advance),
            "residue": represent(loaded, chosen, places, advance=advance),
        }
        if not self._reference:
            self._reference = own
            return
        for level, values in own.items():
            units = held.clusters if level == "protein" else clusters
            similarity = linear_cka(self._reference[level], values, units, self._seed)
            self._findings.similarities.append((name, level, similarity))

    def _fit(self, number: int, name: str, matrix: NDArray[np.float32]) -> None:
        probed = probes.fit(self._probes[number], matrix, seed=self._seed)
        self._scores[number][name] = self._draws[number].score(probed.scored)
        self._settings[number][name] = probed.setting

    def finish(self) -> None:
        """Baselines and scores, when every model has answered."""
        findings, asked = self._findings, self._findings.asked
        if self._put is not None and asked is not None:
            models = list(findings.answers)
            if models:
                findings.answers += [
                    masked_agreement.unigram(asked),
                    masked_agreement.composition(asked, self._put.visible),
                ]
            options = {"resamples": self._resamples, "seed": self._seed}
            findings.scores = masked_agreement.scores(asked, findings.answers, **options)
            if models and models[0].name == findings.reference:
                findings.agreement = masked_agreement.agreement(asked, models[0], models[1:], **options)
            elif len(findings.models) > 1:
                findings.notes.append(f"{findings.reference}, the reference, has no head: no agreement with it.")
        for number, probe in enumerate(self._probes):
            others = probes.baseline_features(probe)
            for name, matrix in others.items():
                self._fit(number, name, matrix)
            findings.probes.append(
                ProbeResult(
                    probe.name, probe.task.level, probe.kind, len(probe.task.classes), probe.measure, probe.split,
                    probe.notes, probe.learned, len(probe.judged), self._draws[number].groups, self._scores[number],
                    self._settings[number], list(others),
                )
            )


def parameters_of(loaded: LoadedModel) -> int:
    """Parameters of the encoder, without the language-model head and a regression of contacts."""
    head = encoder.contact_head(loaded.model)
    regression = 0 if head is None else sum(value.numel() for value in head.parameters())
    return sum(value.numel() for value in encoder.body(loaded.model).parameters()) - regression


def _residue_sample(
    sequences: Sequence[str], clusters: Sequence[str], seed: int
) -> tuple[list[str], list[NDArray[np.int64]], list[str]]:
    """Some proteins, some residues of each, and each residue's cluster."""
    generator = np.random.default_rng(seed)
    chosen = np.sort(generator.permutation(len(sequences))[:SAMPLED_PROTEINS])
    most = math.ceil(SAMPLED_RESIDUES / len(chosen))
    places = [np.sort(generator.permutation(len(sequences[row]))[:most]).astype(np.int64) for row in chosen]
    units = [clusters[row] for row, mine in zip(chosen, places, strict=True) for _ in mine]
    return [sequences[row] for row in chosen], places, units


def measure_costs(
    findings: ModelFindings, sources: Sequence[tuple[str, ModelFiles]], others: Sequence[Sequence[str]], *,
    residues: int, turns: int, threads: int, device: str, precision: str, told: Callable[[str], None],
) -> list[cost.ModelCost]:
    """Times the models on proteins of the comparison.

    Args:
        findings: Has the held-out proteins; gets a note when the memory cannot hold all models at a time.
        sources: Name and checkpoint of each model.
        others: Sequences of probes, used where there are no held-out proteins.
        residues: About so many are encoded in each round.
        turns: Number of rounds in which the models take turns.
        threads: Processor threads.
        device: Device on which the models run: ``cpu`` or ``cuda``.
        precision: ``bf16`` or ``fp32``.
        told: Gets a line a round.
    """
    pool = findings.held.sequences if findings.held is not None else [one for each in others for one in each]
    chosen, total = [], 0
    for number in np.random.default_rng(0).permutation(len(pool)).tolist():
        chosen.append(pool[number])
        total += len(pool[number])
        if total >= residues:
            break
    if not any(letter in AMINO_ACIDS for letter in "".join(chosen)):
        raise UserError("There is no amino acid in the sequences to time the models on", fix="Give proteins")
    need = sum(findings.parameters[name] * _BYTES[precision] / 2**20 + _LIBRARIES_MIB for name, _ in sources)
    together = need < 0.6 * stage.memory_mib()
    if not together:
        findings.notes.append("The memory does not hold all models at a time: they were timed one after the other.")
    return cost.measure(sources, chosen, turns=turns, threads=threads, device=device, precision=precision,
                        together=together, told=told)
