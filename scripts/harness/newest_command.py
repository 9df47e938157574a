"""Tries today's newest releases of the libraries, and of Galaxy, and says what would break.

    scripts/newest                            all libraries: the quick tier of the tests, parity tests included
    scripts/newest --only torch transformers  these alone, the others at their pins
    scripts/newest --galaxy                   Galaxy too: it starts, and tests of two tools and a workflow run
    scripts/newest --write                    and if everything passed, take the new pins over into this checkout

Works in a clone of the last commit below .plm/newest, with the Python that runs it (3.11, 3.12 or 3.13; PLM_PYTHON
names another), so nothing else changes. Downloads as much as a first scripts/test. Exit code 1 if a test failed.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from plm import stage
from plm.errors import UserError
from plm.stage import duration

from harness import requirements, shed_trial
from harness.install import Installer, normalised, read_lock
from harness.layout import Layout, child_environment
from harness.supply_command import write_hashes

GALAXY = ("galaxy", "total-perspective-vortex")
TRIED_IN_GALAXY = ("tools/plm_embed.xml", "tools/plm_finetune.xml", "workflows/embed-proteome/embed-proteome.ga")
PINNED_FILES = (
    "locks/tools.txt", "locks/galaxy.txt", "locks/hashes/tools.txt", "locks/hashes/galaxy.txt", "tools/macros.xml",
    "environment.yml",
)
_OF_A_BUILD = re.compile(r"(nvidia|cuda|triton)\b")
"""Libraries that a build of torch brings along: no lock names them, pip fetches them with the build."""
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)


def say(line: str) -> None:
    print(f"[newest] {line}", flush=True)


def main(layout: Layout, argv: list[str]) -> int:
    parser = stage.parser("scripts/newest", __doc__ or "")
    parser.add_argument("--only", nargs="+", metavar="PACKAGE", help="as pip calls them; others keep their pins")
    parser.add_argument("--galaxy", action="store_true", help="Galaxy too")
    parser.add_argument("--write", action="store_true", help="take the new pins over if everything passed")
    args = parser.parse_args(argv)
    Installer(layout, say).install(["tools"])
    clone = fresh_clone(layout)
    changes = renew(layout, clone, args)
    for lock, changed in changes.items():
        for name, (old, new) in sorted(changed.items()):
            say(f"{lock}: {name} {old or '(none)'} -> {new or '(none)'}")
    if not any(changes.values()):
        say("every pin is the newest release already; the tests run all the same")
    passed = run_tests(clone, galaxy=args.galaxy)
    if passed and args.write:
        for name in PINNED_FILES:
            shutil.copyfile(clone.root / name, layout.root / name)
        say(f"written: {', '.join(PINNED_FILES)}")
    return 0 if passed else 1


def fresh_clone(layout: Layout) -> Layout:
    """A clone of the last commit, with the caches of this checkout."""
    place = layout.state / "newest"
    shutil.rmtree(place, ignore_errors=True)
    shed_trial.cloned(layout, place, say)
    (place / ".plm").mkdir()
    (place / ".plm" / "cache").symlink_to(layout.cache)
    return Layout(place)


def renew(layout: Layout, clone: Layout, args: argparse.Namespace) -> dict[str, dict[str, tuple[str, str]]]:
    """Writes the newest releases into the clone's pins; returns lock to package to version before and after."""
    asked = {
        requirements.pypi_name(requirement.name)
        for requirement in requirements.read_requirements(layout.tool_files())
        if requirement.name != "python"
    }
    unknown = sorted({normalised(name) for name in args.only or ()} - asked - {*GALAXY})
    if unknown:
        raise UserError(f"No tool requires {', '.join(unknown)}", fix=f"Known are {', '.join(sorted(asked))}")
    chosen = asked & {normalised(name) for name in args.only} if args.only else asked
    changes = {}
    if chosen:
        changes["tools"] = _renew_lock(layout, clone, "tools", chosen, asked)
        _renew_requirements(clone, changes["tools"])
    if args.galaxy:
        changes["galaxy"] = _renew_lock(layout, clone, "galaxy", set(GALAXY), set(GALAXY))
    return changes


def _renew_lock(
    layout: Layout, clone: Layout, name: str, chosen: set[str], asked: set[str]
) -> dict[str, tuple[str, str]]:
    path = clone.locks / f"{name}.txt"
    before = read_lock(path)
    wanted = [*sorted(chosen), *(f"{other}=={before[other]}" for other in sorted(asked - chosen))]
    after = resolved(layout, wanted)
    path.write_text("".join(f"{package}=={version}\n" for package, version in sorted(after.items())))
    write_hashes(layout, clone, name)
    names = {*before, *after}
    pairs = {package: (before.get(package, ""), after.get(package, "")) for package in names}
    return {package: pair for package, pair in pairs.items() if pair[0] != pair[1]}


def resolved(layout: Layout, wanted: Sequence[str]) -> dict[str, str]:
    """What pip would install for these requirements on this machine: name (normalised) to version, without local parts.

    Raises:
        UserError: pip finds no set of versions, or no index.
    """
    report = layout.state / "newest.json"
    command = [str(layout.python("boot")), "-m", "pip", "--python", str(layout.python("tools")), "install", "--quiet"]
    command += ["--dry-run", "--ignore-installed", "--report", str(report), *wanted]
    done = subprocess.run(
        command, env=child_environment(layout, own_home=False), capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise UserError(f"pip finds no versions for {' '.join(wanted)[:200]}: {' '.join(lines[-2:])[:400]}")
    entries = json.loads(report.read_text())["install"]
    versions = {
        normalised(entry["metadata"]["name"]): str(entry["metadata"]["version"]).split("+")[0] for entry in entries
    }
    return {package: version for package, version in versions.items() if not _OF_A_BUILD.match(package)}


def _renew_requirements(clone: Layout, changes: Mapping[str, tuple[str, str]]) -> None:
    """The same versions in the tools' macros and in the conda environment, under conda's names."""
    macros, conda = clone.tools / "macros.xml", clone.root / "environment.yml"
    xml, yaml = macros.read_text(), conda.read_text()
    for requirement in requirements.read_requirements(clone.tool_files()):
        old, new = changes.get(requirements.pypi_name(requirement.name), ("", ""))
        if not new or requirement.name == "mmseqs2":  # its wheel has numbers of its own
            continue
        xml = xml.replace(f'version="{old}">{requirement.name}<', f'version="{new}">{requirement.name}<')
        yaml = yaml.replace(f"  - {requirement.name}={old}\n", f"  - {requirement.name}={new}\n")
    macros.write_text(xml)
    conda.write_text(yaml)


def run_tests(clone: Layout, *, galaxy: bool) -> bool:
    """The quick tier in the clone, and if asked for its Galaxy; says what failed."""
    parts = [("the quick tier", [["scripts/test", "--quick"]])]
    if galaxy:
        parts.append(("Galaxy", [["scripts/galaxy", "start"], ["scripts/galaxy", "test", *TRIED_IN_GALAXY]]))
    results = []
    try:
        for title, commands in parts:
            log = clone.state / f"{title.split()[-1].lower()}.log"
            begun = time.monotonic()
            passed = all(_passes(clone, command, log) for command in commands)
            results.append(passed)
            say(f"{title} {'passed' if passed else 'FAILED'} in {duration(time.monotonic() - begun)}")
            if not passed:
                tell(log.read_text(errors="replace").splitlines())
                say(f"everything it said: {log}")
    finally:
        if galaxy:
            _passes(clone, ["scripts/galaxy", "stop"], clone.state / "galaxy.log")
    return all(results)


def _passes(clone: Layout, command: Sequence[str], log: Path) -> bool:
    environment = child_environment(clone, {"PLM_PYTHON": sys.executable}, own_home=False)
    with log.open("a") as sink:
        done = subprocess.run(
            [str(clone.root / command[0]), *command[1:]],
            cwd=clone.root, env=environment, stdout=sink, stderr=subprocess.STDOUT, check=False,
        )
    return done.returncode == 0


def tell(lines: Iterable[str]) -> None:
    """Says the names of the tests that failed, or the last lines where no test got as far."""
    said = list(lines)
    failed = _FAILED.findall("\n".join(said))
    for line in failed[:40] or said[-12:]:
        say(f"  {line}")
    if len(failed) > 40:
        say(f"  and {len(failed) - 40} more")
