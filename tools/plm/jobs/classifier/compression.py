"""Smaller classifiers on embeddings, and what that costs: int8 weights, magnitude pruning, both.

* int8: each row of a weight matrix is stored as whole numbers from -127 to 127 and one scale (symmetric, one scale an
  output unit). They are multiplied out on loading: the file is about four times smaller, answers take as long.
* Pruning: of each weight matrix the share of the smallest weights is set to zero and not stored; a bit for each weight
  says which (Han and others 2015, arXiv:1506.02626). A few epochs of training with the zeros held may follow.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from plm.data.task import Task, Threshold, threshold_fields
from plm.errors import UserError
from plm.model.bundles.classifier import ClassifierBundle, ClassifierHead
from plm.scoring import calibration, intervals, metrics
from plm.scoring.comparison import Comparison, compare
from plm.scoring.metrics import ALL, LOWER_IS_BETTER, Scored
from plm.training import classifiers, few_rows

Method = Literal["none", "int8", "prune", "both"]
METHODS: tuple[Method, ...] = ("none", "int8", "prune", "both")
BATCHES = (1, 256)
"""Rows of the batches that are timed."""
REPEATS = 31
_LARGEST = 127
_SAME = 1e-4
Floats = NDArray[np.float64]
Masks = Mapping[str, NDArray[np.bool_]]


@dataclass(frozen=True)
class JudgedRows:
    """Labelled rows.

    Attributes:
        matrix: (N, D) float32 embeddings.
        target: (N,) class numbers in the order of the bundle's classes, or numbers.
        groups: Group of relatives of each row, N names.
    """

    matrix: NDArray[np.float32]
    target: NDArray[Any]
    groups: list[str]

    def __len__(self) -> int:
        return len(self.matrix)


def weights_of(head: ClassifierHead) -> list[str]:
    """Names of the arrays that are compressed."""
    if head.kind == "neighbours":
        return ["rows"]
    return [name for name in head.arrays if name.startswith("weight") and "." not in name]


def magnitude_masks(head: ClassifierHead, share: float) -> dict[str, NDArray[np.bool_]]:
    """Which weights stay when ``share`` (0-1) of each matrix, the smallest, goes.

    Args:
        head: Classifier head with float32 arrays.
        share: Share of each matrix's weights that go, 0-1.

    Raises:
        UserError: Nearest neighbours, which have no weights.
    """
    if head.kind == "neighbours":
        raise UserError("A head of nearest neighbours has no weights to prune", fix="Choose int8")
    masks = {}
    for name in weights_of(head):
        size = np.abs(head.arrays[name]).ravel()
        mask = np.ones(len(size), bool)
        mask[np.argsort(size, kind="stable")[: round(share * len(size))]] = False
        masks[name] = mask.reshape(head.arrays[name].shape)
    return masks


def masked(head: ClassifierHead, masks: Masks) -> ClassifierHead:
    """The same head with zeros where the masks say so."""
    arrays = {name: array * masks[name] if name in masks else array for name, array in head.arrays.items()}
    return ClassifierHead(head.kind, arrays, head.settings)


def packed(head: ClassifierHead, masks: Masks, *, int8: bool) -> ClassifierHead:
    """A head as it is stored; :meth:`ClassifierHead.decoded` undoes it.

    Args:
        head: Pruned head with float32 arrays.
        masks: Weights that stay (True) in each matrix; empty if none are pruned.
        int8: Store weights as whole numbers.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for name, array in head.arrays.items():
        if name in weights_of(head) and int8:
            scale = np.abs(array).max(axis=1) / np.float32(_LARGEST)
            scale = np.where(scale > 0, scale, 1).astype(np.float32)
            arrays[f"{name}.scale"] = scale
            array = np.rint(array / scale[:, None]).astype(np.int8)
        if name in masks:
            arrays[f"{name}.mask"] = np.packbits(masks[name], axis=1)
            arrays[f"{name}.columns"] = np.array([array.shape[1]], np.int64)
            array = array[masks[name]]
        arrays[name] = array
    return ClassifierHead(head.kind, arrays, head.settings)


def fine_tuned(
    bundle: ClassifierBundle, head: ClassifierHead, masks: Masks, train: JudgedRows, valid: JudgedRows, epochs: int,
    seed: int, say: Callable[[str], None],
) -> tuple[ClassifierHead, int]:
    """Trains the weights that are left; the epoch with the smallest validation loss is kept, perhaps none.

    Args:
        bundle: Bundle whose task and temperature the loss takes.
        head: Pruned head with float32 arrays.
        masks: Weights that stay (True) in each matrix; the others remain zero.
        train: Rows to learn from.
        valid: Rows that choose the epoch.
        epochs: Most passes over the training rows.
        seed: Seed of the order of rows and of dropout.
        say: Gets a line an epoch.

    Returns:
        The head, and the epoch it is of (0: untouched).
    """
    import torch
    from torch.nn import functional

    torch.manual_seed(seed)
    task, order = bundle.task, torch.Generator().manual_seed(seed)
    names = [name for name in head.arrays if name.startswith(("weight", "bias"))]
    tensors = {name: torch.tensor(head.arrays[name], requires_grad=True) for name in names}
    kept = {name: torch.from_numpy(np.asarray(masks[name], np.float32)) for name in names if name in masks}
    layers = [name.removeprefix("weight") for name in names if name.startswith("weight")]
    dropout = float(head.settings.get("dropout", 0.0))

    def answers(values: Any, training: bool) -> Any:
        for number, layer in enumerate(layers):
            values = functional.linear(values, tensors[f"weight{layer}"], tensors[f"bias{layer}"])
            if number < len(layers) - 1:
                values = functional.dropout(functional.relu(values), dropout, training)
        return values

    def loss_of(values: Any, target: Any, training: bool) -> Any:
        outputs = answers(values, training)
        if task.target == "class":
            return functional.cross_entropy(outputs / bundle.temperature, target)
        return functional.mse_loss(outputs[:, 0], target)

    def tensors_of(rows: JudgedRows) -> tuple[Any, Any]:
        numbers = rows.target if task.target == "class" else (rows.target - task.mean) / task.sd
        kind = np.int64 if task.target == "class" else np.float32
        return torch.from_numpy(head.standardised(rows.matrix)), torch.from_numpy(numbers.astype(kind))

    values, target = tensors_of(train)
    asked, truth = tensors_of(valid)
    batch = min(int(head.settings.get("batch", 128)), len(values))
    rate = 0.3 * float(head.settings.get("learning_rate", 1e-3))
    optimiser = torch.optim.AdamW(list(tensors.values()), rate, weight_decay=0.0)

    def judge() -> float:
        with torch.no_grad():
            return float(loss_of(asked, truth, False))

    best, best_epoch, best_arrays = judge(), 0, dict(head.arrays)
    say(f"before fine-tuning: validation loss {best:.4f}")
    for epoch in range(1, epochs + 1):
        places = torch.randperm(len(values), generator=order)
        for start in range(0, len(places), batch):
            chosen = places[start : start + batch]
            optimiser.zero_grad(set_to_none=True)
            loss_of(values[chosen], target[chosen], True).backward()
            optimiser.step()
            with torch.no_grad():
                for name, mask in kept.items():
                    tensors[name] *= mask
        reached = judge()
        say(f"fine-tuning, epoch {epoch}: validation loss {reached:.4f}")
        if reached < best:
            best, best_epoch = reached, epoch
            best_arrays |= {name: tensor.detach().numpy().copy() for name, tensor in tensors.items()}
    return ClassifierHead(head.kind, best_arrays, head.settings), best_epoch


# ------------------------------------------------------------------------------------------------------ what it costs


def same_rows(bundle: ClassifierBundle, rows: JudgedRows) -> bool:
    """Whether rows are the validation rows whose scores the bundle keeps, so that these may be made anew."""
    stored, truth = bundle.model_validation_scores
    step = max(1, -(-len(rows) // 20_000))
    if len(stored) != len(rows.target[::step]) or not np.allclose(truth, rows.target[::step]):
        return False
    scale = bundle.task.sd if bundle.task.target == "number" else 1.0
    return bool(np.abs(bundle.predict_model(rows.matrix[::step]) - stored).max() <= _SAME * scale)


def calibrated(
    task: Task, raw: Floats, rows: JudgedRows, before: tuple[float, Threshold], metric: str
) -> tuple[float, Threshold]:
    """Temperature and threshold for logits ``(N, K)`` of validation rows; those from ``before`` if they cannot be."""
    if task.target == "number" or len(np.unique(rows.target)) < 2:
        return before
    temperature = calibration.fit_temperature(raw, rows.target)
    probabilities = calibration.apply_temperature(raw, temperature)
    return temperature, few_rows.threshold_for(task, probabilities, rows.target, metric)


def scored(bundle: ClassifierBundle, answers: Floats, rows: JudgedRows) -> Scored:
    """Answers of a head in the form that metrics take."""
    if bundle.task.target == "number":
        return Scored("number", rows.target.astype(np.float64), answers[:, 0], np.zeros(len(rows), np.int64))
    return classifiers.scored(answers, rows.target, bundle.task, bundle.model_threshold)


@dataclass(frozen=True)
class CompressionCost:
    """What a compression costs on validation rows.

    Attributes:
        comparison: Paired comparison of the compressed bundle with the original.
        loss: Amount by which the metric is worse; negative if it is better.
        low, high: 95 % interval of that loss; NaN with too few groups.
        changed: The largest change of a probability (standardised number).
        calls: Share of rows with another call; NaN for numbers.
    """

    comparison: Comparison
    loss: float
    low: float
    high: float
    changed: float
    calls: float


def cost(
    before: ClassifierBundle, after: ClassifierBundle, rows: JudgedRows, metric: str, resamples: int, seed: int, *,
    answer: Callable[[NDArray[Any]], NDArray[Any]] | None = None,
) -> CompressionCost:
    """Compares the heads of two bundles on the same rows, by the paired bootstrap over groups.

    Args:
        before: Original bundle.
        after: Compressed bundle.
        rows: Validation rows.
        metric: Metric by which the two are compared.
        resamples: Number of bootstrap resamples.
        seed: Seed of the bootstrap.
        answer: Answers in place of ``after``, with its task and threshold.
    """
    answers = before.predict_model(rows.matrix), np.asarray((answer or after.predict_model)(rows.matrix), np.float64)
    one, other = scored(before, answers[0], rows), scored(after, answers[1], rows)
    values = metrics.score(other)[metric, ALL], metrics.score(one)[metric, ALL]
    index, count = intervals.group_index(rows.groups)
    resampled = None
    if count >= intervals.FEWEST_GROUPS:
        draws = intervals.draw_groups(count, resamples, seed)
        key = (metric, ALL)
        resampled = intervals.bootstrap(other, index, draws)[key], intervals.bootstrap(one, index, draws)[key]
    comparison = compare((after.name, before.name), metric, values, resampled)
    sign = 1.0 if metric in LOWER_IS_BETTER else -1.0
    # Adding zero makes of a negative one a positive one.
    ends = sorted((sign * comparison.low + 0.0, sign * comparison.high + 0.0))
    number = before.task.target == "number"
    changed = float(np.abs(answers[0] - answers[1]).max() / (before.task.sd if number else 1.0))
    calls = float("nan") if number else float((one.calls != other.calls).mean())
    return CompressionCost(comparison, sign * comparison.difference + 0.0, ends[0], ends[1], changed, calls)


@dataclass(frozen=True)
class MeasuredForm:
    """One form of a classifier.

    Attributes:
        name: ``original``, ``compressed``, ``onnx``.
        head_bytes: Bytes of the head's arrays; of ONNX those of the file.
        file_bytes: Bytes of the file.
        weights: Number of weights in the head's matrices.
        stored: Number of these weights that the file stores.
        milliseconds: Median time of a batch of each size of ``BATCHES``.
    """

    name: str
    head_bytes: int
    file_bytes: int
    weights: int
    stored: int
    milliseconds: tuple[float, ...]


def head_bytes(head: ClassifierHead) -> int:
    """Bytes of all arrays as stored."""
    return sum(int(array.nbytes) for array in head.arrays.values())


def latencies(
    forms: Mapping[str, Callable[[NDArray[Any]], Any]], rows: NDArray[np.float32]
) -> dict[str, tuple[float, ...]]:
    """Median milliseconds of a batch of each size, the forms timed in turn so that all see the same machine.

    Args:
        forms: Each answers for ``(N, D)`` embeddings.
        rows: Some embeddings; repeated to fill a batch.
    """
    medians: dict[str, list[float]] = {name: [] for name in forms}
    order = list(forms)
    for size in BATCHES:
        batch = np.resize(rows, (size, rows.shape[1]))
        taken: dict[str, list[float]] = {name: [] for name in forms}
        for turn in range(REPEATS + 2):
            # Whoever comes first in a turn finds other caches and threads than the next: each is first as often.
            for place in range(len(order)):
                name = order[(turn + place) % len(order)]
                answer = forms[name]
                begun = time.perf_counter()
                answer(batch)
                if turn >= 2:  # the first ones warm up
                    taken[name].append(time.perf_counter() - begun)
        for name, times in taken.items():
            medians[name].append(1000 * statistics.median(times))
    return {name: tuple(times) for name, times in medians.items()}


def processor() -> str:
    """The processor's name, as the system knows it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor() or platform.machine()


def measured(name: str, bundle: ClassifierBundle, path: Path, times: tuple[float, ...]) -> MeasuredForm:
    """What is told of one form, ``bundle`` being what answers in it."""
    weights = sum(int(bundle.head.arrays[of].size) for of in weights_of(bundle.head))
    kept = sum(int(bundle.stored.arrays[of].size) for of in weights_of(bundle.head))
    size = path.stat().st_size
    if name == "onnx":  # which stores the zeros
        return MeasuredForm(name, size, size, weights, weights, times)
    return MeasuredForm(name, head_bytes(bundle.stored), size, weights, kept, times)


def recalibrated(
    before: ClassifierBundle, small: ClassifierHead, rows: JudgedRows, notes: list[str]
) -> tuple[dict[str, Any], tuple[Floats, NDArray[Any]]]:
    """Manifest and validation scores of a compressed head.

    Temperature, threshold and scores are made anew if the rows are those that the bundle's own come from; else the
    bundle's own stay, for rows that the head was trained on would make it look surer than it is.

    Args:
        before: Original bundle.
        small: Compressed head, as stored.
        rows: Validation rows.
        notes: Gets which of the two it was.

    A predictor keeps its weights, its threshold and its own validation scores, which rest on answers of members too.

    Returns:
        The manifest, and ``(n, K)`` scores of the head with their truth.
    """
    content = {
        key: value for key, value in before.manifest.items() if key not in ("head", "files", "kind", "schema_version")
    }
    if not same_rows(before, rows):
        notes.append(
            "The rows are not the validation rows that the bundle was calibrated on: temperature, threshold and the "
            "scores behind conformal sets stay those of the original."
        )
        return content, before.model_validation_scores
    plain = ClassifierBundle(before.manifest, small, before.reference, before.validation_scores)
    raw = plain.raw(rows.matrix)
    content["temperature"], threshold = calibrated(
        before.task, raw, rows, (before.temperature, before.model_threshold),
        str(before.manifest.get("selection_metric", "macro_f1")),
    )
    if before.predictor is None:
        content |= threshold_fields(threshold)
    if about := content.get("predictor"):
        alone = {**about.get("language_model", {}), **threshold_fields(threshold)}
        content["predictor"] = {**about, "language_model": alone}
    if before.predictor is not None:
        notes.append(
            "The sequence members and the weights of the combination stay those of the original, with its threshold "
            "and the scores behind conformal sets; what is compared here is the head on embeddings alone."
        )
    again = ClassifierBundle({**before.manifest, **content}, small, before.reference, before.validation_scores)
    return content, (again.predict_model(rows.matrix), rows.target)


def labelled(data: Any, chosen: list[int], task: Task) -> JudgedRows:
    """Rows of labelled embeddings with targets as a bundle's task has them.

    Raises:
        UserError: A label is no class of the bundle, or no number.
    """
    place = {name: index for index, name in enumerate(task.classes)}
    target: list[float] = []
    for row in chosen:
        label = data.labels[row]
        try:
            target.append(place[label] if task.target == "class" else float(label))
        except (KeyError, ValueError):
            known = f"classes: {', '.join(task.classes[:8])}" if task.target == "class" else "it answers with numbers"
            raise UserError(
                f"{data.ids[row]!r} has the label {label!r}, which the bundle does not know ({known})",
                where=data.labels_from, fix="Give the labels that the bundle was trained with",
            ) from None
    names = data.columns.get("group") or data.columns.get("cluster") or [""] * len(data.ids)
    groups = [names[row] or data.ids[row] for row in chosen]
    kind = np.int64 if task.target == "class" else np.float64
    return JudgedRows(np.asarray(data.matrix[np.asarray(chosen, np.int64)]), np.array(target, kind), groups)


def refusal(cost: CompressionCost, metric: str, most_loss: float) -> str:
    """Why a compression should be refused; empty if it should not."""
    if cost.loss <= most_loss:
        return ""
    ends = "" if cost.low != cost.low else f", 95 % interval of the loss {cost.low:.4f} to {cost.high:.4f}"
    return (
        f"Compression costs {cost.loss:.4f} of {metric} on the validation rows ({cost.comparison.second_value:.4f} to "
        f"{cost.comparison.first_value:.4f}{ends}), more than the {most_loss:g} allowed"
    )


def card(content: Mapping[str, Any], original: str) -> str:
    """The compressed bundle's model card."""
    about = content["compressed"]
    share = f", {about['pruned_share']:.0%} of the weights removed" if "pruned_share" in about else ""
    tuned = f", fine-tuned for {about['tuned_epochs']} epochs" if about["tuned_epochs"] else ""
    return "\n".join([
        f"# {content['name']}: a compressed classifier of protein embeddings", "",
        f"Made of {original} by plm_compress_classifier: {about['method']}{share}{tuned}.", "",
        f"- Licence: {content.get('licence') or 'not stated'}",
        "- Scores in the manifest are those of the original.", "",
    ])
