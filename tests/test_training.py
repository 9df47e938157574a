"""Training learns, keeps the best epoch, weighs classes and means the same however its sequences are packed."""

from __future__ import annotations

import logging
from pathlib import Path

import finetuning_cases as cases
import numpy as np
import pandas as pd
import pytest
import torch
from plm.data.task import Task
from plm.errors import UserError
from plm.jobs.finetune import objectives
from plm.jobs.finetune.batches import StepSampler, make_examples, step_loader
from plm.jobs.finetune.job import in_row_order
from plm.jobs.finetune.labelled_rows import inferred_window, read_rows
from plm.model.adapters import METHODS, trainable_state
from plm.model.encoder_inputs import make_units
from plm.training.folds import parts

BINARY = Task("sequence", "class", ("a", "b"), "b")
NUMBER = Task("sequence", "number", mean=3.0, sd=2.0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("target", ["class", "number"])
@pytest.mark.parametrize("level", ["sequence", "residue", "site"])
def test_every_method_level_and_target_runs(
    level: str, target: str, method: str, tiny_esm2: Path, tmp_path: Path
) -> None:
    frame = cases.dataset(level, target, 16)
    made = cases.trained(frame, tiny_esm2, tmp_path, method=method)
    bundle, calibration = cases.released(made, tiny_esm2, tmp_path / "bundle.zip")
    assert bundle.manifest["task"] == {"level": level, "target": target}
    assert bundle.manifest["method"] == method
    assert np.isfinite(calibration.scores["loss"])


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_on_prott5(method: str, tiny_t5: Path, tmp_path: Path) -> None:
    made = cases.trained(cases.dataset("site", "class", 16), tiny_t5, tmp_path, method=method)
    bundle, _ = cases.released(made, tiny_t5, tmp_path / "bundle.zip")
    assert bundle.manifest["base"]["family"] == "prott5"


def test_only_what_the_method_names_is_changed(tiny_esm2: Path, tmp_path: Path) -> None:
    made = cases.trained(cases.dataset("site", "class", 16), tiny_esm2, tmp_path, method="lora", epochs=2)
    _, before = made.network(1)
    _, after = made.trained_network(made.done[0])
    moved = {
        name
        for (name, old), (_, new) in zip(before.named_parameters(), after.named_parameters(), strict=True)
        if not torch.equal(old, new)
    }
    assert moved
    assert all("lora_" in name or name.startswith("head.") for name in moved)
    assert any("lora_B" in name for name in moved)


def test_gradient_checkpointing_changes_memory_not_results(tiny_esm2: Path, tmp_path: Path) -> None:
    frame = cases.dataset("sequence", "class", 16)
    states = []
    for kept in (False, True):
        made = cases.trained(frame, tiny_esm2, tmp_path / str(kept), gradient_checkpointing=kept)
        states.append(trainable_state(made.trained_network(made.done[0])[1]))
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value)


def test_step_does_not_depend_on_how_it_is_packed(tiny_esm2: Path, tmp_path: Path) -> None:
    """One row of tokens or many: the gradient of a step is the same."""
    frame = cases.dataset("residue", "class", 16)
    made = cases.job(frame, tiny_esm2, tmp_path, method="full")
    loaded, network = made.network(1)
    network.eval()
    examples = made.rows.examples(loaded, range(16), None)
    gradients = []
    for budget in (40, 10_000):
        network.zero_grad()
        micros = next(iter(step_loader(examples, loaded.family, StepSampler(16, 16, 0), budget)))
        total = sum(objectives.loss_weight(m.targets, made.rows.task, None) for m in micros)
        for micro in micros:
            outputs = network(micro.batch, micro.where)
            (objectives.loss_sum(outputs, micro.targets, made.rows.task, None) / total).backward()
        gradients.append({n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None})
        assert (len(micros) > 3) == (budget == 40)
    for name, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], value, atol=1e-5, rtol=1e-4)


def test_sampler_gives_every_unit_once_and_a_new_order_each_epoch() -> None:
    sampler = StepSampler(10, 4, seed=5)
    first = list(sampler)
    assert [len(step) for step in first] == [4, 4, 2]
    assert sorted(unit for step in first for unit in step) == list(range(10))
    assert list(sampler) == first
    sampler.epoch = 1
    assert list(sampler) != first
    assert len(sampler) == 3


def test_loss_is_a_mean_over_weighted_labels() -> None:
    outputs = torch.tensor([[2.0, 0.0], [0.0, 1.0], [5.0, 5.0]])
    values = torch.tensor([0, 1, objectives.UNLABELLED])
    weights = torch.tensor([3.0, 1.0])
    expected = torch.nn.functional.cross_entropy(outputs[:2], values[:2], weights)
    loss = objectives.loss_sum(outputs, values, BINARY, weights) / objectives.loss_weight(values, BINARY, weights)
    torch.testing.assert_close(loss, expected)


def test_numbers_are_standardised_in_the_loss() -> None:
    values = torch.tensor([3.0, 5.0, float("nan")], dtype=torch.float64)
    outputs = torch.tensor([[0.0], [1.0], [9.0]])
    assert float(objectives.loss_sum(outputs, values, NUMBER, None)) == pytest.approx(0.0)
    assert objectives.loss_weight(values, NUMBER, None) == 2


def test_balanced_weights_let_classes_count_the_same() -> None:
    values = np.array([0] * 9 + [1] * 3 + [objectives.UNLABELLED])
    weights = objectives.class_weights(values, BINARY, "balanced")
    assert weights is not None
    assert float(weights[0] * 9) == pytest.approx(float(weights[1] * 3))
    assert objectives.class_weights(values, BINARY, "none") is None


def test_balanced_weights_help_the_rare_class(tiny_esm2: Path, tmp_path: Path) -> None:
    frame = cases.dataset("sequence", "class", 48)
    train = frame.index[frame["split"] == "train"]
    frame.loc[train, "label"] = ["1" if number % 6 == 0 else "0" for number in range(len(train))]
    called = {}
    for scheme in ("none", "balanced"):
        made = cases.trained(frame, tiny_esm2, tmp_path / scheme, class_weights=scheme, epochs=4)
        called[scheme] = float(np.mean(made.done[0].valid_outputs()[:, 1] - made.done[0].valid_outputs()[:, 0]))
    assert called["balanced"] > called["none"]


def test_best_epoch_is_kept_and_training_stops_early(tiny_esm2: Path, tmp_path: Path) -> None:
    frame = cases.dataset("sequence", "class", 24)
    made = cases.trained(frame, tiny_esm2, tmp_path, epochs=30, patience=2, metric="loss", learning_rate=0.05)
    outcome = made.done[0].outcome
    losses = [row["valid_loss"] for row in outcome.history if "valid_loss" in row]
    assert outcome.epochs < 30
    assert outcome.epochs == outcome.best_epoch + 2
    assert outcome.best is not None
    assert outcome.best["loss"] == min(losses) == losses[outcome.best_epoch - 1]
    kept = objectives.validation_scores(
        made.done[0].valid_outputs(), made.rows.values(made.done[0].part.valid), made.rows.task
    )
    assert kept["loss"] == pytest.approx(outcome.best["loss"], rel=1e-5)


def test_learning_rate_warms_up_and_decays(tiny_esm2: Path, tmp_path: Path) -> None:
    rates: list[float] = []
    made = cases.job(cases.dataset("sequence", "class", 32), tiny_esm2, tmp_path, epochs=5, patience=0, warmup=0.2)
    made.plan()
    made.train(on_step=lambda training, step, loss, rate: rates.append(rate))
    assert len(rates) == 10
    assert max(rates) == pytest.approx(5e-4)
    assert rates.index(max(rates)) == 1
    assert rates[-1] == 0


@pytest.mark.slow
@pytest.mark.parametrize("level", ["sequence", "residue", "site"])
def test_easy_signal_is_learned(level: str, tiny_esm2: Path, tmp_path: Path) -> None:
    """Far better than always naming the commonest class, on rows that were never seen."""
    frame = cases.dataset(level, "class", 160, easy=level != "residue")
    made = cases.trained(frame, tiny_esm2, tmp_path, epochs=30, patience=0, learning_rate=3e-3, head_learning_rate=3e-3)
    bundle, calibration = cases.released(made, tiny_esm2, tmp_path / "bundle.zip")
    test = made.done[0].part.test
    positions = None if made.rows.positions is None else [made.rows.positions[row] for row in test]
    probabilities = bundle.predict([made.rows.sequences[row] for row in test], positions)
    truth = made.rows.values(test)
    known = objectives.labelled(truth)
    called = np.array([made.rows.task.classes.index(c) for c in bundle.calls(probabilities)])
    accuracy = float((called == truth)[known].mean())
    commonest = float(np.bincount(truth[known]).max() / known.sum())
    assert accuracy > commonest + 0.5 * (1 - commonest)
    assert calibration.scores["auroc"] > 0.9


@pytest.mark.slow
def test_numbers_are_learned(tiny_esm2: Path, tmp_path: Path) -> None:
    frame = cases.dataset("sequence", "number", 160, easy=True)
    made = cases.trained(frame, tiny_esm2, tmp_path, epochs=30, patience=0, learning_rate=3e-3, head_learning_rate=3e-3)
    bundle, _ = cases.released(made, tiny_esm2, tmp_path / "bundle.zip")
    test = made.done[0].part.test
    found = bundle.predict([made.rows.sequences[row] for row in test])[:, 0]
    truth = made.rows.values(test)
    assert np.sqrt(np.mean((found - truth) ** 2)) < 0.5 * truth.std()


# ---------------------------------------------------------------------------------------------------------------- rows


def test_folds_take_the_next_fold_for_validation() -> None:
    frame = pd.DataFrame({"id": list("abcdef"), "fold": list("112233")})
    found = parts(frame)
    assert [part.fold for part in found] == [1, 2, 3]
    assert (found[2].test, found[2].valid, found[2].train) == ([4, 5], [0, 1], [2, 3])
    assert parts(frame, 2)[0].test == [2, 3]
    with pytest.raises(UserError, match="no fold 7"):
        parts(frame, 7)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"split": ["train", "test"]}, "no validation rows"),
        ({"split": ["valid", "test"]}, "no training rows"),
        ({"fold": ["1", "2"]}, "2 folds; at least 3"),
        ({}, "neither a column split nor a column fold"),
    ],
)
def test_missing_splits_are_told(columns: dict[str, list[str]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parts(pd.DataFrame({"id": ["a", "b"], **columns}))


def test_one_class_in_the_training_rows_is_told(tiny_esm2: Path, tmp_path: Path) -> None:
    frame = cases.dataset("sequence", "class", 16)
    frame.loc[frame["split"] == "train", "label"] = "1"
    with pytest.raises(UserError, match=r"All labels are '1': one class only \[training rows\]"):
        cases.job(frame, tiny_esm2, tmp_path)


def test_text_among_numbers_is_told() -> None:
    frame = cases.dataset("sequence", "number", 16)
    frame.loc[3, "label"] = "n.d."
    with pytest.raises(UserError, match=r"'n\.d\.' is no number"):
        read_rows(frame, target="number")


def test_positive_class_can_be_chosen_and_must_exist() -> None:
    frame = cases.dataset("sequence", "class", 16)
    assert read_rows(frame).task.positive == "1"
    assert read_rows(frame, positive="0").task.positive_index == 0
    with pytest.raises(UserError, match="'2' is not one of two classes"):
        read_rows(frame, positive="2")


def test_windows_can_be_narrowed_but_not_widened() -> None:
    frame = cases.dataset("site", "class", 16)
    assert read_rows(frame).window == 15
    assert read_rows(frame, window=9).window == 9
    for wrong in (17, 0):
        with pytest.raises(UserError, match="cannot be cut"):
            read_rows(frame, window=wrong)
    with pytest.raises(UserError, match="odd"):
        read_rows(frame, window=8)


def test_window_is_inferred_only_where_sequences_are_windows() -> None:
    assert inferred_window(["ACDYKLM", "YKLM", "ACDY"], [3, 0, 3]) == 7
    assert inferred_window(["ACDYKLM", "ACYKLMN"], [3, 2]) == 0
    assert inferred_window(["M" * 301], [150]) == 0


def test_metric_must_fit_the_task() -> None:
    assert objectives.choose_metric("auto", BINARY) == "auroc"
    assert objectives.choose_metric("auto", NUMBER) == "spearman"
    with pytest.raises(UserError, match=r"spearman does not fit a task with two classes \[--metric\]"):
        objectives.choose_metric("spearman", BINARY)


def test_outputs_come_back_in_row_order(tiny_esm2: Path, tmp_path: Path) -> None:
    made = cases.job(cases.dataset("site", "class", 16), tiny_esm2, tmp_path)
    loaded, _ = made.network(1)
    sequences = ["ACDYKAC", "MKYYTAY", "ACDYKAC"]
    units = make_units(loaded, "site", sequences, [3, 2, 1])
    examples = make_examples(units, [np.array([n]) for n in range(3)], "site")
    assert [values.tolist() for values in examples.targets] == [[0, 2], [1]]
    outputs = [values[:, None].astype(float) for values in examples.targets]
    assert in_row_order(outputs, [unit.rows for unit in units], "site")[:, 0].tolist() == [0, 1, 2]


def test_plan_is_the_first_thing_said(tiny_esm2: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="test"):
        cases.job(cases.dataset("site", "class", 16), tiny_esm2, tmp_path).plan()
    assert "Plan: " in caplog.text
    assert "trained (" in caplog.text and "MiB" in caplog.text
