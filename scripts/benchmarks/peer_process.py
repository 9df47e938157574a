"""Runs another package's embedder in an environment of its own; prints the seconds that it takes, by the clock and of
the processor.

Called by :class:`benchmarks.embedding.Peer` as ``peer_process.py PACKAGE KIND MODEL SEQUENCES.json OUT.safetensors``.
Imports nothing of this suite. Each package is used as its documentation shows, with its default batches, in fp32.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

Encode = Callable[[list[str]], list[Any]]


def biotrainer(kind: str, folder: str) -> tuple[Encode, Encode]:
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
        return [named[f"Seq{number}"].float().cpu().numpy() for number in range(len(sequences))]

    return encode, encode


def esm_cpp(kind: str, folder: str, *, int8: bool = False) -> tuple[Encode, Encode]:
    """esm-cpp: what is timed are logits of all proteins packed, its fast way, which hands out no states; states come
    one protein at a time. Its 8-bit weights are those without SmoothQuant, which needs a corpus."""
    threads = int(os.environ.get("OMP_NUM_THREADS", "0"))
    if threads:  # it takes as many as it may run on, and cannot be told
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    import esm_cpp as package
    import numpy as np

    if kind != "esm2":
        sys.exit("esm-cpp computes ESM-2 only")
    from safetensors.numpy import load_file, save_file

    weights = load_file(f"{folder}/model.safetensors")  # named and complete as the published files of ESM-2 are
    renamed = {".gamma": ".weight", ".beta": ".bias"}
    for old, new in renamed.items():
        weights = {name.removesuffix(old) + new if name.endswith(old) else name: one for name, one in weights.items()}
    config = json.loads(Path(folder, "config.json").read_text())
    width = config["hidden_size"] // config["num_attention_heads"]
    for layer in range(config["num_hidden_layers"]):
        name = f"esm.encoder.layer.{layer}.attention.self.rotary_embeddings.inv_freq"
        weights.setdefault(name, (1 / 10000 ** (np.arange(0, width, 2) / width)).astype(np.float32))
    published = Path(tempfile.mkdtemp(prefix="esm_cpp_"), "model.safetensors")
    save_file(weights, published, metadata={"format": "pt"})
    model, tokenizer = package.Model.load_from_safetensors(str(published)), package.Tokenizer()
    if int8:
        model.quantize_weights()

    def ids(sequence: str) -> Any:
        return np.asarray(tokenizer.encode(sequence, truncate=False), dtype=np.int32)

    def timed(sequences: list[str]) -> list[Any]:
        return list(model.forward_scheduled([ids(sequence) for sequence in sequences]))

    def encode(sequences: list[str]) -> list[Any]:
        return [model.forward_with_hidden_states(ids(sequence))[1][-1][1:-1] for sequence in sequences]

    return timed, encode


def main() -> None:
    package, kind, folder, given, taken = sys.argv[1:]
    packages = {"biotrainer": biotrainer, "esm-cpp": esm_cpp, "esm-cpp-int8": partial(esm_cpp, int8=True)}
    timed, encode = packages[package](kind, folder)
    sequences = json.loads(Path(given).read_text())
    timed(["MKVLAAGS"])
    started, begun = time.perf_counter(), time.process_time()
    found = timed(sequences)
    seconds, processor = time.perf_counter() - started, time.process_time() - begun

    import numpy as np
    from safetensors.numpy import save_file

    if timed is not encode:
        found = encode(sequences)
    save_file({str(number): np.array(states, np.float32, order="C") for number, states in enumerate(found)}, taken)
    print(seconds, processor)


if __name__ == "__main__":
    main()
