#!/usr/bin/env python
"""Says how good predictions are, and whether a language model beats simple baselines beyond chance.

predictions (one or more tables with truth) [+ the dataset they come from] -> scores with 95 % intervals over groups,
figures, paired comparison, baselines, report.

Example:
  python tools/plm_evaluate.py --predictions predictions.tabular --training dataset.tabular \\
      --metrics metrics.tabular --comparison comparison.tabular --roc roc.png --report report.md
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plm import flags, stage
from plm.errors import UserError
from plm.telling.page import publish

NAME = "plm_evaluate"
FIGURES = ("overview", "roc", "pr", "confusion", "calibration", "scores", "scatter", "residuals")
_METRICS = (
    "auroc auprc mcc f1 sensitivity specificity precision accuracy balanced_accuracy brier ece macro_f1 macro_auroc"
)
_METRICS += " macro_auprc macro_precision top5_accuracy top10_accuracy spearman pearson rmse mae r2"


def figure(name: str) -> Any:
    """The flag of a figure."""
    return flags.output(f"output figure (PNG): {name}")


class Arguments(flags.Reporting):
    """The command line; see ``--help``."""

    predictions: list[Path] = flags.source("predictions tables with truth", several=True, again=True, required=True)
    name: list[str] = flags.text("what to call the model of each table; repeat in the same order", again=True)
    training: Path | None = flags.source("the dataset of the predictions, for baselines and identity to training")
    task: str = flags.choice(("auto", "class", "number"), "what is predicted")
    splits: str = flags.words(("test", "valid", "train"), "splits to evaluate, comma-separated (default: test)", "test")
    positive_class: str = flags.text("positive class of a two-class task (default: the last in order)")
    main_metric: str = flags.choice(("auto", *_METRICS.split()), "metric that models are compared by")
    window: int = flags.whole(33, "residues around a site that baselines see (default: 33)")
    identity_bins: str = flags.text("upper ends of the identity strata in percent (default: 30,50)", "30,50")
    resamples: int = flags.whole(
        1000, "bootstrap resamples (default: 1000)", 100, wrong="{} is too few for a 95 % interval",
        fix="Give at least 100",
    )
    baseline_rows: int = flags.whole(
        20000, "training rows the baselines see at most (default: 20000)", 50, wrong="{} is too few",
        fix="Give at least 50",
    )
    seed: int = flags.seed("random seed (default: 42)")
    unfinished: bool = flags.switch("say in the report that training was cut short")
    metrics: Path | None = flags.output("output table: metrics")
    comparison: Path | None = flags.output("output table: comparison")
    baseline_predictions: Path | None = flags.output("output table: baseline predictions")
    overview: Path | None = figure("overview")
    roc: Path | None = figure("roc")
    pr: Path | None = figure("pr")
    confusion: Path | None = figure("confusion")
    calibration: Path | None = figure("calibration")
    scores: Path | None = figure("scores")
    scatter: Path | None = figure("scatter")
    residuals: Path | None = figure("residuals")

    def check(self) -> None:
        if self.window < 3 or self.window % 2 == 0:
            raise UserError(f"--window {self.window} must be odd, so that the site is its centre", fix="Give e.g. 33")
        if self.baseline_predictions and not self.training:
            raise UserError("--baseline-predictions needs the training table", fix="Give --training")
        _ = self.bins

    @property
    def bins(self) -> tuple[float, ...]:
        """Upper ends of the identity strata in percent."""
        try:
            bins = tuple(float(part) for part in self.identity_bins.split(","))
        except ValueError:
            bins = ()
        if not bins or list(bins) != sorted(set(bins)) or not all(0 < value < 100 for value in bins):
            raise UserError(
                f"--identity-bins {self.identity_bins!r} are no ascending percentages below 100", fix="Give e.g. 30,50"
            )
        return bins

    def figures(self) -> dict[str, Path]:
        """The figures asked for."""
        return {figure: path for figure in FIGURES if (path := getattr(self, figure)) is not None}


def run(argv: Sequence[str] | None) -> None:
    args = flags.read(Arguments, NAME, __doc__, argv)
    stage.require({"scikit-learn": "1.5", "pandas": "2.1", "matplotlib": "3.8"})
    from plm.data.tables import write_table
    from plm.jobs.evaluate.baseline_rows import answers_table
    from plm.jobs.evaluate.beside import Beside, ask_baselines, leaking_from, with_baselines
    from plm.scoring import assessment, metrics, predictions
    from plm.telling import evaluation_figures, evaluation_report
    from plm.wording import counted

    log = stage.log(NAME)
    tables = [(path.name, predictions.read_predictions(path)) for path in args.predictions]
    evaluation = predictions.gather(
        tables, args.name, splits=flags.parts(args.splits), positive=args.positive_class, unfinished=args.unfinished
    )
    _check_task(args, evaluation.kind)
    metric = metrics.main_metric(evaluation.kind, args.main_metric, len(evaluation.models[0].scored.classes))
    log.info("%d rows (%s), %s task, main metric %s", len(evaluation.rows), evaluation.splits, evaluation.kind, metric)
    notes: list[str] = []
    if unlabelled := sum(predictions.without_truth(frame) for _, frame in tables):
        notes.append(f"{counted(unlabelled, 'row')} without a truth in the column label: not judged")
        log.info("%s", notes[0])
    beside, leaking = Beside(), None
    if args.training is not None:
        beside = ask_baselines(
            args.training, evaluation, metric, window=args.window, seed=args.seed, most_rows=args.baseline_rows,
            threads=stage.threads(), log=log,
        )
        leaking = leaking_from(args.training, evaluation, stage.threads())
        evaluation = with_baselines(evaluation, beside.answers)
    assessed = assessment.assess(
        evaluation, metric, best_baseline=beside.best, identity=beside.identity, identity_bins=args.bins,
        leaking=leaking, resamples=args.resamples, seed=args.seed,
    )
    with stage.Outputs() as out:
        if args.metrics:
            write_table(assessed.metrics_table(), out.path(args.metrics))
        if args.comparison:
            write_table(assessed.comparison_table(), out.path(args.comparison))
        if args.baseline_predictions:
            write_table(answers_table(evaluation, beside.answers), out.path(args.baseline_predictions))
        for figure, path in args.figures().items():
            evaluation_figures.draw(figure, assessed, out.path(path))
        if args.tells():
            told = [(one.name, one.about, one.setting, one.inner_score) for one in beside.answers]
            report = evaluation_report.write_up(
                assessed, figures=list(args.figures()), with_comparison=args.comparison is not None,
                with_metrics=args.metrics is not None, baselines=told, notes=[*notes, *beside.notes],
                resamples=args.resamples, training_rows=beside.training_rows,
            )
            publish(report, args, out, NAME)
    for line in evaluation_report.rows_told(assessed):
        log.info("%s", line)
    for model in evaluation.models:
        got = assessed.line(model.name, metric)
        value = "undefined" if got.value != got.value else f"{got.value:.3f}"
        log.info("%s: %s %s%s", model.name, metric, value, assessment.interval_text(got.low, got.high))
    for name in (model.name for model in evaluation.models if not model.finished):
        log.info("UNFINISHED: the training of %s was cut short", name)
    log.info("%s", assessed.verdict())
    if assessed.leaking is not None:
        log.info("%s", assessed.leakage())


def _check_task(args: Arguments, kind: str) -> None:
    target = "number" if kind == "number" else "class"
    if args.task not in ("auto", target):
        what = "numbers (column value)" if target == "number" else "class probabilities (columns p_<class>)"
        raise UserError(f"The predictions are {what}, not what --task {args.task} says", fix=f"Choose {target}")
    for figure in args.figures():
        if figure != "overview" and (figure in ("scatter", "residuals")) != (target == "number"):
            raise UserError(f"--{figure} is no figure of a task whose target is a {target}", fix="Leave it out")


if __name__ == "__main__":
    stage.main(NAME, run)
