"""What the processes of one job share: the leader finds, reads and splits, the others take what it made."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from plm.errors import UserError
from plm.masked_lm.cluster_split import ClusterSplit
from plm.masked_lm.corpus_store import ESM2_IDS, CorpusStore, load_corpus
from plm.model.families import ESM2, ModelFamily
from plm.model.loaded import ModelFiles
from plm.model.ranks import Ranks


def checkpoint_together(ranks: Ranks, choose: Callable[[], ModelFiles]) -> ModelFiles:
    """A checkpoint that the leading process finds or makes, for all processes.

    Raises:
        UserError: A process on another machine finds another model.
    """
    if not ranks.leads:
        name, folder, digest = json.loads(ranks.told(""))
        if Path(folder).is_dir():
            return ModelFiles(name, Path(folder), digest)
        files = choose()  # on another machine, whose temporary folders are its own
        if files.sha256 != digest:
            raise UserError(
                "The processes of the job do not see the same model", where=name,
                fix="Give a model that lies in a folder of all machines",
            )
        return files
    files = choose()
    ranks.told(json.dumps([files.id, str(files.directory), files.sha256]))
    return files


def corpus_together(
    ranks: Ranks, scratch: Path, read: Callable[[Path], CorpusStore], family: ModelFamily = ESM2,
    vocabulary: Mapping[str, int] = ESM2_IDS,
) -> CorpusStore:
    """A corpus that the leading process reads once, for all processes of its machine.

    Args:
        ranks: The processes of the job.
        scratch: Folder of this process.
        read: Lays the corpus out in a folder; asked in the leading process, and in those of other machines.
        family: Of the model whose token ids are wanted.
        vocabulary: Token -> id of the model.
    """
    shared = Path(ranks.told(str(scratch)))
    if ranks.leads:
        store = read(scratch)
        ranks.meet()
        return store
    ranks.meet()
    if (shared / "corpus").is_dir():
        return load_corpus(shared, family, vocabulary)
    return read(scratch)


def split_together(ranks: Ranks, store: CorpusStore, hold_out: Callable[[], ClusterSplit]) -> ClusterSplit:
    """Which clusters are kept away from training: the leading process finds them, for all processes."""
    if ranks.leads:
        split = hold_out()
        split.save(store.folder / "split.npz")
        ranks.meet()
        return split
    ranks.meet()
    place = store.folder / "split.npz"
    return ClusterSplit.load(place) if place.is_file() else hold_out()
