"""LoRA over a frozen base of 8 or 4 bits: only where bitsandbytes is installed."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

import pytest
import torch
from family_cases import load, protein, relative_l2
from plm.errors import UserError
from plm.model import encoder, quantised_base
from plm.model.adapters import AdapterSettings, add_adapters
from plm.model.batching import pack

DATA = Path(__file__).resolve().parents[1] / "test-data"
INSTALLED = importlib.util.find_spec("bitsandbytes") is not None
needs_library = pytest.mark.skipif(not INSTALLED, reason="BITSANDBYTES ABSENT: a reduced base is not tested here")


def test_what_cannot_be_trained_on_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    quantised_base.check(16, ("full",))
    with pytest.raises(UserError, match="--method full does not go with a base of 8 bits"):
        quantised_base.check(8, ("lora", "full"))
    monkeypatch.setattr(quantised_base.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the library bitsandbytes"):
        quantised_base.check(4, ("lora",))


@needs_library
@pytest.mark.parametrize(("bits", "size", "error"), [(8, 0.55, 0.02), (4, 0.3, 0.1)])
def test_the_base_is_smaller_and_adapters_learn(bits: int, size: float, error: float, tmp_path: Path) -> None:
    starter = DATA.parent / "tools" / "models" / "starter"
    plain = load(starter, tmp_path, dtype="bfloat16")
    loaded = quantised_base.reduced(load(starter, tmp_path, dtype="bfloat16"), bits, torch.device("cpu"))
    bytes_of = [sum(p.numel() * p.element_size() for p in one.model.parameters()) for one in (plain, loaded)]
    assert bytes_of[1] < size * bytes_of[0]
    texts = [protein(60)]
    assert relative_l2(encoder.encode(loaded, texts)[0], encoder.encode(plain, texts)[0]) < error
    network = add_adapters(loaded, AdapterSettings()).train()
    hidden = encoder.hidden_states(network, pack([loaded.token_ids(texts[0])]))
    hidden.float().square().sum().backward()
    gradients = {name: p.grad for name, p in network.named_parameters() if p.requires_grad}
    assert gradients and all("lora_" in name for name in gradients)
    assert all(value is not None and bool(value.isfinite().all()) for value in gradients.values())


@needs_library
@pytest.mark.slow
def test_a_bundle_trained_on_it_is_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    line = (
        f"--dataset {DATA}/dataset_classes.tabular --model starter --epochs 1 --bundle b.zip --predictions p.tabular "
        "--history h.tabular --curves c.png --report r.md --device cpu --base-bits 4"
    )
    importlib.import_module("plm_finetune").run(line.split())
    assert "self-test" in capsys.readouterr().out
    assert Path("b.zip").is_file()
