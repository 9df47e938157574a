"""Heads on the encoder's residue representations, one file each, and the register of them."""

from __future__ import annotations

from plm.model.heads.head import NEIGHBOURS, PLAIN, Head, HeadConfig
from plm.model.heads.residue import NeighbourResidueHead, ResidueHead
from plm.model.heads.sequence import SequenceHead
from plm.model.heads.site import SiteHead

HEADS: dict[tuple[str, str], type[Head]] = {
    ("sequence", PLAIN): SequenceHead,
    ("residue", PLAIN): ResidueHead,
    ("residue", NEIGHBOURS): NeighbourResidueHead,
    ("site", PLAIN): SiteHead,
}
"""By the level of a task and the kind of head; a bundle's manifest names both."""


def build_head(config: HeadConfig) -> Head:
    """A freshly initialised head (float32)."""
    return HEADS[config.level, config.kind](config)
