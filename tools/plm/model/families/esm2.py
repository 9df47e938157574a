"""ESM-2 (Lin et al. 2023): rotary positions, so that proteins may be of any length."""

from __future__ import annotations

from plm.model.families.esm import EsmFamily


class Esm2(EsmFamily):
    """ESM-2."""

    name, title, positions = "esm2", "ESM-2", "rotary"
    head_width = 2
    half_safe = True


ESM2 = Esm2()
