"""Embeddings files: what is written is read back, in every format; files of others; bad content."""

from __future__ import annotations

import gzip
import json
import tempfile
import tracemalloc
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plm.data.embeddings.files import FORMATS, Description, Embeddings, read_embeddings, write_embeddings
from plm.errors import UserError

AWKWARD = [
    "sp|P12345|A/B%C", "%2F", "/", "//", ".", "..", "%2E", "a.b", "%", "a/b", "a%2Fb", "./x", "ü-Ω", "中", "🧬", "x@3",
    '"quoted"', "'", "a,b;c", "NA", "nan", "null", "-1", " lead", "trail ", "#x",
]


def describe(pooling: str = "mean", layers: tuple[int, ...] = (6,), dtype: str = "float32", dimension: int = 4) -> Any:
    return Description(
        "tiny", "ab" * 32, layers, pooling, dtype, dimension, {"precision": "fp32", "ä": "ö"}  # type: ignore[arg-type]
    )


texts = st.text(
    st.characters(exclude_characters="\x7f\x85\u2028\u2029", min_codepoint=32, exclude_categories=("Cs",)),
    min_size=1, max_size=12,
) | st.sampled_from(AWKWARD)


@st.composite
def files(draw: st.DrawFn) -> dict[str, Any]:
    pooling = draw(st.sampled_from(["mean", "max", "first", "residues", "sites"]))
    layers = tuple(draw(st.lists(st.integers(0, 40), min_size=1, max_size=3, unique=True)))
    dtype = draw(st.sampled_from(["float16", "float32"]))
    dimension = draw(st.integers(1, 5))
    ids = draw(st.lists(texts, max_size=6, unique=True))
    seed = np.random.default_rng(draw(st.integers(0, 2**32)))
    lengths = [int(seed.integers(1, 5)) for _ in ids] if pooling == "residues" else None
    positions = None
    if pooling == "sites":
        ids = [identifier for identifier in ids for _ in range(int(seed.integers(1, 3)))]
        positions = [7 * index + 3 for index in range(len(ids))]
    shape = (len(layers), dimension) if len(layers) > 1 else (dimension,)
    rows = []
    for index in range(len(ids)):
        array = seed.normal(size=(*((lengths[index],) if lengths else ()), *shape)).astype(dtype)
        if seed.random() < 0.2:
            array.flat[0] = seed.choice([np.nan, np.inf, -0.0, 0.0, 1e-7, 6e4])
        rows.append(array)
    return {
        "description": describe(pooling, layers, dtype, dimension), "ids": ids, "rows": rows, "lengths": lengths,
        "positions": positions,
    }


def write(path: Path, format: str, made: dict[str, Any]) -> bytes:
    write_embeddings(
        path, format, made["description"], made["ids"], iter(made["rows"]),
        lengths=made["lengths"], positions=made["positions"],
    )
    return path.read_bytes()


@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(made=files())
def test_what_is_written_is_read_back(format: str, made: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        first = write(path, format, made)
        with read_embeddings(path) as read:
            assert read.ids == made["ids"]
            assert len(read) == len(made["ids"])
            assert read.positions == made["positions"] or (format == "tabular" and not made["ids"])
            wanted = made["description"]
            if format == "tabular":
                assert read.dimension == wanted.dimension
                assert read.level == wanted.level or not made["ids"]
                assert read.description.layers == (wanted.layers if len(wanted.layers) > 1 and made["ids"] else ())
            else:
                assert read.description == wanted
                assert read.suite_version
            assert read.lengths == made["lengths"] or (format == "tabular" and not made["ids"])
            kept = [array.copy() for array in read.records()]
            for index, (array, original) in enumerate(zip(kept, made["rows"], strict=True)):
                assert array.shape == original.shape
                np.testing.assert_array_equal(array.astype(np.float32), original.astype(np.float32))
                np.testing.assert_array_equal(read.row(index), original.astype(np.float32))
                assert (np.signbit(array) == np.signbit(original))[~np.isnan(original)].all()
        assert write(path, format, made) == first, "equal input gives equal bytes"
        if format != "tabular":
            with read_embeddings(path) as read:
                again = Path(folder) / "again"
                write_embeddings(
                    again, format, read.description, read.ids, read.records(), lengths=read.lengths,
                    positions=read.positions,
                )
            assert again.read_bytes() == first


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("identifier", ["a\tb", "a\nb", "a\rb", "a\x85b", "a\u2028b"])
def test_ids_that_would_break_a_table_are_in_no_file(format: str, identifier: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds a tab or a line end"):
        write_embeddings(tmp_path / "x", format, describe(), [identifier], iter(np.ones((1, 4), np.float32)))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("ids", [["a", "b", "a"], ["", "b", "c"], ["a\0", "b", "c"], ["\ud800", "b", "c"]])
def test_ids_that_no_file_can_hold(format: str, ids: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"more than once|no id|cannot be stored"):
        write_embeddings(tmp_path / "x", format, describe(), ids, iter(np.ones((3, 4), np.float32)))


@pytest.mark.parametrize("format", FORMATS)
def test_a_number_too_large_for_float16_is_said(format: str, tmp_path: Path) -> None:
    rows = np.zeros((3, 4), np.float32)
    rows[1, 2] = 70_000
    with pytest.raises(UserError, match="'b' is too large for float16"):
        write_embeddings(tmp_path / "x", format, describe(dtype="float16"), ["a", "b", "c"], iter(rows))
    residues = [np.zeros((2, 4), np.float32), np.full((1, 4), 70_000, np.float32)]
    with pytest.raises(UserError, match="'b' is too large for float16"):
        write_embeddings(
            tmp_path / "x", format, describe("residues", dtype="float16"), ["a", "b"], iter(residues), lengths=[2, 1]
        )


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("count", [1, 3])
def test_too_few_and_too_many_arrays_are_bugs(format: str, count: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="arrays"):
        write_embeddings(tmp_path / "x", format, describe(), ["a", "b"], iter(np.ones((count, 4), np.float32)))


class LazyIds(Sequence[str]):
    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(self._count))]
        if not 0 <= index < self._count:
            raise IndexError(index)
        return f"protein{index}"


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("pooling", ["mean", "residues"])
def test_writing_needs_no_memory_for_more_records(format: str, pooling: str, tmp_path: Path) -> None:
    def peak(count: int) -> int:
        lengths = [10] * count if pooling == "residues" else None
        rows = (np.ones((10, 512) if lengths else 512, np.float32) for _ in range(count))
        tracemalloc.start()
        write_embeddings(
            tmp_path / "x", format, describe(pooling, dimension=512), LazyIds(count), rows, lengths=lengths
        )
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    few, many = (1_000, 3_000) if pooling == "residues" else (8_200, 24_000)
    peak(few)  # imports and caches
    # The numbers of the difference are over 30 MiB; an offset, a length and a hash for each record are allowed.
    assert peak(many) - peak(few) < 100 * (many - few)


@pytest.mark.parametrize("format", FORMATS)
def test_layers_are_chosen_when_the_file_is_opened(format: str, tmp_path: Path) -> None:
    rows = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    write_embeddings(tmp_path / "x", format, describe(layers=(0, 3, 6)), ["a", "b"], iter(rows))
    with read_embeddings(tmp_path / "x") as all_layers, pytest.raises(UserError, match=r"several layers \(0, 3, 6\)"):
        all_layers.matrix()
    with read_embeddings(tmp_path / "x", layer=3) as one:
        assert one.description.layers == (3,)
        np.testing.assert_array_equal(one.matrix(), rows[:, 1])
        np.testing.assert_array_equal(one.row(1), rows[1, 1])
    with pytest.raises(UserError, match=r"no layer 5 \(the file has: 0, 3, 6\)"):
        read_embeddings(tmp_path / "x", layer=5)


@pytest.mark.parametrize("format", FORMATS)
def test_the_matrix_of_residues_is_their_mean(format: str, tmp_path: Path) -> None:
    rows = [np.array([[1, 2], [3, 6]], np.float32), np.array([[5, 5]], np.float32)]
    write_embeddings(tmp_path / "x", format, describe("residues", dimension=2), ["a", "b"], iter(rows), lengths=[2, 1])
    with read_embeddings(tmp_path / "x") as read:
        np.testing.assert_array_equal(read.matrix(), [[2, 4], [5, 5]])
        assert read.level == "residue" and read.lengths == [2, 1]


@pytest.mark.parametrize("format", FORMATS)
def test_the_first_number_that_is_none_is_named(format: str, tmp_path: Path) -> None:
    rows = np.ones((3, 4), np.float32)
    write_embeddings(tmp_path / "x", format, describe(), ["a", "b", "c"], iter(rows))
    read_embeddings(tmp_path / "x").check_finite()
    rows[1, 3] = np.nan
    write_embeddings(tmp_path / "x", format, describe(), ["a", "b", "c"], iter(rows))
    with (
        read_embeddings(tmp_path / "x", name="mine.h5") as read,
        pytest.raises(UserError, match=r"'b'.*mine.h5, record 2"),
    ):
        read.check_finite()


# -- what other programs read --------------------


def test_others_read_the_packed_file(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "x.h5", "hdf5", describe(), AWKWARD, iter(np.ones((len(AWKWARD), 4), np.float32)))
    with h5py.File(tmp_path / "x.h5") as file:
        assert file["ids"].asstr()[:].tolist() == AWKWARD
        assert file["values"].shape == (len(AWKWARD), 4)
        assert file.attrs["format"] == "plm-embeddings" and file.attrs["schema_version"] == 1
        assert file.attrs["layers"].tolist() == [6] and file.attrs["precision"] == "fp32"


def test_others_read_uniprots_layout(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(len(AWKWARD), 4)).astype(np.float32)
    write_embeddings(tmp_path / "x.h5", "hdf5-uniprot", describe(), AWKWARD, iter(rows))
    with h5py.File(tmp_path / "x.h5") as file:
        assert [one.attrs["original_id"] for one in file.values()] == AWKWARD
        np.testing.assert_array_equal(np.array([np.array(one) for one in file.values()]), rows)
        assert list(file)[:4] == ["sp|P12345|A%2FB%25C", "%252F", "%2F", "%2F%2F"]


def test_others_read_npz_parquet_and_table(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    for format in ("npz", "parquet", "tabular"):
        write_embeddings(tmp_path / format, format, describe(), ["a", "b/c", "ü"], iter(rows))
    with np.load(tmp_path / "npz", allow_pickle=False) as arrays:
        assert arrays["ids"].tolist() == ["a", "b/c", "ü"]
        np.testing.assert_array_equal(arrays["values"], rows)
        assert json.loads(str(arrays["description"]))["model"] == "tiny"
    for frame in (pd.read_parquet(tmp_path / "parquet"), pd.read_csv(tmp_path / "tabular", sep="\t")):
        assert frame.columns.tolist() == ["id", "e0", "e1", "e2", "e3"] and frame["id"].tolist() == ["a", "b/c", "ü"]
        np.testing.assert_array_equal(frame.iloc[:, 1:].to_numpy(np.float32), rows)


def test_residue_tables_count_from_one(tmp_path: Path) -> None:
    rows = [np.zeros((2, 2, 1), np.float32), np.ones((1, 2, 1), np.float32)]
    description = describe("residues", (1, 6), dimension=1)
    write_embeddings(tmp_path / "x", "tabular", description, ["a", "b"], iter(rows), lengths=[2, 1])
    assert (tmp_path / "x").read_text().splitlines() == [
        "id\tposition\tlayer\te0", "a\t1\t1\t0", "a\t1\t6\t0", "a\t2\t1\t0", "a\t2\t6\t0", "b\t1\t1\t1", "b\t1\t6\t1",
    ]


# -- files of others --------------------


def test_uniprots_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    whole = {name: rng.normal(size=8).astype("f2") for name in ("P2", "P1", "A0A023")}
    parts = {name: rng.normal(size=(length, 8)).astype("f2") for name, length in (("P2", 3), ("P1", 1))}
    for path, made in (("per-protein.h5", whole), ("per-residue.h5", parts)):
        with h5py.File(tmp_path / path, "w") as file:
            for name, values in made.items():
                file.create_dataset(name, data=values)
    with read_embeddings(tmp_path / "per-protein.h5") as read:
        assert (read.level, read.dimension, read.ids) == ("protein", 8, ["A0A023", "P1", "P2"])
        assert read.description.model == "" and read.description.dtype == "float16"
        np.testing.assert_array_equal(read.matrix()[2], whole["P2"].astype("f4"))
    with read_embeddings(tmp_path / "per-residue.h5") as read:
        assert (read.level, read.ids, read.lengths) == ("residue", ["P1", "P2"], [1, 3])
        np.testing.assert_array_equal(read.row(1), parts["P2"].astype("f4"))


def test_bio_embeddings_files_keep_ids_in_an_attribute(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for number, identifier in enumerate(("sp|P1|A", "sp|P2|B")):
            file.create_dataset(str(number), data=np.full((1, 4), number, "f4")).attrs["original_id"] = identifier
    with read_embeddings(tmp_path / "x.h5") as read:
        assert read.ids == ["sp|P1|A", "sp|P2|B"] and read.level == "protein"
        np.testing.assert_array_equal(read.matrix()[:, 0], [0, 1])


def test_matrices_without_ids(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["embeddings"] = np.arange(6.0).reshape(3, 2)
        file["labels"] = [b"in", b"out", b"in"]
    with read_embeddings(tmp_path / "x.h5") as read:
        assert read.ids == ["x:0", "x:1", "x:2"] and read.labels == {"labels": ["in", "out", "in"]}
        np.testing.assert_array_equal(read.matrix(), np.arange(6).reshape(3, 2))
    with h5py.File(tmp_path / "y.h5", "w") as file:
        file["kinase"] = np.zeros((2, 3), "f4")
        file["phosphatase"] = np.ones((1, 3), "f4")
    with read_embeddings(tmp_path / "y.h5", matrices="proteins") as read:
        assert read.ids == ["kinase:0", "kinase:1", "phosphatase:0"]
        assert read.labels == {"group": ["kinase", "kinase", "phosphatase"]}
        np.testing.assert_array_equal(read.matrix()[:, 0], [0, 0, 1])
    assert read_embeddings(tmp_path / "y.h5").level == "residue"


def test_groups_are_labels(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["membrane/P1"] = np.zeros(3, "f4")
        file["soluble/P2"] = np.ones(3, "f4")
    with read_embeddings(tmp_path / "x.h5") as read:
        assert read.ids == ["membrane/P1", "soluble/P2"] and read.labels == {"group": ["membrane", "soluble"]}
        np.testing.assert_array_equal(read.matrix()[:, 0], [0, 1])


def test_npz_of_others(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(2, 3))
    np.savez_compressed(tmp_path / "a.npz", ids=["x", "y"], embeddings=values, labels=["u", "v"])
    np.savez(tmp_path / "b.npz", x=values[0].astype("f4"), y=values[1].astype("f4"))
    np.savez(tmp_path / "c.npz", values)
    for name, ids in (("a.npz", ["x", "y"]), ("b.npz", ["x", "y"]), ("c.npz", ["c:0", "c:1"])):
        with read_embeddings(tmp_path / name) as read:
            assert read.ids == ids
            np.testing.assert_array_equal(read.matrix(), values.astype("f4"))
    assert read_embeddings(tmp_path / "a.npz").labels == {"labels": ["u", "v"]}


@pytest.mark.parametrize("separator", ["\t", ",", ";"])
@pytest.mark.parametrize("zipped", [False, True])
def test_tables_of_others(separator: str, zipped: bool, tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {"label": [1, 0], "dim_1": [0.5, 1.5], "dim_2": [2, 3], "name": ["a", "b"], "split": ["u", "v"]}
    )
    text = frame.to_csv(sep=separator, index=False)
    (tmp_path / "x").write_bytes(gzip.compress(text.encode(), mtime=0) if zipped else text.encode())
    with read_embeddings(tmp_path / "x") as read:
        assert read.ids == ["a", "b"] and read.labels == {"label": ["1", "0"], "split": ["u", "v"]}
        np.testing.assert_array_equal(read.matrix(), [[0.5, 2], [1.5, 3]])


def test_tables_without_a_series_of_columns(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('id,target,alpha,beta\n"a,1",1,0.25,NA\nb,0,1,2\n')
    with read_embeddings(tmp_path / "x.csv") as read:
        assert read.ids == ["a,1", "b"] and read.labels == {"target": ["1", "0"]}
        np.testing.assert_array_equal(read.matrix(), [[0.25, np.nan], [1, 2]])


def test_pandas_index_and_missing_ids(tmp_path: Path) -> None:
    frame = pd.DataFrame(np.arange(4.0).reshape(2, 2), index=["p", "q"])
    frame.to_csv(tmp_path / "x.csv")
    frame.to_csv(tmp_path / "y.csv", index=False)
    assert read_embeddings(tmp_path / "x.csv").ids == ["p", "q"]
    assert read_embeddings(tmp_path / "y.csv").ids == ["row1", "row2"]
    np.testing.assert_array_equal(read_embeddings(tmp_path / "y.csv").matrix(), [[0, 1], [2, 3]])


@pytest.mark.realdata
def test_published_embeddings(shared_data: Path) -> None:
    path = shared_data / "gb1_esm2_8m" / "valid_ESM2_8M.parquet"
    with read_embeddings(path) as read:
        assert len(read) == 299 and read.dimension == 320 and read.level == "protein"
        assert read.ids[:2] == ["row1", "row2"] and read.description.dtype == "float16"
        assert set(read.labels) == {"sequence", "label"} and len(read.labels["sequence"][0]) > 200
        frame = pq.read_table(path).to_pandas()
        np.testing.assert_array_equal(
            read.matrix(), frame[[f"e{column}" for column in range(320)]].to_numpy(np.float32)
        )
        np.testing.assert_allclose([float(label) for label in read.labels["label"]], frame["label"], rtol=1e-6)
        read.check_finite()


# -- bad content --------------------


def good(path: Path, format: str, pooling: str = "mean") -> Path:
    lengths = [3] * 3 if pooling == "residues" else None
    positions = [1, 5, 9] if pooling == "sites" else None
    rows = np.ones((3, 3, 4) if lengths else (3, 4), np.float32)
    write_embeddings(path, format, describe(pooling), list("abc"), iter(rows), lengths=lengths, positions=positions)
    return path


def reads(path: Path) -> Embeddings:
    """Opens and reads all there is."""
    read = read_embeddings(path)
    for _ in read.records():
        pass
    return read


@pytest.mark.parametrize("format", ["hdf5", "hdf5-uniprot", "npz", "parquet"])
def test_a_file_cut_short_anywhere_is_refused(format: str, tmp_path: Path) -> None:
    whole = good(tmp_path / "x", format, "residues").read_bytes()
    for cut in (*range(0, len(whole), max(1, len(whole) // 25)), len(whole) - 1):
        (tmp_path / "cut").write_bytes(whole[:cut])
        with pytest.raises(UserError):
            reads(tmp_path / "cut")


def test_a_table_cut_short_is_refused(tmp_path: Path) -> None:
    whole = good(tmp_path / "x", "tabular").read_bytes()
    (tmp_path / "cut").write_bytes(whole[:-4])
    with pytest.raises(UserError, match="Row #4"):
        reads(tmp_path / "cut")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"id\te0\te1\n", "^$"),
        (b"id\tlabel\na\tb\n", "no columns of numbers"),
        (b"id\te0\na\t1\na\t2\n", "'a' appears more than once"),
        (b"id\te0\n\t1\n", "without an id .*row 1"),
        (b"id\te0\na\tx\n", "no columns of numbers"),
        (b"id\te0\te0\na\t1\t2\n", "'e0' appears twice"),
        (b"id\te0\na\t1\t2\n", "Expected 2 columns, got 3"),
        (b"0.5\t0.25\n0.1\t0.2\n", "no header line"),
        (b"id\tlabel\te0\n", "header but no rows"),
        (b"id\tlayer\te0\na\t1\t0\na\t2\t0\nb\t1\t0\n", "every layer|same order"),
        (b"id\te0\n\xff\t1\n", "UTF8|UTF-8|utf"),
        (b"\xff\xfe\x00\x01", "neither an embeddings file"),
        (b"\x80\x04\x95pickle", "pickle"),
        (b"PK\x03\x04rubbish", "no complete zip file"),
        (b"PAR1rubbish", "cannot be read"),
        (b"\x89HDF\r\n\x1a\nrubbish", "broken or cut short"),
        (b">protein\nMKV\n", "no columns of numbers"),
    ],
)
def test_content_that_is_no_embeddings(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    if message == "^$":  # a run whose records were all rejected
        assert reads(tmp_path / "x").ids == []
        return
    with pytest.raises(UserError, match=message) as caught:
        reads(tmp_path / "x")
    assert "x" in caught.value.where


def test_a_word_far_down_a_table_is_named_with_its_row(tmp_path: Path) -> None:
    lines = ["id\te0\te1", *(f"p{number}\t1\t2" for number in range(500)), "q\t1\toops"]
    (tmp_path / "x").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=r"Row #502.*oops"):
        reads(tmp_path / "x")


def test_a_folder_and_a_missing_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(UserError, match="does not exist"):
            read_embeddings(path)


def change(path: Path, **sets: Any) -> None:
    with h5py.File(path, "r+") as file:
        for name, values in sets.items():
            if name in file:
                del file[name]
            if values is not None:
                file[name] = values


@pytest.mark.parametrize(
    ("pooling", "sets", "message"),
    [
        ("mean", {"ids": ["a", "b", "a"]}, "'a' appears more than once"),
        ("mean", {"ids": ["a", "b"]}, "2 ids for 3 vectors"),
        ("mean", {"ids": [b"a", b"\xff", b"c"]}, "UTF-8"),
        ("mean", {"ids": None}, "ids is missing"),
        ("mean", {"values": None}, "values is missing"),
        ("mean", {"values": np.ones((3, 5), "f4")}, "shape"),
        ("mean", {"values": np.ones((3, 4), "f2")}, "float16 numbers"),
        ("mean", {"values": np.ones((3, 1, 4), "f4")}, "shape"),
        ("residues", {"offsets": [0, 3, 2, 9]}, "do not rise"),
        ("residues", {"offsets": [0, 3, 3, 9]}, "do not rise"),
        ("residues", {"offsets": [0, 3, 6, 8]}, "do not rise"),
        ("residues", {"offsets": [0, 9]}, "4 offsets"),
        ("residues", {"offsets": [0.0, 3, 6, 9]}, "4 offsets"),
        ("residues", {"offsets": None}, "offsets is missing"),
        ("sites", {"positions": [0, 1, 2]}, "from 1"),
        ("sites", {"positions": [1, 2]}, "from 1"),
    ],
)
def test_packed_files_that_contradict_themselves(pooling: str, sets: dict, message: str, tmp_path: Path) -> None:
    path = good(tmp_path / "x.h5", "hdf5", pooling)
    change(path, **sets)
    with pytest.raises(UserError, match=message):
        reads(path)


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("schema_version", 2, "reads up to 1"),
        ("schema_version", "x", "no schema version"),
        ("layout", "other", "'other' is unknown"),
        ("pooling", "sum", "describes itself wrongly"),
        ("dimension", -1, "describes itself wrongly"),
        ("model", None, "lacks the attribute model"),
    ],
)
def test_attributes_that_make_no_sense(attribute: str, value: Any, message: str, tmp_path: Path) -> None:
    path = good(tmp_path / "x.h5", "hdf5")
    with h5py.File(path, "r+") as file:
        del file.attrs[attribute]
        if value is not None:
            file.attrs[attribute] = value
    with pytest.raises(UserError, match=message):
        read_embeddings(path)


def test_mixed_dimensions_are_named(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["P1"], file["P2"] = np.ones(4, "f4"), np.ones(5, "f4")
    with pytest.raises(UserError, match="'P2' has shape"):
        reads(tmp_path / "x.h5")
    with h5py.File(tmp_path / "y.h5", "w") as file:
        file["P1"], file["P2"] = np.ones((2, 4), "f4"), np.ones(4, "f4")
    with pytest.raises(UserError, match="'P2' has shape"):
        reads(tmp_path / "y.h5")
    np.savez(tmp_path / "z.npz", a=np.ones(3), b=np.ones(4))
    with pytest.raises(UserError, match="'b' has 4 numbers where 'a' has 3"):
        reads(tmp_path / "z.npz")


def test_hdf5_without_numbers(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["P1"] = "text"
    with pytest.raises(UserError, match="holds no embeddings"):
        reads(tmp_path / "x.h5")


def test_hdf5_reads_nothing_outside_itself(tmp_path: Path) -> None:
    good(tmp_path / "secret.h5", "hdf5")
    (tmp_path / "raw").write_bytes(np.ones(12, "f4").tobytes())
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["P1"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "/values")
    path = good(tmp_path / "b.h5", "hdf5")
    change(path, values=h5py.ExternalLink(str(tmp_path / "secret.h5"), "/values"))
    path = good(tmp_path / "c.h5", "hdf5")
    change(path, values=None)
    with h5py.File(path, "r+") as file:
        file.create_dataset("values", (3, 4), "f4", external=[(str(tmp_path / "raw"), 0, 48)])
    with h5py.File(tmp_path / "d.h5", "w") as file:
        file.create_dataset("P1", (12,), "f4", external=[(str(tmp_path / "raw"), 0, 48)])
    for name in "abcd":
        with pytest.raises(UserError, match=r"link|no data set of this file"):
            reads(tmp_path / f"{name}.h5")


def test_numpy_objects_are_refused_not_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", ids=np.array(["a", "b"], dtype=object), values=np.ones((2, 3)))
    with pytest.raises(UserError, match="only pickle could read"):
        reads(tmp_path / "x.npz")


def test_archives_without_arrays(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}")
    with pytest.raises(UserError, match="hold pickles"):
        reads(tmp_path / "x.pt")


def test_npz_with_a_flipped_bit(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    write_embeddings(path, "npz", describe(dimension=600), LazyIds(1000), iter(np.ones((1000, 600), np.float32)))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="broken or cut short"):
        reads(path)


def test_npz_that_is_large_is_mapped_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    rows = np.random.default_rng(0).normal(size=(4000, 600)).astype(np.float32)
    write_embeddings(path, "npz", describe(dimension=600), LazyIds(4000), iter(rows))
    tracemalloc.start()
    with read_embeddings(path) as read:
        np.testing.assert_array_equal(read.row(3999), rows[3999])
    top = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert top < rows.nbytes / 1.5
    np.testing.assert_array_equal(read_embeddings(path).matrix(), rows)
