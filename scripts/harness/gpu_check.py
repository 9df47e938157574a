"""Proves an installation on a machine's GPU (made for less than 8 minutes; it has run on processors alone so far).

    python scripts/gpu_check [--output gpu_check] [--minutes 8] [--only PART ...]

Needs this checkout, and Python with the packages of environment.yml (torch 2.11 and transformers 5.15, or newer).
Parts:

    device      what torch sees: device, compute capability, memory, kernels
    attention   each way of attention on the device against the textbook, with gradients, in each precision
    families    a small model of each family against transformers' own layers on the processor, in each precision
    stages      every stage with a model, once, on the device
    memory      a row that does not fit a limited memory is halved, and the answer stays the same
    resume      a training that was stopped and resumed equals one that was not
    processes   two processes on two devices (NCCL) give what one gives; left out where there is one device

Without a device the same parts run on the processor, as far as they can; that proves nothing about a GPU, and the
report says so. Writes report.json and report.md into --output. Exit code: 0 all passed, 1 something failed, 3 what
ran passed but no device was there.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from plm.model import attention, attention_on_gpu, encoder
from plm.model.batching import RowLayout
from plm.model.checkpoint import load_model, resolve_model
from plm.model.families import FAMILIES
from plm.model.loaded import LoadedModel

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "test-data"
PARTS = ("device", "attention", "families", "stages", "memory", "resume", "processes")
NO_DEVICE = 3
_FOLDERS = {"prott5": "tiny_t5"}
_LIMITS = {
    "float32": 1e-4, "float16": 0.02, "bfloat16": 0.15,  # of tiny random models, which are noisier than trained ones
}
_ATTENTION_LIMITS = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 3e-2}
_LENGTHS = (300, 170, 60, 60, 33, 7, 1)
STAGES = {
    "embed mean": "embed --input @simulated_odd.fasta --embeddings made.h5",
    "embed residues": "embed --input @simulated_query.fasta --model @models/tiny_t5 --pooling residues --embeddings "
    "made.h5",
    "embed extras": "embed --input @simulated_query.fasta --model @tiny_esm2_contacts.zip --contacts c.tabular "
    "--embeddings made.h5 --pseudo-perplexity p.tabular --perplexity-mode masked",
    "finetune lora": "finetune --dataset @dataset_sites.tabular --model starter --epochs 1 --bundle b.zip "
    "--predictions p.tabular --history h.tabular --curves c.png --report r.md",
    "finetune full": "finetune --dataset @dataset_numbers.tabular --model @models/tiny_t5 --method full --epochs 1 "
    "--gradient-checkpointing --bundle b.zip --predictions p.tabular --history h.tabular --curves c.png --report r.md",
    "classify_sites": "classify_sites --input @simulated_query.fasta --bundle @bundle_tiny_site.zip --model "
    "@models/tiny_esm2 --sites s.tabular --status t.tabular --report r.md --mutagenesis m.tabular",
    "predict": "predict --input @simulated_odd.fasta --bundle @bundle_tiny_classes.zip --model @models/tiny_esm2 "
    "--predictions p.tabular --status s.tabular --report r.md",
    "pretrain": "pretrain --input @simulated_corpus.fasta --preset tiny --steps 12 --warmup-steps 3 --evaluate-every "
    "6 --batch-tokens 1024 --holdout 0.1 --output-model m.zip --history h.tabular --figure f.png --report r.md",
    "distill": "distill --input @simulated_corpus.fasta --teacher @models/tiny_esm2 --student-layers 1 "
    "--student-width 16 --student-heads 2 --steps 4 --mask-sets 2 --batch-tokens 1024 --holdout 0.1 --output-model "
    "s.zip --history h.tabular --figure f.png --report r.md",
    "compare_models": "compare_models --model one=@models/tiny_esm2 --model T5=@models/tiny_t5 --input "
    "@simulated_corpus.fasta --most-proteins 20 --sets 1 --turns 1 --resamples 200 --scores s.tabular --agreement "
    "a.tabular --proteins p.tabular --report r.md",
    "variants": "variants --input @simulated_query.fasta --model @models/tiny_esm2 --variants "
    "@simulated_substitutions.tabular --scores s.tabular --ranked r.tabular --positions p.tabular --status t.tabular "
    "--report r.md",
    "contacts": "contacts --input @simulated_folds.fasta --head @contact_head_tiny_esm2.zip --model @models/tiny_esm2 "
    "--contacts c.tabular --proteins p.tabular --metrics m.tabular --status s.tabular --report r.md",
}
"""A command of each stage that has a model; @ is the test-data."""
_WITHOUT_DEVICE = ("embed mean", "embed residues")


class NotPassed(Exception):
    """What a check found wrong, in one line."""


class CannotRun(Exception):
    """Why something cannot be checked here."""


@dataclass
class Finding:
    """How one check ended.

    Attributes:
        part: The part that it belongs to.
        name: What was checked.
        result: ``passed``, ``failed`` or ``left out``.
        detail: Figures, or why.
        seconds: What it took.
    """

    part: str
    name: str
    result: str
    detail: str = ""
    seconds: float = 0.0


@dataclass
class Check:
    """A run of all parts.

    Attributes:
        device: Where models run.
        ends: When there is no time left (``time.monotonic``).
        findings: So far.
        facts: About the machine.
    """

    device: torch.device
    ends: float
    findings: list[Finding] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def judge(self, part: str, name: str, look: Callable[[], str]) -> None:
        """Runs a check and notes how it ended; ``look`` gives figures or raises."""
        started = time.monotonic()
        if started > self.ends:
            self.note(Finding(part, name, "failed", "no time was left for it"))
            return
        try:
            finding = Finding(part, name, "passed", look())
        except NotPassed as error:
            finding = Finding(part, name, "failed", str(error))
        except CannotRun as error:
            finding = Finding(part, name, "left out", str(error))
        except Exception as error:  # whatever goes wrong on a user's machine belongs into the report
            last = traceback.extract_tb(error.__traceback__)[-1]
            text = " ".join(str(error).split())[:300]
            place = f"{Path(last.filename).name}:{last.lineno}"
            finding = Finding(part, name, "failed", f"{type(error).__name__}: {text} ({place})")
        finding.seconds = round(time.monotonic() - started, 2)
        self.note(finding)

    def note(self, finding: Finding) -> None:
        """Keeps a finding and says it."""
        self.findings.append(finding)
        print(f"[gpu_check] {finding.part}: {finding.name}: {finding.result} {finding.detail}".rstrip(), flush=True)

    def leave_out(self, part: str, why: str) -> None:
        """Notes that a part cannot run here."""
        self.note(Finding(part, "all", "left out", why))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the parts and writes the report; the exit code."""
    parser = argparse.ArgumentParser(
        prog="gpu_check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("gpu_check"), help="folder of the report")
    parser.add_argument("--minutes", type=float, default=8.0, help="checks that would begin later fail (default: 8)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="these parts only")
    args = parser.parse_args(argv)
    started = time.monotonic()
    there = torch.cuda.is_available()
    check = Check(torch.device("cuda" if there else "cpu"), started + 60 * args.minutes)
    check.facts = facts(check.device)
    for part in PARTS:
        if part in args.only:
            globals()[f"check_{part}"](check)
    args.output.mkdir(parents=True, exist_ok=True)
    seconds = time.monotonic() - started
    content = {
        "passed": all(one.result != "failed" for one in check.findings), "device_was_there": there,
        "seconds": round(seconds, 1), "facts": check.facts, "findings": [asdict(one) for one in check.findings],
    }
    (args.output / "report.json").write_text(json.dumps(content, indent=1) + "\n")
    (args.output / "report.md").write_text(report(content))
    print(f"[gpu_check] {verdict(content)} Report: {args.output / 'report.md'}", flush=True)
    if not content["passed"]:
        return 1
    return 0 if there else NO_DEVICE


def facts(device: torch.device) -> dict[str, Any]:
    """Versions and what the device is."""
    known: dict[str, Any] = {"python": sys.version.split()[0]}
    for name in ("torch", "transformers", "peft", "accelerate", "safetensors", "triton"):
        try:
            known[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            known[name] = "not installed"
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        known |= {
            "device": properties.name, "compute capability": f"{properties.major}.{properties.minor}",
            "memory": f"{properties.total_memory // 2**20} MiB", "devices": torch.cuda.device_count(),
            "CUDA": torch.version.cuda, "kernels for": ", ".join(torch.cuda.get_arch_list()),
        }
    return known


def verdict(content: dict[str, Any]) -> str:
    """The outcome in a sentence or two."""
    failed = sum(one["result"] == "failed" for one in content["findings"])
    if not content["device_was_there"]:
        rest = f"{failed} checks failed." if failed else "What ran on the processor passed."
        return f"NO CUDA DEVICE WAS THERE: nothing is proven about a GPU. {rest}"
    name = content["facts"]["device"]
    return f"{failed} checks failed on {name}." if failed else f"All checks passed on {name}."


def report(content: dict[str, Any]) -> str:
    """The report in Markdown."""
    lines = ["# GPU check", "", verdict(content), "", f"It took {content['seconds']:.0f} s.", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in content["facts"].items()]
    lines += ["", "| part | check | result | detail | seconds |", "|---|---|---|---|---|"]
    lines += [
        f"| {one['part']} | {one['name']} | {one['result']} | {one['detail'].replace('|', '/')} | {one['seconds']} |"
        for one in content["findings"]
    ]
    return "\n".join(lines) + "\n"


# ------------------------------------------------------------------------------------------------- device and attention


def check_device(check: Check) -> None:
    """What the device is and whether torch computes on it."""
    if not check.on_gpu:
        check.leave_out("device", "torch sees no CUDA device")
        return

    def multiplies() -> str:
        from plm.model.device import choose_device, choose_precision

        choose_device("cuda")
        ones = torch.ones(64, 64, device=check.device)
        if float((ones @ ones).sum()) != 64**3:
            raise NotPassed("a product of matrices of ones is wrong")
        return f"computes; precision {choose_precision('auto', check.device)}"

    check.judge("device", check.facts["device"], multiplies)


def check_attention(check: Check) -> None:
    """Each way of attention against the textbook."""
    kinds = [torch.float32]
    if check.on_gpu:
        kinds += [torch.float16, *([torch.bfloat16] if torch.cuda.get_device_capability() >= (8, 0) else [])]
    for kind in kinds:
        for way in ("chosen", "padded", "biased", "flex"):
            for width in (16, 64, 128) if check.on_gpu else (16,):
                name = f"{way}, {str(kind).removeprefix('torch.')}, heads of {width}"
                check.judge("attention", name, partial(_attention, check.device, way, kind, width))


def _attention(device: torch.device, way: str, kind: torch.dtype, width: int) -> str:
    """Errors of result and gradients of one way, relative to their norms."""
    if way == "flex" and device.type == "cuda" and not attention_on_gpu._FLEX.works(device):
        raise CannotRun("not for this device, or Triton is not installed: sequences are padded")
    generator = torch.Generator().manual_seed(width)
    layout = RowLayout(_LENGTHS)
    shape = (sum(_LENGTHS), 2, width)
    states = [torch.randn(shape, generator=generator) for _ in range(3)]
    given = torch.randn(shape, generator=generator)
    bias = torch.randn(2, 2 * 128 + 1, generator=generator) if way in ("biased", "flex") else None
    scale = width**-0.5

    def run(where: torch.device, number: torch.dtype, attend: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
        own = [one.clone().to(where, number).requires_grad_() for one in states]
        result = attend(own, None if bias is None else bias.to(where, number))
        if way == "flex" and where.type == "cpu":  # gradients are for devices
            return [result.detach().float()]
        result.backward(given.to(where, number))
        return [result.detach().float().cpu(), *(one.grad.float().cpu() for one in own if one.grad is not None)]

    def ours(own: list[torch.Tensor], table: torch.Tensor | None) -> torch.Tensor:
        row = RowLayout(layout.lengths)
        if way == "flex":
            assert table is not None
            if device.type == "cuda":
                attended = attention_on_gpu._FLEX.attend(own[0], own[1], own[2], row, scale, table)
                if attended is None:
                    raise CannotRun("it cannot be compiled here (see above): sequences are padded, which is slower")
                return attended
            from torch.nn.attention.flex_attention import flex_attention

            flexed: torch.Tensor = flex_attention(
                *(one.transpose(0, 1)[None] for one in own), score_mod=attention_on_gpu.relative(table, row),
                block_mask=attention_on_gpu.block_mask(row, device), scale=scale,
            )
            return flexed[0].transpose(0, 1)
        if way == "padded" or device.type == "cpu":
            return attention_on_gpu._padded(own[0], own[1], own[2], row, scale, table, 0.0)
        return attention.attend(own[0], own[1], own[2], row, scale=scale, bias=table)

    def textbook(own: list[torch.Tensor], table: torch.Tensor | None) -> torch.Tensor:
        pieces = []
        for start, length in zip(layout.starts, layout.lengths, strict=True):
            q, k, v = (one[start : start + length].transpose(0, 1) for one in own)
            scores = q @ k.transpose(1, 2) * scale
            if table is not None:
                scores = scores + attention_on_gpu.dense(table, length)
            pieces.append((scores.softmax(-1) @ v).transpose(0, 1))
        return torch.cat(pieces)

    if way == "flex" and device.type == "cpu":
        with torch.no_grad():
            own = [one.clone() for one in states]
            errors = [_relative(ours(own, bias), textbook(own, bias))]
    else:
        expected = run(torch.device("cpu"), torch.float32, textbook)
        errors = [_relative(mine, theirs) for mine, theirs in zip(run(device, kind, ours), expected, strict=True)]
    limit = _ATTENTION_LIMITS[str(kind).removeprefix("torch.")]
    if not max(errors) <= limit:
        raise NotPassed(f"error {max(errors):.2g}, more than {limit:g}")
    return f"error {max(errors):.1e}"


def _relative(mine: torch.Tensor, theirs: torch.Tensor) -> float:
    error = float((mine - theirs).norm() / theirs.norm())
    return error if math.isfinite(error) else math.inf


# ------------------------------------------------------------------------------------------------------------- families


def check_families(check: Check) -> None:
    """A small model of each family against transformers' own layers on the processor, a protein at a time."""
    kinds = ["float32", "float16", "bfloat16"] if check.on_gpu else ["float32", "bfloat16"]
    sequences = [("MKVLAWYPQRSTNDEFGHIC" * 20)[number : number + length] for number, length in enumerate(_LENGTHS)]
    with tempfile.TemporaryDirectory(prefix="gpu_check_") as scratch:
        for family in FAMILIES:
            folder = DATA / "models" / _FOLDERS.get(family.name, f"tiny_{family.name}")
            files = resolve_model(str(folder), workdir=Path(scratch))
            expected = _plainly(load_model(files, packed=False), sequences)
            for kind in kinds:

                def agrees(kind: str = kind, files: Any = files, expected: Any = expected) -> str:
                    mine = encoder.encode(load_model(files, dtype=kind, device=check.device), sequences)
                    error = max(_relative(one, other) for one, other in zip(mine, expected, strict=True))
                    if not error <= _LIMITS[kind]:
                        raise NotPassed(f"error {error:.2g}, more than {_LIMITS[kind]:g}")
                    return f"error {error:.1e}"

                check.judge("families", f"{family.title}, {kind}", agrees)


def _plainly(loaded: LoadedModel, sequences: Sequence[str]) -> list[torch.Tensor]:
    """``(L, D)`` representations by transformers' own layers."""
    states = []
    for sequence in sequences:
        ids = loaded.token_ids(sequence)
        with torch.no_grad():
            last = loaded.model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        states += encoder.split_residues(last, [len(ids)], loaded.family)
    return states


# --------------------------------------------------------------------------------------------------------------- stages


def _words(line: str, device: str, precision: str) -> list[str]:
    name, *words = line.replace("@", f"{DATA}/").split()
    return [f"plm_{name}", *words, "--device", device, "--precision", precision]


def _run(folder: Path, words: Sequence[str], before: str = "", launch: Sequence[str] = (), limit: float = 240) -> str:
    """Runs a stage in a folder of its own and gives its log.

    Args:
        folder: Where it writes.
        words: Stage and flags.
        before: Python code that runs in the process before the stage.
        launch: What starts several processes, instead of Python.
        limit: Seconds.

    Raises:
        NotPassed: It ended with an error.
    """
    folder.mkdir(parents=True, exist_ok=True)
    script = ROOT / "tools" / f"{words[0]}.py"
    command = [sys.executable, str(script), *words[1:]]
    if before:
        code = f"""{before}
import runpy, sys
sys.path.insert(0, {str(script.parent)!r})
sys.argv[0] = {str(script)!r}
runpy.run_path({str(script)!r}, run_name="__main__")"""
        command = [sys.executable, "-c", code, *words[1:]]
    elif launch:
        command = [sys.executable, "-m", *launch, str(script), *words[1:]]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=limit, env=environment, check=False
    )
    if done.returncode:
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()] or ["no message"]
        raise NotPassed(f"exit code {done.returncode}: {lines[-1][:300]}")
    return done.stdout + done.stderr


def check_stages(check: Check) -> None:
    """Every stage that has a model, in processes of their own, four at a time."""
    names = list(STAGES) if check.on_gpu else list(_WITHOUT_DEVICE)
    with tempfile.TemporaryDirectory(prefix="gpu_check_") as scratch, ThreadPoolExecutor(4) as pool:

        def one(name: str) -> Finding:
            started = time.monotonic()
            folder = Path(scratch) / name.replace(" ", "_")
            try:
                left = check.ends - started
                if left <= 0:
                    raise NotPassed("no time was left for it")
                log = _run(folder, _words(STAGES[name], check.device.type, "auto"), limit=min(240, left + 30))
                device = next((line for line in log.splitlines() if "Device: " in line), "")
                finding = Finding("stages", name, "passed", device.partition("Device: ")[2])
                if check.on_gpu and "CPU" in finding.detail:
                    finding = Finding("stages", name, "failed", "it did not run on the device")
            except (NotPassed, subprocess.TimeoutExpired) as error:
                finding = Finding("stages", name, "failed", str(error)[:300])
            finding.seconds = round(time.monotonic() - started, 2)
            return finding

        for finding in pool.map(one, names):
            check.note(finding)


# ---------------------------------------------------------------------------------------------------- memory and resume


def check_memory(check: Check) -> None:
    """Rows that do not fit are halved, and give the same."""
    if not check.on_gpu:
        check.leave_out("memory", "only a device has a limit that can be set")
        return

    def halves() -> str:
        with tempfile.TemporaryDirectory(prefix="gpu_check_") as scratch:
            folder = Path(scratch)
            drawn = random.Random(0)
            proteins = ["".join(drawn.choices("MKVLAWYPQRSTNDEFGHIC", k=1000)) for _ in range(300)]
            (folder / "many.fasta").write_text("".join(f">p{n}\n{text}\n" for n, text in enumerate(proteins)))
            line = f"embed --input {folder / 'many.fasta'} --embeddings made.tabular --format tabular --batch-tokens"
            _run(folder / "free", _words(f"{line} 16384", "cuda", "fp32"))
            total = torch.cuda.get_device_properties(check.device).total_memory
            share = 1.5 * 2**30 / total
            # The stage plans with the memory that the device says it has, and meets a limit that it does not know of.
            limited = f"import torch\ntorch.cuda.set_per_process_memory_fraction({share})"
            log = _run(folder / "limited", _words(f"{line} 300000", "cuda", "fp32"), limited)
            times = log.count("Out of memory at")
            error = _difference(folder / "limited" / "made.tabular", folder / "free" / "made.tabular")
            if not times:
                raise NotPassed("the limit of 1.5 GiB was never met, so that nothing was halved")
            if not error < 1e-3:
                raise NotPassed(f"numbers differ by {error:.2g}")
            return f"halved {times} times; numbers differ by {error:.1e} at most"

    check.judge("memory", "a limit of 1.5 GiB", halves)


def check_resume(check: Check) -> None:
    """A pretraining that was stopped and resumed equals one that was not."""
    if not check.on_gpu:
        check.leave_out("resume", "the tests of the suite prove it for processors")
        return

    def equals() -> str:
        line = STAGES["pretrain"].replace("--preset tiny", "--model @models/tiny_esm2")
        with tempfile.TemporaryDirectory(prefix="gpu_check_") as scratch:
            folder = Path(scratch)
            _run(folder / "whole", _words(line, "cuda", "fp32"))
            stop = f"{line} --time-limit 1e-6 --checkpoint state.zip"
            _run(folder / "stopped", _words(stop, "cuda", "fp32"))
            resume = f"{line} --resume {folder / 'stopped' / 'state.zip'}"
            _run(folder / "resumed", _words(resume, "cuda", "fp32"))
            error = _difference(folder / "resumed" / "h.tabular", folder / "whole" / "h.tabular", last=True)
        if not error < 1e-3:
            raise NotPassed(f"the last record of the history differs by {error:.2g}")
        return f"the last record of the history differs by {error:.1e}"

    check.judge("resume", "pretraining", equals)


def check_processes(check: Check) -> None:
    """Two processes on two devices."""
    if not check.on_gpu or torch.cuda.device_count() < 2:
        check.leave_out("processes", "there are no two devices")
        return
    launch = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")

    def trains(line: str) -> str:
        with tempfile.TemporaryDirectory(prefix="gpu_check_") as scratch:
            folder = Path(scratch)
            _run(folder / "one", _words(f"{line} --accumulate 2", "cuda", "fp32"))
            _run(folder / "two", _words(line, "cuda", "fp32"), launch=launch)
            error = _difference(folder / "two" / "h.tabular", folder / "one" / "h.tabular", last=True)
        if not error < 1e-2:
            raise NotPassed(f"the last record of the history differs by {error:.2g}")
        return f"the last record of the history differs by {error:.1e}"

    def embeds() -> str:
        with tempfile.TemporaryDirectory(prefix="gpu_check_") as scratch:
            folder = Path(scratch)
            line = "embed --input @simulated_corpus.fasta --embeddings made.tabular --format tabular"
            _run(folder / "one", _words(line, "cuda", "fp32"))
            _run(folder / "two", _words(line, "cuda", "fp32"), launch=launch)
            error = _difference(folder / "two" / "made.tabular", folder / "one" / "made.tabular")
        if not error < 1e-3:
            raise NotPassed(f"numbers differ by {error:.2g}")
        return f"numbers differ by {error:.1e} at most"

    pretrain = STAGES["pretrain"].replace("--preset tiny", "--model @models/tiny_esm2")
    check.judge("processes", "pretraining with NCCL", partial(trains, pretrain))
    check.judge("processes", "pretraining with NCCL, divided (FSDP2)", partial(trains, f"{pretrain} --sharding full"))
    check.judge("processes", "distillation with NCCL", partial(trains, STAGES["distill"]))
    check.judge("processes", "embedding", embeds)


def _difference(mine: Path, theirs: Path, *, last: bool = False) -> float:
    """The largest difference of numbers of two tables, relative to those above 1; infinite if they are not alike.

    Args:
        mine: One table.
        theirs: The other.
        last: Compare the last rows only.
    """
    tables = []
    for path in (mine, theirs):
        with path.open() as file:
            rows = list(csv.reader(file, delimiter="\t"))
        tables.append([cell for row in (rows[-1:] if last else rows) for cell in row])
    if len(tables[0]) != len(tables[1]):
        return math.inf
    worst = 0.0
    for one, other in zip(*tables, strict=True):
        try:
            a, b = float(one), float(other)
        except ValueError:
            if one != other:
                return math.inf
            continue
        finite = math.isfinite(a) and math.isfinite(b)
        worst = max(worst, abs(a - b) / max(1.0, abs(b)) if finite else float(one != other))
    return worst
