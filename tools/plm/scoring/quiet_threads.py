"""One thread for small products of matrices.

Threads that wait for each other within every small product cost more than they bring: on two cores that other jobs use
too, a logistic regression of 3,200 rows x 420 features x 16 classes takes 42 s with two threads and 2.2 s with one
(9.3 s and 0.5 s of processor time).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

SMALL = 100_000_000
"""Multiplications in one product from which several threads are worth it."""


@contextmanager
def one_thread(multiplications: int = 0) -> Iterator[None]:
    """Products inside run on one thread, those of numpy and, where it is in use already, of torch.

    Args:
        multiplications: In the largest product; from :data:`SMALL` on nothing changes.
    """
    if multiplications >= SMALL:
        yield
        return
    from threadpoolctl import threadpool_limits

    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else 0
    try:
        if torch:
            torch.set_num_threads(1)
        with threadpool_limits(1, user_api="blas"):
            yield
    finally:
        if torch:
            torch.set_num_threads(before)
