"""The padding-free encoder: equal to fair-esm, to transformers' own classes and to itself however sequences are
packed."""

from __future__ import annotations

import random
from pathlib import Path

import family_cases
import pytest
import torch
from family_cases import load, own_ids, plain, relative_l2
from plm.model import batching, encoder
from plm.model.families import FAMILIES, ModelFamily
from plm.model.loaded import LoadedModel

LENGTHS = (1, 7, 33, 33, 64, 65, 120, 300)


def proteins(lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> list[str]:
    letters = random.Random(seed)
    return ["".join(letters.choices("ACDEFGHIKLMNPQRSTVWYX", k=length)) for length in lengths]


@pytest.fixture(params=FAMILIES, ids=lambda family: family.name)
def tiny(request: pytest.FixtureRequest, tmp_path: Path) -> LoadedModel:
    return load(family_cases.tiny(request.param), tmp_path)


def test_packed_equals_one_by_one(tiny: LoadedModel) -> None:
    sequences = proteins()
    together = encoder.encode(tiny, sequences, budget=10_000)
    for sequence, found in zip(sequences, together, strict=True):
        alone = encoder.encode(tiny, [sequence])[0]
        assert found.shape == (len(sequence), tiny.hidden_size)
        assert relative_l2(found, alone) <= 1e-5


def test_any_budget_and_order_gives_the_same(tiny: LoadedModel) -> None:
    sequences = proteins()
    reference = encoder.encode(tiny, sequences, budget=10_000)
    for budget in (1, 70, 400):
        for found, expected in zip(encoder.encode(tiny, sequences, budget=budget), reference, strict=True):
            assert relative_l2(found, expected) <= 1e-5
    backwards = encoder.encode(tiny, sequences[::-1], budget=400)[::-1]
    for found, expected in zip(backwards, reference, strict=True):
        assert relative_l2(found, expected) <= 1e-5


def test_equals_transformers_own_class(tiny: LoadedModel) -> None:
    """The published classes with their own tokenizer, one sequence at a time, eager attention."""
    folder = family_cases.tiny(tiny.family)
    reference = plain(tiny.family, folder, headed=False)
    for sequence, found in zip(proteins(), encoder.encode(tiny, proteins()), strict=True):
        ids = own_ids(tiny.family, folder, sequence)
        assert ids == tiny.token_ids(sequence)
        with torch.inference_mode():
            states = reference(torch.tensor([ids])).last_hidden_state[0]
        before, after = len(tiny.family.before), len(tiny.family.after)
        assert relative_l2(found, states[before : len(states) - after]) <= 1e-5


@pytest.mark.parametrize("family", [one for one in FAMILIES if one.language_model_class], ids=lambda one: one.name)
def test_masked_rows_packed_equal_one_by_one(family: ModelFamily, tmp_path: Path) -> None:
    """ESM's token dropout rescales by the share of masked tokens: of the sequence, not of the row."""
    loaded = load(family_cases.tiny(family), tmp_path, purpose="masked_lm")
    mask = loaded.vocabulary[family.mask]
    ids = [loaded.token_ids(sequence) for sequence in proteins()]
    for number, row in enumerate(ids):
        for position in range(1, len(row) - 1, number + 2):
            row[position] = mask
    batch = batching.pack(ids)
    with torch.inference_mode():
        packed = encoder.forward(loaded.model, batch).logits[0].split(list(batch.lengths))
        for row, found in zip(ids, packed, strict=True):
            alone = encoder.forward(loaded.model, batching.pack([row])).logits[0]
            assert relative_l2(found, alone) <= 1e-5


def test_gradients_pass_and_checkpointing_changes_nothing(tiny: LoadedModel) -> None:
    ids = [tiny.token_ids(sequence) for sequence in proteins((12, 33, 33, 80))]
    batch = batching.pack(ids)
    gradients = []
    for checkpointing in (False, True):
        tiny.model.train()
        if checkpointing:
            tiny.model.gradient_checkpointing_enable({"use_reentrant": False})
        for module in tiny.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            if hasattr(module, "dropout") and isinstance(module.dropout, float):
                module.dropout = 0.0
        tiny.model.zero_grad()
        encoder.hidden_states(tiny.model, batch).square().mean().backward()
        gradients.append([p.grad.clone() for p in tiny.model.parameters() if p.grad is not None])
    assert len(gradients[0]) > 10
    for one, again in zip(*gradients, strict=True):
        torch.testing.assert_close(one, again)


def test_lora_at_the_start_equals_the_base_model(tiny: LoadedModel) -> None:
    from peft import LoraConfig, get_peft_model

    sequences = proteins((20, 33, 50))
    before = encoder.encode(tiny, sequences)
    wrapped = get_peft_model(tiny.model, LoraConfig(r=4, target_modules=list(tiny.family.attention_targets)))
    wrapped.eval()
    batch = batching.pack([tiny.token_ids(sequence) for sequence in sequences])
    with torch.inference_mode():
        after = encoder.residues(encoder.hidden_states(wrapped, batch), batch, tiny.family)
    for one, other in zip(before, after, strict=True):
        assert relative_l2(other, one) <= 1e-6
    trained = sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
    config = wrapped.config
    inner = config.num_attention_heads * getattr(config, "d_kv", config.hidden_size // config.num_attention_heads)
    assert trained == 2 * 4 * 4 * (config.hidden_size + inner)  # 2 layers, 4 projections, rank 4, both sides


def test_bfloat16_stays_close(tiny_esm2: Path, tmp_path: Path) -> None:
    exact = load(tiny_esm2, tmp_path)
    rough = load(tiny_esm2, tmp_path, dtype="bfloat16")
    sequences = proteins((33, 120))
    for one, other in zip(encoder.encode(exact, sequences), encoder.encode(rough, sequences), strict=True):
        assert torch.nn.functional.cosine_similarity(one.mean(0), other.mean(0), dim=0) >= 0.9995
    assert rough.model.rotary_embeddings.inv_freq.dtype == torch.float32


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_bfloat16_is_as_near_as_the_plain_class(family: ModelFamily, tmp_path: Path) -> None:
    exact, rough = (load(family_cases.tiny(family), tmp_path, dtype=kind) for kind in ("float32", "bfloat16"))
    reference = plain(family, family_cases.tiny(family), headed=False).to(torch.bfloat16)
    for sequence in proteins((33, 600)):
        wanted, ids = encoder.encode(exact, [sequence])[0], exact.token_ids(sequence)
        with torch.inference_mode():
            states = reference(torch.tensor([ids])).last_hidden_state[0].float()
        theirs = relative_l2(states[len(family.before) : len(ids) - len(family.after)], wanted)
        assert relative_l2(encoder.encode(rough, [sequence])[0], wanted) <= 1.3 * theirs


def test_plan_batches_keeps_every_sequence_and_the_budget() -> None:
    lengths = [random.Random(3).randint(1, 900) for _ in range(500)] + [5000]
    for seed in (None, 1, 2):
        rows = batching.plan_batches(lengths, 2000, seed=seed)
        assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
        assert all(sum(lengths[i] for i in row) <= 2000 or len(row) == 1 for row in rows)
    assert batching.plan_batches(lengths, 2000, seed=1) == batching.plan_batches(lengths, 2000, seed=1)
    assert batching.plan_batches(lengths, 2000, seed=1) != batching.plan_batches(lengths, 2000, seed=2)
    assert batching.plan_batches([], 10) == []


def test_equal_sequences_are_computed_once(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = encoder.hidden_states
    monkeypatch.setattr(
        encoder, "hidden_states", lambda model, batch: seen.append(len(batch.lengths)) or real(model, batch)
    )
    one, two, three = encoder.encode(tiny, ["MKTAYI", "GGSS", "MKTAYI"])
    assert sum(seen) == 2
    assert torch.equal(one, three) and one.shape != two.shape
