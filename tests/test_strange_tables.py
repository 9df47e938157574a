"""Tables as Excel, R, pandas and the suite write them, and the suite's own tables where they do not belong."""

from __future__ import annotations

import gzip
import io
import re
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plm.data import own_tables, text_files
from plm.data.dataset_table import read_dataset, read_strings, write_dataset
from plm.data.identifiers import Matches
from plm.data.own_tables import OWN_TABLES, recognise
from plm.data.proteins import read_proteins
from plm.data.tables import Dialect, read_table, sniff, write_table
from plm.errors import UserError
from plm.jobs.preprocess.records import read_records

TOOLS = Path(__file__).resolve().parents[1] / "tools"
NASTY = ('5"-nucleotidase', "=1+1", "<b>", "a$b_c$", '"quoted"', "a,b;c", "'q'", "\\frac{", "#x", "é", '""', "-")


def _write(tmp_path: Path, content: str | bytes, name: str = "t.txt") -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("id\tsequence\tlabel\nq\tMK\t\"a, b\"\nr\tMV\tc\n", [("q", "MK", "a, b"), ("r", "MV", "c")]),  # Excel
        ("id\tsequence\tlabel\nq\tMK\t\"5\"\"-x\"\nr\tMV\tc\n", [("q", "MK", '5"-x'), ("r", "MV", "c")]),
        ("id\tsequence\tlabel\nq\tMK\t5\"-x, y\nr\tMV\t\"c, d\"\n", [("q", "MK", '5"-x, y'), ("r", "MV", '"c, d"')]),
        ('"id"\t"sequence"\t"label"\n"q"\t"MK"\t"a"\n"r"\t"MV"\t1.5\n', [("q", "MK", "a"), ("r", "MV", "1.5")]),  # R
        ('"id"\t"sequence"\n"1"\t"q"\t"MK"\n"2"\t"r"\t"MV"\n', [("1", "q", "MK"), ("2", "r", "MV")]),  # names of rows
        ('"id" "sequence"\n"1" "q" "MK"\n"2" "r" "M V"\n', [("1", "q", "MK"), ("2", "r", "M V")]),
        ('"id"\t"label"\n"q"\t"a \\"b\\" c"\n', [("q", 'a "b" c')]),
        ("id;sequence;label, unit\nq;MK;1,5\nr;MV;2,5\n", [("q", "MK", "1,5"), ("r", "MV", "2,5")]),
        ("id;sequence;label\nq;MK;a, b, c\nr;MV;d\n", [("q", "MK", "a, b, c"), ("r", "MV", "d")]),
        ('id,sequence,label\nq,MK,"a, ""b"""\nr,MV,c\n', [("q", "MK", 'a, "b"'), ("r", "MV", "c")]),
        ("id\tsequence, cleaned\nq\tMK\nr\tMV\n", [("q", "MK"), ("r", "MV")]),
        ("id\tsequence\n\"q\"\tMK\nr\tMV\n", [('"q"', "MK"), ("r", "MV")]),  # as the suite writes it
    ],
)
@pytest.mark.parametrize("form", ["plain", "utf-8-sig", "utf-16", "windows", "gzip"])
def test_dialects(tmp_path: Path, text: str, rows: list[tuple[str, ...]], form: str) -> None:
    content = {
        "plain": text.encode(), "windows": text.replace("\n", "\r\n").encode(),
        "gzip": gzip.compress(text.encode(), mtime=0),
    }.get(form) or text.encode(form)
    assert read_table(_write(tmp_path, content)).rows == rows


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04....[Content_Types].xml..xl/", "This is a workbook (Excel), not text [t.txt]. Save the"),
        (b"\xd0\xcf\x11\xe0aaaa", "an old Excel workbook"),
        ("id,µ\nq,1\n".encode("latin-1"), "not UTF-8 text [t.txt, line 1]. Save it as UTF-8 (in Excel: CSV UTF-8)"),
        (b"id,sequence\nq,MK\nr,MV,x\n", "A row has 3 columns where the header has 2 [t.txt, line 3]"),
        (b'id,sequence\nq,"MK\nr,MV\n', "cannot be read (unexpected end of data) [t.txt, after line 1]"),
        (b"id,id\nq,MK\n", "The column 'id' appears twice"),
        (b"id\tsequence\n", "has a header but no rows"),
        (b"\n\n", "The table is empty"),
        (b"id\tse\x00q\nq\tMK\n", "not a plain text table"),
        (b"PAR1 and nothing more", "The Parquet file cannot be read"),
    ],
    ids=lambda value: None if isinstance(value, str) else "",
)
def test_what_is_no_table_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(UserError) as error:
        read_table(_write(tmp_path, content))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_line_without_end_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "LONGEST_LINE", 1000)
    monkeypatch.setattr(text_files.raw_lines, "__defaults__", (1000, ""))
    path = _write(tmp_path, gzip.compress(b"id\tsequence\nq\t" + b"M" * 2000 + b"\n", mtime=0))
    with pytest.raises(UserError, match=r"A line has more than 1,000 characters \[t.txt, line 2\]"):
        read_table(path)


def test_parquet_is_a_table_and_its_lists_are_lists(tmp_path: Path) -> None:
    frame = pd.DataFrame({"id": ["a", "b"], "sequence": ["MKV", "MK"], "label": [[0, 1, 2], [1.5, None]]})
    frame["n"] = [1, None]
    frame.to_parquet(tmp_path / "t.parquet")
    table = read_table(tmp_path / "t.parquet")
    assert table.header == ("id", "sequence", "label", "n")
    assert [row[2] for row in table.rows] == ["[0.0,1.0,2.0]", "[1.5,nan]"]
    records = read_records(tmp_path / "t.parquet")
    assert [one.id for one in records] == ["a", "b"]
    assert [one.id for one in read_proteins(tmp_path / "t.parquet", wanted=())] == ["a", "b"]


def test_ids_that_break_rows_are_refused(tmp_path: Path) -> None:
    path = _write(tmp_path, 'id,sequence,note\n"a\tb",MK,x\n')
    with pytest.raises(UserError, match="holds a tab or a line end"):
        read_records(path)
    path = _write(tmp_path, 'id,sequence,note\na,MK,"x\ny\tz"\n')
    assert read_records(path)[0].columns["note"] == "x y z"


@pytest.mark.parametrize("name", NASTY)
def test_nasty_names_come_back_from_every_table(tmp_path: Path, name: str) -> None:
    frame = pd.DataFrame({"id": [name, "plain"], "sequence": ["MKV", "MV"], "label": ["x", name]})
    write_dataset(frame, tmp_path / "d.tsv")
    assert list(read_dataset(tmp_path / "d.tsv")["id"]) == [name, "plain"]
    assert list(read_dataset(tmp_path / "d.tsv")["label"]) == ["x", name]
    write_table(pd.DataFrame({"id": [name], "label": [name], "n": [1.5]}), tmp_path / "t.tsv")
    assert (tmp_path / "t.tsv").read_text() == f"id\tlabel\tn\n{name}\t{name}\t1.5\n"
    assert read_table(tmp_path / "t.tsv").rows == [(name, name, "1.5")]


def test_tabs_and_line_ends_make_no_rows(tmp_path: Path) -> None:
    write_table(pd.DataFrame({"i\td": ["a\tb\nc\rd"], "n": [0.1234567]}), tmp_path / "t.tsv", "%.3g")
    assert (tmp_path / "t.tsv").read_text() == "i\\td\tn\na\\tb\\nc\\rd\t0.123\n"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.text("ab\"',; #|é$", max_size=6).map(str.strip)] * 2), min_size=1, max_size=5))
def test_what_the_suite_writes_it_reads(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]) -> None:
    path = tmp_path_factory.mktemp("t") / "t.tsv"
    frame = pd.DataFrame([(f"p{n}", "x", f"r{n}", *row) for n, row in enumerate(rows)],
                         columns=["id", "what", "reason", "one", "two"])
    write_table(frame, path)
    assert [row[3:] for row in read_table(path).rows] == rows


def test_the_dialect_is_that_of_most_rows() -> None:
    assert sniff(["a,b;c", "1,2;3", "4,5;6"]).separator == ","
    assert sniff(["a;b;c", "1,2;3;4", "4;5;6"]) == Dialect(";", True)
    assert sniff(["a\tb", "1\t2"]) == Dialect("\t", False)
    assert sniff(["alone"]) == Dialect("\t", False)


# ---------------------------------------------------------------------------------------------------- the suite's own


def test_every_table_that_the_forms_write_is_known() -> None:
    """A new table of a form must be told in :mod:`plm.data.own_tables`, too."""
    known = {tool for one in OWN_TABLES for tool in re.findall(r"plm_\w+", one.tool)}
    for path in sorted(TOOLS.glob("plm_*.xml")):
        outputs = ElementTree.parse(path).getroot().iterfind("outputs//data[@format='tabular']")
        if list(outputs) and path.stem != "plm_merge_embeddings":
            assert path.stem in known, path.stem


def test_headers_of_the_code_are_recognised() -> None:
    from plm.data import leakage
    from plm.data.examples import Journal
    from plm.jobs.classifier import compression_report
    from plm.jobs.classify_sites import tables
    from plm.jobs.compare_embeddings import checks, report
    from plm.jobs.compare_models import report as model_comparison_report
    from plm.jobs.embed import side_tables
    from plm.jobs.predict import queries
    from plm.jobs.pretrain import report as pretraining_report
    from plm.jobs.project import report as projection_report
    from plm.masked_lm import corpus_store
    from plm.scoring import assessment, mutagenesis

    headers = [
        side_tables.STATUS_COLUMNS, queries.STATUS_COLUMNS, tables.STATUS_COLUMNS, corpus_store._REJECTED,
        tuple(Journal().frame().columns), tuple(leakage.to_frame([], 33).columns), assessment.METRIC_COLUMNS,
        assessment.COMPARISON_COLUMNS, checks.CHECK_COLUMNS, report.COMPONENT_COLUMNS,
        report.PROTEIN_COLUMNS, model_comparison_report.SCORE_COLUMNS, model_comparison_report.AGREEMENT_COLUMNS,
        model_comparison_report.PROTEIN_COLUMNS, model_comparison_report.PROBE_COLUMNS,
        model_comparison_report.COST_COLUMNS, projection_report.SCORE_COLUMNS, pretraining_report.HISTORY_COLUMNS,
        compression_report.COLUMNS, mutagenesis.COLUMNS, mutagenesis.SITE_COLUMNS,
    ]
    for header in headers:
        found = recognise(header)
        assert found is not None and found.kind == "told", header


@pytest.mark.parametrize("kind", ["dataset", "predictions"])
def test_tables_of_the_test_data_are_recognised(root: Path, kind: str) -> None:
    for path in sorted((root / "test-data").glob(f"{kind}_*.tabular")):
        wanted = "dataset" if path.stem.endswith("_dataset") else kind
        found = recognise(read_table(path).header)
        assert found is not None and found.kind == wanted, path.name


@pytest.mark.parametrize("header", [("id", "sequence", "label"), ("id", "label"), ("accession", "position", "label"),
                                    ("id", "e0", "e1"), ("Entry", "Length", "Mass"), ("id", "a", "b", "value")])
def test_tables_of_others_are_not(header: tuple[str, ...]) -> None:
    assert recognise(header) is None


def test_a_wrong_turn_says_what_was_given_and_what_is_wanted(root: Path, tmp_path: Path) -> None:
    from plm.data.embeddings.files import read_embeddings
    from plm.scoring.predictions import read_predictions

    status = root / "test-data" / "embeddings_part_1.tabular"
    for read, wanted in (
        (read_dataset, "the dataset table of plm_preprocess"),
        (read_predictions, "the predictions table of plm_finetune"),
        (lambda path: read_embeddings(path).__enter__(), "the embeddings file of plm_embed"),
        (read_records, "protein sequences"),
        (lambda path: list(read_proteins(path)), "protein sequences"),
    ):
        with pytest.raises(UserError) as error:
            read(status)
        assert f"This is the status table of plm_embed, not {wanted}" in str(error.value)
        assert "embeddings_part_1.tabular" in str(error.value) and "Give " in str(error.value)
    header = "id\tsplit\tnearest\tidentity\tsame_protein\tsame_group\tleaks\n"
    leak = _write(tmp_path, header + "a\ttest\tb\t0.5\tno\tno\tno\n")
    with pytest.raises(UserError, match="This is the leakage table of plm_preprocess, not the dataset table"):
        read_dataset(leak)
    with pytest.raises(UserError, match="no columns of numbers"):
        read_embeddings(_write(tmp_path, "id\tline\tlength\na\t1\t20\n")).__enter__()
    assert set(own_tables.WANTED) >= {"embeddings", "dataset", "predictions", "proteins", "labels", "sites"}


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("bundle_tiny_classes.zip", "a bundle or a checkpoint of this suite"), ("tiny_esm2.zip", "a model (zip)"),
        ("simulated_embeddings.h5", "an HDF5 file"),
    ],
)
def test_models_and_bundles_are_told_from_tables(root: Path, name: str, what: str) -> None:
    path = root / "test-data" / name
    if not path.exists():
        pytest.skip(f"{name} is not among the test data")
    for read in (read_table, read_records, read_dataset):
        with pytest.raises(UserError, match=f"This is {re.escape(what)}"):
            read(path)


def test_names_are_matched_by_a_shorter_form_only_where_it_is_one_alone() -> None:
    table = ["P1", "P2", "12-140", "x", "q", "sp|P9|N other words"]
    asked = ["sp|P1|A_HUMAN Protein OS=Homo", "membrane/P2", "A/12-140", "B/12-140", "x", "q one", "q two", "P9"]
    matches = Matches(table, asked)
    found = [matches.find(key) for key in asked]
    assert found == ["P1", "P2", None, None, "x", None, None, "sp|P9|N other words"]
    assert matches.told().startswith("3 ids were matched")
    assert Matches(["A/1\t5"], ["A/1\t5"]).find("A/1\t5") == "A/1\t5"


def test_a_big_table_reads_once(tmp_path: Path) -> None:
    buffer = io.StringIO()
    buffer.write("id\tsequence\tlabel\n")
    for row in range(5000):
        buffer.write(f"p{row}\tMKV\t{'ab'[row % 2]}\n")
    frame = read_strings(_write(tmp_path, buffer.getvalue()), "table", "x")
    assert frame.shape == (5000, 3) and frame["label"].value_counts().to_dict() == {"a": 2500, "b": 2500}


PIECES = (b">", b"\n", b"\r", b"\t", b",", b";", b'"', b" ", b"id", b"sequence", b"label", b"MKV", b"ACGT" * 8, b"\xff",
          b"\xc3\xa9", b"\x00", b"*", b"P1;x", b"|", b"1.5", b"NA", b"[1, 2]", b"\xef\xbb\xbf", b"#", b"position", b"3",
          b"9" * 30, b"PAR1", b"\\", b"'", b"=", b"LABEL=")


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=40).map(b"".join))
def test_any_bytes_are_read_or_refused_in_one_line(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    from plm.data.dataset_table import labelled_rows
    from plm.data.protein_store import store_proteins
    from plm.jobs.classify_sites.candidates import survey
    from plm.jobs.predict.queries import passed_columns

    folder = tmp_path_factory.mktemp("any")
    path = folder / "a"
    path.write_bytes(content)
    for number, read in enumerate(
        (
            read_records,
            lambda path: store_proteins(path, folder / "stored", sites=False),
            lambda path: store_proteins(path, folder / "sites", sites=True),
            lambda path: survey(path, "Y", 0, "rename"),
            read_table,
            lambda path: read_table(path, header=None),
            passed_columns,
            lambda path: labelled_rows(read_dataset(path)),
        )
    ):
        try:
            read(path)
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000, number
