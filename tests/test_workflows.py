"""The workflow files: complete as Galaxy exports them, no complaint on its pages, and at home in a Tool Shed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import workflow_files, workflows_command
from harness.layout import Layout
from harness.server import GalaxyServer
from harness.workflow_files import ShedRepository

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted(ROOT.glob("workflows/*/*.ga"))
SHED = ShedRepository("shed.example:9009", "some-owner", "plm_suite", "0123456789ab")

every_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def server() -> GalaxyServer:
    server = GalaxyServer(Layout(ROOT), lambda line: None)
    if not server.status().answers:
        pytest.fail("Galaxy does not run: scripts/galaxy start")
    return server


@pytest.fixture(scope="module")
def history(server: GalaxyServer) -> Iterator[str]:
    key = server.request("POST", "/api/histories", {"name": "Questions about workflows"})["id"]
    yield key
    server.request("DELETE", f"/api/histories/{key}?purge=true")


# -- the files alone --------------------


@every_workflow
def test_the_text_of_a_file_is_settled(path: Path) -> None:
    content = workflow_files.read(path)
    assert workflow_files.text_of(content) == path.read_text(encoding="utf-8")


@every_workflow
def test_every_step_has_its_whole_state(path: Path) -> None:
    """A state that names only what its author chose makes Galaxy ask the user to look at each step anew."""
    for step in workflow_files.read(path)["steps"].values():
        if step["type"] == "tool":
            state = json.loads(step["tool_state"])
            form = tool_inputs(ROOT / "tools" / f"{step['tool_id']}.xml")
            assert form <= set(state), f"{step['label']}: {sorted(form - set(state))}"


def tool_inputs(tool: Path) -> set[str]:
    """The names at the top of a tool's form that stand in its own file (those of macros come on top)."""
    import xml.etree.ElementTree as ET

    inputs = ET.parse(tool).getroot().find("inputs")
    assert inputs is not None
    names = set()
    for element in inputs:
        if element.tag in ("param", "section", "conditional", "repeat"):
            flag = element.get("argument", "").lstrip("-").replace("-", "_")
            names.add(element.get("name") or flag)
    return names


@every_workflow
def test_an_input_with_a_default_is_required(path: Path) -> None:
    """The editor refuses an optional input that feeds an option which must have a value, even with a default."""
    for step in workflow_files.read(path)["steps"].values():
        if step["type"] == "parameter_input":
            state = json.loads(step["tool_state"])
            assert state["optional"] != ("default" in state), step["label"]


@every_workflow
def test_data_come_first_in_the_run_form(path: Path) -> None:
    kinds = [step["type"] for step in workflow_files.read(path)["steps"].values()]
    inputs = [kind for kind in kinds if kind.endswith("_input")]
    assert kinds[: len(inputs)] == inputs
    assert inputs == sorted(inputs, key=lambda kind: kind == "parameter_input")


@every_workflow
def test_the_report_has_headers_once_and_links_with_names(path: Path) -> None:
    """Galaxy shows a table's first line in any case; its own line of headers on top would say the same twice."""
    markdown = workflow_files.read(path)["report"]["markdown"]
    directives = re.findall(r"^(history_dataset_\w+)\((.*)\)$", markdown, re.MULTILINE)
    assert directives
    for name, arguments in directives:
        if name == "history_dataset_as_table":
            assert 'show_column_headers="false"' in arguments, arguments
        if name == "history_dataset_link":
            assert re.search(r'label="[^"]+"', arguments), arguments


@every_workflow
def test_the_report_says_the_verdict_first_and_shows_figures_before_tables(path: Path) -> None:
    workflow = workflow_files.read(path)
    markdown = workflow["report"]["markdown"]
    labels = {output["label"] for step in workflow["steps"].values() for output in step["workflow_outputs"]}
    directives = re.findall(r'^(\w+)\((?:output="([^"]+)")?.*\)$', markdown, re.MULTILINE)
    assert {output for _, output in directives if output} <= labels
    kinds = []
    for name, output in directives:
        answer = name == "history_dataset_as_table" and "answer" in output.lower()
        picture = name == "history_dataset_as_image" or output == "Contacts: maps"
        kinds.append(0 if answer or picture else 1 if output else 2)
    assert kinds == sorted(kinds), "verdicts and figures, then tables and files, then when and from what"
    assert kinds.count(0) > 1 and "answer" in directives[0][1].lower()
    assert [name for name, _ in directives[-2:]] == ["invocation_time", "invocation_inputs"]


@every_workflow
def test_there_and_back_to_a_tool_shed(path: Path) -> None:
    local = workflow_files.read(path)
    released = workflow_files.for_shed(local, SHED)
    for step in released["steps"].values():
        if step["type"] != "tool":
            assert "tool_shed_repository" not in step
            continue
        tool = workflow_files.plain_id(step["tool_id"])
        assert step["tool_id"] == step["content_id"]
        assert step["tool_id"] == f"shed.example:9009/repos/some-owner/plm_suite/{tool}/{step['tool_version']}"
        assert step["tool_shed_repository"] == {
            "changeset_revision": "0123456789ab",
            "name": "plm_suite",
            "owner": "some-owner",
            "tool_shed": "shed.example:9009",
        }
    other = ShedRepository("other.example", "someone", "suite", "ba9876543210")
    assert workflow_files.for_shed(released, other) == workflow_files.for_shed(local, other)
    assert workflow_files.for_panel(released) == local


def test_the_command_rewrites_and_leaves_the_checkout_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = [path.read_bytes() for path in WORKFLOWS]
    arguments = ["for-shed", "https://shed.example:9009/", "--owner", "some-owner", "--revision", "0123456789ab"]
    code = workflows_command.main(Layout(ROOT), [*arguments, "--to", str(tmp_path)])
    assert code == 0 and "7 workflows name the tools of revision 0123456789ab" in capsys.readouterr().out
    assert [path.read_bytes() for path in WORKFLOWS] == before
    for path in WORKFLOWS:
        made = tmp_path / path.parent.name / path.name
        assert json.loads(made.read_text()) == workflow_files.for_shed(workflow_files.read(path), SHED)
        assert (made.parent / f"{path.stem}-tests.yml").is_file() and (made.parent / "README.md").is_file()
    made = [str(tmp_path / path.parent.name / path.name) for path in WORKFLOWS]
    assert workflows_command.main(Layout(ROOT), ["for-panel", *made]) == 0
    assert [Path(path).read_bytes() for path in made] == before


# -- what Galaxy's pages say --------------------


@pytest.mark.galaxy
@every_workflow
def test_the_file_is_what_galaxy_exports(server: GalaxyServer, path: Path) -> None:
    content = workflow_files.read(path)
    made = workflow_files.text_of(workflow_files.rebuilt(server, content))
    assert made == path.read_text(encoding="utf-8"), "scripts/workflows rebuild"


@pytest.mark.galaxy
@every_workflow
def test_the_run_form_and_the_editor_have_no_complaint(server: GalaxyServer, history: str, path: Path) -> None:
    assert workflow_files.complaints(server, workflow_files.read(path), history) == []


def spoilt_state(workflow: dict[str, Any]) -> None:
    step = next(step for step in workflow["steps"].values() if step["label"] == "plm_finetune")
    state = json.loads(step["tool_state"])
    del state["tuning"]["adapter"]["rank"], state["training"]
    step["tool_state"] = json.dumps(state)


def spoilt_version(workflow: dict[str, Any]) -> None:
    step = next(step for step in workflow["steps"].values() if step["label"] == "plm_finetune")
    step["tool_version"] = "0.0.1+galaxy0"


def spoilt_default(workflow: dict[str, Any]) -> None:
    step = next(step for step in workflow["steps"].values() if step["label"] == "Epochs at most")
    step["tool_state"] = json.dumps({**json.loads(step["tool_state"]), "optional": True})


def spoilt_connection(workflow: dict[str, Any]) -> None:
    step = next(step for step in workflow["steps"].values() if step["label"] == "plm_classify_sites")
    step["input_connections"]["bundle"]["output_name"] = "predictions"


@pytest.mark.galaxy
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoilt_state, "No value found for 'Rank (r)'"),
        (spoilt_version, "plm_finetune"),
        (spoilt_default, "an optional value feeds a required option"),
        (spoilt_connection, "['tabular'] feeds ['zip']"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_complaint_is_heard(server: GalaxyServer, history: str, spoil: Any, said: str) -> None:
    """The questions above can fail: each kind of fault that users met is found in a workflow that has it."""
    workflow = workflow_files.read(ROOT / "workflows" / "site-prediction" / "site-prediction.ga")
    spoil(workflow)
    found = workflow_files.complaints(server, workflow, history)
    assert any(said in line for line in found), found
