"""Conversions for tests: tiny models of fair-esm in its published files, and the stage run in this process."""

from __future__ import annotations

import zipfile
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import plm_convert
import pytest
import torch
from megatron_reference import TOKENS, MegatronReference

esm = pytest.importorskip("esm", reason="fair-esm, the reference implementation, is not installed")
ALPHABET = esm.data.Alphabet.from_architecture("ESM-1b")
DATA = Path(__file__).resolve().parents[1] / "test-data"


def convert(tmp_path: Path, *given: str | Path | list[Path], to: str = "hugging-face", out: str = "out.zip") -> Path:
    """Runs the stage in this process; the first argument is the input, or several."""
    first, *others = given
    inputs = [str(one) for one in (first if isinstance(first, list) else [first])]
    output = tmp_path / out
    report = tmp_path / "report.md"
    flags = [str(one) for one in others]
    plm_convert.run(["--input", *inputs, "--to", to, *flags, "--output", str(output), "--report", str(report)])
    return output


def told(tmp_path: Path) -> str:
    return (tmp_path / "report.md").read_text()


def unpacked(path: Path, folder: Path) -> Path:
    with zipfile.ZipFile(path) as opened:
        opened.extractall(folder)
    return folder


def fair(kind: str) -> Any:
    """A tiny model of fair-esm with every weight random."""
    torch.manual_seed(len(kind))
    model: Any
    if kind == "esm2":
        model = esm.model.esm2.ESM2(num_layers=2, embed_dim=32, attention_heads=4, alphabet=ALPHABET)
    else:
        settings = Namespace(
            arch="roberta_large", layers=2, embed_dim=32, ffn_embed_dim=48, attention_heads=4, max_positions=1024,
            token_dropout=True, emb_layer_norm_before=kind == "esm1b",
        )
        model = esm.model.esm1.ProteinBertModel(settings, ALPHABET)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        if kind != "esm2":
            model.embed_tokens.weight[ALPHABET.mask_idx] = 0  # as in published files
    return model.eval()


def published(model: Any, kind: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """The model in the files that fair-esm publishes, with the names of its trainer."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        name: value.to(dtype) if "inv_freq" not in name else value for name, value in model.state_dict().items()
    }
    regression = {name: state.pop(name) for name in list(state) if name.startswith("contact_head.")}
    prefix = {name: "encoder." if name.startswith("lm_head.") else "encoder.sentence_encoder." for name in state}
    content: dict[str, Any] = {"model": {prefix[name] + name: value for name, value in state.items()}}
    said = {"encoder_layers": 2, "encoder_embed_dim": 32, "encoder_attention_heads": 4, "token_dropout": True}
    if kind == "esm2":
        content["cfg"] = {"_name": None, "model": Namespace(**said, arch="x")}
    else:
        content["args"] = Namespace(**said, arch="roberta_large", encoder_ffn_embed_dim=48, max_positions=1024)
    path = folder / f"{kind}_tiny.pt"
    torch.save(content, path)
    if kind != "esm1v":
        torch.save({"model": regression}, folder / f"{kind}_tiny-contact-regression.pt")
    return path


def tiny_folder(name: str) -> Path:
    return Path(__file__).resolve().parents[1] / "test-data" / "models" / name


# ------------------------------------------------------------------------------------------ what reports say, and when


def reported(make: Callable[[Path], list[str | Path]], to: str = "hugging-face") -> str:
    """The report of a conversion of what ``make`` puts into a folder."""
    with TemporaryDirectory() as place:
        folder = Path(place)
        convert(folder, *make(folder), to=to)
        return told(folder)


def _fair(folder: Path, kind: str = "esm2", change: Callable[[dict[str, Any]], None] | None = None) -> list[str | Path]:
    path = published(fair(kind), kind, folder)
    if change is not None:
        with torch.serialization.safe_globals([Namespace]):
            content = torch.load(path)
        change(content["model"])
        torch.save(content, path)
    return [path]


def _rounded(model: dict[str, Any]) -> None:
    model["encoder.sentence_encoder.layers.0.self_attn.rot_emb.inv_freq"] *= 1.001


def _unknown(model: dict[str, Any]) -> None:
    model["encoder.structure_head.weight"] = torch.zeros(2)


def _masked(model: dict[str, Any]) -> None:
    model["encoder.sentence_encoder.embed_tokens.weight"][ALPHABET.mask_idx] = 1


def _megatron(
    folder: Path, *flags: str, version: float | None = 3.0, headless: bool = False, **options: Any
) -> list[str | Path]:
    MegatronReference(layers=1, hidden=8, heads=2, **options).save(folder / "m", version=version)
    (folder / "m" / "vocab.txt").write_text("\n".join(TOKENS[:30] if headless else TOKENS))
    if headless:
        file = folder / "m" / "mp_rank_00" / "model_optim_rng.pt"
        content = torch.load(file, weights_only=False)  # written above
        del content["model"]["lm_head"]
        torch.save(content, file)
    return [folder / "m", *flags]


def _full(folder: Path) -> list[str | Path]:
    """A Megatron checkpoint whose vocabulary fills its rows."""
    made = _megatron(folder)
    (folder / "m" / "vocab.txt").write_text("\n".join([*TOKENS, *(f"[{number}]" for number in range(97))]))
    return made


def _bundle(folder: Path, name: str = "bundle_tiny_residues", *flags: str) -> list[str | Path]:
    return [DATA / f"{name}.zip", "--model", DATA / "models" / "tiny_esm2", *flags]


def _headed(folder: Path) -> list[str | Path]:
    from transformers import EsmForMaskedLM
    from transformers.models.esm.modeling_esm import EsmPooler

    source = DATA / "models" / "tiny_esm1b"
    model = EsmForMaskedLM.from_pretrained(source)
    del model.esm.contact_head
    model.esm.pooler = EsmPooler(model.config)
    model.save_pretrained(folder / "esm1b")
    (folder / "esm1b" / "vocab.txt").write_bytes((source / "vocab.txt").read_bytes())
    return [folder / "esm1b"]


def _rotary(folder: Path) -> list[str | Path]:
    """ESM-2 as it was published on the hub, with a table of positions that it never reads."""
    from safetensors.torch import load_file, save_file

    made = unpacked(convert(folder, *_fair(folder)), folder / "hf")
    weights = load_file(made / "model.safetensors")
    weights["esm.embeddings.position_embeddings.weight"] = torch.zeros(1026, 32)
    save_file(weights, made / "model.safetensors", metadata={"format": "pt"})
    return [made]


def an_adapter(
    folder: Path, base: str = "tiny_esm2", targets: tuple[str, ...] = ("query", "value")
) -> list[str | Path]:
    """An adapter as PEFT writes it, and the flag of its base."""
    import peft
    from transformers import EsmModel, T5EncoderModel

    source = DATA / "models" / base
    model = T5EncoderModel.from_pretrained(source) if base == "tiny_t5" else EsmModel.from_pretrained(source)
    peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=list(targets))).save_pretrained(folder / "a")
    return [folder / "a", "--model", source]


CONVERSIONS: dict[str, Callable[[], str]] = {
    "fair-esm": partial(reported, _fair),
    "no contacts": partial(reported, partial(_fair, kind="esm1v")),
    "rounded": partial(reported, partial(_fair, change=_rounded)),
    "unknown": partial(reported, partial(_fair, change=_unknown)),
    "unknown, ONNX": partial(reported, partial(_fair, change=_unknown), "onnx"),
    "mask": partial(reported, partial(_fair, kind="esm1b", change=_masked)),
    "to fair-esm": partial(reported, lambda folder: [DATA / "models" / "tiny_esm1b"], "fair-esm"),
    "pooler": partial(reported, _headed, "fair-esm"),
    "rotary": partial(reported, _rotary, "fair-esm"),
    "adapter": partial(reported, an_adapter, "merged"),
    "encoder adapter": partial(reported, partial(an_adapter, base="tiny_t5", targets=("q", "v")), "merged"),
    "int8": partial(reported, lambda folder: [DATA / "models" / "tiny_ankh"], "int8"),
    "megatron": partial(reported, _megatron),
    "full vocabulary": partial(reported, _full),
    "types": partial(reported, partial(_megatron, types=2)),
    "fused": partial(reported, partial(_megatron, fused=True)),
    "as asked": partial(reported, lambda folder: _megatron(folder, "--checkpoint-version", "2")),
    "no version": partial(reported, partial(_megatron, version=None)),
    "no head": partial(reported, partial(_megatron, headless=True)),
    "head alone": partial(reported, _bundle),
    "low rank": partial(reported, lambda folder: _bundle(folder, "bundle_tiny_site", "--member", "1")),
    "as float32": partial(
        reported, lambda folder: _bundle(folder, "bundle_tiny_site", "--member", "1", "--dtype", "float32")
    ),
}
CONVERSION_TABLES: dict[str, dict[str, tuple[str, str | None]]] = {
    "report": {
        "written as": ("fair-esm", None),
        "They lie in": ("unknown", "unknown, ONNX"),
        "tensors of the input have no place in the result:": ("unknown", "fair-esm"),
        "The same proteins before and after": ("fair-esm", None),
        "Made-up proteins went through both; the difference of all numbers is given in relation to their size.": (
            "int8", None,
        ),
    },
    "fair_esm": {
        "The file's rotary frequencies differ by up to": ("rounded", "fair-esm"),
        "The input holds no contact regression: contacts cannot": ("no contacts", "fair-esm"),
        "The input holds no contact regression; fair-esm predicts": ("pooler", "to fair-esm"),
        "The embedding of the mask is set to zero": ("mask", "fair-esm"),
        "tensors of the pooler (fair-esm has none)": ("pooler", "to fair-esm"),
        "the table of learned positions, which rotary models never read": ("rotary", "to fair-esm"),
    },
    "megatron": {
        "all queries, all keys, all values": ("no version", "megatron"),
        "Query, key and value lie in the order of version": ("megatron", "no version"),
        "rows of the embedding that no token has (padding)": ("megatron", "full vocabulary"),
        "The model knows no token types; the table": ("megatron", "types"),
        "The input holds no language-model head: the result": ("no head", "megatron"),
        "The layers were trained with the fused GELU": ("fused", "megatron"),
        "Query, key and value were read in the order of version": ("as asked", "megatron"),
        "The checkpoint does not say its version;": ("no version", "megatron"),
    },
    "merging": {
        "answers of encoder and head, as the bundle gives them": ("head alone", "fair-esm"),
        "The adapter was made, as it says, for the model": ("adapter", "low rank"),
        "The language-model head is that of the base model.": ("adapter", "encoder adapter"),
        "The adapter moves the base model's representations by": ("adapter", "low rank"),
        "adapter on its base, by PEFT": ("adapter", "low rank"),
        "Sums of base and adapter are float32, and stored so.": ("low rank", "head alone"),
    },
    "checkpoints": {"The file of weights is": ("int8", "fair-esm")},
    "encoder_onnx": {"representations, by ONNX Runtime from the file": ("unknown, ONNX", "unknown")},
    "job": {
        "representations, as fair-esm computes them from the result": ("to fair-esm", "fair-esm"),
        "representations, as fair-esm computes them from the input": ("fair-esm", "megatron"),
        "representations, as Megatron computes them from the input": ("megatron", "fair-esm"),
    },
}
"""Pieces of sentences of modules of jobs/convert; a conversion of which each is true, and one of which it is not."""
CONVERSIONS_LEFT: dict[str, tuple[str, ...]] = {
    "fair_esm": ("Give a .pt file of fair-esm",), "megatron": ("Give all files of the checkpoint",),
    "merging": (
        "Give the adapter as PEFT", "softmax(outputs / temperature)",
        "the predictors on sequences and their combination",
    ),  # tests/test_convert.py
}
