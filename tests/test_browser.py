"""What a new user does at Galaxy's page, in a real browser: the flagship workflow to its bundle, and wrong turns.

Needs the running Galaxy of scripts/galaxy and a Chromium (Debian: apt-get install chromium). Screenshots lie in
.plm/screens.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import time
import urllib.request
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness import welcome
from harness.layout import Layout
from harness.server import GalaxyServer

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "test-data"
SCREENS = ROOT / ".plm" / "screens"
HEADERS_TWICE = """
tables => tables.map(t => [...t.rows].map(r => r.innerText.trim())).filter(r => r.length > 1 && r[0] === r[1])
"""
PATIENCE = 900_000  # milliseconds; the jobs of other tests may stand before ours
PICTURES = "n => [...document.images].filter(i => i.complete && i.naturalWidth > 300).length >= n"

pytestmark = [pytest.mark.galaxy, pytest.mark.slow]


@pytest.fixture(scope="module")
def server() -> GalaxyServer:
    found = GalaxyServer(Layout(ROOT), lambda line: None)
    if not found.status().answers:
        pytest.fail("Galaxy does not run: scripts/galaxy start")
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program = os.environ.get("PLM_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("NO CHROMIUM HERE: apt-get install chromium; nothing is known of what users see in a browser")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any, server: GalaxyServer) -> Iterator[Any]:
    """A page after the login, as the first page says."""
    welcome.prepare(server.layout, server)
    context = browser.new_context(viewport={"width": 1400, "height": 1000}, accept_downloads=True)
    shown = context.new_page()
    shown.set_default_timeout(60_000)
    account = server.account()
    shown.goto(f"{server.url}/login/start")
    shown.fill("input[name=login]", account.email)
    shown.fill("input[name=password]", account.password)
    shown.click("button[name=login]")
    shown.wait_for_selector("iframe[src*=welcome]")
    try:
        yield shown
    finally:
        SCREENS.mkdir(parents=True, exist_ok=True)
        shown.screenshot(path=str(SCREENS / "last.png"))
        context.close()


def shoot(page: Any, name: str) -> None:
    SCREENS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=str(SCREENS / f"{name}.png"))


def found_tools(page: Any, word: str) -> list[str]:
    """The ids of the tools that the panel's search finds."""
    search = page.locator("input[placeholder*='search tools' i]")
    search.fill("")
    search.fill(word)
    page.wait_for_timeout(1200)
    links = page.locator("#toolbox-panel a.tool-link, .toolbox a.tool-link, a.tool-link")
    found = [links.nth(number).get_attribute("href") or "" for number in range(links.count())]
    return sorted({match[1] for href in found if (match := re.search(r"tool_id=(?:.*%2F|.*/)?(plm_\w+)", href))})


def choose(page: Any, label: str, text: str) -> None:
    """Chooses a dataset or an option in the field of a form, which goes by its label or its name."""
    field = page.locator(f"[data-label='{label}'], [id='form-element-{label}']").first
    field.locator(".multiselect").first.click()
    field.locator("li", has_text=text).first.click()


def test_words_of_the_field_find_the_tools(page: Any) -> None:
    expected = {
        "phosphorylation": {"plm_preprocess", "plm_classify_sites"},
        "PTM": {"plm_preprocess", "plm_finetune", "plm_classify_sites"},
        "ESM-2": {"plm_embed", "plm_finetune", "plm_pretrain"},
        "ProtT5": {"plm_embed", "plm_finetune"},
        "LoRA": {"plm_finetune"},
        "classification": {"plm_finetune", "plm_train_classifier", "plm_predict", "plm_evaluate"},
        "fine-tuning": {"plm_finetune"},
        "distillation": {"plm_distill"},
    }
    for word, tools in expected.items():
        assert tools <= set(found_tools(page, word)), word
    shoot(page, "search")


def test_the_flagship_from_the_first_page_to_the_bundle(page: Any, server: GalaxyServer, tmp_path: Path) -> None:
    page.frame_locator("iframe[src*=welcome]").locator("#start-sites").click()
    page.wait_for_url("**/workflows/run**")
    choose(page, "Query proteins", "demo_proteins.fasta")
    assert "demo_sites.fasta" in page.locator("[data-label='Labelled sites'] .multiselect").first.inner_text()
    page.locator("[data-label='Epochs at most'] input").first.fill("2")
    assert page.locator(".alert-danger:visible").count() == 0 and page.locator(".alert-warning:visible").count() == 0
    shoot(page, "run-form")
    page.locator("#run-workflow").click()
    page.wait_for_url("**/workflows/invocations/**")
    invocation = re.search(r"/invocations/(\w+)", page.url)
    assert invocation
    page.get_by_text(re.compile("4 of 4 jobs complete")).wait_for(timeout=PATIENCE)

    page.get_by_role("tab", name="Report").or_(page.get_by_text("Report", exact=True)).first.click()
    report = page.locator("#center")
    report.get_by_text("Is it any good?").wait_for()
    report.get_by_text("Scores of the test rows").first.wait_for()
    page.wait_for_function(PICTURES, arg=5, timeout=60_000)
    cells = report.locator("table td", has_text="auroc")
    cells.first.wait_for()
    shoot(page, "report")
    assert report.locator("table").evaluate_all(HEADERS_TWICE) == []

    outputs = server.request("GET", f"/api/invocations/{invocation[1]}")["outputs"]
    bundle = outputs["Fine-tuned model"]["id"]
    shown = server.request("GET", f"/api/datasets/{bundle}")
    assert shown["name"] == "Fine-tuned model (bundle): demo_sites.fasta"
    page.goto(f"{server.url}/datasets/{bundle}")
    with page.expect_download() as download:
        page.evaluate("address => { location.href = address }", f"/api/datasets/{bundle}/display?to_ext=zip")
    target = tmp_path / "bundle.zip"
    download.value.save_as(target)
    with zipfile.ZipFile(io.BytesIO(target.read_bytes())) as archive:
        assert json.loads(archive.read("manifest.json"))["finished"] is True
    reuse(page, server, target)
    for label in ("Evaluation report", "Site report"):
        page.goto(f"{server.url}/datasets/{outputs[label]['id']}/report")
        page.wait_for_function(PICTURES, arg=1, timeout=60_000)
        shoot(page, label.lower().replace(" ", "-"))


def test_the_guided_tour_leads_to_the_run_button(page: Any) -> None:
    """Every step of it points at something that is there, up to the button that would run the workflow."""
    tour = yaml.safe_load((ROOT / "docs" / "training" / "tours" / "plm-sites.yaml").read_text())
    page.frame_locator("iframe[src*=welcome]").locator("#tour-sites").click()
    page.wait_for_url("**/tours/plm-sites")
    for step in tour["steps"]:
        page.locator(".tour-element", has_text=step["title"]).first.wait_for()
        if "element" in step:
            page.locator(step["element"]).first.wait_for()
        if step["title"] == "Run it":
            break
        if "textinsert" in step:
            page.locator("#workflow-cards .g-card").first.get_by_text(step["textinsert"]).first.wait_for()
        if step.get("element") == "[data-label='Query proteins']":
            choose(page, "Query proteins", "demo_proteins.fasta")
        page.locator(".tour-element button", has_text="Continue").first.click()
    assert page.locator("#run-workflow").is_enabled()
    shoot(page, "tour")


def upload(server: GalaxyServer, name: str, text: str, kind: str, history: str) -> None:
    """Puts a file into a history, as Upload does."""
    element: dict[str, Any] = {"src": "pasted", "paste_content": text, "name": name, "ext": kind}
    targets = [{"destination": {"type": "hdas"}, "elements": [element]}]
    made = server.request("POST", "/api/tools/fetch", {"history_id": history, "targets": targets})
    for output in made["outputs"]:
        settle(server, output["id"])


def settle(server: GalaxyServer, dataset: str) -> None:
    deadline = time.monotonic() + PATIENCE / 1000
    while time.monotonic() < deadline:
        if server.request("GET", f"/api/datasets/{dataset}")["state"] in ("ok", "error", "empty", "failed_metadata"):
            return
        time.sleep(0.5)
    pytest.fail(f"the dataset {dataset} did not end")


def failed(page: Any, server: GalaxyServer, history: str) -> dict[str, Any]:
    """The first red dataset of a history, once the job that made it has ended."""
    deadline = time.monotonic() + PATIENCE / 1000
    while time.monotonic() < deadline:
        found = server.request("GET", f"/api/histories/{history}/contents?v=dev&q=state&qv=error")
        if found:
            return dict(found[0])
        page.wait_for_timeout(500)
    pytest.fail("no dataset became red")


DNA = "".join(f">read{number} LABEL={number % 2}\n{'ACGTTGCAACGT' * 3}\n" for number in range(30))
NOTES = "These are my notes of Monday.\nNothing else is in here.\n"
UNLABELLED = (DATA / "simulated_corpus.fasta").read_text()
STATUS = "id\tline\tlength\tencoded\twindows\tcleaned\tduplicate_of\tstatus\tdetails\n" + "".join(
    f"P{number}\t{number}\t{90 + number}\t{90 + number}\t1\t0\t\tembedded\t\n" for number in range(1, 40)
)


@pytest.mark.parametrize(
    ("tool", "name", "text", "kind", "said"),
    [
        pytest.param("plm_preprocess", "reads.fasta", DNA, "fasta", "nucleotide|DNA", id="DNA"),
        pytest.param("plm_preprocess", "corpus.fasta", UNLABELLED, "fasta", "[Nn]o label", id="no labels"),
        pytest.param(
            "plm_preprocess", "empty.fasta", "\n", "fasta", "empty|[Nn]o record|[Nn]o sequence", id="empty file"
        ),
        pytest.param("plm_preprocess", "notes.fasta", NOTES, "fasta", "must start with '>' but", id="text renamed"),
        pytest.param(
            "plm_project", "status.tabular", STATUS, "tabular", "status|what became", id="status as embeddings"
        ),
    ],
)
def test_a_wrong_turn_ends_in_one_clear_line(
    page: Any, server: GalaxyServer, tool: str, name: str, text: str, kind: str, said: str
) -> None:
    history = server.request("POST", "/api/histories", {"name": f"A wrong turn: {name}"})["id"]
    upload(server, name, text, kind, history)
    page.goto(f"{server.url}/history/set_as_current?id={history}")
    page.goto(f"{server.url}/?tool_id={tool}")
    page.locator("#execute").first.wait_for()
    page.get_by_text(name).first.wait_for()
    page.locator("#execute").first.click()
    red = failed(page, server, history)
    page.goto(f"{server.url}/datasets/{red['id']}/error")
    page.get_by_text(re.compile(f"{tool}: error: ")).first.wait_for()
    shoot(page, f"wrong-{name}")
    job = server.request("GET", f"/api/datasets/{red['id']}")["creating_job"]
    stderr = str(server.request("GET", f"/api/jobs/{job}?full=true")["tool_stderr"])
    errors = [line for line in stderr.splitlines() if line.startswith(f"{tool}: error: ")]
    assert len(errors) == 1 and "Traceback" not in stderr, stderr
    assert re.search(said, errors[0]) and re.search(r"\]\. [A-Z].*\.$", errors[0]), "it says where, and how to go on"


def reuse(page: Any, server: GalaxyServer, bundle: Path) -> None:
    """The downloaded bundle in another history, by the upload dialog, scores other proteins."""
    history = str(server.request("POST", "/api/histories", {"name": "reuse"})["id"])
    upload(server, "proteins.fasta", (DATA / "demo_proteins.fasta").read_text(), "fasta", history)
    page.goto(f"{server.url}/history/set_as_current?id={history}")
    page.goto(server.url)
    page.locator("#activity-upload").click()
    with page.expect_file_chooser() as chooser:
        page.locator("#btn-local:visible").first.click()
    chooser.value.set_files(bundle)
    page.locator("#btn-start:visible").first.click()
    deadline = time.monotonic() + 120
    while len(server.request("GET", f"/api/histories/{history}/contents")) < 2:
        assert time.monotonic() < deadline, "the upload did not arrive"
        page.wait_for_timeout(500)
    for entry in server.request("GET", f"/api/histories/{history}/contents"):
        settle(server, entry["id"])
    run_form(page, server, history, "plm_classify_sites")


def open_form(page: Any, server: GalaxyServer, tool: str) -> None:
    page.goto(f"{server.url}/?tool_id={tool}")
    page.locator("#execute").first.wait_for()


def run_form(page: Any, server: GalaxyServer, history: str, tool: str, chosen: tuple[str, str] = ("", "")) -> None:
    """Opens a form, chooses at most one dataset, presses the button, and waits until all that it makes is there."""
    before = {entry["id"] for entry in server.request("GET", f"/api/histories/{history}/contents")}
    open_form(page, server, tool)
    if chosen[0]:
        choose(page, *chosen)
    assert page.locator("#center .alert-danger:visible").count() == 0, tool
    page.locator("#execute").first.click()
    page.get_by_text(re.compile("Started tool")).first.wait_for()
    made = [
        entry for entry in server.request("GET", f"/api/histories/{history}/contents") if entry["id"] not in before
    ]
    assert made, tool
    for entry in made:
        settle(server, entry["id"])
        assert server.request("GET", f"/api/datasets/{entry['id']}")["state"] == "ok", (tool, entry["name"])


def test_every_form_opens_and_its_defaults_run(page: Any, server: GalaxyServer) -> None:
    """One upload, and then one form after the other in the order of work: at most one choice, and the button."""
    history = str(server.request("POST", "/api/histories", {"name": "untouched"})["id"])
    page.goto(f"{server.url}/history/set_as_current?id={history}")
    for path in server.layout.tool_files():
        if ET.parse(path).getroot().get("tool_type") == "manage_data":
            continue  # the administrator's page has its form
        open_form(page, server, path.stem)
        complaints = page.locator("#center .alert-danger:visible").all_inner_texts()
        # red boxes of inputs for which this history has nothing, and no others
        assert all(re.search(r"[Nn]o .*available|provide a value|required", text) for text in complaints), complaints
    classes = (DATA / "demo_classes.fasta").read_text()
    proteins = re.sub(r"^(>\w+).*\|(\w+)$", r"\1 LABEL=\2", classes, flags=re.MULTILINE)
    upload(server, "proteins.fasta", proteins, "fasta", history)
    run_form(page, server, history, "plm_preprocess", ("data|kind", "Whole sequences, with a class"))
    run_form(page, server, history, "plm_embed")
    # the newest table is that of what became of each record; the form's line on it is one of the wrong turns
    run_form(page, server, history, "plm_train_classifier", ("Table of labels", "Data set"))
    run_form(page, server, history, "plm_project", ("embeddings", "Embeddings: "))
    shoot(page, "untouched")


PUBLISH = """
import sys
sys.path[:0] = sys.argv[1:3]
from harness.flagship import GalaxyRun, Invocation
print(GalaxyRun(sys.argv[3], sys.argv[4], print).publish_report(Invocation(*sys.argv[5:7]), "A report"))
"""


def test_the_report_that_scripts_run_names_needs_no_login(browser: Any, server: GalaxyServer) -> None:
    invocations = server.request("GET", "/api/invocations?limit=50")
    for invocation in invocations:
        outputs = server.request("GET", f"/api/invocations/{invocation['id']}")["outputs"]
        images = [entry for label, entry in outputs.items() if label == "ROC curve"]
        if images and server.request("GET", f"/api/datasets/{images[0]['id']}")["state"] == "ok":
            break
    else:
        pytest.skip("THE FLAGSHIP HAS NOT RUN on this server yet: its report cannot be looked at")
    arguments = [str(ROOT / "scripts"), str(ROOT / "tools"), server.url, server.account().key]
    arguments += [invocation["id"], invocation["history_id"]]
    command = [str(server.layout.python("planemo")), "-c", PUBLISH, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    context = browser.new_context(viewport={"width": 1400, "height": 3000})
    shown = context.new_page()
    shown.goto(done.stdout.split()[-1])
    shown.get_by_text("Is it any good?").wait_for(timeout=120_000)
    shown.wait_for_function(PICTURES, arg=3, timeout=120_000)
    shown.locator("td", has_text="auroc").first.wait_for(timeout=60_000)
    shoot(shown, "report-without-login")
    assert "not accessible" not in shown.locator("body").inner_text() and "login" not in shown.url
    context.close()


def test_the_first_page_is_there_without_a_login(server: GalaxyServer) -> None:
    with urllib.request.urlopen(f"{server.url}/static/welcome.html") as answer:
        assert b"Where do you want to start?" in answer.read()
