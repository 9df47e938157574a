"""What is measured of one set of embeddings or two, and what to think of each figure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from plm.data.embeddings.reference_and_queries import Side
from plm.jobs.compare_embeddings.drift import LIMIT, ProteinSet, Tests
from plm.jobs.compare_embeddings.quality import FEWEST_COMPONENTS, NEAR, Flags, Quality
from plm.scoring.separation import Bounds, SpaceLabels

CHECK_COLUMNS = ("set", "check", "part", "result", "value", "low", "high", "expected", "p_value", "rows", "note")
OK, LOOK, BAD = "fine", "look", "bad"
_MOST_CLASS_ROWS = 50
IMBALANCE = 10


@dataclass(frozen=True)
class Judged:
    """One set, measured.

    Attributes:
        name: ``embeddings``, ``reference`` or ``new``.
        side: Embeddings with their groups and labels.
        labels: Labels of the rows.
        quality: Near copies, norms and spread of the rows.
    """

    name: str
    side: Side
    labels: SpaceLabels
    quality: Quality


@dataclass(frozen=True)
class EmbeddingFindings:
    """Everything that is told.

    Attributes:
        new: The set that was asked about.
        reference: Set that the new one is compared with, or None.
        proteins: Each new protein against the reference; None without.
        tests: Tests of the two sets as wholes; None if there are none.
        why_not: Why there are no tests; empty if there are.
        label_p: p value of equal shares of the classes (equal distribution of the numbers) in both sets; NaN if not
            both are labelled.
        source: Where the labels come from, in words.
        bundle: The reference is that of a bundle.
        most: Most rows of a sample.
        seed: Seed of the samples.
        notes: Sentences that a reader should know.
    """

    new: Judged
    reference: Judged | None
    proteins: ProteinSet | None
    tests: Tests | None
    why_not: str
    label_p: float
    source: str
    bundle: bool
    most: int
    seed: int
    notes: list[str]

    @property
    def sets(self) -> list[Judged]:
        """The reference, if there is one, and the new set."""
        return [*([self.reference] if self.reference else []), self.new]


@dataclass(frozen=True)
class Check(Bounds):
    """One row of the table of checks; NaN stands for undefined."""

    set: str
    check: str
    part: str
    result: str
    value: float
    rows: int


def label_change(one: SpaceLabels, other: SpaceLabels) -> float:
    """p value of equal class shares (chi-squared) or equally distributed numbers (Kolmogorov-Smirnov); NaN without."""
    from scipy.stats import chi2_contingency, ks_2samp

    if one.kind == "none" or other.kind == "none" or not one.known.any() or not other.known.any():
        return math.nan
    if one.kind == "number":
        return float(ks_2samp(one.numbers[one.known], other.numbers[other.known]).pvalue)
    counts = np.stack([np.bincount(side.codes[side.known], minlength=len(side.classes)) for side in (one, other)])
    counts = counts[:, counts.sum(axis=0) > 0]
    return float(chi2_contingency(counts).pvalue) if counts.shape[1] > 1 else 1.0


# -------------------------------------------------------------------------------------------------------------- checks


def checks(findings: EmbeddingFindings) -> list[Check]:
    """Everything that was measured of the sets, each with what to think of it."""
    rows = [check for one in findings.sets for check in _quality_checks(one)]
    if findings.label_p == findings.label_p:
        result = LOOK if findings.label_p < 0.05 else OK
        rows.append(
            Check(
                "both", "labels_alike", "all", result, math.nan,
                sum(int(one.labels.known.sum()) for one in findings.sets), p_value=findings.label_p,
                note="chi-squared test of class shares, or Kolmogorov-Smirnov test of numbers",
            )
        )
    return [*rows, *_drift_checks(findings)]


def _quality_checks(one: Judged) -> Iterator[Check]:
    quality, total = one.quality, len(one.side)
    finite = int(quality.finite.sum())

    def count(name: str, flags: Flags, result: str, note: str, rows: int = total) -> Check:
        hits = int(flags.sum())
        return Check(one.name, name, "all", result if hits else OK, hits, rows, note=note)

    yield Check(one.name, "dimension", "all", OK, one.side.description.dimension, total)
    yield count("not_finite", ~quality.finite, BAD, "embeddings with NaN or infinity")
    yield count("zero", quality.zero, BAD, "embeddings of nothing but zeros", finite)
    yield count("duplicates", quality.copies, LOOK, "embeddings equal to an earlier one", finite)
    sampled = len(quality.sample)
    if one.side.description.dimension >= FEWEST_COMPONENTS:
        note = f"nearly equal to an earlier one (within {NEAR:g} standard deviations a component)"
        some = f"; random sample of {sampled} of {finite}" if sampled < finite else ""
        yield count("near_duplicates", quality.near_copies & ~quality.copies, LOOK, note + some, sampled)
    low, high = quality.norm_limits
    middle = float(np.median(quality.norm[quality.finite]))
    yield Check(
        one.name, "norm", "all", OK, middle, finite, low=low, high=high,
        note="median length; low and high bound the usual",
    )
    yield count("norm_outliers", quality.odd, LOOK, "embeddings of unusual length", finite)
    dimension = one.side.description.dimension
    yield count("constant_components", quality.constant, LOOK, "components that are the same in all", dimension)
    share = quality.largest
    result = LOOK if share > 0.5 and dimension > 2 else OK
    yield Check(
        one.name, "largest_component", f"e{int(quality.sd.argmax())}", result, share, finite, expected=1 / dimension,
        note="share of the variance in one component",
    )
    yield Check(
        one.name, "effective_dimension", "all", OK, quality.effective, sampled,
        note="directions that would carry the variance if they shared it evenly",
    )
    yield from _label_checks(one)


def _label_checks(one: Judged) -> Iterator[Check]:
    labels, total = one.labels, len(one.side)
    if labels.kind == "none" or not labels.known.any():
        return
    missing = int((~labels.known).sum())
    yield Check(one.name, "without_label", "all", LOOK if missing else OK, missing, total)
    if labels.kind == "number":
        values = labels.numbers[labels.known]
        yield Check(
            one.name, "numbers", "all", OK, float(np.median(values)), len(values), low=float(values.min()),
            high=float(values.max()), note="median, smallest and largest label",
        )
        return
    sizes = np.bincount(labels.codes[labels.known], minlength=len(labels.classes))
    sizes = sizes[sizes > 0]
    result = OK if len(sizes) > 1 and sizes.max() <= IMBALANCE * sizes.min() else LOOK
    yield Check(
        one.name, "imbalance", "all", result, float(sizes.max() / sizes.min()), int(sizes.sum()),
        note=f"{len(sizes)} classes; largest over smallest",
    )
    bulk = np.bincount(labels.codes[labels.known], minlength=len(labels.classes))
    for index, name in list(enumerate(labels.classes))[:_MOST_CLASS_ROWS]:
        size = int(bulk[index])
        note = "too few to split and to judge" if 0 < size < 10 else ""
        yield Check(one.name, "class", name, LOOK if note else OK, size, int(sizes.sum()), note=note)


def _drift_checks(findings: EmbeddingFindings) -> Iterator[Check]:
    proteins, tests = findings.proteins, findings.tests
    if proteins is None or findings.reference is None:
        return
    finite = int(findings.new.quality.finite.sum())
    equal, shared = int((proteins.same >= 0).sum()), shared_ids(findings)
    yield Check(
        "both", "same_id", "all", LOOK if shared else OK, shared, len(findings.new.side),
        note="ids that are in the reference too",
    )
    yield Check(
        "both", "same_numbers", "all", LOOK if equal else OK, equal, finite,
        note="new proteins whose embedding is in the reference too",
    )
    near = int(proteins.near.sum()) - equal
    if findings.new.side.description.dimension >= FEWEST_COMPONENTS:
        yield Check(
            "both", "near_duplicates", "all", LOOK if near else OK, near, finite,
            note=f"new proteins nearly equal to one of the {proteins.compared} compared of the reference",
        )
    low, high = drifted_range(findings)
    result = LOOK if more_drifted(findings) else OK
    drifted = int(proteins.drifted.sum())
    yield Check(
        "both", "drifted_proteins", "all", result, drifted / finite, finite, low=low, high=high,
        expected=proteins.share,
        note=f"share beyond distance {proteins.limit:.4g} to the {proteins.k} nearest of {proteins.compared}",
    )
    if tests is None:
        return
    used = sum(tests.rows)
    yield Check(
        "both", "classifier_auroc", "all", LOOK if tests.auroc_p < LIMIT else OK, tests.auroc, used, low=tests.low,
        high=tests.high, expected=0.5, p_value=tests.auroc_p, note="cross-validated logistic regression",
    )
    yield Check(
        "both", "energy_distance", "all", LOOK if tests.energy_p < LIMIT else OK, tests.energy, sum(tests.energy_rows),
        expected=0, p_value=tests.energy_p, note="share of the mean distance; by permutation",
    )
    yield Check(
        "both", "differing_components", "all", LOOK if tests.differ.any() else OK, int(tests.differ.sum()), used,
        expected=0, note="Kolmogorov-Smirnov at a false discovery rate of 0.05",
    )


def drifted_range(findings: EmbeddingFindings) -> tuple[float, float]:
    """95 % interval (Wilson) of the share of new proteins that drifted."""
    from scipy.stats import binomtest

    assert findings.proteins is not None
    finite = int(findings.new.quality.finite.sum())
    ends = binomtest(int(findings.proteins.drifted.sum()), finite).proportion_ci(0.95, method="wilson")
    return float(ends.low), float(ends.high)


def more_drifted(findings: EmbeddingFindings) -> bool:
    """Whether more new proteins drifted than chance explains (one-sided, 2.5 %).

    The limit is an order statistic of the reference's own distances, so that of n proteins like the reference a
    beta-binomial number lies beyond it; an interval of the share alone would take the limit for known.
    """
    from scipy.stats import betabinom

    proteins = findings.proteins
    assert proteins is not None
    if not proteins.limit_rows or not math.isfinite(proteins.limit):
        return False
    beyond = int((proteins.limit_rows - 1) * proteins.share + 1e-9)
    law = betabinom(int(findings.new.quality.finite.sum()), beyond + 1, proteins.limit_rows - beyond)
    return bool(law.sf(int(proteins.drifted.sum()) - 1) < 0.025)


def shared_ids(findings: EmbeddingFindings) -> int:
    assert findings.reference is not None
    there, here = set(findings.reference.side.keys()), findings.new.side.keys()
    return sum(key in there for key in here)
