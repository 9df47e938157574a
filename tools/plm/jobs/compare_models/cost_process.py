"""A process that holds one model and encodes the same proteins whenever it is told to.

Reads lines from standard input (first a JSON object, then ``go`` or ``end``), writes one JSON object a line; see
:mod:`plm.jobs.compare_models.cost`.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any


def _memory_kib(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    return 0


def main() -> None:
    said = sys.stdout
    sys.stdout = sys.stderr  # whatever a library prints is no answer

    def say(**fields: Any) -> None:
        print(json.dumps(fields), file=said, flush=True)

    order = json.loads(sys.stdin.readline())
    from plm.errors import UserError
    from plm.jobs.compare_models.representation import represent
    from plm.model import device as devices
    from plm.model.checkpoint import family_of, load_model
    from plm.model.loaded import ModelFiles

    try:
        devices.use_threads(order["threads"])
        device = devices.choose_device(order["device"])
        import torch
        import transformers

        files = ModelFiles(order["name"], Path(order["folder"]), "")
        getattr(transformers, family_of(files).encoder_class)  # the code is part of the process, not of the model
        empty = _memory_kib("VmRSS")
        started = time.perf_counter()
        loaded = load_model(files, dtype="bfloat16" if order["precision"] == "bf16" else "float32", device=device)
        loading = time.perf_counter() - started
        parameters = sum(value.numel() for value in loaded.model.parameters())
        represent(loaded, order["sequences"][:2])  # the first call makes what later ones share
        say(parameters=parameters, loading=loading)
        for line in sys.stdin:
            if line.strip() != "go":
                break
            started = time.perf_counter()
            represent(loaded, order["sequences"])
            say(seconds=time.perf_counter() - started)
        cuda = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
        say(peak_mib=_memory_kib("VmHWM") / 1024, empty_mib=empty / 1024, cuda_mib=cuda / 2**20)
    except UserError as error:
        say(error=error.what, where=error.where, fix=error.fix)


if __name__ == "__main__":
    main()
