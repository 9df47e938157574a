"""Leakage: every kind is seen, and the published split of the tutorial comes out as leaking."""

from __future__ import annotations

import csv
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from plm.data import homology
from plm.data.examples import Example
from plm.data.leakage import counts, measure, near, to_frame

LETTERS = "ACDEFGHIKLMNPQRSTVWY"


def _window(seed: int) -> str:
    return "".join(random.Random(seed).choices(LETTERS, k=33))


def _site(name: str, split: str, sequence: str, protein: str, place: int, group: str = "") -> Example:
    return Example(name, sequence, "1", 16, protein, place, group=group or protein, split=split)


def test_each_kind_of_leak_is_seen() -> None:
    window = _window(1)
    alike = window[:20] + _window(2)[20:]
    shifted = _window(3)[:18] + window[:15]
    examples = [
        _site("train", "train", window, "P1", 100),
        _site("valid", "valid", _window(4), "P2", 50),
        _site("same protein", "test", _window(5), "P1", 120),
        _site("far in the same protein", "test", _window(6), "P1", 900),
        _site("alike", "test", alike, "P3", 10),
        _site("shares a stretch", "test", shifted, "P4", 10),
        _site("same group as valid", "test", _window(7), "P5", 10, group="P2"),
        _site("clean", "test", _window(8), "P6", 10),
    ]
    leaks = {leak.id: leak for leak in measure(examples, identity=0.5, coverage=0.8, threads=1)}
    assert list(leaks) == [example.id for example in examples[1:]]
    assert {name for name, leak in leaks.items() if not leak.leaks} == {"valid", "clean"}
    assert leaks["same protein"].same_protein and leaks["same protein"].distance == 20
    assert leaks["far in the same protein"].distance == 800
    names = ("same protein", "far in the same protein", "clean")
    assert [near(leaks[name], 33) for name in names] == [True, False, False]
    assert leaks["alike"].nearest == "train" and leaks["alike"].identity >= 20 / 33
    assert leaks["shares a stretch"].shared_stretch and not leaks["shares a stretch"].same_group
    assert leaks["same group as valid"].same_group and not leaks["same group as valid"].same_protein
    found = counts([leak for leak in leaks.values() if leak.split == "test"], 33)
    assert (found["records"], found["leaks"], found["same protein"], found["within window"]) == (6, 5, 2, 1)
    table = to_frame(list(leaks.values()), 33)
    row = table.set_index("id").loc["same protein"]
    assert row[["same_protein", "residues_to_site", "within_window"]].tolist() == ["yes", "20", "yes"]


def test_folds_are_compared_with_all_other_folds() -> None:
    examples = [
        _site("a", "1", _window(1), "P1", 5),
        _site("b", "2", _window(1), "P2", 5),
        _site("c", "3", _window(2), "P3", 5),
    ]
    leaks = {leak.id: leak for leak in measure(examples, identity=0.5, coverage=0.8, threads=1)}
    assert (leaks["a"].nearest, leaks["b"].nearest) == ("b", "a")
    assert [leaks[name].leaks for name in "abc"] == [True, True, False]


def test_nothing_to_compare() -> None:
    assert measure([_site("a", "train", _window(1), "P1", 5)], identity=None, coverage=0.8, threads=1) == []
    assert list(to_frame([], 33).columns)[:2] == ["id", "split"]


@pytest.mark.realdata
def test_the_tutorials_published_split_leaks(
    shared_data: Path, run_stage: Callable[..., object], tmp_path: Path
) -> None:
    folder = shared_data / "dephos"
    done = run_stage(
        "plm_preprocess", "--input", folder / "gtn_train.fasta", "--test", folder / "gtn_test.fasta", "--task", "site",
        "--split", "homology", "--dataset", tmp_path / "d", "--rejected", tmp_path / "r", "--leakage", tmp_path / "l",
        "--report", tmp_path / "report",
    )
    assert done.returncode == 0, done.stderr  # type: ignore[attr-defined]
    with (tmp_path / "l").open() as handle:
        rows = list(csv.DictReader(handle, delimiter="\t"))
    test = [row for row in rows if row["split"] == "test"]
    assert len(test) == 50
    assert sum(row["same_protein"] == "yes" for row in test) == 30
    assert sum(row["within_window"] == "yes" for row in test) == 9
    assert not any(row["leaks"] == "yes" for row in rows if row["split"] == "valid")
    assert "LEAKAGE" in (tmp_path / "report").read_text().splitlines()[0]


def test_nearest_is_found_behind_many_that_share_one_domain_only() -> None:
    generator = np.random.default_rng(4)
    letters = np.array(list("ACDEFGHIKLMNPQRSTVWY"))

    def changed(sequence: np.ndarray, share: float) -> np.ndarray:
        swap = generator.random(len(sequence)) < share
        return np.where(swap, generator.choice(letters, len(sequence)), sequence)

    query = generator.choice(letters, 400)
    crowd = [np.concatenate([generator.choice(letters, 300), changed(query[:200], 0.02)]) for _ in range(130)]
    relative = changed(query, 0.5)
    targets = ["".join(one) for one in [*crowd, relative]]
    [(place, identity)] = homology.nearest(["".join(query)], targets, threads=1, method="mmseqs")
    assert place == 130
    assert 0.4 < identity < 0.7
