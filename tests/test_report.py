"""Reports stay within what Galaxy renders, and user text can never break a directive."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from plm import wording
from plm.telling import report


def test_directives() -> None:
    assert report.image("plot") == '```galaxy\nhistory_dataset_as_image(output="plot")\n```'
    made = report.table("metrics", title='My "best" (first)', footer="All")
    assert made.splitlines()[1] == (
        'history_dataset_as_table(output="metrics", compact="true", show_column_headers="false", '
        'title="My \'best\' - first", footer="All")'
    )
    assert report.link("gff", "Sites, GFF3") == (
        '```galaxy\nhistory_dataset_link(output="gff", label="Sites, GFF3")\n```'
    )
    assert 'label="The model, for prediction"' in report.Report().link("bundle").text()
    assert [wording.counted(count, "row") for count in (0, 1, 2000)] == ["0 rows", "1 row", "2,000 rows"]
    with pytest.raises(ValueError, match="output name"):
        report.image("no such name")


def test_first_line_comes_first(tmp_path: Path) -> None:
    path = tmp_path / "report.md"
    report.Report("The model beats the baseline").heading("Scores").paragraph("x").image("roc").write(path)
    assert path.read_text().splitlines()[0] == "**The model beats the baseline**"


@pytest.mark.parametrize("size", [200, 9_000, 50_000])
def test_limit_keeps_every_directive_whole(size: int) -> None:
    made = report.Report("First").paragraph("wörd " * (size // 6))
    made.rows(["a", "b"], [[str(i), "x" * 20] for i in range(size // 20)])
    for name in ("roc", "pr", "confusion"):
        made.image(name)
    made.table("metrics", title="t")
    text = made.text()
    assert len(text.encode()) <= report.LIMIT
    assert len(re.findall(r"^```galaxy\n.*\n```$", text, flags=re.M)) == 4
    assert text.startswith("**First**")
    assert ("shortened" in text) == (size > 3_000)


def test_text_with_a_fence_stays_text() -> None:
    text = report.Report("```galaxy").paragraph('a\n```galaxy\nname_of(output="x")\n```\n').text()
    assert "```" not in text
    assert report.plain("a|b_c*d\ne") == r"a\|b\_c\*d e"


def test_directives_alone_beyond_the_limit_are_a_bug() -> None:
    made = report.Report()
    for index in range(300):
        made.image(f"picture_{index}")
    with pytest.raises(ValueError, match="exceed"):
        made.text()
