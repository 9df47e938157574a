"""Reports of installations for tests: what plm_install_model tells of folders, zips and models of a hub."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from plm.jobs.install_model.job import Installation, InstallationRequest
from plm.jobs.install_model.model_table import TableRow
from plm.jobs.install_model.offers import Offer, OfferedFile
from plm.jobs.install_model.report import installation_report
from plm.jobs.install_model.stored_model import StoredFile, StoredModel

OFFER = Offer(
    "lab/esm", "hub", "https://hub", "main", "0123456789abcdef0123456789abcdef01234567", "mit", "fill-mask", False,
    (OfferedFile("model.safetensors", 2**20, "a" * 64), OfferedFile("config.json", 900, "", "b" * 40)), (),
)
ROW = TableRow("lab/esm", "ESM", "fill-mask", "sequence", "esm2", OFFER.revision, "lab/0123456789ab/esm")


def record(offer: Offer, converted: tuple[str, ...] = ()) -> dict[str, Any]:
    files = (StoredFile("config.json", 900, "c" * 64), StoredFile("model.safetensors", 2**20, "a" * 64))
    return StoredModel(offer, files, converted, "ESM-2", "esm2", 6, 320, 7_511_801, "d" * 64).record()


def told(offer: Offer = OFFER, row: TableRow | None = ROW, new: bool = True, **more: Any) -> Callable[[], str]:
    noted = more.pop("record", record(offer, more.pop("converted", ())) if row is not None else None)
    done = Installation(InstallationRequest(Path("models")), offer, row, noted, new, **more)
    return lambda: installation_report(done).text()


BIN = replace(OFFER, files=(OfferedFile("pytorch_model.bin", 2**20, "a" * 64),))
INSTALLATIONS: dict[str, Callable[[], str]] = {
    "new": told(),
    "look": told(row=None, new=False),
    "look_at_bin": told(BIN, row=None, new=False),
    "look_at_listed": told(row=None, new=False, listed="lab/esm"),
    "bin": told(BIN, converted=("pytorch_model.bin",)),
    "there": told(new=False),
    "unseen": told(new=False, record=None),
    "second": told(row=replace(ROW, value="lab/esm@0123456789ab")),
    "gated": told(replace(OFFER, gated=True, licence="", left_out=("modeling.py",))),
}
INSTALLATION_TABLE: dict[str, tuple[str, str | None]] = {
    "Dry run, nothing was brought:": ("look", "new"),
    "is in the table already, as": ("there", "new"),
    ", but its folder cannot be seen from where this job ran": ("unseen", "there"),
    " is ready: ": ("new", "there"),
    "not stated by the source: ask its authors before you offer it": ("gated", "new"),
    "gated: its terms must be accepted on the hub": ("gated", "new"),
    "The table has this model in this revision already, as": ("look_at_listed", "look"),
    "a .bin file: they would be read as plain numbers and stored as safetensors": ("look_at_bin", "look"),
    "read as plain numbers, nothing in it was run; stored as safetensors": ("bin", "new"),
    " beside the files notes all of this": ("new", "look"),
    "in another revision, so that this one is called": ("second", "new"),
    "Not taken, since no tool of the suite reads it: ": ("gated", "new"),
    "Folder below that of all models": ("new", "there"),
}
