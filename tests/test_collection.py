"""The same tests have the same names, whenever and with whatever hash seed they are collected."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
COLLECT = """
import sys, time
shift = float(sys.argv[1])
for name in ("time", "time_ns"):
    real = getattr(time, name)
    setattr(time, name, lambda real=real, unit=1 if name == "time" else 10**9: real() + type(real())(shift * unit))
import pytest
sys.exit(pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *sys.argv[2:]]))
"""


def collected(*tests: str | Path, seed: int, shift: float, folder: Path = ROOT) -> subprocess.Popen[str]:
    """Starts a process that collects tests with a hash seed and a clock that is ``shift`` seconds ahead."""
    return subprocess.Popen(
        [sys.executable, "-c", COLLECT, str(shift), *map(str, tests)],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "PYTHONHASHSEED": str(seed), "PYTEST_ADDOPTS": ""},
    )


def names(*tests: str | Path, folder: Path = ROOT) -> tuple[list[str], list[str]]:
    """The names that two collections find."""
    both = [collected(*tests, seed=1, shift=0, folder=folder), collected(*tests, seed=2, shift=86_461.5, folder=folder)]
    found = []
    for process in both:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output[-2000:]
        found.append([line for line in output.splitlines() if "::" in line])
    return found[0], found[1]


def test_names_depend_on_neither_time_nor_hash_seed() -> None:
    first, second = names()
    assert first == second and len(first) > 1000


FLAKY = """
import gzip, os, time
import pytest
@pytest.mark.parametrize("x", {values})
def test_x(x):
    pass
"""


def test_the_comparison_sees_what_flakes(tmp_path: Path) -> None:
    cases = {
        "second": "[repr(gzip.compress(b'x'))]",
        "clock": "[int(time.time()) // 3600]",
        "order": "{str(number) for number in range(50)}",
        "noise": "[os.urandom(8).hex()]",
    }
    for name, values in cases.items():
        place = tmp_path / f"test_{name}.py"
        place.write_text(FLAKY.format(values=values))
        first, second = names(place, folder=tmp_path)
        assert len(first) == len(second) > 0 and first != second, name
    place.write_text(FLAKY.format(values="[repr(gzip.compress(b'x', mtime=0)), 1]"))
    first, second = names(place, folder=tmp_path)
    assert first == second
