"""Labels as people bring them: missing words, odd numbers, lists, several at once, and which class is positive."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plm.data.dataset_table import labelled_rows, read_dataset, sort_classes
from plm.data.fasta import ProteinRecord
from plm.data.header_rules import parse_rule
from plm.data.label_values import (
    MISSING_WORDS,
    joined_labels,
    number,
    positive_last,
    residue_labels,
    told_several,
    understand,
)
from plm.data.sites import check_counting, parse_place
from plm.data.task import Task
from plm.errors import UserError

NUMBERS = [f"{index / 7:.3f}" for index in range(40)]


@pytest.mark.parametrize("word", sorted(MISSING_WORDS))
def test_a_missing_word_is_an_unlabelled_row(word: str) -> None:
    for labels, target in ((NUMBERS, "number"), (["a", "b"] * 10, "class")):
        found = understand([word, *labels])
        assert (found.target, found.unlabelled, found.values[0]) == (target, 1, "")
        assert found.values[1:] == labels
        assert "1 of" in found.notes[0] and "unlabelled" in found.notes[0]


@pytest.mark.parametrize(
    ("odd", "what"),
    [
        (">100", "is a bound"),
        ("< 0.1", "is a bound"),
        ("≥50", "is a bound"),
        ("~5", "is a bound"),
        ("12 nM", "has a unit"),
        ("5%", "has a unit"),
        ("1,234.5", "separator between thousands"),
        ("1.234,5", "separator between thousands"),
        ("0,5", "decimal comma"),
        ("inf", "is infinite"),
        ("-Infinity", "is infinite"),
        ("1e999", "is infinite"),
        ("bad", "is no number"),
        ("1_000", "is no number"),
        ("0x1F", "is no number"),
        ("1.5±0.2", "is no number"),
    ],
)
def test_an_odd_value_among_numbers_is_named(odd: str, what: str) -> None:
    with pytest.raises(UserError) as error:
        understand([*NUMBERS, odd, *NUMBERS], where=lambda row: f"t.csv, line {row + 2}")
    told = str(error.value)
    assert repr(odd) in told and what in told and "[t.csv, line 42]" in told and "--target class" in told
    assert "80 of 81 labels are numbers" in told


def test_decimal_commas_are_read_where_they_can_be_nothing_else() -> None:
    found = understand(["-1,479", "0,285", "2,692", "12", "3,5", "NA"])
    assert (found.target, found.values) == ("number", ["-1.479", "0.285", "2.692", "12", "3.5", ""])
    assert any("decimal comma" in note for note in found.notes)
    with pytest.raises(UserError, match="may have a decimal comma or a comma between thousands"):
        understand([f"{index},{100 + index}" for index in range(1, 30)])
    assert understand(["\u22121.5", *NUMBERS]).values[0] == "-1.5"


@pytest.mark.parametrize(
    ("labels", "target"),
    [
        (["0", "1"] * 10, "class"),
        ([str(index % 3) for index in range(12)], "class"),
        ([str(17 * index) for index in range(60)], "number"),  # IC50
        ([f"{17 * index}.0" for index in range(60)], "number"),
        ([str(index % 40) for index in range(400)], "class"),  # families numbered without a gap
        ([str(20 + index % 60) for index in range(400)], "number"),  # temperatures
        (["0.5", "1.0"] * 10, "number"),
        (["1", "2", "x"] * 10, "class"),
    ],
)
def test_whole_numbers_are_classes_only_where_they_are_few(labels: list[str], target: str) -> None:
    found = understand(labels)
    assert found.target == target
    assert found.why and ("--target" in found.why or "words" in found.why)
    if target == "class" and "x" not in labels:
        assert understand(labels, "number").target == "number"
    assert understand(labels, "class").target == "class"


def test_classes_that_pandas_wrote_as_floats_are_two_classes() -> None:
    found = understand(["0.0", "1.0", "0.0", "", "1.0"])
    assert (found.target, found.values) == ("class", ["0", "1", "0", "", "1"])
    assert any("'0.0'" in note for note in found.notes)
    assert understand(["0.0", "1.0"], "number").values == ["0.0", "1.0"]


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("HEC", ["H", "E", "C"]),
        ("H-C", ["H", "-", "C"]),
        ("[0, 1, 2]", ["0", "1", "2"]),
        ("[0 1\n 2]", ["0", "1", "2"]),
        ("(0, 1, 2)", ["0", "1", "2"]),
        ("[0.5, nan, None]", ["0.5", "", ""]),
        ("['H', 'E']", ["H", "E"]),
        ('["H", "E"]', ["H", "E"]),
        ("array([1.5, 2.], dtype=float32)", ["1.5", "2."]),
        ("tensor([1, 2])", ["1", "2"]),
        ("0.1,,3", ["0.1", "", "3"]),
        ("0;1;2", ["0", "1", "2"]),
        ("1,5;2,0", ["1,5", "2,0"]),
        ("0 1 0", ["0", "1", "0"]),
        ("(((...)))", list("(((...)))")),
    ],
)
def test_lists_are_lists(text: str, labels: list[str]) -> None:
    assert residue_labels(text) == labels


@pytest.mark.parametrize("text", ["[0 1 ... 1 0]", "[0, 1, ..., 1]", "0,1,…,0", "array([0., 1., ..., 2.])"])
def test_a_list_that_was_cut_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="was cut by the program that wrote it"):
        residue_labels(text)


@given(st.lists(st.sampled_from(["", "H", "E", "0", "1", "loop", "-1.5", "a b", "x"]), min_size=2, max_size=30))
def test_joined_labels_come_back(labels: list[str]) -> None:
    read = ["" if item == "-" else item for item in residue_labels(joined_labels(labels))]
    assert read == labels


def _table(tmp_path: Path, rows: list[tuple[str, str]]) -> pd.DataFrame:
    path = tmp_path / "d.tsv"
    path.write_text("id\tsequence\tlabel\n" + "".join(f"p{n}\t{s}\t{x}\n" for n, (s, x) in enumerate(rows)))
    return read_dataset(path)


def test_residue_labels_of_another_length_never_switch_the_task(tmp_path: Path) -> None:
    good = [("MKVLAYWE" * 2 + "M" * n, "HHHHEEEE" * 2 + "C" * n) for n in range(10)]
    assert labelled_rows(_table(tmp_path, good))[1].task == Task("residue", "class", ("C", "E", "H"))
    with pytest.raises(UserError, match=r"17 labels for 18 residues \(10 of 11 rows fit\) \[dataset, line 12, id 'p10"):
        labelled_rows(_table(tmp_path, [*good, ("MKVLAYWE" * 2 + "MM", "HHHHEEEE" * 2 + "C")]))
    shifted = [("MKVLA" + "K" * n, str([0, 1] * 3 + [1] * n)) for n in range(8)]
    with pytest.raises(UserError, match="6 labels for 5 residues"):
        labelled_rows(_table(tmp_path, shifted))
    with pytest.raises(UserError, match="so these are labels of residues"):
        labelled_rows(_table(tmp_path, good), "sequence")


def test_unlabelled_residues_and_rows(tmp_path: Path) -> None:
    rows = [("MKV", "0.5,nan,1.5"), ("MKVA", "1,2,NA,4"), ("MK", "nan,nan"), ("MKVLA", "NA")]
    frame, found = labelled_rows(_table(tmp_path, rows))
    assert found.task == Task("residue", "number")
    assert list(frame["label"]) == ["0.5,,1.5", "1,2,,4"]
    assert any("residues have no label" in note for note in found.notes)
    assert any("2 of 4 rows have no label at all" in note for note in found.notes)


def test_classes_named_after_whole_floats_are_written_as_they_are_read(tmp_path: Path) -> None:
    frame, found = labelled_rows(_table(tmp_path, [("MKV", "0.0"), ("MKA", "1.0"), ("MKL", "NA")]))
    assert found.task == Task("sequence", "class", ("0", "1"))
    assert list(frame["label"]) == ["0", "1"]


@pytest.mark.parametrize(
    ("names", "positive"),
    [
        (("AMP", "nonAMP"), "AMP"), (("ACP", "non_ACP"), "ACP"), (("toxic", "non-toxic"), "toxic"),
        (("enzyme", "Non-enzyme"), "enzyme"), (("enzyme", "not enzyme"), "enzyme"),
        (("negative", "positive"), "positive"),
        (("Neg", "Pos"), "Pos"), (("no", "yes"), "yes"), (("False", "True"), "True"), (("0", "1"), "1"),
        (("-1", "1"), "1"), (("1", "2"), "2"), (("active", "inactive"), "active"), (("case", "control"), "case"),
        (("N", "Y"), "Y"), (("a", "b"), "b"), (("delta", "notch"), "notch"), (("kinase", "other"), "kinase"),
        (("soluble", "insoluble"), "soluble"), (("C", "N"), "N"),
    ],
)
def test_the_positive_class_is_the_one_that_is_meant(names: tuple[str, str], positive: str) -> None:
    assert sort_classes(set(names))[-1] == positive
    assert set(positive_last(*sorted(names))) == set(names)


def test_labels_that_name_several_classes_are_said() -> None:
    told = told_several(["Nucleus;Cytoplasm", "Cytoplasm", "Membrane,Golgi", "Membrane"])
    assert "2 labels name several classes" in told and "not supported" in told
    assert told_several(["hydrolase, secreted", "kinase"]) == ""


@pytest.mark.parametrize(
    ("rule", "header", "label"),
    [
        ("LABEL=", "s LABEL=Nucleus;Cytoplasm", "Nucleus;Cytoplasm"),
        ("LABEL=", "s LABEL=Membrane,Golgi x", "Membrane,Golgi"),
        ("LABEL=", "s LABEL=a|b", "a|b"),
        ("TARGET=", "s TARGET=0,285 SET=train", "0,285"),
        ("LABEL=", "s|LABEL=Nucleus;Cytoplasm|SET=train", "Nucleus;Cytoplasm"),
        ("SET=", "s LABEL=a;SET=train;x", "train"),
        ("LABEL=", "s LABEL=a;SET=train", "a"),
        ("LABEL=", 's LABEL="Golgi apparatus" x', "Golgi apparatus"),
        ("LABEL=", "s LABEL=a;", "a"),
        ("LABEL=", "s LABEL= x", None),
    ],
)
def test_words_of_headers_are_whole(rule: str, header: str, label: str | None) -> None:
    assert parse_rule(rule, "--labels").find(ProteinRecord("s", header, "MK", 1)) == label


def test_an_endless_regular_expression_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from plm.data import header_rules

    monkeypatch.setattr(header_rules, "PATIENCE_SECONDS", 0.2)
    record = ProteinRecord("a", "a " + "x" * 60 + "!", "MK", 7)
    for rule in (r"regex:(x|xx|xxx)+[0-9]", r"regex:a (?:(?:x|xx)+)+[!]y"):
        with pytest.raises(UserError, match=r"takes more than 0.2 seconds on one header \[line 7, id 'a'\]"):
            parse_rule(rule, "--labels").find(record)
    for broken in ("regex:(", "regex:" + "a" * 2000, "regex:a{99999999999}", "regex:((a{1000}){1000}){9}"):
        with pytest.raises(UserError, match="--labels: the regular expression"):
            parse_rule(broken, "--labels")


@pytest.mark.parametrize("text", ["1", "-1.5", "+.5", "1e5", "1.5E-3", "\u22122"])
def test_numbers(text: str) -> None:
    assert number(text) == float(text.replace("\u2212", "-"))


@pytest.mark.parametrize("text", ["", "nan", "inf", "1e999", "1_0", "١", "1,5", "0x1", "1 2", "9" * 5000 + "x"])
def test_no_numbers(text: str) -> None:
    assert number(text) is None


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("614", (614, "")), ("614.0", (614, "")), ("Y614", (614, "Y")), ("pY614", (614, "Y")), ("S13-p", (13, "S")),
        ("K27-ac", (27, "K")), ("Ser13", (13, "S")), (" 5 ", (5, "")), ("0", (0, "")), ("1.5", None), ("Foo13", None),
        ("9" * 20, None), ("9" * 5000, None), ("-3", None), ("x", None), ("", None), ("١", None),
    ],
    ids=lambda value: str(value)[:12],
)
def test_places_as_people_write_them(text: str, place: tuple[int, str] | None) -> None:
    assert parse_place(text) == place


def test_sites_that_count_from_0_are_named() -> None:
    sequence = "MKYAAYKKYLLYVVYAAYKKYLLYVVYA"
    places = [index for index, letter in enumerate(sequence) if letter == "Y"]
    with pytest.raises(UserError, match="The positions seem to count from 0: 0 of 9 are at the residues of sites"):
        check_counting([(sequence, place, "Y") for place in places], "--sites")
    check_counting([(sequence, place + 1, "Y") for place in places], "--sites")
    check_counting([(sequence, place, "") for place in places], "--sites")  # too few to tell without letters
    varied = "".join(f"{letter}Y" for letter in "ACDEFGHIKLMNPQRSTVW")
    with pytest.raises(UserError, match="count from 0"):
        check_counting([(varied, place, "") for place in range(1, len(varied), 2)], "--sites")
    check_counting([(varied, place + 1, "") for place in range(1, len(varied), 2)], "--sites")


@given(
    st.lists(
        st.one_of(
            st.sampled_from([*sorted(MISSING_WORDS), ">5", "1,5", "1.5", "7", "0.0", "a;b", "[0, 1]", "[...]", "inf"]),
            st.text("0123456789.,-+eE <>%nM[](){};|'\"ab…", max_size=9),
        ),
        min_size=1, max_size=30,
    ),
    st.sampled_from(["auto", "class", "number"]),
)
def test_any_labels_are_understood_or_refused_in_one_line(labels: list[str], target: str) -> None:
    try:
        found = understand(labels, target)
    except UserError as error:
        assert "\n" not in str(error) and "[row " in str(error)
        return
    assert len(found.values) == len(labels) and found.why
    assert found.unlabelled == found.values.count("")
    if found.target == "number":
        assert all(number(value) is not None for value in found.values if value)
        assert understand(found.values, "number").values == found.values
    for label in labels:
        try:
            assert joined_labels(residue_labels(label)) is not None
        except UserError:
            assert "..." in label or "…" in label
