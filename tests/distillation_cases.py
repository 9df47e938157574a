"""Simulated corpora for the tests of distillation."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from plm.masked_lm.corpus_store import CorpusStore, open_corpus
from plm.model.families import FAMILIES
from plm.model.families.esm2 import ESM2_VOCABULARY
from plm.model.loaded import LoadedModel

LETTERS = "ACDEFGHIKLMNPQRSTVWY"
VOCABULARY = {token: index for index, token in enumerate(ESM2_VOCABULARY)}

Record = tuple[str, str, str, str]
"""id, taxon, domain, sequence"""


def random_records(
    count: int, seed: int = 0, longest: int = 60, taxa: Sequence[str] = ("9606", "83333")
) -> list[Record]:
    """Records of random residues; taxa with even numbers are of domain E, the others of B."""
    chance = random.Random(seed)
    made = []
    for number in range(count):
        sequence = "".join(chance.choices(LETTERS, k=chance.randint(1, longest)))
        taxon = chance.choice(taxa)
        made.append((f"p{number}", taxon, "" if not taxon else "BE"[int(taxon) % 2 == 0], sequence))
    return made


def write_table(records: Sequence[Record], path: Path) -> Path:
    lines = ["id\ttaxon\tdomain\tsequence", *("\t".join(record) for record in records)]
    path.write_text("\n".join(lines) + "\n")
    return path


def store_of(records: Sequence[Record], folder: Path, loaded: LoadedModel | None = None) -> CorpusStore:
    folder.mkdir(parents=True, exist_ok=True)
    family = FAMILIES[0] if loaded is None else loaded.family
    vocabulary = VOCABULARY if loaded is None else loaded.vocabulary
    return open_corpus(write_table(records, folder / "corpus.tsv"), folder, family, vocabulary)
