"""Is a protein like anything that a model was trained on? Distance to the nearest training proteins.

The mean distance to the k nearest of a bundle's reference proteins (a sample of the training proteins), in the space
where each of the D numbers has mean 0 and deviation 1 over the reference; divided by the root of D, so that 1 means one
standard deviation in each number (Sun and others 2022, arXiv:2204.06507, on distances to nearest neighbours). The
threshold is a quantile of the same distances of validation proteins, which are new but of the same kind.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plm.errors import UserError
from plm.model.bundles.classifier import nearest_rows

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
NEIGHBOURS = 3
"""More than one, so that a single odd training protein does not make odd queries look familiar."""
SHARE = 0.05
MOST_DISTANCES = 1001
_SMALLEST_SCALE = 1e-6


@dataclass(frozen=True)
class Space:
    """The reference proteins and the space in which distances are measured.

    Attributes:
        rows: (M, D) standardised reference proteins.
        mean: (D,) of the reference as stored.
        scale: (D,) its standard deviation; 1 where the reference is constant.
    """

    rows: Singles
    mean: Floats
    scale: Floats

    @classmethod
    def of(cls, reference: NDArray[Any]) -> Space:
        """From ``(M, D)`` representations, taken in float16 precision as bundles store them."""
        most = float(np.finfo(np.float16).max)
        stored = np.clip(np.asarray(reference, np.float32), -most, most).astype(np.float16).astype(np.float64)
        mean, scale = stored.mean(axis=0), stored.std(axis=0)
        # A constant column tells nothing of the spread: its differences count as they are.
        scale = np.where(scale > _SMALLEST_SCALE * np.maximum(np.abs(mean), 1), scale, 1.0)
        return cls(((stored - mean) / scale).astype(np.float32), mean, scale)

    def distances(
        self, values: NDArray[Any], k: int, *, among: NDArray[np.int64] | None = None
    ) -> tuple[Floats, NDArray[np.int64]]:
        """Mean distance to the k nearest reference proteins, and which is the nearest, each ``(N,)``.

        Args:
            values: ``(N, D)`` representations, not standardised.
            k: How many; fewer if there are fewer.
            among: Numbers of the reference proteins to look at; all by default.
        """
        rows = self.rows if among is None else self.rows[among]
        scaled = ((np.asarray(values, np.float64) - self.mean) / self.scale).astype(np.float32)
        near, distance = nearest_rows(scaled, rows, min(k, len(rows)), cosine=False)
        nearest = near[:, 0] if among is None else among[near[:, 0]]
        return distance.mean(axis=1) / np.sqrt(rows.shape[1]), nearest

    def own_distances(self, k: int) -> Floats:
        """Mean distance of each reference protein to its k nearest others, ``(M,)``; empty with a single protein."""
        count = min(k + 1, len(self.rows))
        if count < 2:
            return np.empty(0)
        near, distance = nearest_rows(self.rows, self.rows, count, cosine=False)
        own = near == np.arange(len(near))[:, None]
        own[~own.any(axis=1), 0] = True  # a twin stands in its place
        others: Floats = np.where(own, 0, distance).sum(axis=1) / (count - 1)
        return others / np.sqrt(self.rows.shape[1])


def summary(
    reference: NDArray[Any], parts: Iterable[tuple[NDArray[np.int64], NDArray[Any]]], k: int = NEIGHBOURS
) -> dict[str, Any]:
    """What a manifest keeps of validation distances.

    Args:
        reference: ``(M, D)`` training representations, as the bundle gets them.
        parts: One for each fold: numbers of the reference proteins that were its training rows, and the ``(n, D)``
            representations of its validation rows.
        k: Number of neighbours that a distance is the mean over.

    Returns:
        ``k``, ``rows``, ``distances`` (ascending: all, or 1,001 quantiles), ``quantile`` and ``threshold``; empty if
        nothing could be measured.
    """
    space = Space.of(reference)
    distances = [space.distances(values, k, among=among)[0] for among, values in parts if len(among) and len(values)]
    together = np.sort(np.concatenate(distances)) if distances else np.empty(0)
    if not len(together):
        return {}
    kept = together
    if len(together) > MOST_DISTANCES:
        kept = np.quantile(together, np.linspace(0, 1, MOST_DISTANCES), method="higher")
    return {
        "k": k,
        "rows": len(together),
        "distances": [round(float(value), 6) for value in kept],
        "quantile": 1 - SHARE,
        "threshold": threshold(kept, SHARE),
    }


def threshold(distances: NDArray[Any], share: float) -> float:
    """The distance beyond which the share ``share`` of validation proteins lies, about."""
    return round(float(np.quantile(distances, 1 - share, method="higher")), 6)


@dataclass(frozen=True)
class Novelty:
    """Tells which proteins are unlike the training proteins.

    Attributes:
        space: Scaled embedding space in which distances are measured.
        ids: Ids of the M reference proteins.
        labels: Labels of the M reference proteins.
        k: Number of neighbours that a distance is the mean over.
        share: Share of validation proteins that lie beyond the threshold.
        threshold: Distance beyond which a protein is novel.
        distances: Ascending distances that it was chosen from.
        rows: Number of proteins behind these distances.
        from_validation: False if the bundle has none of validation proteins: they are then of the training proteins to
            each other.
    """

    space: Space
    ids: Sequence[str]
    labels: Sequence[str]
    k: int
    share: float
    threshold: float
    distances: Floats
    rows: int
    from_validation: bool

    @classmethod
    def of(
        cls, reference: tuple[Sequence[str], Sequence[str], NDArray[Any]], content: Mapping[str, Any] | None,
        share: float,
    ) -> Novelty | None:
        """From a bundle.

        Args:
            reference: Ids, labels and ``(M, D)`` representations of training proteins.
            content: The manifest's ``novelty``, from :func:`summary`; None or empty if there is none.
            share: Share of validation proteins (0-1) that may lie beyond the threshold.

        Returns:
            None if there is nothing to compare with.

        Raises:
            UserError: The manifest's distances make no sense.
        """
        ids, labels, rows = reference
        if not len(rows):
            return None
        space = Space.of(rows)
        try:
            k = int(content["k"]) if content else NEIGHBOURS
            distances = np.asarray(content["distances"], np.float64) if content else space.own_distances(k)
            count = int(content["rows"]) if content else len(distances)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"The bundle's distances of validation proteins make no sense ({error})",
                fix="Give the bundle as the suite wrote it",
            ) from error
        if k < 1 or not np.isfinite(distances).all():
            raise UserError(
                "The bundle's distances of validation proteins make no sense",
                fix="Give the bundle as the suite wrote it",
            )
        if not len(distances):
            return None
        return cls(space, ids, labels, k, share, threshold(distances, share), distances, count, bool(content))

    def judge(self, states: NDArray[Any]) -> tuple[Floats, NDArray[np.bool_], NDArray[np.int64]]:
        """Distance, whether it is beyond the threshold, and the nearest reference protein, each ``(N,)``."""
        distance, nearest = self.space.distances(states, self.k)
        return distance, distance > self.threshold, nearest
