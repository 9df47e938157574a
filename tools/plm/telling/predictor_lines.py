"""The first lines on a predictor of several parts: how good, of what, what the language model adds, where it ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from plm.model.combination import LANGUAGE_MODEL
from plm.telling.report import plain
from plm.wording import counted, metric_name, number

_TOGETHER = "sequence members"


def first_lines(manifest: Mapping[str, Any], rows: str = "validation row") -> list[str]:
    """What a user must know of the predictor that a bundle answers with, in this order; from its manifest.

    Args:
        manifest: The bundle's, with what was judged under ``predictor``.
        rows: What the rows are called that judged it.
    """
    about = manifest.get("predictor") or {}
    judged = about.get("judged")
    if not judged:
        why = about.get("why_not", "")
        return [f"{plain(why)}."] if why else []
    metric = metric_name(judged["metric"])
    scores = {name: _score(values) for name, values in judged["scores"].items()}
    lines = [
        f"The predictor has {metric} {scores['predictor']} on {counted(judged['rows'], rows)}, none of which its parts "
        "had learned from. The same rows chose the combination, which flatters it a little.",
        _made_of(about),
        _added(about, judged, metric, scores),
        limits(about),
    ]
    return [line for line in lines if line]


def how_chosen(*, several: bool) -> str:
    """How a predictor is chosen among candidates, above their table.

    Args:
        several: More than two classes are told apart.
    """
    told = (
        "Mean loss of each candidate on rows that it was not fitted on (log loss; of numbers half the squared error"
        " in units of their deviation), groups kept together. The plain mean is taken unless another is better by"
        " more than one standard error and a hundredth."
    )
    if several:
        told += (
            " The loss says little of rare classes: a candidate whose main score on these rows is higher than that"
            " one's by two hundredths is taken instead."
        )
    return told


def _score(values: Sequence[float | None]) -> str:
    value, low, high = values
    told = "undefined" if value is None else number(value)
    return told if low is None or high is None else f"{told} ({number(low)} to {number(high)})"


def _made_of(about: Mapping[str, Any]) -> str:
    held = about.get("combination")
    if not held:
        return "It is the language model alone, which the validation rows preferred to every combination."
    names = [f"the {name}" if name == LANGUAGE_MODEL else name for name in held["members"]]
    if len(names) == 1:
        return f"It is {plain(names[0])} alone."
    how = "as a plain mean of calibrated answers" if held["way"] == "mean" else "with weights fitted to these rows"
    return f"It combines {plain(', '.join(names[:-1]))} and {plain(names[-1])}, {how}."


def _added(
    about: Mapping[str, Any], judged: Mapping[str, Any], metric: str, scores: Mapping[str, str]
) -> str:
    held = about.get("combination")
    alone = f"The language model alone has {metric} {scores[LANGUAGE_MODEL]}"
    if held and LANGUAGE_MODEL not in held["members"]:
        return f"{alone}; these rows left it out."
    difference, low, high = judged["added"]
    beside = f"{alone}, the sequence members without it {scores[_TOGETHER]}"
    if difference is None or low is None or high is None:
        return f"{beside}; too few groups for an interval of what it adds."
    interval = f"{number(difference)} (95 % interval {number(low)} to {number(high)})"
    better = low > 0 if metric not in ("RMSE", "MAE") else high < 0
    if better:
        return f"{beside}. What the language model adds is beyond chance: {interval}."
    return f"{beside}. It is not shown that the language model adds anything: {interval}."


def limits(about: Mapping[str, Any]) -> str:
    """When the predictor may not be trusted."""
    told = []
    if likeness := about.get("likeness"):
        digits = 1 if likeness[0] > 0.95 else 0
        low, middle, high = (f"{value:.{digits}%}" for value in likeness)
        told.append(
            f"The rows that judged it are {low} to {high} like their most similar training row (the middle 90 % of "
            f"them; median {middle}): do not expect as much of others that are less alike"
        )
    if lengths := about.get("lengths"):
        shortest, longest = lengths
        if about.get("length"):
            told.append(
                f"All its sequences had {longest} residues; of others only the first {longest} are compared place by "
                "place"
            )
        else:
            told.append(f"Its sequences had {shortest:,} to {longest:,} residues: beyond these it was never judged")
    return "".join(f"{sentence}. " for sentence in told).strip()


def choice_rows(about: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """What was chosen among, as a table: losses by cross-fitting, and how far behind the best."""
    cells = []
    for step, name in (("sequence_candidates", "sequence members"), ("candidates", "with the language model")):
        for one in about.get(step, ()):
            error = "" if one["error"] is None else f" ± {number(one['error'])}"
            behind = f"{number(one['behind'])}{error}" if one["behind"] else "best"
            cells.append([name, plain(one["name"]), number(one["loss"]), behind, "taken" if one["taken"] else ""])
    return ["Step", "Candidate", "Loss", "Behind the best", ""], cells
