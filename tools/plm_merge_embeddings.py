#!/usr/bin/env python3
"""Merge the embeddings files of the parts of one input, with nothing lost.

Inputs: embeddings files that plm_embed wrote for parts of a FASTA file (plm_split_fasta), in their order, and perhaps
its status tables in the same order.
Outputs: one embeddings file, as one run over the whole file writes it; one status table with every input record.

Example:
    python plm_merge_embeddings.py --input part_0001.h5 --input part_0002.h5 --output proteome.h5
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from plm import flags, stage
from plm.errors import UserError

NAME = "plm_merge_embeddings"


class Arguments(flags.Flags):
    """The command line; see ``--help``."""

    input: list[Path] = flags.source("embeddings file of a part; give it again for each", again=True, required=True)
    status: list[Path] = flags.source("status table of a part, in the same order", again=True)
    format: str = flags.choice(flags.EMBEDDING_FORMATS, "of the merged file (default: hdf5)")
    duplicate_ids: str = flags.duplicate_ids("when parts have an id in common")
    output: Path = flags.output("the merged embeddings file", required=True)
    merged_status: Path | None = flags.output("what became of each input record, of all parts")

    def check(self) -> None:
        if (self.merged_status is None) != (not self.status):
            raise UserError(
                "Give status tables and where to write theirs", where="--status and --merged-status",
                fix="Give both or neither",
            )
        if self.status and len(self.status) != len(self.input):
            raise UserError(
                f"There are {len(self.status)} status tables for {len(self.input)} embeddings files", where="--status",
                fix="Give one for each, in the same order",
            )


def run(argv: Sequence[str] | None) -> None:
    args = flags.read(Arguments, NAME, __doc__, argv)
    log = stage.log(NAME)
    stage.require({"h5py": "3.10", "pyarrow": "14"})
    from plm.jobs.split_merge import merged_embeddings as merging

    parts = merging.read_parts(args.input)
    for part in parts:
        log.info("%s: %d records", part.name, len(part.ids))
    description, remarks = merging.common_description(parts)
    settled = merging.settle_ids(parts, args.duplicate_ids)
    for remark in remarks:
        log.warning("Note: %s", remark)
    if settled.remarks:
        done = "renamed" if args.duplicate_ids == "rename" else "left out"
        log.warning("Note: %d records were %s, since their id had been used before", len(settled.remarks), done)
    with stage.Outputs() as outputs:
        written = merging.write_merged(outputs.path(args.output), args.format, description, parts, settled)
        if args.merged_status:
            records, embedded = merging.merge_status(outputs.path(args.merged_status), args.status, parts, settled)
            log.info("Status: %d records, %d embedded, %d rejected", records, embedded, records - embedded)
    log.info(
        "%d records of %d parts merged: %s, %d numbers a vector, %s", written, len(parts), description.level,
        description.dimension, description.model or "model unknown",
    )


if __name__ == "__main__":
    stage.main(NAME, run)
