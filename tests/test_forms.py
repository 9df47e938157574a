"""Lists that repeat the code: helps as they are rendered, tables of tools. Flags: test_flags.py."""

from __future__ import annotations

import html
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import configuration
from harness.layout import Layout
from harness.server import GalaxyServer

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ROOT / "tools"
XMLS = sorted(TOOLS.glob("plm_*.xml"))
NAMES = {path: str(ET.parse(path).getroot().get("name")) for path in XMLS}

every_tool = pytest.mark.parametrize("tool", XMLS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def server() -> GalaxyServer:
    found = GalaxyServer(Layout(ROOT), lambda line: None)
    if not found.status().answers:
        pytest.fail("Galaxy does not run: scripts/galaxy start")
    return found


# -- helps --------------------


def texts(tool: Path) -> Iterator[str]:
    for element in ET.parse(tool).getroot().iter():
        yield from (element.get(name, "") for name in ("help", "label", "title", "message"))


@pytest.mark.parametrize("tool", [*XMLS, TOOLS / "macros.xml"], ids=lambda path: path.stem)
def test_no_text_of_a_form_is_eaten_as_html(tool: Path) -> None:
    """The form shows a parameter's help as HTML: what stands in angle brackets vanishes."""
    for text in texts(tool):
        assert not re.search(r"<[^ ]", text), text


@every_tool
def test_tools_that_a_help_names_are_there(tool: Path) -> None:
    text = ET.parse(tool).getroot().findtext("help") or ""
    for named in re.findall(r"\*(PLM [^*]+)\*", text):
        assert named in NAMES.values(), named
    for other in re.findall(
        r"(?:\bas|\btool|\bof|\bwith) \*([A-Z][a-z]+(?: [a-z]+)+)\* (?:can|does|makes|wrote|tool)", text
    ):
        assert other in NAMES.values(), f"{other} is no tool"


@pytest.mark.galaxy
@every_tool
def test_the_help_is_rendered_whole(server: GalaxyServer, tool: Path) -> None:
    history = server.request("GET", "/api/histories?limit=1")[0]["id"]
    shown = str(server.request("GET", f"/api/tools/{tool.stem}/build?history_id={history}")["help"])
    assert "system-message" not in shown and "Docutils" not in shown
    visible = html.unescape(re.sub(r"<[^>]+>", " ", shown))
    source = ET.parse(tool).getroot().findtext("help") or ""
    words = r"[A-Za-z_][A-Za-z0-9_]+"  # numbers of lists are the browser's
    lost = set(re.findall(words, source)) - set(re.findall(words, visible))
    assert not lost, f"not in the rendered help: {sorted(lost)}"


def test_the_answer_is_the_first_sentence_of_a_report(tmp_path: Path) -> None:
    report, target = tmp_path / "report.md", tmp_path / "answer.tsv"
    report.write_text("# Title\n\n**3 \\*sites\\* of SIM\\_1 are called (95 % interval 1 to 4).**\n\n| a |\n| --- |\n")
    command = [sys.executable, "-P", str(TOOLS / "plm" / "answer.py"), str(report), str(target)]
    assert subprocess.run(command, check=False).returncode == 0
    assert target.read_text() == "3 *sites* of SIM_1 are called (95 % interval 1 to 4).\n"


# -- pages --------------------


def gpu_tools() -> set[str]:
    found = set()
    for tool in XMLS:
        macros = {element.get("macro") for element in ET.parse(tool).getroot().iter("expand")}
        if "requirements_gpu" in macros:
            found.add(tool.stem)
    return found


def test_lists_of_tools_on_gpus_are_the_forms() -> None:
    readme = (TOOLS / "README.rst").read_text()
    sentence = re.search(r"GPUs\n-+\n\n(.*?)declare one GPU", readme, re.DOTALL)
    assert sentence and set(re.findall(r"``(plm_\w+)``", sentence[1])) == gpu_tools()
    sentence = re.search(r"### Processors and GPUs\n\n(.*?)use a GPU", (ROOT / "README.md").read_text(), re.DOTALL)
    assert sentence and set(re.findall(r"`(plm_\w+)`", sentence[1])) == gpu_tools()
    rows = re.findall(
        r"^\| (`plm_.*?) \|.*\| (.*?) \|$", (ROOT / "docs" / "administrators.md").read_text(), re.MULTILINE
    )
    listed = [(tool, gpu != "none") for tools, gpu in rows for tool in re.findall(r"`(plm_\w+)`", tools)]
    assert sorted(listed) == sorted((path.stem, path.stem in gpu_tools()) for path in XMLS)


def test_the_sample_panel_lists_every_tool_once() -> None:
    sections = ET.parse(TOOLS / "tool_conf.xml.sample").getroot().findall("section")
    files = [tool.get("file") for section in sections for tool in section]
    managers = {manager.get("tool_file") for manager in ET.parse(TOOLS / "data_manager_conf.xml").getroot()}
    # Galaxy offers those to administrators on a page of their own.
    assert sorted(map(str, files)) == [f"tools/{path.name}" for path in XMLS if path.name not in managers]
    made = ET.fromstring(configuration.tool_conf(Layout(ROOT)))
    assert [tool.get("file") for tool in made.iter("tool")] == [str(ROOT / str(file)) for file in files]


def test_tables_of_tools_name_every_tool_once() -> None:
    readme = (ROOT / "README.md").read_text().split("## The tools\n")[1].split("\n## ")[0]
    assert sorted(re.findall(r"^\| `(plm_\w+)` \|", readme, re.MULTILINE)) == [path.stem for path in XMLS]
    table = (TOOLS / "README.rst").read_text().split("Installation\n")[0]
    assert sorted(re.findall(r"^``(plm_\w+)`` ", table, re.MULTILINE)) == [path.stem for path in XMLS]


@every_tool
def test_the_main_output_is_declared_last(tool: Path) -> None:
    """A form takes the newest dataset that fits: of the outputs of a tool that is the one declared last."""
    main = {
        "plm_preprocess": "dataset",
        "plm_embed": "embeddings",
        "plm_finetune": "bundle",
        "plm_classify_sites": "sites",
        "plm_predict": "predictions",
        "plm_variants": "scores",
        "plm_contacts": "contacts",
        "plm_train_classifier": "bundle",
        "plm_compress_classifier": "compressed_bundle",
        "plm_convert": "output",
        "plm_distill": "output_model",
        "plm_pretrain": "output_model",
        "plm_merge_embeddings": "output",
        "plm_split_fasta": "parts",
    }
    outputs = list(ET.parse(tool).getroot().findall("outputs/*"))
    names = [element.get("name") or "report" for element in outputs]
    assert names[-1] == main.get(tool.stem, "report")
    if tool.stem in ("plm_finetune", "plm_train_classifier"):
        tables = [element.get("name") for element in outputs if element.get("format") == "tabular"]
        assert tables[-1] == "predictions", "the evaluation takes them"


@every_tool
def test_every_output_is_asserted_somewhere(tool: Path) -> None:
    root = ET.parse(tool).getroot()
    names = {element.get("name") or "report" for element in root.findall("outputs/*")}
    tested = {element.get("name") for test in root.iter("test") for element in test if element.tag.startswith("output")}
    assert names <= tested, sorted(names - tested)


@every_tool
def test_outputs_are_named_for_what_they_are(tool: Path) -> None:
    labels = [element.get("label", "") for element in ET.parse(tool).getroot().findall("outputs/*")]
    assert all(labels) and len(set(labels)) == len(labels)
    for label in labels:
        assert "tool.name" not in label and label[0].isupper(), label
