"""Checkpoints: found wherever they are, complete or refused, safe; the tokenizer decides the ids."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from family_cases import tiny
from plm.errors import UserError
from plm.model import encoder
from plm.model.checkpoint import load_model, resolve_model, save_checkpoint, unpack_checkpoint
from plm.model.families import FAMILIES, find_family, prepare
from safetensors.torch import load_file, save_file

PEPTIDE = "MKTAYIAKQRQISFVKSHFSRQ"


@pytest.fixture(params=FAMILIES, ids=lambda family: family.name)
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny(request.param), tmp_path / request.param.name))


def states(source: Path, tmp_path: Path) -> torch.Tensor:
    return encoder.encode(load_model(resolve_model(str(source), workdir=tmp_path)), [PEPTIDE])[0]


def as_bin(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def test_directory_zip_and_weights_only_bin_give_the_same_model(checkpoint: Path, tmp_path: Path) -> None:
    expected = states(checkpoint, tmp_path)
    for depth in ("", "inner/"):
        archive = tmp_path / "model.zip"
        with zipfile.ZipFile(archive, "w") as made:
            for member in checkpoint.iterdir():
                made.write(member, depth + member.name)
        work = tmp_path / f"work{len(depth)}"
        assert torch.equal(states(archive, work), expected)
    as_bin(checkpoint)
    assert torch.equal(states(checkpoint, tmp_path), expected)


def test_a_hub_cache_is_understood(checkpoint: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "cache" / "models--lab--model" / "snapshots" / "abc"
    snapshot.parent.mkdir(parents=True)
    shutil.copytree(checkpoint, snapshot)
    expected = states(checkpoint, tmp_path)
    for folder in (tmp_path / "cache", snapshot.parents[1]):
        assert torch.equal(states(folder, tmp_path), expected)
    shutil.copytree(snapshot, snapshot.with_name("def"))
    with pytest.raises(UserError, match="holds 2 models"):
        resolve_model(str(tmp_path / "cache"), workdir=tmp_path)


def test_the_digest_tells_models_apart(checkpoint: Path, tmp_path: Path) -> None:
    before = resolve_model(str(checkpoint), workdir=tmp_path).sha256
    (checkpoint / "README.md").write_text("a card does not change the model")
    assert resolve_model(str(checkpoint), workdir=tmp_path).sha256 == before
    weights = load_file(checkpoint / "model.safetensors")
    first = sorted(weights)[0]
    weights[first] = weights[first] + 1e-3
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    assert resolve_model(str(checkpoint), workdir=tmp_path).sha256 != before


def test_missing_weights_are_refused_never_filled_at_random(checkpoint: Path, tmp_path: Path) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    victim = sorted(key for key in weights if "layer.1." in key or "block.1." in key)[0]
    del weights[victim]
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="lacks 1 of the model's weights"):
        states(checkpoint, tmp_path)


def test_weights_that_are_not_finite_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    victim = next(key for key in sorted(weights) if "layer.0." in key or "block.0." in key)
    weights[victim].view(-1)[0] = float("nan")
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="NaN"):
        states(checkpoint, tmp_path)


def test_a_pickle_in_disguise_is_not_run(checkpoint: Path, tmp_path: Path) -> None:
    import pickle

    marker = tmp_path / "executed"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (exec, (f"open({str(marker)!r}, 'w')",))

    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "pytorch_model.bin").write_bytes(pickle.dumps({"weights": Evil()}))
    with pytest.raises(UserError, match="cannot be loaded"):
        states(checkpoint, tmp_path)
    (checkpoint / "pytorch_model.bin").rename(checkpoint / "model.safetensors")
    with pytest.raises(UserError, match="cannot be loaded"):
        states(checkpoint, tmp_path)
    assert not marker.exists()


def test_truncated_weights_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    whole = (checkpoint / "model.safetensors").read_bytes()
    (checkpoint / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cannot be loaded"):
        states(checkpoint, tmp_path)


def test_code_in_a_checkpoint_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling_own.Model"}
    (checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="code of its own"):
        states(checkpoint, tmp_path)


@pytest.mark.parametrize("name", ["../escape.json", "/tmp/escape.json"])
def test_an_archive_cannot_write_outside_its_folder(name: str, tmp_path: Path) -> None:
    archive = tmp_path / "model.zip"
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr(name, "{}")
    with pytest.raises(UserError, match="unsafe member"):
        unpack_checkpoint(archive, tmp_path / "inside")
    assert not (tmp_path / "escape.json").exists()


def test_clear_words_for_what_is_not_there(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no model 'nonsense'"):
        resolve_model("nonsense", workdir=tmp_path)
    with pytest.raises(UserError, match="allow-hub"):
        resolve_model("hub:facebook/esm2_t6_8M_UR50D", workdir=tmp_path)
    (tmp_path / "text.zip").write_text("not a zip")
    with pytest.raises(UserError, match="no complete zip file"):
        resolve_model(str(tmp_path / "text.zip"), workdir=tmp_path)
    for name in ("vocab.txt", "spiece.model", "tokenizer.json"):
        (checkpoint / name).unlink(missing_ok=True)
    with pytest.raises(UserError, match="no tokenizer"):
        states(checkpoint, tmp_path)
    (checkpoint / "config.json").unlink()
    with pytest.raises(UserError, match=r"no config\.json"):
        resolve_model(str(checkpoint), workdir=tmp_path)


def test_an_unreachable_hub_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="hub model facebook/esm2_t6_8M_UR50D could not be fetched"):
        resolve_model("hub:facebook/esm2_t6_8M_UR50D", workdir=tmp_path, allow_hub=True)


def test_families_are_told_by_config_and_vocabulary() -> None:
    letters = {letter: index for index, letter in enumerate("ACDEFGHIKLMNPQRSTVWYX")}
    words = {"▁" + letter: index for letter, index in letters.items()}
    assert find_family({"model_type": "esm", "position_embedding_type": "rotary"}, letters).name == "esm2"
    assert find_family({"model_type": "esm", "position_embedding_type": "absolute"}, letters).name == "esm1b"
    assert find_family({"model_type": "t5"}, words).name == "prott5"
    for config, vocabulary in (({"model_type": "t5"}, letters), ({"model_type": "bert"}, letters), ({}, words)):
        with pytest.raises(UserError, match="none that the suite knows"):
            find_family(config, vocabulary)


def test_prepare_keeps_the_length_and_maps_what_models_do_not_know() -> None:
    assert prepare("acUZOBJ*-.xY") == "ACXXXXXXXXXY"


def test_stored_bfloat16_keeps_the_rotary_frequencies(tiny_esm2: Path, tmp_path: Path) -> None:
    """Rounding them to bfloat16 costs 4 to 13 % error; the weights' own rounding far less."""
    loaded = load_model(resolve_model(str(tiny_esm2), workdir=tmp_path), purpose="masked_lm")
    save_checkpoint(loaded.model, tmp_path / "stored", tiny_esm2, dtype="bfloat16")
    stored = load_file(tmp_path / "stored" / "model.safetensors")
    kinds = {name: value.dtype for name, value in stored.items()}
    assert {kind for name, kind in kinds.items() if "inv_freq" not in name} == {torch.bfloat16}
    assert all(kind == torch.float32 for name, kind in kinds.items() if "inv_freq" in name)
    exact, rounded = states(tiny_esm2, tmp_path), states(tmp_path / "stored", tmp_path)
    assert float((rounded - exact).norm() / exact.norm()) < 0.02
