"""The report of plm_contacts: how good the predicted contacts are, beside what, and what was left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from plm.jobs.contacts.contact_baselines import BASELINES
from plm.jobs.contacts.contact_heads import TITLES
from plm.jobs.contacts.contact_job import HEADLINE, ContactOutcome
from plm.jobs.contacts.parts import SPARE, TEST, TRAIN, VALID
from plm.jobs.contacts.precision import CELLS, MeanPrecision
from plm.telling.report import Report, plain
from plm.wording import counted

_RANGES = {
    6: "at least 6 apart (all that counts as a contact)", 12: "at least 12 apart (medium and long range, TAPE)",
    24: "at least 24 apart (long range, CASP)",
}
_FEW_LENGTHS = 30
"""Test proteins below which the report says that a mean tells little."""


@dataclass(frozen=True)
class ContactAccount:
    """What a job came to, in figures.

    Attributes:
        outcome: Heads, parts and precisions.
        model: Name of the model.
        predicted: Records with predicted contacts.
        rejected: Records without, structures that are no record included.
        top: Pairs listed, as a multiple of the length.
        whole: Residues of a window.
        windowed: Records that went in windows.
        unseen: Pairs that no window saw together.
        partial: Records whose structures have residues without a known place.
        differing: Records whose structures differ from their sequence.
        drawn: Ids of the proteins in the figure.
        pictured: How they were taken: ``judged`` (best to worst) or ``first``.
        given: Name of a head that was given; empty if none.
        warning: Of the reading of the proteins; may be empty.
    """

    outcome: ContactOutcome
    model: str
    predicted: int
    rejected: int
    top: float
    whole: int
    windowed: int
    unseen: int
    partial: int
    differing: int
    drawn: Sequence[str]
    pictured: str
    given: str = ""
    warning: str = ""


def contacts_line(account: ContactAccount) -> str:
    """The answer in a sentence or two."""
    outcome = account.outcome
    if not outcome.test:
        return (
            f"Contacts of {counted(account.predicted, 'protein')} are predicted by {_named(outcome.chosen)}; no known "
            "contacts judge them."
        )
    chosen = outcome.test[outcome.chosen]
    told = (
        f"Of the likeliest L/5 pairs at least 12 residues apart {_with_interval(chosen, HEADLINE)} touch, in the mean "
        f"over {counted(chosen.proteins, 'test protein')} of length L ({outcome.chosen}"
    )
    pair = outcome.comparison
    if pair is None:
        return f"{told})."
    verdict = {
        "beats": "better than", "is worse than": "worse than",
        "is not shown to be better than": "not shown to be better than",
    }.get(pair.verdict, "beside")
    return f"{told}), {verdict} the baseline {pair.second} ({pair.second_value:.2f})."


def _named(title: str) -> str:
    return title if title.startswith("the ") else f"a {title}"


def _with_interval(one: MeanPrecision, at: int) -> str:
    if one.low[at] != one.low[at]:
        return f"{one.mean[at]:.0%}"
    return f"{one.mean[at]:.0%} (95 % interval {one.low[at]:.0%} to {one.high[at]:.0%})"


def contacts_report(account: ContactAccount, outputs: Sequence[str]) -> Report:
    """The report.

    Args:
        account: What the job came to.
        outputs: Names of the outputs that were made.
    """
    outcome = account.outcome
    report = Report(plain(contacts_line(account)))
    report.paragraph(
        "Two residues are in contact if their C-betas (the C-alpha of glycine) are less than 8 Angstrom apart and they "
        "are at least six residues apart in sequence. The probabilities come from a language model "
        f"({plain(account.model)}) that has read sequences, not structures."
    )
    if outcome.test:
        _precisions(report, account)
    _methods(report, account)
    if "figure" in outputs and account.drawn:
        report.heading("Contact maps")
        report.image("figure")
        report.paragraph(_reading(account))
    _notes(report, account)
    report.heading("Files")
    labels = {
        "contacts": f"The likeliest pairs ({account.top:g} L of each protein)", "proteins": "Precision of each protein",
        "metrics": "Mean precisions with intervals", "status": "What became of each record",
        "new_head": "The head, for further proteins",
    }
    for name, label in labels.items():
        if name in outputs:
            report.link(name, label)
    return report


def _precisions(report: Report, account: ContactAccount) -> None:
    outcome = account.outcome
    report.heading("Precision on test proteins")
    for separation, told in _RANGES.items():
        cells = []
        for method, one in outcome.test.items():
            marked = f"**{plain(method)}**" if method == outcome.chosen else plain(method)
            places = [at for at, cell in enumerate(CELLS) if cell[0] == separation]
            cells.append([marked, *(_cell(one, at) for at in places)])
        report.paragraph(f"Pairs {told}:")
        report.rows(["method", "top L", "top L/2", "top L/5"], cells)
    first = next(iter(outcome.test.values()))
    told = (
        "Precision is the share of contacts among so many of the likeliest pairs, L being the protein's length, in the "
        f"mean over {counted(first.proteins, 'protein')} from {counted(first.groups, 'family', 'families')}. Pairs "
        "with a residue whose place is unknown are left out. "
    )
    told += (
        "Intervals (95 %): whole families drawn again with replacement."
        if len(first.resampled) else "No intervals: fewer than ten families are too few to draw again."
    )
    report.paragraph(told)
    pair = outcome.comparison
    if pair is not None and pair.low == pair.low:
        report.paragraph(
            f"Top L/5, at least 12 apart, {plain(pair.first)} less {plain(pair.second)} on the same draws: "
            f"{pair.difference:+.3f} ({pair.low:+.3f} to {pair.high:+.3f}, p = {pair.p_value:.2g})."
        )


def _cell(one: MeanPrecision, at: int) -> str:
    if one.mean[at] != one.mean[at]:
        return "no pairs"
    if one.low[at] != one.low[at]:
        return f"{one.mean[at]:.3f}"
    return f"{one.mean[at]:.3f} ({one.low[at]:.2f} to {one.high[at]:.2f})"


def _methods(report: Report, account: ContactAccount) -> None:
    outcome, parts = account.outcome, account.outcome.parts
    report.heading("How contacts are told")
    lines = []
    if account.given:
        lines.append(f"Nothing was fitted: the head of {plain(account.given)} answers ({outcome.chosen}).")
    elif outcome.valid and parts is not None:
        lines.append(
            f"{counted(len(parts.of(TRAIN)), 'protein')} trained ({outcome.fitted_pairs:,} pairs), "
            f"{counted(len(parts.of(VALID)), 'protein')} chose, {counted(len(parts.of(TEST)), 'protein')} judged; "
            f"{plain(parts.told)}."
        )
        told = ", ".join(
            f"{title} {one.mean[0]:.3f}" for title, one in outcome.valid.items() if title not in BASELINES
        )
        lines.append(f"The method was chosen by the precision at L on validation proteins: {told}.")
    else:
        lines.append(f"Nothing was fitted: {_named(outcome.chosen)} answers.")
    if TITLES["regression"] in outcome.heads and not account.given:
        lines.append(
            "The regression reads how much each attention head of each layer attends from one residue to the other and "
            "back, corrected for how much each residue draws attention at all (Rao et al. 2021)."
        )
    if outcome.test and (len(outcome.test) - len(outcome.heads)) == len(BASELINES):
        lines.append(
            "Baselines know no language model: random pairs; how often residues so far apart touch in the training "
            "proteins; the same with the two amino acids."
        )
    report.bullets(lines)


def _reading(account: ContactAccount) -> str:
    told = "Above the diagonal: predicted probabilities. "
    told += (
        "Below: true contacts in dark blue; grey is unknown, or nearer than six residues. "
        if account.outcome.parts is not None else "Grey: unknown, or nearer than six residues. "
    )
    names = ", ".join(plain(name) for name in account.drawn)
    if account.pictured == "judged":
        return told + f"Shown are test proteins from the best to the worst precision (top L/5, 12 apart): {names}."
    return told + f"Shown are the first proteins: {names}."


def _notes(report: Report, account: ContactAccount) -> None:
    notes, outcome = [], account.outcome
    parts = outcome.parts
    tested = outcome.test[outcome.chosen].proteins if outcome.test else 0
    if 0 < tested < _FEW_LENGTHS:
        notes.append(
            f"{counted(tested, 'test protein is', 'test proteins are')} few: the mean would be another on others."
        )
    if parts is not None and parts.leaking:
        notes.append(
            f"{counted(parts.leaking, 'test protein has', 'test proteins have')} relatives among those that trained or "
            "chose, as the given table of parts has it: the precision is too good for new families."
        )
    if outcome.seen:
        notes.append(
            f"{counted(outcome.seen, 'protein')} that the given head learned from or was chosen on "
            f"{'does' if outcome.seen == 1 else 'do'} not judge it."
        )
    if parts is not None and parts.of(SPARE):
        notes.append(
            f"{counted(len(parts.of(SPARE)), 'training protein was', 'training proteins were')} not needed "
            "(--train-proteins)."
        )
    if account.windowed:
        notes.append(
            f"{counted(account.windowed, 'protein')} went in overlapping windows of {account.whole:,} residues, which "
            f"the memory or the model holds: {counted(account.unseen, 'pair')} that no window holds together have no "
            "answer. Nothing was cut off."
        )
    if account.partial:
        notes.append(
            f"{counted(account.partial, 'structure lacks', 'structures lack')} some residues or atoms: their pairs are "
            "neither contacts nor non-contacts."
        )
    if account.differing:
        notes.append(
            f"{counted(account.differing, 'structure differs', 'structures differ')} from the given sequence; the "
            "table of records says where."
        )
    if account.rejected:
        notes.append(
            f"{counted(account.rejected, 'record or structure', 'records or structures')} could not be used; the table "
            "of records says why."
        )
    if account.warning:
        notes.append(plain(account.warning))
    if notes:
        report.heading("Notes")
        report.bullets(notes)

