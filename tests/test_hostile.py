"""Files made to harm, or merely broken, given to the stages that read them: one line, no output.

Every case is built by code and run through the stages' own ``run``; each must be refused before anything of it is used.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import os
import pickle
import shutil
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from plm.errors import UserError
from safetensors.torch import load as tensors_of
from safetensors.torch import save as bytes_of

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "test-data"
Contents = dict[str, bytes]
Change = Callable[[Contents], None]
DEEP = "[" * 10_000 + "]" * 10_000
DIGITS = "9" * 5_000


def run(stage: str, *flags: str | Path) -> None:
    """A stage as its script runs it; a user's mistake is an exception here, and one line there."""
    importlib.import_module(stage).run([str(flag) for flag in flags])


def refused(stage: str, flags: list[str | Path], message: str, *outputs: Path) -> str:
    """Checks that a stage refuses its input in one line and leaves no output."""
    with pytest.raises(UserError, match=message) as caught:
        run(stage, *flags)
    line = str(caught.value)
    assert "\n" not in line and len(line) < 700 and "Traceback" not in line
    assert caught.value.fix or caught.value.where, "says what to do, or where"
    for output in outputs:
        assert not output.exists()
    return line


def contents(path: Path) -> Contents:
    with zipfile.ZipFile(path) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist() if not info.is_dir()}


def zipped(path: Path, held: Contents, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in held.items():
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return path


def patched(name: str, /, **fields: Any) -> Change:
    """Sets fields of a JSON member; ``...`` removes one."""

    def change(held: Contents) -> None:
        content = json.loads(held[name])
        content.update(fields)
        held[name] = json.dumps({key: value for key, value in content.items() if value is not ...}).encode()

    return change


def raw(name: str, content: bytes | str | None) -> Change:
    def change(held: Contents) -> None:
        held.pop(name, None)
        if content is not None:
            held[name] = content.encode() if isinstance(content, str) else content

    return change


def cut(name: str) -> Change:
    """A member without its last bytes."""
    return lambda held: held.update({name: held[name][:-4]})


def wrong_checksum(path: Path, member: str) -> Path:
    """The same archive, its list of members with another checksum for one."""
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\x01\x02", 0, content.rindex(member.encode()))
    content[at + 16] ^= 1
    path.write_bytes(content)
    return path


# ---------------------------------------------------------------------------------------------------------- embeddings


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("secret") / "secret.txt"
    path.write_bytes(b"postgresql://galaxy:not-a-real-password@localhost/galaxy\n" * 40)
    return path


ROWS = 20
VALUES = np.random.default_rng(0).normal(size=(ROWS, 8)).astype("f4")
NAMES = [f"p{number}" for number in range(ROWS)]


def hdf5(fill: Callable[[h5py.File, Path], None]) -> Callable[[Path, Path], Path]:
    def make(path: Path, secret: Path) -> Path:
        with h5py.File(path, "w") as file:
            fill(file, secret)
        return path

    return make


def external_values(file: h5py.File, secret: Path) -> None:
    file["ids"] = NAMES
    file.create_dataset("values", (ROWS, 8), "f4", external=[(str(secret), 0, ROWS * 32)])


def external_ids(file: h5py.File, secret: Path) -> None:
    file["values"] = VALUES
    file.create_dataset("ids", (ROWS,), "i4", external=[(str(secret), 0, 4 * ROWS)])


def external_vector(file: h5py.File, secret: Path) -> None:
    file["P1"] = VALUES[0]
    file.create_dataset("P2", (8,), "f4", external=[(str(secret), 0, 32)])


def external_labels(file: h5py.File, secret: Path) -> None:
    file["values"], file["ids"] = VALUES, NAMES
    file.create_dataset("labels", (ROWS,), "i4", external=[(str(secret), 0, 4 * ROWS)])


def virtual_values(file: h5py.File, secret: Path) -> None:
    with h5py.File(secret.with_suffix(".h5"), "w") as other:
        other["x"] = VALUES
    layout = h5py.VirtualLayout((ROWS, 8), "f4")
    layout[:] = h5py.VirtualSource(str(secret.with_suffix(".h5")), "x", (ROWS, 8))
    file["ids"] = NAMES
    file.create_virtual_dataset("values", layout)


def external_link(file: h5py.File, secret: Path) -> None:
    file["ids"], file["values"] = NAMES, h5py.ExternalLink(str(secret.with_suffix(".h5")), "/x")


def soft_link(file: h5py.File, secret: Path) -> None:
    file["group/x"], file["ids"] = VALUES, NAMES
    file["values"] = h5py.SoftLink("/group/x")


def references(file: h5py.File, secret: Path) -> None:
    file["ids"], file["group/x"] = NAMES, 5
    one = file.create_dataset("values", (ROWS,), h5py.ref_dtype)
    one[:] = [file["ids"].ref] * ROWS


def complex_numbers(file: h5py.File, secret: Path) -> None:
    file["ids"], file["values"] = NAMES, VALUES.astype("c8")


def never_written(file: h5py.File, secret: Path) -> None:
    file["ids"] = NAMES
    file.create_dataset("values", (3_000_000_000, 8), "f4", chunks=(1000, 8))


def never_written_compressed(file: h5py.File, secret: Path) -> None:
    file["ids"] = NAMES
    file.create_dataset("values", (3_000_000_000, 8), "f4", chunks=(1000, 8), compression="gzip")


def endless_ids(file: h5py.File, secret: Path) -> None:
    file["values"] = VALUES
    file.create_dataset("ids", (100_000_000_000,), h5py.string_dtype(), chunks=(1000,))


def endless_id(file: h5py.File, secret: Path) -> None:
    file["values"], file["ids"] = VALUES, ["a" * 20_000, *NAMES[1:]]


def broken_chunk(path: Path, secret: Path) -> Path:
    with h5py.File(path, "w") as file:
        file["ids"] = NAMES
        file.create_dataset("values", data=VALUES, chunks=(ROWS, 8), compression="gzip")
        place = file["values"].id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[place : place + 30] = b"\xff" * 30
    path.write_bytes(content)
    return path


def name_that_is_no_text(file: h5py.File, secret: Path) -> None:
    from h5py import h5d, h5s, h5t

    for name in (b"P\xff1", b"P\xff2"):
        one = h5d.create(file.id, name, h5t.IEEE_F32LE, h5s.create_simple((8,)))
        one.write(h5s.ALL, h5s.ALL, VALUES[0])


def unknown_filter(file: h5py.File, secret: Path) -> None:
    from h5py import h5d, h5p, h5s, h5t, h5z

    file["ids"] = NAMES
    creation = h5p.create(h5p.DATASET_CREATE)
    creation.set_chunk((ROWS, 8))
    creation.set_filter(32999, h5z.FLAG_OPTIONAL, (1,))
    one = h5d.create(file.id, b"values", h5t.IEEE_F32LE, h5s.create_simple((ROWS, 8)), creation)
    one.write(h5s.ALL, h5s.ALL, VALUES)


def nested_groups(file: h5py.File, secret: Path) -> None:
    group = file.create_group("g")
    group["again"] = file["/"]
    group["values"] = VALUES


def tab_in_ids(file: h5py.File, secret: Path) -> None:
    file["values"], file["ids"] = VALUES, ["a\tb\n1", *NAMES[1:]]


def tab_in_names(file: h5py.File, secret: Path) -> None:
    for number in range(3):
        file[f"p{number}\t9\ninjected"] = VALUES[number]


def npz(**arrays: Any) -> Callable[[Path, Path], Path]:
    def make(path: Path, secret: Path) -> Path:
        with path.open("wb") as out:
            np.savez(out, allow_pickle=True, **arrays)
        return path

    return make


def npy_header(text: str) -> bytes:
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(text)) + text.encode()


def with_header(text: str) -> Callable[[Path, Path], Path]:
    return lambda path, secret: zipped(path, {"values.npy": npy_header(text)})


def npz_with_a_wrong_checksum(path: Path, secret: Path) -> Path:
    return wrong_checksum(npz(ids=np.array(NAMES), values=VALUES)(path, secret), "values.npy")


def npz_bomb(path: Path, secret: Path) -> Path:
    values = io.BytesIO()
    np.save(values, np.zeros((300_000, 64), "f4"))
    return zipped(path, {"values.npy": values.getvalue()}, zipfile.ZIP_DEFLATED)


def parquet(**columns: Any) -> Callable[[Path, Path], Path]:
    def make(path: Path, secret: Path) -> Path:
        import pyarrow as pa
        import pyarrow.parquet as pq

        names, arrays = zip(*((name.rstrip("_"), pa.array(value)) for name, value in columns.items()), strict=True)
        pq.write_table(pa.Table.from_arrays(list(arrays), names=list(names)), path)
        return path

    return make


def parquet_that_is_no_text(path: Path, secret: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    places, letters = pa.py_buffer(struct.pack("<3i", 0, 1, 2)), pa.py_buffer(b"\xff\xfe")
    bad = pa.Array.from_buffers(pa.string(), 2, [None, places, letters])
    pq.write_table(pa.table({"id": bad, "e0": pa.array([1.0, 2.0]), "e1": pa.array([1.0, 2.0])}), path)
    return path


DESCRIPTION = (
    '{"format": "plm-embeddings", "schema_version": 1, "layout": "packed", "level": "protein", "pooling": "mean", '
    '"model": "x", "model_sha256": "", "layers": [1e999], "dtype": "float32", "dimension": 8}'
)
EMBEDDINGS: dict[str, tuple[Callable[[Path, Path], Path], str]] = {
    "external-values": (hdf5(external_values), "takes its numbers from another"),
    "external-ids": (hdf5(external_ids), "takes its numbers from another"),
    "external-vector": (hdf5(external_vector), "takes its numbers from another"),
    "external-labels": (hdf5(external_labels), "takes its numbers from another"),
    "virtual": (hdf5(virtual_values), "takes its numbers from another"),
    "external-link": (hdf5(external_link), "is a link"),
    "soft-link": (hdf5(soft_link), "is a link"),
    "references": (hdf5(references), "holds no embeddings"),
    "endless-layer": (npz(description=np.array(DESCRIPTION), ids=np.array(NAMES), values=VALUES), "itself wrongly"),
    "complex": (hdf5(complex_numbers), "holds no embeddings"),
    "never-written": (hdf5(never_written), "they are not in the file"),
    "never-written-compressed": (hdf5(never_written_compressed), "would become"),
    "broken-chunk": (broken_chunk, "damaged in the middle|in dimension"),
    "name-no-text": (hdf5(name_that_is_no_text), "not UTF-8"),
    "endless-id": (hdf5(endless_id), "longer than 10,000 letters"),
    "endless-ids": (hdf5(endless_ids), "they are not in the file"),
    "unknown-filter": (hdf5(unknown_filter), "filter that is not read"),
    "group-in-itself": (hdf5(nested_groups), "nested too deeply"),
    "tab-in-hdf5-ids": (hdf5(tab_in_ids), "holds a tab"),
    "tab-in-hdf5-names": (hdf5(tab_in_names), "holds a tab"),
    "tab-in-npz-ids": (npz(ids=np.array(["a\tb\n1", *NAMES[1:]]), values=VALUES), "holds a tab"),
    "line-in-npz-names": (npz(**{"a\nb": VALUES[0], "c": VALUES[1]}), "unsafe member"),
    "objects": (npz(ids=np.array(NAMES, dtype=object), values=VALUES), "only pickle could read"),
    "npz-checksum": (npz_with_a_wrong_checksum, "no complete zip|broken or cut short"),
    "npz-bomb": (npz_bomb, "would become"),
    "npz-shape": (
        with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 8)}"), "does not fit its size",
    ),
    "npz-negative": (with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 8)}"), "no numpy array"),
    "npz-digits": (
        with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (" + DIGITS + ", 8)}"), "no numpy array",
    ),
    "npz-deep": (with_header("(" * 5000 + ")" * 5000), "no numpy array"),
    "npz-records": (npz(ids=np.array(NAMES), values=np.zeros(ROWS, "i4,f4")), "only numbers and text|holds no"),
    "npz-description": (npz(description=np.array(DEEP), ids=np.array(NAMES), values=VALUES), "nested too deeply"),
    "parquet-twice": (parquet(id=["a", "b"], e0=[1.0, 2.0], e0_=[1.0, 2.0]), "appears twice"),
    "parquet-text": (parquet_that_is_no_text, "(?i)utf-8"),
    "parquet-tab": (parquet(id=["a\tb", "b"], e0=[1.0, 2.0], e1=[1.0, 2.0]), "holds a tab"),
    "pickle": (lambda path, secret: path.write_bytes(pickle.dumps([1])) and path, "pickle"),
}


def embeddings_readers(path: Path, out: Path) -> dict[str, list[str | Path]]:
    labels = out / "labels.tsv"
    labels.write_text("id\tlabel\n" + "".join(f"p{number}\t{'ab'[number % 2]}\n" for number in range(ROWS)))
    return {
        "plm_project": ["--embeddings", path, "--methods", "pca", "--coordinates", out / "result"],
        "plm_compare_embeddings": ["--embeddings", path, "--proteins", out / "result"],
        "plm_merge_embeddings": ["--input", path, "--output", out / "result"],
        "plm_train_classifier": ["--embeddings", path, "--labels", labels, "--bundle", out / "result"],
        "plm_predict": [
            "--embeddings", path, "--bundle", DATA / "bundle_simulated_network.zip", "--predictions", out / "result",
        ],
    }


@pytest.mark.parametrize("kind", EMBEDDINGS)
def test_embeddings_that_harm_are_refused_by_every_reader(kind: str, secret: Path, tmp_path: Path) -> None:
    make, message = EMBEDDINGS[kind]
    path = make(tmp_path / "upload", secret)
    for stage, flags in embeddings_readers(path, tmp_path).items():
        line = refused(stage, flags, message, tmp_path / "result")
        assert "not-a-real-password" not in line, stage


@pytest.mark.parametrize("kind", ["parquet-twice", "parquet-text", "pickle"])
def test_the_same_tables_as_proteins(kind: str, secret: Path, tmp_path: Path) -> None:
    make, _ = EMBEDDINGS[kind]
    if kind == "parquet-twice":
        make = parquet(id=["a", "b"], sequence=["MKV", "MKL"], sequence_=["MKV", "MKL"])
    flags = ["--input", make(tmp_path / "upload", secret), "--model", DATA / "tiny_esm2.zip"]
    refused("plm_embed", [*flags, "--embeddings", tmp_path / "e.h5"], ".", tmp_path / "e.h5")


# -------------------------------------------------------------------------------------------------------------- models

CONFIG = json.loads((DATA / "models" / "tiny_esm2" / "config.json").read_text())
LETTERS = (DATA / "models" / "tiny_esm2" / "vocab.txt").read_text().split()
Marker = Path


class _Runs:
    """A pickle that would write a file."""

    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (exec, (f"open({self.marker!r}, 'w')",))


def index(place: str) -> Change:
    """Weights through an index that names another place."""

    def change(held: Contents) -> None:
        names = list(tensors_of(held.pop("model.safetensors")))
        held["model-00001-of-00001.safetensors"] = bytes_of({"dummy": torch.zeros(1)})
        held["model.safetensors.index.json"] = json.dumps({"weight_map": dict.fromkeys(names, place)}).encode()

    return change


def as_pickle(held: Contents) -> None:
    del held["model.safetensors"]
    held["pytorch_model.bin"] = pickle.dumps({"a": _Runs("executed_by_a_pickle")})


def without(*tokens: str) -> Change:
    return raw("vocab.txt", "\n".join(one if one not in tokens else f"<other{at}>" for at, one in enumerate(LETTERS)))


def tokenizer(content: str) -> Change:
    def change(held: Contents) -> None:
        del held["vocab.txt"]
        held["tokenizer.json"] = content.encode()

    return change


def far_too_large(held: Contents) -> None:
    """Few weights that name the layers of a model and the width of its tokens; the others would take terabytes."""
    names = {f"esm.encoder.layer.{n}.attention.self.query.bias": torch.zeros(1) for n in range(2)}
    tokens = {"esm.embeddings.word_embeddings.weight": torch.zeros(33, 100_000, dtype=torch.float16)}
    held["model.safetensors"] = bytes_of({**tokens, **names})
    sizes = {"hidden_size": 100_000, "num_attention_heads": 1000, "intermediate_size": 99_000}
    patched("config.json", **sizes)(held)


def doubled(held: Contents) -> None:
    held["model-00001-of-00002.safetensors"] = held.pop("model.safetensors")
    held["model-00002-of-00002.safetensors"] = held["model-00001-of-00002.safetensors"]


MODELS: dict[str, tuple[Change, str]] = {
    "index-absolute": (index(str(DATA / "models" / "tiny_esm2" / "model.safetensors")), "no part of the model"),
    "index-above": (index("../model.safetensors"), "no part of the model"),
    "index-other-name": (index("secret.txt"), "no part of the model"),
    "index-number": (index(5), "no part of the model"),  # type: ignore[arg-type]
    "index-missing": (index("model-00002-of-00002.safetensors"), "is missing"),
    "index-deep": (lambda held: [index("x")(held), raw("model.safetensors.index.json", DEEP)(held)][-1], "too deeply"),
    "weights-twice": (doubled, "same weights twice"),
    "layers": (patched("config.json", num_hidden_layers=1_000_000), "num_hidden_layers"),
    "layers-9999": (patched("config.json", num_hidden_layers=9_999), "9999 where the weights have 2"),
    "width": (patched("config.json", hidden_size=64), "hidden_size 64 where the weights have 32"),
    "vocabulary-size": (patched("config.json", vocab_size=500_000), "about 16,016,384 numbers"),
    "feed-forward": (patched("config.json", intermediate_size=900_000), "about 115,209,248 numbers"),
    "far-too-large": (far_too_large, "a model of about .* numbers where"),
    "heads": (patched("config.json", num_attention_heads=7), "divided among 7 attention heads"),
    "epsilon": (patched("config.json", layer_norm_eps=0.5), "layer_norm_eps is 0.5"),
    "dropout": (patched("config.json", hidden_dropout_prob=5), "hidden_dropout_prob is 5"),
    "rope": (patched("config.json", rope_theta=-1), "rope_theta is -1"),
    "rope-kind": (patched("config.json", rope_scaling={"type": "yarn", "factor": 9.0}), "rotary positions of another"),
    "text-for-a-number": (patched("config.json", hidden_size="32"), "hidden_size is '32'"),
    "list-for-a-number": (patched("config.json", num_hidden_layers=[2]), "num_hidden_layers is a list"),
    "text-for-a-flag": (patched("config.json", token_dropout="yes"), "token_dropout is 'yes'"),
    "code": (patched("config.json", auto_map={"AutoModel": "this.Model"}), "code of its own"),
    "folding": (patched("config.json", is_folding_model=True), "another kind of model"),
    "decoder": (patched("config.json", is_decoder=True), "another kind of model"),
    "mask-token": (patched("config.json", mask_token_id=5), "mask_token_id 5"),
    "config-deep": (raw("config.json", DEEP), "nested too deeply"),
    "config-list": (raw("config.json", "[]"), "not a JSON object"),
    "config-digits": (raw("config.json", '{"hidden_size": ' + DIGITS + "}"), "a number of 5000 digits"),
    "config-no-text": (raw("config.json", b"\xff\xfe"), "not UTF-8"),
    "config-missing": (raw("config.json", None), r"no config\.json"),
    "no-cls": (without("<cls>"), "lacks <cls>"),
    "no-letter": (without("W"), "does not know the residues W"),
    "vocabulary-no-text": (raw("vocab.txt", b"<cls> \xff"), "not UTF-8"),
    "vocabulary-twice": (raw("vocab.txt", "\n".join([*LETTERS, "A"])), "'A' twice"),
    "letters-out-of-range": (
        raw("vocab.txt", "\n".join([*(f"<{n}>" for n in range(100)), *LETTERS])), "the model knows 33 tokens",
    ),
    "tokenizer-damaged": (tokenizer("{"), "no proper JSON"),
    "tokenizer-deep": (tokenizer(DEEP), "nested too deeply"),
    "tokenizer-empty": (tokenizer('{"model": null}'), "holds no vocabulary"),
    "tokenizer-range": (
        tokenizer(json.dumps({"model": {"vocab": {one: at * 10**9 for at, one in enumerate(LETTERS)}}})), "33 tokens",
    ),
    "pickle": (as_pickle, "could run code and are never read"),
    "weights-cut": (cut("model.safetensors"), "cannot be loaded"),
    "weights-rubbish": (raw("model.safetensors", b"\x00" * 100), "cannot be loaded"),
    "weights-of-another": (
        raw("model.safetensors", bytes_of({"a": torch.zeros(3)})), "are none of such a model",
    ),
    "weights-missing": (raw("model.safetensors", None), "no weights"),
    "member-above": (raw("../escaped.json", "{}"), "unsafe member"),
    "member-absolute": (raw("/tmp/escaped.json", "{}"), "unsafe member"),
}


def model(path: Path, change: Change, compression: int = zipfile.ZIP_STORED) -> Path:
    held = contents(DATA / "tiny_esm2.zip")
    change(held)
    return zipped(path, held, compression)


@pytest.mark.parametrize("kind", MODELS)
def test_models_that_harm_are_refused(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    change, message = MODELS[kind]
    path = model(tmp_path / "model.zip", change)
    (tmp_path / "x.fasta").write_text(">a\nMKTAYIAKQRQISFVK\n")
    flags = ["--input", tmp_path / "x.fasta", "--model", path, "--embeddings", tmp_path / "e.h5", "--device", "cpu"]
    line = refused("plm_embed", flags, message, tmp_path / "e.h5")
    assert "weights_only" not in line, "no advice to load it unsafely"
    assert not (tmp_path / "executed_by_a_pickle").exists() and not (tmp_path.parent / "escaped.json").exists()


@pytest.mark.slow
def test_other_readers_of_models_refuse_the_same(tmp_path: Path) -> None:
    """They share one way in; a case of each sort for each stage."""
    fasta, out = DATA / "simulated_corpus.fasta", tmp_path / "result"
    for kind in ("index-absolute", "layers", "epsilon", "pickle"):
        change, message = MODELS[kind]
        path = model(tmp_path / f"{kind}.zip", change)
        stages: dict[str, list[str | Path]] = {
            "plm_finetune": ["--dataset", DATA / "dataset_sites.tabular", "--model", path, "--bundle", out],
            "plm_pretrain": ["--input", fasta, "--model", path, "--steps", "2", "--output-model", out],
            "plm_distill": [
                "--input", fasta, "--teacher", path, "--student-preset", "tiny", "--steps", "2", "--output-model", out,
            ],
            "plm_compare_models": [
                "--input", fasta, "--model", f"one={path}", "--model", "two=starter", "--scores", out,
            ],
            "plm_classify_sites": [
                "--input", DATA / "simulated_query.fasta", "--bundle", DATA / "bundle_tiny_site.zip", "--model", path,
                "--sites", out,
            ],
            "plm_predict": [
                "--input", DATA / "simulated_query.fasta", "--bundle", DATA / "bundle_tiny_classes.zip",
                "--model", path, "--predictions", out,
            ],
        }
        for stage, flags in stages.items():
            refused(stage, flags, message, out)


def test_a_bomb_is_no_model(tmp_path: Path) -> None:
    path = model(tmp_path / "m.zip", raw("tokenizer.json", bytes(100 * 2**20)), zipfile.ZIP_DEFLATED)
    flags = ["--input", DATA / "simulated_query.fasta", "--model", path, "--embeddings", tmp_path / "e.h5"]
    refused("plm_embed", flags, "would become", tmp_path / "e.h5")


def test_a_wrong_checksum_in_a_model(tmp_path: Path) -> None:
    for member in ("vocab.txt", "special_tokens_map.json", "extra.txt"):
        path = wrong_checksum(model(tmp_path / "m.zip", raw("extra.txt", "never read")), member)
        flags = ["--input", DATA / "simulated_query.fasta", "--model", path, "--embeddings", tmp_path / "e.h5"]
        refused("plm_embed", flags, "no complete zip file", tmp_path / "e.h5")


def test_links_out_of_a_models_folder(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(DATA / "models" / "tiny_esm2", tmp_path / "model"))
    flags = ["--input", DATA / "simulated_query.fasta", "--model", folder, "--embeddings", tmp_path / "e.h5"]
    for name in ("model.safetensors", "vocab.txt", "config.json", "tokenizer_config.json"):
        (folder / name).rename(tmp_path / name)
        (folder / name).symlink_to(tmp_path / name)
        refused("plm_embed", flags, f"{name} is a link that leads out", tmp_path / "e.h5")
        (folder / name).unlink()
        (tmp_path / name).rename(folder / name)


def test_what_else_lies_beside_a_model_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An adapter that names a module to import, generation settings and code: nobody looks at them."""

    def change(held: Contents) -> None:
        evil = {"peft_type": "LORA", "megatron_config": {"a": 1}, "megatron_core": "this", "r": 8}
        held["adapter_config.json"] = json.dumps(evil).encode()
        held["adapter_model.safetensors"] = bytes_of({"x": torch.zeros(1)})
        held["generation_config.json"] = DEEP.encode()
        held["modeling.py"] = b"raise SystemExit('ran')"
        held["tokenizer_config.json"] = json.dumps({"auto_map": {"AutoTokenizer": "modeling.T"}}).encode()
        unused = {
            "_name_or_path": "someone/else", "quantization_config": {"quant_method": "awq"}, "adapters": {"a": 1},
            "torch_dtype": "int8", "attn_implementation": "flash", "architectures": ["Evil"],
        }
        patched("config.json", **unused)(held)

    sys.modules.pop("this", None)
    for name, path in (("evil", model(tmp_path / "evil.zip", change)), ("plain", DATA / "tiny_esm2.zip")):
        run(
            "plm_embed", "--input", DATA / "simulated_query.fasta", "--model", path, "--precision", "fp32", "--device",
            "cpu", "--embeddings", tmp_path / f"{name}.h5",
        )
    assert "this" not in sys.modules and "Zen of Python" not in capsys.readouterr().out
    with h5py.File(tmp_path / "evil.h5") as one, h5py.File(tmp_path / "plain.h5") as other:
        np.testing.assert_array_equal(one["values"][()], other["values"][()])
        assert one.attrs["model_sha256"] == other.attrs["model_sha256"], "what is not acted on changes nothing"


# ------------------------------------------------------------------------------------------------------------- bundles


def rewritten(source: Path, path: Path, change: Change) -> Path:
    """A bundle with something changed and a manifest that lists it."""
    held = contents(source)
    change(held)
    try:
        manifest = json.loads(held["manifest.json"])
    except (ValueError, KeyError, RecursionError):
        return zipped(path, held)
    if isinstance(manifest, dict) and isinstance(manifest.get("files"), dict):
        listed = {name: hashlib.sha256(data).hexdigest() for name, data in held.items() if name != "manifest.json"}
        manifest["files"] = listed
        held["manifest.json"] = json.dumps(manifest).encode()
    return zipped(path, held)


def adapter(**fields: Any) -> Change:
    def change(held: Contents) -> None:
        for number in (0, 1):
            patched(f"members/{number}/adapter/adapter_config.json", **fields)(held)

    return change


def moved(held: Contents) -> None:
    """Members that a manifest says are elsewhere."""
    manifest = json.loads(held["manifest.json"])
    for number, member in enumerate(manifest["members"]):
        member["path"] = str(DATA / "elsewhere" / str(number))
    for name in [name for name in held if name.startswith("members/")]:
        del held[name]
    held["manifest.json"] = json.dumps(manifest).encode()


SITE, CLASSES = DATA / "bundle_tiny_site.zip", DATA / "bundle_tiny_classes.zip"
HEAD = "members/0/head.safetensors"
MANIFEST = "manifest.json"
MEMBER = {"fold": None, "mean": 0.0, "path": ".", "sd": 1.0, "seed": 1, "temperature": 1.0}
BASE = json.loads(contents(SITE)[MANIFEST])["base"]
HEAD_SIZES = json.loads(contents(SITE)[MANIFEST])["head"]

SITE_BUNDLES: dict[str, tuple[Change, str]] = {
    "import": (adapter(megatron_config={"a": 1}, megatron_core="this"), "megatron_config"),
    "import-core": (adapter(megatron_core="this"), "megatron_core"),
    "xlora": (adapter(peft_type="XLORA", adapters={"0": "someone/model"}), "only LoRA, DoRA and IA3"),
    "prompt": (adapter(peft_type="PROMPT_TUNING", tokenizer_name_or_path="a/b"), "only LoRA, DoRA and IA3"),
    "kind-number": (adapter(peft_type=5), "peft_type is 5"),
    "regex": (adapter(target_modules="(a+)+$"), "no name"),
    "regex-disguised": (adapter(target_modules=r"(.*\.)?(((a|aa)+)+$)"), "no name"),
    "regex-in-a-list": (adapter(target_modules=["query", "(a+)+$"]), "no name"),
    "targets-number": (adapter(target_modules=5), "target_modules"),
    "rank": (adapter(r=100_000), "r is 100000"),
    "rank-9999": (adapter(r=9_999), "does not fit its description"),
    "rank-pattern": (adapter(rank_pattern={".*": 64}), "rank_pattern"),
    "modules-to-save": (adapter(modules_to_save=["embeddings"]), "modules_to_save"),
    "layers-pattern": (adapter(layers_pattern="(a+)+", layers_to_transform=[1]), "layers_"),
    "loftq": (adapter(init_lora_weights="loftq"), "init_lora_weights"),
    "eva": (adapter(eva_config={"rho": 2.0}), "eva_config"),
    "rslora": (adapter(use_rslora=True), "use_rslora"),
    "unknown-field": (adapter(run_this="os.system"), "run_this"),
    "adapter-deep": (raw("members/0/adapter/adapter_config.json", DEEP), "nested too deeply"),
    "adapter-missing": (raw("members/0/adapter/adapter_model.safetensors", None), "is missing"),
    "adapter-list": (raw("members/1/adapter/adapter_config.json", "[]"), "not a JSON object"),
    "adapter-of-another": (
        raw("members/0/adapter/adapter_model.safetensors", bytes_of({"x": torch.zeros(2)})), "does not fit",
    ),
    "head-missing": (raw(HEAD, None), "is missing"),
    "head-rubbish": (raw(HEAD, struct.pack("<Q", 2) + b"{}" + bytes(9)), "cannot be read|does not fit"),
    "head-of-another": (raw(HEAD, bytes_of({"x": torch.zeros(2)})), "does not fit"),
    "members-elsewhere": (moved, "is missing"),
    "manifest-deep": (raw(MANIFEST, DEEP), "nested too deeply"),
    "manifest-list": (raw(MANIFEST, "[]"), "not a JSON object"),
    "manifest-digits": (raw(MANIFEST, '{"schema_version": ' + DIGITS + "}"), "5000 digits"),
    "manifest-twice": (raw(MANIFEST, '{"kind": "finetuned", "kind": "embedding"}'), "comes twice"),
    "manifest-pickle": (raw(MANIFEST, pickle.dumps({"a": 1})), "may be a pickle"),
    "files-null": (patched(MANIFEST, files=None), "files"),
    "files-list": (patched(MANIFEST, files=[]), "files is a list"),
    "files-numbers": (patched(MANIFEST, files=5), "files is 5"),
    "kind-list": (patched(MANIFEST, kind=[]), "kind is a list"),
    "kind-unknown": (patched(MANIFEST, kind="other"), "unknown kind"),
    "base-null": (patched(MANIFEST, base=None), "base"),
    "base-text": (patched(MANIFEST, base="tiny_esm2"), "base is 'tiny_esm2'"),
    "base-without-digest": (patched(MANIFEST, base={"id": "tiny_esm2"}), "sha256"),
    "base-digest-number": (patched(MANIFEST, base={**BASE, "sha256": 5}), "sha256 is 5"),
    "base-digest-rubbish": (patched(MANIFEST, base={**BASE, "sha256": "x" * 64}), "fingerprint"),
    "members-null": (patched(MANIFEST, members=None), "members"),
    "members-empty": (patched(MANIFEST, members=[]), "members is a list"),
    "members-text": (patched(MANIFEST, members=["members/0"]), "members"),
    "members-number": (patched(MANIFEST, members=7), "members is 7"),
    "member-without-temperature": (patched(MANIFEST, members=[{"path": "."}]), "temperature"),
    "member-temperature": (patched(MANIFEST, members=[{**MEMBER, "temperature": 0}] * 2), "temperature is 0"),
    "member-seed": (patched(MANIFEST, members=[{**MEMBER, "seed": "one"}] * 2), "seed is 'one'"),
    "window-text": (patched(MANIFEST, window="33"), "window is '33'"),
    "window-negative": (patched(MANIFEST, window=-1), "window is -1"),
    "window-huge": (patched(MANIFEST, window=10**24), "window"),
    "threshold-null": (patched(MANIFEST, threshold=None), "threshold"),
    "threshold-nan": (patched(MANIFEST, threshold=float("nan")), "threshold is nan"),
    "threshold-list": (patched(MANIFEST, threshold=[0.5]), "threshold is a list"),
    "class-thresholds-zero": (patched(MANIFEST, class_thresholds=[0, 0.5]), "class_thresholds"),
    "class-thresholds-text": (patched(MANIFEST, class_thresholds="0.5"), "class_thresholds"),
    "class-thresholds-of-other-classes": (patched(MANIFEST, class_thresholds=[0.5] * 9), "9 class thresholds"),
    "labels-numbers": (patched(MANIFEST, labels=[0, 1]), "labels"),
    "labels-same": (patched(MANIFEST, labels=["1", "1"]), "names a class twice"),
    "level-list": (patched(MANIFEST, task={"level": ["site"], "target": "class"}), "level is a list"),
    "level-unknown": (patched(MANIFEST, task={"level": "planet", "target": "class"}), "does not know"),
    "task-text": (patched(MANIFEST, task="site"), "task is 'site'"),
    "method-unknown": (patched(MANIFEST, method="prefix"), "method is 'prefix'"),
    "head-text": (patched(MANIFEST, head="big"), "head is 'big'"),
    "head-width": (patched(MANIFEST, head={**HEAD_SIZES, "width": 1_000_000}), "does not fit its description"),
    "head-hidden": (patched(MANIFEST, head={**HEAD_SIZES, "hidden_size": 999_999}), "the model gives 32"),
    "head-reach": (patched(MANIFEST, head={**HEAD_SIZES, "reach": 10**9}), "reach is"),
    "head-unknown": (patched(MANIFEST, head={**HEAD_SIZES, "code": "x"}), "unknown settings"),
    "calibration-null": (
        patched(MANIFEST, calibration={"validation_scores": {"negatives": None}}, window=[]), "window is a list",
    ),
    "conformal": (patched(MANIFEST, conformal={"outputs": 10**6, "scores": [0.1]}), "outputs is 1000000"),
    "conformal-classes": (
        patched(MANIFEST, conformal={"outputs": 2, "scores": [0.1], "classes": [-1]}), "classes",
    ),
    "calibration-list": (patched(MANIFEST, calibration=[1]), "calibration is a list"),
    "calibration-scores": (
        patched(MANIFEST, calibration={"validation_scores": {"negatives": {"scores": ["a"]}}}), "scores",
    ),
    "prevalence": (patched(MANIFEST, training_prevalence="half"), "training_prevalence is 'half'"),
    "selftest-missing": (raw("self_test.json", None), "self_test.json"),
    "selftest-list": (raw("self_test.json", "[]"), "self_test.json"),
    "selftest-null": (patched("self_test.json", sequences=None), "sequences"),
    "selftest-expected": (patched("self_test.json", expected="x"), "no table of numbers"),
    "selftest-uneven": (patched("self_test.json", expected=[[1], [1, 2]]), "no table of numbers"),
    "selftest-positions": (patched("self_test.json", positions=["a"]), "positions"),
    "selftest-letters": (patched("self_test.json", sequences=["M\u00e9", "MK", "MK", "MK"]), "no protein"),
    "selftest-precision": (patched("self_test.json", precision="int3"), "precision"),
    "selftest-deep": (raw("self_test.json", DEEP), "nested too deeply"),
}


@pytest.mark.parametrize("kind", SITE_BUNDLES)
def test_bundles_of_fine_tuned_models_that_harm(kind: str, tmp_path: Path) -> None:
    change, message = SITE_BUNDLES[kind]
    sys.modules.pop("this", None)
    path = rewritten(SITE, tmp_path / "bundle.zip", change)
    flags = ["--input", DATA / "simulated_query.fasta", "--bundle", path, "--model", DATA / "models" / "tiny_esm2"]
    out = tmp_path / "s.tsv"
    refused("plm_classify_sites", [*flags, "--device", "cpu", "--sites", out], message, out)
    assert "this" not in sys.modules


EMBEDDING = json.loads(contents(CLASSES)[MANIFEST])["embedding"]
CLASS_BUNDLES: dict[str, tuple[Change, str]] = {
    "manifest-deep": (raw(MANIFEST, DEEP), "nested too deeply"),
    "kind-number": (patched(MANIFEST, kind=5), "does not know|kind"),
    "embedding-list": (patched(MANIFEST, embedding=[]), "embedding is a list"),
    "embedding-null": (patched(MANIFEST, embedding=None), "embedding"),
    "dimension": (patched(MANIFEST, embedding={**EMBEDDING, "dimension": 10**24}), "dimension"),
    "layers": (patched(MANIFEST, embedding={**EMBEDDING, "layers": ["a"]}), "layers"),
    "head-null": (patched(MANIFEST, head=None), "head"),
    "head-kind": (patched(MANIFEST, head={"kind": "forest"}), "kind is 'forest'"),
    "classes-text": (patched(MANIFEST, classes="abc"), "classes is 'abc'"),
    "classes-null": (patched(MANIFEST, classes=None), "classes"),
    "temperature": (patched(MANIFEST, temperature=[1]), "temperature is a list"),
    "threshold": (patched(MANIFEST, threshold=7), "threshold is 7"),
    "novelty": (patched(MANIFEST, novelty={"k": 10**20, "distances": [], "rows": 1}), "k is"),
    "novelty-list": (patched(MANIFEST, novelty=[1]), "novelty is a list"),
    "head-missing": (raw("head.safetensors", None), "is missing"),
    "head-cut": (cut("head.safetensors"), "cannot be read|parts"),
    "head-of-another": (raw("head.safetensors", bytes_of({"x": torch.zeros(2)})), "do not fit each other"),
    "reference-list": (raw("reference.json", "[]"), "not a JSON object"),
    "reference-labels": (patched("reference.json", labels=[]), "0 labels for"),
    "reference-numbers": (patched("reference.json", ids=[1, 2]), "ids"),
    "reference-tab": (patched("reference.json", ids=["a\tb\nc"] * 15), "tab or a line end"),
    "selftest-rows": (patched("self_test.json", rows=[10**15]), "rows"),
    "selftest-rows-text": (patched("self_test.json", rows="all"), "rows is 'all'"),
    "selftest-expected": (patched("self_test.json", expected={"a": 1}), "do not fit|self-test"),
    "pickle": (raw("head.pkl", pickle.dumps([1])), "pickles and code are refused"),
    "code": (raw("run.py", "print(1)"), "pickles and code are refused"),
}


@pytest.mark.parametrize("kind", CLASS_BUNDLES)
def test_bundles_of_classifiers_that_harm(kind: str, tmp_path: Path) -> None:
    change, message = CLASS_BUNDLES[kind]
    path, out = rewritten(CLASSES, tmp_path / "bundle.zip", change), tmp_path / "out"
    embeddings = DATA / "class_beta.h5"
    for stage, flags in {
        "plm_predict": ["--embeddings", embeddings, "--bundle", path, "--predictions", out],
        "plm_compare_embeddings": ["--embeddings", embeddings, "--reference", path, "--proteins", out],
        "plm_compress_classifier": ["--bundle", path, "--embeddings", embeddings, "--compressed-bundle", out],
    }.items():
        if stage == "plm_compare_embeddings" and kind == "kind-number":
            message = "kind"
        refused(stage, list(flags), message, out)


def test_a_bundle_with_a_wrong_checksum_and_a_bomb(tmp_path: Path) -> None:
    flags: list[str | Path] = ["--input", DATA / "simulated_query.fasta", "--model", DATA / "tiny_esm2.zip", "--bundle"]
    out = tmp_path / "out"
    path = wrong_checksum(rewritten(CLASSES, tmp_path / "b.zip", lambda held: None), "README.md")
    refused("plm_predict", [*flags, path, "--predictions", out], "no complete zip file.*CRC", out)
    held = contents(CLASSES)
    held["README.md"] = b"a" * (200 * 2**20)
    path = zipped(tmp_path / "bomb.zip", held, zipfile.ZIP_DEFLATED)
    refused("plm_predict", [*flags, path, "--predictions", out], "would become", out)


def test_a_name_with_tabs_and_lines_stays_in_its_cell(tmp_path: Path) -> None:
    path = rewritten(CLASSES, tmp_path / "b.zip", patched(MANIFEST, name="good\t0\nforged\trow", licence="a\nb"))
    run(
        "plm_predict", "--input", DATA / "simulated_query.fasta", "--model", DATA / "tiny_esm2.zip", "--bundle", path,
        "--device", "cpu", "--predictions", tmp_path / "p.tsv",
    )
    lines = (tmp_path / "p.tsv").read_text().splitlines()
    assert len({line.count("\t") for line in lines}) == 1
    assert not any(line.startswith("forged") for line in lines) and "good 0 forged row" in lines[1]


def swapped(held: Contents) -> None:
    letters = list(LETTERS)
    one, other = letters.index("L"), letters.index("W")
    letters[one], letters[other] = letters[other], letters[one]
    held["vocab.txt"] = "\n".join(letters).encode()


SAME_WEIGHTS: dict[str, Change] = {
    "letters-swapped": swapped,
    "epsilon": patched("config.json", layer_norm_eps=1e-3),
    "rope": patched("config.json", rope_theta=500.0),
    "token-dropout": patched("config.json", token_dropout=False),
}


@pytest.mark.parametrize("kind", SAME_WEIGHTS)
def test_a_model_of_the_same_weights_that_answers_otherwise_is_another(kind: str, tmp_path: Path) -> None:
    path = model(tmp_path / "tiny_esm2.zip", SAME_WEIGHTS[kind])
    query = DATA / "simulated_query.fasta"
    flags = ["--input", query, "--bundle", CLASSES, "--model", path, "--predictions", tmp_path / "p.tsv"]
    refused("plm_predict", flags, "differ in their configuration or vocabulary", tmp_path / "p.tsv")
    for name, one in (("a", path), ("b", DATA / "tiny_esm2.zip")):
        run("plm_embed", "--input", query, "--model", one, "--device", "cpu", "--embeddings", tmp_path / f"{name}.h5")
    parts = ["--input", tmp_path / "a.h5", "--input", tmp_path / "b.h5"]
    out = tmp_path / "m.h5"
    refused("plm_merge_embeddings", [*parts, "--output", out], "configuration or vocabulary", out)
    flags = ["--embeddings", tmp_path / "a.h5", "--bundle", CLASSES, "--predictions", tmp_path / "p.tsv"]
    refused("plm_predict", flags, "configuration or vocabulary", tmp_path / "p.tsv")


def test_old_bundles_still_load_with_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They hold a fingerprint of the weights alone."""
    run(
        "plm_classify_sites", "--input", DATA / "simulated_query.fasta", "--bundle", SITE, "--model",
        DATA / "models" / "tiny_esm2", "--device", "cpu", "--sites", tmp_path / "s.tsv",
    )
    assert "fingerprint of the model's weights alone" in capsys.readouterr().out
    assert (tmp_path / "s.tsv").exists()


def test_blanks_order_and_unused_fields_do_not_make_another_model(tmp_path: Path) -> None:
    def change(held: Contents) -> None:
        content = json.loads(held["config.json"])
        content = dict(sorted(content.items(), reverse=True)) | {"transformers_version": "1", "finetuning_task": None}
        del content["rope_theta"]  # its default
        held["config.json"] = json.dumps(content, indent=7).encode()
        held["vocab.txt"] = held["vocab.txt"].replace(b"\n", b"\r\n")

    from plm.model.checkpoint import resolve_model

    one = resolve_model(str(model(tmp_path / "m.zip", change)), workdir=tmp_path / "a")
    assert one.sha256 == resolve_model(str(DATA / "tiny_esm2.zip"), workdir=tmp_path / "b").sha256


# ----------------------------------------------------------------------------------------------- caches, checkpoints

CACHE = DATA / "teacher_cache_tiny_esm2.zip"
CACHES: dict[str, tuple[Change, str]] = {
    "deep": (raw("cache.json", DEEP), "nested too deeply"),
    "list": (raw("cache.json", "[]"), "not a JSON object"),
    "content": (patched("cache.json", content=5), "content is 5"),
    "sentence": (patched("cache.json", sentence=[]), "sentence is a list"),
    "missing": (raw("cache.json", None), "not empty and holds no teacher cache"),
    "extra": (raw("extra.json", "{}"), "which no cache holds"),
    "shard-name": (raw("shard_x.safetensors", bytes_of({"x": torch.zeros(1)})), "which no cache holds"),
    "manifest-deep": (raw(MANIFEST, DEEP), "nested too deeply"),
}


def distill(cache: Path, out: Path) -> list[str | Path]:
    return [
        "--input", DATA / "simulated_corpus.fasta", "--teacher", DATA / "models" / "tiny_esm2", "--cache-only",
        "--teacher-cache", cache, "--output-cache", out, "--device", "cpu", "--precision", "fp32",
    ]


@pytest.mark.parametrize("kind", CACHES)
def test_teacher_caches_that_harm(kind: str, tmp_path: Path) -> None:
    change, message = CACHES[kind]
    path = rewritten(CACHE, tmp_path / "cache.zip", change)
    refused("plm_distill", distill(path, tmp_path / "out.zip"), message, tmp_path / "out.zip")


def test_an_old_teacher_cache_still_answers_with_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It holds a fingerprint of the teacher's weights alone."""
    flags = distill(CACHE, tmp_path / "out.zip")
    flags[1] = DATA / "simulated_query.fasta"
    run("plm_distill", *flags, "--weight-hidden", "0", "--mask-sets", "1")
    told = capsys.readouterr().out
    assert "fingerprint of the model's weights alone" in told and "6 answers are in the teacher cache, 0 are" in told
    assert contents(tmp_path / "out.zip")["cache.json"] == contents(CACHE)["cache.json"], "it stays what it was"


def test_a_shard_that_contradicts_itself_is_computed_anew(tmp_path: Path, tiny_esm2: Path) -> None:
    from plm.jobs.distill.teacher import Wants
    from plm.jobs.distill.teacher_cache import _fits

    wants = Wants(logits=True, top=0, pooled=False, hidden=False, layer=0, represent="")
    shard = tensors_of(contents(CACHE)["shard_000000.safetensors"])
    entries = {name: shard[name].numpy() for name in ("digests", "sets", "masked", "residues")}
    shapes = {name: tuple(value.shape) for name, value in shard.items()}
    assert _fits(entries, shapes, wants)
    assert not _fits({**entries, "masked": entries["masked"] + 1}, shapes, wants)
    assert not _fits({**entries, "masked": -entries["masked"]}, shapes, wants)
    assert not _fits({**entries, "digests": entries["digests"][:, :8]}, shapes, wants)
    assert not _fits(entries, {name: shape for name, shape in shapes.items() if name != "logits"}, wants)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str | Path]]:
    """A real checkpoint of plm_finetune, stopped at once, and the flags that made it."""
    folder = tmp_path_factory.mktemp("checkpoint")
    flags: list[str | Path] = [
        "--dataset", DATA / "dataset_sites.tabular", "--model", DATA / "models" / "tiny_esm2", "--epochs", "2",
        "--device", "cpu", "--precision", "fp32", "--seed", "1",
    ]
    stop = ["--time-limit", "0", "--checkpoint", folder / "c.zip", "--bundle", folder / "b.zip"]
    run("plm_finetune", *flags, *stop)
    return folder / "c.zip", flags


def fast(held: Contents) -> None:
    """A learning rate that is a word."""
    content = json.loads(held["state/optimizer.json"])
    content["groups"][0]["lr"] = "fast"
    held["state/optimizer.json"] = json.dumps(content).encode()


def state_of_another_kind(field: str, value: torch.Tensor | None) -> Change:
    """The optimiser's state of some parameter, replaced or left out."""

    def change(held: Contents) -> None:
        state = tensors_of(held["state/optimizer.safetensors"])
        name = next(name for name in state if name.endswith(field))
        kept = {one: held_value for one, held_value in state.items() if one != name}
        held["state/optimizer.safetensors"] = bytes_of(kept if value is None else {**kept, name: value})

    return change


CHECKPOINTS: dict[str, tuple[Change, str]] = {
    "deep": (raw("checkpoint.json", DEEP), "nested too deeply"),
    "list": (raw("checkpoint.json", "[]"), "not a JSON object"),
    "missing": (raw("checkpoint.json", None), "no checkpoint"),
    "version": (patched("checkpoint.json", schema_version=[]), "schema_version is a list"),
    "no-identity": (patched("checkpoint.json", identity=...), "lacks identity"),
    "identity-list": (patched("checkpoint.json", identity=[]), "identity is a list"),
    "no-done": (patched("checkpoint.json", done=...), "lacks done"),
    "done-many": (patched("checkpoint.json", done=10**9), "done is"),
    "under-way": (patched("checkpoint.json", under_way="yes"), "under_way is 'yes'"),
    "budget": (patched("checkpoint.json", budget={"tokens": "many"}), "tokens is 'many'"),
    "budget-text": (patched("checkpoint.json", budget="x"), "budget is 'x'"),
    "pickle": (raw("state/optimizer.pt", pickle.dumps([1])), "no data that it may hold"),
    "no-weights": (raw("state/weights.safetensors", None), "lacks weights.safetensors"),
    "no-optimizer": (raw("state/optimizer.json", None), "lacks optimizer.json"),
    "cut-weights": (cut("state/weights.safetensors"), "cannot be read"),
    "other-weights": (raw("state/weights.safetensors", bytes_of({"x": torch.zeros(2)})), "do(es)? not fit"),
    "progress-deep": (raw("state/progress.json", DEEP), "nested too deeply"),
    "progress-null": (patched("state/progress.json", history=None), "history"),
    "progress-text": (patched("state/progress.json", stale="x"), "stale is 'x'"),
    "trainer": (raw("state/trainer_state.json", "[]"), "not a JSON object"),
    "trainer-step": (patched("state/trainer_state.json", global_step="x"), "global_step is 'x'"),
    "optimizer-list": (raw("state/optimizer.json", "[]"), "not a JSON object"),
    "optimizer-groups": (patched("state/optimizer.json", groups=[]), "groups"),
    "optimizer-rate": (fast, "lr is not what it must be"),
    "optimizer-schedule": (patched("state/optimizer.json", schedule={"last_epoch": "x"}), "last_epoch"),
    "optimizer-tensors": (
        raw("state/optimizer.safetensors", bytes_of({"999.exp_avg": torch.zeros(2)})), "does not fit this training",
    ),
    "optimizer-step": (
        state_of_another_kind(".step", torch.tensor(255, dtype=torch.uint8)), "does not fit this training",
    ),
    "optimizer-less": (state_of_another_kind(".step", None), "does not fit this training"),
    "optimizer-scalar": (state_of_another_kind(".exp_avg", torch.tensor(1.0)), "does not fit this training"),
    "random": (patched("state/random.json", python=[1]), "random numbers"),
    "random-state": (raw("state/random.safetensors", bytes_of({"torch": torch.zeros(2)})), "random numbers"),
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_checkpoints_that_harm(kind: str, checkpoint: tuple[Path, list[str | Path]], tmp_path: Path) -> None:
    change, message = CHECKPOINTS[kind]
    held = contents(checkpoint[0])
    change(held)
    path = zipped(tmp_path / "c.zip", held)
    flags = [*checkpoint[1], "--resume", path, "--bundle", tmp_path / "b.zip"]
    refused("plm_finetune", flags, message, tmp_path / "b.zip")


def test_a_checkpoint_sets_nothing_but_its_own_fields(
    checkpoint: tuple[Path, list[str | Path]], tmp_path: Path
) -> None:
    held = contents(checkpoint[0])
    patched("state/progress.json", total_steps=10**9, on_checkpoint="x", sampler=None)(held)
    callbacks = {"TrainerControl": {"args": 5}}
    patched("state/trainer_state.json", best_model_checkpoint="/etc", stateful_callbacks=callbacks)(held)
    run("plm_finetune", *checkpoint[1], "--resume", zipped(tmp_path / "c.zip", held), "--bundle", tmp_path / "b.zip")
    assert (tmp_path / "b.zip").exists()


@pytest.mark.slow
def test_a_damaged_checkpoint_that_was_kept_is_set_aside(
    checkpoint: tuple[Path, list[str | Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The user never gave it, so it may not stop every retry."""
    kept = tmp_path / "kept"
    kept.mkdir()
    monkeypatch.setenv("PLM_CHECKPOINT_DIR", str(kept))
    from plm.training import training_state

    names: list[str] = []
    plain = training_state.key
    monkeypatch.setattr(training_state, "key", lambda content: names.append(plain(content)) or plain(content))
    run("plm_finetune", *checkpoint[1], "--bundle", tmp_path / "first.zip")
    path = kept / f"plm_finetune-{names[-1][:32]}.zip"
    path.write_bytes(checkpoint[0].read_bytes()[:-100])
    run("plm_finetune", *checkpoint[1], "--bundle", tmp_path / "again.zip")
    assert "is set aside" in capsys.readouterr().out
    assert [one.suffix for one in kept.iterdir()] == [".damaged"]
    assert (tmp_path / "again.zip").read_bytes() == (tmp_path / "first.zip").read_bytes()


@pytest.mark.slow
def test_a_pretraining_checkpoint_without_its_fields(tmp_path: Path) -> None:
    flags: list[str | Path] = [
        "--input", DATA / "simulated_corpus.fasta", "--preset", "tiny", "--steps", "4", "--batch-tokens", "600",
        "--device", "cpu", "--precision", "fp32", "--holdout", "0.2", "--evaluate-every", "2", "--warmup-steps", "1",
    ]
    made = ["--time-limit", "0", "--output-model", tmp_path / "m.zip", "--checkpoint", tmp_path / "c.zip"]
    run("plm_pretrain", *flags, *made)
    out = tmp_path / "again.zip"
    for change, message in (
        (patched("checkpoint.json", step="x"), "step is 'x'"), (patched("checkpoint.json", step=...), "lacks step"),
        (patched("checkpoint.json", history="x"), "history"), (patched("checkpoint.json", tokens=-1), "tokens is -1"),
        (raw("model.safetensors", None), "lacks model.safetensors"),
        (raw("model.safetensors", bytes_of({"x": torch.zeros(1)})), "do(es)? not fit"),
        (raw("checkpoint.json", DEEP), "nested too deeply"),
    ):
        held = contents(tmp_path / "c.zip")
        change(held)
        path = zipped(tmp_path / "bad.zip", held)
        refused("plm_pretrain", [*flags, "--resume", path, "--output-model", out], message, out)


def test_nothing_was_left_in_the_working_folder() -> None:
    assert not os.path.lexists("executed_by_a_pickle")
