"""Every step's numbers where other programs watch them: TensorBoard events, an MLflow server."""

from __future__ import annotations

import importlib.util
import logging
import math
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from plm.errors import UserError

EXPERIMENT = "plm_distill"
_AT_ONCE = 500
"""Numbers that go to MLflow in one call (its limit is 1000)."""


def check_mlflow() -> None:
    """Whether MLflow is installed; it is no requirement of the suite.

    Raises:
        UserError: It is not.
    """
    if importlib.util.find_spec("mlflow") is None:
        raise UserError(
            "MLflow is not installed, and the suite does not need it", where="--mlflow",
            fix="Leave the option out, or install mlflow (with pandas below 3) into an environment of its own",
        )


class Tracking:
    """Notes steps in a file of TensorBoard events and at an MLflow server; does nothing with neither.

    Args:
        tfevents: The file to write when all is done, or None.
        mlflow: Tracking URI of the MLflow server, or None.
        name: Name of the run.
        parameters: Parameters of the run: name -> value.
        workdir: Folder in which events gather until then.
        log: Logger told when a server does not answer any more.
    """

    def __init__(
        self, tfevents: Path | None, mlflow: str | None, name: str, parameters: Mapping[str, object], workdir: Path,
        log: logging.Logger,
    ) -> None:
        self._tfevents, self._uri = tfevents, mlflow
        self._name, self._parameters, self._folder, self._log = name, parameters, workdir / "events", log
        self._writer: Any = None
        self._client: Any = None
        self._run = ""
        self._waiting: list[tuple[str, float, int]] = []

    def __enter__(self) -> Tracking:
        if self._tfevents is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder))
        if self._uri is not None:
            self._begin()
        return self

    def _begin(self) -> None:
        check_mlflow()
        from mlflow import MlflowClient
        from mlflow.entities import Param

        try:
            client = MlflowClient(tracking_uri=self._uri)
            known = client.get_experiment_by_name(EXPERIMENT)
            experiment = client.create_experiment(EXPERIMENT) if known is None else known.experiment_id
            self._run = client.create_run(experiment, run_name=self._name).info.run_id
            params = [Param(key, str(value)[:500]) for key, value in self._parameters.items()]
            client.log_batch(self._run, params=params[:100])
        except Exception as error:  # the client raises a dozen unrelated classes
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(
                f"MLflow cannot be used: {reason}", where="--mlflow", fix="Check the address of the tracking server"
            ) from error
        self._client = client

    def step(self, step: int, known: Mapping[str, float]) -> None:
        """Notes the numbers of a step; what is not known (NaN) is left out."""
        for name, value in known.items():
            if name in ("step", "tokens", "epoch") or not math.isfinite(value):
                continue
            if self._writer is not None:
                self._writer.add_scalar(name, value, step)
            if self._client is not None:
                self._waiting.append((name, float(value), step))
        if len(self._waiting) >= _AT_ONCE:
            self._send()

    def _send(self) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        batch, self._waiting = self._waiting, []
        try:
            for start in range(0, len(batch), _AT_ONCE):
                part = [Metric(name, value, now, step) for name, value, step in batch[start : start + _AT_ONCE]]
                self._client.log_batch(self._run, metrics=part)
        except Exception as error:  # training must not die of a server that went away
            reason = (str(error) or type(error).__name__).splitlines()[0]
            self._log.info("MLflow does not answer any more; the history table has all numbers: %s", reason)
            self._client = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._client is not None and self._waiting:
            self._send()
        if self._client is not None:
            self._client.set_terminated(self._run, "FINISHED" if kind is None else "FAILED")
        if self._writer is None:
            return
        self._writer.close()
        if kind is None and self._tfevents is not None:
            written = sorted(self._folder.glob("events.out.tfevents.*"))
            shutil.move(str(written[0]), self._tfevents)
