"""Flags: how they are read and refused, and that every form asks for them as its script takes them."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from form_parameters import Parameter, parameters
from harness.layout import Layout
from harness.server import GalaxyServer
from plm import flags
from plm.errors import UserError
from plm.flags import Flag

ROOT = Path(__file__).resolve().parents[1]
FORMS = sorted((ROOT / "tools").glob("plm_*.xml"))
every_form = pytest.mark.parametrize("form", FORMS, ids=lambda path: path.stem)

# Flags that no form offers, each with its reason; a tuple where one stage's form does without it.
NOT_IN_FORMS: dict[str | tuple[str, str], str] = {
    "--format": "told by the file's name and content",
    "--mlflow": "a folder of a tracking server is of no use in a job",
    "--base-bits": "needs a library that the requirements of the tools do not hold",
    "--int8": "how far numbers move is for the user of the script to judge",
    "--device": "where a job runs is the administrator's choice",
    "--work-dir": "the administrator's PLM_CHECKPOINT_DIR",
    "--max-memory": "Galaxy says what a job may use",
    "--checkpoint-every": "the administrator's PLM_CHECKPOINT_DIR",
}
# Where a form begins with something else than the script, on purpose.
OTHER_DEFAULTS = {
    ("plm_preprocess", "--labels"): "the form asks for the rule first, then for its parts",
    ("plm_preprocess", "--folds"): "asked only after folds are wanted",
    ("plm_preprocess", "--group"): "asked only after groups are wanted",
    ("plm_evaluate", "--task"): "the outputs of the form depend on it, so it must be known before the job",
    ("plm_distill", "--title"): "the form proposes a name for the model card",
    ("plm_pretrain", "--title"): "the form proposes a name for the model card",
    ("plm_embed", "--perplexity-mode"): "the script asks for it by the table's own flag, the form by its choice",
    ("plm_train_classifier", "--search-trials"): "asked only after a search is wanted",
    ("plm_finetune", "--method"): "the form's comparison of methods begins with several",
}
# Where the range of a form is narrower than the script's, on purpose.
OTHER_RANGES = {
    ("plm_preprocess", "--identity"): "below 0.2 no two proteins are told apart; the script takes it as it is said",
    ("plm_preprocess", "--valid-fraction"): "something must be left to train on",
    ("plm_preprocess", "--test-fraction"): "something must be left to train on",
    ("plm_preprocess", "--min-length"): "an empty sequence is never a protein",
    ("plm_train_classifier", "--search-trials"): "0 is the choice of no search",
}
# Choices of a form that no script knows: they leave the flag out, or ask for more.
OTHER_CHOICES = {
    ("plm_distill", "--represent"): "preset",
    ("plm_distill", "--schedule"): "preset",
    ("plm_embed", "--perplexity-mode"): "no",
    ("plm_finetune", "--method"): "compare",
}
# Choices of a script that its form does not offer.
NOT_OFFERED = {("plm_evaluate", "--task"): "auto"}
KINDS: dict[Any, tuple[str, ...]] = {
    int: ("integer",),
    float: ("float",),
    bool: ("boolean",),
    None: ("text", "select", "data"),
    Path: ("data", "data_collection"),
}


def flags_of(stage: str) -> dict[str, Flag]:
    """Flag to declaration, of a stage."""
    module = importlib.import_module(stage)
    return {flags.spelled(name): flag for name, flag in flags.flags_of(module.Arguments).items()}


def drifts(stage: str, known: dict[str, Flag], asked: list[Parameter]) -> list[str]:
    """Where a form and its script do not say the same."""
    wrong = []
    offered: dict[str, set[str]] = {}
    for parameter in asked:
        flag, here = known.get(parameter.flag), (stage, parameter.flag)
        if flag is None:
            wrong.append(f"{parameter.flag} is no flag of the script")
            continue
        if here != ("plm_preprocess", "--labels") and parameter.kind not in KINDS[flag.kind]:
            wrong.append(f"{parameter.flag} is {parameter.kind} in the form, {flag.kind} in the script")
        if flag.required and parameter.optional:
            wrong.append(f"{parameter.flag} may be left empty in the form, but the script needs it")
        if parameter.several and not (flag.several or flag.again or flag.words):
            wrong.append(f"{parameter.flag} takes several values in the form, one in the script")
        if parameter.options is not None and (flag.choices or flag.words):
            options = set(parameter.options) - {OTHER_CHOICES.get(here)}
            offered.setdefault(parameter.flag, set()).update(options)
            if unknown := options - {*(flag.choices or ()), *flag.words}:
                wrong.append(f"{parameter.flag} offers {sorted(unknown)}, which the script does not know")
        if flag.kind in (int, float) and here not in OTHER_RANGES:
            wrong += range_drifts(parameter, flag)
        if flag.kind is not Path and here not in OTHER_DEFAULTS and not same_default(parameter, flag):
            wrong.append(f"{parameter.flag} begins with {parameter.value!r}, the script with {flag.default!r}")
    for name, options in offered.items():
        choices = {*(known[name].choices or ()), *known[name].words} - {NOT_OFFERED.get((stage, name))}
        if missing := choices - options:
            wrong.append(f"{name}: the form does not offer {sorted(missing)}")
    return wrong


def range_drifts(parameter: Parameter, flag: Flag) -> list[str]:
    """Where the ends of a number's range differ.

    A form may end a range that the script leaves open (it guards against slips), and where an end itself does not
    belong to the script's range, which a form cannot say, its own end lies inside.
    """
    wrong = []
    for name, end, limit, outside in (
        ("min", parameter.low, flag.low, flag.inside),
        ("max", parameter.high, flag.high, flag.inside or flag.below),
    ):
        if limit is None or (name == "min" and flag.or_zero and end == 0):
            continue
        if outside:
            good = end is not None and flag.holds(end)
        else:
            good = end == limit
        if not good:
            wrong.append(f"{parameter.flag} has {name} {end} in the form, {limit} in the script")
    return wrong


def same_default(parameter: Parameter, flag: Flag) -> bool:
    """Whether the form begins with the script's default; what has none is asked only where it is wanted."""
    if flag.default is None:
        return True
    if flag.kind is bool:
        return parameter.value == str(flag.default).lower()
    if flag.kind in (int, float):
        return parameter.value is not None and float(parameter.value) == flag.default
    return (parameter.value or "") == flag.default


@every_form
def test_the_form_asks_for_flags_as_the_script_takes_them(form: Path) -> None:
    assert drifts(form.stem, flags_of(form.stem), parameters(form)) == []


@every_form
def test_every_flag_can_be_reached_from_the_form(form: Path) -> None:
    text = form.read_text() + (ROOT / "tools" / "macros.xml").read_text()
    written = {word for word in text.replace("'", " ").replace('"', " ").replace("=", " ").split() if word[:2] == "--"}
    unreachable = set(flags_of(form.stem)) - written - set(NOT_IN_FORMS)
    assert not unreachable, f"offer them in the form, or give a reason in NOT_IN_FORMS: {sorted(unreachable)}"


def test_every_difference_that_is_allowed_is_still_one() -> None:
    known = {stage: flags_of(stage) for stage in (form.stem for form in FORMS)}
    for stage, flag in (*OTHER_DEFAULTS, *OTHER_RANGES, *OTHER_CHOICES, *NOT_OFFERED):
        assert flag in known[stage], f"{stage} {flag}"


@dataclass(frozen=True)
class Drift:
    """A change of a flag that the comparison must see, and what it says."""

    stage: str
    flag: str
    change: dict[str, Any]
    said: str


@pytest.mark.parametrize(
    "drift",
    [
        Drift("plm_pretrain", "--steps", {"default": 500}, "begins with '1000', the script with 500"),
        Drift("plm_pretrain", "--steps", {"low": 2}, "has min 1.0 in the form, 2 in the script"),
        Drift("plm_pretrain", "--mask-rate", {"high": 0.8}, "has max 0.9 in the form, 0.8 in the script"),
        Drift("plm_pretrain", "--steps", {"kind": float}, "is integer in the form"),
        Drift("plm_pretrain", "--schedule", {"choices": ("linear",)}, "which the script does not know"),
        Drift(
            "plm_pretrain", "--stored-dtype", {"choices": ("bfloat16", "float32", "int8")}, "does not offer ['int8']"
        ),
        Drift("plm_finetune", "--dropout", {"high": 0.5}, "has max 0.95 in the form, 0.5 in the script"),
        Drift("plm_finetune", "--gradient-checkpointing", {"default": True}, "begins with 'false'"),
        Drift("plm_project", "--methods", {"words": ("pca", "tsne")}, "offers ['umap']"),
        Drift("plm_project", "--methods", {"default": "umap"}, "begins with 'pca,umap'"),
        Drift("plm_project", "--layer", {"required": True}, "may be left empty"),
    ],
    ids=lambda drift: f"{drift.stage} {drift.flag} {next(iter(drift.change))}",
)
def test_a_drift_is_seen(drift: Drift) -> None:
    known = flags_of(drift.stage)
    changed = {**known, drift.flag: replace(known[drift.flag], **drift.change)}
    seen = drifts(drift.stage, changed, parameters(ROOT / "tools" / f"{drift.stage}.xml"))
    assert any(drift.flag in line and drift.said in line for line in seen), seen


def test_a_flag_that_the_script_lost_is_seen() -> None:
    known = {name: flag for name, flag in flags_of("plm_embed").items() if name != "--pooling"}
    assert drifts("plm_embed", known, parameters(ROOT / "tools" / "plm_embed.xml")) == [
        "--pooling is no flag of the script"
    ]


def plain(value: Any) -> str:
    """A value however it is written: false and nothing are one, 16 and 16.0 are one."""
    text = "" if value in (None, False) else str(value).lower()
    try:
        return str(float(text))
    except ValueError:
        return "" if text == "false" else text


@pytest.mark.galaxy
@every_form
def test_galaxy_reads_the_forms_as_this_test_does(form: Path) -> None:
    server = GalaxyServer(Layout(ROOT), lambda line: None)
    if not server.status().answers:
        pytest.fail("Galaxy does not run: scripts/galaxy start")
    asked: list[tuple[Any, ...]] = []

    def walk(inputs: list[dict[str, Any]]) -> None:
        for described in inputs:
            if described["type"] == "conditional":
                walk([described["test_param"]])
                for case in described["cases"]:
                    walk(case["inputs"])
            elif "inputs" in described:
                walk(described["inputs"])
            elif described.get("argument"):
                kind = described["type"]
                options = None
                if kind == "select" and not described.get("is_dynamic"):
                    options = tuple(value for _, value, _ in described["options"])
                value = described.get("value") if kind not in ("data", "data_collection") else None
                if isinstance(value, list):
                    value = ",".join(value)
                asked.append((described["argument"], kind, plain(value), options))

    walk(server.request("GET", f"/api/tools/{form.stem}?io_details=true")["inputs"])
    mine = [(one.flag, one.kind, plain(one.value), one.options) for one in parameters(form)]
    assert sorted(asked, key=str) == sorted(mine, key=str)


# -- how flags are read --------------------


class Common(flags.Flags):
    rate: float = flags.number(0.5, "of change", 0, 1, below=True)


class Example(Common, flags.Seed, heading="example"):
    input: list[Path] = flags.source("what is read", several=True, required=True)
    size: int = flags.whole(0, "of a part", 64, 1000, or_zero=True)
    most: int | None = flags.whole(None, "at most", 1)
    covered: float = flags.share(0.9, "that holds", 0.9)
    kind: str = flags.choice(("class", "number"), "of labels")
    methods: str = flags.words(("pca", "umap"), "some of pca and umap", "pca")
    note: list[str] = flags.text("again for each", again=True)
    quiet: bool = flags.switch("say less")

    def check(self) -> None:
        if self.quiet and self.note:
            raise UserError("Notes are not quiet", where="--quiet")


def read(*words: str) -> Example:
    return flags.read(Example, "x", "What it does.", ["--input", "a", *words])


def test_flags_become_typed_values() -> None:
    given = read("b", "--size", "64", "--rate", "0", "--note", "one", "--note", "two", "--methods", "umap,pca")
    assert given.input == [Path("a"), Path("b")] and given.size == 64 and given.rate == 0 and given.most is None
    assert given.note == ["one", "two"] and flags.parts(given.methods) == ("umap", "pca") and not given.quiet
    assert (given.seed, given.covered, given.kind) == (42, 0.9, "class")
    assert read().note == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--size", "63"], "63 is out of range [--size]. Choose 64 to 1000, or 0."),
        (["--most", "0"], "0 is out of range [--most]. Choose 1 or more."),
        (["--rate", "1"], "1 is out of range [--rate]. Choose 0 to below 1."),
        (["--covered", "1"], "1 is no share between 0 and 1 [--covered]. Give e.g. 0.9 for 90 %."),
        (["--methods", "pca,pca"], "'pca,pca' are not some of pca, umap, each once [--methods]. Give e.g. pca,umap."),
        (["--methods", ""], "'' are not some of pca, umap, each once [--methods]. Give e.g. pca,umap."),
        (["--kind", "word"], "argument --kind: invalid choice: 'word' (choose from 'class', 'number'). See x --help."),
        (["--quiet", "--note", "one"], "Notes are not quiet [--quiet]."),
        (["--seed", "-1"], "-1 is no seed [--seed]. Give a whole number from 0 to 4294967295."),
    ],
)
def test_a_value_out_of_range_is_one_line_that_names_flag_and_range(words: list[str], said: str) -> None:
    with pytest.raises(UserError) as caught:
        read(*words)
    told = str(caught.value)
    assert told.replace("choose from class, number", "choose from 'class', 'number'") == said


def test_own_flags_stand_before_those_of_groups_and_headings_are_kept() -> None:
    assert list(flags.flags_of(Example))[:2] == ["input", "size"]
    assert list(flags.flags_of(Example))[-2:] == ["rate", "seed"]
    shown = flags.parser(Example, "x", "").format_help()
    assert "\nexample:\n  --input" in shown and shown.rindex("--rate") > shown.index("example:")


def test_a_flag_may_be_like_another_with_another_default() -> None:
    class Other(flags.Flags):
        rate: float | None = flags.like(Common, "rate", default=None)

    assert flags.read(Other, "x", "", []).rate is None
    assert flags.flags_of(Other)["rate"] == replace(flags.flags_of(Common)["rate"], default=None)
    with pytest.raises(UserError, match="Choose 0 to below 1"):
        flags.read(Other, "x", "", ["--rate", "2"])


def test_formats_on_the_command_line_are_those_that_are_registered() -> None:
    from plm import flags
    from plm.data.embeddings.files import FORMATS

    assert flags.EMBEDDING_FORMATS == FORMATS


@dataclass(frozen=True)
class Settings:
    size: int
    most: int | None
    rate: float = 0.1
    seed: int = 1
    depth: int = 3


def test_settings_take_the_flags_of_their_names() -> None:
    assert read("--size", "64").into(Settings) == Settings(64, None, 0.5, 42, 3)
    assert read().into(Settings, depth=5, seed=2) == Settings(0, None, 0.5, 2, 5)


def test_a_flag_that_was_left_out_leaves_the_settings_default() -> None:
    class Open(flags.Flags):
        size: int = flags.whole(1, "of a part")
        most: int | None = flags.whole(None, "at most")
        rate: float | None = flags.number(None, "of change")

    assert flags.read(Open, "x", "", []).into(Settings) == Settings(1, None)


def test_arguments_stay_as_they_were_given() -> None:
    given = read()
    with pytest.raises(AttributeError, match="stay as they were"):
        given.size = 100
    with pytest.raises(TypeError, match="colour"):
        Example(input=[Path("a")], colour="red")
