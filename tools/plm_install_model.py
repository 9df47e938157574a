#!/usr/bin/env python3
"""Install a protein language model for all users of a server: Galaxy's data manager of the table huggingface.

Inputs: the id of a model on the hub and a revision, a folder of the server, or a zip of a model's folder.
Outputs: a folder with the model (safetensors, settings, tokenizer, card, and plm_source.json with source, licence,
checksums), a row of the table as data managers write it, and a report. Every file is compared with what its source
lists; a .bin file is read as plain numbers and stored as safetensors; what the suite cannot load is not installed.
--dry-run lists files, size and licence, and brings nothing. A token for gated models is read from HF_TOKEN alone.

Example:
    python plm_install_model.py --hub facebook/esm2_t6_8M_UR50D --revision main --allow-hub --models /data/models
        --table tool-data/huggingface.loc --output rows.json --report report.md
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from plm import flags, stage
from plm.errors import UserError

NAME = "plm_install_model"


class Arguments(flags.Flags):
    """The command line; see ``--help``."""

    hub: str = flags.text("id of a model on the hub, as organisation/name")
    revision: str = flags.text("its commit, branch or tag there (default: the main branch); the commit is recorded")
    allow_hub: bool = flags.switch("let --hub use the network")
    directory: str = flags.text("folder of a model on this machine")
    archive: Path | None = flags.source("zip of a model's folder")
    id: str = flags.text("id that a model from a folder or zip gets, as organisation/name")
    title: str = flags.text("what users read in lists (default: name, family and size)")
    free_tag: str = flags.text("for the table's column of that name (default: the family)")
    licence: str = flags.text("licence, where the source does not state it")
    table: Path | None = flags.source("the table's .loc file: what it has is not installed again")
    models: Path = flags.source("folder of all models; the model gets a folder in it", required=True)
    dry_run: bool = flags.switch("list files, size and licence; bring nothing")
    bundle: bool = flags.switch("bring the files though the table has the model, for another server")
    output: Path = flags.output("rows for Galaxy's data tables (JSON)", required=True)
    report: Path | None = flags.report()

    def check(self) -> None:
        given = [flag for flag in ("hub", "directory", "archive") if getattr(self, flag)]
        if len(given) != 1:
            raise UserError(
                "One source is needed" if not given else "There can be one source only",
                where=" ".join(map(flags.spelled, given)), fix="Give --hub, --directory or --archive",
            )
        if self.hub and not self.allow_hub:
            raise UserError("The hub may only be asked when it is allowed", where="--hub", fix="Add --allow-hub")
        if not self.hub and (self.revision or self.allow_hub):
            flag = "--revision" if self.revision else "--allow-hub"
            raise UserError("This is for models of the hub", where=flag, fix="Leave it out")
        if self.hub and self.id:
            raise UserError("A model of the hub keeps its id", where="--id", fix="Leave it out")
        if not self.hub and not self.id:
            raise UserError(
                "A model from a folder or zip needs an id for the table", where=flags.spelled(given[0]),
                fix="Give --id, as organisation/name",
            )


def run(argv: Sequence[str] | None = None) -> None:
    args = flags.read(Arguments, NAME, __doc__, argv)
    needed = {"huggingface_hub": "1.0"} if args.hub else {}
    if not args.dry_run:
        needed |= {"torch": "2.6", "transformers": "5.2", "safetensors": "0.5"}
    stage.require(needed)
    log = stage.log(NAME)
    from plm.jobs.install_model import job, model_table
    from plm.jobs.install_model.report import first_line, installation_report

    model_table.check_id(args.hub or args.id, "--hub" if args.hub else "--id")
    for name in ("revision", "title", "free_tag", "licence"):
        model_table.check_text(getattr(args, name), flags.spelled(name))
    request = args.into(job.InstallationRequest)
    with job.workplace(args.models) as place, stage.Outputs() as out:
        done = job.install(request, place, log)
        out.path(args.output).write_text(json.dumps(done.data_tables(), indent=1) + "\n", encoding="utf-8")
        if args.report:
            installation_report(done).write(out.path(args.report))
        job.deliver(done)
    log.info("%s", first_line(done))
    if done.row is not None and done.new:
        log.info("Its row, with tabs: %s", done.row.line())


if __name__ == "__main__":
    stage.main(NAME, run)
