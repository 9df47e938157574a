"""A release rehearsed: a real Tool Shed here, the suite published to it, installed into an empty Galaxy, and used.

Every test of every tool runs by the id under which it was installed, with the test data that came with it, and every
workflow as it is attached to a release. Everything lies below ``.plm/shed``.
"""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from plm.errors import UserError

from harness import planemo, processes, workflow_files
from harness.configuration import TABLE
from harness.install import Installer
from harness.layout import Layout, child_environment
from harness.planemo import TestOutcome
from harness.processes import ProcessIdentity
from harness.server import GalaxyServer
from harness.workflow_files import ShedRepository
from harness.workflows_command import newest_revision, write

DATA_MANAGER = "plm_install_model"
CACHES = (".plm", "__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis")
LINKED = ("scripts", "tools", "locks", "docs", "test-data", "workflows", "shed.yml")


def rehearse(layout: Layout, say: Callable[[str], None]) -> int:
    """Publishes, installs, runs the tests of all tools and workflows; returns 0 only if some ran and all passed."""
    Installer(layout, say).install(["tools", "galaxy", "planemo", "shed"])
    root = layout.state / "shed"
    shutil.rmtree(root, ignore_errors=True)
    shed = ToolShed(layout, root, say)
    begun = time.monotonic()

    def at() -> str:
        return f"[{time.monotonic() - begun:4.0f} s]"

    try:
        shed.start()
        say(f"{at()} a Tool Shed answers at {shed.url}")
        revision = shed.publish()
        say(f"{at()} published as revision {revision}")
        checkout = _checkout(layout, root)
        galaxy = GalaxyServer(checkout, say, shed=shed.url)
        try:
            galaxy.start(for_tests=True)
            _install(galaxy, shed, revision)
            say(f"{at()} installed into an empty Galaxy")
            codes = []
            codes.append(_data_manager(checkout, galaxy))
            say(f"{at()} the data manager {_ended(codes[-1])}")
            codes.append(_tools(checkout, galaxy))
            say(f"{at()} the tools' tests {_ended(codes[-1])}")
            codes.append(_workflows(checkout, galaxy, shed, revision))
            say(f"{at()} the workflows {_ended(codes[-1])}")
        finally:
            galaxy.stop()
    finally:
        shed.stop()
    return max(codes)


def _ended(code: int) -> str:
    return "FAILED" if code else "passed"


class ToolShed:
    """A Tool Shed with one user, the owner of the suite's repository.

    Args:
        layout: The checkout.
        root: Folder for its files.
        say: Told in one line what happens.
    """

    def __init__(self, layout: Layout, root: Path, say: Callable[[str], None]) -> None:
        self.layout, self.root, self.say = layout, root, say
        self.port = processes.free_port()
        self.owner, self.name = workflow_files.default_repository(layout.root)
        self.key = ""
        self._process: ProcessIdentity | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def repository(self) -> tuple[str, str, str]:
        return f"127.0.0.1:{self.port}", self.owner, self.name

    def start(self) -> None:
        """Starts it and creates the owner and the categories that ``shed.yml`` names.

        Raises:
            UserError: It did not answer in two minutes.
        """
        for folder in ("database/tmp", "community_files", "hgweb", "config"):
            (self.root / folder).mkdir(parents=True)
        self.root.chmod(0o700)
        admin_key, data = secrets.token_hex(16), self.root / "database"
        settings = {
            "database_connection": f"sqlite:///{data}/community.sqlite?isolation_level=IMMEDIATE&timeout=60",
            "file_path": str(self.root / "community_files"),
            "new_file_path": str(data / "tmp"),
            "hgweb_config_dir": str(self.root / "hgweb"),
            "data_dir": str(data),
            "tool_data_path": str(data),
            "shed_tool_data_path": str(data),
            "whoosh_index_dir": str(data / "whoosh"),
            "config_dir": str(self.root / "config"),
            "admin_users": "admin@plm.local",
            "bootstrap_admin_api_key": admin_key,
            "id_secret": secrets.token_hex(16),
            "database_auto_migrate": True,
        }
        file = self.root / "config" / "tool_shed.yml"
        file.write_text(json.dumps({"tool_shed": settings}))
        binaries = self.layout.env("shed") / "bin"
        environment = child_environment(self.layout, {"TOOL_SHED_CONFIG_FILE": str(file)})
        environment["PATH"] = f"{binaries}:{environment.get('PATH', '/usr/bin:/bin')}"
        command = [str(binaries / "python"), "-m", "uvicorn", "--factory", "tool_shed.webapp.fast_factory:factory"]
        command += ["--host", "127.0.0.1", "--port", str(self.port)]
        log = self.root / "tool_shed.log"
        self._process = processes.spawn(command, log=log, environment=environment, folder=self.root)
        deadline = time.monotonic() + 120
        while not self._answers():
            if time.monotonic() > deadline or not self._process.alive():
                raise UserError("The Tool Shed did not start", where=str(log))
            time.sleep(0.5)
        made = {"username": self.owner, "email": "owner@plm.local", "password": secrets.token_urlsafe(12)}
        user = self._ask("POST", "/api/users", made, key=admin_key)
        self.key = str(self._ask("POST", f"/api/users/{user['id']}/api_key", key=admin_key))
        for category in _categories(self.layout.root / "shed.yml"):
            self._ask("POST", "/api/categories", {"name": category, "description": category}, key=admin_key)

    def publish(self) -> str:
        """Sends the checkout to it, as the release does; returns the revision.

        Raises:
            UserError: planemo could not.
        """
        clone = cloned(self.layout, self.root / "clone", self.say)
        arguments = ["shed_update", "--shed_target", self.url, "--shed_key", self.key, "--force_repository_creation"]
        code = planemo.run(self.layout, [*arguments, "--message", "A rehearsal", str(clone)])
        if code:
            raise UserError("planemo shed_update failed", where=str(self.root / "tool_shed.log"))
        return newest_revision(self.url, self.owner, self.name)

    def stop(self) -> None:
        if self._process is not None:
            processes.stop(self._process)

    def _answers(self) -> bool:
        try:
            return bool(self._ask("GET", "/api/version")["version"])
        except UserError:
            return False

    def _ask(self, method: str, path: str, body: Any = None, *, key: str = "") -> Any:
        data = json.dumps(body).encode() if body is not None else None
        headers = {"Content-Type": "application/json"} | ({"x-api-key": key} if key else {})
        request = urllib.request.Request(self.url + path, data=data, headers=headers, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=60) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            raise UserError(f"The Tool Shed answered {error.code}: {error.read()[:300]!r}", where=path) from None
        except (OSError, ValueError) as error:
            raise UserError(f"The Tool Shed does not answer: {error}", where=self.url) from None


def cloned(layout: Layout, target: Path, say: Callable[[str], None]) -> Path:
    """The last commit, without caches and a server's state: what planemo would pack and a release holds.

    A checkout without git's folder (an unpacked archive) is copied as it is, but for its state and caches.

    Raises:
        UserError: The checkout cannot be cloned.
    """
    if not (layout.root / ".git").exists():
        say("this is no checkout of git: its files are tried as they are")
        shutil.copytree(layout.root, target, symlinks=True, ignore=shutil.ignore_patterns(*CACHES))
        return target
    git = ["git", "-c", "safe.directory=*"]  # who runs the tests need not own the checkout
    served = ["--upload-pack", "git -c safe.directory=* upload-pack"]
    changed = subprocess.run(
        [*git, "-C", str(layout.root), "status", "--short"], capture_output=True, text=True, check=False
    ).stdout
    if changed:
        say(f"{len(changed.splitlines())} files differ from the last commit, which is what is tried")
    done = subprocess.run(
        [*git, "clone", "--quiet", *served, str(layout.root), str(target)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise UserError(f"The checkout cannot be cloned: {done.stderr.strip()[-200:]}", where=str(layout.root))
    return target


def _categories(shed_file: Path) -> list[str]:
    """The categories in ``shed.yml``, which is written plainly enough to be read without a library."""
    lines = shed_file.read_text().splitlines()
    begin = lines.index("categories:") + 1
    found = []
    for line in lines[begin:]:
        if not line.startswith("  - "):
            break
        found.append(line.removeprefix("  - ").strip())
    return found


def _checkout(layout: Layout, root: Path) -> Layout:
    """What was published, as a checkout whose Galaxy has a state of its own beside the developer's."""
    place = root / "checkout"
    (place / ".plm").mkdir(parents=True)
    (place / ".plm" / "envs").symlink_to(layout.envs)
    for name in LINKED:
        (place / name).symlink_to(root / "clone" / name)
    return Layout(place)


def _install(galaxy: GalaxyServer, shed: ToolShed, revision: str) -> None:
    wanted = {
        "tool_shed_url": f"{shed.url}/",
        "name": shed.name,
        "owner": shed.owner,
        "changeset_revision": revision,
        "install_repository_dependencies": False,
        "install_resolver_dependencies": False,
        "new_tool_panel_section_label": "Protein language models",
    }
    galaxy.request("POST", "/api/tool_shed_repositories", wanted, timeout=900)
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        listed = galaxy.request("GET", "/api/tool_shed_repositories")
        states = [entry["status"] for entry in listed if entry["name"] == shed.name]
        if states == ["Installed"]:
            break
        if "Error" in states:
            raise UserError(f"Galaxy could not install the repository: {listed[0].get('error_message')}")
        time.sleep(2)
    else:
        raise UserError("Galaxy did not install the repository in ten minutes", where=str(galaxy.layout.logs))
    have = {workflow_files.plain_id(known) for known in _installed(galaxy)}
    for tool in galaxy.layout.tool_files():
        if tool.stem not in have:
            raise UserError(f"{tool.stem} is not among the installed tools")


def _installed(galaxy: GalaxyServer) -> list[str]:
    """Ids of the tools from the Tool Shed."""
    ids = [str(tool["id"]) for tool in galaxy.request("GET", "/api/tools?in_panel=false")]
    return sorted(one for one in ids if "/repos/" in one)


def _data_manager(layout: Layout, galaxy: GalaxyServer) -> int:
    """The installed data manager brings a model, and the table has it afterwards."""
    [tool] = [one for one in _installed(galaxy) if workflow_files.plain_id(one) == DATA_MANAGER]
    history = galaxy.request("POST", "/api/histories", {"name": "data manager"})["id"]
    folder, value = layout.root / "test-data" / "models" / "tiny_esm2", "plm-suite-tests/from-the-shed"
    inputs = {"origin|source": "directory", "origin|directory": str(folder.resolve()), "origin|id": value}
    asked = {"tool_id": tool, "history_id": history, "inputs": inputs}
    job = galaxy.request("POST", "/api/tools", asked, timeout=300)["jobs"][0]["id"]
    deadline = time.monotonic() + 300
    while (state := galaxy.request("GET", f"/api/jobs/{job}")["state"]) not in ("ok", "error"):
        if time.monotonic() > deadline:
            break
        time.sleep(1)
    rows = galaxy.request("GET", f"/api/tool_data/{TABLE}")["fields"]
    passed = state == "ok" and any(value in row for row in rows)
    print(f"{tool}: the job is {state}, the table {'has' if passed else 'lacks'} the model")
    return int(not passed)


def _tools(layout: Layout, galaxy: GalaxyServer) -> int:
    """The tests of all installed tools, three tools at a time: one prepares its inputs while two jobs run.

    Galaxy's API does not give out the tests of data managers that are installed.
    """
    tools = [one for one in _installed(galaxy) if workflow_files.plain_id(one) != DATA_MANAGER]
    with ThreadPoolExecutor(3) as pool:
        outcomes = [outcome for tested in pool.map(partial(_tests, layout, galaxy), tools) for outcome in tested]
    code = planemo.show(outcomes)
    tested = {workflow_files.plain_id(outcome.name) for outcome in outcomes}
    untested = [tool for tool in tools if workflow_files.plain_id(tool) not in tested]
    for name in untested:
        print(f"{name} was not tested")
    if code or untested:
        print(f"What galaxy-tool-test said: {layout.state}/plm_*.log")
    return code or int(bool(untested))


def _tests(layout: Layout, galaxy: GalaxyServer, tool: str) -> list[TestOutcome]:
    """The tests of one installed tool, with the data that came with it."""
    stem = layout.state / workflow_files.plain_id(tool)
    report = stem.with_suffix(".json")
    program = layout.env("planemo") / "bin" / "galaxy-tool-test"
    key = galaxy.account().key  # as the user's too: each run would else make one anew, which ends those of the others
    command = [str(program), "-u", galaxy.url, "-a", key, "-k", key, "-t", tool, "-j", str(report)]
    command += ["--history-per-test-case", "--with-reference-data"]
    with stem.with_suffix(".log").open("w") as log:
        subprocess.run(
            command, cwd=layout.root, env=child_environment(layout), check=False, stdout=log, stderr=subprocess.STDOUT
        )
    outcomes = planemo.read_report(report)
    passed = sum(outcome.passed for outcome in outcomes)
    print(f"{stem.name}: {passed} of {len(outcomes)} tests passed", flush=True)
    return outcomes


def _workflows(layout: Layout, galaxy: GalaxyServer, shed: ToolShed, revision: str) -> int:
    """Runs all workflows rewritten for the shed, as they are attached to a release."""
    host, owner, name = shed.repository
    paths = []
    for source in layout.workflow_files():
        folder = layout.root / "released" / source.parent.name
        shutil.copytree(source.parent, folder)
        path = folder / source.name
        write(path, workflow_files.for_shed(workflow_files.read(path), ShedRepository(host, owner, name, revision)))
        paths.append(path)
    return planemo.test(layout, galaxy, paths)
