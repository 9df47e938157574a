"""The Galaxy server of this checkout: two processes (web and Celery), started, found again, and stopped by identity."""

from __future__ import annotations

import fcntl
import json
import re
import secrets
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plm.errors import UserError

from harness import configuration, processes
from harness.configuration import ADMIN_EMAIL, ModelRow, ServerSettings, write_private
from harness.layout import Layout, child_environment
from harness.processes import ProcessIdentity

START_PATIENCE = 600.0  # seconds; a first start beside other heavy work has taken 200
PROCESSES = ("celery", "web")
_ERROR_LINE = re.compile(r"error|exception|traceback|critical|address already in use", re.IGNORECASE)


@dataclass(frozen=True)
class Account:
    """The administrator that the harness creates in its own Galaxy."""

    email: str
    password: str
    key: str


@dataclass(frozen=True)
class Status:
    """What is known of the server now.

    Args:
        running: Both processes are ours and alive.
        answers: It answers on its port.
        url: Where; empty if it was never started.
        pids: Process name to pid, of those alive.
    """

    running: bool
    answers: bool
    url: str
    pids: dict[str, int]


class GalaxyServer:
    """Args:
    layout: The checkout.
    say: Told in one line what happens.
    shed: Address of a Tool Shed from which its tools are installed; empty: they are those of the checkout.
    jobs: Where its jobs run, as ``job_conf.yml`` has it; None: on this machine.
    """

    def __init__(
        self, layout: Layout, say: Callable[[str], None], *, shed: str = "", jobs: Mapping[str, Any] | None = None
    ) -> None:
        self.layout, self.say, self.shed, self.jobs = layout, say, shed, jobs

    # what is there

    @property
    def url(self) -> str:
        port = self._port()
        return f"http://127.0.0.1:{port}" if port else ""

    def _port(self) -> int | None:
        try:
            return int((self.layout.galaxy / "port").read_text())
        except (OSError, ValueError):
            return None

    def _pid_file(self, name: str) -> Path:
        return self.layout.galaxy / "pid" / f"{name}.json"

    def _alive(self) -> dict[str, ProcessIdentity]:
        noted = {name: ProcessIdentity.load(self._pid_file(name)) for name in PROCESSES}
        return {name: identity for name, identity in noted.items() if identity and identity.alive()}

    def status(self) -> Status:
        alive = self._alive()
        answers = bool(alive) and self._version() is not None
        pids = {name: identity.pid for name, identity in alive.items()}
        return Status(set(alive) == set(PROCESSES), answers, self.url, pids)

    def account(self) -> Account:
        """The administrator's login and key.

        Raises:
            UserError: No server was ever started here.
        """
        try:
            noted = json.loads((self.layout.galaxy / "secrets" / "account.json").read_text())
            return Account(noted["email"], noted["password"], noted["key"])
        except (OSError, ValueError, KeyError):
            raise UserError("This checkout's Galaxy has no account yet", fix="scripts/galaxy start") from None

    # start and stop

    def start(self, models: Sequence[ModelRow] = (), *, for_tests: bool = False) -> bool:
        """Starts the server, or finds the one that runs. Returns whether it had to be started.

        Args:
            models: Models to list in the table; they stay listed on later starts.
            for_tests: Whether the table lists the tiny random models of the tests too, which are of no use to users.

        Raises:
            UserError: It did not come up; says why.
        """
        with self._only_one():
            changed = self._list_test_models(for_tests)
            rows = self._remember(models)
            status = self.status()
            if status.running and status.answers:
                if models or changed:
                    configuration.write_model_table(self.layout, rows)
                    self.request("GET", f"/api/tool_data/{configuration.TABLE}/reload")
                return False
            if self._alive():
                self.say("a server that does not answer is still there; stopping it")
                self._stop()
            self._start(rows)
            return True

    def stop(self) -> bool:
        """Stops the server and the jobs it runs. Returns whether there was one."""
        with self._only_one():
            return self._stop()

    def _stop(self) -> bool:
        stopped = False
        for name in reversed(PROCESSES):
            identity = ProcessIdentity.load(self._pid_file(name))
            if identity is not None:
                stopped |= processes.stop(identity)
            self._pid_file(name).unlink(missing_ok=True)
        return stopped

    def _start(self, rows: Sequence[ModelRow]) -> None:
        layout, begun = self.layout, time.monotonic()
        port = processes.free_port(self._port())
        settings = ServerSettings(port, secrets.token_hex(24), self.shed, self.jobs)
        configuration.write_model_table(layout, rows)
        file = configuration.write_configuration(layout, settings)
        (layout.galaxy / "port").write_text(f"{port}\n")
        bin_folder = layout.env("galaxy") / "bin"
        environment = child_environment(layout, {"GALAXY_CONFIG_FILE": str(file)})
        environment["PATH"] = f"{bin_folder}:{environment.get('PATH', '/usr/bin:/bin')}"
        commands = {
            "celery": "python -m celery --app galaxy.celery worker --concurrency 1 --pool threads --loglevel INFO"
            " --queues celery,galaxy.internal,galaxy.external",
            "web": "python -m gunicorn galaxy.webapps.galaxy.fast_factory:factory() --workers 1 --timeout 300"
            " -k galaxy.webapps.galaxy.workers.Worker --config python:galaxy.web_stack.gunicorn_config"
            f" --bind 127.0.0.1:{port}",
        }
        self.say(f"starting Galaxy on http://127.0.0.1:{port} (half a minute; a minute the first time)")
        for name in PROCESSES:
            log = layout.logs / f"{name}.log"
            if log.exists():
                log.replace(log.with_suffix(".previous.log"))
            program, *arguments = commands[name].split()
            command = [str(bin_folder / program), *arguments]
            processes.spawn(command, log=log, environment=environment, folder=layout.galaxy).save(self._pid_file(name))
        try:
            self._wait(begun)
            self._create_account(settings.admin_key)
        except BaseException:
            self._stop()
            raise
        self._note_loaded()
        self.say(f"Galaxy {self._version()} answers after {time.monotonic() - begun:.0f} s")

    def _wait(self, begun: float) -> None:
        while True:
            processes.reap()
            missing = set(PROCESSES) - set(self._alive())
            if missing:
                name = sorted(missing)[0]
                self._explain(name)
                raise UserError(
                    f"Galaxy's process '{name}' ended at its start",
                    where=self._log(name),
                    fix="The lines above say why; the whole log: scripts/galaxy logs",
                )
            if self._version() is not None:
                return
            if time.monotonic() - begun > START_PATIENCE:
                self._explain("web")
                raise UserError(f"Galaxy did not answer within {START_PATIENCE:.0f} s", where=self._log("web"))
            time.sleep(0.5)

    def _log(self, name: str) -> str:
        return str((self.layout.logs / f"{name}.log").relative_to(self.layout.root))

    def _explain(self, name: str) -> None:
        for line in relevant_lines(self.layout.logs / f"{name}.log"):
            self.say(f"  {line}")

    def _create_account(self, admin_key: str) -> None:
        """Creates the administrator once; later starts find her in the database, with password and key in the file."""
        path = self.layout.galaxy / "secrets" / "account.json"
        if path.is_file():
            try:
                self.request("GET", "/api/users/current")
                return
            except UserError:
                path.unlink()  # the database is another one
        password = secrets.token_urlsafe(12)
        made = {"username": "admin", "email": ADMIN_EMAIL, "password": password}
        user = self.request("POST", "/api/users", made, key=admin_key)
        key = self.request("POST", f"/api/users/{user['id']}/api_key", key=admin_key)
        write_private(path, json.dumps({"email": ADMIN_EMAIL, "password": password, "key": key}))

    def listed_models(self) -> list[ModelRow]:
        """The rows of the server's model table, running or not."""
        return self._remember(())

    def _list_test_models(self, wanted: bool) -> bool:
        """Notes whether the table lists the tests' models; returns whether that is new."""
        mark = self.layout.galaxy / "lists-test-models"
        if mark.exists() == wanted:
            return False
        if wanted:
            mark.touch()
        else:
            mark.unlink()
        return True

    def _remember(self, models: Sequence[ModelRow]) -> list[ModelRow]:
        """The table's rows: those that the user named, now or before, if they still exist, and perhaps the tests'."""
        path = self.layout.galaxy / "models.json"
        try:
            noted = [ModelRow(row["value"], row["name"], Path(row["path"])) for row in json.loads(path.read_text())]
        except (OSError, ValueError, KeyError):
            noted = []
        new = {row.value for row in models}
        named = [row for row in noted if row.value not in new and (row.path / "config.json").is_file()] + list(models)
        tiny = configuration.test_models(self.layout) if (self.layout.galaxy / "lists-test-models").exists() else []
        rows = configuration.distinct(tiny + named)
        if models:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(
                json.dumps([{"value": r.value, "name": r.name, "path": str(r.path)} for r in named], indent=1)
            )
        return rows

    @contextmanager
    def _only_one(self) -> Iterator[None]:
        """Starts and stops never overlap: the second waits for the first, then finds what it left."""
        path = self.layout.galaxy / "start.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    # the tools that it has loaded

    def faults(self) -> dict[str, str]:
        """XML file name to what is wrong, for each of the suite's tools that Galaxy did not load or cannot run."""
        have = {str(tool["id"]) for tool in self.request("GET", "/api/tools?in_panel=false")}
        missing = configuration.tool_faults(self.layout)
        log = self.layout.logs / "web.log"
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        for tool_id, path in configuration.tool_ids(self.layout.tool_files()).items():
            if tool_id in have or path.name in missing:
                continue
            said = [line for line in lines if path.name in line and _ERROR_LINE.search(line)]
            missing[path.name] = f"not loaded: {said[-1].strip()}" if said else "not loaded: see scripts/galaxy logs"
        return missing

    def changed(self) -> bool:
        """Whether an XML file of the suite differs from what the server has loaded."""
        try:
            return bool(json.loads((self.layout.galaxy / "loaded.json").read_text()) != self._digests())
        except (OSError, ValueError):
            return True

    def _digests(self) -> dict[str, str]:
        import hashlib

        files = [*self.layout.tools.glob("*.xml"), self.layout.locks / "tools.txt"]
        return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(files)}

    def _note_loaded(self) -> None:
        (self.layout.galaxy / "loaded.json").write_text(json.dumps(self._digests(), indent=1))

    def reload(self) -> None:
        """Makes a running server take changed XML, without disturbing jobs that run.

        Raises:
            UserError: It does not run, or did not take the change within a minute.
        """
        if not self.status().answers:
            raise UserError("Galaxy does not run", fix="scripts/galaxy start")
        with self._only_one():
            port = self._port()
            assert port is not None
            noted = json.loads((self.layout.config / "galaxy.yml").read_text())["galaxy"]
            settings = ServerSettings(port, noted["bootstrap_admin_api_key"], self.shed, self.jobs)
            configuration.write_configuration(self.layout, settings)
            configuration.write_model_table(self.layout, self._remember(()))
            log = self.layout.logs / "web.log"
            size = log.stat().st_size
            self.request("PUT", "/api/configuration/toolbox")
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                with log.open("rb") as handle:
                    handle.seek(size)
                    if b"Toolbox reload (" in handle.read():
                        break
                time.sleep(0.1)
            else:
                raise UserError("Galaxy did not take the changed tools within a minute", fix="scripts/galaxy restart")
            # Data managers stand in no panel, and Galaxy keeps what it once read of them.
            for manager in configuration.data_managers(self.layout):
                self.request("GET", f"/api/tools/{manager.get('id')}/reload")
            self.request("GET", f"/api/tool_data/{configuration.TABLE}/reload")
            self._note_loaded()

    # talking to it

    def _version(self) -> str | None:
        try:
            return str(self.request("GET", "/api/version", timeout=5)["version_major"])
        except UserError:
            return None

    def request(self, method: str, path: str, body: Any = None, *, key: str | None = None, timeout: float = 60) -> Any:
        """One call of Galaxy's API, as the administrator unless another key is given.

        Raises:
            UserError: It did not answer, or answered with an error.
        """
        headers = {"Content-Type": "application/json"}
        if key is None and path != "/api/version":
            key = self.account().key
        if key:
            headers["x-api-key"] = key
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(self.url + path, data=data, headers=headers, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # 127.0.0.1 is never behind a proxy
        try:
            with opener.open(request, timeout=timeout) as answer:
                text = answer.read().decode()
        except urllib.error.HTTPError as error:
            detail = " ".join(error.read().decode(errors="replace").split())[:300]
            raise UserError(f"Galaxy answered {error.code} to {method} {path}: {detail}") from None
        except (OSError, ValueError) as error:
            raise UserError(f"Galaxy does not answer: {error}", where=self.url) from None
        return json.loads(text) if text.strip() else None


def relevant_lines(log: Path, limit: int = 12) -> list[str]:
    """What a log says about why its process ended: its last traceback's end, else its last lines that speak of errors,
    else simply its last lines."""
    if not log.exists():
        return []
    lines = [line.rstrip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    starts = [number for number, line in enumerate(lines) if "Traceback (most recent call last)" in line]
    if starts:
        block = lines[starts[-1] :]
        end = next((n for n, line in enumerate(block[1:], start=1) if not line.startswith((" ", "\t"))), len(block) - 1)
        return block[max(0, end - 4) : end + 2][:limit]
    speaking = [line for line in lines if _ERROR_LINE.search(line)]
    return (speaking or lines)[-limit:]


def follow(log: Path) -> None:
    """Shows a log as it grows, until interrupted."""
    subprocess.run(["tail", "-n", "50", "-F", str(log)], check=False)
