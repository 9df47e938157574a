"""Checkpoints of training on rows: exported at the time limit, and kept in the administrator's folder meanwhile."""

from __future__ import annotations

import json
import logging
import shutil
import signal
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from plm import disk_space, kept, stage
from plm.errors import UserError
from plm.received.fields import Fields
from plm.training import training_state
from plm.training.kept_state import KeptState
from plm.training.row_training import FREE_SETTINGS, Done, RowSettings


def room_for_states(parameters: int, trained: int) -> str:
    """Asks for the room that the state of a training takes among temporary files.

    Args:
        parameters: Numbers of the model, of four bytes.
        trained: Those of them that are trained, of which the optimiser keeps two more each.

    Returns:
        The room, as people say it: the state is written as tensors, and from these as an archive.

    Raises:
        DiskFull: There is less.
    """
    wanted = 2 * (4 * parameters + 8 * trained)
    disk_space.require([(Path(tempfile.gettempdir()), wanted)], "the states of the training")
    return disk_space.size(wanted)


class CheckpointKeeper:
    """Holds the latest state of a training run and puts it where it survives the job.

    Attributes:
        key: Digest of data, model and settings.
        resume: Folder and counts to go on from, or None.
    """

    def __init__(
        self, stage: str, key: str, workdir: Path, log: logging.Logger, steps: int, asked: Path | None
    ) -> None:
        self.key = key
        self.resume: tuple[Path, Done] | None = None
        self._stage, self._steps, self._asked = stage, steps, asked
        self._latest = workdir / "checkpoint.zip"
        self._kept = KeptState(f"{key}.zip", log)
        self._log = log
        self._end = kept.SoftEnd()
        self._end.__enter__()  # until training has ended

    @classmethod
    def open(
        cls, given: Path | None, stage: str, settings: RowSettings, content: Mapping[str, Any], workdir: Path,
        log: logging.Logger, *, asked: Path | None = None,
    ) -> CheckpointKeeper:
        """Finds the state to go on from: the given checkpoint, else one in ``PLM_CHECKPOINT_DIR``.

        Args:
            given: A checkpoint that the user gave, or None.
            stage: Id of the stage that trains, such as ``plm_distill``.
            settings: Settings of this training; those of the checkpoint must be the same, time limit and looks apart.
            content: What else must be the same: digests of data and models, further settings.
            workdir: Folder into which the checkpoint is unpacked.
            log: Logger told which state is taken up.
            asked: Where the user wants a checkpoint; one is written there, too, if the job is told to end.

        Raises:
            UserError: The checkpoint is damaged or belongs to other data, model or settings.
        """
        fixed = {name: value for name, value in asdict(settings).items() if name not in FREE_SETTINGS}
        key = training_state.key({"settings": fixed, **content})
        keeper = cls(stage, key, workdir, log, settings.steps, asked)
        if given is not None:
            keeper._read(given, workdir / "resume")
        else:
            keeper._kept.take_up(lambda state: keeper._read(state, workdir / "resume"))
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
        history = training_state.history_of(content.get("history"), path.name)
        done = Done(step, tokens, history, *_sums(fields), _owed(fields, path.name))
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
        """Takes a new state and puts it into the administrator's folder, or where the user wants it if the job ends.

        That of a training's last step serves a job that ends before its outputs are written, and nobody else.

        Args:
            write: Writes weights and optimiser into a folder.
            done: Steps, tokens and history so far.
        """
        if done.step >= self._steps and self._kept.path is None and self._asked is None:
            return
        with tempfile.TemporaryDirectory(prefix="plm_") as scratch:
            folder = Path(scratch)
            write(folder)
            self._write(self._latest, {"finished": False, **asdict(done)}, sorted(folder.iterdir()))
        if self._kept.put(lambda beside: shutil.copyfile(self._latest, beside)):
            self._log.info("Checkpoint at step %d kept for a resubmitted job", done.step)
        if self._end.told:
            self._hand_over()

    def trained(self) -> None:
        """From now on the job ends at once when it is told to, with the last state where the user wants one."""
        if self._end.told:
            self._leave()
        self._end.__exit__(None, None, None)
        if self._asked is not None and self._latest.is_file():
            signal.signal(signal.SIGTERM, self._leave)

    def _leave(self, signum: int = 0, frame: FrameType | None = None) -> NoReturn:
        self._hand_over()
        sys.exit(stage.EXIT_TERMINATED)

    def _hand_over(self) -> None:
        if self._asked is not None and self._latest.is_file():
            with stage.Outputs() as outputs:
                shutil.copyfile(self._latest, outputs.path(self._asked))
            self._log.info("Checkpoint written to %s", self._asked)

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
        """Removes the kept state of a finished run; that of another is left to the next job."""
        if finished:
            self._kept.remove()
        else:
            self._kept.leave()


def _sums(fields: Fields) -> tuple[dict[str, tuple[float, int]], dict[str, int]]:
    """Sums since the last record, and rows in which terms were undefined; none in states of earlier versions."""
    sums, undefined = {}, {}
    if "sums" in fields:
        held = fields.inside("sums")
        for name in held.content:
            total, count = (*held.numbers(name, -1e300, 1e300, most=2), 0.0, 0.0)[:2]
            sums[name] = (total, int(count))
    if "undefined" in fields:
        held = fields.inside("undefined")
        undefined = {name: held.whole(name, 0, 2**53) for name in held.content}
    return sums, undefined


def _owed(fields: Fields, where: str) -> dict[str, Any] | None:
    """The record whose look at the held-out clusters is still to be done."""
    record = fields.content.get("owed")
    return None if record is None else training_state.history_of([record], where)[0]
