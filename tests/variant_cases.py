"""What the reports of plm_variants say, and when: small accounts, for tests/test_report_sentences.py."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from plm.data.protein_store import store_proteins
from plm.jobs.variants.agreement import agreement
from plm.jobs.variants.figure import Drawn
from plm.jobs.variants.notation import Substitution
from plm.jobs.variants.report import EffectAccount, Placed, effects_report, kind_of
from plm.jobs.variants.shifts import shift_told
from plm.jobs.variants.variant_table import VariantRow

LEAST, MOST = Placed("P1", "A3V", -4.0, "0"), Placed("P1", "A3G", 0.5, "0")
REASONS = (
    "E9V: the protein ends at residue 5", "G3V: the protein has A at 3, not G",
    "a deletion: only substitutions are scored",
    "notation of coding DNA (c.): the change of the protein (p.) is needed", "U4C: U is none of the twenty amino acids",
)


def effects(**changes: Any) -> str:
    """The report of a table of three variants, two of them scored, or of what the changes make of it."""
    plain: dict[str, Any] = {
        "method": "masked-marginal", "model": "starter", "everything": False, "proteins": 1, "unusable": 0, "scored": 2,
        "least": [LEAST], "most": [MOST], "drawn": Drawn(2, 2),
    }
    outputs = ["scores", "ranked", "positions", "track", "status", "figure"]
    return effects_report(EffectAccount(**plain | changes), outputs).text()


def measured(kind: str = "", rows: int = 40, **changes: Any) -> str:
    """The same with measured values that follow the scores."""
    generator = np.random.default_rng(1)
    truth = np.zeros(rows) if kind == "equal" else generator.normal(size=rows)
    if kind == "absent":
        truth[:] = np.nan
    scores = {
        "language model": truth + 0.3 * generator.normal(size=rows), "BLOSUM62": generator.normal(size=rows),
        "site frequencies": generator.normal(size=rows),
    }
    if kind == "no better":
        scores["language model"], scores["BLOSUM62"] = scores["BLOSUM62"], scores["language model"]
        scores["language model"] = scores["BLOSUM62"] + 0.05 * generator.normal(size=rows)
    made = agreement(
        truth, scores, [str(number) for number in range(rows)], lower_is_better=False, resamples=200, seed=1
    )
    return effects(measured="fitness", agreement=made, scored=rows, **changes)


def shifted(by: int) -> str:
    """What is told of substitutions whose positions are so much too low."""
    letters = "MKLAYIGWQRKDISFV"
    with TemporaryDirectory() as folder:
        source = Path(folder) / "p.fasta"
        source.write_text(f">P1\n{letters}\n")
        proteins = store_proteins(source, Path(folder) / "store")
        rows = [
            VariantRow(number, (Substitution(letters[number + 2], number + 3 - by, "C"),), 0, "disagrees")
            for number in range(1, 9)
        ]
        return shift_told(proteins, rows) if by else shift_told(proteins, [])


EFFECTS: dict[str, Callable[[], str]] = {
    "table": effects,
    "table of several proteins": lambda: effects(proteins=3),
    "all": lambda: effects(everything=True, scored=3800, proteins=2, drawn=Drawn(2, 2)),
    "all, much": lambda: effects(everything=True, scored=38_000, proteins=40, drawn=Drawn(4, 40, 1968)),
    "likelihoods": lambda: effects(method="pseudo-likelihood"),
    "many positions": lambda: effects(drawn=Drawn(492, 700)),
    "none drawn": lambda: effects(drawn=Drawn(0, 0)),
    "nothing scored": lambda: effects(least=[], most=[], scored=0, drawn=Drawn(0, 0)),
    "rejected": lambda: effects(rejected=Counter(map(kind_of, REASONS))),
    "composition": lambda: effects(composition=0.93),
    "windows": lambda: effects(width=1022, windowed=2),
    "apart": lambda: effects(width=1022, windowed=1, apart=3),
    "unusable": lambda: effects(unusable=2),
    "measured": measured,
    "measured, no better": lambda: measured("no better"),
    "measured, few": lambda: measured(rows=6),
    "measured, equal": lambda: measured("equal"),
    "measured, absent": lambda: measured("absent"),
    "measured, aligned": lambda: measured(aligned=200),
}
EFFECT_TABLE: dict[str, tuple[str, str | None]] = {
    "how much likelier the model (": ("table", None),
    "With the measured values they have a Spearman correlation of": ("measured", "table"),
    "with a value in the column": ("measured", "measured, absent"),
    "Positive correlations mean that what is tolerated scores higher": ("measured", "table"),
    "Blue: the model finds the substitution less likely": ("table", "none drawn"),
    "beyond the end of the protein": ("rejected", "table"),
    "another residue in the protein than the variant says": ("rejected", "table"),
    "insertion, deletion, frameshift or the like": ("rejected", "table"),
    "a change of DNA or RNA, not of the protein": ("rejected", "table"),
    "a residue that is none of the twenty amino acids": ("rejected", "table"),
    "the whole protein with the new residue than the protein as it is": ("likelihoods", "table"),
    "the new residue at that place than the protein's own": ("table", "likelihoods"),
    "in one that the model knows little of": ("table of several proteins", "table"),
    "In a protein that the model knows little of": ("table", "table of several proteins"),
    "Too few measured values are numbers": ("measured, absent", "measured"),
    "How they agree with the measured values is undefined": ("measured, equal", "measured"),
    "are too few to draw again": ("measured, few", "measured"),
    "The language model less": ("measured", "measured, few"),
    "site frequencies are those of the columns of the alignment": ("measured, aligned", "measured"),
    "site frequencies are, without an alignment": ("measured", "measured, aligned"),
    "No single substitution was scored, so there is no map": ("none drawn", "table"),
    "A dot marks a variant of the table": ("table", "all"),
    "Of the first protein the first": ("all, much", "all"),
    "; the tables have all.": ("all, much", "all"),
    "; the least tolerated position is": ("all", "table"),
    "; the least tolerated is": ("table", "nothing scored"),
    "Fewer than three scored rows have a number in the column": ("measured, absent", "measured"),
    "Grey substitutions were not asked for": ("likelihoods", "table"),
    "The figure shows the first": ("many positions", "table"),
    "The scores follow how frequent the amino acids are": ("composition", "table"),
    "longer than the window of": ("windows", "table"),
    "the substitutions lie further apart than a window": ("apart", "windows"),
    "could not be used; the table of proteins says why": ("unusable", "table"),
    "not shown to be better than": ("measured, no better", "measured"),
}
SHIFTS: dict[str, Callable[[], str]] = {"too low": lambda: shifted(2), "none": lambda: shifted(0)}
SHIFT_TABLE: dict[str, tuple[str, str | None]] = {
    "rejected residues would agree if positions were": ("too low", "none"),
}
