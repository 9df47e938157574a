"""Lists of known sites that judge a classifier: what does not fit is counted by its reason, never used."""

from __future__ import annotations

from plm.data.sites import SiteListing
from plm.data.task import Task
from plm.jobs.classify_sites.candidates import Protein
from plm.jobs.classify_sites.tables import Truth


def _protein(sequence: str, letters: str = "Y", name: str = "P1") -> Protein:
    sites = tuple(index for index, letter in enumerate(sequence) if letter in letters)
    return Protein(name, name, 1, sequence, sites, tuple(site + 1 for site in sites), len(sequence))


def test_listed_sites_that_judge_nothing_are_counted_by_reason() -> None:
    task = Task("site", "class", ("0", "1"), "1")
    listings = [
        SiteListing("P1", place, label, stated, f"line {line}")
        for line, (place, label, stated) in enumerate([(3, "1.0", ""), (6, "0.0", "S"), (99, "1", ""), (1, "1", "")], 2)
    ] + [SiteListing("P9", 3, "1", "", "line 6")]
    truth = Truth(listings, task)
    protein = _protein("MKYAAYL")
    truth.see(protein)
    assert truth.labels(protein) == ["1", ""]
    told = truth.account()
    assert told.startswith("4 of 5 sites of the list are no candidate of these proteins (")
    for reason in ("1 at other residues than the list says", "1 outside their proteins",
                   "1 at residues that are no candidates", "1 of proteins that are not in the input"):
        assert reason in told


def test_a_list_of_known_sites_that_counts_from_0_is_told() -> None:
    sequence = "AYAAYAAAYAAAAYAAAAAYA"
    protein = _protein(sequence)
    for shift, hint in ((0, True), (1, False)):
        places = [index + shift for index, letter in enumerate(sequence) if letter == "Y"]
        listings = [SiteListing("P1", place, "1", "", "") for place in places]
        truth = Truth(listings, Task("site", "class", ("0", "1"), "1"))
        truth.see(protein)
        assert truth.labels(protein) == ([""] if hint else ["1"]) * 5
        assert ("does the list count from 0" in truth.account()) == hint
