"""What a projection found, for its figure, tables and report."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from plm.data.embeddings.reference_and_queries import Side
from plm.jobs.project.projection import Projected, ProjectionSettings
from plm.scoring.separation import SeparationScore, SpaceLabels


@dataclass(frozen=True)
class ProjectionFindings:
    """Everything that is told.

    Attributes:
        references: Embeddings of the N references.
        queries: Embeddings of the Q queries, or None.
        labels: Labels of the N references and then the Q queries.
        projected: Coordinates by each method.
        scores: Scores in the order of the table.
        why_not: Why labels cannot be judged; empty if they can.
        source: Where the labels come from.
        settings: Settings of the projections.
        notes: Sentences that a reader should know.
        outlook: Of each query the index of its nearest reference, the distance to it, and whether it lies outside of
            what the references span; None without queries.
        grouped: How many groups of relatives, and what tells them; empty if every protein counts as independent.
    """

    references: Side
    queries: Side | None
    labels: SpaceLabels
    projected: Projected
    scores: list[SeparationScore]
    why_not: str
    source: str
    settings: ProjectionSettings
    notes: list[str]
    outlook: tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.bool_]] | None
    grouped: str = ""

    def score(self, space: str, measure: str, set: str = "reference") -> SeparationScore | None:
        """The score of all proteins, if there is one."""
        for one in self.scores:
            if (one.space, one.measure, one.set, one.part) == (space, measure, set, "all"):
                return one
        return None
