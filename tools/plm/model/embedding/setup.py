"""How an embedding job is set up: what is wanted of a model, the folder of finished parts, the memory, the plan.

What plm_embed and plm_predict share, so that both give the same numbers for the same proteins.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from plm import __version__, disk_space, kept, stage
from plm.data.protein_store import ProteinStore
from plm.data.shards import Lock, ShardStore, key
from plm.model.capacity import capacity
from plm.model.checkpoint import read_config, read_vocabulary
from plm.model.embedding.representations import Embedder, Wanted
from plm.model.embedding.sharded import EmbedJob
from plm.model.embedding.work_plan import first_budget, measured_capacity, stored_bytes
from plm.model.loaded import LoadedModel, ModelFiles
from plm.model.ranks import Ranks


@dataclass(frozen=True)
class EmbeddingSettings:
    """What the numbers of an embedding job depend on beside input and model.

    Attributes:
        duplicates: Policy for repeated ids: ``error``, ``rename`` or ``first`` (:mod:`plm.data.unique_ids`).
        precision: ``fp32``, ``bf16`` or ``fp16``.
        batch_tokens: Residues encoded together; 0: what suits the machine.
        max_residues: Longer proteins go in windows of this length; 0: as long as the memory holds.
        max_memory: MiB that the job may use; None: what there is.
    """

    duplicates: str
    precision: str
    batch_tokens: int = 0
    max_residues: int = 0
    max_memory: int | None = None


def open_store(
    proteins: ProteinStore, files: ModelFiles, wanted: Wanted, settings: EmbeddingSettings, *, name: str, device: str,
    work_dir: Path | None, scratch: Path, ranks: Ranks, stack: ExitStack, log: logging.Logger,
) -> ShardStore:
    """The folder of this very work: equal input, model and settings find it again, others never.

    Args:
        proteins: Proteins of the input.
        files: Checkpoint of the model.
        wanted: Layers, pooling and extras to compute.
        settings: Precision, batch and window lengths, and the policy for repeated ids.
        name: The stage's, for the folder's name.
        device: ``cpu`` or ``cuda``.
        work_dir: Where folders outlive the job; None: ``PLM_CHECKPOINT_DIR``, else nowhere.
        scratch: Folder for parts that do not outlive the job.
        ranks: The processes of the job.
        stack: Keeps the folder's lock until it is closed.
        log: Told why parts are not kept.
    """
    content = {
        "suite": __version__, "input": proteins.digest, "duplicates": settings.duplicates, "weights": files.sha256,
        "config": read_config(files.directory), "vocabulary": read_vocabulary(files.directory),
        "wanted": asdict(wanted), "precision": settings.precision, "device": device,
        "batch_tokens": settings.batch_tokens, "max_residues": settings.max_residues,
    }
    digest = key(content)
    outlives = work_dir or kept.folder()
    folder = scratch / "shards"
    if ranks.leads and outlives is not None:
        if not outlives.is_dir():
            log.info("The folder %s does not exist: a killed job will start anew", outlives)
        else:
            lock = stack.enter_context(Lock(outlives / f"{name}-{digest[:32]}"))
            if lock.held:
                folder = outlives / f"{name}-{digest[:32]}"
            else:
                log.info("Finished parts are not kept in %s: %s", outlives, lock.why)
    return ShardStore(Path(ranks.told(str(folder))), digest)


def begin(
    proteins: ProteinStore, loaded: LoadedModel, wanted: Wanted, settings: EmbeddingSettings, store: ShardStore,
    ranks: Ranks, log: logging.Logger,
) -> EmbedJob:
    """The job, with the budget that the memory allows.

    Raises:
        UserError: The memory does not hold the smallest batch.
    """
    one = np.ones(1, np.int64)
    kept = int(stored_bytes(wanted, loaded.hidden_size, one, one)[0])
    inner = set(wanted.layers) != {loaded.layers}
    room = capacity(loaded, settings.max_memory, inner_layers=inner, kept_per_token=kept)
    room = measured_capacity(room, loaded, wanted)
    budget = first_budget(room, loaded, wanted, batch_tokens=settings.batch_tokens, max_residues=settings.max_residues)
    return EmbedJob(proteins, Embedder(loaded, wanted, room), store, budget, ranks, log)


def stored(job: EmbedJob, missing: list[int]) -> int:
    """Bytes of temporary files that the missing parts of a job will take."""
    proteins, embedder = job.proteins, job.embedder
    counts = np.bincount(proteins.unique[proteins.accepted], minlength=len(proteins.lengths))
    sizes = stored_bytes(embedder.wanted, embedder.loaded.hidden_size, proteins.lengths, counts)
    begins = [0, *job.ends[:-1]]
    return sum(int(sizes[begins[number] : job.ends[number]].sum()) for number in missing)


def announce(
    job: EmbedJob, missing: list[int], precision: str, ranks: Ranks, log: logging.Logger, outputs: Path | None = None
) -> None:
    """Says what is to be done, on what, and for how long.

    Raises:
        DiskFull: The disk has less room than the parts, and the numbers in the outputs, will take.
    """
    proteins, budget, loaded = job.proteins, job.budget, job.embedder.loaded
    lengths = proteins.lengths
    if len(missing) < len(job.ends):
        log.info("Going on from an earlier run: %d of %d parts are done", len(job.ends) - len(missing), len(job.ends))
    parts = stored(job, missing)
    if ranks.leads:
        needs = [(job.store.folder, parts)]
        if outputs is not None:
            needs.append((outputs, stored(job, list(range(len(job.ends))))))
        disk_space.require(needs, "the numbers")
    seconds = job.seconds(missing) if ranks.leads else None
    cut = int((job.planned_windows() > 1).sum())
    log.info(
        "Plan: %d proteins of %d records (%d different sequences), %d residues, longest %d, %s; %s%s, %s, "
        "batches of %d tokens, about %.1f GiB of memory, %s of temporary files; about %s",
        len(proteins.accepted), len(proteins.ids), len(lengths), int(lengths.sum()), int(lengths.max()),
        f"{cut} in windows of {budget.whole}" if cut else "all whole", loaded.device.type,
        f" x {ranks.world}" if ranks.world > 1 else "", precision, budget.tokens, job.memory() / 2**30,
        disk_space.size(parts), "unknown time" if seconds is None else stage.duration(seconds),
    )


def embed(
    proteins: ProteinStore, files: ModelFiles, loaded: LoadedModel, wanted: Wanted, settings: EmbeddingSettings, *,
    name: str, work_dir: Path | None, scratch: Path, ranks: Ranks, stack: ExitStack, log: logging.Logger,
    outputs: Path | None = None,
) -> EmbedJob:
    """Embeds all proteins; what an earlier job of the same content has done is not done again.

    Args: as for :func:`open_store`, the loaded model, and the folder of the outputs, if these will hold the numbers.

    Returns:
        The job, whose parts are complete in the leading process.
    """
    store = open_store(
        proteins, files, wanted, settings, name=name, device=loaded.device.type, work_dir=work_dir, scratch=scratch,
        ranks=ranks, stack=stack, log=log,
    )
    job = begin(proteins, loaded, wanted, settings, store, ranks, log)
    missing = job.missing()
    announce(job, missing, settings.precision, ranks, log, outputs)
    ranks.meet()  # a shard that appears from now on was made by its owner
    job.compute(missing)
    ranks.meet()
    while ranks.leads and (broken := job.missing()):
        job.compute(broken, Ranks())
    return job
