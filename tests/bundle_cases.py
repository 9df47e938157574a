"""Fine-tuned bundles for tests, written through the library: real layout and self-test, random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from plm.data.task import Task
from plm.model import adapters
from plm.model.bundles.fine_tuned import MemberFiles, save_network, write_bundle
from plm.model.checkpoint import load_model, resolve_model
from plm.model.heads import build_head
from plm.model.heads.head import HeadConfig
from plm.model.network import as_network


def random_bundle(name: str, task: Task, folder: Path, base: Path, **changes: Any) -> Path:
    """A bundle with random adapters and a random head.

    Args:
        name: What it calls itself.
        task: What it answers.
        folder: Where ``<name>.zip`` is written, beside files on the way.
        base: Folder of its base model.
        changes: Fields of the manifest that differ from a site bundle with a window of 33 residues.
    """
    torch.manual_seed(3)
    files = resolve_model(str(base), workdir=folder)
    loaded = load_model(files, device=torch.device("cpu"))
    body = adapters.add_adapters(loaded, adapters.AdapterSettings("lora", rank=2))
    with torch.no_grad():
        for parameter in (p for key, p in body.named_parameters() if "lora_B" in key):
            parameter.normal_(std=0.2)
    head = HeadConfig(task.level, loaded.hidden_size, task.outputs, width=8, neighbour_width=4)
    save_network(as_network(loaded, body, build_head(head)), loaded, "lora", folder / "member")
    manifest = {
        **task.to_json(), "name": name, "method": "lora", "window": 33, "site_residues": "Y",
        "base": {"id": files.id, "sha256": files.sha256, "family": "esm2"}, "head": head.to_json(), "threshold": 0.5,
        "calibration": {}, "training_prevalence": 0.5, "finished": True, **changes,
    }
    path = folder / f"{name}.zip"
    member = MemberFiles(folder / "member", 3, None, mean=task.mean, sd=task.sd)
    write_bundle(
        path, [member], manifest, base=str(base), card="made for a test",
        reference=(np.zeros((1, loaded.hidden_size), np.float32), ["none"], ["0"]), workdir=folder, device="cpu",
        precision="fp32",
    )
    return path
