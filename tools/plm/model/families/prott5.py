"""ProtT5 (Elnaggar et al. 2022): T5 whose sentencepiece vocabulary has each residue as a word of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plm.model.families.t5 import T5Family


class ProtT5(T5Family):
    """ProtT5 and ProstT5's encoder."""

    name, title, mark = "prott5", "ProtT5", "▁"

    def matches(self, config: Mapping[str, Any], vocabulary: Mapping[str, int]) -> bool:
        return config.get("model_type") == self.kind and "▁A" in vocabulary


PROTT5 = ProtT5()
