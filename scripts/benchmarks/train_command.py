"""Measures ways to train against each other; see ``scripts/benchmarks/bench_train --help``."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import publish, real_weights, timing
from benchmarks.shapes import ROOT, SHAPES, find

DOC = """Measures ways to train against each other: speed in tokens a second and extra memory, as ratios.

    .plm/envs/dev/bin/python scripts/benchmarks/bench_train [--fasta yeast.fasta.gz] [--output docs]

LoRA fine-tuning on whole proteins and on windows of 33 residues, and pretraining. Each measurement is a process of its
own, so that its peak memory is known; ways take turns. Without --fasta, random sequences have yeast's lengths.
"""


@dataclass(frozen=True)
class Case:
    """What is trained.

    Attributes:
        title: For people.
        shape: Name of a shape, or the folder of an ESM-2 with real weights.
        task: As in :class:`benchmarks.training.Work`.
        steps: Optimiser steps a measurement.
        batch: Sequences in a step.
    """

    title: str
    shape: str
    task: str
    steps: int
    batch: int = 8

    @property
    def ways(self) -> tuple[str, ...]:
        plain = ("naive",) if self.task == "pretrain" else ("naive", "bucketed")
        return (*plain, "packed") if self.task == "pretrain" else (*plain, "packed", "packed-checkpointed")


CASES = {
    "35M": Case("35M, LoRA, proteins of up to 512 residues", "35M", "proteins", 2),
    "150M": Case("150M, LoRA, proteins of up to 512 residues", "150M", "proteins", 1),
    "windows": Case("35M, LoRA, windows of 33 residues", "35M", "windows", 24),
    "pretrain": Case("6 x 320 with 5 heads, pretraining, proteins of up to 512 residues", "8Mx5", "pretrain", 4),
    "tiny": Case("tiny, LoRA, whole proteins", "tiny", "proteins", 2),
    "tiny-windows": Case("tiny, LoRA, windows of 33 residues", "tiny", "windows", 3),
    "tiny-pretrain": Case("tiny, pretraining", "tiny", "pretrain", 2),
}
DEFAULT = "35M,150M,windows,pretrain"
WORKER = "--worker"


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    made = argparse.ArgumentParser(
        description=DOC, epilog=real_weights.HELP.replace("--model", "--cases"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "--cases", default=DEFAULT,
        help=f"comma list of {', '.join(CASES)}, or of folders of ESM-2 models (default: {DEFAULT})",
    )
    made.add_argument("--ways", default="", help="comma list of ways beside naive (default: all)")
    made.add_argument("--steps", type=int, default=None, help="optimiser steps a measurement (default: by case)")
    made.add_argument("--batch", type=int, default=None, help="sequences in a step (default: 8)")
    made.add_argument("--repeats", type=int, default=2, help="rounds (default: 2)")
    made.add_argument("--fasta", type=Path, help="proteome to draw proteins from")
    made.add_argument("--threads", type=int, default=None, help="processor threads (default: all)")
    made.add_argument("--add", action="store_true", help="keep the other cases that --output holds from this machine")
    made.add_argument("--work", type=Path, default=ROOT / "benchmark" / "work", help="where models are kept")
    made.add_argument("--output", type=Path, default=ROOT / "benchmark", help="where results go (the README's: docs)")
    made.add_argument(WORKER, default=None, help=argparse.SUPPRESS)
    args = made.parse_args(argv)
    args.chosen = [_case(name) for name in args.cases.split(",")]
    return args


def _case(name: str) -> Case:
    """A case by its name, or LoRA on whole proteins with the ESM-2 of a folder."""
    if name in CASES:
        return CASES[name]
    shape = find(name)
    if shape is None:
        sys.exit(f"--cases {name}: choose among {', '.join(CASES)}, or give the folder of an ESM-2")
    return Case(f"{shape.name}: LoRA, proteins of up to 512 residues", name, "proteins", 4)


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)
    if args.worker is not None:
        from benchmarks import training

        print(json.dumps(training.as_json(training.run(training.Work(**json.loads(args.worker))))))
        return
    from plm import stage

    from benchmarks.shapes import checkpoint

    threads = args.threads or stage.threads()
    timing.use_threads(threads)
    args.work.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"machine": timing.machine(threads), "cases": []}
    for case in args.chosen:
        checkpoint(find(case.shape) or SHAPES[case.shape], args.work)
        results["cases"].append(measure(case, args, threads))
    if args.add:
        results = publish.joined("bench_train", results, args.output, {"cases": "title"})
    text = report(results)
    draw(results, args.output / "figures" / "bench_train.png")
    publish.publish("bench_train", results, text, args.output)
    print(text)


def measure(case: Case, args: argparse.Namespace, threads: int) -> dict[str, Any]:
    """Every way on one case."""
    from benchmarks import training

    asked = set(filter(None, args.ways.split(",")))
    ways = [way for way in case.ways if not asked or way in asked or way == "naive"]
    titles = training.PRETRAINING_WAYS if case.task == "pretrain" else training.WAYS
    ways += [way for way in titles if way in asked and way not in ways]
    found: dict[str, list[training.Measured]] = {way: [] for way in ways}
    steps, batch = args.steps or case.steps, args.batch or case.batch

    def worker(way: str) -> Callable[[], float]:
        given = training.Work(
            case.shape, case.task, way, steps, batch, str(args.work), str(args.fasta or ""), threads,
        )

        def seconds_per_thousand() -> float:
            script = ROOT / "scripts" / "benchmarks" / "bench_train"
            command = [sys.executable, str(script), WORKER, json.dumps(asdict(given))]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode != 0:
                raise RuntimeError(f"{case.title}, {way} failed:\n{done.stderr[-2000:]}")
            found[way].append(training.Measured(**json.loads(done.stdout.splitlines()[-1])))
            return 1000 * found[way][-1].seconds / found[way][-1].tokens

        return seconds_per_thousand

    def say(text: str) -> None:
        print(f"{case.title}, {text} a thousand tokens", file=sys.stderr, flush=True)

    each = timing.interleaved({way: worker(way) for way in ways}, args.repeats, say=say)
    memory = {way: statistics.median(one.extra_mib for one in found[way]) for way in ways}
    rows = []
    for way in ways:
        speed = timing.ratio(each["naive"], each[way])
        assert speed is not None
        rows.append(
            {
                "name": way, "title": titles[way], "speed": vars(speed), "memory": memory[way] / memory["naive"],
                "measured": [training.as_json(one) for one in found[way]],
            }
        )
    return {"title": case.title, "steps": steps, "batch": batch, "ways": rows}


def report(results: dict[str, Any]) -> str:
    """The page's section: a table a case."""
    lines = [
        "## Training", "",
        f"`scripts/benchmarks/bench_train` on {publish.describe(results['machine'])}",
        "Random weights unless a title names a model. Each measurement is a process of its own; ways take turns;",
        "medians over the rounds, ranges in brackets. *Speed*: tokens a second, padding not counted, beside the first",
        "line. *Extra memory*: peak resident memory above that of the loaded model, beside the first line.",
        "", "![Speed and memory of every way to train](figures/bench_train.png)", "",
    ]
    for case in results["cases"]:
        rows = [
            [
                way["title"],
                timing.Ratio(**way["speed"]),
                _share(way["memory"]),
            ]
            for way in case["ways"]
        ]
        title = f"{case['title']}, {case['batch']} sequences a step"
        lines += [f"### {title}", "", publish.table(["", "speed", "extra memory"], rows), ""]
    return "\n".join(lines)


def _share(memory: float) -> str:
    """A share of memory as people read it: 1/6.2, or 1.30 where nothing is saved."""
    return f"{memory:.2f}" if memory >= 0.95 else f"1/{1 / memory:.1f}"


def draw(results: dict[str, Any], path: Path) -> None:
    """One panel a case: speed beside the first line."""
    panels = []
    for case in results["cases"]:
        bars = [
            (way["title"], way["speed"]["median"], "ours" if way["name"].startswith("packed") else "peer")
            for way in case["ways"]
        ]
        panels.append((case["title"], bars))
    publish.bars(panels, "tokens a second beside the first line", path)
