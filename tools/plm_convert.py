#!/usr/bin/env python3
"""Convert a protein language model into another form, and prove that both answer alike.

Inputs: a .pt file of fair-esm (ESM-1b, ESM-1v, ESM-2), partitions of a BERT trained with Megatron, a Hugging Face
folder or its zip, a PEFT adapter, or a bundle of plm_finetune. What it is, is told from its content.
Outputs: the model in the form asked for, and a report of what was taken, what was left, and how far the same proteins'
representations lie apart before and after. A model that answers otherwise is not written.

Example:
    python plm_convert.py --input esm2_t6_8M_UR50D.pt --to hugging-face --output esm2_8m.zip --report report.md
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from plm import flags, stage
from plm.errors import UserError
from plm.telling.page import publish

NAME = "plm_convert"


class Arguments(flags.Reporting, flags.Hub):
    """The command line; see ``--help``."""

    input: list[Path] = flags.source(
        "checkpoint file, folder or zip; or the files of several partitions", several=True, required=True
    )
    to: str = flags.choice(
        ("hugging-face", "fair-esm", "encoder", "merged", "onnx", "int8"),
        "hugging-face: a folder that every tool takes; fair-esm: its .pt files; encoder: without decoder and heads; "
        "merged: an adapter in its base model; onnx: the encoder for other programs; int8: weights of 8 bits",
    )
    model: str = flags.text("base model of an adapter or bundle: starter, folder, zip or hub:name")
    dtype: str = flags.choice(("keep", "float32", "float16", "bfloat16"), "type of the stored weights")
    contact_regression: Path | None = flags.source("contact regression of a fair-esm model, if not beside it")
    vocabulary: Path | None = flags.source("tokens of a Megatron checkpoint, one a line (vocab.txt)")
    checkpoint_version: str = flags.choice(
        ("auto", "0", "1", "2"), "of a Megatron checkpoint: in which order query, key and value lie (2 is also for 3)"
    )
    attention_heads: int = flags.whole(
        0, "of a Megatron checkpoint that does not say it itself", 1, 10_000, or_zero=True
    )
    member: int = flags.whole(0, "which network of a bundle that holds several, from 1", 1, 1000, or_zero=True)
    output: Path = flags.output("the converted model (zip; for --to onnx an ONNX file)", required=True)

    def check(self) -> None:
        if self.allow_hub and not self.model.startswith("hub:"):
            raise UserError("--allow-hub is for a base model of the hub", fix="Give --model hub:name, or leave it out")


def run(argv: Sequence[str] | None = None) -> None:
    args = flags.read(Arguments, NAME, __doc__, argv)
    needed = {"torch": "2.6", "transformers": "5.2", "safetensors": "0.5", "peft": "0.14"}
    stage.require(needed | ({"onnx": "1.17", "onnxruntime": "1.20"} if args.to == "onnx" else {}))
    log = stage.log(NAME)
    from plm.jobs.convert import job
    from plm.jobs.convert.report import conversion_report, first_lines

    with tempfile.TemporaryDirectory(prefix="plm_") as place, stage.Outputs() as out:
        request = args.into(job.ConversionRequest)
        converted = job.convert(request, Path(place), log)
        job.deliver(converted, out.path(args.output))
        if args.tells():
            publish(conversion_report(converted), args, out, NAME)
    for line in first_lines(converted):
        log.info("%s", line)


if __name__ == "__main__":
    stage.main(NAME, run)
