"""How many of a scan's calls are false and how many true: one law, from validation rows and the calls themselves.

Of ``N`` candidates, ``C`` are called. Validation negatives tell how often a negative is called (``f``), validation
positives how often a real site is (``t``); both are known only as well as there are rows. If the share ``s`` of the
candidates is real, a candidate is called with probability ``r = t s + f (1 - s)``, and a call is false with probability
``f (1 - s) / r``. Nobody knows ``s``, but ``C`` tells of it: few calls mean few real sites (Rogan and Gladen 1978,
doi:10.1093/oxfordjournals.aje.a112510). False and true calls always add up to the calls.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_DRAWS = 20_000
_SEED = 1
_LEAST_EVIDENCE = 1e-9

Rates = tuple[int, int]
"""Validation rows that are called, and all of them."""


@dataclass(frozen=True)
class Expected:
    """What is to be expected of the calls.

    Attributes:
        called: Number of calls made.
        false: Expected false calls, ``called - true``.
        false_range: The ends of their 95 % interval.
        share: Share of real sites among the candidates, 0-1: as suggested by the calls, or as assumed.
        share_range: The ends of its 95 % interval; equal to it where it was assumed.
        calls_range: The 95 % interval of the number of calls that the share would give.
    """

    called: int
    false: float
    false_range: tuple[int, int]
    share: float
    share_range: tuple[float, float]
    calls_range: tuple[int, int]

    @property
    def true(self) -> float:
        """Expected true calls."""
        return self.called - self.false

    @property
    def true_range(self) -> tuple[int, int]:
        """The ends of their 95 % interval."""
        low, high = self.false_range
        return self.called - high, self.called - low

    @property
    def fits(self) -> bool:
        """Whether the share gives about as many calls as there are."""
        low, high = self.calls_range
        return low <= self.called <= high


def expected_calls(
    candidates: int, called: int, negatives: Rates, positives: Rates, share: float | None = None
) -> Expected | None:
    """False and true calls among those that were made.

    Args:
        candidates: Residues that were judged, ``N``.
        called: Number of candidates that were called, ``C``.
        negatives: Validation negatives: called, and all.
        positives: Validation positives: called, and all; nothing is known of them if there are none.
        share: Share of real sites among the candidates, 0-1; None: what the calls suggest (prior of Jeffreys).

    Returns:
        The expectation with 95 % intervals; None without validation negatives, or where the rates of validation rows
        cannot give so few (or many) calls whatever the share.
    """
    from scipy.special import betainc, betaincinv

    if not negatives[1] or not candidates:
        return None
    generator = np.random.default_rng(_SEED)
    # Uniform priors. Thresholds lie at a validation row's score more often than not, where they are exact.
    false_rate = generator.beta(negatives[0] + 1, negatives[1] - negatives[0] + 1, _DRAWS)
    true_rate = generator.beta(positives[0] + 1, positives[1] - positives[0] + 1, _DRAWS)
    if share is None:
        low, high = np.minimum(false_rate, true_rate), np.maximum(false_rate, true_rate)
        below, above = (betainc(called + 1, candidates - called + 1, ends) for ends in (low, high))
        evidence = (above - below) / np.maximum(high - low, 1e-12) / (candidates + 1)
        if evidence.mean() < _LEAST_EVIDENCE:
            return None
        kept = generator.choice(_DRAWS, _DRAWS, p=evidence / evidence.sum())
        low, high, below, above = (values[kept] for values in (low, high, below, above))
        rate = np.clip(betaincinv(called + 1, candidates - called + 1, generator.uniform(below, above)), low, high)
        shares = np.clip((rate - false_rate[kept]) / _apart(true_rate[kept] - false_rate[kept]), 0, 1)
        # From every share alike to the prior of Jeffreys: sites are rare more often than not.
        prior = 1 / np.sqrt(np.clip(shares * (1 - shares), 0.25 / candidates, None))
        again = generator.choice(_DRAWS, _DRAWS, p=prior / prior.sum())
        shares, false_rate, true_rate = shares[again], false_rate[kept][again], true_rate[kept][again]
    else:
        shares = np.full(_DRAWS, share)
    rate = true_rate * shares + false_rate * (1 - shares)
    wrong = false_rate * (1 - shares) / np.maximum(rate, 1e-300)
    calls = generator.binomial(candidates, np.clip(rate, 0, 1))
    if share is not None:
        # How well each pair of rates explains the calls: few calls speak for low rates.
        not_called = np.log1p(-np.minimum(rate, 1 - 1e-16))
        evidence = called * np.log(np.maximum(rate, 1e-300)) + (candidates - called) * not_called
        weights = np.exp(evidence - evidence.max())
        kept = generator.choice(_DRAWS, _DRAWS, p=weights / weights.sum())
        wrong = wrong[kept]
    false = generator.binomial(called, np.clip(wrong, 0, 1))
    return Expected(
        called, float(np.mean(called * wrong)), _interval(false), float(np.median(shares)),
        (float(np.quantile(shares, 0.025)), float(np.quantile(shares, 0.975))), _interval(calls),
    )


def _apart(difference: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(np.abs(difference) < 1e-12, 1e-12, difference)


def _interval(counts: NDArray[np.int64]) -> tuple[int, int]:
    low, high = np.quantile(counts, (0.025, 0.975), method="inverted_cdf")
    return int(low), int(high)
