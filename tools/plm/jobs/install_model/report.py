"""What an administrator reads of an installation, or of a look at a model."""

from __future__ import annotations

from plm.disk_space import size
from plm.jobs.install_model.job import Installation
from plm.jobs.install_model.stored_model import RECORD
from plm.telling.report import Report, plain
from plm.wording import counted

_MOST = 12
"""Names that one sentence lists."""


def first_line(done: Installation) -> str:
    """The answer in one sentence."""
    offer = done.offer
    named = f"{offer.id} in revision {offer.short_revision}"
    about = f"{size(offer.bytes)} in {counted(len(offer.files), 'file')}, licence: {offer.licence or 'not stated'}"
    if done.row is None:
        return f"Dry run, nothing was brought: {named}, {about}"
    record = done.record
    if not done.new:
        seen = "" if record is not None else ", but its folder cannot be seen from where this job ran"
        return f"{named} is in the table already, as {done.row.value}{seen}"
    assert record is not None, "new models have one"
    return (
        f"{named} is ready: {record['family']}, {record['layers']} layers, {record['width']} wide, "
        f"{record['parameters']:,} numbers; {size(record['bytes'])}, licence: {record['licence'] or 'not stated'}"
    )


def installation_report(done: Installation) -> Report:
    """The whole report."""
    offer, record = done.offer, done.record
    report = Report(plain(first_line(done)))
    report.heading("Dry run" if done.row is None else "Model for the table huggingface", 1)
    cells = [
        ["Source", {"hub": "Hub", "directory": "Folder", "archive": "Zip"}[offer.kind] + f": {offer.place}"],
        ["Asked for", offer.asked],
        ["Revision", offer.revision],
        ["Licence", offer.licence or "not stated by the source: ask its authors before you offer it"],
        ["Tag of the hub", offer.tag],
        ["Access", "gated: its terms must be accepted on the hub" if offer.gated else ""],
    ]
    if done.row is not None:
        row = done.row
        cells += [["Id in the table", row.value], ["Name in forms", row.name], ["pipeline_tag", row.pipeline_tag]]
        cells += [["Folder" if not done.new else "Folder below that of all models", row.path]]
    if record is not None:
        cells += [["Family", str(record["family"])], ["Fingerprint", str(record["fingerprint"])]]
    report.rows(["", ""], [[name, plain(value)] for name, value in cells if value])
    report.heading("Files")
    if record is not None:
        report.rows(
            ["File", "Size", "sha256"],
            [[plain(file["name"]), size(file["bytes"]), file["sha256"]] for file in record["files"]],
        )
    else:
        report.rows(
            ["File", "Size", "Compared with"],
            [
                [plain(file.name), size(file.bytes), f"sha256 {file.sha256}" if file.sha256 else f"git {file.blob}"]
                for file in offer.files
            ],
        )
    report.bullets([plain(line) for line in _remarks(done)])
    return report


def _remarks(done: Installation) -> list[str]:
    offer, record = done.offer, done.record
    told = []
    if done.listed:
        told.append(f"The table has this model in this revision already, as {done.listed}: it would not come again.")
    if done.row is None and any(file.name.endswith(".bin") for file in offer.files):
        told.append("The weights are a .bin file: they would be read as plain numbers and stored as safetensors.")
    if record is not None and record["converted"]:
        names = ", ".join(record["converted"])
        told.append(f"{names}: read as plain numbers, nothing in it was run; stored as safetensors.")
    if record is not None:
        told.append(f"{RECORD} beside the files notes all of this.")
    if done.row is not None and done.new and done.row.value != offer.id:
        told.append(f"The table has {offer.id} in another revision, so that this one is called {done.row.value}.")
    if offer.left_out:
        names = ", ".join(offer.left_out[:_MOST]) + (", ..." if len(offer.left_out) > _MOST else "")
        told.append(f"Not taken, since no tool of the suite reads it: {names}.")
    return told
