"""What a teacher said, kept by content: sequence, set of masks and teacher, so that a changed corpus costs its changes.

A cache is a folder of verified shards of about 64 MiB (:class:`plm.data.shards.ShardStore`) and ``cache.json``, which
says what teacher and masks they belong to. An entry is one sequence under one set of masks, named by the digest of its
residues; nothing in it refers to a corpus.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from plm import fingerprints, stage
from plm.data import shards
from plm.errors import UserError
from plm.jobs.distill.batches import DistillationRow, plan
from plm.jobs.distill.teacher import Teacher, TeacherTargets, Wants
from plm.jobs.distill.teacher_cache_index import BY_MASKED, ENTRY, EntryIndex
from plm.masked_lm.corpus import IGNORED
from plm.masked_lm.corpus_store import CorpusStore
from plm.masked_lm.masks import MaskPlan
from plm.model import encoder
from plm.model.batching import sent
from plm.model.bundles import archive
from plm.model.loaded import LoadedModel
from plm.received import tensors
from plm.received.documents import one_line, read_object
from plm.received.fields import Fields

SHARD_BYTES = 64 * 2**20
FLUSH_SECONDS = 300.0
_MAPPED = 64
_NAME = "cache.json"
_FIELDS = (*BY_MASKED, "pooled", "hidden")
_PROBABLY = 1.02
_SHARD = re.compile(r"shard_(\d{6,12})\.safetensors", re.ASCII)


@dataclass(frozen=True)
class CacheKey:
    """What the content of a cache depends on beside the sequences. How many sets of masks there are is no part of it.

    Attributes:
        teacher: Name of the teacher for messages; any name goes with the same weights.
        teacher_sha256: Fingerprint of the teacher's weights (:mod:`plm.fingerprints`).
        family: Model family of the teacher.
        seed: Seed of the masks.
        rate: Share of residues to predict, 0-1.
        crop: Longest stretch of a sequence, in residues.
        wants: Logits and representations that are asked of the teacher.
    """

    teacher: str
    teacher_sha256: str
    family: str
    seed: int
    rate: float
    crop: int
    wants: Wants

    @classmethod
    def of(cls, loaded: LoadedModel, masks: MaskPlan, wants: Wants) -> CacheKey:
        """The key of what a loaded teacher says under a mask plan."""
        return cls(loaded.files.id, loaded.files.sha256, loaded.family.name, masks.seed, masks.rate, masks.crop, wants)

    @property
    def content(self) -> dict[str, Any]:
        """What must be equal."""
        content = asdict(self)
        del content["teacher"]
        if not self.wants.logits:
            content["wants"]["top"] = 0
        if not (self.wants.pooled or self.wants.hidden):
            content["wants"] |= {"layer": 0, "represent": ""}
        return content

    def sentence(self) -> str:
        """The key in words."""
        wants = self.wants
        kinds = {
            f"the {wants.top} highest logits" if wants.top else "logits": wants.logits,
            "means of residues": wants.pooled,
            "states of residues": wants.hidden,
        }
        asked = " and ".join(kind for kind, asked in kinds.items() if asked)
        place = f" of the {wants.represent} sequences at layer {wants.layer}" if wants.pooled or wants.hidden else ""
        return (
            f"{self.teacher} ({self.teacher_sha256[:12]}), {asked}{place}, masks of seed {self.seed} and rate "
            f"{self.rate:g}, at most {self.crop} residues"
        )


class TeacherCache:
    """Entries in shards. Reading verifies each shard once; a damaged one is dropped and said.

    Attributes:
        folder: Folder of the shards.
        key: Teacher, masks and answers that the content depends on.
        dropped: Shards that were damaged and are gone.
    """

    def __init__(self, folder: Path, key: CacheKey, log: logging.Logger | None = None) -> None:
        self.folder, self.key, self.dropped = folder, key, 0
        self._log = log
        self._store = shards.ShardStore(folder, shards.key(key.content), mapped=_MAPPED)
        self._verified: set[int] = set()
        self._pending: list[dict[str, np.ndarray]] = []
        self._pending_bytes, self._flushed = 0, time.monotonic()
        self._index = EntryIndex()
        self.reload()

    @classmethod
    def open(
        cls, folder: Path, key: CacheKey, *, create: bool = True, log: logging.Logger | None = None
    ) -> TeacherCache:
        """Opens the cache in a folder.

        Args:
            folder: Folder of the cache; made if absent.
            key: Teacher, masks and answers that the content must belong to.
            create: Whether an absent one is made.
            log: Told of damaged shards.

        Raises:
            UserError: The folder holds the cache of another teacher, other masks or something else; or there is none.
        """
        described = folder / _NAME
        try:
            present = described.is_file()
        except OSError as error:
            raise UserError(
                f"The teacher cache cannot be read ({error.strerror})", where=str(described), fix="Give another folder"
            ) from error
        if not present:
            if not create:
                raise UserError("There is no teacher cache", where=str(folder), fix="Make it with --cache-only")
            if folder.is_dir() and any(folder.iterdir()):
                raise UserError(
                    "The folder is not empty and holds no teacher cache", where=str(folder), fix="Give an empty folder"
                )
            folder.mkdir(parents=True, exist_ok=True)
            partial = folder / f".{_NAME}.{os.getpid()}.partial"
            partial.write_text(json.dumps({"content": key.content, "sentence": key.sentence()}, indent=1) + "\n")
            os.replace(partial, described)
            return cls(folder, key, log)
        fix = "Give another folder, or the cache as plm_distill wrote it"
        known = Fields(read_object(described, "The teacher cache", fix=fix), "The teacher cache", folder.name, fix)
        content, sentence = known.inside("content").content, one_line(known.text("sentence", most=2000), 1000)
        early = replace(key, teacher_sha256=fingerprints.weights_of(key.teacher_sha256))
        if content != json.loads(json.dumps(key.content)) and content == json.loads(json.dumps(early.content)):
            stage.log("plm").warning("%s: %s", folder.name, fingerprints.UNCHECKED)
            key = early
        if content != json.loads(json.dumps(key.content)):
            raise UserError(
                f"The teacher cache belongs to {sentence}; this job wants {key.sentence()}", where=str(folder),
                fix="Give another folder for this teacher, or the settings of the cache",
            )
        return cls(folder, key, log)

    def __len__(self) -> int:
        return len(self._index)

    def reload(self) -> None:
        """Takes up the shards that are there, such as those that another process has written."""
        for number in sorted(self._numbers()):
            if number not in self._index.shards:
                self._take_up(number)

    def _take_up(self, number: int) -> None:
        try:
            shapes = tensors.shapes(self._store.path(number))
            entries = {name: self._store.whole(number, name) for name in ENTRY if name in shapes}
            fits = _fits(entries, shapes, self.key.wants)
        except Exception as error:  # the library raises its own class for a damaged part, and numpy's for its types
            if isinstance(error, MemoryError):
                raise
            fits = False
        if fits:
            self._index.add(number, entries)
        else:
            self._drop(number)

    def _numbers(self) -> list[int]:
        """Numbers of the shards that are in the folder."""
        matches = (_SHARD.fullmatch(path.name) for path in self.folder.glob("shard_*.safetensors"))
        return [int(match[1]) for match in matches if match]

    def _drop(self, number: int) -> None:
        self._store.forget(number)
        self._index.remove(number)
        self._verified.discard(number)
        self.dropped += 1
        if self._log is not None:
            self._log.warning(
                "The shard %s of the teacher cache is damaged: its part is computed anew", self._store.path(number).name
            )

    def _sound(self, number: int) -> bool:
        if number in self._verified:
            return True
        if self._store.holds(number):
            self._verified.add(number)
            return True
        self._drop(number)
        return False

    def missing(self, digests: np.ndarray, set_number: int) -> np.ndarray:
        """Which of some sequences have no sound entry.

        Args:
            digests: ``(n, 16)`` uint8 digests of sequences, see :class:`plm.masked_lm.corpus_store.CorpusStore`.
            set_number: Number of the set of masks.

        Returns:
            Rising places in ``digests``.
        """
        while True:
            entries = self._index.find(digests, set_number)
            numbers = np.unique(self._index.shard[entries[entries >= 0]]).tolist()
            damaged = [number for number in numbers if not self._sound(number)]
            if not damaged:
                return np.flatnonzero(entries < 0)

    def add(
        self, digests: np.ndarray, set_number: int, masked: np.ndarray, residues: np.ndarray, targets: TeacherTargets
    ) -> None:
        """Takes what a teacher said of some sequences; it is on the disk after :meth:`flush`.

        Args:
            digests: ``(B, 16)`` uint8 digests.
            set_number: Number of the set of masks.
            masked: ``(B,)`` number of masked residues of each sequence.
            residues: ``(B,)`` number of residues of each sequence.
            targets: Answers of the teacher, in the order of the sequences.

        Raises:
            UserError: A number is not finite; the disk is full.
        """
        entry: dict[str, np.ndarray] = {
            "digests": np.ascontiguousarray(digests),
            "sets": np.full(len(digests), set_number, np.int32),
            "masked": np.asarray(masked, np.int32),
            "residues": np.asarray(residues, np.int32),
        }
        for name in _FIELDS:
            value = getattr(targets, name)
            if value is not None:
                entry[name] = _packed(name, value, self.key)
        self._pending.append(entry)
        self._pending_bytes += sum(array.nbytes for array in entry.values())
        if self._pending_bytes >= SHARD_BYTES or time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Puts what was added on the disk, as one shard.

        Raises:
            UserError: The disk is full.
        """
        self._flushed = time.monotonic()
        if not self._pending:
            return
        pending, self._pending, self._pending_bytes = self._pending, [], 0
        arrays = {name: np.concatenate([entry[name] for entry in pending]) for name in pending[0]}
        number = max([*self._numbers(), *self._index.shards, -1]) + 1
        self._store.save(number, arrays)
        self._verified.add(number)
        self._index.add(number, {name: arrays[name] for name in ENTRY})

    def read(self, digests: np.ndarray, set_number: int) -> TeacherTargets:
        """What the teacher said of some sequences, in their order; float32 on the processor.

        Args:
            digests: ``(B, 16)`` uint8 digests.
            set_number: Number of the set of masks.

        Raises:
            UserError: An entry is missing, or its shard turns out to be damaged.
        """
        index = self._index
        entries = index.find(digests, set_number)
        if (entries < 0).any() or not all(self._sound(int(number)) for number in np.unique(index.shard[entries])):
            raise UserError(
                "The teacher cache lacks a sequence, or a part of it was damaged while the job ran",
                where=str(self.folder), fix="Run the job again: what is missing is computed",
            )
        wants = self.key.wants
        names = [("values", "ids", "rest") if wants.top else ("logits",)] if wants.logits else []
        fields = [name for group in names for name in group]
        fields += ["pooled"] * wants.pooled + ["hidden"] * wants.hidden
        pieces: dict[str, list[np.ndarray]] = {name: [] for name in fields}
        for entry in entries.tolist():
            number = int(index.shard[entry])
            for name in fields:
                start, stop = index.span(entry, name)
                pieces[name].append(self._store.read(number, name, start, stop))
        targets = {name: torch.from_numpy(_unpacked(name, np.concatenate(parts))) for name, parts in pieces.items()}
        return TeacherTargets(**targets)

    def export(self, path: Path) -> None:
        """Writes the cache as one zip (stored, not compressed), for :func:`unpack`."""
        self.flush()
        files = {_NAME: self.folder / _NAME}
        files |= {self._store.path(n).name: self._store.path(n) for n in sorted(self._index.shards) if self._sound(n)}
        manifest = {
            "schema_version": archive.SCHEMA_VERSION,
            "kind": archive.TEACHER_CACHE,
            "key": self.key.content,
            "files": {name: fingerprints.file_sha256(file) for name, file in files.items()},
        }
        listed = path.with_name(f".{path.name}.{os.getpid()}.manifest")
        try:
            listed.write_text(archive.json_text(manifest))
            archive.write_zip(path, {"manifest.json": listed, **files})
        finally:
            listed.unlink(missing_ok=True)


def unpack(path: Path, folder: Path) -> None:
    """Unpacks what :meth:`TeacherCache.export` wrote into a folder, for :meth:`TeacherCache.open`.

    Raises:
        UserError: Truncated, altered, or no teacher cache.
    """
    folder.mkdir(parents=True, exist_ok=True)
    archive.unpack(path, folder, kind_wanted=archive.TEACHER_CACHE, needed=("key",))
    other = sorted(one.name for one in folder.iterdir() if one.name not in ("manifest.json", _NAME)
                   and _SHARD.fullmatch(one.name) is None)
    if other:
        raise UserError(
            f"The teacher cache holds {other[0]!r}, which no cache holds", where=path.name,
            fix="Give the cache as plm_distill wrote it",
        )
    (folder / "manifest.json").unlink()


def _fits(entries: dict[str, np.ndarray], shapes: dict[str, tuple[int, ...]], wants: Wants) -> bool:
    """Whether the arrays of a shard have a row for each thing that its entries say they have."""
    if entries.keys() != set(ENTRY) or any(entries[name].dtype != np.int32 for name in ENTRY[1:]):
        return False
    digests, masked, residues = entries["digests"], entries["masked"], entries["residues"]
    count = len(masked)
    if any(entries[name].shape != (count,) for name in ENTRY[1:]):
        return False
    if digests.dtype != np.uint8 or digests.shape != (count, 16):
        return False
    if count and (masked.min() < 0 or residues.min() < 1 or entries["sets"].min() < 0):
        return False
    rows = {"pooled": count, "hidden": int(residues.sum(dtype=np.int64))}
    rows |= dict.fromkeys(BY_MASKED, int(masked.sum(dtype=np.int64)))
    names = (("values", "ids", "rest") if wants.top else ("logits",)) if wants.logits else ()
    wanted = {*names, *(["pooled"] if wants.pooled else []), *(["hidden"] if wants.hidden else [])}
    return wanted <= shapes.keys() and all(shapes[name][:1] == (rows[name],) for name in wanted)


def _packed(name: str, value: torch.Tensor, key: CacheKey) -> np.ndarray:
    array = value.detach().cpu()
    if name == "ids":
        return array.to(torch.int16).numpy()
    if name == "rest":  # minus infinity where nothing is left
        return array.float().numpy()
    stored = array.to(torch.float16)
    if not bool(torch.isfinite(stored).all()):
        raise UserError(
            "The teacher gives numbers that are not finite, or too large for the cache (float16)", where=key.teacher,
            fix="Check the checkpoint, or use the teacher online",
        )
    return stored.numpy()


def _unpacked(name: str, array: np.ndarray) -> np.ndarray:
    return array.astype(np.int64 if name == "ids" else np.float32)


class CachedTeacher:
    """Answers for rows from a cache, as :class:`plm.jobs.distill.teacher.Teacher` does from a model."""

    def __init__(self, cache: TeacherCache, store: CorpusStore) -> None:
        self._cache, self._store = cache, store

    def answer(self, row: DistillationRow) -> TeacherTargets:
        """What the teacher said of a row, float32 on the row's device.

        Raises:
            UserError: As :meth:`TeacherCache.read`.
        """
        targets = self._cache.read(self._store.digests[row.members], row.set_number)
        device = row.targets.device
        return TeacherTargets(
            **{name: sent(value, device) for name in _FIELDS if (value := getattr(targets, name)) is not None}
        )


@dataclass(frozen=True)
class Filling:
    """What is to be asked of the teacher.

    Attributes:
        entries: Number of missing entries (sequences times sets of masks).
        held: Number of entries that the cache has.
        tokens: Number of tokens of the missing entries.
        bytes: Bytes that the missing entries will take on the disk, about.
    """

    entries: int
    held: int
    tokens: int
    bytes: int

    def sentence(self) -> str:
        """The same in words."""
        size = f"{self.bytes / 2**20:,.0f} MiB" if self.bytes < 2**30 else f"{self.bytes / 2**30:,.1f} GiB"
        return f"{self.held:,} answers are in the teacher cache, {self.entries:,} are computed (about {size})"


def estimate(
    cache: TeacherCache, loaded: LoadedModel, store: CorpusStore, indices: np.ndarray, masks: MaskPlan
) -> Filling:
    """How much is missing in a cache, and the room that it needs."""
    indices = np.asarray(indices, np.int64)
    lengths = np.minimum(np.diff(store.offsets), masks.crop)[indices]
    wants, vocabulary = cache.key.wants, int(encoder.unwrap(loaded.model).config.vocab_size)
    a_residue = 2 * vocabulary if not wants.top else 4 * min(wants.top, vocabulary) + 4
    each = np.maximum(1, np.rint(masks.rate * lengths)) * (a_residue if wants.logits else 0)
    each += 2 * loaded.hidden_size * (lengths * wants.hidden + int(wants.pooled)) + 28
    entries = tokens = 0
    room = 0.0
    for number in range(masks.sets):
        missing = cache.missing(store.digests[indices], number)
        entries += len(missing)
        tokens += int((lengths[missing] + loaded.family.specials).sum())
        room += float(each[missing].sum())
    return Filling(entries, masks.sets * len(indices) - entries, tokens, math.ceil(_PROBABLY * room))


def fill(
    cache: TeacherCache, loaded: LoadedModel, store: CorpusStore, indices: np.ndarray, masks: MaskPlan, *,
    budget: int | None = None, advance: Callable[[int], None] | None = None,
) -> int:
    """Asks the teacher what the cache lacks; one process at a time. A killed job goes on where it was.

    Args:
        cache: Made for this teacher and these masks.
        loaded: Teacher that is asked.
        store: Corpus that holds the sequences.
        indices: Numbers of the sequences that are asked for, under all sets of masks.
        masks: The mask plan; its sets must be fixed.
        budget: Tokens in a row; by default what suits the device.
        advance: Called with the tokens done.

    Returns:
        How many entries were computed.

    Raises:
        UserError: Masks that are fresh in every epoch; no room on the disk; another job is filling the cache; a number
            that is not finite.
    """
    if not masks.sets:
        raise UserError(
            "Masks that are fresh in every epoch cannot be answered in advance", where="--mask-sets 0",
            fix="Give a number of mask sets, or do without --teacher-cache",
        )
    wanted_key = CacheKey.of(loaded, masks, cache.key.wants)
    if fingerprints.partial(cache.key.teacher_sha256, wanted_key.teacher_sha256):
        wanted_key = replace(wanted_key, teacher_sha256=cache.key.teacher_sha256)
    if cache.key.content != wanted_key.content:
        raise ValueError("the cache belongs to another teacher or other masks")
    indices = np.asarray(indices, np.int64)
    with shards.Lock(cache.folder) as lock:
        if not lock.held and "another job" in lock.why:
            raise UserError(
                "Another job is filling the teacher cache", where=str(cache.folder), fix="Wait for it, then run again"
            )
        for left in cache.folder.glob("*.partial"):
            left.unlink(missing_ok=True)  # of a job that was killed
        cache.reload()
        wanted = estimate(cache, loaded, store, indices, masks)
        free = shutil.disk_usage(cache.folder).free
        if wanted.bytes > free:
            raise UserError(
                f"The teacher cache needs about {wanted.bytes / 2**30:.2f} GiB and {free / 2**30:.2f} GiB are free",
                where=str(cache.folder),
                fix="Free space, keep only the highest logits (--teacher-top), use fewer --mask-sets, or no cache",
            )
        teacher = Teacher(loaded, store, masks, cache.key.wants)
        size = budget or encoder.ROW_TOKENS[loaded.device.type]
        try:
            for number in range(masks.sets):
                missing = indices[cache.missing(store.digests[indices], number)]
                for row, targets in _answers(teacher, loaded, store, missing, masks, number, size):
                    lengths = np.array(row.batch.lengths)
                    asked = np.add.reduceat((row.targets != IGNORED).numpy().astype(np.int32), row.batch.layout.starts)
                    specials = len(store.before) + len(store.after)
                    cache.add(store.digests[row.members], number, asked, lengths - specials, targets)
                    if advance is not None:
                        advance(row.batch.tokens)
        finally:
            cache.flush()
    return wanted.entries


@dataclass(frozen=True)
class _Question:
    """A row that stays where it is: the teacher moves what it needs."""

    row: DistillationRow

    def to(self, device: Any) -> _Question:
        return self


def _answers(
    teacher: Teacher, loaded: LoadedModel, store: CorpusStore, missing: np.ndarray, masks: MaskPlan, number: int,
    budget: int,
) -> Iterator[tuple[DistillationRow, TeacherTargets]]:
    if not len(missing):
        return
    rows: Sequence[np.ndarray] = plan(store, missing, budget=budget, crop=masks.crop, group="none", seed=0)

    def questions() -> Iterator[Any]:
        for members in rows:
            batch, targets = masks.row(store, members.tolist(), number)
            yield _Question(DistillationRow(batch, targets, members, number))

    def compute(question: Any) -> tuple[DistillationRow, TeacherTargets]:
        return question.row, teacher.answer(question.row)

    yield from encoder.run(loaded, questions(), compute)
