"""The report of plm_variants: what the model finds unlikely, how far to trust it, and what was left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from plm.jobs.variants.agreement import Agreement, Correlation
from plm.jobs.variants.figure import Drawn
from plm.telling.report import Report, plain
from plm.wording import counted, number

COMPOSITION = 0.8
"""Correlation with the frequencies of amino acids from which a model is said to tell little beside them."""
SHOWN = 8
"""Variants or positions at either end that the report lists."""
_KINDS = (
    ("no protein is", "no protein of that name"),
    ("of the proteins", "the name fits several proteins"),
    ("its protein cannot be used", "its protein was rejected"),
    ("the protein ends at", "beyond the end of the protein"),
    ("the protein has", "another residue in the protein than the variant says"),
    ("cannot be read", "not written as a substitution"),
    ("synonymous", "synonymous: no residue is substituted"),
    ("a stop", "a stop"),
    ("the stop", "a stop"),
    ("only substitutions", "insertion, deletion, frameshift or the like"),
    ("the wild type", "the wild type itself"),
    ("no variant is given", "no variant is given"),
    ("notation of", "a change of DNA or RNA, not of the protein"),
    ("none of the twenty", "a residue that is none of the twenty amino acids"),
)
"""Pieces of reasons and what they are counted as; the first that fits counts."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A variant or a position with its score.

    Attributes:
        protein: Id of its protein.
        name: Such as ``A23V``, or ``A23``.
        score: Of the model, or its mean over the position.
        rival: What BLOSUM62 says; empty for positions.
    """

    protein: str
    name: str
    score: float
    rival: str = ""


@dataclass(frozen=True)
class EffectAccount:
    """What a job came to.

    Attributes:
        method: One of :data:`plm.jobs.variants.marginals.METHODS`.
        model: Name of the model.
        everything: All substitutions were asked for.
        proteins: Records with scores.
        unusable: Records that could not be used.
        scored: Variants or substitutions that are scored.
        least: The least tolerated variants or positions, the worst first.
        most: The most tolerated, the best first.
        rejected: Rows that are not scored, by kind of reason.
        shifted: Sentence on positions that would fit if they were counted otherwise; may be empty.
        width: Residues of a window; 0 if all was seen whole.
        windowed: Records seen through windows.
        apart: Rows whose substitutions lie too far apart for one window.
        aligned: Records of the alignment; 0 without one.
        measured: Name of the column of measured values; empty without.
        agreement: How scores and measured values agree; None with too few values.
        drawn: What the figure shows.
        composition: Spearman correlation of the scores with the frequencies of amino acids alone; NaN if unknown.
        warning: Of the reading of the proteins; may be empty.
    """

    method: str
    model: str
    everything: bool
    proteins: int
    unusable: int
    scored: int
    least: Sequence[Placed]
    most: Sequence[Placed]
    rejected: Counter[str] = field(default_factory=Counter)
    shifted: str = ""
    width: int = 0
    windowed: int = 0
    apart: int = 0
    aligned: int = 0
    measured: str = ""
    agreement: Agreement | None = None
    drawn: Drawn | None = None
    composition: float = float("nan")
    warning: str = ""


def kind_of(reason: str) -> str:
    """What a reason is counted as."""
    return next((kind for piece, kind in _KINDS if piece in reason), "other reasons")


def first_line(account: EffectAccount) -> str:
    """The answer in a sentence or two."""
    least = account.least[0] if account.least else None
    if account.everything:
        told = f"All {counted(account.scored, 'substitution')} of {counted(account.proteins, 'protein')} are scored"
        if least:
            told += f"; the least tolerated position is {least.name} of {least.protein} (mean score {least.score:.2f})"
    else:
        rows = account.scored + account.rejected.total()
        verb = "is" if account.scored == 1 else "are"
        told = f"{account.scored:,} of {counted(rows, 'variant')} {verb} scored"
        if least:
            told += f"; the least tolerated is {least.name} of {least.protein} (score {least.score:.2f})"
        if account.rejected:
            told += f"; {account.rejected.total():,} {'is' if account.rejected.total() == 1 else 'are'} rejected"
    return f"{told}.{_agreement_line(account)}"


def effects_report(account: EffectAccount, outputs: Sequence[str]) -> Report:
    """The report.

    Args:
        account: What the job came to.
        outputs: Names of the outputs that were made.
    """
    report = Report(plain(first_line(account)))
    report.paragraph(_meaning(account))
    if account.measured:
        _agreement(report, account)
    _extremes(report, account)
    if "figure" in outputs and account.drawn is not None:
        report.heading("Map of the scores")
        report.image("figure")
        report.paragraph(_reading(account))
    if account.rejected:
        report.heading("Rows that are not scored")
        rows = [[kind, f"{count:,}"] for kind, count in account.rejected.most_common()]
        report.rows(["why", "rows"], rows)
        if account.shifted:
            report.paragraph(plain(account.shifted))
    _notes(report, account)
    report.heading("Files")
    labels = {
        "scores": "All scores", "ranked": "From the least tolerated on", "positions": "Tolerance of each position",
        "track": "Tolerance for a genome browser", "status": "What became of each protein",
    }
    for name, label in labels.items():
        if name in outputs:
            report.link(name, label)
    return report


def _meaning(account: EffectAccount) -> str:
    what = "the whole protein with the new residue than the protein as it is" if (
        account.method == "pseudo-likelihood"
    ) else "the new residue at that place than the protein's own"
    told = (
        f"A score is the natural logarithm of how much likelier the model ({plain(account.model)}) finds {what}: 0 "
        "means equally likely, -2.3 ten times less likely, and higher means better tolerated. The model has read many "
        "natural proteins and no measurement: a low score says that such a change is unusual in evolution, not what "
        "it does, and it is no probability of a disease. "
    )
    if account.proteins > 1:
        told += "Compare scores within a protein; "
        told += "in one that the model knows little of, they say little more than how frequent the amino acids are."
    else:
        told += "In a protein that the model knows little of, they say little more than how frequent amino acids are."
    return told


def _agreement_line(account: EffectAccount) -> str:
    compared = account.agreement
    if not account.measured:
        return ""
    if compared is None:
        return " Too few measured values are numbers to compare them with the scores."
    model = compared.correlations[0]
    if model.value != model.value:
        return " How they agree with the measured values is undefined: the scores or the values are all equal."
    told = f" With the measured values they have a Spearman correlation of {_with_interval(model)}"
    if (pair := compared.comparison) is None:
        return f"{told}."
    verdict = {
        "beats": "better than", "is worse than": "worse than",
        "is not shown to be better than": "not shown to be better than",
    }.get(pair.verdict, "beside")
    return f"{told}, {verdict} the best baseline ({pair.second}, {pair.second_value:.2f})."


def _with_interval(one: Correlation) -> str:
    if one.low != one.low:
        return f"{one.value:.2f}"
    return f"{one.value:.2f} (95 % interval {one.low:.2f} to {one.high:.2f})"


def _agreement(report: Report, account: EffectAccount) -> None:
    compared = account.agreement
    report.heading("Beside measured values")
    if compared is None:
        report.paragraph(f"Fewer than three scored rows have a number in the column {plain(account.measured)}.")
        return
    cells = []
    for one in compared.correlations:
        interval = "" if one.low != one.low else f"{number(one.low)} to {number(one.high)}"
        cells.append([plain(one.name), number(one.value), interval])
    report.rows(["what is scored", "Spearman", "95 % interval"], cells)
    told = f"{counted(compared.rows, 'variant')} with a value in the column {plain(account.measured)}. "
    if any(one.low == one.low for one in compared.correlations):
        told += f"Intervals: {compared.unit} drawn again with replacement. "
    else:
        told += f"No intervals: {compared.unit} are too few to draw again. "
    pair = compared.comparison
    if pair is not None and pair.low == pair.low:
        told += (
            f"The language model less {pair.second}, both on the same draws: {pair.difference:+.3f} "
            f"({pair.low:+.3f} to {pair.high:+.3f}, p = {pair.p_value:.2g}). "
        )
    told += "Positive correlations mean that what is tolerated scores higher. BLOSUM62 knows only the two residues; "
    told += (
        f"site frequencies are those of the columns of the alignment ({counted(account.aligned, 'sequence')})."
        if account.aligned else
        "site frequencies are, without an alignment, those of the amino acids in all the proteins together: a "
        "baseline that knows nothing of the position."
    )
    report.paragraph(told)


def _extremes(report: Report, account: EffectAccount) -> None:
    what = "positions" if account.everything else "variants"
    score = "mean score" if account.everything else "score"
    report.heading(f"Least and most tolerated {what}")
    header = ["protein", what[:-1], score, *([] if account.everything else ["BLOSUM62"])]

    def cells(placed: Sequence[Placed]) -> list[list[str]]:
        return [
            [plain(one.protein), one.name, f"{one.score:.2f}", *([] if account.everything else [one.rival])]
            for one in placed
        ]

    report.rows(header, cells(account.least))
    if account.most:
        report.paragraph(f"The most tolerated {what}:")
        report.rows(header, cells(account.most))


def _reading(account: EffectAccount) -> str:
    drawn = account.drawn
    assert drawn is not None
    if not drawn.shown:
        return "No single substitution was scored, so there is no map."
    told = (
        "Blue: the model finds the substitution less likely than the protein's own residue; orange: likelier. Blue "
        "columns are positions that tolerate little."
    )
    if not account.everything:
        told += " A dot marks a variant of the table."
        if account.method == "pseudo-likelihood":
            told += " Grey substitutions were not asked for."
        if drawn.shown < drawn.of:
            told += f" The figure shows the first {drawn.shown} of {counted(drawn.of, 'position')}."
        return told
    if drawn.residues:
        told += f" Of the first protein the first {drawn.residues:,} positions are shown."
    if drawn.shown < drawn.of:
        told += f" The figure shows the first {drawn.shown} of {counted(drawn.of, 'protein')}; the tables have all."
    return told


def _notes(report: Report, account: EffectAccount) -> None:
    notes = []
    if account.composition >= COMPOSITION:
        notes.append(
            "The scores follow how frequent the amino acids are in these proteins (Spearman "
            f"{account.composition:.2f}): this model says little about the positions themselves. A larger published "
            "model usually says more."
        )
    if account.windowed:
        notes.append(
            f"{counted(account.windowed, 'protein is', 'proteins are')} longer than the window of {account.width:,} "
            "residues: the model saw each substitution through such a window, in its middle but for the protein's "
            "ends, and nothing beyond it. The column window says which residues those were."
        )
    if account.apart:
        notes.append(
            f"In {counted(account.apart, 'row')} the substitutions lie further apart than a window: each was seen "
            "alone and the scores were added."
        )
    if account.unusable:
        notes.append(f"{counted(account.unusable, 'protein')} could not be used; the table of proteins says why.")
    if account.warning:
        notes.append(plain(account.warning))
    if notes:
        report.heading("Notes")
        report.bullets(notes)
