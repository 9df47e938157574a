"""FASTA parsing and the residue cleaning rule."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plm.data import text_files
from plm.data.fasta import (
    CleaningRule,
    NucleotideTally,
    clean,
    looks_like_nucleotides,
    nucleotide_look,
    read_fasta,
    write_fasta,
)
from plm.errors import UserError

NAMES = st.text("ABCdef019|_%.", min_size=1, max_size=12)
RAW = st.text("ACDEFGHIKLMNPQRSTVWYXUZOBJacdy*-._", max_size=80)


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_reads_headers_wrapped_sequences_and_lines(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.fasta", b"\n>sp|P1|N some words\nMK V\nAA\n\n>two\n>three\nMM")
    records = list(read_fasta(path))
    assert [(one.id, one.header, one.sequence, one.line) for one in records] == [
        ("sp|P1|N", "sp|P1|N some words", "MKVAA", 2),
        ("two", "two", "", 6),
        ("three", "three", "MM", 7),
    ]


@pytest.mark.parametrize("ending", [b"\r\n", b"\n", b"\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_line_ends_and_byte_order_mark_do_not_matter(tmp_path: Path, ending: bytes, mark: bytes) -> None:
    path = _write(tmp_path / "a.fasta", mark + ending.join([b">a b", b"MKV", b"AA", b">c", b"MM", b""]))
    assert [(one.header, one.sequence) for one in read_fasta(path)] == [("a b", "MKVAA"), ("c", "MM")]


@pytest.mark.parametrize("name", ["a.fasta", "a.fasta.gz", "a.txt"])
@pytest.mark.parametrize("zipped", [True, False])
def test_gzip_is_told_by_content(tmp_path: Path, name: str, zipped: bool) -> None:
    content = b">a\nMKV\n"
    path = _write(tmp_path / name, gzip.compress(content, mtime=0) if zipped else content)
    assert [one.sequence for one in read_fasta(path)] == ["MKV"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "The file is empty [a.fasta]"),
        (b"\n\n", "holds no record"),
        (b"id\tsequence\n", "not FASTA: the first line must start with '>' but reads 'id"),
        (b"\n\nMKV\n", "[a.fasta, line 3]"),
        (b">a\nMKV\n>\nMM\n", "A header without an id [a.fasta, line 3]"),
        (b">a\nMK\n>b\nM\xc3\xa9M\n", "The character 'é' in the sequence is not ASCII [a.fasta, line 4, column 2]"),
        (b">a\nMK\xff\n", "[a.fasta, line 2, column 3]"),
        (b">a\nMK\x00\n", "not a plain text file [a.fasta, line 2]"),
        (b"\xff\xfe>\x00a", "not a plain text file"),
        (b"PK\x03\x04aaaa", "compressed as zip"),
        (b"PK\x03\x04aaaa[Content_Types].xml", "This is a workbook (Excel), not text [a.fasta]. Save the sheet as CSV"),
        (b"PK\x03\x04aaaamanifest.json", "a bundle or a checkpoint of this suite"),
        (b"\x89HDF\r\n\x1a\naaaa", "This is an HDF5 file"),
        (b"<!DOCTYPE html>\n<html>", "This is a web page, not FASTA"),
        (b">a\nMKV>b\nMM\n", "A '>' stands inside a sequence line, so two records would become one [a.fasta, line 2]"),
        (gzip.compress(b">a\n" + b"MKVLA" * 500, mtime=0)[:-10], "gzip file is broken or cut short"),
    ],
    ids=lambda value: None if isinstance(value, str) else "",
)
def test_bad_files_are_one_clear_line(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(UserError) as error:
        list(read_fasta(_write(tmp_path / "a.fasta", content)))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        list(read_fasta(tmp_path / "none.fasta"))
    with pytest.raises(UserError, match="folder"):
        list(read_fasta(tmp_path))


def test_a_titin_sized_protein_is_read_whole(tmp_path: Path) -> None:
    write_fasta([("titin", "MKVLA" * 7000)], tmp_path / "a.fasta")
    assert [one.sequence for one in read_fasta(tmp_path / "a.fasta")] == ["MKVLA" * 7000]


@settings(max_examples=60, deadline=None)
@given(records=st.lists(st.tuples(NAMES, st.text("ACDEFGHIKLMNPQRSTVWYX*-", max_size=200)), min_size=1, max_size=8))
def test_written_records_come_back(tmp_path_factory: pytest.TempPathFactory, records: list[tuple[str, str]]) -> None:
    path = tmp_path_factory.mktemp("fasta") / "a.fasta"
    write_fasta(records, path)
    assert [(one.header, one.sequence) for one in read_fasta(path)] == records


def test_default_cleaning() -> None:
    cleaned = clean("mK-.UZ*OBJV_A**")
    assert cleaned.rejected.startswith("1 stop inside the sequence, the first at residue 5")
    cleaned = clean("mK-.UZOBJV_A**")
    assert cleaned.sequence == "MKXXXXXVA"
    assert cleaned.changes == (
        "3 gaps removed",
        "stop at the end removed",
        "1 lower-case residue -> upper case",
        "unusual residues B x1, J x1, O x1, U x1, Z x1 -> X",
    )


@pytest.mark.parametrize(
    ("rule", "sequence", "outcome"),
    [
        (CleaningRule(unusual="reject"), "MKU", "unusual residues U x1"),
        (CleaningRule(gaps="reject"), "M-K", "1 gap in the sequence"),
        (CleaningRule(lower="reject"), "MkK", "1 lower-case residue"),
        (CleaningRule(), "MK#", "'#' at residue 3 is no residue"),
        (CleaningRule(), "MK7", "'7' at residue 3 is no residue"),
        (CleaningRule(), "---", "no residues"),
        (CleaningRule(), "", "no residues"),
    ],
)
def test_rejections_name_their_reason(rule: CleaningRule, sequence: str, outcome: str) -> None:
    assert clean(sequence, rule).rejected == outcome


def test_softer_policies() -> None:
    assert clean("MK*V", CleaningRule(stops="x")).sequence == "MKXV"
    assert clean("MkkV", CleaningRule(lower="x")).sequence == "MXXV"
    with pytest.raises(UserError, match="--gaps must be one of"):
        CleaningRule(gaps="keep")


@given(RAW)
def test_cleaning_keeps_every_residue_in_place(raw: str) -> None:
    cleaned = clean(raw, CleaningRule(stops="x"))
    if cleaned.rejected:
        return
    assert set(cleaned.sequence) <= set("ACDEFGHIKLMNPQRSTVWYX")
    assert clean(cleaned.sequence).sequence == cleaned.sequence
    kept = 0
    for index, letter in enumerate(raw):
        place = cleaned.position(index)
        if letter in "-._":
            assert place is None
        elif place is not None:
            assert place == kept
            kept += 1
            if letter.upper() in "ACDEFGHIKLMNPQRSTVWY":
                assert cleaned.sequence[place] == letter.upper()
    assert kept == len(cleaned.sequence)


def test_nucleotides_are_told_from_proteins() -> None:
    assert looks_like_nucleotides("ACGT" * 10)
    assert not looks_like_nucleotides("ACGTMK" * 10)
    assert not looks_like_nucleotides("AAGG")


@pytest.mark.parametrize(
    ("sequence", "look"),
    [
        ("ATGCGT" * 10, "clear"),
        ("atgcgt" * 10, "clear"),
        ("ATGCRYGT" * 8, "clear"),
        ("ATGNNNGT" * 8, "clear"),
        ("AUGGCU" * 8 + "*", "clear"),
        ("ACG-T" * 10, "clear"),
        ("GA" * 50, "doubtful"),
        ("A" * 40, "doubtful"),
        ("N" * 40, "doubtful"),
        ("GAGAGS" * 10, "doubtful"),
        ("ACGT" * 7, ""),
        ("MKVLA" * 10, ""),
        ("MKTAYDGSHWRN" * 5, ""),
    ],
)
def test_each_record_is_judged_by_itself(sequence: str, look: str) -> None:
    assert nucleotide_look(sequence) == look
    cleaned = clean(sequence)
    assert cleaned.rejected.startswith("nucleotides") == (look == "clear")
    assert any("looks like nucleotides" in change for change in cleaned.changes) == (look == "doubtful")
    kept = clean(sequence, CleaningRule(nucleotides="keep", unusual="x"))
    assert not kept.rejected
    assert kept.sequence


def test_a_file_of_nucleotides_is_refused_as_a_whole() -> None:
    dna, protein = "ATGCGT" * 10, "MKVLAWFE" * 5

    def counted(sequences: list[str]) -> NucleotideTally:
        tally = NucleotideTally()
        for sequence in sequences:
            tally.add(sequence, clean(sequence).rejected)
        return tally

    with pytest.raises(UserError, match="All sequences are nucleotides"):
        counted([dna] * 3).check("a.fasta")
    with pytest.raises(UserError, match="19 of 20 sequences are nucleotides"):
        counted([dna] * 19 + [protein]).check("a.fasta")
    with pytest.raises(UserError, match="nucleotides"):
        counted(["ACGTACGTACGTACGTACGTA"] * 10).check("a.fasta")  # primers: too short to tell one by one
    counted([dna] * 3).check("a.fasta", CleaningRule(nucleotides="keep"))
    counted([dna, protein]).check("a.fasta")
    counted(["GA" * 50]).check("a.fasta")


def _read(tmp_path: Path, content: bytes) -> list[tuple[str, str]]:
    return [(one.header, one.sequence) for one in read_fasta(_write(tmp_path / "a.fasta", content))]


@pytest.mark.parametrize(
    ("content", "records"),
    [
        (b"; made by hand\n>a\n; a note\nMKV\nAA\n>b\nMM\n", [("a", "MKVAA"), ("b", "MM")]),
        (b">a\nMKV\n      >b x\nMM\n\t>c\nAA\n", [("a", "MKV"), ("b x", "MM"), ("c", "AA")]),
        (b">P1;ONE\nAlpha chain\nMKV\nAA*\n>P1;TWO\n\nMM*\n", [("ONE Alpha chain", "MKVAA*"), ("TWO", "MM*")]),
        (b">P1;ONE\nTitle\nMKV*\nC;Species: x\nR;Someone\n", [("ONE Title", "MKV*")]),
        (b">P1;ONE\nMKV*\n>F1;TWO\nAA*\n", [("ONE", "MKV*"), ("TWO", "AA*")]),
        (">a [Neotyphodium ×siegelii]\nMKV\n>é\nMM\n".encode(), [("a [Neotyphodium ×siegelii]", "MKV"), ("é", "MM")]),
        (">a ×\nMKV\n".encode("latin-1"), [("a ×", "MKV")]),
        (">a ×\nMKV\n".encode("utf-16"), [("a ×", "MKV")]),
        (b'>5"-nucleotidase\nMKV\n', [('5"-nucleotidase', "MKV")]),
    ],
    ids=lambda value: None if isinstance(value, list) else "",
)
def test_dialects_of_fasta(tmp_path: Path, content: bytes, records: list[tuple[str, str]]) -> None:
    assert _read(tmp_path, content) == records


@pytest.mark.parametrize("zipped", [True, False])
def test_a_line_or_record_longer_than_any_protein_is_one_line(tmp_path: Path, zipped: bool) -> None:
    for content, what in (
        (b">a\n" + b"M" * (10**6 + 1) + b"\n", "A line has more than 1,000,000 letters: no protein is that long"),
        (b">a\n" + (b"MK" * 400_000 + b"\n") * 2, "The record 'a' has more than 1,000,000 letters"),
        (b">" + b"a" * (10**6 + 1) + b"\nMK\n", "A line has more than"),
    ):
        path = _write(tmp_path / "a.fasta", gzip.compress(content, mtime=0) if zipped else content)
        with pytest.raises(UserError, match=what):
            list(read_fasta(path))


def test_a_gzip_bomb_is_refused_before_it_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "_RATIO_FROM", 2**20)
    path = _write(tmp_path / "a.fasta", gzip.compress(b">a\nMK\n" * 500_000, mtime=0))
    with pytest.raises(UserError, match="unpacks to more than 200 times its size"):
        list(read_fasta(path))


def test_a_file_name_that_is_too_long_is_one_line() -> None:
    with pytest.raises(UserError, match="cannot be opened"):
        list(read_fasta("a" * 5000))
