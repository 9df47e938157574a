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

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plm import flags, stage
from plm.errors import UserError
from plm.outputs import write_lines
from plm.telling.page import publish

if TYPE_CHECKING:
    from plm.jobs.project.findings import ProjectionFindings
    from plm.jobs.project.projection import ProjectionSettings

NAME = "plm_project"
METHODS = ("pca", "tsne", "umap")


class Arguments(flags.Reporting, flags.LabelKind, flags.Seed):
    """The command line; see ``--help``."""

    embeddings: Path = flags.source("reference embeddings: HDF5, npz, Parquet or a table", required=True)
    queries: Path | None = flags.source("embeddings to lay over the references; made as those were")
    no_labels: bool = flags.switch("use no labels, even if the embeddings carry some")
    methods: str = flags.words(METHODS, "some of pca, tsne, umap, separated by commas", "pca,umap")
    standardise: bool = flags.switch("scale each dimension to standard deviation 1")
    metric: str = flags.choice(("euclidean", "cosine"), "distance between proteins")
    components: int = flags.whole(50, "principal components that t-SNE and UMAP see", 2, 1000)
    perplexity: float = flags.number(30.0, "t-SNE: about how many neighbours count; reduced if too many", 1, 1000)
    neighbours: int = flags.whole(15, "UMAP: neighbours of each protein; reduced if too many", 2, 500)
    min_dist: float = flags.number(0.1, "UMAP: how close points may lie, 0 to 1", 0, 1)
    score_neighbours: int = flags.whole(10, "neighbours of the scores", 1, 500)
    resamples: int = flags.resamples("bootstrap resamples and shuffles of the labels")
    coordinates: Path = flags.output("table of every protein's place", required=True)
    figure: Path | None = flags.output("picture (PNG)")
    scores: Path | None = flags.output("table of scores")

    def check(self) -> None:
        if self.no_labels and (self.labels or self.label_column):
            raise UserError("--no-labels and labels exclude each other", fix="Leave out one of them")
        super().check()

    @property
    def chosen(self) -> tuple[str, ...]:
        """The methods in the order of the outputs."""
        return flags.parts(self.methods)


def run(argv: Sequence[str] | None) -> None:
    args = flags.read(Arguments, NAME, __doc__, argv)
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
    )
    log.info(
        "Plan: %d references and %d queries of dimension %d, %s; labels: %s", len(references),
        0 if queries is None else len(queries), references.description.dimension, ", ".join(args.chosen),
        source or "none",
    )
    with stage.Outputs() as outputs:
        settings = _settings(args)
        made = project(
            references.matrix, None if queries is None else queries.matrix, args.chosen, settings,
            lambda line: log.info("%s", line),
        )
        log.info("Scores")
        findings = _judge(args, references, queries, made, source, settings, [*notes, *made.notes])
        write_lines(outputs.path(args.coordinates), coordinates_table(findings))
        if args.scores:
            write_lines(outputs.path(args.scores), scores_table(findings))
        if args.figure:
            projection_figure(findings, outputs.path(args.figure))
        if args.tells():
            shown = [name for name in ("figure", "scores", "coordinates") if getattr(args, name)]
            publish(projection_report(findings, shown), args, outputs, NAME)
    for note in findings.notes:
        log.info("Note: %s", note)
    for line in first_lines(findings):
        log.info("%s", line)


def _settings(args: Arguments) -> ProjectionSettings:
    from plm.jobs.project.projection import ProjectionSettings

    return ProjectionSettings(
        args.standardise, "cosine" if args.metric == "cosine" else "euclidean", args.components, args.perplexity,
        args.neighbours, args.min_dist, args.seed, stage.threads(),
    )


def _judge(
    args: Arguments, references: Any, queries: Any, made: Any, source: str, settings: ProjectionSettings,
    notes: list[str],
) -> ProjectionFindings:
    """Scores of every space, and what the report needs."""
    import numpy as np
    from plm.jobs.project.findings import ProjectionFindings
    from plm.scoring import separation

    count = len(references)
    texts = [*references.labels, *([] if queries is None else queries.labels)]
    both = separation.read_labels(texts, args.label_kind, source)
    names = [*references.groups, *([] if queries is None else queries.groups)]
    together = np.unique(np.array(names, dtype=object).astype(str), return_inverse=True)[1].astype(np.int64)
    groups = together[:count]
    judge = separation.SeparationJudge(
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
    return ProjectionFindings(
        references, queries, both, made, scores, judge.why_not, source, settings, notes, outlook,
        _grouped_by(references, len(np.unique(groups))),
    )


def _grouped_by(references: Any, groups: int) -> str:
    """What tells relatives, with how many groups there are; empty if every protein counts as independent."""
    if groups == len(references):
        return ""
    return f"{groups:,} groups by {references.grouped_by or 'protein'}"


if __name__ == "__main__":
    stage.main(NAME, run)
