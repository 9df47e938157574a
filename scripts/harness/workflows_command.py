"""The workflow files (.ga): complete, up to date with the tools, and with the tool ids of a panel or of a Tool Shed.

    scripts/workflows rebuild [PATH...]       let the running Galaxy fill in every option of the tools' forms, and write
                                              the files anew; names, annotations, places and reports stay
    scripts/workflows check [PATH...]         exit code 1 if a file has fallen behind the forms, or if Galaxy's run form
                                              or editor would complain about it
    scripts/workflows for-shed SHED [PATH...] tool ids and blocks of a Tool Shed, e.g. toolshed.g2.bx.psu.edu
    scripts/workflows for-panel [PATH...]     tool ids of a local panel again

Without PATH: all of workflows/*/*.ga. rebuild and check start Galaxy if it does not run. With --to FOLDER the rewritten
files go there, as FOLDER/<name>/<name>.ga, and those of the checkout stay as they are.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plm import stage
from plm.errors import UserError

from harness import workflow_files
from harness.layout import Layout
from harness.server import GalaxyServer
from harness.starting import called_from, start
from harness.workflow_files import ShedRepository


def say(line: str) -> None:
    print(f"[workflows] {line}", flush=True)


def main(layout: Layout, argv: list[str]) -> int:
    parser = stage.parser("scripts/workflows", __doc__ or "")
    actions = parser.add_subparsers(dest="action", required=True, metavar="action")
    for name in ("rebuild", "check"):
        actions.add_parser(name).add_argument("paths", nargs="*", metavar="PATH")
    shed = actions.add_parser("for-shed")
    shed.add_argument("shed", metavar="SHED", help="host of the Tool Shed, or its address")
    shed.add_argument("--owner", help="who owns the repository there (default: as in shed.yml)")
    shed.add_argument("--repository", help="its name (default: as in shed.yml)")
    shed.add_argument("--revision", help="changeset revision (default: the newest; asked of the Tool Shed)")
    panel = actions.add_parser("for-panel")
    for action in (shed, panel):
        action.add_argument("--to", metavar="FOLDER", help="where the files go (default: in place)")
        action.add_argument("paths", nargs="*", metavar="PATH")
    args = parser.parse_args(argv)
    paths = [called_from(path) for path in args.paths] or layout.workflow_files()
    if args.action in ("rebuild", "check"):
        server = GalaxyServer(layout, say)
        start(layout, server, [])
        return (_rebuild if args.action == "rebuild" else _check)(layout, server, paths)
    repository = _repository(layout, args) if args.action == "for-shed" else None
    for path in paths:
        content = workflow_files.read(path)
        made = workflow_files.for_shed(content, repository) if repository else workflow_files.for_panel(content)
        write(_target(path, args.to), made)
    whose = f"revision {repository.revision} of {repository.owner}/{repository.name}" if repository else "a local panel"
    say(f"{len(paths)} workflows name the tools of {whose}")
    return 0


def write(path: Path, workflow: dict[str, Any]) -> None:
    """Writes a ``.ga`` file whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(workflow_files.text_of(workflow), encoding="utf-8")
    os.replace(partial, path)


def _target(path: Path, folder: str | None) -> Path:
    if folder is None:
        return path
    target = called_from(folder) / path.parent.name
    target.mkdir(parents=True, exist_ok=True)
    for beside in path.parent.iterdir():
        if beside.is_file() and beside != path:
            shutil.copy(beside, target / beside.name)
    return target / path.name


def _rebuild(layout: Layout, server: GalaxyServer, paths: Sequence[Path]) -> int:
    for path in paths:
        content = workflow_files.read(path)
        made = workflow_files.rebuilt(server, content)
        # Galaxy orders the steps by their places when it takes a file: what it exports is settled after two rounds
        made = workflow_files.rebuilt(server, made)
        changed = workflow_files.text_of(made) != path.read_text(encoding="utf-8")
        if changed:
            write(path, made)
        say(f"{path.parent.name}/{path.name}: {'written anew' if changed else 'was up to date'}")
    return 0


def faults(server: GalaxyServer, path: Path) -> list[str]:
    """What is wrong with a ``.ga`` file: it has fallen behind the forms, or Galaxy's pages would complain."""
    content = workflow_files.read(path)
    found = []
    if workflow_files.text_of(workflow_files.rebuilt(server, content)) != path.read_text(encoding="utf-8"):
        found.append("it has fallen behind the tools' forms: scripts/workflows rebuild")
    history = server.request("POST", "/api/histories", {"name": "Questions about workflows"})["id"]
    try:
        found += workflow_files.complaints(server, content, history)
    finally:
        server.request("DELETE", f"/api/histories/{history}?purge=true")
    return found


def _check(layout: Layout, server: GalaxyServer, paths: Sequence[Path]) -> int:
    code = 0
    for path in paths:
        found = faults(server, path)
        say(f"{path.parent.name}/{path.name}: {'up to date' if not found else f'{len(found)} faults'}")
        for line in found:
            say(f"  {line}")
            code = 1
    return code


def _repository(layout: Layout, args: argparse.Namespace) -> ShedRepository:
    owner, name = workflow_files.default_repository(layout.root)
    owner, name = args.owner or owner, args.repository or name
    address = args.shed if "://" in args.shed else f"https://{args.shed}"
    host = urllib.parse.urlsplit(address).netloc
    if not host:
        raise UserError("Not the host of a Tool Shed", where=args.shed, fix="For example toolshed.g2.bx.psu.edu")
    return ShedRepository(host, owner, name, args.revision or newest_revision(address, owner, name))


def newest_revision(address: str, owner: str, name: str) -> str:
    """The newest revision that can be installed, as the Tool Shed says.

    Raises:
        UserError: It does not answer, or has no such repository.
    """
    query = urllib.parse.urlencode({"owner": owner, "name": name})
    url = f"{address.rstrip('/')}/api/repositories/get_ordered_installable_revisions?{query}"
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            revisions = json.loads(answer.read())
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise UserError(f"The Tool Shed does not answer: {error}", where=url, fix="Give --revision") from None
    if not revisions:
        raise UserError(f"It has no revision of {owner}/{name} to install", where=url, fix="Publish it, or --owner")
    return str(revisions[-1])
