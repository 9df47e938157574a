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
)  # fmt: skip
_WORDS = {"int8": "weights as int8", "prune": "pruned", "both": "pruned, and weights as int8"}


@dataclass(frozen=True)
class CompressionFindings:
    """Everything that is told.

    Attributes:
        method: ``none``, ``int8``, ``prune`` or ``both``.
        original: The bundle given.
        forms: Original, compressed and ONNX, those that there are.
        costs: By form: of the compression, of ONNX (and the compression before it).
        metric: What was judged.
        most_loss: Allowed.
        refused: Why it would have been refused; empty if it was not.
        share: Of weights pruned.
        tuned: Epoch of fine-tuning that was kept.
        rows: Validation rows.
        processor: On which the times were taken.
        threads: Likewise.
        notes: What a reader should know.
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


def compression_table(found: CompressionFindings) -> Iterator[str]:
    """Lines of the table."""
    yield "\t".join(COLUMNS)
    for one in found.forms:
        cells = [one.name, str(one.head_bytes), str(one.file_bytes), str(one.weights), str(one.stored)]
        cells += [f"{value:.4g}" for value in one.milliseconds]
        if one.name == "original":
            figures = [next(iter(found.costs.values())).comparison.second_value, *[float("nan")] * 5]
        else:
            cost = found.costs[one.name]
            figures = [cost.comparison.first_value, cost.loss, cost.low, cost.high, cost.changed, cost.calls]
        cells += [found.metric, *("" if value != value else f"{value:.6g}" for value in figures)]
        yield "\t".join([*cells, str(found.rows), str(found.threads), " ".join(found.processor.split())])


def first_lines(found: CompressionFindings) -> list[str]:
    """The sentences that a reader must see first."""
    original, small, exported = (found.form(name) for name in ("original", "compressed", "onnx"))
    assert original is not None
    lines = []
    if small is not None:
        cost = found.costs["compressed"]
        ends = (
            ""
            if cost.low != cost.low
            else f" (95 % interval of the loss {number(cost.low, 4)} to {number(cost.high, 4)})"
        )
        lines.append(
            f"{_WORDS[found.method].capitalize()}: the head takes {small.head_bytes:,} bytes instead of "
            f"{original.head_bytes:,} ({_size(original.head_bytes / small.head_bytes)}) and {_lost(cost)} of "
            f"{metric_name(found.metric)}{ends} on {counted(found.rows, 'validation row')}; "
            f"up to {found.most_loss:g} was allowed."
        )
        if found.refused:
            lines.append(f"FORCED: {found.refused}.")
        if cost.high == cost.high and cost.loss <= found.most_loss < cost.high:
            lines.append(
                "The interval reaches beyond what was allowed: so few rows do not prove that the loss is small."
            )
        if cost.high != cost.high:
            lines.append("There are too few groups for an interval of the loss.")
        if cost.calls == cost.calls:
            lines.append(f"{100 * cost.calls:.1f} % of the rows are called otherwise than before.")
    if exported is not None:
        speed = f"{original.milliseconds[-1] / max(exported.milliseconds[-1], 1e-9):.1f} times as fast"
        lost = _lost(found.costs["onnx"])
        lines.append(
            f"The ONNX file ({exported.file_bytes:,} bytes) answers as the bundle to within 0.00001, checked on "
            f"{len(found.original.reference[0]):,} embeddings; it {lost} of {metric_name(found.metric)}; a batch of "
            f"{BATCHES[-1]} takes {exported.milliseconds[-1]:.3g} ms instead of {original.milliseconds[-1]:.3g} ms "
            f"({speed})."
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


def compression_report(found: CompressionFindings, *, table: bool) -> Report:
    """The report.

    Args:
        found: What was found.
        table: Whether there is a table to show.
    """
    first, *others = first_lines(found)
    report = Report(plain(first.rstrip(".")))
    for line in others:
        report.paragraph(plain(line))
    report.heading("Before and after")
    report.rows(
        ["Form", "Bytes of the head", "File", "Weights stored", *(f"Batch of {size}, ms" for size in BATCHES)],
        [
            [one.name, f"{one.head_bytes:,}", f"{one.file_bytes:,}", f"{one.stored:,} of {one.weights:,}",
             *(f"{value:.3g}" for value in one.milliseconds)]
            for one in found.forms
        ],
    )  # fmt: skip
    if table:
        report.table("compression_table", title="Bytes, latency and metric")
    report.heading("How it was measured")
    lines = [
        f"Times are medians of repeated batches, the forms in turn, on {plain(found.processor)} with "
        f"{counted(found.threads, 'thread')}. Other machines, other times.",
    ]
    if any(cost.low == cost.low for cost in found.costs.values()):
        lines.append(
            "Intervals are paired bootstrap intervals over groups of relatives where the table names them, else over "
            "rows."
        )
    if found.method in ("int8", "both"):
        small = found.form("compressed")
        smaller = small is not None and small.head_bytes < found.forms[0].head_bytes
        lines.append(
            "int8 weights are multiplied out on loading: "
            + ("the bundle is smaller, not faster." if smaller else "the bundle answers no faster.")
        )
    if found.method in ("prune", "both"):
        tuned = f"fine-tuned for {counted(found.tuned, 'epoch')}" if found.tuned else "not fine-tuned"
        lines.append(
            f"{found.share:.0%} of each matrix's weights, the smallest, were set to zero and are not stored in the "
            f"bundle; {tuned}. ONNX stores the zeros."
        )
    report.bullets([*lines, *map(plain, found.notes[:8])])
    return report
