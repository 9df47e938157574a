"""The same random weights in fair-esm and here: representations of every layer, logits, contacts, bfloat16."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from plm.model import batching, encoder
from plm.model.checkpoint import load_model, resolve_model
from plm.model.loaded import LoadedModel
from reference import ESM2_SHAPES, fair_esm1b, fair_esm2
from torch.nn import functional

EXACT = 2e-5
LENGTHS = (300, 150, 61, 33, 33, 2)


def sequences(lengths: tuple[int, ...] = LENGTHS) -> list[str]:
    letters = random.Random(5)
    return ["".join(letters.choices("ACDEFGHIKLMNPQRSTVWYX", k=length)) for length in lengths]


def load(folder: Path, tmp_path: Path, **options: Any) -> LoadedModel:
    return load_model(resolve_model(str(folder), workdir=tmp_path), purpose="masked_lm", **options)


def relative_l2(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def compare(reference: Any, loaded: LoadedModel, *, contacts: bool = True) -> None:
    """Packed rows with mask tokens against the reference, one sequence at a time."""
    rows = [loaded.token_ids(sequence) for sequence in sequences()]
    rows[1][5] = rows[1][50] = rows[3][7] = loaded.vocabulary["<mask>"]
    batch = batching.pack(rows)
    layers = list(range(loaded.layers + 1))
    with torch.inference_mode():
        states = [one.split(list(batch.lengths)) for one in encoder.layer_states(loaded, batch, layers)]
        logits = encoder.logits(loaded, batch).split(list(batch.lengths))
        for number, row in enumerate(rows):
            expected = reference(torch.tensor([row]), repr_layers=layers)
            for layer in layers:
                assert relative_l2(states[layer][number], expected["representations"][layer][0]) <= EXACT, layer
            assert relative_l2(logits[number], expected["logits"][0]) <= EXACT
        if contacts:
            for sequence in sequences((61, 33)):
                tokens = torch.tensor([loaded.token_ids(sequence)])
                expected = reference(tokens, return_contacts=True)["contacts"][0]
                found = encoder.contacts(loaded, sequence)
                assert found.shape == (len(sequence), len(sequence))
                assert relative_l2(found, expected) <= EXACT
                assert float(expected.std()) > 1e-4  # not all the same, which anything would match


@pytest.mark.parametrize(
    "shape", ["8M", pytest.param("35M", marks=pytest.mark.slow), pytest.param("150M", marks=pytest.mark.slow)]
)
def test_esm2(shape: str, tmp_path: Path) -> None:
    reference = fair_esm2(ESM2_SHAPES[shape], tmp_path / "m")
    compare(reference, load(tmp_path / "m", tmp_path))


def test_esm1b(tmp_path: Path) -> None:
    """Learned positions and a first layer norm, which transformers leaves out where embeddings are given."""
    reference = fair_esm1b((4, 128, 8), tmp_path / "m")
    loaded = load(tmp_path / "m", tmp_path)
    assert loaded.family.name == "esm1b"
    compare(reference, loaded)


@pytest.mark.slow
def test_esm1b_in_its_real_width(tmp_path: Path) -> None:
    reference = fair_esm1b((3, 1280, 20), tmp_path / "m")
    compare(reference, load(tmp_path / "m", tmp_path), contacts=False)


@pytest.mark.parametrize("shape", ["8M", pytest.param("150M", marks=pytest.mark.slow)])
def test_bfloat16_stays_near_float32(shape: str, tmp_path: Path) -> None:
    reference = fair_esm2(ESM2_SHAPES[shape], tmp_path / "m")
    rough = load(tmp_path / "m", tmp_path, dtype="bfloat16")
    proteins = sequences((700, 300, 120, 60, 60, 33))
    batch = batching.pack([rough.token_ids(protein) for protein in proteins])
    last = rough.layers
    with torch.inference_mode():
        found = encoder.residues(encoder.layer_states(rough, batch, [last])[0].float(), batch, rough.family)
        similar = []
        for protein, state in zip(proteins, found, strict=True):
            expected = reference(torch.tensor([rough.token_ids(protein)]), repr_layers=[last])["representations"]
            expected = expected[last][0, 1:-1]
            assert functional.cosine_similarity(state.mean(0), expected.mean(0), dim=0) >= 0.9995
            similar.append(functional.cosine_similarity(state, expected, dim=-1))
    assert float(torch.cat(similar).quantile(0.01)) >= 0.999


def test_contacts_need_a_trained_regression(tiny_esm2: Path, tiny_t5: Path, tmp_path: Path) -> None:
    from plm.errors import UserError

    for folder in (tiny_esm2, tiny_t5):
        loaded = load_model(resolve_model(str(folder), workdir=tmp_path))
        with pytest.raises(UserError, match="no contact regression"):
            encoder.contacts(loaded, "MKTAYIAK")


def test_stored_outputs_are_compared_by_one_command(tmp_path: Path, root: Path) -> None:
    """scripts/benchmarks/check_goldens on outputs of fair-esm's own making: equal weights pass, others fail."""
    import subprocess
    import sys

    from safetensors.torch import save_file

    reference = fair_esm2((2, 64, 4), tmp_path / "m")
    loaded = load(tmp_path / "m", tmp_path)
    rows = [loaded.token_ids(sequence) for sequence in sequences((20, 33))]
    ids = torch.tensor([row + [1] * (35 - len(row)) for row in rows])
    with torch.inference_mode():
        found = [reference(torch.tensor([row]), repr_layers=[2]) for row in rows]
    states, logits = torch.zeros((2, 35, 64)), torch.zeros((2, 35, 33))
    for number, row in enumerate(rows):
        states[number, : len(row)] = found[number]["representations"][2][0]
        logits[number, : len(row)] = found[number]["logits"][0]
    stored = {"input__input_ids": ids, "input__attention_mask": (ids != 1).long()}
    save_file(
        {**stored, "output__last_hidden_state": states, "output__logits": logits}, tmp_path / "goldens.safetensors"
    )
    fair_esm2((3, 64, 4), tmp_path / "other")
    script = root / "scripts" / "benchmarks" / "check_goldens"
    command = [sys.executable, str(script), "--goldens", tmp_path / "goldens.safetensors"]
    good, other = (
        subprocess.run([*command, "--model", tmp_path / name], capture_output=True, text=True)
        for name in ("m", "other")
    )
    assert good.returncode == 0, good.stderr
    assert good.stdout.count(" ok") == 4
    assert other.returncode == 1 and "MORE THAN" in other.stdout
