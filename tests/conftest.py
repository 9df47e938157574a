"""Fixtures shared by all tests: tiny real checkpoints, the starter model, and a way to run a stage as its users do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import stage_runs
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ROOT / "tools"
# Machines differ in speed, and continuous integration must judge the same examples twice; at home they vary.
settings.register_profile("suite", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("suite")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.pop("PLM_OFFLINE", None)  # of the process that started this one: here the tests forbid the network
stage_runs.begin()


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """Bytes never become a test's name: processes that collect the same tests must find the same names."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def tiny_esm2() -> Path:
    return ROOT / "test-data" / "models" / "tiny_esm2"


@pytest.fixture(scope="session")
def tiny_t5() -> Path:
    return ROOT / "test-data" / "models" / "tiny_t5"


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where models are laid out for tests that share a loaded one."""
    return tmp_path_factory.mktemp("workplace")


@pytest.fixture(scope="session")
def starter() -> Path:
    return TOOLS / "models" / "starter"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(
            "REAL DATA ABSENT: ../shared/data is not beside this checkout, so this test proves nothing here"
        )
    return folder


@pytest.fixture(scope="session")
def run_stage() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs ``tools/<name>.py`` in a process of its own, as Galaxy does."""

    def run(
        name: str, *args: str | Path, env: dict[str, str] | None = None, timeout: float = 300
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(TOOLS / f"{name}.py"), *map(str, args)]
        done = stage_runs.run(command, env or {}, timeout)
        return done or subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, env={**os.environ, **(env or {})}
        )

    return run
