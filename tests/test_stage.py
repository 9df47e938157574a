"""What every stage shares: one-line errors, whole-or-absent outputs, checked libraries, a help that answers at once."""

from __future__ import annotations

import logging
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from plm import stage
from plm.errors import UserError

STAGES = sorted(path.stem for path in (Path(__file__).parents[1] / "tools").glob("plm_*.py"))


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("name", STAGES)
def test_help_costs_less_than_half_a_second(
    name: str, run_stage: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    before = _children()
    done = run_stage(name, "--help")
    assert done.returncode == 0 and done.stdout.startswith(f"usage: {name}")
    assert _children() - before < 0.5


@pytest.mark.parametrize("name", STAGES)
def test_a_usage_mistake_is_one_line(name: str, run_stage: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = run_stage(name, "--nonsense")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith(f"{name}: error: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["plm_finetune", "plm_predict"])
def test_stages_of_one_process_are_refused_to_torchrun(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line of the leading process; and what is shared runs."""
    ran: list[str] = []

    def ended(stage_name: str, rank: int) -> tuple[int | str | None, str]:
        monkeypatch.setenv("RANK", str(rank))
        with pytest.raises(SystemExit) as end:
            stage.main(stage_name, lambda argv: ran.append(stage_name))
        return end.value.code, capsys.readouterr().err

    kept = signal.getsignal(signal.SIGTERM)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    try:
        code, told = ended(name, 0)
        assert code == 1 and told.count("\n") == 1 and f"{name} works in one process, and 2 were started" in told
        assert ended(name, 1) == (1, "")
        assert ran == []
        for shared in stage.SHARED:
            assert ended(shared, 0) == (0, "")
        assert ran == list(stage.SHARED)
        monkeypatch.setenv("WORLD_SIZE", "1")
        assert ended(name, 0) == (0, "")
    finally:
        signal.signal(signal.SIGTERM, kept)


def test_stages_that_processes_share_are_those_that_join_them() -> None:
    tools = Path(__file__).parents[1] / "tools"
    assert {path.stem for path in tools.glob("plm_*.py") if "Ranks.join(" in path.read_text()} == set(stage.SHARED)


def test_an_error_is_one_line_whatever_it_quotes() -> None:
    assert str(UserError("It broke.\nBadly.", where="a\tb", fix="Mend it.")) == "It broke. Badly [a b]. Mend it."
    assert str(UserError("It broke")) == "It broke."


def test_outputs_appear_together(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with stage.Outputs() as out:
        out.path(tmp_path / "a.tsv").write_text("a")
        (out.directory(tmp_path / "empty") / "new").write_text("b")
        assert not (tmp_path / "a.tsv").exists()
    found = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*"))
    assert found == ["a.tsv", "empty", "empty/new"]


@pytest.mark.parametrize("error", [UserError("no"), ValueError("bug"), KeyboardInterrupt(), SystemExit(143)])
def test_no_output_is_left_after_any_error(error: BaseException, tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("earlier")
    with pytest.raises(type(error)), stage.Outputs() as out:
        out.path(tmp_path / "a.tsv").write_text("half")
        (out.directory(tmp_path / "d") / "file").write_text("half")
        raise error
    assert [path.name for path in tmp_path.iterdir()] == ["a.tsv"]
    assert (tmp_path / "a.tsv").read_text() == "earlier"


def test_an_output_folder_that_does_not_exist_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="folder of the output"), stage.Outputs() as out:
        out.path(tmp_path / "absent" / "a.tsv")


SLEEPER = """
import sys, time
sys.path.insert(0, {tools!r})
from plm import stage
def run(argv):
    with stage.Outputs() as out:
        out.path({final!r}).write_text("half")
        print("ready", flush=True)
        time.sleep(60)
stage.main("plm_sleep", run)
"""


def test_a_terminated_job_leaves_nothing(root: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    code = SLEEPER.format(tools=str(root / "tools"), final=str(tmp_path / "out" / "a.tsv"))
    job = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert job.stdout is not None and job.stdout.readline() == "ready\n"
    job.send_signal(signal.SIGTERM)
    assert job.wait(30) == stage.EXIT_TERMINATED
    assert list((tmp_path / "out").iterdir()) == []


def test_a_bug_keeps_its_traceback() -> None:
    def run(argv: object) -> None:
        raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        stage.main("plm_bug", run)


def test_libraries_are_checked_by_name_and_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage.metadata, "version", lambda name: "2.13.0+cpu")
    stage.require({"torch": "2.6"})
    stage.require({"torch": "2.13"})
    with pytest.raises(UserError, match=r"torch 2\.13\.0\+cpu is too old: this tool needs 3 or newer"):
        stage.require({"torch": "3"})
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"no-such-library is missing: this tool needs no-such-library 1\.0"):
        stage.require({"no-such-library": "1.0"})


def test_the_scheduler_decides_about_threads_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GALAXY_SLOTS", "7")
    monkeypatch.setenv("GALAXY_MEMORY_MB", "1234")
    assert (stage.threads(), stage.memory_mib()) == (7, 1234)
    monkeypatch.setenv("GALAXY_SLOTS", "many")
    monkeypatch.delenv("GALAXY_MEMORY_MB")
    assert stage.threads() >= 1 and stage.memory_mib() > 1


def test_progress_ends_at_its_total(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("progress of a test")
    logger.setLevel(logging.INFO)
    progress = stage.Progress(logger, 4, "rows", every=1000)
    for _ in range(4):
        progress.advance(1)
    (line,) = caplog.messages
    assert line.startswith("4 of 4 rows (100 %)") and line.endswith("0 s left")


def test_time_in_words() -> None:
    assert [stage.duration(seconds) for seconds in (0.4, 59, 60, 3599, 7500)] == [
        "0 s", "59 s", "1 min 0 s", "59 min 59 s", "2 h 5 min",
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--seed", "-1"], "-1 is no seed"),
        (["--seed", str(2**70)], "too large"),
        (["--seed", str(2**32)], "is no seed"),
        (["--mask-seed", "-5"], "-5 is no seed"),
        (["--count", str(10**30)], "too large"),
        (["--rate", "nan"], "nan is no number"),
        (["--rate=-inf"], "-inf is no number"),
        (["--rate", "1e999"], "inf is no number"),
        (["--rates", "0.1", "inf"], "inf is no number"),
    ],
)
def test_numbers_that_no_library_takes(words: list[str], said: str) -> None:
    made = stage.parser("x", "")
    made.add_argument("--seed", type=int, default=42)
    made.add_argument("--mask-seed", type=int)
    made.add_argument("--count", type=int)
    made.add_argument("--rate", type=float)
    made.add_argument("--rates", type=float, nargs="+")
    with pytest.raises(UserError, match=said) as caught:
        made.parse_args(words)
    assert words[0].split("=")[0] in str(caught.value) and caught.value.fix
    assert made.parse_args(["--seed", "0", "--count", "-3", "--rate", "1e-9"]).seed == 0
