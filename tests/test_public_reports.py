"""Files like those of public reports by people who do this job: what became of each, end to end."""

from __future__ import annotations

import csv
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]
Preprocess = Callable[..., tuple[subprocess.CompletedProcess[str], list[dict[str, str]]]]
pytestmark = pytest.mark.realdata


@pytest.fixture
def reports(root: Path) -> Path:
    place = root.parent / "shared" / "faults" / "reports"
    if not place.is_dir():
        pytest.skip("the files of the reports are not here")
    return place


@pytest.fixture
def preprocess(run_stage: Run, tmp_path: Path) -> Preprocess:
    def run(path: Path, *args: str | Path) -> tuple[subprocess.CompletedProcess[str], list[dict[str, str]]]:
        names = ("dataset", "rejected", "leakage", "report")
        outputs = [part for name in names for part in (f"--{name}", tmp_path / name)]
        done = run_stage("plm_preprocess", "--input", path, *args, *outputs)
        rows = list(csv.DictReader((tmp_path / "dataset").open(), delimiter="\t", quoting=csv.QUOTE_NONE)) if (
            done.returncode == 0) else []
        return done, rows

    return run


RANDOM = ("--labels", "column:label", "--split", "random", "--test-fraction", "0.15")


@pytest.mark.parametrize(
    ("file", "rows", "unlabelled"), [("F1a_one_NA_in_200_numbers.csv", 200, 1), ("F1b_NA_numbers.tsv", 60, 5)]
)
def test_missing_words_among_numbers(
    preprocess: Preprocess, reports: Path, tmp_path: Path, file: str, rows: int, unlabelled: int
) -> None:
    done, made = preprocess(reports / file, *RANDOM)
    assert done.returncode == 0, done.stderr
    assert len(made) == rows - unlabelled
    sizes = Counter(row["split"] for row in made)
    assert abs(sizes["train"] - 0.7 * len(made)) < 3
    assert (tmp_path / "rejected").read_text().count("says that there is none") == unlabelled
    assert "numbers, because not all are whole" in done.stdout


def test_decimal_commas_thousands_and_bounds(preprocess: Preprocess, reports: Path) -> None:
    done, made = preprocess(reports / "F1d_decimal_comma.csv", *RANDOM)
    assert done.returncode == 0 and made[0]["label"] == "-1.479" and "decimal comma" in done.stdout
    done, _ = preprocess(reports / "F1e_censored.csv", *RANDOM)
    assert done.returncode == 1 and "The label '>100' is a bound" in done.stderr and "line 6" in done.stderr


@pytest.mark.slow
def test_whole_numbers_and_classes_of_pandas(preprocess: Preprocess, reports: Path) -> None:
    done, made = preprocess(reports / "F1g_whole_numbers.csv", *RANDOM)
    assert done.returncode == 0, done.stderr
    assert Counter(row["split"] for row in made) == {"train": 42, "valid": 9, "test": 9}
    done, made = preprocess(reports / "F1h_classes_as_0.0_1.0.csv", *RANDOM)
    assert done.returncode == 0 and {row["label"] for row in made} == {"0", "1"} and "2 classes" in done.stdout
    done, made = preprocess(reports / "F1h_classes_as_0.0_1.0.csv", *RANDOM, "--target", "number")
    assert done.returncode == 0 and {row["label"] for row in made} == {"0.0", "1.0"}


@pytest.mark.slow
def test_residue_labels(preprocess: Preprocess, reports: Path) -> None:
    done, made = preprocess(reports / "F1i_nan_inside_residue_numbers.tsv", "--task", "residue", *RANDOM)
    assert done.returncode == 0 and "numbers" in done.stdout, done.stderr
    assert "nan" not in made[0]["label"] and ",," in made[0]["label"]
    for file in ("F2a_bracketed_list_labels.csv", "F2b_list_labels.parquet"):
        done, made = preprocess(reports / file, "--task", "residue", *RANDOM)
        assert done.returncode == 0, done.stderr
        assert {letter for row in made for letter in row["label"]} <= set("012")
        assert all(len(row["label"]) == len(row["sequence"]) for row in made)
        done, _ = preprocess(reports / file, *RANDOM)
        assert done.returncode == 1 and "labels of residues" in done.stderr


def test_words_in_headers(preprocess: Preprocess, reports: Path) -> None:
    done, made = preprocess(reports / "F3a_multilabel_header.fasta", "--split", "random")
    assert done.returncode == 0, done.stderr
    assert {"Nucleus;Cytoplasm", "Membrane,Golgi", "Cytoplasm"} <= {row["label"] for row in made}
    assert "labels name several classes" in done.stdout
    done, made = preprocess(reports / "F3b_decimal_comma_header.fasta", "--split", "random", "--labels", "TARGET=")
    assert done.returncode == 0 and made[0]["label"] == "-1.479", done.stderr


def test_nucleotides(preprocess: Preprocess, reports: Path, tmp_path: Path) -> None:
    done, _ = preprocess(reports / "F4a_dna_one_iupac.fasta", "--split", "none")
    assert done.returncode == 1 and "All sequences are nucleotides" in done.stderr
    done, made = preprocess(reports / "F4b_polyGA.fasta", "--split", "none", "--labels", "none")
    assert done.returncode == 0 and len(made) == 2
    assert "looks like nucleotides (A, G only), kept as a protein" in (tmp_path / "rejected").read_text()


@pytest.mark.parametrize(
    ("file", "ids"),
    [
        ("F6_pir.fasta", ["CRAB_ONE", "CRAB_TWO"]),
        ("F7_non_ascii_description.fasta", ["NEO_1", "NEO_2"]),
        ("F9_comment_lines.fasta", ["a", "b"]),
        ("F11_indented_header.fasta", ["custom1", "custom2", "custom3"]),
    ],
)
def test_dialects_of_fasta(preprocess: Preprocess, reports: Path, file: str, ids: list[str]) -> None:
    done, made = preprocess(reports / file, "--split", "none", "--labels", "none")
    assert done.returncode == 0 and [row["id"] for row in made] == ids, done.stderr


@pytest.mark.parametrize(
    ("file", "classes"),
    [("F8a_excel_tab_quotes.txt", {"kinase", "hydrolase, secreted"}), ("F8b_R_quoted.tsv", {"a", "b"})],
)
def test_dialects_of_tables(preprocess: Preprocess, reports: Path, file: str, classes: set[str]) -> None:
    done, made = preprocess(reports / file, *RANDOM)
    assert done.returncode == 0 and {row["label"] for row in made} == classes, done.stderr


def test_a_workbook(preprocess: Preprocess, reports: Path) -> None:
    done, _ = preprocess(reports / "F8d_workbook.xlsx", *RANDOM)
    assert done.returncode == 1 and "Save the sheet as CSV or as tab-separated text" in done.stderr


@pytest.mark.parametrize(
    ("embeddings", "labels", "rows"),
    [("F5a_slash_ids.h5", "F5a_labels.tsv", 40), ("F5c_prott5_header_keys.h5", "F5c_labels.tsv", 40)],
)
def test_keys_of_hdf5(
    run_stage: Run, reports: Path, tmp_path: Path, embeddings: str, labels: str, rows: int
) -> None:
    done = run_stage(
        "plm_train_classifier", "--embeddings", reports / embeddings, "--labels", reports / labels, "--bundle",
        tmp_path / "b.zip", "--status", tmp_path / "status", "--head", "logistic", "--epochs", "1",
        "--resamples", "100",
    )
    assert done.returncode == 0, done.stderr
    with (tmp_path / "status").open() as handle:
        found = [row for row in csv.DictReader(handle, delimiter="\t") if row["source"] == "embeddings"]
    assert len(found) == rows and all(row["status"].startswith("used") for row in found)
