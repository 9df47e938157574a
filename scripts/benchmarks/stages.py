"""Runs the suite's stages as Galaxy does, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def stage(name: str, *flags: object) -> float:
    """Runs a stage script; its wall-clock seconds. Ends the program with the stage's messages if it fails."""
    started = time.monotonic()
    command = [sys.executable, str(ROOT / "tools" / f"{name}.py"), *map(str, flags)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{name} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return time.monotonic() - started
