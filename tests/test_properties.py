"""What must hold of any heads and queries: properties of the formula, on every backend."""

import numpy as np
from accuracy import U, exact, projection_tolerance, weight_tolerance
from hypothesis import given
from hypothesis import strategies as st

from headroute import Router

sizes = st.integers(1, 40)
seeds = st.integers(0, 2**32 - 1)
temperatures = st.floats(0.001, 100)


@st.composite
def problems(draw):
    """(queries, centroids, answers, temperature): float32, of any shape, some of them alike."""
    n, n_heads, d, e = (draw(sizes) for _ in range(4))
    rng = np.random.default_rng(draw(seeds))
    centroids = rng.standard_normal((n_heads, d), dtype=np.float32)
    queries = rng.standard_normal((n, d), dtype=np.float32)
    queries += draw(st.sampled_from([0, 1, 10])) * centroids[rng.integers(n_heads, size=n)]
    answers = rng.standard_normal((n_heads, e), dtype=np.float32)
    return queries, centroids, answers, draw(temperatures)


def tolerances(queries, centroids, answers, tau):
    """Twice what a backend may be off: two results are compared."""
    d = queries.shape[1]
    weights, _ = exact(queries, centroids, answers, tau)
    return (
        2 * weight_tolerance(weights, d, tau),
        2 * projection_tolerance(weights, answers, d, tau),
    )


@given(problems(), seeds)
def test_rows_do_not_depend_on_each_other(backend, problem, seed):
    """Not on their order, nor on the batch that they come in."""
    queries, centroids, answers, tau = problem
    router = Router(centroids, answers, temperature=tau, backend=backend)
    of_weights, of_projections = tolerances(*problem)
    order = np.random.default_rng(seed).permutation(len(queries))
    projected = router.project(queries)
    assert (
        abs(router.route(queries[order]) - router.route(queries)[order]) <= of_weights[order]
    ).all()
    assert (abs(router.project(queries[order]) - projected[order]) <= of_projections[order]).all()
    one_by_one = np.stack([router.project(query) for query in queries])
    assert (abs(one_by_one - projected) <= of_projections).all()


@given(problems(), st.floats(1e-30, 1e30))
def test_length_of_a_query_does_not_matter(backend, problem, length):
    queries, centroids, answers, tau = problem
    router = Router(centroids, answers, temperature=tau, backend=backend)
    longer = queries * np.float32(length)  # one more rounding, within the second tolerance
    assert (abs(router.project(longer) - router.project(queries)) <= tolerances(*problem)[1]).all()


@given(problems())
def test_projections_lie_in_the_hull_of_the_answers(backend, problem):
    queries, centroids, answers, tau = problem
    projected = Router(centroids, answers, temperature=tau, backend=backend).project(queries)
    # Weights that sum to 1 within the rounding of their sum and of the products with the answers.
    slack = (8 * np.sqrt(len(answers)) + 8) * U * abs(answers).max(axis=0)
    assert (projected <= answers.max(axis=0) + slack).all()
    assert (projected >= answers.min(axis=0) - slack).all()


@given(problems())
def test_weights_are_a_distribution(backend, problem):
    queries, centroids, answers, tau = problem
    weights = Router(centroids, answers, temperature=tau, backend=backend).route(queries)
    assert (weights >= 0).all()
    slack = (8 * np.sqrt(len(answers)) + 8) * U
    assert (abs(weights.sum(axis=1, dtype=np.float64) - 1) <= slack).all()


@given(problems(), st.sampled_from([1e-7, 1e-30, 1e-45, 1e-300, 5e-324]))
def test_cold_routing_takes_the_nearest_head(backend, problem, tau):
    queries, centroids, answers, _ = problem
    similarities, _ = exact(queries, centroids, answers, 1.0)
    best = np.sort(similarities, axis=1)
    # exp(-gap / τ) is far below half an ulp when the runner-up's weight at τ = 1 is 1 % less.
    clear = best[:, -2] < 0.99 * best[:, -1] if len(answers) > 1 else np.ones(len(queries), bool)
    router = Router(centroids, answers, temperature=tau, backend=backend)
    nearest = similarities.argmax(axis=1)
    np.testing.assert_array_equal(
        router.route(queries)[clear], np.eye(len(answers), dtype=np.float32)[nearest[clear]]
    )
    np.testing.assert_array_equal(router.project(queries)[clear], answers[nearest[clear]])


@given(problems())
def test_hot_routing_takes_the_mean(backend, problem):
    queries, centroids, answers, _ = problem
    router = Router(centroids, answers, temperature=1e12, backend=backend)
    # Logits below 2e-12 leave every weight's exponential at 1: only the division rounds.
    np.testing.assert_allclose(router.route(queries), 1 / len(answers), rtol=4 * U)


@given(problems())
def test_a_single_head_answers_alone(backend, problem):
    queries, centroids, answers, tau = problem
    router = Router(centroids[:1], answers[:1], temperature=tau, backend=backend)
    np.testing.assert_array_equal(router.route(queries), np.ones((len(queries), 1), np.float32))
    np.testing.assert_array_equal(
        router.project(queries), np.broadcast_to(answers[:1], (len(queries), answers.shape[1]))
    )


@given(problems())
def test_duplicate_heads_share_their_weight(backend, problem):
    queries, centroids, answers, tau = problem
    router = Router(centroids, answers, temperature=tau, backend=backend)
    twice = Router(
        np.concatenate([centroids, centroids]),
        np.concatenate([answers, answers]),
        temperature=tau,
        backend=backend,
    )
    of_weights, of_projections = tolerances(*problem)
    assert (abs(twice.project(queries) - router.project(queries)) <= of_projections).all()
    first, second = np.split(twice.route(queries), 2, axis=1)
    assert (abs(2 * first - router.route(queries)) <= of_weights).all()
    assert (abs(2 * second - router.route(queries)) <= of_weights).all()
