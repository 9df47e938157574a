"""The zip of every bundle: written with equal bytes for equal content, and checked member by member before it is used.

A bundle holds data only (JSON, safetensors, Markdown, tokenizer files), and its manifest lists a digest of each member.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from plm.errors import UserError
from plm.received.archives import Archive
from plm.received.documents import as_object, cleaned, one_line, parse_json, read_bytes
from plm.received.fields import Fields, shown
from plm.received.limits import limit

AGAIN = "Give the bundle as the suite wrote it"
SCHEMA_VERSION = 1
SUFFIXES = (".json", ".safetensors", ".md", ".txt", ".model")
"""What a bundle may hold: data, never code or pickles (``.model`` is ProtT5's sentencepiece vocabulary)."""
FINETUNED, EMBEDDING = "finetuned", "embedding"
TEACHER_CACHE = "teacher-cache"
CONTACTS = "contacts"
"""Kinds of bundles; a manifest that names none is of a fine-tuned model."""


def bundle_kind(path: str | Path) -> str:
    """``embedding`` for a classifier of embeddings, ``finetuned`` for a fine-tuned model; nothing else is checked.

    Raises:
        UserError: As :func:`read_manifest`, or a kind that is not known.
    """
    kind = read_manifest(path).get("kind", FINETUNED)
    if kind not in (FINETUNED, EMBEDDING):
        known = {TEACHER_CACHE: "a teacher cache", CONTACTS: "a head for contacts"}
        what = known.get(str(kind), "of a kind that this version does not know")
        raise UserError(
            f"The bundle is {what}", where=Path(path).name, fix="Give a bundle of plm_finetune or plm_train_classifier"
        )
    return str(kind)


def bundle_level(path: str | Path) -> str:
    """What a bundle answers for, as it says itself; nothing else is checked.

    Raises:
        UserError: As :func:`read_manifest`, or the bundle does not say it.
    """
    where = Path(path).name
    return Fields(read_manifest(path), "The bundle's manifest", where, AGAIN).inside("task").text("level")


def read_manifest(path: str | Path) -> dict[str, Any]:
    """A bundle's manifest: a JSON object, its text cleaned; fields are not checked.

    Raises:
        UserError: The file is missing, no zip, or has no readable manifest.
    """
    path = Path(path)
    with Archive(path, "bundle", AGAIN) as opened:
        if "manifest.json" not in opened:
            raise _no_manifest(path.name)
        data = opened.read("manifest.json", limit("PLM_MAX_JSON_MIB") * 2**20)
    return cleaned_object(data, path.name)


def cleaned_object(data: bytes, where: str) -> dict[str, Any]:
    """A manifest, its text cleaned of what would break tables and pages."""
    what = "The bundle's manifest.json"
    content: dict[str, Any] = cleaned(as_object(parse_json(data, what, where, AGAIN), what, where, AGAIN))
    return content


def _no_manifest(where: str) -> UserError:
    return UserError("The zip has no manifest.json: it is no bundle", where=where, fix=AGAIN)


def unpack(path: Path, folder: Path, *, kind_wanted: str, needed: Sequence[str]) -> dict[str, Any]:
    """Checks a bundle's zip member by member, unpacks it and gives its manifest.

    Args:
        path: Bundle file (zip).
        folder: Folder into which its members are unpacked.
        kind_wanted: ``FINETUNED`` or ``EMBEDDING``.
        needed: Fields that the manifest must have.

    Raises:
        UserError: Truncated, not a bundle, of another kind or schema, with a member that is missing, altered, unlisted
            or no data.
    """
    where, again = path.name, AGAIN
    with Archive(path, "bundle", f"{again}: it may be truncated") as opened:
        for name in opened.members:
            _check_name(name, where)
        if "manifest.json" not in opened:
            raise _no_manifest(where)
        digests = opened.unpack(folder, digests=True)
    for name in digests:
        _check_content(name, folder / name, where)
    manifest = cleaned_object((folder / "manifest.json").read_bytes(), where)
    if "schema_version" not in manifest:
        raise UserError("The bundle's manifest has no schema_version", where=where, fix=again)
    if manifest["schema_version"] != SCHEMA_VERSION:
        raise UserError(
            f"The bundle has schema version {shown(manifest['schema_version'])}; this version reads {SCHEMA_VERSION}",
            where=where, fix="Use the version of the suite that made it, or train it anew",
        )
    kind = Fields(manifest, "The bundle's manifest", where, again).text("kind", default=FINETUNED)
    if kind != kind_wanted:
        known = {
            FINETUNED: "a fine-tuned model (plm_finetune)",
            EMBEDDING: "a classifier of embeddings (plm_train_classifier)",
            TEACHER_CACHE: "a teacher cache (plm_distill)",
            CONTACTS: "a head for contacts (plm_contacts)",
        }
        raise UserError(
            f"The bundle is {known.get(kind, f'of the unknown kind {kind!r}')}, not {known[kind_wanted]}", where=where,
            fix="Give a bundle of the other kind",
        )
    missing = [key for key in ("files", *needed) if key not in manifest]
    if missing:
        raise UserError(f"The bundle's manifest lacks {', '.join(missing)}", where=where, fix=again)
    listed = Fields(manifest, "The bundle's manifest", where, again).inside("files")
    _check_digests({name: listed.text(name) for name in listed.content}, digests, where, again)
    return manifest


def _check_name(name: str, where: str) -> None:
    if PurePosixPath(name).suffix not in SUFFIXES:
        raise UserError(
            f"The bundle holds {one_line(name, 100)!r}, which no bundle may hold (pickles and code are refused)",
            where=where, fix="Do not trust this file; give the bundle as the suite wrote it",
        )


def _check_content(name: str, file: Path, where: str) -> None:
    """Whether a member is what its suffix says; a pickle under another name is not."""
    with file.open("rb") as opened:
        start = opened.read(9)
    good = True
    if file.suffix == ".safetensors":
        good = start[8:9] == b"{" and file.stat().st_size >= 8 + int.from_bytes(start[:8], "little")
    elif file.suffix == ".model":
        good = start[:1] == b"\n"
    else:
        data = read_bytes(file, limit("PLM_MAX_JSON_MIB") * 2**20, name, where, AGAIN)
        if file.suffix == ".json" and start[:1] != b"\x80":
            parse_json(data, f"The bundle's member {name}", where, AGAIN)
            return
        try:
            good = "\0" not in data.decode("utf-8")
        except ValueError:
            good = False
    if not good:
        kind = "a pickle" if start[:1] == b"\x80" or start[:2] == b"PK" else "damaged"
        raise UserError(
            f"The bundle's member {name!r} is not what its name says (it may be {kind})", where=where,
            fix="Do not trust this file; give the bundle as the suite wrote it",
        )


def _check_digests(listed: Mapping[str, str], computed: Mapping[str, str], where: str, again: str) -> None:
    present = set(computed) - {"manifest.json"}
    for name in sorted(set(listed) - present):
        raise UserError(f"The bundle lacks its member {one_line(name, 100)}", where=where, fix=again)
    for name in sorted(present - set(listed)):
        extra = one_line(name, 80)
        raise UserError(f"The bundle holds {extra}, which its manifest does not list", where=where, fix=again)
    for name, digest in listed.items():
        if computed[name] != digest:
            raise UserError(f"The bundle's member {name} was altered or damaged", where=where, fix=again)


def write_zip(path: Path, files: Mapping[str, Path]) -> None:
    """Writes a stored zip whose bytes depend on names and contents alone."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as zipped:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            with files[name].open("rb") as source, zipped.open(entry, "w", force_zip64=True) as target:
                shutil.copyfileobj(source, target, 1 << 20)


def json_text(content: Any) -> str:
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
