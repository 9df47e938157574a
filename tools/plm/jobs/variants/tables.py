"""What is written of the scores: every variant with its score, the ranking, positions, their track, the proteins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from plm.data.fasta import STANDARD_RESIDUES
from plm.data.gff import GffWriter
from plm.data.protein_store import ProteinStore
from plm.data.tables import visible
from plm.data.unique_ids import unused
from plm.jobs.variants.baselines import Baselines
from plm.jobs.variants.job import VariantJob
from plm.jobs.variants.marginals import EffectScores
from plm.jobs.variants.notation import Substitution
from plm.jobs.variants.variant_table import VariantRow, VariantTable

Floats = NDArray[np.float64]
ALL_COLUMNS = (
    "id", "position", "wild_type", "substitution", "variant", "score", "blosum62", "site_frequency", "window"
)
ADDED_COLUMNS = (
    "scored_protein", "scored_variant", "score", "blosum62", "site_frequency", "window", "status", "details"
)
POSITION_COLUMNS = (
    "id", "position", "residue", "substitutions", "tolerance", "most_tolerated", "least_tolerated", "entropy"
)
STATUS_COLUMNS = ("id", "line", "length", "variants", "scored", "cleaned", "duplicate_of", "status", "details")
RANK = "rank"
_FULL = 1000
"""The largest score that a BED file may hold."""


class EffectTables:
    """Everything that is written of a job.

    Args:
        proteins: Proteins of the input.
        job: What was asked.
        scores: What came of it.
        baselines: What is said without a model.
    """

    def __init__(self, proteins: ProteinStore, job: VariantJob, scores: EffectScores, baselines: Baselines) -> None:
        self.proteins, self._job, self._scores, self._baselines = proteins, job, scores, baselines
        self._known: dict[tuple[str, str, int], str] = {}

    # ------------------------------------------------------------------------------------------------- the user's rows

    def write_rows(self, table: VariantTable, handle: TextIO) -> None:
        """Every row of the user's table with its own columns first, in its order."""
        handle.write(_line([*table.header, *added_columns(table.header)]))
        for row, fields in table.fields():
            handle.write(_line([*fields, *self._cells(row)]))

    def write_ranked_rows(self, table: VariantTable, handle: TextIO, most: int) -> None:
        """The scored rows from the least tolerated on, at most so many (0: all)."""
        header = [*table.header, *added_columns(table.header)]
        handle.write(_line([unused(RANK, header)[0] if RANK in header else RANK, *header]))
        order = self.ranking(table)[: most or None]
        places = {index: rank for rank, index in enumerate(order)}
        lines = [""] * len(order)
        for index, (row, fields) in enumerate(table.fields()):
            if index in places:
                lines[places[index]] = _line([str(places[index] + 1), *fields, *self._cells(row)])
        handle.writelines(lines)

    def ranking(self, table: VariantTable) -> list[int]:
        """Numbers of the scored rows, from the lowest score on; equal ones in their order."""
        scored = [index for index, row in enumerate(table.rows) if row.scored]
        return sorted(scored, key=lambda index: self.score(table.rows[index]))

    def score(self, row: VariantRow) -> float:
        """The model's score of a row that is scored."""
        return self._scores.variant(int(self.proteins.unique[row.record]), row.substitutions)

    def baseline_scores(self, rows: Sequence[VariantRow]) -> dict[str, Floats]:
        """(N,) scores of both baselines for rows that are scored."""
        site = [
            self._baselines.site_frequency(int(self.proteins.unique[row.record]), row.substitutions) for row in rows
        ]
        matrix = [self._baselines.blosum62(row.substitutions) for row in rows]
        return {"BLOSUM62": np.array(matrix), "site frequencies": np.array(site)}

    def _cells(self, row: VariantRow) -> list[str]:
        name = self.proteins.ids[row.record] if row.record >= 0 else ""
        variant = ";".join(map(str, row.substitutions))
        if not row.scored:
            return [name, variant, "", "", "", "", "rejected", row.reason]
        sequence = int(self.proteins.unique[row.record])
        return [
            name, variant, _number(self.score(row)), f"{self._baselines.blosum62(row.substitutions):g}",
            _number(self._baselines.site_frequency(sequence, row.substitutions)), self._window(sequence, row.places),
            "scored", "; ".join(filter(None, [row.remark, self._apart(sequence, row.places)])),
        ]

    def _apart(self, sequence: int, places: tuple[int, ...]) -> str:
        if self._job.window(sequence, places) is not None:
            return ""
        return f"further apart than the window of {self._job.width} residues: each seen alone, scores added"

    def _window(self, sequence: int, places: tuple[int, ...]) -> str:
        """What the model saw, 1-based, where that was not the whole protein."""
        spans = [self._job.window(sequence, places)]
        if spans[0] is None:
            spans = [self._job.window(sequence, (place,)) for place in places]
        length = int(self.proteins.lengths[sequence])
        return ";".join(f"{span[0] + 1}-{span[1]}" for span in spans if span and span != (0, length))

    # ----------------------------------------------------------------------------------------------- all substitutions

    def write_all(self, handle: TextIO) -> None:
        """A row a substitution: proteins in their order, positions ascending, amino acids by letter."""
        handle.write(_line(ALL_COLUMNS))
        for record, sequence in self.proteins.embedded():
            name, letters = visible(self.proteins.ids[record]), self.proteins.sequences[sequence]
            profile = np.asarray(self._scores.of(sequence)[0])
            for place in np.flatnonzero(np.isfinite(profile).any(1)).tolist():
                handle.writelines(self._all_lines(name, letters, sequence, place, profile[place]))

    def write_ranked_all(self, handle: TextIO, most: int) -> None:
        """The least tolerated of all substitutions, at most so many (0: all)."""
        handle.write(_line([RANK, *ALL_COLUMNS]))
        parts: list[tuple[NDArray[np.int64], NDArray[np.float32]]] = []  # (record, place, amino acid) and score
        waiting = 0
        for record, sequence in self.proteins.embedded():
            profile = np.asarray(self._scores.of(sequence)[0])
            places, letters = np.nonzero(np.isfinite(profile))
            part = np.stack([np.full(len(places), record), places, letters], axis=1)
            parts.append((part, profile[places, letters]))
            waiting += len(places)
            if most and waiting > 10 * most:
                parts = [_lowest(parts, most)]
                waiting = len(parts[0][1])
        kept, values = _lowest(parts, most or waiting)
        order = np.argsort(values, kind="stable")
        for rank, (record, place, letter) in enumerate(kept[order].tolist(), start=1):
            sequence = int(self.proteins.unique[record])
            name, residues = visible(self.proteins.ids[record]), self.proteins.sequences[sequence]
            one = np.full(20, np.nan, np.float32)
            one[letter] = values[order[rank - 1]]
            handle.writelines(f"{rank}\t{line}" for line in self._all_lines(name, residues, sequence, place, one))

    def _all_lines(
        self, name: str, letters: str, sequence: int, place: int, values: NDArray[np.float32]
    ) -> Iterator[str]:
        window, own = self._window(sequence, (place,)), letters[place]
        for letter, value in zip(STANDARD_RESIDUES, values.tolist(), strict=True):
            if value == value:
                rivals = self._rivals(sequence, place, own, letter)
                yield (
                    f"{name}\t{place + 1}\t{own}\t{letter}\t{own}{place + 1}{letter}\t{_number(value)}\t{rivals}"
                    f"\t{window}\n"
                )

    def _rivals(self, sequence: int, place: int, own: str, letter: str) -> str:
        """The cells of both baselines; without an alignment they are the same at every position."""
        aligned = self._baselines.aligned
        key = (own, letter, place if aligned is not None and aligned.sequence == sequence else -1)
        if key not in self._known:
            one = (Substitution(own, place + 1, letter),)
            site = self._baselines.site_frequency(sequence, one)
            self._known[key] = f"{self._baselines.blosum62(one):g}\t{_number(site)}"
        return self._known[key]

    # ------------------------------------------------------------------------------------------------------- positions

    def write_positions(self, handle: TextIO) -> None:
        """A row a position: the mean over its substitutions, the extremes, and the entropy of what is expected."""
        handle.write(_line(POSITION_COLUMNS))
        for record, letters, place, values, entropy in self._positions():
            order = np.argsort(np.where(np.isfinite(values), values, np.inf), kind="stable")
            count = int(np.isfinite(values).sum())
            handle.write(_line([
                visible(self.proteins.ids[record]), str(place + 1), letters[place], str(count),
                _number(float(np.nanmean(values))), STANDARD_RESIDUES[int(order[count - 1])],
                STANDARD_RESIDUES[int(order[0])], "" if entropy != entropy else _number(entropy),
            ]))

    def write_bed(self, handle: TextIO) -> None:
        """BED: 0-based and half open; the score is the share of positions that are tolerated less, in thousandths."""
        means = [float(np.nanmean(values)) for _, _, _, values, _ in self._positions()]
        ranks = np.searchsorted(np.sort(means), means, side="left")
        for (record, letters, place, _, _), rank in zip(self._positions(), ranks.tolist(), strict=True):
            share = round(_FULL * rank / max(len(means) - 1, 1))
            cells = (visible(self.proteins.ids[record]), place, place + 1, f"{letters[place]}{place + 1}", share, ".")
            handle.write("\t".join(map(str, cells)) + "\n")

    def write_gff(self, handle: TextIO) -> None:
        """GFF3: 1-based; the score is the tolerance itself."""
        writer = GffWriter(handle, "plm_variants")
        last = -1
        for record, letters, place, values, _ in self._positions():
            name = self.proteins.ids[record]
            if record != last:
                writer.region(name, len(letters))
                last = record
            count = int(np.isfinite(values).sum())
            writer.feature(
                name, place + 1, round(float(np.nanmean(values)), 4),
                {"Name": f"{letters[place]}{place + 1}", "substitutions": str(count)},
            )

    def _positions(self) -> Iterator[tuple[int, str, int, NDArray[np.float32], float]]:
        """(record, residues, 0-based position, (20,) effects, entropy) of the positions that were scored."""
        for record, sequence in self.proteins.embedded():
            profile, entropy = self._scores.of(sequence)
            places = np.flatnonzero(np.isfinite(profile).any(1)).tolist()
            if places:
                letters = self.proteins.sequences[sequence]
                for place in places:
                    yield record, letters, place, np.asarray(profile[place]), float(entropy[place])

    # -------------------------------------------------------------------------------------------------------- proteins

    def write_status(self, handle: TextIO, table: VariantTable | None) -> None:
        """A row a record of the proteins."""
        asked, scored = self._counts(table)
        handle.write(_line(STATUS_COLUMNS))
        for record in range(len(self.proteins.ids)):
            sequence = int(self.proteins.unique[record])
            first = int(self.proteins.firsts[sequence]) if sequence >= 0 else record
            details = [self.proteins.details.get(record, "")]
            status = "rejected" if sequence < 0 else "scored" if scored[record] else "not asked"
            if sequence >= 0:
                length = int(self.proteins.lengths[sequence])
                if self._job.width and length > self._job.width and scored[record]:
                    details.append(f"seen through windows of {self._job.width} residues around each substitution")
                other = sum(letter not in STANDARD_RESIDUES for letter in self.proteins.sequences[sequence])
                if other and table is None:
                    details.append(f"{other} residues are none of the twenty amino acids: not substituted")
            handle.write(_line([
                visible(self.proteins.ids[record]), str(int(self.proteins.lines[record])),
                str(int(self.proteins.letters[record])), str(asked[record]), str(scored[record]),
                str(int(self.proteins.cleaned[record])), "" if first == record else visible(self.proteins.ids[first]),
                status, "; ".join(filter(None, details)),
            ]))

    def _counts(self, table: VariantTable | None) -> tuple[list[int], list[int]]:
        """Variants of each record, and how many of them are scored."""
        asked, scored = [0] * len(self.proteins.ids), [0] * len(self.proteins.ids)
        if table is None:
            for record, sequence in self.proteins.embedded():
                asked[record] = scored[record] = int(np.isfinite(self._scores.of(sequence)[0]).sum())
            return asked, scored
        for row in table.rows:
            if row.record >= 0:
                asked[row.record] += 1
                scored[row.record] += row.scored
        return asked, scored


def added_columns(header: Sequence[str]) -> list[str]:
    """Names of the columns behind the user's own, which keep theirs."""
    taken = set(header)
    return [
        name if name not in taken else f"plm_{name}" if f"plm_{name}" not in taken else unused(f"plm_{name}", taken)[0]
        for name in ADDED_COLUMNS
    ]


def _lowest(
    parts: Sequence[tuple[NDArray[np.int64], NDArray[np.float32]]], most: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The lowest values of all parts and what they belong to, in the order of the parts; of equal ones the first."""
    kept = np.concatenate([np.empty((0, 3), np.int64), *(one for one, _ in parts)])
    values = np.concatenate([np.empty(0, np.float32), *(one for _, one in parts)])
    best = np.sort(np.argsort(values, kind="stable")[:most])
    return kept[best], values[best]


def _line(cells: Sequence[str]) -> str:
    return "\t".join(map(visible, cells)) + "\n"


def _number(value: float) -> str:
    return f"{round(value, 4) + 0.0:.4f}"
