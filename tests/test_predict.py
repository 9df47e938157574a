"""plm_predict: equal answers from proteins and from embeddings, nothing lost, and what it refuses."""

from __future__ import annotations

import csv
import gzip
import json
import logging
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import finetuning_cases as cases
import numpy as np
import pandas as pd
import plm_embed
import plm_predict
import pytest
from plm.data.embeddings.files import Description, write_embeddings
from plm.data.fasta import read_fasta
from plm.errors import UserError
from plm.model.bundles.classifier import ClassifierHead, load_classifier_bundle, write_classifier_bundle
from plm.model.bundles.fine_tuned import load_bundle
from plm.scoring.predictions import gather, read_predictions

SHA = "0c1f94d41be7f5fc09d9234ac6960261901b1037fa8c887dcf017f51334c901b"
ABOUT = {
    "model": "tiny_esm2", "model_sha256": SHA, "layers": [2], "pooling": "mean", "dimension": 32, "dtype": "float32",
}
FIXED = ("--device", "cpu", "--precision", "fp32")
Predict = Callable[..., dict[str, Path]]


@pytest.fixture
def predict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Predict:
    """Runs the stage with every output that any bundle has; further options override."""
    monkeypatch.delenv("PLM_CHECKPOINT_DIR", raising=False)
    counter = 0

    def run(bundle: Path, *options: str | Path, proteins: Path | None = None, embeddings: Path | None = None,
            model: Path | None = None) -> dict[str, Path]:
        nonlocal counter
        counter += 1
        names = ("predictions", "status", "figure", "report", "submission")
        outputs = {name: tmp_path / f"{name}_{counter}" for name in names}
        command: list[str | Path] = ["--bundle", bundle, *FIXED]
        command += ["--input", proteins] if proteins else []
        command += ["--embeddings", embeddings] if embeddings else []
        command += ["--model", model] if model else []
        for name, path in outputs.items():
            command += [f"--{name}", path]
        plm_predict.run([str(word) for word in (*command, *options)])
        return outputs

    return run


def table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, quoting=csv.QUOTE_NONE)


def embed(proteins: Path, model: Path, path: Path, *options: str) -> Path:
    fixed = ("--input", proteins, "--model", model, "--embeddings", path, *FIXED)
    plm_embed.run([str(word) for word in (*fixed, *options)])
    return path


def made_bundle(
    path: Path, *, classes: tuple[str, ...] = ("a", "b", "c"), validation: int = 40, **changes: Any
) -> Path:
    """A classifier of made-up weights on embeddings of the tiny model."""
    generator = np.random.default_rng(3)
    outputs = len(classes) or 1
    head = ClassifierHead("logistic", {
        "weight": generator.normal(size=(outputs, 32)).astype(np.float32), "bias": np.zeros(outputs, np.float32),
    })
    manifest = {
        "name": "made up", "task": {"level": "sequence", "target": "class" if classes else "number"},
        "classes": list(classes), "positive": "", "embedding": ABOUT, "temperature": 3.0, "threshold": 0.5,
        "standardisation": {"mean": 10.0, "sd": 2.0}, **changes,
    }
    truth = generator.integers(outputs, size=validation) if classes else generator.normal(size=validation) + 10
    scores = generator.dirichlet(np.ones(outputs), size=validation) if classes else truth[:, None] + 0.5
    rows = generator.normal(size=(30, 32)).astype(np.float32)
    labels = [classes[i % outputs] if classes else "10.5" for i in range(30)]
    write_classifier_bundle(
        path, manifest, head, reference=([f"t{i}" for i in range(30)], labels, rows),
        validation_scores=(scores.reshape(validation, outputs), truth), card="# card\n",
    )
    return path


def stored(path: Path, rows: int = 6, *, ids: list[str] | None = None, **changes: Any) -> Path:
    """Embeddings of the tiny model's kind."""
    about: dict[str, Any] = {**ABOUT, "layers": (2,), **changes}
    description = Description(
        about["model"], about["model_sha256"], about["layers"], about["pooling"], about["dtype"], about["dimension"]
    )
    generator = np.random.default_rng(5)
    shape = (rows, len(about["layers"]), about["dimension"])
    values = generator.normal(size=shape).astype(np.float32)
    values = values[:, 0] if len(about["layers"]) == 1 else values
    write_embeddings(path, "hdf5", description, ids or [f"q{i}" for i in range(rows)], iter(values))
    return path


@pytest.fixture
def classes_bundle(root: Path) -> Path:
    return root / "test-data" / "bundle_tiny_classes.zip"


# -- the same answers, whatever is given --------------------


@pytest.mark.parametrize("format", ["hdf5", "npz", "parquet", "hdf5-uniprot"])
def test_proteins_and_their_embeddings_give_the_same_table(
    format: str, classes_bundle: Path, tiny_esm2: Path, root: Path, tmp_path: Path, predict: Predict
) -> None:
    proteins = root / "test-data" / "simulated_proteins.fasta"
    options = ("--max-residues", "100")
    path = embed(proteins, tiny_esm2, tmp_path / "embeddings", *options, "--format", format)
    one = predict(classes_bundle, *options, proteins=proteins, model=tiny_esm2)
    other = predict(classes_bundle, embeddings=path)
    for name in ("predictions", "submission", "figure"):
        assert one[name].read_bytes() == other[name].read_bytes(), name
    assert (table(one["status"])["windows"].astype(int) > 1).any()


def test_residue_embeddings_and_tables_of_numbers_give_the_same_answers(
    classes_bundle: Path, tiny_esm2: Path, root: Path, tmp_path: Path, predict: Predict
) -> None:
    proteins = root / "test-data" / "simulated_query.fasta"
    expected = table(predict(classes_bundle, proteins=proteins, model=tiny_esm2)["predictions"])
    for options in (("--pooling", "residues"), ("--format", "tabular"), ("--layers", "0,1,2")):
        path = embed(proteins, tiny_esm2, tmp_path / "embeddings", *options)
        found = table(predict(classes_bundle, embeddings=path)["predictions"])
        assert found["id"].tolist() == expected["id"].tolist()
        for column in ("p_amber", "p_blue", "p_coral"):
            difference = found[column].astype(float) - expected[column].astype(float)
            assert difference.abs().max() <= 2e-6, options
        assert (found["distance"].astype(float) - expected["distance"].astype(float)).abs().max() < 2e-4


def test_answers_are_those_of_the_bundle_itself(
    classes_bundle: Path, tiny_esm2: Path, root: Path, tmp_path: Path, predict: Predict
) -> None:
    from plm.data.embeddings.files import read_embeddings

    proteins = root / "test-data" / "dataset_classes.tabular"
    found = table(predict(classes_bundle, proteins=proteins, model=tiny_esm2)["predictions"])
    bundle = load_classifier_bundle(classes_bundle)
    with read_embeddings(embed(proteins, tiny_esm2, tmp_path / "e.h5")) as opened:
        matrix = opened.matrix()
    values = bundle.predict(matrix)
    assert found["call"].tolist() == bundle.calls(values)
    shown = found[[f"p_{name}" for name in bundle.classes]].to_numpy().astype(float)
    np.testing.assert_allclose(shown, values, atol=1e-6)
    assert found["label"].tolist() == table(proteins)["label"].tolist()
    # Reference proteins are their own nearest.
    inside = found["id"].isin(bundle.reference[0])
    alone = np.isin(found["id"], found["nearest"])
    assert inside.any() and (found["nearest"] == found["id"])[inside & alone].all()
    top = found["top"].str.split("|").str[0].str.split("=").str[0]
    best = np.array(bundle.classes)[values.argmax(axis=1)]
    assert (top == best).all()


def test_no_record_is_lost_or_moved(classes_bundle: Path, tiny_esm2: Path, tmp_path: Path, predict: Predict) -> None:
    long = "".join(np.random.default_rng(1).choice(list("ACDEFGHIKLMNPQRSTVWY"), 3000))
    path = tmp_path / "mixed.fasta.gz"
    text = f">long\n{long}\n>stop\nMK*TA\n>twin\n{long}\n>empty\n\n>lower\nmktayiak-qr\n>dna\n{'ACGT' * 20}\n"
    path.write_bytes(gzip.compress(text.encode(), mtime=0))
    outputs = predict(classes_bundle, "--max-residues", "500", proteins=path, model=tiny_esm2)
    status, found = table(outputs["status"]), table(outputs["predictions"])
    assert status["id"].tolist() == ["long", "stop", "twin", "empty", "lower", "dna"]
    assert status["status"].tolist() == ["predicted", "rejected"] * 3
    assert int(status["windows"][0]) > 5 and status["duplicate_of"][2] == "long"
    assert found["id"].tolist() == ["long", "twin", "lower"]
    assert found.iloc[0, 1:].tolist() == found.iloc[1, 1:].tolist()
    handed = list(csv.reader(outputs["submission"].open()))
    assert [row[0] for row in handed] == ["id", *status["id"]]
    assert [bool(row[1]) for row in handed[1:]] == [True, False] * 3
    assert "3 of 6 records predicted" in outputs["report"].read_text()


def test_an_embedding_without_numbers_is_rejected_and_the_others_are_judged(tmp_path: Path, predict: Predict) -> None:
    bundle = made_bundle(tmp_path / "b.zip")
    path = tmp_path / "table.tsv"
    rows = np.random.default_rng(1).normal(size=(3, 32))
    rows[1] = np.nan
    lines = ["id\t" + "\t".join(f"e{i}" for i in range(32))]
    lines += [f"q{i}\t" + "\t".join(f"{value:.4f}" for value in row) for i, row in enumerate(rows)]
    path.write_text("\n".join(lines) + "\n")
    outputs = predict(bundle, embeddings=path)
    assert table(outputs["status"])["status"].tolist() == ["predicted", "rejected", "predicted"]
    assert "NaN" in table(outputs["status"])["details"][1]
    assert table(outputs["predictions"])["id"].tolist() == ["q0", "q2"]
    report = outputs["report"].read_text()
    assert "1 embeddings hold NaN" in report
    assert "it is not known whether they do in model, layer, pooling" in report
    path.write_text("\n".join([lines[0], lines[2]]) + "\n")
    with pytest.raises(UserError, match="None of 1 embeddings can be used"):
        predict(bundle, embeddings=path)


# -- what is told of each --------------------


def test_names_with_tabs_bars_and_other_scripts_pass_through_the_tables(tmp_path: Path, predict: Predict) -> None:
    names = ("β-lactam", "two\twords", "a|b", "line\nend")
    bundle = made_bundle(tmp_path / "b.zip", classes=names, validation=3)
    ids = ["Ünïcode", "with blank", "q3"]
    outputs = predict(bundle, "--top-k", "4", embeddings=stored(tmp_path / "e.h5", 3, ids=ids))
    found = table(outputs["predictions"])
    assert found["id"].tolist() == ids
    shown = ["β-lactam", "two words", "a|b", "line end"]
    assert [column for column in found if column.startswith("p_")] == [f"p_{name}" for name in shown]
    assert set(found["call"]) <= set(shown)
    assert (found["set_size"] == "4").all() and found["set"].str.contains("a\\|b", regex=False).all()
    assert table(outputs["status"])["id"].tolist() == found["id"].tolist()
    assert [row[0] for row in csv.reader(outputs["submission"].open())][1:] == ids
    report = outputs["report"].read_text()
    assert "β-lactam" in report and "always in the set are" in report
    colliding = made_bundle(tmp_path / "c.zip", classes=("a\tb", "a b"), validation=3)
    with pytest.raises(UserError, match="names a class twice"):
        predict(colliding, embeddings=tmp_path / "e.h5")


def test_no_call_is_made_where_it_should_not(tmp_path: Path, predict: Predict) -> None:
    bundle = made_bundle(tmp_path / "b.zip")
    path = stored(tmp_path / "e.h5", 40)
    calls = table(predict(bundle, embeddings=path)["predictions"])
    assert "best" not in calls and set(calls["call"]) <= set("abc")
    novel, unsure = calls["novel"] == "yes", calls["set_size"] != "1"
    assert novel.any() and not novel.all() and unsure.any() and not unsure.all()
    for rule, held in (("novel", novel), ("unsure", unsure), ("either", novel | unsure)):
        outputs = predict(bundle, "--abstain", rule, embeddings=path)
        found = table(outputs["predictions"])
        assert ((found["call"] == "abstain") == held).all()
        assert ((found["abstained"] == "yes") == held).all()
        assert found["best"].tolist() == calls["call"].tolist()
        assert ((table(outputs["status"])["status"] == "abstained") == held).all()
        assert f"{held.sum()} abstained" in outputs["report"].read_text().splitlines()[0]
    # A class of that very name leaves the call empty instead.
    named = made_bundle(tmp_path / "n.zip", classes=("abstain", "b", "c"))
    found = table(predict(named, "--abstain", "novel", embeddings=path)["predictions"])
    assert (found["call"][found["abstained"] == "yes"] == "").all()


def test_sets_follow_the_coverage(tmp_path: Path, predict: Predict) -> None:
    bundle = made_bundle(tmp_path / "b.zip", validation=200)
    path = stored(tmp_path / "e.h5", 60)
    sizes = []
    for coverage in ("0.3", "0.6", "0.9"):
        found = table(predict(bundle, "--coverage", coverage, embeddings=path)["predictions"])
        sizes.append(found["set_size"].astype(int))
        for row in found.itertuples():
            assert len([name for name in str(row.set).split("|") if name]) == int(str(row.set_size))
    assert (sizes[0] <= sizes[1]).all() and (sizes[1] <= sizes[2]).all() and sizes[2].sum() > sizes[0].sum()
    alone = predict(bundle, "--coverage", "0.9", "--coverage-for", "class", embeddings=path)["report"].read_text()
    assert "The coverage is an average" not in alone and "(exchangeable)" in alone


def test_numbers_come_with_intervals(tmp_path: Path, predict: Predict) -> None:
    bundle = made_bundle(tmp_path / "b.zip", classes=())
    outputs = predict(bundle, embeddings=stored(tmp_path / "e.h5"))
    found = table(outputs["predictions"]).astype({"value": float, "low": float, "high": float})
    assert {"call", "set", "top"}.isdisjoint(found.columns)
    np.testing.assert_allclose(found["high"] - found["value"], 0.5, atol=1e-4)
    np.testing.assert_allclose(found["value"] - found["low"], 0.5, atol=1e-4)
    assert "the number plus and minus 0.5" in outputs["report"].read_text()
    with pytest.raises(UserError, match="intervals of one width"):
        predict(bundle, "--abstain", "unsure", embeddings=tmp_path / "e.h5")


def test_two_classes_are_called_by_the_threshold(tmp_path: Path, predict: Predict) -> None:
    bundle = made_bundle(tmp_path / "b.zip", classes=("no", "yes"), positive="yes", threshold=0.8)
    found = table(predict(bundle, embeddings=stored(tmp_path / "e.h5", 60))["predictions"])
    calls = np.where(found["p_yes"].astype(float) >= 0.8, "yes", "no")
    assert (found["call"] == calls).all() and len(set(calls)) == 2
    assert (found["p_yes"].astype(float).between(0.5, 0.8)).any()


def test_several_classes_are_called_by_their_thresholds(tmp_path: Path, predict: Predict) -> None:
    thresholds = [0.7, 0.3, 0.1]
    bundle = made_bundle(tmp_path / "b.zip", class_thresholds=thresholds)
    outputs = predict(bundle, embeddings=stored(tmp_path / "e.h5", 60))
    rows = table(outputs["predictions"])
    values = rows[["p_a", "p_b", "p_c"]].astype(float).to_numpy()
    expected = np.array(["a", "b", "c"])[(values / thresholds).argmax(axis=1)]
    assert (rows["call"] == expected).all()
    assert (expected != np.array(["a", "b", "c"])[values.argmax(axis=1)]).sum() > 5
    assert "from 0.1 (c) to 0.7 (a)" in outputs["report"].read_text()
    plain = predict(made_bundle(tmp_path / "old.zip"), embeddings=tmp_path / "e.h5")
    assert "The class called is the likeliest." in plain["report"].read_text()


def test_bundles_without_validation_scores_make_no_sets_and_say_so(tmp_path: Path, predict: Predict) -> None:
    bundle = made_bundle(tmp_path / "b.zip", validation=0)
    outputs = predict(bundle, embeddings=stored(tmp_path / "e.h5"))
    assert {"set", "set_size"}.isdisjoint(table(outputs["predictions"]).columns)
    assert "no scores of validation rows" in outputs["report"].read_text()
    with pytest.raises(UserError, match="no scores of validation rows"):
        predict(bundle, "--abstain", "either", embeddings=tmp_path / "e.h5")


def test_an_unfinished_bundle_stays_marked(tmp_path: Path, predict: Predict) -> None:
    bundle = made_bundle(tmp_path / "b.zip", finished=False)
    outputs = predict(bundle, embeddings=stored(tmp_path / "e.h5"))
    assert set(table(outputs["predictions"])["finished"]) == {"false"}
    assert "(unfinished)" in outputs["report"].read_text().splitlines()[0]


def test_strange_proteins_raise_the_alarm(classes_bundle: Path, tiny_esm2: Path, root: Path, predict: Predict) -> None:
    usual = predict(classes_bundle, proteins=root / "test-data" / "simulated_classes.fasta", model=tiny_esm2)
    assert "other proteins than the model learned from" not in usual["report"].read_text()
    odd = predict(classes_bundle, proteins=root / "test-data" / "simulated_odd.fasta", model=tiny_esm2)
    assert "other proteins than the model learned from" in odd["report"].read_text()
    found = table(odd["predictions"]).set_index("id")
    assert found.loc["odd_1", "novel"] == found.loc["odd_2", "novel"] == "yes"
    assert found.loc["usual_1", "novel"] == "no"
    assert float(found.loc["odd_2", "distance"]) > 2 * float(found.loc["usual_1", "distance"])


def test_the_evaluation_reads_the_table(classes_bundle: Path, tiny_esm2: Path, root: Path, predict: Predict) -> None:
    proteins = root / "test-data" / "dataset_classes.tabular"
    outputs = predict(classes_bundle, "--abstain", "unsure", proteins=proteins, model=tiny_esm2)
    path = outputs["predictions"]
    assert (table(path)["call"] == "abstain").any()
    judged = gather([(path.name, read_predictions(path))], [])
    assert judged.kind == "multiclass" and judged.splits == "test" and len(judged.rows) == 15
    held_out = table(path)[table(path)["split"] == "test"]
    assert [judged.classes[call] for call in judged.models[0].scored.calls] == held_out["best"].tolist()
    assert "Of 15 records whose true label the input tells" in outputs["report"].read_text()


def test_a_list_to_hand_in_has_the_names_that_were_asked_for(tmp_path: Path, predict: Predict) -> None:
    bundle = made_bundle(tmp_path / "b.zip")
    outputs = predict(bundle, "--submission-columns", "Id, Class", embeddings=stored(tmp_path / "e.h5"))
    rows = list(csv.reader(outputs["submission"].open()))
    assert rows[0] == ["Id", "Class"]
    assert rows[1:] == table(outputs["predictions"])[["id", "call"]].to_numpy().tolist()


# -- fine-tuned models --------------------


@pytest.fixture(scope="module")
def finetuned(tiny_esm2: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Bundles of every kind that answers for proteins or residues."""
    made = {}
    for level in ("sequence", "residue"):
        for target in ("class", "number"):
            place = tmp_path_factory.mktemp(f"{level}_{target}")
            frame = cases.dataset(level, target, rows=32)
            seeds = (1, 2) if (level, target) == ("sequence", "class") else (1,)
            job = cases.trained(frame, tiny_esm2, place / "job", target=target, seeds=seeds)
            path = place / f"{level}_{target}.zip"
            cases.released(job, tiny_esm2, path)
            frame.to_csv(place / "rows.tsv", sep="\t", index=False)
            made[f"{level} {target}"] = path
    return made


@pytest.mark.parametrize("target", ["class", "number"])
def test_finetuned_models_answer_for_proteins(
    target: str, finetuned: dict[str, Path], tiny_esm2: Path, tmp_path: Path, predict: Predict
) -> None:
    path = finetuned[f"sequence {target}"]
    rows = table(path.parent / "rows.tsv")
    twins = pd.concat([rows, rows.assign(id=rows["id"] + "_again")])
    twins.to_csv(tmp_path / "rows.tsv", sep="\t", index=False)
    outputs = predict(path, proteins=tmp_path / "rows.tsv", model=tiny_esm2)
    found = table(outputs["predictions"])
    bundle = load_bundle(path, str(tiny_esm2), workdir=tmp_path, device="cpu", precision="fp32")
    expected = bundle.predict(list(twins["sequence"]))
    columns = ["value"] if target == "number" else [f"p_{name}" for name in bundle.task.classes]
    np.testing.assert_allclose(found[columns].to_numpy().astype(float), expected, rtol=1e-4, atol=2e-6)
    if target == "class":
        assert found["call"].tolist() == bundle.calls(expected)
    report = outputs["report"].read_text()
    assert ({"low", "high"} if target == "number" else {"set", "set_size"}) <= set(found.columns)
    assert "of 8 validation proteins" in report and "of the training proteins to each other" not in report
    # Novelty rests on the representations that the bundle was given as reference.
    ids, _, _ = bundle.reference
    own = found[found["id"].isin(ids)]
    assert (own["nearest"] == own["id"]).all()
    assert table(outputs["status"])["duplicate_of"].tolist()[len(rows) :] == list(rows["id"])


@pytest.mark.parametrize("target", ["class", "number"])
@pytest.mark.parametrize("windows", [False, True])
def test_finetuned_models_answer_for_every_residue(
    target: str, windows: bool, finetuned: dict[str, Path], tiny_esm2: Path, tmp_path: Path, predict: Predict
) -> None:
    path = finetuned[f"residue {target}"]
    rows = table(path.parent / "rows.tsv")
    rows.loc[0, "sequence"] = "MKTAYIAKQR" * 40
    rows.loc[0, "label"] = ""
    rows.to_csv(tmp_path / "rows.tsv", sep="\t", index=False)
    residues = tmp_path / "residues.tsv"
    options = ("--max-residues", "128") if windows else ()
    outputs = predict(path, "--residues", residues, *options, proteins=tmp_path / "rows.tsv", model=tiny_esm2)
    found, single = table(outputs["predictions"]), table(residues)
    assert "".join(single["residue"]) == "".join(rows["sequence"])
    bundle = load_bundle(path, str(tiny_esm2), workdir=tmp_path, device="cpu", precision="fp32")
    texts = list(rows["sequence"])
    budget = 128 + bundle.loaded.family.specials if windows else 8192
    expected = bundle.predict(texts, budget=budget)
    columns = ["value"] if target == "number" else [f"p_{name}" for name in bundle.task.classes]
    np.testing.assert_allclose(single[columns].to_numpy().astype(float), expected, rtol=1e-4, atol=2e-6)
    for row, text in zip(found.itertuples(), texts, strict=True):
        told = str(row.prediction)
        mine = single[single["id"] == row.id]
        assert mine["position"].astype(int).tolist() == list(range(1, len(text) + 1))
        if target == "class":
            assert len(told) == len(text) and told == "".join(mine["call"])
            assert set(told) <= {"H", "C"}
        else:
            assert len(told.split(",")) == len(text)
    assert int(table(outputs["status"])["windows"][0]) == (6 if windows else 1)
    # Residues without label are not judged; the first of each sequence has none.
    if target == "class":
        judged = gather([("t", read_predictions(residues))], [])
        assert len(judged.rows) == sum(len(text) - 1 for text, split in zip(texts, rows["split"], strict=True)
                                       if split == "test" and text != texts[0])


def test_finetuned_models_on_more_proteins_than_a_block(
    finetuned: dict[str, Path], tiny_esm2: Path, tmp_path: Path, predict: Predict
) -> None:
    generator = np.random.default_rng(1)
    texts = ["".join(generator.choice(cases.RESIDUES, int(size))) for size in generator.integers(5, 60, size=40)]
    path = tmp_path / "many.fasta"
    chosen = generator.integers(len(texts), size=120)
    path.write_text("".join(f">q{i}\n{texts[number]}\n" for i, number in enumerate(chosen)))
    bundle = finetuned["sequence class"]
    small = predict(bundle, "--batch-tokens", "64", proteins=path, model=tiny_esm2)
    large = predict(bundle, proteins=path, model=tiny_esm2)
    one, other = table(small["predictions"]), table(large["predictions"])
    assert one["id"].tolist() == other["id"].tolist() == [f"q{i}" for i in range(120)]
    np.testing.assert_allclose(one["p_0"].astype(float), other["p_0"].astype(float), atol=1e-5)
    for _, same in one.groupby(chosen):
        assert same["p_0"].nunique() == 1


# -- refusals --------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_sha256": "ff" * 32}, "in model: tiny_esm2 .sha256 ffffffffffff"),
        ({"layers": (1,)}, "in layer: 1 instead of 2"),
        ({"pooling": "max"}, "in pooling: max instead of mean"),
        ({"dimension": 31}, "in dimension: 31 instead of 32"),
        ({"layers": (0, 1)}, "in layer"),
    ],
)
def test_embeddings_of_another_kind_are_refused(
    change: dict[str, Any], message: str, tmp_path: Path, predict: Predict
) -> None:
    path = stored(tmp_path / "e.h5", **change)
    with pytest.raises(UserError, match=message):
        predict(made_bundle(tmp_path / "b.zip"), embeddings=path)
    assert not list(tmp_path.glob("predictions*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--coverage", "0"), "--coverage"), (("--coverage", "1"), "--coverage"), (("--coverage", "nan"), "--coverage"),
        (("--novel-share", "1.5"), "--novel-share"), (("--top-k", "-1"), "--top-k"),
        (("--submission-columns", "id"), "--submission-columns"), (("--max-residues", "3"), "--max-residues"),
        (("--batch-tokens", "1"), "--batch-tokens"), (("--max-memory", "0"), "--max-memory"),
        (("--residues", "r.tsv"), "--residues"),
    ],
)
def test_senseless_options_name_their_flag(
    options: tuple[str, str], message: str, tmp_path: Path, predict: Predict
) -> None:
    with pytest.raises(UserError) as raised:
        predict(made_bundle(tmp_path / "b.zip"), *options, embeddings=stored(tmp_path / "e.h5"))
    assert message in str(raised.value)


def test_one_line_says_what_is_wrong_and_no_output_appears(
    classes_bundle: Path, tiny_esm2: Path, tiny_t5: Path, root: Path, tmp_path: Path, run_stage: Callable[..., Any]
) -> None:
    empty, nucleotides = tmp_path / "empty.fasta", tmp_path / "dna.fasta"
    empty.write_text("")
    nucleotides.write_text(">a\nACGTACGTACGTACGTACGTACGTACGTACGTACGT\n")
    stops = tmp_path / "stops.fasta"
    stops.write_text(">a\nM*K\n>b\nMK*A\n")
    broken = tmp_path / "broken.zip"
    broken.write_bytes(classes_bundle.read_bytes()[:-500])
    query = root / "test-data" / "simulated_query.fasta"
    site = root / "test-data" / "bundle_tiny_site.zip"
    residues = root / "test-data" / "bundle_tiny_residues.zip"
    stored(tmp_path / "e.h5")
    for bundle, given, message in (
        (classes_bundle, ("--input", empty, "--model", tiny_esm2), "empty"),
        (classes_bundle, ("--input", nucleotides, "--model", tiny_esm2), "All sequences are nucleotides"),
        (classes_bundle, ("--input", stops, "--model", tiny_esm2), "None of 2 records can be used"),
        (classes_bundle, ("--input", query), "which is not built in"),
        (classes_bundle, ("--input", query, "--model", tiny_t5), "not on tiny_t5"),
        (classes_bundle, (), "Give either proteins or embeddings"),
        (classes_bundle, ("--input", query, "--embeddings", tmp_path / "e.h5"), "Give either proteins or embeddings"),
        (broken, ("--input", query), "no complete zip file"),
        (tmp_path / "none.zip", ("--input", query), "does not exist"),
        (site, ("--input", query, "--model", tiny_esm2), "Use plm_classify_sites"),
        (residues, ("--embeddings", tmp_path / "e.h5"), "reads proteins, not embeddings"),
        (residues, ("--input", query, "--model", tiny_esm2, "--abstain", "novel"), "for every residue"),
    ):
        answer = run_stage("plm_predict", *given, "--bundle", bundle, "--predictions", tmp_path / "p.tsv")
        assert answer.returncode == 1, message
        [line] = answer.stderr.strip().splitlines()
        assert line.startswith("plm_predict: error: ") and message in line
        assert not list(tmp_path.glob("*p.tsv*"))


def test_embeddings_of_unknown_origin_make_a_bundle_for_embeddings_alone(
    tiny_esm2: Path, root: Path, tmp_path: Path, predict: Predict
) -> None:
    about = {**ABOUT, "model": "", "model_sha256": "", "layers": [], "pooling": ""}
    bundle = made_bundle(tmp_path / "b.zip", embedding=about)
    with pytest.raises(UserError, match="embeddings of unknown model and layer and pooling"):
        predict(bundle, proteins=root / "test-data" / "simulated_query.fasta", model=tiny_esm2)
    report = predict(bundle, embeddings=stored(tmp_path / "e.h5"))["report"].read_text()
    assert "it is not known whether they do" in report


def test_a_killed_job_goes_on(
    classes_bundle: Path,
    tiny_esm2: Path,
    root: Path,
    tmp_path: Path,
    predict: Predict,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from plm.model.embedding.sharded import EmbedJob

    proteins = root / "test-data" / "simulated_proteins.fasta"
    options = ("--batch-tokens", "64", "--work-dir", str(tmp_path))
    expected = predict(classes_bundle, "--batch-tokens", "64", proteins=proteins, model=tiny_esm2)
    whole = EmbedJob.compute

    def killed(self: EmbedJob, shards: Any, ranks: Any = None) -> None:
        whole(self, list(shards)[:2], ranks)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(EmbedJob, "compute", killed)
        with pytest.raises(KeyboardInterrupt):
            predict(classes_bundle, *options, proteins=proteins, model=tiny_esm2)
    assert list(tmp_path.glob("plm_predict-*"))
    logging.getLogger("plm_predict").propagate = True
    try:
        with caplog.at_level(logging.INFO, "plm_predict"):
            found = predict(classes_bundle, *options, proteins=proteins, model=tiny_esm2)
    finally:
        logging.getLogger("plm_predict").propagate = False
    assert "Going on from an earlier run" in caplog.text
    assert found["predictions"].read_bytes() == expected["predictions"].read_bytes()
    assert not list(tmp_path.glob("plm_predict-*/shard*"))


def test_committed_bundles_were_made_by_the_script_beside_them(root: Path) -> None:
    for name in ("classes", "residues"):
        with zipfile.ZipFile(root / "test-data" / f"bundle_tiny_{name}.zip") as opened:
            manifest = json.loads(opened.read("manifest.json"))
        assert manifest["name"] == f"tiny_{name}" and manifest["finished"]
        assert "--name " + manifest["name"] in (root / "scripts" / "fixtures" / "make_test_classifier").read_text()
    records = list(read_fasta(root / "test-data" / "simulated_odd.fasta"))
    assert [record.id for record in records][:2] == ["usual_1", "odd_1"]
