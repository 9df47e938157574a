"""What the comparison of embeddings found, as tables and as a report whose first lines give the verdict."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from plm.jobs.compare_embeddings.checks import (
    CHECK_COLUMNS,
    IMBALANCE,
    EmbeddingFindings,
    Judged,
    checks,
    drifted_range,
    more_drifted,
)
from plm.telling.figures import shortened
from plm.telling.report import Report, plain
from plm.wording import counted, number

COMPONENT_COLUMNS = (
    "component", "mean", "sd", "minimum", "maximum", "constant", "reference_mean", "reference_sd", "shift", "ks",
    "p_value", "q_value", "differs",
)
PROTEIN_COLUMNS = (
    "id", "position", "set", "label", "status", "norm", "norm_outlier", "duplicate_of", "near_duplicate_of",
    "nearest_reference", "nearest_label", "distance", "drifted", "in_reference",
)
_BANDS = ((0.6, "slightly"), (0.75, "clearly"), (0.9, "strongly"), (1.01, "almost completely"))
_SHOWN = 5


# -------------------------------------------------------------------------------------------------------------- tables


def checks_table(findings: EmbeddingFindings) -> Iterator[str]:
    """Lines of the table of checks."""
    yield "\t".join(CHECK_COLUMNS)
    for one in checks(findings):
        figures = [_cell(value) for value in (one.value, one.low, one.high, one.expected, one.p_value)]
        cells = [one.set, one.check, one.part, one.result, *figures, str(one.rows), one.note]
        yield "\t".join(" ".join(cell.split()) for cell in cells)


def _cell(value: float) -> str:
    return "" if value != value else f"{value:.6g}"


def components_table(findings: EmbeddingFindings) -> Iterator[str]:
    """Lines of the table of components; those of a comparison are empty without one."""
    yield "\t".join(COMPONENT_COLUMNS)
    new, tests = findings.new.quality, findings.tests
    other = findings.reference.quality if findings.reference else None
    for index in range(len(new.mean)):
        cells = [f"e{index}", *(_cell(float(values[index])) for values in (new.mean, new.sd, new.low, new.high))]
        cells.append("yes" if new.constant[index] else "no")
        if other is None:
            cells += [""] * 7
        else:
            mean, sd = float(other.mean[index]), float(other.sd[index])
            shift = (float(new.mean[index]) - mean) / sd if sd > 0 else math.nan
            cells += [_cell(mean), _cell(sd), _cell(shift)]
            if tests is None:
                cells += [""] * 4
            else:
                cells += [_cell(float(values[index])) for values in (tests.ks, tests.p_values, tests.q_values)]
                cells.append("yes" if tests.differ[index] else "no")
        yield "\t".join(cells)


def proteins_table(findings: EmbeddingFindings) -> Iterator[str]:
    """Lines of the table of proteins: every row of both files, in their order."""
    yield "\t".join(PROTEIN_COLUMNS)
    for one in findings.sets:
        keys, quality = one.side.keys(), one.quality
        names = [key.replace("\t", " position ") for key in keys]
        copies, near = quality.copies, quality.near_copies & ~quality.copies
        for row, identifier in enumerate(one.side.ids):
            position = "" if one.side.positions is None else str(one.side.positions[row])
            status = "judged" if quality.finite[row] else "not finite"
            cells = [identifier, position, one.name, one.labels.texts[row], status, _cell(float(quality.norm[row]))]
            cells.append(("yes" if quality.odd[row] else "no") if quality.finite[row] else "")
            cells.append(names[quality.first[row]] if copies[row] else "")
            cells.append(names[quality.near[row]] if near[row] else "")
            cells += _place_cells(findings, row) if one.name == "new" else [""] * 5
            yield "\t".join(" ".join(cell.split()) for cell in cells)


def _place_cells(findings: EmbeddingFindings, row: int) -> list[str]:
    proteins, reference = findings.proteins, findings.reference
    if proteins is None or reference is None or proteins.nearest[row] < 0:
        return [""] * 5
    same = int(proteins.same[row])
    place = same if same >= 0 else int(proteins.nearest[row])
    name = reference.side.keys()[place].replace("\t", " position ")
    kept = "same numbers" if same >= 0 else "nearly" if proteins.near[row] else "no"
    drifted = "yes" if proteins.drifted[row] else "no"
    return [name, reference.labels.texts[place], f"{proteins.distance[row]:.6g}", drifted, kept]


# -------------------------------------------------------------------------------------------------------------- report


def first_lines(findings: EmbeddingFindings) -> list[str]:
    """The sentences that a reader must see first: drift, quality, relatives in both sets."""
    quality = _quality_line(findings)
    if findings.reference is None:
        return [quality]
    return [line for line in (_drift_line(findings), _protein_line(findings), quality, _overlap_line(findings)) if line]


def _drift_line(findings: EmbeddingFindings) -> str:
    tests = findings.tests
    if tests is None:
        return f"Whether the new set as a whole drifted cannot be judged: {findings.why_not}."
    told = (
        f"a linear classifier tells new from reference proteins with AUROC {number(tests.auroc, 2)}"
        f"{_between(tests.low, tests.high)}, where 0.5 is chance; energy distance {number(tests.energy, 3)} of 1, "
        f"p {_p(tests.energy_p)}; {int(tests.differ.sum())} of {len(tests.ks)} components differ"
    )
    if not tests.drifted:
        if tests.low > 0.5:
            return f"The tests find no drift of the new set from the reference, but one may be there: {told}."
        most = f"; the interval reaches AUROC {number(tests.high, 2)}" if tests.high > 0.5 else ""
        return (
            f"No sign that the new set drifted from the reference: {told}. Small drift may be there all the same{most}."
        )
    word = next(word for limit, word in _BANDS if tests.auroc < limit)
    if tests.auroc_p >= 0.05:
        word = "in a way that a linear classifier hardly sees"
    return f"The new set drifted {word} from the reference: {told}."


def _between(low: float, high: float) -> str:
    return "" if low != low else f" (95 % interval {number(low, 2)} to {number(high, 2)})"


def _p(value: float) -> str:
    return f"= {value:.2g}" if value >= 0.001 else f"= {value:.1g}"


def _protein_line(findings: EmbeddingFindings) -> str:
    proteins = findings.proteins
    assert proteins is not None
    total, drifted = int(findings.new.quality.finite.sum()), int(proteins.drifted.sum())
    low, high = drifted_range(findings)
    if not math.isfinite(proteins.limit):
        return "Whether single proteins drifted cannot be told: the reference is a single group of relatives."
    of = "validation proteins do" if proteins.from_validation else "the reference's own proteins do"
    new, lie = counted(total, "new protein"), "lies" if drifted == 1 else "lie"
    line = (
        f"{drifted:,} of {new} ({_percent(drifted / total)}, 95 % interval {_percent(low)} to "
        f"{_percent(high)}) {lie} farther from the reference than {_percent(1 - proteins.share)} of {of}"
    )
    if more_drifted(findings):
        return f"{line}: do not trust what a classifier trained on the reference says of these."
    return (
        f"{line}, not shown to be more than when nothing has changed ({_percent(proteins.share)})."
        if high >= proteins.share
        else f"{line}, fewer than usual."
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 or share == 0 else f"{100 * share:.1f} %"


def _quality_line(findings: EmbeddingFindings) -> str:
    troubles = [text for one in findings.sets for text in _troubles(one, len(findings.sets) > 1)]
    what = " and ".join(
        counted(len(one.side), f"{one.name} embedding" if len(findings.sets) > 1 else "embedding")
        for one in findings.sets
    )
    about = f"{what} of dimension {findings.new.side.description.dimension}"
    if not troubles:
        return f"The quality is fine: {about}, all finite, none twice, none of odd length, no constant component."
    return f"Look at the quality of the {about}: {'; '.join(troubles)}."


def _troubles(one: Judged, named: bool) -> Iterator[str]:
    quality, of = one.quality, f" ({one.name})" if named else ""
    bad = np.flatnonzero(~quality.finite)
    if len(bad):
        ids = ", ".join(shortened(one.side.ids[row], 20) for row in bad[:_SHOWN])
        more = ", ..." if len(bad) > _SHOWN else ""
        holds = "holds NaN or infinity and counts" if len(bad) == 1 else "hold NaN or infinity and count"
        yield f"{len(bad):,} {holds} for nothing else{of}: {ids}{more}"
    components = f"of {len(quality.constant):,} components"
    for flags, one_text, text in (
        (quality.zero, "is all zeros", "are all zeros"),
        (quality.copies, "equals an earlier one", "equal an earlier one"),
        (quality.near_copies & ~quality.copies, "nearly equals an earlier one", "nearly equal an earlier one"),
        (quality.odd & ~quality.zero, "is of unusual length", "are of unusual length"),
        (quality.constant, f"{components} is constant", f"{components} are constant"),
    ):
        if flags.any():
            yield f"{int(flags.sum()):,} {one_text if flags.sum() == 1 else text}{of}"
    if quality.largest > 0.5 and len(quality.mean) > 2:
        yield f"component e{int(quality.sd.argmax())} holds {_percent(quality.largest)} of the variance{of}"
    labels = one.labels
    sizes = np.bincount(labels.codes[labels.known]) if labels.kind == "class" and labels.known.any() else np.zeros(0)
    sizes = sizes[sizes > 0]
    if len(sizes) and sizes.max() > IMBALANCE * sizes.min():
        times = f"{sizes.max() / sizes.min():.0f} times"
        yield f"the largest of {len(sizes)} classes has {times} the smallest's members{of}"


def _overlap_line(findings: EmbeddingFindings) -> str:
    proteins = findings.proteins
    assert proteins is not None
    equal, near = int((proteins.same >= 0).sum()), int(proteins.near.sum())
    there, keys = set(findings.reference.side.keys()) if findings.reference else set(), findings.new.side.keys()
    other = sum(key in there and not near for key, near in zip(keys, proteins.near, strict=True))
    lines = []
    if near:
        lines.append(
            f"{near:,} new {'protein is' if near == 1 else 'proteins are'} in the reference already or nearly so "
            f"({equal:,} with the very same numbers): what a classifier says of them proves nothing."
        )
    if other:
        lines.append(
            f"{other:,} {'id is' if other == 1 else 'ids are'} in both files with other numbers: other proteins of "
            "that name, or embedded otherwise."
        )
    return " ".join(lines)


def drift_report(findings: EmbeddingFindings, outputs: Sequence[str]) -> Report:
    """The report.

    Args:
        findings: The measured sets, and the new one against the reference.
        outputs: Names of the outputs there are: ``figure``, ``checks``, ``components``, ``proteins``.
    """
    first, *others = first_lines(findings)
    report = Report(plain(first.rstrip(".")))
    for line in others:
        report.paragraph(plain(line))
    if "figure" in outputs:
        report.image("figure")
    if findings.proteins is not None and findings.proteins.drifted.any():
        report.heading("New proteins farthest from the reference")
        report.rows(["Protein", "Nearest reference", "Label of that", "Distance"], list(_farthest(findings)))
        far = f"Beyond {findings.proteins.limit:.3g} standard deviations a component; the table of proteins has all."
        report.paragraph(far)
    report.heading("Checks")
    if "checks" in outputs:
        report.table("checks", title="All checks", footer="Result: fine, look (at it) or bad")
    if findings.reference is not None:
        report.heading("How to read it")
        report.bullets(_reading(findings))
    report.heading("What was done")
    report.bullets([*_done(findings), *map(plain, findings.notes[:8])])
    return report


def _farthest(findings: EmbeddingFindings) -> Iterator[list[str]]:
    proteins, reference = findings.proteins, findings.reference
    assert proteins is not None and reference is not None
    distance = np.where(proteins.drifted, np.nan_to_num(proteins.distance, nan=-1.0), -1.0)
    keys, there = findings.new.side.keys(), reference.side.keys()
    for row in np.argsort(-distance, kind="stable")[: min(10, int(proteins.drifted.sum()))]:
        near = int(proteins.nearest[row])
        texts = [keys[row].replace("\t", " "), there[near].replace("\t", " "), reference.labels.texts[near]]
        yield [*(plain(shortened(text, 40)) for text in texts), f"{proteins.distance[row]:.3g}"]


def _reading(findings: EmbeddingFindings) -> list[str]:
    lines = [
        "A reference that was picked (one family, resistance genes) and a whole genome always differ: then ask which "
        "proteins drifted, not whether the sets differ. Between two samples of one source drift is a warning.",
        "AUROC is the size of drift, p values are how sure it is that there is any; with thousands of proteins "
        "tiny differences are sure.",
    ]
    if findings.tests is not None and findings.tests.drifted:
        lines.append(
            "The table of components names those that differ; shift is in standard deviations of the reference."
        )
    if findings.label_p < 0.05:
        what = "another mix of classes" if findings.new.labels.kind == "class" else "other labels"
        lines.append(f"The labels differ (p {_p(findings.label_p)}): drift may be {what} and no more.")
    return lines


def _done(findings: EmbeddingFindings) -> list[str]:
    one = findings.new.side.description
    model = f"model {plain(one.model)}" if one.model else "model unknown"
    if one.layers:
        model += f", layer {', '.join(map(str, one.layers))}"
    if one.pooling:
        model += f", pooling {one.pooling}"
    lines = [f"{set_.name.capitalize()}: {len(set_.side):,} rows of {plain(set_.side.name)}" for set_ in findings.sets]
    lines[-1] += f" ({model})."
    if findings.bundle:
        lines.append("The bundle's sample of its training embeddings (stored as float16) stands for the reference.")
    if findings.source:
        lines.append(f"Labels: {plain(findings.source)}.")
    for set_ in findings.sets:
        finite, sampled = int(set_.quality.finite.sum()), len(set_.quality.sample)
        if sampled < finite:
            name = set_.name.capitalize()
            told = f"random sample of {sampled:,} of {finite:,} (seed {findings.seed})"
            lines.append(f"{name}: near copies and tests by a {told}.")
    tests, proteins = findings.tests, findings.proteins
    if tests is not None:
        lines.append(
            f"Tests: {tests.rows[0]:,} reference and {tests.rows[1]:,} new proteins (members of a group and near "
            f"copies count once); energy distance: {tests.energy_rows[0]:,} and {tests.energy_rows[1]:,}. Drift is "
            "said where classifier or energy distance has p, or any component adjusted p, below 0.017."
        )
    if proteins is not None:
        of = "the bundle's validation proteins" if proteins.from_validation else "the reference, relatives left out"
        lines.append(
            f"Distance: mean over the {proteins.k} nearest of {proteins.compared:,} reference proteins, in "
            f"standard deviations a component; the limit {proteins.limit:.4g} is from {proteins.limit_rows:,} "
            f"distances within {of}."
        )
    return lines
