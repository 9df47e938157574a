"""The cluster of ``scripts/galaxy slurm``: two nodes on loopback, jobs on both, a node that dies with its job."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from plm.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from harness import slurm_trial  # noqa: E402
from harness.layout import Layout  # noqa: E402
from harness.slurm_trial import NODES, SlurmCluster  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster() -> Iterator[SlurmCluster]:
    missing = [name for name in slurm_trial.PROGRAMS if slurm_trial._program(name) is None]
    if missing:
        pytest.skip(f"NO {', '.join(missing)} HERE: apt-get install slurm-wlm munge; no cluster was tried")
    with tempfile.TemporaryDirectory(prefix="s", ignore_cleanup_errors=True) as short:  # pytest's own are too long
        folder = Path(short)
        (folder / ".plm").mkdir()
        made = SlurmCluster(folder / "c", Layout(folder))
        try:
            made.start()
            yield made
        finally:
            made.stop()


def test_a_path_too_long_for_slurms_sockets_is_one_line(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 20)
    folder.mkdir()
    with pytest.raises(UserError, match="too long for the sockets of Slurm's jobs"):
        SlurmCluster(folder / "c", Layout(folder)).start()


def listening(port: int) -> set[str]:
    """Addresses on which something listens at a port, as Linux writes them."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {line[1].split(":")[0] for line in lines if line[3] == "0A" and int(line[1].split(":")[1], 16) == port}


def state(cluster: SlurmCluster, number: str, wanted: str) -> dict[str, str]:
    """The job once it is in a state, or as it is after a minute."""
    deadline = time.monotonic() + 60
    while (job := cluster.job(number))["JobState"] != wanted and time.monotonic() < deadline:
        time.sleep(0.2)
    return job


def test_jobs_run_on_both_nodes_and_a_node_dies_with_its_own(cluster: SlurmCluster, tmp_path: Path) -> None:
    settings = dict(line.split("=", 1) for line in cluster.settings.read_text().splitlines())
    assert listening(int(settings["SlurmctldPort"])) == {"0100007F"}, "127.0.0.1 alone"
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/sh\necho begun > $SLURM_JOB_ID\nsleep 300\n")
    asked = ["-c", str(slurm_trial.NODE_CORES), "--no-requeue", "-D", str(tmp_path), str(script)]
    numbers = [cluster.ask("sbatch", *asked).split()[-1] for _ in NODES]
    places = {state(cluster, number, "RUNNING")["NodeList"]: number for number in numbers}
    assert set(places) == set(NODES)
    doomed, spared = places["node1"], places["node2"]
    deadline = time.monotonic() + 120
    while not (tmp_path / doomed).exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert (tmp_path / doomed).exists(), cluster.job(doomed)
    cluster.kill_node("node1")
    assert state(cluster, doomed, "NODE_FAIL")["JobState"] == "NODE_FAIL"
    assert cluster.job(spared)["JobState"] == "RUNNING" and cluster.state_of_node("node1") == "down"
    cluster.start_node("node1")
    again = cluster.ask("sbatch", *asked).split()[-1]
    assert state(cluster, again, "RUNNING")["NodeList"] == "node1"
    cluster.stop()
    assert not [process for node in NODES for process in cluster._of_node(node)], "nothing is left running"
