"""The model families that the suite knows: one file each, and this list of them.

A family is chosen by a predicate on the checkpoint's config and tokenizer: ``model_type`` alone is not enough, since
``esm`` covers ESM-1b and ESM-2, and ``t5`` covers ProtT5 and Ankh. What no family claims is refused, never guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plm.errors import UserError
from plm.model.families.ankh import ANKH
from plm.model.families.bert import BERT
from plm.model.families.esm import EsmFamily
from plm.model.families.esm1b import ESM1B
from plm.model.families.esm2 import ESM2
from plm.model.families.family import KIND, ModelFamily
from plm.model.families.letters import AMINO_ACIDS, MODEL_LETTERS, UNUSUAL_LETTERS, prepare
from plm.model.families.megatron_bert import MEGATRON_BERT
from plm.model.families.prott5 import PROTT5
from plm.received.documents import one_line

__all__ = [
    "AMINO_ACIDS", "ANKH", "BERT", "ESM1B", "ESM2", "FAMILIES", "MEGATRON_BERT", "MODEL_LETTERS", "PROTT5",
    "UNUSUAL_LETTERS", "EsmFamily", "ModelFamily", "find_family", "prepare",
]
FAMILIES: tuple[ModelFamily, ...] = (ESM2, ESM1B, PROTT5, ANKH, BERT, MEGATRON_BERT)


def find_family(config: Mapping[str, Any], vocabulary: Mapping[str, int], *, where: str = "") -> ModelFamily:
    """The family that a checkpoint belongs to.

    Args:
        config: Content of ``config.json``.
        vocabulary: Token to id.
        where: The checkpoint, for the message.

    Raises:
        UserError: No family of the suite fits.
    """
    for family in FAMILIES:
        if family.matches(config, vocabulary):
            return family
    said = [str(config[name]) for name in (KIND, "position_embedding_type") if config.get(name)]
    told = one_line(", ".join([*said, f"{len(vocabulary)} tokens"] if said else [f"no {KIND}"]), 80)
    raise UserError(
        f"The checkpoint's architecture ({told}) is none that the suite knows", where=where,
        fix=f"Use one of: {', '.join(family.title for family in FAMILIES)}",
    )
