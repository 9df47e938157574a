"""The twenty amino acids in groups of like side chains: the order of heat maps and the colours of sequence logos."""

from __future__ import annotations

GROUPS: tuple[tuple[str, str, str], ...] = (
    ("acidic", "DE", "#D55E00"),
    ("basic", "KRH", "#0072B2"),
    ("polar", "NQST", "#009E73"),
    ("small, special", "GPC", "#CC79A7"),
    ("aliphatic", "AVLIM", "#000000"),
    ("aromatic", "FWY", "#E69F00"),
)
"""Name, residues and colour; the colours are Okabe and Ito's, told apart with the common colour-vision deficiencies."""
ORDER = "".join(residues for _, residues, _ in GROUPS)
"""The twenty, like beside like, from charged to hydrophobic."""
COLOUR_OF = {residue: colour for _, residues, colour in GROUPS for residue in residues}
