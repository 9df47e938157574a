#!/usr/bin/env python3
"""Split a FASTA file into parts of consecutive records with about equally many residues.

Input: FASTA, plain or gzipped.
Outputs: a folder of FASTA files part_0001.fasta, part_0002.fasta, ... that together are the input, byte by byte, and a
table of what each holds. For stages that run on all parts at the same time, such as plm_embed.

Example:
    python plm_split_fasta.py --input proteome.fasta.gz --parts 8 --output-dir parts --table parts.tsv
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from plm import flags, stage
from plm.errors import UserError

if TYPE_CHECKING:
    from plm.jobs.split_merge.fasta_parts import FastaPart, FastaSurvey

NAME = "plm_split_fasta"
COLUMNS = ("part", "records", "residues", "longest", "first_id", "last_id")


class Arguments(flags.Flags):
    """The command line; see ``--help``."""

    input: Path = flags.source("FASTA, plain or gzipped", required=True)
    parts: int | None = flags.whole(None, "number of parts, 1 to 9999; fewer if there are fewer records", 1, 9999)
    max_residues: int | None = flags.whole(
        None, "instead: residues of a part at most; a longer record is alone in its part", 1
    )
    output_dir: Path = flags.output_folder("new or empty folder for part_0001.fasta, ...", required=True)
    table: Path | None = flags.output("table of the parts: records, residues, longest record, first and last id")

    def check(self) -> None:
        if (self.parts is None) == (self.max_residues is None):
            raise UserError(
                "Give either the number of parts or their size", where="--parts or --max-residues",
                fix="Add one of them",
            )


def run(argv: Sequence[str] | None) -> None:
    args = flags.read(Arguments, NAME, __doc__, argv)
    log = stage.log(NAME)
    from plm.jobs.split_merge import fasta_parts

    survey = fasta_parts.survey(args.input)
    records, total = len(survey.residues), int(survey.residues.sum())
    log.info("%s: %d records, %d residues", args.input.name, records, total)
    if args.parts is not None:
        parts = fasta_parts.parts_of(survey.residues, args.parts)
        if len(parts) < args.parts:
            log.warning("Note: %d parts instead of %d, since there are no more records", len(parts), args.parts)
    elif args.max_residues is not None:
        parts = fasta_parts.parts_up_to(survey.residues, args.max_residues)
        longer = sum(part.longest > args.max_residues for part in parts)
        if longer:
            log.warning(
                "Note: %d records are longer than %d residues and alone in their parts", longer, args.max_residues
            )
    _warn(survey, log)
    with stage.Outputs() as outputs:
        folder = outputs.directory(args.output_dir)
        progress = stage.Progress(log, records, "records", every=10.0)
        ends = fasta_parts.write_parts(args.input, parts, folder, progress.advance)
        if args.table:
            _write_table(outputs.path(args.table), parts, ends)
    sizes = [part.residues for part in parts]
    log.info("%d parts of %d to %d residues", len(parts), min(sizes), max(sizes))


def _warn(survey: FastaSurvey, log: stage.logging.Logger) -> None:
    if survey.repeated is None:
        return
    identifier, first, again = survey.repeated
    log.warning(
        "Note: %d records have an id that came before; the first is %s (records %d and %d). Stages that see one part "
        "alone do not notice; say in plm_merge_embeddings what to do with them",
        survey.repeats, identifier, first, again,
    )


def _write_table(path: Path, parts: list[FastaPart], ends: list[tuple[str, str]]) -> None:
    from plm.data.tables import visible

    with path.open("w", encoding="utf-8", newline="\n") as handle:
        handle.write("\t".join(COLUMNS) + "\n")
        for part, (first, last) in zip(parts, ends, strict=True):
            ids = [name.encode("latin-1").decode("utf-8", errors="replace") for name in (first, last)]
            row = (part.name, part.stop - part.start, part.residues, part.longest, *ids)
            handle.write("\t".join(visible(str(cell)) for cell in row) + "\n")


if __name__ == "__main__":
    stage.main(NAME, run)
