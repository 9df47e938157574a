#!/usr/bin/env python3
"""Lay embeddings out on a plane (PCA, t-SNE, UMAP) and measure how far their labels separate.

Inputs: embeddings in any format that the suite reads [+ a table of labels] [+ query embeddings, which are laid over the
references by transform].
Outputs: coordinates of every protein, a picture, a table of scores (in the embedding space and in each projection, with
intervals and what random labels give), a report.

Example:
    python plm_project.py --embeddings embeddings.h5 --labels families.tsv --label-column family \\
        --coordinates coordinates.tsv --figure projections.png --scores scores.tsv --report report.md
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plm import stage
from plm.errors import UserError

if TYPE_CHECKING:
    from plm.jobs.project.findings import Findings
    from plm.jobs.project.projection import Settings

NAME = "plm_project"
METHODS = ("pca", "tsne", "umap")


@dataclass(frozen=True)
class Arguments:
    """The command line; see ``--help``."""

    embeddings: Path
    queries: Path | None
    layer: int | None
    labels: Path | None
    no_labels: bool
    id_column: str
    label_column: str
    group_column: str
    label_kind: str
    methods: str
    standardise: bool
    metric: str
    components: int
    perplexity: float
    neighbours: int
    min_dist: float
    score_neighbours: int
    resamples: int
    seed: int
    coordinates: Path
    figure: Path | None
    scores: Path | None
    report: Path | None

    def __post_init__(self) -> None:
        unknown = [name for name in self.chosen if name not in METHODS]
        if unknown or not self.chosen or len(set(self.chosen)) < len(self.chosen):
            raise UserError(
                f"--methods {self.methods!r} are not some of {', '.join(METHODS)}, each once", fix="Give e.g. pca,umap"
            )
        for flag, value, low, high in (
            ("--components", self.components, 2, 1000), ("--perplexity", self.perplexity, 1, 1000),
            ("--neighbours", self.neighbours, 2, 500), ("--min-dist", self.min_dist, 0, 1),
            ("--score-neighbours", self.score_neighbours, 1, 500), ("--resamples", self.resamples, 100, 100_000),
            ("--seed", self.seed, 0, 2**32 - 1),
        ):  # fmt: skip
            if not low <= value <= high:
                raise UserError(f"{value:g} is out of range", where=flag, fix=f"Choose {low:g} to {high:g}")
        if self.no_labels and (self.labels or self.label_column):
            raise UserError("--no-labels and labels exclude each other", fix="Leave out one of them")
        if self.id_column and not self.labels:
            raise UserError("--id-column is a column of the table of labels", fix="Give the table with --labels")

    @property
    def chosen(self) -> tuple[str, ...]:
        """The methods in the order of the outputs."""
        return tuple(name.strip() for name in self.methods.split(",") if name.strip())


def parse(argv: Sequence[str] | None) -> Arguments:
    parser = stage.parser(NAME, __doc__ or "")
    add = parser.add_argument
    add("--embeddings", type=Path, required=True, help="reference embeddings: HDF5, npz, Parquet or a table")
    add("--queries", type=Path, help="embeddings to lay over the references; made as those were")
    add("--layer", type=int, help="which layer of files that hold several")
    add("--labels", type=Path, help="table with ids and labels (default: a label column of the embeddings, if any)")
    add("--no-labels", action="store_true", help="use no labels, even if the embeddings carry some")
    add(
        "--id-column",
        default="",
        help="column of the ids, by name or number (default: id, accession, ... or the first)",
    )
    add("--label-column", default="", help="column of the labels, by name or number (default: label, class, ...)")
    add(
        "--group-column",
        default="",
        help="column that names groups of relatives, or none (default: group, cluster and protein, if there)",
    )
    add("--label-kind", choices=("auto", "class", "number"), default="auto", help="what the labels are")
    add("--methods", default="pca,umap", help="some of pca, tsne, umap, separated by commas")
    add("--standardise", action="store_true", help="scale each dimension to standard deviation 1")
    add("--metric", choices=("euclidean", "cosine"), default="euclidean", help="distance between proteins")
    add("--components", type=int, default=50, help="principal components that t-SNE and UMAP see")
    add("--perplexity", type=float, default=30.0, help="t-SNE: about how many neighbours count; reduced if too many")
    add("--neighbours", type=int, default=15, help="UMAP: neighbours of each protein; reduced if too many")
    add("--min-dist", type=float, default=0.1, help="UMAP: how close points may lie, 0 to 1")
    add("--score-neighbours", type=int, default=10, help="neighbours of the scores")
    add("--resamples", type=int, default=1000, help="bootstrap resamples and shuffles of the labels")
    add("--seed", type=int, default=42, help="equal seeds give equal results")
    add("--coordinates", type=stage.output_file, required=True, help="table of every protein's place")
    add("--figure", type=stage.output_file, help="picture (PNG)")
    add("--scores", type=stage.output_file, help="table of scores")
    add("--report", type=stage.output_file, help="report in Galaxy's markdown")
    return Arguments(**vars(parser.parse_args(argv)))


def run(argv: Sequence[str] | None) -> None:
    args = parse(argv)
    log = stage.log(NAME)
    needed = {"numpy": "1.26", "scikit-learn": "1.5", "matplotlib": "3.8", "h5py": "3.10"}
    if "tsne" in args.chosen:
        needed["openTSNE"] = "1.0"
    if "umap" in args.chosen:
        needed["umap-learn"] = "0.5.7"
    stage.require(needed)
    from plm.data.embeddings import reference_and_queries
    from plm.jobs.project.figure import projection_figure
    from plm.jobs.project.projection import project
    from plm.jobs.project.report import coordinates_table, first_lines, projection_report, scores_table

    notes: list[str] = []
    references = reference_and_queries.read_side(args.embeddings, args.layer, notes)
    queries = None
    if args.queries is not None:
        queries = reference_and_queries.read_side(args.queries, args.layer, notes)
        reference_and_queries.check_fit(references, queries, notes)
    source = reference_and_queries.attach_labels(
        references, queries, table=args.labels, id_column=args.id_column, label_column=args.label_column,
        group_column=args.group_column, wanted=not args.no_labels, notes=notes,
    )  # fmt: skip
    log.info(
        "Plan: %d references and %d queries of dimension %d, %s; labels: %s",
        len(references), 0 if queries is None else len(queries), references.description.dimension,
        ", ".join(args.chosen), source or "none",
    )  # fmt: skip
    with stage.Outputs() as outputs:
        settings = _settings(args)
        made = project(
            references.matrix, None if queries is None else queries.matrix, args.chosen, settings,
            lambda line: log.info("%s", line),
        )  # fmt: skip
        log.info("Scores")
        findings = _judge(args, references, queries, made, source, settings, [*notes, *made.notes])
        _write(outputs.path(args.coordinates), coordinates_table(findings))
        if args.scores:
            _write(outputs.path(args.scores), scores_table(findings))
        if args.figure:
            projection_figure(findings, outputs.path(args.figure))
        if args.report:
            shown = [name for name in ("figure", "scores", "coordinates") if getattr(args, name)]
            projection_report(findings, shown).write(outputs.path(args.report))
    for note in findings.notes:
        log.info("Note: %s", note)
    for line in first_lines(findings):
        log.info("%s", line)


def _settings(args: Arguments) -> Settings:
    from plm.jobs.project.projection import Settings

    return Settings(
        args.standardise, "cosine" if args.metric == "cosine" else "euclidean", args.components, args.perplexity,
        args.neighbours, args.min_dist, args.seed, stage.threads(),
    )  # fmt: skip


def _judge(
    args: Arguments, references: Any, queries: Any, made: Any, source: str, settings: Settings, notes: list[str]
) -> Findings:
    """Scores of every space, and what the report needs."""
    import numpy as np
    from plm.jobs.project.findings import Findings
    from plm.scoring import separation

    count = len(references)
    texts = [*references.labels, *([] if queries is None else queries.labels)]
    both = separation.read_labels(texts, args.label_kind, source)
    names = [*references.groups, *([] if queries is None else queries.groups)]
    together = np.unique(np.array(names, dtype=object).astype(str), return_inverse=True)[1].astype(np.int64)
    groups = together[:count]
    judge = separation.Judge(
        both.part(slice(0, count)), groups, args.score_neighbours, args.resamples, args.seed, args.metric == "cosine"
    )
    spaces = [(separation.FULL, made.references, made.queries)]
    spaces += [(one.method, one.references, one.queries) for one in made.projections]
    scores = []
    for name, points, others in spaces:
        scores += judge.space(name, points)
        if queries is not None:
            scores += judge.queries(name, points, others, both.part(slice(count, None)), together[count:])
        if name != separation.FULL:
            scores.append(judge.trust(name, points, made.references))
    outlook = None
    if queries is not None:
        outlook = separation.novelty(made.references, made.queries, groups, args.seed)
    return Findings(references, queries, both, made, scores, judge.why_not, source, settings, notes, outlook,
                    _grouped_by(references, len(np.unique(groups))))  # fmt: skip


def _grouped_by(references: Any, groups: int) -> str:
    """What tells relatives, with how many groups there are; empty if every protein counts as independent."""
    if groups == len(references):
        return ""
    return f"{groups:,} groups by {references.grouped_by or 'protein'}"


def _write(path: Path, lines: Any) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as handle:
        handle.writelines(f"{line}\n" for line in lines)


def main() -> None:
    stage.main(NAME, run, sys.argv[1:])


if __name__ == "__main__":
    main()
