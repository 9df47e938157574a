"""Products of float32 by oneDNN: the numbers of torch's own, the same to the bit in every row, and only where asked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from plm.model import encoder, float_products
from plm.model.batching import pack
from plm.model.checkpoint import load_model, resolve_model
from plm.model.float_products import ProcessorLinear
from torch import nn
from torch.nn import functional

here = pytest.mark.skipif(
    not float_products.by_onednn(), reason="NO AVX-512: float32 products by oneDNN are not tested here"
)


def layer(width: int, outputs: int, *, bias: bool = True) -> ProcessorLinear:
    torch.manual_seed(width)
    blocks = nn.ModuleList([nn.Linear(width, outputs, bias=bias)])
    float_products.adapt(nn.ModuleDict({"blocks": blocks}))
    made = blocks[0]
    assert isinstance(made, ProcessorLinear)
    return made


@here
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(40, 80), (320, 1280), (640, 640), (2560, 640), (33, 7)])
def test_a_token_has_the_same_bits_in_every_row(shape: tuple[int, int], bias: bool) -> None:
    made = layer(*shape, bias=bias)
    states = torch.randn(1, 1100, shape[0])
    with torch.inference_mode():
        whole = made(states)
        plain = functional.linear(states, made.weight, made.bias)
        assert float((whole - plain).norm() / plain.norm()) < 1e-6
        for start, count in ((0, 2), (5, 3), (7, 33), (1, 64), (300, 127), (11, 500), (0, 1024)):
            part = slice(start, start + count)
            assert torch.equal(made(states[:, part]), whole[:, part]), (start, count)
            assert torch.equal(made(states[0, part].clone()), whole[0, part]), (start, count)


@here
def test_gradients_autocast_and_other_types_take_torchs_own() -> None:
    made = layer(64, 48)
    states = torch.randn(20, 64)
    plain = functional.linear(states, made.weight, made.bias)
    assert torch.equal(made(states), plain)
    made(states).sum().backward()
    assert made.weight.grad is not None
    with torch.inference_mode():
        with torch.autocast("cpu", torch.bfloat16):
            assert made(states).dtype == torch.bfloat16
        halved = layer(64, 48).to(torch.bfloat16)
        assert torch.equal(
            halved(states.bfloat16()), functional.linear(states.bfloat16(), halved.weight, halved.bias)
        )


def test_layers_of_blocks_are_changed_and_restored(tiny_esm2: Path, tmp_path: Path) -> None:
    loaded = load_model(resolve_model(str(tiny_esm2), workdir=tmp_path), purpose="masked_lm")
    names = [name for name, module in loaded.model.named_modules() if type(module) is ProcessorLinear]
    assert len(names) == 6 * loaded.layers and all(".layer." in name for name in names)
    state = loaded.model.state_dict()
    float_products.restore(loaded.model)
    assert not [one for one in loaded.model.modules() if isinstance(one, ProcessorLinear)]
    assert state.keys() == loaded.model.state_dict().keys()


@here
def test_rows_are_filled_so_that_few_shapes_occur(tiny_esm2: Path, tmp_path: Path) -> None:
    """oneDNN keeps memory for every shape that it has met; what fills a row changes no bit."""
    loaded = load_model(resolve_model(str(tiny_esm2), workdir=tmp_path))
    seen: set[int] = set()
    first = next(one for one in loaded.model.modules() if isinstance(one, ProcessorLinear))
    first.register_forward_pre_hook(lambda module, given: seen.add(given[0].shape[1]))
    texts = ["MKVLAAGIRSTYW"[: 5 + number % 9] * (1 + number) for number in range(40)]
    rows = [pack([loaded.token_ids(text) for text in texts[:count]]) for count in range(1, 40)]
    with torch.inference_mode():
        states = [encoder.hidden_states(loaded.model, row) for row in rows]
    assert all(tokens % 16 == 0 for tokens in seen)
    for row, mine in zip(rows, states, strict=True):
        assert torch.equal(mine[: rows[0].tokens], states[0]) and len(mine) == row.tokens
