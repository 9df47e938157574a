"""Ids and labels made to harm go through every stage: what is shown of them is text, and tables keep their shape."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from plm.errors import UserError
from test_page import Seen

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "test-data"
MODEL = ["--model", str(DATA / "models" / "tiny_esm2"), "--device", "cpu"]
LETTERS = "ACDEFGHIKLMNPQRSTVWY"

SHOWN = (
    "<script>alert(1)</script>", '"><img/src=x/onerror=alert(1)>', "</td></table>", "&lt;b&gt;", "<!--",
    "history_dataset_display(history_dataset_id=1)", "```galaxy", "${galaxy", "[a](javascript:alert(1))", "**a**", "#a",
    "=HYPERLINK(\"http://x\",\"y\")", "+1+cmd|x", "-2+3", "@SUM(A1)", "$(touch${IFS}pwned)", "`id`;reboot&", "a|b||c",
    "$x_{$", "$\\frac{a}$", "a'b\"c", "%s%d{0}{x}", "\\n\\t", "../../../x", "\u202eabc", "\u05d0\u05d1\u05d2",
    "a\u0301\u0301\u0301", "\U0001f9ec", "null", "NaN", "True", "1e5",
)
"""Without blanks, so that they are whole ids in FASTA."""
REFUSED = {"escape": "a\x1b[31mb", "bell": "a\x07b", "zero": "a\x00b", "delete": "a\x7fb", "separator": "a\u2028b"}
"""Control characters: a stage says so in one line, or shows them in another way."""
LONG = "A" * 10_000


def proteins(names: tuple[str, ...], repeats: int = 1) -> str:
    drawn = np.random.default_rng(1)
    return "".join(
        f">{name}{'' if at < len(names) else f'.{at}'} {names[at % len(names)]}\n"
        f"{''.join(drawn.choice(list(LETTERS), 24))}YK\n"
        for at, name in enumerate(names * repeats)
    )


def rows(names: tuple[str, ...], *columns: str, label: Callable[[int], str] = lambda at: "ab"[at % 2]) -> str:
    """A dataset table; three of five rows train."""
    drawn, splits = np.random.default_rng(2), ("train", "train", "train", "valid", "test")
    lines = ["\t".join(("id", "sequence", "label", "split", *columns))]
    for at, name in enumerate(names):
        sequence = "".join(drawn.choice(list(LETTERS), 20))
        lines.append("\t".join((name, sequence, label(at), splits[at // 2 % 5], *("x" for _ in columns))))
    return "\n".join(lines) + "\n"


def embedded(names: tuple[str, ...], label: Callable[[int], str]) -> str:
    drawn = np.random.default_rng(3)
    lines = ["\t".join(("id", "label", *(f"e{at}" for at in range(8))))]
    lines += [
        "\t".join((name, label(at), *(f"{value:.4f}" for value in drawn.normal(size=8) + at % 2)))
        for at, name in enumerate(names)
    ]
    return "\n".join(lines) + "\n"


def judged(names: tuple[str, ...], classes: tuple[str, str]) -> str:
    drawn = np.random.default_rng(4)
    lines = ["\t".join(("id", "label", "split", "model", *(f"p_{one}" for one in classes)))]
    for at, name in enumerate(names):
        share = float(drawn.uniform(0.2, 0.8))
        lines.append("\t".join((name, classes[at % 2], "test", "<b>m</b>$x_{$", f"{share:.6f}", f"{1 - share:.6f}")))
    return "\n".join(lines) + "\n"


CLASSES = ("<i>no$\\frac{", "=yes|[a](b)")


def label(at: int) -> str:
    return CLASSES[at % 2]


def stages(names: tuple[str, ...]) -> dict[str, tuple[dict[str, str], list[str]]]:
    """Stage to the files that it is given, by name, and its command line."""
    # Numbers of rows that training needs; each id is its own.
    many = tuple(f"{name}{at or ''}" for at in range(-(-60 // len(names))) for name in names)
    fasta = {"in": proteins(names)}
    return {
        "plm_split_fasta": (fasta, ["--input", "in", "--parts", "2", "--output-dir", "parts", "--table", "t.tabular"]),
        "plm_preprocess": (
            {"in": proteins(names, 2)},
            ["--input", "in", "--labels", "field:1", "--split", "none", "--dataset", "d.tabular", "--rejected",
             "x.tabular", "--leakage", "l.tabular", "--report", "r.md", "--html", "r.html"],
        ),
        "plm_embed": (
            fasta, ["--input", "in", *MODEL, "--format", "tabular", "--embeddings", "e.tabular", "--status",
                    "s.tabular", "--pseudo-perplexity", "p.tabular"],
        ),
        "plm_merge_embeddings": (
            {"in": embedded(names, lambda at: "").replace("\tlabel\t", "\t", 1).replace("\t\t", "\t")},
            ["--input", "in", "--format", "tabular", "--output", "m.tabular"],
        ),
        "plm_finetune": (
            {"in": rows(many, label=label)},
            ["--dataset", "in", *MODEL, "--method", "head", "--epochs", "1", "--predictor", "model", "--bundle",
             "b.zip", "--predictions", "p.tabular", "--curves", "c.png", "--report", "r.md", "--html", "r.html"],
        ),
        "plm_classify_sites": (
            fasta,
            ["--input", "in", "--bundle", str(DATA / "bundle_tiny_site.zip"), *MODEL, "--sites", "s.tabular", "--gff",
             "g.gff3", "--gff-sites", "all", "--figure", "f.png", "--status", "t.tabular", "--report", "r.md", "--html",
             "r.html"],
        ),
        "plm_predict": (
            fasta,
            ["--input", "in", "--bundle", str(DATA / "bundle_tiny_classes.zip"), *MODEL, "--predictions", "p.tabular",
             "--status", "s.tabular", "--figure", "f.png", "--report", "r.md", "--html", "r.html"],
        ),
        "plm_train_classifier": (
            {"in": embedded(many, label)},
            ["--embeddings", "in", "--head", "logistic", "--resamples", "100", "--predictor", "model", "--bundle",
             "b.zip", "--predictions", "p.tabular", "--status", "s.tabular", "--confusion", "c.png", "--report", "r.md",
             "--html", "r.html"],
        ),
        "plm_variants": (
            {**fasta, "variants": "protein\tvariant\n" + "".join(f"{name}\tY25A\n" for name in names)},
            ["--input", "in", "--variants", "variants", *MODEL, "--resamples", "100", "--scores", "s.tabular",
             "--ranked", "k.tabular", "--track", "g.gff3", "--figure", "f.png", "--report", "r.md", "--html", "r.html"],
        ),
        "plm_evaluate": (
            {"in": judged(many, CLASSES)},
            ["--predictions", "in", "--resamples", "100", "--metrics", "m.tabular", "--roc", "f.png", "--confusion",
             "c.png", "--report", "r.md", "--html", "r.html"],
        ),
        "plm_project": (
            {"in": embedded(many, label)},
            ["--embeddings", "in", "--methods", "pca", "--resamples", "100", "--coordinates", "c.tabular", "--figure",
             "f.png", "--report", "r.md", "--html", "r.html"],
        ),
        "plm_compare_embeddings": (
            {"in": embedded(many, label)},
            ["--embeddings", "in", "--proteins", "p.tabular", "--figure", "f.png", "--report", "r.md", "--html",
             "r.html"],
        ),
        "plm_compare_models": (
            fasta,
            ["--input", "in", "--model", f"{names[0].replace('=', '')}={MODEL[1]}", "--model", f"b={MODEL[1]}",
             "--device", "cpu", "--turns", "0", "--resamples", "100", "--scores", "s.tabular", "--proteins",
             "p.tabular", "--figure", "f.png", "--report", "r.md", "--html", "r.html"],
        ),
        "plm_contacts": (
            fasta,
            ["--input", "in", "--head", str(DATA / "contact_head_tiny_esm2.zip"), *MODEL, "--contacts", "c.tabular",
             "--status", "s.tabular", "--figure", "f.png", "--report", "r.md", "--html", "r.html"],
        ),
        "plm_distill": (
            fasta,
            ["--input", "in", "--teacher", MODEL[1], "--device", "cpu", "--cache-only", "--mask-sets", "1",
             "--weight-hidden", "0", "--output-cache", "c.zip", "--rejected", "x.tabular"],
        ),
        "plm_pretrain": (
            {"in": proteins(names, 2)},
            ["--input", "in", *MODEL, "--steps", "1", "--holdout", "0.2", "--batch-tokens", "256", "--title", names[0],
             "--output-model", "m.zip", "--history", "h.tabular", "--report", "r.md", "--html", "r.html"],
        ),
        "plm_convert": ({}, ["--input", MODEL[1], "--to", "encoder", "--output", "m.zip", "--report", "r.md"]),
        "plm_install_model": (
            {}, ["--directory", MODEL[1], "--id", "lab/tiny", "--title", names[0], "--models", "models", "--output",
                 "o.json"],
        ),
        "plm_compress_classifier": (
            {"in": embedded(names, label)},
            ["--bundle", str(DATA / "bundle_simulated_network.zip"), "--embeddings", "in", "--compressed-bundle", "b"],
        ),
    }


def run(stage: str, names: tuple[str, ...], place: Path) -> None:
    files, line = stages(names)[stage]
    for name, content in files.items():
        (place / name).write_text(content, encoding="utf-8", newline="\n")
    importlib.import_module(stage).run(line)


def check_outputs(place: Path) -> None:
    """Tables keep their shape and hold no control character; reports hold elements and directives of the suite."""
    for path in place.glob("*.tabular"):
        lines = path.read_text(encoding="utf-8").split("\n")
        assert lines[-1] == "" and len({line.count("\t") for line in lines[:-1]}) == 1, path.name
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u2028\u2029]", "".join(lines)), path.name
    for path in place.glob("*.html"):
        assert Seen(path.read_text(encoding="utf-8")).faults == []
    for path in place.glob("*.md"):
        text = path.read_text(encoding="utf-8")
        outside = re.sub(r"```(?:galaxy|vega)\n.*?\n```", "", text, flags=re.S)
        assert not re.search(r"(?<!\\)<(?:script|img|i>|b>)", outside), "no element of HTML"
        assert not re.search(r"(?<!\\)\]\(javascript:", outside), "no link"
        assert not re.search(r"(?<!\\)```", outside), "no block of others"
        for block in re.findall(r"```galaxy\n(.*?)\n```", text, re.S):
            assert re.fullmatch(r"history_dataset_\w+\(output=\"\w+\".*\)", block, re.S), block
    for path in place.glob("*.gff3"):
        for line in path.read_text(encoding="utf-8").splitlines():
            fields = line.split("\t")
            assert line.startswith("##") or (len(fields) == 9 and not re.search(r"[\s<>]", fields[0])), line


SLOW = ("plm_pretrain", "plm_contacts", "plm_train_classifier", "plm_finetune", "plm_variants")


@pytest.mark.parametrize(
    "stage", [pytest.param(one, marks=[pytest.mark.slow] * (one in SLOW)) for one in stages(SHOWN)]
)
def test_names_are_shown_as_text_or_refused(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        run(stage, SHOWN, tmp_path)
    except UserError as error:
        assert stage in ("plm_compress_classifier", "plm_compare_models"), str(error)
        assert error.fix and "\n" not in str(error)
    check_outputs(tmp_path)
    assert not (tmp_path / "pwned").exists()
    told = capsys.readouterr()
    assert "\x1b" not in told.out + told.err and "Traceback" not in told.err


@pytest.mark.parametrize("kind", [*REFUSED, pytest.param("long", marks=pytest.mark.slow)])
def test_control_characters_and_endless_names(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every stage that takes ids shows them as text, or refuses them with a line."""
    names = tuple(f"{REFUSED.get(kind, LONG)}{at}" for at in range(12))
    for stage in (
        "plm_split_fasta", "plm_preprocess", "plm_embed", "plm_merge_embeddings", "plm_finetune", "plm_project",
        "plm_evaluate", "plm_predict", "plm_classify_sites", "plm_contacts", "plm_variants",
    ):
        place = tmp_path / stage
        place.mkdir()
        monkeypatch.chdir(place)
        try:
            run(stage, names, place)
        except UserError as error:
            assert error.fix and len(str(error)) < 1600 and str(error).isprintable(), stage
            assert not [path for path in place.iterdir() if path.suffix], stage
        check_outputs(place)
    told = capsys.readouterr()
    assert "\x1b" not in told.err and "\x07" not in told.out
