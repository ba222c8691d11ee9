"""A few queries against many heads are shared by all threads, and have the bits of the batch."""

import numpy as np
import pytest

from headroute import Router

# So many multiply-adds that a second thread is worth its start (csrc/engine.cpp).
D, E = 96, 70
N_HEADS = 40_000


@pytest.fixture(scope="module")
def heads():
    rng = np.random.default_rng(5)
    centroids = rng.standard_normal((N_HEADS, D), np.float32)
    return centroids, rng.standard_normal((N_HEADS, E), np.float32)


@pytest.mark.parametrize("precision", ["float32", "int16"])
def test_the_same_bits_by_any_number_of_threads(isa, heads, rng, precision):
    router = Router(*heads, precision=precision, temperature=0.05)
    queries = rng.standard_normal((70, D)).astype(np.float32)
    queries[3] = heads[0][N_HEADS - 1]  # the maximum comes in the last block
    queries[5] = heads[0][0]
    queries[6] = 0
    expected = router.project(queries, num_threads=1)
    for n in (1, 2, 3, 4, 5, 7, 13, 14, 15, 29):
        for threads in (2, 3, 8, 64):
            got = router.project(queries[:n], num_threads=threads)
            np.testing.assert_array_equal(got, expected[:n], err_msg=f"{n} rows, {threads} threads")
    single = router.project(queries[3], num_threads=5)
    np.testing.assert_array_equal(single, expected[3])


def test_extras_of_shared_tiles(isa, heads, rng):
    router = Router(*heads)
    int16 = Router(*heads, precision="int16")
    queries = rng.standard_normal((9, D)).astype(np.float16)
    _, alone = router.project(queries, stats=True, num_threads=1)
    _, shared = router.project(queries, stats=True, num_threads=7)
    for a, b in zip(alone, shared, strict=True):
        np.testing.assert_array_equal(a, b)
    _, bound = int16.project(queries, return_bound=True, num_threads=1)
    _, same = int16.project(queries, return_bound=True, num_threads=7)
    np.testing.assert_array_equal(bound, same)
    out = np.empty((9, E), np.float16)
    router.project(queries, out=out, num_threads=7)
    np.testing.assert_array_equal(out, router.project(queries).astype(np.float16))


def test_a_bad_row_of_a_shared_tile(backend, heads, rng):
    router = Router(*heads, backend=backend)
    queries = rng.standard_normal((33, D)).astype(np.float32)
    queries[[17, 31], 95] = np.nan
    with pytest.raises(ValueError, match="query 17 has a NaN or infinity in it"):
        router.project(queries, num_threads=16)


def test_answers_near_the_end_of_float32(backend, heads, rng):
    """The sum of 40,000 of them would be infinite before it is divided by the weights' sum."""
    answers = np.full((N_HEADS, 3), 3e38, np.float32)
    router = Router(heads[0], answers, backend=backend, temperature=10.0)
    projected = router.project(rng.standard_normal((2, D)), num_threads=4)
    np.testing.assert_allclose(projected, 3e38, rtol=1e-5)
