"""Ways to compute residue representations, side by side: fair-esm, plain Hugging Face, other packages, this suite.

Each takes sequences and gives one ``(L, D)`` float32 tensor a sequence on the CPU, in input order, nothing cut.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from benchmarks.shapes import Shape

Encode = Callable[[Sequence[str]], list[torch.Tensor]]

REFERENCE = "reference"
"""The variant that all others are measured by."""

GEMM = "gemm"
"""Not an encoder: the matrix products of its linear layers alone, without which none can do."""
GEMM_TOKENS = 1024
"""Tokens that processors multiply fastest."""

PEERS = {
    "biotrainer": "biotrainer, its own batches, fp32",
    "esm-cpp": "esm-cpp, packed, fp32 (logits only)",
    "esm-cpp-int8": "esm-cpp, packed, 8-bit weights without SmoothQuant (logits only)",
}
"""Packages that run in a process of an environment of their own."""


@dataclass(frozen=True)
class Variant:
    """One way.

    Attributes:
        name: On the command line.
        title: In tables.
        once: Measured in the first round only, because it is slow.
    """

    name: str
    title: str
    once: bool = False


def variants(budgets: Sequence[int], peers: Sequence[str] = ()) -> list[Variant]:
    """All ways that are known; our own in bfloat16 with each token budget."""
    middle = sorted(budgets)[len(budgets) // 2]
    return [
        Variant(REFERENCE, "fair-esm, batches of extract.py, fp32"),
        Variant("hf-unsorted-fp32", "Hugging Face, padded, batch 8, fp32", once=True),
        Variant("hf-sorted-fp32", "Hugging Face, sorted, batch 8, fp32", once=True),
        Variant("hf-unsorted-bf16", "Hugging Face, padded, batch 8, bf16", once=True),
        Variant("hf-sorted-bf16", "Hugging Face, sorted, batch 8, bf16"),
        Variant("hf-single-bf16", "Hugging Face, one by one, bf16"),
        *(Variant(peer, PEERS[peer], once=True) for peer in peers),
        Variant(f"ours-fp32-{middle}", f"this suite, {middle:,} tokens, fp32"),
        Variant(f"ours-int8-{min(budgets)}", f"this suite, {min(budgets):,} tokens, 8-bit products"),
        *(Variant(f"ours-bf16-{budget}", f"this suite, {budget:,} tokens, bf16") for budget in budgets),
        Variant(GEMM, "matrix products alone, bf16"),
    ]


def title(variant: Variant, shape: Shape) -> str:
    """The variant's title; a T5 encoder's reference is another program."""
    if variant.name == REFERENCE and shape.kind == "t5":
        return "Hugging Face, batches of prott5_embedder.py, fp32"
    return variant.title


def build(name: str, shape: Shape, folder: Path, device: torch.device, peers: dict[str, str] | None = None) -> Encode:
    """Loads what a variant needs.

    Args:
        name: Of a :class:`Variant` other than :data:`GEMM`.
        shape: The model's shape.
        folder: Its checkpoint.
        device: Where to run.
        peers: The Python of each peer's environment.
    """
    if name == REFERENCE:
        return _prott5_embedder(shape, folder, device) if shape.kind == "t5" else _extract(folder, device)
    kind, *rest = name.split("-")
    if kind == "hf":
        order, precision = rest
        size = 1 if order == "single" else 8
        return _hugging_face(shape, folder, device, precision, size, sort=order == "sorted")
    if kind == "ours":
        precision, budget = rest
        return _ours(folder, device, precision, int(budget))
    return Peer(name, (peers or {})[name], shape, folder)


# ------------------------------------------------------------------------------------------------------------ variants


def fair_esm_model(folder: Path) -> tuple[Any, Any]:
    """fair-esm's ESM-2 with the weights of a checkpoint in Hugging Face format, and its alphabet."""
    import esm
    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text())
    layers, hidden, middle = (config[key] for key in ("num_hidden_layers", "hidden_size", "intermediate_size"))
    alphabet = esm.data.Alphabet.from_architecture("ESM-1b")
    model = esm.model.esm2.ESM2(
        num_layers=layers, embed_dim=hidden, attention_heads=config["num_attention_heads"], alphabet=alphabet
    )
    # fair-esm knows one width of the feed-forward layers; tiny test models have others.
    for layer in model.layers:
        layer.fc1 = nn.Linear(hidden, middle)
        layer.fc2 = nn.Linear(middle, hidden)
    parts = (
        ("attention.self.query", "self_attn.q_proj"), ("attention.self.key", "self_attn.k_proj"),
        ("attention.self.value", "self_attn.v_proj"), ("attention.output.dense", "self_attn.out_proj"),
        ("attention.LayerNorm", "self_attn_layer_norm"), ("intermediate.dense", "fc1"), ("output.dense", "fc2"),
        ("LayerNorm", "final_layer_norm"), ("esm.encoder.layer", "layers"),
        ("esm.encoder.emb_layer_norm_after", "emb_layer_norm_after"),
        ("esm.embeddings.word_embeddings", "embed_tokens"), (".gamma", ".weight"), (".beta", ".bias"),
    )
    state = {}
    for key, value in load_file(folder / "model.safetensors").items():
        if key.endswith("rotary_embeddings.inv_freq"):  # one for all layers; published ones are rounded to float16
            for layer in model.layers:
                layer.self_attn.rot_emb.inv_freq.copy_(value)
        for theirs, own in parts:
            key = key.replace(theirs, own)
        state[key] = value.float()
    missing, _ = model.load_state_dict(state, strict=False)
    wrong = [key for key in missing if not key.startswith(("contact_head.", "lm_head.")) and "inv_freq" not in key]
    if wrong:
        raise RuntimeError(f"weights without a counterpart in fair-esm: {wrong[:3]}")
    return model.eval(), alphabet


def _extract(folder: Path, device: torch.device) -> Encode:
    """fair-esm as its scripts/extract.py runs it: sorted by length, at most 4,096 tokens with padding."""
    import esm

    model, alphabet = fair_esm_model(folder)
    model = model.to(device)
    convert = alphabet.get_batch_converter()

    def encode(sequences: Sequence[str]) -> list[torch.Tensor]:
        data = esm.FastaBatchedDataset([str(number) for number in range(len(sequences))], sequences)
        found: dict[int, torch.Tensor] = {}
        with torch.no_grad():
            for batch in data.get_batch_indices(4096, extra_toks_per_seq=1):
                _, texts, tokens = convert([data[index] for index in batch])
                layer = model.num_layers
                states = model(tokens.to(device), repr_layers=[layer])["representations"][layer].cpu()
                for index, text, state in zip(batch, texts, states, strict=True):
                    found[index] = state[1 : len(text) + 1].clone()
        return [found[index] for index in range(len(sequences))]

    return encode


def plain_model(shape: Shape, folder: Path, device: torch.device, precision: str) -> nn.Module:
    """The transformers class as its documentation loads it."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    if shape.kind == "t5":
        model = transformers.T5EncoderModel.from_pretrained(folder, dtype=dtype)
    else:
        model = transformers.EsmModel.from_pretrained(folder, dtype=dtype, add_pooling_layer=False)
    return model.eval().to(device)


def _plain_batch(
    shape: Shape, folder: Path, device: torch.device, precision: str
) -> Callable[[list[str]], list[torch.Tensor]]:
    from transformers import AutoTokenizer

    model, tokenizer = plain_model(shape, folder, device, precision), AutoTokenizer.from_pretrained(folder)
    first = 0 if shape.kind == "t5" else 1

    def encode(sequences: list[str]) -> list[torch.Tensor]:
        texts = [" ".join(text) for text in sequences] if shape.kind == "t5" else sequences
        given = tokenizer(texts, padding=True, return_tensors="pt").to(device)
        states = model(input_ids=given["input_ids"], attention_mask=given["attention_mask"]).last_hidden_state
        states = states.float().cpu()
        return [state[first : first + len(text)].clone() for state, text in zip(states, sequences, strict=True)]

    return encode


def _hugging_face(shape: Shape, folder: Path, device: torch.device, precision: str, size: int, *, sort: bool) -> Encode:
    batch = _plain_batch(shape, folder, device, precision)

    def encode(sequences: Sequence[str]) -> list[torch.Tensor]:
        order = sorted(range(len(sequences)), key=lambda index: -len(sequences[index]) if sort else index)
        found: dict[int, torch.Tensor] = {}
        with torch.inference_mode():
            for start in range(0, len(order), size):
                chosen = order[start : start + size]
                found.update(zip(chosen, batch([sequences[index] for index in chosen]), strict=True))
        return [found[index] for index in range(len(sequences))]

    return encode


def _prott5_embedder(shape: Shape, folder: Path, device: torch.device) -> Encode:
    """ProtT5's published script (github.com/agemagician/ProtTrans, prott5_embedder.py): longest first, batches of at
    most 4,000 residues and 100 sequences, those above 1,000 residues alone; in fp32, as it runs on a CPU."""
    batch = _plain_batch(shape, folder, device, "fp32")

    def encode(sequences: Sequence[str]) -> list[torch.Tensor]:
        found: dict[int, torch.Tensor] = {}
        waiting: list[int] = []
        order = sorted(range(len(sequences)), key=lambda index: -len(sequences[index]))
        with torch.no_grad():
            for place, index in enumerate(order):
                waiting.append(index)
                residues = sum(len(sequences[other]) for other in waiting)
                last = place == len(order) - 1
                if len(waiting) >= 100 or residues >= 4000 or last or len(sequences[index]) > 1000:
                    found.update(zip(waiting, batch([sequences[other] for other in waiting]), strict=True))
                    waiting = []
        return [found[index] for index in range(len(sequences))]

    return encode


def _ours(folder: Path, device: torch.device, precision: str, budget: int) -> Encode:
    """The suite's engine: packed rows through :mod:`plm.model.encoder`."""
    from plm.model import encoder, int8_products
    from plm.model.checkpoint import load_model, resolve_model

    dtype = "bfloat16" if precision == "bf16" else "float32"
    loaded = load_model(resolve_model(str(folder), workdir=folder), dtype=dtype, device=device)
    reduced = False

    def encode(sequences: Sequence[str]) -> list[torch.Tensor]:
        nonlocal reduced
        if precision == "int8" and not reduced:  # while the benchmark warms up
            int8_products.reduce(loaded, sequences)
            reduced = True
        return encoder.encode(loaded, sequences, budget)

    return encode


class Peer:
    """A package in a process of its own: started for each measurement, which its start and loading are not part of."""

    def __init__(self, name: str, python: str, shape: Shape, folder: Path) -> None:
        self.name, self.python, self.shape, self.folder = name, python, shape, folder
        self.seconds, self.processor_time = 0.0, False

    def __call__(self, sequences: Sequence[str]) -> list[torch.Tensor]:
        from safetensors.torch import load_file

        script = Path(__file__).with_name("peer_process.py")
        with tempfile.TemporaryDirectory(prefix="peer_") as scratch:
            given, taken = Path(scratch) / "given.json", Path(scratch) / "taken.safetensors"
            given.write_text(json.dumps(list(sequences)))
            command = [self.python, str(script), self.name, self.shape.kind, str(self.folder), str(given), str(taken)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode != 0:
                raise RuntimeError(f"{self.name} failed:\n{done.stderr[-2000:]}")
            wall, processor = (float(word) for word in done.stdout.split()[-2:])
            self.seconds = processor if self.processor_time else wall
            states = load_file(taken)
        return [states[str(number)] for number in range(len(sequences))]


# ----------------------------------------------------------------------------------------------------- the lower bound


def linear_weights(model: nn.Module) -> list[torch.Tensor]:
    """The matrices of the linear layers of all blocks (ESM's contact regression also is a linear layer)."""
    found = [module.weight.detach() for module in model.modules() if isinstance(module, nn.Linear)]
    return [weight for weight in found if weight.shape[0] > 1]


def gemm(weights: Sequence[torch.Tensor], rows: Sequence[int]) -> None:
    """Multiplies rows of tokens by every matrix in turn; results are dropped.

    Args:
        weights: ``(out, in)`` each.
        rows: Tokens in each packed row.
    """

    def multiply(tokens: int) -> None:
        with torch.inference_mode():
            inputs = {
                width: torch.full((tokens, width), 0.5, dtype=weights[0].dtype, device=weights[0].device)
                for width in {weight.shape[1] for weight in weights}
            }
            for weight in weights:
                functional.linear(inputs[weight.shape[1]], weight)

    if weights[0].device.type != "cpu":
        for tokens in rows:
            multiply(tokens)
        return
    # The limit shall be the machine's best: small rows, equal shares, no thread waiting for another.
    threads = torch.get_num_threads()
    parts = max(threads, -(-sum(rows) // GEMM_TOKENS // threads) * threads)
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        list(pool.map(multiply, [-(-sum(rows) // parts)] * parts))


# --------------------------------------------------------------------------------------------------------------- errors


def differences(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> dict[str, float]:
    """How far representations lie from the reference's.

    Returns:
        ``relative_l2`` over all residues; ``pooled_cosine``, the lowest of the proteins' means; ``residue_cosine``,
        the first percentile of the residues'.
    """
    above = sum(float((a - b).double().square().sum()) for a, b in zip(found, expected, strict=True))
    below = sum(float(b.double().square().sum()) for b in expected)
    means = torch.stack([a.mean(0) for a in found]), torch.stack([b.mean(0) for b in expected])
    pooled = functional.cosine_similarity(*means).min()
    residues = functional.cosine_similarity(torch.cat(list(found)), torch.cat(list(expected)))
    return {
        "relative_l2": (above / below) ** 0.5,
        "pooled_cosine": float(pooled),
        "residue_cosine": float(torch.quantile(residues[:1_000_000], 0.01)),
    }
