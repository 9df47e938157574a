"""plm_distill: a student that follows its teacher, the cache, several processes, resuming, every bad input one line."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import stage_runs
import torch
from plm.errors import UserError
from plm.jobs.distill import students
from plm.jobs.distill.setup import choose_student
from plm.model import encoder
from plm.model.checkpoint import load_model, resolve_model
from plm.model.loaded import LoadedModel
from safetensors.torch import load, load_file, save_file

Run = Callable[..., "subprocess.CompletedProcess[str]"]
CORPUS = Path(__file__).resolve().parents[1] / "test-data" / "simulated_corpus.fasta"


def flags(out: Path, model: Path, steps: int = 8, **more: object) -> list[str]:
    """A run on the simulated corpus; ``student_take`` of the teacher unless another student is given."""
    out.mkdir(exist_ok=True)
    table_of_families(corpus := out.parent / "corpus.csv")
    given: dict[str, object] = {
        "input": corpus, "teacher": model, "steps": steps, "batch_tokens": 600, "evaluate_every": 4,
        "warmup_steps": 2, "precision": "fp32", "stored_dtype": "float32", "device": "cpu", "holdout": 0.2,
        "weight_kernel": 1, "learning_rate": 1e-3, "output_model": out / "model.zip", "history": out / "history.tsv",
    }
    if not any(name.startswith("student") for name in more) and not more.get("cache_only"):
        given["student_take"] = 2
    found = []
    for name, value in {**given, **more}.items():
        if value is not None:
            found += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return found


def table_of_families(path: Path, more: str = "") -> Path:
    """The simulated corpus with its families as clusters, which spares the search for them."""
    lines = ["id,sequence,taxon,domain,cluster"]
    for number, record in enumerate(CORPUS.read_text().split(">")[1:]):
        head, body = record.split("\n", 1)
        family = head.split("|")[2].split("_")[0]
        lines.append(f"{head.split()[0]},{''.join(body.split())},{head.split('OX=')[1]},Domain{number % 2},{family}")
    path.write_text("\n".join(lines) + "\n" + more)
    return path


def ran(run_stage: Run, arguments: list[str], **options: object) -> subprocess.CompletedProcess[str]:
    done = run_stage("plm_distill", *arguments, **options)
    assert done.returncode == 0, done.stderr
    return done


def weights(archive: Path) -> dict[str, torch.Tensor]:
    with zipfile.ZipFile(archive) as opened:
        return load(opened.read("model.safetensors"))


def card(archive: Path) -> str:
    with zipfile.ZipFile(archive) as opened:
        return opened.read("README.md").decode()


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as opened:
        return list(csv.DictReader(opened, delimiter="\t"))


def one_line(done: subprocess.CompletedProcess[str], *messages: str) -> None:
    assert done.returncode == 1, done.stdout
    assert done.stderr.count("\n") == 1, done.stderr
    for message in messages:
        assert message in done.stderr, done.stderr


@pytest.fixture
def run_stage(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the stage as a shell does, in this process: loading torch and transformers anew takes most of a run."""
    import plm_distill
    from plm import stage

    def run(name: str, *args: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        before = signal.getsignal(signal.SIGTERM)
        out, told = io.StringIO(), io.StringIO()
        with monkeypatch.context() as patched, redirect_stdout(out), redirect_stderr(told):
            for key, value in {"GALAXY_SLOTS": "1", **(env or {})}.items():
                patched.setenv(key, value)
            try:
                stage.main(name, plm_distill.run, list(args))
            except SystemExit as end:
                code = int(end.code or 0)
            finally:
                signal.signal(signal.SIGTERM, before)
        return subprocess.CompletedProcess([name, *args], code, out.getvalue(), told.getvalue())

    return run


@pytest.fixture(scope="module")
def tiny(tiny_esm2: Path, workplace: Path) -> LoadedModel:
    return load_model(resolve_model(str(tiny_esm2), workdir=workplace), purpose="masked_lm")


# -- the whole --------------------


def test_every_output_is_there(tiny_esm2: Path, tmp_path: Path, run_stage: Run) -> None:
    out = tmp_path / "out"
    names = {
        "figure": "f.png", "report": "report.md", "held_out": "held_out.tabular", "rejected": "rejected.tsv",
        "tfevents": "t.tfevents", "undistilled": "before.zip",
    }
    shape = {"student_layers": 1, "student_width": 16, "student_heads": 2}
    more = {name: out / file for name, file in names.items()}
    done = ran(run_stage, flags(out, tiny_esm2, title="A small one", **shape, **more))
    assert "Plan: teacher tiny_esm2" in done.stdout and "4.6 times smaller" in done.stdout
    history = table(out / "history.tsv")
    assert [row["step"] for row in history] == [str(step) for step in range(1, 9)]
    terms = {"kl": 1, "kernel": 1, "hidden": 1, "mlm": 0.25}
    for row in history:
        total = sum(weight * float(row[name] or 0) for name, weight in terms.items())
        assert float(row["train_loss"]) == pytest.approx(total, rel=1e-4), "the loss is the weighted sum of its terms"
    assert [bool(row["masked_perplexity"]) for row in history] == [False, False, False, True] * 2
    for row in history:
        if row["valid_loss"]:
            total = sum(weight * float(row[f"valid_{name}"]) for name, weight in terms.items())
            assert float(row["valid_loss"]) == pytest.approx(total, rel=1e-4)
    assert "logit_mse" not in history[0]
    text = card(out / "model.zip")
    assert "# A small one" in text and "distilled from tiny_esm2" in text and "student before distillation" in text
    report = (out / "report.md").read_text()
    assert report.startswith("**Masked perplexity on families that training never saw: teacher")
    assert 'output="figure"' in report and 'output="history"' in report
    held = table(out / "held_out.tabular")
    assert list(held[0]) == ["id", "sequence", "taxon", "domain", "cluster"] and held[0]["taxon"]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / "t.tfevents"))
    events.Reload()
    assert [event.step for event in events.Scalars("kl")] == list(range(1, 9))
    assert events.Scalars("kl")[2].value == pytest.approx(float(history[2]["kl"]), rel=1e-4)
    loaded = load_model(resolve_model(str(out / "model.zip"), workdir=tmp_path / "w"))
    assert encoder.encode(loaded, ["MKTAYI"])[0].shape == (6, 16)
    assert "before distillation" in card(out / "before.zip")
    assert weights(out / "before.zip").keys() == weights(out / "model.zip").keys()


@pytest.mark.slow
def test_test_families_are_neither_trained_on_nor_looked_at(tiny_esm2: Path, tmp_path: Path, run_stage: Run) -> None:
    """Families of the simulated corpus are named in its headers; the file of test proteins holds whole families."""
    out = tmp_path / "out"
    ran(run_stage, flags(out, tiny_esm2, steps=1, input=CORPUS, held_out=out / "held.tabular"))
    names = [line[1:].split()[0] for line in CORPUS.read_text().splitlines() if line.startswith(">")]
    held = {row["id"] for row in table(out / "held.tabular")}
    family = {name: name.split("|")[-1] for name in names}
    for chosen in {family[name] for name in held}:
        assert {name for name in names if family[name] == chosen} <= held
    assert 0 < len(held) < len(names) / 2


@pytest.mark.slow
def test_a_student_learns_what_its_teacher_knows(starter: Path, tmp_path: Path, run_stage: Run) -> None:
    """No true residue is in the loss: whatever the student knows of masked residues comes from the teacher."""
    out = tmp_path / "out"
    more = {"student_layers": 2, "student_width": 64, "student_heads": 2, "weight_mlm": 0, "batch_tokens": 2000}
    ran(run_stage, flags(out, starter, steps=60, learning_rate=3e-3, **more))
    rows = table(out / "history.tsv")
    first, last = ({name: np.mean([float(row[name]) for row in part]) for name in ("kl", "hidden")}
                   for part in (rows[:5], rows[-5:]))
    assert last["kl"] < 0.5 * first["kl"] and last["hidden"] < 0.7 * first["hidden"]
    looks = [float(row["masked_perplexity"]) for row in rows if row["masked_perplexity"]]
    assert looks[-1] < 0.75 * looks[0]


def test_recipe_b_trains_with_its_own_settings(tiny_esm2: Path, tmp_path: Path, run_stage: Run) -> None:
    out = tmp_path / "out"
    none = dict.fromkeys(("batch_tokens", "warmup_steps", "learning_rate", "weight_kernel"))
    done = ran(run_stage, flags(out, tiny_esm2, preset="B", steps=3, **none))
    assert "0.5 x masked-logit MSE + 0.5 x kernel alignment, representations of intact sequences" in done.stdout
    assert "up to 4096 tokens" in done.stdout
    history = table(out / "history.tsv")
    assert {float(row["learning_rate"]) for row in history} == {1e-4}
    assert {"logit_mse", "kernel"} <= set(history[0]) and not {"kl", "hidden", "mlm"} & set(history[0])


@pytest.mark.slow
def test_the_rate_is_found_without_a_student_being_kept(tiny_esm2: Path, tmp_path: Path, run_stage: Run) -> None:
    out = tmp_path / "out"
    more = {"find_learning_rate": 60, "output_model": None, "figure": out / "f.png", "report": out / "r.md"}
    done = ran(run_stage, flags(out, tiny_esm2, **more))
    assert "Suggested highest learning rate" in done.stdout
    rates = [float(row["learning_rate"]) for row in table(out / "history.tsv")]
    assert rates[0] == pytest.approx(1e-6) and all(a < b for a, b in itertools.pairwise(rates))
    assert not (out / "model.zip").exists() and (out / "f.png").stat().st_size > 5000
    assert (out / "r.md").read_text().startswith("**Suggested highest learning rate")


# -- the cache --------------------


def test_cached_equals_online_and_a_changed_corpus_costs_its_changes(
    tiny_esm2: Path, tmp_path: Path, run_stage: Run
) -> None:
    online = ran(run_stage, flags(tmp_path / "online", tiny_esm2, mask_sets=2))
    assert "teacher cache" not in online.stdout
    cache = tmp_path / "cache"
    made = ran(run_stage, flags(tmp_path / "a", tiny_esm2, mask_sets=2, teacher_cache=cache,
                                output_cache=tmp_path / "cache.zip"))
    assert "0 answers are in the teacher cache, 160 are computed" in made.stdout
    again = ran(run_stage, flags(tmp_path / "b", tiny_esm2, mask_sets=2, teacher_cache=tmp_path / "cache.zip"))
    assert "160 answers are in the teacher cache, 0 are computed" in again.stdout
    expected = table(tmp_path / "online" / "history.tsv")
    for folder in ("a", "b"):
        for row, known in zip(table(tmp_path / folder / "history.tsv"), expected, strict=True):
            for name in ("kl", "kernel", "hidden", "mlm", "train_loss"):
                if known[name]:  # float16 in the cache
                    assert float(row[name]) == pytest.approx(float(known[name]), rel=4e-3, abs=1e-4), name
    new = "new," + "MKTAYIAKQRQISFVKSHFSRQ" * 3 + ",9606,Domain0,other\n"
    changed = table_of_families(tmp_path / "changed.csv", new)
    more = {"input": changed, "cache_only": True, "output_model": None, "history": None, "teacher_cache": cache}
    done = ran(run_stage, flags(tmp_path / "c", tiny_esm2, mask_sets=2, report=tmp_path / "c" / "r.md", **more))
    assert "160 answers are in the teacher cache, 42 are computed" in done.stdout
    assert "202 of 202 answers" in (tmp_path / "c" / "r.md").read_text()


@pytest.mark.slow
def test_the_highest_logits_do_for_the_divergence_only(tiny_esm2: Path, tmp_path: Path, run_stage: Run) -> None:
    top = {"teacher_top": 5, "weight_hidden": 0, "mask_sets": 1}
    cached = ran(run_stage, flags(tmp_path / "a", tiny_esm2, steps=3, teacher_cache=tmp_path / "cache", **top))
    assert "computed" in cached.stdout
    ran(run_stage, flags(tmp_path / "b", tiny_esm2, steps=3, **top))
    for row, known in zip(*(table(tmp_path / name / "history.tsv") for name in "ab"), strict=True):
        assert float(row["kl"]) == pytest.approx(float(known["kl"]), rel=4e-3, abs=1e-4)
    refused = run_stage("plm_distill", *flags(tmp_path / "c", tiny_esm2, teacher_top=5, weight_logit_mse=1))
    one_line(refused, "needs all of them", "--teacher-top 5")


def other_teacher(tiny_esm2: Path, folder: Path) -> Path:
    shutil.copytree(tiny_esm2, folder)
    tensors = load_file(folder / "model.safetensors")
    save_file({name: value * 1.01 for name, value in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.slow
def test_the_cache_of_another_teacher_is_refused(tiny_esm2: Path, tmp_path: Path, run_stage: Run) -> None:
    ran(run_stage, flags(tmp_path / "a", tiny_esm2, steps=1, mask_sets=1, teacher_cache=tmp_path / "cache"))
    other = other_teacher(tiny_esm2, tmp_path / "other_model")
    done = run_stage("plm_distill", *flags(tmp_path / "b", other, mask_sets=1, teacher_cache=tmp_path / "cache"))
    one_line(done, "The teacher cache belongs to tiny_esm2", "this job wants other_model")
    assert not (tmp_path / "b" / "model.zip").exists()
    fresh = run_stage("plm_distill", *flags(tmp_path / "c", tiny_esm2, mask_sets=0, teacher_cache=tmp_path / "cache"))
    one_line(fresh, "--mask-sets 0")


@pytest.mark.slow
def test_the_time_limit_leaves_a_cache_to_go_on_with(tiny_esm2: Path, tmp_path: Path, run_stage: Run) -> None:
    only = {"cache_only": True, "output_model": None, "history": None, "time_limit": 1e-9, "mask_sets": 2}
    first = ran(run_stage, flags(tmp_path / "a", tiny_esm2, output_cache=tmp_path / "first.zip", **only))
    assert "the cache is not complete" in first.stdout
    only["time_limit"] = 10
    more = {"teacher_cache": tmp_path / "first.zip", "output_cache": tmp_path / "second.zip"}
    second = ran(run_stage, flags(tmp_path / "a", tiny_esm2, **only, **more))
    assert "0 answers are in" not in second.stdout and "not complete" not in second.stdout
    late = flags(tmp_path / "b", tiny_esm2, time_limit=1e-9, mask_sets=2, teacher_cache=tmp_path / "folder")
    one_line(run_stage("plm_distill", *late), "The time limit came while the teacher was asked", "--cache-only")


# -- processes, resuming --------------------


def together(root: Path, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return stage_runs.run_together([sys.executable, str(root / "tools" / "plm_distill.py"), *arguments], 2)


@pytest.mark.slow
@pytest.mark.parametrize("cached", [False, True])
def test_two_processes_equal_one_that_accumulates(
    cached: bool, root: Path, tiny_esm2: Path, tmp_path: Path, run_stage: Run
) -> None:
    def more(name: str) -> dict[str, object]:
        return {"mask_sets": 1, "teacher_cache": tmp_path / name} if cached else {}

    ran(run_stage, flags(tmp_path / "one", tiny_esm2, accumulate=2, **more("c1")))
    done = together(root, flags(tmp_path / "two", tiny_esm2, **more("c2")))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Plan:") == 1 and "cpu x 2" in done.stdout
    one, two = (weights(tmp_path / name / "model.zip") for name in ("one", "two"))
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-5
    for row, known in zip(*(table(tmp_path / name / "history.tsv") for name in ("two", "one")), strict=True):
        assert row.keys() == known.keys()
        for name, value in known.items():
            assert (not value and not row[name]) or float(row[name]) == pytest.approx(float(value), abs=1e-5, rel=1e-5)


@pytest.mark.slow
def test_resumed_training_equals_uninterrupted_training(tiny_esm2: Path, tmp_path: Path, run_stage: Run) -> None:
    """Bit for bit, from the checkpoint that the user gives back and from the one that the administrator keeps."""
    kept = tmp_path / "kept"
    environment = {"PLM_CHECKPOINT_DIR": str(kept)}
    ran(run_stage, flags(tmp_path / "whole", tiny_esm2))
    checkpoint = tmp_path / "checkpoint.zip"
    first = ran(run_stage, flags(tmp_path / "a", tiny_esm2, time_limit=1e-9, checkpoint=checkpoint), env=environment)
    assert "UNFINISHED" in first.stdout and "Unfinished" in card(tmp_path / "a" / "model.zip")
    state = json.loads(zipfile.ZipFile(checkpoint).read("checkpoint.json"))
    assert state["step"] == 1 and state["stage"] == "plm_distill"
    given = ran(run_stage, flags(tmp_path / "b", tiny_esm2, resume=checkpoint))
    alone = ran(run_stage, flags(tmp_path / "c", tiny_esm2), env=environment)
    assert "Going on from step 1" in given.stdout and "Going on from step 1" in alone.stdout
    expected = weights(tmp_path / "whole" / "model.zip")
    for name in ("b", "c"):
        found = weights(tmp_path / name / "model.zip")
        assert all(torch.equal(found[key], expected[key]) for key in expected), name
        rows, known = (table(tmp_path / folder / "history.tsv") for folder in (name, "whole"))
        assert [row["kl"] for row in rows] == [row["kl"] for row in known]
    assert not list(kept.iterdir()), "a finished run leaves no state behind"
    for change in ({"seed": 1}, {"weight_kl": 2}, {"mask_sets": 1}):
        refused = run_stage("plm_distill", *flags(tmp_path / "d", tiny_esm2, resume=checkpoint, **change))
        one_line(refused, "other data, another model or other settings")


@pytest.mark.slow
def test_a_killed_job_leaves_its_state_and_no_output(tiny_esm2: Path, tmp_path: Path, root: Path) -> None:
    out, kept = tmp_path / "out", tmp_path / "kept"
    command = [sys.executable, str(root / "tools" / "plm_distill.py"), *flags(out, tiny_esm2, steps=100_000)]
    environment = {**os.environ, "PLM_CHECKPOINT_DIR": str(kept), "PYTHONUNBUFFERED": "1"}
    job = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert job.stdout is not None
    for line in job.stdout:
        if "Step 4:" in line:
            break
    job.send_signal(signal.SIGTERM)
    job.stdout.read()
    assert job.wait(60) == 143
    assert not list(out.iterdir())
    (state,) = kept.iterdir()
    assert json.loads(zipfile.ZipFile(state).read("checkpoint.json"))["step"] >= 4


# -- students --------------------


def test_layers_of_the_teacher_make_a_student(tiny: LoadedModel, tmp_path: Path) -> None:
    both = students.from_teacher(tiny, [1, 2], tmp_path / "both")
    expected, found = (encoder.encode(load_model(files), ["MKTAYIAKQR"])[0] for files in (tiny.files, both))
    torch.testing.assert_close(found, expected)
    second = load_model(students.from_teacher(tiny, [2], tmp_path / "second"), purpose="masked_lm")
    assert second.layers == 1
    taken = second.model.state_dict()["esm.encoder.layer.0.intermediate.dense.weight"]
    assert torch.equal(taken, tiny.model.state_dict()["esm.encoder.layer.1.intermediate.dense.weight"])


@pytest.mark.parametrize(
    ("text", "layers", "expected"),
    [("1,3,5", 6, [1, 3, 5]), ("1-3", 6, [1, 2, 3]), ("every 2", 6, [2, 4, 6]), ("every 2", 5, [1, 3, 5]),
     ("6,1", 6, [6, 1]), (" 2 , 4-5 ", 6, [2, 4, 5])],
)
def test_layers_are_named_from_one(text: str, layers: int, expected: list[int]) -> None:
    assert students.parse_layers(text, layers) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"take": "3"}, "The teacher has no layer 3"),
        ({"take": "1,x"}, "'x' is no layer"),
        ({"take": "2-1"}, "No layer is left"),
        ({"take": "1,1"}, "named twice"),
        ({"preset": "huge"}, "There is no preset 'huge'"),
        ({"shape": (2, 30, 4)}, "does not split into 4 heads"),
        ({"shape": (0, 32, 4)}, "--student-layers"),
        ({"shape": (2, None, None)}, "--student-width"),
        ({}, "No student is named"),
        ({"take": "1", "preset": "tiny"}, "More than one student"),
    ],
)
def test_students_that_cannot_be_are_refused(
    given: dict[str, object], message: str, tiny: LoadedModel, tmp_path: Path
) -> None:
    known: dict[str, object] = {"source": None, "preset": None, "shape": (None, None, None), "take": None, **given}
    with pytest.raises(UserError, match=message):
        choose_student(tiny, tmp_path / "s", **known)  # type: ignore[arg-type]


# -- other families, small rows --------------------


@pytest.mark.slow
def test_representations_of_another_family_are_learnt_but_not_its_logits(
    tiny_t5: Path, tiny_esm2: Path, tmp_path: Path, run_stage: Run
) -> None:
    no_logits = {"weight_kl": 0, "represent": "intact", "student": tiny_esm2, "steps": 3}
    done = ran(run_stage, flags(tmp_path / "a", tiny_t5, report=tmp_path / "r.md", **no_logits))
    assert "representations of intact sequences" in done.stdout
    row = table(tmp_path / "a" / "history.tsv")[0]
    assert float(row["hidden"]) > 0 and float(row["kernel"]) > 0 and float(row["mlm"]) > 0
    assert "| teacher |" not in (tmp_path / "r.md").read_text()
    refused = run_stage("plm_distill", *flags(tmp_path / "b", tiny_t5, student=tiny_esm2))
    one_line(refused, "ProtT5 has no language-model head", "Set --weight-kl to 0")
    masked = run_stage("plm_distill", *flags(tmp_path / "c", tiny_t5, **{**no_logits, "represent": "masked"}))
    one_line(masked, "knows no masked residues", "--represent intact")
    as_student = run_stage("plm_distill", *flags(tmp_path / "d", tiny_esm2, student=tiny_t5))
    one_line(as_student, "ProtT5 has no masked language model")


def test_vocabularies_that_differ_are_named(tiny_esm2: Path, tmp_path: Path, run_stage: Run) -> None:
    student = tmp_path / "swapped"
    shutil.copytree(tiny_esm2, student)
    tokens = (student / "vocab.txt").read_text().split()
    tokens[4], tokens[5] = tokens[5], tokens[4]
    (student / "vocab.txt").write_text("\n".join(tokens))
    done = run_stage("plm_distill", *flags(tmp_path / "out", tiny_esm2, student=student))
    one_line(done, "Teacher and student differ in vocabulary", "tiny_esm2, swapped", "--weight-kl")
    only_states = {"weight_kl": 0, "student": student, "steps": 2}
    ran(run_stage, flags(tmp_path / "out", tiny_esm2, **only_states))


def small_corpus(path: Path, tail: str = "") -> Path:
    """Long proteins that fill a row alone, without a taxon, and some of a single residue."""
    chance = np.random.default_rng(3)
    lines = [f">p{i}\n{''.join(chance.choice(list('ACDEFGHIKLMNPQRSTVWY'), 90))}\n" for i in range(30)]
    path.write_text("".join(lines) + ">short\nM\n>unknown\nX\n" + tail)
    return path


@pytest.mark.slow
def test_rows_of_one_protein_and_proteins_of_one_residue(tiny_esm2: Path, tmp_path: Path, run_stage: Run) -> None:
    corpus = small_corpus(tmp_path / "small.fasta")
    out = tmp_path / "out"
    done = ran(run_stage, flags(out, tiny_esm2, input=corpus, batch_tokens=95, steps=40))
    assert "No taxon is known of any protein: batches are of similar length only" in done.stdout
    assert "The kernel term needs two sequences in a row: skipped in" in done.stdout
    values = [row["kernel"] for row in table(out / "history.tsv")]
    assert values.count("") > 20, "rows of one protein define no kernel term"
    losses = [float(row["train_loss"]) for row in table(out / "history.tsv")]
    assert all(np.isfinite(losses))


@pytest.mark.slow
def test_teachers_without_a_head_lend_their_representations(tiny_esm2: Path, tmp_path: Path, run_stage: Run) -> None:
    headless = tmp_path / "headless"
    shutil.copytree(tiny_esm2, headless)
    tensors = {
        name: value for name, value in load_file(headless / "model.safetensors").items() if "lm_head" not in name
    }
    save_file(tensors, headless / "model.safetensors", {"format": "pt"})
    ran(run_stage, flags(tmp_path / "a", headless, student=tiny_esm2, weight_kl=0, steps=2))
    refused = run_stage("plm_distill", *flags(tmp_path / "b", headless, student=tiny_esm2))
    one_line(refused, "The checkpoint lacks", "lm_head")


# -- bad input --------------------


@pytest.mark.parametrize(
    ("more", "messages"),
    [
        ({"teacher": "nothing"}, ["There is no model 'nothing'"]),
        ({"preset": "C"}, ["There is no preset 'C'", "suite, B"]),
        ({"weight_kl": -1}, ["--weight-kl"]),
        ({"weight_kl": 0, "weight_kernel": 0, "weight_hidden": 0, "weight_mlm": 0}, ["weighs nothing"]),
        ({"temperature": 0}, ["--temperature"]),
        ({"teacher_layer": 7}, ["The teacher has no layer 7"]),
        ({"taxon_column": "species"}, ["--taxon-column"]),
        ({"mask_rate": 2}, ["--mask-rate"]),
        ({"steps": 0}, ["--steps"]),
        ({"output_model": None}, ["--output-model"]),
        ({"cache_only": True, "output_model": None}, ["--output-cache"]),
        ({"student_preset": "huge"}, ["no preset 'huge'"]),
    ],
)
def test_wrong_flags_are_one_clear_line(
    more: dict[str, object], messages: list[str], tiny_esm2: Path, tmp_path: Path, run_stage: Run
) -> None:
    done = run_stage("plm_distill", *flags(tmp_path / "out", tiny_esm2, **more))
    one_line(done, *messages)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "empty"), (">a\nM*K\n", "no usable protein"), (">dna\n" + "ACGT" * 30 + "\n", "nucleotides"),
     (">a\nMKTAYIAKQR\n", "relatives of each other")],
)
def test_bad_corpora_are_one_clear_line(
    content: str, message: str, tiny_esm2: Path, tmp_path: Path, run_stage: Run
) -> None:
    bad = tmp_path / "bad.fasta"
    bad.write_text(content)
    done = run_stage("plm_distill", *flags(tmp_path / "out", tiny_esm2, input=bad))
    one_line(done, message)
    assert not list((tmp_path / "out").iterdir())


def test_mlflow_is_no_requirement(tiny_esm2: Path, tmp_path: Path, run_stage: Run) -> None:
    if __import__("importlib.util").util.find_spec("mlflow"):
        pytest.skip("MLflow is installed here")
    done = run_stage("plm_distill", *flags(tmp_path / "out", tiny_esm2, mlflow="file:/tmp/none"))
    one_line(done, "MLflow is not installed", "--mlflow")
