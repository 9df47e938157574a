"""What reports say, and when: each sentence is said of data where it is true and not of data where it is false.

:data:`TABLE` has a dictionary for each module that makes reports. Its keys are pieces of sentences as they stand in the
source; its values name two scenarios, small data sets that go through the module's own functions: one of which the
sentence is true and said, and one of which it is not true and not said. ``None`` instead of the second: it is true of
every report. A sentence in the source that no key of its module is a piece of fails the last test; what is not tested
yet stands in :data:`LEFT`, by name.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import contact_cases
import conversion_cases as conversions
import installation_cases
import numpy as np
import pandas as pd
import plm
import plm_compare_embeddings
import plm_project
import pytest
import test_evaluation_report as evaluation_cases
import test_logo as logo_cases
import test_mutagenesis as mutation_cases
import test_site_report as site_cases
import test_why as why_cases
import variant_cases
from plm.data import leakage
from plm.data.examples import Example, Journal
from plm.data.task import Task
from plm.errors import UserError
from plm.jobs.classifier import compression_report, report
from plm.jobs.classifier.compression import CompressionCost, MeasuredForm
from plm.jobs.classify_sites import logo
from plm.jobs.classify_sites import report as site_report
from plm.jobs.classify_sites.report import SiteCounts
from plm.jobs.compare_models import report as model_comparison_report
from plm.jobs.compare_models.cost import ModelCost as ModelCost
from plm.jobs.compare_models.held_out import HeldOut
from plm.jobs.compare_models.masked_agreement import MaskedLine
from plm.jobs.compare_models.probe_scores import Resampled
from plm.jobs.compare_models.report import ProbeResult
from plm.jobs.compare_models.similarity import Similarity
from plm.jobs.distill import report as distillation_report
from plm.jobs.distill.distillation import RangeTest
from plm.jobs.finetune import finished as release
from plm.jobs.finetune import report as traces
from plm.jobs.predict import report as prediction_report
from plm.jobs.predict.verdicts import judge, make_rules
from plm.jobs.preprocess.report import SplitAccount
from plm.scoring import predictions
from plm.scoring.assessment import assess
from plm.scoring.comparison import compare
from plm.scoring.conformal import Errors, coverage_on
from plm.scoring.metrics import Scored
from plm.scoring.novelty import Novelty, summary
from plm.scoring.operating_point import OperatingPoint
from plm.scoring.predictions import Evaluation, Model
from plm.telling import mutagenesis_figure, predictor_lines
from plm.training import few_rows

pytestmark = pytest.mark.slow  # minutes in all: left out of the quick tier

Case = tuple[str, str | None]
LETTERS = np.array(list("ACDEFGHIKLMNPQRSTVWY"))

# ------------------------------------------------------------------------------------------------------ preprocessing


def peptides(count: int, seed: int) -> list[str]:
    """Unrelated windows of 33 residues."""
    return ["".join(row) for row in np.random.default_rng(seed).choice(LETTERS, (count, 33))]


def account(
    sizes: dict[str, int], *, copies: int = 0, protein: int = 0, group: int = 0, near: int = 0, stretch: int = 0,
    split: str = "group", journal: Journal | None = None, task: str = "site", classes: tuple[str, ...] = ("a", "b"),
    one_class: str = "", large: bool = False, rare: bool = False,
) -> str:
    """The report and the log of a data set with so many rows a part, of which the first test rows share something."""
    made: list[Example] = []
    texts = iter(peptides(sum(sizes.values()), 1))
    for part, count in sizes.items():
        for number in range(count):
            name = f"{part}{number}"
            label = classes[number % len(classes)] if part != one_class else classes[0]
            made.append(Example(name, next(texts), label, 16, name, 100, group=name, split=part, source=name))
    train = [one for one in made if one.split in ("train", "1")]
    test = [one for one in made if one.split in ("test", "2")]
    for number in range(copies):
        test[number].sequence = train[number].sequence
    for number in range(protein):
        test[number].protein = train[number].protein
        test[number].protein_position = 105 if near else 900
    for number in range(group):
        test[number].group = train[number].group
    for number in range(stretch):
        test[number].sequence = train[number].sequence[:15] + test[number].sequence[15:]
    for one in train if large else []:
        one.group = "family"
    for number, one in enumerate(made):
        letter = "T" if rare and number == 0 else "S"
        one.sequence = one.sequence[:16] + letter + one.sequence[17:]
    leaks = leakage.measure(made, identity=None, coverage=0.8, threads=1, method="exact")
    settings: Any = SimpleNamespace(
        task=task, split=split, identity=None, coverage=0.8, seeks_sites=False, figure=None, seed=1
    )
    told = SplitAccount(len(made), made, journal or Journal(), leaks, 33, "exact", settings)
    return "\n".join([told.report().text(), *told.lines()])


def journal(*entries: tuple[str, str]) -> Journal:
    made = Journal()
    for number, (what, reason) in enumerate(entries):
        made.entries.append((f"r{number}", what, reason))
    return made


MANY = {"train": 60, "valid": 20, "test": 20}
SPLITS: dict[str, Callable[[], str]] = {
    "independent": lambda: account(MANY),
    "one test row": lambda: account({"train": 60, "test": 1}),
    "no test": lambda: account({"train": 60}),
    "nothing to train": lambda: account({"test": 60}),
    "folds": lambda: account({"1": 20, "2": 20, "3": 20}),
    "few folds": lambda: account({"1": 2, "2": 2, "3": 2}),
    "no validation": lambda: account({"train": 60, "test": 20}),
    "few test": lambda: account({"train": 60, "valid": 20, "test": 7}),
    "few validation": lambda: account({"train": 60, "valid": 4, "test": 20}),
    "copies": lambda: account(MANY, copies=2),
    "one copy": lambda: account(MANY, copies=1),
    "proteins": lambda: account(MANY, protein=2),
    "one protein": lambda: account(MANY, protein=1, near=1),
    "near": lambda: account(MANY, protein=2, near=1),
    "groups": lambda: account(MANY, group=2),
    "one group": lambda: account(MANY, group=1),
    "stretches": lambda: account(MANY, stretch=2),
    "one stretch": lambda: account(MANY, stretch=1),
    "random": lambda: account(MANY, split="random"),
    "a class lacks": lambda: account(MANY, one_class="test"),
    "a large group": lambda: account(MANY, large=True),
    "a rare letter": lambda: account(MANY, rare=True),
    "many classes": lambda: account(MANY, classes=tuple(f"c{number}" for number in range(20))),
    "rejected": lambda: account(MANY, journal=journal(("rejected", "too short"), ("left out", "cap"))),
    "changed": lambda: account(MANY, journal=journal(("changed", "name"))),
}
SPLIT_TABLE: dict[str, Case] = {
    "othing was compared for leakage, since there": ("no test", "independent"),
    "is no validation or test set": ("no test", "nothing to train"),
    "are no training records": ("nothing to train", "no test"),
    "shares no protein, group or relative": ("one test row", "independent"),
    "shares a protein, a group or a relative": ("independent", "no test"),
    "No leakage found: none of 20 test": ("independent", "copies"),
    "LEAKAGE: 2 of 20 test records leak;": ("copies", "independent"),
    "LEAKAGE: 1 of 20 test records leaks;": ("one copy", "copies"),
    "No leakage found: none of 20 validation": ("copies", "no validation"),
    "share a protein with": ("proteins", "copies"),
    "shares a protein with": ("one protein", "proteins"),
    "residues of a site there of the same protein": ("near", "proteins"),
    "shares a group with these": ("one group", "groups"),
    "share a group with these": ("groups", "proteins"),
    "share a stretch of residues": ("stretches", "proteins"),
    "shares a stretch of residues": ("one stretch", "stretches"),
    "has a relative there at": ("one copy", "copies"),
    "have a relative there at": ("copies", "proteins"),
    "training or validation records": ("independent", "no validation"),
    "the other folds": ("folds", "independent"),
    "choices made on it (epoch, head, method, temperature, threshold) rest on chance": ("few validation", "few test"),
    "there will be no intervals, and whether a model beats a baseline cannot be told": ("few test", "few validation"),
    "FEW GROUPS: the": ("few folds", "independent"),
    "it a larger share, or more proteins": ("few test", "few folds"),
    "No record of class": ("a class lacks", "independent"),
    "A few sites are on other residues than most": ("a rare letter", "independent"),
    "of the rows, and a group cannot be divided": ("a large group", "independent"),
    "A random split ignores proteins and homology: on rows with relatives": ("random", "independent"),
    "journal:": ("independent", None),
    "Rejected, left out and changed records": ("rejected", "independent"),
    "How relatives were told:": ("independent", None),
    "Nearest relative of each": ("independent", "no test"),
    "No record or site was rejected, left out or changed.": ("independent", "changed"),
    "The table below tells why: ": ("changed", "independent"),
    "left out by a rule": ("rejected", "changed"),
}

# --------------------------------------------------------------------------------------------------------------- maps


def mapped(
    kind: str, *, rows: int = 120, apart: float = 3.0, groups: str = "", queries: int = 0, labelled: bool = True,
    methods: str = "pca", more: tuple[str, ...] = (), query_shift: float = 0.0,
) -> str:
    """The report and the first lines of a map of simulated proteins in three classes, or with numbers."""
    generator = np.random.default_rng(3)
    codes = np.arange(rows + queries) % 3
    place = apart * generator.normal(size=(3, 6))[codes] + generator.normal(size=(rows + queries, 6))
    place[rows:] += query_shift
    labels = [f"c{code}" for code in codes] if kind != "number" else [f"{value:.4f}" for value in place[:, 0]]
    if kind == "shuffled":
        labels = [str(one) for one in generator.permutation(labels)]
    if kind == "random numbers":
        labels = [f"{value:.4f}" for value in generator.normal(size=len(labels))]
    labels = {"same": ["c0"] * len(labels), "unique": [f"u{n}" for n in range(len(labels))]}.get(kind, labels)
    names = {"pairs": [f"g{n // 2}" for n in range(len(labels))], "labels": labels, "one": ["g"] * len(labels),
             "two": [f"g{n % 2}" for n in range(len(labels))]}.get(groups)
    with TemporaryDirectory() as folder:
        work = Path(folder)
        for name, part in (("r", slice(0, rows)), ("q", slice(rows, None))):
            head = [
                "id",
                *(["label"] if labelled else []),
                *(["cluster"] if names else []),
                *(f"e{n}" for n in range(6)),
            ]
            lines = ["\t".join(head)]
            for number in range(len(labels))[part]:
                cells = [
                    f"{name}{number}",
                    *([labels[number]] if labelled else []),
                    *([names[number]] if names else []),
                ]
                lines.append("\t".join([*cells, *(f"{value:.4f}" for value in place[number])]))
            (work / f"{name}.tabular").write_text("\n".join(lines) + "\n")
        given = ["--embeddings", str(work / "r.tabular"), "--methods", methods, "--resamples", "200", *more]
        given += ["--queries", str(work / "q.tabular")] if queries else []
        given += ["--coordinates", str(work / "c"), "--report", str(work / "report"), "--scores", str(work / "s")]
        plm_project.run(given)
        return (work / "report").read_text() + (work / "s").read_text()


MAPS: dict[str, Callable[[], str]] = {
    "apart": lambda: mapped("class", queries=9),
    "shuffled": lambda: mapped("shuffled"),
    "pairs": lambda: mapped("class", groups="pairs"),
    "groups are labels": lambda: mapped("class", groups="labels"),
    "one group": lambda: mapped("class", groups="one", queries=5),
    "unlabelled": lambda: mapped("class", labelled=False),
    "one label": lambda: mapped("same"),
    "no label twice": lambda: mapped("unique"),
    "numbers": lambda: mapped("number", queries=20, more=("--label-kind", "number")),
    "random numbers": lambda: mapped("random numbers", more=("--label-kind", "number")),
    "one neighbour": lambda: mapped("class", more=("--score-neighbours", "1")),
    "one neighbour of numbers": lambda: mapped("number", more=("--score-neighbours", "1", "--label-kind", "number")),
    "far queries": lambda: mapped("class", queries=9, query_shift=60.0, methods="pca,umap"),
    "far queries, PCA": lambda: mapped("class", queries=9, query_shift=60.0),
    "standardised": lambda: mapped("class", more=("--standardise",)),
    "umap": lambda: mapped("class", methods="umap"),
    "both": lambda: mapped("class", methods="tsne,umap"),
    "weak umap": lambda: mapped("class", apart=0.8, methods="umap"),
    "thousands": lambda: mapped("class", rows=2100, more=("--resamples", "100")),
}
MAP_TABLE: dict[str, Case] = {
    "what t-SNE and UMAP see": ("umap", "apart"),
    "farther from every reference than 95 % of references from their nearest": ("apart", "shuffled"),
    "Distances between far clusters, sizes of clusters and empty space mean nothing": ("umap", "apart"),
    "members of a group do not count as neighbours": ("pairs", "apart"),
    "No groups of relatives are known, so proteins count as independent": ("apart", "pairs"),
    "Whether labels separate cannot be judged:": ("unlabelled", "apart"),
    "nearest neighbours carry its label": ("apart", "one neighbour"),
    "the nearest neighbour carries a": ("one neighbour", "apart"),
    "The labels separate beyond chance in the full embedding space": ("apart", "shuffled"),
    "No sign that the labels separate in the full embedding space": ("shuffled", "apart"),
    "that of its nearest neighbour": ("one neighbour of numbers", "numbers"),
    "the mean of its": ("numbers", "one neighbour of numbers"),
    "the correlation (Spearman) of a": ("numbers", "apart"),
    "The labels vary with the place in the full embedding space beyond chance": ("numbers", "random numbers"),
    "No sign that the labels vary with the place in the full embedding space": ("random numbers", "numbers"),
    "Whether queries lie outside of what the references span cannot be told": ("one group", "apart"),
    "outside of what the references span (farther from every": ("apart", "one group"),
    "such among the references all the same": ("far queries", "far queries, PCA"),
    "of the labelled queries' nearest references carry their label": ("apart", "numbers"),
    "The numbers of the labelled queries correlate with the mean": ("numbers", "apart"),
    "Expected is what random labels give; part is a class or a component": ("apart", None),
    "placed by transform; nothing was fitted to them": ("apart", "shuffled"),
    "dimensions as they are": ("apart", "standardised"),
    "each dimension scaled to standard deviation 1": ("standardised", "apart"),
    "both started from and saw": ("both", "umap"),
    "from the classes in proportion": ("thousands", "apart"),
    ", click on a class in the legend to single it out": ("apart", "numbers"),
    "Point at one for its name, drag and zoom": ("apart", None),
    "Classes look more compact in": ("weak umap", "apart"),
}
SEPARATION_TABLE: dict[str, Case] = {
    "the labelled proteins belong to fewer than three groups": ("one group", "pairs"),
    "no two proteins carry the same label": ("no label twice", "apart"),
    "each label is that of a single group, so that nothing tells labels from": ("groups are labels", "pairs"),
    "labels are the same (": ("one label", "apart"),
    "random sample of": ("thousands", "apart"),
}

# -------------------------------------------------------------------------------------------------------------- drift


def drifted(
    *, new: float = 0.0, rows: int = 60, reference: int = 60, spoil: str = "", group: bool = False, labels: str = "",
) -> str:
    """The report of new embeddings that are moved by ``new`` standard deviations, or spoilt."""
    generator = np.random.default_rng(8)
    values = {"new": generator.normal(size=(rows, 12)) + new, "old": generator.normal(size=(reference, 12))}
    if spoil == "NaN":
        values["new"][0] = np.nan
    elif spoil == "two NaN":
        values["new"][:2] = np.nan
    elif spoil == "zeros":
        values["new"][0] = 0.0
    elif spoil == "copy":
        values["new"][1] = values["new"][0]
    elif spoil == "copies":
        values["new"][1:3] = values["new"][0]
    elif spoil == "constant":
        values["new"][:, 0] = 1.0
    elif spoil == "long":
        values["new"][0] *= 40
    elif spoil == "one component":
        values["new"][:, 0] *= 30
    elif spoil == "same":
        values["new"][:20] = values["old"][:20]
    elif spoil == "half":
        values["new"][: rows // 2] += 12.0
    with TemporaryDirectory() as folder:
        work = Path(folder)
        for name, matrix in values.items():
            head = [
                "id",
                *(["label"] if labels else []),
                *(["cluster"] if group else []),
                *(f"e{n}" for n in range(12)),
            ]
            lines = ["\t".join(head)]
            for number, row in enumerate(matrix):
                label = f"c{number % 2}" if labels != "differ" or name == "old" else "c0" if number else "c1"
                label = f"c{int(number < 1)}" if labels == "uneven" else label
                prefix = "P" if spoil == "names" else name
                cells = [f"{prefix}{number}", *([label] if labels else []), *(["family"] if group else [])]
                lines.append("\t".join([*cells, *(f"{value:.6f}" for value in row)]))
            (work / f"{name}.tabular").write_text("\n".join(lines) + "\n")
        given = ["--embeddings", str(work / "new.tabular"), "--permutations", "199"]
        given += ["--reference", str(work / "old.tabular")] if reference else []
        given += ["--proteins", str(work / "p"), "--report", str(work / "report"), "--checks", str(work / "c")]
        if not reference:
            (work / "old.tabular").unlink()
        plm_compare_embeddings.run(given)
        return (work / "report").read_text()


SPOILT = ("NaN", "two NaN", "copy", "copies", "constant", "long")
DRIFTS: dict[str, Callable[[], str]] = {
    "alike": drifted,
    "moved": lambda: drifted(new=1.5),
    "half moved": lambda: drifted(spoil="half"),
    "alone": lambda: drifted(reference=0),
    "one family": lambda: drifted(group=True),
    "shared": lambda: drifted(spoil="same"),
    "names": lambda: drifted(spoil="names"),
    "one component": lambda: drifted(spoil="one component", reference=0),
    "uneven": lambda: drifted(labels="uneven", reference=0),
    "labelled": lambda: drifted(labels="alike"),
    "labels differ": lambda: drifted(labels="differ"),
    **{name: partial(drifted, spoil=name, reference=0) for name in SPOILT},
}
DRIFT_TABLE: dict[str, Case] = {
    "Whether the new set as a whole drifted cannot be judged": ("one family", "alike"),
    "a linear classifier tells new from reference proteins": ("alike", "alone"),
    "No sign that the new set drifted from the reference": ("alike", "moved"),
    "The new set drifted": ("moved", "alike"),
    "Whether single proteins drifted cannot be told": ("one family", "alike"),
    "the reference's own proteins do": ("alike", "alone"),
    "farther from the reference than": ("alike", "one family"),
    "do not trust what a classifier trained on the reference says of these": ("half moved", "alike"),
    "not shown to be more than when nothing has changed": ("alike", "moved"),
    "The quality is fine:": ("alike", "NaN"),
    "Look at the quality of the": ("NaN", "alike"),
    "holds NaN or infinity and counts": ("NaN", "two NaN"),
    "hold NaN or infinity and count": ("two NaN", "NaN"),
    "for nothing else": ("NaN", "alike"),
    "equals an earlier one": ("copy", "copies"),
    "equal an earlier one": ("copies", "copy"),
    "is of unusual length": ("long", "NaN"),
    "is constant": ("constant", "alike"),
    "of the variance": ("one component", "alone"),
    "the smallest's members": ("uneven", "labelled"),
    "in the reference already or nearly so": ("shared", "alike"),
    "with the very same numbers): what": ("shared", "alike"),
    "in both files with other numbers: other proteins of": ("names", "alike"),
    "New proteins farthest from the reference": ("moved", "one family"),
    "standard deviations a component; the table of proteins has all": ("moved", "one family"),
    "Result: fine, look": ("alike", None),
    "A reference that was picked (one family, resistance genes)": ("alike", "alone"),
    "AUROC is the size of drift, p values are how sure": ("alike", "alone"),
    "The table of components names those that differ": ("moved", "alike"),
    ": drift may be": ("labels differ", "labelled"),
    "another mix of classes": ("labels differ", "labelled"),
    "Tests:": ("alike", "one family"),
    "the reference, relatives left out": ("alike", "alone"),
    "Distance: mean over the": ("alike", "alone"),
}

# --------------------------------------------------------------------------------------------------------- predictions


def predicted(
    *, classes: int = 3, rows: int = 60, known: int = 60, novel: float = 0.0, abstain: str = "never",
    finished: bool = True, labelled: str = "", by_class: bool = False, distances: bool = True,
    reference: bool = True,
) -> str:
    """The report of simulated answers of a model with so many validation rows; a share of the proteins is novel."""
    generator = np.random.default_rng(4)
    names = tuple(f"c{number}" for number in range(classes))
    task = Task("sequence", "class" if classes else "number", names, names[1] if classes == 2 else "")

    def answers(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        own = np.random.default_rng(seed)
        if not classes:
            truth = own.normal(size=count)
            return (truth + own.normal(size=count))[:, None], truth
        truth = own.integers(classes, size=count)
        raw = np.exp(own.normal(size=(count, classes)) + 1.5 * np.eye(classes)[truth])
        return raw / raw.sum(axis=1, keepdims=True), truth

    errors = Errors.of(*answers(known, 1), number=not classes) if known else None
    train, valid = (generator.normal(size=(count, 4)).astype(np.float32) for count in (80, 80))
    content = summary(train, [(np.arange(80), valid)]) if distances else None
    found = Novelty.of(([f"t{n}" for n in range(80)], ["x"] * 80, train), content, 0.05) if reference else None
    rules = make_rules(
        task, lambda given: [names[index] for index in given.argmax(axis=1)], errors=errors, coverage=0.9,
        by_class=by_class, novelty=found, abstain=abstain,  # type: ignore[arg-type]
    )
    values, truth = answers(rows, 2)
    states = generator.normal(size=(rows, 4)).astype(np.float32)
    states[: round(novel * rows)] += 30
    told = [names[one] for one in truth] if classes else [f"{value + 9 * (labelled == 'wrong')}" for value in truth]
    if labelled == "wrong" and classes:
        told = [names[(one + 1) % classes] for one in values.argmax(axis=1)]
    queries: Any = SimpleNamespace(columns={"label": told} if labelled else {})
    account_of = prediction_report.PredictionCounts(rules, rows)
    account_of.add(queries, np.arange(rows), judge(rules, values, states if reference else None))
    made = prediction_report.prediction_report(
        account_of, model="m", finished=finished, about=[], notes=[], outputs=["predictions"]
    )
    return made.text()


PREDICTIONS: dict[str, Callable[[], str]] = {
    "usual": predicted,
    "unfinished": lambda: predicted(finished=False),
    "numbers": lambda: predicted(classes=0),
    "numbers, few validation rows": lambda: predicted(classes=0, known=5),
    "novel": lambda: predicted(novel=0.8),
    "one novel of three": lambda: predicted(rows=3, novel=0.34),
    "abstain if unsure": lambda: predicted(abstain="unsure"),
    "abstain if either": lambda: predicted(abstain="either"),
    "abstain if novel": lambda: predicted(abstain="novel"),
    "numbers abstain": lambda: predicted(classes=0, abstain="novel"),
    "many classes": lambda: predicted(classes=40, known=400, rows=200),
    "no validation rows": lambda: predicted(known=0),
    "few validation rows": lambda: predicted(known=5),
    "by class": lambda: predicted(by_class=True, known=300),
    "labelled": lambda: predicted(labelled="right", known=300, rows=200),
    "wrong": lambda: predicted(labelled="wrong", known=300, rows=200),
    "no training proteins": lambda: predicted(reference=False),
    "no validation distances": lambda: predicted(distances=False),
}
PREDICTION_TABLE: dict[str, Case] = {
    "The bundle's training was cut short (unfinished)": ("unfinished", "usual"),
    "predicted: median": ("numbers", "usual"),
    "unlike the training proteins (novel)": ("usual", "no training proteins"),
    "These are other proteins than the model learned from": ("novel", "one novel of three"),
    "proteins whose set is not a single class": ("abstain if unsure", "usual"),
    "proteins that are novel or whose set is not a single class": ("abstain if either", "abstain if unsure"),
    "No call is made for": ("abstain if novel", "usual"),
    "The column best tells what would have been called": ("abstain if novel", "numbers abstain"),
    "rejected; the status table names each": ("usual", None),
    "Novel among all that would be called so": ("usual", "no training proteins"),
    "Not shown here": ("many classes", "usual"),
    "The bundle has no scores of validation rows": ("no validation rows", "usual"),
    "**if these are like the validation rows, as if drawn": ("usual", "no validation rows"),
    "the number plus and minus": ("numbers", "numbers, few validation rows"),
    ", from the errors on": ("numbers", "usual"),
    "A coverage of": ("numbers, few validation rows", "numbers"),
    "These are fewer than promised: the records are not like": ("wrong", "labelled"),
    "records whose true label the input tells": ("labelled", "usual"),
    "Sets of a single class:": ("usual", "numbers"),
    "Too few validation rows for a coverage of": ("few validation rows", "usual"),
    "of these with their class in the set": ("usual", "numbers"),
    "The coverage is an average over all validation rows": ("usual", "by class"),
    "The bundle has no training proteins to compare with": ("no training proteins", "usual"),
    "is novel if its mean distance to the": ("usual", "no training proteins"),
    "The bundle holds no distances of validation proteins": ("no validation distances", "usual"),
    "are novel:": ("usual", "no training proteins"),
}

# ---------------------------------------------------------------------------------------------------------- classifiers


def classified(
    *, kind: str = "binary", rows: int = 60, groups: int = 60, skills: tuple[float, float, float] = (1.0, 1.0, 0.0),
    split: str = "test", by_user: bool = False, why_not: str = "", known: int = 60, searched: str = "",
    network: bool = True, parts: tuple[float, float] = (0.0, 0.0), predictor: dict[str, Any] | None = None,
    thresholds: float | tuple[float, ...] = 0.5,
) -> str:
    """The report of two simulated heads (linear and not) and a baseline that read so much of the truth; with what a
    manifest says of a predictor also of it and of its sequence members (``parts``: what they read)."""
    classes = {"binary": ("no", "yes"), "multiclass": ("a", "b", "c"), "number": ()}[kind]
    truth = np.arange(rows) % len(classes) if classes else np.arange(rows) / rows
    names = ["logistic regression", "feed-forward network" if network else "nearest neighbours", "baseline: majority"]
    models = []
    every = list(zip(names, skills, strict=True))
    if predictor and predictor.get("combination"):
        every = [*zip(("predictor", "sequence members together"), parts, strict=True), *every]
    for number, (name, skill) in enumerate(every):
        noise = np.random.default_rng(number)
        if classes:
            raw = np.exp(noise.normal(size=(rows, len(classes))) + skill * np.eye(len(classes))[truth])
            scores = raw / raw.sum(axis=1, keepdims=True)
            scored = Scored(kind, truth, scores, scores.argmax(axis=1), classes)
        else:
            scored = Scored(kind, truth, skill * truth + noise.normal(size=rows), np.zeros(rows, dtype=np.int64))
        of = {"role": "sequence members", "of": "predictor"} if name.startswith("sequence members") else {}
        models.append(Model(name, scored, baseline=name.startswith("baseline"), **of))
    frame = pd.DataFrame({"id": [f"p{n}" for n in range(rows)], "group": [f"g{n % groups}" for n in range(rows)]})
    evaluation = Evaluation(frame, kind, classes, tuple(models), split, "group")
    metric = {"binary": "auroc", "multiclass": "macro_f1", "number": "spearman"}[kind]
    found = assess(evaluation, metric, best_baseline=names[2], resamples=200)
    coverage = None
    if split == "test":
        own = np.random.default_rng(7)
        values = own.dirichlet(np.ones(len(classes)), known + rows) if classes else own.normal(size=(known + rows, 1))
        errors = Errors.of(values[:known], np.arange(known) % max(len(classes), 1), number=not classes)
        coverage = coverage_on([(errors, values[known:], truth)], 0.9)
    told = report.ClassifierFindings(
        found, names[0], names[0], names[1], by_user, {names[0]: 0.8, names[1]: 0.8}, {},
        dict.fromkeys(names[:2], 0.1) if classes else {}, {}, {"training": 100, "valid": 40, "test": rows},
        "column split",
        "fitted", {"binary": 0.4, "multiclass": thresholds, "number": None}[kind], 1.2, coverage=coverage,
        why_uncalibrated=why_not, predictor=predictor or {},
    )
    made = report.write_up(told, images=[], tables=["metrics"], best_trial=searched)
    table = report.metrics_table(told)
    return made.text() + "\n" + table.to_csv(sep="\t")


def combined(*members: str, way: str = "mean") -> dict[str, Any]:
    """What a manifest says of a predictor with these members."""
    candidate = {"name": "mean", "loss": 0.5, "behind": 0.0, "error": None, "taken": True}
    held = {"members": list(members), "way": way} if members else None
    return {"combination": held, "judged": {"rows": 9}, "candidates": [candidate]}


BOTH = ("language model", "composition")
CLASSIFIERS: dict[str, Callable[[], str]] = {
    "usual": classified,
    "combined": lambda: classified(predictor=combined(*BOTH)),
    "weighted": lambda: classified(predictor=combined(*BOTH, way="stacked")),
    "model adds": lambda: classified(predictor=combined(*BOTH), parts=(5.0, 0.0)),
    "model takes": lambda: classified(predictor=combined(*BOTH), parts=(0.0, 5.0)),
    "combined, few groups": lambda: classified(predictor=combined(*BOTH), groups=5),
    "left out": lambda: classified(predictor=combined("composition", way="single")),
    "head alone": lambda: classified(predictor=combined()),
    "no sequences": lambda: classified(predictor={"why_not": "Nothing was combined, since there are no sequences"}),
    "chosen by hand": lambda: classified(by_user=True),
    "without test rows": lambda: classified(split="validation"),
    "few groups": lambda: classified(groups=5),
    "linear worse": lambda: classified(skills=(0.0, 5.0, 0.0)),
    "linear better": lambda: classified(skills=(5.0, 0.0, 0.0)),
    "no skill": lambda: classified(skills=(0.0, 0.0, 0.0)),
    "worse than nothing": lambda: classified(skills=(0.0, 0.0, 5.0)),
    "uncalibrated": lambda: classified(why_not="the 7 validation rows hold one class only"),
    "uncalibrated, three classes": lambda: classified(kind="multiclass", why_not="there are only 2"),
    "numbers": lambda: classified(kind="number"),
    "three classes": lambda: classified(kind="multiclass"),
    "rare classes": lambda: classified(kind="multiclass", thresholds=(0.2, 0.5, 0.8)),
    "equal thresholds": lambda: classified(kind="multiclass", thresholds=(0.3, 0.3, 0.3)),
    "few validation rows": lambda: classified(kind="number", known=4),
    "search": lambda: classified(searched="width 4"),
    "chosen by hand, numbers": lambda: classified(kind="number", by_user=True, network=False),
}
CLASSIFIER_TABLE: dict[str, Case] = {
    "Of the head, sequence members and both together": ("head alone", "combined"),
    "Nothing was combined, since there are no sequences": ("no sequences", "combined"),
    "The predictor:": ("combined", "usual"),
    "as a plain mean of calibrated answers": ("combined", "weighted"),
    "with fitted weights": ("weighted", "combined"),
    "on embeddings, chosen on the validation rows": ("combined", "left out"),
    "Training and validation rows left the language model out": ("left out", "combined"),
    "The language model adds to what the sequence members say, beyond chance": ("model adds", "model takes"),
    "The language model takes from what the sequence members say, beyond chance": ("model takes", "model adds"),
    "What the language model adds to the sequence members cannot be told": ("combined, few groups", "combined"),
    "It is not shown that the language model adds anything": ("combined", "model adds"),
    "The predictor: what was chosen among": ("combined", "usual"),
    "Mean loss of each candidate on rows that it was not fitted on": ("combined", "usual"),
    "The language model is the chosen head; it is left out where it lowers": ("combined", "usual"),
    "Temperature of the head": ("combined", "usual"),
    "with it and without it": ("combined", "left out"),
    "chosen by the user": ("chosen by hand", "usual"),
    "chosen on the validation rows": ("usual", "chosen by hand"),
    "There are no test rows: the validation rows, which made choices": ("without test rows", "usual"),
    "(not shown to be better)": ("no skill", "linear better"),
    "Against the best trivial baseline": ("usual", None),
    "Whether the linear head is enough cannot be told": ("few groups", "usual"),
    "The linear head is not enough": ("linear worse", "usual"),
    "The linear head is enough, and better": ("linear better", "usual"),
    "The linear head is enough as far as these rows show": ("no skill", "linear worse"),
    "before the temperature of the validation rows": ("usual", "uncalibrated"),
    "sets or intervals from validation rows; mean size": ("usual", "without test rows"),
    "No intervals:": ("few groups", "usual"),
    "The head that was saved": ("usual", None),
    "Best settings found for the network": ("search", "usual"),
    "and the threshold is 0.5": ("uncalibrated", "uncalibrated, three classes"),
    "Probabilities are not calibrated": ("uncalibrated", "usual"),
    ": expected calibration error": ("usual", "uncalibrated"),
    "is called from a probability of": ("usual", "three classes"),
    "The class called is the likeliest": ("three classes", "usual"),
    "The class called is not always the likeliest": ("rare classes", "equal thresholds"),
    "from 0.2 (a) to 0.8 (c), chosen on rows that were not learned from": ("rare classes", "three classes"),
    "Too few validation rows for": ("few validation rows", "usual"),
    "(limits: validation rows) hold the truth": ("usual", "few validation rows"),
    "Chosen on the validation rows:": ("usual", "chosen by hand, numbers"),
    "The rows that judge were answered once": ("usual", "without test rows"),
    "cross-validation within groups on the training rows": ("usual", None),
    "Intervals: percentile bootstrap": ("usual", "few groups"),
}

# ----------------------------------------------------------------------------------------------------------- small ones


def compressed(
    method: str = "int8", *, loss: float = 0.001, ends: tuple[float, float] = (-0.01, 0.02), small: int = 300,
    onnx: bool = False, refused: str = "", tuned: int = 0, calls: float = 0.0,
) -> str:
    one = compare(("a", "b"), "auroc", (0.9 - loss, 0.9), None)
    cost = CompressionCost(one, loss, *ends, 0.01, calls)
    forms = [
        MeasuredForm("original", 1000, 2000, 100, 100, (1.0, 2.0)),
        MeasuredForm("compressed", small, 900, 100, 50, (1.0, 2.0)),
    ]
    costs = {"compressed": cost}
    if onnx:
        forms.append(MeasuredForm("onnx", 1500, 1500, 100, 100, (1.0, 2.0)))
        costs["onnx"] = cost
    original: Any = SimpleNamespace(reference=(["r"] * 7, [], None))
    found = compression_report.CompressionFindings(
        method, original, forms, costs, "auroc", 0.01, refused, 0.5, tuned, 40, "a processor", 1, []
    )
    return compression_report.compression_report(found, table=True).text()


NONE = (math.nan, math.nan)
COMPRESSIONS: dict[str, Callable[[], str]] = {
    "int8": compressed,
    "sure": lambda: compressed(ends=(-0.001, 0.004), calls=math.nan),
    "few groups": lambda: compressed(ends=NONE),
    "larger": lambda: compressed(small=2000),
    "pruned": lambda: compressed("prune", tuned=1),
    "both": lambda: compressed("both"),
    "onnx": lambda: compressed(onnx=True),
    "no change": lambda: compressed(loss=0.0, calls=0.2),
}
COMPRESSION_TABLE: dict[str, Case] = {
    "runed, and weights as int8": ("both", "int8"),
    "(95 % interval of the loss": ("int8", "few groups"),
    ": the head takes": ("int8", None),
    "times smaller": ("int8", "larger"),
    "times larger": ("larger", "int8"),
    "loses nothing": ("no change", "int8"),
    "The interval reaches beyond what was allowed": ("int8", "sure"),
    "There are too few groups for an interval of the loss": ("few groups", "int8"),
    "% of the rows are called otherwise than before": ("int8", "sure"),
    "answers as the bundle to within 0.00001": ("onnx", "int8"),
    "Times are medians of repeated batches": ("int8", None),
    "Intervals are paired bootstrap intervals over groups": ("int8", "few groups"),
    "int8 weights are multiplied out on loading:": ("int8", "pruned"),
    "the bundle is smaller, not faster": ("int8", "larger"),
    "the bundle answers no faster": ("larger", "int8"),
    "of each matrix's weights, the smallest, were set to zero": ("pruned", "int8"),
}


def refused(labels: str, binary: str = "") -> str:
    try:
        few_rows.refuse(list(labels), "the training part", "t", binary=list(binary))
    except UserError as error:
        return str(error)
    return few_rows.warning({"train": len(labels), "valid": 30}) + few_rows.why_uncalibrated(np.array(list(labels)))


FEW: dict[str, Callable[[], str]] = {
    "four": lambda: refused("0101"),
    "twelve": lambda: refused("01" * 6, "01"),
    "one of a class": lambda: refused("1" + "0" * 11, "01"),
    "many": lambda: refused("01" * 40, "01"),
    "one class": lambda: refused("0" * 60),
}
FEW_TABLE: dict[str, Case] = {
    "FEW ROWS: trained on": ("twelve", "many"),
    "validation rows hold one class only": ("one class", "many"),
    "Bring more labelled records, or give the training part": ("four", "many"),
}


def chosen(
    *, compared: bool = False, epochs: int = 5, method: str = "temperature", threshold: bool = True, why: str = "",
    positive: str = "yes", test: int = 9, folds: int = 1,
) -> str:
    content: dict[str, Any] = {
        "calibration": {"method": method, "threshold_chosen": threshold, "why_not": why},
        "task": {"target": "class"}, "compared": [{"method": "lora"}, {"method": "head"}] if compared else [],
        "settings": {"training": {"epochs": epochs}}, "positive": positive,
        "rows": {"train": 60, "valid": 20, "test": test},
    }
    parts = [release.validation_chose(content), release._among(content), traces._judge_by(content)]
    return "\n".join([*parts, traces._rows_told(content["rows"], folds)])


def headed(members: list[str]) -> str:
    """The headline of a fine-tuning whose bundle answers with these members."""
    return traces.headline({
        "selection_metric": "auroc", "metrics": {"auroc": 0.8}, "rows": {"train": 60, "valid": 20, "test": 9},
        "base": {"id": "starter"}, "method": "lora", "predictor": {"combination": {"members": members}},
    })


CHOICES: dict[str, Callable[[], str]] = {
    "combined": lambda: headed(["language model", "one-hot"]),
    "left out": lambda: headed(["one-hot"]),
    "all": lambda: chosen(compared=True),
    "nothing": lambda: chosen(epochs=1, method="none", threshold=False, positive=""),
    "uncalibrated": lambda: chosen(method="none", threshold=False, why="there are only 2 rows"),
    "uncalibrated, three classes": lambda: chosen(method="none", threshold=False, why="there are only 2", positive=""),
    "three classes": lambda: chosen(positive=""),
    "a fold": lambda: chosen(why="fold 2: there are only 2 rows", folds=3),
    "no test rows": lambda: chosen(test=0),
}
RELEASE_TABLE: dict[str, Case] = {
    "The validation rows chose nothing": ("nothing", "all"),
    ", so that scores on them are optimistic": ("all", "nothing"),
    "the method, the epoch, the temperature and the threshold": ("all", "uncalibrated"),
    "the epoch, the temperature and the thresholds": ("three classes", "no test rows"),
    "and the threshold is 0.5": ("uncalibrated", "uncalibrated, three classes"),
    "Probabilities are not calibrated": ("uncalibrated", "a fold"),
    "Not calibrated: ": ("a fold", "uncalibrated"),
    "the best on validation rows)": ("all", "nothing"),
}
TRACES_TABLE: dict[str, Case] = {
    "; sequence members answer in its place": ("left out", "combined"),
    "There are no test rows, so that nothing here tells": ("no test rows", "all"),
    "Judge the model by its test rows": ("all", "no test rows"),
    "folds, so that a row counts in each part)": ("a fold", "all"),
}


def ranged(suggestion: float, diverged: bool) -> str:
    rates = np.geomspace(1e-6, 1, 30)
    found = RangeTest(rates, rates, rates, suggestion, 1e-3, diverged)
    return distillation_report.range_report(found, {}, figure=False, history=False).text()


RANGES: dict[str, Callable[[], str]] = {
    "falls": lambda: ranged(1e-4, True),
    "never falls": lambda: ranged(math.nan, True),
    "does not run away": lambda: ranged(1e-4, False),
}
DISTILLATION_TABLE: dict[str, Case] = {
    "Suggested highest learning rate": ("falls", "never falls"),
    "No rate lowered the loss": ("never falls", "falls"),
    "did not run away up to the highest rate": ("does not run away", "falls"),
    "The learning rate rose from step to step and no model was kept": ("falls", None),
}

# -------------------------------------------------------------------------------------------------- models side by side


def compared(
    *, probe: float = 0.9, weak: float = 0.0, costs: bool = True, parameters: tuple[int, int] = (800, 100),
    lines: bool = True, draws: bool = True, agreement: bool = True, similar: bool = True, models: int = 2,
    probes: int = 1,
) -> str:
    """The report of a teacher and a student whose probe scores are 0.9 and ``probe``, ``weak`` below for both."""
    names = ["teacher", "student"][:models]

    def resampled(value: float, seed: int) -> Resampled:
        around = np.random.default_rng(seed).normal(value, 0.02, 200)
        return Resampled({"auroc": value, "mcc": value}, {"auroc": around, "mcc": around} if draws else {})

    scores = {
        name: resampled(value - weak, n) for n, (name, value) in enumerate(zip(names, (0.9, probe), strict=False))
    }
    scores["one-hot"] = resampled(0.6, 9)
    made = [
        ProbeResult(f"probe {n}", "sequence", "binary", 2, "auroc", "by group", (), 90, 40, 40, scores,
                    dict.fromkeys(scores, ""), ["one-hot"])
        for n in range(probes)
    ]
    ends = (3.0, 5.0) if draws else (math.nan, math.nan)
    told = [
        MaskedLine(name, False, "all", "masked_perplexity", 4.0 + n, *ends, 9, 99, 20) for n, name in enumerate(names)
    ]
    agreed = [MaskedLine(name, False, "all", "top1_agreement", 0.8, *ends, 9, 99, 20) for name in names[1:]]
    held = HeldOut(["MK"], ["p"], ["all"], ["c"], "column cluster", [], False)
    found = model_comparison_report.ModelFindings(
        names, dict(zip(names, parameters, strict=False)), held if lines else None, scores=told if lines else [],
        agreement=agreed if agreement else [], probes=made,
        similarities=[("student", "protein", Similarity(0.9, 0.8, 1.0, 9, 20))] if similar and models > 1 else [],
        costs=[ModelCost(name, 100, 100, (9.0, 10.0), 9.0, 1.0, 0.0, 1.0) for name in names] if costs else [],
    )
    return model_comparison_report.report(found, ["scores", "agreement", "cost", "probes"]).text()


MODELS: dict[str, Callable[[], str]] = {
    "usual": compared,
    "two probes": lambda: compared(probes=2),
    "at chance": lambda: compared(probe=0.5, weak=0.39),
    "no costs": lambda: compared(costs=False),
    "equal size": lambda: compared(parameters=(100, 100)),
    "larger": lambda: compared(parameters=(100, 800)),
    "probes alone": lambda: compared(lines=False, agreement=False, similar=False),
    "few clusters": lambda: compared(draws=False),
    "no similarity": lambda: compared(similar=False),
    "similarity alone": lambda: compared(agreement=False),
    "one model": lambda: compared(models=1, agreement=False),
    "no probes": lambda: compared(probes=0),
}
MODEL_TABLE: dict[str, Case] = {
    "score in the linear probe": ("usual", "two probes"),
    "linear probes (mean ratio)": ("two probes", "usual"),
    "cannot be judged by the linear probes, in which the reference": ("at chance", "usual"),
    "times the speed (": ("usual", "no costs"),
    "has as many parameters": ("equal size", "usual"),
    "times the parameters": ("larger", "usual"),
    "times smaller": ("usual", "larger"),
    "has masked perplexity": ("usual", "probes alone"),
    "there is no second model to compare with": ("one model", "usual"),
    "Perplexity is over each model's whole vocabulary": ("usual", "probes alone"),
    "Intervals: 95 %, bootstrap over clusters": ("usual", "few clusters"),
    "By domain; all = all proteins": ("usual", "probes alone"),
    "CKA: linear, debiased, of unmasked proteins": ("usual", "no similarity"),
    "Agreement and divergence are taken on the same masked residues": ("usual", "similarity alone"),
    "Kept: the model's score over the reference's": ("usual", "no probes"),
    "Processes of their own, in turns on the same proteins": ("usual", "no costs"),
    "level, ": ("usual", "no probes"),
    "**not shown to be better than the baseline": ("at chance", "usual"),
}

# --------------------------------------------------------------------------------------------------- sites, evaluations

SITE = site_cases.GOOD
ON_REQUEST = site_cases.point([0.1] * 47 + [0.8], [0.9] * 44, source="chosen for a false-positive rate of at most 5 %")
STATED = site_cases.point([0.1] * 9, [0.9] * 9, prevalence=0.1)
OTHER_KIND = site_cases.point([0.1] * 20 + [0.9] * 80, [0.9] * 50)


def sites(found: Any, at: Any, **changes: Any) -> str:
    line = site_report.first_line(found, at, "Y", bool(changes.get("finished", True)))
    return "\n".join([line, site_cases.report(found, at, **changes)])


SITES: dict[str, Callable[[], str]] = {
    "usual": lambda: sites(site_cases.scan(60, 124), SITE),
    "few calls": lambda: sites(site_cases.scan(24, 124), SITE),
    "no call": lambda: sites(site_cases.scan(0, 124), SITE),
    "no scores": lambda: sites(site_cases.scan(3, 9), site_cases.point([], [])),
    "other kind": lambda: sites(site_cases.scan(1, 5000), OTHER_KIND),
    "on request": lambda: sites(site_cases.scan(24, 124), ON_REQUEST),
    "stated": lambda: sites(site_cases.scan(24, 124), STATED),
    "no candidate": lambda: sites(SiteCounts(Task("site", "class", ("0", "1"))), SITE),
    "three classes": lambda: sites(site_cases.scan(9, 90, ("a", "b", "c")), None, labels=["a", "b", "c"]),
    "rare classes": lambda: sites(
        site_cases.scan(9, 90, ("a", "b", "c")), None, labels=["a", "b", "c"], class_thresholds=[0.1, 0.2, 0.7]),
    "numbers": lambda: sites(site_cases.scan(9, 90, ()), None),
    "unfinished": lambda: sites(site_cases.scan(60, 124), SITE, finished=False),
    "ensemble": lambda: sites(site_cases.scan(60, 124), SITE, members=[1, 2]),
    "whole protein": lambda: sites(site_cases.scan(60, 124), SITE, window=0),
    "status": lambda: sites(site_cases.scan(60, 124), SITE, outputs=["status"]),
    "predictor": lambda: sites(
        site_cases.scan(60, 124), SITE, predictor={"combination": {"members": ["language model", "one-hot"]}}),
    "members alone": lambda: sites(
        site_cases.scan(60, 124), SITE, predictor={"combination": {"members": ["one-hot"]}}),
}
SITE_TABLE: dict[str, Case] = {
    "training was cut short (unfinished).": ("unfinished", "usual"),
    "No candidate residue: none of": ("no candidate", "usual"),
    "that can be used holds": ("no candidate", "usual"),
    "Numbers are predicted for": ("numbers", "usual"),
    "The classes called of": ("three classes", "usual"),
    "the class whose probability is the largest multiple of its threshold": ("rare classes", "three classes"),
    "no call, so none is false": ("no call", "usual"),
    "how many of the calls are true cannot be told": ("other kind", "usual"),
    "by their own probabilities": ("no scores", "usual"),
    "of these calls are false and": ("usual", "no call"),
    "calls do not fit the": ("few calls", "usual"),
    "way; the status table names each": ("status", "usual"),
    "The bundle's predictor gave the answers, made of": ("predictor", "usual"),
    "the language model has no weight in it and was not asked": ("members alone", "predictor"),
    "classified,": ("usual", None),
    "without a candidate,": ("usual", None),
    "Each candidate was seen in": ("usual", None),
    "residues around it, cut at the protein's ends": ("usual", "whole protein"),
    "trained networks as an ensemble": ("ensemble", "usual"),
    "Probabilities are adjusted from the training share": ("stated", "usual"),
    "Probabilities hold for candidates of which as many": ("usual", "stated"),
    "The bundle holds no scores of validation rows": ("no scores", "usual"),
    "The validation rows also chose the threshold": ("usual", "on request"),
    "At this threshold": ("usual", "no scores"),
    "If so many candidates are real": ("usual", "no call"),
    "suggest that": ("usual", "no call"),
    "does not fit the calls": ("few calls", "no call"),
    "How far to believe the calls": ("usual", "no candidate"),
}


def mapped_effects(**changes: Any) -> str:
    """What is said of one map that the figure shows."""
    return mutagenesis_figure.mutagenesis_reading([mutation_cases.some_map(9, **changes)], 1, "call")


def overturned() -> str:
    made = mutation_cases.some_map(9)
    made.calls[0, 0 if made.calls[0, 0] else 1] = "other"
    return mutagenesis_figure.mutagenesis_reading([made], 1, "call")


MUTATIONS: dict[str, Callable[[], str]] = {
    "usual": mapped_effects,
    "numbers": lambda: mapped_effects(judged=""),
    "small": lambda: mapped_effects(change=0.1),
    "small numbers": lambda: mapped_effects(judged="", change=0.1),
    "a site": lambda: mapped_effects(site=4),
    "overturned": overturned,
    "more than a page": lambda: mutagenesis_figure.mutagenesis_reading([mutation_cases.some_map(9)] * 20, 12, "call"),
}
MUTATION_TABLE: dict[str, Case] = {
    "Each square is the model's answer with one residue replaced: orange where": ("usual", None),
    "log-odds of the class in the title": ("usual", "numbers"),
    "(by 2.3 for ten times smaller odds)": ("usual", "numbers"),
    "the stronger the colour of a whole column, the more the answer rests on that place": ("usual", None),
    "A dot marks substitutions with which another class is called": ("overturned", "usual"),
    "The frame marks the site itself": ("a site", "usual"),
    "No substitution here changes the log-odds by more than": ("small", "small numbers"),
    "these answers rest on no single residue": ("small", "usual"),
    "The figure shows": ("more than a page", "usual"),
    "; the table has all.": ("more than a page", "usual"),
    "This is what the model has learned, not a measurement": ("usual", None),
}
LOGOS: dict[str, Callable[[], str]] = {
    "usual": lambda: logo.logo_reading(logo_cases.counted(3, ("AYCYDY", "101"))),
    "all called": lambda: logo.logo_reading(logo_cases.counted(3, ("AYCYDY", "111"))),
    "none": lambda: logo.logo_reading(logo.LogoCounts(logo_cases.BINARY, 3)),
    "numbers": lambda: logo.logo_reading(logo_cases.by_class((), "")),
    "three classes": lambda: logo.logo_reading(logo_cases.by_class(("a", "b", "c"), "abb")),
    "one of three": lambda: logo.logo_reading(logo_cases.by_class(("a", "b", "c"), "bbb")),
}
LOGO_TABLE: dict[str, Case] = {
    "No logo: the bundle predicts numbers, so no site is called": ("numbers", "usual"),
    "No logo: there is no candidate residue in these proteins": ("none", "usual"),
    "(of 3 candidates), so there is nothing to compare": ("all called", "one of three"),
    "No logo: every candidate is called": ("one of three", "three classes"),
    "), so there is nothing to compare": ("all called", "usual"),
    "The height of a stack of letters is how much, in bits": ("usual", "all called"),
    "of this input (the background, given below the picture)": ("three classes", "none"),
    "The lowest panel compares called with other candidates": ("usual", "three classes"),
    "It shows what sites called alike have in common": ("usual", "all called"),
}


def evaluation(result: Any, **options: Any) -> str:
    return "\n".join([result.verdict(), result.leakage(), evaluation_cases.report(result, **options)])


def assessed(*tables: Any, **settings: Any) -> Any:
    return evaluation_cases.found(*tables, **settings)


GOOD_ONE, TWIN, GUESSING = evaluation_cases.GOOD, evaluation_cases.TWIN, evaluation_cases.GUESS
FEW_GROUPS = (evaluation_cases.table(40, groups=5), evaluation_cases.table(40, groups=5, model="b"))
FULL = {"with_comparison": True, "with_metrics": True}


def calibrated() -> Any:
    made = evaluation_cases.table(400)
    positive = np.random.default_rng(0).uniform(size=400)
    drawn = (np.random.default_rng(1).uniform(size=400) < positive).astype(int)
    return assessed(made.assign(label=drawn.astype(str), p_1=positive.astype(str), p_0=(1 - positive).astype(str)))


BETTER = evaluation_cases.table(80, skill=4.0, seed=11)
WORSE = evaluation_cases.table(80, skill=0.5, seed=12)


def by_likeness() -> str:
    """A predictor of parts, judged by strata of identity to training."""
    table = evaluation_cases.of_parts(BETTER, GUESSING, WORSE)
    told = assess(
        predictions.gather([("t", table)], []), "auroc", identity=np.repeat([0.2, 0.4], 40), resamples=200
    )
    return evaluation(told)


EVALUATIONS: dict[str, Callable[[], str]] = {
    "adds": lambda: evaluation(assessed(evaluation_cases.of_parts(BETTER, GUESSING, WORSE)), figures=["overview"]),
    "takes": lambda: evaluation(assessed(evaluation_cases.of_parts(GUESSING, BETTER, WORSE))),
    "adds nothing": lambda: evaluation(assessed(evaluation_cases.of_parts(BETTER, BETTER, WORSE))),
    "adds, few groups": lambda: evaluation(assessed(evaluation_cases.of_parts(
        *(evaluation_cases.table(40, groups=5, seed=seed) for seed in (1, 2, 3))
    ))),
    "left out": lambda: evaluation(assessed(evaluation_cases.of_parts(BETTER, BETTER, WORSE, counts="no"))),
    "model alone": lambda: evaluation(assessed(evaluation_cases.of_parts(BETTER, WORSE))),
    "by likeness": by_likeness,
    "usual": lambda: evaluation(assessed(GOOD_ONE, GUESSING, baseline="guess"), **FULL, training_rows=200),
    "twin": lambda: evaluation(assessed(GOOD_ONE, TWIN, baseline="twin"), **FULL),
    "alone": lambda: evaluation(assessed(GOOD_ONE)),
    "two alone": lambda: evaluation(assessed(GOOD_ONE, TWIN)),
    "two models": lambda: evaluation(assessed(GOOD_ONE, TWIN, GUESSING, baseline="guess"), **FULL),
    "few groups": lambda: evaluation(assessed(*FEW_GROUPS, baseline="b"), with_comparison=True),
    "few rows": lambda: evaluation(assessed(evaluation_cases.table(20)), training_rows=4),
    "no leak": lambda: evaluation(assessed(GOOD_ONE, shared=evaluation_cases.sharing(80, 0))),
    "leak": lambda: evaluation(
        assessed(GOOD_ONE, shared=evaluation_cases.sharing(80, 50, protein=48, near=9, relative=8))
    ),
    "group leak": lambda: evaluation(assessed(GOOD_ONE, shared=evaluation_cases.sharing(80, 4))),
    "all leak": lambda: evaluation(assessed(GOOD_ONE, shared=evaluation_cases.sharing(80, 80, protein=80))),
    "unfinished": lambda: evaluation(assessed(GOOD_ONE.assign(finished="false"))),
    "seeds": lambda: evaluation(assessed(pd.concat([GOOD_ONE.assign(seed=name) for name in ("ensemble", "1", "2")]))),
    "many models": lambda: evaluation(assessed(*(GOOD_ONE.assign(model=f"m{number}") for number in range(20)))),
    "calibrated": lambda: evaluation(calibrated(), figures=["calibration"]),
    "bold": lambda: evaluation(
        assessed(GUESSING.assign(p_1=(GUESSING["call"] == "1").map({True: "0.99", False: "0.01"}),
                                 p_0=(GUESSING["call"] == "1").map({True: "0.01", False: "0.99"}))),
        figures=["calibration"],
    ),
    "baselines": lambda: evaluation(
        assessed(GOOD_ONE, GUESSING, baseline="guess"), baselines=[("guess", "how it works", "C = 1", 0.7)]
    ),
}
EVALUATION_TABLE: dict[str, Case] = {
    "was cut short by its time limit": ("unfinished", "usual"),
    "a finished model may score otherwise": ("unfinished", "usual"),
    "Every score stands in the last table.": ("usual", "alone"),
    "of each pair on the same rows": ("usual", "alone"),
    "under the same resamples of groups. An interval": ("usual", "few groups"),
    "there are no intervals, so no difference": ("few groups", "usual"),
    "are too few for intervals": ("few groups", "usual"),
    "In brackets the 95 % interval over groups.": ("usual", "few groups"),
    "A model with several seeds answers": ("seeds", "usual"),
    "models are shown.": ("many models", "usual"),
    "Which model is how good, and where": ("adds", "usual"),
    "The same for single trainings": ("seeds", "usual"),
    "so other rows may give quite other scores": ("few rows", "usual"),
    "there to learn from": ("few rows", "usual"),
    "percentage points lie between probability": ("calibrated", "usual"),
    "where chance alone would give up to": ("bold", "calibrated"),
    "not shown to be off": ("calibrated", "bold"),
    "A model that only recognises relatives": ("leak", "usual"),
    "Rows of a training protein leak even": ("leak", "group leak"),
    "in cross-validation on the training rows": ("baselines", "usual"),
    "Nobody looked for leakage, because": ("alone", "no leak"),
    "percentile bootstrap,": ("usual", "few groups"),
    "The baseline to beat is the best by": ("usual", "alone"),
    "By likeness to the training rows": ("leak", "usual"),
}
ASSESSMENT_TABLE: dict[str, Case] = {
    "It is the language model alone; the sequence members stand beside": ("model alone", "adds"),
    "Of its members it counts on": ("left out", "adds"),
    "Training and validation rows left the language model out": ("left out", "adds"),
    "What the language model adds to the sequence members cannot be told": ("adds, few groups", "adds"),
    "The language model adds to what the sequence members say, beyond chance": ("adds", "adds nothing"),
    "The language model takes from what the sequence members say": ("takes", "adds"),
    "It is not shown that the language model adds to what": ("adds nothing", "adds"),
    "expect no more of proteins that are unlike training": ("by likeness", "adds"),
    "No leakage found: none of the": ("no leak", "leak"),
    "identity or more) with": ("no leak", "leak"),
    "of the same protein as": ("leak", "group leak"),
    "residues of a site of these": ("leak", "group leak"),
    "with a relative among these of": ("leak", "group leak"),
    "LEAKAGE: 50 of the": ("leak", "no leak"),
    "of a shared group": ("group leak", "leak"),
    "Scores on such rows are too good": ("leak", "no leak"),
    "no row is free of it": ("all leak", "leak"),
    "that share nothing with them the": ("leak", "all leak"),
    "models are compared below": ("two alone", "alone"),
    "not compared with baselines, because": ("alone", "usual"),
    "beat the best baseline beyond chance": ("two models", "usual"),
    "are too few for an interval": ("few groups", "usual"),
    "beats the best baseline (": ("usual", "twin"),
    "is not shown to be better than": ("twin", "usual"),
    "cannot be told: ": ("few groups", "usual"),
    "95 % interval": ("usual", "few groups"),
}

# ---------------------------------------------------------------------------------------------------------- predictors


def predictor(
    members: tuple[str, ...] = ("language model", "one-hot"), *, added: tuple[float | None, ...] = (0.1, 0.05, 0.2),
    way: str = "mean", likeness: bool = True, lengths: tuple[int, int] | None = None, length: int = 0, why: str = "",
) -> str:
    """The first lines on a predictor; no members: the language model alone."""
    about: dict[str, Any] = {"why_not": why}
    if not why:
        score = [0.8, 0.7, 0.9]
        about |= {
            "combination": {"members": list(members), "way": way} if members else None, "length": length,
            "judged": {
                "metric": "auroc", "rows": 40, "groups": 30, "added": list(added),
                "scores": dict.fromkeys(("predictor", "language model", "sequence members"), score),
            },
            **({"likeness": [0.2, 0.3, 0.6]} if likeness else {}), **({"lengths": list(lengths)} if lengths else {}),
        }
    return "\n".join(predictor_lines.first_lines({"predictor": about}))


PREDICTORS: dict[str, Callable[[], str]] = {
    "usual": predictor,
    "stacked": lambda: predictor(way="stacked"),
    "one member": lambda: predictor(("one-hot",)),
    "left out": lambda: predictor(("one-hot", "composition")),
    "model alone": lambda: predictor(()),
    "adds nothing": lambda: predictor(added=(0.01, -0.1, 0.1)),
    "few groups": lambda: predictor(added=(0.1, None, None)),
    "proteins": lambda: predictor(likeness=False, lengths=(50, 900)),
    "one length": lambda: predictor(lengths=(56, 56), length=56),
    "nothing": lambda: predictor(why="Nothing was combined with the language model"),
    "table": lambda: predictor_lines.how_chosen(several=False),
    "table of classes": lambda: predictor_lines.how_chosen(several=True),
}
PREDICTOR_TABLE: dict[str, Case] = {
    "none of which its parts had learned from": ("usual", "nothing"),
    "It is the language model alone, which the validation rows preferred": ("model alone", "usual"),
    "as a plain mean of calibrated answers": ("usual", "stacked"),
    "with weights fitted to these rows": ("stacked", "usual"),
    ", the sequence members without it": ("usual", "left out"),
    "too few groups for an interval of what it adds": ("few groups", "usual"),
    "What the language model adds is beyond chance": ("usual", "adds nothing"),
    "It is not shown that the language model adds anything": ("adds nothing", "usual"),
    "like their most similar training row": ("usual", "proteins"),
    "beyond these it was never judged": ("proteins", "one length"),
    "are compared place by place": ("one length", "proteins"),
    "these rows left it out": ("left out", "usual"),
    "Mean loss of each candidate on rows that it was not fitted on": ("table", "usual"),
    "The loss says little of rare classes": ("table of classes", "table"),
}

# --------------------------------------------------------------------------------------------------- reasons of calls


def reasons(values: list[float], **changes: Any) -> str:
    """What is told of sites with these probabilities of a site, called from 0.5."""
    point = OperatingPoint(0.5)
    both = np.array([[1 - value, value] for value in values])
    return why_cases.written(why_cases.BINARY, both, [0.5, 0.5], point=point, **changes)[1]


REASONS: dict[str, Callable[[], str]] = {
    "usual": lambda: reasons([0.8, 0.9, 0.1]),
    "none": lambda: reasons([0.2]),
    "alone": lambda: reasons([0.8], alone=True),
    "known": lambda: reasons([0.8], likeness=1.0),
    "three classes": lambda: why_cases.written(
        why_cases.THREE, np.array([[0.1, 0.8, 0.1]]), [0.6, 0.3, 0.1], "a")[1],
    "numbers": lambda: why_cases.written(why_cases.NUMBER, np.ones((3, 1)), [1.0])[1],
}
TOLD_TABLE: dict[str, Case] = {
    "The bundle answers with its": ("alone", "usual"),
    "The table above counts what speaks for and against": ("usual", "alone"),
    "the same as a training row in all that is compared": ("known", "usual"),
}
REASON_TABLE: dict[str, Case] = {
    "No site is called, so there is no call": ("none", "usual"),
    "the 3 sites of the highest numbers": ("numbers", "usual"),
    "the commonest class in training": ("three classes", "usual"),
    "the 2 sites called.": ("usual", "three classes"),
}

# ------------------------------------------------------------------------------------------------------------ the tests

SCENARIOS: dict[str, dict[str, Callable[[], str]]] = {
    "jobs/preprocess/report": SPLITS,
    "jobs/project/report": MAPS,
    "scoring/separation": MAPS,
    "jobs/compare_embeddings/report": DRIFTS,
    "jobs/predict/report": PREDICTIONS,
    "jobs/classifier/report": CLASSIFIERS,
    "jobs/compare_models/report": MODELS,
    "jobs/classifier/compression_report": COMPRESSIONS,
    "training/few_rows": FEW,
    "jobs/finetune/finished": CHOICES,
    "jobs/finetune/report": CHOICES,
    "jobs/distill/report": RANGES,
    "jobs/classify_sites/report": SITES,
    "jobs/classify_sites/logo": LOGOS,
    "jobs/classify_sites/call_reasons": REASONS,
    "telling/reasons": REASONS,
    "telling/mutagenesis_figure": MUTATIONS,
    "telling/evaluation_report": EVALUATIONS,
    "scoring/assessment": EVALUATIONS,
    "telling/predictor_lines": PREDICTORS,
    "jobs/variants/report": variant_cases.EFFECTS,
    "jobs/contacts/contact_report": contact_cases.CONTACTS,
    "jobs/variants/shifts": variant_cases.SHIFTS,
    **{f"jobs/convert/{module}": conversions.CONVERSIONS for module in conversions.CONVERSION_TABLES},
    "jobs/install_model/report": installation_cases.INSTALLATIONS,
}
TABLE: dict[str, dict[str, Case]] = {
    "jobs/preprocess/report": SPLIT_TABLE,
    "jobs/project/report": MAP_TABLE,
    "scoring/separation": SEPARATION_TABLE,
    "jobs/compare_embeddings/report": DRIFT_TABLE,
    "jobs/predict/report": PREDICTION_TABLE,
    "jobs/classifier/report": CLASSIFIER_TABLE,
    "jobs/compare_models/report": MODEL_TABLE,
    "jobs/classifier/compression_report": COMPRESSION_TABLE,
    "training/few_rows": FEW_TABLE,
    "jobs/finetune/finished": RELEASE_TABLE,
    "jobs/finetune/report": TRACES_TABLE,
    "jobs/distill/report": DISTILLATION_TABLE,
    "jobs/classify_sites/report": SITE_TABLE,
    "jobs/classify_sites/logo": LOGO_TABLE,
    "jobs/classify_sites/call_reasons": REASON_TABLE,
    "telling/reasons": TOLD_TABLE,
    "telling/mutagenesis_figure": MUTATION_TABLE,
    "telling/evaluation_report": EVALUATION_TABLE,
    "scoring/assessment": ASSESSMENT_TABLE,
    "telling/predictor_lines": PREDICTOR_TABLE,
    "jobs/variants/report": variant_cases.EFFECT_TABLE,
    "jobs/contacts/contact_report": contact_cases.CONTACT_TABLE,
    "jobs/variants/shifts": variant_cases.SHIFT_TABLE,
    "jobs/install_model/report": installation_cases.INSTALLATION_TABLE,
    **{f"jobs/convert/{module}": table for module, table in conversions.CONVERSION_TABLES.items()},
}
LEFT: dict[str, tuple[str, ...]] = {
    "jobs/preprocess/report": ("(%; 0: none found)",),  # of the figure
    "jobs/classify_sites/report": ("Tables longer than this", "Shown beside the training set's own"),
    "jobs/classify_sites/logo": ("No place tells more than so few", "More frequent at called sites (above"),  # drawn
    "telling/mutagenesis_figure": ("in the unit of the labels",),  # drawn
    "telling/evaluation_report": ("scored higher than the baseline to beat", "Do the probabilities mean what"),
    "scoring/assessment": (
        "rows that share nothing with training", "Strata of an evaluation whose rows leak", "no interval could be",
    ),
    "jobs/predict/report": ("How far from the training proteins", "(no class is as likely as true ones"),
    "jobs/project/report": ("the score is undefined", "Bytes of a report"),
    "scoring/separation": (
        "Proteins whose neighbours", "Proteins of scores", "Labels that are all numbers", "of the proteins"
    ),
    "jobs/compare_embeddings/report": (
        "one may be there", "linear classifier hardly sees", "The bundle's sample of its", "near copies and tests by a"
    ),
    "jobs/classifier/report": ("scored higher than the baseline to beat", "Share of the differences explained"),
    "training/few_rows": ("Labelled training rows (", "Training rows of each", "Labelled validation rows",
                          "Rows below which"),
    "jobs/finetune/finished": (
        "Probabilities%s are not calibrated", "Predicts", "Evaluate on test rows", "The adapter loads", "Unfinished:",
    ),  # tests/test_finetune.py has the first
    "jobs/finetune/report": (
        "The predictor: what was chosen among",  # tests/test_predictor.py
        "UNFINISHED", "trainings and one by their mean", "made by the model after it was", "Each way was trained",
        "trains the fewest parameters", "from a probability of", "The test rows were predicted once",
        "told apart from the chosen",
    ),  # tests/test_ways.py and tests/test_finetune.py
    "jobs/distill/report": (
        "Adam, weight decay", "library_name", "Masked perplexity on families", "nfinished: training", "UNFINISHED",
        "Only masked residues count", "The teacher cache holds", "Give the cache to a distillation", "The kernel term",
        "The time limit ended training early", "One row a step", "The term", "Points of each curve",
    ),  # tests/test_distill.py
}
LEFT |= {f"jobs/convert/{module}": pieces for module, pieces in conversions.CONVERSIONS_LEFT.items()}
"""Pieces of sentences, by module, that no data set here makes true and false yet."""


def plainly(text: str) -> str:
    return " ".join(text.replace("\\", "").split())


@cache
def said(module: str, scenario: str) -> str:
    return plainly(SCENARIOS[module][scenario]())


CASES = [(module, key) for module, table in TABLE.items() for key in table]


@pytest.mark.parametrize(("module", "key"), CASES, ids=[f"{module.split('/')[1]}: {key}" for module, key in CASES])
def test_it_is_said_where_it_is_true_and_not_where_it_is_false(module: str, key: str) -> None:
    true, false = TABLE[module][key]
    assert plainly(key) in said(module, true), said(module, true)[:3000]
    if false is not None:
        assert plainly(key) not in said(module, false), false


def sentences(path: Path) -> Iterator[str]:
    """Texts of a module that have six words or more; placeholders are empty. No docstrings, no messages of errors."""
    tree = ast.parse(path.read_text())
    aside: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise):
            aside |= {id(inner) for inner in ast.walk(node)}
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
            for inner in node.body:
                if isinstance(inner, ast.Expr) and isinstance(inner.value, ast.Constant):
                    aside.add(id(inner.value))
        if isinstance(node, ast.JoinedStr):
            aside |= {id(inner) for inner in node.values}
    for node in ast.walk(tree):
        if id(node) in aside:
            continue
        text = ""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
        elif isinstance(node, ast.JoinedStr):
            text = "".join(one.value if isinstance(one, ast.Constant) else "\N{BULLET}" for one in node.values)
        words = [word for word in text.replace("\N{BULLET}", " ").split() if any(letter.isalpha() for letter in word)]
        if len(words) >= 6:
            yield text


@pytest.mark.parametrize("module", sorted(TABLE))
def test_every_sentence_is_in_the_table(module: str) -> None:
    known = [*TABLE[module], *LEFT.get(module, ())]
    path = Path(plm.__file__).parent / f"{module}.py"
    new = [text for text in sentences(path) if not any(key.strip() in text for key in known)]
    assert not new, "\n".join(new)
