"""The administrators' page says what the code does: variables, tools, memory and time, the image's recipe."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "administrators.md"
DOCKERFILE = ROOT / "docs" / "containers" / "Dockerfile"
INTERNAL = {"PLM_SCRATCH", "PLM_OFFLINE"}
"""Variables that the tools set for themselves."""


def table(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    text = PAGE.read_text().split(f"\n{heading}\n", 1)[1]
    lines = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert lines
    return [[cell.strip() for cell in line.strip().strip("|").split(" | ")] for line in lines[0].splitlines()[2:]]


def test_the_variables_are_those_that_the_tools_read() -> None:
    files = [*ROOT.glob("tools/plm/**/*.py"), *ROOT.glob("tools/*.xml"), *ROOT.glob("tools/plm_*.py")]
    read = {name for file in files for name in re.findall(r"\bPLM_[A-Z_]*[A-Z]\b", file.read_text())}
    assert {row[0].strip("`") for row in table("## Variables for jobs")} == read - INTERNAL


def test_their_defaults_are_those_of_the_code() -> None:
    from plm.jobs.finetune.job import PERIOD_MINUTES
    from plm.received.limits import DEFAULTS
    from plm.training.row_training import RowSettings

    defaults = {row[0].strip("`"): row[2] for row in table("## Variables for jobs")}
    assert {name: float(defaults[name]) for name in DEFAULTS} == DEFAULTS
    assert float(defaults["PLM_CHECKPOINT_MINUTES"]) == RowSettings.checkpoint_every == PERIOD_MINUTES


def test_the_tools_are_listed_once_each() -> None:
    named = [name for row in table("## What the tools need") for name in re.findall(r"`(plm_\w+)`", row[0])]
    assert sorted(named) == sorted(path.stem for path in ROOT.glob("tools/plm_*.xml"))


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)\s]+)\)", PAGE.read_text()))))
def test_links_lead_somewhere(link: str) -> None:
    file, _, anchor = link.partition("#")
    target = (PAGE.parent / file) if file else PAGE
    assert target.exists(), link
    if anchor:
        heads = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
        assert anchor in {re.sub(r"[^a-z0-9 _-]", "", head.lower()).replace(" ", "-") for head in heads}, link


def test_blocks_can_be_read() -> None:
    blocks = re.findall(r"^( *)```yaml\n(.*?)^ *```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 10
    for _, block in blocks:
        assert yaml.safe_load(block)


@pytest.mark.slow
def test_memory_and_time_are_what_the_tools_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from benchmarks import memory_command

    page, figures = PAGE.read_text(), json.loads(memory_command.FIGURES.read_text())
    assert memory_command.written(page, memory_command.section(figures)) == page, "scripts/benchmarks/memory_tables"


def test_the_plan_of_a_small_model_is_near_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from benchmarks import memory_command
    from benchmarks.shapes import SHAPES

    figures = json.loads(memory_command.FIGURES.read_text())
    place = memory_command.LENGTHS.index(figures["length"])
    for name, measured in figures["models"].items():
        planned = memory_command.plan(SHAPES[name]).embed_cpu[place] * 1024
        assert 0.7 * planned < measured["memory_mib"] < 1.1 * planned, name


# -- the image --------------------


def test_the_image_is_linted() -> None:
    program = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([program, DOCKERFILE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    loose = subprocess.run(
        [program, "-"], input="FROM python:latest\nRUN pip install torch\n", capture_output=True, text=True, check=False
    )
    assert loose.returncode == 1 and "DL3007" in loose.stdout and "DL3013" in loose.stdout


def test_the_image_has_the_versions_of_the_locks() -> None:
    text = DOCKERFILE.read_text()
    base = re.search(r"^ARG BASE=python:(\d+\.\d+)\.\d+-slim-bookworm$", text, re.MULTILINE)
    pinned = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert base and f"python={base[1]}" in pinned
    assert re.findall(r"^COPY (.*)$", text, re.MULTILINE) == ["locks/tools.txt /opt/plm/tools.txt"]
    for line in re.findall(r"pip install.*", text):
        assert "--requirement /opt/plm/" in line, "nothing is installed but what the lock names"
    version = re.search(r'image\.version="([^"]+)"', text)
    from plm import __version__

    assert version and version[1] == __version__
    assert PAGE.read_text().count(f"plm-suite-cuda:{__version__}") == 2
