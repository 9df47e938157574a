"""A cluster rehearsed: Debian's Slurm with two nodes on loopback, and a Galaxy that sends its jobs there by the shipped
rules of ``tools/tpv``.

What must hold: a proteome that is split, embedded by jobs on both nodes and merged equals the one embedded in one job,
byte for byte; and a training that is killed half-way by its walltime, by its memory limit or with its node goes on from
its checkpoint when Galaxy resubmits it, and ends with the files of a training that nothing disturbed.

Everything lies below ``.plm/slurm`` and listens on 127.0.0.1 only. It takes about ten minutes on two cores.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plm import kept
from plm.errors import UserError

from harness import processes
from harness.install import Installer
from harness.layout import Layout, child_environment
from harness.processes import ProcessIdentity
from harness.server import GalaxyServer

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel")
NODES = ("node1", "node2")
NODE_CORES, NODE_MEMORY = 2, 16384  # what each node says it has; MiB
_LONGEST_SOCKET = 107  # letters of a path that Linux binds a socket to
POLL = 20.0  # seconds after which Slurm looks at a job's memory, and again; more where programs start slowly
PROTEOME, PARTS = "simulated_proteins.fasta", 4
LINKED = ("scripts", "tools", "locks", "test-data", "workflows")
KILLS = ("walltime", "memory", "node")
MINUTES_BETWEEN = 0.05  # checkpoints of these short trainings
LEFT = 60.0  # seconds that a training goes on after that, so that each kill finds it half-way

RESUBMIT = {
    "condition": "(walltime_reached or memory_limit_reached or unknown_error) and attempt <= 3",
    "destination": "tpv_dispatcher",
}
RULES: dict[str, Any] = {
    "global": {
        "context": {
            "plm_gpus": 0,
            "plm_gpu_job_cores": NODE_CORES,
            "plm_cpu_job_cores": NODE_CORES,
            "plm_model_sizes": {"tiny_esm2": 1},
        }
    },
    "tools": {
        "__DATA_FETCH__": {"scheduling": {"require": ["here"]}},
        "(.*/plm_suite/)?plm_.*": {
            "resubmit": {"again": RESUBMIT},
            # What a history's name asks for befalls the first attempt of its jobs.
            "rules": [
                {
                    "id": "trial_first_attempt",
                    "if": "'memory' in job.history.name and 'resubmitted' not in [s.state for s in job.state_history]",
                    "mem": 0.25,
                }
            ],
        },
    },
    "destinations": {
        "here": {"runner": "local", "scheduling": {"require": ["here"]}},
        "slurm": {
            "runner": "cli",
            "max_accepted_cores": NODE_CORES,
            "max_accepted_mem": NODE_MEMORY // 1024,
            "max_accepted_gpus": 0,
            "params": {
                "shell_plugin": "LocalShell",
                "job_plugin": "Slurm",
                "job_ncpus": "{int(cores)}",
                "job_--mem": "{int(mem * 1024)}",
                "job_--no-requeue": "",  # Galaxy resubmits, and its users read why
                "embed_metadata_in_job": "false",
            },
        },
    },
}


def rehearse(layout: Layout, say: Callable[[str], None], kills: Sequence[str] = KILLS) -> int:
    """Starts cluster and Galaxy, runs everything; returns 0 if all of it held, also where there is no Slurm (said)."""
    missing = [name for name in PROGRAMS if _program(name) is None]
    if missing:
        say(f"SKIPPED, NOTHING IS SHOWN: no {', '.join(missing)} here (Debian: apt-get install slurm-wlm munge)")
        return 0
    Installer(layout, say).install(["tools", "galaxy"])
    root = layout.state / "slurm"
    shutil.rmtree(root, ignore_errors=True)
    begun = time.monotonic()

    def tell(line: str) -> None:
        say(f"[{time.monotonic() - begun:4.0f} s] {line}")

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything is stopped then, too
    pace = _pace(layout, tell)
    cluster = SlurmCluster(root / "cluster", layout, poll=pace.poll)
    try:
        cluster.start()
        tell(f"Slurm {cluster.version()}: {', '.join(NODES)} are idle")
        os.environ |= {"SLURM_CONF": str(cluster.settings), "SQUEUE_STATES": "all"}  # the second: see the manual's page
        checkout = _checkout(layout, root)
        galaxy = GalaxyServer(checkout, tell, jobs=_job_conf(checkout, root))
        try:
            galaxy.start(for_tests=True)
            trial = Trial(galaxy, cluster, root, tell)
            held = [trial.proteome()]
            with ThreadPoolExecutor(2) as lanes:
                trained = [lanes.submit(trial.training, stage, kills) for stage in _stages(pace)]
                held += [outcome for lane in trained for outcome in lane.result()]
        finally:
            galaxy.stop()
    finally:
        cluster.stop()
    tell(f"{sum(held)} of {len(held)} held")
    return int(not all(held))


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin:/sbin")


class SlurmCluster:
    """Slurm's controller and two nodes, all on this machine.

    Args:
        root: Folder for its files.
        layout: The checkout.
        poll: Seconds after which Slurm looks at a job's memory, and again.
    """

    def __init__(self, root: Path, layout: Layout, poll: float = POLL) -> None:
        self.root, self.layout, self.poll = root, layout, poll
        self.settings = root / "slurm.conf"
        self._token = secrets.token_hex(8)
        self._running: dict[str, ProcessIdentity] = {}

    def start(self) -> None:
        """Starts munged, slurmctld and a slurmd for each node.

        Raises:
            UserError: The machine's name leads out of it, or the nodes were not idle within a minute.
        """
        name = socket.gethostname().split(".")[0]
        address = socket.gethostbyname(name)
        if not address.startswith("127."):
            fix = f"Add the line '127.0.0.1 {name}' to the top of /etc/hosts for the trial: Slurm binds what it names"
            raise UserError(f"This machine's name means {address}, where others could reach Slurm", where=name, fix=fix)
        longest = self.root / f"spool-{NODES[0]}" / f"{NODES[0]}_9999.4294967291"
        if len(str(longest)) > _LONGEST_SOCKET:
            raise UserError(
                "The folder's path is too long for the sockets of Slurm's jobs", where=str(self.root),
                fix=f"Work in one with {len(str(longest)) - _LONGEST_SOCKET} letters fewer",
            )
        for folder in ("munge", "state", "log"):
            (self.root / folder).mkdir(parents=True, mode=0o700)
        key = self.root / "munge" / "key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        self.settings.write_text(self._conf(name, address))
        munge = self.root / "munge"
        files = [f"--{kind}={munge / kind}" for kind in ("socket", "pid-file", "log-file", "seed-file")]
        self._spawn("munged", "--foreground", "--force", f"--key-file={key}", *files)
        self._spawn("slurmctld", "-D")
        for node in NODES:
            self.start_node(node)
        deadline = time.monotonic() + 60
        while [state for _, state in self._nodes()] != ["idle"] * len(NODES):
            if time.monotonic() > deadline:
                raise UserError("The nodes did not come up in a minute", where=str(self.root / "log"))
            time.sleep(0.5)

    def _conf(self, name: str, address: str) -> str:
        ports = [processes.free_port() for _ in range(1 + len(NODES))]
        user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
        lines = {
            "ClusterName": "plm",
            "SlurmctldHost": f"{name}({address})",
            "SlurmctldPort": ports[0],
            "SlurmUser": user,
            "SlurmdUser": user,
            "AuthType": "auth/munge",
            "AuthInfo": f"socket={self.root / 'munge' / 'socket'}",
            "StateSaveLocation": self.root / "state",
            "SlurmdSpoolDir": self.root / "spool-%n",
            "SlurmctldPidFile": self.root / "slurmctld.pid",
            "SlurmdPidFile": self.root / "slurmd-%n.pid",
            "CommunicationParameters": "NoCtldInAddrAny,NoInAddrAny",
            # no cgroups: not every machine lets us have them. Slurm itself measures memory and kills
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "MpiDefault": "none",
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_Core_Memory",
            "JobAcctGatherType": "jobacct_gather/linux",
            "JobAcctGatherFrequency": f"task={self.poll:.0f}",
            "JobAcctGatherParams": "OverMemoryKill",
            "AccountingStorageType": "accounting_storage/none",
            "SlurmdParameters": "config_overrides",
            "SlurmdTimeout": 10,
            "ReturnToService": 2,
            "KillWait": 10,
            "MinJobAge": 7200,
            "PartitionName": "main Nodes=ALL Default=YES",
        }
        text = "".join(f"{key}={value}\n" for key, value in lines.items() if key != "PartitionName")
        for node, port in zip(NODES, ports[1:], strict=True):
            there = f"NodeHostname={name} NodeAddr={address} Port={port}"
            text += f"NodeName={node} {there} CPUs={NODE_CORES} RealMemory={NODE_MEMORY}\n"
        return text + f"PartitionName={lines['PartitionName']}\n"

    def _spawn(self, program: str, *arguments: str, log: str = "") -> None:
        command = [str(_program(program)), *arguments]
        marks = {"SLURM_CONF": str(self.settings), "PLM_TRIAL": f"{self._token} {log}"}
        environment = child_environment(self.layout, marks)
        file = self.root / "log" / f"{log or program}.log"
        self._running[log or program] = processes.spawn(command, log=file, environment=environment, folder=self.root)

    def start_node(self, node: str) -> None:
        self._spawn("slurmd", "-D", "-N", node, log=node)

    def kill_node(self, node: str) -> None:
        """What a power cut does: the node's daemon and all that runs there is gone without a word."""
        doomed = [self._running[node], *self._of_node(node)]
        for identity in doomed:
            if identity.alive():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(identity.pid, signal.SIGKILL)

    def _of_node(self, node: str) -> list[ProcessIdentity]:
        """The processes of jobs on one node, known by the variables that Slurm gives them, and what supervises them."""
        conf, found = f"SLURM_CONF={self.settings}".encode(), []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                variables = (folder / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            ours = {f"SLURMD_NODENAME={node}".encode(), f"PLM_TRIAL={self._token} {node}".encode()}
            identity = processes.identify(int(folder.name))
            if conf in variables and ours & set(variables) and identity is not None:
                found.append(identity)
        return found

    def ask(self, program: str, *arguments: str) -> str:
        """What one of Slurm's programs answers.

        Raises:
            UserError: It failed.
        """
        environment = {**os.environ, "SLURM_CONF": str(self.settings)}
        command = [str(_program(program)), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
        if done.returncode:
            raise UserError(f"{program} failed: {done.stderr.strip()}", where=" ".join(arguments))
        return done.stdout

    def version(self) -> str:
        return self.ask("sinfo", "--version").split()[-1]

    def _nodes(self) -> list[tuple[str, str]]:
        try:
            lines = self.ask("sinfo", "-N", "-h", "-o", "%N %t").splitlines()
        except UserError:
            return []
        return [(name, state) for name, state in map(str.split, lines)]

    def state_of_node(self, node: str) -> str:
        return dict(self._nodes()).get(node, "unknown").rstrip("*")

    def job(self, number: str) -> dict[str, str]:
        """What Slurm knows of a job: JobState, NodeList, TimeLimit, ..."""
        fields = re.findall(r"(?:^| )([A-Za-z/:]+)=(\S*)", self.ask("scontrol", "-o", "show", "job", number))
        return dict(fields)

    def end_walltime(self, number: str) -> None:
        """Makes a running job's time limit be over; Slurm enforces limits every half minute."""
        self.ask("scontrol", "update", f"JobId={number}", "EndTime=now+1")

    def stop(self) -> None:
        with contextlib.suppress(UserError, OSError, subprocess.SubprocessError):
            self.ask("scancel", "--full", "--signal=KILL", "--user", self._user())
        for node in NODES:
            for identity in self._of_node(node):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(identity.pid, signal.SIGKILL)
        for identity in reversed(self._running.values()):
            processes.stop(identity)

    def _user(self) -> str:
        return re.search(r"^SlurmUser=(.*)$", self.settings.read_text(), re.MULTILINE)[1]  # type: ignore[index]


@dataclass(frozen=True)
class TrainingStage:
    """A stage that trains, and how to tell that it went on.

    Attributes:
        tool: Id of the tool.
        file: Its input, below ``test-data``.
        kind: Galaxy's type of the input.
        parameter: Name of the input in the form.
        given: The rest of the form.
        output: Name of the output that must not differ.
        went_on: What the log of a resubmitted job says; a pattern.
        checkpoint: Names of the stage's files in the administrator's folder.
    """

    tool: str
    file: str
    kind: str
    parameter: str
    output: str
    went_on: str
    checkpoint: str
    given: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Pace:
    """How fast this machine is.

    Attributes:
        poll: Seconds by which a training has written a checkpoint.
        steps: Steps of a pretraining that goes on for a while after that.
        epochs: Epochs of such a fine-tuning.
    """

    poll: float
    steps: int
    epochs: int


def _stages(pace: Pace) -> list[TrainingStage]:
    pretraining = {
        "model": {"source": "new", "preset": "tiny"},
        "training": {"steps": pace.steps, "batch_tokens": 1024, "warmup_steps": 5},
        "evaluation": {"holdout": 0.1},
    }
    fine_tuning = {
        "model": {"source": "table", "table": "tiny_esm2"},
        "answering": {"predictor": "model"},
        "training": {"epochs": pace.epochs, "patience": 0},
    }
    return [
        TrainingStage(
            "plm_pretrain", "simulated_corpus.fasta", "fasta", "input", "output_model", r"Going on from step \d+",
            "[0-9a-f]*.zip", pretraining,
        ),
        TrainingStage(
            "plm_finetune", "dataset_classes.tabular", "tabular", "dataset", "bundle", "Going on from the checkpoint",
            "plm_finetune-*.zip", fine_tuning,
        ),
    ]


def _pace(layout: Layout, say: Callable[[str], None]) -> Pace:
    """Measures a short pretraining: how long it takes to start, and its steps."""
    scratch = layout.state / "slurm" / "speed"
    scratch.mkdir(parents=True)
    outputs = ["--output-model", "m.zip", "--history", "h.tsv", "--figure", "f.png", "--report", "r.md"]
    flags = ["--input", str(layout.root / "test-data" / "simulated_corpus.fasta"), "--preset", "tiny", "--steps", "60"]
    flags += ["--batch-tokens", "1024", "--warmup-steps", "5", "--title", "x", *outputs]
    program = [str(layout.python("tools")), str(layout.tools / "plm_pretrain.py"), *flags]
    environment = child_environment(layout, {"GALAXY_SLOTS": str(NODE_CORES)})
    begun = time.monotonic()
    done = subprocess.run(program, capture_output=True, text=True, cwd=scratch, env=environment, check=False)
    took, rates = time.monotonic() - begun, re.findall(r"([0-9.]+) steps/s", done.stdout)
    if done.returncode or not rates:
        raise UserError(f"plm_pretrain failed: {done.stderr.strip()[-300:]}")
    rate = float(rates[-1])
    poll = max(POLL, 10 + 2 * (took - 60 / rate))  # two start at once, beside Galaxy
    # an epoch of the other training takes about as long as eight of these steps
    steps = rate * (poll + LEFT) / 2
    pace = Pace(poll, int(steps), max(20, int(steps / 8)))
    say(f"{rate:.1f} steps a second: {pace.steps} steps, {pace.epochs} epochs; memory is looked at after {poll:.0f} s")
    return pace


class Trial:
    """The scenarios, each in a history of its own.

    Args:
        galaxy: The running Galaxy.
        cluster: The running cluster.
        root: Folder of the trial.
        say: Told in one line what happens.
    """

    def __init__(self, galaxy: GalaxyServer, cluster: SlurmCluster, root: Path, say: Callable[[str], None]) -> None:
        self.galaxy, self.cluster, self.root, self.say = galaxy, cluster, root, say

    # a proteome over both nodes

    def proteome(self) -> bool:
        """Splits, embeds by a job a part, merges; whether that equals one job."""
        history = self._history("proteome")
        proteins = self._upload(history, PROTEOME, "fasta")
        split = self._run(history, "plm_split_fasta", {
            "input": proteins, "division": {"by": "parts", "parts": PARTS},
        })
        whole = self._submit(history, "plm_embed", {"input": proteins})
        self._wait(split["jobs"])
        parts = split["output_collections"][0]["id"]
        mapped = self._submit(
            history, "plm_embed", {"input": {"batch": True, "values": [{"src": "hdca", "id": parts}]}}
        )
        made = {entry["output_name"]: entry["id"] for entry in mapped["implicit_collections"]}
        self._wait([*mapped["jobs"], *whole["jobs"]])
        merged = self._run(history, "plm_merge_embeddings", {
            "input": {"values": [{"src": "hdca", "id": made["embeddings"]}]},
            "status": {"values": [{"src": "hdca", "id": made["status"]}]},
        })
        self._wait(merged["jobs"])
        places = [self.cluster.job(self._external(job["id"]))["NodeList"] for job in mapped["jobs"]]
        both = set(places) == set(NODES)
        one, joined = self._content(whole, "embeddings"), self._content(merged, "output")
        equal = one == joined
        said, used = "equals" if equal else "DIFFERS FROM", ", ".join(sorted(set(places)))
        self.say(f"proteome: {len(places)} jobs on {used}; merged ({len(joined)} bytes) {said} one job")
        return equal and both and len(places) == PARTS

    # trainings that are killed

    def training(self, stage: TrainingStage, kills: Sequence[str]) -> list[bool]:
        """An undisturbed training, then one for each way to be killed; whether each ended the same."""
        whole = self._start_training(stage, "undisturbed")
        begun = time.monotonic()
        self._wait(whole["jobs"])
        expected = _digests(self._content(whole, stage.output))
        self.say(f"{stage.tool}, undisturbed: done in {time.monotonic() - begun:.0f} s")
        return [self._killed(stage, kill, expected) for kill in kills]

    def _start_training(self, stage: TrainingStage, name: str) -> dict[str, Any]:
        history = self._history(f"{stage.tool} {name}")
        dataset = self._upload(history, stage.file, stage.kind)
        return self._submit(history, stage.tool, {stage.parameter: dataset, **stage.given})

    def _killed(self, stage: TrainingStage, kill: str, expected: Mapping[str, str]) -> bool:
        made = self._start_training(stage, kill)
        job = made["jobs"][0]["id"]
        first = self._await_external(job, "")
        begun = time.monotonic()
        if kill != "memory":  # that limit is set when the job is submitted
            self._await_checkpoint(stage, job)
        if kill == "walltime":
            self.cluster.end_walltime(first)
        elif kill == "node":
            node = self.cluster.job(first)["NodeList"]
            self.cluster.kill_node(node)
            self._await_death(node)
        again = self._await_external(job, first)
        ended = self.cluster.job(first)
        if kill == "node":
            self.cluster.start_node(node)
        self.say(f"{stage.tool}, {kill}: Slurm ended job {first} ({ended['JobState']}), Galaxy sent it again: {again}")
        self._wait(made["jobs"])
        found = _digests(self._content(made, stage.output))
        different = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
        said = str(self.galaxy.request("GET", f"/api/jobs/{job}?full=true")["tool_stdout"])
        went_on = re.search(stage.went_on + ".*", said)
        on = went_on[0] if went_on else "DID NOT GO ON FROM A CHECKPOINT"
        equal = "the same files" if not different else f"DIFFERENT: {', '.join(different)}"
        self.say(f"{stage.tool}, {kill}: {on}; {equal} as undisturbed, {time.monotonic() - begun:.0f} s")
        return bool(went_on) and not different

    def _await_checkpoint(self, stage: TrainingStage, job: str) -> None:
        folder, deadline = self.root / "kept", time.monotonic() + 300
        while not list(folder.glob(stage.checkpoint)):
            self._still_running(job, deadline, "kept no checkpoint")
            time.sleep(0.2)

    def _await_external(self, job: str, other_than: str) -> str:
        """Slurm's number of the job, once it is another."""
        deadline = time.monotonic() + 300
        while (number := self._external(job)) in ("", other_than):
            self._still_running(job, deadline, "was not sent to Slurm")
            time.sleep(0.3)
        return number

    def _await_death(self, node: str) -> None:
        deadline = time.monotonic() + 120
        while self.cluster.state_of_node(node) != "down":
            if time.monotonic() > deadline:
                raise UserError(f"Slurm did not notice that {node} is gone: {self.cluster.state_of_node(node)}")
            time.sleep(0.3)

    def _still_running(self, job: str, deadline: float, what: str) -> None:
        state = self.galaxy.request("GET", f"/api/jobs/{job}")["state"]
        if time.monotonic() > deadline or state in ("ok", "error", "deleted"):
            raise UserError(f"Job {job} {what}; it is {state}", where=str(self.galaxy.layout.logs))

    def _external(self, job: str) -> str:
        shown = self.galaxy.request("GET", f"/api/jobs/{job}?full=true")
        return str(shown.get("external_id") or "")

    # Galaxy's API

    def _history(self, name: str) -> str:
        return str(self.galaxy.request("POST", "/api/histories", {"name": name})["id"])

    def _upload(self, history: str, name: str, kind: str) -> dict[str, str]:
        text = (self.galaxy.layout.root / "test-data" / name).read_text()
        source = {"src": "pasted", "paste_content": text, "name": name, "ext": kind}
        targets = [{"destination": {"type": "hdas"}, "elements": [source]}]
        made = self.galaxy.request("POST", "/api/tools/fetch", {"history_id": history, "targets": targets})
        self._wait(made["jobs"])
        return {"src": "hda", "id": made["outputs"][0]["id"]}

    def _submit(self, history: str, tool: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        asked = {"history_id": history, "tool_id": tool, "inputs": inputs, "input_format": "21.01"}
        made: dict[str, Any] = self.galaxy.request("POST", "/api/tools", asked, timeout=300)
        if made.get("errors"):
            raise UserError(f"Galaxy does not start {tool}: {made['errors']}")
        return made

    _run = _submit

    def _wait(self, jobs: Sequence[Mapping[str, Any]]) -> None:
        deadline = time.monotonic() + 900
        for job in jobs:
            while True:
                shown = self.galaxy.request("GET", f"/api/jobs/{job['id']}?full=true")
                if shown["state"] == "ok":
                    break
                if shown["state"] in ("error", "deleted", "paused", "stopped", "failed") or time.monotonic() > deadline:
                    said = " ".join(str(shown.get(kind) or "") for kind in ("tool_stderr", "job_stderr", "tool_stdout"))
                    what = f"{shown['tool_id']} ended as {shown['state']}: {said.strip()[-600:]}"
                    raise UserError(what, where=str(self.galaxy.layout.logs))
                time.sleep(0.5)

    def _content(self, made: Mapping[str, Any], output: str) -> bytes:
        dataset = next(entry["id"] for entry in made["outputs"] if entry["output_name"] == output)
        url = f"{self.galaxy.url}/api/datasets/{dataset}/display?to_ext=data"
        request = urllib.request.Request(url, headers={"x-api-key": self.galaxy.account().key})
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=120) as answer:
            content: bytes = answer.read()
        return content


def _digests(archive: bytes) -> dict[str, str]:
    """Member of a zip to its sha256."""
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        return {name: hashlib.sha256(opened.read(name)).hexdigest() for name in opened.namelist()}


def _checkout(layout: Layout, root: Path) -> Layout:
    """A checkout whose Galaxy has a state of its own beside the developer's."""
    place = root / "checkout"
    (place / ".plm").mkdir(parents=True)
    (place / ".plm" / "envs").symlink_to(layout.envs)
    for name in LINKED:
        (place / name).symlink_to(layout.root / name)
    return Layout(place)


def _job_conf(layout: Layout, root: Path) -> dict[str, Any]:
    """Galaxy's ``job_conf.yml``: the shipped rules, then those of the trial."""
    import json

    (root / "kept").mkdir()
    rules = json.loads(json.dumps(RULES))
    rules["global"]["context"] |= {
        "plm_checkpoints": str(root / "kept"),
        "plm_environment": {kept.MINUTES: MINUTES_BETWEEN, "OMP_WAIT_POLICY": "passive"},
    }
    own = root / "trial_rules.yml"
    own.write_text(json.dumps(rules, indent=1))
    return {
        "runners": {
            "local": {"load": "galaxy.jobs.runners.local:LocalJobRunner", "workers": 2},
            "cli": {"load": "galaxy.jobs.runners.cli:ShellJobRunner", "workers": 1},
        },
        "execution": {
            "default": "tpv_dispatcher",
            "environments": {
                "tpv_dispatcher": {
                    "runner": "dynamic",
                    "type": "python",
                    "function": "map_tool_to_destination",
                    "rules_module": "tpv.rules",
                    "tpv_config_files": [str(layout.tools / "tpv" / "plm_suite.yml"), str(own)],
                }
            },
        },
    }
