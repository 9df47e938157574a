"""Embeddings laid out on a plane: PCA, t-SNE and UMAP of references, with queries placed among them by transform.

Everything is fitted to the references alone. The chain is the same for all of them and ends in Euclidean distances, so
that pictures and scores speak of one space: scale each dimension (if asked for), bring rows to unit length (cosine),
centre. Distances between unit vectors rank as cosine distances do: |a - b|^2 = 2 (1 - cos(a, b)). t-SNE and UMAP see
the leading principal components and start from the first two, which keeps the large-scale order that a random start
loses (Kobak and Berens 2019, doi:10.1038/s41467-019-13056-x). Neighbours are searched exactly: an approximate search
would differ with the number of threads.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from plm.errors import UserError

Array = NDArray[np.float32]
METHODS = ("pca", "tsne", "umap")
METHOD_NAMES = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}
FEWEST_ROWS = 3
FEWEST_FOR_NEIGHBOURS = 10
"""Below this many rows t-SNE and UMAP draw their own starting conditions."""


@dataclass(frozen=True)
class ProjectionSettings:
    """How to project.

    Attributes:
        standardise: Scale each dimension to standard deviation 1 over the references.
        metric: Distance between embeddings.
        components: Leading principal components that t-SNE and UMAP see.
        perplexity: Perplexity of t-SNE: about how many neighbours a protein is attracted by.
        neighbours: Number of neighbours that UMAP ties a protein to.
        min_dist: Least distance of points in UMAP, 0-1.
        seed: Seed of everything that is drawn at random.
        threads: Processor threads of t-SNE; its result does not depend on them.
    """

    standardise: bool = False
    metric: Literal["euclidean", "cosine"] = "euclidean"
    components: int = 50
    perplexity: float = 30.0
    neighbours: int = 15
    min_dist: float = 0.1
    seed: int = 42
    threads: int = 1


@dataclass(frozen=True)
class Projection:
    """One method's picture.

    Attributes:
        method: ``pca``, ``tsne`` or ``umap``.
        references: (N, 2) float32.
        queries: (Q, 2) float32; (0, 2) without queries.
    """

    method: str
    references: Array
    queries: Array


@dataclass
class Projected:
    """All pictures and the space that they were made from.

    Attributes:
        references: (N, D) float32 after scaling and centring: the space that scores are computed in.
        queries: (Q, D) float32, likewise; (0, D) without queries.
        projections: Projections in the order asked for.
        explained: (K,) share of the references' variance that each leading component explains, 0-1.
        notes: Settings that had to be changed, in words.
    """

    references: Array
    queries: Array
    projections: list[Projection] = field(default_factory=list)
    explained: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    notes: list[str] = field(default_factory=list)


def project(
    references: Array, queries: Array | None, methods: Sequence[str], settings: ProjectionSettings,
    say: Callable[[str], None] = lambda line: None,
) -> Projected:
    """Fits every method to the references and lays the queries over them.

    Args:
        references: (N, D) finite float32; changed in place.
        queries: (Q, D) finite float32, changed in place, or None.
        methods: Names of methods, of :data:`METHODS`.
        settings: Distance, perplexity, neighbours, seed and threads of the projections.
        say: Told in a line what begins.

    Raises:
        UserError: Too few or too equal rows for what is asked.
    """
    if queries is None:
        queries = np.zeros((0, references.shape[1]), dtype=np.float32)
    _check(references, methods)
    prepare(references, queries, settings)
    projected = Projected(references, queries)
    reduced, reduced_queries = _reduce(projected, settings)
    for method in methods:
        more = f", then {len(queries)} queries" if len(queries) else ""
        say(f"{METHOD_NAMES[method]} of {len(references)} references{more}")
        if method == "pca":
            coordinates = reduced[:, :2].copy(), reduced_queries[:, :2].copy()
        elif method == "tsne":
            coordinates = _tsne(reduced, reduced_queries, settings, projected.notes)
        else:
            coordinates = _umap(reduced, reduced_queries, settings, projected.notes)
        projected.projections.append(Projection(method, *coordinates))
    return projected


def _check(references: Array, methods: Sequence[str]) -> None:
    rows, dimension = references.shape
    if rows < FEWEST_ROWS:
        raise UserError(
            f"There {'is' if rows == 1 else 'are'} {rows} embedding{'' if rows == 1 else 's'}; "
            f"a projection needs at least {FEWEST_ROWS}",
            where="--embeddings", fix="Give more proteins",
        )
    if dimension < 2:
        raise UserError(
            "The embeddings have one dimension; a projection needs two", where="--embeddings",
            fix="Give embeddings of a language model",
        )
    # Exactly equal rows are common (equal sequences); only if hardly any differ is there nothing to lay out.
    first = references[0]
    others = references[(references != first).any(axis=1)]
    if not len(others):
        raise UserError(
            f"All {rows} embeddings are equal, so there is nothing to lay out", where="--embeddings",
            fix="Check how the embeddings were made",
        )
    if not (others != others[0]).any():
        raise UserError(
            f"The {rows} embeddings hold only two different vectors, so there is nothing to lay out",
            where="--embeddings", fix="Give proteins that differ",
        )
    wanted = [METHOD_NAMES[method] for method in methods if method != "pca"]
    if wanted and rows < FEWEST_FOR_NEIGHBOURS:
        raise UserError(
            f"{' and '.join(wanted)} of {rows} embeddings show nothing but chance; they need at least "
            f"{FEWEST_FOR_NEIGHBOURS}",
            where="--methods", fix="Choose PCA alone",
        )


def prepare(references: Array, queries: Array, settings: ProjectionSettings) -> None:
    """Scales and centres both in place, as the references ask for.

    Args:
        references: (N, D) float32.
        queries: (Q, D) float32.
        settings: ``standardise`` and ``metric`` are read.
    """
    if settings.standardise:
        mean = references.mean(axis=0, dtype=np.float64)
        scale = references.std(axis=0, dtype=np.float64)
        # Rounding leaves a constant dimension a tiny spread, which scaling would blow up.
        scale[scale <= 1e-6 * np.maximum(np.abs(mean), 1e-12)] = np.inf
        for rows in (references, queries):
            rows -= mean.astype(np.float32)
            rows /= scale.astype(np.float32)
    if settings.metric == "cosine":
        for rows in (references, queries):
            length = np.linalg.norm(rows, axis=1, keepdims=True)
            rows /= np.where(length > 0, length, 1)
    mean = references.mean(axis=0, dtype=np.float64).astype(np.float32)
    references -= mean
    queries -= mean


def _reduce(projected: Projected, settings: ProjectionSettings) -> tuple[Array, Array]:
    """Scores on the leading principal components, (N, K) and (Q, K)."""
    from sklearn.decomposition import PCA

    rows, dimension = projected.references.shape
    count = min(max(settings.components, 2), rows - 1, dimension)
    # Both are exact; the covariance is the cheaper way unless there are more dimensions than rows.
    model = PCA(count, svd_solver="covariance_eigh" if rows >= dimension else "full")
    reduced = model.fit_transform(projected.references)
    projected.explained = np.nan_to_num(np.asarray(model.explained_variance_ratio_, dtype=np.float64))
    queries = model.transform(projected.queries) if len(projected.queries) else np.zeros((0, count))
    return np.ascontiguousarray(reduced, np.float32), np.ascontiguousarray(queries, np.float32)


def _tsne(reduced: Array, queries: Array, settings: ProjectionSettings, notes: list[str]) -> tuple[Array, Array]:
    import openTSNE
    from openTSNE.affinity import PerplexityBasedNN
    from openTSNE.initialization import rescale
    from openTSNE.nearest_neighbors import Sklearn

    # A perplexity needs three times as many neighbours.
    highest = (len(reduced) - 1) / 3
    perplexity = settings.perplexity
    if perplexity > highest:
        perplexity = highest
        notes.append(
            f"The perplexity was reduced from {settings.perplexity:g} to {perplexity:.3g}: {len(reduced)} references "
            "allow no more."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # The index is given as an object: by its name openTSNE would first compile the approximate ones, for 20 s.
        count = min(len(reduced) - 1, math.ceil(3 * perplexity))
        index = Sklearn(reduced, count, n_jobs=settings.threads)
        affinities = PerplexityBasedNN(perplexity=perplexity, knn_index=index, n_jobs=settings.threads)
        start = rescale(reduced[:, :2].astype(np.float64))
        tsne = openTSNE.TSNE(
            perplexity=perplexity, initialization=start, n_jobs=settings.threads, random_state=_seed(settings)
        )
        fitted = tsne.fit(affinities=affinities)
        placed = np.zeros((0, 2))
        if len(queries):
            nearest = min(25, len(reduced) - 1)
            placed = fitted.transform(queries, perplexity=min(5.0, highest), k=nearest)
    return np.asarray(fitted, np.float32), np.asarray(placed, np.float32)


def _umap(reduced: Array, queries: Array, settings: ProjectionSettings, notes: list[str]) -> tuple[Array, Array]:
    from scipy.sparse import csr_matrix
    from sklearn.neighbors import NearestNeighbors

    rows = len(reduced)
    count = min(settings.neighbours, rows - 1)
    if count < settings.neighbours:
        notes.append(f"UMAP's neighbours were reduced from {settings.neighbours} to {count}: there are no more.")
    index = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(reduced)
    distances, places = _with_itself_first(*index.kneighbors(reduced))
    with warnings.catch_warnings():
        # It warns that neighbours found outside allow no transform (distances given as below do), that a seed means one
        # thread, and that TensorFlow is absent.
        warnings.simplefilter("ignore")
        from umap import UMAP

        fitted = UMAP(
            n_neighbors=count, min_dist=settings.min_dist, metric="precomputed", precomputed_knn=(places, distances),
            init=reduced[:, :2], random_state=_seed(settings), transform_seed=_seed(settings), n_jobs=1,
        ).fit(csr_matrix((rows, rows), dtype=np.float32))
        placed = np.zeros((0, 2))
        if len(queries):
            far, where = index.kneighbors(queries)
            starts = np.arange(0, far.size + 1, count)
            # An exact zero would count as absent.
            given = np.maximum(far, 1e-12).astype(np.float32)
            order = np.argsort(where, axis=1)
            matrix = csr_matrix(
                (np.take_along_axis(given, order, 1).ravel(), np.take_along_axis(where, order, 1).ravel(), starts),
                shape=(len(queries), rows),
            )
            placed = fitted.transform(matrix)
    return np.asarray(fitted.embedding_, np.float32), np.asarray(placed, np.float32)


def _with_itself_first(distances: NDArray[Any], places: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Each row's first neighbour is itself, also where others are equal to it; (N, K) both."""
    own = np.arange(len(places))
    distances, places = distances.astype(np.float32), places.copy()
    for row in np.flatnonzero(places[:, 0] != own):
        among = np.flatnonzero(places[row] == row)
        place = int(among[0]) if len(among) else places.shape[1] - 1
        places[row, 1 : place + 1] = places[row, :place].copy()
        distances[row, 1 : place + 1] = distances[row, :place].copy()
        places[row, 0] = row
    distances[:, 0] = 0
    return distances, places


def _seed(settings: ProjectionSettings) -> int:
    return settings.seed % 2**32
