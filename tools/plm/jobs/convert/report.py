"""The report of a conversion."""

from __future__ import annotations

from plm.jobs.convert.job import Converted
from plm.jobs.convert.weights import REST
from plm.received.documents import one_line
from plm.telling.report import Report, plain

TARGETS = {
    "hugging-face": "a Hugging Face checkpoint", "fair-esm": "files of fair-esm", "encoder": "an encoder alone",
    "merged": "a merged Hugging Face checkpoint", "onnx": "ONNX", "int8": "a checkpoint with int8 weights",
}
_MOST = 20


def first_lines(converted: Converted) -> list[str]:
    """What the log ends with."""
    return [_first(converted), *(f"Note: {note}" for note in converted.ground.notes), *_rest_lines(converted)]


def _first(converted: Converted) -> str:
    ground = converted.ground
    worst = max((check.value for check in ground.checks), default=float("nan"))
    return (
        f"{ground.source} written as {TARGETS[converted.request.to]}: {converted.title}, {converted.shape[0]} layers, "
        f"{converted.shape[1]} wide; relative L2 to the input {worst:.1e}"
    )


def _rest_lines(converted: Converted) -> list[str]:
    rest = sorted(converted.ground.rest)
    if not rest:
        return []
    names = ", ".join(one_line(name, 60) for name in rest[:_MOST]) + (", ..." if len(rest) > _MOST else "")
    kept = "" if converted.request.to == "onnx" else f" They lie in {REST} of the output."
    return [f"{len(rest)} tensors of the input have no place in the result: {names}.{kept}"]


def conversion_report(converted: Converted) -> Report:
    """The whole report."""
    ground = converted.ground
    report = Report(plain(_first(converted)))
    report.heading("Conversion", 1)
    layers, width, vocabulary = converted.shape
    report.rows(
        ["", ""],
        [
            ["Input", plain(ground.source)],
            ["Model", plain(ground.name)],
            ["Family", converted.title],
            ["Layers, width, tokens", f"{layers}, {width}, {vocabulary}"],
            ["Numbers in the checkpoint", f"{converted.parameters:,}"],
            ["Stored as", converted.stored],
        ],
    )
    report.heading("The same proteins before and after")
    report.rows(
        ["Compared", "Relative L2 difference", "Accepted up to"],
        [[plain(check.what), f"{check.value:.1e}", f"{check.limit:g}"] for check in ground.checks],
    )
    report.paragraph(
        "Made-up proteins went through both; the difference of all numbers is given in relation to their size. A "
        "result that lies farther from the input than is accepted is not written."
    )
    told = [*ground.notes, *(f"Left out: {part}." for part in ground.left_out), *_rest_lines(converted)]
    if told:
        report.heading("Remarks")
        report.bullets([plain(line) for line in told])
    report.link("output", "The converted model")
    return report
