"""What the report of plm_contacts says, and when: small accounts, for tests/test_report_sentences.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from plm.jobs.contacts.contact_baselines import BASELINES
from plm.jobs.contacts.contact_heads import TITLES, AttentionRegression, ContactHead
from plm.jobs.contacts.contact_job import HEADLINE, SEEN, ContactOutcome
from plm.jobs.contacts.contact_report import ContactAccount, contacts_report
from plm.jobs.contacts.parts import SPARE, TEST, TRAIN, VALID, ContactParts
from plm.jobs.contacts.precision import MeanPrecision, summarise
from plm.scoring.comparison import compare

REGRESSION, PUBLISHED = TITLES["regression"], TITLES["published"]
OUTPUTS = ("contacts", "proteins", "metrics", "status", "figure", "new_head")


def means(name: str, level: float, proteins: int) -> MeanPrecision:
    values = np.clip(np.random.default_rng(len(name)).normal(level, 0.02, (proteins, 9)), 0, 1)
    return summarise(name, values, [str(at) for at in range(proteins)], resamples=200, seed=1)


def contacts(
    proteins: int = 40, level: float = 0.4, *, chosen: str = REGRESSION, fitted: bool = True, known: bool = True,
    leaking: int = 0, spare: bool = False, seen: int = 0, learned: bool = True, **changes: Any,
) -> str:
    """The report of forty test proteins on which the regression beats the baselines, or what the changes make of it."""
    heads: dict[str, ContactHead] = {chosen: AttentionRegression("regression", torch.zeros(2, 4), 0.0)}
    part = {at: (TRAIN, VALID, TEST)[min(at, 2)] if fitted else TEST for at in range(proteins + 2)}
    if spare:
        part[proteins + 2] = SPARE
    part |= {proteins + 3 + at: SEEN for at in range(seen)}
    outcome = ContactOutcome(heads, chosen, ContactParts(part, {}, "whole families", leaking) if known else None)
    outcome.seen, outcome.fitted_pairs = seen, 5000 * fitted
    if known:
        names = (chosen, *(BASELINES if learned else BASELINES[:2]))
        outcome.test = {name: means(name, level if name == chosen else 0.1, proteins) for name in names}
        if fitted:
            outcome.valid = {name: means(name, level, 2) for name in names}
        first, second = outcome.test[chosen], outcome.test[names[-1]]
        drawn = (first.resampled[:, HEADLINE], second.resampled[:, HEADLINE]) if len(first.resampled) else None
        outcome.comparison = compare(
            (chosen, names[-1]), "precision", (float(first.mean[HEADLINE]), float(second.mean[HEADLINE])), drawn
        )
    plain: dict[str, Any] = {
        "model": "starter", "predicted": proteins + 2, "rejected": 0, "top": 1.0, "whole": 1000, "windowed": 0,
        "unseen": 0, "partial": 0, "differing": 0, "drawn": ["P1", "P2"], "pictured": "judged" if known else "first",
    }
    return contacts_report(ContactAccount(outcome, **plain | changes), OUTPUTS).text()


CONTACTS: dict[str, Callable[[], str]] = {
    "judged": contacts,
    "no better": lambda: contacts(level=0.1),
    "worse": lambda: contacts(level=0.02),
    "few": lambda: contacts(6),
    "not judged": lambda: contacts(known=False, fitted=False),
    "head given": lambda: contacts(fitted=False, learned=False, given="head.zip"),
    "published": lambda: contacts(fitted=False, learned=False, chosen=PUBLISHED),
    "leaking": lambda: contacts(leaking=2),
    "seen": lambda: contacts(fitted=False, learned=False, given="head.zip", seen=2),
    "spare": lambda: contacts(spare=True),
    "windows": lambda: contacts(windowed=2, unseen=40_000),
    "partial": lambda: contacts(partial=3),
    "differing": lambda: contacts(differing=1),
    "rejected": lambda: contacts(rejected=2),
}
CONTACT_TABLE: dict[str, tuple[str, str | None]] = {
    "are predicted by": ("not judged", "judged"),
    "contacts judge them": ("not judged", "judged"),
    "Of the likeliest L/5 pairs at least 12 residues apart": ("judged", "not judged"),
    "better than": ("judged", "worse"),
    "not shown to be better than": ("no better", "judged"),
    "Two residues are in contact if their C-betas": ("judged", None),
    "are at least six residues apart in sequence. The probabilities come from a language model": ("judged", None),
    "that has read sequences, not structures": ("judged", None),
    "Precision is the share of contacts among so many of the likeliest pairs": ("judged", "not judged"),
    "with a residue whose place is unknown are left out": ("judged", "not judged"),
    "Intervals (95 %): whole families drawn again with replacement": ("judged", "few"),
    "No intervals: fewer than ten families are too few to draw again": ("few", "judged"),
    "on the same draws:": ("judged", "few"),
    "Nothing was fitted: the head of": ("head given", "judged"),
    "Nothing was fitted: the model's own": ("published", "head given"),
    "protein trained (": ("judged", "head given"),
    "The method was chosen by the precision at L on validation proteins": ("judged", "head given"),
    "The regression reads how much each attention head of each layer attends": ("judged", "published"),
    "Baselines know no language model: random pairs; how often residues so far apart": ("judged", "head given"),
    "Below: true contacts in dark blue": ("judged", "not judged"),
    "Grey: unknown, or nearer than six residues": ("not judged", "judged"),
    "Shown are test proteins from the best to the worst precision": ("judged", "not judged"),
    "Shown are the first proteins": ("not judged", "judged"),
    "few: the mean would be another on others": ("few", "judged"),
    "relatives among those that trained or": ("leaking", "judged"),
    "that the given head learned from or was chosen on": ("seen", "head given"),
    "not needed": ("spare", "judged"),
    "went in overlapping windows of": ("windows", "judged"),
    "some residues or atoms: their pairs are neither contacts nor non-contacts": ("partial", "judged"),
    "from the given sequence; the table of records says where": ("differing", "judged"),
    "at least 6 apart (all that counts as a contact)": ("judged", "not judged"),
    "at least 12 apart (medium and long range, TAPE)": ("judged", "not judged"),
    "at least 24 apart (long range, CASP)": ("judged", "not judged"),
    "L of each protein": ("judged", None),
    "could not be used; the table of records says why": ("rejected", "judged"),
}
