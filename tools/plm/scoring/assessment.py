"""All scores of an evaluation: overall, by class, by identity to training; comparisons; the verdict in one sentence."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from plm.data.predictions_table import MODEL_ALONE, TOGETHER
from plm.scoring import intervals
from plm.scoring.comparison import Comparison, compare
from plm.scoring.metrics import ALL, LOWER_IS_BETTER, Floats, Key, score, why_undefined
from plm.scoring.predictions import Evaluation, Model
from plm.wording import metric_name, number

if TYPE_CHECKING:
    import pandas as pd

METRIC_COLUMNS = (
    "model", "split", "stratum", "metric", "class", "value", "low", "high", "n", "groups",
    "seeds", "seed_mean", "seed_sd", "note",
)
COMPARISON_COLUMNS = (
    "first", "second", "metric", "first_value", "second_value", "difference", "low", "high", "p_value", "verdict", "n",
    "groups",
)
OVERALL = "all"
NO_RELATIVE = "no relative in training"


@dataclass(frozen=True)
class ScoreLine:
    """One row of the metrics table; NaN where a value is undefined or has no interval."""

    model: str
    stratum: str
    metric: str
    name: str
    value: float
    low: float
    high: float
    n: int
    groups: int
    seeds: tuple[float, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Leaking:
    """What the evaluated rows share with rows that the model was trained or chosen on.

    Attributes:
        rows: (N,) which rows share a protein, a group or a relative.
        protein: Rows that share a protein.
        near: Rows that lie within ``residues`` of a site of the same protein on the other side.
        relative: Rows with a relative of at least ``limit`` identity.
        residues: Largest distance of two sites in residues that counts as ``near``.
        limit: Least identity that counts as ``relative``, 0-1.
        sides: The rows that were compared with, in words.
    """

    rows: NDArray[np.bool_]
    protein: int
    near: int
    relative: int
    residues: int
    limit: float
    sides: str

    def sentence(self) -> str:
        """How many rows leak, and by what."""
        count, total = int(self.rows.sum()), len(self.rows)
        if not count:
            return (
                f"No leakage found: none of the {total} evaluated rows shares a protein, a group or a relative "
                f"({self.limit:.0%} identity or more) with {self.sides}."
            )
        verb = "leaks" if count == 1 else "leak"
        causes = [
            f"{number} {text}"
            for number, text in (
                (self.protein, f"of the same protein as {self.sides}"),
                (self.near, f"within {self.residues} residues of a site of these in the same protein"),
                (self.relative, f"with a relative among these of {self.limit:.0%} identity or more"),
            )
            if number
        ]
        return f"LEAKAGE: {count} of the {total} evaluated rows {verb}: {', '.join(causes) or 'of a shared group'}."


LEAKING, ALONE = "rows that leak", "rows that share nothing with training"
"""Strata of an evaluation whose rows leak."""


def _members_told(parts: Sequence[Model]) -> str:
    """Which members a predictor counts on."""
    if not any(part.role == MODEL_ALONE for part in parts):
        return "It is the language model alone; the sequence members stand beside for comparison"
    names = ["the language model" if part.role == MODEL_ALONE else part.name.rpartition(": ")[2]
             for part in parts if part.counts and part.role != TOGETHER]
    if len(names) == 1:
        return f"Of its members it counts on {names[0]} alone"
    return f"It combines {', '.join(names[:-1])} and {names[-1]}"


@dataclass
class Assessment:
    """What an evaluation found.

    Attributes:
        evaluation: Evaluated rows and what each model said about them.
        metric: Name of the main metric.
        lines: Every score of every model, with its interval.
        comparisons: Every pair of models that was compared.
        groups: Number of groups among the evaluated rows.
        best_baseline: Name of the baseline that was best in the inner cross-validation; empty without baselines.
        leaking: What the rows share with training; None if no training table was given.
    """

    evaluation: Evaluation
    metric: str
    lines: list[ScoreLine]
    comparisons: list[Comparison]
    groups: int
    best_baseline: str = ""
    leaking: Leaking | None = None
    _index: dict[tuple[str, str, str, str], ScoreLine] = field(default_factory=dict, repr=False)

    def line(self, model: str, metric: str, name: str = ALL, stratum: str = OVERALL) -> ScoreLine:
        """One score."""
        if len(self._index) != len(self.lines):
            self._index = {(line.model, line.stratum, line.metric, line.name): line for line in self.lines}
        return self._index[model, stratum, metric, name]

    def metrics_table(self) -> pd.DataFrame:
        """The metrics output: columns :data:`METRIC_COLUMNS`, all strings; undefined values are empty with a note."""
        import pandas as pd

        rows = [
            [line.model, self.evaluation.splits, line.stratum, line.metric, line.name]
            + [_told(value) for value in (line.value, line.low, line.high)]
            + [str(line.n), str(line.groups), *_seeds_told(line.seeds), line.note]
            for line in self.lines
        ]
        return pd.DataFrame(rows, columns=list(METRIC_COLUMNS))

    def comparison_table(self) -> pd.DataFrame:
        """The comparison output: columns :data:`COMPARISON_COLUMNS`, all strings."""
        import pandas as pd

        n = str(len(self.evaluation.rows))
        rows = [
            [one.first, one.second, one.metric]
            + [_told(value) for value in (one.first_value, one.second_value, one.difference)]
            + [_told(value) for value in (one.low, one.high, one.p_value)]
            + [one.verdict, n, str(self.groups)]
            for one in self.comparisons
        ]
        return pd.DataFrame(rows, columns=list(COMPARISON_COLUMNS))

    def verdict(self) -> str:
        """The first line of the report: does the language model beat the best baseline, beyond chance or not."""
        own = [model.name for model in self.evaluation.models if model.judged]
        name = metric_name(self.metric)
        if not self.best_baseline:
            line = self.line(own[0], self.metric)
            value = f"{name} {number(line.value)}{interval_text(line.low, line.high)}"
            others = f" ({len(own)} models are compared below)" if len(own) > 1 else ""
            return f"{own[0]}: {value}{others}; not compared with baselines, because no training table was given."
        against = [one for one in self.comparisons if one.second == self.best_baseline and one.first in own]
        if len(against) == 1:
            return f"{self._sentence(against[0])}."
        winners = sum(one.verdict == "beats" for one in against)
        told = "; ".join(self._sentence(one) for one in against)
        return f"{winners} of {len(against)} models beat the best baseline beyond chance: {told}."

    def _sentence(self, one: Comparison) -> str:
        baseline = one.second.removeprefix("baseline: ")
        name = metric_name(one.metric)
        scores = f"{name} {number(one.first_value)} against {number(one.second_value)}"
        if one.verdict == "cannot be told from":
            few = self.groups < intervals.FEWEST_GROUPS
            why = f"{self.groups} groups are too few for an interval" if few else "no interval could be computed"
            return f"Whether {one.first} beats the best baseline ({baseline}) cannot be told: {scores}; {why}"
        beyond = {"beats": ", beyond chance", "is worse than": ", beyond chance"}.get(one.verdict, "")
        return (
            f"{one.first} {one.verdict} the best baseline ({baseline}){beyond}: {scores}, "
            f"difference {one.difference:.3f}, 95 % interval {one.low:.3f} to {one.high:.3f}"
        )

    def parts(self, predictor: str) -> list[Model]:
        """The parts of a predictor on the same rows, the language model first; empty for a model of one piece."""
        return [model for model in self.evaluation.models if model.of == predictor]

    def parts_told(self) -> list[str]:
        """For each predictor of several parts: how good it is, what is in it, and what the language model adds."""
        told = []
        for model in self.evaluation.models:
            parts = self.parts(model.name)
            if model.judged and parts:
                told += [f"{self._good(model.name)}. {_members_told(parts)}.", self._added(model.name, parts)]
        return [sentence for sentence in told if sentence]

    def least_alike(self) -> list[str]:
        """How good the predictors of several parts are on the rows least like training; empty without strata, or where
        these rows are of one class, which no score can judge."""
        strata = [name for name in dict.fromkeys(line.stratum for line in self.lines)
                  if name.startswith(("identity", NO_RELATIVE))]
        told = []
        for model in self.evaluation.models:
            if not (model.judged and self.parts(model.name)):
                continue
            lines = [self.line(model.name, self.metric, stratum=name) for name in strata]
            there = [line for line in lines if line.n]
            if len(there) > 1 and math.isfinite(there[0].value):
                line = there[0]
                rows = f"{line.n} row{'' if line.n == 1 else 's'}"
                told.append(
                    f"On the {rows} least like training ({line.stratum}) {model.name} has {metric_name(self.metric)} "
                    f"{number(line.value)}{interval_text(line.low, line.high)}: expect no more of proteins that are "
                    "unlike training."
                )
        return told

    def _good(self, name: str) -> str:
        line = self.line(name, self.metric)
        value = "undefined" if math.isnan(line.value) else number(line.value) + interval_text(line.low, line.high)
        return f"{name} has {metric_name(self.metric)} {value} on {line.n} rows"

    def _added(self, name: str, parts: Sequence[Model]) -> str:
        together = next((part.name for part in parts if part.role == TOGETHER), "")
        if not together:
            return ""
        alone = next((part for part in parts if part.role == MODEL_ALONE), None)
        if alone is not None and not alone.counts:
            return "Training and validation rows left the language model out."
        one = next((one for one in self.comparisons if (one.first, one.second) == (name, together)), None)
        if one is None:
            return ""
        scores = f"{metric_name(self.metric)} {number(one.first_value)} with it, {number(one.second_value)} without"
        if one.verdict == "cannot be told from":
            return f"What the language model adds to the sequence members cannot be told: {scores}."
        interval = f"difference {one.difference:.3f}, 95 % interval {one.low:.3f} to {one.high:.3f}"
        what = {
            "beats": "The language model adds to what the sequence members say, beyond chance",
            "is worse than": "The language model takes from what the sequence members say, beyond chance",
        }.get(one.verdict, "It is not shown that the language model adds to what the sequence members say")
        return f"{what}: {scores}; {interval}."

    def leakage(self) -> str:
        """The sentence on leakage, with the score on rows without it where some rows leak; empty if nobody looked."""
        if self.leaking is None:
            return ""
        told = self.leaking.sentence()
        if not self.leaking.rows.any():
            return told
        told += " Scores on such rows are too good for proteins unlike those of training"
        own = next(model.name for model in self.evaluation.models if model.judged)
        line = self.line(own, self.metric, stratum=ALONE)
        if not line.n:
            return f"{told}; no row is free of it."
        name = metric_name(self.metric)
        value = "undefined" if math.isnan(line.value) else number(line.value) + interval_text(line.low, line.high)
        rows = f"{line.n} row{'' if line.n == 1 else 's'}"
        return f"{told}; on the {rows} that share nothing with them the {name} of {own} is {value}."

    def better_baselines(self) -> list[str]:
        """Baselines that scored higher on the evaluated rows than the one that inner cross-validation chose."""
        if not self.best_baseline:
            return []
        sign = -1 if self.metric in LOWER_IS_BETTER else 1
        chosen = self.line(self.best_baseline, self.metric).value
        return [
            model.name
            for model in self.evaluation.models
            if model.baseline and sign * self.line(model.name, self.metric).value > sign * chosen
        ]


def assess(
    evaluation: Evaluation, metric: str, *, best_baseline: str = "", identity: NDArray[np.float64] | None = None,
    identity_bins: Sequence[float] = (30, 50), leaking: Leaking | None = None, resamples: int = 1000, seed: int = 42,
) -> Assessment:
    """Scores every model with intervals, by strata of identity, and compares the models.

    Args:
        evaluation: Rows and models, baselines among them.
        metric: Name of the main metric.
        best_baseline: Name of the baseline to beat; empty without baselines.
        identity: (N,) identity of each row to its nearest training row, 0-1; None: no strata.
        identity_bins: Upper ends of the strata in percent, ascending.
        leaking: What the rows share with training; rows that leak and rows that do not are then strata too.
        resamples: Bootstrap resamples.
        seed: Seed of the bootstrap resamples.
    """
    index, groups = intervals.group_index(list(evaluation.rows["group"]))
    lines: list[ScoreLine] = []
    resampled: dict[str, Floats] = {}
    draws = intervals.draw_groups(groups, resamples, seed) if groups >= intervals.FEWEST_GROUPS else None
    for model in evaluation.models:
        boot = None if draws is None else intervals.bootstrap(model.scored, index, draws)
        lines += _lines(model, OVERALL, np.full(len(index), True), groups, boot)
        if boot is not None:
            resampled[model.name] = boot[metric, ALL]
    assessment = Assessment(evaluation, metric, lines, [], groups, best_baseline, leaking)
    for first, second in _pairs(evaluation.models, best_baseline):
        values = (assessment.line(first, metric).value, assessment.line(second, metric).value)
        pair = (resampled[first], resampled[second]) if draws is not None else None
        assessment.comparisons.append(compare((first, second), metric, values, pair))
    if identity is not None:
        for name, inside in strata(identity, identity_bins):
            assessment.lines += _stratum(evaluation, name, inside, index, resamples, seed)
    if leaking is not None and leaking.rows.any():
        for name, inside in ((LEAKING, leaking.rows), (ALONE, ~leaking.rows)):
            assessment.lines += _stratum(evaluation, name, inside, index, resamples, seed)
    return assessment


def strata(identity: NDArray[np.float64], bins: Sequence[float]) -> list[tuple[str, NDArray[np.bool_]]]:
    """Names and masks of the strata of identity to training; empty ones too.

    Rows of which no relative was found in training (identity 0) are a stratum of their own where there are any.

    Args:
        identity: (N,) identity of each row to its nearest training row, 0-1.
        bins: Upper ends in percent, ascending.
    """
    percent = identity * 100
    alone = percent <= 0
    masks = [(NO_RELATIVE, alone)] if alone.any() else []
    for low, high in itertools.pairwise([0.0, *bins, 101.0]):
        name = f"identity {low:g}-{high:g} %"
        if low <= 0:
            name = f"identity up to {high:g} %"
        elif high > 100:
            name = f"identity over {low:g} %"
        masks.append((name, (percent > (low + 1e-9 if low else 0)) & (percent <= high + 1e-9)))
    return masks


def _stratum(
    evaluation: Evaluation, name: str, inside: NDArray[np.bool_], index: NDArray[np.int64], resamples: int, seed: int
) -> list[ScoreLine]:
    if not inside.any():
        return [
            ScoreLine(model.name, name, metric, ALL, math.nan, math.nan, math.nan, 0, 0, note="no rows")
            for model in evaluation.models
            for metric, at in score(model.scored)
            if at == ALL
        ]
    _, own = np.unique(index[inside], return_inverse=True)
    groups = int(own.max()) + 1
    draws = intervals.draw_groups(groups, resamples, seed) if groups >= intervals.FEWEST_GROUPS else None
    lines: list[ScoreLine] = []
    for model in evaluation.models:
        part = model.scored.rows(inside)
        boot = None if draws is None else intervals.bootstrap(part, own.astype(np.int64), draws)
        lines += _lines(model, name, inside, groups, boot, by_class=False)
    return lines


def _lines(
    model: Model, stratum: str, inside: NDArray[np.bool_], groups: int, boot: dict[Key, Floats] | None, *,
    by_class: bool = True,
) -> list[ScoreLine]:
    part = model.scored.rows(inside)
    values = score(part)
    by_seed = [score(member.rows(inside)) for member in model.members.values()]
    lines = []
    for key, value in values.items():
        if key[1] != ALL and not by_class:
            continue
        low = high = math.nan
        note = why_undefined(part, key) if math.isnan(value) else ""
        if boot is not None and not note:
            low, high = intervals.interval(boot[key])
        if math.isnan(low) and not note:
            few = f"fewer than {intervals.FEWEST_GROUPS} groups" if boot is None else "undefined in many resamples"
            note = f"no interval: {few}"
        seeds = tuple(one[key] for one in by_seed)
        rows = int(inside.sum())
        lines.append(ScoreLine(model.name, stratum, *key, value, low, high, rows, groups, seeds, note))
    return lines


def _pairs(models: Sequence[Model], best_baseline: str) -> list[tuple[str, str]]:
    own = [model.name for model in models if model.judged]
    parts = [(model.of, model.name) for model in models if model.role in (MODEL_ALONE, TOGETHER)]
    baselines = [model.name for model in models if model.baseline]
    # The baseline to beat comes first.
    baselines.sort(key=lambda name: name != best_baseline)
    pairs = [(name, baseline) for name in own for baseline in baselines]
    return pairs + parts + [(own[i], own[j]) for i in range(len(own)) for j in range(i + 1, len(own))]


def interval_text(low: float, high: float, digits: int = 3) -> str:
    """`` (0.71 to 0.88)``, or nothing without an interval."""
    return "" if math.isnan(low) else f" ({low:.{digits}f} to {high:.{digits}f})"


def _told(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"


def _seeds_told(values: tuple[float, ...]) -> tuple[str, str, str]:
    if not values:
        return "", "", ""
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return str(len(values)), _told(float(np.mean(values))), _told(spread)
