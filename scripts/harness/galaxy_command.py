"""A real Galaxy below this checkout.

    scripts/galaxy install            install what is missing            (--dev: also pytest, ruff, mypy)
    scripts/galaxy start              start it, or find the one that runs     (--models DIR lists the models in DIR)
    scripts/galaxy stop | restart     by the pids noted below .plm
    scripts/galaxy reload             take changed XML without a restart      (test does so by itself)
    scripts/galaxy status             does it run, where; exit code 0 if it answers, 3 if not
    scripts/galaxy logs [-f]          its log                                 (--celery: the other process)
    scripts/galaxy url | key          its address | the administrator's API key
    scripts/galaxy test PATH...       planemo test of tools and workflows against it (none named: all of them)
    scripts/galaxy lint PATH...       planemo lint at warn level, workflow_lint --iwc for .ga
    scripts/galaxy planemo ARG...     planemo itself
    scripts/galaxy shed               rehearse a release (half an hour): a real Tool Shed, the last commit published to
                                      it and installed into an empty Galaxy, all tests of tools and workflows run there
    scripts/galaxy slurm              rehearse a cluster (10 minutes): a real Slurm of two nodes here, jobs sent there
                                      by the rules of tools/tpv; a proteome over both nodes, trainings that are killed

Everything lies below .plm in the checkout; the server listens on 127.0.0.1 only.

Two environment variables, for the first call:
    PLM_PYTHON         the Python to use (3.11, 3.12 or 3.13) if the one on PATH is not
    PLM_TORCH_INDEX    index of the PyTorch build to install, CPU only or for one CUDA version; PyTorch's installation
                       page names them. Unset: the build that pip finds. Set later: torch is installed again from there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from plm import stage
from plm.errors import UserError

from harness import planemo
from harness.install import Installer
from harness.layout import Layout
from harness.server import GalaxyServer, follow
from harness.starting import called_from, start

NOT_RUNNING = 3


def say(line: str) -> None:
    print(f"[galaxy] {line}", flush=True)


def main(layout: Layout, argv: list[str]) -> int:
    parser = stage.parser("scripts/galaxy", __doc__ or "")
    actions = parser.add_subparsers(dest="action", required=True, metavar="action")
    install = actions.add_parser("install", help="install what is missing")
    install.add_argument("--dev", action="store_true", help="also pytest, ruff, mypy")
    for name in ("start", "restart"):
        action = actions.add_parser(name, help=f"{name} the server")
        action.add_argument("--models", metavar="DIR", action="append", default=[], help="models to list in the table")
    for name in ("stop", "reload", "status", "url", "key", "shed", "slurm"):
        actions.add_parser(name)
    logs = actions.add_parser("logs", help="the server's log")
    logs.add_argument("-f", "--follow", action="store_true")
    logs.add_argument("--celery", action="store_true", help="the log of the Celery process")
    logs.add_argument("-n", "--lines", type=int, default=100)
    for name in ("test", "lint"):
        action = actions.add_parser(name, help=f"planemo {name}")
        action.add_argument("paths", nargs="*", metavar="PATH")
    raw = actions.add_parser("planemo", help="planemo itself", prefix_chars="\0", add_help=False)
    raw.add_argument("arguments", nargs=argparse.REMAINDER)
    args = parser.parse_args(argv)
    return _ACTIONS[args.action](layout, GalaxyServer(layout, say), args)


def _install(layout: Layout, server: GalaxyServer, args: argparse.Namespace) -> int:
    Installer(layout, say).install(["tools", "galaxy", "planemo", *(["dev"] if args.dev else [])])
    say("everything is installed")
    return 0


def _start(layout: Layout, server: GalaxyServer, args: argparse.Namespace) -> int:
    start(layout, server, args.models)
    return 0


def _restart(layout: Layout, server: GalaxyServer, args: argparse.Namespace) -> int:
    server.stop()
    start(layout, server, args.models)
    return 0


def _stop(layout: Layout, server: GalaxyServer, args: argparse.Namespace) -> int:
    say("stopped" if server.stop() else "it was not running")
    return 0


def _reload(layout: Layout, server: GalaxyServer, args: argparse.Namespace) -> int:
    server.reload()
    for name, reason in server.faults().items():
        say(f"FAULTY TOOL: {name}: {reason}")
    return 0


def _status(layout: Layout, server: GalaxyServer, args: argparse.Namespace) -> int:
    status = server.status()
    pids = ", ".join(f"{name} {pid}" for name, pid in status.pids.items())
    if status.answers:
        say(f"running on {status.url} (pids: {pids})")
        return 0
    say(f"not answering, but there are processes of it: {pids}" if pids else "not running")
    return NOT_RUNNING


def _url(layout: Layout, server: GalaxyServer, args: argparse.Namespace) -> int:
    if not server.status().answers:
        raise UserError("Galaxy does not run", fix="scripts/galaxy start")
    print(server.url)
    return 0


def _key(layout: Layout, server: GalaxyServer, args: argparse.Namespace) -> int:
    print(server.account().key)
    return 0


def _logs(layout: Layout, server: GalaxyServer, args: argparse.Namespace) -> int:
    log = layout.logs / ("celery.log" if args.celery else "web.log")
    if not log.exists():
        raise UserError("There is no log yet", where=str(log), fix="scripts/galaxy start")
    if args.follow:
        follow(log)
    else:
        print("\n".join(log.read_text(errors="replace").splitlines()[-args.lines :]))
    return 0


def _paths(layout: Layout, given: list[str]) -> list[Path]:
    paths = [called_from(path) for path in given] or [*layout.tool_files(), *layout.workflow_files()]
    for path in paths:
        if not path.is_file() or path.suffix not in (".xml", ".ga"):
            raise UserError("Not a tool (.xml) or workflow (.ga)", where=str(path))
    return paths


def _test(layout: Layout, server: GalaxyServer, args: argparse.Namespace) -> int:
    paths = _paths(layout, args.paths)
    if not paths:
        raise UserError("There is nothing to test: no tools/plm_*.xml, no workflows/*/*.ga")
    start(layout, server, [])
    tools = [path for path in paths if path.suffix == ".xml"]
    workflows = [path for path in paths if path.suffix == ".ga"]
    # planemo crashes on tools and workflows in one call
    codes = [planemo.test(layout, server, kind) for kind in (tools, workflows) if kind]
    return max(codes)


def _lint(layout: Layout, server: GalaxyServer, args: argparse.Namespace) -> int:
    paths = _paths(layout, args.paths)
    Installer(layout, say).install(["planemo"])
    codes = [planemo.lint(layout, path) for path in paths]
    return max(codes, default=0)


def _planemo(layout: Layout, server: GalaxyServer, args: argparse.Namespace) -> int:
    Installer(layout, say).install(["planemo"])
    return planemo.run(layout, args.arguments)


def _shed(layout: Layout, server: GalaxyServer, args: argparse.Namespace) -> int:
    from harness import shed_trial

    return shed_trial.rehearse(layout, say)


def _slurm(layout: Layout, server: GalaxyServer, args: argparse.Namespace) -> int:
    from harness import slurm_trial

    return slurm_trial.rehearse(layout, say)


_ACTIONS = {
    "shed": _shed,
    "slurm": _slurm,
    "install": _install,
    "start": _start,
    "restart": _restart,
    "stop": _stop,
    "reload": _reload,
    "status": _status,
    "url": _url,
    "key": _key,
    "logs": _logs,
    "test": _test,
    "lint": _lint,
    "planemo": _planemo,
}
