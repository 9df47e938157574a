#!/usr/bin/env python3
"""Make a classifier on embeddings smaller (int8 weights, pruning), write it as ONNX, and measure what that costs.

Inputs: a bundle of plm_train_classifier, embeddings with labels: the rows of split "valid" judge, those of split
"train" fine-tune after pruning. Test rows are not touched.
Outputs: the compressed bundle, the classifier as ONNX (checked against the bundle), a table of bytes, latency and
metric before and after with intervals, a report. Where the metric drops by more than a bound nothing is written, unless
forced.

Example:
    python plm_compress_classifier.py --bundle bundle.zip --embeddings proteins.h5 --labels dataset.tabular \\
        --compress both --prune-share 0.5 --tune-epochs 5 --compressed-bundle small.zip --onnx classifier.onnx \\
        --compression-table compression.tsv --report report.md
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plm import flags, stage
from plm.errors import UserError

if TYPE_CHECKING:
    from plm.jobs.classifier.compression import CompressionCost, JudgedRows
    from plm.model.bundles.classifier import ClassifierBundle

NAME = "plm_compress_classifier"


class Arguments(flags.ClassFiles, flags.Seed):
    """The command line; see ``--help``."""

    bundle: Path = flags.source("bundle of plm_train_classifier", required=True)
    embeddings: list[Path] = flags.like(
        flags.ClassFiles, "embeddings", help="embeddings that hold the validation rows"
    )
    labels: Path | None = flags.source(
        "table with ids, labels and split: the data set, or predictions of the training"
    )
    compress: str = flags.choice(("none", "int8", "prune", "both"), "what to do with the weights", "int8")
    prune_share: float = flags.number(
        0.5, "share of each matrix's weights to remove (default: %(default)s)", 0.01, 0.99
    )
    tune_epochs: int = flags.whole(0, "epochs of training after pruning, on the rows of split train", 0, 1000)
    metric: str = flags.text("what is judged (default: the metric that chose the head)", "auto")
    most_loss: float = flags.number(0.01, "refuse if the metric is worse by more than this", 0)
    force_compression: bool = flags.switch("write the bundle however much the metric drops")
    resamples: int = flags.resamples("bootstrap resamples; fewer for large tables")
    compressed_bundle: Path | None = flags.output("the smaller bundle (zip)")
    onnx: Path | None = flags.output("the (compressed) classifier as ONNX")
    compression_table: Path | None = flags.output("bytes, latency and metric before and after")
    report: Path | None = flags.report()

    def check(self) -> None:
        if self.tune_epochs and not self.prunes:
            raise UserError("Fine-tuning follows pruning", where="--tune-epochs", fix="Choose --compress prune or both")
        if self.compress == "none" and (self.compressed_bundle or not self.onnx):
            raise UserError(
                "Without compression there is ONNX alone to write", where="--compress none", fix="Give --onnx"
            )
        if self.compress != "none" and not self.compressed_bundle:
            raise UserError("Where does the compressed bundle go?", fix="Give --compressed-bundle")

    @property
    def prunes(self) -> bool:
        return self.compress in ("prune", "both")


def run(argv: Sequence[str] | None = None) -> None:
    args = flags.read(Arguments, NAME, __doc__, argv)
    needed = {"numpy": "1.26", "scikit-learn": "1.5", "safetensors": "0.5"}
    needed |= {"onnx": "1.17", "onnxruntime": "1.20"} if args.onnx else {}
    stage.require(needed | ({"torch": "2.6"} if args.tune_epochs else {}))
    log = stage.log(NAME)
    from plm.jobs.classifier import compression
    from plm.jobs.classifier.compression_report import (
        CompressionFindings,
        compression_report,
        compression_table,
        first_lines,
    )
    from plm.model.bundles.classifier import load_classifier_bundle

    with tempfile.TemporaryDirectory(prefix=f"{NAME}_") as place, stage.Outputs() as out:
        notes: list[str] = []
        before = load_classifier_bundle(args.bundle)
        if before.manifest.get("compressed"):
            raise UserError("The bundle is compressed already", where=args.bundle.name, fix="Give the original bundle")
        valid, train = read_rows(args, before, Path(place), notes)
        metric = choose_metric(args, before)
        log.info("Plan: %s, %s; judged by %s on %d rows", before.name, args.compress, metric, len(valid))
        after, refused, tuned = before, "", 0
        files, costs = {"original": args.bundle}, {}
        if args.compress != "none":
            after, files["compressed"], costs["compressed"], refused, tuned = compress(
                args, before, valid, train, metric, out, notes, log
            )
        if args.onnx:
            files["onnx"], costs["onnx"] = export(args, before, after, valid, metric, out)
        log.info("Latency")
        measured = measure(before, after, files)
        found = CompressionFindings(
            args.compress, before, measured, costs, metric, args.most_loss, refused, args.prune_share, tuned,
            len(valid), compression.processor(), stage.threads(), notes,
        )  # fmt: skip
        if args.compression_table:
            out.path(args.compression_table).write_text("".join(f"{line}\n" for line in compression_table(found)))
        if args.report:
            compression_report(found, table=bool(args.compression_table)).write(out.path(args.report))
    for line in [*(f"Note: {note}" for note in notes), *first_lines(found)]:
        log.info("%s", line)


def choose_metric(args: Arguments, bundle: ClassifierBundle) -> str:
    """The metric that is judged."""
    from plm.scoring import metrics

    kind = bundle.task.kind
    wanted = args.metric
    if wanted == "auto" and bundle.manifest.get("selection_metric") in metrics.METRICS[kind]:
        wanted = str(bundle.manifest["selection_metric"])
    return metrics.main_metric(kind, wanted)


def read_rows(
    args: Arguments, bundle: ClassifierBundle, workdir: Path, notes: list[str]
) -> tuple[JudgedRows, JudgedRows | None]:
    """Validation rows, and training rows if fine-tuning wants them."""
    from plm.data.label_values import understand
    from plm.jobs.classifier.compression import labelled
    from plm.jobs.classifier.labelled_embeddings import read_labelled
    from plm.model.bundles.classifier import check_embeddings

    data = read_labelled(
        args.embeddings, workdir=workdir, labels=args.labels, class_names=args.class_name, id_column=args.id_column,
        label_column=args.label_column, layer=args.layer,
    )  # fmt: skip
    # Labels in the form in which the bundle was trained: 1.0 is class 1, a decimal comma a point.
    reading = understand(data.labels, bundle.task.target, where=lambda row: f"{data.labels_from}, id {data.ids[row]!r}")
    data = replace(data, labels=reading.values)
    notes += [*data.notes, *check_embeddings(data.description, bundle, args.embeddings[0].name)]
    splits = data.columns.get("split", [])
    judges = [row for row in range(len(data)) if not splits or splits[row] == "valid"]
    if not judges:
        raise UserError(
            "No embedding has a label and the split 'valid'",
            where=args.labels.name if args.labels else args.embeddings[0].name,
            fix="Give the data set, or the predictions that the training wrote for its validation rows",
        )
    if not splits:
        notes.append(
            f"There is no column split: all {len(judges):,} labelled rows judge. If the classifier was trained on "
            "them, both scores are too good."
        )
    learners = [row for row in range(len(data)) if splits and splits[row] == "train"]
    if args.tune_epochs and not learners:
        raise UserError(
            "There are no training rows to fine-tune on (rows of split 'train')", where="--tune-epochs",
            fix="Give the table of the data set with its column split, or 0 epochs",
        )  # fmt: skip
    train = labelled(data, learners, bundle.task) if args.tune_epochs else None
    return labelled(data, judges, bundle.task), train


def compress(
    args: Arguments, before: ClassifierBundle, valid: JudgedRows, train: JudgedRows | None, metric: str,
    out: stage.Outputs, notes: list[str], log: Any,
) -> tuple[ClassifierBundle, Path, CompressionCost, str, int]:  # fmt: skip
    """Makes the smaller bundle and judges it: bundle, its file, its cost, why it should be refused, epoch tuned to."""
    from plm.jobs.classifier import compression
    from plm.jobs.classifier.finished import resamples
    from plm.model.bundles.classifier import load_classifier_bundle, write_classifier_bundle

    head, masks, tuned = before.head, {}, 0
    if args.prunes:
        masks = compression.magnitude_masks(head, args.prune_share)
        head = compression.masked(head, masks)
        if train is not None:
            head, tuned = compression.fine_tuned(
                before, head, masks, train, valid, args.tune_epochs, args.seed, lambda line: log.info("%s", line)
            )
    small = compression.packed(head, masks, int8=args.compress in ("int8", "both"))
    content, scores = compression.recalibrated(before, small, valid, notes)
    content["compressed"] = {"method": args.compress, "tuned_epochs": tuned, "from": before.name}
    content["compressed"] |= {"pruned_share": args.prune_share} if args.prunes else {}
    content["name"] = f"{before.name}-{'pruned-int8' if args.compress == 'both' else args.compress}"
    assert args.compressed_bundle is not None
    path = out.path(args.compressed_bundle)
    write_classifier_bundle(
        path, content, small, reference=before.reference, validation_scores=scores,
        card=compression.card(content, before.name),
    )  # fmt: skip
    after = load_classifier_bundle(path)
    cost = compression.cost(before, after, valid, metric, resamples(len(valid), args.resamples), args.seed)
    refused = compression.refusal(cost, metric, args.most_loss)
    if refused and not args.force_compression:
        raise UserError(
            refused, where="--most-loss",
            fix="Compress less, fine-tune, allow more loss, or force it with --force-compression",
        )  # fmt: skip
    return after, path, cost, refused, tuned


def export(
    args: Arguments,
    before: ClassifierBundle,
    bundle: ClassifierBundle,
    valid: JudgedRows,
    metric: str,
    out: stage.Outputs,
) -> tuple[Path, CompressionCost]:
    """Writes ONNX and checks that it answers as the bundle does; its cost against the original."""
    from plm.jobs.classifier import compression, onnx_export
    from plm.jobs.classifier.finished import resamples

    assert args.onnx is not None
    path = out.path(args.onnx)
    onnx_export.write_onnx(bundle, path)
    exported = onnx_export.OnnxClassifier(path, stage.threads())
    worst = onnx_export.difference(bundle, exported, bundle.reference[2])
    if not worst <= onnx_export.TOLERANCE:
        raise UserError(
            f"The ONNX export answers {worst:.2g} from the bundle (tolerated: {onnx_export.TOLERANCE:g})",
            where=bundle.name, fix="Use the bundle; with numbers that large ONNX Runtime rounds differently",
        )  # fmt: skip
    count = resamples(len(valid), args.resamples)
    return path, compression.cost(before, bundle, valid, metric, count, args.seed, answer=exported.predict)


def measure(before: ClassifierBundle, after: ClassifierBundle, files: dict[str, Path]) -> list[Any]:
    """Bytes, weights and latency of each form that there is."""
    from plm.jobs.classifier import compression, onnx_export

    forms: dict[str, Any] = {"original": before.predict, "compressed": after.predict, "onnx": None}
    forms = {name: answer for name, answer in forms.items() if name in files}
    if "onnx" in files:
        forms["onnx"] = onnx_export.OnnxClassifier(files["onnx"], stage.threads()).predict
    times = compression.latencies(forms, before.reference[2])
    return [
        compression.measured(name, before if name == "original" else after, files[name], times[name]) for name in forms
    ]


if __name__ == "__main__":
    stage.main(NAME, run)
