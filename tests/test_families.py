"""Every family of the registry: equal to the plain transformers class, told by its files; all else is refused."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from family_cases import every_family, load, own_ids, plain, protein, relative_l2, tiny
from plm.errors import UserError
from plm.model import batching, configuration, encoder
from plm.model.checkpoint import resolve_model, save_checkpoint
from plm.model.families import ANKH, BERT, ESM1B, ESM2, FAMILIES, PROTT5, ModelFamily, find_family
from plm.received.vocabularies import read_vocabulary as received_vocabulary
from safetensors.torch import load_file, save_file

EXACT = 2e-5
LIBRARY = Path(__file__).resolve().parents[1] / "tools"


@every_family
@pytest.mark.parametrize("length", [40, 300, 1500])
def test_equals_the_plain_class(family: ModelFamily, length: int, tmp_path: Path) -> None:
    """States of all layers, and logits where there is a head, beside another sequence in the row; masks included."""
    folder = tiny(family)
    headed = bool(family.language_model_class)
    loaded = load(folder, tmp_path, purpose="masked_lm" if headed else "encoder")
    if length > (loaded.family.max_residues or length):
        with pytest.raises(UserError, match=f"takes at most {loaded.family.max_residues} residues"):
            loaded.token_ids(protein(length))
        length = loaded.family.max_residues or 0
    ids = loaded.token_ids(protein(length))
    assert ids == own_ids(family, folder, protein(length))
    for place in range(3, length, 9) if family.mask else ():
        ids[place] = loaded.vocabulary[family.mask]
    batch = batching.pack([loaded.token_ids(protein(77)), ids])
    reference = plain(family, folder, headed=headed)
    with torch.inference_mode():
        expected = reference(torch.tensor([ids]), output_hidden_states=True)
        states = encoder.layer_states(loaded, batch, range(loaded.layers + 1))
        assert len(expected.hidden_states) == loaded.layers + 1
        for mine, theirs in zip(states, expected.hidden_states, strict=True):
            assert relative_l2(mine.split(list(batch.lengths))[1], theirs[0]) <= EXACT
        if headed:
            logits = encoder.logits(loaded, batch).split(list(batch.lengths))[1]
            assert relative_l2(logits, expected.logits[0]) <= EXACT
            again = encoder.language_head(loaded.model)(states[-1]).split(list(batch.lengths))[1]
            assert relative_l2(again, expected.logits[0]) <= EXACT


@every_family
def test_attention_matters_in_the_tiny_checkpoint(family: ModelFamily, tmp_path: Path) -> None:
    """Else the comparisons above would prove little: residues far away change the states."""
    loaded, near, far = load(tiny(family), tmp_path), protein(150), protein(150, seed=1)
    one, other = (encoder.encode(loaded, [sequence])[0][:150] for sequence in (near + near, near + far))
    assert relative_l2(other, one) > 0.05


@every_family
def test_a_stored_model_is_the_same_model(family: ModelFamily, tmp_path: Path) -> None:
    for purpose in ("encoder", "masked_lm") if family.language_model_class else ("encoder",):
        loaded = load(tiny(family), tmp_path, purpose=purpose)
        save_checkpoint(loaded.model, tmp_path / purpose, tiny(family), dtype="float32")
        again = load(tmp_path / purpose, tmp_path, purpose=purpose)
        assert again.family == loaded.family and again.files.sha256 != ""
        for one, other in zip(*(encoder.encode(each, [protein(50)]) for each in (loaded, again)), strict=True):
            assert torch.equal(one, other)
        if purpose == "masked_lm":
            assert again.files.sha256 == loaded.files.sha256


@every_family
def test_tokens_and_targets_of_the_family(family: ModelFamily, tmp_path: Path) -> None:
    loaded = load(tiny(family), tmp_path)
    linear = [name for name, module in loaded.model.named_modules() if isinstance(module, torch.nn.Linear)]
    for target in (*family.attention_targets, *family.key_value_targets):
        assert sum(name.endswith("." + target) for name in linear) == loaded.layers
    for pattern in family.feedforward_targets:
        assert sum(re.fullmatch(rf"(.*\.)?{pattern}", name) is not None for name in linear) == loaded.layers
    own = loaded.token_ids("MBOUZM")[len(family.before) :][:6]
    unusual = [loaded.vocabulary[family.token(letter)] for letter in "BOUZ"]
    assert own[1:5] == (unusual if family.unusual else [loaded.vocabulary[family.token("X")]] * 4)
    if not family.language_model_class:
        with pytest.raises(UserError, match="has no masked language model here"):
            load(tiny(family), tmp_path, purpose="masked_lm")
    if not loaded.has_contacts:
        with pytest.raises(UserError, match="no contact regression"):
            encoder.contacts(loaded, "MKTAYIAK")


def test_contacts_of_esm1b_equal_the_plain_class(tmp_path: Path) -> None:
    loaded = load(tiny(ESM1B), tmp_path)
    ids = torch.tensor([loaded.token_ids(protein(60))])
    with torch.inference_mode():
        expected = plain(ESM1B, tiny(ESM1B), headed=False).predict_contacts(ids, torch.ones_like(ids))[0]
    assert relative_l2(encoder.contacts(loaded, protein(60)), expected) <= EXACT


def test_esm1v_has_no_norm_before_its_first_layer(tmp_path: Path) -> None:
    from plm.masked_lm.presets import esm2_config
    from plm.model.families.esm2 import write_esm2_tokenizer
    from transformers import EsmForMaskedLM

    config = esm2_config(layers=2, hidden=24, heads=4, feedforward=48)
    config.position_embedding_type = "absolute"
    model = EsmForMaskedLM(config).eval()
    (tmp_path / "m").mkdir()
    write_esm2_tokenizer(tmp_path / "m")
    save_checkpoint(model, tmp_path / "m", tmp_path / "m", dtype="float32")
    loaded = load(tmp_path / "m", tmp_path, purpose="masked_lm")
    ids = loaded.token_ids(protein(200))
    with torch.inference_mode():
        assert loaded.family.name == "esm1b" and loaded.family.max_residues == 1022
        assert relative_l2(encoder.logits(loaded, batching.pack([ids])), model(torch.tensor([ids])).logits[0]) <= EXACT


@pytest.mark.parametrize(
    ("positions", "kinds", "specials", "letters"),
    [
        pytest.param(40_000, 2, "[PAD] [UNK] [CLS] [SEP] [MASK]", "LAGVESIKRDTPNQFYMHCWXUBZO", id="ProtBert"),
        pytest.param(66, 1, "[PAD] [MASK] [CLS] [SEP] [UNK] [unused1]", "ABCDEFGHIKLMNOPQRSTUVWXYZ", id="ProteinLM"),
    ],
)
def test_bert_as_it_is_published(positions: int, kinds: int, specials: str, letters: str, tmp_path: Path) -> None:
    """Positions from the config; one kind of token or two; any order of the vocabulary; encoder without a head."""
    from transformers import BertConfig, BertModel

    vocabulary = [*specials.split(), *letters]
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=positions, type_vocab_size=kinds,
    )
    model = BertModel(config).eval()
    model.save_pretrained(tmp_path / "m")
    (tmp_path / "m" / "vocab.txt").write_text("\n".join(vocabulary))
    loaded = load(tmp_path / "m", tmp_path)
    assert loaded.family.max_residues == positions - 2
    ids = loaded.token_ids(protein(64))
    assert ids == [vocabulary.index("[CLS]"), *map(vocabulary.index, protein(64)), vocabulary.index("[SEP]")]
    with torch.inference_mode():
        expected = model(torch.tensor([ids])).last_hidden_state[0]
        assert relative_l2(encoder.hidden_states(loaded.model, batching.pack([ids])), expected) <= EXACT
    with pytest.raises(UserError, match=r"lacks \d+ of the model's weights"):
        load(tmp_path / "m", tmp_path, purpose="masked_lm")
    if positions < 100:
        with pytest.raises(UserError, match="BERT takes at most 64 residues and a sequence has 65"):
            encoder.hidden_states(loaded.model, batching.pack([ids + ids[:1]]))


# ------------------------------------------------------------------------------------------- what no family claims


def written(folder: Path, config: Any, kind: str, vocabulary: Path) -> Path:
    """A random checkpoint of a transformers class with the tokenizer of another."""
    import transformers

    getattr(transformers, kind)(config).save_pretrained(folder)
    for name in ("vocab.txt", "tokenizer.json", "spiece.model"):
        if (vocabulary / name).is_file():
            shutil.copyfile(vocabulary / name, folder / name)
    return folder


_SHAPE = {
    "vocab_size": 33, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
}


def others() -> dict[str, tuple[Callable[[], Any], str, ModelFamily]]:
    """Architectures that are of no family: their configuration, class, and whose tokenizer they come with."""
    import transformers as t

    t5 = {"vocab_size": 144, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    distil = {"vocab_size": 33, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}
    return {
        "modernbert": (
            lambda: t.ModernBertConfig(**_SHAPE, local_attention=16, pad_token_id=0), "ModernBertForMaskedLM", BERT,
        ),
        "roberta": (lambda: t.RobertaConfig(**_SHAPE), "RobertaForMaskedLM", ESM2),
        "distilbert": (lambda: t.DistilBertConfig(**distil), "DistilBertForMaskedLM", BERT),
        "electra": (lambda: t.ElectraConfig(**_SHAPE, embedding_size=16), "ElectraModel", BERT),
        "deberta": (lambda: t.DebertaV2Config(**_SHAPE, relative_attention=True), "DebertaV2Model", BERT),
        "megatron-bert": (lambda: t.MegatronBertConfig(**_SHAPE), "MegatronBertForMaskedLM", BERT),
        "t5-plain-letters": (lambda: t.T5Config(**t5), "T5EncoderModel", ANKH),
        "mt5": (lambda: t.MT5Config(**t5, feed_forward_proj="gated-gelu"), "MT5EncoderModel", ANKH),
    }


OTHERS = ("modernbert", "roberta", "distilbert", "electra", "deberta", "t5-plain-letters", "mt5")


@pytest.mark.parametrize("kind", OTHERS)
def test_an_unknown_architecture_is_refused(kind: str, tmp_path: Path) -> None:
    make, cls, family = others()[kind]
    folder = written(tmp_path / "m", make(), cls, tiny(family))
    with pytest.raises(UserError, match=r"none that the suite knows.*Use one of: ESM-2, ESM-1b, ProtT5, Ankh, BERT"):
        resolve_model(str(folder), workdir=tmp_path / "w")


@pytest.mark.parametrize("kind", ["modernbert", "distilbert", "megatron-bert"])
@pytest.mark.parametrize("claimed", [BERT, ESM2], ids=lambda family: family.name)
def test_weights_of_another_kind_under_a_known_name_are_refused(
    kind: str, claimed: ModelFamily, tmp_path: Path
) -> None:
    make, cls, _ = others()[kind]
    folder = written(tmp_path / "m", make(), cls, tiny(claimed))
    said = json.loads((tiny(claimed) / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(said | _SHAPE))
    with pytest.raises(UserError):
        load(folder, tmp_path / "w")


def test_layers_with_weights_too_many_are_refused(tmp_path: Path) -> None:
    """As Megatron's norms before each half under BERT's names."""
    folder = Path(shutil.copytree(tiny(BERT), tmp_path / "m"))
    weights = load_file(folder / "model.safetensors")
    weights["bert.encoder.layer.0.input_ln.weight"] = torch.ones(16)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"The layers hold 1 weights that such a model does not have, first .*input_ln"):
        load(folder, tmp_path)


def test_a_vocabulary_of_words_makes_no_protein_model() -> None:
    config = json.loads((tiny(BERT) / "config.json").read_text())
    tokens = ["[CLS]", "[SEP]", "[MASK]", *"ACDEFGHIKLMNPQRSTVWYX", "##ing"]
    words = {token: number for number, token in enumerate(tokens)}
    with pytest.raises(UserError, match=r"\(bert, 25 tokens\) is none that the suite knows"):
        find_family(config, words)
    del words["##ing"]
    assert find_family(config, words) == BERT


PUBLISHED: list[tuple[ModelFamily, dict[str, Any]]] = [
    (ESM2, {
        "model_type": "esm", "vocab_size": 33, "hidden_size": 320, "num_attention_heads": 20, "num_hidden_layers": 6,
        "intermediate_size": 1280, "position_embedding_type": "rotary", "layer_norm_eps": 1e-05, "mask_token_id": 32,
        "pad_token_id": 1, "token_dropout": True, "emb_layer_norm_before": False, "is_folding_model": False,
        "esmfold_config": None, "hidden_act": "gelu", "max_position_embeddings": 1026, "use_cache": True,
    }),
    (ESM1B, {
        "model_type": "esm", "vocab_size": 33, "hidden_size": 1280, "num_attention_heads": 20, "num_hidden_layers": 33,
        "intermediate_size": 5120, "position_embedding_type": "absolute", "emb_layer_norm_before": True,
        "pad_token_id": 1, "mask_token_id": 32, "token_dropout": True, "max_position_embeddings": 1026,
    }),
    (PROTT5, {
        "model_type": "t5", "vocab_size": 128, "d_model": 1024, "d_kv": 128, "d_ff": 16384, "num_layers": 24,
        "num_heads": 32, "num_decoder_layers": 24, "is_encoder_decoder": True, "feed_forward_proj": "relu",
        "relative_attention_num_buckets": 32, "n_positions": 512, "output_past": True, "task_specific_params": {"a": 1},
    }),
    (ANKH, {
        "model_type": "t5", "vocab_size": 144, "d_model": 1536, "d_kv": 64, "d_ff": 3840, "num_layers": 48,
        "num_heads": 16, "feed_forward_proj": "gated-gelu", "is_gated_act": True, "is_encoder_decoder": True,
        "relative_attention_num_buckets": 64, "dense_act_fn": "gelu_new", "tie_word_embeddings": False,
    }),
    (BERT, {
        "model_type": "bert", "vocab_size": 30, "hidden_size": 1024, "num_attention_heads": 16, "hidden_act": "gelu",
        "num_hidden_layers": 30, "intermediate_size": 4096, "max_position_embeddings": 40000, "type_vocab_size": 2,
        "layer_norm_eps": 1e-12, "initializer_range": 0.02, "hidden_dropout_prob": 0.0,
    }),
]


@pytest.mark.parametrize(("family", "config"), PUBLISHED, ids=[family.name for family, _ in PUBLISHED])
def test_published_configurations_are_taken(family: ModelFamily, config: dict[str, Any]) -> None:
    vocabulary = received_vocabulary(tiny(family), family.name)
    assert find_family(config, vocabulary) == family
    settings = configuration.settings_of(config, family, family.title)
    configuration.check_tokens(settings, family, vocabulary, family.title)
    assert family.limit(settings) == {"esm1b": 1022, "bert": 39_998}.get(family.name)
    assert {name: settings[name] for name in family.settings.keys() & config.keys()}.items() <= config.items()


FIELDS: list[tuple[ModelFamily, dict[str, Any], str]] = [
    (BERT, {"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
    (BERT, {"position_embedding_type": "relative_key_query"}, "position_embedding_type is 'relative_key_query'"),
    (BERT, {"is_decoder": True}, "is_decoder is true"),
    (BERT, {"add_cross_attention": True}, "add_cross_attention is true"),
    (BERT, {"sliding_window": 128}, "sliding_window is 128"),
    (BERT, {"local_attention": 128}, "local_attention is 128"),
    (BERT, {"attention_window": [64, 64]}, "attention_window is a list"),
    (BERT, {"pre_layer_norm": True}, "pre_layer_norm is true"),
    (BERT, {"bert_pre_ln": True}, "bert_pre_ln is true"),
    (BERT, {"norm_first": True}, "norm_first is true"),
    (BERT, {"normalize_before": True}, "normalize_before is true"),
    (BERT, {"pruned_heads": {"0": [1]}}, "pruned_heads is an object"),
    (BERT, {"embedding_size": 8}, "embedding_size is 8"),
    (BERT, {"num_experts": 4}, "num_experts is 4"),
    (BERT, {"hidden_act": "swiglu"}, "hidden_act is 'swiglu'"),
    (BERT, {"num_attention_heads": 5}, "divided among 5 attention heads"),
    (BERT, {"max_position_embeddings": 2}, "no position for a residue"),
    (BERT, {"max_position_embeddings": 512}, "max_position_embeddings 512 where the weights have 1600"),
    (BERT, {"type_vocab_size": 1}, "type_vocab_size 1 where the weights have 2"),
    (ESM1B, {"max_position_embeddings": 512}, "max_position_embeddings 512 where the weights have 1026"),
    (ESM1B, {"pad_token_id": None}, "lacks pad_token_id"),
    (ESM1B, {"position_embedding_type": "relative_key"}, r"\(esm, relative_key, 33 tokens\) is none that the suite"),
    (ESM2, {"position_embedding_type": "relative_key_query"}, "is none that the suite knows"),
    (ESM2, {"is_folding_model": True}, "is_folding_model is true"),
    (ESM2, {"sliding_window": 128}, "sliding_window is 128"),
]


@pytest.mark.parametrize(
    ("family", "fields", "message"),
    [pytest.param(*case, id=f"{case[0].name}-{next(iter(case[1]))}-{number}") for number, case in enumerate(FIELDS)],
)
def test_fields_that_ask_for_other_models(
    family: ModelFamily, fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny(family), tmp_path / "m"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))
    with pytest.raises(UserError, match=message):
        resolve_model(str(folder), workdir=tmp_path / "w")


@every_family
@pytest.mark.parametrize("fields", [{"is_decoder": True}, {"use_sliding_window": True}], ids=["decoder", "window"])
def test_no_family_decodes_or_slides(family: ModelFamily, fields: dict[str, Any], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny(family), tmp_path / "m"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))
    with pytest.raises(UserError, match="asks for another kind of model"):
        resolve_model(str(folder), workdir=tmp_path / "w")


@pytest.mark.slow
@pytest.mark.parametrize("kind", OTHERS)
def test_the_command_line_says_so_in_one_line(kind: str, tmp_path: Path, run_stage: Callable[..., Any]) -> None:
    make, cls, family = others()[kind]
    folder = written(tmp_path / "m", make(), cls, tiny(family))
    (tmp_path / "q.fasta").write_text(f">p\n{protein(40)}\n")
    out = tmp_path / "e.h5"
    done = run_stage("plm_embed", "--input", tmp_path / "q.fasta", "--model", folder, "--embeddings", out)
    assert done.returncode == 1 and not out.exists()
    assert len(done.stderr.strip().splitlines()) == 1 and "none that the suite knows" in done.stderr


def test_a_record_that_leaves_its_layers_out_answers_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A family of windows whose record says nothing of them: its attention asks for what packed rows lack."""
    from plm.model.families.bert import Bert

    class ModernBert(Bert):
        name, title, kind = "modernbert", "ModernBERT", "modernbert"
        config_class, encoder_class, encoder_options = "ModernBertConfig", "ModernBertModel", {}
        settings: ClassVar[Any] = {
            name: setting
            for name, setting in Bert.settings.items()
            if name not in ("max_position_embeddings", "type_vocab_size", "hidden_act")
        }
        sizes: ClassVar[Any] = {}

        def limit(self, settings: Any) -> None:
            return None

        def numbers(self, settings: Any) -> int:
            return 0

    monkeypatch.setattr("plm.model.families.FAMILIES", (ModernBert(),))
    make, cls, _ = others()["modernbert"]
    folder = written(tmp_path / "m", make(), cls, tiny(BERT))
    config = json.loads((folder / "config.json").read_text())
    windows = ("local_attention", "global_attn_every_n_layers")
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k not in windows}))
    monkeypatch.setattr("plm.model.configuration.check_weights", lambda *_: None)
    loaded = load(folder, tmp_path / "w")
    with pytest.raises(ValueError, match="ModernBertAttention asks for"):
        encoder.hidden_states(loaded.model, batching.pack([loaded.token_ids(protein(300))]))


# --------------------------------------------------------------------------------------------- one file a family

_TOLD_APART = re.compile(
    r"""family\.name\s*(?:[!=]=|in\b)|model_type|hasattr\([^)]*["'](?:esm|bert|cls|lm_head|encoder)["']"""
    r"""|\.esm\b|\.lm_head\b|["'](?:esm1b|prott5|ankh|bert)["']"""
)


def test_nothing_outside_the_families_tells_them_apart() -> None:
    wrong = []
    for path in [*LIBRARY.glob("plm_*.py"), *(LIBRARY / "plm").rglob("*.py")]:
        if "families" in path.parts:
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if _TOLD_APART.search(line):
                wrong.append(f"{path.relative_to(LIBRARY)}:{number}: {line.strip()}")
    assert wrong == []


def test_each_family_has_a_file_and_a_name_of_its_own() -> None:
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
    for family in FAMILIES:
        assert type(family).__module__ == f"plm.model.families.{family.name}"
        assert tiny(family).is_dir()
        assert dataclasses.replace(family, max_residues=7) != family
