"""What labels mean: which are missing, which are numbers and how they are written, which are classes or lists.

One place decides for every stage, and says in a sentence what it understood and why, so that no task is switched
silently and a single odd value is named instead of turning numbers into classes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from plm.errors import UserError

MISSING_WORDS = frozenset(
    ("", "NA", "N/A", "n/a", "na", "NaN", "nan", "NAN", "<NA>", "#N/A", "#NA", "null", "NULL", "Null", "None", "NaT",
     "-", "--", ".", "?", "#VALUE!", "#DIV/0!", "#REF!", "#NAME?", "#NUM!")
)
"""Labels that say: there is none, as R, pandas, Excel and people write it."""
FEW_CLASSES = 20
"""Whole numbers of more values than that are numbers, unless they count the classes from 0 or 1 without a gap."""

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,4})?")
_DECIMAL_COMMA = re.compile(r"([+-]?)(\d+),(\d+)(?:[eE][+-]?\d{1,4})?")
_THOUSANDS = re.compile(
    r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?|[+-]?\d{1,3}(?:\.\d{3})+,\d+|[+-]?\d{1,3}(?:[ '\u202f\u00a0]\d{3})+(?:[.,]\d+)?"
)
_CENSORED = re.compile(r"(?:[<>~≤≥≈±]|[<>]=)\s*[+-]?\d[\d.,]*\D*")
_UNIT = re.compile(
    r"[+-]?\d[\d.,]*(?:[eE][+-]?\d+)?\s*"
    r"(?:%|°?[CFK]|[pnuµμm]?M|[kKM]?Da|k?cal/mol|kJ/mol|s|min|h|nm|Å|[mµμun]g/m[lL]|[mnuµμ]?mol(?:/[lL])?)"
)
_INFINITE = re.compile(r"[+-]?inf(?:inity)?", re.IGNORECASE)
_RANGE = re.compile(r"\d+(?:\.\d+)?\s*(?:±|\+/-|\.\.|–|to)\s*\d+(?:\.\d+)?")
_CALL = re.compile(r"(?:(?:np|numpy|torch)\.)?(?:array|tensor|list)\s*\((.*)\)", re.DOTALL)
_BRACKETS = re.compile(r"\[(.*)\]|\((.*)\)|\{(.*)\}", re.DOTALL)
_MINUS = str.maketrans({"\u2212": "-", "\u2013": "-", "\u00a0": " "})
_LONGEST_SHOWN = 60


def is_missing(label: str) -> bool:
    """Whether a label says that there is none."""
    return label.strip() in MISSING_WORDS


def number(text: str) -> float | None:
    """A finite number written with a point; None for all else (``1_000``, ``inf``, ``nan``, other digits)."""
    plain = text.strip().translate(_MINUS)
    if not plain.isascii() or not _NUMBER.fullmatch(plain):
        return None
    value = float(plain)
    return value if value - value == 0 else None


def whole(text: str) -> bool:
    """Whether a text is a whole number, perhaps written ``1.0``."""
    value = number(text)
    return value is not None and value.is_integer() and abs(value) < 2**53


@dataclass(frozen=True)
class Reading:
    """What labels were understood as.

    Attributes:
        target: ``class`` or ``number``.
        values: One a label, in the form that all stages read: empty where there is none.
        why: Sentence: what the labels were understood as, and why.
        notes: Sentences on what was changed.
        unlabelled: Labels that say there is none.
    """

    target: str
    values: list[str]
    why: str
    notes: tuple[str, ...] = ()
    unlabelled: int = 0


def understand(
    labels: Sequence[str], target: str = "auto", *, where: Callable[[int], str] = lambda row: f"row {row + 1}",
    flag: str = "--target",
) -> Reading:
    """Tells classes from numbers.

    Args:
        labels: Label of each row, as written.
        target: ``class``, ``number``, or ``auto``: numbers are numbers, but few whole numbers are classes.
        where: Row number (from 0) -> how messages name that row.
        flag: Option by which the user decides instead, for messages.

    Raises:
        UserError: Numbers with an odd value among them (censored, with a unit, infinite, with separators of thousands
            or with commas that may be either): names the value and its row.
    """
    values = ["" if is_missing(label) else _with_minus(label.strip()) for label in labels]
    unlabelled = values.count("")
    notes: list[str] = []
    if unlabelled:
        words = Counter(label.strip() or "(empty)" for label, value in zip(labels, values, strict=True) if not value)
        shown = ", ".join(f"{word!r} x{count}" if word != "(empty)" else f"empty x{count}" for word, count in
                          words.most_common(4))
        notes.append(
            f"{unlabelled} of {len(values)} labels say that there is none ({shown}): these rows are unlabelled."
        )
    if target == "class":
        values = _without_point(values, notes)
        return Reading("class", values, f"classes, because {flag} class was chosen", tuple(notes), unlabelled)
    present = Counter(value for value in values if value)
    parsed = {value: number(value) for value in present}
    plain = sum(count for value, count in present.items() if parsed[value] is not None)
    total = sum(present.values())
    odd = [value for value in present if parsed[value] is None]
    if odd and _mostly_numbers(present, parsed, plain, total, target):
        if _decimal_commas(odd, [value for value in present if parsed[value] is not None], values, where):
            values = [value if number(value) is not None or not value else value.replace(",", ".") for value in values]
            count = sum(present[value] for value in odd)
            notes.append(f"{count} numbers are written with a decimal comma, as in {odd[0]!r}.")
            return Reading("number", values, "numbers (with decimal commas)", tuple(notes), unlabelled)
        first = next(row for row, value in enumerate(values) if value in odd)
        raise _odd_value(values[first], len(odd), plain, total, where(first), flag, target)
    if target == "number":
        return Reading("number", values, f"numbers, because {flag} number was chosen", tuple(notes), unlabelled)
    if odd or not present:
        why = f"{len(present)} classes, because the labels are words"
        return Reading("class", values, why, tuple(notes), unlabelled)
    distinct = len(set(parsed.values()))
    if not all(map(whole, present)):
        why = f"numbers, because not all are whole ({distinct} different ones; {flag} class takes them as classes)"
        return Reading("number", values, why, tuple(notes), unlabelled)
    if _counts_classes({int(value) for value in parsed.values() if value is not None}, total):
        values = _without_point(values, notes)
        why = f"{distinct} classes, because the labels are few whole numbers ({flag} number takes them as numbers)"
        return Reading("class", values, why, tuple(notes), unlabelled)
    why = f"numbers, because {total} rows have {distinct} different whole ones ({flag} class takes them as classes)"
    return Reading("number", values, why, tuple(notes), unlabelled)


def _with_minus(text: str) -> str:
    """A number with the minus sign of text editors written as all others."""
    return text.translate(_MINUS) if text and text[0] in "\u2212\u2013" and number(text) is not None else text


def _counts_classes(distinct: set[int], rows: int) -> bool:
    """Whether whole numbers name classes: few of them, or numbered without a gap, each several times."""
    count = len(distinct)
    if count <= 5:
        return True
    if count <= FEW_CLASSES:
        return 2 * count <= rows
    numbered = min(distinct) in (0, 1) and max(distinct) - min(distinct) == count - 1
    return numbered and 5 * count <= rows


def _mostly_numbers(
    present: Counter[str], parsed: dict[str, float | None], plain: int, total: int, target: str
) -> bool:
    """Whether labels that are not all numbers are meant as numbers."""
    if target == "number":
        return True
    strange = [value for value, as_number in parsed.items() if as_number is None]
    alike = plain + sum(present[value] for value in strange if _numeric(value))
    if alike < 0.5 * total or (not any(map(_numeric, strange)) and plain < 0.5 * total):
        return False
    real = {value for value, as_number in parsed.items() if as_number is not None}
    if real and (
        not all(map(whole, real)) or not _counts_classes({int(float(_with_minus(value))) for value in real}, plain)
    ):
        return True
    # 12 nM, 1,5, >100: as numbers only if they are as many different ones as numbers are
    return alike > 0.9 * total and len(present) > max(4, total // 4)


def _numeric(value: str) -> bool:
    return any(
        pattern.fullmatch(value) for pattern in (_DECIMAL_COMMA, _THOUSANDS, _CENSORED, _UNIT, _INFINITE, _RANGE)
    )


def _decimal_commas(
    odd: Sequence[str], plain: Sequence[str], values: Sequence[str], where: Callable[[int], str]
) -> bool:
    """Whether all that is no number has a decimal comma.

    Raises:
        UserError: The commas may part thousands, too.
    """
    matches = [match for value in odd if (match := _DECIMAL_COMMA.fullmatch(value))]
    if len(matches) < len(odd) or any("." in value for value in plain):
        return False
    if any(len(match[3]) != 3 or match[2].startswith("0") or len(match[2]) > 3 for match in matches):
        return True
    first = next(row for row, value in enumerate(values) if value in set(odd))
    raise UserError(
        f"The label {values[first]!r} may have a decimal comma or a comma between thousands", where=where(first),
        fix="Write numbers with a decimal point and nothing between thousands",
    )


def _odd_value(value: str, odd: int, plain: int, total: int, where: str, flag: str, target: str) -> UserError:
    shown = value if len(value) <= _LONGEST_SHOWN else value[:_LONGEST_SHOWN] + "…"
    fix = "Write a number, or leave the label empty"
    if _INFINITE.fullmatch(value) or (_NUMBER.fullmatch(value) and number(value) is None):
        what, fix = "is infinite", "Leave the label empty, or write a finite number"
    elif _THOUSANDS.fullmatch(value):
        what, fix = "has a separator between thousands", "Write it without, with a decimal point"
    elif _DECIMAL_COMMA.fullmatch(value):
        what, fix = "has a decimal comma where other labels have a point", "Write all numbers with a decimal point"
    elif _CENSORED.fullmatch(value):
        what, fix = "is a bound, not a number", "Write the number, or leave the label empty"
    elif _UNIT.fullmatch(value):
        what, fix = "has a unit", "Write the number alone"
    else:
        what = "is no number"
    others = "" if target == "number" and not plain else f", but {plain} of {total} labels are numbers"
    more = f" (and {odd - 1} other such values)" if odd > 1 else ""
    choice = f", or choose {flag} class" if target == "auto" else f", or choose {flag} class if these are classes"
    return UserError(f"The label {shown!r} {what}{others}{more}", where=where, fix=fix + choice)


def _without_point(values: list[str], notes: list[str]) -> list[str]:
    """Whole numbers that pandas wrote as ``0.0`` and ``1.0`` named as they are."""
    present = {value for value in values if value}
    if not present or not any("." in value for value in present) or not all(map(whole, present)):
        return values
    example = next(value for value in values if "." in value)
    notes.append(f"Classes are written as {example!r} and are named without the point, as in {_named(example)!r}.")
    return [_named(value) if value else "" for value in values]


def _named(value: str) -> str:
    return str(int(float(value)))


# --------------------------------------------------------------------------------------------------------------- lists


def is_list(label: str) -> bool:
    """Whether a label stands in brackets, as Python, NumPy and JSON write lists."""
    return _inside(label.strip()) is not None


def _inside(text: str) -> str | None:
    """What stands in the brackets of a list; None where there is no list in brackets."""
    if text[-1:] not in ("]", ")", "}"):
        return None
    if called := _CALL.fullmatch(text):
        text = called[1].strip()
        text = text[: text.rfind("]") + 1] or text  # what follows is the type of the numbers
    match = _BRACKETS.fullmatch(text)
    if match is None:
        return None
    inside = next(group for group in match.groups() if group is not None).strip()
    parted = any(mark in inside for mark in ",;") or any(map(str.isspace, inside))
    return inside if parted or re.fullmatch(r"\[[^\[\](){}]*\]", text) else None


def residue_labels(label: str) -> list[str]:
    """The labels of the residues, empty where there is none: a list (in brackets or not, its items parted by commas,
    semicolons or blanks), else one character a residue.

    Raises:
        UserError: A list was cut by the program that wrote it (``...``).
    """
    text = label.strip()
    inside = _inside(text)
    text = text if inside is None else inside
    if "," not in text and ";" not in text and inside is None and not any(map(str.isspace, text)):
        return list(text)
    if "..." in text or "…" in text:
        shown = label if len(label) <= 40 else label[:40] + "…"
        raise UserError(
            f"The list of labels {shown!r} was cut by the program that wrote it: '...' stands in it",
            fix="Write all its items (in NumPy, numpy.set_printoptions(threshold=sys.maxsize), or .tolist())",
        )
    mark = ";" if ";" in text else "," if "," in text else None
    items = [item.strip().strip("'\"") for item in (text.split(mark) if mark else text.split())]
    if inside is not None and mark and items and items[-1] == "":
        items.pop()  # Python's comma after the last item
    return ["" if is_missing(item) else item for item in items]


def joined_labels(labels: Iterable[str], string: bool = True) -> str:
    """Labels of residues as the dataset table holds them: characters where all are one letter (unless ``string`` is
    False), else a comma list."""
    items = list(labels)
    if string and all(len(item) <= 1 and item not in tuple(",;[](){}") and not item.isspace() for item in items):
        return "".join(item or "-" for item in items)
    return ",".join(items) if len(items) > 1 else f"[{','.join(items)}]"


# ------------------------------------------------------------------------------------------------------------- classes

_NEGATIVE_WORDS = frozenset(
    ("0", "-1", "no", "false", "neg", "negative", "negatives", "none", "control", "other", "others",
     "background", "inactive", "absent", "decoy", "rest", "off", "-", "unmodified", "nonfunctional")
)
_POSITIVE_WORDS = frozenset(
    ("1", "yes", "true", "pos", "positive", "positives", "active", "present", "on", "+", "modified")
)
_LETTERS = {("n", "y"), ("f", "t"), ("n", "p"), ("-", "+")}
_NEGATED = re.compile(r"(?:[Nn][Oo][Nn]|[Nn]ot|[Nn]eg|[Nn]egative|[Nn]o|NOT|NEG|NO)(?:[\s_-]+\w|(?<=[a-z])[A-Z0-9])")
_NEGATION = re.compile(r"(?:non|not|no|neg|negative|un|in|without|de)[\s_-]*", re.IGNORECASE)


def positive_last(first: str, second: str) -> tuple[str, str]:
    """Two class names with the positive one last, by how people name them; else in the order given.

    ``nonAMP`` is the negative of ``AMP``, ``no`` of ``yes``, ``control`` of anything.
    """
    if whole(first) and whole(second) and {int(float(first)), int(float(second))} not in ({0, 1}, {-1, 1}):
        return first, second
    letters = (second.strip().lower(), first.strip().lower())
    if letters in _LETTERS:
        return second, first
    marks = [_negative(first, second), _negative(second, first)]
    return (second, first) if marks[1] > marks[0] else (first, second)


def _negative(name: str, other: str) -> int:
    """How surely a name is the negative of another: 2, 1, 0, or -1 for a positive word."""
    low, high = name.strip().lower(), other.strip().lower()
    match = _NEGATION.match(low)
    rest = low[match.end() :] if match else ""
    if rest and (rest == high or rest == high.removeprefix("pos_").removeprefix("positive_")):
        return 2
    if low in _NEGATIVE_WORDS:
        return 1
    if low in _POSITIVE_WORDS:
        return -1
    return 1 if _NEGATED.match(name.strip()) else 0


_SEVERAL = re.compile(r"\s*[;,|]\s*")


def several_at_once(labels: Iterable[str]) -> dict[str, int]:
    """Class names that look like several classes (``Nucleus;Cytoplasm``), with how often they come.

    A name counts if it is parted by ``;``, ``,`` or ``|`` and one of its parts is a class by itself, or is part of
    another such name.
    """
    counts = Counter(labels)
    parted = {name: parts for name in counts if len(parts := _SEVERAL.split(name.strip())) > 1 and all(parts)}
    uses = Counter(part for parts in parted.values() for part in set(parts))
    return {
        name: counts[name] for name, parts in parted.items() if any(part in counts or uses[part] > 1 for part in parts)
    }


def told_several(labels: Iterable[str]) -> str:
    """A sentence about labels that look like several classes; empty if there are none."""
    names = several_at_once(labels)
    if not names:
        return ""
    example = max(names, key=lambda name: (names[name], name))
    return (
        f"{sum(names.values())} labels name several classes, such as {example!r}: several labels a protein are not "
        "supported, so each combination is a class of its own."
    )
