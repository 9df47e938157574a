"""A proteome cut into parts and its embeddings joined again: nothing is lost, changed or mixed."""

from __future__ import annotations

import gzip
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plm.data import fasta_split
from plm.errors import UserError

Run = Callable[..., subprocess.CompletedProcess[str]]
ROOT = Path(__file__).resolve().parents[1]
PROTEINS = ROOT / "test-data" / "simulated_query.fasta"


def split(path: Path, folder: Path, parts: list[fasta_split.Part]) -> list[bytes]:
    folder.mkdir()
    fasta_split.write_parts(path, parts, folder, lambda done: None)
    return [(folder / f"{part.name}.fasta").read_bytes() for part in parts]


# -- dividing --------------------

lengths = st.lists(st.integers(0, 60), min_size=1, max_size=12)


@given(residues=lengths, count=st.integers(1, 15))
def test_parts_hold_every_record_once_and_in_order(residues: list[int], count: int) -> None:
    parts = fasta_split.parts_of(np.array(residues), count)
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

    parts = fasta_split.parts_of(np.array(residues), count)
    assert max(part.residues for part in parts) == best(tuple(residues), len(parts))


@given(residues=lengths, most=st.integers(1, 80))
def test_no_part_is_over_the_limit_unless_one_record_is(residues: list[int], most: int) -> None:
    parts = fasta_split.parts_up_to(np.array(residues), most)
    assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])] and parts[-1].stop == len(
        residues
    )
    assert [part.name for part in parts] == [f"part_{number:04d}" for number in range(1, len(parts) + 1)]
    for part in parts:
        assert part.residues <= most or part.stop == part.start + 1
        assert part.residues == sum(residues[part.start : part.stop])


def test_a_proteome_is_divided_evenly() -> None:
    residues = np.random.default_rng(0).gamma(2, 200, 6000).astype(np.int64) + 20
    sizes = [part.residues for part in fasta_split.parts_of(residues, 16)]
    assert max(sizes) - min(sizes) < 2 * residues.max() and max(sizes) < residues.sum() / 16 * 1.01


def test_too_many_parts_are_refused() -> None:
    with pytest.raises(UserError, match="20000 files; at most 9999"):
        fasta_split.parts_up_to(np.full(20_000, 10), 10)


# -- bytes --------------------

bodies = st.lists(
    st.tuples(st.text("abc|%/. é", min_size=1, max_size=8), st.text("ACDEFX*- \n", max_size=30)), min_size=1, max_size=6
)


@given(records=bodies, ends=st.sampled_from(["\n", "\r\n", "\r"]), count=st.integers(1, 4), tail=st.booleans(),
       lead=st.sampled_from(["", "\n", "\ufeff"]), zipped=st.booleans())  # fmt: skip
def test_the_parts_together_are_the_file(
    records: list[tuple[str, str]], ends: str, count: int, tail: bool, lead: str, zipped: bool
) -> None:
    text = lead + ends.join(f">x{header}\n{body}".replace("\n", ends) for header, body in records) + ends * tail
    content = text.encode()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.fasta"
        path.write_bytes(gzip.compress(content) if zipped else content)
        found = fasta_split.survey(path)
        assert found.residues.tolist() == [len("".join(body.split())) for _, body in records]
        written = split(path, Path(folder) / "parts", fasta_split.parts_of(found.residues, count))
        assert b"".join(written) == content
        assert all(part.lstrip(b"\xef\xbb\xbf\n").startswith(b">") for part in written)


def test_ids_that_come_again_are_counted(tmp_path: Path) -> None:
    (tmp_path / "x.fasta").write_text(">a\nM\n>b one\nM\n>b two\nM\n>a\nM\n>b\nM\n")
    found = fasta_split.survey(tmp_path / "x.fasta")
    assert found.repeated == ("b", 2, 3) and found.repeats == 3


# -- the stage --------------------


def test_split_writes_parts_and_a_table(run_stage: Run, tmp_path: Path) -> None:
    answer = run_stage(
        "plm_split_fasta", "--input", PROTEINS, "--parts", 3, "--output-dir", tmp_path / "parts",
        "--table", tmp_path / "parts.tsv",
    )  # fmt: skip
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
        (gzip.compress(b">a\nM\n" * 999)[:-9], ["--parts", "2"], "broken or cut short"),
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
    )  # fmt: skip
    assert answer.returncode == 1 and message in answer.stderr
    assert answer.stderr.startswith("plm_split_fasta: error: ") and answer.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["x.fasta"]
