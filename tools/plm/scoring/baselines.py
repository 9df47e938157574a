"""What a language model must beat: the constant answer, composition, one-hot or dipeptides, the nearest neighbour.

Every baseline is fitted on training rows only. Its setting is chosen by cross-validation within groups on those rows,
and that inner score, not a test score, says which baseline is the best. With folds, each fold's rows get the answer of
baselines fitted on the other folds.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from plm.data import homology
from plm.data.windows import window as cut_window
from plm.errors import UserError
from plm.scoring import calibration
from plm.scoring.metrics import ALL, LOWER_IS_BETTER, Floats, Ints, Scored, score
from plm.scoring.quiet_threads import one_thread

RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
GAP = "-"
LONGEST_ONE_HOT = 400
INNER_FOLDS, FEWER_FOLDS, _MANY_ANSWERS = 5, 3, 40_000
INNER_ROWS = 4000
NEIGHBOURS = (1, 3, 5, 10, 20)
_SMOOTHING = 0.01  # weight of the class frequencies beside the neighbours' identities
Setting = dict[str, Any]


@dataclass(frozen=True)
class BaselineExamples:
    """Rows to learn from or to answer.

    Attributes:
        texts: A window of one width around each site (``-`` beyond the protein's ends), or the whole sequence.
        target: (N,) class indices or numbers.
        groups: (N,) group of each row.
        aligned: True if the texts have one length and equal places correspond: one-hot makes sense.
    """

    texts: list[str]
    target: NDArray[np.float64] | Ints
    groups: NDArray[np.str_]
    aligned: bool

    def rows(self, chosen: NDArray[np.int64]) -> BaselineExamples:
        """The same for some of the rows."""
        return BaselineExamples(
            [self.texts[row] for row in chosen], self.target[chosen], self.groups[chosen], self.aligned
        )


@dataclass(frozen=True)
class Answer:
    """What one baseline said about the evaluated rows.

    Attributes:
        name: Name of the baseline in tables and figures.
        about: Sentence on how the baseline works.
        setting: The setting that inner cross-validation chose.
        inner_score: Its main metric in the inner cross-validation; NaN if there could be none.
        scores: (M, K) probabilities or (M,) numbers.
        calls: (M,) class indices (threshold of a binary task chosen in the inner cross-validation).
    """

    name: str
    about: str
    setting: str
    inner_score: float
    scores: Floats
    calls: Ints


class Baseline(Protocol):
    """One kind of baseline."""

    name: str
    about: str
    settings: tuple[Setting, ...]

    def represent(self, texts: Sequence[str]) -> Any:
        """What the baseline sees of each text; indexable by an integer array."""

    def predict(
        self, seen: Any, target: NDArray[Any], new: Any, settings: Sequence[Setting], classes: int
    ) -> list[Floats]:
        """Answers (M, K) or (M,) for ``new`` after learning from ``seen``, one array a setting."""


def window_text(sequence: str, position0: int, width: int) -> str:
    """The window of ``width`` residues around a site, with ``-`` beyond the protein's ends."""
    cut, place = cut_window(sequence, position0, width)
    left = width // 2 - place
    return GAP * left + cut + GAP * (width - left - len(cut))


def composition(texts: Sequence[str]) -> Floats:
    """(N, 20) share of each amino acid among the residues."""
    counts = np.array([[text.count(residue) for residue in RESIDUES] for text in texts], dtype=np.float64)
    lengths = np.array([len(text) - text.count(GAP) for text in texts], dtype=np.float64)
    return counts / np.maximum(lengths, 1)[:, None]


def one_hot(texts: Sequence[str]) -> Floats:
    """(N, L * 20) residue at each place; X and places beyond the ends are all zero."""
    code = np.full(256, len(RESIDUES), dtype=np.int64)
    code[[ord(residue) for residue in RESIDUES]] = np.arange(len(RESIDUES))
    places = np.stack([code[np.frombuffer(text.encode("ascii"), dtype=np.uint8)] for text in texts])
    hot = np.eye(len(RESIDUES) + 1)[:, : len(RESIDUES)]
    return hot[places].reshape(len(texts), -1)


def dipeptides(texts: Sequence[str]) -> Floats:
    """(N, 400) share of each pair of neighbouring residues."""
    size = len(RESIDUES)
    code = np.full(256, -1, dtype=np.int64)
    code[[ord(residue) for residue in RESIDUES]] = np.arange(size)
    shares = np.zeros((len(texts), size * size))
    for row, text in enumerate(texts):
        places = code[np.frombuffer(text.encode("ascii"), dtype=np.uint8)]
        both = (places[:-1] >= 0) & (places[1:] >= 0)
        pairs = (places[:-1] * size + places[1:])[both]
        shares[row] = np.bincount(pairs, minlength=size * size) / max(len(pairs), 1)
    return shares


_MOST_ROUNDS, _FEWER_ROUNDS, _LARGE = 1000, 100, 1_000_000
"""Iterations of logistic regression: where rows x features x classes are many, scikit-learn's default of 100 and single
precision, since the last digits of a weak baseline are not worth minutes."""


class Constant:
    """Class frequencies of the training rows, or their mean."""

    name = "baseline: majority"
    about = "answers the same for every row: the class frequencies (or the mean) of the training rows"
    settings: tuple[Setting, ...] = ({},)

    def represent(self, texts: Sequence[str]) -> Any:
        return np.zeros(len(texts))

    def predict(
        self, seen: Any, target: NDArray[Any], new: Any, settings: Sequence[Setting], classes: int
    ) -> list[Floats]:
        if not classes:
            return [np.full(len(new), float(np.mean(target)))]
        return [np.tile(np.bincount(target, minlength=classes) / len(target), (len(new), 1))]


class Linear:
    """Logistic regression (classes) or ridge regression (numbers) on fixed features."""

    def __init__(self, name: str, about: str, features: Any, numbers: bool, scalings: Sequence[bool]) -> None:
        self.name, self.about, self._features = name, about, features
        strengths = (100.0, 10.0, 1.0, 0.1, 0.01) if numbers else (0.1, 1.0, 10.0, 100.0)
        key = "alpha" if numbers else "C"
        # The most restrained come first, so that they win ties.
        self.settings: tuple[Setting, ...] = tuple({key: x, "scaled": s} for x in strengths for s in scalings)

    def represent(self, texts: Sequence[str]) -> Any:
        return self._features(texts)

    def predict(
        self, seen: Any, target: NDArray[Any], new: Any, settings: Sequence[Setting], classes: int
    ) -> list[Floats]:
        return [linear_model(seen, target, new, setting, classes) for setting in settings]


def linear_model(seen: Floats, target: NDArray[Any], new: Floats, setting: Setting, classes: int) -> Floats:
    """Fits one linear model and answers ``new``: (M, K) probabilities, or (M,) numbers when ``classes`` is 0.

    Args:
        seen: (N, F) training features.
        target: (N,) class indices or numbers.
        new: (M, F) features.
        setting: ``C`` or ``alpha``, and ``scaled``: each feature to mean 0 and deviation 1 on the training rows.
        classes: K, or 0 for numbers.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    steps: list[Any] = [StandardScaler()] if setting["scaled"] else []
    if not classes:
        fitted = make_pipeline(*steps, Ridge(alpha=setting["alpha"])).fit(seen, target)
        value: Floats = fitted.predict(new)
        return value
    answer = np.zeros((len(new), classes))
    if len(np.unique(target)) == 1:
        answer[:, int(target[0])] = 1
        return answer
    with warnings.catch_warnings():
        # A fit that stops at the last iteration is still a baseline; its score is judged like any other.
        warnings.simplefilter("ignore", ConvergenceWarning)
        large = classes > 2 and seen.size * classes > _LARGE
        model = LogisticRegression(C=setting["C"], max_iter=_FEWER_ROUNDS if large else _MOST_ROUNDS)
        kind = np.float32 if large else np.float64
        fitted = make_pipeline(*steps, model).fit(seen.astype(kind), target)
    answer[:, fitted.classes_.astype(int)] = fitted.predict_proba(new.astype(kind))
    return answer


class Neighbour:
    """The k most similar training rows, weighted by their identity."""

    name = "baseline: nearest neighbour"

    def __init__(self, short: bool) -> None:
        self._short = short
        measure = "identity at the best ungapped offset" if short else "share of the row's 5-mers found in the other"
        self.about = f"the k most similar training rows ({measure}), weighted by their similarity"
        self.settings: tuple[Setting, ...] = tuple({"k": k} for k in reversed(NEIGHBOURS))

    def represent(self, texts: Sequence[str]) -> Any:
        if self._short:
            return np.array([text.strip(GAP) for text in texts], dtype=object)
        from sklearn.feature_extraction.text import HashingVectorizer

        vectoriser = HashingVectorizer(
            analyzer="char", ngram_range=(5, 5), lowercase=False, binary=True, norm=None, alternate_sign=False
        )
        return vectoriser.transform(texts)

    def predict(
        self, seen: Any, target: NDArray[Any], new: Any, settings: Sequence[Setting], classes: int
    ) -> list[Floats]:
        count = new.shape[0]
        prior = np.bincount(target, minlength=classes) / len(target) if classes else np.mean(target)
        hot = np.eye(classes)[target] if classes else np.asarray(target, dtype=np.float64)
        answers = [np.zeros((count, classes) if classes else count) for _ in settings]
        for start in range(0, count, 500):
            part = slice(start, min(start + 500, count))
            similarity = self._similarity(new[part], seen)
            most = min(max(NEIGHBOURS), similarity.shape[1])
            nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :most]
            weight: Floats = np.take_along_axis(similarity, nearest, axis=1).astype(np.float64)
            for answer, setting in zip(answers, settings, strict=True):
                k = min(setting["k"], most)
                own, of = weight[:, :k], hot[nearest[:, :k]]
                total = own.sum(axis=1) + _SMOOTHING
                if classes:
                    answer[part] = ((own[:, :, None] * of).sum(axis=1) + _SMOOTHING * prior) / total[:, None]
                else:
                    answer[part] = ((own * of).sum(axis=1) + _SMOOTHING * prior) / total
        return answers

    def _similarity(self, new: Any, seen: Any) -> NDArray[np.float32]:
        if self._short:
            identity: NDArray[np.float32] = homology.identities(list(new), list(seen))
            return identity
        shared = np.asarray((new @ seen.T).todense(), dtype=np.float32)
        own = np.asarray(new.sum(axis=1), dtype=np.float32)
        share: NDArray[np.float32] = (shared / np.maximum(own, 1)).astype(np.float32)
        return share


def baselines_for(examples: BaselineExamples, numbers: bool) -> list[Baseline]:
    """The baselines that make sense for these rows."""
    model = "ridge regression" if numbers else "logistic regression"
    longest = max(map(len, examples.texts))
    baselines: list[Baseline] = [
        Constant(),
        Linear("baseline: composition", f"amino-acid shares, {model}", composition, numbers, (False, True)),
    ]
    if examples.aligned and longest <= LONGEST_ONE_HOT:
        baselines.append(Linear("baseline: one-hot", f"the residue at each place, {model}", one_hot, numbers, (False,)))
    else:
        baselines.append(
            Linear("baseline: dipeptides", f"shares of residue pairs, {model}", dipeptides, numbers, (True, False))
        )
    baselines.append(Neighbour(short=longest <= homology.LONGEST_WINDOW))
    return baselines


def answer_all(
    train: BaselineExamples, new: BaselineExamples, classes: tuple[str, ...], metric: str, *, seed: int = 42,
    most_rows: int = 20_000,
) -> list[Answer]:
    """Fits every baseline on ``train`` and answers ``new``.

    Args:
        train: Training rows.
        new: Rows to answer; their targets are not looked at.
        classes: Class names; empty for numbers.
        metric: The main metric, by which settings are chosen.
        seed: Seed of the inner folds and of the sample below.
        most_rows: Training rows beyond this are a random sample.

    Raises:
        UserError: No training rows, or training rows of a single class.
    """
    if not len(train.texts):
        raise UserError(
            "The training table has no labelled training rows for the baselines",
            fix="Give the dataset with its training rows (split train, or folds)",
        )
    if classes and len(np.unique(train.target)) < 2:
        raise UserError("The training rows of the training table are of one class only")
    generator = np.random.default_rng(seed)
    if len(train.texts) > most_rows:
        train = train.rows(np.sort(generator.permutation(len(train.texts))[:most_rows]))
    inner = train
    if len(train.texts) > INNER_ROWS:
        inner = train.rows(np.sort(generator.permutation(len(train.texts))[:INNER_ROWS]))
    many = len(inner.texts) * len(classes) > _MANY_ANSWERS
    folds = inner_folds(inner, bool(classes), seed, FEWER_FOLDS if many else INNER_FOLDS)
    answers: list[Answer] = []
    for baseline in baselines_for(train, not classes):
        seen = baseline.represent(inner.texts)
        with one_thread():
            setting, inner_score, threshold = _choose(baseline, seen, inner, folds, classes, metric)
            whole = seen if inner is train else baseline.represent(train.texts)
            [scores] = baseline.predict(whole, train.target, baseline.represent(new.texts), [setting], len(classes))
        calls = _calls(scores, classes, threshold)
        told = ", ".join(f"{key}={_told(value)}" for key, value in setting.items())
        answers.append(Answer(baseline.name, baseline.about, told, inner_score, scores, calls))
    return answers


def inner_folds(rows: BaselineExamples, stratify: bool, seed: int, most: int = INNER_FOLDS) -> list[tuple[Ints, Ints]]:
    """Up to ``most`` folds that never part a group, stratified by class if asked; none for a single group."""
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    count = min(most, len(np.unique(rows.groups)))
    if count < 2:
        return []
    blank = np.zeros(len(rows.texts))
    kind = StratifiedGroupKFold if stratify else GroupKFold
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class with fewer rows than folds is said by the scores
        return list(kind(count, shuffle=True, random_state=seed).split(blank, rows.target, rows.groups))


def _choose(
    baseline: Baseline, seen: Any, rows: BaselineExamples, folds: list[tuple[Ints, Ints]], classes: tuple[str, ...],
    metric: str,
) -> tuple[Setting, float, float]:
    """The best setting by pooled out-of-fold answers, its score and the threshold they give."""
    default = baseline.settings[len(baseline.settings) // 2]
    if not folds:
        return default, float("nan"), 0.5
    shape = (len(rows.texts), len(classes)) if classes else (len(rows.texts),)
    pooled = [np.zeros(shape) for _ in baseline.settings]
    for learn, judge in folds:
        answers = baseline.predict(seen[learn], rows.target[learn], seen[judge], baseline.settings, len(classes))
        for together, answer in zip(pooled, answers, strict=True):
            together[judge] = answer
    thresholds = [_threshold(answer, rows.target, classes) for answer in pooled]
    quality = []
    for answer, threshold in zip(pooled, thresholds, strict=True):
        kind = ("binary" if len(classes) == 2 else "multiclass") if classes else "number"
        scored = Scored(kind, rows.target, answer, _calls(answer, classes, threshold), classes)
        quality.append(score(scored)[metric, ALL])
    signed = np.array(quality) * (-1 if metric in LOWER_IS_BETTER else 1)
    if not np.isfinite(signed).any():
        return default, float("nan"), 0.5
    best = int(np.nanargmax(signed))
    return baseline.settings[best], float(quality[best]), thresholds[best]


def _threshold(answer: Floats, target: NDArray[Any], classes: tuple[str, ...]) -> float:
    if len(classes) != 2:
        return 0.5
    return calibration.choose_threshold(answer[:, 1], target)


def _calls(scores: Floats, classes: tuple[str, ...], threshold: float) -> Ints:
    if not classes:
        return np.zeros(len(scores), dtype=np.int64)
    if len(classes) == 2:
        return (scores[:, 1] >= threshold).astype(np.int64)
    return scores.argmax(axis=1).astype(np.int64)


def _told(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}"


def merge_folds(parts: Sequence[tuple[Ints, list[Answer]]], rows: int, classes: int) -> list[Answer]:
    """Puts the answers of the folds together; the inner score is the mean over folds, weighted by their rows."""
    merged: list[Answer] = []
    for number, first in enumerate(parts[0][1]):
        scores = np.zeros((rows, classes) if classes else rows)
        calls = np.zeros(rows, dtype=np.int64)
        for places, answers in parts:
            scores[places], calls[places] = answers[number].scores, answers[number].calls
        settings = Counter(answers[number].setting for _, answers in parts)
        setting, times = settings.most_common(1)[0]
        told = setting if times == len(parts) else f"{setting} ({times} of {len(parts)} folds)"
        inner = np.average(
            [answers[number].inner_score for _, answers in parts], weights=[len(places) for places, _ in parts]
        )
        merged.append(Answer(first.name, first.about, told if setting else "", float(inner), scores, calls))
    return merged


def best_of(answers: Sequence[Answer], metric: str) -> Answer:
    """The best baseline by its inner score, never by the evaluated rows; composition where no inner score exists."""
    signed = np.array([answer.inner_score for answer in answers]) * (-1 if metric in LOWER_IS_BETTER else 1)
    if not np.isfinite(signed).any():
        return answers[1]
    return answers[int(np.nanargmax(signed))]
