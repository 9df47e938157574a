"""Mutagenesis maps: their numbers are those of mutants asked one by one, and nothing is lost at ends, gaps and X."""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import plm_classify_sites
import plm_predict
import pytest
from bundle_cases import random_bundle
from plm.data.fasta import read_fasta
from plm.data.task import Task
from plm.errors import UserError
from plm.jobs.classify_sites.candidates import Protein
from plm.jobs.classify_sites.explanations import StrongestCalls
from plm.jobs.classify_sites.tables import SiteAnswers
from plm.jobs.predict.mutagenesis import MOST_PROTEINS
from plm.model.bundles.fine_tuned import FineTunedBundle, load_bundle
from plm.scoring.mutagenesis import (
    AMINO_ACIDS,
    EffectMap,
    Subject,
    count_variants,
    effect_map,
    log_odds,
    plan,
    substitutions,
    variants,
)
from plm.telling.mutagenesis_figure import MOST_PANELS, fitting, mutagenesis_figure, mutagenesis_reading

Rows = list[dict[str, str]]
FIXED = ("--device", "cpu", "--precision", "fp32")
BINARY = Task("site", "class", ("0", "1"), "1")
WINDOW = 33


@pytest.fixture(scope="module")
def tiny_bundle(root: Path) -> Path:
    return root / "test-data" / "bundle_tiny_site.zip"


@pytest.fixture(scope="module")
def query(root: Path) -> Path:
    return root / "test-data" / "simulated_query.fasta"


@pytest.fixture(scope="module")
def open_bundle(tiny_esm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], FineTunedBundle]:
    def load(path: Path) -> FineTunedBundle:
        workdir = tmp_path_factory.mktemp("opened")
        return load_bundle(path, str(tiny_esm2), workdir=workdir, device="cpu", precision="fp32")

    return load


@pytest.fixture(scope="module")
def make_bundle(tiny_esm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    def make(name: str, task: Task, **changes: Any) -> Path:
        return random_bundle(name, task, tmp_path_factory.mktemp(name), tiny_esm2, **changes)

    return make


@pytest.fixture
def classify(
    tiny_esm2: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """Runs plm_classify_sites with its maps, drawn only if asked for; gives the folder of the outputs."""
    monkeypatch.setenv("GALAXY_SLOTS", "1")

    def run(
        proteins: Path | str, *options: str, bundle: Path = tiny_bundle, name: str = "out", figure: bool = False
    ) -> Path:
        if isinstance(proteins, str):
            (tmp_path / f"{name}.fasta").write_text(proteins)
            proteins = tmp_path / f"{name}.fasta"
        folder = tmp_path / name
        folder.mkdir()
        files = {"sites": "sites.tsv", "report": "report.md", "mutagenesis": "m.tsv"}
        files |= {"mutagenesis-figure": "m.png"} if figure else {}
        outputs = [text for flag, file in files.items() for text in (f"--{flag}", str(folder / file))]
        plm_classify_sites.run(
            ["--input", str(proteins), "--bundle", str(bundle), "--model", str(tiny_esm2), *FIXED, *outputs, *options]
        )
        return folder

    return run


@pytest.fixture
def predict(tiny_esm2: Path, tmp_path: Path) -> Callable[..., Path]:
    """Runs plm_predict with its maps; gives the folder of the outputs."""

    def run(bundle: Path, proteins: str, *options: str) -> Path:
        (tmp_path / "proteins.fasta").write_text(proteins)
        files = {
            "predictions": "p.tsv", "report": "report.md", "mutagenesis": "m.tsv", "mutagenesis-figure": "m.png",
        }
        outputs = [text for flag, file in files.items() for text in (f"--{flag}", str(tmp_path / file))]
        plm_predict.run(
            ["--input", str(tmp_path / "proteins.fasta"), "--bundle", str(bundle), "--model", str(tiny_esm2), *FIXED,
             *outputs, *options]
        )
        return tmp_path

    return run


def table(path: Path) -> Rows:
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle, delimiter="\t", quoting=csv.QUOTE_NONE))


def made_up(length: int, seed: int, letters: str = AMINO_ACIDS) -> str:
    return "".join(random.Random(seed).choices(letters, k=length))


def mutated(sequence: str, row: dict[str, str]) -> str:
    """The protein with the substitution of a row, made by hand."""
    at = int(row["mutated"]) - 1
    assert sequence[at] == row["wild_type"]
    return sequence[:at] + row["substitution"] + sequence[at + 1 :]


def logit(p: float) -> float:
    return math.log(p / (1 - p))


# -- what is asked --------------------


def test_substitutions_are_the_other_nineteen_and_all_twenty_for_x() -> None:
    assert substitutions("A") == AMINO_ACIDS[1:] and len(substitutions("W")) == 19
    assert substitutions("X") == AMINO_ACIDS
    subject = Subject("p", "MXK", (1, 2), (2, 3))
    texts = variants(subject)
    assert len(texts) == count_variants(subject) == 39
    assert plan([subject, subject], "twice") == "Mutagenesis: 78 substitutions twice, 234 residues to encode"
    assert texts[:2] == ["MAK", "MCK"] and texts[20] == "MXA" and "MXK" not in texts and len(set(texts)) == 39


def test_log_odds_keep_their_digits_near_one() -> None:
    values = np.array([[0.25, 0.75], [1e-7, 1 - 1e-7], [1.0, 0.0]])
    assert log_odds(values, 1)[:2] == pytest.approx([math.log(3), math.log((1 - 1e-7) / 1e-7)], rel=1e-9)
    assert log_odds(values, 0)[0] == pytest.approx(-math.log(3)) and np.isfinite(log_odds(values, 1)).all()
    three = np.array([[0.2, 0.3, 0.5]])
    assert log_odds(three, 0)[0] == pytest.approx(math.log(0.2 / 0.8))


def test_all_variants_of_a_call_are_asked_together(
    tiny_bundle: Path, open_bundle: Callable[[Path], FineTunedBundle]
) -> None:
    bundle, sizes = open_bundle(tiny_bundle), list[int]()

    def ask(texts: Any, sites: Any) -> Any:
        sizes.append(len(texts))
        return bundle.predict(texts, sites)

    effect_map(Subject("p", "MKYLW", (0, 1, 3), (1, 2, 4), 2, 3), bundle.task, ask, lambda v: (v, bundle.calls(v)))
    assert sizes == [1 + 3 * 19]


# -- plm_classify_sites --------------------


def test_numbers_are_those_of_mutants_asked_one_by_one(
    classify: Callable[..., Path], query: Path, tiny_bundle: Path, open_bundle: Callable[[Path], FineTunedBundle]
) -> None:
    bundle = open_bundle(tiny_bundle)
    sequences = {record.id: record.sequence for record in read_fasta(query)}
    folder = classify(query, "--mutagenesis-calls", "3")
    rows, sites = table(folder / "m.tsv"), table(folder / "sites.tsv")
    strongest = sorted((row for row in sites if row["call"] == "1"), key=lambda row: -float(row["p_1"]))[:3]
    assert list(dict.fromkeys(row["id"] for row in rows)) == [row["id"] for row in strongest]
    assert len(rows) == 3 * WINDOW * 19
    calls = set()
    for row in rows[::37]:
        sequence, at = sequences[row["id"].rsplit("|", 1)[0]], int(row["position"]) - 1
        before = bundle.predict([sequence], [at])[0]
        after = bundle.predict([mutated(sequence, row)], [at])[0]
        assert int(row["mutated"]) - int(row["position"]) == int(row["offset"]) and row["class"] == "1"
        assert float(row["score"]) == pytest.approx(after[1], abs=2e-5)
        assert float(row["unmutated"]) == pytest.approx(before[1], abs=2e-5)
        assert float(row["change"]) == pytest.approx(logit(after[1]) - logit(before[1]), abs=2e-3)
        assert row["call"] == bundle.calls(after[None])[0] and row["model"].startswith("tiny_site@")
        calls.add(row["call"])
    # Places ascend, amino acids go by letter, the site itself is one of the places.
    first = rows[: WINDOW * 19]
    order = [(int(row["mutated"]), row["substitution"]) for row in first]
    assert order == sorted(order) and {row["offset"] for row in first} == {str(n) for n in range(-16, 17)}


def test_a_map_does_not_depend_on_the_batch(classify: Callable[..., Path], query: Path) -> None:
    few = ("--mutagenesis-calls", "2")
    one = table(classify(query, *few, name="a") / "m.tsv")
    other = table(classify(query, *few, "--batch-tokens", "128", name="b") / "m.tsv")
    assert [row["substitution"] for row in one] == [row["substitution"] for row in other]
    assert [float(r["change"]) for r in one] == pytest.approx([float(r["change"]) for r in other], abs=2e-3)


def test_equal_input_gives_equal_maps(classify: Callable[..., Path], query: Path) -> None:
    first, second = (classify(query, "--mutagenesis-calls", "2", name=name, figure=True) for name in "ab")
    for file in ("m.tsv", "m.png", "report.md"):
        assert (first / file).read_bytes() == (second / file).read_bytes(), file


def test_windows_end_with_the_protein_and_x_is_replaced_by_all(
    classify: Callable[..., Path], make_bundle: Callable[..., Path]
) -> None:
    bundle = make_bundle("all_called", BINARY, threshold=0.0)
    folder = classify(">ends\nYKXL\n", bundle=bundle, figure=True)
    rows = table(folder / "m.tsv")
    assert [(row["mutated"], row["wild_type"]) for row in rows[:1]] == [("1", "Y")]
    assert len(rows) == 19 + 19 + 20 + 19 and {row["substitution"] for row in rows if row["mutated"] == "3"} == set(
        AMINO_ACIDS
    )
    assert (folder / "m.png").read_bytes().startswith(b"\x89PNG")


def test_places_are_those_of_the_file_although_gaps_were_closed_up(
    classify: Callable[..., Path], make_bundle: Callable[..., Path]
) -> None:
    rows = table(classify(">gaps\nm-k-Y-l\n", bundle=make_bundle("gaps", BINARY, threshold=0.0)) / "m.tsv")
    places = {(row["wild_type"], row["mutated"], row["offset"]) for row in rows}
    assert places == {("M", "1", "-2"), ("K", "3", "-1"), ("Y", "5", "0"), ("L", "7", "1")}
    assert {row["position"] for row in rows} == {"5"}


def test_whole_protein_bundles_are_mutated_within_reach(
    classify: Callable[..., Path], make_bundle: Callable[..., Path], open_bundle: Callable[[Path], FineTunedBundle]
) -> None:
    path = make_bundle("whole", BINARY, window=0, threshold=0.0)
    sequence = made_up(60, 1).replace("Y", "F")
    sequence = sequence[:40] + "Y" + sequence[41:]
    rows = table(classify(f">a\n{sequence}\n", "--reach", "4", bundle=path) / "m.tsv")
    assert {int(row["mutated"]) for row in rows} == set(range(37, 46)) and len(rows) == 9 * 19
    bundle = open_bundle(path)
    for row in rows[::23]:
        # The whole protein is seen, not a window of it.
        after = bundle.predict([mutated(sequence, row)], [40])[0, 1]
        assert float(row["score"]) == pytest.approx(after, abs=2e-5)


def test_of_several_classes_the_called_one_is_followed(
    classify: Callable[..., Path], make_bundle: Callable[..., Path], open_bundle: Callable[[Path], FineTunedBundle]
) -> None:
    path = make_bundle("three", Task("site", "class", ("a", "b", "c")))
    sequence = made_up(50, 4)[:25] + "Y" + made_up(24, 5)
    folder = classify(f">p\n{sequence}\n", "--mutagenesis-calls", "1", bundle=path)
    rows, sites = table(folder / "m.tsv"), table(folder / "sites.tsv")
    top = max(sites, key=lambda row: max(float(row[f"p_{name}"]) for name in "abc"))
    at = int(top["position"]) - 1
    assert {row["class"] for row in rows} == {top["call"]} and {row["id"] for row in rows} == {top["id"]}
    bundle, column = open_bundle(path), "abc".index(top["call"])
    before = bundle.predict([sequence], [at])[0]
    for row in rows[::41]:
        after = bundle.predict([mutated(sequence, row)], [at])[0]
        assert float(row["score"]) == pytest.approx(after[column], abs=2e-5)
        assert float(row["change"]) == pytest.approx(logit(after[column]) - logit(before[column]), abs=1e-3)
        assert row["call"] == "abc"[int(after.argmax())]


def test_numbers_change_in_the_unit_of_the_labels(
    classify: Callable[..., Path], make_bundle: Callable[..., Path], open_bundle: Callable[[Path], FineTunedBundle]
) -> None:
    path = make_bundle("numbers", Task("site", "number", mean=50.0, sd=7.0))
    sequence = made_up(20, 6).replace("Y", "F") + "Y" + made_up(20, 7).replace("Y", "F")
    folder = classify(f">p\n{sequence}\n", bundle=path)
    rows, bundle = table(folder / "m.tsv"), open_bundle(path)
    before = bundle.predict([sequence], [20])[0, 0]
    assert {(row["class"], row["call"]) for row in rows} == {("", "")}
    for row in rows[::29]:
        after = bundle.predict([mutated(sequence, row)], [20])[0, 0]
        assert float(row["score"]) == pytest.approx(after, rel=1e-4)
        assert float(row["change"]) == pytest.approx(after - before, abs=1e-3)
    assert "raises the predicted number" in (folder / "report.md").read_text()


def test_a_stated_prevalence_moves_scores_but_not_changes(classify: Callable[..., Path], query: Path) -> None:
    few = ("--mutagenesis-calls", "2")
    before_it, folder = classify(query, *few, name="a"), classify(query, *few, "--prevalence", "0.1", name="b")
    usual = {(r["id"], r["mutated"], r["substitution"]): r for r in table(before_it / "m.tsv")}
    rows, sites = table(folder / "m.tsv"), {row["id"]: row for row in table(folder / "sites.tsv")}
    for row in rows[::97]:
        before = usual[row["id"], row["mutated"], row["substitution"]]
        assert float(row["score"]) < float(before["score"]) and row["change"] == before["change"]
        assert float(row["unmutated"]) == pytest.approx(float(sites[row["id"]]["p_1"]), abs=2e-5)


def test_no_call_is_a_table_without_rows_and_a_picture_that_says_so(
    classify: Callable[..., Path], make_bundle: Callable[..., Path]
) -> None:
    folder = classify(">a\nMKYL\n", bundle=make_bundle("never", BINARY, threshold=1.0), figure=True)
    assert table(folder / "m.tsv") == [] and (folder / "m.tsv").read_text().startswith("id\tposition\tmutated\toffset")
    assert (folder / "m.png").read_bytes().startswith(b"\x89PNG")
    assert "No site is called, so there is nothing to mutate." in (folder / "report.md").read_text()


def test_the_report_shows_the_maps_and_how_to_read_them(classify: Callable[..., Path], query: Path) -> None:
    told = (classify(query, "--mutagenesis-calls", "1", figure=True) / "report.md").read_text()
    assert told.index("## Why these calls") < told.index('history_dataset_as_image(output="mutagenesis_figure")')
    assert 'history_dataset_link(output="mutagenesis"' in told and "The frame marks the site itself" in told


@pytest.mark.parametrize("count", ["0", "21"])
def test_the_number_of_calls_has_a_cap(classify: Callable[..., Path], query: Path, count: str) -> None:
    with pytest.raises(UserError, match=r"--mutagenesis-calls.*Choose 1 to 20"):
        classify(query, "--mutagenesis-calls", count)


# -- which calls --------------------


def called(name: str, sequence: str, heights: list[float], flags: list[bool]) -> tuple[Protein, SiteAnswers]:
    sites = tuple(at for at, letter in enumerate(sequence) if letter == "Y")
    values = np.array(heights)
    protein = Protein(name, name, 1, sequence, sites, tuple(site + 1 for site in sites), len(sequence))
    calls = ["1" if flag else "0" for flag in flags]
    return protein, SiteAnswers(np.stack([1 - values, values], axis=1), values, calls, np.array(flags))


def test_the_strongest_calls_are_kept_each_surrounding_once() -> None:
    kept = StrongestCalls(3, 3, 15)
    kept.add(*called("a", "AYACYDEYFGYH", [0.7, 0.99, 0.9, 0.6], [True, False, True, True]))
    kept.add(*called("copy", "MMEYF", [0.9], [True]))
    kept.add(*called("b", "KYLMYN", [0.95, 0.7], [True, True]))
    # Of the two with 0.7 the first in the file; the copy's window EYF is that of a|8; what is not called never comes.
    assert [subject.id for subject in kept.subjects()] == ["b|2", "a|8", "a|2"]
    assert kept.subjects()[0] == Subject("b|2", "KYL", (0, 1, 2), (1, 2, 3), 1, 2)


def test_the_strongest_calls_do_not_depend_on_the_order_of_the_file() -> None:
    generator = random.Random(3)
    proteins = []
    for number in range(40):
        sequence = made_up(30, number)
        count = sequence.count("Y")
        proteins.append(called(f"p{number}", sequence, [generator.random() for _ in range(count)], [True] * count))
    usual, turned = StrongestCalls(7, 9, 15), StrongestCalls(7, 9, 15)
    for protein in proteins:
        usual.add(*protein)
    for protein in proteins[::-1]:
        turned.add(*protein)
    assert usual.subjects() == turned.subjects() and len(usual.subjects()) == 7


# -- figures --------------------


def some_map(
    places: int, *, site: int | None = None, judged: str = "1", change: float = 2.0, name: str = "p"
) -> EffectMap:
    text = made_up(places, places)
    subject = Subject(name, text, tuple(range(places)), tuple(range(1, places + 1)), site, (site or 0) + 1)
    changes = np.random.default_rng(places).normal(0, change / 5, (places, 20)).clip(-change, change)
    changes[np.arange(places), [AMINO_ACIDS.index(letter) for letter in text]] = np.nan
    calls = np.where(np.isnan(changes), "", judged)
    return EffectMap(subject, judged, 0.9, judged, np.abs(changes) / change, changes, calls)


def test_the_figure_shows_as_many_maps_as_a_page_bears(tmp_path: Path) -> None:
    maps = [some_map(33, site=16)] * 20
    assert fitting(maps) == MOST_PANELS and fitting(maps[:5]) == 5 and fitting([]) == 0
    told = mutagenesis_reading(maps, MOST_PANELS, "call")
    assert "The figure shows 12 of 20 calls; the table has all." in told
    assert "The figure shows" not in mutagenesis_reading(maps[:5], 5, "call")
    # A protein of 100 residues takes three rows.
    assert fitting([some_map(100)] * 5) == 4 and fitting([some_map(900)] * 2) == 1
    assert mutagenesis_figure([some_map(42), some_map(9)], tmp_path / "m.png") == 2


def test_what_is_said_of_a_map_is_true_of_it() -> None:
    assert "rest on no single residue" in mutagenesis_reading([some_map(9, change=0.1)], 1, "protein")
    assert "rest on no single residue" not in mutagenesis_reading([some_map(9)], 1, "protein")
    assert "rest on no single residue" not in mutagenesis_reading([some_map(9, judged="", change=0.1)], 1, "protein")
    assert "frame" not in mutagenesis_reading([some_map(9)], 1, "protein")
    flips = some_map(9)
    flips.calls[0, 0 if flips.calls[0, 0] else 1] = "other"
    assert flips.overturned.sum() == 1
    assert "A dot marks" in mutagenesis_reading([flips], 1, "protein")
    assert "A dot marks" not in mutagenesis_reading([some_map(9)], 1, "protein")


# -- plm_predict --------------------


@pytest.fixture(scope="module")
def sequence_bundle(root: Path) -> Path:
    return root / "test-data" / "written_before" / "bundle_finetuned.zip"


def test_proteins_are_mutated_as_the_bundle_itself_answers(
    predict: Callable[..., Path], sequence_bundle: Path, open_bundle: Callable[[Path], FineTunedBundle]
) -> None:
    texts = {"one": made_up(30, 8), "sp|P12345|TWO": made_up(150, 9)}
    fasta = "".join(f">{name}\n{text}\n" for name, text in texts.items())
    folder = predict(sequence_bundle, fasta, "--mutagenesis-residues", "one, P12345:141-150")
    rows, bundle = table(folder / "m.tsv"), open_bundle(sequence_bundle)
    assert [row["id"] for row in rows] == ["one"] * (30 * 19) + ["sp|P12345|TWO"] * (10 * 19)
    assert {int(row["mutated"]) for row in rows[30 * 19 :]} == set(range(141, 151))
    for row in rows[::43]:
        text = texts[row["id"]]
        before, after = bundle.predict([text])[0], bundle.predict([mutated(text, row)])[0]
        column = int(before.argmax())
        assert row["class"] == bundle.task.classes[column] and row["call"] == bundle.calls(after[None])[0]
        assert float(row["score"]) == pytest.approx(after[column], abs=2e-5)
        assert float(row["change"]) == pytest.approx(logit(after[column]) - logit(before[column]), abs=1e-3)
    told = (folder / "report.md").read_text()
    assert "## Which residues the answers rest on" in told and 'image(output="mutagenesis_figure")' in told


def test_short_proteins_are_mutated_whole_without_being_named(
    predict: Callable[..., Path], make_bundle: Callable[..., Path]
) -> None:
    bundle = make_bundle("melting", Task("sequence", "number", mean=50.0, sd=7.0), window=0, site_residues="")
    rows = table(predict(bundle, ">a\nMKYXL\n>b\nMK*L\n>c\nWW\n") / "m.tsv")
    # The record with a stop inside is rejected.
    assert [row["id"] for row in rows] == ["a"] * (4 * 19 + 20) + ["c"] * (2 * 19)


@pytest.mark.parametrize(
    ("residues", "told"),
    [
        ("", "150 residues of long are too many to mutate at once .at most 100.*e.g. long:1-100"),
        ("long:20-130", "111 residues of long are too many to mutate at once .*e.g. long:20-119"),
        ("other:1-3", "'other' is no protein of the input that can be used"),
        ("short:0-3", "0-3 are no residues of short, which has 9"),
        ("short:5-10", "5-10 are no residues of short, which has 9"),
        ("short:5-3", "5-3 are no residues of short"),
        ("short:5", "'short:5' is no protein of the input"),
        (" ".join(["short"] * (MOST_PROTEINS + 1)), "13 spans are too many"),
        ("TWIN:1-3", "'TWIN' stands for 2 proteins"),
    ],
)
def test_what_cannot_be_mutated_is_one_line_before_the_work_starts(
    predict: Callable[..., Path], sequence_bundle: Path, residues: str, told: str, tmp_path: Path
) -> None:
    fasta = f">short\nMKLMKLMKL\n>long\n{made_up(150, 2)}\n>a|TWIN\nMKL\n>b|TWIN\nMKW\n"
    with pytest.raises(UserError, match=told):
        predict(sequence_bundle, fasta, "--mutagenesis-residues", residues)
    assert not (tmp_path / "p.tsv").exists() and not (tmp_path / "m.tsv").exists()


def test_many_proteins_must_be_named(predict: Callable[..., Path], sequence_bundle: Path) -> None:
    with pytest.raises(UserError, match=r"13 proteins are too many to mutate \(at most 12\).*e.g. p0:1-40"):
        predict(sequence_bundle, "".join(f">p{number}\nMKL\n" for number in range(13)))


@pytest.mark.parametrize(
    ("bundle", "told"),
    [
        ("bundle_tiny_classes.zip", "The bundle is a classifier of embeddings; only fine-tuned models"),
        ("bundle_tiny_residues.zip", "The bundle answers for each residue, not for whole proteins"),
    ],
)
def test_bundles_of_other_kinds_have_no_maps(predict: Callable[..., Path], root: Path, bundle: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        predict(root / "test-data" / bundle, ">a\nMKL\n")


def test_residues_without_a_map_are_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Nothing is to be mutated.*--mutagenesis-residues"):
        plm_predict.run(
            ["--input", "x", "--bundle", "y", "--predictions", str(tmp_path / "p"), "--mutagenesis-residues", "a:1-2"]
        )
