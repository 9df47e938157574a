#!/usr/bin/env python3
"""Merge the embeddings files of the parts of one input, with nothing lost.

Inputs: embeddings files that plm_embed wrote for parts of a FASTA file (plm_split_fasta), in their order, and perhaps
its status tables in the same order.
Outputs: one embeddings file, as one run over the whole file writes it; one status table with every input record.

Example:
    python plm_merge_embeddings.py --input part_0001.h5 --input part_0002.h5 --output proteome.h5
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from plm import stage
from plm.errors import UserError

NAME = "plm_merge_embeddings"
FORMATS = ("hdf5", "hdf5-uniprot", "npz", "parquet", "tabular")


@dataclass(frozen=True)
class Arguments:
    """The command line; see ``--help``."""

    input: list[Path]
    status: list[Path]
    format: str
    duplicate_ids: str
    output: Path
    merged_status: Path | None

    def __post_init__(self) -> None:
        if (self.merged_status is None) != (not self.status):
            raise UserError("Give status tables and where to write theirs", where="--status and --merged-status")
        if self.status and len(self.status) != len(self.input):
            raise UserError(
                f"There are {len(self.status)} status tables for {len(self.input)} embeddings files",
                where="--status",
                fix="Give one for each, in the same order",
            )


def parse(argv: Sequence[str] | None) -> Arguments:
    parser = stage.parser(NAME, __doc__ or "")
    add = parser.add_argument
    add("--input", type=Path, action="append", required=True, help="embeddings file of a part; give it again for each")
    add("--status", type=Path, action="append", default=[], help="status table of a part, in the same order")
    add("--format", choices=FORMATS, default="hdf5", help="of the merged file (default: hdf5)")
    add(
        "--duplicate-ids", choices=("error", "rename", "first"), default="error", help="when parts have an id in common"
    )
    add("--output", type=stage.output_file, required=True, help="the merged embeddings file")
    add("--merged-status", type=stage.output_file, help="what became of each input record, of all parts")
    return Arguments(**vars(parser.parse_args(argv)))


def run(argv: Sequence[str] | None) -> None:
    args = parse(argv)
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
        "%d records of %d parts merged: %s, %d numbers a vector, %s",
        written, len(parts), description.level, description.dimension, description.model or "model unknown",
    )  # fmt: skip


def main() -> None:
    stage.main(NAME, run, sys.argv[1:])


if __name__ == "__main__":
    main()
