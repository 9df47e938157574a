"""fair-esm models with random weights, and the same weights as a checkpoint in Hugging Face format."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from plm.masked_lm.presets import esm2_config
from plm.model.checkpoint import save_checkpoint
from plm.model.families.esm2 import write_esm2_tokenizer

ESM2_SHAPES = {"8M": (6, 320, 20), "35M": (12, 480, 20), "150M": (30, 640, 20)}


def fair_esm2(shape: tuple[int, int, int], folder: Path) -> Any:
    """An ESM-2 of fair-esm; its weights, contact regression included, are written as a checkpoint to ``folder``."""
    esm = pytest.importorskip("esm", reason="fair-esm, the reference implementation, is not installed")
    layers, hidden, heads = shape
    torch.manual_seed(0)
    alphabet = esm.data.Alphabet.from_architecture("ESM-1b")
    model = esm.model.esm2.ESM2(num_layers=layers, embed_dim=hidden, attention_heads=heads, alphabet=alphabet)
    config = esm2_config(layers=layers, hidden=hidden, heads=heads, feedforward=4 * hidden)
    return _prepared(model, config, folder)


def fair_esm1b(shape: tuple[int, int, int], folder: Path) -> Any:
    """An ESM-1b of fair-esm (learned positions, layer norm before and after), written likewise."""
    esm = pytest.importorskip("esm", reason="fair-esm, the reference implementation, is not installed")
    layers, hidden, heads = shape
    torch.manual_seed(0)
    alphabet = esm.data.Alphabet.from_architecture("ESM-1b")
    settings = Namespace(
        arch="roberta_large", layers=layers, embed_dim=hidden, ffn_embed_dim=4 * hidden, attention_heads=heads,
        max_positions=1024, token_dropout=True, emb_layer_norm_before=True,
    )
    model = esm.model.esm1.ProteinBertModel(settings, alphabet)
    config = esm2_config(layers=layers, hidden=hidden, heads=heads, feedforward=4 * hidden)
    config.position_embedding_type, config.emb_layer_norm_before = "absolute", True
    return _prepared(model, config, folder)


def _prepared(model: Any, config: Any, folder: Path) -> Any:
    from transformers import EsmForMaskedLM

    with torch.no_grad():  # every weight random: fresh layer norms and biases of one and zero would hide mistakes
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.1 * torch.randn_like(parameter)
    target = EsmForMaskedLM(config)
    target.load_state_dict(_renamed(model.state_dict(), config.num_hidden_layers, target.state_dict()))
    folder.mkdir(exist_ok=True)
    write_esm2_tokenizer(folder)
    save_checkpoint(target, folder, folder, dtype="float32")
    return model.eval()


def _renamed(source: dict[str, torch.Tensor], layers: int, like: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """fair-esm's weights under transformers' names; every parameter of transformers must have its counterpart."""
    names = {
        "esm.embeddings.word_embeddings": "embed_tokens",
        "esm.embeddings.position_embeddings": "embed_positions",
        "esm.embeddings.layer_norm": "emb_layer_norm_before",
        "esm.encoder.emb_layer_norm_after": "emb_layer_norm_after",
        "esm.contact_head.regression": "contact_head.regression",
        "lm_head.dense": "lm_head.dense",
        "lm_head.layer_norm": "lm_head.layer_norm",
    }
    for n in range(layers):
        mine, theirs = f"esm.encoder.layer.{n}.", f"layers.{n}."
        for word, short in (("query", "q"), ("key", "k"), ("value", "v")):
            names[f"{mine}attention.self.{word}"] = f"{theirs}self_attn.{short}_proj"
        names[f"{mine}attention.output.dense"] = f"{theirs}self_attn.out_proj"
        names[f"{mine}attention.LayerNorm"] = f"{theirs}self_attn_layer_norm"
        names[f"{mine}intermediate.dense"] = f"{theirs}fc1"
        names[f"{mine}output.dense"] = f"{theirs}fc2"
        names[f"{mine}LayerNorm"] = f"{theirs}final_layer_norm"
    state = dict(like)
    state["lm_head.decoder.weight"] = source["embed_tokens.weight"]
    state["lm_head.bias"] = source["lm_head.bias"]
    left = set(like) - {"lm_head.decoder.weight", "lm_head.decoder.bias", "lm_head.bias"}
    for mine, theirs in names.items():
        for kind in ("weight", "bias"):
            if f"{theirs}.{kind}" in source:
                state[f"{mine}.{kind}"] = source[f"{theirs}.{kind}"]
                left.discard(f"{mine}.{kind}")
    left = {name for name in left if "position_ids" not in name and "inv_freq" not in name}
    assert not left, f"without a counterpart in fair-esm: {sorted(left)}"
    return state
