"""What the comparison of language models found: tables, and a report whose first line says what the students keep."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from plm.jobs.compare_models.cost import ModelCost
from plm.jobs.compare_models.figures import Boxes, Dots, box_figure, dot_figure
from plm.jobs.compare_models.held_out import HeldOut
from plm.jobs.compare_models.masked_agreement import ALL, Asked, MaskedAnswers, MaskedLine
from plm.jobs.compare_models.probe_scores import MEASURES, KeptShare, Resampled, gain_kept, ratios, retention
from plm.jobs.compare_models.similarity import Similarity
from plm.scoring.intervals import interval
from plm.scoring.metrics import LOWER_IS_BETTER
from plm.telling.report import Report, plain
from plm.wording import metric_name, number

SCORE_COLUMNS = (
    "model", "kind", "domain", "measure", "value", "low", "high", "proteins", "residues", "clusters",
)
AGREEMENT_COLUMNS = ("model", "reference", *SCORE_COLUMNS[2:])
PROTEIN_COLUMNS = (
    "id", "domain", "cluster", "length", "status", "details", "model", "masked_residues", "correct",
    "perplexity", "accuracy",
)
PROBE_COLUMNS = (
    "probe", "level", "target", "model", "kind", "measure", "main", "value", "low", "high", "retention",
    "retention_low", "retention_high", "gain_kept", "gain_kept_low", "gain_kept_high", "setting", "training_rows",
    "judged_rows", "groups",
)
COST_COLUMNS = (
    "model", "parameters", "weights_mib", "residues_per_second", "slowest", "fastest", "times_reference",
    "times_reference_low", "times_reference_high", "peak_mib", "peak_mib_above_empty_process", "gpu_peak_mib",
    "load_seconds", "turns",
)
_MIB = 2**20


@dataclass(frozen=True)
class ProbeResult:
    """One probe on all models.

    Attributes:
        name: Name of the probe.
        level: ``sequence``, ``residue`` or ``site``.
        kind: ``binary``, ``multiclass`` or ``number``.
        classes: Number of classes; 0 for numbers.
        measure: Name of the main metric.
        split: How rows were split, in words.
        notes: What a reader must know.
        learned: Number of training rows.
        judged: Number of judged rows.
        groups: Number of groups that the bootstrap draws.
        scores: Name of the model or baseline -> its scores; models come first.
        settings: Name of the model or baseline -> its penalty, in words.
        baselines: Names of the baselines.
    """

    name: str
    level: str
    kind: str
    classes: int
    measure: str
    split: str
    notes: Sequence[str]
    learned: int
    judged: int
    groups: int
    scores: dict[str, Resampled]
    settings: dict[str, str]
    baselines: Sequence[str]

    @property
    def best_baseline(self) -> str:
        """The baseline that scores highest, which makes gains over it the smallest."""
        return max(self.baselines, key=lambda name: self.scores[name].values[self.measure])

    def kept(self, model: str, reference: str, measure: str = "") -> tuple[KeptShare, KeptShare]:
        """Retention, and what is kept of the gain over the best baseline."""
        measure = measure or self.measure
        if measure in LOWER_IS_BETTER:
            return KeptShare(), KeptShare()
        mine, theirs = self.scores[model], self.scores[reference]
        return retention(mine, theirs, measure), gain_kept(mine, theirs, self.scores[self.best_baseline], measure)


@dataclass
class ModelFindings:
    """Everything that was found.

    Attributes:
        models: Names of the models; the first is the reference.
        parameters: Name of the model -> number of its parameters.
        held: Held-out proteins, or None.
        asked: Masked residues of these proteins, or None.
        answers: Answers to the masked residues: of models with a language-model head, and of baselines.
        scores: Masked perplexity and accuracy of these answers.
        agreement: Agreement of these answers with the reference's.
        similarities: (model, ``protein`` or ``residue``, CKA with the reference).
        probes: Results of the linear probes.
        costs: Speed and memory of the models; empty if not measured.
        settings: How masks were made, in words.
        notes: What a reader must know.
    """

    models: list[str]
    parameters: dict[str, int] = field(default_factory=dict)
    held: HeldOut | None = None
    asked: Asked | None = None
    answers: list[MaskedAnswers] = field(default_factory=list)
    scores: list[MaskedLine] = field(default_factory=list)
    agreement: list[MaskedLine] = field(default_factory=list)
    similarities: list[tuple[str, str, Similarity]] = field(default_factory=list)
    probes: list[ProbeResult] = field(default_factory=list)
    costs: list[ModelCost] = field(default_factory=list)
    settings: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def reference(self) -> str:
        return self.models[0]

    def line(self, lines: Sequence[MaskedLine], model: str, measure: str) -> MaskedLine | None:
        """A score over all proteins, if it is there."""
        return next((x for x in lines if (x.model, x.domain, x.measure) == (model, ALL, measure)), None)

    def mean_retention(self, model: str) -> tuple[KeptShare, int]:
        """Mean retention over the probes that define it, and how many do; rows of different probes are independent."""
        values, draws = [], []
        for probe in self.probes:
            ratio, _ = probe.kept(model, self.reference)
            if ratio.value != ratio.value:
                continue
            values.append(ratio.value)
            mine, theirs = probe.scores[model], probe.scores[self.reference]
            draws.append(None if ratio.low != ratio.low else ratios(mine, theirs, probe.measure))
        if not values:
            return KeptShare(), 0
        value = float(np.mean(values))
        known = [each for each in draws if each is not None]
        if len(known) < len(draws):
            return KeptShare(value), len(values)
        return KeptShare(value, *interval(np.mean(known, axis=0))), len(values)


# -------------------------------------------------------------------------------------------------------------- tables


def _cell(value: float) -> str:
    return "" if value != value else f"{value:.6g}"


def scores_table(findings: ModelFindings) -> Iterator[str]:
    """Lines of the table of masked perplexity and accuracy."""
    yield "\t".join(SCORE_COLUMNS)
    for line in findings.scores:
        kind = "baseline" if line.baseline else "model"
        yield "\t".join([line.model, kind, line.domain, line.measure, *_figures(line)])


def agreement_table(findings: ModelFindings) -> Iterator[str]:
    """Lines of the table of agreement with the reference, CKA included."""
    yield "\t".join(AGREEMENT_COLUMNS)
    for line in findings.agreement:
        yield "\t".join([line.model, findings.reference, line.domain, line.measure, *_figures(line)])
    for model, level, cka in findings.similarities:
        assert findings.held is not None
        proteins, residues = (len(findings.held.sequences), 0) if level == "protein" else (0, cka.rows)
        cells = [_cell(value) for value in (cka.value, cka.low, cka.high)]
        counts = [str(proteins or ""), str(residues or ""), str(cka.clusters)]
        yield "\t".join([model, findings.reference, ALL, f"cka_{level}", *cells, *counts])


def _figures(line: MaskedLine) -> list[str]:
    cells = [_cell(value) for value in (line.value, line.low, line.high)]
    return [*cells, str(line.proteins), str(line.residues), str(line.clusters)]


def proteins_table(findings: ModelFindings) -> Iterator[str]:
    """Lines of the table of proteins: every input record, judged ones once a model."""
    yield "\t".join(PROTEIN_COLUMNS)
    if findings.held is None or findings.asked is None:
        return
    values = per_protein(findings)
    for fate in findings.held.fates:
        start = [fate.id, fate.domain, fate.cluster, str(fate.length), fate.status, fate.details]
        if fate.protein >= 0:
            start[2] = findings.held.clusters[fate.protein]
        start = [" ".join(cell.split()) for cell in start]
        if fate.protein < 0 or not findings.answers:
            yield "\t".join([*start, *[""] * 5])
            continue
        for model, (loss, right, count) in values.items():
            asked = int(count[fate.protein])
            if not asked:
                yield "\t".join([*start[:5], "no amino acid to mask", model, "0", "", "", ""])
                continue
            figures = [np.exp(loss[fate.protein] / asked), right[fate.protein] / asked]
            yield "\t".join([*start, model, str(asked), str(int(right[fate.protein])), *map(_cell, figures)])


def per_protein(findings: ModelFindings) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Model -> summed loss, right answers and masked residues of each protein."""
    assert findings.asked is not None
    count = findings.asked.sums(np.ones(len(findings.asked.owner)))
    return {
        model.name: (
            findings.asked.sums(model.loss(findings.asked)),
            findings.asked.sums(model.right(findings.asked)),
            count,
        )
        for model in findings.answers
    }


def probes_table(findings: ModelFindings) -> Iterator[str]:
    """Lines of the table of probes."""
    yield "\t".join(PROBE_COLUMNS)
    for probe in findings.probes:
        target = "number" if probe.kind == "number" else f"{probe.classes} classes"
        for name, scores in probe.scores.items():
            kind = "baseline" if name in probe.baselines else "model"
            for measure in MEASURES[probe.kind]:
                kept = probe.kept(name, findings.reference, measure) if kind == "model" else (KeptShare(), KeptShare())
                ratios = [value for ratio in kept for value in (ratio.value, ratio.low, ratio.high)]
                main = "yes" if measure == probe.measure else "no"
                values = [scores.values[measure], *scores.interval(measure), *ratios]
                counts = [str(count) for count in (probe.learned, probe.judged, probe.groups)]
                yield "\t".join([probe.name, probe.level, target, name, kind, measure, main, *map(_cell, values),
                                 probe.settings[name], *counts])


def cost_table(findings: ModelFindings) -> Iterator[str]:
    """Lines of the table of costs."""
    yield "\t".join(COST_COLUMNS)
    for cost in findings.costs:
        values = [cost.bytes / _MIB, cost.speed, min(cost.speeds), max(cost.speeds), *cost.times(findings.costs[0]),
                  cost.peak_mib, max(0.0, cost.peak_mib - cost.empty_mib), cost.cuda_mib or float("nan"),
                  cost.loading]
        parameters = findings.parameters.get(cost.name, cost.parameters)
        yield "\t".join([cost.name, str(parameters), *map(_cell, values), str(len(cost.speeds))])


# ------------------------------------------------------------------------------------------------------------- figures


def boxes(findings: ModelFindings, path: Path) -> None:
    """Box plots of perplexity and accuracy of each protein."""
    assert findings.held is not None and findings.asked is not None
    names = [model.name for model in findings.answers if not model.baseline]
    values = per_protein(findings)
    with np.errstate(invalid="ignore", divide="ignore"):
        perplexity = [np.exp(values[name][0] / values[name][2]) for name in names]
        accuracy = [values[name][1] / values[name][2] for name in names]
    heights = {}
    for measure in ("masked_perplexity", "masked_accuracy"):
        line = findings.line(findings.scores, "unigram", measure)
        heights[measure] = line.value if line else float("nan")
    panels = [
        Boxes("Perplexity of masked residues", "Perplexity of a protein", perplexity, True,
              heights["masked_perplexity"], "unigram, all proteins"),
        Boxes("Masked residues found", "Accuracy in a protein", accuracy, False, heights["masked_accuracy"],
              "unigram, all proteins", share=True),
    ]
    box_figure(panels, names, findings.held.domains, path)


def dots(findings: ModelFindings, path: Path) -> None:
    """Scores of the probes with their intervals."""
    panels = []
    for probe in findings.probes:
        rows = [
            (name, scores.values[probe.measure], *scores.interval(probe.measure), name in probe.baselines)
            for name, scores in probe.scores.items()
        ]
        most = float("inf") if probe.measure in ("rmse", "mae") else 1.0
        panels.append(Dots(probe.name, metric_name(probe.measure), rows, most))
    dot_figure(panels, path)


# -------------------------------------------------------------------------------------------------------------- report


def sentence(findings: ModelFindings, model: str) -> str:
    """What one model keeps of the reference and what it costs."""
    parts = []
    ratio, count = findings.mean_retention(model)
    if count:
        of = f"scores in {count} linear probes (mean ratio)" if count > 1 else "score in the linear probe"
        parts.append(f"keeps {_percent(ratio)} of the {of}")
    elif findings.probes:
        parts.append(
            "cannot be judged by the linear probes, in which the reference is not shown to be better than chance"
        )
    if findings.costs:
        mine = next(cost for cost in findings.costs if cost.name == model)
        times, low, high = mine.times(findings.costs[0])
        parts.append(f"runs at {_times(times)} times the speed ({_times(low)} to {_times(high)} in single rounds)")
    if findings.parameters.get(model) and findings.parameters.get(findings.reference):
        size = findings.parameters[findings.reference] / findings.parameters[model]
        if abs(size - 1) < 0.005:
            parts.append("has as many parameters")
        else:
            parts.append(
                f"has {_times(1 / size)} times the parameters" if size < 1 else f"is {_times(size)} times smaller"
            )
    mine_line, their_line = (
        findings.line(findings.scores, name, "masked_perplexity") for name in (model, findings.reference)
    )
    if mine_line and their_line:
        parts.append(f"has masked perplexity {mine_line.value:.2f} against {their_line.value:.2f}")
    if not parts:
        parts.append("was compared")
    return f"Beside {findings.reference}, {model} {', '.join(parts[:-1]) + ' and ' if parts[1:] else ''}{parts[-1]}."


def _times(factor: float) -> str:
    return f"{factor:,.0f}" if factor >= 100 else f"{factor:.1f}" if factor >= 10 else f"{factor:.2f}"


def _percent(ratio: KeptShare) -> str:
    told = f"{100 * ratio.value:.1f} %"
    if ratio.low != ratio.low:
        return told
    return f"{told} (95 % interval {100 * ratio.low:.1f} to {100 * ratio.high:.1f} %)"


def first_lines(findings: ModelFindings) -> list[str]:
    """One sentence a model beside the reference."""
    if len(findings.models) == 1:
        line = findings.line(findings.scores, findings.reference, "masked_perplexity")
        told = f" has masked perplexity {line.value:.2f}" if line else " was judged"
        return [f"{findings.reference}{told}; there is no second model to compare with."]
    return [sentence(findings, model) for model in findings.models[1:]]


def _cell_of(line: MaskedLine | None, digits: int = 2) -> str:
    if line is None:
        return "none"
    told = number(line.value, digits)
    return told + (f" ({number(line.low, digits)} to {number(line.high, digits)})" if line.low == line.low else "")


def side_by_side(findings: ModelFindings) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of all models: what the README shows."""
    header = ["model", "parameters"]
    if findings.costs:
        header += ["residues/s", "times reference", "peak MiB"]
    if findings.scores:
        header += ["masked perplexity", "masked accuracy"]
    if findings.agreement:
        header += ["top-1 agreement", "KL (nats)"]
    levels = list(dict.fromkeys(level for _, level, _ in findings.similarities))
    header += [f"CKA, {level}s" for level in levels]
    header += [f"{probe.name} ({metric_name(probe.measure)})" for probe in findings.probes]
    if findings.probes and len(findings.models) > 1:
        header.append("probes kept")
    rows = []
    for model in findings.models:
        cells = [plain(model), f"{findings.parameters[model]:,}" if model in findings.parameters else ""]
        if findings.costs:
            cost = next(cost for cost in findings.costs if cost.name == model)
            cells += [f"{cost.speed:,.0f}", f"{cost.times(findings.costs[0])[0]:.2f}", f"{cost.peak_mib:,.0f}"]
        if findings.scores:
            for measure, digits in (("masked_perplexity", 2), ("masked_accuracy", 3)):
                cells.append(_cell_of(findings.line(findings.scores, model, measure), digits))
        if findings.agreement:
            for measure in ("top1_agreement", "kl_divergence"):
                line = findings.line(findings.agreement, model, measure)
                cells.append("" if model == findings.reference else _cell_of(line, 3))
        for level in levels:
            cka = next((one for name, kind, one in findings.similarities if (name, kind) == (model, level)), None)
            cells.append("" if cka is None else number(cka.value, 3))
        for probe in findings.probes:
            low, high = probe.scores[model].interval(probe.measure)
            told = number(probe.scores[model].values[probe.measure], 3)
            cells.append(told + (f" ({number(low, 3)} to {number(high, 3)})" if low == low else ""))
        if findings.probes and len(findings.models) > 1:
            cells.append("" if model == findings.reference else _percent(findings.mean_retention(model)[0]))
        rows.append(cells)
    for name in dict.fromkeys(model.name for model in findings.answers if model.baseline):
        cells = [f"{name} (baseline)"] + [""] * (len(header) - 1)
        for measure, title, digits in (
            ("masked_perplexity", "masked perplexity", 2), ("masked_accuracy", "masked accuracy", 3),
        ):
            cells[header.index(title)] = _cell_of(findings.line(findings.scores, name, measure), digits)
        rows.append(cells)
    if findings.probes:
        cells = ["best baseline of each probe"] + [""] * (len(header) - 1)
        for probe in findings.probes:
            best = probe.best_baseline
            place = header.index(f"{probe.name} ({metric_name(probe.measure)})")
            cells[place] = f"{number(probe.scores[best].values[probe.measure], 3)} ({best})"
        rows.append(cells)
    return header, rows


def report(findings: ModelFindings, shown: Sequence[str]) -> Report:
    """The report.

    Args:
        findings: Scores, similarities, probes and costs of the models.
        shown: Outputs that are written, by their names in the XML.
    """
    first, *others = first_lines(findings)
    page = Report(first)
    page.bullets(others)
    page.bullets([plain(note) for note in findings.notes])
    header, rows = side_by_side(findings)
    # A column a model: names of measures are longer than those of models.
    turned = [[title, *(row[number] for row in rows)] for number, title in enumerate(header)]
    page.heading("Side by side").rows(turned[0], turned[1:])
    if findings.scores:
        page.heading("Masked residues")
        assert findings.held is not None
        intervals = any(one.low == one.low for one in findings.scores)
        page.paragraph(
            f"{plain(findings.held.account)}. {findings.settings} Clusters: {plain(findings.held.origin)}. "
            f"{'Intervals: 95 %, bootstrap over clusters. ' if intervals else ''}"
            "Perplexity is over each model's whole vocabulary; agreement and KL (of the model "
            "from the reference) over the twenty amino acids. Only masked residues count."
        )
        if "figure" in shown:
            page.image("figure")
        if "scores" in shown:
            page.table("scores", "Masked perplexity and accuracy", "By domain; all = all proteins.")
    if (findings.agreement or findings.similarities) and "agreement" in shown:
        page.heading("Agreement with the reference")
        if findings.similarities:
            page.paragraph(
                "CKA: linear, debiased, of unmasked proteins (means over residues, and single residues drawn at "
                "random); intervals by a jackknife over clusters."
            )
        footer = "Agreement and divergence are taken on the same masked residues." if findings.agreement else ""
        page.table("agreement", "Agreement", footer)
    if findings.probes:
        page.heading("Linear probes")
        page.bullets([_probe_line(findings, probe) for probe in findings.probes])
        page.paragraph(
            "Kept: the model's score over the reference's (of AUROC: what lies above 0.5); nothing is said where the "
            "reference is not shown to be better than chance. Of the gain: the same after the best baseline's score is "
            "taken off both, which is the stricter question. Intervals, where there are any, are paired (the same "
            "groups drawn for both)."
        )
        if "probe_figure" in shown:
            page.image("probe_figure")
        if "probes" in shown:
            page.table("probes", "Probes")
    if findings.costs and "cost" in shown:
        page.heading("Cost")
        page.table("cost", "Cost", "Processes of their own, in turns on the same proteins. Memory is a whole process.")
    return page


def _probe_line(findings: ModelFindings, probe: ProbeResult) -> str:
    told = [f"{plain(probe.name)} - {probe.level} level, {probe.learned:,} training and {probe.judged:,} judged rows, "
            f"{probe.groups:,} groups; {plain(probe.split)}"]
    for model in findings.models[1:]:
        kept, gain = probe.kept(model, findings.reference)
        if kept.value == kept.value:
            of_gain = f"; {_percent(gain)} of the gain" if gain.value == gain.value else ""
            told.append(f"{plain(model)} keeps {_percent(kept)}{of_gain}")
    beaten = [name for name in findings.models if not _beats(probe, name)]
    if beaten:
        told.append(
            f"**not shown to be better than the baseline {probe.best_baseline}: {', '.join(map(plain, beaten))}**"
        )
    return "; ".join([*told, *map(plain, probe.notes)])


def _beats(probe: ProbeResult, model: str) -> bool:
    mine, theirs = probe.scores[model], probe.scores[probe.best_baseline]
    if probe.measure not in mine.draws:
        return mine.values[probe.measure] > theirs.values[probe.measure]
    low, _ = interval(mine.draws[probe.measure] - theirs.draws[probe.measure])
    return low > 0
