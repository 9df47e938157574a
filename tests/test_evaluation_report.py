"""Each sentence of the evaluation report: said where it is true, and only there; the split's leakage is told again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from plm.data import dataset_table
from plm.jobs.evaluate.leaking_rows import leaking
from plm.scoring import assessment, predictions
from plm.scoring.assessment import ALONE, LEAKING, Assessment, Leaking
from plm.scoring.calibration import chance_ece, ece
from plm.telling.evaluation_report import calibration_told, few_rows, write_up

LETTERS = "ACDEFGHIKLMNPQRSTVWY"


def table(
    count: int, *, skill: float = 2.0, groups: int | None = None, seed: int = 0, model: str = "m"
) -> pd.DataFrame:
    """Predictions of two classes; ``skill`` is the distance of the classes' logits, 0 for guessing."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    positive = 1 / (1 + np.exp(-(generator.normal(size=count) + skill * (labels - 0.5))))
    return pd.DataFrame(
        {
            "id": [f"r{index}" for index in range(count)], "label": labels.astype(str),
            "call": (positive >= 0.5).astype(int).astype(str), "p_0": [f"{1 - value:.6f}" for value in positive],
            "p_1": [f"{value:.6f}" for value in positive],
            "group": [f"g{index % (groups or count)}" for index in range(count)], "split": "test", "model": model,
        }
    )


def found(*tables: pd.DataFrame, baseline: str = "", shared: Leaking | None = None) -> Assessment:
    """Assesses tables; ``baseline`` names the model that stands for the best baseline."""
    from dataclasses import replace

    evaluation = predictions.gather([(f"{number}.tsv", one) for number, one in enumerate(tables)], [])
    models = tuple(replace(model, baseline=model.name == baseline) for model in evaluation.models)
    return assessment.assess(
        replace(evaluation, models=models), "auroc", best_baseline=baseline, leaking=shared, resamples=200
    )


def of_parts(
    whole: pd.DataFrame, together: pd.DataFrame, alone: pd.DataFrame | None = None, *, counts: str = "yes"
) -> pd.DataFrame:
    """Predictions of a predictor with its parts; without ``alone`` it is the language model itself."""
    member = together.assign(model="member: composition", role="member", counts="no" if alone is None else "yes")
    parts = [
        whole.assign(model="p", role="predictor", counts="yes"),
        *([] if alone is None else [
            alone.assign(model="p, language model alone", role="language model", counts=counts)
        ]),
        together.assign(model="sequence members together", role="sequence members", counts="yes"),
        member.assign(counts="yes" if alone is not None else "no"),
    ]
    return pd.concat(parts, ignore_index=True)


def report(result: Assessment, **options: object) -> str:
    settings = {"figures": [], "with_comparison": False, "with_metrics": False, **options}
    return write_up(result, **settings).text()  # type: ignore[arg-type]


GOOD, GUESS = table(80, model="good"), table(80, skill=0.0, seed=3, model="guess")
TWIN = table(80, seed=0, model="twin")


def sharing(count: int, leaks: int, **changes: int) -> Leaking:
    rows = np.arange(count) < leaks
    return Leaking(**{"rows": rows, "protein": 0, "near": 0, "relative": 0, "residues": 33, "limit": 0.5,
                      "sides": "training or validation rows", **changes})


@pytest.mark.parametrize(
    ("result", "said", "not_said"),
    [
        (found(GOOD, GUESS, baseline="guess"), "good beats the best baseline (guess), beyond chance", "not shown"),
        (found(GUESS, GOOD, baseline="good"), "guess is worse than the best baseline (good), beyond chance", "beats"),
        (found(GOOD, TWIN, baseline="twin"), "good is not shown to be better than the best baseline", "beyond chance"),
        (found(GOOD), "not compared with baselines, because no training table was given", "best baseline ("),
        (found(table(40, groups=5), table(40, groups=5, model="b"), baseline="b"), "cannot be told", "beyond chance"),
        (found(GOOD, TWIN, GUESS, baseline="guess"), "2 of 2 models beat the best baseline", "not shown"),
    ],
    ids=["beats", "worse", "not shown", "alone", "few groups", "two models"],
)
def test_the_verdict(result: Assessment, said: str, not_said: str) -> None:
    first = report(result).splitlines()[0].replace("\\", "")
    assert said in first and not_said not in first


def test_the_words_no_better_are_gone() -> None:
    assert "no better" not in report(found(GOOD, TWIN, baseline="twin"))
    assert "is not shown to be better than" in set(found(GOOD, TWIN, baseline="twin").comparison_table()["verdict"])


def test_leakage_stands_right_after_the_verdict() -> None:
    text = report(found(GOOD, shared=sharing(80, 50, protein=48, near=9, relative=8))).splitlines()
    assert text[2].startswith("**LEAKAGE: 50 of the 80 evaluated rows leak: 48 of the same protein as training or")
    assert "9 within 33 residues" in text[2] and "8 with a relative among these of 50% identity or more" in text[2]
    assert "on the 30 rows that share nothing with them the AUROC of good is" in text[2]
    one = report(found(GOOD, shared=sharing(80, 1, relative=1)))
    assert "1 of the 80 evaluated rows leaks: 1 with a relative" in one and "same protein" not in one
    everything = report(found(GOOD, shared=sharing(80, 80, protein=80)))
    assert "no row is free of it" in everything
    group = report(found(GOOD, shared=sharing(80, 4)))
    assert "of a shared group" in group and "of a shared group" not in one


def test_no_leakage_is_said_only_by_who_looked() -> None:
    clean, silent = report(found(GOOD, shared=sharing(80, 0))), report(found(GOOD))
    assert "No leakage found: none of the 80 evaluated rows" in clean and "LEAKAGE" not in clean
    assert "eakage found" not in silent and "Nobody looked for leakage" in silent
    assert "Nobody looked" not in clean


def test_rows_that_leak_are_a_stratum() -> None:
    result = found(GOOD, shared=sharing(80, 50, protein=50))
    assert (result.line("good", "auroc", stratum=LEAKING).n, result.line("good", "auroc", stratum=ALONE).n) == (50, 30)
    text = report(result)
    assert "Rows of a training protein leak even where" in text
    unrelated = report(found(GOOD, shared=sharing(80, 50, relative=50)))
    assert "Rows of a training protein leak" not in unrelated
    assert "| rows that leak |" not in report(found(GOOD, shared=sharing(80, 0)))


@pytest.mark.parametrize(
    ("count", "training", "said"),
    [
        (80, 200, ""),
        (80, None, ""),
        (20, 200, "only 20 rows are judged,"),
        (80, 4, "only 4 training rows were there"),
        (20, 1, "only 20 rows are judged and only 1 training row was there"),
    ],
)
def test_few_rows_are_said(count: int, training: int | None, said: str) -> None:
    told = few_rows(found(table(count)), training)
    assert (said in told) if said else told == ""
    assert (f"⚠ {told}" in report(found(table(count)), training_rows=training)) == bool(said)


def test_calibration_gets_an_answer() -> None:
    generator = np.random.default_rng(0)
    positive = generator.uniform(size=400)
    labels = (generator.uniform(size=400) < positive).astype(int)
    right = table(400)
    right["label"], right["p_1"], right["p_0"] = labels.astype(str), positive.astype(str), (1 - positive).astype(str)
    wrong = right.copy()
    bold = np.where(positive > 0.5, 0.99, 0.01)
    wrong["p_1"], wrong["p_0"] = bold.astype(str), (1 - bold).astype(str)
    assert calibration_told(found(right))[0][1].startswith("not shown to be off")
    assert calibration_told(found(wrong))[0][1].startswith("no, on average")
    assert "m: no, on average" in report(found(wrong), figures=["calibration"])
    assert "on average" not in report(found(wrong), figures=["roc"])


def test_right_probabilities_are_off_by_more_than_chance_in_one_of_twenty() -> None:
    generator = np.random.default_rng(4)
    beyond = 0
    for _ in range(200):
        positive = generator.uniform(size=60)
        beyond += ece(positive, (generator.uniform(size=60) < positive).astype(int)) > chance_ece(positive, draws=300)
    assert beyond / 200 < 0.1


def test_other_conditional_sentences() -> None:
    usual = report(found(GOOD, GUESS, baseline="guess"), with_comparison=True, with_metrics=True)
    few = report(found(table(40, groups=5), table(40, groups=5, model="b"), baseline="b"), with_comparison=True)
    assert "In brackets the 95 % interval over groups." in usual and "In brackets" not in few
    assert "5 groups are too few for intervals" in few and "too few" not in usual
    assert "An interval that excludes 0" in usual and "no difference is shown" in few
    assert "Every score stands in the last table." in usual and "Every score stands" not in few
    assert "Intervals: percentile bootstrap" in usual and "percentile bootstrap" not in few
    seeds = pd.concat([GOOD.assign(seed=name) for name in ("ensemble", "1", "2")])
    assert "answers as an ensemble" in report(found(seeds)) and "as an ensemble" not in usual
    assert "The same for single trainings" in report(found(seeds)) and "single trainings" not in usual
    assert "**Unfinished training:**" not in usual
    assert "**Unfinished training:** good" in report(found(GOOD.assign(finished="false")))
    better = found(GUESS, GOOD, TWIN.assign(model="low", p_1=GUESS["p_1"], p_0=GUESS["p_0"]), baseline="low")
    assert better.better_baselines() == []
    assert "prevalence 50.0 %" in usual and "Positive class 1" in usual


def test_another_baseline_that_scored_higher_is_told_at_the_top() -> None:
    from dataclasses import replace

    evaluation = predictions.gather([("a", GOOD), ("b", GUESS), ("c", TWIN)], [])
    models = tuple(replace(model, baseline=model.name != "good") for model in evaluation.models)
    result = assessment.assess(replace(evaluation, models=models), "auroc", best_baseline="guess", resamples=200)
    assert report(result).splitlines()[2].startswith("On these rows twin scored higher than the baseline to beat")
    assert "scored higher than" not in report(found(GOOD, GUESS, baseline="guess"))


# -- what leaks, from a data set --------------------


def dataset(folder: Path, rows: list[tuple[str, str, str, str, str]], extra: dict[str, list[str]]) -> Path:
    path = folder / "dataset.tsv"
    columns = ["id", "sequence", "split", "protein", "group"]
    labels = [str(index % 2) for index in range(len(rows))]
    frame = pd.DataFrame(rows, columns=columns).assign(label=labels, **extra)
    frame.to_csv(path, sep="\t", index=False)
    return path


def random_window(seed: int, length: int = 33) -> str:
    return "".join(np.random.default_rng(seed).choice(list(LETTERS), length))


def test_what_rows_share_is_found(tmp_path: Path) -> None:
    near = random_window(1)[:20] + random_window(2)[20:]
    rows = [
        ("t1", random_window(1), "train", "P1", "g1"),
        ("t2", random_window(3), "train", "P2", "g2"),
        ("v1", random_window(4), "valid", "P3", "g3"),
        ("protein", random_window(5), "test", "P1", "g9"),
        ("group", random_window(6), "test", "P6", "g2"),
        ("relative", near, "test", "P7", "g7"),
        ("of validation", random_window(8), "test", "P3", "g8"),
        ("free", random_window(9), "test", "P9", "g10"),
    ]
    places = ["100", "5", "50", "110", "7", "9", "400", "3"]
    frame = dataset_table.read_dataset(dataset(tmp_path, rows, {"protein_position": places}))
    ids = ["protein", "group", "relative", "of validation", "free"]
    result = leaking(frame, ids, 1)
    assert result.rows.tolist() == [True, True, True, True, False]
    assert (result.protein, result.near, result.relative) == (2, 1, 1)
    assert leaking(frame, ["free"], 1).sentence().startswith("No leakage found: none of the 1 evaluated rows")
    # Validation rows are compared with training alone.
    assert not leaking(frame, ["v1"], 1).rows.any()


def test_folds_are_compared_with_each_other(tmp_path: Path) -> None:
    rows = [(f"r{index}", random_window(index), "", f"P{index // 2}", f"g{index}") for index in range(8)]
    frame = pd.DataFrame(rows, columns=["id", "sequence", "split", "protein", "group"]).drop(columns="split")
    frame["fold"] = [str(1 + index % 2) for index in range(8)]
    result = leaking(frame, [f"r{index}" for index in range(8)], 1)
    assert result.rows.all() and result.protein == 8 and result.sides == "the other folds"
    frame["fold"] = [str(1 + index // 4) for index in range(8)]
    assert not leaking(frame, [f"r{index}" for index in range(8)], 1).rows.any()


@pytest.mark.realdata
def test_the_tutorials_leakage_is_told_again(shared_data: Path, tmp_path: Path) -> None:
    import plm_preprocess

    given = {"input": shared_data / "dephos" / "gtn_train.fasta", "test": shared_data / "dephos" / "gtn_test.fasta"}
    made = {name: tmp_path / name for name in ("dataset", "rejected", "leakage", "report")}
    plm_preprocess.run([text for name, path in {**given, **made}.items() for text in (f"--{name}", str(path))])
    frame = dataset_table.read_dataset(tmp_path / "dataset")
    result = leaking(frame, list(frame.loc[frame["split"] == "test", "id"]), 1)
    table = pd.read_csv(tmp_path / "leakage", sep="\t", dtype=str)
    tests = table[table["split"] == "test"]
    assert result.rows.sum() == (tests["leaks"] == "yes").sum() == 32
    assert result.protein == (tests["same_protein"] == "yes").sum() == 30
