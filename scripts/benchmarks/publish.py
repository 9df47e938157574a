"""Where results go: one JSON file a script, figures, and a section of ``benchmarks.md`` that each script keeps."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

PAGE = "benchmarks.md"
_WRITERS = "`scripts/benchmarks/bench_embed`, `scripts/benchmarks/bench_train` and, on a GPU, `scripts/benchmarks/gpu`"
HEAD = f"# Benchmarks\n\nWritten by {_WRITERS}; do not edit.\n"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [" | ".join(head), "|".join(["---"] * len(head)), *(" | ".join(map(str, row)) for row in rows)]
    return "\n".join(f"|{line}|" if line.startswith("---") else f"| {line} |" for line in lines)


def publish(name: str, results: Mapping[str, Any], text: str, folder: Path) -> None:
    """Writes ``<name>.json`` and puts ``text`` in place of the script's section of the page.

    Args:
        name: The script.
        results: What it measured.
        text: Markdown.
        folder: Created if absent.
    """
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    (folder / "figures" / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    page = folder / PAGE
    before = page.read_text() if page.is_file() else HEAD
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    section = f"{begin}\n{text.strip()}\n{end}"
    if begin in before:
        page.write_text(re.sub(re.escape(begin) + r".*?" + re.escape(end), lambda _: section, before, flags=re.DOTALL))
    else:
        page.write_text(f"{before.rstrip()}\n\n{section}\n")


def joined(name: str, results: dict[str, Any], folder: Path, keys: Mapping[str, str]) -> dict[str, Any]:
    """New results and the older ones of the same machine that they do not replace.

    Args:
        name: The script.
        results: What it measured now.
        folder: As for :func:`publish`.
        keys: Lists in the results, and what tells their entries apart.
    """
    path = folder / "figures" / f"{name}.json"
    older: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"machine": None}
    if older["machine"] != results["machine"]:
        return results
    found = dict(results)
    for kind, key in keys.items():
        new = {entry[key]: entry for entry in results[kind]}
        kept = [new.pop(entry[key], entry) for entry in older[kind]]
        found[kind] = [*kept, *new.values()]
    return found


def describe(machine: Mapping[str, str]) -> str:
    """What was measured on, in one sentence."""
    return (
        f"{machine['device']}; {machine['threads']} threads; torch {machine['torch']}, "
        f"transformers {machine['transformers']}."
    )


def bars(panels: Sequence[tuple[str, Sequence[tuple[str, float, str]]]], label: str, path: Path) -> None:
    """One panel of horizontal bars beside another.

    Args:
        panels: Title and bars: name, value, and kind (``peer``, ``ours`` or ``limit``).
        label: Of the values.
        path: The PNG.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    colours = {"peer": "#9aa5b1", "ours": "#1f6f8b", "limit": "#e6e9ed"}
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    tallest = max(len(rows) for _, rows in panels)
    figure, axes = pyplot.subplots(
        lines, columns, figsize=(5.6 * columns, (0.26 * tallest + 0.9) * lines), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (title, rows) in zip(axes.flat, panels, strict=False):
        values = [value for _, value, _ in rows]
        drawn = axis.barh(range(len(rows)), values, color=[colours[kind] for *_, kind in rows])
        axis.bar_label(drawn, fmt="%.1f", padding=2, fontsize=7)
        axis.set_yticks(range(len(rows)), [name for name, *_ in rows], fontsize=7)
        axis.invert_yaxis()
        axis.set_xlim(0, 1.12 * max(values))
        axis.set_title(title, fontsize=9, loc="left")
        axis.set_xlabel(label, fontsize=7)
        axis.tick_params(axis="x", labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)
