"""Keeps this checkout's Galaxy open for the browser, with the suite's tools, until Ctrl-C.

scripts/serve                     start it (or find the one that runs) and print address and login
scripts/serve --models DIR        also list the models in DIR (Hugging Face format) in the model table
scripts/serve --detach            leave it running and return
scripts/serve --stop              stop it
"""

from __future__ import annotations

import time

from plm import stage
from plm.errors import UserError

from harness import welcome
from harness.layout import Layout
from harness.server import GalaxyServer
from harness.starting import start


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
    start(layout, server, args.models, for_tests=False)
    workflows = welcome.prepare(layout, server)
    account = server.account()
    say(f"Galaxy is open at  {server.url}")
    say(f"log in as          {account.email}   password {account.password}")
    say("its first page     says where to start, with example data one click away")
    say("workflows          " + (", ".join(workflows) or "none yet"))
    if args.detach:
        say("it stays open; stop it with scripts/serve --stop")
        return 0
    say("Ctrl-C stops it (and its running jobs), whoever started it")
    _wait(server)
    return 0


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
