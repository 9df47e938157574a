"""What every training takes from the transformers Trainer: its loop, and nothing that it writes, logs or measures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, Trainer, TrainingArguments
from transformers.trainer_callback import ProgressCallback


def quiet_arguments(folder: str | Path, device: torch.device, schedule: str, **options: Any) -> TrainingArguments:
    """Arguments of a Trainer that trains on one device and does nothing beside.

    Args:
        folder: The Trainer wants one; nothing is written there.
        device: Device on which the model is trained.
        schedule: ``linear``, ``cosine`` or ``constant`` after the warm-up.
        options: Further fields of ``TrainingArguments``.
    """
    on_gpu = device.type == "cuda"
    arguments = TrainingArguments(
        output_dir=str(folder), lr_scheduler_type="constant_with_warmup" if schedule == "constant" else schedule,
        use_cpu=device.type == "cpu", save_strategy="no", eval_strategy="no", logging_strategy="no", report_to=[],
        disable_tqdm=True, remove_unused_columns=False, dataloader_pin_memory=on_gpu,
        accelerator_config={"non_blocking": on_gpu},
        logging_nan_inf_filter=False,  # it would wait for the device at each step; the suite looks for itself
        **options,
    )
    # A packed row cannot be split among devices by DataParallel: several GPUs are used through torchrun.
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def silence(trainer: Trainer) -> None:
    """Takes away what the Trainer prints."""
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
