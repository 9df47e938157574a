"""plm_embed: what the model itself gives, for every record, in the order of the input, whatever the batches were."""

from __future__ import annotations

import csv
import gzip
import logging
import math
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import plm_embed
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from plm.data.embeddings.files import read_embeddings
from plm.data.fasta import read_fasta
from plm.errors import UserError
from plm.model import encoder
from plm.model.checkpoint import load_model, resolve_model
from plm.model.embedding.representations import parse_layers, windows
from plm.model.embedding.sharded import EmbedJob
from plm.model.encoder_inputs import segments
from plm.model.families import AMINO_ACIDS

Run = Callable[..., Path]
Rows = list[dict[str, str]]


def made_up(length: int, seed: int = 0) -> str:
    return "".join(random.Random(seed).choices(AMINO_ACIDS, k=length))


def table(path: Path) -> Rows:
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle, delimiter="\t", quoting=csv.QUOTE_NONE))


def vectors(folder: Path, name: str = "embeddings") -> list[np.ndarray]:
    with read_embeddings(folder / name) as found:
        return [np.asarray(found.row(index)) for index in range(len(found))]


def names(folder: Path) -> list[str]:
    with read_embeddings(folder / "embeddings") as found:
        return list(found.ids)


@pytest.fixture
def embed(tiny_esm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the stage in this process; gives the folder with ``embeddings`` and ``status``."""
    monkeypatch.setenv("GALAXY_SLOTS", "1")
    monkeypatch.delenv("PLM_CHECKPOINT_DIR", raising=False)
    # The log of an earlier test writes to that test's standard output; this one makes its own.
    log = logging.getLogger("plm_embed")
    log.handlers.clear()
    log.propagate = True

    def run(given: Path | str, *options: str | Path, model: Path = tiny_esm2, name: str = "out") -> Path:
        if isinstance(given, str):
            (tmp_path / f"{name}.fasta").write_text(given)
            given = tmp_path / f"{name}.fasta"
        folder = tmp_path / name
        folder.mkdir()
        outputs = ["--embeddings", folder / "embeddings", "--status", folder / "status"]
        fixed = ["--model", model, "--device", "cpu", "--precision", "fp32"]
        plm_embed.run([str(x) for x in ("--input", given, *fixed, *outputs, *options)])
        return folder

    return run


@pytest.fixture(scope="module")
def query(root: Path) -> Path:
    return root / "test-data" / "simulated_query.fasta"


@pytest.fixture(scope="module")
def reference(tiny_esm2: Path, tiny_t5: Path) -> Callable[[str, str], list[np.ndarray]]:
    """The published classes with their own tokenizers, one protein at a time: states of all tokens after each layer."""
    from transformers import AutoTokenizer, EsmModel, T5EncoderModel

    made: dict[str, Any] = {}
    for name, folder, kind in (("esm2", tiny_esm2, EsmModel), ("t5", tiny_t5, T5EncoderModel)):
        plain = kind.from_pretrained(folder, attn_implementation="eager").eval()
        made[name] = (AutoTokenizer.from_pretrained(folder), plain)

    def states(name: str, sequence: str) -> list[np.ndarray]:
        tokenizer, plain = made[name]
        ids = tokenizer(" ".join(sequence) if name == "t5" else sequence, return_tensors="pt")
        with torch.inference_mode():
            return [layer[0].numpy() for layer in plain(**ids, output_hidden_states=True).hidden_states]

    return states


@pytest.fixture(scope="module")
def changed(tiny_esm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A copy of the tiny model whose weights were changed."""
    from safetensors.torch import load_file, save_file

    def make(change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
        folder = tmp_path_factory.mktemp("changed") / "model"
        shutil.copytree(tiny_esm2, folder)
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return make


# -- what is computed --------------------


@pytest.mark.parametrize("pooling", ["mean", "max", "first", "residues"])
def test_equals_the_published_classes(
    pooling: str, embed: Run, query: Path, reference: Callable[[str, str], list[np.ndarray]]
) -> None:
    folder = embed(query, "--pooling", pooling, "--layers", "0,-1,1", "--batch-tokens", "300")
    records = list(read_fasta(query))
    assert names(folder) == [record.id for record in records]
    for record, found in zip(records, vectors(folder), strict=True):
        layers = reference("esm2", record.sequence)
        for number, layer in enumerate((0, 2, 1)):
            expected = {
                "mean": layers[layer][1:-1].mean(0), "max": layers[layer][1:-1].max(0),
                "first": layers[layer][0], "residues": layers[layer][1:-1],
            }[pooling]
            np.testing.assert_allclose(found[..., number, :], expected, atol=3e-5)


@pytest.mark.parametrize("pooling", ["mean", "max", "residues"])
def test_t5_equals_the_published_class(
    pooling: str, embed: Run, query: Path, tiny_t5: Path, reference: Callable[[str, str], list[np.ndarray]]
) -> None:
    folder = embed(query, "--pooling", pooling, model=tiny_t5)
    for record, found in zip(read_fasta(query), vectors(folder), strict=True):
        last = reference("t5", record.sequence)[-1][:-1]
        expected = {"mean": last.mean(0), "max": last.max(0), "residues": last}[pooling]
        np.testing.assert_allclose(found, expected, atol=3e-5)


def test_sites_are_rows_of_their_proteins(embed: Run, tmp_path: Path) -> None:
    first, second = made_up(80, 1), made_up(300, 2)
    rows = [("a", first, 80), ("b", second, 5), ("c", first, 1), ("d", second, 300), ("e", first, 80)]
    text = "id\tsequence\tposition\tlabel\n" + "".join(f"{a}\t{b}\t{c}\t1\n" for a, b, c in rows)
    (tmp_path / "sites.tabular").write_text(text)
    sites = embed(tmp_path / "sites.tabular", "--pooling", "sites", "--layers", "all")
    whole = embed(f">x\n{first}\n>y\n{second}\n", "--pooling", "residues", "--layers", "all", name="whole")
    proteins = dict(zip((first, second), vectors(whole), strict=True))
    with read_embeddings(sites / "embeddings") as found:
        assert found.level == "site" and list(found.positions or ()) == [80, 5, 1, 300, 80]
        for index, (_, sequence, position) in enumerate(rows):
            np.testing.assert_allclose(found.row(index), proteins[sequence][position - 1], atol=3e-5)
    twins = [row["duplicate_of"] for row in table(sites / "status")]
    assert twins == ["", "", "a", "b", "a"]


@pytest.mark.parametrize("format", ["hdf5", "hdf5-uniprot", "npz", "parquet", "tabular"])
@pytest.mark.parametrize("pooling", ["mean", "residues"])
def test_every_format_holds_the_same(format: str, pooling: str, embed: Run, query: Path) -> None:
    usual = embed(query, "--pooling", pooling, name="usual")
    other = embed(query, "--pooling", pooling, "--format", format, name="other")
    assert sorted(names(other)) == sorted(names(usual))
    by_name = dict(zip(names(other), vectors(other), strict=True))
    for name, expected in zip(names(usual), vectors(usual), strict=True):
        np.testing.assert_allclose(by_name[name], expected, rtol=1e-5, atol=1e-6)


def test_the_file_says_what_it_is(embed: Run, query: Path, tiny_esm2: Path, tmp_path: Path) -> None:
    folder = embed(query, "--layers", "1,2", "--store", "float16", "--pooling", "max")
    with read_embeddings(folder / "embeddings") as found:
        description = found.description
    assert (description.layers, description.pooling, description.dtype) == ((1, 2), "max", "float16")
    files = resolve_model(str(tiny_esm2), workdir=tmp_path)
    assert (description.model, description.model_sha256) == ("tiny_esm2", files.sha256)
    assert description.notes["precision"] == "fp32"


def test_stored_in_16_bits_is_rounded_only(embed: Run, query: Path) -> None:
    for pooling in ("mean", "residues"):
        exact = vectors(embed(query, "--pooling", pooling, name=f"{pooling}32"))
        half = vectors(embed(query, "--pooling", pooling, "--store", "float16", name=f"{pooling}16"))
        for a, b in zip(exact, half, strict=True):
            np.testing.assert_array_equal(a.astype(np.float16).astype(np.float32), b.astype(np.float32))


def test_neighbours_order_and_batches_do_not_matter(embed: Run, query: Path) -> None:
    records = list(read_fasta(query))

    def found(chosen: list[Any], name: str, *options: str) -> dict[str, np.ndarray]:
        text = "".join(f">{record.id}\n{record.sequence}\n" for record in chosen)
        folder = embed(text, *options, name=name)
        return dict(zip(names(folder), vectors(folder), strict=True))

    together = found(records, "a")
    for other in (found(records[::-1], "b"), found(records[2:3], "c"), found(records, "d", "--batch-tokens", "64")):
        for name, values in other.items():
            np.testing.assert_allclose(values, together[name], atol=2e-5)


def test_equal_input_gives_equal_bytes_with_any_number_of_threads(
    embed: Run, query: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = embed(query, name="a")
    threads = torch.get_num_threads()
    monkeypatch.setenv("GALAXY_SLOTS", "2")
    try:
        second = embed(query, name="b")
    finally:
        torch.set_num_threads(threads)
    for file in ("embeddings", "status"):
        assert (first / file).read_bytes() == (second / file).read_bytes()


# -- long proteins --------------------


@given(st.integers(1, 4000), st.integers(8, 1200))
def test_each_residue_is_kept_once_by_the_window_where_it_is_farthest_from_a_cut(length: int, limit: int) -> None:
    parts = segments(length, limit)
    assert [part.keep_start for part in parts] == [0, *(part.keep_end for part in parts[:-1])]
    assert parts[-1].keep_end == length and all(part.end - part.start <= limit for part in parts)
    assert int(windows(np.array([length]), limit)[0]) == len(parts)
    for residue in range(0, length, max(1, length // 50)):
        distance = [
            min(residue - part.start if part.start else length, part.end - 1 - residue if part.end < length else length)
            for part in parts
            if part.start <= residue < part.end
        ]
        keeper = next(part for part in parts if part.keep_start <= residue < part.keep_end)
        chosen = min(
            residue - keeper.start if keeper.start else length,
            keeper.end - 1 - residue if keeper.end < length else length,
        )
        assert chosen >= max(distance) - 1


def test_windows_are_merged_by_the_rule(embed: Run, tiny_esm2: Path, tmp_path: Path) -> None:
    sequence = made_up(500, 3)
    loaded = load_model(resolve_model(str(tiny_esm2), workdir=tmp_path))
    parts = segments(500, 128)
    pieces = encoder.encode(loaded, [sequence[part.start : part.end] for part in parts])
    expected = torch.cat(
        [piece[p.keep_start - p.start : p.keep_end - p.start] for p, piece in zip(parts, pieces, strict=True)]
    ).numpy()
    text = f">short\n{made_up(60)}\n>long\n{sequence}\n"
    options = ("--max-residues", "128")
    found = {
        pooling: embed(text, "--pooling", pooling, *options, name=pooling)
        for pooling in ("residues", "mean", "max", "first")
    }
    np.testing.assert_allclose(vectors(found["residues"])[1], expected, atol=2e-5)
    np.testing.assert_allclose(vectors(found["mean"])[1], expected.mean(0), atol=2e-5)
    np.testing.assert_allclose(vectors(found["max"])[1], expected.max(0), atol=2e-5)
    assert np.isfinite(vectors(found["first"])[1]).all()
    assert [row["windows"] for row in table(found["mean"] / "status")] == ["1", str(len(parts))]
    whole = vectors(embed(text, "--pooling", "residues", name="whole"))[1]
    assert np.abs(whole - expected).max() > 1e-4, "windows must differ from the whole protein somewhere"


def test_sites_in_windows(embed: Run, tmp_path: Path) -> None:
    sequence = made_up(700, 4)
    places = [1, 64, 200, 201, 450, 700]
    text = "id\tsequence\tposition\n" + "".join(f"s{at}\t{sequence}\t{at}\n" for at in places)
    (tmp_path / "sites.tabular").write_text(text)
    sites = vectors(embed(tmp_path / "sites.tabular", "--pooling", "sites", "--max-residues", "100"))
    residues = vectors(embed(f">p\n{sequence}\n", "--pooling", "residues", "--max-residues", "100", name="whole"))[0]
    for found, place in zip(sites, places, strict=True):
        np.testing.assert_allclose(found, residues[place - 1], atol=2e-5)


def test_esm1b_takes_1022_residues_and_windows_beyond(embed: Run, tiny_esm2: Path, tmp_path: Path) -> None:
    from transformers import EsmConfig, EsmForMaskedLM

    config = EsmConfig.from_pretrained(tiny_esm2)
    config.position_embedding_type, config.emb_layer_norm_before, config.token_dropout = "absolute", True, True
    torch.manual_seed(1)
    folder = tmp_path / "tiny_esm1b"
    shutil.copytree(tiny_esm2, folder)
    EsmForMaskedLM(config).save_pretrained(folder)
    found = embed(f">a\n{made_up(1022)}\n>b\n{made_up(1023)}\n", model=folder)
    assert [row["windows"] for row in table(found / "status")] == ["1", "2"]


def test_titin_on_a_small_memory(run_stage: Callable[..., Any], tiny_esm2: Path, tmp_path: Path) -> None:
    (tmp_path / "titin.fasta").write_text(f">short\n{made_up(50)}\n>titin\n{made_up(36_000, 5)}\n")

    def run(memory: int) -> Any:
        return run_stage(
            "plm_embed", "--input", tmp_path / "titin.fasta", "--model", tiny_esm2, "--embeddings", tmp_path / "e.h5",
            "--status", tmp_path / "status", "--precision", "fp32", "--max-memory", str(memory), "--device", "cpu",
        )

    refused = run(1)
    assert refused.returncode == 42 and not (tmp_path / "e.h5").exists()
    enough = re.search(r"Give the job (\d+) MiB of memory", refused.stderr)
    assert enough and refused.stderr.count("\n") == 1
    done = run(int(enough[1]))
    assert done.returncode == 0, done.stderr
    rows = table(tmp_path / "status")
    assert rows[0]["windows"] == "1" and int(rows[1]["windows"]) > 1 and rows[1]["encoded"] == "36000"
    assert re.search(r"1 in windows of \d+", done.stdout)
    assert np.isfinite(vectors(tmp_path, "e.h5")[1]).all()


def test_out_of_memory_halves_the_batch_then_the_windows(
    embed: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "".join(f">p{number}\n{made_up(length, number)}\n" for number, length in enumerate([40] * 30 + [900]))
    expected = vectors(embed(text, "--max-residues", "300", "--batch-tokens", "300", name="a"))
    states = encoder.layer_states

    def short_of_memory(loaded: Any, batch: Any, layers: Any) -> Any:
        if batch.tokens > 400:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        return states(loaded, batch, layers)

    monkeypatch.setattr(encoder, "layer_states", short_of_memory)
    folder = embed(text, name="b")
    assert [row["status"] for row in table(folder / "status")] == ["embedded"] * 31
    assert int(table(folder / "status")[-1]["windows"]) > 1
    for found, usual in list(zip(vectors(folder), expected, strict=True))[:30]:
        np.testing.assert_allclose(found, usual, atol=2e-5)
    assert "Out of memory at 900 residues: going on with" in capsys.readouterr().out


def test_memory_that_holds_nothing_is_one_clear_line(
    embed: Run, query: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def out_of_memory(*args: Any) -> Any:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(encoder, "layer_states", out_of_memory)
    with pytest.raises(UserError, match="memory does not hold even"):
        embed(query)
    assert list((tmp_path / "out").iterdir()) == []


# -- tables on request --------------------


@pytest.fixture(scope="module")
def masked_lm(tiny_esm2: Path) -> Callable[[str, int | None], np.ndarray]:
    """Log-probabilities among the amino acids from the published class, perhaps with one residue hidden: (L, 20)."""
    from transformers import AutoTokenizer, EsmForMaskedLM

    plain = EsmForMaskedLM.from_pretrained(tiny_esm2, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_esm2)
    letters = tokenizer.convert_tokens_to_ids(list(AMINO_ACIDS))

    def probabilities(sequence: str, hidden: int | None = None) -> np.ndarray:
        ids = tokenizer(sequence, return_tensors="pt")
        if hidden is not None:
            ids["input_ids"][0, hidden + 1] = tokenizer.mask_token_id
        with torch.inference_mode():
            return plain(**ids).logits[0, 1:-1][:, letters].log_softmax(-1).numpy()

    return probabilities


def test_logits_and_single_pass_perplexity(embed: Run, masked_lm: Any, tmp_path: Path) -> None:
    sequences = [made_up(40, 1), made_up(75, 2), made_up(40, 1), "MKXXYL"]
    text = "".join(f">p{number}\n{sequence}\n" for number, sequence in enumerate(sequences))
    logits, perplexity = tmp_path / "logits", tmp_path / "perplexity"
    embed(text, "--layers", "1", "--logits", logits, "--pseudo-perplexity", perplexity)
    rows, scores = table(logits), table(perplexity)
    assert len(rows) == sum(map(len, sequences))
    at = 0
    for number, sequence in enumerate(sequences):
        expected = masked_lm(sequence)
        mine = rows[at : at + len(sequence)]
        at += len(sequence)
        assert [row["id"] for row in mine] == [f"p{number}"] * len(sequence)
        assert "".join(row["residue"] for row in mine) == sequence
        assert [int(row["position"]) for row in mine] == list(range(1, len(sequence) + 1))
        found = np.array([[float(row[letter]) for letter in AMINO_ACIDS] for row in mine])
        np.testing.assert_allclose(found, expected, atol=1e-4)
        entropy = -(np.exp(expected) * expected).sum(1)
        np.testing.assert_allclose([float(row["entropy"]) for row in mine], entropy, atol=1e-4)
        known = [(row, AMINO_ACIDS.index(x)) for row, x in zip(expected, sequence, strict=True) if x != "X"]
        assert int(scores[number]["scored"]) == len(known)
        wanted = math.exp(-np.mean([row[x] for row, x in known]))
        assert float(scores[number]["pseudo_perplexity"]) == pytest.approx(wanted, rel=1e-4)


def test_masked_perplexity_hides_each_residue(embed: Run, masked_lm: Any, tmp_path: Path) -> None:
    sequences = [made_up(30, 1), made_up(12, 2), "MKXXYL"]
    text = "".join(f">p{number}\n{sequence}\n" for number, sequence in enumerate(sequences))
    options = ("--perplexity-mode", "masked", "--batch-tokens", "100")
    embed(text, "--pseudo-perplexity", tmp_path / "p", *options)
    for row, sequence in zip(table(tmp_path / "p"), sequences, strict=True):
        hidden = [
            masked_lm(sequence, at)[at, AMINO_ACIDS.index(x)] for at, x in enumerate(sequence) if x in AMINO_ACIDS
        ]
        assert float(row["pseudo_perplexity"]) == pytest.approx(math.exp(-np.mean(hidden)), rel=1e-4)
        assert row["mode"] == "masked"


def test_contacts(embed: Run, changed: Any, tmp_path: Path) -> None:
    def trained(weights: dict[str, torch.Tensor]) -> None:
        generator = torch.Generator().manual_seed(4)
        weights["esm.contact_head.regression.weight"] = torch.randn((1, 8), generator=generator) * 20
        weights["esm.contact_head.regression.bias"] = torch.tensor([-0.5])

    model = changed(trained)
    loaded = load_model(resolve_model(str(model), workdir=tmp_path))
    assert loaded.has_contacts
    sequences = [made_up(60, 1), made_up(5, 2), made_up(120, 3)]
    text = "".join(f">p{number}\n{sequence}\n" for number, sequence in enumerate(sequences))
    embed(text, "--contacts", tmp_path / "contacts", "--contact-threshold", "0.4", model=model)
    rows = table(tmp_path / "contacts")
    expected = [
        (f"p{number}", i + 1, j + 1, float(maps[i, j]))
        for number, sequence in enumerate(sequences)
        for maps in [encoder.contacts(loaded, sequence).numpy()]
        for i in range(len(sequence))
        for j in range(i + 6, len(sequence))
        if maps[i, j] >= 0.4
    ]
    assert len(expected) > 10
    assert [(row["id"], int(row["i"]), int(row["j"])) for row in rows] == [pair[:3] for pair in expected]
    for row, pair in zip(rows, expected, strict=True):
        assert float(row["probability"]) == pytest.approx(pair[3], abs=1e-4)
    # In windows: each pair once, those of one window only.
    windowed = embed(
        text,
        "--contacts",
        tmp_path / "pairs",
        "--contact-threshold",
        "0",
        "--max-residues",
        "64",
        model=model,
        name="w",
    )
    pairs = [(row["id"], int(row["i"]), int(row["j"])) for row in table(tmp_path / "pairs")]
    assert len(set(pairs)) == len(pairs) and max(j - i for _, i, j in pairs) < 64
    assert {i for name, i, _ in pairs if name == "p2"} == set(range(1, 115))
    assert int(table(windowed / "status")[2]["windows"]) > 1


@pytest.mark.parametrize("option", ["--logits", "--pseudo-perplexity", "--contacts"])
def test_what_a_model_does_not_have(option: str, embed: Run, query: Path, tiny_t5: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no"):
        embed(query, option, tmp_path / "table", model=tiny_t5)
    assert not (tmp_path / "table").exists() and not (tmp_path / "out" / "embeddings").exists()


def test_a_checkpoint_without_contact_regression(embed: Run, query: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no contact regression"):
        embed(query, "--contacts", tmp_path / "table")


def test_t5_has_no_start_token(embed: Run, query: Path, tiny_t5: Path) -> None:
    with pytest.raises(UserError, match="no start token"):
        embed(query, "--pooling", "first", model=tiny_t5)


# -- layers and numbers --------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [("last", (6,)), ("all", (0, 1, 2, 3, 4, 5, 6)), ("0,6,-1", (0, 6)), ("-7", (0,)), (" -1 , 3", (6, 3)),
     ("last,0", (6, 0))],
)
def test_layers(text: str, expected: tuple[int, ...]) -> None:
    assert parse_layers(text, 6) == expected


@pytest.mark.parametrize("text", ["7", "-8", "", "1,,2", "six", "1.5", "0-3"])
def test_layers_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="layer"):
        parse_layers(text, 6)


def test_a_layer_that_does_not_exist_names_those_that_do(embed: Run, query: Path) -> None:
    with pytest.raises(UserError, match=r"no layer 33: this model has the layers 0 \(token embeddings\) to 2 \(last\)"):
        embed(query, "--layers", "33")


@pytest.mark.parametrize("pooling", ["mean", "residues"])
def test_numbers_beyond_16_bits_are_refused_with_advice(pooling: str, embed: Run, query: Path, changed: Any) -> None:
    def large(weights: dict[str, torch.Tensor]) -> None:
        weights["esm.encoder.emb_layer_norm_after.weight"] *= 1e6

    model = changed(large)
    with pytest.raises(UserError, match=r"line 1, id 'sp\|SIM9001.*--store float32|id 'sp.*float32"):
        embed(query, "--store", "float16", "--pooling", pooling, model=model)
    assert np.isfinite(vectors(embed(query, "--pooling", pooling, model=model, name="b"))[0]).all()


@pytest.mark.parametrize("pooling", ["mean", "residues", "max"])
def test_a_model_that_gives_no_finite_numbers(pooling: str, embed: Run, query: Path, changed: Any) -> None:
    def huge(weights: dict[str, torch.Tensor]) -> None:
        weights["esm.encoder.emb_layer_norm_after.weight"] *= 0
        weights["esm.encoder.emb_layer_norm_after.weight"] += 3e38

    with pytest.raises(UserError, match=r"no finite numbers for this protein .*line \d+, id 'sp\|SIM"):
        embed(query, "--pooling", pooling, model=changed(huge))


@pytest.mark.parametrize("damage", ["nan", "missing", "tokenizer", "config"])
def test_damaged_models(damage: str, embed: Run, query: Path, changed: Any, tmp_path: Path) -> None:
    def harm(weights: dict[str, torch.Tensor]) -> None:
        name = "esm.encoder.layer.0.output.dense.weight"
        if damage == "nan":
            weights[name][0, 0] = float("nan")
        elif damage == "missing":
            del weights[name]

    model = changed(harm)
    for name in {"tokenizer": ("vocab.txt",), "config": ("config.json",)}.get(damage, ()):
        (model / name).unlink()
    message = {"nan": "NaN", "missing": "lacks 1 of", "tokenizer": "no tokenizer", "config": "no config.json"}[damage]
    with pytest.raises(UserError, match=message):
        embed(query, model=model)
    assert list((tmp_path / "out").iterdir()) == []


# -- inputs --------------------


def test_every_record_has_its_row(embed: Run) -> None:
    text = (
        ">good first\r\nMKYL\r\n>empty\r\n>blank\r\n   \r\n\t\r\n>inner\r\nMK*YL\r\n>dna\r\n" + "ACGT" * 20 + "\r\n"
        ">odd\r\nm-kUy*\r\n>again\r\nMKYL\r\n>a/b\r\nMKL\r\n>a%2Fb\r\nMKLL\r\n"
    )
    folder = embed(text, "--format", "hdf5-uniprot")
    rows = table(folder / "status")
    assert [
        (row["id"], row["status"], row["length"], row["encoded"], row["windows"], row["cleaned"]) for row in rows
    ] == [
        ("good", "embedded", "4", "4", "1", "0"),
        ("empty", "rejected", "0", "0", "0", "0"),
        ("blank", "rejected", "0", "0", "0", "0"),
        ("inner", "rejected", "5", "0", "0", "0"),
        ("dna", "rejected", "80", "0", "0", "0"),
        ("odd", "embedded", "6", "4", "1", "2"),  # the gap and the stop; U is the model's own letter
        ("again", "embedded", "4", "4", "1", "0"),
        ("a/b", "embedded", "3", "3", "1", "0"),
        ("a%2Fb", "embedded", "4", "4", "1", "0"),
    ]
    assert [int(row["line"]) for row in rows] == [1, 3, 4, 7, 9, 11, 13, 15, 17]
    details = {row["id"]: row["details"] for row in rows}
    assert details["empty"] == details["blank"] == "no residues"
    assert "stop inside" in details["inner"] and "nucleotides" in details["dna"] and "1 gap removed" in details["odd"]
    assert {row["id"]: row["duplicate_of"] for row in rows}["again"] == "good"
    found = dict(zip(names(folder), vectors(folder), strict=True))
    assert set(found) == {"good", "odd", "again", "a/b", "a%2Fb"}
    np.testing.assert_array_equal(found["good"], found["again"])
    assert np.abs(found["a/b"] - found["a%2Fb"]).max() > 0


def test_gzip_tables_and_parquet_give_the_same(embed: Run, query: Path, tmp_path: Path) -> None:
    import pandas as pd

    expected = vectors(embed(query, name="fasta"))
    (tmp_path / "zipped").write_bytes(gzip.compress(query.read_bytes(), mtime=0))
    records = list(read_fasta(query))
    frame = pd.DataFrame({"label": "1", "id": [r.id for r in records], "sequence": [r.sequence for r in records]})
    frame.to_csv(tmp_path / "table", sep="\t", index=False)
    frame.to_csv(tmp_path / "commas", index=False)
    frame.to_parquet(tmp_path / "columns", index=False)
    for name in ("zipped", "table", "commas", "columns"):
        folder = embed(tmp_path / name, name=f"from_{name}")
        assert names(folder) == [record.id for record in records]
        for found, usual in zip(vectors(folder), expected, strict=True):
            np.testing.assert_array_equal(found, usual)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "empty"),
        ("MKYL\n", "not FASTA"),
        ("Dear colleague, here are the proteins.\n", "neither FASTA"),
        (">a\nMKYL\n>a\nMKK\n", r"'a' appears more than once.*lines 1 and 3"),
        (">\nMKYL\n", "header without an id"),
        (">a\n\n>b\n*\n", "None of 2 records can be used; the first: a: no residues"),
        (">a\n" + "ACGT" * 20 + "\n", "All sequences are nucleotides"),
        ("id\tname\na\tb\n", "column named sequence"),
        ("id\tsequence\na\tMK\n\tMK\n", "without an id.*line 3"),
        ("PAR1 is no Parquet\n", "Parquet file cannot be read"),
    ],
)
def test_bad_files(content: str, message: str, embed: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        embed(content)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("place", "message"),
    [("5", "Position 5 lies outside its sequence of 4 residues"), ("0", "outside"), ("-1", "no whole number"),
     ("two", "no whole number"), ("", "needs its position")],
)
def test_bad_positions(place: str, message: str, embed: Run, tmp_path: Path) -> None:
    (tmp_path / "sites").write_text(f"id\tsequence\tposition\na\tMKYL\t1\nb\tMKYL\t{place}\n")
    with pytest.raises(UserError, match=message) as told:
        embed(tmp_path / "sites", "--pooling", "sites")
    assert "sites, line 3, id 'b'" in str(told.value)


def test_fasta_has_no_sites(embed: Run, query: Path) -> None:
    with pytest.raises(UserError, match="column position"):
        embed(query, "--pooling", "sites")


def test_sites_on_cleaned_sequences(embed: Run, tmp_path: Path) -> None:
    text = "id\tsequence\tposition\nwhole\tMKYLA\t3\nongap\tM-K-YLA\t4\nbare\t\t1\ngaps\tM-K-YLA\t5\n"
    (tmp_path / "sites").write_text(text)
    folder = embed(tmp_path / "sites", "--pooling", "sites")
    whole, gaps = vectors(folder)
    np.testing.assert_array_equal(whole, gaps)
    with read_embeddings(folder / "embeddings") as found:
        assert list(found.positions or ()) == [3, 5]
    assert table(folder / "status")[1]["details"] == "position 4 is no residue but '-'"


def test_repeated_ids(embed: Run) -> None:
    text = ">a\nMKYL\n>a_2\nMKKK\n>a\nMKLL\n>b\nMRRR\n>a\nMKYL\n"
    renamed = embed(text, "--duplicate-ids", "rename", name="rename")
    assert names(renamed) == ["a", "a_2", "a_3", "b", "a_4"]
    rows = table(renamed / "status")
    assert rows[2]["details"] == "renamed: the id a was used before (line 1)" and rows[4]["duplicate_of"] == "a"
    first = embed(text, "--duplicate-ids", "first", name="first")
    assert names(first) == ["a", "a_2", "b"]
    assert [row["status"] for row in table(first / "status")] == [
        "embedded", "embedded", "rejected", "embedded", "rejected",
    ]


def test_flags_out_of_range(embed: Run, query: Path) -> None:
    for option in (
        ("--contact-threshold", "2"),
        ("--max-residues", "7"),
        ("--max-memory", "0"),
        ("--batch-tokens", "1"),
    ):
        with pytest.raises(UserError, match=option[0]):
            embed(query, *option, name=option[0])


def test_plan_comes_before_the_work(embed: Run, query: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = query.read_text()
    embed(text + text.replace(">sp|SIM", ">sp|TWIN"))
    said = capsys.readouterr().out
    assert re.search(
        r"Plan: 12 proteins of 12 records \(6 different sequences\), 2450 residues, longest 790, all whole; cpu, fp32, "
        r"batches of 2048 tokens, about [\d.]+ GiB of memory, [\d.]+ \w+ of temporary files; about \d+ s",
        said,
    )
    assert said.index("Plan:") < said.index("2450 of 2450 residues (100 %)")


# -- memory --------------------


def test_the_plan_counts_what_the_matrix_library_keeps_of_long_proteins(
    embed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """COALA's 11,916 proteins of up to 2,975 residues took 0.84 GiB where 0.7 were planned."""
    planned: list[int] = []
    whole = EmbedJob.memory

    def noted(self: EmbedJob) -> int:
        planned.append(whole(self) - self.embedder.capacity.fixed)
        return whole(self)

    monkeypatch.setattr(EmbedJob, "memory", noted)
    for name, lengths in (("one", [1500] * 20), ("many", range(740, 1520, 40))):
        text = "".join(f">p{at}\n{('MKVL' * 400)[:length]}\n" for at, length in enumerate(lengths))
        embed(text, "--precision", "bf16", "--batch-tokens", "1600", name=name)
    assert planned[1] - planned[0] >= 15 * 4 * 2**20


_PEAK = """
import resource, sys
sys.path.insert(0, sys.argv.pop(1))
import plm_embed
plm_embed.run(sys.argv[1:])
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_proteins(tiny_esm2: Path, root: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    def peak(count: int) -> int:
        generator = random.Random(1)
        with (tmp_path / "many.fasta").open("w") as handle:
            for number in range(count):
                handle.write(f">protein_{number}\n{''.join(generator.choices(AMINO_ACIDS, k=30))}\n")
        done = subprocess.run(
            [sys.executable, "-c", _PEAK, str(root / "tools"), "--input", str(tmp_path / "many.fasta"), "--model",
             str(tiny_esm2), "--embeddings", str(tmp_path / "e.h5"), "--status", str(tmp_path / "s"), "--precision",
             "fp32", "--device", "cpu"],
            capture_output=True, text=True, timeout=900,
        )
        assert done.returncode == 0, done.stderr
        with read_embeddings(tmp_path / "e.h5") as found:
            assert len(found) == count
        return int(done.stdout.rsplit("peak ", 1)[1])

    few, many = peak(10_000), peak(200_000)
    assert many <= 1.1 * few, f"{few} KiB for 10,000 proteins, {many} KiB for 200,000"
