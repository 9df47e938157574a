"""Vocabularies of strangers: token to id from ``vocab.txt``, ``spiece.model`` or ``tokenizer.json``.

Only the list of tokens is read; nothing else that a tokenizer file may ask for (rules, regular expressions) is built.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plm.errors import UserError
from plm.received.documents import as_object, one_line, parse_json, read_bytes

FILES = ("vocab.txt", "spiece.model", "tokenizer.json")
_MOST_BYTES = 64 * 2**20
_MOST_TOKENS = 1_000_000
_FIX = "Use the tokenizer files that were published with the model"


def read_vocabulary(folder: Path, where: str) -> dict[str, int]:
    """Token to id.

    Args:
        folder: Holds at least one of ``FILES``; the first that is there counts.
        where: The model in messages.

    Raises:
        UserError: There is none, or it is too large, damaged, not UTF-8, or names a token or an id twice.
    """
    name = next((one for one in FILES if (folder / one).is_file()), None)
    if name is None:
        raise UserError(
            "The checkpoint has no tokenizer", where=where,
            fix=f"Add the tokenizer files published with the model ({', '.join(FILES)})",
        )
    data = read_bytes(folder / name, _MOST_BYTES, name, where, _FIX)
    if name == "vocab.txt":
        try:
            tokens = [(token, index) for index, token in enumerate(data.decode("utf-8").split())]
        except UnicodeDecodeError as error:
            raise UserError("vocab.txt is not UTF-8 text", where=where, fix=_FIX) from error
    elif name == "spiece.model":
        tokens = _pieces(data, where)
    else:
        tokens = _tokenizer(data, where)
    return _told_apart(tokens, name, where)


def _pieces(data: bytes, where: str) -> list[tuple[str, int]]:
    import sentencepiece

    if not data:
        raise UserError("spiece.model is empty", where=where, fix=_FIX)
    sentencepiece.set_min_log_level(3)  # what it says of a damaged file is several lines
    try:
        pieces = sentencepiece.SentencePieceProcessor(model_proto=data)
        return [(pieces.id_to_piece(index), index) for index in range(pieces.get_piece_size())]
    except (OSError, RuntimeError, ValueError, IndexError, TypeError) as error:
        raise UserError("spiece.model cannot be read: it is damaged", where=where, fix=_FIX) from error


def _tokenizer(data: bytes, where: str) -> list[tuple[str, int]]:
    held_by_name = as_object(parse_json(data, "tokenizer.json", where, _FIX), "tokenizer.json", where, _FIX)
    model = held_by_name.get("model")
    held = model.get("vocab") if isinstance(model, dict) else None
    tokens: list[tuple[Any, Any]]
    if isinstance(held, dict):
        tokens = list(held.items())
    elif isinstance(held, list):  # of pairs: token and how likely it is
        tokens = [(each[0] if isinstance(each, list) and each else None, index) for index, each in enumerate(held)]
    else:
        raise UserError("tokenizer.json holds no vocabulary", where=where, fix=_FIX)
    known = {token for token, _ in tokens if isinstance(token, str)}
    added = held_by_name.get("added_tokens")
    for each in added if isinstance(added, list) else []:
        content = each.get("content") if isinstance(each, dict) else None
        if isinstance(each, dict) and not (isinstance(content, str) and content in known):
            tokens.append((content, each.get("id")))
    return tokens


def _told_apart(tokens: list[tuple[Any, Any]], name: str, where: str) -> dict[str, int]:
    if len(tokens) > _MOST_TOKENS:
        raise UserError(f"{name} names {len(tokens)} tokens", where=where, fix=_FIX)
    vocabulary: dict[str, int] = {}
    owners: dict[int, str] = {}
    for token, index in tokens:
        if not isinstance(token, str) or isinstance(index, bool) or not isinstance(index, int) or index < 0:
            raise UserError(f"{name} cannot be read: an entry is no token with its number", where=where, fix=_FIX)
        if token in vocabulary or index in owners:
            twice = f"the token {one_line(token, 40)!r}" if token in vocabulary else f"the number {index}"
            raise UserError(f"{name} gives {twice} twice", where=where, fix=_FIX)
        vocabulary[token], owners[index] = index, token
    return vocabulary
