"""Bad input to plm_preprocess: one clear line, exit code 1, no outputs; or the record is listed with its reason."""

from __future__ import annotations

import csv
import gzip
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]
SITE = ("--task", "site", "--window", "33", "--split", "none")
TABLE = b"id\tsequence\tlabel\n" + b"".join(b"%d\tMKVA%s\t1\n" % (row * 7919, b"WY" * (row % 5)) for row in range(500))
DAMAGED = gzip.compress(TABLE, mtime=0)[:300] + b"\xff" * 50 + gzip.compress(TABLE, mtime=0)[350:]


@pytest.fixture
def preprocess(run_stage: Run, tmp_path: Path) -> Run:
    (tmp_path / "out").mkdir()

    def run(content: bytes | str, *args: str | Path, name: str = "input.fasta") -> subprocess.CompletedProcess[str]:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        outputs = [
            word
            for one in ("dataset", "rejected", "leakage", "report")
            for word in (f"--{one}", tmp_path / "out" / one)
        ]
        return run_stage("plm_preprocess", "--input", path, *args, *outputs)

    return run


def _rows(tmp_path: Path, name: str) -> list[dict[str, str]]:
    with (tmp_path / "out" / name).open() as handle:
        return list(csv.DictReader(handle, delimiter="\t"))


def _lines(tmp_path: Path) -> list[list[str]]:
    lines = (tmp_path / "out" / "dataset").read_text().splitlines()
    place = lines[0].split("\t").index("label")
    return [line.split("\t")[place].split(",") for line in lines[1:]]


@pytest.mark.parametrize(
    ("content", "args", "message"),
    [
        (b"", (), "The file is empty [input.fasta]"),
        ("hello\nworld\n", (), "not FASTA: the first line must start with '>' but reads 'hello' [input.fasta, line 1]"),
        ("a\tb\n1\t2\n", (), "neither FASTA (no '>') nor a table with a column named sequence (columns: a, b)"),
        (">a LABEL=1\nMK\n>a LABEL=0\nMV\n", (), "The id 'a' appears more than once [input.fasta, lines 1 and 3]"),
        (
            ">a CLASS=1\nMK\n>b\nMV\n",
            (),
            "the word LABEL= matches none of 2 records; the first header is 'a CLASS=1' [--labels LABEL=]",
        ),
        (">a\nMYK\n", ("--labels", "hash", *SITE), "the '#' after a residue matches none of 1 records"),
        (">a|x\nMK\n", ("--labels", "field:7"), "the field 7 between '|' matches none"),
        (
            "".join(f">p{n} LABEL={n % 2}\nM{'KVAY' * n}\n" for n in range(1, 9)),
            ("--task", "site"),
            "7 of 8 sequences have another length than",
        ),
        (">a LABEL=1\nMK\n>b LABEL=1\nMV\n", ("--split", "none"), "All labels are '1': one class only"),
        (">a LABEL=1\nMÄK\n", (), "The character 'Ä' in the sequence is not ASCII [input.fasta, line 2, column 2]"),
        (">a LABEL=1\nM*K\n", (), "No record is left of 1; the first went because: 1 stop inside the sequence"),
        (">a LABEL=1\n" + "ACGT" * 20 + "\n", (), "All sequences are nucleotides"),
        (">a LABEL=1\nMKVA\n>b LABEL=0\nMKVW\n", ("--task", "site"), "have 4 residues, an even number"),
        (">a LABEL=1\nMKV\n>b LABEL=0\nMRV\n", ("--task", "site", "--window", "5"), "windows of 5 cannot be cut"),
        (">a LABEL=1\nMKV\n>b LABEL=0\nMRV\n", ("--split", "protein"), "There are 2 groups for 3 parts"),
        (">a LABEL=1\nMKV\n", ("--window", "32"), "--window 32: a window has an odd number of residues"),
        (">a LABEL=1\nMKV\n", ("--valid-fraction", "1.5"), "1.5 is out of range [--valid-fraction]. Choose 0 to 1"),
        (">a LABEL=1\nMKV\n", ("--labels", "hash"), "need --task site"),
        (">a LABEL=1\nMKV\n", ("--split", "group"), "--split group needs --group"),
        (">a LABEL=1\nMKV\n", ("--labels", "regex:("), "the regular expression '(' is broken"),
        (">a LABEL=1\nMKV\n", ("--folds", "1"), "1 is out of range [--folds]. Choose 2 or more, or 0"),
        (
            ">a LABEL=1\nMKV\n",
            ("--labels", "none", "--otherwise", "0"),
            "--otherwise is for labels in headers or columns",
        ),
        (
            ">a LABEL=1\nMKV\n>b LABEL=0\nMRV\n",
            ("--task", "site", "--protein-position", "regex:("),
            "--protein-position: the regular expression '(' is broken",
        ),
        (
            ">a LABEL=1\nMKV\n>b LABEL=0\nMRV\n",
            ("--split", "group", "--group", "FAM="),
            "No group found: the word FAM= matches none of 2 records; the first header is 'a LABEL=1'",
        ),
        ("id\tsequence\tlabel\na\tMKß\t1\n", ("--labels", "column:label"), "'ß' at residue 3 is no residue"),
        (gzip.compress(TABLE, mtime=0)[:200], (), "The gzip file is broken or cut short [input.fasta, after line "),
        (gzip.compress(TABLE, mtime=0)[:5], (), "The gzip file is broken or cut short [input.fasta, after line 0]"),
        (DAMAGED, (), "The gzip file is broken or cut short"),
        (gzip.compress(TABLE, mtime=0)[:200], ("--format", "table"), "The gzip file is broken or cut short"),
        (DAMAGED, ("--format", "table"), "The gzip file is broken or cut short"),
        (">a LABEL=1\nMKV\n", ("--nonsense",), "unrecognized arguments: --nonsense"),
    ],
)
def test_one_clear_line_and_no_outputs(
    preprocess: Run, tmp_path: Path, content: bytes | str, args: tuple[str, ...], message: str
) -> None:
    done = preprocess(content, *args)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("plm_preprocess: error: ")
    assert list((tmp_path / "out").iterdir()) == []


def test_windows_wider_than_the_protein_are_clipped_and_listed(preprocess: Run, tmp_path: Path) -> None:
    assert preprocess(">a\nMKY#VAYL\n", "--labels", "hash", *SITE).returncode == 0
    assert [(row["sequence"], row["position"]) for row in _rows(tmp_path, "dataset")] == [
        ("MKYVAYL", "3"),
        ("MKYVAYL", "6"),
    ]
    assert [(row["id"], row["what"]) for row in _rows(tmp_path, "rejected")] == [
        ("a_Y3", "changed"),
        ("a_Y6", "changed"),
    ]
    assert "clipped at the protein's end: 7 of 33 residues" in _rows(tmp_path, "rejected")[0]["reason"]


def test_listed_sites_that_do_not_fit_are_rejected_one_by_one(preprocess: Run, tmp_path: Path) -> None:
    sites = tmp_path / "sites.csv"
    sites.write_text("accession,position,label\nP1,3,1\nP1,6,0\nP1,99,1\nP1,S4,1\nP1,0,1\nP9,3,1\nP1,2,1\nP1,3,1\n")
    done = preprocess(">sp|P1|N\nMKYVAYL\n", "--sites", sites, "--site-residues", "Y", *SITE)
    assert done.returncode == 0, done.stderr
    assert [(row["id"], row["label"]) for row in _rows(tmp_path, "dataset")] == [("P1_Y3", "1"), ("P1_Y6", "0")]
    told = {row["id"]: row["reason"] for row in _rows(tmp_path, "rejected") if row["what"] == "rejected"}
    assert told == {
        "P1:99": "position 99 lies outside the sequence of 7 residues",
        "P1:4": "position 4 is V, not S as stated",
        "P1:0": "position 0 lies outside the sequence of 7 residues",
        "P9:3": "no protein P9 in the FASTA (sites.csv, line 7)",
        "P1:2": "position 2 is K, not Y",
    }
    left_out = [row["reason"] for row in _rows(tmp_path, "rejected") if row["what"] == "left out"]
    assert left_out == ["listed more than once (sites.csv, line 9)"]


def test_a_list_that_fits_nothing_is_an_error(preprocess: Run, tmp_path: Path) -> None:
    sites = tmp_path / "sites.csv"
    sites.write_text("accession,position\nP1,99\n")
    done = preprocess(">sp|P1|N\nMKYVAYL\n", "--sites", sites, *SITE)
    assert done.returncode == 1
    assert "None of 1 listed sites fits the proteins; the first: P1:99: position 99 lies outside" in done.stderr


@pytest.mark.parametrize("place", ["Y3", "pY3", "3"])
def test_a_list_without_a_header_loses_no_site(preprocess: Run, tmp_path: Path, place: str) -> None:
    sites = tmp_path / "sites.tsv"
    sites.write_text(f"P1\t{place}\nP1\tY6\n")
    assert preprocess(">sp|P1|N\nMKYVAYLY\n", "--sites", sites, *SITE).returncode == 0
    found = [(row["id"], row["label"]) for row in _rows(tmp_path, "dataset")]
    assert found == [("P1_Y3", "1"), ("P1_Y6", "1"), ("P1_Y8", "0")]


def test_negatives_that_are_not_called_0_cannot_be_thinned(preprocess: Run, tmp_path: Path) -> None:
    sites = tmp_path / "sites.csv"
    sites.write_text("accession,position,label\nP1,3,phos\nP1,6,none\n")
    done = preprocess(">sp|P1|N\nMKYVAYL\n", "--sites", sites, "--ratio", "1", *SITE)
    assert done.returncode == 1 and "no sites of class 0 to draw from (classes: none, phos) [--ratio 1]" in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_numbers_for_each_residue_of_a_very_long_protein(preprocess: Run, tmp_path: Path) -> None:
    labels = ",".join(["0.125"] * 34999)
    rows = ["id\tsequence\tlabel", *(f"p{end}\t{'MKVLA' * 7000}\t{labels},{end}" for end in (1, 2))]
    done = preprocess(
        "\n".join(rows), "--task", "residue", "--labels", "column:label", "--split", "none",
        "--conflicting-labels", "keep",
    )
    assert done.returncode == 0, done.stderr
    assert [len(row) for row in _lines(tmp_path)] == [35000, 35000]


def test_a_very_long_protein_goes_through(preprocess: Run, tmp_path: Path) -> None:
    protein = "MKVLA" * 7000
    done = preprocess(f">titin\n{protein[:20000]}Y#{protein[20000:]}Y\n", "--labels", "hash", *SITE)
    assert done.returncode == 0, done.stderr
    rows = _rows(tmp_path, "dataset")
    assert [row["protein_position"] for row in rows] == ["20001", "35002"]
    assert rows[0]["sequence"] == protein[19984:20000] + "Y" + protein[20000:20016]


@pytest.mark.parametrize("name", ["input.fasta", "input.fasta.gz"])
@pytest.mark.parametrize("zipped", [True, False])
def test_windows_line_ends_and_any_gzip_suffix(preprocess: Run, tmp_path: Path, name: str, zipped: bool) -> None:
    content = b">a LABEL=1\r\nMKV\r\nLL\r\n>b LABEL=0\r\nMWW\r\n"
    done = preprocess(gzip.compress(content, mtime=0) if zipped else content, "--split", "none", name=name)
    assert done.returncode == 0, done.stderr
    assert [(row["sequence"], row["label"]) for row in _rows(tmp_path, "dataset")] == [("MKVLL", "1"), ("MWW", "0")]


def test_a_missing_library_is_named(preprocess: Run, run_stage: Run, tmp_path: Path) -> None:
    (tmp_path / "path" / "pandas").mkdir(parents=True)
    (tmp_path / "path" / "pandas" / "__init__.py").write_text("raise ModuleNotFoundError(name='pandas')\n")
    (tmp_path / "a.fasta").write_text(">a LABEL=1\nMK\n>b LABEL=0\nMV\n")
    outputs = [
        word for one in ("dataset", "rejected", "leakage", "report") for word in (f"--{one}", tmp_path / "out" / one)
    ]
    done = run_stage(
        "plm_preprocess", "--input", tmp_path / "a.fasta", "--split", "none", *outputs,
        env={"PYTHONPATH": str(tmp_path / "path")},
    )
    assert done.returncode == 1
    assert "The Python library pandas is missing" in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_a_library_that_is_too_old_is_named(preprocess: Run, run_stage: Run, tmp_path: Path) -> None:
    old = tmp_path / "path" / "pandas-1.5.3.dist-info"
    old.mkdir(parents=True)
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: pandas\nVersion: 1.5.3\n")
    outputs = [
        word for one in ("dataset", "rejected", "leakage", "report") for word in (f"--{one}", tmp_path / "out" / one)
    ]
    done = run_stage("plm_preprocess", "--input", "x", *outputs, env={"PYTHONPATH": str(tmp_path / "path")})
    assert done.returncode == 1
    assert "pandas 1.5.3 is too old: this tool needs 2.1 or newer" in done.stderr and done.stderr.count("\n") == 1
