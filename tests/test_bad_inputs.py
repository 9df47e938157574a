"""Every stage answers bad input with one line, exit code 1 and no output: a table of several hundred cases."""

from __future__ import annotations

import importlib
import re
import signal
from pathlib import Path

import bad_inputs
import pytest
from bad_inputs import COMMANDS, BadInput
from plm import stage

ROOT = Path(__file__).resolve().parents[1]
CASES = bad_inputs.cases()


def answer(name: str, line: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit code of a stage's ``main``, and what it wrote to standard error."""
    capsys.readouterr()
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            stage.main(name, importlib.import_module(name).run, line)
    finally:
        signal.signal(signal.SIGTERM, before)
    code = ended.value.code
    assert isinstance(code, int)
    return code, capsys.readouterr().err


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.command}-{case.name}".replace(" ", "_"))
def test_bad_input_is_one_line(
    case: BadInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    uploads, place = tmp_path / "uploads", tmp_path / "job"
    uploads.mkdir()
    place.mkdir()
    monkeypatch.chdir(place)
    command = COMMANDS[case.command]
    given = case.given(uploads)
    before = {path: path.read_bytes() for path in uploads.rglob("*") if path.is_file()}
    code, told = answer(command.stage, command.line(given, case.extra), capsys)
    assert code == stage.EXIT_USER_ERROR, told
    assert re.fullmatch(rf"{command.stage}: error: [^\n]+\n", told), told
    assert re.search(case.message, told), told
    assert re.search(r"\. \S[^.]*.*\.\n", told), f"says how to put it right: {told}"
    assert len(told) < 1600 and told[:-1].isprintable(), told
    assert [path for path in place.rglob("*") if path.is_file()] == []
    assert {path: path.read_bytes() for path in uploads.rglob("*") if path.is_file()} == before


def test_the_table_has_every_stage_and_enough_cases() -> None:
    stages = {path.stem for path in (ROOT / "tools").glob("plm_*.py")}
    assert {command.stage for command in COMMANDS.values()} == stages
    assert len(CASES) >= 1400
    of = {name: sum(COMMANDS[case.command].stage == name for case in CASES) for name in stages}
    assert min(of.values()) >= 15, of
