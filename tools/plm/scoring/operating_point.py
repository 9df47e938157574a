"""Where a two-class model calls a site: threshold, stated prevalence, tolerated false-positive rate.

Training sets are balanced and proteomes are not, so one threshold cannot serve both; a bundle keeps the scores of its
validation rows, from which the rates at any threshold can be read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from plm.errors import UserError
from plm.scoring.calibration import adjust_prevalence, threshold_for_fpr
from plm.scoring.expected_calls import Expected, Rates, expected_calls

Floats = NDArray[np.float64]
MOST_SCORES = 1001
OWN_THRESHOLD = "chosen on the validation rows of the training"
DIGITS = 6
"""Decimals of a probability in tables; calls are decided on what the table shows."""


def score_summary(probabilities: ArrayLike, labels: ArrayLike) -> dict[str, dict[str, Any]]:
    """Validation scores small enough for a manifest.

    Args:
        probabilities: (N,) calibrated probability of the positive class, validation rows only.
        labels: (N,) 0 or 1.

    Returns:
        ``negatives`` and ``positives``, each with ``count`` and ascending ``scores``: all of them, or 1,001 quantiles
        if there are more (each one an observed score).
    """
    values, truth = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    summary = {}
    for name, label in (("negatives", 0), ("positives", 1)):
        scores = np.sort(values[truth == label])
        kept = scores
        if len(scores) > MOST_SCORES:
            kept = np.quantile(scores, np.linspace(0, 1, MOST_SCORES), method="higher")
        summary[name] = {"count": len(scores), "scores": [round(float(score), DIGITS) for score in kept]}
    return summary


@dataclass(frozen=True)
class OperatingPoint:
    """How probabilities become what is shown, and what is called.

    Attributes:
        threshold: On the probabilities as the bundle gives them, or, with a prevalence that the user stated, on the
            adjusted ones.
        training_prevalence: Share of positives among the training rows, 0-1; None if unknown.
        prevalence: Share of real sites among the candidates, as the user stated it, 0-1; None if not.
        source: Where the threshold comes from, in words.
        negatives: Ascending scores of validation negatives, empty if the bundle has none.
        positives: The same of validation positives.
        counts: How many negatives and positives these scores stand for.
    """

    threshold: float
    training_prevalence: float | None = None
    prevalence: float | None = None
    source: str = OWN_THRESHOLD
    negatives: Sequence[float] = ()
    positives: Sequence[float] = ()
    counts: tuple[int, int] = (0, 0)

    @classmethod
    def choose(
        cls, manifest: Mapping[str, Any], *, false_positive_rate: float | None = None, prevalence: float | None = None,
        where: str = "",
    ) -> OperatingPoint:
        """The operating point of a two-class bundle.

        Args:
            manifest: Content of the bundle's ``manifest.json``.
            false_positive_rate: Tolerated share of negatives called positive, 0-1; replaces the bundle's threshold.
            prevalence: Share of real sites among the candidates, 0-1; probabilities are adjusted to it.
            where: Name of the bundle, for messages.

        Raises:
            UserError: The bundle does not hold what the choice needs.
        """
        scores = (manifest.get("calibration") or {}).get("validation_scores") or {}
        negatives, positives = scores.get("negatives", {}), scores.get("positives", {})
        training = manifest.get("training_prevalence")
        if prevalence is not None and training is None:
            raise UserError(
                "The bundle does not say how frequent sites were in its training set", where=where,
                fix="Leave --prevalence out, or train it anew",
            )
        point = cls(
            float(manifest["threshold"]), None if training is None else float(training), prevalence, OWN_THRESHOLD,
            tuple(negatives.get("scores", ())), tuple(positives.get("scores", ())),
            (int(negatives.get("count", 0)), int(positives.get("count", 0))),
        )
        if false_positive_rate is None:
            return point
        if not point.negatives:
            raise UserError(
                "The bundle holds no scores of validation negatives, so no threshold can be derived from a rate",
                where=where,
                fix="Leave --false-positive-rate out, or train it anew with negatives in its validation rows",
            )
        # On the scale of the tables, and half a digit above a negative's score, so that the table itself shows why
        # that score is not called.
        values = point.shown(np.asarray(point.negatives))
        threshold = threshold_for_fpr(values, np.zeros(len(values)), false_positive_rate)
        if threshold > values.min():
            threshold = round(threshold, DIGITS) + 0.5 * 10**-DIGITS
        source = f"chosen for a false-positive rate of at most {100 * false_positive_rate:g} %"
        return replace(point, threshold=threshold, source=source)

    def shown(self, positive: Floats) -> Floats:
        """The probabilities ``(N,)`` that tables show, from those of the bundle: adjusted to a stated prevalence."""
        values = np.asarray(positive, dtype=np.float64)
        if self.prevalence is not None and self.training_prevalence is not None:
            values = adjust_prevalence(values, self.training_prevalence, self.prevalence)
        return np.round(values, DIGITS)

    def called(self, shown: Floats) -> NDArray[np.bool_]:
        """Which of the probabilities of :meth:`shown` are called positive."""
        result: NDArray[np.bool_] = shown >= self.threshold
        return result

    def rates(self) -> tuple[float | None, float | None]:
        """Share of validation negatives and of validation positives that are called, 0-1; None where unknown."""
        rates: list[float | None] = []
        for scores in (self.negatives, self.positives):
            values = np.asarray(scores, dtype=np.float64)
            rates.append(float(self.called(self.shown(values)).mean()) if len(values) else None)
        return rates[0], rates[1]

    def expected(self, candidates: int, called: int, share: float | None = None) -> Expected | None:
        """False and true calls to expect among ``called`` of ``candidates``: :func:`expected_calls`.

        Args:
            candidates: Number of candidates that were judged.
            called: Number of candidates called at this threshold.
            share: Share of real sites among them, 0-1; None: what the calls suggest.
        """
        return expected_calls(candidates, called, *self.hits(), share)

    def hits(self) -> tuple[Rates, Rates]:
        """Of validation negatives and of validation positives: those called, and all of them."""
        false_rate, true_rate = self.rates()
        negatives, positives = self.counts
        return (round((false_rate or 0) * negatives), negatives), (round((true_rate or 0) * positives), positives)

    @property
    def unresolved(self) -> float | None:
        """The smallest false-positive rate that the validation negatives can show; None without them."""
        return 1 / self.counts[0] if self.counts[0] else None
