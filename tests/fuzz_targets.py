"""Readers of strangers' files, sound files for each, and ways to damage them: what fuzzing is made of.

``read`` of a target takes a file; it may only return or raise :class:`plm.errors.UserError`. Used by ``test_fuzz.py``
for seconds and by ``scripts/fuzz`` for hours.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

from plm.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "test-data"
LARGEST = 200_000
"""Bytes of a file at most: readers are tried with many small files."""


@dataclass(frozen=True)
class Target:
    """A reader.

    Attributes:
        name: What it reads.
        suffix: Of the files.
        seeds: Makes sound files.
        read: Reads one; is given the file and an empty folder.
    """

    name: str
    suffix: str
    seeds: Callable[[], list[bytes]]
    read: Callable[[Path, Path], Any]


def check(target: Target, data: bytes) -> bool:
    """Whether a reader takes a file; anything but a UserError of one line comes through."""
    with tempfile.TemporaryDirectory() as folder:
        path, scratch = Path(folder) / f"upload{target.suffix}", Path(folder) / "scratch"
        path.write_bytes(data)
        scratch.mkdir()
        try:
            target.read(path, scratch)
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 2000, "more than a line"
            return False
    return True


# --------------------------------------------------------------------------------------------------------------- seeds


def _files(*names: str) -> Callable[[], list[bytes]]:
    return lambda: [(DATA / name).read_bytes()[:LARGEST] for name in names]


def _made(*contents: bytes) -> Callable[[], list[bytes]]:
    return lambda: list(contents)


def _head(name: str, lines: int = 12) -> bytes:
    return b"".join((DATA / name).read_bytes().splitlines(keepends=True)[:lines])


def _heads(*names: str) -> Callable[[], list[bytes]]:
    return lambda: [_head(name) for name in names]


def _hdf5() -> list[bytes]:
    import h5py
    import numpy as np

    made = []
    for chunks in (None, (4, 8)):
        held = BytesIO()
        with h5py.File(held, "w") as file:
            file["ids"] = [f"p{at}" for at in range(12)]
            file.create_dataset("values", data=np.ones((12, 8), "f4"), chunks=chunks)
        made.append(held.getvalue())
    return [*made, (DATA / "embeddings_part_1.h5").read_bytes()]


def _npz() -> list[bytes]:
    import numpy as np

    held = BytesIO()
    np.savez(held, ids=np.array([f"p{at}" for at in range(12)]), values=np.ones((12, 8), "f4"))
    return [held.getvalue()]


def _parquet() -> list[bytes]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    held = BytesIO()
    pq.write_table(pa.table({"id": ["a", "b", "c"], "e0": [1.0, 2.0, 3.0], "e1": [3.0, 1.0, 2.0]}), held)
    return [held.getvalue()]


def _torch_files() -> list[bytes]:
    import torch

    made = []
    for content in ({"a.weight": torch.ones(3, 4), "b": torch.zeros(2)}, {"model": {"x": torch.ones(2)}, "args": {}}):
        for zipped in (True, False):
            held = BytesIO()
            torch.save(content, held, _use_new_zipfile_serialization=zipped)
            made.append(held.getvalue())
    return made


def _structures() -> list[bytes]:
    with zipfile.ZipFile(DATA / "simulated_structures.zip") as archive:
        held = [archive.read(name)[:20_000] for name in archive.namelist()[:3]]
    return [*held, gzip.compress(held[0])]


def _member(archive: str, name: str) -> Callable[[], list[bytes]]:
    def made() -> list[bytes]:
        with zipfile.ZipFile(DATA / archive) as opened:
            return [opened.read(name)]

    return made


# -------------------------------------------------------------------------------------------------------------- reading


def _proteins(path: Path, scratch: Path) -> None:
    from plm.data.proteins import read_proteins

    list(read_proteins(path))


def _fasta(path: Path, scratch: Path) -> None:
    from plm.data.fasta import clean, read_fasta

    for record in read_fasta(path):
        clean(record.sequence[:5000])


def _table(path: Path, scratch: Path) -> None:
    from plm.data.tables import read_table

    read_table(path, header=None)


def _dataset(path: Path, scratch: Path) -> None:
    from plm.data import dataset_table

    frame = dataset_table.read_dataset(path)
    dataset_table.labelled_rows(frame)


def _predictions(path: Path, scratch: Path) -> None:
    from plm.scoring import predictions

    predictions.gather([("upload", predictions.read_predictions(path))], [])


def _sites(path: Path, scratch: Path) -> None:
    from plm.data.sites import read_listings
    from plm.data.tables import read_table

    read_listings(read_table(path, header=None), ("", "", ""), None, "--sites")


def _embeddings(path: Path, scratch: Path) -> None:
    from plm.data.embeddings.files import read_embeddings

    with read_embeddings(path) as opened:
        for _ in opened.records(0, min(len(opened), 20)):
            pass


def _document(path: Path, scratch: Path) -> None:
    from plm.received.documents import cleaned, read_object

    cleaned(read_object(path))


def _archive(path: Path, scratch: Path) -> None:
    from plm.received.archives import Archive

    with Archive(path, "archive", "Make it again") as opened:
        opened.unpack(scratch, digests=True)


def _safetensors(path: Path, scratch: Path) -> None:
    from plm.received import tensors

    tensors.shapes(path)
    tensors.load_torch(path)


def _weights(path: Path, scratch: Path) -> None:
    from plm.received import tensors

    tensors.load_pickled(path, path.name)


def _training_checkpoint(path: Path, scratch: Path) -> None:
    from plm.received.training_checkpoints import read_training_checkpoint

    read_training_checkpoint(path, path.name)


def _vocabulary(name: str) -> Callable[[Path, Path], None]:
    def read(path: Path, scratch: Path) -> None:
        from plm.received.vocabularies import read_vocabulary

        (scratch / name).write_bytes(path.read_bytes())
        read_vocabulary(scratch, "model")

    return read


def _configuration(path: Path, scratch: Path) -> None:
    from plm.model import configuration
    from plm.model.families import FAMILIES
    from plm.received.documents import read_object

    config = read_object(path)
    for family in FAMILIES:
        try:
            configuration.settings_of(config, family, "model")
        except UserError:
            continue


def _model(path: Path, scratch: Path) -> None:
    from plm.model.checkpoint import resolve_model

    resolve_model(str(path), workdir=scratch)


def _classifier(path: Path, scratch: Path) -> None:
    from plm.model.bundles.classifier import load_classifier_bundle

    load_classifier_bundle(path)


@cache
def _base() -> Any:
    from plm.model.checkpoint import load_model, resolve_model

    place = Path(tempfile.mkdtemp(prefix="fuzz_base_"))
    return load_model(resolve_model(str(DATA / "models" / "tiny_esm2"), workdir=place))


def _fine_tuned(path: Path, scratch: Path) -> None:
    from plm.model.bundles.fine_tuned import load_bundle

    load_bundle(path, str(DATA / "models" / "tiny_esm2"), workdir=scratch, device="cpu", precision="fp32")


def _contact_head(path: Path, scratch: Path) -> None:
    from plm.jobs.contacts.stored_head import read_head

    read_head(path, _base(), scratch)


def _checkpoint(stage: str) -> Callable[[Path, Path], None]:
    def read(path: Path, scratch: Path) -> None:
        from plm.training import training_state

        content = training_state.unpack(path, scratch, stage)
        training_state.history_of(content.get("history", []), path.name)
        for tensors in sorted(scratch.rglob("*.safetensors")):
            training_state.load_tensors(tensors)
        for random_state in sorted(scratch.rglob("random.json")):
            training_state.load_random_state(random_state.parent)

    return read


def _cache(path: Path, scratch: Path) -> None:
    from plm.jobs.distill import teacher_cache
    from plm.received import tensors
    from plm.received.documents import read_object
    from plm.received.fields import Fields

    teacher_cache.unpack(path, scratch)
    for file in sorted(scratch.iterdir()):
        if file.suffix == ".json":
            Fields(read_object(file), "The teacher cache", path.name, "Give another").inside("content")
        else:
            tensors.load_numpy(file)


def _structure(path: Path, scratch: Path) -> None:
    from plm.jobs.contacts.structures import read_structures

    list(read_structures([path]))


def _journal(path: Path, scratch: Path) -> None:
    from plm.received.journals import check_journal

    check_journal(path, "--resume-study")


def _rule(path: Path, scratch: Path) -> None:
    from plm.data.fasta import ProteinRecord
    from plm.data.header_rules import parse_rule

    rule = parse_rule(path.read_bytes().decode("utf-8", "replace")[:2000], "--labels")
    if rule.kind in ("key", "field", "regex"):
        rule.find(ProteinRecord("a", "sp|P1|A_B LABEL=x OX=9606 1|2|3", "MKV", 1))


JOURNAL = (
    b'{"op_code":0,"worker_id":"a","study_name":"search","directions":[2]}\n'
    b'{"op_code":5,"worker_id":"a","trial_id":0,"param_name":"dropout","param_value_internal":0.1,"distribution":'
    b'"{\\"name\\": \\"FloatDistribution\\", \\"attributes\\": {\\"low\\": 0.0, \\"high\\": 0.6}}"}\n'
)
TOKENIZER = b'{"model": {"vocab": {"<cls>": 0, "A": 1}}, "added_tokens": [{"id": 2, "content": "<mask>"}]}'
TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("fasta", ".fasta", _heads("simulated_odd.fasta", "simulated_query.fasta"), _fasta),
        Target("proteins", ".tabular", _heads("simulated_variants.tabular", "simulated_odd.fasta"), _proteins),
        Target("table", ".tabular", _heads("simulated_sites.tabular", "dataset_classes.tabular"), _table),
        Target("dataset", ".tabular", _heads("dataset_sites.tabular", "dataset_residues.tabular",
                                             "dataset_numbers.tabular"), _dataset),
        Target("predictions", ".tabular", _heads("predictions_simulated_multiclass.tabular",
                                                 "predictions_simulated_number.tabular"), _predictions),
        Target("sites", ".tabular", _heads("simulated_sites.tabular", "simulated_query_sites.tabular"), _sites),
        Target("embeddings-table", ".tabular", _heads("simulated_embeddings.tabular"), _embeddings),
        Target("embeddings-hdf5", ".h5", _hdf5, _embeddings),
        Target("embeddings-npz", ".npz", _npz, _embeddings),
        Target("embeddings-parquet", ".parquet", _parquet, _embeddings),
        Target("document", ".json", _made(b'{"a": [1, {"b": "x"}, null, 1.5e3, true]}'), _document),
        Target("archive", ".zip", _files("teacher_cache_tiny_esm2.zip", "contact_head_tiny_esm2.zip"), _archive),
        Target("safetensors", ".safetensors", _member("contact_head_tiny_esm2.zip", "head.safetensors"), _safetensors),
        Target("weights", ".bin", lambda: _torch_files()[:2], _weights),
        Target("training-checkpoint", ".pt", _torch_files, _training_checkpoint),
        Target("vocabulary", ".txt", _files("models/tiny_esm2/vocab.txt"), _vocabulary("vocab.txt")),
        Target("tokenizer", ".json", _made(TOKENIZER), _vocabulary("tokenizer.json")),
        Target("sentencepiece", ".model", _files("models/tiny_t5/spiece.model"), _vocabulary("spiece.model")),
        Target("configuration", ".json", _files("models/tiny_esm2/config.json", "models/tiny_t5/config.json"),
               _configuration),
        Target("model", ".zip", _files("tiny_esm2.zip"), _model),
        Target("bundle-classifier", ".zip", _files("bundle_tiny_classes.zip"), _classifier),
        Target("bundle-fine-tuned", ".zip", _files("bundle_tiny_site.zip"), _fine_tuned),
        Target("contact-head", ".zip", _files("contact_head_tiny_esm2.zip"), _contact_head),
        Target("checkpoint", ".zip", _files("written_before/checkpoint_finetune.zip"), _checkpoint("plm_finetune")),
        Target("teacher-cache", ".zip", _files("teacher_cache_tiny_esm2.zip"), _cache),
        Target("structure", ".pdb", _structures, _structure),
        Target("journal", ".log", _made(JOURNAL), _journal),
        Target("label-rule", ".txt", _made(b"field:2", b"LABEL=", b"regex:OX=([0-9]+)", b"column:x"), _rule),
    )
}


# -------------------------------------------------------------------------------------------------------------- damage

_TOKENS = (
    b"\0", b"\xff", b"\xff\xfe", b"\xef\xbb\xbf", b"\t", b"\n", b"\r", b",", b'"', b">", b"NaN", b"inf", b"-1",
    b"1e999", b"9" * 400, b"[" * 200, b"{", b"}", b"null", b"../", b"\x1f\x8b", b"PK\x03\x04", b"\xe2\x80\xa8", b" ",
    b"\x80\x04",
)
_VALUES: tuple[Any, ...] = (
    None, [], {}, "", "x", -1, 0, 1, 10**9, 10**24, 1e308, float("nan"), float("inf"), True, "a\tb", [None], [[1]],
    {"x": 1}, "../x", 0.5,
)


def damaged(data: bytes, draw: random.Random) -> bytes:
    """The same file with something changed: its bytes, a field of a document, or a member of an archive."""
    if data[:4] == b"PK\x03\x04" and draw.random() < 0.8:
        try:
            return _zip_damaged(data, draw)
        except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, RuntimeError, EOFError, KeyError):
            pass
    if data[:1] == b"{" and draw.random() < 0.6:
        try:
            return json.dumps(_field_changed(json.loads(data), draw)).encode()
        except (ValueError, RecursionError):
            pass
    return _bytes_damaged(data, draw)


def _bytes_damaged(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4, 8))):
        at = draw.randrange(len(changed) + 1)
        kind = draw.randrange(6)
        if kind == 0 and changed:
            changed[at % len(changed)] ^= 1 << draw.randrange(8)
        elif kind == 1:
            changed[at:at] = draw.choice(_TOKENS)
        elif kind == 2:
            del changed[at : at + draw.choice((1, 2, 8, 64, 512))]
        elif kind == 3:
            changed[at:at] = changed[at : at + draw.choice((1, 8, 64, 256))]
        elif kind == 4:
            token = draw.choice(_TOKENS)
            changed[at : at + len(token)] = token
        elif draw.random() < 0.3:
            del changed[at:]
    return bytes(changed[:LARGEST])


def _field_changed(content: Any, draw: random.Random) -> Any:
    holders: list[Any] = []
    waiting = [content]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict | list) and one:
            holders.append(one)
            waiting += list(one.values() if isinstance(one, dict) else one[:20])
    if not holders:
        return draw.choice(_VALUES)
    holder = draw.choice(holders)
    key = draw.choice(list(holder)) if isinstance(holder, dict) else draw.randrange(len(holder))
    if draw.random() < 0.2:
        del holder[key]
    else:
        holder[key] = draw.choice(_VALUES)
    return content


def _zip_damaged(data: bytes, draw: random.Random) -> bytes:
    with zipfile.ZipFile(BytesIO(data)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()[:50]}
    if not members:
        return data
    name = draw.choice(list(members))
    kind = draw.random()
    if kind < 0.1:
        del members[name]
    elif kind < 0.15:
        members[draw.choice(("../x", "/x", "a.pkl", "x" * 300, name.upper(), "a\tb"))] = b"x"
    else:
        members[name] = damaged(members[name], draw)
    held = BytesIO()
    with zipfile.ZipFile(held, "w") as out:
        for one, content in _sealed(members).items():
            out.writestr(zipfile.ZipInfo(one), content)
    return held.getvalue()


def _sealed(members: dict[str, bytes]) -> Mapping[str, bytes]:
    """With the digests that a manifest lists brought up to date, so that what is behind them is reached."""
    try:
        manifest = json.loads(members["manifest.json"])
        if isinstance(manifest, dict) and isinstance(manifest.get("files"), dict):
            others = {name: content for name, content in members.items() if name != "manifest.json"}
            manifest["files"] = {name: hashlib.sha256(content).hexdigest() for name, content in others.items()}
            return {**members, "manifest.json": json.dumps(manifest).encode()}
    except (KeyError, ValueError, RecursionError):
        pass
    return members
