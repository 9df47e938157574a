"""scripts/submit_job: the job interface of a running Galaxy, driven through BioBlend."""

from __future__ import annotations

import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from harness.layout import Layout
from harness.server import GalaxyServer

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "submit_job"
BUNDLE = ROOT / "test-data" / "bundle_tiny_classes.zip"
JOBS = 20


@pytest.fixture(scope="module")
def server() -> GalaxyServer:
    found = GalaxyServer(Layout(ROOT), print)
    if not found.status().answers:
        pytest.fail("Galaxy does not run: scripts/galaxy start")
    return found


def submit(server: GalaxyServer, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """One user's call of the script, with BioBlend from planemo's environment."""
    environment = {**os.environ, "GALAXY_URL": server.url, "GALAXY_API_KEY": server.account().key}
    command = [server.layout.python("planemo"), SCRIPT, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=3000, check=False)


def test_the_script_is_short_and_takes_no_key_on_its_command_line() -> None:
    text = SCRIPT.read_text()
    assert len(text.splitlines()) <= 40
    assert max(map(len, text.splitlines())) <= 120
    assert not re.search(r"--\w*(key|url|password)", text)


@pytest.mark.galaxy
def test_predictions_and_a_map_come_back(server: GalaxyServer, tmp_path: Path) -> None:
    proteins = ROOT / "test-data" / "simulated_classes.fasta"
    done = submit(server, proteins, "--bundle", BUNDLE, "--model", "tiny_esm2", "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    told = done.stdout.splitlines()
    for name in (proteins.name, BUNDLE.name, "plm_predict", "plm_embed", "plm_project"):
        states = [line.removeprefix(f"{name}: ") for line in told if line.startswith(f"{name}: ")]
        assert states[-1] == "ok" and len(set(states)) == len(states), "each state is told once"
    ids = [line[1:].split()[0] for line in proteins.read_text().splitlines() if line.startswith(">")]
    for name in ("predictions.tsv", "records.tsv", "embedded.tsv", "map.tsv"):
        lines = (tmp_path / name).read_text().splitlines()
        assert [line.split("\t")[0] for line in lines[1:]] == ids, name
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.galaxy
@pytest.mark.slow
def test_twenty_jobs_at_once_all_come_back_and_agree(server: GalaxyServer, tmp_path: Path) -> None:
    proteins = ROOT / "test-data" / "simulated_odd.fasta"
    folders = [tmp_path / str(number) for number in range(JOBS)]
    for folder in folders:
        folder.mkdir()

    def one(folder: Path) -> subprocess.CompletedProcess[str]:
        model = ("--model", "tiny_esm2", "--plm-project", "")
        return submit(server, proteins, "--bundle", BUNDLE, *model, "--output", folder)

    with ThreadPoolExecutor(JOBS) as together:
        done = list(together.map(one, folders))
    assert [call.returncode for call in done] == [0] * JOBS, "\n".join(call.stderr for call in done)
    for name in ("predictions.tsv", "records.tsv"):
        found = {(folder / name).read_bytes() for folder in folders}
        assert len(found) == 1, f"{JOBS} equal jobs gave {len(found)} different {name}"
    assert len((folders[0] / "records.tsv").read_text().splitlines()) == 1 + proteins.read_text().count(">")


@pytest.mark.galaxy
def test_a_job_that_fails_is_told_in_its_own_words(server: GalaxyServer, tmp_path: Path) -> None:
    wrong = tmp_path / "dna.fasta"
    wrong.write_text(">gene\n" + "ACGTTGCA" * 20 + "\n")
    done = submit(server, wrong, "--bundle", BUNDLE, "--model", "tiny_esm2", "--plm-project", "", "--output", tmp_path)
    assert done.returncode == 1
    assert "plm_predict: error: " in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "predictions.tsv").exists()
