"""Flags of the stages: each is declared once, with its type, range, default and help, and shared in groups.

A stage's arguments are a class whose fields are flags; the field ``batch_tokens`` is the flag ``--batch-tokens``::

    class Arguments(flags.Device):
        input: Path = flags.source("proteins", required=True)
        steps: int = flags.whole(1000, "optimiser steps", 1, 10**8)

    args = flags.read(Arguments, NAME, __doc__, argv)

Its own flags stand first in ``--help``, then those of its groups. Nothing here imports a heavy library.
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from plm import stage
from plm.errors import UserError

S = TypeVar("S")
WRITTEN = (stage.output_file, stage.output_folder)
"""Kinds of the flags that name what is written."""
EMBEDDING_FORMATS = ("hdf5", "hdf5-uniprot", "npz", "parquet", "tabular")


@dataclass(frozen=True)
class Flag:
    """One flag as the command line, the checks and the forms' test see it."""

    help: str | None
    kind: Any = None
    """What makes the value of its text: int, float, Path, ...; None takes the text, bool makes a switch."""
    default: Any = None
    required: bool = False
    choices: tuple[str, ...] | None = None
    words: tuple[str, ...] = ()
    """What a list with commas may be made of, each once."""
    low: float | None = None
    high: float | None = None
    inside: bool = False
    """Whether the value must lie between ``low`` and ``high``, not on them."""
    below: bool = False
    """Whether the value must lie below ``high``, not on it."""
    or_zero: bool = False
    """Whether 0 is allowed beside the range; it then stands for no limit or for a choice by the stage."""
    wrong: str = ""
    """What is said of a value out of range; ``{}`` is the value."""
    fix: str = ""
    several: bool = False
    """Whether it takes one or more values."""
    again: bool = False
    """Whether it is given again for each value."""
    metavar: str | None = None

    def holds(self, value: Any) -> bool:
        """Whether a number is in range; what is left out is."""
        if value is None or (self.or_zero and value == 0):
            return True
        low, high = self.low, self.high
        above = low is None or value > low or (value == low and not self.inside)
        return above and (high is None or value < high or (value == high and not (self.inside or self.below)))

    def check(self, name: str, value: Any) -> None:
        """Raises a UserError that names the flag if a number is out of range or a list has other words."""
        if self.words:
            given = parts(value)
            # One word for each comma: a list that ends in one is a mistake.
            if not set(given) <= set(self.words) or not len(set(given)) == len(given) == value.count(",") + 1:
                what = self.wrong or f"{value!r} are not some of {', '.join(self.words)}, each once"
                raise UserError(what, where=name, fix=self.fix or f"Give e.g. {','.join(self.words[:2])}")
        if self.kind in (int, float) and not self.holds(value):
            what = (self.wrong or "{} is out of range").format(_shown(value))
            raise UserError(what, where=name, fix=self.fix or f"Choose {self._range()}")

    def _range(self) -> str:
        low, high = (None if end is None else _shown(end) for end in (self.low, self.high))
        if high is None:
            told = f"more than {low}" if self.inside else f"{low} or more"
        elif self.inside:
            told = f"between {low} and {high}"
        else:
            told = f"{low} to {'below ' if self.below else ''}{high}"
        return told + (", or 0" if self.or_zero else "")

    def add_to(self, group: argparse._ActionsContainer, name: str) -> None:
        """Declares the flag to argparse."""
        options: dict[str, Any] = {"help": self.help}
        if self.kind is bool:
            group.add_argument(name, action="store_true", **options)
            return
        if self.several or self.again:
            options["action"] = "extend" if self.several and self.again else "append" if self.again else "store"
            options["nargs"] = "+" if self.several else None
        for key in ("choices", "metavar"):
            if getattr(self, key) is not None:
                options[key] = getattr(self, key)
        group.add_argument(name, type=self.kind, required=self.required, default=self.initial(), **options)

    def initial(self) -> Any:
        """The value without the flag."""
        return None if self.required else [] if self.again else self.default


def _shown(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def whole(default: int | None, told: str | None, low: int | None = None, high: int | None = None, **more: Any) -> Any:
    """A whole number.

    Args:
        default: Value without the flag; None leaves it open.
        told: Its help.
        low: Smallest value, if there is one.
        high: Largest value, if there is one.
        more: Further fields of :class:`Flag`.
    """
    return Flag(told, int, default, low=low, high=high, **more)


def number(
    default: float | None, told: str | None, low: float | None = None, high: float | None = None, **more: Any
) -> Any:
    """A number, whole or not; arguments as for :func:`whole`."""
    return Flag(told, float, default, low=low, high=high, **more)


def share(default: float | None, told: str, example: float) -> Any:
    """A share above 0 and below 1; ``example`` shows how to write one."""
    fix = f"Give e.g. {example:g} for {100 * example:g} %"
    return number(default, told, 0, 1, inside=True, wrong="{} is no share between 0 and 1", fix=fix)


def text(told: str | None, default: str | None = "", **more: Any) -> Any:
    """A text; ``more`` as in :class:`Flag`."""
    return Flag(told, default=default, **more)


def choice(choices: Sequence[str], told: str | None, default: str | None = "", **more: Any) -> Any:
    """One of several words, by default the first; ``default=None`` leaves it open."""
    return Flag(told, choices=tuple(choices), default=choices[0] if default == "" else default, **more)


def words(of: Sequence[str], told: str, default: str, **more: Any) -> Any:
    """Some of several words, separated by commas; :func:`parts` takes them apart."""
    return Flag(told, default=default, words=tuple(of), **more)


def parts(given: str) -> tuple[str, ...]:
    """The words between commas."""
    return tuple(word.strip() for word in given.split(",") if word.strip())


def switch(told: str | None) -> Any:
    """A flag without a value."""
    return Flag(told, bool, False)


def source(told: str | None, **more: Any) -> Any:
    """A file or folder that is read."""
    return Flag(told, Path, **more)


def output(told: str | None, *, required: bool = False) -> Any:
    """A file that is written."""
    return Flag(told, stage.output_file, required=required)


def output_folder(told: str, *, required: bool = False) -> Any:
    """A folder that is written."""
    return Flag(told, stage.output_folder, required=required)


def like(group: type[Flags], name: str, **changes: Any) -> Any:
    """The flag of a group with another default or help, as in :class:`Flag`."""
    return replace(flags_of(group)[name], **changes)


def seed(told: str | None) -> Any:
    """A random seed."""
    return whole(42, told, 0, stage.LARGEST_SEED)


def resamples(told: str) -> Any:
    """How often rows are drawn again for an interval."""
    return whole(1000, told, 100, 100_000)


def duplicate_ids(told: str | None = "when an id comes again") -> Any:
    """What becomes of an id that was used before."""
    return choice(("error", "rename", "first"), told)


def report() -> Any:
    """The report."""
    return output("report in Galaxy's Markdown")


def status() -> Any:
    """The table in which nothing is lost."""
    return output("table of what became of each input record")


class Flags:
    """What every stage's arguments are made from; subclasses add flags and, in ``check``, what holds between them."""

    heading = ""
    """Under which ``--help`` shows the flags of the class."""

    def __init_subclass__(cls, heading: str = "") -> None:
        super().__init_subclass__()
        cls.heading = heading

    def __init__(self, **given: Any) -> None:
        for name, flag in flags_of(type(self)).items():
            self.__dict__[name] = given.pop(name, flag.initial())
            flag.check(spelled(name), self.__dict__[name])
        if given:
            raise TypeError(f"{type(self).__name__} has no flags {sorted(given)}")
        self.check()

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{name}: arguments stay as they were given")

    def into(self, settings: Callable[..., S], /, **more: Any) -> S:
        """Settings of the library: each field is the flag of its name, or one of ``more``.

        A flag that was left out and has no default of its own leaves the field at the settings' default.
        """
        given = {}
        for name, parameter in inspect.signature(settings).parameters.items():
            value = self.__dict__.get(name)
            if name in self.__dict__ and (value is not None or parameter.default is inspect.Parameter.empty):
                given[name] = value
        return settings(**given | more)

    def check(self) -> None:
        """Raises a UserError for flags that do not go together."""


class Reporting(Flags):
    """What is told of the work."""

    report: Path | None = report()
    html: Path | None = output(
        "the same report as one HTML file that stands alone, with those figures and tables inside that are written too"
    )

    def tells(self) -> bool:
        """Whether a report is wanted, in whatever form."""
        return self.report is not None or self.html is not None


class Device(Flags):
    """Where a model runs, and how."""

    device: str = text("auto, cpu or cuda", "auto")
    precision: str = choice(("auto", "fp32", "bf16"), "arithmetic of matrix products")


class Hub(Flags):
    """Whether a model may be fetched."""

    allow_hub: bool = switch("let --model hub:... use the network")


class Proteins(Flags):
    """What becomes of doubtful records."""

    duplicate_ids: str = duplicate_ids()
    nucleotides: str = choice(("reject", "keep"), "records that are clearly DNA or RNA")


class Embedding(Flags):
    """How proteins are encoded within what the machine has."""

    max_residues: int = whole(
        0, "longer proteins go in overlapping windows of this length (default: only what the memory does not hold)", 64,
        10**6, or_zero=True,
    )
    max_memory: int | None = whole(
        None, "MiB that the job may use on its processor or GPU (default: what there is)", 1,
        wrong="{} MiB is no memory", fix="Give it in MiB",
    )
    batch_tokens: int = whole(0, "residues encoded together (default: what suits the machine)", 64, 10**7, or_zero=True)
    work_dir: Path | None = source("folder for finished parts (default: PLM_CHECKPOINT_DIR, else a temporary one)")


class Seed(Flags):
    """The random seed."""

    seed: int = seed("equal seeds give equal results")


class Labels(Flags):
    """Labels of embeddings."""

    layer: int | None = whole(None, "which layer of files that hold several")
    labels: Path | None = source("table with ids and labels (default: a label column of the embeddings, if any)")
    id_column: str = text("column of the ids, by name or number (default: id, accession, ... or the first)")
    label_column: str = text("column of the labels, by name or number (default: label, class, ...)")


class LabelKind(Labels):
    """Labels that need not be there, and relatives."""

    group_column: str = text(
        "column that names groups of relatives, or none (default: group, cluster and protein, if there)"
    )
    label_kind: str = choice(("auto", "class", "number"), "what the labels are")

    def check(self) -> None:
        super().check()
        if self.id_column and not self.labels:
            raise UserError("--id-column is a column of the table of labels", fix="Give the table with --labels")


class ClassFiles(Labels):
    """Labels that train or judge a classifier, perhaps one file a class."""

    embeddings: list[Path] = source(
        "one or more files of one model: HDF5, npz, Parquet or tables", several=True, required=True
    )
    class_name: list[str] = text("class of a file; once for each file (default: files' names)", again=True)


class TrainedBundle(Flags):
    """What a training on labelled rows writes."""

    bundle: Path = output("what was trained (zip)", required=True)
    licence: str = text("licence of the data or model, for the model card")
    predictions: Path | None = output("validation and test rows, predicted by the reloaded bundle (tabular)")


class Combining(Flags, heading="predictor"):
    """What the bundle answers with."""

    predictor: str = choice(
        ("auto", "model", "combination"),
        "auto: the best of the language model, sequence members (composition, dipeptides, one-hot, relatives) and their"
        " combination, chosen on training and validation rows; model: the language model alone; combination: never the"
        " language model alone (default: %(default)s)",
    )
    without_sequences: bool = switch(
        "keep no training sequences in the bundle, so that nothing in it compares with relatives"
    )


class Resume(Flags):
    """Training that stops and goes on."""

    time_limit: float | None = number(None, "stop after so many minutes with a checkpoint to go on from", 0)
    checkpoint: Path | None = output("where to write a checkpoint when the time limit comes")
    resume: Path | None = source("checkpoint of an earlier run with the same input and settings")


class MaskedTraining(Resume):
    """Training by masked residues: plm_pretrain and plm_distill."""

    steps: int = whole(1000, "optimiser steps", 1, 10**8)
    accumulate: int = whole(1, "batches before each step, in each process", 1, 10**5)
    holdout: float = number(0.02, "share of the clusters kept for evaluation", 0.001, 0.5)
    identity: float = number(0.3, "relatives are at least this identical (0-1)", 0.2, 1.0)
    evaluate_every: int = whole(200, "steps between looks at the held-out clusters", 1, 10**8)
    checkpoint_every: float = number(5.0, "minutes between checkpoints in PLM_CHECKPOINT_DIR")
    stored_dtype: str = choice(("bfloat16", "float32"), "type of the stored weights")
    seed: int = seed("of weights, split, batches and masks")


class MaskedRates(Flags):
    """What a preset of plm_distill says, too."""

    batch_tokens: int = whole(8192, "residues that are trained on together", 16, 10**7)
    mask_rate: float = number(0.15, "share of residues to predict", 0.01, 0.9)
    learning_rate: float = number(1e-3, "highest learning rate", 1e-8, 1.0)
    schedule: str = choice(("linear", "cosine", "constant"), "course after the warm-up")
    warmup_steps: int = whole(100, "steps until the highest learning rate", 0, 10**8)
    weight_decay: float = number(0.01, "AdamW weight decay", 0, 1)


A = TypeVar("A", bound=Flags)


def _headings(arguments: type[Flags], heading: str = "") -> dict[str, str]:
    """Field name to heading, own flags first, then those of the groups; a group without one comes under its user's."""
    heading = arguments.heading or heading
    headings = dict.fromkeys(inspect.get_annotations(arguments), heading)
    for group in arguments.__bases__:
        if issubclass(group, Flags):
            headings = {**headings, **_headings(group, heading), **headings}
    return headings


def flags_of(arguments: type[Flags]) -> dict[str, Flag]:
    """Field name to flag, own flags first, then those of the groups in their order."""
    declared = {name: getattr(arguments, name, None) for name in _headings(arguments)}
    return {name: flag for name, flag in declared.items() if isinstance(flag, Flag)}


def spelled(name: str) -> str:
    """The flag of a field."""
    return "--" + name.replace("_", "-")


def parser(arguments: type[Flags], name: str, doc: str | None) -> argparse.ArgumentParser:
    """The parser of a stage.

    Args:
        arguments: The dataclass of its flags.
        name: The stage's id, e.g. ``plm_embed``.
        doc: The script's docstring; shown as it stands.
    """
    made = stage.parser(name, doc or "")
    groups: dict[str, argparse._ActionsContainer] = {"": made}
    headings = _headings(arguments)
    for one, flag in flags_of(arguments).items():
        heading = headings[one]
        if heading not in groups:
            groups[heading] = made.add_argument_group(heading)
        flag.add_to(groups[heading], spelled(one))
    return made


def read(arguments: type[A], name: str, doc: str | None, argv: Sequence[str] | None) -> A:
    """Reads the command line of a stage.

    Raises:
        UserError: It does not fit the flags.
    """
    given = vars(parser(arguments, name, doc).parse_args(argv))
    return arguments(**given)
