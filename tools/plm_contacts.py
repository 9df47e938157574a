#!/usr/bin/env python3
"""Predict which residues of a protein touch in its structure, from what a protein language model attends to.

Inputs: a model, and proteins with structures (PDB or mmCIF files, or zips of them), or proteins (FASTA) with a table of
their contacts (id, i, j; from 1): some proteins train a head, others choose, others judge. Or proteins alone, with a
head that was fitted before (or a model with a contact regression of its own).
Outputs: the likeliest pairs of each protein with their probability, right or wrong where that is known; precision at L,
L/2 and L/5 of each protein and in the mean, beside baselines; contact maps; the head; a report.

A contact is a pair at least six residues apart whose C-betas (C-alpha of glycine) are less than 8 Angstrom apart.

Example:
    python plm_contacts.py --structures structures.zip --model starter --contacts contacts.tsv --new-head head.zip
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from plm import flags, stage
from plm.errors import UserError
from plm.telling.page import publish

if TYPE_CHECKING:
    from plm.jobs.contacts.contact_job import ContactJob, ContactPrediction
    from plm.jobs.contacts.inputs import ContactInputs
    from plm.model.loaded import LoadedModel

NAME = "plm_contacts"
METHODS = ("regression", "published", "pair")


class Arguments(flags.Reporting, flags.Hub, flags.Proteins, flags.Device):
    """The command line; see ``--help``."""

    input: Path | None = flags.source(
        "proteins: FASTA, or a table with the columns id and sequence (default: those of the structures)"
    )
    structures: list[Path] = flags.source("PDB or mmCIF files, or zips of them", several=True, again=True)
    pairs: Path | None = flags.source("table of the contacts of the proteins: id, i, j (from 1)")
    chain: str = flags.text("chain of the structures; all: every protein chain (default: the first protein chain)")
    parts: Path | None = flags.source(
        "table with id and split (train, valid, test) (default: whole families are dealt out)"
    )
    model: str = flags.text("starter, folder, zip or hub:name (default: the built-in one)", "starter")
    head: Path | None = flags.source("head of an earlier run with the same model: nothing is fitted")
    methods: str = flags.words(
        METHODS, "what may answer, the best on validation proteins does; regression: sparse logistic regression on "
        "attention maps; published: the model's own, if it has one; pair: a small network on residue states",
        "regression,published",
    )
    penalty: float = flags.number(0.15, "L1 penalty of the regression", 1e-6, 1e6)
    train_proteins: int = flags.whole(20, "proteins that train at most", 1, 10_000)
    identity: float = flags.number(0.3, "relatives are at least this identical (0-1)", 0.2, 1.0)
    window: int = flags.whole(
        0, "longer proteins go in overlapping windows of this length (default: only what the memory or the model does "
        "not hold)", 64, 10**6, or_zero=True,
    )
    top: float = flags.number(1.0, "pairs that are listed of each protein, as a multiple of its length", 0.01, 100)
    resamples: int = flags.resamples("draws for intervals")
    seed: int = flags.seed("of parts, samples, weights and draws")
    max_memory: int | None = flags.like(flags.Embedding, "max_memory")
    contacts: Path = flags.output("the likeliest pairs of each protein (tabular)", required=True)
    proteins: Path | None = flags.output("precision of each protein with known contacts (tabular)")
    metrics: Path | None = flags.output("mean precisions with intervals (tabular)")
    status: Path | None = flags.status()
    figure: Path | None = flags.output("contact maps, predicted above and true below the diagonal (PNG)")
    new_head: Path | None = flags.output("the head that answers, for further proteins (zip)")

    def check(self) -> None:
        if self.input is None and not self.structures:
            raise UserError(
                "There are no proteins", where="--input, --structures", fix="Give structures, or proteins with --input"
            )
        if self.pairs is not None and (self.structures or self.input is None):
            raise UserError(
                "Contacts come from structures or from a table, not from both" if self.structures else
                "A table of contacts needs its proteins", where="--pairs", fix="Give proteins with --input alone"
            )
        if self.head is not None and self.parts is not None:
            raise UserError("A head that is given is not fitted, so there are no parts", where="--parts",
                            fix="Leave --parts or --head out")


def run(argv: Sequence[str] | None) -> None:
    args = flags.read(Arguments, NAME, __doc__, argv)
    log = stage.log(NAME)
    stage.require({
        "torch": "2.6", "transformers": "5.2", "safetensors": "0.5", "biopython": "1.80", "scikit-learn": "1.8",
    })
    from plm.jobs.contacts.inputs import read_inputs

    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="plm_")))
        # Everything wrong with the input is found before the model is loaded.
        inputs = read_inputs(
            args.input, args.structures, args.pairs, scratch, chain=args.chain.strip(), duplicates=args.duplicate_ids,
            nucleotides=args.nucleotides, log=log,
        )
        if inputs.proteins.warning:
            log.warning("Note: %s", inputs.proteins.warning)
        from plm.model import device as devices

        device, precision = devices.settle(args.device, args.precision, stage.threads(), log)
        loaded = _load(args, scratch, device, precision)
        job = _job(args, inputs, loaded, scratch, log)
        job.fit()
        with stage.Outputs() as outputs:
            told = _write(args, job, outputs, scratch)
        log.info("%s", told)


def _load(args: Arguments, scratch: Path, device: object, precision: str) -> LoadedModel:
    from plm.model.checkpoint import load_model, resolve_model

    files = resolve_model(args.model, workdir=scratch, allow_hub=args.allow_hub)
    dtype = "bfloat16" if precision == "bf16" else "float32"
    return load_model(files, purpose="encoder", dtype=dtype, device=device)


def _job(
    args: Arguments, inputs: ContactInputs, loaded: LoadedModel, scratch: Path, log: stage.logging.Logger
) -> ContactJob:
    from plm.jobs.contacts.contact_job import ContactJob, ContactSettings
    from plm.jobs.contacts.stored_head import read_head

    stored = None if args.head is None else read_head(args.head, loaded, scratch / "head")
    settings = args.into(ContactSettings, methods=flags.parts(args.methods))
    return ContactJob(inputs, loaded, settings, stored, args.parts, log)


def _write(args: Arguments, job: ContactJob, outputs: stage.Outputs, scratch: Path) -> str:
    """Predicts, writes what is wanted and gives the answer in a sentence."""
    from plm.jobs.contacts.contact_figure import contact_figure
    from plm.jobs.contacts.contact_report import contacts_line, contacts_report
    from plm.jobs.contacts.contact_tables import ContactTables
    from plm.jobs.contacts.finished import account_of, chosen_maps, keep_head

    tables = ContactTables(job)
    predictions: list[ContactPrediction] = []
    with ExitStack() as opened:
        text = partial(outputs.text, opened)
        handle = text(args.contacts)
        tables.header_of_contacts(handle)
        for prediction in job.predict():
            tables.contacts(handle, prediction)
            predictions.append(prediction.without_pairs())
        if args.proteins:
            tables.proteins(text(args.proteins), predictions)
        if args.metrics:
            tables.metrics(text(args.metrics))
        if args.status:
            tables.status(text(args.status), predictions)
    maps = chosen_maps(job, predictions) if args.figure or args.tells() else []
    if args.figure:
        contact_figure(maps, outputs.path(args.figure))
    if args.new_head:
        keep_head(job, outputs.path(args.new_head), scratch)
    account = account_of(job, predictions, maps, "" if args.head is None else args.head.name)
    if args.tells():
        names = ("contacts", "proteins", "metrics", "status", "figure", "new_head")
        publish(contacts_report(account, [name for name in names if getattr(args, name)]), args, outputs, NAME)
    return contacts_line(account)


if __name__ == "__main__":
    stage.main(NAME, run)
