"""A report as one HTML file that stands alone: its figures and tables inside, no scripts, nothing from elsewhere.

Galaxy shows HTML as plain text unless an administrator allows it, so this is for saving, mailing and printing; within
Galaxy the same report is Markdown (:mod:`plm.telling.report`). Text of the user's is shown as text, whatever it holds.
"""

from __future__ import annotations

import base64
import html
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from plm import __version__, flags
from plm.outputs import Outputs
from plm.telling.report import Report
from plm.wording import counted

MOST_ROWS = 100
"""Rows of a table that are shown."""
MOST_CHARACTERS = 120
"""Characters of a table's cell that are shown."""
_STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
h1{font-size:1.6rem}h2{font-size:1.3rem;border-top:1px solid #999;padding-top:1rem}h3{font-size:1.1rem}
img{max-width:100%;height:auto}figure{margin:1rem 0}code{background:#f2f2f2;padding:0 .2rem}
table{border-collapse:collapse;font-size:14px}caption{text-align:left;font-weight:600;padding:.3rem 0}
td,th{border:1px solid #bbb;padding:.2rem .5rem;text-align:left;vertical-align:top;overflow-wrap:anywhere}
th{background:#f2f2f2;overflow-wrap:normal}
.wide{overflow-x:auto;margin:1rem 0}.note{color:#555;font-size:14px}.verdict{font-size:1.15rem}
@media print{body{max-width:none;margin:0;font-size:11pt}.wide{overflow:visible}table{font-size:8pt}
figure,tr{break-inside:avoid}h2,h3,caption{break-after:avoid}thead{display:table-header-group}}"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_DIRECTIVE = re.compile(r'(?P<name>\w+)\(output="(?P<output>\w+)"(?P<options>.*)\)')
_OPTION = re.compile(r', (\w+)="([^"]*)"')
_MARKS = {"**": "strong", "*": "em"}


def publish(report: Report, args: flags.Reporting, outputs: Outputs, name: str) -> None:
    """Writes a stage's report as ``--report`` and ``--html`` ask for it.

    The HTML is made when all other outputs are complete, since it shows them.

    Args:
        report: What to tell.
        args: Flags of the stage; each output is named by its flag, as in the forms.
        outputs: Where the files of the stage are.
        name: The stage's id.
    """
    if args.report is not None:
        report.write(outputs.path(args.report))
    if args.html is None:
        return
    target = outputs.path(args.html)

    def write() -> None:
        body = section(report.whole(), written(args, outputs))
        target.write_text(document(f"Report of {name}", body), encoding="utf-8")

    outputs.at_end(write)


def written(args: flags.Flags, outputs: Outputs) -> dict[str, Path]:
    """Name of each output that a stage has written to where it lies now."""
    names = flags.flags_of(type(args))
    given = {name: getattr(args, name) for name, flag in names.items() if flag.kind in flags.WRITTEN}
    places = {name: outputs.place(path) for name, path in given.items() if isinstance(path, Path)}
    return {name: path for name, path in places.items() if path is not None}


def document(title: str, body: str) -> str:
    """A whole HTML document.

    Args:
        title: Plain text.
        body: HTML of :func:`section`.
    """
    told = html.escape(title)
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f'<meta name="viewport" content="width=device-width"><title>{told}</title><style>{_STYLE}</style>'
    )
    foot = f'<p class="note">PLM suite for Galaxy {__version__}</p>'
    told_all = f"<body><h1>{told}</h1>\n{body}\n{foot}</body>"
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n{told_all}</html>\n'


def section(markdown: str, files: Mapping[str, Path], elsewhere: Callable[[str], str] | None = None) -> str:
    """A report as HTML.

    Args:
        markdown: The report as :class:`plm.telling.report.Report` writes it.
        files: Name of each output that is at hand to its file: PNG, or a table with tabs and one line of headers.
        elsewhere: Says in plain text where the file of an output is; by default "the output NAME".

    Returns:
        Elements for the body of a document; its headings begin with level 2.
    """
    place = elsewhere or (lambda name: f"the output {name}")
    parts: list[str] = []
    heading = ""
    for kind, lines in _blocks(markdown):
        if kind == "heading":
            level, heading = lines[0].split(" ", 1)
            parts.append(f"<h{len(level) + 1}>{_inline(heading)}</h{len(level) + 1}>")
        elif kind == "galaxy":
            parts.append(_shown(lines[0], files, place, heading))
        elif kind == "vega":
            parts.append('<p class="note">The report in Galaxy has an interactive figure here.</p>')
        elif kind == "table":
            header, *rows = (_cells(line) for line in lines if not re.fullmatch(r"[|\s:-]+", line))
            parts.append(_table(list(map(_inline, header)), [list(map(_inline, row)) for row in rows]))
        elif kind == "list":
            parts.append(f"<ul>{''.join(f'<li>{_inline(line)}</li>' for line in lines)}</ul>")
        else:
            mark = "" if parts else ' class="verdict"'
            parts.append(f"<p{mark}>{_inline(' '.join(lines))}</p>")
    return "\n".join(parts)


def _blocks(markdown: str) -> Iterator[tuple[str, list[str]]]:
    """Kind and lines of each block: heading, galaxy, vega, table, list or paragraph."""
    lines = iter(markdown.split("\n"))
    kind, gathered = "", list[str]()
    for line in itertools.chain(lines, [""]):
        now = "list" if line.startswith("- ") else "table" if line.startswith("|") else "paragraph"
        fence = re.fullmatch(r"```(\w+)", line)
        alone = fence is not None or re.match(r"#{1,4} ", line) is not None
        other = now != kind and (now != "paragraph" or kind == "table")
        if gathered and (alone or other or not line.strip()):
            yield kind, gathered
            gathered = []
        if fence is not None:
            yield fence[1], list(itertools.takewhile(lambda one: one != "```", lines))
        elif alone:
            yield "heading", [line]
        elif not line.strip():
            continue
        elif kind == "list" and gathered and now == "paragraph":
            gathered[-1] += " " + line.strip()
        else:
            kind = kind if gathered else now
            gathered.append(line[2:] if now == "list" else line)


def _inline(text: str) -> str:
    """Bold, emphasis, code, links and escapes of one line; a link is shown with its address, as text."""
    text = re.sub(r"(?<!\\)\[([^\[\]]*)\]\((\S+?)\)", r"\1 (\2)", text)
    made: list[str] = []
    opened: list[tuple[str, int]] = []
    at = 0
    while at < len(text):
        mark = "**" if text.startswith("**", at) else text[at]
        if mark == "\\" and text[at + 1 : at + 2] in tuple(r"\`*_[]<>#|~$"):
            made.append(html.escape(text[at + 1]))
            at += 2
        elif mark == "`" and "`" in text[at + 1 :]:
            end = text.index("`", at + 1)
            made.append(f"<code>{html.escape(text[at + 1 : end])}</code>")
            at = end + 1
        elif mark in _MARKS:
            before, after = text[at - 1 : at], text[at + len(mark) : at + len(mark) + 1]
            if opened and opened[-1][0] == mark and before.strip():
                made[opened.pop()[1]] = f"<{_MARKS[mark]}>"
                made.append(f"</{_MARKS[mark]}>")
            else:
                if after.strip():
                    opened.append((mark, len(made)))
                made.append(mark)
            at += len(mark)
        else:
            made.append(html.escape(mark))
            at += 1
    return "".join(made)


def _cells(line: str) -> list[str]:
    """The cells of a line of a Markdown table."""
    inner = line.strip().removeprefix("|")
    cells = re.split(r"(?<!\\)\|", inner)
    return [cell.strip() for cell in (cells[:-1] if not cells[-1].strip() else cells)]


def _shown(directive: str, files: Mapping[str, Path], place: Callable[[str], str], heading: str) -> str:
    """What stands for one of Galaxy's directives."""
    match = _DIRECTIVE.fullmatch(directive)
    if match is None:
        raise ValueError(f"not a directive: {directive!r}")
    name, options = match["output"], dict(_OPTION.findall(match["options"]))
    path = files.get(name)
    where = html.escape(place(name))
    if match["name"] == "history_dataset_as_image" and path is not None:
        data = base64.b64encode(path.read_bytes()).decode()
        told = re.sub(r"[\\*`]", "", heading) or name.replace("_", " ")
        return f'<figure><img alt="{html.escape(told)}" src="data:image/png;base64,{data}"></figure>'
    if match["name"] == "history_dataset_as_table" and path is not None:
        return _file_table(path, options.get("title", ""), options.get("footer", ""), where)
    label = html.escape(options.get("label") or options.get("title") or name.replace("_", " "))
    return f'<p class="note">{label}: {where}.</p>'


def _file_table(path: Path, title: str, footer: str, where: str) -> str:
    rows: list[list[str]] = []
    total, cut = 0, False
    with path.open(encoding="utf-8", newline="\n") as handle:
        header = next(handle, "").rstrip("\n").split("\t")
        for line in handle:
            total += 1
            if total <= MOST_ROWS:
                cells = line.rstrip("\n").split("\t")
                cut |= any(len(cell) > MOST_CHARACTERS for cell in cells)
                rows.append([_shortened(cell) for cell in cells])
    notes = [html.escape(footer)] if footer else []
    if total > MOST_ROWS:
        notes.append(f"The first {MOST_ROWS} of {total:,} rows are shown.")
    if cut:
        notes.append(f"Entries of more than {MOST_CHARACTERS} characters are cut.")
    whole = f"The whole table, {counted(total, 'row')}, is {where}."
    notes.append(whole if total > MOST_ROWS or cut else f"The table as a file is {where}.")
    caption = f"<caption>{html.escape(title)}</caption>" if title else ""
    return _table(list(map(html.escape, header)), rows, caption) + f'\n<p class="note">{" ".join(notes)}</p>'


def _shortened(cell: str) -> str:
    return html.escape(cell if len(cell) <= MOST_CHARACTERS else cell[: MOST_CHARACTERS - 1] + "…")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> str:
    heads = "".join(f'<th scope="col">{cell}</th>' for cell in header)
    body = "\n".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    table = f"<table>{caption}<thead><tr>{heads}</tr></thead>\n<tbody>{body}</tbody></table>"
    return f'<div class="wide">{table}</div>'
