"""Embedding, LoRA and pretraining on a GPU, beside Hugging Face and fair-esm, in the published shapes of models.

    python scripts/benchmarks/gpu [--shapes 35M,150M,650M,3B,ProtT5-XL] [--residues N] [--rounds 3] [--steps 12]

Random weights, which cost what trained ones cost; lengths of the yeast proteome. Ways take turns, round after round.
*Peak* is the rate of the device's data sheet for dense 16-bit products where its name is known, *products* what torch
reaches here with one large product of matrices. Needs the packages of environment.yml; fair-esm and esm-efficient (with
flash-attn) take part where they are installed. FastPLMs does not: its classes are code of the hub.
Without a device it runs on the processor, to prove that it runs: try ``--shapes tiny,tinyT5 --residues 600``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import proteins, publish, timing
from benchmarks.embed_command import longest_in_one_piece
from benchmarks.shapes import SHAPES, Shape, attention_flops, checkpoint

ROOT = Path(__file__).resolve().parents[2]
DEFAULT = "35M,150M,650M,3B,ProtT5-XL"
PEAKS = {
    "H200": 989.0, "H100 PCIe": 756.0, "H100": 989.0, "GH200": 989.0, "B200": 2250.0, "A100": 312.0, "A30": 165.0,
    "A40": 150.0, "L40S": 362.0, "L40": 181.0, "L4": 121.0, "A10": 125.0, "RTX 4090": 165.0, "RTX 3090": 71.0,
    "V100": 125.0, "T4": 65.0,
}
"""TFLOPS of dense 16-bit products by a part of the device's name (NVIDIA's data sheets), the longer names first."""
ESM_EFFICIENT = "esm-efficient"
BATCH = 8
"""Proteins in a batch of the plain classes."""


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--shapes", default=DEFAULT, help=f"of {', '.join(SHAPES)} (default: {DEFAULT})")
    made.add_argument("--residues", type=int, help="residues in a sample (default: 1,000,000; 20,000 on processors)")
    made.add_argument("--rounds", type=int, default=3, help="(default: 3)")
    made.add_argument("--steps", type=int, default=12, help="training steps that are measured (default: 12)")
    made.add_argument("--tasks", default="embed,longest,lora,lora-hf,pretrain", help="(default: all)")
    made.add_argument("--work", type=Path, default=ROOT / "benchmark" / "work", help="where models are kept")
    made.add_argument("--output", type=Path, default=ROOT / "benchmark", help="where results go")
    return made.parse_args(argv)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)
    import torch
    from plm.model.device import choose_device, choose_precision

    device = choose_device("auto")
    cuda = device.type == "cuda"
    precision = choose_precision("auto", device)
    args.residues = args.residues or (1_000_000 if cuda else 20_000)
    args.work.mkdir(parents=True, exist_ok=True)
    machine = timing.machine(torch.get_num_threads(), str(device))
    rate = product_rate(device, precision)
    peak = next((value for name, value in PEAKS.items() if cuda and name in machine["device"]), None)
    results: dict[str, Any] = {
        "machine": machine, "precision": precision, "peak_tflops": peak, "product_tflops": rate, "shapes": [],
    }
    if not cuda:
        say("NO CUDA DEVICE IS THERE: figures are of the processor")
    tasks = {"embed": embed, "longest": longest, "lora": lora, "lora-hf": lora_plain, "pretrain": pretrain}
    if unknown := set(args.tasks.split(",")) - set(tasks):
        sys.exit(f"--tasks {', '.join(sorted(unknown))}: choose of {', '.join(tasks)}")
    for name in args.shapes.split(","):
        found: dict[str, Any] = {"shape": name}
        for task in args.tasks.split(","):
            if task == "longest" and not cuda:
                continue
            try:
                found[task] = tasks[task](SHAPES[name], args, device, precision)
            except torch.cuda.OutOfMemoryError:
                found[task] = {"note": "does not fit this device"}
            if cuda:
                torch.cuda.empty_cache()
            say(f"{name}, {task}: {json.dumps(found[task])}")
        results["shapes"].append(found)
    text = report(results)
    publish.publish("gpu", results, text, args.output)
    print(text)


def product_rate(device: Any, precision: str) -> float:
    """TFLOPS of one large product of matrices."""
    import torch

    size = 8192 if device.type == "cuda" else 1024
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    wait = _wait(device)
    best = min(timing.clock(lambda: left @ right, wait) for _ in range(5))
    return 2 * size**3 / best / 1e12


def _wait(device: Any) -> Callable[[], None]:
    import torch

    return torch.cuda.synchronize if device.type == "cuda" else (lambda: None)


def _peak_memory(device: Any, work: Callable[[], object]) -> int:
    """MiB of the device at the peak of some work; 0 on processors."""
    import torch

    if device.type != "cuda":
        work()
        return 0
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return int(torch.cuda.max_memory_allocated()) // 2**20


def weights_of(shape: Shape) -> float:
    """Numbers in the linear layers, which take two operations a token each."""
    if shape.kind == "t5":
        inner = shape.heads * shape.head_width
        return float(shape.layers * (4 * shape.hidden * inner + 2 * shape.hidden * shape.feedforward))
    return float(shape.layers * (4 * shape.hidden**2 + 2 * shape.hidden * shape.feedforward))


# --------------------------------------------------------------------------------------------------------------- tasks


def embed(shape: Shape, args: argparse.Namespace, device: Any, precision: str) -> dict[str, Any]:
    """Residues a second of each way, one vector a protein; errors beside the plain class in the same precision."""
    import torch

    folder = checkpoint(shape, args.work, dtype="bfloat16" if device.type == "cuda" else "float32")
    sequences = proteins.sample("proteome", args.residues)
    lengths = [len(text) for text in sequences]
    ways: dict[str, Callable[[Sequence[str]], torch.Tensor]] = {
        "suite": _suite(folder, device, precision), "hf padded": _plain(shape, folder, device, precision, sort=False),
        "hf sorted": _plain(shape, folder, device, precision, sort=True),
    }
    if shape.kind == "esm2" and importlib.util.find_spec("esm") is not None:
        ways["fair-esm"] = _fair_esm(folder, device)
    else:
        say("fair-esm is left out: it computes ESM-2 only, where it is installed")
    if shape.kind == "esm2" and device.type == "cuda" and _installed("esme", "flash_attn"):
        ways[ESM_EFFICIENT] = _esm_efficient(shape, device)
    else:
        say("esm-efficient is left out: it computes ESM-2 on GPUs only, where it and flash-attn are installed")
    wait = _wait(device)
    means: dict[str, torch.Tensor] = {}
    memory: dict[str, int] = {}

    def timed(name: str) -> Callable[[], float]:
        encode = ways[name]
        encode(sequences[:BATCH])  # compiles and warms up
        memory[name] = _peak_memory(device, lambda: encode(sequences[: 8 * BATCH]))

        def once() -> float:
            found: list[torch.Tensor] = []
            seconds = timing.clock(lambda: found.append(encode(sequences)), wait)
            means.setdefault(name, found[0])
            return seconds

        return once

    seconds = timing.interleaved({name: timed(name) for name in ways}, args.rounds, say=say)
    operations = 2 * weights_of(shape) * sum(lengths) + attention_flops(shape, lengths)
    found: dict[str, Any] = {"proteins": len(lengths), "residues": sum(lengths), "longest": max(lengths), "ways": {}}
    for name, each in seconds.items():
        best = min(one for one in each if one is not None)
        faster = timing.ratio(each, seconds["suite"])
        found["ways"][name] = {
            "residues_per_second": sum(lengths) / best, "tflops": operations / best / 1e12, "memory_mib": memory[name],
            "suite_is_faster": None if faster is None else faster.median,
        }
        if name != ESM_EFFICIENT:  # which has random weights of its own
            cosine = torch.nn.functional.cosine_similarity(means[name], means["hf padded"]).min()
            found["ways"][name]["lowest_cosine"] = float(cosine)
    return found


def _installed(*modules: str) -> bool:
    return all(importlib.util.find_spec(name) is not None for name in modules)


def _esm_efficient(shape: Shape, device: Any) -> Callable[[Sequence[str]], Any]:
    """esm-efficient's ESM-2 in bfloat16 on unpadded tokens, sorted, 16,384 residues at a time."""
    import torch
    from esme import ESM2
    from esme.alphabet import tokenize_unpad

    model = ESM2(shape.layers, shape.hidden, shape.heads).eval().to(device)

    def encode(sequences: Sequence[str]) -> torch.Tensor:
        means: dict[int, torch.Tensor] = {}
        rows: list[list[int]] = [[]]
        for index in sorted(range(len(sequences)), key=lambda index: -len(sequences[index])):
            if rows[-1] and sum(len(sequences[at]) for at in (*rows[-1], index)) > 16_384:
                rows.append([])
            rows[-1].append(index)
        with torch.inference_mode():
            for row in rows:
                tokens, _, edges, most = tokenize_unpad([sequences[at] for at in row])
                states = model.forward_representation(tokens.to(device), (edges.to(device), most))
                pieces = states.split(edges.diff().tolist())
                pooled = torch.stack([piece[1:-1].float().mean(0) for piece in pieces]).cpu()
                means.update(zip(row, pooled, strict=True))
        return torch.stack([means[index] for index in range(len(sequences))])

    return encode


def _suite(folder: Path, device: Any, precision: str) -> Callable[[Sequence[str]], Any]:
    """As plm_embed computes: packed rows, pooled on the device."""
    import torch
    from plm.model.capacity import capacity
    from plm.model.checkpoint import load_model, resolve_model
    from plm.model.device import DTYPES
    from plm.model.embedding.representations import Embedder, SequencePart, Wanted
    from plm.model.embedding.work_plan import first_budget, measured_capacity

    loaded = load_model(resolve_model(str(folder), workdir=folder), dtype=DTYPES[precision], device=device)
    wanted = Wanted((loaded.layers,))
    room = measured_capacity(capacity(loaded), loaded, wanted)
    budget, embedder = first_budget(room, loaded, wanted), Embedder(loaded, wanted, room)

    def encode(sequences: Sequence[str]) -> torch.Tensor:
        ((_, arrays),) = embedder.compute([SequencePart(0, sequences)], budget)
        return torch.from_numpy(arrays["values"])

    return encode


def _plain(shape: Shape, folder: Path, device: Any, precision: str, *, sort: bool) -> Callable[[Sequence[str]], Any]:
    """The transformers class with its fused attention, a padded batch at a time, pooled on the device."""
    import torch
    import transformers
    from transformers import AutoTokenizer

    transformers.logging.set_verbosity_error()
    kind = transformers.T5EncoderModel if shape.kind == "t5" else transformers.EsmModel
    options = {} if shape.kind == "t5" else {"add_pooling_layer": False}
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = kind.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa", **options).eval().to(device)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    first = 0 if shape.kind == "t5" else 1

    def encode(sequences: Sequence[str]) -> torch.Tensor:
        order = sorted(range(len(sequences)), key=lambda index: -len(sequences[index]) if sort else index)
        means: dict[int, torch.Tensor] = {}
        with torch.inference_mode():
            for start in range(0, len(order), BATCH):
                chosen = order[start : start + BATCH]
                texts = [" ".join(sequences[at]) if shape.kind == "t5" else sequences[at] for at in chosen]
                given = tokenizer(texts, padding=True, return_tensors="pt").to(device)
                states = model(input_ids=given["input_ids"], attention_mask=given["attention_mask"]).last_hidden_state
                inside = torch.zeros(states.shape[:2], device=device)
                for row, at in enumerate(chosen):
                    inside[row, first : first + len(sequences[at])] = 1 / len(sequences[at])
                pooled = torch.einsum("bt,btd->bd", inside, states.float()).cpu()
                means.update(zip(chosen, pooled, strict=True))
        return torch.stack([means[index] for index in range(len(sequences))])

    return encode


def _fair_esm(folder: Path, device: Any) -> Callable[[Sequence[str]], Any]:
    import torch

    from benchmarks import embedding

    encode = embedding._extract(folder, device)
    return lambda sequences: torch.stack([states.mean(0) for states in encode(sequences)])


def longest(shape: Shape, args: argparse.Namespace, device: Any, precision: str) -> dict[str, Any]:
    """The longest protein that this device encodes in one piece, to within 256 residues, at most 131,072."""
    from plm.model.checkpoint import load_model, resolve_model
    from plm.model.device import DTYPES

    folder = checkpoint(shape, args.work, dtype="bfloat16")
    loaded = load_model(resolve_model(str(folder), workdir=folder), dtype=DTYPES[precision], device=device)
    return {"residues": longest_in_one_piece(loaded, 131_072)}


def lora(shape: Shape, args: argparse.Namespace, device: Any, precision: str) -> dict[str, Any]:
    """LoRA as plm_finetune trains it: tokens a second and the device's memory at the peak."""
    import pandas as pd
    from plm.jobs.finetune import training
    from plm.jobs.finetune.job import FineTuningJob, FineTuningSettings
    from plm.jobs.finetune.labelled_rows import read_rows
    from plm.model.adapters import AdapterSettings
    from plm.model.checkpoint import resolve_model
    from plm.training.folds import TrainingPart

    folder = checkpoint(shape, args.work, dtype="bfloat16" if device.type == "cuda" else "float32")
    count = args.steps * BATCH
    sequences = proteins.evenly(count, 512)
    table = pd.DataFrame(
        {"id": [f"p{n}" for n in range(count + 2)], "sequence": [*sequences, *(one[:40] for one in sequences[:2])],
         "label": [str(n % 2) for n in range(count + 2)]}, dtype=str,
    )
    rows, part = read_rows(table, level="sequence"), TrainingPart(None, list(range(count)), [count, count + 1], [])
    settings = FineTuningSettings(
        adapter=AdapterSettings(), head={}, precision="bf16" if precision == "bf16" else "fp32",
        training=training.TrainingSettings(epochs=1, batch_sequences=BATCH, metric="loss", patience=0),
    )
    with tempfile.TemporaryDirectory(prefix="bench_") as scratch:
        files = resolve_model(str(folder), workdir=folder)
        job = FineTuningJob(
            rows, [part], files, settings, device=device, workdir=Path(scratch), data_sha256="",
            log=logging.getLogger("bench_gpu"),
        )
        loaded, network = job.network(settings.seeds[0])
        examples = rows.examples(loaded, part.train, 2048)
        validation = rows.examples(loaded, part.valid, 2048)
        ends: list[float] = []

        def work() -> None:
            training.train(
                network, rows.task, examples, validation, settings.training, seed=0, folder=Path(scratch),
                on_step=lambda step, total, loss, rate: ends.append(time.perf_counter()),
            )
            _wait(device)()

        memory = _peak_memory(device, work)
    return _training_figures(shape, examples.tokens / args.steps, ends, memory, 4)


def lora_plain(shape: Shape, args: argparse.Namespace, device: Any, precision: str) -> dict[str, Any]:
    """LoRA as one writes it with transformers and PEFT: the same proteins in padded batches, the same layers and rank,
    a linear head on the mean of all tokens; the base in 16 bits, adapters in float32 under autocast."""
    import peft
    import torch
    import transformers
    from plm.model.adapters import AdapterSettings
    from transformers import AutoTokenizer

    transformers.logging.set_verbosity_error()
    halved = precision == "bf16"
    folder = checkpoint(shape, args.work, dtype="bfloat16" if device.type == "cuda" else "float32")
    kind = transformers.T5EncoderModel if shape.kind == "t5" else transformers.EsmModel
    options = {} if shape.kind == "t5" else {"add_pooling_layer": False}
    body = kind.from_pretrained(
        folder, dtype=torch.bfloat16 if halved else torch.float32, attn_implementation="sdpa", **options
    )
    own = AdapterSettings()
    layers = ["q", "k", "v", "o"] if shape.kind == "t5" else ["query", "key", "value", "attention.output.dense"]
    model = peft.get_peft_model(body, peft.LoraConfig(
        r=own.rank, lora_alpha=own.alpha, lora_dropout=own.dropout, bias="none", target_modules=layers
    )).to(device).train()
    head = torch.nn.Linear(shape.hidden, 2, device=device)
    trained = [one for one in (*model.parameters(), *head.parameters()) if one.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-4, fused=device.type == "cuda" or None)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    sequences = proteins.evenly(args.steps * BATCH, 512)
    texts = [" ".join(one) for one in sequences] if shape.kind == "t5" else list(sequences)
    ends: list[float] = []
    wait = _wait(device)

    def work() -> None:
        for start in range(0, len(texts), BATCH):
            given = tokenizer(texts[start : start + BATCH], padding=True, return_tensors="pt").to(device)
            labels = (torch.arange(start, start + len(given["input_ids"])) % 2).to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=halved):
                states = model(**{name: given[name] for name in ("input_ids", "attention_mask")}).last_hidden_state
                inside = given["attention_mask"].unsqueeze(-1)
                pooled = (states * inside).sum(1).float() / inside.sum(1)
            loss = torch.nn.functional.cross_entropy(head(pooled), labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            wait()
            ends.append(time.perf_counter())

    memory = _peak_memory(device, work)
    specials = 1 if shape.kind == "t5" else 2
    return _training_figures(shape, sum(len(one) + specials for one in sequences) / args.steps, ends, memory, 4)


def pretrain(shape: Shape, args: argparse.Namespace, device: Any, precision: str) -> dict[str, Any]:
    """Masked language modelling of all weights as plm_pretrain trains it."""
    if shape.kind == "t5":
        return {"note": "T5 encoders have no masked language model here"}
    from plm.masked_lm import training as pretraining
    from plm.masked_lm.corpus import Corpus
    from plm.model.checkpoint import load_model, resolve_model
    from plm.training.row_training import RowSettings, Steering

    folder = checkpoint(shape, args.work, dtype="bfloat16" if device.type == "cuda" else "float32")
    loaded = load_model(resolve_model(str(folder), workdir=folder), purpose="masked_lm", device=device)
    corpus = Corpus.build(proteins.evenly(64 * BATCH, 512), loaded.family, loaded.vocabulary)
    tokens = 16_384 if device.type == "cuda" else 1024
    settings = RowSettings(
        steps=args.steps, batch_tokens=tokens, crop=512, schedule="constant", warmup_steps=0,
        evaluate_every=args.steps + 1, precision="bf16" if precision == "bf16" else "fp32",
    )
    ends: list[float] = []
    steering = Steering(
        judge=dict, report=lambda step, known: ends.append(time.perf_counter()), save=lambda write, done: None,
        stopping=lambda: False,
    )
    seen: list[int] = []

    def work() -> None:
        outcome = pretraining.train(
            pretraining.MaskedRowModel(loaded.model), corpus, settings, steering, device=device
        )
        seen.append(outcome.tokens)
        _wait(device)()

    memory = _peak_memory(device, work)
    return _training_figures(shape, seen[0] / args.steps, ends, memory, 6)


def _training_figures(shape: Shape, tokens: float, ends: Sequence[float], memory: int, each: int) -> dict[str, Any]:
    """Figures of steps of ``tokens``; the first two warm up. ``each``: operations a weight and token, both ways."""
    counted = len(ends) - 3
    if counted < 1:
        return {"note": "too few steps"}
    seconds = (ends[-1] - ends[2]) / counted
    return {
        "tokens_per_second": tokens / seconds, "tflops": each * weights_of(shape) * tokens / seconds / 1e12,
        "memory_mib": memory,
    }


# -------------------------------------------------------------------------------------------------------------- report


def report(results: dict[str, Any]) -> str:
    """The figures as Markdown."""
    machine, peak = results["machine"], results["peak_tflops"]
    known = f"data sheet {peak:.0f} TFLOPS, " if peak else ""
    lines = [
        "## On a GPU", "",
        f"`scripts/benchmarks/gpu` on {machine['device']} ({known}products {results['product_tflops']:.1f} TFLOPS), "
        f"{results['precision']}; torch {machine['torch']}, transformers {machine['transformers']}. Random weights.",
        "",
        "| shape | what | residues or tokens/s | share of peak | of products | MiB | suite is faster | cosine |",
        "|---|---|---|---|---|---|---|---|",
    ]

    def line(shape: str, what: str, one: dict[str, Any], speed: str) -> str:
        share = f"{100 * one['tflops'] / peak:.0f} %" if peak else ""
        products = f"{100 * one['tflops'] / results['product_tflops']:.0f} %"
        faster = f"{one['suite_is_faster']:.2f}" if one.get("suite_is_faster") else ""
        cosine = f"{one['lowest_cosine']:.6f}" if "lowest_cosine" in one else ""
        cells = (shape, what, f"{one[speed]:,.0f}", share, products, f"{one['memory_mib']:,}", faster, cosine)
        return f"| {' | '.join(cells)} |"

    for found in results["shapes"]:
        name = found["shape"]
        for way, one in found.get("embed", {}).get("ways", {}).items():
            lines.append(line(name, f"embedding, {way}", one, "residues_per_second"))
        for task in ("lora", "lora-hf", "pretrain"):
            if "tflops" in found.get(task, {}):
                lines.append(line(name, task, found[task], "tokens_per_second"))
        if "residues" in found.get("longest", {}):
            most = found["longest"]["residues"]
            lines.append(f"| {name} | longest protein in one piece | {most:,} residues | | | | | |")
        lines += [f"| {name} | {task} | {one['note']} | | | | | |" for task, one in found.items()
                  if isinstance(one, dict) and "note" in one]
    return "\n".join(lines) + "\n"
