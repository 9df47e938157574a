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
from pathlib import Path

from plm import flags, stage
from plm.errors import UserError
from plm.outputs import write_lines
from plm.telling.page import publish

NAME = "plm_compress_classifier"


class Arguments(flags.Reporting, flags.ClassFiles, flags.Seed):
    """The command line; see ``--help``."""

    bundle: Path = flags.source("bundle of plm_train_classifier", required=True)
    embeddings: list[Path] = flags.like(flags.ClassFiles, "embeddings", help="embeddings that hold the validation rows")
    labels: Path | None = flags.source("table with ids, labels and split: the data set, or predictions of the training")
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
    from plm.jobs.classifier import compression_steps as steps
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
        request = args.into(steps.CompressionRequest, prunes=args.prunes)
        valid, train = steps.read_rows(request, before, Path(place), notes)
        metric = steps.choose_metric(request, before)
        log.info("Plan: %s, %s; judged by %s on %d rows", before.name, args.compress, metric, len(valid))
        after, refused, tuned = before, "", 0
        files, costs = {"original": args.bundle}, {}
        if args.compressed_bundle:
            path = out.path(args.compressed_bundle)
            after, files["compressed"], costs["compressed"], refused, tuned = steps.compress(
                request, before, valid, train, metric, path, notes, log
            )
        if args.onnx:
            if before.predictor is not None:
                notes.append(
                    "ONNX holds the head on embeddings alone; the bundle also reads sequences and combines both."
                )
            files["onnx"] = out.path(args.onnx)
            costs["onnx"] = steps.export(request, before, after, valid, metric, files["onnx"], stage.threads())
        log.info("Latency")
        measured = steps.measure(before, after, files, stage.threads())
        findings = CompressionFindings(
            args.compress, before, measured, costs, metric, args.most_loss, refused, args.prune_share, tuned,
            len(valid), compression.processor(), stage.threads(), notes,
        )
        if args.compression_table:
            write_lines(out.path(args.compression_table), compression_table(findings))
        if args.tells():
            publish(compression_report(findings, table=bool(args.compression_table)), args, out, NAME)
    for line in [*(f"Note: {note}" for note in notes), *first_lines(findings)]:
        log.info("%s", line)


if __name__ == "__main__":
    stage.main(NAME, run)
