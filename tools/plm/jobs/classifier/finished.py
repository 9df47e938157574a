"""What a training of classifiers leaves: the bundle's head and manifest, predictions, scores beside baselines."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from plm import __version__
from plm.data.embeddings.description import UNUSUAL
from plm.data.predictions_table import BEFORE, PREDICTOR, TOGETHER
from plm.data.task import threshold_fields
from plm.jobs.classifier.final import Final
from plm.jobs.classifier.predictor import Answering, HeadAlone, answered
from plm.jobs.classifier.report import ClassifierFindings
from plm.model.bundles.classifier import reference_sample
from plm.model.combination import LANGUAGE_MODEL
from plm.scoring import baselines, metrics, novelty
from plm.scoring.assessment import assess
from plm.scoring.baselines import Answer
from plm.scoring.conformal import Coverage, Errors, coverage_on
from plm.scoring.cross_fitting import LabelledTexts
from plm.scoring.job_predictor import AnsweredRows
from plm.scoring.metrics import ALL
from plm.scoring.operating_point import score_summary
from plm.scoring.predictions import Evaluation, Model
from plm.training import classifiers, few_rows

if TYPE_CHECKING:
    import pandas as pd

    from plm.model.bundles.classifier import ClassifierBundle

from plm.jobs.classifier.material import Material
from plm.jobs.classifier.training import Trained, as_scored

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LIBRARIES = ("numpy", "scipy", "scikit-learn", "torch", "optuna", "safetensors")
FEWEST_RESAMPLES = 200
_RESAMPLED_ROWS = 2_000_000


def manifest(
    trained: Trained, final: Final, answering: Answering, *, name: str, licence: str, data_sha256: str,
    baseline: Mapping[str, float], choice: str = "auto",
) -> dict[str, Any]:
    """The bundle's manifest, less what :func:`plm.model.bundles.classifier.write_classifier_bundle` adds."""
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
            summary = score_summary(answering.validation[:, positive], answering.truth == positive)
    scores = {
        key: value for (key, of), value in validation_scores(trained, final, answering).items()
        if of == ALL and value == value
    }
    return {
        "name": name,
        **fields,
        "embedding": {
            "model": about.model, "model_sha256": about.model_sha256, "layers": list(about.layers),
            "pooling": about.pooling, "dimension": about.dimension, "dtype": about.dtype,
            UNUSUAL: about.notes.get(UNUSUAL, "x"),
        },
        "temperature": final.temperature,
        **threshold_fields(answering.threshold),
        "predictor": answering.built.to_json(choice, HeadAlone(final.threshold)),
        "novelty": novelty_summary(trained, final),
        "calibration": {
            "method": "temperature" if task.target == "class" and not final.why_uncalibrated else "none",
            "why_not": final.why_uncalibrated,
            "validation_scores": summary,
        },
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
    }


def validation_scores(trained: Trained, final: Final, answering: Answering) -> dict[metrics.Key, float]:
    """Every score of what the bundle answers with, on validation rows: (metric, class) to value."""
    material = trained.material
    if not answering.combined:
        probabilities, calls = trained.answers(trained.chosen, valid=True)
        return metrics.score(as_scored(material, probabilities, calls, np.asarray(final.valid_rows, np.int64)))
    values, truth = answering.validation, answering.truth
    if material.task.target == "number":
        return metrics.score(metrics.Scored("number", truth, values[:, 0], np.zeros(len(truth), np.int64)))
    return metrics.score(classifiers.scored(values, truth, material.task, answering.threshold))


def _versions() -> dict[str, str]:
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


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
        *_card_predictor(content.get("predictor") or {}),
        f"- Rows: {rows}; split: {content['split']}",
        f"- Data: sha256 {content['data_sha256']}",
        f"- Licence: {content['licence'] or 'not stated'}", "",
        f"Validation scores, which are optimistic because these rows also chose {_decided(content)}:", "",
        *(f"- {name}: {value:.4f}" for name, value in sorted(scores.items())), "",
        *([f"{few}.", ""] if (few := few_rows.warning(content["rows"])) else []),
        *([f"Not calibrated, since {why}.", ""] if (why := content["calibration"]["why_not"]) else []),
        "Answers hold for proteins like those it was trained on; plm_predict flags others.", "",
    ])


def _card_predictor(about: Mapping[str, Any]) -> list[str]:
    """What a model card says of the predictor; ``about`` is the manifest's, with its combination."""
    if not (held := about.get("combination")):
        return []
    kept = f"; {about['rows']:,} training sequences are kept in the bundle" if about.get("rows") else ""
    return [
        f"- Predictor: {', '.join(held['members'])} (the language model is this head){kept}; it needs the proteins' "
        "sequences beside their embeddings"
    ]


def _decided(content: Mapping[str, Any]) -> str:
    """What the validation rows chose, in words."""
    decisions = ["head or settings"]
    if content["calibration"]["method"] == "temperature":
        decisions += ["temperature"] + (["threshold"] if len(content["classes"]) == 2 else [])
    return " and ".join([", ".join(decisions[:-1]), decisions[-1]] if decisions[1:] else decisions)


# ------------------------------------------------------------------------------------------------- what users look at


def predictions(trained: Trained, bundle: ClassifierBundle, answering: Answering) -> pd.DataFrame:
    """The predictions table of validation and test rows.

    Of the head by the reloaded bundle, with folds by each fold's head. Where a predictor answers, its rows come first
    and those of its parts follow (column ``role``); none is answered by a member that learned from it.
    """
    import pandas as pd

    material = trained.material
    seed = str(trained.settings.seed)
    tables = []
    for part, member, own in zip(
        material.parts, trained.members[trained.chosen], answering.parts, strict=True
    ):
        rows = [*part.valid, *part.test]
        if material.folds:
            values, threshold = member.probabilities(np.concatenate([member.valid, member.test])), member.threshold
        else:
            values = bundle.predict_model(material.data.matrix[np.asarray(rows, np.int64)])
            threshold = bundle.model_threshold
        answered_rows = AnsweredRows(_beside(material, rows, len(part.valid), part.fold), material.task, bundle.name)
        if own is None:
            role = PREDICTOR if answering.combined else ""
            tables.append(answered_rows.table(values, answered_rows.calls(values, threshold), seed, role))
            continue
        tables += answered_rows.parts(
            own.fitted, own.told, own.together, [(seed, values)], own.threshold, threshold, folds=material.folds
        )
    return pd.concat(tables, ignore_index=True)


def _beside(material: Material, rows: Sequence[int], valid: int, fold: int | None) -> pd.DataFrame:
    """What stands beside the answers to some rows, of which the first ``valid`` are validation rows."""
    import pandas as pd

    data = material.data
    beside = dict(data.columns) | {"id": data.ids, "label": data.labels, "group": material.groups}
    if data.positions is not None:
        beside["position"] = list(map(str, data.positions))
    names = [name for name in (*BEFORE, "group", "cluster") if name in beside]
    frame = pd.DataFrame({name: [beside[name][row] for row in rows] for name in names}, dtype=str)
    frame["split"] = ["valid"] * valid + ["test"] * (len(rows) - valid)
    if fold is not None:
        frame["fold"] = str(fold)
    return frame


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
    by_part, done = [], 0
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
            )
        else:
            answers = [_constant(target[np.asarray(part.train, np.int64)], len(judged), order)]
        by_part.append((places, answers))
    return baselines.merge_folds(by_part, done, len(order))


def _examples(
    material: Material, texts: Sequence[str], target: NDArray[Any], rows: Sequence[int]
) -> LabelledTexts:
    chosen = [texts[row] for row in rows]
    groups = np.array([material.groups[row] for row in rows], dtype=object).astype(str)
    return LabelledTexts(chosen, target[np.asarray(rows, np.int64)], groups, len({*map(len, texts)}) == 1)


def _constant(target: NDArray[Any], count: int, classes: tuple[str, ...]) -> Answer:
    baseline = baselines.Constant()
    scores = baseline.fit(None, target, {}, len(classes)).answer(np.zeros(count))
    calls = scores.argmax(axis=1) if classes else np.zeros(count)
    return Answer(baselines.PREFIX + baseline.name, baseline.about, "", float("nan"), scores, calls.astype(np.int64))


def evaluation(trained: Trained, answers: Sequence[Answer], answering: Answering) -> Evaluation:
    """Predictor, all heads and baselines on the test rows: what the bundle answers with first, then the chosen head."""
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
    if answering.combined:
        values, own_calls, together, other_calls = answered(trained, answering)
        models.append(Model(PREDICTOR, as_scored(material, values, own_calls, rows)))
        scored = as_scored(material, together, other_calls, rows)
        models.append(Model(f"{TOGETHER} together", scored, role=TOGETHER, of=PREDICTOR))
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


def judge(trained: Trained, final: Final, answering: Answering, choice: str = "auto") -> ClassifierFindings:
    """Scores of predictor, heads and baselines on the test rows, with what the report needs."""
    material, settings = trained.material, trained.settings
    answers = baseline_answers(trained)
    judged = evaluation(trained, answers, answering)
    drawn = resamples(len(judged.rows), settings.resamples)
    best = baselines.best_of(answers, material.metric).name if len(answers) > 1 else answers[0].name
    assessment = assess(judged, material.metric, best_baseline=best, resamples=drawn, seed=settings.seed)
    names, kinds = classifiers.NAMES, list(trained.members)
    linear = trained.best([kind for kind in kinds if kind in classifiers.LINEAR])
    other = trained.best([kind for kind in kinds if kind not in classifiers.LINEAR])
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
    valid = validation_scores(trained, final, answering)
    about: dict[str, Any] = answering.built.to_json(choice, HeadAlone(final.threshold))
    validation = {names[kind]: value for kind, value in trained.validation.items()}
    if (fitted := answering.built.answering) is not None:
        about |= fitted.predictor.to_json()
        validation[PREDICTOR] = valid[material.metric, ALL]
        held = about["combination"]
        counting = [names[trained.chosen] if name == LANGUAGE_MODEL else name for name in held["members"]]
        told[PREDICTOR] = f"{held['way']}: {', '.join(counting)}"
    part = material.parts[0]
    counts = {"training": len(part.train), "valid": len(part.valid), "test": len(part.test)}
    if material.folds:
        counts = {"out-of-fold": len(rows), "valid": len(final.valid_rows)}
    few = few_rows.warning({"train": len(part.train), "valid": len(part.valid)})
    return ClassifierFindings(
        assessment, names[trained.chosen], names[linear], names[other], settings.head != "auto",
        validation, told, uncalibrated, valid, counts,
        material.split_by, final.about, answering.threshold if material.task.target == "class" else None,
        final.temperature,
        " ".join(filter(None, [material.loud, f"{few}." if few else ""])), tuple(material.notes), drawn,
        tuple((answer.name, answer.about, answer.setting) for answer in answers), coverage(trained, answering),
        final.why_uncalibrated, about,
    )


def coverage(trained: Trained, answering: Answering, promised: float = 0.9) -> Coverage | None:
    """How often sets or intervals of what answers, set on validation rows, hold the truth of test rows."""
    material = trained.material
    number = material.task.target == "number"
    parts = []
    for part, member, own in zip(material.parts, trained.members[trained.chosen], answering.parts, strict=True):
        if part.test:
            known = material.target[np.asarray(part.valid, np.int64)]
            errors = Errors.of(member.probabilities(member.valid), known, number=number)
            values = member.probabilities(member.test)
            if own is not None:
                errors, values = own.errors, own.rows(own.told.answers, valid=False)
            parts.append((errors, values, material.target[np.asarray(part.test, np.int64)]))
    return coverage_on(parts, promised) if parts else None
