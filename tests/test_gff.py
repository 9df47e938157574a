"""GFF3: fields, escaping, and that a reader gets back what was written."""

from __future__ import annotations

import io
from urllib.parse import unquote

from hypothesis import example, given
from hypothesis import strategies as st
from plm.data.gff import GffWriter, escape, escape_seqid

TEXT = st.text(st.characters(min_codepoint=1, max_codepoint=0x2FF), min_size=1, max_size=30)


def written(seqid: str, place: int, score: float | None, attributes: dict[str, str]) -> list[str]:
    handle = io.StringIO()
    writer = GffWriter(handle, "plm_classify_sites")
    writer.region(seqid, 100)
    writer.feature(seqid, place, score, attributes)
    return handle.getvalue().split("\n")


def test_version_region_and_nine_fields() -> None:
    version, region, feature, end = written("sp|P1|A", 7, 0.25, {"ID": "sp|P1|A|7", "residue": "Y"})
    assert version == "##gff-version 3"
    assert region == "##sequence-region sp|P1|A 1 100"
    assert feature.split("\t") == [
        "sp|P1|A", "plm_classify_sites", "polypeptide_region", "7", "7", "0.25", ".", ".", "ID=sp|P1|A|7;residue=Y",
    ]
    assert end == ""


def test_an_unknown_score_is_a_dot_and_empty_attributes_are_left_out() -> None:
    feature = written("P1", 1, None, {"ID": "a", "label": ""})[2].split("\t")
    assert feature[5] == "." and feature[8] == "ID=a"


def test_keys_with_a_capital_belong_to_the_specification() -> None:
    assert written("P1", 1, 1.0, {"Name": "Y1", "Call": "x"})[2].endswith("\tName=Y1;call=x")


def test_a_greater_sign_cannot_begin_a_landmark() -> None:
    assert escape_seqid(">a b") == "%3Ea%20b"


@example(seqid="0", key="\u0130", value="0")
@given(seqid=TEXT, key=TEXT, value=TEXT)
def test_a_reader_gets_back_what_was_written(seqid: str, key: str, value: str) -> None:
    lines = written(seqid, 3, 0.5, {key: value})
    assert len(lines) == 4
    fields = lines[2].split("\t")
    assert len(fields) == 9 and unquote(fields[0]) == seqid
    name, _, stored = fields[8].partition("=")
    assert unquote(stored) == value and unquote(name)[1:] == key[1:]
    assert not set(fields[8]) & set("\t\r\n,&") and fields[8].count(";") == 0 and fields[8].count("=") == 1


@given(text=TEXT)
def test_control_characters_never_get_through(text: str) -> None:
    assert all(ord(letter) >= 32 and ord(letter) != 127 for letter in escape(text) + escape_seqid(text))
