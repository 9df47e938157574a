"""ESM-1b (Rives et al. 2021) and ESM-1v (Meier et al. 2021): learned positions for at most 1,022 residues."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from plm.errors import UserError
from plm.model.families.esm import EsmFamily
from plm.model.families.family import PUBLISHED
from plm.received.fields import Fields

if TYPE_CHECKING:
    import torch

    from plm.model.batching import Batch


class Esm1b(EsmFamily):
    """ESM-1b and ESM-1v, which differ in the layer norm before the first layer."""

    name, title, positions = "esm1b", "ESM-1b", "absolute"
    sizes: ClassVar[Mapping[str, tuple[str, ...]]] = {**EsmFamily.sizes, **EsmFamily.learned_positions}

    def checked(self, settings: dict[str, Any], fields: Fields, where: str) -> dict[str, Any]:
        if settings["pad_token_id"] is None:
            raise UserError("config.json lacks pad_token_id, behind which positions begin", where=where, fix=PUBLISHED)
        return super().checked(settings, fields, where)

    def limit(self, settings: Mapping[str, Any]) -> int:
        """Positions up to the padding token's number are for no token."""
        return int(settings["max_position_embeddings"] - settings["pad_token_id"] - 1 - self.specials)

    def placed(self, encoder: Any, embedded: torch.Tensor, batch: Batch) -> torch.Tensor:
        """transformers skips learned positions where embeddings are given instead of ids."""
        positions = batch.position_ids + encoder.config.pad_token_id + 1
        result: torch.Tensor = embedded + encoder.embeddings.position_embeddings(positions)
        return result


ESM1B = Esm1b()
