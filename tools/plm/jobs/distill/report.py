"""What distillation leaves behind: the student with its card, history, figure, held-out proteins, report."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from plm import __version__, stage
from plm.data.tables import visible, write_table
from plm.jobs.distill.distillation import Objective, RangeTest
from plm.masked_lm.cluster_split import ClusterSplit, cluster_names
from plm.masked_lm.corpus_store import CorpusStore
from plm.masked_lm.masks import MaskPlan
from plm.masked_lm.training import MaskedScore
from plm.model.bundles.archive import write_zip
from plm.model.checkpoint import save_checkpoint
from plm.model.loaded import LoadedModel
from plm.telling.report import Report, plain
from plm.training.row_training import RowOutcome, RowSettings
from plm.wording import counted, number

if TYPE_CHECKING:
    import pandas as pd

    from plm.jobs.distill.teacher_cache import TeacherCache

_FIRST = ("step", "epoch", "tokens", "train_loss")
_LAST = ("learning_rate", "valid_loss")
_SCORES = ("masked_perplexity", "masked_accuracy")
_NAMES = {
    "loss": "Loss",
    "logit_mse": "Logits (squared difference)",
    "kl": "KL divergence",
    "kernel": "Kernel alignment",
    "hidden": "Hidden states (1 - cosine)",
    "mlm": "Masked language modelling",
    "masked_perplexity": "Masked perplexity",
    "masked_accuracy": "Masked accuracy",
}
_POINTS = 200
"""Points of each curve in the figure: means over equal stretches of steps."""


@dataclass(frozen=True)
class Facts:
    """Everything a report says.

    Attributes:
        title: Name of the student.
        inputs: Names of the corpus files.
        store: Corpus that was learned from.
        split: Sequences that train, and those held out to judge.
        teacher: Name of the teacher.
        teacher_sha256: Fingerprint (sha256) of the teacher's weights.
        student: Id of the checkpoint that the student started from.
        parameters: Number of parameters of teacher and student.
        objective: Terms of the loss and their weights.
        recipe: Name of the recipe that the settings started from.
        settings: Steps, rows, learning rate and all else that shaped the training.
        masks: Plan of the masks: rate, seed and number of sets.
        batches: How rows were put together, in words.
        outcome: Steps, history and end of the training.
        scores: Model -> score on the test clusters, in the order of reports.
        processes: Number of processes that trained together.
        device: Device on which the student was trained.
        data_sha256: sha256 of the corpus.
    """

    title: str
    inputs: Sequence[str]
    store: CorpusStore
    split: ClusterSplit
    teacher: str
    teacher_sha256: str
    student: str
    parameters: tuple[int, int]
    objective: Objective
    recipe: str
    settings: RowSettings
    masks: MaskPlan
    batches: str
    outcome: RowOutcome
    scores: Mapping[str, MaskedScore]
    processes: int
    device: str
    data_sha256: str

    @property
    def smaller(self) -> str:
        """How much smaller the student is, in words."""
        teacher, student = self.parameters
        ratio = teacher / student
        if 0.95 < ratio < 1.05:
            return "as large as its teacher"
        return (
            f"{ratio:.1f} times smaller than its teacher"
            if ratio > 1
            else f"{1 / ratio:.1f} times larger than its teacher"
        )

    def score_cells(self) -> list[list[str]]:
        """Perplexity and accuracy of each model, and of the letters' frequencies."""
        cells = [[name, f"{score.perplexity:.2f}", number(score.accuracy)] for name, score in self.scores.items()]
        last = list(self.scores.values())[-1]
        return [*cells, ["unigram", f"{last.unigram_perplexity:.2f}", number(last.unigram_accuracy)]]

    def skipped(self) -> list[str]:
        """What was not defined in some rows, in sentences."""
        rows = self.settings.accumulate * self.processes * self.outcome.steps
        names = {"kernel": "The kernel term needs two sequences in a row"}
        return [
            f"{names.get(name, f'The term {name} needs a known residue')}: skipped in {count:,} of {rows:,} rows."
            for name, count in self.outcome.undefined.items()
            if count
        ]


def history_table(history: Sequence[Mapping[str, float]], terms: Sequence[str]) -> pd.DataFrame:
    """One row a step: counts, loss and its terms, rate, scores where held-out clusters were looked at."""
    import pandas as pd

    table = pd.DataFrame(list(history))
    looked = tuple(f"valid_{name}" for name in terms)
    return table[[name for name in (*_FIRST, *terms, *_LAST, *looked, *_SCORES) if name in table]]


def write_history(outcome: RowOutcome, objective: Objective, path: Path | None, outputs: stage.Outputs) -> None:
    """Writes the history of every step, if it is wanted."""
    if path is not None:
        table = history_table(outcome.history, objective.terms)
        write_table(table, outputs.path(path), "%.6g")


def curves(outcome: RowOutcome, objective: Objective, path: Path) -> None:
    """The figure of the loss, of each term and of the scores on validation families, a panel each.

    Training values are means over equal stretches of steps, so that a long training can be read.
    """
    from plm.telling import figures

    table = history_table(outcome.history, objective.terms)
    stretch = (np.arange(len(table)) * min(_POINTS, len(table))) // max(1, len(table))
    smooth = table.groupby(stretch).mean()
    panels = ["loss", *objective.terms, *(name for name in _SCORES if name in table)]
    across = 3 if len(panels) > 4 else 2
    down = -(-len(panels) // across)
    figure, axes = figures.new_figure(4.2 * across, 3.4 * down, across, down)
    for panel, name in zip(axes.flat, panels, strict=False):
        trained = {"loss": "train_loss"}.get(name, name if name not in _SCORES else "")
        if trained:
            shown = smooth[["step", trained]].dropna()
            panel.plot(shown["step"], shown[trained], color=figures.colour(0), label="training")
        looked = name if name in _SCORES else f"valid_{name}"
        if looked in table:
            seen = table[["step", looked]].dropna()
            panel.plot(
                seen["step"], seen[looked], color=figures.colour(1), marker="o", markersize=3.5, label="validation"
            )
        panel.set(title=_NAMES[name], xlabel="Step", ylabel="Score" if name in _SCORES else "Loss")
        panel.legend()
    for spare in list(axes.flat)[len(panels) :]:
        spare.set_visible(False)
    figures.save(figure, path)


def write_rejected(path: Path | None, store: CorpusStore, outputs: stage.Outputs) -> None:
    """Writes the table of records that are not used, if it is wanted."""
    if path is not None:
        shutil.copyfile(store.rejected, outputs.path(path))


def card(facts: Facts) -> str:
    """The model card: teacher, data, loss, training, scores beside teacher and baseline."""
    outcome, settings, split = facts.outcome, facts.settings, facts.split
    state = "" if outcome.finished else "\n\n**Unfinished: training was cut short by its time limit.**"
    scores = "\n".join("| " + " | ".join(cells) + " |" for cells in facts.score_cells())
    test = next(iter(facts.scores.values()))
    sets = facts.masks.sets or "fresh"
    held = " + ".join(f"{len(part):,}" for part in split.parts)
    optimiser = (
        f"Adam, weight decay {settings.weight_decay:g}, peak rate {settings.learning_rate:g}, "
        f"{settings.warmup_steps} warm-up steps, then {settings.schedule}"
    )
    return f"""---
license: mit
library_name: transformers
pipeline_tag: fill-mask
tags: [protein-language-model, esm2, distillation]
---
# {facts.title}

ESM-2 architecture, {facts.parameters[1]:,} parameters, distilled from {facts.teacher} ({facts.parameters[0]:,}
parameters; {facts.smaller}). The student started as {facts.student}.{state}

| | |
|---|---|
| Teacher | {facts.teacher}, sha256 {facts.teacher_sha256} |
| Training data | {len(split.train):,} proteins ({", ".join(facts.inputs)}), sha256 {facts.data_sha256} |
| Held-out data | {held} proteins (validation + test) of families that training never saw |
| Split | {split.sentence} |
| Loss | {facts.objective.sentence()} |
| Masks | {facts.masks.rate:.0%} of residues (80 % masked, 10 % replaced, 10 % kept), {sets} sets |
| Batches | {facts.batches}; {settings.batch_tokens:,} tokens |
| Steps | {outcome.steps:,} of {settings.accumulate * facts.processes} rows; {outcome.tokens:,} tokens seen |
| Optimiser | {optimiser} |
| Precision | {settings.precision} on {facts.device} |
| Suite | {__version__}, recipe {facts.recipe}, seed {settings.seed} |

## Masked residues of test families never seen ({test.residues:,} residues)

| | perplexity | accuracy |
|---|---|---|
{scores}
"""


def start_card(facts: Facts) -> str:
    """The card of the student as it was before."""
    return f"""---
library_name: transformers
tags: [protein-language-model, esm2]
---
# {facts.title} before distillation

{facts.student}, as the distillation from {facts.teacher} started: for comparison with what came of it.
"""


def write_model(loaded: LoadedModel, path: Path, card_text: str, *, dtype: str, workdir: Path) -> None:
    """Writes a model as a stored zip of a Hugging Face checkpoint folder with its card."""
    folder = workdir / f"written_{path.name}"
    save_checkpoint(loaded.model, folder, loaded.files.directory, dtype=dtype)
    (folder / "README.md").write_text(card_text, encoding="utf-8")
    write_zip(path, {member.name: member for member in folder.iterdir()})


def write_held_out(path: Path, store: CorpusStore, split: ClusterSplit) -> None:
    """The dataset table of the test clusters, which no look during training used."""
    names = cluster_names(store, split)
    with path.open("w", encoding="utf-8", newline="") as opened:
        opened.write("id\tsequence\ttaxon\tdomain\tcluster\n")
        for index in split.parts[-1].tolist():
            taxon, domain = store.taxa[int(store.taxon[index])], store.domains[int(store.domain[index])]
            cluster = names[int(split.cluster[index])]
            fields = (store.identity(index), store.sequence(index), taxon, domain, cluster)
            opened.write("\t".join(map(visible, fields)) + "\n")


def headline(facts: Facts) -> str:
    """One sentence: how the student does where nobody looked before."""
    told = ", ".join(f"{name} {score.perplexity:.2f}" for name, score in facts.scores.items())
    last = list(facts.scores.values())[-1]
    mark = "" if facts.outcome.finished else "UNFINISHED (stopped by its time limit): "
    return (
        f"{mark}Masked perplexity on families that training never saw: {told}, letters' frequencies "
        f"{last.unigram_perplexity:.2f}; the student is {facts.smaller}."
    )


def report(facts: Facts, *, figure: bool, history: bool) -> Report:
    """The report of a distillation."""
    page = Report(headline(facts))
    page.heading(f"Distillation: {plain(facts.title)}", 1)
    if not facts.outcome.finished:
        page.paragraph("The time limit ended training early; give the checkpoint back to go on.")
    page.rows(["test families", "masked perplexity", "masked accuracy"], facts.score_cells())
    page.paragraph(
        "Only masked residues count. These scores were taken once, after training, on families that neither training"
        " nor the looks during training used. Give the held-out proteins and the models to the comparison tool"
        " (plm_compare_models) for intervals, agreement with the teacher and what probes read out of each."
    )
    lines = [
        f"Teacher: {plain(facts.teacher)}, {facts.parameters[0]:,} parameters, sha256 {facts.teacher_sha256[:16]}...",
        f"Student: {facts.parameters[1]:,} parameters, from {plain(facts.student)}",
        f"Loss: {facts.objective.sentence()}",
        plain(facts.store.account),
        plain(facts.split.sentence),
        f"Batches: {facts.batches}",
        f"{counted(facts.outcome.steps, 'step')}, {facts.outcome.tokens:,} tokens seen, "
        f"{stage.duration(facts.outcome.seconds)} in this run",
        *facts.skipped(),
    ]
    page.bullets(lines)
    if figure:
        page.heading("Training").image("figure")
    if history:
        page.table("history", "History", "One row a step; validation scores where they were taken.")
    return page


def cache_report(cache: TeacherCache, store: CorpusStore, masks: MaskPlan) -> Report:
    """The report of a job that only asked the teacher."""
    wanted = len(store) * masks.sets
    held = sum(len(store) - len(cache.missing(store.digests, number)) for number in range(masks.sets))
    mark = "" if held == wanted else "UNFINISHED (stopped by its time limit): "
    page = Report(f"{mark}The teacher cache holds {held:,} of {wanted:,} answers for this corpus.")
    page.bullets([plain(cache.key.sentence()), plain(store.account), f"{masks.sets} sets of masks"])
    return page.paragraph(
        "Give the cache to a distillation with the same teacher, loss, mask seed, mask rate and longest stretch."
        " Sequences that it lacks are asked for then."
    )


def range_figure(test: RangeTest, path: Path) -> None:
    """Loss against learning rate, and where the loss falls fastest."""
    from plm.telling import figures

    figure, axes = figures.new_figure()
    panel = axes[0, 0]
    panel.plot(test.rates, test.losses, color=figures.GREY, linewidth=0.8, label="each step")
    panel.plot(test.rates, test.smooth, color=figures.colour(0), label="smoothed")
    if math.isfinite(test.suggestion):
        panel.axvline(
            test.suggestion, color=figures.colour(1), linestyle="--", label=f"{test.suggestion:.1e}: steepest"
        )
    panel.axvline(test.lowest, color=figures.colour(2), linestyle=":", label=f"{test.lowest:.1e}: lowest")
    top = float(np.nanmax(test.smooth)) * 1.3
    panel.set(xscale="log", xlabel="Learning rate", ylabel="Loss", title="Learning-rate range test")
    panel.set_ylim(0, top)
    panel.legend()
    figures.save(figure, path)


def range_report(test: RangeTest, facts: Mapping[str, Any], *, figure: bool, history: bool) -> Report:
    """The report of a learning-rate range test."""
    page = Report(range_sentence(test))
    page.paragraph(
        "The learning rate rose from step to step and no model was kept. A good highest rate lies where the loss still"
        " falls fast, well below the rate at which it is lowest; beyond that the loss runs away."
    )
    page.bullets([f"{name}: {plain(str(value))}" for name, value in facts.items()])
    if figure:
        page.heading("Loss against learning rate").image("figure")
    if history:
        page.table("history", "Steps", "")
    return page


def range_sentence(test: RangeTest) -> str:
    """What the range test suggests, in one sentence."""
    end = "ran away" if test.diverged else "did not run away up to the highest rate"
    if not math.isfinite(test.suggestion):
        return f"No rate lowered the loss ({len(test.rates)} steps; the loss {end}): there is nothing to suggest"
    return (
        f"Suggested highest learning rate: {test.suggestion:.1e}; the loss is lowest at {test.lowest:.1e} "
        f"and {end} ({len(test.rates)} steps)"
    )
