"""Labelled embeddings made ready for training: task, groups, and which rows train, choose and judge."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from plm.data import dataset_table, homology, label_values, splits
from plm.data.task import Task
from plm.errors import UserError
from plm.jobs.classifier.labelled_embeddings import LabelledEmbeddings
from plm.scoring import metrics
from plm.training import classifiers
from plm.training.classifiers import HeadRows, ValidationRows
from plm.training.folds import TrainingPart, parts

if TYPE_CHECKING:
    import pandas as pd


Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SHARES = (0.7, 0.15, 0.15)
"""Training, validation and test rows of splits made here."""
VALID_OF_TRAIN = 0.15
LOUD = "RANDOM SPLIT: "


@dataclass(frozen=True)
class Material:
    """Labelled embeddings ready for training.

    Attributes:
        data: Embeddings with their labels.
        task: Level, kind of target and classes; mean and sd are those of all training rows.
        target: (N,) class numbers, or numbers in units of the labels.
        parts: One, or one for each fold.
        groups: (N,) group of each row: relatives, or the row itself.
        grouped_by: Where the groups come from, in words.
        metric: Name of the main metric.
        split_by: Sentence on how rows were split.
        loud: Sentence on the split that must come first; empty if there is none.
        notes: Sentences that a reader of the results should know.
    """

    data: LabelledEmbeddings
    task: Task
    target: NDArray[Any]
    parts: list[TrainingPart]
    groups: list[str]
    grouped_by: str
    metric: str
    split_by: str
    loud: str
    notes: list[str]

    @property
    def kind(self) -> str:
        """``binary``, ``multiclass`` or ``number``."""
        return self.task.kind

    @property
    def folds(self) -> bool:
        return self.parts[0].fold is not None

    def rows(self, chosen: Sequence[int], *, standardise: bool) -> HeadRows:
        """Training rows; numbers standardised by them."""
        index = np.asarray(chosen, np.int64)
        task, target = self.scaled_task(chosen), self.target[index]
        if task.target == "number":
            target = (target - task.mean) / task.sd
        groups = [self.groups[row] for row in chosen]
        return classifiers.make_rows(self.data.matrix[index], target, groups, task, standardise=standardise)

    def judge(self, chosen: Sequence[int], task: Task) -> ValidationRows:
        """Validation rows, numbers standardised as ``task`` says."""
        index = np.asarray(chosen, np.int64)
        target = self.target[index]
        return ValidationRows(
            self.data.matrix[index], (target - task.mean) / task.sd if task.target == "number" else target
        )

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
    data: LabelledEmbeddings, *, target: str = "auto", positive: str = "", metric: str = "auto",
    smallest_class: int = 0, identity: float | None = None, seed: int = 42, threads: int = 1,
) -> Material:
    """Settles task, groups and parts of labelled embeddings.

    Args:
        data: From :func:`plm.jobs.classifier.labelled_embeddings.read_labelled`; its fates are completed.
        target: ``auto``, ``class`` or ``number``.
        positive: Class to detect, of two; the last by default.
        metric: The main metric, or ``auto``.
        smallest_class: Classes with fewer rows are left out; 0: none is, and a class of one row is an error, unless the
            table has it train.
        identity: At which sequences are relatives, 0-1; None: the method's default.
        seed: Seed of the split that is made where the table has none.
        threads: Processor threads of the search for relatives.

    Raises:
        UserError: One class, a class of one row, no class of the name ``positive``, splits without training or
            validation rows, fewer than three folds.
    """
    import pandas as pd

    notes = data.notes
    places = {fate.row: f"{fate.file}, {'line' if fate.source == 'labels' else 'record'} {fate.line}, id {fate.id!r}"
              for fate in data.fates if fate.row >= 0}
    reading = label_values.understand(data.labels, target, where=lambda row: places[row])
    data = replace(data, labels=reading.values)
    notes += [f"Labels: {reading.why}.", *reading.notes]
    if several := label_values.told_several(data.labels) if reading.target == "class" else "":
        notes.append(several)
    task = _task(data.labels, reading.target, positive)
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
        frame["split"] = [dataset_table.SPLITS[part] for part in place]
        if task.target == "class":
            _train_every_class(frame, groups, notes)
        split_by = f"made here, 70/15/15 %, no group straddles; groups: {grouped_by}"
        if grouped_by == "identical embeddings":
            loud = (
                f"{LOUD}the labels came without split, group, cluster or sequence, so near copies of training proteins "
                "may be among the test proteins and make scores too good. Split by homology with plm_preprocess."
            )
    else:
        column = "split" if "split" in has else "fold"
        split_by = f"column {column} of the table"
        if column == "split":
            _complete_valid(frame, groups, task, values, seed, notes)
    trainings = parts(frame, name="table of labels")
    for fate in data.fates:
        if fate.row >= 0:
            column = "split" if "split" in frame else "fold"
            fate.status = f"used: {'' if column == 'split' else 'fold '}{frame[column].iloc[fate.row]}"
    chosen = metrics.main_metric(task.kind, metric)
    material = Material(data, task, values, trainings, groups, grouped_by, chosen, split_by, loud, notes)
    _check_parts(material)
    train = sorted({row for part in trainings for row in part.train})
    constant = classifiers.constant_columns(data.matrix[np.asarray(train, np.int64)])
    if constant:
        notes.append(f"{constant} of {data.matrix.shape[1]} columns of the embeddings are constant and tell nothing.")
    if constant == data.matrix.shape[1]:
        raise UserError("All embeddings are the same", fix="Check how they were made")
    return replace(material, task=material.scaled_task(train))


def _task(labels: Sequence[str], target: str, positive: str) -> Task:
    classes = dataset_table.sort_classes(set(labels)) if target == "class" else ()
    if len(classes) == 1:
        raise UserError(
            f"All labels are {classes[0]!r}: one class only", where="labels", fix="Give records of at least two classes"
        )
    return Task("sequence", target, classes).with_positive(positive)  # type: ignore[arg-type]


def _targets(labels: Sequence[str], task: Task) -> NDArray[Any]:
    if task.target == "number":
        return np.array([float(label) for label in labels])
    place = {name: index for index, name in enumerate(task.classes)}
    return np.array([place[label] for label in labels], np.int64)


def _drop_small(data: LabelledEmbeddings, smallest: int) -> LabelledEmbeddings:
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
        given = data.columns.get("split", [])
        trained = {label for label, part in zip(data.labels, given, strict=False) if part.strip() == "train"}
        learned = [name for name in single if name in trained]
        if learned:  # the table says that they train: nothing is to be divided
            shown = f"{', '.join(learned[:8])}{' and more' if len(learned) > 8 else ''}"
            data.notes.append(f"{len(learned)} of {len(counts)} classes have a single row, which trains: {shown}.")
        single = [name for name in single if name not in trained]
        if single:
            more = f" (and {len(single) - 1} more such classes)" if len(single) > 1 else ""
            raise UserError(
                f"The class {single[0]!r} has a single member{more}: it cannot be both learned and tested",
                where=f"id {data.ids[data.labels.index(single[0])]!r}",
                fix="Give more members, merge classes, or leave small ones out with --smallest-class 2",
            )
    return data


def _with_split(
    data: LabelledEmbeddings, frame: pd.DataFrame, values: NDArray[Any]
) -> tuple[LabelledEmbeddings, pd.DataFrame, NDArray[Any]]:
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
    wrong = ~given.isin(dataset_table.SPLITS) if column == "split" else ~given.str.fullmatch(r"[1-9]\d*")
    if wrong.any():
        row = int(wrong.to_numpy().argmax())
        what = "none of train, valid, test" if column == "split" else "no whole number from 1"
        raise UserError(
            f"A {column} is {what}: {given.iloc[row]!r}", where=f"table of labels, id {frame['id'].iloc[row]!r}",
            fix="Correct the table of labels",
        )
    frame[column] = given
    return data, frame, values


def _groups(
    frame: pd.DataFrame, data: LabelledEmbeddings, splitting: bool, identity: float | None, threads: int,
    notes: list[str],
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
    groups = splits.joined_groups(*keys)
    return groups, " and ".join(named)


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
        [groups[row] for row in train.tolist()], [strata[row] for row in train.tolist()],
        (1 - VALID_OF_TRAIN, VALID_OF_TRAIN), seed,
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
            )
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
