"""What a teacher says of a row: logits at masked residues, means and states of residues; computed, never learned."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from plm.errors import UserError
from plm.jobs.distill.batches import DistillationRow
from plm.masked_lm.corpus import IGNORED
from plm.masked_lm.corpus_store import CorpusStore
from plm.masked_lm.masks import MaskPlan
from plm.model import encoder
from plm.model.batching import Batch, sent
from plm.model.loaded import LoadedModel


@dataclass(frozen=True)
class Wants:
    """What is asked of a teacher.

    Attributes:
        logits: Logits at masked residues.
        top: Keep only so many of the highest logits and the log-sum-exp of the rest; 0 for all.
        pooled: Mean over the residues of each sequence.
        hidden: States of all residues.
        layer: That representations are taken from, see :func:`plm.model.encoder.layer_states`.
        represent: Whether of the ``masked`` or of the ``intact`` sequences.
    """

    logits: bool
    pooled: bool
    hidden: bool
    layer: int
    represent: Literal["masked", "intact"] = "masked"
    top: int = 0


@dataclass(frozen=True)
class TeacherTargets:
    """Of the M masked residues, B sequences and R residues of a row, in its order; None what was not asked for.

    Attributes:
        logits: ``(M, V)``.
        values: ``(M, k)`` highest logits, ``ids`` ``(M, k)`` int64 their entries, ``rest`` ``(M,)`` log-sum-exp of the
            others (minus infinity if there are none).
        pooled: ``(B, D)``.
        hidden: ``(R, D)``.
    """

    logits: torch.Tensor | None = None
    values: torch.Tensor | None = None
    ids: torch.Tensor | None = None
    rest: torch.Tensor | None = None
    pooled: torch.Tensor | None = None
    hidden: torch.Tensor | None = None


class Teacher:
    """A model that answers for rows.

    Args:
        loaded: The model; with its language-model head if logits are wanted.
        store: The corpus, in any model's token ids.
        masks: How its sequences are masked and cropped.
        wants: What is asked.

    Raises:
        UserError: The model cannot answer that.
    """

    def __init__(self, loaded: LoadedModel, store: CorpusStore, masks: MaskPlan, wants: Wants) -> None:
        head = encoder.language_head(loaded.model)
        if wants.logits and head is None:
            raise UserError(
                f"{loaded.family.title} has no language-model head, so it has no logits to learn from",
                where=loaded.files.id, fix="Weigh only --weight-kernel, --weight-hidden and --weight-mlm",
            )
        if not loaded.family.mask and (wants.pooled or wants.hidden) and wants.represent == "masked":
            raise UserError(
                f"{loaded.family.title} knows no masked residues", where=loaded.files.id, fix="Use --represent intact"
            )
        limit = loaded.family.max_residues
        if limit is not None and masks.crop > limit:
            raise UserError(
                f"{loaded.family.title} takes at most {limit} residues", where=f"--max-length {masks.crop}",
                fix=f"Choose up to {limit}",
            )
        self._loaded, self._masks, self._wants = loaded, masks, wants
        self._store = store.for_family(loaded.family, loaded.vocabulary)
        self._same_ids = all(
            np.array_equal(getattr(self._store, name), getattr(store, name))
            for name in ("table", "before", "after", "mask")
        )
        # bfloat16 would round logits to a thirtieth and with them small divergences.
        self._head = copy.deepcopy(head).float() if wants.logits else None

    def answer(self, row: DistillationRow) -> TeacherTargets:
        """What the teacher says of a row, without gradients, float32 on the model's device.

        Args:
            row: A row of the mask plan, in the token ids of the store that the teacher was made with.
        """
        loaded, wants = self._loaded, self._wants
        before, after = len(loaded.family.before), len(loaded.family.after)
        targets: dict[str, torch.Tensor] = {}
        states: torch.Tensor | None = None
        with torch.no_grad():
            if wants.logits or (wants.represent == "masked" and (wants.pooled or wants.hidden)):
                masked = self._masked(row)
                batch = masked.batch
                last, states = encoder.layer_states(loaded, batch, [loaded.layers, wants.layer])
                if self._head is not None:
                    logits = self._head(last[masked.asked].float())
                    targets |= top_logits(logits, wants.top) if wants.top else {"logits": logits}
            if wants.pooled or wants.hidden:
                if wants.represent == "intact" or states is None:
                    batch = self._intact(row)
                    (states,) = encoder.layer_states(loaded, batch, [wants.layer])
                inside, owner = residue_places(batch, before, after)
                mine = states[inside].float()
                if wants.pooled:
                    targets["pooled"] = mean_of_residues(mine, owner, len(batch.lengths))
                if wants.hidden:
                    targets["hidden"] = mine
        return TeacherTargets(**targets)

    def _masked(self, row: DistillationRow) -> DistillationRow:
        if not self._same_ids:
            batch, labels = self._masks.row(self._store, np.asarray(row.members).tolist(), row.set_number)
            row = DistillationRow(batch, labels, row.members, row.set_number)
        return row.to(self._loaded.device)

    def _intact(self, row: DistillationRow) -> Batch:
        if self._same_ids:
            row = row.to(self._loaded.device)
            ids = torch.where(row.targets == IGNORED, row.batch.input_ids, row.targets)
            return Batch(ids, row.batch.position_ids, row.batch.layout, row.batch.indices)
        batch = self._masks.intact_row(self._store, np.asarray(row.members).tolist(), row.set_number)
        return batch.to(self._loaded.device)


def top_logits(logits: torch.Tensor, count: int) -> dict[str, torch.Tensor]:
    """The ``count`` highest of ``(M, V)`` logits and the log-sum-exp of the others, as fields of the targets."""
    values, ids = logits.topk(min(count, logits.shape[-1]), dim=-1)
    rest = logits.scatter(-1, ids, -torch.inf).logsumexp(-1)
    return {"values": values, "ids": ids, "rest": rest}


def residue_places(batch: Batch, before: int, after: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Which tokens of a row are residues, and whose.

    Args:
        batch: The row.
        before: Special tokens in front of each sequence.
        after: Special tokens behind.

    Returns:
        ``(R,)`` int64 places of the R residues in the row, and ``(R,)`` int64 numbers of their sequences, on the
        device of the row, where nobody waits for them.
    """
    device = batch.input_ids.device

    def make() -> torch.Tensor:
        owner = batch.layout.owners(torch.device("cpu"))
        lengths = torch.tensor(batch.lengths)
        at = torch.arange(batch.tokens) - torch.tensor(batch.layout.starts)[owner]
        inside = torch.nonzero((at >= before) & (at < lengths[owner] - after))[:, 0]
        return sent(torch.stack((inside, owner[inside])), device)

    inside, owner = batch.layout.made(f"residues between {before} and {after}", device, make)
    return inside, owner


def mean_of_residues(states: torch.Tensor, owner: torch.Tensor, sequences: int) -> torch.Tensor:
    """``(B, D)`` mean of the ``(R, D)`` states of each sequence's residues, in float32 at least."""
    wide = states if states.dtype == torch.float64 else states.float()
    sums = torch.zeros(sequences, wide.shape[1], dtype=wide.dtype, device=wide.device).index_add(0, owner, wide)
    ones = torch.ones_like(wide[:, 0])  # bincount would have a GPU waited for
    return sums / ones.new_zeros(sequences).index_add(0, owner, ones).clamp(min=1)[:, None]
