#!/usr/bin/env python3
"""Train a classifier (or a regression) on protein embeddings, with every simpler way beside it.

Inputs: embeddings of proteins in any format that the suite reads, and their labels: a table, a column that the
embeddings carry, or one file a class. Splits, folds and groups come from the table; else they are made.
Outputs: a bundle (the best of head, sequence members and both together, with scaling, calibration, threshold and
self-test), predictions of the validation and test rows by the reloaded bundle, scores of predictor, heads and baselines
with intervals, figures, what became of every row, a report.

Example:
    python plm_train_classifier.py --embeddings proteins.h5 --labels dataset.tabular --bundle bundle.zip \\
        --predictions predictions.tabular --metrics metrics.tabular --report report.md
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plm import flags, stage
from plm.errors import UserError
from plm.telling.page import publish

if TYPE_CHECKING:
    from plm.jobs.classifier.material import Material
    from plm.jobs.classifier.training import ClassifierSettings, Trained

NAME = "plm_train_classifier"
TABLES = ("metrics", "search_history")
IMAGES = ("heads", "confusion", "curves", "search_figure")
PRESETS = {"arginator": {"width": 256, "depth": 2, "dropout": 0.2}, "small": {"width": 64, "depth": 1, "dropout": 0.1}}


class ClassifierRows(flags.ClassFiles, heading="data and task"):
    """What is learnt."""

    labels: Path | None = flags.source(
        "table with ids and labels, perhaps with split, fold, group, cluster and sequence"
    )
    target: str = flags.choice(("auto", "class", "number"), "classes or numbers")
    positive_class: str = flags.text("of two classes the one to detect (default: the last)")
    smallest_class: int = flags.whole(0, "leave out classes with fewer members; 0: none", 0)
    identity: float | None = flags.number(None, "identity of relatives (0-1) when splitting by sequence", 0.05, 1)


class ClassifierHeads(flags.Seed, heading="heads"):
    """How it is learnt."""

    head: str = flags.choice(
        ("auto", "logistic", "ridge", "neighbours", "feedforward"),
        "head of the bundle; auto: the best on the validation rows",
    )
    metric: str = flags.text("main metric (default: auroc, macro_f1 or spearman)", "auto")
    balance: str = flags.choice(("none", "weights", "sampling"), "make rare classes count as much")
    no_standardise: bool = flags.switch("take embeddings as they are")
    preset: str = flags.choice(tuple(PRESETS), "size of the feed-forward network")
    width: int | None = flags.whole(
        None, "units of its first hidden layer; each further layer has half as many", 1, 8192
    )
    depth: int | None = flags.whole(None, "hidden layers", 1, 8)
    dropout: float | None = flags.number(None, "after each hidden layer", 0, 0.95)
    learning_rate: float = flags.number(1e-3, "of AdamW (default: %(default)s)", 1e-8, 10)
    weight_decay: float = flags.number(1e-4, "of AdamW (default: %(default)s)", 0, 10)
    batch: int = flags.whole(128, "rows in a step (default: %(default)s)", 1, 10**6)
    epochs: int = flags.whole(40, "passes over the training rows at most (default: %(default)s)", 1, 10_000)
    patience: int = flags.whole(6, "epochs without a better validation score; 0: never stop early", 0, 10_000)
    select: str = flags.choice(("loss", "metric"), "validation score that chooses the epoch")
    search_trials: int = flags.whole(0, "trials of a search for the network's settings; 0: no search", 0, 10_000)
    resume_study: Path | None = flags.source("study of an earlier search to go on with")
    resamples: int = flags.resamples("bootstrap resamples; fewer for large tables")


class ClassifierOutputs(flags.TrainedBundle, flags.Reporting, heading="outputs"):
    """What is written."""

    name: str = flags.text("its name in tables and reports (default: model and head)")
    metrics: Path | None = flags.output("scores of all heads and baselines (tabular)")
    status: Path | None = flags.output("what became of every embedding and every row of labels (tabular)")
    history: Path | None = flags.output("losses and scores of the feed-forward network (tabular)")
    curves: Path | None = flags.output("the same as a figure (PNG)")
    heads: Path | None = flags.output("heads beside baselines (PNG)")
    confusion: Path | None = flags.output("confusion matrix, or predicted and true numbers (PNG)")
    search_history: Path | None = flags.output("trials of the search (tabular)")
    search_figure: Path | None = flags.output("the same, and importance (PNG)")
    study: Path | None = flags.output("the search's trials, to go on with later")


class Arguments(ClassifierRows, ClassifierHeads, flags.Combining, ClassifierOutputs):
    """The command line; see ``--help``."""

    def check(self) -> None:
        if not self.search_trials and (self.resume_study or self.study or self.search_history or self.search_figure):
            raise UserError(
                "Outputs of a search and a study to resume need a search", where="--search-trials",
                fix="Give the number of trials",
            )


def run(argv: Sequence[str] | None = None) -> None:
    args = flags.read(Arguments, NAME, __doc__, argv)
    needed = {"numpy": "1.26", "scikit-learn": "1.5", "torch": "2.6", "safetensors": "0.5", "pandas": "2.1"}
    stage.require({**needed, **({"optuna": "4.2"} if args.search_trials else {})})
    log = stage.log(NAME)
    from plm.jobs.classifier import finished as release
    from plm.jobs.classifier import predictor, training
    from plm.jobs.classifier import report as classifier_report
    from plm.jobs.classifier import training_steps as steps
    from plm.jobs.classifier.final import finish
    from plm.jobs.classifier.material import data_digest
    from plm.model import device
    from plm.model.bundles.classifier import load_classifier_bundle, write_classifier_bundle
    from plm.scoring.job_predictor import JobPredictor

    device.use_threads(stage.threads())
    with tempfile.TemporaryDirectory(prefix=f"{NAME}_") as place, stage.Outputs() as out:
        workdir = Path(place)
        material = prepare(args, workdir)
        steps.check_parts(material, log)
        sequences = predictor.sequences_of(material)
        predictor.check(sequences, args.predictor)
        settings = settle(args, material)
        steps.announce(material, args.search_trials, log)
        digest = data_digest(material)
        journal = None
        if args.search_trials:
            journal = steps.open_journal(NAME, material, settings, digest, workdir, args.resume_study)
        trained = training.train(material, settings, log, journal)
        final = finish(trained)
        built = JobPredictor(None)
        if args.predictor != "model":
            log.info("Sequence members, and their combination with the head")
            built = predictor.build(
                trained, final, sequences, log, compare=not args.without_sequences,
                forced=args.predictor == "combination",
            )
        answering = predictor.answering(trained, final, built, sequences)
        log.info("Scores and baselines")
        findings = release.judge(trained, final, answering, args.predictor)
        best = findings.assessment.best_baseline
        baseline = {
            one.name: findings.assessment.line(one.name, material.metric).value
            for one in findings.assessment.evaluation.models
            if one.baseline
        }
        name = args.name or f"{material.data.description.model or 'embeddings'}-{trained.chosen}"
        content = release.manifest(
            trained, final, answering, name=name, licence=args.licence, data_sha256=digest, baseline=baseline,
            choice=args.predictor,
        )
        bundle_path = out.path(args.bundle)
        write_classifier_bundle(
            bundle_path, content, final.head, reference=release.reference(trained, final),
            validation_scores=(answering.validation, answering.truth),
            card=release.card(
                {**content, "predictor": findings.predictor}, final.about, findings.settings[findings.chosen]
            ),
            predictor=None if built.answering is None else built.answering.predictor,
            model_validation_scores=(final.validation, final.truth),
        )
        log.info("Loading the bundle again: self-test, then the predictions of validation and test rows")
        bundle = load_classifier_bundle(bundle_path)
        log.info("Best baseline: %s", best)
        table = release.predictions(trained, bundle, answering)
        write_outputs(args, out, trained, findings, table)
        if args.study and journal is not None:
            shutil.copyfile(journal.path, out.path(args.study))
    for note in material.notes:
        log.info("Note: %s", note)
    for line in classifier_report.first_lines(findings):
        log.info("%s", line)


def prepare(args: Arguments, workdir: Path) -> Material:
    """Reads embeddings and labels and parts the rows."""
    from plm.jobs.classifier import material
    from plm.jobs.classifier.labelled_embeddings import read_labelled

    data = args.into(partial(read_labelled, args.embeddings), workdir=workdir, class_names=args.class_name)
    return args.into(partial(material.prepare, data), positive=args.positive_class, threads=stage.threads())


def settle(args: Arguments, material: Material) -> ClassifierSettings:
    from plm.jobs.classifier.training import ClassifierSettings
    from plm.training.classifiers import NetworkSettings

    size: dict[str, Any] = dict(PRESETS[args.preset])
    size |= {key: getattr(args, key) for key in size if getattr(args, key) is not None}
    network = args.into(NetworkSettings, **size, select="loss" if args.select == "loss" else material.metric)
    return ClassifierSettings(
        args.head, network, not args.no_standardise, material.metric, args.balance, args.seed, args.resamples,
        args.search_trials, stage.threads(),
    )


def write_outputs(args: Arguments, out: stage.Outputs, trained: Trained, findings: Any, predictions: Any) -> None:
    """Everything but the bundle and the study."""
    import pandas as pd
    from plm.data.tables import write_table
    from plm.jobs.classifier import report as classifier_report
    from plm.jobs.classifier import training_steps as steps
    from plm.telling import evaluation_figures, figures

    def table(frame: Any, path: Path) -> None:
        write_table(frame, out.path(path), "%.6g")

    material = trained.material
    history = pd.DataFrame(trained.history())
    searched = trained.searches
    if args.predictions:
        table(predictions, args.predictions)
    if args.metrics:
        table(classifier_report.metrics_table(findings), args.metrics)
    if args.status:
        table(steps.status_table(material), args.status)
    if args.history:
        table(history, args.history)
    if args.curves:
        figures.history_figure(history.rename(columns={"kept": "best"}), out.path(args.curves))
    if args.heads:
        classifier_report.heads_figure(findings, out.path(args.heads))
    if args.confusion:
        kind = "scatter" if material.task.target == "number" else "confusion"
        evaluation_figures.draw(kind, findings.assessment, out.path(args.confusion))
    trials = [row for one in searched for row in one.trials]
    if args.search_history:
        table(pd.DataFrame(trials), args.search_history)
    if args.search_figure:
        importance = [one.importance for one in searched]
        classifier_report.search_figure(trials, importance, material.metric, out.path(args.search_figure))
    if args.tells():
        best = "; ".join(one.settings.told() + f", weight decay {one.settings.weight_decay:.2g}" for one in searched)
        report = classifier_report.write_up(
            findings, images=[name for name in IMAGES if getattr(args, name)],
            tables=[name for name in TABLES if getattr(args, name)], best_trial=best,
        )
        publish(report, args, out, NAME)


if __name__ == "__main__":
    stage.main(NAME, run)
