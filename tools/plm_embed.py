#!/usr/bin/env python3
"""Turn proteins into embeddings: numbers in which a protein language model has put what it knows of them.

Inputs: proteins (FASTA, plain or gzipped; or a data set table, tab-separated or Parquet) of any length, and a model.
Outputs: an embeddings file, one vector a protein, a residue or a site, in the order of the input; a status table that
names every input record; on request log-probabilities of the amino acids, pseudo-perplexity and predicted contacts.

A job that was killed goes on where it stopped if it is started again with the same inputs and PLM_CHECKPOINT_DIR (or
--work-dir) names a folder that outlives it. With several GPUs: torchrun --nproc-per-node 4 plm_embed.py ...

Example:
    python plm_embed.py --input proteins.fasta --model starter --embeddings proteins.h5 --status status.tsv
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from plm import flags, stage

if TYPE_CHECKING:
    import torch
    from plm.data.protein_store import ProteinStore
    from plm.model.device import Precision
    from plm.model.embedding.representations import Pooling, Wanted
    from plm.model.embedding.sharded import EmbedJob
    from plm.model.loaded import LoadedModel, ModelFiles

NAME = "plm_embed"


class Arguments(flags.Hub, flags.Proteins, flags.Embedding, flags.Device):
    """The command line; see ``--help``."""

    input: Path = flags.source("FASTA, or a table with the columns id and sequence (and position)", required=True)
    model: str = flags.text("starter, folder, zip or hub:name (default: the built-in one)", "starter")
    pooling: Pooling = flags.choice(
        ("mean", "max", "first", "residues", "sites"),
        "one vector a protein: mean or maximum over its residues, or the model's start token; or one vector a "
        "residue; or of the residue in the column position of each row",
    )
    layers: str = flags.text("last, all, or numbers: 0 = token embeddings, -1 = last, e.g. 0,6,-1", "last")
    store: Literal["float32", "float16"] = flags.choice(("float32", "float16"), "how numbers are stored")
    format: str = flags.choice(flags.EMBEDDING_FORMATS, "of the embeddings file")
    unusual: str = flags.choice(
        ("own", "x"),
        "U, Z, O and B: the model's own letters where it has them (ESM, Ankh), else X; or X always, as training does",
    )
    int8: bool = flags.switch(
        "matrix products in 8-bit integers, for processors without bfloat16, up to 4 times as fast as float32; the log "
        "says how far representations move"
    )
    embeddings: Path = flags.output("the embeddings file", required=True)
    status: Path | None = flags.status()
    logits: Path | None = flags.output(
        "table of each residue's log-probabilities of the amino acids (ESM and BERT models)"
    )
    pseudo_perplexity: Path | None = flags.output("table of each protein's pseudo-perplexity (ESM and BERT models)")
    perplexity_mode: Literal["single", "masked"] = flags.choice(
        ("single", "masked"),
        "single: from the same pass as the embeddings, the residue being visible; masked: each residue hidden in "
        "turn, which takes as many passes as the protein has residues (350 times the work for a usual protein)",
    )
    contacts: Path | None = flags.output(
        "table of residue pairs that probably touch (ESM models with contact regression)"
    )
    contact_threshold: float = flags.number(
        0.3, "lowest probability that is listed", 0, 1, wrong="{} is no probability"
    )


def run(argv: Sequence[str] | None) -> None:
    args = flags.read(Arguments, NAME, __doc__, argv)
    log = stage.log(NAME)
    stage.require({"torch": "2.6", "transformers": "5.2", "safetensors": "0.5", "h5py": "3.10", "pyarrow": "14"})
    from plm.data.protein_store import store_proteins

    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="plm_")))
        # Everything wrong with the input is found before the model is loaded.
        read = partial(
            store_proteins, args.input, duplicates=args.duplicate_ids, sites=args.pooling == "sites",
            nucleotides=args.nucleotides,
        )
        proteins = read(scratch / "proteins", unusual=args.unusual)
        from plm.model import device as devices
        from plm.model.embedding import setup
        from plm.model.ranks import Ranks

        ranks = Ranks.join()
        stack.callback(ranks.leave)
        log.disabled = not ranks.leads
        device, precision = devices.settle(args.device, args.precision, stage.threads(), log, ranks)
        files, loaded, wanted, precision = _load(args, scratch, device, precision, log)
        if proteins.own and not loaded.family.own_letters(loaded.vocabulary):
            proteins = read(scratch / "as_x")  # the model's authors took them for X
        elif proteins.own:
            log.info("%d records have U, Z, O or B, which this model knows as letters of their own", proteins.own)
        precision_name = "int8" if args.int8 else precision
        settings = setup.EmbeddingSettings(
            args.duplicate_ids, precision_name, args.batch_tokens, args.max_residues, args.max_memory
        )
        if proteins.warning:
            log.warning("Note: %s", proteins.warning)
        if args.int8:
            from plm.model import int8_products

            some = range(min(int8_products.PROBES, len(proteins.lengths)))
            cosine = int8_products.reduce(loaded, [proteins.sequences[number] for number in some])
            log.info("8-bit products: the mean representations of some proteins keep a cosine of %.4f or more", cosine)
        job = setup.embed(
            proteins, files, loaded, wanted, settings, name=NAME, work_dir=args.work_dir, scratch=scratch, ranks=ranks,
            stack=stack, log=log, outputs=args.embeddings.parent,
        )
        if not ranks.leads:
            return
        with stage.Outputs() as outputs:
            _write(args, job, files, precision_name, outputs)
        job.store.remove()
        _finish(proteins, job, log)


def _load(
    args: Arguments, scratch: Path, device: torch.device, precision: Precision, log: stage.logging.Logger
) -> tuple[ModelFiles, LoadedModel, Wanted, Precision]:
    from plm.model.checkpoint import family_of, load_model, resolve_model
    from plm.model.device import DTYPES, half_where_safe
    from plm.model.embedding.representations import Wanted, check_wanted, parse_layers

    files = resolve_model(args.model, workdir=scratch, allow_hub=args.allow_hub)
    head = args.logits is not None or args.pseudo_perplexity is not None
    safe = family_of(files).half_safe
    if args.int8:
        from plm.model import int8_products

        int8_products.check(device, precision)
    precision = half_where_safe(args.precision, precision, device, half_safe=safe, log=log)
    loaded = load_model(files, purpose="masked_lm" if head else "encoder", dtype=DTYPES[precision], device=device)
    wanted = Wanted(
        layers=parse_layers(args.layers, loaded.layers), pooling=args.pooling, dtype=args.store,
        logits=args.logits is not None, perplexity=args.perplexity_mode if args.pseudo_perplexity is not None else "",
        contacts=args.contact_threshold if args.contacts is not None else None,
    )
    check_wanted(loaded, wanted)
    return files, loaded, wanted, precision


def _write(args: Arguments, job: EmbedJob, files: ModelFiles, precision: str, outputs: stage.Outputs) -> None:
    """Assembles the outputs from the shards, in the order of the input."""
    from plm.data.embeddings.description import UNUSUAL
    from plm.data.embeddings.files import Description, write_embeddings
    from plm.jobs.embed import side_tables

    proteins, wanted, loaded = job.proteins, job.embedder.wanted, job.embedder.loaded
    accepted = proteins.accepted
    windows = job.windows()
    known = args.unusual == "own" and bool(loaded.family.own_letters(loaded.vocabulary))
    notes = {
        "precision": precision,
        "windowed_proteins": str(int((windows[proteins.unique[accepted]] > 1).sum())),
        UNUSUAL: "own" if known else "x",
    }
    description = Description(
        files.id, files.sha256, wanted.layers, wanted.pooling, wanted.dtype, job.embedder.loaded.hidden_size, notes
    )
    write_embeddings(
        outputs.path(args.embeddings), args.format, description, proteins.ids.select(accepted), job.values(),
        lengths=proteins.lengths[proteins.unique[accepted]] if wanted.pooling == "residues" else None,
        positions=proteins.positions[accepted] if wanted.pooling == "sites" else None,
    )
    if args.status:
        side_tables.write_status(outputs.path(args.status), proteins, windows)
    if args.logits:
        side_tables.write_logits(outputs.path(args.logits), proteins, job.logits())
    if args.pseudo_perplexity:
        path = outputs.path(args.pseudo_perplexity)
        side_tables.write_perplexity(path, proteins, job.perplexity(), wanted.perplexity)
    if args.contacts:
        side_tables.write_contacts(outputs.path(args.contacts), proteins, job.contacts())


def _finish(proteins: ProteinStore, job: EmbedJob, log: stage.logging.Logger) -> None:
    records, accepted = len(proteins.ids), len(proteins.accepted)
    log.info(
        "%d records: %d embedded (%d different sequences), %d rejected", records, accepted, len(proteins.lengths),
        records - accepted,
    )


if __name__ == "__main__":
    stage.main(NAME, run)
