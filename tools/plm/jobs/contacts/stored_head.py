"""A head for contacts on disk: weights as safetensors, what it is as JSON, in one zip that is checked on reading.

It is of no use with another model, so it carries the fingerprint of the one that it was fitted on; and it carries
fingerprints of the proteins that it learned from, so that they never judge it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from plm import __version__
from plm.errors import UserError
from plm.jobs.contacts.contact_heads import (
    TITLES,
    AttentionRegression,
    ContactHead,
    PairNetwork,
    attention_heads,
    pair_shapes,
)
from plm.model.bundles import archive
from plm.model.loaded import LoadedModel
from plm.received import tensors
from plm.received.fields import Fields

_WEIGHTS, _CARD = "head.safetensors", "README.md"
_NEEDED = ("method", "model", "learned_from", "suite")
_SHORT = 32
_MOST = 1_000_000


@dataclass(frozen=True)
class StoredContactHead:
    """What a file holds.

    Attributes:
        head: Ready to use.
        learned_from: Fingerprints of the proteins that it learned from or was chosen on.
        path: The file.
    """

    head: ContactHead
    learned_from: frozenset[str]
    path: Path


def fingerprint(sequence: str) -> str:
    """What a protein is known by without being told."""
    return hashlib.sha256(sequence.encode()).hexdigest()[:_SHORT]


def write_head(
    path: Path, head: ContactHead, loaded: LoadedModel, learned_from: Sequence[str], facts: Mapping[str, Any],
    folder: Path,
) -> None:
    """Writes a head.

    Args:
        path: Zip to write.
        head: What was fitted or chosen.
        loaded: Its model.
        learned_from: Sequences that it learned from or was chosen on.
        facts: What else a reader should know: settings, precisions, numbers of proteins.
        folder: For the parts.
    """
    from safetensors.torch import save_file

    weights, card = folder / _WEIGHTS, folder / _CARD
    save_file(head.tensors(), weights)
    card.write_text(_card(head, loaded, facts), encoding="utf-8")
    manifest = {
        "schema_version": archive.SCHEMA_VERSION, "kind": archive.CONTACTS, "suite": __version__,
        "method": head.method,
        "model": {
            "id": loaded.files.id, "sha256": loaded.files.sha256, "layers": loaded.layers,
            "heads": attention_heads(loaded), "width": loaded.hidden_size,
        },
        "learned_from": sorted({fingerprint(sequence) for sequence in learned_from}), "facts": dict(facts),
        "files": {one.name: hashlib.sha256(one.read_bytes()).hexdigest() for one in (weights, card)},
    }
    listed = folder / "manifest.json"
    listed.write_text(archive.json_text(manifest), encoding="utf-8")
    archive.write_zip(path, {one.name: one for one in (listed, weights, card)})


def _card(head: ContactHead, loaded: LoadedModel, facts: Mapping[str, Any]) -> str:
    lines = [
        "# Head for contacts", "", f"- kind: {TITLES[head.method]}", f"- model: {loaded.files.id}",
        f"- fingerprint of the model: {loaded.files.sha256}", *(f"- {name}: {value}" for name, value in facts.items()),
        "", "Use it with plm_contacts --head and the same model. A contact is a pair of residues at least six apart in",
        "sequence whose C-betas are less than 8 Angstrom apart.", "",
    ]
    return "\n".join(lines)


def read_head(path: Path, loaded: LoadedModel, folder: Path) -> StoredContactHead:
    """Reads a head for this very model.

    Raises:
        UserError: No head, damaged, or of another model.
    """
    manifest = archive.unpack(path, folder, kind_wanted=archive.CONTACTS, needed=_NEEDED)
    where, again = path.name, archive.AGAIN
    fields = Fields(manifest, "The head's manifest", where, again)
    method = fields.text("method", choices=tuple(TITLES))
    model = fields.inside("model")
    if model.text("sha256") != loaded.files.sha256:
        raise UserError(
            f"The head was fitted on another model ({model.text('id')})", where=where,
            fix=f"Choose that model with --model, not {loaded.files.id}",
        )
    learned = fields.texts("learned_from", most=_MOST, longest=_SHORT)
    heads = attention_heads(loaded)
    shapes: dict[str, tuple[int, ...]] = (
        pair_shapes(loaded.hidden_size) if method == "pair" else {"weights": (loaded.layers, heads), "bias": (1,)}
    )
    file = folder / _WEIGHTS
    tensors.check_shapes(tensors.shapes(file, "The head", where, again), shapes, "The head", where, again)
    weights = tensors.load_torch(file, "The head", where, again, finite=True)
    if not all(bool(torch.isfinite(value).all()) for value in weights.values()):
        raise UserError("The head holds numbers that are not finite", where=where, fix=again)
    head: ContactHead
    if method == "pair":
        head = PairNetwork(loaded.hidden_size)
        head.load_state_dict(weights)
        head.eval()
    else:
        kind = "published" if method == "published" else "regression"
        head = AttentionRegression(kind, weights["weights"].float(), float(weights["bias"][0]))  # type: ignore[arg-type]
    return StoredContactHead(head, frozenset(learned), path)
