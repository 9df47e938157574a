"""A running Galaxy: what every command that needs one begins with."""

from __future__ import annotations

import os
from pathlib import Path

from harness import welcome
from harness.configuration import models_in
from harness.install import Installer
from harness.layout import Layout
from harness.server import GalaxyServer


def called_from(path: str) -> Path:
    """A path as the user meant it, from the folder in which she called the script."""
    return (Path(os.environ.get("PLM_CALLED_FROM", ".")) / Path(path).expanduser()).resolve()


def start(layout: Layout, server: GalaxyServer, models: list[str], *, for_tests: bool = True) -> None:
    """Installs what is missing, starts the server or finds it, and says which tools did not load."""
    Installer(layout, server.say).install(["tools", "galaxy", "planemo"])
    rows = [row for folder in models for row in models_in(called_from(folder))]
    if not (layout.config / welcome.PAGE).is_file():
        welcome.write_page(layout, [])  # scripts/serve fills it
    if not server.start(rows, for_tests=for_tests):
        server.say(f"Galaxy already runs on {server.url}")
        if server.changed():
            server.reload()
            server.say("took the changed tools")
    for name, reason in server.faults().items():
        server.say(f"FAULTY TOOL: {name}: {reason}")
