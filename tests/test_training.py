"""The training page and the guide: names are those of the forms, figures those of the README, pictures are there."""

from __future__ import annotations

import html
import json
import re
from functools import cache
from pathlib import Path

import pytest
import yaml
from form_parameters import expanded

ROOT = Path(__file__).resolve().parents[1]
TRAINING = ROOT / "docs" / "training"
TUTORIAL = TRAINING / "tutorial.md"
GUIDE = ROOT / "docs" / "which_model.md"
WORKFLOW = json.loads((ROOT / "workflows" / "site-prediction" / "site-prediction.ga").read_text())
PAGES = {"**Run Workflow**", "**Report**", "**Try it with example data**", "**Show me, step by step**"}
"""What Galaxy and its first page call their buttons, as test_browser.py presses them."""
BOXES = {"hands-on": "hands_on", "question": "question", "solution": "solution", "agenda": "agenda", "tip": "tip"}
MOST_BYTES, MOST_OF_ALL = 150_000, 2**20


@cache
def forms() -> dict[str, tuple[str, set[str], set[str]]]:
    """Id of each tool to its name, the labels of its parameters and those of its outputs up to a colon."""
    found = {}
    for path in sorted((ROOT / "tools").glob("plm_*.xml")):
        form = expanded(path)
        labels = {str(param.get("label")) for param in form.iter("param") if param.get("label")}
        outputs = {str(data.get("label")).split(": ")[0] for data in form.findall("outputs/*")}
        found[path.stem] = (str(form.get("name")), labels, outputs)
    return found


def front_matter() -> tuple[dict[str, object], str]:
    _, head, body = TUTORIAL.read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(head), body


def test_the_front_matter_is_what_the_network_asks_for() -> None:
    head, _ = front_matter()
    assert head["layout"] == "tutorial_hands_on" and str(head["title"]).strip()
    assert head["zenodo_link"] == "https://zenodo.org/record/10986248"
    for field in ("questions", "objectives", "key_points", "tags"):
        lines = head[field]
        assert isinstance(lines, list) and lines and all(isinstance(line, str) and line for line in lines), field
    assert all(str(question).endswith("?") for question in head["questions"])  # type: ignore[attr-defined]
    assert re.fullmatch(r"(\d+H)?(\d+M)?", str(head["time_estimation"])) and head["time_estimation"]
    assert head["level"] in ("Introductory", "Intermediate", "Advanced")
    assert isinstance(head["contributions"], dict) and head["contributions"]["authorship"]


def test_boxes_are_opened_and_closed() -> None:
    _, body = front_matter()
    opened: list[str] = []
    for line in body.split("\n"):
        marks = re.match(r"[> ]*", line)
        depth = marks[0].count(">") if marks else 0
        if title := re.search(r"<([\w-]+)-title>.*</\1-title>", line):
            opened.append(BOXES[title[1]])
            assert depth == len(opened), line
        elif closed := re.fullmatch(r"[> ]*\{: \.(\w+)\}", line):
            if closed[1] in BOXES.values():
                assert opened.pop() == closed[1] and depth == len(opened), line
        elif opened and line.strip():
            assert depth == len(opened), f"outside of its box: {line}"
    assert opened == []
    for box in ("hands-on", "question", "solution"):
        assert f"<{box}-title>" in body
    for question in re.findall(r"> <question-title>.*?\{: \.question\}", body, re.S):
        asked = re.findall(r"^> \d+\. ", question, re.M)
        answered = re.findall(r"^> > \d+\. ", question, re.M)
        assert len(asked) == len(answered) > 0


@pytest.mark.parametrize("page", [TUTORIAL, GUIDE, TRAINING / "README.md"], ids=lambda path: path.stem)
def test_links_and_pictures_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)", re.sub(r"\{%.*?%\}", "", text)):
        if target.startswith("https://"):
            continue
        file, _, part = target.partition("#")
        aim = (page.parent / file).resolve() if file else page
        assert aim.is_relative_to(ROOT) and aim.exists(), target
        if part:
            heads = re.findall(r"^#+ (.*)$", aim.read_text(encoding="utf-8"), re.M)
            assert part in {re.sub(r"[^\w -]", "", head).lower().replace(" ", "-") for head in heads}, target
    assert all(alt for alt in re.findall(r"!\[([^\]]*)\]", text)), "a picture without words"


def test_pictures_are_small_and_all_are_shown() -> None:
    from PIL import Image

    pictures = sorted((TRAINING / "images").iterdir())
    assert {f"images/{path.name}" for path in pictures} == set(re.findall(r"images/[\w-]+\.png", TUTORIAL.read_text()))
    assert sum(path.stat().st_size for path in pictures) < MOST_OF_ALL
    for path in pictures:
        assert path.stat().st_size <= MOST_BYTES, path.name
        with Image.open(path) as picture:
            assert picture.format == "PNG" and min(picture.size) >= 400
            assert not picture.info.get("Software") and "/" not in "".join(map(str, picture.info.values()))


def test_names_of_tools_and_of_their_parameters_and_outputs_are_those_of_the_forms() -> None:
    _, body = front_matter()
    known = forms()
    named = re.findall(r"\{% tool \[([^\]]+)\]\((\w+)\) %\}", body)
    assert {tool for _, tool in named} >= {"plm_preprocess", "plm_finetune", "plm_evaluate", "plm_classify_sites"}
    for name, tool in named:
        assert known[tool][0] == name
    inputs = {step["label"] for step in WORKFLOW["steps"].values() if step["type"].endswith("_input")}
    used = {step["tool_id"] for step in WORKFLOW["steps"].values() if step["tool_id"]}
    asked = inputs.union(*(known[tool][1] for tool in used))
    for label in re.findall(r'\*"([^"]+)"\*', body):
        assert label in asked, label
    made = {output["label"] for step in WORKFLOW["steps"].values() for output in step["workflow_outputs"]}
    made = made.union(*(known[tool][2] for tool in used), {WORKFLOW["name"]})
    for bold in re.findall(r"\*\*[^*]+\*\*", body):
        assert bold in PAGES or bold.strip("*") in made | {"protein language model", "fine-tuning"}, bold


def test_the_workflow_that_is_shown_is_the_one_of_the_suite() -> None:
    head, body = front_matter()
    link = TRAINING / "workflows"
    assert link.is_symlink() and link.resolve() == ROOT / "workflows" / "site-prediction"
    assert WORKFLOW["name"] in body
    library = yaml.safe_load((TRAINING / "data-library.yaml").read_text())
    listed = re.findall(r"'url': '([^']+)'", str(library))
    assert listed == re.findall(r"^>    (https://zenodo\.org/record/\d+/files/\S+)$", body, re.M) != []
    assert all(address.startswith(f"{head['zenodo_link']}/files/") for address in listed)


def test_six_clicks_are_six() -> None:
    _, body = front_matter()
    assert [int(number) for number in re.findall(r"\(click (\d)\)", body)] == list(range(1, 7))
    assert body.lower().count("six clicks") == 2


@pytest.mark.parametrize("page", [TUTORIAL, GUIDE], ids=lambda path: path.stem)
def test_every_figure_is_one_of_the_readme(page: Path) -> None:
    measured = (ROOT / "README.md").read_text(encoding="utf-8").split("<!-- results:begin -->")[1]
    known = set(re.findall(r"\d+(?:[.,]\d+)*", measured.split("<!-- results:end -->")[0]))
    text = re.sub(r"https?://\S+|\]\([^)]*\)|`[^`]*`", "", page.read_text(encoding="utf-8").split("---\n", 2)[-1])
    figures = re.findall(r"(?<![\w-])\d+(?:[.,]\d+)+(?![\w])", text)
    assert len(figures) > 10
    assert [figure for figure in figures if figure not in known] == []


def test_the_guide_names_tools_and_workflows_that_are_there() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    assert set(re.findall(r"`(plm_\w+)`", text)) <= set(forms())
    labels = set().union(*(labels for _, labels, _ in forms().values()))
    for named in ("The predictor that you take home",):
        assert f"*{named}*" in text and named in labels
    workflows = {path.name for path in (ROOT / "workflows").iterdir()}
    linked = set(re.findall(r"\]\(\.\./workflows/([\w-]+)\)", text))
    assert linked <= workflows and len(linked) >= 5


def test_the_readme_leads_to_both() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "(docs/which_model.md)" in text and "(docs/training/tutorial.md)" in text


def test_the_tour_is_one_that_galaxy_takes() -> None:
    """Selectors are tried by a browser in test_browser.py; here: its form, and that no text breaks the page."""
    tour = yaml.safe_load((TRAINING / "tours" / "plm-sites.yaml").read_text())
    assert tour["id"] == "plm-sites" and tour["name"] and tour["requirements"] == ["logged_in"]
    fields = {"title", "content", "element", "placement", "preclick", "postclick", "textinsert", "intro"}
    inputs = {step["label"] for step in WORKFLOW["steps"].values() if step["type"].endswith("_input")}
    for step in tour["steps"]:
        assert set(step) <= fields and step["content"] and step["title"]
        for label in re.findall(r"data-label='([^']+)'", step.get("element", "")):
            assert label in inputs
        tags = re.findall(r"</?(\w+)>", step["content"])
        assert set(tags) <= {"b", "i", "br", "code"} and html.unescape(step["content"]) == step["content"]
    assert any(name in str(tour) for name, _, _ in forms().values())
