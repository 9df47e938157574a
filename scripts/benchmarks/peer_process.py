"""Runs another package's embedder in an environment of its own; prints the seconds that it takes.

Called by :class:`benchmarks.embedding.Peer` as ``peer_process.py PACKAGE KIND MODEL SEQUENCES.json OUT.safetensors``.
Imports nothing of this suite. Each package is used as its documentation shows, with its default batches, in fp32.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def biotrainer(kind: str, folder: str) -> Callable[[list[str]], list[Any]]:
    """biotrainer's EmbeddingService with its class for ESM-2 or ProtT5."""
    import torch
    from biotrainer.embedders.huggingface import ESM2, ProtT5
    from biotrainer.embedders.services import EmbeddingService
    from transformers import AutoTokenizer, EsmModel, T5EncoderModel

    model = (T5EncoderModel if kind == "t5" else EsmModel).from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    embedder = (ProtT5 if kind == "t5" else ESM2)(
        name=folder, model=model.eval(), tokenizer=tokenizer, use_half_precision=False, device=torch.device("cpu")
    )
    service = EmbeddingService(embedder=embedder)

    def encode(sequences: list[str]) -> list[Any]:
        named = {record.seq_id: states for record, states in service.generate_embeddings(sequences, reduce=False)}
        return [named[f"Seq{number}"] for number in range(len(sequences))]

    return encode


def main() -> None:
    package, kind, folder, given, taken = sys.argv[1:]
    encode = {"biotrainer": biotrainer}[package](kind, folder)
    sequences = json.loads(Path(given).read_text())
    encode(["MKVLAAGS"])
    started = time.perf_counter()
    found = encode(sequences)
    seconds = time.perf_counter() - started

    from safetensors.torch import save_file

    save_file({str(number): states.float().cpu().contiguous().clone() for number, states in enumerate(found)}, taken)
    print(seconds)


if __name__ == "__main__":
    main()
