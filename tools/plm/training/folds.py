"""Which rows a training learns from, is steered by and only predicts: one part a split, one for each fold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from plm.data import dataset_table
from plm.errors import UserError

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class TrainingPart:
    """Row numbers of one training: all splits of the table, or one fold as test.

    Attributes:
        fold: The fold that is its test set, or None.
        train: Numbers of the rows to learn from.
        valid: Rows that choose epoch, temperature and threshold.
        test: Rows that are only predicted.
    """

    fold: int | None
    train: list[int]
    valid: list[int]
    test: list[int]


def parts(frame: pd.DataFrame, fold: int | None = None, name: str = "dataset") -> list[TrainingPart]:
    """The trainings that a table asks for.

    A ``split`` column gives one; a ``fold`` column one a fold, with the next fold (cyclically) as validation rows.

    Args:
        frame: Dataset table with a column ``split`` or ``fold``.
        fold: Fold whose training alone is wanted; None: all.
        name: File name of the table, for messages.

    Raises:
        UserError: No split, no training or validation rows, fewer than three folds, or no such fold.
    """
    if "split" in frame.columns:
        if fold is not None:
            raise UserError("The table has splits, not folds", where="--fold", fix="Leave --fold out")
        column = frame["split"].tolist()
        by_split = {
            split: [row for row, value in enumerate(column) if value == split] for split in dataset_table.SPLITS
        }
        for split, what in (("train", "training"), ("valid", "validation")):
            if not by_split[split]:
                raise UserError(
                    f"The table has no {what} rows (split = {split})", where=name,
                    fix="Split it with plm_preprocess, with a share for each of training, validation and test",
                )
        return [TrainingPart(None, by_split["train"], by_split["valid"], by_split["test"])]
    if "fold" not in frame.columns:
        raise UserError(
            "The table has neither a column split nor a column fold", where=name, fix="Split it with plm_preprocess"
        )
    numbers = [int(value) for value in frame["fold"]]
    names = sorted(set(numbers))
    if len(names) < 3:
        raise UserError(
            f"The table has {len(names)} folds; at least 3 are needed (training, validation and test)", where=name,
            fix="Make more folds with plm_preprocess",
        )
    if fold is not None and fold not in names:
        raise UserError(f"There is no fold {fold}", where="--fold", fix=f"Choose among {', '.join(map(str, names))}")
    following: Mapping[int, int] = dict(zip(names, [*names[1:], names[0]], strict=True))
    trainings = []
    for test in names if fold is None else [fold]:
        rows: dict[str, list[int]] = {"train": [], "valid": [], "test": []}
        for row, value in enumerate(numbers):
            rows["test" if value == test else "valid" if value == following[test] else "train"].append(row)
        trainings.append(TrainingPart(test, **rows))
    return trainings
