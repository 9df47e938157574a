"""Strata of identity to training."""

from __future__ import annotations

import numpy as np
from plm.scoring.assessment import strata


def test_rows_without_a_relative_are_a_stratum_of_their_own() -> None:
    found = dict(strata(np.array([0.0, 0.2, 0.3, 0.31, 0.5, 0.9, 1.0]), (30, 50)))
    assert {name: np.flatnonzero(inside).tolist() for name, inside in found.items()} == {
        "no relative in training": [0],
        "identity up to 30 %": [1, 2],
        "identity 30-50 %": [3, 4],
        "identity over 50 %": [5, 6],
    }


def test_without_such_rows_there_is_no_such_stratum() -> None:
    assert [name for name, _ in strata(np.array([0.4, 0.6]), (50,))] == ["identity up to 50 %", "identity over 50 %"]
