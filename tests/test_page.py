"""A report as one HTML file: the same verdict, figures and tables as in Galaxy, and nothing of the user's but text."""

from __future__ import annotations

import base64
import importlib
import re
import shlex
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from form_parameters import expanded
from plm import flags
from plm.answer import answer
from plm.telling import page
from plm.telling.report import Report, plain

ROOT = Path(__file__).resolve().parents[1]
TOOLS = sorted((ROOT / "tools").glob("plm_*.xml"))
COMMANDS = ROOT / "scripts" / "fixtures" / "stage_commands.txt"
TRIED = (
    "preprocess/windows", "evaluate/families", "project/cosine", "compare_embeddings/damaged", "convert/fair_esm",
    "pretrain/stopped", "distill/layers", "finetune/full", "train_classifier/neighbours", "compress_classifier/int8",
    "predict/embeddings", "classify_sites/truth", "variants/table", "contacts/head", "compare_models/three",
)
"""A command of stage_commands.txt for each stage with a report."""
WITHOUT_PAGE = {"plm_install_model": "what an administrator reads where the model was installed"}
ELEMENTS = {
    "html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "h4", "h5", "p", "strong", "em", "code", "ul",
    "li", "div", "table", "caption", "thead", "tbody", "tr", "th", "td", "figure", "img",
}
MOST_BYTES = 3 * 2**20
Run = Callable[[str], tuple[str, "Seen", dict[str, Path]]]


class Seen(HTMLParser):
    """What a browser would find in a page.

    Attributes:
        tables: Of each table its header and its rows, as text.
        images: Bytes of each picture.
        headings: Text of each heading below the title.
        verdict: Text of the first paragraph.
        said: All text.
        faults: What has no place in a page that stands alone.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[tuple[list[list[str]], list[list[str]]]] = []
        self.images: list[bytes] = []
        self.headings: list[str] = []
        self.verdict, self.said, self.faults = "", "", list[str]()
        self._open: list[str] = []
        self._gathered: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == [], "elements that nobody closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        held = dict(attrs)
        if tag not in ELEMENTS:
            self.faults.append(f"<{tag}>")
        for name, value in held.items():
            fine = name in ("class", "scope", "alt", "lang", "charset", "content", "http-equiv", "name")
            if not fine and not (name == "src" and str(value).startswith("data:image/png;base64,")):
                self.faults.append(f"{name}={value}")
        if tag == "img":
            self.images.append(base64.b64decode(str(held["src"]).partition(",")[2], validate=True))
        if tag == "table":
            self.tables.append(([], []))
        if tag == "tr":
            self.tables[-1]["tbody" in self._open].append([])
        if tag in ("th", "td", "h2", "h3", "h4", "p"):
            self._gathered = []
        if tag not in ("meta", "img"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        text = "".join(self._gathered)
        if tag in ("th", "td"):
            self.tables[-1]["tbody" in self._open][-1].append(text)
        if tag in ("h2", "h3", "h4"):
            self.headings.append(text)
        if tag == "p" and not self.verdict:
            self.verdict = text

    def handle_data(self, data: str) -> None:
        self._gathered.append(data)
        if "style" not in self._open:
            self.said += data


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command of stage_commands.txt here: its report as Markdown and as a page, and its outputs by name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(ROOT / "test-data")
    lines = [line for line in COMMANDS.read_text().split("\n") if line[:1] != "#"]
    entries = [entry for entry in re.sub(r"\n +", " ", "\n".join(lines)).split("\n") if entry]
    known = {entry.partition(" ")[0]: shlex.split(entry.partition(" ")[2]) for entry in entries}

    def called(name: str) -> tuple[str, Seen, dict[str, Path]]:
        stage = name.partition("/")[0]
        words = [*known[stage], *known[name], "--html", "report.html"]
        importlib.import_module(f"plm_{stage}").run(words)
        text = Path("report.html").read_text(encoding="utf-8")
        assert len(text.encode()) < MOST_BYTES
        given = {word[2:].replace("-", "_"): Path(value) for word, value in pairwise(words) if word[:2] == "--"}
        return Path("report.md").read_text(encoding="utf-8"), Seen(text), given

    return called


def with_report() -> set[str]:
    told = {tool.stem for tool in TOOLS if expanded(tool).find("outputs/data[@name='report']") is not None}
    return told - set(WITHOUT_PAGE)


def test_every_stage_with_a_report_is_tried_and_offers_the_page() -> None:
    told = with_report()
    assert {f"plm_{name.partition('/')[0]}" for name in TRIED} == told
    for tool in TOOLS:
        form = expanded(tool)
        script = flags.flags_of(importlib.import_module(tool.stem).Arguments)
        assert ("html" in script) == (tool.stem in told)
        output = form.find("outputs/data[@name='html']")
        assert (output is not None) == (tool.stem in told), tool.stem
        if output is not None:
            wanted = form.find("inputs/param[@name='html_wanted']")
            assert wanted is not None and wanted.get("checked") == "false" and "download" in str(wanted.get("help"))
            assert output.findtext("filter") == "html_wanted" and output.get("format") == "html"
            assert "#if $html_wanted\n    --html '$html'\n#end if" in str(form.findtext("command"))


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (at > 3)) for at, name in
                                  enumerate(TRIED)])
def test_the_page_shows_what_the_report_shows(run: Run, name: str) -> None:
    markdown, seen, written = run(name)
    assert seen.faults == []
    assert seen.verdict == answer(markdown).strip()
    shown = re.findall(r'as_image\(output="(\w+)"', markdown)
    assert [written[output].read_bytes() for output in shown] == seen.images
    assert [re.sub(r"\\(.)", r"\1", line) for line in re.findall(r"^#+ (.*)$", markdown, re.M)] == seen.headings
    assert "[shortened here" in markdown or len(re.findall(r"^\| ?---", markdown, re.M)) + len(
        re.findall(r"as_table\(", markdown)) == len(seen.tables)
    heads = {tuple(head) for (head,), _ in seen.tables}
    assert all(tuple(row) not in heads for _, rows in seen.tables for row in rows), "headers once"
    assert all(len(row) == len(head) for (head,), rows in seen.tables for row in rows)
    for output in re.findall(r'as_table\(output="(\w+)"', markdown):
        header, *rows = (line.split("\t") for line in written[output].read_text(encoding="utf-8").splitlines())
        cut = [[cell if len(cell) <= 120 else f"{cell[:119]}…" for cell in row] for row in rows[: page.MOST_ROWS]]
        assert ([header], cut) in seen.tables
        assert len(rows) <= page.MOST_ROWS or f"of {len(rows):,} rows" in seen.said
    for label in re.findall(r'link\(output="\w+", label="([^"]*)"', markdown):
        assert label in seen.said


HOSTILE = (
    "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "[a](javascript:alert(1))", "</td></table>",
    "&lt;b&gt;", "**bold**", "`code`", "a|b", "<!--", "```galaxy", "\\<b>", "P1 $x$ ~~x~~ #x",
)


@pytest.mark.parametrize("word", HOSTILE)
def test_what_comes_from_the_user_is_text(tmp_path: Path, word: str) -> None:
    (tmp_path / "t").write_text(f"id\t{word}\n{word}\t1\n")
    report = Report(f"Verdict on {plain(word)}").heading(plain(word)).paragraph(f"Of {plain(word)} and {plain(word)}.")
    report.bullets([plain(word)]).rows(["name", plain(word)], [[plain(word), "2"]])
    report.table("table", title=word, footer=word).link("gone", word)
    seen = Seen(page.document(word, page.section(report.whole(), {"table": tmp_path / "t"})))
    assert seen.faults == [] and seen.headings == [word]
    assert seen.verdict == f"Verdict on {word}" and f"Of {word} and {word}." in seen.said
    assert seen.tables == [([["name", word]], [[word, "2"]]), ([["id", word]], [[word, "1"]])]


def test_hostile_names_go_through_a_stage(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    letters = "ACDEFGHIKLMNPQRSTVWY"
    records = [
        f">{word.split()[0]}_{at} LABEL={'<i>yes' if at % 2 else '<i>no'}\nMKV{letters[at % 20] * 20}WWY\n"
        for at, word in enumerate(HOSTILE * 3)
    ]
    records.append(f">{HOSTILE[0]} LABEL=<i>yes\n{'ACGT' * 12}\n")
    (tmp_path / "hostile.fasta").write_text("".join(records))
    monkeypatch.chdir(tmp_path)
    names = ("dataset", "rejected", "leakage", "report", "html", "figure")
    outputs = [part for name in names for part in (f"--{name}", f"{name}.out")]
    importlib.import_module("plm_preprocess").run(
        ["--input", "hostile.fasta", "--task", "sequence", "--labels", "LABEL=", "--split", "random", *outputs]
    )
    seen = Seen(Path("html.out").read_text(encoding="utf-8"))
    assert seen.faults == [] and "<script>alert(1)</script>" in seen.said and "<i>yes" in seen.said


def test_a_long_table_is_cut_and_says_where_the_whole_is(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("id\tsequence\n" + "".join(f"p{at}\t{'A' * 500}\n" for at in range(1234)))
    seen = Seen(page.section(Report("V").table("rows", "Rows", "Note.").whole(), {"rows": tmp_path / "t"}))
    (((head,), rows),) = seen.tables
    assert head == ["id", "sequence"] and len(rows) == page.MOST_ROWS and rows[0] == ["p0", "A" * 119 + "…"]
    assert seen.said.split("…\n")[-1].replace("\n", "") == (
        f"Note. The first {page.MOST_ROWS} of 1,234 rows are shown. Entries of more than 120 characters are cut. "
        "The whole table, 1,234 rows, is the output rows."
    )


def test_the_page_is_not_shortened_as_the_report_in_galaxy_is() -> None:
    report = Report("Verdict").paragraph("word " * 5000).bullets(["last"])
    assert len(report.text()) < 11_000
    assert Seen(page.section(report.whole(), {})).said.count("word") == 5000


def test_what_is_no_file_here_is_told() -> None:
    said = Seen(page.section(Report("V").image("plot").table("rows", "Rows").vega('{"<b>": 1}').whole(), {})).said
    assert "plot: the output plot." in said and "Rows: the output rows." in said and "interactive figure" in said
    told = page.section(Report("V").link("rows", "All").whole(), {}, lambda name: f"the file <{name}>.tsv")
    assert "All: the file &lt;rows&gt;.tsv." in told
