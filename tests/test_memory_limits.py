"""The memory that a job may take is seen whoever limits it; where even the least does not fit, one line says how much
would do, with the exit code that Galaxy knows."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from plm import failures, memory_limits, stage
from plm.errors import MemoryShortage

MIB = 2**20
NONE = "9223372036854771712"
"""What cgroup v1 says where nothing is limited."""


def machine(root: Path, groups: str, mounts: list[str], limits: dict[str, str]) -> Path:
    """A tree of proc and group files as kernels write them."""
    files = {
        "proc/self/cgroup": groups,
        "proc/self/mountinfo": "".join(f"{30 + number} 24 0:26 {line}\n" for number, line in enumerate(mounts)),
        **{name: f"{text}\n" for name, text in limits.items()},
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


SECOND = "/ /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
FIRST = "/ /sys/fs/cgroup/memory rw,nosuid shared:9 - cgroup cgroup rw,memory"
CPU = "/ /sys/fs/cgroup/cpu rw,nosuid shared:9 - cgroup cgroup rw,cpu"
SLURM = "system.slice/slurmstepd.scope/job_7"


@pytest.mark.parametrize(
    ("groups", "mounts", "limits", "mib"),
    [
        ("0::/\n", [SECOND], {"sys/fs/cgroup/memory.max": f"{700 * MIB}"}, 700),
        ("0::/\n", [SECOND], {"sys/fs/cgroup/memory.max": "max"}, None),
        (
            f"0::/{SLURM}/step_0/user/task_0\n", [SECOND],
            {f"sys/fs/cgroup/{SLURM}/step_0/user/task_0/memory.max": "max",
             f"sys/fs/cgroup/{SLURM}/memory.max": f"{500 * MIB}", "sys/fs/cgroup/memory.max": f"{900 * MIB}"}, 500,
        ),
        (
            "5:memory:/slurm/uid_7/job_9\n4:cpu:/other\n", [CPU, FIRST],
            {"sys/fs/cgroup/memory/slurm/uid_7/job_9/memory.limit_in_bytes": f"{300 * MIB}",
             "sys/fs/cgroup/memory/slurm/memory.limit_in_bytes": NONE,
             "sys/fs/cgroup/memory/memory.limit_in_bytes": NONE}, 300,
        ),
        ("5:memory:/\n", [FIRST], {"sys/fs/cgroup/memory/memory.limit_in_bytes": NONE}, None),
        (  # docker with cgroup v1: the group that is mounted is the container's own
            "5:memory:/docker/abc\n", ["/docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory"],
            {"sys/fs/cgroup/memory/memory.limit_in_bytes": f"{256 * MIB}"}, 256,
        ),
        (  # podman without a namespace for groups: the path is the host's
            "0::/user.slice/libpod-abc.scope\n", [SECOND], {"sys/fs/cgroup/memory.max": f"{128 * MIB}"}, 128,
        ),
        ("5:cpu,cpuacct:/x\n", [CPU], {"sys/fs/cgroup/cpu/x/memory.limit_in_bytes": f"{MIB}"}, None),
        ("", [], {}, None),
    ],
    ids=["v2", "unlimited", "slurm", "v1", "v1 unlimited", "docker v1", "podman", "another controller", "none"],
)
def test_groups_limit_the_memory(
    groups: str, mounts: list[str], limits: dict[str, str], mib: int | None, tmp_path: Path
) -> None:
    root = machine(tmp_path, groups, mounts, limits)
    assert list(memory_limits._groups(root)) or mib is None
    assert min(memory_limits._groups(root), default=None) == (None if mib is None else mib * MIB)


def test_galaxys_number_holds_within_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GALAXY_MEMORY_MB", "5000")
    monkeypatch.setattr(memory_limits, "limit", lambda: 900 * MIB)
    assert stage.memory_mib() == 900
    monkeypatch.setattr(memory_limits, "limit", lambda: None)
    assert stage.memory_mib() == 5000


LIMITED = """
import resource, sys
sys.path.insert(0, {tools!r})
resource.setrlimit(resource.{kind}, (3 * 2**30, 3 * 2**30))
from plm import memory_limits, stage
held = bytearray(2**28)
print(memory_limits.limit() // 2**20, stage.memory_mib(), memory_limits.would_do(2**20))
"""


@pytest.mark.parametrize("kind", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_ulimit_limits_the_memory(kind: str, root: Path) -> None:
    script = LIMITED.format(tools=str(root / "tools"), kind=kind)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    limit, memory, would_do = map(int, done.stdout.split())
    assert 2600 < limit <= 3072 and memory <= limit and 256 < would_do < 1000


def test_a_shortage_is_one_line_with_its_own_exit_code() -> None:
    failure = failures.explain(MemoryShortage("The memory does not hold it", fix="Give the job 70 MiB of memory"))
    assert failure is not None and failure.kind == "memory" and "70 MiB" in str(failure.error)


CAPPED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]) * 2**20, int(sys.argv[1]) * 2**20))
sys.path.insert(0, {tools!r})
import runpy
sys.argv = ["plm_embed", *sys.argv[2:]]
runpy.run_path({tools!r} + "/plm_embed.py", run_name="__main__")
"""


@pytest.mark.slow
def test_what_would_do_does(root: Path, tiny_esm2: Path, tmp_path: Path) -> None:
    """Caps from too small upwards: a line that names more, or the whole protein in windows that fit."""
    proteins = tmp_path / "proteins.fasta"
    proteins.write_text(f">titin\n{'MKTAYIAKQRQISFVKSHFSRQ' * 1637}\n")
    mib, asked = 900, []
    while True:
        flags = [
            "--input", str(proteins), "--model", str(tiny_esm2), "--embeddings", str(tmp_path / "e.h5"), "--device",
            "cpu", "--precision", "fp32", "--status", str(tmp_path / "s.tsv"),
        ]
        script = CAPPED.format(tools=str(root / "tools"))
        done = subprocess.run(
            [sys.executable, "-c", script, str(mib), *flags], capture_output=True, text=True, check=False,
        )
        if done.returncode == 0:
            break
        assert done.returncode == 42 and done.stderr.count("\n") == 1, done.stderr[-2000:]
        number = max(map(int, re.findall(r"(\d+) MiB", done.stderr)))
        assert number > mib, done.stderr
        asked.append(number)
        mib = number
        assert len(asked) < 6, asked
    assert (tmp_path / "s.tsv").read_text().count("embedded") == 1
