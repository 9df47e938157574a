"""Files that make a library loop or crash cost a process, not the job."""

from __future__ import annotations

import base64
import errno
import os
import resource
import signal
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from plm.data.embeddings.files import read_embeddings
from plm.data.protein_store import store_proteins
from plm.errors import UserError
from plm.received import trial

ENDLESS = (
    "eNrtWWtQE1cU3g2viISCpQOIYNDaB7V08xBI7e4NxQf44P0j07HGkN1oal4SINDSqkNRoEXr2NJ2kFbtlGJ1nKnSjjh1L8hUyg9H7cM+rT+s"
    "Tq10wOkftYN2s9mbbLYg2On4p/v9Obn3nP1ycs93dmdPWguXLFPFzo7F/FAqsUgsARPjjgDjvPA18q8TLC7YFsH2KND+A7wvRdhPEPjVEYH1"
    "94KtLF+61B99RwL0PQmp6HoZ/0cULs0v9VuTsEZ6+lIRHmenvbytszhqGW9Il8Z/+b2JguKkuo4TGHEsBkvClJjNXe201GBYKo7zVyQEe0IZ"
    "1h/xoS1+Lw7LC/ZJHOfwWjcwTou5jqn22t0ujkeJwo1hPMhK83BYGty108gjWpSHIownOsDD1DEObGqeGBFPRBiPkufxuN0Ou2v9lDyRIp7I"
    "CfJxuulp5TNDxBPF8xQKflWIx+zdYNEuysGmwWcU8UVLzjuOUyF33lypJqgTjk9YL8U/6hb4fXRNg4e5x/OOCdNPLK8f2u5kXAHpBO6Xk+hH"
    "HcwDnU88n4e31l7DhOQ3ZT5RonyUYXyxgfpXM1a7KJ970cEMnq9U8M/i+Xx2F+32MbTZU+2uYewu7zR5cRFvrHw7DWJ5QckqXPRgReelihc+"
    "eBzOJxlnFUPTXBt7QwKORn6LdSNDB5o/KFD/fqA+gYKiwnJwMhZXUDioYTnU2F0NZsbr1Er40Y2bsGpsBj2t11QxubZFNithoA1and5izTHk"
    "ENocjYHQVGkIXa7NkmfNy8ulrTZCwwVqdDq91e+LkeRnc7gtNTot0kQwHyJbk02I8kJ52zw6rVg86KAIwc4UbJJgvZ7GiqLVBoLQNS7LX63T"
    "mblVoOEmidPzcXoUp5osTsvHaVFc/GRxGj5Og+IQUuLvu8a2RMp9JkOGDBkyZMiQIUOGjHtEsaVYPoT/HDj37ouLXmlxYbiKRljSN/gIzo/f"
    "ZeQSxVn/WqFAU5cAXwSOpk5GSQYtU2Q497X7eyIVxSVLcEwRnA0Ep82TAP0pYZotq+nuynosYBXhylJLFKaWKC1RPVfwqbFkJZa8WfCHlIZL"
    "lGZEFJK/B+rlosiQIUOGCEmhhzc/TxavVZL1TMnaP8+ufLYMvD+GbDEgrl8GNy6mg2VnOiFxhoULj0UC1bHtYE3KmRMjr5rJVtNuKvlkM1lY"
    "VEf2tmNU9/glSr98mF2bQZLp6aOsM+55ds2Gz+EQexwWpHWDy74+UHS4BfSfVYN6JrWffPgg2/nFJlh0dRCu737vxODBnSAzeSE7/tkccPOR"
    "LNAWF2ukT3UCw9ZX4P7BMVjf1kH1NL0JutLWUlWvF1MD51Nge34BaNq0AmZ2ZEITfm3xWIUC7jz5ILvi8Ck2a/5eEs/uhaNzjsKCnD1g5Kdm"
    "0NzsBhm3rSAq5Sp8+9I1aofRBOvfeRfWVx4ht8xqAk3jP7JljU+BmU41aPgAM/bsXwlMQ51w1/ExeORcCzX6eBf4ZnYb9ZsGY12DH7EDq/6k"
    "zp68yjaurGdLlKWUafMo+9dIKnt99Gv24+qLz5xObYeevtOwY2sfiOjoAuNlVmAZ9oGtRRH9O3LTqJiNu+DPvh6Yff5DasGFVoC98DT7VuJD"
    "oK80CzQfTTSW/74bzION8PbwL/DRa0+QX3XvA3v23iIXLviEHDAlw7YDGeDFER0czfqBXUf2kzevkOy67z5ltxm/ZW3nzNRz+wbglRsHoOfl"
    "fWBBXztYnPQSGCqiwS3lCOw99Af1q+8QPDG/HV7wvEH6tpcDzXmK/RtLz7M8"
)
"""An HDF5 file of ``plm_embed`` with damaged bytes, found by fuzzing: reading the attribute ``dtype`` does not end."""


def test_a_file_on_which_hdf5_loops_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "SILENT_SECONDS", 2.0)
    path = tmp_path / "endless.h5"
    path.write_bytes(zlib.decompress(base64.b64decode(ENDLESS)))
    with pytest.raises(UserError, match=r"damaged so that the HDF5 library does not come back from it \[endless.h5\]"):
        read_embeddings(path)


def test_a_crash_is_one_line(tmp_path: Path) -> None:
    def crash(path: Path, step: Callable[[], object]) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)

    with pytest.raises(UserError, match="the X library crashes"):
        trial.try_out(crash, tmp_path, "X", "file")


def test_slow_files_have_their_time_as_long_as_steps_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "SILENT_SECONDS", 0.5)

    def slow(path: Path, step: Callable[[], object]) -> None:
        for _ in range(10):
            time.sleep(0.1)
            step()

    trial.try_out(slow, tmp_path, "X", "file")


def test_what_a_look_raises_is_left_to_the_reader(tmp_path: Path) -> None:
    def damaged(path: Path, step: Callable[[], object]) -> None:
        raise OSError("damaged")

    trial.try_out(damaged, tmp_path, "X", "file")


def test_a_process_with_many_open_files_reads_one_more(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 1200:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1200, hard))
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        trial.try_out(lambda path, step: step(), tmp_path, "X", "file")
    finally:
        for descriptor in opened:
            os.close(descriptor)


def test_proteins_close_their_files(tmp_path: Path) -> None:
    path = tmp_path / "proteins.fasta"
    path.write_text(">a\nMKTAYIAKQR\n>b\nMKTAYIAKQL\n")

    def descriptors() -> int:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    before = descriptors()
    stored = store_proteins(path, tmp_path / "laid_out")
    few = stored.sequences[:1]
    del stored
    assert few[0] == "MKTAYIAKQR" and descriptors() == before + 1
    del few
    assert descriptors() == before


def test_where_no_process_is_left_the_file_is_read_without_a_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> int:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    before = sum(1 for _ in Path("/proc/self/fd").iterdir())
    with monkeypatch.context() as patched:
        patched.setattr(os, "fork", refuse)
        trial.try_out(lambda path, step: pytest.fail("looked here"), tmp_path, "X", "file")
    assert sum(1 for _ in Path("/proc/self/fd").iterdir()) == before
