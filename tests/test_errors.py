"""Bad input: the same type and the same message on every backend, and what must not be an error."""

import re

import numpy as np
import pytest

from headroute import Router, available_backends

CALLS = ["project", "route", "top_heads"]


def call(router, name, queries, **options):
    arguments = {"k": 2} if name == "top_heads" else {}
    return getattr(router, name)(queries, **arguments, **options)


def raises(kind, message):
    return pytest.raises(kind, match=f"^{re.escape(message)}$")


# ---- queries


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", ">f4", "g"])
@pytest.mark.parametrize("row", [0, 17, 299])
def test_nan_or_infinity_names_the_first_bad_row(router, rng, name, bad, dtype, row):
    queries = rng.standard_normal((300, 6)).astype(dtype)
    queries[row, 5] = bad
    queries[row + 1 :, 0] = bad
    with raises(ValueError, f"query {row} has a NaN or infinity in it"):
        call(router, name, queries)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("threads", [1, 2, 7])
def test_the_first_bad_row_of_many_blocks_and_threads(backend, rng, name, threads):
    router = Router(rng.standard_normal((300, 64)), rng.standard_normal((300, 64)), backend=backend)
    queries = rng.standard_normal((6000, 64), dtype=np.float32)
    queries[[2345, 2346, 4000, 5999], 63] = np.nan
    with raises(ValueError, "query 2345 has a NaN or infinity in it"):
        call(router, name, queries, num_threads=threads)


@pytest.mark.parametrize("name", CALLS)
def test_nan_in_one_query(router, name):
    with raises(ValueError, "query 0 has a NaN or infinity in it"):
        call(router, name, np.array([1, 2, np.nan, 4, 5, 6], np.float32))


@pytest.mark.parametrize("name", CALLS)
def test_every_place_in_a_row_is_searched(backend, rng, name):
    router = Router(rng.standard_normal((3, 65)), rng.standard_normal((3, 2)), backend=backend)
    for column in range(65):
        query = np.ones(65, np.float32)
        query[column] = np.nan
        with raises(ValueError, "query 0 has a NaN or infinity in it"):
            call(router, name, query)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("shape", [(5, 768), (768,), (0, 768)])
def test_wrong_dimension(router, name, shape):
    message = "queries have 768 columns, the heads expect 6: embedded with another model?"
    with raises(ValueError, message):
        call(router, name, np.ones(shape, np.float32))


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("shape", [(), (1, 1, 6)])
def test_wrong_number_of_dimensions(router, name, shape):
    with raises(ValueError, f"queries must have shape (N, 6) or (6,), got {shape}"):
        call(router, name, np.ones(shape, np.float32))


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    ("queries", "dtype"),
    [
        (np.ones((2, 6), object), "object"),
        (np.full((2, 6), "a"), "<U1"),
        (["1"] * 6, "<U1"),
        (np.full((2, 6), b"a"), "|S1"),
        (np.ones((2, 6), complex), "complex128"),
        (np.ones((2, 6), bool), "bool"),
        (np.ones((2, 6), "M8[s]"), "datetime64[s]"),
        ([None] * 6, "object"),
    ],
)
def test_wrong_kind_of_dtype(router, name, queries, dtype):
    with raises(TypeError, f"queries must be real numbers, got dtype {dtype}"):
        call(router, name, queries)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("shape", [(2, 6), (6,)])
def test_masked_numbers(router, name, shape):
    mask = np.broadcast_to(np.arange(6) == 3, shape)
    queries = np.ma.array(np.ones(shape, np.float32), mask=mask)
    with raises(ValueError, "queries have masked numbers: fill or drop them first"):
        call(router, name, queries)
    call(router, name, np.ma.array(queries.data))


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("value", [0.0, -0.1, float("nan"), float("inf"), -float("inf")])
def test_temperature_values(router, name, value):
    with raises(ValueError, f"temperature must be a positive, finite number, got {value!r}"):
        call(router, name, np.ones(6), temperature=value)


@pytest.mark.parametrize("value", [True, "0.1", 1j, np.ones(1)])
def test_temperature_types(router, value):
    with raises(TypeError, f"temperature must be a number, got {value!r}"):
        router.project(np.ones(6), temperature=value)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("value", [0, -3])
def test_thread_values(router, name, value):
    with raises(ValueError, f"num_threads must be at least 1, got {value}"):
        call(router, name, np.ones(6), num_threads=value)


@pytest.mark.parametrize("value", [True, "2", 2.0])
def test_thread_types(router, value):
    with raises(TypeError, f"num_threads must be an integer, got {value!r}"):
        router.project(np.ones(6), num_threads=value)


@pytest.mark.parametrize("k", [0, -1, 11])
def test_k_values(router, k):
    with raises(ValueError, f"k must be between 1 and the number of heads (10), got {k}"):
        router.top_heads(np.ones(6), k)


@pytest.mark.parametrize("k", [True, 1.0, "1"])
def test_k_types(router, k):
    with raises(TypeError, f"k must be an integer, got {k!r}"):
        router.top_heads(np.ones(6), k)


# ---- out=


def read_only(array):
    array.setflags(write=False)
    return array


def misaligned(shape):
    size = 4 * int(np.prod(shape))
    return np.zeros(size + 1, np.uint8)[1:].view(np.float32).reshape(shape)


@pytest.mark.parametrize(("name", "width"), [("project", 4), ("route", 10)])
def test_out(router, rng, name, width):
    queries = rng.standard_normal((5, 6), dtype=np.float32)
    shape = (5, width)
    zeros = np.zeros(shape, np.float32)
    valid = "float32 or float16" if name == "project" else "float32"
    cases = [
        (np.zeros((5, width + 1), "f4"), f"out must have shape {shape}, got {(5, width + 1)}"),
        (np.zeros((4, width), "f4"), f"out must have shape {shape}, got {(4, width)}"),
        (np.zeros(width, "f4"), f"out must have shape {shape}, got {(width,)}"),
        (np.zeros(shape, "f8"), f"out must have dtype {valid}, got float64"),
        (np.zeros(shape, ">f4"), f"out must have dtype {valid}, got >f4"),
        (np.zeros(shape, int), f"out must have dtype {valid}, got int64"),
        (
            np.zeros(shape, "f4", order="F"),
            "out must be C-contiguous and aligned, got strides (4, 20)",
        ),
        (
            np.zeros((10, width), "f4")[::2],
            f"out must be C-contiguous and aligned, got strides {(8 * width, 4)}",
        ),
        (misaligned(shape), f"out must be C-contiguous and aligned, got strides {zeros.strides}"),
        (read_only(zeros.copy()), "out must be writeable, got a read-only array"),
    ]
    for out, message in cases:
        before = out.copy()
        with raises(ValueError, message):
            getattr(router, name)(queries, out=out)
        np.testing.assert_array_equal(out, before)
    with raises(TypeError, "out must be a NumPy array, got list"):
        getattr(router, name)(queries, out=[])


@pytest.mark.parametrize(("name", "width"), [("project", 4), ("route", 10)])
def test_out_overlapping_the_queries(router, rng, name, width):
    memory = rng.standard_normal(100).astype(np.float32)
    before = memory.copy()
    for offset in (0, 1, 29):
        out = memory[offset : offset + 5 * width].reshape(5, width)
        with raises(
            ValueError, "out must not overlap the queries, got arrays whose address ranges meet"
        ):
            getattr(router, name)(memory[:30].reshape(5, 6), out=out)
        np.testing.assert_array_equal(memory, before)


@pytest.mark.parametrize(("name", "width"), [("project", 4), ("route", 10)])
def test_bad_options_leave_out_alone(router, name, width):
    out = np.full((5, width), 7, np.float32)
    for options in ({"temperature": 0}, {"num_threads": 0}):
        with pytest.raises(ValueError, match="must be"):
            getattr(router, name)(np.ones((5, 6)), out=out, **options)
    assert (out == 7).all()


# ---- heads


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_heads_that_are_not_finite(backend, bad, dtype):
    ones, broken = np.ones((5, 4), dtype), np.ones((5, 4), dtype)
    broken[3:, 2] = bad
    with raises(ValueError, "head 3 has a NaN or infinity in its centroid"):
        Router(broken, ones, backend=backend)
    with raises(ValueError, "head 3 has a NaN or infinity in its answer"):
        Router(ones, broken, backend=backend)


def test_an_answer_that_float32_cannot_hold(backend):
    answers = np.ones((5, 4))
    answers[2, 1] = 1e39
    with raises(ValueError, "head 2 has 1e+39 in its answer, more than float32 holds"):
        Router(np.ones((5, 4)), answers, backend=backend)


def test_zero_centroid(backend):
    centroids = np.ones((5, 4))
    centroids[3] = 0
    with raises(ValueError, "head 3 has a zero centroid: it has no direction"):
        Router(centroids, np.ones((5, 4)), backend=backend)


@pytest.mark.parametrize("shape", [(0, 384), (0,), (0, 0)])
def test_no_heads(backend, shape):
    message = f"a router needs at least one head, got centroids of shape {shape}"
    with raises(ValueError, message):
        Router(np.ones(shape), np.ones((0, 384)), backend=backend)


@pytest.mark.parametrize(
    ("centroids", "answers", "message"),
    [
        ((4,), (4, 2), "centroids must be a (K, d) array, got shape (4,)"),
        ((4, 2, 1), (4, 2), "centroids must be a (K, d) array, got shape (4, 2, 1)"),
        ((4, 2), (4,), "answers must be a (K, e) array, got shape (4,)"),
        ((4, 2), (3, 2), "4 centroids but 3 answers"),
        ((4, 2), (4, 0), "answers must have at least one column, got shape (4, 0)"),
        ((4, 0), (4, 2), "head 0 has a zero centroid: it has no direction"),
    ],
)
def test_shapes_of_heads(backend, centroids, answers, message):
    with raises(ValueError, message):
        Router(np.ones(centroids), np.ones(answers), backend=backend)


def test_kinds_of_heads(backend):
    ones = np.ones((3, 2))
    with raises(TypeError, "centroids must be real numbers, got dtype complex128"):
        Router(ones + 1j, ones, backend=backend)
    with raises(TypeError, "answers must be real numbers, got dtype object"):
        Router(ones, ones.astype(object), backend=backend)


def test_names_and_temperature(backend):
    ones = np.ones((2, 2))
    with raises(ValueError, "3 names for 2 heads or groups of heads"):
        Router(ones, ones, names=["a", "b", "c"], backend=backend)
    with raises(TypeError, "names must be a sequence of str, got 'ab'"):
        Router(ones, ones, names="ab", backend=backend)
    with raises(TypeError, "names must be a sequence of str, got ['a', 1]"):
        Router(ones, ones, names=["a", 1], backend=backend)
    with raises(ValueError, "temperature must be a positive, finite number, got 0.0"):
        Router(ones, ones, temperature=0, backend=backend)


def test_unknown_backend():
    valid = ", ".join(["auto", *available_backends()])
    with raises(
        ValueError, f"backend 'cuda' cannot be used (no such backend); valid here: {valid}"
    ):
        Router(np.ones((2, 2)), np.ones((2, 2)), backend="cuda")


# ---- no error


@pytest.mark.parametrize("dtype", ["f4", "f8", "i4"])
def test_zero_query_gets_uniform_weights(router, dtype):
    queries = np.ones((3, 6), dtype)
    queries[1] = 0
    np.testing.assert_array_equal(router.route(queries)[1], np.full(10, 0.1, np.float32))
    mean = router.answers.mean(axis=0, dtype=np.float64)
    # Ten products and their sum in float32, of answers below 4 in magnitude: 14 u times 4.
    np.testing.assert_allclose(router.project(queries)[1], mean, rtol=0, atol=14 * 4 * 2.0**-24)


def test_negative_zero_query(router):
    np.testing.assert_array_equal(router.route(np.full(6, -0.0, "f4")), np.full(10, 0.1, "f4"))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_queries(router, dtype):
    empty = np.empty((0, 6), dtype)
    out = np.empty((0, 4), np.float32)
    assert router.project(empty, out=out) is out
    assert router.route(empty).shape == (0, 10)
    indices, weights = router.top_heads(empty, 3)
    assert indices.shape == weights.shape == (0, 3)
