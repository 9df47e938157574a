"""The tables of memory and time of the administrators' page; see ``scripts/benchmarks/memory_tables --help``."""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.publish import table
from benchmarks.shapes import ROOT, SHAPES, Shape, checkpoint

if TYPE_CHECKING:
    from plm.model.loaded import LoadedModel

DOC = """Writes the tables of memory and time into docs/administrators.md, from the plans that the tools make.

    .plm/envs/dev/bin/python scripts/benchmarks/memory_tables             # what the code says now
    .plm/envs/dev/bin/python scripts/benchmarks/memory_tables --measure   # measures small models first, a minute

A test compares the page with what this script would write.
"""
PAGE, FIGURES = ROOT / "docs" / "administrators.md", ROOT / "docs" / "figures" / "memory_tables.json"
BEGIN, END = "<!-- memory_tables:begin -->", "<!-- memory_tables:end -->"
MODELS = {
    "starter": "8Mx5",
    "ESM-2 8M": "8M",
    "ESM-2 35M": "35M",
    "ESM-2 150M": "150M",
    "ESM-2 650M": "650M",
    "ESM-2 3B": "3B",
    "ProtT5-XL": "ProtT5-XL",
}
LENGTHS = (300, 1000, 5000, 36_000)
MEASURED = ("8M", "35M", "150M")
MEASURED_LENGTH = 1000
PROGRAM = 0.5
"""GiB that Python and its libraries take beside weights and batches."""
GIB = 2**30


@dataclass(frozen=True)
class Plan:
    """What the tools plan for one model, in GiB.

    Attributes:
        parameters: Numbers of the encoder.
        embed_cpu: By length: the memory with which a processor takes a protein whole, one row at a time.
        embed_gpu: The same of a GPU, in half precision.
        lora_cpu: By length: fine-tuning with LoRA at the batches that the form suggests, on a processor.
        lora_gpu: The same on a GPU.
        full_cpu: All weights trained, on a processor.
        full_gpu: All weights trained, on a GPU.
        work: By length: floating-point operations of reading one protein.
    """

    parameters: int
    embed_cpu: list[float]
    embed_gpu: list[float]
    lora_cpu: list[float]
    lora_gpu: list[float]
    full_cpu: list[float]
    full_gpu: list[float]
    work: list[float]


def loaded(shape: Shape, dtype: str) -> LoadedModel:
    """A model of a shape without its numbers: all that plans look at, and none of the memory."""
    import torch
    from plm.masked_lm.presets import esm2_config
    from plm.model.families import ESM2, PROTT5
    from plm.model.loaded import LoadedModel, ModelFiles
    from transformers import EsmModel, T5Config, T5EncoderModel

    with torch.device("meta"):
        if shape.kind == "t5":
            config = T5Config(
                vocab_size=128, d_model=shape.hidden, d_kv=shape.head_width, d_ff=shape.feedforward,
                num_layers=shape.layers, num_heads=shape.heads, is_encoder_decoder=False, tie_word_embeddings=False,
            )
            model: Any = T5EncoderModel(config)
        else:
            sizes = {"hidden": shape.hidden, "heads": shape.heads, "feedforward": shape.feedforward}
            model = EsmModel(esm2_config(layers=shape.layers, **sizes), add_pooling_layer=False)
    family = PROTT5 if shape.kind == "t5" else ESM2
    files = ModelFiles(shape.name, Path(), "")
    return LoadedModel(
        model, {}, family, files, shape.hidden, shape.layers, torch.device("cpu"), getattr(torch, dtype)
    )


def plan(shape: Shape) -> Plan:
    """What the tools would plan for a model of a shape."""
    import numpy as np
    from plm.jobs.finetune.cost import _SHARE as trained_share
    from plm.jobs.finetune.cost import activation_bytes
    from plm.jobs.finetune.training import TrainingSettings
    from plm.model.capacity import _SHARE, capacity
    from plm.model.embedding.work_plan import EncodingCost
    from plm.model.encoder import ROW_TOKENS

    models = {"cpu": loaded(shape, "float32"), "cuda": loaded(shape, "bfloat16")}
    parameters = sum(parameter.numel() for parameter in models["cpu"].model.parameters())
    sizes = {"cpu": 4, "cuda": 2}
    specials = models["cpu"].family.specials

    def reading(device: str, length: int) -> float:
        room = capacity(models[device], kept_per_token=0)
        heads = int(models[device].model.config.num_attention_heads)
        law = models[device].family.memory
        pair = law.bytes_per_pair + int(law.per_pair.get(device, 0) * heads * sizes[device])
        longest = length + specials
        row = max(ROW_TOKENS[device], longest) * room.token + longest**2 * pair
        program = PROGRAM if device == "cpu" else 0.0
        return program + (sizes[device] * parameters + row / _SHARE) / GIB

    def training(device: str, length: int, trainable: int) -> float:
        tokens = TrainingSettings.batch_tokens
        each = activation_bytes(
            models[device], min(length + specials, tokens), checkpointing=False, bytes_per_value=sizes[device]
        )
        program = PROGRAM if device == "cpu" else 0.0
        states = 4 * parameters + (12 * trainable + each * tokens) / trained_share
        return program + states / GIB

    # LoRA's default: matrices of rank 8 beside query, key and value
    adapters = 3 * 2 * 8 * shape.hidden * shape.layers
    cost = EncodingCost.of(models["cpu"])
    return Plan(
        parameters,
        [reading("cpu", length) for length in LENGTHS],
        [reading("cuda", length) for length in LENGTHS],
        [training("cpu", length, adapters) for length in LENGTHS],
        [training("cuda", length, adapters) for length in LENGTHS],
        [training("cpu", length, parameters) for length in LENGTHS],
        [training("cuda", length, parameters) for length in LENGTHS],
        [cost.total(np.array([length + specials])) for length in LENGTHS],
    )


def measure() -> dict[str, Any]:
    """Peak memory and time of ``plm_embed`` on one protein, for the small models with random weights."""
    from benchmarks import timing, whole

    timing.use_threads(1)
    letters = random.Random(1)
    protein = "".join(letters.choice("ACDEFGHIKLMNPQRSTVWY") for _ in range(MEASURED_LENGTH))
    found: dict[str, Any] = {"machine": timing.machine(1), "length": MEASURED_LENGTH, "models": {}}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        fasta = work / "one.fasta"
        fasta.write_text(f">one\n{protein}\n")
        for name in MEASURED:
            model = checkpoint(SHAPES[name], work)
            peak = whole.run("stage", model, fasta, work / "out").memory_mib
            found["models"][name] = {"memory_mib": peak}
            print(f"{name}: {peak} MiB", file=sys.stderr)
    return found


def gib(value: float) -> str:
    """A number of GiB for people."""
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"


def times(value: float) -> str:
    """A ratio for people."""
    return f"{value:.1f}" if value < 10 else f"{float(f'{value:.2g}'):,.0f}"


def section(figures: dict[str, Any]) -> str:
    """The part of the page, without its marks."""
    plans = {name: plan(SHAPES[shape]) for name, shape in MODELS.items()}
    heads = [f"{length:,}" for length in LENGTHS]
    lines = []
    for title, kind in (
        ("**Reading** (embedding, predictions, candidate sites)", "embed"),
        ("**Fine-tuning with LoRA**", "lora"),
        ("**Fine-tuning of all weights**", "full"),
    ):
        rows = []
        for name, each in plans.items():
            pairs = zip(getattr(each, f"{kind}_cpu"), getattr(each, f"{kind}_gpu"), strict=True)
            rows.append([name, *(f"{gib(cpu)} / {gib(gpu)}" for cpu, gpu in pairs)])
        lines += [
            f"{title}: GiB of memory on a processor / of a GPU in half precision, by residues of the longest protein",
            "",
            table(["model", *heads], rows), "",
        ]
    peaks = figures["models"]
    measured = [
        [name, f"{plans[name].parameters / 1e6:.0f}", gib(peaks[shape]["memory_mib"] / 1024),
         gib(plans[name].embed_cpu[LENGTHS.index(figures["length"])])]
        for name, shape in MODELS.items() if shape in peaks
    ]
    machine = figures["machine"]
    lines += [
        f"Measured beside planned, `plm_embed` on one protein of {figures['length']:,} residues"
        f" ({machine['device']}, one thread, torch {machine['torch']}), GiB:", "",
        table(["model", "million parameters", "peak, measured", "planned"], measured), "",
    ]
    base = plans["ESM-2 8M"].work[0]
    rows = [[name, *(times(work / base) for work in each.work)] for name, each in plans.items()]
    lines += [
        "**Time** of reading one protein, by the arithmetic that the tools' own estimates use; ESM-2 8M with 300"
        " residues is 1. Fine-tuning takes about three times as long for each row and epoch:", "",
        table(["model", *heads], rows),
    ]
    return "\n".join(lines)


def written(page: str, text: str) -> str:
    """The page with a new section."""
    block = f"{BEGIN}\n{text.strip()}\n{END}"
    changed, times = re.subn(re.escape(BEGIN) + r".*?" + re.escape(END), lambda _: block, page, flags=re.DOTALL)
    if times != 1:
        sys.exit(f"{PAGE.name} has no section between {BEGIN} and {END}")
    return changed


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=DOC, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="measure the small models here")
    if parser.parse_args(argv).measure:
        FIGURES.write_text(json.dumps(measure(), indent=1) + "\n")
    figures = json.loads(FIGURES.read_text())
    PAGE.write_text(written(PAGE.read_text(), section(figures)))
