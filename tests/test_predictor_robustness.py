"""Predictors of odd data: what cannot be fitted is left out with a sentence; nothing crashes, nothing warns."""

from __future__ import annotations

import itertools
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from plm.data.task import Task
from plm.model.bundles.fine_tuned import load_bundle
from plm.model.bundles.predictor import Predictor
from plm.model.combination import LANGUAGE_MODEL, Combination
from plm.model.members import features
from plm.model.members.features import RESIDUES, VIEWS, ComparedRows, TextBlock, k_mers, linear_scores, similarity
from plm.model.members.stored import read_members
from plm.scoring.combining import TOGETHER, Heard, choose, combine, fit_mean, fit_single, fit_stacked
from plm.scoring.cross_fitting import LabelledTexts
from plm.scoring.metrics import MAIN_METRIC
from plm.scoring.sequence_members import FittedPredictor, MemberExamples, fit_predictor
from test_predictor import finetune, manifest, motif_windows

BINARY = Task("site", "class", ("0", "1"), "1")
NUMBER = Task("site", "number", (), mean=0.0, sd=1.0)
AMINO = np.array(list(RESIDUES))


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    """A warning of a library would stand in the user's log."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def windows(rows: int, length: int = 15, seed: int = 1) -> list[str]:
    letters = np.random.default_rng(seed).choice(AMINO, (rows, length))
    letters[:, length // 2] = "Y"
    return ["".join(row) for row in letters]


def fitted(
    texts: Sequence[str], target: Sequence[float] | NDArray, *, classes: int = 2, groups: Sequence[str] | None = None,
    known: int | None = None, width: int = 15, compare: bool = True, residues: bool = False, says: float = 1.0,
) -> FittedPredictor | None:
    """A predictor of rows whose last ``known`` the language model has answered, with a little sense."""
    generator = np.random.default_rng(2)
    count = len(texts)
    numbers = classes == 0
    task = NUMBER if numbers else BINARY if classes == 2 else Task("site", "class", tuple(map(str, range(classes))))
    truth = np.asarray(target, np.float64 if numbers else np.int64)
    model = np.full((count, task.outputs), np.nan)
    answered = np.arange(count - (count // 3 if known is None else known), count)
    if numbers:
        model[answered, 0] = truth[answered] + generator.normal(0, 1, len(answered))
    else:
        logits = generator.normal(0, 1, (len(answered), classes))
        logits[np.arange(len(answered)), truth[answered]] += says
        model[answered] = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    names = [f"r{number}" for number in range(count)]
    rows = LabelledTexts(
        list(texts), truth, np.array(names if groups is None else list(groups)),
        width > 0 or len(set(map(len, texts))) == 1,
    )
    examples = MemberExamples(rows, names, [str(value) for value in target], model, width, task)
    return fit_predictor(examples, MAIN_METRIC[task.kind], 1, compare=compare, residues=residues)


def check(made: FittedPredictor | None, folder: Path, new: Sequence[str]) -> None:
    """It answers finite numbers that sum to 1, stores itself, and answers the same after being read again."""
    assert made is not None
    task, predictor = made.heard.task, made.predictor
    model = np.full((len(new), task.outputs), 1 / task.outputs)
    positions = None if not made.members.width else [len(text) // 2 for text in new]
    told = predictor.explain(model, new, positions)
    answers, reasons = predictor.answer_with_reasons(lambda: model, new, positions)
    for values in (told.answers, *told.members.values()):
        assert values.shape == (len(new), task.outputs) and np.isfinite(values).all()
        if task.target == "class":
            np.testing.assert_allclose(values.sum(axis=1), 1)
            assert (values >= 0).all()
    np.testing.assert_allclose(answers, told.answers, atol=1e-12)
    assert reasons.said.shape == (len(new), len(reasons.names), task.outputs)
    assert (made.combined.combination.weights >= 0).all() and (made.combined.combination.slopes >= 0).all()
    made.members.write(folder)
    again = read_members(folder, made.members.to_json(), len(task.classes), "bundle.zip")
    same = Predictor(made.combined.combination, again, task).answer(lambda: model, new, positions)
    np.testing.assert_allclose(same, answers, atol=1e-9)


ODD = ["YYYYYYYYYYYYYYY", "XXXXXXXYXXXXXXX", "Y", "ACY", "ACDEFGHYIKLMNPQRSTVWYACDEFGHIKLMNPQRSTVWY" * 4]


def halves(count: int) -> NDArray[np.int64]:
    return np.arange(count) % 2


CASES = {
    "usual": lambda: fitted(windows(90), halves(90)),
    "one class in a fold": lambda: fitted(
        windows(60), np.repeat([0, 1], 30), groups=[f"g{number // 10}" for number in range(60)], known=60
    ),
    "few groups, each of one class": lambda: fitted(
        windows(60), np.repeat([0, 1], 30), groups=["a"] * 30 + ["b"] * 30, known=60
    ),
    "no relatives at all": lambda: fitted(
        ["".join(AMINO[[n % 20] * 7]) + "Y" + "".join(AMINO[[n % 20] * 7]) for n in range(20)], halves(20), known=12
    ),
    "all texts equal": lambda: fitted(windows(1) * 60, halves(60)),
    "X only": lambda: fitted(["XXXXXXXXXXXXXXX"] * 60, halves(60)),
    "nothing around": lambda: fitted(["-------Y-------"] * 30 + ["-------X-------"] * 30, halves(60)),
    "a class with one row": lambda: fitted(windows(61), [2, *[0, 1] * 30], classes=3),
    "a class without a row": lambda: fitted(windows(60), halves(60), classes=3),
    "a single validation row": lambda: fitted(windows(60), halves(60), known=1),
    "constant numbers": lambda: fitted(windows(60), [0.5] * 60, classes=0),
    "numbers": lambda: fitted(windows(60), np.random.default_rng(1).normal(0, 1, 60), classes=0),
    "30 classes": lambda: fitted(windows(90, 7), np.arange(90) % 30, classes=30, width=7),
    "without training sequences": lambda: fitted(windows(60), halves(60), compare=False),
    "residues": lambda: fitted(windows(60), halves(60), residues=True),
    "one validation class": lambda: fitted(windows(60), [*halves(40), *[1] * 20], known=20),
    "peptides": lambda: fitted([text[: 5 + n % 9] for n, text in enumerate(windows(60))], halves(60), width=0),
    "variants": lambda: fitted(windows(60), halves(60), width=0),
    "proteins": lambda: fitted(
        [text[: 70 + n] for n, text in enumerate(windows(60, 150))], halves(60), width=0
    ),
    "one residue": lambda: fitted(["Y"] * 30 + ["S"] * 30, halves(60), width=0),
    "told by one residue": lambda: fitted(["A" * 15] * 30 + ["C" * 15] * 30, [0] * 30 + [1] * 30, known=60),
}
SLOW = {"30 classes": pytest.mark.slow}


@pytest.mark.parametrize("case", [pytest.param(case, marks=SLOW.get(case, ())) for case in CASES])
def test_odd_data_is_answered(case: str, tmp_path: Path) -> None:
    check(CASES[case](), tmp_path, ODD)


def test_rows_of_one_group_leave_nothing_to_judge_by(tmp_path: Path) -> None:
    assert fitted(windows(60), halves(60), groups=["same"] * 60) is None


# ------------------------------------------------------------------------------------------------- what members see

LETTERS = st.text(alphabet=[*RESIDUES, *"X-BZUO"], max_size=40)


@given(st.lists(LETTERS, max_size=6))
def test_views_by_their_definitions(texts: list[str]) -> None:
    from sklearn.feature_extraction.text import HashingVectorizer

    shares, pairs = VIEWS["composition"](texts), VIEWS["dipeptides"](texts)
    for row, text in enumerate(texts):
        residues = max(len(text.replace("-", "")), 1)
        assert shares[row].tolist() == [text.count(letter) / residues for letter in RESIDUES]
        neighbours = [a + b for a, b in itertools.pairwise(text) if a in RESIDUES and b in RESIDUES]
        expected = [neighbours.count(a + b) / max(len(neighbours), 1) for a in RESIDUES for b in RESIDUES]
        assert pairs[row].tolist() == expected
    if any(len(text) >= 5 for text in texts):
        reference = HashingVectorizer(
            analyzer="char", ngram_range=(5, 5), lowercase=False, binary=True, norm=None, alternate_sign=False
        ).transform(texts)
        assert (abs(k_mers(texts) - reference)).sum() == 0


@given(st.lists(LETTERS, min_size=1, max_size=6), st.lists(LETTERS, min_size=1, max_size=4))
def test_words_by_their_definition(own: list[str], new: list[str]) -> None:
    """Which words a text has, letter by letter; and the cosine of weighted words, word by word."""
    group = {residue: str(number) for number, residues in enumerate(features.ALIKE) for residue in residues}

    def words_of(text: str) -> set[tuple[int, str]]:
        found = set()
        for number, seed in enumerate(features.SEEDS):
            for start in range(len(text) - len(seed) + 1):
                picked = [text[start + place] for place, taken in enumerate(seed) if taken == "1"]
                if all(letter in group for letter in picked):
                    found.add((number, "".join(group[letter] for letter in picked)))
        return found

    seen = VIEWS["words"](own)
    for row, text in zip(seen, own, strict=True):
        made = {(int(key) // features.WORDS, f"{int(key) % features.WORDS:05}") for key in row.indices}
        assert made == words_of(text)
    weight = {
        word: np.log((len(own) + 1) / (sum(word in words_of(text) for text in own) + 0.5))
        for text in [*own, *new] for word in words_of(text)
    }
    near = similarity("words", VIEWS["words"](new), seen)
    for one, text in enumerate(new):
        for two, other in enumerate(own):
            mine, theirs = words_of(text), words_of(other)
            lengths = [np.sqrt(sum(weight[word] ** 2 for word in words)) for words in (mine, theirs)]
            expected = sum(weight[word] ** 2 for word in mine & theirs) / (np.prod(lengths) or 1.0)
            assert near[one, two] == pytest.approx(expected, abs=1e-5)


@given(st.integers(1, 5), st.integers(1, 9), st.integers(0, 2**16))
def test_looking_up_and_comparing_are_the_plain_products(rows: int, length: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    letters = generator.choice(list(RESIDUES + "X-"), (8, length))
    texts = ["".join(row) for row in letters]
    block = TextBlock(texts)
    for view in ("composition", "dipeptides", "one-hot"):
        seen = VIEWS[view](texts)
        weight = generator.normal(size=(rows, seen.shape[1]))
        np.testing.assert_allclose(linear_scores(block, view, weight), seen @ weight.T, atol=1e-12)
    for view in ("one-hot", "k-mers", "words"):
        plain = similarity(view, VIEWS[view](texts[:3]), VIEWS[view](texts))
        np.testing.assert_array_equal(ComparedRows(view, texts).similarity(TextBlock(texts[:3])), plain)
        assert plain.shape == (3, 8) and (plain >= 0).all() and (plain <= 1).all()


# ------------------------------------------------------------------------------------------------------- combinations

THREE = Task("sequence", "class", ("a", "b", "c"))
WEIGHTS = st.lists(st.floats(0, 3), min_size=2, max_size=2)


def probabilities(rows: int, classes: int, seed: int) -> NDArray[np.float64]:
    values = np.random.default_rng(seed).dirichlet(np.full(classes, 0.3), rows)
    return values / values.sum(axis=1, keepdims=True)


@given(WEIGHTS, WEIGHTS, st.integers(0, 2**16))
def test_a_combination_is_of_each_row_by_itself(weights: list[float], slopes: list[float], seed: int) -> None:
    generator = np.random.default_rng(seed)
    made = Combination(("one", "two"), np.array(weights), np.array(slopes), generator.normal(0, 1, 3), "stacked")
    answers = {"one": probabilities(20, 3, seed), "two": probabilities(20, 3, seed + 1)}
    answers["one"][0] = [0, 0, 1]  # a member that is quite sure
    near = generator.uniform(size=20)
    near[3] = np.nan
    whole = made.combine(answers, near, THREE)
    assert (whole >= 0).all() and np.isfinite(whole).all()
    np.testing.assert_allclose(whole.sum(axis=1), 1)
    order = generator.permutation(20)
    shuffled = made.combine({name: values[order] for name, values in answers.items()}, near[order], THREE)
    np.testing.assert_allclose(shuffled, whole[order], atol=1e-12)
    single = np.concatenate([
        made.combine({name: values[row : row + 1] for name, values in answers.items()}, near[row : row + 1], THREE)
        for row in range(20)
    ])
    np.testing.assert_allclose(single, whole, atol=1e-12)


@given(st.floats(0, 2), st.floats(0.01, 2), st.floats(0.55, 0.99))
def test_relatives_count_the_more_the_nearer_they_are(weight: float, slope: float, sure: float) -> None:
    made = Combination(
        (LANGUAGE_MODEL, "nearest neighbour"), np.array([1.0, weight]), np.array([0.0, slope]), np.zeros(2), "stacked"
    )
    count = 11
    answers = {
        LANGUAGE_MODEL: np.tile([0.6, 0.4], (count, 1)), "nearest neighbour": np.tile([1 - sure, sure], (count, 1)),
    }
    rising = made.combine(answers, np.linspace(0, 1, count), BINARY)[:, 1]
    assert (np.diff(rising) > 0).all()
    unknown = made.combine(answers, np.full(count, np.nan), BINARY)
    np.testing.assert_allclose(unknown, made.combine(answers, np.zeros(count), BINARY))


@settings(max_examples=15, deadline=None)
@given(st.integers(30, 160), st.integers(2, 4), st.integers(0, 2**16))
def test_weights_are_never_negative(rows: int, classes: int, seed: int) -> None:
    """Also of members that say the opposite of the truth."""
    generator = np.random.default_rng(seed)
    task = Task("sequence", "class", tuple("abcd"[:classes]), "b" if classes == 2 else "")
    truth = generator.permutation(np.arange(rows) % classes)
    wrong = np.full((rows, classes), 0.9 / max(classes - 1, 1))
    wrong[np.arange(rows), truth] = 0.1
    told = {"wrong": wrong, "noise": probabilities(rows, classes, seed)}
    heard = Heard(told, generator.uniform(size=rows), ("noise",), truth, np.arange(rows).astype(str), task)
    made = (fit_mean(heard), fit_stacked(heard), fit_single(heard, "wrong"), choose(heard, seed).chosen.combination)
    for one in made:
        assert (one.weights >= 0).all() and (one.slopes >= 0).all() and np.isfinite(one.bias).all()


def two(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    positive = 1 / (1 + np.exp(-logits))
    return np.stack([1 - positive, positive], axis=1)


def heard_of(
    answers: dict[str, NDArray[np.float64]], truth: NDArray, near: NDArray | None = None, compares: tuple[str, ...] = ()
) -> Heard:
    count = len(truth)
    near = np.full(count, np.nan) if near is None else near
    return Heard(answers, near, compares, truth, np.arange(count).astype(str), BINARY)


def planted(count: int, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.int64], np.random.Generator]:
    """Logits, and classes drawn by them."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 1.5, count)
    return logits, (generator.random(count) < 1 / (1 + np.exp(-logits))).astype(np.int64), generator


@pytest.mark.parametrize("slope", [0.6, 1.0, 1.5])
def test_one_member_is_calibrated_like_by_logistic_regression(slope: float) -> None:
    from sklearn.linear_model import LogisticRegression

    logits, truth, _ = planted(3000)
    answers = {"one": two(logits / slope)}
    made = fit_single(heard_of(answers, truth), "one")
    reference = LogisticRegression(C=1e9, tol=1e-8, max_iter=1000).fit((logits / slope)[:, None], truth)
    expected = reference.predict_proba((logits / slope)[:, None])
    np.testing.assert_allclose(made.combine(answers, None, BINARY), expected, atol=1e-3)


def test_numbers_are_calibrated_like_by_least_squares() -> None:
    from sklearn.linear_model import LinearRegression

    generator = np.random.default_rng(4)
    task = Task("sequence", "number", (), mean=5.0, sd=2.0)
    truth = generator.normal(5, 2, 2000)
    said = 0.5 * truth + 1 + generator.normal(0, 1, 2000)
    heard = Heard({"one": said[:, None]}, np.full(2000, np.nan), (), truth, np.arange(2000).astype(str), task)
    made = fit_single(heard, "one").combine({"one": said[:, None]}, None, task)[:, 0]
    expected = LinearRegression().fit(said[:, None], truth).predict(said[:, None])
    np.testing.assert_allclose(made, expected, atol=0.01)


@pytest.mark.parametrize("count", [60, 150, 1500])
def test_the_mean_is_taken_where_nothing_is_clearly_better(count: int) -> None:
    logits, truth, generator = planted(count)
    answers = {name: two(logits + generator.normal(0, 1, count)) for name in ("one", "two", "three")}
    choice = choose(heard_of(answers, truth), 1)
    assert choice.chosen.name == "mean"
    assert ("stacked" in {one.name for one in choice.candidates}) == (count >= 100)


def test_stacking_beats_the_mean_where_members_repeat_each_other() -> None:
    """Three members with one error among them, one with its own: the mean counts the former thrice."""
    logits, truth, generator = planted(3000)
    shared = logits + generator.normal(0, 1.5, 3000)
    answers = {name: two(shared + generator.normal(0, 0.05, 3000)) for name in ("one", "two", "three")}
    answers["own"] = two(logits + generator.normal(0, 1.5, 3000))
    choice = choose(heard_of(answers, truth), 1)
    assert choice.chosen.name == "stacked"
    weights = dict(zip(choice.chosen.combination.names, choice.chosen.combination.weights, strict=True))
    together = weights["one"] + weights["two"] + weights["three"]
    assert weights["own"] == pytest.approx(together, rel=0.25)


def test_noise_is_left_out_by_the_mean_and_by_stacking() -> None:
    logits, truth, generator = planted(3000)
    answers = {"one": two(logits), **{f"noise {n}": two(generator.normal(0, 1, 3000)) for n in range(5)}}
    losses = {one.name: one.loss for one in choose(heard_of(answers, truth), 1).candidates}
    assert losses["stacked"] == pytest.approx(losses["mean"], abs=0.002)
    assert max(losses["stacked"], losses["mean"]) < losses["one"] + 0.003 < losses["noise 0"] - 0.1


def test_the_language_model_is_left_alone_by_noise() -> None:
    logits, truth, generator = planted(3000)
    noise = {f"noise {n}": two(generator.normal(0, 1, 3000)) for n in range(3)}
    made = combine(heard_of(noise, truth), two(logits), np.arange(3000), 1).combination
    assert made.uses_language_model
    answers = made.combine({LANGUAGE_MODEL: two(logits), **noise}, None, BINARY)
    loss, alone = (-np.log(values[np.arange(3000), truth]).mean() for values in (answers, two(logits)))
    assert loss == pytest.approx(alone, abs=0.003)


def test_a_language_model_of_noise_is_left_out() -> None:
    logits, truth, generator = planted(3000)
    members = {"one": two(logits), "two": two(logits + generator.normal(0, 1, 3000))}
    whole = combine(heard_of(members, truth), two(generator.normal(0, 1, 3000)), np.arange(3000), 1)
    assert whole.whole.chosen.name == TOGETHER and not whole.combination.uses_language_model


def test_relatives_are_believed_where_there_are_some() -> None:
    logits, truth, generator = planted(2000)
    near = generator.random(2000)
    relative = np.where(near > 0.5, 3 * (truth - 0.5) + generator.normal(0, 0.5, 2000), generator.normal(0, 1, 2000))
    answers = {"one": two(logits), "nearest neighbour": two(relative)}
    chosen = choose(heard_of(answers, truth, near, ("nearest neighbour",)), 1).chosen
    assert chosen.name == "stacked"
    slopes = dict(zip(chosen.combination.names, chosen.combination.slopes, strict=True))
    assert slopes["nearest neighbour"] > 1 and slopes["one"] == 0


# ---------------------------------------------------------------------------------------------------- the whole stage


def one_protein() -> pd.DataFrame:
    return motif_windows(60).assign(protein="P")


def few_numbers() -> pd.DataFrame:
    """Validation rows of one number."""
    frame = motif_windows(60)
    frame["label"] = [f"{number / 7:.3f}" for number in range(60)]
    frame.loc[frame["split"] == "valid", "label"] = "1.5"
    return frame


def rare_class() -> pd.DataFrame:
    frame = motif_windows(61)
    frame.loc[0, "label"] = "2"
    return frame


def peptides() -> pd.DataFrame:
    frame = motif_windows(60)
    frame["sequence"] = [text[2 : 9 + number % 6] for number, text in enumerate(frame["sequence"])]
    return frame.drop(columns=["position", "window", "protein"])


def single_validation_row() -> pd.DataFrame:
    frame = motif_windows(60)
    frame.loc[frame[frame["split"] == "valid"].index[1:], "split"] = "train"
    return frame


STAGES = {
    "one protein": (one_protein, ()), "few numbers": (few_numbers, ("--target", "number")),
    "rare class": (rare_class, ()), "peptides": (peptides, ()), "single validation row": (single_validation_row, ()),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", STAGES)
def test_the_stage_ends_well(
    case: str, tiny_esm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bundle, and either a predictor or a sentence why there is none; no library warns of numbers."""
    monkeypatch.setenv("GALAXY_SLOTS", "1")
    frame, options = STAGES[case]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        made = finetune(frame(), tiny_esm2, tmp_path, *options)
    loud = [one for one in told if re.search(r"numpy|sklearn|scipy|/tools/plm/", str(one.filename))]
    assert not loud, [str(one.message) for one in loud]
    about = manifest(made["bundle"])["predictor"]
    assert about["why_not"] or about["candidates"]
    bundle = load_bundle(made["bundle"], str(tiny_esm2), workdir=tmp_path / "again", device="cpu", precision="fp32")
    site = bundle.task.level == "site"
    answers, reasons = bundle.predict_with_reasons(
        ["Y", "ACDYF", "ACDEFGHIKLMNPQRSTVWY" * 10], [0, 3, 0] if site else None
    )
    assert np.isfinite(answers).all() and np.isfinite(reasons.said).all()
    assert "Warning" not in capsys.readouterr().err
