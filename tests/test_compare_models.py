"""plm_compare_models: equal questions to all models, scores as by hand, intervals that hold, one line a mistake."""

from __future__ import annotations

import csv
import gzip
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import plm_compare_models
import pytest
import torch
from plm.errors import UserError
from plm.jobs.compare_models import cost, masked_agreement, masked_questions, probe_scores, probes
from plm.jobs.compare_models.held_out import read_held_out
from plm.jobs.compare_models.masked_agreement import Asked, MaskedAnswers
from plm.jobs.compare_models.probe_scores import Draws, gain_kept, retention
from plm.jobs.compare_models.representation import represent
from plm.jobs.compare_models.similarity import linear_cka
from plm.model import encoder
from plm.model.checkpoint import has_language_model, load_model, resolve_model
from plm.model.loaded import LoadedModel
from plm.scoring import metrics
from plm.scoring.metrics import ALL, Scored
from plm.telling.report import LIMIT
from scipy.stats import entropy

LETTERS = "ACDEFGHIKLMNPQRSTVWY"
Rows = list[dict[str, str]]


def protein(chance: random.Random, length: int) -> str:
    return "".join(chance.choices(LETTERS, k=length))


def proteins(count: int, seed: int = 0, low: int = 20, high: int = 90) -> list[str]:
    chance = random.Random(seed)
    return [protein(chance, chance.randint(low, high)) for _ in range(count)]


def table(path: Path, rows: list[dict[str, Any]]) -> Path:
    lines = ["\t".join(rows[0]), *("\t".join(str(value) for value in row.values()) for row in rows)]
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def read(path: Path) -> Rows:
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle, delimiter="\t", quoting=csv.QUOTE_NONE))


@pytest.fixture(scope="module")
def esm(tiny_esm2: Path, workplace: Path) -> LoadedModel:
    return load_model(resolve_model(str(tiny_esm2), workdir=workplace), purpose="masked_lm")


@pytest.fixture(scope="module")
def body(tiny_esm2: Path, workplace: Path) -> LoadedModel:
    return load_model(resolve_model(str(tiny_esm2), workdir=workplace))


# -- CKA --------------------


def naive_cka(first: np.ndarray, second: np.ndarray) -> float:
    """From N x N kernels, as Song et al. 2012 write the unbiased HSIC."""
    count = len(first)

    def hsic(one: np.ndarray, other: np.ndarray) -> float:
        k, m = (rows @ rows.T for rows in (one, other))
        np.fill_diagonal(k, 0)
        np.fill_diagonal(m, 0)
        ones = np.ones(count)
        value = np.trace(k @ m) + (ones @ k @ ones) * (ones @ m @ ones) / ((count - 1) * (count - 2))
        return float(value - 2 / (count - 2) * (ones @ k @ m @ ones)) / (count * (count - 3))

    return hsic(first, second) / float(np.sqrt(hsic(first, first) * hsic(second, second)))


def test_cka_is_that_of_the_kernels() -> None:
    generator = np.random.default_rng(0)
    first = generator.normal(size=(40, 7)) + 3
    second = first[:, :4] ** 2 + generator.normal(size=(40, 4))
    found = linear_cka(first, second, [str(row // 2) for row in range(40)])
    assert found.value == pytest.approx(naive_cka(first, second), abs=1e-9)
    assert (found.rows, found.clusters) == (40, 20)
    assert found.low < found.value < found.high


def test_cka_ignores_rotation_scale_and_shift_and_is_zero_for_unrelated_wide_representations() -> None:
    generator = np.random.default_rng(1)
    first = generator.normal(size=(60, 300)).astype(np.float32)
    rotation = np.linalg.qr(generator.normal(size=(300, 300)))[0]
    clusters = [str(row) for row in range(60)]
    assert linear_cka(first, 5 * first @ rotation + 2, clusters).value == pytest.approx(1, abs=1e-5)
    # The biased estimator gives 0.8 here.
    unrelated = linear_cka(first, generator.normal(size=(60, 300)), clusters)
    assert abs(unrelated.value) < 0.1 and unrelated.low < 0 < unrelated.high


def test_jackknife_of_cka_is_that_of_leaving_clusters_out() -> None:
    generator = np.random.default_rng(2)
    first = generator.normal(size=(30, 5))
    second = first @ generator.normal(size=(5, 6)) + generator.normal(size=(30, 6))
    clusters = [f"c{row % 15}" for row in range(30)]
    found = linear_cka(first, second, clusters)
    left = [
        naive_cka(*(rows[[name != f"c{out}" for name in clusters]] for rows in (first, second))) for out in range(15)
    ]
    error = np.sqrt(14 / 15 * ((np.array(left) - np.mean(left)) ** 2).sum())
    assert found.low == pytest.approx(found.value - 1.959964 * error, abs=1e-8)
    assert np.isnan(linear_cka(first, second, ["a", "b", "c"] * 10).low), "too few clusters for an interval"


# -- masks and answers --------------------


def ask(sequences: list[str], **more: Any) -> masked_questions.Questions:
    clusters = [str(number) for number in range(len(sequences))]
    settings = {"rate": 0.15, "sets": 1, "seed": 42, "crop": 1022, **more}
    return masked_questions.questions(sequences, ["x"] * len(sequences), clusters, **settings)


def test_masks_belong_to_the_sequence_alone() -> None:
    sequences = proteins(12)
    whole, other = ask(sequences), ask([*proteins(5, seed=9), *sequences[::-1]])
    by_owner = {item.owner: item for item in other.items}
    for item in whole.items:
        same = by_owner[5 + 11 - item.owner]
        np.testing.assert_array_equal(item.codes, same.codes)
        np.testing.assert_array_equal(item.places, same.places)
    assert any(
        (one.codes != two.codes).any() for one, two in zip(whole.items, ask(sequences, seed=1).items, strict=True)
    )


def test_an_exact_share_is_asked_and_the_truth_is_kept() -> None:
    sequences = ["A", "XXXX", *proteins(8, seed=3)]
    put = ask(sequences, sets=3)
    assert put.asked.sums(np.ones(len(put.asked.owner))).tolist() == [
        3 * (0 if set(one) == {"X"} else max(1, round(0.15 * len(one)))) for one in sequences
    ]
    at = 0
    for item in put.items:
        letters = "".join(LETTERS[code] for code in put.asked.truth[at : at + len(item.places)])
        assert letters == "".join(sequences[item.owner][place] for place in item.places)
        hidden = (item.codes[item.places] == masked_questions.CODES["<mask>"]).sum()
        assert hidden == (round(0.8 * len(item.places)) if len(item.places) > 1 else 1)
        rest = np.setdiff1d(np.arange(len(item.codes)), item.places)
        kept = "".join((LETTERS + "X")[code] for code in item.codes[rest])
        assert kept == "".join(sequences[item.owner][place] for place in rest)
        at += len(item.places)
    assert put.visible[0].sum() == 0 and put.visible.sum() == sum(
        len(item.codes) - len(item.places) for item in put.items if set(sequences[item.owner]) != {"X"}
    )


def test_answers_are_those_of_the_model_one_protein_at_a_time(esm: LoadedModel, tiny_esm2: Path) -> None:
    from transformers import EsmForMaskedLM

    plain = EsmForMaskedLM.from_pretrained(tiny_esm2, attn_implementation="eager").eval()
    put = ask(proteins(9, seed=4), sets=2)
    found = masked_questions.answer("m", esm, put, budget=200)
    names = [esm.vocabulary[letter] for letter in LETTERS]
    at = 0
    for item in put.items:
        visible = [esm.vocabulary[(LETTERS + "X")[code] if code <= 20 else "<mask>"] for code in item.codes]
        ids = torch.tensor([[esm.vocabulary["<cls>"], *visible, esm.vocabulary["<eos>"]]])
        with torch.inference_mode():
            scores = plain(ids).logits[0, 1:-1][item.places].log_softmax(-1)
        span = slice(at, at + len(item.places))
        np.testing.assert_allclose(found.log_p[span], scores[:, names].numpy(), atol=2e-5)
        best = [
            LETTERS.find(next(k for k, v in esm.vocabulary.items() if v == top)) for top in scores.argmax(-1).tolist()
        ]
        assert [code if code >= 0 else -1 for code in found.called[span]] == [max(code, -1) for code in best]
        at += len(item.places)


def test_a_row_makes_no_difference(esm: LoadedModel) -> None:
    put = ask(proteins(20, seed=5))
    one, other = (masked_questions.answer("m", esm, put, budget=budget) for budget in (50, 5000))
    np.testing.assert_allclose(one.log_p, other.log_p, atol=2e-5)


def test_bfloat16_hardly_moves_the_perplexity(esm: LoadedModel, tiny_esm2: Path, workplace: Path) -> None:
    half = load_model(resolve_model(str(tiny_esm2), workdir=workplace), purpose="masked_lm", dtype="bfloat16")
    put = ask(proteins(40, seed=6))
    lines = masked_agreement.scores(
        put.asked, [masked_questions.answer(name, one, put) for name, one in (("single", esm), ("half", half))]
    )
    single, half_line = (line.value for line in lines if line.measure == "masked_perplexity")
    assert half_line == pytest.approx(single, rel=2e-3)


# -- scores --------------------


def simulated(
    clusters: int = 30, members: int = 2, each: int = 6, seed: int = 0
) -> tuple[Asked, MaskedAnswers, MaskedAnswers]:
    generator = np.random.default_rng(seed)
    count = clusters * members
    owner = np.repeat(np.arange(count), each)
    truth = generator.integers(20, size=len(owner))
    domains = ["Archaea" if number % 3 else "Viruses" for number in range(count)]
    asked = Asked(owner, truth, count, domains, [f"c{number // members}" for number in range(count)])
    made = []
    for name, sharpness in (("teacher", 3.0), ("student", 1.0)):
        raw = generator.normal(size=(len(owner), 20))
        raw[np.arange(len(owner)), truth] += sharpness
        log_p = (raw - np.log(np.exp(raw).sum(axis=1, keepdims=True))).astype(np.float32)
        made.append(MaskedAnswers(name, log_p, log_p.argmax(axis=1).astype(np.int64)))
    return asked, made[0], made[1]


def test_scores_are_the_plain_ones_in_each_domain() -> None:
    asked, teacher, student = simulated()
    lines = masked_agreement.scores(asked, [teacher, student])
    of = np.array(asked.domains)[asked.owner]
    assert {line.domain for line in lines} == {"all", "Archaea", "Viruses"}
    for line in lines:
        model = teacher if line.model == "teacher" else student
        mine = np.ones(len(of), bool) if line.domain == "all" else of == line.domain
        right = model.log_p[np.arange(len(of)), asked.truth][mine].astype(np.float64)
        value = np.exp(-right.mean())
        if line.measure == "masked_accuracy":
            value = (model.called == asked.truth)[mine].mean()
        assert line.value == pytest.approx(value, rel=1e-6)
        assert line.residues == mine.sum() and line.low < line.value < line.high


def test_relatives_do_not_make_an_interval_narrower() -> None:
    """Thirty clusters of ten copies know no more than thirty proteins."""
    asked, teacher, _ = simulated(clusters=30, members=1)
    copies = np.tile(np.arange(len(asked.owner)), 10)
    owner = asked.owner[copies] + asked.proteins * np.repeat(np.arange(10), len(asked.owner))
    many = Asked(
        owner, asked.truth[copies], 10 * asked.proteins, ["a"] * 10 * asked.proteins, list(asked.clusters) * 10
    )
    again = MaskedAnswers("teacher", teacher.log_p[copies], teacher.called[copies])
    one = masked_agreement.scores(Asked(asked.owner, asked.truth, 30, ["a"] * 30, asked.clusters), [teacher])[0]
    ten = masked_agreement.scores(many, [again])[0]
    assert (one.low, one.value, one.high) == pytest.approx((ten.low, ten.value, ten.high), rel=1e-6)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Clusters differ in how hard they are; the mean over all clusters that could have been drawn is known."""
    hits, trials = 0, 200
    generator = np.random.default_rng(7)
    for trial in range(trials):
        hard = generator.exponential(1.0, size=40) + 0.5
        owner = np.repeat(np.arange(40), 5)
        log_p = np.full((200, 20), -9.0, np.float32)
        log_p[:, 0] = -hard[owner]
        asked = Asked(owner, np.zeros(200, np.int64), 40, ["a"] * 40, [str(number) for number in range(40)])
        [line, _] = masked_agreement.scores(
            asked, [MaskedAnswers("m", log_p, np.zeros(200, np.int64))], seed=trial, resamples=300
        )
        hits += line.low <= np.exp(1.5) <= line.high
    assert 0.87 <= hits / trials <= 0.99


def test_agreement_with_itself_is_perfect_and_with_others_as_by_hand() -> None:
    asked, teacher, student = simulated()
    twin = MaskedAnswers("twin", teacher.log_p, teacher.called)
    lines = {
        (line.model, line.measure): line
        for line in masked_agreement.agreement(asked, teacher, [twin, student])
        if line.domain == "all"
    }
    for measure, value in (
        ("top1_agreement", 1),
        ("kl_divergence", 0),
        ("perplexity_ratio", 1),
        ("accuracy_difference", 0),
    ):
        line = lines["twin", measure]
        assert (line.value, line.low, line.high) == pytest.approx((value, value, value), abs=1e-9)
    p, q = (np.exp(model.log_p.astype(np.float64)) for model in (teacher, student))
    assert lines["student", "kl_divergence"].value == pytest.approx(entropy(p, q, axis=1).mean(), rel=1e-4)
    same = (teacher.log_p.argmax(1) == student.log_p.argmax(1)).mean()
    assert lines["student", "top1_agreement"].value == pytest.approx(same)
    single = {line.model: line.value for line in masked_agreement.scores(asked, [teacher, student])[::2][:2]}
    ratio = lines["student", "perplexity_ratio"]
    assert ratio.value == pytest.approx(single["student"] / single["teacher"])
    assert ratio.low > 1 and lines["student", "accuracy_difference"].high < 0


def test_baselines_know_letters_only() -> None:
    asked, _, _ = simulated()
    unigram = masked_agreement.unigram(asked)
    counts = np.bincount(asked.truth, minlength=20) + 1
    assert np.exp(unigram.log_p[0]) == pytest.approx(counts / counts.sum(), rel=1e-5)
    visible = np.zeros((asked.proteins, 20), np.int64)
    visible[0, 3] = 10_000
    own = masked_agreement.composition(asked, visible)
    assert (own.called[asked.owner == 0] == 3).all() and own.baseline
    assert np.exp(own.log_p).sum(axis=1) == pytest.approx(1, rel=1e-5)


# -- scores of probes --------------------


def multiclass(rows: int = 300, seed: int = 0) -> tuple[Scored, list[str]]:
    generator = np.random.default_rng(seed)
    truth = generator.choice(4, size=rows, p=[0.5, 0.3, 0.15, 0.05])
    raw = generator.normal(size=(rows, 4)) + 1.2 * np.eye(4)[truth]
    shares = np.exp(raw) / np.exp(raw).sum(axis=1, keepdims=True)
    return Scored("multiclass", truth, shares, shares.argmax(1), tuple("abcd")), [f"g{row // 4}" for row in range(rows)]


def test_probe_scores_are_scikit_learns_under_each_draw() -> None:
    scored, groups = multiclass()
    draws = Draws(groups, 50, 3)
    found = draws.score(scored)
    for measure in probe_scores.MEASURES["multiclass"]:
        assert found.values[measure] == pytest.approx(metrics.score(scored)[measure, ALL])
    assert draws.draws is not None
    for number in range(5):
        rows = np.repeat(np.arange(300), draws.draws[number][draws.index])
        part = Scored("multiclass", scored.truth[rows], scored.scores[rows], scored.calls[rows], scored.classes)
        for measure in probe_scores.MEASURES["multiclass"]:
            assert found.draws[measure][number] == pytest.approx(metrics.score(part)[measure, ALL])


def test_retention_is_paired_and_takes_chance_off() -> None:
    scored, groups = multiclass()
    draws = Draws(groups, 500, 3)
    teacher = draws.score(scored)
    kept = retention(teacher, teacher, "macro_f1")
    assert (kept.value, kept.low, kept.high) == (1, 1, 1), "unpaired draws would spread"
    worse = draws.score(multiclass(seed=5)[0])
    worse = draws.score(
        Scored("multiclass", scored.truth, worse_scores(scored), worse_scores(scored).argmax(1), scored.classes)
    )
    ratio = retention(worse, teacher, "macro_f1")
    assert ratio.low < ratio.value < ratio.high < 1
    gain = gain_kept(worse, teacher, worse, "macro_f1")
    assert gain.value == 0 and gain.high == 0
    binary = probe_scores.Resampled({"auroc": 0.75}, {})
    assert retention(binary, probe_scores.Resampled({"auroc": 1.0}, {}), "auroc").value == pytest.approx(0.5)
    assert np.isnan(retention(binary, probe_scores.Resampled({"auroc": 0.5}, {}), "auroc").value)


def worse_scores(scored: Scored) -> np.ndarray:
    noise = np.random.default_rng(1).dirichlet(np.ones(4), size=len(scored.truth))
    return 0.35 * scored.scores + 0.65 * noise


# -- representations and probes --------------------


def test_representations_are_the_encoders(esm: LoadedModel, body: LoadedModel) -> None:
    sequences = proteins(15, seed=8)
    whole = encoder.encode(body, sequences)
    means = represent(esm, sequences)
    np.testing.assert_allclose(means, np.stack([rows.mean(0).numpy() for rows in whole]), atol=1e-5)
    places = [np.array([0, len(one) - 1]) for one in sequences]
    picked = represent(esm, sequences, places)
    want = np.concatenate([rows[mine].numpy() for rows, mine in zip(whole, places, strict=True)])
    np.testing.assert_allclose(picked, want, atol=1e-5)


def structure_table(path: Path, count: int = 24, split: bool = True) -> Path:
    """Residues K and E are helix, others not; `-` has no label."""
    rows = []
    for number, sequence in enumerate(proteins(count, seed=11)):
        label = "".join("H" if letter in "KE" else "C" for letter in sequence)
        row = {"id": f"P{number}", "sequence": sequence, "label": "-" + label[1:]}
        if split:
            row["split"] = "test" if number % 3 == 0 else "train"
        rows.append(row)
    return table(path, rows)


def test_residue_probe_finds_what_is_in_the_representation(esm: LoadedModel, body: LoadedModel, tmp_path: Path) -> None:
    probe = probes.read_probe("ss", structure_table(tmp_path / "d.tsv"), seed=1, threads=1)
    assert (probe.task.level, probe.kind, probe.measure) == ("residue", "binary", "auroc")
    rows = {row["id"]: row for row in read(tmp_path / "d.tsv")}
    assert len(probe.judged) == sum(len(row["sequence"]) - 1 for row in rows.values() if row["split"] == "test")
    matrix = probes.features(probe, esm)
    row = int(probe.judged[7])
    sequence = probe.sequences[probe.owner[row]]
    [whole] = encoder.encode(body, [sequence])
    np.testing.assert_allclose(matrix[row], whole[probe.place[row]].numpy(), atol=1e-5)
    assert probe.task.classes[probe.target[row]] == ("H" if sequence[probe.place[row]] in "KE" else "C")
    found = probes.fit(probe, matrix, seed=1)
    draws = Draws(probe.units[probe.judged].tolist(), 100, 0)
    assert draws.score(found.scored).values["auroc"] > 0.85, "the letter itself is in every representation"
    [baseline] = probes.baseline_features(probe).values()
    assert draws.score(probes.fit(probe, baseline, seed=1).scored).values["auroc"] > 0.99
    shuffled = matrix[np.random.default_rng(0).permutation(len(matrix))]
    assert draws.score(probes.fit(probe, shuffled, seed=1).scored).values["auroc"] < 0.65, "nothing to find"


def test_folds_are_made_that_part_no_relatives(tmp_path: Path) -> None:
    chance = random.Random(3)
    rows = []
    for family in range(12):
        ancestor = protein(chance, 120)
        for member in range(4):
            sequence = "".join(chance.choice(LETTERS) if chance.random() < 0.15 else letter for letter in ancestor)
            rows.append({"id": f"f{family}m{member}", "sequence": sequence, "label": "ab"[family % 2]})
    probe = probes.read_probe("p", table(tmp_path / "d.tsv", rows), seed=1, threads=1)
    assert "5 folds made here" in probe.split and sorted(probe.judged.tolist()) == list(range(48))
    family = {row["sequence"]: row["id"].split("m")[0] for row in rows}
    for learn, judge in probe.parts:
        of = [{family[probe.sequences[probe.owner[row]]] for row in part} for part in (learn, judge)]
        assert not of[0] & of[1]


def test_rows_that_training_repeats_are_not_judged(tmp_path: Path) -> None:
    rows = [
        {"id": f"P{number}", "sequence": sequence, "label": f"{number / 7:.3f}", "group": f"g{number // 2}",
         "split": "valid" if number % 2 else "train"}
        for number, sequence in enumerate(proteins(20, seed=12))
    ]
    rows[1]["sequence"] = rows[0]["sequence"]
    probe = probes.read_probe("p", table(tmp_path / "d.tsv", rows), seed=1, threads=1)
    assert len(probe.judged) == 9 and probe.kind == "number" and "judged on validation rows" in probe.split
    assert probe.notes[0] == "1 rows to judge have the sequence of a training row and are left out"
    assert probe.notes[1].startswith("9 judged rows share their group with training rows")


# -- held-out proteins --------------------


def test_every_record_has_its_fate_and_the_draw_follows_content(tmp_path: Path) -> None:
    sequences = proteins(30, seed=13)
    rows = [
        {"id": f"P{number}", "sequence": sequence, "Domain": "Bacteria" if number % 2 else "", "cluster": f"c{number}"}
        for number, sequence in enumerate(sequences)
    ]
    rows += [{**rows[3], "id": "again"}, {**rows[4], "id": "bad", "sequence": "MK*LL"}]
    held = read_held_out(table(tmp_path / "h.tsv", rows), most=10)
    assert [fate.id for fate in held.fates] == [row["id"] for row in rows]
    counts = {
        kind: sum(fate.status == kind for fate in held.fates)
        for kind in ("judged", "not drawn", "duplicate", "rejected")
    }
    assert counts == {"judged": 10, "not drawn": 20, "duplicate": 1, "rejected": 1}
    assert set(held.domains) <= {"Bacteria", "unknown"} and held.origin == "the input's column cluster"
    for place, name in enumerate(held.ids):
        assert held.clusters[place] == f"c{name[1:]}" and held.sequences[place] == sequences[int(name[1:])]
    mixed = read_held_out(table(tmp_path / "m.tsv", rows[::-1]), most=10)
    assert set(mixed.sequences) == set(held.sequences)


def test_parquet_and_fasta_are_read_alike(tmp_path: Path) -> None:
    import pandas as pd

    sequences = proteins(12, seed=14, low=80, high=120)
    names = [f"P{number}" for number in range(12)]
    pd.DataFrame({"id": names, "sequence": sequences}).to_parquet(tmp_path / "h.parquet")
    (tmp_path / "h.fasta").write_text("".join(f">{a}\n{b}\n" for a, b in zip(names, sequences, strict=True)))
    one, other = (read_held_out(tmp_path / name) for name in ("h.parquet", "h.fasta"))
    assert (one.sequences, one.ids, one.clusters) == (other.sequences, other.ids, other.clusters)
    assert "MMseqs2" in one.origin and not one.has_domains


# -- cost --------------------


@pytest.mark.slow
def test_cost_is_measured_in_processes_of_their_own(tiny_esm2: Path, workplace: Path, tiny_t5: Path) -> None:
    models = [(path.name, resolve_model(str(path), workdir=workplace)) for path in (tiny_esm2, tiny_t5)]
    told: list[str] = []
    found = cost.measure(models, proteins(5), turns=2, threads=1, device="cpu", precision="fp32", told=told.append)
    assert [one.name for one in found] == ["tiny_esm2", "tiny_t5"] and len(told) == 2
    for one in found:
        assert len(one.speeds) == 2 and min(one.speeds) > 0 and one.peak_mib > one.empty_mib > 50
    assert found[0].times(found[0]) == (1, 1, 1)
    assert found[1].times(found[0])[0] == pytest.approx(
        np.median([a / b for a, b in zip(found[1].speeds, found[0].speeds, strict=True)])
    )


@pytest.mark.slow
def test_a_model_that_does_not_load_is_one_line(tiny_esm2: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_esm2, broken)
    files = resolve_model(str(broken), workdir=tmp_path)
    (broken / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="weights cannot be loaded"):
        cost.measure([("broken", files)], proteins(2), turns=1, threads=1, device="cpu", precision="fp32")
    with pytest.raises(UserError, match="weights cannot be loaded"):
        has_language_model(files)


# -- the stage --------------------


@pytest.fixture
def execute(tmp_path: Path) -> Callable[..., dict[str, Path]]:
    def run(*argv: str | Path, only: tuple[str, ...] = ()) -> dict[str, Path]:
        out = tmp_path / "out"
        out.mkdir()
        names = dict.fromkeys(("scores", "agreement", "proteins", "probes", "cost"), "tsv")
        names |= {"figure": "png", "probe-figure": "png", "report": "md"}
        paths = {name: out / f"{name}.{end}" for name, end in names.items() if not only or name in only}
        flags = [part for name, path in paths.items() for part in (f"--{name}", str(path))]
        plm_compare_models.run(["--resamples", "200", "--device", "cpu", *map(str, argv), *flags])
        return paths

    return run


def test_the_whole_comparison(
    execute: Callable[..., Any], tiny_esm2: Path, tiny_t5: Path, root: Path, tmp_path: Path
) -> None:
    out = execute(
        "--model", f"teacher={tiny_esm2}", "--model", f"twin={root / 'test-data' / 'tiny_esm2.zip'}",
        "--model", f"T5={tiny_t5}", "--input", root / "test-data" / "simulated_held_out.tabular", "--precision", "fp32",
        "--probe", f"structure={structure_table(tmp_path / 'd.tsv')}", "--turns", "1", "--timed-residues", "500",
    )
    scores = {(row["model"], row["domain"], row["measure"]): float(row["value"]) for row in read(out["scores"])}
    assert {key[0] for key in scores} == {"teacher", "twin", "unigram", "composition"}
    assert {key[1] for key in scores} == {"all", "Bacteria", "Eukaryota", "Viruses"}
    rows = [row for row in read(out["proteins"]) if row["model"] == "teacher"]
    masked = np.array([int(row["masked_residues"]) for row in rows])
    loss = np.array([np.log(float(row["perplexity"])) for row in rows])
    assert np.exp((loss * masked).sum() / masked.sum()) == pytest.approx(
        scores["teacher", "all", "masked_perplexity"], rel=1e-4
    )
    agreement = {(row["model"], row["measure"]): row for row in read(out["agreement"]) if row["domain"] == "all"}
    assert float(agreement["twin", "top1_agreement"]["value"]) == float(agreement["twin", "cka_protein"]["value"]) == 1
    assert ("T5", "top1_agreement") not in agreement and -0.5 < float(agreement["T5", "cka_residue"]["value"]) < 1
    found = {(row["model"], row["measure"]): row for row in read(out["probes"])}
    assert found["twin", "auroc"]["retention"] == "1" and found["twin", "auroc"]["main"] == "yes"
    assert (
        found["one-hot window of 15", "auroc"]["kind"] == "baseline"
        and not found["one-hot window of 15", "auroc"]["retention"]
    )
    assert [row["model"] for row in read(out["cost"])] == ["teacher", "twin", "T5"]
    report = out["report"].read_text()
    assert len(report.encode()) < LIMIT and report.startswith("**Beside teacher, twin keeps 100.0 % ")
    assert "T5 has no language-model head" in report
    assert out["figure"].read_bytes().startswith(b"\x89PNG") and out["probe-figure"].read_bytes().startswith(b"\x89PNG")


def test_equal_calls_give_equal_tables(
    execute: Callable[..., Any], tiny_esm2: Path, tmp_path: Path, starter: Path
) -> None:
    argv = ["--model", f"a={tiny_esm2}", "--model", f"b={tiny_esm2}", "--turns", "0",
            "--probe", f"structure={structure_table(tmp_path / 'd.tsv')}"]
    first = execute(*argv, only=("probes", "report"))
    texts = [path.read_text() for path in first.values()]
    shutil.rmtree(tmp_path / "out")
    assert [path.read_text() for path in execute(*argv, only=("probes", "report")).values()] == texts


def test_mistakes_are_one_line_each(tiny_esm2: Path, tmp_path: Path) -> None:
    one = f"a={tiny_esm2}"
    (tmp_path / "empty.fasta").write_text("")
    (tmp_path / "bad.fasta").write_text(">x\nMK*LL\n")
    (tmp_path / "dna.fasta").write_text(">x\n" + 30 * "ACGTACGT" + "\n")
    fasta = tmp_path / "p.fasta"
    fasta.write_text(">x\nMKLLV\n>y\nXXXX\n")
    rows = [{"id": str(number), "sequence": one} for number, one in enumerate(proteins(4))]
    same = table(tmp_path / "same.tsv", [{**row, "label": "a", "split": "train"} for row in rows])
    few = table(tmp_path / "few.tsv", [{**row, "label": "ab"[int(row["id"]) % 2]} for row in rows])
    untested = table(
        tmp_path / "untested.tsv", [{**row, "label": "ab"[int(row["id"]) % 2], "split": "train"} for row in rows]
    )
    out = tmp_path / "scores.tsv"
    for argv, message in (
        (["--model", "a", "--input", fasta], "'a' is not NAME=PATH"),
        (["--model", one, "--model", one, "--input", fasta], "The name 'a' is used twice"),
        (["--model", f"unigram={tiny_esm2}", "--input", fasta], "'unigram' is the name of a baseline"),
        (["--model", one], "There is nothing to judge the models on"),
        (["--model", one, "--probe", f"p={same}", "--scores", out], "nothing to write to scores.tsv without --input"),
        (["--model", one, "--input", fasta, "--mask-rate", "0"], r"0 is out of range \[--mask-rate\]"),
        (["--model", "a=nowhere", "--input", fasta], "There is no model 'nowhere'"),
        (["--model", one, "--input", tmp_path / "none.fasta"], "none.fasta"),
        (["--model", one, "--input", tmp_path / "empty.fasta"], "empty"),
        (["--model", one, "--input", tmp_path / "bad.fasta"], "no usable protein; the first: x, 1 stop inside"),
        (["--model", one, "--input", tmp_path / "dna.fasta"], "All sequences are nucleotides"),
        (["--model", one, "--input", fasta, "--domain-column", "kingdom"], "there is no column 'kingdom'"),
        (["--model", one, "--probe", f"p={same}"], "one class only"),
        (["--model", one, "--probe", f"p={few}"], "fewer than five groups of relatives"),
        (["--model", one, "--probe", f"p={untested}"], "names no training rows or no test or validation rows"),
    ):
        with pytest.raises(UserError, match=message):
            plm_compare_models.run([*map(str, argv), "--turns", "0"])
        assert not out.exists()


def test_few_clusters_and_short_proteins_have_no_intervals(
    execute: Callable[..., Any], tiny_esm2: Path, tmp_path: Path
) -> None:
    fasta = tmp_path / "p.fasta"
    fasta.write_text(">x\nM\n>y\nXXXX\n>z\nMKLLVVDE\n")
    out = execute(
        "--model", f"a={tiny_esm2}", "--input", fasta, "--turns", "0", only=("scores", "proteins", "report", "figure")
    )
    assert all(not row["low"] and float(row["value"]) >= 0 for row in read(out["scores"]))
    rows = read(out["proteins"])
    assert [row["masked_residues"] for row in rows if row["model"] == "a"] == ["1", "0", "1"]
    assert next(row["details"] for row in rows if row["id"] == "y") == "no amino acid to mask"


# -- scripts/benchmarks/benchmark_distillation --------------------


def test_tasks_are_split_as_their_docstrings_say(tmp_path: Path) -> None:
    from benchmarks.distillation_tasks import Settings, make

    chance = random.Random(21)
    with gzip.open(tmp_path / "coala90.fasta.gz", "wt") as target:
        for family in range(24):
            ancestor = protein(chance, 150)
            for member in range(3):
                sequence = "".join(chance.choice(LETTERS) if chance.random() < 0.1 else letter for letter in ancestor)
                label = "RARE" if family == 0 else ("ALPHA", "BETA")[family % 2]
                target.write(f">g{family}m{member}|x|{label}\n{sequence}\n")
    for split, count in (("train", 30), ("valid", 12)):
        with gzip.open(tmp_path / f"stability.{split}.csv.gz", "wt") as target:
            target.write("seq,label\n" + "".join(f"{protein(chance, 45)},{chance.random()}\n" for _ in range(count)))
    letters = {"a": "MKUL", "b": "MKLV", "c": "MMLV"}
    for name, text in (
        ("sequences", letters),
        ("sampled", dict.fromkeys("abc", "HEHC")),
        ("mask", dict.fromkeys("abc", "0111")),
    ):
        with gzip.open(tmp_path / f"flip_ss_{name}.fasta.gz", "wt") as target:
            for key, value in text.items():
                note = {
                    "a": "SET=train VALIDATION=False",
                    "b": "SET=train VALIDATION=True",
                    "c": "SET=test VALIDATION=False",
                }
                target.write(f">{key} {note[key]}\n{value}\n")
    made = make(["resistance", "stability", "structure"], Settings(tmp_path, 20, 1), tmp_path)
    rows = read(made["resistance"])
    assert {row["label"] for row in rows} == {"alpha", "beta"} and len(rows) == 20, "one family of rare is left out"
    clusters = [{row["cluster"] for row in rows if row["split"] == split} for split in ("train", "test")]
    assert clusters[0] and clusters[1] and not clusters[0] & clusters[1]
    rows = read(made["stability"])
    assert [sum(row["split"] == split for row in rows) for split in ("train", "valid")] == [20, 12]
    assert all(row["cluster"] for row in rows)
    assert [(row["id"], row["sequence"], row["label"], row["split"]) for row in read(made["structure"])] == [
        ("a", "MKXL", "-EHC", "train"), ("c", "MMLV", "-EHC", "test"),
    ]


@pytest.mark.realdata
@pytest.mark.slow
def test_the_benchmark_prints_a_table_of_real_tasks(
    shared_data: Path, root: Path, tiny_esm2: Path, tmp_path: Path
) -> None:
    script = root / "scripts" / "benchmarks" / "benchmark_distillation"
    command = [sys.executable, script, "--data", shared_data, "--teacher", tiny_esm2, "--student", tiny_esm2]
    command += ["--tasks", "stability,structure", "--most", "60", "--turns", "0", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "student keeps 100.0 %" in done.stdout and "| structure (Accuracy) | 0." in done.stdout
    assert "share their cluster with training rows" in done.stdout


@pytest.mark.gpu
def test_cuda_agrees_with_the_processor(tiny_esm2: Path, workplace: Path, esm: LoadedModel) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    files = resolve_model(str(tiny_esm2), workdir=workplace)
    put = ask(proteins(20, seed=5))
    found = masked_questions.answer("m", load_model(files, purpose="masked_lm", device="cuda"), put)
    np.testing.assert_allclose(found.log_p, masked_questions.answer("m", esm, put).log_p, atol=1e-3)
