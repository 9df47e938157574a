"""The work: what is asked of which protein, how long it will take, and the scores."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from plm import stage
from plm.data.protein_store import ProteinStore
from plm.errors import UserError
from plm.jobs.variants.marginals import TITLES, EffectScores, SequencePlan, WantedEffects, window_around
from plm.jobs.variants.questions import EVERY_SECONDS, MarginalQuestion, MaskedReader
from plm.jobs.variants.variant_table import VariantTable
from plm.model.capacity import capacity
from plm.model.embedding import representations
from plm.model.embedding.work_plan import EncodingCost, first_budget
from plm.model.loaded import LoadedModel
from plm.wording import counted

_SAMPLE_SECONDS = 1.0


@dataclass(frozen=True)
class VariantSettings:
    """How substitutions are scored.

    Attributes:
        method: One of :data:`plm.jobs.variants.marginals.METHODS`.
        window: Residues through which longer proteins are seen; 0: what model and memory hold.
        batch_tokens: Tokens in a packed row; 0: what suits the machine.
        max_memory: MiB that the job may use; None: what there is.
    """

    method: str
    window: int = 0
    batch_tokens: int = 0
    max_memory: int | None = None


class VariantJob:
    """Scores of the substitutions of some proteins.

    Args:
        proteins: Proteins of the input.
        loaded: The model with its language-model head.
        settings: How substitutions are scored.
        table: The user's variants; None: all substitutions.
        log: Told plan and progress.

    Attributes:
        width: Residues of a window; 0 if every protein is seen whole.
    """

    def __init__(
        self, proteins: ProteinStore, loaded: LoadedModel, settings: VariantSettings, table: VariantTable | None,
        log: logging.Logger,
    ) -> None:
        self.proteins, self.loaded, self.settings, self._log = proteins, loaded, settings, log
        room = capacity(loaded, settings.max_memory)
        budget = first_budget(
            room, loaded, representations.Wanted((loaded.layers,)), batch_tokens=settings.batch_tokens,
            max_residues=settings.window,
        )
        self.width = budget.whole if (proteins.lengths > budget.whole).any() else 0
        self._reader = MaskedReader(loaded, room, budget.tokens, log)
        self._wanted = wanted_of_table(proteins, table, settings.method) if table else {
            number: WantedEffects(None) for number in range(len(proteins.lengths))
        }
        self._rows = sum(row.scored for row in table.rows) if table else 0

    def plans(self) -> Iterator[SequencePlan]:
        """What is asked of each sequence, in the order of the input."""
        for number, wanted in self._wanted.items():
            record = int(self.proteins.firsts[number])
            yield SequencePlan(
                number, self.proteins.sequences[number], wanted, self.settings.method, self.width,
                f"{self.proteins.name}, id {self.proteins.ids[record]!r}",
            )

    def run(self, folder: Path, precision: str) -> EffectScores:
        """Asks everything; the scores lie in a file of ``folder``.

        Raises:
            UserError: There is nothing to substitute.
        """
        passes: Counter[int] = Counter()
        for plan in self.plans():
            passes.update(plan.passes())
        if not passes:
            raise UserError(
                "No residue of the proteins is one of the twenty amino acids", where=self.proteins.name,
                fix="Give proteins that are known",
            )
        self._announce(passes, precision)
        scores = EffectScores(self.proteins, folder, self._wanted)
        tokens = sum((length + self.loaded.family.specials) * count for length, count in passes.items())
        progress = stage.Progress(self._log, tokens, "tokens", every=EVERY_SECONDS)
        self._reader.ask((one for plan in self.plans() for one in plan.questions(scores)), progress)
        return scores

    def window(self, sequence: int, places: tuple[int, ...]) -> tuple[int, int] | None:
        """The residues that the model saw around some places, 0-based and half open; None: more than one window."""
        return window_around(int(self.proteins.lengths[sequence]), places, self.width)

    def _announce(self, passes: Mapping[int, int], precision: str) -> None:
        device, count = self.loaded.device.type, sum(passes.values())
        long = int((self.proteins.lengths[list(self._wanted)] > self.width).sum()) if self.width else 0
        what = counted(self._rows, "variant") if self._rows else "all substitutions"
        self._log.info(
            "Plan: %s in %s, %s: %s; %s, %s, rows of %d tokens%s; about %s", what,
            counted(len(self._wanted), "different sequence"), TITLES[self.settings.method],
            counted(count, "sequence or window to read", "sequences or windows to read"), device, precision,
            self._reader.tokens,
            f", {counted(long, 'sequence')} in windows of {self.width} residues" if long else ", all seen whole",
            stage.duration(self._seconds(passes)),
        )

    def _seconds(self, passes: Mapping[int, int]) -> float:
        """How long it will take, from timing some passes of the commonest length on this machine."""
        if not passes:
            return 0.0
        cost, specials = EncodingCost.of(self.loaded), self.loaded.family.specials
        total = sum(count * cost.total(np.array([length + specials], np.int64)) for length, count in passes.items())
        length = max(passes, key=lambda one: passes[one] * one)
        one = MarginalQuestion("A" * length, (), (0,), lambda values: None)
        each = cost.total(np.array([length + specials], np.int64))

        def timed(count: int) -> float:
            start = time.perf_counter()
            self._reader.ask([one] * count)
            return (time.perf_counter() - start) / (count * each)

        rate = timed(1)  # the first call makes what later ones share
        affordable = int(_SAMPLE_SECONDS / max(rate * each, 1e-12))
        several = min(affordable, 4 * max(1, self._reader.tokens // (length + specials)), sum(passes.values()))
        if several > 1:
            rate = timed(several)
        return float(rate * total)


def wanted_of_table(proteins: ProteinStore, table: VariantTable, method: str) -> dict[int, WantedEffects]:
    """What the rows of a table want of each sequence, in the order of the sequences."""
    wanted: dict[int, WantedEffects] = {}
    for row in table.rows:
        if not row.scored:
            continue
        mine = wanted.setdefault(int(proteins.unique[row.record]), WantedEffects())
        if len(row.substitutions) == 1 and method != "pseudo-likelihood":
            assert mine.places is not None
            mine.places.add(row.places[0])
        else:
            mine.variants[row.substitutions] = None
    return dict(sorted(wanted.items()))
