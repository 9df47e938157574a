"""Checkpoints of training programs (``.pt``): tensors, numbers and settings; nothing in them is run or imported.

They are read by torch's weights-only reader, which builds tensors and plain values alone. Two kinds of objects that
published checkpoints hold beside them have stand-ins here: settings (``argparse.Namespace``) become dictionaries, and
what belongs to the training program (states of random numbers, its own words for kinds of models) is passed over. Any
other object is refused by name.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plm.errors import UserError
from plm.received import tensors
from plm.received.archives import Archive, holds_ending
from plm.received.documents import one_line

if TYPE_CHECKING:
    import torch

_SETTINGS = "argparse.Namespace"
_PASSED_OVER = (
    "numpy.", "megatron.", "fairseq.", "omegaconf.", "fp16.", "apex.", "typing.", "pathlib.", "datetime.",
    "collections.", "_codecs.encode",
)
"""What the names of objects begin with that say nothing of weights."""
_MOST_KINDS = 100
_DEEPEST = 32
_GLOBAL = re.compile(r"GLOBAL ([\w.]{1,200})")
_FIX = "Do not trust this file; give the checkpoint as its training program wrote it, or weights and settings alone"


class StoredSettings:
    """Stands in for ``argparse.Namespace``: a dictionary of its fields."""

    def __init__(self, **fields: Any) -> None:
        self.fields: dict[str, Any] = dict(fields)

    def __setstate__(self, state: Any) -> None:
        self.fields = dict(state) if isinstance(state, dict) else {}


class PassedOver:
    """Stands in for what is not read; takes whatever it is given and keeps none of it."""

    def __new__(cls, *args: Any, **fields: Any) -> PassedOver:
        return object.__new__(cls)

    def __init__(self, *args: Any, **fields: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def is_torch_file(path: Path) -> bool:
    """Whether a file begins as those of ``torch.save`` do: a zip with a pickle in it, or a pickle."""
    try:
        with path.open("rb") as opened:
            start = opened.read(2)
    except OSError:
        return False
    return (start[:1] == b"\x80" and start[1:] < b"\x06") or (start == b"PK" and holds_ending(path, "/data.pkl"))


def read_training_checkpoint(path: Path, where: str) -> dict[str, Any]:
    """What lies in a ``.pt`` file: dictionaries, lists, numbers, texts and tensors.

    Args:
        path: File of ``torch.save``. Tensors of newer files stay on disk until they are used.
        where: The file in messages.

    Returns:
        The outermost dictionary. Settings in it are dictionaries, what is passed over is None.

    Raises:
        UserError: Damaged, no dictionary, or it holds an object that could run code.
    """
    import torch
    from torch.serialization import safe_globals

    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise UserError(f"The checkpoint {what}", where=where, fix="Check the path")
    with path.open("rb") as start:
        zipped = start.read(2) == b"PK"
    if zipped:
        with Archive(path, "checkpoint", _FIX):
            pass  # names and sizes have passed
    stand_ins: dict[str, Any] = {_SETTINGS: StoredSettings}
    while True:
        try:
            with safe_globals([(kind, name) for name, kind in stand_ins.items()]), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of odd protocols; what cannot be read is told below
                options: dict[str, Any] = {"mmap": True} if zipped else {}
                content = torch.load(path, weights_only=True, map_location="cpu", **options)
            break
        except pickle.UnpicklingError as error:
            match = _GLOBAL.search(str(error))
            if match is None or not match[1].startswith(_PASSED_OVER) or match[1] in stand_ins:
                held = f" ({one_line(match[1], 80)})" if match else ""
                raise UserError(
                    f"The checkpoint is damaged, or holds Python objects beside weights and settings{held}, which could"
                    " run code and are never read", where=where, fix=_FIX,
                ) from error
            stand_ins[match[1]] = PassedOver
            if len(stand_ins) > _MOST_KINDS:
                raise UserError("The checkpoint holds too many kinds of objects", where=where, fix=_FIX) from error
        except Exception as error:  # damaged files surface as a dozen unrelated classes
            if isinstance(error, MemoryError):
                raise
            told = "" if "weights_only" in str(error) else one_line(str(error), 120)
            reason = told or type(error).__name__
            raise UserError(
                f"The checkpoint is damaged ({reason})", where=where, fix="Give the file as it was written"
            ) from error
    if not isinstance(content, dict):
        raise UserError("The checkpoint holds no weights by name", where=where, fix="Give a checkpoint of a model")
    plain: dict[str, Any] = _plain(content, where, {})
    tensors.check_storage(_tensors(plain), where)
    return plain


def _tensors(content: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor in plain content, with the last name that leads to it."""
    import torch

    waiting: list[tuple[str, Any]] = [("the checkpoint", content)]
    seen: set[int] = set()
    while waiting:
        name, one = waiting.pop()
        if isinstance(one, torch.Tensor):
            yield name, one
        elif isinstance(one, dict | list) and id(one) not in seen:
            seen.add(id(one))
            waiting += [(str(key), value) for key, value in one.items()] if isinstance(one, dict) else (
                [(name, value) for value in one]
            )


def _plain(content: Any, where: str, known: dict[int, Any], depth: int = 0) -> Any:
    """The same without stand-ins; what is held in many places is looked at once."""
    if depth > _DEEPEST:
        raise UserError("The checkpoint is nested too deeply", where=where, fix=_FIX)
    if isinstance(content, StoredSettings):
        content = content.fields
    if not isinstance(content, Mapping | list | tuple):
        return None if isinstance(content, PassedOver) else content
    if id(content) not in known:
        made: Any
        if isinstance(content, Mapping):
            named = {key: value for key, value in content.items() if isinstance(key, str | int | float)}
            made = {key: _plain(value, where, known, depth + 1) for key, value in named.items()}
        else:
            made = [_plain(value, where, known, depth + 1) for value in content]
        known[id(content)] = made
    return known[id(content)]
