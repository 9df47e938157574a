"""The first page of ``scripts/serve``: where to start, with the suite's workflows and example data one click away."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plm.errors import UserError

from harness import workflow_files
from harness.layout import Layout
from harness.server import GalaxyServer

PAGE = "welcome.html"
_MARK = "/*WAYS*/[]"


@dataclass(frozen=True)
class Way:
    """One of the ways to start.

    Args:
        name: What the page calls it in its code.
        workflow: Folder of its workflow.
        title: What a user reads.
        text: What it does, and with what.
        files: Examples below ``test-data``, the one that the first input takes last: forms choose the newest.
        tour: Name of an interactive tour through it below ``docs/training/tours``; empty: there is none.
    """

    name: str
    workflow: str
    title: str
    text: str
    files: tuple[str, ...]
    tour: str = ""


WAYS = (
    Way(
        "sites",
        "site-prediction",
        "Sites: phosphorylation and other PTMs",
        "Labelled sites and whole proteins: fine-tunes a protein language model, tests it beside simple baselines, and"
        " scores every candidate site of your proteins. The example is simulated, made so that a language model has"
        " something to add, and takes a few minutes.",
        ("demo_proteins.fasta", "demo_sites.fasta"),
        "plm-sites",
    ),
    Way(
        "proteins",
        "embedding-classifier",
        "Proteins: classification",
        "Proteins with a class each and new proteins: embeds them, trains a classifier, tests it on proteins without"
        " relatives in training, and predicts the new ones with a flag for those it should not judge. The example is"
        " simulated, made so that a language model has something to add.",
        ("demo_new_proteins.fasta", "demo_classes.fasta"),
    ),
    Way(
        "proteome",
        "embed-proteome",
        "A proteome: embeddings and a map",
        "Any number of proteins: embeds them in as many jobs as you like, joins the parts without losing a record, and"
        " draws a map. No labels needed.",
        ("simulated_proteins.fasta",),
    ),
)


def prepare(layout: Layout, server: GalaxyServer) -> list[str]:
    """Puts workflows and example data where the first page finds them; returns the workflows' names.

    What an earlier start has put there is used again if it is still there and the same.
    """
    with (layout.galaxy / "welcome.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)  # a second call finds what the first has made
        workflows = {path.parent.name: _workflow(server, path) for path in layout.workflow_files()}
        ways = []
        for way in WAYS:
            if way.workflow in workflows:
                key = workflows[way.workflow][0]
                history = _examples(layout, server, way)
                entry = {"name": way.name, "title": way.title, "text": way.text, "workflow": key, "history": history}
                entry["tour"] = way.tour
                ways.append(entry)
        write_page(layout, ways)
        return [name for _, name in workflows.values()]


def write_page(layout: Layout, ways: list[dict[str, str]]) -> Path:
    """Writes the page that Galaxy shows first."""
    source = Path(__file__).with_name(PAGE).read_text(encoding="utf-8")
    assert source.count(_MARK) == 1
    target = layout.config / PAGE
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{PAGE}.partial")
    partial.write_text(source.replace(_MARK, json.dumps(ways)), encoding="utf-8")
    os.replace(partial, target)
    return target


def edition(workflow: Mapping[str, Any]) -> str:
    """A uuid of the workflow's very content: Galaxy lists it, so that an import is made once."""
    return workflow_files.settled_uuid(json.dumps({**workflow, "uuid": ""}, sort_keys=True))


def _workflow(server: GalaxyServer, path: Path) -> tuple[str, str]:
    """Galaxy's id and the name of the file's workflow; the copy that an older file left is removed."""
    content = workflow_files.read(path)
    mark, name = edition(content), str(content["name"])
    notes = _notes(server.layout)
    listed = {entry["id"]: entry for entry in server.request("GET", "/api/workflows")}
    found = next((key for key, entry in listed.items() if entry.get("latest_workflow_uuid") == mark), None)
    if found is None:
        found = str(server.request("POST", "/api/workflows", {"workflow": {**content, "uuid": mark}})["id"])
    outdated = notes.get(path.parent.name)
    if outdated and outdated != found and outdated in listed:
        server.request("DELETE", f"/api/workflows/{outdated}")
    _note(server.layout, path.parent.name, found)
    return found, name


def _examples(layout: Layout, server: GalaxyServer, way: Way) -> str:
    """Galaxy's id of the published history with the way's example data; one with other files is removed."""
    files = [layout.root / "test-data" / name for name in way.files]
    digest = hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in files)).hexdigest()
    key, _, holds = _notes(layout).get(f"examples {way.name}", "").partition(" ")
    if key:
        try:
            deleted = server.request("GET", f"/api/histories/{key}")["deleted"]
            contents = server.request("GET", f"/api/histories/{key}/contents")
            if not deleted and holds == digest and [entry["state"] for entry in contents] == ["ok"] * len(files):
                return key
            if not deleted:
                server.request("DELETE", f"/api/histories/{key}")
        except UserError:
            pass  # another database
    made = server.request("POST", "/api/histories", {"name": f"Example data: {way.title}"})["id"]
    for path in files:
        _upload(server, path, made)
    server.request("PUT", f"/api/histories/{made}/publish")
    _note(layout, f"examples {way.name}", f"{made} {digest}")
    return str(made)


def _upload(server: GalaxyServer, path: Path, history: str) -> None:
    source = {"src": "pasted", "paste_content": path.read_text(encoding="utf-8"), "name": path.name, "ext": "fasta"}
    targets = [{"destination": {"type": "hdas"}, "elements": [source]}]
    made = server.request("POST", "/api/tools/fetch", {"history_id": history, "targets": targets})
    for output in made["outputs"]:
        deadline = time.monotonic() + 300
        while True:
            state = server.request("GET", f"/api/datasets/{output['id']}")["state"]
            if state == "ok":
                break
            if state in ("error", "discarded", "failed_metadata") or time.monotonic() > deadline:
                raise UserError(f"Galaxy could not take the example {path.name}: {state}", where=server.url)
            time.sleep(0.3)


def _notes(layout: Layout) -> dict[str, str]:
    try:
        noted: dict[str, str] = json.loads((layout.galaxy / "welcome.json").read_text())
        return noted
    except (OSError, ValueError):
        return {}


def _note(layout: Layout, name: str, value: str) -> None:
    path = layout.galaxy / "welcome.json"
    path.write_text(json.dumps(_notes(layout) | {name: value}, indent=1, sort_keys=True))
