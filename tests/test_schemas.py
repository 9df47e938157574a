"""Manifests, checkpoints, caches, studies and status tables: what does not fit names file, field, value and wish.

Each document is spoilt field by field; versions that are newer say so.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from plm.errors import UserError
from plm.jobs.distill import teacher_cache
from plm.model.bundles.classifier import load_classifier_bundle
from plm.received.documents import read_object
from plm.received.fields import Fields, shown
from plm.received.journals import check_journal
from plm.training import training_state
from test_hostile import contents, rewritten

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "test-data"
WRONG: tuple[Any, ...] = (None, [], "planet", -1, 10**24, True, 0.5, {"x": 1}, float("nan"))


def _classifier(path: Path, scratch: Path) -> None:
    load_classifier_bundle(path)


def _fine_tuned(path: Path, scratch: Path) -> None:
    from plm.model.bundles.fine_tuned import load_bundle

    load_bundle(path, str(DATA / "models" / "tiny_esm2"), workdir=scratch, device="cpu")


def _checkpoint(path: Path, scratch: Path) -> None:
    training_state.unpack(path, scratch, "plm_finetune")


def _cache(path: Path, scratch: Path) -> None:
    teacher_cache.unpack(path, scratch)
    Fields(read_object(scratch / "cache.json"), "The teacher cache", path.name, "Give another").inside("content")


Reader = Callable[[Path, Path], None]
DOCUMENTS: dict[str, tuple[str, str, Reader, dict[str, str]]] = {
    "classifier": (
        "bundle_tiny_classes.zip", "manifest.json", _classifier,
        {
            "name": "text", "classes": "list of texts", "temperature": "number", "threshold": "number",
            "standardise": "true or false", "head.kind": "text|one of", "embedding.dimension": "whole number",
            "embedding.dtype": "one of|text", "embedding.pooling": "one of|text", "embedding.layers": "list of numbers",
            "embedding.model": "text", "task": "object", "files": "object", "kind": "text", "novelty.k": "whole number",
        },
    ),
    "fine-tuned": (
        "bundle_tiny_site.zip", "manifest.json", _fine_tuned,
        {
            "name": "text", "window": "whole number", "method": "text|one of", "base.sha256": "text",
            "labels": "list of texts", "threshold": "number", "head.hidden_size": "whole number", "head": "object",
            "members": "list of 1 to", "task": "object", "base": "object",
        },
    ),
    "checkpoint": (
        "written_before/checkpoint_finetune.zip", "checkpoint.json", _checkpoint,
        {"schema_version": "whole number", "stage": "text"},
    ),
    "cache": ("teacher_cache_tiny_esm2.zip", "cache.json", _cache, {"content": "object"}),
}
def spoilt(field: str, value: Any, member: str) -> Callable[[dict[str, bytes]], None]:
    def change(held: dict[str, bytes]) -> None:
        content = json.loads(held[member])
        *path, last = field.split(".")
        inner = content
        for name in path:
            inner = inner[name]
        inner[last] = value
        held[member] = json.dumps(content).encode()

    return change


def fits(value: Any, wish: str) -> bool:
    """Whether a wrong value is right for this field after all, or stands for its absence."""
    kinds: dict[str, Callable[[], bool]] = {
        "text": lambda: isinstance(value, str), "number": lambda: isinstance(value, float) and value == value,
        "true or false": lambda: isinstance(value, bool), "object": lambda: isinstance(value, dict),
        "list of numbers": lambda: value == [], "list of texts": lambda: value == [],
    }
    return value is None or any(name in wish.split("|") and test() for name, test in kinds.items())


CASES = [
    (kind, field, value) for kind, (_, _, _, fields) in DOCUMENTS.items() for field, wish in fields.items()
    for value in WRONG if not fits(value, wish)
]


@pytest.mark.parametrize(("kind", "field", "value"), CASES, ids=lambda value: re.sub(r"[^\w.+-]", "_", str(value))[:20])
def test_a_wrong_field_is_named_with_what_stood_there_and_what_belongs(
    kind: str, field: str, value: Any, tmp_path: Path
) -> None:
    source, member, read, fields = DOCUMENTS[kind]
    wish = fields[field]
    path = rewritten(DATA / source, tmp_path / "upload.zip", spoilt(field, value, member))
    if field == "files":  # which is not brought up to date
        from test_hostile import zipped

        held = contents(DATA / source)
        spoilt(field, value, member)(held)
        path = zipped(tmp_path / "upload.zip", held)
    (tmp_path / "scratch").mkdir()
    with pytest.raises(UserError) as caught:
        read(path, tmp_path / "scratch")
    told = str(caught.value)
    assert re.search(r"upload|checkpoint\.json|cache\.json", told), "the file"
    assert field.rpartition(".")[2] in told, "the field"
    assert shown(value) in told, "what stood there"
    assert re.search(wish, told), "what belongs"
    assert caught.value.fix


@pytest.mark.parametrize("kind", ["classifier", "fine-tuned", "checkpoint"])
def test_a_newer_version_says_so(kind: str, tmp_path: Path) -> None:
    source, member, read, _ = DOCUMENTS[kind]
    path = rewritten(DATA / source, tmp_path / "upload.zip", spoilt("schema_version", 2, member))
    (tmp_path / "scratch").mkdir()
    with pytest.raises(UserError, match=r"schema (?:version )?2.*(?:reads|schema) 1"):
        read(path, tmp_path / "scratch")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"op_code": "x"}, "op_code is 'x' where a whole number"), ({"op_code": 99}, "op_code is 99"),
        ({"trial_id": -1}, "trial_id is -1"), ({"param_value_internal": "a"}, "param_value_internal is 'a'"),
        ({"distribution": "{}"}, "distribution lacks name"), ({"worker_id": None}, "worker_id is null"),
        ({"distribution": '{"name": "os.system", "attributes": {}}'}, "name is 'os.system' where one of"),
        ({"values": [1, 2]}, "values is a list"), ({"user_attr": 5}, "user_attr is 5 where an object"),
    ],
)
def test_studies(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    sound = {"op_code": 5, "worker_id": "a", "trial_id": 0, "param_name": "width", "param_value_internal": 1}
    (tmp_path / "study.log").write_text(f"{json.dumps(sound)}\n")
    check_journal(tmp_path / "study.log", "study.log")
    (tmp_path / "study.log").write_text(f"{json.dumps(sound)}\n{json.dumps({**sound, **change})}\n")
    with pytest.raises(UserError, match=rf"{re.escape(message)}.*study\.log, line 2"):
        check_journal(tmp_path / "study.log", "study.log")


@pytest.mark.parametrize(
    ("column", "value"),
    [("line", "x"), ("length", "-1"), ("encoded", "1.5"), ("windows", ""), ("cleaned", "nan"), ("status", "lost")],
)
def test_status_tables(column: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [line.split("\t") for line in (DATA / "embeddings_part_1.tabular").read_text().splitlines()]
    rows[2][rows[0].index(column)] = value
    Path("status").write_text("".join("\t".join(row) + "\n" for row in rows))
    wish = "embedded or rejected" if column == "status" else "a whole number"
    with pytest.raises(UserError, match=rf"{column} is {value!r} where {wish} belongs \[status, line 3\]"):
        importlib.import_module("plm_merge_embeddings").run(
            ["--input", str(DATA / "embeddings_part_1.h5"), "--status", "status", "--output", "m.h5",
             "--merged-status", "s"]
        )
    assert not Path("m.h5").exists() and not Path("s").exists()


@pytest.mark.parametrize("content", [b"", b"x", b"{}\n", b'{"op_code": 0}', b"\xff\n"])
def test_a_damaged_study_stops_the_search_with_a_line(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("study").write_bytes(content)
    with pytest.raises(UserError, match=r"[Tt]he study") as caught:
        importlib.import_module("plm_train_classifier").run(
            ["--embeddings", str(DATA / "class_beta.h5"), str(DATA / "class_none.h5"), "--class-name", "beta",
             "--class-name", "none", "--head", "feedforward", "--search-trials", "2", "--epochs", "1", "--resume-study",
             "study", "--predictor", "model", "--bundle", "b.zip"]
        )
    assert caught.value.fix and not Path("b.zip").exists()
