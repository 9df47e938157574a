"""Every figure of the suite under hostile names and odd data: all text inside the picture, no formulas, one colour."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations, islice, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import plm_compare_embeddings
import plm_project
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text
from plm.data.examples import Example, Journal
from plm.data.leakage import Leak
from plm.data.task import Task
from plm.jobs.classifier.report import ClassifierFindings as HeadFindings
from plm.jobs.classifier.report import heads_figure, search_figure
from plm.jobs.classify_sites.explanations import NO_CALL
from plm.jobs.classify_sites.figure import NUMBER, Track, sites_figure
from plm.jobs.classify_sites.logo import LogoCounts, logo_figure
from plm.jobs.compare_models.figures import Boxes, Dots, box_figure, dot_figure
from plm.jobs.contacts.bands import PlacedResidues
from plm.jobs.contacts.contact_figure import ContactMap, contact_figure, title_of
from plm.jobs.distill.distillation import Objective, RangeTest
from plm.jobs.distill.report import curves, range_figure
from plm.jobs.predict.report import PredictionCounts, predictions_figure
from plm.jobs.predict.verdicts import Verdicts, make_rules
from plm.jobs.preprocess.report import SplitAccount
from plm.jobs.variants.figure import SCALE
from plm.scoring.assessment import Assessment, assess
from plm.scoring.conformal import Errors
from plm.scoring.metrics import Scored
from plm.scoring.novelty import Novelty, summary
from plm.scoring.predictions import Evaluation, Model
from plm.telling import figures
from plm.telling.evaluation_figures import CLASS_FIGURES, NUMBER_FIGURES, draw
from plm.telling.figures import METHODS, Curve, shortened, tick_labels
from plm.telling.mutagenesis_figure import DENSE_PLACES, MOST_PLACES, MapWords, mutagenesis_figure
from test_mutagenesis import some_map

SHARES = ("share", "probability", "accuracy", "precision", "auroc", "recall", "rate (")
HOSTILE = [
    "$a_$", "\\frac{", "$x^{", "<b>bold", "_hidden", "two\nlines", "$\\notacommand$", "%s {} {0}", "W" * 80,
    "a protein family whose name goes on and on and on, as annotators like them to do, up to here",
]
NAMES = [HOSTILE[number % 10] + f" {number}" * (number > 9) for number in range(30)]

Drawn = Callable[[Path], None]


def chances(rows: int, classes: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(classes), rows)


def evaluated(names: list[str], kind: str, classes: int, rows: int, models: int) -> Assessment:
    generator = np.random.default_rng(1)
    labels = tuple(names[:classes])
    made = []
    aside = list(METHODS)[4:7]
    for number, name in enumerate([*names[:models], *aside]):
        if kind == "number":
            truth, scores = np.arange(rows) * 1e6, np.arange(rows) * 1e6 + generator.normal(size=rows)
            scored = Scored(kind, truth, scores, np.zeros(rows, dtype=np.int64))
        else:
            truth, scores = np.arange(rows) % classes, chances(rows, classes, number)
            scored = Scored(kind, truth, scores, scores.argmax(axis=1), labels)
        made.append(Model(name, scored, baseline=name in aside))
    frame = pd.DataFrame({"id": [str(row) for row in range(rows)], "label": "", "group": [str(r) for r in range(rows)]})
    evaluation = Evaluation(frame, kind, labels if kind != "number" else (), tuple(made), "test", "protein")
    metric = {"binary": "auroc", "multiclass": "macro_f1", "number": "spearman"}[kind]
    return assess(evaluation, metric, best_baseline=aside[0], resamples=50)


def evaluation_figures(names: list[str]) -> Iterator[tuple[str, Drawn]]:
    for kind, classes, rows, models in (
        ("binary", 2, 40, 12), ("multiclass", 3, 30, 2), ("multiclass", 30, 60, 1),
    ):
        found = evaluated(names, kind, classes, rows, models)
        for figure in ("overview", *CLASS_FIGURES):
            yield f"{figure} {classes} classes {models} models", lambda path, f=figure, a=found: draw(f, a, path)
    for rows in (1, 40):
        found = evaluated(names, "number", 0, rows, 3)
        for figure in ("overview", *NUMBER_FIGURES):
            yield f"{figure} {rows} rows", lambda path, f=figure, a=found: draw(f, a, path)


def heads(names: list[str], models: int) -> HeadFindings:
    found = evaluated(names, "binary", 2, 60, models)
    settings = dict.fromkeys(names, "")
    return HeadFindings(
        found, names[0], names[0], names[1], False, dict.fromkeys(names[:models], 0.7), settings, {}, {},
        {"training": 1, "valid": 1, "test": 1}, "", "", 0.5, 1.0,
    )


def search(names: list[str], finished: bool) -> tuple[list[dict[str, Any]], list[dict[str, float]]]:
    trials = [
        {"fold": "", "trial": number, "auroc": 0.5 + number / 50, "best_so_far": 0.5 + number / 50}
        for number in range(20 if finished else 1)
    ]
    return trials, [dict.fromkeys(names[:10], 0.1) if finished else {}]


def split(names: list[str], classes: int, folds: int, identity: float) -> SplitAccount:
    parts = [str(fold + 1) for fold in range(folds)] if folds else ["train", "valid", "test"]
    examples = [
        Example(f"{part}{n}", "MK", names[n % classes], group=f"{part}{n}", split=part)
        for part in parts
        for n in range(40)
    ]
    leaks = [
        Leak(one.id, one.split, "x", identity, False, False, False, None, False)
        for one in examples
        if one.split != "train"
    ]
    settings: Any = SimpleNamespace(
        task="sequence", split="group", identity=None, coverage=0.8, seeks_sites=False, figure=Path("f"), seed=1
    )
    return SplitAccount(120, examples, Journal(), leaks, 33, "exact", settings)


def predicted(names: list[str], classes: int, rows: int) -> PredictionCounts:
    kind = "number" if not classes else "class"
    task = Task("sequence", kind, tuple(names[:classes]), names[0] if classes == 2 else "")
    generator = np.random.default_rng(2)
    matrix = generator.normal(size=(30, 4)).astype(np.float32)
    ids = [f"t{number}" for number in range(30)]
    told = summary(matrix, [(np.arange(20), generator.normal(size=(20, 4)).astype(np.float32))])
    novelty = Novelty.of((ids, ["x"] * 30, matrix), told, 0.05)
    values = chances(rows, classes) if classes else generator.normal(size=(rows, 1)) * 1e6
    truth = np.arange(rows) % max(classes, 1)
    errors = Errors.of(values, truth, number=not classes)
    rules = make_rules(
        task, lambda given: [task.classes[index] for index in given.argmax(axis=1)], errors=errors, coverage=0.9,
        by_class=False, novelty=novelty, abstain="never",
    )
    found = PredictionCounts(rules, rows)
    best = rules.call(values) if classes else [""] * rows
    far = np.linspace(0, 9, rows)
    nobody = np.zeros(rows, bool)
    verdicts = Verdicts(best, values.max(axis=1), None, None, far, far > 5, None, nobody)
    queries: Any = SimpleNamespace(columns={})
    found.add(queries, np.arange(rows), verdicts)
    return found


def tracks(names: list[str], count: int, sites: int) -> list[Track]:
    places = np.arange(sites) * 3 + 1
    heights = np.linspace(0.1, 1, sites)
    return [
        Track(name, int(places[-1]) + 2, places, heights, heights > 0.5, "S" * sites, heights > 0.8)
        for name in names[:count]
    ]


def history(methods: list[str], steps: int, scale: float) -> pd.DataFrame:
    epoch = np.arange(1, steps + 1)
    return pd.concat([
        pd.DataFrame({
            "step": epoch * 20, "epoch": epoch, "train_loss": scale * np.exp(-epoch / 5), "valid_loss": scale,
            "valid_mcc": 0.5, "valid_a_metric_with_a_name_that_is_far_too_long_for_a_title": scale,
            "method": name, "best": (epoch == steps).astype(int),
        })
        for name in methods
    ])


def distilled(steps: int) -> Any:
    rows = [
        {"step": n + 1, "tokens": n, "train_loss": 1e6, "kl": 1e-7, "hidden": 1.0, "mlm": 2.0, "kernel": 3.0,
         "logit_mse": 1.0, "learning_rate": 0.1, **({"valid_loss": 1.0, "masked_perplexity": 3.0} if not n % 3 else {})}
        for n in range(steps)
    ]
    return SimpleNamespace(history=rows)


def boxed(names: list[str], models: int, domains: int, path: Path) -> None:
    values = [np.linspace(1, 2000, 40) for _ in range(models)]
    panels = [
        Boxes("Perplexity of masked residues", "Perplexity of a protein", values, True, 20.0, "unigram, all proteins"),
        Boxes("Found", "Accuracy", [each / 2000 for each in values], share=True),
    ]
    box_figure(panels, names[:models], [names[number % domains] for number in range(40)], path)


def dotted(names: list[str], models: int, probes: int, path: Path) -> None:
    rows = [(name, 0.99, 0.9, 1.0, number > models - 2) for number, name in enumerate(names[:models])]
    dot_figure([Dots(name, "AUROC", rows, 1.0) for name in names[:probes]], path)


def all_figures(names: list[str]) -> Iterator[tuple[str, Drawn]]:
    yield from evaluation_figures(names)
    for models in (2, 12):
        yield f"heads {models}", lambda path, m=models: heads_figure(heads(names, m), path)
    for finished in (True, False):
        trials, importance = search(names, finished)
        yield (
            f"search {finished}", lambda path, t=trials, i=importance: search_figure(t, i, "auroc", path)
        )
    for classes, folds, identity in ((2, 0, 0.3), (30, 0, 0.0), (12, 10, 1.0), (1, 0, 0.5)):
        account = split(names, classes, folds, identity)
        yield f"split {classes} classes {folds} folds", account.draw
    for classes, rows in ((2, 1), (30, 90), (0, 1), (0, 50)):
        found = predicted(names, classes, rows)
        yield f"predictions {classes} classes {rows} rows", lambda path, f=found: predictions_figure(f, path)
    for count, sites in ((0, 1), (1, 1), (1, 200), (4, 200)):
        made = tracks(names, count, sites) if count else []
        for name, threshold in (("Probability", 0.5), (NUMBER, None)):
            yield (
                f"sites {count} tracks {sites} sites {name}",
                lambda path, m=made, n=name, t=threshold: sites_figure(
                    m, path, proteins=99, height_name=n, threshold=t
                ),
            )
    for places, count, judged in ((33, 1, "1"), (33, 20, names[9]), (1, 1, ""), (100, 3, names[0])):
        site = places // 2 if judged == names[9] else None
        maps = [some_map(places, site=site, judged=judged, name=name) for name in (names * 2)[:count]]
        yield (
            f"mutagenesis of {count} times {places}",
            lambda path, m=maps, n=not judged: mutagenesis_figure(m, path, numbers=n),
        )
    words = MapWords(SCALE, lambda one: shortened(one.subject.id, 60), "a variant of the table")
    for places, most, labels in ((41, MOST_PLACES, names), (1, MOST_PLACES, ["P12345 A23"]), (400, DENSE_PLACES, [])):
        called = [f"{labels[n % len(labels)][:22]} A{n}" for n in range(places)] if labels else []
        yield (
            f"scores of {places} places, {len(called)} named",
            lambda path, p=places, m=most, c=called: mutagenesis_figure(
                [some_map(p, judged="", name=names[0])], path, words=replace(words, columns=c), most_places=m
            ),
        )
    yield "no mutagenesis", lambda path: mutagenesis_figure([], path, none=NO_CALL)
    for side, classes in ((16, ()), (30, ()), (1, tuple(names[:8])), (16, tuple(names[:2]))):
        for size in (1, 400):
            yield (
                f"logo {side} {len(classes)} classes {size}",
                lambda path, s=side, c=classes, n=size: logo_figure(logo_counts(c, s, n), path),
            )
    for methods, steps, scale in ((1, 1, 1e-9), (3, 5, 1.0), (12, 400, 1e12)):
        told = history(names[:methods], steps, scale)
        yield f"history {methods} methods {steps} steps", lambda path, t=told: figures.history_figure(t, path)
    for steps in (1, 300):
        yield (
            f"distillation {steps} steps",
            lambda path, s=steps: curves(distilled(s), Objective(1, 1, 1, 1, 1), path),
        )
    rates = np.geomspace(1e-7, 10, 50)
    for suggestion in (1e-4, math.nan):
        test = RangeTest(rates, rates + 1, rates + 1, suggestion, 1e-3, True)
        yield f"range {suggestion}", lambda path, t=test: range_figure(t, path)
    for models, domains in ((0, 1), (1, 1), (4, 6), (12, 3)):
        yield (
            f"boxes {models} models {domains} domains",
            lambda path, m=models, d=domains: boxed(names, m, d, path),
        )
    for models, probes in ((1, 1), (12, 5)):
        yield f"dots {models} models {probes} probes", lambda path, m=models, p=probes: dotted(names, m, p, path)
    for count, length, structured in ((0, 50, False), (1, 7, False), (3, 40, True), (4, 1300, True)):
        maps = [contacts(name, length, structured) for name in names[:count]]
        yield f"contacts of {count} proteins of {length}", lambda path, m=maps: contact_figure(m, path)
    crossing = [Curve(name, np.arange(2), np.arange(2)) for name in names]
    yield "curves that cross", lambda path: figures.roc_figure(crossing, path)


def logo_counts(classes: tuple[str, ...], side: int, size: int) -> LogoCounts:
    """Counts of random surroundings; without classes, of 0 and 1."""
    task = Task("site", "class", classes or ("0", "1"))
    counts, generator = LogoCounts(task, side), np.random.default_rng(1)
    counts.sites += size
    counts.residues += generator.multinomial(size, np.full(20, 0.05), counts.residues.shape[:2])
    return counts


def contacts(name: str, length: int, structured: bool) -> ContactMap:
    """A map of random probabilities, with gaps; beside places on a helix if asked for."""
    band = np.random.default_rng(4).random((length, min(length, 200)), np.float32)
    band[length // 3] = np.nan
    turn = np.arange(length) * 1.7
    places = np.column_stack([np.cos(turn) * 2.3, np.sin(turn) * 2.3, turn * 0.1])
    known = PlacedResidues(places) if structured else None
    return ContactMap(title_of(name, 0.5 if structured else math.nan), band, known)


def embeddings(path: Path, names: list[str], rows: int, classes: int, shift: float = 0.0) -> Path:
    values = np.random.default_rng(3).normal(size=(rows, 8)) + shift
    header = ["id", "label", *(f"e{number}" for number in range(8))]
    lines = ["\t".join(header)]
    for number, row in enumerate(values):
        label = " ".join(names[number % classes].split())
        lines.append("\t".join([f"P{number} {names[number % 10].strip()[:3]}", label, *(f"{v:.4f}" for v in row)]))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure as it was written."""
    kept: list[Figure] = []
    write = Figure.savefig

    def savefig(self: Figure, *given: Any, **options: Any) -> None:
        write(self, *given, **options)
        kept.append(self)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return kept


def shown_texts(figure: Figure) -> Iterator[tuple[Text, Any]]:
    """Each visible text with its extent; tick labels beyond an axis' ends are not drawn."""
    drawn = set()
    for panel in figure.axes:
        if panel.get_visible():
            drawn |= {id(label) for axis in (panel.xaxis, panel.yaxis) for label in tick_labels(axis) if panel.axison}
            drawn |= {id(panel.xaxis.label), id(panel.yaxis.label)} if panel.axison else set()
            drawn |= {id(text) for text in (panel.title, panel._left_title, panel._right_title, *panel.texts)}
    for legend in figure.findobj(Legend):
        if legend.axes is None or legend.axes.get_visible():
            drawn |= {id(text) for text in (*legend.get_texts(), legend.get_title())}
    drawn |= {id(text) for text in (figure._suptitle, figure._supxlabel, figure._supylabel, *figure.texts)}
    for text in figure.findobj(Text):
        if id(text) in drawn and text.get_visible() and text.get_text().strip():
            yield text, text.get_window_extent()


def nameless_axes(figure: Figure) -> list[str]:
    """Axes with numbers that neither they, nor a panel in their row or column, nor the figure say the meaning of."""
    faults = []
    panels = [panel for panel in figure.axes if panel.get_visible() and panel.axison]
    for panel in panels:
        for axis, beside in ((panel.xaxis, figure._supxlabel), (panel.yaxis, figure._supylabel)):
            numbers = [label.get_text() for label in tick_labels(axis)]
            if not numbers or not all(re.fullmatch(r"[\d.,eE+\u2212-]+ ?%?", text) for text in numbers):
                continue
            place = panel.get_position()
            named = [
                other for other in panels
                if (abs(other.get_position().x0 - place.x0) < 0.02 if axis.axis_name == "x" else
                    abs(other.get_position().y0 - place.y0) < 0.02)
                and (other.xaxis if axis.axis_name == "x" else other.yaxis).get_label_text().strip()
            ]
            if not named and (beside is None or not beside.get_text().strip()):
                title = panel.get_title() or panel.get_title(loc="left")
                faults.append(f"{axis.axis_name} of {title!r}: {numbers[:4]}")
    return faults


REPORT_WIDTH = 860
"""Pixels that a report in Galaxy has for a picture, with tools and history beside it in a window of 1,300."""


def too_small(figure: Figure) -> list[str]:
    """Text of less than 6 pixels where a report in Galaxy shows the picture, which shrinks wider ones."""
    shrunk = min(1.0, REPORT_WIDTH / figure.bbox.width)
    shown = [(text.get_fontsize() * figure.dpi / 72 * shrunk, text.get_text()) for text, _ in shown_texts(figure)]
    return [f"{pixels:.1f} pixels: {told[:30]}" for pixels, told in shown if pixels < 6]


def judge(figure: Figure) -> None:
    canvas = figure.bbox
    for text in figure.findobj(Text):
        assert not text.get_text() or not (text.get_parse_math() or text.get_usetex()), text.get_text()
    assert not (small := too_small(figure)), small
    for text, box in shown_texts(figure):
        told = text.get_text()[:60]
        inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= canvas.width + 1 and box.y1 <= canvas.height + 1
        assert inside, f"{told!r} leaves the picture: {box} of {canvas.width} x {canvas.height}"
    for panel in figure.axes:
        if not panel.get_visible() or not panel.axison:
            continue
        for axis in (panel.xaxis, panel.yaxis):
            across = axis.axis_name == "x"
            boxes = [label.get_window_extent() for label in tick_labels(axis)]
            ends = sorted((box.x0, box.x1) if across else (box.y0, box.y1) for box in boxes)
            assert all(one[1] <= other[0] + 1 for one, other in pairwise(ends)), [
                t.get_text() for t in tick_labels(axis)
            ]
            label = axis.get_label_text().lower()
            if any(word in label for word in SHARES):
                assert axis.get_view_interval()[1] <= 1.021, label
    assert not (nameless := nameless_axes(figure)), f"numbers of what: {nameless}"
    apart = [text for text in (figure._suptitle, figure._supxlabel, figure._supylabel) if text is not None]
    for panel in figure.axes:
        if panel.get_visible() and panel.axison:
            apart += [panel.title, panel._left_title, panel._right_title, panel.xaxis.label, panel.yaxis.label]
    apart = [text for text in apart if text.get_text().strip()]
    for one, other in combinations(apart, 2):
        first, second = one.get_window_extent(), other.get_window_extent()
        assert not first.padded(-1).overlaps(second), (one.get_text(), other.get_text())


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_text_stays_inside_and_apart(part: int, tmp_path: Path, seen: list[Figure]) -> None:
    faults = []
    for name, drawer in islice(all_figures(NAMES), part, None, 4):
        drawer(tmp_path / "f.png")
        try:
            judge(seen.pop())
        except AssertionError as error:
            faults.append(f"{name}: {error.args[0]}")
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("methods", ["pca", "pca,umap", "pca,tsne,umap"])
@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 30])
def test_maps_fit(methods: str, classes: int, tmp_path: Path, seen: list[Figure]) -> None:
    file = embeddings(tmp_path / "e.tabular", NAMES, 60, classes)
    plm_project.run(["--embeddings", str(file), "--methods", methods, "--resamples", "100", "--coordinates",
                     str(tmp_path / "c"), "--figure", str(tmp_path / "f.png")])
    judge(seen.pop())


def test_drift_fits(tmp_path: Path, seen: list[Figure]) -> None:
    new = embeddings(tmp_path / "new.tabular", NAMES, 40, 3, 1.0)
    old = embeddings(tmp_path / "old.tabular", NAMES, 40, 3)
    for more in ([], ["--reference", str(old)], ["--reference", str(new)]):
        plm_compare_embeddings.run(["--embeddings", str(new), *more, "--permutations", "99", "--proteins",
                                    str(tmp_path / "p"), "--figure", str(tmp_path / "f.png")])
        judge(seen.pop())


def test_a_method_has_one_colour_in_all_figures_of_a_run(tmp_path: Path, seen: list[Figure]) -> None:
    found = evaluated(["mine", "yours"], "binary", 2, 40, 2)
    colours: dict[str, set[str]] = {}
    for figure in ("roc", "pr", "calibration"):
        draw(figure, found, tmp_path / "f.png")
        for line in seen.pop().axes[0].lines:
            name = str(line.get_label()).split(" (")[0]
            if not name.startswith(("_", "chance", "perfect")):
                colours.setdefault(name, set()).add(to_hex(line.get_color()))
    assert {"mine", "yours"} < set(colours)
    assert {len(each) for each in colours.values()} == {1}
    assert len(set.union(*colours.values())) == len(colours), "and another one than others"
    for name in colours:
        if name in METHODS:
            assert colours[name] == {to_hex(METHODS[name])}


def test_equal_histograms_are_both_seen(tmp_path: Path, seen: list[Figure]) -> None:
    split(["a", "b"], 2, 0, 0.4).draw(tmp_path / "f.png")
    bars = [bar for bar in seen.pop().axes[1].patches if bar.get_height() > 0]
    assert len(bars) == 2 and bars[0].get_x() + bars[0].get_width() <= bars[1].get_x() + 1e-9


def test_the_kept_epoch_is_marked(tmp_path: Path, seen: list[Figure]) -> None:
    figures.history_figure(history(["lora"], 5, 1.0), tmp_path / "f.png")
    figure = seen.pop()
    stars = [line for line in figure.axes[0].lines if line.get_marker() == "*"]
    assert [list(star.get_xdata()) for star in stars] == [[5]]
    assert figure._suptitle is not None and figure._suptitle.get_text() == "Star: the epoch that was kept"
    figures.history_figure(history(["lora"], 5, 1.0).drop(columns="best"), tmp_path / "f.png")
    assert seen.pop()._suptitle is None


def test_called_sites_without_a_name_are_counted(tmp_path: Path, seen: list[Figure]) -> None:
    for sites, told in ((200, "111 of 200 called (6 of these named)"), (4, "2 of 4 called")):
        sites_figure(tracks(["P1"], 1, sites), tmp_path / "f.png", proteins=1, height_name="Probability", threshold=0.5)
        panel = seen.pop().axes[0]
        assert panel.get_title(loc="left").endswith(told)
        assert len(panel.texts) == (6 if sites == 200 else 2)


def test_no_figure_is_made_elsewhere() -> None:
    """One way to make a figure and one to write it, so that no name is ever read as a formula."""
    tools = Path(figures.__file__).parents[2]
    for path in [*tools.glob("*.py"), *tools.glob("plm/**/*.py")]:
        if path == Path(figures.__file__):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                assert node.attr not in ("savefig", "pyplot"), path
            names = [each.name for each in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            assert not any("pyplot" in name for name in names), path
            if isinstance(node, ast.Call):
                called = node.func
                assert getattr(called, "id", getattr(called, "attr", "")) != "Figure", path


def test_every_figure_is_drawn_here() -> None:
    """A function that makes a figure is one of those that the tests above draw."""
    drawn = {
        "history_figure", "roc_figure", "precision_recall_figure", "confusion_figure", "calibration_figure",
        "scores_figure", "_number_panels", "draw", "heads_figure", "search_figure", "predictions_figure",
        "projection_figure", "drift_figure", "sites_figure", "box_figure", "dot_figure", "curves", "range_figure",
        "overview_figure", "logo_figure", "mutagenesis_figure", "contact_figure",
    }
    tools = Path(figures.__file__).parents[2]
    made = set()
    for path in tools.glob("plm/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                calls = [call.func for call in ast.walk(node) if isinstance(call, ast.Call)]
                if any(getattr(call, "id", getattr(call, "attr", "")) == "new_figure" for call in calls):
                    made.add(node.name)
    assert made == drawn


def test_logarithmic_axes_have_plain_numbers(tmp_path: Path, seen: list[Figure]) -> None:
    rates = np.geomspace(1e-7, 10, 50)
    range_figure(RangeTest(rates, rates + 1, rates + 1, 1e-4, 1e-3, True), tmp_path / "f.png")
    told = [label.get_text() for label in tick_labels(seen.pop().axes[0].xaxis)]
    assert told and all(float(text.replace(chr(0x2212), "-")) > 0 for text in told)
