"""Outputs are tried first, whole or absent, never replace a user's file; a full disk and lost memory are one line."""

from __future__ import annotations

import errno
import importlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from plm import disk_space, failures, outputs, stage
from plm.data.embeddings.hdf5_writing import writing
from plm.data.shards import ShardStore
from plm.errors import DiskFull, UserError
from plm.training import checkpoints

ROOT = Path(__file__).resolve().parents[1]
TEST_DATA = ROOT / "test-data"
MODEL, PROTEINS = TEST_DATA / "tiny_esm2.zip", TEST_DATA / "simulated_proteins.fasta"
STAGES = tuple(sorted(path.stem for path in (ROOT / "tools").glob("plm_*.py")))
INPUTS = {
    "alignment", "archive", "bundle", "contact_regression", "dataset", "embeddings", "head", "input", "labels",
    "models", "negative_sites", "negatives_file", "pairs", "parts", "predictions", "queries", "reference", "resume",
    "resume_study", "sequences", "sites", "status", "structures", "table", "teacher_cache", "test", "training", "truth",
    "variants", "vocabulary", "work_dir",
}
"""Flags that name a file or folder to read, or a folder that keeps parts between runs, or all models."""


class _Found(Exception):
    pass


def _actions(name: str, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The flags of a stage, taken from the parser that it makes."""
    sys.path.insert(0, str(ROOT / "tools"))
    module = importlib.import_module(name)
    seen: list[Any] = []

    def stop(parser: Any, *_: object) -> None:
        seen.extend(parser._actions)
        raise _Found

    monkeypatch.setattr(stage._OneLineParser, "parse_args", stop)
    with pytest.raises(_Found):
        module.run([])
    return seen


@pytest.mark.parametrize("name", STAGES)
def test_every_path_of_a_form_is_an_input_or_an_output(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    actions = _actions(name, monkeypatch)
    written = [one for one in actions if one.type in (stage.output_file, stage.output_folder)]
    assert written, "a stage without outputs"
    assert {one.dest for one in actions if one.type is Path} <= INPUTS


REFUSED: list[tuple[str, list[str], str]] = [
    ("folder where a file goes", ["--embeddings", "e.h5", "--status", "results"], "A folder stands where a file"),
    ("output is the input", ["--embeddings", "e.h5", "--status", "in.fasta"], "The output is the input of --input"),
    ("input by another way", ["--embeddings", "e.h5", "--status", "sub/../in.fasta"], "The output is the input"),
    ("input by a link", ["--embeddings", "e.h5", "--status", "link.fasta"], "The output is the input"),
    ("input by a second name", ["--embeddings", "e.h5", "--status", "hard.fasta"], "The output is the input"),
    ("the model", ["--embeddings", "model.zip"], "The output is the input of --model"),
    ("two outputs in one place", ["--embeddings", "same", "--status", "same"], "Two outputs have the same place"),
    ("two spellings of a place", ["--embeddings", "same", "--status", "./sub/../same"], "Two outputs have the same"),
    ("one inside another", ["--embeddings", "e.h5", "--status", "e.h5/status.tsv"], "lies inside another"),
    ("the folder itself", ["--embeddings", "."], "This names no new file"),
    ("no such folder", ["--embeddings", "absent/e.h5"], "does not exist"),
    ("a file as folder", ["--embeddings", "in.fasta/e.h5"], "cannot be written"),
    ("a name that is too long", ["--embeddings", "e" * 300], "too long"),
    ("a device", ["--embeddings", "e.h5", "--status", "/dev/null"], "no ordinary file"),
]


@pytest.mark.parametrize(("arguments", "message"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_places_that_would_lose_something(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results" / "thesis").mkdir(parents=True)
    (tmp_path / "results" / "thesis" / "chapter.txt").write_text("years")
    (tmp_path / "sub").mkdir()
    (tmp_path / "in.fasta").write_text(">a\nMKTAYIAKQRQISFVK\n")
    (tmp_path / "link.fasta").symlink_to("in.fasta")
    os.link(tmp_path / "in.fasta", tmp_path / "hard.fasta")
    (tmp_path / "model.zip").write_bytes(MODEL.read_bytes())
    before = _tree(tmp_path)
    sys.path.insert(0, str(ROOT / "tools"))
    import plm_embed

    with pytest.raises(UserError, match=message) as caught:
        plm_embed.run(["--input", "in.fasta", "--model", "model.zip", *arguments])
    assert caught.value.fix and _tree(tmp_path) == before
    assert Path(os.devnull).is_char_device()


def _tree(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("place", ["mydata", "."])
def test_a_folder_with_files_is_never_replaced(
    place: str,
    tmp_path: Path,
    run_stage: Callable[..., subprocess.CompletedProcess[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mydata").mkdir()
    for folder in (tmp_path, tmp_path / "mydata"):
        (folder / "in.fasta").write_text(">a\nMKTAYIAKQRQISFVK\n>b\nMKTAYIAKQRQ\n")
        (folder / "other.txt").write_text("x")
    before = _tree(tmp_path)
    done = run_stage("plm_split_fasta", "--input", "in.fasta", "--parts", "2", "--output-dir", place)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and _tree(tmp_path) == before


def test_a_file_of_a_model_folder_is_no_output(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="a file of the folder given as --model"):
        outputs.check_places([("--model", "input", tmp_path), ("--report", "file", tmp_path / "config.json")])
    outputs.check_places([("--model", "input", tmp_path), ("--report", "file", tmp_path / "new.md")])


def test_a_file_of_the_user_is_kept_and_one_of_the_suite_replaced(tmp_path: Path) -> None:
    place = tmp_path / "notes.txt"
    place.write_text("mine")
    (tmp_path / "notes.txt~").write_text("older")
    with stage.Outputs() as out:
        out.path(place).write_text("first")
    assert (tmp_path / "notes.txt~2").read_text() == "mine" and place.read_text() == "first"
    if not outputs.written_by_the_suite(place):
        pytest.skip("this file system has no extended attributes: every earlier file is kept")
    with stage.Outputs() as out:
        out.path(place).write_text("second")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "notes.txt~", "notes.txt~2"]
    place.write_text("second, with my remarks")
    with stage.Outputs() as out:
        out.path(place).write_text("third")
    assert (tmp_path / "notes.txt~3").read_text() == "second, with my remarks"


def test_an_empty_file_that_galaxy_made_is_filled(tmp_path: Path) -> None:
    (tmp_path / "dataset_1.dat").touch()
    with stage.Outputs() as out:
        out.path(tmp_path / "dataset_1.dat").write_text("table")
    assert [path.name for path in tmp_path.iterdir()] == ["dataset_1.dat"]


def test_one_path_is_not_given_twice(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="same place"), stage.Outputs() as out:
        out.path(tmp_path / "a")
        out.path(tmp_path / "." / "a")
    assert not list(tmp_path.iterdir())


# -- full disks --------------------


@contextmanager
def small_files(size: int) -> Iterator[None]:
    """Limits the size of files that this process writes, which fails as a full disk does.

    No longer than the writing takes: pytest's own output may go to a file.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_hdf5_survives_a_disk_that_fills(tmp_path: Path) -> None:
    with small_files(50_000), pytest.raises(OSError) as caught, writing(tmp_path / "x.h5") as writer:
        for number in range(200):
            writer.file.create_dataset(f"d{number}", data=np.arange(1000.0))
            writer.check()
    assert caught.value.errno == errno.EFBIG and number < 20


def test_hdf5_that_only_fails_at_the_end(tmp_path: Path) -> None:
    # Metadata is written when the file is closed.
    with small_files(1500), pytest.raises(OSError), writing(tmp_path / "x.h5") as writer:
        for number in range(8):
            writer.file.create_dataset(f"d{number}", data=np.arange(2.0))
        writer.check()


def test_hdf5_reads_back_what_it_could_not_write(tmp_path: Path) -> None:
    # Texts lie apart from their data set, which is read again when more of them are written.
    with small_files(2500), pytest.raises(OSError), writing(tmp_path / "x.h5") as writer:
        names = writer.file.create_dataset("ids", (400,), h5py.string_dtype())
        for start in range(0, 400, 100):
            names[start : start + 100] = [f"a name long enough to fill a heap {number}" for number in range(100)]
        assert names[0] == b"a name long enough to fill a heap 0"


def test_hdf5_written_so_is_read_by_everybody(tmp_path: Path) -> None:
    with writing(tmp_path / "x.h5", track_order=True) as writer:
        for name in "cab":
            writer.file[name] = np.arange(3000.0)
    with h5py.File(tmp_path / "x.h5", "r", track_order=True) as file:
        assert list(file) == ["c", "a", "b"] and (file["a"][...] == np.arange(3000.0)).all()


WRITERS: dict[str, tuple[int, list[str]]] = {
    "plm_embed hdf5": (60_000, ["plm_embed", "--input", "simulated_proteins.fasta", "--model", "tiny_esm2.zip",
                                "--pooling", "residues", "--format", "hdf5", "--embeddings", "OUT/e"]),
    "plm_embed hdf5-uniprot": (60_000, ["plm_embed", "--input", "simulated_proteins.fasta", "--model", "tiny_esm2.zip",
                                        "--pooling", "residues", "--format", "hdf5-uniprot", "--embeddings", "OUT/e"]),
    "plm_merge_embeddings": (4_000, ["plm_merge_embeddings", "--input", "embeddings_part_1.h5", "--output", "OUT/m"]),
    "plm_split_fasta": (2_000, ["plm_split_fasta", "--input", "simulated_proteins.fasta", "--parts", "2",
                                "--output-dir", "OUT/parts"]),
    "plm_preprocess": (3_000, ["plm_preprocess", "--input", "simulated_windows.fasta", "--dataset", "OUT/d",
                               "--rejected", "OUT/r", "--leakage", "OUT/l", "--report", "OUT/m"]),
    "plm_project": (600, ["plm_project", "--embeddings", "simulated_embeddings.h5", "--methods", "pca",
                          "--coordinates", "OUT/c"]),
    "plm_evaluate": (400, ["plm_evaluate", "--predictions", "predictions_simulated_binary.tabular", "--resamples",
                           "100", "--metrics", "OUT/m", "--roc", "OUT/r"]),
    "plm_compare_embeddings": (500, ["plm_compare_embeddings", "--embeddings", "simulated_embeddings.h5",
                                     "--proteins", "OUT/p", "--checks", "OUT/c"]),
    "plm_train_classifier": (3_000, ["plm_train_classifier", "--embeddings", "class_beta.h5", "class_none.h5",
                                     "--head", "logistic", "--resamples", "100", "--bundle",
                                     "OUT/b"]),
    "plm_predict": (3_000, ["plm_predict", "--input", "simulated_classes.fasta", "--bundle", "bundle_tiny_classes.zip",
                            "--model", "tiny_esm2.zip", "--predictions", "OUT/p"]),
    "plm_variants": (2_000, ["plm_variants", "--input", "simulated_query.fasta", "--variants",
                             "simulated_substitutions.tabular", "--model", "tiny_esm2.zip", "--scores", "OUT/s",
                             "--ranked", "OUT/r"]),
    "plm_contacts": (2_000, ["plm_contacts", "--structures", "simulated_structures.zip", "--model", "tiny_esm2.zip",
                             "--methods", "regression", "--contacts", "OUT/c", "--status", "OUT/s"]),
    "plm_install_model": (20_000, ["plm_install_model", "--archive", "tiny_esm2.zip", "--id", "lab/tiny", "--models",
                                   "OUT/models", "--output", "OUT/rows"]),
    "plm_classify_sites": (60_000, ["plm_classify_sites", "--input", "simulated_query.fasta", "--bundle",
                                    "bundle_tiny_site.zip", "--model", "tiny_esm2.zip", "--sites", "OUT/s"]),
}


SLOW_WRITERS: dict[str, tuple[int, list[str]]] = {
    "plm_convert": (20_000, ["plm_convert", "--input", "fair_esm2_tiny.pt", "--to", "fair-esm", "--output", "OUT/m"]),
    "plm_finetune": (20_000, ["plm_finetune", "--dataset", "dataset_sites.tabular", "--model", "models/tiny_esm2",
                              "--epochs", "1", "--bundle", "OUT/b", "--predictions", "OUT/p", "--report", "OUT/r"]),
    "plm_pretrain": (20_000, ["plm_pretrain", "--input", "simulated_corpus.fasta", "--preset", "tiny", "--steps", "2",
                              "--output-model", "OUT/m", "--figure", "OUT/f", "--report", "OUT/r"]),
    "plm_distill": (20_000, ["plm_distill", "--input", "simulated_corpus.fasta", "--teacher", "models/tiny_esm2",
                             "--student-preset", "tiny", "--steps", "2", "--output-model", "OUT/m"]),
    "plm_compare_models": (4_000, ["plm_compare_models", "--model", f"a={TEST_DATA / 'models' / 'tiny_esm2'}",
                                   "--input", "simulated_proteins.fasta", "--scores", "OUT/s", "--figure", "OUT/f"]),
    "plm_compress_classifier": (9_000, ["plm_compress_classifier", "--bundle", "bundle_simulated_network.zip",
                                        "--embeddings", "simulated_embeddings.h5", "--labels",
                                        "simulated_embeddings_labels.tabular", "--compressed-bundle", "OUT/b"]),
}
ALL_WRITERS = {**WRITERS, **SLOW_WRITERS}


@pytest.mark.parametrize(
    "case", [*WRITERS, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_WRITERS)]
)
def test_a_full_disk_is_one_line_and_leaves_nothing(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    size, (name, *words) = ALL_WRITERS[case]
    place, scratch = tmp_path / "out", tmp_path / "scratch"
    place.mkdir()
    scratch.mkdir()
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # half a .pyc file cannot be read by later processes
    importlib.import_module(name)
    with small_files(size):
        line = told(name, words, place, scratch, monkeypatch, capsys)
    assert line.startswith("disk: The disk is full")
    assert list(place.iterdir()) == left_in(scratch) == []


def told(name: str, words: list[str], out: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> str:
    """The line with which a stage ends that cannot write; it runs in this process."""
    arguments = [
        word.replace("OUT", str(out)) if word.startswith("OUT/") else
        str(TEST_DATA / word) if (TEST_DATA / word).exists() else word
        for word in words
    ]
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.setattr(stage, "_end", lambda name, failure: sys.exit(f"{failure.kind}: {failure.error}"))
    module = importlib.import_module(name)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            stage.main(name, module.run, arguments)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert isinstance(ended.value.code, str), "it went through"
    assert capsys.readouterr().err == ""
    return ended.value.code


def left_in(scratch: Path) -> list[Path]:
    """What a stage left among temporary files; torch makes a folder for its compiler when it is loaded."""
    return [path for path in scratch.iterdir() if not path.name.startswith("torchinductor")]


def test_which_output_and_how_much_is_said(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught, stage.Outputs() as out:
        out.path(tmp_path / "small.tsv").write_text("a")
        out.path(tmp_path / "large.h5").write_bytes(bytes(3 * 2**20))
        raise OSError(errno.ENOSPC, "No space left on device")
    failure = failures.explain(caught.value)
    assert failure is not None and failure.kind == "disk"
    assert "large.h5 needs more than the 3 MiB" in str(failure.error)


def test_a_full_temporary_folder_is_not_blamed_on_an_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = {str(tmp_path): 2**40, "/scratch": 4096}
    monkeypatch.setattr(failures, "_free", lambda folder: free[str(folder)])
    monkeypatch.setattr(failures.tempfile, "gettempdir", lambda: "/scratch")
    with pytest.raises(OSError) as caught, stage.Outputs() as out:
        out.path(tmp_path / "b.zip").touch()
        raise OSError(errno.ENOSPC, "No space left on device")
    failure = failures.explain(caught.value)
    assert failure is not None and "[/scratch]" in str(failure.error) and "b.zip" not in str(failure.error)


class SafetensorError(Exception):
    """Named as the error of safetensors, which carries no number."""


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), "disk"),
        (RuntimeError("unable to write: errno = 28, error message = 'No space left on device'"), "disk"),
        (MemoryError(), "memory"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), "memory"),
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"), "disk"),
        (FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']"), "disk"),
        (ValueError("No such luck"), None),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/x/y"), None),
        (UserError("The record is named No space left on device"), None),
    ],
    ids=["safetensors", "hdf5", "memory", "torch", "permission", "no scratch", "bug", "missing", "a user's words"],
)
def test_what_ran_out_is_told_from_any_library(error: Exception, kind: str | None) -> None:
    found = failures.explain(error)
    assert (found.kind if found else None) == kind


def test_a_full_disk_behind_another_message(tmp_path: Path) -> None:
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "x"))
        except OSError as cause:
            raise UserError("The bundle is no complete zip file") from cause
    except UserError as error:
        found = failures.explain(error)
    assert found is not None and "disk is full" in str(found.error) and str(tmp_path) in str(found.error)


ENDING = """
import sys
sys.path.insert(0, {tools!r})
from plm import stage
def run(argv):
    {body}
stage.main("plm_x", run)
"""


@pytest.mark.parametrize(
    ("body", "code", "line"),
    [
        ("raise MemoryError", 42, "The memory was not enough"),
        ("raise KeyboardInterrupt", 130, "interrupted"),
        ("raise PermissionError(13, 'Permission denied', '/x/y')", 1, "/x/y"),
        ("open(sys.argv[0] + '/x', 'w')", 1, ""),
    ],
    ids=["memory", "control-c", "read-only", "bug"],
)
def test_how_a_stage_ends(body: str, code: int, line: str) -> None:
    script = ENDING.format(tools=str(ROOT / "tools"), body=body)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == code and line in done.stderr
    assert (done.stderr.count("\n") == 1) == bool(line)  # a bug keeps its traceback


def test_what_breaks_because_a_job_was_told_to_end_is_no_bug() -> None:
    body = """import os, signal
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        raise OSError(39, 'Directory not empty', 'scratch')"""
    script = ENDING.format(tools=str(ROOT / "tools"), body=body)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 143
    assert done.stderr == "plm_x: told to end (SIGTERM); what was not finished is not written\n"


def test_outputs_appear_together_though_the_job_is_told_to_end_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def told(*places: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        replace(*places)

    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    try:
        monkeypatch.setattr(outputs.os, "replace", told)
        with pytest.raises(SystemExit), stage.Outputs() as out:
            for name in "abc":
                out.path(tmp_path / name).write_text(name)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


def test_a_reader_that_goes_away_does_not_stop_the_work(tmp_path: Path) -> None:
    body = f"log = stage.log('x'); [log.info('line') for _ in range(20000)]; open({str(tmp_path / 'done')!r}, 'w')"
    script = ENDING.format(tools=str(ROOT / "tools"), body=body)
    done = subprocess.run(
        ["bash", "-c", '"$0" -c "$1" | head -1; exit "${PIPESTATUS[0]}"', sys.executable, script],
        capture_output=True, text=True, check=False,
    )
    assert done.stdout == "[x] line\n" and done.stderr == "" and done.returncode == 0
    assert (tmp_path / "done").exists()


def test_what_shows_other_outputs_is_written_when_they_are_complete(tmp_path: Path) -> None:
    table, page = tmp_path / "table.tsv", tmp_path / "page.html"
    with stage.Outputs() as made:
        now, shown = made.path(table), made.path(page)
        assert made.place(table) == now and made.place(tmp_path / "other") is None
        made.at_end(lambda: shown.write_text(now.read_text()) and None)
        now.write_text("late")
        assert not table.exists()
    assert page.read_text() == table.read_text() == "late"


def test_what_fails_at_the_end_leaves_no_output(tmp_path: Path) -> None:
    def fail() -> None:
        raise UserError("it cannot be shown")

    with pytest.raises(UserError, match="cannot be shown"), stage.Outputs() as made:
        made.path(tmp_path / "table.tsv").write_text("whole")
        made.at_end(fail)
    assert list(tmp_path.iterdir()) == []


# -- folders that are full, read-only or gone --------------------

DISK = "The disk is full", "when it is unpacked"
GONE = "was removed, or cannot be reached any more", "was removed while the job ran"


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system in memory of a size, such as ``64k``."""
    made: list[Path] = []

    def mount(size: str) -> Path:
        place = tmp_path_factory.mktemp("disk")
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "plm_tests", str(place)], capture_output=True, check=False
        )
        if done.returncode:
            pytest.skip(f"NO RIGHT TO MOUNT: real full disks are not tried here: {done.stderr.decode().strip()}")
        made.append(place)
        return place

    yield mount
    for place in made:
        subprocess.run(["umount", "-l", str(place)], check=True)


SMALL = {
    "plm_embed hdf5", "plm_merge_embeddings", "plm_split_fasta", "plm_preprocess", "plm_evaluate", "plm_predict",
    "plm_compare_embeddings", "plm_contacts", "plm_classify_sites", "plm_convert",
}
"""Cases that write more than a page of memory, and end soon."""


@pytest.mark.parametrize("case", sorted(SMALL))
def test_a_disk_that_fills(
    case: str, small_disk: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = small_disk("4k")
    _, (name, *words) = ALL_WRITERS[case]
    line = told(name, words, out, tmp_path, monkeypatch, capsys)
    assert line.startswith(("disk: The disk is full: the output ", "disk: The disk has too little room"))
    assert list(out.iterdir()) == []
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(
    "case", ["plm_embed hdf5", "plm_predict", "plm_variants", "plm_contacts", "plm_classify_sites", "plm_convert",
             "plm_train_classifier", *(pytest.param(name, marks=pytest.mark.slow) for name in
                                       ("plm_finetune", "plm_pretrain", "plm_distill"))]
)
def test_a_folder_of_temporary_files_that_fills(
    case: str, small_disk: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scratch = small_disk("4k")
    _, (name, *words) = ALL_WRITERS[case]
    line = told(name, words, tmp_path, scratch, monkeypatch, capsys)
    assert any(text in line for text in DISK) and str(scratch) in line
    assert list(tmp_path.iterdir()) == left_in(scratch) == []


@pytest.mark.parametrize("name", sorted({words[0] for _, words in ALL_WRITERS.values()}))
def test_a_disk_that_cannot_be_written(
    name: str, small_disk: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cases = {words[0]: words[1:] for _, words in ALL_WRITERS.values()}
    out = small_disk("64k")
    subprocess.run(["mount", "-o", "remount,ro", str(out)], check=True)
    line = told(name, cases[name], out, tmp_path, monkeypatch, capsys)
    assert "Read-only file system" in line and str(out) in line


def test_every_stage_is_tried() -> None:
    assert {words[0] for _, words in ALL_WRITERS.values()} == set(STAGES)


def test_room_is_asked_for_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil._ntuple_diskusage
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda folder: usage(2**50, 2**50 - 7, 7))
    monkeypatch.chdir(tmp_path)
    command = ["--input", str(PROTEINS), "--model", str(TEST_DATA / "models" / "tiny_esm2"), "--embeddings", "e.h5"]
    # 120 proteins of 32 numbers of 4 bytes: once in parts, once in the file
    message = r"The disk has too little room: the numbers take about 30\.0 KiB and 7 bytes are free"
    with pytest.raises(DiskFull, match=message):
        importlib.import_module("plm_embed").run(command)
    assert list(tmp_path.iterdir()) == []


def test_states_of_a_training_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert checkpoints.room_for_states(2**20, 0) == "8.0 MiB"
    assert checkpoints.room_for_states(2**20, 2**20) == "24.0 MiB"
    with pytest.raises(DiskFull, match="the states of the training take about"):
        checkpoints.room_for_states(2**50, 0)


@pytest.mark.parametrize("kind", ["full", "gone"])
def test_the_folder_of_finished_parts(kind: str, tmp_path: Path) -> None:
    store = ShardStore(tmp_path / "parts", "key")
    arrays = {"values": np.arange(10_000.0)}
    if kind == "gone":
        shutil.rmtree(tmp_path / "parts")
        with pytest.raises(UserError, match="The folder of finished parts was removed"):
            store.note("plan", {})
        with pytest.raises(UserError, match="The folder of finished parts was removed") as caught:
            store.save(0, arrays)
    else:
        with small_files(20_000), pytest.raises(DiskFull, match="The disk is full: what was stored before") as caught:
            store.save(0, arrays)
        assert list((tmp_path / "parts").iterdir()) == []
    failure = stage._failure(caught.value)
    assert failure is not None and str(tmp_path / "parts") in str(failure.error)


@pytest.mark.parametrize("what", ["folder", "file", "scratch"])
def test_what_is_removed_under_a_job(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    out.mkdir()
    (scratch / "plm_x1").mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    with pytest.raises(Exception, match=r"\S") as caught, stage.Outputs() as made:
        written = made.path(out / "a.tsv")
        if what == "folder":
            shutil.rmtree(out)
        elif what == "file":
            written.unlink()
        else:
            shutil.rmtree(scratch)
            (scratch / "plm_x1" / "model").read_bytes()
    failure = stage._failure(caught.value)
    assert failure is not None and any(text in str(failure.error) for text in GONE)
    assert what != "scratch" or list(out.iterdir()) == []


def test_a_bug_beside_temporary_files_stays_a_bug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "plm_x1").mkdir()
    for named in (tmp_path / "plm_x1" / "never_written", tmp_path / "other"):
        assert failures.explain(FileNotFoundError(errno.ENOENT, "No such file or directory", str(named))) is None
