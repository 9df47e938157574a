"""A model of the hub: what its API lists of a revision, and its files."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plm.errors import UserError
from plm.jobs.install_model.offers import Offer, OfferedFile, chosen
from plm.received import offline
from plm.received.documents import one_line

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

_COMMIT = re.compile(r"[0-9a-f]{40}", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
_BLOB = re.compile(r"[0-9a-f]{40}", re.ASCII)
PATIENCE = 60.0
"""Seconds that the hub has for an answer."""


class HubModel:
    """A model on the hub (or what ``HF_ENDPOINT`` names instead).

    Args:
        repository: ``organisation/name``.
        revision: Branch, tag or commit; empty for the main branch.
        scratch: For files on their way.
    """

    def __init__(self, repository: str, revision: str, scratch: Path) -> None:
        self._repository, self._asked, self._scratch = repository, revision or "main", scratch
        self._commit = ""

    def offer(self) -> Offer:
        """As the API lists it; a branch or tag is resolved to its commit."""
        import huggingface_hub
        from huggingface_hub import constants

        with offline.lifted():
            try:
                info = huggingface_hub.HfApi().model_info(
                    self._repository, revision=self._asked, files_metadata=True, timeout=PATIENCE
                )
            except Exception as error:  # the hub client raises a dozen unrelated classes
                raise self._failure(error) from error
        commit = info.sha or ""
        if not _COMMIT.fullmatch(commit):
            raise self._strange("no commit")
        if _COMMIT.fullmatch(self._asked) and commit != self._asked:
            raise self._strange(f"commit {commit} where {self._asked} was asked for")
        self._commit = commit
        listed = {one.rfilename: one for one in info.siblings or ()}
        names = chosen([name for name in listed if "/" not in name], self._repository)
        files = tuple(self._file(listed[name]) for name in names)
        return Offer(
            self._repository, "hub", constants.ENDPOINT, self._asked, commit, _licence(info), info.pipeline_tag or "",
            bool(info.gated), files, tuple(sorted(set(listed) - set(names))),
        )

    def _file(self, listed: Any) -> OfferedFile:
        sha256 = listed.lfs.sha256 if listed.lfs else ""
        blob = listed.blob_id or ""
        if not isinstance(listed.size, int) or listed.size < 0:
            raise self._strange(f"no size of {one_line(listed.rfilename, 60)}")
        if not (_DIGEST.fullmatch(sha256) or _BLOB.fullmatch(blob)):
            raise self._strange(f"no checksum of {one_line(listed.rfilename, 60)}")
        return OfferedFile(listed.rfilename, listed.size, sha256, blob)

    def fetch(self, file: OfferedFile, target: Path) -> None:
        """Downloads a file of the commit that was offered."""
        import huggingface_hub

        with offline.lifted():
            try:
                got = huggingface_hub.hf_hub_download(
                    self._repository, file.name, revision=self._commit, local_dir=self._scratch / "hub"
                )
            except Exception as error:
                raise self._failure(error) from error
        os.replace(Path(got).resolve(), target)

    def _strange(self, what: str) -> UserError:
        return UserError(f"The hub tells {what}", where=self._repository, fix="Try again, or give a folder or a zip")

    def _failure(self, error: Exception) -> UserError:
        """What a failure of the hub's client means to who runs the job; the token is never repeated."""
        import huggingface_hub
        from huggingface_hub import constants, errors

        where, token = self._repository, huggingface_hub.get_token()
        chain: list[BaseException] = [error]
        while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None and len(chain) < 10:
            chain.append(inner)

        def is_a(*kinds: type[BaseException]) -> bool:
            return any(isinstance(one, kinds) for one in chain)

        if is_a(errors.GatedRepoError):
            if token:
                return UserError(
                    "The hub does not give this model to the owner of the token", where=where,
                    fix="Accept its terms on its page of the hub with the account that the token belongs to",
                )
            return UserError(
                "The model is gated and no token came with the job", where=where,
                fix="Accept its terms on its page of the hub, and give a token: as credentials in the form, or as "
                "HF_TOKEN in the environment of the job",
            )
        if is_a(errors.RevisionNotFoundError):
            return UserError(
                f"The model has no revision {one_line(self._asked, 60)}", where=where,
                fix="Give a commit, branch or tag that its page on the hub lists",
            )
        if is_a(errors.RepositoryNotFoundError):
            return UserError(
                "The hub has no such model, or does not show it " + ("to this token" if token else "without a token"),
                where=where, fix="Check the id; for a private model give a token",
            )
        if is_a(errors.HFValidationError):
            return UserError("This is no id of a model", where=where, fix="Give it as organisation/name")
        if is_a(errors.OfflineModeIsEnabled):
            return UserError(
                "The network is forbidden here (HF_HUB_OFFLINE)", where=where, fix="Give a folder or a zip instead"
            )
        lines = str(error).strip().splitlines()
        reason = one_line(lines[0] if lines else type(error).__name__)
        if token:
            reason = reason.replace(token, "(token)")
        return UserError(
            f"The model could not be fetched from {constants.ENDPOINT}: {reason}", where=where,
            fix="Check the network of the job, or give a folder or a zip instead",
        )


def _licence(info: ModelInfo) -> str:
    """What the card or the tags state; the name where the licence is none that the hub knows."""
    card = info.card_data.to_dict() if info.card_data is not None else {}
    stated = card.get("license")
    if stated == "other" and isinstance(card.get("license_name"), str):
        stated = card["license_name"]
    if not isinstance(stated, str):
        tags = [tag.removeprefix("license:") for tag in info.tags or () if tag.startswith("license:")]
        stated = tags[0] if tags else ""
    return one_line(stated, 80)
