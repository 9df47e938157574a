"""Bad inputs of every stage, made by code: wrong places, wrong files, broken content, flags out of range, lost outputs.

:data:`COMMANDS` has at least one sound command of each stage on the bundled data. :func:`cases` spoils one thing in one
command at a time and says what the line that answers it must contain.
"""

from __future__ import annotations

import gzip
import importlib
import pickle
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from plm import flags
from plm.flags import Flag

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "test-data"
ESM2 = str(DATA / "models" / "tiny_esm2")


@dataclass(frozen=True)
class Command:
    """A sound command.

    Attributes:
        stage: Id of the stage.
        inputs: Flags of what is read, and their values.
        settings: Further flags.
        outputs: Flags of what is written, and names.
    """

    stage: str
    inputs: dict[str, str]
    settings: tuple[str, ...]
    outputs: dict[str, str]

    def line(self, given: dict[str, str], extra: tuple[str, ...] = ()) -> list[str]:
        """The command line with some inputs or outputs replaced and flags added; flags given again count last."""
        files = {**self.inputs, **self.outputs, **given}
        return [*(word for pair in files.items() for word in pair), *self.settings, *extra]


def _data(**names: str) -> dict[str, str]:
    return {flags.spelled(flag): str(DATA / name) for flag, name in names.items()}


def _outputs(**names: str) -> dict[str, str]:
    return {flags.spelled(flag): name for flag, name in names.items()}


CPU = ("--device", "cpu")
COMMANDS: dict[str, Command] = {
    "split": Command(
        "plm_split_fasta", _data(input="simulated_query.fasta"), ("--parts", "2"),
        _outputs(output_dir="parts", table="t.tabular"),
    ),
    "preprocess": Command(
        "plm_preprocess", _data(input="simulated_variants.tabular"),
        ("--task", "sequence", "--labels", "column:activity", "--split", "random"),
        _outputs(dataset="d.tabular", rejected="x.tabular", leakage="l.tabular", report="r.md"),
    ),
    "preprocess sites": Command(
        "plm_preprocess", _data(input="simulated_proteins.fasta", sites="simulated_sites.tabular"),
        ("--task", "site", "--window", "21", "--split", "random"),
        _outputs(dataset="d.tabular", rejected="x.tabular", leakage="l.tabular", report="r.md"),
    ),
    "embed": Command(
        "plm_embed", _data(input="simulated_query.fasta", model="tiny_esm2.zip"), CPU,
        _outputs(embeddings="e.h5", status="s.tabular"),
    ),
    "merge": Command(
        "plm_merge_embeddings", _data(input="embeddings_part_1.h5", status="embeddings_part_1.tabular"), (),
        _outputs(output="m.h5", merged_status="s.tabular"),
    ),
    "finetune": Command(
        "plm_finetune", _data(dataset="dataset_sites.tabular", model="tiny_esm2.zip"), ("--epochs", "1", *CPU),
        _outputs(bundle="b.zip", report="r.md"),
    ),
    "classify": Command(
        "plm_classify_sites",
        _data(
            input="simulated_query.fasta", bundle="bundle_tiny_site.zip", model="tiny_esm2.zip",
            truth="simulated_query_sites.tabular",
        ), CPU, _outputs(sites="s.tabular", gff="g.gff3"),
    ),
    "predict": Command(
        "plm_predict", _data(embeddings="embeddings_part_1.h5", bundle="bundle_tiny_classes.zip"), (),
        _outputs(predictions="p.tabular", report="r.md"),
    ),
    "train": Command(
        "plm_train_classifier",
        _data(embeddings="simulated_embeddings.h5", labels="simulated_embeddings_labels.tabular"),
        ("--label-column", "family", "--epochs", "1"), _outputs(bundle="b.zip", report="r.md"),
    ),
    "compress": Command(
        "plm_compress_classifier",
        _data(
            bundle="bundle_simulated_network.zip", embeddings="simulated_embeddings.h5",
            labels="simulated_embeddings_split.tabular",
        ), (), _outputs(compressed_bundle="b.zip", report="r.md"),
    ),
    "pretrain": Command(
        "plm_pretrain", _data(input="simulated_corpus.fasta", model="tiny_esm2.zip"), ("--steps", "1", *CPU),
        _outputs(output_model="m.zip", report="r.md"),
    ),
    "distill": Command(
        "plm_distill", _data(input="simulated_corpus.fasta", teacher="tiny_esm2.zip"),
        ("--student-preset", "tiny", "--steps", "1", *CPU), _outputs(output_model="m.zip", report="r.md"),
    ),
    "evaluate": Command(
        "plm_evaluate",
        _data(
            predictions="predictions_simulated_multiclass.tabular",
            training="predictions_simulated_multiclass_dataset.tabular",
        ), (), _outputs(metrics="m.tabular", report="r.md"),
    ),
    "project": Command(
        "plm_project",
        _data(
            embeddings="simulated_embeddings.h5", queries="simulated_embeddings_queries.h5",
            labels="simulated_embeddings_labels.tabular",
        ), ("--methods", "pca", "--label-column", "family"), _outputs(coordinates="c.tabular", report="r.md"),
    ),
    "compare embeddings": Command(
        "plm_compare_embeddings",
        _data(
            embeddings="simulated_embeddings_queries.h5", reference="simulated_embeddings.h5",
            labels="simulated_embeddings_labels.tabular",
        ), ("--label-column", "family"), _outputs(proteins="p.tabular", report="r.md"),
    ),
    "compare models": Command(
        "plm_compare_models", _data(input="simulated_held_out.tabular"),
        ("--model", f"one={ESM2}", "--model", f"two={DATA / 'tiny_esm2.zip'}", "--turns", "0", *CPU),
        _outputs(scores="s.tabular", report="r.md"),
    ),
    "variants": Command(
        "plm_variants",
        _data(input="simulated_query.fasta", variants="simulated_substitutions.tabular", model="tiny_esm2.zip"), CPU,
        _outputs(scores="s.tabular", report="r.md"),
    ),
    "convert": Command(
        "plm_convert",
        _data(input="fair_esm2_tiny.pt", contact_regression="fair_esm2_tiny-contact-regression.pt"), (),
        _outputs(output="m.zip", report="r.md"),
    ),
    "contacts": Command(
        "plm_contacts",
        _data(input="simulated_folds.fasta", pairs="simulated_contacts.tabular", model="tiny_esm2.zip"),
        ("--methods", "regression", *CPU), _outputs(contacts="c.tabular", report="r.md"),
    ),
    "contacts structures": Command(
        "plm_contacts", _data(structures="simulated_structures.zip", model="tiny_esm2.zip"),
        ("--methods", "regression", *CPU), _outputs(contacts="c.tabular", report="r.md"),
    ),
    "contacts head": Command(
        "plm_contacts",
        _data(input="simulated_query.fasta", head="contact_head_tiny_esm2.zip", model="tiny_esm2.zip"), CPU,
        _outputs(contacts="c.tabular"),
    ),
    "install": Command(
        "plm_install_model", _data(archive="tiny_esm2.zip"), ("--id", "lab/tiny", "--models", "models"),
        _outputs(output="o.json"),
    ),
}


@dataclass(frozen=True)
class BadInput:
    """One spoilt command.

    Attributes:
        name: What is wrong, for the test's name.
        command: Key of :data:`COMMANDS`.
        message: Regular expression that the answer must match.
        given: Makes the replaced inputs and outputs; is given an empty folder.
        extra: Flags that are added.
    """

    name: str
    command: str
    message: str
    given: Callable[[Path], dict[str, str]] = lambda folder: {}
    extra: tuple[str, ...] = ()


def cases() -> list[BadInput]:
    """All of them, each with a name of its own."""
    made = [*_places(), *_files(), *_tables(), *_sequences(), *_ranges(), *_lost_outputs()]
    names = [f"{case.command}-{case.name}" for case in made]
    assert len(set(names)) == len(names), sorted({name for name in names if names.count(name) > 1})
    return made


# -------------------------------------------------------------------------------------------------- places and files


def _file(flag: str, suffix: str, content: bytes) -> Callable[[Path], dict[str, str]]:
    def make(folder: Path) -> dict[str, str]:
        path = folder / f"upload{suffix}"
        path.write_bytes(content)
        return {flag: str(path)}

    return make


def _folder(flag: str) -> Callable[[Path], dict[str, str]]:
    def make(folder: Path) -> dict[str, str]:
        (folder / "a_folder").mkdir()
        (folder / "a_folder" / "notes.txt").write_text("nothing of use")
        return {flag: str(folder / "a_folder")}

    return make


def _places() -> Iterator[BadInput]:
    """Inputs that are not where they should be."""
    for key, command in COMMANDS.items():
        for flag in command.inputs:
            absent = "not exist|no such|missing|cannot be found|neither a folder|is no"
            yield BadInput(f"{flag}-absent", key, absent, lambda folder, flag=flag: {flag: str(folder / "absent.zip")})
            yield BadInput(f"{flag}-folder", key, "folder|no zip|is no|has no", _folder(flag))
            yield BadInput(
                f"{flag}-long", key, "There can be no such file", lambda folder, flag=flag: {flag: "a" * 5000}
            )
            empty = "(?i)empty|no complete zip|is no|neither|not a|damaged"
            yield BadInput(f"{flag}-empty", key, empty, _file(flag, ".x", b""))


def _zip(**members: bytes) -> bytes:
    held = BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return held.getvalue()


WRONG: dict[str, bytes] = {
    "page": b"<!DOCTYPE html><html><body>404 Not Found</body></html>\n",
    "picture": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "pickle": pickle.dumps({"a": [1, 2]}),
    "noise": bytes(range(256)) * 12,
    "cut-gzip": gzip.compress(b">a\nMKTAYIAK\n" * 50)[:-20],
    "other-zip": _zip(notes=b"hello"),
}
"""Files of another kind; none of them is an input of any stage."""
REFUSED = (
    "text|FASTA|table|zip|HDF5|checkpoint|model|picture|column|header|safetensors|damaged|neither|structure|bundle|gzip"
)


def _files() -> Iterator[BadInput]:
    for key, command in COMMANDS.items():
        for flag in command.inputs:
            for kind, content in WRONG.items():
                yield BadInput(f"{flag}-{kind}", key, REFUSED, _file(flag, "", content))


# -------------------------------------------------------------------------------------------------------- text content


def _lines(name: str) -> list[list[str]]:
    return [line.split("\t") for line in (DATA / name).read_text().splitlines()]


def _joined(rows: list[list[str]]) -> bytes:
    return "".join("\t".join(row) + "\n" for row in rows).encode()


def _cell(name: str, column: str, value: str, row: int = 1) -> bytes:
    rows = _lines(name)
    rows[row][rows[0].index(column)] = value
    return _joined(rows)


def _without(name: str, column: str) -> bytes:
    rows = _lines(name)
    place = rows[0].index(column)
    return _joined([row[:place] + row[place + 1 :] for row in rows])


DATASET, PREDICTIONS, EMBEDDINGS = (
    "dataset_sites.tabular", "predictions_simulated_multiclass.tabular", "simulated_embeddings.tabular",
)
SITES, PAIRS, VARIANTS = "simulated_sites.tabular", "simulated_contacts.tabular", "simulated_substitutions.tabular"
LABELS, SPLITS = "simulated_embeddings_labels.tabular", "simulated_embeddings_split.tabular"
TABLES: tuple[tuple[str, str, str, bytes, str], ...] = (
    ("finetune", "--dataset", "no-label-column", _without(DATASET, "label"), "no label column"),
    ("finetune", "--dataset", "no-sequence-column", _without(DATASET, "sequence"), "column sequence is missing"),
    ("finetune", "--dataset", "no-id-column", _without(DATASET, "id"), "column id is missing"),
    ("finetune", "--dataset", "header-alone", _joined(_lines(DATASET)[:1]), "no rows|header"),
    ("finetune", "--dataset", "id-twice", _joined([*_lines(DATASET), _lines(DATASET)[1]]), "more than once"),
    ("finetune", "--dataset", "empty-id", _cell(DATASET, "id", ""), "id"),
    ("finetune", "--dataset", "empty-sequence", _cell(DATASET, "sequence", ""), "sequence"),
    ("finetune", "--dataset", "digits-in-sequence", _cell(DATASET, "sequence", "MK1TAY"), "sequence|letter|position"),
    ("finetune", "--dataset", "position-word", _cell(DATASET, "position", "x"), "position"),
    ("finetune", "--dataset", "position-zero", _cell(DATASET, "position", "0"), "position"),
    ("finetune", "--dataset", "position-outside", _cell(DATASET, "position", "999"), "position"),
    ("finetune", "--dataset", "position-digits", _cell(DATASET, "position", "9" * 5000), "position"),
    ("finetune", "--dataset", "split-unknown", _cell(DATASET, "split", "holdout"), "split"),
    ("finetune", "--dataset", "window-even", _cell(DATASET, "window", "4"), "window"),
    ("finetune", "--dataset", "column-twice", _joined([[*row, row[0]] for row in _lines(DATASET)]), "twice"),
    ("finetune", "--dataset", "cells-missing", _joined([*_lines(DATASET)[:3], ["only"]]), "cells|columns|fields"),
    ("finetune", "--dataset", "cells-more", _joined([*_lines(DATASET), [*_lines(DATASET)[2], "x"]]), "cells|columns"),
    ("evaluate", "--predictions", "no-label-column", _without(PREDICTIONS, "label"), "column label is missing"),
    ("evaluate", "--predictions", "no-id-column", _without(PREDICTIONS, "id"), "column id is missing"),
    ("evaluate", "--predictions", "no-probabilities", _joined([row[:5] for row in _lines(PREDICTIONS)]), "p_|value"),
    ("evaluate", "--predictions", "word", _cell(PREDICTIONS, "p_alpha", "high"), "p_alpha"),
    ("evaluate", "--predictions", "nan", _cell(PREDICTIONS, "p_alpha", "nan"), "p_alpha"),
    ("evaluate", "--predictions", "infinite", _cell(PREDICTIONS, "p_alpha", "inf"), "p_alpha|probab"),
    ("evaluate", "--predictions", "two", _cell(PREDICTIONS, "p_alpha", "2"), "p_alpha|probab"),
    ("evaluate", "--predictions", "negative", _cell(PREDICTIONS, "p_alpha", "-1"), "p_alpha|probab"),
    ("evaluate", "--predictions", "no-sum", _cell(PREDICTIONS, "p_alpha", "0.1"), "add up|sum"),
    ("evaluate", "--predictions", "missing", _cell(PREDICTIONS, "p_alpha", ""), "p_alpha"),
    ("evaluate", "--predictions", "label-unknown", _cell(PREDICTIONS, "label", "planet"), "planet"),
    ("evaluate", "--predictions", "header-alone", _joined(_lines(PREDICTIONS)[:1]), "no rows"),
    ("evaluate", "--predictions", "row-again", _joined([*_lines(PREDICTIONS), _lines(PREDICTIONS)[2]]), "twice|again"),
    ("evaluate", "--training", "no-sequence", _without("predictions_simulated_multiclass_dataset.tabular", "sequence"),
     "sequence"),
    ("project", "--embeddings", "word-in-a-run", _cell(EMBEDDINGS, "e4", "$\\frac{"), "e4.*no number"),
    ("project", "--embeddings", "word-further-down", _cell(EMBEDDINGS, "e4", "x", 60), "number|e4"),
    ("project", "--embeddings", "nan", _cell(EMBEDDINGS, "e4", "nan"), "NaN|finite|number"),
    ("project", "--embeddings", "infinite", _cell(EMBEDDINGS, "e4", "inf"), "infin|finite|number"),
    ("project", "--embeddings", "id-twice", _joined([*_lines(EMBEDDINGS), _lines(EMBEDDINGS)[1]]), "more than once"),
    ("project", "--embeddings", "no-numbers", b"id\tlabel\na\tx\nb\ty\n", "no columns of numbers"),
    ("project", "--embeddings", "no-header", b"0.1\t0.2\n0.3\t0.4\n", "no header"),
    ("project", "--embeddings", "one-row", _joined(_lines(EMBEDDINGS)[:2]), "at least"),
    ("project", "--embeddings", "header-alone", _joined(_lines(EMBEDDINGS)[:1]), "no|empty"),
    ("project", "--embeddings", "uneven", _joined([*_lines(EMBEDDINGS)[:4], ["x", "y", "1"]]), "column|Expected|cells"),
    ("project", "--embeddings", "column-twice", _joined([[*row, row[3]] for row in _lines(EMBEDDINGS)]), "twice"),
    ("project", "--labels", "no-such-column", _without(LABELS, "family"), "family"),
    ("project", "--labels", "header-alone", _joined(_lines(LABELS)[:1]), "no rows|header|label"),
    ("train", "--labels", "no-such-column", _without(LABELS, "family"), "family"),
    ("train", "--labels", "one-class", _joined([_lines(LABELS)[0], *([row[0], "x", *row[2:]] for row in
                                                                   _lines(LABELS)[1:])]), "class"),
    ("train", "--labels", "nobody-known", b"id\tfamily\nq1\tx\nq2\ty\n", "id|label"),
    ("compress", "--labels", "no-label", _without(SPLITS, "label"), "label"),
    ("compress", "--labels", "header-alone", _joined(_lines(SPLITS)[:1]), "no rows|header|label"),
    ("compress", "--labels", "nobody-known", b"id\tlabel\tsplit\nq1\tlyase\tvalid\n", "id|row|valid"),
    ("preprocess", "--input", "no-column", _without("simulated_variants.tabular", "activity"), "activity"),
    ("preprocess", "--input", "header-alone", _joined(_lines("simulated_variants.tabular")[:1]), "no |header"),
    ("preprocess sites", "--sites", "one-column", b"accession\nSIM0001\n", "two columns"),
    ("preprocess sites", "--sites", "position-word", _cell(SITES, "position", "x"), "position|number"),
    ("preprocess sites", "--sites", "position-negative", _cell(SITES, "position", "-3"), "position|number"),
    ("preprocess sites", "--sites", "position-digits", _cell(SITES, "position", "9" * 5000), "position|number"),
    ("preprocess sites", "--sites", "nobody-known", b"accession\tposition\nq\t1\nw\t2\n", "site|protein"),
    ("classify", "--truth", "position-word", b"accession\tposition\nSIM9001\tx\n", "position|number"),
    (
        "classify", "--truth", "two-labels", b"accession\tposition\tlabel\nSIM9001\t30\t0\nSIM9001\t30\t1\n",
        "two labels",
    ),
    ("classify", "--truth", "class-unknown", b"accession\tposition\tlabel\nSIM9001\t30\tplanet\n", "planet"),
    ("contacts", "--pairs", "no-columns", b"a\tb\n1\t2\n", "columns id, i and j"),
    ("contacts", "--pairs", "word", _cell(PAIRS, "i", "x"), "number|position|x"),
    ("contacts", "--pairs", "zero", _cell(PAIRS, "i", "0"), "0|position|from 1"),
    ("contacts", "--pairs", "outside", _cell(PAIRS, "j", "99999"), "99999|outside"),
    ("variants", "--variants", "no-columns", b"a\tb\n1\t2\n", "column"),
    ("variants", "--variants", "header-alone", _joined(_lines(VARIANTS)[:1]), "no |header|row"),
    ("compare models", "--input", "no-sequence", _without("simulated_held_out.tabular", "sequence"), "sequence"),
    ("merge", "--status", "other-table", _joined(_lines(PAIRS)), "status|column"),
    ("merge", "--input", "other-table", _joined(_lines(PAIRS)), "number|embedding|id|table"),
)


def _tables() -> Iterator[BadInput]:
    for key, flag, name, content, message in TABLES:
        yield BadInput(f"{flag}-{name}", key, message, _file(flag, ".tabular", content))


SEQUENCES: tuple[tuple[str, bytes, str], ...] = (
    ("no-header", b"MKTAYIAKQRQISFVK\nMKTAY\n", "FASTA|header|table|>"),
    ("no-id", b">\nMKTAYIAKQR\n>b\nMKTAY\n", "id|header"),
    ("long-line", b">a\n" + b"M" * 3_000_000 + b"\n", "longer|more than|residues|characters|protein"),
    ("long-header", b">" + b"a" * 3_000_000 + b"\nMKTAY\n", "longer|more than|characters|header|id"),
    ("fastq", b"@a\nACGT\n+\nIIII\n", "FASTQ|FASTA|header|table"),
    ("gzip-and-more", gzip.compress(b">a\nMKTAYIAKQR\n") + b"rubbish", "gzip|text"),
    ("bomb", gzip.compress(b">a\n" + b"M" * 40_000_000 + b"\n", 1), "longer|more than|residues|characters|times"),
)


def _sequences() -> Iterator[BadInput]:
    for key in ("split", "embed", "classify", "pretrain", "distill", "variants", "contacts head", "preprocess sites"):
        for name, content, message in SEQUENCES:
            if key == "split" and name in ("long-line", "long-header", "bomb"):
                continue  # no byte is changed and no length is too much
            yield BadInput(f"--input-{name}", key, message, _file("--input", ".fasta", content))


# ------------------------------------------------------------------------------------------------------ command lines


def _spoilt(flag: Flag) -> Iterator[tuple[str, str]]:
    """Values that a flag must not take, and what is said of them."""
    if flag.kind in (int, float):
        yield "word", "invalid"
        yield "nan", "invalid|no number"
        if flag.kind is int or flag.high is not None:
            yield "9" * 30, "too large|out of range|is no|at most|more than|must|too few|Choose|Give"
        if flag.low is not None and not flag.or_zero:
            yield str(flag.kind(flag.low) - 1), "out of range|is no|is too few|must|too|Choose|Give|invalid"
    elif flag.choices:
        yield "planet", "invalid choice"
    elif flag.words:
        yield "planet,", "some of|planet"


def _ranges() -> Iterator[BadInput]:
    done: set[str] = set()
    for key, command in COMMANDS.items():
        if command.stage in done:
            continue
        done.add(command.stage)
        yield BadInput("unknown-flag", key, "unrecognized arguments", extra=("--no-such-flag",))
        yield BadInput("nothing", key, "unrecognized arguments", extra=("planet",))
        declared = flags.flags_of(importlib.import_module(command.stage).Arguments)
        for name, flag in declared.items():
            for value, message in _spoilt(flag):
                spelled = flags.spelled(name)
                yield BadInput(f"{spelled}={value[:6]}", key, message, extra=(f"{spelled}={value}",))


def _lost_outputs() -> Iterator[BadInput]:
    """Outputs that could not be kept, or in whose place something would be lost."""
    for key, command in COMMANDS.items():
        output, name = next(iter(command.outputs.items()))
        source = next(iter(command.inputs))
        for kind, message, value in (
            ("no-folder", "does not exist", "absent/x"), ("name-with-a-line-end", "names no new file", "a\nb"),
            ("of-a-file", "not exist|Not a directory|written", "/dev/null/x"),
            ("device", "no ordinary file|file stands", "/dev/null"), ("empty-name", "no new file|folder", ""),
        ):
            yield BadInput(kind, key, message, lambda _, flag=output, value=value: {flag: value})

        def itself(folder: Path, flag: str = output, source: str = source, value: str = command.inputs[source]) -> (
            dict[str, str]
        ):
            copy = folder / Path(value).name
            copy.write_bytes(Path(value).read_bytes())
            return {source: str(copy), flag: str(copy)}

        yield BadInput("its-own-input", key, "would be lost|file stands", itself)
        if len(command.outputs) > 1:
            other = list(command.outputs)[1]
            yield BadInput(
                "same-place", key, "same place|inside another", lambda _, flag=other, name=name: {flag: name}
            )
