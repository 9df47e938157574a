"""Bundles of classifiers on embeddings: one small zip that answers for embeddings, and proves itself on loading.

Members of the zip (written and checked by :mod:`plm.model.bundles.archive`)::

    manifest.json            task, what the embeddings must be, head and its settings, calibration, metrics, digests
    head.safetensors         every array of the head, its scaling included
    validation.safetensors   calibrated probabilities (or numbers) of validation rows and their truth; beside sequence
                             members those of the head alone too
    sequence_members.*       predictors that need no language model, and the training rows that they compare with
    reference.safetensors    a sample of training embeddings (float16); their ids and labels in reference.json
    self_test.json           rows of that sample and the expected answers
    README.md                model card

Inference is plain numpy: whoever loads a bundle needs neither torch nor scikit-learn. Compressed arrays are expanded on
loading (:mod:`plm.jobs.classifier.compression` writes them):

* ``x`` of whole numbers (int8) with ``x.scale``, one number for each of its rows or one for all: their product;
* ``x`` of one dimension with ``x.mask`` (W, ceil(D / 8)) uint8 and ``x.columns`` (1,) = D: the numbers of a (W, D)
  array where the mask's bits are set, row by row; zeros elsewhere.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from plm import fingerprints
from plm.data.embeddings.description import UNUSUAL
from plm.data.embeddings.files import Description
from plm.data.task import Task, Threshold, threshold_of
from plm.errors import UserError
from plm.model.bundles import archive, manifests
from plm.model.bundles.archive import SCHEMA_VERSION, bundle_kind, json_text, write_zip
from plm.model.bundles.bundle import Bundle, check_self_test
from plm.model.bundles.predictor import Explained, Predictor, Reasons, alone, no_others, read_predictor
from plm.received import tensors
from plm.received.documents import as_object, cleaned, has_breaks, one_line, read_json
from plm.received.fields import Fields

__all__ = [
    "ClassifierBundle",
    "ClassifierHead",
    "bundle_kind",
    "check_embeddings",
    "load_classifier_bundle",
    "write_classifier_bundle",
]

HeadKind = Literal["logistic", "ridge", "neighbours", "feedforward"]
KINDS: tuple[HeadKind, ...] = ("logistic", "ridge", "neighbours", "feedforward")
REFERENCE_ROWS = 2000
VALIDATION_ROWS = 20_000
"""Most rows that a bundle keeps of each kind."""
_BLOCK_BYTES = 32 * 2**20
_SELF_TEST_ROWS = 8
_PARTS = (".scale", ".mask", ".columns")
_AGAIN = "Give the bundle as plm_train_classifier wrote it"
_TOLERANCE = 2e-3
"""How far a probability (or a standardised number) may move between machines."""
_NEEDED = (
    "name", "task", "classes", "positive", "embedding", "head", "standardise", "temperature", "threshold",
)

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]


@dataclass(frozen=True)
class ClassifierHead:
    """What stands on the embeddings: arrays, and how they answer.

    ==============  ===================================================================================================
    ``logistic``    ``weight`` (K, D) and ``bias`` (K,): linear scores (K = 1 for numbers)
    ``ridge``       the same
    ``neighbours``  ``rows`` (M, D) and ``targets`` (M,) class numbers or standardised numbers; settings ``k``,
                    ``metric`` (``cosine`` or ``euclidean``) and ``prior`` (K shares)
    ``feedforward`` ``weight0`` (W, D), ``bias0`` (W,), ``weight1``, ...: linear layers with ReLU between
    ==============  ===================================================================================================

    Attributes:
        kind: Kind of head, one of ``KINDS``.
        arrays: Numbers by name. ``mean`` and ``scale`` (D,), where there are, standardise the embeddings first.
        settings: Settings of the head; the manifest's ``head`` has them too.
    """

    kind: HeadKind
    arrays: Mapping[str, NDArray[Any]]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def dimension(self) -> int:
        """Numbers in an embedding (D)."""
        name = {"neighbours": "rows", "feedforward": "weight0"}.get(self.kind, "weight")
        return int(self.arrays[name].shape[1])

    @property
    def standardise(self) -> bool:
        """Whether embeddings are scaled to mean 0 and deviation 1 of the training rows."""
        return "scale" in self.arrays

    def decoded(self) -> ClassifierHead:
        """The same with compressed arrays expanded, in float32; class numbers stay."""
        arrays: dict[str, NDArray[Any]] = {}
        for name, array in self.arrays.items():
            if name.endswith(_PARTS):
                continue
            if f"{name}.mask" in self.arrays:
                array = _filled(array, self.arrays[f"{name}.mask"], int(self.arrays[f"{name}.columns"][0]))
            if f"{name}.scale" in self.arrays:
                scale = np.asarray(self.arrays[f"{name}.scale"], np.float32)
                arrays[name] = array.astype(np.float32) * (scale[:, None] if array.ndim == 2 and scale.ndim else scale)
            else:
                arrays[name] = array.astype(np.float32) if array.dtype.kind == "f" else array
        return ClassifierHead(self.kind, arrays, self.settings)

    def standardised(self, matrix: NDArray[Any]) -> Singles:
        """``(N, D) float32`` as the head sees it."""
        values = np.asarray(matrix, np.float32)
        if not self.standardise:
            return values
        scaled: Singles = (values - self.arrays["mean"]) / self.arrays["scale"]
        return scaled

    def scores(self, matrix: NDArray[Any]) -> Floats:
        """``(N, D)`` embeddings to uncalibrated logits ``(N, K)`` or standardised numbers ``(N, 1)``, float64."""
        step = max(1, _BLOCK_BYTES // (4 * max(self.dimension, 1)))
        parts = [self._block(self.standardised(matrix[start : start + step])) for start in range(0, len(matrix), step)]
        return np.concatenate(parts).astype(np.float64) if parts else np.zeros((0, self._outputs()))

    def _outputs(self) -> int:
        if self.kind == "neighbours":
            return len(self.settings["prior"]) or 1
        return len(self.arrays["bias" if self.kind != "feedforward" else f"bias{self._depth() - 1}"])

    def _depth(self) -> int:
        return sum(name.startswith("weight") and "." not in name for name in self.arrays)

    def _block(self, values: Singles) -> NDArray[Any]:
        if self.kind == "neighbours":
            return self._neighbours(values)
        if self.kind != "feedforward":
            return np.asarray(values @ self.arrays["weight"].T + self.arrays["bias"])
        layers = self._depth()
        for layer in range(layers):
            values = values @ self.arrays[f"weight{layer}"].T + self.arrays[f"bias{layer}"]
            if layer < layers - 1:
                np.maximum(values, 0, out=values)
        return values

    def _neighbours(self, values: Singles) -> Floats:
        rows, targets = self.arrays["rows"], self.arrays["targets"]
        count, cosine = min(int(self.settings["k"]), len(rows)), self.settings["metric"] == "cosine"
        prior = np.asarray(self.settings["prior"], np.float64)
        near, _ = nearest_rows(values, rows, count, cosine=cosine)
        if not len(prior):
            return np.asarray(targets, np.float64)[near].mean(axis=1)[:, None]
        votes = np.stack([(targets[near] == index).sum(axis=1) for index in range(len(prior))], axis=1)
        # Votes with the class shares of training as one more neighbour: no class is ever impossible.
        return np.log((votes + prior) / (count + 1.0))


def _filled(kept: NDArray[Any], mask: NDArray[Any], columns: int) -> NDArray[Any]:
    """The numbers of a pruned array at their places."""
    places = np.unpackbits(mask, axis=1, count=columns).astype(bool)
    if kept.shape != (int(places.sum()),):
        raise ValueError(f"{len(kept)} numbers for {int(places.sum())} places")
    full = np.zeros(places.shape, kept.dtype)
    full[places] = kept
    return full


def nearest_rows(
    values: NDArray[Any], rows: NDArray[Any], count: int, *, cosine: bool
) -> tuple[NDArray[np.int64], Floats]:
    """The ``count`` rows nearest to each of the values, nearest first, and their distances, each ``(N, count)``.

    Args:
        values: ``(N, D)`` vectors whose neighbours are wanted.
        rows: ``(M, D)``; at least ``count``.
        count: Number of neighbours of each vector.
        cosine: Cosine distance (1 - cosine) instead of the Euclidean one.
    """
    one, other = np.asarray(values, np.float32), np.asarray(rows, np.float32)
    if cosine:
        one, other = _unit(one), _unit(other)
    own = (other.astype(np.float64) ** 2).sum(axis=1)
    near = np.empty((len(one), count), np.int64)
    distance = np.empty((len(one), count))
    step = max(1, _BLOCK_BYTES // (8 * max(len(other), 1)))
    for start in range(0, len(one), step):
        part = one[start : start + step]
        squares = own - 2.0 * (part @ other.T) + (part.astype(np.float64) ** 2).sum(axis=1)[:, None]
        chosen = np.argpartition(squares, count - 1, axis=1)[:, :count] if count < len(other) else None
        chosen = np.broadcast_to(np.arange(len(other)), squares.shape) if chosen is None else np.sort(chosen, axis=1)
        near_squares = np.take_along_axis(squares, chosen, axis=1)
        order = np.argsort(near_squares, axis=1, kind="stable")
        near[start : start + step] = np.take_along_axis(chosen, order, axis=1)
        distance[start : start + step] = np.maximum(np.take_along_axis(near_squares, order, axis=1), 0)
    return near, distance / 2 if cosine else np.sqrt(distance)


def _unit(rows: Singles) -> Singles:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(length > 0, length, 1)).astype(np.float32, copy=False)


class ClassifierBundle(Bundle):
    """A classifier: answers for embeddings of proteins (level ``sequence``) or sites, and their sequences.

    The head on embeddings is what the language model says; a predictor combines it with sequence members.

    Attributes:
        head: Classifier head with float32 arrays.
        stored: The same head as the file holds it, perhaps compressed.
        embedding: Model, layer, pooling and dimension that embeddings must have.
        validation_scores: ``(n, K)`` calibrated probabilities (``(n, 1)`` numbers) of validation rows, and their truth:
            ``(n,)`` class numbers or numbers. Rows that chose head, temperature and threshold, never test rows.
        model_validation_scores: The same of the head alone; other numbers where there is a predictor.
    """

    def __init__(
        self, manifest: Mapping[str, Any], head: ClassifierHead, reference: tuple[list[str], list[str], Singles],
        validation_scores: tuple[Floats, NDArray[Any]], *, predictor: Predictor | None = None,
        model_validation_scores: tuple[Floats, NDArray[Any]] | None = None,
    ) -> None:
        super().__init__(manifest, task_of(manifest), predictor)
        self.stored = head
        self.head = head.decoded()
        about = dict(manifest["embedding"])
        self.embedding = Description(
            str(about["model"]), str(about["model_sha256"]), tuple(int(layer) for layer in about["layers"]),
            about["pooling"], about["dtype"], int(about["dimension"]),
            {UNUSUAL: "own" if about.get(UNUSUAL) == "own" else "x"},
        )
        self._reference = reference
        self.validation_scores = validation_scores
        self.model_validation_scores = (
            validation_scores if model_validation_scores is None else model_validation_scores
        )

    @property
    def model_threshold(self) -> Threshold:
        """What calls are made by from answers of the head alone."""
        if self.predictor is None:
            return self.threshold
        return threshold_of(self.manifest["predictor"].get("language_model", {}))

    def leave_language_model_alone(self) -> None:
        super().leave_language_model_alone()
        self.validation_scores = self.model_validation_scores

    @property
    def reference(self) -> tuple[list[str], list[str], Singles]:
        """Ids, labels and ``(M, D) float32`` embeddings of a sample of training rows, not standardised."""
        return self._reference

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the probabilities; empty for numbers."""
        return self.task.classes

    @property
    def temperature(self) -> float:
        """Divides the logits; fitted on validation rows."""
        return float(self.manifest["temperature"])

    def raw(self, matrix: NDArray[Any]) -> Floats:
        """``(N, D)`` embeddings to logits ``(N, K)`` before calibration, or numbers ``(N, 1)`` in units of labels.

        Raises:
            UserError: Another dimension, or numbers that are not finite.
        """
        if matrix.ndim != 2 or matrix.shape[1] != self.embedding.dimension:
            width = matrix.shape[-1] if matrix.ndim else 0
            raise UserError(
                f"The embeddings have {width} numbers each; the bundle needs {self.embedding.dimension}",
                where=self.name, fix="Embed with the model that the bundle was trained on",
            )
        answers: Floats = self.head.scores(matrix)
        if not np.isfinite(answers).all():
            row = int(np.argmin(np.isfinite(answers).all(axis=1)))
            raise UserError(
                f"The embedding in row {row + 1} holds NaN, infinity or far too large numbers",
                fix="Make the embeddings again",
            )
        if self.task.target == "number":
            answers = answers * self.task.sd + self.task.mean
        return answers

    def predict(
        self, matrix: NDArray[Any], sequences: Sequence[str] | None = None, positions: Sequence[int] | None = None
    ) -> Floats:
        """Calibrated probabilities ``(N, K)`` or numbers ``(N, 1)``, float64: of the combination, where there is one.

        Args:
            matrix: ``(N, D)`` embeddings.
            sequences: The N proteins, which a combination reads too; at site level whole proteins or windows.
            positions: 0-based sites in these; None at sequence level.

        Raises:
            UserError: As :meth:`raw`; a combination without sequences.
        """
        return self.predict_with_reasons(matrix, sequences, positions)[0]

    def predict_with_reasons(
        self, matrix: NDArray[Any], sequences: Sequence[str] | None = None, positions: Sequence[int] | None = None
    ) -> tuple[Floats, Reasons]:
        """As :meth:`predict`, with what the members that count said on the way, at no further cost."""
        if self.predictor is None:
            model = self.predict_model(matrix)
            return model, no_others(model)
        return self.predictor.answer_with_reasons(
            lambda: self.predict_model(matrix), self._needed(sequences), positions
        )

    def explain(
        self, matrix: NDArray[Any], sequences: Sequence[str] | None = None, positions: Sequence[int] | None = None
    ) -> Explained:
        """As :meth:`predict`, with what every member says and the nearest training rows."""
        model = self.predict_model(matrix)
        if self.predictor is None:
            return alone(model)
        return self.predictor.explain(model, self._needed(sequences), positions)

    def _needed(self, sequences: Sequence[str] | None) -> Sequence[str]:
        if sequences is None:
            raise UserError(
                "The bundle also reads the proteins' sequences, which embeddings do not hold", where=self.name,
                fix="Give the proteins instead of embeddings, or ask the language model alone",
            )
        return sequences

    def predict_model(self, matrix: NDArray[Any]) -> Floats:
        """As :meth:`predict`, of the head on embeddings alone.

        Raises:
            UserError: As :meth:`raw`.
        """
        answers = self.raw(matrix)
        if self.task.target == "number":
            return answers
        probabilities: Floats = softmax(answers / self.temperature, axis=1)
        return probabilities

    def standardised(self, matrix: NDArray[Any]) -> Singles:
        """Embeddings as the head sees them, ``(N, D) float32``: the space for distances to :attr:`reference`."""
        return self.head.standardised(matrix)


def task_of(manifest: Mapping[str, Any]) -> Task:
    """The task in a bundle's manifest.

    Raises:
        UserError: A field is missing or unknown.
    """
    return Task.from_json({**manifest, "labels": manifest["classes"]})


def check_embeddings(description: Description, bundle: ClassifierBundle, where: str) -> list[str]:
    """Checks that embeddings are of the kind that a bundle was trained on.

    Args:
        description: Model, layer, pooling and dimension of the embeddings.
        bundle: Bundle that is to classify them.
        where: The embeddings in messages.

    Returns:
        What could not be checked, as sentences for the report.

    Raises:
        UserError: Names what differs: dimension, weights of the model, layer or pooling.
    """
    wanted = bundle.embedding
    if description.dimension != wanted.dimension:
        raise _other("dimension", wanted.dimension, description.dimension, bundle, where)
    one, other = dict(_facts(wanted)), dict(_facts(description))
    differs = fingerprints.difference(wanted.model_sha256, description.model_sha256)
    if differs:
        ours, theirs = (f"{each.model} ({fingerprints.shown(each.model_sha256)})" for each in (wanted, description))
        what = "model" if differs == fingerprints.WEIGHTS else f"{differs} of the model"
        raise _other(what, ours, theirs, bundle, where)
    unknown = []
    for name, value in one.items():
        if value and other[name] and value != other[name]:
            raise _other(name, value, other[name], bundle, where)
        if not (value and other[name]):
            unknown.append(name)
    notes = []
    if fingerprints.partial(wanted.model_sha256, description.model_sha256):
        notes.append(f"Of bundle and {where}, one does not tell all: {fingerprints.UNCHECKED}.")
    rules = [each.notes.get(UNUSUAL, "x") for each in (wanted, description)]
    if rules[0] != rules[1]:
        notes.append(
            f"U, Z, O and B were {'letters of the model' if rules[0] == 'own' else 'X'} in the training and "
            f"{'letters of the model' if rules[1] == 'own' else 'X'} in {where}: proteins with them may be answered "
            "a little differently."
        )
    if not unknown:
        return notes
    return [
        *notes,
        f"Bundle and {where} agree in the dimension ({wanted.dimension}), but it is not known whether they do in "
        f"{', '.join(unknown)}: make sure that the same model, layer and pooling made both, else the answers mean "
        "nothing.",
    ]


def _facts(description: Description) -> list[tuple[str, str]]:
    # The mean over stored residues is the mean.
    pooling = "mean" if description.pooling == "residues" else description.pooling
    # Fingerprints are compared for themselves; here only whether there is one.
    layers = ", ".join(map(str, description.layers))
    return [("model", "known" if description.model_sha256 else ""), ("layer", layers), ("pooling", pooling)]


def _other(what: str, wanted: object, given: object, bundle: ClassifierBundle, where: str) -> UserError:
    embedding = bundle.embedding
    by = f" of {embedding.model}" if embedding.model else ""
    layer = f", layer {embedding.layers[0]}" if embedding.layers else ""
    return UserError(
        f"The embeddings differ from those that the bundle was trained on in {what}: {given} instead of {wanted}",
        where=f"{where}, bundle {bundle.name}",
        fix=f"Give embeddings{by}{layer}{f', pooling {embedding.pooling}' if embedding.pooling else ''}",
    )


# ------------------------------------------------------------------------------------------------------------- loading


def load_classifier_bundle(path: str | Path) -> ClassifierBundle:
    """Reads a bundle and lets it prove itself.

    Raises:
        UserError: Not a whole bundle, of a fine-tuned model, something in it that is no data or does not fit the
            manifest, or a self-test that does not come out as stored.
    """
    path = Path(path)
    with tempfile.TemporaryDirectory(prefix="plm_bundle_") as place:
        folder = Path(place)
        manifest = archive.unpack(path, folder, kind_wanted=archive.EMBEDDING, needed=_NEEDED)
        try:
            manifest = manifests.check_classifier(manifest, path.name, KINDS)
            bundle = _assemble(manifest, folder)
            again = manifests.AGAIN
            test = Fields(
                read_json(folder / "self_test.json", where=path.name, fix=again), "self_test.json", path.name, again
            )
            rows = np.array(test.numbers("rows", 0, len(bundle.reference[0]) - 1), np.int64)
            expected = np.array(test.content.get("expected"), np.float64)
            answers = bundle.predict_model(bundle.reference[2][rows])
            combined, predicted = np.zeros((0, 0)), np.zeros((0, 0))
            if bundle.predictor is not None:
                combined = _combined(bundle.predictor, answers, test.texts("texts", most=100, longest=100_000))
                predicted = np.array(test.content.get("combined"), np.float64)
        except UserError:
            raise
        except (KeyError, ValueError, TypeError, IndexError, OverflowError, MemoryError, AttributeError) as error:
            raise UserError(
                f"The bundle's parts do not fit each other ({one_line(str(error), 150)})", where=path.name, fix=_AGAIN
            ) from error
    check_self_test(answers, expected, _TOLERANCE, bundle.task, path.name, _AGAIN)
    if bundle.predictor is not None:
        check_self_test(combined, predicted, _TOLERANCE, bundle.task, path.name, _AGAIN)
    return bundle


def _combined(predictor: Predictor, model: Floats, texts: Sequence[str]) -> Floats:
    """What the combination makes of answers of the language model, in turn, and what members say of texts."""
    rows = np.resize(np.arange(len(model)), len(texts))
    return predictor.told(model[rows], predictor.members.ask(texts)).answers


def _assemble(manifest: Mapping[str, Any], folder: Path) -> ClassifierBundle:
    again = manifests.AGAIN
    arrays = tensors.load_numpy(folder / "head.safetensors", fix=again)
    validation = tensors.load_numpy(folder / "validation.safetensors", fix=again)
    rows = tensors.load_numpy(folder / "reference.safetensors", fix=again)["embeddings"].astype(np.float32)
    if not np.isfinite(rows).all():
        raise ValueError("the reference embeddings hold NaN or infinity")
    names = _names(folder, manifest["task"]["level"])
    kind = manifest["head"]["kind"]
    _check_arrays(kind, arrays, int(manifest["embedding"]["dimension"]))
    head = ClassifierHead(kind, arrays, {key: value for key, value in manifest["head"].items() if key != "kind"})
    task = task_of(manifest)
    alone_scores = _validation(validation, "model_", task) if "model_scores" in validation else None
    bundle = ClassifierBundle(
        manifest, head, (names["ids"], names["labels"], rows),
        _validation(validation, "", task),
        predictor=read_predictor(folder, manifest, task, str(manifest["name"])),
        model_validation_scores=alone_scores,
    )
    dimension = bundle.embedding.dimension
    if bundle.head.dimension != dimension or rows.shape != (len(names["ids"]), dimension):
        seen = bundle.head.dimension
        raise ValueError(f"the head sees {seen} numbers, the reference {rows.shape[1:]}, not {dimension}")
    if bundle.head.scores(rows[:1]).shape[1] != bundle.task.outputs:
        raise ValueError("the head's outputs are not the classes")
    return bundle


def _validation(arrays: Mapping[str, NDArray[Any]], prefix: str, task: Task) -> tuple[Floats, NDArray[Any]]:
    """Answers to validation rows and their truth, as far as they can be what :func:`_kept` wrote."""
    scores, truth = arrays[f"{prefix}scores"].astype(np.float64), arrays[f"{prefix}truth"]
    if scores.ndim != 2 or truth.shape != scores.shape[:1]:
        raise ValueError(f"validation scores of the shape {scores.shape} for {truth.shape} truths")
    if not np.isfinite(scores).all() or not np.isfinite(truth).all():
        raise ValueError("the validation scores hold NaN or infinity")
    if task.target == "class" and len(truth) and not 0 <= truth.min() <= truth.max() < scores.shape[1]:
        raise ValueError("the validation truth names a class that there is not")
    if task.target == "class":
        truth = truth.astype(np.int64)
    return scores, truth


def _names(folder: Path, level: str) -> dict[str, list[str]]:
    """Ids and labels of the reference; at site level an id is followed by a tab and its position."""
    again = manifests.AGAIN
    held = as_object(read_json(folder / "reference.json", fix=again), "reference.json", "reference.json", again)
    content = Fields({**held, "labels": cleaned(held.get("labels"))}, "reference.json", "reference.json", again)
    ids = content.texts("ids", breaks=True)
    for one in ids:
        name, tab, place = one.partition("\t")
        good = not has_breaks(name) and (not tab or (level == "site" and place.isascii() and place.isdigit()))
        if not good or len(place) > 12:
            raise UserError("The bundle's reference names a protein with a tab or a line end", fix=again)
    labels = content.texts("labels")
    if len(labels) != len(ids):
        raise UserError(f"The bundle's reference has {len(labels)} labels for {len(ids)} ids", fix=again)
    return {"ids": ids, "labels": labels}


def _check_arrays(kind: str, arrays: Mapping[str, NDArray[Any]], dimension: int) -> None:
    """Whether compressed arrays become as large as a head of embeddings of that dimension can be."""
    for name, array in arrays.items():
        if array.dtype.kind not in "fiu" or array.ndim > 2:
            raise ValueError(f"{name} is {array.dtype} of {array.ndim} dimensions")
        if not np.isfinite(array.astype(np.float64) if array.dtype.kind == "f" else 0).all():
            raise ValueError(f"{name} holds NaN or infinity")
        if name.endswith(".columns"):
            mask = arrays.get(f"{name.removesuffix('.columns')}.mask")
            if mask is None or mask.dtype != np.uint8 or mask.ndim != 2 or array.shape != (1,):
                raise ValueError(f"{name} belongs to no mask")
            if not 0 < int(array[0]) <= 8 * mask.shape[1]:
                raise ValueError(f"{name} says {int(array[0])} where the mask has {8 * mask.shape[1]}")
    for name in ("mean", "scale"):
        if name in arrays and arrays[name].shape != (dimension,):
            raise ValueError(f"{name} has the shape {arrays[name].shape}")
    if kind == "neighbours" and len(arrays["targets"]) != len(arrays["rows"]):
        raise ValueError("targets and rows differ in number")


# ------------------------------------------------------------------------------------------------------------- writing


def write_classifier_bundle(
    path: str | Path, manifest: Mapping[str, Any], head: ClassifierHead, *,
    reference: tuple[Sequence[str], Sequence[str], NDArray[Any]], validation_scores: tuple[NDArray[Any], NDArray[Any]],
    card: str, predictor: Predictor | None = None,
    model_validation_scores: tuple[NDArray[Any], NDArray[Any]] | None = None,
) -> None:
    """Writes a bundle; equal content gives equal bytes.

    Args:
        path: Bundle file (zip) to write.
        manifest: Everything but ``schema_version``, ``kind``, ``head``, ``standardise`` and ``files``, which are added.
        head: Classifier head; its arrays are stored in their own types.
        reference: Ids, labels and embeddings ``(M, D)`` (not standardised) of a sample of training rows, at least one;
            numbers too large for float16 are clipped.
        validation_scores: ``(n, K)`` calibrated probabilities (``(n, 1)`` numbers) of validation rows and their truth
            ``(n,)``: class numbers or numbers. Beyond 20,000 rows an evenly spread sample is kept.
        card: Text of the model card, ``README.md``.
        predictor: Sequence members and their combination with the head; None: the head alone.
        model_validation_scores: As ``validation_scores``, of the head alone; needed beside a predictor.
    """
    from safetensors.numpy import save_file

    ids, labels, rows = reference
    settings = {**head.settings, "kind": head.kind}
    complete: dict[str, Any] = {
        **manifest, "schema_version": SCHEMA_VERSION, "kind": archive.EMBEDDING, "head": settings,
        "standardise": head.standardise,
    }
    with tempfile.TemporaryDirectory(prefix="plm_bundle_") as place:
        folder = Path(place)
        save_file(
            {name: np.ascontiguousarray(array) for name, array in head.arrays.items()}, folder / "head.safetensors"
        )
        kept = _kept("", validation_scores, task_of(complete))
        if predictor is not None:
            assert model_validation_scores is not None
            kept |= _kept("model_", model_validation_scores, task_of(complete))
            complete["predictor"] = {**complete.get("predictor", {}), **predictor.to_json()}
            predictor.members.write(folder)
        save_file(kept, folder / "validation.safetensors")
        most = float(np.finfo(np.float16).max)
        save_file(
            {"embeddings": np.clip(np.asarray(rows, np.float32), -most, most).astype(np.float16)},
            folder / "reference.safetensors",
        )
        names = {"ids": [str(name) for name in ids], "labels": [str(label) for label in labels]}
        (folder / "reference.json").write_text(json_text(names), encoding="utf-8")
        (folder / "README.md").write_text(card, encoding="utf-8")
        bundle = _assemble(complete, folder)
        chosen = np.unique(np.linspace(0, len(names["ids"]) - 1, _SELF_TEST_ROWS).astype(int)).tolist()
        answers = bundle.predict_model(bundle.reference[2][chosen])
        test: dict[str, Any] = {"rows": chosen, "expected": answers.tolist()}
        if bundle.predictor is not None:
            texts = bundle.predictor.members.made_up()
            test |= {"texts": texts, "combined": _combined(bundle.predictor, answers, texts).tolist()}
        (folder / "self_test.json").write_text(json_text(test), encoding="utf-8")
        contents = {file.name: file for file in folder.iterdir()}
        complete["files"] = {name: fingerprints.file_sha256(contents[name]) for name in sorted(contents)}
        (folder / "manifest.json").write_text(json_text(complete), encoding="utf-8")
        write_zip(Path(path), {**contents, "manifest.json": folder / "manifest.json"})


def _kept(prefix: str, scores: tuple[NDArray[Any], NDArray[Any]], task: Task) -> dict[str, NDArray[Any]]:
    """Answers to validation rows with their truth as arrays of a file."""
    answers, truth = scores
    step = max(1, -(-len(answers) // VALIDATION_ROWS))
    known = truth.astype(np.int64 if task.target == "class" else np.float64)[::step]
    return {
        f"{prefix}scores": np.ascontiguousarray(answers[::step], np.float64),
        f"{prefix}truth": np.ascontiguousarray(known),
    }


def reference_sample(rows: int, most: int = REFERENCE_ROWS) -> NDArray[np.int64]:
    """Places of an evenly spread sample of at most ``most`` of ``rows`` rows, ascending."""
    if rows <= most:
        return np.arange(rows, dtype=np.int64)
    return np.unique(np.linspace(0, rows - 1, most).astype(np.int64))
