"""Splits: groups never straddle, fractions and classes come close, the seed decides; clusters join all relatives."""

from __future__ import annotations

import random
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plm.data import homology
from plm.data.splits import assign, balance, joined_groups, quantile_strata
from plm.errors import UserError

LETTERS = "ACDEFGHIKLMNPQRSTVWY"


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 12), st.sampled_from("abc")), min_size=1, max_size=80),
    fractions=st.sampled_from([(0.7, 0.15, 0.15), (0.8, 0.2, 0.0), (0.2,) * 5, (1.0, 0.0, 0.0)]),
    seed=st.integers(0, 5),
)
def test_groups_never_straddle_and_parts_are_filled(
    rows: list[tuple[int, str]], fractions: tuple[float, ...], seed: int
) -> None:
    groups, strata = [str(group) for group, _ in rows], [stratum for _, stratum in rows]
    wanted = [part for part, fraction in enumerate(fractions) if fraction > 0]
    if len(set(groups)) < len(wanted):
        with pytest.raises(UserError, match="cannot be divided"):
            assign(groups, strata, fractions, seed)
        return
    parts = assign(groups, strata, fractions, seed)
    assert len(parts) == len(rows)
    for group in set(groups):
        assert len({part for part, name in zip(parts, groups, strict=True) if name == group}) == 1
    assert set(parts) == set(wanted)
    assert parts == assign(groups, strata, fractions, seed)


def test_sizes_and_classes_come_close() -> None:
    rng = random.Random(3)
    groups = [f"g{rng.randrange(150)}" for _ in range(1000)]
    strata = [rng.choice("aaaaaaaab") for _ in groups]
    parts = assign(groups, strata, (0.7, 0.15, 0.15), seed=1)
    for part, fraction in enumerate((0.7, 0.15, 0.15)):
        members = [stratum for stratum, own in zip(strata, parts, strict=True) if own == part]
        assert abs(len(members) / 1000 - fraction) < 0.02
        assert abs(members.count("b") / len(members) - strata.count("b") / 1000) < 0.03
    assert parts != assign(groups, strata, (0.7, 0.15, 0.15), seed=2)


def test_numbers_are_stratified_by_rank() -> None:
    strata = quantile_strata([0.1, 5.0, 3.0, 2.0, 9.0], bins=5)
    assert strata == ["0", "3", "2", "1", "4"]
    assert balance(["x", "x", "y"], ["a", "b", "a"]) == {"x": {"a": 1, "b": 1}, "y": {"a": 1}}


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=30))
def test_joined_groups_keep_protein_and_cluster_together(rows: list[tuple[int, int]]) -> None:
    proteins, clusters = [f"p{one}" for one, _ in rows], [f"c{two}" if two else "" for _, two in rows]
    groups = joined_groups(proteins, clusters)
    for i in range(len(rows)):
        for j in range(i):
            if proteins[i] == proteins[j] or (clusters[i] and clusters[i] == clusters[j]):
                assert groups[i] == groups[j]
    assert joined_groups(proteins) == joined_groups(proteins, [""] * len(rows))


def _best_identity(first: str, second: str) -> float:
    best = 0
    for offset in range(-len(second) + 1, len(first)):
        same = sum(first[i] == second[i - offset] != "X" for i in range(len(first)) if 0 <= i - offset < len(second))
        best = max(best, same)
    return best / min(len(first), len(second))


@settings(max_examples=60, deadline=None)
@given(
    sequences=st.lists(st.text("ACDX", min_size=1, max_size=20), min_size=2, max_size=8, unique=True),
    identity=st.sampled_from([0.4, 0.5, 0.7, 1.0]),
)
def test_exact_comparison_equals_the_plain_definition(sequences: list[str], identity: float) -> None:
    found = {(one.first, one.second): one.identity for one in homology.relatives(sequences, identity=identity)}
    for i in range(len(sequences)):
        for j in range(i + 1, len(sequences)):
            expected = _best_identity(sequences[i], sequences[j])
            if expected >= identity - 1e-9 or (i, j) in found:
                assert found[i, j] == pytest.approx(expected)
    nearest = homology.nearest(sequences[:1], sequences[1:])[0]
    assert nearest[1] == pytest.approx(max(_best_identity(sequences[0], other) for other in sequences[1:]))


def test_shifted_windows_of_one_protein_are_one_cluster() -> None:
    rng = random.Random(5)
    protein = "".join(rng.choices(LETTERS, k=80))
    windows = {"a": protein[0:33], "b": protein[10:43], "c": protein[30:63], "d": "".join(rng.choices(LETTERS, k=33))}
    clusters = homology.cluster(list(windows.items()))
    assert list(clusters) == list(windows)
    assert clusters == {"a": "a", "b": "a", "c": "a", "d": "d"}  # a and c share 3 residues, but each is kin of b


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    sequences = ["".join(row) for row in rng.choice(list("ACDE"), size=(90, 15))]
    whole = homology.relatives(sequences, identity=0.6)
    monkeypatch.setattr(homology, "_ROWS", 7)
    monkeypatch.setattr(homology, "_COLUMNS", 11)
    assert homology.relatives(sequences, identity=0.6, threads=2) == whole
    assert len(whole) > 10


def _relative(rng: random.Random, protein: str, replaced: float) -> str:
    return "".join(rng.choice(LETTERS) if rng.random() < replaced else letter for letter in protein)


def test_mmseqs_finds_families_fragments_and_copies() -> None:
    rng = random.Random(7)
    ancestors = ["".join(rng.choices(LETTERS, k=220)) for _ in range(4)]
    records = []
    for number, ancestor in enumerate(ancestors):
        records += [
            (f"{number}a", ancestor),
            (f"{number}b", _relative(rng, ancestor, 0.4)),
            (f"{number}c", ancestor[40:140]),
        ]
    records += [("copy", ancestors[0]), ("peptide", "MKVLAYAGE"), ("peptide copy", "MKVLAYAGE")]
    clusters = homology.cluster(records, identity=0.3, coverage=0.8, threads=1)
    for number in range(4):
        assert {clusters[f"{number}{member}"] for member in "abc"} == {f"{number}a"}
    assert clusters["copy"] == "0a"
    assert clusters["peptide copy"] == "peptide"
    near = homology.nearest(
        [ancestors[1], "".join(rng.choices(LETTERS, k=150))], [one for _, one in records], threads=1
    )
    assert near[0] == (3, 1.0)
    assert near[1][0] == -1


def test_absent_mmseqs_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(homology.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="MMseqs2 is missing"):
        homology.mmseqs_binary()


def test_failing_mmseqs_says_what_it_said(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "mmseqs"
    program.write_text("#!/bin/sh\necho 'no space left' >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(UserError, match="MMseqs2 failed: no space left"):
        homology.cluster([("a", "MKVLA" * 20), ("b", "MKVLA" * 21)])


@pytest.mark.slow
def test_fast_clusters_of_many_proteins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Families of about 58 % identity, which linclust would part."""
    chance = random.Random(7)
    records = []
    for family in range(6):
        ancestor = "".join(chance.choices("ACDEFGHIKLMNPQRSTVWY", k=150))
        for member in range(3):
            relative = "".join(chance.choice("ACDEFGHIKLMNPQRSTVWY") if chance.random() < 0.25 else x for x in ancestor)
            records.append((f"f{family}m{member}", relative[member * 5 :]))
    monkeypatch.setattr(homology, "MANY", 10)
    assert homology.choose_method([sequence for _, sequence in records]) == "cascade"
    found = homology.cluster(records, identity=0.3, coverage=0.8, threads=1)
    assert list(found) == [name for name, _ in records]
    assert found == {name: f"{name[:2]}m0" for name, _ in records}
