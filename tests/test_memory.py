"""Memory that begins at a cache line."""

import numpy as np
import pytest

from headroute import Router, aligned_empty


@pytest.mark.parametrize("shape", [(0,), (), (1,), (3, 5), (100_000, 7)])
@pytest.mark.parametrize("dtype", [np.float16, "float32", np.dtype(np.int64)])
def test_it_is_what_np_empty_returns(shape, dtype):
    memory, expected = aligned_empty(shape, dtype), np.empty(shape, dtype)
    assert (memory.shape, memory.dtype) == (expected.shape, expected.dtype)
    assert memory.flags.c_contiguous
    assert memory.flags.writeable
    assert memory.size == 0 or memory.ctypes.data % 64 == 0  # NumPy invents an address for nothing


def test_results_begin_at_a_cache_line():
    router = Router(np.eye(3), np.ones((3, 5)))
    for n in (2, 1000, 100_000):
        assert router.project(np.ones((n, 3))).ctypes.data % 64 == 0
