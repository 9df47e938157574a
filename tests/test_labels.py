"""Label, protein and place rules; site lists."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plm.data.fasta import ProteinRecord
from plm.data.header_rules import parse_rule, place_of, protein_of, taxon_of, unmark, without_isoform
from plm.data.sites import read_listings
from plm.data.tables import read_table
from plm.errors import UserError


def _record(header: str, **columns: str) -> ProteinRecord:
    return ProteinRecord(header.split()[0], header, "MK", 1, columns)


@pytest.mark.parametrize(
    ("rule", "header", "label"),
    [
        ("LABEL=", "sp|P1|N%1%17 LABEL=1", "1"),
        ("LABEL=", "sp|P1|N XLABEL=1", None),
        ("SET=", "1abc|SET=train|VALIDATION=False", "train"),
        ("field:4", "A0|FEATURES|db|bacitracin|gene|0", "bacitracin"),
        ("field:4", "sp|Q5|SPAK_SHISO Surface protein", None),
        ("field:-1", "gi|6|AIA|Murligase|Glycopeptide|FARME|GLYCOPEPTIDE", "GLYCOPEPTIDE"),
        ("field:-9", "a|b", None),
        ("field:2:;", "a1;beta lactam;x|y", "beta lactam"),
        ("field:-1:::", "a1::b::c|d", "c|d"),
        ("field:3: ", "a1  two\tthree four", "three"),
        ("field:1:_", "|_x", "|"),
        (r"regex:class (\w+)", "x class beta y", "beta"),
        (r"regex:beta|alpha", "x class beta y", "beta"),
        ("regex:gamma", "x class beta y", None),
    ],
)
def test_rules_over_headers(rule: str, header: str, label: str | None) -> None:
    assert parse_rule(rule, "--labels").find(_record(header)) == label


def test_columns_by_name_and_number() -> None:
    record = _record("a", family="f1", label="2")
    assert parse_rule("column:label", "--labels").find(record) == "2"
    assert parse_rule("column:1", "--labels").find(record) == "f1"
    with pytest.raises(UserError, match=r"no column 'x' \(columns: family, label\)"):
        parse_rule("column:x", "--labels").find(record)
    with pytest.raises(UserError, match="FASTA has no columns"):
        parse_rule("column:x", "--labels").find(_record("a"))


@pytest.mark.parametrize(
    "rule", ["field:0", "field:x", "field:2:", "regex:(", "regex:", "column:", "LABEL", "a b=", ""]
)
def test_broken_rules_name_the_flag(rule: str) -> None:
    with pytest.raises(UserError, match="--labels"):
        parse_rule(rule, "--labels")


def test_proteins_places_and_taxa() -> None:
    tutorial = _record("sp|Q9UQC2|GAB2_HUMAN%598%614 LABEL=1")
    assert protein_of(tutorial, "auto") == "Q9UQC2"
    assert protein_of(tutorial, "word") == "sp|Q9UQC2|GAB2_HUMAN%598%614"
    assert protein_of(_record("NP_1.2 words"), "auto") == "NP_1.2"
    assert protein_of(_record("NP_1.2 words"), "uniprot") is None
    assert protein_of(tutorial, r"regex:\|(\w+)_HUMAN") == "GAB2"
    assert place_of(tutorial, "auto") == (598, 614)
    assert place_of(_record("plain"), "auto") == (None, None)
    assert place_of(_record("sp|P75863|-|344"), "field:4") == (None, 344)
    assert place_of(_record("x site 12"), r"regex:site (?P<site>\d+)") == (None, 12)
    with pytest.raises(UserError, match="no group named site"):
        place_of(_record("x site 12"), r"regex:site (\d+)")
    assert taxon_of(_record("tr|A|B Name OS=Homo sapiens OX=9606 GN=X")) == "9606"
    assert without_isoform("Q14790-4") == "Q14790"
    assert without_isoform("HLA-2") == "HLA-2"


@given(st.lists(st.tuples(st.text("ACDY", min_size=1, max_size=9), st.booleans()), min_size=1, max_size=8))
def test_marks_are_taken_out_and_remembered(parts: list[tuple[str, bool]]) -> None:
    sequence, marked = unmark("".join(text + "#" * mark for text, mark in parts))
    assert sequence == "".join(text for text, _ in parts)
    ends, length = [], 0
    for text, mark in parts:
        length += len(text)
        if mark:
            ends.append(length - 1)
    assert marked == ends


@pytest.mark.parametrize("sequence", ["#MK", "MK##"])
def test_stray_marks(sequence: str) -> None:
    with pytest.raises(ValueError, match="does not follow a residue"):
        unmark(sequence)


@pytest.mark.parametrize(
    "text",
    ["accession\tposition\nP1\t12\nP2\tY7\n", "P1,12\nP2,pY7\n", "site;protein\n12;P1\nY7;P2\n"],
)
def test_site_lists_in_usual_shapes(tmp_path: Path, text: str) -> None:
    (tmp_path / "s").write_text(text)
    listings = read_listings(read_table(tmp_path / "s", header=None), ("", "", ""), "1", "--sites")
    assert [(one.protein, one.place, one.label, one.residue) for one in listings] == [
        ("P1", 12, "1", ""),
        ("P2", 7, "1", "Y"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("accession\tposition\nP1\ttwelve\n", "'twelve' is no position [s, line 2]"),
        ("accession\tposition\nP1\n", "A row has 1 columns where the header has 2 [s, line 2]"),
        ("accession\tposition\tlabel\nP1\t3\t\n", "without a label [s, line 2]"),
        ("accession\n", "header but no rows"),
        ("accession\taccession\na\tb\n", "appears twice"),
    ],
)
def test_broken_site_lists(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "s").write_text(text)
    with pytest.raises(UserError) as error:
        read_listings(read_table(tmp_path / "s", header=None), ("", "", ""), "1", "--sites")
    assert message in str(error.value)
