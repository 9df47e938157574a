"""The picture of a comparison of embeddings: lengths, places, components, distances from the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from plm.jobs.compare_embeddings.checks import EmbeddingFindings, Judged
from plm.scoring.novelty import Space
from plm.telling.figures import COLOURS, GREY, new_figure, save, share_axis

_DRAWN = 2000
_NEW, _REFERENCE, _DRIFTED = COLOURS[0], GREY, COLOURS[1]
_BINS = 40


def drift_figure(findings: EmbeddingFindings, path: str | Path) -> None:
    """Draws four panels: lengths of the vectors, PCA plane, components, and distances (or variance, without reference).

    Args:
        findings: The measured sets, and the new one against the reference.
        path: PNG file to write.
    """
    figure, axes = new_figure(10.4, 8.6, 2, 2)
    _norms(axes[0, 0], findings)
    _plane(axes[0, 1], findings)
    _components(axes[1, 0], findings)
    if findings.proteins is not None:
        _distances(axes[1, 1], findings)
    else:
        _variance(axes[1, 1], findings)
    save(figure, path)


def _colour(one: Judged) -> str:
    return _REFERENCE if one.name == "reference" else _NEW


def _norms(panel: Any, findings: EmbeddingFindings) -> None:
    values = [one.quality.norm[one.quality.finite] for one in findings.sets]
    together = np.concatenate(values)
    edges = np.linspace(together.min(), together.max() + 1e-9 * max(together.max(), 1), _BINS + 1)
    for one, norms in zip(findings.sets, values, strict=True):
        weights = np.full(len(norms), 1 / len(norms))
        # One filled and one as an outline: equal distributions would hide each other.
        outline = (
            {"histtype": "step", "linewidth": 1.8} if one is findings.new and len(findings.sets) > 1 else {"alpha": 0.5}
        )
        panel.hist(
            norms, edges, weights=weights, color=_colour(one), label=f"{one.name} (n = {len(norms):,})", **outline
        )
    for number, end in enumerate(findings.new.quality.norm_limits):
        if edges[0] <= end <= edges[-1]:
            panel.axvline(end, color="black", linestyle=":", linewidth=1.2, label="" if number else "usual range")
    panel.set(xlabel="Length of the embedding (norm)", ylabel="Share of proteins", title="Lengths")
    share_axis(panel.yaxis)
    panel.legend(loc="best")


def _plane(panel: Any, findings: EmbeddingFindings) -> None:
    """The two main directions of the reference, or of the set alone."""
    from sklearn.decomposition import PCA

    base = findings.sets[0]
    space = Space.of(base.side.matrix[base.quality.sample])
    panel.set(title=f"Main directions of the {base.name if len(findings.sets) > 1 else 'set'}")
    if (~base.quality.constant).sum() < 2:
        panel.text(0.5, 0.5, "fewer than two components vary", ha="center", transform=panel.transAxes)
        return
    pca = PCA(2, svd_solver="randomized" if min(space.rows.shape) > 50 else "full", random_state=0).fit(space.rows)
    for one in findings.sets:
        rows = one.quality.sample
        if len(rows) > _DRAWN:
            rows = rows[np.linspace(0, len(rows) - 1, _DRAWN).astype(int)]
        points = pca.transform((one.side.matrix[rows] - space.mean) / space.scale)
        marker = "o" if one.name == "reference" else "^"
        panel.scatter(*points.T, s=14, c=_colour(one), marker=marker, alpha=0.5, linewidths=0, label=one.name)
        if one.name == "new" and findings.proteins is not None and findings.proteins.drifted[rows].any():
            far = points[findings.proteins.drifted[rows]]
            panel.scatter(*far.T, s=26, facecolors="none", edgecolors=_DRIFTED, linewidths=1, label="new, drifted")
    share = pca.explained_variance_ratio_
    panel.set(xlabel=f"PC1 ({share[0]:.0%} of the variance)", ylabel=f"PC2 ({share[1]:.0%})")
    panel.legend(loc="best")


def _components(panel: Any, findings: EmbeddingFindings) -> None:
    new = findings.new.quality
    if findings.tests is None or findings.reference is None:
        order = np.sort(new.sd)[::-1]
        panel.plot(np.arange(1, len(order) + 1), order, color=_NEW, marker="." if len(order) < 100 else "")
        panel.set(xlabel="Component, by deviation", ylabel="Standard deviation", title="Components")
        if order[order > 0].size and order.max() > 20 * np.median(order) > 0 and order.min() > 0:
            panel.set_yscale("log")
        return
    other, differ = findings.reference.quality, findings.tests.differ
    shift = (new.mean - other.mean) / np.where(other.sd > 0, other.sd, np.nan)
    for chosen, shade, name in ((~differ, GREY, "alike"), (differ, _DRIFTED, "differ (FDR 5 %)")):
        panel.scatter(
            shift[chosen], findings.tests.ks[chosen], s=16, c=shade, linewidths=0, alpha=0.7,
            marker="^" if shade == _DRIFTED else "o", label=f"{name}: {int(chosen.sum())}",
        )
    panel.set(
        xlabel="Shift of the mean (standard deviations of the reference)", ylabel="Kolmogorov-Smirnov statistic",
        title="Components", ylim=(0, None),
    )
    panel.legend(loc="best")


def _distances(panel: Any, findings: EmbeddingFindings) -> None:
    proteins = findings.proteins
    assert proteins is not None
    values = proteins.distance[np.isfinite(proteins.distance)]
    # A few proteins far off must not squeeze the rest into one bar.
    end = max(float(np.quantile(values, 0.99)), proteins.limit if np.isfinite(proteins.limit) else 0.0, 1e-9) * 1.15
    panel.hist(
        np.minimum(values, end), np.linspace(0, end, _BINS + 1), color=_NEW, alpha=0.6,
        weights=np.full(len(values), 1 / len(values)),
    )
    if np.isfinite(proteins.limit):
        text = f"limit: {1 - proteins.share:.0%} of proteins like the reference"
        panel.axvline(proteins.limit, color=_DRIFTED, linestyle="--", linewidth=1.8, label=text)
        panel.legend(loc="best")
    panel.set(
        xlabel=f"Distance to the {proteins.k} nearest reference proteins", ylabel="Share of new proteins",
        title=f"{int(proteins.drifted.sum()):,} of {len(values):,} new proteins drifted",
    )
    share_axis(panel.yaxis)


def _variance(panel: Any, findings: EmbeddingFindings) -> None:
    from sklearn.decomposition import PCA

    panel.set(title="Variance")
    if findings.new.quality.constant.all():
        panel.text(0.5, 0.5, "nothing varies", ha="center", transform=panel.transAxes)
        return
    matrix = findings.new.side.matrix[findings.new.quality.sample]
    count = min(50, *matrix.shape)
    solver = "full" if min(matrix.shape) <= 50 else "randomized"
    shares = PCA(count, svd_solver=solver, random_state=0).fit(matrix).explained_variance_ratio_
    panel.plot(np.arange(1, count + 1), np.cumsum(shares), color=_NEW, marker="." if count <= 50 else "")
    effective = findings.new.quality.effective
    panel.set(
        xlabel="Principal components", ylabel="Share of the variance, added up", ylim=(0, 1),
        title="" if effective != effective else f"Effective dimension {effective:.3g} of {matrix.shape[1]}",
    )
