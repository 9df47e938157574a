"""Kills jobs at random moments and compares what they end with; see ``scripts/benchmarks/kill_trials --help``."""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import math
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

DOC = """Kills jobs at random moments and compares what they end with, byte for byte.

    .plm/envs/tools/bin/python scripts/benchmarks/kill_trials [--stages pretrain,embed] [--ways kill,term] [--trials 30]

Each trial starts a stage with a tiny model, ends it at a random moment, starts it again until it is through, and
compares every output with that of a job that nobody disturbed; times in reports apart. Ways:

    kill    SIGKILL at random moments after the first state in the administrator's folder, up to three times in a row;
            only trials that went on from a state count, others (the job was through before) are made again
    term    SIGTERM; the file that --checkpoint names is given back with --resume; seconds until the end are measured
    damage  SIGKILL, and what was kept is cut off or changed at a random place before the job is started again
    two     two jobs with the same work and folder at once, of which one is killed

Jobs are forked from a process that has loaded the libraries, so that moments fall into the work, not into imports.
"""
ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "test-data"
TINY = DATA / "models" / "tiny_esm2"
MINUTES = "0.0005"
"""Between two states: so often that the moment decides which of many a job goes on from."""
MARK = "Plan"
"""What each stage says when its work begins."""
MOST_TRIES = 3
"""So many times as many trials are made at most, where some do not count."""
WAYS = ("kill", "term", "damage", "two")
TIMES = re.compile(rb"\d[\d.]*(?:e[-+]\d+)? (?:s|ms|min|h)\b(?: \d+ (?:s|min)\b)?|about \d+ MiB")
_ZIPPED, _TOLD = (".zip",), (".html", ".md", ".txt")


@dataclass(frozen=True)
class KilledStage:
    """A stage as the trials start it.

    Attributes:
        name: Id of the stage.
        flags: Flags but for outputs.
        outputs: Flag of each output and the name of its file.
        resumes: Whether it takes --checkpoint and --resume.
    """

    name: str
    flags: tuple[str, ...]
    outputs: dict[str, str]
    resumes: bool = True

    def command(self, folder: Path) -> list[str]:
        """Flags with outputs in a folder."""
        return [*self.flags, *(text for flag, name in self.outputs.items() for text in (flag, str(folder / name)))]


def stages(folder: Path) -> dict[str, KilledStage]:
    """The stages that keep what they have done; inputs that are made lie in ``folder``."""
    told = {"--report": "report.md", "--html": "report.html", "--history": "history.tsv"}
    masked = (
        "--device", "cpu", "--precision", "fp32", "--holdout", "0.2", "--evaluate-every", "7", "--batch-tokens", "600",
    )
    proteins, corpus = folder / "proteins.fasta", folder / "corpus.fasta"
    _simulate(proteins, 1500, 200)
    _simulate(corpus, 150, 50)  # so short that they are compared without another program
    return {
        "embed": KilledStage(
            "plm_embed",
            (
                "--input", str(proteins), "--model", str(TINY), "--device", "cpu", "--precision", "fp32",
                "--batch-tokens", "128", "--pooling", "residues",
            ),
            {"--embeddings": "embeddings.h5", "--status": "status.tsv", "--logits": "logits.tsv"}, resumes=False,
        ),
        "pretrain": KilledStage(
            "plm_pretrain",
            ("--input", str(corpus), "--preset", "tiny", "--steps", "60", "--warmup-steps", "5", *masked),
            {"--output-model": "model.zip", "--best-model": "best.zip", "--figure": "curves.png", **told},
        ),
        "finetune": KilledStage(
            "plm_finetune",
            (
                "--dataset", str(DATA / "dataset_sites.tabular"), "--model", str(TINY), "--epochs", "4", "--seeds", "2",
                "--device", "cpu", "--precision", "fp32", "--predictor", "model",
            ),
            {"--bundle": "bundle.zip", "--predictions": "predictions.tsv", "--curves": "curves.png", **told},
        ),
        "distill": KilledStage(
            "plm_distill",
            (
                "--input", str(corpus), "--teacher", str(TINY), "--student-layers", "1", "--student-width", "16",
                "--student-heads", "2", "--steps", "60", "--warmup-steps", "5", "--batches", "plain", *masked,
            ),
            {"--output-model": "model.zip", "--figure": "curves.png", "--held-out": "held_out.tsv", **told},
        ),
    }


def _simulate(path: Path, count: int, longest: int) -> None:
    """Random proteins of 10 residues and more, as FASTA."""
    chance = random.Random(count)
    texts = ["".join(chance.choices("ACDEFGHIKLMNPQRSTVWY", k=chance.randint(10, longest))) for _ in range(count)]
    path.write_text("".join(f">p{number}\n{text}\n" for number, text in enumerate(texts)))


@dataclass
class Tally:
    """What the trials of a stage and way came to.

    Attributes:
        trials: Number of trials.
        equal: Trials that ended as a job that nobody disturbed.
        resumed: Trials that went on from a kept state; the others were ended before the first, or after the end.
        seconds: Time until the end after SIGTERM.
        wrong: What was wrong.
    """

    trials: int = 0
    equal: int = 0
    resumed: int = 0
    seconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def line(self) -> str:
        said = f"{self.equal} of {self.trials} equal, {self.resumed} went on from a kept state"
        if self.seconds:
            ordered = sorted(self.seconds)
            said += f", after SIGTERM {ordered[len(ordered) // 2]:.2f} s (median), {ordered[-1]:.2f} s (longest)"
        return "; ".join([said, *self.wrong])


class Job:
    """A stage in a process of its own, forked from this one.

    Args:
        stage: The stage.
        folder: Folder of outputs and of what it says; made.
        kept: The administrator's folder; None for none.
        more: Further flags.
    """

    def __init__(self, stage: KilledStage, folder: Path, kept: Path | None, *more: str) -> None:
        folder.mkdir(exist_ok=True)
        self._said = folder / ".said"
        self._said.touch()
        self._before = self._said.stat().st_size
        self.pid = os.fork()
        if not self.pid:
            self._work(stage, [*stage.command(folder), *more], kept)

    def _work(self, stage: KilledStage, flags: list[str], kept: Path | None) -> None:
        code = 70
        try:
            said = os.open(self._said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(said, 1)
            os.dup2(said, 2)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
            os.environ["PLM_CHECKPOINT_DIR"] = "" if kept is None else str(kept)
            os.environ["PLM_CHECKPOINT_MINUTES"] = MINUTES
            module = importlib.import_module(stage.name)
            from plm import stage as stages

            stages.main(module.NAME, module.run, flags)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def wait(self) -> int:
        """Exit code; negative for a signal."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def ended(self, number: int, after: float, since: Callable[[], bool] | None = None) -> tuple[int, float]:
        """Sends a signal so many seconds after something holds, or after the start, unless the job has ended.

        Returns:
            Its exit code, and the seconds from the signal to the end.
        """
        until = time.monotonic() + after if since is None else math.inf
        while time.monotonic() < until:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status), 0.0
            if until == math.inf and since is not None and since():
                until = time.monotonic() + after
            time.sleep(0.002)
        os.kill(self.pid, number)
        sent = time.monotonic()
        return self.wait(), time.monotonic() - sent

    def begun(self) -> bool:
        """Whether its work has begun."""
        return MARK in self.said()

    def said(self) -> str:
        """What it wrote."""
        with self._said.open("rb") as opened:
            opened.seek(self._before)
            return opened.read().decode(errors="replace")


def content(path: Path) -> bytes:
    """A file as it is compared: archives by their members, texts without times."""
    data = path.read_bytes()
    if path.suffix in _ZIPPED:
        with zipfile.ZipFile(BytesIO(data)) as opened:
            return b"".join(name.encode() + TIMES.sub(b"~", opened.read(name)) for name in sorted(opened.namelist()))
    return TIMES.sub(b"~", data) if path.suffix in _TOLD else data


def differing(stage: KilledStage, folder: Path, whole: Path) -> list[str]:
    """Outputs that are missing or not those of the undisturbed job."""
    return [
        name for name in stage.outputs.values()
        if not (folder / name).is_file() or content(folder / name) != content(whole / name)
    ]


def states_of(kept: Path) -> set[tuple[str, int]]:
    """What was kept so far, as names and times."""
    held: set[tuple[str, int]] = set()
    for path in kept.rglob("*.*"):
        try:
            if path.suffix in (".zip", ".safetensors") and path.is_file():
                held.add((path.name, path.stat().st_mtime_ns))
        except FileNotFoundError:
            continue
    return held


class Trials:
    """Trials of one stage.

    Args:
        stage: The stage.
        folder: Folder of everything that the trials write.
        chance: Decides about moments.
    """

    def __init__(self, stage: KilledStage, folder: Path, chance: random.Random) -> None:
        self.stage, self.folder, self.chance = stage, folder, chance
        folder.mkdir(parents=True, exist_ok=True)
        self.whole = folder / "whole"
        started = marked = time.monotonic()
        job = Job(stage, self.whole, None)
        code = 0
        while not os.waitid(os.P_PID, job.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG):
            if marked == started and job.begun():
                marked = time.monotonic()
            time.sleep(0.002)
        code = job.wait()
        if code:
            raise SystemExit(f"{stage.name} fails undisturbed: {job.said()[-600:]}")
        self.seconds, self.work = time.monotonic() - started, time.monotonic() - marked

    def run(self, way: str, count: int, tell: Callable[[str], None]) -> Tally:
        """Makes trials of one way."""
        tally = Tally()
        for number in range(MOST_TRIES * count):
            if (tally.resumed if way == "kill" else tally.trials) >= count:
                break
            resumed = tally.resumed
            place = self.folder / f"{way}_{number}"
            place.mkdir()
            wrong = getattr(self, f"_{way}")(place, tally)
            shutil.rmtree(place)
            if way == "kill" and not wrong and tally.resumed == resumed:
                continue
            tally.trials += 1
            if wrong:
                tally.wrong.append(f"trial {number}: {wrong}")
            tally.equal += not wrong
            if not tally.trials % 10:
                tell(f"{self.stage.name}, {way}: {tally.line()}")
        return tally

    def _end(self, job: Job, number: int) -> tuple[int, float]:
        """Sends a signal at a random moment: of five, one of the whole job and four of its work."""
        if self.chance.random() < 0.2:
            return job.ended(number, self.chance.uniform(0.02, self.seconds))
        return job.ended(number, self.chance.uniform(0, self.work), job.begun)

    def _kill(self, place: Path, tally: Tally) -> str:
        kept, out = place / "kept", place / "out"
        kept.mkdir()
        went_on = False
        for _ in range(self.chance.choice((1, 1, 2, 3))):
            before = states_of(kept)
            job = Job(self.stage, out, kept)
            moment = self.chance.uniform(0, self.work)
            code, _ = job.ended(signal.SIGKILL, moment, lambda: states_of(kept) != before)  # noqa: B023
            went_on |= "Going on from" in job.said()
            if code != -signal.SIGKILL:
                break
            if any((out / name).exists() for name in self.stage.outputs.values()):
                return "an output of a job that was killed"
        else:
            job = Job(self.stage, out, kept)
            code = job.wait()
        return self._judge(job, code, place, tally, went_on)

    def _judge(self, job: Job, code: int, place: Path, tally: Tally, went_on: bool = False) -> str:
        tally.resumed += went_on or "Going on from" in job.said()
        if code:
            return f"exit code {code}: {job.said()[-300:]}"
        left = [path.name for path in (place / "kept").glob("*") if path.suffix not in (".damaged", ".lock")]
        if left and not (place / "cache").exists():
            left = [name for name in left if not name.startswith("teacher")]
        wrong = [*differing(self.stage, place / "out", self.whole), *(f"left: {name}" for name in left)]
        return ", ".join(wrong)

    def _term(self, place: Path, tally: Tally) -> str:
        if not self.stage.resumes:
            return self._kill(place, tally)
        checkpoint, out = place / "checkpoint.zip", place / "out"
        job = Job(self.stage, out, None, "--checkpoint", str(checkpoint))
        code, seconds = self._end(job, signal.SIGTERM)
        if code == 0:
            return self._judge(job, code, place, tally)
        if code != 143:
            return f"exit code {code} after SIGTERM: {job.said()[-300:]}"
        tally.seconds.append(seconds)
        again = ["--resume", str(checkpoint)] if checkpoint.exists() else []
        begun = "Training 1 of" in job.said() or "steps/s" in job.said() or "Step " in job.said()
        if begun and not again:
            return f"no checkpoint: {job.said()[-200:]}"
        job = Job(self.stage, out, None, *again)
        return self._judge(job, job.wait(), place, tally)

    def _damage(self, place: Path, tally: Tally) -> str:
        kept, out = place / "kept", place / "out"
        kept.mkdir()
        job = Job(self.stage, out, kept)
        code, _ = job.ended(signal.SIGKILL, self.chance.uniform(0.2, 1.0) * self.work, job.begun)
        if code == -signal.SIGKILL:
            files = sorted(path for path in kept.rglob("*") if path.is_file() and path.stat().st_size)
            if files:
                self._spoil(self.chance.choice(files))
            job = Job(self.stage, out, kept)
            code = job.wait()
        return self._judge(job, code, place, tally)

    def _spoil(self, path: Path) -> None:
        data = bytearray(path.read_bytes())
        if self.chance.random() < 0.5:
            del data[self.chance.randrange(len(data)):]
        else:
            data[self.chance.randrange(len(data))] ^= 1 << self.chance.randrange(8)
        path.write_bytes(data)

    def _two(self, place: Path, tally: Tally) -> str:
        kept = place / "kept"
        kept.mkdir()
        first, second = (Job(self.stage, place / name, kept) for name in ("out", "other"))
        code, _ = self._end(first, signal.SIGKILL)
        if code == -signal.SIGKILL:
            first = Job(self.stage, place / "out", kept)
            code = first.wait()
        other = second.wait()
        if other:
            return f"the other job: exit code {other}: {second.said()[-300:]}"
        wrong = differing(self.stage, place / "other", self.whole)
        return ", ".join(f"the other job: {name}" for name in wrong) or self._judge(first, code, place, tally)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=DOC, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", default="embed,pretrain,finetune,distill", help="default: all four")
    parser.add_argument("--ways", default="kill", help=f"of {', '.join(WAYS)}; default: kill")
    parser.add_argument("--trials", type=int, default=30, help="of each stage and way; default: 30")
    parser.add_argument("--seed", type=int, default=1, help="of the moments")
    args = parser.parse_args(argv)
    os.environ.update(GALAXY_SLOTS="1", OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TQDM_DISABLE="1")
    failed = 0
    with tempfile.TemporaryDirectory(prefix="plm_kill_") as folder:
        known = stages(Path(folder))
        load()
        search_once(Path(folder))
        for name in args.stages.split(","):
            trials = Trials(known[name], Path(folder) / name, random.Random(f"{args.seed} {name}"))
            print(f"{known[name].name}: {trials.seconds:.1f} s undisturbed", flush=True)
            for way in args.ways.split(","):
                tally = trials.run(way, args.trials, lambda line: print(line, flush=True))
                print(f"{known[name].name}, {way}: {tally.line()}", flush=True)
                failed += tally.trials - tally.equal
    sys.exit(1 if failed else 0)


def search_once(folder: Path) -> None:
    """Lets later jobs read what MMseqs2 answered the first one: starting it takes most of a tiny job's time."""
    from plm.data import homology

    search = homology.mmseqs_search

    def remembered(queries: Sequence[str], targets: Sequence[str], *more: object, **named: object) -> list[list[float]]:
        asked = repr((list(queries), list(targets), more, sorted(named.items())))
        place = folder / f"search_{hashlib.sha256(asked.encode()).hexdigest()}.json"
        if not place.exists():
            found = [list(hit) for hit in search(queries, targets, *more, **named)]
            place.with_suffix(f".{os.getpid()}").write_text(json.dumps(found))
            place.with_suffix(f".{os.getpid()}").replace(place)
        answer: list[list[float]] = json.loads(place.read_text())
        return answer

    homology.mmseqs_search = remembered


def load() -> None:
    """Imports what all jobs need, once."""
    import peft  # noqa: F401
    import torch  # noqa: F401
    import transformers  # noqa: F401
    from plm.jobs.distill import job as distill_job  # noqa: F401
    from plm.jobs.finetune import job as finetune_job  # noqa: F401
    from plm.jobs.pretrain import job as pretrain_job  # noqa: F401
    from plm.telling import figures  # noqa: F401
