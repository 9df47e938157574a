"""Sequence logos of called against not called sites: counted while proteins pass through, drawn at the end.

The height of a stack is the information by which the residues at a place tell these sites from all candidates of the
same input: the relative entropy ``sum f log2(f / b)`` in bits, with the background b of all candidates, less what so
few sites show by chance, ``(s - 1) / (2 n ln 2)`` with s residues in the background and n sites with a residue there.
A letter takes its share f of it.

Sources: Schneider and Stephens, Nucleic Acids Research 18, 6097 (1990); Schneider and others, Journal of Molecular
Biology 188, 415 (1986) for the correction; Vacic and others, Bioinformatics 22, 1536 (2006) for the difference.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import hypergeom

from plm.data.task import Task
from plm.jobs.classify_sites.candidates import Protein
from plm.jobs.classify_sites.tables import SiteAnswers
from plm.scoring.mutagenesis import AMINO_ACIDS
from plm.telling.figures import new_figure, save, shortened
from plm.telling.sequence_logo import draw_stacks, group_handles
from plm.wording import counted

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
WIDEST = 30
"""Residues on each side of a site that a picture has room for."""
_MOST_CLASSES = 6
_CHANCE = 0.05
_NO_RESIDUE = 20
"""Code of what is none of the twenty: X, and places beyond a protein's end."""
_CODES = np.full(256, _NO_RESIDUE, np.int64)
_CODES[[ord(letter) for letter in AMINO_ACIDS]] = np.arange(20)


@dataclass
class LogoCounts:
    """How often each residue stands at each place around sites of each call; its size does not grow with their number.

    Attributes:
        task: Level, kind of target and classes that the bundle answers.
        side: Residues on each side of a site.
        sites: (G,) sites of each group: not called and called, or by class.
        residues: (G, W, 20) counts at W = 2 ``side`` + 1 places, in the order of :data:`AMINO_ACIDS`.
    """

    task: Task
    side: int
    sites: Ints = field(init=False)
    residues: Ints = field(init=False)

    def __post_init__(self) -> None:
        groups = max(len(self.task.classes), 1)
        self.sites = np.zeros(groups, np.int64)
        self.residues = np.zeros((groups, 2 * self.side + 1, 20), np.int64)

    def add(self, protein: Protein, answers: SiteAnswers) -> None:
        """Counts the surroundings of a protein's candidates."""
        if self.task.binary:
            groups = answers.called.astype(np.int64)
        else:
            place = {name: index for index, name in enumerate(self.task.classes)}
            groups = np.array([place.get(name, 0) for name in answers.calls], np.int64)
        self.sites += np.bincount(groups, minlength=len(self.sites))
        codes = _CODES[np.frombuffer(protein.sequence.encode("ascii", "replace"), np.uint8)]
        padded = np.pad(codes, self.side, constant_values=_NO_RESIDUE)
        width = 2 * self.side + 1
        # Chunks keep the memory of a protein with tens of thousands of sites small.
        for start in range(0, len(groups), 4096):
            sites = np.array(protein.sites[start : start + 4096])
            around = padded[sites[:, None] + np.arange(width)]
            slots = (groups[start : start + 4096, None] * width + np.arange(width)) * 21 + around
            counts = np.bincount(slots.ravel(), minlength=self.residues.shape[0] * width * 21)
            self.residues += counts.reshape(-1, width, 21)[:, :, :20]

    def background(self) -> Floats:
        """(W, 20) shares of the residues around all candidates: the same at each place, but for the sites themselves.

        The site's own row holds the shares of the candidate residues, so that what all candidates have in common tells
        nothing.
        """
        every = self.residues.sum(axis=0)
        beside = np.delete(every, self.side, axis=0).sum(axis=0)
        shares = np.tile(_shares(beside), (len(every), 1))
        shares[self.side] = _shares(every[self.side])
        return shares

    def information(self, group: int) -> Floats:
        """(W, 20) heights of the letters of one group in bits; see the module."""
        return letter_heights(self.residues[group], self.background())


def letter_heights(counts: Ints, background: Floats) -> Floats:
    """Heights in bits of the letters of a logo.

    Args:
        counts: (W, 20) residues at each place.
        background: (W, 20) shares that are to be expected.

    Returns:
        (W, 20): shares times information, which is 0 where it is no more than so few residues show by chance.
    """
    heights = np.zeros(counts.shape)
    for place, (row, expected) in enumerate(zip(counts, background, strict=True)):
        total = int(row.sum())
        if not total:
            continue
        shares = row / total
        there = row > 0
        entropy = float((shares[there] * np.log2(shares[there] / expected[there])).sum())
        correction = (int((expected > 0).sum()) - 1) / (2 * total * np.log(2))
        heights[place] = shares * max(entropy - correction, 0.0)
    return heights


def share_differences(called: Ints, others: Ints) -> tuple[Floats, NDArray[np.bool_]]:
    """How much more frequent each residue is at each place of one group of sites than of another.

    Args:
        called: (W, 20) counts of the one.
        others: (W, 20) counts of the other.

    Returns:
        (W, 20) differences of the shares in percentage points; and which of them are beyond chance: 5 % in all, by
        Fisher's exact test on both sides with Bonferroni's correction for all residues at all places.
    """
    first, second = called.sum(axis=1, keepdims=True), others.sum(axis=1, keepdims=True)
    both = (first > 0) & (second > 0)
    difference = 100 * (called / np.maximum(first, 1) - others / np.maximum(second, 1))
    together, seen = first + second, called + others
    lower = hypergeom.cdf(called, together, seen, first)
    upper = hypergeom.sf(called - 1, together, seen, first)
    tested = max(int(((seen > 0) & (seen < together)).sum()), 1)
    beyond = np.minimum(2 * np.minimum(lower, upper), 1.0) <= _CHANCE / tested
    return np.where(both, difference, 0.0), both & beyond


def _shares(counts: Ints) -> Floats:
    total = counts.sum()
    result: Floats = counts / total if total else np.zeros(len(counts))
    return result


def background_words(shares: Floats) -> str:
    """The background (20,) from the most frequent residue to the rarest: ``L 9.8, A 8.1, ...`` in percent."""
    order = np.argsort(-shares, kind="stable")
    return ", ".join(f"{AMINO_ACIDS[index]} {100 * shares[index]:.1f}" for index in order)


def missing(counts: LogoCounts) -> str:
    """Why there is no logo, in a sentence; empty if there is one."""
    if counts.task.target == "number":
        return "No logo: the bundle predicts numbers, so no site is called."
    if not counts.sites.sum():
        return "No logo: there is no candidate residue in these proteins."
    if (counts.sites > 0).sum() == 1:
        if counts.task.binary:
            total = counted(int(counts.sites.sum()), "candidate")
            some = "every" if counts.sites[1] else "no"
            return f"No logo: {some} candidate is called (of {total}), so there is nothing to compare."
        only = shortened(counts.task.classes[int(counts.sites.argmax())], 40)
        return f"No logo: every candidate is called {only}, so there is nothing to compare."
    return ""


def logo_reading(counts: LogoCounts) -> str:
    """How to read the picture, in sentences that are true of it."""
    if told := missing(counts):
        return told
    told = (
        "The height of a stack of letters is how much, in bits, the residues there differ from those around all "
        f"{counted(int(counts.sites.sum()), 'candidate')} of this input (the background, given below the picture), "
        "less what so few sites show by chance; each letter takes its share of the residues."
    )
    if counts.task.binary:
        told += (
            " The lowest panel compares called with other candidates: letters in full colour differ beyond chance (5 % "
            "for all together, exact test)."
        )
    return (
        f"{told} It shows what sites called alike have in common, which need not be what the model goes by; near "
        "copies of a protein count as often as they come."
    )


def logo_figure(counts: LogoCounts, path: str | Path) -> None:
    """Draws the logos of called and of other sites and what sets them apart, or of each class, or says why not.

    Args:
        counts: Residues around the sites.
        path: PNG file to write.
    """
    if told := missing(counts):
        figure, axes = new_figure(6.0, 1.5)
        axes[0, 0].axis("off")
        axes[0, 0].text(0.5, 0.5, told, ha="center", va="center", wrap=True)
        save(figure, path)
        return
    if counts.task.binary:
        groups = [(1, "Called"), (0, "Not called")]
    else:
        order = sorted(np.flatnonzero(counts.sites).tolist(), key=lambda group: (-counts.sites[group], group))
        groups = [(group, f"Called {shortened(counts.task.classes[group], 30)}") for group in order[:_MOST_CLASSES]]
    rows = len(groups) + counts.task.binary
    figure, axes = new_figure(9.0, 1.9 * rows + 0.7, 1, rows)
    tops, total = [], int(counts.sites.sum())
    for panel, (group, name) in zip(axes[:, 0], groups, strict=False):
        _, top = draw_stacks(panel, heights := counts.information(group))
        tops.append(top)
        _frame(panel, counts, f"{name}: {int(counts.sites[group]):,} of {counted(total, 'candidate')}", "Bits")
        if not heights.any():
            _within(panel, "No place tells more than so few sites show by chance")
    for panel in axes[: len(groups), 0]:
        panel.set_ylim(0, max(1.08 * max(tops), 0.1))
    if counts.task.binary:
        _draw_difference(axes[-1, 0], counts)
    axes[-1, 0].set_xlabel("Residues from the site", fontsize=10)
    shares = counts.background()[0 if counts.side else -1]
    figure.legend(
        handles=group_handles(), loc="outside lower center", ncols=6, frameon=False, fontsize=8, title_fontsize=8,
        title=f"Background in %: {background_words(shares)}",
    )
    save(figure, path)


def _draw_difference(panel: Any, counts: LogoCounts) -> None:
    difference, strong = share_differences(counts.residues[1], counts.residues[0])
    low, high = draw_stacks(panel, difference, strong)
    panel.axhline(0, color="black", linewidth=0.8)
    panel.set_ylim(1.06 * min(low, -1), 1.06 * max(high, 1))
    title = "More frequent at called sites (above 0) or at the others (below); pale: within chance"
    _frame(panel, counts, title, "Percentage points")


def _frame(panel: Any, counts: LogoCounts, title: str, unit: str) -> None:
    panel.set_xlim(-0.6, 2 * counts.side + 0.6)
    shown = [place for place in range(2 * counts.side + 1) if (place - counts.side) % 5 == 0]
    letters = [AMINO_ACIDS[index] for index in np.flatnonzero(counts.residues[:, counts.side].sum(axis=0))]
    site = "/".join(letters) if len(letters) < 5 else "site"
    panel.set_xticks(shown, [f"{place - counts.side:+d}" if place != counts.side else site for place in shown])
    panel.tick_params(labelsize=8, length=2)
    panel.grid(axis="x", visible=False)
    panel.set_ylabel(unit, fontsize=9)
    panel.set_title(title, fontsize=9.5, loc="left", pad=3)


def _within(panel: Any, text: str) -> None:
    panel.text(0.5, 0.5, text, transform=panel.transAxes, ha="center", va="center", fontsize=9)
