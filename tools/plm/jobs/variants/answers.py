"""What a job came to, gathered for figure, log and report."""

from __future__ import annotations

from collections import Counter

import numpy as np

from plm.jobs.variants.agreement import MODEL, Agreement, agreement
from plm.jobs.variants.baselines import Baselines
from plm.jobs.variants.figure import Drawn
from plm.jobs.variants.job import VariantJob
from plm.jobs.variants.marginals import EffectScores
from plm.jobs.variants.report import SHOWN, EffectAccount, Placed, kind_of
from plm.jobs.variants.shifts import shift_told
from plm.jobs.variants.tables import EffectTables
from plm.jobs.variants.variant_table import VariantTable
from plm.model.families import AMINO_ACIDS
from plm.scoring.metrics import ALL, Scored, score

FEWEST_SCORES = 20
"""Scores that are compared with frequencies of amino acids; fewer tell nothing."""
_SAMPLED = 50_000


class VariantAnswers:
    """Scores, baselines and tables of a finished job.

    Args:
        job: What was asked.
        scores: What came of it.
        baselines: What is said without a model.
        table: The user's variants; None: all substitutions were asked for.
    """

    def __init__(self, job: VariantJob, scores: EffectScores, baselines: Baselines, table: VariantTable | None) -> None:
        self.job, self.scores, self.baselines, self.table = job, scores, baselines, table
        self.tables = EffectTables(job.proteins, job, scores, baselines)

    def account(self, drawn: Drawn | None, *, lower_is_better: bool, resamples: int, seed: int) -> EffectAccount:
        """What the report tells.

        Args:
            drawn: What the figure shows; None without one.
            lower_is_better: Low measured values are tolerated ones.
            resamples: Draws for intervals.
            seed: Of the draws.
        """
        table, proteins = self.table, self.job.proteins
        scored, least, most = self._all() if table is None else self._rows(table)
        records = self._records()
        long = [record for record in records if 0 < self.job.width < int(proteins.lengths[proteins.unique[record]])]
        rows = table.rows if table else []
        return EffectAccount(
            method=self.job.settings.method, model=self.job.loaded.files.id, everything=table is None,
            proteins=len(records), unusable=int((proteins.unique < 0).sum()), scored=scored, least=least, most=most,
            rejected=Counter(kind_of(row.reason) for row in rows if not row.scored),
            shifted=shift_told(proteins, rows), width=self.job.width, windowed=len(long),
            apart=sum(
                row.scored and self.job.window(int(proteins.unique[row.record]), row.places) is None for row in rows
            ),
            aligned=self.baselines.aligned.records if self.baselines.aligned else 0,
            measured=table.header[table.measured] if table is not None and table.measured is not None else "",
            agreement=self._agreement(table, lower_is_better, resamples, seed), drawn=drawn,
            composition=self._composition(), warning=proteins.warning,
        )

    def _records(self) -> list[int]:
        """Records of proteins with scores."""
        if self.table is not None:
            return sorted({row.record for row in self.table.rows if row.scored})
        return [
            record for record, sequence in self.job.proteins.embedded()
            if bool(np.isfinite(self.scores.of(sequence)[0]).any())
        ]

    def _rows(self, table: VariantTable) -> tuple[int, list[Placed], list[Placed]]:
        order = self.tables.ranking(table)
        count = min(SHOWN, (len(order) + 1) // 2)
        ends = [order[:count], order[::-1][: min(count, len(order) - count)]]
        least, most = ([self._placed(table, index) for index in end] for end in ends)
        return len(order), least, most

    def _placed(self, table: VariantTable, index: int) -> Placed:
        row = table.rows[index]
        name = ";".join(map(str, row.substitutions))
        rival = f"{self.baselines.blosum62(row.substitutions):g}"
        return Placed(self.job.proteins.ids[row.record], name, self.tables.score(row), rival)

    def _all(self) -> tuple[int, list[Placed], list[Placed]]:
        ends: list[list[tuple[float, int, int]]] = [[], []]
        scored = 0
        for record, sequence in self.job.proteins.embedded():
            profile = np.asarray(self.scores.of(sequence)[0])
            places = np.flatnonzero(np.isfinite(profile).any(1))
            if not len(places):
                continue
            scored += int(np.isfinite(profile).sum())
            means = np.nanmean(profile[places].astype(np.float64), axis=1)
            for end, order in zip(ends, (np.argsort(means), np.argsort(-means)), strict=True):
                end += [(float(means[at]), record, int(places[at])) for at in order[:SHOWN].tolist()]
            ends = [sorted(ends[0])[:SHOWN], sorted(ends[1], key=lambda one: -one[0])[:SHOWN]]
        least, most = ([self._position(*one) for one in end] for end in ends)
        return scored, least, most

    def _position(self, mean: float, record: int, place: int) -> Placed:
        proteins = self.job.proteins
        letter = proteins.sequences[int(proteins.unique[record])][place]
        return Placed(proteins.ids[record], f"{letter}{place + 1}", mean)

    def _composition(self) -> float:
        """Spearman correlation of the scores with the frequencies of the amino acids alone; NaN with too few scores."""
        log = np.log(self.baselines.frequencies)
        scores, rivals, count = [], [], 0
        if self.table is not None:
            for row in self.table.rows:
                if row.scored:
                    scores.append(self.tables.score(row))
                    rivals.append(sum(
                        log[AMINO_ACIDS.index(one.mutant)] - log[AMINO_ACIDS.index(one.wild_type)]
                        for one in row.substitutions
                    ))
                    count += 1
        else:
            for _, sequence in self.job.proteins.embedded():
                profile = np.asarray(self.scores.of(sequence)[0])
                places, letters = np.nonzero(np.isfinite(profile))
                residues = self.job.proteins.sequences[sequence]
                own = np.array([AMINO_ACIDS.index(residues[place]) for place in places.tolist()], np.int64)
                scores += profile[places, letters].tolist()
                rivals += (log[letters] - log[own]).tolist()
                count += len(places)
                if count > _SAMPLED:
                    break
        if count < FEWEST_SCORES:
            return float("nan")
        return score(Scored("number", np.array(scores), np.array(rivals), np.empty(0, np.int64)))["spearman", ALL]

    def _agreement(
        self, table: VariantTable | None, lower_is_better: bool, resamples: int, seed: int
    ) -> Agreement | None:
        if table is None or table.measured is None:
            return None
        kept = [index for index, row in enumerate(table.rows) if row.scored]
        rows = [table.rows[index] for index in kept]
        scores = {MODEL: np.array([self.tables.score(row) for row in rows])} | self.tables.baseline_scores(rows)
        groups = [f"{row.record} {','.join(map(str, row.places))}" for row in rows]
        return agreement(
            np.array([table.values[index] for index in kept]), scores, groups, lower_is_better=lower_is_better,
            resamples=resamples, seed=seed,
        )
