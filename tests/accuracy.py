"""How far a float32 backend may be from the float64 formula, derived.

u = 2**-24 is float32's unit roundoff. Rounding errors are taken to add up like a random walk: a sum
of n products is off by at most 4 √n u of the sum of their magnitudes, with a probability of failure
below 2 n exp(-8) (Higham and Mary, SIAM J. Sci. Comput. 41, 2019; the certain bound is n u).

- A cosine is a dot product of unit vectors, whose magnitudes sum to 1 at most (Cauchy-Schwarz):
  4 √d u, half as much again for the norm (its error is halved under the root), and 4 u for the
  roundings of q̂ and ĉ.
- A logit is a difference of two cosines, at most 2, over τ: twice that error, and 4 u for the
  roundings of the difference (2 u) and the scale (u), times its size of at most 2 / τ.
- exp turns an absolute error of a logit into a relative one, and adds 2 ulp = 4 u of its own. The
  weights' sum has the same relative error, and that of its summation, 4 √K u.
- Weights below 2**-126 of the largest may be flushed to zero.
"""

import numpy as np

U = 2.0**-24


def exact(queries, centroids, answers, temperature):
    """Weights (n, K) and projections (n, e) in float64, of float32 inputs."""
    q, c, a = (np.asarray(x, np.float64) for x in (queries, centroids, answers))
    norm = np.linalg.norm(q, axis=1, keepdims=True)
    s = (q / np.where(norm > 0, norm, 1)) @ (c / np.linalg.norm(c, axis=1, keepdims=True)).T
    w = np.exp((s - s.max(axis=1, keepdims=True)) / temperature)
    w /= w.sum(axis=1, keepdims=True)
    return w, w @ a


def row_errors(projected, queries, router, temperature):
    """‖projected - exact‖ / max ‖a‖ of every row, against float64."""
    _, expected = exact(queries, router.centroids, router.answers, temperature)
    unit = np.linalg.norm(router.answers.astype(np.float64), axis=1).max()
    return np.linalg.norm(projected - expected, axis=1) / (unit or 1)


def check_bounds(router, queries, temperature):
    """No row is further off than its own bound, no bound is above the plan's, and asking for bounds
    changes no bit. Returns errors and bounds, both (n,)."""
    projected, bound = router.project(queries, temperature=temperature, return_bound=True)
    error = row_errors(projected, queries, router, temperature)
    worst = np.argmax(error - bound)
    assert error[worst] <= bound[worst], (worst, error[worst], bound[worst])
    assert (bound <= router.plan(temperature).bound * (1 + 1e-6)).all()
    assert (router.project(queries, temperature=temperature) == projected).all()
    return error, bound


def weight_error(d, n_heads, temperature):
    """Relative error of a weight."""
    cosine = (6 * np.sqrt(d) + 4) * U
    logit = (2 * cosine + 2 * 4 * U) / temperature + 4 * U
    return np.expm1(2 * logit) + (4 * np.sqrt(n_heads) + 2) * U


def weight_tolerance(weights, d, temperature):
    """Absolute tolerance (n, K) of exact weights (n, K)."""
    relative = weight_error(d, weights.shape[1], temperature)
    return relative * weights + 2.0**-125


def projection_tolerance(weights, answers, d, temperature):
    """Absolute tolerance (n, e) of projections: that of the weights, and of the sum over heads."""
    n_heads = weights.shape[1]
    relative = weight_error(d, n_heads, temperature) + (4 * np.sqrt(n_heads) + 2) * U
    magnitudes = np.abs(np.asarray(answers, np.float64))
    return relative * (weights @ magnitudes) + n_heads * 2.0**-125 * magnitudes.max()


def assert_within(actual, expected, tolerance):
    """Every element of `actual` within its own tolerance."""
    assert actual.dtype == np.float32
    excess = np.abs(actual - expected) - tolerance
    worst = np.unravel_index(np.argmax(excess), excess.shape)
    assert excess[worst] <= 0, (
        f"{worst}: {actual[worst]} for {expected[worst]}, off by {excess[worst]}"
    )
