"""The benchmarks' variants run and compute the same thing, on tiny models; nothing here is timed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks import proteins, publish, timing, training
from benchmarks.shapes import SHAPES, checkpoint

pytest.importorskip("esm", reason="fair-esm, the benchmarks' reference, is not installed")

from benchmarks import embed_command, embedding, train_command, variants_command, whole

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.mark.parametrize("shape", ["tiny", "tinyT5"])
@pytest.mark.parametrize("mix", ["proteome", "windows"])
def test_every_way_to_embed_computes_the_same(shape: str, mix: str, work: Path) -> None:
    sequences = proteins.sample(mix, 1500)
    folder = checkpoint(SHAPES[shape], work)
    names = [v.name for v in embedding.variants((256, 512, 1024)) if v.name != embedding.GEMM]
    expected = embedding.build(embedding.REFERENCE, SHAPES[shape], folder, CPU)(sequences)
    for name in names:
        found = embedding.build(name, SHAPES[shape], folder, CPU)(sequences)
        assert [tuple(states.shape) for states in found] == [(len(text), 40) for text in sequences]
        off = embedding.differences(found, expected)
        assert off["relative_l2"] <= (0.1 if "int8" in name else 2e-2 if "bf16" in name else 1e-5), name
        assert off["pooled_cosine"] >= (0.995 if "int8" in name else 0.9995), name


def test_every_way_to_score_substitutions_computes_the_same(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    variants_command.main([
        "--shape", "tiny", "--residues", "40", "--positions", "4", "--variants", "30", "--rounds", "1", "--device",
        "cpu", "--work", str(work), "--output", str(tmp_path),
    ])
    made = json.loads((tmp_path / "figures" / "bench_variants.json").read_text())
    for case in made["cases"]:
        for name, error in case["errors"].items():
            assert error <= (1e-5 if name.endswith("fp32") else 5e-2), name
    assert "**masked-marginal**" in capsys.readouterr().out


def test_differences_see_a_wrong_residue() -> None:
    states = [torch.randn(50, 8), torch.randn(20, 8)]
    wrong = [states[0].clone(), states[1].clone()]
    wrong[1][3] = -wrong[1][3]
    off = embedding.differences(wrong, states)
    assert off["relative_l2"] > 0.1 and off["residue_cosine"] < 0.5


def test_matrix_products_are_those_of_the_model(work: Path) -> None:
    weights = embedding.linear_weights(
        embedding.plain_model(SHAPES["tiny"], checkpoint(SHAPES["tiny"], work), CPU, "bf16")
    )
    assert sum(weight.numel() for weight in weights) == 2 * (4 * 40 * 40 + 2 * 40 * 80)
    embedding.gemm(weights, [100, 7])


@pytest.mark.parametrize("mix", sorted(proteins.MIXES))
def test_samples_have_the_asked_size_and_are_the_same_again(mix: str) -> None:
    found = proteins.sample(mix, 20_000)
    assert found == proteins.sample(mix, 20_000)
    assert sum(map(len, found)) == pytest.approx(20_000, rel=0.25)
    assert [len(text) for text in found] != sorted(len(text) for text in found) or mix == "windows"


def test_simulated_lengths_have_yeasts_quantiles() -> None:
    lengths = [len(text) for text in proteins.sample("proteome", 500_000)]
    for share, length in list(proteins.YEAST.items())[2:-2]:
        assert np.quantile(lengths, share) == pytest.approx(length, rel=0.05)


def test_a_proteome_is_drawn_from(tmp_path: Path) -> None:
    given = proteins.sample("uneven", 5000)
    chosen = proteins.sample("proteome", 2000, proteins.write_fasta(given, tmp_path / "p.fasta"))
    assert set(chosen) < set(given)


def test_training_proteins_divide_the_lengths_evenly(tmp_path: Path) -> None:
    lengths = [len(text) for text in proteins.evenly(40, 512)]
    assert len(lengths) == 40 and max(lengths) <= 512 and lengths != sorted(lengths)
    assert np.median(lengths) == pytest.approx(262, rel=0.1)  # half of yeast's proteins up to 512 residues
    given = proteins.write_fasta(proteins.sample("uneven", 5000), tmp_path / "p.fasta")
    assert max(len(text) for text in proteins.evenly(10, 100, given)) <= 60


def test_ratios_compare_within_rounds_only() -> None:
    turns: list[str] = []

    def run(name: str, seconds: list[float]) -> float:
        turns.append(name)
        return seconds.pop(0)

    slow, quick = [4.0, 40.0], [2.0, 10.0]
    found = timing.interleaved(
        {"slow": lambda: run("slow", slow), "quick": lambda: run("quick", quick), "once": lambda: run("once", [1.0])},
        2, once={"once"},
    )
    assert turns == ["slow", "quick", "once", "quick", "slow"]
    assert timing.ratio(found["slow"], found["quick"]) == timing.Ratio(3.0, 2.0, 4.0)
    assert timing.ratio(found["slow"], found["once"]) == timing.Ratio(4.0, 4.0, 4.0)
    assert timing.ratio([None], [1.0]) is None


@pytest.mark.parametrize("task", ["proteins", "windows"])
def test_every_way_to_fine_tune_learns_the_same(task: str, work: Path) -> None:
    def losses(way: str) -> list[float]:
        given = training.Work("tiny", task, way, 3, 4, str(work), threads=1, dropout=False)
        found = training.run(given)
        assert found.tokens > 3 * 4 * 33 and found.seconds > 0
        return found.losses

    naive = losses("naive")
    assert len(naive) == 3 and len(set(naive)) == 3
    np.testing.assert_allclose(losses("packed-fp32"), naive, rtol=1e-4)
    np.testing.assert_allclose(losses("packed"), naive, rtol=3e-2)
    np.testing.assert_allclose(losses("packed-checkpointed"), losses("packed"), rtol=1e-4)
    assert np.isfinite(losses("bucketed")).all()  # another order: other losses


def test_every_way_to_pretrain_has_the_same_loss(work: Path) -> None:
    from plm.masked_lm import training as pretraining
    from plm.masked_lm.corpus import Corpus
    from plm.model.checkpoint import load_model, resolve_model
    from transformers import EsmForMaskedLM

    folder = checkpoint(SHAPES["tiny"], work)
    loaded = load_model(resolve_model(str(folder), workdir=work), purpose="masked_lm")
    corpus = Corpus.build(proteins.sample("proteome", 2000), loaded.family, loaded.vocabulary)
    batch, labels = corpus.masked_row([0, 1, 2], crop=200, rate=0.15, generator=np.random.default_rng(3))
    with torch.no_grad():
        ours = pretraining.MaskedRowModel(loaded.model)(**pretraining.collate([(batch, labels)]))["loss"]
        theirs = training.padded_loss(EsmForMaskedLM.from_pretrained(folder).eval(), batch, labels)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    for way in training.PRETRAINING_WAYS:
        found = training.run(training.Work("tiny", "pretrain", way, 2, 4, str(work), threads=1))
        assert len(found.losses) == 2 and np.isfinite(found.losses).all() and found.tokens > 0


def test_bench_embed_writes_its_page(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = "hf-sorted-bf16,ours-bf16-4096"
    embed_command.main(
        ["--shapes", "tiny,tinyT5:windows", "--variants", chosen, "--processes", "", "--residues", "800", "--threads",
         "1", "--repeats", "2", "--device", "cpu", "--work", str(work), "--output", str(tmp_path)]
    )
    found = json.loads((tmp_path / "figures" / "bench_embed.json").read_text())
    names = [variant["name"] for variant in found["cases"][0]["variants"]]
    assert names == ["reference", "hf-sorted-bf16", "ours-bf16-4096", "gemm"]
    assert found["cases"][1]["longest"] == 33
    page = (tmp_path / publish.PAGE).read_text()
    assert "this suite, 4,096 tokens, bf16" in page and "prott5_embedder.py" in page
    assert 5_000 < (tmp_path / "figures" / "bench_embed.png").stat().st_size < 200_000
    assert "## Embedding" in capsys.readouterr().out


def test_a_section_is_replaced_and_the_other_stays(tmp_path: Path) -> None:
    publish.publish("bench_embed", {}, "first", tmp_path)
    publish.publish("bench_train", {}, "second \\1", tmp_path)
    publish.publish("bench_embed", {}, "third", tmp_path)
    page = (tmp_path / publish.PAGE).read_text()
    assert "first" not in page and page.index("third") < page.index("second \\1")


@pytest.mark.slow
def test_bench_train_writes_its_page(work: Path, tmp_path: Path) -> None:
    train_command.main(
        ["--cases", "tiny", "--ways", "packed", "--repeats", "1", "--threads", "1", "--work", str(work), "--output",
         str(tmp_path)]
    )
    (case,) = json.loads((tmp_path / "figures" / "bench_train.json").read_text())["cases"]
    assert [way["name"] for way in case["ways"]] == ["naive", "packed"]
    assert "this suite, packed, bf16" in (tmp_path / publish.PAGE).read_text()


@pytest.mark.slow
def test_whole_processes_leave_the_same_means(work: Path, tmp_path: Path) -> None:
    model = checkpoint(SHAPES["tiny"], work)
    sequences = proteins.sample("proteome", 2000)
    fasta = proteins.write_fasta(sequences, tmp_path / "all.fasta")
    names = [f"protein{number}" for number in range(1, len(sequences) + 1)]
    found = {}
    for program in whole.PROGRAMS:
        ended = whole.run(program, model, fasta, tmp_path / program)
        assert ended.seconds > 0 and ended.memory_mib > 50
        found[program] = whole.means(program, tmp_path / program, names)
    np.testing.assert_allclose(found["stage"], found["extract"], rtol=0.1, atol=0.02)


@pytest.mark.parametrize("script", ["bench_embed", "bench_train"])
def test_scripts_explain_themselves(script: str, root: Path) -> None:
    command = [sys.executable, str(root / "scripts" / "benchmarks" / script), "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "--threads" in done.stdout


def test_a_later_run_replaces_only_its_own_cases(tmp_path: Path) -> None:
    from benchmarks import publish

    machine = {"device": "one"}
    old = {"machine": machine, "cases": [{"title": "a", "x": 1}, {"title": "b", "x": 1}]}
    publish.publish("bench", old, "text", tmp_path)
    new = {"machine": machine, "cases": [{"title": "c", "x": 2}, {"title": "a", "x": 2}]}
    joined = publish.joined("bench", new, tmp_path, {"cases": "title"})["cases"]
    assert [(entry["title"], entry["x"]) for entry in joined] == [("a", 2), ("b", 1), ("c", 2)]
    assert (
        publish.joined("bench", {**new, "machine": {"device": "two"}}, tmp_path, {"cases": "title"})["cases"]
        == new["cases"]
    )
