"""Linear probes: one linear model on frozen representations, the same for every language model.

Classes get logistic regression, numbers ridge regression; the penalty comes from cross-validation within groups on
training rows. Rows are proteins (mean over residues), residues, or sites. Composition and one-hot features go through
the very same probe and stand beside as baselines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from plm.data import dataset_table, homology, splits
from plm.data.dataset_table import UNLABELLED_RESIDUE, residue_labels
from plm.data.task import Task
from plm.errors import UserError
from plm.jobs.compare_models.representation import represent
from plm.model.loaded import LoadedModel
from plm.model.members.features import composition, one_hot, window_text
from plm.model.members.kinds import LONGEST_ONE_HOT
from plm.scoring.metrics import MAIN_METRIC, Scored
from plm.training import classifiers

if TYPE_CHECKING:
    import pandas as pd

Ints = NDArray[np.int64]
Singles = NDArray[np.float32]
MOST_TRAINING, MOST_JUDGED = 30_000, 100_000
"""Rows of residues beyond these are sampled: they differ little within a protein and fill the memory."""
_UNITS = ("cluster", "group", "protein")
_WIDTHS = {"residue": 15, "site": 31}
_FOLDS = 5
_BLOCK = 8192
_SMALL = 100_000_000


@dataclass(frozen=True)
class Probe:
    """A labelled dataset with its split.

    Attributes:
        name: Name of the dataset in tables and messages.
        task: Level, kind of target and classes that are predicted.
        sequences: The distinct sequences, cleaned.
        owner: (N,) sequence of each row.
        place: (N,) 0-based residue of each row; -1 for whole sequences.
        target: (N,) class numbers or numbers.
        units: (N,) name of the group that each row belongs to: never parted by inner folds, drawn by the bootstrap.
        parts: (rows to learn from, rows to judge): one, or one a fold. Judged rows occur once.
        notes: What a reader must know, in sentences.
        split: How rows were split, in words.
    """

    name: str
    task: Task
    sequences: list[str]
    owner: Ints
    place: Ints
    target: NDArray[Any]
    units: NDArray[np.str_]
    parts: list[tuple[Ints, Ints]]
    notes: list[str]
    split: str

    @property
    def judged(self) -> Ints:
        """(J,) judged rows in the order of their answers."""
        return np.concatenate([judge for _, judge in self.parts])

    @property
    def learned(self) -> int:
        """Rows to learn from; the mean over folds."""
        return round(float(np.mean([len(learn) for learn, _ in self.parts])))

    @property
    def kind(self) -> str:
        """``binary``, ``multiclass`` or ``number``."""
        return self.task.kind

    @property
    def measure(self) -> str:
        """What models are compared by: accuracy for classes of residues (as Q3 is), else the suite's main metric."""
        if self.task.level == "residue" and self.kind == "multiclass":
            return "accuracy"
        return MAIN_METRIC[self.kind]

    @property
    def residues(self) -> int:
        """Residues that each language model computes."""
        return sum(map(len, self.sequences))


@dataclass(frozen=True)
class Probed:
    """What a probe on one kind of features said.

    Attributes:
        scored: Answers to the judged rows, with their truth.
        setting: Penalty that was chosen, in words.
    """

    scored: Scored
    setting: str


def read_probe(name: str, path: Path, *, seed: int, threads: int) -> Probe:
    """Reads a dataset table with labels and its split.

    With a column ``split``, test rows are judged and training and validation rows learned from (without test rows:
    validation rows are judged). With ``fold``, each fold is judged by a probe on the others. With neither, five folds
    are made that part no homologues.

    Raises:
        UserError: No dataset table, labels that make no task, or nothing to learn from or to judge.
    """
    frame, labelling = dataset_table.labelled_rows(dataset_table.read_dataset(path), name=path.name)
    task = labelling.task
    notes: list[str] = list(labelling.notes)
    # Rows of the table first: their split, and which of them to leave out.
    unit_column = next((name for name in _UNITS if name in frame.columns and (frame[name] != "").all()), "")
    units = _names(frame[unit_column] if unit_column else frame["sequence"])
    pairs, split, units = _parts(frame, units, unit_column, task, seed, threads, path)
    pairs = [_without_copies(frame, learn, judge, task, notes) for learn, judge in pairs]
    shared = sum(int(np.isin(units[judge], np.unique(units[learn])).sum()) for learn, judge in pairs)
    if shared and unit_column:
        notes.append(f"{shared} judged rows share their {unit_column} with training rows: the split does not part them")
    # Then what is predicted: rows themselves, or their residues.
    distinct = {sequence: number for number, sequence in enumerate(dict.fromkeys(frame["sequence"]))}
    owner = np.array([distinct[sequence] for sequence in frame["sequence"]], np.int64)
    place = np.full(len(frame), -1, np.int64)
    labels: Sequence[str] = list(frame["label"])
    if task.level == "site":
        place = frame["position"].astype(int).to_numpy(np.int64) - 1
    if task.level == "residue":
        expanded = _residues(frame)
        table_row, place, labels = expanded
        owner, units = owner[table_row], units[table_row]
        pairs = [_sample(learn, judge, table_row, seed, notes) for learn, judge in pairs]
    if task.target == "number":
        target: NDArray[Any] = np.array([float(label) for label in labels])
    else:
        number_of = {label: number for number, label in enumerate(task.classes)}
        target = np.array([number_of[label] for label in labels], np.int64)
    for learn, judge in pairs:
        if not len(learn) or not len(judge):
            raise UserError("There is nothing to learn from or nothing to judge", where=f"--probe {name}",
                            fix="Give rows of split train and test (or valid), or folds")
        if len(np.unique(target[learn])) < 2:
            raise UserError(
                "All training rows have one label", where=f"--probe {name}, {path.name}",
                fix="Give rows of at least two classes",
            )
    used = np.zeros(len(owner), bool)
    for learn, judge in pairs:
        used[learn] = used[judge] = True
    return _compact(name, task, list(distinct), owner, place, target, units, pairs, used, _once(notes), split)


def _names(values: Sequence[str]) -> NDArray[np.str_]:
    """A short name for each distinct value: sequences themselves would fill the memory once repeated a residue."""
    number: dict[str, int] = {}
    return np.array([f"u{number.setdefault(value, len(number))}" for value in values])


def _once(notes: list[str]) -> list[str]:
    return list(dict.fromkeys(notes))


def _parts(
    frame: pd.DataFrame, units: NDArray[np.str_], unit_column: str, task: Task, seed: int, threads: int, path: Path
) -> tuple[list[tuple[Ints, Ints]], str, NDArray[np.str_]]:
    """(learn, judge) rows of the table, how they were split, and the units, which may be homology clusters."""
    if "split" in frame.columns:
        part = frame["split"].to_numpy()
        judge = np.flatnonzero(part == "test")
        learned = ("train", "valid") if len(judge) else ("train",)
        told = "training and validation rows, judged on test rows"
        if not len(judge):
            told = "training rows, judged on validation rows"
        judge = judge if len(judge) else np.flatnonzero(part == "valid")
        learn = np.flatnonzero(np.isin(part, learned))
        if not len(judge) or not len(learn):
            raise UserError("The column split names no training rows or no test or validation rows", where=path.name,
                            fix="Split it with plm_preprocess")
        return [(learn, judge)], f"the table's split: fitted on {told}", units
    if "fold" in frame.columns:
        fold = frame["fold"].to_numpy()
        names = sorted(set(fold), key=int)
        if len(names) < 2:
            raise UserError("The column fold names one fold only", where=path.name, fix="Give at least two folds")
        pairs = [(np.flatnonzero(fold != name), np.flatnonzero(fold == name)) for name in names]
        return pairs, f"the table's {len(names)} folds", units
    origin = f"the column {unit_column}"
    if unit_column != "cluster":
        sequences = list(dict.fromkeys(frame["sequence"]))
        method = homology.choose_method(sequences)
        method = "cascade" if method == "mmseqs" and len(sequences) > 5000 else method
        roots = homology.cluster([(sequence, sequence) for sequence in sequences], threads=threads, method=method)
        clusters = [roots[sequence] for sequence in frame["sequence"]]
        keys = [clusters] if not unit_column else [clusters, units.tolist()]
        units = np.array(splits.joined_groups(*keys))
        origin = homology.describe(method, homology.default_identity(method, None), 0.8)
    strata = [""] * len(frame) if task.target == "number" or task.level == "residue" else list(frame["label"])
    try:
        assigned = np.array(splits.assign(units.tolist(), strata, [1 / _FOLDS] * _FOLDS, seed))
    except UserError as error:
        raise UserError("The rows are of fewer than five groups of relatives, too few for folds", where=path.name,
                        fix="Give a column split or fold") from error
    pairs = [(np.flatnonzero(assigned != number), np.flatnonzero(assigned == number)) for number in range(_FOLDS)]
    return pairs, f"{_FOLDS} folds made here ({origin})", units


def _without_copies(frame: pd.DataFrame, learn: Ints, judge: Ints, task: Task, notes: list[str]) -> tuple[Ints, Ints]:
    """Judged rows that training rows repeat would be remembered, not predicted."""
    keys = frame["sequence"]
    if task.level == "site":
        keys = keys + ":" + frame["position"]
    seen = set(keys.iloc[learn])
    fresh = np.array([key not in seen for key in keys.iloc[judge]], bool)
    if not fresh.all():
        notes.append(f"{int((~fresh).sum())} rows to judge have the sequence of a training row and are left out")
    return learn, judge[fresh]


def _residues(frame: pd.DataFrame) -> tuple[Ints, Ints, list[str]]:
    """Row of the table, 0-based place and label of every labelled residue."""
    rows, places, labels = [], [], []
    for row, label in enumerate(frame["label"]):
        for place, value in enumerate(residue_labels(label)):
            if value not in ("", UNLABELLED_RESIDUE):
                rows.append(row)
                places.append(place)
                labels.append(value)
    return np.array(rows, np.int64), np.array(places, np.int64), labels


def _sample(learn: Ints, judge: Ints, table_row: Ints, seed: int, notes: list[str]) -> tuple[Ints, Ints]:
    sampled = []
    for rows, most, what in ((learn, MOST_TRAINING, "training"), (judge, MOST_JUDGED, "judged")):
        mine = np.flatnonzero(np.isin(table_row, rows))
        if len(mine) > most:
            notes.append(f"{most:,} of {len(mine):,} {what} residues are used, drawn at random")
            mine = np.sort(np.random.default_rng(seed).permutation(mine)[:most])
        sampled.append(mine)
    return sampled[0], sampled[1]


def _compact(
    name: str, task: Task, sequences: list[str], owner: Ints, place: Ints, target: NDArray[Any],
    units: NDArray[np.str_], pairs: list[tuple[Ints, Ints]], used: NDArray[np.bool_], notes: list[str], split: str,
) -> Probe:
    """Without rows and sequences that nobody uses; rows of one sequence follow each other, as they are computed."""
    order = np.flatnonzero(used)
    order = order[np.lexsort((place[order], owner[order]))]
    new = np.full(len(owner), -1, np.int64)
    new[order] = np.arange(len(order))
    kept, owners = np.unique(owner[order], return_inverse=True)
    parts = [(np.sort(new[learn]), np.sort(new[judge])) for learn, judge in pairs]
    return Probe(name, task, [sequences[number] for number in kept], owners.astype(np.int64), place[order],
                 target[order], units[order], parts, notes, split)


def features(probe: Probe, loaded: LoadedModel, *, advance: Callable[[int], None] | None = None) -> Singles:
    """A language model's representation of each row, (N, D)."""
    if probe.task.level == "sequence":
        return represent(loaded, probe.sequences, advance=advance)[probe.owner]
    ends = np.cumsum(np.bincount(probe.owner, minlength=len(probe.sequences)))[:-1]
    return represent(loaded, probe.sequences, np.split(probe.place, ends), advance=advance)


def baseline_features(probe: Probe) -> dict[str, Singles]:
    """Features that need no language model: composition of proteins, one-hot windows around residues and sites."""
    matrices: dict[str, Singles] = {}
    if probe.task.level != "sequence":
        width = _WIDTHS[probe.task.level]
        parts = []
        for start in range(0, len(probe.owner), _BLOCK):
            rows = zip(probe.owner[start : start + _BLOCK], probe.place[start : start + _BLOCK], strict=True)
            texts = [window_text(probe.sequences[owner], int(place), width) for owner, place in rows]
            parts.append(one_hot(texts).astype(np.float32))
        matrices[f"one-hot window of {width}"] = np.concatenate(parts)
        return matrices
    matrices["composition"] = composition(probe.sequences).astype(np.float32)[probe.owner]
    lengths = {len(sequence) for sequence in probe.sequences}
    if len(lengths) == 1 and max(lengths) <= LONGEST_ONE_HOT:
        matrices["one-hot"] = one_hot(probe.sequences).astype(np.float32)[probe.owner]
    return matrices


@contextmanager
def _threads_for(products: int) -> Iterator[None]:
    """One thread for small problems: in hundreds of short steps threads would wait for each other on a busy machine.

    Args:
        products: Number of multiplications in a step.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1 if products < _SMALL else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fit(probe: Probe, matrix: Singles, *, seed: int) -> Probed:
    """Fits the probe on its training rows and answers the judged ones.

    Args:
        probe: Labelled dataset with its split.
        matrix: (N, D) features of its rows.
        seed: Seed of the inner folds.
    """
    answers: list[NDArray[np.float64]] = []
    told: list[str] = []
    for learn, judge in probe.parts:
        target, task = probe.target[learn], probe.task
        if task.target == "number":
            task = Task(task.level, "number", mean=float(target.mean()), sd=float(target.std()))
            target = (target - task.mean) / task.sd
        rows = classifiers.make_rows(matrix[learn], target, probe.units[learn].tolist(), task)
        kind = classifiers.ridge if task.target == "number" else classifiers.logistic
        with _threads_for(rows.scaled.size * task.outputs):
            fitted = kind(rows, probe.measure, seed)
        scores = fitted.head.scores(matrix[judge])
        answers.append(scores * task.sd + task.mean if task.target == "number" else softmax(scores, axis=1))
        told.append(fitted.told)
    together, truth = np.concatenate(answers), probe.target[probe.judged]
    settings = "; ".join(dict.fromkeys(told))
    if probe.task.target == "number":
        nothing = np.zeros(len(truth), np.int64)
        return Probed(Scored("number", truth, together[:, 0], nothing), settings)
    return Probed(classifiers.scored(together, truth, probe.task, None), settings)
