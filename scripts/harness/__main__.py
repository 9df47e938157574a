"""Entry of the programs in ``scripts``: the first argument says which."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

COMMANDS = {
    "galaxy": "galaxy_command",
    "newest": "newest_command",
    "run": "run_command",
    "serve": "serve_command",
    "supply": "supply_command",
    "test": "checks",
    "workflows": "workflows_command",
}
ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT / "scripts")
sys.path.insert(1, str(ROOT / "tools"))


def main() -> None:
    from plm.errors import UserError

    from harness.layout import Layout

    name, *arguments = sys.argv[1:]
    try:
        layout = Layout(ROOT)
        command = importlib.import_module(f"harness.{COMMANDS[name]}")
        sys.exit(command.main(layout, arguments))
    except UserError as error:
        print(f"scripts/{name}: error: {error}", file=sys.stderr, flush=True)
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"scripts/{name}: interrupted", file=sys.stderr, flush=True)
        sys.exit(130)


main()
