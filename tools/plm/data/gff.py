"""GFF3 with proteins as landmarks: one feature a residue.

Source: Generic Feature Format version 3, version 1.26 (github.com/The-Sequence-Ontology/Specifications).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TextIO
from urllib.parse import quote

SITE_TYPE = "polypeptide_region"
"""Sequence Ontology term (SO:0000839) of a site on a protein."""

_SEQID_SAFE = ".:^*$@!+_?-|"
_KEPT = set(" !\"#$'()*+-./:<>?@[]^_`{|}~")
_RESERVED_KEYS = ("ID", "Name", "Alias", "Parent", "Note", "Dbxref")


def escape_seqid(text: str) -> str:
    """A landmark's name as column 1 may hold it: ``[a-zA-Z0-9.:^*$@!+_?-|]``, all else as %XX."""
    return quote(text, safe=_SEQID_SAFE)


def escape(text: str) -> str:
    """A key or value of column 9: tab, line ends, control characters and ``; = & , %`` as %XX."""
    return "".join(letter if letter.isalnum() or letter in _KEPT else quote(letter, safe="") for letter in text)


class GffWriter:
    """Writes a GFF3 file feature by feature.

    Args:
        handle: Open text file; the version line is written at once.
        source: Program that made the features, column 2.
    """

    def __init__(self, handle: TextIO, source: str) -> None:
        self._handle, self._source = handle, escape(source)
        handle.write("##gff-version 3\n")

    def comment(self, text: str) -> None:
        """A line for people."""
        self._handle.write(f"# {' '.join(text.split())}\n")

    def region(self, seqid: str, length: int) -> None:
        """Declares a landmark of ``length`` residues; its features follow."""
        self._handle.write(f"##sequence-region {escape_seqid(seqid)} 1 {length}\n")

    def feature(
        self, seqid: str, place: int, score: float | None, attributes: Mapping[str, str], kind: str = SITE_TYPE
    ) -> None:
        """One residue.

        Args:
            seqid: Protein, column 1.
            place: 1-based position in the protein.
            score: Column 6; None writes a dot.
            attributes: Column 9 in this order. The specification keeps names with a capital first letter to itself, so
                others are written in lower case.
            kind: Sequence Ontology term, column 3.
        """
        pairs = ";".join(f"{escape(_key(name))}={escape(value)}" for name, value in attributes.items() if value)
        shown = "." if score is None else f"{score:.6g}"
        fields = (escape_seqid(seqid), self._source, kind, str(place), str(place), shown, ".", ".", pairs or ".")
        self._handle.write("\t".join(fields) + "\n")


def _key(name: str) -> str:
    # Only A to Z are reserved; lower() of some other capitals, such as I with a dot, is two characters.
    return name if name in _RESERVED_KEYS or not name[:1].isascii() else name[:1].lower() + name[1:]
