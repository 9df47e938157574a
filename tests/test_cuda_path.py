"""The CUDA path on a stand-in for a device: what it computes, how many operations it takes, where it copies and waits.

Kernels that only a GPU has are computed here by plain arithmetic: that they give the right numbers on a device is for
``scripts/gpu_check``. All other lines run here as they run there.
"""

from __future__ import annotations

import csv
import importlib
import math
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from cuda_stand_in import StandIn
from family_cases import every_family, load, protein, relative_l2, tiny
from plm.errors import UserError
from plm.jobs.distill.batches import DistillationRows
from plm.jobs.distill.distillation import DistillationModel, Objective, collate, counts
from plm.jobs.distill.teacher import Teacher, Wants
from plm.masked_lm.corpus import Corpus
from plm.masked_lm.corpus_store import open_corpus
from plm.masked_lm.masks import MaskPlan
from plm.masked_lm.training import MaskedRowModel, train
from plm.model import attention, attention_on_gpu, encoder
from plm.model.batching import RowLayout, pack
from plm.model.capacity import Capacity, measured
from plm.model.device import choose_device
from plm.model.families import ESM2, PROTT5, ModelFamily
from plm.model.ranks import take_own_slice
from plm.training.row_training import RowSettings, Steering, train_rows

DATA = Path(__file__).resolve().parents[1] / "test-data"
ROW = 16_384
MOST = 60
"""Operations of a layer."""
LENGTHS = (200, 150, 150, 90, 33, 33, 9, 2)


@pytest.fixture(autouse=True)
def _swapped() -> Iterator[None]:
    """Modules take parameters of another class when they move."""
    known = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(known)


def row_lengths(sequences: int) -> list[int]:
    """Lengths of some proteins that fill a row."""
    drawn = random.Random(sequences)
    parts = [drawn.uniform(0.3, 1.7) for _ in range(sequences)]
    lengths = [int(ROW * part / sum(parts)) for part in parts]
    lengths[0] += ROW - sum(lengths)
    return sorted(lengths, reverse=True)


def large(family: ModelFamily) -> Any:
    """ESM-2 650M or ProtT5-XL, of which only the shapes are there."""
    import transformers

    encoder.register()
    with torch.device("meta"):
        if family is ESM2:
            config: Any = transformers.EsmConfig(
                vocab_size=33, hidden_size=1280, num_hidden_layers=33, num_attention_heads=20, intermediate_size=5120,
                position_embedding_type="rotary", token_dropout=True, mask_token_id=32, pad_token_id=1,
                emb_layer_norm_before=False, attn_implementation=encoder.ATTENTION,
            )
            model: Any = transformers.EsmModel(config, add_pooling_layer=False)
        else:
            config = transformers.T5Config(
                vocab_size=128, d_model=1024, d_kv=128, d_ff=16384, num_layers=24, num_heads=32,
                feed_forward_proj="relu", attn_implementation=encoder.ATTENTION,
            )
            model = transformers.T5EncoderModel(config)
    encoder.adapt(model, family)
    return model.to(torch.bfloat16).eval()


def layer_costs(family: ModelFamily, *sequences: int) -> tuple[list[Any], dict[str, int], int]:
    """Operations, kernels, copies and waits of each layer, for rows of so many sequences; copies and waits of the last
    row as a whole."""
    standin = StandIn("meta")
    marks: list[tuple[int, ...]] = []
    rows = []
    with standin.attached():
        model = large(family).to("cuda")
        layers = [one for one in model.modules() if type(one).__name__ in ("EsmLayer", "T5Block")]
        assert len(layers) == (33 if family is ESM2 else 24)
        for layer in layers:
            layer.register_forward_pre_hook(lambda *args: marks.append(standin.seen.state))
            layer.register_forward_hook(lambda *args: marks.append(standin.seen.state))
        for count in sequences:
            marks.clear()
            before, waited = standin.seen.copies.copy(), standin.seen.waits
            batch = pack([[5] * length for length in row_lengths(count)]).to("cuda")
            with torch.inference_mode():
                encoder.fetching(encoder.hidden_states(model, batch))()
            copies = standin.seen.copies - before
            rows.append([tuple(np.subtract(after, at)) for at, after in zip(marks[::2], marks[1::2], strict=True)])
    return rows, dict(copies), standin.seen.waits - waited


def test_a_layer_of_esm2_takes_few_operations_and_no_copy() -> None:
    (forty, eighty), copies, waits = layer_costs(ESM2, 40, 80)
    assert eighty == forty, "the number of sequences changes what a layer does"
    operations, kernels, inside, waited = np.max(forty, axis=0)
    assert 10 < kernels <= operations <= MOST
    assert (inside, waited, waits) == (0, 0, 0)
    assert copies == {"to device": 1, "to host": 1}


@pytest.mark.parametrize("way", ["flex", "padded"])
def test_a_layer_of_prott5_takes_few_operations_and_no_copy(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_on_gpu._FLEX, "works", lambda device: way == "flex")
    if way == "flex":  # compiled, it is one kernel
        monkeypatch.setattr(attention_on_gpu._FLEX, "_compiled", lambda query, *args, **kwargs: query.clone())
    (forty, eighty), copies, waits = layer_costs(PROTT5, 40, 80)
    assert eighty == forty, "the number of sequences changes what a layer does"
    operations, kernels, inside, waited = np.max(forty[1:], axis=0)  # the first one makes what all layers share
    assert 10 < kernels <= operations <= MOST
    assert (inside, waited, waits) == (0, 0, 0)
    assert np.max(forty, axis=0)[2:].tolist() == [0, 0]
    assert copies == {"to device": 2, "to host": 1}


@every_family
@pytest.mark.parametrize("capability", [(9, 0), (7, 5)], ids=["new", "old"])
def test_families_agree_with_the_processor(
    family: ModelFamily, capability: tuple[int, int], tmp_path: Path
) -> None:
    sequences = [protein(length) for length in LENGTHS]
    expected = encoder.encode(load(tiny(family), tmp_path), sequences)
    with StandIn(capability=capability).attached() as standin:
        loaded = load(tiny(family), tmp_path, device="cuda")
        before = standin.seen.copies["to host"]
        found = encoder.encode(loaded, sequences)
        halved = encoder.encode(load(tiny(family), tmp_path, device="cuda", dtype="bfloat16"), sequences[:3])
    assert standin.seen.copies["to host"] - before == 2, "a row comes back in one copy"
    for mine, theirs in zip(found, expected, strict=True):
        assert relative_l2(mine, theirs) < 1e-5
    for mine, theirs in zip(halved, expected, strict=False):
        assert relative_l2(mine, theirs) < 0.12


@pytest.mark.parametrize("heads", [2, 1], ids=["aligned", "padded"])
def test_gradients_agree_with_the_processor(heads: int) -> None:
    generator = torch.Generator().manual_seed(3)
    layout = RowLayout((70, 41, 41, 5))
    states = [torch.randn(157, heads, 16 // heads + (heads == 1), generator=generator) for _ in range(3)]
    angles = torch.outer(torch.arange(157.0), torch.rand(states[0].shape[-1] // 2, generator=generator))
    rotary = heads == 2

    def gradients(device: str, dropout: float = 0.0) -> list[torch.Tensor]:
        own = [one.clone().to(device).requires_grad_() for one in states]
        tables = attention.tables(angles.to(device)) if rotary else None
        result = attention.attend(*own, RowLayout(layout.lengths), scale=0.3, rotary=tables, dropout=dropout)
        (result.square().sum()).backward()
        return [result.detach().cpu(), *(one.grad.cpu() for one in own if one.grad is not None)]

    expected = gradients("cpu")
    with StandIn().attached():
        found = gradients("cuda")
    assert len(found) == len(expected) == 4
    for mine, theirs in zip(found, expected, strict=True):
        assert relative_l2(mine, theirs) < 1e-5


# -------------------------------------------------------------------------------------------------- flex and padding


def textbook(states: list[torch.Tensor], layout: RowLayout, scale: float, bias: torch.Tensor) -> torch.Tensor:
    pieces = []
    for start, length in zip(layout.starts, layout.lengths, strict=True):
        q, k, v = (one[start : start + length].transpose(0, 1) for one in states)
        scores = q @ k.transpose(1, 2) * scale + attention_on_gpu.dense(bias, length)
        pieces.append((scores.softmax(-1) @ v).transpose(0, 1))
    return torch.cat(pieces)


@pytest.mark.parametrize("lengths", [(300, 170, 60, 60, 7), (128, 128), (500,), (3, 2)])
def test_flex_and_padding_equal_the_textbook(lengths: tuple[int, ...]) -> None:
    from torch.nn.attention.flex_attention import flex_attention

    generator = torch.Generator().manual_seed(0)
    layout = RowLayout(lengths)
    states = [torch.randn(sum(lengths), 2, 16, generator=generator) for _ in range(3)]
    bias = torch.randn(2, 2 * 40 + 1, generator=generator)
    expected = textbook(states, layout, 0.7, bias)
    mask = attention_on_gpu.block_mask(layout, torch.device("cpu"))
    flexed = flex_attention(
        *(one.transpose(0, 1)[None] for one in states), score_mod=attention_on_gpu.relative(bias, layout),
        block_mask=mask, scale=0.7,
    )
    assert relative_l2(flexed[0].transpose(0, 1), expected) < 1e-5
    padded = attention_on_gpu._padded(*states, layout, 0.7, bias, 0.0)
    assert relative_l2(padded, expected) < 1e-5


@pytest.mark.slow
def test_flex_is_traced_once_for_all_rows() -> None:
    from torch.nn.attention.flex_attention import flex_attention

    graphs: list[object] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(flex_attention, dynamic=True, backend=backend)
    generator = torch.Generator().manual_seed(0)
    bias = torch.randn(2, 2 * 40 + 1, generator=generator)
    for lengths in ((300, 170, 60), (200, 150), (400,), (70, 60, 50, 40)):
        layout = RowLayout(lengths)
        states = [torch.randn(sum(lengths), 2, 16, generator=generator) for _ in range(3)]
        with torch.inference_mode():
            mask = attention_on_gpu.block_mask(layout, torch.device("cpu"))
            flexed = compiled(
                *(one.transpose(0, 1)[None] for one in states), score_mod=attention_on_gpu.relative(bias, layout),
                block_mask=mask, scale=0.7,
            )
        assert relative_l2(flexed[0].transpose(0, 1), textbook(states, layout, 0.7, bias)) < 1e-5
    assert len(graphs) == 1, "another row was compiled anew"


def test_blocks_of_keys_are_those_that_sequences_share() -> None:
    lengths = (300, 170, 60, 60, 7)
    owner = np.repeat(np.arange(5), lengths)
    made = attention_on_gpu.key_blocks(lengths)
    for block in range(made.shape[0]):
        mine = owner[block * 128 : (block + 1) * 128]
        for kind, wanted in enumerate(("some", "all")):
            numbers = made[block, kind, 1 : 1 + made[block, kind, 0]].tolist()
            for other in range(made.shape[0]):
                same = mine[:, None] == owner[other * 128 : (other + 1) * 128]
                expected = same.all() if wanted == "all" else same.any() and not same.all()
                assert (other in numbers) == expected, (block, other, wanted)


def test_common_lengths_cover_all_and_waste_little() -> None:
    drawn = random.Random(1)
    lengths = tuple(sorted((drawn.randint(30, 1200) for _ in range(200)), reverse=True))
    common = attention_on_gpu.common_lengths(lengths)
    assert 1 <= len(common) <= attention_on_gpu.GROUPS
    assert common[-1] >= max(lengths) and all(length % 8 == 0 for length in common)
    padded = sum(min(one for one in common if one >= length) for length in lengths)
    assert padded < 0.75 * len(lengths) * common[-1], "no better than one length for all"


def test_a_compiler_that_fails_is_told_and_given_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: Any, **kwargs: Any) -> torch.Tensor:
        raise RuntimeError("no C compiler")

    flex = attention_on_gpu._Flex()
    monkeypatch.setattr(attention_on_gpu, "_FLEX", flex)
    monkeypatch.setattr(attention_on_gpu.importlib.util, "find_spec", lambda name: object())
    flex._compiled = broken
    layout = RowLayout((20, 12))
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(32, 2, 16, generator=generator) for _ in range(3)]
    bias = torch.randn(2, 21, generator=generator)
    with StandIn().attached() as standin, torch.inference_mode():
        there = [standin.put(one) for one in states]
        found = attention_on_gpu.attend(*there, layout, 1.0, standin.put(bias), 0.0).cpu()
        assert not flex.works(torch.device("cuda"))
    assert relative_l2(found, textbook(states, layout, 1.0, bias)) < 1e-5
    assert "no C compiler" in caplog.text and "padded" in caplog.text


# ------------------------------------------------------------------------------------------------------------- stages


def stage(
    name: str, line: str, folder: Path, monkeypatch: pytest.MonkeyPatch, *, device: str = "cuda",
    precision: str = "fp32", capability: tuple[int, int] = (9, 0),
) -> StandIn:
    """Runs a stage's script in this process, on the stand-in or on the processor."""
    folder.mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(folder)
    Path("few.fasta").write_text("".join(f">p{length}\n{protein(length)}\n" for length in (23, 18, 7)))
    words = line.replace("@", f"{DATA}/").split()
    standin = StandIn(capability=capability)
    run: Callable[[list[str]], None] = importlib.import_module(f"plm_{name}").run
    words += ["--device", device, "--precision", precision]
    if device == "cpu":
        run(words)
    else:
        with standin.attached():
            run(words)
    return standin


def numbers(path: Path) -> np.ndarray:
    """All numbers of a table."""
    with path.open() as file:
        cells = [cell for row in csv.reader(file, delimiter="\t") for cell in row]
    found = []
    for cell in cells:
        try:
            found.append(float(cell))
        except ValueError:
            continue
    return np.array([one for one in found if math.isfinite(one)])


def compare(file: Path, reference: Path, slack: float) -> None:
    """The floating-point numbers of two HDF5 files are about the same."""
    with h5py.File(reference) as expected, h5py.File(file) as found:
        seen = []

        def look(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset) and item.dtype.kind == "f":
                seen.append(name)
                np.testing.assert_allclose(found[name][()], item[()], rtol=2e-3, atol=slack)

        expected.visititems(look)
    assert seen


EMBEDDED = {
    "mean": "--input @simulated_odd.fasta",
    "max": "--input @simulated_query.fasta --model @models/tiny_esm2 --pooling max --layers all --max-residues 100",
    "first": "--input @simulated_query.fasta --model @models/tiny_esm2 --pooling first --batch-tokens 300",
    "residues": "--input @simulated_query.fasta --model @models/tiny_esm2 --pooling residues --layers 0,-1 --store "
    "float16 --logits table --pseudo-perplexity perplexity --max-residues 100",
    "masked": "--input few.fasta --model @models/tiny_bert --pseudo-perplexity table --perplexity-mode masked",
    "sites": "--input @dataset_sites.tabular --model @tiny_esm2.zip --pooling sites",
    "contacts": "--input @simulated_query.fasta --model @tiny_esm2_contacts.zip --contacts table --contact-threshold "
    "0.4",
    "t5": "--input @simulated_query.fasta --model @models/tiny_t5",
}


@pytest.mark.parametrize("way", EMBEDDED)
def test_embeddings_equal_the_processors(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = f"{EMBEDDED[way]} --embeddings made.h5"
    for device in ("cpu", "cuda"):
        stage("embed", line, tmp_path / device, monkeypatch, device=device)
    compare(tmp_path / "cuda" / "made.h5", tmp_path / "cpu" / "made.h5", 2e-3 if way == "residues" else 2e-5)
    if "table" in line:
        theirs = numbers(tmp_path / "cpu" / "table")
        np.testing.assert_allclose(numbers(tmp_path / "cuda" / "table"), theirs, rtol=1e-3, atol=1e-3)
        assert len(theirs)


READING = {
    "predict": "--predictions table --status s.tabular --report r.md --input @simulated_odd.fasta --bundle "
    "@bundle_tiny_classes.zip --model @models/tiny_esm2 --abstain novel",
    "classify_sites": "--sites table --report r.md --status s.tabular --input few.fasta --bundle @bundle_tiny_site.zip "
    "--model @models/tiny_esm2",
    "variants": "--ranked r.tabular --positions p.tabular --status s.tabular --report r.md --input "
    "@simulated_query.fasta --model @models/tiny_esm2 --variants @simulated_substitutions.tabular --scores table "
    "--window 100",
    "compare_models": "--scores table --agreement a.tabular --proteins p.tabular --report r.md --model "
    "one=@models/tiny_esm2 --model T5=@models/tiny_t5 --input @simulated_corpus.fasta --most-proteins 12 --sets 1 "
    "--turns 0 --resamples 200",
    "contacts": "--proteins p.tabular --metrics m.tabular --status s.tabular --report r.md --resamples 200 --input "
    "@simulated_folds.fasta --head @contact_head_tiny_esm2.zip --model @models/tiny_esm2 --contacts table",
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "compare_models" else name for name in READING]
)
def test_stages_that_read_give_the_processors_numbers(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for device in ("cpu", "cuda"):
        stage(name, READING[name], tmp_path / device, monkeypatch, device=device)
    theirs = numbers(tmp_path / "cpu" / "table")
    assert len(theirs)
    np.testing.assert_allclose(numbers(tmp_path / "cuda" / "table"), theirs, rtol=1e-3, atol=1e-3)


TRAINING = {
    "finetune lora": "--dataset @dataset_sites.tabular --model @models/tiny_esm2 --epochs 1 --batch-sequences 128 "
    "--head-width 16 --gradient-checkpointing --bundle b.zip --predictions p.tabular --history table --curves c.png "
    "--report r.md",
    "finetune full": "--dataset @dataset_numbers.tabular --model @models/tiny_t5 --method full --epochs 1 "
    "--batch-sequences 64 --bundle b.zip --predictions p.tabular --history table --curves c.png --report r.md",
    "pretrain": "--output-model model.zip --history table --figure f.png --report r.md --batch-tokens 1024 --holdout "
    "0.1 --input @simulated_query.fasta --preset tiny --steps 4 --warmup-steps 1 --evaluate-every 2",
    "distill": "--report r.md --batch-tokens 1024 --holdout 0.1 --input @simulated_corpus.fasta --teacher "
    "@models/tiny_esm2 --student-layers 1 --student-width 16 --student-heads 2 --steps 3 --mask-sets 1 "
    "--output-model student.zip --history table --figure f.png",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINING)
def test_stages_that_train_give_the_processors_losses(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for device in ("cpu", "cuda"):
        stage(name.split()[0], TRAINING[name], tmp_path / device, monkeypatch, device=device)
    theirs = numbers(tmp_path / "cpu" / "table")
    assert len(theirs)
    np.testing.assert_allclose(numbers(tmp_path / "cuda" / "table"), theirs, rtol=0.1, atol=0.1)  # dropout differs


def waiting(standin: StandIn, waits: list[tuple[int, int, float]]) -> Steering:
    """Notes at each report the waits so far, the step and its loss."""

    def report(step: int, known: Mapping[str, float]) -> None:
        waits.append((standin.seen.waits + standin.seen.stalls, step, known["train_loss"]))

    return Steering(judge=dict, report=report, save=lambda write, done: None, stopping=lambda: False)


SETTINGS = RowSettings(steps=8, batch_tokens=300, crop=60, warmup_steps=1, evaluate_every=100)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_pretraining_waits_for_no_step(accumulate: int, tmp_path: Path) -> None:
    waits: list[tuple[int, int, float]] = []
    settings = replace(SETTINGS, accumulate=accumulate)
    with StandIn().attached() as standin:
        loaded = load(tiny(ESM2), tmp_path, purpose="masked_lm", device="cuda")
        corpus = Corpus.build([protein(60, n) for n in range(40)], loaded.family, loaded.vocabulary)
        steering = waiting(standin, waits)
        train(MaskedRowModel(loaded.model), corpus, settings, steering, device=torch.device("cuda"))
    assert len(waits) == 8
    assert waits[-2][0] == waits[1][0], "a step waited for the device"
    assert all(math.isfinite(loss) for *_, loss in waits)
    assert len({loss for *_, loss in waits}) > 5


@pytest.mark.parametrize("represent", ["masked", "intact"])
def test_distilling_waits_for_no_step(represent: Any, tmp_path: Path) -> None:
    waits: list[tuple[int, int, float]] = []
    objective = Objective(logit_mse=1.0, kl=1.0, kernel=1.0, hidden=1.0, mlm=1.0, represent=represent)
    masks = MaskPlan(sets=1, crop=60)
    fasta = tmp_path / "simulated.fasta"
    fasta.write_text("".join(f">p{n}\n{protein(30 + n, n)}\n" for n in range(40)))
    with StandIn().attached() as standin:
        student, teacher = (load(tiny(ESM2), tmp_path, purpose="masked_lm", device="cuda") for _ in range(2))
        store = open_corpus(fasta, tmp_path, student.family, student.vocabulary)
        answers = Teacher(teacher, store, masks, Wants(True, True, True, teacher.layers, represent)).answer
        widths = (student.hidden_size, teacher.hidden_size)
        network = DistillationModel(student.model, student.family, objective, answers, widths)
        rows = DistillationRows(store, np.arange(len(store)), 16, masks=masks, budget=300, group="none")
        done = train_rows(
            network, rows, replace(SETTINGS, accumulate=2), waiting(standin, waits), collate=collate,
            device=torch.device("cuda"), terms=objective.terms, every_step=True,
            counts=lambda inputs: counts(inputs, objective, student.family.specials),
        )
    assert [step for _, step, _ in waits] == list(range(1, 9)), "each step is told, in order"
    assert waits[-3][0] == waits[1][0], "a step waited for the device"  # the last two are told together
    assert [record["step"] for record in done.history] == list(range(1, 9))
    for record in done.history:
        assert all(math.isfinite(record[name]) for name in ("train_loss", *objective.terms))
    assert len({record["mlm"] for record in done.history}) == 8


# ---------------------------------------------------------------------------------------------- devices and precision


def test_an_older_gpu_computes_in_float16_until_a_number_overflows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file, save_file

    model = tmp_path / "large_numbers"
    shutil.copytree(DATA / "models" / "tiny_esm2", model)
    weights = load_file(model / "model.safetensors")
    (last,) = (name for name in weights if name.endswith("encoder.emb_layer_norm_after.weight"))
    weights[last] = weights[last] * 4e4
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    line = f"--input few.fasta --model {model} --embeddings made.h5 --pooling residues"
    stage("embed", line, tmp_path / "old", monkeypatch, precision="auto", capability=(7, 5))
    told = capsys.readouterr().out
    assert "compute capability 7.5" in told and "float16 is used" in told and "going on in float32" in told
    stage("embed", line, tmp_path / "cpu", monkeypatch, device="cpu")
    compare(tmp_path / "old" / "made.h5", tmp_path / "cpu" / "made.h5", 1.0)
    stage("embed", "--input few.fasta --model @models/tiny_t5 --embeddings made.h5", tmp_path / "t5", monkeypatch,
          precision="auto", capability=(7, 5))
    assert "overflow in float16: float32 is used" in capsys.readouterr().out


def test_a_gpu_without_kernels_is_not_used() -> None:
    with StandIn(capability=(6, 1)).attached():
        with pytest.raises(UserError, match=r"compute capability 6\.1, for which this torch has no kernels"):
            choose_device("cuda")
        assert choose_device("auto").type == "cpu"
    for capability in ((7, 5), (8, 0), (8, 9), (9, 0)):
        with StandIn(capability=capability).attached():
            assert choose_device("auto").type == "cuda"


def test_each_process_takes_its_own_slice_of_a_divided_gpu() -> None:
    environment = {"CUDA_VISIBLE_DEVICES": "MIG-a,MIG-b"}
    take_own_slice(environment, 1)
    assert environment["CUDA_VISIBLE_DEVICES"] == "MIG-b"
    for whole in ("0,1", "GPU-a,GPU-b", "MIG-a", ""):
        environment = {"CUDA_VISIBLE_DEVICES": whole}
        take_own_slice(environment, 1)
        assert environment["CUDA_VISIBLE_DEVICES"] == whole


def test_measured_peaks_replace_the_law() -> None:
    with StandIn().attached():
        law = Capacity(room=2**30, token=100, pair=7)
        rows = [(4000, 250, 4000 * 300 + 250**2 * 20), (4000, 4000, 4000 * 300 + 4000**2 * 20)]
        capacity = measured(law, rows, torch.device("cuda"))
        free, total = torch.cuda.mem_get_info()
    assert (capacity.token, capacity.pair) == (330, 22)
    assert capacity.room == int(0.85 * total) - (total - free)
    with StandIn().attached():
        assert measured(replace(law, limited=True), rows, torch.device("cuda")).room == law.room
