"""Checkpoints of pretraining as safetensors and JSON: exported at the time limit, kept in the administrator's folder meanwhile."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import tempfile
import zipfile
from dataclasses import asdict
from pathlib import Path
from types import FrameType

from plm.errors import UserError
from plm.learning.corpus import Corpus
from plm.learning.pretraining import PretrainingSettings, TrainingState

KIND = "plm_pretrain checkpoint 1"
_FREE = ("time_limit", "checkpoint_every", "evaluate_every")
"""Settings that may change between the runs of one training."""


class CheckpointKeeper:
    """Holds the latest state of a training run and puts it where it survives the job."""

    def __init__(self, key: str, state: TrainingState | None, folder: Path | None, log: logging.Logger) -> None:
        self.key, self.state, self._folder, self._log = key, state, folder, log
        self._told = False
        signal.signal(signal.SIGTERM, self._tell)

    @classmethod
    def open(
        cls, resume: Path | None, settings: PretrainingSettings, base: str, corpus: Corpus, log: logging.Logger
    ) -> CheckpointKeeper:
        """Finds the state to go on from: the given checkpoint, else one in ``PLM_CHECKPOINT_DIR``.

        Args:
            resume: A checkpoint that the user gave, or None.
            settings: They must be those of the checkpoint, time limit apart.
            base: sha256 of the starting weights.
            corpus: The training sequences.
            log: Where to say so.

        Raises:
            UserError: The checkpoint is damaged or belongs to other data, model or settings.
        """
        fixed = {key: value for key, value in asdict(settings).items() if key not in _FREE}
        digest = hashlib.sha256(json.dumps([fixed, base], sort_keys=True).encode())
        digest.update(corpus.tokens.tobytes())
        digest.update(corpus.offsets.tobytes())
        key = digest.hexdigest()
        kept = os.environ.get("PLM_CHECKPOINT_DIR")
        folder = Path(kept) if kept else None
        state = None
        if resume is not None:
            state = read_state(resume, key)
        elif folder is not None and (folder / f"{key}.zip").is_file():
            state = read_state(folder / f"{key}.zip", key)
        if state is not None:
            log.info("Going on from step %d of an earlier run", state.step)
        return cls(key, state, folder, log)

    @property
    def step(self) -> int:
        """Steps done so far."""
        return self.state.step if self.state else 0

    def _tell(self, signum: int, frame: FrameType | None) -> None:
        self._told = True

    def stopping(self) -> bool:
        """Whether the job has been told to end."""
        return self._told

    def save(self, state: TrainingState) -> None:
        """Takes a new state and, if the administrator names a folder, puts it there whole."""
        self.state = state
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        final = self._folder / f"{self.key}.zip"
        with tempfile.NamedTemporaryFile(dir=self._folder, suffix=".partial", delete=False) as opened:
            temporary = Path(opened.name)
        write_state(state, temporary, self.key)
        temporary.replace(final)
        self._log.info("Checkpoint at step %d kept for a resubmitted job", state.step)

    def export(self, path: Path, *, finished: bool) -> None:
        """Writes the latest state where the user wants it; a finished run leaves a note instead of a state."""
        if finished or self.state is None:
            with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
                archive.writestr(_member("state.json"), json.dumps({"kind": KIND, "key": self.key, "finished": True}))
        else:
            write_state(self.state, path, self.key)

    def close(self, *, finished: bool) -> None:
        """Removes the kept state of a finished run."""
        if finished and self._folder is not None:
            (self._folder / f"{self.key}.zip").unlink(missing_ok=True)


def _member(name: str) -> zipfile.ZipInfo:
    return zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))


def write_state(state: TrainingState, path: Path, key: str) -> None:
    """Writes a checkpoint: ``state.json`` and ``tensors.safetensors`` in a stored zip."""
    from safetensors.torch import save

    info = {"kind": KIND, "key": key, "finished": False, "step": state.step, "tokens": state.tokens,
            "history": state.history}  # fmt: skip
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(_member("state.json"), json.dumps(info))
        archive.writestr(_member("tensors.safetensors"), save(state.tensors))


def read_state(path: Path, key: str) -> TrainingState:
    """Reads a checkpoint back.

    Raises:
        UserError: Damaged, finished, or of other data, model or settings.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        with zipfile.ZipFile(path) as archive:
            info = json.loads(archive.read("state.json"))
            tensors = {} if info.get("finished") else load(archive.read("tensors.safetensors"))
    except (OSError, zipfile.BadZipFile, KeyError, ValueError, SafetensorError) as error:
        raise UserError(f"The checkpoint cannot be read ({error})", where=path.name, fix="Start anew") from error
    if info.get("kind") != KIND:
        raise UserError("This is not a checkpoint of plm_pretrain", where=path.name)
    if info["finished"]:
        raise UserError(
            "The checkpoint belongs to a training run that has finished",
            where=path.name,
            fix="Use its model, or continue from it with --model",
        )
    if info["key"] != key:
        raise UserError(
            "The checkpoint belongs to other data, another model or other settings",
            where=path.name,
            fix="Give the same input and settings (only the time limit may change), or start anew",
        )
    return TrainingState(info["step"], info["tokens"], tensors, info["history"])
