"""The sequence members of a bundle with the training rows that they compare with, in two files and the manifest.

``sequence_members.safetensors`` holds the members' arrays (``0.weight``, ``1.dual``, ...) and the training rows: their
letters end to end (``letters`` uint8), where each begins (``offsets``), and ``target``. ``sequence_members.json`` holds
their ids and labels, and texts with the answers expected, by which members prove themselves. If training data must not
travel there are no rows, and no member that compares.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plm.errors import UserError
from plm.model.members.features import GAP, RESIDUES, VIEWS, window_text
from plm.model.members.fitted import (
    FittedMember,
    Floats,
    KernelMember,
    LinearMember,
    NeighbourMember,
    Told,
    ask,
)
from plm.received import tensors
from plm.received.documents import cleaned, read_json
from plm.received.fields import Fields

ARRAYS, NAMES = "sequence_members.safetensors", "sequence_members.json"
MOST_ROWS = 20_000
"""Training rows of sequence members; of more a random sample."""
_MOST_SETTING = 1e6
_AGAIN = "Give the bundle as the suite wrote it"
_TOLERANCE = 1e-4
_TESTS = 6


@dataclass(frozen=True)
class MemberRows:
    """Training rows that members compare with.

    Attributes:
        ids: (N,) ids, at site level with ``:position`` behind.
        labels: (N,) labels as the user wrote them.
        texts: (N,) windows of one width, or whole sequences.
        target: (N,) class numbers or numbers.
    """

    ids: Sequence[str]
    labels: Sequence[str]
    texts: Sequence[str]
    target: NDArray[Any]


@dataclass
class SequenceMembers:
    """Fitted sequence members, ready to answer.

    Attributes:
        members: One of each kind.
        rows: Training rows, where a member compares; else None.
        width: Residues of the window around a site or residue; 0: whole sequences.
        length: Of whole sequences that all have one length, that length; else 0.
    """

    members: tuple[FittedMember, ...]
    rows: MemberRows | None
    width: int
    length: int = 0
    _seen: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(member.name for member in self.members)

    def only(self, names: Sequence[str]) -> SequenceMembers:
        """The members of these names; without training rows if none of them compares."""
        kept = tuple(member for member in self.members if member.name in names)
        rows = self.rows if any(member.compares for member in kept) else None
        return SequenceMembers(kept, rows, self.width, self.length)

    def texts(self, sequences: Sequence[str], positions: Sequence[int] | None = None) -> list[str]:
        """What members see of sequences, or of 0-based sites in them; of whole sequences without sites each residue is
        a site where members see windows."""
        if not self.width:
            if not self.length:
                return list(sequences)
            return [text[: self.length].ljust(self.length, GAP) for text in sequences]
        if positions is None:
            half = self.width // 2
            texts = []
            for sequence in sequences:
                padded = GAP * half + sequence + GAP * half
                texts += [padded[at : at + self.width] for at in range(len(sequence))]
            return texts
        return [window_text(text, at, self.width) for text, at in zip(sequences, positions, strict=True)]

    def ask(self, texts: Sequence[str]) -> Told:
        """What each member says of :meth:`texts`."""
        return ask(self.members, texts, self.rows.texts if self.rows is not None else (), self._seen)

    def answers(self, told: Told) -> dict[str, Floats]:
        """By name (N, K) probabilities or (N, 1) numbers."""
        return {
            name: values if values.ndim == 2 else values[:, None]
            for name, values in zip(self.names, told.answers, strict=True)
        }

    def unlike_in_length(self, sequences: Sequence[str]) -> int:
        """How many whole sequences are of another length than all training sequences had."""
        return sum(len(text) != self.length for text in sequences) if self.length else 0

    # ---------------------------------------------------------------------------------------------------- to and from

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        members = [
            {"kind": one.kind, "name": one.name, "view": one.view, "setting": dict(one.setting)}
            for one in self.members
        ]
        rows = 0 if self.rows is None else len(self.rows.ids)
        return {"members": members, "width": self.width, "length": self.length, "rows": rows}

    def write(self, folder: Path) -> None:
        """Writes both files; equal content gives equal bytes."""
        from safetensors.numpy import save_file

        arrays: dict[str, NDArray[Any]] = {}
        for number, member in enumerate(self.members):
            arrays |= {f"{number}.{name}": np.ascontiguousarray(array) for name, array in member.arrays().items()}
        names: dict[str, Any] = {"ids": [], "labels": []}
        if self.rows is not None:
            together = "".join(self.rows.texts).encode("ascii")
            arrays["letters"] = np.frombuffer(together, np.uint8).copy()
            arrays["offsets"] = np.cumsum([0, *map(len, self.rows.texts)]).astype(np.int64)
            arrays["target"] = np.ascontiguousarray(self.rows.target)
            names = {"ids": list(self.rows.ids), "labels": list(self.rows.labels)}
        tests = self.made_up()
        names["tests"] = tests
        names["expected"] = [np.asarray(values, np.float64).reshape(-1).tolist() for values in self.ask(tests).answers]
        save_file(arrays, folder / ARRAYS)
        (folder / NAMES).write_text(
            json.dumps(names, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8"
        )

    def made_up(self) -> list[str]:
        """Made-up texts on which members prove themselves; always the same for a length."""
        generator = np.random.default_rng(20261130)
        length = self.width or self.length
        return ["".join(generator.choice(list(RESIDUES + "X"), length or 20 + 30 * n)) for n in range(_TESTS)]


def read_members(folder: Path, manifest: dict[str, Any], classes: int, where: str) -> SequenceMembers:
    """The sequence members of an unpacked bundle, which prove themselves.

    Args:
        folder: The unpacked bundle.
        manifest: What :meth:`SequenceMembers.to_json` wrote, checked by type and range.
        classes: K, or 0 for numbers.
        where: The bundle in messages.

    Raises:
        UserError: Files that are missing or do not fit each other, or answers that are not those stored.
    """
    arrays = tensors.load_numpy(folder / ARRAYS, where=where, fix=_AGAIN)
    try:
        names = Fields(cleaned(read_json(folder / NAMES, where=where, fix=_AGAIN)), NAMES, where, _AGAIN)
        width, length = int(manifest["width"]), int(manifest["length"])
        rows = _rows(arrays, names, int(manifest["rows"]), classes, width or length)
        members = tuple(
            _member(number, one, arrays, rows, classes, width or length)
            for number, one in enumerate(manifest["members"])
        )
        whole = SequenceMembers(members, rows, width, length)
        tests = names.texts("tests", most=100, longest=100_000)
        if any(not text.isascii() or ((width or length) and len(text) != (width or length)) for text in tests):
            raise ValueError("the texts of the self-test do not fit")
        expected = names.content.get("expected")
        answers = whole.ask(tests).answers
        if not isinstance(expected, list) or len(expected) != len(answers):
            raise ValueError("the self-test has no answers")
        worst = 0.0
        for values, stored in zip(answers, expected, strict=True):
            wanted = np.asarray(stored, np.float64)
            if wanted.shape != (values.size,) or not np.isfinite(wanted).all():
                raise ValueError("the answers of the self-test do not fit")
            size = 1.0 if classes else max(1.0, float(np.abs(wanted).max()))
            worst = max(worst, float(np.abs(values.reshape(-1) - wanted).max(initial=0)) / size)
    except UserError:
        raise
    except (KeyError, ValueError, TypeError, IndexError, OverflowError, MemoryError, AttributeError) as error:
        raise UserError(
            f"The bundle's sequence members do not fit each other ({str(error)[:150]})", where=where, fix=_AGAIN
        ) from error
    if not worst <= _TOLERANCE:
        raise UserError(
            f"The bundle's sequence members fail their self-test: their answers are {worst:.3g} from those stored",
            where=where, fix=_AGAIN,
        )
    return whole


def _rows(
    arrays: dict[str, NDArray[Any]], names: Fields, count: int, classes: int, length: int
) -> MemberRows | None:
    if not count:
        return None
    offsets, letters, target = arrays["offsets"], arrays["letters"], arrays["target"]
    ids, labels = names.texts("ids"), names.texts("labels")
    if not len(ids) == len(labels) == len(target) == len(offsets) - 1 == count or count > MOST_ROWS:
        raise ValueError("the training rows differ in number")
    if letters.dtype != np.uint8 or offsets.dtype.kind != "i" or offsets[0] != 0 or offsets[-1] != len(letters):
        raise ValueError("the training rows are no letters")
    if (np.diff(offsets) < 0).any() or (length and (np.diff(offsets) != length).any()):
        raise ValueError("the training rows are of another length")
    known = np.frombuffer((RESIDUES + "X" + GAP + "BJOUZ").encode(), np.uint8)
    if not np.isin(letters, known).all():
        raise ValueError("the training rows hold what is no residue")
    if classes and (target.dtype.kind != "i" or (target < 0).any() or (target >= classes).any()):
        raise ValueError("the training rows are of unknown classes")
    if not np.isfinite(target.astype(np.float64)).all():
        raise ValueError("the training rows have labels that are no numbers")
    together = letters.tobytes().decode("ascii")
    texts = [together[start:end] for start, end in itertools.pairwise(offsets.tolist())]
    return MemberRows(ids, labels, texts, target)


_WIDTHS = {"composition": 20, "dipeptides": 400}


def _member(
    number: int, about: dict[str, Any], arrays: dict[str, NDArray[Any]], rows: MemberRows | None, classes: int,
    length: int,
) -> FittedMember:
    kind, name, view, setting = about["kind"], str(about["name"]), str(about["view"]), dict(about["setting"])
    if view not in VIEWS or (view == "one-hot" and not length):
        raise ValueError(f"a member sees {view!r}")
    if any(not isinstance(value, (bool, int, float)) or not abs(value) <= _MOST_SETTING for value in setting.values()):
        raise ValueError("a member's settings are no numbers")
    own = {key.partition(".")[2]: array for key, array in arrays.items() if key.startswith(f"{number}.")}
    for key, array in own.items():
        if array.dtype.kind not in "fi" or not np.isfinite(array.astype(np.float64)).all():
            raise ValueError(f"{key} of {name} is no array of numbers")
    outputs = 1 if classes < 3 else classes
    if kind == "linear":
        if view not in (*_WIDTHS, "one-hot"):
            raise ValueError(f"a linear member sees {view!r}")
        wanted = (outputs, _WIDTHS.get(view, 20 * length))
        if own["weight"].shape != wanted or own["bias"].shape != (outputs,):
            raise ValueError(f"{name} has weights of the shape {own['weight'].shape}, not {wanted}")
        return LinearMember(name, view, classes, setting, own["weight"], own["bias"])
    if rows is None:
        raise ValueError(f"{name} compares with training rows, and there are none")
    if kind == "neighbours":
        if not 1 <= int(setting["k"]) <= MOST_ROWS or not 0 < setting.get("power", 1) <= 100:
            raise ValueError(f"{name} asks {setting['k']} neighbours")
        return NeighbourMember(name, view, classes, setting, rows.target)
    if kind != "kernel":
        raise ValueError(f"a member is of the kind {str(kind)[:40]!r}, which this version does not know")
    places, dual = own["places"], own["dual"]
    if places.ndim != 1 or places.dtype.kind != "i" or (places < 0).any() or (places >= len(rows.ids)).any():
        raise ValueError(f"{name} names training rows that are not there")
    if dual.shape != (len(places), outputs) or own["bias"].shape != (outputs,) or not 0 < setting["gamma"] <= 1e5:
        raise ValueError(f"{name} has coefficients of the shape {dual.shape}")
    return KernelMember(name, view, classes, setting, places, dual, own["bias"])
