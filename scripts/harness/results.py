"""The results folder: every labelled output of the workflow, and what the screen says about them."""

from __future__ import annotations

import shutil
from pathlib import Path

from harness.flagship import GalaxyRun, Invocation

MARK = ".plm-results"


def collect(galaxy: GalaxyRun, invocation: Invocation, folder: Path) -> dict[str, Path]:
    """Downloads the outputs beside ``folder`` and puts them in its place once all are there; returns label to file."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    files = galaxy.download(invocation, partial)
    (partial / MARK).write_text("Results of scripts/run; the next run replaces this folder.\n")
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)
    return {label: folder / path.name for label, path in files.items()}


def summary(folder: Path) -> list[str]:
    """What the screen says: the files (verdict and figures follow)."""
    return [f"  {path.name:40s} {path.stat().st_size:>10d}" for path in sorted(folder.iterdir()) if path.name != MARK]
