"""Every family through the command line of every stage that takes a model; what a family cannot do is one line."""

from __future__ import annotations

import csv
import importlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from family_cases import every_family, load, protein, tiny
from finetuning_cases import dataset
from plm.errors import UserError
from plm.model import encoder
from plm.model.families import ANKH, BERT, ESM1B, ESM2, FAMILIES, PROTT5, ModelFamily

HEADED = [family for family in FAMILIES if family.language_model_class]
every_headed_family = pytest.mark.parametrize("family", HEADED, ids=lambda family: family.name)
ON = ("--device", "cpu", "--precision", "fp32")


def run(stage: str, *flags: str | Path) -> None:
    importlib.import_module(stage).run([*map(str, flags), *ON])


def refused(stage: str, message: str, *flags: str | Path) -> None:
    """One line that says what and how to go on."""
    with pytest.raises(UserError, match=message) as caught:
        run(stage, *flags)
    assert "\n" not in str(caught.value) and (caught.value.fix or caught.value.where)


def fasta(path: Path, sequences: Iterable[str]) -> Path:
    path.write_text("".join(f">p{number}\n{sequence}\n" for number, sequence in enumerate(sequences)))
    return path


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as lines:
        return list(csv.DictReader(lines, delimiter="\t"))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return fasta(tmp_path / "corpus.fasta", [protein(20 + 3 * number, number) for number in range(30)])


@every_family
def test_embed(family: ModelFamily, tmp_path: Path) -> None:
    sequences = [protein(length) for length in (30, 45, 1100)]
    query = fasta(tmp_path / "q.fasta", sequences)
    model = ("--input", query, "--model", tiny(family))
    more = ("--logits", tmp_path / "l.tsv", "--pseudo-perplexity", tmp_path / "p.tsv") if family in HEADED else ()
    run("plm_embed", *model, "--embeddings", tmp_path / "e.h5", *more)
    loaded = load(tiny(family), tmp_path)
    with h5py.File(tmp_path / "e.h5") as held:
        values = held["values"][()]
        for row, sequence in enumerate(sequences[: 2 if loaded.family.max_residues == 1022 else 3]):
            mine = encoder.encode(loaded, [sequence])[0].mean(0).numpy()
            np.testing.assert_allclose(values[row], mine, rtol=2e-4, atol=2e-5)
    assert values.shape == (3, loaded.hidden_size) and np.isfinite(values).all()
    out = ("--embeddings", tmp_path / "n.h5")
    if family in HEADED:
        assert len(table(tmp_path / "l.tsv")) == sum(map(len, sequences))
        assert [row["id"] for row in table(tmp_path / "p.tsv")] == ["p0", "p1", "p2"]
    else:
        refused("plm_embed", "has no masked language model here", *model, *out, "--logits", tmp_path / "l.tsv")
    if not loaded.has_contacts:
        refused("plm_embed", "no contact regression", *model, *out, "--contacts", tmp_path / "c.tsv")
    if family.before:
        run("plm_embed", *model, *out, "--pooling", "first", "--layers", "all")
    else:
        refused("plm_embed", "puts no start token before a protein", *model, *out, "--pooling", "first")


@every_family
def test_variants(family: ModelFamily, tmp_path: Path) -> None:
    query = fasta(tmp_path / "q.fasta", [protein(30), protein(1100)])
    flags = ("--input", query, "--model", tiny(family), "--scores", tmp_path / "s.tsv")
    if family not in HEADED:
        refused("plm_variants", "has no masked language model here", *flags, "--all")
        return
    letters = {place: protein(1100)[place - 1] for place in (1, 600, 1100)}
    rows = [f"p1\t{letter}{place}{'A' if letter != 'A' else 'V'}" for place, letter in letters.items()]
    (tmp_path / "v.tsv").write_text("\n".join(["id\tvariant", *rows]) + "\n")
    for method in ("wt-marginal", "masked-marginal"):
        run("plm_variants", *flags, "--variants", tmp_path / "v.tsv", "--method", method)
        made = table(tmp_path / "s.tsv")
        assert [row["status"] for row in made] == ["scored"] * 3
        assert all(np.isfinite(float(row["score"])) for row in made)
        limit = load(tiny(family), tmp_path).family.max_residues or 1100
        assert [bool(row["window"]) for row in made] == [limit < 1100] * 3


def train(family: ModelFamily, tmp_path: Path, level: str, target: str, *flags: str) -> Path:
    dataset(level, target, 16).to_csv(tmp_path / "d.tsv", sep="\t", index=False)
    bundle = tmp_path / "bundle.zip"
    run(
        "plm_finetune", "--dataset", tmp_path / "d.tsv", "--model", tiny(family), "--epochs", "1", "--head-width", "8",
        "--bundle", bundle, "--predictions", tmp_path / "trained.tsv", *flags,
    )
    return bundle


@every_family
def test_finetune_a_head_and_predict(family: ModelFamily, tmp_path: Path) -> None:
    bundle = train(family, tmp_path, "sequence", "class", "--method", "head")
    out = tmp_path / "p.tsv"
    run("plm_predict", "--input", tmp_path / "d.tsv", "--bundle", bundle, "--model", tiny(family), "--predictions", out)
    mine = {row["id"]: float(row["p_1"]) for row in table(out)}
    for row in table(tmp_path / "trained.tsv"):
        assert mine[row["id"]] == pytest.approx(float(row["p_1"]), abs=1e-5)


@pytest.mark.slow
@every_family
@pytest.mark.parametrize("method", ["lora", "dora", "ia3", "full"])
def test_finetune_by_each_method_and_predict(family: ModelFamily, method: str, tmp_path: Path) -> None:
    bundle = train(family, tmp_path, "residue", "class", "--method", method)
    flags = ("--input", tmp_path / "d.tsv", "--bundle", bundle, "--model", tiny(family))
    run("plm_predict", *flags, "--predictions", tmp_path / "p.tsv", "--residues", tmp_path / "r.tsv")
    assert len(table(tmp_path / "p.tsv")) == 16


@pytest.mark.slow
@every_family
def test_classify_sites(family: ModelFamily, tmp_path: Path) -> None:
    bundle = train(family, tmp_path, "site", "class", "--method", "lora", "--rank", "2")
    query = fasta(tmp_path / "q.fasta", [protein(1100), protein(60)])
    flags = ("--input", query, "--bundle", bundle, "--model", tiny(family), "--residues", "Y")
    run("plm_classify_sites", *flags, "--sites", tmp_path / "s.tsv")
    assert len(table(tmp_path / "s.tsv")) == protein(1100).count("Y") + protein(60).count("Y")


@pytest.mark.slow
@every_headed_family
def test_pretrain_goes_on(family: ModelFamily, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "more.zip"
    flags = ("--input", corpus, "--batch-tokens", "256", "--holdout", "0.2", "--output-model", out)
    more = ("--steps", "2", "--warmup-steps", "1", "--evaluate-every", "1", "--stored-dtype", "float32")
    run("plm_pretrain", *flags, *more, "--model", tiny(family))
    trained = load(out, tmp_path / "w", purpose="masked_lm")
    assert trained.family.name == family.name
    before = encoder.encode(load(tiny(family), tmp_path / "w"), [protein(40)])[0]
    assert not np.allclose(encoder.encode(trained, [protein(40)])[0], before)


@pytest.mark.slow
@pytest.mark.parametrize("family", [PROTT5, ANKH], ids=lambda family: family.name)
def test_pretrain_needs_a_head(family: ModelFamily, corpus: Path, tmp_path: Path) -> None:
    flags = ("--input", corpus, "--model", tiny(family), "--output-model", tmp_path / "m.zip")
    refused("plm_pretrain", f"{family.title} has no masked language model here", *flags)
    assert not (tmp_path / "m.zip").exists()


@pytest.mark.slow
def test_pretrain_crops_to_what_the_positions_hold(corpus: Path, tmp_path: Path) -> None:
    long = fasta(tmp_path / "long.fasta", [protein(1200, number) for number in range(8)])
    flags = ("--input", long, "--model", tiny(ESM1B), "--steps", "1", "--output-model", tmp_path / "m.zip")
    refused("plm_pretrain", "takes at most 1022 residues", *flags, "--max-length", "1100", "--holdout", "0.5")


DISTIL = ("--steps", "2", "--batch-tokens", "256", "--holdout", "0.2", "--evaluate-every", "1")


@pytest.mark.slow
@every_headed_family
def test_distill_layers_of_the_teacher(family: ModelFamily, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "student.zip"
    run(
        "plm_distill", "--input", corpus, "--teacher", tiny(family), "--student-take", "2", *DISTIL,
        "--output-model", out, "--report", tmp_path / "r.md",
    )
    student = load(out, tmp_path / "w", purpose="masked_lm")
    assert (student.family.name, student.layers) == (family.name, 1)


@pytest.mark.slow
@every_family
def test_distill_into_esm2(family: ModelFamily, corpus: Path, tmp_path: Path) -> None:
    """Logits where the vocabularies are one; states and similarities from every family."""
    out = tmp_path / "student.zip"
    new = ("--student-layers", "1", "--student-width", "16", "--student-heads", "2")
    flags = ("--input", corpus, "--teacher", tiny(family), *new, *DISTIL, "--output-model", out)
    intact = ("--represent", "intact") if not family.mask else ()
    if family in (ESM2, ESM1B):
        run("plm_distill", *flags)
    else:
        why = "differ in vocabulary" if family.mask else "has no language-model head, so it has no logits"
        refused("plm_distill", why, *flags)
        states = ("--weight-logit-mse", "0", "--weight-kl", "0", "--weight-kernel", "1", "--weight-hidden", "1")
        run("plm_distill", *flags, *states, *intact)
    assert load(out, tmp_path / "w", purpose="masked_lm").family.name == "esm2"


@pytest.mark.slow
@pytest.mark.parametrize("family", [PROTT5, ANKH], ids=lambda family: family.name)
def test_distill_takes_no_layers_without_a_head(family: ModelFamily, corpus: Path, tmp_path: Path) -> None:
    flags = ("--input", corpus, "--teacher", tiny(family), "--output-model", tmp_path / "s.zip")
    states = ("--weight-logit-mse", "0", "--weight-kl", "0", "--weight-kernel", "1", "--represent", "intact")
    refused("plm_distill", f"Layers of {family.title} make no student", *flags, *states, "--student-take", "1")
    refused("plm_distill", f"{family.title} has no masked lang", *flags, *states, "--student", tiny(family))


@pytest.mark.slow
def test_distill_into_bert(corpus: Path, tmp_path: Path) -> None:
    """A student of another family than its teacher: states and similarities, and the true residues."""
    out = tmp_path / "student.zip"
    flags = ("--input", corpus, "--teacher", tiny(ESM2), "--student", tiny(BERT), *DISTIL, "--output-model", out)
    states = ("--weight-logit-mse", "0", "--weight-kl", "0", "--weight-kernel", "1", "--weight-mlm", "1")
    run("plm_distill", *flags, *states)
    assert load(out, tmp_path / "w", purpose="masked_lm").family.name == "bert"
    long = fasta(tmp_path / "long.fasta", [protein(1200, number) for number in range(8)])
    flags = ("--input", long, "--teacher", tiny(ESM2), "--student", tiny(ESM1B), "--output-model", tmp_path / "no.zip")
    refused("plm_distill", "takes at most 1022 residues", *flags, "--max-length", "1100", "--holdout", "0.5")


@pytest.mark.slow
@every_family
def test_compare_models(family: ModelFamily, corpus: Path, tmp_path: Path) -> None:
    models = ("--model", f"mine={tiny(family)}", "--model", f"theirs={tiny(ESM2)}")
    paths = {name: tmp_path / f"{name}.tsv" for name in ("scores", "agreement", "cost")}
    run(
        "plm_compare_models", *models, "--input", corpus, "--resamples", "100", "--turns", "1",
        "--timed-residues", "200", "--report", tmp_path / "r.md",
        *(part for name, path in paths.items() for part in (f"--{name}", path)),
    )
    scored = {row["model"] for row in table(paths["scores"])}
    assert ("mine" in scored) == (family in HEADED) and "theirs" in scored
    if family not in HEADED:
        assert "mine has no language-model head" in (tmp_path / "r.md").read_text()
    body = load(tiny(family), tmp_path / "w").model
    count = sum(value.numel() for name, value in body.named_parameters() if "contact_head" not in name)
    cost = {row["model"]: row for row in table(paths["cost"])}
    assert int(cost["mine"]["parameters"]) == count


@pytest.mark.slow
@every_family
def test_the_shell_ends_with_one_line(family: ModelFamily, tmp_path: Path, run_stage: Callable[..., Any]) -> None:
    """What no family does: contacts of a model without a regression, in a process of its own."""
    model = tiny(ESM2 if family == ESM1B else family)
    query = fasta(tmp_path / "q.fasta", [protein(30)])
    done = run_stage(
        "plm_embed", "--input", query, "--model", model, "--embeddings", tmp_path / "e.h5", "--contacts", tmp_path / "c"
    )
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1
    assert "no contact regression" in done.stderr and not (tmp_path / "e.h5").exists()
