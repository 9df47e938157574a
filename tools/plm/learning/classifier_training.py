"""From labelled embeddings to a tested classifier: parts, heads, calibration, choice, predictions, bundle.

Training rows fit the heads and their scaling; validation rows choose epoch, temperature, threshold and head; test rows
are answered once. With folds every fold has its own heads, whose answers to its rows are the out-of-fold predictions,
and the head of the bundle is fitted once more on all rows with what the folds have settled.
"""

from __future__ import annotations

import hashlib
import logging
import platform
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from plm import __version__
from plm.data import homology, records, splits
from plm.data.labelled_embeddings import Labelled
from plm.errors import UserError
from plm.evaluation import calibration, metrics, novelty
from plm.evaluation.assessment import assess
from plm.evaluation.classifier_report import Findings
from plm.evaluation.metrics import ALL
from plm.evaluation.operating_point import score_summary
from plm.evaluation.predictions import Evaluation, Model
from plm.learning import baselines, classifiers
from plm.learning.baselines import Answer
from plm.learning.classifier_search import Journal, Searched
from plm.learning.classifiers import Fitted, Judge, NetworkSettings, Rows
from plm.learning.parts import Part, parts
from plm.model.classifier_bundle import Head, HeadKind, call_classes, reference_sample
from plm.model.task import Task

if TYPE_CHECKING:
    import pandas as pd

    from plm.model.classifier_bundle import ClassifierBundle

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SHARES = (0.7, 0.15, 0.15)
"""Training, validation and test rows of splits made here."""
VALID_OF_TRAIN = 0.15
LIBRARIES = ("numpy", "scipy", "scikit-learn", "torch", "optuna", "safetensors")
FEWEST_RESAMPLES = 200
_RESAMPLED_ROWS = 2_000_000
LOUD = "RANDOM SPLIT: "


@dataclass(frozen=True)
class Settings:
    """What decides the result besides the data.

    Attributes:
        head: ``auto`` or a kind of head.
        network: The feed-forward network.
        standardise: Scale embeddings to mean 0 and deviation 1 of the training rows.
        metric: The main metric; ``auto``: AUROC, macro F1 or Spearman.
        balance: ``none``, ``weights`` or ``sampling``.
        seed: Random seed.
        resamples: Of the bootstrap.
        trials: Of the search for the network's settings; 0: none.
        threads: Processor threads.
    """

    head: str = "auto"
    network: NetworkSettings = field(default_factory=NetworkSettings)
    standardise: bool = True
    metric: str = "auto"
    balance: str = "none"
    seed: int = 42
    resamples: int = 1000
    trials: int = 0
    threads: int = 1


@dataclass(frozen=True)
class Material:
    """Labelled embeddings ready for training.

    Attributes:
        data: The rows.
        task: What is predicted; mean and sd are those of all training rows.
        target: (N,) class numbers, or numbers in units of the labels.
        parts: One, or one for each fold.
        groups: (N,) group of each row: relatives, or the row itself.
        grouped_by: What the groups are.
        metric: The main metric.
        split_by: How rows were parted, in a sentence.
        loud: What must be said first about the split; empty if nothing.
        notes: What a reader of the results should know.
    """

    data: Labelled
    task: Task
    target: NDArray[Any]
    parts: list[Part]
    groups: list[str]
    grouped_by: str
    metric: str
    split_by: str
    loud: str
    notes: list[str]

    @property
    def kind(self) -> str:
        """``binary``, ``multiclass`` or ``number``."""
        if self.task.target == "number":
            return "number"
        return "binary" if self.task.binary else "multiclass"

    @property
    def folds(self) -> bool:
        return self.parts[0].fold is not None

    def rows(self, chosen: Sequence[int], *, standardise: bool) -> Rows:
        """Training rows; numbers standardised by them."""
        index = np.asarray(chosen, np.int64)
        task, target = self.scaled_task(chosen), self.target[index]
        if task.target == "number":
            target = (target - task.mean) / task.sd
        groups = [self.groups[row] for row in chosen]
        return classifiers.make_rows(self.data.matrix[index], target, groups, task, standardise=standardise)

    def judge(self, chosen: Sequence[int], task: Task) -> Judge:
        """Validation rows, numbers standardised as ``task`` says."""
        index = np.asarray(chosen, np.int64)
        target = self.target[index]
        return Judge(self.data.matrix[index], (target - task.mean) / task.sd if task.target == "number" else target)

    def scaled_task(self, chosen: Sequence[int]) -> Task:
        """The task with mean and deviation of the numbers of some rows."""
        if self.task.target == "class":
            return self.task
        values = self.target[np.asarray(chosen, np.int64)]
        sd = float(values.std())
        if not sd > 0:
            raise UserError("All numbers of the training rows are equal", fix="Give labels that differ")
        return replace(self.task, mean=float(values.mean()), sd=sd)


# ---------------------------------------------------------------------------------------------------------- the rows


def prepare(
    data: Labelled,
    *,
    target: str = "auto",
    positive: str = "",
    metric: str = "auto",
    smallest_class: int = 0,
    identity: float | None = None,
    seed: int = 42,
    threads: int = 1,
) -> Material:
    """Settles task, groups and parts of labelled embeddings.

    Args:
        data: From :func:`plm.data.labelled_embeddings.read_labelled`; its fates are completed.
        target: ``auto``, ``class`` or ``number``.
        positive: Of two classes the one to detect; by default the last.
        metric: The main metric, or ``auto``.
        smallest_class: Classes with fewer rows are left out; 0: none is, and a class of one row is an error.
        identity: At which sequences are relatives, 0-1; None: the method's default.
        seed: Of splits made here.
        threads: For the search for relatives.

    Raises:
        UserError: One class, a class of one row, no class of the name ``positive``, splits without training or
            validation rows, fewer than three folds.
    """
    import pandas as pd

    notes = data.notes
    task = _task(data.labels, target, positive)
    if task.target == "class":
        data = _drop_small(data, smallest_class)
        if smallest_class:
            task = _task(data.labels, "class", positive)
    if data.positions is not None:
        task = replace(task, level="site")
    values = _targets(data.labels, task)
    has = {name for name, column in data.columns.items() if any(column)}
    frame = pd.DataFrame({"id": data.ids, "label": data.labels, **{name: data.columns[name] for name in has}})
    made_here = not has & {"split", "fold"}
    if {"split", "fold"} <= has:
        raise UserError("The table has both splits and folds", where="columns split and fold", fix="Leave out one")
    if not made_here:
        data, frame, values = _with_split(data, frame, values)
    groups, grouped_by = _groups(frame, data, made_here, identity, threads, notes)
    loud = ""
    if made_here:
        strata = data.labels if task.target == "class" else splits.quantile_strata(values.tolist())
        place = splits.assign(groups, strata, SHARES, seed)
        frame["split"] = [records.SPLITS[part] for part in place]
        if task.target == "class":
            _train_every_class(frame, groups, notes)
        split_by = f"made here, 70/15/15 %, no group straddles; groups: {grouped_by}"
        if grouped_by == "identical embeddings":
            loud = (
                f"{LOUD}the labels came without split, group, cluster or sequence, so near copies of training proteins "
                "are among the test proteins and the scores are too good. Split by homology with plm_preprocess."
            )
    else:
        column = "split" if "split" in has else "fold"
        split_by = f"column {column} of the table"
        if column == "split":
            _complete_valid(frame, groups, task, values, seed, notes)
    made = parts(frame, name="table of labels")
    for fate in data.fates:
        if fate.row >= 0:
            column = "split" if "split" in frame else "fold"
            fate.status = f"used: {'' if column == 'split' else 'fold '}{frame[column].iloc[fate.row]}"
    chosen = metrics.main_metric(
        "number" if task.target == "number" else "binary" if task.binary else "multiclass", metric
    )
    material = Material(data, task, values, made, groups, grouped_by, chosen, split_by, loud, notes)
    _check_parts(material)
    train = sorted({row for part in made for row in part.train})
    constant = classifiers.constant_columns(data.matrix[np.asarray(train, np.int64)])
    if constant:
        notes.append(f"{constant} of {data.matrix.shape[1]} columns of the embeddings are constant and tell nothing.")
    if constant == data.matrix.shape[1]:
        raise UserError("All embeddings are the same", fix="Check how they were made")
    return replace(material, task=material.scaled_task(train))


def _task(labels: Sequence[str], target: str, positive: str) -> Task:
    import pandas as pd

    frame = pd.DataFrame({"id": range(len(labels)), "sequence": "", "label": list(labels)})
    inferred = records.infer_task(frame, "sequence", target, "labels")
    binary = inferred.target == "class" and len(inferred.classes) == 2
    if positive and (not binary or positive not in inferred.classes):
        raise UserError(
            f"{positive!r} is not one of two classes ({', '.join(inferred.classes) or 'the labels are numbers'})",
            where="--positive-class",
            fix="Give one of the classes of a task with two",
        )
    chosen = (positive or inferred.classes[-1]) if binary else ""
    return Task("sequence", inferred.target, inferred.classes, chosen)  # type: ignore[arg-type]


def _targets(labels: Sequence[str], task: Task) -> NDArray[Any]:
    if task.target == "number":
        return np.array([float(label) for label in labels])
    place = {name: index for index, name in enumerate(task.classes)}
    return np.array([place[label] for label in labels], np.int64)


def _drop_small(data: Labelled, smallest: int) -> Labelled:
    counts = Counter(data.labels)
    if smallest:
        small = sorted(name for name, count in counts.items() if count < smallest)
        if small:
            kept = [row for row, label in enumerate(data.labels) if counts[label] >= smallest]
            if not kept:
                raise UserError(f"No class has {smallest} members", where="--smallest-class", fix="Lower it")
            data.notes.append(
                f"{len(small)} classes with fewer than {smallest} members are left out: {', '.join(small[:8])}"
                f"{' and more' if len(small) > 8 else ''}."
            )
            data = data.keep(kept, "class too small")
    else:
        single = sorted(name for name, count in counts.items() if count == 1)
        if single:
            more = f" (and {len(single) - 1} more such classes)" if len(single) > 1 else ""
            raise UserError(
                f"The class {single[0]!r} has a single member{more}: it cannot be both learned and tested",
                where=f"id {data.ids[data.labels.index(single[0])]!r}",
                fix="Give more members, merge classes, or leave small ones out with --smallest-class 2",
            )
    return data


def _with_split(
    data: Labelled, frame: pd.DataFrame, values: NDArray[Any]
) -> tuple[Labelled, pd.DataFrame, NDArray[Any]]:
    """The rows that have a split or fold."""
    column = "split" if "split" in frame else "fold"
    given = frame[column].str.strip()
    lacking = given == ""
    if lacking.any():
        kept = np.flatnonzero(~lacking.to_numpy())
        data.notes.append(f"{int(lacking.sum())} rows have no {column} and are not used.")
        data = data.keep(kept.tolist(), f"no {column}")
        frame, values = frame.iloc[kept].reset_index(drop=True), values[kept]
        given = frame[column].str.strip()
    wrong = ~given.isin(records.SPLITS) if column == "split" else ~given.str.fullmatch(r"[1-9]\d*")
    if wrong.any():
        row = int(wrong.to_numpy().argmax())
        what = "none of train, valid, test" if column == "split" else "no whole number from 1"
        raise UserError(
            f"A {column} is {what}: {given.iloc[row]!r}", where=f"table of labels, id {frame['id'].iloc[row]!r}"
        )
    frame[column] = given
    return data, frame, values


def _groups(
    frame: pd.DataFrame, data: Labelled, splitting: bool, identity: float | None, threads: int, notes: list[str]
) -> tuple[list[str], str]:
    """Group of each row and what groups are: the table's, else homology where rows are to be parted, else copies."""
    keys = [list(frame[name]) for name in ("group", "cluster", "protein") if name in frame]
    named = [name for name in ("group", "cluster", "protein") if name in frame]
    if splitting and "sequence" in frame and not {"group", "cluster"} & set(named):
        sequences = list(frame["sequence"])
        have = [(str(row), sequence) for row, sequence in enumerate(sequences) if sequence]
        method = homology.choose_method([sequence for _, sequence in have])
        clusters = homology.cluster(have, identity=identity, threads=threads)
        keys.append([clusters.get(str(row), "") for row in range(len(sequences))])
        named.append("homology")
        limit = homology.default_identity("exact" if method == "exact" else "mmseqs", identity)
        notes.append(f"Relatives: {homology.describe(method, limit, 0.8)}.")
    if splitting:
        copies = _copies(data.matrix)
        keys.append(copies)
        named.append("identical embeddings")
    if not keys:
        return list(data.ids) if data.positions is None else [f"{i}" for i in data.ids], "id"
    found = splits.joined_groups(*keys)
    return found, " and ".join(named)


def _copies(matrix: NDArray[np.float32]) -> list[str]:
    """A key that equal embeddings share."""
    return [hashlib.blake2b(row.tobytes(), digest_size=12).hexdigest() for row in matrix]


def _train_every_class(frame: pd.DataFrame, groups: Sequence[str], notes: list[str]) -> None:
    """A class whose groups all went elsewhere gets its smallest group back: what is not learned cannot be called."""
    trained = set(frame["label"][frame["split"] == "train"])
    for name in sorted(set(frame["label"]) - trained):
        sizes = Counter(group for group, label in zip(groups, frame["label"], strict=True) if label == name)
        moved = min(sizes, key=lambda group: (sizes[group], group))
        frame.loc[[group == moved for group in groups], "split"] = "train"
    judged = set(frame["label"][frame["split"] == "test"])
    missing = sorted(set(frame["label"]) - judged)
    if missing:
        notes.append(
            f"Cannot be judged, because all their proteins are relatives of each other: {', '.join(missing[:12])}"
            f"{' and more' if len(missing) > 12 else ''} (no test rows)."
        )


def _complete_valid(
    frame: pd.DataFrame, groups: Sequence[str], task: Task, values: NDArray[Any], seed: int, notes: list[str]
) -> None:
    """Takes validation rows from the training rows of a table that has none."""
    if (frame["split"] == "valid").any() or not (frame["split"] == "train").any():
        return
    train = np.flatnonzero((frame["split"] == "train").to_numpy())
    labels = frame["label"].tolist()
    strata = labels if task.target == "class" else splits.quantile_strata(values.tolist())
    place = splits.assign(
        [groups[row] for row in train.tolist()],
        [strata[row] for row in train.tolist()],
        (1 - VALID_OF_TRAIN, VALID_OF_TRAIN),
        seed,
    )
    frame.loc[train[np.asarray(place) == 1], "split"] = "valid"
    notes.append(f"The table has no validation rows: {sum(place)} of its training rows were taken, in whole groups.")


def _check_parts(material: Material) -> None:
    labels = material.data.labels
    for part in material.parts:
        if material.task.target == "number":
            continue
        trained = {labels[row] for row in part.train}
        if len(trained) < 2:
            raise UserError(
                f"All training rows are {next(iter(trained), '')!r}: one class only",
                where="training rows" if part.fold is None else f"training rows of fold {part.fold}",
                fix="Give training rows of at least two classes",
            )
        missing = sorted(set(material.task.classes) - trained)
        if missing and part.fold is None:
            raise UserError(
                f"The class {missing[0]!r} has no training rows, so it can never be called", where="column split",
                fix="Split anew with plm_preprocess, or leave the class out",
            )  # fmt: skip
    if material.folds and material.task.target == "class":
        of_fold: dict[str, set[int]] = {}
        for part in material.parts:
            for row in part.test:
                of_fold.setdefault(labels[row], set()).add(part.fold or 0)
        lonely = sorted(name for name, folds in of_fold.items() if len(folds) == 1)
        if lonely:
            material.notes.append(
                f"Cannot be judged, because all their rows are in one fold: {', '.join(lonely[:12])}"
                f"{' and more' if len(lonely) > 12 else ''}."
            )
    for part in material.parts:
        if material.task.target == "class" and len({labels[row] for row in part.valid}) < 2:
            where = "" if part.fold is None else f" of fold {part.fold}"
            material.notes.append(f"The validation rows{where} hold one class only: nothing is calibrated on them.")


def data_digest(material: Material) -> str:
    """Digest of ids, labels, parts and numbers."""
    digest = hashlib.sha256()
    data = material.data
    for row, (name, label) in enumerate(zip(data.ids, data.labels, strict=True)):
        place = "" if data.positions is None else str(data.positions[row])
        digest.update(f"{name}\t{place}\t{label}\n".encode())
    for part in material.parts:
        digest.update(repr((part.fold, part.train, part.valid, part.test)).encode())
    for start in range(0, len(data), 4096):
        digest.update(data.matrix[start : start + 4096].tobytes())
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------------------- training


@dataclass
class Member:
    """One head of one part, calibrated.

    Attributes:
        kind: Of head.
        fitted: The head.
        task: With mean and deviation of its training numbers.
        temperature: From validation rows.
        threshold: On the positive one of two classes, from validation rows.
        valid: (n, K) logits or (n, 1) numbers in units of labels of the validation rows.
        test: The same of the test rows.
        seconds: Time it took.
    """

    kind: HeadKind
    fitted: Fitted
    task: Task
    temperature: float
    threshold: float
    valid: Floats
    test: Floats
    seconds: float

    def probabilities(self, raw: Floats) -> Floats:
        """Calibrated probabilities of logits; numbers as they are."""
        if self.task.target == "number":
            return raw
        found: Floats = softmax(raw / self.temperature, axis=1)
        return found


@dataclass
class Trained:
    """All heads of all parts.

    Attributes:
        material: The rows.
        settings: As asked for.
        members: Heads by kind, one a part.
        validation: Main metric of each kind on the validation rows of all parts.
        chosen: The kind that the bundle has.
        searches: The search of each part, if there was any.
    """

    material: Material
    settings: Settings
    members: dict[HeadKind, list[Member]]
    validation: dict[HeadKind, float]
    chosen: HeadKind
    searches: list[Searched] = field(default_factory=list)

    def history(self) -> list[dict[str, Any]]:
        """The history of the feed-forward trainings."""
        return [
            {**entry, "seed": self.settings.seed, "fold": "" if part.fold is None else part.fold}
            for part, member in zip(self.material.parts, self.members["feedforward"], strict=True)
            for entry in member.fitted.history
        ]

    def test_rows(self) -> list[int]:
        """Rows that judge, part after part; validation rows if there are no test rows."""
        return [row for part in self.material.parts for row in (part.test if self.has_test else part.valid)]

    @property
    def has_test(self) -> bool:
        return any(part.test for part in self.material.parts)

    def answers(self, kind: HeadKind, *, valid: bool = False) -> tuple[Floats, Ints]:
        """Probabilities (or numbers) and calls of a kind of head on the test (or validation) rows of all parts."""
        members = self.members[kind]
        use_valid = valid or not self.has_test
        found = [one.probabilities(one.valid if use_valid else one.test) for one in members]
        if self.material.task.target == "number":
            return np.concatenate(found), np.zeros(sum(map(len, found)), np.int64)
        place = {name: index for index, name in enumerate(self.material.task.classes)}
        calls = [
            place[name]
            for one, values in zip(members, found, strict=True)
            for name in call_classes(one.task, values, one.threshold)
        ]
        return np.concatenate(found), np.array(calls, np.int64)


def train(material: Material, settings: Settings, log: logging.Logger, journal: Journal | None = None) -> Trained:
    """Fits every kind of head for every part, calibrates and chooses.

    Args:
        material: From :func:`prepare`.
        settings: What was asked for.
        log: Gets a line a head.
        journal: Where a search keeps its trials.
    """
    kinds = classifiers.kinds_for(material.task)
    if settings.head != "auto" and settings.head not in kinds:
        raise UserError(
            f"A head of the kind {settings.head} cannot predict numbers",
            where="--head",
            fix=f"Choose {', '.join(kinds)}",
        )
    members: dict[HeadKind, list[Member]] = {kind: [] for kind in kinds}
    searches: list[Searched] = []
    for part in material.parts:
        rows = material.rows(part.train, standardise=settings.standardise)
        judge = material.judge(part.valid, rows.task)
        test = material.data.matrix[np.asarray(part.test, np.int64)]
        own = settings
        if settings.trials and journal is not None:
            network = replace(settings.network, balance=settings.balance)
            found = journal.search(
                rows, judge, network, material.metric, settings.trials, settings.seed, part.fold, log
            )
            searches.append(found)
            own = replace(settings, network=found.settings)
        for kind in kinds:
            start = time.monotonic()
            fitted = fit(kind, rows, judge, material.metric, own)
            made = _member(kind, fitted, rows.task, material, part, judge, test, time.monotonic() - start)
            members[kind].append(made)
            log.info(
                "%s%s: %s; %.1f s", classifiers.NAMES[kind], "" if part.fold is None else f", fold {part.fold}",
                fitted.told, made.seconds,
            )  # fmt: skip
    trained = Trained(material, settings, members, {}, kinds[0], searches)
    for kind in kinds:
        probabilities, calls = trained.answers(kind, valid=True)
        rows_valid = np.array([row for part in material.parts for row in part.valid], np.int64)
        trained.validation[kind] = _metric(material, probabilities, calls, rows_valid, material.metric)
    sign = classifiers.better(material.metric)

    def rank(kind: HeadKind) -> float:
        value = sign * trained.validation[kind]
        return value if value == value else float("-inf")

    # Of equals the simplest, which comes first.
    trained.chosen = max(kinds, key=rank) if settings.head == "auto" else settings.head  # type: ignore[assignment]
    return trained


def fit(kind: HeadKind, rows: Rows, judge: Judge | None, metric: str, settings: Settings) -> Fitted:
    """Fits one kind of head."""
    balanced = settings.balance != "none"
    if kind == "logistic":
        return classifiers.logistic(rows, metric, settings.seed, balanced=balanced)
    if kind == "ridge":
        return classifiers.ridge(rows, metric, settings.seed, balanced=balanced)
    if kind == "neighbours":
        return classifiers.neighbours(rows, metric, settings.seed)
    network = replace(settings.network, balance=settings.balance)
    return classifiers.feedforward(rows, judge, network, metric, settings.seed)


def _member(
    kind: HeadKind,
    fitted: Fitted,
    task: Task,
    material: Material,
    part: Part,
    judge: Judge,
    test: NDArray[np.float32],
    seconds: float,
) -> Member:
    valid, answers = fitted.head.scores(judge.matrix), fitted.head.scores(test)
    if task.target == "number":
        return Member(kind, fitted, task, 1.0, 0.5, valid * task.sd + task.mean, answers * task.sd + task.mean, seconds)
    truth = material.target[np.asarray(part.valid, np.int64)]
    temperature, threshold = 1.0, 0.5
    if len(np.unique(truth)) > 1:
        temperature = calibration.fit_temperature(valid, truth)
        if task.binary:
            positive = softmax(valid / temperature, axis=1)[:, task.positive_index]
            threshold = calibration.choose_threshold(positive, truth == task.positive_index)
    return Member(kind, fitted, task, temperature, threshold, valid, answers, seconds)


def _metric(material: Material, probabilities: Floats, calls: Ints, rows: Ints, metric: str) -> float:
    return metrics.score(as_scored(material, probabilities, calls, rows))[metric, ALL]


def as_scored(material: Material, probabilities: Floats, calls: Ints, rows: Ints) -> metrics.Scored:
    """Answers to some rows in the form that metrics take; the positive one of two classes becomes the last."""
    truth = material.target[rows]
    if material.kind == "number":
        return metrics.Scored("number", truth, probabilities[:, 0], calls)
    found = classifiers.scored(probabilities, truth, material.task, None)
    if material.kind == "binary":
        calls = (calls == material.task.positive_index).astype(np.int64)
    return replace(found, calls=calls)


# ------------------------------------------------------------------------------------------------------- final model


@dataclass(frozen=True)
class Final:
    """What goes into the bundle.

    Attributes:
        head: The head.
        task: With mean and deviation of its training numbers.
        temperature: Divides its logits.
        threshold: On the positive one of two classes.
        validation: (n, K) calibrated probabilities or (n, 1) numbers of validation rows.
        truth: (n,) their class numbers or numbers.
        valid_rows: Their rows.
        train_rows: Rows that it was fitted on.
        about: How it came to be, in a sentence.
    """

    head: Head
    task: Task
    temperature: float
    threshold: float
    validation: Floats
    truth: NDArray[Any]
    valid_rows: list[int]
    train_rows: list[int]
    about: str


def finish(trained: Trained) -> Final:
    """The chosen head: as it is, or with folds fitted once more on all rows."""
    material, chosen = trained.material, trained.members[trained.chosen]
    valid_rows = [row for part in material.parts for row in part.valid]
    truth = material.target[np.asarray(valid_rows, np.int64)]
    validation, _ = trained.answers(trained.chosen, valid=True)
    if not material.folds:
        [one] = chosen
        about = "fitted on the training rows; the test rows judge this very head"
        return Final(
            one.fitted.head, one.task, one.temperature, one.threshold, validation, truth, valid_rows,
            material.parts[0].train, about,
        )  # fmt: skip
    everything = sorted(valid_rows)
    rows = material.rows(everything, standardise=trained.settings.standardise)
    settings = trained.settings
    if trained.chosen == "feedforward":
        epochs = int(np.median([one.fitted.head.settings["epochs_trained"] for one in chosen]))
        network = settings.network
        if trained.searches:  # those of the fold that they served best
            sign = classifiers.better(material.metric)
            network = max(trained.searches, key=lambda one: sign * one.best).settings
        settings = replace(settings, network=replace(network, epochs=epochs, patience=0))
    fitted = fit(trained.chosen, rows, None, material.metric, settings)
    temperature, threshold = 1.0, 0.5
    if material.task.target == "class":
        temperature = calibration.fit_temperature(np.concatenate([one.valid for one in chosen]), truth)
        if material.task.binary:
            positive = material.task.positive_index
            threshold = calibration.choose_threshold(validation[:, positive], truth == positive)
    about = (
        f"fitted on all rows with the settings that the {len(chosen)} folds led to; its temperature and threshold come "
        "from the folds' validation rows, and the out-of-fold scores are those of the folds' heads"
    )
    return Final(fitted.head, rows.task, temperature, threshold, validation, truth, valid_rows, everything, about)


def manifest(
    trained: Trained, final: Final, *, name: str, licence: str, data_sha256: str, baseline: Mapping[str, float]
) -> dict[str, Any]:
    """The bundle's manifest, less what :func:`plm.model.classifier_bundle.write_classifier_bundle` adds."""
    material, task = trained.material, final.task
    about = material.data.description
    fields = task.to_json()
    fields["classes"] = fields.pop("labels")
    shares: dict[str, float] = {}
    summary: dict[str, Any] = {}
    if task.target == "class":
        counts = np.bincount(material.target[np.asarray(final.train_rows, np.int64)], minlength=task.outputs)
        shares = {label: float(count / counts.sum()) for label, count in zip(task.classes, counts, strict=True)}
        if task.binary:
            positive = task.positive_index
            summary = score_summary(final.validation[:, positive], final.truth == positive)
    probabilities, calls = trained.answers(trained.chosen, valid=True)
    rows = np.asarray(final.valid_rows, np.int64)
    scores = {
        key: value
        for (key, of), value in metrics.score(as_scored(material, probabilities, calls, rows)).items()
        if of == ALL and value == value
    }
    return {
        "name": name,
        **fields,
        "embedding": {
            "model": about.model, "model_sha256": about.model_sha256, "layers": list(about.layers),
            "pooling": about.pooling, "dimension": about.dimension, "dtype": about.dtype,
        },
        "temperature": final.temperature,
        "threshold": final.threshold,
        "novelty": novelty_summary(trained, final),
        "calibration": {"method": "temperature" if task.target == "class" else "none", "validation_scores": summary},
        "training_prevalence": shares.get(task.positive) if task.binary else (shares or None),
        "metrics": {"split": "valid", **scores},
        "selection_metric": material.metric,
        "validation_by_head": {kind: _plain(value) for kind, value in trained.validation.items()},
        "baselines": {key: _plain(value) for key, value in baseline.items()},
        "data_sha256": data_sha256,
        "rows": {
            "train": len(final.train_rows),
            "valid": len(final.valid_rows),
            "test": len({row for part in material.parts for row in part.test}),
        },
        "split": material.split_by,
        "seed": trained.settings.seed,
        "versions": {"suite": __version__, "python": platform.python_version(), **_versions()},
        "licence": licence,
        "finished": True,
    }  # fmt: skip


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def reference_rows(final: Final) -> NDArray[np.int64]:
    """The sample of training rows that the bundle keeps."""
    return np.asarray(final.train_rows, np.int64)[reference_sample(len(final.train_rows))]


def reference(trained: Trained, final: Final) -> tuple[list[str], list[str], NDArray[np.float32]]:
    """Ids, labels and embeddings of the sample of training rows that the bundle keeps."""
    data, chosen = trained.material.data, reference_rows(final)
    return [data.ids[row] for row in chosen], [data.labels[row] for row in chosen], data.matrix[chosen]


def novelty_summary(trained: Trained, final: Final) -> dict[str, Any]:
    """How far validation proteins lie from the training proteins that the bundle keeps, fold by fold."""
    data = trained.material.data
    kept = np.asarray(final.train_rows, np.int64)[reference_sample(len(final.train_rows))]
    parts = []
    for part in trained.material.parts:
        asked = np.asarray(part.valid, np.int64)
        asked = asked[reference_sample(len(asked))]
        parts.append((np.flatnonzero(np.isin(kept, part.train)), data.matrix[asked]))
    return novelty.summary(data.matrix[kept], parts)


def card(content: Mapping[str, Any], about: str, head: str) -> str:
    """The bundle's model card."""
    embedding = content["embedding"]
    what = "a number" if content["task"]["target"] == "number" else f"the classes {', '.join(content['classes'])}"
    layer = ", ".join(map(str, embedding["layers"])) or "unknown"
    scores = {key: value for key, value in content["metrics"].items() if isinstance(value, float)}
    rows = ", ".join(f"{count} {name}" for name, count in content["rows"].items())
    return "\n".join([
        f"# {content['name']}: a classifier of protein embeddings", "",
        f"Predicts {what} from embeddings of {embedding['dimension']} numbers: model "
        f"{embedding['model'] or 'unknown'}, layer {layer}, pooling {embedding['pooling'] or 'unknown'}.", "",
        f"- Head: {head}; {about}",
        f"- Rows: {rows}; split: {content['split']}",
        f"- Data: sha256 {content['data_sha256']}",
        f"- Licence: {content['licence'] or 'not stated'}", "",
        "Validation scores, which also chose head, temperature and threshold and are therefore optimistic:", "",
        *(f"- {name}: {value:.4f}" for name, value in sorted(scores.items())), "",
        "Answers hold for proteins like those it was trained on; plm_predict flags others.", "",
    ])  # fmt: skip


# ------------------------------------------------------------------------------------------------- what users look at


def predictions(trained: Trained, bundle: ClassifierBundle) -> pd.DataFrame:
    """The predictions table of validation and test rows: by the reloaded bundle, with folds by each fold's head."""
    import pandas as pd

    material = trained.material
    tables = []
    for part, member in zip(material.parts, trained.members[trained.chosen], strict=True):
        for split, rows, raw in (("valid", part.valid, member.valid), ("test", part.test, member.test)):
            if not rows:
                continue
            if material.folds:
                values, threshold = member.probabilities(raw), member.threshold
            else:
                values = bundle.predict(material.data.matrix[np.asarray(rows, np.int64)])
                threshold = bundle.threshold
            tables.append(_answered(material, rows, split, part.fold, values, threshold, bundle, trained.settings.seed))
    return pd.concat(tables, ignore_index=True)


def _answered(
    material: Material,
    rows: Sequence[int],
    split: str,
    fold: int | None,
    values: Floats,
    threshold: float,
    bundle: ClassifierBundle,
    seed: int,
) -> pd.DataFrame:
    import pandas as pd

    data = material.data
    table: dict[str, Any] = {"id": [data.ids[row] for row in rows]}
    for name in ("protein", "position", "protein_position"):
        if name == "position" and data.positions is not None:
            table[name] = [data.positions[row] for row in rows]
        elif name in data.columns:
            table[name] = [data.columns[name][row] for row in rows]
    table["label"] = [data.labels[row] for row in rows]
    if material.task.target == "number":
        table["value"] = [f"{value:.6g}" for value in values[:, 0]]
    else:
        table["call"] = bundle.calls(values, threshold)
        for index, name in enumerate(material.task.classes):
            table[f"p_{name}"] = [f"{value:.6f}" for value in values[:, index]]
    table["group"] = [material.groups[row] for row in rows]
    if "cluster" in data.columns:
        table["cluster"] = [data.columns["cluster"][row] for row in rows]
    table["split"] = split
    if fold is not None:
        table["fold"] = fold
    table["seed"] = seed
    table["model"] = bundle.name
    return pd.DataFrame(table)


def baseline_answers(trained: Trained, *, most_rows: int = 20_000) -> list[Answer]:
    """What the trivial baselines answer to the test rows: the constant, and those on sequences where there are any."""
    material = trained.material
    binary = material.kind == "binary"
    order = material.task.classes
    if binary:
        positive = material.task.positive_index
        order = (order[1 - positive], order[positive])
    target = (material.target == material.task.positive_index).astype(np.int64) if binary else material.target
    sequences = material.data.columns.get("sequence", [])
    texts = sequences if sequences and all(sequences) else []
    found, done = [], 0
    for part in material.parts:
        judged = part.test if trained.has_test else part.valid
        if not judged:
            continue
        places = np.arange(done, done + len(judged))
        done += len(judged)
        if texts:
            answers = baselines.answer_all(
                _examples(material, texts, target, part.train), _examples(material, texts, target, judged), order,
                material.metric, seed=trained.settings.seed, most_rows=most_rows,
            )  # fmt: skip
        else:
            answers = [_constant(target[np.asarray(part.train, np.int64)], len(judged), order)]
        found.append((places, answers))
    return baselines.merge_folds(found, done, len(order))


def _examples(
    material: Material, texts: Sequence[str], target: NDArray[Any], rows: Sequence[int]
) -> baselines.Examples:
    chosen = [texts[row] for row in rows]
    groups = np.array([material.groups[row] for row in rows], dtype=object).astype(str)
    return baselines.Examples(chosen, target[np.asarray(rows, np.int64)], groups, False)


def _constant(target: NDArray[Any], count: int, classes: tuple[str, ...]) -> Answer:
    made = baselines.Constant()
    [scores] = made.predict(np.zeros(len(target)), target, np.zeros(count), made.settings, len(classes))
    calls = scores.argmax(axis=1) if classes else np.zeros(count)
    return Answer(made.name, made.about, "", float("nan"), scores, calls.astype(np.int64))


def evaluation(trained: Trained, answers: Sequence[Answer]) -> Evaluation:
    """All heads and baselines on the test rows, the chosen head first."""
    import pandas as pd

    material = trained.material
    rows = np.asarray(trained.test_rows(), np.int64)
    data = material.data
    frame = pd.DataFrame({"id": [data.ids[row] for row in rows], "label": [data.labels[row] for row in rows]})
    frame["position"] = "" if data.positions is None else [str(data.positions[row]) for row in rows]
    frame["protein"] = frame["protein_position"] = frame["fold"] = ""
    frame["split"] = "test" if trained.has_test else "valid"
    frame["group"] = [material.groups[row] for row in rows]
    models: list[Model] = []
    for kind in [trained.chosen, *(kind for kind in trained.members if kind != trained.chosen)]:
        probabilities, calls = trained.answers(kind)
        models.append(Model(classifiers.NAMES[kind], as_scored(material, probabilities, calls, rows)))
    first = models[0].scored
    for answer in answers:
        scored = metrics.Scored(first.kind, first.truth, answer.scores, answer.calls, first.classes)
        models.append(Model(answer.name, scored, baseline=True))
    split = "out-of-fold" if material.folds else "test" if trained.has_test else "validation"
    return Evaluation(frame, first.kind, first.classes, tuple(models), split, material.grouped_by)


def resamples(rows: int, wanted: int) -> int:
    """Bootstrap resamples that a table of so many rows gets: fewer for large ones, whose intervals are narrow."""
    return max(min(wanted, _RESAMPLED_ROWS // max(rows, 1)), min(wanted, FEWEST_RESAMPLES))


def judge(trained: Trained, final: Final) -> Findings:
    """Scores of all heads and baselines on the test rows, with what the report needs."""
    material, settings = trained.material, trained.settings
    answers = baseline_answers(trained)
    judged = evaluation(trained, answers)
    drawn = resamples(len(judged.rows), settings.resamples)
    best = baselines.best_of(answers, material.metric).name if len(answers) > 1 else answers[0].name
    found = assess(judged, material.metric, best_baseline=best, resamples=drawn, seed=settings.seed)
    names, sign = classifiers.NAMES, classifiers.better(material.metric)

    def rank(kind: HeadKind) -> float:
        value = sign * trained.validation[kind]
        return value if value == value else float("-inf")

    kinds = list(trained.members)
    linear = max((kind for kind in kinds if kind in classifiers.LINEAR), key=rank)
    other = max((kind for kind in kinds if kind not in classifiers.LINEAR), key=rank)
    rows = np.asarray(trained.test_rows(), np.int64)
    uncalibrated: dict[str, float] = {}
    if material.task.target == "class":
        for kind, members in trained.members.items():
            raw = np.concatenate([softmax(one.test if trained.has_test else one.valid, axis=1) for one in members])
            scored = as_scored(material, raw, raw.argmax(axis=1), rows)
            uncalibrated[names[kind]] = metrics.score(scored)["ece", ALL]
    told = {}
    for kind, members in trained.members.items():
        several = Counter(one.fitted.told for one in members)
        text, times = several.most_common(1)[0]
        told[names[kind]] = text if times == len(members) else f"{text} ({times} of {len(members)} folds)"
    probabilities, calls = trained.answers(trained.chosen, valid=True)
    valid = metrics.score(as_scored(material, probabilities, calls, np.asarray(final.valid_rows, np.int64)))
    part = material.parts[0]
    counts = {"training": len(part.train), "valid": len(part.valid), "test": len(part.test)}
    if material.folds:
        counts = {"out-of-fold": len(rows), "valid": len(final.valid_rows)}
    return Findings(
        found, names[trained.chosen], names[linear], names[other], settings.head != "auto",
        {names[kind]: value for kind, value in trained.validation.items()}, told, uncalibrated, valid, counts,
        material.split_by, final.about, final.threshold if material.task.binary else float("nan"), final.temperature,
        material.loud, tuple(material.notes), drawn,
        tuple((answer.name, answer.about, answer.setting) for answer in answers),
    )  # fmt: skip
