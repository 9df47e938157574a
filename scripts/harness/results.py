"""The results folder: every labelled output of the workflow, one report to open in a browser, and what the screen says.

The tools' reports embed figures and tables by directives that only Galaxy reads; here they become one HTML page, as do
those of single tools (:mod:`plm.telling.page`).
"""

from __future__ import annotations

import csv
import html
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from plm.telling import page

from harness.flagship import GalaxyRun, Invocation
from harness.tutorial import Published

MARK = ".plm-results"
REPORT = "report.html"
SUMMARY_METRICS = ("auroc", "auprc", "mcc", "accuracy", "brier", "spearman", "rmse")


@dataclass(frozen=True)
class Output:
    """One file of the results.

    Args:
        label: The workflow's label for it.
        tool: Id of the tool that made it, without a Tool Shed's prefix.
        name: The output's name in that tool's XML.
        step: Index of its step in the workflow.
        path: The file.
    """

    label: str
    tool: str
    name: str
    step: int
    path: Path


def labelled_outputs(workflow: Mapping[str, Any]) -> dict[str, tuple[int, str, str]]:
    """Label of each workflow output to its step's index, the id of the tool that makes it and its name there."""
    found = {}
    for index, step in workflow["steps"].items():
        tool = str(step.get("tool_id") or "")
        tool = tool.split("/")[-2] if tool.count("/") >= 5 else tool
        for output in step.get("workflow_outputs", []):
            if output.get("label"):
                found[output["label"]] = (int(index), tool, output["output_name"])
    return found


def collect(
    galaxy: GalaxyRun, invocation: Invocation, workflow: Mapping[str, Any], folder: Path, notes: Sequence[str]
) -> list[Output]:
    """Downloads the outputs beside ``folder`` and puts them in its place once all are there.

    Args:
        galaxy: Where they are.
        invocation: The workflow's use, ended.
        workflow: Content of its ``.ga``.
        folder: For the results; an earlier run's are replaced, what else lies there is kept.
        notes: Lines on data and model for the report's head.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        known = labelled_outputs(workflow)
        files = galaxy.download(invocation, partial)
        outputs = [
            Output(label, known[label][1], known[label][2], known[label][0], path) for label, path in files.items()
        ]
        outputs.sort(key=lambda output: (output.step, output.label))
        (partial / REPORT).write_text(render(str(workflow["name"]), notes, outputs), encoding="utf-8")
        made = sorted(path.name for path in partial.iterdir())
        told = ["Results of scripts/run; the next run replaces these files:", *made, ""]
        (partial / MARK).write_text("\n".join(told), encoding="utf-8")
        if folder.exists():
            _keep_what_is_not_ours(folder, partial)
            shutil.rmtree(folder)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return [Output(o.label, o.tool, o.name, o.step, folder / o.path.name) for o in outputs]


def _keep_what_is_not_ours(folder: Path, partial: Path) -> None:
    """Moves what a user put among an earlier run's results to the new ones; a name that is taken gets a ``~``."""
    ours = {MARK, *(folder / MARK).read_text(encoding="utf-8").splitlines()[1:]}
    for path in folder.iterdir():
        if path.name not in ours:
            target = partial / path.name
            while target.exists():
                target = target.with_name(f"{target.name}~")
            path.rename(target)


def render(title: str, notes: Sequence[str], outputs: Sequence[Output]) -> str:
    """The tools' reports as one HTML page with its pictures inside: the sites first, then the evaluation's verdict."""
    reports = [output for output in outputs if output.path.suffix == ".md"]
    order = ("plm_classify_sites", "plm_evaluate")  # what she came for, and how far to believe it
    place = {tool: number for number, tool in enumerate(order)}
    reports.sort(key=lambda output: (place.get(output.tool, len(order)), output.step))
    body = [f'<p class="note">{html.escape(line)}</p>' for line in notes]
    for report in reports:
        files = {output.name: output.path for output in outputs if output.step == report.step}
        text = page.section(report.path.read_text(encoding="utf-8"), files, partial(_place, files))
        body.append(f"<h2>{html.escape(report.label)}</h2>\n{text}")
    listed = [f'<li><a href="{html.escape(o.path.name)}">{html.escape(o.label)}</a></li>' for o in outputs]
    body.append(f"<h2>Files</h2><ul>{''.join(listed)}</ul>")
    return page.document(title, "\n".join(body))


def _place(files: Mapping[str, Path], name: str) -> str:
    return f"the file {files[name].name}" if name in files else f"the output {name} in Galaxy's history"


def _read_table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    with path.open(newline="", encoding="utf-8") as handle:
        reader = csv.DictReader(handle, delimiter="\t", quoting=csv.QUOTE_NONE)
        rows = [{name: value or "" for name, value in row.items() if name} for row in reader]
        return list(reader.fieldnames or []), rows


def summary(outputs: Sequence[Output], sites: int = 10, published: Published | None = None) -> list[str]:
    """What the screen says: each report's first sentence, all that the evaluation says before its first heading, the
    scores, the strongest sites, the files.

    Args:
        outputs: Files of the results.
        sites: How many sites.
        published: Figures of others for the same test rows, beside the scores.
    """
    lines: list[str] = []
    for output in outputs:
        if output.path.suffix == ".md":
            said = _before_headings(output.path.read_text(encoding="utf-8"))
            lines += [f"{output.label}: {sentence}" for sentence in said[:1]]
            if output.tool == "plm_evaluate":
                lines += [f"  - {sentence}" for sentence in said[1:]]
    for output in outputs:
        if (output.tool, output.name) == ("plm_evaluate", "metrics"):
            lines += ["", *_score_lines(output.path, published)]
        if (output.tool, output.name) == ("plm_classify_sites", "sites"):
            lines += ["", *_site_lines(output.path, sites)]
    lines += ["", "Files:"]
    lines += [f"  {output.path.name:44s} {output.label}" for output in outputs]
    lines.append(f"  {REPORT:44s} all reports with their figures, for a browser")
    return lines


def _before_headings(markdown: str) -> list[str]:
    """Paragraphs and points of a report up to the first heading behind them, without Markdown's marks."""
    said: list[str] = []
    for line in markdown.splitlines():
        text = re.sub(r"\\(.)", r"\1", line.strip().removeprefix("- ").strip("*"))
        if text.startswith(("#", "```")):
            if said:
                break
        elif text:
            said.append(text)
    return said


def _score_lines(path: Path, published: Published | None = None) -> list[str]:
    _, rows = _read_table(path)
    rows = [row for row in rows if row.get("stratum") == "all" and row.get("class") == "all"]
    split = next((name for name in ("test", "valid") if any(row.get("split") == name for row in rows)), None)
    rows = [row for row in rows if split is None or row.get("split") == split]
    shown = [metric for metric in SUMMARY_METRICS if any(row.get("metric") == metric for row in rows)]
    table = {
        model: [
            next((_interval(row) for row in rows if row["model"] == model and row["metric"] == metric), "")
            for metric in shown
        ]
        for model in dict.fromkeys(row["model"] for row in rows)
    }
    if published is not None:
        told = {metric: f"{value:.3f}" for metric, value in published.scores.items()}
        table[published.name] = [told.get(metric, "") for metric in shown]
    width = max(map(len, table), default=0)
    lines = [f"Scores on the {split or 'given'} rows (95 % intervals over groups):"]
    for name, cells in {"": [metric.upper() for metric in shown], **table}.items():
        lines.append((f"  {name:{width}s}  " + "  ".join(f"{cell:22s}" for cell in cells)).rstrip())
    return lines


def _interval(row: Mapping[str, str]) -> str:
    try:
        return f"{float(row['value']):.3f} ({float(row['low']):.2f} to {float(row['high']):.2f})"
    except (KeyError, ValueError):
        return row.get("value", "")


def _site_lines(path: Path, most: int) -> list[str]:
    header, rows = _read_table(path)
    score = next((name for name in reversed(header) if name.startswith("p_")), "value")
    if score not in header or not rows:
        return ["No candidate site."]
    rows.sort(key=lambda row: -float(row[score] or "nan"))
    lines = [f"Strongest of {len(rows)} candidate sites:"]
    width = max(len(row["protein"]) for row in rows[:most])
    for row in rows[:most]:
        place = f"{row.get('residue', '')}{row['position']}"
        lines.append(f"  {row['protein']:{width}s}  {place:8s} {float(row[score]):.3f}  call {row.get('call', '')}")
    return lines
