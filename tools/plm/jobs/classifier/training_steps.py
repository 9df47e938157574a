"""What stands around a classifier's training: checks of the parts, the search's journal, the status of rows."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pandas as pd

from plm import kept
from plm.errors import UserError
from plm.jobs.classifier.material import Material
from plm.jobs.classifier.search import TrialJournal, search_key
from plm.jobs.classifier.training import ClassifierSettings
from plm.training import few_rows

STATUS_COLUMNS = ("source", "file", "line", "id", "position", "label", "status")


def check_parts(material: Material, log: logging.Logger) -> None:
    """Refuses training parts that teach nothing, and warns of small ones.

    Raises:
        UserError: A training part has too few rows, or too few of a class.
    """
    labels, task = material.data.labels, material.task
    for part in material.parts:
        of = "the training part" if part.fold is None else f"the training part of fold {part.fold}"
        refused = [labels[row] for row in part.train]
        few_rows.refuse(refused, of, material.split_by, binary=task.classes if task.binary else ())
    few = {name: min(len(getattr(part, name)) for part in material.parts) for name in ("train", "valid")}
    if warning := few_rows.warning(few):
        log.warning("%s", warning)


def announce(material: Material, trials: int, log: logging.Logger) -> None:
    """Says what is to be done."""
    told = "numbers"
    if material.task.target != "number":
        names = material.task.classes
        told = f"{len(names)} classes ({', '.join(names[:6])}{', ...' if len(names) > 6 else ''})"
    log.info(
        "Plan: %d embeddings of dimension %d, %s, %s (%s)%s", len(material.data), material.data.description.dimension,
        told, "folds" if material.folds else "training, validation and test", material.split_by,
        f", search of {trials} trials" if trials else "",
    )


def open_journal(
    name: str, material: Material, settings: ClassifierSettings, digest: str, workdir: Path, resumed: Path | None
) -> TrialJournal:
    """The file of the search's trials: in PLM_CHECKPOINT_DIR if there is one, so that a killed job goes on.

    Args:
        name: Id of the stage, for the file's name.
        material: Labelled embeddings that are learned from.
        settings: Settings of the heads; the search goes on only with the same.
        digest: sha256 of the rows; the search goes on only with the same.
        workdir: Folder for a file that does not outlive the job.
        resumed: Study of an earlier search.

    Raises:
        UserError: That study is no file.
    """
    key = search_key(settings.network, settings.standardise, material.metric, settings.seed, digest)
    outlives = kept.folder()
    path = (outlives if outlives is not None and outlives.is_dir() else workdir) / f"{name}-{key[:32]}.journal"
    if resumed is not None and not path.exists():
        if not resumed.is_file():
            raise UserError("The study does not exist", where=str(resumed), fix="Check the path")
        if not resumed.stat().st_size:
            raise UserError("The study is empty", where=resumed.name, fix="Give that of an earlier search, or none")
        shutil.copyfile(resumed, path)
    return TrialJournal(path, key)


def status_table(material: Material) -> pd.DataFrame:
    """What became of every embedding and every row of labels."""
    rows = []
    for fate in material.data.fates:
        name, _, position = fate.id.partition("\t")
        rows.append((fate.source, fate.file, fate.line, name, position, fate.label, fate.status))
    return pd.DataFrame(rows, columns=list(STATUS_COLUMNS))
