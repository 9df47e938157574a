"""What a bundle's manifest may say: every field that is acted on, by type and range.

Paths in a manifest are never followed: members lie where :func:`member_folder` says. Text is cleaned of tabs and line
ends before anything is shown of it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from plm.data.task import LEVELS, TARGETS
from plm.errors import UserError
from plm.model.combination import LANGUAGE_MODEL
from plm.received.documents import cleaned
from plm.received.fields import Fields, shown

AGAIN = "Give the bundle as the suite wrote it"
MOST_MEMBERS = 1000
_FINGERPRINT = re.compile(r"[0-9a-f]{64}(?:\.[0-9a-f]{64})?")
_FINETUNED = ("name", "base", "window", "members", "head", "method", "threshold", "task")
_EMBEDDING = (
    "name", "task", "classes", "positive", "embedding", "head", "standardise", "temperature", "threshold",
)
_MOST = 1e12


def member_folder(folder: Path, number: int, count: int) -> Path:
    """Where the files of a member lie: the top of a bundle of one, else ``members/0``, ``members/1``, ..."""
    return folder / "members" / str(number) if count > 1 else folder


def check_finetuned(
    manifest: Mapping[str, Any], where: str, methods: tuple[str, ...], heads: Collection[tuple[str, str]]
) -> dict[str, Any]:
    """The manifest of a fine-tuned model, its text cleaned.

    Args:
        manifest: As it lies in the bundle.
        where: The bundle's file.
        methods: Names of the ways to fine-tune.
        heads: Level and kind of every head that can be built; the first of a level stands where no kind is named.

    Raises:
        UserError: A field is missing, of a wrong type, or out of range.
    """
    content: dict[str, Any] = cleaned(dict(manifest))
    fields = _opened(content, where)
    fields.need(*_FINETUNED)
    _drop_null(content["head"])
    fields.text("name")
    base = fields.inside("base")
    base.text("id")
    _fingerprint(base, "sha256", where)
    fields.whole("window", 0, 1_000_000)
    fields.text("method", choices=methods)
    _task(fields, "labels")
    _threshold(fields, len(content["labels"]), where)
    head = fields.inside("head")
    level = head.text("level", choices=LEVELS)
    kinds = tuple(kind for of, kind in heads if of == level)
    head.text("kind", choices=kinds, default=kinds[0])
    for name, most, default in (
        ("hidden_size", 1_000_000, None), ("outputs", 1_000_000, None), ("width", 1_000_000, 64),
        ("reach", 10_000, 7), ("neighbour_width", 1_000_000, 32),
    ):
        if default is None or name in head:
            head.whole(name, 0 if name == "reach" else 1, most)
    if "dropout" in head:
        head.number("dropout", 0, 0.999)
    known = {"level", "kind", "hidden_size", "outputs", "width", "reach", "neighbour_width", "dropout"}
    if unknown := set(head.content) - known:
        raise UserError(f"The bundle's head has unknown settings ({', '.join(sorted(unknown))[:80]})", where=where,
                        fix="Use the version of the suite that made it")
    for member in fields.entries("members", most=MOST_MEMBERS):
        member.number("temperature", 0, _MOST, above=True)
        member.number("mean", -_MOST, _MOST)
        member.number("sd", 0, _MOST, above=True)
        member.whole("seed", -(2**70), 2**70)
        if "fold" in member and not isinstance(member.content["fold"], str):
            member.whole("fold", -(2**63), 2**63 - 1)
        member.content.setdefault("fold", None)  # type: ignore[attr-defined]
    _predictor(fields, len(content["labels"]), where)
    _shared(fields, len(content["labels"]))
    return content


def check_classifier(manifest: Mapping[str, Any], where: str, kinds: tuple[str, ...]) -> dict[str, Any]:
    """The manifest of a classifier of embeddings, its text cleaned.

    Raises:
        UserError: As :func:`check_finetuned`.
    """
    content: dict[str, Any] = cleaned(dict(manifest))
    fields = _opened(content, where)
    fields.need(*_EMBEDDING)
    _drop_null(content["head"])
    fields.text("name")
    fields.number("temperature", 0, _MOST, above=True)
    fields.flag("standardise")
    _task(fields, "classes")
    _threshold(fields, len(content["classes"]), where)
    about = fields.inside("embedding")
    about.text("model")
    _fingerprint(about, "model_sha256", where)
    about.numbers("layers", 0, 100_000, most=10_000)
    about.text("pooling", choices=("mean", "max", "first", "residues", "sites", ""))
    about.text("dtype", choices=("float16", "float32"))
    about.whole("dimension", 1, 10_000_000)
    head = fields.inside("head")
    kind = head.text("kind", choices=kinds)
    if kind == "neighbours":
        head.whole("k", 1, 1_000_000)
        head.text("metric", choices=("cosine", "euclidean"))
        head.numbers("prior", 0, 1, most=1_000_000)
    _predictor(fields, len(content["classes"]), where)
    _shared(fields, len(content["classes"]))
    return content


def _opened(content: Mapping[str, Any], where: str) -> Fields:
    return Fields(content, "The bundle's manifest", where, AGAIN)


def _fingerprint(fields: Fields, name: str, where: str) -> None:
    value = fields.text(name)
    if value and _FINGERPRINT.fullmatch(value) is None:
        raise UserError(
            f"The bundle's manifest names {shown(value)} as a model's fingerprint, which it is not", where=where,
            fix=AGAIN,
        )


def _task(fields: Fields, classes: str) -> None:
    task = fields.inside("task")
    for name, known in (("level", LEVELS), ("target", TARGETS)):
        if task.text(name) not in known:
            raise UserError("The bundle's manifest describes a task that this version does not know", fix=AGAIN)
    names = fields.texts(classes, most=100_000)
    if len(set(names)) < len(names):
        raise UserError("The bundle's manifest names a class twice", fix=AGAIN)
    fields.text("positive", most=2000, default="")
    if "standardisation" in fields:
        scale = fields.inside("standardisation")
        scale.number("mean", -_MOST, _MOST)
        scale.number("sd", 0, _MOST, above=True)
    elif task.content["target"] == "number":
        fields.need("standardisation")


def _drop_null(content: Any) -> None:
    """Takes out fields that hold nothing, in place: whoever reads them asks whether they are there."""
    if isinstance(content, dict):
        for name in [name for name, value in content.items() if value is None]:
            del content[name]
        for value in content.values():
            _drop_null(value)


def _threshold(fields: Fields, classes: int, where: str) -> None:
    """Threshold of two classes, and those of several, which bundles of earlier versions do not have."""
    fields.number("threshold", 0, 1, default=0.5)
    if fields.content.get("class_thresholds") is None:
        return
    several = fields.numbers("class_thresholds", 1e-12, 1, most=1_000_000)
    if classes < 3 or len(several) != classes:
        raise UserError(
            f"The bundle's manifest has {len(several)} class thresholds for {classes} classes", where=where, fix=AGAIN
        )


def _predictor(fields: Fields, classes: int, where: str) -> None:
    """Sequence members and their combination, where a bundle has them."""
    if not fields.content.get("predictor"):
        return
    about = fields.inside("predictor")
    if not about.content.get("combination"):
        return
    if about.content.get("language_model"):
        alone = about.inside("language_model")
        _threshold(alone, classes, where)
        _drop_null(alone.content.get("conformal"))
        if "conformal" in alone:
            outputs = classes if fields.content["task"]["target"] == "class" else 1
            _conformal(alone.inside("conformal"), outputs)
    about.whole("width", 0, 1001)
    about.whole("length", 0, 100_000)
    about.whole("rows", 0, 1_000_000)
    names = []
    for member in about.entries("members", most=100):
        names.append(member.text("name"))
        for name in ("kind", "view"):
            member.text(name)
        member.inside("setting")
    held = about.inside("combination")
    held.text("way", choices=("single", "mean", "stacked"))
    counting = held.texts("members", most=100)
    for name, size in (("weights", len(counting)), ("slopes", len(counting)), ("bias", max(classes, 1))):
        numbers = held.numbers(name, -_MOST if name == "bias" else 0, _MOST, most=100_000)
        if len(numbers) != size:
            raise UserError(
                f"The bundle's combination has {len(numbers)} {name} for {size}", where=where, fix=AGAIN
            )
    missing = [name for name in counting if name not in (*names, LANGUAGE_MODEL)]
    if missing or len(set(counting)) < len(counting) or not counting:
        told = f"counts on {', '.join(missing)}, which it does not hold" if missing else "names none, or one twice"
        raise UserError(f"The bundle's combination {told}", where=where, fix=AGAIN)


def _shared(fields: Fields, classes: int) -> None:
    """Fields that bundles of both kinds may have."""
    if "finished" in fields:
        fields.flag("finished")
    for name in ("site_residues", "licence", "selection_metric"):
        if name in fields:
            fields.text(name)
    for name in ("metrics", "rows", "versions"):
        if name in fields:
            fields.inside(name)
    for name in ("calibration", "novelty", "conformal"):
        _drop_null(fields.content.get(name))
    if "calibration" in fields:
        calibration = fields.inside("calibration")
        if "validation_scores" in calibration:
            scores = calibration.inside("validation_scores")
            for name in ("negatives", "positives"):
                if name in scores:
                    side = scores.inside(name)
                    side.whole("count", 0, 10**12, default=0)
                    if "scores" in side:
                        side.numbers("scores", 0, 1)
    if "training_prevalence" in fields:
        if isinstance(fields.content["training_prevalence"], Mapping):
            shares = fields.inside("training_prevalence")
            for name in shares.content:
                shares.number(name, 0, 1)
        else:
            fields.number("training_prevalence", 0, 1)
    if "novelty" in fields:
        novelty = fields.inside("novelty")
        if novelty.content:
            novelty.whole("k", 1, 1_000_000)
            novelty.whole("rows", 0, 10**12)
            novelty.numbers("distances", 0, _MOST)
    if "conformal" in fields:
        outputs = classes if fields.content["task"]["target"] == "class" else 1
        _conformal(fields.inside("conformal"), outputs)


def _conformal(errors: Fields, outputs: int) -> None:
    if errors.content:
        errors.whole("outputs", outputs, outputs)
        errors.numbers("scores", 0, _MOST)
        if "classes" in errors:
            errors.numbers("classes", 0, outputs - 1)
