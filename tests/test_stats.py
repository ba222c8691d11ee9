"""log_partition, entropy and best_cosine, against their definitions in float64."""

import math

import numpy as np
import pytest

from headroute import Router, Stats


def definition(queries, centroids, temperature):
    q = queries / np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), 1e-300)
    cosines = q @ (centroids / np.linalg.norm(centroids, axis=1, keepdims=True)).T
    logits = cosines / temperature
    largest = logits.max(axis=1, keepdims=True)
    log_partition = largest[:, 0] + np.log(np.exp(logits - largest).sum(axis=1))
    weights = np.exp(logits - log_partition[:, np.newaxis])
    logs = np.log(weights, where=weights > 0, out=np.zeros_like(weights))
    return log_partition, -(weights * logs).sum(axis=1), cosines.max(axis=1)


@pytest.mark.parametrize("temperature", [0.001, 0.02, 0.1, 1.0, 100.0])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (2, 3, 5), (31, 16, 17), (257, 33, 15), (1500, 384, 16)]
)
def test_stats(backend, rng, temperature, shape):
    n_heads, d, n = shape
    centroids = rng.standard_normal((n_heads, d)).astype(np.float32)
    queries = rng.standard_normal((n, d)).astype(np.float32)
    queries[0] = 3 * centroids[0]
    queries[-1] = 0
    router = Router(centroids, np.ones((n_heads, 2)), temperature=temperature, backend=backend)
    projected, stats = router.project(queries, stats=True)
    np.testing.assert_array_equal(projected, router.project(queries))
    log_partition, entropy, best = definition(
        queries.astype(np.float64), centroids.astype(np.float64), temperature
    )
    # A logit is off by a few float32 roundings of a cosine, over τ; an entropy by that times the
    # spread of the logits, at most log K + 1 where weights matter.
    logit = 6e-7 / temperature
    np.testing.assert_allclose(stats.best_cosine, best, rtol=0, atol=6e-7)
    np.testing.assert_allclose(stats.log_partition, log_partition, rtol=3e-7, atol=logit + 1e-6)
    limit = (logit + 1e-6) * (math.log(n_heads) + 2)
    np.testing.assert_allclose(stats.entropy, entropy, rtol=0, atol=limit)
    assert stats.entropy[-1] == pytest.approx(math.log(n_heads), abs=2e-6)
    assert stats.best_cosine[-1] == 0
    assert (stats.entropy >= 0).all()


def test_the_forms_of_the_result(router, rng):
    queries = rng.standard_normal((5, 6))
    projected, bound, stats = router.project(queries, return_bound=True, stats=True)
    assert isinstance(stats, Stats)
    assert projected.shape == (5, 4)
    assert bound.shape == (5,)
    assert all(values.shape == (5,) and values.dtype == np.float32 for values in stats)
    _, one = router.project(queries[3], stats=True)
    for single, many in zip(one, stats, strict=True):
        assert single.shape == ()
        np.testing.assert_allclose(single, many[3], rtol=1e-5)
    out = np.empty((5, 4), np.float32)
    again, _ = router.project(queries, out=out, stats=True)
    assert again is out
    _, none = router.project(np.empty((0, 6)), stats=True)
    assert all(values.shape == (0,) for values in none)


def test_queries_of_any_length_have_the_same_stats(backend, rng):
    router = Router(rng.standard_normal((20, 40)), rng.standard_normal((20, 3)), backend=backend)
    queries = rng.standard_normal((9, 40)).astype(np.float32)
    _, stats = router.project(queries, stats=True)
    for scale in (1e-30, 1e-12, 1e12, 1e30):
        _, scaled = router.project(queries * np.float32(scale), stats=True)
        for values, expected in zip(scaled, stats, strict=True):
            np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)


def test_stats_do_not_depend_on_the_batch(isa, rng):
    """A pass has several blocks of heads, and the maximum rises from one to the next."""
    centroids = rng.standard_normal((2000, 24)).astype(np.float32)
    router = Router(centroids, rng.standard_normal((2000, 3)))
    queries = rng.standard_normal((100, 24)).astype(np.float32)
    _, stats = router.project(queries, stats=True)
    for threads in (1, 3):
        for n in (1, 2, 5, 99):
            _, part = router.project(queries[:n], stats=True, num_threads=threads)
            for values, expected in zip(part, stats, strict=True):
                np.testing.assert_array_equal(values, expected[:n])


def test_a_tolerant_router_gives_float32_stats(isa, rng):
    """stats come from the float32 pass, whatever the router may do otherwise."""
    heads = rng.standard_normal((300, 24)), rng.standard_normal((300, 3))
    queries = rng.standard_normal((50, 24))
    tolerant = Router(*heads, precision="int16")
    projected, stats = tolerant.project(queries, stats=True)
    exact, expected = Router(*heads).project(queries, stats=True)
    np.testing.assert_array_equal(projected, exact)
    np.testing.assert_array_equal(stats.entropy, expected.entropy)


@pytest.mark.parametrize("temperature", [1e6, 1e9, 1e38])
def test_the_best_cosine_at_temperatures_that_make_weights_equal(backend, rng, temperature):
    centroids = rng.standard_normal((200, 16))
    router = Router(centroids, np.ones((200, 1)), temperature=temperature, backend=backend)
    queries = rng.standard_normal((30, 16))
    _, stats = router.project(queries, stats=True)
    _, _, best = definition(queries, centroids, temperature)
    np.testing.assert_allclose(stats.best_cosine, best, rtol=0, atol=1e-6)


@pytest.mark.parametrize("temperature", [1e-39, 5e-324])
@pytest.mark.filterwarnings("error")
def test_temperatures_whose_logits_float32_cannot_hold(backend, rng, temperature):
    router = Router(np.eye(3), np.eye(3), temperature=temperature, backend=backend)
    projected, stats = router.project(np.eye(3)[1], stats=True)
    np.testing.assert_array_equal(projected, [0, 1, 0])
    assert stats.log_partition == np.inf
    assert (stats.entropy, stats.best_cosine) == (0, 1)


def test_the_bound_of_a_call_with_stats_is_float32s(isa, rng):
    heads = np.ones((1, 8)), rng.standard_normal((1, 4))  # one head: int16 is exact
    tolerant, plain = Router(*heads, precision="int16"), Router(*heads)
    _, bound, _ = tolerant.project(np.ones((2, 8)), return_bound=True, stats=True)
    _, expected = plain.project(np.ones((2, 8)), return_bound=True)
    np.testing.assert_array_equal(bound, expected)
