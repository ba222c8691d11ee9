"""Every backend against the float64 formula, with sizes around every lane, tile and block count."""

import functools
import itertools

import numpy as np
import pytest
from accuracy import assert_within, exact, projection_tolerance, weight_tolerance

from headroute import Router

SIZES = (1, 3, 13, 14, 15, 31, 32, 33, 63, 64, 65)
TEMPERATURES = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)


@functools.cache
def problem(n_heads, d, e, n):
    """Queries of very different lengths; some of them near a centroid, as real ones are."""
    rng = np.random.default_rng([n_heads, d, e])
    centroids = rng.standard_normal((n_heads, d), dtype=np.float32)
    answers = rng.standard_normal((n_heads, e), dtype=np.float32)
    queries = rng.standard_normal((n, d), dtype=np.float32)
    queries[::2] += 2 * centroids[rng.integers(n_heads, size=len(queries[::2]))]
    queries *= np.exp(rng.uniform(-5, 5, (n, 1))).astype(np.float32)
    return queries, centroids, answers


@functools.lru_cache(maxsize=32)
def truth(n_heads, d, e, n, temperature):
    return exact(*problem(n_heads, d, e, n), temperature)


def check(backend, n_queries, n_heads, d, e, temperature, n=65):
    queries, centroids, answers = problem(n_heads, d, e, n)
    weights, projected = (part[:n_queries] for part in truth(n_heads, d, e, n, temperature))
    router = Router(centroids, answers, temperature=temperature, backend=backend)
    result = router.project(queries[:n_queries])
    assert_within(result, projected, projection_tolerance(weights, answers, d, temperature))
    routed = router.route(queries[:n_queries])
    assert_within(routed, weights, weight_tolerance(weights, d, temperature))


@pytest.mark.parametrize("n_heads", SIZES)
def test_edge_sizes(backend, n_heads):
    """All (N, K, e), and a Latin square of d: every pair of d with each of them."""
    i_heads = SIZES.index(n_heads)
    temperatures = itertools.cycle(TEMPERATURES)
    for (i_n, n), (i_e, e) in itertools.product(enumerate(SIZES), enumerate(SIZES)):
        d = SIZES[(i_n + 2 * i_heads + 3 * i_e) % len(SIZES)]
        check(backend, n, n_heads, d, e, next(temperatures))


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize(
    ("n", "n_heads", "d", "e"),
    [
        (83, 511, 384, 100),
        (84, 512, 100, 384),
        (85, 513, 384, 384),
        (169, 1025, 33, 17),
        (257, 2048, 768, 96),
        (2000, 16, 384, 384),
    ],
)
def test_block_sizes(backend, n, n_heads, d, e, temperature):
    """Around and beyond the rows and heads that a backend may hold at once."""
    check(backend, n, n_heads, d, e, temperature, n=n)


def numpy_float32(queries, centroids, answers, temperature):
    unit = centroids / np.linalg.norm(centroids, axis=1, keepdims=True)
    logits = (queries / np.linalg.norm(queries, axis=1, keepdims=True)) @ unit.T
    logits /= np.float32(temperature)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    return weights, weights @ answers


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize(("n_heads", "n"), [(16, 2000), (1000, 500), (20_000, 200)])
def test_at_least_as_close_as_numpy(backend, n_heads, n, temperature):
    """Root mean square error over all elements.

    The quarter more is for the luck of the draw (few weights matter at τ = 0.1) and for the BLAS
    that NumPy has: its order of summation differs between CPUs.
    """
    size = (n_heads, 384, 384, n)
    queries, centroids, answers = problem(*size)
    router = Router(centroids, answers, temperature=temperature, backend=backend)
    ours = router.route(queries), router.project(queries)
    numpys = numpy_float32(queries, centroids, answers, temperature)
    for our, numpy, true in zip(ours, numpys, truth(*size, temperature), strict=True):
        assert rms(our - true) <= 1.25 * rms(numpy - true)


def rms(errors):
    return np.sqrt(np.mean(np.square(errors, dtype=np.float64)))


def test_answers_near_the_end_of_float32(backend, rng):
    """Σ w a is divided by Σ w only at its end, and must not be infinite on the way."""
    answers = np.full((100, 5), 3e38, np.float32)
    answers[:, 1] = -3e38
    answers[:, 2] = 1e-3
    router = Router(rng.standard_normal((100, 16)), answers, temperature=10.0, backend=backend)
    projected = router.project(rng.standard_normal((7, 16)))
    # Equal answers: rounding of the sum (100 terms), the total (100 terms) and the quotient.
    np.testing.assert_allclose(projected, np.broadcast_to(answers[0], (7, 5)), rtol=202 * 2.0**-24)


def test_huge_answers_do_not_cost_small_ones_their_digits(backend, rng):
    """Columns are independent: one of 1e25 says nothing about one of 1e-30."""
    answers = rng.uniform(1, 4, (40, 3)) * [1e25, 1e-30, 1]
    queries, centroids = rng.standard_normal((20, 8)), rng.standard_normal((40, 8))
    exact = Router(centroids, answers, temperature=1, backend="reference").project(queries)
    projected = Router(centroids, answers, temperature=1, backend=backend).project(queries)
    # All terms are positive: a weight's relative error, (6 √d + 8) u / τ at most, twice.
    np.testing.assert_allclose(projected, exact, rtol=2 * (6 * np.sqrt(8) + 8) * 2.0**-24)
