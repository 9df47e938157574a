"""One FASTA file into several of consecutive records, as evenly as whole records allow; no byte is changed."""

from __future__ import annotations

import io
from array import array
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from plm.data.text_files import open_bytes, open_text, whole_stream
from plm.errors import UserError

MOST_PARTS = 9999
"""More than Galaxy shows in a collection; part names with four digits sort as they count."""


@dataclass(frozen=True)
class FastaSurvey:
    """What a FASTA file holds.

    Attributes:
        residues: ``(N,) int64``: characters of each record's sequence that are no white space.
        repeated: The first id that comes again and the 1-based numbers of both records; None if all differ.
        repeats: Records whose id came before.
    """

    residues: np.ndarray
    repeated: tuple[str, int, int] | None
    repeats: int


@dataclass(frozen=True)
class FastaPart:
    """Consecutive records.

    Attributes:
        name: ``part_0001``, ``part_0002``, ...
        start: 0-based first record.
        stop: 0-based end.
        residues: Residues of all of them.
        longest: Residues of the longest sequence.
    """

    name: str
    start: int
    stop: int
    residues: int
    longest: int


def survey(path: Path) -> FastaSurvey:
    """Counts the residues of every record; memory is 16 bytes a record.

    Raises:
        UserError: Missing, empty, broken or non-FASTA file, or a header without an id: with its line.
    """
    residues, hashes = array("q"), array("q")
    for header, lines in _records(path):
        residues.append(sum(len("".join(line.split())) for line in lines))
        hashes.append(hash(header.split(None, 1)[0]))
    repeated, repeats = _repeated(path, np.frombuffer(hashes, np.int64))
    return FastaSurvey(np.frombuffer(residues, np.int64), repeated, repeats)


def _repeated(path: Path, hashes: np.ndarray) -> tuple[tuple[str, int, int] | None, int]:
    order = np.argsort(hashes, kind="stable")
    again = order[1:][np.diff(hashes[order]) == 0]
    if not len(again):
        return None, 0
    wanted = set(hashes[again].tolist())
    seen: dict[str, int] = {}
    first: tuple[str, int, int] | None = None
    repeats = 0
    for number, (header, _) in enumerate(_records(path), start=1):  # equal hashes need not be equal ids
        identifier = header.split(None, 1)[0]
        if hash(identifier) in wanted and seen.setdefault(identifier, number) != number:
            first = first or (identifier, seen[identifier], number)
            repeats += 1
    return first, repeats


def parts_of(residues: np.ndarray, count: int) -> list[FastaPart]:
    """Consecutive records in ``count`` parts (fewer only if there are fewer records).

    The fullest part is as small as any division into consecutive records allows; below that limit each part takes its
    share of what is left.

    Args:
        residues: ``(N,)`` residues of each record, N at least 1.
        count: Number of parts wanted.
    """
    total = len(residues)
    count = min(count, total)
    # An empty record still is a record: it must not make a part with nothing else look free.
    before = np.concatenate([[0], np.cumsum(np.maximum(residues, 1))])
    limit = _smallest_limit(before, count)
    # latest[m]: smallest first record from which the rest fits into m parts.
    latest = [total]
    for _ in range(count):
        latest.append(int(np.searchsorted(before, before[latest[-1]] - limit, side="left")))
    parts: list[FastaPart] = []
    start = 0
    for left in range(count, 0, -1):
        low = max(start + 1, latest[left - 1])
        high = min(total - (left - 1), int(np.searchsorted(before, before[start] + limit, side="right")) - 1)
        share = before[start] + (before[-1] - before[start]) / left
        stop = int(np.searchsorted(before, share))
        if stop > start + 1 and share - before[stop - 1] < before[min(stop, total)] - share:
            stop -= 1
        stop = total if left == 1 else min(max(stop, low), high)
        held = residues[start:stop]
        parts.append(FastaPart(f"part_{len(parts) + 1:04d}", start, stop, int(held.sum()), int(held.max())))
        start = stop
    return parts


def parts_up_to(residues: np.ndarray, most: int) -> list[FastaPart]:
    """As few parts as possible of at most ``most`` residues; a longer record is a part of its own.

    Raises:
        UserError: There would be more than ``MOST_PARTS`` parts.
    """
    before = np.concatenate([[0], np.cumsum(np.maximum(residues, 1))])
    count = _needed(before, max(most, 1))
    if count > MOST_PARTS:
        raise UserError(
            f"Parts of {most} residues would be {count} files; at most {MOST_PARTS} are made", where="--max-residues",
            fix=f"Choose at least {-(-int(before[-1]) // MOST_PARTS) * 2}",
        )
    if (residues <= most).all():
        return parts_of(residues, count)
    # A long record is alone; what lies between two of them is divided evenly.
    parts: list[FastaPart] = []
    long = np.flatnonzero(residues > most).tolist()
    for begin, end in zip([-1, *long], [*long, len(residues)], strict=True):
        stretch = [(begin + 1, end)] if begin + 1 < end else []
        for start, stop in stretch:
            inner = np.concatenate([[0], np.cumsum(np.maximum(residues[start:stop], 1))])
            for part in parts_of(residues[start:stop], _needed(inner, most)):
                parts.append(_renamed(part, len(parts), start))
        if end < len(residues):
            alone = int(residues[end])
            parts.append(FastaPart(f"part_{len(parts) + 1:04d}", end, end + 1, alone, alone))
    return parts


def _renamed(part: FastaPart, index: int, offset: int) -> FastaPart:
    return FastaPart(f"part_{index + 1:04d}", part.start + offset, part.stop + offset, part.residues, part.longest)


def _smallest_limit(before: np.ndarray, count: int) -> int:
    """The smallest fullest part over all divisions into ``count`` parts."""
    low = max(int(np.diff(before).max()), -(-int(before[-1]) // count))
    high = int(before[-1])
    while low < high:
        middle = (low + high) // 2
        if _needed(before, middle) <= count:
            high = middle
        else:
            low = middle + 1
    return low


def _needed(before: np.ndarray, limit: int) -> int:
    """Parts needed when each is filled up to ``limit``; a record beyond it is alone."""
    start = parts = 0
    while start < len(before) - 1:
        start = max(start + 1, int(np.searchsorted(before, before[start] + limit, side="right")) - 1)
        parts += 1
    return parts


def write_parts(
    path: Path, parts: list[FastaPart], folder: Path, written: Callable[[int], None]
) -> list[tuple[str, str]]:
    """Writes ``folder/<name>.fasta`` for every part.

    Args:
        path: The FASTA file, plain or gzipped.
        parts: Parts that together hold all the records.
        folder: Folder to write into; it exists.
        written: Called with the number of records after each part.

    Returns:
        First and last id of each part.
    """
    ends: list[tuple[str, str]] = []
    records = _records(path, headers=True)
    with ExitStack() as stack:
        for part in parts:
            first = last = ""
            handle = stack.enter_context((folder / f"{part.name}.fasta").open("w", encoding="latin-1", newline=""))
            for number in range(part.start, part.stop):
                header, lines = next(records)
                handle.writelines(lines)
                last = header.split(None, 1)[0]
                first = last if number == part.start else first
            handle.close()
            ends.append((first, last))
            written(part.stop - part.start)
    return ends


def _records(path: Path, headers: bool = False) -> Iterator[tuple[str, Iterator[str]]]:
    """(header without ``>``, lines with their ends, of the sequence or with ``headers`` of all) of each record.

    Lines must be taken before the next record. White space before the first header belongs to the first record.
    """
    lines = _lines(path)
    opening: list[str] = []
    for number, line in lines:
        text = line.removeprefix("\xef\xbb\xbf") if number == 1 else line
        opening.append(line)
        if text.startswith(">"):
            break
        if text.strip():
            shown = text.strip()[:40]
            raise UserError(
                f"This is not FASTA: the first line must start with '>' but reads {shown!r}",
                where=f"{path.name}, line {number}", fix="Give a FASTA file",
            )
    else:
        raise UserError("The file holds no record", where=path.name, fix="Give a file with at least one record")
    waiting: list[tuple[int, str]] = [(number, text)]

    def body(first: list[str]) -> Iterator[str]:
        if headers:
            yield from first
        for number, line in lines:
            if line.startswith(">"):
                waiting.append((number, line))
                return
            yield line

    while waiting:
        number, text = waiting.pop()
        if not text[1:].strip():
            raise UserError("A header without an id", where=f"{path.name}, line {number}", fix="Put a name after '>'")
        rest = body(opening)
        yield text[1:].strip(), rest
        for _ in rest:  # what the caller did not take
            pass
        opening = [waiting[0][1]] if waiting else []


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(1-based number, line with its end as it stands in the file) with bytes as Latin-1."""
    open_text(path).close()  # says what is wrong with a file that is missing, empty or packed in another way
    number = 0
    with whole_stream(path.name, lambda: number), open_bytes(path) as binary:
        for number, line in enumerate(io.TextIOWrapper(io.BufferedReader(binary), "latin-1", newline=""), start=1):
            yield number, line
