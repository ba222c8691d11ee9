"""float16 queries and float16 results: the float32 results of the same numbers, rounded once."""

import numpy as np
import pytest

from headroute import Router

SHAPES = [(1, 1, 1, 1), (3, 5, 7, 4), (16, 384, 384, 29), (33, 31, 40, 30), (300, 100, 65, 15)]


def make(backend, rng, shape, precision=None):
    n_heads, d, e, n = shape
    heads = rng.standard_normal((n_heads, d)), rng.standard_normal((n_heads, e))
    router = Router(*heads, backend=backend, precision=precision, tolerance=1e-3)
    return router, rng.standard_normal((n, d)).astype(np.float16)


def check_float16_is_float32_rounded_once(router, queries):
    wide = router.project(queries.astype(np.float32))
    np.testing.assert_array_equal(router.project(queries), wide)
    np.testing.assert_array_equal(router.route(queries), router.route(queries.astype(np.float32)))
    out = np.full(wide.shape, 7, np.float16)
    assert router.project(queries, out=out) is out
    np.testing.assert_array_equal(out, wide.astype(np.float16))
    out = np.full(wide.shape, 7, np.float16)
    router.project(queries.astype(np.float32), out=out)
    np.testing.assert_array_equal(out, wide.astype(np.float16))
    one = np.full(wide.shape[1], 7, np.float16)
    router.project(queries[-1], out=one)
    np.testing.assert_array_equal(one, out[-1])


@pytest.mark.parametrize("shape", SHAPES)
def test_float16_is_float32_rounded_once(backend, rng, shape):
    check_float16_is_float32_rounded_once(*make(backend, rng, shape))


@pytest.mark.parametrize("precision", ["int16", "screened"])
@pytest.mark.parametrize("shape", SHAPES)
def test_in_other_arithmetic(isa, rng, shape, precision):
    check_float16_is_float32_rounded_once(*make("native", rng, shape, precision))


def test_streamed_float16_ends_where_it_should(backend, rng):
    """Results larger than the caches are written in whole lines, and nothing beside them."""
    router, queries = make(backend, rng, (3, 4, 333, 30_000))
    memory = np.full(30_000 * 333 + 64, 7, np.float16)
    for start in (0, 1, 5, 31):
        out = memory[start : start + 30_000 * 333].reshape(-1, 333)
        router.project(queries, out=out)
        assert (memory[:start] == 7).all()
        assert (memory[start + out.size :] == 7).all()
        np.testing.assert_array_equal(out[::997], router.project(queries[::997]).astype(np.float16))
        memory[:] = 7


def test_numbers_at_the_ends_of_float16(backend):
    """Every kind of result: subnormal, halfway between two, the largest, too large, negative."""
    values = [2.0**-24, 2.0**-25, 1.5 * 2.0**-25, 2.0**-14 - 2.0**-26, 6.1e-5, 1 + 2.0**-11]
    values += [1 + 3 * 2.0**-11, 65504, 65519.996, 65520, 1e38, 0, 3.0e-39]
    values = np.array([*values, *(-value for value in values)], np.float32)
    router = Router([[1.0, 0.0]], values[np.newaxis], backend=backend)
    out = np.empty((5, len(values)), np.float16)
    router.project(np.ones((5, 2), np.float16), out=out)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(out, np.tile(values.astype(np.float16), (5, 1)))


def test_every_float16_is_read_exactly(backend):
    """All 63,488 finite ones, subnormal and zero included, as the first of two columns."""
    numbers = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    numbers = numbers[np.isfinite(numbers)]
    queries = np.stack([numbers, np.full_like(numbers, 2.0**-10)], axis=1)
    router = Router(np.eye(2), np.eye(2), temperature=1.0, backend=backend)
    np.testing.assert_array_equal(
        router.project(queries), router.project(queries.astype(np.float32))
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_row_has_its_number(backend, rng, bad):
    router, queries = make(backend, rng, (16, 65, 9, 40))
    queries[23, 64] = bad
    with pytest.raises(ValueError, match="query 23 has a NaN or infinity in it"):
        router.project(queries, out=np.empty((40, 9), np.float16))


def test_layouts(backend, rng):
    router, queries = make(backend, rng, (16, 33, 9, 40))
    expected = router.project(queries)
    wide = np.zeros((80, 50), np.float16)
    wide[::2, 3:36] = queries
    big = queries.astype(">f2")
    for other in (wide[::2, 3:36], np.asfortranarray(queries), big, queries[::-1][::-1]):
        np.testing.assert_array_equal(router.project(other), expected)
    np.testing.assert_array_equal(router.project(queries[::-1]), expected[::-1])


def test_only_projections_are_float16(backend, rng):
    router, queries = make(backend, rng, (16, 33, 9, 40))
    with pytest.raises(ValueError, match="out must have dtype float32, got float16"):
        router.route(queries, out=np.empty((40, 16), np.float16))
