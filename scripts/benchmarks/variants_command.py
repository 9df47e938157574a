"""Measures ways to score all substitutions of a protein; see ``scripts/benchmarks/bench_variants --help``."""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import publish, timing
from benchmarks.shapes import ROOT, SHAPES, checkpoint

if TYPE_CHECKING:
    import numpy as np

DOC = """Measures ways to score all substitutions of a protein: ratios, never absolute speeds.

    .plm/envs/dev/bin/python scripts/benchmarks/bench_variants [--shape 8M] [--residues 500] [--positions 50]

The ways take turns, round after round, over the same positions of the same random protein with the same random weights:
plm_variants (packed rows; fp32, and bfloat16 where the processor multiplies it), and plain loops over
transformers' model, one sequence after the other: a pass for each variant, as a loop over the rows of a table makes it,
and the thriftiest loop, a pass for each position (masked marginals) or one for all (wild-type marginals). Loops that
take a pass a variant are measured on some variants and scaled to all; how many, the table says.
"""
METHODS = ("masked-marginal", "wt-marginal")
LETTERS = "ACDEFGHIKLMNPQRSTVWY"
Scores = dict[tuple[int, str], float]
"""By 0-based position and new residue."""


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    made = argparse.ArgumentParser(description=DOC, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--shape", default="8M", choices=sorted(SHAPES), help="shape of the model (default: 8M)")
    made.add_argument("--residues", type=int, default=500, help="of the protein (default: 500)")
    made.add_argument("--positions", type=int, default=50, help="positions to score; 0: all (default: 50)")
    made.add_argument("--variants", type=int, default=20, help="variants of the loop over them (default: 20)")
    made.add_argument("--rounds", type=int, default=3, help="rounds (default: 3)")
    made.add_argument("--threads", type=int, default=None, help="processor threads (default: all)")
    made.add_argument("--device", default="auto", help="auto, cpu or cuda")
    made.add_argument("--work", type=Path, default=ROOT / "benchmark" / "work", help="where models are kept")
    made.add_argument("--output", type=Path, default=ROOT / "benchmark", help="where results go")
    return made.parse_args(argv)


class PlainLoop:
    """Transformers' model as it is, one sequence after the other."""

    def __init__(self, folder: Path, device: Any, precision: str, protein: str, places: Sequence[int]) -> None:
        import torch
        from transformers import AutoModelForMaskedLM, AutoTokenizer

        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.model = AutoModelForMaskedLM.from_pretrained(folder, dtype=dtype).eval().to(device)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        self.ids = torch.tensor([tokenizer(protein)["input_ids"]], device=device)
        self.mask = tokenizer.mask_token_id
        self.letters = tokenizer.convert_tokens_to_ids(list(LETTERS))
        self.protein, self.places = protein, places

    def values(self, hidden: int | None) -> np.ndarray:
        """(L, 20) log-probabilities, a position being masked."""
        import torch

        ids = self.ids.clone()
        if hidden is not None:
            ids[0, hidden + 1] = self.mask
        with torch.inference_mode():
            logits = self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, 1:-1]
            made: np.ndarray = logits[:, self.letters].float().log_softmax(-1).cpu().numpy()
        return made

    def thrifty(self, method: str) -> Scores:
        """A pass a position, or one for all."""
        scores: Scores = {}
        seen = None if method == "masked-marginal" else self.values(None)
        for place in self.places:
            row = (self.values(place) if seen is None else seen)[place]
            own = LETTERS.index(self.protein[place])
            scores.update({(place, x): float(row[n] - row[own]) for n, x in enumerate(LETTERS) if n != own})
        return scores

    def each_variant(self, method: str, most: int) -> Scores:
        """A pass a variant, for the first so many."""
        scores: Scores = {}
        for place in self.places:
            own = LETTERS.index(self.protein[place])
            for number, letter in enumerate(LETTERS):
                if number != own and len(scores) < most:
                    row = self.values(place if method == "masked-marginal" else None)[place]
                    scores[place, letter] = float(row[number] - row[own])
        return scores


class Suite:
    """What plm_variants does between loading the model and writing tables."""

    def __init__(self, folder: Path, device: Any, precision: str, protein: str, places: Sequence[int]) -> None:
        import tempfile as temporary

        from plm.model.capacity import capacity
        from plm.model.checkpoint import load_model, resolve_model
        from plm.model.embedding.representations import Wanted
        from plm.model.embedding.work_plan import first_budget

        self._work = temporary.TemporaryDirectory(prefix="bench_variants_")
        files = resolve_model(str(folder), workdir=Path(self._work.name))
        dtype = "bfloat16" if precision == "bf16" else "float32"
        self.loaded = load_model(files, purpose="masked_lm", dtype=dtype, device=device)
        self.room = capacity(self.loaded)
        self.tokens = first_budget(self.room, self.loaded, Wanted((self.loaded.layers,))).tokens
        self.protein, self.places = protein, places

    def scores(self, method: str) -> Scores:
        from types import SimpleNamespace

        import numpy as np
        from plm import stage
        from plm.jobs.variants.marginals import SequencePlan, WantedEffects
        from plm.jobs.variants.questions import MaskedReader

        profile = np.full((len(self.protein), 20), np.nan, np.float32)
        entropy = np.zeros(len(self.protein), np.float32)
        kept: Any = SimpleNamespace(of=lambda number: (profile, entropy), several={})
        plan = SequencePlan(0, self.protein, WantedEffects(set(self.places)), method, 0)
        MaskedReader(self.loaded, self.room, self.tokens, stage.log("bench_variants")).ask(plan.questions(kept))
        return {
            (place, LETTERS[number]): float(profile[place, number])
            for place in self.places for number in range(20) if np.isfinite(profile[place, number])
        }


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)
    from plm import stage

    threads = args.threads or stage.threads()
    timing.use_threads(threads)
    import torch
    from plm.model.device import choose_device, choose_precision

    torch.set_num_threads(threads)
    device = choose_device(args.device)
    generator = random.Random(1)
    protein = "".join(generator.choices(LETTERS, k=args.residues))
    places = sorted(generator.sample(range(args.residues), args.positions or args.residues))
    args.work.mkdir(parents=True, exist_ok=True)
    folder = checkpoint(SHAPES[args.shape], args.work)
    if not (folder / "vocab.txt").is_file():
        sys.exit(f"--shape {args.shape}: no masked language model; choose an ESM-2 shape")
    precisions = ["fp32", *(["bf16"] if choose_precision("auto", device) == "bf16" else [])]
    loops = {one: PlainLoop(folder, device, one, protein, places) for one in precisions}
    suites = {one: Suite(folder, device, one, protein, places) for one in precisions}
    synchronize = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    results: dict[str, Any] = {
        "machine": timing.machine(threads, str(device)), "shape": args.shape, "residues": args.residues,
        "positions": len(places), "precision": precisions[-1], "cases": [],
    }
    for method in METHODS:
        results["cases"].append(measure(method, args, loops, suites, places, synchronize))
    text = report(results)
    publish.publish("bench_variants", results, text, args.output)
    print(text)


def measure(
    method: str, args: argparse.Namespace, loops: dict[str, PlainLoop], suites: dict[str, Suite], places: Sequence[int],
    synchronize: Callable[[], None],
) -> dict[str, Any]:
    """Every way with one method: seconds by round, and the largest difference of its scores."""
    some = min(args.variants, 19 * len(places))
    whole = 19 * len(places) / some
    made: dict[str, Scores] = {}

    def timed(name: str, work: Callable[[], Scores], factor: float = 1.0) -> Callable[[], float]:
        def run() -> float:
            held: list[Scores] = []
            seconds = timing.clock(lambda: held.append(work()), synchronize)
            made[name] = held[0]
            return seconds * factor

        return run

    runs: dict[str, Callable[[], float]] = {}
    for one in loops:
        loop, suite = loops[one], suites[one]
        runs[f"plm_variants, {one}"] = timed(f"plm_variants, {one}", lambda suite=suite: suite.scores(method))
        thrifty = f"plain loop, {'a pass a position' if method == 'masked-marginal' else 'one pass for all'}, {one}"
        runs[thrifty] = timed(thrifty, lambda loop=loop: loop.thrifty(method))
        each = f"plain loop, a pass a variant, {one}"
        runs[each] = timed(each, lambda loop=loop: loop.each_variant(method, some), whole)
    for run in runs.values():
        run()  # the first call makes what later ones share
    seconds = timing.interleaved(runs, args.rounds, say=lambda text: print(f"{method}: {text}", file=sys.stderr))
    reference = made[next(name for name in made if name.startswith("plain") and "a variant" not in name)]
    size = max(abs(value) for value in reference.values())
    errors = {
        name: max(abs(value - reference[key]) for key, value in scores.items()) / size for name, scores in made.items()
    }
    return {"method": method, "seconds": seconds, "errors": errors, "measured": some, "variants": 19 * len(places)}


def report(results: dict[str, Any]) -> str:
    """Markdown: how many times faster plm_variants is than each loop of its precision."""
    lines = [
        "## Scoring substitutions", "",
        f"{results['shape']}, a protein of {results['residues']} residues, all 19 substitutions at "
        f"{results['positions']} positions. {publish.describe(results['machine'])}", "",
    ]
    for case in results["cases"]:
        rows = []
        itself = case["seconds"][f"plm_variants, {results['precision']}"]
        for name, seconds in case["seconds"].items():
            same = case["seconds"][f"plm_variants, {name.rpartition(', ')[2]}"]
            times = ["", ""] if name.startswith("plm_") else [str(timing.ratio(seconds, one)) for one in (same, itself)]
            rows.append([name, *times, f"{case['errors'][name]:.1e}"])
        lines += [
            f"**{case['method']}** (a pass a variant: {case['measured']} of {case['variants']} variants, scaled)", "",
            publish.table(
                ["way", "plm_variants is so many times faster", f"as it runs by itself ({results['precision']})",
                 "largest relative difference"], rows,
            ), "",
        ]
    return "\n".join(lines)
