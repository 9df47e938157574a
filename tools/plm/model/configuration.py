"""The fields of a checkpoint's ``config.json`` that are acted on: by type and range, compared with the weights.

transformers never sees a stranger's configuration. Each family lists the fields that decide what its models compute;
from these alone a configuration is made. Fields that ask for what no family computes are refused; everything else in
the file is left where it is.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from plm.errors import UserError
from plm.model.families import UNUSUAL_LETTERS, ModelFamily
from plm.model.families.family import KIND, MISMATCH, PUBLISHED
from plm.received.documents import one_line
from plm.received.fields import Fields, shown

Shapes = Mapping[str, tuple[int, ...]]
_OTHER_MODELS = re.compile(
    r"is_decoder|is_folding_model|.*cross_attention.*|pruned_heads|embedding_size|num_hidden_groups|.*experts?.*"
    r"|.*sliding.*|.*attention_window.*|local_attention.*|global_attn.*|.*alibi.*|relative_attention|pos_att_type"
    r"|.*pre_?(?:layer_?)?norm.*|.*norm(?:alize)?_(?:first|before)|(?:.*_)?pre_ln"
)
"""Fields with which other kinds of models say how they compute: windows, decoders, experts, norms in other places."""
_LAYER = re.compile(r"(?:^|\.)encoder\.(?:layer|block)\.(\d{1,9})\.")


def settings_of(config: Mapping[str, Any], family: ModelFamily, where: str) -> dict[str, Any]:
    """The fields that are acted on, all of them, with the kind of model.

    Args:
        config: Content of ``config.json``.
        family: Of the model.
        where: What messages call the model.

    Raises:
        UserError: A field is of a wrong type or out of range, or asks for another kind of model.
    """
    fields = Fields(config, "config.json", where, PUBLISHED)
    for name, value in config.items():
        known = family.constants.get(name, ())
        other = value not in (*known, None) if known else bool(value) and _OTHER_MODELS.fullmatch(name) is not None
        if other and name not in family.settings:
            raise UserError(
                f"config.json asks for another kind of model ({one_line(name, 60)} is {shown(value)})", where=where,
                fix="Use an encoder as it was published",
            )
    settings = {name: setting.read(fields, name) for name, setting in family.settings.items()}
    settings = family.checked(settings, fields, where)
    for name in ("mask_token_id", "pad_token_id", "eos_token_id"):
        if settings.get(name) is not None and settings[name] >= settings["vocab_size"]:
            raise UserError(f"config.json says {name} {settings[name]}, which is no token", where=where, fix=PUBLISHED)
    return {KIND: family.kind, **settings}


def check_weights(settings: Mapping[str, Any], family: ModelFamily, shapes: Shapes, where: str) -> None:
    """Compares the sizes in a configuration with the shapes of the weights, before anything is built.

    What is missing altogether is told when the weights are loaded.

    Args:
        settings: From :func:`settings_of`.
        family: Of the model.
        shapes: Names and shapes of the weights.
        where: What messages call the model.

    Raises:
        UserError: Names the first field that says something else than the weights.
    """
    layers = {int(match[1]) for name in shapes if (match := _LAYER.search(name))}
    sizes: dict[str, int] = {family.depth: max(layers) + 1} if layers else {}
    by_end = {end: name for name in shapes for end in family.sizes if name == end or name.endswith("." + end)}
    for end, fields in family.sizes.items():
        if end in by_end and len(shapes[by_end[end]]) == len(fields):
            for field, value in zip(fields, shapes[by_end[end]], strict=True):
                sizes.setdefault(field, value)
    held, described = sum(math.prod(shape) for shape in shapes.values()), family.numbers(settings)
    if layers and sizes[family.depth] == settings[family.depth] and described > 2 * held + 1_000_000:
        raise UserError(
            f"config.json describes a model of about {described:,} numbers where the weights have {held:,}",
            where=where, fix=MISMATCH,
        )
    for name, value in sizes.items():
        said = math.prod(settings[factor] for factor in name.split(" * "))
        if said != value:
            raise UserError(f"config.json says {name} {said} where the weights have {value}", where=where, fix=MISMATCH)
    if not layers and settings[family.depth] > 0:
        names = sorted(shapes)
        raise UserError(
            f"The weights are none of such a model (their first is {one_line(names[0], 60) if names else 'missing'})",
            where=where, fix="Give the weights that belong to config.json",
        )


def check_used(unused: Iterable[str], where: str) -> None:
    """Refuses weights within layers that the model of their configuration has no place for: they are of another kind.

    Args:
        unused: Names of weights that were not loaded.
        where: What the message calls the model.

    Raises:
        UserError: Names the first.
    """
    odd = sorted(name for name in unused if _LAYER.search(name) and not name.endswith("inv_freq"))
    if odd:
        raise UserError(
            f"The layers hold {len(odd)} weights that such a model does not have, first {one_line(odd[0], 80)}",
            where=where, fix=MISMATCH,
        )


def check_tokens(settings: Mapping[str, Any], family: ModelFamily, vocabulary: Mapping[str, int], where: str) -> None:
    """Whether every token that is used has a row in the embedding table.

    Raises:
        UserError: A token is missing or its number too high.
    """
    for token, index in used_tokens(family, vocabulary, where).items():
        if index >= settings["vocab_size"]:
            raise UserError(
                f"The vocabulary gives {token!r} the number {index}, but the model knows {settings['vocab_size']} "
                "tokens", where=where, fix="Use the tokenizer files that were published with the model",
            )
    mask = settings.get("mask_token_id")
    if mask is None and settings.get("token_dropout"):
        raise UserError(
            "config.json does not say mask_token_id, which token_dropout needs", where=where, fix=PUBLISHED
        )
    if family.mask and mask is not None and mask != vocabulary.get(family.mask):
        raise UserError(
            f"config.json says mask_token_id {mask}, but the vocabulary gives {family.mask!r} the number "
            f"{vocabulary.get(family.mask)}", where=where, fix="Use the files of one model",
        )


def used_tokens(family: ModelFamily, vocabulary: Mapping[str, int], where: str) -> dict[str, int]:
    """The tokens that sequences are written in, and their numbers; of rare letters those that the vocabulary has.

    Raises:
        UserError: The vocabulary lacks one.
    """
    tokens = [family.token(letter) for letter in family.letter_ids(vocabulary)]
    tokens += [*family.before, *family.after, *([family.mask] if family.mask else [])]
    missing = [token for token in tokens if token not in vocabulary]
    if missing:
        raise UserError(
            f"The tokenizer of this {family.title} checkpoint lacks {', '.join(missing)}", where=where,
            fix="Use the tokenizer files that were published with the model",
        )
    tokens += [family.token(letter) for letter in UNUSUAL_LETTERS if family.token(letter) in vocabulary]
    return {token: vocabulary[token] for token in tokens}


def digest(settings: Mapping[str, Any], tokens: Mapping[str, int]) -> str:
    """sha256 of all that decides answers beside the weights; other fields, blanks and order do not change it."""
    content = {"config": dict(settings), "tokens": dict(tokens)}
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def build(settings: Mapping[str, Any], family: ModelFamily) -> Any:
    """The transformers configuration made of the fields that are acted on, and nothing else."""
    import transformers

    made = getattr(transformers, family.config_class)
    return made(**{name: value for name, value in settings.items() if name != KIND})
