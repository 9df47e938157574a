"""What the Galaxy server reads: its settings, the tools, the model table, where jobs run and with which Python.

Files for YAML readers are written as JSON, which is YAML too.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plm.errors import UserError

from harness import requirements
from harness.install import read_lock
from harness.layout import Layout
from harness.requirements import parse

TABLE = "huggingface"
TABLE_COLUMNS = ("value", "name", "pipeline_tag", "domain", "free_tag", "version", "path")
ADMIN_EMAIL = "admin@plm.local"


@dataclass(frozen=True)
class ModelRow:
    """A row of the model table: a checkpoint in Hugging Face format that lies in a folder.

    Args:
        value: Its id, as forms, tests and ``--model`` name it.
        name: What a user reads.
        path: The folder with its ``config.json``.
    """

    value: str
    name: str
    path: Path

    def line(self) -> str:
        return "\t".join((self.value, self.name, "feature-extraction", "sequence", "local", "1", str(self.path)))


def test_models(layout: Layout) -> list[ModelRow]:
    """The tiny random checkpoints of the tests' own model table, ``test-data/huggingface.loc``."""
    source = layout.root / "test-data" / f"{TABLE}.loc"
    lines = source.read_text().splitlines() if source.is_file() else []
    rows = []
    for line in lines:
        fields = line.split("\t")
        if line.strip() and not line.startswith("#") and len(fields) == len(TABLE_COLUMNS):
            row = dict(zip(TABLE_COLUMNS, fields, strict=True))
            path = Path(row["path"].replace("${__HERE__}", str(source.parent)))
            if (path / "config.json").is_file():
                rows.append(ModelRow(row["value"], row["name"], path))
    return rows


def models_in(folder: Path) -> list[ModelRow]:
    """The checkpoints in a folder that a user names: the folder itself, or every subfolder with a ``config.json``.

    Raises:
        UserError: There is none.
    """
    folder = folder.resolve()
    candidates = [folder] if (folder / "config.json").is_file() else sorted(folder.glob("*"))
    rows = [ModelRow(path.name, path.name, path) for path in candidates if (path / "config.json").is_file()]
    if not rows:
        raise UserError(
            "No model found: neither the folder nor a folder in it holds a config.json",
            where=str(folder),
            fix="Name a checkpoint in Hugging Face format, or the folder that holds several",
        )
    for row in rows:
        if any(character in f"{row.value}{row.path}" for character in "\t\n"):
            raise UserError("A model's path holds a tab or line end", where=repr(str(row.path)))
    return rows


def distinct(rows: Iterable[ModelRow]) -> list[ModelRow]:
    """The rows, each model once.

    Raises:
        UserError: Two models have the same id.
    """
    seen: dict[str, ModelRow] = {}
    for row in rows:
        other = seen.setdefault(row.value, row)
        if other.path != row.path:
            raise UserError(
                f"Two models are called {row.value}", where=f"{other.path} and {row.path}", fix="Rename one"
            )
    return list(seen.values())


def write_model_table(layout: Layout, rows: Iterable[ModelRow]) -> Path:
    """Writes the rows of the ``huggingface`` table; the copy that Galaxy may change lies below the state folder.

    Rows of models that the data manager has installed there stay.

    Raises:
        UserError: Two models have the same id.
    """
    target = layout.galaxy / "tool-data" / f"{TABLE}.loc"
    there = target.read_text().splitlines() if target.is_file() else []
    installed = [line for line in there if _is_installed(line, target.parent / TABLE)]
    lines = ["#" + "\t".join(TABLE_COLUMNS), *(row.line() for row in distinct(rows)), *installed]
    return _write(target, "".join(f"{line}\n" for line in lines))


def _is_installed(line: str, folder: Path) -> bool:
    """Whether a row's model lies in the folder of installed models; those that tests install there are of no use."""
    if line.startswith(("#", "plm-suite-tests/")):
        return False
    path = Path(line.split("\t")[-1])
    return path.is_relative_to(folder) and (path / "config.json").is_file()


@dataclass(frozen=True)
class ServerSettings:
    """What differs between one server and the next.

    Args:
        port: Where it listens, on 127.0.0.1 only.
        admin_key: The key that creates the first user.
        shed: Address of a Tool Shed from which the tools are installed; empty: they are those of the checkout.
        jobs: What ``job_conf.yml`` says; None: jobs run on this machine.
    """

    port: int
    admin_key: str
    shed: str = ""
    jobs: Mapping[str, Any] | None = None


def write_configuration(layout: Layout, settings: ServerSettings) -> Path:
    """Writes everything that the server reads. Returns the path of ``galaxy.yml``.

    Tools that :func:`tool_faults` names are listed all the same, for Galaxy to report; their requirements are not
    linked.
    """
    for folder in ("config", "data", "files", "jobs", "log", "tmp", "tool-data", "deps"):
        (layout.galaxy / folder).mkdir(parents=True, exist_ok=True)
    layout.galaxy.chmod(0o700)  # keys and logins lie below
    config = layout.config
    _write(config / "tool_conf.xml", "<toolbox/>\n" if settings.shed else tool_conf(layout))
    _write(config / "tool_data_table_conf.xml", _table_conf(layout))
    _write(config / "data_manager_conf.xml", "<data_managers/>\n" if settings.shed else _data_managers(layout))
    sheds = ET.Element("tool_sheds")
    if settings.shed:
        ET.SubElement(sheds, "tool_shed", name="Tool Shed", url=f"{settings.shed}/")
        toolbox = ET.Element("toolbox", tool_path=str(layout.galaxy / "shed_tools"))
        for name, empty in (("shed_tool_conf", toolbox), ("shed_tool_data_table_conf", ET.Element("tables"))):
            if not (config / f"{name}.xml").is_file():  # Galaxy writes into them what it installs
                _write(config / f"{name}.xml", _xml(empty))
    _write(config / "tool_sheds_conf.xml", _xml(sheds))
    _write_json(config / "job_conf.yml", settings.jobs or job_conf(os.cpu_count() or 1, layout.job_variables))
    _write_dependencies(layout)
    vault = {"type": "database", "path_prefix": "/galaxy", "encryption_keys": [_secret(layout, "vault_key")]}
    _write_json(config / "vault_conf.yml", vault)
    return _write_json(config / "galaxy.yml", {"galaxy": _galaxy_settings(layout, settings)})


def tool_conf(layout: Layout) -> str:
    """The toolbox in the order of work, as ``tools/tool_conf.xml.sample`` has it; tools that it does not name (yet)
    come last. Galaxy finds data managers by :func:`_data_managers`."""
    sample = layout.tools / "tool_conf.xml.sample"
    root = parse(sample) if sample.is_file() else ET.Element("toolbox")
    managers = {manager.get("tool_file") for manager in data_managers(layout)}
    files = {f"tools/{path.name}": path for path in layout.tool_files() if path.name not in managers}
    for section in root.iter("section"):
        for tool in list(section):
            path = files.pop(tool.get("file", ""), None)
            if path is None:
                section.remove(tool)
            else:
                tool.set("file", str(path))
    if files:
        rest = ET.SubElement(root, "section", id="plm", name="Protein language models")
        for path in files.values():
            ET.SubElement(rest, "tool", file=str(path))
    for section in [section for section in root if not len(section)]:
        root.remove(section)
    return _xml(root)


def tool_ids(tools: Iterable[Path]) -> dict[str, Path]:
    """Tool id to its file, for the XML files that can be read; an unreadable one counts under its file's name."""
    ids: dict[str, Path] = {}
    for tool in tools:
        try:
            ids[parse(tool).get("id", tool.stem)] = tool
        except UserError:
            ids[tool.stem] = tool
    return ids


def job_conf(cores: int, variables: Path) -> dict[str, Any]:
    """Jobs run on this machine, two at a time; each may use all cores up to 8, where small models stop gaining.

    Args:
        cores: Of this machine.
        variables: A file that each job's shell reads first, if it is there: what an administrator sets for jobs.
    """
    return {
        "runners": {"local": {"load": "galaxy.jobs.runners.local:LocalJobRunner", "workers": 2}},
        "execution": {
            "default": "local",
            "environments": {
                "local": {
                    "runner": "local",
                    "local_slots": max(1, min(cores, 8)),
                    "live_tool_output_reporting": True,  # a training says how far it is, here and in the browser
                    # threads that wait for work sleep: two jobs may share the cores
                    "env": [
                        {"name": "OMP_WAIT_POLICY", "value": "passive"},
                        {"execute": f"if [ -f '{variables}' ]; then . '{variables}'; fi"},
                    ],
                }
            },
        },
    }


def tool_faults(layout: Layout) -> dict[str, str]:
    """XML file name to what is wrong with it: not XML, or a requirement that the tools' environment does not hold."""
    lock = layout.locks / "tools.txt"
    pins, faults = read_lock(lock), {}
    for tool in layout.tool_files():
        try:
            requirements.check(requirements.read_requirements([tool]), pins, f"locks/{lock.name}")
        except UserError as error:
            faults[tool.name] = str(error)
    return faults


def _write_dependencies(layout: Layout) -> None:
    """Every requirement of every sound tool is linked to the tools' environment; one broken tool breaks no other."""
    folder = layout.galaxy / "deps"
    faulty = tool_faults(layout)
    sound = [tool for tool in layout.tool_files() if tool.name not in faulty]
    requirements.link(requirements.read_requirements(sound), layout.env("tools"), folder)
    root = ET.Element("dependency_resolvers")
    ET.SubElement(root, "galaxy_packages", base_path=str(folder))
    _write(layout.config / "dependency_resolvers_conf.xml", _xml(root))


def _table_conf(layout: Layout) -> str:
    root = ET.Element("tables")
    table = ET.SubElement(root, "table", name=TABLE, comment_char="#", allow_duplicate_entries="False")
    ET.SubElement(table, "columns").text = ", ".join(TABLE_COLUMNS)
    ET.SubElement(table, "file", path=str(layout.galaxy / "tool-data" / f"{TABLE}.loc"))
    return _xml(root)


def data_managers(layout: Layout) -> ET.Element:
    """The suite's data managers, if it has any, as a Tool Shed finds them."""
    source = layout.tools / "data_manager_conf.xml"
    return parse(source) if source.is_file() else ET.Element("data_managers")


def _data_managers(layout: Layout) -> str:
    """They with paths that do not depend on where Galaxy looks."""
    root = data_managers(layout)
    for manager in root.iter("data_manager"):
        manager.set("tool_file", str(layout.tools / manager.get("tool_file", "")))
    return _xml(root)


def _galaxy_settings(layout: Layout, settings: ServerSettings) -> Mapping[str, Any]:
    base, config = layout.galaxy, layout.config
    # Twenty submissions at once wait for each other's writes: SQLite's own limit of 5 s would fail some of them.
    immediate = "isolation_level=IMMEDIATE&timeout=120"
    return {
        "brand": "PLM suite",
        "static_welcome_html": str(config / "welcome.html"),
        "data_dir": str(base / "data"),
        "config_dir": str(config),
        "managed_config_dir": str(config),
        "file_path": str(base / "files"),
        "job_working_directory": str(base / "jobs"),
        "new_file_path": str(base / "tmp"),
        "cache_dir": str(base / "data" / "cache"),
        "tool_data_path": str(base / "tool-data"),
        "galaxy_data_manager_data_path": str(base / "tool-data"),
        "database_connection": f"sqlite:///{base}/data/universe.sqlite?{immediate}",
        "install_database_connection": f"sqlite:///{base}/data/install.sqlite?{immediate}",
        "amqp_internal_connection": f"sqlalchemy+sqlite:///{base}/data/control.sqlite?{immediate}",
        "database_auto_migrate": True,
        "enable_celery_tasks": True,
        "celery_conf": {
            "result_backend": f"db+sqlite:///{base}/data/results.sqlite?timeout=120",
            "broker_connection_retry_on_startup": True,
        },
        "metadata_strategy": "directory_celery",
        "galaxy_infrastructure_url": f"http://127.0.0.1:{settings.port}",
        "admin_users": ADMIN_EMAIL,
        "bootstrap_admin_api_key": settings.admin_key,
        "id_secret": _secret(layout, "id_secret"),
        "tool_config_file": ",".join(
            str(config / name) for name in ("tool_conf.xml", *(["shed_tool_conf.xml"] if settings.shed else []))
        ),
        "tool_data_table_config_path": str(config / "tool_data_table_conf.xml"),
        "job_config_file": str(config / "job_conf.yml"),
        "dependency_resolvers_config_file": str(config / "dependency_resolvers_conf.xml"),
        "data_manager_config_file": str(config / "data_manager_conf.xml"),
        "tool_sheds_config_file": str(config / "tool_sheds_conf.xml"),
        "vault_config_file": str(config / "vault_conf.yml"),
        # neither conda nor container tools: Galaxy would fetch them at its start
        "conda_auto_init": False,
        "conda_auto_install": False,
        "involucro_auto_init": False,
        "enable_mulled_containers": False,
        "outputs_to_working_directory": True,
        "object_store_store_by": "uuid",
        "watch_tools": "false",
        "tour_config_dir": str(layout.root / "docs" / "training" / "tours"),
        "cleanup_job": "onsuccess",
        "enable_tool_recommendations": False,
        "allow_user_deletion": False,
    } | (_shed_settings(layout) if settings.shed else {})


def _shed_settings(layout: Layout) -> dict[str, Any]:
    """Where Galaxy writes what it installs from a Tool Shed."""
    return {
        "shed_tool_config_file": str(layout.config / "shed_tool_conf.xml"),
        "shed_tool_data_path": str(layout.galaxy / "tool-data"),
        "shed_tool_data_table_config": str(layout.config / "shed_tool_data_table_conf.xml"),
    }


def _secret(layout: Layout, name: str) -> str:
    """A random value, 32 bytes in URL-safe base64, that stays the same from start to start; only its owner reads it."""
    path = layout.galaxy / "secrets" / name
    if not path.is_file():
        write_private(path, base64.urlsafe_b64encode(secrets.token_bytes(32)).decode())
    return path.read_text().strip()


def write_private(path: Path, text: str) -> None:
    """Writes a file that only its owner can read."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(path.name + ".partial")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as handle:
        handle.write(text)
    os.replace(temporary, path)


def _xml(root: ET.Element) -> str:
    ET.indent(root)
    return '<?xml version="1.0"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(text)
    os.replace(temporary, path)
    return path


def _write_json(path: Path, value: Any) -> Path:
    return _write(path, json.dumps(value, indent=1) + "\n")
