"""Small fine-tuning jobs on the tiny checkpoints, for the tests of heads, training, checkpoints and bundles."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from plm.jobs.finetune.finished import manifest, release
from plm.jobs.finetune.job import FineTuningJob, FineTuningSettings
from plm.jobs.finetune.labelled_rows import read_rows
from plm.jobs.finetune.objectives import choose_metric
from plm.jobs.finetune.predictor import JobPredictor
from plm.jobs.finetune.training import TrainingSettings
from plm.jobs.finetune.validation import Calibration, calibrate
from plm.model.adapters import AdapterSettings
from plm.model.bundles.fine_tuned import FineTunedBundle, load_bundle
from plm.model.checkpoint import resolve_model
from plm.training.folds import parts

RESIDUES = list("ACDEFGHIKLMNPQRSTVWY")
torch.set_num_threads(1)


def dataset(level: str, target: str, rows: int = 24, *, seed: int = 0, easy: bool = False) -> pd.DataFrame:
    """A labelled table with splits; with ``easy`` the label can be read from single residues."""
    generator = np.random.default_rng(seed)
    made = []
    for number in range(rows):
        letters = generator.choice(RESIDUES, 15 if level == "site" else int(generator.integers(10, 30)))
        row: dict[str, str] = {"id": f"r{number}", "split": ("train", "train", "valid", "test")[number % 4]}
        kind = (number // 4 + number) % 2
        if level == "site":
            letters[7] = "Y"
            if easy:
                letters[4] = "R" if kind else "D"
            row.update(position="8", window="15")
        elif easy:
            letters[: len(letters) // 2] = "W" if kind else "G"
        row["sequence"] = "".join(letters)
        if level == "residue":
            values = [("H" if a in "AELKM" else "C") if target == "class" else f"{ord(a) / 10}" for a in letters]
            values[0] = "-" if target == "class" else ""
            row["label"] = ("" if target == "class" else ",").join(values)
        else:
            row["label"] = str(kind) if target == "class" else f"{kind + generator.normal(scale=0.1):.3f}"
        made.append(row)
    return pd.DataFrame(made, dtype=str)


def job(
    frame: pd.DataFrame,
    model: Path,
    workdir: Path,
    *,
    method: str = "lora",
    others: tuple[str, ...] = (),
    seeds: tuple[int, ...] = (1,),
    window: int | None = None,
    fold: int | None = None,
    class_weights: str = "none",
    rank: int = 4,
    target: str = "auto",
    **training: Any,
) -> FineTuningJob:
    """A job that is ready for ``plan`` and ``train``."""
    workdir.mkdir(parents=True, exist_ok=True)
    rows = read_rows(frame, window=window, target=target)
    settings = FineTuningSettings(
        AdapterSettings(method, rank=rank),  # type: ignore[arg-type]
        TrainingSettings(**{"epochs": 1, "metric": choose_metric("auto", rows.task), **training}),
        {"width": 16, "reach": 3, "dropout": 0.1},
        class_weights,  # type: ignore[arg-type]
        seeds,
        others=tuple(AdapterSettings(other, rank=rank) for other in others),  # type: ignore[arg-type]
    )
    return FineTuningJob(
        rows, parts(frame, fold), resolve_model(str(model), workdir=workdir), settings,
        device=torch.device("cpu"), workdir=workdir, data_sha256="0" * 64, log=logging.getLogger("test"),
    )


def released(
    made: FineTuningJob, model: Path, path: Path, *, finished: bool = True
) -> tuple[FineTunedBundle, Calibration]:
    """The bundle of a trained job, written and loaded again."""
    calibration = calibrate(made)
    nothing = JobPredictor(None)
    content = manifest(
        made, calibration, name="tiny", finished=finished, licence="", alone=calibration, combined=nothing,
        choice="model",
    )
    release(made, path, calibration, content, model=str(model), device="cpu", allow_hub=False, combined=nothing)
    loaded = load_bundle(path, str(model), workdir=made.workdir / "reloaded", device="cpu", precision="fp32")
    return loaded, calibration


def trained(frame: pd.DataFrame, model: Path, workdir: Path, **options: Any) -> FineTuningJob:
    """A job after training."""
    made = job(frame, model, workdir, **options)
    made.plan()
    assert made.train()
    return made
