"""What pretraining leaves behind: the model with its card, the history as table and figure, the report."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plm import __version__, stage
from plm.data.tables import write_table
from plm.model.checkpoint import save_checkpoint
from plm.model.loaded import LoadedModel
from plm.telling.report import Report, plain
from plm.wording import counted

HISTORY_COLUMNS = (
    *("step", "epoch", "tokens", "train_loss", "valid_loss"),
    *("masked_perplexity", "masked_accuracy", "learning_rate"),
)


def card(facts: Mapping[str, Any]) -> str:
    """The model card: data, training, scores beside the unigram baseline, limits."""
    args, split, outcome, score = (facts[key] for key in ("arguments", "split", "outcome", "score"))
    name = args.title or args.output_model.stem
    start = f"continued from {facts['files'].id}" if args.model else f"from scratch (preset {args.preset})"
    aside = len(split.set_aside)
    state = "" if outcome.finished else "\n\n**Unfinished: training was cut short by its time limit.**"
    return f"""---
license: mit
library_name: transformers
pipeline_tag: fill-mask
tags: [protein-language-model, esm2]
---
# {name}

ESM-2 architecture, {facts["parameters"]:,} parameters, {start}, masked language modelling.{state}

| | |
|---|---|
| Training data | {len(split.train):,} proteins, {facts["residues"]:,} residues ({args.input.name}) |
| Held-out data | {len(split.held_out):,} proteins of families that training never saw; {aside:,} set aside |
| Split | {split.sentence} |
| Steps | {outcome.steps:,} of {args.batch_tokens * args.accumulate:,} tokens; {outcome.tokens:,} tokens seen |
| Objective | {args.mask_rate:.0%} of residues: 80 % masked, 10 % replaced, 10 % kept |
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


def write_model(loaded: LoadedModel, path: Path, facts: Mapping[str, Any], *, dtype: str, workdir: Path) -> None:
    """Writes the trained model as a stored zip of a Hugging Face checkpoint folder with its card."""
    folder = workdir / "trained"
    save_checkpoint(loaded.model, folder, loaded.files.directory, dtype=dtype)
    (folder / "README.md").write_text(card(facts))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for member in sorted(folder.iterdir()):
            info = zipfile.ZipInfo(member.name, date_time=(1980, 1, 1, 0, 0, 0))
            info.external_attr = 0o644 << 16
            archive.writestr(info, member.read_bytes())


def write_report(
    facts: Mapping[str, Any], outputs: stage.Outputs, *, history: Path | None, figure: Path | None, report: Path | None
) -> None:
    """Writes the history table, its figure and the report, each if wanted."""
    import pandas as pd

    from plm.telling.figures import history_figure

    outcome, score, split = facts["outcome"], facts["score"], facts["split"]
    table = pd.DataFrame(outcome.history)
    table = table[[column for column in HISTORY_COLUMNS if column in table]]
    if history is not None:
        write_table(table, outputs.path(history), "%.6g")
    if figure is not None:
        history_figure(table.drop(columns=["tokens"]), outputs.path(figure))
    if report is not None:
        verdict = (
            f"On families that training never saw the model's masked perplexity is {score.perplexity:.2f}, "
            f"{score.beside_unigram} that of the letters' frequencies "
            f"({score.unigram_perplexity:.2f})."
        )
        page = Report(verdict)
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
            f"{stage.duration(outcome.seconds)} in this run."
        )
        if figure is not None:
            page.heading("Training").image("figure")
        if history is not None:
            page.table("history", "History", "Scores during training may be of a part of the held-out families.")
        page.write(outputs.path(report))
