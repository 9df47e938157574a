"""Substitutions as people write them: ``A23V``, ``p.Ala23Val``, several at once, and everything that is none.

HGVS (Den Dunnen et al. 2016, doi:10.1002/humu.22981) as far as it speaks of proteins. What changes more than single
residues is named, never guessed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

from plm.data.fasta import STANDARD_RESIDUES

THREE_LETTERS = {
    "ALA": "A", "ARG": "R", "ASN": "N", "ASP": "D", "CYS": "C", "GLN": "Q", "GLU": "E", "GLY": "G", "HIS": "H",
    "ILE": "I", "LEU": "L", "LYS": "K", "MET": "M", "PHE": "F", "PRO": "P", "SER": "S", "THR": "T", "TRP": "W",
    "TYR": "Y", "VAL": "V", "SEC": "U", "PYL": "O", "ASX": "B", "GLX": "Z", "XLE": "J", "XAA": "X", "TER": "*",
}
WILD_TYPE_NAMES = frozenset({"wt", "_wt", "wild-type", "wild type", "wildtype", "wild_type", "parent", "reference"})
_MISSING = frozenset({"", ".", "-", "na", "nan", "n/a", "none", "null"})
_PREFIX = re.compile(r"\s*([^\s:;()\[\]]+)(?:\(([^\s:;()]+)\))?:(?=[pcgnmr]\.)", re.ASCII)
_LOOSE_PREFIX = re.compile(r"\s*([^\s:;,()\[\]=*]+):(?=\(?(?:[A-Za-z]|[A-Za-z]{3})[0-9])", re.ASCII)
_OTHER_LEVEL = re.compile(r"([cgnmr])\.", re.ASCII)
_LARGER = (
    (re.compile(r"fs", re.IGNORECASE), "a frameshift"),
    (re.compile(r"delins", re.IGNORECASE), "a deletion with an insertion"),
    (re.compile(r"del", re.IGNORECASE), "a deletion"),
    (re.compile(r"dup", re.IGNORECASE), "a duplication"),
    (re.compile(r"ins", re.IGNORECASE), "an insertion"),
    (re.compile(r"ext", re.IGNORECASE), "an extension"),
)
_WHOLE = {
    "=": "synonymous: no residue is substituted", "?": "the change of the protein is unknown (p.?)",
    "0": "no protein is made (p.0)", "0?": "no protein is made (p.0)",
}
_BETWEEN = re.compile(r"[\s:;,/+&|_]+")
_ONE = re.compile(r"([A-Z]|[A-Z]{3}|\*)([0-9]{1,9})([A-Z]|[A-Z]{3}|[*=?-])", re.ASCII)
_NO_WILD_TYPE = re.compile(r"[0-9]{1,9}[A-Za-z]{1,3}", re.ASCII)
_LONGEST = 20_000
"""Characters of a cell that are read; a whole protein with every residue changed has fewer."""


@dataclass(frozen=True, slots=True)
class Substitution:
    """One residue for another.

    Attributes:
        wild_type: Letter that the protein is said to have there.
        position: 1-based position in the protein.
        mutant: One of the twenty amino acids that takes its place.
    """

    wild_type: str
    position: int
    mutant: str

    def __str__(self) -> str:
        return f"{self.wild_type}{self.position}{self.mutant}"


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a cell says.

    Attributes:
        substitutions: Ascending by position; empty if the cell cannot be scored.
        reason: Why it cannot be scored; empty otherwise.
        remark: What was left out of it.
        names: Proteins that stand before the notation, as in ``NP_000537.3(TP53):p.Arg175His``.
    """

    substitutions: tuple[Substitution, ...] = ()
    reason: str = ""
    remark: str = ""
    names: tuple[str, ...] = ()


def parse(cell: str) -> Parsed:
    """Reads one cell of a table of variants.

    Args:
        cell: Such as ``A23V``, ``A23V:G45D``, ``p.Ala23Val``, ``NP_000537.3:p.[Ala23Val;Gly45Asp]``.
    """
    text = cell.strip().strip("\"'").strip().replace("%3D", "=")
    if text.lower() in _MISSING:
        return Parsed(reason="no variant is given")
    if text.lower() in WILD_TYPE_NAMES:
        return Parsed(reason="the wild type: nothing is substituted")
    if len(text) > _LONGEST:
        return Parsed(reason=f"longer than {_LONGEST:,} characters: no variant of a protein")
    names: tuple[str, ...] = ()
    if prefix := _PREFIX.match(text):
        names = tuple(name for name in prefix.groups() if name)
        text = text[prefix.end() :]
    elif (loose := _LOOSE_PREFIX.match(text)) and _ONE.fullmatch(loose[1].upper()) is None:
        names, text = (loose[1],), text[loose.end() :]
    if level := _OTHER_LEVEL.match(text):
        told = {"c": "coding DNA", "r": "RNA"}.get(level[1], "DNA")
        return Parsed(reason=f"notation of {told} ({level[1]}.): the change of the protein (p.) is needed", names=names)
    return _body(text, names, cell.strip())


def _body(text: str, names: tuple[str, ...], whole: str) -> Parsed:
    if re.search(r"\]\s*;\s*\[", text):
        return Parsed(reason="two alleles, each in brackets of its own: give each a row", names=names)
    if "(;)" in text:
        return Parsed(reason="whether both substitutions lie on one allele is unknown (;)", names=names)
    parts: list[str] = []
    for part in re.split(r"[;,]", text):
        if prefix := _PREFIX.match(part):  # it may be repeated before each substitution
            others = tuple(name for name in prefix.groups() if name)
            if names and others != names:
                return Parsed(reason=f"substitutions in {names[0]} and {others[0]}: give each a row", names=names)
        parts.append(re.sub(r"^[\s(\[]*p\.", "", part[prefix.end() if prefix else 0 :]))
    bare = re.sub(r"[\[\]()]", "", ";".join(parts)).strip()
    if bare in _WHOLE:
        return Parsed(reason=_WHOLE[bare], names=names)
    for pattern, what in _LARGER:
        if pattern.search(bare):
            return Parsed(reason=f"{what}: only substitutions are scored", names=names)
    made: list[Substitution] = []
    silent: list[str] = []
    for word in filter(None, _BETWEEN.split(bare)):
        one = _ONE.fullmatch(word.upper())
        if one is None:
            missing = " (the residue before the position is missing)" if _NO_WILD_TYPE.fullmatch(word) else ""
            return Parsed(reason=f"{_shown(whole)} cannot be read as a substitution such as A23V{missing}", names=names)
        wild_type, mutant = (THREE_LETTERS.get(letters, letters) for letters in (one[1], one[3]))
        reason = _refused(wild_type, int(one[2]), mutant, word)
        if reason:
            return Parsed(reason=reason, names=names)
        if mutant in ("=", wild_type):
            silent.append(word)
        else:
            made.append(Substitution(wild_type, int(one[2]), mutant))
    if not made:
        unread = f"{_shown(whole)} cannot be read as a substitution"
        return Parsed(reason="synonymous: no residue is substituted" if silent else unread, names=names)
    made.sort(key=lambda one: one.position)
    for before, after in pairwise(made):
        if before.position == after.position:
            return Parsed(reason=f"position {after.position} is substituted twice", names=names)
    remark = f"synonymous and left out: {', '.join(map(_shown, silent))}" if silent else ""
    return Parsed(tuple(made), remark=remark, names=names)


def _refused(wild_type: str, position: int, mutant: str, word: str) -> str:
    """Why one part cannot be scored; empty if it can."""
    if position == 0:
        return f"{_shown(word)}: positions count from 1"
    if mutant == "*":
        return "a stop: only substitutions are scored"
    if wild_type == "*":
        return "the stop is substituted (the protein grows): only substitutions of residues are scored"
    if mutant == "-":
        return "a deletion: only substitutions are scored"
    if mutant == "?":
        return f"{_shown(word)}: the new residue is unknown"
    for letter in (wild_type, mutant):
        if letter not in STANDARD_RESIDUES and letter != "=":
            what = "three letters of no amino acid" if len(letter) == 3 else "none of the twenty amino acids"
            return f"{_shown(word)}: {letter} is {what}"
    return ""


def _shown(text: str) -> str:
    return repr(text if len(text) <= 30 else text[:29] + "…")
