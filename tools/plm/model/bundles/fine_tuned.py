"""Bundles: a fine-tuned model as one zip that proves itself on loading.

Members of the zip (stored, never compressed; JSON, safetensors, Markdown and tokenizer files only)::

    manifest.json            what it answers, base model, window rule, calibration, metrics, digests of the others
    adapter/ or model/       PEFT's own layout, or a whole checkpoint after full fine-tuning; neither if only the head
                             was trained
    head.safetensors         arrays of the head
    reference.safetensors    a sample of training representations; their ids in reference.json
    sequence_members.*       predictors that need no language model, and the training rows that they compare with
    self_test.json           inputs and expected outputs
    README.md                model card

Several seeds or folds lie in ``members/0``, ``members/1``, ... instead of the top, and answer as an ensemble.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax

from plm import fingerprints, stage
from plm.data.task import Level, Task
from plm.errors import UserError
from plm.model import adapters
from plm.model import device as devices
from plm.model.bundles import archive, manifests
from plm.model.bundles.archive import SCHEMA_VERSION, json_text, write_zip
from plm.model.bundles.bundle import Bundle, check_self_test
from plm.model.bundles.predictor import Explained, Predictor, Reasons, alone, no_others, read_predictor
from plm.model.checkpoint import load_model, resolve_model
from plm.model.encoder_inputs import make_units
from plm.model.heads import HEADS, build_head
from plm.model.heads.head import Head, HeadConfig
from plm.model.loaded import LoadedModel, ModelFiles
from plm.model.network import Network, answers, as_network
from plm.received import tensors
from plm.received.documents import cleaned, read_json
from plm.received.fields import Fields

DEFAULT_BUDGET = 8192
_TOLERANCE = {"fp32": 2e-3, "bf16": 0.1}
"""How far a probability (or a standardised number) may move between machines, by precision."""

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]


@dataclass
class Member:
    """One fine-tuned network of a bundle.

    Attributes:
        network: Encoder, adapter and head. Members with adapters share one encoder.
        adapter: Name of its adapter in the shared encoder, or empty.
        temperature: Divides its logits (1 for numbers).
        mean: Mean of its training numbers (0 for classes).
        sd: Their standard deviation (1 for classes).
        seed: Random seed it was trained with.
        fold: Fold that was its test set, or None.
    """

    network: Network
    adapter: str
    temperature: float
    mean: float
    sd: float
    seed: int
    fold: int | None


class FineTunedBundle(Bundle):
    """Fine-tuned networks on their base model: predictions for new sequences.

    Attributes:
        loaded: Base model.
        members: Trained networks; several answer as an ensemble.
        folder: Folder into which the zip is unpacked.
    """

    def __init__(
        self, manifest: dict[str, Any], task: Task, loaded: LoadedModel, members: list[Member], folder: Path,
        predictor: Predictor | None = None,
    ) -> None:
        super().__init__(manifest, task, predictor)
        self.loaded = loaded
        self.members = members
        self.folder = folder

    @property
    def window(self) -> int:
        """Width of the context around a site, as in training; 0 is the whole protein."""
        return int(self.manifest["window"])

    def predict(
        self, sequences: Sequence[str], positions: Sequence[int] | None = None, budget: int = DEFAULT_BUDGET, *,
        members: Sequence[int] | None = None, advance: Callable[[int], None] | None = None,
    ) -> Floats:
        """Calibrated probabilities or numbers: of the combination, or of the language model where that answers alone.

        Args:
            sequences: Residue letters; for site tasks whole proteins or windows, cut here to the bundle's window.
            positions: 0-based site of each row (site tasks).
            budget: Tokens in a packed row; longer proteins go through in overlapping segments.
            members: Numbers of the trained networks to ask; all by default.
            advance: Called with the number of encoded units finished (once for each network).

        Returns:
            ``(N, K)`` float64: class probabilities in the order of ``task.classes``, or ``(N, 1)`` numbers. For
            residue tasks N is the number of residues of all sequences together, else the number of rows.

        Raises:
            UserError: A position lies outside its sequence.
        """
        return self.predict_with_reasons(sequences, positions, budget, members=members, advance=advance)[0]

    def predict_with_reasons(
        self, sequences: Sequence[str], positions: Sequence[int] | None = None, budget: int = DEFAULT_BUDGET, *,
        members: Sequence[int] | None = None, advance: Callable[[int], None] | None = None,
    ) -> tuple[Floats, Reasons]:
        """As :meth:`predict`, with what the members that count said on the way, at no further cost."""
        if self.predictor is None:
            model = self.predict_model(sequences, positions, budget, members=members, advance=advance)
            return model, no_others(model)
        return self.predictor.answer_with_reasons(
            lambda: self.predict_model(sequences, positions, budget, members=members, advance=advance), sequences,
            positions,
        )

    def predict_model(
        self, sequences: Sequence[str], positions: Sequence[int] | None = None, budget: int = DEFAULT_BUDGET, *,
        members: Sequence[int] | None = None, advance: Callable[[int], None] | None = None,
    ) -> Floats:
        """As :meth:`predict`, of the language model alone: the mean over its trained networks."""
        mean: Floats = self.predict_members(sequences, positions, budget, members=members, advance=advance).mean(axis=0)
        return mean

    def explain(
        self, sequences: Sequence[str], positions: Sequence[int] | None = None, budget: int = DEFAULT_BUDGET
    ) -> Explained:
        """As :meth:`predict`, with what every member says and the nearest training rows."""
        model = self.predict_model(sequences, positions, budget)
        if self.predictor is None:
            return alone(model)
        return self.predictor.explain(model, sequences, positions)

    def predict_members(
        self, sequences: Sequence[str], positions: Sequence[int] | None = None, budget: int = DEFAULT_BUDGET, *,
        members: Sequence[int] | None = None, advance: Callable[[int], None] | None = None,
    ) -> Floats:
        """As :meth:`predict_model`, for each trained network: ``(S, N, K)`` float64."""
        chosen = range(len(self.members)) if members is None else members
        outputs = []
        for number in chosen:
            member = self.members[number]
            outputs.append(self._calibrated(member, self._raw(member, sequences, positions, budget, advance)))
        return np.stack(outputs)

    def _calibrated(self, member: Member, raw: Floats) -> Floats:
        if self.task.target == "number":
            return raw * member.sd + member.mean
        probabilities: Floats = softmax(raw / member.temperature, axis=1)
        return probabilities

    def _choose(self, member: Member) -> None:
        if member.adapter:
            member.network.body.set_adapter(member.adapter)

    def predict_with_states(self, sequences: Sequence[str], budget: int = DEFAULT_BUDGET) -> tuple[Floats, Singles]:
        """As :meth:`predict` for a sequence task, with the representations by which proteins are compared.

        Returns:
            ``(N, K)`` float64 answers, and ``(N, D)`` float32 representations by the first member: the space of
            :attr:`reference`.
        """
        return self.predict_with_states_and_reasons(sequences, budget)[:2]

    def predict_with_states_and_reasons(
        self, sequences: Sequence[str], budget: int = DEFAULT_BUDGET
    ) -> tuple[Floats, Singles, Reasons]:
        """As :meth:`predict_with_states`, with what the members that count said on the way."""
        outputs, states = [], np.empty((0, 0), np.float32)
        for number, member in enumerate(self.members):
            self._choose(member)
            raw, seen = answers_with_states(
                self.loaded, member.network, self.task, sequences, None, window=0, budget=budget, represent=number == 0
            )
            states = states if number else seen
            outputs.append(self._calibrated(member, raw))
        model: Floats = np.mean(outputs, axis=0)
        if self.predictor is None:
            return model, states, no_others(model)
        answers, reasons = self.predictor.answer_with_reasons(lambda: model, sequences, None)
        return answers, states, reasons

    @property
    def reference(self) -> tuple[list[str], list[str], Singles]:
        """Ids, labels and ``(M, D) float32`` representations of a sample of training rows (or residues).

        Raises:
            UserError: They do not fit each other.
        """
        again = manifests.AGAIN
        held = tensors.load_numpy(self.folder / "reference.safetensors", where=self.name, fix=again)
        rows = held.get("representations", np.empty(0)).astype(np.float32)
        held_names = cleaned(read_json(self.folder / "reference.json", where=self.name, fix=again))
        names = Fields(held_names, "reference.json", self.name, again)
        ids, labels = names.texts("ids"), names.texts("labels")
        if rows.ndim != 2 or not len(rows) == len(ids) == len(labels):
            raise UserError(
                "The bundle's reference does not fit its ids and labels", where=self.name, fix=manifests.AGAIN
            )
        return ids, labels, rows

    def _raw(
        self, member: Member, sequences: Sequence[str], positions: Sequence[int] | None, budget: int,
        advance: Callable[[int], None] | None,
    ) -> Floats:
        self._choose(member)
        return raw_answers(
            self.loaded, member.network, self.task, sequences, positions,
            window=self.window, budget=budget, advance=advance,
        )


def raw_answers(
    loaded: LoadedModel, network: Network, task: Task, sequences: Sequence[str], positions: Sequence[int] | None, *,
    window: int, budget: int, advance: Callable[[int], None] | None = None,
) -> Floats:
    """Uncalibrated outputs ``(N, K)`` in input order; equal inputs are computed once."""
    outputs, _ = answers_with_states(
        loaded, network, task, sequences, positions, window=window, budget=budget, advance=advance
    )
    return outputs


def answers_with_states(
    loaded: LoadedModel, network: Network, task: Task, sequences: Sequence[str], positions: Sequence[int] | None, *,
    window: int, budget: int, represent: bool = False, advance: Callable[[int], None] | None = None,
) -> tuple[Floats, Singles]:
    """As :func:`raw_answers`, for sequence tasks with the ``(N, D)`` representations if ``represent``, else none."""
    states: Singles = np.empty((0, 0), np.float32)
    if task.level == "site":
        asked, back = list(sequences), None
    else:
        asked = list(dict.fromkeys(sequences))
        number = {sequence: index for index, sequence in enumerate(asked)}
        back = [number[sequence] for sequence in sequences]
    limit = max(budget - loaded.family.specials, 8)
    units = make_units(loaded, task.level, asked, positions, window=window, limit=limit)
    outputs, seen = answers(network, units, budget, represent=represent, advance=advance)
    if back is None:
        filled = np.empty((len(asked), task.outputs))
        for unit, values in zip(units, outputs, strict=True):
            filled[list(unit.rows)] = values
        return filled, states
    parts: list[list[Floats]] = [[] for _ in asked]
    for unit, values in zip(units, outputs, strict=True):
        parts[unit.rows[0]].append(values)
    if seen:
        states = np.concatenate(seen)[back]  # a unit a sequence
    return np.concatenate([piece for row in back for piece in parts[row]]), states


# ------------------------------------------------------------------------------------------------------------- loading


def load_bundle(
    path: str | Path, base: str | None = None, *, workdir: Path, device: str = "auto", precision: str = "auto",
    allow_hub: bool = False, level: Level | None = None,
) -> FineTunedBundle:
    """Reads a bundle, checks it and puts it on its base model.

    Args:
        path: Bundle file (zip).
        base: Where the base model is (as for ``--model``); None takes the built-in model if the bundle was made with
            it.
        workdir: The zip is unpacked below it.
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: ``auto``, ``fp32`` or ``bf16``.
        allow_hub: The base model may be fetched from the hub.
        level: Level that the caller needs: ``sequence``, ``residue`` or ``site``; any by default.

    Raises:
        UserError: Another level than ``level``, not a whole bundle, something in it that is no data, another base
            model than the one it was trained on, or a self-test that does not come out as stored.
    """
    path = Path(path)
    workdir.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="bundle_", dir=workdir))
    manifest = manifests.check_finetuned(unpack_bundle(path, folder), path.name, adapters.METHODS, HEADS)
    task = Task.from_json(manifest)
    _check_head(manifest, task, path.name)
    if level is not None and task.level != level:
        raise UserError(
            f"The bundle answers for each {task.level}, not for each {level}", where=path.name,
            fix=f"Give a bundle that was trained on a {level} task",
        )
    chosen_device = devices.choose_device(device)
    chosen_precision = devices.choose_precision(precision, chosen_device)
    files = _base_files(manifest, base, folder, path.name, workdir, allow_hub)
    loaded = load_model(files, dtype="bfloat16" if chosen_precision == "bf16" else "float32", device=chosen_device)
    predictor = read_predictor(folder, manifest, task, path.name)
    bundle = FineTunedBundle(manifest, task, loaded, _load_members(manifest, folder, loaded), folder, predictor)
    _self_test(bundle, path.name, chosen_precision)
    return bundle


def unpack_bundle(path: Path, folder: Path) -> dict[str, Any]:
    """Checks a bundle's zip, unpacks it and gives its manifest; errors as :func:`plm.model.bundles.archive.unpack`."""
    needed = ("name", "base", "window", "members", "head", "method", "threshold")
    return archive.unpack(path, folder, kind_wanted=archive.FINETUNED, needed=needed)


def _base_files(
    manifest: Mapping[str, Any], base: str | None, folder: Path, where: str, workdir: Path, allow_hub: bool
) -> ModelFiles:
    wanted = manifest["base"]
    if manifest["method"] == "full":
        # Each member carries its own encoder; the first stands for the family, vocabulary and sizes.
        first = manifests.member_folder(folder, 0, len(manifest["members"]))
        return resolve_model(str(first / "model"), workdir=workdir)
    if base is None:
        if wanted["id"] != "starter":
            raise UserError(
                f"The bundle was trained on the model {wanted['id']}, which is not built in", where=where,
                fix=f"Choose {wanted['id']} as the model (--model)",
            )
        base = "starter"
    files = resolve_model(base, workdir=workdir, allow_hub=allow_hub)
    check_base(wanted["id"], wanted["sha256"], files, where, "The bundle was trained on")
    return files


def check_base(name: str, wanted: str, files: ModelFiles, where: str, what: str) -> None:
    """Whether a model is the one that something was made with.

    Args:
        name: Name of the base model that is wanted.
        wanted: Fingerprint (sha256) of the weights that are wanted.
        files: The model that is there.
        where: The bundle, cache or checkpoint in messages.
        what: Begin of the message.

    Raises:
        UserError: It is another. A fingerprint of the weights alone is compared as far as it goes, with a line.
    """
    differs = fingerprints.difference(wanted, files.sha256)
    if differs:
        raise UserError(
            f"{what} the model {name} ({fingerprints.shown(wanted)}), not on {files.id} "
            f"({fingerprints.shown(files.sha256)}): they differ in their {differs}",
            where=where, fix=f"Choose {name}, with the very same weights, config.json and vocabulary, as the model",
        )
    if fingerprints.partial(wanted, files.sha256):
        stage.log("plm").warning("%s: %s", where, fingerprints.UNCHECKED)


def _load_members(manifest: Mapping[str, Any], folder: Path, loaded: LoadedModel) -> list[Member]:
    body: Any = loaded.model
    method = manifest["method"]
    members: list[Member] = []
    for number, entry in enumerate(manifest["members"]):
        path = manifests.member_folder(folder, number, len(manifest["members"]))
        name = ""
        if method in adapters.ADAPTERS:
            name = f"member{number}"
            body = adapters.load_adapter(body, path / "adapter", name, loaded.family)
        elif method == "full" and number:
            files = resolve_model(str(path / "model"), workdir=folder / "checked")
            other = load_model(files, dtype=str(loaded.dtype).removeprefix("torch."), device=loaded.device)
            if (other.family.name, other.hidden_size) != (loaded.family.name, loaded.hidden_size):
                raise UserError("The bundle's members are of different models", fix=manifests.AGAIN)
            body = other.model
        head = _load_head(HeadConfig(**manifest["head"]), path / "head.safetensors", loaded.hidden_size)
        network = as_network(loaded, body, head, frozen=True).eval()
        temperature, mean, sd = (float(entry[key]) for key in ("temperature", "mean", "sd"))
        members.append(Member(network, name, temperature, mean, sd, int(entry["seed"]), entry["fold"]))
    return members


def _check_head(manifest: Mapping[str, Any], task: Task, where: str) -> None:
    """Whether the head answers what the task asks."""
    head = manifest["head"]
    if (head["level"], head["outputs"]) != (task.level, task.outputs):
        raise UserError(
            f"The bundle's head does not fit its task ({head['outputs']} outputs a {head['level']} for {task.outputs} "
            f"a {task.level})", where=where, fix=manifests.AGAIN,
        )


def _load_head(config: HeadConfig, file: Path, hidden: int) -> Head:
    """A head from its file; sizes are compared before it is built."""
    what, fix = "The bundle's head", manifests.AGAIN
    if config.hidden_size != hidden:
        raise UserError(f"{what} reads {config.hidden_size} numbers, the model gives {hidden}", fix=fix)
    with torch.device("meta"):
        wanted = {name: tuple(value.shape) for name, value in build_head(config).state_dict().items()}
    tensors.check_shapes(tensors.shapes(file, fix=fix), wanted, what, file.name, fix)
    head = build_head(config)
    head.load_state_dict(tensors.load_torch(file, fix=fix, finite=True))
    return head


# ----------------------------------------------------------------------------------------------------------- self-test


def self_test_inputs(task: Task, window: int, letters: str) -> tuple[list[str], list[int] | None]:
    """Made-up proteins (and sites in them) on which a bundle proves itself; always the same for a task."""
    generator = np.random.default_rng(20240229)
    alphabet = np.array(list("ACDEFGHIKLMNPQRSTVWYX"))
    # Long enough that a window is cut within one protein and clipped at the ends of others.
    sequences = ["".join(generator.choice(alphabet, size)) for size in (9, 33, 60, max(80, window + 20))]
    if task.level != "site":
        return sequences, None
    sites = [0, 16, 59, (window + 30) // 2]
    letter = letters[0] if letters else "Y"
    sequences = [s[:at] + letter + s[at + 1 :] for s, at in zip(sequences, sites, strict=True)]
    return sequences, sites


def make_self_test(bundle: FineTunedBundle, precision: str) -> dict[str, Any]:
    """The content of ``self_test.json``: inputs, and what the bundle answers now."""
    sequences, sites = self_test_inputs(bundle.task, bundle.window, str(bundle.manifest.get("site_residues", "")))
    return {
        "sequences": sequences,
        "positions": None if sites is None else [site + 1 for site in sites],
        "expected": bundle.predict(sequences, sites).tolist(),
        "precision": precision,
    }


def _self_test(bundle: FineTunedBundle, where: str, precision: str) -> None:
    again = manifests.AGAIN
    stored = Fields(read_json(bundle.folder / "self_test.json", where=where, fix=again), "self_test.json", where, again)
    sequences = stored.texts("sequences", most=1000, longest=100_000)
    positions = None
    if bundle.task.level == "site":
        positions = [int(place) - 1 for place in stored.numbers("positions", 1, 100_000)]
    if not all(sequence.isascii() and sequence.isalpha() for sequence in sequences):
        raise UserError("The bundle's self-test holds what is no protein", where=where, fix=again)
    if not sequences or (positions is not None and len(positions) != len(sequences)):
        raise UserError("The bundle's self-test has no sequences", where=where, fix=again)
    expected = numbers_of(stored.content.get("expected"), where)
    outputs = bundle.predict(sequences, positions)
    tolerance = max(_TOLERANCE[precision], _TOLERANCE[stored.text("precision", choices=tuple(_TOLERANCE))])
    fix = "The base model is damaged, or the libraries differ from the versions in the manifest"
    check_self_test(outputs, expected, tolerance, bundle.task, where, fix)


def numbers_of(content: Any, where: str) -> Floats:
    """A matrix of finite numbers in a document, ``(N, K)`` float64.

    Raises:
        UserError: It is something else.
    """
    good = isinstance(content, list) and all(isinstance(row, list) and len(row) == len(content[0]) for row in content)
    try:
        numbers = np.array(content, np.float64) if good else np.empty(0)
    except (TypeError, ValueError, OverflowError):
        numbers = np.empty(0)
    if numbers.ndim != 2 or not numbers.size or not np.isfinite(numbers).all():
        raise UserError("The bundle's self-test holds no table of numbers", where=where, fix=manifests.AGAIN)
    return numbers


# ------------------------------------------------------------------------------------------------------------- writing


@dataclass(frozen=True)
class MemberFiles:
    """A trained network on disk, before it becomes a member.

    Attributes:
        folder: Holds ``head.safetensors`` and ``adapter/`` or ``model/``.
        seed: Random seed.
        fold: Fold that was its test set, or None.
        temperature: Number by which logits are divided, from validation rows; 1 for numbers.
        mean: Mean of its training numbers.
        sd: Standard deviation of the training numbers.
    """

    folder: Path
    seed: int
    fold: int | None
    temperature: float = 1.0
    mean: float = 0.0
    sd: float = 1.0


def save_network(network: Network, loaded: LoadedModel, method: str, folder: Path) -> None:
    """Writes a trained network as the files of a bundle's member."""
    from safetensors.torch import save_file

    from plm.model.checkpoint import save_checkpoint

    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().cpu().contiguous() for name, value in network.head.state_dict().items()}
    save_file(state, folder / "head.safetensors")
    if method in adapters.ADAPTERS:
        adapters.save_adapter(network.body, folder / "adapter")
    elif method == "full":
        save_checkpoint(network.body, folder / "model", loaded.files.directory, dtype="float32")


def write_bundle(
    path: Path, members: Sequence[MemberFiles], manifest: Mapping[str, Any], *, base: str, card: str,
    reference: tuple[NDArray[np.float32], Sequence[str], Sequence[str]], workdir: Path, device: str = "auto",
    precision: str = "auto", allow_hub: bool = False, predictor: Predictor | None = None,
) -> None:
    """Puts a bundle together and writes it; equal content gives equal bytes.

    Args:
        path: Bundle file (zip) to write.
        members: Trained networks on disk.
        manifest: Everything but ``schema_version``, ``members`` and ``files``, which are added here.
        base: Path or name of the base model, for the self-test.
        card: Text of the model card, ``README.md``.
        reference: Training representations ``(M, D)``, their ids and labels.
        workdir: Folder for files on the way.
        device: Device on which the expected outputs of the self-test are computed: auto, cpu or cuda.
        precision: Precision in which the expected outputs of the self-test are computed: ``fp32`` or ``bf16``.
        allow_hub: As for :func:`load_bundle`.
        predictor: Sequence members and their combination; None if the language model answers alone.
    """
    from safetensors.numpy import save_file

    states, ids, labels = reference
    folder = workdir / "bundle_in_the_making"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    entries = []
    for number, member in enumerate(members):
        place = f"members/{number}" if len(members) > 1 else "."
        for name in ("head.safetensors", "adapter", "model"):
            source, target = member.folder / name, folder / place / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, copy_function=_link_or_copy)
            elif source.is_file():
                _link_or_copy(str(source), str(target))
        entry = {"path": place, "seed": member.seed, "fold": member.fold, "temperature": member.temperature}
        entries.append({**entry, "mean": member.mean, "sd": member.sd})
    (folder / "README.md").write_text(card, encoding="utf-8")
    save_file({"representations": states.astype(np.float16)}, folder / "reference.safetensors")
    (folder / "reference.json").write_text(json_text({"ids": list(ids), "labels": list(labels)}), encoding="utf-8")

    complete = {**manifest, "schema_version": SCHEMA_VERSION, "members": entries}
    chosen_device = devices.choose_device(device)
    chosen_precision = devices.choose_precision(precision, chosen_device)
    files = _base_files(complete, base, folder, path.name, workdir, allow_hub)
    loaded = load_model(files, dtype="bfloat16" if chosen_precision == "bf16" else "float32", device=chosen_device)
    if predictor is not None:
        predictor.members.write(folder)
        complete["predictor"] = {**complete.get("predictor", {}), **predictor.to_json()}
    trained = _load_members(complete, folder, loaded)
    fresh = FineTunedBundle(complete, Task.from_json(complete), loaded, trained, folder, predictor)
    (folder / "self_test.json").write_text(json_text(make_self_test(fresh, chosen_precision)), encoding="utf-8")

    contents = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
    complete["files"] = {name: fingerprints.file_sha256(contents[name]) for name in sorted(contents)}
    (folder / "manifest.json").write_text(json_text(complete), encoding="utf-8")
    write_zip(path, {**contents, "manifest.json": folder / "manifest.json"})


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
