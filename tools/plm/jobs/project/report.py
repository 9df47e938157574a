"""What a projection found, as tables and as a report whose first lines say whether the labels separate."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plm.data.identifiers import accession
from plm.jobs.project.figure import SCALE, Look, looks, number_range
from plm.jobs.project.findings import ProjectionFindings
from plm.jobs.project.projection import METHOD_NAMES
from plm.scoring.separation import FULL, SeparationScore
from plm.telling.figures import shortened
from plm.telling.report import Report, plain
from plm.wording import number

SCORE_COLUMNS = ("space", "set", "measure", "part", "value", "low", "high", "expected", "p_value", "rows", "note")
ROOM = 9_900
"""Bytes of a report; Galaxy renders 10,240 and the rest stays for what it adds."""
_FEWEST_POINTS = 20
_VEGA_SHAPES = {"o": "circle", "^": "triangle-up", "s": "square"}


def coordinates_table(findings: ProjectionFindings) -> Iterator[str]:
    """Lines of the table of coordinates: every id of both files, in their order."""
    sides = [(findings.references, "reference")] + ([(findings.queries, "query")] if findings.queries else [])
    sited = any(side.positions is not None for side, _ in sides)
    columns = ["id", *(["position"] if sited else []), "set", "label"]
    columns += [f"{one.method}_{axis}" for one in findings.projected.projections for axis in (1, 2)]
    columns += ["nearest_reference", "distance", "outside"] if findings.outlook else []
    yield "\t".join(columns)
    row = 0
    for side, name in sides:
        points = [one.queries if name == "query" else one.references for one in findings.projected.projections]
        for index, identifier in enumerate(side.ids):
            cells = [identifier]
            if sited:
                cells.append("" if side.positions is None else str(side.positions[index]))
            cells += [name, findings.labels.texts[row]]
            cells += [f"{value:.6g}" for one in points for value in one[index]]
            if findings.outlook:
                cells += _outlook_cells(findings, index) if name == "query" else ["", "", ""]
            yield "\t".join(" ".join(cell.split()) for cell in cells)
            row += 1


def _outlook_cells(findings: ProjectionFindings, index: int) -> list[str]:
    assert findings.outlook is not None
    places, far, outside = findings.outlook
    return [findings.references.ids[places[index]], f"{far[index]:.6g}", "yes" if outside[index] else "no"]


def scores_table(findings: ProjectionFindings) -> Iterator[str]:
    """Lines of the table of scores."""
    yield "\t".join(SCORE_COLUMNS)
    for one in [*findings.scores, *_variance(findings), *_outside(findings)]:
        cells = [one.space, one.set, one.measure, one.part]
        cells += ["" if value != value else f"{value:.4f}" for value in (one.value, one.low, one.high, one.expected)]
        cells += ["" if one.p_value != one.p_value else f"{one.p_value:.4g}", str(one.rows), one.note]
        yield "\t".join(" ".join(cell.split()) for cell in cells)


def _variance(findings: ProjectionFindings) -> list[SeparationScore]:
    explained, rows = findings.projected.explained, len(findings.references)
    scores = []
    if any(one.method == "pca" for one in findings.projected.projections):
        for axis in range(min(2, len(explained))):
            scores.append(
                SeparationScore(
                    "pca", "reference", "explained_variance", f"PC{axis + 1}", float(explained[axis]), rows=rows
                )
            )
    if any(one.method != "pca" for one in findings.projected.projections):
        part = f"PC1 to PC{len(explained)}"
        note = "what t-SNE and UMAP see"
        scores.append(
            SeparationScore(FULL, "reference", "explained_variance", part, float(explained.sum()), rows=rows, note=note)
        )
    return scores


def _outside(findings: ProjectionFindings) -> list[SeparationScore]:
    if findings.outlook is None or not len(findings.outlook[2]):
        return []
    outside = findings.outlook[2]
    if len(set(findings.references.groups)) < 2:
        return []
    note = "farther from every reference than 95 % of references from their nearest"
    share = float(outside.mean())
    return [SeparationScore(FULL, "query", "outside", "all", share, expected=0.05, rows=len(outside), note=note)]


def first_lines(findings: ProjectionFindings) -> list[str]:
    """The sentences that a reader must see first: verdict, queries, what not to read into the picture."""
    lines = [_verdict(findings)]
    if not findings.why_not:
        lines.append(_judged_by(findings))
    if findings.queries is not None:
        lines.append(_query_line(findings))
    methods = [METHOD_NAMES[one.method] for one in findings.projected.projections if one.method != "pca"]
    if methods:
        lines.append(
            f"Distances between far clusters, sizes of clusters and empty space mean nothing in "
            f"{' and '.join(methods)}; who is close to whom is what they try to keep."
        )
    return lines


def _judged_by(findings: ProjectionFindings) -> str:
    if findings.grouped:
        return (
            f"Judged by groups ({findings.grouped}): members of a group do not count as neighbours and are drawn and "
            "shuffled as a whole."
        )
    return (
        "No groups of relatives are known, so proteins count as independent: many close relatives under one label make "
        "it look better separated than it is."
    )


def _verdict(findings: ProjectionFindings) -> str:
    if findings.why_not:
        return f"Whether labels separate cannot be judged: {findings.why_not}."
    agreement, correlation = findings.score(FULL, "neighbour_agreement"), findings.score(FULL, "neighbour_correlation")
    score = agreement or correlation
    if score is None or score.value != score.value:
        return "Whether labels separate cannot be judged: the score is undefined."
    beyond = score.p_value < 0.05 and score.value > score.expected
    chance = f"p = {score.p_value:.2g}" if score.p_value >= 0.001 else "p < 0.001"
    one = "protein" if findings.references.positions is None else "site"
    count = int(score.note.split()[0])
    if score is agreement:
        what = (
            f"{_percent(score.value)} of a {one}'s {count} nearest neighbours carry its label"
            if count > 1
            else f"the nearest neighbour carries a {one}'s label in {_percent(score.value)} of cases"
        )
        what += f"{_range(score, _percent)}, {_percent(score.expected)} under random labels ({chance})"
        if beyond:
            return f"The labels separate beyond chance in the full embedding space: {what}."
        return f"No sign that the labels separate in the full embedding space: {what}."
    others = f"the mean of its {count} nearest neighbours" if count > 1 else "that of its nearest neighbour"
    what = (
        f"the correlation (Spearman) of a {one}'s number with {others} is "
        f"{_two(score.value)}{_range(score, _two)}, {_two(score.expected)} under random labels ({chance})"
    )
    if beyond:
        return f"The labels vary with the place in the full embedding space beyond chance: {what}."
    return f"No sign that the labels vary with the place in the full embedding space: {what}."


def _query_line(findings: ProjectionFindings) -> str:
    assert findings.queries is not None and findings.outlook is not None
    total, outside = len(findings.queries), int(findings.outlook[2].sum())
    if len(set(findings.references.groups)) < 2:
        line = "Whether queries lie outside of what the references span cannot be told: the references are one group."
    else:
        lie = "query lies" if total == 1 else "queries lies" if outside == 1 else "queries lie"
        line = (
            f"{outside:,} of {total:,} {lie} outside of what the references span (farther from every reference than "
            "95 % of the references from their nearest)"
        )
        drawn = [METHOD_NAMES[one.method] for one in findings.projected.projections if one.method != "pca"]
        if outside and drawn:
            among = f"{' and '.join(drawn)} {'draw' if len(drawn) > 1 else 'draws'}"
            line += f"; {among} such among the references all the same."
        else:
            line += "."
    score = findings.score(FULL, "neighbour_agreement", "query")
    if score is not None:
        line += (
            f" {_percent(score.value)} of the labelled queries' nearest references carry their label"
            f"{_range(score, _percent)}, {_percent(score.expected)} under random labels."
        )
    score = findings.score(FULL, "neighbour_correlation", "query")
    if score is not None and score.value == score.value:
        line += (
            f" The numbers of the labelled queries correlate with the mean of their nearest references by "
            f"{_two(score.value)}{_range(score, _two)}."
        )
    return line


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.1f} %"


def _range(score: SeparationScore, write: Any) -> str:
    if score.low != score.low:
        return ""
    return f" (95 % interval {write(score.low)} to {write(score.high)})"


def projection_report(findings: ProjectionFindings, outputs: Sequence[str]) -> Report:
    """The report; its interactive plot shows as many points as fit into what Galaxy renders.

    Args:
        findings: Projections with their scores.
        outputs: Names of the outputs there are: ``figure``, ``scores``, ``coordinates``.
    """
    spare = ROOM - len(_report(findings, outputs, "").text().encode())
    plot = interactive(findings, spare - 300)
    return _report(findings, outputs, plot)


def _report(findings: ProjectionFindings, outputs: Sequence[str], plot: str) -> Report:
    first, *others = first_lines(findings)
    report = Report(plain(first.rstrip(".")))
    for line in others:
        report.paragraph(plain(line))
    report.heading("Pictures")
    if "figure" in outputs:
        report.image("figure")
    report.heading("Scores")
    _compare(report, findings)
    if "scores" in outputs:
        footer = "Expected is what random labels give; part is a class or a component"
        report.table("scores", title="All scores", footer=footer)
    if plot:
        report.heading("Look closer")
        report.paragraph(_shown(findings, plot))
        report.vega(plot)
    report.heading("What was done")
    report.bullets([*_done(findings), *map(plain, findings.notes[:8])])
    return report


def _compare(report: Report, findings: ProjectionFindings) -> None:
    """One line a space, so that a picture can be held against the space that it shows."""
    numbers = findings.labels.kind == "number"
    measure = "neighbour_correlation" if numbers else "neighbour_agreement"
    header = ["Space", "Neighbour correlation" if numbers else "Neighbour agreement"]
    header += ([] if numbers else ["Silhouette"]) + ["Trustworthiness"]
    rows = []
    for space in [FULL, *(one.method for one in findings.projected.projections)]:
        name = "Full space" if space == FULL else METHOD_NAMES[space]
        trust = findings.score(space, "trustworthiness")
        cells = [name]
        for key in [measure] if numbers else [measure, "silhouette"]:
            score = findings.score(space, key)
            write = _percent if key == "neighbour_agreement" else _two
            cells.append("" if score is None else f"{_with_range(score, write)}, chance {write(score.expected)}")
        cells.append("" if trust is None else number(trust.value, 2))
        rows.append(cells)
    if findings.why_not:
        header, rows = ["Space", "Trustworthiness"], [[row[0], row[-1]] for row in rows]
    report.rows(header, rows)
    full, tight = findings.score(FULL, "silhouette"), []
    for one in findings.projected.projections:
        shown = findings.score(one.method, "silhouette")
        if one.method != "pca" and full and shown and shown.value > full.high:
            tight.append(f"{METHOD_NAMES[one.method]} ({_two(shown.value)})")
    if full and tight:
        report.paragraph(
            f"Classes look more compact in {' and '.join(tight)} than they are in the embedding space "
            f"({_two(full.value)}). Quote the scores of the full embedding, not of a picture."
        )


def _two(value: float) -> str:
    return number(0.0 if abs(value) < 0.005 else value, 2)  # never -0.00


def _with_range(score: SeparationScore, write: Any) -> str:
    if score.low != score.low:
        return str(write(score.value))
    return f"{write(score.value)} ({write(score.low)} to {write(score.high)})"


def _done(findings: ProjectionFindings) -> list[str]:
    """What was computed and from what, in a few lines."""
    settings, one = findings.settings, findings.references.description
    model = f"model {plain(one.model)}" if one.model else "model unknown"
    if one.layers:
        model += f", layer {', '.join(map(str, one.layers))}"
    if one.pooling:
        model += f", pooling {one.pooling}"
    labelled = int(findings.labels.known[: len(findings.references)].sum())
    total = len(findings.references)
    lines = [f"{total:,} reference{'' if total == 1 else 's'} of {plain(findings.references.name)} ({model})."]
    if findings.queries is not None:
        asked, name = len(findings.queries), plain(findings.queries.name)
        lines.append(
            f"{asked:,} {'query' if asked == 1 else 'queries'} of {name}, placed by transform; nothing was fitted "
            "to them."
        )
    if findings.source:
        have = "reference has" if labelled == 1 else "references have"
        lines.append(f"{labelled:,} {have} a label ({plain(findings.source)}).")
    scaled = "each dimension scaled to standard deviation 1" if settings.standardise else "dimensions as they are"
    lines.append(f"{settings.metric.capitalize()} distance, {scaled}.")
    methods = [projection.method for projection in findings.projected.projections]
    told = []
    if "tsne" in methods:
        told.append(f"t-SNE: perplexity {min(settings.perplexity, (len(findings.references) - 1) / 3):.3g}")
    if "umap" in methods:
        count = min(settings.neighbours, len(findings.references) - 1)
        told.append(f"UMAP: {count} neighbours, minimal distance {settings.min_dist:g}")
    if told:
        share = findings.projected.explained.sum()
        told.append(f"both started from and saw {len(findings.projected.explained)} principal components")
        if len(told) == 2:
            told[-1] = told[-1].replace("both ", "")
        lines.append(f"{'; '.join(told)} ({_percent(share)} of the variance); seed {settings.seed}.")
    return lines


def _shown(findings: ProjectionFindings, plot: str) -> str:
    count = json.loads(plot)["data"]["values"].count("\n")
    total = len(_stratified(findings))
    method = METHOD_NAMES[findings.projected.projections[-1].method]
    how = "from the classes in proportion" if findings.labels.kind == "class" else "at random"
    what = (
        "proteins with a label" if findings.labels.kind == "number" and not findings.labels.known.all() else "proteins"
    )
    some = f"{count:,} of {total:,} {what}, drawn {how}"
    if count == total:
        some = f"all {total:,} {what}"
    single = ", click on a class in the legend to single it out" if findings.labels.kind == "class" else ""
    return f"{method} of {some}. Point at one for its name, drag and zoom{single}."


def interactive(findings: ProjectionFindings, room: int) -> str:
    """A Vega-Lite plot of the last projection with its data inside; empty if too few points fit ``room`` bytes.

    Points are drawn from classes and from queries in proportion.
    """
    rows = _stratified(findings)
    low, high = 0, len(rows)
    while low < high:  # the largest number of points that fits
        middle = (low + high + 1) // 2
        if len(_plot(findings, rows[:middle]).encode()) <= room:
            low = middle
        else:
            high = middle - 1
    if low < min(_FEWEST_POINTS, len(rows)):
        return ""
    return _plot(findings, rows[:low])


def _stratified(findings: ProjectionFindings) -> NDArray[np.int64]:
    """All rows in an order of which every beginning holds the classes in proportion.

    If labels are numbers, rows without are left out: a scale of colours has no place for them.
    """
    count = len(findings.references)
    stratum = findings.labels.codes + 1
    stratum[count:] += len(findings.labels.classes) + 1
    generator = np.random.default_rng(findings.settings.seed)
    chance = generator.permutation(len(stratum))
    place = np.empty(len(stratum))
    for index in np.unique(stratum):
        rows = np.flatnonzero(stratum == index)
        rows = rows[np.argsort(chance[rows])]
        place[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    rows = np.lexsort((chance, place)).astype(np.int64)
    return rows[findings.labels.known[rows]] if findings.labels.kind == "number" else rows


def _plot(findings: ProjectionFindings, rows: NDArray[np.int64]) -> str:
    projection = findings.projected.projections[-1]
    points = np.concatenate([projection.references, projection.queries])
    digits = max(0, 2 - math.floor(math.log10(max(float(np.ptp(projection.references, axis=0).max()), 1e-6))))
    count, drawn = len(findings.references), looks(findings.labels)
    place = {code: index for index, look in enumerate(drawn) for code in look.codes}
    numbers = findings.labels.kind == "number"
    ids = [*findings.references.ids, *(findings.queries.ids if findings.queries else [])]
    lines = ["x,y,l,q,n"]
    for row in rows:
        x, y = (f"{value:.{digits}f}" for value in points[row])
        label = f"{findings.labels.numbers[row]:.4g}" if numbers else str(place[int(findings.labels.codes[row])])
        name = accession(ids[row])[:40].replace('"', "'").replace(",", ";").replace("\n", " ")
        lines.append(f"{x},{y},{label},{'1' if row >= count else ''},{name}")
    return json.dumps(_spec("\n".join(lines), findings, drawn), separators=(",", ":"))


def _spec(values: str, findings: ProjectionFindings, drawn: list[Look]) -> dict[str, Any]:
    name = METHOD_NAMES[findings.projected.projections[-1].method]
    numbers = findings.labels.kind == "number"
    axis = {"type": "quantitative", "scale": {"zero": False}}
    if name != "PCA":
        axis["axis"] = {"labels": False, "ticks": False, "grid": False}
    short: list[str] = []
    for look in drawn:
        text = shortened(look.name, 26)
        short.append(text if text not in short else f"{text} ({len(short) + 1})")
    colour: dict[str, Any]
    params: list[dict[str, Any]] = [{"name": "zoom", "select": "interval", "bind": "scales"}]
    encoding: dict[str, Any] = {
        "x": {"field": "x", "title": f"{name} 1", **axis},
        "y": {"field": "y", "title": f"{name} 2", **axis},
        "tooltip": [{"field": "n", "title": "id"}, {"field": "l" if numbers else "label", "title": "label"}],
    }
    spec: dict[str, Any] = {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "width": 560,
        "height": 420,
        "data": {"values": values, "format": {"type": "csv"}},
    }
    if numbers:
        low, high = number_range(findings.labels)
        domain = [float(f"{low:.4g}"), float(f"{high:.4g}")]
        colour = {"field": "l", "type": "quantitative", "scale": {"scheme": SCALE, "domain": domain, "clamp": True}}
        encoding["fillOpacity"] = {"condition": {"test": "datum.q", "value": 0}, "value": 0.7}
    else:
        colours = [look.colour for look in drawn]
        spec["transform"] = [
            {"calculate": f"{json.dumps(texts)}[datum.l]", "as": target}
            for target, texts in (("label", short), ("fill", colours))
        ]
        params.append({"name": "pick", "select": {"type": "point", "fields": ["label"]}, "bind": "legend"})
        colour = {"field": "label", "type": "nominal", "scale": {"domain": short, "range": colours}}
        # Colours as they stand: a second scale would write all names again.
        fill = {"test": "!datum.q", "field": "fill", "type": "nominal", "scale": None}
        encoding["fill"] = {"condition": fill, "value": "white"}
        shapes = [_VEGA_SHAPES[look.marker] for look in drawn]
        if len(set(shapes)) > 1:
            scale = {"domain": short, "range": shapes}
            encoding["shape"] = {"field": "label", "type": "nominal", "scale": scale, "title": "label"}
        encoding["opacity"] = {"condition": {"param": "pick", "value": 1}, "value": 0.08}
    # Below the plot: Galaxy widens it to the page, which leaves no room beside it.
    legend: dict[str, Any] = {"orient": "bottom", "labelLimit": 220, "symbolStrokeWidth": 3}
    encoding["stroke"] = {**colour, "title": "label", "legend": legend | ({} if numbers else {"columns": 3})}
    if numbers:  # the same legend twice becomes one; without it on one of them there would be none
        encoding["fill"] = encoding["stroke"]
    return spec | {"params": params, "mark": {"type": "point", "strokeWidth": 1.2}, "encoding": encoding}
