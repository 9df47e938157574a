"""LoRA layers for training compute what PEFT's compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.tuners.lora.layer import Linear
from plm.model import encoder, low_rank
from plm.model.adapters import AdapterSettings, add_adapters
from plm.model.batching import pack
from plm.model.checkpoint import load_model, resolve_model
from plm.model.loaded import LoadedModel
from torch import nn

SEQUENCES = ("MKVLAAGS", "MSTNPKPQRKTKRNTNRRPQDVKFPGGGQIVGGVYLLPRRG", "MKK")


@pytest.fixture(params=["tiny_esm2", "tiny_t5"])
def folder(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


def load(folder: Path, tmp_path: Path, dtype: str = "float32") -> LoadedModel:
    return load_model(resolve_model(str(folder), workdir=tmp_path), dtype=dtype)


def adapted(loaded: LoadedModel, **settings: Any) -> nn.Module:
    """With adapters that change something."""
    model = add_adapters(loaded, AdapterSettings(**settings))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_" in name:
                value.copy_(0.1 * torch.randn(value.shape, generator=generator))
    return model.train()


def trained(model: nn.Module, loaded: LoadedModel) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Hidden states and the adapters' gradients; T5's own dropout falls as the seed has it."""
    torch.manual_seed(11)
    model.zero_grad()
    batch = pack([loaded.token_ids(sequence) for sequence in SEQUENCES])
    states = encoder.hidden_states(model, batch)
    states.float().square().mean().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return states.detach(), gradients


def test_states_and_gradients_are_pefts(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load(folder, tmp_path)
    model = adapted(loaded, dropout=0.0)
    used = [module for module in model.modules() if isinstance(module, Linear)]
    assert used and all(type(module) is low_rank.LowRankLinear for module in used)
    states, gradients = trained(model, loaded)
    monkeypatch.setattr(low_rank.LowRankLinear, "_plain", lambda self, x: False)
    expected, theirs = trained(model, loaded)
    torch.testing.assert_close(states, expected, rtol=1e-5, atol=1e-5)
    assert gradients.keys() == theirs.keys() and all("lora_" in name for name in gradients)
    for name, gradient in gradients.items():
        assert float(gradient.abs().max()) > 0
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-4, atol=1e-6)


def test_bfloat16_is_as_near_to_float32_as_pefts(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exact_loaded = load(folder, tmp_path)
    _, exact = trained(adapted(exact_loaded, dropout=0.0), exact_loaded)
    loaded = load(folder, tmp_path, "bfloat16")
    model = adapted(loaded, dropout=0.0)
    _, gradients = trained(model, loaded)
    monkeypatch.setattr(low_rank.LowRankLinear, "_plain", lambda self, x: False)
    _, theirs = trained(model, loaded)

    def off(found: dict[str, torch.Tensor]) -> float:
        above = sum(float((found[name] - exact[name]).square().sum()) for name in exact)
        return (above / sum(float(value.square().sum()) for value in exact.values())) ** 0.5

    assert all(value.dtype == torch.float32 for value in gradients.values())
    assert off(gradients) <= max(1.5 * off(theirs), 5e-3)


def test_dropout_has_its_probability_and_its_gradient() -> None:
    torch.manual_seed(1)
    mask, share = low_rank.kept(torch.empty(401, 997), 0.3)
    assert mask.shape == (401, 997) and share == pytest.approx(0.7, abs=1e-5)
    assert float(mask.float().mean()) == pytest.approx(0.7, abs=0.005)
    assert mask.unique().tolist() == [0, 1]
    # No pattern of the four values that are drawn together.
    each = [float(mask.flatten()[place::4].float().mean()) for place in range(4)]
    assert each == pytest.approx([0.7] * 4, abs=0.01)

    shapes = ((5, 6), (4, 6), (4,), (2, 6), (4, 2))
    x, weight, bias, a, b = (torch.randn(shape, dtype=torch.float64) for shape in shapes)

    def layer(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(3)
        found: torch.Tensor = low_rank._LowRank.apply(x, weight, bias, a, b, 2.0, 0.4)
        return found

    assert torch.autograd.gradcheck(layer, [tensor.requires_grad_() for tensor in (x, a, b)])
    torch.manual_seed(3)
    mask, share = low_rank.kept(x, 0.4)
    expected = x @ weight.t() + bias + 2.0 * (x * mask / share) @ a.t() @ b.t()
    torch.testing.assert_close(layer(x, a, b), expected)


def test_without_gradients_or_with_other_adapters_peft_computes(
    tiny_esm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(low_rank._LowRank, "apply", lambda *args: calls.append(1))
    loaded = load(tiny_esm2, tmp_path)
    model = adapted(loaded)
    batch = pack([loaded.token_ids(sequence) for sequence in SEQUENCES])
    with torch.no_grad():
        encoder.hidden_states(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        encoder.hidden_states(model, batch)
    dora = load(tiny_esm2, tmp_path)
    encoder.hidden_states(adapted(dora, method="dora"), batch)
    assert not calls


def test_checkpointing_draws_the_same_mask(tiny_esm2: Path, tmp_path: Path) -> None:
    loaded = load(tiny_esm2, tmp_path)
    model = adapted(loaded, dropout=0.5)
    states, gradients = trained(model, loaded)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[operator]
    again, others = trained(model, loaded)
    torch.testing.assert_close(again, states)
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient)


def test_files_are_pefts_own(tiny_esm2: Path, tmp_path: Path) -> None:
    from plm.model.adapters import save_adapter

    loaded = load(tiny_esm2, tmp_path)
    model = adapted(loaded).eval()
    save_adapter(model, tmp_path / "adapter")
    batch = pack([loaded.token_ids(sequence) for sequence in SEQUENCES])
    plain = peft.PeftModel.from_pretrained(load(tiny_esm2, tmp_path).model, str(tmp_path / "adapter")).eval()
    with torch.no_grad():
        torch.testing.assert_close(encoder.hidden_states(plain, batch), encoder.hidden_states(model, batch))
