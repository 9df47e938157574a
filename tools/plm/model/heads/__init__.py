"""Heads on the encoder's residue representations, one file each, and the register of them by level."""

from __future__ import annotations

from plm.model.heads.head import Head, HeadConfig
from plm.model.heads.residue import ResidueHead
from plm.model.heads.sequence import SequenceHead
from plm.model.heads.site import SiteHead

HEADS: dict[str, type[Head]] = {"sequence": SequenceHead, "residue": ResidueHead, "site": SiteHead}
"""By the level of a task; a bundle's manifest names the level."""


def build_head(config: HeadConfig) -> Head:
    """A freshly initialised head (float32) for the level of ``config``."""
    return HEADS[config.level](config)
