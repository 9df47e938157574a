"""Keeps this checkout's Galaxy open for the browser, with the suite's tools, until Ctrl-C.

scripts/serve                     start it (or find the one that runs) and print address and login
scripts/serve --models DIR        also list the models in DIR (Hugging Face format) in the model table
scripts/serve --detach            leave it running and return
scripts/serve --stop              stop it
"""

from __future__ import annotations

import json
import time

from plm import stage
from plm.errors import UserError

from harness.galaxy_command import start
from harness.layout import Layout
from harness.server import GalaxyServer


def say(line: str) -> None:
    print(f"[serve] {line}", flush=True)


def main(layout: Layout, argv: list[str]) -> int:
    parser = stage.parser("scripts/serve", __doc__ or "")
    parser.add_argument("--models", metavar="DIR", action="append", default=[], help="models to list; repeatable")
    ending = parser.add_mutually_exclusive_group()
    ending.add_argument("--detach", action="store_true", help="leave it running and return")
    ending.add_argument("--stop", action="store_true", help="stop the server")
    args = parser.parse_args(argv)
    server = GalaxyServer(layout, say)
    if args.stop:
        say("stopped" if server.stop() else "it was not running")
        return 0
    ours = not server.status().answers
    start(layout, server, args.models)
    account = server.account()
    say(f"Galaxy is open at  {server.url}")
    say(f"log in as          {account.email}   password {account.password}")
    say("workflows          " + (_import_workflows(layout, server) or "none yet"))
    if args.detach or not ours:
        say("it stays open; stop it with scripts/serve --stop")
        return 0
    say("Ctrl-C stops it (and its running jobs)")
    _wait(server)
    return 0


def _import_workflows(layout: Layout, server: GalaxyServer) -> str:
    """Puts the suite's workflows among the user's, unless one of that name is there; returns their names."""
    have = {workflow["name"] for workflow in server.request("GET", "/api/workflows")}
    workflows = [json.loads(path.read_text()) for path in layout.workflow_files()]
    for workflow in workflows:
        if workflow["name"] not in have:
            server.request("POST", "/api/workflows", {"workflow": workflow})
    return ", ".join(workflow["name"] for workflow in workflows)


def _wait(server: GalaxyServer) -> None:
    try:
        while server.status().running:
            time.sleep(1)
    except KeyboardInterrupt:
        print()
        say("stopping")
        server.stop()
        return
    raise UserError("Galaxy has ended", fix="scripts/galaxy logs says why")
