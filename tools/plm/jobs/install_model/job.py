"""From what an administrator names to a model in a folder and a row of the table; or to a look at it only."""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from plm.disk_space import size
from plm.errors import UserError
from plm.fingerprints import file_sha256
from plm.jobs.install_model import model_table
from plm.jobs.install_model.hub import HubModel
from plm.jobs.install_model.local import ArchiveModel, FolderModel
from plm.jobs.install_model.model_table import TABLE, TableRow
from plm.jobs.install_model.offers import ModelOrigin, Offer
from plm.jobs.install_model.stored_model import RECORD, check_room, read_record, store


@dataclass(frozen=True)
class InstallationRequest:
    """What to install; fields as the flags of plm_install_model.

    Attributes:
        models: Folder of all models; the new one gets a folder below it.
        hub: Id on the hub.
        revision: Branch, tag or commit there.
        allow_hub: The network may be used.
        directory: Folder of a model.
        archive: Zip of one.
        id: Id of a model that comes from a folder or a zip.
        title: What users read.
        free_tag: For the column of that name.
        licence: What the source does not state itself.
        table: Rows that are there.
        dry_run: Only look.
        bundle: Bring the files though the table has the model, for another server.
    """

    models: Path
    hub: str = ""
    revision: str = ""
    allow_hub: bool = False
    directory: str = ""
    archive: Path | None = None
    id: str = ""
    title: str = ""
    free_tag: str = ""
    licence: str = ""
    table: Path | None = None
    dry_run: bool = False
    bundle: bool = False


@dataclass(frozen=True)
class Installation:
    """What came of a request.

    Attributes:
        request: What was asked.
        offer: What the source offered.
        row: The new row, or the one that is there; None after a look.
        record: What is noted beside the model; None after a look, or where it cannot be seen.
        new: Whether the table gets a row.
        brought: Where its files lie until :func:`deliver`.
        listed: After a look: the id under which the table has this model in this revision; empty if it has not.
    """

    request: InstallationRequest
    offer: Offer
    row: TableRow | None
    record: dict[str, Any] | None
    new: bool
    brought: Path | None = None
    listed: str = ""

    def data_tables(self) -> dict[str, Any]:
        """What Galaxy adds to its tables, as data managers write it: nothing after a look or where the row is there."""
        rows = [asdict(self.row)] if self.row is not None and self.new else []
        return {"data_tables": {TABLE: rows} if rows else {}}


def install(request: InstallationRequest, scratch: Path, log: logging.Logger) -> Installation:
    """Does all of it but the report and :func:`deliver`.

    Args:
        request: What to install.
        scratch: For files on their way; on the file system of ``request.models``.
        log: Says what happens.

    Raises:
        UserError: The source is not there or offers nothing that the suite reads; a file is not what is listed; the
            model does not compute.
    """
    origin = _origin(request, scratch)
    offer = origin.offer()
    if request.licence and not offer.licence:
        offer = replace(offer, licence=request.licence)
    log.info(
        "%s in revision %s: %s in %d files, licence: %s", offer.id, offer.short_revision, size(offer.bytes),
        len(offer.files), offer.licence or "not stated",
    )
    rows = model_table.read_rows(request.table)
    there = model_table.same_model(rows, offer.id, offer.revision)
    if request.dry_run:
        return Installation(request, offer, None, None, False, listed=there.value if there is not None else "")
    own = model_table.folder_of(offer.id, offer.short_revision)
    if there is not None and not request.bundle:
        log.info("The table has this model in this revision: nothing is brought")
        return Installation(request, offer, there, read_record(Path(there.path)), False)
    kept = read_record(request.models / own)
    if kept is not None:
        log.info("Its folder is there already: nothing is brought")
        return Installation(request, offer, _row(request, offer, kept, rows, own), kept, True)
    check_room(offer, scratch)
    folder = scratch / "model"
    folder.mkdir()
    record = _copied(there, offer, folder)
    if record is None:
        record = store(origin, offer, folder, scratch, lambda line: log.info("%s", line)).record()
    else:
        log.info("Copied from this server's own folder of the model, every file compared")
    folder.chmod(0o755)
    return Installation(request, offer, _row(request, offer, record, rows, own), record, True, folder)


@contextlib.contextmanager
def workplace(models: Path) -> Iterator[Path]:
    """A folder within that of all models, on their disk; both are removed if nothing was brought.

    Args:
        models: Folder of all models; made.

    Raises:
        UserError: The folder of all models is gone.
    """
    made = not models.exists()
    models.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".plm_", dir=models, ignore_cleanup_errors=True) as place:
            yield Path(place)
    except (OSError, UserError) as error:
        if not models.is_dir():
            raise UserError(
                "The folder of all models was removed, or cannot be reached any more, while the job ran",
                where=str(models), fix="Run it again with a folder that stays",
            ) from error
        raise
    finally:
        if made:
            with contextlib.suppress(OSError):  # there is a model in it
                models.rmdir()


def deliver(done: Installation) -> None:
    """Puts the files where they belong, all at once."""
    if done.brought is not None and done.row is not None:
        target = done.request.models / done.row.path
        target.parent.mkdir(parents=True, exist_ok=True)
        done.brought.rename(target)


def _origin(request: InstallationRequest, scratch: Path) -> ModelOrigin:
    if request.hub:
        return HubModel(request.hub, request.revision, scratch)
    if request.directory:
        return FolderModel(Path(request.directory), request.id)
    assert request.archive is not None, "the flags say so"
    return ArchiveModel(request.archive, request.id)


def _copied(row: TableRow | None, offer: Offer, folder: Path) -> dict[str, Any] | None:
    """The record of a model that this server has, once its files are copied and compared; None if it has none."""
    record = read_record(Path(row.path)) if row is not None else None
    if row is None or record is None or record.get("revision") != offer.revision:
        return None
    for file in record["files"]:
        shutil.copyfile(Path(row.path) / file["name"], folder / file["name"])
        if file_sha256(folder / file["name"]) != file["sha256"]:
            raise UserError(
                f"{file['name']} is not what was installed: its sha256 differs", where=row.path,
                fix="Remove the row and the folder, then install the model again",
            )
    shutil.copyfile(Path(row.path) / RECORD, folder / RECORD)
    return record


def _row(
    request: InstallationRequest, offer: Offer, record: dict[str, Any], rows: list[TableRow], own: str
) -> TableRow:
    """The row of a model, its path relative to the folder of all models."""
    known = [] if request.bundle else rows
    value = model_table.free_value(known, offer.id, offer.short_revision)
    millions = record["parameters"] / 1e6
    told = f"{millions:,.0f}" if millions >= 10 else f"{millions:.2g}"
    usual = f"{offer.id.rpartition('/')[2]} ({record['family']}, {told} million parameters)"
    tag = offer.tag if offer.tag in model_table.OFFERED_TAGS else model_table.USUAL_TAG
    title = request.title or (usual if value == offer.id else f"{usual}, revision {offer.short_revision}")
    free_tag = request.free_tag or str(record["family_id"])
    return TableRow(value, title, tag, model_table.DOMAIN, free_tag, offer.revision, own)

