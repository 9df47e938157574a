"""oneDNN keeps something for every shape of a bfloat16 product: few are met, and no result changes by that."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from plm.model import encoder, few_shapes
from plm.model.attention import attend
from plm.model.batching import RowLayout, pack
from plm.model.checkpoint import load_model, resolve_model
from plm.model.families import AMINO_ACIDS


def test_sizes_are_few_and_hardly_larger() -> None:
    lengths = range(1, 36_001)
    wide = {length: few_shapes.attended_length(length) for length in lengths}
    assert all(length <= wide[length] <= max(1.0325 * length, length + 15) for length in lengths)
    assert len(set(wide.values())) < 260
    assert len({wide[length] for length in range(50, 601)}) < 50


@pytest.mark.parametrize(("total", "most"), [(1, 1), (7, 31), (100, 16), (5, 1), (33, 20)])
def test_sequences_of_one_length_go_in_powers_of_two(total: int, most: int) -> None:
    parts = few_shapes.counts(total, most)
    assert sum(parts) == total and max(parts) <= most
    assert all(part & (part - 1) == 0 for part in parts) and parts == sorted(parts, reverse=True)


@pytest.mark.parametrize("lengths", [(300,), (97, 33, 33, 33, 5), (1,), (700, 64, 65)])
@pytest.mark.parametrize("spread", [1.0, 60.0], ids=["usual", "out of range"])
def test_zeros_beyond_a_sequence_change_no_bit_of_its_attention(lengths: tuple[int, ...], spread: float) -> None:
    """Beside others or alone, and within what bfloat16 gives of attention in float64 without zeros."""
    torch.manual_seed(3)
    query, key, value = (torch.randn(sum(lengths), 4, 16) for _ in range(3))
    query, key, value = (states.to(torch.bfloat16) for states in (query * spread, key, value))
    with torch.inference_mode():
        together = attend(query, key, value, RowLayout(lengths), scale=0.25)
        start = 0
        for length in lengths:
            part = slice(start, start + length)
            scores = torch.einsum("qhd,khd->hqk", query[part].double(), key[part].double()) * 0.25
            right = torch.einsum("hqk,khd->qhd", scores.softmax(-1), value[part].double())
            assert float((together[part].double() - right).abs().max()) < (0.02 if spread == 1 else 2.5)
            alone = attend(query[part], key[part], value[part], RowLayout((length,)), scale=0.25)
            assert torch.equal(together[part], alone)
            start += length


@pytest.mark.parametrize("purpose", ["encoder", "masked_lm"])
def test_tokens_that_fill_a_row_change_no_bit(purpose: str, tiny_esm2: Path, tmp_path: Path) -> None:
    loaded = load_model(
        resolve_model(str(tiny_esm2), workdir=tmp_path), purpose=purpose, dtype="bfloat16",  # type: ignore[arg-type]
    )
    chance = random.Random(1)
    texts = ["".join(chance.choices(AMINO_ACIDS, k=length)) for length in (61, 20, 20, 7)]
    batch = pack([loaded.token_ids(text) for text in texts])
    row = few_shapes.filled(batch)
    assert row.tokens % 16 == 0 and row.tokens > batch.tokens and row.lengths[: len(texts)] == batch.lengths
    assert few_shapes.filled(row) is row
    with torch.inference_mode():
        states = encoder.layer_states(loaded, batch, (0, 1, loaded.layers))
        assert [part.shape[0] for part in states] == [batch.tokens] * 3
        alone = [encoder.layer_states(loaded, pack([loaded.token_ids(text)]), (0, 1, loaded.layers)) for text in texts]
        for number, part in enumerate(states):
            assert torch.equal(part, torch.cat([one[number] for one in alone]))
        if purpose == "masked_lm":
            assert encoder.logits(loaded, batch).shape[0] == batch.tokens
