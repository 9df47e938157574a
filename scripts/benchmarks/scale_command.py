"""Takes many simulated proteins through the stages and counts what comes out; see
``scripts/benchmarks/lossless_at_scale --help``."""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

DOC = """Takes many simulated proteins through the stages and counts what comes out.

    .plm/envs/tools/bin/python scripts/benchmarks/lossless_at_scale [--count 200000] [--longest 36000] [--stages all]

Lengths run from 1 to --longest: most up to --usual, one of 4,000 beyond, in equal parts of the logarithm. A fifth of
the proteins repeat an earlier one, and some have odd letters or none. Every record must be named once, in order, in
the tables of each stage; embeddings are made again in the other ways of --ways, and compared. Peak memory is that of
each process; the stage memory embeds a twentieth of the proteins as well, with the same longest one, and compares.
Where most have up to 120 residues (--usual), 200,000 take 10 to 30 minutes a stage on a busy machine.
"""
ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "test-data"
TINY = str(DATA / "models" / "tiny_esm2")
LETTERS = "ACDEFGHIKLMNPQRSTVWY"
STAGES = ("preprocess", "embed", "predict", "sites", "memory")
WAYS = ("order", "rows", "threads")
LONG = 4000
"""Of so many proteins one is longer than usual."""
FEWER = 20
"""The stage memory compares with a set that is smaller by so much."""
MORE_MEMORY = 1.1
"""What the peak of the larger set may be of the smaller one's."""


@dataclass(frozen=True)
class Simulated:
    """Proteins as they are written.

    Attributes:
        ids: Ids in order.
        texts: Letters of each, odd ones and none at all among them.
    """

    ids: list[str]
    texts: list[str]

    def write(self, path: Path, order: Sequence[int] | None = None) -> Path:
        """Writes them as FASTA, in their order or another."""
        with path.open("w") as opened:
            for number in range(len(self.ids)) if order is None else order:
                opened.write(f">{self.ids[number]}\n{self.texts[number]}\n")
        return path


def simulate(count: int, longest: int, seed: int, usual: int = 600) -> Simulated:
    """Proteins of 1 to ``longest`` residues, most of them up to ``usual``; the middle one is the longest."""
    chance = random.Random(seed)
    usual = min(usual, longest)
    texts: list[str] = []
    for number in range(count):
        if number and chance.random() < 0.2:
            texts.append(chance.choice(texts))
            continue
        length = chance.randint(1, usual)
        if number % LONG == LONG // 2:
            length = round(usual * (longest / usual) ** chance.random())
        length = longest if number == count // 2 else length
        text = "".join(chance.choices(LETTERS, k=length))
        odd = chance.random()
        if odd < 0.02:
            place = chance.randrange(length)
            text = text[:place] + chance.choice("XBZUOJ") + text[place + 1 :]
        elif odd < 0.025:
            text = text.lower()
        elif odd < 0.03:
            text += "*"
        elif odd < 0.032:
            text = ""
        elif odd < 0.034:
            text = text[: length // 2] + "?" + text[length // 2 :]
        texts.append(text)
    return Simulated([f"p{number}" for number in range(count)], texts)


class Runs:
    """Runs stages and notes what they cost."""

    def __init__(self, folder: Path, ways: Sequence[str], asked: argparse.Namespace) -> None:
        self.folder, self.ways, self.asked = folder, ways, asked

    def run(self, stage: str, name: str, *flags: str | Path, slots: int = 1) -> int:
        """Runs one, or ends with what it said; the most memory that it took, in MiB."""
        threads = str(slots)
        environment = os.environ | {"GALAXY_SLOTS": threads, "OMP_NUM_THREADS": threads, "PLM_CHECKPOINT_DIR": ""}
        started = time.monotonic()
        with (self.folder / f"{name}.log").open("w") as said:
            script = str(ROOT / "tools" / f"{stage}.py")
            process = subprocess.Popen(
                [sys.executable, script, *map(str, flags)], stdout=said, stderr=subprocess.STDOUT, env=environment
            )
            _, status, usage = os.wait4(process.pid, 0)
        if status:
            sys.exit(f"{name} failed:\n{(self.folder / f'{name}.log').read_text()[-2000:]}")
        peak = usage.ru_maxrss // 1024
        print(f"{name}: {time.monotonic() - started:.0f} s, at most {peak} MiB", flush=True)
        return peak


def column(path: Path, name: str) -> list[str]:
    """A column of a tab-separated table."""
    with path.open() as opened:
        at = opened.readline().rstrip("\n").split("\t").index(name)
        return [line.rstrip("\n").split("\t")[at] for line in opened]


def check(holds: bool, what: str) -> None:
    """Ends where something was lost."""
    if not holds:
        sys.exit(f"WRONG: {what}")
    print(f"  {what}", flush=True)


def vectors(path: Path) -> dict[str, np.ndarray]:
    """The vector of each id."""
    from plm.data.embeddings.files import read_embeddings

    held = read_embeddings(path)
    return dict(zip(map(str, held.ids), held.matrix(), strict=True))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=DOC, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200_000, help="proteins; default: 200,000")
    parser.add_argument("--longest", type=int, default=36_000, help="residues of the longest; default: 36,000")
    parser.add_argument("--usual", type=int, default=600, help="residues that most have at most; default: 600")
    parser.add_argument("--stages", default="all", help=f"of {', '.join(STAGES)}; default: all")
    parser.add_argument("--ways", default="order,rows,threads", help="of embedding again; default: order,rows,threads")
    parser.add_argument("--seed", type=int, default=1, help="of the proteins")
    args = parser.parse_args(argv)
    wanted = STAGES if args.stages == "all" else tuple(args.stages.split(","))
    made = simulate(args.count, args.longest, args.seed, args.usual)
    with tempfile.TemporaryDirectory(prefix="plm_scale_") as name:
        folder = Path(name)
        runs = Runs(folder, tuple(filter(None, args.ways.split(","))), args)
        proteins = made.write(folder / "proteins.fasta")
        for stage in STAGES:
            if stage in wanted:
                globals()[f"_{stage}"](runs, made, proteins)


def _preprocess(runs: Runs, made: Simulated, proteins: Path) -> None:
    table, rejected = runs.folder / "dataset.tsv", runs.folder / "rejected.tsv"
    runs.run(
        "plm_preprocess", "preprocess", "--input", proteins, "--labels", "none", "--split", "random",
        "--duplicate-sequences", "keep", "--dataset", table, "--rejected", rejected,
        "--leakage", runs.folder / "leakage.tsv", "--report", runs.folder / "report.md",
    )
    told = zip(column(rejected, "id"), column(rejected, "what"), strict=True)
    ids, refused = column(table, "id"), [one for one, what in told if what != "changed"]
    check(len(ids) + len(refused) == len(made.ids), f"{len(ids)} kept and {len(refused)} rejected are all")
    check(set(ids).isdisjoint(refused) and set(ids) | set(refused) == set(made.ids), "each is named once")
    places = {one: number for number, one in enumerate(made.ids)}
    check(all(places[a] < places[b] for a, b in pairwise(ids)), "they keep their order")


def _embed(runs: Runs, made: Simulated, proteins: Path) -> None:
    def embed(name: str, source: Path, *more: str, slots: int = 1) -> Path:
        made_file, status = runs.folder / f"{name}.h5", runs.folder / f"{name}.tsv"
        runs.run(
            "plm_embed", name, "--input", source, "--model", TINY, "--device", "cpu", "--precision", "fp32",
            "--embeddings", made_file, "--status", status, *more, slots=slots,
        )
        return made_file

    first = vectors(embed("embed", proteins))
    ids, said = column(runs.folder / "embed.tsv", "id"), column(runs.folder / "embed.tsv", "status")
    check(ids == made.ids, f"the status names all {len(ids)} records in order")
    accepted = [one for one, state in zip(ids, said, strict=True) if state == "embedded"]
    check(list(first) == accepted, f"{len(accepted)} embeddings are those of the records that the status accepts")

    def shuffled() -> Path:
        order = list(range(len(made.ids)))
        random.Random(7).shuffle(order)
        return embed("shuffled", made.write(runs.folder / "shuffled.fasta", order))

    others: dict[str, tuple[str, Callable[[], Path]]] = {
        "order": ("in another order", shuffled),
        "rows": ("in rows of 500 tokens", lambda: embed("rows", proteins, "--batch-tokens", "500")),
        "threads": ("with two threads", lambda: embed("threads", proteins, slots=2)),
    }
    for how, again in (others[way] for way in runs.ways):
        other = vectors(again())
        check(other.keys() == first.keys(), f"{how}: the same records")
        worst = max(float(np.abs(first[one] - other[one]).max()) for one in first)
        same = sum(bool((first[one] == other[one]).all()) for one in first)
        check(worst < 2e-5, f"{how}: {same} of {len(first)} equal to the bit, the largest difference is {worst:.1e}")


def _predict(runs: Runs, made: Simulated, proteins: Path) -> None:
    answers, status = runs.folder / "predictions.tsv", runs.folder / "predict.tsv"
    runs.run(
        "plm_predict", "predict", "--input", proteins, "--model", TINY, "--bundle", DATA / "bundle_tiny_classes.zip",
        "--device", "cpu", "--precision", "fp32", "--predictions", answers, "--status", status,
    )
    ids = column(status, "id")
    check(ids == made.ids, f"the status names all {len(ids)} records in order")
    answered = list(dict.fromkeys(column(answers, "id")))
    places = {one: number for number, one in enumerate(made.ids)}
    check(all(places[a] < places[b] for a, b in pairwise(answered)), "answers keep their order")
    print(f"  {len(answered)} of {len(ids)} answered")


def _sites(runs: Runs, made: Simulated, proteins: Path) -> None:
    table, status = runs.folder / "sites.tsv", runs.folder / "sites_status.tsv"
    runs.run(
        "plm_classify_sites", "sites", "--input", proteins, "--model", TINY, "--bundle", DATA / "bundle_tiny_site.zip",
        "--device", "cpu", "--precision", "fp32", "--residues", "K", "--sites", table, "--status", status,
    )
    ids = column(status, "id")
    check(ids == made.ids, f"the status names all {len(ids)} records in order")
    places = {one: number for number, one in enumerate(made.ids)}
    listed: dict[str, int] = {}
    for one in column(table, "protein"):
        listed[one] = listed.get(one, 0) + 1
    check(all(places[a] < places[b] for a, b in pairwise(listed)), "sites keep the order of their proteins")
    lysines = {one: text.upper().count("K") for one, text in zip(made.ids, made.texts, strict=True)}
    rejected = {one for one, state in zip(ids, column(status, "status"), strict=True) if state == "rejected"}
    check(
        listed == {one: count for one, count in lysines.items() if count and one not in rejected},
        f"each of {sum(listed.values())} lysines of {len(ids) - len(rejected)} proteins is listed once",
    )


def _memory(runs: Runs, made: Simulated, proteins: Path) -> None:
    asked = runs.asked
    fewer = simulate(len(made.ids) // FEWER, asked.longest, asked.seed + 1, asked.usual)
    peaks = [
        runs.run(
            "plm_embed", name, "--input", source, "--model", TINY, "--device", "cpu", "--precision", "fp32",
            "--embeddings", runs.folder / f"{name}.h5", "--status", runs.folder / f"{name}.tsv",
        )
        for name, source in (("fewer", fewer.write(runs.folder / "fewer.fasta")), ("all", proteins))
    ]
    check(
        peaks[1] <= MORE_MEMORY * peaks[0],
        f"{len(made.ids)} proteins take {peaks[1] / peaks[0]:.3f} times the memory of {len(fewer.ids)}",
    )
