"""Names of one protein as different programs write them, and which of them mean the same.

Whole headers, UniProt's ``sp|P12345|NAME``, paths in an HDF5 file: a name is matched by a shorter form only where that
form is one name alone on either side.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

_ACCESSION = re.compile(r"(?:sp|tr|up)\|([^|\s]+)(?:\|\S*)?", re.IGNORECASE)


def accession(key: str) -> str:
    """``P12345`` of ``sp|P12345|NAME Some words``, else the first word; a site keeps its position after a tab."""
    name, tab, place = key.partition("\t")
    word = name.split(None, 1)[0] if name.strip() else name
    match = _ACCESSION.fullmatch(word)
    return (match[1] if match else word) + tab + place


def short_forms(key: str) -> Iterator[str]:
    """Shorter names of a name, the surest first: the accession or first word, and the last part of a path."""
    first = accession(key)
    yield first
    name, tab, place = first.partition("\t")
    if "/" in name and (last := name.rpartition("/")[2]):
        yield accession(last) + tab + place


class Matches:
    """Finds names of one side among those of another.

    Args:
        known: Names of the side that is looked in.
        asked: Names that will be looked for.
    """

    def __init__(self, known: Iterable[str], asked: Iterable[str]) -> None:
        self._known = dict.fromkeys(known)
        self._short = _unique((accession(key), key) for key in self._known)
        wanted = dict.fromkeys(asked)
        self._asked = _unique((form, key) for key in wanted for form in short_forms(key))
        self.translated: set[str] = set()
        """Names that were found by a shorter form."""

    def find(self, key: str) -> str | None:
        """The name on the other side, or None."""
        if key in self._known:
            return key
        for form in short_forms(key):
            if self._asked.get(form) == key and (name := self._short.get(form)) is not None:
                self.translated.add(key)
                return name
        return None

    def told(self) -> str:
        """A sentence about names found by a shorter form; empty if there are none."""
        if not self.translated:
            return ""
        return (
            f"{len(self.translated)} ids were matched by their accession (as in sp|P12345|NAME), their first word or "
            "the last part of a path."
        )


def _unique(pairs: Iterable[tuple[str, str]]) -> dict[str, str | None]:
    """What each form stands for; None where it stands for several."""
    keys: dict[str, str | None] = {}
    for form, key in pairs:
        if keys.setdefault(form, key) != key:
            keys[form] = None
    return keys
