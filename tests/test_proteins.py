"""One reader of proteins and one policy for ids: every stage sees the same records under the same names."""

from __future__ import annotations

import itertools
from pathlib import Path

import pandas as pd
import pytest
from plm.data.examples import Journal
from plm.data.protein_store import store_proteins
from plm.data.proteins import Cleaning, kind_of, read_proteins
from plm.data.unique_ids import first_equal, unused
from plm.errors import UserError
from plm.jobs.classify_sites.candidates import read_candidates, survey
from plm.jobs.preprocess.records import read_records, with_unique_ids
from plm.masked_lm.corpus_store import open_corpus

IDS = ("a", "b", "a", "a_2", "a", "b")
SEQUENCES = tuple("MKVLAY" * 3 + tail for tail in ("A", "C", "D", "E", "F", "G"))
RENAMED = ["a", "b", "a_3", "a_2", "a_4", "b_2"]
"""No record loses an id of its own to a repetition that comes before it."""


def files(folder: Path) -> dict[str, Path]:
    """The same records in every format that is read."""
    paths = {kind: folder / f"proteins.{kind}" for kind in ("fasta", "table", "parquet")}
    pairs = list(zip(IDS, SEQUENCES, strict=True))
    paths["fasta"].write_text("".join(f">{name} OX=9606\n{sequence}\n" for name, sequence in pairs))
    frame = pd.DataFrame(pairs, columns=["id", "sequence"]).assign(taxon="9606")
    frame.to_csv(paths["table"], sep="\t", index=False)
    frame.to_parquet(paths["parquet"])
    return paths


@pytest.mark.parametrize("kind", ["fasta", "table", "parquet"])
def test_every_format_gives_the_same_records(tmp_path: Path, kind: str) -> None:
    path = files(tmp_path)[kind]
    records = list(read_proteins(path, wanted=(("taxon", "ox"),)))
    assert kind_of(path) == kind
    assert [(one.id, one.sequence, one.columns["taxon"]) for one in records] == [
        (name, sequence, "9606") for name, sequence in zip(IDS, SEQUENCES, strict=True)
    ]


@pytest.mark.parametrize("kind", ["fasta", "table", "parquet"])
def test_every_stage_renames_alike(tmp_path: Path, kind: str) -> None:
    path = files(tmp_path)[kind]
    assert list(store_proteins(path, tmp_path / "stored", duplicates="rename").ids) == RENAMED
    assert [one.id for one in with_unique_ids(read_records(path), "rename", path.name, Journal())] == RENAMED
    settled = survey(path, "Y", 0, "rename").settled
    assert [one.id for one in read_candidates(path, "Y", Cleaning(path.name), settled)] == RENAMED
    assert list(open_corpus(path, tmp_path / "corpus").ids) == RENAMED


def test_every_stage_refuses_alike(tmp_path: Path) -> None:
    path = files(tmp_path)["fasta"]
    refusals = []
    for read in (
        lambda: store_proteins(path, tmp_path / "stored"),
        lambda: with_unique_ids(read_records(path), "error", path.name, Journal()),
        lambda: survey(path, "Y", 0),
    ):
        with pytest.raises(UserError) as refused:
            read()
        refusals.append(str(refused.value))
    assert len(set(refusals)) == 1 and "'a' appears more than once" in refusals[0] and "lines 1 and 5" in refusals[0]


def test_every_stage_keeps_the_first_alike(tmp_path: Path) -> None:
    path = files(tmp_path)["table"]
    kept = ["a", "b", "a_2"]
    stored = store_proteins(path, tmp_path / "stored", duplicates="first")
    assert [stored.ids[row] for row in stored.accepted] == kept
    journal = Journal()
    assert [one.id for one in with_unique_ids(read_records(path), "first", path.name, journal)] == kept
    found = survey(path, "Y", 0, "first")
    scanned = list(read_candidates(path, "Y", Cleaning(path.name), found.settled))
    assert [one.id for one in scanned if not one.rejected] == kept and found.proteins == 3
    reasons = {one.rejected for one in scanned if one.rejected} | {reason for _, _, reason in journal.entries}
    assert all("was used before (line " in reason for reason in reasons)


def test_a_file_of_nucleotides_is_refused_alike(tmp_path: Path) -> None:
    path = tmp_path / "genes.fasta"
    path.write_text("".join(f">g{row}\n{'ACGTTGCA' * 9}\n" for row in range(6)))
    for read in (
        lambda: store_proteins(path, tmp_path / "stored"), lambda: read_records(path), lambda: survey(path, "Y", 0),
        lambda: open_corpus(path, tmp_path / "corpus"),
    ):
        with pytest.raises(UserError, match="All sequences are nucleotides"):
            read()


def test_a_new_name_is_the_first_that_is_free() -> None:
    assert unused("a", {"a", "a_2", "a_4"}) == ("a_3", 4)
    assert unused("a", {"a", "a_2", "a_4"}, 4) == ("a_5", 6)


def test_equal_digests_point_to_the_first() -> None:
    digests = b"".join(bytes([value]) * 16 for value in (3, 1, 3, 2, 1))
    assert list(first_equal(digests)) == [0, 1, 0, 3, 1]
    assert list(itertools.chain(first_equal(b"\0" * 16))) == [0]
