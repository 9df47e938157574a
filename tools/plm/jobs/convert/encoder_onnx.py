"""Encoders as ONNX: tokens and their mask in, the states of every token out; run and compared before it is given.

Inputs ``input_ids`` and ``attention_mask`` ``(N, L) int64`` of any N and L, output ``last_hidden_state``
``(N, L, D) float32``. The tokens stand in the file's properties.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from plm import __version__, stage
from plm.errors import UserError
from plm.jobs.convert import comparison
from plm.jobs.convert.weights import Checked
from plm.model.checkpoint import load_model
from plm.model.loaded import LoadedModel, ModelFiles

OPSET = 17
_MOST_BYTES = 2**31 - 2**20
"""What one ONNX file can hold."""
_LIMIT = 1e-4
_INPUTS, _OUTPUT = ("input_ids", "attention_mask"), "last_hidden_state"


class _States(nn.Module):
    """What is exported of an encoder."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return states


def export(files: ModelFiles, loaded: LoadedModel, path: Path) -> tuple[Path, Checked]:
    """Writes a checkpoint's encoder as ONNX and compares its answers, in padded rows, with the suite's.

    Args:
        files: The checkpoint.
        loaded: The same in memory.
        path: File to write.

    Raises:
        UserError: The encoder is too large for one file, or the export answers otherwise.
    """
    numbers = sum(parameter.numel() for parameter in loaded.model.parameters())
    if 4 * numbers > _MOST_BYTES:
        raise UserError(
            f"The encoder takes {4 * numbers / 2**30:.1f} GiB, and one ONNX file holds at most 2 GiB", where=files.id,
            fix="Choose a model of at most 500 million parameters",
        )
    import onnx
    from onnx import checker, helper

    plain = load_model(files, packed=False)
    ids, mask = _rows(loaded)
    axes = {0: "sequences", 1: "tokens"}
    with warnings.catch_warnings():  # of the tracer, about shapes that stay open here
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _States(plain.model).eval(), (torch.from_numpy(ids), torch.from_numpy(mask)), str(path),
            input_names=list(_INPUTS), output_names=[_OUTPUT], dynamic_axes=dict.fromkeys((*_INPUTS, _OUTPUT), axes),
            opset_version=OPSET, dynamo=False,
        )
    graph: Any = onnx.load(str(path))  # the file that was just written
    graph.producer_name, graph.producer_version = "plm-suite", __version__
    facts = {
        "model": files.id, "model_sha256": files.sha256, "family": loaded.family.title,
        "tokens": json.dumps(dict(loaded.vocabulary)), "before": json.dumps(loaded.family.before),
        "after": json.dumps(loaded.family.after), "padding": str(_padding(loaded)),
    }
    helper.set_model_props(graph, facts)
    checker.check_model(graph)
    path.write_bytes(graph.SerializeToString(deterministic=True))
    check = comparison.compare(
        "representations, by ONNX Runtime from the file", _answers(path, loaded), comparison.states(loaded), "float32",
        files.id, _LIMIT,
    )
    return path, check


def _padding(loaded: LoadedModel) -> int:
    return int(getattr(loaded.model.config, "pad_token_id", 0) or 0)


def _rows(loaded: LoadedModel, most: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The compared proteins as padded rows ``(N, L) int64``, and what of them is no padding."""
    tokens = [loaded.token_ids(one) for one in comparison.sequences(loaded.family.max_residues)][:most]
    ids = np.full((len(tokens), max(map(len, tokens))), _padding(loaded), np.int64)
    mask = np.zeros_like(ids)
    for row, one in enumerate(tokens):
        ids[row, : len(one)], mask[row, : len(one)] = one, 1
    return ids, mask


def _answers(path: Path, loaded: LoadedModel) -> list[torch.Tensor]:
    """States of the residues by the exported graph: three proteins in one padded row, and the first alone."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = stage.threads(), 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    before, after = len(loaded.family.before), len(loaded.family.after)
    answers = []
    for most in (None, 1):
        ids, mask = _rows(loaded, most)
        states = session.run(None, dict(zip(_INPUTS, (ids, mask), strict=True)))[0]
        answers.append([torch.from_numpy(row[: int(held.sum())]) for row, held in zip(states, mask, strict=True)])
    whole, alone = answers
    if not torch.allclose(whole[0], alone[0], rtol=1e-3, atol=1e-3):
        raise UserError(
            "The exported graph answers otherwise when a protein comes with others", where=path.name,
            fix="Report this: the export is not usable",
        )
    return [states[before : len(states) - after] for states in whole]
