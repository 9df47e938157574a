"""Whatever a user chooses in a form, its command is one that the script takes: files, flags, values."""

from __future__ import annotations

import argparse
import importlib
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from plm import flags

ROOT = Path(__file__).resolve().parents[1]
GALAXY = ROOT / ".plm" / "envs" / "galaxy" / "bin" / "python"
TOOLS = sorted(path.stem for path in (ROOT / "tools").glob("plm_*.xml"))
STATES = 25
STARTS = ("python", "${PLM_LAUNCH:-python}")
"""The second where an administrator may start several processes."""

pytestmark = pytest.mark.galaxy


@pytest.fixture(scope="module")
def commands() -> dict[str, list[str]]:
    if not GALAXY.exists():
        pytest.fail("Galaxy is not installed: scripts/galaxy install")
    asked = {"tools": str(ROOT / "tools"), "states": STATES, "seed": 1}
    probe = Path(__file__).with_name("command_probe.py")
    command = [GALAXY, "-W", "ignore", probe]
    done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    made: dict[str, list[str]] = json.loads(done.stdout)
    return made


@pytest.mark.parametrize("tool", TOOLS)
def test_every_command_is_one_that_the_script_takes(tool: str, commands: dict[str, list[str]]) -> None:
    module = importlib.import_module(tool)
    parser = flags.parser(module.Arguments, tool, "")
    known = flags.flags_of(module.Arguments)
    assert len(commands[tool]) == STATES
    for command in commands[tool]:
        steps = [shlex.split(step) for step in command.split("&&")]
        (script,) = (step for step in steps if step and step[0] in STARTS and step[1].endswith(f"/{tool}.py"))
        # Without the checks of places, which are on the machine of a job.
        given = vars(argparse.ArgumentParser.parse_args(parser, script[2:]))
        for name, flag in known.items():
            flag.check(flags.spelled(name), given[name])


@pytest.mark.parametrize("tool", TOOLS)
def test_every_file_that_is_read_is_linked_under_a_plain_name(tool: str, commands: dict[str, list[str]]) -> None:
    for command in commands[tool]:
        steps = [shlex.split(step) for step in command.split("&&")]
        links = [step[3] for step in steps if step[:2] == ["ln", "-s"]]
        assert len(set(links)) == len(links), command
        assert all(re.fullmatch(r"[A-Za-z0-9._/-]+", link) and ".." not in link.split("/") for link in links), command
        used = [word for step in steps for word in step if word.startswith("plm_") and "/" in word]
        assert set(used) - set(links) <= {link.rsplit("/", 1)[0] for link in links}, command
