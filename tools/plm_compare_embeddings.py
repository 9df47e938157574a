#!/usr/bin/env python3
"""Judge the quality of a set of embeddings and, beside a reference, whether the new ones drifted from it.

Inputs: embeddings in any format that the suite reads [+ a reference: embeddings, or a bundle of plm_train_classifier,
whose sample of training embeddings stands for it] [+ a table of labels].
Outputs: a report whose first line is the verdict, a picture, and tables of all checks and tests, of the components, and
of every protein (NaN, copies, odd lengths, nearest reference, whether it drifted).

Example:
    python plm_compare_embeddings.py --embeddings genome.h5 --reference training.h5 --report report.md \\
        --figure figure.png --checks checks.tsv --components components.tsv --proteins proteins.tsv
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plm import flags, stage
from plm.outputs import write_lines
from plm.telling.page import publish

if TYPE_CHECKING:
    from plm.data.embeddings.reference_and_queries import Side
    from plm.jobs.compare_embeddings.checks import EmbeddingFindings

NAME = "plm_compare_embeddings"


class Arguments(flags.Reporting, flags.LabelKind, flags.Seed):
    """The command line; see ``--help``."""

    embeddings: Path = flags.source("the set to judge: HDF5, npz, Parquet or a table", required=True)
    reference: Path | None = flags.source("what it is compared with: embeddings, or a bundle of plm_train_classifier")
    group_column: str = flags.like(
        flags.LabelKind, "group_column", help="column that names groups of relatives; each counts once in tests"
    )
    drift_share: float = flags.number(
        0.05, "share of proteins like the reference that may be called drifted", 0.001, 0.5
    )
    most_rows: int = flags.whole(5000, "rows of each set for near copies and tests, drawn at random", 100, 20_000)
    permutations: int = flags.whole(999, "of the test of the energy distance", 99, 100_000)
    proteins: Path = flags.output("table of every protein", required=True)
    figure: Path | None = flags.output("picture (PNG)")
    checks: Path | None = flags.output("table of checks and tests")
    components: Path | None = flags.output("table of the components")


def run(argv: Sequence[str] | None) -> None:
    args = flags.read(Arguments, NAME, __doc__, argv)
    log = stage.log(NAME)
    stage.require({"numpy": "1.26", "scipy": "1.11", "scikit-learn": "1.5", "matplotlib": "3.8", "h5py": "3.10"})
    from plm.jobs.compare_embeddings import report as drift_report
    from plm.jobs.compare_embeddings.figure import drift_figure

    findings = compare(args, log)
    with stage.Outputs() as outputs:
        for path, lines in (
            (args.proteins, drift_report.proteins_table),
            (args.checks, drift_report.checks_table),
            (args.components, drift_report.components_table),
        ):
            if path:
                write_lines(outputs.path(path), lines(findings))
        if args.figure:
            drift_figure(findings, outputs.path(args.figure))
        if args.tells():
            shown = [name for name in ("figure", "checks", "components", "proteins") if getattr(args, name)]
            publish(drift_report.drift_report(findings, shown), args, outputs, NAME)
    for note in findings.notes:
        log.info("Note: %s", note)
    for line in drift_report.first_lines(findings):
        log.info("%s", line)


def compare(args: Arguments, log: Any) -> EmbeddingFindings:
    """Reads everything, measures the quality of each set, and compares them."""
    from plm.data.embeddings import reference_and_queries
    from plm.jobs.compare_embeddings import drift
    from plm.jobs.compare_embeddings import quality as embedding_quality
    from plm.jobs.compare_embeddings.checks import EmbeddingFindings, Judged, label_change
    from plm.scoring import separation

    notes: list[str] = []
    new = reference_and_queries.read_side(args.embeddings, args.layer, notes, finite=False)
    reference, validation, bundle = None, None, False
    if args.reference is not None:
        reference, validation, bundle = read_reference(args, notes)
        reference_and_queries.check_fit(reference, new, notes, names="Reference and new embeddings")
    sides = [side for side in (reference, new) if side is not None]
    source = attach(args, sides, notes, bundle)
    log.info(
        "Plan: %d embeddings of dimension %d%s; labels: %s", len(new), new.description.dimension,
        "" if reference is None else f", {len(reference)} of the reference", source or "none",
    )
    texts = [text for side in sides for text in side.labels]
    both, start, judged = separation.read_labels(texts, args.label_kind, source), 0, []
    for side in sides:
        name = "embeddings" if reference is None else "new" if side is new else "reference"
        most = max(args.most_rows, len(side) if bundle and side is reference else 0)
        quality = embedding_quality.judge(side.matrix, side.name, most, args.seed)
        judged.append(Judged(name, side, both.part(slice(start, start + len(side))), quality))
        start += len(side)
    proteins, tests, why_not, label_p = None, None, "", float("nan")
    if reference is not None:
        log.info("Comparing each new protein with the reference, and the sets as wholes")
        one, other = (drift.Set(each.side.matrix, each.quality, each.side.groups) for each in judged)
        half = bundle or "float16" in (reference.description.dtype, new.description.dtype)
        proteins = drift.place(one, other, args.drift_share, half=half, validation=validation)
        tests, why_not = drift.compare_sets(one, other, proteins, permutations=args.permutations, seed=args.seed)
        label_p = label_change(judged[0].labels, judged[1].labels)
    return EmbeddingFindings(
        judged[-1], judged[0] if reference is not None else None, proteins, tests, why_not, label_p, source, bundle,
        args.most_rows, args.seed, notes,
    )


def read_reference(args: Arguments, notes: list[str]) -> tuple[Side, tuple[int, float, int] | None, bool]:
    """The reference; of a bundle also neighbours, limit and rows behind it, for distances; whether it is a bundle."""
    from plm.data.embeddings import reference_and_queries
    from plm.model.bundles.classifier import load_classifier_bundle
    from plm.received import archives
    from plm.scoring import novelty

    assert args.reference is not None
    if not archives.holds(args.reference, "manifest.json"):
        return reference_and_queries.read_side(args.reference, args.layer, notes, finite=False), None, False
    bundle = load_classifier_bundle(args.reference)
    keys, labels, matrix = bundle.reference
    sited = bundle.task.level == "site" and all("\t" in key for key in keys)
    ids = [key.split("\t")[0] for key in keys] if sited else list(keys)
    positions = [int(key.split("\t")[1]) for key in keys] if sited else None
    own = {"label": list(labels)}
    side = reference_and_queries.Side(args.reference.name, ids, positions, matrix, bundle.embedding, own)
    content = bundle.manifest.get("novelty")
    limits = novelty.Novelty.of(bundle.reference, content, args.drift_share) if content else None
    return side, (limits.k, limits.threshold, limits.rows) if limits else None, True


def attach(args: Arguments, sides: list[Side], notes: list[str], bundle: bool) -> str:
    """Labels and groups of all rows; a bundle brings the labels of its own. Returns where they come from."""
    from plm.data.embeddings import reference_and_queries

    kept = list(sides[0].columns.get("label", [])) if bundle else []
    source = ""
    for one, *others in (sides[::-1], sides):  # either may carry the column
        source = source or reference_and_queries.attach_labels(
            one, others[0] if others else None, table=args.labels, id_column=args.id_column,
            label_column=args.label_column, group_column=args.group_column, wanted=True, notes=notes,
        )
    if kept:
        sides[0].labels = kept
    return source


if __name__ == "__main__":
    stage.main(NAME, run)
