"""Takes the answer out of a stage's report: its first sentence, as a table of one line.

A workflow's report cannot show a tool's report inside itself, but it can show a table: so it answers its own questions.
The forms run this file after their stage: ``python -P answer.py REPORT ANSWER``.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path


def answer(markdown: str) -> str:
    """The first sentence of a report, without the marks of bold type and without escapes.

    Args:
        markdown: A report as the stages write it: a sentence in bold first, then headings, tables and directives.
    """
    lines = (line.strip() for line in markdown.splitlines())
    sentence = next((line for line in lines if line and not line.startswith(("#", "|", "```"))), "")
    sentence = re.sub(r"(?<!\\)\*\*", "", sentence)
    return re.sub(r"\\(.)", r"\1", sentence).replace("\t", " ").strip() + "\n"


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    target.write_text(answer(source.read_text(encoding="utf-8")), encoding="utf-8")
