"""No network in a job, whatever a file says: the hub's client is told so before it is loaded."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_SWITCHES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
_OWN = "PLM_OFFLINE"
"""Set where the switches are this module's own, which the processes that a job starts inherit."""
FORBIDDEN_FROM_OUTSIDE = _OWN not in os.environ and any(
    os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in _SWITCHES[:2]
)


def forbid_network() -> None:
    """Sets the switches of the hub's client and of transformers for this process and those that it starts."""
    for name in _SWITCHES:
        os.environ[name] = "1"
    if not FORBIDDEN_FROM_OUTSIDE:
        os.environ[_OWN] = "1"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    _switch(True)


@contextmanager
def lifted() -> Iterator[None]:
    """The network is there within, because the user chose a model of the hub; unless it was forbidden from outside."""
    if FORBIDDEN_FROM_OUTSIDE:
        yield
        return
    import huggingface_hub.constants  # noqa: F401  (what _switch looks for)

    _switch(False)
    try:
        yield
    finally:
        _switch(True)


def _switch(value: bool) -> None:
    constants = sys.modules.get("huggingface_hub.constants")
    if constants is not None:
        constants.HF_HUB_OFFLINE = value  # type: ignore[attr-defined]
