"""plm_convert: every direction against random weights of the original class, round trips to the bit, and bad input."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import shutil
import zipfile
from argparse import Namespace
from collections.abc import Callable
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

import h5py
import numpy as np
import peft
import plm_convert
import plm_embed
import pytest
import torch
import transformers
from bundle_cases import random_bundle
from conversion_cases import ALPHABET, an_adapter, convert, fair, published, tiny_folder, told, unpacked
from family_cases import every_family, plain, protein, relative_l2, tiny
from megatron_reference import TOKENS, MegatronReference
from plm.data.task import Task
from plm.errors import UserError
from plm.jobs.convert.megatron import parted
from plm.model.bundles.fine_tuned import load_bundle
from plm.model.checkpoint import load_model, resolve_model
from plm.model.encoder import contacts
from plm.model.families import ESM1B, ModelFamily
from plm.received.training_checkpoints import read_training_checkpoint
from safetensors.torch import load_file, save_file

esm = pytest.importorskip("esm", reason="fair-esm, the reference implementation, is not installed")
TOLERANCE = 2e-5
PROTEIN = protein(45)
IDS = torch.tensor([[ALPHABET.cls_idx, *map(ALPHABET.get_idx, PROTEIN), ALPHABET.eos_idx]])
ESMS = ("esm2", "esm1b", "esm1v")


# ------------------------------------------------------------------------------------------------------------ fair-esm


def read_by_fair_esm(path: Path) -> Any:
    with torch.serialization.safe_globals([argparse.Namespace]):
        model, _ = esm.pretrained.load_model_and_alphabet_local(str(path))
    return model.eval()


@pytest.mark.parametrize("kind", ESMS)
def test_fair_esm_answers_alike_in_hugging_face(kind: str, tmp_path: Path) -> None:
    model = fair(kind)
    out = convert(tmp_path, published(model, kind, tmp_path / "fair"))
    folder = unpacked(out, tmp_path / "hf")
    with torch.no_grad():
        expected = model(IDS, repr_layers=[0, 1, 2], return_contacts=True)
        theirs = transformers.EsmForMaskedLM.from_pretrained(folder, attn_implementation="eager").eval()
        plainly = theirs(IDS, output_hidden_states=True)
        assert relative_l2(plainly.logits, expected["logits"]) <= TOLERANCE
        for layer, states in expected["representations"].items():
            assert relative_l2(plainly.hidden_states[layer], states) <= TOLERANCE
    loaded = load_model(resolve_model(str(out), workdir=tmp_path / "w"), purpose="masked_lm")
    assert loaded.has_contacts == (kind != "esm1v")
    if loaded.has_contacts:
        assert torch.allclose(contacts(loaded, PROTEIN), expected["contacts"][0], atol=1e-5)
    text = told(tmp_path)
    assert ("contacts cannot be predicted" in text) == (kind == "esm1v")
    assert "representations, as fair-esm computes them from the input" in text


@pytest.mark.parametrize("kind", ESMS)
def test_masked_residues_count_alike(kind: str, tmp_path: Path) -> None:
    """Token dropout scales embeddings by the share of masked tokens."""
    model, ids = fair(kind), IDS.clone()
    ids[0, [3, 9, 30]] = ALPHABET.mask_idx
    folder = unpacked(convert(tmp_path, published(model, kind, tmp_path / "fair")), tmp_path / "hf")
    theirs = transformers.EsmForMaskedLM.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        assert relative_l2(theirs(ids).logits, model(ids)["logits"]) <= TOLERANCE


@pytest.mark.parametrize("kind", ESMS)
def test_fair_esm_round_trip_to_the_bit(kind: str, tmp_path: Path) -> None:
    model = fair(kind)
    source = published(model, kind, tmp_path / "fair")
    there = convert(tmp_path, source, out=f"{kind}_tiny.zip")
    back = unpacked(convert(tmp_path, there, to="fair-esm", out="back.zip"), tmp_path / "back")
    again = read_by_fair_esm(back / f"{kind}_tiny.pt")
    before, after = read_by_fair_esm(source).state_dict(), again.state_dict()
    if kind == "esm1v":  # fair-esm fills the regression that its files lack at random
        before, after = ({key: value for key, value in one.items() if "contact" not in key} for one in (before, after))
    assert set(before) == set(after) and all(torch.equal(before[key], after[key]) for key in before)
    with torch.no_grad():
        assert torch.equal(again(IDS)["logits"], model(IDS)["logits"])


def test_hugging_face_round_trip_to_the_bit(tmp_path: Path) -> None:
    source = tiny(ESM1B)
    there = convert(tmp_path, source, to="fair-esm", out="esm1b.zip")
    back = unpacked(convert(tmp_path, there, out="back.zip"), tmp_path / "back")
    before = {
        key.replace(".gamma", ".weight").replace(".beta", ".bias"): value
        for key, value in load_file(source / "model.safetensors").items()
    }
    after = load_file(back / "model.safetensors")
    before["esm.embeddings.word_embeddings.weight"][32] = 0  # the mask, as fair-esm reads such models
    assert set(after) == set(before) and all(torch.equal(after[key], before[key]) for key in after)
    assert "embedding of the mask is set to zero" in told(tmp_path)


def test_stored_types_are_kept_or_chosen(tmp_path: Path) -> None:
    source = published(fair("esm2"), "esm2", tmp_path / "fair", torch.float16)
    kept = load_file(unpacked(convert(tmp_path, source), tmp_path / "kept") / "model.safetensors")
    assert {value.dtype for value in kept.values()} == {torch.float16}
    wide = load_file(
        unpacked(convert(tmp_path, source, "--dtype", "float32", out="w.zip"), tmp_path / "w") / "model.safetensors"
    )
    assert {value.dtype for value in wide.values()} == {torch.float32}
    assert all(torch.equal(wide[key].half(), kept[key]) for key in kept)


def test_a_zip_and_several_files_are_the_same_input(tmp_path: Path) -> None:
    source = published(fair("esm2"), "esm2", tmp_path / "fair")
    regression = source.with_name("esm2_tiny-contact-regression.pt")
    apart = shutil.copy(regression, tmp_path / "regression.pt")
    with zipfile.ZipFile(tmp_path / "esm2_tiny.zip", "w") as opened:
        opened.write(source, "inside/esm2_tiny.pt")
        opened.write(regression, "inside/other.pt")
    first = convert(tmp_path, source, out="1.zip").read_bytes()
    assert convert(tmp_path, tmp_path / "esm2_tiny.zip", out="2.zip").read_bytes() == first
    assert convert(tmp_path, [source, regression], out="3.zip").read_bytes() == first
    regression.unlink()
    assert convert(tmp_path, source, "--contact-regression", apart, out="4.zip").read_bytes() == first


@pytest.mark.parametrize("kind", ["fair-esm", "megatron"])
def test_files_of_the_time_before_zips(kind: str, tmp_path: Path) -> None:
    if kind == "megatron":
        source = MegatronReference().save(tmp_path / "m")
        (source / "vocab.txt").write_text("\n".join(TOKENS))
        file = source / "mp_rank_00" / "model_optim_rng.pt"
    else:
        file = source = published(fair("esm2"), "esm2", tmp_path / "fair")
    first = load_file(unpacked(convert(tmp_path, source, out="1.zip"), tmp_path / "1") / "model.safetensors")
    content = torch.load(file, weights_only=False)  # written above
    torch.save(content, file, _use_new_zipfile_serialization=False)
    assert file.read_bytes()[:1] == b"\x80"
    again = load_file(unpacked(convert(tmp_path, source, out="2.zip"), tmp_path / "2") / "model.safetensors")
    assert set(again) == set(first) and all(torch.equal(again[key], first[key]) for key in first)


def test_weights_as_bin_become_safetensors(tmp_path: Path) -> None:
    source = Path(shutil.copytree(tiny_folder("tiny_bert"), tmp_path / "m"))
    weights = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    torch.save(weights, source / "pytorch_model.bin")
    made = load_file(unpacked(convert(tmp_path, source), tmp_path / "hf") / "model.safetensors")
    assert set(made) == set(weights) and all(torch.equal(made[key], weights[key]) for key in made)


@pytest.mark.parametrize("to", ["onnx", "encoder", "int8"])
def test_steps_follow_each_other(to: str, tmp_path: Path) -> None:
    source = MegatronReference().save(tmp_path / "m", partitions=2)
    (source / "vocab.txt").write_text("\n".join(TOKENS))
    out = convert(tmp_path, source, to=to)
    text = told(tmp_path)
    assert "as Megatron computes them from the input" in text and text.count("| representations") + text.count(
        "| encoder, before"
    ) == 2
    if to != "onnx":
        assert load_model(resolve_model(str(out), workdir=tmp_path / "w")).hidden_size == 32


def test_what_is_unknown_is_listed_and_kept(tmp_path: Path) -> None:
    source = published(fair("esm2"), "esm2", tmp_path / "fair")
    with torch.serialization.safe_globals([argparse.Namespace]):
        content = torch.load(source)
    content["model"]["encoder.structure_head.weight"] = torch.arange(6.0).view(2, 3)
    content["last_optimizer_state"] = {"state": {}}
    torch.save(content, source)
    folder = unpacked(convert(tmp_path, source), tmp_path / "hf")
    rest = load_file(folder / "not_converted.safetensors")
    assert list(rest) == ["structure_head.weight"]
    assert torch.equal(rest["structure_head.weight"].flatten(), torch.arange(6.0))
    text = told(tmp_path)
    assert "1 tensors of the input have no place in the result: structure\\_head.weight" in text
    assert "last\\_optimizer\\_state of the training" in text
    assert load_model(resolve_model(str(tmp_path / "out.zip"), workdir=tmp_path / "w")).layers == 2


# ------------------------------------------------------------------------------------------------------------ Megatron


def megatron_ids() -> torch.Tensor:
    return torch.tensor([[TOKENS.index("[CLS]"), *map(TOKENS.index, PROTEIN)]])


@pytest.mark.parametrize("version", [None, 0, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("partitions", [1, 2])
def test_megatron_answers_alike_in_hugging_face(version: float | None, partitions: int, tmp_path: Path) -> None:
    model = MegatronReference(types=2 if partitions == 2 else 0, openai=version == 3.0)
    source = model.save(tmp_path / "m", partitions=partitions, version=version, plain_names=partitions == 2)
    (source / "vocab.txt").write_text("\n".join(TOKENS) + "\n")
    folder = unpacked(convert(tmp_path, source), tmp_path / "hf")
    theirs = transformers.MegatronBertForMaskedLM.from_pretrained(folder).eval()
    with torch.no_grad():
        states, logits = model(megatron_ids())
        plainly = theirs(megatron_ids(), output_hidden_states=True)
    assert relative_l2(plainly.hidden_states[-1], states) <= TOLERANCE
    assert relative_l2(plainly.logits, logits[..., : len(TOKENS)]) <= TOLERANCE
    text = told(tmp_path)
    assert "97 rows of the embedding that no token has" in text and "optimizer of the training" in text
    assert ("does not say its version" in text) == (version is None)


def test_the_tokenizer_of_megatron_is_the_suites(tmp_path: Path) -> None:
    source = MegatronReference().save(tmp_path / "m")
    (source / "vocab.txt").write_text("\n".join(TOKENS))
    out = convert(tmp_path, source)
    own = transformers.AutoTokenizer.from_pretrained(unpacked(out, tmp_path / "hf"))
    ids = megatron_ids()[0].tolist()
    assert own(PROTEIN)["input_ids"] == own(" ".join(PROTEIN))["input_ids"] == ids
    assert own("[MASK]A")["input_ids"] == [2, 1, 6]
    assert load_model(resolve_model(str(out), workdir=tmp_path / "w")).token_ids(PROTEIN) == ids


def test_the_fused_gelu_is_followed_in_the_layers(tmp_path: Path) -> None:
    model = MegatronReference(fused=True)
    source = model.save(tmp_path / "m")
    (source / "vocab.txt").write_text("\n".join(TOKENS))
    folder = unpacked(convert(tmp_path, source), tmp_path / "hf")
    theirs = transformers.MegatronBertForMaskedLM.from_pretrained(folder).eval()
    with torch.no_grad():
        states, logits = model(megatron_ids())
        plainly = theirs(megatron_ids(), output_hidden_states=True)
    assert relative_l2(plainly.hidden_states[-1], states) <= TOLERANCE
    assert TOLERANCE < relative_l2(plainly.logits, logits[..., : len(TOKENS)]) < 1e-2
    assert "log-probabilities differ a little from Megatron's" in told(tmp_path)


def test_the_order_of_fused_rows_can_be_said(tmp_path: Path) -> None:
    model = MegatronReference()
    source = model.save(tmp_path / "m", version=1.0)
    file = source / "mp_rank_00" / "model_optim_rng.pt"
    with torch.serialization.safe_globals([argparse.Namespace]):
        content = torch.load(file, weights_only=False)
    del content["checkpoint_version"]
    torch.save(content, file)
    (tmp_path / "vocab.txt").write_text("\n".join(TOKENS))
    flags = ("--vocabulary", tmp_path / "vocab.txt", "--checkpoint-version", "1")
    folder = unpacked(convert(tmp_path, file, *flags), tmp_path / "hf")
    with torch.no_grad():
        theirs = transformers.MegatronBertModel.from_pretrained(folder).eval()(megatron_ids()).last_hidden_state
    assert relative_l2(theirs, model(megatron_ids())[0]) <= TOLERANCE


def test_the_three_orders_are_taken_apart() -> None:
    heads, width = 3, 2
    labels = torch.tensor([[[100 * part + 10 * head + row for row in range(width)] for head in range(heads)]
                           for part in range(3)])
    laid = {"0": labels, "1": labels.permute(1, 2, 0), "2": labels.permute(1, 0, 2)}
    for version, fused in laid.items():
        query, key, value = parted(fused.reshape(-1), version, heads)
        assert torch.equal(torch.stack([query, key, value]).view(3, heads, width), labels)


# ------------------------------------------------------------------------------------------------------------- encoder


def test_the_encoder_of_a_whole_t5(tmp_path: Path) -> None:
    config = transformers.T5Config.from_pretrained(
        tiny_folder("tiny_t5"), is_encoder_decoder=True, decoder_start_token_id=0, dropout_rate=0.0
    )
    torch.manual_seed(0)
    whole = transformers.T5ForConditionalGeneration(config).eval()
    others = shutil.ignore_patterns("*.safetensors", "config.json")
    shutil.copytree(tiny_folder("tiny_t5"), tmp_path / "t5", ignore=others)
    whole.save_pretrained(tmp_path / "t5")
    folder = unpacked(convert(tmp_path, tmp_path / "t5", to="encoder"), tmp_path / "hf")
    ids = torch.tensor([[5, 9, 7, 12, 20, 4, 1]])
    with torch.no_grad():
        theirs = transformers.T5EncoderModel.from_pretrained(folder).eval()(ids).last_hidden_state
        assert torch.equal(theirs, whole.encoder(ids).last_hidden_state)
    before, after = load_file(tmp_path / "t5" / "model.safetensors"), load_file(folder / "model.safetensors")
    assert all(torch.equal(before[key], after[key]) for key in after)
    assert not any(key.startswith(("decoder.", "lm_head.")) for key in after)
    assert "tensors of the decoder" in told(tmp_path)


@every_family
def test_the_encoder_of_every_family(family: ModelFamily, tmp_path: Path) -> None:
    folder = unpacked(convert(tmp_path, tiny(family), to="encoder"), tmp_path / "hf")
    ids = torch.tensor([[2, 6, 9, 7, 12, 20, 3]])
    with torch.no_grad():
        expected = plain(family, tiny(family), headed=False)(ids).last_hidden_state
        assert torch.equal(plain(family, folder, headed=False)(ids).last_hidden_state, expected)
    assert not any(key.startswith(("lm_head", "cls.")) for key in load_file(folder / "model.safetensors"))


# ------------------------------------------------------------------------------------------------- adapters and bundles


@pytest.mark.parametrize("method", ["lora", "dora", "ia3"])
@pytest.mark.parametrize("headed", [False, True], ids=["encoder", "whole"])
def test_an_adapter_in_its_base(method: str, headed: bool, tmp_path: Path) -> None:
    cls = transformers.EsmForMaskedLM if headed else transformers.EsmModel
    options: dict[str, Any] = {} if headed else {"add_pooling_layer": False}
    base = cls.from_pretrained(tiny_folder("tiny_esm2"), attn_implementation="eager", **options)
    config: Any = (
        peft.IA3Config(target_modules=["key", "value"], feedforward_modules=[]) if method == "ia3" else
        peft.LoraConfig(r=3, lora_alpha=6, target_modules=["query", "value"], use_dora=method == "dora",
                        task_type="FEATURE_EXTRACTION" if not headed else None)
    )
    torch.manual_seed(1)
    wrapped = peft.get_peft_model(base, config).eval()
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name or "ia3" in name:
                parameter += 0.3 * torch.randn_like(parameter)
    wrapped.save_pretrained(tmp_path / "adapter")
    out = convert(tmp_path, tmp_path / "adapter", "--model", tiny_folder("tiny_esm2"), to="merged")
    ids = torch.tensor([[0, 6, 9, 7, 12, 20, 2]])
    with torch.no_grad():
        expected = wrapped(ids, output_hidden_states=True).hidden_states[-1]
        folder = unpacked(out, tmp_path / "hf")
        merged = transformers.EsmForMaskedLM.from_pretrained(folder, attn_implementation="eager").eval()
        found = merged(ids, output_hidden_states=True).hidden_states[-1]
        untouched = base.unload() if hasattr(base, "unload") else None
    assert untouched is None and relative_l2(found, expected) <= TOLERANCE
    assert "The adapter moves the base model's representations by" in told(tmp_path)


def test_a_bundle_as_checkpoint_and_head(tmp_path: Path) -> None:
    base = tiny_folder("tiny_esm2")
    bundle = random_bundle("mine", Task("site", "class", ("no", "yes"), "yes"), tmp_path / "b", base, threshold=0.3)
    out = convert(tmp_path, bundle, "--model", base)
    folder = unpacked(out, tmp_path / "hf")
    about = json.loads((folder / "head.json").read_text())
    assert about["classes"] == ["no", "yes"] and about["threshold"] == 0.3 and about["window"] == 33
    head = load_file(folder / "head.safetensors")
    held = load_bundle(bundle, str(base), workdir=tmp_path / "w", device="cpu", precision="fp32")
    expected = held.members[0].network.head.state_dict()
    assert set(head) == set(expected) and all(torch.equal(head[key], expected[key]) for key in head)
    assert "answers of encoder and head, as the bundle gives them" in told(tmp_path)
    assert load_model(resolve_model(str(out), workdir=tmp_path / "w")).layers == 2


@pytest.mark.parametrize("method", ["head", "full"])
def test_bundles_without_an_adapter(method: str, tmp_path: Path) -> None:
    from finetuning_cases import dataset, released, trained

    base = tiny_folder("tiny_t5" if method == "head" else "tiny_esm2")
    made = trained(dataset("sequence", "class"), base, tmp_path / "job", method=method)
    released(made, base, tmp_path / "b.zip")
    flags = ("--model", base) if method == "head" else ()
    out = convert(tmp_path, tmp_path / "b.zip", *flags)
    assert "answers of encoder and head, as the bundle gives them" in told(tmp_path)
    assert {"head.safetensors", "head.json", "model.safetensors"} <= set(zipfile.ZipFile(out).namelist())


def test_one_network_of_an_ensemble(tmp_path: Path, root: Path) -> None:
    bundle, base = root / "test-data" / "bundle_tiny_site.zip", tiny_folder("tiny_esm2")
    with pytest.raises(UserError, match=r"holds 2 trained networks.*--member 1 to 2"):
        convert(tmp_path, bundle, "--model", base)
    first = convert(tmp_path, bundle, "--model", base, "--member", "1", to="merged", out="1.zip").read_bytes()
    second = convert(tmp_path, bundle, "--model", base, "--member", "2", to="merged", out="2.zip").read_bytes()
    assert first != second and "1 of 2 trained networks" in told(tmp_path)


# ----------------------------------------------------------------------------------------------------------- ONNX, int8


@every_family
def test_every_encoder_as_onnx(family: ModelFamily, tmp_path: Path) -> None:
    import onnxruntime

    out = convert(tmp_path, tiny(family), to="onnx", out="out.onnx")
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(0)
    ids = generator.integers(5, 24, (3, 57)).astype(np.int64)
    mask = np.ones_like(ids)
    mask[1, 20:] = 0
    padding = int(session.get_modelmeta().custom_metadata_map["padding"])
    ids[1, 20:] = padding
    found = session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
    with torch.no_grad():
        model = plain(family, tiny(family), headed=False)
        expected = model(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).last_hidden_state
    keep = torch.from_numpy(mask).bool()
    assert relative_l2(torch.from_numpy(found)[keep], expected[keep]) <= TOLERANCE


@every_family
def test_every_family_as_int8(family: ModelFamily, tmp_path: Path) -> None:
    out = convert(tmp_path, tiny(family), to="int8")
    folder = unpacked(out, tmp_path / "int8")
    assert not (folder / "model.safetensors").exists()
    stored, before = load_file(folder / "int8.safetensors"), load_file(tiny(family) / "model.safetensors")
    for name, value in stored.items():
        if value.dtype == torch.int8:
            scale = stored[f"{name}.scale"]
            assert float(((value * scale[:, None]) - before[name]).abs().max()) <= float(scale.max()) * 0.501
        elif not name.endswith(".scale"):
            assert torch.equal(value, before[name])
    assert sum(value.dtype == torch.int8 for value in stored.values()) >= 12
    files = resolve_model(str(out), workdir=tmp_path / "w")
    again = resolve_model(str(folder), workdir=tmp_path / "w")
    assert files.sha256 == again.sha256 and load_model(files).layers == 2


# ------------------------------------------------------------------------------------------ other tools take the result


def results(tmp_path: Path, root: Path) -> dict[str, Path]:
    """A result of every direction that other tools take."""
    base = tiny_folder("tiny_esm2")
    MegatronReference().save(tmp_path / "m")
    (tmp_path / "m" / "vocab.txt").write_text("\n".join(TOKENS))
    bundle = root / "test-data" / "written_before" / "bundle_finetuned.zip"
    return {
        "fair-esm": convert(tmp_path, published(fair("esm2"), "esm2", tmp_path / "fair"), out="a.zip"),
        "ESM-1v": convert(tmp_path, published(fair("esm1v"), "esm1v", tmp_path / "fair"), out="b.zip"),
        "megatron": convert(tmp_path, tmp_path / "m", out="c.zip"),
        "encoder": convert(tmp_path, tiny_folder("tiny_ankh"), to="encoder", out="d.zip"),
        "bundle": convert(tmp_path, bundle, "--model", base, out="e.zip"),
        "int8": convert(tmp_path, tiny_folder("tiny_t5"), to="int8", out="f.zip"),
        "adapter": convert(tmp_path, *an_adapter(tmp_path), to="merged", out="g.zip"),
    }


def test_plm_embed_runs_on_every_result(tmp_path: Path, root: Path) -> None:
    (tmp_path / "q.fasta").write_text(f">one\n{PROTEIN}\n>two\n{protein(80)}U\n")
    for name, model in results(tmp_path, root).items():
        out = tmp_path / f"{name}.h5"
        plm_embed.run(["--input", str(tmp_path / "q.fasta"), "--model", str(model), "--embeddings", str(out)])
        with h5py.File(out) as opened:
            assert opened["values"].shape[0] == 2 and np.isfinite(opened["values"][:]).all(), name


def test_files_of_fair_esm_are_models_themselves(tmp_path: Path) -> None:
    """A file, a file with its contact regression beside it, what plm_convert writes, and its folder: one model."""
    converted = convert(tmp_path, _published(tmp_path))
    made = load_model(resolve_model(str(converted), workdir=tmp_path / "w"))
    back = convert(tmp_path, converted, to="fair-esm", out="back.zip")
    deep = unpacked(back, tmp_path / "in" / "deep")
    ways = [_published(tmp_path), back, deep, deep.parent]
    for number, way in enumerate(ways):
        files = resolve_model(str(way), workdir=tmp_path / f"w{number}")
        loaded = load_model(files)
        assert loaded.has_contacts and loaded.layers == 2, way
        for (name, value), (_, same) in zip(
            loaded.model.named_parameters(), made.model.named_parameters(), strict=True
        ):
            assert torch.equal(value, same), (way, name)
    alone = shutil.copy(_published(tmp_path), tmp_path / "alone.pt")
    files = resolve_model(str(alone), workdir=tmp_path / "w")
    assert files.id == "alone" and not load_model(files, purpose="masked_lm").has_contacts
    (tmp_path / "q.fasta").write_text(f">one\n{PROTEIN}\n")
    given = ["--input", str(tmp_path / "q.fasta"), "--embeddings", str(tmp_path / "e.h5")]
    plm_embed.run([*given, "--model", str(published(fair("esm1v"), "esm1v", tmp_path / "v"))])
    plm_embed.run([*given, "--model", str(alone)])


def _published(tmp_path: Path) -> Path:
    return published(fair("esm2"), "esm2", tmp_path / "fair")


def test_forms_that_no_other_tool_takes_name_the_way(tmp_path: Path) -> None:
    onnx = convert(tmp_path, tiny_folder("tiny_esm2"), to="onnx", out="model.zip")
    with zipfile.ZipFile(tmp_path / "adapter.zip", "w") as opened:
        for file in an_adapter(tmp_path)[0].iterdir():
            opened.write(file, file.name)
    regression = tmp_path / "fair" / "esm2_tiny-contact-regression.pt"
    MegatronReference().save(tmp_path / "m")
    _published(tmp_path)
    cases = {
        onnx: "is an ONNX model.*plm_convert --to hugging-face", tmp_path / "adapter.zip": "plm_convert --to merged",
        an_adapter(tmp_path)[0]: "plm_convert --to merged", regression: "holds 0 models",
        tiny_folder("").parent / "bundle_tiny_site.zip": "is a bundle.*plm_convert --to hugging-face",
        tmp_path / "m" / "mp_rank_00" / "model_optim_rng.pt": "no model of fair-esm.*plm_convert --to hugging-face",
        tmp_path / "m": "no model of fair-esm.*plm_convert",
    }
    for given, message in cases.items():
        with pytest.raises(UserError, match=message) as raised:
            resolve_model(str(given), workdir=tmp_path / "w")
        assert "\n" not in str(raised.value)


# ----------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("zipped", [True, False])
def test_what_training_programs_leave_behind(zipped: bool, tmp_path: Path) -> None:
    """Settings become dictionaries, numbers stay, and what says nothing of weights is None; nothing is made of it."""
    held = {
        "args": Namespace(heads=4, inner=Namespace(path=PurePosixPath("/a"), kind=torch.float16)),
        "state": np.random.default_rng(0).integers(9, size=3), "when": datetime(2026, 1, 1),
        "numbers": (1, [2.5, None]), "model": {"w": torch.ones(2)},
    }
    torch.save(held, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    read = read_training_checkpoint(tmp_path / "x.pt", "x.pt")
    assert read["args"] == {"heads": 4, "inner": {"path": None, "kind": torch.float16}}
    assert read["state"] is None and read["when"] is None and read["numbers"] == [1, [2.5, None]]
    assert torch.equal(read["model"]["w"], torch.ones(2))


class Evil:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /tmp/plm_convert_was_here",)


def spoilt(change: Callable[[dict[str, Any]], Any], kind: str = "esm2") -> Callable[[Path], tuple[Any, ...]]:
    """Makes a file of fair-esm with one thing changed."""

    def make(folder: Path) -> tuple[Any, ...]:
        path = published(fair(kind), kind, folder)
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path)
        changed = change(content)
        torch.save(content if changed is None else changed, path)
        return (path,)

    return make


def _esm1b(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], tuple[Any, ...]]:
    return spoilt(change, "esm1b")


def _without(content: dict[str, Any]) -> None:
    del content["model"]["encoder.sentence_encoder.layers.1.fc2.bias"]


def _shaped(content: dict[str, Any]) -> None:
    content["model"]["encoder.sentence_encoder.layers.1.fc2.bias"] = torch.zeros(31)


def _nan(content: dict[str, Any]) -> None:
    content["model"]["encoder.sentence_encoder.layers.1.fc2.bias"][3] = float("nan")


def _headed(content: dict[str, Any]) -> None:
    content["model"]["encoder.lm_head.weight"] = content["model"]["encoder.lm_head.weight"] + 1


def _repeated(content: dict[str, Any]) -> None:
    content["model"]["encoder.sentence_encoder.layers.1.fc2.bias"] = torch.zeros(1).expand(10**9)


def _sparse(content: dict[str, Any]) -> None:
    content["model"]["encoder.sentence_encoder.layers.1.fc2.bias"] = torch.zeros(32).to_sparse()


def _many_names(content: dict[str, Any]) -> None:
    content["model"] |= {f"x{number}": content["model"]["encoder.lm_head.weight"] for number in range(1000)}


def _code(folder: Path) -> tuple[Any, ...]:
    torch.save({"model": {"x": torch.zeros(1)}, "args": Evil()}, folder / "evil.pt")
    return (folder / "evil.pt",)


def _old_code(folder: Path) -> tuple[Any, ...]:
    (folder / "evil.pt").write_bytes(pickle.dumps({"model": Evil()}, protocol=2))
    return (folder / "evil.pt",)


def _cut(folder: Path) -> tuple[Any, ...]:
    path = published(fair("esm2"), "esm2", folder)
    path.write_bytes(path.read_bytes()[:-3000])
    return (path,)


def _zipped(members: dict[str, bytes]) -> Callable[[Path], tuple[Any, ...]]:
    def make(folder: Path) -> tuple[Any, ...]:
        with zipfile.ZipFile(folder / "in.zip", "w") as opened:
            for name, data in members.items():
                opened.writestr(name, data)
        return (folder / "in.zip",)

    return make


def _megatron(change: Callable[[Path], None], *flags: str) -> Callable[[Path], tuple[Any, ...]]:
    def make(folder: Path) -> tuple[Any, ...]:
        MegatronReference().save(folder / "m", partitions=2)
        (folder / "m" / "vocab.txt").write_text("\n".join(TOKENS))
        change(folder / "m")
        return (folder / "m", *flags)

    return make


def _only_first(folder: Path) -> None:
    shutil.rmtree(folder / "mp_rank_01")


def _only_second(folder: Path) -> None:
    shutil.rmtree(folder / "mp_rank_00")


def _twice(folder: Path) -> None:
    shutil.copy(folder / "mp_rank_00" / "model_optim_rng.pt", folder / "mp_rank_01" / "model_optim_rng.pt")


def _no_tokens(folder: Path) -> None:
    (folder / "vocab.txt").unlink()


def _many_tokens(folder: Path) -> None:
    (folder / "vocab.txt").write_text("\n".join([*TOKENS, *(f"[{number}]" for number in range(100))]))


def _other_adapter(folder: Path) -> tuple[Any, ...]:
    model = transformers.EsmModel.from_pretrained(tiny_folder("tiny_esm1b"), add_pooling_layer=False)
    peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["query"])).save_pretrained(folder / "a")
    return folder / "a", "--model", tiny_folder("tiny_esm2"), "--to", "merged"


def _lone_adapter(folder: Path) -> tuple[Any, ...]:
    return (_other_adapter(folder)[0],)


def _bare_adapter(folder: Path) -> tuple[Any, ...]:
    (_other_adapter(folder)[0] / "adapter_model.safetensors").unlink()
    return folder / "a", "--model", tiny_folder("tiny_esm2")


def _several(folder: Path) -> tuple[Any, ...]:
    for name in ("tiny_esm2", "tiny_bert"):
        shutil.copytree(tiny_folder(name), folder / "models" / name)
    return (folder / "models",)


def _model(name: str, *flags: str) -> Callable[[Path], tuple[Any, ...]]:
    return lambda folder: (tiny_folder(name), *flags)


BAD: dict[str, tuple[Callable[[Path], tuple[Any, ...]], str]] = {
    "missing": (lambda folder: (folder / "nothing.pt",), "The input does not exist"),
    "code": (_code, r"holds Python objects beside weights and settings \((?:posix|os)\.system\)"),
    "old-code": (_old_code, "could run code and are never read"),
    "cut": (_cut, "is no complete zip|is none that is converted|is damaged"),
    "text": (_zipped({"a.txt": b"a"}), "The input holds no model"),
    "empty-zip": (_zipped({}), "The input holds no model"),
    "traversal": (_zipped({"../evil.pt": b"a", "config.json": b"{}"}), "unsafe member"),
    "no-weight": (spoilt(_without), "lacks 1 of the model's weights, first layers.1.fc2.bias"),
    "shape": (spoilt(_shaped), r"layers.1.fc2.bias have the shape \(31,\) where \(32,\) belongs"),
    "nan": (spoilt(_nan), "layers.1.fc2.bias hold NaN or infinite numbers"),
    "repeated": (spoilt(_repeated), "layers.1.fc2.bias are larger than what is stored of them"),
    "sparse": (spoilt(_sparse), "layers.1.fc2.bias are not plain|could run code"),
    "many-names": (spoilt(_many_names), "same numbers under many names"),
    "head-differs": (
        spoilt(_headed), "lm_head.weight differs from embed_tokens.weight",
    ),
    "heads": (
        spoilt(lambda content: setattr(content["cfg"]["model"], "encoder_attention_heads", 5)),
        "32 numbers cannot be divided among 5 attention heads",
    ),
    "layers": (
        spoilt(lambda content: setattr(content["cfg"]["model"], "encoder_layers", 3)),
        "settings say layers 3 where the weights have 2",
    ),
    "positions": (
        _esm1b(lambda content: setattr(content["args"], "max_positions", 512)),
        "settings say max_positions 512 where the weights have 1024",
    ),
    "architecture": (
        spoilt(lambda content: {"args": Namespace(arch="msa_transformer"), "model": content["model"]}),
        r"architecture \(MSA Transformer\) is none that is converted",
    ),
    "other-program": (spoilt(lambda content: {"weights": 1}), "no program that is known here"),
    "list": (spoilt(lambda content: [1, 2]), "holds no weights by name"),
    "partition-missing": (_megatron(_only_first), "has 2 partitions, and 1 came"),
    "first-partition-missing": (_megatron(_only_second), "partition of rank 0 is missing"),
    "partition-twice": (_megatron(_twice), "Two partitions are the same: mp_rank_00"),
    "no-tokens": (_megatron(_no_tokens), "does not hold its tokens"),
    "many-tokens": (_megatron(_many_tokens), "vocabulary has 131 tokens, the embedding 128 rows"),
    "megatron-heads": (_megatron(lambda folder: None, "--attention-heads", "3"), "divided among 3 attention heads"),
    "adapter-alone": (_lone_adapter, "needs the model that it was trained on"),
    "other-adapter": (_other_adapter, "The adapter does not fit its description"),
    "bare-adapter": (_bare_adapter, "The adapter has no adapter_model.safetensors"),
    "several": (_several, "The input holds 2 models.*Give one of them, for example tiny_bert"),
    "nothing-to-merge": (_model("tiny_esm2", "--to", "merged"), "There is nothing to merge"),
    "base-for-nothing": (_model("tiny_esm2", "--model", "starter"), "has no base model"),
    "no-esm": (_model("tiny_bert", "--to", "fair-esm"), r"no class for this model \(BERT\)"),
    "wide-esm2": (_model("tiny_esm2", "--to", "fair-esm"), "class has intermediate_size 128"),
    "wrong-flag": (_model("tiny_esm2", "--attention-heads", "4"), "for which this flag is not"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case: str, tmp_path: Path) -> None:
    make, message = BAD[case]
    (tmp_path / "in").mkdir()
    given = make(tmp_path / "in")
    with pytest.raises(UserError, match=message) as raised:
        plm_convert.run(["--input", *map(str, given), "--output", str(tmp_path / "out.zip")])
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out.zip").exists() and not Path("/tmp/plm_convert_was_here").exists()


def test_int8_with_scales_that_do_not_fit(tmp_path: Path) -> None:
    folder = unpacked(convert(tmp_path, tiny_folder("tiny_t5"), to="int8"), tmp_path / "int8")
    stored = load_file(folder / "int8.safetensors")
    name = next(name for name in stored if name.endswith(".scale"))
    stored[name] = stored[name][:-1].clone()
    save_file(stored, folder / "int8.safetensors")
    with pytest.raises(UserError, match="has no scales that fit it"):
        resolve_model(str(folder), workdir=tmp_path / "w")


def test_the_command_line_says_it_in_one_line(tmp_path: Path, run_stage: Callable[..., Any]) -> None:
    done = run_stage("plm_convert", "--input", _code(tmp_path)[0], "--output", tmp_path / "out.zip")
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1
    assert "could run code and are never read" in done.stderr and not (tmp_path / "out.zip").exists()
