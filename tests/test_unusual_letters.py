"""U, Z, O and B: letters of their own where a model knows them, X where its authors took them for X."""

from __future__ import annotations

from pathlib import Path

import pytest
from plm.data.fasta import CleaningRule, clean
from plm.data.protein_store import store_proteins
from plm.model.checkpoint import load_model, resolve_model
from plm.model.families import prepare


def test_esm_takes_its_own_letters_as_its_own_tokenizer_does(tiny_esm2: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    loaded = load_model(resolve_model(str(tiny_esm2), workdir=tmp_path))
    wanted = AutoTokenizer.from_pretrained(tiny_esm2, local_files_only=True)("MKUZOBXV")["input_ids"]
    assert loaded.token_ids("MKUZOBXV") == wanted
    assert loaded.token_ids("MKJV") == loaded.token_ids("MKXV")
    assert set(loaded.family.own_letters(loaded.vocabulary)) == set("BOUZ")


def test_prott5_takes_x(tiny_t5: Path, tmp_path: Path) -> None:
    loaded = load_model(resolve_model(str(tiny_t5), workdir=tmp_path))
    assert loaded.token_ids("MKUZOBV") == loaded.token_ids("MKXXXXV")
    assert loaded.family.own_letters(loaded.vocabulary) == {}


def test_the_rule_keeps_only_those_that_some_model_knows() -> None:
    cleaned = clean("MUZOBJV", CleaningRule("own"))
    assert (cleaned.sequence, cleaned.changes) == ("MUZOBXV", ("unusual residues J x1 -> X",))
    assert clean("MUZOBJV").sequence == "MXXXXXV"
    assert prepare("muzobjv") == "MXXXXXV" and prepare("muzobjv", "U") == "MUXXXXV"


@pytest.mark.parametrize(("unusual", "own", "different"), [("own", 2, 3), ("x", 0, 2)])
def test_records_with_own_letters_are_counted(tmp_path: Path, unusual: str, own: int, different: int) -> None:
    path = tmp_path / "a.fasta"
    path.write_text(">a\nMKUV\n>b\nMKOV\n>c\nMKXV\n>d\nMKLV\n" if unusual == "x" else ">a\nMKUV\n>b\nMKOV\n>c\nMKXV\n")
    stored = store_proteins(path, tmp_path / "stored", unusual=unusual)
    assert (stored.own, len(stored.lengths)) == (own, different)


@pytest.mark.parametrize("rule", ["own", "x"])
def test_a_classifier_meets_the_letters_of_its_training(rule: str, tiny_esm2: Path, tmp_path: Path) -> None:
    import numpy as np
    import pandas as pd
    import plm_embed
    import plm_predict
    import plm_train_classifier

    letters = np.random.default_rng(5)
    parts = {}
    for name, extra in (("yes", "UUO"), ("no", "LKA")):
        path = tmp_path / f"{name}.fasta"
        drawn = ["".join(letters.choice(list("ACDEFGHIKLMNPQRSTVWY"), 30)) for _ in range(30)]
        path.write_text("".join(f">{name}{index}\n{text}{extra}\n" for index, text in enumerate(drawn)))
        parts[name] = tmp_path / f"{name}.h5"
        plm_embed.run(["--input", str(path), "--model", str(tiny_esm2), "--unusual", rule, "--precision", "fp32",
                       "--embeddings", str(parts[name])])
    bundle = tmp_path / "bundle.zip"
    plm_train_classifier.run(["--embeddings", *map(str, parts.values()), "--head", "logistic", "--resamples", "100",
                              "--bundle", str(bundle)])
    answers = []
    for number, given in enumerate((["--input", str(tmp_path / "yes.fasta"), "--model", str(tiny_esm2)],
                                    ["--embeddings", str(parts["yes"])])):
        table = tmp_path / f"{number}.tsv"
        plm_predict.run([*given, "--bundle", str(bundle), "--precision", "fp32", "--predictions", str(table)])
        answers.append(pd.read_csv(table, sep="\t").filter(like="p_").to_numpy())
    assert np.abs(answers[0] - answers[1]).max() < 1e-4
