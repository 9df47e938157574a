"""Zips that users bring (models, bundles, checkpoints): one clear line for any damage, nothing outside a folder."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from plm.errors import UserError
from plm.model.bundles.fine_tuned import unpack_bundle
from plm.model.checkpoint import unpack_checkpoint
from plm.training import training_state

Unpack = Callable[[Path, Path], Any]
UNPACKERS: dict[str, tuple[Unpack, str]] = {
    "model": (unpack_checkpoint, "config.json"),
    "bundle": (unpack_bundle, "manifest.json"),
    "checkpoint": (lambda path, folder: training_state.unpack(path, folder, "plm_finetune"), "checkpoint.json"),
}


def damaged(path: Path, member: str) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr(member, b'{"a": 1}' * 5000)
    content = bytearray(path.read_bytes())
    start = 30 + len(member) + 10
    content[start : start + 20] = b"\xff" * 20
    path.write_bytes(bytes(content))


def encrypted(path: Path, member: str) -> None:
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr(member, b"{}")
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(bytes(content))


def truncated(path: Path, member: str) -> None:
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr(member, b"{}" * 1000)
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize("damage", [damaged, encrypted, truncated])
@pytest.mark.parametrize("kind", UNPACKERS)
def test_a_broken_zip_is_one_clear_line(kind: str, damage: Callable[[Path, str], None], tmp_path: Path) -> None:
    unpack, member = UNPACKERS[kind]
    damage(tmp_path / "broken.zip", member)
    with pytest.raises(UserError) as caught:
        unpack(tmp_path / "broken.zip", tmp_path / "inside")
    assert "broken.zip" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["../escaped.json", "/tmp/escaped_from_an_archive.json", "a/../../escaped.json"])
@pytest.mark.parametrize("kind", UNPACKERS)
def test_no_path_out_of_an_archive(kind: str, name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as opened:
        opened.writestr(name, b"{}")
    with pytest.raises(UserError):
        UNPACKERS[kind][0](tmp_path / "bad.zip", tmp_path / "inside")
    assert not (tmp_path / "escaped.json").exists() and not Path("/tmp/escaped_from_an_archive.json").exists()
