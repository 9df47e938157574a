"""The terms of the distillation loss: values by hand, gradients against finite differences, and through a model."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from plm.errors import UserError
from plm.jobs.distill import losses
from plm.jobs.distill.batches import DistillationRow
from plm.jobs.distill.distillation import RECIPES, TERMS, DistillationModel, Objective, RateRamp, collate
from plm.jobs.distill.teacher import Teacher, TeacherTargets, Wants, mean_of_residues, residue_places, top_logits
from plm.masked_lm.corpus_store import CorpusStore, open_corpus
from plm.masked_lm.masks import MaskPlan
from plm.model.checkpoint import load_model, resolve_model
from plm.model.loaded import LoadedModel


def double(*shape: int, seed: int = 0, grad: bool = True) -> torch.Tensor:
    made = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return made.requires_grad_(grad)


TEACHER_LOGITS = double(7, 33, seed=1, grad=False)
TEACHER_POOLED = double(5, 12, seed=2, grad=False)
TEACHER_STATES = double(9, 12, seed=3, grad=False)
TOP = top_logits(TEACHER_LOGITS, 6)
GRADIENTS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor | None], tuple[int, ...]]] = {
    "logit_mse": (lambda x: losses.masked_logit_mse(x, TEACHER_LOGITS), (7, 33)),
    "kl": (lambda x: losses.kl_divergence(x, TEACHER_LOGITS, 2.5), (7, 33)),
    "kl of the highest": (lambda x: losses.kl_divergence_of_top(x, **TOP, temperature=2.5), (7, 33)),
    "kernel": (lambda x: losses.kernel_alignment(x, TEACHER_POOLED), (5, 4)),
    "hidden": (lambda x: losses.hidden_cosine(x, TEACHER_STATES), (9, 12)),
    "mlm": (lambda x: losses.masked_language_model(x, torch.tensor([4, 5, 6, 23, 9, 4, 4])), (7, 33)),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_of_each_term_are_those_of_finite_differences(name: str) -> None:
    term, shape = GRADIENTS[name]
    value = double(*shape, seed=4)
    assert torch.autograd.gradcheck(term, (value,))
    found = term(value)
    assert found is not None and found.shape == () and float(found) > 0
    (gradient,) = torch.autograd.grad(found, value)
    assert float(gradient.abs().max()) > 1e-4, "system B's representation loss had none"


def test_terms_are_zero_where_student_and_teacher_agree() -> None:
    assert float(losses.masked_logit_mse(TEACHER_LOGITS, TEACHER_LOGITS)) == 0
    assert abs(float(losses.kl_divergence(TEACHER_LOGITS + 3, TEACHER_LOGITS, 2.0))) < 1e-12
    assert abs(float(losses.hidden_cosine(5 * TEACHER_STATES, TEACHER_STATES))) < 1e-12
    rotation, _ = torch.linalg.qr(double(12, 12, seed=8, grad=False))
    same = losses.kernel_alignment(2 * TEACHER_POOLED @ rotation, TEACHER_POOLED)
    assert same is not None and float(same) < 1e-25


def test_values_by_hand() -> None:
    student, teacher = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    assert float(losses.masked_logit_mse(student, teacher)) == pytest.approx((1 + 4) / 2)
    p, q = math.exp(1) / (1 + math.exp(1)), 1 / (1 + math.exp(0.5))  # second class, temperature 2
    expected = 4 * (p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)))
    assert float(losses.kl_divergence(student, teacher, 2.0)) == pytest.approx(expected)
    pooled_s, pooled_t = torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    found = losses.kernel_alignment(pooled_s, pooled_t)
    assert found is not None and float(found) == pytest.approx(0.5)  # (cos 45 - cos 90)^2, diagonal left out


def test_the_kernel_term_is_undefined_for_a_single_sequence() -> None:
    assert losses.kernel_alignment(torch.randn(1, 4), torch.randn(1, 8)) is None


def test_all_of_the_highest_logits_are_the_whole_divergence() -> None:
    student = double(7, 33, seed=5)
    whole = losses.kl_divergence(student, TEACHER_LOGITS, 3.0)
    found = losses.kl_divergence_of_top(student, **top_logits(TEACHER_LOGITS, 33), temperature=3.0)
    assert float(found) == pytest.approx(float(whole), abs=1e-12)
    merged = losses.kl_divergence_of_top(student, **TOP)
    assert 0 < float(merged) < float(losses.kl_divergence(student, TEACHER_LOGITS)), "merging classes loses information"


@pytest.fixture(scope="module")
def tiny(tiny_esm2: Path, workplace: Path) -> LoadedModel:
    return load_model(resolve_model(str(tiny_esm2), workdir=workplace), purpose="masked_lm")


@pytest.fixture(scope="module")
def store(tiny: LoadedModel, root: Path, tmp_path_factory: pytest.TempPathFactory) -> CorpusStore:
    fasta = root / "test-data" / "simulated_corpus.fasta"
    return open_corpus(fasta, tmp_path_factory.mktemp("corpus"), tiny.family, tiny.vocabulary)


MASKS = MaskPlan(seed=3, sets=2, rate=0.15, crop=60)


def row_of(store: CorpusStore, members: list[int], set_number: int = 0) -> DistillationRow:
    return DistillationRow(*MASKS.row(store, members, set_number), np.array(members), set_number)


@pytest.mark.parametrize("represent", ["masked", "intact"])
@pytest.mark.parametrize("name", TERMS)
def test_gradients_through_the_model_are_those_of_finite_differences(
    name: str, represent: str, store: CorpusStore, tiny: LoadedModel
) -> None:
    """Along a random direction in the space of all weights, in float64 on the real classes."""
    torch.manual_seed(0)
    body = load_model(tiny.files, purpose="masked_lm").model.double()
    wants = Wants(True, True, True, 1, represent)  # type: ignore[arg-type]
    fixed = Teacher(tiny, store, MASKS, wants).answer(row_of(store, [1, 5, 9, 30]))
    moved = TeacherTargets(
        logits=fixed.logits + 1.0 * torch.randn_like(fixed.logits),  # type: ignore[operator, arg-type]
        pooled=torch.randn(4, 10),
        hidden=torch.randn(len(fixed.hidden), 10),  # type: ignore[arg-type]
    )
    objective = Objective(**{name: 1.0}, represent=represent)  # type: ignore[arg-type]
    network = DistillationModel(body, tiny.family, objective, lambda row: moved, (32, 10)).double()
    inputs = collate([row_of(store, [1, 5, 9, 30])])
    found = network(**inputs)
    assert set(found["terms"]) == {name} and float(found["loss"]) == pytest.approx(float(found["terms"][name]))
    found["loss"].backward()
    moving = [value for value in network.parameters() if value.grad is not None]
    directions = [torch.randn_like(value) for value in moving]
    slope = sum(float((value.grad * way).sum()) for value, way in zip(moving, directions, strict=True))  # type: ignore[operator]

    def at(step: float) -> float:
        with torch.no_grad():
            for value, way in zip(moving, directions, strict=True):
                value += step * way
            loss = float(network(**inputs)["loss"])
            for value, way in zip(moving, directions, strict=True):
                value -= step * way
        return loss

    measured = (at(1e-5) - at(-1e-5)) / 2e-5
    assert abs(slope) > 1e-6
    assert measured == pytest.approx(slope, rel=1e-4)


def test_teacher_answers_are_those_of_each_sequence_alone(store: CorpusStore, tiny: LoadedModel) -> None:
    members = [3, 8, 20]
    teacher = Teacher(tiny, store, MASKS, Wants(True, True, True, 2))
    together = teacher.answer(row_of(store, members, 1))
    alone = [teacher.answer(row_of(store, [member], 1)) for member in members]
    for name in ("logits", "pooled", "hidden"):
        expected = torch.cat([getattr(answer, name) for answer in alone])
        torch.testing.assert_close(getattr(together, name), expected, atol=1e-5, rtol=1e-4)
    model = tiny.model(torch.tensor([tiny.token_ids("MKVL")]))
    assert model.logits.shape[-1] == together.logits.shape[-1]  # type: ignore[union-attr]


def test_means_are_over_residues_only(store: CorpusStore, tiny: LoadedModel) -> None:
    batch = row_of(store, [3, 8]).batch
    states = torch.randn(batch.tokens, 6)
    inside, owner = residue_places(batch, 1, 1)
    first, second = states.split(list(batch.lengths))
    expected = torch.stack([first[1:-1].mean(0), second[1:-1].mean(0)])
    torch.testing.assert_close(mean_of_residues(states[inside], owner, 2), expected)


def test_a_row_that_defines_no_term_has_a_gradient_of_nothing(store: CorpusStore, tiny: LoadedModel) -> None:
    body = load_model(tiny.files, purpose="masked_lm").model
    objective = Objective(kernel=1.0)
    teacher = Teacher(tiny, store, MASKS, Wants(False, True, False, 2))
    network = DistillationModel(body, tiny.family, objective, teacher.answer, (32, 32))
    found = network(**collate([row_of(store, [4])]))
    assert found["terms"] == {} and float(found["loss"]) == 0
    found["loss"].backward()


def test_a_teacher_of_another_vocabulary_sees_the_same_residues(
    store: CorpusStore, tiny: LoadedModel, tiny_t5: Path, workplace: Path
) -> None:
    other = load_model(resolve_model(str(tiny_t5), workdir=workplace))
    wants = Wants(False, True, True, other.layers, "intact")
    answer = Teacher(other, store, MASKS, wants).answer(row_of(store, [3, 8]))
    from plm.model import encoder

    letters = ["ACDEFGHIKLMNPQRSTVWYX"[code] for code in MASKS.intact(store_letters(store), 3, 0)]
    (expected,) = encoder.encode(other, ["".join(letters)])
    torch.testing.assert_close(answer.hidden[: len(expected)], expected, atol=1e-5, rtol=1e-4)  # type: ignore[index]
    with pytest.raises(UserError, match="knows no masked residues"):
        Teacher(other, store, MASKS, Wants(False, True, False, 1, "masked"))
    with pytest.raises(UserError, match="no language-model head"):
        Teacher(other, store, MASKS, Wants(True, False, False, 1, "intact"))


def store_letters(store: CorpusStore) -> CorpusStore:
    """The same corpus with letter numbers as token ids."""
    from dataclasses import replace

    return replace(store, table=np.arange(21))


def test_recipe_b_is_the_published_setting() -> None:
    recipe = RECIPES["B"]
    assert recipe.objective == Objective(logit_mse=0.5, kernel=0.5, represent="intact")
    assert recipe.settings["learning_rate"] == 1e-4 and recipe.settings["schedule"] == "constant"
    assert recipe.settings["weight_decay"] == 0 and recipe.settings["batch_tokens"] == 4096
    assert recipe.settings["mask_rate"] == 0.15 and recipe.settings["mask_sets"] == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [({}, "weighs nothing"), ({"kl": -1.0}, "--weight-kl"), ({"mlm": math.inf}, "--weight-mlm"),
     ({"kl": 1.0, "temperature": 0.0}, "--temperature")],
)
def test_objectives_that_make_no_sense_are_refused(given: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Objective(**given)  # type: ignore[arg-type]


def test_the_ramp_finds_where_the_loss_falls_fastest() -> None:
    ramp = RateRamp(1e-6, 1.0, 100)
    assert ramp.factor(0) == pytest.approx(1e-6) and ramp.factor(99) == 1.0
    stopped = None
    for step in range(100):
        rate = ramp.factor(step)
        place = math.log10(rate)
        loss = 3 - 2 / (1 + math.exp(-4 * (place + 3))) + (math.exp(3 * (place + 1.2)) if place > -1.4 else 0)
        if ramp.enough({"train_loss": loss, "learning_rate": rate}):
            stopped = step
            break
    found = ramp.result()
    assert stopped is not None and found.diverged
    assert 3e-4 < found.suggestion < 1e-2 < found.lowest
    flat = RateRamp(1e-6, 1.0, 30)
    for step in range(30):
        flat.enough({"train_loss": 1.0 + step / 100, "learning_rate": flat.factor(step)})
    assert math.isnan(flat.result().suggestion)
