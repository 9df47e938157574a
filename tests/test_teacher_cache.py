"""The teacher cache: equal to the teacher itself, found by content, whole or absent, refused for another teacher."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from distillation_cases import random_records, store_of
from plm.errors import UserError
from plm.jobs.distill import teacher_cache
from plm.jobs.distill.batches import DistillationRows
from plm.jobs.distill.teacher import Teacher, TeacherTargets, Wants
from plm.jobs.distill.teacher_cache import CachedTeacher, CacheKey, TeacherCache, estimate, fill, unpack
from plm.masked_lm.corpus_store import CorpusStore
from plm.masked_lm.masks import MaskPlan
from plm.model.checkpoint import load_model, resolve_model
from plm.model.loaded import LoadedModel

MASKS = MaskPlan(seed=3, sets=2, rate=0.2, crop=40)
ALL = Wants(logits=True, pooled=True, hidden=True, layer=1, represent="masked")
FIELDS = ("logits", "values", "ids", "rest", "pooled", "hidden")


@pytest.fixture(scope="module")
def teacher(tiny_esm2: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    files = resolve_model(str(tiny_esm2), workdir=tmp_path_factory.mktemp("teacher"))
    return load_model(files, purpose="masked_lm")


@pytest.fixture
def store(tmp_path: Path, teacher: LoadedModel) -> CorpusStore:
    records = [*random_records(60), ("one", "9606", "E", "M"), ("unknown", "9606", "E", "XXXX")]
    return store_of(records, tmp_path / "corpus", teacher)


def opened(folder: Path, teacher: LoadedModel, wants: Wants = ALL, masks: MaskPlan = MASKS) -> TeacherCache:
    return TeacherCache.open(folder, CacheKey.of(teacher, masks, wants))


def filled(folder: Path, teacher: LoadedModel, store: CorpusStore, wants: Wants = ALL) -> TeacherCache:
    cache = opened(folder, teacher, wants)
    fill(cache, teacher, store, np.arange(len(store)), MASKS, budget=300)
    return cache


def rows_of(store: CorpusStore, count: int = 30) -> DistillationRows:
    return DistillationRows(store, np.arange(len(store)), count, masks=MASKS, budget=200)


def assert_close(found: TeacherTargets, expected: TeacherTargets) -> None:
    for name in FIELDS:
        one, other = getattr(found, name), getattr(expected, name)
        assert (one is None) == (other is None), name
        if one is None:
            continue
        assert one.shape == other.shape, name
        assert torch.allclose(one.float(), other.float(), rtol=1e-3, atol=1e-3), name  # float16 on the disk


@pytest.mark.parametrize(
    "wants",
    [
        ALL,
        replace(ALL, top=4),
        replace(ALL, represent="intact", hidden=False),
        replace(ALL, logits=False, layer=2),
        replace(ALL, pooled=False, hidden=False),
    ],
    ids=["all", "top", "intact", "states", "logits"],
)
def test_cached_equals_online(wants: Wants, tmp_path: Path, teacher: LoadedModel, store: CorpusStore) -> None:
    cached = CachedTeacher(filled(tmp_path / "cache", teacher, store, wants), store)
    online = Teacher(teacher, store, MASKS, wants)
    rows = rows_of(store)
    epochs = set()
    for number in range(0, 30, 3):  # rows of other members than those that the cache was filled with
        epochs.add(rows[number].set_number)
        assert_close(cached.answer(rows[number]), online.answer(rows[number]))
    assert epochs == {0, 1}


def test_cached_equals_online_within_bfloat16(tmp_path: Path, tiny_esm2: Path, store: CorpusStore) -> None:
    """Rows of other members than those of the filling, in the arithmetic of a GPU's teacher."""
    half = load_model(resolve_model(str(tiny_esm2), workdir=tmp_path), purpose="masked_lm", dtype="bfloat16")
    cached = CachedTeacher(filled(tmp_path / "cache", half, store), store)
    online = Teacher(half, store, MASKS, ALL)
    for number in range(8):
        row = rows_of(store)[number]
        found, expected = cached.answer(row), online.answer(row)
        for name in ("logits", "pooled", "hidden"):
            one, other = getattr(found, name), getattr(expected, name)
            assert float((one - other).norm() / other.norm()) < 2**-6, name


def test_a_job_that_was_told_to_end_goes_on(tmp_path: Path, teacher: LoadedModel, store: CorpusStore) -> None:
    cache = opened(tmp_path / "cache", teacher)
    rows = 0

    def told(tokens: int) -> None:
        nonlocal rows
        rows += 1
        if rows == 3:
            raise SystemExit(143)  # as a signal does

    with pytest.raises(SystemExit):
        fill(cache, teacher, store, np.arange(len(store)), MASKS, budget=300, advance=told)
    again = opened(tmp_path / "cache", teacher)
    held = len(again)
    assert 0 < held < 2 * len(store)
    assert fill(again, teacher, store, np.arange(len(store)), MASKS) == 2 * len(store) - held
    row = rows_of(store)[2]
    assert_close(CachedTeacher(again, store).answer(row), Teacher(teacher, store, MASKS, ALL).answer(row))


def test_a_changed_corpus_costs_what_changed(tmp_path: Path, teacher: LoadedModel, store: CorpusStore) -> None:
    cache = filled(tmp_path / "cache", teacher, store)
    assert len(cache) == 2 * len(store)
    records = random_records(60)
    changed = store_of([*records[40:], ("new", "1", "B", "MKVLAAGWYT"), *records[:20]], tmp_path / "changed", teacher)
    again = opened(tmp_path / "cache", teacher)
    wanted = estimate(again, teacher, changed, np.arange(len(changed)), MASKS)
    assert (wanted.entries, wanted.held) == (2, 80)
    assert fill(again, teacher, changed, np.arange(len(changed)), MASKS) == 2
    row = rows_of(changed)[1]
    assert_close(CachedTeacher(again, changed).answer(row), Teacher(teacher, changed, MASKS, ALL).answer(row))
    more = replace(MASKS, sets=3)  # one more set of masks costs that set
    assert estimate(again, teacher, changed, np.arange(len(changed)), more).entries == len(changed)
    assert fill(again, teacher, changed, np.arange(len(changed)), MASKS) == 0


def test_the_estimate_is_what_the_disk_holds(tmp_path: Path, teacher: LoadedModel, store: CorpusStore) -> None:
    cache = opened(tmp_path / "cache", teacher)
    wanted = estimate(cache, teacher, store, np.arange(len(store)), MASKS)
    fill(cache, teacher, store, np.arange(len(store)), MASKS)
    size = sum(path.stat().st_size for path in (tmp_path / "cache").glob("shard_*"))
    assert 0.9 < wanted.bytes / size < 1.1
    assert "are computed (about" in wanted.sentence()


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 4}, {"rate": 0.3}, {"crop": 41}, {"teacher_sha256": "0" * 64, "teacher": "other"}, {"family": "esm1b"},
        {"wants": replace(ALL, layer=2)}, {"wants": replace(ALL, top=2)}, {"wants": replace(ALL, represent="intact")},
    ],
    ids=lambda other: next(iter(other)),
)
def test_the_cache_of_another_teacher_is_refused(other: dict, tmp_path: Path, teacher: LoadedModel) -> None:
    opened(tmp_path / "cache", teacher)
    wanted = replace(CacheKey.of(teacher, MASKS, ALL), **other)
    with pytest.raises(UserError) as caught:
        TeacherCache.open(tmp_path / "cache", wanted)
    assert f"belongs to {CacheKey.of(teacher, MASKS, ALL).sentence()}" in str(caught.value)
    assert f"wants {wanted.sentence()}" in str(caught.value) and "\n" not in str(caught.value)


def test_the_name_of_the_teacher_does_not_matter(tmp_path: Path, teacher: LoadedModel) -> None:
    opened(tmp_path / "cache", teacher)
    TeacherCache.open(tmp_path / "cache", replace(CacheKey.of(teacher, MASKS, ALL), teacher="renamed"))


def test_a_folder_of_something_else_is_refused(tmp_path: Path, teacher: LoadedModel) -> None:
    (tmp_path / "thesis.docx").write_text("years of work")
    with pytest.raises(UserError, match="not empty and holds no teacher cache"):
        opened(tmp_path, teacher)
    with pytest.raises(UserError, match="There is no teacher cache"):
        TeacherCache.open(tmp_path / "absent", CacheKey.of(teacher, MASKS, ALL), create=False)
    (tmp_path / "cache.json").write_text('{"content": ')
    with pytest.raises(UserError, match="cannot be read"):
        opened(tmp_path, teacher)


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "keys"])
def test_a_damaged_shard_is_dropped_and_computed_anew(
    damage: str, tmp_path: Path, teacher: LoadedModel, store: CorpusStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher_cache, "SHARD_BYTES", 20_000)
    folder = tmp_path / "cache"
    filled(folder, teacher, store)
    shards = sorted(folder.glob("shard_*"))
    assert len(shards) > 3
    content = bytearray(shards[1].read_bytes())
    if damage == "flipped":
        content[-7] ^= 1
    elif damage == "keys":  # the digests of the sequences
        at = content.index(store.digests[_member_of(folder, 1, store)].tobytes())
        content[at] ^= 1
    shards[1].write_bytes(content[: {"cut": len(content) // 2, "empty": 0}.get(damage, len(content))])
    cache = opened(folder, teacher)
    computed = fill(cache, teacher, store, np.arange(len(store)), MASKS)
    assert cache.dropped == 1 and 0 < computed < len(store)
    online = Teacher(teacher, store, MASKS, ALL)
    rows = rows_of(store)
    for number in range(12):
        assert_close(CachedTeacher(cache, store).answer(rows[number]), online.answer(rows[number]))
    assert fill(opened(folder, teacher), teacher, store, np.arange(len(store)), MASKS) == 0


def _member_of(folder: Path, number: int, store: CorpusStore) -> int:
    from safetensors.numpy import load_file

    digest = load_file(folder / f"shard_{number:06d}.safetensors")["digests"][0]
    return int(np.flatnonzero((store.digests == digest).all(axis=1))[0])


def test_damage_while_the_job_runs_is_an_error(tmp_path: Path, teacher: LoadedModel, store: CorpusStore) -> None:
    filled(tmp_path / "cache", teacher, store)
    cache = opened(tmp_path / "cache", teacher)
    (shard,) = (tmp_path / "cache").glob("shard_*")
    content = bytearray(shard.read_bytes())
    content[-7] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match="damaged while the job ran"):
        CachedTeacher(cache, store).answer(rows_of(store)[0])


def test_a_half_written_shard_is_not_believed(tmp_path: Path, teacher: LoadedModel, store: CorpusStore) -> None:
    folder = tmp_path / "cache"
    filled(folder, teacher, store)
    (shard,) = folder.glob("shard_*")
    shard.rename(folder / "shard_000000.4711.partial")  # as a killed job leaves it
    cache = opened(folder, teacher)
    assert len(cache) == 0
    assert fill(cache, teacher, store, np.arange(len(store)), MASKS) == 2 * len(store)
    assert not list(folder.glob("*.partial"))


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from distillation_cases import random_records, store_of
from plm.errors import UserError
from plm.jobs.distill import teacher_cache
from plm.jobs.distill.batches import MaskPlan
from plm.jobs.distill.teacher import Wants
from plm.model.checkpoint import load_model, resolve_model

model, folder, kind = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
teacher = load_model(resolve_model(str(model), workdir=folder), purpose="masked_lm")
store = store_of(random_records(60), folder / "corpus", teacher)
masks, wants = MaskPlan(seed=3, sets=2, rate=0.2, crop=40), Wants(True, True, True, 1)
cache = teacher_cache.TeacherCache.open(folder / "cache", teacher_cache.CacheKey.of(teacher, masks, wants))
teacher_cache.SHARD_BYTES = 100_000
if kind == "disk":  # the check of free space is about the whole; here others fill the disk meanwhile
    (folder / "cache" / "filler").write_bytes(bytes(int(sys.argv[4])))
else:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
teacher_cache.estimate = lambda *given: teacher_cache.Filling(1, 0, 1, 0)
try:
    teacher_cache.fill(cache, teacher, store, np.arange(len(store)), masks)
except UserError as error:
    print(error)
    print(len(list((folder / "cache").glob("shard_*"))), "shards")
    sys.exit(1)
"""


def on_a_full_disk(folder: Path, tiny_esm2: Path, *more: str) -> subprocess.CompletedProcess[str]:
    here = Path(__file__).parent
    code = f"import sys; sys.path[:0] = [{str(here)!r}, {str(here.parent / 'tools')!r}]\n{FULL_DISK}"
    return subprocess.run(
        [sys.executable, "-c", code, str(tiny_esm2), str(folder), *more], capture_output=True, text=True, timeout=300
    )


def test_a_full_disk_is_said_and_what_was_stored_stays(
    tmp_path: Path, tiny_esm2: Path, teacher: LoadedModel, store: CorpusStore
) -> None:
    """A limit on the size of files is the nearest to a full disk that every machine allows."""
    done = on_a_full_disk(tmp_path, tiny_esm2, "limit")
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("The disk is full: what was stored before is kept") and "0 shards" in done.stdout
    folder = tmp_path / "cache"
    assert sorted(path.name for path in folder.iterdir()) == ["cache.json"], "nothing half-written is left"
    assert fill(opened(folder, teacher), teacher, store, np.arange(len(store)), MASKS) > 0


@pytest.mark.slow
def test_a_really_full_disk(tmp_path: Path, tiny_esm2: Path, teacher: LoadedModel, store: CorpusStore) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this user may not mount a small disk")
    try:
        done = on_a_full_disk(folder, tiny_esm2, "disk", "760000")
        assert done.returncode == 1, done.stderr
        assert done.stdout.startswith("The disk is full") and "1 shards" in done.stdout, done.stdout
        (folder / "cache" / "filler").unlink()
        cache = opened(folder / "cache", teacher)
        held = len(cache)
        assert held > 0 and cache.dropped == 0
        left = fill(cache, teacher, store, np.arange(len(store)), MASKS)
        assert left < 2 * len(store)
        row = rows_of(store)[0]
        assert_close(CachedTeacher(cache, store).answer(row), Teacher(teacher, store, MASKS, ALL).answer(row))
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)  # a mapped shard keeps it busy


def test_too_little_room_is_said_before_the_work(
    tmp_path: Path, teacher: LoadedModel, store: CorpusStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = opened(tmp_path / "cache", teacher)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match=r"needs about .* GiB and 0\.00 GiB are free"):
        fill(cache, teacher, store, np.arange(len(store)), MASKS)


def test_a_zip_carries_the_cache(tmp_path: Path, teacher: LoadedModel, store: CorpusStore) -> None:
    cache = filled(tmp_path / "cache", teacher, store)
    cache.export(tmp_path / "cache.zip")
    unpack(tmp_path / "cache.zip", tmp_path / "again")
    carried = opened(tmp_path / "again", teacher)
    assert len(carried) == len(cache)
    row = rows_of(store)[5]
    for name in FIELDS:
        one = getattr(CachedTeacher(cache, store).answer(row), name)
        other = getattr(CachedTeacher(carried, store).answer(row), name)
        assert one is other is None or torch.equal(one, other)
    cache.export(tmp_path / "twice.zip")
    assert (tmp_path / "twice.zip").read_bytes() == (tmp_path / "cache.zip").read_bytes()
    damaged = bytearray((tmp_path / "cache.zip").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / "bad.zip").write_bytes(damaged)
    with pytest.raises(UserError):
        unpack(tmp_path / "bad.zip", tmp_path / "bad")


def test_another_job_at_the_same_cache_is_refused(tmp_path: Path, teacher: LoadedModel, store: CorpusStore) -> None:
    from plm.data.shards import Lock

    cache = opened(tmp_path / "cache", teacher)
    code = (
        f"import sys, time; sys.path.insert(0, {str(Path(__file__).parents[1] / 'tools')!r})\n"
        "from pathlib import Path\nfrom plm.data.shards import Lock\n"
        f"with Lock(Path({str(tmp_path / 'cache')!r})) as lock:\n    print(lock.held, flush=True)\n    sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdin is not None and other.stdout.readline() == "True\n"
    try:
        with pytest.raises(UserError, match="Another job is filling"):
            fill(cache, teacher, store, np.arange(len(store)), MASKS)
    finally:
        other.stdin.close()
        other.wait()
    with Lock(tmp_path / "cache") as lock:
        assert lock.held


def test_fresh_masks_cannot_be_cached(tmp_path: Path, teacher: LoadedModel, store: CorpusStore) -> None:
    with pytest.raises(UserError, match="fresh in every epoch"):
        fill(opened(tmp_path / "cache", teacher), teacher, store, np.arange(3), replace(MASKS, sets=0))


def test_a_teacher_that_gives_no_numbers_is_refused(tmp_path: Path, teacher: LoadedModel, store: CorpusStore) -> None:
    cache = opened(tmp_path / "cache", teacher, Wants(False, True, False, 1))
    bad = TeacherTargets(pooled=torch.tensor([[float("nan")]]))
    with pytest.raises(UserError, match="not finite"):
        cache.add(store.digests[:1], 0, np.array([1]), np.array([1]), bad)


def test_another_family_teaches_by_its_representations(
    tmp_path: Path, tiny_t5: Path, teacher: LoadedModel, store: CorpusStore
) -> None:
    """The corpus is in the student's token ids; ProtT5 reads the same stretches in its own."""
    t5 = load_model(resolve_model(str(tiny_t5), workdir=tmp_path))
    wants = Wants(logits=False, pooled=True, hidden=True, layer=t5.layers, represent="intact")
    cache = TeacherCache.open(tmp_path / "cache", CacheKey.of(t5, MASKS, wants))
    fill(cache, t5, store, np.arange(len(store)), MASKS)
    from plm.model import encoder

    row = next(row for row in (rows_of(store)[n] for n in range(20)) if len(row.members) > 2)
    found = CachedTeacher(cache, store).answer(row)
    sequences = []
    for member in row.members.tolist():
        ids = MASKS.intact(store, member, row.set_number).tolist()
        letter = {number: token for token, number in teacher.vocabulary.items()}
        sequences.append("".join(letter[number] for number in ids))
    expected = encoder.encode(t5, sequences)
    assert found.pooled is not None and found.hidden is not None
    assert torch.allclose(found.pooled, torch.stack([each.mean(0) for each in expected]), atol=2e-3, rtol=2e-3)
    assert torch.allclose(found.hidden, torch.cat(expected), atol=2e-3, rtol=2e-3)
