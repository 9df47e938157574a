"""Measures ways to embed proteins against each other; see ``scripts/benchmarks/bench_embed --help``."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from benchmarks import proteins, publish, real_weights, timing
from benchmarks.shapes import ROOT, SHAPES, Shape, attention_flops, checkpoint, find

if TYPE_CHECKING:
    import torch

DOC = """Measures ways to embed proteins against each other: ratios, never absolute speeds.

    .plm/envs/dev/bin/python scripts/benchmarks/bench_embed [--fasta yeast.fasta.gz] [--output docs]

All ways take turns in one run over the same proteins with the same random weights, and each is compared with fair-esm
in fp32. Without --fasta, random sequences have the lengths of the yeast proteome. A peer package is measured in an
environment of its own: python -m venv FOLDER && FOLDER/bin/pip install biotrainer, then --peer
biotrainer=FOLDER/bin/python; likewise esm-cpp and esm-cpp-int8 (pip install esm-cpp safetensors). On a GPU the
defaults are 650M, 3B and ProtT5-XL, and the longest protein that fits is sought.
"""
CASES = "8M,35M,150M,T5,35M:windows,35M:long,35M:uneven"
CUDA_CASES = "650M,3B,ProtT5-XL"
BUDGETS, CUDA_BUDGETS = (2048, 4096, 8192), (16_384, 32_768, 65_536)
GPU_MEMORIES = (16, 24, 80)
"""GiB of the GPUs for which the longest protein is sought."""


@dataclass(frozen=True)
class Case:
    """A shape on a mix of lengths."""

    shape: Shape
    mix: str

    @classmethod
    def parse(cls, text: str) -> Case:
        name, _, mix = text.partition(":")
        mix = mix or "proteome"
        return cls(shape_of("--shapes", name), mix) if mix in proteins.MIXES else _choose("--shapes", text)

    @property
    def thorough(self) -> bool:
        """Slow variants take part unasked."""
        return self.mix == "proteome" and self.shape.hidden <= 512

    @property
    def title(self) -> str:
        kind = f"{self.shape.layers} x {self.shape.hidden} x {self.shape.heads}"
        return f"{self.shape.name} ({kind}), {proteins.MIXES[self.mix]}"


def shape_of(flag: str, text: str) -> Shape:
    """A shape by its name, or that of an ESM-2 in a model folder."""
    return find(text) or _choose(flag, text)


def _choose(flag: str, text: str) -> NoReturn:
    sys.exit(
        f"{flag} {text}: choose SHAPE or SHAPE:MIX of {', '.join(SHAPES)} (or the folder of an ESM-2) and"
        f" {', '.join(proteins.MIXES)}"
    )


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    made = argparse.ArgumentParser(
        description=DOC, epilog=real_weights.HELP.replace("--model", "--shapes"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "--shapes",
        help=f"comma list of SHAPE or SHAPE:MIX (default: {CASES}; on a GPU {CUDA_CASES}); a SHAPE may be the folder of"
        " an ESM-2, whose own weights are then measured",
    )
    made.add_argument("--residues", type=int, help="residues in a sample (default: by shape, 4,000 or 6,000)")
    made.add_argument("--repeats", type=int, default=2, help="rounds (default: 2; slow variants run in the first only)")
    made.add_argument(
        "--variants", default="", help="comma list beside the reference (default: all; slow ones on small shapes)"
    )
    made.add_argument("--processes", default="150M", help="shapes for whole processes, '' for none (default: 150M)")
    made.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON", help="a peer package's environment")
    made.add_argument("--fasta", type=Path, help="proteome to draw proteins from")
    made.add_argument("--threads", type=int, default=None, help="processor threads (default: all)")
    made.add_argument("--device", default="auto", help="auto, cpu or cuda")
    made.add_argument(
        "--processor-time", action="store_true",
        help="count seconds of the processor, all threads together, not those of the clock: for shared machines",
    )
    made.add_argument("--add", action="store_true", help="keep the other cases that --output holds from this machine")
    made.add_argument("--work", type=Path, default=ROOT / "benchmark" / "work", help="where models are kept")
    made.add_argument("--output", type=Path, default=ROOT / "benchmark", help="where results go (the README's: docs)")
    args = made.parse_args(argv)
    args.peers = dict(peer.split("=", 1) for peer in args.peer)
    return args


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)
    from plm import stage

    threads = args.threads or stage.threads()
    timing.use_threads(threads)
    import torch
    from plm.model.device import choose_device

    torch.set_num_threads(threads)
    device = choose_device(args.device)
    cuda = device.type == "cuda"
    cases = [Case.parse(text) for text in (args.shapes or (CUDA_CASES if cuda else CASES)).split(",")]
    args.work.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"machine": timing.machine(threads, str(device)), "cases": [], "processes": []}
    if args.processor_time:
        results["machine"]["threads"] += " (seconds of the processor)"
    for case in cases:
        results["cases"].append(measure(case, args, device))
    if not cuda:
        for name in filter(None, args.processes.split(",")):
            results["processes"].append(measure_processes(shape_of("--processes", name), args))
    if args.add:
        results = publish.joined("bench_embed", results, args.output, {"cases": "title", "processes": "shape"})
    text = report(results)
    draw(results, args.output / "figures" / "bench_embed.png")
    publish.publish("bench_embed", results, text, args.output)
    print(text)


# ------------------------------------------------------------------------------------------------------------- engines


def measure(case: Case, args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Every variant on one case: speed beside the reference, share of the GEMM rate, errors."""
    import torch

    from benchmarks import embedding

    shape, cuda = case.shape, device.type == "cuda"
    folder = checkpoint(shape, args.work, dtype="bfloat16" if cuda else "float32")
    sequences = proteins.sample(case.mix, args.residues or shape.residues, args.fasta)
    lengths = [len(sequence) for sequence in sequences]
    say(f"{case.title}: {len(lengths)} proteins, {sum(lengths)} residues, longest {max(lengths)}")
    budgets = CUDA_BUDGETS if cuda else BUDGETS
    asked = set(filter(None, args.variants.split(",")))
    known = [one for one in embedding.variants(budgets, list(args.peers)) if not (cuda and "int8" in one.name)]
    names = asked or {variant.name for variant in known if case.thorough or not variant.once}
    names |= {embedding.REFERENCE, embedding.GEMM}
    chosen = [variant for variant in known if variant.name in names]
    synchronize = torch.cuda.synchronize if cuda else (lambda: None)
    expected: list[torch.Tensor] = []
    errors: dict[str, dict[str, float]] = {}
    weights = embedding.linear_weights(embedding.plain_model(shape, folder, device, "bf16"))
    rows = _rows(shape, lengths, sorted(budgets)[len(budgets) // 2])

    def timed(name: str) -> Callable[[], float]:
        encode = embedding.build(name, shape, folder, device, args.peers)
        if isinstance(encode, embedding.Peer):
            encode.processor_time = args.processor_time
        else:
            encode([sequence[:30] for sequence in sequences[:3]])  # warm up

        def once() -> float:
            found: list[torch.Tensor] = []
            seconds = timing.clock(
                lambda: found.extend(encode(sequences)), synchronize, processor=args.processor_time
            )
            if name == embedding.REFERENCE and not expected:
                expected.extend(found)
            if name not in errors:
                errors[name] = embedding.differences(found, expected)
            return encode.seconds if isinstance(encode, embedding.Peer) else seconds

        return once

    def multiply() -> float:
        return timing.clock(lambda: embedding.gemm(weights, rows), synchronize, processor=args.processor_time)

    runs = {v.name: multiply if v.name == embedding.GEMM else timed(v.name) for v in chosen}
    once = {variant.name for variant in chosen if variant.once}
    seconds = timing.interleaved(runs, args.repeats, once=once, say=say)
    operations = 2 * sum(weight.numel() for weight in weights) * sum(rows) + attention_flops(shape, lengths)
    found: dict[str, Any] = {
        "shape": shape.name, "mix": case.mix, "title": case.title, "proteins": len(lengths),
        "residues": sum(lengths), "longest": max(lengths), "variants": [],
    }
    for variant in chosen:
        taken = seconds[variant.name]
        speed = timing.ratio(seconds[embedding.REFERENCE], taken)
        share = timing.ratio(seconds[embedding.GEMM], taken)
        assert speed is not None and share is not None
        best = min(each for each in taken if each is not None)
        found["variants"].append(
            {
                "name": variant.name, "title": embedding.title(variant, shape), "seconds": taken,
                "speed": vars(speed), "gemm_share": vars(share), **errors.get(variant.name, {}),
                **({"residues_per_second": sum(lengths) / best, "tflops": operations / best / 1e12} if cuda else {}),
            }
        )
    if cuda:
        del runs, weights
        torch.cuda.empty_cache()
        found["longest_protein"] = {str(gib): longest_protein(folder, gib) for gib in GPU_MEMORIES}
    return found


def _rows(shape: Shape, lengths: Sequence[int], budget: int) -> list[int]:
    from plm.model.batching import plan_batches

    tokens = [length + (1 if shape.kind == "t5" else 2) for length in lengths]
    return [sum(tokens[index] for index in row) for row in plan_batches(tokens, budget)]


def longest_in_one_piece(loaded: Any, most: int) -> int:
    """Residues of the longest single protein that a loaded model encodes on its GPU, to within 256."""
    import torch
    from plm.model import encoder

    low, high = 0, most + 256
    while high - low > 256:
        middle = (low + high) // 512 * 256
        try:
            encoder.encode(loaded, ["A" * middle], budget=middle + 2)
            low = middle
        except torch.cuda.OutOfMemoryError:
            high = middle
        torch.cuda.empty_cache()
    return low


def longest_protein(folder: Path, gib: int, most: int = 65_536) -> int:
    """Residues of the longest single protein that a GPU of so much memory encodes in bf16, to within 256."""
    import torch
    from plm.model.checkpoint import load_model, resolve_model

    total = torch.cuda.mem_get_info()[1]
    if gib * 2**30 > total:
        return 0
    torch.cuda.set_per_process_memory_fraction(gib * 2**30 / total)
    try:
        loaded = load_model(resolve_model(str(folder), workdir=folder), dtype="bfloat16", device="cuda")
        return longest_in_one_piece(loaded, most)
    except torch.cuda.OutOfMemoryError:  # the model alone does not fit
        return 0
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


# ----------------------------------------------------------------------------------------------------- whole processes


def measure_processes(shape: Shape, args: argparse.Namespace) -> dict[str, Any]:
    """plm_embed beside extract.py, from FASTA to files, start and loading included; and on one short peptide."""
    import numpy as np

    from benchmarks import whole

    model = checkpoint(shape, args.work)
    sequences = proteins.sample("proteome", args.residues or shape.residues, args.fasta)
    names = [f"protein{number}" for number in range(1, len(sequences) + 1)]
    ended: dict[tuple[str, str], whole.Process] = {}
    with tempfile.TemporaryDirectory(prefix="bench_") as scratch:
        files = {
            "all": proteins.write_fasta(sequences, Path(scratch) / "all.fasta"),
            "start": proteins.write_fasta([sequences[0][:30]], Path(scratch) / "start.fasta"),
        }
        for what, fasta in files.items():
            for program in whole.PROGRAMS:
                ended[program, what] = whole.run(program, model, fasta, Path(scratch) / f"{program}_{what}")
                say(f"{shape.name}, {program}, {what}: {ended[program, what].seconds:.1f} s")
        ours, theirs = (
            whole.means(program, Path(scratch) / f"{program}_all", names) for program in ("stage", "extract")
        )
    cosines = (ours * theirs).sum(1) / (np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1))

    def working(program: str) -> float:
        return max(ended[program, "all"].seconds - ended[program, "start"].seconds, 1e-3)

    return {
        "shape": shape.name, "residues": sum(map(len, sequences)), "pooled_cosine": float(cosines.min()),
        "speed": ended["extract", "all"].seconds / ended["stage", "all"].seconds,
        "speed_after_start": working("extract") / working("stage"),
        "seconds": {f"{program}, {what}": process.seconds for (program, what), process in ended.items()},
        "memory_mib": {program: ended[program, "all"].memory_mib for program in whole.PROGRAMS},
    }


# -------------------------------------------------------------------------------------------------------------- report


def report(results: dict[str, Any]) -> str:
    """The page's section: one table a case, and one of whole processes."""
    lines = [
        "## Embedding", "",
        f"`scripts/benchmarks/bench_embed` on {publish.describe(results['machine'])}",
        "The same weights for all, random unless a title names a model. Variants take turns; medians over rounds,",
        "ranges in brackets (one figure: one round). *Speed*: beside the first line. *GEMM*: share of the rate that",
        "the matrix products of the linear layers alone reach in bf16. *Error*: relative L2 of all residues against",
        "the first line; *cosine*: of the protein whose mean differs most.", "",
        "![Speed of every variant beside fair-esm](figures/bench_embed.png)", "",
    ]
    for case in results["cases"]:
        lines += [
            f"### {case['title']}", "",
            f"{case['proteins']} proteins, {case['residues']:,} residues, the longest {case['longest']:,}.", "",
            _case_table(case), "",
        ]
        if "longest_protein" in case:
            fits = [f"{gib} GiB: {length:,}" for gib, length in case["longest_protein"].items() if length]
            lines += [f"Longest protein in bf16: {'; '.join(fits) or 'not even the model fits'}.", ""]
    if results["processes"]:
        lines += ["### Whole processes", "", _process_table(results["processes"]), ""]
    return "\n".join(lines)


def _case_table(case: dict[str, Any]) -> str:
    gpu = "tflops" in case["variants"][0]
    rows = []
    for variant in case["variants"]:
        share = timing.Ratio(**variant["gemm_share"])
        rows.append(
            [
                variant["title"], timing.Ratio(**variant["speed"]), f"{100 * share.median:.0f} %",
                f"{variant['relative_l2']:.1e}" if "relative_l2" in variant else "",
                f"{variant['pooled_cosine']:.6f}" if "pooled_cosine" in variant else "",
                *([f"{variant['residues_per_second']:,.0f}", f"{variant['tflops']:.0f}"] if gpu else []),
            ]
        )
    return publish.table(["", "speed", "GEMM", "error", "cosine", *(["residues/s", "TFLOP/s"] if gpu else [])], rows)


def _process_table(found: list[dict[str, Any]]) -> str:
    head = ["plm_embed beside extract.py, FASTA to files", "speed", "speed after the start", "peak memory", "cosine"]
    rows = []
    for each in found:
        memory = each["memory_mib"]["stage"] / each["memory_mib"]["extract"]
        rows.append(
            [
                f"{each['shape']}, {each['residues']:,} residues", f"{each['speed']:.2f}",
                f"{each['speed_after_start']:.2f}", f"{100 * memory:.0f} %", f"{each['pooled_cosine']:.6f}",
            ]
        )
    return publish.table(head, rows)


def draw(results: dict[str, Any], path: Path) -> None:
    """One panel a case: the speed of each variant beside the reference."""
    panels = []
    for case in results["cases"]:
        bars = []
        for variant in case["variants"]:
            kind = "ours" if variant["name"].startswith("ours") else "limit" if variant["name"] == "gemm" else "peer"
            bars.append((variant["title"], variant["speed"]["median"], kind))
        panels.append((case["title"], bars))
    publish.bars(panels, "speed beside the first line", path)
