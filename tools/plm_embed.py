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

import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from plm import stage
from plm.errors import UserError

if TYPE_CHECKING:
    from plm.data.protein_store import Spool
    from plm.model.embedding.representations import Wanted
    from plm.model.embedding.sharded import EmbedJob
    from plm.model.loaded import LoadedModel, ModelFiles

NAME = "plm_embed"
FORMATS = ("hdf5", "hdf5-uniprot", "npz", "parquet", "tabular")


@dataclass(frozen=True)
class Arguments:
    """The command line; see ``--help``."""

    input: Path
    model: str
    allow_hub: bool
    pooling: str
    layers: str
    store: str
    format: str
    duplicate_ids: str
    nucleotides: str
    unusual: str
    embeddings: Path
    status: Path | None
    logits: Path | None
    pseudo_perplexity: Path | None
    perplexity_mode: str
    contacts: Path | None
    contact_threshold: float
    max_residues: int
    max_memory: int | None
    batch_tokens: int
    work_dir: Path | None
    device: str
    precision: str

    def __post_init__(self) -> None:
        if not 0 <= self.contact_threshold <= 1:
            raise UserError(
                f"{self.contact_threshold:g} is no probability", where="--contact-threshold", fix="Choose 0 to 1"
            )
        if self.max_residues and not 64 <= self.max_residues <= 10**6:
            raise UserError(
                f"{self.max_residues} is out of range", where="--max-residues", fix="Choose 64 to 1000000, or 0"
            )
        if self.max_memory is not None and self.max_memory < 1:
            raise UserError(f"{self.max_memory} MiB is no memory", where="--max-memory", fix="Give it in MiB")
        if self.batch_tokens and not 64 <= self.batch_tokens <= 10**7:
            raise UserError(
                f"{self.batch_tokens} is out of range", where="--batch-tokens", fix="Choose 64 to 10000000, or 0"
            )


def parse(argv: Sequence[str] | None) -> Arguments:
    parser = stage.parser(NAME, __doc__ or "")
    add = parser.add_argument
    add("--input", type=Path, required=True, help="FASTA, or a table with the columns id and sequence (and position)")
    add("--model", default="starter", help="starter, folder, zip or hub:name (default: the built-in one)")
    add("--allow-hub", action="store_true", help="let --model hub:... use the network")
    add(
        "--pooling",
        choices=("mean", "max", "first", "residues", "sites"),
        default="mean",
        help="one vector a protein: mean or maximum over its residues, or the model's start token; or one vector a "
        "residue; or of the residue in the column position of each row",
    )
    add("--layers", default="last", help="last, all, or numbers: 0 = token embeddings, -1 = last, e.g. 0,6,-1")
    add("--store", choices=("float32", "float16"), default="float32", help="how numbers are stored")
    add("--format", choices=FORMATS, default="hdf5", help="of the embeddings file")
    add("--duplicate-ids", choices=("error", "rename", "first"), default="error", help="when an id comes again")
    add("--nucleotides", choices=("reject", "keep"), default="reject", help="records that are clearly DNA or RNA")
    add(
        "--unusual", choices=("own", "x"), default="own",
        help="U, Z, O and B: the model's own letters where it has them (ESM), else X; or X always, as training does",
    )  # fmt: skip
    add("--embeddings", type=stage.output_file, required=True, help="the embeddings file")
    add("--status", type=stage.output_file, help="table of what became of each input record")
    text = "table of each residue's log-probabilities of the amino acids (ESM models)"
    add("--logits", type=stage.output_file, help=text)
    add("--pseudo-perplexity", type=stage.output_file, help="table of each protein's pseudo-perplexity (ESM models)")
    add(
        "--perplexity-mode",
        choices=("single", "masked"),
        default="single",
        help="single: from the same pass as the embeddings, the residue being visible; masked: each residue hidden in "
        "turn, which takes as many passes as the protein has residues (350 times the work for a usual protein)",
    )
    text = "table of residue pairs that probably touch (ESM models with contact regression)"
    add("--contacts", type=stage.output_file, help=text)
    add("--contact-threshold", type=float, default=0.3, help="lowest probability that is listed")
    add(
        "--max-residues", type=int, default=0,
        help="longer proteins go in overlapping windows of this length (default: only what the memory does not hold)",
    )  # fmt: skip
    add("--max-memory", type=int, help="MiB that the job may use on its processor or GPU (default: what there is)")
    add("--batch-tokens", type=int, default=0, help="residues encoded together (default: what suits the machine)")
    add("--work-dir", type=Path, help="folder for finished parts (default: PLM_CHECKPOINT_DIR, else a temporary one)")
    add("--device", default="auto", help="auto, cpu or cuda")
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="arithmetic of matrix products")
    return Arguments(**vars(parser.parse_args(argv)))


def run(argv: Sequence[str] | None) -> None:
    args = parse(argv)
    log = stage.log(NAME)
    stage.require({"torch": "2.6", "transformers": "5.2", "safetensors": "0.5", "h5py": "3.10", "pyarrow": "14"})
    from plm.data.protein_store import read_spool

    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="plm_")))
        # Everything wrong with the input is found before the model is loaded.
        read = partial(
            read_spool, args.input, duplicates=args.duplicate_ids, sites=args.pooling == "sites",
            nucleotides=args.nucleotides,
        )  # fmt: skip
        spool = read(scratch / "spool", unusual=args.unusual)
        from plm.model import device as devices
        from plm.model.embedding import setup
        from plm.model.ranks import Ranks

        ranks = Ranks.join()
        stack.callback(ranks.leave)
        log.disabled = not ranks.leads
        devices.use_threads(max(1, stage.threads() // ranks.here))
        chosen = devices.choose_device(args.device)
        if chosen.type == "cuda" and ranks.world > 1:
            chosen = devices.choose_device(f"cuda:{ranks.local}")
        precision = devices.choose_precision(args.precision, chosen)
        devices.announce(log, chosen, precision)
        files, loaded, wanted = _load(args, scratch, chosen, precision)
        if spool.own and not loaded.family.own_letters(loaded.vocabulary):
            spool = read(scratch / "as_x")  # the model's authors took them for X
        elif spool.own:
            log.info("%d records have U, Z, O or B, which this model knows as letters of their own", spool.own)
        settings = setup.Settings(
            args.duplicate_ids, precision, args.batch_tokens, args.max_residues, args.max_memory
        )
        if spool.warning:
            log.warning("Note: %s", spool.warning)
        store = setup.open_store(
            spool, files, wanted, settings, name=NAME, device=chosen.type, work_dir=args.work_dir, scratch=scratch,
            ranks=ranks, stack=stack, log=log,
        )  # fmt: skip
        job = setup.begin(spool, loaded, wanted, settings, store, ranks, log)
        missing = job.missing()
        setup.announce(job, missing, precision, ranks, log)
        ranks.meet()  # a shard that appears from now on was made by its owner
        job.compute(missing)
        ranks.meet()
        if not ranks.leads:
            return
        while broken := job.missing():
            job.compute(broken, Ranks())
        with stage.Outputs() as outputs:
            _write(args, job, files, precision, outputs)
        store.remove()
        _finish(spool, job, log)


def _load(args: Arguments, scratch: Path, device: object, precision: str) -> tuple[ModelFiles, LoadedModel, Wanted]:
    from plm.model.checkpoint import load_model, resolve_model
    from plm.model.embedding.representations import Wanted, check_wanted, parse_layers

    files = resolve_model(args.model, workdir=scratch, allow_hub=args.allow_hub)
    head = args.logits is not None or args.pseudo_perplexity is not None
    loaded = load_model(
        files, purpose="masked_lm" if head else "encoder", dtype="bfloat16" if precision == "bf16" else "float32",
        device=device,
    )  # fmt: skip
    wanted = Wanted(
        layers=parse_layers(args.layers, loaded.layers),
        pooling=args.pooling,  # type: ignore[arg-type]
        dtype=args.store,  # type: ignore[arg-type]
        logits=args.logits is not None,
        perplexity=args.perplexity_mode if args.pseudo_perplexity is not None else "",  # type: ignore[arg-type]
        contacts=args.contact_threshold if args.contacts is not None else None,
    )
    check_wanted(loaded, wanted)
    return files, loaded, wanted


def _write(args: Arguments, job: EmbedJob, files: ModelFiles, precision: str, outputs: stage.Outputs) -> None:
    """Assembles the outputs from the shards, in the order of the input."""
    from plm.data.embeddings.description import UNUSUAL
    from plm.data.embeddings.files import Description, write_embeddings
    from plm.jobs.embed import side_tables

    spool, wanted, loaded = job.spool, job.embedder.wanted, job.embedder.loaded
    accepted = spool.accepted
    windows = job.windows()
    known = args.unusual == "own" and bool(loaded.family.own_letters(loaded.vocabulary))
    notes = {
        "precision": precision, "windowed_proteins": str(int((windows[spool.unique[accepted]] > 1).sum())),
        UNUSUAL: "own" if known else "x",
    }  # fmt: skip
    description = Description(
        files.id, files.sha256, wanted.layers, wanted.pooling, wanted.dtype, job.embedder.loaded.hidden_size, notes
    )
    write_embeddings(
        outputs.path(args.embeddings), args.format, description, spool.ids.select(accepted), job.values(),
        lengths=spool.lengths[spool.unique[accepted]] if wanted.pooling == "residues" else None,
        positions=spool.positions[accepted] if wanted.pooling == "sites" else None,
    )  # fmt: skip
    if args.status:
        side_tables.write_status(outputs.path(args.status), spool, windows)
    if args.logits:
        side_tables.write_logits(outputs.path(args.logits), spool, job.logits())
    if args.pseudo_perplexity:
        path = outputs.path(args.pseudo_perplexity)
        side_tables.write_perplexity(path, spool, job.perplexity(), wanted.perplexity)
    if args.contacts:
        side_tables.write_contacts(outputs.path(args.contacts), spool, job.contacts())


def _finish(spool: Spool, job: EmbedJob, log: stage.logging.Logger) -> None:
    records, accepted = len(spool.ids), len(spool.accepted)
    log.info(
        "%d records: %d embedded (%d different sequences), %d rejected",
        records, accepted, len(spool.lengths), records - accepted,
    )  # fmt: skip


def main() -> None:
    stage.main(NAME, run, sys.argv[1:])


if __name__ == "__main__":
    main()
