"""Fingerprints of files and of models: what tells whether two models give the same answers.

A fingerprint is the sha256 of the weights and, behind a dot, that of all else that decides answers: the fields of the
configuration that are acted on, and the numbers of the tokens. What the first versions of the suite wrote holds the
weights' part alone: it is compared as far as it goes, and whoever reads it says so (:data:`UNCHECKED`).
"""

from __future__ import annotations

import hashlib
from pathlib import Path

WEIGHTS, REST = "weights", "configuration or vocabulary"
UNCHECKED = (
    "written by an early version of the suite, it holds a fingerprint of the model's weights alone: that configuration "
    "and vocabulary of the model are the same cannot be checked"
)


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal digits."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def join(weights: str, rest: str) -> str:
    """A fingerprint from its two parts."""
    return f"{weights}.{rest}" if rest else weights


def weights_of(fingerprint: str) -> str:
    """The part of the weights."""
    return fingerprint.partition(".")[0]


def difference(one: str, other: str) -> str:
    """In what two models differ: :data:`WEIGHTS`, :data:`REST`, or an empty text as far as the fingerprints tell.

    An empty fingerprint is of an unknown model, which differs from none.
    """
    if not one or not other:
        return ""
    (first, _, rest), (second, _, other_rest) = one.partition("."), other.partition(".")
    if first != second:
        return WEIGHTS
    return REST if rest and other_rest and rest != other_rest else ""


def partial(one: str, other: str) -> bool:
    """Whether two fingerprints of equal weights leave open whether all else is equal."""
    return bool(one and other) and not difference(one, other) and one != other


def facts(one: str, other: str) -> list[tuple[str, str, str]]:
    """What two fingerprints say, part by part, for messages: what it is of, and how it begins in each."""
    (first, _, rest), (second, _, other_rest) = one.partition("."), other.partition(".")
    told = [("weights of the model (sha256)", first[:12], second[:12])]
    if rest and other_rest:
        told.append(("configuration or vocabulary of the model (sha256)", rest[:12], other_rest[:12]))
    return told


def weaker(one: str, other: str) -> str:
    """Of two fingerprints that do not differ, what both vouch for."""
    return min(one, other, key=len)


def shown(fingerprint: str) -> str:
    """A fingerprint as messages show it."""
    weights, _, rest = fingerprint.partition(".")
    return f"sha256 {weights[:12]}..." + (f", configuration {rest[:8]}" if rest else "")
