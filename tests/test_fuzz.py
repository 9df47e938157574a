"""Readers of strangers' files never crash: damaged files for each, for a few seconds; and those that once crashed.

``scripts/fuzz`` does the same for hours, each time with other files; here they are the same each time, because the HDF5
library itself can loop without end on a damaged file (SECURITY.md).
"""

from __future__ import annotations

import random
import zipfile
from collections.abc import Callable
from io import BytesIO

import fuzz_targets
import numpy as np
import pytest
from fuzz_targets import TARGETS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

HEAVY = ("bundle-fine-tuned", "bundle-classifier", "contact-head", "model", "checkpoint", "teacher-cache")
"""Of which a file takes a tenth of a second."""



def attribute_that_is_no_text() -> bytes:
    from h5py import File, h5a, h5s, h5t

    held = BytesIO()
    with File(held, "w") as file:
        file["ids"], file["values"] = ["a", "b"], [[1.0, 2.0], [3.0, 4.0]]
        h5a.create(file.id, b"form\xff", h5t.NATIVE_INT32, h5s.create(h5s.SCALAR))
    return held.getvalue()


def member_without_a_name() -> bytes:
    held = BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr("ids.npy", b"x")
    return held.getvalue().replace(b"ids.npy", b"\0ds.npy")


def text_beyond_unicode() -> bytes:
    held = BytesIO()
    codes = np.full((2, 3), 0x7FFFFFFF, np.uint32).view("U3").reshape(2)
    np.savez(held, ids=codes, values=np.ones((2, 2), "f4"))
    return held.getvalue()


CRASHES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "token-that-is-a-list": (
        "tokenizer", lambda: b'{"model": {"vocab": {"A": 1}}, "added_tokens": [{"id": 2, "content": [[1]]}]}',
    ),
    "attribute-that-is-no-text": ("embeddings-hdf5", attribute_that_is_no_text),
    "text-beyond-unicode": ("embeddings-npz", text_beyond_unicode),
    "member-without-a-name": ("embeddings-npz", member_without_a_name),
}
"""What once made a reader crash, by a name: the reader, and what makes the file."""


def tried(name: str, seed: int) -> None:
    target, draw = TARGETS[name], random.Random(seed)
    data = draw.choice(target.seeds())
    for _ in range(draw.choice((1, 1, 2, 4))):
        data = fuzz_targets.damaged(data, draw)
    fuzz_targets.check(target, data)


@pytest.mark.parametrize("name", TARGETS)
def test_sound_files_are_read(name: str) -> None:
    """Else damage would be refused for another reason than itself."""
    assert all(fuzz_targets.check(TARGETS[name], data) for data in TARGETS[name].seeds())


@pytest.mark.parametrize("name", [name for name in TARGETS if name not in HEAVY])
@settings(max_examples=30, derandomize=True, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
@given(seed=st.integers(0, 2**32))
def test_damaged_files_are_one_line(name: str, seed: int) -> None:
    tried(name, seed)


@pytest.mark.slow
@pytest.mark.parametrize("name", HEAVY)
@settings(max_examples=40, derandomize=True, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
@given(seed=st.integers(0, 2**32))
def test_damaged_archives_are_one_line(name: str, seed: int) -> None:
    tried(name, seed)


@pytest.mark.parametrize("name", [name for name in TARGETS if name not in HEAVY])
@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.one_of(st.binary(max_size=300), st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace"))))
def test_any_bytes_are_one_line(name: str, data: bytes) -> None:
    fuzz_targets.check(TARGETS[name], data)


@pytest.mark.parametrize("name", CRASHES)
def test_what_once_crashed_does_so_no_more(name: str) -> None:
    target, made = CRASHES[name]
    fuzz_targets.check(TARGETS[target], made())
