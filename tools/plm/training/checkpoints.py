"""Checkpoints of training on rows: exported at the time limit, and kept in the administrator's folder meanwhile."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from plm import kept
from plm.errors import UserError
from plm.received.fields import Fields
from plm.training import training_state
from plm.training.row_training import FREE_SETTINGS, Done, RowSettings


class CheckpointKeeper:
    """Holds the latest state of a training run and puts it where it survives the job.

    Attributes:
        key: Digest of data, model and settings.
        resume: Folder and counts to go on from, or None.
    """

    def __init__(self, stage: str, key: str, workdir: Path, log: logging.Logger) -> None:
        self.key = key
        self.resume: tuple[Path, Done] | None = None
        self._stage = stage
        self._latest = workdir / "checkpoint.zip"
        folder = kept.folder()
        self._kept = folder / f"{key}.zip" if folder else None
        self._log = log
        self._end = kept.SoftEnd()
        self._end.__enter__()  # until the process ends

    @classmethod
    def open(
        cls, given: Path | None, stage: str, settings: RowSettings, content: Mapping[str, Any], workdir: Path,
        log: logging.Logger,
    ) -> CheckpointKeeper:
        """Finds the state to go on from: the given checkpoint, else one in ``PLM_CHECKPOINT_DIR``.

        Args:
            given: A checkpoint that the user gave, or None.
            stage: Id of the stage that trains, such as ``plm_distill``.
            settings: Settings of this training; those of the checkpoint must be the same, time limit and looks apart.
            content: What else must be the same: digests of data and models, further settings.
            workdir: Folder into which the checkpoint is unpacked.
            log: Logger told which state is taken up.

        Raises:
            UserError: The checkpoint is damaged or belongs to other data, model or settings.
        """
        fixed = {name: value for name, value in asdict(settings).items() if name not in FREE_SETTINGS}
        keeper = cls(stage, training_state.key({"settings": fixed, **content}), workdir, log)
        if given is not None:
            keeper._read(given, workdir / "resume")
        elif keeper._kept is not None and keeper._kept.is_file():
            training_state.open_kept(keeper._kept, lambda state: keeper._read(state, workdir / "resume"), log)
        return keeper

    def _read(self, path: Path, folder: Path) -> None:
        content = training_state.unpack(path, folder, self._stage)
        if content.get("finished"):
            raise UserError(
                "The checkpoint belongs to a training run that has finished", where=path.name,
                fix="Use its model, or continue from that with --model",
            )
        if content.get("key") != self.key:
            raise UserError(
                "The checkpoint belongs to other data, another model or other settings", where=path.name,
                fix="Give the same input and settings (only the time limit may change), or start anew",
            )
        fields = Fields(content, "checkpoint.json", path.name, training_state.AGAIN)
        step, tokens = fields.whole("step", 0, 2**53), fields.whole("tokens", 0, 2**62)
        done = Done(step, tokens, training_state.history_of(content.get("history"), path.name))
        needed = ("model.safetensors", "optimizer.safetensors", "optimizer.json")
        missing = [name for name in needed if not (folder / name).is_file()]
        if missing:
            raise UserError(f"The checkpoint lacks {missing[0]}", where=path.name, fix=training_state.AGAIN)
        self.resume = (folder, done)
        self._log.info("Going on from step %d of an earlier run", done.step)

    @property
    def step(self) -> int:
        """Steps done before this run."""
        return self.resume[1].step if self.resume else 0

    def stopping(self) -> bool:
        """Whether the job has been told to end."""
        return self._end.told

    def save(self, write: Callable[[Path], None], done: Done) -> None:
        """Takes a new state and, if the administrator names a folder, puts it there whole.

        Args:
            write: Writes weights and optimiser into a folder.
            done: Steps, tokens and history so far.
        """
        with tempfile.TemporaryDirectory(prefix="plm_") as scratch:
            folder = Path(scratch)
            write(folder)
            self._write(self._latest, {"finished": False, **asdict(done)}, sorted(folder.iterdir()))
        if self._kept is None:
            return
        kept.replace(self._kept, lambda beside: shutil.copyfile(self._latest, beside))
        self._log.info("Checkpoint at step %d kept for a resubmitted job", done.step)

    def _write(self, path: Path, content: dict[str, object], files: list[Path]) -> None:
        described = {"schema_version": training_state.SCHEMA_VERSION, "stage": self._stage, "key": self.key, **content}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr(zipfile.ZipInfo("checkpoint.json"), json.dumps(described))
            for file in files:
                archive.writestr(zipfile.ZipInfo(file.name), file.read_bytes())

    def export(self, path: Path, *, finished: bool) -> None:
        """Writes the latest state where the user wants it; a finished run leaves a note that it has finished."""
        if finished:
            self._write(path, {"finished": True}, [])
        else:
            path.write_bytes(self._latest.read_bytes())

    def close(self, *, finished: bool) -> None:
        """Removes the kept state of a finished run."""
        if finished and self._kept is not None:
            self._kept.unlink(missing_ok=True)
