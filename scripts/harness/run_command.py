"""From labelled sites to a report, in a real Galaxy: fine-tunes a protein language model, tests it, scores proteins.

    scripts/run                                        the bundled simulated data and the starter model
    scripts/run --training SITES.fasta --query PROTEINS.fasta [--test SITES.fasta] [--model MODEL]
    scripts/run --tutorial [FOLDER]                    the Galaxy tutorial's data (from Zenodo, or in FOLDER)

MODEL is one of
    starter                the small model that ships with the suite (default)
    NAME                   a model of the server's list (see scripts/serve --models)
    FOLDER or FILE.zip     a checkpoint in Hugging Face format, ESM-2 or ProtT5
    hub:org/name           a model of the Hugging Face hub; the job downloads it

Sets up everything it needs on the first call. Results: results/ (or --results FOLDER).
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from plm import stage
from plm.errors import UserError
from plm.stage import duration

from harness import tutorial
from harness.install import Installer
from harness.layout import Layout
from harness.server import GalaxyServer
from harness.starting import called_from

WORKFLOW = "site-prediction"
TRAINING, QUERY, TEST = "Labelled sites", "Query proteins", "Published test sites"
TRAININGS, PREVALENCE = "Trainings", "Prevalence"
SIMULATED = "the bundled simulated data, made so that a language model has something to add"


@dataclass(frozen=True)
class RunSettings:
    """What the user asked for.

    Args:
        training: FASTA of labelled sites or windows.
        query: FASTA of the proteins to score.
        test: FASTA of a test set that is kept as it is, if there is one.
        parameters: Label of a workflow parameter to its value.
        model: As given to ``--model``.
        results: Folder for the results.
        source: What the summary calls the data.
        published: What others report for the same test set, if anybody does.
        stop: Stop Galaxy afterwards if this run started it.
    """

    training: Path
    query: Path
    test: Path | None
    parameters: dict[str, float | int]
    model: str
    results: Path
    source: str
    published: tutorial.Published | None
    stop: bool


def say(line: str) -> None:
    print(f"[run] {line}", flush=True)


def main(layout: Layout, argv: list[str]) -> int:
    settings = parse(layout, argv)
    Installer(layout, say).install(["tools", "galaxy", "planemo"])
    if Path(sys.prefix).resolve() != layout.env("planemo").resolve():
        # BioBlend lives in planemo's environment: go on there
        python = str(layout.python("planemo"))
        sys.stdout.flush()
        os.execv(python, [python, "-s", str(Path(__file__).parent), "run", *argv])
    return run(layout, settings)


def parse(layout: Layout, argv: list[str]) -> RunSettings:
    """Reads the options and checks what can be checked before anything is installed.

    Raises:
        UserError: A file is missing or empty, or options do not go together.
    """
    parser = stage.parser("scripts/run", __doc__ or "")
    parser.add_argument("--training", metavar="FASTA", help="labelled sites or windows (.fasta or .fasta.gz)")
    parser.add_argument("--query", metavar="FASTA", help="proteins whose sites are to be scored")
    parser.add_argument(
        "--test", metavar="FASTA", help="a published test set, kept as it is (default: split by homology)"
    )
    parser.add_argument("--trainings", type=int, metavar="N", help="models to train with different seeds (default 1)")
    parser.add_argument(
        "--prevalence", type=float, metavar="P", help="share of true sites among your proteins' candidates"
    )
    parser.add_argument("--model", default="starter", help="see above (default: starter)")
    parser.add_argument("--tutorial", nargs="?", const="", metavar="FOLDER", help="use the tutorial's data")
    parser.add_argument("--results", metavar="FOLDER", help="where the results go (default: results)")
    parser.add_argument("--stop", action="store_true", help="stop Galaxy afterwards (else it stays open)")
    args = parser.parse_args(argv)
    results = called_from(args.results) if args.results else layout.root / "results"
    source = "your data"
    published = None
    test = called_from(args.test) if args.test else None
    if args.tutorial is not None:
        if args.training or args.test:
            raise UserError("--tutorial brings its own data", fix="Leave out --training and --test, or --tutorial")
        if args.tutorial:
            training, test = tutorial.from_folder(called_from(args.tutorial))
        else:
            training, test = tutorial.download(layout.state / "data" / "tutorial", say)
        query = called_from(args.query) if args.query else test
        source = "the Galaxy tutorial's dephosphorylation data (Zenodo 10986248)"
        published = tutorial.PUBLISHED
    elif args.training or args.query:
        if not (args.training and args.query):
            raise UserError("--training and --query go together", fix="Give both FASTA files")
        training, query = called_from(args.training), called_from(args.query)
    else:
        training = layout.root / "test-data" / "demo_sites.fasta"
        query = layout.root / "test-data" / "demo_proteins.fasta"
        source = SIMULATED
    for flag, path in (("--training", training), ("--query", query), ("--test", test)):
        if path is None:
            continue
        if not path.is_file() or path.stat().st_size == 0:
            what = "The file is empty" if path.is_file() else "There is no such file"
            raise UserError(what, where=f"{flag} {path}", fix="Give a FASTA file")
    check_results_folder(results)
    parameters = {TRAININGS: args.trainings, PREVALENCE: args.prevalence}
    if args.trainings is not None and args.trainings < 1:
        raise UserError("At least one model must be trained", where=f"--trainings {args.trainings}")
    if args.prevalence is not None and not 0 < args.prevalence < 1:
        raise UserError("A prevalence lies between 0 and 1", where=f"--prevalence {args.prevalence}")
    given = {label: value for label, value in parameters.items() if value is not None}
    return RunSettings(training, query, test, given, args.model, results, source, published, args.stop)


def check_results_folder(folder: Path) -> None:
    """Refuses a folder that holds anything but an earlier run's results.

    Raises:
        UserError: It does.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError("The results folder is a file", where=f"--results {folder}", fix="Name another")
    from harness.results import MARK

    if any(folder.iterdir()) and not (folder / MARK).is_file():
        raise UserError(
            "The results folder holds other files, which this run would replace",
            where=f"--results {folder}",
            fix="Name an empty or new folder",
        )


def run(layout: Layout, settings: RunSettings) -> int:
    """The whole way: server, upload, workflow, results, summary."""
    from harness import results
    from harness.flagship import GalaxyRun, read_workflow, with_model
    from harness.model_choice import choose_model

    begun = time.monotonic()
    server = GalaxyServer(layout, say)
    choice = choose_model(settings.model, called_from(settings.model), layout, server.listed_models())
    files = sorted((layout.workflows / WORKFLOW).glob("*.ga"))
    if not files:
        raise UserError(f"There is no workflow in workflows/{WORKFLOW}")
    workflow = with_model(read_workflow(files[0]), choice)
    started = server.start([choice.row] if choice.row else [])
    if not started:
        say(f"Galaxy already runs on {server.url}")
        if server.changed():
            server.reload()
    try:
        _refuse_faulty(server)
        galaxy = GalaxyRun(server.url, server.account().key, say)
        say(f"workflow '{workflow['name']}' on {settings.source}, model {settings.model}")
        title = f"Site prediction, {settings.training.name}, {time.strftime('%Y-%m-%d %H:%M')}"
        data = {TRAINING: settings.training, QUERY: settings.query}
        data |= {TEST: settings.test} if settings.test else {}
        invocation = galaxy.start(workflow, data, settings.parameters, title)
        galaxy.follow(invocation, workflow)
        notes = [
            f"Labelled sites: {settings.training.name}. Query proteins: {settings.query.name} ({settings.source}).",
            f"Model: {settings.model}. {time.strftime('%Y-%m-%d %H:%M')}, Galaxy invocation {invocation.id}.",
        ]
        if settings.published is not None:
            notes.append(settings.published.sentence())
        outputs = results.collect(galaxy, invocation, workflow, settings.results, notes)
        report = galaxy.publish_report(invocation, title)
    finally:
        if started and settings.stop:
            server.stop()
    print()
    for line in results.summary(outputs, published=settings.published):
        print(line)
    print()
    say(f"results in {settings.results} after {duration(time.monotonic() - begun)}")
    if not (started and settings.stop):
        account = server.account()
        say(f"Galaxy stays open at {server.url} (login {account.email}, password {account.password})")
        say(f"the report, without a login: {report}")
        say("look around with scripts/serve (Ctrl-C stops Galaxy); or stop it with scripts/serve --stop")
    return 0


def _refuse_faulty(server: GalaxyServer) -> None:
    for name, reason in server.faults().items():
        raise UserError(f"The tool {name} is faulty: {reason}", fix="scripts/galaxy logs says more")
