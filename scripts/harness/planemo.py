"""planemo, always from the repository's root (it finds ``test-data`` only from there) and against our own server."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from harness.layout import Layout, child_environment
from harness.server import GalaxyServer


@dataclass(frozen=True)
class TestOutcome:
    """One tool or workflow test as planemo reports it."""

    __test__ = False

    name: str
    passed: bool
    seconds: float
    problem: str


def run(layout: Layout, arguments: Sequence[str], *, output: IO[str] | None = None) -> int:
    """Runs planemo, which says what it does on the screen or into ``output``; returns its exit code."""
    command = [str(layout.env("planemo") / "bin" / "planemo"), *arguments]
    environment = child_environment(layout, {"NO_COLOR": "1"})
    done = subprocess.run(
        command, cwd=layout.root, env=environment, check=False, stdout=output,
        stderr=None if output is None else subprocess.STDOUT,
    )
    return done.returncode


def lint(layout: Layout, path: Path) -> int:
    """Lints one tool at warn level, or one workflow to the standard of the IWC; returns planemo's exit code."""
    if path.suffix == ".ga":
        return run(layout, ["workflow_lint", "--iwc", str(path.parent)])
    # BioToolsValid asks the bio.tools site and warns when it does not answer: tests need no network.
    level = ["--report_level", "warn", "--fail_level", "warn", "--skip", "BioToolsValid"]
    return run(layout, ["lint", *level, str(path)])


def shed_lint(layout: Layout) -> int:
    """Lints the repository as a Tool Shed sees it; returns planemo's exit code."""
    # version_bumped asks the Tool Shed, BioToolsValid the bio.tools site
    level = ["--report_level", "warn", "--fail_level", "error", "--skip", "version_bumped,BioToolsValid"]
    return run(layout, ["shed_lint", "--tools", "--ensure_metadata", *level, "."])


def test(layout: Layout, server: GalaxyServer, paths: Sequence[Path]) -> int:
    """Runs the tests of tools, or of workflows, and prints one line each; returns 0 only if some ran and all passed.

    Where there are several cores three runs share the files: Galaxy's two workers then have a job each while a third
    run uploads, waits or compares.
    """
    latest = layout.state / "planemo" / ("workflows.json" if paths[0].suffix == ".ga" else "tools.json")
    latest.parent.mkdir(parents=True, exist_ok=True)
    share = min(3, len(paths)) if (os.cpu_count() or 1) > 1 else 1
    parts = [list(paths[number::share]) for number in range(share)]
    # Several checks may test at the same time, too.
    reports = [latest.with_name(f"{latest.stem}-{os.getpid()}-{number}.json") for number in range(share)]
    logs = [None, *(report.with_suffix(".log") for report in reports[1:])]
    with ThreadPoolExecutor(share) as pool:
        codes = list(pool.map(partial(_test_part, layout, server), parts, reports, logs))
    for log in filter(None, logs):
        print(log.read_text(errors="replace"))
        log.unlink()
    outcomes = [outcome for report in reports for outcome in read_report(report)]
    _keep(reports, latest)
    return show(outcomes) or max(codes)


def show(outcomes: Sequence[TestOutcome]) -> int:
    """Prints one line a test; returns 0 only if some ran and all passed."""
    print(f"\n{'test':60s} {'result':8s} seconds")
    for outcome in outcomes:
        print(f"{outcome.name:60s} {'passed' if outcome.passed else 'FAILED':8s} {outcome.seconds:7.1f}")
        if outcome.problem:
            print(f"    {outcome.problem}")
    if not outcomes:
        print("NO TEST RAN")
        return 1
    return int(not all(outcome.passed for outcome in outcomes))


def _test_part(layout: Layout, server: GalaxyServer, paths: Sequence[Path], report: Path, log: Path | None) -> int:
    """Runs planemo on some files; it says what it does on the screen, or into a file that is shown afterwards."""
    arguments = [
        "test",
        *("--engine", "external_galaxy", "--galaxy_url", server.url),
        *("--galaxy_admin_key", server.account().key, "--galaxy_user_key", server.account().key),
        *("--no_cache_galaxy", "--test_output_json", str(report)),
        *("--test_output", str(report.with_suffix(".html"))),
        *(str(path.relative_to(layout.root)) if path.is_relative_to(layout.root) else str(path) for path in paths),
    ]
    if log is None:
        return run(layout, arguments)
    with log.open("w") as opened:
        return run(layout, arguments, output=opened)


def _keep(reports: Sequence[Path], latest: Path) -> None:
    """Leaves the reports of the latest run where people look for them; the first part's under the plain name."""
    for number, report in enumerate(reports):
        for suffix in (".json", ".html"):
            if report.with_suffix(suffix).exists():
                place = latest if number == 0 else latest.with_name(f"{latest.stem}-{number + 1}.json")
                report.with_suffix(suffix).replace(place.with_suffix(suffix))


def read_report(path: Path) -> list[TestOutcome]:
    """The tests in planemo's JSON report; none if it wrote no report."""
    try:
        tests: list[dict[str, Any]] = json.loads(path.read_text()).get("tests", [])
    except (OSError, ValueError):
        return []
    outcomes = []
    for test_case in tests:
        data = test_case.get("data", {})
        problems = data.get("output_problems") or [data.get("execution_problem") or ""]
        job = data.get("job") or {}
        said = [line for line in str(job.get("stderr") or "").splitlines() if line.strip()][-3:]
        problem = " | ".join(" ".join(str(line).split())[:600] for line in [*problems, *said] if line)
        passed = data.get("status") == "success"
        seconds = float(data.get("time_seconds") or 0)
        outcomes.append(TestOutcome(str(test_case.get("id", "?")), passed, seconds, "" if passed else problem))
    return outcomes
