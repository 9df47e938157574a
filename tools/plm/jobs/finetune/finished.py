"""From trained networks to what the user gets: calibration, the bundle, and predictions by the reloaded bundle.

Temperatures and thresholds come from validation rows alone. With folds each fold has its own, from its own validation
rows, for its out-of-fold predictions; the bundle's threshold for new proteins comes from the validation rows of all
folds together.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from plm import __version__
from plm.data.dataset_table import residue_labels
from plm.data.predictions_table import AFTER, BEFORE, PREDICTOR
from plm.data.task import LIKELIEST, threshold_fields
from plm.jobs.finetune import objectives
from plm.jobs.finetune.job import FineTuningJob, Run
from plm.jobs.finetune.predictor import texts_of, unseen_units
from plm.jobs.finetune.validation import Calibration
from plm.model.bundles.fine_tuned import FineTunedBundle, MemberFiles, save_network, write_bundle
from plm.model.network import answers
from plm.scoring import novelty
from plm.scoring.job_predictor import AnsweredRows, JobPredictor, explain_unseen
from plm.training import few_rows

if TYPE_CHECKING:
    import pandas as pd

    from plm.jobs.finetune.method_choice import MethodResult

REFERENCE_ROWS = 512
REFERENCE_PROTEINS = 64
"""Of residue tasks proteins whose residues are sampled."""
ENSEMBLE = "ensemble"
LIBRARIES = ("torch", "transformers", "peft", "accelerate", "safetensors", "numpy")


def manifest(
    job: FineTuningJob, calibration: Calibration, *, name: str, finished: bool, licence: str,
    compared: Sequence[MethodResult] = (), alone: Calibration, combined: JobPredictor, choice: str = "auto",
) -> dict[str, Any]:
    """The content of ``manifest.json``, less what :func:`plm.model.bundles.fine_tuned.write_bundle` adds.

    Args:
        job: Job whose trainings are done.
        calibration: Temperatures and thresholds of the chosen method.
        name: Name of the model in tables and reports.
        finished: False if a time limit cut the training short.
        licence: Licence for the model card.
        compared: The ways of which this one was chosen, if there were several.
        alone: Temperatures and thresholds of the language model alone.
        combined: Sequence members and their combination with it.
        choice: What was asked for: ``auto``, ``model`` or ``combination``.
    """
    task = job.prepared[job.usable[0].part.fold].task
    used = sorted({row for run in job.usable for row in run.part.train})
    values = job.rows.values(used)
    known = values[objectives.labelled(values)]
    shares = {}
    if task.target == "class":
        counts = np.bincount(known, minlength=len(task.classes))
        shares = {name: float(count / counts.sum()) for name, count in zip(task.classes, counts, strict=True)}
    fitted = task.target == "class" and len(alone.uncalibrated) < len({run.part.fold for run in job.usable})
    _, network = job.network(job.settings.seeds[0])
    family = network.family
    return {
        "name": name,
        **task.to_json(),
        "method": job.chosen.method,
        "base": {"id": job.files.id, "sha256": job.files.sha256, "family": family.name},
        "tokenizer": {"before": list(family.before), "after": list(family.after), "unknown_residues": "X"},
        "window": job.rows.window,
        "longest_training_segment": job.budget.residues if job.budget else None,
        "site_residues": job.rows.site_residues(used),
        "head": network.head.config.to_json(),
        **threshold_fields(calibration.threshold),
        "calibration": {
            "method": "temperature" if fitted else "none",
            "why_not": alone.why_not,
            "threshold_chosen": task.target == "class" and not calibration.why_no_threshold,
            "temperature": float(np.mean(calibration.temperatures)),
            "fold_thresholds": {str(fold): value for fold, value in calibration.thresholds.items() if fold is not None},
            "rows": calibration.rows,
            "validation_scores": calibration.validation_scores,
        },
        "conformal": calibration.errors,
        "training_prevalence": shares.get(task.positive) if task.binary else (shares or None),
        "metrics": {"split": "valid", **{name: _plain(value) for name, value in calibration.scores.items()}},
        "selection_metric": job.settings.training.metric,
        "data_sha256": job.data_sha256,
        "rows": {name: len({row for run in job.usable for row in getattr(run.part, name)}) for name in _PARTS},
        "seeds": sorted({run.seed for run in job.usable}),
        "settings": replace(job.settings, adapter=job.chosen, others=()).to_json(),
        "compared": [way.to_json() for way in compared],
        "predictor": combined.to_json(choice, alone),
        "versions": {"suite": __version__, "python": platform.python_version(), **_versions()},
        "licence": licence,
        "finished": finished,
    }


_PARTS = ("train", "valid", "test")


def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in LIBRARIES}


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def release(
    job: FineTuningJob, path: Path, calibration: Calibration, content: Mapping[str, Any], *, model: str, device: str,
    allow_hub: bool, combined: JobPredictor,
) -> None:
    """Writes the bundle of a job's trainings.

    Args:
        job: Job whose trainings are done.
        path: Bundle file (zip) to write.
        calibration: Temperatures and thresholds, from :func:`calibrate`.
        content: Content of ``manifest.json``, from :func:`manifest`.
        model: Path or name of the base model.
        device: Device on which the expected outputs of the self-test are computed: auto, cpu or cuda.
        allow_hub: The base model may come from the hub.
        combined: Sequence members and their combination with the language model.
    """
    members: list[MemberFiles] = []
    reference, distances = None, dict[str, Any]()
    for number, (run, temperature) in enumerate(zip(job.usable, calibration.temperatures, strict=True)):
        loaded, network = job.trained_network(run)
        folder = job.workdir / "members" / str(number)
        save_network(network, loaded, job.chosen.method, folder)
        scale = job.prepared[run.part.fold].task
        members.append(MemberFiles(folder, run.seed, run.part.fold, temperature, scale.mean, scale.sd))
        if reference is None:
            reference = _reference(job, run, loaded, network)
            distances = _distances(job, run, loaded, network, reference[0])
    assert reference is not None
    write_bundle(
        path, members, {**content, "novelty": distances}, base=model, card=card(content), reference=reference,
        workdir=job.workdir, device=device, precision=job.settings.precision, allow_hub=allow_hub,
        predictor=None if combined.answering is None else combined.answering.predictor,
    )


def _reference(
    job: FineTuningJob, run: Run, loaded: Any, network: Any
) -> tuple[NDArray[np.float32], list[str], list[str]]:
    """Representations of an evenly spread sample of training rows (or residues) with their ids and labels."""
    assert job.budget is not None
    most = REFERENCE_PROTEINS if job.rows.task.level == "residue" else REFERENCE_ROWS
    step = max(1, -(-len(run.part.train) // most))
    chosen = run.part.train[::step]
    examples = job.rows.examples(loaded, chosen, job.budget.residues)
    _, states = answers(network, examples.units, job.budget.tokens, represent=True)
    ids, labels = job.rows.frame["id"].tolist(), job.rows.frame["label"].tolist()
    names: list[str] = []
    told: list[str] = []
    for unit in examples.units:
        for row in unit.rows:
            if job.rows.task.level == "residue":
                count = unit.answers("residue")
                each = residue_labels(labels[chosen[row]])[unit.offset : unit.offset + count]
                names += [f"{ids[chosen[row]]}:{unit.offset + at + 1}" for at in range(count)]
                told += each
            else:
                names.append(ids[chosen[row]])
                told.append(labels[chosen[row]])
    together = np.concatenate(states)
    if job.rows.task.level == "sequence":
        together = np.repeat(together, [len(unit.rows) for unit in examples.units], axis=0)
    spread = max(1, -(-len(names) // REFERENCE_ROWS))
    return together[::spread], names[::spread], told[::spread]


def _distances(
    job: FineTuningJob, run: Run, loaded: Any, network: Any, reference: NDArray[np.float32]
) -> dict[str, Any]:
    """How far validation proteins lie from the reference; empty unless rows are proteins."""
    if job.rows.task.level != "sequence" or not run.part.valid:
        return {}
    assert job.budget is not None
    step = max(1, -(-len(run.part.valid) // REFERENCE_ROWS))
    examples = job.rows.examples(loaded, run.part.valid[::step], job.budget.residues)
    _, states = answers(network, examples.units, job.budget.tokens, represent=True)
    return novelty.summary(reference, [(np.arange(len(reference)), np.concatenate(states))])


def card(content: Mapping[str, Any]) -> str:
    """The bundle's model card."""
    task, base = content["task"], content["base"]
    what = "numbers" if task["target"] == "number" else f"the classes {', '.join(content['labels'])}"
    scores = {key: value for key, value in content["metrics"].items() if isinstance(value, float)}
    lines = [
        f"# {content['name']}: a fine-tuned protein language model",
        "",
        *([] if content["finished"] else ["**Unfinished: training was stopped by its time limit.**", ""]),
        f"Predicts {what} for each {task['level']}; base model {base['id']} (sha256 {base['sha256']}).",
        "",
        f"- Method: {content['method']}{_among(content)}; seeds {', '.join(map(str, content['seeds']))}",
        f"- Context of a site: {content['window'] or 'the whole protein'}{' residues' if content['window'] else ''}"
        if task["level"] == "site" else "- Context: the whole sequence",
        "- Rows: " + ", ".join(f"{count} {name}" for name, count in content["rows"].items()),
        f"- Data: sha256 {content['data_sha256']}",
        f"- Licence: {content['licence'] or 'not stated'}",
        "",
        f"{validation_chose(content)} The scores on them:",
        "",
        *(f"- {name}: {value:.4f}" for name, value in sorted(scores.items())),
        "",
        *([f"{text}.", ""] if (text := few_rows.warning(content["rows"])) else []),
        "Evaluate on test rows with plm_evaluate before you rely on it."
        + (
            " The adapter loads with PEFT alone."
            if content["method"] not in ("head", "full") and len(content["seeds"]) == 1
            else ""
        ),
        "",
    ]
    return "\n".join(lines)


def validation_chose(content: Mapping[str, Any]) -> str:
    """What the validation rows decided, and what they could not, in sentences; for report and model card alike."""
    calibration, number = content["calibration"], content["task"]["target"] == "number"
    decided = ["the method"] if content["compared"] else []
    decided += ["the epoch"] if content["settings"]["training"]["epochs"] > 1 else []
    decided += ["the temperature"] if calibration["method"] == "temperature" else []
    one = bool(content["positive"])
    decided += [f"the threshold{'' if one else 's'}"] if calibration["threshold_chosen"] else []
    told = "The validation rows chose nothing."
    if decided:
        listed = " and ".join([", ".join(decided[:-1]), decided[-1]] if decided[1:] else decided)
        told = f"The validation rows chose {listed}, so that scores on them are optimistic."
    if calibration["why_not"] and not number:
        threshold = "" if calibration["threshold_chosen"] or not content["positive"] else " and the threshold is 0.5"
        some = calibration["method"] == "temperature"
        told += f" {'Not calibrated: ' if some else f'Probabilities are not calibrated{threshold}, since '}"
        told += f"{calibration['why_not']}."
    return told


def _among(content: Mapping[str, Any]) -> str:
    ways = [way["method"] for way in content["compared"]]
    return f" (of {', '.join(ways)} the best on validation rows)" if ways else ""


def predictions(
    bundle: FineTunedBundle, job: FineTuningJob, calibration: Calibration, *, alone: Calibration,
    combined: JobPredictor, advance: Callable[[int], None] | None = None,
) -> pd.DataFrame:
    """The predictions table of validation and test rows, by the reloaded bundle.

    With folds each row is predicted by the networks and the combination of its fold, and appears once as test and once
    as validation row. Where sequence members were fitted, rows of the language model alone and of each member follow
    (column ``role``). Members are asked about validation rows only if they have not learned from them; else what they
    said of them in cross-fitting stands there.

    Args:
        bundle: The reloaded bundle.
        job: Job whose trainings are done.
        calibration: Thresholds of the predictor.
        alone: Thresholds of the language model alone.
        combined: Members and combinations, by fold.
        advance: Called with the number of encoded units finished.
    """
    import pandas as pd

    assert job.budget is not None
    tables = []
    parts = {run.part.fold: run.part for run in job.usable}
    several = len(job.settings.seeds) > 1
    for fold, part in parts.items():
        members = [number for number, member in enumerate(bundle.members) if member.fold == fold]
        rows = [*part.valid, *part.test]
        sequences, positions = texts_of(job, rows)
        each = bundle.predict_members(sequences, positions, job.budget.tokens, members=members, advance=advance)
        base = _row_columns(job, rows, len(part.valid), fold)
        answered = AnsweredRows(base, bundle.task, bundle.name, bundle.finished)
        seeds = [str(bundle.members[number].seed) for number in members]
        models = [(ENSEMBLE, each.mean(axis=0)), *zip(seeds, each, strict=True)] if several else [(seeds[0], each[0])]
        threshold = calibration.thresholds.get(fold, LIKELIEST)
        fitted = combined.folds.get(fold)
        if fitted is None:
            role = PREDICTOR if combined.folds else ""
            tables += [answered.table(values, answered.calls(values, threshold), seed, role) for seed, values in models]
            continue
        units = unseen_units(job, part.valid, combined.judged[fold])
        told, together = explain_unseen(fitted, models[0][1], sequences, positions, units)
        tables += answered.parts(
            fitted, told, together, models, threshold, alone.thresholds.get(fold, LIKELIEST), folds=fold is not None
        )
    return pd.concat(tables, ignore_index=True)


def _row_columns(job: FineTuningJob, rows: Sequence[int], valid: int, fold: int | None) -> pd.DataFrame:
    import pandas as pd

    frame = job.rows.frame.iloc[list(rows)].reset_index(drop=True)
    frame["split"] = ["valid"] * valid + ["test"] * (len(rows) - valid)
    if fold is not None:
        frame["fold"] = str(fold)
    frame = frame[[name for name in (*BEFORE, *AFTER) if name in frame.columns]]
    if job.rows.task.level != "residue":
        return frame
    labels = frame["label"].map(residue_labels)
    counts = labels.map(len).to_numpy()
    long = frame.loc[np.repeat(np.arange(len(frame)), counts)].reset_index(drop=True)
    long["label"] = ["" if value == "-" else value for row in labels for value in row]
    place = [str(at + 1) for count in counts for at in range(count)]
    if "position" in long.columns:
        long["position"] = place
    else:
        long.insert(1, "position", place)
    return pd.DataFrame(long)
