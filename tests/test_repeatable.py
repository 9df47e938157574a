"""The same input, seed and version give the same bytes: twice, in two folders, at two times, with two hash seeds."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

TIMES = re.compile(rb"\d[\d.,]*(?:e[-+]\d+)? (?:s|ms|min|h)\b(?: \d+ (?:s|min)\b)?|about \d+ MiB|\d[\d.]* \w+/s")
COMMANDS = """
plm_split_fasta --input data/simulated_query.fasta --parts 3 --table parts.tsv --output-dir parts
plm_preprocess --input data/simulated_windows.fasta --task site --labels LABEL= --split homology --dataset dataset.tsv
  --rejected rejected.tsv --leakage leakage.tsv --report preprocess.md --html preprocess.html --figure preprocess.png
plm_embed --input data/simulated_query.fasta --model data/models/tiny_esm2 --embeddings e.h5 --status status.tsv CPU
plm_embed --input data/simulated_query.fasta --model data/models/tiny_esm2 --embeddings e.npz --format npz CPU
plm_embed --input data/dataset_sites.tabular --model data/models/tiny_esm2 --pooling sites --embeddings e.parquet
  --format parquet CPU
plm_embed --input data/simulated_query.fasta --model data/models/tiny_esm2 --pooling residues --embeddings r.h5
  --format hdf5-uniprot CPU
plm_finetune --dataset data/dataset_sites.tabular --model data/models/tiny_esm2 --epochs 1 --bundle bundle.zip
  --predictions valid.tsv --history history.tsv --curves curves.png --report finetune.md --predictor model CPU
plm_predict --input data/simulated_query.fasta --bundle data/bundle_tiny_classes.zip --model
  data/models/tiny_esm2 --predictions predictions.tsv --report predict.md --html predict.html CPU
plm_classify_sites --input data/simulated_query.fasta --bundle bundle.zip --model data/models/tiny_esm2 --sites
  sites.tsv --gff sites.gff3 --figure sites.png --status sites_status.tsv --report sites.md CPU
plm_distill --input data/simulated_windows.fasta --teacher data/models/tiny_esm2 --student-layers 1 --student-width 16
  --student-heads 2 --steps 4 --warmup-steps 1 --batches plain --holdout 0.2 --batch-tokens 600 --output-model
  student.zip --output-cache cache.zip --mask-sets 1 --history distill.tsv --report distill.md CPU
plm_pretrain --input data/simulated_windows.fasta --preset tiny --steps 4 --warmup-steps 1 --holdout 0.2 --batch-tokens
  600 --output-model model.zip --history pretrain.tsv --figure pretrain.png --html pretrain.html CPU
plm_convert --input data/fair_esm2_tiny.pt --output converted.zip --report convert.md
"""
SCRIPT = """
import importlib, os, sys
sys.path.insert(0, sys.argv[1])
for line in sys.stdin.read().splitlines():
    name, *flags = line.split()
    importlib.import_module(name).run(flags)
"""


def outputs(folder: Path) -> dict[str, bytes]:
    """Files by name; texts of reports without times."""
    files = [path for path in folder.rglob("*") if path.is_file() and "data" not in path.relative_to(folder).parts]
    return {
        str(path.relative_to(folder)): TIMES.sub(b"~", path.read_bytes())
        if path.suffix in (".md", ".html") else path.read_bytes()
        for path in files
    }


@pytest.mark.slow
def test_the_same_bytes_twice(root: Path, tmp_path: Path) -> None:
    lines = COMMANDS.replace("\n  ", " ").replace(" CPU", " --device cpu --precision fp32").strip()
    made = []
    for number in (1, 2):
        folder = tmp_path / ("a" if number == 1 else "another, with a longer name")
        folder.mkdir()
        (folder / "data").symlink_to(root / "test-data")
        environment = {
            **os.environ, "PYTHONHASHSEED": str(number), "GALAXY_SLOTS": "1", "PLM_CHECKPOINT_DIR": "",
            "TMPDIR": str(tmp_path),
        }
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(root / "tools")], input=lines, cwd=folder, env=environment,
            capture_output=True, text=True, check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        made.append(outputs(folder))
        time.sleep(2.1)  # archives know times to two seconds
    first, second = made
    assert first.keys() == second.keys() and len(first) > 35
    assert [name for name in first if first[name] != second[name]] == []
