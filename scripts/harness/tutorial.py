"""The data of the Galaxy tutorial "Fine-tuning protein language model": from a folder or from Zenodo, and checked.

The files are not part of the project. Record 10986248 on Zenodo holds them.
"""

from __future__ import annotations

import hashlib
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from plm.errors import UserError

RECORD = "https://zenodo.org/record/10986248/files"


@dataclass(frozen=True)
class TutorialFile:
    """One file of the tutorial.

    Args:
        name: Its name on Zenodo.
        also: The name it has in the repository of the tutorial's authors.
        sha256: Digest of its bytes.
    """

    name: str
    also: str
    sha256: str


TRAINING = TutorialFile(
    "train_sequences.fasta", "gtn_train.fasta", "d8c9b37a8aeeeab6c8271f6e8e7023e28318d31aaba91de593d884399ffb66aa"
)
TEST = TutorialFile(
    "test_sequences.fasta", "gtn_test.fasta", "572c024e55140017e986b37ee9e02b75b740005e786f68ccf4fe2121da56b9d3"
)


@dataclass(frozen=True)
class Published:
    """What others report for the same test set.

    Args:
        model: What they call their model.
        where: Where the figures stand.
        scores: Metric, as the metrics table names it, to its value.
    """

    model: str
    where: str
    scores: Mapping[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The row of a table of scores."""
        return f"published: {self.model}"

    def sentence(self) -> str:
        """The figures in one sentence."""
        told = ", ".join(f"{metric.upper() if metric != 'accuracy' else metric} {value:.3f}"
                         for metric, value in self.scores.items())
        return f"Published for the same test set ({self.where}): {self.model}, {told}."


PUBLISHED = Published(
    "ProtT5-XL with LoRA", "the Galaxy tutorial", {"auroc": 0.806, "mcc": 0.479, "accuracy": 0.740}
)


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def check(path: Path, wanted: TutorialFile) -> Path:
    """Returns ``path`` if it holds the very bytes that were published.

    Raises:
        UserError: It holds others.
    """
    found = sha256(path)
    if found != wanted.sha256:
        raise UserError(
            f"This is not the tutorial's {wanted.name}: its sha256 is {found}, not {wanted.sha256}",
            where=str(path),
            fix=f"Download it again from {RECORD}/{wanted.name}",
        )
    return path


def from_folder(folder: Path) -> tuple[Path, Path]:
    """The training and test file in a folder, under either of their names, checked.

    Raises:
        UserError: One is missing, or is another file.
    """
    found = []
    for wanted in (TRAINING, TEST):
        path = next((folder / name for name in (wanted.name, wanted.also) if (folder / name).is_file()), None)
        if path is None:
            raise UserError(
                f"The folder holds neither {wanted.name} nor {wanted.also}",
                where=str(folder),
                fix=f"Download them from {RECORD}, or leave the folder out to have it done",
            )
        found.append(check(path, wanted))
    return found[0], found[1]


def download(folder: Path, say: Callable[[str], None]) -> tuple[Path, Path]:
    """The training and test file, downloaded into ``folder`` unless they are there, checked.

    Raises:
        UserError: The download failed, or brought something else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for wanted in (TRAINING, TEST):
        target = folder / wanted.name
        if target.is_file():
            continue
        address = f"{RECORD}/{wanted.name}"
        say(f"downloading {address}")
        partial = target.with_name(f"{target.name}.partial")
        try:
            with urllib.request.urlopen(address, timeout=60) as answer:
                partial.write_bytes(answer.read())
        except (urllib.error.URLError, OSError) as error:
            raise UserError(
                f"The download failed: {error}",
                where=address,
                fix="Download both files with a browser and give their folder: --tutorial FOLDER",
            ) from None
        check(partial, wanted)
        os.replace(partial, target)
    return from_folder(folder)
