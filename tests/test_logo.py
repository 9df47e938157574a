"""Sequence logos: counts and information against a hand's calculation, and pictures that say what there is."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import plm_classify_sites
import pytest
from matplotlib.collections import PathCollection
from plm.data.task import Task
from plm.jobs.classify_sites.candidates import Protein
from plm.jobs.classify_sites.logo import (
    LogoCounts,
    background_words,
    letter_heights,
    logo_figure,
    logo_reading,
    missing,
    share_differences,
)
from plm.jobs.classify_sites.tables import SiteAnswers
from plm.scoring.mutagenesis import AMINO_ACIDS
from plm.telling.figures import new_figure
from plm.telling.residue_groups import COLOUR_OF, ORDER
from plm.telling.sequence_logo import draw_stacks
from scipy.stats import fisher_exact

BINARY = Task("site", "class", ("0", "1"), "1")
LETTER = {letter: index for index, letter in enumerate(AMINO_ACIDS)}


def protein(sequence: str, letters: str = "Y") -> Protein:
    sites = tuple(at for at, letter in enumerate(sequence) if letter in letters)
    return Protein("p", "p", 1, sequence, sites, tuple(at + 1 for at in sites), len(sequence))


def answers(called: list[bool], calls: list[str] | None = None) -> SiteAnswers:
    flags = np.array(called, bool)
    names = calls if calls is not None else ["1" if one else "0" for one in called]
    return SiteAnswers(np.zeros((len(called), 2)), np.zeros(len(called)), names, flags)


def counted(side: int, *proteins: tuple[str, str]) -> LogoCounts:
    """Counts of proteins whose Y are called (1) or not (0)."""
    counts = LogoCounts(BINARY, side)
    for sequence, calls in proteins:
        counts.add(protein(sequence), answers([one == "1" for one in calls]))
    return counts


def by_class(classes: tuple[str, ...], calls: str) -> LogoCounts:
    """Counts of three Y, each called by a class of several, or with numbers."""
    counts = LogoCounts(Task("site", "class" if classes else "number", classes), 3)
    counts.add(protein("AYCYDYE"), answers([True] * 3, list(calls) or [""] * 3))
    return counts


# -- counts --------------------


def test_counts_are_those_of_the_windows() -> None:
    # Windows of five around the Y: --YAC, ACYXY, YXYD-.
    counts = counted(2, ("YACYXYD", "101"))
    assert counts.sites.tolist() == [1, 2]
    called, others = counts.residues[1], counts.residues[0]
    assert [row.sum() for row in called] == [1, 0, 2, 2, 1], "places beyond the ends and X count as no residue"
    assert called[0, LETTER["Y"]] == 1 and called[2, LETTER["Y"]] == 2 and called[4, LETTER["C"]] == 1
    assert called[3, LETTER["A"]] == called[3, LETTER["D"]] == 1
    assert [row.sum() for row in others] == [1, 1, 1, 0, 1]
    assert others[0, LETTER["A"]] == others[1, LETTER["C"]] == others[4, LETTER["Y"]] == 1


def test_counts_add_up_over_proteins_and_many_sites() -> None:
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list(AMINO_ACIDS + "X"), size)) for size in (1, 30, 200)] + ["Y" * 9001]
    together = LogoCounts(BINARY, 7)
    expected = np.zeros((2, 15, 20), np.int64)
    for text in texts:
        one = protein(text)
        calls = rng.random(len(one.sites)) < 0.3
        together.add(one, answers(calls.tolist()))
        for site, call in zip(one.sites, calls, strict=True):
            for place in range(15):
                at = site + place - 7
                if 0 <= at < len(text) and text[at] != "X":
                    expected[int(call), place, LETTER[text[at]]] += 1
    assert (together.residues == expected).all()
    assert together.sites.sum() == sum(text.count("Y") for text in texts)


def test_the_background_is_that_of_all_candidates_and_of_the_site_its_own() -> None:
    counts = counted(1, ("AYA", "1"), ("CYA", "0"))
    background = counts.background()
    assert background[0, LETTER["A"]] == background[2, LETTER["A"]] == 0.75
    assert background[0, LETTER["C"]] == 0.25 and background[0].sum() == 1
    assert background[1, LETTER["Y"]] == 1 and not counts.information(1)[1].any()
    assert background_words(background[0]).startswith("A 75.0, C 25.0, D 0.0")


# -- information --------------------


def test_information_is_that_of_a_hands_calculation() -> None:
    # Ten sites: 8 A and 2 C at the first place where half and half are expected; nothing known at the second.
    row = np.zeros((2, 20), np.int64)
    row[0, [LETTER["A"], LETTER["C"]]] = 8, 2
    background = np.zeros((2, 20))
    background[:, [LETTER["A"], LETTER["C"]]] = 0.5
    bits = 0.8 * math.log2(0.8 / 0.5) + 0.2 * math.log2(0.2 / 0.5)
    corrected = bits - 1 / (2 * 10 * math.log(2))
    heights = letter_heights(row, background)
    assert corrected == pytest.approx(0.2059, abs=1e-4)
    assert heights[0, LETTER["A"]] == pytest.approx(0.8 * corrected)
    assert heights[0, LETTER["C"]] == pytest.approx(0.2 * corrected)
    assert heights[0].sum() == pytest.approx(corrected) and not heights[1].any()


def test_few_sites_show_nothing_and_many_equal_ones_all() -> None:
    background = np.full((1, 20), 0.05)
    few, many = np.zeros((1, 20), np.int64), np.zeros((1, 20), np.int64)
    few[0, 3], many[0, 3] = 3, 100_000
    # 19 / (2 * 3 * ln 2) = 4.57 bits are more than the 4.32 that one of twenty residues can tell.
    assert not letter_heights(few, background).any()
    assert letter_heights(many, background).sum() == pytest.approx(math.log2(20), abs=1e-3)


def test_sites_as_all_candidates_are_tell_little_whatever_their_number() -> None:
    rng = np.random.default_rng(2)
    background = rng.dirichlet(np.ones(20), 1)
    for size in (10, 100, 1000):
        bits = [letter_heights(rng.multinomial(size, background), background).sum() for _ in range(300)]
        # Without the correction the mean would be 19 / (2 n ln 2).
        assert np.mean(bits) < 0.5 * 19 / (2 * size * math.log(2)), size


def test_differences_are_percentage_points_and_judged_by_the_exact_test() -> None:
    rng = np.random.default_rng(4)
    called = rng.multinomial(40, np.full(20, 0.05), size=3)
    others = rng.multinomial(300, np.full(20, 0.05), size=3)
    called[1] = 0
    called[1, LETTER["P"]] = 40
    difference, strong = share_differences(called, others)
    assert difference[0, 0] == pytest.approx(100 * (called[0, 0] / 40 - others[0, 0] / 300))
    assert difference.sum(axis=1) == pytest.approx(0, abs=1e-9)
    tested = int(((called + others) > 0).sum())
    for place, letter in ((1, LETTER["P"]), (0, 0), (2, 5)):
        table = [[k := int(called[place, letter]), 40 - k], [m := int(others[place, letter]), 300 - m]]
        sides = [fisher_exact(table, alternative=side).pvalue for side in ("less", "greater")]
        assert strong[place, letter] == (2 * min(sides) <= 0.05 / tested)
    assert strong[1, LETTER["P"]] and not strong[0].any()


def test_a_place_without_residues_differs_in_nothing() -> None:
    difference, strong = share_differences(np.zeros((1, 20), np.int64), np.full((1, 20), 9))
    assert not difference.any() and not strong.any()


# -- pictures --------------------


def test_letters_stack_to_their_heights() -> None:
    _, axes = new_figure()
    heights = np.zeros((2, 20))
    heights[0, [LETTER["D"], LETTER["I"], LETTER["P"]]] = 0.5, 1.5, -1.0
    heights[1, LETTER["W"]] = 0.25
    assert draw_stacks(axes[0, 0], heights) == (-1.0, 2.0)
    (collection,) = axes[0, 0].collections
    assert isinstance(collection, PathCollection)
    boxes = [path.get_extents() for path in collection.get_paths()]
    spans = sorted((round(box.y0, 6), round(box.y1, 6)) for box in boxes)
    assert spans == [(-1.0, 0.0), (0.0, 0.25), (0.0, 0.5), (0.5, 2.0)]
    assert all(box.x0 > -0.5 and box.x1 < 1.5 for box in boxes)


def test_every_amino_acid_has_its_row_and_colour() -> None:
    assert sorted(ORDER) == sorted(AMINO_ACIDS) == sorted(COLOUR_OF) and len(ORDER) == 20
    assert COLOUR_OF["D"] == COLOUR_OF["E"] != COLOUR_OF["K"]


def size_of(path: Path) -> tuple[int, int]:
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", content[16:24])
    return width, height


@pytest.mark.parametrize(
    ("calls", "told"),
    [
        ("111", "No logo: every candidate is called (of 3 candidates), so there is nothing to compare."),
        ("000", "No logo: no candidate is called (of 3 candidates), so there is nothing to compare."),
        ("", "No logo: there is no candidate residue in these proteins."),
    ],
)
def test_nothing_to_compare_is_a_sentence_in_a_picture(calls: str, told: str, tmp_path: Path) -> None:
    counts = counted(3, ("AYCYDY", calls)) if calls else LogoCounts(BINARY, 3)
    assert missing(counts) == logo_reading(counts) == told
    logo_figure(counts, tmp_path / "logo.png")
    assert size_of(tmp_path / "logo.png")[1] < 400


def test_numbers_call_nothing() -> None:
    assert missing(by_class((), "")) == "No logo: the bundle predicts numbers, so no site is called."


def test_several_classes_have_a_logo_each(tmp_path: Path) -> None:
    counts = by_class(("a", "b", "c"), "acc")
    assert counts.sites.tolist() == [1, 0, 2] and not missing(counts)
    logo_figure(counts, tmp_path / "logo.png")
    assert size_of(tmp_path / "logo.png")[0] == 1350
    assert "lowest panel" not in logo_reading(counts)
    told = "No logo: every candidate is called b, so there is nothing to compare."
    assert missing(by_class(("a", "b", "c"), "bbb")) == told


# -- the stage --------------------


@pytest.fixture
def classify(root: Path, tiny_esm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Runs plm_classify_sites with the logo of a bundle whose windows have 33 residues; gives the folder."""
    monkeypatch.setenv("GALAXY_SLOTS", "1")

    def run(proteins: Path | str, *options: str) -> Path:
        if isinstance(proteins, str):
            (tmp_path / "proteins.fasta").write_text(proteins)
            proteins = tmp_path / "proteins.fasta"
        plm_classify_sites.run(
            ["--input", str(proteins), "--bundle", str(root / "test-data" / "bundle_tiny_site.zip"), "--model",
             str(tiny_esm2), "--device", "cpu", "--precision", "fp32", "--sites", str(tmp_path / "sites.tsv"),
             "--report", str(tmp_path / "report.md"), "--logo", str(tmp_path / "logo.png"), *options]
        )
        return tmp_path

    return run


def test_the_stage_draws_called_against_other_sites(classify: Callable[..., Path], root: Path) -> None:
    folder = classify(root / "test-data" / "simulated_query.fasta")
    width, height = size_of(folder / "logo.png")
    assert width == 1350 and height > 800
    told = (folder / "report.md").read_text()
    assert told.index("## Why these calls") < told.index('history_dataset_as_image(output="logo")')
    assert "differ from those around all 124 candidates of this input" in told


def test_the_stage_says_why_there_is_no_logo(classify: Callable[..., Path]) -> None:
    folder = classify(">a\nMKL\n")
    assert size_of(folder / "logo.png")[0] > 400
    assert "No logo: there is no candidate residue" in (folder / "report.md").read_text()
