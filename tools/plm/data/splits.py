"""Splits in which no group straddles, with classes balanced as well as whole groups allow."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Sequence

from plm.errors import UserError


def assign(
    groups: Sequence[str], strata: Sequence[str], fractions: Sequence[float], seed: int, size_weight: float = 1.0
) -> list[int]:
    """Assigns whole groups to parts so that sizes and classes come close to the wanted fractions.

    Greedy: groups in order of falling size (ties in an order drawn with ``seed``) each go where they lower the squared
    deviation from the wanted counts most; classes count relative to their size, so that rare ones are spread too.

    Args:
        groups: Group of each row; a group is never parted.
        strata: Class of each row ("" for all if there is none).
        fractions: Wanted part of the rows for each part, adding up to 1; a part of 0 stays empty.
        seed: Seed of the order of equal groups.
        size_weight: How much the sizes of parts count beside the balance of strata; more where strata are small bins
            of numbers, whose rounding would add up.

    Returns:
        Part (0-based) of each row.

    Raises:
        UserError: Fewer groups than parts that want rows.
    """
    if abs(sum(fractions) - 1) > 1e-6 or min(fractions) < 0:
        raise ValueError(f"fractions must be at least 0 and add up to 1, not {fractions}")
    wanted = [part for part, fraction in enumerate(fractions) if fraction > 0]
    names = sorted(set(strata))
    totals = dict.fromkeys(names, 0)
    counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for group, stratum in zip(groups, strata, strict=True):
        counts[group][stratum] += 1
        totals[stratum] += 1
    if len(counts) < len(wanted):
        raise UserError(
            f"There are {len(counts)} groups for {len(wanted)} parts, and a group cannot be divided", where="--split",
            fix="Ask for fewer parts, a looser grouping (higher --identity), or give more data",
        )
    order = sorted(counts)
    random.Random(seed).shuffle(order)
    order.sort(key=lambda group: -sum(counts[group].values()))
    rows = len(groups)
    filled = [dict.fromkeys(names, 0) for _ in fractions]
    sizes = [0] * len(fractions)
    place: dict[str, int] = {}
    for done, group in enumerate(order):
        size = sum(counts[group].values())
        empty = [part for part in wanted if sizes[part] == 0]
        # Every part gets a group: the last groups are kept for parts that are still empty.
        candidates = empty if len(order) - done <= len(empty) else wanted

        def cost(part: int, group: str = group, size: int = size) -> float:
            goal = fractions[part] * rows
            added = size_weight * _deviation(sizes[part], size, goal, goal * rows)
            for name, count in counts[group].items():
                goal = fractions[part] * totals[name]
                added += _deviation(filled[part][name], count, goal, fractions[part] * totals[name] ** 2)
            return added

        best = min(candidates, key=lambda part: (cost(part), part))
        place[group] = best
        sizes[best] += size
        for name, count in counts[group].items():
            filled[best][name] += count
    return [place[group] for group in groups]


def _deviation(now: int, added: int, goal: float, scale: float) -> float:
    """Change of the squared deviation from ``goal`` when ``added`` rows join ``now``, divided by ``scale``."""
    return ((now + added - goal) ** 2 - (now - goal) ** 2) / scale


def quantile_strata(values: Sequence[float], bins: int = 5) -> list[str]:
    """Strata for numbers: equally filled bins of their ranks, so that every part spans the range."""
    order = sorted(range(len(values)), key=lambda index: values[index])
    strata = [""] * len(values)
    for rank, index in enumerate(order):
        strata[index] = str(min(bins - 1, math.floor(rank * bins / len(values))))
    return strata


def balance(parts: Sequence[str], strata: Sequence[str]) -> dict[str, dict[str, int]]:
    """Rows of each class in each part: ``{part: {class: rows}}``, parts in order of first appearance."""
    counted: dict[str, dict[str, int]] = {}
    for part, stratum in zip(parts, strata, strict=True):
        here = counted.setdefault(part, {})
        here[stratum] = here.get(stratum, 0) + 1
    return counted


def joined_groups(*keys: Sequence[str]) -> list[str]:
    """Smallest groups such that rows equal in any key are together (protein and homology cluster, say).

    Args:
        keys: For each criterion, the key of every row; an empty key links nothing.

    Returns:
        Group of each row, named ``group<number>`` in order of first appearance.
    """
    from plm.data.homology import components

    rows = len(keys[0])
    links = []
    for key in keys:
        first: dict[str, int] = {}
        for row, value in enumerate(key):
            if value:
                links.append((first.setdefault(value, row), row))
    names: dict[int, str] = {}
    return [names.setdefault(root, f"group{len(names) + 1}") for root in components(rows, links)]
