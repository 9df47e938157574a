"""Small products run on one thread, and the number of threads comes back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from plm.scoring.quiet_threads import SMALL, one_thread
from threadpoolctl import threadpool_info


def blas_threads() -> list[int]:
    np.ones((4, 4)) @ np.ones((4, 4))
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


def test_one_thread_inside_and_all_again_after_a_failure() -> None:
    torch.set_num_threads(2)
    before = blas_threads()
    with pytest.raises(ValueError, match="inside"), one_thread():
        assert torch.get_num_threads() == 1
        assert set(blas_threads()) == {1}
        raise ValueError("inside")
    assert torch.get_num_threads() == 2
    assert blas_threads() == before


def test_large_products_keep_their_threads() -> None:
    torch.set_num_threads(2)
    with one_thread(SMALL):
        assert torch.get_num_threads() == 2
