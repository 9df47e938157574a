"""The dataset table: reading, checking, writing, inferring the task."""

from __future__ import annotations

import gzip
from pathlib import Path

import pandas as pd
import pytest
from plm.data.dataset_table import infer_task, read_dataset, residue_labels, sort_classes, write_dataset
from plm.data.task import Task
from plm.errors import UserError

SITES = "id\tsequence\tlabel\tposition\twindow\tsplit\tmine\na\tMKYVA\t1\t3\t5\ttrain\tNA\nb\tKYVA\t0\t2\t5\ttest\t\n"


def _read(tmp_path: Path, text: str) -> pd.DataFrame:
    path = tmp_path / "d.tabular"
    path.write_bytes(text.encode())
    return read_dataset(path)


@pytest.mark.parametrize("suffix", [".tsv", ".parquet"])
def test_tables_come_back_as_written(tmp_path: Path, suffix: str) -> None:
    frame = _read(tmp_path, SITES)
    assert frame["mine"].tolist() == ["NA", ""]
    assert frame.dtypes.map(str).isin(["str", "object", "string"]).all()
    path = tmp_path / f"out{suffix}"
    write_dataset(frame, path)
    pd.testing.assert_frame_equal(read_dataset(path), frame, check_dtype=False)


def test_windows_line_ends_gzip_and_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "d.tabular"
    path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + SITES.replace("\n", "\r\n").encode(), mtime=0))
    assert read_dataset(path).columns.tolist() == SITES.split("\n")[0].split("\t")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("a\tb\n1\t2\n", "column id is missing (found: a, b)"),
        ("id\tsequence\n", "no rows"),
        ("id\tsequence\na\tMK\na\tMV\n", "appears more than once [d.tabular, line 3, id 'a']"),
        ("id\tsequence\n\tMK\n", "without an id"),
        ("id\tsequence\na\tMk\n", "other letters"),
        ("id\tsequence\na\t\n", "[d.tabular, line 2, id 'a']"),
        ("id\tsequence\na\tMK\tx\n", "A row has 3 columns where the header has 2 [d.tabular, line 2]"),
        ("id\tsequence\tlabel\tlabel\na\tMK\t1\t0\n", "The column 'label' appears twice"),
        ("PAR1 and nothing more", "cannot be read"),
        ("id\tsequence\tposition\na\tMK\tx\n", "no whole number"),
        ("id\tsequence\tposition\na\tMK\t3\n", "outside its sequence"),
        ("id\tsequence\tposition\na\tMK\t0\n", "outside its sequence"),
        ("id\tsequence\twindow\na\tMK\t4\n", "neither 0 nor an odd"),
        ("id\tsequence\twindow\na\tMK\t3\nb\tMK\t5\n", "several widths"),
        ("id\tsequence\twindow\na\tMKVVV\t3\n", "longer than the stated window"),
        ("id\tsequence\tsplit\na\tMK\tdev\n", "none of train, valid, test"),
        ("id\tsequence\tfold\na\tMK\t0\n", "no whole number from 1"),
    ],
)
def test_broken_tables_name_line_and_id(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        _read(tmp_path, text)
    assert message in str(error.value)


def test_a_value_with_a_tab_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds a tab"):
        write_dataset(pd.DataFrame({"id": ["a"], "sequence": ["MK"], "note": ["x\ty"]}), tmp_path / "d.tsv")


@pytest.mark.parametrize(
    ("text", "task"),
    [
        (SITES, Task("site", "class", ("0", "1"))),
        ("id\tsequence\tlabel\na\tMKV\t10\nb\tMKVA\t9\n", Task("sequence", "class", ("9", "10"))),
        ("id\tsequence\tlabel\na\tMKV\tx\nb\tMKVA\ty\n", Task("sequence", "class", ("x", "y"))),
        ("id\tsequence\tlabel\na\tMKV\t1\nb\tMKVA\t2.5\n", Task("sequence", "number")),
        ("id\tsequence\tlabel\na\tMKV\tHH-\nb\tMKVA\tCCHH\n", Task("residue", "class", ("C", "H"))),
        ("id\tsequence\tlabel\na\tMKV\t0.1,,2\nb\tMK\t1,2\n", Task("residue", "number")),
    ],
)
def test_the_task_is_inferred(tmp_path: Path, text: str, task: Task) -> None:
    assert infer_task(_read(tmp_path, text)) == task


@pytest.mark.parametrize(
    ("text", "level", "target", "message"),
    [
        ("id\tsequence\na\tMK\n", "auto", "auto", "no label column"),
        ("id\tsequence\tlabel\na\tMKV\t1\nb\tMKA\t1\n", "auto", "auto", "one class only"),
        ("id\tsequence\tlabel\na\tMKV\t\n", "auto", "auto", "without a label"),
        ("id\tsequence\tlabel\na\tMKV\tHH\n", "residue", "auto", "not as long as its sequence"),
        ("id\tsequence\tlabel\na\tMKV\tx\n", "auto", "number", "'x' is no number"),
        ("id\tsequence\tlabel\na\tMKV\tx\n", "site", "auto", "needs the column position"),
    ],
)
def test_labels_that_do_not_fit(tmp_path: Path, text: str, level: str, target: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        infer_task(_read(tmp_path, text), level, target)


def test_small_rules() -> None:
    assert residue_labels("HEC") == ["H", "E", "C"]
    assert residue_labels("0.1,,3") == ["0.1", "", "3"]
    assert sort_classes({"10", "9", "-1"}) == ("-1", "9", "10")
    assert sort_classes({"b", "a", "10"}) == ("10", "a", "b")
