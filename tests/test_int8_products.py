"""Embedding with 8-bit products: how far it moves numbers, and where it is refused."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from plm.errors import UserError
from plm.model import int8_products

DATA = Path(__file__).resolve().parents[1] / "test-data"


@pytest.mark.parametrize("model", ["starter", f"{DATA}/models/tiny_t5"])
def test_numbers_move_a_little_and_the_log_says_how_far(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    line = f"--input {DATA}/simulated_query.fasta --model {model} --device cpu --precision fp32 --embeddings"
    run = importlib.import_module("plm_embed").run
    run([*line.split(), "plain.tabular", "--format", "tabular"])
    run([*line.split(), "int8.tabular", "--format", "tabular", "--int8"])
    told = re.search(r"8-bit products: .* keep a cosine of ([\d.]+) or more", capsys.readouterr().out)
    assert told and 0.9 < float(told.group(1)) <= 1
    plain, reduced = (
        np.loadtxt(path, delimiter="\t", skiprows=1, usecols=range(1, 17)) for path in ("plain.tabular", "int8.tabular")
    )
    assert not np.array_equal(plain, reduced)
    cosines = (plain * reduced).sum(1) / np.linalg.norm(plain, axis=1) / np.linalg.norm(reduced, axis=1)
    assert cosines.min() > (0.99 if model == "starter" else 0.9)


def test_gpus_and_other_precisions_are_refused() -> None:
    int8_products.check(torch.device("cpu"), "fp32")
    for device, precision in (("cuda", "fp32"), ("cpu", "bf16")):
        with pytest.raises(UserError, match="8-bit products are for processors in float32"):
            int8_products.check(torch.device(device), precision)
