"""Workflow files (.ga): complete as Galaxy exports them, and with the tool ids of a local panel or of a Tool Shed."""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plm.errors import UserError

from harness.server import GalaxyServer

# What an export says anew each time, or what only the file knows.
_OWN = ("name", "annotation", "report", "readme", "creator", "license", "release", "tags", "uuid", "comments")
_OWN_IN_STEP = ("annotation", "label", "position", "uuid", "workflow_outputs", "post_job_actions")


@dataclass(frozen=True)
class ShedRepository:
    """The suite's repository in one Tool Shed.

    Args:
        shed: Host, with its port if it has one, as in the ids of tools: ``toolshed.g2.bx.psu.edu``.
        owner: Who owns the repository there.
        name: Its name.
        revision: Changeset revision, which the installation of the tools names.
    """

    shed: str
    owner: str
    name: str
    revision: str

    def tool_id(self, tool: str, version: str) -> str:
        return f"{self.shed}/repos/{self.owner}/{self.name}/{tool}/{version}"


def plain_id(tool_id: str) -> str:
    """A tool's id as a local panel has it: ``shed/repos/owner/name/plm_embed/0.1.0`` -> ``plm_embed``."""
    return tool_id.split("/")[-2] if tool_id.count("/") >= 5 else tool_id


def for_shed(workflow: Mapping[str, Any], repository: ShedRepository) -> dict[str, Any]:
    """The workflow with every tool step naming the tool as it is installed from a Tool Shed."""
    changed = for_panel(workflow)
    for step in changed["steps"].values():
        if step["type"] != "tool":
            continue
        step["tool_id"] = step["content_id"] = repository.tool_id(step["tool_id"], step["tool_version"])
        step["tool_shed_repository"] = {
            "changeset_revision": repository.revision,
            "name": repository.name,
            "owner": repository.owner,
            "tool_shed": repository.shed,
        }
    return changed


def for_panel(workflow: Mapping[str, Any]) -> dict[str, Any]:
    """The workflow with every tool step naming the tool as a local panel has it."""
    changed: dict[str, Any] = json.loads(json.dumps(workflow))
    for step in changed["steps"].values():
        if step["type"] == "tool":
            step["tool_id"] = step["content_id"] = plain_id(step["tool_id"])
            step.pop("tool_shed_repository", None)
    return changed


def settled_uuid(text: str) -> str:
    """The same uuid for the same text, of version 4 in form: Galaxy's pages refuse every other."""
    return str(uuid.UUID(bytes=hashlib.sha256(text.encode()).digest()[:16], version=4))


def text_of(workflow: Mapping[str, Any]) -> str:
    """A ``.ga`` file's text: the same for the same content."""
    ordered = {key: workflow[key] for key in sorted(workflow)}
    ordered["steps"] = {
        key: {name: workflow["steps"][key][name] for name in sorted(workflow["steps"][key])}
        for key in sorted(workflow["steps"], key=int)
    }
    return json.dumps(ordered, indent=4, ensure_ascii=True) + "\n"


def read(path: Path) -> dict[str, Any]:
    """A ``.ga`` file's content; its readme is the ``README.md`` beside it.

    Raises:
        UserError: It is not there, or not a workflow.
    """
    readme = path.with_name("README.md")
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        steps = content["steps"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"The workflow cannot be read: {error!r}", where=str(path)) from None
    if not steps:
        raise UserError("The workflow has no step", where=str(path))
    if readme.is_file():
        content["readme"] = readme.read_text(encoding="utf-8")
    return content


@contextmanager
def imported(server: GalaxyServer, workflow: Mapping[str, Any], *, fill: bool = False) -> Iterator[str]:
    """Galaxy's id of a copy of the workflow, which is deleted afterwards.

    Args:
        server: Where.
        workflow: Content of the ``.ga``.
        fill: Let Galaxy give every option that the file does not name its default.
    """
    made = server.request("POST", "/api/workflows", {"workflow": workflow, "fill_defaults": fill})
    try:
        yield made["id"]
    finally:
        server.request("DELETE", f"/api/workflows/{made['id']}")


def rebuilt(server: GalaxyServer, workflow: Mapping[str, Any]) -> dict[str, Any]:
    """The workflow as Galaxy exports it with the tools as they are now: every option of every form is in it.

    What people wrote (names, annotations, places, report) stays as it is in the file.
    """
    plain = for_panel(workflow)
    with imported(server, plain, fill=True) as key:
        upgrade = {"actions": [{"action_type": "upgrade_all_steps"}]}
        server.request("PUT", f"/api/workflows/{key}/refactor", upgrade)
        exported = server.request("GET", f"/api/workflows/{key}/download?style=export")
    return _with_own_words(exported, plain)


def _with_own_words(exported: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(exported) | {key: own[key] for key in _OWN if key in own}
    result["version"] = 1
    result["tags"] = sorted(result.get("tags") or [])
    result.setdefault("uuid", settled_uuid(str(result["name"])))
    mine = {step["label"]: step for step in own["steps"].values()}
    for step in result["steps"].values():
        old = mine[step["label"]]
        step.update({key: old[key] for key in _OWN_IN_STEP if key in old})
        step.setdefault("uuid", settled_uuid(f"{result['name']} {step['label']}"))
        step["workflow_outputs"] = sorted(step["workflow_outputs"], key=lambda output: output["output_name"])
        # words for people; of a tool's step planemo takes them for connections that are missing
        step["inputs"] = [] if step["type"] == "tool" else step.get("inputs") or []
        step["outputs"] = sorted(step.get("outputs") or [], key=lambda described: described["name"])
        state = json.loads(step["tool_state"])
        # the page and the job of the form in which Galaxy filled the state: of no meaning in a file
        step["tool_state"] = json.dumps({key: state[key] for key in sorted(state)})
    return result


def complaints(server: GalaxyServer, workflow: Mapping[str, Any], history: str) -> list[str]:
    """What Galaxy's own pages would say about the workflow: the run form and the editor; nothing if all is well.

    Args:
        server: Where.
        workflow: Content of the ``.ga``.
        history: Galaxy's id of the history that is open while the page asks.
    """
    with imported(server, workflow) as key:
        server.request("GET", f"/api/workflows/{key}")  # the head of every page of it
        form = server.request("GET", f"/api/workflows/{key}/download?style=run&history_id={history}")
        editor = server.request("GET", f"/api/workflows/{key}/download?style=editor")
    kinds = server.request("GET", "/api/datatypes/types_and_mapping")["datatypes_mapping"]
    found = []
    if form["has_upgrade_messages"]:
        found.append("the run form says that tools may have changed since the workflow was saved")
    found += [f"the run form says: {change}" for change in form["step_version_changes"]]
    for step in form["steps"]:
        name = step["step_label"] or step["step_name"]
        found += [f"the run form says of {name}: {message}" for message in _texts(step.get("messages"))]
        found += [f"the run form says of {name}: {message}" for message in _texts(step.get("errors"))]
    for number, messages in editor["upgrade_messages"].items():
        name = editor["steps"][str(number)]["label"]
        found += [f"the editor says of {name}: {message}" for message in _texts(messages)]
    for step in editor["steps"].values():
        found += [f"the editor says of {step['label']}: {message}" for message in _texts(step.get("errors"))]
        found += _connection_complaints(step, editor["steps"], kinds)
    return found


def _texts(value: Any) -> list[str]:
    """The messages in what Galaxy answers: nothing, a text, or texts nested by the option they belong to."""
    if not value:
        return []
    if isinstance(value, Mapping):
        return [text for entry in value.values() for text in _texts(entry)]
    if isinstance(value, list):
        return [text for entry in value for text in _texts(entry)]
    return [str(value)]


def _connection_complaints(step: Mapping[str, Any], steps: Mapping[str, Any], kinds: Mapping[str, Any]) -> list[str]:
    """The editor draws a connection red whose source may be empty while its target must not be, or that is of
    another kind; it finds that in the browser, by these rules."""
    found = []
    inputs = {described["name"]: described for described in step["inputs"]}
    for name, connections in step["input_connections"].items():
        target = inputs.get(name)
        for connection in connections if isinstance(connections, list) else [connections]:
            source_step = steps[str(connection["id"])]
            where = f"the connection from {source_step['label']} to {step['label']}, {name},"
            source = next((o for o in source_step["outputs"] if o["name"] == connection["output_name"]), None)
            if target is None:
                found.append(f"{where} leads to an option that the form does not have")
            elif source is None:
                found.append(f"{where} comes from an output that the tool does not have")
            elif source.get("optional") and not target.get("optional"):
                found.append(f"{where} is invalid: an optional value feeds a required option")
            elif source.get("parameter") and target.get("input_type") == "parameter":
                given, wanted = source.get("type"), target.get("type")
                if given != wanted and (given, wanted) not in _SUITABLE:
                    found.append(f"{where} is invalid: {given} feeds {wanted}")
            elif target.get("input_type") == "parameter":
                found.append(f"{where} is invalid: a dataset feeds an option")
            elif not _accepts(target.get("extensions") or [], source.get("extensions") or [], kinds):
                found.append(f"{where} is invalid: {source['extensions']} feeds {target['extensions']}")
    return found


def _accepts(wanted: list[str], given: list[str], kinds: Mapping[str, Any]) -> bool:
    """Whether at least one of the datatypes that a step may give is, or descends from, one that the next step takes."""
    classes, ancestors = kinds["ext_to_class_name"], kinds["class_to_classes"]
    for extension in given:
        if extension in wanted or extension in ("input", "_sniff_"):
            return True
        if any(classes.get(other) in ancestors.get(classes.get(extension), {}) for other in wanted):
            return True
    return False


_SUITABLE = {("integer", "float"), ("integer", "text"), ("float", "text"), ("text", "select")}


def default_repository(root: Path) -> tuple[str, str]:
    """Owner and name of the suite's repository, from ``shed.yml``."""
    text = (root / "shed.yml").read_text()
    found = {key: re.search(rf"^{key}: *(\S+)", text, re.MULTILINE) for key in ("owner", "name")}
    owner, name = found["owner"], found["name"]
    if not owner or not name:
        raise UserError("Neither owner nor name may be missing", where="shed.yml")
    return owner[1], name[1]
