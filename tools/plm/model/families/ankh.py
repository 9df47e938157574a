"""Ankh (Elnaggar et al. 2023): T5 with gated feed-forward layers and a vocabulary of plain letters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plm.model.families.family import single_letters
from plm.model.families.letters import UNUSUAL_LETTERS
from plm.model.families.t5 import T5Family


class Ankh(T5Family):
    """Ankh (gated GELU) and Ankh 2 and 3 (gated SiLU); its authors let the tokenizer have the unusual letters."""

    name, title, unusual = "ankh", "Ankh", UNUSUAL_LETTERS

    def matches(self, config: Mapping[str, Any], vocabulary: Mapping[str, int]) -> bool:
        gated = str(config.get("feed_forward_proj", "")).startswith("gated-")
        return config.get("model_type") == self.kind and gated and single_letters(vocabulary)


ANKH = Ankh()
