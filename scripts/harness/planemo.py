"""planemo, always from the repository's root (it finds ``test-data`` only from there) and against our own server."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


def run(layout: Layout, arguments: Sequence[str]) -> int:
    """Runs planemo; returns its exit code."""
    command = [str(layout.env("planemo") / "bin" / "planemo"), *arguments]
    environment = child_environment(layout, {"NO_COLOR": "1"})
    return subprocess.run(command, cwd=layout.root, env=environment, check=False).returncode


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
    """Runs the tests of tools, or of workflows, and prints one line each; returns 0 only if some ran and all passed."""
    latest = layout.state / "planemo" / ("workflows.json" if paths[0].suffix == ".ga" else "tools.json")
    latest.parent.mkdir(parents=True, exist_ok=True)
    report = latest.with_name(f"{latest.stem}-{os.getpid()}.json")  # several may test at the same time
    code = run(
        layout,
        [
            "test",
            *("--engine", "external_galaxy", "--galaxy_url", server.url),
            *("--galaxy_admin_key", server.account().key, "--galaxy_user_key", server.account().key),
            *("--no_cache_galaxy", "--test_output_json", str(report)),
            *("--test_output", str(report.with_suffix(".html"))),
            *(str(path.relative_to(layout.root)) if path.is_relative_to(layout.root) else str(path) for path in paths),
        ],
    )
    outcomes = read_report(report)
    for suffix in (".json", ".html"):
        if report.with_suffix(suffix).exists():
            report.with_suffix(suffix).replace(latest.with_suffix(suffix))
    print(f"\n{'test':60s} {'result':8s} seconds")
    for outcome in outcomes:
        print(f"{outcome.name:60s} {'passed' if outcome.passed else 'FAILED':8s} {outcome.seconds:7.1f}")
        if outcome.problem:
            print(f"    {outcome.problem}")
    if not outcomes:
        print("NO TEST RAN")
        return code or 1
    return code or int(not all(outcome.passed for outcome in outcomes))


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
