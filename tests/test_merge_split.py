"""A proteome cut into parts and its embeddings joined again: nothing is lost, changed or mixed."""

from __future__ import annotations

import gzip
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plm.data.embeddings.files import FORMATS, Description, read_embeddings, write_embeddings
from plm.errors import UserError
from plm.jobs.split_merge import fasta_parts

Run = Callable[..., subprocess.CompletedProcess[str]]
ROOT = Path(__file__).resolve().parents[1]
PROTEINS = ROOT / "test-data" / "simulated_query.fasta"


def split(path: Path, folder: Path, parts: list[fasta_parts.FastaPart]) -> list[bytes]:
    folder.mkdir()
    fasta_parts.write_parts(path, parts, folder, lambda done: None)
    return [(folder / f"{part.name}.fasta").read_bytes() for part in parts]


# -- dividing --------------------

lengths = st.lists(st.integers(0, 60), min_size=1, max_size=12)


@given(residues=lengths, count=st.integers(1, 15))
def test_parts_hold_every_record_once_and_in_order(residues: list[int], count: int) -> None:
    parts = fasta_parts.parts_of(np.array(residues), count)
    assert len(parts) == min(count, len(residues))
    assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])] and parts[-1].stop == len(
        residues
    )
    for part in parts:
        held = residues[part.start : part.stop]
        assert held and part.residues == sum(held) and part.longest == max(held)
    assert [part.name for part in parts] == sorted(part.name for part in parts)


@given(residues=st.lists(st.integers(1, 60), min_size=1, max_size=9), count=st.integers(1, 9))
def test_the_fullest_part_is_as_small_as_can_be(residues: list[int], count: int) -> None:
    """Against all divisions, tried one by one."""

    def best(rest: tuple[int, ...], left: int) -> int:
        if left == 1:
            return sum(rest)
        return min(max(sum(rest[:cut]), best(rest[cut:], left - 1)) for cut in range(1, len(rest) - left + 2))

    parts = fasta_parts.parts_of(np.array(residues), count)
    assert max(part.residues for part in parts) == best(tuple(residues), len(parts))


@given(residues=lengths, most=st.integers(1, 80))
def test_no_part_is_over_the_limit_unless_one_record_is(residues: list[int], most: int) -> None:
    parts = fasta_parts.parts_up_to(np.array(residues), most)
    assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])] and parts[-1].stop == len(
        residues
    )
    assert [part.name for part in parts] == [f"part_{number:04d}" for number in range(1, len(parts) + 1)]
    for part in parts:
        assert part.residues <= most or part.stop == part.start + 1
        assert part.residues == sum(residues[part.start : part.stop])


def test_a_proteome_is_divided_evenly() -> None:
    residues = np.random.default_rng(0).gamma(2, 200, 6000).astype(np.int64) + 20
    sizes = [part.residues for part in fasta_parts.parts_of(residues, 16)]
    assert max(sizes) - min(sizes) < 2 * residues.max() and max(sizes) < residues.sum() / 16 * 1.01


def test_too_many_parts_are_refused() -> None:
    with pytest.raises(UserError, match="20000 files; at most 9999"):
        fasta_parts.parts_up_to(np.full(20_000, 10), 10)


# -- bytes --------------------

bodies = st.lists(
    st.tuples(st.text("abc|%/. é", min_size=1, max_size=8), st.text("ACDEFX*- \n", max_size=30)), min_size=1, max_size=6
)


@given(records=bodies, ends=st.sampled_from(["\n", "\r\n", "\r"]), count=st.integers(1, 4), tail=st.booleans(),
       lead=st.sampled_from(["", "\n", "\ufeff"]), zipped=st.booleans())
def test_the_parts_together_are_the_file(
    records: list[tuple[str, str]], ends: str, count: int, tail: bool, lead: str, zipped: bool
) -> None:
    text = lead + ends.join(f">x{header}\n{body}".replace("\n", ends) for header, body in records) + ends * tail
    content = text.encode()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.fasta"
        path.write_bytes(gzip.compress(content, mtime=0) if zipped else content)
        found = fasta_parts.survey(path)
        assert found.residues.tolist() == [len("".join(body.split())) for _, body in records]
        written = split(path, Path(folder) / "parts", fasta_parts.parts_of(found.residues, count))
        assert b"".join(written) == content
        assert all(part.lstrip(b"\xef\xbb\xbf\n").startswith(b">") for part in written)


def test_ids_that_come_again_are_counted(tmp_path: Path) -> None:
    (tmp_path / "x.fasta").write_text(">a\nM\n>b one\nM\n>b two\nM\n>a\nM\n>b\nM\n")
    found = fasta_parts.survey(tmp_path / "x.fasta")
    assert found.repeated == ("b", 2, 3) and found.repeats == 3


# -- the stage --------------------


def test_split_writes_parts_and_a_table(run_stage: Run, tmp_path: Path) -> None:
    answer = run_stage(
        "plm_split_fasta", "--input", PROTEINS, "--parts", 3, "--output-dir", tmp_path / "parts",
        "--table", tmp_path / "parts.tsv",
    )
    assert answer.returncode == 0, answer.stderr
    files = sorted((tmp_path / "parts").iterdir())
    assert [path.name for path in files] == ["part_0001.fasta", "part_0002.fasta", "part_0003.fasta"]
    assert b"".join(path.read_bytes() for path in files) == PROTEINS.read_bytes()
    rows = [line.split("\t") for line in (tmp_path / "parts.tsv").read_text().splitlines()]
    assert rows[0] == ["part", "records", "residues", "longest", "first_id", "last_id"]
    assert sum(int(row[1]) for row in rows[1:]) == PROTEINS.read_text().count(">")
    assert rows[1][4] == "sp|SIM9001|FAM31_SIM"


def test_split_says_when_there_are_fewer_records(run_stage: Run, tmp_path: Path) -> None:
    answer = run_stage("plm_split_fasta", "--input", PROTEINS, "--parts", 50, "--output-dir", tmp_path / "parts")
    assert answer.returncode == 0 and "Note: 6 parts instead of 50" in answer.stdout
    assert len(list((tmp_path / "parts").iterdir())) == 6


@pytest.mark.parametrize(
    ("content", "args", "message"),
    [
        (b"", ["--parts", "2"], "The file is empty"),
        (b"\n \n", ["--parts", "2"], "holds no record"),
        (b"id\tsequence\n", ["--parts", "2"], "This is not FASTA"),
        (b">a\nM\n> \nM\n", ["--parts", "2"], "A header without an id [x.fasta, line 3]"),
        (gzip.compress(b">a\nM\n" * 999, mtime=0)[:-9], ["--parts", "2"], "broken or cut short"),
        (b"PK\x03\x04", ["--parts", "2"], "compressed as zip"),
        (b">a\nM\n", [], "--parts or --max-residues"),
        (b">a\nM\n", ["--parts", "2", "--max-residues", "3"], "--parts or --max-residues"),
        (b">a\nM\n", ["--parts", "0"], "--parts"),
        (b">a\nM\n", ["--max-residues", "0"], "--max-residues"),
    ],
)
def test_split_of_bad_input_is_one_line_and_leaves_nothing(
    content: bytes, args: list[str], message: str, run_stage: Run, tmp_path: Path
) -> None:
    (tmp_path / "x.fasta").write_bytes(content)
    answer = run_stage(
        "plm_split_fasta", "--input", tmp_path / "x.fasta", *args, "--output-dir", tmp_path / "parts",
        "--table", tmp_path / "t",
    )
    assert answer.returncode == 1 and message in answer.stderr
    assert answer.stderr.startswith("plm_split_fasta: error: ") and answer.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["x.fasta"]


# -- merging --------------------

IDS = ["a", "b/c", "d", "e", "f.g", "ü"]


def describe(**changes: Any) -> Description:
    known = {
        "model": "tiny", "model_sha256": "ab" * 32, "layers": (6,), "pooling": "mean", "dtype": "float32",
        "dimension": 4, "notes": {"precision": "fp32", "windowed_proteins": "1"},
    }
    return Description(**{**known, **changes})


def make(path: Path, ids: Sequence[str], seed: int = 0, format: str = "hdf5", **changes: Any) -> Path:
    """An embeddings file in which the numbers depend on the id and the seed alone."""
    description = describe(**changes)
    rows, lengths = [], [1 + len(identifier) % 3 for identifier in ids]
    for identifier, length in zip(ids, lengths, strict=True):
        shape: tuple[int, ...] = (description.dimension,)
        if description.depth > 1:
            shape = (description.depth, *shape)
        if description.level == "residue":
            shape = (length, *shape)
        generator = np.random.default_rng([seed, *identifier.encode()])
        rows.append(generator.normal(size=shape).astype(description.dtype))
    write_embeddings(
        path, format, description, ids, iter(rows), lengths=lengths if description.level == "residue" else None,
        positions=[5 + len(one) for one in ids] if description.level == "site" else None,
    )
    return path


def merge(run_stage: Run, inputs: Sequence[Path], output: Path, *more: str | Path) -> subprocess.CompletedProcess[str]:
    given = [item for path in inputs for item in ("--input", path)]
    return run_stage("plm_merge_embeddings", *given, "--output", output, *more)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    "changes",
    [{}, {"pooling": "residues"}, {"pooling": "sites"}, {"layers": (0, 6), "pooling": "residues", "dtype": "float16"}],
    ids=["proteins", "residues", "sites", "layers"],
)
def test_merged_parts_are_the_bytes_of_one_run(format: str, changes: dict, run_stage: Run, tmp_path: Path) -> None:
    parts = [
        make(tmp_path / f"part_{number}", ids, format=format, **changes)
        for number, ids in enumerate((IDS[:1], IDS[1:4], IDS[4:]), start=1)
    ]
    changes = {**changes, "notes": {"precision": "fp32", "windowed_proteins": "3"}}
    whole = make(tmp_path / "whole", IDS, format=format, **changes)
    answer = merge(run_stage, parts, tmp_path / "merged", "--format", format)
    assert answer.returncode == 0, answer.stderr
    assert (tmp_path / "merged").read_bytes() == whole.read_bytes()
    assert "6 records of 3 parts merged" in answer.stdout


@pytest.mark.parametrize("format", FORMATS)
def test_a_part_without_records_is_fine(format: str, run_stage: Run, tmp_path: Path) -> None:
    changes = {"pooling": "residues", "notes": {}}
    parts = [
        make(tmp_path / f"part_{number}", ids, format=format, **changes)
        for number, ids in enumerate((IDS[:2], [], IDS[2:]))
    ]
    whole = make(tmp_path / "whole", IDS, format=format, **changes)
    assert merge(run_stage, parts, tmp_path / "merged", "--format", format).returncode == 0
    assert (tmp_path / "merged").read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "other"}, "b.h5 was made with the model 'other', but a.h5 with the model 'tiny'"),
        ({"model_sha256": "cd" * 32}, "weights of the fingerprint cdcdcdcdcdcd, but a.h5"),
        ({"layers": (5,)}, "from layers (5,), but a.h5 from layers (6,)"),
        ({"pooling": "max"}, "pooling 'max', but a.h5 with the pooling 'mean'"),
        ({"pooling": "residues"}, "pooling 'residues'"),
        ({"dimension": 5}, "with 5 numbers a vector, but a.h5 with 4 numbers a vector"),
        ({"dtype": "float16"}, "with float16 numbers, but a.h5 with float32 numbers"),
    ],
)
def test_parts_of_different_runs_are_refused(changes: dict, message: str, run_stage: Run, tmp_path: Path) -> None:
    parts = [make(tmp_path / "a.h5", IDS[:3]), make(tmp_path / "b.h5", IDS[3:], **changes)]
    answer = merge(run_stage, parts, tmp_path / "merged")
    assert answer.returncode == 1 and message in answer.stderr and answer.stderr.count("\n") == 1
    assert not (tmp_path / "merged").exists()


def test_parts_of_different_precision_are_merged_and_named(run_stage: Run, tmp_path: Path) -> None:
    parts = [make(tmp_path / "a.h5", IDS[:3]), make(tmp_path / "b.h5", IDS[3:], notes={"precision": "bf16"})]
    answer = merge(run_stage, parts, tmp_path / "merged")
    assert answer.returncode == 0 and "Note: the parts differ in precision (bf16, fp32)" in answer.stdout
    with read_embeddings(tmp_path / "merged") as read:
        assert read.description.notes["precision"] == "bf16, fp32"


def status_table(path: Path, rows: Sequence[tuple[str, int, str, str, str]]) -> Path:
    header = "id\tline\tduplicate_of\tstatus\tdetails\n"
    path.write_text(header + "".join("\t".join(map(str, row)) + "\n" for row in rows))
    return path


@pytest.fixture
def overlapping(tmp_path: Path) -> tuple[list[Path], list[Path]]:
    """Two parts that share the id ``a``; in each a record was rejected."""
    files = [make(tmp_path / "p1", ["a", "b"], notes={}), make(tmp_path / "p2", ["c", "a", "a_2"], seed=1, notes={})]
    first = [("a", 1, "", "embedded", ""), ("x", 3, "", "rejected", "empty"), ("b", 5, "a", "embedded", "")]
    second = [
        ("c", 1, "", "embedded", ""),
        ("a", 3, "", "embedded", "gap"),
        ("a_2", 5, "a", "embedded", ""),
        ("y", 9, "", "rejected", "stop"),
    ]
    tables = [status_table(tmp_path / "s1", first), status_table(tmp_path / "s2", second)]
    return files, tables


@pytest.mark.parametrize("policy", ["error", "rename", "first"])
def test_ids_that_parts_have_in_common(
    policy: str, overlapping: tuple[list[Path], list[Path]], run_stage: Run, tmp_path: Path
) -> None:
    files, tables = overlapping
    answer = merge(
        run_stage, files, tmp_path / "merged", "--duplicate-ids", policy, "--status", tables[0], "--status", tables[1],
        "--merged-status", tmp_path / "status",
    )
    if policy == "error":
        assert answer.returncode == 1 and "The id 'a' appears in more than one part [p1 and p2]" in answer.stderr
        assert not (tmp_path / "merged").exists() and not (tmp_path / "status").exists()
        return
    assert answer.returncode == 0, answer.stderr
    with read_embeddings(tmp_path / "merged") as read, read_embeddings(files[1]) as second:
        if policy == "rename":
            assert read.ids == ["a", "b", "c", "a_3", "a_2"]
            np.testing.assert_array_equal(read.row(3), second.row(1))
        else:
            assert read.ids == ["a", "b", "c", "a_2"]
            np.testing.assert_array_equal(read.row(3), second.row(2))
    rows = [line.split("\t") for line in (tmp_path / "status").read_text().splitlines()]
    assert rows[0] == ["id", "line", "duplicate_of", "status", "details", "part"] and len(rows) == 8
    assert rows[2] == ["x", "3", "", "rejected", "empty", "p1"] and rows[3] == ["b", "5", "a", "embedded", "", "p1"]
    if policy == "rename":
        assert rows[5] == ["a_3", "3", "", "embedded", "renamed: the id a was used before (p1); gap", "p2"]
        assert rows[6][:4] == ["a_2", "5", "a_3", "embedded"]
    else:
        assert rows[5] == ["a", "3", "", "rejected", "the id a was used before (p1); gap", "p2"]
        assert "Status: 7 records, 4 embedded, 3 rejected" in answer.stdout


def test_status_tables_must_name_what_the_files_hold(
    overlapping: tuple[list[Path], list[Path]], run_stage: Run, tmp_path: Path
) -> None:
    files, tables = overlapping
    for one, other in ((tables[1], tables[0]), (tables[0], tables[0])):
        answer = merge(
            run_stage, files, tmp_path / "merged", "--duplicate-ids", "rename", "--status", one, "--status", other,
            "--merged-status", tmp_path / "status",
        )
        assert answer.returncode == 1 and "do not name the same records" in answer.stderr
        assert not (tmp_path / "merged").exists() and not (tmp_path / "status").exists()
    short = status_table(tmp_path / "short", [("c", 1, "", "embedded", "")])
    answer = merge(
        run_stage, files, tmp_path / "merged", "--duplicate-ids", "rename", "--status", tables[0], "--status", short,
        "--merged-status", tmp_path / "status",
    )
    assert answer.returncode == 1 and "'a' is in only one" in answer.stderr


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--status", "s1"], "--status and --merged-status"),
        (["--merged-status", "out"], "--status and --merged-status"),
        (["--status", "s1", "--merged-status", "out"], "1 status tables for 2 embeddings files"),
    ],
)
def test_merge_names_the_flag(
    more: list[str], message: str, overlapping: tuple[list[Path], list[Path]], run_stage: Run, tmp_path: Path
) -> None:
    given = [item if item.startswith("--") else str(tmp_path / item) for item in more]
    answer = merge(run_stage, overlapping[0], tmp_path / "merged", *given)
    assert answer.returncode == 1 and message in answer.stderr and answer.stderr.count("\n") == 1


def test_merge_refuses_columns_it_would_lose(run_stage: Run, tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text("id\tlabel\te0\na\tu\t1\n")
    answer = merge(run_stage, [tmp_path / "x.tsv"], tmp_path / "merged")
    assert answer.returncode == 1 and "further columns (label), which would be lost" in answer.stderr


def test_merge_of_a_broken_part_leaves_nothing(run_stage: Run, tmp_path: Path) -> None:
    parts = [make(tmp_path / "a.h5", IDS[:3]), make(tmp_path / "b.h5", IDS[3:])]
    parts[1].write_bytes(parts[1].read_bytes()[:-50])
    answer = merge(run_stage, parts, tmp_path / "merged")
    assert answer.returncode == 1 and "broken or cut short" in answer.stderr and "b.h5" in answer.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5", "b.h5"]


# -- with the real model --------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [["--pooling", "mean", "--layers", "all"], ["--pooling", "residues"]], ids=["all-layers", "residues"]
)
def test_scattered_and_merged_is_the_file_of_one_run(
    settings: list[str], tiny_esm2: Path, run_stage: Run, tmp_path: Path
) -> None:
    """Split, embed each part, merge: the bytes of embedding the whole; the status but for the line numbers, too."""

    def embed(source: Path, name: str) -> None:
        answer = run_stage(
            "plm_embed", "--input", source, "--model", tiny_esm2, "--precision", "fp32", *settings,
            "--embeddings", tmp_path / f"{name}.h5", "--status", tmp_path / f"{name}.tsv",
        )
        assert answer.returncode == 0, answer.stderr

    messy = tmp_path / "messy.fasta"
    messy.write_text(PROTEINS.read_text() + ">empty\n>odd\nMKV*LL\n>twin\nMKVLAAGIU\n")
    run_stage("plm_split_fasta", "--input", messy, "--parts", 3, "--output-dir", tmp_path / "parts")
    sources = sorted((tmp_path / "parts").iterdir())
    assert len(sources) == 3
    for source in sources:
        embed(source, source.stem)
    embed(messy, "whole")
    tables = [item for source in sources for item in ("--status", tmp_path / f"{source.stem}.tsv")]
    answer = merge(
        run_stage, [tmp_path / f"{source.stem}.h5" for source in sources], tmp_path / "merged.h5", *tables,
        "--merged-status", tmp_path / "merged.tsv",
    )
    assert answer.returncode == 0, answer.stderr
    assert (tmp_path / "merged.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()
    merged = [line.split("\t") for line in (tmp_path / "merged.tsv").read_text().splitlines()]
    whole = [line.split("\t") for line in (tmp_path / "whole.tsv").read_text().splitlines()]
    line_at = whole[0].index("line")
    assert [row[:line_at] + row[line_at + 1 : -1] for row in merged] == [
        row[:line_at] + row[line_at + 1 :] for row in whole
    ]
    assert len(whole) == 10 and sum("rejected" in row for row in whole) == 2
