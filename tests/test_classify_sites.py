"""plm_classify_sites: every candidate of whole proteins answered as the bundle itself answers it, and nothing lost."""

from __future__ import annotations

import csv
import gzip
import json
import random
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import plm_classify_sites
import pytest
import torch
from bundle_cases import random_bundle
from hypothesis import given, settings
from hypothesis import strategies as st
from plm.data.fasta import read_fasta
from plm.data.proteins import Cleaning
from plm.data.task import Task
from plm.data.windows import window as cut_window
from plm.errors import UserError
from plm.jobs.classify_sites.candidates import check_letters, read_candidates, survey
from plm.model.bundles.fine_tuned import FineTunedBundle, load_bundle
from plm.scoring.calibration import adjust_prevalence
from plm.scoring.operating_point import MOST_SCORES, OperatingPoint, score_summary

Rows = list[dict[str, str]]
LETTERS = "ACDEFGHIKLMNPQRSTVWY"


@pytest.fixture(scope="module")
def tiny_bundle(root: Path) -> Path:
    return root / "test-data" / "bundle_tiny_site.zip"


@pytest.fixture(scope="module")
def query(root: Path) -> Path:
    return root / "test-data" / "simulated_query.fasta"


@pytest.fixture(scope="module")
def make_bundle(tiny_esm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a bundle through the library; see :func:`bundle_cases.random_bundle`."""

    def make(name: str, task: Task, **changes: Any) -> Path:
        return random_bundle(name, task, tmp_path_factory.mktemp(name), tiny_esm2, **changes)

    return make


@pytest.fixture(scope="module")
def whole_bundle(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle("whole", Task("site", "class", ("0", "1"), "1"), window=0)


@pytest.fixture
def classify(
    tiny_esm2: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """Runs the stage with all outputs but the figure, unless asked for; gives their folder."""
    monkeypatch.setenv("GALAXY_SLOTS", "1")

    def run(
        proteins: Path | str, *options: str, bundle: Path = tiny_bundle, name: str = "out", figure: bool = False
    ) -> Path:
        if isinstance(proteins, str):
            (tmp_path / f"{name}.fasta").write_text(proteins)
            proteins = tmp_path / f"{name}.fasta"
        folder = tmp_path / name
        folder.mkdir()
        files = {"sites": "sites.tsv", "gff": "sites.gff3", "status": "status.tsv", "report": "report.md"}
        if figure:
            files["figure"] = "figure.png"
        outputs = [text for flag, file in files.items() for text in (f"--{flag}", str(folder / file))]
        model = [] if "--model" in options else ["--model", str(tiny_esm2)]
        plm_classify_sites.run(
            ["--input", str(proteins), "--bundle", str(bundle), *model, "--device", "cpu", "--precision", "fp32",
             *outputs, *options]
        )
        return folder

    return run


@pytest.fixture(scope="module")
def loaded_bundle(tiny_bundle: Path, tiny_esm2: Path, tmp_path_factory: pytest.TempPathFactory) -> FineTunedBundle:
    workdir = tmp_path_factory.mktemp("loaded")
    return load_bundle(tiny_bundle, str(tiny_esm2), workdir=workdir, device="cpu", precision="fp32")


def table(path: Path) -> Rows:
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle, delimiter="\t", quoting=csv.QUOTE_NONE))


def made_up(length: int, seed: int = 0) -> str:
    return "".join(random.Random(seed).choices(LETTERS, k=length))


# -- what is answered --------------------


def test_every_candidate_is_answered_as_the_bundle_answers_its_window(
    classify: Callable[..., Path], query: Path, loaded_bundle: FineTunedBundle
) -> None:
    rows = table(classify(query) / "sites.tsv")
    expected = [
        (record.id, at, record.sequence)
        for record in read_fasta(query)
        for at, letter in enumerate(record.sequence)
        if letter == "Y"
    ]
    assert [(row["id"], row["position"]) for row in rows] == [
        (f"{name}|{at + 1}", str(at + 1)) for name, at, _ in expected
    ]
    # Windows cut by hand, one by one, without the stage's packing.
    for row, (_, at, sequence) in list(zip(rows, expected, strict=True))[::9]:
        start = max(0, at - 16)
        direct = loaded_bundle.predict([sequence[start : at + 17]], [at - start])[0]
        assert float(row["p_0"]) == pytest.approx(direct[0], abs=2e-5)
        assert float(row["p_1"]) == pytest.approx(direct[1], abs=2e-5)
        assert row["call"] == loaded_bundle.calls(direct[None])[0]
        assert row["residue"] == "Y" and row["model"].startswith("tiny_site@")


def test_the_planted_sites_are_found(classify: Callable[..., Path], query: Path, root: Path) -> None:
    truth = root / "test-data" / "simulated_query_sites.tabular"
    rows = table(classify(query, "--truth", str(truth)) / "sites.tsv")
    called = {row["id"] for row in rows if row["call"] == "1"}
    real = {row["id"] for row in rows if row["label"] == "1"}
    assert len(real) > 10
    assert len(called & real) / len(real) > 0.7
    assert len(called - real) < len(rows) / 10


def test_order_and_company_of_proteins_do_not_matter(classify: Callable[..., Path], query: Path) -> None:
    records = list(read_fasta(query))

    def scores(chosen: list[Any], name: str) -> dict[str, float]:
        text = "".join(f">{record.header}\n{record.sequence}\n" for record in chosen)
        return {row["id"]: float(row["p_1"]) for row in table(classify(text, name=name) / "sites.tsv")}

    together, reverse, alone = scores(records, "a"), scores(records[::-1], "b"), scores(records[2:3], "c")
    assert together == pytest.approx(reverse, abs=2e-5)
    assert alone == pytest.approx({key: together[key] for key in alone}, abs=2e-5)


def test_sites_at_the_very_ends(classify: Callable[..., Path], loaded_bundle: FineTunedBundle) -> None:
    middle = made_up(60, 1).replace("Y", "F")
    sequence = f"Y{middle}Y"
    rows = table(classify(f">ends\n{sequence}\n>one\nY\n") / "sites.tsv")
    assert [row["id"] for row in rows] == ["ends|1", "ends|62", "one|1"]
    for row, (text, at) in zip(rows, [(sequence[:17], 0), (sequence[-17:], 16), ("Y", 0)], strict=True):
        assert float(row["p_1"]) == pytest.approx(loaded_bundle.predict([text], [at])[0, 1], abs=2e-5)


def test_small_batches_chunks_and_repeats_change_nothing(classify: Callable[..., Path], query: Path) -> None:
    usual = table(classify(query, name="a") / "sites.tsv")
    twice = query.read_text() + query.read_text().replace(">sp|SIM", ">sp|TWIN")
    small = table(classify(twice, "--batch-tokens", "128", name="b") / "sites.tsv")
    assert len(small) == 2 * len(usual)
    for first, second in zip(usual + usual, small, strict=True):
        assert first["position"] == second["position"]
        assert float(first["p_1"]) == pytest.approx(float(second["p_1"]), abs=2e-5)


def test_equal_input_gives_equal_bytes(classify: Callable[..., Path], query: Path) -> None:
    first, second = classify(query, name="a", figure=True), classify(query, name="b", figure=True)
    for file in ("sites.tsv", "sites.gff3", "status.tsv", "report.md", "figure.png"):
        assert (first / file).read_bytes() == (second / file).read_bytes(), file


def test_whole_protein_bundles_see_the_whole_protein(
    classify: Callable[..., Path], query: Path, whole_bundle: Path, tiny_esm2: Path, tmp_path: Path
) -> None:
    # The budget is far below the proteins' lengths, but memory holds them: they are not cut.
    rows = table(classify(query, "--batch-tokens", "64", bundle=whole_bundle) / "sites.tsv")
    bundle = load_bundle(whole_bundle, str(tiny_esm2), workdir=tmp_path / "w", device="cpu", precision="fp32")
    whole, cut = [], []
    for record in read_fasta(query):
        sites = [at for at, letter in enumerate(record.sequence) if letter == "Y"]
        whole += bundle.predict([record.sequence] * len(sites), sites)[:, 1].tolist()
        windows = [cut_window(record.sequence, at, 33) for at in sites]
        cut += bundle.predict([text for text, _ in windows], [at for _, at in windows])[:, 1].tolist()
    assert [float(row["p_1"]) for row in rows] == pytest.approx(whole, abs=2e-5)
    assert np.abs(np.array(whole) - np.array(cut)).max() > 1e-3, "the whole protein must differ from a window"


def test_a_protein_beyond_memory_goes_in_segments_and_loses_no_site(
    classify: Callable[..., Path], whole_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from plm.jobs.classify_sites import scan

    monkeypatch.setattr(scan, "longest_whole", lambda bundle: 100)
    sequence = made_up(1000, 5)
    folder = classify(f">long\n{sequence}\n", "--batch-tokens", "102", bundle=whole_bundle)
    rows = table(folder / "sites.tsv")
    assert [int(row["position"]) for row in rows] == [at + 1 for at, letter in enumerate(sequence) if letter == "Y"]
    assert "seen in overlapping segments" in (folder / "report.md").read_text()


def test_out_of_memory_halves_the_batch(
    classify: Callable[..., Path], query: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = table(classify(query, name="a") / "sites.tsv")
    predict = FineTunedBundle.predict
    budgets = []

    def short_of_memory(
        self: FineTunedBundle, sequences: Any, positions: Any = None, budget: int = 0, **options: Any
    ) -> Any:
        budgets.append(budget)
        if budget > 3000:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return predict(self, sequences, positions, budget, **options)

    monkeypatch.setattr(FineTunedBundle, "predict", short_of_memory)
    # Loading proves itself with predict as well, within the memory.
    monkeypatch.setattr("plm.model.bundles.fine_tuned.DEFAULT_BUDGET", 2000)
    monkeypatch.setattr("plm.model.bundles.fine_tuned._self_test", lambda *args: None)
    rows = table(classify(query, name="b") / "sites.tsv")
    assert [row["call"] for row in rows] == [row["call"] for row in expected]
    assert budgets[:3] == [8192, 4096, 2048] and max(budgets[3:]) == 2048
    assert "going on with batches of 2048 tokens" in capsys.readouterr().out


def test_memory_that_holds_nothing_is_one_clear_line(
    classify: Callable[..., Path], query: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plm.model.bundles.fine_tuned._self_test", lambda *args: None)

    def out_of_memory(*args: Any, **options: Any) -> Any:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(FineTunedBundle, "predict", out_of_memory)
    with pytest.raises(UserError, match="memory does not hold even 64 tokens"):
        classify(query)


@pytest.mark.slow
def test_a_protein_of_35000_residues(classify: Callable[..., Path], loaded_bundle: FineTunedBundle) -> None:
    sequence = made_up(35_000, 9)
    rows = table(classify(f">titin_like\n{sequence}\n") / "sites.tsv")
    assert [int(row["position"]) for row in rows] == [at + 1 for at, letter in enumerate(sequence) if letter == "Y"]
    text, at = cut_window(sequence, int(rows[-1]["position"]) - 1, 33)
    assert float(rows[-1]["p_1"]) == pytest.approx(loaded_bundle.predict([text], [at])[0, 1], abs=2e-5)


# -- nothing lost, positions kept --------------------


def test_every_record_has_its_status(classify: Callable[..., Path]) -> None:
    text = (
        ">good first\r\nMKYLY\r\n>none\r\nMKL\r\n>inner\r\nMK*YL\r\n>dna\r\n"
        + "ACGT" * 20
        + "\r\n>odd\r\nm-kUy*\r\n>empty\r\n"
    )
    folder = classify(text)
    rows = table(folder / "status.tsv")
    assert [(row["id"], row["candidates"], row["status"]) for row in rows] == [
        ("good", "2", "done"), ("none", "0", "no candidate"), ("inner", "0", "rejected"), ("dna", "0", "rejected"),
        ("odd", "1", "done"), ("empty", "0", "rejected"),
    ]
    details = {row["id"]: row["details"] for row in rows}
    assert "stop inside the sequence" in details["inner"] and "nucleotides" in details["dna"]
    assert "gap removed" in details["odd"] and "-> X" in details["odd"] and "no residues" in details["empty"]
    assert [row["line"] for row in rows] == ["1", "3", "5", "7", "9", "11"]
    # Positions are those of the file, although a gap was closed up.
    assert [row["id"] for row in table(folder / "sites.tsv")] == ["good|3", "good|5", "odd|5"]
    assert "6 records: 2 classified, 1 without a candidate, 3 rejected" in (folder / "report.md").read_text()


@settings(max_examples=60, deadline=None)
@given(sequence=st.text("YKL-.y*", min_size=1, max_size=40))
def test_positions_survive_cleaning(sequence: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("fasta") / "one.fasta"
    path.write_text(f">a\n{sequence}\n")
    (protein,) = read_candidates(path, "Y", Cleaning("proteins"))
    if not protein.rejected:
        assert [sequence[place - 1].upper() for place in protein.places] == ["Y"] * len(protein.places)
        assert len(protein.places) == sequence.upper().count("Y")
        assert all(place <= protein.extent <= len(sequence) for place in protein.places)


def test_no_candidate_at_all_is_an_answer(classify: Callable[..., Path]) -> None:
    folder = classify(">a\nMKL\n>b\nGGG\n", figure=True)
    assert table(folder / "sites.tsv") == []
    assert (folder / "sites.tsv").read_text().startswith("id\tprotein\tposition\tresidue\tlabel\tcall\tp_0\tp_1")
    assert (folder / "report.md").read_text().startswith("**No candidate residue: none of 2 proteins")
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "sites.gff3").read_text() == "##gff-version 3\n"


def test_a_wrong_suffix_and_windows_line_ends_do_not_matter(
    classify: Callable[..., Path], query: Path, tmp_path: Path
) -> None:
    usual = (classify(query, name="a") / "sites.tsv").read_text()
    zipped = tmp_path / "zipped.fasta"
    zipped.write_bytes(gzip.compress(query.read_bytes().replace(b"\n", b"\r\n"), mtime=0))
    plain = tmp_path / "plain.fasta.gz"
    plain.write_bytes(query.read_bytes())
    assert (classify(zipped, name="b") / "sites.tsv").read_text() == usual
    assert (classify(plain, name="c") / "sites.tsv").read_text() == usual


def test_duplicate_ids(classify: Callable[..., Path]) -> None:
    text = ">a\nMKY\n>b\nYY\n>a\nYKL\n"
    with pytest.raises(UserError, match=r"'a' appears more than once \[.*lines 1 and 5\]"):
        classify(text, name="error")
    renamed = classify(text, "--duplicate-ids", "rename", name="rename")
    assert [row["id"] for row in table(renamed / "sites.tsv")] == ["a|3", "b|1", "b|2", "a_2|1"]
    assert "renamed" in table(renamed / "status.tsv")[2]["details"]
    first = classify(text, "--duplicate-ids", "first", name="first")
    assert [row["status"] for row in table(first / "status.tsv")] == ["done", "done", "rejected"]


# -- thresholds and prevalence --------------------


def test_a_stated_prevalence_adjusts_probabilities(
    classify: Callable[..., Path], query: Path, tiny_bundle: Path
) -> None:
    manifest = json.loads(zipfile.ZipFile(tiny_bundle).read("manifest.json"))
    usual = table(classify(query, name="a") / "sites.tsv")
    folder = classify(query, "--prevalence", "0.02", name="b")
    rows = table(folder / "sites.tsv")
    before = np.array([float(row["p_1"]) for row in usual])
    expected = adjust_prevalence(before, manifest["training_prevalence"], 0.02)
    assert [float(row["p_1"]) for row in rows] == pytest.approx(expected.tolist(), abs=2e-5)
    assert sum(row["call"] == "1" for row in rows) < sum(row["call"] == "1" for row in usual)
    assert "to the stated prevalence of 2 %" in (folder / "report.md").read_text()


@pytest.mark.parametrize("prevalence", [(), ("--prevalence", "0.05")])
def test_a_tolerated_rate_takes_its_threshold_from_validation_negatives(
    classify: Callable[..., Path], query: Path, tiny_bundle: Path, prevalence: tuple[str, ...]
) -> None:
    scores = json.loads(zipfile.ZipFile(tiny_bundle).read("manifest.json"))["calibration"]["validation_scores"]
    rows = table(classify(query, "--false-positive-rate", "0.1", *prevalence) / "sites.tsv")
    # 2 of 26 negatives may be called: the third highest score is the first one not to be.
    limit = sorted(scores["negatives"]["scores"])[-3]
    usual = table(classify(query, name="usual") / "sites.tsv")
    assert [row["call"] for row in rows] == ["1" if float(row["p_1"]) > limit else "0" for row in usual]


def test_the_table_itself_shows_why_a_site_is_called(classify: Callable[..., Path], query: Path) -> None:
    for number, options in enumerate([(), ("--prevalence", "0.1"), ("--false-positive-rate", "0.05")]):
        for row in table(classify(query, *options, name=str(number)) / "sites.tsv"):
            assert (row["call"] == "1") == (float(row["p_1"]) >= float(row["threshold"]))
            assert float(row["p_0"]) + float(row["p_1"]) == pytest.approx(1, abs=1e-9)


@given(
    st.lists(st.integers(0, 10**6), min_size=1, max_size=60), st.floats(0.01, 0.9), st.sampled_from([None, 0.02, 0.7])
)
def test_the_rate_is_kept_among_the_negatives_it_came_from(
    millionths: list[int], rate: float, prevalence: float | None
) -> None:
    scores = np.array(millionths) / 10**6
    summary = score_summary(scores, np.zeros(len(scores)))
    manifest = {"threshold": 0.5, "training_prevalence": 0.5, "calibration": {"validation_scores": summary}}
    point = OperatingPoint.choose(manifest, false_positive_rate=rate, prevalence=prevalence)
    assert point.called(point.shown(scores)).mean() <= rate + 1e-9


def test_many_validation_scores_become_quantiles() -> None:
    scores = np.random.default_rng(1).random(20_000)
    summary = score_summary(scores, np.arange(20_000) % 2)
    assert summary["negatives"]["count"] == 10_000 and len(summary["negatives"]["scores"]) == MOST_SCORES
    assert summary["negatives"]["scores"][0] == pytest.approx(scores[::2].min(), abs=1e-6)
    manifest = {"threshold": 0.5, "training_prevalence": 0.5, "calibration": {"validation_scores": summary}}
    point = OperatingPoint.choose(manifest, false_positive_rate=0.05)
    assert (scores[::2] >= point.threshold).mean() == pytest.approx(0.05, abs=0.002)
    called, count = point.hits()[0]
    assert count == 10_000 and called / count == pytest.approx(0.05, abs=0.002)


def test_no_negative_called_is_no_proof_of_a_rate_of_zero() -> None:
    summary = score_summary([0.1] * 20 + [0.9], [0] * 20 + [1])
    point = OperatingPoint.choose(
        {"threshold": 0.5, "training_prevalence": 0.5, "calibration": {"validation_scores": summary}}
    )
    expected = point.expected(1000, 100)
    assert expected is not None and expected.false_range[1] > 50 and expected.false + expected.true == 100


def test_a_bundle_without_validation_scores_cannot_promise_a_rate(
    classify: Callable[..., Path], query: Path, whole_bundle: Path
) -> None:
    with pytest.raises(UserError, match="holds no scores of validation negatives"):
        classify(query, "--false-positive-rate", "0.05", bundle=whole_bundle)


# -- other bundles --------------------


def test_several_classes_and_numbers(
    classify: Callable[..., Path], query: Path, make_bundle: Callable[..., Path]
) -> None:
    several = make_bundle("several", Task("site", "class", ("a", "b", "c"), ""), training_prevalence=None)
    folder = classify(query, bundle=several, name="several")
    rows = table(folder / "sites.tsv")
    assert all(row["call"] == max("abc", key=lambda name: float(row[f"p_{name}"])) for row in rows)
    assert "threshold" not in rows[0] and "classes called of 124 candidate Y" in (folder / "report.md").read_text()
    with pytest.raises(UserError, match="does not tell two classes apart"):
        classify(query, "--prevalence", "0.1", bundle=several, name="prevalence")
    number = make_bundle("number", Task("site", "number", mean=3.0, sd=2.0), training_prevalence=None)
    folder = classify(query, bundle=number, name="number")
    rows = table(folder / "sites.tsv")
    assert "value" in rows[0] and "call" not in rows[0] and len({row["value"] for row in rows}) > 50
    assert "Numbers are predicted for 124 candidate Y" in (folder / "report.md").read_text()


def test_an_unfinished_bundle_is_marked_everywhere(
    classify: Callable[..., Path], query: Path, make_bundle: Callable[..., Path]
) -> None:
    folder = classify(query, bundle=make_bundle("cut", Task("site", "class", ("0", "1"), "1"), finished=False))
    assert "unfinished" in (folder / "report.md").read_text().splitlines()[0]
    assert {row["finished"] for row in table(folder / "sites.tsv")} == {"false"}


def test_other_residues_come_with_a_warning(
    classify: Callable[..., Path], query: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = classify(query, "--residues", "st")
    assert {row["residue"] for row in table(folder / "sites.tsv")} == {"S", "T"}
    assert "was not trained on sites at ST" in (folder / "report.md").read_text()
    assert "was not trained on sites at ST" in capsys.readouterr().out
    assert check_letters("s,t T", "--residues") == "ST"
    with pytest.raises(UserError, match="no list of residues"):
        check_letters("S1", "--residues")


# -- truth --------------------


def test_known_sites_reach_the_table(
    classify: Callable[..., Path], query: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sites = tmp_path / "known.csv"
    sites.write_text("accession,position\nSIM9001,54\nsp|SIM9002|FAM32_SIM,Y21\nSIM9001,55\nNOBODY,3\n")
    folder = classify(query, "--truth", str(sites), "--truth-otherwise", "0")
    rows = {row["id"]: row["label"] for row in table(folder / "sites.tsv")}
    assert rows["sp|SIM9001|FAM31_SIM|54"] == "1" and rows["sp|SIM9001|FAM31_SIM|30"] == "0"
    assert rows["sp|SIM9002|FAM32_SIM|21"] == "1" and rows["sp|SIM9003|FAM33_SIM|7"] == ""
    said = capsys.readouterr().out
    assert "2 of 4 sites of the list are no candidate of these proteins (1 at residues that are no candidates" in said
    assert "1 of proteins that are not in the input): SIM9001 55, NOBODY 3" in said


def test_labels_of_known_sites_are_classes_of_the_bundle(
    classify: Callable[..., Path], query: Path, tmp_path: Path
) -> None:
    sites = tmp_path / "known.tsv"
    sites.write_text("accession\tposition\tlabel\nSIM9001\t54\tphospho\n")
    with pytest.raises(UserError, match=r"'phospho' is none of the bundle's classes \(0, 1\) \[known.tsv, line 2\]"):
        classify(query, "--truth", str(sites))


def test_the_evaluation_reads_the_table(classify: Callable[..., Path], query: Path, root: Path) -> None:
    from plm.scoring.predictions import read_predictions

    truth = root / "test-data" / "simulated_query_sites.tabular"
    frame = read_predictions(classify(query, "--truth", str(truth)) / "sites.tsv")
    assert set(frame["label"]) == {"0", "1"} and len(frame) == 124


# -- GFF3, figure --------------------


def test_gff_and_table_agree(classify: Callable[..., Path], query: Path) -> None:
    folder = classify(query, "--gff-sites", "all")
    rows = table(folder / "sites.tsv")
    features = [line.split("\t") for line in (folder / "sites.gff3").read_text().splitlines() if line[0] != "#"]
    for row, fields in zip(rows, features, strict=True):
        assert fields[3] == fields[4] == row["position"] and float(fields[5]) == pytest.approx(
            float(row["p_1"]), abs=1e-6
        )
        assert row["id"] == f"{fields[0]}|{fields[3]}" and f"call={row['call']};" in fields[8]
    called = [line for line in (classify(query, name="b") / "sites.gff3").read_text().splitlines() if line[0] != "#"]
    assert len(called) == sum(row["call"] == "1" for row in rows)


def test_the_figure_keeps_the_proteins_with_most_calls(classify: Callable[..., Path], query: Path) -> None:
    from matplotlib.image import imread

    few = imread(classify(query, "--tracks", "2", name="few", figure=True) / "figure.png")
    all_six = imread(classify(query, name="all", figure=True) / "figure.png")
    assert few.shape[1] == all_six.shape[1] and few.shape[0] < all_six.shape[0] / 1.5


# -- bad input --------------------


def corrupted(bundle: Path, target: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """A copy of a bundle with its members changed."""
    with zipfile.ZipFile(bundle) as opened:
        members = {name: opened.read(name) for name in opened.namelist()}
    change(members)
    with zipfile.ZipFile(target, "w") as opened:
        for name, content in members.items():
            opened.writestr(name, content)
    return target


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "The file is empty"),
        (b"\n\n", "holds no record"),
        (b"hello world\n", "This is not FASTA"),
        (">a\nMKÄY\n".encode(), "is not ASCII"),
        (b">dna\n" + b"ACGT" * 30 + b"\n", "All sequences are nucleotides"),
        (b">a\nM*Y\n>b\n\n", "None of 2 records can be used; the first: a: 1 stop inside"),
        (b">\nMKY\n", "A header without an id"),
    ],
)
def test_files_that_are_no_proteins(
    classify: Callable[..., Path], tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "bad.fasta"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        classify(path)
    assert list((tmp_path / "out").iterdir()) == []


def test_another_base_model_names_both(classify: Callable[..., Path], query: Path, tiny_t5: Path) -> None:
    with pytest.raises(UserError, match=r"trained on the model tiny_esm2 \(sha256 .*, not on tiny_t5 \(sha256"):
        classify(query, "--model", str(tiny_t5))


def test_a_base_that_is_not_built_in_must_be_given(query: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="trained on the model tiny_esm2, which is not built in"):
        plm_classify_sites.run(
            [
                "--input",
                str(query),
                "--bundle",
                str(tiny_bundle),
                "--sites",
                str(tmp_path / "sites.tsv"),
                "--device",
                "cpu",
            ]
        )


def test_a_bundle_of_a_sequence_task(
    classify: Callable[..., Path], query: Path, make_bundle: Callable[..., Path]
) -> None:
    sequences = make_bundle("sequences", Task("sequence", "class", ("0", "1"), "1"), window=0, site_residues="")
    with pytest.raises(UserError, match="answers for each sequence, not for each site"):
        classify(query, bundle=sequences)


def test_a_truncated_bundle(classify: Callable[..., Path], query: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.zip"
    short.write_bytes(tiny_bundle.read_bytes()[:50_000])
    with pytest.raises(UserError, match=r"no complete zip file .* \[short.zip\]"):
        classify(query, bundle=short)


def test_a_pickle_in_disguise(classify: Callable[..., Path], query: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    import pickle

    def disguise(members: dict[str, bytes]) -> None:
        members["members/0/head.safetensors"] = pickle.dumps({"weights": [1.0]})

    bundle = corrupted(tiny_bundle, tmp_path / "disguised.zip", disguise)
    with pytest.raises(UserError, match=r"members/0/head\.safetensors' is not what its name says"):
        classify(query, bundle=bundle)

    def add(members: dict[str, bytes]) -> None:
        members["head.pkl"] = pickle.dumps(1)

    with pytest.raises(UserError, match="pickles and code are refused"):
        classify(query, bundle=corrupted(tiny_bundle, tmp_path / "pickled.zip", add), name="second")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--prevalence", "2"), "no share between 0 and 1"),
        (("--false-positive-rate", "0"), "no share between 0 and 1"),
        (("--batch-tokens", "1"), "out of range"),
        (("--truth-otherwise", "0"), "no list of real sites"),
    ],
)
def test_options_out_of_range_name_their_flag(
    classify: Callable[..., Path], query: Path, option: tuple[str, str], message: str
) -> None:
    with pytest.raises(UserError, match=message) as raised:
        classify(query, *option)
    assert option[0] in str(raised.value)


def test_a_mistake_is_one_line_and_leaves_nothing(
    run_stage: Callable[..., Any], query: Path, tiny_bundle: Path, tiny_t5: Path, tmp_path: Path
) -> None:
    done = run_stage(
        "plm_classify_sites", "--input", query, "--bundle", tiny_bundle, "--model", tiny_t5,
        "--sites", tmp_path / "s.tsv", "--device", "cpu",
    )
    assert done.returncode == 1
    assert re.fullmatch(r"plm_classify_sites: error: The bundle was trained on .*\n", done.stderr)
    assert done.stdout.startswith("[plm_classify_sites] Device: CPU")
    assert list(tmp_path.iterdir()) == []


def test_the_survey_counts_what_the_scan_will_meet(query: Path) -> None:
    found = survey(query, "Y", 33)
    proteins = list(read_candidates(query, "Y", Cleaning("proteins")))
    assert found.records == found.proteins == len(proteins) == 6
    assert found.candidates == sum(len(protein.sites) for protein in proteins) == 124
    windows = [cut_window(protein.sequence, site, 33)[0] for protein in proteins for site in protein.sites]
    assert found.context == sum(map(len, windows))


def test_a_library_that_is_missing_or_too_old_is_named(
    run_stage: Callable[..., Any], query: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    arguments = ("plm_classify_sites", "--input", query, "--bundle", tiny_bundle, "--sites", tmp_path / "s.tsv")
    old = tmp_path / "path" / "transformers-4.9.dist-info"
    old.mkdir(parents=True)
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 4.9\n")
    done = run_stage(*arguments, env={"PYTHONPATH": str(tmp_path / "path")})
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "transformers 4.9 is too old: this tool needs" in done.stderr
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 5.15\n")
    (tmp_path / "path" / "torch").mkdir()
    (tmp_path / "path" / "torch" / "__init__.py").write_text("raise ModuleNotFoundError(name='torch')\n")
    done = run_stage(*arguments, env={"PYTHONPATH": str(tmp_path / "path")})
    assert done.returncode == 1 and "The Python library torch is missing" in done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "s.tsv").exists()
