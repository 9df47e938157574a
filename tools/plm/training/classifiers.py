"""Heads on embeddings: logistic and ridge regression, nearest neighbours, a feed-forward network.

Every head is fitted on training rows only; strengths and numbers of neighbours come from cross-validation within groups
on (a sample of) those rows. What comes out is a :class:`plm.model.bundles.classifier.ClassifierHead`: arrays that
answer by plain numpy, the same in this process as in whatever loads the bundle.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax

from plm.data.task import LIKELIEST, Task, Threshold
from plm.errors import UserError
from plm.model.bundles.classifier import ClassifierHead, HeadKind, nearest_rows
from plm.scoring import metrics
from plm.scoring.cross_fitting import inner_folds
from plm.scoring.metrics import ALL, LOWER_IS_BETTER, Scored

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Ints = NDArray[np.int64]

STRENGTHS = (1e-3, 1e-2, 0.1, 1.0, 10.0)
"""C of the logistic regression, the most restrained first, so that it wins ties."""
ALPHAS = (1e6, 1e5, 1e4, 1e3, 1e2, 10.0, 1.0, 0.1)
NEIGHBOURS = (20, 10, 5, 3, 1)
METRICS = ("cosine", "euclidean")
INNER_ROWS = 4000
"""Training rows beyond this are sampled for the inner cross-validation."""
NEIGHBOUR_ROWS = 20_000
"""Training rows beyond this are sampled for the nearest-neighbour head, whose bundle holds them all."""
RIDGE_GAIN = 2.0
"""Ridge scores run from -1 to 1; twice them are about logits, which calibration then scales."""
_BLOCK = 4096


@dataclass(frozen=True)
class HeadRows:
    """Training rows.

    Attributes:
        matrix: (N, D) float32 as read.
        scaled: The same at mean 0 and deviation 1 by ``mean`` and ``scale``; ``matrix`` itself if that is not wanted.
        mean: (D,) float32 of the training rows; empty if not wanted.
        scale: (D,) float32; 1 for constant columns.
        target: (N,) class numbers, or standardised numbers float64.
        groups: (N,) group of each row.
        task: Level, kind of target and classes that are predicted.
    """

    matrix: Singles
    scaled: Singles
    mean: Singles
    scale: Singles
    target: NDArray[Any]
    groups: NDArray[np.str_]
    task: Task

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """What a head stores to scale as these rows were scaled."""
        return {"mean": self.mean, "scale": self.scale} if len(self.scale) else {}

    @property
    def prior(self) -> Floats:
        """(K,) class shares, none of them 0; empty for numbers."""
        if self.task.target == "number":
            return np.zeros(0)
        counts = np.bincount(self.target, minlength=self.task.outputs) + 0.5
        return counts / counts.sum()


@dataclass
class Fitted:
    """A fitted head.

    Attributes:
        head: The classifier with its arrays.
        told: Settings of the head, in words.
        inner_score: The main metric in the inner cross-validation; NaN where there was none.
        history: Rows of a training's history (feed-forward only).
    """

    head: ClassifierHead
    told: str
    inner_score: float = float("nan")
    history: list[dict[str, Any]] = field(default_factory=list)


def make_rows(
    matrix: Singles, target: NDArray[Any], groups: Sequence[str], task: Task, *, standardise: bool = True
) -> HeadRows:
    """Training rows with their scaling, which is computed on them alone."""
    names = np.asarray(groups, dtype=object).astype(str)
    if not standardise:
        nothing = np.zeros(0, np.float32)
        return HeadRows(matrix, matrix, nothing, nothing, target, names, task)
    mean, scale = scaling(matrix)
    scaled = np.empty(matrix.shape, np.float32)
    for start in range(0, len(matrix), _BLOCK):
        np.subtract(matrix[start : start + _BLOCK], mean, out=scaled[start : start + _BLOCK])
        scaled[start : start + _BLOCK] /= scale
    return HeadRows(matrix, scaled, mean, scale, target, names, task)


def scaling(matrix: Singles) -> tuple[Singles, Singles]:
    """Mean and standard deviation of each column, (D,) float32 each; 1 is the deviation of constant columns."""
    total = np.zeros(matrix.shape[1])
    for start in range(0, len(matrix), _BLOCK):
        total += matrix[start : start + _BLOCK].sum(axis=0, dtype=np.float64)
    mean = total / len(matrix)
    squares = np.zeros(matrix.shape[1])
    for start in range(0, len(matrix), _BLOCK):
        squares += ((matrix[start : start + _BLOCK] - mean) ** 2).sum(axis=0)
    deviation = np.sqrt(squares / len(matrix))
    # Below float32's resolution of the mean a deviation is rounding, and dividing by it would blow that up.
    constant = deviation <= 1e-6 * np.maximum(np.abs(mean), 1e-30)
    return mean.astype(np.float32), np.where(constant, 1.0, deviation).astype(np.float32)


def constant_columns(matrix: Singles) -> int:
    """How many columns hold one number only."""
    low, high = matrix[0].copy(), matrix[0].copy()
    for start in range(0, len(matrix), _BLOCK):
        block = matrix[start : start + _BLOCK]
        np.minimum(low, block.min(axis=0), out=low)
        np.maximum(high, block.max(axis=0), out=high)
    return int((low == high).sum())


def row_weights(rows: HeadRows, balanced: bool) -> Floats | None:
    """(N,) weights that give every class that occurs the same total, mean 1; None if not wanted."""
    if not balanced or rows.task.target == "number":
        return None
    counts = np.bincount(rows.target, minlength=rows.task.outputs)
    present = int((counts > 0).sum())
    weights: Floats = (len(rows.target) / (present * np.maximum(counts, 1)))[rows.target]
    return weights


# ------------------------------------------------------------------------------------------------------------- scores


def quality(scores: Floats, target: NDArray[Any], task: Task, metric: str) -> float:
    """One metric of logits (N, K) or standardised numbers (N, 1); class numbers are called by the largest logit."""
    if task.target == "number":
        return metrics.score(Scored("number", target, scores[:, 0], np.zeros(len(target), np.int64)))[metric, ALL]
    if metric == "loss":
        return float(-log_softmax(scores, axis=1)[np.arange(len(target)), target].mean())
    if metric == "macro_f1" and not task.binary:
        # As metrics.score has it. This is asked for after every epoch; all its other scores cost more than the epoch.
        table = np.bincount(target * task.outputs + scores.argmax(axis=1), minlength=task.outputs**2)
        table = table.reshape(task.outputs, task.outputs)
        true, called = table.sum(axis=1), table.sum(axis=0)
        return float((2 * np.diag(table)[true > 0] / (true + called)[true > 0]).mean())
    return metrics.score(scored(softmax(scores, axis=1), target, task, None))[metric, ALL]


def scored(probabilities: Floats, target: NDArray[Any], task: Task, threshold: Threshold | None) -> Scored:
    """Probabilities (N, K) in the form that metrics take; the positive one of two classes becomes the last.

    Args:
        probabilities: (N, K) probabilities in the order of ``task.classes``.
        target: (N,) class numbers in that order.
        task: Level, kind of target and classes that are predicted.
        threshold: What calls are made by; None: the likeliest class is called.
    """
    if not task.binary:
        calls = task.called(probabilities, LIKELIEST if threshold is None else threshold)
        return Scored("multiclass", target, probabilities, calls, task.classes)
    positive = task.positive_index
    order = [1 - positive, positive]
    ordered = probabilities[:, order]
    calls = ordered.argmax(axis=1)
    if threshold is not None:
        calls = (task.called(probabilities, threshold) == positive).astype(np.int64)
    names = (task.classes[order[0]], task.classes[order[1]])
    return Scored("binary", (target == positive).astype(np.int64), ordered, calls, names)


def better(metric: str) -> float:
    """1 if more of the metric is better, else -1."""
    return -1.0 if metric == "loss" or metric in LOWER_IS_BETTER else 1.0


@dataclass(frozen=True)
class _Inner:
    """A sample of the training rows and its folds."""

    matrix: Singles
    scaled: Singles
    target: NDArray[Any]
    folds: list[tuple[Ints, Ints]]
    weights: Floats | None


def inner_rows(rows: HeadRows, seed: int, weights: Floats | None) -> _Inner:
    """At most ``INNER_ROWS`` training rows with up to five folds that never part a group."""
    count = len(rows.target)
    chosen = np.arange(count)
    if count > INNER_ROWS:
        chosen = np.sort(np.random.default_rng(seed).permutation(count)[:INNER_ROWS])
    target = rows.target[chosen]
    folds = inner_folds(target, rows.groups[chosen], rows.task.target == "class", seed)
    folds = [(learn, judge) for learn, judge in folds if len(np.unique(target[learn])) > 1]
    if rows.task.target == "class" and rows.task.outputs > MANY_CLASSES:
        folds = folds[:1]
    scaled = rows.scaled[chosen]
    matrix = scaled if rows.scaled is rows.matrix else rows.matrix[chosen]
    return _Inner(matrix, scaled, rows.target[chosen], folds, None if weights is None else weights[chosen])


MANY_CLASSES = 100
"""Beyond so many classes settings are chosen on one inner fold, not five: a fit takes as long as all the others."""
Answers = Callable[[Ints, Ints], list[Floats]]
"""From places to learn and to judge within the sample to the scores of each setting."""


def _choose(inner: _Inner, task: Task, metric: str, settings: int, answers: Answers) -> tuple[int, float]:
    """Number of the best setting by pooled out-of-fold scores, and its metric; the middle one without folds."""
    if not inner.folds:
        return settings // 2, float("nan")
    pooled = [np.zeros((len(inner.target), task.outputs)) for _ in range(settings)]
    judged = np.zeros(len(inner.target), bool)
    for learn, judge in inner.folds:
        judged[judge] = True
        for together, answer in zip(pooled, answers(learn, judge), strict=True):
            together[judge] = answer
    reached = np.array([quality(answer[judged], inner.target[judged], task, metric) for answer in pooled])
    signed = better(metric) * reached
    if not np.isfinite(signed).any():
        return settings // 2, float("nan")
    best = int(np.nanargmax(signed))
    return best, float(reached[best])


# -------------------------------------------------------------------------------------------------------------- linear


def fit_logistic(
    values: Singles, target: Ints, classes: int, strength: float, weights: Floats | None = None,
    start: tuple[Singles, Singles] | None = None, *, iterations: int = 500,
) -> tuple[Singles, Singles]:
    """Multinomial logistic regression with an L2 penalty: the minimum of scikit-learn's, computed in float32.

    scikit-learn turns the embeddings into float64 in every iteration; for 60,000 of them that costs minutes.

    Args:
        values: (N, D) float32 features.
        target: (N,) class numbers.
        classes: Number of classes, K.
        strength: C: the loss's weight against half the squared length of the coefficients.
        weights: (N,) weights of the rows.
        start: Coefficients and intercepts to start from.
        iterations: Most iterations of L-BFGS.

    Returns:
        Coefficients (K, D) and intercepts (K,).
    """
    import torch
    from scipy.optimize import minimize

    count, dimension = values.shape
    weight = np.ones(count) if weights is None else weights
    total = float(weight.sum())
    penalty = 1 / (strength * total)
    # Products of tall with thin matrices: torch's take a tenth of the time of numpy's on a busy machine.
    seen, truth = torch.from_numpy(np.ascontiguousarray(values)), torch.from_numpy(target)
    share = torch.from_numpy((weight / total).astype(np.float32))
    rows = torch.arange(count)

    def loss(packed: Floats) -> tuple[float, Floats]:
        both = packed.reshape(classes, dimension + 1)
        coefficients = both[:, :dimension]
        single = torch.from_numpy(both.astype(np.float32))
        scores = torch.log_softmax(seen @ single[:, :dimension].T + single[:, dimension], dim=1)
        value = -float((scores[rows, truth] * share).sum(dtype=torch.float64))
        gap = torch.exp(scores)
        gap[rows, truth] -= 1
        gap *= share[:, None]
        slope = np.empty_like(both)
        slope[:, :dimension] = (gap.T @ seen).numpy() + penalty * coefficients
        slope[:, dimension] = gap.sum(dim=0).numpy()
        return value + 0.5 * penalty * float((coefficients**2).sum()), slope.ravel()

    first = np.zeros((classes, dimension + 1))
    if start is not None:
        first[:, :dimension], first[:, dimension] = start
    # In float32 the loss is known to about 1e-7 of itself: asking for more would only wander.
    options = {"maxiter": iterations, "gtol": 1e-5, "ftol": 1e-7, "maxls": 30}
    solution = minimize(loss, first.ravel(), jac=True, method="L-BFGS-B", options=options).x
    both = solution.reshape(classes, dimension + 1).astype(np.float32)
    return np.ascontiguousarray(both[:, :dimension]), np.ascontiguousarray(both[:, dimension])


def logistic(rows: HeadRows, metric: str, seed: int, *, balanced: bool = False) -> Fitted:
    """Logistic regression; C by inner cross-validation."""
    weights = row_weights(rows, balanced)
    inner = inner_rows(rows, seed, weights)
    classes = rows.task.outputs

    def answers(learn: Ints, judge: Ints) -> list[Floats]:
        seen, target = inner.scaled[learn], inner.target[learn]
        own = None if inner.weights is None else inner.weights[learn]
        outputs: list[Floats] = []
        fitted: tuple[Singles, Singles] | None = None
        for strength in STRENGTHS:
            fitted = fit_logistic(seen, target, classes, strength, own, fitted, iterations=100)
            outputs.append((inner.scaled[judge] @ fitted[0].T + fitted[1]).astype(np.float64))
        return outputs

    best, reached = _choose(inner, rows.task, metric, len(STRENGTHS), answers)
    strength = STRENGTHS[best]
    weight, bias = fit_logistic(rows.scaled, rows.target, classes, strength, weights)
    head = ClassifierHead(
        "logistic", {"weight": weight, "bias": bias, **rows.arrays}, {"C": strength, "balanced": balanced}
    )
    return Fitted(head, f"C={strength:g}", reached)


def fit_ridge(
    values: Singles, target: Singles, alphas: Sequence[float], weights: Floats | None = None
) -> list[tuple[Singles, Singles]]:
    """Ridge regression for several penalties at once, which share the product of the embeddings with themselves.

    The minimum of scikit-learn's, which would compute that product anew for each penalty.

    Args:
        values: (N, D) float32 features.
        target: (N, K) float32 numbers to predict.
        alphas: Penalties (L2) to fit with.
        weights: (N,) weights of the rows.

    Returns:
        Coefficients (K, D) and intercepts (K,) for each penalty.
    """
    import torch

    count, dimension = values.shape
    weight = np.ones(count) if weights is None else weights
    total = weight.sum()
    mean = np.zeros(dimension)
    for start in range(0, count, _BLOCK):
        block = values[start : start + _BLOCK]
        if weights is not None:
            block = block * weight[start : start + _BLOCK, None].astype(np.float32)
        mean += block.sum(axis=0, dtype=np.float64)
    mean /= total
    center = (weight @ target) / total
    few = count < dimension
    gram = np.zeros((count, count) if few else (dimension, dimension))
    right = np.zeros((dimension, target.shape[1]))
    root = np.sqrt(weight)[:, None].astype(np.float32)
    rows = np.zeros((count, dimension), np.float32) if few else None
    for start in range(0, count, _BLOCK):
        part = slice(start, start + _BLOCK)
        seen = torch.from_numpy((values[part] - mean.astype(np.float32)) * root[part])
        answers = ((target[part] - center) * root[part]).astype(np.float32)
        right += (seen.T @ torch.from_numpy(answers)).numpy()
        if rows is None:
            gram += (seen.T @ seen).numpy()
        else:
            rows[part] = seen.numpy()
    if rows is not None:
        gram[:] = (torch.from_numpy(rows) @ torch.from_numpy(rows).T).numpy()
        right = ((target - center) * root).astype(np.float64)
    fitted = []
    for alpha in alphas:
        penalised = torch.from_numpy(gram).clone()
        penalised.diagonal().add_(alpha)
        solution = torch.cholesky_solve(torch.from_numpy(right), torch.linalg.cholesky(penalised)).numpy()
        weight_of = (solution if rows is None else rows.T @ solution).T
        fitted.append((weight_of.astype(np.float32), (center - weight_of @ mean).astype(np.float32)))
    return fitted


def ridge(rows: HeadRows, metric: str, seed: int, *, balanced: bool = False) -> Fitted:
    """Ridge regression on -1 and 1 for each class, or on numbers; penalty and scaling by inner cross-validation."""
    task = rows.task
    weights = row_weights(rows, balanced)
    inner = inner_rows(rows, seed, weights)
    whole = _ridge_target(rows.target, task)
    sampled = _ridge_target(inner.target, task)
    scalings = (True, False) if rows.arrays else (False,)

    def answers(learn: Ints, judge: Ints) -> list[Floats]:
        own = None if inner.weights is None else inner.weights[learn]
        outputs: list[Floats] = []
        for scaled in scalings:
            values = inner.scaled if scaled else inner.matrix
            for weight, bias in fit_ridge(values[learn], sampled[learn], ALPHAS, own):
                outputs.append((values[judge] @ weight.T + bias).astype(np.float64))
        return outputs

    best, reached = _choose(inner, task, metric, len(ALPHAS) * len(scalings), answers)
    scaled, alpha = scalings[best // len(ALPHAS)], ALPHAS[best % len(ALPHAS)]
    [(weight, bias)] = fit_ridge(rows.scaled if scaled else rows.matrix, whole, [alpha], weights)
    if task.target == "class":
        weight, bias = RIDGE_GAIN * weight, RIDGE_GAIN * bias
    arrays: dict[str, NDArray[Any]] = {"weight": weight, "bias": bias, **(rows.arrays if scaled else {})}
    told = f"alpha={alpha:g}, scaled={'yes' if scaled else 'no'}"
    return Fitted(ClassifierHead("ridge", arrays, {"alpha": alpha, "balanced": balanced}), told, reached)


def _ridge_target(target: NDArray[Any], task: Task) -> Singles:
    if task.target == "number":
        return target.astype(np.float32)[:, None]
    hot = np.full((len(target), task.outputs), -1, np.float32)
    hot[np.arange(len(target)), target] = 1
    return hot


# ---------------------------------------------------------------------------------------------------------- neighbours


def neighbours(rows: HeadRows, metric: str, seed: int) -> Fitted:
    """The k nearest training rows; k and distance by inner cross-validation."""
    task = rows.task
    inner = inner_rows(rows, seed, None)
    settings = [(distance, k) for distance in METRICS for k in NEIGHBOURS]

    def answers(learn: Ints, judge: Ints) -> list[Floats]:
        outputs: list[Floats] = []
        target = inner.target[learn]
        for distance in METRICS:
            most = min(max(NEIGHBOURS), len(learn))
            near, _ = nearest_rows(inner.scaled[judge], inner.scaled[learn], most, cosine=distance == "cosine")
            outputs += [_votes(target[near[:, :k]], rows.prior, task) for k in NEIGHBOURS]
        return outputs

    best, reached = _choose(inner, task, metric, len(settings), answers)
    distance, k = settings[best]
    kept = np.arange(len(rows.target))
    if len(kept) > NEIGHBOUR_ROWS:
        kept = np.sort(np.random.default_rng(seed).permutation(len(kept))[:NEIGHBOUR_ROWS])
    target = rows.target[kept].astype(np.int32 if task.target == "class" else np.float32)
    most = float(np.finfo(np.float16).max)
    arrays: dict[str, NDArray[Any]] = {
        "rows": np.clip(rows.scaled[kept], -most, most).astype(np.float16),
        "targets": target,
        **rows.arrays,
    }
    head = ClassifierHead("neighbours", arrays, {"k": k, "metric": distance, "prior": rows.prior.tolist()})
    of = f" of {len(kept)} sampled rows" if len(kept) < len(rows.target) else ""
    return Fitted(head, f"k={k}, {distance}{of}", reached)


def _votes(near: NDArray[Any], prior: Floats, task: Task) -> Floats:
    if task.target == "number":
        mean: Floats = np.asarray(near, np.float64).mean(axis=1)[:, None]
        return mean
    counts = np.stack([(near == index).sum(axis=1) for index in range(task.outputs)], axis=1)
    votes: Floats = np.log((counts + prior) / (near.shape[1] + 1.0))
    return votes


# -------------------------------------------------------------------------------------------------------- feed-forward


@dataclass(frozen=True)
class NetworkSettings:
    """A feed-forward network and its training; the defaults are the preset ``arginator`` (1024-256-128-K).

    Attributes:
        width: Units of the first hidden layer; each further layer has half as many, at least 8.
        depth: Number of hidden layers.
        dropout: Share of units dropped after each hidden layer, 0-1.
        learning_rate: Learning rate of AdamW.
        weight_decay: Weight decay of AdamW.
        batch: Number of rows in a step.
        epochs: Passes over the training rows at most.
        patience: Epochs without a better validation score before training stops; 0: never.
        balance: ``none``, ``weights`` (of classes in the loss) or ``sampling`` (each class drawn equally often).
        select: Validation score that chooses the epoch: ``loss`` or the main metric.
    """

    width: int = 256
    depth: int = 2
    dropout: float = 0.2
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    batch: int = 128
    epochs: int = 40
    patience: int = 6
    balance: str = "none"
    select: str = "loss"

    @property
    def hidden(self) -> list[int]:
        """Units of each hidden layer."""
        return [max(8, self.width // 2**layer) for layer in range(self.depth)]

    def told(self) -> str:
        """In words."""
        layers = "-".join(map(str, self.hidden))
        return f"hidden {layers}, dropout {self.dropout:g}, rate {self.learning_rate:g}, batch {self.batch}"


@dataclass(frozen=True)
class ValidationRows:
    """Validation rows, as read.

    Attributes:
        matrix: (M, D).
        target: (M,) class numbers or standardised numbers.
    """

    matrix: Singles
    target: NDArray[Any]


def feedforward(
    rows: HeadRows, judge: ValidationRows | None, settings: NetworkSettings, metric: str, seed: int, *,
    stop: Callable[[int, float], bool] | None = None, say: Callable[[str], None] | None = None,
) -> Fitted:
    """Trains the network; the epoch with the best validation score is the one that is kept.

    Args:
        rows: Training rows.
        judge: Validation rows; None: train for all ``settings.epochs`` and keep the last.
        settings: Sizes of the network, and how it is trained.
        metric: The main metric, for the history and for ``settings.select`` other than ``loss``.
        seed: Seed of weights, order and dropout.
        stop: Told each epoch and its main metric; True ends the training (a search's pruning).
        say: Gets a line an epoch.
    """
    import torch
    from torch import nn
    from torch.nn import functional

    task = rows.task
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    sizes = [rows.scaled.shape[1], *settings.hidden, task.outputs]
    layers: list[nn.Module] = []
    for number, (one, other) in enumerate(itertools.pairwise(sizes)):
        layers.append(nn.Linear(one, other))
        if number < len(sizes) - 2:
            layers += [nn.ReLU(), nn.Dropout(settings.dropout)]
    network = nn.Sequential(*layers)
    values = torch.from_numpy(np.ascontiguousarray(rows.scaled))
    classes = task.target == "class"
    target = torch.from_numpy(rows.target.astype(np.int64 if classes else np.float32))
    weights = row_weights(rows, settings.balance != "none")
    drawn = None if weights is None or settings.balance != "sampling" else torch.from_numpy(weights)
    weighing = None if weights is None or drawn is not None else torch.from_numpy(weights.astype(np.float32))
    optimiser = torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    batch = min(settings.batch, len(values))
    head = _network_head(network, rows, settings)
    best, waited, head_epoch = float("-inf"), 0, 0
    history: list[dict[str, Any]] = []
    for epoch in range(1, settings.epochs + 1):
        network.train()
        if drawn is None:
            order = torch.randperm(len(values), generator=generator)
        else:
            order = torch.multinomial(drawn, len(values), replacement=True, generator=generator)
        total = 0.0
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            outputs = network(values[chosen])
            if classes:
                each = functional.cross_entropy(outputs, target[chosen], reduction="none")
            else:
                each = (outputs[:, 0] - target[chosen]) ** 2
            loss = (each if weighing is None else each * weighing[chosen]).mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            total += float(loss.detach()) * len(chosen)
        entry: dict[str, Any] = {"step": epoch * -(-len(order) // batch), "epoch": epoch}
        entry["train_loss"] = total / len(order)
        candidate = _network_head(network, rows, settings)
        if judge is None:
            head = candidate
            history.append(entry)
            continue
        answers = candidate.scores(judge.matrix)
        reached = quality(answers, judge.target, task, metric)
        entry["valid_loss"] = (
            quality(answers, judge.target, task, "loss")
            if classes
            else float(((answers[:, 0] - judge.target) ** 2).mean())
        )
        entry[f"valid_{metric}"] = reached
        entry["learning_rate"] = settings.learning_rate
        history.append(entry)
        if say is not None:
            say(f"epoch {epoch}: validation loss {entry['valid_loss']:.4f}, {metric} {reached:.4f}")
        signed = -entry["valid_loss"] if settings.select == "loss" else better(metric) * reached
        if signed > best:
            best, waited, head = signed, 0, candidate
            head_epoch = epoch
        else:
            waited += 1
        if (stop is not None and stop(epoch, reached)) or (settings.patience and waited >= settings.patience):
            break
    if judge is not None:
        if not head_epoch:
            raise UserError(
                "The feed-forward network's validation score was never a number: its training diverged",
                where="--learning-rate", fix="Give a smaller learning rate",
            )
        for entry in history:
            entry["kept"] = int(entry["epoch"] == head_epoch)
    told = {**asdict(settings), "epochs_trained": head_epoch if judge is not None else settings.epochs}
    return Fitted(ClassifierHead(head.kind, head.arrays, told), settings.told(), history=history)


def _network_head(network: Any, rows: HeadRows, settings: NetworkSettings) -> ClassifierHead:
    arrays: dict[str, NDArray[Any]] = dict(rows.arrays)
    linear = [layer for layer in network if hasattr(layer, "weight")]
    for number, layer in enumerate(linear):
        arrays[f"weight{number}"] = layer.weight.detach().numpy().copy()
        arrays[f"bias{number}"] = layer.bias.detach().numpy().copy()
    return ClassifierHead("feedforward", arrays, asdict(settings))


def refit(rows: HeadRows, head: ClassifierHead, seed: int) -> ClassifierHead:
    """A head of the same kind and settings that learns from other rows; nothing is chosen."""
    settings = head.settings
    if head.kind == "feedforward":
        network = NetworkSettings(**{one.name: settings[one.name] for one in fields(NetworkSettings)})
        network = replace(network, epochs=settings["epochs_trained"], patience=0)
        return feedforward(rows, None, network, "loss", seed).head
    if head.kind == "neighbours":
        target = rows.target.astype(np.int32 if rows.task.target == "class" else np.float32)
        near = {"k": settings["k"], "metric": settings["metric"], "prior": rows.prior.tolist()}
        return ClassifierHead("neighbours", {"rows": rows.scaled, "targets": target, **rows.arrays}, near)
    weights = row_weights(rows, settings["balanced"])
    if head.kind == "logistic":
        weight, bias = fit_logistic(rows.scaled, rows.target, rows.task.outputs, settings["C"], weights)
        return ClassifierHead("logistic", {"weight": weight, "bias": bias, **rows.arrays}, settings)
    scaled = head.standardise
    whole = _ridge_target(rows.target, rows.task)
    [(weight, bias)] = fit_ridge(rows.scaled if scaled else rows.matrix, whole, [settings["alpha"]], weights)
    if rows.task.target == "class":
        weight, bias = RIDGE_GAIN * weight, RIDGE_GAIN * bias
    return ClassifierHead("ridge", {"weight": weight, "bias": bias, **(rows.arrays if scaled else {})}, settings)


LINEAR: tuple[HeadKind, ...] = ("logistic", "ridge")
NAMES = {
    "logistic": "logistic regression",
    "ridge": "ridge regression",
    "neighbours": "nearest neighbours",
    "feedforward": "feed-forward network",
}


def kinds_for(task: Task) -> tuple[HeadKind, ...]:
    """The heads that a task can have, the simplest first."""
    if task.target == "number":
        return ("ridge", "neighbours", "feedforward")
    return ("logistic", "ridge", "neighbours", "feedforward")
