"""The steps of a compression: rows that judge, the smaller bundle, its ONNX, and what each form costs."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from plm.data.label_values import understand
from plm.errors import UserError
from plm.jobs.classifier import compression, onnx_export
from plm.jobs.classifier.compression import CompressionCost, JudgedRows, labelled
from plm.jobs.classifier.finished import resamples
from plm.jobs.classifier.labelled_embeddings import read_labelled
from plm.model.bundles.classifier import (
    ClassifierBundle,
    check_embeddings,
    load_classifier_bundle,
    write_classifier_bundle,
)
from plm.scoring import metrics


@dataclass(frozen=True)
class CompressionRequest:
    """What is to be made smaller, and how it is judged; the flags of plm_compress_classifier by their names."""

    embeddings: list[Path]
    layer: int | None
    class_name: list[str]
    labels: Path | None
    id_column: str
    label_column: str
    compress: str
    prunes: bool
    prune_share: float
    tune_epochs: int
    metric: str
    most_loss: float
    force_compression: bool
    resamples: int
    seed: int


class Smaller(NamedTuple):
    """A compressed bundle, its file, its cost, why it should be refused (or empty), and the epoch it was tuned to."""

    bundle: ClassifierBundle
    path: Path
    cost: CompressionCost
    refused: str
    tuned: int


def choose_metric(request: CompressionRequest, bundle: ClassifierBundle) -> str:
    """The metric that is judged."""
    kind = bundle.task.kind
    wanted = request.metric
    if wanted == "auto" and bundle.manifest.get("selection_metric") in metrics.METRICS[kind]:
        wanted = str(bundle.manifest["selection_metric"])
    return metrics.main_metric(kind, wanted)


def read_rows(
    request: CompressionRequest, bundle: ClassifierBundle, workdir: Path, notes: list[str]
) -> tuple[JudgedRows, JudgedRows | None]:
    """Validation rows, and training rows if fine-tuning wants them."""
    data = read_labelled(
        request.embeddings, workdir=workdir, labels=request.labels, class_names=request.class_name,
        id_column=request.id_column, label_column=request.label_column, layer=request.layer,
    )
    # Labels in the form in which the bundle was trained: 1.0 is class 1, a decimal comma a point.
    reading = understand(data.labels, bundle.task.target, where=lambda row: f"{data.labels_from}, id {data.ids[row]!r}")
    data = replace(data, labels=reading.values)
    notes += [*data.notes, *check_embeddings(data.description, bundle, request.embeddings[0].name)]
    splits = data.columns.get("split", [])
    judges = [row for row in range(len(data)) if not splits or splits[row] == "valid"]
    if not judges:
        raise UserError(
            "No embedding has a label and the split 'valid'",
            where=request.labels.name if request.labels else request.embeddings[0].name,
            fix="Give the data set, or the predictions that the training wrote for its validation rows",
        )
    if not splits:
        notes.append(
            f"There is no column split: all {len(judges):,} labelled rows judge. If the classifier was trained on "
            "them, both scores are too good."
        )
    learners = [row for row in range(len(data)) if splits and splits[row] == "train"]
    if request.tune_epochs and not learners:
        raise UserError(
            "There are no training rows to fine-tune on (rows of split 'train')", where="--tune-epochs",
            fix="Give the table of the data set with its column split, or 0 epochs",
        )
    train = labelled(data, learners, bundle.task) if request.tune_epochs else None
    return labelled(data, judges, bundle.task), train


def compress(
    request: CompressionRequest, before: ClassifierBundle, valid: JudgedRows, train: JudgedRows | None, metric: str,
    path: Path, notes: list[str], log: logging.Logger,
) -> Smaller:
    """Makes the smaller bundle in the file ``path`` and judges it."""
    head, masks, tuned = before.head, {}, 0
    if request.prunes:
        masks = compression.magnitude_masks(head, request.prune_share)
        head = compression.masked(head, masks)
        if train is not None:
            head, tuned = compression.fine_tuned(
                before, head, masks, train, valid, request.tune_epochs, request.seed, lambda line: log.info("%s", line)
            )
    small = compression.packed(head, masks, int8=request.compress in ("int8", "both"))
    content, scores = compression.recalibrated(before, small, valid, notes)
    content["compressed"] = {"method": request.compress, "tuned_epochs": tuned, "from": before.name}
    content["compressed"] |= {"pruned_share": request.prune_share} if request.prunes else {}
    content["name"] = f"{before.name}-{'pruned-int8' if request.compress == 'both' else request.compress}"
    write_classifier_bundle(
        path, content, small, reference=before.reference,
        validation_scores=scores if before.predictor is None else before.validation_scores,
        card=compression.card(content, before.name), predictor=before.predictor, model_validation_scores=scores,
    )
    after = load_classifier_bundle(path)
    cost = compression.cost(before, after, valid, metric, resamples(len(valid), request.resamples), request.seed)
    refused = compression.refusal(cost, metric, request.most_loss)
    if refused and not request.force_compression:
        raise UserError(
            refused, where="--most-loss",
            fix="Compress less, fine-tune, allow more loss, or force it with --force-compression",
        )
    return Smaller(after, path, cost, refused, tuned)


def export(
    request: CompressionRequest, before: ClassifierBundle, bundle: ClassifierBundle, valid: JudgedRows, metric: str,
    path: Path, threads: int,
) -> CompressionCost:
    """Writes ONNX in the file ``path`` and checks that it answers as the bundle does; its cost against the original."""
    onnx_export.write_onnx(bundle, path)
    exported = onnx_export.OnnxClassifier(path, threads)
    worst = onnx_export.difference(bundle, exported, bundle.reference[2])
    if not worst <= onnx_export.TOLERANCE:
        raise UserError(
            f"The ONNX export answers {worst:.2g} from the bundle (tolerated: {onnx_export.TOLERANCE:g})",
            where=bundle.name, fix="Use the bundle; with numbers that large ONNX Runtime rounds differently",
        )
    count = resamples(len(valid), request.resamples)
    return compression.cost(before, bundle, valid, metric, count, request.seed, answer=exported.predict)


def measure(before: ClassifierBundle, after: ClassifierBundle, files: dict[str, Path], threads: int) -> list[Any]:
    """Bytes, weights and latency of each form that there is."""
    forms: dict[str, Any] = {"original": before.predict_model, "compressed": after.predict_model, "onnx": None}
    forms = {name: answer for name, answer in forms.items() if name in files}
    if "onnx" in files:
        forms["onnx"] = onnx_export.OnnxClassifier(files["onnx"], threads).predict
    times = compression.latencies(forms, before.reference[2])
    return [
        compression.measured(name, before if name == "original" else after, files[name], times[name]) for name in forms
    ]
