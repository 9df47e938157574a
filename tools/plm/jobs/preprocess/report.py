"""What a preprocessing run did, in words, tables and a picture: counts that reconcile, balance of splits, leakage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from plm.data import homology
from plm.data.examples import Example, Journal
from plm.data.leakage import Leak, counts
from plm.data.splits import balance
from plm.scoring.intervals import FEWEST_GROUPS
from plm.telling.report import Report, plain
from plm.wording import counted

_MOST_CLASSES = 12


class SplitOptions(Protocol):
    """What the account needs to know of the options."""

    @property
    def task(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def identity(self) -> float | None: ...
    @property
    def coverage(self) -> float: ...
    @property
    def figure(self) -> Path | None: ...
    @property
    def seed(self) -> int: ...


@dataclass(frozen=True)
class SplitAccount:
    """The account of one run.

    Attributes:
        read: Number of input records.
        examples: Rows of the dataset.
        journal: Records that were rejected, left out or changed, and why.
        leaks: Comparison of judging rows with the others.
        near: Residues within which sites of one protein have overlapping windows.
        method: How relatives were told (:mod:`plm.data.homology`).
        settings: Options of the run.
    """

    read: int
    examples: Sequence[Example]
    journal: Journal
    leaks: Sequence[Leak]
    near: int
    method: str
    settings: SplitOptions

    @property
    def _unit(self) -> str:
        return "sites" if self.settings.task == "site" else "sequences"

    def verdict(self, sides: Sequence[str] | None = None) -> str:
        """One sentence: whether rows that judge a model leak, and what they share."""
        chosen = [leak for leak in self.leaks if sides is None or leak.split in sides]
        if not chosen:
            judging = any(example.split in ("valid", "test") for example in self.examples)
            lacking = "are no training records" if judging else "is no validation or test set"
            return f"nothing was compared for leakage, since there {lacking}"
        names = _sides(chosen)
        tally = counts(chosen, self.near)
        others = self._others(chosen)
        limit = homology.default_identity(self.method, self.settings.identity)
        if not tally["leaks"]:
            if tally["records"] == 1:
                return (
                    f"the one {names} record shares no protein, group or relative ({limit:.0%} identity) with {others}"
                )
            return (
                f"none of {tally['records']} {names} records shares a protein, a group or a relative ({limit:.0%} "
                f"identity or more) with {others}"
            )
        parts = [f"{tally['leaks']} of {tally['records']} {names} records leak{'s' if tally['leaks'] == 1 else ''}"]
        close = sum(bool(leak.nearest) and leak.identity >= limit - 1e-9 for leak in chosen)
        for count, one, many in (
            (tally["same protein"], f"shares a protein with {others}", f"share a protein with {others}"),
            (
                tally["within window"],
                f"lies within {self.near} residues of a site there of the same protein",
                f"lie within {self.near} residues of a site there of the same protein",
            ),
            (
                tally["same group"] if tally["same group"] > tally["same protein"] else 0,
                "shares a group with these",
                "share a group with these",
            ),
            (tally["shared stretch"], "shares a stretch of residues", "share a stretch of residues"),
            (
                close,
                f"has a relative there at {limit:.0%} identity or more",
                f"have a relative there at {limit:.0%} identity or more",
            ),
        ):
            if count:
                parts.append(f"{count} {one if count == 1 else many}")
        return "; ".join(parts)

    def _others(self, leaks: Sequence[Leak]) -> str:
        """What the rows were compared with: a test set must be independent of the validation rows too."""
        sides = {leak.split for leak in leaks}
        if not sides <= {"valid", "test"}:
            return "the other folds"
        chosen = "test" in sides and any(example.split == "valid" for example in self.examples)
        return "training or validation records" if chosen else "training records"

    def few_groups(self) -> list[str]:
        """What must be said of parts with too few independent groups to judge a model by."""
        by_part: dict[str, set[str]] = {}
        for example in self.examples:
            by_part.setdefault("folds" if example.split.isdigit() else example.split, set()).add(example.group)
        said = []
        for part, words in (
            ("test", "test part has"), ("valid", "validation part has"), ("folds", "folds together have")
        ):
            count = len(by_part.get(part, ()))
            if not 0 < count < FEWEST_GROUPS:
                continue
            means = (
                "choices made on it (epoch, head, method, temperature, threshold) rest on chance"
                if part == "valid"
                else "there will be no intervals, and whether a model beats a baseline cannot be told"
            )
            said.append(
                f"FEW GROUPS: the {words} {counted(count, 'group')}, fewer than {FEWEST_GROUPS}: {means}; give "
                f"{'more proteins' if part == 'folds' else 'it a larger share, or more proteins'}"
            )
        return said

    def first_line(self) -> str:
        """What was made and whether it leaks."""
        content = f"{len(self.examples):,} {self._unit} from {self.read:,} records"
        parts = Counter(example.split for example in self.examples)
        if set(parts) - {""}:
            content += " (" + ", ".join(f"{parts[part]:,} {_name(part)}" for part in _ordered(parts)) + ")"
        return ". ".join([content, *self.few_groups(), *self._signed()]) + "."

    def _signed(self) -> list[str]:
        """The verdicts on leakage, each with its sign."""
        if not self.leaks:
            return [_capital(self.verdict())]
        sides = {leak.split for leak in self.leaks}
        parts: list[list[str]] = [list(sides)]
        if sides <= {"valid", "test"}:
            parts = [[split] for split in ("test", "valid") if split in sides]
        return [
            ("LEAKAGE: " if any(leak.leaks for leak in self.leaks if leak.split in part) else "No leakage found: ")
            + self.verdict(part)
            for part in parts
        ]

    def warnings(self) -> list[str]:
        """What a careful user should know before training on this."""
        said = []
        parts = balance([example.split for example in self.examples], self._classes())
        classes = {name for part in parts.values() for name in part}
        if 1 < len(classes) <= 50:
            for part in _ordered(parts):
                absent = sorted(classes - set(parts[part]))
                if absent:
                    said.append(f"No record of class {', '.join(map(plain, absent[:5]))} in {_name(part)}.")
        if self.settings.task == "site":
            letters = Counter(
                example.sequence[example.position0] for example in self.examples if example.position0 is not None
            )
            rare = [letter for letter, number in letters.items() if number < 0.02 * sum(letters.values())]
            if rare:
                said.append(
                    f"A few sites are on other residues than most ({', '.join(sorted(rare))}): if that is wrong, "
                    "name the residues a site may be."
                )
        groups = Counter(example.group for example in self.examples if example.split)
        if groups and self.settings.split in ("group", "protein", "homology"):
            largest, size = groups.most_common(1)[0]
            if size > 0.3 * len(self.examples) and len(groups) > 1:
                said.append(
                    f"The largest group ({plain(largest)}) holds {size / len(self.examples):.0%} of the rows, and a "
                    "group cannot be divided: splits may be far from the sizes asked for."
                )
        if self.settings.split == "random":
            said.append(
                "A random split ignores proteins and homology: on rows with relatives in training scores are too good."
            )
        return said

    def lines(self) -> list[str]:
        """The account for a log."""
        return [
            self.first_line(),
            *(
                f"{_name(part)}: " + ", ".join(f"{name or 'unlabelled'} {number}" for name, number in row)
                for part, row in self._balance()
            ),
            f"journal: {self.journal.count('rejected')} rejected, {self.journal.count('left out')} left out, "
            f"{self.journal.count('changed')} changed",
            *(f"warning: {text}" for text in self.warnings()),
        ]

    def _classes(self) -> list[str]:
        labels = [example.label for example in self.examples]
        if self.settings.task == "residue" or len(set(labels)) > max(50, len(labels) // 4):
            return ["rows"] * len(labels)
        return labels

    def _balance(self) -> list[tuple[str, list[tuple[str, int]]]]:
        """Rows of each class by part; of more than twelve classes the commonest, and the others together."""
        classes = self._classes()
        sizes = Counter(classes)
        if len(sizes) > _MOST_CLASSES:
            kept = {name for name, _ in sorted(sizes.items(), key=lambda one: (-one[1], one[0]))[: _MOST_CLASSES - 1]}
            others = _other_classes(len(sizes))
            classes = [name if name in kept else others for name in classes]
        by_part = balance([example.split for example in self.examples], classes)
        return [(part, sorted(by_part[part].items())) for part in _ordered(by_part)]

    def report(self) -> Report:
        """The whole account."""
        report = Report(self.first_line())
        report.heading("Dataset", 1)
        for text in self.warnings():
            report.paragraph(f"⚠ {text}")
        rows = self._balance()
        classes = sorted({name for _, row in rows for name, _ in row})
        others = _other_classes(len(set(self._classes())))
        if others in classes:
            classes = [*(name for name in classes if name != others), others]
        total = len(self.examples)
        cells = []
        for part, row in rows:
            of = dict(row)
            size = sum(example.split == part for example in self.examples)
            groups = len({example.group for example in self.examples if example.split == part})
            cells.append(
                [
                    _name(part),
                    f"{size:,} ({size / total:.0%})",
                    f"{groups:,}",
                    *(f"{of.get(name, 0):,}" for name in classes),
                ]
            )
        heads = [
            (name if name in ("rows", others) else f"class {plain(name)}") if name else "unlabelled" for name in classes
        ]
        report.rows(["split", self._unit, "groups", *heads], cells)
        if self.settings.figure is not None:
            report.image("figure")
        report.heading("Where every record went")
        sources = {example.source for example in self.examples}
        report.paragraph(
            f"Of {counted(self.read, 'record')} read, {len(sources):,} gave {counted(total, self._unit[:-1])}. "
            + self._fates()
        )
        if self.journal.entries:
            report.table("rejected", "Rejected, left out and changed records")
        report.heading("Leakage")
        report.bullets([f"{text}." for text in self._signed()])
        limit = homology.default_identity(self.method, self.settings.identity)
        how = homology.describe(self.method, limit, self.settings.coverage)
        report.paragraph(f"How relatives were told: {how}. Random choices with seed {self.settings.seed}.")
        if self.leaks:
            self._leakage_rows(report)
            report.table(
                "leakage", f"Nearest relative of each {_sides(self.leaks)} record among those it is judged against"
            )
        return report

    def _fates(self) -> str:
        if not self.journal.entries:
            return "No record or site was rejected, left out or changed."
        told = (("rejected", "rejected"), ("left out", "left out by a rule"), ("changed", "changed and kept"))
        parts = [f"{self.journal.count(what):,} {words}" for what, words in told if self.journal.count(what)]
        return f"The table below tells why: {', '.join(parts)}."

    def _leakage_rows(self, report: Report) -> None:
        splits = sorted({leak.split for leak in self.leaks})
        shown = [[leak for leak in self.leaks if leak.split == split] for split in splits]
        if len(splits) > 2:
            splits, shown = ["all folds"], [list(self.leaks)]
        columns = [counts(chosen, self.near) for chosen in shown]
        report.rows(
            ["shared with the others", *map(_name, splits)],
            [[key.replace(">=", "at least"), *(str(column[key]) for column in columns)] for key in columns[0]],
        )

    def draw(self, path: Path) -> None:
        """Draws classes in each split, and the identity of judging rows to their nearest training relative (PNG)."""
        from plm.telling.figures import colour, named, new_figure, save, shortened

        figure, panels = new_figure(9.0, 3.8, columns=2)
        left, right = panels.flat
        rows = self._balance()
        names = sorted({name for _, row in rows for name, _ in row})
        count = len(set(self._classes()))
        told = count <= _MOST_CLASSES  # so many colours cannot be told apart
        bottoms = [0] * len(rows)
        for index, name in enumerate(names):
            heights = [dict(row).get(name, 0) for _, row in rows]
            left.bar(
                [_name(part) for part, _ in rows], heights, bottom=bottoms, color=colour(index if told else 0),
                label=named(shortened(name, 24)) or "rows",
            )
            bottoms = [a + b for a, b in zip(bottoms, heights, strict=True)]
        left.set_ylabel(self._unit)
        left.margins(y=0.3)  # room for the legend
        left.set_title("Classes in each split" if told else f"Splits (rows of {count:,} classes)")
        if len(names) > 1 and told:
            left.legend(title="class")
        sides = _ordered(Counter(leak.split for leak in self.leaks))
        parts = {_name(side): [100 * leak.identity for leak in self.leaks if leak.split == side] for side in sides}
        if len(parts) > 2:
            parts = {"all folds": [100 * leak.identity for leak in self.leaks]}
        if parts:  # beside each other: equal distributions would hide each other
            shades = [colour(index + 1) for index in range(len(parts))]
            right.hist(list(parts.values()), bins=20, range=(0, 100), color=shades, label=list(parts))
        right.set_xlabel("identity to the nearest record compared with\n(%; 0: none found)")
        right.set_ylabel("records")
        right.set_title("Likeness to training")
        if self.leaks:
            right.legend()
        save(figure, path)


def _sides(leaks: Sequence[Leak]) -> str:
    splits = sorted({leak.split for leak in leaks}, reverse=True)
    return (
        "held-out"
        if splits[0].isdigit()
        else " and ".join({"valid": "validation"}.get(split, split) for split in splits)
    )


def _name(part: str) -> str:
    if not part:
        return "not split"
    return f"fold {part}" if part.isdigit() else {"train": "training", "valid": "validation"}.get(part, part)


def _ordered(parts: dict[str, object] | Counter[str] | dict[str, dict[str, int]]) -> list[str]:
    known = ["train", "valid", "test"]
    return sorted(
        parts, key=lambda part: (known.index(part) if part in known else 3, int(part) if part.isdigit() else 0, part)
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _other_classes(count: int) -> str:
    """What the classes beside the commonest are called, of so many."""
    return f"{count - _MOST_CLASSES + 1:,} others"
