"""What it costs to read a corpus, keep clusters apart, plan an epoch and draw rows, in a process of its own.

The simulated corpus has the lengths of the yeast proteome, taxa of very uneven sizes, three domains, clusters of three
on average, and one record in fifty that repeats an earlier one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.proteins import LETTERS, yeast_length

_BLOCK = 10_000
_HEADER = ("id", "taxon", "domain", "cluster", "sequence")
_DOMAINS = ("Bacteria", "Eukaryota", "Archaea")


def simulate(count: int, seed: int = 0) -> Iterator[list[tuple[str, ...]]]:
    """Blocks of records: id, taxon, domain, cluster, sequence."""
    generator = np.random.default_rng(seed)
    lengths = np.array([yeast_length(share) for share in np.linspace(0, 1, 4001)])
    letters = np.frombuffer(LETTERS.encode(), np.uint8)
    for start in range(0, count, _BLOCK):
        size = min(_BLOCK, count - start)
        each = generator.choice(lengths, size=size)
        text = letters[generator.integers(0, 20, size=int(each.sum()))].tobytes().decode()
        ends = np.cumsum(each).tolist()
        taxa = np.minimum(generator.zipf(1.3, size), 50_000).tolist()
        block: list[tuple[str, ...]] = []
        for number, (length, end, taxon) in enumerate(zip(each.tolist(), ends, taxa, strict=True)):
            sequence = text[end - length : end]
            if number % 50 == 49:
                sequence = block[number // 2][-1]
            block.append((f"protein{start + number}", str(taxon), _DOMAINS[taxon % 3],
                          f"family{(start + number) // 3}", sequence))
        yield block


def write(count: int, kind: str, path: Path) -> Path:
    """Writes a simulated corpus block by block: ``tsv``, ``fasta`` or ``parquet`` (one row group)."""
    if kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as parquet

        blocks = [pa.table(dict(zip(_HEADER, zip(*block, strict=True), strict=True))) for block in simulate(count)]
        parquet.write_table(pa.concat_tables(blocks), path, row_group_size=count)
        return path
    with path.open("w") as opened:
        if kind == "tsv":
            opened.write("\t".join(_HEADER) + "\n")
        for block in simulate(count):
            for record in block:
                if kind == "tsv":
                    opened.write("\t".join(record) + "\n")
                else:
                    identity, taxon, domain, cluster, sequence = record
                    opened.write(f">{identity} OX={taxon} domain={domain} cluster={cluster}\n{sequence}\n")
    return path


def measure(path: Path, folder: Path, budget: int = 8192, rows: int = 200) -> dict[str, float]:
    """Peak memory in MiB and seconds of each step, in this process."""
    from plm.jobs.distill.batches import DistillationRows
    from plm.masked_lm.cluster_split import hold_out_clusters
    from plm.masked_lm.corpus_store import open_corpus
    from plm.masked_lm.masks import MaskPlan
    from plm.model.families import FAMILIES
    from plm.model.families.esm2 import ESM2_VOCABULARY

    found: dict[str, float] = {"MiB at the start": _peak()}
    started = time.monotonic()

    def lap(name: str) -> None:
        nonlocal started
        found[f"seconds to {name}"] = time.monotonic() - started
        found[f"MiB after {name}"] = _peak()
        started = time.monotonic()

    vocabulary = {token: number for number, token in enumerate(ESM2_VOCABULARY)}
    store = open_corpus(path, folder, FAMILIES[0], vocabulary)
    lap("read")
    split = hold_out_clusters(
        store, share=0.02, identity=0.3, seed=1, threads=1, parts=2, exclude_related=False
    )  # MMseqs2 has a process of its own
    lap("split")
    drawn = DistillationRows(store, split.train, 10**6, masks=MaskPlan(sets=2), budget=budget)
    plan = drawn.rows_of(0)
    lap("plan")
    for number in range(0, min(len(plan), 50 * rows), 50):
        drawn[number]
    lap("draw")
    store.frequencies(split.train)
    lap("count")
    found |= {"proteins": len(store), "residues": store.residues, "rows": len(plan), "draws": rows}
    return found


def _peak() -> float:
    """Highest resident memory in MiB; not getrusage's, which a process takes over from the one that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 1024


def in_a_process(path: Path, folder: Path) -> dict[str, float]:
    """As :func:`measure`, in a new process."""
    roots = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2] / "tools")]
    code = (
        f"import sys, json; sys.path[:0] = {roots!r}\nfrom pathlib import Path\n"
        "from benchmarks.corpus_command import measure\n"
        f"print(json.dumps(measure(Path({str(path)!r}), Path({str(folder)!r}))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=os.environ)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--kind", choices=("tsv", "fasta", "parquet"), default="tsv")
    parser.add_argument("--folder", type=Path, help="for the simulated corpus, about 500 bytes a record")
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="corpus_", dir=given.folder) as scratch:
        path = write(given.records, given.kind, Path(scratch) / f"simulated.{given.kind}")
        print(f"{given.records:,} records, {path.stat().st_size / 2**20:,.0f} MiB of {given.kind}")
        for name, value in in_a_process(path, Path(scratch)).items():
            print(f"{name:24s} {value:14,.1f}")


if __name__ == "__main__":
    main()
