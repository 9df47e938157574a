"""What compression of a classifier saved and cost, as a table and as a report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from plm.jobs.classifier.compression import BATCHES, CompressionCost, MeasuredForm
from plm.model.bundles.classifier import ClassifierBundle
from plm.telling.report import Report, plain
from plm.wording import counted, metric_name, number

COLUMNS = (
    "form", "head_bytes", "file_bytes", "weights", "weights_stored", "milliseconds_1", "milliseconds_256", "metric",
    "value", "loss", "loss_low", "loss_high", "largest_change", "changed_calls", "rows", "threads", "processor",
)
_WORDS = {"int8": "weights as int8", "prune": "pruned", "both": "pruned, and weights as int8"}


@dataclass(frozen=True)
class CompressionFindings:
    """Everything that is told.

    Attributes:
        method: ``none``, ``int8``, ``prune`` or ``both``.
        original: Bundle that was given.
        forms: Original, compressed and ONNX, those that there are.
        costs: Form -> what it costs on the validation rows: the compression, and ONNX (with the compression before it).
        metric: Metric by which the forms are compared.
        most_loss: Largest loss of the metric that was allowed.
        refused: Why it would have been refused; empty if it was not.
        share: Share of weights that were pruned, 0-1.
        tuned: Epoch of fine-tuning that was kept.
        rows: Validation rows.
        processor: Name of the processor on which the times were taken.
        threads: Number of threads with which the times were taken.
        notes: Sentences that a reader should know.
    """

    method: str
    original: ClassifierBundle
    forms: list[MeasuredForm]
    costs: dict[str, CompressionCost]
    metric: str
    most_loss: float
    refused: str
    share: float
    tuned: int
    rows: int
    processor: str
    threads: int
    notes: list[str]

    def form(self, name: str) -> MeasuredForm | None:
        """The form of that name, if there is one."""
        return next((one for one in self.forms if one.name == name), None)


def compression_table(findings: CompressionFindings) -> Iterator[str]:
    """Lines of the table."""
    yield "\t".join(COLUMNS)
    for one in findings.forms:
        cells = [one.name, str(one.head_bytes), str(one.file_bytes), str(one.weights), str(one.stored)]
        cells += [f"{value:.4g}" for value in one.milliseconds]
        if one.name == "original":
            figures = [next(iter(findings.costs.values())).comparison.second_value, *[float("nan")] * 5]
        else:
            cost = findings.costs[one.name]
            figures = [cost.comparison.first_value, cost.loss, cost.low, cost.high, cost.changed, cost.calls]
        cells += [findings.metric, *("" if value != value else f"{value:.6g}" for value in figures)]
        yield "\t".join([*cells, str(findings.rows), str(findings.threads), " ".join(findings.processor.split())])


def first_lines(findings: CompressionFindings) -> list[str]:
    """The sentences that a reader must see first."""
    original, small, exported = (findings.form(name) for name in ("original", "compressed", "onnx"))
    assert original is not None
    lines = []
    if small is not None:
        cost = findings.costs["compressed"]
        ends = (
            ""
            if cost.low != cost.low
            else f" (95 % interval of the loss {number(cost.low, 4)} to {number(cost.high, 4)})"
        )
        lines.append(
            f"{_WORDS[findings.method].capitalize()}: the head takes {small.head_bytes:,} bytes instead of "
            f"{original.head_bytes:,} ({_size(original.head_bytes / small.head_bytes)}) and {_lost(cost)} of "
            f"{metric_name(findings.metric)}{ends} on {counted(findings.rows, 'validation row')}; "
            f"up to {findings.most_loss:g} was allowed."
        )
        if findings.refused:
            lines.append(f"FORCED: {findings.refused}.")
        if cost.high == cost.high and cost.loss <= findings.most_loss < cost.high:
            lines.append(
                "The interval reaches beyond what was allowed: so few rows do not prove that the loss is small."
            )
        if cost.high != cost.high:
            lines.append("There are too few groups for an interval of the loss.")
        if cost.calls == cost.calls:
            lines.append(f"{100 * cost.calls:.1f} % of the rows are called otherwise than before.")
    if exported is not None:
        speed = f"{original.milliseconds[-1] / max(exported.milliseconds[-1], 1e-9):.1f} times as fast"
        lost = _lost(findings.costs["onnx"])
        lines.append(
            f"The ONNX file ({exported.file_bytes:,} bytes) answers as the bundle to within 0.00001, checked on "
            f"{len(findings.original.reference[0]):,} embeddings; it {lost} of {metric_name(findings.metric)}; a "
            f"batch of {BATCHES[-1]} takes {exported.milliseconds[-1]:.3g} ms instead of "
            f"{original.milliseconds[-1]:.3g} ms ({speed})."
        )
    return lines


def _lost(cost: CompressionCost) -> str:
    if abs(cost.loss) < 5e-5:
        return "loses nothing"
    return f"loses {number(cost.loss, 4)}" if cost.loss > 0 else f"gains {number(-cost.loss, 4)}"


def _size(times: float) -> str:
    return (
        f"{times:.1f} times smaller"
        if times >= 1.05
        else "no smaller"
        if times > 0.95
        else f"{1 / times:.1f} times larger"
    )


def compression_report(findings: CompressionFindings, *, table: bool) -> Report:
    """The report.

    Args:
        findings: Forms, their costs and sizes, and how they were made.
        table: Whether there is a table to show.
    """
    first, *others = first_lines(findings)
    report = Report(plain(first.rstrip(".")))
    for line in others:
        report.paragraph(plain(line))
    report.heading("Before and after")
    report.rows(
        ["Form", "Bytes of the head", "File", "Weights stored", *(f"Batch of {size}, ms" for size in BATCHES)],
        [
            [one.name, f"{one.head_bytes:,}", f"{one.file_bytes:,}", f"{one.stored:,} of {one.weights:,}",
             *(f"{value:.3g}" for value in one.milliseconds)]
            for one in findings.forms
        ],
    )
    if table:
        report.table("compression_table", title="Bytes, latency and metric")
    report.heading("How it was measured")
    lines = [
        f"Times are medians of repeated batches, the forms in turn, on {plain(findings.processor)} with "
        f"{counted(findings.threads, 'thread')}. Other machines, other times.",
    ]
    if any(cost.low == cost.low for cost in findings.costs.values()):
        lines.append(
            "Intervals are paired bootstrap intervals over groups of relatives where the table names them, else over "
            "rows."
        )
    if findings.method in ("int8", "both"):
        small = findings.form("compressed")
        smaller = small is not None and small.head_bytes < findings.forms[0].head_bytes
        lines.append(
            "int8 weights are multiplied out on loading: "
            + ("the bundle is smaller, not faster." if smaller else "the bundle answers no faster.")
        )
    if findings.method in ("prune", "both"):
        tuned = f"fine-tuned for {counted(findings.tuned, 'epoch')}" if findings.tuned else "not fine-tuned"
        lines.append(
            f"{findings.share:.0%} of each matrix's weights, the smallest, were set to zero and are not stored in the "
            f"bundle; {tuned}. ONNX stores the zeros."
        )
    report.bullets([*lines, *map(plain, findings.notes[:8])])
    return report
