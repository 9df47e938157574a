"""The bundled demonstration: its files are what the script makes, and it ends as the README says."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from harness import run_command, welcome
from harness.layout import Layout

ROOT = Path(__file__).resolve().parents[1]
MAKER = ROOT / "scripts" / "fixtures" / "make_demo"
LARGEST = 100_000


def make(folder: Path, *options: str) -> list[Path]:
    subprocess.run([sys.executable, str(MAKER), "--output", str(folder), *options], check=True, capture_output=True)
    return sorted(folder.iterdir())


def records(path: Path) -> dict[str, str]:
    parts = path.read_text().split(">")[1:]
    return {part.splitlines()[0]: "".join(part.splitlines()[1:]) for part in parts}


def test_the_files_are_what_the_script_makes(tmp_path: Path) -> None:
    made = make(tmp_path)
    assert [path.name for path in made] == sorted(path.name for path in (ROOT / "test-data").glob("demo_*"))
    for path in made:
        assert path.read_bytes() == (ROOT / "test-data" / path.name).read_bytes(), path.name
        assert path.stat().st_size < LARGEST


def test_sites_are_opposite_charges_and_no_place_alone_tells_them() -> None:
    charge = dict.fromkeys("KR", 1) | dict.fromkeys("DE", -1)
    windows = records(ROOT / "test-data" / "demo_sites.fasta")
    assert all(len(window) == 33 and window[16] == "Y" for window in windows.values())
    products: dict[str, list[int]] = {"0": [], "1": []}
    basic: dict[str, list[bool]] = {"0": [], "1": []}
    for header, window in windows.items():
        pair = [charge.get(window[16 + offset], 0) for offset in (-3, 4)]
        products[header[-1]].append(pair[0] * pair[1])
        if all(pair):
            basic[header[-1]].append(pair[0] > 0)
    assert 1 not in products["1"] and products["1"].count(-1) > 0.9 * len(products["1"])
    assert -1 not in products["0"]
    shares = [sum(values) / len(values) for values in basic.values()]
    assert abs(shares[0] - shares[1]) < 0.12


def test_every_site_of_the_proteins_is_listed() -> None:
    proteins = {name.split("|")[1]: text for name, text in records(ROOT / "test-data" / "demo_proteins.fasta").items()}
    lines = (ROOT / "test-data" / "demo_protein_sites.tabular").read_text().splitlines()
    listed = [line.split("\t") for line in lines[1:]]
    assert [(name, int(position)) for name, position, *_ in listed] == [
        (name, place + 1) for name, text in proteins.items() for place, letter in enumerate(text) if letter == "Y"
    ]
    assert {kind for *_, label, kind in listed if label == "1"} == {"site"}


def test_run_and_the_first_page_take_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PLM_CALLED_FROM", str(tmp_path))
    settings = run_command.parse(Layout(ROOT), ["--results", "results"])
    assert [settings.training.name, settings.query.name] == ["demo_sites.fasta", "demo_proteins.fasta"]
    assert "simulated" in settings.source and settings.published is None
    sites, proteins, _ = welcome.WAYS
    assert sites.files == ("demo_proteins.fasta", "demo_sites.fasta") and "simulated" in sites.text
    assert proteins.files == ("demo_new_proteins.fasta", "demo_classes.fasta") and "simulated" in proteins.text


def test_no_share_of_residues_alone_tells_the_classes() -> None:
    shares: dict[str, list[list[float]]] = {"amber": [], "blue": []}
    for header, sequence in records(ROOT / "test-data" / "demo_classes.fasta").items():
        found = [sum(letter in kind for letter in sequence) / len(sequence) for kind in ("ILVF", "KRDE")]
        shares[header.split("|")[-1]].append(found)
        assert not any(a in "ILVFKRDE" and b in "ILVFKRDE" for a, b in pairwise(sequence))
    middle = {name: [sum(column) / len(column) for column in zip(*rows, strict=True)] for name, rows in shares.items()}
    for one, other in zip(middle["amber"], middle["blue"], strict=True):
        assert abs(one - other) < 0.02
    like = {name: [(h > 0.14) == (c > 0.14) for h, c in rows] for name, rows in shares.items()}
    assert sum(like["amber"]) > 0.95 * len(like["amber"]) and sum(like["blue"]) < 0.05 * len(like["blue"])


@pytest.mark.slow
def test_the_predictor_beats_the_best_baseline_and_the_model_adds_to_the_sequence_members(tmp_path: Path) -> None:
    """Files of another seed than the bundled ones, through the stages with the settings of the workflow."""
    make(tmp_path, "--seed", "302")

    def stage(name: str, *flags: object) -> None:
        command = [sys.executable, str(ROOT / "tools" / f"{name}.py"), *map(str, flags)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-2000:]

    stage(
        "plm_preprocess", "--input", "demo_sites.fasta", "--task", "site", "--labels", "LABEL=", "--split", "homology",
        "--valid-fraction", 0.15, "--test-fraction", 0.25, "--dataset", "dataset.tsv", "--rejected", "rejected.tsv",
        "--leakage", "leakage.tsv", "--report", "data.md",
    )
    stage(
        "plm_finetune", "--dataset", "dataset.tsv", "--model", "starter", "--bundle", "bundle.zip", "--predictions",
        "predictions.tsv", "--report", "finetune.md",
    )
    stage(
        "plm_evaluate", "--predictions", "predictions.tsv", "--training", "dataset.tsv", "--report", "evaluation.md",
        "--metrics", "metrics.tsv",
    )
    said = (tmp_path / "evaluation.md").read_text()
    assert "beats the best baseline" in said.splitlines()[0] and ", beyond chance" in said.splitlines()[0]
    assert "The language model adds to what the sequence members say, beyond chance" in said
