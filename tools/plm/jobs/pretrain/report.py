"""What pretraining leaves behind: the model with its card, the history as table and figure, the report."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plm import __version__, stage
from plm.data.tables import write_table
from plm.jobs.pretrain.job import PretrainingJob
from plm.model.checkpoint import save_checkpoint
from plm.model.loaded import LoadedModel
from plm.telling.report import Report, plain
from plm.training.row_training import RowOutcome
from plm.wording import counted

HISTORY_COLUMNS = (
    *("step", "epoch", "tokens", "train_loss", "valid_loss"),
    *("masked_perplexity", "masked_accuracy", "learning_rate"),
)


def facts(args: Any, job: PretrainingJob, outcome: RowOutcome) -> dict[str, Any]:
    """What card and report tell; the held-out clusters judge the model once more, all of them."""
    every, trained = job.parameters
    return {
        "arguments": args, "store": job.store, "split": job.split, "outcome": outcome, "score": job.judge(),
        "files": job.files, "residues": job.train_set.residues, "parameters": every, "trained": trained,
        "family": job.loaded.family.title, "rows": job.rows_a_step, "processes": job.ranks.world,
        "device": str(job.device), "precision": job.settings.precision,
    }


def _started(facts: Mapping[str, Any]) -> str:
    args = facts["arguments"]
    if not args.model:
        return f"from scratch (preset {args.preset})"
    how = f", by LoRA adapters of rank {args.lora_rank} that were added to its weights" if args.method == "lora" else ""
    return f"continued from {facts['files'].id}{how}"


def card(facts: Mapping[str, Any], best: Mapping[str, float] | None = None) -> str:
    """The model card: data, training, scores beside the unigram baseline, limits.

    Args:
        facts: From :func:`facts`.
        best: Record of the look that chose these weights; None for the last ones.
    """
    args, split, outcome, score = (facts[key] for key in ("arguments", "split", "outcome", "score"))
    name = args.title or args.output_model.stem
    aside = len(split.set_aside)
    state = "" if outcome.finished else "\n\n**Unfinished: training was cut short by its time limit.**"
    if best is not None:
        state += (
            f"\n\nThe weights after step {best['step']:,}, which predicted the held-out proteins best of all looks: "
            "the score below has chosen them and flatters them a little."
        )
    masked, replaced = args.masked_share, args.replaced_share
    processes = f" in {facts['processes']} processes" if facts["processes"] > 1 else ""
    return f"""---
license: mit
library_name: transformers
pipeline_tag: fill-mask
tags: [protein-language-model]
---
# {name}

{facts["family"]} architecture, {facts["parameters"]:,} parameters, {_started(facts)}, masked language modelling.{state}

| | |
|---|---|
| Training data | {len(split.train):,} proteins, {facts["residues"]:,} residues ({args.input.name}) |
| Held-out data | {len(split.held_out):,} proteins of families that training never saw; {aside:,} set aside |
| Split | {split.sentence} |
| Steps | {outcome.steps:,} of {args.batch_tokens * facts["rows"]:,} tokens{processes}; {outcome.tokens:,} tokens seen |
| Objective | {args.mask_rate:.0%} of residues: {_percent(masked)} masked, {_percent(replaced)} replaced, \
{_percent(max(0.0, 1 - masked - replaced))} kept |
| Optimiser | AdamW, peak rate {args.learning_rate:g}, {args.warmup_steps} warm-up steps, then {args.schedule} |
| Precision | {facts["precision"]} on {facts["device"]}; stored as {args.stored_dtype} |
| Suite | {__version__}, seed {args.seed} |

## Masked residues of families never seen ({score.residues:,} residues)

| | perplexity | accuracy |
|---|---|---|
| this model | {score.perplexity:.2f} | {score.accuracy:.3f} |
| unigram (training frequencies) | {score.unigram_perplexity:.2f} | {score.unigram_accuracy:.3f} |

Perplexity {score.beside_unigram} the unigram baseline.
"""


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def write_best(
    job: PretrainingJob, best: Mapping[str, float], facts: Mapping[str, Any], path: Path, *, dtype: str, workdir: Path
) -> None:
    """Writes the model of the best look, which the job holds now; see :func:`write_model`."""
    judged = {**facts, "score": job.judge()}
    write_model(job.loaded, path, judged, dtype=dtype, workdir=workdir / "best", best=best)


def write_model(
    loaded: LoadedModel, path: Path, facts: Mapping[str, Any], *, dtype: str, workdir: Path,
    best: Mapping[str, float] | None = None,
) -> None:
    """Writes the trained model as a stored zip of a Hugging Face checkpoint folder with its card."""
    folder = workdir / "trained"
    save_checkpoint(loaded.model, folder, loaded.files.directory, dtype=dtype)
    (folder / "README.md").write_text(card(facts, best))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for member in sorted(folder.iterdir()):
            info = zipfile.ZipInfo(member.name, date_time=(1980, 1, 1, 0, 0, 0))
            info.external_attr = 0o644 << 16
            archive.writestr(info, member.read_bytes())


def write_curves(
    facts: Mapping[str, Any], outputs: stage.Outputs, *, history: Path | None, figure: Path | None
) -> None:
    """Writes the history table and its figure, each if wanted."""
    import pandas as pd

    from plm.telling.figures import history_figure

    table = pd.DataFrame(facts["outcome"].history)
    table = table[[column for column in HISTORY_COLUMNS if column in table]]
    if history is not None:
        write_table(table, outputs.path(history), "%.6g")
    if figure is not None:
        history_figure(table.drop(columns=["tokens"]), outputs.path(figure))


def report(facts: Mapping[str, Any], *, figure: bool, history: bool) -> Report:
    """The report.

    Args:
        facts: What :func:`facts` gathers.
        figure: Whether there is an output ``figure``.
        history: Whether there is an output ``history``.
    """
    outcome, score, split = facts["outcome"], facts["score"], facts["split"]
    page = Report(
        f"On families that training never saw the model's masked perplexity is {score.perplexity:.2f}, "
        f"{score.beside_unigram} that of the letters' frequencies "
        f"({score.unigram_perplexity:.2f})."
    )
    if not outcome.finished:
        page.paragraph("**Unfinished:** the time limit ended training early; give the checkpoint back to go on.")
    page.rows(
        ["held-out families", "masked perplexity", "masked accuracy"],
        [
            ["this model", f"{score.perplexity:.2f}", f"{score.accuracy:.3f}"],
            ["unigram", f"{score.unigram_perplexity:.2f}", f"{score.unigram_accuracy:.3f}"],
        ],
    )
    page.bullets([plain(facts["store"].account), split.sentence])
    page.paragraph(
        f"{counted(outcome.steps, 'step')}, {outcome.tokens:,} residues seen, "
        f"{stage.duration(outcome.seconds)} in this run{_of_processes(facts)}."
    )
    if figure:
        page.heading("Training").image("figure")
    if history:
        page.table("history", "History", "Scores during training may be of a part of the held-out families.")
    return page


def _of_processes(facts: Mapping[str, Any]) -> str:
    return f", in {facts['processes']} processes" if facts["processes"] > 1 else ""
