"""Reports as ``tool_markdown``: text plus directives that embed a tool's own PNG and tabular outputs.

Galaxy renders such a report for every user, but only its first 10,240 characters, and one wrong output name
breaks all of it.
"""

from __future__ import annotations

import re
from pathlib import Path

LIMIT = 10_240
LONGEST_WORD, LONGEST_TEXT = 500, 4_000
"""Letters of a name, and of a sentence that quotes names, that a report shows; the tables have them whole."""
LINKS = {
    "bundle": "The model, for prediction",
    "gff": "Called sites for a genome browser, GFF3",
    "sites": "Table of all sites",
    "predictions": "Table of all predictions",
    "residues": "Table of all residues",
    "submission": "Predictions as residue strings",
}
"""What links to outputs are called."""
_CUT = " [shortened here: the tables have it all]"


def image(output_name: str) -> str:
    """Directive that shows a PNG output, named as the ``<data>`` in the tool's XML."""
    return _directive("history_dataset_as_image", output_name)


def table(output_name: str, title: str = "", footer: str = "") -> str:
    """Directive that shows a tabular output with a title above and a footer below.

    Galaxy shows the table's first line, which names the columns, in any case; a line of headers of its own would say
    the same twice, or number the columns.
    """
    extra = {"compact": "true", "show_column_headers": "false"}
    if title:
        extra["title"] = title
    if footer:
        extra["footer"] = footer
    return _directive("history_dataset_as_table", output_name, extra)


def link(output_name: str, label: str) -> str:
    """Directive that offers an output for download under a name."""
    return _directive("history_dataset_link", output_name, {"label": label})


def _directive(name: str, output_name: str, extra: dict[str, str] | None = None) -> str:
    if not re.fullmatch(r"\w+", output_name):
        raise ValueError(f"not an output name: {output_name!r}")
    options = "".join(f', {key}="{_quotable(value)}"' for key, value in (extra or {}).items())
    return f'```galaxy\n{name}(output="{output_name}"{options})\n```'


def _quotable(text: str) -> str:
    # A directive's argument ends at a double quote and its parser counts brackets.
    return " ".join(text.replace('"', "'").replace("(", "- ").replace(")", "").replace("`", "'").split())


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def plain(text: str) -> str:
    """Text of the user's (names, ids) as Markdown that shows it literally, on one line; endless text is cut."""
    line = _cut(" ".join(_cut(word, LONGEST_WORD) for word in str(text).split()), LONGEST_TEXT)
    return re.sub(r"([\\`*_\[\]<>#|~$])", r"\\\1", line)


class Report:
    """A report put together block by block; text beyond Galaxy's limit is shortened, directives never.

    Args:
        first_line: The one sentence a reader must see; it comes before the title.
    """

    def __init__(self, first_line: str = "") -> None:
        self._blocks: list[tuple[bool, str]] = []  # (may be shortened, text)
        if first_line:
            self._blocks.append((False, f"**{_unfenced(first_line)}**"))

    def heading(self, text: str, level: int = 2) -> Report:
        """A heading of level 1 to 4."""
        self._blocks.append((False, f"{'#' * level} {_unfenced(text)}"))
        return self

    def paragraph(self, text: str) -> Report:
        """A paragraph of Markdown, lists included."""
        self._blocks.append((True, _unfenced(text, keep_lines=True)))
        return self

    def bullets(self, lines: list[str]) -> Report:
        """A list, one line an item."""
        if lines:
            self._blocks.append((True, "\n".join(f"- {_unfenced(line)}" for line in lines)))
        return self

    def rows(self, header: list[str], cells: list[list[str]]) -> Report:
        """A small Markdown table; large ones are outputs shown by :meth:`table`."""
        lines = [header, ["---"] * len(header), *cells]
        text = "\n".join("| " + " | ".join(map(_unfenced, line)) + " |" for line in lines)
        self._blocks.append((True, text))
        return self

    def image(self, output_name: str) -> Report:
        """Shows a PNG output of the tool."""
        self._blocks.append((False, image(output_name)))
        return self

    def table(self, output_name: str, title: str = "", footer: str = "") -> Report:
        """Shows a tabular output of the tool; see :func:`table`."""
        self._blocks.append((False, table(output_name, title, footer)))
        return self

    def link(self, output_name: str, label: str = "") -> Report:
        """Offers an output for download; by default under what it is."""
        self._blocks.append((False, link(output_name, label or LINKS.get(output_name, output_name))))
        return self

    def vega(self, spec: str) -> Report:
        """An interactive plot: a Vega-Lite specification (JSON) with its data inside. It is never shortened."""
        self._blocks.append((False, f"```vega\n{_unfenced(spec)}\n```"))
        return self

    def text(self) -> str:
        """The whole report, at most 10,240 bytes; the longest paragraphs are shortened first."""
        blocks = list(self._blocks)
        while True:
            joined = "\n\n".join(text for _, text in blocks) + "\n"
            over = len(joined.encode()) - LIMIT
            if over <= 0:
                return joined
            sizes = [len(text.encode()) if may else 0 for may, text in blocks]
            size = max(sizes, default=0)
            index = sizes.index(size)
            if size <= 2 * len(_CUT):
                raise ValueError(f"the report's directives and headings alone exceed {LIMIT} characters")
            blocks[index] = (True, _shorten(blocks[index][1], max(size - over, size // 2)))

    def whole(self) -> str:
        """The whole report with nothing shortened, for where Galaxy's limit does not hold."""
        return "\n\n".join(text for _, text in self._blocks) + "\n"

    def write(self, path: str | Path) -> None:
        """Writes the report as UTF-8."""
        Path(path).write_text(self.text(), encoding="utf-8")


def _unfenced(text: str, keep_lines: bool = False) -> str:
    # A fence inside text would open or close a directive and break the report.
    text = text.replace("```", "'''")
    return text if keep_lines else " ".join(text.split())


def _shorten(text: str, size: int) -> str:
    kept = text.encode()[: max(size - len(_CUT.encode()) - 2, 0)].decode(errors="ignore")
    # A Markdown table or list is cut at a line's end, prose at a word's.
    if "\n" in kept:
        return kept[: kept.rfind("\n")] + "\n\n" + _CUT.strip()
    return kept[: max(kept.rfind(" "), 0)] + _CUT
