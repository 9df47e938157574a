"""Tensors of strangers: safetensors, and ``.bin`` files of which nothing but tensors is read."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plm.errors import UserError
from plm.received.archives import Archive
from plm.received.documents import one_line

if TYPE_CHECKING:
    import numpy as np
    import torch

_AGAIN = "Give the file as it was written"
_DTYPES = frozenset(("BOOL", "U8", "I8", "I16", "U16", "F16", "BF16", "I32", "U32", "F32", "F64", "I64", "U64"))


_FLOATS = frozenset(("F16", "BF16", "F32", "F64"))


def shapes(
    path: Path, what: str = "", where: str = "", fix: str = _AGAIN, trained: tuple[str, ...] = ()
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a safetensors file; the library compares them with the file's real size.

    Args:
        path: safetensors file to read.
        what: The file in messages, such as ``The bundle's adapter``.
        where: Archive or model that the file came in, for messages.
        fix: What the user can do, for messages.
        trained: What the names end in of tensors that must be floating-point numbers.

    Raises:
        UserError: Missing, cut short, no safetensors, or of a type that is never used here.
    """
    with opened(path, what, where, fix) as file:
        by_name = {}
        for name in file.keys():  # noqa: SIM118
            part = file.get_slice(name)
            if part.get_dtype() not in (_FLOATS if trained and name.endswith(trained) else _DTYPES):
                raise UserError(
                    f"{one_line(name, 80)} is stored as {part.get_dtype()}, which is not read",
                    where=where or path.name, fix="Store weights as float32, float16 or bfloat16",
                )
            by_name[name] = tuple(part.get_shape())
    return by_name


def opened(path: Path, what: str = "", where: str = "", fix: str = _AGAIN, framework: str = "numpy") -> Any:
    """A safetensors file, for reading parts of it.

    Raises:
        UserError: Missing, cut short or no safetensors.
    """
    from safetensors import SafetensorError, safe_open

    what, where = what or path.name, where or path.name
    if not path.is_file():
        raise UserError(f"{what} is missing", where=where, fix=fix)
    try:
        return safe_open(path, framework=framework)
    except (SafetensorError, OSError, ValueError, RuntimeError, MemoryError) as error:
        raise _damaged(what, where, fix, error) from error


def load_numpy(path: Path, what: str = "", where: str = "", fix: str = _AGAIN) -> dict[str, np.ndarray]:
    """All tensors of a small safetensors file as numpy arrays.

    Raises:
        UserError: As :func:`opened`, or a type that numpy has not.
    """
    try:
        with opened(path, what, where, fix) as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except UserError:
        raise
    except Exception as error:  # the library raises its own class, and numpy's for unknown types
        raise _damaged(what or path.name, where or path.name, fix, error) from error


def load_torch(
    path: Path, what: str = "", where: str = "", fix: str = _AGAIN, finite: bool = False
) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file as torch tensors on the processor.

    Args:
        path: safetensors file to read.
        what: The file in messages, such as ``The bundle's adapter``.
        where: Archive or model that the file came in, for messages.
        fix: What the user can do, for messages.
        finite: Whether NaN and infinity are refused.

    Raises:
        UserError: As :func:`opened`, or a number is not finite.
    """
    try:
        with opened(path, what, where, fix, "pt") as file:
            held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except UserError:
        raise
    except Exception as error:  # the library raises its own class, and torch's for sizes that do not fit
        raise _damaged(what or path.name, where or path.name, fix, error) from error
    for name, value in held.items() if finite else ():
        if not bool(value.isfinite().all()):
            raise UserError(
                f"{what or path.name}: {one_line(name, 80)} holds NaN or infinity", where=where or path.name, fix=fix
            )
    return held


def check_shapes(
    present: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]], what: str, where: str, fix: str
) -> None:
    """Compares the tensors of a file with those that a description asks for, before anything is built.

    Raises:
        UserError: Names the first that is missing, not wanted, or of another shape.
    """
    for name in sorted(set(wanted) | set(present)):
        if present.get(name) != wanted.get(name):
            if name not in present or name not in wanted:
                reason = f"{one_line(name, 80)} is {'missing' if name in wanted else 'not expected'}"
            else:
                reason = f"{one_line(name, 80)} is {present[name]} instead of {wanted[name]}"
            raise UserError(f"{what} does not fit its description ({reason})", where=where, fix=fix)


def pickled_shapes(path: Path, where: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a ``.bin`` file. Only tensors are ever read from it, no other object.

    Raises:
        UserError: Damaged, or it holds anything but tensors by name.
    """
    return {name: tuple(value.shape) for name, value in _pickled(path, where, "meta").items()}


def load_pickled(path: Path, where: str) -> dict[str, torch.Tensor]:
    """The tensors in a ``.bin`` file; those of newer files stay on disk until they are used.

    Raises:
        UserError: As :func:`pickled_shapes`.
    """
    return _pickled(path, where, "cpu")


def _pickled(path: Path, where: str, device: str) -> dict[str, torch.Tensor]:
    import torch

    fix = "Give the weights as safetensors"
    with path.open("rb") as start:
        zipped = start.read(2) == b"PK"
    if zipped:
        with Archive(path, "weights file", fix):
            pass  # names and sizes have passed
    try:
        # Files of the time before torch 1.6 cannot be mapped; they are read as they are.
        options: dict[str, Any] = {"map_location": device, "mmap": True} if zipped else {"map_location": "cpu"}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd protocols; what cannot be read is told below
            content = torch.load(path, weights_only=True, **options)
    except pickle.UnpicklingError as error:
        # torch's own message advises to load the file unsafely; it is not passed on.
        raise UserError(
            f"The weights cannot be loaded: {path.name} is damaged, or holds Python objects beside tensors, which "
            "could run code and are never read",
            where=where, fix=fix,
        ) from error
    except Exception as error:  # damaged files surface as a dozen unrelated classes
        if isinstance(error, MemoryError):
            raise
        reason = one_line(str(error), 120) if "weights_only" not in str(error) else type(error).__name__
        raise UserError(f"The weights cannot be loaded: {path.name} is damaged ({reason})", where=where, fix=fix) from (
            error
        )
    good = isinstance(content, dict) and all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items()
    )
    if not good:
        raise UserError(f"The weights cannot be loaded: {path.name} holds no tensors by name", where=where, fix=fix)
    check_storage(content.items(), where)
    return content


def check_storage(held: Iterable[tuple[str, torch.Tensor]], where: str) -> None:
    """Refuses tensors that would become larger than what is stored of them, and those that are not plain.

    Args:
        held: Names and tensors of a ``.bin`` or ``.pt`` file. A tensor may be there under two names, as tied weights.
        where: The file in messages.

    Raises:
        UserError: Names the first that repeats stored numbers, or is sparse or quantised.
    """
    import torch

    whole, stored = 0, {}
    for name, value in held:
        plain = value.layout is torch.strided and not value.is_quantized
        own = value.untyped_storage() if plain else None
        if own is None or value.numel() * value.element_size() > own.nbytes():
            wrong = "larger than what is stored of them" if plain else "not plain"
            raise UserError(
                f"The weights {one_line(name, 100)} are {wrong}", where=where,
                fix="Do not trust this file; give it as the training program wrote it",
            )
        whole += value.numel() * value.element_size()
        stored[own._cdata] = own.nbytes()
    if whole > 4 * sum(stored.values()) + 2**20:
        raise UserError(
            "The file holds the same numbers under many names", where=where, fix="Do not trust this file"
        )


def _damaged(what: str, where: str, fix: str, error: Exception) -> UserError:
    return UserError(f"{what} cannot be read ({one_line(str(error), 120)})", where=where, fix=fix)
