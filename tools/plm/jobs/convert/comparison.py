"""The proof of a conversion: the same residues through what went in and what came out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from plm.errors import UserError
from plm.jobs.convert.weights import Checked
from plm.model import encoder
from plm.model.loaded import LoadedModel

LIMIT = {"float32": 2e-5, "float16": 1e-2, "bfloat16": 5e-2}
"""Largest relative L2 difference that a conversion may have, by the type in which its weights are stored."""
_LETTERS = np.array(list("ACDEFGHIKLMNPQRSTVWYX"))


def sequences(most: int | None = None) -> list[str]:
    """Made-up proteins of 7 to 90 residues, always the same; none longer than ``most``."""
    generator = np.random.default_rng(20260101)
    lengths = [min(length, most or length) for length in (7, 33, 90)]
    return ["".join(generator.choice(_LETTERS, length)) for length in lengths]


def relative_l2(after: torch.Tensor, before: torch.Tensor) -> float:
    """Norm of the difference, in norms of what it is compared with."""
    return float((after.double() - before.double()).norm() / before.double().norm())


def states(loaded: LoadedModel) -> list[torch.Tensor]:
    """Last states of the residues of :func:`sequences`, ``(L, D)`` float32 each, by the suite's encoder."""
    return encoder.encode(loaded, sequences(loaded.family.max_residues))


def original(loaded: LoadedModel, compute: Callable[[Sequence[int]], torch.Tensor]) -> list[torch.Tensor]:
    """The same residues' states by the original program's arithmetic, ``(L, D)`` float32 each.

    Args:
        loaded: The model that it is compared with; gives the tokens.
        compute: Tokens of a sequence to the states of each, ``(T, D)``.
    """
    before, after = len(loaded.family.before), len(loaded.family.after)
    with torch.inference_mode():
        every = [compute(loaded.token_ids(one)) for one in sequences(loaded.family.max_residues)]
    return [states[before : len(states) - after] for states in every]


def compare(
    what: str, after: list[torch.Tensor], before: list[torch.Tensor], kind: str, where: str, limit: float | None = None
) -> Checked:
    """The relative L2 difference of states.

    Args:
        what: What is compared, for the report.
        after: States of what came out.
        before: States of what went in.
        kind: The type in which the weights are stored.
        where: The model in messages.
        limit: Largest difference, if another than that of the type.

    Raises:
        UserError: They differ by more than rounding: nothing is written.
    """
    value = relative_l2(torch.cat(after), torch.cat(before))
    most = limit if limit is not None else LIMIT.get(kind, LIMIT["float32"])
    if not value <= most:
        raise UserError(
            f"The converted model does not answer as the input does ({what}: relative L2 {value:.2g}, at most "
            f"{most:g})", where=where, fix="Give a checkpoint whose settings fit its weights",
        )
    return Checked(what, value, most)
