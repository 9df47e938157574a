"""Installs everything and runs every test: what continuous integration runs, and nothing else.

    scripts/test                      everything: lint, types, pytest, planemo lint; the last commit published to a real
                                      Tool Shed and installed from there into a real Galaxy, where all tests of all
                                      tools and workflows run
    scripts/test --quick              no Galaxy, no slow tests
    scripts/test --only PART ...      some parts: ruff mypy pytest lint shed; and tools, workflows: the same tests of
                                      the checkout as it is, without a Tool Shed
    scripts/test -- ARG ...           arguments for pytest, e.g. scripts/test --only pytest -- -k windows

Runs every part even when one fails, prints how long each took, and exits with 1 if any failed.
"""

from __future__ import annotations

import argparse
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from plm import stage
from plm.errors import UserError
from plm.stage import duration

from harness import planemo, shed_trial
from harness.install import Installer
from harness.layout import Layout, child_environment
from harness.server import GalaxyServer
from harness.starting import start

PARTS = ("ruff", "mypy", "pytest", "lint", "shed")
OF_THE_CHECKOUT = ("tools", "workflows")
QUICK = ("ruff", "mypy", "pytest")
_NO_TESTS_COLLECTED = 5


@dataclass(frozen=True)
class PartResult:
    """How one part ended."""

    name: str
    passed: bool
    seconds: float


def say(line: str) -> None:
    print(f"[test] {line}", flush=True)


def main(layout: Layout, argv: list[str]) -> int:
    args, pytest_arguments = parse(argv)
    parts = args.only or (QUICK if args.quick else PARTS)
    needs_galaxy = not args.quick and bool({"pytest", "tools", "workflows"} & set(parts))
    shed = ["shed"] if "shed" in parts else []
    Installer(layout, say).install(["dev", *([] if args.quick else ["galaxy", "planemo", "supply", *shed])])
    checks = Checks(layout, quick=args.quick, pytest_arguments=pytest_arguments)
    results: list[PartResult] = []
    stop_after = False
    if needs_galaxy:
        server = GalaxyServer(layout, say)
        stop_after = not server.status().answers and not args.keep
        begun = time.monotonic()
        try:
            start(layout, server, [])
            results.append(PartResult("galaxy start", not server.faults(), time.monotonic() - begun))
        except UserError as error:
            say(f"error: {error}")
            results.append(PartResult("galaxy start", False, time.monotonic() - begun))
    try:
        for name in parts:
            say(f"{'=' * 20} {name}")
            begun = time.monotonic()
            passed = checks.run(name)
            results.append(PartResult(name, passed, time.monotonic() - begun))
    finally:
        if stop_after:
            GalaxyServer(layout, say).stop()
    return report(results)


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The script's own options, and after ``--`` those of pytest."""
    own, rest = list(argv), list[str]()
    if "--" in own:
        cut = own.index("--")
        own, rest = own[:cut], own[cut + 1 :]
    parser = stage.parser("scripts/test", __doc__ or "")
    parser.add_argument("--quick", action="store_true", help="no Galaxy and no slow tests")
    told = f"some of: {' '.join([*PARTS, *OF_THE_CHECKOUT])}"
    parser.add_argument("--only", nargs="+", choices=[*PARTS, *OF_THE_CHECKOUT], metavar="PART", help=told)
    parser.add_argument("--keep", action="store_true", help="leave Galaxy running afterwards")
    args = parser.parse_args(own)
    if args.quick and args.only and set(args.only) - set(QUICK):
        parser.error(f"--quick has no Galaxy: it knows only {' '.join(QUICK)}")
    return args, rest


def report(results: Sequence[PartResult]) -> int:
    """Prints one line a part and a last plain line; returns the exit code."""
    print()
    for result in results:
        say(f"{result.name:14s} {'passed' if result.passed else 'FAILED':7s} {duration(result.seconds):>12s}")
    failed = [result.name for result in results if not result.passed]
    total = duration(sum(result.seconds for result in results))
    if failed or not results:
        say(f"FAILED in {total}: {', '.join(failed) or 'nothing ran'}")
        return 1
    say(f"PASSED in {total}: {', '.join(result.name for result in results)}")
    return 0


def _is_shell(path: Path) -> bool:
    return path.read_bytes()[:20].startswith(b"#!/usr/bin/env bash")


class Checks:
    """The parts, each by its name.

    Args:
        layout: The checkout.
        quick: Leave out what is slow or needs Galaxy.
        pytest_arguments: Passed on to pytest.
    """

    def __init__(self, layout: Layout, *, quick: bool, pytest_arguments: Sequence[str] = ()) -> None:
        self.layout, self.quick, self.pytest_arguments = layout, quick, list(pytest_arguments)

    def run(self, name: str) -> bool:
        part: Callable[[], bool] = getattr(self, name)
        return part()

    def ruff(self) -> bool:
        return self._python("-m", "ruff", "check", ".") == 0

    def mypy(self) -> bool:
        stages = [str(path) for path in sorted(self.layout.tools.glob("plm_*.py"))]
        return self._python("-m", "mypy", "tools/plm", "scripts/harness", *stages) == 0

    def pytest(self) -> bool:
        # One process a core, each with one thread: most of the time goes into starting stages, not into products.
        several = ["-n", str(min(4, stage.threads())), "--dist", "worksteal"] if stage.threads() > 1 else []
        if self.quick:
            parts = [[*several, "-m", "not slow and not galaxy"]]
        elif "-m" in self.pytest_arguments:
            parts = [several]
        else:  # tests that use the one Galaxy, and its one user's histories, come one after the other
            parts = [[*several, "-m", "not galaxy"], ["-m", "galaxy"]]
        codes = [
            self._python("-m", "pytest", "-q", "--durations=10", *part, *self.pytest_arguments) for part in parts
        ]
        if set(codes) == {_NO_TESTS_COLLECTED}:
            say("pytest collected no test")
            return False
        return set(codes) <= {0, _NO_TESTS_COLLECTED}

    def lint(self) -> bool:
        files = [*self.layout.tool_files(), *self.layout.workflow_files()]
        if not files:
            say("there is no tool to lint")
        codes = [planemo.lint(self.layout, path) for path in files]
        codes.append(planemo.shed_lint(self.layout))
        codes.extend(self._continuous_integration())
        return bool(files) and not any(codes)

    def _continuous_integration(self) -> list[int]:
        """The files of ``.github`` by their published schemas and for holes, the shell scripts for mistakes."""
        github = self.layout.root / ".github"
        programs = self.layout.env("dev") / "bin"
        schema = [str(programs / "check-jsonschema"), "--builtin-schema"]
        shell = [path for path in sorted(self.layout.root.glob("scripts/*")) if path.is_file() and _is_shell(path)]
        shell += [self.layout.root / ".ci" / "run"]
        commands = [
            [*schema, "vendor.github-workflows", *map(str, sorted((github / "workflows").glob("*.yml")))],
            [*schema, "vendor.dependabot", str(github / "dependabot.yml")],
            [str(programs / "zizmor"), "--offline", "--no-progress", "--quiet", str(github)],
            [str(programs / "shellcheck"), "--external-sources", "--source-path=SCRIPTDIR", *map(str, shell)],
        ]
        return [
            subprocess.run(each, cwd=self.layout.root, env=child_environment(self.layout), check=False).returncode
            for each in commands
        ]

    def shed(self) -> bool:
        return shed_trial.rehearse(self.layout, say) == 0

    def tools(self) -> bool:
        return self._planemo_test(self.layout.tool_files(), "tools/plm_*.xml")

    def workflows(self) -> bool:
        return self._planemo_test(self.layout.workflow_files(), "workflows/*/*.ga")

    def _planemo_test(self, files: Sequence[Path], pattern: str) -> bool:
        server = GalaxyServer(self.layout, say)
        if not files:
            say(f"there is nothing to test: no {pattern}")
            return False
        if not server.status().answers:
            say("Galaxy does not run")
            return False
        return planemo.test(self.layout, server, files) == 0

    def _python(self, *arguments: str) -> int:
        command = [str(self.layout.python("dev")), *arguments]
        environment = child_environment(self.layout)
        environment["PATH"] = f"{self.layout.env('tools') / 'bin'}:{environment.get('PATH', '')}"
        return subprocess.run(command, cwd=self.layout.root, env=environment, check=False).returncode
