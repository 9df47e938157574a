"""Heads read the right residues, whatever shares the packed row; units answer every row once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from plm.errors import UserError
from plm.model import adapters
from plm.model.checkpoint import load_model, resolve_model
from plm.model.encoder_inputs import make_units, segments
from plm.model.heads import HEADS, build_head
from plm.model.heads.head import PLAIN, HeadConfig, Where
from plm.model.loaded import LoadedModel
from plm.model.network import Network, answers, as_network

LEVELS = ("sequence", "residue", "site")
PROTEINS = ["MKTAYIAKQRQISFVKSHFSRQ", "ACDYK", "GGGYGGG", "MSTNPKPQRKTKRNTNRRPQDVKFPGGY" * 3]
SITES = [4, 3, 3, 27]


@pytest.fixture(scope="module", params=["tiny_esm2", "tiny_t5"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder: Path = request.getfixturevalue(request.param)
    return load_model(resolve_model(str(folder), workdir=tmp_path_factory.mktemp("model")))


def network(loaded: LoadedModel, level: str, method: str = "head", kind: str = PLAIN) -> Network:
    torch.manual_seed(3)
    body = adapters.add_adapters(loaded, adapters.AdapterSettings(method=method))  # type: ignore[arg-type]
    head = build_head(HeadConfig(level, loaded.hidden_size, 2, width=8, reach=4, kind=kind))  # type: ignore[arg-type]
    return as_network(loaded, body, head)


def outputs(net: Network, loaded: LoadedModel, level: str, which: list[int], budget: int = 4096) -> list[np.ndarray]:
    sequences = [PROTEINS[number] for number in which]
    sites = [SITES[number] for number in which] if level == "site" else None
    units = make_units(loaded, level, sequences, sites)  # type: ignore[arg-type]
    found, _ = answers(net, units, budget)
    return found


@pytest.mark.parametrize(("level", "kind"), HEADS)
def test_packed_with_others_equals_alone(loaded: LoadedModel, level: str, kind: str) -> None:
    net = network(loaded, level, kind=kind)
    together = outputs(net, loaded, level, [0, 1, 2, 3])
    for number in range(4):
        alone = outputs(net, loaded, level, [number])[0]
        np.testing.assert_allclose(together[number], alone, atol=1e-5)
    small = outputs(net, loaded, level, [0, 1, 2, 3], budget=30)
    for one, other in zip(together, small, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize(("level", "kind"), HEADS)
def test_order_of_the_batch_does_not_matter(loaded: LoadedModel, level: str, kind: str) -> None:
    net = network(loaded, level, kind=kind)
    forward, backward = (outputs(net, loaded, level, order) for order in ([0, 1, 2, 3], [3, 2, 1, 0]))
    for one, other in zip(forward, reversed(backward), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_site_head_never_reads_beyond_its_sequence() -> None:
    head = build_head(HeadConfig("site", 6, 2, width=4, reach=3)).eval()
    hidden = torch.randn(20, 6)
    none = torch.zeros(0, dtype=torch.int64)
    where = Where(none, none, 1, torch.tensor([8]), torch.tensor([7]), torch.tensor([10]))
    before = head(hidden, where)
    changed = hidden.clone()
    changed[:7], changed[11:] = 99.0, -99.0
    torch.testing.assert_close(head(changed, where), before)
    changed[10] = -changed[10]
    assert not torch.allclose(head(changed, where), before)


def test_residue_head_with_neighbours_reads_within_reach_and_within_the_sequence() -> None:
    head = build_head(HeadConfig("residue", 6, 2, reach=2, neighbour_width=3, kind="neighbours")).eval()
    hidden = torch.randn(12, 6)
    none = torch.zeros(0, dtype=torch.int64)
    where = Where(torch.tensor([1, 2, 3, 4, 7, 8, 9, 10]), torch.tensor([0] * 4 + [1] * 4), 2, none, none, none)
    before = head(hidden, where)
    for token, reached in ((4, {1, 2, 3}), (1, {0, 1, 2}), (7, {4, 5, 6})):
        changed = hidden.clone()
        changed[token] = -hidden[token]
        moved = (~torch.isclose(head(changed, where), before).all(dim=1)).nonzero()[:, 0].tolist()
        assert set(moved) == reached, token
    alone = Where(torch.tensor([7, 8, 9, 10]), torch.zeros(4, dtype=torch.int64), 1, none, none, none)
    torch.testing.assert_close(head(hidden, alone), before[4:])


def test_sequence_head_takes_the_mean_of_residues_only() -> None:
    head = build_head(HeadConfig("sequence", 4, 3))
    hidden = torch.randn(9, 4)
    none = torch.zeros(0, dtype=torch.int64)
    where = Where(torch.tensor([1, 2, 3, 6, 7]), torch.tensor([0, 0, 0, 1, 1]), 2, none, none, none)
    expected = torch.stack([hidden[1:4].mean(0), hidden[6:8].mean(0)])
    torch.testing.assert_close(head.represent(hidden, where), expected)


def test_equal_sequences_are_encoded_once_with_all_their_sites(loaded: LoadedModel) -> None:
    units = make_units(loaded, "site", [PROTEINS[3]] * 3 + [PROTEINS[0]], [5, 9, 27, 4])
    assert [unit.rows for unit in units] == [(0, 1, 2), (3,)]
    net = network(loaded, "site")
    together, _ = answers(net, units, 4096)
    for number, site in enumerate((5, 9, 27)):
        alone, _ = answers(net, make_units(loaded, "site", [PROTEINS[3]], [site]), 4096)
        np.testing.assert_allclose(together[0][number], alone[0][0], atol=1e-5)


def test_a_window_cut_from_the_protein_equals_the_window_itself(loaded: LoadedModel) -> None:
    protein = PROTEINS[3]
    for site in (0, 3, 40, len(protein) - 1):
        start = max(0, site - 5)
        window = protein[start : site + 6]
        whole = make_units(loaded, "site", [protein], [site], window=11)
        given_window = make_units(loaded, "site", [window], [site - start], window=11)
        assert whole == given_window


def test_site_outside_its_sequence_is_an_error(loaded: LoadedModel) -> None:
    with pytest.raises(UserError, match="Position 6 lies outside a sequence of 5 residues"):
        make_units(loaded, "site", ["ACDYK"], [5])


@given(st.integers(1, 3000), st.integers(8, 700))
def test_segments_keep_each_residue_once_with_context(length: int, limit: int) -> None:
    found = segments(length, limit)
    kept = [at for part in found for at in range(part.keep_start, part.keep_end)]
    assert kept == list(range(length))
    for part in found:
        assert 0 <= part.start <= part.keep_start < part.keep_end <= part.end <= length
        assert part.end - part.start <= limit
        margin = min(256, limit // 4)
        assert part.start == 0 or part.keep_start - part.start >= margin
        assert part.end == length or part.end - part.keep_end >= margin


@pytest.mark.parametrize("level", LEVELS)
def test_long_proteins_go_in_segments_and_lose_nothing(loaded: LoadedModel, level: str) -> None:
    protein = PROTEINS[3]
    sites = list(range(len(protein)))
    sequences = [protein] * len(sites) if level == "site" else [protein]
    units = make_units(loaded, level, sequences, sites if level == "site" else None, limit=32)  # type: ignore[arg-type]
    assert all(len(ids) <= 32 + loaded.family.specials for unit in units for ids in unit.tokens)
    total = sum(unit.answers(level) for unit in units)  # type: ignore[arg-type]
    assert total == (1 if level == "sequence" else len(protein))
    if level == "site":
        assert sorted(row for unit in units for row in unit.rows) == sites


@pytest.mark.parametrize("method", adapters.METHODS)
@pytest.mark.parametrize("model", ["tiny_esm2", "tiny_t5"])
def test_adapters_at_the_start_change_nothing(
    model: str, method: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    files = resolve_model(str(request.getfixturevalue(model)), workdir=tmp_path)
    plain = network(load_model(files), "residue")
    fresh = load_model(files)
    adapted = network(fresh, "residue", method)
    adapted.head.load_state_dict(plain.head.state_dict())
    units = make_units(fresh, "residue", PROTEINS)
    one, other = answers(plain, units, 4096)[0], answers(adapted, units, 4096)[0]
    for expected, found in zip(one, other, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)
    every, trainable = adapted.parameter_counts()
    head = sum(p.numel() for p in adapted.head.parameters())
    if method in adapters.FROZEN:
        assert trainable == head
    elif method == "full":
        assert trainable == every
    else:
        assert head < trainable < every


@pytest.mark.parametrize(("level", "kind"), HEADS)
def test_head_adapters_start_as_the_head_and_merge_into_it(
    level: str, kind: str, tiny_esm2: Path, tmp_path: Path
) -> None:
    loaded = load_model(resolve_model(str(tiny_esm2), workdir=tmp_path))
    adapted = network(loaded, level, kind=kind)
    names = list(adapted.head.state_dict())
    units = make_units(loaded, level, PROTEINS, [3] * len(PROTEINS) if level == "site" else None)  # type: ignore[arg-type]
    before = np.concatenate(answers(adapted, units, 4096)[0])
    adapters.add_head_adapters(adapted.head, adapters.AdapterSettings("head_lora", rank=2, dropout=0.0))
    np.testing.assert_array_equal(np.concatenate(answers(adapted, units, 4096)[0]), before)
    trained = {name: p for name, p in adapted.head.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    with torch.no_grad():
        for parameter in trained.values():
            parameter += 0.1
    moved = np.concatenate(answers(adapted, units, 4096)[0])
    assert not np.allclose(moved, before, atol=1e-3)
    adapters.merge_head_adapters(adapted.head)
    assert list(adapted.head.state_dict()) == names
    np.testing.assert_allclose(np.concatenate(answers(adapted, units, 4096)[0]), moved, atol=1e-5)


def test_unknown_target_names_the_layers_there_are(tiny_esm2: Path, tmp_path: Path) -> None:
    loaded = load_model(resolve_model(str(tiny_esm2), workdir=tmp_path))
    with pytest.raises(UserError, match=r"no linear layer named 'queri'.*Choose among .*query"):
        adapters.add_adapters(loaded, adapters.AdapterSettings(targets=("queri",)))


@pytest.mark.parametrize(("level", "kind"), HEADS)
def test_a_head_is_built_from_what_its_manifest_says(level: str, kind: str) -> None:
    config = HeadConfig(level, 12, 3, width=8, reach=2, kind=kind)  # type: ignore[arg-type]
    stored = config.to_json()
    assert HeadConfig(**stored) == config and ("kind" in stored) == (kind != PLAIN)
    assert type(build_head(HeadConfig(**stored))) is HEADS[level, kind]
